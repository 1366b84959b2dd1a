//! The result of `inspect` as programs get it, and the table's rows: names and numbers, made one by one while they are written, so that
//! 100,000 images take no memory of their own here.

use std::collections::BTreeSet;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::contents::BlobKind;
use super::reader::Disk;
use super::{Contents, Image};
use crate::disk::catalog::{self, Catalog};
use crate::oci::{Digest, media_type};

/// Most images that a message names.
const MAX_NAMED: usize = 3;

/// What a disk holds.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "InspectResult")]
pub struct Document<'a> {
    /// The disk, as it was given.
    pub disk: &'a Path,
    /// `erofs`, `squashfs`, `ext4`, `archive` or `folder`.
    pub form: &'static str,
    /// Its own size in bytes; null for a folder.
    pub bytes: Option<u64>,
    /// The digest of the whole file, as sha256sum has it; null for a folder.
    pub digest: Option<String>,
    /// Its catalog; null where it has none.
    pub catalog: Option<CatalogFacts>,
    /// The registries that it stands in for.
    pub upstreams: Vec<&'a str>,
    /// Sums.
    pub totals: Totals,
    /// Its images, in order of their names.
    #[schemars(with = "Vec<Row<'a>>")]
    pub images: Rows<'a>,
    /// What was hashed; null without `--verify`.
    pub verified: Option<Verified>,
    /// The folder that the layout was written to; null without `--export`.
    pub exported: Option<&'a Path>,
    /// What is wrong.
    #[schemars(with = "Vec<Finding>")]
    pub faults: &'a [Finding],
}

/// What is said of the catalog itself.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(rename = "DiskCatalog")]
pub struct CatalogFacts {
    /// Its version.
    pub version: u32,
    /// How many tags it has.
    pub tags: usize,
}

/// Sums over a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DiskTotals")]
pub struct Totals {
    /// Entries of the index: tags, and what has none.
    pub images: usize,
    /// Distinct repositories.
    pub repositories: usize,
    /// Distinct manifests and indexes.
    pub manifests: usize,
    /// Distinct blobs, manifests among them.
    pub blobs: usize,
    /// Their size in bytes.
    pub blob_bytes: u64,
    /// Blobs that several images have. (Tags of one manifest are one image in this.)
    pub shared_blobs: usize,
    /// Their size in bytes, each counted once.
    pub shared_bytes: u64,
    /// Bytes that the disk would need more if nothing were shared.
    pub saved_bytes: u64,
}

/// What was hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DiskVerified")]
pub struct Verified {
    /// How many blobs.
    pub blobs: usize,
    /// Their size in bytes.
    pub bytes: u64,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DiskFault")]
pub struct Finding {
    /// `missing`, `size`, `content`, `unreadable`, `manifest` or `catalog`.
    pub kind: &'static str,
    /// The digest of the blob that it is about; null where it is about none.
    pub blob: Option<String>,
    /// The images that have it.
    pub images: Vec<String>,
    /// The same in a sentence.
    pub message: String,
}

/// An image's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DiskImage")]
pub struct Row<'a> {
    /// The name that people use.
    pub name: String,
    /// The host of the registry that it is from; null where its name has none.
    pub upstream: Option<&'a str>,
    /// The repository below the host; null where it has no name.
    pub repository: Option<&'a str>,
    /// The tag; null where it has none.
    pub tag: Option<&'a str>,
    /// Whether it answers to every other tag of the repository as well.
    pub every_tag: bool,
    /// The name that the table has.
    #[serde(skip)]
    pub label: String,
    /// Digest of the manifest.
    pub digest: String,
    /// `image`, `index` or `artifact`.
    pub kind: &'static str,
    /// Media type of the manifest.
    pub media_type: &'a str,
    /// The type of artifact; null where it has none.
    pub artifact_type: Option<&'a str>,
    /// The digest of the manifest that it refers to; null where it refers to none.
    pub subject: Option<String>,
    /// Its platforms, os/architecture with the variant where there is one.
    pub platforms: Vec<&'a str>,
    /// How many blobs it has, manifests among them.
    pub blobs: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// How many of these bytes other images have as well.
    pub shared_bytes: u64,
}

/// The rows of all images, made as they are asked for.
#[derive(Clone, Copy)]
pub struct Rows<'a>(&'a Contents);

impl<'a> Document<'a> {
    /// Gathers the result.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the document, and named where it is used")]
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
            disk: path,
            form: disk.form.name(),
            bytes: disk.bytes,
            digest: digest.map(|digest| digest.to_string()),
            catalog: catalog.map(|catalog| CatalogFacts { version: catalog::VERSION, tags: catalog.tag_count() }),
            upstreams: upstreams.into_iter().collect(),
            totals: totals(contents),
            images: Rows(contents),
            verified,
            exported,
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
    /// Every row, in order of the names.
    pub fn iter(self) -> impl Iterator<Item = Row<'a>> {
        self.0.images.iter().filter_map(move |image| row(self.0, image))
    }
}

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

fn row<'a>(contents: &'a Contents, image: &'a Image) -> Option<Row<'a>> {
    let root = contents.root(image)?;
    let head = contents.root_blob(image)?;
    let BlobKind::Manifest(kind) = &head.kind else { return None };
    let sum = |shared: bool| {
        let blobs = contents.blobs_of(root).filter(|blob| !shared || blob.roots > 1);
        blobs.fold(0_u64, |sum, blob| sum.saturating_add(blob.size))
    };
    let artifact = root.artifact_type.is_some() || root.subject().is_some();
    Some(Row {
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
    })
}

/// Which images have something, as the end of a sentence.
pub fn part_of(images: &[String]) -> String {
    let (first, rest) = images.split_at(images.len().min(MAX_NAMED));
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    format!("it is part of {}{more}", first.join(", "))
}
