//! Looks up the user's credentials for a repository, in the files in which podman and docker keep them. Secrets are never printed or
//! stored.
//!
//! The order of the files, and of the keys in one of them, is that of containers/image (`pkg/docker/config/config.go`:
//! `getAuthFilePaths`, `findCredentialsInFile`; `containers-auth.json(5)`). Docker's forms of keys and entries are those of docker/cli
//! (`cli/config/credentials/file_store.go`: `ConvertToHostname`; `cli/config/configfile/file.go`: `LoadFromReader`).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Deserialize;

use crate::host::support::files;
use crate::host::support::interrupt::Interrupt;
use crate::oci::Repository;
use crate::oci::json::null_as_default;
use crate::oci::upstreams::{self, DOCKER_HUB};

/// Docker's key for the credentials of docker.io.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Largest credentials file, and largest answer of a helper, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// Decodes base64 with or without padding.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user and a password.
    Password(String, String),
    /// A refresh token, which a token service exchanges for access tokens.
    IdentityToken(String),
}

/// Credentials, and where they are from.
#[derive(Clone, PartialEq, Eq)]
pub struct FoundCredentials {
    /// The credentials.
    pub credentials: Credentials,
    /// The key of the entry, or the name that a credential helper was asked for.
    pub key: String,
    /// The file.
    pub file: PathBuf,
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
    #[error("the entry for \"{key}\" in {} is damaged: base64 of user:password is expected in \"auth\"", file.display())]
    Entry {
        /// The key of the entry.
        key: String,
        /// The file.
        file: PathBuf,
    },
    /// The credential helper fails. Its output may be a secret and is not shown.
    #[error("the credential helper that {} names for \"{key}\" {what}; try it with `echo {key} | docker-credential-{name} get`", file.display())]
    Helper {
        /// What the helper was asked for.
        key: String,
        /// The file that names it.
        file: PathBuf,
        /// Its name.
        name: String,
        /// What is wrong with the helper.
        what: &'static str,
    },
}

/// The files to search for the user with this number, in this order. They need not exist.
#[must_use]
pub fn files(variable: impl Fn(&str) -> Option<OsString>, user: u32) -> Vec<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = |folder: &str| set("HOME").map(|home| home.join(folder));
    let podman = |folder: PathBuf| folder.join("containers/auth.json");
    let found = [
        set("REGISTRY_AUTH_FILE"),
        set("XDG_RUNTIME_DIR").map(podman),
        // podman's place without XDG_RUNTIME_DIR, which it may not have had when the user logged in.
        Some(PathBuf::from(format!("/run/containers/{user}/auth.json"))),
        set("XDG_CONFIG_HOME").or_else(|| home(".config")).map(podman),
        set("DOCKER_CONFIG").or_else(|| home(".docker")).map(|folder| folder.join("config.json")),
    ];
    found.into_iter().flatten().collect()
}

