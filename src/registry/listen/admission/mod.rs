//! Admits the requests of an HTTP/2 connection one after another, so that streams that wait cost little memory.
//!
//! A stream costs kilobytes from the moment that h2 reads its HEADERS frame. A connection may have [`STREAMS`] of them, and a thousand
//! connections a hundred thousand. So h2 sees a bounded number of streams: [`OWN_STREAMS`] of each connection, and [`SHARED_STREAMS`] of
//! all. The HEADERS frames of the others are held back here, still compressed, and follow in their order as earlier streams end. Frames
//! that open streams need, such as WINDOW_UPDATE, overtake them: nothing that a client is owed waits for what it has asked for later.
//!
//! No request is refused here. A connection whose frames fill [`HELD_FRAMES`], and what there is for all ([`SHARED_HELD_FRAMES`]), is not
//! read until streams of its own end.
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

use crate::registry::limits::{ANNOUNCED_STREAMS, HELD_FRAMES, OWN_STREAMS, SHARED_HELD_FRAMES, SHARED_STREAMS};
use frames::{ACK, CONTINUATION, DATA, END_STREAM, Frames, GOAWAY, HEAD, HEADERS, Head, PING, PUSH_PROMISE, Piece, RST_STREAM};

/// The client's preface (RFC 9113, section 3.4). Frames follow it.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Largest payload that a peer may send: hyper leaves SETTINGS_MAX_FRAME_SIZE at its initial value (section 6.5.2).
const MAX_FRAME: usize = 16_384;
/// Bytes read from the connection at once.
const READ: usize = 4096;
/// By how many bytes the room for frames that wait grows.
const GROWTH: usize = 1024;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Streams that h2 may know.
    streams: Arc<Semaphore>,
    /// Room for frames that wait, in units of [`GROWTH`].
    room: Arc<Semaphore>,
}

impl Default for Shared {
    fn default() -> Self {
        let room = Arc::new(Semaphore::new(SHARED_HELD_FRAMES / GROWTH));
        Self { streams: Arc::new(Semaphore::new(SHARED_STREAMS)), room }
    }
}

/// A place in the line for one of the slots that all connections share.
type Line = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// The streams of one connection that h2 knows.
struct Slots {
    /// Most streams at once.
    most: usize,
    /// Those that are open, by their numbers.
    open: Vec<u32>,
    /// Those that all connections share, and what this one has of them.
    shared: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
    line: Option<Line>,
}

impl Slots {
    /// Opens a stream if there is a slot for it. Otherwise wakes the task when there may be one.
    fn open(&mut self, stream: u32, context: &mut Context<'_>) -> bool {
        let admitted = self.open.len() < self.most && (self.open.len() < OWN_STREAMS || self.take_shared(context));
        if admitted {
            self.open.push(stream);
        }
        admitted
    }

    fn take_shared(&mut self, context: &mut Context<'_>) -> bool {
        let permit = match &mut self.line {
            Some(line) => line.as_mut().poll(context),
            None => match Arc::clone(&self.shared).try_acquire_owned() {
                Ok(permit) => Poll::Ready(Ok(permit)),
                Err(_) => self.line.insert(Box::pin(Arc::clone(&self.shared).acquire_owned())).as_mut().poll(context),
            },
        };
        let Poll::Ready(Ok(permit)) = permit else { return false };
        self.line = None;
        match &mut self.taken {
            Some(taken) => taken.merge(permit),
            None => self.taken = Some(permit),
        }
        true
    }

    /// Closes a stream. Says whether it was open.
    fn close(&mut self, stream: u32) -> bool {
        let Some(at) = self.open.iter().position(|open| *open == stream) else { return false };
        self.open.swap_remove(at);
        if let Some(taken) = &mut self.taken
            && taken.num_permits() > self.open.len().saturating_sub(OWN_STREAMS)
        {
            drop(taken.split(1));
        }
        true
    }
}

