//! The flags of `serve` and `run` that control who may pull.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::guest_config::Setting;
use crate::host::support::files;
use crate::registry::auth::client_certificate::{self, ClientCa, ClientCaError, Presence};
use crate::registry::auth::htpasswd;
use crate::registry::auth::users::Users;
use crate::registry::auth::{Auth, AuthError};
use crate::registry::limits::TOKEN_LIFETIME;

/// What errors call the file of `--htpasswd`.
pub(crate) const PASSWORD_FILE: &str = "password file";
/// Error: client certificates without TLS.
pub const CLIENT_CA_WITHOUT_TLS: &str =
    "the argument '--client-ca <FILE>' cannot be used with '--tls off': client certificates need TLS";

/// Who may pull. By default everybody may.
///
/// ```
/// use localregistry::launch::Access;
///
/// // Users of a password file get tokens. Clients with a certificate need neither.
/// let access = Access::default().htpasswd("users").token().optional_client_ca("nodes-ca.crt");
/// # let _ = access;
/// ```
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Access", group = clap::ArgGroup::new("admission").args(["htpasswd", "anonymous_pull"]).multiple(true))]
pub struct Access {
    /// Require a user name and password; the file has lines USER:BCRYPT, as `htpasswd -B` writes them
    #[arg(long, value_name = "FILE")]
    htpasswd: Option<PathBuf>,

    /// Require tokens, which /token issues to the users of --htpasswd
    #[arg(long, requires = "admission")]
    token: bool,

    /// Issue tokens to clients without credentials too
    #[arg(long, requires = "token")]
    anonymous_pull: bool,

    /// Request certificates signed by this CA (PEM) from TLS clients
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,

    /// Whether a client certificate is required [default: required]
    #[arg(long, value_name = "WHETHER", value_enum, requires = "client_ca")]
    client_certificate: Option<ClientCertificate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ClientCertificate {
    /// Reject clients without a certificate
    Required,
    /// Clients with a certificate need no password or token
    Optional,
}

impl Access {
    /// Requires a user name and password (HTTP Basic). The file has lines USER:BCRYPT, as `htpasswd -B` writes them, and at most
    /// 1 MiB.
    #[must_use]
    pub fn htpasswd(mut self, file: impl Into<PathBuf>) -> Self {
        self.htpasswd = Some(file.into());
        self
    }

    /// Requires a token instead of the password (distribution token protocol). The registry's `/token` issues one to each user of
    /// [`Access::htpasswd`]. It is valid for 300 s.
    #[must_use]
    pub fn token(mut self) -> Self {
        self.token = true;
        self
    }

    /// As [`Access::token`], but also issues tokens to clients without credentials.
    #[must_use]
    pub fn anonymous_pull(mut self) -> Self {
        self.anonymous_pull = true;
        self.token()
    }

    /// Rejects TLS clients without a certificate of the CA in this PEM file.
    #[must_use]
    pub fn required_client_ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.client_ca = Some(file.into());
        self.client_certificate = Some(ClientCertificate::Required);
        self
    }

    /// TLS clients with a certificate of the CA in this PEM file need no password or token.
    #[must_use]
    pub fn optional_client_ca(self, file: impl Into<PathBuf>) -> Self {
        Self { client_certificate: Some(ClientCertificate::Optional), ..self.required_client_ca(file) }
    }
}

/// Why access control cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file cannot be read.
    #[error("cannot read the {what} {}", .path.display())]
    Read {
        /// Password file or client CA.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// The client CA is invalid.
    #[error("cannot use the client CA {}", .path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: ClientCaError,
    },
    /// Tokens are required, but no client can get one.
    #[error("clients need tokens, but none can get one: expected users (a password file), or anonymous tokens")]
    NobodyGetsTokens,
    /// Client certificates are requested without TLS.
    #[error("clients need certificates, but the registry serves plain HTTP: client certificates need TLS")]
    ClientCaWithoutTls,
    /// The password file is invalid, or a key cannot be generated.
    #[error(transparent)]
    Auth(#[from] AuthError),
}

impl Access {
    /// Whether certificates are requested from TLS clients.
    #[must_use]
    pub fn has_client_ca(&self) -> bool {
        self.client_ca.is_some()
    }

    /// The access control for a server in this process.
    ///
    /// # Errors
    /// Fails if the password file is invalid, or if tokens are required and no client can get one.
    pub fn auth(&self) -> Result<Auth, AccessError> {
        let users = self.users()?;
        if self.token {
            if users.is_none() && !self.anonymous_pull {
                return Err(AccessError::NobodyGetsTokens);
            }
            return Ok(Auth::token(users, self.anonymous_pull, TOKEN_LIFETIME)?);
        }
        Ok(Auth::basic(users))
    }

    /// Checks the files. A guest would report an error only after its boot.
    ///
    /// # Errors
    /// Fails if a file is invalid.
    pub fn check(&self) -> Result<(), AccessError> {
        self.auth()?;
        self.client_ca().map(drop)
    }

    fn users(&self) -> Result<Option<Users>, AccessError> {
        let Some(path) = &self.htpasswd else { return Ok(None) };
        Ok(Some(Users::parse(&read(PASSWORD_FILE, path, htpasswd::LARGEST)?, &path.display().to_string())?))
    }

