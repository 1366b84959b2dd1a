//! The arguments of `localregistry run`, and the [`Builder`] that they describe.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::publish::Publish;
use crate::address::san;
use crate::config::guest_config::{GuestConfig, Setting};
use crate::host::boot::kernel::Flavor;
use crate::host::exit;
use crate::host::nodes::access::{Access, CLIENT_CA_WITHOUT_TLS};
use crate::host::nodes::ca::{Certificates, Tls};
use crate::host::nodes::trust::Endpoint;
use crate::host::runs::dir::{RunDirOptions, is_name};
use crate::host::support::parent_watch::Descriptor;
use crate::host::support::report::Report;
use crate::host::vm::accel::AccelChoice;
use crate::host::vm::cpus::Cpus;
use crate::host::vm::launch::{Appliance, Builder, MIN_MEMORY};
use crate::host::vm::net::{self, Net};
use crate::host::vm::qemu::Board;

/// Longest config file in bytes, as in the guest.
pub(crate) const CONFIG_MAX: u64 = 1 << 20;
/// Longest `--disk-wait` in seconds, as in the guest's config.
const DISK_WAIT_MAX: i64 = 3600;
/// Longest `--timeout` in seconds: a day.
const TIMEOUT_MAX: u64 = 24 * 60 * 60;

const VIRT_WITHOUT_KERNEL: &str =
    "the argument '--machine virt' needs '--flavor own' or '--kernel <FILE>': the others are for 64-bit x86";

/// The command line of `localregistry run`.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("\
Examples:
  localregistry run images.erofs
      Boots the disk and prints where the registry is and how to trust it; Ctrl-C ends it
  localregistry run base.erofs build.erofs
      Two disks as one registry; the boot fails if they contradict each other
  localregistry run images.erofs --publish 0.0.0.0:5000 --san registry.test --san 10.1.0.82
      On a fixed port of all addresses, for other hosts, too, with further names
  localregistry run images.erofs --net bridge=br0,ip=10.1.0.82/16 --san registry.test
      As one more machine on a bridge
  localregistry run images.erofs --json --quiet --follow --trust trust/
      For programs: the trust files in a folder, one JSON line when it is ready, then one for each event
  localregistry run images.erofs --ca-dir ~/.local/share/localregistry-ca
      With a CA that later runs share, so that node images can be built with it
  localregistry run images.erofs --detach --name one; localregistry stop one
      In the background
  localregistry run images.erofs --machine microvm
      On a smaller machine, which boots faster; most of all with --flavor own, which image/kernel builds
  localregistry run images.erofs --kernel vmlinuz --modules lib/modules/6.1.0-30-amd64
      With any other kernel
  localregistry run images.erofs --tls off --set trace=true --console console.txt
      Plain HTTP, each boot step with its time on the console, the console in a file

Networks (--net KIND[,mac=MAC][,ip=ADDRESS/PREFIX][,gw=ADDRESS][,mtu=BYTES]); without ip= with DHCP:
  user                 forwarded ports (--publish, --metrics, listeners) in, nothing out; the default. passt carries it if that is
                       installed, otherwise QEMU; ,backend=passt or ,backend=slirp takes one of them
  tap=NAME             an existing tap
  bridge=NAME          a bridge, through a tap that is made for QEMU and gone with it (needs CAP_NET_ADMIN)
  socket-fd=N          an open socket that this program was started with
  stream=PATH          a Unix socket that passt or a switch listens on; ,reconnect=SECONDS with QEMU 8.0 or later
  dgram=LOCAL,REMOTE   two paths of Unix sockets, or two IPv4:PORT
  mcast=GROUP:PORT     a multicast group on the loopback
On `user` the guest answers connections to its forwarded ports. It cannot open connections or send datagrams, to this machine or to others.
On the other networks nothing is filtered.
Ports published beyond 127.0.0.1 answer every host, and events have the client's address. Clients on 127.0.0.1 appear with the gateway's.
The guest is then 198.18.0.15 on `user`, unless ip= sets another address. If another network has a gateway, answers to other hosts go there
and are lost: let those hosts use that network.

