//! Every blob from its source to the disk, on all processors. Each byte is read once: what is hashed is what is written, so that a
//! source that changes meanwhile is noticed or makes no difference. A blob that the cache has is taken from there and not hashed again.
//! Sources are only read.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use indicatif::ProgressBar;

use super::cache::{Cache, CacheError};
use super::image_set::Wanted;
use super::sink::Target;
use super::source::Source;
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::oci::{Digest, Hasher};

/// Bytes read at once.
const CHUNK: usize = 1 << 20;
static ZEROS: [u8; CHUNK] = [0; CHUNK];
/// Bytes that the kernel copies between two looks for a signal.
const STRIDE: u64 = 32 << 20;

/// Why the content is not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A blob cannot be read.
    #[error("cannot pack {}: image {image}: cannot read {path}, of {size} bytes", source_path.display())]
    Read {
        /// The source.
        source_path: PathBuf,
        /// An image that has the blob.
        image: String,
        /// Where the blob is in the source.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// Why not.
        source: io::Error,
    },
    /// A blob is not as long as it was.
    #[error(
        "cannot pack {}: image {image}: {path} gave {found} bytes, and {expected} are expected; \
         does something write to it?",
        source_path.display()
    )]
    Size {
        /// The source.
        source_path: PathBuf,
        /// An image that has the blob.
        image: String,
        /// Where the blob is in the source.
        path: String,
        /// Its size in bytes.
        expected: u64,
        /// What was read, at least.
        found: u64,
    },
    /// A blob's content does not have the digest that names it.
    #[error("cannot pack {}: image {image}: {path} has the content of {found}; {expected} is expected", source_path.display())]
    Digest {
        /// The source.
        source_path: PathBuf,
        /// An image that has the blob.
        image: String,
        /// Where the blob is in the source.
        path: String,
        /// Its digest.
        expected: Digest,
        /// The digest of what it holds.
        found: Digest,
    },
    /// A file of the disk's content cannot be written.
    #[error("cannot write {file} into the working folder beside {}", disk.display())]
    Write {
        /// The file, as it will be on the disk.
        file: String,
        /// The disk that is being made.
        disk: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The cache's side.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A signal came.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Where the copied bytes came from.
#[derive(Debug, Default)]
pub struct Counts {
    /// Bytes read from sources, and hashed.
    pub read: AtomicU64,
    /// Bytes taken from the cache.
    pub cached: AtomicU64,
}

impl Counts {
    /// Both, read first.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.cached.load(Ordering::Relaxed))
    }
}

/// The copying of one pack.
#[derive(Debug, Clone, Copy)]
pub struct Copying<'a> {
    /// The disk, for messages.
    pub disk: &'a Path,
    /// Where the content goes.
    pub target: &'a Target,
    /// Blobs verified before.
    pub cache: Option<&'a Cache>,
    /// Counts every byte.
    pub counts: &'a Counts,
    /// Shows them.
    pub bar: &'a ProgressBar,
    /// Ends it.
    pub interrupt: &'a Interrupt,
}

/// On which side a copy failed.
enum Fault {
    Read(io::Error),
    Write(io::Error),
    Keep(io::Error),
}

