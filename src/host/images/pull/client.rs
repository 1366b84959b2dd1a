//! Requests to registries over HTTP: TLS and whom it trusts, redirects, timeouts, second tries. Credentials go to the origin that they are
//! for and never along with a redirect to another, nor over plain HTTP unless that was allowed for the host.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use http::Uri;
use http::header::{AUTHORIZATION, LOCATION};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body, Proxy};

use super::error::Fault;
use super::trust;
use super::url::{host_of, is_loopback, resolve, same_origin, uri, without_query};
use crate::host::support::interrupt::Interrupt;
use crate::oci::Host;

/// A response whose body is still to be read.
pub type Response = http::Response<Body>;

/// Longest time for a name's address, and for a connection with its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often something is asked for before it counts as failed.
const TRIES: u32 = 5;
/// The same where nothing was answered at all.
const SILENT_TRIES: u32 = 2;
/// The pause before the second try; it doubles with each.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest that a registry is let ask to wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Redirects that are followed, one after the other.
const MAX_REDIRECTS: usize = 5;
/// How often a signal is looked for while nothing else happens.
const TICK: Duration = Duration::from_millis(50);

/// How registries are spoken to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Hosts that are spoken to in plain HTTP.
    pub plain_http: Vec<Host>,
    /// Files with further CAs.
    pub cas: Vec<PathBuf>,
    /// The longest silence.
    pub timeout: Duration,
    /// Files that credentials are looked for in.
    pub credentials: Vec<PathBuf>,
}

/// Everything that all registries have in common.
pub struct Client {
    /// How they are spoken to.
    pub settings: Settings,
    interrupt: Interrupt,
    endpoints: Mutex<HashMap<String, Endpoint>>,
    stopped: AtomicBool,
}

/// A host that answers.
#[derive(Clone)]
pub struct Endpoint {
    /// `https://HOST` or `http://HOST`.
    pub base: String,
    agent: Agent,
    timeout: Duration,
}

impl Client {
    /// A client that stops at a signal.
    #[must_use]
    pub fn new(settings: Settings, interrupt: Interrupt) -> Self {
        Self { settings, interrupt, endpoints: Mutex::default(), stopped: AtomicBool::new(false) }
    }

    /// The host's endpoint. A host of this machine is asked whether it speaks TLS, as docker does; another has to, or to be allowed
    /// not to.
    ///
    /// # Errors
    /// Where a CA cannot be used, or the host of this machine does not answer.
    pub fn endpoint(&self, host: &str) -> Result<Endpoint, Fault> {
        if let Some(known) = self.endpoints().get(host) {
            return Ok(known.clone());
        }
        let plain = self.allowed_plain(host);
        let mut endpoint = Endpoint { base: format!("https://{host}"), agent: self.agent(host)?, timeout: self.settings.timeout };
        // From here on it is stopped with the others.
        self.endpoints().insert(host.to_owned(), endpoint.clone());
        if plain || (is_loopback(host) && !self.speaks_tls(&endpoint)?) {
            endpoint.base = format!("http://{host}");
        }
        self.endpoints().insert(host.to_owned(), endpoint.clone());
        Ok(endpoint)
    }

