//! From options to a running QEMU: what can be checked before is checked, then sockets are paired, the command is made, the process
//! started and its readers with it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{SocketAddrV4, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use command_fds::CommandFdExt;
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::process::Process;
use super::qmp::Qmp;
use super::record::{Copy, Record, read_console, read_events, read_stderr};
use super::{Commands, LaunchError, Options, QUEUE, Vm, guard};
use crate::host::accel::Accel;
use crate::host::config::GuestConfig;
use crate::host::qemu::{Board, Channels, Forward, Machine};
use crate::host::sys;
use crate::proto::Ready;

/// Names of the fw_cfg files that the guest reads.
const CONFIG: &str = "opt/localregistry/config";
const TLS_CERTIFICATE: &str = "opt/localregistry/tls.crt";
const TLS_KEY: &str = "opt/localregistry/tls.key";

/// Checks what can be checked before QEMU is started, so that the message is ours.
pub(super) fn check(options: &Options) -> Result<(), LaunchError> {
    check_disk(&options.disk)?;
    readable("kernel", &options.kernel)?;
    readable("initramfs", &options.initramfs)?;
    if let Some((certificate, key)) = &options.tls {
        readable("certificate", certificate)?;
        readable("key", key)?;
    }
    options.secrets.iter().try_for_each(|(_, path)| readable("secret", path))?;
    // Both at once: they must not be the same.
    let listen =
        |flag, address: SocketAddrV4| TcpListener::bind(address).map_err(|source| LaunchError::Port { flag, address, source });
    let registry = listen("--publish", options.publish)?;
    let metrics = options.metrics.map(|address| listen("--metrics", address)).transpose()?;
    drop((registry, metrics));
    Ok(())
}

/// Checks that there is something to read at `path`, which is to be a packed disk. [`Vm::boot`] does so too; this is for those who
/// have more to prepare before it.
///
/// # Errors
/// It cannot be read, is neither a file nor a block device, or is empty.
pub fn check_disk(path: &Path) -> Result<(), LaunchError> {
    readable("disk", path)
}

/// Whether `path` is a file, or a block device, that can be read and is not empty.
fn readable(what: &'static str, path: &Path) -> Result<(), LaunchError> {
    let read = |source| LaunchError::Read { what, path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(read)?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let found = if kind.is_dir() { "a directory" } else { "a special file" };
        return Err(LaunchError::NotAFile { what, path: path.to_owned(), found });
    }
    File::open(path).map_err(read)?;
    if kind.is_file() && metadata.len() == 0 {
        return Err(LaunchError::Empty { what, path: path.to_owned() });
    }
    Ok(())
}

