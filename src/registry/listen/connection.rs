//! Serves one connection from its first byte to its end, with a deadline for everything that a peer could delay.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::activity::{Activity, StreamExecutor};
use super::admission::{Admission, PREFACE, StreamPool};
use super::client::Client;
use super::file_socket::FileSocket;
use super::listener::Transport;
use super::shutdown::{Phase, ShutdownSignal};
use super::tls_refusals::{self, SniRecorder};
use super::tls_socket::TlsSocket;
use super::write_timeout::WriteTimeout;
use crate::proto::fault_action::Connection as Fault;
use crate::registry::api::handler::Registry;
use crate::registry::content::body::{Body, ConnectionGuard};
use crate::registry::content::delivery::Responses;
use crate::registry::content::file_sender::FileSender;
use crate::registry::limits::{
    ANNOUNCED_STREAMS, DISCARDED_CONTENT, ERRORS, FEW_HTTP2_CONNECTIONS, HEAD, Limits, REQUEST_REST, RESETS, STREAM_BUFFER,
    TLS_BUFFER,
};
use crate::registry::telemetry::metrics::HandshakeFailure;

/// First byte of a TLS record that carries a handshake (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// No HTTP/1 request starts with this: bytes that do, and differ from the preface later, are a broken preface.
const HTTP2: &[u8] = b"PRI * HTTP/2";

/// To a TLS client on a plain port. containerd falls back to plain HTTP if the response starts with `HTTP/`.
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
The client sent a TLS handshake to a port that speaks plain HTTP.\n";
/// To a plain client on a TLS port.
const NOT_PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
The client sent an HTTP request to a port that speaks HTTPS only.\n";

/// The answer of a server that speaks no later version than TLS 1.1: a ServerHello (RFC 4346, section 7.4.1.3) without a session, with
/// the suite TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA. A client of today ends the handshake with `protocol_version`.
const TLS_1_1: &[u8] = b"\x16\x03\x02\x00\x2a\x02\x00\x00\x26\x03\x02\
localregistry speaks no TLS 1.2.\x00\xc0\x13\x00";

/// What a plan of faults can do to a handshake.
const HANDSHAKE_FAULTS: [Fault; 6] =
    [Fault::TlsExpired, Fault::TlsNotYetValid, Fault::TlsOtherName, Fault::TlsUnknownCa, Fault::Tls11, Fault::TlsNone];

/// The state that all connections of a server share.
#[derive(Debug)]
pub(crate) struct ServerState {
    pub registry: Arc<Registry>,
    /// TLS handshakes computed at once.
    pub handshakes: Semaphore,
    pub streams: StreamPool,
    pub http2_connections: AtomicUsize,
}

/// Counts an HTTP/2 connection until it is dropped.
#[derive(Debug)]
struct Http2Connection<'a>(&'a AtomicUsize);

impl ServerState {
    /// Counts an HTTP/2 connection. Returns the time that it may be idle, too: shorter if there are many connections.
    fn count_http2(&self) -> (Http2Connection<'_>, Duration) {
        let others = self.http2_connections.fetch_add(1, Ordering::Relaxed);
        let limits = self.registry.limits();
        let idle = if others < FEW_HTTP2_CONNECTIONS { limits.idle } else { limits.idle.min(limits.request_head) };
        (Http2Connection(&self.http2_connections), idle)
    }
}

impl Drop for Http2Connection<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The protocol of a client, detected by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tls,
    Http2,
    /// HTTP/1, or anything else: hyper answers it with an error.
    Http1,
}

impl Protocol {
    /// The protocol of a client that has sent these bytes first. `None` if it takes more of them to tell.
    pub fn of(first: &[u8]) -> Option<Self> {
        match first {
            [TLS_HANDSHAKE, ..] => Some(Self::Tls),
            PREFACE => Some(Self::Http2),
            first if PREFACE.starts_with(first) => None,
            first => Some(if first.starts_with(HTTP2) { Self::Http2 } else { Self::Http1 }),
        }
    }
}

