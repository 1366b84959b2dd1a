//! Access control: decides by a request's headers and client certificate whether it may proceed. By default every request may.
//! Credentials are never logged or stored.
//!
//! ```text
//! htpasswd ─▶ users ◀─ basic ◀─ Authorization ─▶ token ◀─ scope
//!                └──────────── challenge ───────────┘
//! ```

pub mod basic;
pub mod challenge;
pub mod client_certificate;
mod error;
pub mod htpasswd;
pub mod scope;
pub mod token;
pub mod users;

use std::time::Duration;

use http::request::Parts;

use super::http::error::RegistryError;
use super::listen::client::Client;
use basic::{Authorization, authorization};
use challenge::{Challenge, TokenFault};
use scope::{Grants, Scope};
use token::Signer;
use users::Users;

pub use error::AuthError;

/// The credentials that clients need.
#[derive(Debug, Default)]
pub enum Auth {
    /// None.
    #[default]
    Anonymous,
    /// A user's name and password.
    Basic(Box<Users>),
    /// A token of the endpoint `/token`.
    Token(Box<Tokens>),
}

/// Which clients get a token.
#[derive(Debug)]
pub struct Tokens {
    /// Users get one for their name and password.
    pub users: Option<Users>,
    /// Clients without credentials get one, too.
    pub anonymous: bool,
    /// Issues and verifies tokens.
    pub signer: Signer,
}

impl Auth {
    /// Access by tokens valid for `lifetime`, which `users` get, and clients without credentials if `anonymous`.
    ///
    /// # Errors
    /// Fails if no key can be generated.
    pub fn token(users: Option<Users>, anonymous: bool, lifetime: Duration) -> Result<Self, AuthError> {
        Ok(Self::Token(Box::new(Tokens { users, anonymous, signer: Signer::new(lifetime)? })))
    }

    /// Access by the names and passwords of `users`, or for every client if that is `None`.
    #[must_use]
    pub fn basic(users: Option<Users>) -> Self {
        users.map_or(Self::Anonymous, |users| Self::Basic(Box::new(users)))
    }

    /// Whether access is restricted. Shared caches must not store responses then.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !matches!(self, Self::Anonymous)
    }

    /// Checks that a request may use `scope`.
    ///
    /// # Errors
    /// 401 with a challenge; 429 if too many passwords wait to be verified.
    pub async fn admit(&self, scope: Scope<'_>, head: &Parts, client: &Client) -> Result<(), RegistryError> {
        match self {
            Self::Anonymous => Ok(()),
            _ if client.certified => Ok(()),
            Self::Basic(users) => Box::pin(verify(Some(users), head)).await,
            Self::Token(tokens) => {
                let refused = |fault| RegistryError::Unauthorized(self.challenge(Some(scope), fault, head, client));
                let Authorization::Bearer(token) = authorization(&head.headers) else { return Err(refused(None)) };
                let grants = tokens.signer.verify(token).ok_or_else(|| refused(Some(TokenFault::Invalid)))?;
                if grants.cover(scope) { Ok(()) } else { Err(refused(Some(TokenFault::Scope))) }
            }
        }
    }

    /// The challenge for `scope`, or for the token endpoint.
    pub(crate) fn challenge(
        &self,
        scope: Option<Scope<'_>>,
        fault: Option<TokenFault>,
        head: &Parts,
        client: &Client,
    ) -> Challenge {
        match (self, scope) {
            (Self::Token(_), Some(scope)) => Challenge::Bearer { realm: client.url(head, "/token"), scope: scope.name(), fault },
            _ => Challenge::Basic,
        }
    }

    /// Checks that a request may read the metrics. No token is valid for them, so users authenticate with their passwords.
    ///
    /// # Errors
    /// Fails like [`Auth::admit`].
    pub async fn admit_operator(&self, head: &Parts, client: &Client) -> Result<(), RegistryError> {
        match self {
            _ if client.certified => Ok(()),
            Self::Basic(users) => verify(Some(users), head).await,
            Self::Token(tokens) if tokens.users.is_some() => verify(tokens.users.as_ref(), head).await,
            Self::Anonymous | Self::Token(_) => Ok(()),
        }
    }

    /// The JSON response of the token endpoint.
    ///
    /// # Errors
    /// 404 if tokens are not in use; 401 and 429 like [`Auth::admit`]; 400 for too many scopes.
    pub async fn issue(&self, scopes: &[String], head: &Parts, client: &Client) -> Result<Vec<u8>, RegistryError> {
        let Self::Token(tokens) = self else { return Err(RegistryError::PathUnknown) };
        let is_anonymous = tokens.anonymous && authorization(&head.headers) == Authorization::None;
        if !is_anonymous && !client.certified {
            verify(tokens.users.as_ref(), head).await?;
        }
        Ok(tokens.signer.issue(Grants::for_scopes(scopes)?))
    }
}

/// Checks the request's name and password.
async fn verify(users: Option<&Users>, head: &Parts) -> Result<(), RegistryError> {
    let refused = Err(RegistryError::Unauthorized(Challenge::Basic));
    let (Authorization::Basic(credentials), Some(users)) = (authorization(&head.headers), users) else { return refused };
    match users.verify(credentials).await {
        Ok(true) => Ok(()),
        Ok(false) => refused,
        Err(users::Busy) => Err(RegistryError::Busy("too many passwords wait to be verified")),
    }
}
