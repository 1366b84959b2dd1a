//! What is wrong with a network. Operands enter, words and a stable code leave.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::client::Refusal;
use super::link::Link;
use super::pick::{seen, which};
use crate::config::settings::{Mac, Selector};

/// A network that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// There is no such interface.
    #[error("no network interface {}; the interfaces here are {}; give QEMU -device virtio-net-pci", which(*select), seen(found))]
    NoNic {
        /// The one meant.
        select: Selector,
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
    /// Nobody gave more time for an address.
    #[error("{link}: the lease of {address} ended, and no DHCP server answered")]
    LeaseEnded {
        /// The interface.
        link: Link,
        /// The address that it does not have any more.
        address: IpAddr,
    },
    /// The link did not come up.
    #[error("{link}: no carrier after {} s", timeout.as_secs())]
    NoCarrier {
        /// The interface.
        link: Link,
        /// How long.
        timeout: Duration,
    },
    /// The link went down.
    #[error("{link}: the interface was unplugged, or has no carrier any more")]
    LinkDown {
        /// The interface.
        link: Link,
    },
    /// IPv6 gave no address that is waited for.
    #[error("{link}: no {what} in {} s; expected it on this network, or another interfaces.N.autoconf in the config", timeout.as_secs())]
    NoIpv6 {
        /// The interface.
        link: Link,
        /// What was waited for.
        what: &'static str,
        /// How long.
        timeout: Duration,
    },
    /// Another machine has the address.
    #[error("{link}: the address {address} belongs to another machine{}; give each its own", by(*other))]
    Conflict {
        /// The interface.
        link: Link,
        /// The address.
        address: IpAddr,
        /// The other machine, where it is known.
        other: Option<Mac>,
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
    /// The error for `action`, which the kernel refused.
    pub(crate) const fn kernel(action: String, source: io::Error) -> Self {
        Self::Kernel { action, source }
    }

    /// Stable name of the fault.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoNic { .. } => "NO_NIC",
            Self::DhcpSilent { .. } | Self::DhcpRefused { .. } | Self::LeaseEnded { .. } | Self::NoIpv6 { .. } => "NO_ADDRESS",
            Self::NoCarrier { .. } => "NO_ADDRESS",
            Self::LinkDown { .. } => "LINK_DOWN",
            Self::Conflict { .. } => "IP_CONFLICT",
            Self::Kernel { .. } => "BAD_NETWORK",
        }
    }
}

fn by(other: Option<Mac>) -> String {
    other.map_or_else(String::new, |mac| format!(", {mac}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, last: u8) -> Link {
        Link { index, name: name.to_owned(), mac: Mac([0x52, 0x54, 0, 0, 0, last]), carrier: true, made: false }
    }

    #[test]
    fn a_missing_interface_names_those_that_are_there() {
        let no_nic = |select, found| NetError::NoNic { select, found };
        let none = no_nic(Selector::Place(0), vec![]);
        assert_eq!(none.code(), "NO_NIC");
        assert_eq!(
            none.to_string(),
            "no network interface number 0 (they count from 0); the interfaces here are none; give QEMU -device virtio-net-pci"
        );
        assert_eq!(
            no_nic(Selector::Mac(Mac([2, 0, 0, 0, 0, 9])), vec![link(2, "eth0", 1), link(3, "eth1", 2)]).to_string(),
            "no network interface with the MAC address 02:00:00:00:00:09; the interfaces here are \
             eth0 (52:54:00:00:00:01), eth1 (52:54:00:00:00:02); give QEMU -device virtio-net-pci"
        );
    }

    #[test]
    fn each_says_what_was_tried() {
        let (link, timeout) = (link(2, "eth0", 1), Duration::from_secs(30));
        for (error, code, words) in [
            (
                NetError::DhcpSilent { link: link.clone(), sent: 5, timeout },
                "NO_ADDRESS",
                "no DHCP server answered 5 packets in 30 s; expected one on this network, or interfaces.N.addresses in the config",
            ),
            (
                NetError::NoIpv6 { link: link.clone(), what: "IPv6 address of a network that a router advertises", timeout },
                "NO_ADDRESS",
                "no IPv6 address of a network that a router advertises in 30 s; expected it on this network, or another \
                 interfaces.N.autoconf in the config",
            ),
            (
                NetError::Conflict {
                    link: link.clone(),
                    address: "10.0.0.1".parse().unwrap(),
                    other: Some(Mac([2, 0, 0, 0, 0, 9])),
                },
                "IP_CONFLICT",
                "the address 10.0.0.1 belongs to another machine, 02:00:00:00:00:09; give each its own",
            ),
            (
                NetError::Conflict { link: link.clone(), address: "fd00::1".parse().unwrap(), other: None },
                "IP_CONFLICT",
                "the address fd00::1 belongs to another machine; give each its own",
            ),
        ] {
            assert_eq!((error.code(), error.to_string()), (code, format!("eth0 (52:54:00:00:00:01): {words}")));
        }
    }
}
