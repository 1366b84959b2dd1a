//! Collects the images of a layout: every entry of `index.json` with all content below it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::error::ROOT;
use super::{
    Image, ImageBlob, IndexEntry, LayoutError, OpenFile, ReadOptions, Tree, Unnamed, assign_repositories, entries, served_type,
};
use crate::oci::graph::{self, Exceeded, Limit, Node};
use crate::oci::{Descriptor, Digest, MAX_MANIFEST_SIZE, Manifest, Repository, media_type};

/// The repository of entries that get no other, where [`Unnamed::Default`] applies: in a server, and in what shows a server's names.
pub const DEFAULT_REPOSITORY: &str = "image";

/// The content below a root.
#[derive(Debug, Clone, Default)]
struct RootContent {
    present: Arc<[ImageBlob]>,
    missing: Arc<[ImageBlob]>,
}

/// Every image of the layout in `tree`, in the order of its `index.json`.
///
/// # Errors
/// Fails at the first fault of the layout.
pub fn images(tree: &dyn Tree, options: ReadOptions<'_>) -> Result<Vec<Image>, LayoutError> {
    let entries = entries(tree)?;
    let mut collector = Collector { tree, options, roots: HashMap::new() };
    entries.iter().try_for_each(|entry| collector.add(&entry.name(), &entry.descriptor))?;
    let roots = collector.roots;
    let assigned = if let Unnamed::Assign(repository) = options.unnamed { Some(repository) } else { None };
    let default: Option<Repository> = if let Unnamed::Default = options.unnamed { DEFAULT_REPOSITORY.parse().ok() } else { None };
    let content = |root: &Digest| {
        let blobs = roots.get(root).into_iter().flat_map(|root| root.present.iter().chain(root.missing.iter()));
        blobs.map(|blob| (blob.digest, blob.subject)).collect()
    };
    let image = |IndexEntry { descriptor, repository, tag, every_tag, is_named }: IndexEntry| {
        let digest = descriptor.digest;
        let repository = repository.or_else(|| default.clone()).ok_or(LayoutError::Unnamed { digest })?;
        let RootContent { present, missing } = roots.get(&digest).cloned().unwrap_or_default();
        Ok(Image { repository, tag, every_tag, is_named, digest, blobs: present, missing })
    };
    assign_repositories(entries, assigned, content).into_iter().map(image).collect()
}

struct Collector<'a> {
    tree: &'a dyn Tree,
    options: ReadOptions<'a>,
    /// The roots collected so far. Many tags name one root.
    roots: HashMap<Digest, RootContent>,
}

impl Collector<'_> {
    /// Collects everything below `root`. `image` is the name in messages.
    fn add(&mut self, image: &str, root: &Descriptor) -> Result<(), LayoutError> {
        if self.roots.contains_key(&root.digest) {
            return Ok(());
        }
        let (mut present, mut missing, mut own) = (Vec::new(), Vec::new(), HashSet::new());
        let mut walk = graph::Walk::from_root(root.clone());
        while let Some(step) = walk.next_manifest() {
            let Node { descriptor, depth, is_repeated } = step.map_err(|exceeded| limit_error(image, &exceeded))?;
            if is_repeated {
                continue;
            }
            let manifest = match self.manifest(image, &descriptor, depth) {
                Err(error) if depth > 0 && self.is_tolerated(&error) => {
                    missing.push(ImageBlob::unread(&descriptor));
                    continue;
                }
                manifest => manifest?,
            };
            if depth == 0 {
                own.extend(manifest.manifests.iter().map(|entry| entry.digest));
            }
            present.push(ImageBlob {
                in_own_index: own.contains(&descriptor.digest),
                manifest: Some(served_type(&descriptor, &manifest)),
                subject: manifest.subject.as_ref().map(|subject| subject.digest),
                ..ImageBlob::unread(&descriptor)
            });
            for blob in &manifest.blobs {
                if walk.visit(blob.digest) {
                    match self.open(image, label(blob), blob) {
                        Err(error) if self.is_tolerated(&error) => missing.push(ImageBlob::unread(blob)),
                        opened => {
                            opened?;
                            present.push(ImageBlob::unread(blob));
                        }
                    }
                }
            }
            walk.descend(depth, manifest.manifests);
        }
        self.roots.insert(root.digest, RootContent { present: present.into(), missing: missing.into() });
        Ok(())
    }

    fn is_tolerated(&self, error: &LayoutError) -> bool {
        self.options.allow_missing && error.is_missing()
    }

    fn manifest(&self, image: &str, descriptor: &Descriptor, depth: usize) -> Result<Manifest, LayoutError> {
        let path = descriptor.digest.blob_path();
        if descriptor.size > MAX_MANIFEST_SIZE {
            return Err(LayoutError::TooLarge { image: image.to_owned(), digest: descriptor.digest, size: descriptor.size });
        }
        let what = if depth == 0 { ROOT } else { "manifest of its index" };
        let file = self.open(image, what, descriptor)?;
        let content = file.read_all(MAX_MANIFEST_SIZE).map_err(|cause| blob_error(image, what, descriptor, cause))?;
        if self.options.verify {
            let found = descriptor.digest.algorithm().digest_of(&content);
            if found != descriptor.digest {
                return Err(LayoutError::Digest { image: image.to_owned(), path, found });
            }
        }
        Manifest::parse(&content).map_err(|cause| LayoutError::Manifest { image: image.to_owned(), path, cause })
    }

    /// Opens a blob and compares its size with its descriptor.
    fn open(&self, image: &str, what: &'static str, descriptor: &Descriptor) -> Result<OpenFile<'_>, LayoutError> {
        let path = descriptor.digest.blob_path();
        let file = self.tree.open(&path).map_err(|cause| blob_error(image, what, descriptor, cause))?;
        if file.size != descriptor.size {
            let (expected, found) = (descriptor.size, file.size);
            return Err(LayoutError::Size { image: image.to_owned(), path, expected, found });
        }
        Ok(file)
    }
}

/// What messages call a blob that is not a manifest.
fn label(descriptor: &Descriptor) -> &'static str {
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
