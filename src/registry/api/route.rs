//! Parses the method and target of a request. Every name and digest in the result follows the grammar.

use std::borrow::Cow;

use http::{Method, Uri};
use percent_encoding::percent_decode_str;

use crate::oci::{Digest, Host, NameError, Reference, Repository};
use crate::registry::http::error::RegistryError;
use crate::registry::listen::client::Surface;

/// An endpoint of the distribution specification with its operands. The repository name is as the client wrote it: `super::resolve`
/// finds the upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`.
    Base,
    /// `/v2/_catalog`.
    Catalog(Page),
    /// `/v2/<name>/tags/list`.
    Tags(Repository, Page),
    /// `/v2/<name>/manifests/<reference>`.
    Manifest(Repository, Reference),
    /// `/v2/<name>/blobs/<digest>`.
    Blob(Repository, Digest),
    /// `/v2/<name>/referrers/<digest>`.
    Referrers(Repository, Referrers),
}

/// The operands of a request for referrers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrers {
    /// The manifest that the referrers refer to.
    pub subject: Digest,
    /// Returns only referrers of this type.
    pub artifact_type: Option<String>,
    /// The requested page.
    pub page: Page,
}

/// An endpoint that the distribution specification does not define.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceEndpoint {
    /// `/token` with the requested scopes.
    Token(Vec<String>),
    /// `/healthz`.
    Health,
    /// `/metrics`.
    Metrics,
    /// `/ca.crt`.
    Ca,
}

/// The parsed target of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestTarget {
    /// An endpoint of the distribution specification.
    Api(ApiRequest),
    /// Another endpoint of this registry.
    Service(ServiceEndpoint),
}

/// An endpoint without its operands, for logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Endpoint {
    Base,
    Catalog,
    Tags,
    Manifest,
    Blob,
    Referrers,
    Token,
    Health,
    Metrics,
    Ca,
    /// The target is not an endpoint, or the request was rejected before its target was parsed.
    Other,
}

impl Endpoint {
    /// What is known of each endpoint, in the order of declaration: its stable name in logs and metrics, and whether it is for observing
    /// the registry rather than for pulling from it.
    const FACTS: [(Self, &str, bool); 11] = [
        (Self::Base, "base", false),
        (Self::Catalog, "catalog", false),
        (Self::Tags, "tags", false),
        (Self::Manifest, "manifest", false),
        (Self::Blob, "blob", false),
        (Self::Referrers, "referrers", false),
        (Self::Token, "token", false),
        (Self::Health, "health", true),
        (Self::Metrics, "metrics", true),
        (Self::Ca, "ca", true),
        (Self::Other, "other", false),
    ];

    /// The number of endpoints.
    pub const COUNT: usize = Self::FACTS.len();

    /// All endpoints in the order of their declaration.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::FACTS.iter().map(|(endpoint, ..)| *endpoint)
    }

    /// The stable name in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().1
    }

    fn is_observability(self) -> bool {
        self.facts().2
    }

    fn facts(self) -> (Self, &'static str, bool) {
        Self::FACTS.into_iter().find(|(endpoint, ..)| *endpoint == self).unwrap_or((self, "other", false))
    }
}

impl RequestTarget {
    /// The endpoint without its operands.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        match self {
            Self::Api(request) => match request.route {
                Route::Base => Endpoint::Base,
                Route::Catalog(_) => Endpoint::Catalog,
                Route::Tags(..) => Endpoint::Tags,
                Route::Manifest(..) => Endpoint::Manifest,
                Route::Blob(..) => Endpoint::Blob,
                Route::Referrers(..) => Endpoint::Referrers,
            },
            Self::Service(ServiceEndpoint::Token(_)) => Endpoint::Token,
            Self::Service(ServiceEndpoint::Health) => Endpoint::Health,
            Self::Service(ServiceEndpoint::Metrics) => Endpoint::Metrics,
            Self::Service(ServiceEndpoint::Ca) => Endpoint::Ca,
        }
    }

    /// Whether listeners with this surface serve the endpoint.
    #[must_use]
    pub fn is_on(&self, surface: Surface) -> bool {
        match surface {
            Surface::All => true,
            Surface::Registry => !self.endpoint().is_observability(),
            Surface::Observability => self.endpoint().is_observability(),
        }
    }
}

/// Paging of a list (distribution specification, "Listing Tags").
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// The maximum number of entries.
    pub n: Option<usize>,
    /// The page starts after this entry.
    pub last: Option<String>,
}

/// A request for an endpoint of the distribution specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRequest {
    /// The endpoint.
    pub route: Route,
    /// The upstream that the client names (`ns=`).
    pub namespace: Option<Host>,
}

