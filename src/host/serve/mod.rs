//! `localregistry serve`: the guest's registry server on the host, without a VM, for development and measurements.

mod error;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::panic;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::address::san;
use crate::disk::layout::{DEFAULT_REPOSITORY, LeftOver, MissingBlob};
use crate::host::exit::Status;
use crate::host::faults;
use crate::host::faults::control::ControlSocket;
use crate::host::inspect::look::{CheckedDisk, DamageError};
use crate::host::inspect::reader::DiskError;
use crate::host::nodes::access::{Access, CLIENT_CA_WITHOUT_TLS};
use crate::host::nodes::ca::{Certificates, Tls};
use crate::host::runs::dir::{RunDir, RunDirOptions};
use crate::host::support::files;
use crate::host::support::interrupt::{Interrupt, Signals};
use crate::host::support::parent_watch::{self, Descriptor, ParentWatch};
use crate::host::support::quote::shell_word;
use crate::host::support::report::{Report, counted, message};
use crate::host::support::workers::no_thread;
use crate::host::vm::launch::{LaunchError, check_disk};
use crate::proto::{Done, Event, FaultCommand};
use crate::registry::api::handler::{Options, Registry};
use crate::registry::auth::client_certificate::ClientCa;
use crate::registry::content::store::Store;
use crate::registry::limits::Limits;
use crate::registry::limits::overrides::LimitOverride;
use crate::registry::listen::client::Surface;
use crate::registry::listen::listener::{Listener, Transport};
use crate::registry::listen::server::{runtime, serve};
use crate::registry::telemetry::events::Events;
use crate::registry::tls::{self, Authority, Identity};

pub use error::ServeError;

/// How long transfers may continue after a signal, and then the events may be written.
const DRAIN: Duration = Duration::from_secs(10);
/// Largest certificate chain or key, in bytes.
const LARGEST_PEM: u64 = 1 << 20;

/// Serve an image layout from this machine, without a VM
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Images of the layout without a repository name are filed as `localregistry pack` files them: under the repository \
of the image they refer to, or under the only repository of the layout. Images that `pack` would refuse for lack of a name are served \
as the repository `image`.

Examples:
  localregistry serve images/ --tls off
  localregistry serve images/ --listen 127.0.0.1:5000 --ca-out ca.crt --san registry.test
  localregistry serve images/ --listen 10.1.0.82:443 --listen [fd00::82]:443 --plain 10.1.0.82:80
  localregistry serve images/ --htpasswd users --token --metrics 127.0.0.1:9090"
)]
pub struct ServeArgs {
    /// Folder with an OCI image layout, or with the extracted content of a disk
    layout: PathBuf,

    /// Address and port to listen on; port 0 picks a free port (repeatable)
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:5000")]
    listen: Vec<SocketAddr>,

    /// Address and port for plain HTTP in addition, so that nodes that trust nothing yet can fetch /ca.crt (repeatable)
    #[arg(long, value_name = "ADDR:PORT")]
    plain: Vec<SocketAddr>,

    /// DNS name, wildcard (*.example.test) or IP address that clients use. A generated certificate gets it, a provided one must
    /// have it (repeatable)
    #[arg(long, value_name = "NAME", value_parser = san)]
    san: Vec<String>,

    #[command(flatten)]
    certificates: Certificates,

    #[command(flatten)]
    access: Access,

    /// Serve /healthz, /metrics and /ca.crt on this address only, over plain HTTP and without access control
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,

    /// Change a limit on what one client may use: a key of `limits` in the guest's config, such as stallSeconds=60 (repeatable)
    #[arg(long, value_name = "KEY=NUMBER")]
    limit: Vec<LimitOverride>,

    /// Verify all content against its digest while sending it; a response whose content does not match is cut short
    #[arg(long)]
    verify: bool,

    /// Send blobs by sendfile(2) over HTTP/1.1 without TLS, with less processor time. Clients may get zeros for bytes of a file that is cut
    /// short at that moment, so do not write to the files of the layout
    #[arg(long)]
    sendfile: bool,

    /// Serve images of a layout without a catalog even if they lack layers, or indexes that lack manifests. The registry does not
    /// know the missing content. As `pack --allow-missing`
    #[arg(long)]
    allow_missing: bool,

