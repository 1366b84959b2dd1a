//! Responses: what is found becomes a status, headers and a body. Pure but for the open file that a body slices.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::response::Builder;
use http::{HeaderValue, Response, StatusCode};

use super::body::{Body, Part};
use super::catalog::Blob;
use super::error::RegistryError;
use super::range::Ranges;
use crate::oci::Host;

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
/// Separates the parts of a `multipart/byteranges` body. A client finds the parts' ends by their `Content-Range`, and by this.
const BOUNDARY: &str = "localregistry-8d1f0c6b5e3a4792";

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
}

/// The answer to `/v2/`.
#[must_use]
pub fn base() -> Response<Body> {
    let builder = Response::builder().header(API_VERSION, HeaderValue::from_static("registry/2.0"));
    finish(builder.header(CONTENT_TYPE, JSON), Body::bytes("{}"))
}

/// A JSON document of this media type.
#[must_use]
pub fn json(media_type: &'static str, document: Vec<u8>) -> Response<Body> {
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
        RegistryError::Busy => builder.header(RETRY_AFTER, HeaderValue::from_static("1")),
        _ => builder,
    };
    finish(builder, Body::bytes(error.json()))
}

/// The client has this content already.
#[must_use]
pub fn not_modified(content: &Content<'_>) -> Response<Body> {
    content.head(StatusCode::NOT_MODIFIED).body(Body::bytes(Bytes::new())).unwrap_or_else(unbuilt)
}

/// The content, or the ranges of it.
///
/// # Errors
/// 416 and 400, as the ranges ask for.
pub fn content(content: &Content<'_>, ranges: Ranges, file: File) -> Result<Response<Body>, RegistryError> {
    let size = content.blob.size;
    let slice = |range: Range<u64>| Body::parts(VecDeque::from([Part::File(range)]), None);
    Ok(match ranges {
        Ranges::Unsatisfiable => return Err(RegistryError::RangeNotSatisfiable(size)),
        Ranges::TooMany => return Err(RegistryError::TooManyRanges),
        Ranges::Whole => {
            let head = content.head(StatusCode::OK).header(CONTENT_TYPE, content.media_type());
            finish(head, slice(0..size).with_file(file))
        }
        Ranges::One(range) => {
            let head = content.head(StatusCode::PARTIAL_CONTENT).header(CONTENT_TYPE, content.media_type());
            finish(head.header(CONTENT_RANGE, content_range(&range, size)), slice(range).with_file(file))
        }
        Ranges::Many(list) => {
            let head = content.head(StatusCode::PARTIAL_CONTENT);
            let head = head.header(CONTENT_TYPE, format!("multipart/byteranges; boundary={BOUNDARY}"));
            finish(head, Body::parts(multipart(content, list), Some(file)))
        }
    })
}

/// Echoes the upstream that the client named.
#[must_use]
pub fn namespaced(mut response: Response<Body>, namespace: Option<&Host>) -> Response<Body> {
    if let Some(value) = namespace.and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        response.headers_mut().insert(NAMESPACE, value);
    }
    response
}

/// The parts of a `multipart/byteranges` body (RFC 9110, section 14.6): in the order asked for, never merged.
fn multipart(content: &Content<'_>, list: Vec<Range<u64>>) -> VecDeque<Part> {
    let (media_type, size) = (content.media_type(), content.blob.size);
    let mut parts = VecDeque::with_capacity(list.len() * 2 + 1);
    for (count, range) in list.into_iter().enumerate() {
        let before = if count == 0 { "" } else { "\r\n" };
        let range_header = content_range(&range, size);
        let head = format!("{before}--{BOUNDARY}\r\nContent-Type: {media_type}\r\nContent-Range: {range_header}\r\n\r\n");
        parts.push_back(Part::Bytes(head.into()));
        parts.push_back(Part::File(range));
    }
    parts.push_back(Part::Bytes(format!("\r\n--{BOUNDARY}--\r\n").into()));
    parts
}

fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end - 1)
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
