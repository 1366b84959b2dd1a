//! `localregistry diff`: which images of two disks differ. What enters are two disks; what leaves is a list, and an exit status as
//! diff(1) has it. Only images that differ are read beyond the index.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::HumanBytes;
use schemars::JsonSchema;
use serde::Serialize;

use super::contents::{self, Blob, BlobKind, Contents, ContentsError, every_tag_name};
use super::counted;
use super::reader::{Disk, DiskError};
use super::table::short;
use crate::disk::layout::IndexEntry;
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::host::support::report::Report;
use crate::oci::Digest;

/// Exit status where images differ.
const DIFFERENT: u8 = 1;
/// Exit status where nothing can be said.
const TROUBLE: u8 = 2;

/// Show which images of two disks differ
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A and B are disks as localregistry inspect takes them: EROFS, squashfs or ext4 images, OCI image layouts as folders or \
archives; the two need not be of one form. Images are told apart by their names, and are the same where their digests are.

Exit codes: 0 the same images, 1 some differ, 2 trouble.

With --json: a, b, same, added [{name, digest, bytes}], removed [the same], changed [{name, from, to, layers_added [{digest, \
bytes}], layers_removed [the same], bytes_added, bytes_removed}], unchanged.

Examples:
  localregistry diff yesterday.erofs today.erofs
  localregistry diff disk.erofs images/ --json | jq -r '.changed[].name'
  localregistry diff --quiet a.erofs b.erofs || localregistry pack images/ -o a.erofs"
)]
pub struct Args {
    /// The old disk
    #[arg(value_name = "A")]
    a: PathBuf,

    /// The new disk
    #[arg(value_name = "B")]
    b: PathBuf,
}

/// Why two disks cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// One cannot be opened.
    #[error("cannot compare {}", disk.display())]
    Disk {
        /// Which.
        disk: PathBuf,
        /// Why not.
        source: DiskError,
    },
    /// Its index or its images cannot be read.
    #[error("cannot compare {}", disk.display())]
    Contents {
        /// Which.
        disk: PathBuf,
        /// Why not.
        source: ContentsError,
    },
    /// An image that differs is damaged.
    #[error("cannot compare {}: {fault}; localregistry inspect --verify names every fault", disk.display())]
    Fault {
        /// Which.
        disk: PathBuf,
        /// What is wrong.
        fault: String,
    },
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

impl DiffError {
    /// The status that the process ends with: 128 and its number after a signal, as a shell has it, else `TROUBLE`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted(cause) => u8::try_from(128 + cause.0 as i32).unwrap_or(TROUBLE),
            _ => TROUBLE,
        }
    }
}

/// How two disks differ.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DiffResult")]
pub(crate) struct Difference {
    /// The first disk, as it was given.
    a: PathBuf,
    /// The second disk, as it was given.
    b: PathBuf,
    /// Whether both have the same images.
    same: bool,
    /// The images that only the second disk has.
    added: Vec<One>,
    /// The images that only the first disk has.
    removed: Vec<One>,
    /// The images whose name both have, with another manifest.
    changed: Vec<Change>,
    /// How many images are the same.
    unchanged: usize,
}

/// An image that one disk has alone.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DiffImage")]
struct One {
    /// The image's name.
    name: String,
    /// Digest of its manifest.
    digest: String,
    /// Its size in bytes, with all its blobs.
    bytes: u64,
}

/// An image that differs.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DiffChange")]
struct Change {
    /// The image's name.
    name: String,
    /// Digest of its manifest on the first disk.
    from: String,
    /// Digest of its manifest on the second disk.
    to: String,
    /// The layers that it has on the second disk only.
    layers_added: Vec<Layer>,
    /// The layers that it has on the first disk only.
    layers_removed: Vec<Layer>,
    /// Size of the added layers in bytes.
    bytes_added: u64,
    /// Size of the removed layers in bytes.
    bytes_removed: u64,
}

/// A layer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DiffLayer")]
struct Layer {
    /// Its digest.
    digest: String,
    /// Its size in bytes.
    bytes: u64,
}

