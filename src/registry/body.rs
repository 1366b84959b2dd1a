//! Bodies of responses: bytes in memory, or slices of a file read as the client takes them. Nothing is read ahead of the client by
//! more than one chunk, whole blobs are never in memory, and a file that turns out short ends the connection: never a short body
//! passed off as a whole one.

use std::fmt;
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::faults::wrong_digest;
use super::flight::{Budget, Chunk, Flight, Tails};
use super::limits::{Limits, MINIMUM_RATE, SMALL_CHUNK, STALL, TURN};
use super::log::Entry;
use super::multipart::Multipart;
use super::store::Disk;
use super::streams::Open;
use crate::oci::{Digest, Hasher};

/// One stretch of a body.
#[derive(Debug)]
pub(super) enum Part {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A slice of the body's file.
    File(Range<u64>),
}

/// What slices of a body are of.
#[derive(Debug, Clone)]
pub(super) enum Content {
    File(Opened),
    Memory(Bytes),
}

/// A blob's open file, and the disk that it is on.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    pub file: Arc<File>,
    pub disk: Arc<Disk>,
}

/// A read that waits for the disk.
struct Reading {
    since: Instant,
    chunk: Pin<Box<dyn Future<Output = io::Result<Chunk>> + Send>>,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").field("since", &self.since).finish_non_exhaustive()
    }
}

/// Holds what is sent against the digest that it should have.
struct Check {
    expected: Digest,
    hasher: Hasher,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl Content {
    fn slice(&self, range: Range<u64>) -> Part {
        let Self::Memory(bytes) = self else { return Part::File(range) };
        let place = |at: u64| usize::try_from(at).map_or(bytes.len(), |at| at.min(bytes.len()));
        Part::Bytes(bytes.slice(place(range.start)..place(range.end)))
    }
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(range) => range.end - range.start,
        }
    }
}

/// The body of a response. When it is dropped, its request is over and is logged.
#[derive(Debug)]
pub struct Body {
    /// The part that is being sent, and those after it.
    part: Option<Part>,
    more: Option<Box<Multipart>>,
    content: Content,
    reading: Option<Reading>,
    /// What was read before it was asked for.
    first: Option<Bytes>,
    check: Option<Box<Check>>,
    /// Whose bytes in flight it adds to; none where it counts for itself.
    budget: Option<Arc<Budget>>,
    /// What is in flight, once something is that has to be watched.
    flight: Option<Arc<Flight>>,
    /// Who watches over chunks that are still in flight when the body has ended.
    tails: Option<Arc<Tails>>,
    /// What tells the connection that this response is under way.
    open: Option<Open>,
    left: u64,
    sent: u64,
    /// Bytes given in this turn.
    turn: u64,
    /// How slow the client may be; and, once something has been sent and more is to come, when the present window began, and what
    /// had been sent by then.
    stall: Duration,
    minimum_rate: u64,
    window: Option<(Instant, u64)>,
    entry: Option<Box<Entry>>,
}

