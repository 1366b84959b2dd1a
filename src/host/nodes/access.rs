//! Flags that say who may pull, of `serve` and `run`. File names enter; what the server, or the guest's config, needs leaves.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::guest_config::Setting;
use crate::host::support::files;
use crate::registry::auth::client_certificate::{self, ClientCa, ClientCaError, Presence};
use crate::registry::auth::htpasswd;
use crate::registry::auth::users::Users;
use crate::registry::auth::{Auth, AuthError};
use crate::registry::limits::TOKEN_LIFETIME;

/// What is said where certificates are asked for and there is no TLS.
pub const CLIENT_CA_WITHOUT_TLS: &str =
    "the argument '--client-ca <FILE>' cannot be used with '--tls off': certificates need TLS";

/// Who may pull; everybody by default.
///
/// ```
/// use localregistry::launch::Access;
///
/// // Users of a password file, by tokens; and clients with a certificate need neither.
/// let access = Access::default().htpasswd("users").token().optional_client_ca("nodes-ca.crt");
/// # let _ = access;
/// ```
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Access", group = clap::ArgGroup::new("admission").args(["htpasswd", "anonymous_pull"]).multiple(true))]
pub struct Access {
    /// Ask clients for a user's name and password: a file of lines USER:BCRYPT, as `htpasswd -B` makes them
    #[arg(long, value_name = "FILE")]
    htpasswd: Option<PathBuf>,

    /// Ask clients for tokens, which /token gives to the users of --htpasswd
    #[arg(long, requires = "admission")]
    token: bool,

    /// Give tokens to clients without credentials, too
    #[arg(long, requires = "token")]
    anonymous_pull: bool,

    /// Ask TLS clients for a certificate of this CA (PEM)
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,

    /// Whether clients need one
    #[arg(long, value_name = "WHETHER", value_enum, requires = "client_ca")]
    client_certificate: Option<Certificate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Certificate {
    /// Without one a client is refused
    Required,
    /// With one a client needs no name and password
    Optional,
}

impl Access {
    /// Asks clients for a user's name and password by HTTP's Basic scheme. The file has lines USER:BCRYPT, as `htpasswd -B` makes them,
    /// and at most 1 MiB.
    #[must_use]
    pub fn htpasswd(mut self, file: impl Into<PathBuf>) -> Self {
        self.htpasswd = Some(file.into());
        self
    }

    /// Asks clients for a token in place of the password (the distribution token protocol). The registry's `/token` gives one to each
    /// user of [`Access::htpasswd`]; it is good for 300 s.
    #[must_use]
    pub fn token(mut self) -> Self {
        self.token = true;
        self
    }

    /// Asks clients for a token as [`Access::token`] does, and gives one to clients without credentials, too.
    #[must_use]
    pub fn anonymous_pull(mut self) -> Self {
        self.anonymous_pull = true;
        self.token()
    }

    /// Refuses TLS clients without a certificate of the CA in this PEM file.
    #[must_use]
    pub fn required_client_ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.client_ca = Some(file.into());
        self.client_certificate = Some(Certificate::Required);
        self
    }

    /// Lets TLS clients with a certificate of the CA in this PEM file pull without a password or a token.
    #[must_use]
    pub fn optional_client_ca(self, file: impl Into<PathBuf>) -> Self {
        Self { client_certificate: Some(Certificate::Optional), ..self.required_client_ca(file) }
    }
}

/// Why nobody can be let in.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The CA of clients' certificates.
    #[error("{} cannot be used", .path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: ClientCaError,
    },
    /// Tokens that nobody can get.
    #[error("clients are asked for tokens, and nobody gets one: users are expected (a password file), or tokens for everybody")]
    NobodyGetsTokens,
    /// Certificates without TLS.
    #[error("clients are asked for certificates, and the registry serves plain HTTP: certificates need TLS")]
    ClientCaWithoutTls,
    /// The password file, or a key.
    #[error(transparent)]
    Auth(#[from] AuthError),
}

impl Access {
    /// Whether TLS clients are asked for certificates.
    #[must_use]
    pub fn has_client_ca(&self) -> bool {
        self.client_ca.is_some()
    }

    /// How the server here asks who a client is.
    ///
    /// # Errors
    /// [`AccessError`], where the password file cannot be used.
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

    /// Whether the files can be used: a guest that cannot use them says so only after its boot.
    ///
    /// # Errors
    /// [`AccessError`], where one cannot.
    pub fn check(&self) -> Result<(), AccessError> {
        self.auth()?;
        self.client_ca().map(drop)
    }

