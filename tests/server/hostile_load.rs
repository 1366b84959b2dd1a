//! Hostile load: stalled readers, floods of handshakes and connections, obsolete TLS, names at the limits of the grammar, and text
//! with terminal escapes. Each refusal is tested next to the nearest valid request.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use localregistry::oci::media_type;
use localregistry::registry::limits::{CONNECTIONS, Limits, PAGE, STREAMS};
use serde_json::json;
use testing::h2::{Peer, id};
use testing::http::{self, connect, get, raw, send};
use testing::layout::{Layout, content};
use testing::process::Process;
use testing::server::Server;
use testing::wait::until;

/// More than the socket buffers hold.
const BIG: usize = 64 << 20;

/// A layout with one large blob, and the blob's path.
fn big() -> (Layout, String) {
    let mut layout = Layout::default();
    let content = content(BIG);
    layout.image("test/hello:latest", &content);
    let path = format!("/v2/test/hello/blobs/{}", layout.blob(&content).digest);
    layout.write();
    (layout, path)
}

fn ask(stream: &mut TcpStream, path: &str) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
}

#[test]
fn three_hundred_stalled_readers_cost_little_memory() {
    let (layout, path) = big();
    for arguments in [&["--tls", "off"][..], &[]] {
        let mut process = Process::start_with(layout.path(), arguments, None);
        if arguments.is_empty() {
            // Neither plain nor encrypted bytes wait for them: no more than what a connection without a request holds.
            process.may_grow = 300 * (64 << 10);
        }
        let mut readers: Vec<Box<dyn Read>> = Vec::new();
        for _ in 0..300 {
            let mut stream = connect(process.address);
            if arguments.is_empty() {
                let mut stream = testing::tls::anybody(stream);
                write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                stream.read_exact(&mut [0; 15]).unwrap();
                readers.push(Box::new(stream));
            } else {
                ask(&mut stream, &path);
                stream.read_exact(&mut [0; 15]).unwrap();
                readers.push(Box::new(stream));
            }
        }
        // One of them slowly continues, and another client connects.
        let mut taken = 0;
        while taken < 4 << 20 {
            taken += readers[7].read(&mut [0; 10_000]).unwrap();
        }
        if !arguments.is_empty() {
            assert!(get(process.address, &path).body == content(BIG), "another client is served");
        }
        process.check(&format!("300 readers {arguments:?}"));
    }
}

#[test]
fn stalled_handshakes_do_not_block_other_clients() {
    let (layout, _) = Layout::hello();
    let server = Server::start_with(layout.path(), Limits { handshakes: 2, ..Limits::default() });
    let hello = testing::tls::hello(0x0303, &[0xc02b]);
    let mut stalled = Vec::new();
    for at in 0..200 {
        let mut stream = connect(server.tls);
        // Half of the clients send half of their hello. The others read the server's and send no more.
        let whole = at % 2 == 0;
        stream.write_all(if whole { &hello } else { &hello[..hello.len() / 2] }).unwrap();
        if whole {
            let mut record = [0; 5];
            stream.read_exact(&mut record).unwrap();
            assert_eq!(record[0], 0x16, "the server's hello");
        }
        stalled.push(stream);
    }
    let mut good = testing::tls::anybody(connect(server.tls));
    good.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(http::read(&mut BufReader::new(good), false).unwrap().status, 200);
    for (at, stream) in stalled.iter_mut().enumerate() {
        stream.set_nonblocking(true).unwrap();
        let open = loop {
            match stream.read(&mut [0; 4096]) {
                Ok(0) => break false,
                Ok(_) => {}
                Err(error) => break error.kind() == std::io::ErrorKind::WouldBlock,
            }
        };
        assert!(open, "{at}: the good client came through while the others were still stalled");
    }
}

