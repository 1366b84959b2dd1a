//! Collects [`Contents`]: reads each root's manifests and numbers the blobs they name.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::Arc;

use serde::Deserialize;

use super::{Blob, BlobFault, BlobKind, Contents, ContentsError, Image, NO_PLATFORM, Root, read_fault};
use crate::disk::layout::{self, IndexEntry, LayoutError, LeftOutBlob, Tree};
use crate::host::support::interrupt::Interrupt;
use crate::oci::graph::{self, Exceeded, Node};
use crate::oci::{Descriptor, Digest, MAX_MANIFEST_SIZE, Manifest, Platform, media_type};
use crate::text::chain;

#[derive(Deserialize)]
struct Config {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
}

pub struct Collector<'a> {
    tree: &'a dyn Tree,
    contents: Contents,
    /// Numbers of blobs.
    numbers: HashMap<Digest, u32>,
    /// Numbers of roots.
    roots: HashMap<Digest, u32>,
    /// Manifests whose media type is known from their content.
    typed: HashSet<u32>,
    faulty: HashSet<u32>,
    /// Media types, platforms and artifact types. Many images share each of them.
    texts: HashSet<Arc<str>>,
    /// Number of blobs in all roots.
    named: usize,
    interrupt: &'a Interrupt,
}

/// The content of a root, while it is collected.
#[derive(Default)]
struct RootContent {
    walk: graph::Walk,
    blobs: Vec<u32>,
    platforms: Vec<Arc<str>>,
    referrers: Vec<(u32, Digest)>,
    left_out: Vec<LeftOutBlob>,
}

impl<'a> Collector<'a> {
    /// Collects everything below `entries`, and checks the digests of manifests.
    pub fn collect(tree: &'a dyn Tree, entries: &[IndexEntry], interrupt: &'a Interrupt) -> Result<Self, ContentsError> {
        let mut collector = Self {
            tree,
            contents: Contents::default(),
            numbers: HashMap::new(),
            roots: HashMap::new(),
            typed: HashSet::new(),
            faulty: HashSet::new(),
            texts: HashSet::new(),
            named: 0,
            interrupt,
        };
        for entry in entries {
            collector.add_root(entry)?;
        }
        Ok(collector)
    }

    /// Every digest below a root, its own included, with the subject of each manifest that has one.
    pub fn content_of(&self, root: &Digest) -> Vec<(Digest, Option<Digest>)> {
        let Some(root) = self.roots.get(root).and_then(|number| self.contents.roots.get(*number as usize)) else {
            return Vec::new();
        };
        let blobs = root.blobs.iter().map(|number| (*number, None));
        let referrers = root.referrers.iter().map(|(number, subject)| (*number, Some(*subject)));
        let digest = |number: u32| self.contents.blobs.get(number as usize).map(|blob| blob.digest);
        let held = blobs.chain(referrers).filter_map(|(number, subject)| Some((digest(number)?, subject)));
        held.chain(root.left_out.iter().map(|blob| (blob.digest, None))).collect()
    }

    /// Number of distinct roots.
    pub fn roots(&self) -> usize {
        self.roots.len()
    }

    /// The manifests below these roots that are missing or damaged.
    pub fn unread_manifests(&self, roots: &[Digest]) -> Vec<(Blob, BlobFault)> {
        let roots = roots.iter().filter_map(|root| self.contents.roots.get(*self.roots.get(root)? as usize));
        let below: HashSet<u32> = roots.flat_map(|root| root.blobs.iter().copied()).collect();
        let unread = self.contents.faults.iter().filter(|(number, fault)| {
            below.contains(number) && !matches!(fault, BlobFault::Manifest(_) | BlobFault::Layers { .. })
        });
        let blob = |number: u32| self.contents.blobs.get(number as usize);
        let blobs = unread.filter_map(|(number, fault)| Some((blob(*number)?, fault)));
        let manifests = blobs.filter(|(blob, _)| matches!(blob.kind, BlobKind::Manifest(_)));
        manifests.map(|(blob, fault)| (Blob { roots: 0, ..blob.clone() }, fault.clone())).collect()
    }

    /// The contents with these entries as images.
    pub fn finish(self, entries: Vec<IndexEntry>) -> Contents {
        let Self { mut contents, roots, .. } = self;
        let image = |IndexEntry { descriptor, repository, tag, every_tag, .. }: IndexEntry| {
            Some(Image { repository, tag, every_tag, root: *roots.get(&descriptor.digest)? })
        };
        let mut images: Vec<Image> = entries.into_iter().filter_map(image).collect();
        let digest = |image: &Image| contents.root_blob(image).map(|blob| blob.digest);
        images.sort_unstable_by(|a, b| (&a.repository, &a.tag, digest(a)).cmp(&(&b.repository, &b.tag, digest(b))));
        contents.images = images;
        contents
    }

