//! TLS and its certificates, HTTP/2, the wrong protocol on a port, the request log, and graceful shutdown.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use localregistry::proto::event::Event;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use testing::h2::{self, Peer};
use testing::layout::{Layout, Stored, content};
use testing::process::Process;
use testing::server::Server;
use testing::{certificates, http};

fn serve() -> (Server, Stored, Layout) {
    let mut layout = Layout::default();
    let image = layout.image("test/hello:latest", &content(3_000_000));
    layout.image("docker.io/library/busybox:1", b"busybox");
    (Server::start(layout.write()), image, layout)
}

fn client(ca_pem: &str, alpn: &[&str], versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

fn tls(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), http::connect(address));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

#[test]
fn tls_1_2_and_1_3_accept_every_certificate_name_and_no_other() {
    let (server, image, _layout) = serve();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = Arc::new(client(&server.ca_pem, &["http/1.1"], &[version]));
        for name in ["localhost", "127.0.0.1", "registry.test", "docker.io", "registry-1.docker.io"] {
            let mut stream = tls(server.tls, &config, name).unwrap_or_else(|error| panic!("{name}: {error}"));
            stream.write_all(b"HEAD /v2/test/hello/manifests/latest HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let response = http::read(&mut BufReader::new(&mut stream), true).unwrap();
            assert_eq!(response.header("docker-content-digest"), Some(image.digest.to_string().as_str()), "{name}");
        }
        for name in ["quay.io", "example.test", "127.0.0.2"] {
            let error = tls(server.tls, &config, name).unwrap_err().to_string();
            assert!(error.contains("not valid for name"), "{name}: {error}");
        }
    }
    let (other, ..) = serve();
    let config = Arc::new(client(&other.ca_pem, &[], rustls::ALL_VERSIONS));
    let error = tls(server.tls, &config, "localhost").unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer") || error.contains("BadSignature"), "another appliance's CA: {error}");
}

#[test]
fn tls_sessions_are_resumed() {
    let (server, ..) = serve();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = Arc::new(client(&server.ca_pem, &["http/1.1"], &[version]));
        let kinds: Vec<_> = (0..2)
            .map(|_| {
                let mut stream = tls(server.tls, &config, "localhost").unwrap();
                stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                assert!(text.starts_with("HTTP/1.1 200"), "{text}");
                stream.conn.handshake_kind().unwrap()
            })
            .collect();
        assert_eq!(kinds, [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed], "{version:?}");
    }
}

#[tokio::test]
async fn http2_works_by_alpn_and_prior_knowledge() {
    let (server, image, _layout) = serve();
    let plain = tokio::net::TcpStream::connect(server.plain).await.unwrap();
    check_http2(TokioIo::new(plain), &image).await;
    let config = Arc::new(client(&server.ca_pem, &["h2", "http/1.1"], rustls::ALL_VERSIONS));
    let stream = tokio::net::TcpStream::connect(server.tls).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    check_http2(TokioIo::new(stream), &image).await;
    let logged = server.logged();
    assert_eq!((logged.protocol.as_str(), logged.status), ("HTTP/2", 200));
}

async fn check_http2<I>(io: I, image: &Stored)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let task = tokio::spawn(connection);
    let get = |path: String| hyper::Request::get(format!("http://localhost{path}")).body(Empty::<Bytes>::new()).unwrap();
    let manifest = sender.send_request(get("/v2/test/hello/manifests/latest".into())).await.unwrap();
    assert_eq!(manifest.status(), 200);
    assert_eq!(manifest.headers()["docker-content-digest"], image.digest.to_string());
    let manifest = manifest.into_body().collect().await.unwrap().to_bytes();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    // All requests run at once, and all bodies are read at once, because unread bodies use up the shared window.
    let mut blobs = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let response = sender.send_request(get(format!("/v2/test/hello/blobs/{layer}")));
        blobs.spawn(async move { response.await.unwrap().into_body().collect().await.unwrap().to_bytes() });
    }
    while let Some(body) = blobs.join_next().await {
        let body = body.unwrap();
        assert!(body == content(3_000_000));
    }
    drop(sender);
    task.await.unwrap().unwrap();
}

