//! Opens and reads the blobs of a snapshot. Every disk error is counted and reported; the client only learns that the disk failed.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::{Instant, sleep};

use super::body::OpenBlob;
use super::disk_errors::wrong_digest;
use super::manifest_cache;
use super::snapshot::Snapshot;
use super::store::Disk;
use crate::disk::catalog::Blob;
use crate::oci::{Digest, MAX_MANIFEST_SIZE};
use crate::registry::http::error::RegistryError;
use crate::registry::limits::DESCRIPTOR_PAUSE;
use crate::registry::telemetry::log::Telemetry;

/// Opens and reads blobs.
#[derive(Debug)]
pub(crate) struct BlobReader {
    pub telemetry: Arc<Telemetry>,
    /// How long a disk may take to answer.
    pub timeout: Duration,
    /// Whether bytes are checked against their digests.
    pub verify: bool,
}

impl BlobReader {
    /// Opens a blob.
    ///
    /// # Errors
    /// Fails with 500 if the disk cannot open it.
    pub async fn open(&self, snapshot: &Snapshot, blob: Blob<'_>) -> Result<OpenBlob, RegistryError> {
        let disk = snapshot.store().disk_of(&blob.digest).ok_or(RegistryError::Disk)?;
        let deadline = Instant::now() + self.timeout;
        let mut opened = self.try_open(disk, blob).await;
        // The process has no file descriptor left. Other requests will end and free theirs.
        while opened.as_ref().is_err_and(is_out_of_descriptors) && Instant::now() < deadline {
            sleep(DESCRIPTOR_PAUSE).await;
            opened = self.try_open(disk, blob).await;
        }
        let file = opened.map_err(|error| self.disk_failed(snapshot, blob, &error))?;
        Ok(OpenBlob { file: Arc::new(file), disk: Arc::clone(disk) })
    }

    /// Reads a manifest, and returns its content with the digest of the content.
    ///
    /// # Errors
    /// Fails with 500 if the disk cannot read it, or if its digest is wrong and digests are checked.
    pub async fn read_manifest(&self, snapshot: &Snapshot, blob: Blob<'_>) -> Result<(Vec<u8>, Digest), RegistryError> {
        let OpenBlob { file, disk } = self.open(snapshot, blob).await?;
        let (digest, size) = (blob.digest, blob.size.min(MAX_MANIFEST_SIZE));
        match disk.run(self.timeout, move || manifest_cache::read(&file, digest, size)).await {
            Ok((_, found)) if self.verify && found != digest => Err(self.disk_failed(snapshot, blob, &wrong_digest(&found))),
            read => read.map_err(|error| self.disk_failed(snapshot, blob, &error)),
        }
    }

    /// Reports the error of a blob's disk. Returns the error for the client.
    pub fn disk_failed(&self, snapshot: &Snapshot, blob: Blob<'_>, error: &io::Error) -> RegistryError {
        self.telemetry.disk_failed(snapshot, &blob.digest, error);
        RegistryError::Disk
    }

    async fn try_open(&self, disk: &Arc<Disk>, blob: Blob<'_>) -> io::Result<File> {
        let (digest, size) = (blob.digest, blob.size);
        match disk.open_cached(&digest, size) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Unsupported) => {
                let opening = Arc::clone(disk);
                Box::pin(disk.run(self.timeout, move || opening.open_blob(&digest, size))).await
            }
            opened => opened,
        }
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}
