//! `localregistry diff`: compares the images of two disks. The exit status is that of diff(1). The manifests of both disks are
//! checked, whether their images differ or not.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::HumanBytes;
use schemars::JsonSchema;
use serde::Serialize;

use super::contents::{Blob, BlobKind, Contents, Root};
use super::look::{CheckedDisk, DamageError};
use super::table::short;
use crate::disk::layout::LeftOver;
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
  localregistry diff --quiet a.erofs b.erofs; [ $? -ne 1 ] || localregistry pack images/ -o a.erofs"
)]
pub struct DiffArgs {
    /// Old disk
    #[arg(value_name = "A")]
    a: PathBuf,

    /// New disk
    #[arg(value_name = "B")]
    b: PathBuf,

    /// Take layouts without a catalog even if their images lack layers, or indexes lack manifests. As `serve --allow-missing`
    #[arg(long)]
    allow_missing: bool,
}

/// Why two disks cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A disk cannot be used.
    #[error("cannot compare {}", disk.display())]
    Disk {
        /// The disk.
        disk: PathBuf,
        /// The cause.
        source: DamageError,
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
    let _only_reads = interrupt.end_at_once("");
    let compared = compare(args, report, &interrupt);
    if compared.is_err() {
        interrupt.check()?;
    }
    let difference = compared?;
    report.result(&difference, &text(&difference)).map_err(DiffError::Print)?;
    Ok(if difference.same { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
}

fn compare(args: &DiffArgs, report: &Report, interrupt: &Interrupt) -> Result<DiffResult, DiffError> {
    let open = |path: &Path| {
        report.step(format!("reading {}", path.display()));
        let opened = CheckedDisk::open(path, args.allow_missing, interrupt);
        let CheckedDisk { contents, .. } = opened.map_err(|source| DiffError::Disk { disk: path.to_owned(), source })?;
        report.steps(contents.left_over_of(path), LeftOver::others);
        Ok::<_, DiffError>(contents)
    };
    let (old, new) = (open(&args.a)?, open(&args.b)?);
    let (a, b) = (roots(&old), roots(&new));
    let (mut removed, mut changed) = (Vec::new(), Vec::new());
    for (name, root) in &a {
        match b.get(name) {
            Some(other) if is_same((&old, root), (&new, other)) => {}
            Some(other) => changed.push(change(name, &blobs(&old, root), &blobs(&new, other))),
            None => removed.push(image_of(name, &blobs(&old, root))),
        }
    }
    let unchanged = a.len() - removed.len() - changed.len();
    let is_new = |(name, _): &(&String, &&Root)| !a.contains_key(*name);
    let added: Vec<DiffImage> = b.iter().filter(is_new).map(|(name, root)| image_of(name, &blobs(&new, root))).collect();
    let same = added.is_empty() && removed.is_empty() && changed.is_empty();
    let (a, b) = (args.a.display().to_string(), args.b.display().to_string());
    Ok(DiffResult { a, b, same, added, removed, changed, unchanged })
}

/// The images by name.
fn roots(contents: &Contents) -> BTreeMap<String, &Root> {
    contents.images.iter().filter_map(|image| Some((contents.display_name(image), contents.root(image)?))).collect()
}

/// The blobs of an image, its manifest first.
fn blobs<'a>(contents: &'a Contents, root: &'a Root) -> Vec<&'a Blob> {
    contents.blobs_of(root).collect()
}

/// Whether two images have one digest, and lack the same on purpose.
fn is_same((a, root): (&Contents, &Root), (b, other): (&Contents, &Root)) -> bool {
    let digest = |contents: &Contents, root| contents.blobs_of(root).next().map(|blob| blob.digest);
    let left_out = |root: &Root| root.left_out.iter().map(|blob| blob.digest).collect::<HashSet<_>>();
    digest(a, root) == digest(b, other) && left_out(root) == left_out(other)
}

fn image_of(name: &str, blobs: &[&Blob]) -> DiffImage {
    let digest = blobs.first().map(|blob| blob.digest.to_string()).unwrap_or_default();
    DiffImage { name: name.to_owned(), digest, bytes: blobs.iter().fold(0, |sum, blob| sum.saturating_add(blob.size)) }
}

fn change(name: &str, from: &[&Blob], to: &[&Blob]) -> Change {
    let digest = |blobs: &[&Blob]| blobs.first().map(|blob| blob.digest.to_string()).unwrap_or_default();
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
fn layers(of: &[&Blob], without: &[&Blob]) -> Vec<Layer> {
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
