//! `localregistry inspect`: lists, verifies or exports the content of a disk. Disks are untrusted. It needs no root, mounts nothing
//! and never writes to the disk.

pub mod contents;
pub mod diff;
mod document;
mod export;
pub mod look;
pub mod reader;
pub mod table;
pub(crate) mod verify;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use indicatif::{HumanBytes, ProgressBar};

use super::support::interrupt::{Interrupt, Interrupted};
use super::support::report::{Report, counted, message};
use crate::disk::catalog;
use crate::disk::layout::{LeftOver, Tree};
use crate::oci::{Algorithm, Digest, Hasher};
use contents::{BlobFault, Contents, ContentsError, Image};
pub(crate) use document::Document;
use document::{Finding, Verified};
use export::ExportError;
use look::{DamageError, Look};
use reader::{Disk, Form};

/// Show what a disk contains, verify it, or export its image layout
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A disk is an EROFS, squashfs or ext4 image with an OCI image layout, made by `localregistry pack` or by another tool. \
An image layout in a folder or an archive works too. It needs no root and mounts nothing.

SIZE is the size of an image with all its blobs, SHARED the part that other images have too; the disk stores each blob once. The digest \
in the first line is that of the whole file, as in `sha256sum DISK`. An image named REPOSITORY:* is served for every tag that no other \
image of its repository has.

Faults are listed on standard error, and the exit status is 1: missing blobs, wrong sizes, damaged manifests, and a catalog that disagrees \
with them. Every command that takes a disk refuses one with such faults. --verify also checks every blob against its digest. Content that pack left out on purpose (--platform, --allow-missing) is no fault: it is listed in
--json and counted below the table, and --export writes the layout without it.

`localregistry schema` describes the fields of --json (InspectResult).

Examples:
  localregistry inspect disk.erofs
  localregistry inspect disk.erofs --verify --quiet
  localregistry inspect disk.erofs --json | jq -r '.images[].name'
  localregistry inspect disk.erofs --export layout/ && localregistry pack layout/ -o same.erofs"
)]
pub struct InspectArgs {
    /// The disk, image layout or archive
    #[arg(value_name = "DISK")]
    disk: PathBuf,

    /// Verify all content, and list the faults
    #[arg(long)]
    verify: bool,

    /// Export the disk's image layout to this folder; must be missing or empty
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
}

/// Why a disk cannot be inspected, or that it has faults.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The disk cannot be opened, or its content cannot be listed.
    #[error("cannot inspect {}", disk.display())]
    Disk {
        /// The disk.
        disk: PathBuf,
        /// The cause.
        source: DamageError,
    },
    /// The disk's file cannot be read.
    #[error("cannot inspect {}: cannot read {file}", disk.display())]
    Read {
        /// The disk.
        disk: PathBuf,
        /// The part of the disk.
        file: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The disk has faults, which have been printed.
    #[error("{} has {}", disk.display(), counted(*faults, "fault"))]
    Faults {
        /// The disk.
        disk: PathBuf,
        /// Number of faults.
        faults: usize,
    },
    /// The layout cannot be exported.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Interrupted by a signal.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The signal thread cannot be started.
    #[error("cannot start the signal thread")]
    Signals(#[source] io::Error),
    /// Standard output cannot be written to.
    #[error("cannot print the result")]
    Print(#[source] io::Error),
}

impl InspectError {
    /// The exit status: after a signal 128 plus the signal's number, as in a shell; else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted(cause)
            | Self::Export(ExportError::Interrupted(cause))
            | Self::Disk { source: DamageError::Contents(ContentsError::Interrupted(cause)), .. } => cause.exit_code(),
            _ => 1,
        }
    }
}

/// Runs `localregistry inspect`.
///
/// # Errors
/// Fails if the disk cannot be read, if it has faults, or after a signal.
pub fn run(args: &InspectArgs, report: Report) -> Result<(), InspectError> {
    let interrupt = Interrupt::catch().map_err(InspectError::Signals)?;
    let done = inspect(args, report, &interrupt);
    // A signal causes errors of many kinds. Report the signal instead.
    if done.is_err() {
        interrupt.check()?;
    }
    done
}

