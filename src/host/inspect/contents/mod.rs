//! What a disk holds: every entry of its index with the content below it, who shares it, and what is wrong with it. What enters is a
//! [`Tree`]; what leaves are numbers and names in a form that stays small for 100,000 images. It reads manifests and configs only,
//! and goes on where something is wrong: a fault is a finding here.

mod walk;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use crate::disk::layout::{self, Entry, LayoutError, Tree};
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::oci::{Digest, ImageName, Repository, Tag};
use crate::text::chain;
use walk::Walk;

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
    /// Whether it answers to every other tag of the repository as well.
    pub every_tag: bool,
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
        let walk = Walk::of(tree, &entries, verify, interrupt)?;
        let entries = layout::file(entries, None, |root| walk.content_of(root));
        Ok(walk.finish(entries))
    }

    /// Reads what these entries name, which have their repositories; with `verify`, holds manifests against their digests.
    ///
    /// # Errors
    /// [`ContentsError`].
    pub fn of(tree: &dyn Tree, entries: Vec<Entry>, verify: bool, interrupt: &Interrupt) -> Result<Self, ContentsError> {
        Ok(Walk::of(tree, &entries, verify, interrupt)?.finish(entries))
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

    /// The name by which people tell an image from others: as [`Contents::name`], and `repository:*` where it answers to every tag.
    #[must_use]
    pub fn label(&self, image: &Image) -> String {
        every_tag_of(image.repository.as_ref(), image.every_tag).unwrap_or_else(|| self.name(image))
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

/// The name of an image that answers to every tag of a repository, as `pack` shows it too.
#[must_use]
pub fn every_tag_of(repository: Option<&Repository>, every_tag: bool) -> Option<String> {
    repository.filter(|_| every_tag).map(|repository| format!("{repository}:*"))
}

/// The entries of the layout's index, each with the repository that it belongs to. Manifests are read only if an entry names none.
///
/// # Errors
/// [`ContentsError`].
pub fn entries(tree: &dyn Tree, interrupt: &Interrupt) -> Result<Vec<Entry>, ContentsError> {
    let entries = layout::entries(tree)?;
    let unnamed = entries.iter().any(|entry| entry.repository.is_none());
    let read: &[Entry] = if unnamed { &entries } else { &[] };
    let walk = Walk::of(tree, read, false, interrupt)?;
    Ok(layout::file(entries, None, |root| walk.content_of(root)))
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
