//! Well-behaved HTTP/2 clients: every request is answered, and responses are complete even while the client still sends.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use localregistry::registry::limits::Limits;
use testing::h2::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, PING, PRIORITY, Peer, RST_STREAM, block, field,
    frame, get, id, post, reset, setting, window,
};
use testing::http;
use testing::layout::Layout;
use testing::server::Server;
use testing::wait::at_once;
use tokio::task::JoinSet;

const MANIFEST: &str = "/v2/test/hello/manifests/latest";
/// More than a stream's default window.
const LAYER: usize = 70_000;

const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;

/// A server with one image, and the path of its layer.
fn serve() -> (Server, String, Layout) {
    serve_with(Limits::default())
}

fn serve_with(limits: Limits) -> (Server, String, Layout) {
    let mut layout = Layout::default();
    let layer = vec![7; LAYER];
    layout.image("test/hello:latest", &layer);
    let path = format!("/v2/test/hello/blobs/{}", layout.blob(&layer).digest);
    (Server::start_with(layout.write(), limits), path, layout)
}

/// Requests all paths at once on one connection, and returns the lengths of the bodies.
async fn all(address: SocketAddr, paths: Vec<String>) -> Vec<usize> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    let task = tokio::spawn(connection);
    let mut responses = JoinSet::new();
    for (at, path) in paths.into_iter().enumerate() {
        let mut sender = sender.clone();
        let request = hyper::Request::get(format!("http://registry.test{path}")).body(Empty::<Bytes>::new()).unwrap();
        responses.spawn(async move {
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            (at, response.into_body().collect().await.unwrap().to_bytes().len())
        });
    }
    let mut lengths = responses.join_all().await;
    lengths.sort_unstable();
    drop(sender);
    task.await.unwrap().unwrap();
    lengths.into_iter().map(|(_, length)| length).collect()
}

