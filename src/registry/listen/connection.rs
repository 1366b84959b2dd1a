//! One connection, from its first byte to its end, with every deadline that a peer could otherwise overstay.

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
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::activity::{Activity, Streams};
use super::admission::{self, Admission, PREFACE};
use super::client::Client;
use super::refusals::{self, AskedFor};
use super::write_timeout::Guarded;
use crate::registry::api::handler::Registry;
use crate::registry::content::body::{Body, ConnectionGuard};
use crate::registry::content::buffers::Draining;
use crate::registry::limits::{
    ANNOUNCED_STREAMS, CONTENT, ERRORS, HEAD, Limits, REQUEST_REST, RESETS, STREAM_BUFFER, TLS_BUFFER, UNCROWDED,
};
use crate::registry::telemetry::metrics::HandshakeFailure;

/// First byte of a TLS record that carries a handshake (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// Where HTTP/2 begins, and no request of HTTP/1 does: a preface that goes on otherwise is a broken one.
const HTTP2: &[u8] = b"PRI * HTTP/2";

/// To a TLS client on a plain port. containerd falls back to plain HTTP where the answer starts with `HTTP/`.
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
The client sent a TLS handshake to a port that speaks plain HTTP.\n";
/// To a plain client on a TLS port.
const NOT_PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
The client sent an HTTP request to a port that speaks HTTPS only.\n";

/// How a listener's clients speak.
#[derive(Debug, Clone)]
pub enum Transport {
    /// HTTP/1.1, or HTTP/2 with prior knowledge.
    Plain,
    /// TLS, with HTTP/1.1 or HTTP/2 by ALPN.
    Tls(Arc<ServerConfig>),
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub registry: Arc<Registry>,
    pub handshakes: Semaphore,
    /// What streams of HTTP/2 take.
    pub streams: admission::Shared,
    /// Connections that have HTTP/2 at present.
    pub multiplexed: AtomicUsize,
}

/// A connection with HTTP/2, as long as it lasts.
#[derive(Debug)]
struct Multiplexed<'a>(&'a AtomicUsize);

impl Shared {
    /// Counts a connection with HTTP/2, and says how long it may be idle.
    fn multiplexed(&self) -> (Multiplexed<'_>, Duration) {
        let others = self.multiplexed.fetch_add(1, Ordering::Relaxed);
        let limits = self.registry.limits();
        // If there are many connections, an idle one makes room for the next.
        let patience = if others < UNCROWDED { limits.idle } else { limits.idle.min(limits.request_head) };
        (Multiplexed(&self.multiplexed), patience)
    }
}

impl Drop for Multiplexed<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How far the end of the server has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It serves.
    Open,
    /// Each connection ends after the responses under way.
    Draining,
    /// Each ends at once.
    Cut,
}

/// Tells a connection when to end; it holds the drain open while it lives.
#[derive(Debug, Clone)]
pub(crate) struct Closing {
    pub closing: watch::Receiver<Phase>,
    pub _alive: mpsc::Sender<()>,
}

/// What a client speaks, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoken {
    Tls,
    Http2,
    /// HTTP/1, or nothing that is known.
    Http1,
}

/// Serves one accepted connection that has said something. A client that goes away or breaks the protocol is no error of ours.
pub(crate) async fn run(
    stream: TcpStream,
    spoken: Spoken,
    client: Client,
    transport: Transport,
    shared: &Arc<Shared>,
    closing: Closing,
) {
    let limits = *shared.registry.limits();
    let activity = Arc::<Activity>::default();
    let stream = Guarded::new(stream, limits.stall, Arc::clone(&activity));
    let ended = match transport {
        Transport::Plain if spoken == Spoken::Tls => return refuse(stream, NOT_TLS).await,
        Transport::Tls(_) if spoken != Spoken::Tls => return refuse(stream, NOT_PLAIN).await,
        Transport::Plain => Box::pin(http(stream, spoken == Spoken::Http2, client, shared, (activity, closing))).await,
        Transport::Tls(config) => {
            let (asked, config) = AskedFor::noted(&config);
            let shaken = Box::pin(handshake(stream, config, &shared.handshakes, limits.handshake)).await;
            let metrics = shared.registry.metrics();
            let tls = match shaken {
                Ok(tls) => tls,
                Err(error) => {
                    let reason = HandshakeFailure::of(&error);
                    metrics.handshake_failed(reason);
                    if let Some((server_name, alert)) = asked.server_name().zip(refusals::alert(&error)) {
                        metrics.refusals.happened(shared.registry.events(), client.peer.ip(), server_name, alert);
                    }
                    tracing::debug!(peer = %client.peer, reason = reason.name(), %error, "the TLS handshake failed");
                    return;
                }
            };
            metrics.handshake(tls.get_ref().1.protocol_version());
            let certified = tls.get_ref().1.peer_certificates().is_some();
            let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            Box::pin(http(tls, http2, Client { certified, ..client }, shared, (activity, closing))).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %client.peer, %error, "the connection ended early");
    }
}

