//! Taps and sockets, opened for QEMU. Networks enter, descriptors leave that QEMU inherits: a tap of a bridge goes with the last of
//! them, however that happens.

use std::io;
use std::os::fd::OwnedFd;

use nix::libc::{EACCES, EBUSY, EPERM};
use rtnetlink::LinkUnspec;

use super::check::{self, NoNetwork};
use super::{Kind, Net};
use crate::address::Mac;
use crate::host::support::sys;

/// Name of the taps that are made; the kernel puts a number in the place of `%d`.
const TAPS: &str = "lreg%d";

/// Opens what QEMU inherits of each of `nets`: its tap, or a copy of its socket.
///
/// # Errors
/// A tap cannot be opened, made or put on its bridge, or a socket not be copied.
pub async fn attach(nets: &[(Net, Mac)]) -> Result<Vec<Option<OwnedFd>>, NoNetwork> {
    let mut open_now = Vec::new();
    for (net, mac) in nets {
        open_now.push(match &net.kind {
            Kind::Tap(name) => Some(open(name)?),
            Kind::Bridge(name) => Some(on_bridge(name, *mac, net.mtu).await?),
            Kind::Socket(given) => {
                let copy = given.socket.as_ref().map(|socket| socket.try_clone()).transpose();
                copy.map_err(|source| NoNetwork::NoSocket { number: given.number, source })?
            }
            _ => None,
        });
    }
    Ok(open_now)
}

/// The tap `name`, which is there. It is taken as long as the descriptor is open.
///
/// # Errors
/// It belongs to another user, or another process has it.
pub fn open(name: &str) -> Result<OwnedFd, NoNetwork> {
    let opened = sys::open_tap(name).map(|(tap, _)| tap);
    opened.map_err(|source| match source.raw_os_error() {
        Some(EPERM) => NoNetwork::NotOurs { name: name.to_owned() },
        Some(EACCES) => NoNetwork::NoDevice { name: name.to_owned(), source },
        Some(EBUSY) => NoNetwork::Busy { name: name.to_owned() },
        _ => refused(format!("open the tap {name}"), source),
    })
}

/// A new tap on the bridge `name`.
async fn on_bridge(name: &str, mac: Mac, mtu: Option<u32>) -> Result<OwnedFd, NoNetwork> {
    let links = check::netlink()?;
    let bridge = check::bridge(&links, name, mtu).await?;
    let (tap, tap_name) = sys::open_tap(TAPS).map_err(|source| match source.raw_os_error() {
        Some(EPERM | EACCES) => NoNetwork::NoPermission { name: name.to_owned() },
        _ => refused(format!("make a tap for the bridge {name}"), source),
    })?;
    let Some(link) = check::find(&links, &tap_name).await? else {
        return Err(refused(format!("find the tap {tap_name} that was just made"), io::ErrorKind::NotFound.into()));
    };
    // A bridge takes the lowest hardware address among its ports, and changes its own when that one changes. The tap's address is
    // therefore as high as a unicast address can begin. It differs from the guest's, which the bridge learns behind the tap.
    let [.., a, b, c] = mac.0;
    let address = vec![0xfe, 0xff, 0xff, a, b, c];
    // No smaller than the bridge's: else the bridge, and with it all others, would go down to it.
    let message = LinkUnspec::new_with_index(link.index).address(address).mtu(bridge.mtu).controller(bridge.index).up().build();
    let set = links.link().set(message).execute().await;
    set.map_err(check::refused(format!("put the tap {tap_name} on the bridge {name}")))?;
    Ok(tap)
}

fn refused(action: String, source: io::Error) -> NoNetwork {
    NoNetwork::Refused { action, source }
}