/// `count` paths with the lengths of their content. Of every eight, one is a layer and seven are manifests.
fn mixed(count: usize, layer: &str, manifest: usize) -> (Vec<String>, Vec<usize>) {
    let one = |at: usize| if at % 8 == 3 { (layer.to_owned(), LAYER) } else { (MANIFEST.to_owned(), manifest) };
    (0..count).map(one).unzip()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_on_few_connections_are_all_answered() {
    let (server, layer, _layout) = serve();
    let address = server.plain;
    let manifest = tokio::task::spawn_blocking(move || http::get(address, MANIFEST).body.len()).await.unwrap();
    let mut clients = JoinSet::new();
    for count in std::iter::once(100).chain([30; 40]) {
        let (paths, lengths) = mixed(count, &layer, manifest);
        clients.spawn(async move { (all(address, paths).await, lengths) });
    }
    for (received, lengths) in clients.join_all().await {
        assert_eq!(received, lengths);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_requests_on_each_of_a_thousand_connections_are_all_answered() {
    let (server, layer, _layout) = serve();
    let address = server.plain;
    let manifest = tokio::task::spawn_blocking(move || http::get(address, MANIFEST).body.len()).await.unwrap();
    let mut clients = JoinSet::new();
    for _ in 0..1000 {
        let (paths, lengths) = mixed(8, &layer, manifest);
        clients.spawn(async move { (all(address, paths).await, lengths) });
    }
    for (received, lengths) in clients.join_all().await {
        assert_eq!(received, lengths);
    }
}

#[test]
fn streams_sent_before_the_settings_arrive_are_served() {
    let (server, _, _layout) = serve();
    for _ in 0..20 {
        // The peer reads nothing before it has sent everything.
        let mut peer = Peer::new(server.plain);
        peer.send(&(0..100).flat_map(|at| get(id(at), MANIFEST)).collect::<Vec<u8>>());
        let mut answered: Vec<u32> = (0..100)
            .map(|_| {
                let head = peer.until(|frame| matches!(frame.kind, HEADERS | RST_STREAM));
                assert_eq!((head.kind, head.status()), (HEADERS, Some(200)));
                head.stream
            })
            .collect();
        answered.sort_unstable();
        assert_eq!(answered, (0..100).map(id).collect::<Vec<u32>>());
    }
}

#[test]
fn a_thousand_streams_sent_before_the_settings_arrive_are_served() {
    let (server, _, _layout) = serve();
    let mut peer = Peer::new(server.plain);
    let mut writer = Peer { stream: peer.stream.try_clone().unwrap() };
    let sending = std::thread::spawn(move || writer.send(&(0..1000).flat_map(|at| get(id(at), MANIFEST)).collect::<Vec<u8>>()));
    let (mut ended, mut acknowledgements) = (Vec::new(), Vec::new());
    while ended.len() < 1000 {
        let frame = peer.read_frame().expect("the connection lives");
        match frame.kind {
            DATA => {
                let count = u32::try_from(frame.payload.len()).unwrap();
                if count > 0 {
                    acknowledgements.extend(window(0, count));
                }
                ended.extend((frame.flags & END_STREAM != 0).then_some(frame.stream));
            }
            HEADERS => assert_eq!(frame.status(), Some(200)),
            RST_STREAM | GOAWAY => panic!("{frame:?}"),
            _ => {}
        }
        if sending.is_finished() {
            peer.send(&std::mem::take(&mut acknowledgements));
        }
    }
    sending.join().unwrap();
    ended.sort_unstable();
    assert_eq!(ended, (0..1000).map(id).collect::<Vec<u32>>());
}

#[test]
fn waiting_streams_are_served_during_shutdown() {
    let (server, layer, _layout) = serve_with(Limits { streams: 1, ..Limits::default() });
    let mut peer = Peer::connect(server.plain, &setting(INITIAL_WINDOW_SIZE, 0));
    peer.send(&(0..100).flat_map(|at| get(id(at), if at == 0 { &layer } else { MANIFEST })).collect::<Vec<u8>>());
    peer.until(|frame| frame.kind == HEADERS);
    let stopping = std::thread::spawn(move || server.stop(Duration::from_secs(60)));
    peer.until(|frame| frame.kind == GOAWAY);
    let acknowledged = peer.until(|frame| frame.kind == PING);
    assert_eq!(acknowledged.flags & ACK, 0);
    // The server knows that the client has seen GOAWAY before the first of the hundred streams continues.
    peer.send(&[setting(INITIAL_WINDOW_SIZE, 0x10_0000), window(0, 0x10_0000)].concat());
    let mut ended = 0;
    while let Some(frame) = peer.read_frame() {
        peer.acknowledge(&frame);
        assert!(frame.kind != RST_STREAM && (frame.kind != GOAWAY || frame.error() == NO_ERROR), "{frame:?}");
        ended += usize::from(frame.kind == DATA && frame.flags & END_STREAM != 0);
    }
    assert_eq!((ended, stopping.join().unwrap().requests), (100, 100));
}

/// Reads frames, in order, until the server has ended this many streams.
fn ended(peer: &mut Peer, count: usize) -> Vec<testing::h2::Frame> {
    let (mut frames, mut ended) = (Vec::new(), 0);
    while ended < count {
        let frame = peer.until(|frame| matches!(frame.kind, HEADERS | DATA | RST_STREAM));
        ended += usize::from(frame.kind != RST_STREAM && frame.flags & END_STREAM != 0);
        frames.push(frame);
    }
    frames
}

/// A peer that rules out statuses from the dynamic table (SETTINGS_HEADER_TABLE_SIZE).
fn plain_heads(address: SocketAddr) -> Peer {
    Peer::connect(address, &setting(1, 0))
}

#[test]
fn request_body_is_discarded_and_the_response_is_complete() {
    let (server, _, _layout) = serve();
    let mut peer = plain_heads(server.plain);
    for at in 0..300 {
        let stream = id(at);
        // In separate pieces, as a client sends a body that it is still reading.
        let trailers = frame(HEADERS, END_HEADERS | END_STREAM, stream, &field("x", b"y"));
        for bytes in [post(stream, "/v2/"), frame(DATA, 0, stream, &[7; 1000]), trailers] {
            peer.send(&bytes);
        }
        let frames = ended(&mut peer, 1);
        assert_eq!(frames[0].status(), Some(405), "{at}");
        assert!(frames.iter().all(|frame| frame.kind != RST_STREAM), "{at}: {frames:?}");
    }
    assert_eq!(peer.served(id(300), MANIFEST), http::get(server.plain, MANIFEST).body.len());
}

#[test]
fn early_response_is_complete_and_its_stream_is_reset_with_no_error() {
    let (server, _, _layout) = serve();
    let mut peer = plain_heads(server.plain);
    let mut last = 0;
    for round in 0..6 {
        // The body never ends, and the response comes all the same.
        let streams: Vec<u32> = (round * 41..round * 41 + 40).map(id).collect();
        peer.send(&streams.iter().flat_map(|stream| post(*stream, "/v2/")).collect::<Vec<u8>>());
        let mut resets = 0;
        while resets < streams.len() {
            let frame = peer.until(|frame| matches!(frame.kind, HEADERS | RST_STREAM));
            match frame.status() {
                Some(status) => assert_eq!(status, 405),
                None => assert_eq!(frame.error(), NO_ERROR),
            }
            resets += usize::from(frame.kind == RST_STREAM);
        }
        // Frames that were in flight when the response came are tolerated: data, window updates, priorities, the end of the
        // stream.
        for (at, stream) in streams.iter().enumerate() {
            let late = match at % 4 {
                0 => frame(DATA, END_STREAM, *stream, &[7; 1000]),
                1 => [window(*stream, 1000), frame(PRIORITY, 0, *stream, &[0, 0, 0, 0, 1])].concat(),
                2 => reset(*stream),
                _ => [frame(DATA, 0, *stream, b"x"), frame(HEADERS, END_HEADERS | END_STREAM, *stream, &[])].concat(),
            };
            peer.send(&late);
        }
        last = round * 41 + 40;
        peer.send(&get(id(last), MANIFEST));
        assert_eq!(peer.status(id(last)), 200, "the connection still serves");
    }
    assert_eq!(peer.served(id(last + 1), MANIFEST), http::get(server.plain, MANIFEST).body.len());
}

#[test]
fn frames_on_a_recently_closed_stream_are_tolerated() {
    let (server, _, _layout) = serve();
    let mut peer = Peer::new(server.plain);
    for at in 0..300 {
        peer.send(&get(id(at), "/v2/"));
        ended(&mut peer, 1);
        peer.send(&[window(id(at), 1), frame(PRIORITY, 0, id(at), &[0, 0, 0, 0, 1]), reset(id(at))].concat());
    }
    assert_eq!(peer.served(id(300), MANIFEST), http::get(server.plain, MANIFEST).body.len());
}

#[test]
fn malformed_request_bodies_get_the_right_protocol_error() {
    let (server, _, _layout) = serve();
    let announced = |length: &str| frame(HEADERS, END_HEADERS, 1, &block("POST", "/v2/", &[("content-length", length)]));
    let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &[field("x", b"y"), field(":method", b"GET")].concat());
    let variants: [(&str, [Vec<u8>; 3], u32); 6] = [
        ("more content than announced", [announced("1"), frame(DATA, END_STREAM, 1, b"four"), vec![]], PROTOCOL_ERROR),
        (
            "less content than announced",
            [announced("9"), frame(DATA, 0, 1, b"four"), frame(DATA, END_STREAM, 1, b"")],
            PROTOCOL_ERROR,
        ),
        ("a second head", [post(1, "/v2/"), post(1, "/v2/"), vec![]], PROTOCOL_ERROR),
        ("a pseudo-header in trailers", [post(1, "/v2/"), frame(DATA, 0, 1, b"x"), trailers], PROTOCOL_ERROR),
        ("a window too large", [post(1, "/v2/"), window(1, 0x7fff_ffff), window(1, 0x7fff_ffff)], FLOW_CONTROL_ERROR),
        ("data after a reset", [post(1, "/v2/"), reset(1), frame(DATA, END_STREAM, 1, b"x")], STREAM_CLOSED),
    ];
    at_once(&variants, |(what, pieces, error)| {
        for at in 0..100 {
            let mut peer = Peer::new(server.plain);
            for piece in pieces {
                peer.send(piece);
                // Long enough for a premature response to arrive.
                std::thread::sleep(Duration::from_micros(at * 20));
            }
            let found = peer.until(|frame| matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY));
            assert!(found.kind != HEADERS && found.error() == *error, "{at}: {what}: {found:?}");
        }
    });
}

#[test]
fn get_and_head_with_a_body_get_400_and_empty_data_is_allowed() {
    let (server, _, _layout) = serve();
    let mut peer = Peer::new(server.plain);
    let mut stream = 0;
    for method in ["GET", "HEAD"] {
        let mut status = |fields: &[(&str, &str)], content: &[&[u8]]| {
            let this = id(stream);
            stream += 1;
            peer.send(&frame(HEADERS, END_HEADERS, this, &block(method, "/v2/", fields)));
            for (at, piece) in content.iter().enumerate() {
                let flags = if at + 1 == content.len() { END_STREAM } else { 0 };
                peer.send(&frame(DATA, flags, this, piece));
            }
            peer.status(this)
        };
        assert_eq!(status(&[], &[b""]), 200, "{method}");
        assert_eq!(status(&[("content-length", "0")], &[b""]), 200, "{method}");
        assert_eq!(status(&[], &[b"x"]), 400, "{method}");
        assert_eq!(status(&[("content-length", "2")], &[b"x", b"y"]), 400, "{method}");
        assert_eq!(status(&[], &[]), 400, "{method}: content that is announced and missing");
        let endless = [[7; 16_000].as_slice(); 10];
        assert_eq!(status(&[], &endless), 400, "{method}");
    }
}

#[test]
fn broken_preface_is_not_answered_in_http1() {
    let (server, _, _layout) = serve();
    let answer = |bytes: &[u8]| {
        use std::io::{Read, Write};
        let mut stream = http::connect(server.plain);
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // The connection is closed or reset.
        let _ = stream.read_to_end(&mut answer);
        answer
    };
    for rest in ["\r\n\r\nXX\r\n\r\n", "\r\nHost: x\r\n\r\n", ".1\r\n\r\nSM\r\n\r\n", "                          "] {
        let answer = answer(format!("PRI * HTTP/2.0{rest}").as_bytes());
        assert!(!answer.starts_with(b"HTTP/1"), "{rest:?}: {answer:?}");
    }
    let other = answer(b"PRI /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(other.starts_with(b"HTTP/1.1 405"), "an ordinary unsupported method");
}
