//! DHCPv4 packets (RFC 2131, section 2; options of RFC 2132), as far as a client of one address needs them. What enters are bytes
//! from a network that may be hostile, or a request; what leaves is the other. It never panics and never allocates by a length
//! that a packet gives: what cannot be read is no packet.
//!
//! `dhcproto` 0.15, which does the same, ends in a panic on malformed options (its issue 77), and a panic here ends the boot.

use std::net::Ipv4Addr;

use crate::config::settings::Mac;

/// Largest packet that the client takes, in bytes: what fits an Ethernet frame less IP and UDP headers.
pub const LARGEST: u16 = 1472;

const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
const MAC_LENGTH: u8 = 6;
/// What stands before the options.
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Bytes of a packet before its options, with the cookie.
const HEAD: usize = HEAD_BEFORE_COOKIE + COOKIE.len();
/// The same without the cookie (RFC 2131, section 2).
const HEAD_BEFORE_COOKIE: usize = 236;
/// Shortest packet that old relays pass on, in bytes (RFC 1542, section 2.1).
const SHORTEST: usize = 300;

/// Numbers of the options.
mod option {
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const HOST_NAME: u8 = 12;
    pub const INTERFACE_MTU: u8 = 26;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const WANTED: u8 = 55;
    pub const LARGEST_PACKET: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const CLIENT: u8 = 61;
    pub const END: u8 = 255;
}

/// Options that the client asks for.
const WANTED: [u8; 7] = [
    option::SUBNET_MASK,
    option::ROUTER,
    option::INTERFACE_MTU,
    option::LEASE_TIME,
    option::SERVER,
    option::RENEWAL_TIME,
    option::REBINDING_TIME,
];

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A client looks for servers.
    Discover = 1,
    /// A server offers an address.
    Offer = 2,
    /// A client asks for the address offered.
    Request = 3,
    /// A client found another machine with the address that it was given.
    Decline = 4,
    /// A server gives it.
    Ack = 5,
    /// A server does not.
    Nak = 6,
}

/// A packet of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// Number that the answers repeat.
    pub transaction: u32,
    /// Seconds since the client began.
    pub seconds: u16,
    /// The interface's address.
    pub mac: Mac,
    /// The host name, which some servers list.
    pub hostname: &'a str,
    /// What it is for.
    pub ask: Ask,
}

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// An offer.
    Discover,
    /// The address that the server offered.
    Select {
        /// The server.
        server: Ipv4Addr,
        /// The address.
        address: Ipv4Addr,
    },
    /// More time for the address that the client has.
    Extend {
        /// The address.
        address: Ipv4Addr,
    },
    /// Nothing more to do with an address that another machine has.
    Decline {
        /// The server that gave it.
        server: Ipv4Addr,
        /// The address.
        address: Ipv4Addr,
    },
}

/// A packet of a server, with the options that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What it is for.
    pub kind: Kind,
    /// The number of the request.
    pub transaction: u32,
    /// Whom it is for.
    pub mac: Mac,
    /// The address given or offered.
    pub address: Ipv4Addr,
    /// Who sent it.
    pub server: Ipv4Addr,
    /// Mask of the address's network.
    pub mask: Option<Ipv4Addr>,
    /// First default gateway.
    pub router: Option<Ipv4Addr>,
    /// Largest packet on the network, in bytes.
    pub mtu: Option<u16>,
    /// Seconds that the address is leased for.
    pub lease: Option<u32>,
    /// Seconds until the client asks the server for more.
    pub renewal: Option<u32>,
    /// Seconds until it asks every server.
    pub rebinding: Option<u32>,
}

impl Request<'_> {
    /// The packet's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, own, server) = match self.ask {
            Ask::Discover => (Kind::Discover, None, None),
            Ask::Select { server, address } => (Kind::Request, None, Some((server, address))),
            Ask::Extend { address } => (Kind::Request, Some(address), None),
            Ask::Decline { server, address } => (Kind::Decline, None, Some((server, address))),
        };
        let mut packet = vec![BOOT_REQUEST, ETHERNET, MAC_LENGTH, 0];
        packet.extend(self.transaction.to_be_bytes());
        packet.extend(self.seconds.to_be_bytes());
        // No flags: the client receives unicast before it has an address (RFC 2131, section 4.1).
        packet.extend([0; 2]);
        packet.extend(own.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        // Your, server and gateway address: the server's to fill in.
        packet.extend([0; 12]);
        packet.extend(self.mac.0);
        // The rest of the hardware address, the server's name and the boot file.
        packet.resize(HEAD_BEFORE_COOKIE, 0);
        packet.extend(COOKIE);

        add(&mut packet, option::MESSAGE_TYPE, &[kind as u8]);
        add(&mut packet, option::CLIENT, &[&[ETHERNET], self.mac.0.as_slice()].concat());
        if !matches!(self.ask, Ask::Decline { .. }) {
            add(&mut packet, option::HOST_NAME, self.hostname.as_bytes());
            add(&mut packet, option::LARGEST_PACKET, &LARGEST.to_be_bytes());
            add(&mut packet, option::WANTED, &WANTED);
        }
        if let Some((server, address)) = server {
            add(&mut packet, option::SERVER, &server.octets());
            add(&mut packet, option::REQUESTED_ADDRESS, &address.octets());
        }
        packet.push(option::END);
        packet.resize(packet.len().max(SHORTEST), option::PAD);
        packet
    }
}

