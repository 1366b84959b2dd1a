//! From what is prepared to a running QEMU: taps are opened, sockets paired, the command is made, the process started and its readers
//! with it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use command_fds::CommandFdExt;
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::prepare::Prepared;
use super::process::Process;
use super::qmp::Qmp;
use super::record::{Copy, Record, read_console, read_events, read_stderr};
use super::shutdown::{Commands, guard};
use super::{Appliance, LaunchError, Options, QUEUE, version};
use crate::config::guest_config::GuestConfig;
use crate::host::vm::accel::Accel;
use crate::host::vm::net::attach::attach;
use crate::host::vm::net::{Datagrams, Kind};
use crate::host::vm::qemu::{Channel, Channels};
use crate::proto::Ready;

/// Files that QEMU makes and does not remove. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct Leftovers(Vec<PathBuf>);

impl Drop for Leftovers {
    fn drop(&mut self) {
        for path in &self.0 {
            // It is not there where QEMU has not come so far.
            let _not_there = std::fs::remove_file(path);
        }
    }
}

/// Starts QEMU with `accel`.
pub(crate) async fn start(prepared: &Prepared, accel: Accel) -> Result<Appliance, LaunchError> {
    let options = &prepared.options;
    let (console_copy, events_copy) = (copy("console", &options.console)?, copy("events", &options.events)?);
    let networks = attach(&prepared.nets).await?;

    let (console, their_console) = pair()?;
    let (events, their_events) = pair()?;
    let (control, their_control) = pair()?;
    let (qmp, their_qmp) = pair()?;
    let (stderr, their_stderr) = pair()?;
    let config_file = in_memory(&prepared.config)?;
    let inherited = |socket: &OwnedFd| Channel::Inherited(socket.as_raw_fd());
    let channels = Channels {
        qmp: inherited(&their_qmp),
        console: inherited(&their_console),
        events: inherited(&their_events),
        control: inherited(&their_control),
    };
    let numbers: Vec<_> = networks.iter().map(|fd| fd.as_ref().map(AsRawFd::as_raw_fd)).collect();
    let config_path = format!("/dev/fd/{}", config_file.as_raw_fd()).into();
    let machine = prepared.machine(accel, config_path, &numbers, channels);
    let mut kept = vec![their_console, their_events, their_control, their_qmp, config_file];
    kept.extend(networks.into_iter().flatten());

    let mut command = Command::new(&options.qemu);
    command.args(machine.arguments());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(their_stderr));
    // Ctrl-C in a terminal goes to the whole foreground group: QEMU would end at once where the guest should end in order.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    // They keep their numbers, which the arguments name: nothing is renumbered over a descriptor that is in use.
    command.preserved_fds(kept);

    let started = Instant::now();
    let process = Process::start(command).map_err(|source| version::spawn_error(&options.qemu, options.board, source))?;
    let record = Arc::new(Record::default());
    let (qmp, listener) = Qmp::over(qmp);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let into_events = sender.downgrade();
    let mut readers = JoinSet::new();
    let own = || Arc::clone(&record);
    readers.spawn(with(own(), async move |record| read_console(console, record, console_copy).await));
    readers.spawn(with(own(), async move |record| read_events(events, record, sender, events_copy).await));
    readers.spawn(with(own(), async move |record| read_stderr(stderr, record).await));
    readers.spawn(with(own(), async move |record| listener.listen(record).await));
    let mut wardens = JoinSet::new();
    wardens.spawn(guard(own(), process.killer()));
    Ok(Appliance {
        process,
        _leftovers: leftovers(options),
        record,
        events: receiver,
        into_events,
        early: std::collections::VecDeque::new(),
        commands: Some(Commands { control, qmp }),
        readers,
        wardens,
        accel,
        disks: options.disks.clone(),
        names: options.config.names(),
        nets: options.nets.clone(),
        registry: prepared.registry,
        metrics: prepared.metrics,
        further: prepared.further.clone(),
        started,
        boot_time: Duration::ZERO,
        ready: Ready::default(),
    })
}

/// `read` over a record that it owns.
async fn with(record: Arc<Record>, read: impl AsyncFnOnce(&Record)) {
    read(&record).await;
}

/// The file that is to keep what a stream gives, where there is to be one.
fn copy(what: &'static str, path: &Option<PathBuf>) -> Result<Option<Copy>, LaunchError> {
    let create = |path: &PathBuf| Copy::create(path).map_err(|source| LaunchError::Create { what, path: path.clone(), source });
    path.as_ref().map(create).transpose()
}

/// What QEMU will make and leave.
fn leftovers(options: &Options) -> Leftovers {
    let made = options.nets.iter().filter_map(|net| match &net.kind {
        Kind::Dgram(Datagrams::Unix { local, .. }) => Some(local.clone()),
        _ => None,
    });
    Leftovers(made.collect())
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
