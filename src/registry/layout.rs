//! Reads an OCI image layout (image specification, "Image Layout") and finds every image in it with all the content it names.
//! What enters is a [`Tree`] of files; what leaves is a list of [`Image`]s. It reads manifests only (of layers, the size), and writes
//! nothing.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;

use serde::Deserialize;

use super::catalog;
use crate::oci::manifest::{Descriptor, MAX_MANIFEST, Manifest};
use crate::oci::{Digest, ImageName, Reference, Repository, Tag, media_type};

mod error;
mod tree;

pub use error::LayoutError;
pub use tree::{Content, Directory, Identity, Tree};

/// Largest `index.json`, in bytes: some 200,000 images.
const MAX_INDEX: u64 = 64 << 20;
/// Deepest nesting of indexes: an index of indexes is rare, and eight levels are a mistake or an attack.
pub const MAX_DEPTH: usize = 8;
/// Most manifests below one image.
pub const MAX_MANIFESTS: usize = 10_000;

/// The annotation that names an image in `index.json` (image specification, "Pre-Defined Annotation Keys").
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation, beside one that names it, of an image that answers to every tag of its repository which no other has: `true`.
pub const EVERY_TAG: &str = "localregistry.every-tag";
/// The annotation by which containerd names an image in full.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Content that an image names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Digest of the content.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// The media type, where it is a manifest.
    pub manifest: Option<String>,
    /// The manifest that this one refers to.
    pub subject: Option<Digest>,
    /// Whether it is a manifest of the image's own index, and not of an index in that.
    pub listed: bool,
}

/// An image that a layout holds: its name and all of its content, itself first.
#[derive(Debug, Clone)]
pub struct Image {
    /// Repository it is served from.
    pub repository: Repository,
    /// Its tag, where it has one.
    pub tag: Option<Tag>,
    /// Whether it answers to every other tag of the repository as well.
    pub every_tag: bool,
    /// Whether the layout gives its repository; else it is filed by [`Reading::unnamed`] or beside what it refers to.
    pub named: bool,
    /// Digest of the manifest or index that is the image.
    pub digest: Digest,
    /// Everything reachable from it, itself first, each once.
    pub blobs: Arc<[Blob]>,
    /// What it names and the layout does not have ([`Reading::lenient`]).
    pub missing: Arc<[Blob]>,
}

impl Image {
    /// The name that people and messages use: `repository:tag`, or `repository@digest` without a tag.
    #[must_use]
    pub fn name(&self) -> String {
        let reference = self.tag.is_none().then_some(self.digest);
        ImageName { repository: self.repository.clone(), tag: self.tag.clone(), digest: reference }.to_string()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

/// How a layout is read.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// Where images without a repository's name are filed. None: they are an error.
    pub unnamed: Option<&'a Repository>,
    /// Whether manifests are hashed as they are read. (Other blobs are never opened here.)
    pub verify: bool,
    /// Whether an image may lack layers, and an index manifests: they then are in [`Image::missing`], and else an error.
    pub lenient: bool,
}

/// What an image names.
#[derive(Debug, Clone, Default)]
struct Named {
    there: Arc<[Blob]>,
    missing: Arc<[Blob]>,
}

/// An entry of `index.json`, with the name that its annotations give it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it describes.
    pub descriptor: Descriptor,
    /// The repository, where it is named.
    pub repository: Option<Repository>,
    /// The tag, where it has one.
    pub tag: Option<Tag>,
    /// Whether it answers to every other tag of the repository as well.
    pub every_tag: bool,
}

