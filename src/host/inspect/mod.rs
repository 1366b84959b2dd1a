//! `localregistry inspect`: what a disk holds, whether it is whole, and its layout back as a folder. What enters is a disk of whoever made
//! it; what leaves is a table, a JSON document or a folder. It needs no root, mounts nothing and never writes to the disk.

pub mod contents;
pub mod diff;
mod document;
mod export;
pub mod reader;
pub mod table;
mod verify;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;

use indicatif::{HumanBytes, ProgressBar};

use super::support::interrupt::{Interrupt, Interrupted};
use super::support::report::Report;
use crate::disk::catalog;
use crate::disk::layout::Tree;
use crate::oci::{Algorithm, Digest, Hasher};
use crate::registry::content::store::{self, StoreError};
use contents::{Contents, ContentsError, Image};
pub(crate) use document::Document;
use document::{Finding, Verified};
use export::ExportError;
use reader::{Disk, DiskError, Form};

/// Show what a disk holds
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A DISK is an EROFS, squashfs or ext4 image that holds an OCI image layout, made by localregistry pack or by other \
tools, or such a layout as a folder or an archive. Neither root nor a mount is needed.

SIZE is what an image has in all, SHARED how much of it other images have as well; each blob stands on the disk once. The \
digest of the disk is that of the whole file (sha256sum DISK).

With --verify every blob is held against its digest and size, and the catalog against index.json and the manifests. What is \
wrong is named on standard error, and the exit code is 1; also what `pack --allow-missing` left out is named as missing.

REPOSITORY:* is an image that answers to every tag of its repository which no other image has.

`localregistry schema` has the fields of --json (InspectResult).

Examples:
  localregistry inspect disk.erofs
  localregistry inspect disk.erofs --verify --quiet
  localregistry inspect disk.erofs --json | jq -r '.images[].name'
  localregistry inspect disk.erofs --export layout/ && localregistry pack layout/ -o same.erofs"
)]
pub struct Args {
    /// The disk
    #[arg(value_name = "DISK")]
    disk: PathBuf,

    /// Hash everything, and name what is wrong
    #[arg(long)]
    verify: bool,

    /// Write the disk's image layout to this folder, which is to be new or empty
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
}

