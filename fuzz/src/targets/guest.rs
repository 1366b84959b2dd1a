//! What the guest reads: packets, messages of the kernel, its config.

use std::net::Ipv4Addr;
use std::time::Duration;

use localregistry::address::Mac;
use localregistry::config::Origin;
use localregistry::config::guest_config::GuestConfig;
use localregistry::config::partial_config::PartialConfig;
use localregistry::guest::net::dhcp_client::{Client, Outcome};
use localregistry::guest::net::{arp, netlink, udp};

const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const TRANSACTION: u32 = 0x0102_0304;

/// Frames, each after its length in one byte, to a client of DHCP: as UDP in IPv4 in Ethernet, as the bare packet, and as ARP.
pub fn dhcp(data: &[u8]) {
    let mut client = Client::new(MAC, "registry", TRANSACTION);
    let mut rest = data;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let (frame, after) = after.split_at(usize::from(u16::from_be_bytes(*length)).min(after.len()));
        rest = after;
        let own = Ipv4Addr::new(10, 0, 2, 15);
        if let Some(sender) = arp::conflicting_sender(frame, MAC, own) {
            assert_ne!(sender, MAC, "an own packet is a conflict");
        }
        let payload = udp::payload(frame, true);
        if payload.is_some() {
            assert_eq!(payload, udp::payload(frame, false), "a correct checksum makes a difference");
        }
        match client.receive(payload.unwrap_or(frame)) {
            Ok(Outcome::Bound(lease)) => {
                let address = lease.address.address;
                assert!(!address.is_unspecified() && !address.is_multicast() && !address.is_loopback(), "leased: {address}");
                client = Client::extending(MAC, "registry", TRANSACTION, Ipv4Addr::new(10, 0, 2, 15), None);
            }
            Ok(_) => {}
            Err(_) => client.restart(),
        }
        let sent = client.packet(Duration::from_secs(1));
        let frame = udp::broadcast(MAC, &sent).expect("it fits");
        // The same checksums and lengths, from client to server.
        assert_eq!(frame.get(42..), Some(sent.as_slice()));
    }
}

/// Messages of rtnetlink.
pub fn netlink(data: &[u8]) {
    let mut read = 0;
    for message in netlink::messages(data) {
        read += 16 + message.body.len();
        let values: usize = netlink::attributes(message.body).map(|(_, value)| 4 + value.len()).sum();
        assert!(values <= message.body.len(), "attributes of {values} bytes in {}", message.body.len());
    }
    assert!(read <= data.len(), "messages of {read} bytes in {}", data.len());
}

/// A config: the command line of the kernel up to the first newline, then JSON.
pub fn config(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (line, json) = data.split_at(end);
    let line = String::from_utf8_lossy(line);
    let from_line = PartialConfig::from_command_line(&line);
    let from_json = PartialConfig::from_json(Origin::FwCfg, json);
    if let (Ok(line), Ok(json)) = (from_line, from_json) {
        let _ = json.overridden_by(line).settings(Origin::FwCfg);
    }
    // What the host writes, it reads again, and so does the guest.
    if let Ok(config) = GuestConfig::parse(json) {
        let written = config.to_json();
        let again = GuestConfig::parse(written.as_bytes()).expect("its own text");
        assert_eq!(again.to_json(), written);
        if let Err(error) = PartialConfig::from_json(Origin::FwCfg, written.as_bytes()) {
            panic!("the host accepts {written}, and the guest says: {error}");
        }
    }
}
