//! What a client is told when it does not get what it asked for: a status, a code of the distribution specification ("Error
//! Codes") and a detail, and never anything of the machine behind.

use http::StatusCode;
use serde::Serialize;

use crate::oci::Digest;
use crate::registry::auth::challenge::Challenge;

/// A request that is not answered with content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryError {
    /// No such path in the API.
    PathUnknown,
    /// A method that would write, or that the API does not have.
    MethodNotAllowed,
    /// The repository's name is not by the grammar.
    NameInvalid(String),
    /// No such repository here.
    NameUnknown(String),
    /// No such manifest in the repository.
    ManifestUnknown(String),
    /// No such blob in the repository.
    BlobUnknown(String),
    /// A digest that cannot be parsed.
    DigestInvalid(String),
    /// `n` is no number.
    PaginationInvalid(String),
    /// The content, of this digest, is none of those that the client takes it for.
    PreconditionFailed(Digest),
    /// The ranges all lie outside of content of this size in bytes.
    RangeNotSatisfiable(u64),
    /// Too many ranges.
    TooManyRanges,
    /// A request that breaks HTTP: no `Host` or two, plain HTTP on a TLS port.
    BadRequest(&'static str),
    /// Credentials or a token are needed, or were wrong.
    Unauthorized(Challenge),
    /// Too much is asked for at once: of what.
    Busy(&'static str),
    /// The disk did not give what its catalog says it holds.
    Disk,
    /// The disk does not answer, or not as its catalog says.
    Unhealthy,
}

#[derive(Serialize)]
struct Body<'a> {
    errors: [Entry<'a>; 1],
}

#[derive(Serialize)]
struct Entry<'a> {
    code: &'a str,
    message: &'a str,
    detail: String,
}

impl RegistryError {
    /// Status, code, message and detail. One arm for each variant: a new one forces a decision. The codes of a client's mistakes are
    /// those of the specification, which allows no others ("Error Codes").
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
                (S::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the registry is read-only", "GET and HEAD are the methods it has".into())
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
                "the content is another one",
                format!("If-Match names other content than {digest}"),
            ),
            Self::RangeNotSatisfiable(size) => (
                S::RANGE_NOT_SATISFIABLE,
                "SIZE_INVALID",
                "the range lies outside of the content",
                format!("the content has {size} bytes"),
            ),
            Self::TooManyRanges => (
                S::BAD_REQUEST,
                "UNSUPPORTED",
                "too many ranges",
                format!("at most {} ranges are served in one request", crate::registry::limits::RANGES),
            ),
            Self::BadRequest(why) => (S::BAD_REQUEST, "UNSUPPORTED", "bad request", (*why).into()),
            Self::Unauthorized(challenge) => {
                (S::UNAUTHORIZED, "UNAUTHORIZED", "authentication required", challenge.detail().into())
            }
            Self::Busy(what) => {
                (S::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many requests", format!("{what}; come again in a second"))
            }
            Self::Disk => (
                S::INTERNAL_SERVER_ERROR,
                "UNKNOWN",
                "the content could not be read",
                "the registry's disk failed or is damaged; its console says more".into(),
            ),
            Self::Unhealthy => (
                S::SERVICE_UNAVAILABLE,
                "UNAVAILABLE",
                "the disk cannot be read",
                "a probe of the registry's disk failed or took too long; its console says more".into(),
            ),
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.parts().0
    }

    /// The specification's code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.parts().1
    }

    /// The JSON that is sent.
    #[must_use]
    pub fn json(&self) -> Vec<u8> {
        let (_, code, message, detail) = self.parts();
        serde_json::to_vec(&Body { errors: [Entry { code, message, detail }] }).unwrap_or_default()
    }
}
