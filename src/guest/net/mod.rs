//! The network. What enters are the interfaces of the settings; what leaves is each of them up with its addresses and routes, and
//! the list of all addresses of the guest. It never leaves an interface half done without saying so.

pub mod client;
pub mod dhcp;
pub mod link;
pub mod packet;

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::config::settings::{Addressing, Cidr, Interface, Select};
use client::{Lease, Refusal};
use link::{Link, Links};

/// How long the kernel may take to find an interface.
const NIC_WAIT: Duration = Duration::from_secs(1);
/// Time between two looks for an interface or its carrier.
const POLL: Duration = Duration::from_millis(10);

/// A network that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// There is no such interface.
    #[error("no network interface {}; the interfaces here are {}; give QEMU -device virtio-net-pci", which(*select), seen(found))]
    NoNic {
        /// The one meant.
        select: Select,
        /// Those there are.
        found: Vec<Link>,
    },
    /// No DHCP server answered.
    #[error(
        "{link}: no DHCP server answered {sent} packets in {} s; expected one on this network, or interfaces.N.addresses in the config",
        timeout.as_secs()
    )]
    DhcpSilent {
        /// The interface.
        link: Link,
        /// Packets sent.
        sent: u32,
        /// How long.
        timeout: Duration,
    },
    /// A DHCP server said no, or gave something that is no address.
    #[error("{link}: the DHCP server gave no address")]
    DhcpRefused {
        /// The interface.
        link: Link,
        /// Why.
        source: Refusal,
    },
    /// The link did not come up.
    #[error("{link}: no carrier after {} s", timeout.as_secs())]
    NoCarrier {
        /// The interface.
        link: Link,
        /// How long.
        timeout: Duration,
    },
    /// The kernel refused something.
    #[error("{action}")]
    Kernel {
        /// What was being done, with its operands.
        action: String,
        /// Why.
        source: io::Error,
    },
}

impl NetError {
    /// Stable name of the fault.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoNic { .. } => "NO_NIC",
            Self::DhcpSilent { .. } | Self::DhcpRefused { .. } | Self::NoCarrier { .. } => "NO_ADDRESS",
            Self::Kernel { .. } => "BAD_NETWORK",
        }
    }
}

/// Brings up the loopback and `interfaces`, in order, and gives every address by which others reach the guest.
///
/// # Errors
/// The first interface that is missing, gets no address, or that the kernel does not set up.
pub async fn configure(interfaces: &[Interface], hostname: &str) -> Result<Vec<IpAddr>, NetError> {
    let links = Links::open()?;
    links.up_loopback().await?;
    for interface in interfaces {
        let link = find(&links, interface.select).await?;
        bring_up(&links, &link, interface, hostname).await?;
    }
    links.addresses().await
}

async fn find(links: &Links, select: Select) -> Result<Link, NetError> {
    let deadline = Instant::now() + NIC_WAIT;
    loop {
        let found = links.ethernet().await?;
        if let Some(link) = pick(&found, select) {
            return Ok(link.clone());
        }
        if Instant::now() >= deadline {
            return Err(NetError::NoNic { select, found });
        }
        sleep(POLL).await;
    }
}

async fn bring_up(links: &Links, link: &Link, interface: &Interface, hostname: &str) -> Result<(), NetError> {
    let timeout = interface.timeout;
    let deadline = Instant::now() + timeout;
    links.up(link, interface.mtu).await?;
    let carrier = async {
        while !links.has_carrier(link).await? {
            sleep(POLL).await;
        }
        Ok(())
    };
    timeout_at(deadline, carrier).await.unwrap_or_else(|_| Err(NetError::NoCarrier { link: link.clone(), timeout }))?;
    match &interface.addressing {
        Addressing::Static { addresses, gateway } => apply(links, link, addresses, *gateway).await,
        Addressing::Dhcp => {
            let lease = dhcp::acquire(link, hostname, deadline, timeout).await?;
            let Lease { address, router, mtu, .. } = lease;
            if let (Some(mtu), None) = (mtu, interface.mtu) {
                links.up(link, Some(mtu.into())).await?;
            }
            apply(links, link, &[address], router.map(IpAddr::V4)).await
        }
    }
}

async fn apply(links: &Links, link: &Link, addresses: &[Cidr], gateway: Option<IpAddr>) -> Result<(), NetError> {
    for address in addresses {
        links.add_address(link, *address).await?;
    }
    match gateway {
        Some(gateway) => links.add_default_route(link, gateway).await,
        None => Ok(()),
    }
}

fn pick(found: &[Link], select: Select) -> Option<&Link> {
    match select {
        Select::Mac(mac) => found.iter().find(|link| link.mac == mac),
        Select::Place(place) => found.get(place),
    }
}

fn which(select: Select) -> String {
    match select {
        Select::Mac(mac) => format!("with the MAC address {mac}"),
        Select::Place(place) => format!("number {place} (they count from 0)"),
    }
}

fn seen(found: &[Link]) -> String {
    if found.is_empty() {
        return "none".to_owned();
    }
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::config::settings::Mac;

    fn link(index: u32, name: &str, last: u8) -> Link {
        Link { index, name: name.to_owned(), mac: Mac([0x52, 0x54, 0, 0, 0, last]) }
    }

    #[test]
    fn an_interface_is_picked_by_place_or_mac() {
        let found = [link(2, "eth0", 1), link(3, "eth1", 2)];
        assert_eq!(pick(&found, Select::Place(0)), found.first());
        assert_eq!(pick(&found, Select::Place(2)), None);
        assert_eq!(pick(&found, Select::Mac(Mac([0x52, 0x54, 0, 0, 0, 2]))), found.get(1));
        assert_eq!(pick(&found, Select::Mac(Mac([0; 6]))), None);
    }

    #[test]
    fn a_missing_interface_names_those_that_are_there() {
        let no_nic = |select, found| NetError::NoNic { select, found };
        let none = no_nic(Select::Place(0), vec![]);
        assert_eq!(none.code(), "NO_NIC");
        assert_eq!(
            none.to_string(),
            "no network interface number 0 (they count from 0); the interfaces here are none; give QEMU -device virtio-net-pci"
        );
        assert_eq!(
            no_nic(Select::Mac(Mac([2, 0, 0, 0, 0, 9])), vec![link(2, "eth0", 1), link(3, "eth1", 2)]).to_string(),
            "no network interface with the MAC address 02:00:00:00:00:09; the interfaces here are \
             eth0 (52:54:00:00:00:01), eth1 (52:54:00:00:00:02); give QEMU -device virtio-net-pci"
        );
    }

    #[test]
    fn a_silent_network_says_what_was_tried() {
        let error = NetError::DhcpSilent { link: link(2, "eth0", 1), sent: 5, timeout: Duration::from_secs(30) };
        assert_eq!(error.code(), "NO_ADDRESS");
        assert_eq!(
            error.to_string(),
            "eth0 (52:54:00:00:00:01): no DHCP server answered 5 packets in 30 s; \
             expected one on this network, or interfaces.N.addresses in the config"
        );
    }
}
