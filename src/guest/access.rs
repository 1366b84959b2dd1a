//! Sets up access control from the settings and the secrets in fw_cfg. Errors never contain a secret.

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

/// Why access control cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file that the launcher has to provide is missing.
    #[error("{setting}; give QEMU -fw_cfg name=opt/localregistry/{name},file=FILE; cannot read {path}")]
    Read {
        /// The setting that requires it.
        setting: &'static str,
        /// Its name in fw_cfg.
        name: &'static str,
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The CA of client certificates is invalid.
    #[error("fw_cfg opt/localregistry/{CLIENT_CA} cannot be used")]
    ClientCa(#[source] ClientCaError),
    /// Client certificates without TLS.
    #[error("auth.clientCertificate needs TLS and tls.mode is OFF; set it to GENERATE, SIGN or PROVIDED")]
    NoTls,
    /// The password file is invalid, or a key cannot be generated.
    #[error(transparent)]
    Auth(#[from] AuthError),
}

/// How clients authenticate.
///
/// # Errors
/// Fails if a required secret is missing or invalid.
pub fn auth(settings: &Settings) -> Result<Auth, AccessError> {
    auth_from(Path::new(FW_CFG), settings.auth)
}

/// The CA of client certificates, if the settings use them.
///
/// # Errors
/// Fails if it is missing or invalid, or if TLS is off.
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

fn users(folder: &Path, setting: &'static str) -> Result<Users, AccessError> {
    let text = read(folder, HTPASSWD, htpasswd::LARGEST, setting)?;
    Ok(Users::parse(&text, "fw_cfg opt/localregistry/htpasswd")?)
}

fn client_ca_from(folder: &Path, settings: &Settings) -> Result<Option<ClientCa>, AccessError> {
    let Some(presence) = settings.client_certificate else { return Ok(None) };
    if settings.tls == TlsMode::Off {
        return Err(AccessError::NoTls);
    }
    let pem = read(folder, CLIENT_CA, client_certificate::LARGEST, "auth.clientCertificate is set")?;
    ClientCa::parse(&pem, presence).map(Some).map_err(AccessError::ClientCa)
}

/// Reads at most one byte more than `limit`, so that the parser can reject larger files.
fn read(folder: &Path, name: &'static str, limit: u64, setting: &'static str) -> Result<Vec<u8>, AccessError> {
    let path = folder.join(name).join("raw");
    let failed = |source| AccessError::Read { setting, name, path: path.display().to_string(), source };
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
    use crate::config::{Origin, PartialConfig};

    const USER: &str = "anna:$2y$05$4A6A6Z5b9U0j3Yk8TjR0V.qzOaUQ1mF3yqJ4w2vXvWq0m9uX1r2aO\n";
    const LIFETIME: Duration = Duration::from_secs(300);

    /// A folder with these files in the layout of fw_cfg.
    fn fw_cfg(files: &[(&str, &str)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::create_dir_all(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("raw"), content).unwrap();
        }
        folder
    }

    fn settings(json: &str) -> Settings {
        PartialConfig::from_json(Origin::FwCfg, json.as_bytes()).unwrap().settings(Origin::FwCfg).unwrap()
    }

    #[test]
    fn each_mode_reads_its_secrets() {
        let (with, without) = (fw_cfg(&[("htpasswd", USER)]), fw_cfg(&[]));
        let token = |anonymous| AuthMode::Token { anonymous, lifetime: LIFETIME };
        assert!(matches!(auth_from(with.path(), AuthMode::Anonymous), Ok(Auth::Anonymous)), "unused files are not read");
        assert!(matches!(auth_from(with.path(), AuthMode::Basic), Ok(Auth::Basic(_))));
        let anonymous = |folder: &TempDir| match auth_from(folder.path(), token(true)) {
            Ok(Auth::Token(tokens)) => (tokens.users.is_some(), tokens.anonymous),
            other => panic!("{other:?}"),
        };
        assert_eq!((anonymous(&with), anonymous(&without)), ((true, true), (false, true)));
        for (mode, name) in [(AuthMode::Basic, "BASIC"), (token(false), "TOKEN")] {
            let error = auth_from(without.path(), mode).unwrap_err().to_string();
            let path = without.path().join("htpasswd/raw");
            let expected = format!(
                "auth.mode is {name}; give QEMU -fw_cfg name=opt/localregistry/htpasswd,file=FILE; cannot read {}",
                path.display()
            );
            assert_eq!(error, expected);
        }
        let bad = fw_cfg(&[("htpasswd", "anna")]);
        let error = auth_from(bad.path(), token(true)).unwrap_err().to_string();
        assert_eq!(error, "fw_cfg opt/localregistry/htpasswd:1: there is no colon; expected USER:HASH");
    }

    #[test]
    fn client_certificates_need_a_ca_and_tls() {
        let certificate = rcgen::generate_simple_self_signed(["ca.test".to_owned()]).unwrap().cert.pem();
        let (with, bad) = (fw_cfg(&[("client-ca.crt", &certificate)]), fw_cfg(&[("client-ca.crt", "nonsense")]));
        assert!(client_ca_from(with.path(), &settings("{}")).unwrap().is_none());
        let required = settings(r#"{"auth": {"clientCertificate": "REQUIRED"}}"#);
        assert!(client_ca_from(with.path(), &required).unwrap().is_some());
        let error = |folder: &TempDir, settings| client_ca_from(folder.path(), settings).unwrap_err().to_string();
        assert_eq!(error(&bad, &required), "fw_cfg opt/localregistry/client-ca.crt cannot be used");
        let plain = settings(r#"{"auth": {"clientCertificate": "OPTIONAL"}, "tls": {"mode": "OFF"}}"#);
        assert_eq!(
            error(&with, &plain),
            "auth.clientCertificate needs TLS and tls.mode is OFF; set it to GENERATE, SIGN or PROVIDED"
        );
        assert!(error(&fw_cfg(&[]), &required).starts_with("auth.clientCertificate is set; give QEMU -fw_cfg"));
    }
}
