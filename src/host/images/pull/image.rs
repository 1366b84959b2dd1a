//! What belongs to an image in a registry: its manifest or index, what that lists for the platform that is wanted, and what refers to
//! it: signatures, attestations, bills of materials. What leaves is a list of manifests, all fetched and verified, and of the blobs
//! that they name, none of them fetched.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use http::header::{CONTENT_TYPE, LINK};
use serde::Deserialize;

use super::client::Client;
use super::error::Fault;
use super::reference::Reference;
use super::store::Store;
use super::tree::Listed;
use super::upstream::{Upstream, clean};
use crate::oci::graph::{self, Exceeded, MAX_MANIFESTS, Node};
use crate::oci::{
    COSIGN_SUFFIXES, Descriptor, Digest, MAX_MANIFEST_SIZE, Manifest, ManifestError, Platform, Reference as Name, Tag, media_type,
};

/// What is accepted for a manifest.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
application/vnd.oci.artifact.manifest.v1+json";
/// Beginning of the media types of Docker's schema 1, which registries give whatever is accepted.
const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";
/// The platform that stands for none, in an index (BuildKit's attestations).
const UNKNOWN: &str = "unknown";

/// A blob that has to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its size in bytes.
    pub size: u64,
    /// Whether its type says that registries need not have it.
    pub foreign: bool,
}

/// What belongs to an image.
#[derive(Debug, Default)]
pub struct Found {
    /// What the layout's index lists, the image itself first.
    pub listed: Vec<Listed>,
    /// The blobs of all manifests.
    pub blobs: BTreeMap<Digest, Wanted>,
    /// What was left out of an index: platforms.
    pub left_out: Vec<String>,
}

/// A manifest as it came.
struct Fetched {
    digest: Digest,
    size: u64,
    media_type: String,
    manifest: Manifest,
}

/// Finds everything that belongs to `reference`.
///
/// # Errors
/// [`Fault`], at the first thing that is wrong.
pub fn find(
    client: &Client,
    upstream: &Upstream<'_>,
    store: &Arc<Store>,
    reference: &Reference,
    platform: Option<&Platform>,
) -> Result<Found, Fault> {
    let (found, graph, subjects) = Default::default();
    let mut walk = Walk { client, upstream, store, found, graph, subjects };
    let root = walk.fetch(&reference.manifest(), None)?;
    let root = match platform {
        Some(platform) => walk.choose(root, platform)?,
        None => root,
    };
    let name = Some((reference.repository.clone(), reference.tag.clone()));
    walk.found.listed.push(Listed { digest: root.digest, size: root.size, media_type: root.media_type.clone(), name });
    walk.tree(root)?;
    walk.referrers(reference)?;
    Ok(walk.found)
}

struct Walk<'a> {
    client: &'a Client,
    upstream: &'a Upstream<'a>,
    store: &'a Arc<Store>,
    found: Found,
    /// The manifests fetched so far. Those of referrers count against the same limits.
    graph: graph::Walk,
    /// Manifests whose referrers are still to be asked for.
    subjects: VecDeque<Digest>,
}

