//! `localregistry pack`: images from builds to one disk. What enters are image layouts and archives; what leaves is a file system
//! whose root is an OCI image layout, with a catalog beside it. Sources are only read, and the disk's path holds the old disk or the
//! whole new one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use serde::Serialize;

use super::report::Report;
use cache::{Cache, CacheError};
use interrupt::{Interrupt, Interrupted};
use make::{MakeError, Making};
use mkfs::{Format, MkfsError};
use source::{Request, Source, SourceError};
use union::{Contents, UnionError};

use crate::registry::layout::Image;

mod archive;
mod cache;
mod copy;
mod describe;
mod docker;
mod erofs;
pub mod interrupt;
mod make;
mod mkfs;
pub mod source;
mod stage;
mod target;
mod union;
mod unpack;
mod work;

/// Most images that the result lists for a person.
const LISTED: usize = 20;

/// Pack container images into a disk
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A SOURCE is an OCI image layout (a folder, or a tar archive of one) or what docker save writes. Archives may be \
compressed with gzip or zstd. Names are taken as the source gives them: busybox:latest is the repository busybox, \
docker.io/library/busybox:latest the repository library/busybox of docker.io.

Examples:
  localregistry pack images/ -o disk.erofs
  localregistry pack web.tar db.tar.gz -o disk.erofs --json
  localregistry pack --name test/app:v1=build/app-layout -o disk.erofs"
)]
pub struct Args {
    /// What to pack: an OCI image layout or a docker save archive
    #[arg(value_name = "SOURCE", required_unless_present = "name")]
    sources: Vec<PathBuf>,

    /// Pack SOURCE, and give its image the name REF: repository[:tag]. For an image without a name, or in place of the only one.
    /// Without a tag, the image keeps its own, or gets latest. May be given several times
    #[arg(long, value_name = "REF=SOURCE")]
    name: Vec<Request>,

    /// The disk to write
    #[arg(long, short, value_name = "DISK")]
    output: PathBuf,

    /// The disk's file system
    #[arg(long, value_enum, default_value_t = Format::Erofs)]
    fs: Format,

    /// Keep verified blobs in the folder DIR, and read those that are there from there: packing again reads what is new. Made where
    /// it is missing; any number of packs may share it; remove it at will
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

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
    /// A source cannot be packed.
    #[error("cannot pack {}", path.display())]
    Source {
        /// The source.
        path: PathBuf,
        /// What is wrong with it.
        source: SourceError,
    },
    /// Sources contradict each other.
    #[error(transparent)]
    Union(#[from] UnionError),
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

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The disk.
    pub disk: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// How many images it has: tags, and what has none.
    pub images: usize,
    /// How many blobs, each counted once.
    pub blobs: usize,
    /// Their size in bytes.
    pub blob_bytes: u64,
    /// How many of these bytes were read from sources, and hashed.
    pub read_bytes: u64,
    /// How many were taken from the cache.
    pub cached_bytes: u64,
}

/// What is to be packed, and how.
struct Packing<'a> {
    requests: Vec<Request>,
    disk: &'a Path,
    format: Format,
    cache: Option<PathBuf>,
    report: Report,
}

/// Runs the subcommand.
///
/// # Errors
/// [`PackError`]; the disk's path is then as it was.
pub fn run(args: Args, report: Report) -> Result<(), PackError> {
    let disk = args.output;
    // Before any thread is started: each inherits that signals are not its own.
    let interrupt = Interrupt::catch().map_err(|source| PackError::Disk { disk: disk.clone(), source })?;
    let plain = args.sources.into_iter().map(|path| Request { path, name: None });
    let requests = plain.chain(args.name).collect();
    let packing = Packing { requests, disk: &disk, format: args.fs, cache: args.cache, report };
    let (summary, contents) = pack(packing, &interrupt)?;
    report.result(&summary, &text(&summary, &contents)).map_err(PackError::Print)
}

/// Packs.
///
/// # Errors
/// [`PackError`]; the disk's path is then as it was, and nothing is left beside it.
fn pack(packing: Packing<'_>, interrupt: &Interrupt) -> Result<(Summary, Contents), PackError> {
    let disk = packing.disk.to_owned();
    let packed = steps(packing, interrupt);
    match interrupt.check() {
        Err(cause) if packed.is_err() => Err(PackError::Interrupted { disk, cause }),
        _ => packed,
    }
}

fn steps(packing: Packing<'_>, interrupt: &Interrupt) -> Result<(Summary, Contents), PackError> {
    let Packing { mut requests, disk, format, cache, report } = packing;
    let wrong_disk = |source| PackError::Disk { disk: disk.to_owned(), source };
    format.check().map_err(|source| PackError::Mkfs { disk: disk.to_owned(), source })?;
    let target = target(disk, &requests).map_err(wrong_disk)?;
    let folder = folder(&target);
    let cache = cache.map(|folder| Cache::open(&folder)).transpose()?;

    // One order, whatever the order that they are given in: of messages, and of which source a shared blob is read from.
    requests.sort_by_key(|request| (request.path.clone(), request.name.as_ref().map(ToString::to_string)));
    requests.dedup();
    let mut sources = Vec::with_capacity(requests.len());
    for request in &requests {
        report.step(format!("reading {}", request.path.display()));
        let opened = Source::open(request, folder, interrupt);
        sources.push(opened.map_err(|source| PackError::Source { path: request.path.clone(), source })?);
    }
    let contents = union::unite(&sources)?;
    let making = Making { disk, format, cache: cache.as_ref(), report, interrupt };
    let made = making.make(&contents, &sources, folder)?;
    interrupt.check().map_err(|cause| PackError::Interrupted { disk: disk.to_owned(), cause })?;
    fs::rename(made.file(), &target).map_err(wrong_disk)?;
    // The disk is there now, whatever comes of this: some file systems do not flush folders.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    let (blobs, blob_bytes) = contents.catalog.blob_totals();
    let (read_bytes, cached_bytes) = made.counts.totals();
    let images = contents.images.len();
    let summary = Summary { disk: disk.to_owned(), bytes: made.bytes, images, blobs, blob_bytes, read_bytes, cached_bytes };
    Ok((summary, contents))
}

/// The path that the disk is renamed to: through a symbolic link, not over it.
fn target(disk: &Path, requests: &[Request]) -> io::Result<PathBuf> {
    let old = match fs::metadata(disk) {
        Ok(old) if !old.is_file() => return Err(io::Error::other("it is there already and not a regular file")),
        Ok(old) => old,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = folder(disk);
            return match fs::metadata(folder) {
                Ok(metadata) if metadata.is_dir() => Ok(disk.to_owned()),
                Ok(_) => Err(io::Error::other(format!("{} is not a folder", folder.display()))),
                Err(error) => Err(io::Error::new(error.kind(), format!("its folder {}: {error}", folder.display()))),
            };
        }
        Err(error) => return Err(error),
    };
    let same = |request: &Request| fs::metadata(&request.path).is_ok_and(|m| (m.dev(), m.ino()) == (old.dev(), old.ino()));
    if let Some(request) = requests.iter().find(|request| same(request)) {
        return Err(io::Error::other(format!("it is the source {} as well", request.path.display())));
    }
    disk.canonicalize()
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
    lines.push(format!("{}: {images}, {blobs} of {blob_bytes}, {bytes} on the disk", summary.disk.display()));
    lines.join("\n")
}

/// An image's name, without the digest that stands beside it.
fn label(image: &Image) -> String {
    if image.tag.is_some() { image.name() } else { image.repository.to_string() }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