    /// Misbehave as this plan says, for tests of clients: proto3 JSON or prototext (docs/faults.md)
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,

    /// Take commands of `localregistry faults` on a Unix socket, which is made here
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,

    /// Write every event to this file, one JSON object per line
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,

    /// Folder for files of this program and its launcher, new or empty, removed with all that is in it at the end
    #[arg(long, value_name = "DIR", help_heading = "For programs")]
    run_dir: Option<PathBuf>,

    /// Shut down, as on SIGTERM, when standard input ends: a pipe or socket whose other end the launcher holds. So the server ends with its
    /// launcher, however that ends
    #[arg(long, help_heading = "For programs")]
    end_with_stdin: bool,
}

/// Where the registry is. Printed once it accepts connections.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ServeReady")]
pub(crate) struct Ready {
    /// URLs of the registry: those of `--listen` first, then those of `--plain`.
    endpoints: Vec<String>,
    /// Further names in the certificate; with `--san`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    /// URL of health, metrics and the CA; with `--metrics`.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
    /// Number of tags.
    images: usize,
    /// Number of distinct blobs.
    blobs: usize,
    /// Total size of the blobs, in bytes.
    blob_bytes: u64,
    /// The file that the CA certificate was written to; with `--ca-out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
    /// Content that images refer to and the layout lacks; with `--allow-missing`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<MissingBlob>,
    /// Digests of the entries of the layout's index that are not served, because they name no image and belong to none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_over: Vec<String>,
}

impl Ready {
    fn text(&self, layout: &Path) -> String {
        let metrics = self.metrics.as_ref().map_or_else(String::new, |url| format!("; health and metrics at {url}"));
        let endpoints = self.endpoints.join(", ");
        match (self.images, self.blobs) {
            (0, 1..) => format!(
                "serving images at {endpoints} by digest only, as {DEFAULT_REPOSITORY}@DIGEST, because {} gives none of them a tag; \
                 `localregistry pack --name REPOSITORY:TAG={} -o DISK` does{metrics}",
                layout.display(),
                shell_word(&layout.display().to_string())
            ),
            (images, _) => format!("serving {} at {endpoints}{metrics}", counted(images, "tagged image")),
        }
    }
}

impl ServeArgs {
    /// Returns a message if two flags exclude each other.
    #[must_use]
    pub fn conflict(&self) -> Option<&'static str> {
        let no_tls = self.certificates.mode() == Some(Tls::Off) && self.access.has_client_ca();
        self.certificates.conflict().or(no_tls.then_some(CLIENT_CA_WITHOUT_TLS))
    }
}

/// Serves the layout until SIGINT, SIGTERM or SIGHUP.
///
/// # Errors
/// Fails if serving cannot start, or if events are lost.
pub fn run(args: &ServeArgs, report: Report) -> Result<(), ServeError> {
    // Before the runtime's threads start: they inherit the blocked signals.
    let interrupt = Interrupt::catch()?;
    let parent = args.end_with_stdin.then(|| ParentWatch::watch(Descriptor::Stdin)).transpose()?;
    let mut is_ready = false;
    let runtime = started_runtime()?;
    let options = RunDirOptions { name: None, folder: args.run_dir.as_deref() };
    let _dir = args.run_dir.as_ref().map(|_| RunDir::create_unlocked(&options)).transpose()?;
    let served = runtime.block_on(serve_layout(args, report, &interrupt, parent, &mut is_ready));
    // A thread may still wait for the reader of the event file.
    runtime.shutdown_background();
    // A signal before that causes errors of many kinds. Report the signal instead.
    if served.is_err() && !is_ready {
        interrupt.check()?;
    }
    served
}

/// Executes the commands of `localregistry faults`.
async fn take_commands(socket: ControlSocket, registry: Arc<Registry>) {
    let execute = move |command: FaultCommand| {
        let registry = Arc::clone(&registry);
        async move {
            let reply = tokio::task::spawn_blocking(move || registry.receive_faults(command)).await.map_err(io::Error::other)?;
            reply.ok_or_else(|| io::Error::other("a whole command is expected"))
        }
    };
    socket.serve(execute).await;
}

