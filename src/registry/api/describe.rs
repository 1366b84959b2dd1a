//! Fills the `request` event from a request. Text from the client is truncated, and control characters are escaped.

use http::header::{HeaderName, RANGE, USER_AGENT};
use http::request::Parts;
use http::{HeaderValue, Version};

use super::route::{RequestTarget, Route};
use crate::proto;

/// Fills the fields that come from the request's head.
pub(crate) fn head(head: &Parts, event: &mut proto::Request) {
    let header =
        |name: HeaderName| head.headers.get(name).map(|value: &HeaderValue| escaped(value.as_bytes())).unwrap_or_default();
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

/// A header's bytes as text. Escapes C0 and C1 control characters: a terminal interprets U+009B like ESC [.
fn escaped(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if !text.contains(char::is_control) {
        return text.into_owned();
    }
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// At most `limit` bytes of `text`, cut between characters.
fn truncated(text: &str, limit: usize) -> String {
    text.get(..text.floor_char_boundary(limit)).unwrap_or_default().to_owned()
}
