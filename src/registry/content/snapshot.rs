//! The content served at one moment. A snapshot never changes: when disks come or go, another one replaces it. Each request uses one
//! snapshot from start to end.

use std::sync::atomic::{AtomicBool, Ordering};

use super::manifest_cache::ManifestCache;
use super::store::Store;
use crate::disk::catalog::BlobId;
use crate::registry::telemetry::metrics::RepositorySlots;

/// A store, with everything that is derived from it.
#[derive(Debug)]
pub struct Snapshot {
    store: Store,
    pub(crate) manifests: ManifestCache,
    pub(crate) repository_slots: RepositorySlots,
    /// By blob: whether its bytes match its digest. Empty if digests are not checked.
    verified: Box<[AtomicBool]>,
}

impl Snapshot {
    /// With `verify`, the snapshot records which blobs are verified.
    #[must_use]
    pub fn new(store: Store, verify: bool) -> Self {
        let repository_slots = RepositorySlots::new(store.catalog().repositories().len());
        let verified = (0..if verify { store.blobs() } else { 0 }).map(|_| AtomicBool::default()).collect();
        Self { store, manifests: ManifestCache::default(), repository_slots, verified }
    }

    /// The disks and their catalog.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether the blob is known to match its digest.
    pub(crate) fn is_verified(&self, blob: BlobId) -> bool {
        self.verified.get(blob.number()).is_some_and(|verified| verified.load(Ordering::Relaxed))
    }

    /// Records that the blob matches its digest.
    pub(crate) fn set_verified(&self, blob: BlobId) {
        self.verified.get(blob.number()).into_iter().for_each(|verified| verified.store(true, Ordering::Relaxed));
    }
}
