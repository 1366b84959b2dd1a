//! Netlink messages about interfaces, addresses and routes (rtnetlink(7)), as bytes. What enters is a request, or what the kernel
//! sent; what leaves is the other. It never panics, and never reads past what it was given: what cannot be read is not there.
//!
//! Of `rtnetlink` and the crates below it, which know all of the protocol, this program would use one part in a hundred, and they
//! take a tenth of it.

/// Kinds of messages (uapi/linux/rtnetlink.h, uapi/linux/netlink.h).
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

/// What is to be done with a request (uapi/linux/netlink.h).
pub(crate) mod flag {
    pub const REQUEST: u16 = 1;
    pub const ACKNOWLEDGE: u16 = 4;
    pub const REPLACE: u16 = 0x100;
    pub const EXCLUSIVE: u16 = 0x200;
    pub const DUMP: u16 = 0x300;
    pub const CREATE: u16 = 0x400;
}

/// Bytes of a message's head: length, kind, flags, sequence, port.
const HEAD: usize = 16;
/// Bytes of an attribute's head: length, kind.
const ATTRIBUTE_HEAD: usize = 4;
/// Bits of an attribute's kind that are no number (uapi/linux/netlink.h, `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`).
const ATTRIBUTE_FLAGS: u16 = 0xc000;

/// A message to the kernel, while it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request(Vec<u8>);

impl Request {
    /// A request of `kind` whose fixed part is `body`.
    #[must_use]
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | flag::REQUEST).to_ne_bytes());
        bytes.resize(HEAD, 0);
        bytes.extend(body);
        Self(bytes)
    }

    /// The same with an attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(attribute(kind, value));
        self
    }

    /// The message's bytes, as the one with this number.
    #[must_use]
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let head = length.to_ne_bytes().into_iter().zip(self.0.iter_mut());
        head.for_each(|(byte, place)| *place = byte);
        let number = sequence.to_ne_bytes().into_iter().zip(self.0.iter_mut().skip(8));
        number.for_each(|(byte, place)| *place = byte);
        self.0
    }
}

/// An attribute's bytes, filled up to a multiple of four.
#[must_use]
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE_HEAD.saturating_add(value.len())).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(aligned(bytes.len()), 0);
    bytes
}

/// A message from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is.
    pub kind: u16,
    /// Number of the request that it answers.
    pub sequence: u32,
    /// What follows the head.
    pub body: &'a [u8],
}

/// The messages in `bytes`, up to the first that is cut.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let message = bytes.get(..length)?;
        let body = message.get(HEAD..)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
        let sequence = u32::from_ne_bytes(*message.get(8..)?.first_chunk()?);
        Some(Message { kind, sequence, body })
    })
}

/// The attributes in `bytes`, kind and value, up to the first that is cut.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let attribute = bytes.get(..length)?;
        let value = attribute.get(ATTRIBUTE_HEAD..)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        let kind = u16::from_ne_bytes(*attribute.get(2..)?.first_chunk()?);
        Some((kind & !ATTRIBUTE_FLAGS, value))
    })
}

/// The value of the first attribute of `kind`.
#[must_use]
pub fn find(attributes_in: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(attributes_in).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Next multiple of four.
const fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_read_back() {
        let nested = [attribute(1, b"vlan\0"), attribute(2, &attribute(1, &7_u16.to_ne_bytes()))].concat();
        let request = Request::new(kind::NEW_LINK, flag::CREATE, &[9; 16]).with(3, b"eth0.7\0").with(18, &nested);
        let bytes = [request.finish(5), Request::new(kind::GET_LINK, flag::DUMP, &[]).finish(6)].concat();
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
    fn flags_are_no_part_of_an_attribute_s_kind() {
        let nested = attribute(18 | 0x8000, &[1]);
        assert_eq!(attributes(&nested).collect::<Vec<_>>(), [(18, &[1][..])]);
    }

    #[test]
    fn what_is_cut_or_too_short_for_its_head_ends_it() {
        let whole = Request::new(kind::DONE, 0, &[1, 2, 3, 4]).finish(1);
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0, "{length}");
        }
        let short = [&15_u32.to_ne_bytes()[..], &whole].concat();
        assert_eq!(messages(&short).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0, "a length of 0 is no endless list");
        assert_eq!(attributes(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_go_on_for_ever(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0_u16..80) {
            let shaped = [&u32::from(cut).to_ne_bytes()[..], &bytes].concat();
            for given in [&bytes, &shaped] {
                prop_assert!(messages(given).count() <= given.len() / HEAD + 1);
                let attributes = messages(given).chain([Message { kind: 0, sequence: 0, body: given }]);
                for message in attributes {
                    prop_assert!(super::attributes(message.body).count() <= message.body.len() / ATTRIBUTE_HEAD + 1);
                }
            }
        }
    }
}
