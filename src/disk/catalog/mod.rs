//! The catalog of a disk: which repository has which tags and blobs.
//!
//! Its format is columnar (`catalog.proto`). It is checked once, when it is loaded. A look-up is a binary search over the loaded bytes, and
//! loading allocates nothing per image.

mod build;
mod left_out;
mod merge;

use std::cmp::Ordering;
use std::ops::Range;

use bytes::Bytes;
use prost::Message;

use crate::oci::{Algorithm, Digest, media_type};
use crate::proto;

pub use build::{Builder, TagConflict};
pub use left_out::LeftOut;
pub use merge::{CatalogConflict, ConflictKind, merge};

/// The version of the format.
pub const VERSION: u32 = 1;

/// Path of the catalog below a disk's root.
pub const PATH: &str = "localregistry/catalog.binpb";

/// Why a catalog cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file is not a catalog.
    #[error("the catalog is not a protobuf message localregistry.v1.Catalog")]
    Encoding(#[from] prost::DecodeError),
    /// The catalog has another version.
    #[error("the catalog is of version {0}, and this program reads version {VERSION}; pack the disk again with this version")]
    Version(u32),
    /// A column is invalid.
    #[error("the catalog is damaged: column {column}: {fault}; pack the disk again")]
    Column {
        /// The field of the message.
        column: &'static str,
        /// The broken rule.
        fault: &'static str,
    },
}

/// Number of a repository in the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepositoryId(usize);

impl RepositoryId {
    /// The number: the position of the repository's name in the catalog, from 0.
    pub(crate) fn number(self) -> usize {
        self.0
    }

    /// The repository with this number.
    #[cfg(test)]
    pub(crate) fn from_number(number: usize) -> Self {
        Self(number)
    }
}

/// Number of a blob in the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlobId(u32);

impl BlobId {
    /// The number: the position of the blob's digest in the catalog, from 0.
    pub(crate) fn number(self) -> usize {
        self.0 as usize
    }

    /// The blob with this number.
    #[cfg(test)]
    pub(crate) fn from_number(number: u32) -> Self {
        Self(number)
    }
}

/// A blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob<'a> {
    /// Digest of the content.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// The media type of a manifest; `None` for other content.
    pub manifest: Option<&'a str>,
}

/// A loaded and checked catalog.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalog {
    columns: proto::Catalog,
}

impl Catalog {
    /// Loads an encoded catalog and checks every column.
    ///
    /// # Errors
    /// Fails if a column is invalid or the version is another one.
    pub fn decode(encoded: Bytes) -> Result<Self, CatalogError> {
        let columns = proto::Catalog::decode(encoded)?;
        if columns.version != VERSION {
            return Err(CatalogError::Version(columns.version));
        }
        check(&columns)?;
        Ok(Self { columns })
    }

