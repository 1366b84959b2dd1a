//! The Ethernet, IPv4 and UDP headers around DHCP packets (RFC 894, RFC 791, RFC 768), which the client builds and checks itself while
//! its interface has no address. Input is untrusted: parsing never panics, never allocates, and never reads past the frame.

use std::net::Ipv4Addr;

use socket2::SockFilter;

use crate::config::settings::Mac;

/// UDP port of a DHCP client (RFC 2131, section 4.1).
pub const CLIENT_PORT: u16 = 68;
/// UDP port of a DHCP server.
pub const SERVER_PORT: u16 = 67;
/// EtherType of IPv4 (RFC 894).
pub const ETHERTYPE: u16 = 0x0800;
/// Most bytes of headers in a received frame: Ethernet, IPv4 with the longest options, UDP.
pub const MAX_HEADERS: usize = 14 + 60 + UDP_HEADER as usize;

/// IP protocol number of UDP (RFC 790).
const UDP: u8 = 17;
/// Version 4, and a header of five words: no options.
const VERSION_AND_LENGTH: u8 = 0x45;
const IP_HEADER: u16 = 20;
const UDP_HEADER: u16 = 8;
/// Time to live, in hops (RFC 1700).
const TIME_TO_LIVE: u8 = 64;
/// Bits of the flags and offset fields that only fragments have set: "more fragments", and the offset.
const FRAGMENT: u16 = 0x3fff;

/// Operations of classic BPF (Documentation/networking/filter.rst).
mod bpf {
    /// Loads a byte, or a half-word, of the frame.
    pub const LOAD_BYTE: u16 = 0x30;
    pub const LOAD_HALF: u16 = 0x28;
    /// Loads a half-word of the frame, at an offset from X.
    pub const LOAD_HALF_FROM_X: u16 = 0x48;
    /// Sets X to four times the lower half of a byte: the length of an IPv4 header.
    pub const X_HEADER_LENGTH: u16 = 0xb1;
    pub const JUMP_EQUAL: u16 = 0x15;
    pub const JUMP_ANY_BIT: u16 = 0x45;
    /// Returns the number of bytes to keep. 0 drops the frame.
    pub const RETURN: u16 = 0x06;
}

/// A filter that makes the kernel drop every frame except unfragmented UDP datagrams to [`CLIENT_PORT`]. It does not check lengths
/// and checksums: [`payload`] does.
#[must_use]
pub fn filter() -> [SockFilter; 11] {
    let step = |code, k| SockFilter::new(code, 0, 0, k);
    let test = |code, k, yes, no| SockFilter::new(code, yes, no, k);
    [
        step(bpf::LOAD_HALF, 12),
        test(bpf::JUMP_EQUAL, ETHERTYPE.into(), 0, 8),
        step(bpf::LOAD_BYTE, 23),
        test(bpf::JUMP_EQUAL, UDP.into(), 0, 6),
        step(bpf::LOAD_HALF, 20),
        test(bpf::JUMP_ANY_BIT, FRAGMENT.into(), 4, 0),
        step(bpf::X_HEADER_LENGTH, 14),
        step(bpf::LOAD_HALF_FROM_X, 14 + 2),
        test(bpf::JUMP_EQUAL, CLIENT_PORT.into(), 0, 1),
        step(bpf::RETURN, u32::MAX),
        step(bpf::RETURN, 0),
    ]
}

/// A frame that broadcasts `payload` from the client at `mac`, which has no address yet, to every server. `None` if `payload` does
/// not fit into an IPv4 packet.
#[must_use]
pub fn broadcast(mac: Mac, payload: &[u8]) -> Option<Vec<u8>> {
    let udp_length = u16::try_from(payload.len()).ok()?.checked_add(UDP_HEADER)?;
    let ip_length = udp_length.checked_add(IP_HEADER)?;
    let (from, to) = (Ipv4Addr::UNSPECIFIED.octets(), Ipv4Addr::BROADCAST.octets());

    let ethernet = [&[0xff; 6][..], &mac.0, &ETHERTYPE.to_be_bytes()].concat();
    let ip_start = [&[VERSION_AND_LENGTH, 0][..], &ip_length.to_be_bytes(), &[0; 4], &[TIME_TO_LIVE, UDP]].concat();
    let ip_checksum = checksum(&[&ip_start, &from, &to]);
    let udp_start = [CLIENT_PORT, SERVER_PORT, udp_length].map(u16::to_be_bytes).concat();
    let udp_checksum = checksum(&[&pseudo_header(from, to, udp_length), &udp_start, payload]);
    Some(
        [&ethernet[..], &ip_start, &ip_checksum.to_be_bytes(), &from, &to, &udp_start, &udp_checksum.to_be_bytes(), payload]
            .concat(),
    )
}

