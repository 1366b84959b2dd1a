//! Signals that the kernel sent a netlink notification. Receivers read the current state themselves: a notification may be lost,
//! the state cannot.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::sync::watch;

use super::NetError;

/// Subscribed groups (uapi/linux/rtnetlink.h): `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV6_IFADDR`.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// Time between two signals if the socket fails, which should not happen.
const POLL: Duration = Duration::from_secs(1);

/// Signals changes of interfaces and addresses from now on.
///
/// # Errors
/// Fails if the socket or the thread cannot be created.
pub fn of_network() -> Result<watch::Receiver<()>, NetError> {
    let subscribed = subscribe(SockProtocol::NetlinkRoute, GROUPS, "netlink");
    subscribed.map_err(|source| NetError::kernel("watch for changes of the network".to_owned(), source))
}

/// Signals notifications of `groups` of a netlink protocol from now on, by a thread named `name`.
///
/// # Errors
/// Fails if the socket or the thread cannot be created.
pub(crate) fn subscribe(protocol: SockProtocol, groups: u32, name: &str) -> io::Result<watch::Receiver<()>> {
    let (changed, changes) = watch::channel(());
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    let forward = move || {
        while changed.send(()).is_ok() {
            wait(&socket);
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(forward)?;
    Ok(changes)
}

/// Waits for a notification.
fn wait(socket: &OwnedFd) {
    // The content is not read, so the buffer may be short. ENOBUFS means that notifications were lost, which is a change too.
    match recv(socket.as_raw_fd(), &mut [0; 16], MsgFlags::empty()) {
        Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
        Err(_) => thread::sleep(POLL),
    }
}
