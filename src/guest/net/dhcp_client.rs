//! A DHCPv4 client as a state machine (RFC 2131, section 4.4). It has neither a socket nor a clock: [`dhcp`](super::dhcp) provides
//! both.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::config::settings::{Cidr, Mac};

use super::dhcp_packet::{MessageType, Purpose, Reply, Request};

/// Smallest MTU accepted from a server, in bytes. RFC 2132 (section 5.1) allows 68, too little for any use.
const MIN_MTU: u16 = 576;

/// Shortest lease, in seconds. A shorter one counts as this long, so that the client does not spin.
const MIN_LEASE: u32 = 2;
/// A lease that never expires (RFC 2131, section 3.3).
const INFINITE: u32 = u32::MAX;

/// A lease of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address with the prefix length of its network.
    pub address: Cidr,
    /// Default gateway.
    pub router: Option<Ipv4Addr>,
    /// MTU of the network, in bytes.
    pub mtu: Option<u16>,
    /// When to renew the lease. `None` if it never expires.
    pub times: Option<Times>,
    /// The server.
    pub server: Ipv4Addr,
    /// Whether the network has no other machine that could use the address.
    pub alone: bool,
}

/// The times of a lease, counted from its request (RFC 2131, section 4.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// T1: the client asks its server to renew the lease.
    pub renewal: Duration,
    /// T2: the client asks every server.
    pub rebinding: Duration,
    /// The lease expires.
    pub end: Duration,
}

/// Why the client gets no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The server refused the request.
    #[error("{server} answered the request for {address} with NAK")]
    Nak {
        /// The server.
        server: Ipv4Addr,
        /// The requested address.
        address: Ipv4Addr,
    },
    /// The address is not a host's, or its subnet mask is missing or invalid.
    #[error("{server} gave {address} with {}; expected a host address and its subnet mask", describe_mask(*mask))]
    Unusable {
        /// The server.
        server: Ipv4Addr,
        /// The address.
        address: Ipv4Addr,
        /// Its mask.
        mask: Option<Ipv4Addr>,
    },
}

/// The effect of a received packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The packet is not for this client, or means nothing in its state.
    Ignored,
    /// The client has a new packet to send.
    Send,
    /// The client has a lease.
    Bound(Lease),
}

/// The client on one interface.
#[derive(Debug)]
pub struct Client {
    mac: Mac,
    hostname: String,
    transaction: u32,
    purpose: Purpose,
    /// The only server whose answers count. `None` accepts any server.
    server: Option<Ipv4Addr>,
}

impl Client {
    /// A client without an offer. `transaction` should be random, because it tells this client's packets from those of others.
    #[must_use]
    pub fn new(mac: Mac, hostname: &str, transaction: u32) -> Self {
        Self { mac, hostname: hostname.to_owned(), transaction, purpose: Purpose::Discover, server: None }
    }

    /// A client that has `address` and asks `server`, or every server, to extend the lease.
    #[must_use]
    pub fn extending(mac: Mac, hostname: &str, transaction: u32, address: Ipv4Addr, server: Option<Ipv4Addr>) -> Self {
        Self { mac, hostname: hostname.to_owned(), transaction, purpose: Purpose::Extend { address }, server }
    }

    /// The destination of its packets. Only a client with an address can send to a server's address.
    #[must_use]
    pub fn destination(&self) -> Ipv4Addr {
        let server = if matches!(self.purpose, Purpose::Extend { .. }) { self.server } else { None };
        server.unwrap_or(Ipv4Addr::BROADCAST)
    }

    /// The packet to send now, `elapsed` after the first: DISCOVER before there is an offer, REQUEST after.
    #[must_use]
    pub fn packet(&self, elapsed: Duration) -> Vec<u8> {
        let request = Request {
            transaction: self.transaction,
            seconds: u16::try_from(elapsed.as_secs()).unwrap_or(u16::MAX),
            mac: self.mac,
            hostname: &self.hostname,
            purpose: self.purpose,
        };
        request.encode()
    }

    /// Drops an offer whose server stopped answering.
    pub fn restart(&mut self) {
        (self.purpose, self.server) = (Purpose::Discover, None);
    }

    /// Whether the client has an offer.
    #[must_use]
    pub const fn is_requesting(&self) -> bool {
        matches!(self.purpose, Purpose::Select { .. })
    }

