//! From options to what can be started: everything that can be checked before QEMU is started is checked here, so that the message is
//! ours, and what QEMU and the guest are to be told is put together.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{SocketAddrV4, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::Purpose;
use super::{LEAST_MEMORY, LaunchError, Options, version};
use crate::address::Mac;
use crate::config::guest_config::GuestConfig;
use crate::disk::superblock::{HEAD_LEN, Superblock};
use crate::host::support::files;
use crate::host::support::sys;
use crate::host::vm::accel::Accel;
use crate::host::vm::net::check::check as check_networks;
use crate::host::vm::net::{self, Kind, Net};
use crate::host::vm::qemu::{Backend, Board, Channels, Disk, Forward, Machine, Network, Version};
use crate::registry::tls::{self, Identity};

/// Names of the fw_cfg files that the guest reads.
const CONFIG: &str = "opt/localregistry/config";
const TLS_CERTIFICATE: &str = "opt/localregistry/tls.crt";
const TLS_KEY: &str = "opt/localregistry/tls.key";

/// The file that every image layout has (image layout specification, "oci-layout file").
const LAYOUT: &str = "oci-layout";

/// Longest file with a certificate chain or a key, in bytes.
const LARGEST_PEM: u64 = 1 << 20;

/// Options that have been checked, with what follows from them.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub options: Options,
    /// The networks, each with its address on the link.
    pub nets: Vec<(Net, Mac)>,
    version: Version,
    /// The whole config of the guest.
    pub config: GuestConfig,
    /// The serial of each disk.
    serials: Vec<String>,
    /// What is forwarded to the registry, and to health, metrics and the CA.
    pub registry: Option<Forward>,
    pub metrics: Option<Forward>,
    pub further: Vec<Further>,
}

/// What is forwarded to a further listener of the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Further {
    pub forward: Forward,
    /// Whether it speaks plain HTTP.
    pub plain: bool,
}

impl Prepared {
    /// Checks `options`.
    ///
    /// # Errors
    /// What is missing, cannot be used, or does not go together. Nothing is left of it.
    pub(crate) async fn of(mut options: Options) -> Result<Self, LaunchError> {
        check_files(&options)?;
        if options.memory_mib < LEAST_MEMORY {
            return Err(LaunchError::Memory { given: options.memory_mib });
        }
        net::together(&options.nets)?;
        let mut config = options.config.clone();
        let said = !options.nets.is_empty();
        if said && config.has_interfaces() {
            return Err(LaunchError::Interfaces);
        }
        if !said {
            options.nets.push(Net::user());
        }
        // Interfaces of the config's own are left as they are.
        let beyond = [Some(options.publish), options.metrics].into_iter().flatten().any(|address| !address.ip().is_loopback());
        let routed = beyond && !config.has_interfaces();
        if routed {
            options.nets.iter_mut().filter(|net| net.is_user()).for_each(Net::route_to_clients);
        }
        let version = version::ask(&options.qemu, options.board).await?;
        check_networks(&mut options.nets).await?;
        let nets = net::with_macs(&options.nets);
        let nets = nets.map_err(|source| LaunchError::Resource { what: "choose addresses on the link", source })?;
        if said || routed {
            config.set_interfaces(net::interfaces(&nets));
        }
        let user = options.nets.iter().any(Net::is_user);
        if !user && options.metrics.is_some() {
            return Err(LaunchError::NothingForwarded);
        }
        if user {
            check_ports(&options)?;
        }
        let serials = config.take_disks(options.disks.len());
        let metrics = options.metrics.map(|host| Forward { host, guest_port: config.take_metrics_port() });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        config.complete(user.then_some(options.publish), now);
        let registry = user.then_some(Forward { host: options.publish, guest_port: config.port() });
        // From free ports: how many there are is the config's affair.
        let host = SocketAddrV4::new(*options.publish.ip(), 0);
        let further = config.further_ports().into_iter().filter(|_| user);
        let further = further.map(|(guest_port, plain)| Further { forward: Forward { host, guest_port }, plain }).collect();
        let prepared = Self { options, nets, version, config, serials, registry, metrics, further };
        // By names alone: what a network lacks does not hang on a descriptor.
        let lacks = version.suffices(&prepared.networks(&[]));
        let Options { qemu, board, .. } = &prepared.options;
        lacks.map_err(|lacks| LaunchError::TooOld { program: qemu.clone(), package: board.package(), lacks })?;
        Ok(prepared)
    }

    /// The network interfaces, where `open` are the descriptors of those that QEMU inherits.
    fn networks(&self, open: &[Option<i32>]) -> Vec<Network> {
        let nets = self.nets.iter().enumerate();
        nets.map(|(place, (net, mac))| Network { backend: self.backend(net, open.get(place).copied().flatten()), mac: *mac })
            .collect()
    }

