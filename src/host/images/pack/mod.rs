//! `localregistry pack`: images from builds to one disk. What enters are image layouts and archives; what leaves is a file system
//! whose root is an OCI image layout, with a catalog beside it. Sources are only read, and the disk's path holds the old disk or the
//! whole new one.

mod archive;
mod args;
mod cache;
mod compression;
mod copy;
mod disk_writer;
mod docker;
mod duplicates;
mod files;
mod image_set;
mod index;
mod layout_files;
mod mkfs;
mod naming;
mod open_sources;
mod platform;
mod request;
mod sink;
pub mod source;
mod spec;
mod staging;
pub(in crate::host) mod virtual_layout;
mod work_dir;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use schemars::JsonSchema;
use serde::Serialize;

use super::pull::PullError;
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::host::support::report::{Report, counted, escaped};
pub use args::Args;
use cache::{Cache, CacheError};
use disk_writer::{MakeError, Making};
use duplicates::DuplicateError;
use image_set::{Contents, UnionError};
pub use mkfs::Format;
use mkfs::MkfsError;
use platform::LeftOut;
use request::Request;
use source::{Source, SourceError};
use spec::SpecError;

use crate::disk::layout::{Image, MissingBlob};

/// Most images that the result lists for a person.
const LISTED: usize = 20;

