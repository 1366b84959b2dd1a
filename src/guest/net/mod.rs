//! The network. A manager for each configured interface brings it up with its addresses and routes and maintains it while the guest
//! runs. [`Network`] reports the guest's addresses whenever they change.
//!
//! ```text
//! netlink ─ notifications ───────────────┬─▶ manager of each interface ─ conflict, dhcp ─▶ link (addresses, routes)
//!                                        └─▶ Network::changed ─▶ the certificate and the launcher
//! ```

pub mod arp;
pub mod conflict;
pub mod dhcp;
pub mod dhcp_client;
pub mod dhcp_packet;
pub mod error;
pub mod interface_selection;
pub mod link;
pub mod manager;
pub mod netlink;
pub mod notifications;
pub mod packet_socket;
pub mod udp;

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::registry::telemetry::events::Events;

use super::early::console;
use crate::config::settings::{Interface, Ipv6Wait};
pub use error::NetError;
use link::{AddressState, AssignedAddress, Links};
use manager::{InterfaceManager, Shared, Status};

/// How long boot waits for an interface to appear, and for its carrier if another interface can already serve.
const NIC_WAIT: Duration = Duration::from_secs(1);
/// Keeps the other addresses of a network when its first address is removed (Documentation/networking/ip-sysctl.rst).
const PROMOTE: &str = "/proc/sys/net/ipv4/conf/all/promote_secondaries";
/// The first port that needs no privilege (Documentation/networking/ip-sysctl.rst). The process that serves has none.
const FIRST_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
/// Longest time between two checks of the interfaces' status, some of whose errors depend on the time.
const POLL: Duration = Duration::from_millis(10);
/// How long to wait after a change for further ones: an interface that comes up gets several addresses.
const SETTLE: Duration = Duration::from_millis(250);

/// The running network.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
    changes: watch::Receiver<()>,
    addresses: Vec<IpAddr>,
}

/// Brings up the loopback and `interfaces`, and starts a manager for each. Waits until each interface has its addresses. A missing
/// or unconnected interface delays boot only while no other interface can serve. Must be called within the runtime.
///
/// # Errors
/// Fails if an interface gets no address, if the kernel rejects its setup, or if an interface is missing and no other one serves.
pub async fn start(interfaces: &[Interface], hostname: &str, events: &Events) -> Result<Network, NetError> {
    let links = Links::open()?;
    let changes = notifications::of_network()?;
    links.up_loopback()?;
    if let Err(error) = fs::write(PROMOTE, "1") {
        console::log(&format!(
            "when an address is removed, other addresses of its network may be lost: cannot write {PROMOTE}: {error}"
        ));
    }
    if let Err(error) = fs::write(FIRST_PORT, "0") {
        console::log(&format!("ports below 1024 may be out of reach: cannot write {FIRST_PORT}: {error}"));
    }
    let shared = Arc::new(Shared::new(links, hostname, interfaces, events.clone()));
    for index in 0..interfaces.len() {
        tokio::spawn(InterfaceManager::new(index, Arc::clone(&shared), changes.clone()).run());
    }
    settle(&shared).await?;
    let addresses = shared.addresses()?;
    Ok(Network { shared, changes, addresses })
}

/// Waits for the interfaces that boot depends on.
async fn settle(shared: &Shared) -> Result<(), NetError> {
    let start = Instant::now();
    loop {
        if let Some(outcome) = shared.outcome(start.elapsed()) {
            let late = outcome?;
            shared.start_serving();
            late.into_iter().for_each(|error| shared.warn(&error));
            return Ok(());
        }
        let _poll = timeout(POLL, shared.status_changed.notified()).await;
    }
}

impl Network {
    /// The addresses at which the guest can be reached.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Waits until the addresses change, and returns the new ones.
    pub async fn changed(&mut self) -> &[IpAddr] {
        loop {
            if self.changes.changed().await.is_err() {
                // The runtime is shutting down.
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
    /// The result of the wait at boot, `elapsed` after its start: `None` to continue waiting, the error that fails the boot, or the
    /// warnings about the interfaces that are late.
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
            let (timeout, error) = match status {
                Status::Up | Status::Working | Status::Failed(_) => continue,
                Status::Missing(found) => (NIC_WAIT, NetError::NoNic { selector: interface.selector, found: found.clone() }),
                Status::NoCarrier(link) => {
                    let timeout = if serves { NIC_WAIT.min(interface.timeout) } else { interface.timeout };
                    (timeout, NetError::NoCarrier { link: link.clone(), timeout })
                }
            };
            if elapsed < timeout {
                return None;
            }
            late.push(error);
        }
        if serves { Some(Ok(late)) } else { late.into_iter().next().map(Err) }
    }

    /// The addresses at which the guest can be reached, in the kernel's order. Leaves out tentative and loopback addresses, and
    /// link-local ones unless the config asks for them.
    fn addresses(&self) -> Result<Vec<IpAddr>, NetError> {
        let local = self.link_local();
        let found = self.links.addresses()?.into_iter();
        Ok(found.filter(|one| one.state == AddressState::Usable && is_announced(one, &local)).map(|one| one.address).collect())
    }

    /// The indices of the interfaces whose link-local address the config asks for.
    fn link_local(&self) -> Vec<u32> {
        let wanted =
            self.interfaces.iter().zip(self.indices()).filter(|(interface, _)| interface.ipv6_wait == Ipv6Wait::LinkLocal);
        wanted.filter_map(|(_, index)| index).collect()
    }
}

fn is_announced(one: &AssignedAddress, local: &[u32]) -> bool {
    match one.address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && (!address.is_unicast_link_local() || local.contains(&one.index)),
    }
}

#[cfg(test)]
mod tests;
