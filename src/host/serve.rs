//! `localregistry serve`: the appliance's server on the host, without a VM, for development and for measuring.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::Serialize;

use super::nodes::access::{Access, AccessError, CLIENT_CA_WITHOUT_TLS};
use super::nodes::ca::{self, Certificates, Tls};
use super::support::files;
use super::support::report::{Report, counted};
use super::support::signals::Signals;
use super::vm::launch::{LaunchError, check_disk};
use super::vm::net::check::privileged;
use crate::address::san;
use crate::disk::layout::{LayoutError, MissingBlob};
use crate::registry::api::handler::{Options, Registry};
use crate::registry::auth::client_certificate::ClientCa;
use crate::registry::content::store::{Store, StoreError};
use crate::registry::limits::Limits;
use crate::registry::limits::overrides::LimitOverride;
use crate::registry::listen::client::Surface;
use crate::registry::listen::listener::{Listener, Transport};
use crate::registry::listen::server::{runtime, serve};
use crate::registry::telemetry::events::Events;
use crate::registry::tls::{self, Authority, Identity, TlsError};

/// How long transfers may go on after SIGINT or SIGTERM.
const DRAIN: Duration = Duration::from_secs(10);

/// Serve an OCI image layout from this machine, without a VM
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Images of the layout that have no repository's name are filed as localregistry pack files them: beside what they \
refer to, or in the only repository that there is. What is left, which pack refuses, is served as the repository image.

Examples:
  localregistry serve images/ --tls off
  localregistry serve images/ --listen 127.0.0.1:5000 --ca-out ca.crt --san registry.test
  localregistry serve images/ --listen 10.1.0.82:443 --listen [fd00::82]:443 --plain 10.1.0.82:80
  localregistry serve images/ --htpasswd users --token --metrics 127.0.0.1:9090"
)]
pub struct Args {
    /// Folder of an OCI image layout, or of a disk's extracted content
    layout: PathBuf,

    /// Address and port to listen on; port 0 takes a free one. May be given several times
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:5000")]
    listen: Vec<SocketAddr>,

    /// Address and port to serve plain HTTP on besides: /ca.crt for nodes that have nothing to trust yet. May be given several times
    #[arg(long, value_name = "ADDR:PORT")]
    plain: Vec<SocketAddr>,

    /// A further DNS name, wildcard (*.example.test) or IP address that clients use: it goes into the certificate, and a given one has
    /// to have it. May be given several times
    #[arg(long, value_name = "NAME", value_parser = san)]
    san: Vec<String>,

    #[command(flatten)]
    certificates: Certificates,

    #[command(flatten)]
    access: Access,

    /// Serve /healthz, /metrics and /ca.crt here, over plain HTTP and for anybody, instead of beside the registry
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,

    /// How much a client may take, where it is to be otherwise: a key of `limits` in the appliance's config, such as stallSeconds=60
    /// (repeatable)
    #[arg(long, value_name = "KEY=NUMBER")]
    limit: Vec<LimitOverride>,

    /// Hold all that is sent against its digest: where it has another, the response is cut before its end
    #[arg(long)]
    verify: bool,

    /// Serve images of a layout without a catalog that lack layers, or indexes that lack manifests, without them: the registry does
    /// not know these then. As `pack --allow-missing`
    #[arg(long)]
    allow_missing: bool,

