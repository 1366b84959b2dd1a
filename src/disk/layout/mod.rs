//! Reads OCI image layouts (image specification, "Image Layout"): the entries of `index.json`, and all content below each of them.
//!
//! Only manifests are read. Of other blobs, only the size is checked.

mod error;
mod holes;
mod images;
mod kinds;
mod repositories;
mod tree;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use serde::de::Error;
use serde::{Deserialize, Serialize};

use super::catalog;
use crate::oci::json::null_as_default;
use crate::oci::{Descriptor, Digest, ImageName, Manifest, NameError, Repository, Tag, media_type};

pub use error::LayoutError;
pub use holes::{check_holes, max_expanded};
pub use images::{DEFAULT_REPOSITORY, LayoutImages, LeftOver, diff_ids, images, images_of};
pub use repositories::{assign_repositories, served_entries};
pub use tree::{DanglingLink, Directory, Identity, OpenFile, Tree};

/// Size in bytes of the largest `index.json`: some 200,000 images.
const MAX_INDEX_SIZE: u64 = 64 << 20;

/// The annotation that names an image in `index.json` (image specification, "Pre-Defined Annotation Keys").
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation of an image that answers to every tag its repository does not have: `true`. It goes with [`REF_NAME`].
pub const EVERY_TAG: &str = "localregistry.every-tag";
/// The annotation with the digests of what an image names and lacks on purpose, with blanks between them.
pub const LEFT_OUT: &str = "localregistry.left-out";
/// The annotation in which containerd writes an image's full name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The annotation in which BuildKit names the manifest that an attestation is about.
const ATTESTED: &str = "vnd.docker.reference.digest";

/// Content that an image names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBlob {
    /// Digest of the content.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// The media type of a manifest; `None` for other content.
    pub manifest: Option<String>,
    /// The manifest that this one refers to.
    pub subject: Option<Digest>,
    /// Whether the image is an index and lists this manifest itself, not through a nested index.
    pub in_own_index: bool,
}

impl ImageBlob {
    /// A blob whose content was not read.
    fn unread(descriptor: &Descriptor) -> Self {
        Self { digest: descriptor.digest, size: descriptor.size, manifest: None, subject: None, in_own_index: false }
    }
}

/// Content that an image names and that is left out on purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOutBlob {
    /// Digest of the content.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// The platform that an index gives a manifest.
    pub platform: Option<String>,
    /// Whether the layout lacks it and [`ReadOptions::allow_missing`] accepts that. Otherwise [`IndexEntry::left_out`] lists it.
    pub is_missing: bool,
}

impl LeftOutBlob {
    /// The content of this descriptor.
    #[must_use]
    pub fn new(descriptor: &Descriptor, is_missing: bool) -> Self {
        let platform = descriptor.platform.as_ref().map(ToString::to_string);
        Self { digest: descriptor.digest, size: descriptor.size, platform, is_missing }
    }
}

impl From<&LeftOutBlob> for ImageBlob {
    /// A layer that is there after all.
    fn from(LeftOutBlob { digest, size, .. }: &LeftOutBlob) -> Self {
        Self { digest: *digest, size: *size, manifest: None, subject: None, in_own_index: false }
    }
}

/// An image of a layout: its name and all of its content.
#[derive(Debug, Clone)]
pub struct Image {
    /// Repository that serves the image.
    pub repository: Repository,
    /// The image's tag.
    pub tag: Option<Tag>,
    /// Whether the image answers to every tag that its repository does not have.
    pub every_tag: bool,
    /// Whether `index.json` names the repository. Otherwise [`assign_repositories`] or [`ReadOptions::unnamed`] chose it.
    pub is_named: bool,
    /// Whether it belongs to another image: it refers to that, or its tag is derived from a digest, as for cosign's signatures.
    pub is_companion: bool,
    /// Digest of the root: the image's manifest or index.
    pub digest: Digest,
    /// All content below the root, each blob once, the root first.
    pub blobs: Arc<[ImageBlob]>,
    /// Content that the image names and that is left out on purpose, each blob once.
    pub left_out: Arc<[LeftOutBlob]>,
}

