//! The parts of a `multipart/byteranges` body (RFC 9110, section 14.6): in the order asked for, never merged, and each head made only
//! when it is its turn. A thousand ranges cost a stalled client's response 16 KiB, and those are counted.

use bytes::Bytes;

use super::range::ByteRange;
use super::response_memory::Room;

/// Separates the parts. A client finds their ends by their `Content-Range`, and by this.
const BOUNDARY: &str = "localregistry-8d1f0c6b5e3a4792";

/// What a body is made of.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Text between slices.
    Text(Bytes),
    /// A slice of the body's content.
    Slice(ByteRange),
}

impl Piece {
    /// Whether there is nothing of it.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Slice(range) => range.is_empty(),
        }
    }
}

/// The parts that are still to be sent.
#[derive(Debug)]
pub(crate) struct Multipart {
    media_type: String,
    /// Size of the whole content.
    size: u64,
    ranges: std::vec::IntoIter<ByteRange>,
    /// The slice whose head was given last.
    slice: Option<ByteRange>,
    begun: bool,
    ended: bool,
    _room: Option<Room>,
}

impl Multipart {
    /// These ranges of content of this type and size; `room` is what the list of them takes in memory.
    pub fn new(media_type: &str, size: u64, ranges: Vec<ByteRange>, room: Option<Room>) -> Self {
        let ranges = ranges.into_iter();
        Self { media_type: media_type.to_owned(), size, ranges, slice: None, begun: false, ended: false, _room: room }
    }

    /// What a response with such a body has as its media type.
    pub fn media_type() -> String {
        format!("multipart/byteranges; boundary={BOUNDARY}")
    }

    /// Length in bytes of what is still to be sent. `None` if 64 bits do not hold it.
    pub fn len(&self) -> Option<u64> {
        let slices = self.slice.iter().chain(self.ranges.as_slice()).map(ByteRange::len);
        let heads = self.ranges.as_slice().iter().enumerate();
        let heads = heads.map(|(at, range)| self.head(range, !self.begun && at == 0).len() as u64);
        let end = if self.ended { 0 } else { self.end().len() as u64 };
        slices.chain(heads).chain([end]).try_fold(0_u64, u64::checked_add)
    }

    /// The next piece of the body.
    pub fn next(&mut self) -> Option<Piece> {
        if let Some(range) = self.slice.take() {
            return Some(Piece::Slice(range));
        }
        if let Some(range) = self.ranges.next() {
            let head = self.head(&range, !self.begun);
            (self.begun, self.slice) = (true, Some(range));
            return Some(Piece::Text(head.into()));
        }
        (!std::mem::replace(&mut self.ended, true)).then(|| Piece::Text(self.end().into()))
    }

    fn head(&self, range: &ByteRange, first: bool) -> String {
        let before = if first { "" } else { "\r\n" };
        let (media_type, content_range) = (&self.media_type, content_range(range, self.size));
        format!("{before}--{BOUNDARY}\r\nContent-Type: {media_type}\r\nContent-Range: {content_range}\r\n\r\n")
    }

    fn end(&self) -> String {
        format!("\r\n--{BOUNDARY}--\r\n")
    }
}

/// The value of `Content-Range`, for a range that is not empty (RFC 9110, section 14.4, has no value for an empty one).
pub(crate) fn content_range(range: &ByteRange, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start(), range.end().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    #[test]
    fn parts_come_in_order_and_their_length_is_known_at_every_step() {
        let content = b"0123456789";
        let mut parts = Multipart::new("text/plain", 10, vec![range(8, 10), range(0, 1), range(3, 4)], None);
        let (mut text, whole) = (Vec::new(), parts.len().unwrap());
        while let Some(piece) = parts.next() {
            match piece {
                Piece::Text(bytes) => text.extend_from_slice(&bytes),
                Piece::Slice(range) => text.extend_from_slice(&content[range.start() as usize..range.end() as usize]),
            }
            assert_eq!(text.len() as u64 + parts.len().unwrap(), whole);
        }
        let part = |before: &str, range: &str, bytes: &str| {
            format!("{before}--{BOUNDARY}\r\nContent-Type: text/plain\r\nContent-Range: bytes {range}/10\r\n\r\n{bytes}")
        };
        let expected = part("", "8-9", "89") + &part("\r\n", "0-0", "0") + &part("\r\n", "3-3", "3");
        assert_eq!(String::from_utf8(text).unwrap(), format!("{expected}\r\n--{BOUNDARY}--\r\n"));
        assert_eq!(parts.len(), Some(0));
    }

    #[test]
    fn a_length_that_64_bits_do_not_hold_is_no_length() {
        let whole = ByteRange::whole(u64::MAX);
        for ranges in [vec![whole], vec![whole, range(0, 1)], vec![range(0, u64::MAX - 100), range(0, 100)]] {
            assert_eq!(Multipart::new("text/plain", u64::MAX, ranges, None).len(), None);
        }
        assert!(Multipart::new("text/plain", u64::MAX, vec![range(0, u64::MAX - 1000)], None).len().is_some());
    }
}
