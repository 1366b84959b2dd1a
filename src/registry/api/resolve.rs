//! Resolves the names and references of a request to entries of the catalog.

use std::iter;

use http::request::Parts;

use super::route::ApiRequest;
use crate::disk::catalog::{BlobId, Catalog, RepositoryId};
use crate::oci::upstreams::{self, LOCALHOST};
use crate::oci::{Host, Reference, Repository};
use crate::registry::content::snapshot::Snapshot;
use crate::registry::http::error::RegistryError;
use crate::registry::http::reply::Freshness;
use crate::registry::listen::client;

/// Resolves a reference to a manifest of the repository.
pub(crate) fn manifest(catalog: &Catalog, repository: RepositoryId, reference: &Reference) -> Option<(BlobId, Freshness)> {
    let (found, freshness): (Option<BlobId>, _) = match reference {
        Reference::Tag(tag) => (catalog.tag(repository, tag.as_str()).or_else(|| catalog.every_tag(repository)), Freshness::Tag),
        Reference::Digest(digest) => (catalog.blob_in(repository, digest), Freshness::Immutable),
    };
    let is_manifest = |id: &BlobId| catalog.blob(*id).is_some_and(|blob| blob.manifest.is_some());
    found.filter(is_manifest).map(|id| (id, freshness))
}

/// Resolves the repository that a request names, and what `find` finds in it.
///
/// The upstream is the first of these that applies: the `ns` parameter, the first component of the name if it looks like a host, the
/// `Host` header (with or without its port) if the store has repositories of that host.
///
/// The first of these repositories in which `find` succeeds wins, or else the first that exists:
///
/// 1. the name, under its upstream if it has one
/// 2. without an upstream, the name with the host that its first component spells ([`Repository::with_spelled_host`])
/// 3. without an upstream, the name under docker.io, because dockerd does not name the upstream when it pulls from a mirror
/// 4. without an upstream, the name under `localhost`, which podman and buildah put before names without a registry
/// 5. for an image of docker.io, the name as docker shows it, `busybox`: an archive of `docker save` has no other
///
/// # Errors
/// Fails with 404 if none exists.
pub(crate) fn repository<T>(
    snapshot: &Snapshot,
    name: &Repository,
    request: &ApiRequest,
    head: &Parts,
    find: impl Fn(&Catalog, RepositoryId) -> Option<T>,
) -> Result<(RepositoryId, Option<T>), RegistryError> {
    let host = client::host(head);
    let upstream = match (&request.namespace, name.host()) {
        // Some clients put the address they connect to into `ns`. That is this registry, not an upstream.
        (Some(namespace), _) => {
            Some(namespace.as_str()).filter(|namespace| host.as_ref().is_none_or(|own| own.as_str() != *namespace))
        }
        (None, Some(_)) => None,
        (None, None) => {
            let mut names = host.as_ref().map(|host| [host.as_str(), host.name()]).into_iter().flatten();
            names.find(|host| *host != LOCALHOST && snapshot.store().has_upstream(upstreams::canonical(host)))
        }
    };
    let full_name = match upstream {
        Some(upstream) => {
            let under = upstream.parse().and_then(|host| Repository::under(&host, name.as_str()));
            under.map_err(|_| RegistryError::NameUnknown(format!("{upstream}/{name}")))?
        }
        None => name.clone(),
    };
    let is_bare = full_name.host().is_none();
    // If `ns` names this registry, docker.io is not meant.
    let may_be_hub = is_bare && request.namespace.is_none();
    let on_hub = || Repository::under(&Host::docker_hub(), full_name.as_str()).ok().filter(|_| may_be_hub);
    let familiar = || on_hub().as_ref().unwrap_or(&full_name).familiar().map(str::to_owned);
    let spelled = || full_name.with_spelled_host().filter(|_| is_bare);
    let candidates = iter::once(full_name.to_string())
        .chain(iter::once_with(|| spelled().map(|name| name.to_string())).flatten())
        .chain(iter::once_with(|| on_hub().map(|name| name.to_string())).flatten())
        .chain(iter::once_with(|| is_bare.then(|| format!("{LOCALHOST}/{full_name}"))).flatten())
        .chain(iter::once_with(familiar).flatten());
    let catalog = snapshot.store().catalog();
    let mut first = None;
    for id in candidates.filter_map(|name| catalog.repository(&name)) {
        if let Some(found) = find(catalog, id) {
            return Ok((id, Some(found)));
        }
        first = first.or(Some(id));
    }
    first.map(|id| (id, None)).ok_or_else(|| RegistryError::NameUnknown(full_name.to_string()))
}
