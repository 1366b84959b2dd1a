//! Detects whether another machine uses an address.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use tokio::time::timeout;

use crate::config::settings::Mac;

use super::arp;
use super::link::Link;
use super::packet_socket::PacketSocket;

/// Number of ARP probes. RFC 5227 (section 1.1) sends 3 probes 1 to 2 s apart and waits 2 s after the last, for links that take
/// seconds to come up and machines that sleep. A user waits for this boot.
const PROBES: u32 = 3;
/// Wait after each probe for a static address, which no DHCP server has checked.
pub const STATIC_WAIT: Duration = Duration::from_millis(150);
/// Wait after each probe for a leased address, which the server should have checked.
pub const LEASED_WAIT: Duration = Duration::from_millis(50);
/// Bytes read of each frame: an ARP packet has 42.
const MAX_FRAME: usize = 64;
/// Records of the kernel's log to search.
const RECORDS: usize = 10_000;

/// The other machine on `link` that uses `address`, if one answers a probe within `wait`.
///
/// # Errors
/// Fails if frames cannot be sent or received.
pub async fn find(link: &Link, address: Ipv4Addr, wait: Duration) -> io::Result<Option<Mac>> {
    let socket = PacketSocket::open(link, arp::ETHERTYPE, &[])?;
    for _ in 0..PROBES {
        socket.send(&arp::probe(link.mac, address))?;
        if let Ok(answer) = timeout(wait, listen(&socket, link, address)).await {
            return answer.map(Some);
        }
    }
    Ok(None)
}

/// Announces on `link` that `address` is here, so that other machines update their ARP caches.
///
/// # Errors
/// Fails if the frame cannot be sent.
pub fn announce(link: &Link, address: Ipv4Addr) -> io::Result<()> {
    PacketSocket::open(link, arp::ETHERTYPE, &[])?.send(&arp::announcement(link.mac, address))
}

/// Waits for a frame that shows that another machine uses `address`.
async fn listen(socket: &PacketSocket, link: &Link, address: Ipv4Addr) -> io::Result<Mac> {
    let mut frame = [0; MAX_FRAME];
    loop {
        let received = socket.receive(&mut frame).await?;
        if let Some(other) = arp::conflicting_sender(frame.get(..received.length).unwrap_or_default(), link.mac, address) {
            return Ok(other);
        }
    }
}

/// The machine whose answer made the kernel reject `address`, from the kernel's log (`net/ipv6/ndisc.c`).
#[must_use]
pub fn ipv6_conflict(address: Ipv6Addr) -> Option<Mac> {
    let mut log = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
    let mut record = [0; 8192];
    let mut found = None;
    // At the end of the log the read would block.
    for _ in 0..RECORDS {
        match log.read(&mut record) {
            Ok(length) => {
                let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                found = ipv6_conflict_in(&text, address).or(found);
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(_) => break,
        }
    }
    found
}

/// The MAC address in a record "… IPv6 duplicate address ADDRESS used by MAC detected!".
fn ipv6_conflict_in(record: &str, address: Ipv6Addr) -> Option<Mac> {
    let (_, rest) = record.split_once(&format!("IPv6 duplicate address {address} used by "))?;
    rest.split_once(" detected")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_of_an_ipv6_conflict_is_found_in_the_kernel_log() {
        let address = "fd00::1".parse().unwrap();
        let record = |middle: &str| format!("6,230,1000,-;IPv6: eth0: IPv6 duplicate address {middle} detected!\n");
        let found = ipv6_conflict_in(&record("fd00::1 used by 02:00:00:00:00:09"), address);
        assert_eq!(found, Some(Mac([2, 0, 0, 0, 0, 9])));
        for other in ["fd00::12 used by 02:00:00:00:00:09", "fd00::1 used by x", "fd00::1"] {
            assert_eq!(ipv6_conflict_in(&record(other), address), None, "{other}");
        }
    }
}
