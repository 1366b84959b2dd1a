//! Content that several sources have: it is on the disk once, from one of them, and each of the others is held against its digest here, so
//! that no damaged source goes unnoticed. What is the same file is read once.

use std::collections::HashSet;
use std::io::{self, Read};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::cache::Cache;
use super::image_set::Wanted;
use super::source::Source;
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::oci::{Digest, Hasher};

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Why a source's content is not what another's is.
#[derive(Debug, thiserror::Error)]
pub enum DuplicateError {
    /// It cannot be read.
    #[error("cannot pack {source_label}: image {image}: cannot read {path}, of {size} bytes")]
    Read {
        /// The source.
        source_label: String,
        /// An image that has the blob there.
        image: String,
        /// Where the blob is in the source.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// Why not.
        source: io::Error,
    },
    /// It is damaged.
    #[error("cannot pack {source_label}: image {image}: {path} has the content of {found}; {expected} is expected")]
    Digest {
        /// The source.
        source_label: String,
        /// An image that has the blob there.
        image: String,
        /// Where the blob is in the source.
        path: String,
        /// Its digest.
        expected: Digest,
        /// The digest of what it holds.
        found: Digest,
    },
    /// A signal came.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Reads every blob of `blobs` in the sources that it is not taken from; none that is in `cache`, which is taken from no source.
///
/// # Errors
/// [`DuplicateError`], of the first blob that is not what its digest says.
pub fn check(blobs: &[Wanted], sources: &[Source], cache: Option<&Cache>, interrupt: &Interrupt) -> Result<(), DuplicateError> {
    let is_cached =
        |wanted: &&Wanted| cache.is_some_and(|cache| cache.find(&wanted.digest, wanted.size).is_ok_and(|found| found.is_some()));
    let shared = blobs.iter().filter(|wanted| !wanted.also.is_empty() && !is_cached(wanted));
    let work: Vec<(&Wanted, &Source, &str)> = shared.flat_map(|wanted| others(wanted, sources)).collect();
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<(usize, DuplicateError)>> = Mutex::new(None);
    let worker = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((wanted, source, image)) = work.get(number) else { return };
            let Err(error) = verify(wanted, source, image, interrupt) else { continue };
            // No more is begun.
            next.store(work.len(), Ordering::Relaxed);
            let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
            if failure.as_ref().is_none_or(|(before, _)| number < *before) {
                *failure = Some((number, error));
            }
            return;
        }
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(work.len());
    thread::scope(|scope| {
        (1..workers).for_each(|_| drop(scope.spawn(worker)));
        worker();
    });
    interrupt.check()?;
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, error)| Err(error))
}

/// The sources to read `wanted` in again, each with an image that has it there.
fn others<'a>(wanted: &'a Wanted, sources: &'a [Source]) -> Vec<(&'a Wanted, &'a Source, &'a str)> {
    let path = wanted.digest.blob_path();
    let identity = |number: &usize| sources.get(*number).and_then(|source| source.tree.identity(&path));
    let mut read: HashSet<_> = identity(&wanted.source).into_iter().collect();
    let unread = wanted.also.iter().filter(|(number, _)| identity(number).is_none_or(|identity| read.insert(identity)));
    unread.filter_map(|(number, image)| Some((wanted, sources.get(*number)?, image.as_str()))).collect()
}

/// Holds a blob of a source against its digest.
fn verify(wanted: &Wanted, source: &Source, image: &str, interrupt: &Interrupt) -> Result<(), DuplicateError> {
    let (expected, size) = (wanted.digest, wanted.size);
    let layout_path = expected.blob_path();
    let (source_label, image, path) =
        (source.path.display().to_string(), image.to_owned(), source.tree.display_path(&layout_path));
    let mut hasher = Hasher::new(expected.algorithm());
    let read = source.tree.open(&layout_path).and_then(|content| {
        // One byte more shows what has grown.
        let mut reader = content.reader.take(size.saturating_add(1));
        let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK).saturating_add(1))];
        loop {
            interrupt.check_io()?;
            let count = reader.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            hasher.update(buffer.get(..count).unwrap_or_default());
        }
    });
    if let Err(source) = read {
        return Err(DuplicateError::Read { source_label, image, path, size, source });
    }
    let found = hasher.finish();
    if found == expected { Ok(()) } else { Err(DuplicateError::Digest { source_label, image, path, expected, found }) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::host::images::pack::image_set;
    use crate::host::images::pack::request::{Origin, Request};

    /// Two artifacts of one content, opened.
    fn sources(folder: &Path) -> Vec<Source> {
        let open = |name: &str| {
            let file = folder.join(name);
            fs::write(&file, "content").unwrap();
            let mut request = Request::artifact(&format!("test/{name}:1=x")).unwrap();
            request.origin = Origin::Artifact { file, media_type: None };
            Source::open(&request, None, false, folder, &Interrupt::default()).unwrap()
        };
        vec![open("a"), open("b")]
    }

    #[test]
    fn a_source_that_changes_while_it_is_read_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let sources = sources(dir.path());
        let contents = image_set::unite(&sources, false).unwrap();
        let check = || check(&contents.blobs, &sources, None, &Interrupt::default()).map_err(|error| error.to_string());
        assert_eq!(check(), Ok(()));
        let path = dir.path().join("b");
        let expected = Digest::sha256_of(b"content");
        for content in ["Content", "content and more", "con"] {
            fs::write(&path, content).unwrap();
            let path = path.display();
            // No more is read than one byte behind the end.
            let found = Digest::sha256_of(&content.as_bytes()[..content.len().min(8)]);
            let message = format!("image test/b:1: {path} has the content of {found}; {expected} is expected");
            assert_eq!(check(), Err(format!("cannot pack {path}: {message}")));
        }
        // Once it is the same file, there is nothing to compare.
        fs::remove_file(&path).unwrap();
        fs::hard_link(dir.path().join("a"), &path).unwrap();
        fs::write(&path, "Content").unwrap();
        assert_eq!(check(), Ok(()));
    }
}
