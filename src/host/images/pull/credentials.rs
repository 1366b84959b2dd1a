//! Looks up the user's credentials for a registry in docker's `config.json`, its credential helpers, and podman's `auth.json`. Secrets
//! are never printed or stored.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use docker_credential::{CredentialRetrievalError, DockerCredential};

/// Docker's key for the credentials of docker.io.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user and a password.
    Password(String, String),
    /// A refresh token, which a token service exchanges for access tokens.
    IdentityToken(String),
}

/// Why configured credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("cannot read the credentials in {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not docker's JSON.
    #[error("the credentials in {} cannot be read: the JSON of docker's config.json is expected", .0.display())]
    Json(PathBuf),
    /// The entry is damaged.
    #[error("the entry for {host} in {} is damaged: base64 of user:password is expected in \"auth\"", file.display())]
    Entry {
        /// The registry.
        host: String,
        /// The file.
        file: PathBuf,
    },
    /// The credential helper fails. Its output may be a secret and is not shown.
    #[error("the credential helper that {} names for {host} {what}; try it with `echo {host} | docker-credential-NAME get`", file.display())]
    Helper {
        /// The registry.
        host: String,
        /// The file that names it.
        file: PathBuf,
        /// What is wrong with the helper.
        what: &'static str,
    },
}

/// The files to search, in this order. They need not exist.
#[must_use]
pub fn files(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let docker = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")));
    let podman = set("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json"));
    set("REGISTRY_AUTH_FILE").into_iter().chain(docker.map(|folder| folder.join("config.json"))).chain(podman).collect()
}

/// Finds the credentials for `host` in the first of `files` that has any, and returns that file too.
///
/// # Errors
/// Fails if a file exists and cannot be used.
pub fn find(host: &str, files: &[PathBuf]) -> Result<Option<(Credentials, PathBuf)>, CredentialsError> {
    let keys: &[&str] = if host == "docker.io" { &[DOCKER_HUB, "docker.io"] } else { &[host] };
    for file in files {
        for key in keys {
            let opened = match File::open(file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(|source| CredentialsError::Read { file: file.clone(), source })?,
            };
            let found = docker_credential::get_credential_from_reader(opened, key);
            if let Some(credentials) = interpret(found, host, file)? {
                return Ok(Some((credentials, file.clone())));
            }
        }
    }
    Ok(None)
}

fn interpret(
    found: Result<DockerCredential, CredentialRetrievalError>,
    host: &str,
    file: &std::path::Path,
) -> Result<Option<Credentials>, CredentialsError> {
    let helper = |what| Err(CredentialsError::Helper { host: host.to_owned(), file: file.to_owned(), what });
    match found {
        Ok(DockerCredential::UsernamePassword(user, password)) if user.is_empty() && password.is_empty() => Ok(None),
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(Some(Credentials::Password(user, password))),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Credentials::IdentityToken(token))),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        // This message is part of the helpers' protocol.
        Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("credentials not found") => Ok(None),
        // A helper that exits before it has read the host gives the same error as a missing one.
        Err(CredentialRetrievalError::HelperFailure { .. } | CredentialRetrievalError::HelperCommunicationError) => {
            helper("is not there or fails")
        }
        Err(CredentialRetrievalError::MalformedHelperResponse) => helper("answers with something else than its protocol's JSON"),
        Err(CredentialRetrievalError::CredentialDecodingError | CredentialRetrievalError::CredentialMismatchError) => {
            Err(CredentialsError::Entry { host: host.to_owned(), file: file.to_owned() })
        }
        Err(CredentialRetrievalError::ConfigNotFound | CredentialRetrievalError::ConfigReadError) => {
            Err(CredentialsError::Json(file.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn found(config: &str, host: &str) -> Result<Option<(String, String)>, String> {
        let dir = tempfile::tempdir().unwrap();
        let (none, file) = (dir.path().join("none"), dir.path().join("config.json"));
        fs::write(&file, config).unwrap();
        let found = find(host, &[none, file.clone()]).map_err(|e| e.to_string().replace(file.to_str().unwrap(), "FILE"))?;
        Ok(found.map(|(credentials, from)| {
            assert_eq!(from, file);
            match credentials {
                Credentials::Password(user, password) => (user, password),
                Credentials::IdentityToken(token) => ("identity".to_owned(), token),
            }
        }))
    }

    #[test]
    fn finds_credentials_under_docker_s_keys() {
        let anna = Ok(Some(("anna".to_owned(), "secret:1".to_owned())));
        // anna:secret:1
        for (config, host) in [
            (r#"{"auths":{"quay.io":{"auth":"YW5uYTpzZWNyZXQ6MQ=="}}}"#, "quay.io"),
            (r#"{"auths":{"https://quay.io/v2/":{"auth":"YW5uYTpzZWNyZXQ6MQ=="}}}"#, "quay.io"),
            (r#"{"auths":{"host:5000":{"auth":"YW5uYTpzZWNyZXQ6MQ"}}}"#, "host:5000"),
            (r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YW5uYTpzZWNyZXQ6MQ=="}}}"#, "docker.io"),
            (r#"{"auths":{"docker.io":{"auth":"YW5uYTpzZWNyZXQ6MQ=="}}}"#, "docker.io"),
            (r#"{"auths":{"quay.io":{"username":"anna","password":"secret:1"}}}"#, "quay.io"),
        ] {
            assert_eq!(found(config, host), anna, "{config}");
        }
        let token = found(r#"{"auths":{"quay.io":{"auth":"","identitytoken":"t"}}}"#, "quay.io");
        assert_eq!(token, Ok(Some(("identity".to_owned(), "t".to_owned()))));
        for config in ["{}", r#"{"auths":{}}"#, r#"{"auths":{"host:5000":{"auth":"YTpi"}}}"#, r#"{"auths":{"quay.io":{}}}"#] {
            assert_eq!(found(config, "quay.io"), Ok(None), "{config}");
        }
    }

    #[test]
    fn errors_name_the_file_and_show_no_content() {
        for (config, expected) in [
            ("{\"auths\": ", "the credentials in FILE cannot be read: the JSON of docker's config.json is expected"),
            (
                r#"{"auths":{"quay.io":{"auth":"c2VjcmV0"}}}"#,
                "the entry for quay.io in FILE is damaged: base64 of user:password is expected in \"auth\"",
            ),
            (
                r#"{"credHelpers":{"quay.io":"no-such-helper"}}"#,
                "the credential helper that FILE names for quay.io is not there or fails; try it with `echo quay.io | docker-credential-NAME get`",
            ),
        ] {
            assert_eq!(found(config, "quay.io").unwrap_err(), expected);
        }
    }

    #[test]
    fn environment_selects_the_credential_files() {
        type Variables = &'static [(&'static str, &'static str)];
        let cases: [(Variables, &[&str]); 4] = [
            (&[("HOME", "/h")], &["/h/.docker/config.json"]),
            (&[("HOME", "/h"), ("DOCKER_CONFIG", "/d")], &["/d/config.json"]),
            (
                &[("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/r.json"), ("XDG_RUNTIME_DIR", "/x")],
                &["/r.json", "/h/.docker/config.json", "/x/containers/auth.json"],
            ),
            (&[], &[]),
        ];
        for (variables, expected) in cases {
            let found = files(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()));
            assert_eq!(found, expected.iter().map(Path::new).collect::<Vec<_>>());
        }
    }
}
