//! The HTTP client for registries: TLS, redirects, timeouts and retries.
//!
//! Credentials are sent only to the origin they are for. They never follow a redirect to another origin, and never go over plain HTTP
//! unless that is allowed for the host.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read};
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use http::Uri;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, LOCATION};
use ureq::config::Config;
use ureq::tls::TlsConfig;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body, Proxy};

use super::error::{Fault, printable};
use super::trust;
use super::url::{host_of, is_loopback, resolve, same_origin, uri, without_query};
use crate::host::support::interrupt::Interrupt;
use crate::host::support::report::Report;
use crate::oci::Host;

/// A response with an unread body.
pub type Response = http::Response<Body>;

/// Timeout of name resolution, and of a connection with its TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts of a request before it fails.
pub const TRIES: u32 = 5;
/// Attempts if the host does not respond, because each takes the full timeout.
const TIMEOUT_TRIES: u32 = 2;
/// Pause before the second attempt. It doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause that a registry may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Bytes read at once.
const BUFFER: usize = 16 << 10;
/// Most redirects followed for one request.
const MAX_REDIRECTS: usize = 5;
/// Most addresses of one name, all that the library takes.
const MAX_ADDRESSES: usize = 16;
/// Interval of checks for a signal.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Settings for all registries.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// Hosts to contact over plain HTTP.
    pub plain_http: Vec<Host>,
    /// Files of additional CAs.
    pub cas: Vec<PathBuf>,
    /// Longest time without receiving data.
    pub timeout: Duration,
    /// Files to search for credentials.
    pub credentials: Vec<PathBuf>,
}

/// The client for all registries of one pull.
pub struct Client {
    /// The settings.
    pub settings: ClientSettings,
    interrupt: Interrupt,
    endpoints: Mutex<HashMap<String, Endpoint>>,
    stopped: AtomicBool,
    report: Report,
    /// What was warned of.
    warned: Mutex<BTreeSet<String>>,
}

/// A host and how to reach it.
#[derive(Clone)]
pub struct Endpoint {
    /// `https://HOST` or `http://HOST`.
    pub base: String,
    agent: Agent,
    timeout: Duration,
}

impl Client {
    /// Creates a client that stops at a signal.
    #[must_use]
    pub fn new(settings: ClientSettings, report: Report, interrupt: Interrupt) -> Self {
        let (endpoints, stopped, warned) = (Mutex::default(), AtomicBool::new(false), Mutex::default());
        Self { settings, interrupt, endpoints, stopped, report, warned }
    }

    /// Prints a warning, once for all images.
    pub fn warn(&self, line: String) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if !warned.contains(&line) {
            self.report.warn(&line);
            warned.insert(line);
        }
    }

    /// The endpoint of `host`. A loopback host is probed for TLS, as in docker. Any other host must speak TLS unless plain HTTP is allowed
    /// for it.
    ///
    /// # Errors
    /// Fails if a CA cannot be used, or a loopback host does not respond.
    pub fn endpoint(&self, host: &str) -> Result<Endpoint, Fault> {
        if let Some(known) = self.endpoints().get(host) {
            return Ok(known.clone());
        }
        let plain = self.is_plain_configured(host);
        let mut endpoint = Endpoint { base: format!("https://{host}"), agent: self.agent(host)?, timeout: self.settings.timeout };
        // Registered before the probe, so that `stop` reaches it.
        self.endpoints().insert(host.to_owned(), endpoint.clone());
        if plain || (is_loopback(host) && !self.speaks_tls(&endpoint)?) {
            endpoint.base = format!("http://{host}");
        }
        self.endpoints().insert(host.to_owned(), endpoint.clone());
        Ok(endpoint)
    }

    /// Aborts all requests and prevents new ones.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.endpoints().values().for_each(|endpoint| endpoint.agent.clone().shutdown());
    }

    /// Calls [`Client::stop`] after a signal. Returns once `done` is set.
    pub fn watch(&self, done: &AtomicBool) {
        while !done.load(Ordering::SeqCst) {
            if self.interrupt.check().is_err() {
                self.stop();
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// # Errors
    /// Fails after a signal.
    pub fn check(&self) -> Result<(), Fault> {
        Ok(self.interrupt.check()?)
    }

    /// Calls `attempt`, and retries it after a transient error, with growing pauses or those that the registry asks for.
    ///
    /// # Errors
    /// Fails with the error of the last attempt.
    pub fn retry<T>(&self, attempt: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
        self.attempt(TRIES, attempt)
    }

    /// As [`Client::retry`], with at most `most` attempts.
    ///
    /// # Errors
    /// Fails with the error of the last attempt.
    pub fn attempt<T>(&self, most: u32, mut attempt: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
        let mut pause = FIRST_PAUSE;
        let mut tries = 1;
        loop {
            let fault = match attempt() {
                Ok(done) => return Ok(done),
                Err(fault) => fault,
            };
            // A signal aborts requests; report the signal, not the aborted request.
            self.check()?;
            let wait = fault.retry_after().unwrap_or(pause);
            let max_tries = if matches!(fault, Fault::Timeout { .. }) { TIMEOUT_TRIES.min(most) } else { most };
            let gives_up = tries >= max_tries || wait > MAX_PAUSE || self.stopped.load(Ordering::SeqCst);
            if gives_up || !fault.is_transient() {
                return Err(match fault {
                    Fault::RateLimited { host, detail, retry_after, .. } => {
                        Fault::RateLimited { host, detail, retry_after, tries }
                    }
                    other => other,
                });
            }
            self.pause(wait)?;
            pause *= 2;
            tries += 1;
        }
    }

    /// Whether plain HTTP may be used with `host`.
    #[must_use]
    pub fn allows_plain(&self, host: &str) -> bool {
        is_loopback(host) || self.is_plain_configured(host)
    }

    fn is_plain_configured(&self, host: &str) -> bool {
        self.settings.plain_http.iter().any(|plain| plain.as_str() == host)
    }

    fn pause(&self, wait: Duration) -> Result<(), Fault> {
        let end = Instant::now() + wait;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.check()?;
            thread::sleep(left.min(POLL_INTERVAL));
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
            // As in docker, a loopback host is never reached through a proxy.
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
        let resolver = InterruptibleResolver { interrupt: self.interrupt.clone() };
        Ok(Agent::with_parts(config.build(), DefaultConnector::new(), resolver))
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

/// Looks up names on a thread of its own, so that a signal ends the wait for it. If the system refuses the thread, on this one.
#[derive(Debug)]
struct InterruptibleResolver {
    interrupt: Interrupt,
}

impl Resolver for InterruptibleResolver {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.scheme().zip(uri.authority());
        let host = host.and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority));
        let host = host.ok_or(ureq::Error::HostNotFound)?;
        let (sender, receiver) = sync_channel(1);
        let name = host.clone();
        let look_up = move || _ = sender.send(name.to_socket_addrs());
        let found = match thread::Builder::new().name("resolver".to_owned()).spawn(look_up) {
            Err(_refused) => host.to_socket_addrs()?,
            Ok(_) => {
                let start = Instant::now();
                loop {
                    match receiver.recv_timeout(POLL_INTERVAL) {
                        Err(RecvTimeoutError::Timeout) if start.elapsed() < *timeout.after => self.interrupt.check_io()?,
                        Err(_) => return Err(ureq::Error::Timeout(timeout.reason)),
                        Ok(found) => break found?,
                    }
                }
            }
        };
        let mut addresses = self.empty();
        config.ip_family().keep_wanted(found).take(MAX_ADDRESSES).for_each(|address| addresses.push(address));
        if addresses.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(addresses) }
    }
}