impl Body {
    /// A body of these bytes.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::new(bytes.len() as u64, Some(Part::Bytes(bytes)), None, Content::Memory(Bytes::new()))
    }

    /// A slice of the content.
    pub(super) fn slice(content: Content, range: Range<u64>) -> Self {
        let part = content.slice(range);
        Self::new(part.len(), Some(part), None, content)
    }

    /// Many slices of the content.
    pub(super) fn multipart(content: Content, parts: Multipart) -> Self {
        Self::new(parts.len(), None, Some(Box::new(parts)), content)
    }

    fn new(left: u64, part: Option<Part>, more: Option<Box<Multipart>>, content: Content) -> Self {
        Self {
            part,
            more,
            content,
            reading: None,
            first: None,
            check: None,
            budget: None,
            flight: None,
            tails: None,
            open: None,
            left,
            sent: 0,
            turn: 0,
            stall: STALL,
            minimum_rate: MINIMUM_RATE,
            window: None,
            entry: None,
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.left
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// The same head with no content, as HEAD and 304 have it.
    #[must_use]
    pub fn without_content(mut self) -> Self {
        (self.part, self.more, self.left) = (None, None, 0);
        self
    }

    /// Holds the bytes, which are all of a blob, against its digest: where they have another, the last chunk is never given.
    pub(super) fn verify(&mut self, expected: Digest) {
        self.check = Some(Box::new(Check { expected, hasher: Hasher::new(expected.algorithm()) }));
    }

    /// Reads the first chunk where the disk has to be asked for it: what cannot be read at all is then answered as that.
    ///
    /// # Errors
    /// As of reading.
    pub(super) async fn begin(&mut self, limits: &Limits, budget: &Arc<Budget>) -> io::Result<()> {
        (self.stall, self.budget) = (limits.stall, Some(Arc::clone(budget)));
        let (Some(Part::File(range)), Content::File(opened)) = (&self.part, &self.content) else { return Ok(()) };
        if range.is_empty() || self.check.is_none() && is_cached(&opened.file, range.start) {
            return Ok(());
        }
        self.first = poll_fn(|context| self.poll_chunk(context)).await.transpose()?;
        Ok(())
    }

    /// Attaches what is logged when the body is dropped, how slow its client may be, and whose bytes in flight it adds to.
    #[must_use]
    pub fn logged(mut self, entry: Entry, limits: &Limits, budget: &Arc<Budget>) -> Self {
        self.entry = Some(Box::new(entry));
        (self.stall, self.minimum_rate) = (limits.stall, limits.minimum_rate);
        self.budget = Some(Arc::clone(budget));
        self
    }

    /// Leaves chunks that are still in flight at its end to `tails`.
    #[must_use]
    pub(super) fn watched_by(mut self, tails: Arc<Tails>) -> Self {
        self.tails = Some(tails);
        self
    }

    /// Keeps the connection from being idle until its end.
    #[must_use]
    pub(super) fn keeping(mut self, open: Open) -> Self {
        self.open = Some(open);
        self
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            if let Some(reading) = &mut self.reading {
                let read = ready!(reading.chunk.as_mut().poll(context));
                // The client is not to blame for the time.
                let waited = reading.since.elapsed();
                self.window.iter_mut().for_each(|(since, _)| *since += waited);
                self.reading = None;
                return Poll::Ready(Some(self.took(read)));
            }
            match &self.part {
                None => match self.more.as_mut().and_then(|more| more.next(|range| self.content.slice(range))) {
                    None => return Poll::Ready(None),
                    part => self.part = part,
                },
                Some(part) if part.len() == 0 => self.part = None,
                Some(Part::Bytes(bytes)) => {
                    let bytes = bytes.clone();
                    self.part = None;
                    let watched = self.tails.is_some() && bytes.len() > SMALL_CHUNK;
                    return Poll::Ready(Some(Ok(if watched { self.flight().hold(bytes) } else { bytes })));
                }
                Some(Part::File(range)) => {
                    let (start, end) = (range.start, range.end);
                    let Content::File(Opened { file, disk }) = self.content.clone() else {
                        return Poll::Ready(Some(Err(io::ErrorKind::NotFound.into())));
                    };
                    let chunk = ready!(self.flight().poll_chunk(end - start, context));
                    match read_cached(&file, start, chunk) {
                        Ok(Cached::Read(chunk)) => return Poll::Ready(Some(self.took(Ok(chunk)))),
                        Ok(Cached::NotThere(chunk)) => {
                            let patience = self.stall;
                            let read = async move { disk.ask(patience, move || read_blocking(&file, start, chunk)).await };
                            self.reading = Some(Reading { since: Instant::now(), chunk: Box::pin(read) });
                        }
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    }
                }
            }
        }
    }

    fn flight(&mut self) -> &Arc<Flight> {
        let budget = &self.budget;
        self.flight.get_or_insert_with(|| Arc::new(Flight::new(budget.clone().unwrap_or_default())))
    }

    /// Accounts for bytes read from the slice in front.
    fn took(&mut self, read: io::Result<Chunk>) -> io::Result<Bytes> {
        let bytes = Bytes::from_owner(read?);
        let Some(Part::File(range)) = &mut self.part else { return Ok(bytes) };
        range.start += bytes.len() as u64;
        self.check.iter_mut().for_each(|check| check.hasher.update(&bytes));
        match self.check.take_if(|_| range.is_empty()).map(|check| (check.expected, check.hasher.finish())) {
            Some((expected, found)) if found != expected => Err(wrong_digest(&found)),
            _ => Ok(bytes),
        }
    }

    /// Refuses a client that takes less than the minimum rate over the time of a stall.
    fn check_rate(&mut self) -> io::Result<()> {
        let Some((since, sent)) = self.window else { return Ok(()) };
        let elapsed = since.elapsed();
        if elapsed < self.stall {
            return Ok(());
        }
        self.window = Some((Instant::now(), self.sent));
        if ((self.sent - sent) as f64) < self.minimum_rate as f64 * elapsed.as_secs_f64() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly"));
        }
        Ok(())
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.reading.is_none() {
            self.check_rate()?;
        }
        if self.turn >= TURN {
            self.turn = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(chunk) = ready!(self.poll_chunk(context)) else { return Poll::Ready(None) };
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                self.entry.iter().for_each(|entry| entry.failed(&error));
                return Poll::Ready(Some(Err(error)));
            }
        };
        let len = chunk.len() as u64;
        self.left = self.left.saturating_sub(len);
        self.sent += len;
        self.turn += len;
        if self.left > 0 && self.window.is_none() {
            self.window = Some((Instant::now(), self.sent));
        }
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let (Some(tails), Some(flight)) = (&self.tails, &self.flight) {
            tails.add(flight);
        }
        if let Some(entry) = self.entry.take() {
            entry.finish(self.sent, self.left == 0);
        }
    }
}

/// What came of a read that does not wait.
enum Cached {
    Read(Chunk),
    /// The page cache holds nothing of it, or the file system cannot tell.
    NotThere(Chunk),
}

/// Reads what the page cache holds, without waiting for the disk.
fn read_cached(file: &File, at: u64, mut chunk: Chunk) -> io::Result<Cached> {
    match preadv2(file, &mut [IoSliceMut::new(chunk.buffer())], at, ReadWriteFlags::NOWAIT) {
        Ok(0) => Err(short(at)),
        Ok(read) => Ok(Cached::Read(chunk.filled(read))),
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR | Errno::NOSYS) => Ok(Cached::NotThere(chunk)),
        Err(error) => Err(error.into()),
    }
}

/// Whether a byte can be had without waiting for the disk.
fn is_cached(file: &File, at: u64) -> bool {
    preadv2(file, &mut [IoSliceMut::new(&mut [0])], at, ReadWriteFlags::NOWAIT).is_ok_and(|read| read == 1)
}

/// Reads as much as fits into the chunk at most, waiting for the disk.
fn read_blocking(file: &File, at: u64, mut chunk: Chunk) -> io::Result<Chunk> {
    loop {
        match file.read_at(chunk.buffer(), at) {
            Ok(0) => return Err(short(at)),
            Ok(read) => return Ok(chunk.filled(read)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn short(at: u64) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the file ends at byte {at}, before its slice does"))
}

#[cfg(test)]
mod tests;
