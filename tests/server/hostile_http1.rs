//! Hostile HTTP/1.1 and TLS clients that send raw bytes. Each refusal is tested next to the nearest valid request, and the server
//! must still serve afterwards.

use std::collections::VecDeque;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use localregistry::registry::limits::{HEAD, Limits, MINIMUM_RATE};
use testing::http::{self, begin, connect, get, raw};
use testing::layout::{Layout, Stored, content};
use testing::server::Server;

/// Timeouts short enough for a test.
fn short() -> Limits {
    Limits {
        first_byte: Duration::from_millis(300),
        handshake: Duration::from_millis(600),
        request_head: Duration::from_millis(600),
        stall: Duration::from_millis(700),
        ping: Duration::from_millis(700),
        minimum_rate: 1 << 20,
        connections: 64,
        ..Limits::default()
    }
}

fn serve(limits: Limits) -> (Server, Stored, Layout) {
    let (layout, big, _) = Layout::large();
    (Server::start_with(layout.write(), limits), big, layout)
}

fn alive(server: &Server) {
    assert_eq!(get(server.plain, "/v2/").status, 200, "the server serves the next client");
}

/// Reads until the server closes or resets the connection.
fn until_closed(mut stream: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    if let Err(error) = stream.read_to_end(&mut all) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "closed or reset is expected, not a timeout");
    }
    all
}

fn status_of(answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(answer);
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {text:?}"))
}

#[test]
fn silent_client_is_dropped() {
    let (server, ..) = serve(short());
    for address in [server.plain, server.tls] {
        assert_eq!(until_closed(connect(address)), b"");
    }
    alive(&server);
}