/// Serves an accepted connection whose first bytes have arrived. A client that disconnects or breaks the protocol is logged at debug level
/// only.
pub(crate) async fn run(
    stream: TcpStream,
    protocol: Protocol,
    client: Client,
    transport: Transport,
    state: &Arc<ServerState>,
    shutdown: ShutdownSignal,
) {
    let limits = *state.registry.limits();
    let activity = Arc::<Activity>::default();
    let files = Arc::new(FileSender::new(matches!(transport, Transport::Tls(_))));
    let stream =
        WriteTimeout::new(FileSocket::new(stream, Arc::clone(&files), Arc::clone(&activity)), &limits, Arc::clone(&activity));
    let ended = match transport {
        Transport::Tls(_) if protocol != Protocol::Tls => return refuse(stream, NOT_PLAIN).await,
        Transport::Plain => {
            let files = state.registry.sendfile.then_some(files);
            Box::pin(plain(stream, protocol, files, client, state, (activity, shutdown))).await
        }
        Transport::Tls(config) => {
            let fault = state.registry.connection_fault(&client, &HANDSHAKE_FAULTS);
            match fault {
                Fault::TlsNone => return refuse(stream, NOT_TLS).await,
                Fault::Tls11 => return refuse(stream, TLS_1_1).await,
                _ => {}
            }
            let config = state.registry.faulty_tls(fault, &client).unwrap_or(config);
            let (sni, config) = SniRecorder::install(&config);
            let accepted = Box::pin(handshake(stream, config, &state.handshakes, limits.handshake)).await;
            let metrics = state.registry.metrics();
            let tls = match accepted {
                Ok(tls) => tls,
                Err(error) => {
                    let reason = HandshakeFailure::of(&error);
                    metrics.handshake_failed(reason);
                    if let Some((server_name, alert)) = sni.server_name().zip(tls_refusals::alert(&error)) {
                        let events = state.registry.events();
                        let interval = limits.refusal_interval;
                        if metrics.refusals.record(interval, events, client.peer.ip(), server_name, alert) {
                            // A reference would keep the log open after the server has ended.
                            let registry = Arc::downgrade(&state.registry);
                            tokio::spawn(async move {
                                sleep(interval).await;
                                if let Some(registry) = registry.upgrade() {
                                    registry.metrics().refusals.flush(registry.events());
                                }
                            });
                        }
                    }
                    tracing::debug!(peer = %client.peer, reason = reason.name(), %error, "the TLS handshake failed");
                    return;
                }
            };
            metrics.handshake(tls.get_ref().1.protocol_version());
            let certified = tls.get_ref().1.peer_certificates().is_some();
            let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            let client = Client { certified, ..client };
            let tls = TlsSocket::new(tls, Arc::clone(&files));
            Box::pin(http(tls, http2, Some(files), client, state, (activity, shutdown))).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %client.peer, %error, "the connection ended early");
    }
}

/// Serves a connection without TLS over any stream. `files` sends ranges of files for the responses of HTTP/1.1.
pub(in crate::registry) async fn plain<S>(
    stream: WriteTimeout<S>,
    protocol: Protocol,
    files: Option<Arc<FileSender>>,
    client: Client,
    state: &Arc<ServerState>,
    ending: (Arc<Activity>, ShutdownSignal),
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    if protocol == Protocol::Tls {
        refuse(stream, NOT_TLS).await;
        return Ok(());
    }
    http(stream, protocol == Protocol::Http2, files, client, state, ending).await
}

/// Peeks at as many bytes as it takes to tell TLS, HTTP/2 and HTTP/1 apart. Returns `None` if the client disconnects.
pub(crate) async fn detect_protocol(stream: &TcpStream) -> Option<Protocol> {
    let (mut buffer, mut seen) = ([0; PREFACE.len()], 0);
    loop {
        let count = stream.peek(&mut buffer).await.ok().filter(|count| *count > 0)?;
        if let Some(protocol) = Protocol::of(buffer.get(..count)?) {
            return Some(protocol);
        }
        // The preface comes in pieces. Until more bytes arrive, each peek returns the same ones at once.
        if count == seen {
            sleep(Duration::from_millis(5)).await;
        }
        seen = count;
    }
}

