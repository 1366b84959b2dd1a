//! Merges the images of all sources into one set: the image of each tag, and each blob once with the source to read it from.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::source::Source;
use crate::disk::catalog::Catalog;
use crate::disk::layout::{self, Image, ImageBlob, LayoutError, LeftOutBlob, MissingBlob};
use crate::oci::{Digest, Repository, Tag};

/// Why sources cannot share a disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageSetError {
    #[error(
        "image {image}: the tag is claimed by {first} in {first_source} and by {second} in {second_source}; one manifest for each \
         tag is expected{}",
        if first_source == second_source { "" } else { ", or --replace, which takes that of the later source" }
    )]
    Conflict { image: String, first: Digest, first_source: String, second: Digest, second_source: String },
    #[error(
        "blob {digest} has {first} bytes for image {first_image} in {first_source} and {second} bytes for image {second_image} in \
         {second_source}; one size is expected"
    )]
    Size {
        digest: Digest,
        first: u64,
        first_image: String,
        first_source: String,
        second: u64,
        second_image: String,
        second_source: String,
    },
    #[error(transparent)]
    Catalog(#[from] LayoutError),
}

/// A blob to write to the disk.
#[derive(Debug, Clone)]
pub struct PlannedBlob {
    pub digest: Digest,
    pub size: u64,
    /// Number of the source to read it from.
    pub source: usize,
    /// An image that contains it, for messages.
    pub image: String,
    /// Numbers of the other sources that have it, each with an image there.
    pub other_sources: BTreeMap<usize, String>,
}

/// The merged content of a disk.
#[derive(Debug)]
pub struct ImageSet {
    /// The images by name: each tag once, and each manifest without a tag.
    pub images: BTreeMap<String, Image>,
    /// The blobs, each once, sorted by digest.
    pub blobs: Vec<PlannedBlob>,
    /// Content that images name and no source has.
    pub missing: Vec<MissingBlob>,
    /// The disk's catalog.
    pub catalog: Catalog,
}

/// Merges the images of `sources`. With `replace`, tags of a later source replace those of an earlier one.
///
/// # Errors
/// Fails if the sources contradict each other.
pub fn merge(sources: &[Source], replace: bool) -> Result<ImageSet, ImageSetError> {
    let mut merger = Merger { sources, replace, images: ByName::new(), other_parts: Vec::new(), every_tag: BTreeMap::new() };
    for (number, source) in sources.iter().enumerate() {
        source.images.iter().try_for_each(|image| merger.add(image, number))?;
    }
    let (images, other_parts) = merger.finish();
    let parts = other_parts.iter().map(|(name, part)| (name, part));
    let planned = blobs(sources, images.iter().chain(parts).map(|(name, (image, source))| (name, image, *source)))?;
    let mut images: BTreeMap<String, Image> = images.into_iter().map(|(name, (image, _))| (name, image)).collect();
    join(&mut images, other_parts.into_iter().map(|(_, (image, _))| image).collect());
    fill(&mut images, &planned);
    let missing = images.values().flat_map(Image::missing).collect();
    let list: Vec<Image> = images.values().cloned().collect();
    let catalog = layout::build_catalog(&list)?;
    Ok(ImageSet { images, blobs: planned.into_values().collect(), missing, catalog })
}

/// An image, and the number of its source.
type Numbered = (Image, usize);
/// Images by name.
type ByName = BTreeMap<String, Numbered>;

struct Merger<'a> {
    sources: &'a [Source],
    replace: bool,
    images: ByName,
    /// Images that are in `images` already, and of which one source may have what another leaves out.
    other_parts: Vec<(String, Numbered)>,
    /// By repository, the image that answers to every tag that no other image has.
    every_tag: BTreeMap<Repository, Numbered>,
}

impl Merger<'_> {
    fn add(&mut self, image: &Image, number: usize) -> Result<(), ImageSetError> {
        let name = image.name();
        self.check_conflict(&name, self.images.get(&name), image, number)?;
        if image.tag.as_ref().is_some_and(|tag| !tag.is_attachment()) {
            self.check_conflict(&name, self.every_tag.get(&image.repository), image, number)?;
        }
        if image.every_tag {
            self.check_conflict(&name, self.every_tag.get(&image.repository), image, number)?;
            for tagged_name in self.tagged(&image.repository) {
                self.check_conflict(&tagged_name, self.images.get(&tagged_name), image, number)?;
                if self.images.get(&tagged_name).is_some_and(|(existing, _)| existing.digest != image.digest) {
                    self.images.remove(&tagged_name);
                }
            }
            self.every_tag.insert(image.repository.clone(), (image.clone(), number));
        }
        let new = (Image { every_tag: false, ..image.clone() }, number);
        match self.images.get(&name).filter(|(existing, _)| existing.digest == image.digest) {
            None => _ = self.images.insert(name, new),
            Some((existing, _)) if !existing.left_out.is_empty() => self.other_parts.push((name, new)),
            Some(_) => {}
        }
        Ok(())
    }

    /// Fails if `name` belongs to another image that `image` may not replace.
    fn check_conflict(
        &self,
        name: &str,
        existing: Option<&(Image, usize)>,
        image: &Image,
        number: usize,
    ) -> Result<(), ImageSetError> {
        let Some((existing, existing_number)) = existing.filter(|(existing, _)| existing.digest != image.digest) else {
            return Ok(());
        };
        if self.replace && *existing_number != number {
            return Ok(());
        }
        Err(ImageSetError::Conflict {
            image: name.to_owned(),
            first: existing.digest,
            first_source: label(self.sources, *existing_number),
            second: image.digest,
            second_source: label(self.sources, number),
        })
    }

    /// The tagged names of a repository, except those of companion images such as signatures.
    fn tagged(&self, repository: &Repository) -> Vec<String> {
        let first = format!("{repository}:");
        let tagged = self.images.range(first.clone()..).take_while(|(name, _)| name.starts_with(&first));
        tagged
            .filter(|(_, (image, _))| !image.tag.as_ref().is_none_or(Tag::is_attachment))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The images, and the further parts of those that are kept.
    fn finish(mut self) -> (ByName, Vec<(String, Numbered)>) {
        for (repository, (image, number)) in std::mem::take(&mut self.every_tag) {
            let named = self.tagged(&repository);
            let own =
                named.into_iter().find(|name| self.images.get(name).is_some_and(|(tagged, _)| tagged.digest == image.digest));
            // Another image may have taken its tag.
            let existing = Image { tag: None, ..image };
            let name = own.unwrap_or_else(|| existing.name());
            self.images.entry(name).or_insert((existing, number)).0.every_tag = true;
        }
        let mut images = self.images;
        let tagged = images.values().filter(|(image, _)| image.tag.is_some());
        let tagged: HashSet<_> = tagged.map(|(image, _)| (image.repository.clone(), image.digest)).collect();
        // A tagged manifest is not listed again without a tag.
        let is_listed = |image: &Image| tagged.contains(&(image.repository.clone(), image.digest));
        images.retain(|_, (image, _)| image.tag.is_some() || image.every_tag || !is_listed(image));
        let kept: HashSet<Digest> = images.values().map(|(image, _)| image.digest).collect();
        self.other_parts.retain(|(_, (image, _))| kept.contains(&image.digest));
        (images, self.other_parts)
    }
}

