//! Keeps small manifests in memory from their first request on, with the headers of their response: half of the requests of a pull are for
//! manifests.
//!
//! Nothing is evicted, so a lookup takes no lock. The digest is checked before a manifest is cached; a cached manifest is served even if its
//! disk fails later. `/healthz` reports the state of the disk.

use std::fs::File;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::HeaderMap;

use super::disk_calls::read_exact_at;
use crate::disk::catalog::{Blob, BlobId};
use crate::oci::{Digest, Hasher};
use crate::registry::limits::{CACHED_MANIFESTS, LARGEST_CACHED_MANIFEST};

/// Slots of the table. At most half of them are used, so a search is short.
const SLOTS: usize = 2 * CACHED_MANIFESTS;

/// The manifests in memory.
#[derive(Debug)]
pub(crate) struct ManifestCache {
    /// A hash table with open addressing and linear probing.
    slots: Box<[OnceLock<CachedManifest>]>,
    used: AtomicUsize,
}

/// A manifest in memory.
#[derive(Debug)]
pub(crate) struct CachedManifest {
    blob: BlobId,
    pub content: Bytes,
    /// The headers of a 200 response, without `Cache-Control`'s final value.
    pub headers: HeaderMap,
}

impl Default for ManifestCache {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| OnceLock::new()).collect(), used: AtomicUsize::default() }
    }
}

impl ManifestCache {
    /// The manifest, if it is cached.
    pub fn get(&self, blob: BlobId) -> Option<&CachedManifest> {
        self.probe(blob).map_while(OnceLock::get).find(|manifest| manifest.blob == blob)
    }

    /// Whether [`ManifestCache::insert`] would cache the blob: it is a small manifest, and the cache is not full.
    pub fn accepts(&self, blob: &Blob<'_>) -> bool {
        blob.manifest.is_some() && blob.size <= LARGEST_CACHED_MANIFEST && self.used.load(Ordering::Relaxed) < CACHED_MANIFESTS
    }

    /// Caches a manifest, unless another request did so already or the cache is full.
    pub fn insert(&self, blob: BlobId, content: Vec<u8>, headers: HeaderMap) {
        if self.used.fetch_add(1, Ordering::Relaxed) >= CACHED_MANIFESTS {
            self.used.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let mut manifest = CachedManifest { blob, content: content.into(), headers };
        for slot in self.probe(blob) {
            match slot.set(manifest) {
                Ok(()) => return,
                Err(rejected) if slot.get().is_some_and(|present| present.blob != blob) => manifest = rejected,
                Err(_) => break,
            }
        }
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    /// All slots in probing order, starting at the blob's own.
    fn probe(&self, blob: BlobId) -> impl Iterator<Item = &OnceLock<CachedManifest>> {
        let (before, after) = self.slots.split_at(blob.number() % SLOTS);
        after.iter().chain(before)
    }
}

/// Reads the content of a manifest. Returns it with its digest.
///
/// # Errors
/// Fails if the file cannot be read or has fewer than `size` bytes.
pub(crate) fn read(file: &File, digest: Digest, size: u64) -> io::Result<(Vec<u8>, Digest)> {
    let mut content = vec![0; usize::try_from(size).unwrap_or_default()];
    read_exact_at(file, &mut content, 0)?;
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
    fn cached_manifests_are_found_and_others_are_not() {
        let cache = ManifestCache::default();
        // Two manifests with the same slot, and one with the next slot.
        for number in [3, 3 + SLOTS as u32, 4] {
            cache.insert(id(number), number.to_le_bytes().to_vec(), HeaderMap::new());
        }
        for number in [3, 3 + SLOTS as u32, 4] {
            assert_eq!(cache.get(id(number)).unwrap().content, &number.to_le_bytes()[..]);
        }
        assert!(cache.get(id(5)).is_none() && cache.get(id(3 + 2 * SLOTS as u32)).is_none());
        cache.insert(id(3), b"again".to_vec(), HeaderMap::new());
        assert_eq!(cache.get(id(3)).unwrap().content, &3_u32.to_le_bytes()[..], "the first manifest stays");
        assert_eq!(cache.used.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn number_of_cached_manifests_is_limited() {
        let cache = ManifestCache::default();
        let small = blob(b"small", Some("type"));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for number in 0..2 * CACHED_MANIFESTS as u32 {
                        cache.insert(id(number * 7), vec![1], HeaderMap::new());
                    }
                });
            }
        });
        let found = (0..2 * CACHED_MANIFESTS as u32).filter(|number| cache.get(id(number * 7)).is_some()).count();
        assert_eq!((found, cache.slots.iter().filter(|slot| slot.get().is_some()).count()), (CACHED_MANIFESTS, CACHED_MANIFESTS));
        assert!(!cache.accepts(&small) && ManifestCache::default().accepts(&small));
    }

    #[test]
    fn only_small_manifests_are_cached() {
        let cache = ManifestCache::default();
        let of_size = |size| Blob { size, ..blob(b"", Some("type")) };
        assert_eq!(
            [LARGEST_CACHED_MANIFEST, LARGEST_CACHED_MANIFEST + 1].map(|size| cache.accepts(&of_size(size))),
            [true, false]
        );
        assert!(!cache.accepts(&blob(b"small", None)), "not a manifest");
    }

    #[test]
    fn read_returns_the_digest_of_the_content() {
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
