//! Makes one catalog of those of several disks. What is the same on two of them is there once; what they disagree on is an error that
//! says on which two. With one disk there is nothing to do here.

use std::fmt;

use super::{BlobId, Builder, Catalog};
use crate::oci::Digest;

/// What two disks cannot both be right about, and where each stands among the disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// About what.
    pub about: About,
    /// The first that says something of it, and what.
    pub one: (usize, String),
    /// The first that says something else, and what.
    pub other: (usize, String),
}

/// What disks can disagree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// The manifest that a tag names.
    Tag(String),
    /// The manifest that answers to every tag of a repository which has no other.
    EveryTag(String),
    /// A blob's size: one of the two is not what its digest says.
    Size(Digest),
    /// A manifest's media type.
    MediaType(Digest),
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(image) => write!(f, "the tag {image}"),
            Self::EveryTag(repository) => write!(f, "the manifest of every other tag of {repository}"),
            Self::Size(digest) => write!(f, "the size in bytes of {digest}"),
            Self::MediaType(digest) => write!(f, "the media type of {digest}"),
        }
    }
}

/// The catalog of all that `disks` have, and for each of its blobs the place of the first disk that has it.
///
/// # Errors
/// The first thing that two of them disagree on.
pub fn merge(disks: &[&Catalog]) -> Result<(Catalog, Vec<u32>), Disagreement> {
    let mut builder = Builder::default();
    for place in 0..disks.len() {
        add_blobs(&mut builder, disks, place)?;
        add_repositories(&mut builder, disks, place)?;
    }
    let merged = builder.finish();
    let home = |digest: &Digest| disks.iter().position(|catalog| catalog.number(digest).is_some()).unwrap_or_default();
    let homes = merged.blobs().map(|blob| u32::try_from(home(&blob.digest)).unwrap_or_default()).collect();
    Ok((merged, homes))
}

/// Adds what the disk at `place` says of its blobs.
fn add_blobs(builder: &mut Builder, disks: &[&Catalog], place: usize) -> Result<(), Disagreement> {
    let Some(catalog) = disks.get(place) else { return Ok(()) };
    for blob in catalog.blobs() {
        let (size, media_type) = builder.blobs.entry(blob.digest).or_insert_with(|| (blob.size, None));
        let said = |other: &Catalog| {
            other
                .number(&blob.digest)
                .and_then(|number| other.blob_at(number as usize).map(|b| (b.size, b.manifest.map(str::to_owned))))
        };
        if *size != blob.size {
            let one = first(disks, place, |other| said(other).is_some());
            let (one, other) = ((one, size.to_string()), (place, blob.size.to_string()));
            return Err(Disagreement { about: About::Size(blob.digest), one, other });
        }
        match (media_type.as_deref(), blob.manifest) {
            (Some(known), Some(now)) if known != now => {
                let one = first(disks, place, |other| said(other).is_some_and(|(_, manifest)| manifest.is_some()));
                let (one, other) = ((one, known.to_owned()), (place, now.to_owned()));
                return Err(Disagreement { about: About::MediaType(blob.digest), one, other });
            }
            (None, Some(now)) => *media_type = Some(now.to_owned()),
            _ => {}
        }
    }
    Ok(())
}

/// Adds the repositories of the disk at `place`, whose blobs are known.
fn add_repositories(builder: &mut Builder, disks: &[&Catalog], place: usize) -> Result<(), Disagreement> {
    let Some(catalog) = disks.get(place) else { return Ok(()) };
    let digest = |id: BlobId| catalog.blob(id).map(|blob| blob.digest);
    for repository in catalog.repositories() {
        let name = catalog.repository_name(repository);
        let shelf = builder.repositories.entry(name.to_owned()).or_default();
        shelf.blobs.extend(catalog.blobs_of(repository).filter_map(digest));
        shelf.referrers.extend(catalog.all_referrers(repository));
        for (tag, manifest) in catalog.tags_after(repository, None).filter_map(|(tag, id)| Some((tag, digest(id)?))) {
            let holder = *shelf.tags.entry(tag.to_owned()).or_insert(manifest);
            if holder != manifest {
                let one = first(disks, place, |other| other.repository(name).and_then(|id| other.tag(id, tag)).is_some());
                let (one, other) = ((one, holder.to_string()), (place, manifest.to_string()));
                return Err(Disagreement { about: About::Tag(format!("{name}:{tag}")), one, other });
            }
        }
        if let Some(manifest) = catalog.every_tag(repository).and_then(digest) {
            let holder = *shelf.every_tag.get_or_insert(manifest);
            if holder != manifest {
                let one = first(disks, place, |other| other.repository(name).and_then(|id| other.every_tag(id)).is_some());
                let (one, other) = ((one, holder.to_string()), (place, manifest.to_string()));
                return Err(Disagreement { about: About::EveryTag(name.to_owned()), one, other });
            }
        }
    }
    Ok(())
}

