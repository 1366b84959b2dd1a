//! Reads the pieces of a body, slices of content and the text between them, into chunks. Small pieces share a chunk: each chunk
//! becomes a frame of HTTP/2, and clients close connections that send many small ones.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::Fault;
use crate::registry::content::buffers::{Chunk, Flight};
use crate::registry::content::store::Disk;
use crate::registry::http::multipart::{Multipart, Piece};
use crate::registry::http::range::ByteRange;
use crate::registry::limits::SMALL_CHUNK;

/// What slices of a body are of.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    File(Opened),
    Memory(Bytes),
}

/// A blob's open file, and the disk that it is on.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub file: Arc<File>,
    pub disk: Arc<Disk>,
}

impl Content {
    /// The bytes of the range, if they are in memory.
    pub fn in_memory(&self, range: &ByteRange) -> Option<Bytes> {
        let Self::Memory(bytes) = self else { return None };
        let (start, end) = (usize::try_from(range.start()).ok()?, usize::try_from(range.end()).ok()?);
        (end <= bytes.len()).then(|| bytes.slice(start..end))
    }
}

/// A read that waits for the disk.
struct Reading {
    since: Instant,
    read: Pin<Box<dyn Future<Output = io::Result<Added>> + Send>>,
}

/// A chunk, and how many bytes were added to it.
type Added = (Chunk, u64);

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").field("since", &self.since).finish_non_exhaustive()
    }
}

/// The pieces that are still to be read.
#[derive(Debug)]
pub(crate) struct Pieces {
    content: Content,
    /// What is left of the piece being read, and those after it.
    front: Option<Piece>,
    rest: Option<Box<Multipart>>,
    /// The chunk being filled.
    chunk: Option<Chunk>,
    reading: Option<Reading>,
    /// Time spent waiting for the disk since it was last taken.
    pub waited: Duration,
}

impl Pieces {
    /// One slice of the content.
    pub fn slice(content: Content, range: ByteRange) -> Self {
        Self::new(content, Some(Piece::Slice(range)), None)
    }

    /// Many slices of the content.
    pub fn multipart(content: Content, parts: Multipart) -> Self {
        Self::new(content, None, Some(Box::new(parts)))
    }

    fn new(content: Content, front: Option<Piece>, rest: Option<Box<Multipart>>) -> Self {
        Self { content, front, rest, chunk: None, reading: None, waited: Duration::ZERO }
    }

    /// Whether it waits for the disk.
    pub fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Whether the first byte is one of a file that the page cache does not hold.
    pub fn starts_uncached(&self) -> bool {
        match (&self.front, &self.content) {
            (Some(Piece::Slice(range)), Content::File(opened)) => !range.is_empty() && !is_cached(&opened.file, range.start()),
            _ => false,
        }
    }

    /// Whether nothing is left.
    pub fn is_at_end(&mut self) -> bool {
        self.front().is_none()
    }

    /// The next chunk, which has `left` bytes at most. Waits up to `patience` for the disk.
    pub fn poll_chunk(
        &mut self,
        flight: &Arc<Flight>,
        left: u64,
        patience: Duration,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Chunk, Fault>>> {
        loop {
            if let Some(reading) = &mut self.reading {
                let read = ready!(reading.read.as_mut().poll(context));
                self.waited = self.waited.saturating_add(reading.since.elapsed());
                self.reading = None;
                let (chunk, count) = read.map_err(Fault::Disk)?;
                self.chunk = Some(chunk);
                self.advance(count)?;
            }
            if self.is_at_end() {
                return Poll::Ready(self.chunk.take().map(Ok));
            }
            let mut chunk = match self.chunk.take() {
                Some(chunk) => chunk,
                None if left == 0 => return Poll::Ready(Some(Err(Fault::Length))),
                None => ready!(flight.poll_chunk(left, context)),
            };
            if chunk.is_full() {
                return Poll::Ready(Some(Ok(chunk)));
            }
            match self.fill(&mut chunk)? {
                Some(count) => {
                    self.chunk = Some(chunk);
                    self.advance(count)?;
                }
                // What there is goes out before the disk is asked, unless it is very little.
                None if chunk.len() >= SMALL_CHUNK => return Poll::Ready(Some(Ok(chunk))),
                None => self.reading = self.read(chunk, patience),
            }
        }
    }

    /// The piece to be read next.
    fn front(&mut self) -> Option<&mut Piece> {
        while self.front.as_ref().is_none_or(Piece::is_empty) {
            self.front = Some(self.rest.as_mut()?.next()?);
        }
        self.front.as_mut()
    }

    /// Takes bytes that were read off the piece in front.
    fn advance(&mut self, count: u64) -> Result<(), Fault> {
        match &mut self.front {
            Some(Piece::Slice(range)) => range.advance(count).ok_or(Fault::Length),
            Some(Piece::Text(text)) => {
                let count = usize::try_from(count).ok().filter(|count| *count <= text.len()).ok_or(Fault::Length)?;
                text.advance(count);
                Ok(())
            }
            None => Err(Fault::Length),
        }
    }

    /// Adds to the chunk what can be had of the piece in front without waiting for the disk, and returns how many bytes that is.
    /// `None` if the disk has to be asked.
    fn fill(&self, chunk: &mut Chunk) -> Result<Option<u64>, Fault> {
        match (&self.front, &self.content) {
            (Some(Piece::Text(text)), _) => Ok(Some(chunk.put(text) as u64)),
            (Some(Piece::Slice(range)), Content::File(opened)) => read_cached(&opened.file, range, chunk).map_err(Fault::Disk),
            (Some(Piece::Slice(range)), Content::Memory(_)) => {
                let bytes = self.content.in_memory(range).ok_or(Fault::Length)?;
                Ok(Some(chunk.put(&bytes) as u64))
            }
            (None, _) => Err(Fault::Length),
        }
    }

    /// Asks the disk for more of the slice in front.
    fn read(&self, chunk: Chunk, patience: Duration) -> Option<Reading> {
        let (Some(Piece::Slice(range)), Content::File(Opened { file, disk })) = (&self.front, self.content.clone()) else {
            return None;
        };
        let range = *range;
        let read = async move { disk.ask(patience, move || read_blocking(&file, &range, chunk)).await };
        Some(Reading { since: Instant::now(), read: Box::pin(read) })
    }
}

/// Reads what the page cache holds of the range, as much as fits into the chunk at most. `None` if it holds nothing of it, or if the
/// file system cannot tell.
fn read_cached(file: &File, range: &ByteRange, chunk: &mut Chunk) -> io::Result<Option<u64>> {
    let read = |space: &mut [u8]| Ok(preadv2(file, &mut [IoSliceMut::new(space)], range.start(), ReadWriteFlags::NOWAIT)?);
    match chunk.fill(range.len(), read) {
        Ok(0) => Err(short(range.start())),
        Ok(count) => Ok(Some(count)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR | Errno::NOSYS) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Whether a byte can be had without waiting for the disk.
fn is_cached(file: &File, at: u64) -> bool {
    preadv2(file, &mut [IoSliceMut::new(&mut [0])], at, ReadWriteFlags::NOWAIT).is_ok_and(|read| read == 1)
}

/// Reads as much of the range as fits into the chunk at most, waiting for the disk.
fn read_blocking(file: &File, range: &ByteRange, mut chunk: Chunk) -> io::Result<Added> {
    loop {
        match chunk.fill(range.len(), |space| file.read_at(space, range.start())) {
            Ok(0) => return Err(short(range.start())),
            Ok(count) => return Ok((chunk, count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn short(at: u64) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the file ends at byte {at}, before its slice does"))
}
