//! The arguments of `run`. Words enter, options of [`crate::host::vm::launch`] leave.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use super::lifeline::Descriptor;
use super::publish::Publish;
use crate::address::san;

use crate::config::guest_config::{GuestConfig, Setting};
use crate::host::boot::kernel::Flavor;
use crate::host::nodes::access::{Access, CLIENT_CA_WITHOUT_TLS};
use crate::host::nodes::ca::{Certificates, Tls};
use crate::host::nodes::trust::Endpoint;
use crate::host::runs::dir::{Wanted, is_name};
use crate::host::support::report::Report;
use crate::host::vm::accel::Choice;
use crate::host::vm::launch::{LEAST_MEMORY, Options};
use crate::host::vm::net::{self, Net};
use crate::host::vm::qemu::Board;

/// Longest config file, in bytes: what the guest takes too.
pub(crate) const LARGEST_CONFIG: u64 = 1 << 20;
/// Longest time that the guest waits for its disks, in seconds: what its config takes.
const LONGEST_DISK_WAIT: i64 = 3600;
/// Longest time to wait for `ready`, in seconds: a day.
const LONGEST_TIMEOUT: u64 = 24 * 60 * 60;

/// Why `--machine virt` alone is not enough.
const VIRT_WITHOUT_KERNEL: &str = "the argument '--machine virt' needs '--kernel <FILE>': there is no flavor for 64-bit ARM";

/// The command line of `localregistry run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  localregistry run images.erofs
      Boots the disk and prints where the registry is and how to trust it; Ctrl-C ends it
  localregistry run base.erofs build.erofs
      Two disks as one registry; what they disagree on ends the boot
  localregistry run images.erofs --publish 0.0.0.0:5000 --san registry.test --san 10.1.0.82
      On a fixed port of every address, for other hosts too, under further names
  localregistry run images.erofs --net bridge=br0,ip=10.1.0.82/16 --san registry.test
      As one more machine on a bridge
  localregistry run images.erofs --json --quiet --follow --trust /tmp/t1/trust
      For programs: everything that nodes need in a folder, one JSON line when ready, then one for each event
  localregistry run images.erofs --ca-dir ~/.local/share/localregistry-ca
      Under a CA that later runs have too: node images can be built with it in them
  localregistry run images.erofs --detach --name one; localregistry stop one
      In the background
  localregistry run images.erofs --flavor own --machine microvm
      On our own kernel, built by image/kernel, and the least machine: the fastest boot
  localregistry run images.erofs --kernel /boot/vmlinuz-6.1.0-30-amd64 --modules /lib/modules/6.1.0-30-amd64
      On any other kernel
  localregistry run images.erofs --tls off --set trace=true --console console.txt
      Plain HTTP, each boot step with its time on the console, the console kept

Networks (--net KIND[,mac=MAC][,ip=ADDRESS/PREFIX][,gw=ADDRESS][,mtu=BYTES]), without ip= by DHCP:
  user                 QEMU's own: forwarded ports (--publish, --metrics, listeners) in, nothing out; the default
  tap=NAME             a tap that is there
  bridge=NAME          a bridge, by a tap of the run's own (needs CAP_NET_ADMIN), gone with QEMU
  socket-fd=N          an open socket that this program was started with
  stream=PATH          a Unix socket that passt or a switch listens at; ,reconnect=SECONDS with QEMU 8.0 or later
  dgram=LOCAL,REMOTE   Unix sockets by path, or IPv4:PORT both
  mcast=GROUP:PORT     a multicast group on the loopback
On `user` the guest answers connections to its forwarded ports. It can open no connection and send no datagram, to this machine or another.
On the other networks it reaches whatever they reach: nothing is filtered.
Ports published beyond 127.0.0.1 answer every host, and the events have the client's address. Clients on 127.0.0.1 show as QEMU's own address.
The guest is then 198.18.0.15 on `user`, unless ip= gives another. If another network has a gateway, answers to other hosts go there and are
lost: let those hosts use that network.

Exit status:
   0  the guest ended in order, as asked by SIGINT, SIGTERM, `localregistry stop`, its launcher's end (--end-with-stdin) or itself;
      with --detach: it is ready
   1  another error before the boot, or in writing a file
   2  the command line is wrong
   3  the guest stopped with a fault: FATAL code=NAME
   4  the guest's kernel panicked
   5  the registry was not ready within --timeout
   6  QEMU died or was killed
   7  QEMU ended in order, the guest did not: it reset or powered off by itself
   8  QEMU is missing, too old, or none
   9  a disk is missing, or none of ours
  10  a port is taken
  11  a bridge, a tap or a socket of --net is missing, in use or something else
  12  the run's folder, a file or a folder that is to be written, cannot be
  13  a certificate, a key, a CA or a file that says who may pull cannot be used
  14  there is no kernel or no initramfs, or the kernel lacks an option that the guest needs
  15  no permission to make or to open a tap of --net, or to listen on a port below 1024
