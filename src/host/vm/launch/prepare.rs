//! Checks the options before QEMU is started, so that errors are this program's own, and derives QEMU's machine and the guest's config
//! from them.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddrV4, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::Purpose;
use super::{LaunchError, MIN_MEMORY, Options, passt, version};
use crate::address::Mac;
use crate::config::guest_config::GuestConfig;
use crate::disk::superblock::{Superblock, read_head};
use crate::host::support::files;
use crate::host::support::sys;
use crate::host::vm::accel::Accel;
use crate::host::vm::net::check::check as check_networks;
use crate::host::vm::net::{self, Net, NetKind};
use crate::host::vm::qemu::network::check_version;
use crate::host::vm::qemu::{Backend, Board, Channels, Disk, Forward, Machine, MemoryFile, Network, Version};
use crate::registry::tls::{self, Identity};

// Names of the fw_cfg files that the guest reads.
const CONFIG: &str = "opt/localregistry/config";
const TLS_CERTIFICATE: &str = "opt/localregistry/tls.crt";
const TLS_KEY: &str = "opt/localregistry/tls.key";

/// The file that every image layout has (image layout specification, "oci-layout file").
const LAYOUT: &str = "oci-layout";

/// Longest PEM file, in bytes.
const PEM_MAX: u64 = 1 << 20;

/// Checked options, and what follows from them.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub options: Options,
    /// The networks with their MAC addresses.
    pub nets: Vec<(Net, Mac)>,
    version: Version,
    /// The complete config of the guest.
    pub config: GuestConfig,
    /// The serial of each disk.
    serials: Vec<String>,
    /// The forwarded ports of the user network.
    pub forwards: Forwards,
    /// How passt is to carry the user network. `None`: QEMU carries it, if it is among the networks.
    pub passt: Option<passt::Plan>,
}

/// The forwarded ports of the user network. QEMU takes a free port of the host for port 0.
#[derive(Debug, Clone, Default)]
pub(crate) struct Forwards {
    /// The forward to the registry.
    pub registry: Option<Forward>,
    /// The forward to health, metrics and the CA.
    pub metrics: Option<Forward>,
    pub further: Vec<ExtraForward>,
}

impl Forwards {
    pub(crate) fn all(&self) -> Vec<Forward> {
        let further = self.further.iter().map(|further| further.forward);
        [self.registry, self.metrics].into_iter().flatten().chain(further).collect()
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Forward> {
        let further = self.further.iter_mut().map(|further| &mut further.forward);
        [self.registry.as_mut(), self.metrics.as_mut()].into_iter().flatten().chain(further)
    }
}

/// The forward to a further listener of the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExtraForward {
    pub forward: Forward,
    /// Whether the listener speaks plain HTTP.
    pub plain: bool,
}

impl Prepared {
    /// Checks `options`. With `may_passt`, passt may carry the user network.
    ///
    /// # Errors
    /// Fails if something is missing, cannot be used, or contradicts another option. Nothing is left behind.
    pub(crate) async fn new(mut options: Options, may_passt: bool) -> Result<Self, LaunchError> {
        check_files(&options)?;
        if options.memory_mib < MIN_MEMORY {
            return Err(LaunchError::Memory { given: options.memory_mib });
        }
        net::check_conflicts(&options.nets)?;
        let mut config = options.config.clone();
        let explicit = !options.nets.is_empty();
        if explicit && config.has_interfaces() {
            return Err(LaunchError::Interfaces);
        }
        if !explicit {
            options.nets.push(Net::user());
        }
        // Interfaces of the config are not changed.
        let addresses = [Some(options.publish), options.metrics];
        let beyond_loopback = addresses.into_iter().flatten().any(|address| !address.ip().is_loopback());
        let routed = beyond_loopback && !config.has_interfaces();
        if routed {
            options.nets.iter_mut().filter(|net| net.is_user()).for_each(Net::route_to_clients);
        }
        let passt = if may_passt { passt::plan(&mut options.nets, config.has_interfaces())? } else { None };
        let version = version::query(&options.qemu, options.board).await?;
        check_networks(&mut options.nets).await?;
        let nets = net::assign_macs(&options.nets);
        let nets = nets.map_err(|source| LaunchError::Resource { what: "choose MAC addresses", source })?;
        if explicit || routed {
            config.set_interfaces(net::interfaces(&nets));
        }
        let user = options.nets.iter().any(Net::is_user);
        if !user && options.metrics.is_some() {
            return Err(LaunchError::NothingForwarded);
        }
        if user {
            check_ports(&options)?;
        }
        let serials = config.assign_disk_serials(options.disks.len());
        let metrics = options.metrics.map(|host| Forward { host, guest_port: config.assign_metrics_port() });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        config.complete(user.then_some(options.publish), now);
        let registry = user.then_some(Forward { host: options.publish, guest_port: config.port() });
        // Further listeners get free ports: there is no option to choose them.
        let host = SocketAddrV4::new(*options.publish.ip(), 0);
        let further = config.listener_ports().into_iter().filter(|_| user);
        let further = further.map(|(guest_port, plain)| ExtraForward { forward: Forward { host, guest_port }, plain }).collect();
        let forwards = Forwards { registry, metrics, further };
        let prepared = Self { options, nets, version, config, serials, forwards, passt };
        // The version check needs no open descriptors.
        let lacks = check_version(version, &prepared.networks(&[]));
        let Options { qemu, board, .. } = &prepared.options;
        lacks.map_err(|lacks| LaunchError::TooOld { program: qemu.clone(), package: board.package(), lacks })?;
        Ok(prepared)
    }

