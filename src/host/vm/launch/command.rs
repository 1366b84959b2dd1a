//! For launchers that start QEMU themselves: options enter, the command line leaves, and the files that it needs. Nothing is started.
//! Whoever starts it reads the events from a socket, and ends the guest by another ([`crate::proto::Command`]).

use std::ffi::OsString;
use std::io;
use std::net::{SocketAddrV4, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf, absolute};

use super::error::Purpose;
use super::prepare::{Further, Prepared};
use super::{LaunchError, Options};
use crate::host::support::files;
use crate::host::vm::accel::{self, Choice};
use crate::host::vm::net::Kind;
use crate::host::vm::qemu::{Channel, Channels};

/// Longest path of a Unix socket in bytes (unix(7), `sun_path` without the final 0).
const SOCKET_PATH_MAX: usize = 107;

/// A command line of QEMU, and what it needs and makes. All paths are absolute.
#[derive(Debug, Clone)]
pub struct QemuCommand {
    /// QEMU.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The guest's config, which has been written.
    pub config: PathBuf,
    /// Where QEMU will listen, and give the events to who connects: those from before that wait.
    pub events: PathBuf,
    /// Where it will take commands to the guest.
    pub control: PathBuf,
    /// Where it will take commands to itself.
    pub qmp: PathBuf,
    /// Where it will keep the guest's console.
    pub console: PathBuf,
    /// Where it will forward the registry from, and health, metrics and the CA: with a port that was free.
    pub registry: Option<SocketAddrV4>,
    /// The same for health, metrics and the CA.
    pub metrics: Option<SocketAddrV4>,
    /// The same for the registry's further listeners.
    pub further: Vec<SocketAddrV4>,
}

/// The command line for `options`, with its files in `folder`, which is there.
///
/// # Errors
/// As [`super::Appliance::boot`] before it starts QEMU; a bridge, which needs a tap that this program makes and keeps.
pub async fn command(mut options: Options, folder: &Path) -> Result<QemuCommand, LaunchError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| LaunchError::Create { what: "command", path, source }
    };
    let folder = absolute(folder).map_err(failed(folder))?;
    // A launcher may start it from anywhere.
    let tls = options.tls.iter_mut().flat_map(|(certificate, key)| [certificate, key]);
    let files = [&mut options.kernel, &mut options.initramfs].into_iter().chain(&mut options.disks).chain(tls);
    for path in files.chain(options.secrets.iter_mut().map(|(_, path)| path)) {
        *path = absolute(&*path).map_err(failed(path))?;
    }
    if let Some(bridge) = options.nets.iter().find(|net| matches!(net.kind, Kind::Bridge(_))) {
        return Err(LaunchError::NeedsUs { network: bridge.name() });
    }
    options.publish = with_port(Purpose::Registry, options.publish)?;
    options.metrics = options.metrics.map(|address| with_port(Purpose::Metrics, address)).transpose()?;
    let kvm = if options.accel == Choice::Tcg { Ok(()) } else { accel::probe() };
    let (accel, _) = accel::choose(options.accel, kvm)?;
    let mut prepared = Prepared::of(options).await?;
    for Further { forward, .. } in &mut prepared.further {
        forward.host = with_port(Purpose::Registry, forward.host)?;
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
    };
    Ok(QemuCommand {
        program: prepared.options.qemu.clone(),
        arguments: prepared.machine(accel, config.clone(), &[], channels).arguments(),
        config,
        events,
        control,
        qmp,
        console,
        registry: prepared.registry.map(|forward| forward.host),
        metrics: prepared.metrics.map(|forward| forward.host),
        further: prepared.further.iter().map(|further| further.forward.host).collect(),
    })
}

/// `address`, with a port that is free where it has none.
fn with_port(purpose: Purpose, address: SocketAddrV4) -> Result<SocketAddrV4, LaunchError> {
    let failed = |source| LaunchError::port(purpose, address, source);
    let port = TcpListener::bind(address).and_then(|listener| listener.local_addr()).map_err(failed)?.port();
    Ok(SocketAddrV4::new(*address.ip(), port))
}