/// Runs the subcommand, and gives the exit code 0 or 1.
///
/// # Errors
/// [`DiffError`], for the exit code `TROUBLE`.
pub fn run(args: &Args, report: &Report) -> Result<ExitCode, DiffError> {
    let interrupt = Interrupt::catch().map_err(DiffError::Signals)?;
    let compared = compare(args, report, &interrupt);
    if compared.is_err() {
        interrupt.check()?;
    }
    let difference = compared?;
    report.result(&difference, &text(&difference)).map_err(DiffError::Print)?;
    Ok(if difference.same { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
}

/// A disk, and the entries of its index by name.
struct Side<'a> {
    path: &'a Path,
    disk: Disk,
    entries: BTreeMap<String, IndexEntry>,
}

fn compare(args: &Args, report: &Report, interrupt: &Interrupt) -> Result<Difference, DiffError> {
    let mut a = Side::open(&args.a, report, interrupt)?;
    let mut b = Side::open(&args.b, report, interrupt)?;
    let all = a.entries.len();
    let same = |entry: &IndexEntry, other: Option<&IndexEntry>| {
        other.is_some_and(|other| other.descriptor.digest == entry.descriptor.digest)
    };
    let kept: HashSet<String> =
        a.entries.iter().filter(|(name, entry)| same(entry, b.entries.get(*name))).map(|(name, _)| name.clone()).collect();
    a.entries.retain(|name, _| !kept.contains(name));
    b.entries.retain(|name, _| !kept.contains(name));
    let unchanged = all - a.entries.len();

    let (a, b) = (a.read(interrupt)?, b.read(interrupt)?);
    let (mut removed, mut changed) = (Vec::new(), Vec::new());
    for (name, image) in &a {
        match b.get(name) {
            Some(new) => changed.push(change(name, image, new)),
            None => removed.push(one(name, image)),
        }
    }
    let added: Vec<One> = b.iter().filter(|(name, _)| !a.contains_key(*name)).map(|(name, image)| one(name, image)).collect();
    let same = added.is_empty() && removed.is_empty() && changed.is_empty();
    Ok(Difference { a: args.a.clone(), b: args.b.clone(), same, added, removed, changed, unchanged })
}

impl<'a> Side<'a> {
    fn open(path: &'a Path, report: &Report, interrupt: &Interrupt) -> Result<Self, DiffError> {
        report.step(format!("reading {}", path.display()));
        let disk = Disk::open(path, interrupt).map_err(|source| DiffError::Disk { disk: path.to_owned(), source })?;
        let entries = contents::entries(disk.tree.as_ref(), interrupt);
        let entries = entries.map_err(|source| DiffError::Contents { disk: path.to_owned(), source })?;
        let entries = entries.into_iter().map(|entry| (label(&entry), entry)).collect();
        Ok(Self { path, disk, entries })
    }

    /// The blobs of each image that is left, itself first.
    fn read(self, interrupt: &Interrupt) -> Result<BTreeMap<String, Vec<Blob>>, DiffError> {
        let entries = self.entries.into_values().collect();
        let contents = Contents::read_entries(self.disk.tree.as_ref(), entries, false, interrupt);
        let contents = contents.map_err(|source| DiffError::Contents { disk: self.path.to_owned(), source })?;
        if let Some((number, fault)) = contents.faults.first() {
            let digest = contents.blobs.get(*number as usize).map(|blob| blob.digest.to_string()).unwrap_or_default();
            return Err(DiffError::Fault { disk: self.path.to_owned(), fault: format!("blob {digest} {fault}") });
        }
        let blobs = |image| contents.root(image).map(|root| contents.blobs_of(root).cloned().collect()).unwrap_or_default();
        Ok(contents.images.iter().map(|image| (contents.display_name(image), blobs(image))).collect())
    }
}

/// The name by which an entry is told from others: as [`Contents::label`].
fn label(entry: &IndexEntry) -> String {
    every_tag_name(entry.repository.as_ref(), entry.every_tag).unwrap_or_else(|| entry.name())
}

fn one(name: &str, blobs: &[Blob]) -> One {
    let digest = blobs.first().map(|blob| blob.digest.to_string()).unwrap_or_default();
    One { name: name.to_owned(), digest, bytes: blobs.iter().fold(0, |sum, blob| sum.saturating_add(blob.size)) }
}

fn change(name: &str, from: &[Blob], to: &[Blob]) -> Change {
    let digest = |blobs: &[Blob]| blobs.first().map(|blob| blob.digest.to_string()).unwrap_or_default();
    let (layers_added, layers_removed) = (layers(to, from), layers(from, to));
    let bytes = |layers: &[Layer]| layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.bytes));
    Change {
        name: name.to_owned(),
        from: digest(from),
        to: digest(to),
        bytes_added: bytes(&layers_added),
        bytes_removed: bytes(&layers_removed),
        layers_added,
        layers_removed,
    }
}

/// The layers of one that the other has not.
fn layers(of: &[Blob], without: &[Blob]) -> Vec<Layer> {
    let known: HashSet<Digest> = without.iter().map(|blob| blob.digest).collect();
    let new = of.iter().filter(|blob| blob.kind == BlobKind::Layer && !known.contains(&blob.digest));
    new.map(|blob| Layer { digest: blob.digest.to_string(), bytes: blob.size }).collect()
}

fn text(difference: &Difference) -> String {
    let one =
        |sign: char| move |image: &One| format!("{sign} {}  {}  {}", image.name, short(&image.digest), HumanBytes(image.bytes));
    let mut lines: Vec<String> = difference.removed.iter().map(one('-')).collect();
    lines.extend(difference.added.iter().map(one('+')));
    for change in &difference.changed {
        let layers = |sign, layers: &[Layer], bytes| format!("{sign}{} of {}", counted(layers.len(), "layer"), HumanBytes(bytes));
        lines.push(format!(
            "~ {}  {} -> {}  {}  {}",
            change.name,
            short(&change.from),
            short(&change.to),
            layers('+', &change.layers_added, change.bytes_added),
            layers('-', &change.layers_removed, change.bytes_removed),
        ));
    }
    let Difference { added, removed, changed, unchanged, .. } = difference;
    lines.push(format!("{} removed, {} added, {} changed, {unchanged} the same", removed.len(), added.len(), changed.len()));
    lines.join("\n")
}