/// Parses the method and the target of a request.
///
/// # Errors
/// Fails with 405 if the method is not GET or HEAD, and with 400 or 404 if the target is not an endpoint.
pub fn parse(method: &Method, uri: &Uri) -> Result<RequestTarget, RegistryError> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(RegistryError::MethodNotAllowed);
    }
    if let Some(endpoint) = service_endpoint(uri) {
        return Ok(RequestTarget::Service(endpoint));
    }
    let segments = uri.path().strip_prefix("/v2").ok_or(RegistryError::PathUnknown)?;
    let segments = match segments {
        "" | "/" => Vec::new(),
        rest => rest.strip_prefix('/').ok_or(RegistryError::PathUnknown)?.split('/').map(decode).collect::<Result<_, _>>()?,
    };
    let query = uri.query().unwrap_or_default();
    let namespace = match value(query, "ns") {
        Some(ns) => Some(ns.parse().map_err(|error: NameError| RegistryError::NameInvalid(format!("ns: {error}")))?),
        None => None,
    };
    Ok(RequestTarget::Api(ApiRequest { route: route(&segments, query)?, namespace }))
}

fn service_endpoint(uri: &Uri) -> Option<ServiceEndpoint> {
    match uri.path() {
        "/token" => Some(ServiceEndpoint::Token(values(uri.query().unwrap_or_default(), "scope"))),
        "/healthz" => Some(ServiceEndpoint::Health),
        "/metrics" => Some(ServiceEndpoint::Metrics),
        "/ca.crt" => Some(ServiceEndpoint::Ca),
        _ => None,
    }
}

fn route(segments: &[Cow<'_, str>], query: &str) -> Result<Route, RegistryError> {
    let text: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
    match text.as_slice() {
        [] => Ok(Route::Base),
        ["_catalog"] => Ok(Route::Catalog(page(query)?)),
        [name @ .., "tags", "list"] => Ok(Route::Tags(repository(name)?, page(query)?)),
        [name @ .., "manifests", reference] => Ok(Route::Manifest(repository(name)?, manifest_reference(reference)?)),
        [name @ .., "blobs", digest] => Ok(Route::Blob(repository(name)?, parse_digest(digest)?)),
        [name @ .., "referrers", digest] => {
            let (name, subject) = (repository(name)?, parse_digest(digest)?);
            let artifact_type = value(query, "artifactType").map(Cow::into_owned);
            let page = page(query)?;
            // Referrers are sorted by digest, so `last` is a digest.
            page.last.as_deref().map(parse_digest).transpose()?;
            Ok(Route::Referrers(name, Referrers { subject, artifact_type, page }))
        }
        _ => Err(RegistryError::PathUnknown),
    }
}

fn repository(segments: &[&str]) -> Result<Repository, RegistryError> {
    Repository::requested(&segments.join("/")).map_err(|error| RegistryError::NameInvalid(error.to_string()))
}

fn parse_digest(text: &str) -> Result<Digest, RegistryError> {
    text.parse().map_err(|error: crate::oci::DigestError| RegistryError::DigestInvalid(error.to_string()))
}

/// A malformed digest is a bad request. A tag that cannot exist is an unknown manifest.
fn manifest_reference(text: &str) -> Result<Reference, RegistryError> {
    match text.parse::<Reference>() {
        Ok(reference) => Ok(reference),
        Err(NameError::Digest(error)) => Err(RegistryError::DigestInvalid(error.to_string())),
        Err(error) => Err(RegistryError::ManifestUnknown(error.to_string())),
    }
}

fn page(query: &str) -> Result<Page, RegistryError> {
    let n = match value(query, "n") {
        // A number that does not fit is treated as large. The page size is limited later.
        Some(n) if !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()) => Some(n.parse().unwrap_or(usize::MAX)),
        Some(_) => return Err(RegistryError::PaginationInvalid("n must be a number, 0 or greater".into())),
        None => None,
    };
    Ok(Page { n, last: value(query, "last").map(Cow::into_owned) })
}

/// The first value of a query parameter.
fn value<'a>(query: &'a str, key: &str) -> Option<Cow<'a, str>> {
    form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == key).map(|(_, value)| value)
}

/// All values of a query parameter.
fn values(query: &str, key: &str) -> Vec<String> {
    form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == key).map(|(_, value)| value.into_owned()).collect()
}

fn decode(segment: &str) -> Result<Cow<'_, str>, RegistryError> {
    let decoded = percent_decode_str(segment).decode_utf8();
    decoded.map_err(|_| RegistryError::NameInvalid("the path must be UTF-8".into()))
}
