//! Builds the options of a launch: everything but the disk has a default. `localregistry run` goes through it as well.

mod error;
mod resolve;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use super::{Appliance, Options};
use crate::config::guest_config::{GuestConfig, Setting};
use crate::host::boot::kernel::Flavor;
use crate::host::nodes::access::Access;
use crate::host::support::report::Report;
use crate::host::vm::accel::AccelChoice;
use crate::host::vm::cpus::Cpus;
use crate::host::vm::net::Net;
use crate::host::vm::qemu::Board;
use crate::proto::FaultPlan;

pub use error::BuildError;
use resolve::{CaSource, KernelSource};

/// Default of [`Builder::timeout`].
const TIMEOUT: Duration = Duration::from_secs(120);

/// What to boot, and how: see [`Appliance::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    /// Until [`Builder::resolve_options`], the kernel and the initramfs are empty, and so is QEMU if it is not set.
    options: Options,
    kernel: KernelSource,
    initramfs: Option<PathBuf>,
    init: Option<PathBuf>,
    ca: Option<CaSource>,
    access: Access,
    names: Vec<String>,
    settings: Vec<Setting>,
}

impl Appliance {
    /// Starts building an appliance of the packed disk `disk`. Nothing happens before [`Builder::boot`].
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
    /// `examples/boot.rs` is a complete program.
    ///
    /// QEMU has to be installed. The first boot downloads a kernel with apt into the cache ([`Builder::kernel`] sets another), and
    /// needs the static `localregistry-init` ([`Builder::init`]).
    #[must_use]
    pub fn builder(disk: impl Into<PathBuf>) -> Builder {
        let options = Options {
            board: Board::default(),
            disks: vec![disk.into()],
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            qemu: PathBuf::new(),
            memory_mib: 256,
            cpus: Cpus::Auto,
            accel: AccelChoice::Auto,
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
            cold: false,
            report: Report { json: false, quiet: true },
        };
        Builder {
            options,
            kernel: KernelSource::Flavor(Flavor::default()),
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
    /// Adds a further disk. The boot fails if two disks contradict each other.
    #[must_use]
    pub fn disk(mut self, disk: impl Into<PathBuf>) -> Self {
        self.options.disks.push(disk.into());
        self
    }

    /// Sets how long the guest waits for its disks. Default: 5 s.
    #[must_use]
    pub fn disk_wait(self, wait: Duration) -> Self {
        self.set(Setting::new(&["disk", "waitSeconds"], wait.as_secs()))
    }

    /// Verifies the digest of everything that is sent. A response with wrong bytes is cut before its end.
    #[must_use]
    pub fn verify(self) -> Self {
        self.set(Setting::new(&["verify"], true))
    }

    /// Sets the board. Default: [`Board::Q35`]. [`Board::Microvm`] boots fastest but has no hotplug; [`Board::Virt`] (64-bit ARM) needs
    /// [`Builder::kernel`].
    #[must_use]
    pub fn board(mut self, board: Board) -> Self {
        self.options.board = board;
        self
    }

    // Of the next three, the last call wins.

    /// Boots the kernel of this flavor. Default: [`Flavor::Cloud`]. The distribution's kernels are downloaded with apt into the cache at
    /// first use; [`Flavor::Own`] has to be built with `image/kernel` before.
    #[must_use]
    pub fn flavor(mut self, flavor: Flavor) -> Self {
        self.kernel = KernelSource::Flavor(flavor);
        self
    }

    /// Boots this kernel (a bootable ELF or a bzImage) with this initramfs.
    #[must_use]
    pub fn kernel(mut self, kernel: impl Into<PathBuf>, initramfs: impl Into<PathBuf>) -> Self {
        self.kernel = KernelSource::File { kernel: kernel.into(), modules: None };
        self.initramfs(initramfs)
    }

    /// Boots this kernel with an initramfs that is made of its modules in `modules`, a folder lib/modules/RELEASE.
    #[must_use]
    pub fn kernel_with_modules(mut self, kernel: impl Into<PathBuf>, modules: impl Into<PathBuf>) -> Self {
        self.kernel = KernelSource::File { kernel: kernel.into(), modules: Some(modules.into()) };
        self.initramfs = None;
        self
    }

    /// Boots with this initramfs. Default: one that is made for the kernel.
    #[must_use]
    pub fn initramfs(mut self, initramfs: impl Into<PathBuf>) -> Self {
        self.initramfs = Some(initramfs.into());
        self
    }

    /// Sets the `localregistry-init` for the initramfs that is made. It is not used if an initramfs is set. Default: the one that the
    /// environment variable `LOCALREGISTRY_INIT` names, otherwise the first static one of these: beside this program, and
    /// `x86_64-unknown-linux-musl/release/localregistry-init` in the `target` folder that this program was built in.
    ///
    /// It has to be static, since it is PID 1 of a machine without libraries: a debug build is not. If there is none,
    /// [`Builder::boot`] fails with [`BuildError::Initramfs`]. Build one in the sources of this crate (this takes Debian's `musl-tools`
    /// and `rustup target add x86_64-unknown-linux-musl`), and set it here or in the variable:
    ///
    /// ```sh
    /// cargo build --release --target x86_64-unknown-linux-musl --no-default-features --features guest --bin localregistry-init
    /// ```
    #[must_use]
    pub fn init(mut self, init: impl Into<PathBuf>) -> Self {
        self.init = Some(init.into());
        self
    }

    /// Sets the QEMU program, a path or a name in `PATH`. Default: `qemu-system-x86_64`, for [`Board::Virt`] `qemu-system-aarch64`.
    #[must_use]
    pub fn qemu(mut self, program: impl Into<PathBuf>) -> Self {
        self.options.qemu = program.into();
        self
    }

    /// Adds an argument for QEMU, after those of this library.
    #[must_use]
    pub fn qemu_argument(mut self, argument: impl Into<OsString>) -> Self {
        self.options.qemu_arguments.push(argument.into());
        self
    }

    /// Sets the memory in MiB, at least [`Flavor::min_memory_mib`]. Default: 256.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.options.memory_mib = mib;
        self
    }

    /// Sets the number of virtual processors. Default: [`Cpus::Auto`].
    #[must_use]
    pub fn cpus(mut self, cpus: Cpus) -> Self {
        self.options.cpus = cpus;
        self
    }

    /// Sets the accelerator. Default: KVM if it can work, otherwise TCG.
    #[must_use]
    pub fn accel(mut self, accel: AccelChoice) -> Self {
        self.options.accel = accel;
        self
    }

    /// Adds a network. Default: QEMU's user network alone.
    #[must_use]
    pub fn net(mut self, net: Net) -> Self {
        self.options.nets.push(net);
        self
    }

    /// Sets the host address that QEMU's user network forwards to the registry. Default: a free port of 127.0.0.1. Beyond the loopback
    /// other hosts are answered, too, and events have their addresses. In either case the guest cannot open connections.
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

    /// Adds a name or address that clients use to the certificate.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Sets the guest's config. [`Builder::set`] and the methods based on it override its keys.
    #[must_use]
    pub fn config(mut self, config: GuestConfig) -> Self {
        self.options.config = config;
        self
    }

    /// Sets one key of the guest's config.
    #[must_use]
    pub fn set(mut self, setting: Setting) -> Self {
        self.settings.push(setting);
        self
    }

    // Of the next five, the last call wins.

    /// Serves over TLS with a certificate and a CA that the guest generates. This is the default; it overrides the mode in
    /// [`Builder::config`].
    #[must_use]
    pub fn generated_certificate(self) -> Self {
        self.tls("GENERATE", None, None)
    }

    /// Serves plain HTTP.
    #[must_use]
    pub fn plain_http(self) -> Self {
        self.tls("OFF", None, None)
    }

    /// Serves with this certificate chain and key, PEM files.
    #[must_use]
    pub fn certificate(self, chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls("PROVIDED", Some((chain.into(), key.into())), None)
    }

    /// Signs the generated certificate with this CA, PEM files, the key in PKCS #8: nodes that trust the CA already trust the registry.
    /// The guest gets the key and writes it nowhere.
    #[must_use]
    pub fn ca(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls("SIGN", None, Some(CaSource::Files(certificate.into(), key.into())))
    }

    /// Signs the generated certificate with the CA in the folder `dir`, so that all appliances with this folder share a CA. At first
    /// use it is created there: `ca.crt` for everybody, `ca.key` for its owner only. Concurrent first uses agree on one CA.
    #[must_use]
    pub fn ca_dir(self, dir: impl Into<PathBuf>) -> Self {
        self.tls("SIGN", None, Some(CaSource::Dir(dir.into())))
    }

    fn tls(mut self, mode: &str, provided: Option<(PathBuf, PathBuf)>, ca: Option<CaSource>) -> Self {
        self.options.tls = provided;
        self.ca = ca;
        self.set(Setting::new(&["tls", "mode"], mode))
    }

    /// Sets who may pull; it overrides [`Builder::set`]. Default: everybody. The files are checked before the boot. The guest gets the
    /// password file and the client CA, but no password.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Writes every event to this file, one JSON line each.
    #[must_use]
    pub fn events_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.events = Some(path.into());
        self
    }

    /// Writes the guest's console to this file.
    #[must_use]
    pub fn console_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.console = Some(path.into());
        self
    }

    /// Sets the time limit from QEMU's start to ready. Default: 120 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// Misbehaves as `plan` says, from the first request on. [`Appliance::faults`] changes the plan later.
    #[must_use]
    pub fn faults(self, plan: &FaultPlan) -> Self {
        // Serializing it cannot fail.
        self.set(Setting::new(&["faults"], serde_json::to_value(plan).unwrap_or_default()))
    }

    /// Boots even if a frozen machine could be used ([`Builder::freeze`]), and saves none while the appliance runs.
    #[must_use]
    pub fn cold(mut self) -> Self {
        self.options.cold = true;
        self
    }

    /// Prints progress on standard error. Default: prints nothing.
    #[must_use]
    pub fn verbose(mut self) -> Self {
        self.options.report.quiet = false;
        self
    }
}