/// The server's runtime. If a thread cannot be started, the library panics, and its unwinding would wait for the other threads for ever.
/// The process ends instead. It has changed nothing yet.
fn started_runtime() -> io::Result<Runtime> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|panic| {
        let cause = panic.payload_as_str().unwrap_or("unknown").trim_start_matches("OS can't spawn worker thread: ");
        let cause = io::Error::other(cause.to_owned());
        message(format!("localregistry: cannot start: {}", no_thread(&cause)));
        process::exit(Status::Error.code().into());
    }));
    let runtime = runtime();
    panic::set_hook(hook);
    runtime
}

async fn serve_layout(
    args: &ServeArgs,
    report: Report,
    interrupt: &Interrupt,
    parent: Option<ParentWatch>,
    is_ready: &mut bool,
) -> Result<(), ServeError> {
    check_is_folder(&args.layout)?;
    let plan = args.faults.as_deref().map(|path| faults::file::read(path, &report)).transpose()?;
    let store = open(args, interrupt)?;
    let missing: Vec<MissingBlob> = store.disks().iter().flat_map(|disk| disk.missing()).cloned().collect();
    missing.iter().for_each(|one| report.warn(one.to_string()));
    let left_over: Vec<LeftOver> = store.disks().iter().flat_map(|disk| disk.left_over()).cloned().collect();
    report.steps(left_over.iter().map(ToString::to_string), LeftOver::others);
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
    let Identity { transport, ca_pem, leaves } = identity(args, &store, clients.as_ref())?;
    let client_certificates = clients.map(|clients| clients.presence());
    let options = Options { limits, auth, client_certificates, ca_pem, verify: args.verify, sendfile: args.sendfile, leaves };
    let registry = Arc::new(Registry::new(store, events.clone(), options));
    let surface = if args.metrics.is_some() { Surface::Registry } else { Surface::All };
    let own = args.listen.iter().map(|address| (address, transport.clone()));
    let own = own.chain(args.plain.iter().map(|address| (address, Transport::Plain)));
    let mut listeners =
        own.map(|(address, transport)| bind(*address, transport, surface)).collect::<Result<Vec<_>, ServeError>>()?;
    let endpoints = listeners.iter().map(Listener::url).collect::<io::Result<_>>()?;
    let observability = args.metrics.map(|address| bind(address, Transport::Plain, Surface::Observability)).transpose()?;
    let metrics = observability.as_ref().map(Listener::url).transpose()?;
    listeners.extend(observability);
    registry.set_listeners(&listeners);
    if let Some(plan) = plan {
        let warnings = registry.start_faults(plan).map_err(ServeError::Faults)?;
        warnings.iter().for_each(|warning| report.warn(warning));
    }

    let snapshot = registry.snapshot();
    let store = snapshot.store();
    let ready = Ready {
        endpoints,
        names: args.san.clone(),
        metrics,
        images: store.images(),
        blobs: store.blobs(),
        blob_bytes: store.blob_bytes(),
        ca: args.certificates.output().map(|path| path.display().to_string()),
        missing,
        left_over: left_over.iter().map(|one| one.digest.to_string()).collect(),
    };
    let bind_control = |path: &PathBuf| {
        ControlSocket::bind(path).map_err(|cause| ServeError::File { verb: "make the socket", path: path.clone(), cause })
    };
    let control = args.control.as_ref().map(bind_control).transpose()?;
    let control = control.map(|socket| tokio::spawn(take_commands(socket, Arc::clone(&registry))));
    report.result(&ready, &ready.text(&args.layout))?;
    *is_ready = true;

    drop(snapshot);
    let totals = serve(listeners, registry, first(interrupt.signals(), parent), drain).await;
    if let Some(control) = control {
        // Its end removes the socket, and lets go of the log.
        control.abort();
        let _cancelled = control.await;
    }
    let count = |number: u64, noun| counted(usize::try_from(number).unwrap_or(usize::MAX), noun);
    report.step(format!("served {}, {}", count(totals.requests, "request"), count(totals.bytes, "byte")));
    let reason = "shut down as asked".to_owned();
    let done = Done { reason, requests: totals.requests, bytes: totals.bytes, ..Done::default() };
    let (Some(recorded), Some(path)) = (recorder, &args.events) else { return Ok(()) };
    // Its end drops the last sender, and so ends the recorder's thread.
    tokio::task::spawn_blocking(move || events.finish(done));
    let stuck = || io::Error::other(format!("nothing has read it for {} s", DRAIN.as_secs()));
    let recorded = tokio::time::timeout(DRAIN, recorded).await.unwrap_or_else(|_| Ok(Err(stuck())));
    let recorded = recorded.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
    recorded.map_err(|cause| ServeError::File { verb: "write every event to", path: path.clone(), cause })
}

