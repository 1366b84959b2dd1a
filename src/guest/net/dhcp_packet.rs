//! Builds and parses DHCPv4 packets (RFC 2131, section 2; options of RFC 2132), as far as a client for one address needs them.
//! Input is untrusted: parsing never panics and never allocates by a length taken from the packet.
//!

use std::net::Ipv4Addr;

use crate::config::settings::Mac;

/// Largest packet that the client accepts, in bytes: the Ethernet MTU less IP and UDP headers.
pub const MAX_PACKET: u16 = 1472;

const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
const MAC_LENGTH: u8 = 6;
/// The magic cookie before the options.
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Bytes before the options, with the cookie.
const OPTIONS_OFFSET: usize = FIXED_FIELDS + COOKIE.len();
/// Bytes before the cookie (RFC 2131, section 2).
const FIXED_FIELDS: usize = 236;
/// Shortest packet that old relays forward, in bytes (RFC 1542, section 2.1).
const MIN_PACKET: usize = 300;

/// Option codes.
mod option {
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const HOST_NAME: u8 = 12;
    pub const INTERFACE_MTU: u8 = 26;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETER_LIST: u8 = 55;
    pub const MAX_MESSAGE_SIZE: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const CLIENT_ID: u8 = 61;
    pub const END: u8 = 255;
}

/// The parameter request list.
const PARAMETER_LIST: [u8; 7] = [
    option::SUBNET_MASK,
    option::ROUTER,
    option::INTERFACE_MTU,
    option::LEASE_TIME,
    option::SERVER_ID,
    option::RENEWAL_TIME,
    option::REBINDING_TIME,
];

/// The DHCP message type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageType {
    /// A client looks for servers.
    Discover = 1,
    /// A server offers an address.
    Offer = 2,
    /// A client asks for the address offered.
    Request = 3,
    /// A client found another machine with the address that the server gave it.
    Decline = 4,
    /// A server confirms the address.
    Ack = 5,
    /// A server refuses the address.
    Nak = 6,
}

/// A packet from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// Transaction ID, which the answers repeat.
    pub transaction: u32,
    /// Seconds since the client started.
    pub seconds: u16,
    /// The interface's MAC address.
    pub mac: Mac,
    /// The host name, which some servers list.
    pub hostname: &'a str,
    /// The message type, or what the client asks for.
    pub purpose: Purpose,
}

/// What the client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// An offer.
    Discover,
    /// The offered address.
    Select {
        /// The server.
        server: Ipv4Addr,
        /// The address.
        address: Ipv4Addr,
    },
    /// An extension of its lease.
    Extend {
        /// The address.
        address: Ipv4Addr,
    },
    /// Nothing: the address is used by another machine.
    Decline {
        /// The server that gave the address.
        server: Ipv4Addr,
        /// The address.
        address: Ipv4Addr,
    },
}

/// A packet from a server, with the options that the client uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The message type, or what the client asks for.
    pub kind: MessageType,
    /// Transaction ID of the request.
    pub transaction: u32,
    /// The client's MAC address.
    pub mac: Mac,
    /// The offered or leased address.
    pub address: Ipv4Addr,
    /// The server.
    pub server: Ipv4Addr,
    /// Subnet mask.
    pub mask: Option<Ipv4Addr>,
    /// First default gateway.
    pub router: Option<Ipv4Addr>,
    /// MTU of the network, in bytes.
    pub mtu: Option<u16>,
    /// Lease time, in seconds.
    pub lease: Option<u32>,
    /// Renewal time (T1), in seconds.
    pub renewal: Option<u32>,
    /// Rebinding time (T2), in seconds.
    pub rebinding: Option<u32>,
}

