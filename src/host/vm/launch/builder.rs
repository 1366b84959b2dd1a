//! What a launcher in Rust says before a boot, with a default for everything but the disk.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::command::{QemuCommand, command};
use super::{Appliance, LaunchError, Options};
use crate::address::is_san;
use crate::config::guest_config::{ConfigError, GuestConfig, Setting};
use crate::host::boot::kernel::Flavor;
use crate::host::boot::{initramfs, kernel};
use crate::host::nodes::access::{Access, AccessError};
use crate::host::nodes::ca::{self, Ca};
use crate::host::support::report::Report;
use crate::host::vm::accel::Choice;
use crate::host::vm::net::Net;
use crate::host::vm::qemu::Board;

/// How long a boot may take where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Why a builder gives no appliance.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A name that no certificate can be for.
    #[error("{0:?} is no DNS name and no IP address: the certificate cannot be for it")]
    Name(String),
    /// A setting that the config does not know.
    #[error("the setting does not fit what was set before")]
    Set(#[source] ConfigError),
    /// There is no kernel.
    #[error("there is no kernel to boot")]
    Kernel(#[source] kernel::Error),
    /// No flavor is for the board.
    #[error("the board {} boots none of the kernels that can be had by themselves: give one with its initramfs", .0.name())]
    NoFlavor(Board),
    /// The kernel cannot run the guest on the board.
    #[error(transparent)]
    Unfit(#[from] kernel::Unfit),
    /// There is no initramfs.
    #[error("there is no initramfs to boot with")]
    Initramfs(#[source] initramfs::Error),
    /// The CA that is to sign cannot.
    #[error("cannot use the CA")]
    OwnCa(#[source] ca::Error),
    /// What says who may pull cannot be used.
    #[error("cannot set up who may pull")]
    Access(#[source] AccessError),
    /// The thread that made these ready ended.
    #[error("the search for the kernel, the initramfs and the CA was broken off")]
    BrokenOff(#[source] tokio::task::JoinError),
    /// The boot.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// Where the CA is from that signs the certificate.
#[derive(Debug, Clone)]
enum OwnCa {
    /// Two PEM files: the certificate, and its key.
    Files(PathBuf, PathBuf),
    /// A folder that keeps one.
    KeptIn(PathBuf),
}

impl OwnCa {
    fn read(&self) -> Result<Ca, ca::Error> {
        let now = SystemTime::now();
        match self {
            Self::Files(certificate, key) => Ca::read(certificate, key, now),
            Self::KeptIn(dir) => Ca::kept_in(dir, now),
        }
    }
}

/// What to boot, said step by step: see [`Appliance::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    /// Its kernel and initramfs are empty where none are given, and so is its QEMU.
    options: Options,
    flavor: Flavor,
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    init: Option<PathBuf>,
    ca: Option<OwnCa>,
    access: Access,
    names: Vec<String>,
    settings: Vec<Setting>,
}

impl Appliance {
    /// Says what to boot: the packed disk `disk`, and what is to differ from the defaults. Nothing is done before [`Builder::boot`].
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use localregistry::launch::Appliance;
    ///
    /// let appliance = Appliance::builder("images.erofs").name("registry.test").boot().await?;
    /// appliance.write_ca("ca.crt".as_ref())?;
    /// println!("{}", appliance.endpoint());
    /// appliance.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    /// `examples/boot.rs` is a whole program.
    ///
    /// The machine has to have QEMU; a kernel is downloaded with apt into the cache when it is first needed ([`Builder::kernel`] gives
    /// another), and the static `localregistry-init` is looked for as [`Builder::init`] says.
    #[must_use]
    pub fn builder(disk: impl Into<PathBuf>) -> Builder {
        let options = Options {
            board: Board::default(),
            disks: vec![disk.into()],
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            qemu: PathBuf::new(),
            memory_mib: 256,
            cpus: 1,
            accel: Choice::Auto,
            nets: Vec::new(),
            publish: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0),
            metrics: None,
            config: GuestConfig::default(),
            tls: None,
            secrets: Vec::new(),
            qemu_arguments: Vec::new(),
            events: None,
            console: None,
            timeout: TIMEOUT,
            report: Report { json: false, quiet: true },
        };
        Builder {
            options,
            flavor: Flavor::default(),
            kernel: None,
            initramfs: None,
            init: None,
            ca: None,
            access: Access::default(),
            names: Vec::new(),
            settings: Vec::new(),
        }
    }
}

impl Builder {
    /// Serves this disk, too. What two disks disagree on ends the boot.
    #[must_use]
    pub fn disk(mut self, disk: impl Into<PathBuf>) -> Self {
        self.options.disks.push(disk.into());
        self
    }

    /// How long the guest waits for its disks. Default: 5 s.
    #[must_use]
    pub fn disk_wait(self, wait: Duration) -> Self {
        self.set(Setting::new(&["disk", "waitSeconds"], wait.as_secs()))
    }

    /// Holds all that is sent against its digest: where a disk has other bytes the response is cut before its end.
    #[must_use]
    pub fn verify(self) -> Self {
        self.set(Setting::new(&["verify"], true))
    }

    /// The board that QEMU makes. Default: [`Board::Q35`]. [`Board::Microvm`] boots fastest, and nothing can be plugged into it;
    /// [`Board::Virt`] (64-bit ARM) needs [`Builder::kernel`].
    #[must_use]
    pub fn board(mut self, board: Board) -> Self {
        self.options.board = board;
        self
    }

    /// Which kernel is booted, where [`Builder::kernel`] gives none. Default: [`Flavor::Cloud`]. Those of the distribution are
    /// downloaded with apt into the cache when they are first needed; [`Flavor::Own`] has to have been built by `image/kernel`.
    #[must_use]
    pub fn flavor(mut self, flavor: Flavor) -> Self {
        self.flavor = flavor;
        self
    }

    /// Boots this kernel (a bootable ELF or a bzImage), with this initramfs, instead of those of [`Builder::flavor`].
    #[must_use]
    pub fn kernel(mut self, kernel: impl Into<PathBuf>, initramfs: impl Into<PathBuf>) -> Self {
        self.kernel = Some(kernel.into());
        self.initramfs = Some(initramfs.into());
        self
    }

    /// Takes this `localregistry-init` into the initramfs that is made; it is not looked at where [`Builder::kernel`] gives an initramfs.
    /// Default: the one that the environment variable `LOCALREGISTRY_INIT` names, else the first static one of these: beside this
    /// program, and `x86_64-unknown-linux-musl/release/localregistry-init` in the `target` folder that this program was built in.
    ///
    /// It is PID 1 of a machine without libraries, so it has to be static: a debug build is not. If there is none,
    /// [`Builder::boot`] gives [`BuildError::Initramfs`]. Build one in the sources of this crate, which takes Debian's `musl-tools` and
    /// `rustup target add x86_64-unknown-linux-musl`, and name it here or in the variable:
    ///
    /// ```sh
    /// cargo build --release --target x86_64-unknown-linux-musl --no-default-features --features guest --bin localregistry-init
    /// ```
    #[must_use]
    pub fn init(mut self, init: impl Into<PathBuf>) -> Self {
        self.init = Some(init.into());
        self
    }

    /// The QEMU to start, a path or a name in `PATH`. Default: `qemu-system-x86_64`, for [`Board::Virt`] `qemu-system-aarch64`.
    #[must_use]
    pub fn qemu(mut self, program: impl Into<PathBuf>) -> Self {
        self.options.qemu = program.into();
        self
    }

    /// A further argument for QEMU, after this library's own.
    #[must_use]
    pub fn qemu_argument(mut self, argument: impl Into<OsString>) -> Self {
        self.options.qemu_arguments.push(argument.into());
        self
    }

    /// Memory in MiB. Default: 256.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.options.memory_mib = mib;
        self
    }

    /// Virtual processors. Default: 1.
    #[must_use]
    pub fn cpus(mut self, count: u32) -> Self {
        self.options.cpus = count;
        self
    }

    /// What runs the guest's instructions. Default: KVM where it can work, else TCG.
    #[must_use]
    pub fn accel(mut self, accel: Choice) -> Self {
        self.options.accel = accel;
        self
    }

    /// Puts it on a further network. Default, where none is said: QEMU's user network.
    #[must_use]
    pub fn net(mut self, net: Net) -> Self {
        self.options.nets.push(net);
        self
    }

    /// Where this machine listens for the registry, on QEMU's user network. Default: a free port of 127.0.0.1. Beyond the loopback it
    /// answers other hosts, too, and events have their addresses; the guest can open no connection in either case.
    #[must_use]
    pub fn publish(mut self, address: SocketAddrV4) -> Self {
        self.options.publish = address;
        self
    }

    /// Gives health, metrics and the CA a port of their own, forwarded from `address`.
    #[must_use]
    pub fn metrics(mut self, address: SocketAddrV4) -> Self {
        self.options.metrics = Some(address);
        self
    }

    /// A further name or address that clients use: it goes into the certificate.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// The guest's config, in place of what was set before.
    #[must_use]
    pub fn config(mut self, config: GuestConfig) -> Self {
        self.options.config = config;
        self
    }

    /// One key of the guest's config, over [`Builder::config`].
    #[must_use]
    pub fn set(mut self, setting: Setting) -> Self {
        self.settings.push(setting);
        self
    }

    // Of the next four, the last that is said holds.

    /// Serves plain HTTP.
    #[must_use]
    pub fn plain_http(self) -> Self {
        self.tls("OFF", None, None)
    }

    /// Serves with this certificate chain and key, PEM files, instead of ones that the guest makes.
    #[must_use]
    pub fn certificate(self, chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls("PROVIDED", Some((chain.into(), key.into())), None)
    }

    /// Signs the registry's certificate with this CA, PEM files, the key in PKCS #8, instead of with one that the guest makes: nodes
    /// that trust it already trust the registry. The guest gets the key; it is written nowhere.
    #[must_use]
    pub fn ca(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls("SIGN", None, Some(OwnCa::Files(certificate.into(), key.into())))
    }

    /// Signs it with the CA that the folder `dir` keeps, so that every appliance of that folder has the same. At first use one is made
    /// there, `ca.crt` for everybody and `ca.key` for its owner; any number of first uses at once agree on one.
    #[must_use]
    pub fn ca_dir(self, dir: impl Into<PathBuf>) -> Self {
        self.tls("SIGN", None, Some(OwnCa::KeptIn(dir.into())))
    }

    fn tls(mut self, mode: &str, provided: Option<(PathBuf, PathBuf)>, ca: Option<OwnCa>) -> Self {
        self.options.tls = provided;
        self.ca = ca;
        self.set(Setting::new(&["tls", "mode"], mode))
    }

    /// Says who may pull, over what [`Builder::set`] says of it. Default: everybody. The files are read before the boot, and the guest
    /// gets the password file and the client CA, but no password.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Keeps every event in this file, one JSON line each.
    #[must_use]
    pub fn events_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.events = Some(path.into());
        self
    }

    /// Keeps the guest's console in this file.
    #[must_use]
    pub fn console_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.console = Some(path.into());
        self
    }

    /// How long the boot may take, from QEMU's start to ready. Default: 120 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// Tells progress on standard error. Default: nothing is printed.
    #[must_use]
    pub fn verbose(mut self) -> Self {
        self.options.report.quiet = false;
        self
    }

    /// Boots the appliance and waits until its registry is ready. Dropping the future before that ends QEMU, and so does dropping the
    /// appliance. Call it within a Tokio runtime with time and I/O.
    ///
    /// # Errors
    /// See [`BuildError`]. No process and no file is left.
    pub async fn boot(self) -> Result<Appliance, BuildError> {
        Ok(Appliance::boot(self.options().await?).await?)
    }

    /// QEMU's command line, for a launcher that starts QEMU itself, and the files that it needs in `folder`, which is there. Nothing is
    /// booted.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn command(self, folder: &Path) -> Result<QemuCommand, BuildError> {
        Ok(command(self.options().await?, folder).await?)
    }

    /// All that was said, checked, with a kernel and an initramfs.
    async fn options(self) -> Result<Options, BuildError> {
        let Self { mut options, flavor, kernel, initramfs, init, ca, access, names, settings } = self;
        for setting in settings.iter().chain(&access.settings()) {
            options.config.set(setting).map_err(BuildError::Set)?;
        }
        if access.has_client_ca() && options.config.is_plain() {
            return Err(BuildError::Access(AccessError::ClientCaWithoutTls));
        }
        let board = options.board;
        if options.qemu.as_os_str().is_empty() {
            options.qemu = board.program().into();
        }
        for name in names {
            if !is_san(&name) {
                return Err(BuildError::Name(name));
            }
            options.config.add_name(&name);
        }
        options.disks.iter().try_for_each(|disk| super::check_disk(disk))?;
        let report = options.report;
        // It may download, unpack and wait for another's lock, which is no async code.
        let found = tokio::task::spawn_blocking(move || {
            access.check().map_err(BuildError::Access)?;
            let signer = ca.map(|ca| ca.read()).transpose().map_err(BuildError::OwnCa)?.map(Ca::secrets);
            let secrets: Vec<_> = access.secrets().into_iter().chain(signer.into_iter().flatten()).collect();
            if let (Some(kernel), Some(initramfs)) = (&kernel, &initramfs) {
                kernel::check_fits(kernel, kernel::options_of(kernel), board)?;
                return Ok::<_, BuildError>((kernel.clone(), initramfs.clone(), secrets));
            }
            if board == Board::Virt {
                return Err(BuildError::NoFlavor(board));
            }
            let kernel = kernel::cached_or_download(flavor, &report).map_err(BuildError::Kernel)?;
            kernel::check_fits(&kernel.elf, kernel.options(), board)?;
            let initramfs = initramfs::cached(init.as_deref(), &kernel.modules, &report).map_err(BuildError::Initramfs)?;
            Ok((kernel.elf, initramfs, secrets))
        });
        let (kernel, initramfs, secrets) = found.await.map_err(BuildError::BrokenOff)??;
        (options.kernel, options.initramfs) = (kernel, initramfs);
        options.secrets.extend(secrets);
        Ok(options)
    }
}
