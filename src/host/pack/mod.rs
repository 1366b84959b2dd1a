//! `localregistry pack`: images from builds to one disk. What enters are image layouts and archives; what leaves is an EROFS image
//! whose root is an OCI image layout, with a catalog beside it. Sources are only read, and the disk's path holds the old disk or the
//! whole new one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use serde::Serialize;

use super::pull::{PullError, Pulling};
use super::report::Report;
use erofs::ErofsError;
use interrupt::{Interrupt, Interrupted};
use source::{Request, Source, SourceError};
use stage::{Stage, StageError};
use union::{Contents, UnionError};

use crate::oci::Digest;
use crate::oci::manifest::Platform;
use crate::registry::layout::Image;

mod archive;
mod docker;
mod erofs;
pub mod interrupt;
pub mod source;
mod stage;
mod union;
mod unpack;

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
    #[arg(value_name = "SOURCE", required_unless_present_any = ["name", "pull"])]
    sources: Vec<PathBuf>,

    /// Pack SOURCE, and give its image the name REF: repository[:tag]. For an image without a name, or in place of the only one.
    /// Without a tag, the image keeps its own, or gets latest. May be given several times
    #[arg(long, value_name = "REF=SOURCE")]
    name: Vec<Request>,

    #[command(flatten)]
    pull: Pulling,

    /// Of each index that is pulled, keep only this platform's manifest, in its place: os/architecture[/variant]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,

    /// The disk to write
    #[arg(long, short, value_name = "DISK")]
    output: PathBuf,
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
    /// An image cannot be pulled.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// Sources contradict each other.
    #[error(transparent)]
    Union(#[from] UnionError),
    /// The content cannot be staged.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The file system cannot be made.
    #[error("cannot make {}", disk.display())]
    Erofs {
        /// The disk.
        disk: PathBuf,
        /// Why not.
        source: ErofsError,
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
    let (summary, contents) = pack(requests, (&args.pull, args.platform.as_ref()), &disk, report, &interrupt)?;
    report.result(&summary, &text(&summary, &contents)).map_err(PackError::Print)
}

/// Packs `requests`, and what is pulled, into the disk at `disk`.
///
/// # Errors
/// [`PackError`]; the disk's path is then as it was, and nothing is left beside it.
fn pack(
    requests: Vec<Request>,
    (pull, platform): (&Pulling, Option<&Platform>),
    disk: &Path,
    report: Report,
    interrupt: &Interrupt,
) -> Result<(Summary, Contents), PackError> {
    let packed = steps(requests, (pull, platform), disk, report, interrupt);
    match interrupt.check() {
        Err(cause) if packed.is_err() => Err(PackError::Interrupted { disk: disk.to_owned(), cause }),
        _ => packed,
    }
}

fn steps(
    mut requests: Vec<Request>,
    (pull, platform): (&Pulling, Option<&Platform>),
    disk: &Path,
    report: Report,
    interrupt: &Interrupt,
) -> Result<(Summary, Contents), PackError> {
    let wrong_disk = |source| PackError::Disk { disk: disk.to_owned(), source };
    let no_file_system = |source| PackError::Erofs { disk: disk.to_owned(), source };
    erofs::check().map_err(no_file_system)?;
    let target = target(disk, &requests).map_err(wrong_disk)?;
    let folder = folder(&target);

    // One order, whatever the order that they are given in: of messages, and of which source a shared blob is read from.
    requests.sort_by_key(|request| (request.path.clone(), request.name.as_ref().map(ToString::to_string)));
    requests.dedup();
    let mut sources = Vec::with_capacity(requests.len());
    for request in &requests {
        report.step(format!("reading {}", request.path.display()));
        let opened = Source::open(request, folder, interrupt);
        sources.push(opened.map_err(|source| PackError::Source { path: request.path.clone(), source })?);
    }
    let near: Vec<_> = sources.iter().map(|source| source.tree.as_ref()).collect();
    for (reference, pulled) in pull.run(platform, &near, (folder, &stage::prefix(disk)), report, interrupt)? {
        let opened = Source::pulled(&reference, pulled);
        sources.push(opened.map_err(|source| PullError { image: reference.to_string(), source: source.into() })?);
    }
    let contents = union::unite(&sources)?;

    let (blobs, blob_bytes) = contents.catalog.blob_totals();
    report.step(format!("copying and verifying {}, {}", counted(blobs, "blob"), HumanBytes(blob_bytes)));
    let stage = Stage::new(disk, folder)?;
    let bar = report.bytes_bar("packing", blob_bytes);
    let copied = stage.copy(&contents, &sources, &bar, interrupt);
    bar.finish_and_clear();
    copied?;
    stage.describe(&contents)?;

    report.step(format!("making the file system {}", disk.display()));
    let unfinished = stage.unfinished_disk();
    let identity = Digest::sha256_of(&contents.catalog.encode());
    let bytes = erofs::make(&stage.root(), &unfinished, &identity, interrupt).map_err(no_file_system)?;
    interrupt.check().map_err(|cause| PackError::Interrupted { disk: disk.to_owned(), cause })?;
    fs::rename(&unfinished, &target).map_err(wrong_disk)?;
    // The disk is there now, whatever comes of this: some file systems do not flush folders.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    let summary = Summary { disk: disk.to_owned(), bytes, images: contents.images.len(), blobs, blob_bytes };
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
