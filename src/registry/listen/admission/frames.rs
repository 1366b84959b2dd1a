//! Finds HTTP/2 frames (RFC 9113, section 4) in a byte stream that arrives in pieces.

use std::collections::VecDeque;

/// Length of a frame's header (section 4.1).
pub(crate) const HEADER_LEN: usize = 9;

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
pub(crate) struct FrameHeader(pub [u8; HEADER_LEN]);

impl FrameHeader {
    /// The frame header at offset `at`. `None` if fewer than [`HEADER_LEN`] bytes follow.
    pub fn parse_at(bytes: &VecDeque<u8>, at: usize) -> Option<Self> {
        let mut header = [0; HEADER_LEN];
        let is_complete = bytes.len() >= at + HEADER_LEN;
        header.iter_mut().zip(bytes.iter().skip(at)).for_each(|(target, byte)| *target = *byte);
        is_complete.then_some(Self(header))
    }

    /// Whether the frame carries part of a header block.
    pub fn is_header_block(self) -> bool {
        matches!(self.frame_type(), HEADERS | CONTINUATION)
    }

    /// Length of the payload, in bytes.
    pub fn payload_len(self) -> usize {
        let [high, middle, low, ..] = self.0;
        usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)
    }

    pub fn frame_type(self) -> u8 {
        self.0[3]
    }

    pub fn has_flag(self, flag: u8) -> bool {
        self.0[4] & flag != 0
    }

    pub fn stream_id(self) -> u32 {
        let [.., first, second, third, fourth] = self.0;
        u32::from_be_bytes([first & 0x7f, second, third, fourth])
    }
}

/// Splits a byte stream into frame headers and payloads.
#[derive(Debug)]
pub(crate) struct FrameParser {
    header: [u8; HEADER_LEN],
    /// Bytes of the next header that have arrived.
    header_filled: usize,
    /// Bytes of the current payload that have not arrived.
    pub payload_left: usize,
}

#[derive(Debug)]
pub(crate) enum FramePiece<'a> {
    Header(FrameHeader),
    Payload(&'a [u8]),
}

impl FrameParser {
    /// Treats the first `payload_left` bytes as payload, so that the first frame is expected after them.
    pub fn skipping(payload_left: usize) -> Self {
        Self { header: [0; HEADER_LEN], header_filled: 0, payload_left }
    }

    /// Takes the next piece from the front of `bytes`. `None` once all are consumed.
    pub fn next_piece<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<FramePiece<'a>> {
        if self.payload_left > 0 && !bytes.is_empty() {
            let (now, later) = bytes.split_at(self.payload_left.min(bytes.len()));
            self.payload_left -= now.len();
            *bytes = later;
            return Some(FramePiece::Payload(now));
        }
        while let (Some(target), Some((byte, later))) = (self.header.get_mut(self.header_filled), bytes.split_first()) {
            *target = *byte;
            self.header_filled += 1;
            *bytes = later;
        }
        if self.header_filled < HEADER_LEN {
            return None;
        }
        let header = FrameHeader(self.header);
        (self.header_filled, self.payload_left) = (0, header.payload_len());
        Some(FramePiece::Header(header))
    }
}
