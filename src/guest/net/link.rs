//! Interfaces, addresses and routes through rtnetlink. What enters is what should be; what leaves is the kernel told so, or the
//! error with every operand. It never decides.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::guest::config::settings::{Cidr, Mac};

use super::NetError;

/// Index of the loopback, which the kernel makes first.
const LOOPBACK: u32 = 1;

/// An Ethernet interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Number of the interface.
    pub index: u32,
    /// Name, such as `eth0`.
    pub name: String,
    /// Its address.
    pub mac: Mac,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.mac)
    }
}

/// The kernel's interfaces, over one netlink socket.
#[derive(Debug)]
pub struct Links {
    handle: Handle,
}

impl Links {
    /// Opens the socket. Must be called within the runtime.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn open() -> Result<Self, NetError> {
        let action = || "open a netlink socket".to_owned();
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| NetError::Kernel { action: action(), source })?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Brings the loopback up.
    ///
    /// # Errors
    /// When the kernel does not.
    pub async fn up_loopback(&self) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(LOOPBACK).up().build();
        self.handle.link().set(message).execute().await.map_err(refused(|| "bring lo up".to_owned()))
    }

    /// The Ethernet interfaces, in the order in which the kernel found them.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub async fn ethernet(&self) -> Result<Vec<Link>, NetError> {
        let messages = self.handle.link().get().execute().try_collect::<Vec<_>>();
        let messages = messages.await.map_err(refused(|| "list the network interfaces".to_owned()))?;
        let mut links: Vec<_> = messages.iter().filter_map(ethernet).collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Brings `link` up, with its largest packet set to `mtu` where that is given.
    ///
    /// # Errors
    /// When the kernel does not.
    pub async fn up(&self, link: &Link, mtu: Option<u32>) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index).up();
        let message = mtu.into_iter().fold(message, |message, mtu| message.mtu(mtu)).build();
        let action = || match mtu {
            Some(mtu) => format!("bring {link} up with MTU {mtu}"),
            None => format!("bring {link} up"),
        };
        self.handle.link().set(message).execute().await.map_err(refused(action))
    }

    /// Whether `link` is connected to something.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub async fn has_carrier(&self, link: &Link) -> Result<bool, NetError> {
        let messages = self.handle.link().get().match_index(link.index).execute().try_collect::<Vec<_>>();
        let messages = messages.await.map_err(refused(|| format!("look whether {link} is connected")))?;
        Ok(messages.iter().any(|message| message.header.flags.contains(LinkFlags::LowerUp)))
    }

    /// Gives `link` an address; one that it has already is fine.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub async fn add_address(&self, link: &Link, own: Cidr) -> Result<(), NetError> {
        let request = self.handle.address().add(link.index, own.address, own.prefix).replace();
        request.execute().await.map_err(refused(|| format!("give {link} the address {own}")))
    }

    /// Sends what is for no network of ours to `gateway` through `link`.
    ///
    /// # Errors
    /// When the kernel does not take it, as where `gateway` is in no network of `link`.
    pub async fn add_default_route(&self, link: &Link, gateway: IpAddr) -> Result<(), NetError> {
        let request = self.handle.route().add(default_route(link, gateway)).replace();
        request.execute().await.map_err(refused(|| format!("make {gateway} the default gateway of {link}")))
    }

    /// Every address of the guest that others can reach it by: no loopback, no link-local one, which means nothing without an
    /// interface.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub async fn addresses(&self) -> Result<Vec<IpAddr>, NetError> {
        let messages = self.handle.address().get().execute().try_collect::<Vec<_>>();
        let messages = messages.await.map_err(refused(|| "list the addresses".to_owned()))?;
        let attributes = messages.into_iter().flat_map(|message| message.attributes);
        let addresses = attributes.filter_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(address),
            _ => None,
        });
        Ok(addresses.filter(|address| is_reachable(*address)).collect())
    }
}

fn ethernet(message: &LinkMessage) -> Option<Link> {
    let header = &message.header;
    if header.link_layer_type != LinkLayerType::Ether || header.flags.contains(LinkFlags::Loopback) {
        return None;
    }
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })?;
    Some(Link { index: header.index, name, mac })
}

fn default_route(link: &Link, gateway: IpAddr) -> RouteMessage {
    match gateway {
        IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new().output_interface(link.index).gateway(gateway).build(),
        IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new().output_interface(link.index).gateway(gateway).build(),
    }
}

fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}

/// The error for `action`, which the kernel refused.
fn refused(action: impl FnOnce() -> String) -> impl FnOnce(rtnetlink::Error) -> NetError {
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        };
        NetError::Kernel { action: action(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_others_reach_count() {
        for (address, reachable) in [
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("::1", false),
            ("fe80::1", false),
            ("10.0.2.15", true),
            ("fec0::5", true),
            ("2001:db8::1", true),
        ] {
            assert_eq!(is_reachable(address.parse().unwrap()), reachable, "{address}");
        }
    }

    #[test]
    fn a_refusal_names_what_was_done() {
        let action = || "give eth0 (02:00:00:00:00:01) the address 10.0.0.1/8".to_owned();
        let error = refused(action)(rtnetlink::Error::RequestFailed);
        assert_eq!(error.code(), "BAD_NETWORK");
        assert_eq!(error.to_string(), "give eth0 (02:00:00:00:00:01) the address 10.0.0.1/8");
    }
}