Exit status:
{}Unless it is 0 or 2, standard error says what happened and shows the last lines of the console.", exit::help()))]
pub struct RunArgs {
    /// The packed disks, served as one registry (they are opened read-only: machines may share them)
    #[arg(value_name = "DISK", required = true)]
    pub(crate) disk: Vec<PathBuf>,

    /// Longest time that the guest waits for its disks, in seconds [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=DISK_WAIT_MAX))]
    disk_wait: Option<u32>,

    /// Verify the digest of everything that is sent: a response with wrong bytes is cut before its end
    #[arg(long)]
    verify: bool,

    /// The board
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    pub(crate) machine: Board,

    /// The kernel, one of `localregistry kernel`
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    pub(crate) flavor: Flavor,

    /// Boot this kernel (ELF or bzImage) instead of that of a flavor
    #[arg(long, value_name = "FILE", requires = "beside_kernel", conflicts_with = "flavor")]
    pub(crate) kernel: Option<PathBuf>,

    /// The modules of that kernel, a folder lib/modules/RELEASE; an initramfs is made with them
    #[arg(long, value_name = "DIR", requires = "kernel", group = "beside_kernel")]
    pub(crate) modules: Option<PathBuf>,

    /// Boot with this initramfs instead of one made for the kernel
    #[arg(long, value_name = "FILE", group = "beside_kernel")]
    pub(crate) initramfs: Option<PathBuf>,

    /// Put this localregistry-init into the initramfs
    #[arg(long, value_name = "FILE", conflicts_with = "initramfs")]
    pub(crate) init: Option<PathBuf>,

    /// Memory of the machine in MiB: at least 96, with --flavor full 112, with --flavor own 48
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(i64::from(MIN_MEMORY)..=1 << 20))]
    memory: u32,

    /// Number of virtual processors, or auto: one under TCG, under KVM as many as there are for this program, at most four and one for each 64 MiB
    #[arg(long, value_name = "N", default_value_t)]
    cpus: Cpus,

    /// Boot even if a frozen machine could be used, and save none (see `freeze`)
    #[arg(long)]
    cold: bool,

    /// The accelerator
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    accel: AccelChoice,

    /// A network, one interface each (repeatable; see below)
    #[arg(long, value_name = "KIND[,…]")]
    net: Vec<Net>,

    /// Where this machine listens for the registry, with --net user: an IPv4 address and a port (0: a free one) [default: 127.0.0.1:0]
    #[arg(long, value_name = "[ADDR:]PORT")]
    publish: Option<Publish>,

    /// A further name or address that clients use, for the certificate and the trust files (repeatable)
    #[arg(long, value_name = "NAME", value_parser = san)]
    pub(crate) san: Vec<String>,

    #[command(flatten)]
    pub(crate) certificates: Certificates,

    #[command(flatten)]
    pub(crate) access: Access,

    /// Where this machine listens for /healthz, /metrics and /ca.crt, over plain HTTP and without access control, instead of on the
    /// registry's port
    #[arg(long, value_name = "[ADDR:]PORT")]
    metrics: Option<Publish>,

    /// Config of the guest: a JSON file (proto/localregistry/v1/config.proto)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// One key of that config, nested keys joined by dots: tls.mode=OFF (repeatable; overrides --config)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Setting>,

    /// Write the files that nodes need to trust the registry to this folder, before it is reported as ready (see `trust`)
    #[arg(long, value_name = "DIR", conflicts_with = "print_command")]
    pub(crate) trust: Option<PathBuf>,

    /// With --trust: where nodes reach the registry, if not where this machine does; the default port is the registry's. It is added to
    /// the certificate, too (repeatable)
    #[arg(long, value_name = "HOST[:PORT]", requires = "trust")]
    pub(crate) trust_host: Vec<Endpoint>,

    /// Misbehave as this plan says, for tests of clients: proto3 JSON or prototext (docs/faults.md). `localregistry faults` changes it
    #[arg(long, value_name = "FILE")]
    pub(crate) faults: Option<PathBuf>,

    /// Write every event of the guest to this file, one JSON line each
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,

    /// Write the guest's console to this file
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,

    /// Print each request on standard error
    #[arg(long)]
    pub(crate) log: bool,

    /// Time limit from QEMU's start to ready, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=TIMEOUT_MAX))]
    timeout: u64,

    /// The QEMU to start [default: qemu-system-x86_64, for virt qemu-system-aarch64]
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,

    /// A further argument for QEMU, after this program's own (repeatable)
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu_arg: Vec<OsString>,

    #[command(flatten)]
    pub(crate) program: ProgramArgs,
}