impl Walk<'_> {
    /// Fetches everything that `root` lists, and notes the blobs.
    fn tree(&mut self, root: Fetched) -> Result<(), Fault> {
        self.graph.add_root(Descriptor::new(&root.media_type, root.digest, root.size));
        let mut root = Some(root);
        while let Some(step) = self.graph.next_manifest() {
            let Node { descriptor, depth, is_repeated } = step.map_err(too_many)?;
            if is_repeated {
                continue;
            }
            let fetched = match root.take() {
                Some(root) => root,
                None => self.fetch(&Name::Digest(descriptor.digest), Some(&descriptor))?,
            };
            self.subjects.push_back(fetched.digest);
            for blob in &fetched.manifest.blobs {
                let foreign = [".nondistributable.", ".foreign."].iter().any(|part| blob.media_type.contains(part));
                self.found.blobs.insert(blob.digest, Wanted { size: blob.size, foreign });
            }
            self.graph.descend(depth, fetched.manifest.manifests);
        }
        Ok(())
    }

    /// The one manifest that `root` lists for `platform`; `root` itself where it is no index and for that platform.
    fn choose(&mut self, root: Fetched, platform: &Platform) -> Result<Fetched, Fault> {
        if !media_type::is_index(&root.manifest.media_type) {
            return match self.platform_of(&root)? {
                Some(own) if !platform.matches(&own) => {
                    Err(Fault::Platform { wanted: platform.to_string(), there: vec![own.to_string()] })
                }
                _ => Ok(root),
            };
        }
        let listed = self.platforms(root)?;
        let names = |chosen: &[(Descriptor, Platform)]| {
            let mut names: Vec<String> = chosen.iter().map(|(_, platform)| platform.to_string()).collect();
            names.sort();
            names.dedup();
            names
        };
        // Where two are for it (as of several releases of Windows), the first, as clients choose; without a variant, also the only one
        // that there is of its architecture.
        let alike: Vec<&(Descriptor, Platform)> =
            listed.iter().filter(|(_, listed)| platform.same_architecture(listed)).collect();
        let only = || alike.first().filter(|_| alike.len() == 1 && platform.variant.is_none());
        let Some((one, kept)) = listed.iter().find(|(_, listed)| platform.matches(listed)).or_else(|| only().copied()) else {
            return Err(Fault::Platform { wanted: platform.to_string(), there: names(&listed) });
        };
        self.found.left_out = names(&listed).into_iter().filter(|name| *name != kept.to_string()).collect();
        self.fetch(&Name::Digest(one.digest), Some(one))
    }

    /// The manifests with their platforms that an index lists, itself or by way of others. What is for no platform is passed over.
    fn platforms(&self, index: Fetched) -> Result<Vec<(Descriptor, Platform)>, Fault> {
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
                    let fetched = self.fetch(&Name::Digest(descriptor.digest), Some(&descriptor))?;
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

    /// The platform that an image's config gives; none for an artifact.
    fn platform_of(&self, image: &Fetched) -> Result<Option<Platform>, Fault> {
        let configs = [media_type::OCI_CONFIG, media_type::DOCKER_CONFIG];
        let config = image.manifest.blobs.first().filter(|blob| configs.contains(&blob.media_type.as_str()));
        let Some(config) = config.filter(|config| config.size <= MAX_MANIFEST_SIZE) else { return Ok(None) };
        let what = format!("config {} of {}", config.digest, self.upstream.path);
        let content = self.client.patiently(|| {
            let (response, at) = self.upstream.get(&format!("blobs/{}", config.digest), &what, &[])?;
            self.upstream.read(response, &at, &what, MAX_MANIFEST_SIZE)
        })?;
        self.verify(&what, &content, config.digest)?;
        Ok(serde_json::from_slice(&content).ok())
    }

    /// Finds what refers to the manifests found so far: by the referrers API, else by the tag that stands in for it (distribution
    /// specification, "Listing Referrers" and "Referrers Tag Schema"); and by cosign's tags.
    fn referrers(&mut self, reference: &Reference) -> Result<(), Fault> {
        let own: HashSet<Digest> = self.subjects.iter().copied().collect();
        let mut has_api = true;
        while let Some(subject) = self.subjects.pop_front() {
            let listed = if has_api { self.listed_referrers(&subject)? } else { None };
            has_api = listed.is_some();
            for descriptor in listed.into_iter().flatten() {
                if self.graph.is_visited(&descriptor.digest) {
                    continue;
                }
                // Lists may outlive what they list.
                let Some(fetched) = absent(self.fetch(&Name::Digest(descriptor.digest), Some(&descriptor)))? else { continue };
                let (digest, size, media_type) = (fetched.digest, fetched.size, fetched.media_type.clone());
                self.found.listed.push(Listed { digest, size, media_type, name: None });
                self.tree(fetched)?;
            }
            let base = format!("{}-{}", subject.algorithm().name(), subject.hex());
            let fallback = (!has_api).then(|| base.clone());
            let cosign = COSIGN_SUFFIXES.iter().filter(|_| own.contains(&subject)).map(|end| format!("{base}{end}"));
            for tag in fallback.into_iter().chain(cosign) {
                let Ok(tag) = tag.parse::<Tag>() else { continue };
                let Some(fetched) = absent(self.fetch(&Name::Tag(tag.clone()), None))? else { continue };
                let (digest, size, media_type) = (fetched.digest, fetched.size, fetched.media_type.clone());
                let name = Some((reference.repository.clone(), Some(tag)));
                self.found.listed.push(Listed { digest, size, media_type, name });
                self.tree(fetched)?;
            }
        }
        Ok(())
    }

    /// What the referrers API lists for a manifest; none where the registry has no such API.
    fn listed_referrers(&self, subject: &Digest) -> Result<Option<Vec<Descriptor>>, Fault> {
        #[derive(Deserialize)]
        struct Index {
            manifests: Vec<Descriptor>,
        }
        let what = format!("referrers of {subject} in {}", self.upstream.path);
        let mut listed = Vec::new();
        let mut next = Some(format!("referrers/{subject}"));
        while let Some(target) = next {
            let fetched = self.client.patiently(|| {
                let (response, at) = self.upstream.get(&target, &what, &[("Accept", media_type::OCI_INDEX)])?;
                let header =
                    |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
                let (kind, link) = (header(CONTENT_TYPE), header(LINK));
                Ok((kind, link, self.upstream.read(response, &at, &what, MAX_MANIFEST_SIZE)?))
            });
            let (kind, link, body) = match fetched {
                // Registries without it answer in many ways.
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

    /// Fetches a manifest and keeps it: by tag, or by digest, and then held against its descriptor.
    fn fetch(&self, name: &Name, descriptor: Option<&Descriptor>) -> Result<Fetched, Fault> {
        let what = format!("manifest {name} of {}", self.upstream.path);
        if let Some(Descriptor { digest, size, .. }) = descriptor.filter(|descriptor| descriptor.size > MAX_MANIFEST_SIZE) {
            return Err(Fault::LargeManifest { digest: *digest, size: *size });
        }
        let (kind, given, content) = self.client.patiently(|| {
            let (response, at) = self.upstream.get(&format!("manifests/{name}"), &what, &[("Accept", ACCEPT)])?;
            let header =
                |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
            let (kind, given) = (header("content-type"), header("docker-content-digest"));
            Ok((kind, given, self.upstream.read(response, &at, &what, MAX_MANIFEST_SIZE)?))
        })?;
        let kind = kind.split(';').next().unwrap_or_default().trim();
        let host = || self.upstream.host.clone();
        if kind.starts_with(SCHEMA1) {
            return Err(Fault::Schema1 { host: host(), what });
        }
        // Some registries name the format alone.
        if !media_type::is_manifest(kind) && kind != "application/json" {
            return Err(Fault::MediaType { host: host(), what, found: clean(kind) });
        }
        let size = content.len() as u64;
        if let Some(expected) = descriptor.map(|descriptor| descriptor.size).filter(|expected| *expected != size) {
            return Err(Fault::Size { host: host(), what, expected, found: size });
        }
        let digest = match (name, given.parse::<Digest>()) {
            (Name::Digest(digest), _) => *digest,
            (Name::Tag(_), Ok(given)) => given,
            (Name::Tag(_), Err(_)) => Digest::sha256_of(&content),
        };
        self.verify(&what, &content, digest)?;
        let manifest = Manifest::parse(&content).map_err(|source| match source {
            ManifestError::Schema1 => Fault::Schema1 { host: host(), what: what.clone() },
            source => Fault::Manifest { host: host(), what: what.clone(), source },
        })?;
        self.store.put(digest, &content).map_err(|source| Fault::Write { file: digest.blob_path(), source })?;
        let media_type = if media_type::is_manifest(kind) { kind.to_owned() } else { manifest.media_type.clone() };
        Ok(Fetched { digest, size, media_type, manifest })
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

/// What came, or none where the registry does not have it.
fn absent(fetched: Result<Fetched, Fault>) -> Result<Option<Fetched>, Fault> {
    match fetched {
        Err(Fault::NotFound { .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// The target of the next page of a list of referrers (distribution specification, "Listing Referrers": `Link`, RFC 8288). Only the
/// query is taken over: a list goes on where it began.
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
    fn a_list_goes_on_where_its_link_leads() {
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
