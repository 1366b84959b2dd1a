//! Merges the catalogs of several disks. Content on two disks is listed once. A conflict is an error that names both disks.

use std::fmt;

use super::{BlobId, Builder, Catalog};
use crate::oci::Digest;

/// A conflict between two disks. Each has its position among the disks and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogConflict {
    /// The conflicting fact.
    pub kind: ConflictKind,
    /// The first disk with a value.
    pub first: (usize, String),
    /// The first disk with another value.
    pub second: (usize, String),
}

/// A fact that two disks can contradict each other on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConflictKind {
    /// The manifest of a tag, named `repository:tag`.
    Tag(String),
    /// The manifest that answers to every tag that a repository does not have.
    EveryTag(String),
    /// The size of a blob.
    Size(Digest),
    /// The media type of a manifest.
    MediaType(Digest),
}

impl fmt::Display for ConflictKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(image) => write!(f, "the tag {image}"),
            Self::EveryTag(repository) => write!(f, "the manifest of every other tag of {repository}"),
            Self::Size(digest) => write!(f, "the size in bytes of {digest}"),
            Self::MediaType(digest) => write!(f, "the media type of {digest}"),
        }
    }
}

/// Merges the catalogs of `disks`. Returns the catalog and, for each of its blobs, the position of the first disk that has it.
///
/// # Errors
/// Fails at the first conflict.
pub fn merge(disks: &[&Catalog]) -> Result<(Catalog, Vec<u32>), CatalogConflict> {
    let mut builder = Builder::default();
    for position in 0..disks.len() {
        add_blobs(&mut builder, disks, position)?;
        add_repositories(&mut builder, disks, position)?;
    }
    let merged = builder.finish();
    let home = |digest: &Digest| disks.iter().position(|catalog| catalog.number(digest).is_some()).unwrap_or_default();
    let homes = merged.blobs().map(|blob| u32::try_from(home(&blob.digest)).unwrap_or_default()).collect();
    Ok((merged, homes))
}

/// Adds the blobs of the disk at `position`.
fn add_blobs(builder: &mut Builder, disks: &[&Catalog], position: usize) -> Result<(), CatalogConflict> {
    let Some(catalog) = disks.get(position) else { return Ok(()) };
    for blob in catalog.blobs() {
        let (size, media_type) = builder.blobs.entry(blob.digest).or_insert_with(|| (blob.size, None));
        if *size != blob.size {
            let kind = ConflictKind::Size(blob.digest);
            let has_blob = |other: &Catalog| other.find(&blob.digest).is_some();
            return Err(conflict(kind, disks, position, has_blob, (size.to_string(), blob.size.to_string())));
        }
        match (media_type.as_deref(), blob.manifest) {
            (Some(known), Some(new)) if known != new => {
                let kind = ConflictKind::MediaType(blob.digest);
                let has_type = |other: &Catalog| other.find(&blob.digest).is_some_and(|blob| blob.manifest.is_some());
                return Err(conflict(kind, disks, position, has_type, (known.to_owned(), new.to_owned())));
            }
            (None, Some(new)) => *media_type = Some(new.to_owned()),
            _ => {}
        }
    }
    Ok(())
}

