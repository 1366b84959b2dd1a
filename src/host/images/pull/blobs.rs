//! Fetches blobs into the store, several at once. Each blob is hashed while it is received, and resumed after a lost connection.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use indicatif::ProgressBar;

use super::client::Client;
use super::error::Fault;
use super::manifests::RemoteBlob;
use super::store::Store;
use super::upstream::Upstream;
use super::url::host_of;
use crate::disk::layout::Tree;
use crate::host::support::workers::parallel;
use crate::oci::{Digest, Hasher};

/// Number of parallel downloads, as in docker and containerd.
const PARALLEL_DOWNLOADS: usize = 3;
/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// A layout on this machine that may have some of the blobs.
pub type LocalTree<'a> = &'a (dyn Tree + Send + Sync);

/// Whether `tree` has a blob of this digest's name and this size. The content is not verified.
pub fn has_blob(tree: LocalTree<'_>, digest: &Digest, size: u64) -> bool {
    tree.open(&digest.blob_path()).is_ok_and(|content| content.size == size)
}

/// How blobs of one repository are fetched.
pub struct BlobFetcher<'a> {
    /// The client.
    pub client: &'a Client,
    /// The repository.
    pub upstream: &'a Upstream<'a>,
    /// Where the blobs are written.
    pub store: &'a Store,
    /// Layouts whose intact blobs are copied instead.
    pub local: &'a [LocalTree<'a>],
    /// Attempts of each request before it fails.
    pub tries: u32,
    /// Shows the received bytes.
    pub bar: ProgressBar,
}

impl BlobFetcher<'_> {
    /// Fetches `wanted`, the largest first. `stop` is called after the first error.
    ///
    /// # Errors
    /// Fails with the first error, once the other downloads have ended. A blob that failed can be fetched again.
    pub fn fetch(&self, mut wanted: Vec<(Digest, RemoteBlob)>, stop: impl Fn() + Sync) -> Result<(), Fault> {
        wanted.sort_by_key(|(_, blob)| std::cmp::Reverse(blob.size));
        let next = AtomicUsize::new(0);
        let failure: Mutex<Option<Fault>> = Mutex::new(None);
        let worker = || {
            while let Some((digest, blob)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                let Err(fault) = self.fetch_one(digest, blob) else { continue };
                next.store(wanted.len(), Ordering::Relaxed);
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                // Only the first error counts: stopping makes the other downloads fail too.
                if failure.is_none() {
                    *failure = Some(fault);
                    stop();
                }
                return;
            }
        };
        parallel(PARALLEL_DOWNLOADS.min(wanted.len()), worker);
        self.client.check()?;
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn fetch_one(&self, digest: &Digest, blob: &RemoteBlob) -> Result<(), Fault> {
        let write = |source| Fault::Write { file: digest.blob_path(), source };
        // Truncates what an earlier failure left.
        let file = File::create(self.store.path(digest)).map_err(write)?;
        let (upstream, hasher) = (self.upstream, Hasher::new(digest.algorithm()));
        let what = format!("blob {digest} of {}", upstream.path);
        let mut download = Download { upstream, digest, size: blob.size, what, file, hasher, received: 0, bar: &self.bar };
        if !download.copy(self.client, self.local)? {
            self.client.attempt(self.tries, || download.resume()).map_err(|fault| match fault {
                Fault::NotFound { host, what, .. } if blob.is_foreign => Fault::Foreign { host, what },
                other => other,
            })?;
        }
        let (expected, found) = (*digest, download.hasher.finish());
        if found != expected {
            return Err(Fault::Digest { host: upstream.host.clone(), what: download.what, expected, found });
        }
        self.store.add(expected);
        Ok(())
    }
}

struct Download<'a> {
    upstream: &'a Upstream<'a>,
    digest: &'a Digest,
    size: u64,
    what: String,
    file: File,
    hasher: Hasher,
    /// Bytes received so far.
    received: u64,
    bar: &'a ProgressBar,
}

impl Download<'_> {
    /// Copies the blob from the first of `local` with an intact copy. Returns whether there was one.
    fn copy(&mut self, client: &Client, local: &[LocalTree<'_>]) -> Result<bool, Fault> {
        let (digest, size) = (self.digest, self.size);
        for tree in local.iter().filter(|tree| has_blob(**tree, digest, size)) {
            let Ok(content) = tree.open(&self.digest.blob_path()) else { continue };
            let mut reader = content.reader.take(self.size);
            let mut buffer = vec![0; CHUNK];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                client.check()?;
                self.append(buffer.get(..count).unwrap_or_default(), "this machine")?;
            }
            if self.received == self.size && self.hasher.clone().finish() == *self.digest {
                return Ok(true);
            }
            self.restart()?;
        }
        Ok(false)
    }

    /// Requests the missing part.
    fn resume(&mut self) -> Result<(), Fault> {
        if self.received == self.size && self.received > 0 {
            return Ok(());
        }
        let range = format!("bytes={}-", self.received);
        let headers: &[(&str, &str)] = if self.received == 0 { &[] } else { &[("Range", &range)] };
        let (response, at) = self.upstream.get(&format!("blobs/{}", self.digest), &self.what, headers)?;
        let header = |name| response.headers().get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
        let from = header(CONTENT_RANGE).and_then(first_byte).filter(|_| response.status() == 206);
        if self.received > 0 && from != Some(self.received) {
            self.restart()?;
            if response.status() == 206 {
                let cause = format!("it was asked for the end of {} and gives another part", self.what);
                return Err(Fault::Broken { host: host_of(&at), cause });
            }
        }
        let (expected, host) = (self.size, host_of(&at));
        let announced = header(CONTENT_LENGTH)
            .and_then(|length| length.parse::<u64>().ok())
            .map(|length| length.saturating_add(self.received));
        if let Some(found) = announced.filter(|announced| *announced != expected) {
            return Err(Fault::Size { host, what: self.what.clone(), expected, found });
        }
        // One extra byte detects a body that is too long.
        let mut body = response.into_body().into_reader().take((expected - self.received).saturating_add(1));
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                Err(error) => return Err(self.upstream.broken(&at, error)),
            };
            if count == 0 {
                break;
            }
            self.append(buffer.get(..count).unwrap_or_default(), &host)?;
        }
        if self.received < expected {
            return Err(Fault::Cut { host, what: self.what.clone(), expected, found: self.received });
        }
        Ok(())
    }

    fn append(&mut self, part: &[u8], host: &str) -> Result<(), Fault> {
        self.received += part.len() as u64;
        if self.received > self.size {
            let (what, expected, found) = (self.what.clone(), self.size, self.received);
            return Err(Fault::Size { host: host.to_owned(), what, expected, found });
        }
        self.hasher.update(part);
        self.bar.inc(part.len() as u64);
        self.file.write_all(part).map_err(|source| self.write(source))
    }

    /// Discards what was received.
    fn restart(&mut self) -> Result<(), Fault> {
        self.bar.dec(self.received);
        self.received = 0;
        self.hasher = Hasher::new(self.digest.algorithm());
        self.file.rewind().and_then(|()| self.file.set_len(0)).map_err(|source| self.write(source))
    }

    fn write(&self, source: io::Error) -> Fault {
        Fault::Write { file: self.digest.blob_path(), source }
    }
}

/// Offset of the first byte in `Content-Range` (RFC 9110, section 14.4).
fn first_byte(content_range: &str) -> Option<u64> {
    content_range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}
