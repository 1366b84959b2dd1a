//! One repository of a registry: requests manifests and blobs, authenticates when asked to, and converts error responses.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use http::Uri;
use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::auth::{self, Challenge};
use super::client::{Client, Endpoint, Response};
use super::credentials::{self, Credentials, FoundCredentials};
use super::error::{Fault, printable};
use super::reference::ImageReference;
use super::url::{host_of, uri, without_query};
use crate::oci::Repository;
use crate::oci::json::null_as_default;

/// Bytes read of an error response.
const MAX_ERROR: u64 = 16 << 10;
/// Longest time in which an error response is read. Its status says the most.
const MAX_ERROR_TIME: Duration = Duration::from_secs(5);

/// A repository of a registry.
pub struct Upstream<'a> {
    client: &'a Client,
    endpoint: Endpoint,
    /// Host and port that serve the registry.
    pub host: String,
    /// Name of the registry in images' names.
    name: String,
    /// The repository, which has credentials.
    repository: Repository,
    /// Path of the repository, without the host.
    pub path: String,
    /// The current `Authorization` value, once the registry has asked for one.
    authorization: Mutex<Option<String>>,
    /// Set by the first 401.
    lookup: OnceLock<CredentialLookup>,
}

/// The result of searching for credentials.
enum CredentialLookup {
    NotConfigured,
    Found(FoundCredentials),
}

impl<'a> Upstream<'a> {
    /// Connects to the repository of `reference`.
    ///
    /// # Errors
    /// Fails if [`Client::endpoint`] fails.
    pub fn new(client: &'a Client, reference: &ImageReference) -> Result<Self, Fault> {
        let host = reference.endpoint().to_owned();
        Ok(Self {
            client,
            endpoint: client.retry(|| client.endpoint(&host))?,
            host,
            name: reference.host.to_string(),
            repository: reference.repository.clone(),
            path: reference.repository.path().to_owned(),
            authorization: Mutex::default(),
            lookup: OnceLock::new(),
        })
    }

    /// Gets `/v2/REPOSITORY/TARGET`. Returns the response, with the status 200 or 206, and its final URL. `what` is the target's name in
    /// messages.
    ///
    /// # Errors
    /// Fails if there is no response, or its status is another one.
    pub fn get(&self, target: &str, what: &str, headers: &[(&str, &str)]) -> Result<(Response, Uri), Fault> {
        let url = format!("{}/v2/{}/{target}", self.endpoint.base, self.path);
        let sent = self.cached_authorization();
        let (response, at) = self.endpoint.get(&url, headers, sent.as_deref())?;
        if response.status() != 401 || host_of(&at) != self.host {
            return self.check_status(response, at, what);
        }
        let authorization = self.reauthorize(response, &at, what, sent.as_deref())?;
        let (response, at) = self.endpoint.get(&at.to_string(), headers, Some(&authorization))?;
        self.check_status(response, at, what)
    }

    /// Reads a body to its end.
    ///
    /// # Errors
    /// Fails if [`Endpoint::read`] fails.
    pub fn read(&self, response: Response, at: &Uri, what: &str, limit: u64) -> Result<Vec<u8>, Fault> {
        self.endpoint.read(response, at, what, limit)
    }

    /// Converts an error of reading a body.
    #[must_use]
    pub fn broken(&self, at: &Uri, error: std::io::Error) -> Fault {
        self.endpoint.broken(at, error)
    }