    /// The encoding. Equal catalogs have equal bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.columns.encode_to_vec()
    }

    /// Number of tags.
    #[must_use]
    pub fn tag_count(&self) -> usize {
        self.columns.tag_manifests.len()
    }

    /// Number of distinct blobs, and their total size in bytes.
    #[must_use]
    pub fn blob_totals(&self) -> (usize, u64) {
        (self.columns.sizes.len(), self.columns.sizes.iter().fold(0, |sum, size| sum.saturating_add(*size)))
    }

    /// The largest blob.
    #[must_use]
    pub fn largest_blob(&self) -> Option<Blob<'_>> {
        let (number, _) = self.columns.sizes.iter().enumerate().max_by_key(|(_, size)| **size)?;
        self.blob_at(number)
    }

    /// The repository with this full name, host included.
    #[must_use]
    pub fn repository(&self, name: &str) -> Option<RepositoryId> {
        let count = self.columns.repository_name_ends.len();
        search(count, |at| self.repository_bytes(at).cmp(name.as_bytes())).map(RepositoryId)
    }

    /// All repositories, sorted by name.
    pub fn repositories(&self) -> impl ExactSizeIterator<Item = RepositoryId> + use<> {
        (0..self.columns.repository_name_ends.len()).map(RepositoryId)
    }

    /// The repositories whose names sort after `last`, sorted by name.
    pub fn repositories_after(&self, last: &str) -> impl ExactSizeIterator<Item = RepositoryId> + use<> {
        let count = self.columns.repository_name_ends.len();
        let first = partition_point(count, |at| self.repository_bytes(at) <= last.as_bytes());
        (first..count).map(RepositoryId)
    }

    /// A repository's full name.
    #[must_use]
    pub fn repository_name(&self, repository: RepositoryId) -> &str {
        str::from_utf8(self.repository_bytes(repository.0)).unwrap_or_default()
    }

    /// The manifest of a tag.
    #[must_use]
    pub fn tag(&self, repository: RepositoryId, tag: &str) -> Option<BlobId> {
        let range = slice(&self.columns.repository_tag_ends, repository.0);
        let found = search(range.len(), |at| self.tag_bytes(range.start + at).cmp(tag.as_bytes()))?;
        self.columns.tag_manifests.get(range.start + found).map(|number| BlobId(*number))
    }

    /// The manifest that answers to every tag that the repository does not have.
    #[must_use]
    pub fn every_tag(&self, repository: RepositoryId) -> Option<BlobId> {
        self.columns.repository_every_tag.get(repository.0)?.checked_sub(1).map(BlobId)
    }

    /// A repository's tags with their manifests, sorted. With `last`, only those that sort after it.
    pub fn tags_after(
        &self,
        repository: RepositoryId,
        last: Option<&str>,
    ) -> impl ExactSizeIterator<Item = (&str, BlobId)> + use<'_> {
        let range = slice(&self.columns.repository_tag_ends, repository.0);
        let skip = last.map_or(0, |last| partition_point(range.len(), |at| self.tag_bytes(range.start + at) <= last.as_bytes()));
        (range.start + skip..range.end).map(|at| {
            let manifest = self.columns.tag_manifests.get(at).copied().unwrap_or_default();
            (str::from_utf8(self.tag_bytes(at)).unwrap_or_default(), BlobId(manifest))
        })
    }

    /// The blob with this digest, if the repository has it.
    #[must_use]
    pub fn blob_in(&self, repository: RepositoryId, digest: &Digest) -> Option<BlobId> {
        let number = self.number(digest)?;
        self.blob_numbers(repository).binary_search(&number).ok().map(|_| BlobId(number))
    }

    /// A repository's blobs, sorted by number.
    pub fn blobs_of(&self, repository: RepositoryId) -> impl ExactSizeIterator<Item = BlobId> + use<'_> {
        self.blob_numbers(repository).iter().copied().map(BlobId)
    }

    /// All blobs.
    pub fn blobs(&self) -> impl Iterator<Item = Blob<'_>> {
        (0..self.columns.sizes.len()).filter_map(|number| self.blob_at(number))
    }

    /// A blob by its number. Returns `None` only for the number of another catalog.
    #[must_use]
    pub fn blob(&self, blob: BlobId) -> Option<Blob<'_>> {
        self.blob_at(blob.0 as usize)
    }

    /// The repository's manifests whose subject is `subject`.
    pub fn referrers(&self, repository: RepositoryId, subject: &Digest) -> impl Iterator<Item = BlobId> + use<'_> {
        let subject = digest_number(&self.columns.subject_sha256, &self.columns.subject_sha512, subject);
        let range = slice(&self.columns.repository_referrer_ends, repository.0);
        range.filter_map(move |at| {
            let of = self.columns.referrer_subjects.get(at)?;
            let manifest = self.columns.referrer_manifests.get(at)?;
            (subject == Some(*of)).then_some(BlobId(*manifest))
        })
    }

    /// All pairs of a subject and a manifest of the repository that refers to it.
    fn all_referrers(&self, repository: RepositoryId) -> impl Iterator<Item = (Digest, Digest)> + use<'_> {
        let c = &self.columns;
        slice(&c.repository_referrer_ends, repository.0).filter_map(move |at| {
            let subject = digest_at(&c.subject_sha256, &c.subject_sha512, *c.referrer_subjects.get(at)? as usize)?;
            Some((subject, self.blob(BlobId(*c.referrer_manifests.get(at)?))?.digest))
        })
    }

    /// The number of the blob with this digest.
    pub(crate) fn number(&self, digest: &Digest) -> Option<u32> {
        digest_number(&self.columns.sha256, &self.columns.sha512, digest)
    }

    /// The blob with this digest.
    pub(crate) fn find(&self, digest: &Digest) -> Option<Blob<'_>> {
        self.blob_at(self.number(digest)? as usize)
    }

    fn blob_at(&self, number: usize) -> Option<Blob<'_>> {
        let digest = digest_at(&self.columns.sha256, &self.columns.sha512, number)?;
        let kind = *self.columns.kinds.get(number)? as usize;
        let manifest = kind.checked_sub(1).and_then(|at| self.columns.media_types.get(at)).map(String::as_str);
        Some(Blob { digest, size: *self.columns.sizes.get(number)?, manifest })
    }

    fn blob_numbers(&self, repository: RepositoryId) -> &[u32] {
        self.columns.repository_blobs.get(slice(&self.columns.repository_blob_ends, repository.0)).unwrap_or_default()
    }

    fn repository_bytes(&self, at: usize) -> &[u8] {
        self.columns.repository_names.get(slice(&self.columns.repository_name_ends, at)).unwrap_or_default()
    }

    fn tag_bytes(&self, at: usize) -> &[u8] {
        self.columns.tag_names.get(slice(&self.columns.tag_name_ends, at)).unwrap_or_default()
    }
}

