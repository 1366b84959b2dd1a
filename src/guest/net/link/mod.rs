//! Configures interfaces, addresses and routes through rtnetlink.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::config::settings::{Cidr, Mac};

use super::NetError;
use super::netlink::{self, Message, NetlinkRequest, attribute, find, flag, kind};

/// Index of the loopback, which the kernel creates first.
const LOOPBACK: u32 = 1;
/// Twice the largest message batch that the kernel sends, in bytes (net/netlink/af_netlink.c, `netlink_dump`).
const BUFFER_BYTES: usize = 64 * 1024;
/// Timeout for an answer, in seconds. The kernel answers at once.
const ANSWER_TIMEOUT: i64 = 10;

/// Attribute types and values (uapi/linux/if_link.h, if_addr.h, rtnetlink.h, if_arp.h, if.h).
mod number {
    pub const LINK_ADDRESS: u16 = 1;
    pub const LINK_NAME: u16 = 3;
    pub const LINK_MTU: u16 = 4;
    pub const LINK_PARENT: u16 = 5;
    pub const LINK_INFO: u16 = 18;
    pub const INFO_KIND: u16 = 1;
    pub const INFO_DATA: u16 = 2;
    pub const VLAN_ID: u16 = 1;
    pub const ETHERNET: u16 = 1;
    pub const UP: u32 = 1;
    pub const LOWER_UP: u32 = 0x1_0000;
    pub const ADDRESS: u16 = 1;
    pub const ADDRESS_LOCAL: u16 = 2;
    pub const ADDRESS_BROADCAST: u16 = 4;
    pub const ADDRESS_FLAGS: u16 = 8;
    pub const DAD_FAILED: u32 = 8;
    pub const TENTATIVE: u32 = 0x40;
    pub const ROUTE_LINK: u16 = 4;
    pub const ROUTE_GATEWAY: u16 = 5;
    pub const ROUTE_PRIORITY: u16 = 6;
    pub const ROUTE_ON_LINK: u32 = 4;
}

/// An Ethernet interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index of the interface.
    pub index: u32,
    /// Name, such as `eth0`.
    pub name: String,
    /// Its MAC address.
    pub mac: Mac,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Whether it is a virtual interface, such as a VLAN.
    pub is_virtual: bool,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.mac)
    }
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AssignedAddress {
    /// Index of the interface.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Whether it is usable. The kernel checks IPv6 addresses for duplicates first (RFC 4862, section 5.4).
    pub state: AddressState,
}

/// The state of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressState {
    /// No other machine has it.
    Usable,
    /// The kernel checks for duplicates.
    Tentative,
    /// Another machine has it.
    Duplicate,
}

/// The kernel's interfaces, through one netlink socket.
#[derive(Debug)]
pub struct Links {
    socket: Mutex<(OwnedFd, u32)>,
}

