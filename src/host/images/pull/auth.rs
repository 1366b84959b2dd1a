//! Authentication at registries: parses challenges (RFC 9110, section 11) and requests tokens (distribution's "Token Authentication
//! Specification").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use http_auth::parser::ChallengeParser;
use serde::Deserialize;

use super::client::{Client, Endpoint, Response};
use super::credentials::Credentials;
use super::error::Fault;
use super::url::{host_of, without_query};

/// Largest response of a token service, in bytes.
const MAX_TOKEN_RESPONSE: u64 = 1 << 20;
/// The `client_id` of this program at token services.
const CLIENT_ID: &str = "localregistry";

/// The authentication scheme that a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password in each request.
    Basic,
    /// A token from a token service.
    Bearer {
        /// URL of the token service.
        realm: String,
        /// The registry's name at the token service.
        service: Option<String>,
    },
}

impl Challenge {
    /// The preferred challenge among the values of `WWW-Authenticate`: Bearer before Basic.
    #[must_use]
    pub fn parse(values: &[&str]) -> Option<Self> {
        let mut basic = None;
        for value in values {
            let value = without_token68(value);
            for challenge in ChallengeParser::new(&value).map_while(Result::ok) {
                let parameter = |name: &str| {
                    let mut parameters = challenge.params.iter();
                    parameters.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                } else if challenge.scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = parameter("realm")
                {
                    return Some(Self::Bearer { realm, service: parameter("service") });
                }
            }
        }
        basic
    }
}

/// The `Authorization` value for a user and password (RFC 7617).
#[must_use]
pub fn basic_authorization(user: &[u8], password: &[u8]) -> String {
    format!("Basic {}", STANDARD.encode([user, password].join(&b':')))
}

/// A list of challenges without those that carry data instead of parameters (`token68`, RFC 9110, section 11.2), as NTLM and Negotiate do.
/// The parser does not know them.
fn without_token68(list: &str) -> String {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let elements = list.split(|character| {
        let is_end = character == ',' && !is_quoted;
        is_quoted ^= character == '"' && !is_escaped;
        is_escaped = is_quoted && character == '\\' && !is_escaped;
        is_end
    });
    let is_data = |text: &str| {
        let data = text.trim_end_matches('=');
        !data.is_empty() && data.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte))
    };
    let has_data = |element: &&str| element.trim().split_once(' ').is_some_and(|(_, data)| is_data(data.trim()));
    elements.filter(|element| !has_data(element)).map(str::trim).collect::<Vec<_>>().join(", ")
}

/// Checks that a token request to `realm` for the registry at `endpoint` is safe.
///
/// # Errors
/// Fails if `realm` is plain HTTP and its host may not use that. Also fails if credentials would go to another host than a plain-HTTP
/// registry, whose challenge an attacker on the network can forge.
pub fn check_realm(client: &Client, endpoint: &Endpoint, realm: &Uri, with_credentials: bool) -> Result<(), Fault> {
    let registry = endpoint.base.split_once("://").map_or("", |(_, host)| host);
    let refused = |why| Fault::Realm { host: registry.to_owned(), realm: without_query(realm), why };
    let host = host_of(realm);
    if realm.scheme_str() != Some("https") && !client.allows_plain(&host) {
        return Err(refused("which is plain HTTP"));
    }
    let name = registry.rsplit_once(':').map_or(registry, |(name, _)| name);
    if with_credentials && endpoint.base.starts_with("http://") && realm.host() != Some(name) && realm.host() != Some(registry) {
        return Err(refused("which is another host, although the registry itself is plain HTTP"));
    }
    Ok(())
}

/// Requests a token to pull from the repository `path`. The caller checks the response's status.
///
/// # Errors
/// Fails if there is no response.
pub fn request_token(
    endpoint: &Endpoint,
    realm: &str,
    service: Option<&str>,
    path: &str,
    credentials: Option<&Credentials>,
) -> Result<Response, Fault> {
    let scope = format!("repository:{path}:pull");
    let mut query: Vec<(&str, &str)> = service.map(|service| ("service", service)).into_iter().collect();
    query.push(("scope", &scope));
    if let Some(Credentials::IdentityToken(token)) = credentials {
        query.extend([("grant_type", "refresh_token"), ("client_id", CLIENT_ID), ("refresh_token", token.as_str())]);
        return endpoint.post(realm, &query);
    }
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    let url = format!("{realm}{}{query}", if realm.contains('?') { '&' } else { '?' });
    let authorization = match credentials {
        // As in containers/image: a token service that is sent half of them refuses what it gives to anybody.
        Some(Credentials::Password(user, password)) if !user.is_empty() && !password.is_empty() => {
            Some(basic_authorization(user, password))
        }
        _ => None,
    };
    endpoint.get(&url, &[], authorization.as_deref()).map(|(response, _)| response)
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
}

/// Parses a token service's response into an `Authorization` value.
///
/// # Errors
/// Fails if the response has no valid token.
pub fn parse_token(endpoint: &Endpoint, response: Response, realm: &Uri) -> Result<String, Fault> {
    let body = endpoint.read(response, realm, "a token", MAX_TOKEN_RESPONSE)?;
    let invalid = |why: &str| Fault::Token { realm: without_query(realm), why: why.to_owned() };
    // serde's error is dropped: it may quote the response, and so a token.
    let answer: TokenResponse = serde_json::from_slice(&body).map_err(|_| invalid("the answer is not JSON of that kind"))?;
    let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
    let token = token.ok_or_else(|| invalid("the answer has neither \"token\" nor \"access_token\""))?;
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(format!("Bearer {token}"))
    } else {
        Err(invalid("it contains characters that a header cannot have"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_challenges_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        for (values, expected) in [
            (
                &[r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull""#][..],
                bearer("https://auth.docker.io/token", Some("registry.docker.io")),
            ),
            (&[r#"bearer realm="https://a/t?x=1""#], bearer("https://a/t?x=1", None)),
            (&[r#"Basic realm="a, b""#], Some(Challenge::Basic)),
            (&[r#"Basic realm="a"#], None),
            (&["Negotiate"], None),
            (&["Bearer service=x"], None),
            (&["Basic realm=\"a\"", "Bearer realm=\"https://t\""], bearer("https://t", None)),
            (&["Basic realm=\"a\", Bearer realm=\"https://t\",service=\"s\""], bearer("https://t", Some("s"))),
            (&["NTLM TlRMTVNTUAACAAAA==, Bearer realm=\"https://t\",service=\"s\""], bearer("https://t", Some("s"))),
            (&["Bearer realm=\"https://t?a=b, c d\",service=s, Negotiate oYH/+-._~"], bearer("https://t?a=b, c d", Some("s"))),
            (&["Negotiate, NTLM TlRM, Basic realm=\"a \\\", NTLM b\""], Some(Challenge::Basic)),
            (&["Bearer realm=\"https://t\", error error"], bearer("https://t", None)),
            (&["NTLM TlRM=="], None),
            (&[], None),
        ] {
            assert_eq!(Challenge::parse(values), expected, "{values:?}");
        }
    }

    #[test]
    fn basic_authorization_matches_the_rfc() {
        assert_eq!(basic_authorization(b"Aladdin", b"open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }
}
