//! The server in this process, over loopback, and clients that send anything.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use localregistry::oci::Digest;
use localregistry::registry::api::handler::{Options, Registry};
use localregistry::registry::content::store::Store;
use localregistry::registry::listen::client::Surface;
use localregistry::registry::listen::listener::{Listener, Transport};
use localregistry::registry::listen::server::serve;
use localregistry::registry::telemetry::events::Events;
use localregistry::registry::tls::Authority;

/// How long a client that sends nothing more waits for the end of its connection. The server's own limits are shorter.
const PATIENCE: Duration = Duration::from_secs(60);
/// Size of the blob: several pieces of a response, and ranges with two to four digits.
const SIZE: usize = 9000;

struct Server {
    plain: SocketAddr,
    tls: SocketAddr,
    blob: Vec<u8>,
    path: String,
}

/// The server, which serves one image with one layer.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let blob: Vec<u8> = (0..SIZE).map(|at| (at * 31 % 251) as u8).collect();
        let layer = put(&folder, &blob);
        let config = put(&folder, b"{}");
        let descriptor = |kind: &str, digest: &Digest, size: usize| {
            serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest.to_string(), "size": size})
        };
        let layers = [descriptor("layer.v1.tar", &layer, SIZE)];
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config, 2), "layers": layers,
        });
        let manifest = manifest.to_string();
        let mut entry = descriptor("manifest.v1+json", &put(&folder, manifest.as_bytes()), manifest.len());
        entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "a/b:1"});
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
        fs::write(folder.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("space");
        fs::write(folder.path().join("index.json"), index.to_string()).expect("space");

        let authority = Arc::new(Authority::generate("fuzz").expect("a CA"));
        let config = authority.server_config(&["localhost".to_owned()], Vec::new(), None).expect("a certificate");
        let (events, queue) = Events::queue();
        thread::spawn(move || queue.into_iter().for_each(drop));
        let store = Store::open(folder.path()).expect("a layout");
        let registry = Arc::new(Registry::new(store, events, Options::default()));
        let (bound, addresses) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let any = "127.0.0.1:0".parse().expect("an address");
                let listeners = [Transport::Plain, Transport::Tls(config)].map(|transport| {
                    let listener = Listener::bind(any, transport, Surface::All).expect("a port");
                    bound.send(listener.socket.local_addr().expect("an address")).expect("a receiver");
                    listener
                });
                // The folder lives as long as the server.
                let _folder = folder;
                serve(listeners.into(), registry, std::future::pending::<()>(), async |()| ()).await
            })
        });
        let next = || addresses.recv().expect("the server starts");
        Server { plain: next(), tls: next(), blob, path: format!("/v2/a/b/blobs/{layer}") }
    })
}

fn put(folder: &tempfile::TempDir, content: &[u8]) -> Digest {
    let digest = Digest::sha256_of(content);
    let path = folder.path().join(digest.blob_path());
    fs::create_dir_all(path.parent().expect("a folder")).expect("space");
    fs::write(path, content).expect("space");
    digest
}

/// Sends `data`, ends that direction, and returns all that comes back.
///
/// # Panics
/// If the server neither ends the connection nor sends more.
fn exchange(address: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut received = Vec::new();
    // A server that has refused the request closes while more is on its way.
    let _ = stream.write_all(data).and_then(|()| stream.shutdown(Shutdown::Write));
    match stream.read_to_end(&mut received) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            panic!("neither answered nor closed, after {} bytes", received.len())
        }
        _ => received,
    }
}

/// Bytes to the TLS port: the first record of a handshake, with the right length, then anything.
pub fn client_hello(data: &[u8]) {
    let length = u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes();
    let record = [&[22, 3, 1], &length[..], data].concat();
    exchange(server().tls, &record);
    exchange(server().tls, data);
}

/// Pipelined requests with HTTP/1.1, put together from known parts and free text; or any bytes.
pub fn http1(data: &[u8]) {
    let server = server();
    let mut source = Unstructured::new(data);
    if source.ratio(1, 4).unwrap_or(true) {
        let sent = source.take_rest();
        check_responses(&exchange(server.plain, sent), &[]);
        return;
    }
    let (mut sent, mut requests) = (Vec::new(), Vec::new());
    while let Ok(request) = Request::arbitrary(&mut source) {
        sent.extend(request.encode());
        requests.push(request);
        if requests.len() == 5 || source.is_empty() {
            break;
        }
    }
    check_responses(&exchange(server.plain, &sent), &requests);
}

/// A request whose head has one line for each header, so that the answers can be told apart.
#[derive(Debug)]
struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
}

