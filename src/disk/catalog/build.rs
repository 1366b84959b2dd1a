//! Builds a catalog. The same content gives the same bytes, whatever the order in which it is added.

use std::collections::{BTreeMap, BTreeSet};

use super::{Catalog, LeftOut, VERSION};
use crate::oci::{Algorithm, Digest, Repository, Tag};
use crate::proto;

/// A tag that two manifests claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagConflict {
    /// The manifest that has the tag.
    pub holder: Digest,
}

/// The content of a repository.
#[derive(Debug, Default)]
pub(super) struct RepositoryContent {
    pub blobs: BTreeSet<Digest>,
    pub tags: BTreeMap<String, Digest>,
    pub every_tag: Option<Digest>,
    /// Pairs of a subject and a manifest that refers to it.
    pub referrers: BTreeSet<(Digest, Digest)>,
    pub left_out: BTreeSet<Digest>,
}

/// Builds a [`Catalog`].
#[derive(Debug, Default)]
pub struct Builder {
    /// Size in bytes and, for a manifest, media type.
    pub(super) blobs: BTreeMap<Digest, (u64, Option<String>)>,
    pub(super) repositories: BTreeMap<String, RepositoryContent>,
    /// Platform and size in bytes of what is left out.
    left_out: BTreeMap<Digest, (Option<String>, u64)>,
}

impl Builder {
    /// Adds a blob to a repository. `manifest` is the media type of a manifest. A blob that was added as a manifest stays one. Of several
    /// media types the least counts, so that the order of additions does not matter.
    pub fn blob(&mut self, repository: &Repository, digest: Digest, size: u64, manifest: Option<&str>) {
        let known = self.blobs.entry(digest).or_insert_with(|| (size, None));
        if let Some(media_type) = manifest
            && known.1.as_deref().is_none_or(|before| media_type < before)
        {
            known.1 = Some(media_type.to_owned());
        }
        self.content(repository).blobs.insert(digest);
    }

    /// Tags a manifest.
    ///
    /// # Errors
    /// Fails if another manifest has the tag in this repository.
    pub fn tag(&mut self, repository: &Repository, tag: &Tag, manifest: Digest) -> Result<(), TagConflict> {
        let holder = *self.content(repository).tags.entry(tag.as_str().to_owned()).or_insert(manifest);
        if holder == manifest { Ok(()) } else { Err(TagConflict { holder }) }
    }

    /// Makes a manifest answer to every tag that the repository does not have.
    ///
    /// # Errors
    /// Fails if another manifest does so already.
    pub fn every_tag(&mut self, repository: &Repository, manifest: Digest) -> Result<(), TagConflict> {
        let holder = *self.content(repository).every_tag.get_or_insert(manifest);
        if holder == manifest { Ok(()) } else { Err(TagConflict { holder }) }
    }

    /// Adds a manifest to the referrers of `subject`.
    pub fn referrer(&mut self, repository: &Repository, subject: Digest, manifest: Digest) {
        self.content(repository).referrers.insert((subject, manifest));
    }

    /// Records that content of a repository is left out on purpose. It does not count if the repository gets the content from another
    /// image. Of several platforms the least counts.
    pub fn left_out(&mut self, repository: &str, LeftOut { digest, size, platform }: LeftOut<'_>) {
        let new = (platform.map(str::to_owned), size);
        let known = self.left_out.entry(digest).or_insert_with(|| new.clone());
        if (new.0.is_none(), &new) < (known.0.is_none(), &*known) {
            *known = new;
        }
        self.repositories.entry(repository.to_owned()).or_default().left_out.insert(digest);
    }

    fn content(&mut self, repository: &Repository) -> &mut RepositoryContent {
        self.repositories.entry(repository.as_str().to_owned()).or_default()
    }

