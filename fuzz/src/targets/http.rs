//! Heads of requests.

use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method, Uri};
use localregistry::address::{is_dns_name, is_san};
use localregistry::registry::api::route::{self, RequestTarget, Route, ServiceEndpoint};
use localregistry::registry::auth::basic::{Authorization, authorization};
use localregistry::registry::auth::htpasswd::Htpasswd;
use localregistry::registry::auth::scope::Grants;
use localregistry::registry::auth::token::Signer;
use localregistry::registry::http::range::{self, ByteRange, Ranges};
use localregistry::registry::listen::client::is_host;

/// A `Range` header: the content's size in the first two bytes, then the value.
pub fn range(data: &[u8]) {
    let Some((size, text)) = data.split_first_chunk::<2>() else { return };
    let size = u64::from(u16::from_be_bytes(*size));
    let Ok(text) = str::from_utf8(text) else { return };
    let parsed = range::parse(text, size);
    let whole =
        |range: &ByteRange| assert!(range.start() < range.end() && range.end() <= size, "{range:?} of {size} for {text:?}");
    match &parsed {
        Ranges::One(range) => whole(range),
        Ranges::Many(ranges) => {
            ranges.iter().for_each(whole);
            assert!(
                ranges.len() > 1 && ranges.iter().map(ByteRange::len).sum::<u64>() <= size,
                "{ranges:?} of {size} for {text:?}"
            );
        }
        Ranges::Whole | Ranges::Unsatisfiable | Ranges::TooMany => {}
    }
    // One range, read again by the rule of RFC 9110, section 14.1.1.
    if let Some(expected) = single(text, u128::from(size)) {
        let found = match parsed {
            Ranges::One(range) => Some((u128::from(range.start()), u128::from(range.end()))),
            Ranges::Unsatisfiable => None,
            other => panic!("{other:?} for {text:?} of {size}"),
        };
        assert_eq!(found, expected, "{text:?} of {size}");
    }
}

/// Start and end of a header with one well-formed range; `Some(None)` if it lies outside of the content, `None` for other headers.
fn single(text: &str, size: u128) -> Option<Option<(u128, u128)>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let number = |digits: &str| {
        let is_number = !digits.is_empty() && digits.len() < 30 && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse::<u128>().expect("digits"))
    };
    let (start, end) = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => (first, size.min(last + 1)),
        (Some(first), None) if last.is_empty() => (first, size),
        (None, Some(suffix)) if first.is_empty() => (size.saturating_sub(suffix), size),
        _ => return None,
    };
    (size > 0).then_some((start < end).then_some((start, end)))
}

/// A target, the value of `Authorization`, a file of users and a name, each on a line.
pub fn request(data: &[u8]) {
    let mut lines = data.splitn(4, |byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (target, authorization_value, name, users) = (line(), line(), line(), line());
    if let Ok(uri) = Uri::try_from(target) {
        route_of(&uri);
    }
    if let Ok(value) = HeaderValue::from_bytes(authorization_value) {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
        let signer = Signer::new(Duration::from_secs(60)).expect("entropy");
        match authorization(&headers) {
            Authorization::Bearer(token) => assert!(signer.verify(token).is_none(), "a token that was not issued: {token}"),
            Authorization::Basic(found) => assert!(!found.user.contains(':'), "{:?}", found.user),
            Authorization::None | Authorization::Malformed => {}
        }
    }
    if let Ok(name) = str::from_utf8(name) {
        let _ = (is_dns_name(name), is_san(name), is_host(name.as_bytes()));
    }
    let _ = Htpasswd::parse(users, "users");
}

/// Any two ways to write the parsed target are the same request.
fn route_of(uri: &Uri) {
    match route::parse(&Method::GET, uri) {
        Ok(RequestTarget::Api(request)) => {
            let path = match &request.route {
                Route::Manifest(repository, reference) => format!("/v2/{repository}/manifests/{reference}"),
                Route::Blob(repository, digest) => format!("/v2/{repository}/blobs/{digest}"),
                _ => return,
            };
            let again = route::parse(&Method::GET, &path.parse().expect("a path"));
            let Ok(RequestTarget::Api(again)) = again else { panic!("{path} of {uri}: {again:?}") };
            assert_eq!(again.route, request.route, "{path} of {uri}");
        }
        Ok(RequestTarget::Service(endpoint)) => {
            if let ServiceEndpoint::Token(scopes) = endpoint {
                let _ = Grants::for_scopes(&scopes);
            }
        }
        Err(error) => assert!(error.status().is_client_error(), "{uri}: {error:?}"),
    }
}