impl Endpoint {
    /// Gets `url`, following redirects. Returns the response and its final URL. `authorization` is sent only to the origin of `url`.
    ///
    /// # Errors
    /// Fails if there is no response. The caller checks its status.
    pub fn get(&self, url: &str, headers: &[(&str, &str)], authorization: Option<&str>) -> Result<(Response, Uri), Fault> {
        let first = uri(url)?;
        let mut at = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            let sent = authorization.filter(|_| same_origin(&at, &first));
            let response = self.send(&at, headers, sent)?;
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let Some(next) = location.filter(|_| response.status().is_redirection()) else { return Ok((response, at)) };
            let next = resolve(&at, next)?;
            if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(Fault::Downgrade { host: host_of(&at), to: without_query(&next) });
            }
            at = next;
        }
        Err(Fault::Endless(format!("{MAX_REDIRECTS} redirects on the way to one answer")))
    }

    /// Posts a form to `url`.
    ///
    /// # Errors
    /// Fails if there is no response.
    pub fn post(&self, url: &str, form: &[(&str, &str)]) -> Result<Response, Fault> {
        let at = uri(url)?;
        let sent = self.agent.post(at.clone()).send_form(form.iter().copied());
        sent.map_err(|error| fault(&host_of(&at), error, self.timeout))
    }

    /// Reads the body of a document to its end, all of it within the timeout.
    ///
    /// # Errors
    /// Fails if the connection is lost, the body is encoded, takes too long, or has more than `limit` bytes.
    pub fn read(&self, response: Response, at: &Uri, what: &str, limit: u64) -> Result<Vec<u8>, Fault> {
        self.read_within(self.timeout, response, at, what, limit)
    }

    /// As [`Endpoint::read`], within `time` instead of the timeout.
    ///
    /// # Errors
    /// As [`Endpoint::read`].
    pub fn read_within(&self, time: Duration, response: Response, at: &Uri, what: &str, limit: u64) -> Result<Vec<u8>, Fault> {
        let encoding = response.headers().get(CONTENT_ENCODING).map(|encoding| String::from_utf8_lossy(encoding.as_bytes()));
        if let Some(encoding) = encoding.filter(|encoding| !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity")) {
            return Err(Fault::Encoding { host: host_of(at), what: what.to_owned(), encoding: printable(&encoding) });
        }
        let start = Instant::now();
        let mut body = Vec::new();
        let mut reader = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = reader.read(&mut buffer).map_err(|error| self.broken(at, error))?;
            body.extend_from_slice(buffer.get(..count).unwrap_or_default());
            if body.len() as u64 > limit {
                return Err(Fault::TooLarge { host: host_of(at), what: what.to_owned(), limit });
            }
            if count == 0 {
                return Ok(body);
            }
            if start.elapsed() > time {
                return Err(Fault::Timeout { host: host_of(at), phase: "whole body".to_owned(), limit: time });
            }
        }
    }

    /// Converts an error of reading a body.
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
    // The standard library has no error kind for this, only the message.
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
