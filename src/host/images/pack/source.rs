//! Opens a source (layout, archive, files or pulled image) and lists its images by their final names. Nothing is copied here.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::archive::{Archive, ArchiveError, MANIFEST};
use super::chart::{self, ChartError};
use super::compression::{self, Compression, DecompressError};
use super::docker::{self, DockerArchive, DockerError};
use super::files::{self, FilesError};
use super::flat_index;
use super::mistaken::{self, Mistaken};
use super::naming::{self, NamingError};
use super::platform::{self, PlatformError};
use super::request::{Origin, Request};
use crate::disk::layout::{self, Directory, Image, LayoutError, LayoutImages, LeftOver, ReadOptions, Tree, Unnamed, check_holes};
use crate::disk::superblock::{Superblock, read_head};
use crate::host::images::bounded::BoundedTree;
use crate::host::images::platforms::SelectedPlatforms;
use crate::host::images::pull::{FailedLookup, PulledLayout};
use crate::host::images::virtual_layout::UnconfinedDir;
use crate::host::support::interrupt::Interrupt;

/// Length of a block of a tar archive, in bytes.
const TAR_BLOCK: usize = 512;

/// First bytes of unsupported compressions, for the error message.
const OTHER_MAGIC: [(&[u8], &str); 2] = [(b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2")];

/// Why a source cannot be packed. The caller adds the path.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file or folder cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// The path is neither a file nor a folder.
    #[error("it is neither a file nor a folder; an OCI image layout or a docker save archive is expected")]
    Special,
    /// The file is empty.
    #[error("the file is empty; a tar archive is expected")]
    Empty,
    /// The file holds nothing, compressed.
    #[error("the compressed file holds nothing; a tar archive is expected")]
    EmptyContent,
    /// The file is compressed, and so is its content.
    #[error("it is compressed twice; decompress it once")]
    CompressedTwice,
    /// It is something else that is known.
    #[error(transparent)]
    Mistaken(#[from] Mistaken),
    /// The file is a packed disk.
    #[error(
        "it is a packed disk ({0}), not an archive of images: `localregistry run` boots it as it is, and `localregistry inspect DISK --export \
         LAYOUT` makes a folder of it that can be packed"
    )]
    PackedDisk(&'static str),
    /// The file is not an archive.
    #[error("it is not a tar archive, plain or compressed with gzip or zstd")]
    NotAnArchive,
    /// The compression is not supported.
    #[error("it is compressed with {0}; gzip, zstd or no compression is expected")]
    Compression(&'static str),
    /// The archive cannot be decompressed.
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    /// The archive is damaged or unsafe.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The archive has no images.
    #[error("the archive has neither index.json (an OCI image layout) nor manifest.json (docker save) at its root{0}")]
    Unknown(&'static str),
    /// The docker save archive is invalid.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// The image layout is invalid.
    #[error(transparent)]
    Layout(LayoutError),
    /// The image layout is incomplete.
    #[error("something that an image names is missing (with --allow-missing, the rest is packed)")]
    Missing(#[source] LayoutError),
    /// No image can be built from the given files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The file is not a Helm chart.
    #[error(transparent)]
    Chart(#[from] ChartError),
    /// An index has no manifest for the selected platform.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The image was not pulled before.
    #[error("it is not pulled")]
    NotPulled,
    /// There is no image.
    #[error("it holds no image")]
    NoImage,
    /// The images cannot have the given names.
    #[error(transparent)]
    Naming(#[from] NamingError),
}

impl From<LayoutError> for SourceError {
    fn from(error: LayoutError) -> Self {
        if error.is_missing() { Self::Missing(error) } else { Self::Layout(error) }
    }
}

/// An open source.
pub struct Source {
    /// The source's name in messages.
    pub label: String,
    /// The source's files, as an image layout.
    pub tree: Box<dyn Tree + Send + Sync>,
    /// The images, by their final names.
    pub images: Vec<Image>,
    /// The images of which platforms were selected.
    pub selected: Vec<SelectedPlatforms>,
    /// What belongs to a pulled image and could not be looked up.
    pub failed_lookups: Vec<FailedLookup>,
    /// The entries of the layout's index that are left out.
    pub left_over: Vec<LeftOver>,
}

impl Source {
    /// Opens a source and lists its images. Manifests are verified; of other blobs only the size is checked.
    ///
    /// `pulled` is the result of a pull request. Archives are decompressed into `folder`. With `lenient`, images may lack blobs.
    ///
    /// # Errors
    /// Fails with the first error found.
    pub fn open(
        request: &Request,
        pulled: Option<PulledLayout>,
        lenient: bool,
        folder: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self, SourceError> {
        let failed_lookups = pulled.as_ref().map(|pulled| pulled.failed_lookups.clone()).unwrap_or_default();
        let pulled_platforms = pulled.as_ref().map(|pulled| pulled.selected.clone());
        let tree = Box::new(BoundedTree::of_files(tree(request, pulled, folder, interrupt)?, interrupt));
        let tree = flat_index::as_image(tree);
        let mut entries = layout::entries(tree.as_ref())?;
        let selected = match pulled_platforms {
            Some(selected) => selected.into_iter().collect(),
            None => platform::select(tree.as_ref(), &mut entries, &request.platforms)?,
        };
        let pulled_as = if let Origin::Pull(reference) = &request.origin { Some(&reference.repository) } else { None };
        let unnamed = request.naming.repository.as_ref().or(pulled_as).map_or(Unnamed::Reject, Unnamed::Assign);
        let options = ReadOptions { unnamed, verify: true, allow_missing: lenient };
        let LayoutImages { images, left_over } = layout::images_of(tree.as_ref(), entries, options)?;
        if images.is_empty() {
            return Err(SourceError::NoImage);
        }
        let named = naming::name_images(images, &request.naming, request.upstream.as_ref(), request.position.is_some());
        let images = named.map_err(|error| error.of_archive(|manifest| docker::config_of(tree.as_ref(), manifest)))?;
        Ok(Self { label: request.label(), tree, images, selected, left_over, failed_lookups })
    }
}

fn tree(
    request: &Request,
    pulled: Option<PulledLayout>,
    folder: &Path,
    interrupt: &Interrupt,
) -> Result<Box<dyn Tree + Send + Sync>, SourceError> {
    match &request.origin {
        Origin::Pull(_) => Ok(Box::new(pulled.ok_or(SourceError::NotPulled)?)),
        Origin::Parts { config, layers } => Ok(Box::new(files::image(config, layers)?)),
        Origin::Artifact { file, media_type } => Ok(Box::new(files::artifact(file, media_type.as_deref(), interrupt)?)),
        Origin::Chart { file } => Ok(Box::new(chart::open(file, request.naming.repository.is_some(), interrupt)?)),
        Origin::Path { path, links } => {
            let metadata = fs::metadata(path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => mistaken::missing(path).map_or(SourceError::Read(error), SourceError::Mistaken),
                _ => SourceError::Read(error),
            })?;
            if metadata.is_file() {
                open_archive(path, request.naming.repository.is_some(), folder, interrupt).map_err(|error| match error {
                    SourceError::NotAnArchive | SourceError::Archive(ArchiveError::Read(_)) if interrupt.check_io().is_ok() => {
                        mistaken::part_of_layout(path).map_or(error, SourceError::Mistaken)
                    }
                    other => other,
                })
            } else if !metadata.is_dir() {
                Err(SourceError::Special)
            } else if let Some(mistaken) = mistaken::folder(path) {
                Err(mistaken.into())
            } else if *links {
                Ok(Box::new(UnconfinedDir(path.clone())))
            } else {
                Ok(Box::new(Directory::open(path).map_err(SourceError::Read)?))
            }
        }
    }
}

/// Opens the archive at `path` as an image layout, decompressed into `folder` if it is compressed. `nameless` accepts images without
/// names.
///
/// # Errors
/// Fails if the file is not a complete archive of images.
pub fn open_archive(
    path: &Path,
    nameless: bool,
    folder: &Path,
    interrupt: &Interrupt,
) -> Result<Box<dyn Tree + Send + Sync>, SourceError> {
    let archive = Archive::open(uncompressed(path, folder, interrupt)?, interrupt)?;
    let (has_index, has_manifest) = (archive.has("index.json"), archive.has(MANIFEST));
    // Docker writes both. Of an image without a name, its index.json lists nothing.
    if has_manifest && (!has_index || layout::entries(&archive).is_ok_and(|entries| entries.is_empty())) {
        return Ok(Box::new(DockerArchive::open(archive, nameless, interrupt)?));
    }
    if has_index {
        return Ok(Box::new(archive));
    }
    if let Some(mistaken) = mistaken::archive(&archive) {
        return Err(mistaken.into());
    }
    Err(SourceError::Unknown(if archive.ended() { "" } else { ", and no end mark: it may have been cut short" }))
}

/// Whether a file that starts like this is a tar archive, or compressed: in a supported way, or in another one that is known.
#[must_use]
pub fn is_archive(start: &[u8]) -> bool {
    is_compressed(start) || start.get(..512).is_some_and(|header| is_header(header) && header.iter().any(|byte| *byte != 0))
}

/// Whether a file that starts like this is compressed, in a supported way or in another one that is known.
fn is_compressed(start: &[u8]) -> bool {
    Compression::of(start) != Compression::None || OTHER_MAGIC.iter().any(|(magic, _)| start.starts_with(magic))
}

/// Opens the archive at `path`, decompressed.
fn uncompressed(path: &Path, folder: &Path, interrupt: &Interrupt) -> Result<File, SourceError> {
    let file = File::open(path).map_err(SourceError::Read)?;
    let head = read_head(&file).map_err(SourceError::Read)?;
    // A file system may start with zeros, as an archive without members does.
    if let Some(superblock) = Superblock::detect(&head) {
        return Err(SourceError::PackedDisk(superblock.fs.name()));
    }
    let start = head.get(..TAR_BLOCK).unwrap_or(&head);
    if start.is_empty() {
        return Err(SourceError::Empty);
    }
    let compression = Compression::of(start);
    if compression != Compression::None {
        let content = compression::decompress(&file, compression, folder, interrupt)?;
        let start = read_head(&content).map_err(SourceError::Read)?;
        if start.is_empty() {
            return Err(SourceError::EmptyContent);
        }
        return if is_compressed(&start) { Err(SourceError::CompressedTwice) } else { Ok(content) };
    }
    if let Some((_, name)) = OTHER_MAGIC.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(SourceError::Compression(name));
    }
    if !is_header(start) {
        return Err(SourceError::NotAnArchive);
    }
    let size = file.metadata().map_err(SourceError::Read)?.len();
    check_holes(&file, size).map_err(SourceError::Read)?;
    Ok(file)
}

/// Whether an archive can start like this: with a header of correct checksum, with the end mark, or truncated in the first header.
fn is_header(start: &[u8]) -> bool {
    if start.iter().all(|byte| *byte == 0) {
        return true;
    }
    let Some((head, rest)) = start.split_at_checked(148) else { return false };
    let Some((field, tail)) = rest.split_at_checked(8) else { return false };
    let sum: u32 = head.iter().chain(tail).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
    let octal: String = field.iter().map(|byte| char::from(*byte)).filter(char::is_ascii_digit).collect();
    start.len() < TAR_BLOCK || u32::from_str_radix(&octal, 8) == Ok(sum)
}