/// Options for programs that start a run.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "For programs")]
pub(crate) struct ProgramArgs {
    /// Name of the run, for `ps` and `stop` [default: a random one]
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: Option<String>,

    /// Folder of the run, new or empty, removed at its end [default: $XDG_RUNTIME_DIR/localregistry/NAME]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,

    /// Keep that folder at the end
    #[arg(long)]
    pub(crate) keep: bool,

    /// After the JSON line that reports it as ready, print each event as a JSON line (needs --json)
    #[arg(long, conflicts_with_all = ["detach", "print_command"])]
    pub(crate) follow: bool,

    /// Write the JSON line to this file once it is ready; removed at the end
    #[arg(long, value_name = "FILE", conflicts_with = "print_command")]
    pub(crate) ready_file: Option<PathBuf>,

    /// Write the process ID of the run to this file, before the boot; removed at the end
    #[arg(long, value_name = "FILE", conflicts_with = "print_command")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Return once it is ready, and leave it running in the background: `localregistry stop` ends it
    #[arg(long, conflicts_with = "print_command")]
    pub(crate) detach: bool,

    /// Shut down, as on SIGTERM, when standard input ends: a pipe or socket whose other end the launcher holds. So the run ends with its
    /// launcher, however that ends, also with --detach
    #[arg(long, conflicts_with_all = ["end_with_fd", "print_command"])]
    end_with_stdin: bool,

    /// The same with the pipe or socket that is open as the descriptor N, 3 or more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..), conflicts_with = "print_command")]
    end_with_fd: Option<i32>,

    /// Do not boot: write the files that QEMU needs to the run's folder, which stays, and print QEMU's command line
    #[arg(long)]
    pub(crate) print_command: bool,

    /// Set by --detach for the background process
    #[arg(long, hide = true)]
    pub(crate) supervised: bool,
}

impl ProgramArgs {
    /// The descriptor whose end ends the run.
    pub(crate) fn watched_descriptor(&self) -> Option<Descriptor> {
        if self.end_with_stdin { Some(Descriptor::Stdin) } else { self.end_with_fd.map(Descriptor::Number) }
    }

    pub(crate) fn run_dir(&self) -> RunDirOptions<'_> {
        RunDirOptions { name: self.name.as_deref(), folder: self.run_dir.as_deref() }
    }
}

/// Parses the name of a run.
fn name(text: &str) -> Result<String, &'static str> {
    is_name(text)
        .then(|| text.to_owned())
        .ok_or("expected 1 to 64 letters, digits, dots, hyphens and underscores, a letter or digit first")
}

impl RunArgs {
    /// Returns a message if options contradict each other.
    #[must_use]
    pub fn conflict(&self, report: &Report) -> Option<String> {
        let no_tls = self.certificates.mode() == Some(Tls::Off);
        let forwards = self.net.is_empty() || self.net.iter().any(Net::is_user);
        let virt_alone = self.machine == Board::Virt && self.kernel.is_none() && self.flavor != Flavor::Own;
        let fixed = [
            (virt_alone, VIRT_WITHOUT_KERNEL),
            (no_tls && self.access.has_client_ca(), CLIENT_CA_WITHOUT_TLS),
            (
                self.publish.is_some() && !forwards,
                "the argument '--publish <[ADDR:]PORT>' needs '--net user': no other network forwards ports",
            ),
            (
                self.metrics.is_some() && !forwards,
                "the argument '--metrics <[ADDR:]PORT>' needs '--net user': no other network forwards ports; for those, \
                 --set metricsPort=PORT sets the guest's own port",
            ),
            (self.program.follow && !report.json, "the argument '--follow' needs '--json'"),
        ];
        let fixed = fixed.into_iter().find_map(|(holds, words)| holds.then_some(words));
        let fixed = self.certificates.conflict().or(fixed).map(str::to_owned);
        fixed.or_else(|| net::check_conflicts(&self.net).err().map(|error| format!("--net: {error}")))
    }

