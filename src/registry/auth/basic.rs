//! The `Authorization` header: its value becomes credentials or a token. Pure; what it holds is never shown.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Longest name of a user, in bytes.
pub const LONGEST_USER: usize = 255;
/// Longest value that is looked at, in bytes: a token for as many repositories as one token is given for.
const LONGEST: usize = 16 << 10;
/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true),
);

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password, whatever its bytes.
    pub password: Vec<u8>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials { .. }")
    }
}

/// What a request says of who sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authorization<'a> {
    /// Nothing.
    None,
    /// `Basic` (RFC 7617).
    Basic(Credentials),
    /// `Bearer` (RFC 6750), with the token as it was sent.
    Bearer(&'a str),
    /// Another scheme, two headers, or a value that is not of its scheme.
    Unreadable,
}

/// Reads the `Authorization` header.
#[must_use]
pub fn authorization(headers: &HeaderMap) -> Authorization<'_> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Authorization::None,
        (Some(value), None) if value.len() <= LONGEST => value.to_str().ok(),
        _ => None,
    };
    let Some((scheme, rest)) = value.and_then(|value| value.trim().split_once(' ')) else { return Authorization::Unreadable };
    let rest = rest.trim_start();
    if scheme.eq_ignore_ascii_case("basic") {
        credentials(rest).map_or(Authorization::Unreadable, Authorization::Basic)
    } else if scheme.eq_ignore_ascii_case("bearer") && !rest.is_empty() {
        Authorization::Bearer(rest)
    } else {
        Authorization::Unreadable
    }
}

/// The name ends at the first colon; the password may hold more of them (RFC 7617, section 2).
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
            Authorization::Unreadable => None,
        }
    }

    fn pair(user: &str, password: &str) -> Option<(String, String)> {
        Some((user.into(), password.into()))
    }

    #[test]
    fn credentials_as_clients_write_them() {
        assert_eq!(read(&[]), pair("none", ""));
        assert_eq!(read(&[b"Basic YW5uYTpzZWNyZXQ="]), pair("anna", "secret"));
        assert_eq!(read(&[b"basic  YW5uYTpzZWNyZXQ"]), pair("anna", "secret"), "any case, no padding");
        assert_eq!(read(&[b"Basic YW5uYTphOmI="]), pair("anna", "a:b"), "colons belong to the password");
        assert_eq!(read(&[b"Basic YW5uYTo="]), pair("anna", ""));
        assert_eq!(read(&[b"Bearer abc.def"]), pair("bearer", "abc.def"));
    }

    #[test]
    fn what_cannot_be_read() {
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
    fn nothing_is_shown() {
        let shown = Authorization::Basic(Credentials { user: "anna".into(), password: b"secret".to_vec() });
        assert_eq!(format!("{shown:?}"), "Basic(Credentials { .. })");
    }
}
