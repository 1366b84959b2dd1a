//! The bytes of a response, wherever they are.

use std::fmt;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;

use super::file_range::FileRange;
use super::pieces::{BodyError, ByteSource, Pieces};
use crate::oci::{Digest, Hasher};
use crate::registry::content::buffers::InFlight;
use crate::registry::content::disk_calls::Cache;
use crate::registry::content::disk_errors::wrong_digest;
use crate::registry::faults::body::BodyFault;
use crate::registry::http::multipart::Multipart;
use crate::registry::http::range::ByteRange;

/// The bytes of a response, before and while they are sent.
#[derive(Debug)]
pub struct Payload {
    data: Data,
    len: u64,
    /// The bytes read by [`Payload::prefetch`].
    prefetched: Option<Part>,
    check: Option<Box<DigestCheck>>,
    /// What a rule of the plan of faults does to the body.
    pub(crate) fault: Option<Box<BodyFault>>,
}

#[derive(Debug)]
enum Data {
    /// Sent without copying.
    Memory(Bytes),
    /// Read into chunks.
    Pieces(Box<Pieces>),
    /// Sent by the connection itself.
    File(Box<FileRange>),
}

/// The next bytes of a response.
#[derive(Debug)]
pub(super) enum Part {
    Bytes(Bytes),
    /// Bytes of [`Payload::file`].
    File(ByteRange),
}

impl Part {
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(range) => range.len(),
        }
    }
}

/// Compares the digest of the bytes with the expected one.
struct DigestCheck {
    expected: Digest,
    hasher: Hasher,
}

impl fmt::Debug for DigestCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DigestCheck").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl Payload {
    /// Bytes in memory.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::new(bytes.len() as u64, Data::Memory(bytes))
    }

    /// No bytes, as for HEAD and 304.
    #[must_use]
    pub fn empty() -> Self {
        Self::bytes(Bytes::new())
    }

    /// One range of the source.
    pub(crate) fn range(source: ByteSource, range: ByteRange) -> Self {
        let data = match source.in_memory(&range) {
            Some(bytes) => Data::Memory(bytes),
            None => Data::Pieces(Box::new(Pieces::range(source, range))),
        };
        Self::new(range.len(), data)
    }

    /// Several ranges of the source. `None` if their total length does not fit into 64 bits.
    pub(crate) fn multipart(source: ByteSource, parts: Multipart) -> Option<Self> {
        Some(Self::new(parts.len()?, Data::Pieces(Box::new(Pieces::multipart(source, parts)))))
    }

    fn new(len: u64, data: Data) -> Self {
        Self { data, len, prefetched: None, check: None, fault: None }
    }

    /// The length in bytes, for the response's head.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads the first chunk if that needs the disk, so that a disk error becomes an error response. If `expected` is given, all bytes are
    /// hashed while they are sent, and the last chunk is withheld if the digest is wrong.
    ///
    /// # Errors
    /// Fails if the disk cannot be read, or if the first chunk is the last one and the digest is wrong.
    pub(crate) async fn prefetch(
        &mut self,
        expected: Option<Digest>,
        in_flight: &Arc<InFlight>,
        timeout: Duration,
    ) -> io::Result<()> {
        self.check = expected.map(|expected| Box::new(DigestCheck { expected, hasher: Hasher::new(expected.algorithm()) }));
        let is_uncached = matches!(&self.data, Data::Pieces(pieces) if pieces.starts_uncached());
        if self.check.is_some() || is_uncached {
            let len = self.len;
            self.prefetched = poll_fn(|context| self.poll_bytes(in_flight, len, timeout, context)).await.transpose()?;
        }
        Ok(())
    }

    /// Leaves it to the connection to send the rest, up to `at_once` bytes at once. Returns whether it does: the rest must be one range of
    /// a file, and no digest be checked.
    pub(super) fn send_from_file(&mut self, at_once: u64) -> bool {
        if let Data::Pieces(pieces) = &self.data
            && self.check.is_none()
            && let Some((opened, range)) = pieces.file_range()
        {
            // Nothing was prefetched if the first byte was known to be in the page cache.
            let cache = if self.prefetched.is_none() { Cache::Known } else { Cache::of(&opened.file) };
            if cache != Cache::None {
                self.data = Data::File(Box::new(FileRange::new(opened.clone(), range, at_once, cache == Cache::Known)));
                return true;
            }
        }
        false
    }

    /// The file that the connection sends from.
    pub(super) fn file(&self) -> Option<&Arc<File>> {
        if let Data::File(range) = &self.data { Some(range.file()) } else { None }
    }

    /// The next bytes, of which there are at most `left`.
    pub(super) fn poll_bytes(
        &mut self,
        in_flight: &Arc<InFlight>,
        left: u64,
        timeout: Duration,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Part, BodyError>>> {
        if let Some(first) = self.prefetched.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        match &mut self.data {
            Data::Memory(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then_some(Ok(Part::Bytes(bytes))))
            }
            Data::Pieces(pieces) => {
                let chunk = ready!(pieces.poll_chunk(in_flight, left, timeout, context));
                Poll::Ready(chunk.map(|chunk| self.checked(Bytes::from_owner(chunk?)).map(Part::Bytes)))
            }
            Data::File(range) => Poll::Ready(ready!(range.poll_next(timeout, context)).map(|range| range.map(Part::File))),
        }
    }

    /// Adds the bytes to the hash. Fails at the last ones if the digest is wrong.
    fn checked(&mut self, bytes: Bytes) -> Result<Bytes, BodyError> {
        let Some(check) = &mut self.check else { return Ok(bytes) };
        check.hasher.update(&bytes);
        if !self.is_at_end() {
            return Ok(bytes);
        }
        match self.check.take().map(|check| (check.expected, check.hasher.finish())) {
            Some((expected, found)) if found != expected => Err(BodyError::Disk(wrong_digest(&found))),
            _ => Ok(bytes),
        }
    }

    /// Whether the source has no more bytes.
    pub(super) fn is_at_end(&mut self) -> bool {
        match &mut self.data {
            Data::Memory(bytes) => bytes.is_empty(),
            Data::Pieces(pieces) => pieces.is_at_end(),
            Data::File(range) => range.is_at_end(),
        }
    }
}
