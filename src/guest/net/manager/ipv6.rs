//! Waits for IPv6 addresses. The kernel configures them and checks them for duplicates by itself.

use std::net::IpAddr;

use tokio::time::{Instant, timeout_at};

use crate::config::settings::{Cidr, Ipv6Wait};
use crate::guest::net::link::{AddressState, Link};
use crate::guest::net::{NetError, conflict};

use super::InterfaceManager;

impl InterfaceManager {
    /// Waits until the static IPv6 addresses, and the one that the config waits for, are usable.
    pub(crate) async fn wait_for_ipv6(&mut self, link: &Link, deadline: Instant) -> Result<(), NetError> {
        loop {
            self.changes.mark_unchanged();
            let Some(what) = self.missing_ipv6(link)? else { return Ok(()) };
            if timeout_at(deadline, self.change()).await.is_err() {
                return Err(NetError::NoIpv6 { link: link.clone(), what, timeout: self.interface.timeout });
            }
        }
    }

    /// What is missing, in words.
    fn missing_ipv6(&self, link: &Link) -> Result<Option<&'static str>, NetError> {
        let found = self.shared.links.addresses()?;
        let own: Vec<_> = found.iter().filter(|one| one.index == link.index).collect();
        for wanted in self.interface.addresses.iter().filter(|wanted| wanted.address.is_ipv6()) {
            match own.iter().find(|one| one.address == wanted.address).map(|one| one.state) {
                Some(AddressState::Usable) => {}
                Some(AddressState::Duplicate) => return Err(self.take_back_duplicate(link, *wanted)),
                Some(AddressState::Tentative) | None => {
                    return Ok(Some("result of the duplicate check of a static IPv6 address"));
                }
            }
        }
        let is_static = |address: IpAddr| self.interface.addresses.iter().any(|wanted| wanted.address == address);
        let mut automatic = own.iter().filter(|one| one.state == AddressState::Usable && !is_static(one.address));
        let is_local = |address: IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        Ok(match self.interface.ipv6_wait {
            Ipv6Wait::Advertised if !automatic.any(|one| one.address.is_ipv6() && !is_local(one.address)) => {
                Some("IPv6 address with a prefix that a router advertises")
            }
            Ipv6Wait::LinkLocal if !automatic.any(|one| is_local(one.address)) => Some("IPv6 link-local address"),
            _ => None,
        })
    }

    /// Handles a static address that another machine has: removes it, so that the kernel checks it again at the next attempt.
    fn take_back_duplicate(&self, link: &Link, duplicate: Cidr) -> NetError {
        let address = duplicate.address;
        let other = if let IpAddr::V6(address) = address { conflict::ipv6_conflict(address) } else { None };
        match self.shared.links.remove_address(link, duplicate) {
            Ok(()) => NetError::Conflict { link: link.clone(), address, other },
            Err(error) => error,
        }
    }
}
