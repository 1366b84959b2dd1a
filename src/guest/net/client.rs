//! A DHCPv4 client as a state machine (RFC 2131, section 4.4). What enters are packets; what leaves are packets and, at last, a
//! lease. It has no socket and no clock: [`dhcp`](super::dhcp) gives it both.

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};

use crate::guest::config::settings::{Cidr, Mac};

/// Largest packet that the client takes, in bytes: what fits an Ethernet frame less IP and UDP headers.
pub const LARGEST: u16 = 1472;

/// Options that the client asks for.
const WANTED: [OptionCode; 5] = [
    OptionCode::SubnetMask,
    OptionCode::Router,
    OptionCode::InterfaceMtu,
    OptionCode::AddressLeaseTime,
    OptionCode::ServerIdentifier,
];

/// What a server leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address with its network's prefix.
    pub address: Cidr,
    /// Default gateway.
    pub router: Option<Ipv4Addr>,
    /// Largest packet on this network, in bytes.
    pub mtu: Option<u16>,
    /// How long the address is ours.
    pub time: Option<Duration>,
    /// Who leased it.
    pub server: Ipv4Addr,
}

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The server took its offer back.
    #[error("{server} answered the request for {address} with NAK")]
    Nak {
        /// The server.
        server: Ipv4Addr,
        /// What was asked for.
        address: Ipv4Addr,
    },
    /// The address is no address of a host in a network.
    #[error("{server} gave {address} with the subnet mask {}; expected an address and its mask", mask.map_or_else(|| "missing".to_owned(), |mask| mask.to_string()))]
    Unusable {
        /// The server.
        server: Ipv4Addr,
        /// The address.
        address: Ipv4Addr,
        /// Its mask.
        mask: Option<Ipv4Addr>,
    },
}

/// What a packet from the network led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was none of ours.
    Ignored,
    /// There is something new to send.
    Send,
    /// The address is ours.
    Bound(Lease),
}

/// The client, on one interface.
#[derive(Debug)]
pub struct Client {
    mac: Mac,
    hostname: String,
    transaction: u32,
    offer: Option<Offer>,
}

#[derive(Debug, Clone, Copy)]
struct Offer {
    server: Ipv4Addr,
    address: Ipv4Addr,
}

impl Client {
    /// A client that has no offer yet. `transaction` tells its packets from those of others and should be random.
    #[must_use]
    pub fn new(mac: Mac, hostname: &str, transaction: u32) -> Self {
        Self { mac, hostname: hostname.to_owned(), transaction, offer: None }
    }

    /// The packet to send now, `elapsed` after the first: DISCOVER, or REQUEST once there is an offer.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn packet(&self, elapsed: Duration) -> Result<Vec<u8>, dhcproto::error::EncodeError> {
        let mut message = Message::default();
        message
            .set_xid(self.transaction)
            .set_chaddr(&self.mac.0)
            .set_secs(u16::try_from(elapsed.as_secs()).unwrap_or(u16::MAX))
            // The answer must come as a broadcast: a socket without an address gets nothing else.
            .set_flags(Flags::default().set_broadcast());
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(if self.offer.is_some() { MessageType::Request } else { MessageType::Discover }));
        options.insert(DhcpOption::ClientIdentifier([&[1], self.mac.0.as_slice()].concat()));
        options.insert(DhcpOption::Hostname(self.hostname.clone()));
        options.insert(DhcpOption::MaxMessageSize(LARGEST));
        options.insert(DhcpOption::ParameterRequestList(WANTED.to_vec()));
        if let Some(Offer { server, address }) = self.offer {
            options.insert(DhcpOption::ServerIdentifier(server));
            options.insert(DhcpOption::RequestedIpAddress(address));
        }
        let mut packet = Vec::new();
        message.encode(&mut Encoder::new(&mut packet))?;
        Ok(packet)
    }

    /// Forgets an offer whose server does not answer any more.
    pub fn restart(&mut self) {
        self.offer = None;
    }

    /// Whether there is an offer.
    #[must_use]
    pub const fn is_requesting(&self) -> bool {
        self.offer.is_some()
    }

    /// Takes a packet from the network.
    ///
    /// # Errors
    /// When the server that made the offer says no, or leases something that is no address.
    pub fn receive(&mut self, packet: &[u8]) -> Result<Outcome, Refusal> {
        let Ok(message) = Message::decode(&mut Decoder::new(packet)) else { return Ok(Outcome::Ignored) };
        let ours = message.opcode() == Opcode::BootReply
            && message.xid() == self.transaction
            && message.hlen() == 6
            && message.chaddr() == self.mac.0;
        let options = message.opts();
        let (Some(DhcpOption::ServerIdentifier(server)), true) = (options.get(OptionCode::ServerIdentifier), ours) else {
            return Ok(Outcome::Ignored);
        };
        match (options.msg_type(), self.offer) {
            (Some(MessageType::Offer), None) => {
                self.offer = Some(Offer { server: *server, address: message.yiaddr() });
                Ok(Outcome::Send)
            }
            (Some(MessageType::Ack), Some(offer)) if offer.server == *server => lease(&message, *server).map(Outcome::Bound),
            (Some(MessageType::Nak), Some(Offer { server: from, address })) if from == *server => {
                Err(Refusal::Nak { server: from, address })
            }
            _ => Ok(Outcome::Ignored),
        }
    }
}

