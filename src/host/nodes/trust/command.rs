//! `localregistry trust`: a registry's place, its CA and a disk enter; a folder of trust files leaves.

use std::io;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::images::{Contents, ContentsError, contents};
use super::write::{WriteError, check, write};
use super::{Bundle, Endpoint, EndpointError, Format, endpoint, tree};
use crate::host::support::files;
use crate::host::support::report::Report;
use crate::oci::Host;
use crate::registry::tls::{self, TlsError};

/// Largest line of `--ready`, and largest CA, in bytes.
const LARGEST: u64 = 1 << 20;

/// The command line of `localregistry trust`.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("place").args(["endpoint", "ready"]).multiple(true).required(true),
    after_help = "\
Examples:
  localregistry trust --endpoint 10.1.0.82:5000 --ca ca.crt --disk images.erofs -o trust
      Everything for a registry that nodes reach at 10.1.0.82:5000
  localregistry trust --ready ready.json --endpoint 10.0.2.2 --disk images.erofs --format containerd,k3s -o trust
      For what `run --json` said; nodes reach it at another address, on the same port
  localregistry trust --endpoint http://10.1.0.82:5000 --upstream docker.io --format podman -o trust
      For plain HTTP, without a disk at hand

The folder has ca.crt, env and images.txt for everyone, and a folder for each format. It is replaced as a whole, where it is an
earlier bundle; anything else is left alone."
)]
pub struct Args {
    /// Where nodes reach the registry: HOST:PORT, or a URL; repeatable, mirror entries point to the first. Whether its certificate is for
    /// that host is not known here: a name or address that `run` or `serve` do not have by themselves they need as --san
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Vec<Endpoint>,

    /// What `run --json` or `serve --json` printed: it has the names of --san, and the endpoints and the CA where they are not given
    #[arg(long, value_name = "FILE")]
    ready: Option<PathBuf>,

    /// The CA certificate to trust, PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// The disk as `inspect` takes it: what it has is listed, and its upstream hosts get mirror entries (repeatable)
    #[arg(long, value_name = "DISK")]
    disk: Vec<PathBuf>,

    /// A host that the registry stands in for (repeatable)
    #[arg(long, value_name = "HOST", value_parser = host)]
    upstream: Vec<Host>,

    /// Whom the files are for
    #[arg(long, value_name = "FORMAT", value_enum, value_delimiter = ',', default_value = "all")]
    format: Vec<Format>,

