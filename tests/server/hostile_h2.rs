//! Hostile HTTP/2 clients: malformed frames, and floods of valid ones. The server is a separate process. After each attack it must
//! still run, its memory must have grown by less than [`testing::process::GROWTH`], and it must have served another client
//! meanwhile. Each refusal is tested next to the nearest valid request.

use std::io::Write;
use std::time::Duration;

use localregistry::registry::limits::{ANNOUNCED_STREAMS, HEAD};
use testing::h2::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, End, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, PING,
    PRIORITY, Peer, REFUSED_STREAM, RST_STREAM, SETTINGS, block, field, frame, get, id, post, reset, setting, string, window,
};
use testing::server::Server;
use testing::target::{layout, short, target};

const CALM: End = End { goaway: Some(ENHANCE_YOUR_CALM), closed: true };

#[test]
fn rapid_resets_end_the_connection() {
    let mut t = target();
    let big = t.big.clone();
    // Each write has many, so that they arrive faster than the server handles them (CVE-2023-44487).
    let end = t.flood("rapid reset", 10_000, |at| {
        (at * 100..at * 100 + 100).flat_map(|at| [get(id(at), &big), reset(id(at))].concat()).collect()
    });
    assert_eq!(end, CALM);
    let mut peer = Peer::new(t.process.address);
    for at in 0..5 {
        peer.send(&[get(id(at), &t.big), reset(id(at))].concat());
    }
    assert_eq!(peer.served(id(5), &t.small), 100_000, "five resets are tolerated");
    // Like a client that changes its mind: each response comes before its reset.
    for at in 6..106 {
        peer.send(&get(id(at), &t.big));
        assert_eq!(peer.status(id(at)), 200);
        peer.send(&reset(id(at)));
        // Parts of the body that came before the reset have used up the connection's window.
        peer.send(&window(0, 65_535));
    }
    assert_eq!(peer.served(id(106), &t.small), 100_000, "a hundred consecutive resets are tolerated");
}

#[test]
fn endless_header_blocks_end_the_connection() {
    let mut t = target();
    let start = |block: &[u8]| frame(HEADERS, END_STREAM, 1, block);
    let fields = field("x", &[b'a'; 16_000]);
    let full = |at: u32| if at == 0 { start(&block("GET", "/v2/", &[])) } else { frame(CONTINUATION, 0, 1, &fields) };
    assert_eq!(t.flood("CONTINUATION", 100_000, full), CALM);
    let empty = |at: u32| if at == 0 { start(&block("GET", "/v2/", &[])) } else { frame(CONTINUATION, 0, 1, &[]).repeat(1000) };
    assert_eq!(t.flood("empty CONTINUATION", 100_000, empty), CALM);
    // One endless string, which cannot be decoded before it is complete.
    let endless = |at: u32| {
        let head = [&[0, 1, b'x'][..], &[0x7f, 0xff, 0xff, 0xff, 0x7f], &[b'a'; 16_000]].concat();
        if at == 0 { start(&head) } else { frame(CONTINUATION, 0, 1, &[b'a'; 16_384]) }
    };
    let end = t.flood("endless string", 100_000, endless);
    assert!(end.closed && end.goaway.is_some(), "{end:?}");

    let mut peer = Peer::new(t.process.address);
    let request = block("GET", "/v2/", &[]);
    let (first, rest) = request.split_at(5);
    let pieces =
        [start(first), frame(CONTINUATION, 0, 1, rest), frame(CONTINUATION, 0, 1, &[]), frame(CONTINUATION, END_HEADERS, 1, &[])];
    peer.send(&pieces.concat());
    assert_eq!(peer.response(1), (200, b"{}".to_vec()), "a head in four pieces");
    let long = "a".repeat(HEAD / 2);
    let request = block("GET", "/v2/", &[("x", &long)]);
    let mut pieces: Vec<Vec<u8>> = request.chunks(16_384).map(|piece| frame(CONTINUATION, 0, 3, piece)).collect();
    let last = pieces.len() - 1;
    (pieces[0][3], pieces[0][4], pieces[last][4]) = (HEADERS, END_STREAM, END_HEADERS);
    peer.send(&pieces.concat());
    assert_eq!(peer.status(3), 200, "a long head, such as a list of ranges");
}