    /// Keep every event in this file, one JSON message a line
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The layout.
    #[error("cannot serve {path}")]
    Store {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: Box<StoreError>,
    },
    /// The layout lacks something.
    #[error("cannot serve {path}: something that an image names is missing (with --allow-missing, the rest is served)")]
    Missing {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        #[source]
        cause: Box<LayoutError>,
    },
    /// It is a file.
    #[error("{} is {found}, expected the folder of an OCI image layout; {instead}", .path.display())]
    NotALayout {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// Which commands are meant.
        instead: &'static str,
    },
    /// Certificates.
    #[error("cannot set TLS up")]
    Tls(#[from] TlsError),
    /// A given certificate is not for a name that clients are to use.
    #[error("the certificate {} is not for {name} (--san); give one with that name, or leave the name out", .certificate.display())]
    NotFor {
        /// The chain's file.
        certificate: PathBuf,
        /// The name.
        name: String,
    },
    /// A CA that was given.
    #[error("cannot use the CA")]
    OwnCa(#[from] ca::Error),
    /// Who may pull.
    #[error("cannot let anybody in")]
    Access(#[from] AccessError),
    /// A file that was named.
    #[error("cannot {verb} {path}")]
    File {
        /// What was being done.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// An address to listen on.
    #[error("cannot listen on {address}; a free port of an address of this machine is expected (port 0 takes a free one)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A port that the user may not listen on.
    #[error("no permission to listen on {address}{}", privileged(.address.port()))]
    Privileged {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The runtime, signals or standard output.
    #[error("cannot start")]
    Start(#[from] io::Error),
}

/// Where the registry is: printed as soon as it answers.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ServeReady")]
pub(crate) struct Ready {
    /// Its URLs, those of `--listen` first, then those of `--plain`.
    endpoints: Vec<String>,
    /// Further names that the certificate is for; with `--san`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    /// URL of health, metrics and the CA; with `--metrics`.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
    /// How many tags are served.
    images: usize,
    /// How many distinct blobs are served.
    blobs: usize,
    /// The blobs' size in bytes.
    blob_bytes: u64,
    /// The file that the CA certificate was written to, as it was given; with `--ca-out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<PathBuf>,
    /// Content that images name and that the layout does not have; with `--allow-missing`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<MissingBlob>,
}

impl Args {
    /// What two flags together do not allow, in words.
    #[must_use]
    pub fn conflict(&self) -> Option<&'static str> {
        let no_tls = self.certificates.mode() == Some(Tls::Off) && self.access.has_client_ca();
        self.certificates.conflict().or(no_tls.then_some(CLIENT_CA_WITHOUT_TLS))
    }
}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// [`Error`], where serving could not start.
pub fn run(args: &Args, report: Report) -> Result<(), Error> {
    let runtime = runtime()?;
    runtime.block_on(serve_layout(args, report))
}

async fn serve_layout(args: &Args, report: Report) -> Result<(), Error> {
    let signals = Signals::listen()?;
    check_is_folder(&args.layout)?;
    let path = || args.layout.clone();
    let store = Store::open_with(&args.layout, args.allow_missing).map_err(|cause| match cause {
        StoreError::Layout(cause) if cause.is_missing() => Error::Missing { path: path(), cause: Box::new(cause) },
        cause => Error::Store { path: path(), cause: Box::new(cause) },
    })?;
    let missing: Vec<MissingBlob> = store.disks().iter().flat_map(|disk| disk.missing()).cloned().collect();
    missing.iter().for_each(|one| report.step(one.to_string()));
    let (events, recorder) = match &args.events {
        Some(path) => {
            let (events, queue) = Events::queue();
            (events, Some(record(path, queue)?))
        }
        None => (Events::disabled(), None),
    };
    let clients = args.access.client_ca()?;
    let limits = args.limit.iter().fold(Limits::default(), |limits, one| one.apply(limits));
    let auth = args.access.auth()?;
    let Identity { transport, ca_pem, .. } = identity(args, &store, clients.as_ref())?;
    let client_certificates = clients.map(|clients| clients.presence());
    let options = Options { limits, auth, client_certificates, ca_pem, verify: args.verify };
    let registry = Arc::new(Registry::new(store, events, options));
    let surface = if args.metrics.is_some() { Surface::Registry } else { Surface::All };
    let own = args.listen.iter().map(|address| (address, transport.clone()));
    let own = own.chain(args.plain.iter().map(|address| (address, Transport::Plain)));
    let mut listeners = own.map(|(address, transport)| bind(*address, transport, surface)).collect::<Result<Vec<_>, Error>>()?;
    let endpoints = listeners.iter().map(Listener::url).collect::<io::Result<_>>()?;
    let observability = args.metrics.map(|address| bind(address, Transport::Plain, Surface::Observability)).transpose()?;
    let metrics = observability.as_ref().map(Listener::url).transpose()?;
    listeners.extend(observability);

    let snapshot = registry.snapshot();
    let store = snapshot.store();
    let ready = Ready {
        endpoints,
        names: args.san.clone(),
        metrics,
        images: store.images(),
        blobs: store.blobs(),
        blob_bytes: store.blob_bytes(),
        ca: args.certificates.output().map(Path::to_owned),
        missing,
    };
    let beside = ready.metrics.as_ref().map_or_else(String::new, |url| format!("; health and metrics at {url}"));
    let text = format!("serving {} at {}{beside}", counted(ready.images, "image"), ready.endpoints.join(", "));
    report.result(&ready, &text)?;

    let totals = serve(listeners, registry, first(signals), drain).await;
    report.step(format!("served {} requests, {} bytes", totals.requests, totals.bytes));
    // The registry is gone, and its end of the queue with it: the recorder has come to its end.
    recorder.map(std::thread::JoinHandle::join);
    Ok(())
}

/// Refuses what another command is for: a packed disk, and any other file.
fn check_is_folder(path: &Path) -> Result<(), Error> {
    if !path.is_file() {
        return Ok(());
    }
    let is_disk = matches!(check_disk(path), Ok(()) | Err(LaunchError::Truncated { .. }));
    let (found, instead) = match is_disk {
        true => (
            "a packed disk",
            "`localregistry run DISK` boots it, and `localregistry inspect DISK --export LAYOUT` makes a folder of it",
        ),
        false => {
            ("a file", "`localregistry pack ARCHIVE -o DISK` packs a layout in an archive, and `localregistry run DISK` boots it")
        }
    };
    Err(Error::NotALayout { path: path.to_owned(), found, instead })
}

/// Waits for the first signal, which starts the graceful shutdown.
async fn first(mut signals: Signals) -> Signals {
    signals.next().await;
    signals
}

/// Waits for a second signal, for [`DRAIN`] at most: then transfers under way are cut.
async fn drain(mut signals: Signals) {
    let _ = tokio::time::timeout(DRAIN, signals.next()).await;
}

fn bind(address: SocketAddr, transport: Transport, surface: Surface) -> Result<Listener, Error> {
    Listener::bind(address, transport, surface).map_err(|cause| match cause.kind() {
        io::ErrorKind::PermissionDenied => Error::Privileged { address, cause },
        _ => Error::Listen { address, cause },
    })
}

/// The server's certificate. Writes the CA certificate to the file of `--ca-out`.
fn identity(args: &Args, store: &Store, clients: Option<&ClientCa>) -> Result<Identity, Error> {
    let identity = match (args.certificates.mode(), args.certificates.provided()) {
        (Some(Tls::Off), _) => Identity::plain(),
        (Some(Tls::Provided), Some((chain, key))) => {
            let pem = read(&chain)?;
            if let Some(name) = tls::uncovered_name(&pem, &args.san) {
                return Err(Error::NotFor { certificate: chain, name: name.clone() });
            }
            Identity::provided(&pem, &read(&key)?, clients, Some(SystemTime::now()))?
        }
        _ => {
            let authority = match args.certificates.ca()? {
                Some(ca) => ca.authority,
                None => Authority::generate("localregistry")?,
            };
            let own: Vec<_> = args.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect();
            // The first name becomes the common name, which X.509 limits to 64 characters.
            let names = std::iter::once("localhost".to_owned()).chain(args.san.iter().cloned());
            Identity::signed(authority, names, &own, store.upstreams(), clients)?
        }
    };
    if let (Some(path), Some(ca)) = (args.certificates.output(), &identity.ca_pem) {
        let failed = |cause| Error::File { verb: "write", path: path.to_owned(), cause };
        files::write_atomically(path, ca.as_bytes()).map_err(failed)?;
    }
    Ok(identity)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|cause| Error::File { verb: "read", path: path.to_owned(), cause })
}

/// Writes events to a file, each as one line, on a thread of its own.
fn record(path: &Path, queue: std::sync::mpsc::Receiver<crate::proto::Event>) -> Result<std::thread::JoinHandle<()>, Error> {
    let opened = std::fs::File::create(path);
    let mut file = opened.map_err(|cause| Error::File { verb: "open", path: path.to_owned(), cause })?;
    Ok(std::thread::spawn(move || {
        for event in queue {
            let line = serde_json::to_string(&event).map(|json| json + "\n").unwrap_or_default();
            if let Err(error) = io::Write::write_all(&mut file, line.as_bytes()) {
                tracing::warn!(%error, "events are no longer recorded");
                return;
            }
        }
    }))
}
