//! Bodies of responses: bytes in memory, or slices of a file read as the client takes them. Nothing is read ahead of the client by
//! more than one chunk, whole blobs are never in memory, and a file that turns out short ends the connection: never a short body
//! passed off as a whole one.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::task::JoinHandle;

use super::flight::{Budget, Chunk, Flight, Tails};
use super::limits::Limits;
use super::log::Entry;

/// One stretch of a body.
#[derive(Debug, Clone)]
pub enum Part {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A slice of the body's file.
    File(Range<u64>),
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
    parts: VecDeque<Part>,
    file: Option<Arc<File>>,
    reading: Option<JoinHandle<io::Result<Chunk>>>,
    flight: Arc<Flight>,
    /// Who watches over chunks that are still in flight when the body has ended.
    tails: Option<Arc<Tails>>,
    left: u64,
    sent: u64,
    /// How slow the client may be; and when the present window began, and what had been sent by then.
    limits: Limits,
    window: (Instant, u64),
    entry: Option<Box<Entry>>,
}

impl Body {
    /// A body of these bytes.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::parts(VecDeque::from([Part::Bytes(bytes.into())]), None)
    }

    /// A body of these parts; slices are of `file`.
    #[must_use]
    pub fn parts(parts: VecDeque<Part>, file: Option<File>) -> Self {
        let left = parts.iter().map(Part::len).sum();
        let window = (Instant::now(), 0);
        Self {
            parts,
            file: file.map(Arc::new),
            reading: None,
            flight: Arc::default(),
            tails: None,
            left,
            sent: 0,
            limits: Limits::default(),
            window,
            entry: None,
        }
    }

    /// The same body, slicing `file`.
    #[must_use]
    pub fn with_file(mut self, file: File) -> Self {
        self.file = Some(Arc::new(file));
        self
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
        self.parts.clear();
        self.left = 0;
        self
    }

    /// Attaches what is logged when the body is dropped, how slow its client may be, and whose bytes in flight it adds to.
    #[must_use]
    pub fn logged(mut self, entry: Entry, limits: Limits, budget: Arc<Budget>) -> Self {
        self.entry = Some(Box::new(entry));
        self.limits = limits;
        self.flight = Arc::new(Flight::new(budget));
        self
    }

    /// Leaves chunks that are still in flight at its end to `tails`.
    #[must_use]
    pub(super) fn watched_by(mut self, tails: Arc<Tails>) -> Self {
        self.tails = Some(tails);
        self
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Some(reading) = &mut self.reading {
                let read = ready!(Pin::new(reading).poll(context));
                self.reading = None;
                return Poll::Ready(Some(self.took(read.unwrap_or_else(|stopped| Err(io::Error::other(stopped))))));
            }
            match self.parts.front() {
                None => return Poll::Ready(None),
                Some(part) if part.len() == 0 => drop(self.parts.pop_front()),
                Some(Part::Bytes(bytes)) => {
                    let bytes = bytes.clone();
                    self.parts.pop_front();
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Some(Part::File(range)) => {
                    let (start, end) = (range.start, range.end);
                    let Some(file) = self.file.clone() else { return Poll::Ready(Some(Err(io::ErrorKind::NotFound.into()))) };
                    let chunk = ready!(self.flight.poll_chunk(end - start, context));
                    match read_cached(&file, start, chunk) {
                        Ok(Cached::Read(chunk)) => return Poll::Ready(Some(self.took(Ok(chunk)))),
                        Ok(Cached::NotThere(chunk)) => {
                            self.reading = Some(tokio::task::spawn_blocking(move || read_blocking(&file, start, chunk)));
                        }
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    }
                }
            }
        }
    }

    /// Accounts for bytes read from the slice in front.
    fn took(&mut self, read: io::Result<Chunk>) -> io::Result<Bytes> {
        let bytes = Bytes::from_owner(read?);
        if let Some(Part::File(range)) = self.parts.front_mut() {
            range.start += bytes.len() as u64;
        }
        Ok(bytes)
    }

    /// Refuses a client that takes less than the minimum rate over the time of a stall.
    fn check_rate(&mut self) -> io::Result<()> {
        let (since, sent) = self.window;
        let elapsed = since.elapsed();
        if elapsed < self.limits.stall {
            return Ok(());
        }
        self.window = (Instant::now(), self.sent);
        if ((self.sent - sent) as f64) < self.limits.minimum_rate as f64 * elapsed.as_secs_f64() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly"));
        }
        Ok(())
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.check_rate()?;
        let Some(chunk) = ready!(self.poll_chunk(context)) else { return Poll::Ready(None) };
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                self.entry.iter_mut().for_each(|entry| entry.failed(&error));
                return Poll::Ready(Some(Err(error)));
            }
        };
        let len = chunk.len() as u64;
        self.left = self.left.saturating_sub(len);
        self.sent += len;
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
        if let Some(tails) = &self.tails {
            tails.add(&self.flight);
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
