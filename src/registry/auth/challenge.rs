//! The `WWW-Authenticate` header, which tells a client how to authenticate.

use std::fmt;

/// The realm of Basic, and the service name of tokens.
pub const REALM: &str = "localregistry";

/// How a client must authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// With a user's name and password (RFC 7617).
    Basic,
    /// With a token (RFC 6750; distribution token protocol, "Token Authentication Specification").
    Bearer {
        /// URL of the token endpoint.
        realm: String,
        /// The scope to request there.
        scope: Option<String>,
        /// What is wrong with the token of the request, if it has one.
        fault: Option<TokenFault>,
    },
}

/// What is wrong with a token (RFC 6750, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFault {
    /// It has expired, or is from another registry.
    Invalid,
    /// It is for another scope.
    Scope,
}

impl Challenge {
    /// The same as a sentence.
    #[must_use]
    pub fn detail(&self) -> &'static str {
        match self {
            Self::Basic => "send the name and password of a user",
            Self::Bearer { fault: None, .. } => "send a token; WWW-Authenticate says where to get one",
            Self::Bearer { fault: Some(TokenFault::Invalid), .. } => {
                "the token has expired or is from another registry; get a new one"
            }
            Self::Bearer { fault: Some(TokenFault::Scope), .. } => {
                "the token is for another scope; get one for the scope in WWW-Authenticate"
            }
        }
    }
}

impl fmt::Display for Challenge {
    /// The header's value. Nothing in it needs escaping: the realm contains a parsed host, the scope a parsed repository name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Bearer { realm, scope, fault } = self else { return write!(f, "Basic realm=\"{REALM}\"") };
        write!(f, "Bearer realm=\"{realm}\",service=\"{REALM}\"")?;
        if let Some(scope) = scope {
            write!(f, ",scope=\"{scope}\"")?;
        }
        match fault {
            None => Ok(()),
            Some(TokenFault::Invalid) => f.write_str(",error=\"invalid_token\""),
            Some(TokenFault::Scope) => f.write_str(",error=\"insufficient_scope\""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_challenge_has_its_header_value() {
        assert_eq!(Challenge::Basic.to_string(), r#"Basic realm="localregistry""#);
        let realm = || "https://r.test:5000/token".to_owned();
        let bearer = |scope: Option<&str>, fault| Challenge::Bearer { realm: realm(), scope: scope.map(str::to_owned), fault };
        let plain = r#"Bearer realm="https://r.test:5000/token",service="localregistry""#;
        assert_eq!(bearer(None, None).to_string(), plain);
        assert_eq!(
            bearer(Some("repository:a/b:pull"), Some(TokenFault::Invalid)).to_string(),
            format!(r#"{plain},scope="repository:a/b:pull",error="invalid_token""#)
        );
        assert_eq!(
            bearer(Some("registry:catalog:*"), Some(TokenFault::Scope)).to_string(),
            format!(r#"{plain},scope="registry:catalog:*",error="insufficient_scope""#)
        );
    }
}