    /// Collects everything below an entry except what is left out.
    fn add_root(&mut self, entry: &IndexEntry) -> Result<(), ContentsError> {
        self.interrupt.check()?;
        let descriptor = &entry.descriptor;
        if self.roots.contains_key(&descriptor.digest) {
            return Ok(());
        }
        let mut found = RootContent { walk: graph::Walk::from_root(descriptor.clone()), ..RootContent::default() };
        let left_out: HashSet<&Digest> = entry.left_out.iter().collect();
        let mut root_type = None;
        while let Some(step) = found.walk.next_manifest() {
            self.interrupt.check()?;
            let (Node { descriptor, depth, is_repeated }, limit) = match step {
                Ok(node) => (node, None),
                Err(Exceeded { limit, node }) => (node, Some(limit)),
            };
            if depth > 0 && left_out.contains(&descriptor.digest) {
                found.left_out.extend((!is_repeated).then(|| LeftOutBlob::new(&descriptor, false)));
                continue;
            }
            let kind = BlobKind::Manifest(self.text(&descriptor.media_type));
            let number = self.number(&descriptor, kind);
            if is_repeated {
                continue;
            }
            found.blobs.push(number);
            if let Some(limit) = limit {
                self.fault(number, BlobFault::Manifest(format!("its image has more than {limit}")));
                continue;
            }
            let Some(manifest) = self.manifest(number, &descriptor)? else { continue };
            self.add_manifest(&mut found, number, &descriptor, &manifest, &left_out)?;
            if depth == 0 {
                root_type = artifact_type(&manifest);
            }
            found.walk.descend(depth, manifest.manifests);
        }
        self.named += found.blobs.len();
        let distinct = self.contents.blobs.len();
        if self.named > graph::max_named(distinct) {
            return Err(LayoutError::Shared { image: entry.name(), named: self.named, distinct }.into());
        }
        found.platforms.sort_unstable();
        found.platforms.dedup();
        for blob in &found.blobs {
            if let Some(blob) = self.contents.blobs.get_mut(*blob as usize) {
                blob.roots += 1;
            }
        }
        let artifact_type = root_type.map(|text| self.text(&text));
        let number = column(self.contents.roots.len());
        let RootContent { blobs, platforms, referrers, left_out, .. } = found;
        self.contents.roots.push(Root {
            blobs: blobs.into(),
            platforms: platforms.into(),
            artifact_type,
            referrers: referrers.into(),
            left_out: left_out.into(),
        });
        self.roots.insert(descriptor.digest, number);
        Ok(())
    }

    /// Adds a manifest's media type, subject, blobs and platform.
    fn add_manifest(
        &mut self,
        found: &mut RootContent,
        number: u32,
        descriptor: &Descriptor,
        manifest: &Manifest,
        left_out: &HashSet<&Digest>,
    ) -> Result<(), ContentsError> {
        let media_type = self.text(&layout::served_type(descriptor, manifest));
        let first = self.typed.insert(number);
        if let Some(blob) = self.contents.blobs.get_mut(number as usize) {
            // Of several media types the least counts, as in the catalog.
            let is_less = |known: &BlobKind| if let BlobKind::Manifest(known) = known { *media_type < **known } else { true };
            if first || is_less(&blob.kind) {
                blob.kind = BlobKind::Manifest(media_type);
            }
        }
        found.referrers.extend(manifest.subject.as_ref().map(|subject| (number, subject.digest)));
        let mut config = None;
        for descriptor in &manifest.blobs {
            if left_out.contains(&descriptor.digest) {
                let is_new = found.walk.visit(descriptor.digest);
                found.left_out.extend(is_new.then(|| LeftOutBlob::new(descriptor, false)));
                continue;
            }
            let is_config = manifest.config() == Some(descriptor);
            let number = self.number(
                descriptor,
                if media_type::is_config(&descriptor.media_type) { BlobKind::Config } else { BlobKind::Layer },
            );
            if found.walk.visit(descriptor.digest) {
                found.blobs.push(number);
            }
            if is_config {
                config = Some((number, descriptor));
            }
        }
        let config = match config {
            Some((config_number, config)) => {
                let content = self.config(config_number, config)?;
                // As `pack` checks it.
                let (layers, diff_ids) = (manifest.blobs.len() - 1, layout::diff_ids(&content));
                if layers < diff_ids {
                    self.fault(number, BlobFault::Layers { layers, config: config.digest, diff_ids });
                }
                content
            }
            None => Vec::new(),
        };
        let platform = descriptor.platform.clone().or_else(|| platform(&config));
        let platform = platform.map(|platform| platform.to_string()).filter(|name| !name.is_empty() && name != NO_PLATFORM);
        let platform = platform.filter(|_| manifest.manifests.is_empty());
        found.platforms.extend(platform.map(|name| self.text(&name)));
        Ok(())
    }

