//! The clients of a simulation, each with a habit: steady, slow, cut, reset, half-closing, pipelining, idle, or sending garbage, over
//! HTTP/1.1 and HTTP/2.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::content::{Received, Wanted};
use super::disks::HANG;
use super::network::{Resetter, Socket};
use super::world::World;
use crate::registry::limits::MINIMUM_RATE;

/// A client waits as long for the server to do something. All of the server's own limits are shorter.
const PATIENCE: Duration = Duration::from_secs(3 * HANG.as_secs());

/// How fast a client reads.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// The most bytes at once.
    at_once: usize,
    /// The pause before each read.
    pause: Duration,
}

impl Pace {
    /// Of a client that reads a response in at most some hundred reads, each after a short pause or none.
    fn steady(rng: &mut fastrand::Rng) -> Self {
        let pause = if rng.bool() { 0 } else { rng.u64(0..50) };
        Self { at_once: 1 << rng.u32(11..19), pause: Duration::from_millis(pause) }
    }

    /// Of a client that reads so many times the slowest rate that is served.
    fn of_rate(rng: &mut fastrand::Rng, times: f64) -> Self {
        let pause = Duration::from_millis(rng.u64(1000..10_000));
        Self { at_once: (MINIMUM_RATE as f64 * times * pause.as_secs_f64()) as usize, pause }
    }
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Requests one after the other, at any pace that is fast enough.
    Steady,
    /// Twice or more of the slowest rate that is served.
    Slow,
    /// A fraction of that rate.
    TooSlow,
    /// Leaves within a response.
    Leaving,
    /// Resets the connection within a response.
    Resetting,
    /// Ends its direction after its request.
    HalfClosing,
    /// Sends all requests at once.
    Pipelining,
    /// Sends nothing, or a part of a head, or nothing more after a response.
    Idle,
    /// Sends anything.
    Garbage,
    /// HTTP/2: several streams at once, at any pace that is fast enough.
    Streams,
    /// Drops some of its streams.
    ResettingStreams,
    /// Does not read one of its streams.
    StalledStream,
    /// Resets the connection under its streams.
    ResettingUnderStreams,
    /// Sends the preface and then any frames.
    Frames,
}

impl Habit {
    const ALL: [Self; 14] = [
        Self::Steady,
        Self::Slow,
        Self::TooSlow,
        Self::Leaving,
        Self::Resetting,
        Self::HalfClosing,
        Self::Pipelining,
        Self::Idle,
        Self::Garbage,
        Self::Streams,
        Self::ResettingStreams,
        Self::StalledStream,
        Self::ResettingUnderStreams,
        Self::Frames,
    ];

    pub fn any(rng: &mut fastrand::Rng) -> Self {
        Self::ALL[rng.usize(..Self::ALL.len())]
    }
}

/// A client of the world.
pub struct Client {
    pub world: Arc<World>,
    pub number: usize,
    pub rng: fastrand::Rng,
}

impl Client {
    /// Does what is its habit, on one connection.
    pub async fn run(mut self, habit: Habit) {
        let count = self.rng.usize(1..4);
        let wanted: Vec<Wanted> = (0..count).map(|_| Wanted::any(&mut self.rng)).collect();
        match habit {
            Habit::Steady => {
                let pace = Pace::steady(&mut self.rng);
                self.in_turn(&wanted, pace, true).await;
            }
            Habit::Slow => {
                let times = 2.0 + 20.0 * self.rng.f64();
                let pace = Pace::of_rate(&mut self.rng, times);
                // The connection may be idle for too long before such a client has read the response.
                self.in_turn(&wanted[..1], pace, true).await;
            }
            Habit::TooSlow => {
                let times = 0.5 * self.rng.f64();
                let pace = Pace::of_rate(&mut self.rng, times);
                self.in_turn(&[Wanted::largest()], pace, false).await;
            }
            Habit::HalfClosing => self.half_close(&wanted[0]).await,
            Habit::Pipelining => self.pipeline(&wanted).await,
            Habit::Leaving | Habit::Resetting => self.leave(habit == Habit::Resetting, &wanted[0]).await,
            Habit::Idle => self.idle(&wanted[0]).await,
            Habit::Garbage => self.garbage(&wanted[0]).await,
            Habit::Frames => self.frames().await,
            _ => self.streams(habit, &wanted).await,
        }
    }

    /// Does this request on a connection of its own, as fast as it can.
    pub async fn request(&mut self, over_http2: bool, wanted: &Wanted) {
        let wanted = std::slice::from_ref(wanted);
        if over_http2 {
            self.streams(Habit::Streams, wanted).await;
        } else {
            self.in_turn(wanted, Pace { at_once: 1 << 16, pause: Duration::ZERO }, true).await;
        }
    }

