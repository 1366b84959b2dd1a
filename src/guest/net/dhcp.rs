//! DHCP on the wire: the sockets and the timers around [`client`](super::client). Gets a lease for an interface before a deadline, or
//! more time for one; giving the address to the interface is left to the caller.
//!
//! A client without an address uses a packet socket: many servers answer to the address that they offer, and a UDP socket receives
//! nothing for an address that its interface does not have yet. A client with an address uses a UDP socket.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::config::settings::Mac;

use super::NetError;
use super::client::{Client, Lease, Outcome, Refusal};
use super::link::Link;
use super::packet::{Ask, LARGEST, Request};
use super::packet_socket::PacketSocket;
use super::udp::{self, CLIENT_PORT, SERVER_PORT};

/// Time to the first repetition; each later one takes twice as long. RFC 2131 (section 4.1) has 4 s, for networks of thousands;
/// this one has a handful of machines that somebody waits for.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest time between two packets.
const LONGEST_RETRY: Duration = Duration::from_secs(8);
/// Shortest time between two packets that ask for more time: RFC 2131 (section 4.4.5) has half of what is left, and at least 60 s.
const EXTENSION_RETRY: Duration = Duration::from_secs(1);
/// Packets after which an offer whose server is silent is forgotten.
const REQUESTS: u32 = 4;

/// What became of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// It goes on, maybe with another address.
    Extended(Lease),
    /// A server says that the address is not ours any more.
    Refused(Refusal),
    /// Nobody answered until it ended.
    Silent,
}

/// Gets a lease for `link` before `deadline`, which is `timeout` after the start.
///
/// # Errors
/// When no server answers or one refuses.
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
            Ok(Ok(Outcome::Bound(lease))) => return Ok(lease),
            Ok(Ok(_)) => (unanswered, retry) = (0, FIRST_RETRY),
            Ok(Err(source)) => return Err(NetError::DhcpRefused { link: link.clone(), source }),
            Err(_) if Instant::now() >= deadline => {
                return Err(NetError::DhcpSilent { link: link.clone(), sent, timeout });
            }
            Err(_) => {
                retry = (retry * 2).min(LONGEST_RETRY);
                if client.is_requesting() && unanswered >= REQUESTS {
                    client.restart();
                    unanswered = 0;
                }
            }
        }
    }
}

/// Waits until more time for `lease`, which was given at `since`, has to be asked for, and asks: its server, then every server
/// (RFC 2131, section 4.4.5).
pub async fn keep(link: &Link, hostname: &str, lease: &Lease, since: Instant) -> Kept {
    let Some(times) = lease.times else { return std::future::pending().await };
    sleep_until(since + times.renewal).await;
    match extend(link, hostname, lease, Some(lease.server), since + times.rebinding).await {
        Kept::Silent => extend(link, hostname, lease, None, since + times.end).await,
        answered => answered,
    }
}

/// Asks `server`, or every one, for more time for `lease`, up to `deadline`. What goes wrong with a packet is a packet lost.
pub async fn extend(link: &Link, hostname: &str, lease: &Lease, server: Option<Ipv4Addr>, deadline: Instant) -> Kept {
    let IpAddr::V4(address) = lease.address.address else { return Kept::Silent };
    let mut client = Client::extending(link.mac, hostname, random_transaction(), address, server);
    let start = Instant::now();
    let asking = async {
        loop {
            let now = Instant::now();
            let wait = now + (deadline.saturating_duration_since(now) / 2).max(EXTENSION_RETRY);
            if let Ok(socket) = Socket::udp(link) {
                let _ = socket.send(client.destination(), &client.packet(start.elapsed())).await;
                match timeout_at(wait, answer(&socket, &mut client)).await {
                    Ok(Ok(Outcome::Bound(lease))) => return Kept::Extended(lease),
                    Ok(Err(refusal)) => return Kept::Refused(refusal),
                    Ok(Ok(_)) | Err(_) => {}
                }
            }
            sleep_until(wait).await;
        }
    };
    timeout_at(deadline, asking).await.unwrap_or(Kept::Silent)
}

/// Tells the server of `lease` that another machine has its address (RFC 2131, section 4.4.4). Nobody answers that.
pub async fn decline(link: &Link, lease: &Lease) {
    let (IpAddr::V4(address), Ok(socket)) = (lease.address.address, Socket::packet(link)) else { return };
    let ask = Ask::Decline { server: lease.server, address };
    let packet = Request { transaction: random_transaction(), seconds: 0, mac: link.mac, hostname: "", ask }.encode();
    let _ = socket.send(Ipv4Addr::BROADCAST, &packet).await;
}

/// What DHCP packets are sent and received by, on one interface.
enum Socket {
    /// For an interface without an address. Sends broadcasts only.
    Packet(PacketSocket, Mac),
    /// For an interface with an address, which the packets are sent from.
    Udp(UdpSocket),
}

impl Socket {
    fn packet(link: &Link) -> io::Result<Self> {
        Ok(Self::Packet(PacketSocket::open(link, udp::ETHERTYPE, &udp::filter())?, link.mac))
    }

    fn udp(link: &Link) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
        // Before it has a port: those of other interfaces have the same.
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
            // A link that comes and goes loses packets like any network; the next one may get through.
            Err(error) if matches!(error.kind(), io::ErrorKind::NetworkDown | io::ErrorKind::NetworkUnreachable) => Ok(()),
            sent => sent,
        }
    }

    /// Waits for a packet to the client's port. What is no whole and undamaged UDP datagram gives an empty one.
    async fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        let packet = match self {
            Self::Packet(socket, _) => {
                let received = socket.receive(buffer).await?;
                buffer.get(..received.length).and_then(|frame| udp::payload(frame, received.checksummed))
            }
            Self::Udp(socket) => {
                let length = socket.recv(buffer).await?;
                buffer.get(..length)
            }
        };
        Ok(packet.unwrap_or_default())
    }
}

/// Waits for a packet that leads somewhere.
async fn answer(socket: &Socket, client: &mut Client) -> Result<Outcome, Refusal> {
    let mut buffer = [0; udp::LONGEST_HEADERS + LARGEST as usize];
    loop {
        // An error is one of an earlier packet, such as that nobody listens at the server's port: it says nothing of the next.
        let Ok(packet) = socket.receive(&mut buffer).await else { continue };
        match client.receive(packet) {
            Ok(Outcome::Ignored) => {}
            outcome => return outcome,
        }
    }
}

/// A number that tells this client's packets from another's: half of a hash under keys that the system's randomness gave.
fn random_transaction() -> u32 {
    u32::try_from(RandomState::new().build_hasher().finish() >> 32).unwrap_or_default()
}
