//! Looks up the user's credentials for a repository, in the files in which podman and docker keep them. Secrets are never printed or
//! stored.
//!
//! The order of the files, and of the keys in one of them, is that of containers/image (`pkg/docker/config/config.go`:
//! `getAuthFilePaths`, `findCredentialsInFile`; `containers-auth.json(5)`). Docker's forms of keys and entries are those of docker/cli
//! (`cli/config/credentials/file_store.go`: `ConvertToHostname`; `cli/config/configfile/file.go`: `LoadFromReader`).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::host::support::files;
use crate::host::support::interrupt::Interrupt;
use crate::oci::Repository;
use crate::oci::json::{known_fields, null_as_default};
use crate::oci::upstreams::{self, DOCKER_HUB};

/// Docker's key for the credentials of docker.io.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Largest credentials file, and largest answer of a helper, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// The time between two looks at the length of a helper's answer.
const ANSWER_POLL: Duration = Duration::from_millis(20);
/// Decodes base64 with or without padding.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// Docker's old file, without the level `auths`.
const LEGACY_FILE: &str = ".dockercfg";
/// The variable that names podman's file.
const NAMED_FILE: &str = "REGISTRY_AUTH_FILE";
/// Prints a warning.
pub type Warn<'a> = &'a mut dyn FnMut(String);

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user and a password, which need not be UTF-8.
    Password(Vec<u8>, Vec<u8>),
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
    /// The file that the user names does not exist.
    #[error("cannot find the credentials in {}, which {NAMED_FILE} names; correct that variable, or unset it", file.display())]
    Named {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read the credentials in {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not docker's JSON.
    #[error("the credentials in {} cannot be read: {what}; the JSON of docker's config.json is expected", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
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

/// Checks that the file exists which the user names, if one is named, as podman and buildah do before they pull.
///
/// # Errors
/// Fails if it does not.
pub fn check_named_file(variable: impl Fn(&str) -> Option<OsString>) -> Result<(), CredentialsError> {
    let Some(file) = variable(NAMED_FILE).filter(|value| !value.is_empty()).map(PathBuf::from) else { return Ok(()) };
    fs::metadata(&file).map(drop).map_err(|source| CredentialsError::Named { file, source })
}

/// The files to search for the user with this number, in this order. They need not exist.
#[must_use]
pub fn files(variable: impl Fn(&str) -> Option<OsString>, user: u32) -> Vec<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = |folder: &str| set("HOME").map(|home| home.join(folder));
    let podman = |folder: PathBuf| folder.join("containers/auth.json");
    let docker = |folder: PathBuf| folder.join("config.json");
    let docker_config = set("DOCKER_CONFIG").map(docker);
    // With DOCKER_CONFIG, podman and docker read this file only.
    let home_docker = home(".docker").map(docker).filter(|_| docker_config.is_none());
    let found = [
        set(NAMED_FILE),
        docker_config,
        set("XDG_RUNTIME_DIR").map(podman),
        // podman's place without XDG_RUNTIME_DIR, which it may not have had when the user logged in.
        Some(PathBuf::from(format!("/run/containers/{user}/auth.json"))),
        set("XDG_CONFIG_HOME").or_else(|| home(".config")).map(podman),
        home_docker,
        home(LEGACY_FILE),
    ];
    found.into_iter().flatten().collect()
}

/// Finds the credentials for `repository` in the first of `files` that has any: those of its credential helper for the registry, or
/// those of the most specific key (the repository, a namespace that holds it, or the registry), or those of its general credential helper.
/// What most clients pass over, this does too, with a warning.
///
/// # Errors
/// Fails if a file exists and cannot be used.
pub fn find(repository: &Repository, files: &[PathBuf], warn: Warn<'_>) -> Result<Option<FoundCredentials>, CredentialsError> {
    for file in files {
        let Some(content) = CredentialsFile::read(file, warn)? else { continue };
        if let Some(found) = content.find(repository, file, warn)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What a credentials file holds. Docker's and podman's are alike. Of values that no key leads to, the types do not matter.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CredentialsFile {
    #[serde(deserialize_with = "null_as_default")]
    auths: BTreeMap<String, Value>,
    #[serde(deserialize_with = "null_as_default")]
    cred_helpers: BTreeMap<String, Value>,
    creds_store: Value,
}

impl CredentialsFile {
    /// `None` if the file does not exist or is empty.
    fn read(file: &Path, warn: Warn<'_>) -> Result<Option<Self>, CredentialsError> {
        use io::ErrorKind::{NotADirectory, NotFound};
        let content = match files::read(file, MAX_FILE) {
            Err(error) if matches!(error.kind(), NotFound | NotADirectory) => {
                // As DOCKER_CONFIG that names config.json itself.
                if let Some(parent) = file.parent().filter(|parent| parent.is_file()) {
                    let (file, parent) = (file.display(), parent.display());
                    warn(format!(
                        "there are no credentials in {file}, because {parent} is a file; a variable such as DOCKER_CONFIG names a folder"
                    ));
                }
                return Ok(None);
            }
            content => content.map_err(|source| CredentialsError::Read { file: file.to_owned(), source })?,
        };
        // As in Go, what is not UTF-8 is replaced, and the last of equal keys counts. Editors of Windows write a byte order mark.
        let content = String::from_utf8_lossy(&content);
        let content = content.trim_start_matches('\u{feff}').trim();
        if content.is_empty() {
            return Ok(None);
        }
        let invalid = |what| CredentialsError::Json { file: file.to_owned(), what };
        // serde's messages are dropped: they may quote a secret.
        let value: Value = serde_json::from_str(content)
            .map_err(|error| invalid(format!("line {}, column {} is not JSON", error.line(), error.column())))?;
        let value = if file.ends_with(LEGACY_FILE) && !value.is_null() { json!({ "auths": value }) } else { value };
        let parsed = match value {
            Value::Null => return Ok(None),
            Value::Object(fields) => {
                serde_json::from_value(Value::Object(known_fields(fields, &["auths", "credHelpers", "credsStore"])))
            }
            _ => return Err(invalid("it is no JSON object".to_owned())),
        };
        parsed.map(Some).map_err(|_| invalid("\"auths\" or \"credHelpers\" is no object".to_owned()))
    }

    fn find(&self, repository: &Repository, file: &Path, warn: Warn<'_>) -> Result<Option<FoundCredentials>, CredentialsError> {
        let registry = repository.host().unwrap_or_default();
        let found = |key: &str, credentials| FoundCredentials { credentials, key: key.to_owned(), file: file.to_owned() };
        let own = self.cred_helpers.iter().find(|(key, _)| scope(key) == registry);
        if let Some((key, name)) = own.and_then(|(key, name)| Some((key, name.as_str().filter(|name| !name.is_empty())?)))
            && let Some(credentials) = ask_helper(name, key, file)?
        {
            return Ok(Some(found(key, credentials)));
        }
        for (key, entry) in self.entries(repository.as_str()) {
            match decode(entry) {
                Decoded::Credentials(credentials) => {
                    if matches!(&credentials, Credentials::Password(user, _) if user.is_empty()) {
                        warn(format!("the entry for \"{key}\" in {} has no user; most registries refuse that", file.display()));
                    }
                    return Ok(Some(found(key, credentials)));
                }
                Decoded::Nothing => {}
                Decoded::NoColon => warn(format!(
                    "the entry for \"{key}\" in {} is passed over: base64 of user:password is expected in \"auth\", and it has no colon",
                    file.display()
                )),
                Decoded::Damaged => return Err(CredentialsError::Entry { key: key.to_owned(), file: file.to_owned() }),
            }
        }
        let general = self.creds_store.as_str().filter(|name| own.is_none() && !name.is_empty());
        let hub = [HUB_KEY].into_iter().filter(|_| registry == DOCKER_HUB);
        for (name, key) in general.into_iter().flat_map(|name| hub.clone().chain([registry]).map(move |key| (name, key))) {
            // Podman does not know this helper, and docker goes on without it: many a config.json is from another machine.
            match ask_helper(name, key, file) {
                Ok(None) => {}
                Ok(Some(credentials)) => return Ok(Some(found(key, credentials))),
                Err(error) => {
                    // A signal ends the helper too.
                    if Interrupt::of_process().check().is_err() {
                        return Err(error);
                    }
                    warn(format!("{error}; it is passed over"));
                    break;
                }
            }
        }
        Ok(None)
    }

    /// The entries that apply to a repository, given with its registry: the most specific first. Of several for one scope, docker's key
    /// of docker.io and then the plain key go first.
    fn entries(&self, repository: &str) -> Vec<(&str, &Value)> {
        let mut entries: Vec<(String, &str, &Value)> = self
            .auths
            .iter()
            .map(|(key, entry)| (scope(key), key.as_str(), entry))
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

/// What an entry holds.
enum Decoded {
    Credentials(Credentials),
    /// Nothing, as for a registry whose credentials a helper has.
    Nothing,
    /// No user and password, as docker and containers/image tell it: they pass it over.
    NoColon,
    /// Something else than base64.
    Damaged,
}

fn decode(entry: &Value) -> Decoded {
    let fields = match entry {
        Value::Null => return Decoded::Nothing,
        Value::Object(fields) => known_fields(fields.clone(), &["auth", "identitytoken", "username", "password"]),
        _ => return Decoded::Damaged,
    };
    let text = |field: &str| fields.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    if !fields.get("auth").is_none_or(|auth| auth.is_string() || auth.is_null()) {
        return Decoded::Damaged;
    }
    let (token, mut auth) = (text("identitytoken"), text("auth"));
    if !token.is_empty() {
        return Decoded::Credentials(Credentials::IdentityToken(token));
    }
    // `base64` breaks its lines.
    auth.retain(|character| !character.is_ascii_whitespace());
    let (user, password) = if auth.is_empty() {
        (text("username").into_bytes(), text("password").into_bytes())
    } else {
        let Ok(decoded) = BASE64.decode(auth) else { return Decoded::Damaged };
        let mut parts = decoded.splitn(2, |byte| *byte == b':');
        let (Some(user), Some(mut password)) = (parts.next(), parts.next()) else { return Decoded::NoColon };
        // Old versions of docker padded with NUL.
        while let Some(rest) = password.strip_suffix(b"\0") {
            password = rest;
        }
        (user.to_vec(), password.to_vec())
    };
    if user.is_empty() && password.is_empty() {
        Decoded::Nothing
    } else {
        Decoded::Credentials(Credentials::Password(user, password))
    }
}

/// What a credential helper answers.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HelperAnswer {
    #[serde(deserialize_with = "null_as_default")]
    username: String,
    #[serde(deserialize_with = "null_as_default")]
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
    // As in Go, whatever follows the JSON does not matter.
    let answer = serde_json::Deserializer::from_slice(&answer).into_iter::<Map<String, Value>>().next();
    let answer = answer.and_then(Result::ok).map(|fields| Value::Object(known_fields(fields, &["Username", "Secret"])));
    let answer: Option<HelperAnswer> = answer.and_then(|fields| serde_json::from_value(fields).ok());
    let answer = answer.ok_or_else(|| failed("answers with something else than its protocol's JSON"))?;
    Ok(match (answer.username, answer.secret) {
        (user, secret) if user.is_empty() && secret.is_empty() => None,
        (user, secret) if user == "<token>" => Some(Credentials::IdentityToken(secret)),
        (user, secret) => Some(Credentials::Password(user.into_bytes(), secret.into_bytes())),
    })
}

/// Runs a credential helper. Returns whether it succeeded, and its output. Its input and output are files in memory: it may ignore the
/// one, and a process that it leaves behind may hold the other.
fn run_helper(name: &str, key: &str) -> io::Result<(bool, Vec<u8>)> {
    let memory = || memfd_create("credential-helper", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map(File::from);
    let (mut input, mut output) = (memory()?, memory()?);
    input.write_all(key.as_bytes())?;
    input.rewind()?;
    let mut command = Command::new(format!("docker-credential-{name}"));
    command.arg("get").stdin(input).stdout(output.try_clone()?).stderr(Stdio::null());
    let status = thread::scope(|scope| {
        let (running, ended) = mpsc::channel::<()>();
        let watched = &output;
        thread::Builder::new().spawn_scoped(scope, move || end_long_answer(watched, &ended))?;
        let status = Interrupt::of_process().run(&mut command);
        drop(running);
        status
    })?;
    output.rewind()?;
    let mut answer = Vec::new();
    output.take(MAX_FILE).read_to_end(&mut answer)?;
    Ok((status.success(), answer))
}

/// Lets writes to `output` fail once it is longer than [`MAX_FILE`], until its writer has `ended`: a helper may print without end.
fn end_long_answer(output: &File, ended: &mpsc::Receiver<()>) {
    while ended.recv_timeout(ANSWER_POLL) == Err(RecvTimeoutError::Timeout) {
        if output.metadata().is_ok_and(|now| now.len() > MAX_FILE) && fcntl_add_seals(output, SealFlags::GROW).is_ok() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