impl Request<'_> {
    /// The encoded packet.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, own, server) = match self.purpose {
            Purpose::Discover => (MessageType::Discover, None, None),
            Purpose::Select { server, address } => (MessageType::Request, None, Some((server, address))),
            Purpose::Extend { address } => (MessageType::Request, Some(address), None),
            Purpose::Decline { server, address } => (MessageType::Decline, None, Some((server, address))),
        };
        let mut packet = vec![BOOT_REQUEST, ETHERNET, MAC_LENGTH, 0];
        packet.extend(self.transaction.to_be_bytes());
        packet.extend(self.seconds.to_be_bytes());
        // No flags: the client can receive unicast before it has an address (RFC 2131, section 4.1).
        packet.extend([0; 2]);
        packet.extend(own.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        // Your, server and gateway address are set by servers and relays.
        packet.extend([0; 12]);
        packet.extend(self.mac.0);
        // The rest of the hardware address, the server name and the boot file stay 0.
        packet.resize(FIXED_FIELDS, 0);
        packet.extend(COOKIE);

        add(&mut packet, option::MESSAGE_TYPE, &[kind as u8]);
        add(&mut packet, option::CLIENT_ID, &[&[ETHERNET], self.mac.0.as_slice()].concat());
        if !matches!(self.purpose, Purpose::Decline { .. }) {
            add(&mut packet, option::HOST_NAME, self.hostname.as_bytes());
            add(&mut packet, option::MAX_MESSAGE_SIZE, &MAX_PACKET.to_be_bytes());
            add(&mut packet, option::PARAMETER_LIST, &PARAMETER_LIST);
        }
        if let Some((server, address)) = server {
            add(&mut packet, option::SERVER_ID, &server.octets());
            add(&mut packet, option::REQUESTED_ADDRESS, &address.octets());
        }
        packet.push(option::END);
        packet.resize(packet.len().max(MIN_PACKET), option::PAD);
        packet
    }
}

impl Reply {
    /// Parses `bytes` as a packet from a server to an Ethernet client.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; OPTIONS_OFFSET] = bytes.first_chunk()?;
        if !head.starts_with(&[BOOT_REPLY, ETHERNET, MAC_LENGTH]) || !head.ends_with(&COOKIE) {
            return None;
        }
        let options = bytes.get(OPTIONS_OFFSET..)?;
        let address = |code| read(options, code).map(Ipv4Addr::from_octets);
        Some(Self {
            kind: kind(read::<1>(options, option::MESSAGE_TYPE)?)?,
            transaction: u32::from_be_bytes(*bytes.get(4..)?.first_chunk()?),
            mac: Mac(*bytes.get(28..)?.first_chunk()?),
            address: Ipv4Addr::from_octets(*bytes.get(16..)?.first_chunk()?),
            server: address(option::SERVER_ID)?,
            mask: address(option::SUBNET_MASK),
            router: address(option::ROUTER),
            mtu: read(options, option::INTERFACE_MTU).map(u16::from_be_bytes),
            lease: read(options, option::LEASE_TIME).map(u32::from_be_bytes),
            renewal: read(options, option::RENEWAL_TIME).map(u32::from_be_bytes),
            rebinding: read(options, option::REBINDING_TIME).map(u32::from_be_bytes),
        })
    }
}

/// The message types that servers send.
const fn kind([number]: [u8; 1]) -> Option<MessageType> {
    match number {
        2 => Some(MessageType::Offer),
        5 => Some(MessageType::Ack),
        6 => Some(MessageType::Nak),
        _ => None,
    }
}

/// Appends an option. All values here are far shorter than the maximum of 255 bytes.
fn add(packet: &mut Vec<u8>, code: u8, value: &[u8]) {
    let value = value.get(..255).unwrap_or(value);
    packet.extend([code, u8::try_from(value.len()).unwrap_or(u8::MAX)]);
    packet.extend(value);
}

