//! What can be seen of networks before a boot: whether the interface, the bridge, the socket is there, and may be used. Networks
//! enter, the first fault leaves, with what to do about it. It changes nothing.

use std::io;
use std::net::UdpSocket;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use super::{Datagrams, Kind, Net};
use crate::host::support::sys;

/// Why a network cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NoNetwork {
    /// There is no such bridge.
    #[error("there is no bridge {name} (as root: ip link add {name} type bridge && ip link set {name} up)")]
    NoBridge {
        /// Its name.
        name: String,
    },
    /// There is no such tap.
    #[error("there is no tap {name} (as root: ip tuntap add dev {name} mode tap user USER && ip link set {name} up)")]
    NoTap {
        /// Its name.
        name: String,
    },
    /// An interface of that name is something else.
    #[error("{name} is no {expected}, but {found}")]
    NotOne {
        /// Its name.
        name: String,
        /// Bridge or tap.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// Larger packets than the bridge takes.
    #[error("mtu={mtu} is more than the bridge {name} takes, {largest}")]
    Mtu {
        /// What is asked for, in bytes.
        mtu: u32,
        /// The bridge.
        name: String,
        /// What it takes.
        largest: u32,
    },
    /// The user may not make a tap.
    #[error(
        "no permission to make a tap on the bridge {name}: it takes CAP_NET_ADMIN (run it as root, or have root make a tap for you, \
         ip tuntap add dev TAP mode tap user USER, and give tap=TAP)"
    )]
    NoPermission {
        /// The bridge.
        name: String,
    },
    /// The user may not open the tap.
    #[error(
        "no permission to open the tap {name}: it belongs to another user (as root: ip tuntap add dev {name} mode tap user USER)"
    )]
    NotOurs {
        /// The tap.
        name: String,
    },
    /// The user may not open taps at all.
    #[error("cannot open /dev/net/tun for the tap {name} (as root: chmod 0666 /dev/net/tun, as most systems have it)")]
    NoDevice {
        /// The tap.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Another process has the tap.
    #[error("the tap {name} is in use by another process: give each machine its own")]
    Busy {
        /// The tap.
        name: String,
    },
    /// The system refuses something else.
    #[error("cannot {action}")]
    Refused {
        /// What was being done, with its operands.
        action: String,
        /// Why.
        source: io::Error,
    },
    /// No socket has that number.
    #[error("socket-fd={number} is no open socket: the launcher has to leave it open for this program (without close-on-exec)")]
    NoSocket {
        /// The number.
        number: i32,
        /// Why.
        source: io::Error,
    },
    /// Nothing is there to connect to.
    #[error("{} is no socket to connect to: start what listens there first", .path.display())]
    NoPeer {
        /// The path.
        path: PathBuf,
        /// Why, where there is a reason.
        source: Option<io::Error>,
    },
    /// QEMU would remove what is there.
    #[error("{} is there already and no socket: QEMU would put its own in its place", .path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
    },
    /// QEMU cannot put its socket there.
    #[error("QEMU cannot make the socket {}", .path.display())]
    NoPlace {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// QEMU cannot listen there.
    #[error("QEMU cannot listen on the UDP port of {address}: another process has it, or it is no address of this machine")]
    NoPort {
        /// The address.
        address: std::net::SocketAddrV4,
        /// Why.
        source: io::Error,
    },
}

/// What follows in the message where a user may not listen on `port`: whose ports the privileged ones are, and what to do. Empty
/// where the port is not privileged (ip_unprivileged_port_start, Linux's Documentation/networking/ip-sysctl.rst).
#[must_use]
pub fn privileged(port: u16) -> String {
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    let first: u16 = setting.trim().parse().unwrap_or(1024);
    if port >= first {
        return String::new();
    }
    format!(": ports below {first} are root's (take another, or as root: sysctl -w net.ipv4.ip_unprivileged_port_start={port})")
}

impl NoNetwork {
    /// Whether it is there, and another user could have it.
    #[must_use]
    pub const fn is_permission(&self) -> bool {
        matches!(self, Self::NoPermission { .. } | Self::NotOurs { .. } | Self::NoDevice { .. })
    }
}

/// An interface of this machine.
#[derive(Debug)]
pub(crate) struct Link {
    pub index: u32,
    pub mtu: u32,
    /// "bridge", "tun", …; none for plain ones.
    kind: Option<InfoKind>,
}

