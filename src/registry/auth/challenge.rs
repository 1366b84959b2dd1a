//! What a client without access is told: how to get it (`WWW-Authenticate`). Pure.

use std::fmt;

/// The protection space, and the service of tokens.
pub const REALM: &str = "localregistry";

/// How a client gets what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// By sending a user's name and password (RFC 7617).
    Basic,
    /// By sending a token (RFC 6750; distribution token protocol, "Token Authentication Specification").
    Bearer {
        /// URL of the token endpoint.
        realm: String,
        /// What to ask of it.
        scope: Option<String>,
        /// What is wrong with the token that was sent.
        fault: Option<TokenFault>,
    },
}

/// What is wrong with a token (RFC 6750, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFault {
    /// It is not of this registry, or its time is over.
    Invalid,
    /// It was given for something else.
    Scope,
}

impl Challenge {
    /// The same in words.
    #[must_use]
    pub fn detail(&self) -> &'static str {
        match self {
            Self::Basic => "send a user's name and password that the registry was given",
            Self::Bearer { fault: None, .. } => "send a token; WWW-Authenticate says where one is given",
            Self::Bearer { fault: Some(TokenFault::Invalid), .. } => {
                "the token is over, or is not of this registry; ask for a new one"
            }
            Self::Bearer { fault: Some(TokenFault::Scope), .. } => {
                "the token was given for something else; ask for one with the scope that WWW-Authenticate names"
            }
        }
    }
}

impl fmt::Display for Challenge {
    /// The header's value. Nothing in it needs escaping: a realm holds a parsed host, a scope a parsed repository.
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
    fn the_headers_value() {
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
