//! Verifies blobs that several sources have. The disk gets one copy; the others are hashed here, so that a damaged source is
//! reported. The same file is read only once.

use std::collections::HashSet;
use std::io::{self, Read};

use super::cache::BlobCache;
use super::image_set::PlannedBlob;
use super::source::Source;
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::host::support::workers;
use crate::oci::{Digest, Hasher};

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Why a duplicate blob is rejected.
#[derive(Debug, thiserror::Error)]
pub enum DuplicateError {
    #[error("cannot pack {source_label}: image {image}: cannot read {path}, of {size} bytes")]
    Read { source_label: String, image: String, path: String, size: u64, source: io::Error },
    #[error("cannot pack {source_label}: image {image}: {path} has the content of {found}; {expected} is expected")]
    Digest { source_label: String, image: String, path: String, expected: Digest, found: Digest },
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Verifies every copy in `blobs` that is not the one to be packed. Skips blobs in `cache`, which are taken from no source.
///
/// # Errors
/// Fails with the first blob that cannot be read or does not match its digest.
pub fn check(
    blobs: &[PlannedBlob],
    sources: &[Source],
    cache: Option<&BlobCache>,
    interrupt: &Interrupt,
) -> Result<(), DuplicateError> {
    let is_cached =
        |blob: &&PlannedBlob| cache.is_some_and(|cache| cache.find(&blob.digest, blob.size).is_ok_and(|found| found.is_some()));
    let shared = blobs.iter().filter(|blob| !blob.other_sources.is_empty() && !is_cached(blob));
    let copies: Vec<(&PlannedBlob, &Source, &str)> = shared.flat_map(|blob| others(blob, sources)).collect();
    let verified = workers::each(&copies, |(blob, source, image)| verify(blob, source, image, interrupt));
    interrupt.check()?;
    verified
}

/// The other sources of a blob, each with an image that has it there. Sources that share the file are listed once.
fn others<'a>(blob: &'a PlannedBlob, sources: &'a [Source]) -> Vec<(&'a PlannedBlob, &'a Source, &'a str)> {
    let path = blob.digest.blob_path();
    let identity = |number: &usize| sources.get(*number).and_then(|source| source.tree.identity(&path));
    let mut read: HashSet<_> = identity(&blob.source).into_iter().collect();
    let unread = blob.other_sources.iter().filter(|(number, _)| identity(number).is_none_or(|identity| read.insert(identity)));
    unread.filter_map(|(number, image)| Some((blob, sources.get(*number)?, image.as_str()))).collect()
}

/// Hashes the copy of a blob in `source`.
fn verify(blob: &PlannedBlob, source: &Source, image: &str, interrupt: &Interrupt) -> Result<(), DuplicateError> {
    let (expected, size) = (blob.digest, blob.size);
    let layout_path = expected.blob_path();
    let (source_label, image, path) = (source.label.clone(), image.to_owned(), source.tree.display_path(&layout_path));
    let mut hasher = Hasher::new(expected.algorithm());
    let read = source.tree.open(&layout_path).and_then(|content| {
        // One extra byte detects a file that has grown.
        let mut reader = content.reader.take(size.saturating_add(1));
        let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK).saturating_add(1))];
        loop {
            let count = interrupt.read(&mut reader, &mut buffer)?;
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

    /// Two artifacts with the same content.
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
    fn copy_with_different_content_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let sources = sources(dir.path());
        let set = image_set::merge(&sources, false).unwrap();
        let check = || check(&set.blobs, &sources, None, &Interrupt::default()).map_err(|error| error.to_string());
        assert_eq!(check(), Ok(()));
        let path = dir.path().join("b");
        let expected = Digest::sha256_of(b"content");
        for content in ["Content", "content and more", "con"] {
            fs::write(&path, content).unwrap();
            let path = path.display();
            // At most one byte beyond the end is read.
            let found = Digest::sha256_of(&content.as_bytes()[..content.len().min(8)]);
            let message = format!("image test/b:1: {path} has the content of {found}; {expected} is expected");
            assert_eq!(check(), Err(format!("cannot pack {path}: {message}")));
        }
        // The same file is not compared with itself.
        fs::remove_file(&path).unwrap();
        fs::hard_link(dir.path().join("a"), &path).unwrap();
        fs::write(&path, "Content").unwrap();
        assert_eq!(check(), Ok(()));
    }
}
