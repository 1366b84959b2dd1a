//! The parts of a `multipart/byteranges` body (RFC 9110, section 14.6): in the order asked for, never merged, and each head made only
//! when it is its turn. A thousand ranges cost a stalled client's response 16 KiB, and those are counted.

use std::ops::Range;

use super::body::Part;
use super::documents::Room;

/// Separates the parts. A client finds their ends by their `Content-Range`, and by this.
const BOUNDARY: &str = "localregistry-8d1f0c6b5e3a4792";

/// The parts that are still to be sent.
#[derive(Debug)]
pub(super) struct Multipart {
    media_type: String,
    /// Size of the whole content.
    size: u64,
    ranges: std::vec::IntoIter<Range<u64>>,
    /// The slice whose head was given last.
    slice: Option<Range<u64>>,
    begun: bool,
    ended: bool,
    _room: Option<Room>,
}

impl Multipart {
    /// These ranges of content of this type and size; `room` is what the list of them takes in memory.
    pub fn new(media_type: &str, size: u64, ranges: Vec<Range<u64>>, room: Option<Room>) -> Self {
        let ranges = ranges.into_iter();
        Self { media_type: media_type.to_owned(), size, ranges, slice: None, begun: false, ended: false, _room: room }
    }

    /// What a response with such a body has as its media type.
    pub fn media_type() -> String {
        format!("multipart/byteranges; boundary={BOUNDARY}")
    }

    /// Length in bytes of what is still to be sent.
    pub fn len(&self) -> u64 {
        let slices = self.ranges.as_slice().iter().enumerate();
        let parts = slices.map(|(at, range)| self.head(range, !self.begun && at == 0).len() as u64 + (range.end - range.start));
        let slice = self.slice.as_ref().map_or(0, |slice| slice.end - slice.start);
        let end = if self.ended { 0 } else { self.end().len() as u64 };
        slice + parts.sum::<u64>() + end
    }

    /// The next part; slices are given as `slice` has them.
    pub fn next(&mut self, slice: impl FnOnce(Range<u64>) -> Part) -> Option<Part> {
        if let Some(range) = self.slice.take() {
            return Some(slice(range));
        }
        if let Some(range) = self.ranges.next() {
            let head = self.head(&range, !self.begun);
            (self.begun, self.slice) = (true, Some(range));
            return Some(Part::Bytes(head.into()));
        }
        (!std::mem::replace(&mut self.ended, true)).then(|| Part::Bytes(self.end().into()))
    }

    fn head(&self, range: &Range<u64>, first: bool) -> String {
        let before = if first { "" } else { "\r\n" };
        let (media_type, content_range) = (&self.media_type, content_range(range, self.size));
        format!("{before}--{BOUNDARY}\r\nContent-Type: {media_type}\r\nContent-Range: {content_range}\r\n\r\n")
    }

    fn end(&self) -> String {
        format!("\r\n--{BOUNDARY}--\r\n")
    }
}

/// The value of `Content-Range`.
pub(super) fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn parts_come_in_order_and_their_length_is_known_at_every_step() {
        let content = Bytes::from_static(b"0123456789");
        let slice = |range: Range<u64>| Part::Bytes(content.slice(range.start as usize..range.end as usize));
        let mut parts = Multipart::new("text/plain", 10, vec![8..10, 0..1, 3..4], None);
        let (mut text, whole) = (Vec::new(), parts.len());
        while let Some(Part::Bytes(bytes)) = parts.next(slice) {
            text.extend_from_slice(&bytes);
            assert_eq!(text.len() as u64 + parts.len(), whole);
        }
        let part = |before: &str, range: &str, bytes: &str| {
            format!("{before}--{BOUNDARY}\r\nContent-Type: text/plain\r\nContent-Range: bytes {range}/10\r\n\r\n{bytes}")
        };
        let expected = part("", "8-9", "89") + &part("\r\n", "0-0", "0") + &part("\r\n", "3-3", "3");
        assert_eq!(String::from_utf8(text).unwrap(), format!("{expected}\r\n--{BOUNDARY}--\r\n"));
        assert_eq!(parts.len(), 0);
    }
}