/// Why a disk is not shown, or is not whole.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It cannot be opened.
    #[error("cannot inspect {}", disk.display())]
    Disk {
        /// The disk.
        disk: PathBuf,
        /// Why not.
        source: DiskError,
    },
    /// Its content cannot be listed.
    #[error("cannot inspect {}", disk.display())]
    Contents {
        /// The disk.
        disk: PathBuf,
        /// Why not.
        source: ContentsError,
    },
    /// Its catalog cannot be read, is of another version, or damaged.
    #[error("cannot inspect {}", disk.display())]
    Catalog {
        /// The disk.
        disk: PathBuf,
        /// What is wrong.
        source: StoreError,
    },
    /// A file cannot be read.
    #[error("cannot inspect {}: cannot read {file}", disk.display())]
    Read {
        /// The disk.
        disk: PathBuf,
        /// What of it.
        file: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It has faults, which were named.
    #[error("{} has {}", disk.display(), counted(*faults, "fault"))]
    Faults {
        /// The disk.
        disk: PathBuf,
        /// How many.
        faults: usize,
    },
    /// The layout cannot be exported.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A signal came.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// No signals can be caught.
    #[error("cannot start a thread for signals")]
    Signals(#[source] io::Error),
    /// The result cannot be printed.
    #[error("the result cannot be printed")]
    Print(#[source] io::Error),
}

impl InspectError {
    /// The status that the process ends with: 128 and its number after a signal, as a shell has it, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted(cause)
            | Self::Export(ExportError::Interrupted(cause))
            | Self::Contents { source: ContentsError::Interrupted(cause), .. } => u8::try_from(128 + cause.0 as i32).unwrap_or(1),
            _ => 1,
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// [`InspectError`].
pub fn run(args: &Args, report: Report) -> Result<(), InspectError> {
    let interrupt = Interrupt::catch().map_err(InspectError::Signals)?;
    let done = inspect(args, report, &interrupt);
    // What a signal cut short fails in many ways, of which it is the cause.
    if done.is_err() {
        interrupt.check()?;
    }
    done
}

fn inspect(args: &Args, report: Report, interrupt: &Interrupt) -> Result<(), InspectError> {
    let named = || args.disk.clone();
    if let Some(folder) = &args.export {
        export::check(folder)?;
    }
    report.step(format!("reading {}", args.disk.display()));
    let disk = Disk::open(&args.disk, interrupt).map_err(|source| InspectError::Disk { disk: named(), source })?;
    let tree = disk.tree.as_ref();
    let bar = report.bytes_bar("hashing the disk", disk.bytes.unwrap_or_default());
    let (digest, contents) = thread::scope(|scope| {
        let digest = scope.spawn(|| digest(&args.disk, disk.form, &bar, interrupt));
        let contents = Contents::read(tree, args.verify, interrupt);
        (digest.join().unwrap_or_else(|_| Err(io::Error::other("the thread that hashes it died"))), contents)
    });
    bar.finish_and_clear();
    let mut contents = contents.map_err(|source| InspectError::Contents { disk: named(), source })?;
    let digest = digest.map_err(|source| InspectError::Read { disk: named(), file: "the whole of it", source })?;
    // Last, when the memory that reading the index took is free again.
    let catalog = store::load_catalog(tree).map_err(|source| InspectError::Catalog { disk: named(), source })?;

    let mut verified = None;
    let mut differences = Vec::new();
    if args.verify {
        verified = Some(
            verify(tree, &mut contents, report, interrupt).map_err(|source| InspectError::Contents { disk: named(), source })?,
        );
        if let Some(catalog) = &catalog {
            differences = verify::catalog(catalog, &contents, interrupt)?;
        }
    }
    let faults = findings(&contents, &differences);
    for fault in &faults {
        eprintln!("{}: {}", args.disk.display(), fault.message);
    }
    let exported = args.export.as_deref().filter(|_| faults.is_empty());
    if let Some(folder) = exported {
        let bytes = contents.blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        report.step(format!("exporting to {}, {}", folder.display(), HumanBytes(bytes)));
        let bar = report.bytes_bar("exporting", bytes);
        let done = export::export(tree, &contents, folder, &bar, interrupt);
        bar.finish_and_clear();
        done?;
    }
    let document = Document::new(&args.disk, &disk, digest, catalog.as_ref(), &contents, verified, exported, &faults);
    let text = if report.json { String::new() } else { table::disk(&document, table::Style::of_stdout()) };
    report.result(&document, &text).map_err(InspectError::Print)?;
    if faults.is_empty() { Ok(()) } else { Err(InspectError::Faults { disk: named(), faults: faults.len() }) }
}

/// The digest of the disk's file; a folder has none.
fn digest(disk: &Path, form: Form, bar: &ProgressBar, interrupt: &Interrupt) -> io::Result<Option<Digest>> {
    if form == Form::Folder {
        return Ok(None);
    }
    let mut file = File::open(disk)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; verify::CHUNK];
    loop {
        interrupt.check_io()?;
        let count = file.read(&mut buffer)?;
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

/// What is wrong, each with the images that it is wrong for.
fn findings(contents: &Contents, differences: &[String]) -> Vec<Finding> {
    let faulty: HashSet<u32> = contents.faults.iter().map(|(number, _)| *number).collect();
    let mut holders = if faulty.is_empty() { Default::default() } else { contents.images_with(&faulty) };
    let blobs = contents.faults.iter().filter_map(|(number, fault)| {
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

/// `1 blob`, `2 blobs`.
#[must_use]
pub fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