/// Makes a TLS handshake with a peer that may take `limit` for its part of it.
///
/// A permit is held while this machine computes, and never while it waits for the peer: stalled peers hold none. The time that a
/// handshake waits for its permit does not count against the peer, so no peer times out because of the others.
async fn handshake<S>(stream: S, config: Arc<ServerConfig>, permits: &Semaphore, limit: Duration) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut accepting = TlsAcceptor::from(config).accept_with(stream, |tls| tls.set_buffer_limit(Some(TLS_BUFFER)));
    let (mut permit, mut deadline) = (pin!(permits.acquire()), pin!(sleep(limit)));
    let mut queued: Option<Instant> = None;
    poll_fn(|context| {
        let Poll::Ready(acquired) = permit.as_mut().poll(context) else {
            queued.get_or_insert_with(Instant::now);
            return Poll::Pending;
        };
        if let Some(since) = queued.take() {
            let later = deadline.deadline() + since.elapsed();
            deadline.as_mut().reset(later);
        }
        let step = Pin::new(&mut accepting).poll(context);
        drop(acquired);
        if step.is_pending() {
            permit.set(permits.acquire());
            ready!(deadline.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        step
    })
    .await
}

async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: WriteTimeout<S>, response: &[u8]) {
    if stream.write_all(response).await.is_ok() && stream.shutdown().await.is_ok() {
        // Unread bytes would turn the close into a reset, which may destroy the response before the client reads it.
        let mut unread = [0; 4096];
        let drained =
            async { while tokio::io::AsyncReadExt::read(&mut stream, &mut unread).await.is_ok_and(|count| count > 0) {} };
        let _ = timeout(Duration::from_millis(500), drained).await;
    }
}

/// `files` sends ranges of files for the responses of HTTP/1.1.
async fn http<S>(
    stream: S,
    http2: bool,
    files: Option<Arc<FileSender>>,
    client: Client,
    state: &Arc<ServerState>,
    (activity, shutdown): (Arc<Activity>, ShutdownSignal),
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let limits = *state.registry.limits();
    let responses = Arc::<Responses>::default();
    activity.restart();
    let tracker =
        if http2 { ResponseTracker::Http2(Arc::clone(&responses)) } else { ResponseTracker::Http1(Arc::clone(&activity), files) };
    let service = service(Arc::clone(&state.registry), client, tracker, Arc::clone(&activity));
    if !http2 {
        let mut builder = http1_builder();
        let faults = [Fault::TitleCaseHeaders];
        builder.title_case_headers(state.registry.connection_fault(&client, &faults) == Fault::TitleCaseHeaders);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut no_head = pin!(activity.idle(limits.request_head));
        tokio::select! {
            // The connection is last: it may use up what tokio lets a task do in a turn.
            biased;
            () = shutdown.begun(Phase::Draining) => connection.as_mut().graceful_shutdown(),
            () = no_head.as_mut() => return Ok(()),
            () = activity.end.was_cut() => return Ok(()),
            () = activity.end.gone_away() => connection.as_mut().graceful_shutdown(),
            ended = connection.as_mut() => return ended,
        }
        return tokio::select! {
            biased;
            () = shutdown.begun(Phase::Closing) => Ok(()),
            () = no_head => Ok(()),
            () = activity.end.was_cut() => Ok(()),
            ended = connection => ended,
        };
    }
    let streams = StreamExecutor { limits, activity: Arc::clone(&activity) };
    let (_counted, idle_limit) = state.count_http2();
    let io = TokioIo::new(Admission::new(stream, limits.streams, &state.streams));
    let mut connection = pin!(http2_builder(&limits, streams).serve_connection(io, service));
    let is_spent = tokio::select! {
        biased;
        () = shutdown.begun(Phase::Draining) => false,
        () = responses.overdue(&limits) => true,
        () = activity.idle(idle_limit) => true,
        () = activity.end.was_cut() => return Ok(()),
        () = activity.end.gone_away() => true,
        ended = connection.as_mut() => return ended,
    };
    // Sends GOAWAY. A stream that the client opened before it received that is still served.
    connection.as_mut().graceful_shutdown();
    // hyper cannot reset a stream whose body has ended. If one is overdue, the other streams are still served to their end.
    let no_reaction = async {
        if !is_spent {
            responses.overdue(&limits).await;
        }
        loop {
            activity.idle(limits.stall).await;
            responses.all_overdue(&limits).await;
            if activity.is_idle() {
                break;
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.begun(Phase::Closing) => Ok(()),
        () = no_reaction => Ok(()),
        () = activity.end.was_cut() => Ok(()),
        ended = connection => ended,
    }
}

/// Tracks the responses of a connection.
#[derive(Debug, Clone)]
enum ResponseTracker {
    /// Each response counts as activity until it is sent, from a file if there is a sender.
    Http1(Arc<Activity>, Option<Arc<FileSender>>),
    /// [`StreamExecutor`] counts the streams. The bytes that hyper still holds when a stream has ended are tracked here.
    Http2(Arc<Responses>),
}

/// The hyper service that answers the requests of one client.
fn service(
    registry: Arc<Registry>,
    client: Client,
    tracker: ResponseTracker,
    activity: Arc<Activity>,
) -> impl Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send + 'static> + Send {
    service_fn(move |request: Request<Incoming>| {
        let (registry, tracker, connection) = (Arc::clone(&registry), tracker.clone(), Arc::clone(&activity));
        let (head, content) = request.into_parts();
        // On the heap, so that its memory is free again while the client reads the response.
        Box::pin(async move {
            let guard = match &tracker {
                ResponseTracker::Http1(activity, files) => {
                    ConnectionGuard::Http1 { _open: Activity::begin_request(activity), files: files.clone() }
                }
                ResponseTracker::Http2(responses) => ConnectionGuard::Http2(Arc::clone(responses)),
            };
            let has_content = async {
                match &tracker {
                    _ if content.is_end_stream() => false,
                    ResponseTracker::Http1(..) => true,
                    ResponseTracker::Http2(_) => Box::pin(discard(content)).await,
                }
            };
            Ok::<_, Infallible>(registry.handle(head, has_content, &client, guard, connection).await)
        })
    })
}

/// Reads and discards the content of a request. Returns whether there was any: content has no meaning in this API.
async fn discard(mut content: Incoming) -> bool {
    let (mut bytes, mut ended) = (0, false);
    let read = async {
        while let Some(Ok(frame)) = content.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > DISCARDED_CONTENT {
                return;
            }
        }
        ended = true;
    };
    let _ = timeout(REQUEST_REST, read).await;
    !ended || bytes > 0
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    // A client that has closed its sending side still gets its response.
    builder.half_close(true);
    builder.max_header_size(HEAD).max_buf_size(HEAD);
    builder
}

