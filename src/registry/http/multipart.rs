//! The parts of a `multipart/byteranges` body (RFC 9110, section 14.6), in the requested order and never merged.
//!
//! The header of a part is built when the part is sent, so a stalled response with 1,024 ranges holds 16 KiB for the ranges alone, and
//! its [`Permit`] accounts for them.

use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};

use super::range::ByteRange;
use super::response_memory::Permit;

/// A piece of a response body.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Text between two ranges.
    Text(Bytes),
    /// A range of the content.
    Range(ByteRange),
}

impl Piece {
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Range(range) => range.is_empty(),
        }
    }
}

/// The parts not sent yet.
#[derive(Debug)]
pub(crate) struct Multipart {
    /// Random, so that no content can contain it (RFC 2046, section 5.1.1).
    boundary: String,
    media_type: String,
    /// Size of the content in bytes.
    size: u64,
    ranges: std::vec::IntoIter<ByteRange>,
    /// The range whose part header was returned last.
    current: Option<ByteRange>,
    started: bool,
    finished: bool,
    _permit: Option<Permit>,
}

impl Multipart {
    /// `media_type` and `size` are those of the content; `permit` accounts for the memory of `ranges`. `None` if the system
    /// has no random numbers.
    pub fn new(media_type: &str, size: u64, ranges: Vec<ByteRange>, permit: Option<Permit>) -> Option<Self> {
        let mut random = [0; 16];
        SystemRandom::new().fill(&mut random).ok()?;
        let boundary = format!("localregistry-{:032x}", u128::from_be_bytes(random));
        Some(Self::with_boundary(boundary, media_type, size, ranges, permit))
    }

    /// Like [`Multipart::new`], with this boundary.
    pub fn with_boundary(boundary: String, media_type: &str, size: u64, ranges: Vec<ByteRange>, permit: Option<Permit>) -> Self {
        let (media_type, ranges) = (media_type.to_owned(), ranges.into_iter());
        Self { boundary, media_type, size, ranges, current: None, started: false, finished: false, _permit: permit }
    }

    /// The response's `Content-Type`.
    pub fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// Number of bytes not sent yet. `None` if it does not fit into 64 bits.
    pub fn len(&self) -> Option<u64> {
        let ranges = self.current.iter().chain(self.ranges.as_slice()).map(ByteRange::len);
        let headers = self.ranges.as_slice().iter().enumerate();
        let headers = headers.map(|(index, range)| self.part_header(range, !self.started && index == 0).len() as u64);
        let closing = if self.finished { 0 } else { self.closing_delimiter().len() as u64 };
        ranges.chain(headers).chain([closing]).try_fold(0_u64, u64::checked_add)
    }

    /// The next piece of the body.
    pub fn next(&mut self) -> Option<Piece> {
        if let Some(range) = self.current.take() {
            return Some(Piece::Range(range));
        }
        if let Some(range) = self.ranges.next() {
            let header = self.part_header(&range, !self.started);
            (self.started, self.current) = (true, Some(range));
            return Some(Piece::Text(header.into()));
        }
        (!std::mem::replace(&mut self.finished, true)).then(|| Piece::Text(self.closing_delimiter().into()))
    }

    fn part_header(&self, range: &ByteRange, first: bool) -> String {
        let line_end = if first { "" } else { "\r\n" };
        let (boundary, media_type, content_range) = (&self.boundary, &self.media_type, content_range(range, self.size));
        format!("{line_end}--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: {content_range}\r\n\r\n")
    }

    fn closing_delimiter(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }
}

/// The value of `Content-Range`. The range must not be empty: RFC 9110, section 14.4, defines no value for an empty range.
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
    fn parts_keep_their_order_and_len_is_right_after_each_piece() {
        let content = b"0123456789";
        let mut parts = Multipart::new("text/plain", 10, vec![range(8, 10), range(0, 1), range(3, 4)], None).unwrap();
        let boundary = parts.boundary.clone();
        let (mut text, total) = (Vec::new(), parts.len().unwrap());
        while let Some(piece) = parts.next() {
            match piece {
                Piece::Text(bytes) => text.extend_from_slice(&bytes),
                Piece::Range(range) => text.extend_from_slice(&content[range.start() as usize..range.end() as usize]),
            }
            assert_eq!(text.len() as u64 + parts.len().unwrap(), total);
        }
        let part = |line_end: &str, range: &str, bytes: &str| {
            format!("{line_end}--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes {range}/10\r\n\r\n{bytes}")
        };
        let expected = part("", "8-9", "89") + &part("\r\n", "0-0", "0") + &part("\r\n", "3-3", "3");
        assert_eq!(String::from_utf8(text).unwrap(), format!("{expected}\r\n--{boundary}--\r\n"));
        assert_eq!(parts.len(), Some(0));
    }

    #[test]
    fn length_beyond_64_bits_is_unknown() {
        let whole = ByteRange::whole(u64::MAX);
        for ranges in [vec![whole], vec![whole, range(0, 1)], vec![range(0, u64::MAX - 100), range(0, 100)]] {
            assert_eq!(Multipart::new("text/plain", u64::MAX, ranges, None).unwrap().len(), None);
        }
        assert!(Multipart::new("text/plain", u64::MAX, vec![range(0, u64::MAX - 1000)], None).unwrap().len().is_some());
    }
}
