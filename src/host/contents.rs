//! What a disk holds: every entry of its index with the content below it, who shares it, and what is wrong with it. What enters is a
//! [`Tree`]; what leaves are numbers and names in a form that stays small for 100,000 images. It reads manifests and configs only,
//! and goes on where something is wrong: a fault is a finding here.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;

use serde::Deserialize;

use super::pack::interrupt::{Interrupt, Interrupted};
use crate::causes::chain;
use crate::oci::manifest::{Descriptor, MAX_MANIFEST, Manifest, Platform};
use crate::oci::{Digest, Hasher, ImageName, Repository, Tag, media_type};
use crate::registry::layout::{self, Entry, LayoutError, MAX_DEPTH, MAX_MANIFESTS, Tree};

/// What BuildKit gives as the platform of an attestation, which runs nowhere.
const NO_PLATFORM: &str = "unknown/unknown";

/// Why a disk's content cannot be listed at all.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// It is no image layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Its file system keeps files in a way that is not understood here.
    #[error("cannot read {path}")]
    Unsupported {
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// A signal came.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// What a blob is to the images that have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A manifest or index of this media type.
    Manifest(Arc<str>),
    /// An image's config.
    Config,
    /// A layer, or what else a manifest lists.
    Layer,
}

/// Content that images name.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes, as described.
    pub size: u64,
    /// What it is.
    pub kind: Kind,
    /// How many [`Root`]s have it.
    pub roots: u32,
    /// Whether its content was held against its digest, or found wrong without.
    pub judged: bool,
}

/// A manifest or index that the index names, with everything below it.
#[derive(Debug, Clone)]
pub struct Root {
    /// Numbers of its blobs, itself first, each once.
    pub blobs: Box<[u32]>,
    /// Its platforms, in order, each once.
    pub platforms: Box<[Arc<str>]>,
    /// The type of artifact that it is, where it is no image.
    pub artifact_type: Option<Arc<str>>,
    /// The manifests among them that refer to others, with what they refer to.
    pub referrers: Box<[(u32, Digest)]>,
}

impl Root {
    /// The manifest that it refers to itself.
    #[must_use]
    pub fn subject(&self) -> Option<Digest> {
        let (number, subject) = self.referrers.first()?;
        (Some(number) == self.blobs.first()).then_some(*subject)
    }
}

/// An entry of the index.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its repository, where it is named.
    pub repository: Option<Repository>,
    /// Its tag, where it has one.
    pub tag: Option<Tag>,
    /// Number of its root.
    pub root: u32,
}

/// What can be wrong with a blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is not there.
    #[error("is missing")]
    Missing,
    /// It has another size than described.
    #[error("has {found} bytes, and {expected} are expected")]
    Size {
        /// As described.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// It is described with two sizes.
    #[error("is described with {first} bytes and with {second}")]
    Sizes {
        /// One.
        first: u64,
        /// Another.
        second: u64,
    },
    /// Wrong bytes.
    #[error("has the content of {found}")]
    Content {
        /// The digest of what is there.
        found: Digest,
    },
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// It is expected to be a manifest and is none, or not one that is served.
    #[error("is no manifest that can be served: {0}")]
    Manifest(String),
}

impl Fault {
    /// The name that programs get.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Size { .. } | Self::Sizes { .. } => "size",
            Self::Content { .. } => "content",
            Self::Unreadable(_) => "unreadable",
            Self::Manifest(_) => "manifest",
        }
    }
}

/// Everything that a disk holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Its images, by name.
    pub images: Vec<Image>,
    /// The distinct manifests and indexes that they name.
    pub roots: Vec<Root>,
    /// All content, each once.
    pub blobs: Vec<Blob>,
    /// What is wrong, by the blob's number.
    pub faults: Vec<(u32, Fault)>,
}

impl Contents {
    /// Reads everything.
    ///
    /// # Errors
    /// [`ContentsError`]. What is wrong with single blobs is in [`Contents::faults`].
    pub fn read(tree: &dyn Tree, verify: bool, interrupt: &Interrupt) -> Result<Self, ContentsError> {
        let entries = layout::entries(tree)?;
        Self::of(tree, entries, verify, interrupt)
    }

