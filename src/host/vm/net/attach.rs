//! Opens taps and sockets for QEMU to inherit. The kernel removes a tap of a bridge with its last descriptor, however QEMU ends.

use std::io;
use std::os::fd::OwnedFd;

use nix::libc::{EACCES, EBUSY, EPERM};
use rtnetlink::LinkUnspec;

use super::check::{self, NetworkError};
use super::{Net, NetKind};
use crate::address::Mac;
use crate::host::support::sys;

/// Name of the taps that are created. The kernel replaces `%d` with a number.
const TAP_NAMES: &str = "lreg%d";

/// Opens the descriptor that QEMU inherits for each of `nets`: its tap, or a copy of its socket.
///
/// # Errors
/// Fails if a tap cannot be opened, created or attached to its bridge, or a socket cannot be copied.
pub async fn attach(nets: &[(Net, Mac)]) -> Result<Vec<Option<OwnedFd>>, NetworkError> {
    let mut fds = Vec::new();
    for (net, mac) in nets {
        fds.push(match &net.kind {
            NetKind::Tap(name) => Some(open_tap(name)?),
            NetKind::Bridge(name) => Some(create_tap(name, *mac, net.mtu).await?),
            NetKind::Socket(inherited) => {
                let copy = inherited.socket.as_ref().map(|socket| socket.try_clone()).transpose();
                copy.map_err(|source| NetworkError::NoSocket { number: inherited.number, source })?
            }
            _ => None,
        });
    }
    Ok(fds)
}

/// Opens the existing tap `name`. It is in use until the descriptor is closed.
///
/// # Errors
/// Fails if the tap belongs to another user, or another process uses it.
pub fn open_tap(name: &str) -> Result<OwnedFd, NetworkError> {
    let opened = sys::open_tap(name).map(|(tap, _)| tap);
    opened.map_err(|source| match source.raw_os_error() {
        Some(EPERM) => NetworkError::NotOurs { name: name.to_owned() },
        Some(EACCES) => NetworkError::NoDevice { name: name.to_owned(), source },
        Some(EBUSY) => NetworkError::Busy { name: name.to_owned() },
        _ => refused(format!("open the tap {name}"), source),
    })
}

/// Creates a tap and attaches it to the bridge `name`.
async fn create_tap(name: &str, mac: Mac, mtu: Option<u32>) -> Result<OwnedFd, NetworkError> {
    let links = check::netlink()?;
    let bridge = check::find_bridge(&links, name, mtu).await?;
    let (tap, tap_name) = sys::open_tap(TAP_NAMES).map_err(|source| match source.raw_os_error() {
        Some(EPERM | EACCES) => NetworkError::NoPermission { name: name.to_owned() },
        _ => refused(format!("make a tap for the bridge {name}"), source),
    })?;
    let Some(link) = check::find_link(&links, &tap_name).await? else {
        return Err(refused(format!("find the tap {tap_name} that was just made"), io::ErrorKind::NotFound.into()));
    };
    // A bridge takes the lowest MAC address of its ports, and changes its own when that one changes. So the tap gets a prefix that is as
    // high as a unicast address can have. The address differs from the guest's, which the bridge learns behind the tap.
    let [.., a, b, c] = mac.0;
    let address = vec![0xfe, 0xff, 0xff, a, b, c];
    // A smaller MTU would lower the MTU of the bridge, and with it that of all its ports.
    let message = LinkUnspec::new_with_index(link.index).address(address).mtu(bridge.mtu).controller(bridge.index).up().build();
    let set = links.link().set(message).execute().await;
    set.map_err(check::refused(format!("put the tap {tap_name} on the bridge {name}")))?;
    Ok(tap)
}

fn refused(action: String, source: io::Error) -> NetworkError {
    NetworkError::Refused { action, source }
}
