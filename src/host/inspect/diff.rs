//! `localregistry diff`: compares the images of two disks. The exit status is that of diff(1). The manifests of both disks are
//! checked, whether their images differ or not.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::HumanBytes;
use schemars::JsonSchema;
use serde::Serialize;

use super::contents::{self, Blob, BlobKind, Contents, ContentsError, every_tag_name};
use super::reader::{Disk, DiskError};
use super::table::short;
use super::verify::{self, DamageError};
use crate::disk::layout::IndexEntry;
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::host::support::report::{Report, counted};
use crate::oci::Digest;

/// Exit status: images differ.
const DIFFERENT: u8 = 1;
/// Exit status: an error.
const TROUBLE: u8 = 2;

/// Show which images of two disks differ
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A and B are disks, image layouts or archives, in any form that `localregistry inspect` reads. Images are matched by \
name and compared by digest. An index with one digest differs too if the disks have other platforms of it.

`localregistry schema` describes the fields of --json (DiffResult).

Exit status: 0 the images are the same, 1 some differ, 2 an error.

Examples:
  localregistry diff yesterday.erofs today.erofs
  localregistry diff disk.erofs images/ --json | jq -r '.changed[].name'
  localregistry diff --quiet a.erofs b.erofs || localregistry pack images/ -o a.erofs"
)]
pub struct DiffArgs {
    /// Old disk
    #[arg(value_name = "A")]
    a: PathBuf,

    /// New disk
    #[arg(value_name = "B")]
    b: PathBuf,
}

/// Why two disks cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A disk cannot be opened.
    #[error("cannot compare {}", disk.display())]
    Disk {
        /// The disk.
        disk: PathBuf,
        /// The cause.
        source: DiskError,
    },
    /// The index or the images of a disk cannot be read.
    #[error("cannot compare {}", disk.display())]
    Contents {
        /// The disk.
        disk: PathBuf,
        /// The cause.
        source: ContentsError,
    },
    /// A manifest or the catalog is damaged.
    #[error("cannot compare {}", disk.display())]
    Damaged {
        /// The disk.
        disk: PathBuf,
        /// The cause.
        source: DamageError,
    },
    /// An image that differs is damaged.
    #[error("cannot compare {}: {fault}; `localregistry inspect --verify` lists all faults", disk.display())]
    Fault {
        /// The disk.
        disk: PathBuf,
        /// The fault.
        fault: String,
    },
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

impl DiffError {
    /// The exit status: after a signal 128 plus the signal's number, as in a shell; else `TROUBLE`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted(cause) => cause.exit_code(),
            _ => TROUBLE,
        }
    }
}

/// The differences between two disks.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DiffResult")]
pub(crate) struct DiffResult {
    /// The first disk.
    a: String,
    /// The second disk.
    b: String,
    /// Whether both have the same images.
    same: bool,
    /// Images only on the second disk.
    added: Vec<DiffImage>,
    /// Images only on the first disk.
    removed: Vec<DiffImage>,
    /// Images on both disks with different manifests, or with different platforms of one index.
    changed: Vec<Change>,
    /// Number of images that are the same.
    unchanged: usize,
}

/// An image on only one of the disks.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DiffImage")]
struct DiffImage {
    /// The image's name.
    name: String,
    /// Digest of the manifest.
    digest: String,
    /// Total size of its blobs, in bytes.
    bytes: u64,
}