    /// Reads what these entries name; with `verify`, holds manifests against their digests.
    ///
    /// # Errors
    /// [`ContentsError`].
    pub fn of(tree: &dyn Tree, entries: Vec<Entry>, verify: bool, interrupt: &Interrupt) -> Result<Self, ContentsError> {
        let mut walk = Walk {
            tree,
            verify,
            contents: Self::default(),
            numbers: HashMap::new(),
            roots: HashMap::new(),
            typed: HashSet::new(),
            faulty: HashSet::new(),
            texts: HashSet::new(),
        };
        for Entry { descriptor, repository, tag } in entries {
            interrupt.check()?;
            let root = walk.root(&descriptor)?;
            walk.contents.images.push(Image { repository, tag, root });
        }
        let mut contents = walk.contents;
        contents.images.sort_unstable_by(|a, b| (&a.repository, &a.tag, a.root).cmp(&(&b.repository, &b.tag, b.root)));
        Ok(contents)
    }

    /// An image's root.
    #[must_use]
    pub fn root(&self, image: &Image) -> Option<&Root> {
        self.roots.get(image.root as usize)
    }

    /// The blobs of a root, itself first.
    pub fn blobs_of<'a>(&'a self, root: &'a Root) -> impl Iterator<Item = &'a Blob> {
        root.blobs.iter().filter_map(|number| self.blobs.get(*number as usize))
    }

    /// The blob that is an image's root.
    #[must_use]
    pub fn head(&self, image: &Image) -> Option<&Blob> {
        self.root(image).and_then(|root| self.blobs_of(root).next())
    }

    /// The name of an image: `repository:tag`, `repository@digest`, or the tag or digest alone where that is all there is.
    #[must_use]
    pub fn name(&self, image: &Image) -> String {
        let digest = self.head(image).map(|blob| blob.digest);
        match (&image.repository, &image.tag) {
            (Some(repository), tag) => {
                let digest = if tag.is_some() { None } else { digest };
                ImageName { repository: repository.clone(), tag: tag.clone(), digest }.to_string()
            }
            (None, Some(tag)) => tag.to_string(),
            (None, None) => digest.map(|digest| digest.to_string()).unwrap_or_default(),
        }
    }

    /// The names of the images that have each of these blobs, found in one pass.
    #[must_use]
    pub fn holders(&self, blobs: &HashSet<u32>) -> HashMap<u32, Vec<String>> {
        let mut holders: HashMap<u32, Vec<String>> = HashMap::new();
        for image in &self.images {
            let Some(root) = self.root(image) else { continue };
            for blob in root.blobs.iter().filter(|blob| blobs.contains(blob)) {
                holders.entry(*blob).or_default().push(self.name(image));
            }
        }
        holders
    }
}

#[derive(Deserialize)]
struct Config {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
}

struct Walk<'a> {
    tree: &'a dyn Tree,
    verify: bool,
    contents: Contents,
    numbers: HashMap<Digest, u32>,
    roots: HashMap<Digest, u32>,
    /// Manifests whose media type is known from their content.
    typed: HashSet<u32>,
    faulty: HashSet<u32>,
    /// Texts that many images have, each once.
    texts: HashSet<Arc<str>>,
}

/// A root in the making.
#[derive(Default)]
struct Found {
    listed: HashSet<u32>,
    blobs: Vec<u32>,
    platforms: Vec<Arc<str>>,
    referrers: Vec<(u32, Digest)>,
}