#[test]
fn provoked_server_resets_end_the_connection() {
    let mut t = target();
    let big = t.big.clone();
    let itself = |stream: u32| [&stream.to_be_bytes()[..], &[16]].concat();
    // A frame that is an error on an open or half-closed stream (CVE-2025-8671).
    type Variant<'a> = (&'static str, &'a dyn Fn(u32) -> Vec<u8>);
    let variants: [Variant<'_>; 7] = [
        ("window update of nothing", &|stream| [get(stream, &big), window(stream, 0)].concat()),
        ("window update beyond all", &|stream| [get(stream, &big), window(stream, 0x7fff_ffff)].concat()),
        ("head after the end", &|stream| [get(stream, &big), get(stream, &big)].concat()),
        ("data after the end", &|stream| [get(stream, &big), frame(DATA, 0, stream, b"x")].concat()),
        ("priority of four bytes", &|stream| [get(stream, &big), frame(PRIORITY, 0, stream, &[0; 4])].concat()),
        ("priority on itself", &|stream| [get(stream, &big), frame(PRIORITY, 0, stream, &itself(stream))].concat()),
        ("more than announced", &|stream| {
            let head = frame(HEADERS, END_HEADERS, stream, &block("POST", "/v2/", &[("content-length", "1")]));
            [head, frame(DATA, 0, stream, b"two")].concat()
        }),
    ];
    for (what, variant) in variants {
        let mut at = 0..100_000;
        // The closures cannot be shared with another thread, so the other client sends its requests before and after.
        let end = Peer::new(t.process.address).flood(|| at.next().map(|at| variant(id(at))));
        println!("{what}: {end:?} after {at:?}");
        t.survives(what, |_| ());
        assert!(end.closed && end.goaway.is_some(), "{what}: {end:?}");
    }
    // Ten errors are tolerated, and the other streams are served.
    let mut peer = Peer::new(t.process.address);
    for at in 0..10 {
        peer.send(&[get(id(at), &t.big), window(id(at), 0x7fff_ffff)].concat());
        peer.until(|frame| frame.kind == RST_STREAM && frame.stream == id(at));
        peer.send(&window(0, 65_535));
    }
    assert_eq!(peer.served(id(10), &t.small), 100_000);
}

#[test]
fn endless_empty_data_frames_end_the_connection() {
    let mut t = target();
    let empty = frame(DATA, 0, 1, &[]).repeat(1000);
    let end = t.flood("empty DATA", 100_000, |at| if at == 0 { post(1, "/v2/") } else { empty.clone() });
    assert!(end.closed && end.goaway.is_some(), "{end:?}");
    let mut peer = Peer::new(t.process.address);
    peer.send(&[post(1, "/v2/"), frame(DATA, 0, 1, &[]), frame(DATA, 0, 1, b"x"), frame(DATA, END_STREAM, 1, &[])].concat());
    assert_eq!(peer.status(1), 405, "uploads are unsupported");
    assert_eq!(peer.served(id(1), &t.small), 100_000, "on the same connection");
}

#[test]
fn hpack_bomb_is_refused() {
    let mut t = target();
    // A field of 4,000 bytes enters the table (RFC 7541, section 6.2.1), and then each byte of the block stands for all of it.
    let bomb = |copies: usize| {
        let kept = [&[0x40][..], &string(b"x"), &string(&[b'a'; 4000])].concat();
        let copies = vec![0x80 | 62; copies];
        [block("GET", "/v2/", &[]), kept, copies].concat()
    };
    for copies in [12_000, 100] {
        let head = bomb(copies);
        let mut at = 0..2000;
        let end = t.survives("HPACK bomb", |address| {
            Peer::new(address).flood(|| at.next().map(|at| frame(HEADERS, END_HEADERS | END_STREAM, id(at), &head)))
        });
        println!("{copies}: {end:?} after {at:?}");
        assert!(end.closed && end.goaway.is_some(), "{copies}: {end:?}");
    }
    let mut peer = Peer::new(t.process.address);
    peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb(20)));
    assert_eq!(peer.status(1), 431, "only the request with the oversized head fails");
    peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &bomb(3)));
    assert_eq!(peer.status(3), 200);
}

