//! The IPv6 addresses of an interface, which the kernel gives and asks others for by itself. What enters is what the settings wait for;
//! what leaves is that it is there, or whose it is. It never makes an address.

use std::net::IpAddr;

use tokio::time::{Instant, timeout_at};

use crate::config::settings::{Cidr, Ipv6Wait};
use crate::guest::net::link::{Link, State};
use crate::guest::net::{NetError, conflict};

use super::Keeper;

impl Keeper {
    /// Waits until the IPv6 addresses are ours: the static ones, and those that the settings wait for.
    pub(crate) async fn wait_for_ipv6(&mut self, link: &Link, deadline: Instant) -> Result<(), NetError> {
        loop {
            self.changes.mark_unchanged();
            let waited_for = self.missing_ipv6(link)?;
            let Some(what) = waited_for else { return Ok(()) };
            if timeout_at(deadline, self.change()).await.is_err() {
                return Err(NetError::NoIpv6 { link: link.clone(), what, timeout: self.interface.timeout });
            }
        }
    }

    /// Which IPv6 address is not there yet, in words.
    fn missing_ipv6(&self, link: &Link) -> Result<Option<&'static str>, NetError> {
        let found = self.shared.links.addresses()?;
        let own: Vec<_> = found.iter().filter(|one| one.index == link.index).collect();
        for given in self.interface.addresses.iter().filter(|given| given.address.is_ipv6()) {
            match own.iter().find(|one| one.address == given.address).map(|one| one.state) {
                Some(State::Ours) => {}
                Some(State::Duplicate) => return Err(self.conflict_6(link, *given)),
                Some(State::Tentative) | None => return Ok(Some("answer whether a static IPv6 address is free")),
            }
        }
        let is_given = |address: IpAddr| self.interface.addresses.iter().any(|given| given.address == address);
        let mut ours = own.iter().filter(|one| one.state == State::Ours && !is_given(one.address));
        let is_local = |address: IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        Ok(match self.interface.ipv6_wait {
            Ipv6Wait::Advertised if !ours.any(|one| one.address.is_ipv6() && !is_local(one.address)) => {
                Some("IPv6 address of a network that a router advertises")
            }
            Ipv6Wait::LinkLocal if !ours.any(|one| is_local(one.address)) => Some("IPv6 link-local address"),
            _ => None,
        })
    }

    /// Another machine has the static address `given`, which is taken back, so that it is asked for anew the next time.
    fn conflict_6(&self, link: &Link, given: Cidr) -> NetError {
        let address = given.address;
        let other = if let IpAddr::V6(address) = address { conflict::culprit(address) } else { None };
        match self.shared.links.remove_address(link, given) {
            Ok(()) => NetError::Conflict { link: link.clone(), address, other },
            Err(error) => error,
        }
    }
}