fn http2_builder(limits: &Limits, streams: StreamExecutor) -> http2::Builder<StreamExecutor> {
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams.max(ANNOUNCED_STREAMS))
        .max_send_buf_size(STREAM_BUFFER)
        .max_header_list_size(u32::try_from(HEAD).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(ERRORS)
        .keep_alive_interval(limits.ping)
        .keep_alive_timeout(limits.ping);
    builder
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::pki_types::pem::PemObject;
    use rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::registry::tls::Authority;

    const LIMIT: Duration = Duration::from_millis(200);

    fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let authority = Arc::new(Authority::generate("test").unwrap());
        let mut roots = RootCertStore::empty();
        roots.add(rustls::pki_types::CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        (authority.server_config(&["localhost".to_owned()], [], None).unwrap(), Arc::new(client))
    }

    #[tokio::test]
    async fn waiting_for_a_handshake_permit_does_not_count_against_the_peer() {
        let (server, client) = configs();
        let (near, far) = tokio::io::duplex(64 << 10);
        let permits = Arc::new(Semaphore::new(1));
        let busy = permits.acquire().await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let client = tokio::spawn(TlsConnector::from(client).connect(name, far));
        let accepted = tokio::spawn({
            let permits = Arc::clone(&permits);
            async move { handshake(near, server, &permits, LIMIT).await.map(drop) }
        });
        sleep(LIMIT * 3).await;
        drop(busy);
        accepted.await.unwrap().unwrap();
        client.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn handshake_with_a_silent_peer_times_out() {
        let (server, _) = configs();
        let (near, _far) = tokio::io::duplex(64 << 10);
        let result = handshake(near, server, &Semaphore::new(1), LIMIT).await.map(drop);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
