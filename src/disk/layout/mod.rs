//! Reads an OCI image layout (image specification, "Image Layout") and finds every image in it with all the content it names.
//! What enters is a [`Tree`] of files; what leaves is a list of [`Image`]s. It reads manifests only (of layers, the size), and writes
//! nothing.

mod error;
mod filing;
mod tree;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::catalog;
use crate::oci::graph::{self, Exceeded, Limit, Node};
use crate::oci::{Descriptor, Digest, ImageName, MAX_MANIFEST_SIZE, Manifest, Reference, Repository, Tag, media_type};

pub use error::LayoutError;
pub use filing::file;
pub use tree::{Content, Directory, Identity, Tree};

/// Largest `index.json`, in bytes: some 200,000 images.
const MAX_INDEX: u64 = 64 << 20;

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
    /// Whether the repository is that of its name in the layout; else it was found by [`file()`] or [`Reading::unnamed`].
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

    /// What it lacks, by its name.
    pub fn missing(&self) -> impl Iterator<Item = Missing> + use<'_> {
        self.missing.iter().map(|blob| Missing { image: self.name(), digest: blob.digest, bytes: blob.size })
    }
}

/// Content that an image names and that is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema), schemars(rename = "MissingBlob"))]
pub struct Missing {
    /// The image.
    pub image: String,
    /// The digest.
    #[serde(serialize_with = "digest_text")]
    #[cfg_attr(feature = "host", schemars(with = "String"))]
    pub digest: Digest,
    /// Its size in bytes.
    pub bytes: u64,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image {}: {}, of {} bytes, is missing and left out", self.image, self.digest, self.bytes)
    }
}

fn digest_text<S: serde::Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(digest)
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

/// The repository that [`Unnamed::Default`] means.
const UNNAMED: &str = "image";

/// What becomes of an image to which neither its name nor the rest of the layout gives a repository ([`file()`]).
#[derive(Debug, Clone, Copy)]
pub enum Unnamed<'a> {
    /// It is filed under this repository, and so is every tag without a repository.
    In(&'a Repository),
    /// It is filed under the repository `image`.
    Default,
    /// It is an error.
    Refused,
}

/// How a layout is read.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// What becomes of images without a repository.
    pub unnamed: Unnamed<'a>,
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
    /// The repository: that of its name, or the one that [`file()`] found.
    pub repository: Option<Repository>,
    /// The tag, where it has one.
    pub tag: Option<Tag>,
    /// Whether it answers to every other tag of the repository as well.
    pub every_tag: bool,
    /// Whether the repository is that of its name.
    pub named: bool,
}

impl Entry {
    /// What messages call it: `repository:tag`, `repository@digest`, or the tag or the digest alone where that is all there is.
    #[must_use]
    pub fn name(&self) -> String {
        let digest = self.descriptor.digest;
        match (&self.repository, &self.tag) {
            (Some(repository), tag) => {
                let digest = tag.is_none().then_some(digest);
                ImageName { repository: repository.clone(), tag: tag.clone(), digest }.to_string()
            }
            (None, Some(tag)) => tag.to_string(),
            (None, None) => digest.to_string(),
        }
    }
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
        Ok(Entry { named: repository.is_some(), descriptor, repository, tag, every_tag })
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
    entries.iter().try_for_each(|entry| walk.content(&entry.name(), &entry.descriptor).map(drop))?;
    let seen = walk.seen;
    let given = if let Unnamed::In(repository) = reading.unnamed { Some(repository) } else { None };
    let default: Option<Repository> = if let Unnamed::Default = reading.unnamed { UNNAMED.parse().ok() } else { None };
    let content = |root: &Digest| {
        let named = seen.get(root).into_iter();
        let blobs = named.flat_map(|named| named.there.iter().chain(named.missing.iter()));
        blobs.map(|blob| (blob.digest, blob.subject)).collect()
    };
    let image = |Entry { descriptor, repository, tag, every_tag, named }: Entry| {
        let digest = descriptor.digest;
        let repository = repository.or_else(|| default.clone()).ok_or(LayoutError::Unnamed { digest })?;
        let Named { there, missing } = seen.get(&digest).cloned().unwrap_or_default();
        Ok(Image { repository, tag, every_tag, named, digest, blobs: there, missing })
    };
    file(entries, given, content).into_iter().map(image).collect()
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
    /// Finds everything that `root` names, itself first.
    fn content(&mut self, image: &str, root: &Descriptor) -> Result<(), LayoutError> {
        if self.seen.contains_key(&root.digest) {
            return Ok(());
        }
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        let mut own = HashSet::new();
        let mut walk = graph::Walk::from_root(root.clone());
        while let Some(step) = walk.next_manifest() {
            let Node { descriptor, depth, is_repeated } = step.map_err(|exceeded| limit_error(image, &exceeded))?;
            if is_repeated {
                continue;
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
                if walk.visit(blob.digest) {
                    match self.expect(image, kind(blob), blob) {
                        Err(error) if self.is_forgiven(&error) => missing.push(content_of(blob)),
                        opened => {
                            opened?;
                            found.push(content_of(blob));
                        }
                    }
                }
            }
            walk.descend(depth, manifest.manifests);
        }
        self.seen.insert(root.digest, Named { there: found.into(), missing: missing.into() });
        Ok(())
    }

    fn is_forgiven(&self, error: &LayoutError) -> bool {
        self.reading.lenient && error.is_missing()
    }

    fn manifest(&self, image: &str, descriptor: &Descriptor, depth: usize) -> Result<Manifest, LayoutError> {
        let path = descriptor.digest.blob_path();
        if descriptor.size > MAX_MANIFEST_SIZE {
            return Err(LayoutError::TooLarge { image: image.to_owned(), digest: descriptor.digest, size: descriptor.size });
        }
        let what = if depth == 0 { error::ROOT } else { "manifest of its index" };
        let content = self.expect(image, what, descriptor)?;
        let content = read(content, MAX_MANIFEST_SIZE).map_err(|cause| blob_error(image, what, descriptor, cause))?;
        if self.reading.verify {
            let found = descriptor.digest.algorithm().digest_of(&content);
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

fn limit_error(image: &str, Exceeded { limit, node }: &Exceeded) -> LayoutError {
    match limit {
        Limit::Depth => LayoutError::Depth { image: image.to_owned(), digest: node.descriptor.digest },
        Limit::Manifests => LayoutError::TooMany { image: image.to_owned() },
    }
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
    if manifest.has_media_type || !same_kind { manifest.media_type.clone() } else { described.clone() }
}
