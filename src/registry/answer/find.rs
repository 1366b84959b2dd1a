//! What a request means: names and references become numbers of the catalog. Pure.

use http::request::Parts;

use crate::oci::{Reference, Repository};
use crate::registry::catalog::{BlobId, RepositoryId};
use crate::registry::client;
use crate::registry::error::RegistryError;
use crate::registry::holdings::Holdings;
use crate::registry::reply::Freshness;
use crate::registry::route::{self, Target};

/// The manifest that a reference of a repository means, and how long its answer may be kept.
///
/// # Errors
/// 404.
pub(super) fn manifest(
    holdings: &Holdings,
    repository: RepositoryId,
    reference: &Reference,
) -> Result<(BlobId, Freshness), RegistryError> {
    let catalog = holdings.store().catalog();
    let (found, freshness): (Option<BlobId>, _) = match reference {
        Reference::Tag(tag) => (catalog.tag(repository, tag.as_str()).or_else(|| catalog.every_tag(repository)), Freshness::Tag),
        Reference::Digest(digest) => (catalog.blob_in(repository, digest), Freshness::Immutable),
    };
    let is_manifest = |id: &BlobId| catalog.blob(*id).is_some_and(|blob| blob.manifest.is_some());
    let name = catalog.repository_name(repository);
    let unknown = || RegistryError::ManifestUnknown(format!("no manifest {reference} in {name}"));
    found.filter(is_manifest).map(|id| (id, freshness)).ok_or_else(unknown)
}

/// The repository that a request means. Its upstream is, in order: the `ns` parameter, a host-shaped first component of the
/// name, the `Host` header where the store knows that host, with its port or without, else none: then it is in the default namespace, or of
/// docker.io, whose mirrors dockerd asks without a word of that.
pub(super) fn repository(
    holdings: &Holdings,
    name: &Repository,
    target: &Target,
    head: &Parts,
) -> Result<RepositoryId, RegistryError> {
    let host = client::host(head);
    let upstream = match (&target.namespace, name.host()) {
        // A client may say in `ns` what it connected to: then it means no upstream, but this registry.
        (Some(namespace), _) => {
            Some(namespace.as_str()).filter(|namespace| host.as_ref().is_none_or(|own| own.as_str() != *namespace))
        }
        (None, Some(_)) => None,
        (None, None) => {
            let mut names = host.as_ref().map(|host| [host.as_str(), host.name()]).into_iter().flatten();
            names.find(|host| holdings.upstreams.contains(route::upstream(host)))
        }
    };
    let full = match upstream {
        Some(upstream) => format!("{}/{name}", route::upstream(upstream)),
        None => name.to_string(),
    };
    let catalog = holdings.store().catalog();
    let unsaid = target.namespace.is_none() && upstream.is_none() && name.host().is_none();
    let mirrored = || catalog.repository(&format!("{}/{full}", route::MIRRORED)).filter(|_| unsaid);
    catalog.repository(&full).or_else(mirrored).ok_or(RegistryError::NameUnknown(full))
}