    /// The builder for these options. `config` is the content of `--config`.
    pub(crate) fn builder(&self, config: GuestConfig, report: &Report) -> Builder {
        let mut disks = self.disk.iter();
        // clap requires a disk.
        let mut builder = Appliance::builder(disks.next().cloned().unwrap_or_default());
        builder = disks.fold(builder, Builder::disk);
        builder = builder
            .config(config)
            .board(self.machine)
            .memory_mib(self.memory)
            .cpus(self.cpus)
            .accel(self.accel)
            .access(self.access.clone())
            .timeout(Duration::from_secs(self.timeout));
        builder = match (&self.kernel, &self.modules, &self.initramfs) {
            (Some(kernel), Some(modules), _) => builder.kernel_with_modules(kernel, modules),
            (Some(kernel), None, Some(initramfs)) => builder.kernel(kernel, initramfs),
            (_, _, Some(initramfs)) => builder.flavor(self.flavor).initramfs(initramfs),
            // clap requires --modules or --initramfs with --kernel.
            (_, _, None) => builder.flavor(self.flavor),
        };
        builder = self.init.iter().fold(builder, Builder::init);
        builder = self.qemu.iter().fold(builder, Builder::qemu);
        builder = self.qemu_arg.iter().fold(builder, Builder::qemu_argument);
        builder = self.net.iter().cloned().fold(builder, Builder::net);
        builder = self.publish.iter().fold(builder, |builder, publish| builder.publish(publish.0));
        builder = self.metrics.iter().fold(builder, |builder, metrics| builder.metrics(metrics.0));
        builder = self.events.iter().fold(builder, Builder::events_file);
        builder = self.console.iter().fold(builder, Builder::console_file);
        // Options of their own override --set.
        builder = self.set.iter().cloned().fold(builder, Builder::set);
        builder = self.disk_wait.iter().fold(builder, |builder, wait| builder.disk_wait(Duration::from_secs((*wait).into())));
        if self.verify {
            builder = builder.verify();
        }
        if self.cold {
            builder = builder.cold();
        }
        builder = self.tls(builder);
        let hosts = self.trust_host.iter().map(|endpoint| endpoint.host.name().trim_matches(['[', ']']));
        builder = self.san.iter().map(String::as_str).chain(hosts).fold(builder, Builder::name);
        if report.quiet { builder } else { builder.verbose() }
    }

    fn tls(&self, builder: Builder) -> Builder {
        if let Some((certificate, key)) = self.certificates.ca_files() {
            return builder.ca(certificate, key);
        }
        if let Some(dir) = self.certificates.ca_dir() {
            return builder.ca_dir(dir);
        }
        match (self.certificates.mode(), self.certificates.provided()) {
            (Some(Tls::Off), _) => builder.plain_http(),
            (Some(Tls::Provided), Some((chain, key))) => builder.certificate(chain, key),
            (Some(Tls::Generate), _) => builder.generated_certificate(),
            _ => builder,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    #[test]
    fn config_has_the_options() {
        let report = Report { json: false, quiet: true };
        for (options, expected) in [
            ("", "{}"),
            ("--tls generate", r#"{"tls":{"mode":"GENERATE"}}"#),
            ("--tls off", r#"{"tls":{"mode":"OFF"}}"#),
            ("--cert c --key k", r#"{"tls":{"mode":"PROVIDED"}}"#),
            ("--ca c --key k", r#"{"tls":{"mode":"SIGN"}}"#),
            ("--ca c --key k --tls generate", r#"{"tls":{"mode":"SIGN"}}"#),
            ("--ca-dir d", r#"{"tls":{"mode":"SIGN"}}"#),
            ("--tls off --set tls.mode=GENERATE", r#"{"tls":{"mode":"OFF"}}"#),
            ("--disk-wait 7 --verify", r#"{"disk":{"waitSeconds":7},"verify":true}"#),
            ("--san a.test --trust t --trust-host [fd00::1]:5000", r#"{"names":["a.test","fd00::1"]}"#),
        ] {
            let line = Line::try_parse_from(["run", "disk"].into_iter().chain(options.split_whitespace())).unwrap();
            assert_eq!(line.args.conflict(&report), None, "{options}");
            let builder = line.args.builder(GuestConfig::default(), &report);
            assert_eq!(builder.guest_config().unwrap().to_json(), expected, "{options}");
        }
    }
}
