//! Bodies of responses: bytes in memory, or slices of a file read as the client takes them. Nothing is read ahead of the client by
//! more than one chunk, and whole blobs are never in memory. A body sends exactly as many bytes as its head says, or it ends in an
//! error, which closes the connection (HTTP/1.1) or resets the stream (HTTP/2).

mod pieces;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

pub(crate) use pieces::{Content, Opened};

use super::buffers::{Budget, Flight, Tails};
use super::disk_errors::wrong_digest;
use crate::oci::{Digest, Hasher};
use crate::registry::http::multipart::Multipart;
use crate::registry::http::range::ByteRange;
use crate::registry::limits::{Limits, MINIMUM_RATE, STALL, TURN};
use crate::registry::listen::activity::Open;
use crate::registry::telemetry::log::Entry;
use pieces::Pieces;

/// Why a body cannot be sent to its end.
#[derive(Debug)]
enum Fault {
    /// The disk does not give the bytes.
    Disk(io::Error),
    /// There are more or fewer bytes than the head says. That is an error of this program.
    Length,
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Disk(error) => error,
            Fault::Length => Self::other("the body has another length than its head says"),
        }
    }
}

/// Where the bytes of a body are.
#[derive(Debug)]
enum Source {
    /// In memory: they are sent as they are.
    Memory(Bytes),
    /// In pieces, which are read into chunks.
    Pieces(Pieces),
}