/// Looks at the layout, and opens it.
fn open(args: &ServeArgs, interrupt: &Interrupt) -> Result<Store, ServeError> {
    let path = &args.layout;
    let unusable = |cause: DamageError| ServeError::Layout { path: path.clone(), cause: Box::new(cause) };
    let CheckedDisk { served, .. } = CheckedDisk::open(path, args.allow_missing, interrupt).map_err(|cause| match cause {
        DamageError::Disk(DiskError::Read(cause)) => ServeError::NoFolder { path: path.clone(), cause },
        cause => unusable(cause),
    })?;
    Store::with_catalog(path, served).map_err(|cause| unusable(cause.into()))
}

/// Refuses a packed disk or any other file, and names the command for it.
fn check_is_folder(path: &Path) -> Result<(), ServeError> {
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
    Err(ServeError::NotALayout { path: path.to_owned(), found, instead })
}

/// Waits for the first signal, or the end of the launcher, which starts the graceful shutdown.
async fn first(mut signals: Signals, mut parent: Option<ParentWatch>) -> Signals {
    tokio::select! {
        _signal = signals.next() => {}
        _closed = parent_watch::closed(&mut parent) => {}
    }
    signals
}

/// Waits for a second signal, for [`DRAIN`] at most: then transfers under way are cut.
async fn drain(mut signals: Signals) {
    let _ = tokio::time::timeout(DRAIN, signals.next()).await;
}

fn bind(address: SocketAddr, transport: Transport, surface: Surface) -> Result<Listener, ServeError> {
    Listener::bind(address, transport, surface).map_err(|cause| match cause.kind() {
        io::ErrorKind::PermissionDenied => ServeError::Privileged { address, cause },
        _ => ServeError::Listen { address, cause },
    })
}

/// The server's certificate. Writes the CA certificate to the file of `--ca-out`.
fn identity(args: &ServeArgs, store: &Store, clients: Option<&ClientCa>) -> Result<Identity, ServeError> {
    let identity = match (args.certificates.mode(), args.certificates.provided()) {
        (Some(Tls::Off), _) => Identity::plain(),
        (Some(Tls::Provided), Some((chain, key))) => {
            let pem = read("read the certificate (--cert)", &chain)?;
            if let Some(name) = tls::uncovered_name(&pem, &args.san) {
                return Err(ServeError::NotFor { certificate: chain, name: name.clone() });
            }
            let key_pem = Zeroizing::new(read("read the key (--key)", &key)?);
            Identity::provided(&pem, &key_pem, clients, Some(SystemTime::now())).map_err(|cause| ServeError::Provided {
                certificate: chain,
                key,
                cause,
            })?
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
        let failed = |cause| ServeError::File { verb: "write", path: path.to_owned(), cause };
        files::write_atomically(path, ca.as_bytes()).map_err(failed)?;
    }
    Ok(identity)
}

fn read(verb: &'static str, path: &Path) -> Result<Vec<u8>, ServeError> {
    files::read(path, LARGEST_PEM).map_err(|cause| ServeError::File { verb, path: path.to_owned(), cause })
}

/// Starts a thread that writes events to the file at `path`, one JSON object per line.
/// Returns what becomes of them: after an error, further events are lost.
fn record(path: &Path, queue: mpsc::Receiver<Event>) -> Result<oneshot::Receiver<io::Result<()>>, ServeError> {
    let mut file = files::create(path).map_err(|cause| ServeError::File { verb: "open", path: path.to_owned(), cause })?;
    let (ended, recorded) = oneshot::channel();
    let write = move |event: Event| {
        let line = serde_json::to_string(&event)? + "\n";
        file.write_all(line.as_bytes())
    };
    let started =
        thread::Builder::new().name("events".to_owned()).spawn(move || ended.send(queue.into_iter().try_for_each(write)));
    started.map_err(|refused| no_thread(&refused))?;
    Ok(recorded)
}