/// The entries of the layout's `index.json`, in its order.
///
/// # Errors
/// [`LayoutError`], where it is no layout, or a name is none.
pub fn entries(tree: &dyn Tree) -> Result<Vec<Entry>, LayoutError> {
    let marker: Marker = json(tree, "oci-layout", 4096)?;
    if marker.image_layout_version != "1.0.0" {
        return Err(LayoutError::Version(marker.image_layout_version));
    }
    let index: Index = json(tree, "index.json", MAX_INDEX)?;
    let named = |mut descriptor: Descriptor| {
        let (repository, tag) = name_of(&descriptor)?;
        let every_tag = descriptor.annotations.get(EVERY_TAG).is_some_and(|value| value == "true");
        // They have said what they have to say, and take the most memory of it all.
        descriptor.annotations = HashMap::new();
        Ok(Entry { descriptor, repository, tag, every_tag })
    };
    index.manifests.into_iter().map(named).collect()
}

/// Every image of the layout in `tree`, in the order of its `index.json`.
///
/// # Errors
/// [`LayoutError`], at the first thing that is wrong.
pub fn images(tree: &dyn Tree, reading: Reading<'_>) -> Result<Vec<Image>, LayoutError> {
    let entries = entries(tree)?;
    let mut walk = Walk { tree, reading, seen: HashMap::new() };
    let mut images = Vec::new();
    let mut unnamed = Vec::new();
    for Entry { descriptor, repository, tag, every_tag } in &entries {
        match (repository.clone(), tag.clone()) {
            (None, None) => unnamed.push(descriptor),
            (repository, tag) => {
                let named = repository.is_some();
                let repository = repository.or_else(|| reading.unnamed.cloned());
                let repository = repository.ok_or(LayoutError::Unnamed { digest: descriptor.digest })?;
                images.push(Image { named, every_tag: *every_tag, ..walk.image(repository, tag, descriptor)? });
            }
        }
    }
    file_unnamed(&mut walk, &mut images, &unnamed, reading.unnamed)?;
    Ok(images)
}

/// Files images that index.json does not name: a referrer goes to the repositories that hold its subject, or that hold another
/// referrer filed so; the rest go to `default`, or to the only repository there is.
fn file_unnamed(
    walk: &mut Walk<'_>,
    images: &mut Vec<Image>,
    unnamed: &[&Descriptor],
    default: Option<&Repository>,
) -> Result<(), LayoutError> {
    let mut waiting: Vec<(Named, &Descriptor)> = Vec::new();
    for descriptor in unnamed {
        waiting.push((walk.content(&descriptor.digest.to_string(), descriptor)?, descriptor));
    }
    loop {
        let before = waiting.len();
        let mut left = Vec::new();
        for (content, descriptor) in waiting {
            let subject = content.there.first().and_then(|root| root.subject);
            let holders: HashSet<Repository> = images
                .iter()
                .filter(|image| image.blobs.iter().any(|blob| Some(blob.digest) == subject))
                .map(|image| image.repository.clone())
                .collect();
            if holders.is_empty() {
                left.push((content, descriptor));
                continue;
            }
            images.extend(holders.into_iter().map(|repository| unnamed_image(repository, descriptor, content.clone())));
        }
        waiting = left;
        if waiting.len() == before {
            break;
        }
    }
    let only = images.first().map(|image| image.repository.clone());
    let only = only.filter(|only| images.iter().all(|image| image.repository == *only));
    for (content, descriptor) in waiting {
        let repository = default.cloned().or_else(|| only.clone());
        let repository = repository.ok_or(LayoutError::Unnamed { digest: descriptor.digest })?;
        images.push(unnamed_image(repository, descriptor, content));
    }
    Ok(())
}

fn unnamed_image(repository: Repository, descriptor: &Descriptor, content: Named) -> Image {
    let (blobs, missing) = (content.there, content.missing);
    Image { repository, tag: None, every_tag: false, named: false, digest: descriptor.digest, blobs, missing }
}

