//! The errors of the network, with stable codes.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::dhcp_client::Refusal;
use super::interface_selection::{describe_selector, list_links};
use super::link::Link;
use crate::config::settings::{Mac, Selector};

/// Why the network, or one interface, is not usable.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No interface matches the config.
    #[error("no network interface {}; interfaces found: {}; give QEMU -device virtio-net-pci", describe_selector(*selector), list_links(found))]
    NoNic {
        /// The interface in the config.
        selector: Selector,
        /// The interfaces found.
        found: Vec<Link>,
    },
    /// No DHCP server answered.
    #[error(
        "{link}: no DHCP server answered {sent} packets in {} s; start one on this network, or set interfaces.N.addresses in the config",
        timeout.as_secs()
    )]
    DhcpSilent {
        /// The interface.
        link: Link,
        /// Packets sent.
        sent: u32,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// A DHCP server refused the request, or offered an unusable address.
    #[error("{link}: the DHCP server gave no address")]
    DhcpRefused {
        /// The interface.
        link: Link,
        /// Why.
        source: Refusal,
    },
    /// A lease expired.
    #[error("{link}: the lease of {address} expired because no DHCP server answered")]
    LeaseEnded {
        /// The interface.
        link: Link,
        /// The address that was removed.
        address: IpAddr,
    },
    /// The interface has no carrier.
    #[error("{link}: no carrier after {} s", timeout.as_secs())]
    NoCarrier {
        /// The interface.
        link: Link,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The interface was removed or lost its carrier.
    #[error("{link}: the interface was removed or lost its carrier")]
    LinkDown {
        /// The interface.
        link: Link,
    },
    /// No IPv6 address arrived.
    #[error("{link}: no {what} within {} s; check this network, or change interfaces.N.autoconf in the config", timeout.as_secs())]
    NoIpv6 {
        /// The interface.
        link: Link,
        /// What was waited for.
        what: &'static str,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// Another machine uses the address.
    #[error("{link}: the address {address} is already used by another machine{}; give each machine its own", by(*other))]
    Conflict {
        /// The interface.
        link: Link,
        /// The address.
        address: IpAddr,
        /// The other machine, if it is known.
        other: Option<Mac>,
    },
    /// The kernel rejected an operation.
    #[error("cannot {action}")]
    Kernel {
        /// The operation with its operands.
        action: String,
        /// Why.
        source: io::Error,
    },
}

impl NetError {
    /// The error that the kernel rejected `action`.
    pub(crate) const fn kernel(action: String, source: io::Error) -> Self {
        Self::Kernel { action, source }
    }

    /// Stable code of the error.
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
        Link { index, name: name.to_owned(), mac: Mac([0x52, 0x54, 0, 0, 0, last]), carrier: true, is_virtual: false }
    }

    #[test]
    fn missing_interface_error_lists_the_interfaces_found() {
        let no_nic = |selector, found| NetError::NoNic { selector, found };
        let none = no_nic(Selector::Place(0), vec![]);
        assert_eq!(none.code(), "NO_NIC");
        assert_eq!(
            none.to_string(),
            "no network interface number 0 (counted from 0); interfaces found: none; give QEMU -device virtio-net-pci"
        );
        assert_eq!(
            no_nic(Selector::Mac(Mac([2, 0, 0, 0, 0, 9])), vec![link(2, "eth0", 1), link(3, "eth1", 2)]).to_string(),
            "no network interface with the MAC address 02:00:00:00:00:09; interfaces found: \
             eth0 (52:54:00:00:00:01), eth1 (52:54:00:00:00:02); give QEMU -device virtio-net-pci"
        );
    }

    #[test]
    fn each_error_says_what_failed_and_what_to_do() {
        let (link, timeout) = (link(2, "eth0", 1), Duration::from_secs(30));
        for (error, code, words) in [
            (
                NetError::DhcpSilent { link: link.clone(), sent: 5, timeout },
                "NO_ADDRESS",
                "no DHCP server answered 5 packets in 30 s; start one on this network, or set interfaces.N.addresses in the config",
            ),
            (
                NetError::NoIpv6 { link: link.clone(), what: "IPv6 address with a prefix that a router advertises", timeout },
                "NO_ADDRESS",
                "no IPv6 address with a prefix that a router advertises within 30 s; check this network, or change \
                 interfaces.N.autoconf in the config",
            ),
            (
                NetError::Conflict {
                    link: link.clone(),
                    address: "10.0.0.1".parse().unwrap(),
                    other: Some(Mac([2, 0, 0, 0, 0, 9])),
                },
                "IP_CONFLICT",
                "the address 10.0.0.1 is already used by another machine, 02:00:00:00:00:09; give each machine its own",
            ),
            (
                NetError::Conflict { link: link.clone(), address: "fd00::1".parse().unwrap(), other: None },
                "IP_CONFLICT",
                "the address fd00::1 is already used by another machine; give each machine its own",
            ),
        ] {
            assert_eq!((error.code(), error.to_string()), (code, format!("eth0 (52:54:00:00:00:01): {words}")));
        }
    }
}
