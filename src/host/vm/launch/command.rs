//! QEMU's command line and its files, for launchers that start QEMU themselves. Nothing is started here.
//!
//! Such a launcher reads the events from a socket, and shuts the guest down through another ([`crate::proto::Command`]).

use std::ffi::OsString;
use std::io;
use std::net::{SocketAddrV4, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf, absolute};

use super::error::Purpose;
use super::prepare::Prepared;
use super::{LaunchError, Options};
use crate::host::support::files;
use crate::host::vm::accel;
use crate::host::vm::net::{NetKind, SOCKET_PATH_MAX, UserBackend};
use crate::host::vm::qemu::{Channel, Channels};

/// A command line of QEMU with the files and sockets that it uses. All paths are absolute.
#[derive(Debug, Clone)]
pub struct QemuCommand {
    /// The QEMU program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The guest's config. The file has been written.
    pub config: PathBuf,
    /// Unix socket that QEMU will listen on for the reader of the events. Events wait until it connects.
    pub events: PathBuf,
    /// Unix socket that QEMU will listen on for commands to the guest.
    pub control: PathBuf,
    /// Unix socket that QEMU will listen on for QMP.
    pub qmp: PathBuf,
    /// Output file for the guest's console.
    pub console: PathBuf,
    /// Host address that is forwarded to the registry, with a port that was free.
    pub registry: Option<SocketAddrV4>,
    /// Host address that is forwarded to health, metrics and the CA.
    pub metrics: Option<SocketAddrV4>,
    /// Host addresses that are forwarded to the registry's further listeners.
    pub further: Vec<SocketAddrV4>,
}

/// Builds the command line for `options`, and writes its files into the existing folder `folder`.
///
/// # Errors
/// Fails for the reasons for which [`super::Appliance::boot`] fails before it starts QEMU, and for a bridge: its tap exists only while
/// this program runs QEMU.
pub async fn command(mut options: Options, folder: &Path) -> Result<QemuCommand, LaunchError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| LaunchError::Create { what: "command", path, source }
    };
    let folder = absolute(folder).map_err(failed(folder))?;
    // The launcher may run the command in another folder.
    let tls = options.tls.iter_mut().flat_map(|(certificate, key)| [certificate, key]);
    let files = [&mut options.kernel, &mut options.initramfs].into_iter().chain(&mut options.disks).chain(tls);
    for path in files.chain(options.secrets.iter_mut().map(|(_, path)| path)) {
        *path = absolute(&*path).map_err(failed(path))?;
    }
    if let Some(bridge) = options.nets.iter().find(|net| matches!(net.kind, NetKind::Bridge(_))) {
        return Err(LaunchError::OwnTap { network: bridge.name() });
    }
    if options.nets.iter().any(|net| net.user_backend() == Some(UserBackend::Passt)) {
        return Err(LaunchError::OwnPasst);
    }
    options.publish = with_port(Purpose::Registry, options.publish)?;
    options.metrics = options.metrics.map(|address| with_port(Purpose::Metrics, address)).transpose()?;
    let (accel, _) = accel::select(options.accel)?;
    let mut prepared = Prepared::new(options, false).await?;
    for further in &mut prepared.forwards.further {
        further.forward.host = with_port(Purpose::Registry, further.forward.host)?;
    }

    let config = folder.join("config.json");
    files::write_atomically(&config, prepared.config.to_json().as_bytes()).map_err(failed(&config))?;
    let socket = |name: &str| {
        let path = folder.join(name);
        let fits = path.as_os_str().as_bytes().len() <= SOCKET_PATH_MAX;
        let source = || io::Error::other(format!("a socket's path has at most {SOCKET_PATH_MAX} bytes"));
        if fits { Ok(path) } else { Err(failed(&path)(source())) }
    };
    let (events, control, qmp) = (socket("events.sock")?, socket("control.sock")?, socket("qmp.sock")?);
    let console = folder.join("console");
    let channels = Channels {
        qmp: Channel::Listening(qmp.clone()),
        console: Channel::File(console.clone()),
        events: Channel::Listening(events.clone()),
        control: Channel::Listening(control.clone()),
        files: None,
    };
    Ok(QemuCommand {
        program: prepared.options.qemu.clone(),
        arguments: prepared.machine(accel, None, config.clone(), &[], channels).arguments(),
        config,
        events,
        control,
        qmp,
        console,
        registry: prepared.forwards.registry.map(|forward| forward.host),
        metrics: prepared.forwards.metrics.map(|forward| forward.host),
        further: prepared.forwards.further.iter().map(|further| further.forward.host).collect(),
    })
}

/// `address`, with port 0 replaced by a free one.
fn with_port(purpose: Purpose, address: SocketAddrV4) -> Result<SocketAddrV4, LaunchError> {
    let failed = |source| LaunchError::port(purpose, address, source);
    let port = TcpListener::bind(address).and_then(|listener| listener.local_addr()).map_err(failed)?.port();
    Ok(SocketAddrV4::new(*address.ip(), port))
}
