//! The endpoints that list: tags, repositories, referrers. Sorted, paged (distribution specification, "Listing Tags" and "Listing
//! Referrers"), and bounded whatever the client asks for.

use std::io;

use http::header::LINK;
use http::{HeaderName, HeaderValue, Response};
use serde::Serialize;

use super::handler::Registry;
use super::route::{Page, Referrers};
use crate::disk::catalog::{Catalog, RepositoryId};
use crate::oci::manifest::Manifest;
use crate::oci::{Digest, Host, Repository, media_type};
use crate::registry::content::body::Body;
use crate::registry::content::snapshot::Holdings;
use crate::registry::http::error::RegistryError;
use crate::registry::http::reply;
use crate::registry::http::response_memory::Room;
use crate::registry::limits::{PAGE, REFERRERS};

const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// A list of something of a repository, as it was asked for.
#[derive(Debug)]
pub(crate) struct Of<'a> {
    /// The repository's name, as the client has it.
    pub name: &'a Repository,
    /// The upstream that the client named.
    pub namespace: Option<&'a Host>,
    /// Which part of the list.
    pub page: &'a Page,
}

/// Most bytes of a page of names: each may have 255, quoted.
pub(crate) fn longest(page: &Page) -> usize {
    const ENTRY: usize = 258;
    (size(page) + 2) * ENTRY
}

/// `/v2/_catalog`: the repositories' whole names.
#[must_use]
pub(crate) fn catalog(catalog: &Catalog, page: &Page, room: Room) -> Response<Body> {
    #[derive(Serialize)]
    struct Repositories<'a> {
        repositories: Vec<&'a str>,
    }
    let all = catalog.repositories_after(page.last.as_deref().unwrap_or_default());
    let total = all.len();
    let repositories: Vec<&str> = all.take(size(page)).map(|id| catalog.repository_name(id)).collect();
    let last = repositories.last().copied().filter(|_| total > repositories.len());
    let link = last.map(|last| link("/v2/_catalog", page, last, &[]));
    linked(reply::json("application/json", room.hold(document(&Repositories { repositories }))), link)
}

/// `/v2/<name>/tags/list`.
#[must_use]
pub(crate) fn tags(catalog: &Catalog, repository: RepositoryId, asked: &Of<'_>, room: Room) -> Response<Body> {
    #[derive(Serialize)]
    struct Tags<'a> {
        name: &'a str,
        tags: Vec<&'a str>,
    }
    let Of { name, namespace, page } = asked;
    let all = catalog.tags_after(repository, page.last.as_deref());
    let total = all.len();
    let tags: Vec<&str> = all.take(size(page)).map(|(tag, _)| tag).collect();
    let last = tags.last().copied().filter(|_| total > tags.len());
    let namespace = namespace.map(|namespace| ("ns", namespace.as_str()));
    let link = last.map(|last| link(&format!("/v2/{name}/tags/list"), page, last, namespace.as_slice()));
    linked(reply::json("application/json", room.hold(document(&Tags { name: name.as_str(), tags }))), link)
}

fn size(page: &Page) -> usize {
    page.n.unwrap_or(PAGE).min(PAGE)
}

/// The target of the page after `last`: relative, so that it keeps scheme and host whatever stands between.
fn link(path: &str, page: &Page, last: &str, more: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("n", &size(page).to_string()).append_pair("last", last).extend_pairs(more);
    format!("<{path}?{}>; rel=\"next\"", query.finish())
}

fn linked(mut response: Response<Body>, link: Option<String>) -> Response<Body> {
    if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
        response.headers_mut().insert(LINK, link);
    }
    response
}

fn document(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    media_type: &'static str,
    manifests: Vec<Referrer>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: std::collections::BTreeMap<String, String>,
}

/// `/v2/<name>/referrers/<digest>`: an index of the manifests whose subject is asked for, in order of their digests, empty where there
/// are none.
///
/// # Errors
/// 500, where a referrer's manifest cannot be read.
pub(crate) async fn referrers(
    registry: &Registry,
    holdings: &Holdings,
    repository: RepositoryId,
    list: &Of<'_>,
    asked: &Referrers,
    room: Room,
) -> Result<Response<Body>, RegistryError> {
    let (manifests, more) = read_referrers(registry, holdings, repository, asked).await?;
    let last = manifests.last().filter(|_| more).map(|referrer| referrer.digest.clone());
    let index = Index { schema_version: 2, media_type: media_type::OCI_INDEX, manifests };
    let mut response = reply::json(media_type::OCI_INDEX, room.hold(document(&index)));
    let artifact_type = asked.artifact_type.as_deref().map(|wanted| ("artifactType", wanted));
    if artifact_type.is_some() {
        response.headers_mut().insert(FILTERS, HeaderValue::from_static("artifactType"));
    }
    let namespace = list.namespace.map(|namespace| ("ns", namespace.as_str()));
    let more: Vec<_> = artifact_type.into_iter().chain(namespace).collect();
    let path = format!("/v2/{}/referrers/{}", list.name, asked.subject);
    Ok(linked(response, last.map(|last| link(&path, list.page, &last, &more))))
}

/// The referrers of a page, and whether there are more after them.
async fn read_referrers(
    registry: &Registry,
    holdings: &Holdings,
    repository: RepositoryId,
    asked: &Referrers,
) -> Result<(Vec<Referrer>, bool), RegistryError> {
    let (catalog, wanted) = (holdings.store().catalog(), asked.artifact_type.as_deref());
    let last: Option<Digest> = asked.page.last.as_deref().and_then(|last| last.parse().ok());
    let (mut found, mut bytes) = (Vec::new(), 0);
    for blob in catalog.referrers(repository, &asked.subject).filter_map(|id| catalog.blob(id)) {
        if last.is_some_and(|last| blob.digest <= last) {
            continue;
        }
        let content = registry.read_manifest(holdings, blob).await?;
        let manifest =
            Manifest::parse(&content).map_err(|error| registry.unreadable(holdings, blob, &io::Error::other(error)))?;
        if wanted.is_some_and(|wanted| manifest.artifact_type.as_deref() != Some(wanted)) {
            continue;
        }
        let size = content.len();
        if found.len() == self::size(&asked.page) || (bytes + size > REFERRERS && !found.is_empty()) {
            return Ok((found, true));
        }
        bytes += size;
        found.push(Referrer {
            media_type: blob.manifest.unwrap_or(media_type::OCI_MANIFEST).to_owned(),
            digest: blob.digest.to_string(),
            size: blob.size,
            artifact_type: manifest.artifact_type,
            annotations: manifest.annotations.into_iter().collect(),
        });
    }
    Ok((found, false))
}