/// What a client has sent and h2 has not read yet.
struct Inbound {
    frames: Frames,
    slots: Slots,
    /// What h2 reads next.
    ready: BytesMut,
    /// Frames that wait for a slot, and those that have to follow them.
    held: VecDeque<u8>,
    /// Room that all connections share, and what this one has of it.
    room: Arc<Semaphore>,
    taken: Vec<OwnedSemaphorePermit>,
    /// Whether the present frame is one of those.
    holding: bool,
    /// Frames among them that have no part of a header block.
    followers: usize,
    /// Whether a trailer section of an open stream is among them.
    trailers: bool,
    /// Whether a request that is cancelled already was just let through: h2 takes it up before it sees the next one, because it counts
    /// those that are cancelled first (see [`crate::registry::limits::RESETS`]).
    cancelled: bool,
    /// The last stream that the client has opened, and the last one of which h2 knows.
    last: u32,
    passed: u32,
    /// Whether the server has sent GOAWAY.
    leaving: bool,
    /// Whether the client broke the protocol so that its frames cannot be told apart. h2 ends the connection.
    broken: bool,
}

impl Inbound {
    /// Sorts bytes that have just arrived: into `out` and then `ready`, or behind those that wait.
    fn sort(&mut self, mut bytes: &[u8], context: &mut Context<'_>, out: &mut ReadBuf<'_>) {
        while let Some(piece) = self.frames.next(&mut bytes) {
            let head;
            let bytes = match piece {
                Piece::Payload(payload) => payload,
                Piece::Head(next) => {
                    self.holding = self.has_to_wait(next, context);
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
        let room = if self.ready.is_empty() { out.remaining().min(bytes.len()) } else { 0 };
        let (now, later) = bytes.split_at(room);
        out.put_slice(now);
        self.ready.extend_from_slice(later);
    }

    /// Whether a frame has to wait behind others or for a slot.
    fn has_to_wait(&mut self, head: Head, context: &mut Context<'_>) -> bool {
        let (stream, behind) = (head.stream(), !self.held.is_empty());
        self.broken |= head.payload() > MAX_FRAME;
        if self.broken {
            return false;
        }
        let waits = match head.kind() {
            HEADERS if stream > self.last => {
                self.last = stream;
                // A client that has more streams than it was allowed is told so by h2.
                let too_many = self.slots.open.len() >= ANNOUNCED_STREAMS as usize;
                if !behind && too_many {
                    self.slots.open.push(stream);
                }
                behind || !too_many && !self.slots.open(stream, context)
            }
            _ => behind && self.has_to_follow(head),
        };
        if waits {
            self.trailers |= head.kind() == HEADERS && stream <= self.passed;
            self.followers += usize::from(!head.is_of_block());
        } else {
            self.note(head);
        }
        waits
    }

    /// Whether a frame has to follow those that wait.
    fn has_to_follow(&self, head: Head) -> bool {
        let stream = head.stream();
        match head.kind() {
            // HPACK needs the order of all header blocks.
            HEADERS | CONTINUATION | PUSH_PROMISE | GOAWAY => true,
            // With it, h2 learns that the client has seen GOAWAY, and would take streams that wait here for later ones.
            PING => self.leaving && head.has(ACK),
            RST_STREAM if stream <= self.passed => self.trailers,
            _ => stream > self.passed && stream <= self.last,
        }
    }

    /// Follows a frame that h2 gets to see. Says whether it cancels a stream.
    fn note(&mut self, head: Head) -> bool {
        match head.kind() {
            HEADERS => self.passed = self.passed.max(head.stream()),
            RST_STREAM => return self.slots.close(head.stream()),
            _ => {}
        }
        false
    }

    /// How many bytes may be read now.
    fn room(&mut self) -> usize {
        if self.held.is_empty() || !self.is_between_frames() {
            return READ;
        }
        let room = |taken: &[_]| (HELD_FRAMES + taken.len() * GROWTH).saturating_sub(self.held.len()).min(READ);
        match room(&self.taken) {
            0 => {
                self.taken.extend(Arc::clone(&self.room).try_acquire_owned());
                room(&self.taken)
            }
            room => room,
        }
    }

    /// Whether no frame has come in part that overtakes those that wait: nothing can be let through in the middle of it.
    fn is_between_frames(&self) -> bool {
        self.holding || self.frames.left == 0
    }

    /// Lets frames through that have waited, as far as there are slots.
    fn release(&mut self, context: &mut Context<'_>) {
        while self.is_between_frames()
            && let Some(head) = Head::at(&self.held, 0)
        {
            let opens = head.kind() == HEADERS && head.stream() > self.passed;
            if !opens || !self.cancelled && self.slots.open(head.stream(), context) {
                self.let_through(0, head);
            } else if !self.overtake() {
                break;
            }
        }
        if self.held.is_empty() {
            (self.held, self.taken, self.trailers, self.slots.line) = (VecDeque::new(), Vec::new(), false, None);
        }
    }

    /// Lets frames of open streams through that wait behind a request. Says whether there was one.
    fn overtake(&mut self) -> bool {
        let (before, mut at) = (self.followers, 0);
        while self.followers > 0
            && let Some(head) = Head::at(&self.held, at)
        {
            if self.has_to_follow(head) {
                at += HEAD + head.payload();
            } else {
                self.let_through(at, head);
            }
        }
        self.followers < before
    }

    /// Lets the frame through that waits at this place, or as much of it as has come.
    fn let_through(&mut self, at: usize, head: Head) {
        self.cancelled |= self.note(head);
        self.followers -= usize::from(!head.is_of_block());
        let end = (at + HEAD + head.payload()).min(self.held.len());
        // The rest of the last frame follows directly.
        self.holding &= end < self.held.len();
        self.ready.extend(self.held.drain(at..end));
    }
}

/// An HTTP/2 connection whose client has a bounded number of streams in h2. The bytes that are read and written are otherwise the same.
pub(crate) struct Admission<S> {
    stream: S,
    inbound: Inbound,
    /// What h2 sends.
    outbound: Frames,
}

impl<S: fmt::Debug> fmt::Debug for Admission<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("stream", &self.stream).field("open", &self.inbound.slots.open).finish_non_exhaustive()
    }
}

impl<S> Admission<S> {
    /// Lets h2 see `most` streams of `stream` at once, those beyond [`OWN_STREAMS`] as far as `shared` goes.
    pub fn new(stream: S, most: u32, shared: &Shared) -> Self {
        let (shared, room) = (Arc::clone(&shared.streams), Arc::clone(&shared.room));
        let slots =
            Slots { most: usize::try_from(most).unwrap_or(usize::MAX), open: Vec::new(), shared, taken: None, line: None };
        let inbound = Inbound {
            frames: Frames::after(PREFACE.len()),
            slots,
            ready: BytesMut::new(),
            held: VecDeque::new(),
            room,
            taken: Vec::new(),
            holding: false,
            followers: 0,
            trailers: false,
            cancelled: false,
            last: 0,
            passed: 0,
            leaving: false,
            broken: false,
        };
        Self { stream, inbound, outbound: Frames::after(0) }
    }

    /// Follows what was written: a stream is over for its client when its last frame is.
    fn sent(&mut self, slices: &[IoSlice<'_>], mut written: usize, context: &Context<'_>) {
        let mut closed = false;
        for slice in slices {
            let (mut bytes, _) = slice.split_at(written.min(slice.len()));
            written -= bytes.len();
            while let Some(piece) = self.outbound.next(&mut bytes) {
                let Piece::Head(head) = piece else { continue };
                match head.kind() {
                    DATA | HEADERS if head.has(END_STREAM) => closed |= self.inbound.slots.close(head.stream()),
                    RST_STREAM => closed |= self.inbound.slots.close(head.stream()),
                    GOAWAY => self.inbound.leaving = true,
                    _ => {}
                }
            }
        }
        if closed && !self.inbound.held.is_empty() {
            // The same task reads.
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
            let room = inbound.room();
            let mut chunk = [MaybeUninit::uninit(); READ];
            let Some(chunk) = chunk.get_mut(..room).filter(|chunk| !chunk.is_empty()) else { return Poll::Pending };
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