    fn users(&self) -> Result<Option<Users>, AccessError> {
        let Some(path) = &self.htpasswd else { return Ok(None) };
        Ok(Some(Users::parse(&read(path, htpasswd::LARGEST)?, &path.display().to_string())?))
    }

    /// The CA of clients' certificates.
    ///
    /// # Errors
    /// [`AccessError`], where the file cannot be used.
    pub fn client_ca(&self) -> Result<Option<ClientCa>, AccessError> {
        let Some(path) = &self.client_ca else { return Ok(None) };
        let presence = match self.client_certificate {
            Some(Certificate::Optional) => Presence::Optional,
            Some(Certificate::Required) | None => Presence::Required,
        };
        let parsed = ClientCa::parse(&read(path, client_certificate::LARGEST)?, presence);
        parsed.map(Some).map_err(|cause| AccessError::ClientCa { path: path.clone(), cause })
    }

    /// What a guest's config says of it.
    #[must_use]
    pub fn settings(&self) -> Vec<Setting> {
        let mode = match (self.token, self.anonymous_pull, &self.htpasswd) {
            (true, true, _) => Some("ANONYMOUS_TOKEN"),
            (true, false, _) => Some("TOKEN"),
            (false, _, Some(_)) => Some("BASIC"),
            (false, _, None) => None,
        };
        let certificate = self.client_ca.as_ref().map(|_| match self.client_certificate {
            Some(Certificate::Optional) => "OPTIONAL",
            Some(Certificate::Required) | None => "REQUIRED",
        });
        let mode = mode.map(|mode| Setting::new(&["auth", "mode"], mode));
        mode.into_iter().chain(certificate.map(|value| Setting::new(&["auth", "clientCertificate"], value))).collect()
    }

    /// The files that a guest is given beside its config, by their names in fw_cfg.
    #[must_use]
    pub fn secrets(&self) -> Vec<(&'static str, PathBuf)> {
        let files = [("opt/localregistry/htpasswd", &self.htpasswd), ("opt/localregistry/client-ca.crt", &self.client_ca)];
        files.into_iter().filter_map(|(name, path)| Some((name, path.clone()?))).collect()
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, AccessError> {
    files::read(path, limit).map_err(|cause| AccessError::Read { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::guest_config::GuestConfig;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        access: Access,
    }

    fn access(flags: &str) -> Access {
        Line::try_parse_from(["x"].into_iter().chain(flags.split_whitespace())).unwrap().access
    }

    fn config(flags: &str) -> String {
        let mut config = GuestConfig::default();
        access(flags).settings().iter().for_each(|setting| config.set(setting).unwrap());
        config.to_json()
    }

    #[test]
    fn a_guest_is_told_what_the_flags_say() {
        for (flags, told) in [
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
            assert_eq!(config(flags), told, "{flags}");
        }
        let secrets = access("--htpasswd u --client-ca c").secrets();
        let named = |name, file: &str| (name, PathBuf::from(file));
        assert_eq!(secrets, [named("opt/localregistry/htpasswd", "u"), named("opt/localregistry/client-ca.crt", "c")]);
        assert!(secrets.iter().all(|(name, _)| name.len() <= 55), "as long as fw_cfg's names may be");
    }

    #[test]
    fn flags_that_need_another() {
        for (flags, missing) in [
            ("--token", "<--htpasswd <FILE>|--anonymous-pull>"),
            ("--anonymous-pull", "--token"),
            ("--client-certificate optional", "--client-ca <FILE>"),
        ] {
            let error = Line::try_parse_from(["x"].into_iter().chain(flags.split_whitespace())).unwrap_err().to_string();
            let expected = format!("error: the following required arguments were not provided:\n  {missing}\n");
            assert!(error.starts_with(&expected), "{flags}: {error}");
        }
    }

    #[test]
    fn files_that_cannot_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("users"), "anna:secret\n").unwrap();
        std::fs::write(path("ca"), "nonsense").unwrap();
        let say = |error: AccessError| crate::text::chain(&error);
        let error = say(access(&format!("--htpasswd {}", path("none"))).auth().unwrap_err());
        assert_eq!(error, format!("cannot read {}: No such file or directory (os error 2)", path("none")));
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
        let expected = "cannot be used: the given client CA is not PEM with one or more CERTIFICATE blocks";
        assert_eq!(error, format!("{} {expected}", path("ca")));
    }
}