/// Finds the credentials for `repository` in the first of `files` that has any: those of its credential helper for the registry, or
/// those of the most specific key (the repository, a namespace that holds it, or the registry), or those of its general credential helper.
///
/// # Errors
/// Fails if a file exists and cannot be used.
pub fn find(repository: &Repository, files: &[PathBuf]) -> Result<Option<FoundCredentials>, CredentialsError> {
    for file in files {
        let Some(content) = CredentialsFile::read(file)? else { continue };
        if let Some(found) = content.find(repository, file)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What a credentials file holds. Docker's and podman's are alike.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CredentialsFile {
    #[serde(default, deserialize_with = "null_as_default")]
    auths: BTreeMap<String, Option<Entry>>,
    #[serde(default, deserialize_with = "null_as_default")]
    cred_helpers: BTreeMap<String, Option<String>>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl CredentialsFile {
    /// `None` if the file does not exist or is empty.
    fn read(file: &Path) -> Result<Option<Self>, CredentialsError> {
        use io::ErrorKind::{NotADirectory, NotFound};
        let content = match files::read(file, MAX_FILE) {
            Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(None),
            content => content.map_err(|source| CredentialsError::Read { file: file.to_owned(), source })?,
        };
        if content.trim_ascii().is_empty() {
            return Ok(None);
        }
        // serde's error is dropped: it may quote a secret.
        serde_json::from_slice(&content).map(Some).map_err(|_| CredentialsError::Json(file.to_owned()))
    }

    fn find(&self, repository: &Repository, file: &Path) -> Result<Option<FoundCredentials>, CredentialsError> {
        let registry = repository.host().unwrap_or_default();
        let found = |key: &str, credentials| FoundCredentials { credentials, key: key.to_owned(), file: file.to_owned() };
        let own = self.cred_helpers.iter().find(|(key, _)| scope(key) == registry);
        if let Some((key, Some(name))) = own.filter(|(_, name)| name.as_ref().is_some_and(|name| !name.is_empty()))
            && let Some(credentials) = ask_helper(name, key, file)?
        {
            return Ok(Some(found(key, credentials)));
        }
        for (key, entry) in self.entries(repository.as_str()) {
            let damaged = || CredentialsError::Entry { key: key.to_owned(), file: file.to_owned() };
            if let Some(credentials) = entry.decode().map_err(|Damaged| damaged())? {
                return Ok(Some(found(key, credentials)));
            }
        }
        let general = self.creds_store.as_ref().filter(|name| own.is_none() && !name.is_empty());
        let hub = [HUB_KEY].into_iter().filter(|_| registry == DOCKER_HUB);
        for (name, key) in general.into_iter().flat_map(|name| hub.clone().chain([registry]).map(move |key| (name, key))) {
            if let Some(credentials) = ask_helper(name, key, file)? {
                return Ok(Some(found(key, credentials)));
            }
        }
        Ok(None)
    }

    /// The entries that apply to a repository, given with its registry: the most specific first. Of several for one scope, docker's key
    /// of docker.io and then the plain key go first.
    fn entries(&self, repository: &str) -> Vec<(&str, &Entry)> {
        let mut entries: Vec<(String, &str, &Entry)> = self
            .auths
            .iter()
            .filter_map(|(key, entry)| Some((scope(key), key.as_str(), entry.as_ref()?)))
            .filter(|(scope, ..)| {
                repository.strip_prefix(scope.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
            .collect();
        entries.sort_by_key(|(scope, key, _)| (std::cmp::Reverse(scope.len()), *key != HUB_KEY, *key != scope.as_str(), *key));
        entries.into_iter().map(|(_, key, entry)| (key, entry)).collect()
    }
}

/// What a key is for: a registry, or a repository or namespace with its registry. A URL is for its whole registry: its path is the
/// version of an API.
fn scope(key: &str) -> String {
    let url = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let (host, path) = url.unwrap_or(key).split_once('/').unwrap_or((url.unwrap_or(key), ""));
    let path = path.trim_matches('/');
    let host = host.to_ascii_lowercase();
    let host = upstreams::canonical(&host);
    if url.is_some() || matches!(path, "" | "v1" | "v2") { host.to_owned() } else { format!("{host}/{path}") }
}

/// An entry that holds something else than credentials.
struct Damaged;

impl Entry {
    /// The credentials of an entry. `None` if it is empty, as for a registry whose credentials a helper has.
    fn decode(&self) -> Result<Option<Credentials>, Damaged> {
        let text = |field: &Option<String>| field.as_deref().unwrap_or_default().to_owned();
        let (token, mut auth) = (text(&self.identitytoken), text(&self.auth));
        if !token.is_empty() {
            return Ok(Some(Credentials::IdentityToken(token)));
        }
        // `base64` breaks its lines.
        auth.retain(|character| !character.is_ascii_whitespace());
        let (user, password) = if auth.is_empty() {
            (text(&self.username), text(&self.password))
        } else {
            let decoded = BASE64.decode(auth).ok().and_then(|decoded| String::from_utf8(decoded).ok()).ok_or(Damaged)?;
            let (user, password) = decoded.split_once(':').ok_or(Damaged)?;
            // Old versions of docker padded with NUL.
            (user.to_owned(), password.trim_end_matches('\0').to_owned())
        };
        let is_empty = user.is_empty() && password.is_empty();
        Ok((!is_empty).then_some(Credentials::Password(user, password)))
    }
}

/// What a credential helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Asks the credential helper `docker-credential-NAME` for `key`, by the protocol of docker/docker-credential-helpers. `None` if it has none.
fn ask_helper(name: &str, key: &str, file: &Path) -> Result<Option<Credentials>, CredentialsError> {
    let failed = |what| CredentialsError::Helper { key: key.to_owned(), file: file.to_owned(), name: name.to_owned(), what };
    let (succeeded, answer) = run_helper(name, key).map_err(|_| failed("is not there or cannot be run"))?;
    if !succeeded {
        // This message is part of the protocol.
        let has_none = String::from_utf8_lossy(&answer).contains("credentials not found");
        return if has_none { Ok(None) } else { Err(failed("fails")) };
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&answer).map_err(|_| failed("answers with something else than its protocol's JSON"))?;
    Ok(match (answer.username, answer.secret) {
        (user, secret) if user.is_empty() && secret.is_empty() => None,
        (user, secret) if user == "<token>" => Some(Credentials::IdentityToken(secret)),
        (user, secret) => Some(Credentials::Password(user, secret)),
    })
}

/// Runs a credential helper. Returns whether it succeeded, and its output. Its input and output are files in memory: it may ignore the
/// one, and a process that it leaves behind may hold the other.
fn run_helper(name: &str, key: &str) -> io::Result<(bool, Vec<u8>)> {
    let memory = || memfd_create("credential-helper", MemfdFlags::CLOEXEC).map(File::from);
    let (mut input, mut output) = (memory()?, memory()?);
    input.write_all(key.as_bytes())?;
    input.rewind()?;
    let mut command = Command::new(format!("docker-credential-{name}"));
    command.arg("get").stdin(input).stdout(output.try_clone()?).stderr(Stdio::null());
    let status = Interrupt::of_process().run(&mut command)?;
    output.rewind()?;
    let mut answer = Vec::new();
    output.take(MAX_FILE).read_to_end(&mut answer)?;
    Ok((status.success(), answer))
}

#[cfg(test)]
mod tests;
