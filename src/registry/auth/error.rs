//! Why access control cannot be set up.

use super::htpasswd::HtpasswdError;

/// Why access control cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The kernel returned no random bytes.
    #[error("cannot get random bytes for a key")]
    Entropy,
    /// The password file.
    #[error(transparent)]
    Htpasswd(#[from] HtpasswdError),
}
