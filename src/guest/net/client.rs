//! A DHCPv4 client as a state machine (RFC 2131, section 4.4). What enters are packets; what leaves are packets and, at last, a
//! lease. It has no socket and no clock: [`dhcp`](super::dhcp) gives it both.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::config::settings::{Cidr, Mac};

use super::packet::{Ask, Kind, Reply, Request};

/// Smallest MTU that a server may give, in bytes (RFC 2132, section 5.1, has 68, with which nothing works).
const SMALLEST_MTU: u16 = 576;

/// Shortest lease that is taken, in seconds: asking again takes time, too.
const SHORTEST_LEASE: u32 = 2;
/// A lease that never ends (RFC 2131, section 3.3).
const FOR_EVER: u32 = u32::MAX;

/// What a server leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address with its network's prefix.
    pub address: Cidr,
    /// Default gateway.
    pub router: Option<Ipv4Addr>,
    /// Largest packet on this network, in bytes.
    pub mtu: Option<u16>,
    /// How long the address is ours. None: for ever.
    pub times: Option<Times>,
    /// Who leased it.
    pub server: Ipv4Addr,
}

/// The times of a lease, each from when it was asked for (RFC 2131, section 4.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// T1, when its server is asked for more.
    pub renewal: Duration,
    /// T2, when every server is asked.
    pub rebinding: Duration,
    /// When the address is not ours any more.
    pub end: Duration,
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
    ask: Ask,
    /// Whose answers count, where it is not everybody's.
    server: Option<Ipv4Addr>,
}

impl Client {
    /// A client that has no offer yet. `transaction` tells its packets from those of others and should be random.
    #[must_use]
    pub fn new(mac: Mac, hostname: &str, transaction: u32) -> Self {
        Self { mac, hostname: hostname.to_owned(), transaction, ask: Ask::Discover, server: None }
    }

    /// A client that has `address` and asks `server` for more time, or every server.
    #[must_use]
    pub fn extending(mac: Mac, hostname: &str, transaction: u32, address: Ipv4Addr, server: Option<Ipv4Addr>) -> Self {
        Self { mac, hostname: hostname.to_owned(), transaction, ask: Ask::Extend { address }, server }
    }

    /// Where the packets go: to a server by its address only where the client has one itself.
    #[must_use]
    pub fn destination(&self) -> Ipv4Addr {
        let asked = if matches!(self.ask, Ask::Extend { .. }) { self.server } else { None };
        asked.unwrap_or(Ipv4Addr::BROADCAST)
    }

    /// The packet to send now, `elapsed` after the first: DISCOVER, or REQUEST once there is an offer or an address.
    #[must_use]
    pub fn packet(&self, elapsed: Duration) -> Vec<u8> {
        let request = Request {
            transaction: self.transaction,
            seconds: u16::try_from(elapsed.as_secs()).unwrap_or(u16::MAX),
            mac: self.mac,
            hostname: &self.hostname,
            ask: self.ask,
        };
        request.encode()
    }

    /// Forgets an offer whose server does not answer any more.
    pub fn restart(&mut self) {
        (self.ask, self.server) = (Ask::Discover, None);
    }

    /// Whether there is an offer.
    #[must_use]
    pub const fn is_requesting(&self) -> bool {
        matches!(self.ask, Ask::Select { .. })
    }

    /// Takes a packet from the network.
    ///
    /// # Errors
    /// When the server that made the offer says no, or leases something that is no address.
    pub fn receive(&mut self, packet: &[u8]) -> Result<Outcome, Refusal> {
        let reply = Reply::parse(packet).filter(|reply| reply.transaction == self.transaction && reply.mac == self.mac);
        let Some(reply) = reply else { return Ok(Outcome::Ignored) };
        let (server, address) = (reply.server, reply.address);
        let counts = self.server.is_none_or(|asked| asked == server);
        match (reply.kind, self.ask) {
            (Kind::Offer, Ask::Discover) => {
                (self.ask, self.server) = (Ask::Select { server, address }, Some(server));
                Ok(Outcome::Send)
            }
            (Kind::Ack, Ask::Select { .. } | Ask::Extend { .. }) if counts => lease(&reply).map(Outcome::Bound),
            (Kind::Nak, Ask::Select { address, .. } | Ask::Extend { address }) if counts => Err(Refusal::Nak { server, address }),
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
        times: reply.lease.filter(|seconds| *seconds != FOR_EVER).map(|seconds| times(seconds, reply.renewal, reply.rebinding)),
        server,
    })
}