/// Looks at the first bytes without taking them: as many as tell TLS, HTTP/2 and HTTP/1 apart. Nothing where the client is gone.
pub(crate) async fn spoken(stream: &TcpStream) -> Option<Spoken> {
    let (mut buffer, mut seen) = ([0; PREFACE.len()], 0);
    loop {
        let count = stream.peek(&mut buffer).await.ok().filter(|count| *count > 0)?;
        match buffer.get(..count)? {
            [TLS_HANDSHAKE, ..] => return Some(Spoken::Tls),
            PREFACE => return Some(Spoken::Http2),
            first if !PREFACE.starts_with(first) => {
                return Some(if first.starts_with(HTTP2) { Spoken::Http2 } else { Spoken::Http1 });
            }
            _ => {}
        }
        // A preface in pieces: peeking again gives the same bytes at once until more arrive.
        if count == seen {
            sleep(Duration::from_millis(5)).await;
        }
        seen = count;
    }
}

/// Makes a TLS handshake with a peer that may take `patience` for its part of it.
///
/// A permit is held while this machine computes, never while the peer is waited for: stalled peers hold none. The time that a handshake
/// waits for its permit is not the peer's, so a crowd of peers does not make any of them late.
async fn handshake<S>(stream: S, config: Arc<ServerConfig>, permits: &Semaphore, patience: Duration) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut shaking = TlsAcceptor::from(config).accept_with(stream, |tls| tls.set_buffer_limit(Some(TLS_BUFFER)));
    let (mut permit, mut deadline) = (pin!(permits.acquire()), pin!(sleep(patience)));
    let mut queued: Option<Instant> = None;
    poll_fn(|context| {
        let Poll::Ready(held) = permit.as_mut().poll(context) else {
            queued.get_or_insert_with(Instant::now);
            return Poll::Pending;
        };
        if let Some(since) = queued.take() {
            let later = deadline.deadline() + since.elapsed();
            deadline.as_mut().reset(later);
        }
        let step = Pin::new(&mut shaking).poll(context);
        drop(held);
        if step.is_pending() {
            permit.set(permits.acquire());
            ready!(deadline.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        step
    })
    .await
}

async fn refuse(mut stream: Guarded<TcpStream>, answer: &[u8]) {
    if stream.write_all(answer).await.is_ok() && stream.shutdown().await.is_ok() {
        // Unread bytes would turn the close into a reset, and the answer might be lost with it.
        let mut rest = [0; 4096];
        let drained = async { while tokio::io::AsyncReadExt::read(&mut stream, &mut rest).await.is_ok_and(|count| count > 0) {} };
        let _ = timeout(Duration::from_millis(500), drained).await;
    }
}

async fn http<S>(
    stream: S,
    http2: bool,
    client: Client,
    shared: &Arc<Shared>,
    (activity, closing): (Arc<Activity>, Closing),
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let limits = *shared.registry.limits();
    let draining = Arc::<Draining>::default();
    activity.begin();
    let overseer = if http2 { Overseer::Http2(Arc::clone(&draining)) } else { Overseer::Http1(Arc::clone(&activity)) };
    let service = service(Arc::clone(&shared.registry), client, overseer);
    let mut told = closing.closing.clone();
    if !http2 {
        let mut connection = pin!(http1_builder().serve_connection(TokioIo::new(stream), service));
        let mut no_head = pin!(activity.idle(limits.request_head));
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = no_head.as_mut() => return Ok(()),
            _ = told.wait_for(|phase| *phase >= Phase::Draining) => connection.as_mut().graceful_shutdown(),
        }
        return tokio::select! {
            ended = connection => ended,
            () = no_head => Ok(()),
            _ = told.wait_for(|phase| *phase == Phase::Cut) => Ok(()),
        };
    }
    let streams = Streams { stall: limits.stall, activity: Arc::clone(&activity) };
    let (_counted, patience) = shared.multiplexed();
    let io = TokioIo::new(Admission::new(stream, limits.streams, &shared.streams));
    let mut connection = pin!(http2_builder(&limits, streams).serve_connection(io, service));
    let mut overdue = pin!(draining.overdue(limits.stall));
    let idle = tokio::select! {
        ended = connection.as_mut() => return ended,
        () = overdue.as_mut() => return Ok(()),
        () = activity.idle(patience) => true,
        _ = told.wait_for(|phase| *phase >= Phase::Draining) => false,
    };
    // The client is told. A stream that it opened before it knew is still served.
    connection.as_mut().graceful_shutdown();
    let silent = async {
        sleep(limits.stall).await;
        activity.idle(limits.stall).await;
    };
    tokio::select! {
        ended = connection => ended,
        () = overdue => Ok(()),
        () = silent, if idle => Ok(()),
        _ = told.wait_for(|phase| *phase == Phase::Cut) => Ok(()),
    }
}