impl Image {
    /// The name in messages: `repository:tag`, or `repository@digest` without a tag.
    #[must_use]
    pub fn name(&self) -> String {
        ImageName::new(self.repository.clone(), self.tag.clone(), self.digest).to_string()
    }

    /// The content that the layout lacks, with the image's name.
    pub fn missing(&self) -> impl Iterator<Item = MissingBlob> + use<'_> {
        let missing = self.left_out.iter().filter(|blob| blob.is_missing);
        missing.map(|blob| MissingBlob { image: self.name(), digest: blob.digest, bytes: blob.size })
    }
}

/// Content that an image names and no source has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct MissingBlob {
    /// The image.
    pub image: String,
    /// The digest.
    #[serde(serialize_with = "serialize_digest")]
    #[cfg_attr(feature = "host", schemars(with = "String"))]
    pub digest: Digest,
    /// Its size in bytes.
    pub bytes: u64,
}

impl fmt::Display for MissingBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image {}: {}, of {} bytes, is missing and left out", self.image, self.digest, self.bytes)
    }
}

fn serialize_digest<S: serde::Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(digest)
}

/// What to do with an image that gets no repository from its name or from the rest of the layout ([`assign_repositories`]).
#[derive(Debug, Clone, Copy)]
pub enum Unnamed<'a> {
    /// Assign this repository. Entries that have a tag and no repository get it too.
    Assign(&'a Repository),
    /// Assign the repository `image`.
    Default,
    /// Fail.
    Reject,
}

/// How to read a layout.
#[derive(Debug, Clone, Copy)]
pub struct ReadOptions<'a> {
    /// What to do with images without a repository.
    pub unnamed: Unnamed<'a>,
    /// Whether to check the digests of manifests. Other blobs are not read.
    pub verify: bool,
    /// Whether an image may lack layers, and an index manifests. Then they are left out; otherwise they are errors.
    pub allow_missing: bool,
}

/// An entry of `index.json`, with the name from its annotations.
#[derive(Debug, Clone)]
pub struct IndexEntry {
    /// The entry itself. Its annotations are dropped: with many images they take the most memory.
    pub descriptor: Descriptor,
    /// The repository, from the entry's name or from [`assign_repositories`].
    pub repository: Option<Repository>,
    /// The tag from the entry's name.
    pub tag: Option<Tag>,
    /// Whether the image answers to every tag that its repository does not have.
    pub every_tag: bool,
    /// Whether the entry names its repository.
    pub is_named: bool,
    /// The manifest that this attestation is about.
    pub attests: Option<Digest>,
    /// Whether it is no image, but belongs to one, by its annotation `kind`. [`assign_repositories`] sets it for others.
    pub is_companion: bool,
    /// What is left out of the image on purpose. All entries of one image have the same list.
    pub left_out: Arc<[Digest]>,
    /// The entry's name, if it is not the name of an image. The entry has then neither a repository nor a tag of its own.
    pub misnamed: Option<Box<Misnamed>>,
}

/// A name in `index.json` that is not the name of an image, such as `<none>:<none>`, `App:1` or `1.0.0+build.5`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation} names an image {name:?}: {cause}")]
pub struct Misnamed {
    /// The annotation.
    pub annotation: &'static str,
    /// Its value.
    pub name: String,
    /// Why it is not a name.
    pub cause: NameError,
    /// The tag in it, if that part is one.
    pub tag: Option<Tag>,
}

impl Misnamed {
    fn new(annotation: &'static str, name: &str, cause: NameError) -> Box<Self> {
        let tagged = name.split_once('@').map_or(name, |(tagged, _)| tagged);
        let tag = tagged.rsplit_once(':').and_then(|(_, tag)| tag.parse().ok());
        Box::new(Self { annotation, name: name.to_owned(), cause, tag })
    }
}

impl IndexEntry {
    /// Whether the entry names an image, and not only something that belongs to an image.
    #[must_use]
    pub fn names_image(&self) -> bool {
        let by_name = || self.tag.as_ref().map_or(self.repository.is_some(), |tag| !tag.is_attachment());
        self.is_manifest() && !self.is_companion && (self.misnamed.is_some() || by_name())
    }

