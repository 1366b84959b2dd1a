//! A DHCPv4 client as a state machine (RFC 2131, section 4.4). What enters are packets; what leaves are packets and, at last, a
//! lease. It has no socket and no clock: [`dhcp`](super::dhcp) gives it both.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::guest::config::settings::{Cidr, Mac};

use super::packet::{Kind, Reply, Request};

/// Smallest MTU that a server may give, in bytes (RFC 2132, section 5.1, has 68, with which nothing works).
const SMALLEST_MTU: u16 = 576;

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
    /// The address is none of a host, or its network's mask is missing or none.
    #[error("{server} gave {address} with {}; expected the address of a host and its mask", words(*mask))]
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
    /// The server that made an offer, and the address offered.
    offer: Option<(Ipv4Addr, Ipv4Addr)>,
}

impl Client {
    /// A client that has no offer yet. `transaction` tells its packets from those of others and should be random.
    #[must_use]
    pub fn new(mac: Mac, hostname: &str, transaction: u32) -> Self {
        Self { mac, hostname: hostname.to_owned(), transaction, offer: None }
    }

    /// The packet to send now, `elapsed` after the first: DISCOVER, or REQUEST once there is an offer.
    #[must_use]
    pub fn packet(&self, elapsed: Duration) -> Vec<u8> {
        let request = Request {
            transaction: self.transaction,
            seconds: u16::try_from(elapsed.as_secs()).unwrap_or(u16::MAX),
            mac: self.mac,
            hostname: &self.hostname,
            offer: self.offer,
        };
        request.encode()
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
        let reply = Reply::parse(packet).filter(|reply| reply.transaction == self.transaction && reply.mac == self.mac);
        let Some(reply) = reply else { return Ok(Outcome::Ignored) };
        match (reply.kind, self.offer) {
            (Kind::Offer, None) => {
                self.offer = Some((reply.server, reply.address));
                Ok(Outcome::Send)
            }
            (Kind::Ack, Some((server, _))) if server == reply.server => lease(&reply).map(Outcome::Bound),
            (Kind::Nak, Some((server, address))) if server == reply.server => Err(Refusal::Nak { server, address }),
            _ => Ok(Outcome::Ignored),
        }
    }
}

fn lease(reply: &Reply) -> Result<Lease, Refusal> {
    let Reply { address, server, mask, .. } = *reply;
    let is_host = !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast() && !address.is_loopback();
    let prefix = mask.and_then(prefix).filter(|_| is_host).ok_or(Refusal::Unusable { server, address, mask })?;
    Ok(Lease {
        address: Cidr { address: address.into(), prefix },
        router: reply.router,
        mtu: reply.mtu.filter(|mtu| *mtu >= SMALLEST_MTU),
        time: reply.lease.map(|seconds| Duration::from_secs(seconds.into())),
        server,
    })
}

/// Bits of the prefix that `mask` means: ones, then zeros.
fn prefix(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    let prefix = bits.leading_ones();
    (prefix > 0 && prefix == bits.count_ones()).then(|| u8::try_from(prefix).ok()).flatten()
}

fn words(mask: Option<Ipv4Addr>) -> String {
    mask.map_or_else(|| "no subnet mask".to_owned(), |mask| format!("the subnet mask {mask}"))
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::{encode, offer};
    use super::*;

    fn client() -> Client {
        Client::new(offer().mac, "localregistry", offer().transaction)
    }

    fn requesting() -> Client {
        let mut client = client();
        assert_eq!(client.receive(&encode(&offer())), Ok(Outcome::Send));
        client
    }

    fn ack() -> Reply {
        Reply { kind: Kind::Ack, ..offer() }
    }

    #[test]
    fn an_offer_is_requested_and_an_ack_binds() {
        let Reply { mac, transaction, server, address, .. } = offer();
        let request = |seconds, offer| Request { transaction, seconds, mac, hostname: "localregistry", offer }.encode();
        assert_eq!(client().packet(Duration::from_secs(3)), request(3, None));

        let mut client = requesting();
        assert_eq!(client.packet(Duration::from_secs(100_000)), request(u16::MAX, Some((server, address))));
        let lease = Lease {
            address: "10.0.2.15/24".parse().unwrap(),
            router: Some(Ipv4Addr::new(10, 0, 2, 1)),
            mtu: Some(1400),
            time: Some(Duration::from_secs(86_400)),
            server,
        };
        assert_eq!(client.receive(&encode(&ack())), Ok(Outcome::Bound(lease)));
    }

    #[test]
    fn what_is_not_ours_is_ignored() {
        let others = [
            encode(&Reply { transaction: 8, ..offer() }),
            encode(&Reply { mac: Mac([1, 2, 3, 4, 5, 6]), ..offer() }),
            encode(&ack()),
            encode(&Reply { kind: Kind::Nak, ..offer() }),
            client().packet(Duration::ZERO),
            b"noise".to_vec(),
            vec![],
        ];
        let mut client = client();
        for packet in others {
            assert_eq!(client.receive(&packet), Ok(Outcome::Ignored));
            assert!(!client.is_requesting());
        }
    }

    #[test]
    fn another_server_neither_binds_nor_refuses() {
        let mut client = requesting();
        for kind in [Kind::Offer, Kind::Ack, Kind::Nak] {
            let other = Reply { kind, server: Ipv4Addr::new(10, 0, 2, 66), ..offer() };
            assert_eq!(client.receive(&encode(&other)), Ok(Outcome::Ignored));
        }
        assert!(client.is_requesting());
        client.restart();
        assert!(!client.is_requesting());
    }

    #[test]
    fn refusals_say_who_and_what() {
        for (reply, message) in [
            (Reply { kind: Kind::Nak, ..offer() }, "10.0.2.2 answered the request for 10.0.2.15 with NAK"),
            (
                Reply { mask: None, ..ack() },
                "10.0.2.2 gave 10.0.2.15 with no subnet mask; expected the address of a host and its mask",
            ),
            (
                Reply { mask: Some(Ipv4Addr::new(255, 0, 255, 0)), ..ack() },
                "10.0.2.2 gave 10.0.2.15 with the subnet mask 255.0.255.0; expected the address of a host and its mask",
            ),
            (
                Reply { address: Ipv4Addr::UNSPECIFIED, ..ack() },
                "10.0.2.2 gave 0.0.0.0 with the subnet mask 255.255.255.0; expected the address of a host and its mask",
            ),
        ] {
            assert_eq!(requesting().receive(&encode(&reply)).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn an_mtu_with_which_nothing_works_is_not_taken() {
        let bound = requesting().receive(&encode(&Reply { mtu: Some(68), ..ack() }));
        assert!(matches!(bound, Ok(Outcome::Bound(Lease { mtu: None, .. }))), "{bound:?}");
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
}
