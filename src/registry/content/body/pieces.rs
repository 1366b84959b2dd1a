//! Reads the pieces of a body, ranges of content and the text between them, into chunks. Small pieces share a chunk: each chunk becomes an
//! HTTP/2 frame, and clients close connections that send many small frames.

use std::fmt;
use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::registry::content::buffers::{Chunk, InFlight};
use crate::registry::content::disk_calls::{is_cached, read_at, read_cached, short};
use crate::registry::content::store::Disk;
use crate::registry::http::multipart::{Multipart, Piece};
use crate::registry::http::range::ByteRange;
use crate::registry::limits::SMALL_CHUNK;
use bytes::{Buf, Bytes};

/// Why a body ends early.
#[derive(Debug)]
pub(super) enum BodyError {
    /// The disk failed to return the bytes.
    Disk(io::Error),
    /// There are more or fewer bytes than the head announces. This is a bug.
    Length,
}

impl From<BodyError> for io::Error {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Disk(error) => error,
            BodyError::Length => Self::other("the body has another length than its head says"),
        }
    }
}

/// The content whose ranges a body sends.
#[derive(Debug, Clone)]
pub(crate) enum ByteSource {
    File(OpenBlob),
    Memory(Bytes),
}

/// An open blob and its disk.
#[derive(Debug, Clone)]
pub(crate) struct OpenBlob {
    pub file: Arc<File>,
    pub disk: Arc<Disk>,
}

impl ByteSource {
    /// The bytes of the range. `None` if they are not in memory.
    pub fn in_memory(&self, range: &ByteRange) -> Option<Bytes> {
        let Self::Memory(bytes) = self else { return None };
        let (start, end) = (usize::try_from(range.start()).ok()?, usize::try_from(range.end()).ok()?);
        (end <= bytes.len()).then(|| bytes.slice(start..end))
    }
}

/// A read that waits for the disk.
pub(super) struct Reading<T>(Pin<Box<dyn Future<Output = io::Result<T>> + Send>>);

impl<T> Reading<T> {
    pub fn start(read: impl Future<Output = io::Result<T>> + Send + 'static) -> Self {
        Self(Box::pin(read))
    }

    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.0.as_mut().poll(context)
    }
}

/// A chunk, and the number of bytes just added to it.
type Added = (Chunk, u64);

impl<T> fmt::Debug for Reading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").finish_non_exhaustive()
    }
}

/// The pieces not read yet.
#[derive(Debug)]
pub(super) struct Pieces {
    source: ByteSource,
    /// The rest of the piece being read.
    front: Option<Piece>,
    /// The pieces after it.
    rest: Option<Multipart>,
    /// The chunk being filled.
    chunk: Option<Chunk>,
    reading: Option<Reading<Added>>,
}

impl Pieces {
    pub fn range(source: ByteSource, range: ByteRange) -> Self {
        Self::new(source, Some(Piece::Range(range)), None)
    }

    pub fn multipart(source: ByteSource, parts: Multipart) -> Self {
        Self::new(source, None, Some(parts))
    }

    fn new(source: ByteSource, front: Option<Piece>, rest: Option<Multipart>) -> Self {
        Self { source, front, rest, chunk: None, reading: None }
    }

    /// Whether the first byte is in a file and not known to be in the page cache.
    pub fn starts_uncached(&self) -> bool {
        match (&self.front, &self.source) {
            (Some(Piece::Range(range)), ByteSource::File(opened)) => !range.is_empty() && !is_cached(&opened.file, range.start()),
            // Several ranges, whose first bytes are a header.
            (None, ByteSource::File(_)) => true,
            _ => false,
        }
    }

    /// What is left, if that is one range of a file and nothing of it is being read.
    pub fn file_range(&self) -> Option<(&OpenBlob, ByteRange)> {
        match (&self.front, &self.source) {
            (Some(Piece::Range(range)), ByteSource::File(opened))
                if self.rest.is_none() && self.chunk.is_none() && self.reading.is_none() =>
            {
                Some((opened, *range))
            }
            _ => None,
        }
    }

    /// Whether all pieces are read.
    pub fn is_at_end(&mut self) -> bool {
        self.front().is_none()
    }