/// Starts QEMU with `accel`.
pub(super) fn start(options: &Options, accel: Accel) -> Result<Vm, LaunchError> {
    let copy = |what, path: &Option<PathBuf>| {
        let create =
            |path: &PathBuf| Copy::create(path).map_err(|source| LaunchError::Create { what, path: path.clone(), source });
        path.as_ref().map(create).transpose()
    };
    let (console_copy, events_copy) = (copy("console", &options.console)?, copy("events", &options.events)?);

    let (console, their_console) = pair()?;
    let (events, their_events) = pair()?;
    let (control, their_control) = pair()?;
    let (qmp, their_qmp) = pair()?;
    let (stderr, their_stderr) = pair()?;
    let mut config = options.config.clone();
    let metrics = options.metrics.map(|host| Forward { host, guest_port: config.take_metrics_port() });
    config.complete(options.publish, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    let config_file = in_memory(&config)?;

    let channels = Channels {
        qmp: their_qmp.as_raw_fd(),
        console: their_console.as_raw_fd(),
        events: their_events.as_raw_fd(),
        control: their_control.as_raw_fd(),
    };
    let registry = Forward { host: options.publish, guest_port: config.port() };
    let forwards = [registry].into_iter().chain(metrics).collect();
    let machine = machine(options, accel, &config, &config_file, forwards, channels);
    let mut command = Command::new(&options.qemu);
    command.args(machine.arguments());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(their_stderr));
    // Ctrl-C in a terminal goes to the whole foreground group: QEMU would end at once where the guest should end in order.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    // They keep their numbers, which the arguments name: nothing is renumbered over a descriptor that is in use.
    command.preserved_fds(vec![their_console, their_events, their_control, their_qmp, config_file]);

    let started = Instant::now();
    let process = Process::start(command).map_err(|source| spawn_error(options, source))?;
    let record = Arc::new(Record::default());
    let (qmp, listener) = Qmp::over(qmp);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut readers = JoinSet::new();
    let own = || Arc::clone(&record);
    readers.spawn(with(own(), async move |record| read_console(console, record, console_copy).await));
    readers.spawn(with(own(), async move |record| read_events(events, record, sender, events_copy).await));
    readers.spawn(with(own(), async move |record| read_stderr(stderr, record).await));
    readers.spawn(with(own(), async move |record| listener.listen(record).await));
    let mut wardens = JoinSet::new();
    wardens.spawn(guard(own(), process.killer()));
    Ok(Vm {
        process,
        record,
        events: receiver,
        early: std::collections::VecDeque::new(),
        commands: Some(Commands { control, qmp }),
        readers,
        wardens,
        accel,
        registry,
        metrics,
        started,
        boot_time: Duration::ZERO,
        ready: Ready::default(),
    })
}

/// `read` over a record that it owns.
async fn with(record: Arc<Record>, read: impl AsyncFnOnce(&Record)) {
    read(&record).await;
}

/// The machine that `options` describe.
fn machine(
    options: &Options,
    accel: Accel,
    config: &GuestConfig,
    config_file: &OwnedFd,
    forwards: Vec<Forward>,
    channels: Channels,
) -> Machine {
    let mut fw_cfg = vec![(CONFIG, PathBuf::from(format!("/dev/fd/{}", config_file.as_raw_fd())))];
    if let Some((certificate, key)) = &options.tls {
        fw_cfg.extend([(TLS_CERTIFICATE, certificate.clone()), (TLS_KEY, key.clone())]);
    }
    fw_cfg.extend(options.secrets.iter().cloned());
    // Emulated, the counter runs at the rate of the host's own.
    let unmeasurable = options.board == Board::Microvm && accel == Accel::Tcg;
    Machine {
        board: options.board,
        tsc_khz: unmeasurable.then(sys::tsc_khz),
        accel,
        memory_mib: options.memory_mib,
        cpus: options.cpus,
        kernel: options.kernel.clone(),
        initramfs: options.initramfs.clone(),
        disk: options.disk.clone(),
        serial: config.serial(),
        forwards,
        fw_cfg,
        channels,
    }
}

/// `config` as a file without a name, which ends with its last descriptor.
fn in_memory(config: &GuestConfig) -> Result<OwnedFd, LaunchError> {
    let failed = |source| LaunchError::Resource { what: "keep the config", source };
    let memory = memfd_create("localregistry-config", MemfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let mut file = File::from(memory);
    file.write_all(config.to_json().as_bytes()).map_err(failed)?;
    Ok(file.into())
}

/// Two ends of a stream: ours, and QEMU's.
fn pair() -> Result<(UnixStream, OwnedFd), LaunchError> {
    let failed = |source| LaunchError::Resource { what: "make a socket", source };
    let (ours, theirs) = StdStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    Ok((UnixStream::from_std(ours).map_err(failed)?, theirs.into()))
}

fn spawn_error(options: &Options, source: io::Error) -> LaunchError {
    let program = options.qemu.clone();
    match source.kind() {
        io::ErrorKind::NotFound => LaunchError::NoQemu { program, package: options.board.package() },
        _ => LaunchError::Spawn { program, source },
    }
}