/// Adds the repositories of the disk at `position`. Its blobs were added before.
fn add_repositories(builder: &mut Builder, disks: &[&Catalog], position: usize) -> Result<(), CatalogConflict> {
    let Some(catalog) = disks.get(position) else { return Ok(()) };
    let digest = |id: BlobId| catalog.blob(id).map(|blob| blob.digest);
    for repository in catalog.repositories() {
        let name = catalog.repository_name(repository);
        let content = builder.repositories.entry(name.to_owned()).or_default();
        content.blobs.extend(catalog.blobs_of(repository).filter_map(digest));
        content.referrers.extend(catalog.all_referrers(repository));
        catalog.left_out_of(repository).for_each(|left_out| builder.left_out(name, left_out));
        let content = builder.repositories.entry(name.to_owned()).or_default();
        for (tag, manifest) in catalog.tags_after(repository, None).filter_map(|(tag, id)| Some((tag, digest(id)?))) {
            let holder = *content.tags.entry(tag.to_owned()).or_insert(manifest);
            if holder != manifest {
                let kind = ConflictKind::Tag(format!("{name}:{tag}"));
                let has_tag = |other: &Catalog| other.repository(name).and_then(|id| other.tag(id, tag)).is_some();
                return Err(conflict(kind, disks, position, has_tag, (holder.to_string(), manifest.to_string())));
            }
        }
        if let Some(manifest) = catalog.every_tag(repository).and_then(digest) {
            let holder = *content.every_tag.get_or_insert(manifest);
            if holder != manifest {
                let kind = ConflictKind::EveryTag(name.to_owned());
                let has_one = |other: &Catalog| other.repository(name).and_then(|id| other.every_tag(id)).is_some();
                return Err(conflict(kind, disks, position, has_one, (holder.to_string(), manifest.to_string())));
            }
        }
    }
    Ok(())
}

