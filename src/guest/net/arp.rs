//! Builds and parses the ARP packets of address conflict detection (RFC 826, RFC 5227). Input is untrusted: parsing never panics
//! and never allocates.

use std::net::Ipv4Addr;

use crate::config::settings::Mac;

/// The fixed fields of an ARP packet for IPv4 over Ethernet, before the operation.
const FIXED_FIELDS: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// EtherType of ARP (IEEE 802 Numbers).
pub const ETHERTYPE: u16 = 0x0806;
/// Bytes of an Ethernet header.
const ETHERNET_FIXED_FIELDSER: usize = 14;
const REQUEST: u16 = 1;

/// A frame that asks which machine has `address`, without claiming it (RFC 5227, section 2.1.1).
#[must_use]
pub fn probe(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    request(mac, Ipv4Addr::UNSPECIFIED, address)
}

/// A frame that announces that `address` is here (RFC 5227, section 2.3).
#[must_use]
pub fn announcement(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    request(mac, address, address)
}

fn request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [&[0xff; 6][..], &mac.0, &ETHERTYPE.to_be_bytes(), &FIXED_FIELDS, &REQUEST.to_be_bytes()].concat();
    [&head[..], &mac.0, &sender.octets(), &[0; 6], &target.octets()].concat()
}

/// The sender of `frame`, if it shows that another machine has `address` or probes for it too (RFC 5227, section 2.1.1). `own` is
/// the interface that asks.
#[must_use]
pub fn conflicting_sender(frame: &[u8], own: Mac, address: Ipv4Addr) -> Option<Mac> {
    let packet: &[u8; 28] = frame.get(ETHERNET_FIXED_FIELDSER..)?.first_chunk()?;
    if frame.get(12..ETHERNET_FIXED_FIELDSER)? != ETHERTYPE.to_be_bytes() || !packet.starts_with(&FIXED_FIELDS) {
        return None;
    }
    let address_at = |offset: usize| Some(Ipv4Addr::from_octets(*packet.get(offset..)?.first_chunk()?));
    let sender = Mac(*packet.get(8..)?.first_chunk()?);
    let is_request = packet.get(6..8)? == REQUEST.to_be_bytes();
    let has_address = address_at(14)? == address;
    let probes_too = is_request && address_at(14)?.is_unspecified() && address_at(24)? == address;
    (sender != own && (has_address || probes_too)).then_some(sender)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    #[test]
    fn probe_has_the_layout_of_the_rfc() {
        let frame = probe(OWN, address(7));
        assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 0x52, 0x54, 0, 0, 0, 1, 8, 6]);
        assert_eq!(frame[14..28], [0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0, 0, 1]);
        assert_eq!(frame[28..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 7]);
        assert_eq!(announcement(OWN, address(7))[28..32], [10, 0, 0, 7]);
    }

    #[test]
    fn use_of_or_probe_for_the_address_is_a_conflict() {
        let reply = |mut frame: Vec<u8>| {
            frame[21] = 2;
            frame
        };
        let elsewhere = request(OTHER, address(9), address(7));
        for (frame, expected) in [
            (announcement(OTHER, address(7)), Some(OTHER)),
            (reply(request(OTHER, address(7), Ipv4Addr::UNSPECIFIED)), Some(OTHER)),
            (probe(OTHER, address(7)), Some(OTHER)),
            (announcement(OWN, address(7)), None),
            (probe(OWN, address(7)), None),
            (announcement(OTHER, address(8)), None),
            (elsewhere, None),
            (reply(probe(OTHER, address(7))), None),
        ] {
            assert_eq!(conflicting_sender(&frame, OWN, address(7)), expected, "{frame:?}");
        }
    }

    #[test]
    fn damaged_or_truncated_frame_is_not_a_conflict() {
        let good = announcement(OTHER, address(7));
        for at in [12, 14, 17, 18, 19] {
            let mut frame = good.clone();
            frame[at] ^= 0x40;
            assert_eq!(conflicting_sender(&frame, OWN, address(7)), None, "{at}");
        }
        for length in 0..good.len() {
            assert_eq!(conflicting_sender(&good[..length], OWN, address(7)), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_frame_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80), shaped in any::<bool>()) {
            let head = if shaped { [&[0; 12][..], &ETHERTYPE.to_be_bytes(), &FIXED_FIELDS].concat() } else { vec![] };
            let _ = conflicting_sender(&[head, bytes].concat(), OWN, address(7));
        }
    }
}
