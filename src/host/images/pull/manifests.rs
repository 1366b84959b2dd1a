//! Finds everything that belongs to an image in a registry: its manifest or index, the manifests for the selected platform, and its
//! referrers (signatures, attestations, SBOMs). Manifests are fetched and verified. The blobs that they name are only listed.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use http::header::{CONTENT_TYPE, LINK};
use serde::Deserialize;

use super::client::Client;
use super::error::Fault;
use super::reference::ImageReference;
use super::store::Store;
use super::tree::ListedManifest;
use super::upstream::{Upstream, printable};
use crate::oci::graph::{self, Exceeded, MAX_MANIFESTS, Node};
use crate::oci::json::null_as_default;
use crate::oci::{
    COSIGN_SUFFIXES, Descriptor, Digest, MAX_MANIFEST_SIZE, Manifest, ManifestError, Platform, Reference, Tag, media_type,
};

/// Accepted media types of a manifest.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
application/vnd.oci.artifact.manifest.v1+json";
/// Prefix of the media types of Docker schema 1, which some registries send whatever `Accept` says.
const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";
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

/// Everything that belongs to an image.
#[derive(Debug, Default)]
pub struct ImageContent {
    /// The manifests that the layout's index lists, the image itself first.
    pub listed: Vec<ListedManifest>,
    /// Blobs of all manifests.
    pub blobs: BTreeMap<Digest, RemoteBlob>,
    /// Platforms of the index that were left out.
    pub left_out: Vec<String>,
}

/// A fetched manifest.
struct FetchedManifest {
    digest: Digest,
    size: u64,
    media_type: String,
    manifest: Manifest,
}

/// Fetches the manifests of everything that belongs to `reference` into `store`, and lists their blobs.
///
/// # Errors
/// Fails with the first error found.
pub fn fetch_manifests(
    client: &Client,
    upstream: &Upstream<'_>,
    store: &Arc<Store>,
    reference: &ImageReference,
    platform: Option<&Platform>,
) -> Result<ImageContent, Fault> {
    let (found, graph, subjects) = Default::default();
    let mut fetcher = ManifestFetcher { client, upstream, store, found, graph, subjects };
    let root = fetcher.fetch(&reference.manifest(), None)?;
    let root = match platform {
        Some(platform) => fetcher.select_platform(root, platform)?,
        None => root,
    };
    let name = Some((reference.repository.clone(), reference.tag.clone()));
    fetcher.found.listed.push(ListedManifest { digest: root.digest, size: root.size, media_type: root.media_type.clone(), name });
    fetcher.fetch_tree(root)?;
    fetcher.fetch_referrers(reference)?;
    Ok(fetcher.found)
}

struct ManifestFetcher<'a> {
    client: &'a Client,
    upstream: &'a Upstream<'a>,
    store: &'a Arc<Store>,
    found: ImageContent,
    /// The manifests fetched so far. Those of referrers count against the same limits.
    graph: graph::Walk,
    /// Manifests whose referrers are not yet requested.
    subjects: VecDeque<Digest>,
}

