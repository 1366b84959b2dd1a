//! One repository in one registry: requests for its manifests and blobs, with credentials where the registry asks for them, and what
//! its answers mean.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use http::Uri;
use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::auth::{self, Challenge};
use super::client::{Client, Endpoint, Response};
use super::credentials::{self, Credentials};
use super::error::Fault;
use super::reference::Reference;
use super::url::host_of;

/// Longest error body that is read, in bytes.
const MAX_ERROR: u64 = 16 << 10;
/// Longest part of it that is shown, in characters.
const MAX_SAID: usize = 200;

/// The repository.
pub struct Upstream<'a> {
    client: &'a Client,
    endpoint: Endpoint,
    /// Host and port that answer.
    pub host: String,
    /// The upstream, as credentials are filed under it.
    name: String,
    /// The repository below the host.
    pub path: String,
    /// `Authorization`, once the registry has asked for it.
    authorization: Mutex<Option<String>>,
    credentials: OnceLock<Option<(Credentials, PathBuf)>>,
}

impl<'a> Upstream<'a> {
    /// The repository of `reference`.
    ///
    /// # Errors
    /// As of [`Client::endpoint`].
    pub fn new(client: &'a Client, reference: &Reference) -> Result<Self, Fault> {
        let host = reference.endpoint().to_owned();
        Ok(Self {
            client,
            endpoint: client.patiently(|| client.endpoint(&host))?,
            host,
            name: reference.host.to_string(),
            path: reference.repository.path().to_owned(),
            authorization: Mutex::default(),
            credentials: OnceLock::new(),
        })
    }

    /// Gets `/v2/REPOSITORY/TARGET`, which messages call `what`, and says where it is from. The status is 200 or 206.
    ///
    /// # Errors
    /// [`Fault`], for every other status too.
    pub fn get(&self, target: &str, what: &str, headers: &[(&str, &str)]) -> Result<(Response, Uri), Fault> {
        let url = format!("{}/v2/{}/{target}", self.endpoint.base, self.path);
        let shown = self.known();
        let (response, at) = self.endpoint.get(&url, headers, shown.as_deref())?;
        if response.status() != 401 || host_of(&at) != self.host {
            return self.judge(response, at, what);
        }
        let authorization = self.renew(response, &at, what, shown.as_deref())?;
        let (response, at) = self.endpoint.get(&at.to_string(), headers, Some(&authorization))?;
        self.judge(response, at, what)
    }

    /// Reads a body to its end.
    ///
    /// # Errors
    /// As of [`Endpoint::read`].
    pub fn read(&self, response: Response, at: &Uri, what: &str, limit: u64) -> Result<Vec<u8>, Fault> {
        self.endpoint.read(response, at, what, limit)
    }

    /// What is wrong where reading a body fails.
    #[must_use]
    pub fn broken(&self, at: &Uri, error: std::io::Error) -> Fault {
        self.endpoint.broken(at, error)
    }

    fn known(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What to show after a 401 to a request that showed `stale`. Requests that run at the same time share it.
    fn renew(&self, response: Response, at: &Uri, what: &str, stale: Option<&str>) -> Result<String, Fault> {
        let mut current = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(renewed) = current.as_deref().filter(|current| Some(*current) != stale) {
            return Ok(renewed.to_owned());
        }
        let values = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let values: Vec<&str> = values.collect();
        let Some(challenge) = Challenge::parse(&values) else {
            let given = clean(&values.join(", "));
            return Err(Fault::Challenge { host: self.host.clone(), given });
        };
        let credentials = self.credentials()?;
        let authorization = match (challenge, credentials) {
            (Challenge::Basic, Some((Credentials::Password(user, password), _))) => auth::basic(user, password),
            (Challenge::Basic, _) => return Err(self.refusal(response, at, what)),
            (Challenge::Bearer { realm, service }, credentials) => {
                let credentials = credentials.as_ref().map(|(credentials, _)| credentials);
                self.token(&realm, service.as_deref(), credentials)?
            }
        };
        *current = Some(authorization.clone());
        Ok(authorization)
    }

    fn token(&self, realm: &str, service: Option<&str>, credentials: Option<&Credentials>) -> Result<String, Fault> {
        let at: Uri = realm.parse().map_err(|_| Fault::Url(clean(realm.split('?').next().unwrap_or_default())))?;
        auth::check_realm(self.client, &self.endpoint, &at, credentials.is_some())?;
        let response = auth::ask(&self.endpoint, realm, service, &self.path, credentials)?;
        let (response, at) = self.judge(response, at, &format!("token to pull from {}", self.path))?;
        auth::token(&self.endpoint, response, &at)
    }

    fn credentials(&self) -> Result<&Option<(Credentials, PathBuf)>, Fault> {
        if self.credentials.get().is_none() {
            let found = credentials::find(&self.name, &self.client.settings.credentials)?;
            let _ = self.credentials.set(found);
        }
        Ok(self.credentials.get().unwrap_or(&None))
    }

    fn judge(&self, response: Response, at: Uri, what: &str) -> Result<(Response, Uri), Fault> {
        if matches!(response.status().as_u16(), 200 | 206) { Ok((response, at)) } else { Err(self.refusal(response, &at, what)) }
    }

    /// What a status other than success means.
    fn refusal(&self, response: Response, at: &Uri, what: &str) -> Fault {
        let status = response.status().as_u16();
        let after = retry_after(&response, SystemTime::now());
        let (host, what, said) = (host_of(at), what.to_owned(), self.said(response, at));
        // The registry is named as credentials are filed; what it redirects to is not shown any.
        let name = self.name.clone();
        match (status, self.credentials.get()) {
            (401, Some(None)) => Fault::NoCredentials { host: name, said, files: self.client.settings.credentials.clone() },
            (401, Some(Some((_, file)))) => Fault::Refused { host: name, status, said, file: file.clone() },
            (401 | 403, _) => Fault::Denied { host, what, status, said },
            (404, _) => Fault::NotFound { host, what, said },
            (429, _) => Fault::RateLimited { host, said, after, tries: 1 },
            _ => Fault::Status { host, status, said, what, after },
        }
    }

    /// What the registry says of an error (distribution specification, "Error Codes"): ": CODE: message", or nothing.
    fn said(&self, response: Response, at: &Uri) -> String {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<Said>,
        }
        #[derive(Deserialize)]
        struct Said {
            code: Option<String>,
            message: Option<String>,
        }
        let body = self.endpoint.read(response, at, "an error", MAX_ERROR).unwrap_or_default();
        let errors: Option<Errors> = serde_json::from_slice(&body).ok();
        let first = errors.and_then(|errors| errors.errors.into_iter().next());
        let parts = first.into_iter().flat_map(|said| [said.code, said.message]).flatten().filter(|part| !part.is_empty());
        parts.map(|part| format!(": {}", clean(&part))).collect()
    }
}

/// What another machine says, fit for a terminal and a line.
pub fn clean(text: &str) -> String {
    let escaped = text.chars().take(MAX_SAID).flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] });
    escaped.collect()
}

/// How long a response asks to wait (RFC 9110, section 10.2.3).
fn retry_after(response: &Response, now: SystemTime) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}