impl Walk<'_> {
    /// The number of the root that `descriptor` describes, with everything below it walked.
    fn root(&mut self, descriptor: &Descriptor) -> Result<u32, ContentsError> {
        if let Some(known) = self.roots.get(&descriptor.digest) {
            return Ok(*known);
        }
        let mut found = Found::default();
        let mut top = None;
        let mut waiting = vec![(descriptor.clone(), 0)];
        let mut count = 0;
        while let Some((descriptor, depth)) = waiting.pop() {
            let kind = Kind::Manifest(self.text(&descriptor.media_type));
            let number = self.number(&descriptor, kind);
            if !found.listed.insert(number) {
                continue;
            }
            found.blobs.push(number);
            count += 1;
            if count > MAX_MANIFESTS || depth > MAX_DEPTH {
                self.fault(
                    number,
                    Fault::Manifest(format!(
                        "it is below more than {MAX_DEPTH} indexes, or one of more than {MAX_MANIFESTS} manifests"
                    )),
                );
                continue;
            }
            let Some(manifest) = self.manifest(number, &descriptor)? else { continue };
            self.below(&mut found, number, &descriptor, &manifest)?;
            waiting.extend(manifest.manifests.iter().rev().map(|child| (child.clone(), depth + 1)));
            top.get_or_insert(manifest);
        }
        found.platforms.sort_unstable();
        found.platforms.dedup();
        for blob in &found.blobs {
            if let Some(blob) = self.contents.blobs.get_mut(*blob as usize) {
                blob.roots += 1;
            }
        }
        let artifact_type = top.as_ref().and_then(artifact_type).map(|text| self.text(&text));
        let number = column(self.contents.roots.len());
        let Found { blobs, platforms, referrers, .. } = found;
        self.contents.roots.push(Root {
            blobs: blobs.into(),
            platforms: platforms.into(),
            artifact_type,
            referrers: referrers.into(),
        });
        self.roots.insert(descriptor.digest, number);
        Ok(number)
    }

    /// Takes in what a manifest names beside further manifests.
    fn below(
        &mut self,
        found: &mut Found,
        number: u32,
        descriptor: &Descriptor,
        manifest: &Manifest,
    ) -> Result<(), ContentsError> {
        let media_type = self.text(&layout::served_type(descriptor, manifest));
        let first = self.typed.insert(number);
        if let Some(blob) = self.contents.blobs.get_mut(number as usize) {
            // Where it is described with several types the least of them stands, as in the catalog.
            let least = |known: &Kind| if let Kind::Manifest(known) = known { *media_type < **known } else { true };
            if first || least(&blob.kind) {
                blob.kind = Kind::Manifest(media_type);
            }
        }
        found.referrers.extend(manifest.subject.as_ref().map(|subject| (number, subject.digest)));
        let mut config = None;
        for part in &manifest.blobs {
            let is_config = is_config(&part.media_type);
            let number = self.number(part, if is_config { Kind::Config } else { Kind::Layer });
            if found.listed.insert(number) {
                found.blobs.push(number);
            }
            if is_config {
                config = Some((number, part));
            }
        }
        let platform = match (&descriptor.platform, config) {
            (Some(platform), _) => Some(platform.clone()),
            (None, Some((number, config))) => self.config(number, config)?,
            (None, None) => None,
        };
        let platform = platform.map(|platform| platform_name(&platform)).filter(|name| name != NO_PLATFORM);
        let platform = platform.filter(|_| manifest.manifests.is_empty());
        found.platforms.extend(platform.map(|name| self.text(&name)));
        Ok(())
    }

    fn manifest(&mut self, number: u32, descriptor: &Descriptor) -> Result<Option<Manifest>, ContentsError> {
        if descriptor.size > MAX_MANIFEST {
            self.fault(
                number,
                Fault::Manifest(format!("it has {} bytes, and at most {MAX_MANIFEST} are served", descriptor.size)),
            );
            return Ok(None);
        }
        let Some(content) = self.content(number, descriptor)? else { return Ok(None) };
        let parsed = Manifest::parse(&content);
        if self.verify || parsed.is_err() {
            let mut hasher = Hasher::new(descriptor.digest.algorithm());
            hasher.update(&content);
            let found = hasher.finish();
            if found != descriptor.digest {
                self.fault(number, Fault::Content { found });
                return Ok(None);
            }
        }
        match parsed {
            Ok(manifest) => {
                if let Some(blob) = self.contents.blobs.get_mut(number as usize) {
                    blob.judged |= self.verify;
                }
                Ok(Some(manifest))
            }
            Err(error) => {
                self.fault(number, Fault::Manifest(chain(&error)));
                Ok(None)
            }
        }
    }

    /// The platform in an image's config, where it says one.
    fn config(&mut self, number: u32, descriptor: &Descriptor) -> Result<Option<Platform>, ContentsError> {
        if descriptor.size > MAX_MANIFEST {
            return Ok(None);
        }
        let Some(content) = self.content(number, descriptor)? else { return Ok(None) };
        let config: Option<Config> = serde_json::from_slice(&content).ok();
        Ok(config
            .and_then(|config| Some(Platform { architecture: config.architecture?, os: config.os?, variant: config.variant })))
    }

    /// The content of a blob of a manifest's size; none where something is wrong with it.
    fn content(&mut self, number: u32, descriptor: &Descriptor) -> Result<Option<Vec<u8>>, ContentsError> {
        let path = descriptor.digest.blob_path();
        let read = self.tree.open(&path).and_then(|content| {
            if content.size != descriptor.size {
                return Ok(Err(content.size));
            }
            let mut bytes = Vec::with_capacity(usize::try_from(descriptor.size).unwrap_or_default());
            content.reader.take(descriptor.size).read_to_end(&mut bytes)?;
            let len = bytes.len() as u64;
            Ok(if len == descriptor.size { Ok(bytes) } else { Err(len) })
        });
        match read {
            Ok(Ok(bytes)) => return Ok(Some(bytes)),
            Ok(Err(found)) => self.fault(number, Fault::Size { expected: descriptor.size, found }),
            Err(error) => self.fault(number, unreadable(error).map_err(|source| ContentsError::Unsupported { path, source })?),
        }
        Ok(None)
    }

    /// The number of the blob that `descriptor` describes.
    fn number(&mut self, descriptor: &Descriptor, kind: Kind) -> u32 {
        let next = column(self.contents.blobs.len());
        let number = *self.numbers.entry(descriptor.digest).or_insert(next);
        if number == next {
            let Descriptor { digest, size, .. } = *descriptor;
            self.contents.blobs.push(Blob { digest, size, kind, roots: 0, judged: false });
            return number;
        }
        let first = self.contents.blobs.get(number as usize).map_or(descriptor.size, |blob| blob.size);
        if first != descriptor.size {
            self.fault(number, Fault::Sizes { first, second: descriptor.size });
        }
        number
    }

    /// Notes what is wrong with a blob: the first thing counts.
    fn fault(&mut self, number: u32, fault: Fault) {
        if let Some(blob) = self.contents.blobs.get_mut(number as usize) {
            blob.judged = true;
        }
        if self.faulty.insert(number) {
            self.contents.faults.push((number, fault));
        }
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        let text: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&text));
        text
    }
}

/// The fault that an error of opening or reading a blob means.
///
/// # Errors
/// `error` itself, where all such files are kept in a way that is not understood.
pub fn unreadable(error: io::Error) -> Result<Fault, io::Error> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(Fault::Missing),
        io::ErrorKind::Unsupported => Err(error),
        _ => Ok(Fault::Unreadable(chain(&error))),
    }
}

/// Numbers have 32 bits: four thousand million blobs. No disk comes near.
fn column(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn is_config(media_type: &str) -> bool {
    matches!(media_type, media_type::OCI_CONFIG | media_type::DOCKER_CONFIG)
}

/// The type of artifact that a manifest is, unless it is an image (image specification, "Guidelines for Artifact Usage").
fn artifact_type(manifest: &Manifest) -> Option<String> {
    manifest.artifact_type.clone().filter(|kind| !kind.is_empty() && !is_config(kind))
}

fn platform_name(platform: &Platform) -> String {
    let Platform { architecture, os, variant } = platform;
    match variant.as_deref().filter(|variant| !variant.is_empty()) {
        Some(variant) => format!("{os}/{architecture}/{variant}"),
        None => format!("{os}/{architecture}"),
    }
}
