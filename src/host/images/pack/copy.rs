//! Copies every blob from its source or the cache to the disk, on all processors.
//!
//! Each byte is read once, hashed and written, so that a source that changes meanwhile is detected or makes no difference. Blobs from
//! the cache are not hashed again.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::ProgressBar;

use super::cache::{BlobCache, BlobCacheError};
use super::image_set::PlannedBlob;
use super::sink::Sink;
use super::source::Source;
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::host::support::workers;
use crate::oci::{Digest, Hasher};

/// Bytes read at once.
const CHUNK: usize = 1 << 20;
static ZEROS: [u8; CHUNK] = [0; CHUNK];
/// Bytes that the kernel copies between two checks for a signal.
const KERNEL_STEP: u64 = 32 << 20;

/// Why a blob cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("cannot pack {source_label}: image {image}: cannot read {path}, of {size} bytes")]
    Read { source_label: String, image: String, path: String, size: u64, source: io::Error },
    #[error(
        "cannot pack {source_label}: image {image}: {path} gave {found} bytes, and {expected} are expected; does something write to it?"
    )]
    Size { source_label: String, image: String, path: String, expected: u64, found: u64 },
    #[error("cannot pack {source_label}: image {image}: {path} has the content of {found}; {expected} is expected")]
    Digest { source_label: String, image: String, path: String, expected: Digest, found: Digest },
    #[error("cannot write {file} into the working folder beside {}", disk.display())]
    Write { file: String, disk: PathBuf, source: io::Error },
    #[error(transparent)]
    Cache(#[from] BlobCacheError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Number of bytes copied, by origin.
#[derive(Debug, Default)]
pub struct ByteCounts {
    /// Bytes read from sources, and hashed.
    pub read: AtomicU64,
    /// Bytes taken from the cache.
    pub cached: AtomicU64,
}

impl ByteCounts {
    /// Bytes read and bytes cached.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.cached.load(Ordering::Relaxed))
    }
}

/// Copies the blobs of one pack.
#[derive(Debug, Clone, Copy)]
pub struct BlobCopier<'a> {
    /// Final path of the disk, for messages.
    pub disk: &'a Path,
    pub sink: &'a Sink,
    pub cache: Option<&'a BlobCache>,
    pub counts: &'a ByteCounts,
    pub bar: &'a ProgressBar,
    pub interrupt: &'a Interrupt,
}

/// The side on which a copy failed.
enum StepError {
    Read(io::Error),
    Write(io::Error),
    Cache(io::Error),
}

