//! DHCP on the wire: the socket and the timers around [`client`](super::client). What enters is an interface and a deadline; what
//! leaves is a lease. It never touches the interface.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::NetError;
use super::client::{Client, Lease, Outcome};
use super::link::Link;
use super::packet::LARGEST;

/// Port of a DHCP client.
const CLIENT_PORT: u16 = 68;
/// Port of a DHCP server.
const SERVER_PORT: u16 = 67;
/// Time to the first repetition; each later one takes twice as long. RFC 2131 (section 4.1) has 4 s, for networks of thousands;
/// this one has a handful of machines that somebody waits for.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest time between two packets.
const LONGEST_RETRY: Duration = Duration::from_secs(8);
/// Packets after which an offer whose server is silent is forgotten.
const REQUESTS: u32 = 4;

/// Gets a lease for `link` before `deadline`, which is `timeout` after the start.
///
/// # Errors
/// When no server answers or one refuses.
pub async fn acquire(link: &Link, hostname: &str, deadline: Instant, timeout: Duration) -> Result<Lease, NetError> {
    let socket =
        open(link).map_err(|source| NetError::Kernel { action: format!("open UDP port {CLIENT_PORT} on {link}"), source })?;
    let mut client = Client::new(link.mac, hostname, random_transaction());
    let start = Instant::now();
    let (mut sent, mut unanswered, mut retry) = (0, 0, FIRST_RETRY);
    loop {
        send(&socket, &client, start.elapsed())
            .await
            .map_err(|source| NetError::Kernel { action: format!("send a DHCP packet on {link}"), source })?;
        sent += 1;
        unanswered += 1;
        let wait = (Instant::now() + retry).min(deadline);
        match timeout_at(wait, answer(&socket, &mut client, link)).await {
            Ok(Ok(Outcome::Bound(lease))) => return Ok(lease),
            Ok(Ok(_)) => (unanswered, retry) = (0, FIRST_RETRY),
            Ok(Err(error)) => return Err(error),
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

/// A socket for broadcasts on `link` alone, which has no address yet.
fn open(link: &Link) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
    setsockopt(&socket, sockopt::BindToDevice, &link.name.clone().into())?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

async fn send(socket: &UdpSocket, client: &Client, elapsed: Duration) -> io::Result<()> {
    match socket.send_to(&client.packet(elapsed), (Ipv4Addr::BROADCAST, SERVER_PORT)).await {
        // A link that comes and goes loses packets like any network; the next one may get through.
        Err(error) if matches!(error.kind(), io::ErrorKind::NetworkDown | io::ErrorKind::NetworkUnreachable) => Ok(()),
        result => result.map(drop),
    }
}

/// Waits for a packet that leads somewhere.
async fn answer(socket: &UdpSocket, client: &mut Client, link: &Link) -> Result<Outcome, NetError> {
    let mut packet = vec![0; LARGEST.into()];
    loop {
        let received = socket.recv(&mut packet).await;
        let length =
            received.map_err(|source| NetError::Kernel { action: format!("receive a DHCP packet on {link}"), source })?;
        match client.receive(packet.get(..length).unwrap_or_default()) {
            Ok(Outcome::Ignored) => {}
            Ok(outcome) => return Ok(outcome),
            Err(source) => return Err(NetError::DhcpRefused { link: link.clone(), source }),
        }
    }
}

/// A number that tells this client's packets from another's: half of a hash under keys that the system's randomness gave.
fn random_transaction() -> u32 {
    u32::try_from(RandomState::new().build_hasher().finish() >> 32).unwrap_or_default()
}
