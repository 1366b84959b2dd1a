//! `localregistry pack`: writes images into one disk, a file system whose root is an OCI image layout with a catalog.
//!
//! Sources are only read. The new disk replaces the old one in one rename, after it is complete and flushed.

mod archive;
mod args;
mod cache;
mod chart;
mod chart_metadata;
mod compression;
mod copy;
mod disk_writer;
mod docker;
mod duplicates;
mod files;
mod flat_index;
mod image_set;
mod index;
mod layout_files;
mod mistaken;
mod mkfs;
mod naming;
mod open_sources;
mod platform;
mod request;
mod sink;
pub mod source;
mod spec;
mod staging;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use schemars::JsonSchema;
use serde::Serialize;

use super::pull::{FailedLookup, PullError};
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::host::support::report::{Report, counted};
use crate::text::escaped;
pub use args::PackArgs;
use cache::{BlobCache, BlobCacheError};
use disk_writer::{DiskWriter, DiskWriterError};
use duplicates::DuplicateError;
use image_set::{ImageSet, ImageSetError};
pub use mkfs::Format;
use mkfs::MkfsError;
use request::Request;
use source::{Source, SourceError};
use spec::SpecError;

use crate::disk::layout::{Image, LeftOver, MissingBlob};

/// Most images that the text result lists.
const LISTED: usize = 20;

/// Why packing failed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The disk's path cannot be written to.
    #[error("cannot write {}", disk.display())]
    Disk {
        /// The disk.
        disk: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A `--spec` file cannot be used.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A source cannot be packed.
    #[error("cannot pack {label}")]
    Source {
        /// What messages call the source.
        label: String,
        /// The cause.
        source: SourceError,
    },
    /// An image cannot be pulled.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// Sources contradict each other.
    #[error(transparent)]
    ImageSet(#[from] ImageSetError),
    /// A source has a damaged copy of a blob that another source has too.
    #[error(transparent)]
    Duplicate(#[from] DuplicateError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] BlobCacheError),
    /// The disk cannot be written.
    #[error(transparent)]
    Write(#[from] DiskWriterError),
    /// The programs that make the file system are missing.
    #[error("cannot make {}", disk.display())]
    Mkfs {
        /// The disk.
        disk: PathBuf,
        /// The cause.
        source: MkfsError,
    },
    /// A signal interrupted packing.
    #[error("{} is not written: {cause}", disk.display())]
    Interrupted {
        /// The disk.
        disk: PathBuf,
        /// The signal.
        cause: Interrupted,
    },
    /// The result cannot be printed.
    #[error("the disk is written, but its summary cannot be printed")]
    Print(#[source] io::Error),
}

impl PackError {
    /// The exit status: 128 plus the signal's number after a signal, as in a shell, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted { cause, .. } => u8::try_from(128 + cause.0 as i32).unwrap_or(1),
            _ => 1,
        }
    }
}

/// The packed disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PackResult {
    /// The disk's path, as given.
    pub disk: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Number of images: tags, and manifests without a tag.
    pub images: usize,
    /// Number of blobs, each counted once.
    pub blobs: usize,
    /// Size of all blobs in bytes.
    pub blob_bytes: u64,
    /// Bytes of blobs that were read from sources and hashed.
    pub read_bytes: u64,
    /// Bytes of blobs that were taken from the cache.
    pub cached_bytes: u64,
    /// With `--platform`: the images of which platforms were selected, and what was left out of each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<KeptPlatform>,
    /// With `--pull`: signatures, attestations and other referrers that the registry did not give.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed_lookups: Vec<FailedLookup>,
    /// Entries of layouts that name no image and belong to none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_over: Vec<LeftOverEntry>,
    /// With `--allow-missing`: content that images name and no source has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingBlob>,
}

/// An entry of a layout's `index.json` that is not packed, because it names no image and belongs to none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LeftOverEntry {
    /// The source, as messages call it.
    pub source: String,
    /// Digest of the manifest.
    pub digest: String,
}

