//! The network arguments of QEMU's command line: one backend and one device for each interface.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddrV4};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use super::escaped;
use super::version::{OLDEST, RECONNECT, RECONNECT_MS, STREAM, Version, VersionError};
use crate::address::{Cidr, Mac};
use crate::host::boot::board::Board;
use crate::host::vm::net::Datagrams;

/// One network interface of the machine.
#[derive(Debug, Clone)]
pub struct Network {
    /// What QEMU connects it to.
    pub backend: Backend,
    /// Its MAC address.
    pub mac: Mac,
}

/// What QEMU connects an interface to.
#[derive(Debug, Clone)]
pub enum Backend {
    /// QEMU's user network.
    User {
        /// The forwarded ports.
        forwards: Vec<Forward>,
        /// The guest's address, which ports are forwarded to. `None`: the one from QEMU's DHCP.
        guest: Option<Cidr>,
        /// QEMU's own address. `None`: QEMU's default.
        gateway: Option<IpAddr>,
    },
    /// A tap that QEMU inherits.
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
        /// The version of QEMU: the name of the reconnect option has changed.
        version: Version,
    },
    /// Datagrams between two sockets.
    Dgram(Datagrams),
    /// Datagrams to a multicast group on the loopback.
    Multicast(SocketAddrV4),
}

/// A TCP port of the host that is forwarded to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The host's address. Port 0: QEMU takes a free one.
    pub host: SocketAddrV4,
    /// The guest's port.
    pub guest_port: u16,
}

impl Network {
    /// Its arguments on `board`, as the network number `index`.
    pub(crate) fn arguments(&self, index: usize, board: Board) -> [OsString; 4] {
        let device = format!("{},netdev=net{index},mac={}", board.virtio("net"), self.mac);
        ["-netdev".into(), self.backend.argument(&format!("net{index}")), "-device".into(), device.into()]
    }
}

impl Backend {
    fn argument(&self, id: &str) -> OsString {
        match self {
            Self::User { forwards, guest, gateway } => user(id, forwards, *guest, *gateway).into(),
            Self::TapFd(fd) => format!("tap,id={id},fd={fd}").into(),
            // Without the scripts that QEMU would run.
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
            // On the loopback, so that the frames stay on this machine.
            Self::Multicast(group) => format!("socket,id={id},mcast={group},localaddr=127.0.0.1").into(),
        }
    }
}

/// User networking, restricted: forwarded ports in, nothing out.
fn user(id: &str, forwards: &[Forward], guest: Option<Cidr>, gateway: Option<IpAddr>) -> String {
    let mut argument = format!("user,id={id},restrict=on");
    argument.extend(guest.map(|guest| format!(",net={guest}")));
    argument.extend(gateway.map(|gateway| format!(",host={gateway}")));
    let to = guest.map_or_else(String::new, |guest| guest.address.to_string());
    argument.extend(forwards.iter().map(|forward| format!(",hostfwd=tcp:{}-{to}:{}", forward.host, forward.guest_port)));
    argument
}

/// Checks that QEMU in this `version` can boot an appliance with `networks`.
///
/// # Errors
/// Fails for the first thing that needs a newer version.
pub(crate) fn check_version(version: Version, networks: &[Network]) -> Result<(), VersionError> {
    version.require("this program", OLDEST)?;
    networks.iter().try_for_each(|network| match &network.backend {
        Backend::Stream { reconnect: Some(_), .. } => version.require("stream=…,reconnect=…", RECONNECT),
        Backend::Stream { .. } => version.require("the network stream=…", STREAM),
        Backend::Dgram(_) => version.require("the network dgram=…", STREAM),
        _ => Ok(()),
    })
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
    fn each_backend_has_its_argument() {
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

    #[test]
    fn networks_that_need_a_later_qemu_are_rejected() {
        let on = |backend| [Network { backend, mac: Mac([2, 0, 0, 0, 0, 1]) }];
        let stream = |reconnect| on(Backend::Stream { path: "/s".into(), reconnect, version: OLDEST });
        let dgram = on(Backend::Dgram(Datagrams::Unix { local: "/a".into(), remote: "/b".into() }));
        let version = |text: &str| Version::parse(&format!("QEMU emulator version {text}")).unwrap();
        let lacks = |version: Version, networks: &[Network]| check_version(version, networks).map_err(|lacks| lacks.to_string());
        assert_eq!(lacks(version("7.0.0"), &[]).unwrap_err(), "this program needs QEMU 7.1 or later, and this is 7.0");
        assert_eq!(lacks(version("7.1.0"), &[]), Ok(()));
        let said = lacks(version("7.1.0"), &stream(None)).unwrap_err();
        assert_eq!(said, "the network stream=… needs QEMU 7.2 or later, and this is 7.1");
        let said = lacks(version("7.1.0"), &dgram).unwrap_err();
        assert_eq!(said, "the network dgram=… needs QEMU 7.2 or later, and this is 7.1");
        assert_eq!(lacks(version("7.2.0"), &stream(None)), Ok(()));
        let said = lacks(version("7.2.22"), &stream(Some(1))).unwrap_err();
        assert_eq!(said, "stream=…,reconnect=… needs QEMU 8.0 or later, and this is 7.2");
        assert_eq!(lacks(version("8.0.0"), &stream(Some(1))), Ok(()));
    }
}
