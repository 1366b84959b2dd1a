//! Reports clients that abort a TLS handshake after receiving the registry's certificate: mostly nodes that do not trust the CA. Emits
//! one warning event per client address and alert, at a bounded rate.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, Error, ServerConfig};

use crate::proto::{TlsRefused, Warning, event};
use crate::registry::limits::{REFUSAL_ALERTS, REFUSING_CLIENTS};
use crate::registry::telemetry::events::Events;

/// Code of the warning event.
pub const CODE: &str = "TLS_REFUSED";

/// Names of the alerts that a client can send in a handshake (RFC 8446, section 6, and RFC 5246, section 7.2, for TLS 1.2).
const ALERTS: [(AlertDescription, &str); 24] = [
    (AlertDescription::UnexpectedMessage, "unexpected_message"),
    (AlertDescription::BadRecordMac, "bad_record_mac"),
    (AlertDescription::RecordOverflow, "record_overflow"),
    (AlertDescription::HandshakeFailure, "handshake_failure"),
    (AlertDescription::BadCertificate, "bad_certificate"),
    (AlertDescription::UnsupportedCertificate, "unsupported_certificate"),
    (AlertDescription::CertificateRevoked, "certificate_revoked"),
    (AlertDescription::CertificateExpired, "certificate_expired"),
    (AlertDescription::CertificateUnknown, "certificate_unknown"),
    (AlertDescription::IllegalParameter, "illegal_parameter"),
    (AlertDescription::UnknownCA, "unknown_ca"),
    (AlertDescription::AccessDenied, "access_denied"),
    (AlertDescription::DecodeError, "decode_error"),
    (AlertDescription::DecryptError, "decrypt_error"),
    (AlertDescription::ProtocolVersion, "protocol_version"),
    (AlertDescription::InsufficientSecurity, "insufficient_security"),
    (AlertDescription::InternalError, "internal_error"),
    (AlertDescription::InappropriateFallback, "inappropriate_fallback"),
    (AlertDescription::NoRenegotiation, "no_renegotiation"),
    (AlertDescription::MissingExtension, "missing_extension"),
    (AlertDescription::UnsupportedExtension, "unsupported_extension"),
    (AlertDescription::UnrecognisedName, "unrecognized_name"),
    (AlertDescription::BadCertificateStatusResponse, "bad_certificate_status_response"),
    (AlertDescription::NoApplicationProtocol, "no_application_protocol"),
];

/// The alert that the client sent to abort a handshake that failed with `error`. Empty if the client closed the connection without an
/// alert. `None` if the handshake failed for another reason.
#[must_use]
pub fn alert(error: &io::Error) -> Option<String> {
    let closed = matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    );
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::AlertReceived(AlertDescription::CloseNotify | AlertDescription::UserCanceled)) => Some(String::new()),
        Some(Error::AlertReceived(alert)) => {
            let known = ALERTS.iter().find(|(known, _)| known == alert);
            Some(known.map_or_else(|| format!("alert {}", u8::from(*alert)), |(_, name)| (*name).to_owned()))
        }
        None if closed => Some(String::new()),
        _ => None,
    }
}

/// The likely reason for an alert.
fn meaning(alert: &str) -> Option<&'static str> {
    Some(match alert {
        "unknown_ca" => "it does not trust the CA",
        // Go's TLS, which the container runtimes use, sends `bad_certificate` for every problem.
        "bad_certificate" | "certificate_unknown" => "it does not trust the CA, or the certificate lacks the name that it uses",
        "certificate_expired" => "by its clock the certificate is not valid",
        "certificate_revoked" | "access_denied" => "it trusts the CA, but not this certificate",
        "unsupported_certificate" => "it cannot use a certificate of this kind",
        "unrecognized_name" => "the certificate lacks the name that it uses",
        "" => "it may not trust the CA",
        _ => return None,
    })
}

