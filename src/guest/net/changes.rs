//! That something changed. What enters are the kernel's notifications about interfaces and addresses (rtnetlink(7)); what leaves is
//! that there was one; so it is with other things that the kernel notifies. What it was is looked up anew by whoever wants to know: a notification may be lost, the state cannot be.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::sync::watch;

use super::NetError;

/// What is listened for (uapi/linux/rtnetlink.h): `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV6_IFADDR`.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// Time between two looks where the socket does not serve any more, which should not be.
const POLL: Duration = Duration::from_secs(1);

/// Says whenever there was a change, from now on.
///
/// # Errors
/// When the kernel does not notify, or there is no thread for it.
pub fn listen() -> Result<watch::Receiver<()>, NetError> {
    let listening = notified(SockProtocol::NetlinkRoute, GROUPS, "netlink");
    listening.map_err(|source| NetError::kernel("listen for changes of the network".to_owned(), source))
}

/// Says whenever the kernel notifies one of `groups` of a netlink protocol, from now on, by a thread named `name`.
///
/// # Errors
/// As of opening a socket and starting a thread.
pub(crate) fn notified(protocol: SockProtocol, groups: u32, name: &str) -> io::Result<watch::Receiver<()>> {
    let (changed, changes) = watch::channel(());
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    let pass_on = move || {
        while changed.send(()).is_ok() {
            wait(&socket);
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(pass_on)?;
    Ok(changes)
}

/// Waits for a notification.
fn wait(socket: &OwnedFd) {
    // What does not fit is cut: nothing of it is read. Where some were lost, that is a change, too.
    match recv(socket.as_raw_fd(), &mut [0; 16], MsgFlags::empty()) {
        Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
        Err(_) => thread::sleep(POLL),
    }
}
