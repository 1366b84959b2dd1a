//! What is served at present: disks as one store, and what follows from them alone. It never changes; where disks come or go another
//! takes its place, and a request has the same one from its head to its end.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::manifest_cache::Kept;
use super::store::{Disk, Store};
use crate::disk::catalog::BlobId;
use crate::oci::{Digest, Repository};
use crate::registry::api::route;
use crate::registry::telemetry::metrics::Places;

/// A store being served.
#[derive(Debug)]
pub struct Holdings {
    store: Store,
    /// Upstream hosts that repositories of the store are filed under.
    pub(crate) upstreams: HashSet<String>,
    /// Small manifests in memory.
    pub(crate) kept: Kept,
    /// Where each repository's bytes are counted.
    pub(crate) places: Places,
    /// The blobs whose bytes were seen to be right; empty where nobody looks.
    verified: Box<[AtomicBool]>,
}

impl Holdings {
    /// What follows from `store`. With `verify` it remembers which blobs are right.
    #[must_use]
    pub fn new(store: Store, verify: bool) -> Self {
        let catalog = store.catalog();
        let names = catalog.repositories().filter_map(|id| catalog.repository_name(id).parse::<Repository>().ok());
        let upstreams = names.filter_map(|name| name.host().map(str::to_owned)).collect();
        let places = Places::new(catalog.repositories().len());
        let remembered = if verify { store.blobs() } else { 0 };
        let verified = (0..remembered).map(|_| AtomicBool::default()).collect();
        Self { store, upstreams, kept: Kept::default(), places, verified }
    }

    /// The disks and their catalog.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The upstream hosts that repositories are filed under, and the other names by which clients reach those.
    pub fn upstreams(&self) -> impl Iterator<Item = String> {
        let aliases =
            route::aliases().filter(|(_, upstream)| self.upstreams.contains(*upstream)).map(|(alias, _)| alias.to_owned());
        self.upstreams.iter().cloned().chain(aliases)
    }

    /// The disk that a blob is on.
    pub(crate) fn disk_of(&self, digest: &Digest) -> Option<&Arc<Disk>> {
        self.store.disk_of(digest)
    }

    /// Whether the blob's bytes were right when somebody looked.
    pub(crate) fn is_verified(&self, blob: BlobId) -> bool {
        self.verified.get(blob.number()).is_some_and(|seen| seen.load(Ordering::Relaxed))
    }

    /// Remembers that the blob's bytes are right.
    pub(crate) fn verified(&self, blob: BlobId) {
        self.verified.get(blob.number()).into_iter().for_each(|seen| seen.store(true, Ordering::Relaxed));
    }
}