/// The times of a lease of `end` seconds: those that the server gave, where they are in order, else half of it and seven eighths.
fn times(end: u32, renewal: Option<u32>, rebinding: Option<u32>) -> Times {
    let end = end.max(SHORTEST_LEASE);
    let default = Duration::from_secs(end.into());
    let (renewal, rebinding) = match (renewal, rebinding) {
        (Some(renewal), Some(rebinding)) if (1..=rebinding).contains(&renewal) && rebinding <= end => {
            (Duration::from_secs(renewal.into()), Duration::from_secs(rebinding.into()))
        }
        _ => (default / 2, default * 7 / 8),
    };
    Times { renewal, rebinding, end: default }
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
    use super::*;
    use crate::guest::net::packet::tests::{encode, offer};

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
        let request = |seconds, ask| Request { transaction, seconds, mac, hostname: "localregistry", ask }.encode();
        assert_eq!(client().packet(Duration::from_secs(3)), request(3, Ask::Discover));

        let mut client = requesting();
        assert_eq!(client.packet(Duration::from_secs(100_000)), request(u16::MAX, Ask::Select { server, address }));
        assert_eq!(client.destination(), Ipv4Addr::BROADCAST);
        let lease = Lease {
            address: "10.0.2.15/24".parse().unwrap(),
            router: Some(Ipv4Addr::new(10, 0, 2, 1)),
            mtu: Some(1400),
            times: Some(times(86_400, None, None)),
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
    fn an_address_is_extended_by_its_server_or_by_any() {
        let Reply { mac, transaction, server, address, .. } = offer();
        let extending = |server| Client::extending(mac, "localregistry", transaction, address, server);
        let mut renewing = extending(Some(server));
        assert_eq!((renewing.destination(), extending(None).destination()), (server, Ipv4Addr::BROADCAST));
        let request = Request { transaction, seconds: 0, mac, hostname: "localregistry", ask: Ask::Extend { address } };
        assert_eq!(renewing.packet(Duration::ZERO), request.encode());
        let other = Reply { server: Ipv4Addr::new(10, 0, 2, 66), ..ack() };
        assert_eq!(renewing.receive(&encode(&other)), Ok(Outcome::Ignored));
        assert_eq!(renewing.receive(&encode(&offer())), Ok(Outcome::Ignored));
        assert!(matches!(extending(None).receive(&encode(&other)), Ok(Outcome::Bound(lease)) if lease.server == other.server));
        let moved = Reply { address: Ipv4Addr::new(10, 0, 2, 99), ..ack() };
        let bound = renewing.receive(&encode(&moved));
        assert!(matches!(bound, Ok(Outcome::Bound(lease)) if lease.address.to_string() == "10.0.2.99/24"));
        let nak = encode(&Reply { kind: Kind::Nak, ..offer() });
        assert_eq!(renewing.receive(&nak), Err(Refusal::Nak { server, address }));
    }

    #[test]
    fn times_are_the_server_s_where_they_are_in_order() {
        let millis = |(end, renewal, rebinding)| {
            let times = times(end, renewal, rebinding);
            [times.renewal, times.rebinding, times.end].map(|time| time.as_millis())
        };
        assert_eq!(millis((80, None, None)), [40_000, 70_000, 80_000]);
        assert_eq!(millis((80, Some(3), Some(9))), [3_000, 9_000, 80_000]);
        for odd in [(80, Some(9), Some(3)), (80, Some(3), Some(81)), (80, Some(0), Some(3)), (80, Some(3), None)] {
            assert_eq!(millis(odd), [40_000, 70_000, 80_000], "{odd:?}");
        }
        assert_eq!(millis((0, None, None)), [1_000, 1_750, 2_000], "no lease makes the client spin");
        assert_eq!(millis((u32::MAX - 1, None, None))[2], 4_294_967_294_000);
        let for_ever = requesting().receive(&encode(&Reply { lease: Some(u32::MAX), ..ack() }));
        assert!(matches!(for_ever, Ok(Outcome::Bound(Lease { times: None, .. }))), "{for_ever:?}");
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
