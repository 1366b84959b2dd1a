//! Finds HTTP/2 frames (RFC 9113, section 4) in a byte stream that arrives in pieces.

use std::collections::VecDeque;

/// Length of a frame's header (section 4.1).
pub(crate) const HEAD: usize = 9;

// Frame types (section 6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;
/// Flag of SETTINGS and PING.
pub(crate) const ACK: u8 = 1;
/// Flag of DATA and HEADERS.
pub(crate) const END_STREAM: u8 = 1;

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader(pub [u8; HEAD]);

impl FrameHeader {
    /// The frame header at offset `at`. `None` if fewer than [`HEAD`] bytes are left.
    pub fn at(bytes: &VecDeque<u8>, at: usize) -> Option<Self> {
        let mut head = [0; HEAD];
        let is_complete = bytes.len() >= at + HEAD;
        head.iter_mut().zip(bytes.iter().skip(at)).for_each(|(target, byte)| *target = *byte);
        is_complete.then_some(Self(head))
    }

    /// Whether the frame carries part of a header block.
    pub fn is_header_block(self) -> bool {
        matches!(self.kind(), HEADERS | CONTINUATION)
    }

    /// Length of the payload, in bytes.
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

/// The state of the parser.
#[derive(Debug)]
pub(crate) struct Frames {
    head: [u8; HEAD],
    /// Bytes of the next header that have arrived.
    known: usize,
    /// Bytes of the current payload that have not arrived.
    pub left: usize,
}

#[derive(Debug)]
pub(crate) enum Piece<'a> {
    Head(FrameHeader),
    Payload(&'a [u8]),
}

impl Frames {
    /// Expects the first frame after `left` bytes.
    pub fn after(left: usize) -> Self {
        Self { head: [0; HEAD], known: 0, left }
    }

    /// Takes the next piece from the front of `bytes`. `None` once all are consumed.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Piece<'a>> {
        if self.left > 0 && !bytes.is_empty() {
            let (now, later) = bytes.split_at(self.left.min(bytes.len()));
            self.left -= now.len();
            *bytes = later;
            return Some(Piece::Payload(now));
        }
        while let (Some(target), Some((byte, later))) = (self.head.get_mut(self.known), bytes.split_first()) {
            *target = *byte;
            self.known += 1;
            *bytes = later;
        }
        if self.known < HEAD {
            return None;
        }
        let head = FrameHeader(self.head);
        (self.known, self.left) = (0, head.payload());
        Some(Piece::Head(head))
    }
}