    /// Whether the entry has a name, be it wrong.
    #[must_use]
    pub fn has_name(&self) -> bool {
        self.repository.is_some() || self.tag.is_some() || self.misnamed.is_some()
    }

    fn clear_name(&mut self) {
        (self.repository, self.tag, self.is_named, self.misnamed) = (None, None, false, None);
    }

    /// Whether the entry says that it is a manifest.
    #[must_use]
    pub fn is_manifest(&self) -> bool {
        media_type::is_manifest_entry(&self.descriptor.media_type)
    }

    /// The name in messages, as [`entry_name`] gives it.
    #[must_use]
    pub fn name(&self) -> String {
        entry_name(self.repository.as_ref(), self.tag.as_ref(), self.descriptor.digest)
    }
}

/// The name of an index entry: `repository:tag`, `repository@digest`, or the tag or the digest alone.
#[must_use]
pub fn entry_name(repository: Option<&Repository>, tag: Option<&Tag>, digest: Digest) -> String {
    match (repository, tag) {
        (Some(repository), tag) => ImageName::new(repository.clone(), tag.cloned(), digest).to_string(),
        (None, Some(tag)) => tag.to_string(),
        (None, None) => digest.to_string(),
    }
}

/// The entries of the layout's `index.json`, in its order.
///
/// # Errors
/// Fails if `tree` is not an image layout.
pub fn entries(tree: &dyn Tree) -> Result<Vec<IndexEntry>, LayoutError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct OciLayout {
        image_layout_version: String,
    }
    #[derive(Deserialize)]
    struct Index {
        #[serde(deserialize_with = "null_as_default")]
        manifests: Vec<Descriptor>,
    }
    let OciLayout { image_layout_version } = json(tree, "oci-layout", 4096)?;
    if image_layout_version != "1.0.0" {
        return Err(LayoutError::Version(image_layout_version));
    }
    let index: Index = json(tree, "index.json", MAX_INDEX_SIZE)?;
    let mut companion_tags = kinds::companion_tags(&index.manifests);
    let entry = |(number, mut descriptor): (usize, Descriptor)| {
        let (name, misnamed) = match name_of(&descriptor) {
            Ok(name) => (name, None),
            Err(misnamed) => ((None, None), Some(misnamed)),
        };
        let (repository, tag) = name;
        let is_companion = companion_tags.contains_key(&number);
        let (tag, misnamed) = companion_tags.remove(&number).map_or((tag, misnamed), |tag| (tag, None));
        let every_tag = descriptor.annotations.get(EVERY_TAG).is_some_and(|value| value == "true");
        let attests = descriptor.annotations.get(ATTESTED).and_then(|digest| digest.parse().ok());
        let left_out = descriptor.annotations.get(LEFT_OUT).map(String::as_str).unwrap_or_default();
        let left_out = left_out.split_whitespace().filter_map(|digest| digest.parse().ok()).collect();
        descriptor.annotations = HashMap::new();
        let is_named = repository.is_some();
        IndexEntry { descriptor, repository, tag, every_tag, is_named, attests, is_companion, left_out, misnamed }
    };
    let mut entries: Vec<IndexEntry> = index.manifests.into_iter().enumerate().map(entry).collect();
    agree_on_left_out(&mut entries);
    Ok(entries)
}

/// Leaves out of an image only what all of its entries leave out: another tool may have added the whole image under another name.
fn agree_on_left_out(entries: &mut [IndexEntry]) {
    let mut agreed: HashMap<Digest, HashSet<Digest>> = HashMap::new();
    for entry in entries.iter().filter(|entry| !entry.left_out.is_empty()) {
        agreed.entry(entry.descriptor.digest).or_insert_with(|| entry.left_out.iter().copied().collect());
    }
    for entry in entries.iter() {
        if let Some(known) = agreed.get_mut(&entry.descriptor.digest) {
            let own: HashSet<&Digest> = entry.left_out.iter().collect();
            known.retain(|digest| own.contains(digest));
        }
    }
    for entry in entries {
        if let Some(known) = agreed.get(&entry.descriptor.digest) {
            entry.left_out = entry.left_out.iter().filter(|digest| known.contains(digest)).copied().collect();
        }
    }
}

