//! The endpoints that list: tags, repositories, referrers. Sorted, paged (distribution specification, "Listing Tags" and "Listing
//! Referrers"), and bounded whatever the client asks for.

use std::io::{self, Read};
use std::sync::Arc;

use http::header::LINK;
use http::{HeaderName, HeaderValue, Response};
use serde::Serialize;

use super::body::Body;
use super::catalog::{Catalog, RepositoryId};
use super::error::RegistryError;
use super::limits::PAGE;
use super::reply;
use super::route::Page;
use super::store::Store;
use crate::oci::manifest::{MAX_MANIFEST, Manifest};
use crate::oci::{Digest, Host, Repository, media_type};

const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// `/v2/_catalog`: the repositories' whole names.
#[must_use]
pub fn catalog(catalog: &Catalog, page: &Page) -> Response<Body> {
    #[derive(Serialize)]
    struct Repositories<'a> {
        repositories: Vec<&'a str>,
    }
    let all = catalog.repositories_after(page.last.as_deref().unwrap_or_default());
    let total = all.len();
    let repositories: Vec<&str> = all.take(size(page)).map(|id| catalog.repository_name(id)).collect();
    let next = next(page, total, repositories.last().copied(), "/v2/_catalog", None);
    linked(reply::json("application/json", document(&Repositories { repositories })), next)
}

/// `/v2/<name>/tags/list`.
#[must_use]
pub fn tags(
    catalog: &Catalog,
    repository: RepositoryId,
    name: &Repository,
    namespace: Option<&Host>,
    page: &Page,
) -> Response<Body> {
    #[derive(Serialize)]
    struct Tags<'a> {
        name: &'a str,
        tags: Vec<&'a str>,
    }
    let all = catalog.tags_after(repository, page.last.as_deref());
    let total = all.len();
    let tags: Vec<&str> = all.take(size(page)).map(|(tag, _)| tag).collect();
    let next = next(page, total, tags.last().copied(), &format!("/v2/{name}/tags/list"), namespace);
    linked(reply::json("application/json", document(&Tags { name: name.as_str(), tags })), next)
}

fn size(page: &Page) -> usize {
    page.n.unwrap_or(PAGE).min(PAGE)
}

/// The target of the next page, where there is one: relative, so that it keeps scheme and host whatever stands between.
fn next(page: &Page, total: usize, last: Option<&str>, path: &str, namespace: Option<&Host>) -> Option<String> {
    let last = last.filter(|_| total > size(page))?;
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("n", &size(page).to_string()).append_pair("last", last);
    if let Some(namespace) = namespace {
        query.append_pair("ns", namespace.as_str());
    }
    Some(format!("<{path}?{}>; rel=\"next\"", query.finish()))
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
struct Referrers {
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

/// `/v2/<name>/referrers/<digest>`: an index of the manifests whose subject is `subject`, empty where there are none.
///
/// # Errors
/// 500, where a referrer's manifest cannot be read.
pub async fn referrers(
    store: &Arc<Store>,
    repository: RepositoryId,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Response<Body>, RegistryError> {
    let (store, subject) = (Arc::clone(store), *subject);
    let found = tokio::task::spawn_blocking(move || read_referrers(&store, repository, &subject)).await;
    let found = found.unwrap_or_else(|stopped| Err(io::Error::other(stopped)));
    let mut manifests = found.map_err(|error| {
        tracing::warn!(%subject, %error, "a referrer cannot be read");
        RegistryError::Disk
    })?;
    if let Some(wanted) = artifact_type {
        manifests.retain(|referrer| referrer.artifact_type.as_deref() == Some(wanted));
    }
    let index = Referrers { schema_version: 2, media_type: media_type::OCI_INDEX, manifests };
    let mut response = reply::json(media_type::OCI_INDEX, document(&index));
    if artifact_type.is_some() {
        response.headers_mut().insert(FILTERS, HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

fn read_referrers(store: &Store, repository: RepositoryId, subject: &Digest) -> io::Result<Vec<Referrer>> {
    let catalog = store.catalog();
    let blobs = catalog.referrers(repository, subject).filter_map(|id| catalog.blob(id));
    blobs
        .map(|blob| {
            let mut content = Vec::new();
            store.open_blob(blob)?.take(MAX_MANIFEST).read_to_end(&mut content)?;
            let manifest = Manifest::parse(&content).map_err(io::Error::other)?;
            Ok(Referrer {
                media_type: blob.manifest.unwrap_or(media_type::OCI_MANIFEST).to_owned(),
                digest: blob.digest.to_string(),
                size: blob.size,
                artifact_type: manifest.artifact_type,
                annotations: manifest.annotations.into_iter().collect(),
            })
        })
        .collect()
}