/// Looks at everything that `nets` need, and opens the sockets that are given by number.
///
/// # Errors
/// The first thing that is missing or cannot be used.
pub async fn check(nets: &mut [Net]) -> Result<(), NoNetwork> {
    if nets.iter().any(|net| matches!(net.kind, Kind::Tap(_) | Kind::Bridge(_))) {
        let links = netlink()?;
        for net in nets.iter() {
            match &net.kind {
                Kind::Tap(name) => tap(&links, name).await.map(drop)?,
                Kind::Bridge(name) => bridge(&links, name, net.mtu).await.map(drop)?,
                _ => {}
            }
        }
    }
    nets.iter_mut().try_for_each(|net| sockets(&mut net.kind))
}

fn sockets(kind: &mut Kind) -> Result<(), NoNetwork> {
    match kind {
        Kind::Socket(given) if given.socket.is_none() => {
            let socket = sys::inherited_socket(given.number);
            let socket = socket.map_err(|source| NoNetwork::NoSocket { number: given.number, source })?;
            given.socket = Some(socket.into());
            Ok(())
        }
        // With `reconnect` QEMU waits for it.
        Kind::Stream { path, reconnect: None } => match std::fs::metadata(&*path) {
            Ok(found) if found.file_type().is_socket() => Ok(()),
            Ok(_) => Err(NoNetwork::NoPeer { path: path.clone(), source: None }),
            Err(source) => Err(NoNetwork::NoPeer { path: path.clone(), source: Some(source) }),
        },
        Kind::Dgram(Datagrams::Unix { local, .. }) => place(local),
        Kind::Dgram(Datagrams::Udp { local, .. }) => {
            let bound = UdpSocket::bind(*local).map(drop);
            bound.map_err(|source| NoNetwork::NoPort { address: *local, source })
        }
        _ => Ok(()),
    }
}

/// Whether a socket can be made at `path`.
fn place(path: &Path) -> Result<(), NoNetwork> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(NoNetwork::InTheWay { path: path.to_owned() }),
        _ => {}
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let writable = rustix::fs::access(folder, rustix::fs::Access::WRITE_OK);
    writable.map_err(|error| NoNetwork::NoPlace { path: path.to_owned(), source: error.into() })
}

/// The kernel's interfaces, as this process sees them. Call it within a Tokio runtime: a task reads the answers.
pub(crate) fn netlink() -> Result<Handle, NoNetwork> {
    let refused = |source| NoNetwork::Refused { action: "open a netlink socket".into(), source };
    let (connection, handle, _) = rtnetlink::new_connection().map_err(refused)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The tap `name`.
async fn tap(links: &Handle, name: &str) -> Result<Link, NoNetwork> {
    let Some(link) = find(links, name).await? else { return Err(NoNetwork::NoTap { name: name.to_owned() }) };
    link.is(InfoKind::Tun, name, "tap")
}

/// The bridge `name`, which takes packets of `mtu` bytes.
pub(crate) async fn bridge(links: &Handle, name: &str, mtu: Option<u32>) -> Result<Link, NoNetwork> {
    let Some(link) = find(links, name).await? else { return Err(NoNetwork::NoBridge { name: name.to_owned() }) };
    let link = link.is(InfoKind::Bridge, name, "bridge")?;
    match mtu {
        Some(mtu) if mtu > link.mtu => Err(NoNetwork::Mtu { mtu, name: name.to_owned(), largest: link.mtu }),
        _ => Ok(link),
    }
}

/// The interface `name`, if there is one.
pub(crate) async fn find(links: &Handle, name: &str) -> Result<Option<Link>, NoNetwork> {
    let found = links.link().get().match_name(name).execute().try_next().await;
    match found {
        Ok(message) => Ok(message.map(Link::of)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENODEV => Ok(None),
        Err(error) => Err(refused(format!("look for the interface {name}"))(error)),
    }
}

/// The error for `action`, which the kernel refused.
pub(crate) fn refused(action: String) -> impl FnOnce(rtnetlink::Error) -> NoNetwork {
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        };
        NoNetwork::Refused { action, source }
    }
}

impl Link {
    fn of(message: LinkMessage) -> Self {
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

    /// It, where it is of `kind`.
    fn is(self, kind: InfoKind, name: &str, expected: &'static str) -> Result<Self, NoNetwork> {
        if self.kind.as_ref() == Some(&kind) {
            return Ok(self);
        }
        let found = self.kind.map_or("a plain interface".to_owned(), |kind| format!("an interface of the kind {kind}"));
        Err(NoNetwork::NotOne { name: name.to_owned(), expected, found })
    }
}
