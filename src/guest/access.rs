//! Who may pull. What enters are the settings and the secrets that the launcher gives through fw_cfg; what leaves is what the registry
//! lets in by. A secret never leaves, not even in an error.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::registry::auth::client_certificate::{self, ClientCa, ClientCaError};
use crate::registry::auth::htpasswd;
use crate::registry::auth::users::Users;
use crate::registry::auth::{Auth, AuthError};

use crate::config::FW_CFG;
use crate::config::settings::{AuthMode, Settings, TlsMode};

const HTPASSWD: &str = "htpasswd";
const CLIENT_CA: &str = "client-ca.crt";

/// Secrets that nobody can be let in by.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file that the launcher should have given.
    #[error("{wanted}; give QEMU -fw_cfg name=opt/localregistry/{name},file=…; read {path}")]
    Read {
        /// What in the config wants it.
        wanted: &'static str,
        /// Its name in fw_cfg.
        name: &'static str,
        /// Where it was looked for.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The CA of clients' certificates.
    #[error("fw_cfg opt/localregistry/{CLIENT_CA} cannot be used")]
    ClientCa(#[source] ClientCaError),
    /// Certificates without TLS.
    #[error("auth.clientCertificate asks for certificates and tls.mode is OFF; expected GENERATE, SIGN or PROVIDED with it")]
    NoTls,
    /// The password file, or a key.
    #[error(transparent)]
    Auth(#[from] AuthError),
}

/// How the registry asks who a client is.
///
/// # Errors
/// When a secret that the settings ask for is missing or bad.
pub fn auth(settings: &Settings) -> Result<Auth, AccessError> {
    auth_from(Path::new(FW_CFG), settings.auth)
}

/// The CA of clients' certificates, where the settings ask for certificates.
///
/// # Errors
/// When it is missing or bad, or there is no TLS.
pub fn client_ca(settings: &Settings) -> Result<Option<ClientCa>, AccessError> {
    client_ca_from(Path::new(FW_CFG), settings)
}

fn auth_from(folder: &Path, mode: AuthMode) -> Result<Auth, AccessError> {
    Ok(match mode {
        AuthMode::Anonymous => Auth::Anonymous,
        AuthMode::Basic => Auth::basic(Some(users(folder, "auth.mode is BASIC")?)),
        AuthMode::Token { anonymous, lifetime } => {
            let users = match anonymous {
                false => Some(users(folder, "auth.mode is TOKEN")?),
                true if !folder.join(HTPASSWD).exists() => None,
                true => Some(users(folder, "auth.mode is ANONYMOUS_TOKEN")?),
            };
            Auth::token(users, anonymous, lifetime)?
        }
    })
}

fn users(folder: &Path, wanted: &'static str) -> Result<Users, AccessError> {
    let text = read(folder, HTPASSWD, htpasswd::LARGEST, wanted)?;
    Ok(Users::parse(&text, "fw_cfg opt/localregistry/htpasswd")?)
}

fn client_ca_from(folder: &Path, settings: &Settings) -> Result<Option<ClientCa>, AccessError> {
    let Some(presence) = settings.client_certificate else { return Ok(None) };
    if settings.tls == TlsMode::Off {
        return Err(AccessError::NoTls);
    }
    let pem = read(folder, CLIENT_CA, client_certificate::LARGEST, "auth.clientCertificate asks for certificates")?;
    ClientCa::parse(&pem, presence).map(Some).map_err(AccessError::ClientCa)
}

/// One byte more than `limit` at most: enough for whoever parses it to say that it is too large.
fn read(folder: &Path, name: &'static str, limit: u64, wanted: &'static str) -> Result<Vec<u8>, AccessError> {
    let path = folder.join(name).join("raw");
    let failed = |source| AccessError::Read { wanted, name, path: path.display().to_string(), source };
    let mut content = Vec::new();
    File::open(&path).and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut content)).map_err(failed)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::config::{Layer, Origin};

    const USER: &str = "anna:$2y$05$4A6A6Z5b9U0j3Yk8TjR0V.qzOaUQ1mF3yqJ4w2vXvWq0m9uX1r2aO\n";
    const LIFETIME: Duration = Duration::from_secs(300);

    /// A folder as fw_cfg has it, with these files.
    fn fw_cfg(files: &[(&str, &str)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::create_dir_all(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("raw"), content).unwrap();
        }
        folder
    }

    fn settings(json: &str) -> Settings {
        Layer::from_json(Origin::FwCfg, json.as_bytes()).unwrap().settings(Origin::FwCfg).unwrap()
    }

    #[test]
    fn each_mode_takes_its_secrets() {
        let (with, without) = (fw_cfg(&[("htpasswd", USER)]), fw_cfg(&[]));
        let token = |anonymous| AuthMode::Token { anonymous, lifetime: LIFETIME };
        assert!(matches!(auth_from(with.path(), AuthMode::Anonymous), Ok(Auth::Anonymous)), "what is not asked for is not read");
        assert!(matches!(auth_from(with.path(), AuthMode::Basic), Ok(Auth::Basic(_))));
        let anonymous = |folder: &TempDir| match auth_from(folder.path(), token(true)) {
            Ok(Auth::Token(tokens)) => (tokens.users.is_some(), tokens.anonymous),
            other => panic!("{other:?}"),
        };
        assert_eq!((anonymous(&with), anonymous(&without)), ((true, true), (false, true)));
        for (mode, name) in [(AuthMode::Basic, "BASIC"), (token(false), "TOKEN")] {
            let error = auth_from(without.path(), mode).unwrap_err().to_string();
            let path = without.path().join("htpasswd/raw");
            let expected =
                format!("auth.mode is {name}; give QEMU -fw_cfg name=opt/localregistry/htpasswd,file=…; read {}", path.display());
            assert_eq!(error, expected);
        }
        let bad = fw_cfg(&[("htpasswd", "anna")]);
        let error = auth_from(bad.path(), token(true)).unwrap_err().to_string();
        assert_eq!(error, "fw_cfg opt/localregistry/htpasswd:1: there is no colon; expected USER:HASH");
    }

    #[test]
    fn client_certificates_want_a_ca_and_tls() {
        let certificate = rcgen::generate_simple_self_signed(["ca.test".to_owned()]).unwrap().cert.pem();
        let (with, bad) = (fw_cfg(&[("client-ca.crt", &certificate)]), fw_cfg(&[("client-ca.crt", "nonsense")]));
        assert!(client_ca_from(with.path(), &settings("{}")).unwrap().is_none());
        let required = settings(r#"{"auth": {"clientCertificate": "REQUIRED"}}"#);
        assert!(client_ca_from(with.path(), &required).unwrap().is_some());
        let say = |folder: &TempDir, settings| client_ca_from(folder.path(), settings).unwrap_err().to_string();
        assert_eq!(say(&bad, &required), "fw_cfg opt/localregistry/client-ca.crt cannot be used");
        let plain = settings(r#"{"auth": {"clientCertificate": "OPTIONAL"}, "tls": {"mode": "OFF"}}"#);
        assert_eq!(
            say(&with, &plain),
            "auth.clientCertificate asks for certificates and tls.mode is OFF; expected GENERATE, SIGN or PROVIDED with it"
        );
        assert!(say(&fw_cfg(&[]), &required).starts_with("auth.clientCertificate asks for certificates; give QEMU -fw_cfg"));
    }
}
