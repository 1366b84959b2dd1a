//! Builds responses: status, headers and payload.

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::response::Builder;
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::error::{self, RegistryError};
use super::multipart::{Multipart, content_range};
use super::range::{ByteRange, Ranges};
use super::response_memory::Permit;
use crate::disk::catalog::Blob;
use crate::oci::Host;
use crate::registry::content::body::{ByteSource, Payload};

/// Carries the digest of the content (distribution specification, "Pulling manifests").
pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Docker's clients look for this header on `/v2/`.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// Carries the upstream that the client named in `ns=`.
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OCTETS: &str = "application/octet-stream";
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
const BYTES: HeaderValue = HeaderValue::from_static("bytes");

/// How long caches may keep a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Requested by digest: the content never changes.
    Immutable,
    /// Requested by tag: another appliance may soon serve another image at this address.
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

/// A blob or manifest as one endpoint serves it.
#[derive(Debug, Clone, Copy)]
pub struct Representation<'a> {
    /// The catalog's entry. The blob endpoint clears the media type: it serves manifests as plain bytes.
    pub blob: Blob<'a>,
    /// How long caches may keep it.
    pub freshness: Freshness,
}

impl Representation<'_> {
    /// A strong validator: the quoted digest.
    #[must_use]
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.blob.digest)
    }

    fn media_type(&self) -> &str {
        self.blob.manifest.unwrap_or(OCTETS)
    }

    /// The headers common to all responses about this content.
    fn head(&self, status: StatusCode) -> Builder {
        Response::builder()
            .status(status)
            .header(CONTENT_DIGEST, self.blob.digest.to_string())
            .header(ETAG, self.etag())
            .header(CACHE_CONTROL, self.freshness.header())
            .header(ACCEPT_RANGES, BYTES)
            .header(X_CONTENT_TYPE_OPTIONS, NOSNIFF)
    }

    fn whole_head(&self) -> Builder {
        self.head(StatusCode::OK).header(CONTENT_TYPE, self.media_type())
    }

    /// The headers of a 200 response. The manifest cache stores them.
    ///
    /// # Errors
    /// Fails if one cannot be built. Without all of them, the content is not sent.
    pub fn whole_headers(&self) -> http::Result<HeaderMap> {
        let response = self.whole_head().header(CONTENT_LENGTH, self.blob.size).body(())?;
        Ok(response.into_parts().0.headers)
    }
}

/// The response of `/v2/`.
#[must_use]
pub fn base() -> Response<Payload> {
    let builder = Response::builder().header(API_VERSION, HeaderValue::from_static("registry/2.0"));
    finish(builder.header(CONTENT_TYPE, JSON), Payload::bytes("{}"))
}

/// A document of this media type.
#[must_use]
pub fn document(media_type: &'static str, document: impl Into<Bytes>) -> Response<Payload> {
    let builder = Response::builder().header(CONTENT_TYPE, HeaderValue::from_static(media_type));
    finish(builder.header(X_CONTENT_TYPE_OPTIONS, NOSNIFF), Payload::bytes(document))
}