/// The conflict of the disk at `position` with the first earlier disk that `has_value`. `values` are those of both disks.
fn conflict(
    kind: ConflictKind,
    disks: &[&Catalog],
    position: usize,
    has_value: impl Fn(&Catalog) -> bool,
    values: (String, String),
) -> CatalogConflict {
    let first = disks.iter().take(position).position(|catalog| has_value(catalog)).unwrap_or(position);
    CatalogConflict { kind, first: (first, values.0), second: (position, values.1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::catalog::LeftOut;
    use crate::oci::Repository;

    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
    const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

    /// Repository, tag, manifest and layer.
    type Image = (&'static str, &'static str, &'static [u8], &'static [u8]);

    fn image(builder: &mut Builder, name: &str, tag: &str, manifest: &[u8], layer: &[u8]) {
        let repository: Repository = name.parse().unwrap();
        builder.blob(&repository, Digest::sha256_of(manifest), manifest.len() as u64, Some(OCI));
        builder.blob(&repository, Digest::sha256_of(layer), layer.len() as u64, None);
        builder.tag(&repository, &tag.parse().unwrap(), Digest::sha256_of(manifest)).unwrap();
    }

    fn catalog(images: &[Image]) -> Catalog {
        let mut builder = Builder::default();
        images.iter().for_each(|(name, tag, manifest, layer)| image(&mut builder, name, tag, manifest, layer));
        builder.finish()
    }

    #[test]
    fn merged_catalog_equals_that_of_one_disk_with_all_content() {
        let parts: [&[Image]; 3] = [
            &[("test/b", "1", b"b1", b"layer"), ("test/a", "1", b"a1", b"own")],
            &[("test/b", "2", b"b2", b"layer"), ("test/c", "1", b"c1", b"more")],
            &[("test/b", "1", b"b1", b"layer")],
        ];
        let catalogs = parts.map(catalog);
        let (merged, homes) = merge(&catalogs.each_ref()).unwrap();
        assert_eq!(merged, catalog(&parts.concat()));
        assert_eq!(Catalog::decode(merged.encode().into()).unwrap(), merged, "every column is valid");
        let home = |content: &[u8]| homes[merged.number(&Digest::sha256_of(content)).unwrap() as usize];
        assert_eq!([&b"b1"[..], b"layer", b"b2", b"c1"].map(home), [0, 0, 1, 1]);
        let swapped = merge(&[&catalogs[1], &catalogs[2], &catalogs[0]]).unwrap().0;
        assert_eq!(swapped, merged, "whatever the order");
    }

    #[test]
    fn referrers_and_every_tag_are_merged() {
        let repository: Repository = "test/a".parse().unwrap();
        let subject = Digest::sha256_of(b"a1");
        let with = |referrer: &[u8]| {
            let mut builder = Builder::default();
            image(&mut builder, "test/a", "1", b"a1", b"layer");
            builder.blob(&repository, Digest::sha256_of(referrer), 1, Some(OCI));
            builder.referrer(&repository, subject, Digest::sha256_of(referrer));
            builder.every_tag(&repository, subject).unwrap();
            builder.finish()
        };
        let (merged, _) = merge(&[&with(b"x"), &with(b"y")]).unwrap();
        let id = merged.repository("test/a").unwrap();
        assert_eq!(merged.referrers(id, &subject).count(), 2);
        assert_eq!(merged.every_tag(id).and_then(|id| merged.blob(id)).map(|blob| blob.digest), Some(subject));
    }

    #[test]
    fn content_that_another_disk_has_is_not_left_out() {
        let repository: Repository = "test/a".parse().unwrap();
        let digest = Digest::sha256_of(b"arm64");
        let mut sparse = Builder::default();
        image(&mut sparse, "test/a", "1", b"index", b"layer");
        sparse.left_out("test/a", LeftOut { digest, size: 5, platform: Some("linux/arm64") });
        let sparse = sparse.finish();
        let mut whole = Builder::default();
        whole.blob(&repository, digest, 5, Some(OCI));
        let whole = whole.finish();
        for (disks, left_out) in [([&sparse, &sparse], 1), ([&sparse, &whole], 0), ([&whole, &sparse], 0)] {
            let (merged, _) = merge(&disks).unwrap();
            let id = merged.repository("test/a").unwrap();
            assert_eq!((merged.left_out_of(id).count(), merged.blob_in(id, &digest).is_some()), (left_out, left_out == 0));
            assert_eq!(Catalog::decode(merged.encode().into()).unwrap(), merged);
        }
    }

    #[test]
    fn conflict_names_both_disks_and_their_values() {
        let (one, other) = (catalog(&[("test/a", "1", b"a1", b"x")]), catalog(&[("test/a", "1", b"a2", b"x")]));
        let unrelated = catalog(&[("test/z", "1", b"z", b"z")]);
        let found = merge(&[&unrelated, &one, &other]).unwrap_err();
        let (a1, a2) = (Digest::sha256_of(b"a1"), Digest::sha256_of(b"a2"));
        assert_eq!(found.kind.to_string(), "the tag test/a:1");
        assert_eq!((found.first, found.second), ((1, a1.to_string()), (2, a2.to_string())));

        let repository: Repository = "test/a".parse().unwrap();
        let of = |size: u64, media_type: Option<&str>, every: bool| {
            let mut builder = Builder::default();
            builder.blob(&repository, a1, size, media_type);
            if every {
                let other = Digest::sha256_of(&[u8::from(media_type == Some(OCI))]);
                builder.blob(&repository, other, 1, Some(OCI));
                builder.every_tag(&repository, other).unwrap();
            }
            builder.finish()
        };
        let message = |one: Catalog, other: Catalog| {
            let found = merge(&[&one, &other]).unwrap_err();
            assert_eq!((found.first.0, found.second.0), (0, 1));
            format!("{}: {}, {}", found.kind, found.first.1, found.second.1)
        };
        assert_eq!(message(of(2, None, false), of(3, None, false)), format!("the size in bytes of {a1}: 2, 3"));
        assert_eq!(
            message(of(2, Some(OCI), false), of(2, Some(DOCKER), false)),
            format!("the media type of {a1}: {OCI}, {DOCKER}")
        );
        let (zero, one) = (Digest::sha256_of(&[0]), Digest::sha256_of(&[1]));
        assert_eq!(
            message(of(2, Some(OCI), true), of(2, None, true)),
            format!("the manifest of every other tag of test/a: {one}, {zero}")
        );
        // A blob that is a manifest on one disk only is a manifest in the merged catalog.
        for (one, other) in [(Some(OCI), None), (None, Some(OCI))] {
            let (merged, _) = merge(&[&of(2, one, false), &of(2, other, false)]).unwrap();
            assert_eq!(merged.blobs().next().unwrap().manifest, Some(OCI));
        }
    }
}
