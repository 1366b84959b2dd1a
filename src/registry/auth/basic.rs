//! Parses the `Authorization` header. Its content never appears in debug output.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Longest user name, in bytes.
pub const LONGEST_USER: usize = 255;
/// Longest header value that is parsed, in bytes: enough for a token with the largest number of scopes.
const LONGEST: usize = 16 << 10;
/// Some clients omit the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true),
);

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// The password; any bytes.
    pub password: Vec<u8>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials { .. }")
    }
}

/// The content of a request's `Authorization` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authorization<'a> {
    /// There is no header.
    None,
    /// `Basic` (RFC 7617).
    Basic(Credentials),
    /// `Bearer` (RFC 6750), with the token.
    Bearer(&'a str),
    /// Another scheme, several headers, or a malformed value.
    Malformed,
}

/// Parses the `Authorization` header.
#[must_use]
pub fn authorization(headers: &HeaderMap) -> Authorization<'_> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Authorization::None,
        (Some(value), None) if value.len() <= LONGEST => value.to_str().ok(),
        _ => None,
    };
    let Some((scheme, rest)) = value.and_then(|value| value.trim().split_once(' ')) else { return Authorization::Malformed };
    let rest = rest.trim_start();
    if scheme.eq_ignore_ascii_case("basic") {
        credentials(rest).map_or(Authorization::Malformed, Authorization::Basic)
    } else if scheme.eq_ignore_ascii_case("bearer") && !rest.is_empty() {
        Authorization::Bearer(rest)
    } else {
        Authorization::Malformed
    }
}

/// The name ends at the first colon. The password may contain more of them (RFC 7617, section 2).
fn credentials(encoded: &str) -> Option<Credentials> {
    let mut decoded = BASE64.decode(encoded).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let password = decoded.split_off(colon + 1);
    decoded.truncate(colon);
    let user = String::from_utf8(decoded).ok().filter(|user| !user.is_empty() && user.len() <= LONGEST_USER)?;
    Some(Credentials { user, password })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn read(values: &[&[u8]]) -> Option<(String, String)> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        match authorization(&headers) {
            Authorization::Basic(found) => Some((found.user, String::from_utf8(found.password).unwrap())),
            Authorization::Bearer(token) => Some(("bearer".into(), token.to_owned())),
            Authorization::None => Some(("none".into(), String::new())),
            Authorization::Malformed => None,
        }
    }

    fn pair(user: &str, password: &str) -> Option<(String, String)> {
        Some((user.into(), password.into()))
    }

    #[test]
    fn credentials_are_parsed_as_clients_send_them() {
        assert_eq!(read(&[]), pair("none", ""));
        assert_eq!(read(&[b"Basic YW5uYTpzZWNyZXQ="]), pair("anna", "secret"));
        assert_eq!(read(&[b"basic  YW5uYTpzZWNyZXQ"]), pair("anna", "secret"), "any case, no padding");
        assert_eq!(read(&[b"Basic YW5uYTphOmI="]), pair("anna", "a:b"), "colons belong to the password");
        assert_eq!(read(&[b"Basic YW5uYTo="]), pair("anna", ""));
        assert_eq!(read(&[b"Bearer abc.def"]), pair("bearer", "abc.def"));
    }

    #[test]
    fn malformed_headers_are_refused() {
        let long = format!("Bearer {}", "a".repeat(LONGEST));
        for values in [
            &[b"Basic".as_slice()][..],
            &[b"Basic !!!"],
            &[b"Basic YW5uYQ=="],
            &[b"Basic OnNlY3JldA=="],
            &[b"Basic /zp4"],
            &[b"Bearer "],
            &[b"Digest username=\"anna\""],
            &[b"Basic YW5uYTpzZWNyZXQ=", b"Basic YW5uYTpzZWNyZXQ="],
            &[b"Basic \xff"],
            &[long.as_bytes()],
        ] {
            assert_eq!(read(values), None, "{:?}", values.iter().map(|v| String::from_utf8_lossy(v)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn credentials_are_not_in_debug_output() {
        let shown = Authorization::Basic(Credentials { user: "anna".into(), password: b"secret".to_vec() });
        assert_eq!(format!("{shown:?}"), "Basic(Credentials { .. })");
    }
}