/// The elements of row `at`, by an `*_ends` column.
fn slice(ends: &[u32], at: usize) -> Range<usize> {
    let start = at.checked_sub(1).and_then(|before| ends.get(before)).map_or(0, |end| *end as usize);
    start..ends.get(at).map_or(start, |end| *end as usize)
}

/// Record `at` of a column of `width`-byte records.
fn record(column: &[u8], width: usize, at: usize) -> Option<&[u8]> {
    let start = at.checked_mul(width)?;
    column.get(start..start.checked_add(width)?)
}

/// The digest at position `number` of a pair of columns. Positions count through both.
fn digest_at(sha256: &[u8], sha512: &[u8], number: usize) -> Option<Digest> {
    match number.checked_sub(sha256.len() / 32) {
        None => record(sha256, 32, number).and_then(|hash| Digest::from_hash(Algorithm::Sha256, hash)),
        Some(at) => record(sha512, 64, at).and_then(|hash| Digest::from_hash(Algorithm::Sha512, hash)),
    }
}

/// The position of a digest in a pair of columns. Positions count through both.
fn digest_number(sha256: &[u8], sha512: &[u8], digest: &Digest) -> Option<u32> {
    let (column, before) = match digest.algorithm() {
        Algorithm::Sha256 => (sha256, 0),
        Algorithm::Sha512 => (sha512, sha256.len() / 32),
    };
    let width = digest.algorithm().hash_len();
    let found = search(column.len() / width, |at| record(column, width, at).unwrap_or_default().cmp(digest.bytes()))?;
    u32::try_from(before + found).ok()
}

/// Binary search over `count` sorted elements by position.
fn search(count: usize, compare: impl Fn(usize) -> Ordering) -> Option<usize> {
    let at = partition_point(count, |at| compare(at) == Ordering::Less);
    (at < count && compare(at) == Ordering::Equal).then_some(at)
}