/// Who watches over the responses of a connection.
#[derive(Debug, Clone)]
enum Overseer {
    /// A connection has to be told when one is under way.
    Http1(Arc<Activity>),
    /// Streams know, and only what they leave has to be watched.
    Http2(Arc<Draining>),
}

/// Answers the requests of one client.
fn service(
    registry: Arc<Registry>,
    client: Client,
    overseer: Overseer,
) -> impl Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send + 'static> + Send {
    service_fn(move |request: Request<Incoming>| {
        let (registry, overseer) = (Arc::clone(&registry), overseer.clone());
        let (head, content) = request.into_parts();
        // On the heap, so that its memory is free again while the answer is being read, and in vain.
        Box::pin(async move {
            let guard = match &overseer {
                Overseer::Http1(activity) => ConnectionGuard::Http1 { _open: Activity::open(activity) },
                Overseer::Http2(draining) => ConnectionGuard::Http2(Arc::clone(draining)),
            };
            let has_content = async {
                match &overseer {
                    _ if content.is_end_stream() => false,
                    Overseer::Http1(_) => true,
                    Overseer::Http2(_) => rest(content).await,
                }
            };
            Ok::<_, Infallible>(registry.handle(head, has_content, &client, guard).await)
        })
    })
}

/// Waits until a client has sent the rest of its request, and says whether that is more than nothing. Content means nothing here: it is
/// discarded.
async fn rest(mut content: Incoming) -> bool {
    let (mut bytes, mut ended) = (0, false);
    let read = async {
        while let Some(Ok(frame)) = content.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > CONTENT {
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
    // A client that has said all it wants to say, and said so, is answered all the same.
    builder.half_close(true);
    builder.max_header_size(HEAD).max_buf_size(HEAD);
    builder
}

fn http2_builder(limits: &Limits, streams: Streams) -> http2::Builder<Streams> {
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

    const PATIENCE: Duration = Duration::from_millis(200);

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
    async fn time_in_the_queue_for_a_handshake_does_not_count_against_the_peer() {
        let (server, client) = configs();
        let (near, far) = tokio::io::duplex(64 << 10);
        let permits = Arc::new(Semaphore::new(1));
        let busy = permits.acquire().await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let client = tokio::spawn(TlsConnector::from(client).connect(name, far));
        let accepted = tokio::spawn({
            let permits = Arc::clone(&permits);
            async move { handshake(near, server, &permits, PATIENCE).await.map(drop) }
        });
        sleep(PATIENCE * 3).await;
        drop(busy);
        accepted.await.unwrap().unwrap();
        client.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn peer_that_sends_nothing_is_late() {
        let (server, _) = configs();
        let (near, _far) = tokio::io::duplex(64 << 10);
        let late = handshake(near, server, &Semaphore::new(1), PATIENCE).await.map(drop);
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
