//! The arguments of `run`. Words enter, options of [`super::super::launch`] leave.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::host::accel::Choice;
use crate::host::access::{Access, CERTIFICATE_UNUSED, CLIENT_CA_WITHOUT_TLS};
use crate::host::config::{GuestConfig, Setting};
use crate::host::kernel::Flavor;
use crate::host::launch::Options;
use crate::host::qemu::Board;
use crate::host::report::Report;

/// Longest config file, in bytes: what the guest takes too.
pub(super) const LARGEST_CONFIG: u64 = 1 << 20;
/// Least memory in MiB: with 64 the stock kernel dies without a word.
const LEAST_MEMORY: i64 = 80;
/// Longest time to wait for `ready`, in seconds: a day.
const LONGEST_TIMEOUT: u64 = 24 * 60 * 60;

/// Why `--machine virt` alone is not enough.
const VIRT_WITHOUT_KERNEL: &str =
    "the argument '--machine virt' needs '--kernel <FILE>' and '--initramfs <FILE>': there is no flavor for 64-bit ARM";

/// The command line of `localregistry run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  localregistry run images.erofs
      Boots the disk, writes ./ca.crt and prints where the registry is; Ctrl-C ends it
  localregistry run images.erofs --publish 0.0.0.0:5000 --san registry.test --san 10.1.0.82
      On a fixed port of every address, under further names
  localregistry run images.erofs --json --quiet --ca /tmp/t1/ca.crt --events /tmp/t1/events.jsonl
      For programs: one JSON line when ready, every event in a file
  localregistry run images.erofs --flavor own --machine microvm
      On our own kernel, built by image/kernel, and the least machine: the fastest boot
  localregistry run images.erofs --kernel /boot/vmlinuz-6.1.0-30-amd64 --modules /lib/modules/6.1.0-30-amd64
      On any other kernel
  localregistry run images.erofs --tls off --set trace=true --console console.txt
      Plain HTTP, each boot step with its time on the console, the console kept

Exit status:
  0  the guest ended in order, as asked by SIGINT, SIGTERM or itself
  1  an error before the boot (a file, a port, no QEMU), or in writing a file
  2  the command line is wrong
  3  the guest stopped with a fault: FATAL code=NAME
  4  the guest's kernel panicked
  5  the registry was not ready within --timeout
  6  QEMU died or was killed
  7  QEMU ended in order, the guest did not: it reset or powered off by itself
Where it is neither 0 nor 2, standard error says what happened and shows the console's last lines.")]
pub struct Args {
    /// The packed disk (it is only read: any number of machines may share it)
    #[arg(value_name = "DISK")]
    pub(super) disk: PathBuf,

    /// The board
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    pub(super) machine: Board,

    /// The kernel, as `localregistry kernel` gives it
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    pub(super) flavor: Flavor,

    /// Boot this kernel (ELF or bzImage) instead of a flavor's
    #[arg(long, value_name = "FILE", requires = "beside_kernel", conflicts_with = "flavor")]
    pub(super) kernel: Option<PathBuf>,

    /// The modules of that kernel, a folder lib/modules/RELEASE: the initramfs is made with them
    #[arg(long, value_name = "DIR", requires = "kernel", group = "beside_kernel")]
    pub(super) modules: Option<PathBuf>,

    /// Boot with this initramfs instead of one made for the kernel
    #[arg(long, value_name = "FILE", group = "beside_kernel")]
    pub(super) initramfs: Option<PathBuf>,

    /// Take this localregistry-init into the initramfs
    #[arg(long, value_name = "FILE", conflicts_with = "initramfs")]
    pub(super) init: Option<PathBuf>,

    /// Memory of the machine in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(LEAST_MEMORY..=1 << 20))]
    memory: u32,

    /// Virtual processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: u32,

    /// What runs the guest's instructions
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    accel: Choice,

    /// Where this machine listens for the registry: an IPv4 address and a port (0: a free one)
    #[arg(long, value_name = "[ADDR:]PORT", default_value = "127.0.0.1:0")]
    publish: Publish,

    /// A further name or address that clients use: it goes into the certificate (repeatable)
    #[arg(long, value_name = "NAME")]
    pub(super) san: Vec<String>,

    /// Where certificates come from (default: generate, unless the config says otherwise)
    #[arg(long, value_name = "MODE", value_enum)]
    tls: Option<Tls>,

    /// Certificate chain, PEM, leaf first, with --tls provided
    #[arg(long, value_name = "FILE", required_if_eq("tls", "provided"), requires = "key")]
    cert: Option<PathBuf>,

    /// Private key, PEM, with --tls provided
    #[arg(long, value_name = "FILE", required_if_eq("tls", "provided"), requires = "cert")]
    key: Option<PathBuf>,

    #[command(flatten)]
    pub(super) access: Access,

    /// Where this machine listens for /healthz, /metrics and /ca.crt, over plain HTTP and for anybody, instead of beside the registry
    #[arg(long, value_name = "[ADDR:]PORT")]
    metrics: Option<Publish>,

