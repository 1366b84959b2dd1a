//! Which images a disk has, as far as a bundle says so. A path enters, tagged names leave. No blob is read, and nothing is mounted.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::host::tools::{Tool, ToolError};
use crate::oci::{Host, ImageName, Repository};
use crate::registry::catalog::{self, About, Catalog, CatalogError, Disagreement};
use crate::registry::layout::{self, Directory, LayoutError, Reading, Tree};

/// The program that knows where a file of an EROFS image lies.
const DUMP: Tool = Tool { name: "dump.erofs", package: "erofs-utils" };
/// Largest catalog, in bytes: that of a million images has about as many.
const LARGEST_CATALOG: u64 = 1 << 30;

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
    /// The file, or the folder.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The disk.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A disk without a catalog, or in a form that is not known.
    #[error(
        "cannot find {} on the disk {}; expected an EROFS disk as `localregistry pack` makes, or the folder of an image layout",
        catalog::PATH,
        .path.display()
    )]
    NoCatalog {
        /// The disk.
        path: PathBuf,
        /// What was tried.
        source: ToolError,
    },
    /// The program's answer.
    #[error("dump.erofs does not say where the catalog of the disk {} lies", .path.display())]
    Extents {
        /// The disk.
        path: PathBuf,
    },
    /// The catalog.
    #[error("the catalog of {} cannot be used", .path.display())]
    Catalog {
        /// The disk.
        path: PathBuf,
        /// Why not.
        source: CatalogError,
    },
    /// Two disks.
    #[error("{about} is {} on {}, and {} on {}; expected the same, or it on one of them", one.1, one.0.display(), other.1, other.0.display())]
    Conflict {
        /// What they disagree on.
        about: About,
        /// The one, and what it says.
        one: (PathBuf, String),
        /// The other, and what that says.
        other: (PathBuf, String),
    },
    /// The layout.
    #[error("{} is no image layout that can be served", .path.display())]
    Layout {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: Box<LayoutError>,
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
    let (catalog, _) = merged.map_err(|Disagreement { about, one, other }| {
        let named = |(place, said): (usize, String)| (paths.get(place).cloned().unwrap_or_default(), said);
        ContentsError::Conflict { about, one: named(one), other: named(other) }
    })?;
    Ok(named(&catalog))
}

fn catalog_of(path: &Path) -> Result<Catalog, ContentsError> {
    let read = |source| ContentsError::Read { path: path.to_owned(), source };
    if path.metadata().map_err(read)?.is_dir() { of_folder(path) } else { of_disk(path) }
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

fn of_folder(path: &Path) -> Result<Catalog, ContentsError> {
    let tree = Directory::open(path).map_err(|source| ContentsError::Read { path: path.to_owned(), source })?;
    if let Ok(content) = Tree::open(&tree, catalog::PATH) {
        let mut encoded = Vec::new();
        let read = content.reader.take(LARGEST_CATALOG).read_to_end(&mut encoded);
        read.map_err(|source| ContentsError::Read { path: path.join(catalog::PATH), source })?;
        return decode(path, encoded);
    }
    let layout = |source| ContentsError::Layout { path: path.to_owned(), source: Box::new(source) };
    let images = layout::images(&tree, Reading { unnamed: None, verify: false, lenient: false }).map_err(layout)?;
    layout::catalog(&images).map_err(layout)
}

fn decode(path: &Path, encoded: Vec<u8>) -> Result<Catalog, ContentsError> {
    Catalog::decode(encoded.into()).map_err(|source| ContentsError::Catalog { path: path.to_owned(), source })
}

fn of_disk(path: &Path) -> Result<Catalog, ContentsError> {
    let read = |source| ContentsError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    // Absolute, since the program may be run elsewhere.
    let disk = path.canonicalize().map_err(read)?;
    let inner = format!("--path=/{}", catalog::PATH);
    let arguments = ["-e".as_ref(), inner.as_ref(), disk.as_os_str()];
    let said = DUMP.run(Path::new("/"), &arguments);
    let said = said.map_err(|source| ContentsError::NoCatalog { path: path.to_owned(), source })?;
    let extents = extents(&said).ok_or_else(|| ContentsError::Extents { path: path.to_owned() })?;
    let mut encoded = Vec::new();
    for (at, len) in extents {
        let start = encoded.len();
        encoded.resize(start + len, 0);
        file.read_exact_at(encoded.get_mut(start..).unwrap_or_default(), at).map_err(read)?;
    }
    decode(path, encoded)
}

/// Where the content lies, in order: places and lengths in bytes. What is compressed has other lengths there, and is refused.
fn extents(said: &str) -> Option<Vec<(u64, usize)>> {
    // "   0:        0..    8192 |    8192 :       4096..     12288 |    8192"
    let rows = said.lines().filter(|line| line.contains("..") && line.contains('|'));
    let extents = rows.map(|row| {
        let mut columns = row.split('|');
        let (_, middle, stored) = (columns.next()?, columns.next()?, columns.next()?);
        let (len, places) = middle.split_once(':')?;
        let (from, _) = places.split_once("..")?;
        let (len, stored): (usize, usize) = (len.trim().parse().ok()?, stored.trim().parse().ok()?);
        (len == stored && len as u64 <= LARGEST_CATALOG).then_some((from.trim().parse().ok()?, len))
    });
    extents.collect::<Option<Vec<_>>>().filter(|extents| !extents.is_empty())
}

#[cfg(test)]
mod tests {
    use super::extents;

    #[test]
    fn extents_are_read() {
        let said = "Size: 10000  On-disk size: 10000  regular file\n\n \
                    Ext:   logical offset   |  length :     physical offset    |  length\n   \
                    0:        0..    8192 |    8192 :       4096..     12288 |    8192\n   \
                    1:     8192..   10000 |    1808 :       1376..      3184 |    1808\n/x: 2 extents found\n";
        assert_eq!(extents(said), Some(vec![(4096, 8192), (1376, 1808)]));
        assert_eq!(extents("   0:        0..    8192 |    8192 :       4096..      8192 |    4096\n"), None, "compressed");
        assert_eq!(extents(""), None);
    }
}
