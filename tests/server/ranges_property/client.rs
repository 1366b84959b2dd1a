//! Clients that send the requests of a case. hyper, h2 and httparse parse the responses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, RANGE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsConnector;

use super::cases::{Connection, Protocol, Reader, Request};
use super::content::{Content, Target};

/// Path of the last request on each connection. Surplus bytes of earlier responses would be taken for its response.
const BASE: &str = "/v2/";
/// Size of a slow reader's socket buffer in bytes.
const SLOW_BUFFER: u32 = 16 << 10;
/// Largest TCP segment to a slow reader in bytes, as on Ethernet. The loopback's own, 64 KiB, is more than the buffer: Linux would then
/// send what fits only after a timer, 2 KB every 50 ms and slower.
const SLOW_SEGMENT: u32 = 1460;
/// Number of pauses that a slow reader makes per response.
const PAUSES: usize = 6;
const PAUSE: Duration = Duration::from_millis(1);
/// Time limit of a single read, after which the server counts as stuck.
const PATIENCE: Duration = Duration::from_secs(120);

/// A received response.
#[derive(Debug)]
pub struct Answer {
    /// Identifies the request in the server's events.
    pub user_agent: String,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// Whether the client disconnected before it had the whole body.
    pub left: bool,
}

impl Answer {
    /// Length of the body in bytes according to the head.
    pub fn content_length(&self) -> Result<u64, String> {
        let length = self.headers.get(CONTENT_LENGTH).ok_or("an answer without Content-Length")?;
        length.to_str().ok().and_then(|length| length.parse().ok()).ok_or_else(|| format!("Content-Length: {length:?}"))
    }
}

/// A request as it is sent. Its unique user agent identifies the server's event.
struct ReceivedRequest {
    user_agent: String,
    path: String,
    method: Method,
    headers: HeaderMap,
    reader: Reader,
}