    /// QEMU's network interfaces. `fds` are the descriptors that QEMU inherits, by the position of their network.
    fn networks(&self, fds: &[Option<i32>]) -> Vec<Network> {
        let nets = self.nets.iter().enumerate();
        nets.map(|(index, (net, mac))| Network { backend: self.backend(net, fds.get(index).copied().flatten()), mac: *mac })
            .collect()
    }

    fn backend(&self, net: &Net, fd: Option<i32>) -> Backend {
        match (&net.kind, fd) {
            (NetKind::User(_), Some(passt)) => Backend::SocketFd(passt),
            (NetKind::User(_), None) => Backend::User { forwards: self.forwards.all(), guest: net.address, gateway: net.gateway },
            (NetKind::Tap(_) | NetKind::Bridge(_), Some(fd)) => Backend::TapFd(fd),
            (NetKind::Tap(name) | NetKind::Bridge(name), None) => Backend::Tap(name.clone()),
            (NetKind::Socket(socket), fd) => Backend::SocketFd(fd.unwrap_or(socket.number)),
            (NetKind::Stream { path, reconnect }, _) => {
                Backend::Stream { path: path.clone(), reconnect: *reconnect, version: self.version }
            }
            (NetKind::Dgram(sockets), _) => Backend::Dgram(sockets.clone()),
            (NetKind::Multicast(group), _) => Backend::Multicast(*group),
        }
    }

    /// QEMU's machine. `memory` is that of a frozen machine to start from, `config` is the file with the guest's config, `fds` are the
    /// descriptors for [`Prepared::networks`].
    pub(crate) fn machine(
        &self,
        accel: Accel,
        memory: Option<MemoryFile>,
        config: PathBuf,
        fds: &[Option<i32>],
        channels: Channels,
    ) -> Machine {
        let options = &self.options;
        let mut fw_cfg = vec![(CONFIG, config)];
        if let Some((certificate, key)) = &options.tls {
            fw_cfg.extend([(TLS_CERTIFICATE, certificate.clone()), (TLS_KEY, key.clone())]);
        }
        fw_cfg.extend(options.secrets.iter().cloned());
        // An emulated time stamp counter runs at the rate of the host's counter.
        let unmeasurable = options.board == Board::Microvm && accel == Accel::Tcg;
        Machine {
            board: options.board,
            tsc_khz: unmeasurable.then(sys::tsc_khz),
            accel,
            memory_mib: options.memory_mib,
            memory,
            cpus: options.cpus.count(accel, options.memory_mib),
            kernel: options.kernel.clone(),
            initramfs: options.initramfs.clone(),
            disks: options
                .disks
                .iter()
                .cloned()
                .zip(self.serials.iter().cloned())
                .map(|(path, serial)| Disk { path, serial })
                .collect(),
            networks: self.networks(fds),
            fw_cfg,
            channels,
            further: options.qemu_arguments.clone(),
        }
    }
}