/// Why no disk is made.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The disk's path is not one to write to.
    #[error("cannot write {}", disk.display())]
    Disk {
        /// The disk.
        disk: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A list of images cannot be used.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A source cannot be packed.
    #[error("cannot pack {label}")]
    Source {
        /// What messages call the source.
        label: String,
        /// What is wrong with it.
        source: SourceError,
    },
    /// An image cannot be pulled.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// Sources contradict each other.
    #[error(transparent)]
    Union(#[from] UnionError),
    /// A source has damaged content that another source has whole.
    #[error(transparent)]
    Duplicate(#[from] DuplicateError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The disk cannot be made.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// The programs for its file system are missing.
    #[error("cannot make {}", disk.display())]
    Mkfs {
        /// The disk.
        disk: PathBuf,
        /// Why not.
        source: MkfsError,
    },
    /// A signal came.
    #[error("{} is not written: {cause}", disk.display())]
    Interrupted {
        /// The disk.
        disk: PathBuf,
        /// The signal.
        cause: Interrupted,
    },
    /// The result cannot be printed.
    #[error("the disk is made, and its summary cannot be printed")]
    Print(#[source] io::Error),
}

impl PackError {
    /// The status that the process ends with: 128 and its number after a signal, as a shell has it, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted { cause, .. } => u8::try_from(128 + cause.0 as i32).unwrap_or(1),
            _ => 1,
        }
    }
}

/// The disk that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "PackResult")]
pub struct Summary {
    /// The disk, as it was given.
    pub disk: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// How many images it has: tags, and what has none.
    pub images: usize,
    /// How many blobs, each counted once.
    pub blobs: usize,
    /// The blobs' size in bytes.
    pub blob_bytes: u64,
    /// How many of these bytes were read from sources, and hashed.
    pub read_bytes: u64,
    /// How many of these bytes were taken from the cache.
    pub cached_bytes: u64,
    /// The images of which one platform is kept, and what is left out for that; with `--platform`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<OnePlatform>,
    /// Content that images name and that is left out because no source has it; with `--allow-missing`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingBlob>,
}

/// An image of which one platform is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "KeptPlatform")]
pub struct OnePlatform {
    /// The image.
    pub image: String,
    /// The platform, os/architecture with the variant where there is one.
    pub platform: String,
    /// The other platforms, which are left out.
    pub left_out: Vec<String>,
}

impl OnePlatform {
    /// Those of a source, by the names that its images have got.
    fn of(source: &Source) -> impl Iterator<Item = Self> {
        let named = |one: &LeftOut| source.images.iter().filter(|image| image.digest == one.kept).map(Image::name).collect();
        source.left_out.iter().flat_map(move |one| {
            let images: Vec<String> = named(one);
            let made = |image| Self { image, platform: one.platform.clone(), left_out: one.rest.clone() };
            images.into_iter().map(made).collect::<Vec<_>>()
        })
    }
}

/// Runs the subcommand.
///
/// # Errors
/// [`PackError`]; the disk's path is then as it was.
pub fn run(args: &Args, report: Report) -> Result<(), PackError> {
    let disk = &args.output;
    // Before any thread is started: each inherits that signals are not its own.
    let interrupt = Interrupt::catch().map_err(|source| PackError::Disk { disk: disk.clone(), source })?;
    let packed = pack(args, report, &interrupt);
    let (summary, contents) = match interrupt.check() {
        Err(cause) if packed.is_err() => return Err(PackError::Interrupted { disk: disk.clone(), cause }),
        _ => packed?,
    };
    report.result(&summary, &text(&summary, &contents)).map_err(PackError::Print)
}

/// Packs. Where it fails, the disk's path is as it was, and nothing is left beside it.
fn pack(args: &Args, report: Report, interrupt: &Interrupt) -> Result<(Summary, Contents), PackError> {
    let disk = args.output.as_path();
    let wrong_disk = |source| PackError::Disk { disk: disk.to_owned(), source };
    args.format.check().map_err(|source| PackError::Mkfs { disk: disk.to_owned(), source })?;
    let requests = args.requests()?;
    let read = requests.iter().flat_map(Request::paths).chain(args.specs().map(PathBuf::as_path));
    let target = target(disk, read).map_err(wrong_disk)?;
    let folder = folder(&target);
    let cache = args.cache.as_deref().map(Cache::open).transpose()?;

    let sources = open_sources::all(args, requests, folder, report, interrupt)?;
    let left_out: Vec<OnePlatform> = sources.iter().flat_map(OnePlatform::of).collect();
    for one in left_out.iter().filter(|one| !one.left_out.is_empty()) {
        report.step(format!("image {}: {} is kept, and left out: {}", one.image, one.platform, one.left_out.join(", ")));
    }
    let contents = image_set::unite(&sources, args.replace)?;
    for one in &contents.missing {
        report.step(one.to_string());
    }
    duplicates::check(&contents.blobs, &sources, cache.as_ref(), interrupt)?;
    let making = Making { disk, format: args.format, label: args.label.as_ref(), cache: cache.as_ref(), report, interrupt };
    let made = making.make(&contents, &sources, folder)?;
    interrupt.check().map_err(|cause| PackError::Interrupted { disk: disk.to_owned(), cause })?;
    fs::rename(made.file(), &target).map_err(wrong_disk)?;
    // The disk is there now, whatever comes of this: some file systems do not flush folders.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    let (blobs, blob_bytes) = contents.catalog.blob_totals();
    let (read_bytes, cached_bytes) = made.counts.totals();
    let summary = Summary {
        disk: disk.to_owned(),
        bytes: made.bytes,
        images: contents.images.len(),
        blobs,
        blob_bytes,
        read_bytes,
        cached_bytes,
        left_out,
        missing: contents.missing.clone(),
    };
    Ok((summary, contents))
}

/// The path that the disk is renamed to: through a symbolic link, not over it. It is none of `sources` and in none of them.
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

/// The path of a disk that is not there yet.
fn new_target(disk: &Path) -> io::Result<PathBuf> {
    let name = disk.file_name().filter(|_| !disk.as_os_str().as_encoded_bytes().ends_with(b"/"));
    let name = name.ok_or_else(|| io::Error::other("it ends like a folder's path; that of a file is expected"))?;
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

/// The folder that `path` lies in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The result for a person: the images, then the totals.
fn text(summary: &Summary, contents: &Contents) -> String {
    let mut lines = Vec::new();
    let listed: Vec<(String, &Image)> = contents.images.values().take(LISTED).map(|image| (label(image), image)).collect();
    let width = listed.iter().map(|(label, _)| label.len()).max().unwrap_or_default();
    for (label, image) in listed {
        let size = image.blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        let digest: String = image.digest.hex().chars().take(12).collect();
        lines.push(format!("{label:width$}  {}:{digest}  {}", image.digest.algorithm().name(), HumanBytes(size)));
    }
    if let Some(more) = contents.images.len().checked_sub(LISTED).filter(|more| *more > 0) {
        lines.push(format!("and {more} more"));
    }
    let (images, blobs) = (counted(summary.images, "image"), counted(summary.blobs, "blob"));
    let (blob_bytes, bytes) = (HumanBytes(summary.blob_bytes), HumanBytes(summary.bytes));
    let disk = escaped(&summary.disk.display().to_string());
    lines.push(format!("{disk}: {images}, {blobs} of {blob_bytes}, {bytes} on the disk"));
    lines.join("\n")
}

/// An image's name, without the digest that stands beside it.
fn label(image: &Image) -> String {
    match (&image.tag, image.every_tag) {
        (_, true) => format!("{}:*", image.repository),
        (Some(_), false) => image.name(),
        (None, false) => image.repository.to_string(),
    }
}
