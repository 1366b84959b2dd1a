//! Lists what a disk holds: the images of its index, the blobs below each, and their faults.
//!
//! Only manifests and configs are read. A fault of a blob does not end the listing: it is part of the result. Images and blobs refer to
//! each other by number, which keeps the listing of 100,000 images small.

mod collector;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::disk::layout::{self, DanglingLink, LayoutError, LeftOutBlob, LeftOver, Tree};
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::oci::{Digest, Repository, Tag};
use crate::text::chain;
use collector::Collector;

/// The platform in BuildKit's attestations, which are not images.
pub const NO_PLATFORM: &str = "unknown/unknown";

/// Why the contents of a disk cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// The disk has no valid image layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The file system stores the file in an unsupported way.
    #[error("cannot read {path}")]
    Unsupported {
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// A signal interrupted the command.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// The role of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobKind {
    /// A manifest or index of this media type.
    Manifest(Arc<str>),
    /// The config of an image.
    Config,
    /// A layer, or any other blob that a manifest lists.
    Layer,
}

/// A blob that images name.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Digest of the content.
    pub digest: Digest,
    /// Size in its descriptor, in bytes.
    pub size: u64,
    /// Role.
    pub kind: BlobKind,
    /// Number of [`Root`]s that contain it.
    pub roots: u32,
    /// Whether its digest was verified, or a fault was found without that.
    pub checked: bool,
}

/// A manifest or index that the disk's index lists, with everything below it.
#[derive(Debug, Clone)]
pub struct Root {
    /// Numbers of the blobs below it, each once, its own first.
    pub blobs: Box<[u32]>,
    /// Its platforms, sorted, each once.
    pub platforms: Box<[Arc<str>]>,
    /// The artifact type; `None` for an image.
    pub artifact_type: Option<Arc<str>>,
    /// Numbers of the manifests below it that have a subject, with the subject.
    pub referrers: Box<[(u32, Digest)]>,
    /// What is left out on purpose.
    pub left_out: Box<[LeftOutBlob]>,
}

impl Root {
    /// The subject of the root manifest itself.
    #[must_use]
    pub fn subject(&self) -> Option<Digest> {
        let (number, subject) = self.referrers.first()?;
        (Some(number) == self.blobs.first()).then_some(*subject)
    }
}

/// An entry of the disk's index.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its repository.
    pub repository: Option<Repository>,
    /// Its tag.
    pub tag: Option<Tag>,
    /// Whether it answers to every tag that its repository does not have.
    pub every_tag: bool,
    /// Number of its root.
    pub root: u32,
}

/// A fault of a blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobFault {
    /// The file does not exist.
    #[error("is missing")]
    Missing,
    /// The file is a symbolic link that leads nowhere.
    #[error("is missing: {0}")]
    Dangling(String),
    /// The file's size differs from the descriptor.
    #[error("has {found} bytes, and {expected} are expected")]
    Size {
        /// The size in the descriptor, in bytes.
        expected: u64,
        /// The size of the file, in bytes.
        found: u64,
    },
    /// Two descriptors give different sizes.
    #[error("is described with {first} bytes and with {second}")]
    Sizes {
        /// One size in bytes.
        first: u64,
        /// The other size in bytes.
        second: u64,
    },
    /// The content does not match the digest.
    #[error("has the content of {found}")]
    Content {
        /// The digest of the content.
        found: Digest,
    },
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// A manifest has fewer layers than its config names.
    #[error(
        "has {layers} layers, and its config {config} has {diff_ids} in rootfs.diff_ids; no client can unpack it, so make the image again"
    )]
    Layers {
        /// Number of layers in the manifest.
        layers: usize,
        /// Digest of the config.
        config: Digest,
        /// Number of layers in the config.
        diff_ids: usize,
    },
    /// It is not a manifest, or not one that can be served.
    #[error("is not a manifest that can be served: {0}")]
    Manifest(String),
}

impl BlobFault {
    /// Whether the file does not exist.
    #[must_use]
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::Missing | Self::Dangling(_))
    }

    /// The name in JSON output.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Missing | Self::Dangling(_) => "missing",
            Self::Size { .. } | Self::Sizes { .. } => "size",
            Self::Content { .. } => "content",
            Self::Unreadable(_) => "unreadable",
            Self::Layers { .. } | Self::Manifest(_) => "manifest",
        }
    }
}

/// The contents of a disk.
#[derive(Debug, Default)]
pub struct Contents {
    /// The images, sorted by name.
    pub images: Vec<Image>,
    /// The distinct roots of the images.
    pub roots: Vec<Root>,
    /// All blobs, each once.
    pub blobs: Vec<Blob>,
    /// Manifests that the index lists and that are left out, as [`layout::LeftOver`] says.
    pub left_over: Vec<Digest>,
    /// Faults, each with the blob's number. A blob has at most one.
    pub faults: Vec<(u32, BlobFault)>,
}