/// An image that differs between the two disks.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DiffChange")]
struct Change {
    /// The image's name.
    name: String,
    /// Digest of the manifest on the first disk.
    from: String,
    /// Digest of the manifest on the second disk.
    to: String,
    /// Layers only on the second disk.
    layers_added: Vec<Layer>,
    /// Layers only on the first disk.
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

/// Runs `localregistry diff`, and returns exit status 0 or 1.
///
/// # Errors
/// Fails if the disks cannot be compared, with exit status `TROUBLE`.
pub fn run(args: &DiffArgs, report: &Report) -> Result<ExitCode, DiffError> {
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

fn compare(args: &DiffArgs, report: &Report, interrupt: &Interrupt) -> Result<DiffResult, DiffError> {
    let mut a = Side::open(&args.a, report, interrupt)?;
    let mut b = Side::open(&args.b, report, interrupt)?;
    let all = a.entries.len();
    let same = |entry: &IndexEntry, other: Option<&IndexEntry>| {
        other.is_some_and(|other| other.descriptor.digest == entry.descriptor.digest && left_out(other) == left_out(entry))
    };
    let unchanged_names: HashSet<String> =
        a.entries.iter().filter(|(name, entry)| same(entry, b.entries.get(*name))).map(|(name, _)| name.clone()).collect();
    a.entries.retain(|name, _| !unchanged_names.contains(name));
    b.entries.retain(|name, _| !unchanged_names.contains(name));
    let unchanged = all - a.entries.len();

    let (a, b) = (a.read(interrupt)?, b.read(interrupt)?);
    let (mut removed, mut changed) = (Vec::new(), Vec::new());
    for (name, image) in &a {
        match b.get(name) {
            Some(new) => changed.push(change(name, image, new)),
            None => removed.push(image_of(name, image)),
        }
    }
    let added: Vec<DiffImage> =
        b.iter().filter(|(name, _)| !a.contains_key(*name)).map(|(name, image)| image_of(name, image)).collect();
    let same = added.is_empty() && removed.is_empty() && changed.is_empty();
    let (a, b) = (args.a.display().to_string(), args.b.display().to_string());
    Ok(DiffResult { a, b, same, added, removed, changed, unchanged })
}

impl<'a> Side<'a> {
    fn open(path: &'a Path, report: &Report, interrupt: &Interrupt) -> Result<Self, DiffError> {
        report.step(format!("reading {}", path.display()));
        let disk = Disk::open(path, interrupt).map_err(|source| DiffError::Disk { disk: path.to_owned(), source })?;
        let entries = contents::entries(disk.tree.as_ref(), interrupt);
        let entries = entries.map_err(|source| DiffError::Contents { disk: path.to_owned(), source })?;
        let checked = verify::names(disk.tree.as_ref(), interrupt);
        checked.map_err(|source| DiffError::Damaged { disk: path.to_owned(), source })?;
        let entries = entries.into_iter().map(|entry| (label(&entry), entry)).collect();
        Ok(Self { path, disk, entries })
    }

    /// Reads the blobs of each remaining image, its manifest first.
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

/// What the image of an entry lacks on purpose.
fn left_out(entry: &IndexEntry) -> HashSet<&Digest> {
    entry.left_out.iter().collect()
}

/// The name of an entry in the comparison, as [`Contents::label`].
fn label(entry: &IndexEntry) -> String {
    every_tag_name(entry.repository.as_ref(), entry.every_tag).unwrap_or_else(|| entry.name())
}

fn image_of(name: &str, blobs: &[Blob]) -> DiffImage {
    let digest = blobs.first().map(|blob| blob.digest.to_string()).unwrap_or_default();
    DiffImage { name: name.to_owned(), digest, bytes: blobs.iter().fold(0, |sum, blob| sum.saturating_add(blob.size)) }
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

/// The layers in `of` that are not in `without`.
fn layers(of: &[Blob], without: &[Blob]) -> Vec<Layer> {
    let known: HashSet<Digest> = without.iter().map(|blob| blob.digest).collect();
    let new = of.iter().filter(|blob| blob.kind == BlobKind::Layer && !known.contains(&blob.digest));
    new.map(|blob| Layer { digest: blob.digest.to_string(), bytes: blob.size }).collect()
}

fn text(result: &DiffResult) -> String {
    let image_line = |sign: char| {
        move |image: &DiffImage| format!("{sign} {}  {}  {}", image.name, short(&image.digest), HumanBytes(image.bytes))
    };
    let mut lines: Vec<String> = result.removed.iter().map(image_line('-')).collect();
    lines.extend(result.added.iter().map(image_line('+')));
    for change in &result.changed {
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
    let DiffResult { added, removed, changed, unchanged, .. } = result;
    lines.push(format!("{} removed, {} added, {} changed, {unchanged} the same", removed.len(), added.len(), changed.len()));
    lines.join("\n")
}
