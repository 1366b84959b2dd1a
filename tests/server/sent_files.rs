//! Blobs over HTTP/1.1, which are sent from their files: by the kernel, or as TLS encrypts them. What fails on the way is cut, logged and
//! reported as anywhere else.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;

use localregistry::oci::media_type;
use localregistry::proto::event;
use testing::http;
use testing::layout::Layout;
use testing::openmetrics::parse;
use testing::server::{Server, Setup};
use testing::tls;

/// More than the sockets' buffers take.
const SIZE: usize = 16 << 20;
const REASONS: [&str; 4] = ["read_error", "truncated", "disk_hung", "wrong_digest"];

/// A layout with one large layer of sevens, the layer's path in the registry, and its file.
fn large() -> (Layout, String, PathBuf) {
    let mut layout = Layout::default();
    let layer = layout.blob(&vec![7; SIZE]);
    let image = layout.manifest(&[&vec![7; SIZE]]);
    layout.name(image, media_type::OCI_MANIFEST, "test/hello:latest").write();
    let file = layout.path().join(layer.digest.blob_path());
    (layout, format!("/v2/test/hello/blobs/{}", layer.digest), file)
}

fn start(layout: &Layout) -> Server {
    Server::start_as(layout.path(), Setup { sendfile: true, ..Setup::default() })
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

fn connect(server: &Server, over_tls: bool) -> Box<dyn Stream> {
    if over_tls { Box::new(tls::anybody(http::connect(server.tls))) } else { Box::new(http::connect(server.plain)) }
}

/// Asks for `path` and reads the head of the response.
fn ask(stream: &mut impl Stream, path: &str) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

fn disk_errors(server: &Server) -> [f64; 4] {
    let samples = parse(&String::from_utf8(http::get(server.plain, "/metrics").body).unwrap());
    REASONS.map(|reason| samples.get(&format!("localregistry_disk_errors_total{{reason=\"{reason}\"}}")))
}

/// The next two events: a warning and a request, or the other way round.
fn warning_and_request(server: &Server) -> (String, String, u64, bool) {
    let (mut code, mut message, mut sent) = (String::new(), String::new(), None);
    while code.is_empty() || sent.is_none() {
        match server.event() {
            event::Event::Warning(warning) => (code, message) = (warning.code, warning.message),
            event::Event::Request(request) => sent = Some((request.bytes, request.complete)),
            _ => {}
        }
    }
    let (bytes, complete) = sent.unwrap();
    (code, message, bytes, complete)
}

#[test]
fn file_that_shrinks_is_sent_to_its_new_end_and_reported() {
    for over_tls in [false, true] {
        let (layout, path, file) = large();
        let server = start(&layout);
        let new_size = SIZE as u64 - 100_001;
        let mut stream = connect(&server, over_tls);
        ask(&mut stream, &path);
        File::options().write(true).open(&file).unwrap().set_len(new_size).unwrap();
        let mut received = Vec::new();
        let _ = stream.read_to_end(&mut received);
        assert!(received.len() as u64 == new_size && received.iter().all(|byte| *byte == 7), "{}", received.len());
        let (code, message, bytes, complete) = warning_and_request(&server);
        assert_eq!((code.as_str(), bytes, complete), ("TRUNCATED", new_size, false));
        assert!(message.ends_with(&format!(": the file ends at byte {new_size}, before its range does")), "{message}");
        assert_eq!(disk_errors(&server), [0.0, 1.0, 0.0, 0.0]);
        assert_eq!(http::get(server.plain, "/v2/").status, 200, "others are served");
    }
}

#[test]
fn client_that_leaves_is_no_error_of_the_disk() {
    let (layout, path, _) = large();
    let server = start(&layout);
    for (takes, over_tls) in [(0, false), (1 << 20, false), (0, true), (1 << 20, true)] {
        let mut stream = connect(&server, over_tls);
        ask(&mut stream, &path);
        stream.read_exact(&mut vec![0; takes]).unwrap();
        // What is not read turns the close into a reset.
        drop(stream);
        let event::Event::Request(request) = server.event() else { panic!("the first event is the request's") };
        assert!((takes as u64..SIZE as u64).contains(&request.bytes) && !request.complete, "{request:?}");
    }
    assert_eq!(disk_errors(&server), [0.0; 4]);
}

#[test]
fn drain_that_ends_cuts_what_is_sent_and_logs_what_was_taken() {
    let (layout, path, _) = large();
    let server = start(&layout);
    let mut stream = connect(&server, false);
    ask(&mut stream, &path);
    let totals = server.stop(std::time::Duration::ZERO);
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    assert_eq!((totals.requests, totals.bytes), (1, received.len() as u64));
    assert!(received.len() < SIZE && received.iter().all(|byte| *byte == 7));
}

#[test]
fn connection_serves_files_and_memory_by_turns_and_keeps_no_file_open() {
    let (layout, path, file) = large();
    for (verify, over_tls) in [(false, false), (true, false), (false, true), (true, true)] {
        let server = Server::start_as(layout.path(), Setup { verify, sendfile: true, ..Setup::default() });
        let mut stream = connect(&server, over_tls);
        let mut body = vec![0; SIZE];
        for _ in 0..3 {
            ask(&mut stream, &path);
            stream.read_exact(&mut body).unwrap();
            assert!(body.iter().all(|byte| *byte == 7));
            let request = server.logged();
            assert_eq!((request.bytes, request.complete), (SIZE as u64, true));
            ask(&mut stream, "/v2/");
            stream.read_exact(&mut body[..2]).unwrap();
            assert_eq!(&body[..2], b"{}");
            server.logged();
            body.fill(0);
        }
        let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        assert!(!open.into_iter().any(|open| open == file), "the connection is open, and its files are not");
    }
}