#[test]
fn wrong_protocol_on_a_port_gets_400_and_an_explanation() {
    let (server, ..) = serve();
    let hello = http::raw(server.plain, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    assert_eq!(
        (hello.status, hello.body),
        (400, b"The client sent a TLS handshake to a port that speaks plain HTTP.\n".to_vec())
    );
    let plain = http::get(server.tls, "/v2/");
    assert_eq!(
        (plain.status, plain.body),
        (400, b"The client sent an HTTP request to a port that speaks HTTPS only.\n".to_vec())
    );
    assert_eq!(http::get(server.plain, "/v2/").status, 200, "the next client is served");
}

/// Two TLS and two plain listeners over both address families, and a node without a CA that fetches it over plain HTTP.
#[test]
fn several_listeners_serve_at_once() {
    let (layout, image) = Layout::hello();
    let arguments = ["--listen", "[::1]:0", "--plain", "127.0.0.1:0", "--plain", "[::1]:0"];
    let process = Process::start_with(layout.path(), &arguments, None);
    let [tls_4, tls_6, plain_4, plain_6] = process.addresses[..] else { panic!("{:?}", process.addresses) };
    assert!(tls_4.is_ipv4() && tls_6.is_ipv6() && plain_4.is_ipv4() && plain_6.is_ipv6());
    let ca = String::from_utf8(http::get(plain_4, "/ca.crt").body).unwrap();
    assert_eq!(http::get(plain_6, "/ca.crt").body, ca.as_bytes());
    let config = certificates::client(&ca, &rustls::version::TLS13, None);
    let (target, digest) = ("/v2/test/hello/manifests/latest", image.digest.to_string());
    for address in [tls_4, tls_6] {
        let response = certificates::send(address, &config, "GET", target, &[]).unwrap();
        assert_eq!((response.status, response.header("docker-content-digest")), (200, Some(digest.as_str())), "{address}");
        assert_eq!(http::get(address, target).status, 400, "{address}: HTTPS only");
    }
    for address in [plain_4, plain_6] {
        assert_eq!(http::get(address, target).header("docker-content-digest"), Some(digest.as_str()), "{address}");
    }
}

#[test]
fn every_request_is_logged_once_when_it_ends() {
    let (server, image, _layout) = serve();
    let target = format!("/v2/test/hello/manifests/{}", image.digest);
    http::send(server.plain, "GET", &target, &[("Range", "bytes=0-9"), ("User-Agent", "a\tb\u{9b}31m")]);
    let request = server.logged();
    assert_eq!((request.method.as_str(), request.endpoint.as_str(), request.status), ("GET", "manifest", 206));
    assert_eq!(
        (request.repository.as_str(), request.reference, request.digest),
        ("test/hello", image.digest.to_string(), image.digest.to_string())
    );
    assert_eq!((request.bytes, request.range.as_str(), request.complete), (10, "bytes=0-9", true));
    assert!(request.peer.starts_with("127.0.0.1:"));
    assert_eq!(request.user_agent, r"a\tb\u{9b}31m", "no control character reaches a log");

    http::send(server.plain, "HEAD", &target, &[]);
    let request = server.logged();
    assert_eq!((request.method.as_str(), request.bytes, request.complete), ("HEAD", 0, true));
    http::send(server.plain, "DELETE", &target, &[]);
    assert_eq!(server.logged().status, 405);
}

#[test]
fn aborted_download_is_logged_as_incomplete() {
    let (layout, big, _) = Layout::large();
    let server = Server::start(layout.write());
    let mut stream = http::begin(server.plain, format_args!("/v2/test/hello/blobs/{}", big.digest));
    let mut some = [0; 1000];
    stream.read_exact(&mut some).unwrap();
    drop(stream);
    let request = server.logged();
    assert_eq!((request.status, request.complete), (200, false));
    assert!(request.bytes < 64 << 20);
}

#[test]
fn shutdown_finishes_transfers_and_accepts_no_new_ones() {
    let (layout, big, content) = Layout::large();
    let server = Server::start(layout.write());
    let (address, mut stream) = (server.plain, http::connect(server.plain));
    write!(stream, "GET /v2/test/hello/blobs/{} HTTP/1.1\r\nHost: x\r\n\r\n", big.digest).unwrap();
    let mut reader = BufReader::new(stream);
    let mut first = [0; 4096];
    reader.read_exact(&mut first).unwrap();
    let stopping = std::thread::spawn(move || server.stop(Duration::from_secs(60)));
    // The listener closes when the shutdown begins. Until then it may accept a new connection.
    while TcpStream::connect(address).is_ok() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    // The first bytes were the head and the start of the content.
    assert!(content.ends_with(&rest) && rest.len() > (64 << 20) - 4096, "the active transfer completed");
    let totals = stopping.join().unwrap();
    assert_eq!((totals.requests, totals.bytes), (1, 64 << 20));
}

#[test]
fn transfers_left_after_the_drain_are_cut() {
    let (layout, big, _) = Layout::large();
    let server = Server::start(layout.write());
    let mut stream = http::begin(server.plain, format_args!("/v2/test/hello/blobs/{}", big.digest));
    let mut first = [0; 4096];
    stream.read_exact(&mut first).unwrap();
    // Also an HTTP/2 stream that reads nothing.
    let mut peer = Peer::new(server.plain);
    peer.send(&h2::get(1, &format!("/v2/test/hello/blobs/{}", big.digest)));
    assert_eq!(peer.status(1), 200);
    let totals = server.stop(Duration::from_millis(100));
    assert_eq!((totals.requests, totals.bytes < 64 << 20), (2, true), "cut responses are counted");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < (64 << 20) - 4096, "the body is shorter than Content-Length");
}