impl Reply {
    /// The packet in `bytes`, where they are one of a server to an Ethernet client.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; HEAD] = bytes.first_chunk()?;
        if !head.starts_with(&[BOOT_REPLY, ETHERNET, MAC_LENGTH]) || !head.ends_with(&COOKIE) {
            return None;
        }
        let options = bytes.get(HEAD..)?;
        let address = |code| read(options, code).map(Ipv4Addr::from_octets);
        Some(Self {
            kind: kind(read::<1>(options, option::MESSAGE_TYPE)?)?,
            transaction: u32::from_be_bytes(*bytes.get(4..)?.first_chunk()?),
            mac: Mac(*bytes.get(28..)?.first_chunk()?),
            address: Ipv4Addr::from_octets(*bytes.get(16..)?.first_chunk()?),
            server: address(option::SERVER)?,
            mask: address(option::SUBNET_MASK),
            router: address(option::ROUTER),
            mtu: read(options, option::INTERFACE_MTU).map(u16::from_be_bytes),
            lease: read(options, option::LEASE_TIME).map(u32::from_be_bytes),
            renewal: read(options, option::RENEWAL_TIME).map(u32::from_be_bytes),
            rebinding: read(options, option::REBINDING_TIME).map(u32::from_be_bytes),
        })
    }
}

/// The kind that a client can be sent.
const fn kind([number]: [u8; 1]) -> Option<Kind> {
    match number {
        2 => Some(Kind::Offer),
        5 => Some(Kind::Ack),
        6 => Some(Kind::Nak),
        _ => None,
    }
}

/// Adds an option. Every value here is far shorter than the 255 bytes that one can have.
fn add(packet: &mut Vec<u8>, code: u8, value: &[u8]) {
    let value = value.get(..255).unwrap_or(value);
    packet.extend([code, u8::try_from(value.len()).unwrap_or(u8::MAX)]);
    packet.extend(value);
}

