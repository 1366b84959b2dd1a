//! What a request means: names and references become numbers of the catalog. Pure.

use http::request::Parts;

use super::route::{self, Target};
use crate::disk::catalog::{BlobId, Catalog, RepositoryId};
use crate::oci::{Reference, Repository};
use crate::registry::content::snapshot::Holdings;
use crate::registry::http::error::RegistryError;
use crate::registry::http::reply::Freshness;
use crate::registry::listen::client;

/// The manifest that a reference of a repository means, and how long its answer may be kept.
pub(crate) fn manifest(catalog: &Catalog, repository: RepositoryId, reference: &Reference) -> Option<(BlobId, Freshness)> {
    let (found, freshness): (Option<BlobId>, _) = match reference {
        Reference::Tag(tag) => (catalog.tag(repository, tag.as_str()).or_else(|| catalog.every_tag(repository)), Freshness::Tag),
        Reference::Digest(digest) => (catalog.blob_in(repository, digest), Freshness::Immutable),
    };
    let is_manifest = |id: &BlobId| catalog.blob(*id).is_some_and(|blob| blob.manifest.is_some());
    found.filter(is_manifest).map(|id| (id, freshness))
}

/// The repository that a request means. Its upstream is, in order: the `ns` parameter, a host-shaped first component of the
/// name, the `Host` header where the store knows that host, with its port or without.
///
/// Without an upstream the repository is the first of these in which `look` finds what is asked for, else the first that exists: the one
/// of the default namespace, that of docker.io (dockerd does not name the upstream when it asks a mirror), and that of `localhost`, by
/// which podman and buildah name what has no registry. Returns what was found, too.
///
/// # Errors
/// 404.
pub(crate) fn repository<T>(
    holdings: &Holdings,
    name: &Repository,
    target: &Target,
    head: &Parts,
    look: impl Fn(&Catalog, RepositoryId) -> Option<T>,
) -> Result<(RepositoryId, Option<T>), RegistryError> {
    let host = client::host(head);
    let upstream = match (&target.namespace, name.host()) {
        // A client may say in `ns` what it connected to: then it means no upstream, but this registry.
        (Some(namespace), _) => {
            Some(namespace.as_str()).filter(|namespace| host.as_ref().is_none_or(|own| own.as_str() != *namespace))
        }
        (None, Some(_)) => None,
        (None, None) => {
            let mut names = host.as_ref().map(|host| [host.as_str(), host.name()]).into_iter().flatten();
            names.find(|host| *host != route::LOCAL && holdings.upstreams.contains(route::upstream(host)))
        }
    };
    let full = match upstream {
        Some(upstream) => format!("{}/{name}", route::upstream(upstream)),
        None => name.to_string(),
    };
    let hosts: &[&str] = match (&target.namespace, upstream, name.host()) {
        (None, None, None) => &[route::MIRRORED, route::LOCAL],
        // It names this registry, so not docker.io.
        (Some(_), None, None) => &[route::LOCAL],
        _ => &[],
    };
    let catalog = holdings.store().catalog();
    let mut others = hosts.iter().filter_map(|host| catalog.repository(&format!("{host}/{full}")));
    let Some(first) = catalog.repository(&full).or_else(|| others.next()) else { return Err(RegistryError::NameUnknown(full)) };
    let found = |id| look(catalog, id).map(|found| (id, Some(found)));
    Ok(found(first).or_else(|| others.find_map(found)).unwrap_or((first, None)))
}