    fn cached_authorization(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A new `Authorization` value after a 401 to a request with `stale`. Concurrent requests share it.
    fn reauthorize(&self, response: Response, at: &Uri, what: &str, stale: Option<&str>) -> Result<String, Fault> {
        let mut current = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(renewed) = current.as_deref().filter(|current| Some(*current) != stale) {
            return Ok(renewed.to_owned());
        }
        let values = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let values: Vec<&str> = values.collect();
        let Some(challenge) = Challenge::parse(&values) else {
            let challenge = printable(&values.join(", "));
            return Err(Fault::Challenge { host: self.host.clone(), challenge });
        };
        let credentials = self.credentials()?;
        let authorization = match (challenge, credentials) {
            (Challenge::Basic, Some(Credentials::Password(user, password))) => auth::basic_authorization(user, password),
            (Challenge::Basic, _) => return Err(self.status_fault(response, at, what)),
            (Challenge::Bearer { realm, service }, credentials) => self.token(&realm, service.as_deref(), credentials)?,
        };
        *current = Some(authorization.clone());
        Ok(authorization)
    }

    fn token(&self, realm: &str, service: Option<&str>, credentials: Option<&Credentials>) -> Result<String, Fault> {
        let at = uri(realm).map_err(|_| {
            let named = printable(realm.split('?').next().unwrap_or_default());
            Fault::Realm { host: self.host.clone(), realm: named, why: "which is not an http or https URL" }
        })?;
        auth::check_realm(self.client, &self.endpoint, &at, credentials.is_some())?;
        let response = auth::request_token(&self.endpoint, realm, service, &self.path, credentials)?;
        let status = response.status().as_u16();
        // What registries answer that know no POST request for a token.
        if let (404 | 405, Some(CredentialLookup::Found(found))) = (status, self.lookup.get())
            && let Credentials::IdentityToken(_) = &found.credentials
        {
            let (detail, FoundCredentials { key, file, .. }) = (self.error_detail(response, &at), found.clone());
            return Err(Fault::IdentityToken { realm: without_query(&at), status, detail, key, file });
        }
        let (response, at) = self.check_status(response, at, &format!("token to pull from {}", self.path))?;
        auth::parse_token(&self.endpoint, response, &at)
    }

    fn credentials(&self) -> Result<Option<&Credentials>, Fault> {
        if self.lookup.get().is_none() {
            let found =
                credentials::find(&self.repository, &self.client.settings.credentials, &mut |line| self.client.warn(line))?;
            let found = found.map_or(CredentialLookup::NotConfigured, CredentialLookup::Found);
            let _ = self.lookup.set(found);
        }
        match self.lookup.get() {
            Some(CredentialLookup::Found(found)) => Ok(Some(&found.credentials)),
            _ => Ok(None),
        }
    }

    fn check_status(&self, response: Response, at: Uri, what: &str) -> Result<(Response, Uri), Fault> {
        if matches!(response.status().as_u16(), 200 | 206) {
            Ok((response, at))
        } else {
            Err(self.status_fault(response, &at, what))
        }
    }

    /// Converts an error response.
    fn status_fault(&self, response: Response, at: &Uri, what: &str) -> Fault {
        let status = response.status().as_u16();
        let retry_after = retry_after(&response, SystemTime::now());
        let (host, what, detail) = (host_of(at), what.to_owned(), self.error_detail(response, at));
        // Named as the key of the credentials. Hosts that it redirects to get no credentials.
        let name = self.name.clone();
        match (status, self.lookup.get()) {
            (401, Some(CredentialLookup::NotConfigured)) => {
                Fault::NoCredentials { host: name, detail, files: self.client.settings.credentials.clone() }
            }
            (401, Some(CredentialLookup::Found(FoundCredentials { key, file, .. }))) => {
                Fault::Refused { host: name, status, detail, key: key.clone(), file: file.clone() }
            }
            (401 | 403, _) => Fault::Denied { host, what, status, detail },
            (404, _) => Fault::NotFound { host, what, detail },
            (429, _) => Fault::RateLimited { host, detail, retry_after, tries: 1 },
            _ => Fault::Status { host, status, detail, what, retry_after },
        }
    }

    /// The registry's first error (distribution specification, "Error Codes") as ": CODE: message", or an empty string.
    fn error_detail(&self, response: Response, at: &Uri) -> String {
        #[derive(Deserialize)]
        struct Errors {
            #[serde(deserialize_with = "null_as_default")]
            errors: Vec<ErrorEntry>,
        }
        #[derive(Deserialize)]
        struct ErrorEntry {
            code: Option<String>,
            message: Option<String>,
        }
        let time = MAX_ERROR_TIME.min(self.client.settings.timeout);
        let body = self.endpoint.read_within(time, response, at, "an error", MAX_ERROR).unwrap_or_default();
        let errors: Option<Errors> = serde_json::from_slice(&body).ok();
        let first = errors.and_then(|errors| errors.errors.into_iter().next());
        let parts = first.into_iter().flat_map(|entry| [entry.code, entry.message]).flatten().filter(|part| !part.is_empty());
        parts.map(|part| format!(": {}", printable(&part))).collect()
    }
}

/// The pause that a response asks for (RFC 9110, section 10.2.3).
fn retry_after(response: &Response, now: SystemTime) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}