/// The first `N` bytes of the first option `code`, if it is that long. Of a list of addresses this is the first.
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

    /// Encodes `reply` as a server would.
    pub fn encode(reply: &Reply) -> Vec<u8> {
        let mut packet = vec![BOOT_REPLY, ETHERNET, MAC_LENGTH, 0];
        packet.extend(reply.transaction.to_be_bytes());
        packet.extend([0; 8]);
        packet.extend(reply.address.octets());
        packet.extend([0; 8]);
        packet.extend(reply.mac.0);
        packet.resize(OPTIONS_OFFSET - 4, 0);
        packet.extend(COOKIE);
        packet.extend([option::PAD, option::PAD]);
        add(&mut packet, option::MESSAGE_TYPE, &[reply.kind as u8]);
        add(&mut packet, option::SERVER_ID, &reply.server.octets());
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
            kind: MessageType::Offer,
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
    fn discover_has_the_layout_of_the_rfc() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let request = Request { transaction: 0x0102_0304, seconds: 5, mac, hostname: "reg", purpose: Purpose::Discover };
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
    fn each_purpose_has_its_message_type_and_options() {
        let (server, address) = (Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 2, 15));
        let encode = |purpose| Request { transaction: 1, seconds: 0, mac: Mac([0; 6]), hostname: "h", purpose }.encode();
        for (purpose, kind, listed) in
            [(Purpose::Select { server, address }, 3, true), (Purpose::Decline { server, address }, 4, false)]
        {
            let packet = encode(purpose);
            let options = &packet[OPTIONS_OFFSET..];
            assert_eq!(packet[10..16], [0, 0, 0, 0, 0, 0], "the broadcast flag and the client's address are 0");
            assert_eq!(read(options, option::MESSAGE_TYPE), Some([kind]));
            assert_eq!(read(options, option::SERVER_ID), Some(server.octets()));
            assert_eq!(read(options, option::REQUESTED_ADDRESS), Some(address.octets()));
            assert_eq!(read::<1>(options, option::PARAMETER_LIST).is_some(), listed);
            assert_eq!(read::<1>(options, option::HOST_NAME).is_some(), listed);
        }
        let packet = encode(Purpose::Extend { address });
        let options = &packet[OPTIONS_OFFSET..];
        assert_eq!(packet[10..20], [0, 0, 10, 0, 2, 15, 0, 0, 0, 0], "the server answers to the client's address");
        assert_eq!(read(options, option::MESSAGE_TYPE), Some([3]));
        assert_eq!((read::<4>(options, option::SERVER_ID), read::<4>(options, option::REQUESTED_ADDRESS)), (None, None));
    }

    #[test]
    fn encoded_reply_is_parsed_unchanged() {
        let full = offer();
        assert_eq!(Reply::parse(&encode(&full)), Some(full));
        let timed = Reply { renewal: Some(2), rebinding: Some(3), ..offer() };
        assert_eq!(Reply::parse(&encode(&timed)), Some(timed));
        let bare = Reply { kind: MessageType::Nak, mask: None, router: None, mtu: None, lease: None, ..offer() };
        assert_eq!(Reply::parse(&encode(&bare)), Some(bare));
    }

    #[test]
    fn damaged_or_truncated_packets_are_not_parsed_as_replies() {
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
    fn option_of_wrong_length_or_after_the_end_is_ignored() {
        assert_eq!(read::<4>(&[1, 3, 255, 255, 255], 1), None);
        assert_eq!(read::<4>(&[1, 4, 255, 255, 255], 1), None);
        assert_eq!(read::<4>(&[12, 200, 1, 4, 255, 255, 255, 0], 1), None);
        assert_eq!(read::<4>(&[255, 1, 4, 255, 255, 255, 0], 1), None);
        assert_eq!(read::<4>(&[0, 0, 1, 5, 255, 255, 255, 0, 9], 1), Some([255, 255, 255, 0]));
    }

    proptest! {
        #[test]
        fn no_packet_panics(mut packet in proptest::collection::vec(any::<u8>(), 0..600), shaped in any::<bool>()) {
            if shaped && packet.len() > OPTIONS_OFFSET {
                packet[..3].copy_from_slice(&[BOOT_REPLY, ETHERNET, MAC_LENGTH]);
                packet[236..240].copy_from_slice(&COOKIE);
            }
            if let Some(reply) = Reply::parse(&packet) {
                prop_assert_eq!(Reply::parse(&encode(&reply)), Some(reply));
            }
        }
    }
}
