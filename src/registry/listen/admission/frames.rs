//! The frames of HTTP/2 (RFC 9113, section 4) in a sequence of bytes that comes in pieces.

use std::collections::VecDeque;

/// Length of a frame's header (section 4.1).
pub(crate) const HEAD: usize = 9;

/// Types of frames (section 6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;
/// Flags: of PING, and of DATA and HEADERS.
pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head(pub [u8; HEAD]);

impl Head {
    /// The header at this place. `None` after the last frame.
    pub fn at(bytes: &VecDeque<u8>, at: usize) -> Option<Self> {
        let mut head = [0; HEAD];
        let there = bytes.len() >= at + HEAD;
        head.iter_mut().zip(bytes.iter().skip(at)).for_each(|(place, byte)| *place = *byte);
        there.then_some(Self(head))
    }

    /// Whether the frame has a part of a header block.
    pub fn is_of_block(self) -> bool {
        matches!(self.kind(), HEADERS | CONTINUATION)
    }

    pub fn payload(self) -> usize {
        let [high, middle, low, ..] = self.0;
        usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)
    }

    pub fn kind(self) -> u8 {
        self.0[3]
    }

    pub fn has(self, flag: u8) -> bool {
        self.0[4] & flag != 0
    }

    pub fn stream(self) -> u32 {
        let [.., first, second, third, fourth] = self.0;
        u32::from_be_bytes([first & 0x7f, second, third, fourth])
    }
}

/// Finds the frames in a sequence of bytes that comes in pieces.
#[derive(Debug)]
pub(crate) struct Frames {
    head: [u8; HEAD],
    /// Bytes of the next header that are there already.
    known: usize,
    /// Bytes of the present payload that are still to come.
    pub left: usize,
}

#[derive(Debug)]
pub(crate) enum Piece<'a> {
    Head(Head),
    Payload(&'a [u8]),
}

impl Frames {
    /// Frames that begin after so many bytes.
    pub fn after(left: usize) -> Self {
        Self { head: [0; HEAD], known: 0, left }
    }

    /// Takes the next piece from the front of `bytes`. `None` once they are all taken.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Piece<'a>> {
        if self.left > 0 && !bytes.is_empty() {
            let (now, later) = bytes.split_at(self.left.min(bytes.len()));
            self.left -= now.len();
            *bytes = later;
            return Some(Piece::Payload(now));
        }
        while let (Some(place), Some((byte, later))) = (self.head.get_mut(self.known), bytes.split_first()) {
            *place = *byte;
            self.known += 1;
            *bytes = later;
        }
        if self.known < HEAD {
            return None;
        }
        let head = Head(self.head);
        (self.known, self.left) = (0, head.payload());
        Some(Piece::Head(head))
    }
}