/// An image of which platforms were selected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct KeptPlatform {
    /// Name of the image.
    pub image: String,
    /// The platforms that are kept, as os/architecture[/variant], with commas between several.
    pub platform: String,
    /// What is left out: the other platforms, and counts of attestations and other manifests.
    pub left_out: Vec<String>,
}

impl KeptPlatform {
    /// The images of a source of which platforms were selected, by their final names.
    fn of(source: &Source) -> Vec<Self> {
        let of_image = |image: &Image| {
            let one = source.selected.iter().find(|one| one.root == image.digest)?.clone();
            Some(Self { image: image.name(), platform: one.platforms, left_out: one.left_out })
        };
        source.images.iter().filter_map(of_image).collect()
    }
}

/// Runs `localregistry pack`.
///
/// # Errors
/// Fails with [`PackError`]. The disk's path is then unchanged.
pub fn run(args: &PackArgs, report: Report) -> Result<(), PackError> {
    let disk = &args.output;
    // Before any thread starts: threads inherit the blocked signals.
    let interrupt = Interrupt::catch().map_err(|source| PackError::Disk { disk: disk.clone(), source })?;
    let packed = pack(args, report, &interrupt);
    let (summary, set) = match interrupt.check() {
        Err(cause) if packed.is_err() => return Err(PackError::Interrupted { disk: disk.clone(), cause }),
        _ => packed?,
    };
    report.result(&summary, &text(&summary, &set)).map_err(PackError::Print)
}

/// Packs the disk. After an error, the disk's path is unchanged and no working folder is left.
fn pack(args: &PackArgs, report: Report, interrupt: &Interrupt) -> Result<(PackResult, ImageSet), PackError> {
    let disk = args.output.as_path();
    let disk_error = |source| PackError::Disk { disk: disk.to_owned(), source };
    let only_reads = interrupt.end_at_once(not_written(disk));
    args.format.check().map_err(|source| PackError::Mkfs { disk: disk.to_owned(), source })?;
    let requests = args.requests()?;
    let read = requests.iter().flat_map(Request::paths).chain(args.specs().map(PathBuf::as_path));
    let target = target(disk, read).map_err(disk_error)?;
    let folder = folder(&target);
    let cache = args.cache.as_deref().map(BlobCache::open).transpose()?;
    drop(only_reads);

    let sources = open_sources::open_all(args, requests, folder, report, interrupt)?;
    let only_reads = interrupt.end_at_once(not_written(disk));
    let left_out: Vec<KeptPlatform> = sources.iter().flat_map(KeptPlatform::of).collect();
    for one in left_out.iter().filter(|one| !one.left_out.is_empty()) {
        let are = if one.platform.contains(',') { "are" } else { "is" };
        report.step(format!("image {}: {} {are} kept, and left out: {}", one.image, one.platform, one.left_out.join(", ")));
    }
    // Several sources may be of one pulled image.
    let failed_lookups: BTreeSet<FailedLookup> = sources.iter().flat_map(|source| source.failed_lookups.clone()).collect();
    for source in &sources {
        let line = |one: &LeftOver| {
            let path = one.digest.blob_path();
            let message = match source.tree.display_path(&path) {
                shown if shown == path => one.to_string(),
                image => format!("{image} has no name in RepoTags, and other images have; it is left out"),
            };
            format!("{}: {message}", source.label)
        };
        report.steps(source.left_over.iter().map(line), |count| format!("{}: {}", source.label, LeftOver::others(count)));
    }
    let left_over_of = |source: &Source| {
        let entry = |one: &LeftOver| LeftOverEntry { source: source.label.clone(), digest: one.digest.to_string() };
        source.left_over.iter().map(entry).collect::<Vec<_>>()
    };
    let left_over = sources.iter().flat_map(left_over_of).collect();
    let set = image_set::merge(&sources, args.replace)?;
    for one in &set.missing {
        report.warn(one.to_string());
    }
    // Other sources without an image are refused; a list is often generated, and may be empty.
    if set.images.is_empty() {
        report.warn(format!("{} will hold no image: no list given names one", disk.display()));
    }
    duplicates::check(&set.blobs, &sources, cache.as_ref(), interrupt)?;
    drop(only_reads);
    let writer = DiskWriter { disk, format: args.format, label: args.label.as_ref(), cache: cache.as_ref(), report, interrupt };
    let finished = writer.write(&set, &sources, folder)?;
    interrupt.check().map_err(|cause| PackError::Interrupted { disk: disk.to_owned(), cause })?;
    fs::rename(finished.file(), &target).map_err(disk_error)?;
    // The result is ignored: the disk is complete, and some file systems cannot flush folders.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    let (blobs, blob_bytes) = set.catalog.blob_totals();
    let (read_bytes, cached_bytes) = finished.counts.totals();
    let summary = PackResult {
        disk: disk.display().to_string(),
        bytes: finished.bytes,
        images: set.images.len(),
        blobs,
        blob_bytes,
        read_bytes,
        cached_bytes,
        left_out,
        failed_lookups: failed_lookups.into_iter().collect(),
        left_over,
        missing: set.missing.clone(),
    };
    Ok((summary, set))
}

