//! Issues and verifies tokens. A token is its claims and their HMAC, by a key that this process generates.
//!
//! Tokens are opaque to clients (token protocol, "Requesting a Token"), and no other program reads them, so they are not JWTs. Their
//! lifetime is measured by the monotonic clock: setting the machine's clock neither ends nor prolongs it.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::SystemRandom;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::error::AuthError;
use super::scope::Grants;

/// Issues tokens, and verifies those that it issued.
pub struct Signer {
    key: hmac::Key,
    started: Instant,
    lifetime: Duration,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    /// When the token expires, in milliseconds after the signer's start.
    end: u64,
    grants: Grants,
}

/// The response to a token request (token protocol, "Token Response Fields").
#[derive(Serialize)]
struct TokenResponse {
    token: String,
    access_token: String,
    expires_in: u64,
    issued_at: String,
}

impl Signer {
    /// A signer with a new random key. Its tokens are valid for `lifetime`.
    ///
    /// # Errors
    /// Fails if no key can be generated.
    pub fn new(lifetime: Duration) -> Result<Self, AuthError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| AuthError::Entropy)?;
        Ok(Self { key, started: Instant::now(), lifetime })
    }

    /// The JSON response with a new token for `grants`.
    #[must_use]
    pub fn issue(&self, grants: Grants) -> Vec<u8> {
        let end = millis(self.started.elapsed() + self.lifetime);
        let token = self.sign(&serde_json::to_vec(&Claims { end, grants }).unwrap_or_default());
        let issued_at = rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        let expires_in = self.lifetime.as_secs();
        serde_json::to_vec(&TokenResponse { access_token: token.clone(), token, expires_in, issued_at }).unwrap_or_default()
    }

    /// The grants of a token. `None` if it has expired or is not from this signer.
    #[must_use]
    pub fn verify(&self, token: &str) -> Option<Grants> {
        let (claims, signature) = token.split_once('.')?;
        let (claims, signature) = (URL_SAFE_NO_PAD.decode(claims).ok()?, URL_SAFE_NO_PAD.decode(signature).ok()?);
        hmac::verify(&self.key, &claims, &signature).ok()?;
        let claims: Claims = serde_json::from_slice(&claims).ok()?;
        (millis(self.started.elapsed()) < claims.end).then_some(claims.grants)
    }

    fn sign(&self, claims: &[u8]) -> String {
        let signature = hmac::sign(&self.key, claims);
        format!("{}.{}", URL_SAFE_NO_PAD.encode(claims), URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Formats a Unix time in seconds as RFC 3339 does. A time after the year 9999 becomes 1970.
fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let time = time.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (hour, minute, second) = time.to_hms();
    format!("{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", time.year(), u8::from(time.month()), time.day())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issue(signer: &Signer, grants: &Grants) -> serde_json::Value {
        serde_json::from_slice(&signer.issue(grants.clone())).unwrap()
    }

    #[test]
    fn issued_token_carries_its_grants() {
        let signer = Signer::new(Duration::from_secs(300)).unwrap();
        let grants = Grants::for_scopes(&["repository:x:pull".into()]).unwrap();
        let answer = issue(&signer, &grants);
        assert_eq!(signer.verify(answer["token"].as_str().unwrap()), Some(grants));
        assert_eq!((&answer["access_token"], &answer["expires_in"]), (&answer["token"], &300.into()));
        let shape: String =
            answer["issued_at"].as_str().unwrap().chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "0000-00-00T00:00:00Z");
        assert_eq!(format!("{signer:?}"), "Signer { lifetime: 300s, .. }");
    }

    #[test]
    fn forged_tokens_are_refused() {
        let (signer, other) = (Signer::new(Duration::from_secs(300)).unwrap(), Signer::new(Duration::from_secs(300)).unwrap());
        let grants = Grants::default();
        let good = issue(&signer, &grants)["token"].as_str().unwrap().to_owned();
        assert_eq!(signer.verify(&good), Some(grants.clone()));
        assert_eq!(other.verify(&good), None, "from another process");
        let (claims, signature) = good.split_once('.').unwrap();
        let more = URL_SAFE_NO_PAD.encode(r#"{"end":18446744073709551615,"grants":{"pull":["x"],"catalog":true}}"#);
        for forged in [
            String::new(),
            ".".into(),
            claims.into(),
            format!("{claims}."),
            format!("{more}.{signature}"),
            format!("{claims}.{}", URL_SAFE_NO_PAD.encode([0; 32])),
            format!("{good}A"),
            format!("{good}.{signature}"),
        ] {
            assert_eq!(signer.verify(&forged), None, "{forged:?}");
        }
        let signed_nonsense = signer.sign(b"nonsense");
        assert_eq!(signer.verify(&signed_nonsense), None);
    }

    #[test]
    fn times_are_formatted_by_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_793_491_200, "2026-11-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    #[test]
    fn expired_token_is_refused() {
        let signer = Signer::new(Duration::ZERO).unwrap();
        let token = issue(&signer, &Grants::default())["token"].as_str().unwrap().to_owned();
        assert_eq!(signer.verify(&token), None);
    }
}
