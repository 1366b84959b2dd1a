//! A range of a file that its connection reads or sends itself. Each part of it is in the page cache before that, so that the thread of the
//! connection does not wait for the disk.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use tokio::time::Instant;

use super::pieces::{BodyError, OpenBlob, Reading};
use crate::registry::content::disk_calls::{read_at, read_cached, short};
use crate::registry::http::range::ByteRange;
use crate::registry::limits::{LOADED_AT_ONCE, LOADED_FOR};

/// Bytes of a page: the page cache has all or none of it.
const PAGE: u64 = 4096;

/// The bytes not sent yet.
#[derive(Debug)]
pub(super) struct FileRange {
    opened: OpenBlob,
    left: ByteRange,
    /// Bytes that are sent at once, at most: a power of two, and no more than there are in the placeholder.
    at_once: u64,
    /// Whether [`read_cached`] tells what is in the page cache.
    is_cache_known: bool,
    /// A read of the next bytes into the page cache. It returns their number.
    reading: Option<Reading<u64>>,
    /// Where the bytes end that were read into the page cache, and since when they are there.
    loaded: (u64, Instant),
}

impl FileRange {
    pub fn new(opened: OpenBlob, left: ByteRange, at_once: u64, is_cache_known: bool) -> Self {
        let loaded = (left.start(), Instant::now());
        Self { opened, left, at_once, is_cache_known, reading: None, loaded }
    }

    pub fn file(&self) -> &Arc<File> {
        &self.opened.file
    }

    pub fn is_at_end(&self) -> bool {
        self.left.is_empty()
    }

    /// The next bytes to send, all of them in the page cache. A read of the disk may take up to `timeout`.
    pub fn poll_next(&mut self, timeout: Duration, context: &mut Context<'_>) -> Poll<Option<Result<ByteRange, BodyError>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let start = self.left.start();
        // Up to a multiple of the most: then the next ones begin at the start of a page and of the placeholder.
        let end = (start + 1).next_multiple_of(self.at_once).min(self.left.end());
        if self.reading.is_none() && !self.is_loaded(end).map_err(BodyError::Disk)? {
            let OpenBlob { file, disk } = self.opened.clone();
            let left = self.left;
            self.reading = Some(Reading::start(async move { disk.run(timeout, move || load(&file, left)).await }));
        }
        if let Some(reading) = &mut self.reading {
            let loaded = ready!(reading.poll(context));
            self.reading = None;
            self.loaded = (loaded.map_err(BodyError::Disk)?, Instant::now());
        }
        let next = ByteRange::new(start, end.min(self.loaded.0)).filter(|next| self.left.advance(next.len()).is_some());
        Poll::Ready(Some(next.ok_or(BodyError::Length)))
    }

    /// Whether the page cache has the bytes up to `end`. Those that were found there, or read into it, just before are taken to be there.
    ///
    /// It is asked for the first and the last of many: pages that are read together leave it together. If the file ends before, it is sent up
    /// to there.
    fn is_loaded(&mut self, end: u64) -> io::Result<bool> {
        if end <= self.loaded.0 && self.loaded.1.elapsed() < LOADED_FOR {
            return Ok(true);
        }
        if !self.is_cache_known {
            return Ok(false);
        }
        let (start, end) = (self.left.start(), loaded_end(&self.left));
        let is_cached = match read_cached(self.file(), start, &mut [0])? {
            Some(0) => return Err(short(start)),
            Some(_) => end - start <= PAGE || read_cached(self.file(), end - 1, &mut [0])?.is_some(),
            None => false,
        };
        if is_cached {
            self.loaded = (end, Instant::now());
        }
        Ok(is_cached)
    }
}

/// Where the bytes end that are looked for, or loaded, at once.
fn loaded_end(left: &ByteRange) -> u64 {
    left.start().saturating_add(LOADED_AT_ONCE).min(left.end())
}

/// Reads the start of the range into the page cache, page by page, and lets the disk go on with as much after it. Returns where the bytes
/// end that were read: before an error, if there are any.
fn load(file: &File, range: ByteRange) -> io::Result<u64> {
    let (start, end) = (range.start(), loaded_end(&range));
    for offset in [start].into_iter().chain(((start + 1).next_multiple_of(PAGE)..end).step_by(PAGE as usize)) {
        match read_at(file, &mut [0], offset) {
            Ok(0) if offset == start => return Err(short(start)),
            Err(error) if offset == start => return Err(error),
            Ok(0) | Err(_) => return Ok(offset),
            Ok(_) => {}
        }
    }
    // A length of zero would be all of the file.
    if let Some(more) = NonZeroU64::new(LOADED_AT_ONCE.min(range.end() - end)) {
        // It is advice only.
        let _ = fadvise(file, end, Some(more), Advice::WillNeed);
    }
    Ok(end)
}