/// The first of `count` positions for which `before` is false.
fn partition_point(count: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Checks every rule of `catalog.proto`.
fn check(c: &proto::Catalog) -> Result<(), CatalogError> {
    let blobs = digests("sha256", &c.sha256, 32)? + digests("sha512", &c.sha512, 64)?;
    let subjects = digests("subject_sha256", &c.subject_sha256, 32)? + digests("subject_sha512", &c.subject_sha512, 64)?;
    expect("sizes", c.sizes.len() == blobs, "one size for each digest is expected")?;
    expect("kinds", c.kinds.len() == blobs, "one kind for each digest is expected")?;
    expect("kinds", c.kinds.iter().all(|kind| *kind as usize <= c.media_types.len()), "a kind has no media type")?;
    let are_sendable = c.media_types.iter().all(|media_type| media_type::is_header_value(media_type));
    expect("media_types", are_sendable, "a media type has characters that no media type has")?;

    let repositories = c.repository_name_ends.len();
    names("repository_name_ends", &c.repository_names, &c.repository_name_ends, 0..repositories)?;
    ends("repository_blob_ends", &c.repository_blob_ends, repositories, c.repository_blobs.len())?;
    ends("repository_tag_ends", &c.repository_tag_ends, repositories, c.tag_manifests.len())?;
    ends("repository_referrer_ends", &c.repository_referrer_ends, repositories, c.referrer_manifests.len())?;
    expect("repository_blobs", c.repository_blobs.iter().all(|blob| (*blob as usize) < blobs), "a blob number is too large")?;
    for repository in 0..repositories {
        let owned = c.repository_blobs.get(slice(&c.repository_blob_ends, repository)).unwrap_or_default();
        expect("repository_blobs", owned.is_sorted_by(|a, b| a < b), "ascending blob numbers are expected")?;
        names("tag_name_ends", &c.tag_names, &c.tag_name_ends, slice(&c.repository_tag_ends, repository))?;
    }

    ends("tag_name_ends", &c.tag_name_ends, c.tag_manifests.len(), c.tag_names.len())?;
    let is_manifest = |blob: &u32| c.kinds.get(*blob as usize).is_some_and(|kind| *kind > 0);
    expect("tag_manifests", c.tag_manifests.iter().all(is_manifest), "a tag names a blob that is not a manifest")?;
    let every = &c.repository_every_tag;
    expect("repository_every_tag", every.is_empty() || every.len() == repositories, "one for each repository is expected")?;
    let manifests = every.iter().filter_map(|number| number.checked_sub(1));
    expect(
        "repository_every_tag",
        manifests.into_iter().all(|blob| is_manifest(&blob)),
        "it names a blob that is not a manifest",
    )?;
    expect("referrer_manifests", c.referrer_manifests.iter().all(is_manifest), "a referrer is not a manifest")?;
    expect("referrer_subjects", c.referrer_subjects.len() == c.referrer_manifests.len(), "one for each referrer is expected")?;
    expect("referrer_subjects", c.referrer_subjects.iter().all(|s| (*s as usize) < subjects), "a subject number is too large")?;
    left_out::check(c, repositories)
}

fn expect(column: &'static str, holds: bool, fault: &'static str) -> Result<(), CatalogError> {
    if holds { Ok(()) } else { Err(CatalogError::Column { column, fault }) }
}

/// Checks a digest column and counts its records.
fn digests(column: &'static str, bytes: &[u8], width: usize) -> Result<usize, CatalogError> {
    let (records, rest) = (bytes.chunks_exact(width), bytes.len() % width);
    expect(column, rest == 0, "whole digests are expected")?;
    let count = records.len();
    expect(column, records.is_sorted_by(|a, b| a < b), "ascending digests are expected")?;
    Ok(count)
}

/// Checks an `*_ends` column of `rows` rows over a column of `len` elements.
fn ends(column: &'static str, ends: &[u32], rows: usize, len: usize) -> Result<(), CatalogError> {
    expect(column, ends.len() == rows, "one end for each row is expected")?;
    expect(column, ends.is_sorted() && ends.last().map_or(0, |end| *end as usize) == len, "ends do not close their column")
}

/// Checks that the names of `rows` are not empty, are UTF-8 and ascend.
fn names(column: &'static str, bytes: &[u8], ends: &[u32], rows: Range<usize>) -> Result<(), CatalogError> {
    let mut before: Option<&[u8]> = None;
    for row in rows {
        let name = bytes.get(slice(ends, row)).unwrap_or_default();
        expect(column, !name.is_empty() && str::from_utf8(name).is_ok(), "a name is cut or not UTF-8")?;
        expect(column, before.is_none_or(|before| before < name), "ascending names are expected")?;
        before = Some(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tag_is_stored_and_checked() {
        let (a, b): (crate::oci::Repository, crate::oci::Repository) = ("test/a".parse().unwrap(), "test/b".parse().unwrap());
        let (manifest, other) = (Digest::sha256_of(b"manifest"), Digest::sha256_of(b"other"));
        let build = |every: Option<Digest>| {
            let mut builder = Builder::default();
            builder.blob(&a, manifest, 8, None);
            builder.blob(&b, other, 5, Some("application/vnd.oci.image.manifest.v1+json"));
            every.into_iter().for_each(|digest| builder.every_tag(&b, digest).unwrap());
            (builder.every_tag(&b, manifest).is_err(), builder.finish())
        };
        let (conflict, catalog) = build(Some(other));
        assert!(conflict);
        let catalog = Catalog::decode(catalog.encode().into()).unwrap();
        let every = |name: &str| catalog.every_tag(catalog.repository(name).unwrap()).and_then(|id| catalog.blob(id));
        assert_eq!((every("test/a"), every("test/b").map(|blob| blob.digest)), (None, Some(other)));
        assert_eq!((catalog.tag_count(), catalog.tag(catalog.repository("test/b").unwrap(), "latest")), (0, None));

        // A layer in place of a manifest, and a column that is too short.
        let (_, damaged) = build(None);
        let error = Catalog::decode(damaged.encode().into()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the catalog is damaged: column repository_every_tag: it names a blob that is not a manifest; pack the disk again"
        );
        let mut turned = catalog.clone();
        turned.columns.media_types[0].insert(11, '\u{1}');
        let error = Catalog::decode(turned.encode().into()).unwrap_err();
        let message =
            "the catalog is damaged: column media_types: a media type has characters that no media type has; pack the disk again";
        assert_eq!(error.to_string(), message);
        let mut short = catalog;
        short.columns.repository_every_tag.pop();
        let error = Catalog::decode(short.encode().into()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the catalog is damaged: column repository_every_tag: one for each repository is expected; pack the disk again"
        );
    }
}