#[test]
fn malformed_http2_headers_are_rejected() {
    let mut t = target();
    let get = |fields: &[(&str, &str)]| {
        let block: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name, value.as_bytes())).collect();
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)
    };
    let (method, path, scheme, authority) = ((":method", "GET"), (":path", "/v2/"), (":scheme", "http"), (":authority", "x"));
    let whole = [method, path, scheme, authority];
    let with = |field: (&'static str, &'static str)| [&whole[..], &[field]].concat();
    let instead = |at: usize, value: &'static str| {
        let mut fields = whole;
        fields[at].1 = value;
        fields.to_vec()
    };
    // The expected result: a status, or an error on the stream or on the connection.
    let outcome = |fields: &[(&str, &str)]| {
        let mut peer = Peer::new(t.process.address);
        peer.send(&get(fields));
        loop {
            let frame = peer.read_frame().expect("an answer is expected");
            match frame.kind {
                HEADERS => return Ok(frame.status().unwrap()),
                RST_STREAM | GOAWAY => return Err(frame.error()),
                _ => {}
            }
        }
    };
    for (broken, valid) in [
        (vec![path, scheme, authority], whole.to_vec()),
        (vec![method, scheme, authority], whole.to_vec()),
        (with(path), whole.to_vec()),
        (with((":status", "200")), with(("status", "200"))),
        (with((":x", "1")), with(("x", "1"))),
        (with(("X-Upper", "1")), with(("x-lower", "1"))),
        (with(("x", "a\r\nb: c")), with(("x", "a b"))),
        (with(("x", "a\0b")), with(("x", "a\tb"))),
        (with(("x y", "1")), with(("x-y", "1"))),
        (with(("connection", "close")), with(("te", "trailers"))),
        (with(("transfer-encoding", "chunked")), with(("accept-encoding", "gzip"))),
        (with(("te", "gzip")), with(("te", "trailers"))),
        (with(("content-length", "+1")), with(("content-length", "0"))),
        (instead(0, "G T"), instead(0, "GET")),
        (instead(1, "/v2/\u{1b}[31m"), instead(1, "/v2/?%1b")),
        (instead(1, "/v2/ "), instead(1, "/v2/?")),
        (instead(3, "a b/c?"), instead(3, "a")),
        (instead(3, "a@b"), instead(3, "a.b")),
        (instead(3, "a:xx"), instead(3, "a:80")),
        (instead(3, "[::1"), instead(3, "[::1]")),
        (instead(3, "a,b"), instead(3, "a_b")),
        (vec![method, path, scheme, ("host", "a@b")], vec![method, path, scheme, ("host", "a:")]),
        (with(("host", "a,b")), with(("host", "x"))),
    ] {
        let (refused, served) = (outcome(&broken), outcome(&valid));
        assert!(matches!(refused, Err(_) | Ok(400)), "{broken:?}: {refused:?}");
        assert_eq!(served, Ok(200), "the valid {valid:?} next to {broken:?}");
    }
    for (fields, status) in [
        (instead(0, "PUT"), 405),
        (instead(0, "TRACE"), 405),
        (instead(1, "/v2/../index.json"), 404),
        (instead(1, "/v2/%2e%2e/%2e%2e/etc/manifests/passwd"), 400),
        (instead(1, "/v2/test//hello/manifests/latest"), 400),
        (instead(1, "/v2/test/hello/blobs/sha256:%00"), 400),
        (instead(1, "/v2/_catalog?n=-1"), 400),
        (instead(1, "/v2/_catalog?n=9223372036854775808"), 200),
    ] {
        assert_eq!(outcome(&fields), Ok(status), "{fields:?}");
    }
    t.survives("broken heads", |_| ());
}

