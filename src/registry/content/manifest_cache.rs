//! Small manifests, kept in memory from their first request on, with the head of their response: half of a pull's requests are for
//! them. Nothing is ever taken out, so a look-up takes no lock, and an answer does not depend on the disk any more: content goes by
//! its digest, which was checked when it was kept. Whether the disk is well is for `/healthz` to say.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::HeaderMap;

use crate::disk::catalog::{Blob, BlobId};
use crate::oci::{Digest, Hasher};
use crate::registry::limits::{KEPT, KEPT_MANIFEST};

/// Places in the table: twice as many as are ever taken, so that a search is short.
const PLACES: usize = 2 * KEPT;

/// Manifests in memory.
#[derive(Debug)]
pub(crate) struct Kept {
    /// An open-addressed table: a manifest is in the first free place from its own on.
    places: Box<[OnceLock<Manifest>]>,
    taken: AtomicUsize,
}

/// A manifest in memory.
#[derive(Debug)]
pub struct Manifest {
    blob: BlobId,
    /// The bytes.
    pub content: Bytes,
    /// The head of a response with the whole of it.
    pub head: HeaderMap,
}

impl Default for Kept {
    fn default() -> Self {
        Self { places: (0..PLACES).map(|_| OnceLock::new()).collect(), taken: AtomicUsize::default() }
    }
}

impl Kept {
    /// The manifest, where it is kept.
    pub fn get(&self, blob: BlobId) -> Option<&Manifest> {
        self.from(blob).map_while(OnceLock::get).find(|manifest| manifest.blob == blob)
    }

    /// Whether a manifest that is not kept yet would be.
    pub fn takes(&self, blob: &Blob<'_>) -> bool {
        blob.manifest.is_some() && blob.size <= KEPT_MANIFEST && self.taken.load(Ordering::Relaxed) < KEPT
    }

    /// Keeps a manifest, unless another request has done it or there is no room any more.
    pub fn keep(&self, blob: BlobId, content: Vec<u8>, head: HeaderMap) {
        if self.taken.fetch_add(1, Ordering::Relaxed) >= KEPT {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let mut manifest = Manifest { blob, content: content.into(), head };
        for place in self.from(blob) {
            match place.set(manifest) {
                Ok(()) => return,
                Err(back) if place.get().is_some_and(|there| there.blob != blob) => manifest = back,
                Err(_) => break,
            }
        }
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }

    /// Every place, from the blob's own on.
    fn from(&self, blob: BlobId) -> impl Iterator<Item = &OnceLock<Manifest>> {
        let (before, after) = self.places.split_at(blob.number() % PLACES);
        after.iter().chain(before)
    }
}

/// The content of a manifest, and the digest that it has.
///
/// # Errors
/// As of reading; also where the file is shorter than the catalog says.
pub(crate) fn read(file: &File, digest: Digest, size: u64) -> io::Result<(Vec<u8>, Digest)> {
    let mut content = vec![0; usize::try_from(size).unwrap_or_default()];
    file.read_exact_at(&mut content, 0)?;
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(&content);
    Ok((content, hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> BlobId {
        BlobId::from_number(number)
    }

    fn blob(content: &[u8], manifest: Option<&'static str>) -> Blob<'static> {
        Blob { digest: Digest::sha256_of(content), size: content.len() as u64, manifest }
    }

    #[test]
    fn what_is_kept_is_found_again_and_nothing_else_is() {
        let kept = Kept::default();
        // Two that have the same place, and one that has the next.
        for number in [3, 3 + PLACES as u32, 4] {
            kept.keep(id(number), number.to_le_bytes().to_vec(), HeaderMap::new());
        }
        for number in [3, 3 + PLACES as u32, 4] {
            assert_eq!(kept.get(id(number)).unwrap().content, &number.to_le_bytes()[..]);
        }
        assert!(kept.get(id(5)).is_none() && kept.get(id(3 + 2 * PLACES as u32)).is_none());
        kept.keep(id(3), b"again".to_vec(), HeaderMap::new());
        assert_eq!(kept.get(id(3)).unwrap().content, &3_u32.to_le_bytes()[..], "the first one stays");
        assert_eq!(kept.taken.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn so_many_are_kept_and_no_more() {
        let kept = Kept::default();
        let small = blob(b"small", Some("type"));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for number in 0..2 * KEPT as u32 {
                        kept.keep(id(number * 7), vec![1], HeaderMap::new());
                    }
                });
            }
        });
        let there = (0..2 * KEPT as u32).filter(|number| kept.get(id(number * 7)).is_some()).count();
        assert_eq!((there, kept.places.iter().filter(|place| place.get().is_some()).count()), (KEPT, KEPT));
        assert!(!kept.takes(&small) && Kept::default().takes(&small));
    }

    #[test]
    fn only_small_manifests_are_kept() {
        let kept = Kept::default();
        let of_size = |size| Blob { size, ..blob(b"", Some("type")) };
        assert_eq!([KEPT_MANIFEST, KEPT_MANIFEST + 1].map(|size| kept.takes(&of_size(size))), [true, false]);
        assert!(!kept.takes(&blob(b"small", None)), "a blob");
    }

    #[test]
    fn what_is_read_comes_with_the_digest_that_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifest");
        let file = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            File::open(&path).unwrap()
        };
        let right = Digest::sha256_of(b"right");
        assert_eq!(read(&file(b"right"), right, 5).unwrap(), (b"right".to_vec(), right));
        assert_eq!(read(&file(b"wrong"), right, 5).unwrap(), (b"wrong".to_vec(), Digest::sha256_of(b"wrong")));
        assert_eq!(read(&file(b"cut"), right, 5).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
