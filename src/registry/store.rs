//! The content behind the registry: a folder that is an image layout, and its catalog. Read-only: nothing here can write.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::path::Path;

use bytes::Bytes;

use super::catalog::{self, Blob, Catalog, CatalogError};
use super::layout::{self, Directory, LayoutError, Reading};
use crate::oci::Repository;

/// Where images of a plain layout that have no repository's name are filed.
pub const UNNAMED: &str = "image";

/// Largest catalog that is loaded, in bytes.
const MAX_CATALOG: u64 = 1 << 30;
/// Bytes that are read to see whether the disk answers: one page.
const PROBED: usize = 4096;

/// Why a folder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be opened.
    #[error("cannot open {path}; the folder of an OCI image layout is expected")]
    Open {
        /// The folder.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The catalog is there and cannot be read.
    #[error("cannot read {} of {size} bytes", catalog::PATH)]
    Read {
        /// Bytes that it has.
        size: u64,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The catalog is damaged, or of another version.
    #[error("{}", catalog::PATH)]
    Catalog(#[from] CatalogError),
    /// There is no catalog, and the layout is wrong.
    #[error("{} is not there, and the layout cannot be read without it", catalog::PATH)]
    Layout(#[from] LayoutError),
}

/// An open layout and its catalog.
#[derive(Debug)]
pub struct Store {
    root: Directory,
    catalog: Catalog,
}

impl Store {
    /// Opens the layout at `path`: with its catalog where it has one (then no blob is opened), else by walking its manifests.
    ///
    /// # Errors
    /// [`StoreError`], where the folder is no layout that can be served.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let root = Directory::open(path).map_err(|cause| StoreError::Open { path: path.display().to_string(), cause })?;
        let catalog = match root.file(catalog::PATH) {
            Ok((file, size)) => load(file, size)?,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => walk(&root)?,
            Err(cause) => return Err(StoreError::Read { size: 0, cause }),
        };
        Ok(Self { root, catalog })
    }

    /// The catalog.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// How many tags there are.
    #[must_use]
    pub fn images(&self) -> usize {
        self.catalog.tag_count()
    }

    /// How many distinct blobs there are.
    #[must_use]
    pub fn blobs(&self) -> usize {
        self.catalog.blob_totals().0
    }

    /// Size of all blobs together, in bytes.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        self.catalog.blob_totals().1
    }

    /// Reads a little of the largest blob from the disk itself, whatever of it the kernel remembers.
    ///
    /// # Errors
    /// As of [`Store::open_blob`] and of reading.
    pub fn probe(&self) -> io::Result<()> {
        let Some(blob) = self.catalog.largest_blob() else { return Ok(()) };
        let mut file = self.open_blob(blob)?;
        let mut some = [0; PROBED];
        // What does not forget its pages, such as a file system in memory, is read from there.
        rustix::fs::fadvise(&file, 0, NonZeroU64::new(PROBED as u64), rustix::fs::Advice::DontNeed)?;
        file.read(&mut some).map(|_| ())
    }

    /// Opens a blob's content where that cannot block: where the file's path is in the kernel's cache.
    ///
    /// # Errors
    /// `WouldBlock`, where the disk must be asked; else as [`Store::open_blob`].
    pub fn open_cached(&self, blob: Blob<'_>) -> io::Result<File> {
        checked(self.root.file_cached(&blob.digest.blob_path()), blob.size)
    }

    /// Opens a blob's content.
    ///
    /// # Errors
    /// As of opening a file; also where the file has another size than the catalog says.
    pub fn open_blob(&self, blob: Blob<'_>) -> io::Result<File> {
        checked(self.root.file(&blob.digest.blob_path()), blob.size)
    }
}

fn checked(opened: io::Result<(File, u64)>, expected: u64) -> io::Result<File> {
    let (file, found) = opened?;
    if found != expected {
        return Err(io::Error::other(format!("the file has {found} bytes, and the catalog says {expected}")));
    }
    Ok(file)
}

fn load(mut file: File, size: u64) -> Result<Catalog, StoreError> {
    if size > MAX_CATALOG {
        let cause = io::Error::other(format!("at most {MAX_CATALOG} bytes are expected"));
        return Err(StoreError::Read { size, cause });
    }
    let mut encoded = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    file.read_to_end(&mut encoded).map_err(|cause| StoreError::Read { size, cause })?;
    Ok(Catalog::decode(Bytes::from(encoded))?)
}

fn walk(root: &Directory) -> Result<Catalog, StoreError> {
    let unnamed: Option<Repository> = UNNAMED.parse().ok();
    let images = layout::images(root, Reading { unnamed: unnamed.as_ref(), verify: false, lenient: false })?;
    Ok(layout::catalog(&images)?)
}