fn inspect(args: &InspectArgs, report: Report, interrupt: &Interrupt) -> Result<(), InspectError> {
    let named = || args.disk.clone();
    let only_reads = interrupt.end_at_once("");
    if let Some(folder) = &args.export {
        export::check(folder)?;
    }
    report.step(format!("reading {}", args.disk.display()));
    let unusable = |source| InspectError::Disk { disk: named(), source };
    let disk = Disk::open(&args.disk, interrupt).map_err(|source| unusable(source.into()))?;
    let tree = disk.tree.as_ref();
    let bar = report.bytes_bar("hashing the disk", disk.bytes.unwrap_or_default());
    let (digest, look) = thread::scope(|scope| {
        let hash = || digest(&args.disk, disk.form, &bar, interrupt);
        let digest = thread::Builder::new().spawn_scoped(scope, hash);
        let look = Look::new(tree, interrupt);
        let panicked = |_| Err(io::Error::other("the hashing thread panicked"));
        // Without another thread, one after the other.
        (digest.map_or_else(|_refused| hash(), |digest| digest.join().unwrap_or_else(panicked)), look)
    });
    bar.finish_and_clear();
    let mut look = look.map_err(unusable)?;
    let digest = digest.map_err(|source| InspectError::Read { disk: named(), file: "the whole of it", source })?;
    let verified = args.verify.then(|| verify(tree, &mut look.contents, report, interrupt)).transpose();
    let verified = verified.map_err(|source| unusable(source.into()))?;
    let conflict = look.conflict(tree);
    let Look { contents, catalog, differences } = look;
    report.steps(contents.left_over.iter().map(|digest| LeftOver { digest: *digest }.to_string()), LeftOver::others);
    let mut faults = findings(&contents, &contents.faults, &differences);
    faults.extend(conflict);
    for fault in &faults {
        message(format!("{}: {}", args.disk.display(), fault.message));
    }
    let exported = args.export.as_deref().filter(|_| faults.is_empty());
    drop(only_reads);
    if let Some(folder) = exported {
        let bytes = contents.blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        report.step(format!("exporting to {}, {}", folder.display(), HumanBytes(bytes)));
        let bar = report.bytes_bar("exporting", bytes);
        let done = export::export(tree, &contents, folder, &bar, interrupt);
        bar.finish_and_clear();
        done?;
    }
    // An exported folder is whole and stays: as in `pack`, a signal comes too late.
    let _only_prints = exported.is_none().then(|| interrupt.end_at_once(""));
    let document = Document::new(&args.disk, &disk, digest, catalog.as_ref(), &contents, verified, exported, &faults);
    let text = if report.json { String::new() } else { table::disk(&document, table::Style::of_stdout()) };
    report.result(&document, &text).map_err(InspectError::Print)?;
    if faults.is_empty() { Ok(()) } else { Err(InspectError::Faults { disk: named(), faults: faults.len() }) }
}

/// The digest of the disk's file. `None` for a folder.
fn digest(disk: &Path, form: Form, bar: &ProgressBar, interrupt: &Interrupt) -> io::Result<Option<Digest>> {
    if form == Form::Folder {
        return Ok(None);
    }
    let mut file = File::open(disk)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; verify::CHUNK];
    loop {
        let count = interrupt.read(&mut file, &mut buffer)?;
        if count == 0 {
            return Ok(Some(hasher.finish()));
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        bar.inc(count as u64);
    }
}

fn verify(
    tree: &(dyn Tree + Send + Sync),
    contents: &mut Contents,
    report: Report,
    interrupt: &Interrupt,
) -> Result<Verified, ContentsError> {
    let bytes = contents.blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
    let blobs = contents.blobs.len();
    report.step(format!("verifying {}, {}", counted(blobs, "blob"), HumanBytes(bytes)));
    let bar = report.bytes_bar("verifying", bytes);
    let done = verify::blobs(tree, contents, &bar, interrupt);
    bar.finish_and_clear();
    done.map(|()| Verified { blobs, bytes })
}

/// These faults of the disk, with the images that each affects.
fn findings(contents: &Contents, faults: &[(u32, BlobFault)], differences: &[String]) -> Vec<Finding> {
    let faulty: HashSet<u32> = faults.iter().map(|(number, _)| *number).collect();
    let mut holders = if faulty.is_empty() { Default::default() } else { contents.images_with(&faulty) };
    let blobs = faults.iter().filter_map(|(number, fault)| {
        let digest = contents.blobs.get(*number as usize)?.digest;
        let images = holders.remove(number).unwrap_or_default();
        let message = format!("blob {digest} {fault}; {}", document::part_of(&images));
        Some(Finding { kind: fault.name(), blob: Some(digest.to_string()), images, message })
    });
    let differences = differences.iter().map(|difference| Finding {
        kind: "catalog",
        blob: None,
        images: Vec::new(),
        message: format!("{} disagrees with index.json and the manifests: {difference}", catalog::PATH),
    });
    blobs.chain(differences).collect()
}