impl Links {
    /// Opens the socket.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub fn open() -> Result<Self, NetError> {
        let opened = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
        let opened =
            opened.and_then(|socket| setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT)).map(|()| socket));
        let opened = opened.map_err(|error| NetError::kernel("open a netlink socket".to_owned(), error.into()))?;
        Ok(Self { socket: Mutex::new((opened, 0)) })
    }

    /// Brings the loopback up.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub fn up_loopback(&self) -> Result<(), NetError> {
        self.execute(set_up(LOOPBACK, None)).map_err(|source| NetError::kernel("bring lo up".to_owned(), source))
    }

    /// The Ethernet interfaces, in the order in which the kernel found them.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub fn ethernet(&self) -> Result<Vec<Link>, NetError> {
        let mut links = Vec::new();
        let request = NetlinkRequest::new(kind::GET_LINK, flag::DUMP, &[0; 16]);
        let listed = self.exchange(request, &mut |message| links.extend(ethernet(message)));
        listed.map_err(|source| NetError::kernel("list the network interfaces".to_owned(), source))?;
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Brings `link` up and sets its MTU to `mtu`, if given.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub fn up(&self, link: &Link, mtu: Option<u32>) -> Result<(), NetError> {
        let suffix = |mtu| format!(" with MTU {mtu}");
        let action = || format!("bring {link} up{}", mtu.map_or_else(String::new, suffix));
        self.execute(set_up(link.index, mtu)).map_err(|source| NetError::kernel(action(), source))
    }

    /// Creates the VLAN `id` on `link`.
    ///
    /// # Errors
    /// Fails if the kernel refuses, such as without a VLAN driver.
    pub fn add_vlan(&self, link: &Link, id: u16) -> Result<(), NetError> {
        let result = self.execute(vlan(link, id));
        result.map_err(|source| NetError::kernel(format!("create the VLAN {id} on {link}"), source))
    }

    /// Adds an address to `link`. Succeeds if it is there already.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub fn add_address(&self, link: &Link, own: Cidr) -> Result<(), NetError> {
        let result = self.execute(address(kind::NEW_ADDRESS, flag::CREATE | flag::REPLACE, link.index, own));
        result.map_err(|source| NetError::kernel(format!("add the address {own} to {link}"), source))
    }

    /// Removes an address from `link`. Succeeds if the address or the interface is gone already.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub fn remove_address(&self, link: &Link, own: Cidr) -> Result<(), NetError> {
        match self.execute(address(kind::DELETE_ADDRESS, 0, link.index, own)) {
            Err(error) if !matches!(error.raw_os_error(), Some(nix::libc::EADDRNOTAVAIL | nix::libc::ENODEV)) => {
                Err(NetError::kernel(format!("remove the address {own} from {link}"), error))
            }
            _ => Ok(()),
        }
    }

    /// Adds a default route to `gateway` through `link`. Of several default routes the kernel uses the one with the lowest
    /// `priority`. With `on_link` the gateway need not be in a network of `link`.
    ///
    /// # Errors
    /// Fails if the kernel refuses, such as for a `gateway` in no network of `link`.
    pub fn add_default_route(&self, link: &Link, gateway: IpAddr, priority: u32, on_link: bool) -> Result<(), NetError> {
        let result = self.execute(default_route(link.index, gateway, priority, on_link));
        result.map_err(|source| NetError::kernel(format!("make {gateway} the default gateway of {link}"), source))
    }

    /// All addresses of the guest.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub fn addresses(&self) -> Result<Vec<AssignedAddress>, NetError> {
        let mut addresses = Vec::new();
        let request = NetlinkRequest::new(kind::GET_ADDRESS, flag::DUMP, &[0; 8]);
        let listed = self.exchange(request, &mut |message| addresses.extend(assigned(message)));
        listed.map_err(|source| NetError::kernel("list the addresses".to_owned(), source))?;
        Ok(addresses)
    }

    fn execute(&self, request: NetlinkRequest) -> io::Result<()> {
        self.exchange(request, &mut |_| {})
    }

    /// Sends a request and passes each message of the answer to `take`.
    fn exchange(&self, request: NetlinkRequest, take: &mut dyn FnMut(&Message<'_>)) -> io::Result<()> {
        let mut guard = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let (socket, sequence) = &mut *guard;
        *sequence = sequence.wrapping_add(1);
        send(socket.as_raw_fd(), &request.finish(*sequence), MsgFlags::empty())?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let received = buffer.get(..length).unwrap_or_default();
            for message in netlink::messages(received).filter(|message| message.sequence == *sequence) {
                match message.kind {
                    kind::ERROR | kind::DONE => return outcome(message.body),
                    _ => take(&message),
                }
            }
        }
    }
}

/// The result in the message that ends an answer: 0, or a negative errno.
fn outcome(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().copied().map_or(0, i32::from_ne_bytes) {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number.saturating_neg())),
    }
}

/// The fixed part of a message about the interface `index`, which sets the flags in `change`.
fn link_body(index: u32, change: u32) -> Vec<u8> {
    [&[0; 4][..], &index.to_ne_bytes(), &change.to_ne_bytes(), &change.to_ne_bytes()].concat()
}

fn set_up(index: u32, mtu: Option<u32>) -> NetlinkRequest {
    let request = NetlinkRequest::new(kind::NEW_LINK, flag::ACKNOWLEDGE, &link_body(index, number::UP));
    mtu.into_iter().fold(request, |request, mtu| request.with(number::LINK_MTU, &mtu.to_ne_bytes()))
}

