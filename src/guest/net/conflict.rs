//! Whether another machine has an address. What enters is an interface and an address that is to be its own; what leaves is the other
//! machine. It claims nothing before it has asked.

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

/// How often it is asked. RFC 5227 (section 1.1) has 3 questions 1 to 2 s apart and 2 s after the last: it is for links that take
/// seconds to come up and machines that sleep, and somebody waits for this one.
const PROBES: u32 = 3;
/// How long an answer is waited for each time, where the address is static: nobody else has looked.
pub const STATIC_WAIT: Duration = Duration::from_millis(150);
/// The same, where a server gave it, which should have looked.
pub const LEASED_WAIT: Duration = Duration::from_millis(50);
/// Longest frame that is looked at, in bytes: an ARP packet has 42.
const LONGEST: usize = 64;
/// Records of the kernel's log that are looked at.
const RECORDS: usize = 10_000;

/// The other machine on `link` that has `address`, if one answers within `wait` of one of the questions.
///
/// # Errors
/// When frames cannot be sent or received.
pub async fn other(link: &Link, address: Ipv4Addr, wait: Duration) -> io::Result<Option<Mac>> {
    let socket = PacketSocket::open(link, arp::ETHERTYPE, &[])?;
    for _ in 0..PROBES {
        socket.send(&arp::probe(link.mac, address))?;
        if let Ok(heard) = timeout(wait, listen(&socket, link, address)).await {
            return heard.map(Some);
        }
    }
    Ok(None)
}

/// Tells everybody on `link` that `address` is here: who had it before is forgotten.
///
/// # Errors
/// When the frame cannot be sent.
pub fn announce(link: &Link, address: Ipv4Addr) -> io::Result<()> {
    PacketSocket::open(link, arp::ETHERTYPE, &[])?.send(&arp::announcement(link.mac, address))
}

/// Waits for a frame that says that another machine has `address`.
async fn listen(socket: &PacketSocket, link: &Link, address: Ipv4Addr) -> io::Result<Mac> {
    let mut frame = [0; LONGEST];
    loop {
        let received = socket.receive(&mut frame).await?;
        if let Some(other) = arp::other(frame.get(..received.length).unwrap_or_default(), link.mac, address) {
            return Ok(other);
        }
    }
}

/// The machine that made the kernel give `address` up, where its log says so (`net/ipv6/ndisc.c`).
#[must_use]
pub fn culprit(address: Ipv6Addr) -> Option<Mac> {
    let mut log = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
    let mut record = [0; 8192];
    let mut found = None;
    // At the log's end the read would block.
    for _ in 0..RECORDS {
        match log.read(&mut record) {
            Ok(length) => {
                let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                found = culprit_in(&text, address).or(found);
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(_) => break,
        }
    }
    found
}

/// The machine in a record "… IPv6 duplicate address ADDRESS used by MAC detected!".
fn culprit_in(record: &str, address: Ipv6Addr) -> Option<Mac> {
    let (_, rest) = record.split_once(&format!("IPv6 duplicate address {address} used by "))?;
    rest.split_once(" detected")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_log_names_who_has_an_ipv6_address() {
        let address = "fd00::1".parse().unwrap();
        let record = |middle: &str| format!("6,230,1000,-;IPv6: eth0: IPv6 duplicate address {middle} detected!\n");
        let found = culprit_in(&record("fd00::1 used by 02:00:00:00:00:09"), address);
        assert_eq!(found, Some(Mac([2, 0, 0, 0, 0, 9])));
        for other in ["fd00::12 used by 02:00:00:00:00:09", "fd00::1 used by nobody", "fd00::1"] {
            assert_eq!(culprit_in(&record(other), address), None, "{other}");
        }
    }
}