    /// The folder to write
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

fn host(text: &str) -> Result<Host, String> {
    text.parse().map_err(|_| "expected a registry's host, such as docker.io or registry.k8s.io".to_owned())
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file that was named.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The CA's file.
    #[error("{} cannot be trusted", .path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: TlsError,
    },
    /// The CA of a guest.
    #[error("what the guest gave as its CA cannot be trusted")]
    OwnCa(#[source] TlsError),
    /// The endpoint of a guest.
    #[error("the registry's endpoint is none")]
    Endpoint(#[source] EndpointError),
    /// What `run` said.
    #[error("{} is not what `run --json` or `serve --json` print", .path.display())]
    Ready {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// It says nothing of a place, or one that is none.
    #[error("{} names no endpoint that can be used", .path.display())]
    NoEndpoint {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: EndpointError,
    },
    /// TLS without a CA.
    #[error("no CA is given for {0}; give '--ca <FILE>', or the endpoint as http://{0} for plain HTTP")]
    NoCa(Host),
    /// A CA without TLS.
    #[error("a CA is given for http://{0}, which speaks plain HTTP; give one of them")]
    CaWithoutTls(Host),
    /// The disk.
    #[error("it is not known which images there are")]
    Contents(#[from] ContentsError),
    /// The folder.
    #[error("the path of {} is not UTF-8; expected one, since files name others by it", .0.display())]
    Path(PathBuf),
    /// Writing.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Standard output.
    #[error("cannot print what was written")]
    Print(#[source] io::Error),
}

/// The part of `run`'s and `serve`'s JSON that says where.
#[derive(Debug, Default, Deserialize)]
struct Ready {
    endpoint: Option<String>,
    #[serde(default)]
    endpoints: Vec<String>,
    #[serde(default)]
    further: Vec<String>,
    #[serde(default)]
    names: Vec<String>,
    ca: Option<PathBuf>,
}

/// A running registry.
#[derive(Debug, Default)]
struct Running {
    places: Vec<Endpoint>,
    names: Vec<String>,
    ca: Option<PathBuf>,
}

/// What was written.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TrustResult")]
pub struct Written<'a> {
    /// The folder, an absolute path.
    dir: &'a str,
    /// The files' paths below it.
    files: Vec<&'a str>,
}

/// Writes the bundle that `args` describe.
///
/// # Errors
/// [`TrustError`]. Then nothing is written.
pub fn run(args: &Args, report: &Report) -> Result<(), TrustError> {
    let bundle = args.bundle()?;
    let tree = tree(&bundle, &args.format);
    write(&tree, &args.output)?;
    let written = Written { dir: &bundle.dir, files: tree.keys().map(String::as_str).collect() };
    let text = format!("{}: {} files for {}", args.output.display(), written.files.len(), bundle.url());
    report.result(&written, &text).map_err(TrustError::Print)
}

impl Args {
    fn bundle(&self) -> Result<Bundle, TrustError> {
        let running = self.ready.as_deref().map(ready).transpose()?.unwrap_or_default();
        let tls = self.endpoint.iter().chain(&running.places).find_map(|endpoint| endpoint.tls);
        let endpoints = endpoint::reached(&running.places, &self.endpoint, &running.names);
        let unusable = || TrustError::NoEndpoint { path: self.ready.clone().unwrap_or_default(), source: EndpointError::Host };
        let first = endpoints.first().cloned().ok_or_else(unusable)?;
        let ca = match (self.ca.clone().or(running.ca), tls) {
            (Some(_), Some(false)) => return Err(TrustError::CaWithoutTls(first)),
            (None, None | Some(true)) => return Err(TrustError::NoCa(first)),
            (path, _) => path.as_deref().map(certificates).transpose()?,
        };
        let mut contents = contents(&self.disk)?;
        contents.upstreams.extend(self.upstream.iter().cloned());
        bundle(endpoints, ca, contents, &self.output)
    }
}

/// What the disks have, for a bundle that is later to be written to `dir`: asked before the work that would be in vain.
///
/// # Errors
/// [`TrustError`], where something else is there, or it is not known what the disks have.
pub fn prepare(dir: &Path, disks: &[PathBuf]) -> Result<Contents, TrustError> {
    check(dir)?;
    Ok(contents(disks)?)
}

impl Bundle {
    /// The bundle of a running registry at `places`, for the folder `dir`. Nodes reach it at `hosts`, or if there are none at `places`, and
    /// by `names`.
    ///
    /// # Errors
    /// As of a bad CA, or a path that is not UTF-8.
    pub fn of_run(
        places: &[Endpoint],
        hosts: &[Endpoint],
        names: &[String],
        ca: Option<&str>,
        contents: Contents,
        dir: &Path,
    ) -> Result<Self, TrustError> {
        let endpoints = endpoint::reached(places, hosts, names);
        let ca = ca.map(|pem| tls::certificates(pem.as_bytes())).transpose().map_err(TrustError::OwnCa)?;
        bundle(endpoints, ca, contents, dir)
    }
}

/// The bundle for `dir` of a registry that has `contents`.
fn bundle(endpoints: Vec<Host>, ca: Option<String>, contents: Contents, dir: &Path) -> Result<Bundle, TrustError> {
    let absolute = std::path::absolute(dir).map_err(|source| TrustError::Read { path: dir.to_owned(), source })?;
    let dir = absolute.into_os_string().into_string().map_err(|path| TrustError::Path(path.into()))?;
    Ok(Bundle { endpoints, ca, upstreams: contents.upstreams, images: contents.images, dir })
}

fn ready(path: &Path) -> Result<Running, TrustError> {
    let text = read(path)?;
    let ready: Ready = serde_json::from_slice(&text).map_err(|source| TrustError::Ready { path: path.to_owned(), source })?;
    let Ready { endpoint, endpoints, further, names, ca } = ready;
    let unusable = |source| TrustError::NoEndpoint { path: path.to_owned(), source };
    let said = endpoint.into_iter().chain(endpoints).chain(further);
    let places: Vec<Endpoint> = said.map(|said| said.parse()).collect::<Result<_, _>>().map_err(unusable)?;
    Ok(Running { places, names, ca })
}

/// The certificates in the file at `path`, and nothing else that is in it: a key would go to every node.
fn certificates(path: &Path) -> Result<String, TrustError> {
    tls::certificates(&read(path)?).map_err(|source| TrustError::Ca { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    files::read(path, LARGEST).map_err(|source| TrustError::Read { path: path.to_owned(), source })
}
