//! The images of all sources as one set: what each tag means, and which content the disk has to hold, each once and from where. Pure.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use super::source::Source;
use crate::oci::Digest;
use crate::registry::catalog::Catalog;
use crate::registry::layout::{self, Image, LayoutError};

/// Why sources cannot stand on one disk.
#[derive(Debug, thiserror::Error)]
pub enum UnionError {
    /// Two manifests claim one tag.
    #[error(
        "image {image}: the tag is claimed by {first} in {} and by {second} in {}; one manifest for each tag is expected",
        first_source.display(),
        second_source.display()
    )]
    Conflict {
        /// The image's name.
        image: String,
        /// What the first source has for it.
        first: Digest,
        /// The first source.
        first_source: PathBuf,
        /// What the second has.
        second: Digest,
        /// The second source; the first again where it disagrees with itself.
        second_source: PathBuf,
    },
    /// Two sources describe one blob with different sizes.
    #[error(
        "blob {digest} has {first} bytes for image {first_image} in {} and {second} bytes for image {second_image} in {}; \
         one size is expected",
        first_source.display(),
        second_source.display()
    )]
    Size {
        /// The blob.
        digest: Digest,
        /// Its size in the first source, in bytes.
        first: u64,
        /// An image that has it there.
        first_image: String,
        /// The first source.
        first_source: PathBuf,
        /// Its size in the second, in bytes.
        second: u64,
        /// An image that has it there.
        second_image: String,
        /// The second source.
        second_source: PathBuf,
    },
    /// The catalog's own rules.
    #[error(transparent)]
    Catalog(#[from] LayoutError),
}

/// A blob that the disk is to hold.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The number of the source to take it from.
    pub source: usize,
    /// An image that has it, for messages.
    pub image: String,
}

/// Everything that the disk is to hold.
#[derive(Debug)]
pub struct Contents {
    /// The images by their names: each tag, and what has no tag, once.
    pub images: BTreeMap<String, Image>,
    /// The blobs, each once, in order of their digests.
    pub blobs: Vec<Wanted>,
    /// The index of it all.
    pub catalog: Catalog,
}

/// Unites the images of `sources`.
///
/// # Errors
/// [`UnionError`], where they contradict each other.
pub fn unite(sources: &[Source]) -> Result<Contents, UnionError> {
    let images = by_name(sources)?;
    let blobs = blobs(sources, &images)?;
    let images: BTreeMap<String, Image> = images.into_iter().map(|(name, (image, _))| (name, image)).collect();
    let list: Vec<Image> = images.values().cloned().collect();
    let catalog = layout::catalog(&list)?;
    Ok(Contents { images, blobs, catalog })
}

type ByName = BTreeMap<String, (Image, usize)>;

/// The images with the numbers of their sources.
fn by_name(sources: &[Source]) -> Result<ByName, UnionError> {
    let mut images = ByName::new();
    let mut tagged = HashSet::new();
    for (number, source) in sources.iter().enumerate() {
        for image in &source.images {
            let name = image.name();
            if image.tag.is_some() {
                tagged.insert((image.repository.clone(), image.digest));
            }
            let (holder, holder_source) = images.entry(name.clone()).or_insert_with(|| (image.clone(), number));
            if holder.digest != image.digest {
                let path = |number: usize| sources.get(number).map(|source| source.path.clone()).unwrap_or_default();
                return Err(UnionError::Conflict {
                    image: name,
                    first: holder.digest,
                    first_source: path(*holder_source),
                    second: image.digest,
                    second_source: path(number),
                });
            }
        }
    }
    // What has a tag need not be listed a second time without one.
    images.retain(|_, (image, _)| image.tag.is_some() || !tagged.contains(&(image.repository.clone(), image.digest)));
    Ok(images)
}

fn blobs(sources: &[Source], images: &ByName) -> Result<Vec<Wanted>, UnionError> {
    let mut wanted: BTreeMap<Digest, Wanted> = BTreeMap::new();
    for (name, (image, source)) in images {
        for blob in image.blobs.iter() {
            let known = wanted.entry(blob.digest).or_insert_with(|| Wanted {
                digest: blob.digest,
                size: blob.size,
                source: *source,
                image: name.clone(),
            });
            if known.size != blob.size {
                let path = |number: usize| sources.get(number).map(|source| source.path.clone()).unwrap_or_default();
                return Err(UnionError::Size {
                    digest: blob.digest,
                    first: known.size,
                    first_image: known.image.clone(),
                    first_source: path(known.source),
                    second: blob.size,
                    second_image: name.clone(),
                    second_source: path(*source),
                });
            }
        }
    }
    Ok(wanted.into_values().collect())
}