/// The MAC address that sent `frame`.
#[must_use]
pub fn sender(frame: &[u8]) -> Option<Mac> {
    frame.get(6..)?.first_chunk().copied().map(Mac)
}

/// The payload of `frame`, if that is a UDP datagram to [`CLIENT_PORT`] with consistent headers and correct checksums. The UDP
/// checksum counts only if the frame is `checksummed` and the sender computed one (RFC 768).
#[must_use]
pub fn payload(frame: &[u8], checksummed: bool) -> Option<&[u8]> {
    let packet = frame.get(12..)?.strip_prefix(&ETHERTYPE.to_be_bytes())?;
    let [version, _, l0, l1, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *packet.first_chunk()?;
    let is_whole = u16::from_be_bytes([f0, f1]) & FRAGMENT == 0;
    if version >> 4 != 4 || protocol != UDP || !is_whole {
        return None;
    }
    // An Ethernet frame may be padded, so use the lengths in the headers.
    let packet = packet.get(..usize::from(u16::from_be_bytes([l0, l1])))?;
    let header_length = usize::from(version & 0xf).checked_mul(4).filter(|length| *length >= usize::from(IP_HEADER))?;
    let (header, datagram) = packet.split_at_checked(header_length)?;
    let [_, _, p0, p1, l0, l1, c0, c1] = *datagram.first_chunk()?;
    let udp_length = u16::from_be_bytes([l0, l1]);
    let datagram = datagram.get(..usize::from(udp_length))?;
    let pseudo_header = pseudo_header([s0, s1, s2, s3], [d0, d1, d2, d3], udp_length);
    let is_correct =
        checksum(&[header]) == VALID && (!checksummed || [c0, c1] == [0, 0] || checksum(&[&pseudo_header, datagram]) == VALID);
    let is_for_client = u16::from_be_bytes([p0, p1]) == CLIENT_PORT;
    datagram.get(usize::from(UDP_HEADER)..).filter(|_| is_correct && is_for_client)
}

/// The pseudo header, which the UDP checksum covers too (RFC 768).
fn pseudo_header([s0, s1, s2, s3]: [u8; 4], [d0, d1, d2, d3]: [u8; 4], length: u16) -> [u8; 12] {
    let [l0, l1] = length.to_be_bytes();
    [s0, s1, s2, s3, d0, d1, d2, d3, 0, UDP, l0, l1]
}

/// The checksum of bytes that include their own correct checksum.
const VALID: u16 = 0xffff;

/// The Internet checksum of the concatenated `parts` (RFC 1071). Each part but the last must have an even length. One's complement
/// sums are sums modulo 65535; of the two zeros this gives 0xffff, because a UDP checksum of 0 means none.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2)).map(|word| match *word {
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        [last] => u64::from(u16::from_be_bytes([last, 0])),
        _ => 0,
    });
    !u16::try_from(words.sum::<u64>() % 0xffff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    /// The Internet checksum as in RFC 1071 (section 4.1), which folds the carries back into the sum.
    fn folded(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for (index, byte) in bytes.iter().enumerate() {
            sum += u32::from(*byte) << if index % 2 == 0 { 8 } else { 0 };
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    /// A frame from a server to the client, with these IP options.
    fn answer(options: &[u8], payload: &[u8]) -> Vec<u8> {
        let udp_length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
        let header_length = 20 + options.len();
        let length = u16::try_from(header_length + 8 + payload.len()).unwrap().to_be_bytes();
        let addresses = [10, 0, 2, 2, 10, 0, 2, 15];
        let first = 0x40 | u8::try_from(header_length / 4).unwrap();
        let mut header = [&[first, 0][..], &length, &[0x12, 0x34, 0x40, 0, 64, 17, 0, 0], &addresses, options].concat();
        let sum = folded(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        let mut datagram = [&[0, 67, 0, 68][..], &udp_length, &[0, 0], payload].concat();
        let sum = folded(&[&addresses[..], &[0, 17], &udp_length, &datagram].concat()).to_be_bytes();
        datagram[6..8].copy_from_slice(&sum);
        [&MAC.0[..], &[2, 0, 0, 0, 0, 9], &[8, 0], &header, &datagram].concat()
    }

    #[test]
    fn broadcast_frame_has_the_headers_of_the_rfcs() {
        let frame = broadcast(MAC, b"DHCP!").unwrap();
        assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 0]);
        assert_eq!(frame[14..24], [0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17]);
        assert_eq!(frame[26..34], [0, 0, 0, 0, 255, 255, 255, 255]);
        assert_eq!(frame[34..40], [0, 68, 0, 67, 0, 13]);
        assert_eq!(&frame[42..], b"DHCP!");
        assert_eq!(broadcast(MAC, &vec![0; 65_535 - 28]).map(|frame| frame.len()), Some(65_535 + 14));
        assert_eq!(broadcast(MAC, &vec![0; 65_535 - 27]), None);
    }

    #[test]
    fn damaged_or_foreign_frame_has_no_payload() {
        let good = answer(&[], b"DHCP!");
        assert_eq!(payload(&good, true), Some(&b"DHCP!"[..]));
        for place in 14..good.len() {
            let mut frame = good.clone();
            frame[place] ^= 0x10;
            assert_eq!(payload(&frame, true), None, "byte {place}");
        }
        for length in 0..good.len() {
            assert_eq!(payload(&good[..length], true), None, "{length} bytes");
        }
        let padded = [&good[..], &[0; 18]].concat();
        assert_eq!(payload(&padded, true), Some(&b"DHCP!"[..]), "an Ethernet frame has at least 60 bytes");
        // Corrects the IP checksum, so that only the changed field is wrong.
        let changed = |place: usize, value: u8| {
            let mut frame = good.clone();
            frame[place] = value;
            frame[24..26].copy_from_slice(&[0, 0]);
            let sum = folded(&frame[14..34]).to_be_bytes();
            frame[24..26].copy_from_slice(&sum);
            frame
        };
        for (place, value, what) in [
            (12, 0x86, "another EtherType"),
            (14, 0x65, "IPv6"),
            (14, 0x44, "a header shorter than its fixed part"),
            (14, 0x4f, "a header longer than the packet"),
            (16, 0x10, "a packet longer than the frame"),
            (17, 27, "a packet too short for UDP"),
            (20, 0x20, "a first fragment"),
            (21, 1, "a later fragment"),
            (23, 6, "TCP"),
            (37, 67, "to the server's port"),
            (38, 0x10, "a datagram longer than the packet"),
            (39, 7, "a datagram shorter than its header"),
        ] {
            assert_eq!(payload(&changed(place, value), false), None, "{what}");
        }
    }

    #[test]
    fn udp_checksum_counts_unless_absent_or_left_to_the_network_card() {
        let mut frame = answer(&[], b"DHCP!");
        frame[40] ^= 1;
        assert_eq!((payload(&frame, true), payload(&frame, false)), (None, Some(&b"DHCP!"[..])));
        frame[40..42].copy_from_slice(&[0, 0]);
        assert_eq!(payload(&frame, true), Some(&b"DHCP!"[..]));
    }

    proptest! {
        #[test]
        fn broadcast_checksums_are_those_of_rfc_1071(mac in any::<[u8; 6]>(), bytes in vec(any::<u8>(), 0..1500)) {
            let frame = broadcast(Mac(mac), &bytes).unwrap();
            prop_assert_eq!(folded(&frame[14..34]), 0);
            let pseudo_header = [&frame[26..34], &[0, 17], &frame[38..40]].concat();
            prop_assert_eq!(folded(&[&pseudo_header[..], &frame[34..]].concat()), 0);
            prop_assert_ne!(&frame[40..42], &[0, 0], "0 would mean that there is none");
            prop_assert_eq!(&frame[42..], &bytes[..]);
        }

        #[test]
        fn payload_of_a_valid_frame_is_read_back(bytes in vec(any::<u8>(), 0..1472), words in 0_usize..=10, padding in 0_usize..20) {
            let frame = [answer(&vec![1; words * 4], &bytes), vec![0; padding]].concat();
            prop_assert_eq!(payload(&frame, true), Some(&bytes[..]));
            prop_assert_eq!(payload(&frame, false), Some(&bytes[..]));
        }

        #[test]
        fn arbitrary_frames_never_panic(
            bytes in vec(any::<u8>(), 0..200),
            shaped in any::<bool>(),
            checksummed in any::<bool>(),
            changes in vec((0_usize..60, any::<u8>()), 0..4),
        ) {
            let mut frame = if shaped { answer(&[1; 8], &bytes) } else { bytes };
            for (place, value) in changes {
                if let Some(byte) = frame.get_mut(place) {
                    *byte = value;
                }
            }
            let found = payload(&frame, checksummed).map_or(0, <[u8]>::len);
            prop_assert!(found <= frame.len().saturating_sub(42));
        }
    }
}