impl Source {
    /// Whether nothing is left.
    fn is_at_end(&mut self) -> bool {
        match self {
            Self::Memory(bytes) => bytes.is_empty(),
            Self::Pieces(pieces) => pieces.is_at_end(),
        }
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

/// The body of a response. When it is dropped, its request is over and is logged.
#[derive(Debug)]
pub struct Body {
    source: Source,
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
    /// Bytes that the head says there are and that are not sent yet.
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
        Self::new(bytes.len() as u64, Source::Memory(bytes))
    }

    /// A slice of the content.
    pub(crate) fn slice(content: Content, range: ByteRange) -> Self {
        let source = match content.in_memory(&range) {
            Some(bytes) => Source::Memory(bytes),
            None => Source::Pieces(Pieces::slice(content, range)),
        };
        Self::new(range.len(), source)
    }

    /// Many slices of the content. `None` if 64 bits do not hold their length.
    pub(crate) fn multipart(content: Content, parts: Multipart) -> Option<Self> {
        Some(Self::new(parts.len()?, Source::Pieces(Pieces::multipart(content, parts))))
    }

    fn new(left: u64, source: Source) -> Self {
        Self {
            source,
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
        (self.source, self.first, self.left) = (Source::Memory(Bytes::new()), None, 0);
        self
    }

    /// Holds the bytes, which are all of a blob, against its digest: where they have another, the last chunk is never given.
    pub(crate) fn verify(&mut self, expected: Digest) {
        self.check = Some(Box::new(Check { expected, hasher: Hasher::new(expected.algorithm()) }));
    }

    /// Reads the first chunk where the disk has to be asked for it: what cannot be read at all is then answered as that.
    ///
    /// # Errors
    /// As of reading.
    pub(crate) async fn begin(&mut self, limits: &Limits, budget: &Arc<Budget>) -> io::Result<()> {
        (self.stall, self.budget) = (limits.stall, Some(Arc::clone(budget)));
        let Source::Pieces(pieces) = &self.source else { return Ok(()) };
        if self.check.is_some() || pieces.starts_uncached() {
            self.first = poll_fn(|context| self.poll_bytes(context)).await.transpose()?;
        }
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
    pub(crate) fn watched_by(mut self, tails: Arc<Tails>) -> Self {
        self.tails = Some(tails);
        self
    }

    /// Keeps the connection from being idle until its end.
    #[must_use]
    pub(crate) fn keeping(mut self, open: Open) -> Self {
        self.open = Some(open);
        self
    }

    /// The next bytes of the source.
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        match &mut self.source {
            Source::Memory(bytes) => {
                let bytes = std::mem::take(bytes);
                let is_watched = self.tails.is_some() && !bytes.is_empty();
                let bytes = if is_watched { flight(&mut self.flight, &self.budget).hold(bytes) } else { bytes };
                Poll::Ready((!bytes.is_empty()).then_some(Ok(bytes)))
            }
            Source::Pieces(pieces) => {
                let chunk = ready!(pieces.poll_chunk(flight(&mut self.flight, &self.budget), self.left, self.stall, context));
                // The client is not to blame for the time that the disk took.
                let waited = std::mem::take(&mut pieces.waited);
                self.window.iter_mut().for_each(|(since, _)| *since += waited);
                Poll::Ready(chunk.map(|chunk| self.checked(Bytes::from_owner(chunk?))))
            }
        }
    }

    /// Holds bytes that were read against the digest that all of them should have.
    fn checked(&mut self, bytes: Bytes) -> Result<Bytes, Fault> {
        let Some(check) = &mut self.check else { return Ok(bytes) };
        check.hasher.update(&bytes);
        if !self.source.is_at_end() {
            return Ok(bytes);
        }
        match self.check.take().map(|check| (check.expected, check.hasher.finish())) {
            Some((expected, found)) if found != expected => Err(Fault::Disk(wrong_digest(&found))),
            _ => Ok(bytes),
        }
    }

    /// The one place that all bytes of a body pass on their way out. The last ones do not pass if there are more than the head says,
    /// and it is an error if there are fewer: the response is cut, and its client does not take it for a whole one.
    fn account(&mut self, given: Option<Result<Bytes, Fault>>) -> Option<io::Result<Bytes>> {
        let accounted = match given {
            None if self.left == 0 => return None,
            None => Err(Fault::Length),
            Some(given) => given.and_then(|bytes| {
                let len = bytes.len() as u64;
                let left = self.left.checked_sub(len).filter(|left| *left > 0 || self.source.is_at_end());
                self.left = left.ok_or(Fault::Length)?;
                // What is sent and what is left add up to what the head says: neither sum wraps.
                (self.sent, self.turn) = (self.sent + len, self.turn + len);
                Ok(bytes)
            }),
        };
        Some(accounted.map_err(|fault| {
            match &fault {
                Fault::Disk(error) => self.entry.iter().for_each(|entry| entry.failed(error)),
                Fault::Length => tracing::error!(sent = self.sent, left = self.left, "a response is cut: its length is wrong"),
            }
            fault.into()
        }))
    }

    /// Refuses a client that takes less than the minimum rate over the time of a stall.
    fn check_rate(&mut self) -> io::Result<()> {
        let Some((since, sent)) = self.window else { return Ok(()) };
        let elapsed = since.elapsed();
        if elapsed < self.stall {
            return Ok(());
        }
        self.window = Some((Instant::now(), self.sent));
        // What is sent only grows: the difference never saturates.
        if (self.sent.saturating_sub(sent) as f64) < self.minimum_rate as f64 * elapsed.as_secs_f64() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly"));
        }
        Ok(())
    }
}

/// What a body has in flight, from the first time that it is needed.
fn flight<'a>(flight: &'a mut Option<Arc<Flight>>, budget: &Option<Arc<Budget>>) -> &'a Arc<Flight> {
    flight.get_or_insert_with(|| Arc::new(Flight::new(budget.clone().unwrap_or_default())))
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if !matches!(&self.source, Source::Pieces(pieces) if pieces.is_reading()) {
            self.check_rate()?;
        }
        if self.turn >= TURN {
            self.turn = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let given = ready!(self.poll_bytes(context));
        let Some(bytes) = self.account(given) else { return Poll::Ready(None) };
        if self.left > 0 && self.window.is_none() {
            self.window = Some((Instant::now(), self.sent));
        }
        Poll::Ready(Some(bytes.map(Frame::data)))
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

#[cfg(test)]
mod tests;
