//! Stalled and idle HTTP/2 streams and connections: their memory is bounded, they time out, and other clients are served.

use std::io::{BufReader, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use localregistry::oci::media_type;
use localregistry::registry::limits::{ANNOUNCED_STREAMS, Limits, STREAMS};
use testing::h2::{
    ACK, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, PING, Peer, RST_STREAM, block, frame, get, id, setting,
    window,
};
use testing::http;
use testing::layout::Layout;
use testing::process::Process;
use testing::server::Server;
use testing::target::{BIG, layout, short, target};
use testing::wait::until;

#[test]
fn streams_without_a_window_cost_little_memory_and_block_no_others() {
    let mut t = target();
    let (big, small) = (t.big.clone(), t.small.clone());
    // 100 streams on each of 8 connections, with windows of no byte, of one byte, and of all of a small blob.
    for (window, path) in [(0, &big), (1, &big), (1, &small)] {
        let held = t.survives("no window", |address| {
            let mut held = Vec::new();
            for _ in 0..8 {
                let mut peer = Peer::connect(address, &setting(INITIAL_WINDOW_SIZE, window));
                peer.send(&(0..100).flat_map(|at| get(id(at), path)).collect::<Vec<u8>>());
                peer.status(id(1));
                held.push(peer);
            }
            held
        });
        drop(held);
    }
}

#[test]
fn streams_of_a_peer_that_reads_nothing_cost_little_memory() {
    let mut t = target();
    let big = t.big.clone();
    // The windows are at their maximum, and the connection itself is not read.
    let wide = [setting(INITIAL_WINDOW_SIZE, 0x7fff_ffff), window(0, 0x7fff_0000 - 65_535)].concat();
    let held = t.survives("wide windows", |address| {
        let mut held = Vec::new();
        for _ in 0..16 {
            let mut peer = Peer::connect(address, &wide);
            peer.send(&(0..STREAMS).flat_map(|at| get(id(at), &big)).collect::<Vec<u8>>());
            peer.status(1);
            held.push(peer);
        }
        held
    });
    t.survives("wide windows", |_| ());
    drop(held);
    let mut peer = Peer::connect(t.process.address, &wide);
    for at in 0..4 {
        assert_eq!(peer.served(id(at), &t.big), BIG);
    }
}

#[test]
fn stream_without_a_window_times_out_and_the_others_continue() {
    let (layout, big, small) = layout();
    let server = Server::start_with(layout.path(), short());
    let mut peer = Peer::connect(server.plain, &setting(INITIAL_WINDOW_SIZE, 0));
    peer.send(&(0..32).flat_map(|at| get(id(at), &big)).collect::<Vec<u8>>());
    let mut cut: Vec<u32> = (0..32).map(|_| peer.until(|frame| frame.kind == RST_STREAM).stream).collect();
    cut.sort_unstable();
    assert_eq!(cut, (0..32).map(id).collect::<Vec<u32>>(), "each stream is reset once");
    for _ in 0..32 {
        assert!(!server.logged().complete);
    }
    peer.send(&setting(INITIAL_WINDOW_SIZE, 65_535));
    assert_eq!(peer.served(id(32), &small), 100_000, "the connection still serves");
    assert!(server.logged().complete);
    // A small window that is opened again and again gives a slow but complete response.
    let mut peer = Peer::connect(server.plain, &setting(INITIAL_WINDOW_SIZE, 1000));
    assert_eq!(peer.served(1, &small), 100_000);
}

#[test]
fn response_tail_without_a_window_times_out() {
    let (layout, _, small) = layout();
    let server = Server::start_with(layout.path(), short());
    // The window lets the body's only chunk into the connection's memory, but not out of it.
    let mut peer = Peer::connect(server.plain, &setting(INITIAL_WINDOW_SIZE, 1));
    peer.send(&get(1, &small));
    let end = loop {
        let Some(frame) = peer.read_frame() else { break None };
        peer.acknowledge(&frame);
        if matches!(frame.kind, RST_STREAM | GOAWAY) {
            break Some(frame.kind);
        }
    };
    assert!(end.is_none_or(|kind| kind == RST_STREAM || kind == GOAWAY));
    assert_eq!(Peer::new(server.plain).served(1, &small), 100_000);
}

/// A path to request.
struct TestRequest {
    what: &'static str,
    path: String,
    range: Option<String>,
}

/// A layout with long lists (a repository with a thousand long tags, and a subject with a hundred referrers), and the paths of
/// long responses.
fn long_lists() -> (Layout, [TestRequest; 6]) {
    let mut layout = Layout::default();
    let image = layout.image("test/hello:latest", &vec![7; 1 << 20]);
    for at in 0..1000 {
        layout.name(image, media_type::OCI_MANIFEST, &format!("test/hello:{at:0>128}"));
    }
    for at in 0..100_u32 {
        let artifact = layout.artifact("application/x.report", image, &at.to_le_bytes());
        layout.name(artifact, media_type::OCI_MANIFEST, "");
    }
    layout.write();
    let blob = format!("/v2/test/hello/blobs/{}", layout.blob(&vec![7; 1 << 20]).digest);
    let ranges = (0..1000).map(|at| format!("{at}-{at}")).collect::<Vec<_>>().join(",");
    let of = |what, path: &str| TestRequest { what, path: path.to_owned(), range: None };
    let requests = [
        of("tags", "/v2/test/hello/tags/list"),
        of("referrers", &format!("/v2/test/hello/referrers/{}", image.digest)),
        of("metrics", "/metrics"),
        of("a blob", &blob),
        TestRequest { range: Some(format!("bytes={ranges}")), ..of("a thousand ranges", &blob) },
        of("a manifest", "/v2/test/hello/manifests/latest"),
    ];
    (layout, requests)
}

/// Connections without a window, each with the maximum number of streams, all for the same path. The server answers two streams
/// of each connection, and further ones from a shared pool. The others wait.
fn stalled(address: SocketAddr, connections: usize, request: &TestRequest) -> Vec<Peer> {
    let fields: Vec<(&str, &str)> = request.range.iter().map(|range| ("range", range.as_str())).collect();
    let head = block("GET", &request.path, &fields);
    assert!(head.len() <= 16_384, "one frame");
    let ask = |at| frame(HEADERS, END_HEADERS | END_STREAM, id(at), &head);
    let requests: Vec<u8> = (0..STREAMS).flat_map(ask).collect();
    let mut held = Vec::new();
    for _ in 0..connections {
        let mut peer = Peer::connect(address, &setting(INITIAL_WINDOW_SIZE, 0));
        peer.send(&requests);
        held.push(peer);
    }
    for peer in &mut held {
        peer.until(|frame| frame.kind == HEADERS && frame.stream == id(0));
    }
    held
}

#[test]
fn a_thousand_connections_of_a_hundred_stalled_streams_cost_little_memory() {
    for blob in [true, false] {
        let mut t = target();
        let path = if blob { t.big.clone() } else { "/v2/test/hello/manifests/latest".to_owned() };
        let what = format!("1,000 connections of 100 streams that ask for {path}");
        let request = TestRequest { what: "", path, range: None };
        let held = t.survives(&what, |address| stalled(address, 1000, &request));
        // One more connection is served like the others, because its two streams wait for no other connection.
        assert_eq!(Peer::new(t.process.address).served(id(0), &t.small), 100_000);
        t.process.check(&what);
        drop(held);
    }
}

#[test]
fn stalled_streams_of_every_endpoint_cost_little_memory() {
    let (layout, requests) = long_lists();
    // At once, because a list waits ten seconds for its memory until it is refused.
    std::thread::scope(|scope| {
        for request in &requests {
            scope.spawn(|| {
                let mut process = Process::start(layout.path());
                let held = stalled(process.address, 128, request);
                let image = http::get(process.address, "/v2/test/hello/manifests/latest");
                assert_eq!(image.status, 200, "{}: another client is served", request.what);
                process.check(&format!("128 connections of stalled streams that ask for {}", request.what));
                drop(held);
            });
        }
    });
}

#[test]
fn unread_lists_delay_only_other_lists() {
    let (layout, requests) = long_lists();
    let limits = Limits { response_memory_wait: Duration::from_secs(1), ..Limits::default() };
    let server = Server::start_with(layout.path(), limits);
    let held = stalled(server.plain, 64, &requests[0]);
    let tags = &requests[0].path;
    let list = http::get(server.plain, tags);
    assert_eq!((list.status, list.header("retry-after")), (429, Some("1")));
    assert_eq!(list.code(), "TOOMANYREQUESTS");
    assert_eq!(
        list.json()["errors"][0]["detail"],
        "too many list requests are waiting; retry after 1 second",
        "a helpful message"
    );
    for path in ["/v2/", "/v2/test/hello/manifests/latest", &requests[3].path] {
        assert_eq!(http::get(server.plain, path).status, 200, "{path}");
    }
    drop(held);
    until("a list after the stalled connections have closed", || http::get(server.plain, tags).status == 200);
}

#[test]
fn every_connection_is_announced_at_least_a_hundred_streams() {
    let (layout, _, small) = layout();
    // On a slow machine, the last connections are idle for longer than the default allows while the first ones are served.
    let patience = Duration::from_secs(600);
    let server = Server::start_with(layout.path(), Limits { idle: patience, request_head: patience, ..Limits::default() });
    let most = |peer: &mut Peer| {
        let settings = peer.until(|frame| frame.kind == testing::h2::SETTINGS && frame.flags & ACK == 0);
        let (entries, _) = settings.payload.as_chunks::<6>();
        let streams = entries.iter().find(|entry| entry[..2] == [0, 3]).unwrap();
        u32::from_be_bytes(streams[2..].try_into().unwrap())
    };
    let mut crowd: Vec<Peer> = (0..200).map(|_| Peer::new(server.plain)).collect();
    for peer in &mut crowd {
        assert_eq!(most(peer), ANNOUNCED_STREAMS);
        assert_eq!(peer.served(1, &small), 100_000);
    }
    let few = Server::start_with(layout.path(), Limits { streams: 2, ..Limits::default() });
    assert_eq!(most(&mut Peer::new(few.plain)), ANNOUNCED_STREAMS, "streams beyond the number served at once wait");
    let many = Server::start_with(layout.path(), Limits { streams: 256, ..Limits::default() });
    assert_eq!(most(&mut Peer::new(many.plain)), 256);
}

#[test]
fn idle_http2_connection_times_out_and_an_active_one_stays() {
    let (layout, _, small) = layout();
    let idle = Duration::from_secs(2);
    let server = Server::start_with(layout.path(), Limits { idle, ping: idle / 2, stall: idle, ..Limits::default() });
    let mut lazy = Peer::new(server.plain);
    let mut busy = Peer::new(server.plain);
    let ending = std::thread::spawn(move || {
        // The connection answers every ping and sends no request.
        let (mut pings, mut going_away) = (0, false);
        while let Some(frame) = lazy.read_frame() {
            lazy.acknowledge(&frame);
            pings += usize::from(frame.kind == PING && frame.flags & ACK == 0);
            going_away |= frame.kind == GOAWAY && frame.error() == 0;
        }
        (pings, going_away)
    });
    // The window suffices for all responses.
    busy.send(&window(0, 0x7fff_0000 - 65_535));
    // In all one and a half times as long as the limit, and never that long at once.
    for at in 0..15 {
        std::thread::sleep(idle / 10);
        assert_eq!(busy.served(id(at), &small), 100_000, "on the same connection");
    }
    let (pings, going_away) = ending.join().unwrap();
    assert!(going_away && pings > 0, "GOAWAY, then closed: {pings} pings");
}

#[test]
fn idle_keep_alive_connection_closes_without_a_response() {
    let (layout, ..) = layout();
    let server = Server::start_with(layout.path(), Limits { request_head: Duration::from_secs(2), ..Limits::default() });
    let mut reader = BufReader::new(http::connect(server.plain));
    for _ in 0..3 {
        reader.get_mut().write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(http::read(&mut reader, false).unwrap().status, 200, "on the same connection");
        std::thread::sleep(Duration::from_millis(200));
    }
    // A client would take a 408 for the response to the request that it is just sending.
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

#[test]
fn connection_is_not_idle_while_its_client_reads_the_last_bytes() {
    let (layout, big, content) = Layout::large();
    let request_head = Duration::from_millis(500);
    let server = Server::start_with(layout.write(), Limits { request_head, ..Limits::default() });
    let mut stream = http::begin(server.plain, format_args!("/v2/test/hello/blobs/{}", big.digest));
    // Reads slowly, until the server has sent everything and only this client's socket holds the last bytes.
    let (mut all, mut some) = (Vec::new(), vec![0; 1 << 20]);
    while server.logged_already().is_none() {
        let count = stream.read(&mut some).unwrap();
        all.extend_from_slice(&some[..count]);
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(3 * request_head);
    let head = all.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let mut rest = vec![0; head + content.len() - all.len()];
    assert!(!rest.is_empty(), "the client still has bytes to read");
    stream.read_exact(&mut rest).expect("the last bytes come");
    all.extend_from_slice(&rest);
    assert!(all[head..] == content, "the response is complete");
}