impl BlobCopier<'_> {
    /// Copies every blob, and verifies its digest and size.
    ///
    /// # Errors
    /// Fails with the largest blob that fails.
    pub fn copy_all(&self, blobs: &[PlannedBlob], sources: &[Source]) -> Result<(), CopyError> {
        // The largest first, so that no processor is busy with a long one at the end.
        let mut queue: Vec<(usize, &PlannedBlob)> = blobs.iter().enumerate().collect();
        queue.sort_by_key(|(_, blob)| std::cmp::Reverse(blob.size));
        let copied = workers::each(&queue, |(number, blob)| match sources.get(blob.source) {
            Some(source) => self.copy(*number, blob, source),
            None => Ok(()),
        });
        self.interrupt.check()?;
        copied
    }

    fn copy(&self, number: usize, blob: &PlannedBlob, source: &Source) -> Result<(), CopyError> {
        match self.cache {
            Some(cache) if self.copy_from_cache(cache, number, blob)? => Ok(()),
            _ => self.copy_from_source(number, blob, source),
        }
    }

    /// Takes the blob from the cache, if it has it: as a hard link, or copied by the kernel, which some file systems do without copying
    /// data.
    fn copy_from_cache(&self, cache: &BlobCache, number: usize, blob: &PlannedBlob) -> Result<bool, CopyError> {
        let (digest, size, path) = (&blob.digest, blob.size, blob.digest.blob_path());
        let Some(mut entry) = cache.find(digest, size)? else { return Ok(false) };
        let write_error = |source| self.write_error(&path, source);
        let linked = match self.sink {
            Sink::Folder(staging) => staging.link(&cache.path(digest), &path).map_err(write_error)?,
            Sink::Image { .. } => false,
        };
        if linked {
            self.bar.inc(size);
        } else {
            let mut file = self.sink.open(number, &path).map_err(write_error)?;
            let mut left = size;
            while left > 0 {
                self.interrupt.check()?;
                let copied = io::copy(&mut (&mut entry).take(left.min(KERNEL_STEP)), &mut file).map_err(write_error)?;
                if copied == 0 {
                    break;
                }
                left = left.saturating_sub(copied);
                self.bar.inc(copied);
            }
        }
        cache.check(&entry, digest, size)?;
        self.counts.cached.fetch_add(size, Ordering::Relaxed);
        Ok(true)
    }

    fn copy_from_source(&self, number: usize, blob: &PlannedBlob, source: &Source) -> Result<(), CopyError> {
        let layout_path = blob.digest.blob_path();
        let (path, image, source_label) = (source.tree.display_path(&layout_path), blob.image.clone(), source.label.clone());
        let (expected, size) = (blob.digest, blob.size);
        let mut new_entry = match self.cache {
            Some(cache) => cache.new_entry(&expected, size)?,
            None => None,
        };
        let mut hasher = Hasher::new(expected.algorithm());
        let mut found = 0_u64;
        let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK).saturating_add(1))];
        let copied = (|| {
            let mut file = self.sink.open(number, &layout_path).map_err(StepError::Write)?;
            // One extra byte detects content that is too long.
            let mut reader = source.tree.open(&layout_path).map_err(StepError::Read)?.reader.take(size.saturating_add(1));
            loop {
                let count = self.interrupt.read(&mut reader, &mut buffer).map_err(StepError::Read)?;
                found = found.saturating_add(count as u64);
                if count == 0 || found > size {
                    // Not written: what follows in the image belongs to another file.
                    return Ok(());
                }
                let part = buffer.get(..count).unwrap_or_default();
                hasher.update(part);
                if self.sink.reads_as_zeros() && ZEROS.get(..count) == Some(part) {
                    file.seek(SeekFrom::Current(count as i64)).map_err(StepError::Write)?;
                } else {
                    file.write_all(part).map_err(StepError::Write)?;
                }
                new_entry
                    .iter_mut()
                    .try_for_each(|new_entry| new_entry.as_file_mut().write_all(part))
                    .map_err(StepError::Cache)?;
                self.bar.inc(count as u64);
            }
        })();
        match (copied, self.cache) {
            (Err(StepError::Read(source)), _) => return Err(CopyError::Read { source_label, image, path, size, source }),
            (Err(StepError::Cache(source)), Some(cache)) => return Err(cache.write_error(&expected, size, source).into()),
            (Err(StepError::Write(source) | StepError::Cache(source)), _) => return Err(self.write_error(&layout_path, source)),
            (Ok(()), _) if found != size => return Err(CopyError::Size { source_label, image, path, expected: size, found }),
            (Ok(()), _) => {}
        }
        let digest = hasher.finish();
        if digest != expected {
            return Err(CopyError::Digest { source_label, image, path, expected, found: digest });
        }
        self.counts.read.fetch_add(size, Ordering::Relaxed);
        match (self.cache, new_entry) {
            (Some(cache), Some(new_entry)) => Ok(cache.insert(new_entry, &expected, size)?),
            _ => Ok(()),
        }
    }

    fn write_error(&self, file: &str, source: io::Error) -> CopyError {
        CopyError::Write { file: file.to_owned(), disk: self.disk.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::disk::layout::{OpenFile, Tree};
    use crate::host::images::pack::staging::StagingDir;

    /// A source whose blob has the size and digest of `was`, but the content `is` when it is read.
    struct Changing {
        was: &'static [u8],
        is: &'static [u8],
    }

    impl Tree for Changing {
        fn open(&self, _: &str) -> io::Result<OpenFile<'_>> {
            Ok(OpenFile { reader: Box::new(self.is), size: self.was.len() as u64 })
        }
    }

    fn copied(was: &'static [u8], is: &'static [u8]) -> Result<Vec<u8>, String> {
        let folder = tempfile::tempdir().unwrap();
        let sink = Sink::Folder(StagingDir::new(folder.path().join("root")).unwrap());
        let source = Source {
            label: "images".to_owned(),
            tree: Box::new(Changing { was, is }),
            images: Vec::new(),
            selected: Vec::new(),
            left_over: Vec::new(),
            failed_lookups: Vec::new(),
        };
        let digest = Digest::sha256_of(was);
        let blobs = [PlannedBlob {
            digest,
            size: was.len() as u64,
            source: 0,
            image: "x:1".to_owned(),
            other_sources: Default::default(),
        }];
        let (counts, bar, interrupt) = (ByteCounts::default(), ProgressBar::hidden(), Interrupt::default());
        let disk = Path::new("disk");
        let copier = BlobCopier { disk, sink: &sink, cache: None, counts: &counts, bar: &bar, interrupt: &interrupt };
        copier.copy_all(&blobs, &[source]).map_err(|error| error.to_string())?;
        assert_eq!(counts.totals(), (was.len() as u64, 0));
        Ok(fs::read(folder.path().join("root").join(digest.blob_path())).unwrap())
    }

    #[test]
    fn source_that_changes_while_it_is_read_is_rejected() {
        assert_eq!(copied(b"content", b"content"), Ok(b"content".to_vec()));
        let path = Digest::sha256_of(b"content").blob_path();
        for (is, found) in [(&b"cont"[..], 4), (b"", 0), (b"content and more", 8)] {
            assert_eq!(
                copied(b"content", is).unwrap_err(),
                format!(
                    "cannot pack images: image x:1: {path} gave {found} bytes, and 7 are expected; does something write to it?"
                )
            );
        }
        let (expected, found) = (Digest::sha256_of(b"content"), Digest::sha256_of(b"another"));
        assert_eq!(
            copied(b"content", b"another").unwrap_err(),
            format!("cannot pack images: image x:1: {path} has the content of {found}; {expected} is expected")
        );
    }
}
