//! Lists the images of disks for a bundle, without mounting them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::disk::catalog::{self, Catalog, CatalogConflict, ConflictKind};
use crate::host::inspect::reader::{Disk, DiskError};
use crate::host::inspect::verify::{self, DamageError};
use crate::host::support::interrupt::Interrupt;
use crate::oci::{Host, ImageName, Repository};
use crate::registry::content::store::{self, StoreError};

/// What a bundle needs to know about disks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskImages {
    /// Hosts in the names of images.
    pub upstreams: BTreeSet<Host>,
    /// The tagged images, sorted by name.
    pub images: Vec<ImageName>,
}

/// Why the images of disks cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum DiskImagesError {
    /// The disk or folder cannot be opened.
    #[error("cannot list the images of {}", .path.display())]
    Disk {
        /// The disk.
        path: PathBuf,
        /// The cause.
        source: DiskError,
    },
    /// It has no valid catalog or layout.
    #[error("cannot list the images of {}", .path.display())]
    Index {
        /// The disk.
        path: PathBuf,
        /// The cause.
        source: StoreError,
    },
    /// A manifest or the catalog is damaged.
    #[error("cannot list the images of {}", .path.display())]
    Damaged {
        /// The disk.
        path: PathBuf,
        /// The cause.
        source: DamageError,
    },
    /// Two disks disagree.
    #[error("{about} is {} on {}, and {} on {}; expected the same, or it on one of them", one.1, one.0.display(), other.1, other.0.display())]
    Conflict {
        /// What they disagree about.
        about: ConflictKind,
        /// The first disk, and its value.
        one: (PathBuf, String),
        /// The second disk, and its value.
        other: (PathBuf, String),
    },
}

/// Lists the images of the disks or layouts at `paths`.
///
/// # Errors
/// Fails if a disk cannot be read, or if two disks disagree.
pub fn disk_images(paths: &[PathBuf]) -> Result<DiskImages, DiskImagesError> {
    let catalogs = paths.iter().map(|path| catalog_of(path)).collect::<Result<Vec<_>, _>>()?;
    if let [catalog] = catalogs.as_slice() {
        return Ok(named(catalog));
    }
    let merged = catalog::merge(&catalogs.iter().collect::<Vec<_>>());
    let (catalog, _) = merged.map_err(|CatalogConflict { kind: about, first: one, second: other }| {
        let named = |(index, value): (usize, String)| (paths.get(index).cloned().unwrap_or_default(), value);
        DiskImagesError::Conflict { about, one: named(one), other: named(other) }
    })?;
    Ok(named(&catalog))
}

/// The catalog of a disk in any form. Missing content does not matter here.
fn catalog_of(path: &Path) -> Result<Catalog, DiskImagesError> {
    let interrupt = Interrupt::of_process();
    let disk = Disk::open(path, &interrupt).map_err(|source| DiskImagesError::Disk { path: path.to_owned(), source })?;
    let loaded = store::read_catalog(disk.tree.as_ref(), true);
    let loaded = loaded.map_err(|source| DiskImagesError::Index { path: path.to_owned(), source })?;
    verify::names(disk.tree.as_ref(), &interrupt).map_err(|source| DiskImagesError::Damaged { path: path.to_owned(), source })?;
    Ok(loaded.catalog)
}

fn named(catalog: &Catalog) -> DiskImages {
    let mut contents = DiskImages::default();
    for id in catalog.repositories() {
        let Ok(repository) = catalog.repository_name(id).parse::<Repository>() else { continue };
        contents.upstreams.extend(repository.host().and_then(|host| host.parse().ok()));
        let tags = catalog.tags_after(id, None).filter_map(|(tag, _)| tag.parse().ok());
        contents.images.extend(tags.map(|tag| ImageName { repository: repository.clone(), tag: Some(tag), digest: None }));
    }
    contents
}
