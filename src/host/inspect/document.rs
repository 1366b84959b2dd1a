//! The result of `inspect` as JSON and as rows of the table. Rows are generated while they are written, so that a disk with 100,000
//! images needs no memory for them.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::contents::BlobKind;
use super::reader::Disk;
use super::{Contents, Image};
use crate::disk::catalog::{self, Catalog};
use crate::disk::layout::LeftOutBlob;
use crate::oci::{Digest, media_type};

/// Most images that a message lists.
const MAX_NAMED: usize = 3;

/// The content of a disk.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "InspectResult")]
pub struct Document<'a> {
    /// The disk.
    pub disk: String,
    /// `erofs`, `squashfs`, `ext4`, `archive` or `folder`.
    pub form: &'static str,
    /// Size of the file in bytes; null for a folder.
    pub bytes: Option<u64>,
    /// SHA-256 digest of the whole file; null for a folder.
    pub digest: Option<String>,
    /// The disk's catalog; null if it has none.
    pub catalog: Option<CatalogFacts>,
    /// The upstream hosts in names of images.
    pub upstreams: Vec<&'a str>,
    /// Totals over all images.
    pub totals: Totals,
    /// The images, sorted by name.
    #[schemars(with = "Vec<ImageRow<'a>>")]
    pub images: Rows<'a>,
    /// Digests of the entries of the index that are left out, because they name no image and belong to none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_over: Vec<String>,
    /// What was verified; null without `--verify`.
    pub verified: Option<Verified>,
    /// The folder that the layout was written to; null without `--export`.
    pub exported: Option<String>,
    /// The faults that were found.
    #[schemars(with = "Vec<Finding>")]
    pub faults: &'a [Finding],
}

/// The catalog of a disk.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(rename = "DiskCatalog")]
pub struct CatalogFacts {
    /// Format version of the catalog.
    pub version: u32,
    /// Number of tags in the catalog.
    pub tags: usize,
}

/// Totals over a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DiskTotals")]
pub struct Totals {
    /// Entries of the index, with or without a tag.
    pub images: usize,
    /// Number of repositories.
    pub repositories: usize,
    /// Number of distinct manifests and indexes.
    pub manifests: usize,
    /// Number of distinct blobs, including manifests.
    pub blobs: usize,
    /// Total size of the blobs, in bytes.
    pub blob_bytes: u64,
    /// Number of blobs in more than one image. Tags of one manifest count as one image.
    pub shared_blobs: usize,
    /// Total size of the shared blobs in bytes, each counted once.
    pub shared_bytes: u64,
    /// Bytes saved because shared blobs are stored once.
    pub saved_bytes: u64,
    /// Number of distinct blobs that images name and that are left out on purpose.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: usize,
}

const fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Content that an image names and that is left out on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DiskLeftOut")]
pub struct LeftOutRow<'a> {
    /// Its digest.
    pub digest: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The platform of a manifest; null if its index gives it none, and for other content.
    pub platform: Option<&'a str>,
}

/// What was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DiskVerified")]
pub struct Verified {
    /// Number of blobs.
    pub blobs: usize,
    /// Total size of the blobs, in bytes.
    pub bytes: u64,
}

/// A fault of the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DiskFault")]
pub struct Finding {
    /// `missing`, `size`, `content`, `unreadable`, `manifest` or `catalog`.
    pub kind: &'static str,
    /// Digest of the faulty blob; null for a fault of the catalog.
    pub blob: Option<String>,
    /// The images that contain the blob.
    pub images: Vec<String>,
    /// The fault in words.
    pub message: String,
}

/// An image on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DiskImage")]
pub struct ImageRow<'a> {
    /// The name as clients write it.
    pub name: String,
    /// The host in the image's name; null if it has none.
    pub upstream: Option<&'a str>,
    /// The repository without the host; null for an image without a name.
    pub repository: Option<&'a str>,
    /// The tag; null for an image without one.
    pub tag: Option<&'a str>,
    /// Whether the image is also served for every tag that its repository does not have.
    pub every_tag: bool,
    /// The name in the table.
    #[serde(skip)]
    pub label: String,
    /// Digest of the manifest.
    pub digest: String,
    /// `image`, `index` or `artifact`.
    pub kind: &'static str,
    /// Media type of the manifest.
    pub media_type: &'a str,
    /// The artifact type; null for an image without one.
    pub artifact_type: Option<&'a str>,
    /// Digest of the manifest it refers to (`subject`); null for an image without one.
    pub subject: Option<String>,
    /// Its platforms: os/architecture, and /variant if there is one.
    pub platforms: Vec<&'a str>,
    /// Number of blobs, including manifests.
    pub blobs: usize,
    /// Total size of the blobs, in bytes.
    pub bytes: u64,
    /// Bytes of blobs that other images share.
    pub shared_bytes: u64,
    /// What is left out on purpose: manifests for other platforms (`pack --platform`), and what the sources lacked
    /// (`pack --allow-missing`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOutRow<'a>>,
}