    /// Config of the guest: a JSON file (proto/localregistry/v1/config.proto)
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// One key of that config, nested keys joined by dots: tls.mode=OFF (repeatable; wins over --config)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Setting>,

    /// Write the CA certificate here once the registry is ready
    #[arg(long, value_name = "FILE", default_value = "ca.crt")]
    pub(super) ca: PathBuf,

    /// Keep every event of the guest in this file, one JSON line each
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,

    /// Keep the guest's console in this file
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,

    /// Print each request on standard error
    #[arg(long)]
    pub(super) log: bool,

    /// Longest time from QEMU's start to ready, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=LONGEST_TIMEOUT))]
    timeout: u64,

    /// The QEMU to start [default: qemu-system-x86_64, for virt qemu-system-aarch64]
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,
}

/// How the registry is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Tls {
    /// A CA and a certificate are made at boot
    Generate,
    /// The certificate and its key are given
    Provided,
    /// No TLS: plain HTTP
    Off,
}

impl Args {
    /// The single settings, those of the flags last.
    pub(super) fn settings(&self) -> Vec<Setting> {
        // A certificate that is given is meant to be served with.
        let tls = self.tls.or(self.cert.is_some().then_some(Tls::Provided));
        let mode = tls.map(|tls| match tls {
            Tls::Generate => "GENERATE",
            Tls::Provided => "PROVIDED",
            Tls::Off => "OFF",
        });
        let flag = mode.map(|mode| Setting::new(&["tls", "mode"], mode));
        self.set.iter().cloned().chain(flag).chain(self.access.settings()).collect()
    }

    /// What two flags together do not allow, in words.
    #[must_use]
    pub fn conflict(&self) -> Option<&'static str> {
        if self.machine == Board::Virt && (self.kernel.is_none() || self.initramfs.is_none()) {
            return Some(VIRT_WITHOUT_KERNEL);
        }
        let generated_or_off = matches!(self.tls, Some(Tls::Generate | Tls::Off));
        if generated_or_off && self.cert.is_some() {
            return Some(CERTIFICATE_UNUSED);
        }
        (self.tls == Some(Tls::Off) && self.access.has_client_ca()).then_some(CLIENT_CA_WITHOUT_TLS)
    }

    /// What to boot, and how.
    pub(super) fn options(&self, kernel: PathBuf, initramfs: PathBuf, config: GuestConfig, report: Report) -> Options {
        Options {
            board: self.machine,
            disk: self.disk.clone(),
            kernel,
            initramfs,
            qemu: self.qemu.clone().unwrap_or_else(|| self.machine.program().into()),
            memory_mib: self.memory,
            cpus: self.cpus,
            accel: self.accel,
            publish: self.publish.0,
            metrics: self.metrics.map(|metrics| metrics.0),
            config,
            tls: self.cert.clone().zip(self.key.clone()),
            secrets: self.access.secrets(),
            events: self.events.clone(),
            console: self.console.clone(),
            timeout: Duration::from_secs(self.timeout),
            report,
        }
    }
}

/// Where the host listens: `[ADDR:]PORT`, without an address 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish(SocketAddrV4);

/// Why a text is no place to listen at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The address is none.
    #[error("ADDR is an IPv4 address of this machine, such as 127.0.0.1 or 0.0.0.0")]
    Address,
    /// QEMU's user network cannot.
    #[error("QEMU's user network forwards from IPv4 addresses only: give one, such as 127.0.0.1")]
    Version6,
    /// The port is none.
    #[error("PORT is a number from 0 to 65535")]
    Port,
}

impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, PublishError> {
        let (address, port) = match text.rsplit_once(':') {
            Some((address, port)) => (Some(address), port),
            None => (None, text),
        };
        let address = match address {
            None => Ipv4Addr::LOCALHOST,
            Some(address) => match address.trim_start_matches('[').trim_end_matches(']').parse() {
                Ok(IpAddr::V4(address)) => address,
                Ok(IpAddr::V6(_)) => return Err(PublishError::Version6),
                Err(_) => return Err(PublishError::Address),
            },
        };
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits).ok_or(PublishError::Port)?;
        Ok(Self(SocketAddrV4::new(address, port)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_to_listen_is_read() {
        for (text, place) in [
            ("0", "127.0.0.1:0"),
            ("5000", "127.0.0.1:5000"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("0.0.0.0:65535", "0.0.0.0:65535"),
            ("10.1.0.82:443", "10.1.0.82:443"),
        ] {
            assert_eq!(text.parse::<Publish>().unwrap().0.to_string(), place);
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for (text, error) in [
            ("", PublishError::Port),
            ("+5", PublishError::Port),
            ("65536", PublishError::Port),
            ("-1", PublishError::Port),
            ("127.0.0.1", PublishError::Port),
            ("127.0.0.1:", PublishError::Port),
            (":5000", PublishError::Address),
            ("localhost:5000", PublishError::Address),
            ("127.0.0.1:5000:5000", PublishError::Address),
            ("[::1]:5000", PublishError::Version6),
            (":::5000", PublishError::Version6),
        ] {
            assert_eq!(text.parse::<Publish>(), Err(error), "{text:?}");
        }
    }
}
