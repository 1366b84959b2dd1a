//! Builds and parses netlink messages about interfaces, addresses and routes (rtnetlink(7)). Parsing never panics and never reads
//! past its input; incomplete messages and attributes are skipped.
//!
//! The crate `rtnetlink` covers the whole protocol. The guest needs about one part in a hundred of it, and it would add a tenth to
//! the guest's size.

/// Message types (uapi/linux/rtnetlink.h, uapi/linux/netlink.h).
pub(crate) mod kind {
    pub const ERROR: u16 = 2;
    pub const DONE: u16 = 3;
    pub const NEW_LINK: u16 = 16;
    pub const GET_LINK: u16 = 18;
    pub const NEW_ADDRESS: u16 = 20;
    pub const DELETE_ADDRESS: u16 = 21;
    pub const GET_ADDRESS: u16 = 22;
    pub const NEW_ROUTE: u16 = 24;
}

/// Request flags (uapi/linux/netlink.h).
pub(crate) mod flag {
    pub const REQUEST: u16 = 1;
    pub const ACKNOWLEDGE: u16 = 4;
    pub const REPLACE: u16 = 0x100;
    pub const EXCLUSIVE: u16 = 0x200;
    pub const DUMP: u16 = 0x300;
    pub const CREATE: u16 = 0x400;
}

/// Bytes of a message header: length, type, flags, sequence, port.
const HEADER: usize = 16;
/// Bytes of an attribute header: length, type.
const ATTRIBUTE_HEADER: usize = 4;
/// Flag bits in an attribute's type (uapi/linux/netlink.h, `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`).
const ATTRIBUTE_FLAGS: u16 = 0xc000;

/// A request under construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetlinkRequest(Vec<u8>);

impl NetlinkRequest {
    /// A request of type `kind` with the fixed part `body`.
    #[must_use]
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | flag::REQUEST).to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        Self(bytes)
    }

    /// Appends an attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(attribute(kind, value));
        self
    }

    /// The encoded message with this sequence number.
    #[must_use]
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let header = length.to_ne_bytes().into_iter().zip(self.0.iter_mut());
        header.for_each(|(byte, target)| *target = byte);
        let number = sequence.to_ne_bytes().into_iter().zip(self.0.iter_mut().skip(8));
        number.for_each(|(byte, target)| *target = byte);
        self.0
    }
}

/// An encoded attribute, padded to a multiple of four bytes.
#[must_use]
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE_HEADER.saturating_add(value.len())).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(aligned(bytes.len()), 0);
    bytes
}

/// A message from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// Sequence number of the request that it answers.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// The messages in `bytes`, up to the first incomplete one.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let message = bytes.get(..length)?;
        let body = message.get(HEADER..)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
        let sequence = u32::from_ne_bytes(*message.get(8..)?.first_chunk()?);
        Some(Message { kind, sequence, body })
    })
}

/// The attributes in `bytes`, as type and value, up to the first incomplete one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let attribute = bytes.get(..length)?;
        let value = attribute.get(ATTRIBUTE_HEADER..)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        let kind = u16::from_ne_bytes(*attribute.get(2..)?.first_chunk()?);
        Some((kind & !ATTRIBUTE_FLAGS, value))
    })
}

/// The value of the first attribute of type `kind`.
#[must_use]
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Rounds up to a multiple of four.
const fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn encoded_request_is_parsed_unchanged() {
        let nested = [attribute(1, b"vlan\0"), attribute(2, &attribute(1, &7_u16.to_ne_bytes()))].concat();
        let request = NetlinkRequest::new(kind::NEW_LINK, flag::CREATE, &[9; 16]).with(3, b"eth0.7\0").with(18, &nested);
        let bytes = [request.finish(5), NetlinkRequest::new(kind::GET_LINK, flag::DUMP, &[]).finish(6)].concat();
        let found: Vec<_> = messages(&bytes).collect();
        assert_eq!(found.iter().map(|one| (one.kind, one.sequence)).collect::<Vec<_>>(), [(16, 5), (18, 6)]);
        assert_eq!(bytes[6..8], (flag::CREATE | flag::REQUEST).to_ne_bytes());
        let body = found[0].body.get(16..).unwrap();
        assert_eq!(find(body, 3), Some(&b"eth0.7\0"[..]));
        let info = find(body, 18).unwrap();
        assert_eq!(find(info, 1), Some(&b"vlan\0"[..]));
        assert_eq!(find(find(info, 2).unwrap(), 1), Some(&7_u16.to_ne_bytes()[..]));
        assert_eq!(find(info, 4), None);
    }

    #[test]
    fn flags_are_not_part_of_an_attribute_s_type() {
        let nested = attribute(18 | 0x8000, &[1]);
        assert_eq!(attributes(&nested).collect::<Vec<_>>(), [(18, &[1][..])]);
    }

    #[test]
    fn parsing_ends_at_an_incomplete_message_or_attribute() {
        let complete = NetlinkRequest::new(kind::DONE, 0, &[1, 2, 3, 4]).finish(1);
        for length in 0..complete.len() {
            assert_eq!(messages(&complete[..length]).count(), 0, "{length}");
        }
        let short = [&15_u32.to_ne_bytes()[..], &complete].concat();
        assert_eq!(messages(&short).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0, "a length of 0 does not loop");
        assert_eq!(attributes(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_neither_panic_nor_loop(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0_u16..80) {
            let shaped = [&u32::from(cut).to_ne_bytes()[..], &bytes].concat();
            for input in [&bytes, &shaped] {
                prop_assert!(messages(input).count() <= input.len() / HEADER + 1);
                let attributes = messages(input).chain([Message { kind: 0, sequence: 0, body: input }]);
                for message in attributes {
                    prop_assert!(super::attributes(message.body).count() <= message.body.len() / ATTRIBUTE_HEADER + 1);
                }
            }
        }
    }
}
