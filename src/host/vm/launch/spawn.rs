//! Starts QEMU: opens its taps, makes its sockets, builds the command, starts the process and the tasks that read from it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use command_fds::CommandFdExt;
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::faults::ControlPort;
use super::frozen::{Incoming, Saved, Start};
use super::monitor::{CaptureFile, Monitor, read_console, read_events, read_stderr};
use super::prepare::Prepared;
use super::process::{Process, socket_pair, spawn_error};
use super::qmp::Qmp;
use super::shutdown::{ControlChannels, kill_if_stuck};
use super::{Appliance, EVENT_QUEUE, LaunchError, Options};
use crate::config::guest_config::GuestConfig;
use crate::host::vm::accel::Accel;
use crate::host::vm::net::attach::attach;
use crate::host::vm::net::{Datagrams, NetKind};
use crate::host::vm::qemu::{Channel, Channels};
use crate::proto::Ready;

/// Sockets that QEMU creates but does not remove. Dropping this removes them.
#[derive(Debug)]
pub(crate) struct SocketFiles(Vec<PathBuf>);

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            // It does not exist if QEMU failed early.
            let _not_there = std::fs::remove_file(path);
        }
    }
}

/// Starts QEMU with `accel`, from the machine `saved` if there is one.
pub(crate) async fn start(prepared: &Prepared, accel: Accel, saved: Option<&Saved>) -> Result<Appliance, LaunchError> {
    let options = &prepared.options;
    let console_copy = capture_file("console", options.console.as_ref())?;
    let events_copy = capture_file("events", options.events.as_ref())?;
    let mut networks = attach(&prepared.nets).await?;
    let mut forwards = prepared.forwards.clone();
    let passt = match &prepared.passt {
        Some(plan) => plan.start(&mut forwards, &options.report).await?,
        None => None,
    };
    let passt = passt.map(|(passt, socket)| {
        // It is the only network.
        networks = vec![Some(socket)];
        passt
    });

    let (console, qemu_console) = socket_pair()?;
    let (events, qemu_events) = socket_pair()?;
    let (control, qemu_control) = socket_pair()?;
    let (qmp, qemu_qmp) = socket_pair()?;
    let (stderr, qemu_stderr) = socket_pair()?;
    let config_file = in_memory(&prepared.config)?;
    let inherited = |socket: &OwnedFd| Channel::Inherited(socket.as_raw_fd());
    let channels = Channels {
        qmp: inherited(&qemu_qmp),
        console: inherited(&qemu_console),
        events: inherited(&qemu_events),
        control: inherited(&qemu_control),
        files: None,
    };
    let network_fds: Vec<_> = networks.iter().map(|fd| fd.as_ref().map(AsRawFd::as_raw_fd)).collect();
    let config_path = format!("/dev/fd/{}", config_file.as_raw_fd()).into();
    let memory = saved.map(|saved| saved.memory(&options.kernel));
    let mut machine = prepared.machine(accel, memory, config_path, &network_fds, channels);
    let mut incoming = None;
    let mut inherited_fds = vec![qemu_console, qemu_events, qemu_control, qemu_qmp];
    if let Some(saved) = saved {
        let (started, [state, files]) = Incoming::new(saved, &std::mem::take(&mut machine.fw_cfg))?;
        machine.channels.files = Some(inherited(&files));
        inherited_fds.extend([state, files]);
        incoming = Some(started);
    }
    inherited_fds.push(config_file);
    inherited_fds.extend(networks.into_iter().flatten());
    let (console, console_input) = console.into_split();

    let mut command = Command::new(&options.qemu);
    command.args(machine.arguments());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(qemu_stderr));
    // Ctrl-C in a terminal goes to the whole foreground group: in it, QEMU would end at once, before the guest can shut down.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    // The arguments name the descriptors by number, so each keeps its number in the child.
    command.preserved_fds(inherited_fds);

    let control = Arc::new(ControlPort::new(control));
    let started = Instant::now();
    let process = Process::start(command).map_err(|source| spawn_error(&options.qemu, options.board, source))?;
    let monitor = Arc::new(Monitor::default());
    let (qmp, listener) = Qmp::new(qmp);
    let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
    let event_sender = sender.downgrade();
    let mut readers = JoinSet::new();
    let shared = || Arc::clone(&monitor);
    readers.spawn(with(shared(), async move |monitor| read_console(console, monitor, console_copy).await));
    readers.spawn(with(shared(), async move |monitor| read_events(events, monitor, sender, events_copy).await));
    readers.spawn(with(shared(), async move |monitor| read_stderr(stderr, monitor).await));
    readers.spawn(with(shared(), async move |monitor| listener.listen(monitor).await));
    let mut guards = JoinSet::new();
    guards.spawn(kill_if_stuck(shared(), process.killer()));
    let has_passt = passt.is_some();
    if let Some(passt) = passt {
        guards.spawn(passt.watch(shared(), process.exit(), process.killer()));
    }
    Ok(Appliance {
        process,
        _socket_files: socket_files(options),
        monitor,
        events: receiver,
        event_sender,
        early_events: VecDeque::new(),
        channels: Some(ControlChannels { control: Arc::clone(&control), qmp }),
        control,
        readers,
        guards,
        accel,
        cpus: prepared.options.cpus.count(accel, prepared.options.memory_mib),
        disks: options.disks.clone(),
        names: options.config.names(),
        nets: options.nets.clone(),
        forwards,
        has_passt,
        incoming,
        _console_input: console_input,
        start: Start::Warm,
        started,
        boot_time: Duration::ZERO,
        ready: Ready::default(),
    })
}

/// Runs `read` with a monitor that the future owns.
async fn with(monitor: Arc<Monitor>, read: impl AsyncFnOnce(&Monitor)) {
    read(&monitor).await;
}

fn capture_file(what: &'static str, path: Option<&PathBuf>) -> Result<Option<CaptureFile>, LaunchError> {
    let create =
        |path: &PathBuf| CaptureFile::create(path).map_err(|source| LaunchError::Create { what, path: path.clone(), source });
    path.map(create).transpose()
}

fn socket_files(options: &Options) -> SocketFiles {
    let paths = options.nets.iter().filter_map(|net| match &net.kind {
        NetKind::Dgram(Datagrams::Unix { local, .. }) => Some(local.clone()),
        _ => None,
    });
    SocketFiles(paths.collect())
}

/// Puts `config` into an anonymous file, which is gone with its last descriptor: in memory, or on the disk if this machine forbids that.
fn in_memory(config: &GuestConfig) -> Result<OwnedFd, LaunchError> {
    let memory = memfd_create("localregistry-config", MemfdFlags::CLOEXEC).map(File::from);
    let file = memory.or_else(|_| tempfile::tempfile()).and_then(|mut file| {
        file.write_all(config.to_json().as_bytes())?;
        Ok(file.into())
    });
    file.map_err(|source| LaunchError::Resource { what: "keep the config", source })
}
