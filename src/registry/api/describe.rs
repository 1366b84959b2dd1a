//! What an event tells of a request. Text that a client chose is clipped, and what a terminal would obey is escaped. Pure.

use http::header::{HeaderName, RANGE, USER_AGENT};
use http::request::Parts;
use http::{HeaderValue, Version};

use super::route::{Asked, Route};
use crate::proto;

/// What the head of a request says of it.
pub(crate) fn head(head: &Parts, request: &mut proto::Request) {
    let header = |name: HeaderName| head.headers.get(name).map(|value: &HeaderValue| lossy(value.as_bytes())).unwrap_or_default();
    request.method = clipped(head.method.as_str(), 32);
    request.range = clipped(&header(RANGE), 256);
    request.user_agent = clipped(&header(USER_AGENT), 256);
    request.protocol = if head.version == Version::HTTP_2 { "HTTP/2".into() } else { "HTTP/1.1".into() };
}

/// What was asked for.
pub(crate) fn asked(asked: &Asked, request: &mut proto::Request) {
    let Asked::Registry(target) = asked else { return };
    let (repository, reference) = match &target.route {
        Route::Base | Route::Catalog(_) => (None, None),
        Route::Tags(name, _) => (Some(name), None),
        Route::Manifest(name, reference) => (Some(name), Some(reference.to_string())),
        Route::Blob(name, digest) => (Some(name), Some(digest.to_string())),
        Route::Referrers(name, asked) => (Some(name), Some(asked.subject.to_string())),
    };
    request.reference = reference.unwrap_or_default();
    request.repository = match (&target.namespace, repository) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, Some(name)) => name.to_string(),
        (_, None) => String::new(),
    };
}

/// Text of a header, whatever its bytes; control characters (of both ranges: a terminal obeys U+009B as it obeys ESC [) are written
/// as escapes.
fn lossy(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if !text.contains(char::is_control) {
        return text.into_owned();
    }
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// At most `limit` bytes of a text that a client chose the length of.
fn clipped(text: &str, limit: usize) -> String {
    text.get(..text.floor_char_boundary(limit)).unwrap_or_default().to_owned()
}