impl TlsRefused {
    /// Describes what the client did, how often and why, to follow its address in a sentence.
    #[must_use]
    pub fn action(&self) -> String {
        let Self { peer, server_name, alert, count } = self;
        let times = if *count == 1 { String::new() } else { format!(" {count} times") };
        let sni = if server_name.is_empty() { String::new() } else { format!("; it asked for {server_name}") };
        match meaning(alert) {
            _ if peer.is_empty() => format!("broke off the TLS handshake{times}"),
            Some(why) if alert.is_empty() => {
                format!("closed the connection on the registry's certificate, without an alert{times}: {why}{sni}")
            }
            Some(why) => format!("refused the registry's certificate ({alert}){times}: {why}{sni}"),
            None => format!("broke off the TLS handshake ({alert}){times}{sni}"),
        }
    }
}

impl fmt::Display for TlsRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = if self.peer.is_empty() { "further clients" } else { &self.peer };
        write!(f, "{peer} {}", self.action())
    }
}

/// Records the server name (SNI) of one handshake.
#[derive(Debug)]
pub struct SniRecorder {
    certificates: Arc<dyn ResolvesServerCert>,
    name: OnceLock<String>,
}

impl SniRecorder {
    /// A recorder, and a copy of `config` for one handshake that reports to it.
    #[must_use]
    pub fn install(config: &ServerConfig) -> (Arc<Self>, Arc<ServerConfig>) {
        let recorder = Arc::new(Self { certificates: Arc::clone(&config.cert_resolver), name: OnceLock::new() });
        let mut config = config.clone();
        config.cert_resolver = Arc::clone(&recorder) as _;
        (recorder, Arc::new(config))
    }

    /// The server name, empty if the client sent none. `None` if the handshake ended before the client was sent a certificate.
    #[must_use]
    pub fn server_name(&self) -> Option<String> {
        self.name.get().cloned()
    }
}

impl ResolvesServerCert for SniRecorder {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.name.get_or_init(|| hello.server_name().unwrap_or_default().to_owned());
        self.certificates.resolve(hello)
    }
}

/// Counts the refusals of each interval, per client address and alert.
#[derive(Debug, Default)]
pub struct TlsRefusals(Mutex<Interval>);

#[derive(Debug, Default)]
struct Interval {
    since: Option<Instant>,
    /// The latest refusal of each address with each alert, up to [`REFUSING_CLIENTS`] in all and [`REFUSAL_ALERTS`] per address. Its count
    /// is the number not yet reported.
    clients: BTreeMap<(IpAddr, String), TlsRefused>,
    /// The number of further refusals.
    others: u32,
}

impl TlsRefusals {
    /// Records that `peer` aborted a handshake with `alert`. `server_name` is empty if the client sent none.
    ///
    /// `length` is that of an interval, the same in each call. Emits the first refusal of an address with an alert in an interval at once. Counts the further ones, and emits that count in
    /// [`TlsRefusals::flush`]. Returns whether an interval has begun. The caller flushes when it ends.
    #[must_use]
    pub fn record(&self, length: Duration, events: &Events, peer: IpAddr, server_name: String, alert: String) -> bool {
        self.record_at(Instant::now(), length, events, peer, TlsRefused { peer: String::new(), server_name, alert, count: 1 })
    }

    fn record_at(&self, now: Instant, length: Duration, events: &Events, peer: IpAddr, refused: TlsRefused) -> bool {
        let peer = peer.to_canonical();
        let refused = TlsRefused { peer: peer.to_string(), ..refused };
        let mut interval = self.interval();
        let has_begun = interval.since.is_none_or(|since| now.saturating_duration_since(since) >= length);
        if has_begun {
            interval.flush(events);
            interval.since = Some(now);
        }
        let alerts = interval.clients.range((peer, String::new())..).take_while(|((other, _), _)| *other == peer).count();
        let below_limit = interval.clients.len() < REFUSING_CLIENTS && alerts < REFUSAL_ALERTS;
        match interval.clients.entry((peer, refused.alert.clone())) {
            Entry::Occupied(mut known) => {
                let count = known.get().count.saturating_add(1);
                known.insert(TlsRefused { count, ..refused });
            }
            Entry::Vacant(first) if below_limit => {
                emit(events, refused.clone());
                first.insert(TlsRefused { count: 0, ..refused });
            }
            Entry::Vacant(_) => interval.others = interval.others.saturating_add(1),
        }
        has_begun
    }

