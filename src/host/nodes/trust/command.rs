//! `localregistry trust`: writes the trust files for a registry to a folder.

use std::collections::BTreeSet;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::images::{DiskImages, DiskImagesError, disk_images};
use super::write::{WriteError, write};
use super::{Bundle, Endpoint, EndpointError, TrustFormat, endpoint, tree};
use crate::disk::layout::LeftOver;
use crate::host::support::files;
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::host::support::report::Report;
use crate::oci::Host;
use crate::registry::tls::{self, TlsError};

/// Largest file of `--ready` or `--ca`, in bytes.
const LARGEST: u64 = 1 << 20;

/// The command line of `localregistry trust`.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("registry").args(["endpoint", "ready"]).multiple(true).required(true),
    after_help = "\
Examples:
  localregistry trust --endpoint 10.1.0.82:5000 --ca ca.crt --disk images.erofs -o trust
      All files for a registry that nodes reach at 10.1.0.82:5000
  localregistry trust --ready ready.json --endpoint 10.0.2.2 --format containerd,k3s -o trust
      For a running registry; nodes reach it at another address, on the same port
  localregistry trust --endpoint http://10.1.0.82:5000 --upstream docker.io --format podman -o trust
      For plain HTTP, without a disk

The folder gets ca.crt, env and images.txt, and a folder for each format. An earlier bundle in the folder is replaced as a whole; a folder
with other files is rejected."
)]
pub struct TrustArgs {
    /// Where nodes reach the registry: HOST:PORT or a URL (repeatable; mirror entries use the first). The registry's certificate
    /// must be for this host: give it to `run` or `serve` as --san if it is not one of their own addresses
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Vec<Endpoint>,

    /// File with the output of `run --json` or `serve --json`: sets --endpoint and --ca if they are not given, and adds the names
    /// of --san
    #[arg(long, value_name = "FILE")]
    ready: Option<PathBuf>,

    /// CA certificate to trust, PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Disk, in any form that `inspect` reads: lists its images, and adds mirror entries for its upstream hosts (repeatable)
    #[arg(long, value_name = "DISK")]
    disk: Vec<PathBuf>,

    /// Take layouts without a catalog even if their images lack layers, or indexes lack manifests. As `serve --allow-missing`
    #[arg(long)]
    allow_missing: bool,

    /// Upstream host to add mirror entries for (repeatable)
    #[arg(long, value_name = "HOST", value_parser = host)]
    upstream: Vec<Host>,

    /// Tools to write files for
    #[arg(long, value_name = "FORMAT", value_enum, value_delimiter = ',', default_value = "all")]
    format: Vec<TrustFormat>,

