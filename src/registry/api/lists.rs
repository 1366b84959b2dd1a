//! The endpoints that list tags, repositories and referrers (distribution specification, "Listing Tags" and "Listing Referrers"). Lists are
//! sorted, and the size of a page is limited whatever the client requests.

use std::io;

use http::header::LINK;
use http::{HeaderName, HeaderValue, Response};
use serde::Serialize;

use super::route::{Page, Referrers};
use crate::disk::catalog::{Catalog, RepositoryId};
use crate::oci::{Digest, Host, Manifest, Repository, media_type};
use crate::registry::content::blob_reader::BlobReader;
use crate::registry::content::body::Payload;
use crate::registry::content::snapshot::Snapshot;
use crate::registry::http::error::RegistryError;
use crate::registry::http::reply;
use crate::registry::http::response_memory::Permit;
use crate::registry::limits::{PAGE, REFERRERS};

const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// A request for a list that belongs to a repository.
#[derive(Debug)]
pub(crate) struct ListRequest<'a> {
    /// The repository name as the client wrote it.
    pub name: &'a Repository,
    /// The upstream that the client named.
    pub namespace: Option<&'a Host>,
    pub page: &'a Page,
}

/// The maximum size of a page of names, in bytes.
pub(crate) fn max_bytes(page: &Page) -> usize {
    // A name has up to 255 bytes, and JSON adds two quotes and a comma.
    const ENTRY: usize = 258;
    (page_size(page) + 2) * ENTRY
}

/// `/v2/_catalog`: the full names of the repositories.
#[must_use]
pub(crate) fn catalog(catalog: &Catalog, page: &Page, permit: Permit) -> Response<Payload> {
    #[derive(Serialize)]
    struct Repositories<'a> {
        repositories: Vec<&'a str>,
    }
    let all = catalog.repositories_after(page.last.as_deref().unwrap_or_default());
    let total = all.len();
    let repositories: Vec<&str> = all.take(page_size(page)).map(|id| catalog.repository_name(id)).collect();
    let last = repositories.last().copied().filter(|_| total > repositories.len());
    let link = last.map(|last| link("/v2/_catalog", page, last, &[]));
    linked(reply::document("application/json", permit.attach(to_json(&Repositories { repositories }))), link)
}

/// `/v2/<name>/tags/list`.
#[must_use]
pub(crate) fn tags(catalog: &Catalog, repository: RepositoryId, request: &ListRequest<'_>, permit: Permit) -> Response<Payload> {
    #[derive(Serialize)]
    struct Tags<'a> {
        name: &'a str,
        tags: Vec<&'a str>,
    }
    let ListRequest { name, namespace, page } = request;
    let all = catalog.tags_after(repository, page.last.as_deref());
    let total = all.len();
    let tags: Vec<&str> = all.take(page_size(page)).map(|(tag, _)| tag).collect();
    let last = tags.last().copied().filter(|_| total > tags.len());
    let namespace = namespace.map(|namespace| ("ns", namespace.as_str()));
    let link = last.map(|last| link(&format!("/v2/{}/tags/list", name.to_path()), page, last, namespace.as_slice()));
    linked(reply::document("application/json", permit.attach(to_json(&Tags { name: name.as_str(), tags }))), link)
}

fn page_size(page: &Page) -> usize {
    page.n.unwrap_or(PAGE).min(PAGE)
}

/// A `Link` to the page after `last`. The URL is relative, so it stays right behind a proxy.
fn link(path: &str, page: &Page, last: &str, parameters: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("n", &page_size(page).to_string()).append_pair("last", last).extend_pairs(parameters);
    format!("<{path}?{}>; rel=\"next\"", query.finish())
}

fn linked(mut response: Response<Payload>, link: Option<String>) -> Response<Payload> {
    if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
        response.headers_mut().insert(LINK, link);
    }
    response
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
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

/// `/v2/<name>/referrers/<digest>`: an index of the manifests whose subject is the digest, sorted by digest. The index may be empty.
///
/// # Errors
/// Fails with 500 if a referrer's manifest cannot be read.
pub(crate) async fn referrers(
    reader: &BlobReader,
    snapshot: &Snapshot,
    repository: RepositoryId,
    request: &ListRequest<'_>,
    referrers: &Referrers,
    permit: Permit,
) -> Result<Response<Payload>, RegistryError> {
    let (manifests, has_more) = read_referrers(reader, snapshot, repository, referrers).await?;
    let last = manifests.last().filter(|_| has_more).map(|referrer| referrer.digest.clone());
    let index = Index { schema_version: 2, media_type: media_type::OCI_INDEX, manifests };
    let mut response = reply::document(media_type::OCI_INDEX, permit.attach(to_json(&index)));
    let artifact_type = referrers.artifact_type.as_deref().map(|wanted| ("artifactType", wanted));
    if artifact_type.is_some() {
        response.headers_mut().insert(FILTERS, HeaderValue::from_static("artifactType"));
    }
    let namespace = request.namespace.map(|namespace| ("ns", namespace.as_str()));
    let parameters: Vec<_> = artifact_type.into_iter().chain(namespace).collect();
    let path = format!("/v2/{}/referrers/{}", request.name.to_path(), referrers.subject);
    Ok(linked(response, last.map(|last| link(&path, request.page, &last, &parameters))))
}

/// The referrers of one page, and whether more follow.
async fn read_referrers(
    reader: &BlobReader,
    snapshot: &Snapshot,
    repository: RepositoryId,
    referrers: &Referrers,
) -> Result<(Vec<Referrer>, bool), RegistryError> {
    let (catalog, wanted) = (snapshot.store().catalog(), referrers.artifact_type.as_deref());
    let last: Option<Digest> = referrers.page.last.as_deref().and_then(|last| last.parse().ok());
    let (mut found, mut bytes) = (Vec::new(), 0);
    for blob in catalog.referrers(repository, &referrers.subject).filter_map(|id| catalog.blob(id)) {
        if last.is_some_and(|last| blob.digest <= last) {
            continue;
        }
        let (content, _) = reader.read_manifest(snapshot, blob).await?;
        let manifest = Manifest::parse(&content).map_err(|error| reader.disk_failed(snapshot, blob, &io::Error::other(error)))?;
        if wanted.is_some_and(|wanted| manifest.artifact_type.as_deref() != Some(wanted)) {
            continue;
        }
        if found.len() == page_size(&referrers.page) || (bytes + content.len() > REFERRERS && !found.is_empty()) {
            return Ok((found, true));
        }
        bytes += content.len();
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
