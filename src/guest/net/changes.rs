//! That something changed. What enters are the kernel's notifications about interfaces and addresses (rtnetlink(7)); what leaves is
//! that there was one. What it was is looked up anew by whoever wants to know: a notification may be lost, the state cannot be.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::NetError;

/// What is listened for (uapi/linux/rtnetlink.h): `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV6_IFADDR`.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// Time between two looks where the socket does not serve any more, which should not be.
const POLL: Duration = Duration::from_secs(1);

/// Says whenever there was a change, from now on. Must be called within the runtime.
///
/// # Errors
/// When the kernel does not notify.
pub fn listen() -> Result<watch::Receiver<()>, NetError> {
    let socket = open().map_err(|source| NetError::kernel("listen for changes of the network".to_owned(), source))?;
    let (changed, changes) = watch::channel(());
    tokio::spawn(async move {
        while changed.send(()).is_ok() {
            if wait(&socket).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        }
    });
    Ok(changes)
}

fn open() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    AsyncFd::new(socket)
}

/// Waits for a notification, and takes all that there are.
async fn wait(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut ready = socket.readable().await?;
    // What does not fit is cut, and nothing of it is read.
    let mut start = [0; 16];
    loop {
        match recv(socket.as_raw_fd(), &mut start, MsgFlags::empty()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                ready.clear_ready();
                return Ok(());
            }
            // Some were lost: that is a change, too.
            Err(Errno::ENOBUFS) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
