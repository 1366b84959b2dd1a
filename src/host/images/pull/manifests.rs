//! Finds an image in a registry: its manifest or index, and the manifests for the selected platform. Manifests are fetched and
//! verified. The blobs that they name are only listed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::client::{Client, TRIES};
use super::error::{Fault, printable};
use super::reference::ImageReference;
use super::store::Store;
use super::tree::ListedManifest;
use super::upstream::Upstream;
use crate::disk::layout::served_type;
use crate::host::images::platforms::{self, Content, PlatformChoice, SelectedPlatforms, Unavailable};
use crate::oci::graph::{self, Exceeded, MAX_MANIFESTS, Node};
use crate::oci::{
    Descriptor, Digest, MAX_MANIFEST_SIZE, Manifest, ManifestError, Platform, Reference, Repository, Tag, media_type,
};

/// Accepted media types of a manifest.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
application/vnd.oci.artifact.manifest.v1+json";

/// A blob to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteBlob {
    /// Size in bytes.
    pub size: u64,
    /// Whether the media type is non-distributable, so that registries need not have the blob.
    pub is_foreign: bool,
}

/// The manifests and blobs of an image or an artifact.
#[derive(Debug, Default)]
pub struct RemoteContent {
    /// The manifests, which are in the store.
    pub manifests: Vec<Digest>,
    /// Blobs of all manifests.
    pub blobs: BTreeMap<Digest, RemoteBlob>,
}

/// An image.
#[derive(Debug)]
pub struct RemoteImage {
    /// Its manifest or index.
    pub root: ListedManifest,
    /// What the root consists of.
    pub content: RemoteContent,
    /// Which of its platforms were selected.
    pub selected: Option<SelectedPlatforms>,
}

/// A fetched manifest.
pub struct FetchedManifest {
    /// Its digest.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// Media type that it was served with.
    pub media_type: String,
    /// The parsed content.
    pub manifest: Manifest,
}

impl FetchedManifest {
    /// The entry of the layout's index for this manifest.
    #[must_use]
    pub fn listed(&self, name: Option<(Repository, Option<Tag>)>) -> ListedManifest {
        ListedManifest { digest: self.digest, size: self.size, media_type: self.media_type.clone(), name, left_out: Vec::new() }
    }
}

/// Fetches manifests of one repository into the store.
pub struct ManifestFetcher<'a> {
    /// The client.
    pub client: &'a Client,
    /// The repository.
    pub upstream: &'a Upstream<'a>,
    /// The store.
    pub store: &'a Arc<Store>,
    /// Attempts of each request before it fails.
    pub tries: u32,
    /// Number of manifests fetched so far. Those of referrers count against the same limit.
    manifests: usize,
    /// The manifests of the image's index that are for other platforms.
    left_out: HashSet<Digest>,
}

/// The manifest to pull, and which platforms of an index were selected.
type SelectedRoot = (FetchedManifest, Option<SelectedPlatforms>);

impl<'a> ManifestFetcher<'a> {
    /// A fetcher that has fetched nothing yet.
    #[must_use]
    pub fn new(client: &'a Client, upstream: &'a Upstream<'a>, store: &'a Arc<Store>) -> Self {
        Self { client, upstream, store, tries: TRIES, manifests: 0, left_out: HashSet::new() }
    }

    /// Fetches the manifests of the image `reference`, and lists their blobs.
    ///
    /// # Errors
    /// Fails with the first error found.
    pub fn fetch_image(&mut self, reference: &ImageReference, platforms: &PlatformChoice) -> Result<RemoteImage, Fault> {
        let root = self.fetch(&reference.manifest(), None)?;
        let (root, selected) = self.select_platforms(root, platforms)?;
        let name = Some((reference.repository.clone(), reference.tag.clone()));
        let listed = ListedManifest { left_out: self.left_out.iter().copied().collect(), ..root.listed(name) };
        Ok(RemoteImage { root: listed, content: self.fetch_tree(root)?, selected })
    }

