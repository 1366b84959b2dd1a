//! Collects the images of a layout: every entry of `index.json` with all content below it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::ROOT;
use super::{
    Image, ImageBlob, IndexEntry, LayoutError, LeftOutBlob, OpenFile, ReadOptions, Tree, Unnamed, assign_repositories, entries,
    served_type,
};
use crate::oci::graph::{self, Exceeded, Limit, Node};
use crate::oci::{Descriptor, Digest, MAX_MANIFEST_SIZE, Manifest, Repository, Tag, media_type};

/// The repository of entries that get no other, where [`Unnamed::Default`] applies: in a server, and in what shows a server's names.
pub const DEFAULT_REPOSITORY: &str = "image";

/// The images of a layout.
#[derive(Debug, Clone, Default)]
pub struct LayoutImages {
    /// The images, in the order of `index.json`.
    pub images: Vec<Image>,
    /// The entries of `index.json` that are left out.
    pub left_over: Vec<LeftOver>,
}

/// An entry of `index.json` that names no image and belongs to none, beside entries that name images. skopeo and buildah leave the old
/// manifest there if a name is written again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("index.json: {digest} is no named image and belongs to none; it is left out")]
pub struct LeftOver {
    /// The manifest.
    pub digest: Digest,
}

impl LeftOver {
    /// The message about `count` entries that have no message of their own.
    #[must_use]
    pub fn others(count: usize) -> String {
        format!("left out for the same reason: {count} more; `localregistry inspect --json` lists all of them")
    }
}

/// The content below a root.
#[derive(Debug, Clone, Default)]
struct RootContent {
    present: Arc<[ImageBlob]>,
    left_out: Arc<[LeftOutBlob]>,
}

/// Every image of the layout in `tree`.
///
/// # Errors
/// Fails at the first fault of an image. Faults of what is left out do not count, unless a manifest is missing or damaged: it may have
/// been a referrer. One that is missing does not count if `allow_missing` permits that.
pub fn images(tree: &dyn Tree, options: ReadOptions<'_>) -> Result<LayoutImages, LayoutError> {
    images_of(tree, entries(tree)?, options)
}

/// The images of these entries of the layout in `tree`.
///
/// # Errors
/// See [`images`].
pub fn images_of(tree: &dyn Tree, entries: Vec<IndexEntry>, options: ReadOptions<'_>) -> Result<LayoutImages, LayoutError> {
    if let Unnamed::Reject = options.unnamed
        && let Some(wrong) = entries.iter().filter(|entry| entry.is_manifest()).find_map(|entry| entry.misnamed.clone())
    {
        return Err(LayoutError::Name(wrong));
    }
    let mut collector =
        Collector { tree, options, roots: HashMap::new(), faults: HashMap::new(), named: 0, distinct: HashSet::new() };
    entries.iter().try_for_each(|entry| collector.add(entry))?;
    let Collector { roots, mut faults, .. } = collector;
    let assigned = if let Unnamed::Assign(repository) = options.unnamed { Some(repository) } else { None };
    let default: Option<Repository> = if let Unnamed::Default = options.unnamed { DEFAULT_REPOSITORY.parse().ok() } else { None };
    let content = |root: &Digest| {
        let Some(root) = roots.get(root) else { return Vec::new() };
        let left_out = root.left_out.iter().map(|blob| (blob.digest, None));
        root.present.iter().map(|blob| (blob.digest, blob.subject)).chain(left_out).collect()
    };
    let (entries, left_over) = assign_repositories(entries, assigned, content);
    let mut faults_of = |digest: &Digest| faults.remove(digest).unwrap_or_default();
    let kept = entries.iter().find_map(|entry| {
        let Faults { unread, other } = faults_of(&entry.descriptor.digest);
        unread.or(other)
    });
    let is_tolerated = |fault: &LayoutError| options.allow_missing && fault.is_missing();
    let unread = |digest: &Digest| Some(faults_of(digest).unread?.without_a_name()).filter(|fault| !is_tolerated(fault));
    if let Some(fault) = kept.or_else(|| left_over.iter().find_map(unread)) {
        return Err(fault);
    }
    let image = |IndexEntry { descriptor, repository, tag, every_tag, is_named, is_companion, .. }: IndexEntry| {
        let digest = descriptor.digest;
        let repository = repository.or_else(|| default.clone()).ok_or(LayoutError::Unnamed { digest })?;
        let RootContent { present, left_out } = roots.get(&digest).cloned().unwrap_or_default();
        let has_subject = present.first().is_some_and(|root| root.subject.is_some());
        let is_companion = is_companion || has_subject || tag.as_ref().is_some_and(Tag::is_attachment);
        Ok(Image { repository, tag, every_tag, is_named, is_companion, digest, blobs: present, left_out })
    };
    let images = entries.into_iter().map(image).collect::<Result<_, _>>()?;
    Ok(LayoutImages { images, left_over: left_over.into_iter().map(|digest| LeftOver { digest }).collect() })
}

