//! What a source is, and which images it holds under which names. Nothing is copied here.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use super::archive::{Archive, ArchiveError};
use super::compression::{self, Compression, UnpackError};
use super::docker::{self, DockerError, Saved};
use super::files::{self, FilesError};
use super::naming::{self, NamingError};
use super::platform::{self, LeftOut, PlatformError};
use super::request::{Origin, Request};
use super::virtual_layout::Linked;
use crate::disk::layout::{self, Directory, Image, LayoutError, ReadOptions, Tree, Unnamed};
use crate::host::images::pull::Pulled;
use crate::host::support::interrupt::Interrupt;

/// First bytes of compressions that are not understood here, to say so.
const OTHER_MAGIC: [(&[u8], &str); 2] = [(b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2")];

/// Why a source cannot be packed. The path is the caller's to say.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is not there or not readable.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// Neither a file nor a folder.
    #[error("it is neither a file nor a folder; an OCI image layout or a docker save archive is expected")]
    Special,
    /// An empty file.
    #[error("the file is empty; a tar archive is expected")]
    Empty,
    /// A file that is no archive.
    #[error("it is not a tar archive, plain or compressed with gzip or zstd")]
    NotAnArchive,
    /// Compressed otherwise.
    #[error("it is compressed with {0}; gzip, zstd or no compression is expected")]
    Compression(&'static str),
    /// A compressed archive that does not decompress.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// A damaged archive, or one not to be trusted.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An archive of something else.
    #[error("the archive has neither index.json (an OCI image layout) nor manifest.json (docker save) at its root{0}")]
    Unknown(&'static str),
    /// A docker save archive with a fault.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// An image layout with a fault.
    #[error(transparent)]
    Layout(LayoutError),
    /// An image layout that lacks something.
    #[error("something that an image names is missing (with --allow-missing, the rest is packed)")]
    Missing(#[source] LayoutError),
    /// Files that make no image.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// An index without the platform that is to be kept.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// An image of a registry that was not pulled before.
    #[error("it is not pulled")]
    NotPulled,
    /// No image at all.
    #[error("it holds no image")]
    NoImage,
    /// Names that its images cannot have.
    #[error(transparent)]
    Naming(#[from] NamingError),
}

impl From<LayoutError> for SourceError {
    fn from(error: LayoutError) -> Self {
        if error.is_missing() { Self::Missing(error) } else { Self::Layout(error) }
    }
}

/// An opened source.
pub struct Source {
    /// Where it is, as messages say it.
    pub path: PathBuf,
    /// Its files.
    pub tree: Box<dyn Tree + Send + Sync>,
    /// Its images, named.
    pub images: Vec<Image>,
    /// What was left out for the sake of one platform.
    pub left_out: Vec<LeftOut>,
}

impl Source {
    /// Opens a source, of which `pulled` is what was pulled of it, and finds its images. Manifests are verified; other blobs only have their size checked. What must be
    /// decompressed first goes to `folder`. Where it is `lenient`, images may lack layers.
    ///
    /// # Errors
    /// [`SourceError`], at the first thing that is wrong.
    pub fn open(
        request: &Request,
        pulled: Option<Pulled>,
        lenient: bool,
        folder: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self, SourceError> {
        let tree = tree(request, pulled, folder, interrupt)?;
        let (tree, left_out) = match &request.platform {
            Some(platform) => platform::keep(tree, platform)?,
            None => (tree, Vec::new()),
        };
        let pulled_as = if let Origin::Pull(reference) = &request.origin { Some(&reference.repository) } else { None };
        let unnamed = request.naming.repository.as_ref().or(pulled_as).map_or(Unnamed::Reject, Unnamed::Assign);
        let images = layout::images(tree.as_ref(), ReadOptions { unnamed, verify: true, allow_missing: lenient })?;
        if images.is_empty() {
            return Err(SourceError::NoImage);
        }
        let images = naming::name(images, &request.naming, request.upstream.as_ref(), request.place.is_some())?;
        Ok(Self { path: request.label().into(), tree, images, left_out })
    }
}

fn tree(
    request: &Request,
    pulled: Option<Pulled>,
    folder: &Path,
    interrupt: &Interrupt,
) -> Result<Box<dyn Tree + Send + Sync>, SourceError> {
    match &request.origin {
        Origin::Pull(_) => Ok(Box::new(pulled.ok_or(SourceError::NotPulled)?)),
        Origin::Parts { config, layers } => Ok(Box::new(files::image(config, layers)?)),
        Origin::Artifact { file, media_type } => Ok(Box::new(files::artifact(file, media_type.as_deref(), interrupt)?)),
        Origin::Path { path, links } => {
            let metadata = fs::metadata(path).map_err(SourceError::Read)?;
            if metadata.is_file() {
                archived(path, request.naming.repository.is_some(), folder, interrupt)
            } else if !metadata.is_dir() {
                Err(SourceError::Special)
            } else if *links {
                Ok(Box::new(Linked(path.clone())))
            } else {
                Ok(Box::new(Directory::open(path).map_err(SourceError::Read)?))
            }
        }
    }
}

/// The archive at `path` as a layout; `nameless` says whether its images may be without names. What must be decompressed first goes
/// to `folder`.
///
/// # Errors
/// [`SourceError`], where it is no whole archive of images.
pub fn archived(
    path: &Path,
    nameless: bool,
    folder: &Path,
    interrupt: &Interrupt,
) -> Result<Box<dyn Tree + Send + Sync>, SourceError> {
    let archive = Archive::open(plain(path, folder, interrupt)?)?;
    if archive.has("index.json") {
        return Ok(Box::new(archive));
    }
    if archive.has(docker::MANIFEST) {
        return Ok(Box::new(Saved::open(archive, nameless, interrupt)?));
    }
    Err(SourceError::Unknown(if archive.ended() { "" } else { ", and no end mark: it may have been cut short" }))
}

/// The archive at `path` without its compression.
fn plain(path: &Path, folder: &Path, interrupt: &Interrupt) -> Result<File, SourceError> {
    let mut file = File::open(path).map_err(SourceError::Read)?;
    let start = start(&mut file).map_err(SourceError::Read)?;
    if start.is_empty() {
        return Err(SourceError::Empty);
    }
    let compression = Compression::of(&start);
    if compression != Compression::None {
        return Ok(compression::unpack(&file, compression, folder, interrupt)?);
    }
    if let Some((_, name)) = OTHER_MAGIC.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(SourceError::Compression(name));
    }
    if is_header(&start) { Ok(file) } else { Err(SourceError::NotAnArchive) }
}

/// The first tar block of a file, or less.
fn start(file: &mut File) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(512);
    file.take(512).read_to_end(&mut start)?;
    file.rewind()?;
    Ok(start)
}

/// Whether an archive may start so: with a header whose checksum holds, with the end mark, or cut within the first header.
fn is_header(start: &[u8]) -> bool {
    if start.iter().all(|byte| *byte == 0) {
        return true;
    }
    let Some((head, rest)) = start.split_at_checked(148) else { return false };
    let Some((field, tail)) = rest.split_at_checked(8) else { return false };
    let sum: u32 = head.iter().chain(tail).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
    let octal: String = field.iter().map(|byte| char::from(*byte)).filter(char::is_ascii_digit).collect();
    start.len() < 512 || u32::from_str_radix(&octal, 8) == Ok(sum)
}