    /// Emits the refusals not yet reported. Called when an interval or the server ends.
    pub fn flush(&self, events: &Events) {
        self.interval().flush(events);
    }

    fn interval(&self) -> MutexGuard<'_, Interval> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interval {
    /// Emits the refusals not yet reported, and starts over.
    fn flush(&mut self, events: &Events) {
        let Self { clients, others, .. } = std::mem::take(self);
        let others = TlsRefused { count: others, ..TlsRefused::default() };
        clients.into_values().chain([others]).filter(|refused| refused.count > 0).for_each(|refused| emit(events, refused));
    }
}

fn emit(events: &Events, refused: TlsRefused) {
    let message = refused.to_string();
    tracing::warn!(code = CODE, "{message}");
    events.emit(event::Event::Warning(Warning { code: CODE.to_owned(), message, tls_refused: Some(refused) }));
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::mpsc::Receiver;
    use std::time::Duration;

    use super::*;
    use crate::proto::Event;
    use crate::registry::limits::REFUSAL_INTERVAL;

    fn refused(server_name: &str, alert: &str) -> TlsRefused {
        TlsRefused { peer: String::new(), server_name: server_name.to_owned(), alert: alert.to_owned(), count: 1 }
    }

    fn messages(queue: &Receiver<Event>) -> Vec<String> {
        let warnings = queue.try_iter().filter_map(|event| match event.event? {
            event::Event::Warning(warning) => Some(warning),
            _ => None,
        });
        warnings.inspect(|warning| assert_eq!(warning.code, CODE)).map(|warning| warning.message).collect()
    }

    #[test]
    fn only_alerts_and_closed_connections_are_refusals() {
        let tls = |error: Error| alert(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(tls(Error::AlertReceived(AlertDescription::UnknownCA)).as_deref(), Some("unknown_ca"));
        assert_eq!(tls(Error::AlertReceived(AlertDescription::BadCertificate)).as_deref(), Some("bad_certificate"));
        assert_eq!(tls(Error::AlertReceived(AlertDescription::UnrecognisedName)).as_deref(), Some("unrecognized_name"));
        assert_eq!(tls(Error::AlertReceived(AlertDescription::Unknown(200))).as_deref(), Some("alert 200"));
        assert_eq!(tls(Error::AlertReceived(AlertDescription::CloseNotify)).as_deref(), Some(""));
        assert_eq!(tls(Error::NoCertificatesPresented), None);
        assert_eq!(tls(Error::DecryptError), None);
        for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe] {
            assert_eq!(alert(&kind.into()).as_deref(), Some(""), "{kind}");
        }
        assert_eq!(alert(&io::ErrorKind::TimedOut.into()), None);
    }

    #[test]
    fn message_names_client_alert_and_likely_reason() {
        for (server_name, alert, count, message) in [
            ("", "unknown_ca", 3, "10.1.0.7 refused the registry's certificate (unknown_ca) 3 times: it does not trust the CA"),
            (
                "registry.test",
                "bad_certificate",
                1,
                "10.1.0.7 refused the registry's certificate (bad_certificate): it does not trust the CA, or the certificate lacks the \
                 name that it uses; it asked for registry.test",
            ),
            (
                "",
                "",
                2,
                "10.1.0.7 closed the connection on the registry's certificate, without an alert 2 times: it may not trust the CA",
            ),
            ("", "protocol_version", 1, "10.1.0.7 broke off the TLS handshake (protocol_version)"),
        ] {
            let refused = TlsRefused { peer: "10.1.0.7".to_owned(), count, ..refused(server_name, alert) };
            assert_eq!(refused.to_string(), message);
        }
        let others = TlsRefused { count: 9, ..TlsRefused::default() };
        assert_eq!(others.to_string(), "further clients broke off the TLS handshake 9 times");
    }

    #[test]
    fn first_refusal_is_emitted_at_once_and_later_ones_are_counted() {
        let (refusals, (events, queue), start) = (TlsRefusals::default(), Events::queue(), Instant::now());
        let record = |after, last| {
            refusals.record_at(
                start + after,
                REFUSAL_INTERVAL,
                &events,
                Ipv4Addr::new(10, 1, 0, last).into(),
                refused("", "unknown_ca"),
            )
        };
        let message = |last: u8, times: &str| {
            format!("10.1.0.{last} refused the registry's certificate (unknown_ca){times}: it does not trust the CA")
        };
        let begun = (0..1000).filter(|_| record(Duration::ZERO, 7)).count();
        assert_eq!((begun, record(Duration::ZERO, 8)), (1, false));
        assert_eq!(messages(&queue), [message(7, ""), message(8, "")]);
        assert!(record(REFUSAL_INTERVAL, 8));
        assert_eq!(messages(&queue), [message(7, " 999 times"), message(8, "")]);
        assert!((0..2).all(|_| !record(REFUSAL_INTERVAL, 8)));
        refusals.flush(&events);
        assert_eq!(messages(&queue), [message(8, " 2 times")]);
        refusals.flush(&events);
        assert_eq!(messages(&queue), [""; 0]);
    }

    #[test]
    fn refusals_of_one_address_are_counted_per_alert() {
        let (refusals, (events, queue), start) = (TlsRefusals::default(), Events::queue(), Instant::now());
        let record = |alert: &str| {
            let _ = refusals.record_at(start, REFUSAL_INTERVAL, &events, Ipv4Addr::LOCALHOST.into(), refused("", alert));
        };
        ["unknown_ca", "unknown_ca", "unknown_ca", "", "unknown_ca", ""].into_iter().for_each(record);
        let unknown =
            |times: &str| format!("127.0.0.1 refused the registry's certificate (unknown_ca){times}: it does not trust the CA");
        let closed = "127.0.0.1 closed the connection on the registry's certificate, without an alert: it may not trust the CA";
        assert_eq!(messages(&queue), [unknown(""), closed.to_owned()]);
        refusals.flush(&events);
        assert_eq!(messages(&queue), [closed.to_owned(), unknown(" 3 times")]);
        (0..=u8::MAX).for_each(|alert| record(&format!("alert {alert}")));
        assert_eq!(messages(&queue).len(), REFUSAL_ALERTS);
        refusals.flush(&events);
        assert_eq!(messages(&queue), [format!("further clients broke off the TLS handshake {} times", 256 - REFUSAL_ALERTS)]);
    }

    #[test]
    fn refusals_beyond_the_address_limit_are_counted_together() {
        let (refusals, (events, queue), start) = (TlsRefusals::default(), Events::queue(), Instant::now());
        let more = 1000;
        for address in 0..REFUSING_CLIENTS + more {
            let address = Ipv4Addr::from(u32::try_from(address).unwrap());
            for _ in 0..2 {
                let _ = refusals.record_at(start, REFUSAL_INTERVAL, &events, address.into(), refused("", ""));
            }
        }
        assert_eq!(messages(&queue).len(), REFUSING_CLIENTS);
        refusals.flush(&events);
        let last = messages(&queue);
        assert_eq!(last.len(), REFUSING_CLIENTS + 1);
        assert_eq!(last.last().unwrap(), "further clients broke off the TLS handshake 2000 times");
    }
}
