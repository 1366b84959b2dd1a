//! The images of all sources as one set: what each tag means, and which content the disk has to hold, each once and from where. Pure.

use std::collections::{BTreeMap, HashSet};

use super::source::Source;
use crate::disk::catalog::Catalog;
use crate::disk::layout::{self, Image, ImageBlob, LayoutError, MissingBlob};
use crate::oci::{Digest, Repository, Tag};

/// Why sources cannot stand on one disk.
#[derive(Debug, thiserror::Error)]
pub enum UnionError {
    /// Two manifests claim one tag.
    #[error(
        "image {image}: the tag is claimed by {first} in {first_source} and by {second} in {second_source}; one manifest for each \
         tag is expected{}",
        if first_source == second_source { "" } else { ", or --replace, which takes that of the later source" }
    )]
    Conflict {
        /// The image's name.
        image: String,
        /// What the first source has for it.
        first: Digest,
        /// The first source.
        first_source: String,
        /// What the second has.
        second: Digest,
        /// The second source; the first again where it disagrees with itself.
        second_source: String,
    },
    /// Two sources describe one blob with different sizes.
    #[error(
        "blob {digest} has {first} bytes for image {first_image} in {first_source} and {second} bytes for image {second_image} in \
         {second_source}; one size is expected"
    )]
    Size {
        /// The blob.
        digest: Digest,
        /// Its size in the first source, in bytes.
        first: u64,
        /// An image that has it there.
        first_image: String,
        /// The first source.
        first_source: String,
        /// Its size in the second, in bytes.
        second: u64,
        /// An image that has it there.
        second_image: String,
        /// The second source.
        second_source: String,
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
    /// The numbers of the other sources that have it, each with an image there.
    pub also: BTreeMap<usize, String>,
}

/// Everything that the disk is to hold.
#[derive(Debug)]
pub struct Contents {
    /// The images by their names: each tag, and what has no tag, once.
    pub images: BTreeMap<String, Image>,
    /// The blobs, each once, in order of their digests.
    pub blobs: Vec<Wanted>,
    /// What is left out since it is nowhere.
    pub missing: Vec<MissingBlob>,
    /// The index of it all.
    pub catalog: Catalog,
}

/// Unites the images of `sources`. With `replace`, a later source takes tags from an earlier one.
///
/// # Errors
/// [`UnionError`], where they contradict each other.
pub fn unite(sources: &[Source], replace: bool) -> Result<Contents, UnionError> {
    let mut union = Union { sources, replace, images: ByName::new(), every: BTreeMap::new() };
    for (number, source) in sources.iter().enumerate() {
        source.images.iter().try_for_each(|image| union.add(image, number))?;
    }
    let images = union.finish();
    let wanted = blobs(sources, &images)?;
    let mut images: BTreeMap<String, Image> = images.into_iter().map(|(name, (image, _))| (name, image)).collect();
    let missing = fill(&mut images, &wanted);
    let list: Vec<Image> = images.values().cloned().collect();
    let catalog = layout::build_catalog(&list)?;
    Ok(Contents { images, blobs: wanted.into_values().collect(), missing, catalog })
}

/// Images by their names, with the numbers of their sources.
type ByName = BTreeMap<String, (Image, usize)>;

struct Union<'a> {
    sources: &'a [Source],
    replace: bool,
    images: ByName,
    /// By repository, who answers to every tag that no other has.
    every: BTreeMap<Repository, (Image, usize)>,
}