impl<'a> Arbitrary<'a> for Request {
    fn arbitrary(source: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let method = *source.choose(&["GET", "GET", "GET", "HEAD", "POST", "OPTIONS"])?;
        let path = match source.int_in_range(0..=7)? {
            0..=4 => server().path.clone(),
            5 => "/v2/a/b/manifests/1".to_owned(),
            6 => "/v2/".to_owned(),
            _ => format!("/v2/{}", text(source, |char| char.is_ascii_graphic() && char != '#')?),
        };
        let mut headers = vec![("Host", "localhost".to_owned())];
        for _ in 0..source.int_in_range(0..=3)? {
            let name = *source.choose(&["Range", "Range", "If-Range", "If-None-Match", "If-Match", "Accept", "Authorization"])?;
            let position = |source: &mut Unstructured<'a>| source.int_in_range(0..=SIZE + 10);
            let value = match source.int_in_range(0..=5)? {
                0 => format!("bytes={}-{}", position(source)?, position(source)?),
                1 => format!("bytes=-{}", position(source)?),
                2 => format!("bytes={}-", position(source)?),
                3 => format!("bytes={}-{},{}-{}", position(source)?, position(source)?, position(source)?, position(source)?),
                4 => format!("\"{}\"", server().path.rsplit('/').next().unwrap_or_default()),
                _ => text(source, |char| char.is_ascii_graphic() || char == ' ')?,
            };
            headers.push((name, value));
        }
        Ok(Self { method, path, headers })
    }
}

fn text(source: &mut Unstructured<'_>, allowed: impl Fn(char) -> bool) -> arbitrary::Result<String> {
    Ok(String::arbitrary(source)?.chars().filter(|char| allowed(*char)).collect())
}

impl Request {
    fn encode(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        format!("{head}\r\n").into_bytes()
    }

    fn asks_for_blob(&self) -> bool {
        self.path == server().path && self.method != "POST" && self.method != "OPTIONS"
    }
}

/// Checks the responses in `received`, the last of which may be cut, against `requests`, as far as those are known.
fn check_responses(mut received: &[u8], requests: &[Request]) {
    let mut requests = requests.iter();
    while !received.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut fields);
        let length = match head.parse(received) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return,
            Err(error) => panic!("{error} in {:?}", String::from_utf8_lossy(received)),
        };
        let status = head.code.unwrap_or_default();
        assert!(matches!(status, 200 | 206 | 304 | 400..=431 | 503 | 505), "{status}");
        let header = |name: &str| {
            let mut found = head.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
            let value = found.next().map(|field| str::from_utf8(field.value).expect("text").to_owned());
            assert!(found.next().is_none(), "two of {name}");
            value
        };
        let request = requests.next();
        let has_body = status != 304 && request.is_none_or(|request| request.method != "HEAD");
        let announced: usize = header("content-length").map_or(0, |value| value.parse().expect("a number"));
        assert!(header("transfer-encoding").is_none() || !has_body, "a length that is not known");
        let rest = &received[length..];
        let body = &rest[..if has_body { announced.min(rest.len()) } else { 0 }];
        if let Some(request) = request.filter(|request| request.asks_for_blob()) {
            check_blob(request, status, body, announced, header("content-range"), header("content-type"));
        }
        received = &rest[body.len()..];
    }
}

/// Checks a response for the blob; `body` may be cut.
fn check_blob(request: &Request, status: u16, body: &[u8], announced: usize, range: Option<String>, kind: Option<String>) {
    let blob = &server().blob;
    match (status, range) {
        (200, None) => {
            assert_eq!(announced, blob.len(), "{request:?}");
            assert!(blob.starts_with(body), "wrong bytes: {request:?}");
        }
        (206, Some(range)) => {
            let expected = part(&range).unwrap_or_else(|| panic!("{range} for {request:?}"));
            assert_eq!(announced, expected.len(), "{range} for {request:?}");
            assert!(expected.starts_with(body), "wrong bytes: {range} for {request:?}");
        }
        (206, None) => check_parts(request, body, &kind.expect("a content type")),
        (200, Some(range)) => panic!("200 with {range} for {request:?}"),
        _ => assert!(!body.windows(16).any(|part| blob.starts_with(part)), "{status} with the blob: {request:?}"),
    }
}

/// The bytes that a `Content-Range` names.
fn part(range: &str) -> Option<&'static [u8]> {
    let (bytes, size) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = bytes.split_once('-')?;
    let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
    (size.parse() == Ok(SIZE)).then(|| server().blob.get(first..=last))?
}