impl ReceivedRequest {
    fn new(path: &str, method: Method, reader: Reader, lines: Vec<(&'static str, String)>) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let user_agent = format!("case-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::try_from(&user_agent).unwrap());
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Self { user_agent, path: path.to_owned(), method, headers, reader }
    }

    fn base() -> Self {
        Self::new(BASE, Method::GET, Reader::Fast, Vec::new())
    }

    fn of(request: &Request, target: &Target) -> Self {
        let method = if request.head { Method::HEAD } else { Method::GET };
        Self::new(&target.path, method, request.reader, request.headers(target))
    }

    fn request(&self, authority: &str) -> http::Request<Empty<Bytes>> {
        let mut request = http::Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        *request.uri_mut() = format!("http://{authority}{}", self.path).parse().unwrap();
        request
    }

    /// Adds the request to an error.
    fn named(&self, error: impl std::fmt::Display) -> String {
        let range = self.headers.get(RANGE).map(|range| String::from_utf8_lossy(range.as_bytes())).unwrap_or_default();
        format!("{} {}, Range: {range:.200}: {error}", self.method, self.path)
    }
}

/// The address of the server.
#[derive(Clone)]
pub struct Address {
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    pub config: ClientConfig,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Address {
    async fn connect(&self, tls: bool, protocol: &[u8], slow: bool) -> Result<Box<dyn Stream>, String> {
        let socket = TcpSocket::new_v4().map_err(|error| error.to_string())?;
        if slow {
            socket.set_recv_buffer_size(SLOW_BUFFER).map_err(|error| error.to_string())?;
            SockRef::from(&socket).set_tcp_mss(SLOW_SEGMENT).map_err(|error| error.to_string())?;
        }
        let stream = socket.connect(if tls { self.tls } else { self.plain }).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        if !tls {
            return Ok(Box::new(stream));
        }
        let mut config = self.config.clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        Ok(Box::new(stream.map_err(|error| format!("TLS: {error}"))?))
    }
}

/// Sends all requests of a connection. The responses are in the order of the requests. Responses to additional requests, whose
/// body must be `{}`, follow them.
pub async fn run(address: Address, content: Arc<Content>, connection: Connection) -> Result<Vec<Answer>, String> {
    let slow = connection.requests.iter().any(|request| request.reader == Reader::Slow);
    let evicted = connection.requests.iter().filter(|request| request.evict);
    evicted.for_each(|request| content.evict(&content.targets[request.target]));
    let asked =
        connection.requests.iter().map(|request| ReceivedRequest::of(request, &content.targets[request.target])).collect();
    match connection.protocol {
        Protocol::Http1 => one_after_another(&address, connection.tls, slow, asked).await,
        Protocol::Pipelined => pipelined(&address, connection.tls, slow, asked).await,
        Protocol::Http2 { window } => at_once(&address, connection.tls, slow, window, asked).await,
    }
}

type Task = JoinHandle<hyper::Result<()>>;

async fn one_after_another(address: &Address, tls: bool, slow: bool, asked: Vec<ReceivedRequest>) -> Result<Vec<Answer>, String> {
    let mut open: Option<(http1::SendRequest<Empty<Bytes>>, Task)> = None;
    let mut answers = Vec::new();
    for asked in asked.into_iter().chain([ReceivedRequest::base()]) {
        let (mut sender, task) = match open.take() {
            Some(open) => open,
            None => {
                let stream = address.connect(tls, b"http/1.1", slow).await?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
                (sender, tokio::spawn(connection))
            }
        };
        sender.ready().await.map_err(|error| asked.named(format!("the connection was closed before: {error}")))?;
        let mut request = asked.request("localhost");
        request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
        *request.uri_mut() = asked.path.parse().unwrap();
        let response = sender.send_request(request).await.map_err(|error| asked.named(format!("{error:?}")))?;
        let answer = read(&asked, response).await?;
        // A client that has not read a whole response can only close the connection.
        if !answer.left {
            open = Some((sender, task));
        }
        answers.push(answer);
    }
    let Some((sender, task)) = open else { return Ok(answers) };
    drop(sender);
    task.await.unwrap().map_err(|error| format!("the connection ended with {error:?}"))?;
    Ok(answers)
}

async fn at_once(
    address: &Address,
    tls: bool,
    slow: bool,
    window: u32,
    asked: Vec<ReceivedRequest>,
) -> Result<Vec<Answer>, String> {
    let stream = address.connect(tls, b"h2", slow).await?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window).initial_connection_window_size(window.max(65_535));
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let task: Task = tokio::spawn(connection);
    // The first response follows the server's settings, which limit the number of streams.
    let (first, last) = (ReceivedRequest::base(), ReceivedRequest::base());
    let mut further = vec![stream_of(&mut sender, first).await?];
    let mut streams = JoinSet::new();
    for (place, asked) in asked.into_iter().enumerate() {
        let mut sender = sender.clone();
        streams.spawn(async move { Ok::<_, String>((place, stream_of(&mut sender, asked).await?)) });
    }
    let mut answers = Vec::new();
    while let Some(answer) = streams.join_next().await {
        answers.push(answer.unwrap()?);
    }
    answers.sort_by_key(|(place, _)| *place);
    further.push(stream_of(&mut sender, last).await?);
    drop(sender);
    task.await.unwrap().map_err(|error| format!("the connection ended with {error:?}"))?;
    Ok(answers.into_iter().map(|(_, answer)| answer).chain(further).collect())
}

async fn stream_of(sender: &mut http2::SendRequest<Empty<Bytes>>, asked: ReceivedRequest) -> Result<Answer, String> {
    sender.ready().await.map_err(|error| asked.named(format!("the connection was closed before: {error}")))?;
    let response = sender.send_request(asked.request("localhost")).await;
    read(&asked, response.map_err(|error| asked.named(format!("{error:?}")))?).await
}

async fn read(asked: &ReceivedRequest, response: Response<Incoming>) -> Result<Answer, String> {
    let (head, mut incoming) = response.into_parts();
    let (mut body, mut pieces) = (Vec::new(), 0);
    let user_agent = asked.user_agent.clone();
    loop {
        let left = matches!(asked.reader, Reader::Leaves(after) if body.len() >= after);
        if left && !http_body::Body::is_end_stream(&incoming) {
            return Ok(Answer { user_agent, status: head.status, headers: head.headers, body, left });
        }
        let frame = tokio::time::timeout(PATIENCE, incoming.frame()).await;
        let Some(frame) = frame.map_err(|_| asked.named(format!("nothing comes after {} bytes", body.len())))? else { break };
        let frame = frame.map_err(|error| {
            asked.named(format!("after {} of {:?} bytes: {error:?}", body.len(), head.headers.get(CONTENT_LENGTH)))
        })?;
        body.extend_from_slice(frame.data_ref().ok_or_else(|| asked.named("a frame without data"))?);
        pieces += 1;
        if asked.reader == Reader::Slow && pieces <= PAUSES {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(Answer { user_agent, status: head.status, headers: head.headers, body, left: false })
}

async fn pipelined(address: &Address, tls: bool, slow: bool, asked: Vec<ReceivedRequest>) -> Result<Vec<Answer>, String> {
    let stream = address.connect(tls, b"http/1.1", slow).await?;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let asked: Vec<ReceivedRequest> = asked.into_iter().chain([ReceivedRequest::base()]).collect();
    let mut text = Vec::new();
    for (place, one) in asked.iter().enumerate() {
        text.extend_from_slice(format!("{} {} HTTP/1.1\r\nhost: localhost\r\n", one.method, one.path).as_bytes());
        for (name, value) in &one.headers {
            text.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        let end: &[u8] = if place + 1 == asked.len() { b"connection: close\r\n\r\n" } else { b"\r\n" };
        text.extend_from_slice(end);
    }
    let write = async {
        writing.write_all(&text).await.map_err(|error| format!("the requests cannot be written: {error}"))?;
        writing.flush().await.map_err(|error| error.to_string())
    };
    let read = async {
        let mut buffered = Buffered { stream: &mut reading, bytes: Vec::new(), pauses: if slow { PAUSES } else { 0 } };
        let mut answers = Vec::new();
        for one in &asked {
            answers.push(buffered.answer(one).await.map_err(|error| one.named(error))?);
        }
        // No byte may follow the last response.
        let more = buffered.more().await?;
        if more || !buffered.bytes.is_empty() {
            return Err(format!("{} bytes and more after the last answer", buffered.bytes.len()));
        }
        Ok(answers)
    };
    let (written, answers) = tokio::join!(write, read);
    written.and(answers)
}

/// Bytes from the server that are not parsed yet.
struct Buffered<'a> {
    stream: &'a mut (dyn AsyncRead + Unpin + Send),
    bytes: Vec<u8>,
    pauses: usize,
}

impl Buffered<'_> {
    /// Waits for more bytes. Returns false at the end of the stream.
    async fn more(&mut self) -> Result<bool, String> {
        if let Some(left) = self.pauses.checked_sub(1) {
            self.pauses = left;
            tokio::time::sleep(PAUSE).await;
        }
        let mut piece = [0; 16 << 10];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut piece)).await;
        let read = read.map_err(|_| "nothing comes")?.map_err(|error| error.to_string())?;
        self.bytes.extend_from_slice(&piece[..read]);
        Ok(read > 0)
    }