    /// The catalog.
    #[must_use]
    pub fn finish(mut self) -> Catalog {
        let mut columns = proto::Catalog { version: VERSION, ..Default::default() };
        let numbers = numbered(self.blobs.keys().copied());
        (columns.sha256, columns.sha512) = digest_columns(self.blobs.keys());
        let media_types: BTreeSet<&String> = self.blobs.values().filter_map(|(_, manifest)| manifest.as_ref()).collect();
        for (size, manifest) in self.blobs.values() {
            let kind = manifest.as_ref().and_then(|wanted| media_types.iter().position(|known| *known == wanted));
            columns.sizes.push(*size);
            columns.kinds.push(kind.map_or(0, |at| column_length(at + 1)));
        }
        columns.media_types = media_types.into_iter().cloned().collect();

        let referrers = self.repositories.values().flat_map(|repository| &repository.referrers);
        let subjects: BTreeSet<Digest> = referrers.map(|(subject, _)| *subject).collect();
        let subject_numbers = numbered(subjects.iter().copied());
        (columns.subject_sha256, columns.subject_sha512) = digest_columns(&subjects);

        self.add_left_out(&mut columns);
        if self.repositories.values().any(|repository| repository.every_tag.is_some()) {
            let number = |repository: &RepositoryContent| {
                repository.every_tag.and_then(|manifest| numbers.get(&manifest)).map_or(0, |number| number + 1)
            };
            columns.repository_every_tag = self.repositories.values().map(number).collect();
        }
        let (mut repository_names, mut tag_names) = (Vec::new(), Vec::new());
        for (name, repository) in &self.repositories {
            repository_names.extend_from_slice(name.as_bytes());
            columns.repository_name_ends.push(column_length(repository_names.len()));
            columns.repository_blobs.extend(repository.blobs.iter().filter_map(|digest| numbers.get(digest)));
            columns.repository_blob_ends.push(column_length(columns.repository_blobs.len()));
            for (tag, manifest) in &repository.tags {
                tag_names.extend_from_slice(tag.as_bytes());
                columns.tag_name_ends.push(column_length(tag_names.len()));
                columns.tag_manifests.extend(numbers.get(manifest));
            }
            columns.repository_tag_ends.push(column_length(columns.tag_manifests.len()));
            for (subject, manifest) in &repository.referrers {
                columns.referrer_subjects.extend(subject_numbers.get(subject));
                columns.referrer_manifests.extend(numbers.get(manifest));
            }
            columns.repository_referrer_ends.push(column_length(columns.referrer_manifests.len()));
        }
        columns.repository_names = repository_names.into();
        columns.tag_names = tag_names.into();
        Catalog { columns }
    }

    /// Fills the columns of what is left out, if anything is.
    fn add_left_out(&mut self, columns: &mut proto::Catalog) {
        let mut all = BTreeSet::new();
        for repository in self.repositories.values_mut() {
            repository.left_out = repository.left_out.difference(&repository.blobs).copied().collect();
            all.extend(repository.left_out.iter().copied());
        }
        if all.is_empty() {
            return;
        }
        (columns.left_out_sha256, columns.left_out_sha512) = digest_columns(&all);
        let described = || all.iter().filter_map(|digest| self.left_out.get(digest));
        let platforms: BTreeSet<&String> = described().filter_map(|(platform, _)| platform.as_ref()).collect();
        for (platform, size) in described() {
            let at = platform.as_ref().and_then(|wanted| platforms.iter().position(|known| *known == wanted));
            columns.left_out_platforms.push(at.map_or(0, |at| column_length(at + 1)));
            columns.left_out_sizes.push(*size);
        }
        columns.platforms = platforms.into_iter().cloned().collect();
        let numbers = numbered(all.iter().copied());
        for repository in self.repositories.values() {
            columns.repository_left_out.extend(repository.left_out.iter().filter_map(|digest| numbers.get(digest)));
            columns.repository_left_out_ends.push(column_length(columns.repository_left_out.len()));
        }
    }
}

/// Numbers digests in the order of the columns: sha256 before sha512, then by hash.
fn numbered(digests: impl Iterator<Item = Digest>) -> BTreeMap<Digest, u32> {
    digests.zip(0..).collect()
}

fn digest_columns<'a>(digests: impl IntoIterator<Item = &'a Digest>) -> (bytes::Bytes, bytes::Bytes) {
    let (mut sha256, mut sha512) = (Vec::new(), Vec::new());
    for digest in digests {
        match digest.algorithm() {
            Algorithm::Sha256 => sha256.extend_from_slice(digest.bytes()),
            Algorithm::Sha512 => sha512.extend_from_slice(digest.bytes()),
        }
    }
    (sha256.into(), sha512.into())
}

/// A length as the end of a row. No disk has 4 GiB of names or 2^32 blobs.
fn column_length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
