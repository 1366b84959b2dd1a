//! What a registry wants to be shown (RFC 9110 section 11, and the token service of distribution's "Token Authentication
//! Specification"): a challenge read, a token fetched. Pure but for [`token`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use serde::Deserialize;

use super::client::{Client, Endpoint, Response};
use super::credentials::Credentials;
use super::error::Fault;
use super::url::{host_of, without_query};

/// Largest answer of a token service, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// How this program is called where token services ask.
const CLIENT_ID: &str = "localregistry";

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// With a user and a password.
    Basic,
    /// With a token from a service.
    Bearer {
        /// The service's URL.
        realm: String,
        /// What the registry calls itself there.
        service: Option<String>,
    },
}

impl Challenge {
    /// The challenge that is best understood among the values of `WWW-Authenticate`.
    #[must_use]
    pub fn parse(values: &[&str]) -> Option<Self> {
        let mut basic = None;
        for value in values {
            for challenge in http_auth::parse_challenges(value).unwrap_or_default() {
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

/// `Authorization` for a user with a password (RFC 7617).
#[must_use]
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Whether `realm` may be asked for tokens of the registry behind `endpoint`, perhaps with credentials.
///
/// # Errors
/// [`Fault::Realm`] where it is plain HTTP and not allowed to be, or where a registry over plain HTTP, which anybody on the way can be,
/// would have credentials sent to another host.
pub fn check_realm(client: &Client, endpoint: &Endpoint, realm: &Uri, with_credentials: bool) -> Result<(), Fault> {
    let registry = endpoint.base.split_once("://").map_or("", |(_, host)| host);
    let refused = |why| Fault::Realm { host: registry.to_owned(), realm: without_query(realm), why };
    let host = host_of(realm);
    if realm.scheme_str() != Some("https") && !client.may_be_plain(&host) {
        return Err(refused("which is plain HTTP"));
    }
    let name = registry.rsplit_once(':').map_or(registry, |(name, _)| name);
    if with_credentials && endpoint.base.starts_with("http://") && realm.host() != Some(name) && realm.host() != Some(registry) {
        return Err(refused("another host, and is itself plain HTTP"));
    }
    Ok(())
}

/// Asks `realm` for a token to pull from the repository at `path`, and gives the response for the caller to judge.
///
/// # Errors
/// Where no response comes.
pub fn ask(
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
        Some(Credentials::Password(user, password)) => Some(basic(user, password)),
        _ => None,
    };
    endpoint.get(&url, &[], authorization.as_deref()).map(|(response, _)| response)
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// `Authorization` by the token in a token service's answer.
///
/// # Errors
/// [`Fault::Token`] where there is none.
pub fn token(endpoint: &Endpoint, response: Response, realm: &Uri) -> Result<String, Fault> {
    let body = endpoint.read(response, realm, "a token", MAX_TOKEN)?;
    let none = |why: &str| Fault::Token { realm: without_query(realm), why: why.to_owned() };
    // What serde says may quote the answer, in which there may be a token.
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| none("the answer is not JSON of that kind"))?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| none("the answer has neither \"token\" nor \"access_token\""))?;
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(format!("Bearer {token}"))
    } else {
        Err(none("it has other characters than a header may have"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_as_registries_write_them() {
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
            (&[], None),
        ] {
            assert_eq!(Challenge::parse(values), expected, "{values:?}");
        }
    }

    #[test]
    fn basic_as_in_the_specification() {
        assert_eq!(basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }
}