    /// Folder to write
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

fn host(text: &str) -> Result<Host, String> {
    text.parse().map_err(|_| "expected a registry's host, such as docker.io or registry.k8s.io".to_owned())
}

/// Why the trust files cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file of `--ca` is invalid.
    #[error("{} cannot be trusted", .path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: TlsError,
    },
    /// The CA from the guest is invalid.
    #[error("the CA from the guest is invalid")]
    OwnCa(#[source] TlsError),
    /// The registry's endpoint is invalid.
    #[error("the registry's endpoint is invalid")]
    Endpoint(#[source] EndpointError),
    /// The file of `--ready` is invalid.
    #[error("{} is not the output of `run --json` or `serve --json`", .path.display())]
    Ready {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// The file of `--ready` has no usable endpoint.
    #[error("{} has no usable endpoint", .path.display())]
    NoEndpoint {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: EndpointError,
    },
    /// TLS without a CA.
    #[error("there is no CA for {0}; give '--ca <FILE>', or the endpoint as http://{0} for plain HTTP")]
    NoCa(Host),
    /// A CA without TLS.
    #[error("there is a CA for http://{0}, which is plain HTTP; give only one of them")]
    CaWithoutTls(Host),
    /// The disks' images cannot be listed.
    #[error(transparent)]
    DiskImages(#[from] DiskImagesError),
    /// The folder's path is not UTF-8.
    #[error("the path {} is not UTF-8, and files in it name others by path; use a path that is UTF-8", .0.display())]
    Path(PathBuf),
    /// The folder cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Interrupted by a signal.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The signal thread cannot be started.
    #[error("cannot start the signal thread")]
    Signals(#[source] io::Error),
    /// Standard output cannot be written to.
    #[error("cannot print what was written")]
    Print(#[source] io::Error),
}

impl TrustError {
    /// The exit status: after a signal 128 plus the signal's number, as in a shell; else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if let Self::Interrupted(cause) = self { cause.exit_code() } else { 1 }
    }
}

/// The fields of the JSON of `run` and `serve` that say where the registry is.
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
    endpoints: Vec<Endpoint>,
    names: Vec<String>,
    ca: Option<PathBuf>,
}

/// The trust files that were written.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TrustResult")]
pub struct TrustResult<'a> {
    /// The absolute path of the folder.
    dir: &'a str,
    /// Paths of the files, relative to the folder.
    files: Vec<&'a str>,
}

/// Runs `localregistry trust`.
///
/// # Errors
/// Fails without writing anything.
pub fn run(args: &TrustArgs, report: &Report) -> Result<(), TrustError> {
    let interrupt = Interrupt::catch().map_err(TrustError::Signals)?;
    let done = write_bundle(args, report);
    // A signal causes errors of many kinds. Report the signal instead.
    if done.is_err() {
        interrupt.check()?;
    }
    done
}

fn write_bundle(args: &TrustArgs, report: &Report) -> Result<(), TrustError> {
    let bundle = args.bundle(report)?;
    let tree = tree(&bundle, &args.format);
    write(&tree, &args.output)?;
    let limits: BTreeSet<String> = args.format.iter().flat_map(|format| format.limits(&bundle)).collect();
    limits.iter().for_each(|limit| report.step(limit));
    let result = TrustResult { dir: &bundle.dir, files: tree.keys().map(String::as_str).collect() };
    let text = format!("{}: {} files for {}", args.output.display(), result.files.len(), bundle.url());
    report.result(&result, &text).map_err(TrustError::Print)
}

impl TrustArgs {
    fn bundle(&self, report: &Report) -> Result<Bundle, TrustError> {
        let running = self.ready.as_deref().map(ready).transpose()?.unwrap_or_default();
        let tls = self.endpoint.iter().chain(&running.endpoints).find_map(|endpoint| endpoint.tls);
        let endpoints = endpoint::reachable(&running.endpoints, &self.endpoint, &running.names);
        let unusable = || TrustError::NoEndpoint { path: self.ready.clone().unwrap_or_default(), source: EndpointError::Host };
        let first = endpoints.first().cloned().ok_or_else(unusable)?;
        let ca = match (self.ca.clone().or(running.ca), tls) {
            (Some(_), Some(false)) => return Err(TrustError::CaWithoutTls(first)),
            (None, None | Some(true)) => return Err(TrustError::NoCa(first)),
            (path, _) => path.as_deref().map(certificates).transpose()?,
        };
        let mut contents = disk_images(&self.disk, self.allow_missing)?;
        report.steps(mem::take(&mut contents.left_over), LeftOver::others);
        contents.upstreams.extend(self.upstream.iter().cloned());
        bundle(endpoints, ca, contents, &self.output)
    }
}

impl Bundle {
    /// The bundle of a running registry, for the folder `dir`. Nodes reach the registry at `hosts` (or `own` if there are no
    /// hosts), and by `names`.
    ///
    /// # Errors
    /// Fails if the CA is invalid, or if the folder's path is not UTF-8.
    pub fn of_run(
        own: &[Endpoint],
        hosts: &[Endpoint],
        names: &[String],
        ca: Option<&str>,
        contents: DiskImages,
        dir: &Path,
    ) -> Result<Self, TrustError> {
        let endpoints = endpoint::reachable(own, hosts, names);
        let ca = ca.map(|pem| tls::certificates(pem.as_bytes())).transpose().map_err(TrustError::OwnCa)?;
        bundle(endpoints, ca, contents, dir)
    }
}

/// The bundle of a registry with `contents`, for the folder `dir`.
fn bundle(endpoints: Vec<Host>, ca: Option<String>, contents: DiskImages, dir: &Path) -> Result<Bundle, TrustError> {
    let absolute = std::path::absolute(dir).map_err(|source| TrustError::Read { path: dir.to_owned(), source })?;
    let dir = absolute.into_os_string().into_string().map_err(|path| TrustError::Path(path.into()))?;
    Ok(Bundle { endpoints, ca, upstreams: contents.upstreams, images: contents.images, dir })
}

fn ready(path: &Path) -> Result<Running, TrustError> {
    let text = read(path)?;
    let ready: Ready = serde_json::from_slice(&text).map_err(|source| TrustError::Ready { path: path.to_owned(), source })?;
    let Ready { endpoint, endpoints, further, names, ca } = ready;
    let unusable = |source| TrustError::NoEndpoint { path: path.to_owned(), source };
    let urls = endpoint.into_iter().chain(endpoints).chain(further);
    let endpoints: Vec<Endpoint> = urls.map(|url| url.parse()).collect::<Result<_, _>>().map_err(unusable)?;
    Ok(Running { endpoints, names, ca })
}

/// The certificates in the file at `path`. Anything else in it, such as a key, must not go to the nodes.
fn certificates(path: &Path) -> Result<String, TrustError> {
    tls::certificates(&read(path)?).map_err(|source| TrustError::Ca { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    files::read(path, LARGEST).map_err(|source| TrustError::Read { path: path.to_owned(), source })
}
