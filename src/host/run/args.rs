//! The arguments of `run`. Words enter, options of [`super::super::launch`] leave.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::host::accel::Choice;
use crate::host::access::{Access, CLIENT_CA_WITHOUT_TLS};
use crate::host::ca::{Certificates, Tls};
use crate::host::config::{GuestConfig, Setting};
use crate::host::launch::Options;
use crate::host::qemu;
use crate::host::report::Report;
use crate::host::trust::Endpoint;

/// Longest config file, in bytes: what the guest takes too.
pub(super) const LARGEST_CONFIG: u64 = 1 << 20;
/// Least memory in MiB: with 64 the stock kernel dies without a word.
const LEAST_MEMORY: i64 = 80;
/// Longest time to wait for `ready`, in seconds: a day.
const LONGEST_TIMEOUT: u64 = 24 * 60 * 60;

/// The command line of `localregistry run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  localregistry run images.erofs
      Boots the disk, writes ./ca.crt and prints where the registry is; Ctrl-C ends it
  localregistry run images.erofs --publish 0.0.0.0:5000 --san registry.test --san 10.1.0.82
      On a fixed port of every address, under further names
  localregistry run images.erofs --json --quiet --trust /tmp/t1/trust --events /tmp/t1/events.jsonl
      For programs: one JSON line when ready, everything that nodes need in a folder, every event in a file
  localregistry run images.erofs --ca-dir ~/.local/share/localregistry-ca
      Under a CA that later runs have too: node images can be built with it in them
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

    /// Boot this kernel (ELF or bzImage) instead of the cached or downloaded one
    #[arg(long, value_name = "FILE", requires = "initramfs")]
    pub(super) kernel: Option<PathBuf>,

    /// Boot with this initramfs instead of one made for the kernel
    #[arg(long, value_name = "FILE")]
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

    #[command(flatten)]
    pub(super) certificates: Certificates,

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

    /// Write the files that nodes need to trust the registry to this folder, before it is said to be ready (see `trust`)
    #[arg(long, value_name = "DIR")]
    pub(super) trust: Option<PathBuf>,

    /// With --trust: where nodes reach the registry, if not where this machine does; without a port, on the registry's (repeatable)
    #[arg(long, value_name = "HOST[:PORT]", requires = "trust")]
    pub(super) trust_host: Vec<Endpoint>,

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

    /// The QEMU to start
    #[arg(long, value_name = "PROGRAM", default_value = qemu::PROGRAM)]
    qemu: PathBuf,
}

impl Args {
    /// The single settings, those of the flags last.
    pub(super) fn settings(&self) -> Vec<Setting> {
        self.set.iter().cloned().chain(self.certificates.setting()).chain(self.access.settings()).collect()
    }

    /// What two flags together do not allow, in words.
    #[must_use]
    pub fn conflict(&self) -> Option<&'static str> {
        let no_tls = self.certificates.mode() == Some(Tls::Off) && self.access.has_client_ca();
        self.certificates.conflict().or(no_tls.then_some(CLIENT_CA_WITHOUT_TLS))
    }

    /// What to boot, and how.
    pub(super) fn options(
        &self,
        kernel: PathBuf,
        initramfs: PathBuf,
        config: GuestConfig,
        ca: Vec<(&'static str, PathBuf)>,
        report: Report,
    ) -> Options {
        Options {
            disk: self.disk.clone(),
            kernel,
            initramfs,
            qemu: self.qemu.clone(),
            memory_mib: self.memory,
            cpus: self.cpus,
            accel: self.accel,
            publish: self.publish.0,
            metrics: self.metrics.map(|metrics| metrics.0),
            config,
            tls: self.certificates.provided(),
            secrets: self.access.secrets().into_iter().chain(ca).collect(),
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
