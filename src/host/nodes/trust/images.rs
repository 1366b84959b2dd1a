//! Lists the images of disks for a bundle, without mounting them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::disk::catalog::{self, Catalog, CatalogConflict, ConflictKind};
use crate::host::inspect::look::{CheckedDisk, DamageError};
use crate::host::support::interrupt::Interrupt;
use crate::oci::{Host, ImageName, Repository};

/// What a bundle needs to know about disks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskImages {
    /// Hosts in the names of images.
    pub upstreams: BTreeSet<Host>,
    /// The tagged images, sorted by name.
    pub images: Vec<ImageName>,
    /// The messages about entries of layouts that are left out.
    pub left_over: Vec<String>,
}

/// Why the images of disks cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum DiskImagesError {
    /// A disk cannot be used.
    #[error("cannot list the images of {}", .path.display())]
    Disk {
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

/// Lists the images of the disks or layouts at `paths`. With `allow_missing`, images of layouts without a catalog may lack layers.
///
/// # Errors
/// Fails if a disk cannot be read or is damaged, or if two disks disagree.
pub fn disk_images(paths: &[PathBuf], allow_missing: bool) -> Result<DiskImages, DiskImagesError> {
    let interrupt = Interrupt::of_process();
    let _only_reads = interrupt.end_at_once("");
    let mut left_over = Vec::new();
    let catalog = |path: &PathBuf| match CheckedDisk::open(path, allow_missing, &interrupt) {
        Ok(disk) => {
            left_over.extend(disk.contents.left_over_of(path));
            Ok(disk.served.catalog)
        }
        Err(source) => Err(DiskImagesError::Disk { path: path.clone(), source }),
    };
    let catalogs = paths.iter().map(catalog).collect::<Result<Vec<_>, _>>()?;
    Ok(DiskImages { left_over, ..DiskImages::new(paths, &catalogs)? })
}

impl DiskImages {
    /// Lists the images in the catalogs of the disks at `paths`.
    ///
    /// # Errors
    /// Fails if two disks disagree.
    pub fn new(paths: &[PathBuf], catalogs: &[Catalog]) -> Result<Self, DiskImagesError> {
        if let [catalog] = catalogs {
            return Ok(named(catalog));
        }
        let merged = catalog::merge(&catalogs.iter().collect::<Vec<_>>());
        let (catalog, _) = merged.map_err(|CatalogConflict { kind: about, first: one, second: other }| {
            let named = |(index, value): (usize, String)| (paths.get(index).cloned().unwrap_or_default(), value);
            DiskImagesError::Conflict { about, one: named(one), other: named(other) }
        })?;
        Ok(named(&catalog))
    }
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
