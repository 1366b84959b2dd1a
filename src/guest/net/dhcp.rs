//! Runs the DHCP client: sockets and timers around [`dhcp_client`](super::dhcp_client). It gets and extends leases; the caller
//! assigns the address to the interface.
//!
//! A client without an address uses a packet socket: many servers answer to the address that they offer, and a UDP socket receives
//! nothing for an address that its interface does not have yet. A client with an address uses a UDP socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::config::settings::Mac;

use super::NetError;
use super::dhcp_client::{Client, Lease, Outcome, Refusal};
use super::dhcp_packet::{MAX_PACKET, Purpose, Request};
use super::link::Link;
use super::packet_socket::PacketSocket;
use super::udp::{self, CLIENT_PORT, SERVER_PORT};

/// Time to the first repetition. Each later one takes twice as long. RFC 2131 (section 4.1) starts at 4 s, for networks of
/// thousands of machines.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest time between two packets.
const MAX_RETRY: Duration = Duration::from_secs(8);
/// Shortest time between two packets that extend a lease. RFC 2131 (section 4.4.5) waits half of the remaining time, and at least
/// 60 s.
const MIN_EXTENSION_RETRY: Duration = Duration::from_secs(1);
/// Unanswered packets after which the client drops an offer.
const MAX_UNANSWERED: u32 = 4;

/// The result of extending a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extension {
    /// The lease is extended, perhaps with another address.
    Extended(Lease),
    /// A server refused.
    Refused(Refusal),
    /// No server answered before the deadline.
    Unanswered,
}

/// Gets a lease for `link` before `deadline`, which is `timeout` after the start.
///
/// # Errors
/// Fails if no server answers, or if one refuses.
pub async fn acquire(link: &Link, hostname: &str, deadline: Instant, timeout: Duration) -> Result<Lease, NetError> {
    let socket = Socket::packet(link).map_err(|source| NetError::kernel(format!("open a packet socket on {link}"), source))?;
    let mut client = Client::new(link.mac, hostname, random_transaction());
    let start = Instant::now();
    let (mut sent, mut unanswered, mut retry) = (0_u32, 0_u32, FIRST_RETRY);
    loop {
        let sending = socket.send(client.destination(), &client.packet(start.elapsed())).await;
        sending.map_err(|source| NetError::kernel(format!("send a DHCP packet on {link}"), source))?;
        sent = sent.saturating_add(1);
        unanswered = unanswered.saturating_add(1);
        let wait = (Instant::now() + retry).min(deadline);
        match timeout_at(wait, answer(&socket, &mut client)).await {
            Ok(Ok((Outcome::Bound(lease), from))) => return Ok(Lease { alone: is_user_network(from, lease.server), ..lease }),
            Ok(Ok(_)) => (unanswered, retry) = (0, FIRST_RETRY),
            Ok(Err(source)) => return Err(NetError::DhcpRefused { link: link.clone(), source }),
            Err(_) if Instant::now() >= deadline => {
                return Err(NetError::DhcpSilent { link: link.clone(), sent, timeout });
            }
            Err(_) => {
                retry = (retry * 2).min(MAX_RETRY);
                if client.is_requesting() && unanswered >= MAX_UNANSWERED {
                    client.restart();
                    unanswered = 0;
                }
            }
        }
    }
}

/// Waits until `lease`, given at `since`, has to be renewed. Then asks its server, and later every server, to extend it (RFC 2131,
/// section 4.4.5).
pub async fn renew(link: &Link, hostname: &str, lease: &Lease, since: Instant) -> Extension {
    let Some(times) = lease.times else { return std::future::pending().await };
    sleep_until(since + times.renewal).await;
    match extend(link, hostname, lease, Some(lease.server), since + times.rebinding).await {
        Extension::Unanswered => extend(link, hostname, lease, None, since + times.end).await,
        result => result,
    }
}

/// Asks `server`, or every server, to extend `lease` until `deadline`. A send error counts as a lost packet.
pub async fn extend(link: &Link, hostname: &str, lease: &Lease, server: Option<Ipv4Addr>, deadline: Instant) -> Extension {
    let IpAddr::V4(address) = lease.address.address else { return Extension::Unanswered };
    let mut client = Client::extending(link.mac, hostname, random_transaction(), address, server);
    let start = Instant::now();
    let exchange = async {
        loop {
            let now = Instant::now();
            let wait = now + (deadline.saturating_duration_since(now) / 2).max(MIN_EXTENSION_RETRY);
            if let Ok(socket) = Socket::udp(link) {
                let _ = socket.send(client.destination(), &client.packet(start.elapsed())).await;
                match timeout_at(wait, answer(&socket, &mut client)).await {
                    Ok(Ok((Outcome::Bound(lease), _))) => return Extension::Extended(lease),
                    Ok(Err(refusal)) => return Extension::Refused(refusal),
                    Ok(Ok(_)) | Err(_) => {}
                }
            }
            sleep_until(wait).await;
        }
    };
    timeout_at(deadline, exchange).await.unwrap_or(Extension::Unanswered)
}