/// Begins the message of a signal.
fn not_written(disk: &Path) -> String {
    format!("{} is not written: ", disk.display())
}

/// The path that the finished disk is renamed to. A symbolic link is followed, not replaced.
///
/// # Errors
/// Fails if the path is one of `sources`, or inside one of them, or cannot be a file.
fn target<'a>(disk: &Path, sources: impl Iterator<Item = &'a Path>) -> io::Result<PathBuf> {
    let target = match fs::metadata(disk) {
        Ok(old) if !old.is_file() => return Err(io::Error::other("it is there already and not a regular file")),
        Ok(_) => disk.canonicalize()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => new_target(disk)?,
        Err(error) => return Err(error),
    };
    for source in sources {
        let Ok(found) = source.canonicalize() else { continue };
        if found == target || is_same_file(&found, &target) {
            return Err(io::Error::other(format!("it is the source {} as well", source.display())));
        }
        if target.starts_with(&found) {
            return Err(io::Error::other(format!("it is in the source {}; a path outside of it is expected", source.display())));
        }
    }
    Ok(target)
}

/// The canonical path of a disk that does not exist yet.
fn new_target(disk: &Path) -> io::Result<PathBuf> {
    let name = disk.file_name().filter(|_| !disk.as_os_str().as_encoded_bytes().ends_with(b"/"));
    let name = name.ok_or_else(|| io::Error::other("it is the path of a folder; the path of a file is expected"))?;
    let folder = folder(disk);
    match folder.canonicalize() {
        Ok(found) if found.is_dir() => Ok(found.join(name)),
        Ok(_) => Err(io::Error::other(format!("{} is not a folder", folder.display()))),
        Err(error) => Err(io::Error::new(error.kind(), format!("its folder {}: {error}", folder.display()))),
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The text result: the images, then the totals.
fn text(summary: &PackResult, set: &ImageSet) -> String {
    let mut lines = Vec::new();
    let listed: Vec<(String, &Image)> = set.images.values().take(LISTED).map(|image| (label(image), image)).collect();
    let width = listed.iter().map(|(label, _)| label.len()).max().unwrap_or_default();
    for (label, image) in listed {
        let size = image.blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        let digest: String = image.digest.hex().chars().take(12).collect();
        lines.push(format!("{label:width$}  {}:{digest}  {}", image.digest.algorithm().name(), HumanBytes(size)));
    }
    if let Some(more) = set.images.len().checked_sub(LISTED).filter(|more| *more > 0) {
        lines.push(format!("and {more} more"));
    }
    let (images, blobs) = (counted(summary.images, "image"), counted(summary.blobs, "blob"));
    let (blob_bytes, bytes) = (HumanBytes(summary.blob_bytes), HumanBytes(summary.bytes));
    let disk = escaped(&summary.disk);
    lines.push(format!("{disk}: {images}, {blobs} of {blob_bytes}, {bytes} on the disk"));
    lines.join("\n")
}

/// An image's name without its digest, which has its own column.
fn label(image: &Image) -> String {
    match (&image.tag, image.every_tag) {
        (_, true) => format!("{}:*", image.repository),
        (Some(_), false) => image.name(),
        (None, false) => image.repository.to_string(),
    }
}