/// Endless floods from a peer that does not read the responses, if there are any.
fn endless() -> [(&'static str, Vec<u8>); 5] {
    [
        ("PING", frame(PING, 0, 0, &[1; 8])),
        ("SETTINGS", setting(INITIAL_WINDOW_SIZE, 1000)),
        ("table size", [setting(1, 0), setting(1, 4096)].concat()),
        ("PRIORITY", frame(PRIORITY, 0, 99, &[0, 0, 0, 1, 1])),
        ("unknown", frame(0x55, 0, 0, &[0; 8])),
    ]
}

#[test]
fn floods_from_a_peer_that_reads_nothing_cost_no_memory() {
    let mut t = target();
    for (what, bytes) in endless() {
        let bytes = bytes.repeat(1000);
        // 32 bytes for each frame.
        t.process.may_grow = t.process.growth() + (500 * 1000 * 32);
        t.survives(what, |address| {
            let mut peer = Peer::new(address);
            // A server that waits for its responses to be read stops reading, and a write blocks.
            peer.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            for _ in 0..500 {
                if peer.stream.write_all(&bytes).is_err() {
                    break;
                }
            }
        });
    }
    let mut peer = Peer::new(t.process.address);
    for (_, bytes) in endless() {
        peer.send(&bytes);
    }
    assert_eq!(peer.until(|frame| frame.kind == PING && frame.flags & ACK != 0).payload, [1; 8]);
    assert_eq!(peer.served(id(0), &t.small), 100_000, "a single frame of each kind is tolerated");
}

#[test]
fn streams_beyond_the_limit_are_refused_and_the_connection_survives() {
    let t = target();
    // Without a window, no stream ends: the maximum number is open, and 20 more arrive.
    let mut peer = Peer::connect(t.process.address, &setting(INITIAL_WINDOW_SIZE, 0));
    // From here on the client knows how many it may have.
    peer.until(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0);
    peer.send(&(0..ANNOUNCED_STREAMS + 20).flat_map(|at| get(id(at), "/v2/")).collect::<Vec<u8>>());
    let mut outcomes = [0, 0];
    while outcomes[0] + outcomes[1] < ANNOUNCED_STREAMS + 20 {
        let frame = peer.until(|frame| matches!(frame.kind, RST_STREAM | HEADERS));
        match frame.status() {
            Some(status) => assert_eq!(status, 200),
            None => assert_eq!(frame.error(), REFUSED_STREAM),
        }
        outcomes[usize::from(frame.kind == RST_STREAM)] += 1;
    }
    assert_eq!(outcomes, [ANNOUNCED_STREAMS, 20]);
    peer.send(&setting(INITIAL_WINDOW_SIZE, 65_535));
    for _ in 0..ANNOUNCED_STREAMS {
        peer.until(|frame| frame.kind == DATA && frame.flags & END_STREAM != 0);
    }
    assert_eq!(peer.served(id(ANNOUNCED_STREAMS + 20), &t.small), 100_000);
    // A client that continues like this is not served.
    let end = peer.flood(|| Some((ANNOUNCED_STREAMS + 21..10_000).flat_map(|at| get(id(at), &t.small)).collect()));
    assert_eq!(end, CALM);
}

#[test]
fn floods_from_a_peer_that_reads_nothing_time_out() {
    let (layout, _, small) = layout();
    let server = Server::start_with(layout.path(), short());
    std::thread::scope(|scope| {
        for (what, bytes) in endless() {
            let mut peer = Peer::new(server.plain);
            scope.spawn(move || {
                peer.stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
                let error = loop {
                    if let Err(error) = peer.stream.write_all(&bytes.repeat(1000)) {
                        break error.kind();
                    }
                    std::thread::sleep(Duration::from_millis(5));
                };
                assert_ne!(error, std::io::ErrorKind::WouldBlock, "{what}: the connection closes");
            });
        }
    });
    assert_eq!(Peer::new(server.plain).served(id(0), &small), 100_000);
}
