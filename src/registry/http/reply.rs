//! Responses: what is found becomes a status, headers and a body. Pure but for the open file that a body slices.

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::response::Builder;
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::error::RegistryError;
use super::multipart::{Multipart, content_range};
use super::range::{ByteRange, Ranges};
use super::response_memory::Room;
use crate::disk::catalog::Blob;
use crate::oci::Host;
use crate::registry::content::body::{self, Body, Opened};
use crate::registry::content::manifest_cache::Manifest;

/// The header that carries the digest of the content (distribution specification, "Pulling manifests").
pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// The header that Docker's clients look for on `/v2/`.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// The header that says which upstream was meant.
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OCTETS: &str = "application/octet-stream";
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
const BYTES: HeaderValue = HeaderValue::from_static("bytes");
/// How long a client may keep what it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Named by digest: for ever.
    Immutable,
    /// Named by tag: another appliance may serve another image at this address a moment later.
    Tag,
}

impl Freshness {
    fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Immutable => "public, max-age=31536000, immutable",
            Self::Tag => "public, max-age=5, must-revalidate",
        })
    }
}

/// Content that a request asked for.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// What the catalog says of it. A blob endpoint sends manifests, too, as plain bytes: it clears their type.
    pub blob: Blob<'a>,
    /// How it was asked for.
    pub freshness: Freshness,
}

impl Content<'_> {
    /// A strong validator: the digest, quoted.
    #[must_use]
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.blob.digest)
    }

    fn media_type(&self) -> &str {
        self.blob.manifest.unwrap_or(OCTETS)
    }

    /// The headers that every answer about this content has.
    fn head(&self, status: StatusCode) -> Builder {
        Response::builder()
            .status(status)
            .header(CONTENT_DIGEST, self.blob.digest.to_string())
            .header(ETAG, self.etag())
            .header(CACHE_CONTROL, self.freshness.header())
            .header(ACCEPT_RANGES, BYTES)
            .header(X_CONTENT_TYPE_OPTIONS, NOSNIFF)
    }

    fn whole(&self) -> Builder {
        self.head(StatusCode::OK).header(CONTENT_TYPE, self.media_type())
    }
}

/// The answer to `/v2/`.
#[must_use]
pub fn base() -> Response<Body> {
    let builder = Response::builder().header(API_VERSION, HeaderValue::from_static("registry/2.0"));
    finish(builder.header(CONTENT_TYPE, JSON), Body::bytes("{}"))
}

/// A JSON document of this media type.
#[must_use]
pub fn json(media_type: &'static str, document: impl Into<Bytes>) -> Response<Body> {
    let builder = Response::builder().header(CONTENT_TYPE, HeaderValue::from_static(media_type));
    finish(builder.header(X_CONTENT_TYPE_OPTIONS, NOSNIFF), Body::bytes(document))
}

/// Something that is right only now, of this media type: never kept.
#[must_use]
pub fn momentary(media_type: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let builder = Response::builder().header(CONTENT_TYPE, HeaderValue::from_static(media_type));
    let builder = builder.header(CACHE_CONTROL, HeaderValue::from_static("no-store")).header(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    finish(builder, Body::bytes(text))
}

/// Keeps what was not for everybody out of the caches that serve others.
#[must_use]
pub fn private(mut response: Response<Body>) -> Response<Body> {
    if let Some(value) = response.headers_mut().get_mut(CACHE_CONTROL) {
        let private = value.to_str().ok().and_then(|value| value.strip_prefix("public, "));
        if let Some(private) = private.and_then(|rest| HeaderValue::try_from(format!("private, {rest}")).ok()) {
            *value = private;
        }
    }
    response
}

/// An error, in the specification's JSON.
#[must_use]
pub fn error(error: &RegistryError) -> Response<Body> {
    let builder = Response::builder().status(error.status()).header(CONTENT_TYPE, JSON).header(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    let builder = match error {
        RegistryError::MethodNotAllowed => builder.header(ALLOW, HeaderValue::from_static("GET, HEAD")),
        RegistryError::RangeNotSatisfiable(size) => builder.header(CONTENT_RANGE, format!("bytes */{size}")),
        RegistryError::Unauthorized(challenge) => builder.header(WWW_AUTHENTICATE, challenge.to_string()),
        RegistryError::Busy(_) => builder.header(RETRY_AFTER, HeaderValue::from_static("1")),
        _ => builder,
    };
    finish(builder, Body::bytes(error.json()))
}

/// The client has this content already.
#[must_use]
pub fn not_modified(content: &Content<'_>) -> Response<Body> {
    content.head(StatusCode::NOT_MODIFIED).body(Body::bytes(Bytes::new())).unwrap_or_else(unbuilt)
}

/// Where content's bytes are.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    /// On the disk.
    File(Opened),
    /// In memory.
    Kept(&'a Manifest),
}

impl Source<'_> {
    fn content(self) -> body::Content {
        match self {
            Self::File(opened) => body::Content::File(opened),
            Self::Kept(manifest) => body::Content::Memory(manifest.content.clone()),
        }
    }
}

/// The content, or the slice of it that was asked for, and the same whether it comes from the disk or from memory.
///
/// # Errors
/// 416 and 400, as the ranges ask for.
pub(crate) fn content(
    content: &Content<'_>,
    ranges: Ranges,
    room: Option<Room>,
    source: Source<'_>,
) -> Result<Response<Body>, RegistryError> {
    let size = content.blob.size;
    Ok(match (ranges, source) {
        (Ranges::Unsatisfiable, _) => return Err(RegistryError::RangeNotSatisfiable(size)),
        (Ranges::TooMany, _) => return Err(RegistryError::TooManyRanges),
        (Ranges::Whole, Source::Kept(manifest)) => {
            let mut response = Response::new(Body::bytes(manifest.content.clone()));
            *response.headers_mut() = manifest.head.clone();
            response.headers_mut().insert(CACHE_CONTROL, content.freshness.header());
            response
        }
        (Ranges::Whole, source) => finish(content.whole(), Body::slice(source.content(), ByteRange::whole(size))),
        (Ranges::One(range), source) => {
            let head = content.head(StatusCode::PARTIAL_CONTENT).header(CONTENT_TYPE, content.media_type());
            finish(head.header(CONTENT_RANGE, content_range(&range, size)), Body::slice(source.content(), range))
        }
        (Ranges::Many(list), source) => {
            let head = content.head(StatusCode::PARTIAL_CONTENT).header(CONTENT_TYPE, Multipart::media_type());
            let parts = Multipart::new(content.media_type(), size, list, room);
            finish(head, Body::multipart(source.content(), parts).ok_or(RegistryError::TooManyRanges)?)
        }
    })
}

/// The head of a response with the whole content, for whoever asks for it again.
#[must_use]
pub fn ready_head(content: &Content<'_>) -> HeaderMap {
    let response = content.whole().header(CONTENT_LENGTH, content.blob.size).body(());
    response.map(|response| response.into_parts().0.headers).unwrap_or_default()
}

/// Echoes the upstream that the client named.
#[must_use]
pub fn namespaced(mut response: Response<Body>, namespace: Option<&Host>) -> Response<Body> {
    if let Some(value) = namespace.and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        response.headers_mut().insert(NAMESPACE, value);
    }
    response
}

fn finish(builder: Builder, body: Body) -> Response<Body> {
    builder.header(CONTENT_LENGTH, body.len()).body(body).unwrap_or_else(unbuilt)
}

/// Where a header's value could not be made, which no catalog leads to: the status alone.
fn unbuilt(_: http::Error) -> Response<Body> {
    let mut response = Response::new(Body::bytes(Bytes::new()));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
