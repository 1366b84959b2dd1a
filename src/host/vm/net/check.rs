//! Checks before the boot that the interfaces, bridges and sockets of the networks exist and may be used. Changes nothing.

use std::io;
use std::net::UdpSocket;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use super::{Datagrams, Net, NetKind};
use crate::host::support::sys;

/// Why a network is not available.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The bridge does not exist.
    #[error("there is no bridge {name} (as root: ip link add {name} type bridge && ip link set {name} up)")]
    NoBridge {
        /// Its name.
        name: String,
    },
    /// The tap does not exist.
    #[error("there is no tap {name} (as root: ip tuntap add dev {name} mode tap user USER && ip link set {name} up)")]
    NoTap {
        /// Its name.
        name: String,
    },
    /// The interface is of another kind.
    #[error("{name} is not a {expected}, but {found}")]
    WrongKind {
        /// Its name.
        name: String,
        /// Bridge or tap.
        expected: &'static str,
        /// Its kind.
        found: String,
    },
    /// The MTU is larger than that of the bridge.
    #[error("mtu={mtu} is larger than the MTU of the bridge {name}, {largest}")]
    Mtu {
        /// The requested MTU in bytes.
        mtu: u32,
        /// The bridge.
        name: String,
        /// The bridge's MTU in bytes.
        largest: u32,
    },
    /// The user may not create a tap.
    #[error(
        "no permission to make a tap on the bridge {name}: it takes CAP_NET_ADMIN (run it as root, or have root make a tap for you, \
         ip tuntap add dev TAP mode tap user USER, and give tap=TAP)"
    )]
    NoPermission {
        /// The bridge.
        name: String,
    },
    /// The tap belongs to another user.
    #[error(
        "no permission to open the tap {name}: it belongs to another user (as root: ip tuntap add dev {name} mode tap user USER)"
    )]
    NotOurs {
        /// The tap.
        name: String,
    },
    /// The user may not open any tap.
    #[error("cannot open /dev/net/tun for the tap {name} (as root: chmod 0666 /dev/net/tun, as most systems have it)")]
    NoDevice {
        /// The tap.
        name: String,
        /// The error.
        source: io::Error,
    },
    /// Another process uses the tap.
    #[error("the tap {name} is in use by another process: give each machine its own")]
    Busy {
        /// The tap.
        name: String,
    },
    /// The kernel refuses something else.
    #[error("cannot {action}")]
    Refused {
        /// What failed, with its operands.
        action: String,
        /// The error.
        source: io::Error,
    },
    /// The descriptor is not a socket.
    #[error(
        "socket-fd={number} is not an open socket: the launcher has to leave it open for this program (without close-on-exec)"
    )]
    NoSocket {
        /// The descriptor's number.
        number: i32,
        /// The error.
        source: io::Error,
    },
    /// Nothing listens on the Unix socket.
    #[error("{} is not a socket to connect to: start the program that listens there first", .path.display())]
    NoPeer {
        /// The path.
        path: PathBuf,
        /// The error, if the path cannot be examined.
        source: Option<io::Error>,
    },
    /// QEMU would replace a file with its socket.
    #[error("{} exists and is not a socket: QEMU would replace it", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// QEMU cannot create its socket.
    #[error("QEMU cannot make the socket {}", .path.display())]
    CannotCreate {
        /// The path.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// QEMU cannot listen on the UDP port.
    #[error("QEMU cannot listen on the UDP port of {address}: another process has it, or the address is not of this machine")]
    UdpPort {
        /// The address.
        address: std::net::SocketAddrV4,
        /// The error.
        source: io::Error,
    },
}

/// The end of the message for a `port` that the user may not listen on: which ports are privileged, and what to do. Empty if the port is
/// not privileged (ip_unprivileged_port_start, Linux's Documentation/networking/ip-sysctl.rst).
#[must_use]
pub fn privileged(port: u16) -> String {
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    let first: u16 = setting.trim().parse().unwrap_or(1024);
    if port >= first {
        return String::new();
    }
    format!(": ports below {first} are for root (use another, or as root: sysctl -w net.ipv4.ip_unprivileged_port_start={port})")
}

impl NetworkError {
    /// Whether another user could use the network.
    #[must_use]
    pub const fn is_permission(&self) -> bool {
        matches!(self, Self::NoPermission { .. } | Self::NotOurs { .. } | Self::NoDevice { .. })
    }
}

/// A network interface of this machine.
#[derive(Debug)]
pub(crate) struct Link {
    pub index: u32,
    pub mtu: u32,
    /// "bridge", "tun", …; `None` for a physical interface.
    kind: Option<InfoKind>,
}