    /// Fetches all manifests below `root` and lists their blobs.
    ///
    /// # Errors
    /// Fails with the first error found, and if all manifests found so far are too many.
    pub fn fetch_tree(&mut self, root: FetchedManifest) -> Result<RemoteContent, Fault> {
        let mut content = RemoteContent::default();
        let mut walk = graph::Walk::from_root(Descriptor::new(&root.media_type, root.digest, root.size));
        let mut root = Some(root);
        while let Some(step) = walk.next_manifest() {
            let Node { descriptor, depth, is_repeated } = step.map_err(too_many)?;
            if is_repeated || depth > 0 && self.left_out.contains(&descriptor.digest) {
                continue;
            }
            self.manifests += 1;
            if self.manifests > MAX_MANIFESTS {
                return Err(Fault::Endless(graph::Limit::Manifests.to_string()));
            }
            let fetched = match root.take() {
                Some(root) => root,
                None => self.fetch(&Reference::Digest(descriptor.digest), Some(&descriptor))?,
            };
            content.manifests.push(fetched.digest);
            for blob in &fetched.manifest.blobs {
                let is_foreign = [".nondistributable.", ".foreign."].iter().any(|part| blob.media_type.contains(part));
                content.blobs.insert(blob.digest, RemoteBlob { size: blob.size, is_foreign });
            }
            walk.descend(depth, fetched.manifest.manifests);
        }
        Ok(content)
    }

    /// Selects the platforms of the image `root`: leaves manifests out of its index or, to flatten it, returns a manifest in its place.
    /// A `root` that is not an index must itself be for one of the platforms.
    fn select_platforms(&mut self, root: FetchedManifest, choice: &PlatformChoice) -> Result<SelectedRoot, Fault> {
        let missing = |missing: Unavailable| Fault::Platform { wanted: missing.wanted, available: missing.available };
        if choice.wanted.is_empty() {
            return Ok((root, None));
        }
        if !media_type::is_index(&root.manifest.media_type) {
            choice.check_single(self.platform_of(&root.manifest)?.as_ref()).map_err(missing)?;
            return Ok((root, None));
        }
        let leaves = platforms::leaves(root.manifest.manifests.clone(), |descriptor| self.look(descriptor))?;
        let Some(selection) = choice.select(&leaves).map_err(missing)? else { return Ok((root, None)) };
        let root = match selection.first().filter(|_| choice.flatten) {
            Some(first) => self.fetch(&Reference::Digest(first.digest), Some(first))?,
            None => {
                self.left_out = selection.left_out.iter().map(|leaf| leaf.descriptor.digest).collect();
                root
            }
        };
        let summary = selection.summary(root.digest);
        Ok((root, Some(summary)))
    }

    /// What the content of a manifest says about itself.
    fn look(&self, descriptor: &Descriptor) -> Result<Content, Fault> {
        let manifest = self.fetch(&Reference::Digest(descriptor.digest), Some(descriptor))?.manifest;
        if media_type::is_index(&manifest.media_type) {
            return Ok(Content::Index(manifest.manifests));
        }
        let own = descriptor.platform.clone();
        Ok(Content::Manifest(own.map_or_else(|| self.platform_of(&manifest), |own| Ok(Some(own)))?))
    }

    /// The platform in an image's config. `None` for an artifact.
    fn platform_of(&self, image: &Manifest) -> Result<Option<Platform>, Fault> {
        let Some(config) = image.config().filter(|config| config.size <= MAX_MANIFEST_SIZE) else { return Ok(None) };
        let what = format!("config {} of {}", config.digest, self.upstream.path);
        let content = self.client.retry(|| {
            let (response, at) = self.upstream.get(&format!("blobs/{}", config.digest), &what, &[])?;
            self.upstream.read(response, &at, &what, MAX_MANIFEST_SIZE)
        })?;
        self.verify(&what, &content, config.digest)?;
        Ok(platforms::of_config(&content))
    }