impl ManifestFetcher<'_> {
    /// Fetches all manifests below `root` and lists their blobs.
    fn fetch_tree(&mut self, root: FetchedManifest) -> Result<(), Fault> {
        self.graph.add_root(Descriptor::new(&root.media_type, root.digest, root.size));
        let mut root = Some(root);
        while let Some(step) = self.graph.next_manifest() {
            let Node { descriptor, depth, is_repeated } = step.map_err(too_many)?;
            if is_repeated {
                continue;
            }
            let fetched = match root.take() {
                Some(root) => root,
                None => self.fetch(&Reference::Digest(descriptor.digest), Some(&descriptor))?,
            };
            self.subjects.push_back(fetched.digest);
            for blob in &fetched.manifest.blobs {
                let is_foreign = [".nondistributable.", ".foreign."].iter().any(|part| blob.media_type.contains(part));
                self.found.blobs.insert(blob.digest, RemoteBlob { size: blob.size, is_foreign });
            }
            self.graph.descend(depth, fetched.manifest.manifests);
        }
        Ok(())
    }

    /// Selects the manifest for `platform` in the index `root`. A `root` that is not an index must itself be for that platform.
    fn select_platform(&mut self, root: FetchedManifest, platform: &Platform) -> Result<FetchedManifest, Fault> {
        if !media_type::is_index(&root.manifest.media_type) {
            return match self.platform_of(&root)? {
                Some(own) if !platform.matches(&own) => {
                    Err(Fault::Platform { wanted: platform.to_string(), available: vec![own.to_string()] })
                }
                _ => Ok(root),
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
        self.found.left_out = names(&listed).into_iter().filter(|name| *name != kept.to_string()).collect();
        self.fetch(&Reference::Digest(one.digest), Some(one))
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
        let configs = [media_type::OCI_CONFIG, media_type::DOCKER_CONFIG];
        let config = image.manifest.blobs.first().filter(|blob| configs.contains(&blob.media_type.as_str()));
        let Some(config) = config.filter(|config| config.size <= MAX_MANIFEST_SIZE) else { return Ok(None) };
        let what = format!("config {} of {}", config.digest, self.upstream.path);
        let content = self.client.retry(|| {
            let (response, at) = self.upstream.get(&format!("blobs/{}", config.digest), &what, &[])?;
            self.upstream.read(response, &at, &what, MAX_MANIFEST_SIZE)
        })?;
        self.verify(&what, &content, config.digest)?;
        Ok(serde_json::from_slice(&content).ok())
    }

    /// Finds the referrers of the manifests found so far: by the referrers API or else the referrers tag (distribution specification,
    /// "Listing Referrers" and "Referrers Tag Schema"), and by cosign's tags.
    fn fetch_referrers(&mut self, reference: &ImageReference) -> Result<(), Fault> {
        let own: HashSet<Digest> = self.subjects.iter().copied().collect();
        let mut has_api = true;
        while let Some(subject) = self.subjects.pop_front() {
            let listed = if has_api { self.listed_referrers(&subject)? } else { None };
            has_api = listed.is_some();
            for descriptor in listed.into_iter().flatten() {
                if self.graph.is_visited(&descriptor.digest) {
                    continue;
                }
                // A list may name manifests that were deleted.
                let Some(fetched) = if_found(self.fetch(&Reference::Digest(descriptor.digest), Some(&descriptor)))? else {
                    continue;
                };
                let (digest, size, media_type) = (fetched.digest, fetched.size, fetched.media_type.clone());
                self.found.listed.push(ListedManifest { digest, size, media_type, name: None });
                self.fetch_tree(fetched)?;
            }
            let base = format!("{}-{}", subject.algorithm().name(), subject.hex());
            let fallback = (!has_api).then(|| base.clone());
            let cosign = COSIGN_SUFFIXES.iter().filter(|_| own.contains(&subject)).map(|end| format!("{base}{end}"));
            for tag in fallback.into_iter().chain(cosign) {
                let Ok(tag) = tag.parse::<Tag>() else { continue };
                let Some(fetched) = if_found(self.fetch(&Reference::Tag(tag.clone()), None))? else { continue };
                let (digest, size, media_type) = (fetched.digest, fetched.size, fetched.media_type.clone());
                let name = Some((reference.repository.clone(), Some(tag)));
                self.found.listed.push(ListedManifest { digest, size, media_type, name });
                self.fetch_tree(fetched)?;
            }
        }
        Ok(())
    }

    /// The referrers of a manifest by the referrers API. `None` if the registry does not have that API.
    fn listed_referrers(&self, subject: &Digest) -> Result<Option<Vec<Descriptor>>, Fault> {
        #[derive(Deserialize)]
        struct Index {
            #[serde(deserialize_with = "null_as_default")]
            manifests: Vec<Descriptor>,
        }
        let what = format!("referrers of {subject} in {}", self.upstream.path);
        let mut listed = Vec::new();
        let mut next = Some(format!("referrers/{subject}"));
        while let Some(target) = next {
            let fetched = self.client.retry(|| {
                let (response, at) = self.upstream.get(&target, &what, &[("Accept", media_type::OCI_INDEX)])?;
                let header =
                    |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
                let (kind, link) = (header(CONTENT_TYPE), header(LINK));
                Ok((kind, link, self.upstream.read(response, &at, &what, MAX_MANIFEST_SIZE)?))
            });
            let (kind, link, body) = match fetched {
                // Registries without the API answer with various errors.
                Err(Fault::NotFound { .. } | Fault::Denied { .. } | Fault::Status { status: 400..500, .. }) => return Ok(None),
                other => other?,
            };
            if kind.split(';').next().map(str::trim) != Some(media_type::OCI_INDEX) {
                return Ok(None);
            }
            let index: Index = serde_json::from_slice(&body).map_err(|error| Fault::Manifest {
                host: self.upstream.host.clone(),
                what: what.clone(),
                source: ManifestError::Json(error),
            })?;
            listed.extend(index.manifests);
            if listed.len() > MAX_MANIFESTS {
                return Err(Fault::Endless(format!("{MAX_MANIFESTS} referrers")));
            }
            next = next_page(&link, subject);
        }
        Ok(Some(listed))
    }

    /// Fetches a manifest by tag or digest, verifies it against its descriptor, and stores it.
    fn fetch(&self, name: &Reference, descriptor: Option<&Descriptor>) -> Result<FetchedManifest, Fault> {
        let what = format!("manifest {name} of {}", self.upstream.path);
        if let Some(Descriptor { digest, size, .. }) = descriptor.filter(|descriptor| descriptor.size > MAX_MANIFEST_SIZE) {
            return Err(Fault::LargeManifest { digest: *digest, size: *size });
        }
        let (kind, announced, content) = self.client.retry(|| {
            let (response, at) = self.upstream.get(&format!("manifests/{name}"), &what, &[("Accept", ACCEPT)])?;
            let header =
                |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
            let (kind, announced) = (header("content-type"), header("docker-content-digest"));
            Ok((kind, announced, self.upstream.read(response, &at, &what, MAX_MANIFEST_SIZE)?))
        })?;
        let kind = kind.split(';').next().unwrap_or_default().trim();
        let host = || self.upstream.host.clone();
        if kind.starts_with(SCHEMA1) {
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
        let manifest = Manifest::parse(&content).map_err(|source| match source {
            ManifestError::Schema1 => Fault::Schema1 { host: host(), what: what.clone() },
            source => Fault::Manifest { host: host(), what: what.clone(), source },
        })?;
        self.store.put(digest, &content).map_err(|source| Fault::Write { file: digest.blob_path(), source })?;
        let media_type = if media_type::is_manifest(kind) { kind.to_owned() } else { manifest.media_type.clone() };
        Ok(FetchedManifest { digest, size, media_type, manifest })
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

/// Converts "not found" to `None`.
fn if_found(fetched: Result<FetchedManifest, Fault>) -> Result<Option<FetchedManifest>, Fault> {
    match fetched {
        Err(Fault::NotFound { .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// The target of the next page of referrers (distribution specification, "Listing Referrers": `Link`, RFC 8288). Only the query of the
/// link is used, so that a list cannot continue on another host.
fn next_page(link: &str, subject: &Digest) -> Option<String> {
    let (url, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let next = parameters.split(';').any(|parameter| matches!(parameter.trim(), "rel=\"next\"" | "rel=next"));
    let (_, query) = url.split_once('?')?;
    next.then(|| format!("referrers/{subject}?{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_page_url_has_only_the_query_of_the_link() {
        let subject = Digest::sha256_of(b"");
        for (link, expected) in [
            ("</v2/a/referrers/x?n=2&last=y>; rel=\"next\"", Some("n=2&last=y")),
            ("<https://elsewhere/?n=2>; rel=next", Some("n=2")),
            ("</v2/a/referrers/x>; rel=\"next\"", None),
            ("</v2/a?n=2>; rel=\"prev\"", None),
            ("", None),
        ] {
            assert_eq!(next_page(link, &subject), expected.map(|query| format!("referrers/{subject}?{query}")), "{link}");
        }
    }
}