Where it is neither 0 nor 2, standard error says what happened and shows the console's last lines.")]
pub struct Args {
    /// The packed disks, served as one (they are only read: any number of machines may share them)
    #[arg(value_name = "DISK", required = true)]
    pub(crate) disk: Vec<PathBuf>,

    /// Longest time that the guest waits for its disks, in seconds [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=LONGEST_DISK_WAIT))]
    disk_wait: Option<u32>,

    /// Hold all that is sent against its digest: where a disk has other bytes the response is cut before its end
    #[arg(long)]
    verify: bool,

    /// The board
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    pub(crate) machine: Board,

    /// The kernel, as `localregistry kernel` gives it
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    pub(crate) flavor: Flavor,

    /// Boot this kernel (ELF or bzImage) instead of a flavor's
    #[arg(long, value_name = "FILE", requires = "beside_kernel", conflicts_with = "flavor")]
    pub(crate) kernel: Option<PathBuf>,

    /// The modules of that kernel, a folder lib/modules/RELEASE: the initramfs is made with them
    #[arg(long, value_name = "DIR", requires = "kernel", group = "beside_kernel")]
    pub(crate) modules: Option<PathBuf>,

    /// Boot with this initramfs instead of one made for the kernel
    #[arg(long, value_name = "FILE", group = "beside_kernel")]
    pub(crate) initramfs: Option<PathBuf>,

    /// Take this localregistry-init into the initramfs
    #[arg(long, value_name = "FILE", conflicts_with = "initramfs")]
    pub(crate) init: Option<PathBuf>,

    /// Memory of the machine in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(i64::from(LEAST_MEMORY)..=1 << 20))]
    memory: u32,

    /// Virtual processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: u32,

    /// What runs the guest's instructions
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    accel: Choice,

    /// A network to be on, one interface each (repeatable; see below)
    #[arg(long, value_name = "KIND[,…]")]
    net: Vec<Net>,

    /// Where this machine listens for the registry, with --net user: an IPv4 address and a port (0: a free one) [default: 127.0.0.1:0]
    #[arg(long, value_name = "[ADDR:]PORT")]
    publish: Option<Publish>,

    /// A further name or address that clients use: it goes into the certificate, and into the trust files (repeatable)
    #[arg(long, value_name = "NAME", value_parser = san)]
    pub(crate) san: Vec<String>,

    #[command(flatten)]
    pub(crate) certificates: Certificates,

    #[command(flatten)]
    pub(crate) access: Access,

    /// Where this machine listens for /healthz, /metrics and /ca.crt, over plain HTTP and for anybody, instead of beside the registry
    #[arg(long, value_name = "[ADDR:]PORT")]
    metrics: Option<Publish>,

    /// Config of the guest: a JSON file (proto/localregistry/v1/config.proto)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// One key of that config, nested keys joined by dots: tls.mode=OFF (repeatable; wins over --config)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Setting>,

    /// Write the files that nodes need to trust the registry to this folder, before it is said to be ready (see `trust`)
    #[arg(long, value_name = "DIR", conflicts_with = "print_command")]
    pub(crate) trust: Option<PathBuf>,

    /// With --trust: where nodes reach the registry, if not where this machine does; without a port, on the registry's. It goes into the
    /// certificate, too (repeatable)
    #[arg(long, value_name = "HOST[:PORT]", requires = "trust")]
    pub(crate) trust_host: Vec<Endpoint>,

    /// Keep every event of the guest in this file, one JSON line each
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,

    /// Keep the guest's console in this file
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,

    /// Print each request on standard error
    #[arg(long)]
    pub(crate) log: bool,

    /// Longest time from QEMU's start to ready, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=LONGEST_TIMEOUT))]
    timeout: u64,

    /// The QEMU to start [default: qemu-system-x86_64, for virt qemu-system-aarch64]
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,

    /// A further argument for QEMU, after this program's own (repeatable)
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu_arg: Vec<OsString>,

    #[command(flatten)]
    pub(crate) program: Program,
}

/// What programs want of a run.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "For programs")]
pub(crate) struct Program {
    /// Name of the run, for `ps` and `stop` [default: a random one]; with --run-dir these take the folder instead
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: Option<String>,

    /// Folder of the run, for it alone and removed at its end [default: $XDG_RUNTIME_DIR/localregistry/NAME]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,

    /// Keep that folder at the end
    #[arg(long)]
    pub(crate) keep: bool,

    /// After the line that says that it is ready, print each event, too: one JSON line each (needs --json)
    #[arg(long, conflicts_with_all = ["detach", "print_command"])]
    pub(crate) follow: bool,