#[test]
fn slow_request_head_is_dropped() {
    let (server, ..) = serve(short());
    let mut stream = connect(server.plain);
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
    let answer = until_closed(stream);
    assert!(answer.is_empty() || status_of(&answer) == 408, "{:?}", String::from_utf8_lossy(&answer));
    // A head in pieces that arrive in time is served.
    let mut stream = connect(server.plain);
    for piece in ["GET /v2/ HT", "TP/1.1\r\nHo", "st: x\r\n", "\r\n"] {
        stream.write_all(piece.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(http::read(&mut BufReader::new(stream), false).unwrap().status, 200);
}

#[test]
fn stalled_or_broken_handshake_is_dropped() {
    let (server, ..) = serve(short());
    let mut stalled = connect(server.tls);
    stalled.write_all(b"\x16\x03\x01\x02\x00\x01\x00").unwrap();
    until_closed(stalled);
    // A handshake message of unknown type, a truncated ClientHello, and a record of an unknown version: each gets a TLS alert.
    for record in [
        &b"\x16\x03\x01\x00\x05\x63\x00\x00\x01\x00"[..],
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
        b"\x16\x09\x09\x00\x05\x01\x00\x00\x01\x00",
    ] {
        let mut broken = connect(server.tls);
        broken.write_all(record).unwrap();
        let alert = until_closed(broken);
        assert_eq!(alert.first(), Some(&0x15), "{record:x?}: {alert:x?}");
    }
    let mut endless = connect(server.tls);
    endless.write_all(b"\x16\x03\x01\x00\x20").unwrap();
    endless.write_all(&[0xff; 32]).unwrap();
    until_closed(endless);
    alive(&server);
}

#[test]
fn stalled_reader_is_dropped_and_others_are_served() {
    // Long enough for a good client on a busy machine.
    let (server, big, _layout) = serve(Limits { stall: Duration::from_secs(3), minimum_rate: MINIMUM_RATE, ..short() });
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let stream = begin(server.plain, format_args!("/v2/test/hello/blobs/{}", big.digest));
        stalled.push(stream);
    }
    let whole = get(server.plain, &format!("/v2/test/hello/blobs/{}", big.digest));
    assert!(whole.status == 200 && whole.body == content(64 << 20), "another client gets the whole blob");
    let mut cut = 0;
    for _ in 0..21 {
        let request = server.logged();
        assert_eq!(request.status, 200);
        cut += usize::from(!request.complete);
    }
    assert_eq!(cut, 20, "each response was cut and logged as incomplete");
    for stream in stalled {
        assert!(until_closed(stream).len() < 64 << 20);
    }
}

#[test]
fn reader_below_the_minimum_rate_is_dropped() {
    let (server, big, _layout) = serve(short());
    let mut stream = begin(server.plain, format_args!("/v2/test/hello/blobs/{}", big.digest));
    let mut buffer = vec![0; 40_000];
    // 40 kB every 100 ms never let a write wait long, and stay below the minimum rate of this test.
    let mut taken = 0;
    let ended = loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break taken,
            Ok(count) => taken += count,
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(ended < 64 << 20);
    let request = server.logged();
    assert!(!request.complete);
    alive(&server);
}

#[test]
fn oversized_request_heads_get_431() {
    let (server, ..) = serve(Limits::default());
    let lines = |count: usize| (0..count).map(|at| format!("X-{at}: 1\r\n")).collect::<String>();
    let many = |count| raw(server.plain, format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{}\r\n", lines(count)).as_bytes()).status;
    assert_eq!((many(99), many(100)), (200, 431));
    let long = |count: usize| {
        let head = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(count));
        let mut stream = connect(server.plain);
        // The server may answer and close before everything is sent.
        let _ = stream.write_all(head.as_bytes());
        status_of(&until_answered(stream))
    };
    assert_eq!((long(HEAD / 2), long(HEAD + 4096)), (200, 431));
    let target = |count: usize| {
        let mut stream = connect(server.plain);
        let _ = stream.write_all(format!("GET /v2/{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(count)).as_bytes());
        status_of(&until_answered(stream))
    };
    assert_eq!(target(1000), 404);
    assert!([414, 431].contains(&target(HEAD + 1000)));
    // The server gives up on an endless head long before it fills any memory.
    let mut stream = connect(server.plain);
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nX: ").unwrap();
    let mut sent = 0;
    while sent < 16 << 20 && stream.write_all(&[b'a'; 8192]).is_ok() {
        sent += 8192;
    }
    assert!(sent < 16 << 20, "closed while it was still being sent");
    alive(&server);
}

/// The first bytes of a response, or what came before the connection closed.
fn until_answered(mut stream: TcpStream) -> Vec<u8> {
    let mut answer = vec![0; 64];
    let count = stream.read(&mut answer).unwrap_or(0);
    answer.truncate(count);
    answer
}

#[test]
fn malformed_request_heads_are_rejected() {
    let (server, ..) = serve(Limits::default());
    let line = |text: &str| raw(server.plain, format!("GET /v2/ HTTP/1.1\r\n{text}\r\n\r\n").as_bytes()).status;
    for (broken, valid) in [
        ("Accept: */*", "Host: x"),
        ("Host: x\r\nHost: x", "Host: x\r\nAccept: a\r\nAccept: b"),
        ("Host: x\r\nContent-Length: 1\r\nContent-Length: 2", "Host: x\r\nContent-Length: 0"),
        ("Host: x\r\nContent-Length: +1", "Host: x\r\nContent-Length: 0"),
        ("Host: x\r\nTransfer-Encoding: gzip", "Host: x\r\nTE: trailers"),
        ("Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5", "Host: x\r\nAccept-Encoding: gzip"),
        ("Host: x\r\nX: a\r\n folded", "Host: x\r\nX: a folded"),
        ("Host: x\r\nX: a\0b", "Host: x\r\nX: a\tb"),
        ("Host: x\r\nX: a\rb", "Host: x\r\nX: a b"),
        ("Host : x", "Host:x"),
        ("Host: a b/c?", "Host: a"),
        ("Host: a@b", "Host: a.b:5000"),
        ("Host: a:xx", "Host: a:80"),
        ("Host: a:65536", "Host: a:"),
        ("Host: [::1", "Host: [::1]:5000"),
        ("Host: a,b", "Host: a_b"),
        ("Host: http://a", "Host:"),
        ("Host: x\r\nContent-Length: 5", "Host: x\r\nContent-Length: 0"),
        ("Host: x\r\nTransfer-Encoding: chunked", "Host: x\r\nTE: trailers"),
    ] {
        assert_eq!((line(broken), line(valid)), (400, 200), "{broken:?} next to the valid {valid:?}");
    }
    let start = |text: &str| raw(server.plain, format!("{text}\r\nHost: x\r\n\r\n").as_bytes()).status;
    assert_eq!(start("GET  /v2/ HTTP/1.1"), 400);
    assert_eq!(start("GET /v2/ HTTP/3.7"), 400);
    assert_eq!(start("GET http://x/v2/ HTTP/1.1"), 200);
    assert_eq!(start("GET http://a@x/v2/ HTTP/1.1"), 400);
    assert_eq!(start("CONNECT x:443 HTTP/1.1"), 405);
    assert_eq!(start("BREW /v2/ HTTP/1.1"), 405);
    assert_eq!(raw(server.plain, b"GET /v2/ HTTP/1.0\r\n\r\n").status, 200, "HTTP/1.0 has no Host");
    alive(&server);
}

#[test]
fn request_bodies_are_never_read() {
    let (server, ..) = serve(Limits::default());
    for head in [
        "PUT /v2/x/blobs/uploads/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n\r\n",
        "POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
        "PATCH /v2/x/blobs/uploads/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;x=",
    ] {
        let mut stream = connect(server.plain);
        stream.write_all(head.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let response = http::read(&mut reader, false).unwrap();
        assert_eq!((response.status, response.code().as_str()), (405, "UNSUPPORTED"), "{head:?}");
        let mut stream = reader.into_inner();
        let mut sent = 0;
        while sent < 64 << 20 && stream.write_all(&[b'a'; 65536]).is_ok() {
            sent += 65536;
        }
        assert!(sent < 64 << 20, "closed, not drained: {head:?}");
    }
    alive(&server);
}

#[test]
fn head_gets_no_body_and_pipelined_requests_are_answered_in_order() {
    let (server, ..) = serve(Limits::default());
    let count = 1000;
    let mut stream = connect(server.plain);
    let mut writer = stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let text: String = (0..count).map(|at| format!("GET /v2/none/manifests/t{at} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
        writer.write_all(text.as_bytes()).unwrap();
    });
    let mut reader = BufReader::new(&mut stream);
    for at in 0..count {
        assert_eq!(http::read(&mut reader, false).unwrap().code(), "NAME_UNKNOWN", "{at}");
        assert_eq!(server.logged().reference, format!("t{at}"), "in order");
    }
    sending.join().unwrap();
    let mut stream = connect(server.plain);
    stream.write_all(b"HEAD /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let answer = String::from_utf8(until_closed(stream)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    // A HEAD request that announces a body is refused by its head alone, and the body is not read as another request.
    for body in ["", "GET /v2/none HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = connect(server.plain);
        write!(stream, "HEAD /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 34\r\n\r\n{body}").unwrap();
        let answer = String::from_utf8(until_closed(stream)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400") && answer.ends_with("\r\n\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
}

#[test]
fn idle_connections_are_evicted_for_new_ones() {
    // Nothing else ends an idle connection during this test.
    let limits = Limits { connections: 8, first_byte: Duration::from_secs(600), ..Limits::default() };
    let (server, ..) = serve(limits);
    let mut kept = connect(server.plain);
    let mut ask = || {
        kept.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        http::read(&mut BufReader::new(&mut kept), false).unwrap().status
    };
    assert_eq!(ask(), 200);
    let mut silent: VecDeque<TcpStream> = (0..100).map(|_| connect(server.plain)).collect();
    for _ in 0..20 {
        silent.push_back(connect(server.plain));
        alive(&server);
        assert_eq!(ask(), 200, "an active connection is not evicted");
    }
    assert_eq!(until_closed(silent.pop_front().unwrap()), b"", "the connection that has been idle longest was evicted first");
    let mut last = silent.pop_back().unwrap();
    write!(last, "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(
        http::read(&mut BufReader::new(last), false).unwrap().status,
        200,
        "the newest idle connection may still send a request"
    );
}

#[test]
fn connections_beyond_the_limit_wait_and_are_served() {
    let (server, ..) = serve(short());
    let idle: Vec<TcpStream> = (0..300).map(|_| connect(server.plain)).collect();
    // All connection slots are taken by idle clients, which are dropped.
    alive(&server);
    drop(idle);
    alive(&server);
}