/// Checks the parts of a multipart body (RFC 9110, section 14.6), whose end may be cut.
fn check_parts(request: &Request, body: &[u8], kind: &str) {
    let boundary = kind.split_once("boundary=").unwrap_or_else(|| panic!("{kind} for {request:?}")).1;
    let delimiter = format!("--{boundary}\r\n");
    let mut rest = body;
    while let Some(after) = rest.strip_prefix(delimiter.as_bytes()) {
        let Some(end) = after.windows(4).position(|four| four == b"\r\n\r\n") else { return };
        let head = str::from_utf8(&after[..end]).expect("text");
        let range = head.lines().find_map(|line| line.strip_prefix("Content-Range: ")).expect("a range");
        let expected = part(range).unwrap_or_else(|| panic!("{range} for {request:?}"));
        let content = &after[end + 4..];
        assert!(content.starts_with(&expected[..expected.len().min(content.len())]), "wrong bytes: {range} for {request:?}");
        rest = content.get(expected.len() + 2..).unwrap_or_default();
    }
}

/// Frames of HTTP/2 after the preface and a SETTINGS frame: requests for the blob on any stream, well-formed frames of any type, flags and
/// length, and free bytes.
pub fn http2(data: &[u8]) {
    let mut source = Unstructured::new(data);
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    while !source.is_empty() && sent.len() < 60_000 && frame(&mut source, &mut sent).is_ok() {}
    check_frames(&exchange(server().plain, &sent));
}

/// Appends a frame.
fn frame(source: &mut Unstructured<'_>, sent: &mut Vec<u8>) -> arbitrary::Result<()> {
    let stream = u32::from(source.int_in_range(0..=9_u8)?);
    let (kind, flags, payload): (u8, u8, Vec<u8>) = match source.int_in_range(0..=9)? {
        // HEADERS that end the headers and the stream.
        0..=2 => (1, 5, block(source)?),
        // HEADERS, to be continued; CONTINUATION.
        3 => (1, source.arbitrary()?, block(source)?),
        4 => (9, source.arbitrary()?, block(source)?),
        // WINDOW_UPDATE, RST_STREAM, SETTINGS, PING: of the right lengths.
        5 => (8, 0, source.arbitrary::<[u8; 4]>()?.to_vec()),
        6 => (3, 0, source.arbitrary::<[u8; 4]>()?.to_vec()),
        7 => (4, 0, source.arbitrary::<[u8; 6]>()?.to_vec()),
        8 => (6, source.arbitrary()?, source.arbitrary::<[u8; 8]>()?.to_vec()),
        _ => (source.arbitrary()?, source.arbitrary()?, source.arbitrary()?),
    };
    let length = if source.ratio(1, 50)? { source.arbitrary()? } else { payload.len() as u32 };
    sent.extend(&length.to_be_bytes()[1..]);
    sent.extend([kind, flags]);
    sent.extend(stream.to_be_bytes());
    sent.extend(payload);
    Ok(())
}

/// A block of headers (RFC 7541): a request for the blob, with a range or a free header; or free bytes.
fn block(source: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    if source.ratio(1, 8)? {
        return source.arbitrary();
    }
    // Of the static table: `:method: GET`, `:scheme: http`, `:authority` and `:path`, the last two with literal values.
    let mut block = vec![0x82, 0x86];
    let mut literal = |index: u8, value: &[u8]| {
        let value = &value[..value.len().min(120)];
        block.extend([index, value.len() as u8]);
        block.extend(value);
    };
    literal(0x01, b"localhost");
    literal(0x04, server().path.as_bytes());
    if source.ratio(1, 3)? {
        // `range` has the index 50, which is more than fits into four bits.
        let value: &[u8] = source.arbitrary()?;
        block.extend([0x0f, 50 - 15]);
        block.push(value.len().min(120) as u8);
        block.extend(&value[..value.len().min(120)]);
    }
    Ok(block)
}

/// Checks that each answer with status 200 carries the blob, up to where it is cut.
fn check_frames(mut received: &[u8]) {
    let mut answers: Vec<(u32, usize)> = Vec::new();
    while let Some((head, rest)) = received.split_first_chunk::<9>() {
        let [l0, l1, l2, kind, flags, stream @ ..] = *head;
        let (length, stream) = (u32::from_be_bytes([0, l0, l1, l2]) as usize, u32::from_be_bytes(stream));
        let Some((payload, rest)) = rest.split_at_checked(length) else { return };
        received = rest;
        match kind {
            // The status comes first; 0x88 is `:status: 200` of the static table.
            1 if payload.first() == Some(&0x88) => answers.push((stream, 0)),
            0 => {
                let Some((_, sent)) = answers.iter_mut().rfind(|(of, _)| *of == stream) else { continue };
                let blob = &server().blob;
                assert_eq!(blob.get(*sent..*sent + payload.len()), Some(payload), "wrong bytes at {sent}");
                *sent += payload.len();
                assert!(flags & 1 == 0 || *sent == blob.len(), "ended after {sent} bytes");
            }
            _ => {}
        }
    }
}