    /// Processes a packet from the network.
    ///
    /// # Errors
    /// Fails if the server refuses the request, or leases an unusable address.
    pub fn receive(&mut self, packet: &[u8]) -> Result<Outcome, Refusal> {
        let reply = Reply::parse(packet).filter(|reply| reply.transaction == self.transaction && reply.mac == self.mac);
        let Some(reply) = reply else { return Ok(Outcome::Ignored) };
        let (server, address) = (reply.server, reply.address);
        let is_accepted = self.server.is_none_or(|accepted| accepted == server);
        match (reply.kind, self.purpose) {
            (MessageType::Offer, Purpose::Discover) => {
                (self.purpose, self.server) = (Purpose::Select { server, address }, Some(server));
                Ok(Outcome::Send)
            }
            (MessageType::Ack, Purpose::Select { .. } | Purpose::Extend { .. }) if is_accepted => {
                lease(&reply).map(Outcome::Bound)
            }
            (MessageType::Nak, Purpose::Select { address, .. } | Purpose::Extend { address }) if is_accepted => {
                Err(Refusal::Nak { server, address })
            }
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
        mtu: reply.mtu.filter(|mtu| *mtu >= MIN_MTU),
        times: reply.lease.filter(|seconds| *seconds != INFINITE).map(|seconds| times(seconds, reply.renewal, reply.rebinding)),
        server,
        alone: false,
    })
}

/// The times of a lease of `end` seconds: the server's if they are in order, else T1 at one half and T2 at seven eighths.
fn times(end: u32, renewal: Option<u32>, rebinding: Option<u32>) -> Times {
    let end = end.max(MIN_LEASE);
    let default = Duration::from_secs(end.into());
    let (renewal, rebinding) = match (renewal, rebinding) {
        (Some(renewal), Some(rebinding)) if (1..=rebinding).contains(&renewal) && rebinding <= end => {
            (Duration::from_secs(renewal.into()), Duration::from_secs(rebinding.into()))
        }
        _ => (default / 2, default * 7 / 8),
    };
    Times { renewal, rebinding, end: default }
}

/// The prefix length of `mask`, which has to be ones followed by zeros.
fn prefix(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    let prefix = bits.leading_ones();
    (prefix > 0 && prefix == bits.count_ones()).then(|| u8::try_from(prefix).ok()).flatten()
}