    /// Ends every request under way, and lets none begin.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.endpoints().values().for_each(|endpoint| endpoint.agent.clone().shutdown());
    }

    /// Stops at a signal; returns once `done` is set.
    pub fn watch(&self, done: &AtomicBool) {
        while !done.load(Ordering::SeqCst) {
            if self.interrupt.check().is_err() {
                self.stop();
            }
            thread::sleep(TICK);
        }
    }

    /// # Errors
    /// After a signal.
    pub fn check(&self) -> Result<(), Fault> {
        Ok(self.interrupt.check()?)
    }

    /// Does `attempt`, and where what is wrong may pass, does it again a little later, or when the registry says.
    ///
    /// # Errors
    /// That of the last attempt.
    pub fn patiently<T>(&self, mut attempt: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
        let mut pause = PAUSE;
        let mut tried = 1;
        loop {
            let fault = match attempt() {
                Ok(done) => return Ok(done),
                Err(fault) => fault,
            };
            // What a signal cut off is not told as the registry's fault.
            self.check()?;
            let wait = fault.after().unwrap_or(pause);
            // Each silence was long.
            let most = if matches!(fault, Fault::Timeout { .. }) { SILENT_TRIES } else { TRIES };
            let over = tried >= most || wait > LONGEST_PAUSE || self.stopped.load(Ordering::SeqCst);
            if over || !fault.is_passing() {
                return Err(match fault {
                    Fault::RateLimited { host, said, after, .. } => Fault::RateLimited { host, said, after, tries: tried },
                    other => other,
                });
            }
            self.pause(wait)?;
            pause *= 2;
            tried += 1;
        }
    }

    /// Whether credentials and content may go to or come from `host` over plain HTTP.
    #[must_use]
    pub fn may_be_plain(&self, host: &str) -> bool {
        is_loopback(host) || self.allowed_plain(host)
    }

    fn allowed_plain(&self, host: &str) -> bool {
        self.settings.plain_http.iter().any(|plain| plain.as_str() == host)
    }

    fn pause(&self, wait: Duration) -> Result<(), Fault> {
        let end = Instant::now() + wait;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.check()?;
            thread::sleep(left.min(TICK));
        }
        Ok(())
    }

    fn agent(&self, host: &str) -> Result<Agent, Fault> {
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(trust::roots(host, &self.settings.cas)?)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            // As docker has it, no proxy stands between this machine and itself.
            .proxy(if is_loopback(host) { None } else { Proxy::try_from_env() })
            .user_agent(concat!("localregistry/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(self.settings.timeout))
            .timeout_per_read(Some(self.settings.timeout))
            .timeout_per_write(Some(self.settings.timeout));
        Ok(config.build().new_agent())
    }

    fn speaks_tls(&self, endpoint: &Endpoint) -> Result<bool, Fault> {
        match endpoint.send(&uri(&format!("{}/v2/", endpoint.base))?, &[], None) {
            Ok(_) => Ok(true),
            Err(Fault::NoTls(_) | Fault::Broken { .. }) => {
                self.check()?;
                Ok(false)
            }
            Err(other) => Err(other),
        }
    }

    fn endpoints(&self) -> MutexGuard<'_, HashMap<String, Endpoint>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Endpoint {
    /// Gets `url`, by way of redirects, and says where the response is from. `authorization` is shown to the origin of `url` alone.
    ///
    /// # Errors
    /// Where no response comes; its status is the caller's to judge.
    pub fn get(&self, url: &str, headers: &[(&str, &str)], authorization: Option<&str>) -> Result<(Response, Uri), Fault> {
        let first = uri(url)?;
        let mut at = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            let shown = authorization.filter(|_| same_origin(&at, &first));
            let response = self.send(&at, headers, shown)?;
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let Some(next) = location.filter(|_| response.status().is_redirection()) else { return Ok((response, at)) };
            let next = resolve(&at, next)?;
            if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(Fault::Downgrade { host: host_of(&at), to: without_query(&next) });
            }
            at = next;
        }
        Err(Fault::Endless("5 redirects on the way to one answer".to_owned()))
    }

    /// Posts a form to `url`.
    ///
    /// # Errors
    /// Where no response comes.
    pub fn post(&self, url: &str, form: &[(&str, &str)]) -> Result<Response, Fault> {
        let at = uri(url)?;
        let sent = self.agent.post(at.clone()).send_form(form.iter().copied());
        sent.map_err(|error| fault(&host_of(&at), error, self.timeout))
    }

    /// Reads a body to its end.
    ///
    /// # Errors
    /// Where it is cut, or has more than `limit` bytes.
    pub fn read(&self, response: Response, at: &Uri, what: &str, limit: u64) -> Result<Vec<u8>, Fault> {
        let mut body = Vec::new();
        let mut reader = io::Read::take(response.into_body().into_reader(), limit.saturating_add(1));
        io::Read::read_to_end(&mut reader, &mut body).map_err(|error| self.broken(at, error))?;
        if body.len() as u64 > limit {
            return Err(Fault::TooLarge { host: host_of(at), what: what.to_owned(), limit });
        }
        Ok(body)
    }

    /// What is wrong where reading a body fails.
    #[must_use]
    pub fn broken(&self, at: &Uri, error: io::Error) -> Fault {
        fault(&host_of(at), error.into(), self.timeout)
    }

    fn send(&self, at: &Uri, headers: &[(&str, &str)], authorization: Option<&str>) -> Result<Response, Fault> {
        let mut request = self.agent.get(at.clone());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.call().map_err(|error| fault(&host_of(at), error, self.timeout))
    }
}

fn fault(host: &str, error: ureq::Error, silence: Duration) -> Fault {
    use ureq::Timeout::{Connect, Resolve};
    let host = host.to_owned();
    match error {
        ureq::Error::Timeout(phase @ (Resolve | Connect)) => {
            Fault::Timeout { host, phase: phase.to_string(), limit: CONNECT_TIMEOUT }
        }
        ureq::Error::Timeout(phase) => Fault::Timeout { host, phase: phase.to_string(), limit: silence },
        ureq::Error::HostNotFound => Fault::Resolve(host),
        ureq::Error::Rustls(cause) => tls_fault(host, cause),
        ureq::Error::Io(error) => io_fault(host, error),
        other => Fault::Broken { host, cause: other.to_string() },
    }
}

fn io_fault(host: String, error: io::Error) -> Fault {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied};
    if let Some(cause) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return tls_fault(host, cause.clone());
    }
    // The words of the standard library, which has no kind for it.
    if error.to_string().starts_with("failed to lookup address information") {
        return Fault::Resolve(host);
    }
    match error.kind() {
        ConnectionRefused | HostUnreachable | NetworkUnreachable | AddrNotAvailable | PermissionDenied => {
            Fault::Connect { host, source: error }
        }
        _ => Fault::Broken { host, cause: error.to_string() },
    }
}

fn tls_fault(host: String, cause: rustls::Error) -> Fault {
    match cause {
        rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => Fault::Issuer(host),
        rustls::Error::InvalidMessage(_) => Fault::NoTls(host),
        cause => Fault::Tls { host, cause },
    }
}
