//! Clients that are slow and steady are served, and what the log says was sent is what they got.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::{Duration, Instant};

use localregistry::registry::limits::{CHUNK, Limits};
use testing::h2::{DATA, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, Peer, RST_STREAM, get, id, reset, setting, window};
use testing::http;
use testing::layout::Layout;
use testing::server::Server;

const MANIFEST: &str = "/v2/test/hello/manifests/latest";
const NO_ERROR: u32 = 0;

/// An image with layers of these sizes, and their paths.
fn layers<const N: usize>(sizes: [usize; N]) -> (Layout, [String; N]) {
    let mut layout = Layout::default();
    let contents = sizes.map(|size| vec![7; size]);
    let image = layout.manifest(&contents.iter().map(Vec::as_slice).collect::<Vec<_>>());
    layout.name(image, localregistry::oci::media_type::OCI_MANIFEST, "test/hello:latest").write();
    let paths = contents.map(|content| format!("/v2/test/hello/blobs/{}", layout.blob(&content).digest));
    (layout, paths)
}

fn stalls_after(seconds: u64) -> Limits {
    Limits { stall: Duration::from_secs(seconds), ..Limits::default() }
}

/// Gives each stream as much window as it has in `opened` every quarter of a second, until the server has ended them all. The bytes
/// received on each, and whether the server has sent GOAWAY.
fn drain(peer: &mut Peer, opened: &[u32]) -> (Vec<usize>, bool) {
    let (mut received, mut ended, mut told, mut tick) = (vec![0; opened.len()], 0, false, Instant::now());
    peer.stream.set_read_timeout(None).unwrap();
    let mut writer = Peer { stream: peer.stream.try_clone().unwrap() };
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let opened_by = opened.to_vec();
    let ticking = std::thread::spawn(move || {
        while stopped
            .recv_timeout(tick.saturating_duration_since(Instant::now()))
            .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            tick += Duration::from_millis(250);
            let updates = opened_by.iter().zip(0..).filter(|(bytes, _)| **bytes > 0);
            writer.send(&updates.flat_map(|(bytes, at)| window(id(at), *bytes)).collect::<Vec<u8>>());
        }
    });
    let slow = opened.iter().filter(|bytes| **bytes > 0).count();
    while ended < slow {
        let frame = peer.read_frame().expect("the connection lives");
        peer.acknowledge(&frame);
        assert!(frame.kind != RST_STREAM, "stream {} is reset after {received:?}", frame.stream);
        assert!(frame.kind != GOAWAY || frame.error() == NO_ERROR, "{frame:?} after {received:?}");
        told |= frame.kind == GOAWAY;
        if frame.kind == DATA {
            received[frame.stream as usize / 2] += frame.payload.len();
            ended += usize::from(frame.flags & END_STREAM != 0);
        }
    }
    drop(stop);
    ticking.join().unwrap();
    (received, told)
}

#[test]
fn streams_that_are_read_slowly_and_steadily_come_whole() {
    // The end of a response, all of it in the connection's memory; and more than one chunk.
    let sizes = [20_000, CHUNK + 50_000];
    let (layout, paths) = layers(sizes);
    let server = Server::start_with(layout.path(), stalls_after(2));
    let mut peer = Peer::connect(server.plain, &setting(INITIAL_WINDOW_SIZE, 0));
    peer.send(&[window(0, 0x10_0000), get(id(0), &paths[0]), get(id(1), &paths[1])].concat());
    assert_eq!(drain(&mut peer, &[1700, 16_000]), (sizes.to_vec(), false));
    for _ in 0..2 {
        assert!(server.logged().complete);
    }
}

#[test]
fn the_end_of_one_response_that_has_no_window_lets_the_others_come_to_theirs() {
    let sizes = [20_000, 100];
    let (layout, paths) = layers(sizes);
    let server = Server::start_with(layout.path(), stalls_after(1));
    let mut peer = Peer::connect(server.plain, &setting(INITIAL_WINDOW_SIZE, 1));
    peer.send(&[window(0, 0x10_0000), get(id(0), &paths[0]), get(id(1), &paths[1])].concat());
    let (received, mut told) = drain(&mut peer, &[2500, 0]);
    assert_eq!(received, [20_000, 1]);
    let request = server.logged();
    assert!((request.bytes, request.complete) == (20_000, true), "{request:?}");
    // It waits until the stream beside it has ended, and then the connection ends.
    while let Some(frame) = peer.read_frame() {
        peer.acknowledge(&frame);
        told |= frame.kind == GOAWAY;
    }
    assert!(told, "the client is told");
    let request = server.logged();
    assert!((request.bytes, request.complete) == (1, false), "{request:?}");
}

#[test]
fn bytes_that_wait_for_a_window_are_not_logged_as_sent() {
    let (layout, _) = layers([70_000]);
    let server = Server::start(layout.path());
    let whole = http::get(server.plain, MANIFEST).body.len() as u64;
    assert!((server.logged().bytes, whole > 300) == (whole, true));
    for initial in [0, 100] {
        for resets in [true, false] {
            let mut peer = Peer::connect(server.plain, &setting(INITIAL_WINDOW_SIZE, initial));
            peer.send(&get(1, MANIFEST));
            assert_eq!(peer.status(1), 200);
            if initial > 0 {
                assert_eq!(peer.until(|frame| frame.kind == DATA).payload.len(), 100);
            }
            if resets {
                peer.send(&reset(1));
                peer.send(&setting(INITIAL_WINDOW_SIZE, 1000));
                assert_eq!(peer.served(3, "/v2/"), 2, "the connection goes on");
                let requests = [server.logged(), server.logged()];
                let of = |endpoint: &str| requests.iter().find(|request| request.endpoint == endpoint).unwrap();
                assert_eq!((of("manifest").bytes, of("manifest").complete), (initial.into(), false));
                assert_eq!((of("base").bytes, of("base").complete), (2, true));
                continue;
            }
            drop(peer);
            let request = server.logged();
            assert_eq!((request.status, request.bytes, request.complete), (200, initial.into(), false));
        }
    }
    let mut peer = Peer::connect(server.plain, &setting(INITIAL_WINDOW_SIZE, 0));
    peer.send(&get(1, MANIFEST));
    peer.until(|frame| frame.kind == HEADERS);
    assert!(server.logged_already().is_none());
    peer.send(&window(1, 1000));
    let request = server.logged();
    assert_eq!((request.bytes, request.complete), (whole, true));
}

#[test]
fn bytes_that_the_socket_does_not_take_are_not_logged_as_sent() {
    let (layout, [path]) = layers([64 << 20]);
    let server = Server::start_with(layout.path(), stalls_after(1));
    let mut reader = BufReader::new(http::connect(server.plain));
    write!(reader.get_mut(), "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let request = server.logged();
    assert!(!request.complete);
    while {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap() > 2
    } {}
    let mut body = Vec::new();
    let _ = reader.read_to_end(&mut body);
    assert_eq!(request.bytes, body.len() as u64);

    let mut peer = Peer::connect(server.plain, &[setting(INITIAL_WINDOW_SIZE, 0x7fff_ffff), window(0, 0x7000_0000)].concat());
    peer.send(&get(1, &path));
    let request = server.logged();
    assert!(!request.complete);
    let mut received = 0;
    while let Some(frame) = peer.read_frame() {
        received += if frame.kind == DATA { frame.payload.len() as u64 } else { 0 };
    }
    // The connection ends in the middle of a frame, which is not counted here.
    assert!((received..received + 16_384).contains(&request.bytes), "{} logged, {received} received", request.bytes);
}