/// A document that no cache may store.
#[must_use]
pub fn uncached(media_type: &'static str, document: impl Into<Bytes>) -> Response<Payload> {
    let mut response = self::document(media_type, document);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Keeps a response that needed credentials out of shared caches.
#[must_use]
pub fn private(mut response: Response<Payload>) -> Response<Payload> {
    if let Some(value) = response.headers_mut().get_mut(CACHE_CONTROL) {
        let rest = value.to_str().ok().and_then(|value| value.strip_prefix("public, "));
        if let Some(private) = rest.and_then(|rest| HeaderValue::try_from(format!("private, {rest}")).ok()) {
            *value = private;
        }
    }
    response
}

/// An error as the specification's JSON.
#[must_use]
pub fn error(error: &RegistryError) -> Response<Payload> {
    let builder = Response::builder().status(error.status()).header(CONTENT_TYPE, JSON).header(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    let builder = match error {
        RegistryError::MethodNotAllowed => builder.header(ALLOW, HeaderValue::from_static("GET, HEAD")),
        RegistryError::RangeNotSatisfiable(size) => builder.header(CONTENT_RANGE, format!("bytes */{size}")),
        RegistryError::Unauthorized(challenge) => builder.header(WWW_AUTHENTICATE, challenge.to_string()),
        RegistryError::Busy(_) => builder.header(RETRY_AFTER, HeaderValue::from_static("1")),
        _ => builder,
    };
    finish(builder, Payload::bytes(error.json()))
}

/// An error that the registry itself never sends, as the specification's JSON.
#[must_use]
pub fn error_document(status: StatusCode, code: &str, message: &str) -> Response<Payload> {
    let builder = Response::builder().status(status).header(CONTENT_TYPE, JSON).header(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    finish(builder, Payload::bytes(error::document(code, message, String::new())))
}

/// A response without content.
#[must_use]
pub fn empty(status: StatusCode) -> Response<Payload> {
    finish(Response::builder().status(status), Payload::empty())
}

/// 304: the client already has the content.
#[must_use]
pub fn not_modified(content: &Representation<'_>) -> Response<Payload> {
    content.head(StatusCode::NOT_MODIFIED).body(Payload::empty()).unwrap_or_else(internal_error)
}

/// 200 with the cached headers of a manifest and all of its bytes.
#[must_use]
pub fn cached(content: &Representation<'_>, headers: HeaderMap, bytes: Bytes) -> Response<Payload> {
    let mut response = Response::new(Payload::bytes(bytes));
    *response.headers_mut() = headers;
    response.headers_mut().insert(CACHE_CONTROL, content.freshness.header());
    response
}

/// 200 with all of the content, or 206 with the requested ranges. `permit` accounts for the memory of the list of ranges.
///
/// # Errors
/// Fails with 416 if all ranges lie outside the content, and with 400 if there are too many.
pub(crate) fn content(
    content: &Representation<'_>,
    ranges: Ranges,
    permit: Option<Permit>,
    source: ByteSource,
) -> Result<Response<Payload>, RegistryError> {
    let size = content.blob.size;
    Ok(match ranges {
        Ranges::Unsatisfiable => return Err(RegistryError::RangeNotSatisfiable(size)),
        Ranges::TooMany => return Err(RegistryError::TooManyRanges),
        Ranges::Whole => finish(content.whole_head(), Payload::range(source, ByteRange::whole(size))),
        Ranges::One(range) => {
            let head = content.head(StatusCode::PARTIAL_CONTENT).header(CONTENT_TYPE, content.media_type());
            finish(head.header(CONTENT_RANGE, content_range(&range, size)), Payload::range(source, range))
        }
        Ranges::Many(list) => {
            // Without random numbers for a boundary, the ranges are ignored (RFC 9110, section 14.2).
            let Some(parts) = Multipart::new(content.media_type(), size, list, permit) else {
                return Ok(finish(content.whole_head(), Payload::range(source, ByteRange::whole(size))));
            };
            let head = content.head(StatusCode::PARTIAL_CONTENT).header(CONTENT_TYPE, parts.content_type());
            finish(head, Payload::multipart(source, parts).ok_or(RegistryError::TooManyRanges)?)
        }
    })
}

/// Echoes the upstream that the client named.
#[must_use]
pub fn with_namespace(mut response: Response<Payload>, namespace: Option<&Host>) -> Response<Payload> {
    if let Some(value) = namespace.and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        response.headers_mut().insert(NAMESPACE, value);
    }
    response
}

fn finish(builder: Builder, payload: Payload) -> Response<Payload> {
    builder.header(CONTENT_LENGTH, payload.len()).body(payload).unwrap_or_else(internal_error)
}

/// A bare 500. No catalog leads to a header value that cannot be built.
fn internal_error(_: http::Error) -> Response<Payload> {
    let mut response = Response::new(Payload::empty());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
