//! Bounds the number of HTTP/2 streams that h2 knows, so that waiting requests cost little memory.
//!
//! A stream costs kilobytes from the moment that h2 reads its HEADERS frame. A connection may have [`STREAMS`] of them, and a thousand
//! connections a hundred thousand. So h2 sees a bounded number of streams: [`OWN_STREAMS`] per connection, and [`SHARED_STREAMS`] more for
//! all connections together. The HEADERS frames of further streams are held back here, still compressed, and pass in order as earlier
//! streams end. Frames that open streams need, such as WINDOW_UPDATE, overtake them, so no response waits for a later request.
//!
//! No request is refused here. A connection with [`HELD_REQUESTS`], or whose held frames fill [`HELD_FRAMES`] and the shared
//! [`SHARED_HELD_FRAMES`], is not read until some of its streams end.
//!
//! [`STREAMS`]: crate::registry::limits::STREAMS

mod frames;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::registry::limits::{ANNOUNCED_STREAMS, HELD_FRAMES, HELD_REQUESTS, OWN_STREAMS, SHARED_HELD_FRAMES, SHARED_STREAMS};
use frames::{
    ACK, CONTINUATION, DATA, END_STREAM, FrameHeader, FrameParser, FramePiece, GOAWAY, HEADER_LEN, HEADERS, PING, PUSH_PROMISE,
    RST_STREAM, SETTINGS,
};

/// The client's preface (RFC 9113, section 3.4). Frames follow it.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Largest payload that a peer may send: hyper leaves SETTINGS_MAX_FRAME_SIZE at its initial value (section 6.5.2).
const MAX_FRAME: usize = 16_384;
/// Bytes read from the connection at once.
const READ: usize = 4096;
/// Step in which the buffer for held frames grows, in bytes.
const GROWTH: usize = 1024;

/// The streams and the memory that all connections share.
#[derive(Debug)]
pub(crate) struct StreamPool {
    /// Streams that h2 may know.
    streams: Arc<Semaphore>,
    /// Memory for held frames, in units of [`GROWTH`].
    memory: Arc<Semaphore>,
}

impl Default for StreamPool {
    fn default() -> Self {
        let memory = Arc::new(Semaphore::new(SHARED_HELD_FRAMES / GROWTH));
        Self { streams: Arc::new(Semaphore::new(SHARED_STREAMS)), memory }
    }
}

/// A pending acquisition of a shared stream.
type Acquire = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// The streams of one connection that h2 knows.
struct Slots {
    /// Most streams at once.
    limit: usize,
    /// The identifiers of the open streams.
    open: Vec<u32>,
    /// The streams that all connections share, and those of them that this connection has.
    shared: Arc<Semaphore>,
    acquired: Option<OwnedSemaphorePermit>,
    acquiring: Option<Acquire>,
}

impl Slots {
    /// Opens a stream if a slot is free for it. Otherwise wakes the task when one becomes free.
    fn open(&mut self, stream: u32, context: &mut Context<'_>) -> bool {
        let admitted = self.open.len() < self.limit && (self.open.len() < OWN_STREAMS || self.acquire_shared(context));
        if admitted {
            self.open.push(stream);
        }
        admitted
    }

    fn acquire_shared(&mut self, context: &mut Context<'_>) -> bool {
        let permit = match &mut self.acquiring {
            Some(acquiring) => acquiring.as_mut().poll(context),
            None => match Arc::clone(&self.shared).try_acquire_owned() {
                Ok(permit) => Poll::Ready(Ok(permit)),
                Err(_) => self.acquiring.insert(Box::pin(Arc::clone(&self.shared).acquire_owned())).as_mut().poll(context),
            },
        };
        let Poll::Ready(Ok(permit)) = permit else { return false };
        self.acquiring = None;
        match &mut self.acquired {
            Some(acquired) => acquired.merge(permit),
            None => self.acquired = Some(permit),
        }
        true
    }

    /// Closes a stream. Returns whether it was open.
    fn close(&mut self, stream: u32) -> bool {
        let Some(at) = self.open.iter().position(|open| *open == stream) else { return false };
        self.open.swap_remove(at);
        if let Some(acquired) = &mut self.acquired
            && acquired.num_permits() > self.open.len().saturating_sub(OWN_STREAMS)
        {
            drop(acquired.split(1));
        }
        true
    }
}

/// The bytes that a client has sent and h2 has not read yet.
struct Inbound {
    frames: FrameParser,
    slots: Slots,
    /// The bytes that h2 reads next.
    ready: BytesMut,
    /// Frames that wait for a slot, and the frames that must not overtake them.
    held: VecDeque<u8>,
    /// The memory for held frames that all connections share, and what this connection has of it.
    shared_memory: Arc<Semaphore>,
    acquired_memory: Vec<OwnedSemaphorePermit>,
    /// Whether the current frame is being held.
    holding: bool,
    /// Held requests.
    requests: usize,
    /// Held frames that carry no header block.
    followers: usize,
    /// Whether a stream was opened since the held frames were last searched for some that may overtake.
    may_overtake: bool,
    /// Whether the trailer section of an open stream is held.
    trailers: bool,
    /// Whether a request that its client has already cancelled was just passed on. h2 must process it before it sees the next one: it
    /// counts requests that are cancelled before it has processed them (see [`crate::registry::limits::RESETS`]).
    cancelled: bool,
    /// The last stream that the client has opened.
    last: u32,
    /// The last stream that h2 knows.
    passed: u32,
    /// Most streams that the client may have open. It knows once it has acknowledged the server's SETTINGS.
    announced: usize,
    acknowledged: bool,
    /// Whether the server has sent GOAWAY.
    leaving: bool,
    /// Whether the client broke the protocol so badly that frames can no longer be found. h2 ends the connection.
    broken: bool,
}