fn label(sources: &[Source], number: usize) -> String {
    sources.get(number).map(|source| source.label.clone()).unwrap_or_default()
}

/// The blobs of images, each given with its name and the number of its source.
fn blobs<'a>(
    sources: &[Source],
    images: impl Iterator<Item = (&'a String, &'a Image, usize)>,
) -> Result<BTreeMap<Digest, PlannedBlob>, ImageSetError> {
    let mut planned: BTreeMap<Digest, PlannedBlob> = BTreeMap::new();
    for (name, image, source) in images {
        for blob in image.blobs.iter() {
            let known = planned.entry(blob.digest).or_insert_with(|| PlannedBlob {
                digest: blob.digest,
                size: blob.size,
                source,
                image: name.clone(),
                other_sources: BTreeMap::new(),
            });
            if known.size != blob.size {
                return Err(ImageSetError::Size {
                    digest: blob.digest,
                    first: known.size,
                    first_image: known.image.clone(),
                    first_source: label(sources, known.source),
                    second: blob.size,
                    second_image: name.clone(),
                    second_source: label(sources, source),
                });
            }
            if known.source != source {
                known.other_sources.entry(source).or_insert_with(|| name.clone());
            }
        }
    }
    Ok(planned)
}

/// Joins the content of all images with one digest: what one of them leaves out, another may have, under any name.
fn join(images: &mut BTreeMap<String, Image>, other_parts: Vec<Image>) {
    let sparse: HashSet<Digest> = images.values().filter(|image| !image.left_out.is_empty()).map(|image| image.digest).collect();
    let mut joined: HashMap<Digest, (Vec<ImageBlob>, HashSet<Digest>)> = HashMap::new();
    for image in images.values().chain(&other_parts).filter(|image| sparse.contains(&image.digest)) {
        let (blobs, known) = joined.entry(image.digest).or_default();
        blobs.extend(image.blobs.iter().filter(|blob| known.insert(blob.digest)).cloned());
    }
    // What no image with this digest has. Another part may have a manifest that names more.
    let mut left_out: HashMap<Digest, (Vec<LeftOutBlob>, HashSet<Digest>)> = HashMap::new();
    for image in images.values().chain(&other_parts) {
        let Some((_, present)) = joined.get(&image.digest) else { continue };
        let (blobs, known) = left_out.entry(image.digest).or_default();
        let absent = image.left_out.iter().filter(|blob| !present.contains(&blob.digest));
        blobs.extend(absent.filter(|blob| known.insert(blob.digest)).cloned());
    }
    for image in images.values_mut() {
        if let (Some((blobs, _)), Some((left_out, _))) = (joined.get(&image.digest), left_out.get(&image.digest)) {
            (image.blobs, image.left_out) = (blobs.as_slice().into(), left_out.as_slice().into());
        }
    }
}

/// Adds layers that another source has to the images that leave them out.
fn fill(images: &mut BTreeMap<String, Image>, planned: &BTreeMap<Digest, PlannedBlob>) {
    if images.values().all(|image| image.left_out.is_empty()) {
        return;
    }
    let all = images.values().flat_map(|image| image.blobs.iter());
    let manifests: HashSet<Digest> = all.filter(|blob| blob.manifest.is_some()).map(|blob| blob.digest).collect();
    for image in images.values_mut().filter(|image| !image.left_out.is_empty()) {
        let is_elsewhere = |blob: &&LeftOutBlob| {
            planned.get(&blob.digest).is_some_and(|there| there.size == blob.size) && !manifests.contains(&blob.digest)
        };
        let (found, left): (Vec<&LeftOutBlob>, Vec<&LeftOutBlob>) = image.left_out.iter().partition(is_elsewhere);
        let found: Vec<ImageBlob> = found.into_iter().map(ImageBlob::from).collect();
        let left: Vec<LeftOutBlob> = left.into_iter().cloned().collect();
        image.blobs = image.blobs.iter().cloned().chain(found).collect();
        image.left_out = left.into();
    }
}
