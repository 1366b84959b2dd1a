//! Who may pull. A request's head and the scope it needs enter; a refusal that says how to be let in leaves, or nothing. Anybody may
//! by default. Credentials are never logged, shown or kept.
//!
//! ```text
//! htpasswd ─▶ users ◀─ basic ◀─ Authorization ─▶ token ◀─ scope
//!                └──────────── challenge ───────────┘
//! ```

pub mod basic;
pub mod challenge;
pub mod client_certificate;
pub mod htpasswd;
pub mod scope;
pub mod token;
pub mod users;

use http::request::Parts;

use super::http::error::RegistryError;
use super::listen::client::Client;
use basic::{Authorization, authorization};
use challenge::{Challenge, TokenFault};
use scope::{Grants, Scope};
use token::Signer;
use users::Users;

/// Why nobody can be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No random bytes.
    #[error("the machine gives no random bytes for a key")]
    Entropy,
}

/// How clients say who they are.
#[derive(Debug, Default)]
pub enum Auth {
    /// They need not.
    #[default]
    Anonymous,
    /// With a user's name and password.
    Basic(Box<Users>),
    /// With a token of the endpoint `/token`.
    Token(Box<Tokens>),
}

/// Who is given a token, and by what.
#[derive(Debug)]
pub struct Tokens {
    /// Users who are given one for their name and password.
    pub users: Option<Users>,
    /// Whether a client without credentials is given one, too.
    pub anonymous: bool,
    /// Makes and reads them.
    pub signer: Signer,
}

impl Auth {
    /// Whether there is anybody who may not pull: then what is served is not for caches that serve others.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !matches!(self, Self::Anonymous)
    }

    /// Lets a request that needs `scope` pass.
    ///
    /// # Errors
    /// 401, with what the client has to send; 429, where others' passwords take all the time.
    pub async fn admit(&self, scope: Scope<'_>, head: &Parts, client: &Client) -> Result<(), RegistryError> {
        match self {
            Self::Anonymous => Ok(()),
            _ if client.certified => Ok(()),
            Self::Basic(users) => verify(Some(users), head).await,
            Self::Token(tokens) => {
                let refused = |fault| {
                    let challenge = Challenge::Bearer { realm: client.url(head, "/token"), scope: scope.name(), fault };
                    RegistryError::Unauthorized(challenge)
                };
                let Authorization::Bearer(token) = authorization(&head.headers) else { return Err(refused(None)) };
                let grants = tokens.signer.read(token).ok_or_else(|| refused(Some(TokenFault::Invalid)))?;
                if grants.cover(scope) { Ok(()) } else { Err(refused(Some(TokenFault::Scope))) }
            }
        }
    }

    /// Lets a request pass that no token is given for: where users have passwords, with one of these.
    ///
    /// # Errors
    /// As [`Auth::admit`].
    pub async fn admit_operator(&self, head: &Parts, client: &Client) -> Result<(), RegistryError> {
        match self {
            _ if client.certified => Ok(()),
            Self::Basic(users) => verify(Some(users), head).await,
            Self::Token(tokens) if tokens.users.is_some() => verify(tokens.users.as_ref(), head).await,
            Self::Anonymous | Self::Token(_) => Ok(()),
        }
    }

    /// The JSON answer of the token endpoint.
    ///
    /// # Errors
    /// 404, where there are no tokens here; 401 and 429 as [`Auth::admit`]; 400 for too many scopes.
    pub async fn issue(&self, scopes: &[String], head: &Parts, client: &Client) -> Result<Vec<u8>, RegistryError> {
        let Self::Token(tokens) = self else { return Err(RegistryError::PathUnknown) };
        let without = tokens.anonymous && authorization(&head.headers) == Authorization::None;
        if !without && !client.certified {
            verify(tokens.users.as_ref(), head).await?;
        }
        Ok(tokens.signer.issue(Grants::for_scopes(scopes)?))
    }
}

/// Holds the request's name and password against the users'.
async fn verify(users: Option<&Users>, head: &Parts) -> Result<(), RegistryError> {
    let refused = Err(RegistryError::Unauthorized(Challenge::Basic));
    let (Authorization::Basic(credentials), Some(users)) = (authorization(&head.headers), users) else { return refused };
    match users.verify(credentials).await {
        Ok(true) => Ok(()),
        Ok(false) => refused,
        Err(users::Busy) => Err(RegistryError::Busy("too many passwords wait to be verified")),
    }
}