    /// A new connection, which has room for at least `room` bytes on their way.
    fn connect(&mut self, room: usize) -> Http1 {
        let capacity = (1 << self.rng.u32(9..18)).max(room);
        let (socket, peer) = self.world.connect(&mut self.rng, capacity);
        let resetter = socket.resetter();
        let (reader, writer) = split(socket);
        let name = format!("client {} at {peer}", self.number);
        Http1 { world: Arc::clone(&self.world), name, reader, writer: Some(writer), resetter, unread: Vec::new(), requests: 0 }
    }

    /// The requests one after the other, each when the response before has arrived.
    async fn in_turn(&mut self, wanted: &[Wanted], pace: Pace, is_fast_enough: bool) {
        // A client that reads fast enough has a receive window for what it reads at once.
        let mut connection = self.connect(if pace.pause.is_zero() { 0 } else { pace.at_once });
        for wanted in wanted {
            let tag = connection.tag();
            if connection.send(head(wanted, &tag).as_bytes()).await.is_err() {
                connection.closed(&tag, wanted, is_fast_enough);
                return;
            }
            if !connection.receive(&tag, wanted, pace, is_fast_enough).await {
                return;
            }
        }
    }

    async fn half_close(&mut self, wanted: &Wanted) {
        let (mut connection, pace) = (self.connect(0), Pace::steady(&mut self.rng));
        let tag = connection.tag();
        let sent = connection.send(head(wanted, &tag).as_bytes()).await;
        if sent.is_err() || connection.end().await.is_err() {
            return connection.closed(&tag, wanted, true);
        }
        if connection.receive(&tag, wanted, pace, true).await {
            connection.expect_end().await;
        }
    }

    async fn pipeline(&mut self, wanted: &[Wanted]) {
        let (mut connection, pace) = (self.connect(0), Pace::steady(&mut self.rng));
        let tags: Vec<String> = wanted.iter().map(|_| connection.tag()).collect();
        let heads: String = wanted.iter().zip(&tags).map(|(wanted, tag)| head(wanted, tag)).collect();
        let mut writer = connection.writer.take().unwrap();
        // The server may not read while it writes.
        let writing = tokio::spawn(async move {
            let _ = writer.write_all(heads.as_bytes()).await;
            writer
        });
        for (wanted, tag) in wanted.iter().zip(&tags) {
            if !connection.receive(tag, wanted, pace, true).await {
                break;
            }
        }
        drop(connection);
        writing.await.unwrap();
    }

    async fn leave(&mut self, by_reset: bool, wanted: &Wanted) {
        let mut connection = self.connect(0);
        let tag = connection.tag();
        let _ = connection.send(head(wanted, &tag).as_bytes()).await;
        let most = 1 << self.rng.u32(0..18);
        for _ in 0..self.rng.usize(0..4) {
            let pace = Pace { at_once: 1 + self.rng.usize(..most), pause: Duration::from_millis(self.rng.u64(0..50)) };
            if connection.read(pace).await.is_err() {
                break;
            }
        }
        if by_reset {
            connection.resetter.reset();
        }
    }

    async fn idle(&mut self, wanted: &Wanted) {
        let mut connection = self.connect(0);
        let tag = connection.tag();
        let head = head(wanted, &tag);
        match self.rng.u8(0..4) {
            0 => {}
            1 => {
                let _ = connection.send(&head.as_bytes()[..self.rng.usize(1..head.len() - 1)]).await;
            }
            2 => {
                let _ = connection.send(&PREFACE[..self.rng.usize(1..=PREFACE.len())]).await;
            }
            _ => {
                let pace = Pace::steady(&mut self.rng);
                let is_sent = connection.send(head.as_bytes()).await.is_ok();
                if !is_sent || !connection.receive(&tag, wanted, pace, true).await {
                    return;
                }
            }
        }
        connection.expect_end().await;
    }

