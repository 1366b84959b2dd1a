//! Checks blobs against their digests. A blob sent as a whole is hashed while it is sent, and its last chunk is held back until the digest
//! is known to be right. A blob of which only ranges are requested is read and hashed first, once.

use std::io;
use std::sync::Arc;

use super::blob_reader::BlobReader;
use super::body::OpenBlob;
use super::disk_calls::read_exact_at;
use super::disk_errors::wrong_digest;
use super::snapshot::Snapshot;
use crate::disk::catalog::{Blob, BlobId};
use crate::oci::{Digest, Hasher};
use crate::registry::http::error::RegistryError;
use crate::registry::http::range::{ByteRange, Ranges};
use crate::registry::limits::VERIFIED_AT_ONCE;

impl BlobReader {
    /// Returns the digest that the body must check while it is sent. `None` if nothing is left to check: digests are not checked, or the
    /// blob is already verified.
    ///
    /// # Errors
    /// Fails with 500 if the digest is wrong or the blob cannot be read.
    pub(crate) async fn verify(
        &self,
        snapshot: &Snapshot,
        id: BlobId,
        blob: Blob<'_>,
        ranges: &Ranges,
        opened: &OpenBlob,
    ) -> Result<Option<Digest>, RegistryError> {
        let is_whole = match ranges {
            _ if !self.verify => return Ok(None),
            Ranges::Whole => true,
            Ranges::One(range) => *range == ByteRange::whole(blob.size),
            Ranges::Many(_) => false,
            Ranges::Unsatisfiable | Ranges::TooMany => return Ok(None),
        };
        // An empty blob has no last chunk to hold back.
        if is_whole && blob.size > 0 {
            return Ok(Some(blob.digest));
        }
        // Several requests may need the same blob. The first one reads it.
        let _turn = opened.disk.verification_turn().await.map_err(|error| self.disk_failed(snapshot, blob, &error))?;
        if snapshot.is_verified(id) {
            return Ok(None);
        }
        match self.hash(opened, blob).await {
            Ok(found) if found == blob.digest => {
                snapshot.set_verified(id);
                Ok(None)
            }
            Ok(found) => Err(self.disk_failed(snapshot, blob, &wrong_digest(&found))),
            Err(error) => Err(self.disk_failed(snapshot, blob, &error)),
        }
    }

    async fn hash(&self, opened: &OpenBlob, blob: Blob<'_>) -> io::Result<Digest> {
        let (mut hasher, mut left) = (Hasher::new(blob.digest.algorithm()), ByteRange::whole(blob.size));
        while !left.is_empty() {
            let (file, offset) = (Arc::clone(&opened.file), left.start());
            let count = usize::try_from(left.len()).map_or(VERIFIED_AT_ONCE, |left| left.min(VERIFIED_AT_ONCE));
            let read = opened.disk.run(self.timeout, move || {
                let mut chunk = vec![0; count];
                read_exact_at(&file, &mut chunk, offset)?;
                hasher.update(&chunk);
                Ok(hasher)
            });
            hasher = read.await?;
            left.advance(count as u64).ok_or(io::ErrorKind::InvalidInput)?;
        }
        Ok(hasher.finish())
    }
}