#[test]
fn truncated_blob_is_never_served_as_complete() {
    let (layout, big, _) = Layout::large();
    let server = Server::start(layout.write());
    let file = std::fs::File::options().write(true).open(layout.path().join(big.digest.blob_path())).unwrap();
    let target = format!("/v2/test/hello/blobs/{}", big.digest);

    // The file shrinks while it is sent: the response ends early, and a warning is logged.
    let mut stream = http::begin(server.plain, &target);
    let mut first = [0; 4096];
    stream.read_exact(&mut first).unwrap();
    file.set_len(1 << 20).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 64 << 20);
    let Event::Warning(warning) = server.event() else { panic!("a warning is expected first") };
    assert_eq!(warning.code, "TRUNCATED");
    let message = format!("{} on {}: the file ends at byte ", big.digest, layout.path().display());
    assert!(warning.message.starts_with(&message), "{}", warning.message);
    assert!(!server.logged().complete);

    // The next request fails before anything is sent, because the file is already known to be short.
    let response = http::get(server.plain, &target);
    assert_eq!((response.status, response.code().as_str()), (500, "UNKNOWN"));
    assert_eq!(http::get(server.plain, "/v2/test/hello/manifests/latest").status, 200, "the rest is served");
}

#[test]
fn ranges_of_a_shrinking_file_are_cut_over_both_protocols() {
    let (layout, big, content) = Layout::large();
    let server = Server::start(layout.write());
    let file = std::fs::File::options().write(true).open(layout.path().join(big.digest.blob_path())).unwrap();
    let (target, kept) = (format!("/v2/test/hello/blobs/{}", big.digest), 1 << 20);
    for range in ["bytes=1000-49999999", "bytes=1000-49999999,60000000-60000009"] {
        let mut stream = http::connect(server.plain);
        write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\nRange: {range}\r\n\r\n").unwrap();
        let mut came = vec![0; 4096];
        stream.read_exact(&mut came).unwrap();
        file.set_len(kept).unwrap();
        let _ = stream.read_to_end(&mut came);
        // The start of the range follows the head of the response or of its first part.
        let before = came.windows(16).position(|window| window == &content[1000..1016]).unwrap();
        let sent = &came[before..];
        assert!(sent.len() < 49_999_000 && content[1000..].starts_with(sent), "{range}: {} bytes", sent.len());
        let logged = server.logged();
        assert!((logged.status, logged.complete) == (206, false) && logged.bytes >= sent.len() as u64, "{logged:?}");
        file.write_all_at(&content[usize::try_from(kept).unwrap()..], kept).unwrap();

        let mut peer = Peer::new(server.plain);
        let block = h2::block("GET", &target, &[("range", range)]);
        peer.send(&h2::frame(h2::HEADERS, h2::END_HEADERS | h2::END_STREAM, 1, &block));
        assert_eq!(peer.status(1), 206);
        file.set_len(kept).unwrap();
        peer.send(&[h2::window(0, 1 << 30), h2::window(1, 1 << 30)].concat());
        let mut came = Vec::new();
        let end = loop {
            let frame = peer.until(|frame| frame.stream == 1);
            if frame.kind != h2::DATA || frame.flags & h2::END_STREAM != 0 {
                break frame;
            }
            came.extend_from_slice(&frame.payload);
        };
        assert_eq!(end.kind, h2::RST_STREAM, "{range}: the stream is reset");
        let before = came.windows(16).position(|window| window == &content[1000..1016]).unwrap();
        assert!(content[1000..].starts_with(&came[before..]) && came.len() < 49_999_000, "{range}: {} bytes", came.len());
        assert!(!server.logged().complete);
        file.write_all_at(&content[usize::try_from(kept).unwrap()..], kept).unwrap();
    }
    let whole = http::get(server.plain, &target);
    assert!(whole.status == 200 && whole.body == content, "the file is complete again");
}

#[test]
fn half_closed_client_gets_its_response() {
    let (layout, big, content) = Layout::large();
    let server = Server::start(layout.write());
    let request = format!("GET /v2/test/hello/blobs/{} HTTP/1.1\r\nHost: x\r\n\r\n", big.digest);
    let whole = |stream: &mut dyn Read| {
        let response = http::read(&mut BufReader::new(stream), false).unwrap();
        assert_eq!((response.status, response.body == content), (200, true), "the whole body");
    };
    let mut plain = http::connect(server.plain);
    plain.write_all(request.as_bytes()).unwrap();
    plain.shutdown(std::net::Shutdown::Write).unwrap();
    whole(&mut plain);

    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = Arc::new(client(&server.ca_pem, &["http/1.1"], &[version]));
        for also_of_tcp in [false, true] {
            let mut stream = tls(server.tls, &config, "localhost").unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            stream.conn.send_close_notify();
            stream.flush().unwrap();
            if also_of_tcp {
                stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
            }
            whole(&mut stream);
        }
    }
    assert_eq!(http::get(server.plain, "/v2/").status, 200);
}