#[test]
fn old_tls_is_refused_with_an_alert() {
    let (layout, _) = Layout::hello();
    let server = Server::start(layout.path());
    // Type and alert (RFC 8446, section 6): protocol_version is 70, handshake_failure is 40.
    let answer = |hello: &[u8]| {
        let mut stream = connect(server.tls);
        stream.write_all(hello).unwrap();
        let mut record = [0; 7];
        stream.read_exact(&mut record).unwrap();
        if record[0] == 0x15 { Err(record[6]) } else { Ok(record[0]) }
    };
    let good = [0xc02b, 0xcca9];
    for (version, expected) in [(0x0300, Err(70)), (0x0301, Err(70)), (0x0302, Err(70)), (0x0303, Ok(0x16))] {
        assert_eq!(answer(&testing::tls::hello(version, &good)), expected, "{version:x}");
    }
    // RC4, NULL, 3DES, export, anonymous, CBC, and RSA key exchange.
    for suite in [0x0005, 0xc007, 0xc006, 0xc008, 0x0003, 0xc016, 0xc009, 0x009c] {
        assert_eq!(answer(&testing::tls::hello(0x0303, &[suite])), Err(40), "{suite:x}");
        assert_eq!(answer(&testing::tls::hello(0x0303, &[suite, 0xc02b])), Ok(0x16), "{suite:x} and a good one");
    }
}

#[test]
fn renegotiation_is_refused() {
    let (layout, _) = Layout::hello();
    let server = Server::start(layout.path());
    let mut session = testing::tls::Session::start(connect(server.tls));
    let handshake = |hello: Vec<u8>| hello[5..].to_vec();
    // The same request before, and a hello within the session, which gets the warning no_renegotiation (RFC 5246, section 7.2.2).
    let request = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n";
    session.send(23, request);
    assert!(session.receive().1.starts_with(b"HTTP/1.1 200"));
    session.send(22, &handshake(testing::tls::hello(0x0303, &[0xcca9])));
    loop {
        let (kind, bytes) = session.receive();
        if kind == 21 {
            assert_eq!(bytes, [1, 100]);
            break;
        }
        assert_eq!(kind, 23, "the rest of the response");
    }
    session.send(22, &handshake(testing::tls::hello(0x0303, &[0xcca9])));
    assert!(session.closed(), "the second attempt ends the connection");
    assert_eq!(send(server.plain, "GET", "/v2/", &[]).status, 200);
}