    /// The next chunk, with at most `left` bytes. Each read of the disk may take up to `timeout`.
    pub fn poll_chunk(
        &mut self,
        in_flight: &Arc<InFlight>,
        left: u64,
        timeout: Duration,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Chunk, BodyError>>> {
        loop {
            if let Some(reading) = &mut self.reading {
                let read = ready!(reading.poll(context));
                self.reading = None;
                let (chunk, count) = read.map_err(BodyError::Disk)?;
                self.chunk = Some(chunk);
                self.advance(count)?;
            }
            if self.is_at_end() {
                return Poll::Ready(self.chunk.take().map(Ok));
            }
            let mut chunk = match self.chunk.take() {
                Some(chunk) => chunk,
                None if left == 0 => return Poll::Ready(Some(Err(BodyError::Length))),
                None => ready!(in_flight.poll_chunk(left, context)),
            };
            if chunk.is_full() {
                return Poll::Ready(Some(Ok(chunk)));
            }
            match self.fill(&mut chunk)? {
                Some(count) => {
                    self.chunk = Some(chunk);
                    self.advance(count)?;
                }
                // Sends what the chunk has before it waits for the disk, unless that is very little.
                None if chunk.len() >= SMALL_CHUNK => return Poll::Ready(Some(Ok(chunk))),
                None => self.reading = self.read(chunk, timeout),
            }
        }
    }

    /// The piece to read next.
    fn front(&mut self) -> Option<&mut Piece> {
        while self.front.as_ref().is_none_or(Piece::is_empty) {
            self.front = Some(self.rest.as_mut()?.next()?);
        }
        self.front.as_mut()
    }

    /// Removes bytes that were read from the front piece.
    fn advance(&mut self, count: u64) -> Result<(), BodyError> {
        match &mut self.front {
            Some(Piece::Range(range)) => range.advance(count).ok_or(BodyError::Length),
            Some(Piece::Text(text)) => {
                let count = usize::try_from(count).ok().filter(|count| *count <= text.len()).ok_or(BodyError::Length)?;
                text.advance(count);
                Ok(())
            }
            None => Err(BodyError::Length),
        }
    }

    /// Adds bytes of the front piece to the chunk without waiting for the disk. Returns their number, or `None` if the disk must be read.
    fn fill(&self, chunk: &mut Chunk) -> Result<Option<u64>, BodyError> {
        match (&self.front, &self.source) {
            (Some(Piece::Text(text)), _) => Ok(Some(chunk.append(text) as u64)),
            (Some(Piece::Range(range)), ByteSource::File(opened)) => {
                fill_cached(&opened.file, range, chunk).map_err(BodyError::Disk)
            }
            (Some(Piece::Range(range)), ByteSource::Memory(_)) => {
                let bytes = self.source.in_memory(range).ok_or(BodyError::Length)?;
                Ok(Some(chunk.append(&bytes) as u64))
            }
            (None, _) => Err(BodyError::Length),
        }
    }

    /// Starts a read of the front piece from the disk.
    fn read(&self, chunk: Chunk, timeout: Duration) -> Option<Reading<Added>> {
        let (Some(Piece::Range(range)), ByteSource::File(OpenBlob { file, disk })) = (&self.front, self.source.clone()) else {
            return None;
        };
        let range = *range;
        Some(Reading::start(async move { disk.run(timeout, move || read_blocking(&file, &range, chunk)).await }))
    }
}

/// Reads what the page cache has of the start of the range, up to the size of the chunk. `None` if it has nothing, or if the file system
/// does not support such reads.
fn fill_cached(file: &File, range: &ByteRange, chunk: &mut Chunk) -> io::Result<Option<u64>> {
    let mut waits = false;
    let read = |space: &mut [u8]| {
        let read = read_cached(file, range.start(), space)?;
        waits = read.is_none();
        Ok(read.unwrap_or_default())
    };
    match chunk.fill(range.len(), read)? {
        _ if waits => Ok(None),
        0 => Err(short(range.start())),
        count => Ok(Some(count)),
    }
}

/// Reads the start of the range into the chunk, waiting for the disk.
fn read_blocking(file: &File, range: &ByteRange, mut chunk: Chunk) -> io::Result<Added> {
    match chunk.fill(range.len(), |space| read_at(file, space, range.start()))? {
        0 => Err(short(range.start())),
        count => Ok((chunk, count)),
    }
}
