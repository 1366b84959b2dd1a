//! Finds an image in a registry: its manifest or index, and the manifests for the selected platform. Manifests are fetched and
//! verified. The blobs that they name are only listed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::client::{Client, TRIES};
use super::error::Fault;
use super::reference::ImageReference;
use super::store::Store;
use super::tree::ListedManifest;
use super::upstream::{Upstream, printable};
use crate::disk::layout::served_type;
use crate::oci::graph::{self, Exceeded, MAX_MANIFESTS, Node};
use crate::oci::{
    Descriptor, Digest, MAX_MANIFEST_SIZE, Manifest, ManifestError, Platform, Reference, Repository, Tag, media_type,
};

/// Accepted media types of a manifest.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
application/vnd.oci.artifact.manifest.v1+json";
/// Operating system of index entries that are not for a platform, such as BuildKit's attestations.
const UNKNOWN: &str = "unknown";

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
    /// Platforms of the index that were left out.
    pub left_out: Vec<String>,
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
        ListedManifest { digest: self.digest, size: self.size, media_type: self.media_type.clone(), name }
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
}

impl<'a> ManifestFetcher<'a> {
    /// A fetcher that has fetched nothing yet.
    #[must_use]
    pub const fn new(client: &'a Client, upstream: &'a Upstream<'a>, store: &'a Arc<Store>) -> Self {
        Self { client, upstream, store, tries: TRIES, manifests: 0 }
    }

    /// Fetches the manifests of the image `reference`, and lists their blobs.
    ///
    /// # Errors
    /// Fails with the first error found.
    pub fn fetch_image(&mut self, reference: &ImageReference, platform: Option<&Platform>) -> Result<RemoteImage, Fault> {
        let root = self.fetch(&reference.manifest(), None)?;
        let (root, left_out) = match platform {
            Some(platform) => self.select_platform(root, platform)?,
            None => (root, Vec::new()),
        };
        let listed = root.listed(Some((reference.repository.clone(), reference.tag.clone())));
        Ok(RemoteImage { root: listed, content: self.fetch_tree(root)?, left_out })
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
            if is_repeated {
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

    /// Selects the manifest for `platform` in the index `root`, and names the platforms left out. A `root` that is not an index must
    /// itself be for that platform.
    fn select_platform(&self, root: FetchedManifest, platform: &Platform) -> Result<(FetchedManifest, Vec<String>), Fault> {
        if !media_type::is_index(&root.manifest.media_type) {
            return match self.platform_of(&root)? {
                Some(own) if !platform.matches(&own) => {
                    Err(Fault::Platform { wanted: platform.to_string(), available: vec![own.to_string()] })
                }
                _ => Ok((root, Vec::new())),
            };
        }
        let listed = self.platforms(root)?;
        let names = |listed: &[(Descriptor, Platform)]| {
            let mut names: Vec<String> = listed.iter().map(|(_, platform)| platform.to_string()).collect();
            names.sort();
            names.dedup();
            names
        };
        // Of several matches (releases of Windows), the first, as in clients. A platform without a variant also matches the only
        // manifest of its architecture.
        let alike: Vec<&(Descriptor, Platform)> =
            listed.iter().filter(|(_, listed)| platform.same_architecture(listed)).collect();
        let only = || alike.first().filter(|_| alike.len() == 1 && platform.variant.is_none());
        let Some((one, kept)) = listed.iter().find(|(_, listed)| platform.matches(listed)).or_else(|| only().copied()) else {
            return Err(Fault::Platform { wanted: platform.to_string(), available: names(&listed) });
        };
        let left_out = names(&listed).into_iter().filter(|name| *name != kept.to_string()).collect();
        Ok((self.fetch(&Reference::Digest(one.digest), Some(one))?, left_out))
    }

    /// The manifests below an index with their platforms. Skips those that are not for a platform.
    fn platforms(&self, index: FetchedManifest) -> Result<Vec<(Descriptor, Platform)>, Fault> {
        let mut listed = Vec::new();
        let mut walk = graph::Walk::default();
        walk.descend(0, index.manifest.manifests);
        while let Some(step) = walk.next_manifest() {
            let Node { descriptor, depth, is_repeated } = step.map_err(too_many)?;
            match &descriptor.platform {
                Some(platform) if platform.os == UNKNOWN => {}
                Some(platform) => listed.push((descriptor.clone(), platform.clone())),
                None if is_repeated => {}
                None => {
                    let fetched = self.fetch(&Reference::Digest(descriptor.digest), Some(&descriptor))?;
                    if media_type::is_index(&fetched.manifest.media_type) {
                        walk.descend(depth, fetched.manifest.manifests);
                    } else if let Some(platform) = self.platform_of(&fetched)? {
                        listed.push((descriptor, platform));
                    }
                }
            }
        }
        Ok(listed)
    }

    /// The platform in an image's config. `None` for an artifact.
    fn platform_of(&self, image: &FetchedManifest) -> Result<Option<Platform>, Fault> {
        let Some(config) = image.manifest.config().filter(|config| config.size <= MAX_MANIFEST_SIZE) else { return Ok(None) };
        let what = format!("config {} of {}", config.digest, self.upstream.path);
        let content = self.client.retry(|| {
            let (response, at) = self.upstream.get(&format!("blobs/{}", config.digest), &what, &[])?;
            self.upstream.read(response, &at, &what, MAX_MANIFEST_SIZE)
        })?;
        self.verify(&what, &content, config.digest)?;
        Ok(serde_json::from_slice(&content).ok())
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
            let (kind, announced) = (header("content-type"), header("docker-content-digest"));
            Ok((kind, announced, self.upstream.read(response, &at, &what, MAX_MANIFEST_SIZE)?))
        })?;
        let kind = kind.split(';').next().unwrap_or_default().trim();
        let host = || self.upstream.host.clone();
        // Some registries send it whatever `Accept` says.
        if kind.starts_with(media_type::DOCKER_SCHEMA1) {
            return Err(Fault::Schema1 { host: host(), what });
        }
        // Some registries send only the format.
        if !media_type::is_manifest(kind) && kind != "application/json" {
            return Err(Fault::MediaType { host: host(), what, found: printable(kind) });
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
        let media_type = if media_type::is_manifest(kind) { kind.to_owned() } else { manifest.media_type.clone() };
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