    /// Write the JSON line here once it is ready; removed at the end
    #[arg(long, value_name = "FILE", conflicts_with = "print_command")]
    pub(crate) ready_file: Option<PathBuf>,

    /// Write the number of the process that runs it here, before the boot; removed at the end
    #[arg(long, value_name = "FILE", conflicts_with = "print_command")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Return once it is ready, and leave it running: `localregistry stop` ends it
    #[arg(long, conflicts_with = "print_command")]
    pub(crate) detach: bool,

    /// End in order, as by SIGTERM, when standard input ends: a pipe or socket that the launcher holds the other end of. So the run ends
    /// with its launcher, however that ends; with --detach, too
    #[arg(long, conflicts_with_all = ["end_with_fd", "print_command"])]
    end_with_stdin: bool,

    /// The same by the pipe or socket that is open as the descriptor N, 3 or more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..), conflicts_with = "print_command")]
    end_with_fd: Option<i32>,

    /// Boot nothing: write the files that QEMU needs into the run's folder, which stays, and print QEMU's command line
    #[arg(long)]
    pub(crate) print_command: bool,

    /// Set by --detach for the process that it leaves
    #[arg(long, hide = true)]
    pub(crate) supervised: bool,
}

impl Program {
    /// The descriptor that the run ends with.
    pub(crate) fn lifeline(&self) -> Option<Descriptor> {
        if self.end_with_stdin { Some(Descriptor::Stdin) } else { self.end_with_fd.map(Descriptor::Number) }
    }

    /// Which folder it is to have.
    pub(crate) fn folder(&self) -> Wanted<'_> {
        Wanted { name: self.name.as_deref(), folder: self.run_dir.as_deref() }
    }
}

/// The name of a run.
fn name(text: &str) -> Result<String, &'static str> {
    is_name(text)
        .then(|| text.to_owned())
        .ok_or("expected 1 to 64 letters, digits, dots, hyphens and underscores, a letter or digit first")
}

impl Args {
    /// The single settings, those of the flags last.
    pub(crate) fn settings(&self) -> Vec<Setting> {
        let wait = self.disk_wait.map(|seconds| Setting::new(&["disk", "waitSeconds"], seconds));
        let verify = self.verify.then(|| Setting::new(&["verify"], true));
        let own = wait.into_iter().chain(verify).chain(self.certificates.setting()).chain(self.access.settings());
        self.set.iter().cloned().chain(own).collect()
    }

    /// What flags together do not allow, in words.
    #[must_use]
    pub fn conflict(&self, report: &Report) -> Option<String> {
        let no_tls = self.certificates.mode() == Some(Tls::Off);
        let forwards = self.net.is_empty() || self.net.iter().any(Net::is_user);
        let virt_alone = self.machine == Board::Virt && self.kernel.is_none();
        let fixed = [
            (virt_alone, VIRT_WITHOUT_KERNEL),
            (no_tls && self.access.has_client_ca(), CLIENT_CA_WITHOUT_TLS),
            (
                self.publish.is_some() && !forwards,
                "the argument '--publish <[ADDR:]PORT>' needs '--net user': nothing else forwards",
            ),
            (
                self.metrics.is_some() && !forwards,
                "the argument '--metrics <[ADDR:]PORT>' needs '--net user': nothing else forwards; on other networks say the guest's own \
                 port, --set metricsPort=PORT",
            ),
            (self.program.follow && !report.json, "the argument '--follow' needs '--json'"),
        ];
        let fixed = fixed.into_iter().find_map(|(holds, words)| holds.then_some(words));
        let fixed = self.certificates.conflict().or(fixed).map(str::to_owned);
        fixed.or_else(|| net::together(&self.net).err().map(|error| format!("--net: {error}")))
    }

    /// What to boot, and how.
    pub(crate) fn options(
        &self,
        kernel: PathBuf,
        initramfs: PathBuf,
        config: GuestConfig,
        ca: Vec<(&'static str, PathBuf)>,
        report: Report,
    ) -> Options {
        Options {
            board: self.machine,
            disks: self.disk.clone(),
            kernel,
            initramfs,
            qemu: self.qemu.clone().unwrap_or_else(|| self.machine.program().into()),
            memory_mib: self.memory,
            cpus: self.cpus,
            accel: self.accel,
            nets: self.net.clone(),
            publish: self.publish.map_or(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), |publish| publish.0),
            metrics: self.metrics.map(|metrics| metrics.0),
            config,
            tls: self.certificates.provided(),
            secrets: self.access.secrets().into_iter().chain(ca).collect(),
            qemu_arguments: self.qemu_arg.clone(),
            events: self.events.clone(),
            console: self.console.clone(),
            timeout: Duration::from_secs(self.timeout),
            report,
        }
    }
}