/// The first disk that says something of a thing, of those before the one at `place`.
fn first(disks: &[&Catalog], place: usize, says: impl Fn(&Catalog) -> bool) -> usize {
    disks.iter().take(place).position(|catalog| says(catalog)).unwrap_or(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Repository;

    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
    const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

    /// An image: its name, its tag, its manifest and its layer.
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
    fn the_merged_catalog_is_that_of_one_disk_with_all_of_it() {
        let parts: [&[Image]; 3] = [
            &[("test/b", "1", b"b1", b"layer"), ("test/a", "1", b"a1", b"own")],
            &[("test/b", "2", b"b2", b"layer"), ("test/c", "1", b"c1", b"more")],
            &[("test/b", "1", b"b1", b"layer")],
        ];
        let catalogs = parts.map(catalog);
        let (merged, homes) = merge(&catalogs.each_ref()).unwrap();
        assert_eq!(merged, catalog(&parts.concat()));
        assert_eq!(Catalog::decode(merged.encode().into()).unwrap(), merged, "every column holds");
        let home = |content: &[u8]| homes[merged.number(&Digest::sha256_of(content)).unwrap() as usize];
        assert_eq!([&b"b1"[..], b"layer", b"b2", b"c1"].map(home), [0, 0, 1, 1]);
        let swapped = merge(&[&catalogs[1], &catalogs[2], &catalogs[0]]).unwrap().0;
        assert_eq!(swapped, merged, "whatever the order");
    }

    #[test]
    fn referrers_and_answers_to_every_tag_come_along() {
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
    fn a_disagreement_names_both_disks_and_what_they_say() {
        let (one, other) = (catalog(&[("test/a", "1", b"a1", b"x")]), catalog(&[("test/a", "1", b"a2", b"x")]));
        let else_where = catalog(&[("test/z", "1", b"z", b"z")]);
        let found = merge(&[&else_where, &one, &other]).unwrap_err();
        let (a1, a2) = (Digest::sha256_of(b"a1"), Digest::sha256_of(b"a2"));
        assert_eq!(found.about.to_string(), "the tag test/a:1");
        assert_eq!((found.one, found.other), ((1, a1.to_string()), (2, a2.to_string())));

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
        let say = |one: Catalog, other: Catalog| {
            let found = merge(&[&one, &other]).unwrap_err();
            assert_eq!((found.one.0, found.other.0), (0, 1));
            format!("{}: {}, {}", found.about, found.one.1, found.other.1)
        };
        assert_eq!(say(of(2, None, false), of(3, None, false)), format!("the size in bytes of {a1}: 2, 3"));
        assert_eq!(say(of(2, Some(OCI), false), of(2, Some(DOCKER), false)), format!("the media type of {a1}: {OCI}, {DOCKER}"));
        let (zero, one) = (Digest::sha256_of(&[0]), Digest::sha256_of(&[1]));
        assert_eq!(
            say(of(2, Some(OCI), true), of(2, None, true)),
            format!("the manifest of every other tag of test/a: {one}, {zero}")
        );
        // What is a manifest on one disk and a blob like others on another is a manifest.
        for (one, other) in [(Some(OCI), None), (None, Some(OCI))] {
            let (merged, _) = merge(&[&of(2, one, false), &of(2, other, false)]).unwrap();
            assert_eq!(merged.blobs().next().unwrap().manifest, Some(OCI));
        }
    }
}