fn check_files(options: &Options) -> Result<(), LaunchError> {
    options.disks.iter().try_for_each(|disk| check_disk(disk))?;
    open("kernel", &options.kernel)?;
    open("initramfs", &options.initramfs)?;
    if let Some((certificate, key)) = &options.tls {
        check_pem(certificate, key, &options.config.names())?;
    }
    options.secrets.iter().try_for_each(|(_, path)| open("secret", path).map(drop))
}

/// Checks that the guest can serve with this chain and key, and that the chain is valid for `names`. The guest would fail only after it
/// has booted.
fn check_pem(certificate: &Path, key: &Path, names: &[String]) -> Result<(), LaunchError> {
    let read = |what, path: &Path| {
        open(what, path)?;
        files::read(path, PEM_MAX).map_err(|source| LaunchError::Read { what, path: path.to_owned(), source })
    };
    let (chain, secret) = (read("certificate", certificate)?, read("key", key)?);
    let served = Identity::provided(&chain, &secret, None, Some(SystemTime::now())).map(drop);
    served.map_err(|source| LaunchError::Pem { certificate: certificate.to_owned(), key: key.to_owned(), source })?;
    match tls::uncovered_name(&chain, names) {
        Some(name) => Err(LaunchError::NotFor { certificate: certificate.to_owned(), name: name.clone() }),
        None => Ok(()),
    }
}

/// Checks that the published ports can be listened on.
fn check_ports(options: &Options) -> Result<(), LaunchError> {
    let listen =
        |purpose, address: SocketAddrV4| TcpListener::bind(address).map_err(|source| LaunchError::port(purpose, address, source));
    // Both are open at once, so that two equal ports are noticed.
    let registry = listen(Purpose::Registry, options.publish)?;
    let metrics = options.metrics.map(|address| listen(Purpose::Metrics, address)).transpose()?;
    drop((registry, metrics));
    Ok(())
}

/// Checks that the file at `path` is a disk that the guest can read: it has a known file system, and is not shorter than that.
/// [`super::Appliance::boot`] does it as well; call it to fail before longer preparations.
///
/// # Errors
/// Fails if the disk cannot be read, is neither a file nor a block device, or its file system is unknown or incomplete.
pub fn check_disk(path: &Path) -> Result<(), LaunchError> {
    if path.join(LAYOUT).is_file() {
        return Err(LaunchError::Layout { path: path.to_owned() });
    }
    let mut file = open("disk", path)?;
    let read = |source| LaunchError::Read { what: "disk", path: path.to_owned(), source };
    let start = read_head(&file).map_err(read)?;
    // The metadata of a block device has no size.
    let bytes = io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(read)?;
    let path = path.to_owned();
    let Some(found) = Superblock::detect(&start) else { return Err(LaunchError::NoFileSystem { path, bytes }) };
    match found.bytes {
        Some(expected) if expected > bytes => Err(LaunchError::Truncated { path, bytes, fs: found.fs.name(), expected }),
        _ => Ok(()),
    }
}

/// Checks that the files for the events and the console can be created.
///
/// # Errors
/// Fails if one is a folder or not writable, or its folder is missing.
pub fn check_outputs(options: &Options) -> Result<(), LaunchError> {
    let outputs = [("events", &options.events), ("console", &options.console)];
    outputs.into_iter().filter_map(|(what, path)| Some((what, path.as_ref()?))).try_for_each(|(what, path)| {
        files::check_creatable(path).map_err(|source| LaunchError::Create { what, path: path.clone(), source })
    })
}

/// Opens the file or block device at `path`, which must not be empty.
fn open(what: &'static str, path: &Path) -> Result<File, LaunchError> {
    let read = |source| LaunchError::Read { what, path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(read)?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let found = if kind.is_dir() { "a directory" } else { "a special file" };
        return Err(LaunchError::NotAFile { what, path: path.to_owned(), found });
    }
    let file = File::open(path).map_err(read)?;
    if kind.is_file() && metadata.len() == 0 {
        return Err(LaunchError::Empty { what, path: path.to_owned() });
    }
    Ok(file)
}