impl Union<'_> {
    fn add(&mut self, image: &Image, number: usize) -> Result<(), UnionError> {
        let name = image.name();
        self.contest(&name, self.images.get(&name), image, number)?;
        if image.tag.as_ref().is_some_and(|tag| !tag.is_attachment()) {
            self.contest(&name, self.every.get(&image.repository), image, number)?;
        }
        if image.every_tag {
            self.contest(&name, self.every.get(&image.repository), image, number)?;
            for rival in self.tagged(&image.repository) {
                self.contest(&rival, self.images.get(&rival), image, number)?;
                if self.images.get(&rival).is_some_and(|(holder, _)| holder.digest != image.digest) {
                    self.images.remove(&rival);
                }
            }
            self.every.insert(image.repository.clone(), (image.clone(), number));
        }
        let known = self.images.get(&name).is_some_and(|(holder, _)| holder.digest == image.digest);
        if !known {
            self.images.insert(name, (Image { every_tag: false, ..image.clone() }, number));
        }
        Ok(())
    }

    /// Refuses `image` a name that is held by another, unless it may replace that.
    fn contest(&self, name: &str, holder: Option<&(Image, usize)>, image: &Image, number: usize) -> Result<(), UnionError> {
        let Some((holder, holder_number)) = holder.filter(|(holder, _)| holder.digest != image.digest) else { return Ok(()) };
        if self.replace && *holder_number != number {
            return Ok(());
        }
        Err(UnionError::Conflict {
            image: name.to_owned(),
            first: holder.digest,
            first_source: label(self.sources, *holder_number),
            second: image.digest,
            second_source: label(self.sources, number),
        })
    }

    /// The names with a tag of a repository, but for those of what goes along with an image.
    fn tagged(&self, repository: &Repository) -> Vec<String> {
        let first = format!("{repository}:");
        let tagged = self.images.range(first.clone()..).take_while(|(name, _)| name.starts_with(&first));
        tagged
            .filter(|(_, (image, _))| !image.tag.as_ref().is_none_or(Tag::is_attachment))
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn finish(mut self) -> ByName {
        for (repository, (image, number)) in std::mem::take(&mut self.every) {
            let named = self.tagged(&repository);
            let own = named.into_iter().find(|name| self.images.get(name).is_some_and(|(held, _)| held.digest == image.digest));
            // Its own tag may be another's by now.
            let holder = Image { tag: None, ..image };
            let name = own.unwrap_or_else(|| holder.name());
            self.images.entry(name).or_insert((holder, number)).0.every_tag = true;
        }
        let mut images = self.images;
        let tagged = images.values().filter(|(image, _)| image.tag.is_some());
        let tagged: HashSet<_> = tagged.map(|(image, _)| (image.repository.clone(), image.digest)).collect();
        // What has a tag need not be listed a second time without one.
        let is_listed = |image: &Image| tagged.contains(&(image.repository.clone(), image.digest));
        images.retain(|_, (image, _)| image.tag.is_some() || image.every_tag || !is_listed(image));
        images
    }
}

fn label(sources: &[Source], number: usize) -> String {
    sources.get(number).map(|source| source.path.display().to_string()).unwrap_or_default()
}

fn blobs(sources: &[Source], images: &ByName) -> Result<BTreeMap<Digest, Wanted>, UnionError> {
    let mut wanted: BTreeMap<Digest, Wanted> = BTreeMap::new();
    for (name, (image, source)) in images {
        for blob in image.blobs.iter() {
            let known = wanted.entry(blob.digest).or_insert_with(|| Wanted {
                digest: blob.digest,
                size: blob.size,
                source: *source,
                image: name.clone(),
                also: BTreeMap::new(),
            });
            if known.size != blob.size {
                return Err(UnionError::Size {
                    digest: blob.digest,
                    first: known.size,
                    first_image: known.image.clone(),
                    first_source: label(sources, known.source),
                    second: blob.size,
                    second_image: name.clone(),
                    second_source: label(sources, *source),
                });
            }
            if known.source != *source {
                known.also.entry(*source).or_insert_with(|| name.clone());
            }
        }
    }
    Ok(wanted)
}

/// Gives images the layers that they lack and another source has, and lists the rest.
fn fill(images: &mut BTreeMap<String, Image>, wanted: &BTreeMap<Digest, Wanted>) -> Vec<MissingBlob> {
    let manifests: HashSet<Digest> = images
        .values()
        .flat_map(|image| image.blobs.iter())
        .filter(|blob| blob.manifest.is_some())
        .map(|blob| blob.digest)
        .collect();
    let mut nowhere = Vec::new();
    for (name, image) in images.iter_mut().filter(|(_, image)| !image.missing.is_empty()) {
        let missing = std::mem::take(&mut image.missing);
        let is_elsewhere = |blob: &&ImageBlob| {
            wanted.get(&blob.digest).is_some_and(|there| there.size == blob.size) && !manifests.contains(&blob.digest)
        };
        let (found, left): (Vec<&ImageBlob>, Vec<&ImageBlob>) = missing.iter().partition(is_elsewhere);
        image.blobs = image.blobs.iter().chain(found).cloned().collect();
        nowhere.extend(left.into_iter().map(|blob| MissingBlob { image: name.clone(), digest: blob.digest, bytes: blob.size }));
    }
    nowhere
}