impl Copying<'_> {
    /// Copies every blob out of its source, and holds each against its digest and size.
    ///
    /// # Errors
    /// [`CopyError`], of the first blob in the order of work that fails.
    pub fn all(&self, blobs: &[Wanted], sources: &[Source]) -> Result<(), CopyError> {
        // The largest first, so that no processor is left with a long one at the end.
        let mut work: Vec<(usize, &Wanted)> = blobs.iter().enumerate().collect();
        work.sort_by_key(|(_, wanted)| std::cmp::Reverse(wanted.size));
        let next = AtomicUsize::new(0);
        let failure: Mutex<Option<(usize, CopyError)>> = Mutex::new(None);
        let worker = || {
            let mut buffer = vec![0; CHUNK];
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                let Some((number, wanted)) = work.get(turn) else { return };
                let Some(source) = sources.get(wanted.source) else { return };
                if let Err(error) = self.one(*number, wanted, source, &mut buffer) {
                    // No more is begun.
                    next.store(work.len(), Ordering::Relaxed);
                    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    if failure.as_ref().is_none_or(|(before, _)| turn < *before) {
                        *failure = Some((turn, error));
                    }
                    return;
                }
            }
        };
        let workers = thread::available_parallelism().map_or(1, NonZero::get).min(work.len());
        thread::scope(|scope| {
            (1..workers).for_each(|_| drop(scope.spawn(worker)));
            worker();
        });
        self.interrupt.check()?;
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, error)| Err(error))
    }

    fn one(&self, number: usize, wanted: &Wanted, source: &Source, buffer: &mut [u8]) -> Result<(), CopyError> {
        match self.cache {
            Some(cache) if self.take(cache, number, wanted)? => Ok(()),
            _ => self.read(number, wanted, source, buffer),
        }
    }

    /// Takes the blob from the cache, where it is there: linked, or copied by the kernel, which on some file systems copies nothing.
    fn take(&self, cache: &Cache, number: usize, wanted: &Wanted) -> Result<bool, CopyError> {
        let (digest, size, path) = (&wanted.digest, wanted.size, wanted.digest.blob_path());
        let Some(mut entry) = cache.find(digest, size)? else { return Ok(false) };
        let write_error = |source| self.write_error(&path, source);
        let linked = match self.target {
            Target::Folder(stage) => stage.link(&cache.path(digest), &path).map_err(write_error)?,
            Target::Image { .. } => false,
        };
        if linked {
            self.bar.inc(size);
        } else {
            let mut file = self.target.open(number, &path).map_err(write_error)?;
            let mut left = size;
            while left > 0 {
                self.interrupt.check()?;
                let copied = io::copy(&mut (&mut entry).take(left.min(STRIDE)), &mut file).map_err(write_error)?;
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

    fn read(&self, number: usize, wanted: &Wanted, source: &Source, buffer: &mut [u8]) -> Result<(), CopyError> {
        let layout_path = wanted.digest.blob_path();
        let (path, image, source_path) = (source.tree.display_path(&layout_path), wanted.image.clone(), source.path.clone());
        let (expected, size) = (wanted.digest, wanted.size);
        let mut kept = match self.cache {
            Some(cache) => cache.begin(&expected, size)?,
            None => None,
        };
        let mut hasher = Hasher::new(expected.algorithm());
        let mut found = 0_u64;
        let copied = (|| {
            let mut file = self.target.open(number, &layout_path).map_err(Fault::Write)?;
            // One byte more than there may be, to see whether there is one.
            let mut reader = source.tree.open(&layout_path).map_err(Fault::Read)?.reader.take(size.saturating_add(1));
            loop {
                self.interrupt.check_io().map_err(Fault::Read)?;
                let count = reader.read(buffer).map_err(Fault::Read)?;
                found = found.saturating_add(count as u64);
                if count == 0 || found > size {
                    // What is behind its place is another's.
                    return Ok(());
                }
                let part = buffer.get(..count).unwrap_or_default();
                hasher.update(part);
                if self.target.is_zeros() && ZEROS.get(..count) == Some(part) {
                    file.seek(SeekFrom::Current(count as i64)).map_err(Fault::Write)?;
                } else {
                    file.write_all(part).map_err(Fault::Write)?;
                }
                kept.iter_mut().try_for_each(|kept| kept.as_file_mut().write_all(part)).map_err(Fault::Keep)?;
                self.bar.inc(count as u64);
            }
        })();
        match (copied, self.cache) {
            (Err(Fault::Read(source)), _) => return Err(CopyError::Read { source_path, image, path, size, source }),
            (Err(Fault::Keep(source)), Some(cache)) => return Err(cache.keep_error(&expected, size, source).into()),
            (Err(Fault::Write(source) | Fault::Keep(source)), _) => return Err(self.write_error(&layout_path, source)),
            (Ok(()), _) if found != size => return Err(CopyError::Size { source_path, image, path, expected: size, found }),
            (Ok(()), _) => {}
        }
        let digest = hasher.finish();
        if digest != expected {
            return Err(CopyError::Digest { source_path, image, path, expected, found: digest });
        }
        self.counts.read.fetch_add(size, Ordering::Relaxed);
        match (self.cache, kept) {
            (Some(cache), Some(kept)) => Ok(cache.keep(kept, &expected, size)?),
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
    use crate::host::images::pack::staging::Stage;

    /// A source whose only blob had the content `was` when its size was looked at, and has `is` when it is read.
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
        let target = Target::Folder(Stage::new(folder.path().join("root")).unwrap());
        let source =
            Source { path: "images".into(), tree: Box::new(Changing { was, is }), images: Vec::new(), left_out: Vec::new() };
        let digest = Digest::sha256_of(was);
        let blobs = [Wanted { digest, size: was.len() as u64, source: 0, image: "x:1".to_owned(), also: Default::default() }];
        let (counts, bar, interrupt) = (Counts::default(), ProgressBar::hidden(), Interrupt::default());
        let disk = Path::new("disk");
        let copying = Copying { disk, target: &target, cache: None, counts: &counts, bar: &bar, interrupt: &interrupt };
        copying.all(&blobs, &[source]).map_err(|error| error.to_string())?;
        assert_eq!(counts.totals(), (was.len() as u64, 0));
        Ok(fs::read(folder.path().join("root").join(digest.blob_path())).unwrap())
    }

    #[test]
    fn a_source_that_changes_while_it_is_read_is_noticed() {
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