    /// Bytes, or a head with some of its bytes changed.
    async fn garbage(&mut self, wanted: &Wanted) {
        let mut connection = self.connect(0);
        let mut bytes = match self.rng.u8(0..4) {
            0 => (0..self.rng.usize(1..300)).map(|_| self.rng.u8(..)).collect(),
            1 => [b"\x16\x03\x01".as_slice(), &[7; 30]].concat(),
            2 => format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(self.rng.usize(1..80_000))).into_bytes(),
            _ => format!("{}{}", head(wanted, "garbage"), head(wanted, "garbage")).into_bytes(),
        };
        for _ in 0..self.rng.usize(0..4) {
            let at = self.rng.usize(..bytes.len());
            bytes[at] = *self.rng.choice(b"\r\n :/x\0\xff\x80%").unwrap();
        }
        let sent = timeout(PATIENCE, connection.send(&bytes)).await;
        assert!(sent.is_ok(), "{}: the server neither reads nor closes", connection.name);
        if self.rng.bool() {
            let _ = connection.end().await;
        }
        connection.expect_end().await;
    }

    /// The preface, and then frames of any kind with any content, or bytes.
    async fn frames(&mut self) {
        let mut connection = self.connect(0);
        let mut bytes = [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
        for _ in 0..self.rng.usize(1..12) {
            // A head of GET / (RFC 7541, appendix A), or anything.
            let len = self.rng.usize(0..40);
            let payload: Vec<u8> =
                if self.rng.bool() { vec![0x82, 0x86, 0x84, 0x41, 1, b'x'] } else { (0..len).map(|_| self.rng.u8(..)).collect() };
            bytes.extend([0, 0, payload.len() as u8, self.rng.u8(0..11), self.rng.u8(..) & self.rng.u8(..)]);
            bytes.extend((self.rng.u32(0..12)).to_be_bytes());
            bytes.extend(payload);
        }
        let sent = timeout(PATIENCE, connection.send(&bytes)).await;
        assert!(sent.is_ok(), "{}: the server neither reads nor closes", connection.name);
        connection.expect_end().await;
    }

    /// Requests over HTTP/2, all at once.
    async fn streams(&mut self, habit: Habit, wanted: &[Wanted]) {
        let connection = self.connect(0);
        let (resetter, name, world) = (connection.resetter, connection.name, connection.world);
        let socket = connection.reader.unsplit(connection.writer.unwrap());
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).initial_connection_window_size(8 << 20);
        builder.initial_stream_window_size(1 << self.rng.u32(13..20));
        let Ok(Ok((sender, driver))) = timeout(PATIENCE, builder.handshake(TokioIo::new(socket))).await else { return };
        let driver = tokio::spawn(driver);
        let is_behind_stalled = habit == Habit::StalledStream && world.registry.limits().streams == 1;
        let mut streams = JoinSet::new();
        for (number, wanted) in wanted.iter().cloned().chain((habit == Habit::StalledStream).then(Wanted::largest)).enumerate() {
            let tag = format!("{name} request {number}");
            let mut stream = Stream {
                world: Arc::clone(&world),
                sender: sender.clone(),
                rng: self.rng.fork(),
                wanted,
                tag,
                is_behind_stalled,
            };
            let is_stalled = habit == Habit::StalledStream && number == 0;
            let is_cut = habit == Habit::ResettingUnderStreams || habit == Habit::ResettingStreams && stream.rng.bool();
            streams.spawn(async move { stream.run(is_stalled, is_cut).await });
        }
        drop(sender);
        if habit == Habit::ResettingUnderStreams {
            sleep(Duration::from_millis(self.rng.u64(0..100))).await;
            resetter.reset();
        }
        let ended = async {
            while let Some(stream) = streams.join_next().await {
                stream.unwrap();
            }
        };
        let is_patient = timeout(PATIENCE, ended).await.is_ok();
        assert!(is_patient || world.has_fault(), "{name}: a stream neither goes on nor ends");
        drop(streams);
        driver.abort();
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn head(wanted: &Wanted, tag: &str) -> String {
    let Wanted { method, path, headers, .. } = wanted;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nHost: sim.test\r\nUser-Agent: {tag}\r\n{headers}\r\n")
}

/// A connection with HTTP/1.1, whose responses are read here, not by a library.
struct Http1 {
    world: Arc<World>,
    name: String,
    reader: ReadHalf<Socket>,
    /// `None` while another task writes.
    writer: Option<WriteHalf<Socket>>,
    resetter: Resetter,
    unread: Vec<u8>,
    requests: usize,
}

impl Http1 {
    /// The name of the next request.
    fn tag(&mut self) -> String {
        self.requests += 1;
        format!("{} request {}", self.name, self.requests)
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.as_mut().unwrap().write_all(bytes).await
    }

    async fn end(&mut self) -> io::Result<()> {
        self.writer.as_mut().unwrap().shutdown().await
    }

    /// Reads some bytes. Returns their number, which is 0 at the end.
    async fn read(&mut self, pace: Pace) -> io::Result<usize> {
        self.world.check();
        if !pace.pause.is_zero() {
            sleep(pace.pause).await;
        }
        let mut space = vec![0; pace.at_once.clamp(1, 64 << 10)];
        let read = timeout(PATIENCE, self.reader.read(&mut space)).await;
        let Ok(read) = read else {
            assert!(self.world.has_fault(), "{}: the server neither answers nor closes", self.name);
            return Err(io::ErrorKind::TimedOut.into());
        };
        let count = read?;
        self.unread.extend_from_slice(&space[..count]);
        Ok(count)
    }

    /// Receives and checks a response. Returns whether another one may follow on this connection.
    async fn receive(&mut self, tag: &str, wanted: &Wanted, pace: Pace, is_fast_enough: bool) -> bool {
        let head_len = loop {
            if let Some(at) = self.unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.read(pace).await.is_ok_and(|count| count > 0) {
                self.closed(tag, wanted, is_fast_enough);
                return false;
            }
        };
        let is_before_drain = !self.world.is_draining();
        let head: Vec<u8> = self.unread.drain(..head_len).collect();
        let mut received = parse(&head);
        let announced = if wanted.has_body(received.status) { received.announced().unwrap() } else { 0 };
        let pace = Pace { at_once: pace.at_once.max(if pace.pause.is_zero() { announced / 100 } else { 0 }), ..pace };
        while self.unread.len() < announced && self.read(pace).await.is_ok_and(|count| count > 0) {}
        let len = announced.min(self.unread.len());
        received.is_complete = len == announced;
        received.body = self.unread.drain(..len).collect();
        self.world.received(tag, wanted, &received, is_fast_enough, is_before_drain);
        received.is_complete && received.headers.get("connection").is_none_or(|value| value != "close")
    }

    /// The connection has ended before the head of a response.
    fn closed(&self, tag: &str, wanted: &Wanted, is_fast_enough: bool) {
        self.world.closed(tag, wanted, is_fast_enough);
    }

    /// Reads until the server ends the connection.
    async fn expect_end(&mut self) {
        let pace = Pace { at_once: 64 << 10, pause: Duration::ZERO };
        while self.read(pace).await.is_ok_and(|count| count > 0) {
            self.unread.clear();
        }
    }
}

fn parse(head: &[u8]) -> Received {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    assert!(response.parse(head).unwrap().is_complete());
    let mut map = HeaderMap::new();
    for header in response.headers.iter() {
        map.append(HeaderName::from_bytes(header.name.as_bytes()).unwrap(), HeaderValue::from_bytes(header.value).unwrap());
    }
    assert!(!map.contains_key("transfer-encoding"));
    Received { status: response.code.unwrap(), headers: map, ..Received::default() }
}

/// A stream with HTTP/2.
struct Stream {
    world: Arc<World>,
    sender: http2::SendRequest<Empty<Bytes>>,
    rng: fastrand::Rng,
    wanted: Wanted,
    tag: String,
    /// Whether the connection serves one stream at once, and that is not read.
    is_behind_stalled: bool,
}

impl Stream {
    /// Sends the request and receives the response. A client that stalls stops to read for longer than the server waits; one that is cut
    /// leaves at some time.
    async fn run(&mut self, is_stalled: bool, is_cut: bool) {
        let Self { world, wanted, tag, .. } = &*self;
        let (world, wanted, tag) = (Arc::clone(world), wanted.clone(), tag.clone());
        let is_fair = !is_stalled && !is_cut && !self.is_behind_stalled;
        let mut request = Request::builder().method(wanted.method).uri(format!("http://sim.test{}", wanted.path));
        for (name, value) in &wanted.headers {
            request = request.header(*name, value);
        }
        let request = request.header("user-agent", &tag).body(Empty::new()).unwrap();
        let response = self.sender.send_request(request);
        let response = if is_cut && self.rng.bool() {
            timeout(Duration::from_millis(self.rng.u64(0..20)), response).await
        } else {
            Ok(response.await)
        };
        let Ok(Ok(response)) = response else {
            return world.closed(&tag, &wanted, is_fair);
        };
        let is_before_drain = !world.is_draining();
        let (head, mut body) = response.into_parts();
        let mut received = Received { status: head.status.as_u16(), headers: head.headers, ..Received::default() };
        let pause = Duration::from_millis(if self.rng.bool() { 0 } else { self.rng.u64(0..20) });
        let mut stalls = 0;
        received.is_complete = loop {
            world.check();
            stalls += usize::from(is_stalled);
            if (1..4).contains(&stalls) && self.rng.bool() {
                sleep(Duration::from_secs(200)).await;
            }
            if is_cut && self.rng.u8(..) < 64 {
                break false;
            }
            if !pause.is_zero() {
                sleep(pause).await;
            }
            match body.frame().await {
                None => break true,
                Some(Ok(frame)) => received.body.extend_from_slice(frame.data_ref().unwrap()),
                Some(Err(_)) => break false,
            }
        };
        world.received(&tag, &wanted, &received, is_fair, is_before_drain);
    }
}