    /// Fetches a manifest by tag or digest, verifies it against its descriptor, and stores it. One with a descriptor that is in the
    /// store already is not requested again.
    ///
    /// # Errors
    /// Fails if the registry does not give a manifest, or gives another one.
    pub fn fetch(&self, name: &Reference, descriptor: Option<&Descriptor>) -> Result<FetchedManifest, Fault> {
        let what = format!("manifest {name} of {}", self.upstream.path);
        if let Some(Descriptor { digest, size, .. }) = descriptor.filter(|descriptor| descriptor.size > MAX_MANIFEST_SIZE) {
            return Err(Fault::LargeManifest { digest: *digest, size: *size });
        }
        if let Some(descriptor) = descriptor.filter(|descriptor| self.store.has(&descriptor.digest)) {
            return self.stored(&what, descriptor);
        }
        let (kind, announced, content) = self.client.attempt(self.tries, || {
            let (response, at) = self.upstream.get(&format!("manifests/{name}"), &what, &[("Accept", ACCEPT)])?;
            let header =
                |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
            let (kind, announced) = (media_type::of_header(&header("content-type")), header("docker-content-digest"));
            Ok((kind, announced, self.upstream.read(response, &at, &what, MAX_MANIFEST_SIZE)?))
        })?;
        let host = || self.upstream.host.clone();
        // Some registries send it whatever `Accept` says.
        if kind.starts_with(media_type::DOCKER_SCHEMA1) {
            return Err(Fault::Schema1 { host: host(), what });
        }
        // Some registries send only the format.
        if !media_type::is_manifest(&kind) && kind != "application/json" {
            return Err(Fault::MediaType { host: host(), what, found: printable(&kind) });
        }
        let size = content.len() as u64;
        if let Some(expected) = descriptor.map(|descriptor| descriptor.size).filter(|expected| *expected != size) {
            return Err(Fault::Size { host: host(), what, expected, found: size });
        }
        let digest = match (name, announced.parse::<Digest>()) {
            (Reference::Digest(digest), _) => *digest,
            (Reference::Tag(_), Ok(announced)) => announced,
            (Reference::Tag(_), Err(_)) => Digest::sha256_of(&content),
        };
        self.verify(&what, &content, digest)?;
        let manifest = self.parse(&what, &content)?;
        self.store.put(digest, &content).map_err(|source| Fault::Write { file: digest.blob_path(), source })?;
        let media_type = if media_type::is_manifest(&kind) { kind } else { manifest.media_type.clone() };
        Ok(FetchedManifest { digest, size, media_type, manifest })
    }

    /// A manifest in the store.
    fn stored(&self, what: &str, descriptor: &Descriptor) -> Result<FetchedManifest, Fault> {
        self.check_size(what, &descriptor.digest, descriptor.size)?;
        let file = descriptor.digest.blob_path();
        let content = self.store.read(&descriptor.digest).map_err(|source| Fault::Read { file, source })?;
        let manifest = self.parse(what, &content)?;
        let media_type = served_type(descriptor, &manifest);
        Ok(FetchedManifest { digest: descriptor.digest, size: descriptor.size, media_type, manifest })
    }

    /// Compares the size of content in the store with the size in a descriptor.
    ///
    /// # Errors
    /// Fails if they differ.
    pub fn check_size(&self, what: &str, digest: &Digest, expected: u64) -> Result<(), Fault> {
        let found = self.store.size(digest).map_err(|source| Fault::Read { file: digest.blob_path(), source })?;
        if found == expected {
            return Ok(());
        }
        Err(Fault::Size { host: self.upstream.host.clone(), what: what.to_owned(), expected, found })
    }

    fn parse(&self, what: &str, content: &[u8]) -> Result<Manifest, Fault> {
        Manifest::parse(content).map_err(|source| {
            let (host, what) = (self.upstream.host.clone(), what.to_owned());
            match source {
                ManifestError::Schema1 => Fault::Schema1 { host, what },
                source => Fault::Manifest { host, what, source },
            }
        })
    }

    fn verify(&self, what: &str, content: &[u8], expected: Digest) -> Result<(), Fault> {
        let found = expected.algorithm().digest_of(content);
        if found == expected {
            return Ok(());
        }
        Err(Fault::Digest { host: self.upstream.host.clone(), what: what.to_owned(), expected, found })
    }
}

fn too_many(exceeded: Exceeded) -> Fault {
    Fault::Endless(exceeded.limit.to_string())
}
