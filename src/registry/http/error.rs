//! The errors that the registry sends: a status, a code of the distribution specification ("Error Codes"), and a detail. No error reveals
//! anything about the machine that serves.

use http::StatusCode;
use serde::Serialize;

use crate::oci::Digest;
use crate::registry::auth::challenge::Challenge;
use crate::registry::limits::RANGES;

/// The statuses of all errors, in ascending order.
pub const STATUSES: [u16; 9] = [400, 401, 404, 405, 412, 416, 429, 500, 503];

/// Why a request is not answered with content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryError {
    /// The API has no such path.
    PathUnknown,
    /// The method is not GET or HEAD.
    MethodNotAllowed,
    /// The repository name is malformed.
    NameInvalid(String),
    /// The registry has no such repository.
    NameUnknown(String),
    /// The repository has no such manifest.
    ManifestUnknown(String),
    /// The repository has no such blob.
    BlobUnknown(String),
    /// The digest is malformed.
    DigestInvalid(String),
    /// `n` is not a number.
    PaginationInvalid(String),
    /// `If-Match` does not list this digest of the content.
    PreconditionFailed(Digest),
    /// All ranges lie outside the content, which has this size in bytes.
    RangeNotSatisfiable(u64),
    /// The request has more ranges than [`RANGES`].
    TooManyRanges,
    /// The request violates HTTP.
    BadRequest(&'static str),
    /// The request has no credentials or token, or wrong ones.
    Unauthorized(Challenge),
    /// Too many requests compete for a limited resource.
    Busy(&'static str),
    /// The disk does not return what its catalog lists.
    Disk,
    /// The health probe of the disk failed.
    Unhealthy,
}

/// The JSON body of an error response.
#[derive(Serialize)]
struct ErrorDocument<'a> {
    errors: [ErrorDetail<'a>; 1],
}

#[derive(Serialize)]
struct ErrorDetail<'a> {
    code: &'a str,
    message: &'a str,
    detail: String,
}

impl RegistryError {
    /// Status, code, message and detail. For client errors the specification allows only the codes it lists ("Error Codes").
    fn parts(&self) -> (StatusCode, &'static str, &'static str, String) {
        use StatusCode as S;
        match self {
            Self::PathUnknown => (
                S::NOT_FOUND,
                "UNSUPPORTED",
                "no such endpoint",
                "the endpoints are those of the OCI distribution specification".into(),
            ),
            Self::MethodNotAllowed => {
                (S::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the registry is read-only", "only GET and HEAD are allowed".into())
            }
            Self::NameInvalid(why) => (S::BAD_REQUEST, "NAME_INVALID", "invalid repository name", why.clone()),
            Self::NameUnknown(name) => {
                (S::NOT_FOUND, "NAME_UNKNOWN", "repository name not known to registry", format!("no repository {name}"))
            }
            Self::ManifestUnknown(what) => (S::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown to registry", what.clone()),
            Self::BlobUnknown(what) => (S::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry", what.clone()),
            Self::DigestInvalid(why) => (S::BAD_REQUEST, "DIGEST_INVALID", "invalid digest", why.clone()),
            Self::PaginationInvalid(why) => (S::BAD_REQUEST, "UNSUPPORTED", "invalid number of results requested", why.clone()),
            Self::PreconditionFailed(digest) => (
                S::PRECONDITION_FAILED,
                "DIGEST_INVALID",
                "the digest does not match If-Match",
                format!("If-Match does not list {digest}"),
            ),
            Self::RangeNotSatisfiable(size) => (
                S::RANGE_NOT_SATISFIABLE,
                "SIZE_INVALID",
                "the range lies outside the content",
                format!("the content has {size} bytes"),
            ),
            Self::TooManyRanges => {
                (S::BAD_REQUEST, "UNSUPPORTED", "too many ranges", format!("at most {} ranges are served in one request", RANGES))
            }
            Self::BadRequest(why) => (S::BAD_REQUEST, "UNSUPPORTED", "bad request", (*why).into()),
            Self::Unauthorized(challenge) => {
                (S::UNAUTHORIZED, "UNAUTHORIZED", "authentication required", challenge.detail().into())
            }
            Self::Busy(what) => {
                (S::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many requests", format!("{what}; retry after 1 second"))
            }
            Self::Disk => (
                S::INTERNAL_SERVER_ERROR,
                "UNKNOWN",
                "the content could not be read",
                "the registry's disk failed or is damaged; see the registry's console".into(),
            ),
            Self::Unhealthy => (
                S::SERVICE_UNAVAILABLE,
                "UNAVAILABLE",
                "the disk cannot be read",
                "a probe of the registry's disk failed or timed out; see the registry's console".into(),
            ),
        }
    }

    /// The response's status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.parts().0
    }

    /// The code in the response's JSON.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.parts().1
    }

    /// The JSON body of the response.
    #[must_use]
    pub fn json(&self) -> Vec<u8> {
        let (_, code, message, detail) = self.parts();
        document(code, message, detail)
    }
}

/// The JSON body of an error response.
#[must_use]
pub fn document(code: &str, message: &str, detail: String) -> Vec<u8> {
    serde_json::to_vec(&ErrorDocument { errors: [ErrorDetail { code, message, detail }] }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::RegistryError as E;
    use super::*;

    /// Position in the test's list. A new variant does not compile until it has a position and an example.
    fn position(error: &E) -> usize {
        match error {
            E::PathUnknown => 0,
            E::MethodNotAllowed => 1,
            E::NameInvalid(_) => 2,
            E::NameUnknown(_) => 3,
            E::ManifestUnknown(_) => 4,
            E::BlobUnknown(_) => 5,
            E::DigestInvalid(_) => 6,
            E::PaginationInvalid(_) => 7,
            E::PreconditionFailed(_) => 8,
            E::RangeNotSatisfiable(_) => 9,
            E::TooManyRanges => 10,
            E::BadRequest(_) => 11,
            E::Unauthorized(_) => 12,
            E::Busy(_) => 13,
            E::Disk => 14,
            E::Unhealthy => 15,
        }
    }

    #[test]
    fn list_of_statuses_is_complete() {
        let text = String::new;
        let errors = [
            E::PathUnknown,
            E::MethodNotAllowed,
            E::NameInvalid(text()),
            E::NameUnknown(text()),
            E::ManifestUnknown(text()),
            E::BlobUnknown(text()),
            E::DigestInvalid(text()),
            E::PaginationInvalid(text()),
            E::PreconditionFailed(Digest::sha256_of(b"")),
            E::RangeNotSatisfiable(0),
            E::TooManyRanges,
            E::BadRequest(""),
            E::Unauthorized(Challenge::Basic),
            E::Busy(""),
            E::Disk,
            E::Unhealthy,
        ];
        assert!(errors.iter().map(position).eq(0..errors.len()));
        let statuses: std::collections::BTreeSet<u16> = errors.iter().map(|error| error.status().as_u16()).collect();
        assert!(statuses.into_iter().eq(STATUSES));
    }
}