fn vlan(link: &Link, id: u16) -> NetlinkRequest {
    let data = attribute(number::VLAN_ID, &id.to_ne_bytes());
    let info = [attribute(number::INFO_KIND, b"vlan\0"), attribute(number::INFO_DATA, &data)].concat();
    NetlinkRequest::new(kind::NEW_LINK, flag::ACKNOWLEDGE | flag::CREATE | flag::EXCLUSIVE, &link_body(0, 0))
        .with(number::LINK_NAME, format!("{}.{id}\0", link.name).as_bytes())
        .with(number::LINK_PARENT, &link.index.to_ne_bytes())
        .with(number::LINK_INFO, &info)
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 };
    u8::try_from(family).unwrap_or_default()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address(kind: u16, flags: u16, index: u32, own: Cidr) -> NetlinkRequest {
    let body = [&[family(own.address), own.prefix, 0, 0][..], &index.to_ne_bytes()].concat();
    let octets = octets(own.address);
    let request = NetlinkRequest::new(kind, flags | flag::ACKNOWLEDGE, &body);
    let request = request.with(number::ADDRESS_LOCAL, &octets).with(number::ADDRESS, &octets);
    match own.address {
        // Networks with one or two addresses have no broadcast address (RFC 3021).
        IpAddr::V4(address) if own.prefix < 31 => {
            let broadcast = address.to_bits() | u32::MAX.checked_shr(own.prefix.into()).unwrap_or_default();
            request.with(number::ADDRESS_BROADCAST, &broadcast.to_be_bytes())
        }
        _ => request,
    }
}

fn default_route(index: u32, gateway: IpAddr, priority: u32, on_link: bool) -> NetlinkRequest {
    // Main table (254), RTPROT_STATIC (4), universal scope (0), RTN_UNICAST (1).
    let flags = if on_link { number::ROUTE_ON_LINK } else { 0 };
    let body = [&[family(gateway), 0, 0, 0, 254, 4, 0, 1][..], &flags.to_ne_bytes()].concat();
    NetlinkRequest::new(kind::NEW_ROUTE, flag::ACKNOWLEDGE | flag::CREATE | flag::REPLACE, &body)
        .with(number::ROUTE_GATEWAY, &octets(gateway))
        .with(number::ROUTE_LINK, &index.to_ne_bytes())
        .with(number::ROUTE_PRIORITY, &priority.to_ne_bytes())
}

/// Parses the Ethernet interface in `message`.
fn ethernet(message: &Message<'_>) -> Option<Link> {
    let at = |offset: usize| Some(u32::from_ne_bytes(*message.body.get(offset..)?.first_chunk()?));
    let kind = u16::from_ne_bytes(*message.body.get(2..)?.first_chunk()?);
    let (index, flags) = (at(4)?, at(8)?);
    if message.kind != kind::NEW_LINK || kind != number::ETHERNET {
        return None;
    }
    let attributes = message.body.get(16..)?;
    let name = find(attributes, number::LINK_NAME)?.split(|byte| *byte == 0).next()?;
    let info = find(attributes, number::LINK_INFO).unwrap_or_default();
    Some(Link {
        index,
        name: String::from_utf8_lossy(name).into_owned(),
        mac: Mac(find(attributes, number::LINK_ADDRESS)?.try_into().ok()?),
        carrier: flags & number::LOWER_UP != 0,
        is_virtual: find(info, number::INFO_KIND).is_some(),
    })
}

/// Parses the address in `message`.
fn assigned(message: &Message<'_>) -> Option<AssignedAddress> {
    let [_, _, short_flags, _, i0, i1, i2, i3] = *message.body.first_chunk::<8>()?;
    let attributes = message.body.get(8..)?;
    // On a point-to-point interface, ADDRESS is the peer's.
    let octets = find(attributes, number::ADDRESS_LOCAL).or_else(|| find(attributes, number::ADDRESS))?;
    let address = match octets.len() {
        4 => IpAddr::V4(Ipv4Addr::from_octets(octets.try_into().ok()?)),
        _ => IpAddr::V6(Ipv6Addr::from_octets(octets.try_into().ok()?)),
    };
    let flags = find(attributes, number::ADDRESS_FLAGS).and_then(|flags| Some(u32::from_ne_bytes(flags.try_into().ok()?)));
    let flags = flags.unwrap_or_else(|| short_flags.into());
    let state = if flags & number::DAD_FAILED != 0 {
        AddressState::Duplicate
    } else if flags & number::TENTATIVE != 0 {
        AddressState::Tentative
    } else {
        AddressState::Usable
    };
    let is_one = message.kind == kind::NEW_ADDRESS;
    is_one.then(|| AssignedAddress { index: u32::from_ne_bytes([i0, i1, i2, i3]), address, state })
}

#[cfg(test)]
mod tests;