/// Tells the server of `lease` that another machine uses its address (RFC 2131, section 4.4.4). Servers do not answer that.
pub async fn decline(link: &Link, lease: &Lease) {
    let (IpAddr::V4(address), Ok(socket)) = (lease.address.address, Socket::packet(link)) else { return };
    let purpose = Purpose::Decline { server: lease.server, address };
    let packet = Request { transaction: random_transaction(), seconds: 0, mac: link.mac, hostname: "", purpose }.encode();
    let _ = socket.send(Ipv4Addr::BROADCAST, &packet).await;
}

/// The socket for DHCP packets on one interface.
enum Socket {
    /// For an interface without an address. Sends only broadcasts.
    Packet(PacketSocket, Mac),
    /// For an interface with an address, from which the packets are sent.
    Udp(UdpSocket),
}

impl Socket {
    fn packet(link: &Link) -> io::Result<Self> {
        Ok(Self::Packet(PacketSocket::open(link, udp::ETHERTYPE, &udp::filter())?, link.mac))
    }

    fn udp(link: &Link) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
        // Bind to the device first: sockets of other interfaces use the same port.
        setsockopt(&socket, sockopt::BindToDevice, &link.name.clone().into())?;
        setsockopt(&socket, sockopt::Broadcast, &true)?;
        bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT)))?;
        Ok(Self::Udp(UdpSocket::from_std(socket.into())?))
    }

    async fn send(&self, to: Ipv4Addr, packet: &[u8]) -> io::Result<()> {
        let sent = match self {
            Self::Packet(socket, mac) => {
                udp::broadcast(*mac, packet).ok_or(io::ErrorKind::InvalidInput.into()).and_then(|frame| socket.send(&frame))
            }
            Self::Udp(socket) => socket.send_to(packet, (to, SERVER_PORT)).await.map(drop),
        };
        match sent {
            // A link that goes down loses packets like any network. The next packet may get through.
            Err(error) if matches!(error.kind(), io::ErrorKind::NetworkDown | io::ErrorKind::NetworkUnreachable) => Ok(()),
            sent => sent,
        }
    }

    /// Waits for a packet to the client's port. Anything but a complete and undamaged UDP datagram gives an empty packet. Returns the
    /// frame's sender as well, if there is a frame.
    async fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<(&'b [u8], Option<Mac>)> {
        match self {
            Self::Packet(socket, _) => {
                let received = socket.receive(buffer).await?;
                let frame = buffer.get(..received.length).unwrap_or_default();
                Ok((udp::payload(frame, received.checksummed).unwrap_or_default(), udp::sender(frame)))
            }
            Self::Udp(socket) => {
                let length = socket.recv(buffer).await?;
                Ok((buffer.get(..length).unwrap_or_default(), None))
            }
        }
    }
}

/// Waits for a packet that changes the client's state. Returns its sender as well.
async fn answer(socket: &Socket, client: &mut Client) -> Result<(Outcome, Option<Mac>), Refusal> {
    let mut buffer = [0; udp::MAX_HEADERS + MAX_PACKET as usize];
    loop {
        // The error belongs to an earlier packet, such as ICMP "port unreachable".
        let Ok((packet, from)) = socket.receive(&mut buffer).await else { continue };
        match client.receive(packet)? {
            Outcome::Ignored => {}
            outcome => return Ok((outcome, from)),
        }
    }
}

/// Whether the DHCP server `server` with the MAC address `from` is QEMU's user network, or passt in its place. Their MAC addresses consist
/// of two fixed bytes and the IP address (libslirp, `special_ethaddr`).
fn is_user_network(from: Option<Mac>, server: Ipv4Addr) -> bool {
    let [a, b, c, d] = server.octets();
    from == Some(Mac([0x52, 0x55, a, b, c, d]))
}

/// A random number, by which the client knows its own answers. Machines that were started from one frozen machine have different ones.
fn random_transaction() -> u32 {
    let mut bytes = [0; 4];
    // It is no secret, so it need not wait for the generator's seed. A kernel before 5.6 refuses; the MAC address still tells machines apart.
    let _refused = getrandom(&mut bytes, GetRandomFlags::INSECURE);
    u32::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_network_is_known_by_the_mac_of_its_server() {
        let server = Ipv4Addr::new(192, 168, 76, 2);
        assert!(is_user_network(Some(Mac([0x52, 0x55, 192, 168, 76, 2])), server));
        for other in [None, Some(Mac([0x52, 0x55, 10, 0, 2, 2])), Some(Mac([0x52, 0x54, 192, 168, 76, 2]))] {
            assert!(!is_user_network(other, server), "{other:?}");
        }
    }
}
