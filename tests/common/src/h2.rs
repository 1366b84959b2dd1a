//! HTTP/2 frames written by hand (RFC 9113), over a plain connection with prior knowledge. Header blocks use neither Huffman codes
//! nor the dynamic table. Of the server's header blocks, only the status is decoded.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::http::connect;

/// Kinds of frames (section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags of DATA and HEADERS, of HEADERS and CONTINUATION, of SETTINGS and PING.
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;

/// Error codes (section 7).
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// Settings (section 6.5.2).
pub const INITIAL_WINDOW_SIZE: u16 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM and GOAWAY.
    pub fn error(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status, if this frame is the head of a response.
    pub fn status(&self) -> Option<u16> {
        if self.kind != HEADERS {
            return None;
        }
        // A status is an entry of the static table (RFC 7541, appendix A) or a literal with the name of entry 8, plain or in
        // Huffman code. hyper writes the status first, possibly after an update of the table's size.
        let mut head = self.payload.as_slice();
        loop {
            head = match head {
                [0x3f, rest @ ..] => &rest[1 + rest.iter().take_while(|byte| **byte >= 128).count()..],
                [0x20..0x3f, rest @ ..] => rest,
                _ => break,
            };
        }
        Some(match head[0] {
            0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(head[0] - 0x88)],
            0x48 | 0x08 if head[1] == 3 => std::str::from_utf8(&head[2..5]).unwrap().parse().unwrap(),
            // The digits 0 to 2 have codes of 5 bits (their value), 3 to 9 of 6 bits (from 0x19).
            0x48 | 0x08 if head[1] & 0x80 != 0 => huffman_digits(&head[2..2 + usize::from(head[1] & 0x7f)]),
            other => panic!("no status: {other:x}, {head:x?}"),
        })
    }
}

fn huffman_digits(bytes: &[u8]) -> u16 {
    let bits: Vec<u16> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| u16::from(byte >> at & 1))).collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let take = |count: usize| bits[at..at + count].iter().fold(0, |value, bit| value * 2 + bit);
        let (digit, count) = if take(5) <= 2 { (take(5), 5) } else { (take(6) - 0x19 + 3, 6) };
        number = number * 10 + digit;
        at += count;
    }
    number
}

/// The id of the client's stream with index `at`.
pub fn id(at: u32) -> u32 {
    at * 2 + 1
}

/// Encodes a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + payload.len());
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Encodes the header block of a request.
pub fn block(method: &str, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = vec![0x86];
    for (name, value) in [(":method", method), (":path", path), (":authority", "x")].iter().chain(fields) {
        bytes.extend_from_slice(&field(name, value.as_bytes()));
    }
    bytes
}

/// Encodes a field as a literal without indexing (RFC 7541, section 6.2.2).
pub fn field(name: &str, value: &[u8]) -> Vec<u8> {
    [&[0][..], &string(name.as_bytes()), &string(value)].concat()
}

/// Encodes a string (RFC 7541, section 5.2).
pub fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.len();
    if rest < 127 {
        bytes.push(u8::try_from(rest).unwrap());
    } else {
        bytes.push(127);
        rest -= 127;
        while rest >= 128 {
            bytes.push(u8::try_from(rest % 128).unwrap() | 128);
            rest /= 128;
        }
        bytes.push(u8::try_from(rest).unwrap());
    }
    bytes.extend_from_slice(text);
    bytes
}

/// HEADERS of a GET request that end the stream.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block("GET", path, &[]))
}

/// HEADERS of a request whose body follows.
pub fn post(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block("POST", path, &[]))
}

pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

pub fn window(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

pub fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

/// The client's end of a connection.
pub struct Peer {
    pub stream: TcpStream,
}

impl Peer {
    /// Connects and sends the preface with these settings.
    pub fn connect(address: SocketAddr, settings: &[u8]) -> Self {
        let mut stream = connect(address);
        stream.write_all(&[PREFACE, settings].concat()).unwrap();
        Self { stream }
    }

    /// Connects with the default settings.
    pub fn new(address: SocketAddr) -> Self {
        Self::connect(address, &frame(SETTINGS, 0, 0, &[]))
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads the next frame. Returns `None` if the server has closed the connection.
    pub fn read_frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        if let Err(error) = self.stream.read_exact(&mut head) {
            let closed = [std::io::ErrorKind::UnexpectedEof, std::io::ErrorKind::ConnectionReset];
            assert!(closed.contains(&error.kind()), "a frame or the end is expected: {error}");
            return None;
        }
        let [high, middle, low, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// Reads until a frame satisfies `wanted`. Acknowledges settings and pings on the way.
    pub fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.read_frame().expect("the connection is expected to stay open");
            self.acknowledge(&frame);
            if wanted(&frame) {
                return frame;
            }
            assert_ne!(frame.kind, GOAWAY, "error {}", frame.error());
        }
    }

    pub fn acknowledge(&mut self, received: &Frame) {
        if matches!(received.kind, SETTINGS | PING) && received.flags & ACK == 0 {
            let payload = if received.kind == PING { received.payload.clone() } else { Vec::new() };
            let _ = self.stream.write_all(&frame(received.kind, ACK, 0, &payload));
        }
    }

    /// Waits for the status on `stream`.
    pub fn status(&mut self, stream: u32) -> u16 {
        self.until(|frame| frame.kind == HEADERS && frame.stream == stream).status().unwrap()
    }

    /// Waits for the status and the body on `stream`, and keeps the windows open.
    pub fn response(&mut self, stream: u32) -> (u16, Vec<u8>) {
        let status = self.status(stream);
        let mut body = Vec::new();
        loop {
            let data = self.until(|frame| frame.kind == DATA && frame.stream == stream);
            body.extend_from_slice(&data.payload);
            if data.flags & END_STREAM != 0 {
                return (status, body);
            }
            if let Ok(count @ 1..) = u32::try_from(data.payload.len()) {
                self.send(&[window(0, count), window(stream, count)].concat());
            }
        }
    }

    /// Requests `path` on `stream` and returns the length of the body.
    pub fn served(&mut self, stream: u32, path: &str) -> usize {
        self.send(&get(stream, path));
        let (status, body) = self.response(stream);
        assert_eq!(status, 200);
        body.len()
    }

    /// Sends what `next` returns until it returns nothing or the server closes, while another thread reads. Returns the error
    /// code of the server's GOAWAY, if any, and whether the connection was closed.
    pub fn flood(mut self, mut next: impl FnMut() -> Option<Vec<u8>>) -> End {
        let mut reading = Self { stream: self.stream.try_clone().unwrap() };
        let reader = std::thread::spawn(move || {
            let mut goaway = None;
            while let Some(frame) = reading.read_frame() {
                if frame.kind == GOAWAY {
                    goaway = Some(frame.error());
                }
            }
            goaway
        });
        let mut closed = false;
        while let Some(bytes) = next() {
            if self.stream.write_all(&bytes).is_err() {
                closed = true;
                break;
            }
        }
        // This side has finished. The server also closes the connection after pending work, so that says nothing about the flood.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        End { goaway: reader.join().unwrap(), closed }
    }
}

/// How a flood ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub goaway: Option<u32>,
    pub closed: bool,
}