impl Inbound {
    /// Sorts bytes that have just arrived: into `out` and then `ready`, or into `held`.
    fn sort(&mut self, mut bytes: &[u8], context: &mut Context<'_>, out: &mut ReadBuf<'_>) {
        while let Some(piece) = self.frames.next_piece(&mut bytes) {
            let head;
            let bytes = match piece {
                FramePiece::Payload(payload) => payload,
                FramePiece::Header(next) => {
                    self.holding = self.must_wait(next, context);
                    head = next;
                    &head.0
                }
            };
            if self.holding {
                if self.held.capacity() - self.held.len() < bytes.len() {
                    self.held.reserve_exact(bytes.len().max(GROWTH));
                }
                self.held.extend(bytes);
            } else {
                self.pass(bytes, out);
            }
        }
    }

    fn pass(&mut self, bytes: &[u8], out: &mut ReadBuf<'_>) {
        let count = if self.ready.is_empty() { out.remaining().min(bytes.len()) } else { 0 };
        let (now, later) = bytes.split_at(count);
        out.put_slice(now);
        self.ready.extend_from_slice(later);
    }

    /// Whether a frame must wait for a slot or behind other frames.
    fn must_wait(&mut self, head: FrameHeader, context: &mut Context<'_>) -> bool {
        let (stream, behind) = (head.stream_id(), !self.held.is_empty());
        self.broken |= head.payload_len() > MAX_FRAME;
        if self.broken {
            return false;
        }
        let opens = head.frame_type() == HEADERS && stream > self.last;
        let waits = match head.frame_type() {
            HEADERS if opens => {
                self.last = stream;
                // If a client opens more streams than it may, h2 refuses them, and too many refusals end the connection. Before the client
                // has seen the server's SETTINGS, it may open any number (RFC 9113, section 5.1.2), and further streams wait.
                let too_many = self.acknowledged && self.slots.open.len() >= self.announced;
                if !behind && too_many {
                    self.slots.open.push(stream);
                }
                behind || !too_many && !self.slots.open(stream, context)
            }
            _ => behind && self.must_follow(head),
        };
        if waits {
            self.requests += usize::from(opens);
            self.trailers |= head.frame_type() == HEADERS && stream <= self.passed;
            self.followers += usize::from(!head.is_header_block());
        } else {
            self.note(head);
        }
        waits
    }

    /// Whether a frame must not overtake the held ones.
    fn must_follow(&self, head: FrameHeader) -> bool {
        let stream = head.stream_id();
        match head.frame_type() {
            // HPACK needs all header blocks in order.
            HEADERS | CONTINUATION | PUSH_PROMISE | GOAWAY => true,
            // It acknowledges GOAWAY. If h2 saw it early, it would refuse the held streams as opened after GOAWAY.
            PING => self.leaving && head.has_flag(ACK),
            RST_STREAM if stream <= self.passed => self.trailers,
            _ => stream > self.passed && stream <= self.last,
        }
    }

    /// Tracks a frame that is passed on to h2. Returns whether it cancels an open stream.
    fn note(&mut self, head: FrameHeader) -> bool {
        match head.frame_type() {
            HEADERS if head.stream_id() > self.passed => (self.passed, self.may_overtake) = (head.stream_id(), true),
            RST_STREAM => return self.slots.close(head.stream_id()),
            SETTINGS => self.acknowledged |= head.has_flag(ACK),
            _ => {}
        }
        false
    }

    /// How many bytes may be read from the connection now.
    fn read_limit(&mut self) -> usize {
        if self.held.is_empty() || !self.is_between_frames() {
            return READ;
        }
        if self.requests >= HELD_REQUESTS {
            return 0;
        }
        let free = |acquired: &[_]| (HELD_FRAMES + acquired.len() * GROWTH).saturating_sub(self.held.len()).min(READ);
        match free(&self.acquired_memory) {
            0 => {
                self.acquired_memory.extend(Arc::clone(&self.shared_memory).try_acquire_owned());
                free(&self.acquired_memory)
            }
            free => free,
        }
    }

    /// Whether h2 is between two frames. In the middle of a frame that overtakes the held ones, none of them can pass.
    fn is_between_frames(&self) -> bool {
        self.holding || self.frames.payload_left == 0
    }