    /// The CA of client certificates.
    ///
    /// # Errors
    /// Fails if the file is invalid.
    pub fn client_ca(&self) -> Result<Option<ClientCa>, AccessError> {
        let Some(path) = &self.client_ca else { return Ok(None) };
        let presence = match self.client_certificate {
            Some(ClientCertificate::Optional) => Presence::Optional,
            Some(ClientCertificate::Required) | None => Presence::Required,
        };
        let parsed = ClientCa::parse(&read("client CA", path, client_certificate::LARGEST)?, presence);
        parsed.map(Some).map_err(|cause| AccessError::ClientCa { path: path.clone(), cause })
    }

    /// The flags as settings of the guest's config.
    #[must_use]
    pub fn settings(&self) -> Vec<Setting> {
        let mode = match (self.token, self.anonymous_pull, &self.htpasswd) {
            (true, true, _) => Some("ANONYMOUS_TOKEN"),
            (true, false, _) => Some("TOKEN"),
            (false, _, Some(_)) => Some("BASIC"),
            (false, _, None) => None,
        };
        let certificate = self.client_ca.as_ref().map(|_| match self.client_certificate {
            Some(ClientCertificate::Optional) => "OPTIONAL",
            Some(ClientCertificate::Required) | None => "REQUIRED",
        });
        let mode = mode.map(|mode| Setting::new(&["auth", "mode"], mode));
        mode.into_iter().chain(certificate.map(|value| Setting::new(&["auth", "clientCertificate"], value))).collect()
    }

    /// The files for a guest, by their names in fw_cfg.
    #[must_use]
    pub fn secrets(&self) -> Vec<(&'static str, PathBuf)> {
        let files = [("opt/localregistry/htpasswd", &self.htpasswd), ("opt/localregistry/client-ca.crt", &self.client_ca)];
        files.into_iter().filter_map(|(name, path)| Some((name, path.clone()?))).collect()
    }
}

fn read(what: &'static str, path: &Path, limit: u64) -> Result<Vec<u8>, AccessError> {
    files::read(path, limit).map_err(|cause| AccessError::Read { what, path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::guest_config::GuestConfig;

    #[derive(Debug, Parser)]
    struct TestCli {
        #[command(flatten)]
        access: Access,
    }

    fn access(flags: &str) -> Access {
        TestCli::try_parse_from(["x"].into_iter().chain(flags.split_whitespace())).unwrap().access
    }

    fn config(flags: &str) -> String {
        let mut config = GuestConfig::default();
        access(flags).settings().iter().for_each(|setting| config.set(setting).unwrap());
        config.to_json()
    }

    #[test]
    fn flags_become_settings_of_the_guest_config() {
        for (flags, expected) in [
            ("", "{}"),
            ("--htpasswd u", r#"{"auth":{"mode":"BASIC"}}"#),
            ("--htpasswd u --token", r#"{"auth":{"mode":"TOKEN"}}"#),
            ("--token --anonymous-pull", r#"{"auth":{"mode":"ANONYMOUS_TOKEN"}}"#),
            ("--htpasswd u --token --anonymous-pull", r#"{"auth":{"mode":"ANONYMOUS_TOKEN"}}"#),
            ("--client-ca c", r#"{"auth":{"clientCertificate":"REQUIRED"}}"#),
            (
                "--client-ca c --client-certificate optional --htpasswd u",
                r#"{"auth":{"clientCertificate":"OPTIONAL","mode":"BASIC"}}"#,
            ),
        ] {
            assert_eq!(config(flags), expected, "{flags}");
        }
        let secrets = access("--htpasswd u --client-ca c").secrets();
        let named = |name, file: &str| (name, PathBuf::from(file));
        assert_eq!(secrets, [named("opt/localregistry/htpasswd", "u"), named("opt/localregistry/client-ca.crt", "c")]);
        assert!(secrets.iter().all(|(name, _)| name.len() <= 55), "the limit of fw_cfg names");
    }

    #[test]
    fn flags_without_a_required_flag_are_rejected() {
        for (flags, missing) in [
            ("--token", "<--htpasswd <FILE>|--anonymous-pull>"),
            ("--anonymous-pull", "--token"),
            ("--client-certificate optional", "--client-ca <FILE>"),
        ] {
            let error = TestCli::try_parse_from(["x"].into_iter().chain(flags.split_whitespace())).unwrap_err().to_string();
            let expected = format!("error: the following required arguments were not provided:\n  {missing}\n");
            assert!(error.starts_with(&expected), "{flags}: {error}");
        }
    }

    #[test]
    fn invalid_files_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("users"), "anna:secret\n").unwrap();
        std::fs::write(path("ca"), "nonsense").unwrap();
        let say = |error: AccessError| crate::text::chain(&error);
        let error = say(access(&format!("--htpasswd {}", path("none"))).auth().unwrap_err());
        assert_eq!(error, format!("cannot read the password file {}: No such file or directory (os error 2)", path("none")));
        let error = say(access(&format!("--htpasswd {}", path("users"))).auth().unwrap_err());
        assert_eq!(
            error,
            format!(
                "{}:1: the hash of \"anna\" is not bcrypt; expected a hash that starts with $2y$, $2b$ or $2a$, as `htpasswd -B` \
                 makes it",
                path("users")
            )
        );
        let error = say(access(&format!("--client-ca {}", path("ca"))).client_ca().unwrap_err());
        let expected = "the given client CA is not PEM with one or more CERTIFICATE blocks";
        assert_eq!(error, format!("cannot use the client CA {}: {expected}", path("ca")));
    }
}
