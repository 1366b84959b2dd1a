//! Memory growth under repeated attacks: thousands of refused requests over many connections at once. The other tests of hostile
//! clients check the responses.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use localregistry::registry::limits::{HEAD, RANGES};
use testing::http::connect;
use testing::process::Process;
use testing::target::{Target, target};
use testing::tls::{anybody, hello};

/// Number of parallel connections, and of repetitions of each attack.
const CONNECTIONS: usize = 50;
const TIMES: usize = 250;
/// Bytes by which one attack may increase the server's memory: 64 KiB, the largest head of a request, each time.
const LEAK: u64 = (TIMES as u64) << 16;

/// Makes an attack [`TIMES`] times over many parallel connections, and waits for responses if there are any.
fn repeat(address: SocketAddr, bytes: &[u8], answered: bool) {
    for _ in 0..TIMES / CONNECTIONS {
        let mut open: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(address)).collect();
        for stream in &mut open {
            stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
            // The server may have answered and closed before everything is sent.
            let _ = stream.write_all(bytes);
        }
        for stream in open.iter_mut().filter(|_| answered) {
            let answer = stream.read(&mut [0; 4096]);
            let timed_out = answer.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
            assert!(!timed_out, "a response, or a closed connection");
        }
    }
}

/// The tables of request heads, names, bodies and ranges.
fn requests(t: &Target) -> Vec<(&'static str, Vec<u8>)> {
    let get = |target: &str, lines: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n{lines}\r\n").into_bytes();
    let lines = |count: usize| (0..count).map(|at| format!("X-{at}: 1\r\n")).collect::<String>();
    let ranges = |count: usize, one: &str| format!("Range: bytes={}\r\n", vec![one; count].join(","));
    let zeros = "0".repeat(64);
    vec![
        ("101 headers", get("/v2/", &lines(101))),
        ("a header that is too long", get("/v2/", &format!("X: {}\r\n", "a".repeat(HEAD + 4096)))),
        ("a header without an end", [b"GET /v2/ HTTP/1.1\r\nX: ".as_slice(), &vec![b'a'; 1 << 20]].concat()),
        ("a target that is too long", get(&format!("/{}", "a".repeat(HEAD)), "")),
        ("two Content-Lengths", get("/v2/", "Content-Length: 1\r\nContent-Length: 2\r\n")),
        ("a signed Content-Length", get("/v2/", "Content-Length: +1\r\n")),
        ("an unknown Transfer-Encoding", get("/v2/", "Transfer-Encoding: gzip\r\n")),
        ("both lengths", get("/v2/", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n")),
        (
            "a chunk that overflows",
            get("/v2/", "Transfer-Encoding: chunked\r\n").into_iter().chain(*b"FFFFFFFFFFFFFFFFF\r\n").collect(),
        ),
        (
            "a chunk extension of a megabyte",
            [get("/v2/", "Transfer-Encoding: chunked\r\n"), b"5;x=".to_vec(), vec![b'a'; 1 << 20]].concat(),
        ),
        ("no Host", b"GET /v2/ HTTP/1.1\r\n\r\n".to_vec()),
        ("two Hosts", get("/v2/", "Host: y\r\n")),
        ("a folded line", get("/v2/", "X: a\r\n folded\r\n")),
        ("NUL", get("/v2/", "X: a\0b\r\n")),
        ("a bare CR", get("/v2/", "X: a\rb\r\n")),
        ("a space before the colon", get("/v2/", "X : a\r\n")),
        ("CONNECT", b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("TRACE", b"TRACE /v2/ HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (
            "a body that is never read",
            [b"PUT /v2/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n\r\n".as_slice(), &vec![7; 1 << 20]].concat(),
        ),
        ("dots", get("/v2/%2e%2e/%2e%2e/etc/manifests/passwd", "")),
        ("overlong UTF-8", get("/v2/test/%c0%ae/manifests/latest", "")),
        ("a name that is too long", get(&format!("/v2/{}a/manifests/latest", "a/".repeat(200)), "")),
        ("a digest of an unknown algorithm", get(&format!("/v2/test/hello/blobs/md5:{zeros}"), "")),
        ("a page of 2^63", get("/v2/_catalog?n=9223372036854775808", "")),
        ("a last of 20,000 bytes", get(&format!("/v2/_catalog?last={}", "%1b%ff".repeat(3333)), "")),
        ("a blob as a manifest", get(&t.small.replace("blobs", "manifests"), "")),
        ("a blob of another repository", get(&t.small.replace("test/hello", "test/other"), "")),
        ("ranges that overlap", get(&t.big, &ranges(100, "0-"))),
        ("too many ranges", get(&t.big, &ranges(RANGES + 1, "0-0"))),
        ("a thousand ranges", get(&t.small, &ranges(RANGES, "0-9"))),
        ("ranges of nothing", get(&t.big, &ranges(1, "9-1"))),
        ("HEAD with a body", b"HEAD /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello".to_vec()),
        ("a thousand requests in a row", get(&t.small.replace("blobs", "manifests"), "").repeat(1000)),
        ("escapes that are logged", get("/v2/%1b%5b31m/manifests/%0d%0a", "User-Agent: \u{9b}31m\r\n")),
    ]
}

#[test]
fn refused_requests_cost_little_memory() {
    let mut t = target();
    for (what, bytes) in requests(&t) {
        t.process.may_grow = t.process.growth() + LEAK;
        t.survives(what, |address| repeat(address, &bytes, true));
    }
}

#[test]
fn refused_handshakes_cost_little_memory() {
    let (layout, _, small) = testing::target::layout();
    let mut process = Process::start_with(layout.path(), &[], None);
    let address = process.address;
    for (what, bytes, answered) in [
        ("nothing", vec![], false),
        ("a hello cut short", b"\x16\x03\x01\x02\x00\x01\x00".to_vec(), false),
        ("garbage", [b"\x16\x03\x01\x40\x00".as_slice(), &vec![0xff; 16_384]].concat(), true),
        ("a record of no version", b"\x16\x09\x09\x00\x05\x01\x00\x00\x01\x00".to_vec(), true),
        ("TLS 1.0", hello(0x0301, &[0xc02b]), true),
        ("RC4", hello(0x0303, &[0x0005]), true),
        ("half a handshake", hello(0x0303, &[0xc02b]), true),
        ("plain HTTP", b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), true),
    ] {
        std::thread::scope(|scope| {
            let attack = scope.spawn(|| repeat(address, &bytes, answered));
            loop {
                let mut good = anybody(connect(address));
                write!(good, "GET {small} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
                let mut answer = Vec::new();
                good.read_to_end(&mut answer).unwrap();
                assert!(answer.starts_with(b"HTTP/1.1 200") && answer.len() > 100_000, "{what}: another client is served");
                if attack.is_finished() {
                    break;
                }
            }
        });
        process.check(what);
        process.may_grow = process.growth() + LEAK;
    }
}