/// The number of layers that an image config names in `rootfs.diff_ids` (image specification, "Image Configuration"). 0 for other content.
#[must_use]
pub fn diff_ids(config: &[u8]) -> usize {
    #[derive(Deserialize)]
    struct ImageConfig {
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Vec<IgnoredAny>,
    }
    serde_json::from_slice::<ImageConfig>(config).map_or(0, |config| config.rootfs.diff_ids.len())
}

struct Collector<'a> {
    tree: &'a dyn Tree,
    options: ReadOptions<'a>,
    /// The roots collected so far. Many tags name one root.
    roots: HashMap<Digest, RootContent>,
    faults: HashMap<Digest, Faults>,
    /// Number of blobs in all roots, and the different ones.
    named: usize,
    distinct: HashSet<Digest>,
}

/// What is below a root, while it is collected.
#[derive(Default)]
struct Collected {
    present: Vec<ImageBlob>,
    left_out: Vec<LeftOutBlob>,
    faults: Faults,
}

/// The faults below a root.
#[derive(Default)]
struct Faults {
    /// The first manifest that is missing or damaged. Nobody can tell to what it refers.
    unread: Option<LayoutError>,
    /// The first other fault.
    other: Option<LayoutError>,
}

impl Faults {
    fn add(&mut self, fault: LayoutError, is_unread: bool) {
        if is_unread { &mut self.unread } else { &mut self.other }.get_or_insert(fault);
    }
}