#[test]
fn names_and_page_sizes_at_the_limits_are_handled() {
    let mut layout = Layout::default();
    let (longest, tag) = ("a/".repeat(127) + "a", "t".repeat(128));
    let image = layout.image(&format!("{longest}:{tag}"), b"layer");
    layout.write();
    let mut process = Process::start(layout.path());
    let status = |path: &str| get(process.address, path).status;
    assert_eq!(status(&format!("/v2/{longest}/manifests/{tag}")), 200, "255 characters, and a tag of 128");
    assert_eq!(status(&format!("/v2/{longest}a/manifests/{tag}")), 400);
    assert_eq!(status(&format!("/v2/{longest}/manifests/{tag}t")), 404);
    assert_eq!(status(&format!("/v2/{longest}/manifests/{}", image.digest)), 200);
    for path in [
        format!("/v2/{longest}/manifests/{}", image.digest.to_string().to_uppercase()),
        format!("/v2/{longest}/manifests/{}0", image.digest),
        format!("/v2/{longest}/manifests/sha256:"),
        format!("/v2/{longest}/manifests/sha256:{}", "g".repeat(64)),
        format!("/v2/{longest}/manifests/sha256:..%2f..%2fetc%2fpasswd"),
        format!("/v2/{longest}/blobs/sha256:{}", "%00".repeat(64)),
        format!("/v2/{longest}/blobs/..%2f..%2findex.json"),
        format!("/v2/{longest}/blobs/../../index.json"),
        "/v2/../index.json".into(),
        "/v2/./blobs/sha256/index.json".into(),
    ] {
        let response = get(process.address, &path);
        assert!([400, 404].contains(&response.status), "{path}: {}", response.status);
    }
    // Numbers too large for any list are clamped and allocate nothing.
    for list in ["/v2/_catalog".to_owned(), format!("/v2/{longest}/tags/list")] {
        for n in ["1", "10000", "9223372036854775808", "18446744073709551615", &"9".repeat(1000)] {
            let page = get(process.address, &format!("{list}?n={n}&last={}", "%1b%ff".repeat(5000)));
            assert_eq!(page.status, 200, "{n}");
            assert!(page.body.len() < 1000 && PAGE <= 1000, "{n}");
        }
        for n in ["-1", "+1", "1e9", "0x10", " 1", "%00", "１"] {
            let n = n.replace(' ', "%20");
            let page = raw(process.address, format!("GET {list}?n={n} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
            // A plus sign in a query is a space.
            assert_eq!((page.status, page.code().as_str()), (400, "UNSUPPORTED"), "{n}");
        }
    }
    process.check("pages");
}

#[test]
fn logged_text_from_clients_is_escaped() {
    let (layout, _) = Layout::hello();
    let mut process = Process::start(layout.path());
    let address = process.address;
    let colour = "\u{9b}31m";
    let mut answered = 0;
    let requests = [
        "GET /v2/%1b%5b31m%0d%0aX/manifests/latest HTTP/1.1\r\nHost: x".to_owned(),
        "GET /v2/test/hello/manifests/%1b%5b31m%0a HTTP/1.1\r\nHost: x".into(),
        "GET /v2/test/hello/blobs/sha256:%1b%5b31m HTTP/1.1\r\nHost: x".into(),
        "GET /v2/test/hello/manifests/latest?ns=%1b%5b31m%0a HTTP/1.1\r\nHost: x".into(),
        "GET /v2/test/hello/tags/list?last=%1b%0a&n=%0a HTTP/1.1\r\nHost: x".into(),
        "A.B|C~^`'!#$%&*+-_ /%1b HTTP/1.1\r\nHost: x".into(),
        format!("{} / HTTP/1.1\r\nHost: x", "M".repeat(5000)),
        format!(
            "GET /v2/test/hello/manifests/latest HTTP/1.1\r\nHost: {colour}\r\nUser-Agent: {colour}\tx\r\nRange: bytes={colour}"
        ),
        format!("GET /v2/test/hello/manifests/{colour} HTTP/1.1\r\nHost: x"),
        // hyper refuses these before they become a request.
        "GET /v2/\u{1b}[31m HTTP/1.1\r\nHost: x".into(),
        "GE\u{1b}T /v2/ HTTP/1.1\r\nHost: x".into(),
        "GET /v2/ HTTP/1.1\r\nHost: x\r\nUser-Agent: \u{1b}[31m".into(),
    ];
    for request in &requests {
        let response = raw(address, format!("{request}\r\n\r\n").as_bytes());
        answered += usize::from(!response.body.is_empty());
        assert!(!String::from_utf8(response.body).unwrap().contains(char::is_control), "{request:?}");
    }
    assert_eq!(send(address, "GET", "/v2/test/hello/manifests/latest", &[("User-Agent", "plain/1.0 (ü)")]).status, 200);
    process.stop();
    let events = std::fs::read_to_string(&process.events).unwrap();
    assert!(!events.replace('\n', "").contains(char::is_control), "{events:?}");
    let mut lines: Vec<serde_json::Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.pop().unwrap()["done"].is_object());
    assert_eq!(lines.len(), answered + 1, "one line per valid request");
    for (name, value) in lines.iter().flat_map(|event| event["request"].as_object().unwrap()) {
        let text = value.as_str().unwrap_or_default();
        assert!(!text.contains(char::is_control) && text.len() <= 256 * 6, "{name}: {text:?}");
    }
    assert_eq!(lines.last().unwrap()["request"]["userAgent"], "plain/1.0 (ü)", "harmless text is unchanged");
}

#[test]
fn ten_thousand_connections_come_and_go() {
    let (layout, path) = big();
    let mut process = Process::start(layout.path());
    let address = process.address;
    assert_eq!(get(address, "/v2/").status, 200, "the server has opened its own files");
    let before = process.descriptors();
    std::thread::scope(|scope| {
        let flood = scope.spawn(move || {
            let mut open = VecDeque::new();
            for _ in 0..10_000 {
                open.push_back(connect(address));
                if open.len() > CONNECTIONS {
                    open.pop_front();
                }
            }
            open.len()
        });
        while !flood.is_finished() {
            assert!(get(address, &path).body == content(BIG), "an active pull completes");
        }
        assert_eq!(flood.join().unwrap(), CONNECTIONS);
    });
    assert_eq!(get(address, "/v2/").status, 200);
    until(&format!("as few open descriptors as before, {before}"), || process.descriptors() <= before);
    process.check("10,000 connections");
}

#[test]
fn server_survives_running_out_of_file_descriptors() {
    let (layout, path) = big();
    let mut process = Process::start_with(layout.path(), &["--tls", "off"], Some(64));
    let address = process.address;
    let mut transfer = connect(address);
    ask(&mut transfer, &path);
    let mut transfer = BufReader::new(transfer);
    assert!(transfer.fill_buf().unwrap().starts_with(b"HTTP/1.1 200"));
    let mut kept = connect(address);
    ask(&mut kept, "/v2/");
    let mut kept = BufReader::new(kept);
    assert_eq!(http::read(&mut kept, false).unwrap().status, 200);
    // Streams that each hold a blob open, until the last descriptor is in use, and then idle connections.
    let mut holders: Vec<Peer> = (0..2).map(|_| Peer::connect(address, &testing::h2::setting(4, 0))).collect();
    for peer in &mut holders {
        peer.send(&(0..STREAMS).flat_map(|at| testing::h2::get(id(at), &path)).collect::<Vec<u8>>());
    }
    until("the last descriptor in use", || process.descriptors() >= 64);
    ask(kept.get_mut(), &path);
    let mut another = connect(address);
    ask(&mut another, &path);
    let idle: Vec<TcpStream> = (0..200).map(|_| connect(address)).collect();
    let waiting = std::thread::spawn(move || http::read(&mut BufReader::new(another), false).unwrap());
    assert!(http::read(&mut transfer, false).unwrap().body == content(BIG), "the active transfer completed");
    drop((idle, holders));
    let next = http::read(&mut kept, false).unwrap();
    assert!(next.status == 200 && next.body == content(BIG), "an active pull waited for its next blob");
    let response = waiting.join().unwrap();
    assert_eq!((response.status, response.body.len()), (200, BIG), "a connection made without free descriptors is served");
    assert_eq!(get(address, &path).status, 200, "the next connection is served");
    process.check("no descriptors");
}

/// Starts `localregistry serve` on a layout that it refuses, and returns its message.
fn refused(layout: &Layout) -> String {
    let mut command = testing::program(testing::pack::PROGRAM);
    let output = command.arg("serve").arg(layout.path()).args(["--tls", "off", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap().replace(&layout.path().display().to_string(), "LAYOUT")
}

#[test]
fn manifest_that_is_also_an_index_is_refused() {
    let (mut layout, image) = Layout::hello();
    let mut both: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.path().join(image.digest.blob_path())).unwrap()).unwrap();
    both["manifests"] = json!([image.descriptor(media_type::OCI_MANIFEST)]);
    let both = layout.json(&both);
    layout.name(both, media_type::OCI_MANIFEST, "test/both:latest").write();
    assert_eq!(
        refused(&layout),
        format!(
            "localregistry: cannot serve LAYOUT: blob {} is not a manifest that can be served: it has both \"layers\" and \
             \"manifests\": it is an image and an index at once; it is part of test/both:latest; `localregistry inspect --verify` lists all \
             faults\n",
            both.digest
        )
    );
}

#[test]
fn urls_of_foreign_layers_are_never_fetched() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut layout = Layout::default();
    let config = layout.json(&json!({"architecture": "amd64", "os": "windows"}));
    let foreign = layout.blob(b"a layer that may not be distributed");
    let mut descriptor = foreign.descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    descriptor["urls"] = json!([format!("http://{}/layer", elsewhere.local_addr().unwrap())]);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST,
        "config": config.descriptor(media_type::DOCKER_CONFIG), "layers": [descriptor],
    });
    let stored = layout.json(&manifest);
    layout.name(stored, media_type::DOCKER_MANIFEST, "test/windows:latest").write();
    let server = Server::start(layout.path());
    let served = get(server.plain, "/v2/test/windows/manifests/latest");
    assert_eq!(served.json(), manifest, "the stored bytes");
    let path = format!("/v2/test/windows/blobs/{}", foreign.digest);
    let layer = send(server.plain, "GET", &path, &[("Authorization", "Basic dTpw")]);
    assert_eq!((layer.status, layer.body.as_slice()), (200, &b"a layer that may not be distributed"[..]));
    std::fs::remove_file(layout.path().join(foreign.digest.blob_path())).unwrap();
    let gone = get(server.plain, &path);
    assert_eq!(
        (gone.status, gone.code().as_str(), gone.header("location")),
        (500, "UNKNOWN", None),
        "nor is a client redirected there"
    );
    elsewhere.set_nonblocking(true).unwrap();
    assert_eq!(elsewhere.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "no connection was made");
}