fn describe_mask(mask: Option<Ipv4Addr>) -> String {
    mask.map_or_else(|| "no subnet mask".to_owned(), |mask| format!("the subnet mask {mask}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::net::dhcp_packet::tests::{encode, offer};

    fn client() -> Client {
        Client::new(offer().mac, "localregistry", offer().transaction)
    }

    fn requesting() -> Client {
        let mut client = client();
        assert_eq!(client.receive(&encode(&offer())), Ok(Outcome::Send));
        client
    }

    fn ack() -> Reply {
        Reply { kind: MessageType::Ack, ..offer() }
    }

    #[test]
    fn offer_is_requested_and_ack_binds() {
        let Reply { mac, transaction, server, address, .. } = offer();
        let request = |seconds, purpose| Request { transaction, seconds, mac, hostname: "localregistry", purpose }.encode();
        assert_eq!(client().packet(Duration::from_secs(3)), request(3, Purpose::Discover));

        let mut client = requesting();
        assert_eq!(client.packet(Duration::from_secs(100_000)), request(u16::MAX, Purpose::Select { server, address }));
        assert_eq!(client.destination(), Ipv4Addr::BROADCAST);
        let lease = Lease {
            address: "10.0.2.15/24".parse().unwrap(),
            router: Some(Ipv4Addr::new(10, 0, 2, 1)),
            mtu: Some(1400),
            times: Some(times(86_400, None, None)),
            server,
            alone: false,
        };
        assert_eq!(client.receive(&encode(&ack())), Ok(Outcome::Bound(lease)));
    }

    #[test]
    fn unrelated_packets_are_ignored() {
        let others = [
            encode(&Reply { transaction: 8, ..offer() }),
            encode(&Reply { mac: Mac([1, 2, 3, 4, 5, 6]), ..offer() }),
            encode(&ack()),
            encode(&Reply { kind: MessageType::Nak, ..offer() }),
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
    fn replies_of_another_server_are_ignored() {
        let mut client = requesting();
        for kind in [MessageType::Offer, MessageType::Ack, MessageType::Nak] {
            let other = Reply { kind, server: Ipv4Addr::new(10, 0, 2, 66), ..offer() };
            assert_eq!(client.receive(&encode(&other)), Ok(Outcome::Ignored));
        }
        assert!(client.is_requesting());
        client.restart();
        assert!(!client.is_requesting());
    }

    #[test]
    fn refusals_name_the_server_and_the_address() {
        for (reply, message) in [
            (Reply { kind: MessageType::Nak, ..offer() }, "10.0.2.2 answered the request for 10.0.2.15 with NAK"),
            (
                Reply { mask: None, ..ack() },
                "10.0.2.2 gave 10.0.2.15 with no subnet mask; expected a host address and its subnet mask",
            ),
            (
                Reply { mask: Some(Ipv4Addr::new(255, 0, 255, 0)), ..ack() },
                "10.0.2.2 gave 10.0.2.15 with the subnet mask 255.0.255.0; expected a host address and its subnet mask",
            ),
            (
                Reply { address: Ipv4Addr::UNSPECIFIED, ..ack() },
                "10.0.2.2 gave 0.0.0.0 with the subnet mask 255.255.255.0; expected a host address and its subnet mask",
            ),
        ] {
            assert_eq!(requesting().receive(&encode(&reply)).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn lease_is_extended_by_its_server_or_by_any() {
        let Reply { mac, transaction, server, address, .. } = offer();
        let extending = |server| Client::extending(mac, "localregistry", transaction, address, server);
        let mut renewing = extending(Some(server));
        assert_eq!((renewing.destination(), extending(None).destination()), (server, Ipv4Addr::BROADCAST));
        let request = Request { transaction, seconds: 0, mac, hostname: "localregistry", purpose: Purpose::Extend { address } };
        assert_eq!(renewing.packet(Duration::ZERO), request.encode());
        let other = Reply { server: Ipv4Addr::new(10, 0, 2, 66), ..ack() };
        assert_eq!(renewing.receive(&encode(&other)), Ok(Outcome::Ignored));
        assert_eq!(renewing.receive(&encode(&offer())), Ok(Outcome::Ignored));
        assert!(matches!(extending(None).receive(&encode(&other)), Ok(Outcome::Bound(lease)) if lease.server == other.server));
        let moved = Reply { address: Ipv4Addr::new(10, 0, 2, 99), ..ack() };
        let bound = renewing.receive(&encode(&moved));
        assert!(matches!(bound, Ok(Outcome::Bound(lease)) if lease.address.to_string() == "10.0.2.99/24"));
        let nak = encode(&Reply { kind: MessageType::Nak, ..offer() });
        assert_eq!(renewing.receive(&nak), Err(Refusal::Nak { server, address }));
    }

    #[test]
    fn lease_times_are_the_server_s_only_if_in_order() {
        let millis = |(end, renewal, rebinding)| {
            let times = times(end, renewal, rebinding);
            [times.renewal, times.rebinding, times.end].map(|time| time.as_millis())
        };
        assert_eq!(millis((80, None, None)), [40_000, 70_000, 80_000]);
        assert_eq!(millis((80, Some(3), Some(9))), [3_000, 9_000, 80_000]);
        for odd in [(80, Some(9), Some(3)), (80, Some(3), Some(81)), (80, Some(0), Some(3)), (80, Some(3), None)] {
            assert_eq!(millis(odd), [40_000, 70_000, 80_000], "{odd:?}");
        }
        assert_eq!(millis((0, None, None)), [1_000, 1_750, 2_000], "a lease of 0 s does not make the client spin");
        assert_eq!(millis((u32::MAX - 1, None, None))[2], 4_294_967_294_000);
        let infinite = requesting().receive(&encode(&Reply { lease: Some(u32::MAX), ..ack() }));
        assert!(matches!(infinite, Ok(Outcome::Bound(Lease { times: None, .. }))), "{infinite:?}");
    }

    #[test]
    fn mtu_below_the_minimum_is_ignored() {
        let bound = requesting().receive(&encode(&Reply { mtu: Some(68), ..ack() }));
        assert!(matches!(bound, Ok(Outcome::Bound(Lease { mtu: None, .. }))), "{bound:?}");
    }

    #[test]
    fn mask_other_than_ones_then_zeros_has_no_prefix_length() {
        for (mask, expected) in [("255.255.255.0", Some(24)), ("255.255.255.255", Some(32)), ("128.0.0.0", Some(1))] {
            assert_eq!(prefix(mask.parse().unwrap()), expected);
        }
        for mask in ["0.0.0.0", "255.0.255.0", "0.0.0.255"] {
            assert_eq!(prefix(mask.parse().unwrap()), None);
        }
    }
}
