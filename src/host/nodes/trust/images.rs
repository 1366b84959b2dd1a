//! Which images a disk has, as far as a bundle says so. A path enters, tagged names leave. Nothing is mounted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::disk::catalog::{self, Catalog, CatalogConflict, ConflictKind};
use crate::host::inspect::reader::{Disk, DiskError};
use crate::host::support::interrupt::Interrupt;
use crate::oci::{Host, ImageName, Repository};
use crate::registry::content::store::{self, StoreError};

/// What a bundle takes from a disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// Hosts that have images there.
    pub upstreams: BTreeSet<Host>,
    /// The tagged images, in order of their names.
    pub images: Vec<ImageName>,
}

/// Why it is not known what a disk has.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// The disk, or the folder, cannot be opened.
    #[error("cannot list the images of {}", .path.display())]
    Disk {
        /// The disk.
        path: PathBuf,
        /// Why not.
        source: DiskError,
    },
    /// It has no catalog and no layout that can be used.
    #[error("cannot list the images of {}", .path.display())]
    Index {
        /// The disk.
        path: PathBuf,
        /// Why not.
        source: StoreError,
    },
    /// Two disks.
    #[error("{about} is {} on {}, and {} on {}; expected the same, or it on one of them", one.1, one.0.display(), other.1, other.0.display())]
    Conflict {
        /// What they disagree on.
        about: ConflictKind,
        /// The one, and what it says.
        one: (PathBuf, String),
        /// The other, and what that says.
        other: (PathBuf, String),
    },
}

/// What the disks, or the layouts in folders, at `paths` have together.
///
/// # Errors
/// [`ContentsError`].
pub fn contents(paths: &[PathBuf]) -> Result<Contents, ContentsError> {
    let catalogs = paths.iter().map(|path| catalog_of(path)).collect::<Result<Vec<_>, _>>()?;
    if let [catalog] = catalogs.as_slice() {
        return Ok(named(catalog));
    }
    let merged = catalog::merge(&catalogs.iter().collect::<Vec<_>>());
    let (catalog, _) = merged.map_err(|CatalogConflict { kind: about, first: one, second: other }| {
        let named = |(place, said): (usize, String)| (paths.get(place).cloned().unwrap_or_default(), said);
        ContentsError::Conflict { about, one: named(one), other: named(other) }
    })?;
    Ok(named(&catalog))
}

/// What a disk of any form says that it has: what is missing is no matter here.
fn catalog_of(path: &Path) -> Result<Catalog, ContentsError> {
    let disk = Disk::open(path, &Interrupt::default());
    let disk = disk.map_err(|source| ContentsError::Disk { path: path.to_owned(), source })?;
    let index = store::read_catalog(disk.tree.as_ref(), true);
    index.map(|(catalog, _)| catalog).map_err(|source| ContentsError::Index { path: path.to_owned(), source })
}

fn named(catalog: &Catalog) -> Contents {
    let mut contents = Contents::default();
    for id in catalog.repositories() {
        let Ok(repository) = catalog.repository_name(id).parse::<Repository>() else { continue };
        contents.upstreams.extend(repository.host().and_then(|host| host.parse().ok()));
        let tags = catalog.tags_after(id, None).filter_map(|(tag, _)| tag.parse().ok());
        contents.images.extend(tags.map(|tag| ImageName { repository: repository.clone(), tag: Some(tag), digest: None }));
    }
    contents
}