fn lease(message: &Message, server: Ipv4Addr) -> Result<Lease, Refusal> {
    let options = message.opts();
    let address = message.yiaddr();
    let mask = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => Some(*mask),
        _ => None,
    };
    let usable = !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast();
    let prefix = mask.and_then(prefix).filter(|_| usable).ok_or(Refusal::Unusable { server, address, mask })?;
    Ok(Lease {
        address: Cidr { address: address.into(), prefix },
        router: match options.get(OptionCode::Router) {
            Some(DhcpOption::Router(routers)) => routers.first().copied(),
            _ => None,
        },
        mtu: match options.get(OptionCode::InterfaceMtu) {
            Some(DhcpOption::InterfaceMtu(mtu)) if *mtu >= 576 => Some(*mtu),
            _ => None,
        },
        time: match options.get(OptionCode::AddressLeaseTime) {
            Some(DhcpOption::AddressLeaseTime(seconds)) => Some(Duration::from_secs((*seconds).into())),
            _ => None,
        },
        server,
    })
}

/// Bits of the prefix that `mask` means: ones, then zeros.
fn prefix(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    let prefix = bits.leading_ones();
    (prefix > 0 && prefix == bits.count_ones()).then(|| u8::try_from(prefix).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

    fn client() -> Client {
        Client::new(MAC, "localregistry", 7)
    }

    fn reply(kind: MessageType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::default();
        message.set_opcode(Opcode::BootReply).set_xid(7).set_chaddr(&MAC.0).set_yiaddr(ADDRESS);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        message.opts_mut().insert(DhcpOption::ServerIdentifier(SERVER));
        message.opts_mut().insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
        change(&mut message);
        let mut packet = Vec::new();
        message.encode(&mut Encoder::new(&mut packet)).unwrap();
        packet
    }

    fn sent(client: &Client) -> Message {
        Message::decode(&mut Decoder::new(&client.packet(Duration::from_secs(3)).unwrap())).unwrap()
    }

    #[test]
    fn an_offer_is_requested_and_an_ack_binds() {
        let mut client = client();
        let discover = sent(&client);
        assert_eq!(discover.opts().msg_type(), Some(MessageType::Discover));
        assert_eq!((discover.xid(), discover.secs(), discover.flags().broadcast()), (7, 3, true));
        assert_eq!(discover.chaddr(), MAC.0);

        assert_eq!(client.receive(&reply(MessageType::Offer, |_| ())), Ok(Outcome::Send));
        let request = sent(&client);
        assert_eq!(request.opts().msg_type(), Some(MessageType::Request));
        assert_eq!(request.opts().get(OptionCode::RequestedIpAddress), Some(&DhcpOption::RequestedIpAddress(ADDRESS)));
        assert_eq!(request.opts().get(OptionCode::ServerIdentifier), Some(&DhcpOption::ServerIdentifier(SERVER)));

        let ack = reply(MessageType::Ack, |message| {
            message.opts_mut().insert(DhcpOption::Router(vec![SERVER, Ipv4Addr::new(10, 0, 2, 3)]));
            message.opts_mut().insert(DhcpOption::InterfaceMtu(1400));
            message.opts_mut().insert(DhcpOption::AddressLeaseTime(86_400));
        });
        let lease = Lease {
            address: "10.0.2.15/24".parse().unwrap(),
            router: Some(SERVER),
            mtu: Some(1400),
            time: Some(Duration::from_secs(86_400)),
            server: SERVER,
        };
        assert_eq!(client.receive(&ack), Ok(Outcome::Bound(lease)));
    }

    #[test]
    fn what_is_not_ours_is_ignored() {
        let offer = |change: fn(&mut Message)| reply(MessageType::Offer, change);
        let packets = [
            offer(|message| _ = message.set_xid(8)),
            offer(|message| _ = message.set_chaddr(&[1, 2, 3, 4, 5, 6])),
            offer(|message| _ = message.set_opcode(Opcode::BootRequest)),
            offer(|message| _ = message.opts_mut().remove(OptionCode::ServerIdentifier)),
            reply(MessageType::Ack, |_| ()),
            reply(MessageType::Nak, |_| ()),
            b"noise".to_vec(),
            vec![],
        ];
        let mut client = client();
        for packet in packets {
            assert_eq!(client.receive(&packet), Ok(Outcome::Ignored));
            assert!(!client.is_requesting());
        }
    }

    #[test]
    fn another_server_neither_binds_nor_refuses() {
        let mut client = client();
        client.receive(&reply(MessageType::Offer, |_| ())).unwrap();
        for kind in [MessageType::Ack, MessageType::Nak] {
            let other = reply(kind, |message| _ = message.opts_mut().insert(DhcpOption::ServerIdentifier(ADDRESS)));
            assert_eq!(client.receive(&other), Ok(Outcome::Ignored));
        }
        client.restart();
        assert!(!client.is_requesting());
    }

    #[test]
    fn refusals_say_who_and_what() {
        let refusal = |packet: Vec<u8>| {
            let mut client = client();
            client.receive(&reply(MessageType::Offer, |_| ())).unwrap();
            client.receive(&packet).unwrap_err().to_string()
        };
        let ack = |change: fn(&mut Message)| reply(MessageType::Ack, change);
        for (packet, message) in [
            (reply(MessageType::Nak, |_| ()), "10.0.2.2 answered the request for 10.0.2.15 with NAK"),
            (
                ack(|message| _ = message.opts_mut().remove(OptionCode::SubnetMask)),
                "10.0.2.2 gave 10.0.2.15 with the subnet mask missing; expected an address and its mask",
            ),
            (
                ack(|message| _ = message.opts_mut().insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 0, 255, 0)))),
                "10.0.2.2 gave 10.0.2.15 with the subnet mask 255.0.255.0; expected an address and its mask",
            ),
            (
                ack(|message| _ = message.set_yiaddr(Ipv4Addr::UNSPECIFIED)),
                "10.0.2.2 gave 0.0.0.0 with the subnet mask 255.255.255.0; expected an address and its mask",
            ),
        ] {
            assert_eq!(refusal(packet), message);
        }
    }

    #[test]
    fn a_mask_is_ones_then_zeros() {
        for (mask, expected) in [("255.255.255.0", Some(24)), ("255.255.255.255", Some(32)), ("128.0.0.0", Some(1))] {
            assert_eq!(prefix(mask.parse().unwrap()), expected);
        }
        for mask in ["0.0.0.0", "255.0.255.0", "0.0.0.255"] {
            assert_eq!(prefix(mask.parse().unwrap()), None);
        }
    }

    proptest! {
        #[test]
        fn no_packet_panics(mut packet in proptest::collection::vec(any::<u8>(), 0..600), shaped in any::<bool>()) {
            if shaped && packet.len() > 244 {
                packet[0] = 2;
                packet[236..240].copy_from_slice(&[99, 130, 83, 99]);
            }
            let mut client = client();
            let _ = client.receive(&packet);
            client.receive(&reply(MessageType::Offer, |_| ())).unwrap();
            let _ = client.receive(&packet);
        }
    }
}