/// The first `N` bytes of the first option `code`, where it has as many; a list of addresses gives its first.
fn read<const N: usize>(mut options: &[u8], code: u8) -> Option<[u8; N]> {
    loop {
        let (found, rest) = options.split_first()?;
        match *found {
            option::END => return None,
            option::PAD => options = rest,
            found => {
                let (length, rest) = rest.split_first()?;
                let (value, rest) = rest.split_at_checked(usize::from(*length))?;
                if found == code {
                    return value.first_chunk().copied();
                }
                options = rest;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The packet that a server would send.
    pub fn encode(reply: &Reply) -> Vec<u8> {
        let mut packet = vec![BOOT_REPLY, ETHERNET, MAC_LENGTH, 0];
        packet.extend(reply.transaction.to_be_bytes());
        packet.extend([0; 8]);
        packet.extend(reply.address.octets());
        packet.extend([0; 8]);
        packet.extend(reply.mac.0);
        packet.resize(HEAD - 4, 0);
        packet.extend(COOKIE);
        packet.extend([option::PAD, option::PAD]);
        add(&mut packet, option::MESSAGE_TYPE, &[reply.kind as u8]);
        add(&mut packet, option::SERVER, &reply.server.octets());
        add(&mut packet, 15, b"example.com");
        reply.mask.iter().for_each(|mask| add(&mut packet, option::SUBNET_MASK, &mask.octets()));
        reply.router.iter().for_each(|router| add(&mut packet, option::ROUTER, &[router.octets(), [9, 9, 9, 9]].concat()));
        reply.mtu.iter().for_each(|mtu| add(&mut packet, option::INTERFACE_MTU, &mtu.to_be_bytes()));
        let times =
            [(option::LEASE_TIME, reply.lease), (option::RENEWAL_TIME, reply.renewal), (option::REBINDING_TIME, reply.rebinding)];
        let times = times.into_iter().filter_map(|(code, time)| Some((code, time?)));
        times.for_each(|(code, time)| add(&mut packet, code, &time.to_be_bytes()));
        packet.push(option::END);
        packet
    }

    pub fn offer() -> Reply {
        Reply {
            kind: Kind::Offer,
            transaction: 7,
            mac: Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            address: Ipv4Addr::new(10, 0, 2, 15),
            server: Ipv4Addr::new(10, 0, 2, 2),
            mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
            router: Some(Ipv4Addr::new(10, 0, 2, 1)),
            mtu: Some(1400),
            lease: Some(86_400),
            renewal: None,
            rebinding: None,
        }
    }

    #[test]
    fn a_discover_is_what_the_rfc_draws() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let request = Request { transaction: 0x0102_0304, seconds: 5, mac, hostname: "reg", ask: Ask::Discover };
        let packet = request.encode();
        assert_eq!(packet[..12], [1, 1, 6, 0, 1, 2, 3, 4, 0, 5, 0, 0]);
        assert_eq!(packet[12..28], [0; 16]);
        assert_eq!(packet[28..34], mac.0);
        assert_eq!(packet[34..236], [0; 202]);
        let options = [
            &[99, 130, 83, 99, 53, 1, 1, 61, 7, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 12, 3][..],
            b"reg",
            &[57, 2, 5, 192, 55, 7, 1, 3, 26, 51, 54, 58, 59, 255],
        ]
        .concat();
        assert_eq!(packet[236..236 + options.len()], options);
        assert_eq!(packet.len(), 300);
    }

    #[test]
    fn a_request_says_what_it_is_for() {
        let (server, address) = (Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 2, 15));
        let encode = |ask| Request { transaction: 1, seconds: 0, mac: Mac([0; 6]), hostname: "h", ask }.encode();
        for (ask, kind, listed) in [(Ask::Select { server, address }, 3, true), (Ask::Decline { server, address }, 4, false)] {
            let packet = encode(ask);
            let options = &packet[HEAD..];
            assert_eq!(packet[10..16], [0, 0, 0, 0, 0, 0], "no broadcast is asked for, and no address is ours");
            assert_eq!(read(options, option::MESSAGE_TYPE), Some([kind]));
            assert_eq!(read(options, option::SERVER), Some(server.octets()));
            assert_eq!(read(options, option::REQUESTED_ADDRESS), Some(address.octets()));
            assert_eq!(read::<1>(options, option::WANTED).is_some(), listed);
            assert_eq!(read::<1>(options, option::HOST_NAME).is_some(), listed);
        }
        let packet = encode(Ask::Extend { address });
        let options = &packet[HEAD..];
        assert_eq!(packet[10..20], [0, 0, 10, 0, 2, 15, 0, 0, 0, 0], "the answer comes to the address");
        assert_eq!(read(options, option::MESSAGE_TYPE), Some([3]));
        assert_eq!((read::<4>(options, option::SERVER), read::<4>(options, option::REQUESTED_ADDRESS)), (None, None));
    }

    #[test]
    fn a_reply_is_read_back() {
        let full = offer();
        assert_eq!(Reply::parse(&encode(&full)), Some(full));
        let timed = Reply { renewal: Some(2), rebinding: Some(3), ..offer() };
        assert_eq!(Reply::parse(&encode(&timed)), Some(timed));
        let bare = Reply { kind: Kind::Nak, mask: None, router: None, mtu: None, lease: None, ..offer() };
        assert_eq!(Reply::parse(&encode(&bare)), Some(bare));
    }

    #[test]
    fn what_is_no_reply_is_nothing() {
        let good = encode(&offer());
        for (at, value) in [(0, BOOT_REQUEST), (1, 6), (2, 16), (236, 0), (242, 99), (244, 1)] {
            let mut packet = good.clone();
            packet[at] = value;
            assert_eq!(Reply::parse(&packet), None, "byte {at} = {value}");
        }
        for length in 0..254 {
            assert_eq!(Reply::parse(&good[..length.min(250)]), None, "{length} bytes");
        }
    }

    #[test]
    fn an_option_too_short_or_past_the_end_is_not_there() {
        assert_eq!(read::<4>(&[1, 3, 255, 255, 255], 1), None);
        assert_eq!(read::<4>(&[1, 4, 255, 255, 255], 1), None);
        assert_eq!(read::<4>(&[12, 200, 1, 4, 255, 255, 255, 0], 1), None);
        assert_eq!(read::<4>(&[255, 1, 4, 255, 255, 255, 0], 1), None);
        assert_eq!(read::<4>(&[0, 0, 1, 5, 255, 255, 255, 0, 9], 1), Some([255, 255, 255, 0]));
    }

    proptest! {
        #[test]
        fn no_packet_panics(mut packet in proptest::collection::vec(any::<u8>(), 0..600), shaped in any::<bool>()) {
            if shaped && packet.len() > HEAD {
                packet[..3].copy_from_slice(&[BOOT_REPLY, ETHERNET, MAC_LENGTH]);
                packet[236..240].copy_from_slice(&COOKIE);
            }
            if let Some(reply) = Reply::parse(&packet) {
                prop_assert_eq!(Reply::parse(&encode(&reply)), Some(reply));
            }
        }
    }
}
