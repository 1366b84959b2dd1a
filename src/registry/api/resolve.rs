//! Resolves the names and references of a request to entries of the catalog.

use http::request::Parts;

use super::route::ApiRequest;
use crate::disk::catalog::{BlobId, Catalog, RepositoryId};
use crate::oci::{Reference, Repository};
use crate::registry::content::snapshot::Snapshot;
use crate::registry::content::upstreams::{self, DOCKER_HUB, LOCALHOST};
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
/// Without an upstream there are three candidates: the name as it is; the name under docker.io, because dockerd does not name the upstream
/// when it pulls from a mirror; and the name under `localhost`, which podman and buildah put before names without a registry. The first
/// candidate in which `find` succeeds wins, or else the first that exists.
///
/// # Errors
/// Fails with 404 if no candidate exists.
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
        Some(upstream) => format!("{}/{name}", upstreams::canonical(upstream)),
        None => name.to_string(),
    };
    let other_hosts: &[&str] = match (&request.namespace, upstream, name.host()) {
        (None, None, None) => &[DOCKER_HUB, LOCALHOST],
        // `ns` names this registry, so docker.io is not meant.
        (Some(_), None, None) => &[LOCALHOST],
        _ => &[],
    };
    let catalog = snapshot.store().catalog();
    let mut others = other_hosts.iter().filter_map(|host| catalog.repository(&format!("{host}/{full_name}")));
    let Some(first) = catalog.repository(&full_name).or_else(|| others.next()) else {
        return Err(RegistryError::NameUnknown(full_name));
    };
    let found_in = |id| find(catalog, id).map(|found| (id, Some(found)));
    Ok(found_in(first).or_else(|| others.find_map(found_in)).unwrap_or((first, None)))
}