/// The catalog of these images.
///
/// # Errors
/// [`LayoutError::Conflict`], where two of them claim one tag with different digests.
pub fn catalog(images: &[Image]) -> Result<catalog::Catalog, LayoutError> {
    let mut builder = catalog::Builder::default();
    for image in images {
        for blob in image.blobs.iter() {
            builder.blob(&image.repository, blob.digest, blob.size, blob.manifest.as_deref());
            if let Some(subject) = blob.subject {
                builder.referrer(&image.repository, subject, blob.digest);
            }
        }
        let conflict = |conflict: catalog::TagConflict| LayoutError::Conflict {
            image: image.name(),
            first: Box::new(conflict.holder),
            second: Box::new(image.digest),
        };
        if image.every_tag {
            builder.every_tag(&image.repository, image.digest).map_err(conflict)?;
        }
        let Some(tag) = &image.tag else { continue };
        builder.tag(&image.repository, tag, image.digest).map_err(conflict)?;
        // The referrers tag schema (distribution specification, "Referrers Tag Schema"): an index tagged with its subject's digest.
        if let Some(subject) = tag.subject() {
            let listed = image.blobs.iter().filter(|blob| blob.listed);
            listed.for_each(|blob| builder.referrer(&image.repository, subject, blob.digest));
        }
    }
    Ok(builder.finish())
}

/// Repository and tag from the annotations of a descriptor in `index.json`.
fn name_of(descriptor: &Descriptor) -> Result<(Option<Repository>, Option<Tag>), LayoutError> {
    for annotation in [CONTAINERD_NAME, REF_NAME] {
        let Some(text) = descriptor.annotations.get(annotation).filter(|text| !text.is_empty()) else { continue };
        let named = |cause| LayoutError::Name { annotation, name: text.clone(), cause };
        // The specification's own use of this annotation is a tag alone; many tools write a whole name.
        if !text.contains(['/', ':', '@']) {
            let reference: Reference = text.parse().map_err(named)?;
            return Ok((None, if let Reference::Tag(tag) = reference { Some(tag) } else { None }));
        }
        let name: ImageName = text.parse().map_err(named)?;
        return Ok((Some(name.repository), name.tag));
    }
    Ok((None, None))
}

fn json<T: for<'de> Deserialize<'de>>(tree: &dyn Tree, path: &str, limit: u64) -> Result<T, LayoutError> {
    let content = tree.open(path).and_then(|content| read(content, limit));
    let content = content.map_err(|cause| LayoutError::Read { path: path.to_owned(), cause })?;
    serde_json::from_slice(&content).map_err(|cause| LayoutError::Json { path: path.to_owned(), cause })
}

fn read(content: Content<'_>, limit: u64) -> io::Result<Vec<u8>> {
    if content.size > limit {
        return Err(io::Error::other(format!("it has {} bytes, and at most {limit} are expected", content.size)));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(content.size).unwrap_or_default());
    content.reader.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

struct Walk<'a> {
    tree: &'a dyn Tree,
    reading: Reading<'a>,
    /// Content of the images walked so far: many tags name one manifest.
    seen: HashMap<Digest, Named>,
}

