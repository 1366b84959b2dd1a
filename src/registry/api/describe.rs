//! Fills the `request` event from a request. Text from the client is truncated, and control characters are escaped.

use http::header::{HeaderName, RANGE, USER_AGENT};
use http::request::Parts;
use http::{HeaderValue, Version};

use super::route::{RequestTarget, Route};
use crate::proto;
use crate::text::escaped;

/// Fills the fields that come from the request's head.
pub(crate) fn head(head: &Parts, event: &mut proto::Request) {
    // Escapes C0 and C1 control characters: a terminal interprets U+009B like ESC [.
    let text = |value: &HeaderValue| escaped(&String::from_utf8_lossy(value.as_bytes()));
    let header = |name: HeaderName| head.headers.get(name).map(text).unwrap_or_default();
    event.method = truncated(head.method.as_str(), 32);
    event.range = truncated(&header(RANGE), 256);
    event.user_agent = truncated(&header(USER_AGENT), 256);
    event.protocol = if head.version == Version::HTTP_2 { "HTTP/2".into() } else { "HTTP/1.1".into() };
}

/// Fills the fields that come from the request's target.
pub(crate) fn target(target: &RequestTarget, event: &mut proto::Request) {
    let RequestTarget::Api(request) = target else { return };
    let (repository, reference) = match &request.route {
        Route::Base | Route::Catalog(_) => (None, None),
        Route::Tags(name, _) => (Some(name), None),
        Route::Manifest(name, reference) => (Some(name), Some(reference.to_string())),
        Route::Blob(name, digest) => (Some(name), Some(digest.to_string())),
        Route::Referrers(name, referrers) => (Some(name), Some(referrers.subject.to_string())),
    };
    event.reference = reference.unwrap_or_default();
    event.repository = match (&request.namespace, repository) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, Some(name)) => name.to_string(),
        (_, None) => String::new(),
    };
}

/// At most `limit` bytes of `text`, cut between characters.
fn truncated(text: &str, limit: usize) -> String {
    text.get(..text.floor_char_boundary(limit)).unwrap_or_default().to_owned()
}
