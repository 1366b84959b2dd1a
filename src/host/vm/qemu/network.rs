//! The networks of QEMU's command line, one back end and one device each.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddrV4};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use super::board::Board;
use super::escaped;
use super::version::{RECONNECT_MS, Version};
use crate::address::{Cidr, Mac};
use crate::host::vm::net::Datagrams;

/// One network interface as QEMU sees it.
#[derive(Debug, Clone)]
pub struct Network {
    /// What it is connected to.
    pub backend: Backend,
    /// Its address on the link.
    pub mac: Mac,
}

/// What an interface is connected to.
#[derive(Debug, Clone)]
pub enum Backend {
    /// QEMU's own network.
    User {
        /// The ports that are forwarded.
        forwards: Vec<Forward>,
        /// The guest's address, which the ports are forwarded to. None: the one that QEMU's DHCP gives.
        guest: Option<Cidr>,
        /// QEMU's own address. None: the one that it takes by itself.
        gateway: Option<IpAddr>,
    },
    /// An open tap that QEMU inherits.
    TapFd(RawFd),
    /// A tap that QEMU opens itself.
    Tap(String),
    /// A socket that QEMU inherits.
    SocketFd(RawFd),
    /// A Unix socket that QEMU connects to.
    Stream {
        /// Its path.
        path: PathBuf,
        /// Seconds between attempts.
        reconnect: Option<u32>,
        /// The QEMU that is told: the option's name has changed.
        version: Version,
    },
    /// Datagrams between two places.
    Dgram(Datagrams),
    /// Datagrams to a multicast group, on the loopback.
    Multicast(SocketAddrV4),
}

/// A TCP port of the host, and the guest's that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Where the host listens. Port 0: QEMU takes a free one.
    pub host: SocketAddrV4,
    /// Where the guest listens.
    pub guest_port: u16,
}

impl Network {
    /// Its arguments on `board`, as the network number `place`.
    pub(crate) fn arguments(&self, place: usize, board: Board) -> [OsString; 4] {
        let device = format!("{},netdev=net{place},mac={}", board.virtio("net"), self.mac);
        ["-netdev".into(), self.backend.argument(&format!("net{place}")), "-device".into(), device.into()]
    }
}

impl Backend {
    fn argument(&self, id: &str) -> OsString {
        match self {
            Self::User { forwards, guest, gateway } => user(id, forwards, *guest, *gateway).into(),
            // The files are for scripts that QEMU would run.
            Self::TapFd(fd) => format!("tap,id={id},fd={fd}").into(),
            Self::Tap(name) => format!("tap,id={id},ifname={name},script=no,downscript=no").into(),
            Self::SocketFd(fd) => format!("socket,id={id},fd={fd}").into(),
            Self::Stream { path, reconnect, version } => {
                let mut argument = with_path(format!("stream,id={id},server=off,addr.type=unix,addr.path="), path);
                argument.push(reconnect.map_or_else(String::new, |seconds| match *version >= RECONNECT_MS {
                    true => format!(",reconnect-ms={}", u64::from(seconds) * 1000),
                    false => format!(",reconnect={seconds}"),
                }));
                argument
            }
            Self::Dgram(Datagrams::Unix { local, remote }) => {
                let mut argument = with_path(format!("dgram,id={id},local.type=unix,local.path="), local);
                argument.push(with_path(",remote.type=unix,remote.path=".to_owned(), remote));
                argument
            }
            Self::Dgram(Datagrams::Udp { local, remote }) => {
                let end =
                    |name, end: &SocketAddrV4| format!(",{name}.type=inet,{name}.host={},{name}.port={}", end.ip(), end.port());
                format!("dgram,id={id}{}{}", end("local", local), end("remote", remote)).into()
            }
            // On the loopback: a test's frames are nobody else's.
            Self::Multicast(group) => format!("socket,id={id},mcast={group},localaddr=127.0.0.1").into(),
        }
    }
}

/// User networking: the forwarded ports in, nothing out.
fn user(id: &str, forwards: &[Forward], guest: Option<Cidr>, gateway: Option<IpAddr>) -> String {
    let mut argument = format!("user,id={id},restrict=on");
    argument.extend(guest.map(|guest| format!(",net={guest}")));
    argument.extend(gateway.map(|gateway| format!(",host={gateway}")));
    let to = guest.map_or_else(String::new, |guest| guest.address.to_string());
    argument.extend(forwards.iter().map(|forward| format!(",hostfwd=tcp:{}-{to}:{}", forward.host, forward.guest_port)));
    argument
}

fn with_path(prefix: String, path: &Path) -> OsString {
    let mut argument = OsString::from(prefix);
    argument.push(escaped(path.as_os_str()));
    argument
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_back_end_has_its_argument() {
        let version = |major, minor| Version { major, minor };
        let stream = |path: &str, reconnect, version| Backend::Stream { path: path.into(), reconnect, version };
        let forward = |host: &str, guest_port| Forward { host: host.parse().unwrap(), guest_port };
        let forwards = vec![forward("0.0.0.0:5001", 443), forward("127.0.0.1:0", 9090)];
        let user = |guest: Option<&str>, gateway: Option<&str>| Backend::User {
            forwards: forwards.clone(),
            guest: guest.map(|guest| guest.parse().unwrap()),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        };
        for (backend, argument) in [
            (user(None, None), "user,id=n,restrict=on,hostfwd=tcp:0.0.0.0:5001-:443,hostfwd=tcp:127.0.0.1:0-:9090"),
            (
                user(Some("192.168.7.9/24"), Some("192.168.7.1")),
                "user,id=n,restrict=on,net=192.168.7.9/24,host=192.168.7.1,hostfwd=tcp:0.0.0.0:5001-192.168.7.9:443,\
                 hostfwd=tcp:127.0.0.1:0-192.168.7.9:9090",
            ),
            (Backend::TapFd(9), "tap,id=n,fd=9"),
            (Backend::Tap("tap0".into()), "tap,id=n,ifname=tap0,script=no,downscript=no"),
            (Backend::SocketFd(7), "socket,id=n,fd=7"),
            (stream("/a,b", None, version(7, 2)), "stream,id=n,server=off,addr.type=unix,addr.path=/a,,b"),
            (stream("/s", Some(2), version(9, 1)), "stream,id=n,server=off,addr.type=unix,addr.path=/s,reconnect=2"),
            (stream("/s", Some(2), version(9, 2)), "stream,id=n,server=off,addr.type=unix,addr.path=/s,reconnect-ms=2000"),
            (
                Backend::Dgram(Datagrams::Unix { local: "/a,b".into(), remote: "/c".into() }),
                "dgram,id=n,local.type=unix,local.path=/a,,b,remote.type=unix,remote.path=/c",
            ),
            (
                Backend::Dgram(Datagrams::Udp { local: "127.0.0.1:1".parse().unwrap(), remote: "127.0.0.2:3".parse().unwrap() }),
                "dgram,id=n,local.type=inet,local.host=127.0.0.1,local.port=1,remote.type=inet,remote.host=127.0.0.2,remote.port=3",
            ),
            (Backend::Multicast("239.1.2.3:4000".parse().unwrap()), "socket,id=n,mcast=239.1.2.3:4000,localaddr=127.0.0.1"),
        ] {
            assert_eq!(backend.argument("n"), argument);
        }
    }
}
