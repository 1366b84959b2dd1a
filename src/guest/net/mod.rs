//! The network. What enters are the interfaces of the settings; what leaves is each of them up with its addresses and routes, as long
//! as the guest lives, and the list of all addresses of the guest whenever it changes. It never leaves an interface half done without
//! saying so.
//!
//! ```text
//! netlink notifications ─ changes ─┬─▶ keeper of each interface ─ conflict, dhcp ─▶ link (addresses, routes)
//!                                  └─▶ Network::changed ─▶ the certificate and the launcher
//! ```

pub mod arp;
pub mod changes;
pub mod client;
pub mod conflict;
pub mod dhcp;
pub mod error;
pub mod link;
pub mod manager;
pub mod packet;
pub mod packet_socket;
pub mod pick;
pub mod udp;
pub mod wire;

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::registry::telemetry::events::Events;

use super::early::console;
use crate::config::settings::{Interface, Ipv6Wait};
pub use error::NetError;
use link::{Assigned, Links, State};
use manager::{Keeper, Shared, Status};

/// How long an interface may take to be found, and to be connected where others are there to serve by.
const NIC_WAIT: Duration = Duration::from_secs(1);
/// Whether the other addresses of a network stay when the first goes (Documentation/networking/ip-sysctl.rst).
const PROMOTE: &str = "/proc/sys/net/ipv4/conf/all/promote_secondaries";
/// Time between two looks at how far the interfaces are.
const POLL: Duration = Duration::from_millis(10);
/// How long changes may go on before they are looked at: an interface that comes up gets several addresses.
const SETTLE: Duration = Duration::from_millis(250);

/// The network as it is, for who wants to know of its addresses.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
    changes: watch::Receiver<()>,
    addresses: Vec<IpAddr>,
}

/// Brings up the loopback and `interfaces`, and keeps them so from now on. Waits until each has its addresses; an interface that is
/// not there, or not connected, is waited for only where no other has any. Must be called within the runtime.
///
/// # Errors
/// The first interface that is missing where no other serves, gets no address, or that the kernel does not set up.
pub async fn start(interfaces: &[Interface], hostname: &str, events: &Events) -> Result<Network, NetError> {
    let links = Links::open()?;
    let changes = changes::listen()?;
    links.up_loopback()?;
    if let Err(error) = fs::write(PROMOTE, "1") {
        console::say(&format!("an address that goes may take others of its network with it: write {PROMOTE}: {error}"));
    }
    let shared = Arc::new(Shared::new(links, hostname, interfaces, events.clone()));
    for place in 0..interfaces.len() {
        tokio::spawn(Keeper::new(place, Arc::clone(&shared), changes.clone()).run());
    }
    settle(&shared).await?;
    let addresses = shared.addresses()?;
    Ok(Network { shared, changes, addresses })
}

/// Waits until the interfaces are up, as far as they are waited for.
async fn settle(shared: &Shared) -> Result<(), NetError> {
    let start = Instant::now();
    loop {
        if let Some(outcome) = shared.outcome(start.elapsed()) {
            let late = outcome?;
            shared.start_serving();
            late.into_iter().for_each(|error| shared.warn(&error));
            return Ok(());
        }
        sleep(POLL).await;
    }
}

impl Network {
    /// Every address by which others reach the guest.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Waits until the addresses are others, and gives them.
    pub async fn changed(&mut self) -> &[IpAddr] {
        loop {
            if self.changes.changed().await.is_err() {
                // Nobody listens any more: the runtime ends.
                std::future::pending::<()>().await;
            }
            sleep(SETTLE).await;
            self.changes.mark_unchanged();
            match self.shared.addresses() {
                Ok(now) if now != self.addresses => {
                    self.addresses = now;
                    return &self.addresses;
                }
                Ok(_) => {}
                Err(error) => self.shared.warn(&error),
            }
        }
    }
}

impl Shared {
    /// How the first look at the interfaces ends, `elapsed` after the start: not yet; with the fault that ends the boot; or with what is
    /// to be said of the interfaces that are late.
    fn outcome(&self, elapsed: Duration) -> Option<Result<Vec<NetError>, NetError>> {
        let mut statuses = self.statuses();
        if let Some(status) = statuses.iter_mut().find(|status| matches!(status, Status::Failed(_))) {
            return match std::mem::replace(status, Status::Working) {
                Status::Failed(error) => Some(Err(error)),
                _ => None,
            };
        }
        if statuses.iter().any(|status| matches!(status, Status::Working)) {
            return None;
        }
        let serves = statuses.iter().any(|status| matches!(status, Status::Up));
        let mut late = Vec::new();
        for (interface, status) in self.interfaces.iter().zip(statuses.iter()) {
            let (patience, error) = match status {
                Status::Up | Status::Working | Status::Failed(_) => continue,
                Status::Missing(found) => (NIC_WAIT, NetError::NoNic { select: interface.selector, found: found.clone() }),
                Status::NoCarrier(link) => {
                    let patience = if serves { NIC_WAIT.min(interface.timeout) } else { interface.timeout };
                    (patience, NetError::NoCarrier { link: link.clone(), timeout: patience })
                }
            };
            if elapsed < patience {
                return None;
            }
            late.push(error);
        }
        if serves { Some(Ok(late)) } else { late.into_iter().next().map(Err) }
    }

    /// Every address by which others reach the guest, in the kernel's order: none that may yet turn out to be another's, no loopback,
    /// and no link-local one, which means nothing without an interface, but those that the settings ask for.
    fn addresses(&self) -> Result<Vec<IpAddr>, NetError> {
        let local = self.link_local();
        let found = self.links.addresses()?.into_iter();
        Ok(found.filter(|one| one.state == State::Ours && is_told(one, &local)).map(|one| one.address).collect())
    }

    /// The indices of the interfaces whose link-local address is asked for.
    fn link_local(&self) -> Vec<u32> {
        let asked =
            self.interfaces.iter().zip(self.indices()).filter(|(interface, _)| interface.ipv6_wait == Ipv6Wait::LinkLocal);
        asked.filter_map(|(_, index)| index).collect()
    }
}

fn is_told(one: &Assigned, local: &[u32]) -> bool {
    match one.address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && (!address.is_unicast_link_local() || local.contains(&one.index)),
    }
}

#[cfg(test)]
mod tests;