impl Contents {
    /// Lists everything in `tree`, and checks the digests of manifests.
    ///
    /// # Errors
    /// Fails if the layout is invalid or the file system is unsupported. Faults of blobs are in [`Contents::faults`].
    pub fn read(tree: &dyn Tree, interrupt: &Interrupt) -> Result<Self, ContentsError> {
        let entries = layout::entries(tree)?;
        let collector = Collector::collect(tree, &entries, interrupt)?;
        let (entries, left_over) = layout::served_entries(entries, |root| collector.content_of(root))?;
        let kept: HashSet<Digest> = entries.iter().map(|entry| entry.descriptor.digest).collect();
        let contents = match collector.roots() == kept.len() {
            true => collector.finish(entries),
            // The rest must not count as shared. Of its faults, those of manifests count: they may have been referrers.
            false => {
                let mut contents = Collector::collect(tree, &entries, interrupt)?.finish(entries);
                contents.add_unread(collector.unread_manifests(&left_over));
                contents
            }
        };
        Ok(Self { left_over, ..contents })
    }

    /// Adds manifests that no image contains.
    fn add_unread(&mut self, unread: Vec<(Blob, BlobFault)>) {
        if unread.is_empty() {
            return;
        }
        let known: HashSet<Digest> = self.blobs.iter().map(|blob| blob.digest).collect();
        for (blob, fault) in unread.into_iter().filter(|(blob, _)| !known.contains(&blob.digest)) {
            self.faults.push((u32::try_from(self.blobs.len()).unwrap_or(u32::MAX), fault));
            self.blobs.push(blob);
        }
    }

    /// The messages about what is left out of the disk at `path`.
    pub fn left_over_of(&self, path: &Path) -> impl Iterator<Item = String> {
        self.left_over.iter().map(move |digest| format!("{}: {}", path.display(), LeftOver { digest: *digest }))
    }

    /// The root of an image.
    #[must_use]
    pub fn root(&self, image: &Image) -> Option<&Root> {
        self.roots.get(image.root as usize)
    }

    /// The blobs below a root, its own first.
    pub fn blobs_of<'a>(&'a self, root: &'a Root) -> impl Iterator<Item = &'a Blob> {
        root.blobs.iter().filter_map(|number| self.blobs.get(*number as usize))
    }

    /// The blob of an image's root.
    #[must_use]
    pub fn root_blob(&self, image: &Image) -> Option<&Blob> {
        self.root(image).and_then(|root| self.blobs_of(root).next())
    }

    /// The name of an image: `repository:tag`, `repository@digest`, or the tag or digest alone.
    #[must_use]
    pub fn name(&self, image: &Image) -> String {
        let name = |root: &Blob| layout::entry_name(image.repository.as_ref(), image.tag.as_ref(), root.digest);
        self.root_blob(image).map(name).unwrap_or_default()
    }

    /// The name of an image in output: `repository:*` if it answers to every tag, otherwise as [`Contents::name`].
    #[must_use]
    pub fn display_name(&self, image: &Image) -> String {
        every_tag_name(image.repository.as_ref(), image.every_tag).unwrap_or_else(|| self.name(image))
    }

    /// The names of the images that contain each of these blobs.
    #[must_use]
    pub fn images_with(&self, blobs: &HashSet<u32>) -> HashMap<u32, Vec<String>> {
        let mut images: HashMap<u32, Vec<String>> = HashMap::new();
        for image in &self.images {
            let Some(root) = self.root(image) else { continue };
            for blob in root.blobs.iter().filter(|blob| blobs.contains(blob)) {
                images.entry(*blob).or_default().push(self.name(image));
            }
        }
        images
    }
}

/// `repository:*`, the name of an image that answers to every tag.
#[must_use]
pub fn every_tag_name(repository: Option<&Repository>, every_tag: bool) -> Option<String> {
    repository.filter(|_| every_tag).map(|repository| format!("{repository}:*"))
}

/// The fault of a blob that cannot be opened or read.
///
/// # Errors
/// Returns `error` itself if the file system stores the file in an unsupported way.
pub fn read_fault(error: io::Error) -> Result<BlobFault, io::Error> {
    let link = error.get_ref().and_then(|cause| cause.downcast_ref::<DanglingLink>());
    match error.kind() {
        io::ErrorKind::NotFound => Ok(link.map_or(BlobFault::Missing, |link| BlobFault::Dangling(link.to_string()))),
        io::ErrorKind::Unsupported => Err(error),
        _ => Ok(BlobFault::Unreadable(chain(&error))),
    }
}