impl Collector<'_> {
    /// Collects everything below an entry except what is left out.
    ///
    /// # Errors
    /// Fails with [`LayoutError::Shared`], which ends the reading of the layout.
    fn add(&mut self, entry: &IndexEntry) -> Result<(), LayoutError> {
        let digest = entry.descriptor.digest;
        if self.roots.contains_key(&digest) {
            return Ok(());
        }
        let mut found = Collected::default();
        if let Err(limit) = self.collect(entry, &mut found) {
            found.faults.add(limit, false);
        }
        let Collected { present, left_out, faults } = found;
        self.faults.insert(digest, faults);
        self.named += present.len() + left_out.len();
        self.distinct.extend(present.iter().map(|blob| blob.digest).chain(left_out.iter().map(|blob| blob.digest)));
        if self.named > graph::max_named(self.distinct.len()) {
            return Err(LayoutError::Shared { image: entry.name(), named: self.named, distinct: self.distinct.len() });
        }
        self.roots.insert(digest, RootContent { present: present.into(), left_out: left_out.into() });
        Ok(())
    }

    /// # Errors
    /// Fails at a limit of the walk. Other faults are added to `found`.
    fn collect(&self, entry: &IndexEntry, found: &mut Collected) -> Result<(), LayoutError> {
        let (image, root) = (&*entry.name(), &entry.descriptor);
        let listed: HashSet<&Digest> = entry.left_out.iter().collect();
        let mut own = HashSet::new();
        let mut walk = graph::Walk::from_root(root.clone());
        while let Some(step) = walk.next_manifest() {
            let Node { descriptor, depth, is_repeated } = step.map_err(|exceeded| limit_error(image, &exceeded))?;
            if is_repeated {
                continue;
            }
            if depth > 0 && listed.contains(&descriptor.digest) {
                found.left_out.push(LeftOutBlob::new(&descriptor, false));
                continue;
            }
            let manifest = match self.manifest(image, &descriptor, depth) {
                Err(error) if depth > 0 && self.is_tolerated(&error) => {
                    found.left_out.push(LeftOutBlob::new(&descriptor, true));
                    continue;
                }
                Err(error) => {
                    let is_read = matches!(error, LayoutError::Manifest { .. } | LayoutError::TooLarge { .. });
                    found.faults.add(error, !is_read);
                    continue;
                }
                Ok(manifest) => manifest,
            };
            if depth == 0 {
                own.extend(manifest.manifests.iter().map(|entry| entry.digest));
            }
            found.present.push(ImageBlob {
                in_own_index: own.contains(&descriptor.digest),
                manifest: Some(served_type(&descriptor, &manifest)),
                subject: manifest.subject.as_ref().map(|subject| subject.digest),
                ..ImageBlob::unread(&descriptor)
            });
            for blob in &manifest.blobs {
                if !walk.visit(blob.digest) {
                    continue;
                }
                if listed.contains(&blob.digest) {
                    found.left_out.push(LeftOutBlob::new(blob, false));
                    continue;
                }
                match self.open(image, label(blob, &manifest), blob) {
                    Err(error) if self.is_tolerated(&error) => found.left_out.push(LeftOutBlob::new(blob, true)),
                    Err(error) => found.faults.add(error, false),
                    Ok(_) => found.present.push(ImageBlob::unread(blob)),
                }
            }
            if let Err(error) = self.check_layers(image, &descriptor, &manifest) {
                found.faults.add(error, false);
            }
            walk.descend(depth, manifest.manifests);
        }
        Ok(())
    }

    /// Fails if an image has fewer layers than its config names. No client can unpack it. Artifacts with an image's config often name
    /// fewer, which is not a fault. Checked only while packing, because serving reads no configs.
    fn check_layers(&self, image: &str, descriptor: &Descriptor, manifest: &Manifest) -> Result<(), LayoutError> {
        let Some(config) = manifest.config().filter(|config| self.options.verify && config.size <= MAX_MANIFEST_SIZE) else {
            return Ok(());
        };
        let (path, config_path) = (descriptor.digest.blob_path(), config.digest.blob_path());
        // Copying verifies the config and reports that it is damaged. Here it can be missing, too.
        let content = self.tree.open(&config_path).and_then(|file| file.read_all(MAX_MANIFEST_SIZE)).unwrap_or_default();
        let diff_ids = diff_ids(&content);
        let layers = manifest.blobs.len() - 1;
        if layers < diff_ids {
            return Err(LayoutError::Layers { image: image.to_owned(), path, layers, config: config_path, diff_ids });
        }
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
        let manifest = Manifest::parse(&content);
        // What is damaged is not taken for other content.
        if self.options.verify || manifest.is_err() {
            let found = descriptor.digest.algorithm().digest_of(&content);
            if found != descriptor.digest {
                return Err(LayoutError::Digest { image: image.to_owned(), path, found });
            }
        }
        manifest.map_err(|cause| LayoutError::Manifest { image: image.to_owned(), path, cause })
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
fn label(descriptor: &Descriptor, manifest: &Manifest) -> &'static str {
    match media_type::is_nondistributable(&descriptor.media_type) {
        true => "non-distributable layer",
        false if media_type::is_index(&manifest.media_type) => "content of its index",
        false => "layer or config",
    }
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