    /// Passes on held frames, as far as slots are free.
    fn release(&mut self, context: &mut Context<'_>) {
        while self.is_between_frames()
            && let Some(head) = FrameHeader::parse_at(&self.held, 0)
        {
            let opens = head.frame_type() == HEADERS && head.stream_id() > self.passed;
            if !opens || !self.cancelled && self.slots.open(head.stream_id(), context) {
                self.requests -= usize::from(opens);
                self.pass_held(0, head);
            } else if !self.overtake() {
                break;
            }
        }
        if self.held.is_empty() {
            (self.held, self.acquired_memory, self.trailers, self.slots.acquiring) = (VecDeque::new(), Vec::new(), false, None);
        }
    }

    /// Passes on the frames of open streams that wait behind a request. Returns whether there were any.
    fn overtake(&mut self) -> bool {
        if !std::mem::take(&mut self.may_overtake) {
            return false;
        }
        let (before, mut at) = (self.followers, 0);
        while self.followers > 0
            && let Some(head) = FrameHeader::parse_at(&self.held, at)
        {
            if self.must_follow(head) {
                at += HEADER_LEN + head.payload_len();
            } else {
                self.pass_held(at, head);
            }
        }
        self.followers < before
    }

    /// Passes on the held frame at offset `at`, or as much of it as has arrived.
    fn pass_held(&mut self, at: usize, head: FrameHeader) {
        self.cancelled |= self.note(head);
        self.followers -= usize::from(!head.is_header_block());
        let end = (at + HEADER_LEN + head.payload_len()).min(self.held.len());
        // If the last frame is incomplete, its remaining bytes pass directly.
        self.holding &= end < self.held.len();
        self.ready.extend(self.held.drain(at..end));
    }
}

/// An HTTP/2 connection with a bounded number of streams. Bytes are delayed and reordered by whole frames, and never changed.
pub(crate) struct Admission<S> {
    stream: S,
    inbound: Inbound,
    /// The frames that h2 sends.
    outbound: FrameParser,
}

impl<S: fmt::Debug> fmt::Debug for Admission<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("stream", &self.stream).field("open", &self.inbound.slots.open).finish_non_exhaustive()
    }
}

impl<S> Admission<S> {
    /// Lets h2 see up to `limit` streams of `stream` at once. Those beyond [`OWN_STREAMS`] come from `pool`.
    pub fn new(stream: S, limit: u32, pool: &StreamPool) -> Self {
        let slots = Slots {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            open: Vec::new(),
            shared: Arc::clone(&pool.streams),
            acquired: None,
            acquiring: None,
        };
        let inbound = Inbound {
            frames: FrameParser::skipping(PREFACE.len()),
            slots,
            ready: BytesMut::new(),
            held: VecDeque::new(),
            shared_memory: Arc::clone(&pool.memory),
            acquired_memory: Vec::new(),
            holding: false,
            requests: 0,
            followers: 0,
            may_overtake: false,
            trailers: false,
            cancelled: false,
            last: 0,
            passed: 0,
            announced: limit.max(ANNOUNCED_STREAMS) as usize,
            acknowledged: false,
            leaving: false,
            broken: false,
        };
        Self { stream, inbound, outbound: FrameParser::skipping(0) }
    }

    /// Tracks the frames that were written: the slot of a stream is free once its last frame is written.
    fn sent(&mut self, slices: &[IoSlice<'_>], mut written: usize, context: &Context<'_>) {
        let mut closed = false;
        for slice in slices {
            let (mut bytes, _) = slice.split_at(written.min(slice.len()));
            written -= bytes.len();
            while let Some(piece) = self.outbound.next_piece(&mut bytes) {
                let FramePiece::Header(head) = piece else { continue };
                match head.frame_type() {
                    DATA | HEADERS if head.has_flag(END_STREAM) => closed |= self.inbound.slots.close(head.stream_id()),
                    RST_STREAM => closed |= self.inbound.slots.close(head.stream_id()),
                    GOAWAY => self.inbound.leaving = true,
                    _ => {}
                }
            }
        }
        if closed && !self.inbound.held.is_empty() {
            // The task that writes also reads, and held frames may pass now.
            context.waker().wake_by_ref();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Admission<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, inbound, .. } = &mut *self;
        let before = out.filled().len();
        loop {
            if inbound.ready.is_empty() && !inbound.held.is_empty() {
                inbound.release(context);
            }
            if !inbound.ready.is_empty() {
                let count = inbound.ready.len().min(out.remaining());
                out.put_slice(&inbound.ready.split_to(count));
                if inbound.ready.is_empty() {
                    inbound.ready = BytesMut::new();
                }
            }
            if out.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if std::mem::take(&mut inbound.cancelled) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let limit = inbound.read_limit();
            let mut chunk = [MaybeUninit::uninit(); READ];
            let Some(chunk) = chunk.get_mut(..limit).filter(|chunk| !chunk.is_empty()) else { return Poll::Pending };
            let mut chunk = ReadBuf::uninit(chunk);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            inbound.sort(chunk.filled(), context, out);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Admission<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.sent(&[IoSlice::new(bytes)], written, context);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        self.sent(slices, written, context);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