/// Generates the rows of all images.
#[derive(Clone, Copy)]
pub struct Rows<'a>(&'a Contents);

impl<'a> Document<'a> {
    /// Assembles the result.
    #[expect(clippy::too_many_arguments, reason = "each argument is a field of the document")]
    pub fn new(
        path: &'a Path,
        disk: &Disk,
        digest: Option<Digest>,
        catalog: Option<&Catalog>,
        contents: &'a Contents,
        verified: Option<Verified>,
        exported: Option<&'a Path>,
        faults: &'a [Finding],
    ) -> Self {
        let upstreams: BTreeSet<&str> = repositories(contents).filter_map(|repository| repository.host()).collect();
        Self {
            disk: path.display().to_string(),
            form: disk.form.name(),
            bytes: disk.bytes,
            digest: digest.map(|digest| digest.to_string()),
            catalog: catalog.map(|catalog| CatalogFacts { version: catalog::VERSION, tags: catalog.tag_count() }),
            upstreams: upstreams.into_iter().collect(),
            totals: totals(contents),
            images: Rows(contents),
            left_over: contents.left_over.iter().map(ToString::to_string).collect(),
            verified,
            exported: exported.map(|folder| folder.display().to_string()),
            faults,
        }
    }
}

fn repositories(contents: &Contents) -> impl Iterator<Item = &crate::oci::Repository> {
    contents.images.iter().filter_map(|image| image.repository.as_ref())
}

fn totals(contents: &Contents) -> Totals {
    let repositories: BTreeSet<&str> = repositories(contents).map(crate::oci::Repository::as_str).collect();
    let mut totals = Totals { images: contents.images.len(), repositories: repositories.len(), ..Totals::default() };
    let left_out: HashSet<Digest> = contents.roots.iter().flat_map(|root| &root.left_out).map(|blob| blob.digest).collect();
    totals.left_out = left_out.len();
    for blob in &contents.blobs {
        totals.manifests += usize::from(matches!(blob.kind, BlobKind::Manifest(_)));
        totals.blobs += 1;
        totals.blob_bytes = totals.blob_bytes.saturating_add(blob.size);
        if blob.roots > 1 {
            totals.shared_blobs += 1;
            totals.shared_bytes = totals.shared_bytes.saturating_add(blob.size);
            totals.saved_bytes = totals.saved_bytes.saturating_add(blob.size.saturating_mul(u64::from(blob.roots - 1)));
        }
    }
    totals
}

impl<'a> Rows<'a> {
    /// The rows, sorted by name.
    pub fn iter(self) -> impl Iterator<Item = ImageRow<'a>> {
        self.0.images.iter().filter_map(move |image| row(self.0, image))
    }
}

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

fn left_out_row(blob: &LeftOutBlob) -> LeftOutRow<'_> {
    LeftOutRow { digest: blob.digest.to_string(), bytes: blob.size, platform: blob.platform.as_deref() }
}

fn row<'a>(contents: &'a Contents, image: &'a Image) -> Option<ImageRow<'a>> {
    let root = contents.root(image)?;
    let head = contents.root_blob(image)?;
    let BlobKind::Manifest(kind) = &head.kind else { return None };
    let sum = |shared: bool| {
        let blobs = contents.blobs_of(root).filter(|blob| !shared || blob.roots > 1);
        blobs.fold(0_u64, |sum, blob| sum.saturating_add(blob.size))
    };
    let artifact = root.artifact_type.is_some() || root.subject().is_some();
    Some(ImageRow {
        name: contents.name(image),
        upstream: image.repository.as_ref().and_then(|repository| repository.host()),
        repository: image.repository.as_ref().map(|repository| repository.path()),
        tag: image.tag.as_ref().map(|tag| tag.as_str()),
        every_tag: image.every_tag,
        label: contents.display_name(image),
        digest: head.digest.to_string(),
        kind: match (artifact, media_type::is_index(kind)) {
            (true, _) => "artifact",
            (false, true) => "index",
            (false, false) => "image",
        },
        media_type: kind,
        artifact_type: root.artifact_type.as_deref(),
        subject: root.subject().map(|subject| subject.to_string()),
        platforms: root.platforms.iter().map(AsRef::as_ref).collect(),
        blobs: root.blobs.len(),
        bytes: sum(false),
        shared_bytes: sum(true),
        left_out: root.left_out.iter().map(left_out_row).collect(),
    })
}

/// Lists images at the end of a message.
pub fn part_of(images: &[String]) -> String {
    if images.is_empty() {
        return "index.json lists it without the name of an image, and it may be a signature of one".to_owned();
    }
    let (first, rest) = images.split_at(images.len().min(MAX_NAMED));
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    format!("it is part of {}{more}", first.join(", "))
}