    async fn answer(&mut self, asked: &ReceivedRequest) -> Result<Answer, String> {
        let (status, headers) = loop {
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut response = httparse::Response::new(&mut headers);
            if let httparse::Status::Complete(length) = response.parse(&self.bytes).map_err(|error| error.to_string())? {
                let status = response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or("no status")?;
                let line = |header: &httparse::Header<'_>| {
                    (HeaderName::try_from(header.name).unwrap(), HeaderValue::from_bytes(header.value).unwrap())
                };
                let headers: HeaderMap = response.headers.iter().map(line).collect();
                self.bytes.drain(..length);
                break (status, headers);
            }
            if !self.more().await? {
                return Err(format!("the connection was closed before the answer, after {:?}", self.bytes));
            }
        };
        let user_agent = asked.user_agent.clone();
        let mut answer = Answer { user_agent, status, headers, body: Vec::new(), left: false };
        if asked.method != Method::HEAD && status != StatusCode::NOT_MODIFIED {
            let length = usize::try_from(answer.content_length()?).unwrap();
            while self.bytes.len() < length {
                if !self.more().await? {
                    return Err(format!("the connection was closed after {} of {length} bytes", self.bytes.len()));
                }
            }
            answer.body = self.bytes.drain(..length).collect();
        }
        Ok(answer)
    }
}

/// Requests content in two ranges on this many HTTP/1.1 connections and reads nothing. The connections last as long as the returned value.
/// Whole content, or one range of it, would take no buffer.
pub async fn stalled(address: &Address, path: &str, count: usize) -> Result<Vec<Box<dyn Send>>, String> {
    let mut held: Vec<Box<dyn Send>> = Vec::new();
    for _ in 0..count {
        let mut stream = address.connect(true, b"http/1.1", true).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: stalled\r\nrange: bytes=0-0,2-\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        held.push(Box::new(stream));
    }
    Ok(held)
}

/// The maximum size in bytes of a DATA frame that the server sends.
pub async fn largest_piece(address: &Address, path: &str) -> Result<usize, String> {
    let stream = address.connect(false, b"h2", false).await?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(4 << 20).initial_connection_window_size(4 << 20);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let asked = ReceivedRequest::new(path, Method::GET, Reader::Fast, Vec::new());
    let response = sender.send_request(asked.request("localhost")).await.map_err(|error| format!("{error:?}"))?;
    let (mut body, mut largest) = (response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        largest = largest.max(frame.map_err(|error| format!("{error:?}"))?.data_ref().map_or(0, Bytes::len));
    }
    Ok(largest)
}