    fn backend(&self, net: &Net, open: Option<i32>) -> Backend {
        match (&net.kind, open) {
            (Kind::User, _) => {
                let further = self.further.iter().map(|further| further.forward);
                let forwards = [self.registry, self.metrics].into_iter().flatten().chain(further).collect();
                Backend::User { forwards, guest: net.address, gateway: net.gateway }
            }
            (Kind::Tap(_) | Kind::Bridge(_), Some(open)) => Backend::TapFd(open),
            (Kind::Tap(name) | Kind::Bridge(name), None) => Backend::Tap(name.clone()),
            (Kind::Socket(socket), open) => Backend::SocketFd(open.unwrap_or(socket.number)),
            (Kind::Stream { path, reconnect }, _) => {
                Backend::Stream { path: path.clone(), reconnect: *reconnect, version: self.version }
            }
            (Kind::Dgram(both), _) => Backend::Dgram(both.clone()),
            (Kind::Multicast(group), _) => Backend::Multicast(*group),
        }
    }

    /// The machine, where `config` is the file with the guest's config, and `open` the descriptors of the networks that QEMU inherits.
    pub(crate) fn machine(&self, accel: Accel, config: PathBuf, open: &[Option<i32>], channels: Channels) -> Machine {
        let options = &self.options;
        let mut fw_cfg = vec![(CONFIG, config)];
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
            disks: options
                .disks
                .iter()
                .cloned()
                .zip(self.serials.iter().cloned())
                .map(|(path, serial)| Disk { path, serial })
                .collect(),
            networks: self.networks(open),
            fw_cfg,
            channels,
            further: options.qemu_arguments.clone(),
        }
    }
}

fn check_files(options: &Options) -> Result<(), LaunchError> {
    options.disks.iter().try_for_each(|disk| check_disk(disk))?;
    readable("kernel", &options.kernel)?;
    readable("initramfs", &options.initramfs)?;
    if let Some((certificate, key)) = &options.tls {
        check_pem(certificate, key, &options.config.names())?;
    }
    options.secrets.iter().try_for_each(|(_, path)| readable("secret", path).map(drop))
}

/// Checks that the guest can serve with the chain and the key, which it would say only after its boot, and that the chain is for `names`.
fn check_pem(certificate: &Path, key: &Path, names: &[String]) -> Result<(), LaunchError> {
    let read = |what, path: &Path| {
        readable(what, path)?;
        files::read(path, LARGEST_PEM).map_err(|source| LaunchError::Read { what, path: path.to_owned(), source })
    };
    let (chain, secret) = (read("certificate", certificate)?, read("key", key)?);
    let served = Identity::provided(&chain, &secret, None, Some(SystemTime::now())).map(drop);
    served.map_err(|source| LaunchError::Pem { certificate: certificate.to_owned(), key: key.to_owned(), source })?;
    match tls::uncovered_name(&chain, names) {
        Some(name) => Err(LaunchError::NotFor { certificate: certificate.to_owned(), name: name.clone() }),
        None => Ok(()),
    }
}

/// Checks that the ports can be listened at.
fn check_ports(options: &Options) -> Result<(), LaunchError> {
    // Both at once: they must not be the same.
    let listen =
        |purpose, address: SocketAddrV4| TcpListener::bind(address).map_err(|source| LaunchError::port(purpose, address, source));
    let registry = listen(Purpose::Registry, options.publish)?;
    let metrics = options.metrics.map(|address| listen(Purpose::Metrics, address)).transpose()?;
    drop((registry, metrics));
    Ok(())
}

/// Checks that the file at `path` is a disk that the guest can read: it has a file system that is known, and all of it.
/// [`super::Appliance::boot`] does so too; this is for those who have more to prepare before it.
///
/// # Errors
/// It cannot be read, is neither a file nor a block device, has no such file system, or less of it than there should be.
pub fn check_disk(path: &Path) -> Result<(), LaunchError> {
    if path.join(LAYOUT).is_file() {
        return Err(LaunchError::Layout { path: path.to_owned() });
    }
    let mut file = readable("disk", path)?;
    let read = |source| LaunchError::Read { what: "disk", path: path.to_owned(), source };
    let mut start = Vec::with_capacity(HEAD_LEN);
    Read::by_ref(&mut file).take(HEAD_LEN as u64).read_to_end(&mut start).map_err(read)?;
    // Of a device too, whose metadata say nothing.
    let bytes = io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(read)?;
    let path = path.to_owned();
    let Some(found) = Superblock::detect(&start) else { return Err(LaunchError::NoFileSystem { path, bytes }) };
    match found.bytes {
        Some(expected) if expected > bytes => Err(LaunchError::Truncated { path, bytes, fs: found.fs.name(), expected }),
        _ => Ok(()),
    }
}

/// The file, or block device, at `path`, which can be read and is not empty.
fn readable(what: &'static str, path: &Path) -> Result<File, LaunchError> {
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
