//! Bytes held against their digests, where that is asked for. All of a blob is hashed on its way out, and its last chunk held back
//! until the digest is known to be right; a blob of which a part is wanted is read and hashed first, once.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::body::Opened;
use super::disk_errors::wrong_digest;
use super::snapshot::Holdings;
use crate::disk::catalog::{Blob, BlobId};
use crate::oci::{Digest, Hasher};
use crate::registry::api::handler::Registry;
use crate::registry::http::error::RegistryError;
use crate::registry::http::range::{ByteRange, Ranges};
use crate::registry::limits::VERIFIED_AT_ONCE;

impl Registry {
    /// The digest that the body is to be held against, where all of the blob is wanted. Where a part is, the blob is seen to be right
    /// when this returns.
    ///
    /// # Errors
    /// 500, where it is not.
    pub(crate) async fn prove(
        &self,
        holdings: &Holdings,
        id: BlobId,
        blob: Blob<'_>,
        wanted: &Ranges,
        opened: &Opened,
    ) -> Result<Option<Digest>, RegistryError> {
        let whole = match wanted {
            Ranges::Whole => true,
            Ranges::One(range) => *range == ByteRange::whole(blob.size),
            Ranges::Many(_) => false,
            Ranges::Unsatisfiable | Ranges::TooMany => return Ok(None),
        };
        // Of nothing there is no last chunk to hold back.
        if whole && blob.size > 0 {
            return Ok(Some(blob.digest));
        }
        // Many ask for parts of one blob at once: one of them reads it.
        let _turn = opened.disk.proofs().await.map_err(|error| self.unreadable(holdings, blob, &error))?;
        if holdings.is_verified(id) {
            return Ok(None);
        }
        match self.hash(opened, blob).await {
            Ok(found) if found == blob.digest => {
                holdings.verified(id);
                Ok(None)
            }
            Ok(found) => Err(self.unreadable(holdings, blob, &wrong_digest(&found))),
            Err(error) => Err(self.unreadable(holdings, blob, &error)),
        }
    }

    /// The digest of all that the file has.
    async fn hash(&self, opened: &Opened, blob: Blob<'_>) -> io::Result<Digest> {
        let (mut hasher, mut left) = (Hasher::new(blob.digest.algorithm()), ByteRange::whole(blob.size));
        while !left.is_empty() {
            let (file, at) = (Arc::clone(&opened.file), left.start());
            let wanted = usize::try_from(left.len()).map_or(VERIFIED_AT_ONCE, |left| left.min(VERIFIED_AT_ONCE));
            let read = opened.disk.ask(self.limits.stall, move || {
                let mut chunk = vec![0; wanted];
                file.read_exact_at(&mut chunk, at)?;
                hasher.update(&chunk);
                Ok(hasher)
            });
            hasher = read.await?;
            left.advance(wanted as u64).ok_or(io::ErrorKind::InvalidInput)?;
        }
        Ok(hasher.finish())
    }
}