    fn manifest(&mut self, number: u32, descriptor: &Descriptor) -> Result<Option<Manifest>, ContentsError> {
        if descriptor.size > MAX_MANIFEST_SIZE {
            self.fault(
                number,
                BlobFault::Manifest(format!("it has {} bytes, and at most {MAX_MANIFEST_SIZE} are served", descriptor.size)),
            );
            return Ok(None);
        }
        let Some(content) = self.verified(number, descriptor)? else { return Ok(None) };
        match Manifest::parse(&content) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) => {
                self.fault(number, BlobFault::Manifest(chain(&error)));
                Ok(None)
            }
        }
    }

    /// The content of an image's config. Empty if it is large, or after a fault.
    fn config(&mut self, number: u32, descriptor: &Descriptor) -> Result<Vec<u8>, ContentsError> {
        if descriptor.size > MAX_MANIFEST_SIZE {
            return Ok(Vec::new());
        }
        Ok(self.verified(number, descriptor)?.unwrap_or_default())
    }

    /// The content of a manifest or config. Records a fault and returns `None` if it cannot be read, or is other content.
    fn verified(&mut self, number: u32, descriptor: &Descriptor) -> Result<Option<Vec<u8>>, ContentsError> {
        let Some(content) = self.content(number, descriptor)? else { return Ok(None) };
        let found = descriptor.digest.algorithm().digest_of(&content);
        if found != descriptor.digest {
            self.fault(number, BlobFault::Content { found });
            return Ok(None);
        }
        if let Some(blob) = self.contents.blobs.get_mut(number as usize) {
            blob.checked = true;
        }
        Ok(Some(content))
    }

    /// The bytes of a manifest or config. Records a fault and returns `None` if they cannot be read or have another size.
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
            Ok(Err(found)) => self.fault(number, BlobFault::Size { expected: descriptor.size, found }),
            Err(error) => self.fault(number, read_fault(error).map_err(|source| ContentsError::Unsupported { path, source })?),
        }
        Ok(None)
    }

    /// The number of a blob. Records a fault if an earlier descriptor gave another size.
    fn number(&mut self, descriptor: &Descriptor, kind: BlobKind) -> u32 {
        let next = column(self.contents.blobs.len());
        let number = *self.numbers.entry(descriptor.digest).or_insert(next);
        if number == next {
            let Descriptor { digest, size, .. } = *descriptor;
            self.contents.blobs.push(Blob { digest, size, kind, roots: 0, checked: false });
            return number;
        }
        let first = self.contents.blobs.get(number as usize).map_or(descriptor.size, |blob| blob.size);
        if first != descriptor.size {
            self.fault(number, BlobFault::Sizes { first, second: descriptor.size });
        }
        number
    }

    /// Records a fault of a blob. Only the first fault counts.
    fn fault(&mut self, number: u32, fault: BlobFault) {
        if let Some(blob) = self.contents.blobs.get_mut(number as usize) {
            blob.checked = true;
        }
        if self.faulty.insert(number) {
            self.contents.faults.push((number, fault));
        }
    }

    /// The shared copy of `text`.
    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        let text: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&text));
        text
    }
}

/// A position as a number. No disk has more blobs than 32 bits can count.
fn column(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The platform in an image's config.
fn platform(config: &[u8]) -> Option<Platform> {
    let config: Config = serde_json::from_slice(config).ok()?;
    Some(Platform { architecture: config.architecture?, os: config.os?, variant: config.variant })
}

/// The artifact type of a manifest; `None` for an image (image specification, "Guidelines for Artifact Usage").
fn artifact_type(manifest: &Manifest) -> Option<String> {
    manifest.artifact_type.clone().filter(|kind| !kind.is_empty() && !media_type::is_config(kind))
}
