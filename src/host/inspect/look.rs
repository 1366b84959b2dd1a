//! The look at a disk that every command takes before it uses one, so that all of them refuse the same damaged disks with the same words.
//!
//! It reads index.json, the manifests, the configs of images and the catalog, compares them, and finds each blob with its size. It reads
//! no layers.

use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::iter::successors;
use std::path::Path;

use super::contents::{Blob, BlobFault, Contents, ContentsError, read_fault};
use super::document::Finding;
use super::reader::{Disk, DiskError};
use super::{findings, verify};
use crate::disk::catalog::Catalog;
use crate::disk::erofs::ErofsError;
use crate::disk::layout::Tree;
use crate::host::support::interrupt::Interrupt;
use crate::registry::content::store::{self, LoadedCatalog, StoreError};
use crate::text::chain;

/// What a look at a disk finds.
pub struct Look {
    /// What the disk holds, with the faults of blobs.
    pub contents: Contents,
    /// The catalog on the disk; `None` if it has none.
    pub catalog: Option<Catalog>,
    /// How the catalog differs from index.json and the manifests.
    pub differences: Vec<String>,
}

impl Look {
    /// Looks at the disk in `tree`.
    ///
    /// # Errors
    /// Fails if index.json or the catalog cannot be read, the file system is unsupported, or after a signal.
    pub fn new(tree: &dyn Tree, interrupt: &Interrupt) -> Result<Self, DamageError> {
        let mut contents = Contents::read(tree, interrupt)?;
        sizes(tree, &mut contents, interrupt)?;
        // Loaded last, when the memory for reading the index is free again.
        let catalog = store::load_catalog(tree)?;
        let differences = catalog.as_ref().map(|catalog| verify::catalog(catalog, &contents, interrupt));
        let differences = differences.transpose().map_err(ContentsError::from)?.unwrap_or_default();
        Ok(Self { contents, catalog, differences })
    }

    /// The catalog by which the disk is served. One without a catalog gets it from the manifests. Then images may lack layers, and indexes
    /// manifests, if `allow_missing` permits that.
    ///
    /// # Errors
    /// Fails with the first fault.
    pub fn served(&mut self, tree: &dyn Tree, allow_missing: bool) -> Result<LoadedCatalog, DamageError> {
        let contents = &self.contents;
        // An image cannot lack its root.
        let roots: HashSet<u32> = contents.roots.iter().filter_map(|root| root.blobs.first().copied()).collect();
        let may_lack =
            |(number, fault): &(u32, BlobFault)| self.catalog.is_none() && fault.is_missing() && !roots.contains(number);
        if let Some(fault) = contents.faults.iter().find(|fault| !(allow_missing && may_lack(fault))) {
            let first = findings(contents, std::slice::from_ref(fault), &[]);
            return Err(DamageError::fault(first, may_lack(fault)));
        }
        if let difference @ [_, ..] = self.differences.as_slice() {
            return Err(DamageError::fault(findings(contents, &[], difference), false));
        }
        match self.catalog.take() {
            Some(catalog) => Ok(LoadedCatalog { catalog, missing: Vec::new(), left_over: Vec::new() }),
            None => Ok(store::read_catalog(tree, allow_missing)?),
        }
    }

    /// Why the images of a layout without a catalog cannot be served together, if no blob has a fault.
    pub fn conflict(&self, tree: &dyn Tree) -> Option<Finding> {
        if self.catalog.is_some() || !self.contents.faults.is_empty() {
            return None;
        }
        let error = store::read_catalog(tree, false).err()?;
        Some(Finding { kind: "catalog", blob: None, images: Vec::new(), message: chain(&error) })
    }
}

/// Compares the size of each blob that was not read yet with its descriptor.
fn sizes(tree: &dyn Tree, contents: &mut Contents, interrupt: &Interrupt) -> Result<(), ContentsError> {
    for (number, Blob { digest, size, checked, .. }) in (0..).zip(&mut contents.blobs) {
        if *checked {
            continue;
        }
        interrupt.check()?;
        let path = digest.blob_path();
        let fault = match tree.open(&path) {
            Ok(file) if file.size == *size => continue,
            Ok(file) => BlobFault::Size { expected: *size, found: file.size },
            Err(error) => read_fault(error).map_err(|source| ContentsError::Unsupported { path, source })?,
        };
        *checked = true;
        contents.faults.push((number, fault));
    }
    Ok(())
}

/// Why a disk cannot be used. The messages do not name its path, and are the same for all commands.
#[derive(Debug, thiserror::Error)]
pub enum DamageError {
    /// The disk cannot be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The layout is invalid.
    #[error(transparent)]
    Contents(#[from] ContentsError),
    /// The catalog cannot be read, or the images cannot be served together.
    #[error(transparent)]
    Catalog(#[from] StoreError),
    /// A blob is missing or damaged, or the catalog disagrees.
    #[error("{message}; `localregistry inspect --verify` lists all faults")]
    Fault {
        /// The first fault.
        message: String,
        /// Whether it is missing content that `--allow-missing` may permit.
        is_missing: bool,
    },
}

impl DamageError {
    fn fault(findings: Vec<Finding>, is_missing: bool) -> Self {
        let message = findings.into_iter().next().map(|finding| finding.message).unwrap_or_default();
        Self::Fault { message, is_missing }
    }

    /// Whether it is missing content that `--allow-missing` may permit.
    #[must_use]
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::Fault { is_missing: true, .. })
    }

    /// Whether the disk may be whole, but is stored in a way that only Linux reads, such as a compressed EROFS, or is nearly all holes, such
    /// as one with a large layer of zeros.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        if matches!(self, Self::Disk(DiskError::Holes(_))) {
            return true;
        }
        successors(Some(self as &(dyn Error + 'static)), |error: &&(dyn Error + 'static)| (*error).source()).any(|error| {
            let by_kind = error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::Unsupported);
            by_kind || error.downcast_ref::<ErofsError>().is_some_and(ErofsError::is_unsupported)
        })
    }
}

/// A disk without faults.
pub struct CheckedDisk {
    /// The open disk.
    pub disk: Disk,
    /// What it holds.
    pub contents: Contents,
    /// The catalog by which it is served.
    pub served: LoadedCatalog,
}

impl CheckedDisk {
    /// Opens the disk, layout or archive at `path`, and looks at it. See [`Look::served`] for `allow_missing`.
    ///
    /// # Errors
    /// Fails with the first fault, or after a signal.
    pub fn open(path: &Path, allow_missing: bool, interrupt: &Interrupt) -> Result<Self, DamageError> {
        let _only_reads = interrupt.end_at_once("");
        let disk = Disk::open(path, interrupt)?;
        let tree = disk.tree.as_ref();
        let mut look = Look::new(tree, interrupt)?;
        let served = look.served(tree, allow_missing)?;
        Ok(Self { contents: look.contents, served, disk })
    }
}
