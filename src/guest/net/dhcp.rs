//! DHCP on the wire: the socket and the timers around [`client`](super::client). What enters is an interface and a deadline; what
//! leaves is a lease, or more time for one. It never touches the interface.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::NetError;
use super::client::{Client, Lease, Outcome, Refusal};
use super::link::Link;
use super::packet::{Ask, LARGEST, Request};

/// Port of a DHCP client.
const CLIENT_PORT: u16 = 68;
/// Port of a DHCP server.
const SERVER_PORT: u16 = 67;
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
    let socket = open(link).map_err(|source| NetError::kernel(format!("open UDP port {CLIENT_PORT} on {link}"), source))?;
    let mut client = Client::new(link.mac, hostname, random_transaction());
    let start = Instant::now();
    let (mut sent, mut unanswered, mut retry) = (0, 0, FIRST_RETRY);
    loop {
        send(&socket, &client, start.elapsed())
            .await
            .map_err(|source| NetError::kernel(format!("send a DHCP packet on {link}"), source))?;
        sent += 1;
        unanswered += 1;
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
            if let Ok(socket) = open(link) {
                let _ = send(&socket, &client, start.elapsed()).await;
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
    let (IpAddr::V4(address), Ok(socket)) = (lease.address.address, open(link)) else { return };
    let ask = Ask::Decline { server: lease.server, address };
    let packet = Request { transaction: random_transaction(), seconds: 0, mac: link.mac, hostname: "", ask }.encode();
    let _ = socket.send_to(&packet, (Ipv4Addr::BROADCAST, SERVER_PORT)).await;
}

/// A socket for broadcasts and packets on `link` alone, which may have no address yet.
fn open(link: &Link) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    // Before it has a port: those of other interfaces have the same.
    setsockopt(&socket, sockopt::BindToDevice, &link.name.clone().into())?;
    setsockopt(&socket, sockopt::Broadcast, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT)))?;
    UdpSocket::from_std(socket.into())
}

async fn send(socket: &UdpSocket, client: &Client, elapsed: Duration) -> io::Result<()> {
    match socket.send_to(&client.packet(elapsed), (client.destination(), SERVER_PORT)).await {
        // A link that comes and goes loses packets like any network; the next one may get through.
        Err(error) if matches!(error.kind(), io::ErrorKind::NetworkDown | io::ErrorKind::NetworkUnreachable) => Ok(()),
        result => result.map(drop),
    }
}

/// Waits for a packet that leads somewhere.
async fn answer(socket: &UdpSocket, client: &mut Client) -> Result<Outcome, Refusal> {
    let mut packet = vec![0; LARGEST.into()];
    loop {
        // An error is one of an earlier packet, such as that nobody listens at the server's port: it says nothing of the next.
        let Ok(length) = socket.recv(&mut packet).await else { continue };
        match client.receive(packet.get(..length).unwrap_or_default()) {
            Ok(Outcome::Ignored) => {}
            outcome => return outcome,
        }
    }
}

/// A number that tells this client's packets from another's: half of a hash under keys that the system's randomness gave.
fn random_transaction() -> u32 {
    u32::try_from(RandomState::new().build_hasher().finish() >> 32).unwrap_or_default()
}