impl Walk<'_> {
    fn image(&mut self, repository: Repository, tag: Option<Tag>, root: &Descriptor) -> Result<Image, LayoutError> {
        let mut image = Image { tag, named: true, ..unnamed_image(repository, root, Named::default()) };
        let content = self.content(&image.name(), root)?;
        (image.blobs, image.missing) = (content.there, content.missing);
        Ok(image)
    }

    /// Everything that `root` names, itself first.
    fn content(&mut self, image: &str, root: &Descriptor) -> Result<Named, LayoutError> {
        if let Some(known) = self.seen.get(&root.digest) {
            return Ok(known.clone());
        }
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        let (mut listed, mut own) = (HashSet::new(), HashSet::new());
        let mut manifests = vec![(root.clone(), 0)];
        let mut count = 0;
        while let Some((descriptor, depth)) = manifests.pop() {
            if !listed.insert(descriptor.digest) {
                continue;
            }
            count += 1;
            if count > MAX_MANIFESTS {
                return Err(LayoutError::TooMany { image: image.to_owned() });
            }
            if depth > MAX_DEPTH {
                return Err(LayoutError::Depth { image: image.to_owned(), digest: descriptor.digest });
            }
            let manifest = match self.manifest(image, &descriptor, depth) {
                Err(error) if depth > 0 && self.is_forgiven(&error) => {
                    missing.push(content_of(&descriptor));
                    continue;
                }
                manifest => manifest?,
            };
            if depth == 0 {
                own.extend(manifest.manifests.iter().map(|one| one.digest));
            }
            found.push(Blob {
                listed: own.contains(&descriptor.digest),
                manifest: Some(served_type(&descriptor, &manifest)),
                subject: manifest.subject.as_ref().map(|subject| subject.digest),
                ..content_of(&descriptor)
            });
            for blob in &manifest.blobs {
                if listed.insert(blob.digest) {
                    match self.expect(image, kind(blob), blob) {
                        Err(error) if self.is_forgiven(&error) => missing.push(content_of(blob)),
                        opened => {
                            opened?;
                            found.push(content_of(blob));
                        }
                    }
                }
            }
            manifests.extend(manifest.manifests.into_iter().rev().map(|child| (child, depth + 1)));
        }
        let named = Named { there: found.into(), missing: missing.into() };
        self.seen.insert(root.digest, named.clone());
        Ok(named)
    }

    fn is_forgiven(&self, error: &LayoutError) -> bool {
        self.reading.lenient && error.is_missing()
    }

    fn manifest(&self, image: &str, descriptor: &Descriptor, depth: usize) -> Result<Manifest, LayoutError> {
        let path = descriptor.digest.blob_path();
        if descriptor.size > MAX_MANIFEST {
            return Err(LayoutError::TooLarge { image: image.to_owned(), digest: descriptor.digest, size: descriptor.size });
        }
        let what = if depth == 0 { error::ROOT } else { "manifest of its index" };
        let content = self.expect(image, what, descriptor)?;
        let content = read(content, MAX_MANIFEST).map_err(|cause| blob_error(image, what, descriptor, cause))?;
        if self.reading.verify {
            let mut hasher = crate::oci::Hasher::new(descriptor.digest.algorithm());
            hasher.update(&content);
            let found = hasher.finish();
            if found != descriptor.digest {
                return Err(LayoutError::Digest { image: image.to_owned(), path, found });
            }
        }
        Manifest::parse(&content).map_err(|cause| LayoutError::Manifest { image: image.to_owned(), path, cause })
    }

    /// Opens a blob and holds its size against its descriptor.
    fn expect(&self, image: &str, what: &'static str, descriptor: &Descriptor) -> Result<Content<'_>, LayoutError> {
        let path = descriptor.digest.blob_path();
        let content = self.tree.open(&path).map_err(|cause| blob_error(image, what, descriptor, cause))?;
        if content.size != descriptor.size {
            let (expected, found) = (descriptor.size, content.size);
            return Err(LayoutError::Size { image: image.to_owned(), path, expected, found });
        }
        Ok(content)
    }
}

/// What is known of content without opening it.
fn content_of(descriptor: &Descriptor) -> Blob {
    Blob { digest: descriptor.digest, size: descriptor.size, manifest: None, subject: None, listed: false }
}

/// What messages call content of an image.
fn kind(descriptor: &Descriptor) -> &'static str {
    if media_type::is_nondistributable(&descriptor.media_type) { "non-distributable layer" } else { "layer or config" }
}

fn blob_error(image: &str, what: &'static str, descriptor: &Descriptor, cause: io::Error) -> LayoutError {
    let (path, size) = (descriptor.digest.blob_path(), descriptor.size);
    LayoutError::Blob { image: image.to_owned(), what, path, size, cause }
}

/// The media type that a manifest is served with: what it says of itself (clients hold the two against each other), else what
/// its descriptor says.
#[must_use]
pub fn served_type(descriptor: &Descriptor, manifest: &Manifest) -> String {
    let described = &descriptor.media_type;
    let same_kind =
        media_type::is_manifest(described) && media_type::is_index(described) == media_type::is_index(&manifest.media_type);
    if manifest.says_type || !same_kind { manifest.media_type.clone() } else { described.clone() }
}