/// Builds the catalog of these images.
///
/// # Errors
/// Fails with [`LayoutError::Conflict`] if two images with different digests have the same tag.
pub fn build_catalog(images: &[Image]) -> Result<catalog::Catalog, LayoutError> {
    let mut builder = catalog::Builder::default();
    for image in images {
        for blob in image.blobs.iter() {
            builder.blob(&image.repository, blob.digest, blob.size, blob.manifest.as_deref());
            if let Some(subject) = blob.subject {
                builder.referrer(&image.repository, subject, blob.digest);
            }
        }
        for LeftOutBlob { digest, size, platform, .. } in image.left_out.iter() {
            let left_out = catalog::LeftOut { digest: *digest, size: *size, platform: platform.as_deref() };
            builder.left_out(image.repository.as_str(), left_out);
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
        // The referrers tag schema: the tagged index lists the referrers of the digest in the tag. Some registries take such a tag for
        // the digest itself, and so it gets into layouts with the image's own manifests, or names an image that refers to nothing.
        if let Some(subject) = tag.subject().filter(|subject| *subject != image.digest) {
            let referrers = image.blobs.iter().filter(|blob| blob.in_own_index && blob.subject.is_none_or(|own| own == subject));
            referrers.for_each(|blob| builder.referrer(&image.repository, subject, blob.digest));
        }
    }
    Ok(builder.finish())
}

/// The media type to serve a manifest with: its own field `mediaType`, which clients compare, or else that of its descriptor.
#[must_use]
pub fn served_type(descriptor: &Descriptor, manifest: &Manifest) -> String {
    let described = &descriptor.media_type;
    let same_kind =
        media_type::is_manifest(described) && media_type::is_index(described) == media_type::is_index(&manifest.media_type);
    if manifest.has_media_type || !same_kind { manifest.media_type.clone() } else { described.clone() }
}

/// Repository and tag from the annotations of a descriptor in `index.json`: from the first that holds a name.
fn name_of(descriptor: &Descriptor) -> Result<(Option<Repository>, Option<Tag>), Box<Misnamed>> {
    let mut wrong = None;
    for (annotation, text) in name_annotations(descriptor) {
        match parse_name(text, &descriptor.digest) {
            Ok(name) => return Ok(name),
            Err(cause) => wrong = wrong.or_else(|| Some(Misnamed::new(annotation, text, cause))),
        }
    }
    wrong.map_or(Ok((None, None)), Err)
}

/// Repository and tag of `text`, a name of `image`. By the specification the annotation holds a tag alone. Many tools write a full name.
fn parse_name(text: &str, image: &Digest) -> Result<(Option<Repository>, Option<Tag>), NameError> {
    if text.contains(['/', ':', '@']) {
        let name: ImageName = text.parse()?;
        if name.digest.is_some_and(|digest| digest != *image) {
            return Err(NameError::OtherDigest);
        }
        return Ok((Some(name.repository), name.tag));
    }
    Ok((None, Some(text.parse()?)))
}

/// The annotations that name a descriptor in `index.json`, and their values. The ID of an image is not a name.
fn name_annotations(descriptor: &Descriptor) -> impl Iterator<Item = (&'static str, &str)> {
    let value =
        |annotation| descriptor.annotations.get(annotation).filter(|text| !text.is_empty() && !ImageName::is_image_id(text));
    [CONTAINERD_NAME, REF_NAME].into_iter().filter_map(move |annotation| Some((annotation, value(annotation)?.as_str())))
}

fn json<T: for<'de> Deserialize<'de>>(tree: &dyn Tree, path: &str, limit: u64) -> Result<T, LayoutError> {
    let content = tree.open(path).and_then(|file| file.read_all(limit));
    let content = content.map_err(|cause| LayoutError::Read { path: path.to_owned(), cause })?;
    // From bytes, serde_json does not look at the text of fields that are ignored here.
    let text = str::from_utf8(&content).map_err(serde_json::Error::custom);
    text.and_then(serde_json::from_str).map_err(|cause| LayoutError::Json { path: path.to_owned(), cause })
}