/// Checks everything that `nets` need, and takes the sockets that are given by number.
///
/// # Errors
/// Fails for the first thing that is missing or cannot be used.
pub async fn check(nets: &mut [Net]) -> Result<(), NetworkError> {
    if nets.iter().any(|net| matches!(net.kind, NetKind::Tap(_) | NetKind::Bridge(_))) {
        let links = netlink()?;
        for net in nets.iter() {
            match &net.kind {
                NetKind::Tap(name) => find_tap(&links, name).await.map(drop)?,
                NetKind::Bridge(name) => find_bridge(&links, name, net.mtu).await.map(drop)?,
                _ => {}
            }
        }
    }
    nets.iter_mut().try_for_each(|net| check_sockets(&mut net.kind))
}

fn check_sockets(kind: &mut NetKind) -> Result<(), NetworkError> {
    match kind {
        NetKind::Socket(inherited) if inherited.socket.is_none() => {
            let socket = sys::inherited_socket(inherited.number);
            let socket = socket.map_err(|source| NetworkError::NoSocket { number: inherited.number, source })?;
            inherited.socket = Some(socket.into());
            Ok(())
        }
        // With `reconnect` QEMU waits for the peer.
        NetKind::Stream { path, reconnect: None } => match std::fs::metadata(&*path) {
            Ok(found) if found.file_type().is_socket() => Ok(()),
            Ok(_) => Err(NetworkError::NoPeer { path: path.clone(), source: None }),
            Err(source) => Err(NetworkError::NoPeer { path: path.clone(), source: Some(source) }),
        },
        NetKind::Dgram(Datagrams::Unix { local, .. }) => check_socket_path(local),
        NetKind::Dgram(Datagrams::Udp { local, .. }) => {
            let bound = UdpSocket::bind(*local).map(drop);
            bound.map_err(|source| NetworkError::UdpPort { address: *local, source })
        }
        _ => Ok(()),
    }
}

/// Checks that a socket can be created at `path`.
fn check_socket_path(path: &Path) -> Result<(), NetworkError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(NetworkError::NotASocket { path: path.to_owned() }),
        _ => {}
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let writable = rustix::fs::access(folder, rustix::fs::Access::WRITE_OK);
    writable.map_err(|error| NetworkError::CannotCreate { path: path.to_owned(), source: error.into() })
}

/// Opens a netlink socket. Call it within a Tokio runtime: a task reads the answers.
pub(crate) fn netlink() -> Result<Handle, NetworkError> {
    let refused = |source| NetworkError::Refused { action: "open a netlink socket".into(), source };
    let (connection, handle, _) = rtnetlink::new_connection().map_err(refused)?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn find_tap(links: &Handle, name: &str) -> Result<Link, NetworkError> {
    let Some(link) = find_link(links, name).await? else { return Err(NetworkError::NoTap { name: name.to_owned() }) };
    link.expect_kind(InfoKind::Tun, name, "tap")
}

/// Finds the bridge `name`, and checks that packets of `mtu` bytes fit.
pub(crate) async fn find_bridge(links: &Handle, name: &str, mtu: Option<u32>) -> Result<Link, NetworkError> {
    let Some(link) = find_link(links, name).await? else { return Err(NetworkError::NoBridge { name: name.to_owned() }) };
    let link = link.expect_kind(InfoKind::Bridge, name, "bridge")?;
    match mtu {
        Some(mtu) if mtu > link.mtu => Err(NetworkError::Mtu { mtu, name: name.to_owned(), largest: link.mtu }),
        _ => Ok(link),
    }
}

/// Finds the interface `name`.
pub(crate) async fn find_link(links: &Handle, name: &str) -> Result<Option<Link>, NetworkError> {
    let found = links.link().get().match_name(name).execute().try_next().await;
    match found {
        Ok(message) => Ok(message.map(Link::new)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENODEV => Ok(None),
        Err(error) => Err(refused(format!("look for the interface {name}"))(error)),
    }
}

/// Makes the error for an `action` that the kernel refused.
pub(crate) fn refused(action: String) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        };
        NetworkError::Refused { action, source }
    }
}

impl Link {
    fn new(message: LinkMessage) -> Self {
        let index = message.header.index;
        let mut link = Self { index, mtu: 0, kind: None };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::LinkInfo(infos) => {
                    link.kind =
                        infos.into_iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None });
                }
                _ => {}
            }
        }
        link
    }

    fn expect_kind(self, kind: InfoKind, name: &str, expected: &'static str) -> Result<Self, NetworkError> {
        if self.kind.as_ref() == Some(&kind) {
            return Ok(self);
        }
        let found = self.kind.map_or("a plain interface".to_owned(), |kind| format!("an interface of the kind {kind}"));
        Err(NetworkError::WrongKind { name: name.to_owned(), expected, found })
    }
}
