//! Verification of digests while blobs are sent: a client never receives corrupt content as complete. Without verification, a disk
//! error gives 500 or a cut response, is counted, and is logged.

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;

use localregistry::oci::{Digest, media_type};
use localregistry::proto::event;
use localregistry::registry::limits::{CHUNK, LARGEST_CACHED_MANIFEST};
use serde_json::json;
use testing::h2::{self, Peer};
use testing::http::{Response, connect, get, head, ranged};
use testing::layout::{Layout, Stored};
use testing::openmetrics::parse;
use testing::server::{Server, Setup};

/// A layout with an image whose layer has this many bytes, and the layer's path in the registry.
fn layer_of(size: usize) -> (Layout, Stored, PathBuf) {
    let mut layout = Layout::default();
    let content: Vec<u8> = (0..size).map(|at| u8::try_from(at * at % 251).unwrap()).collect();
    let layer = layout.blob(&content);
    layout.image("test/hello:latest", &content);
    layout.write();
    let file = layout.path().join(layer.digest.blob_path());
    (layout, layer, file)
}

fn verifying(layout: &Layout) -> Server {
    Server::start_as(layout.path(), Setup { verify: true, ..Setup::default() })
}

/// Changes one byte of a file and returns the new digest.
fn spoil(file: &PathBuf, at: usize) -> Digest {
    let mut content = fs::read(file).unwrap();
    content[at] ^= 1;
    fs::write(file, &content).unwrap();
    Digest::sha256_of(&content)
}

/// Reads a connection to its end, including the head.
fn everything(address: SocketAddr, path: &str) -> Vec<u8> {
    let mut stream = connect(address);
    std::io::Write::write_all(&mut stream, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

fn blob_path(layer: Stored) -> String {
    format!("/v2/test/hello/blobs/{}", layer.digest)
}

/// Waits for a warning and returns all warnings so far.
fn warning(server: &Server) -> (String, String) {
    loop {
        if let event::Event::Warning(warning) = server.event() {
            return (warning.code, warning.message);
        }
    }
}

fn errors(address: SocketAddr) -> Vec<(String, f64)> {
    let samples = parse(&String::from_utf8(get(address, "/metrics").body).unwrap());
    let of = |reason: &str| samples.get(&format!("localregistry_disk_errors_total{{reason=\"{reason}\"}}"));
    let reasons = ["read_error", "truncated", "disk_hung", "wrong_digest"];
    reasons.into_iter().map(|reason| (reason.to_owned(), of(reason))).filter(|(_, count)| *count > 0.0).collect()
}

fn is_disk_error(response: &Response) -> bool {
    (response.status, response.code().as_str()) == (500, "UNKNOWN")
}

#[test]
fn corrupt_blob_is_cut_before_its_end() {
    let size = 10 * CHUNK;
    for at in [0, size / 2, size - 1] {
        let (layout, layer, file) = layer_of(size);
        let found = spoil(&file, at);
        let server = verifying(&layout);

        let all = everything(server.plain, &blob_path(layer));
        let body = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        assert!(all.starts_with(b"HTTP/1.1 200 OK\r\n") && all.len() - body < size, "{} bytes", all.len() - body);
        assert!(fs::read(&file).unwrap().starts_with(&all[body..]), "the received bytes match the file");
        let logged = server.logged();
        assert!(!logged.complete && logged.bytes < size as u64);

        // All windows are open from the start.
        let room = u32::try_from(2 * size).unwrap();
        let mut peer = Peer::connect(server.plain, &h2::setting(h2::INITIAL_WINDOW_SIZE, room));
        peer.send(&[h2::window(0, room), h2::get(h2::id(0), &blob_path(layer))].concat());
        let mut sent = 0;
        loop {
            let frame = peer.until(|frame| frame.stream == h2::id(0));
            match frame.kind {
                h2::DATA => sent += frame.payload.len(),
                h2::RST_STREAM => break,
                _ => {}
            }
            assert_eq!(frame.flags & h2::END_STREAM, 0, "the body does not end regularly");
        }
        assert!(sent < size, "{sent} bytes");

        let message = format!("{} on {}: its bytes have the digest {found}", layer.digest, layout.path().display());
        let server = verifying(&layout);
        everything(server.plain, &blob_path(layer));
        assert_eq!(warning(&server), ("WRONG_DIGEST".to_owned(), message));
        assert_eq!(errors(server.plain), [("wrong_digest".to_owned(), 1.0)]);
        // Other content is served.
        assert_eq!(get(server.plain, "/v2/test/hello/manifests/latest").status, 200);
    }
}

#[test]
fn corrupt_small_blob_and_manifest_get_500() {
    let (layout, layer, file) = layer_of(1000);
    spoil(&file, 7);
    let server = verifying(&layout);
    assert!(is_disk_error(&get(server.plain, &blob_path(layer))));
    assert_eq!(warning(&server).0, "WRONG_DIGEST");
    assert_eq!(head(server.plain, &blob_path(layer)).status, 200, "a HEAD response has no body");

    // One manifest that the cache takes, and one that is too large for it.
    let mut layout = Layout::default();
    let small = layout.image("test/hello:small", b"layer");
    let fill = "a".repeat(usize::try_from(LARGEST_CACHED_MANIFEST).unwrap());
    let config = layout.json(&json!({"architecture": "amd64", "os": "linux"}));
    let large = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config.descriptor(media_type::OCI_CONFIG),
        "layers": [], "annotations": {"fill": fill},
    }));
    layout.name(large, media_type::OCI_MANIFEST, "test/hello:large").write();
    for (tag, stored) in [("small", small), ("large", large)] {
        let file = layout.path().join(stored.digest.blob_path());
        let right = fs::read(&file).unwrap();
        let server = verifying(&layout);
        spoil(&file, 20);
        assert!(is_disk_error(&get(server.plain, &format!("/v2/test/hello/manifests/{tag}"))), "{tag}");
        assert!(warning(&server).1.starts_with(&stored.digest.to_string()));
        assert_eq!(errors(server.plain), [("wrong_digest".to_owned(), 1.0)]);
        fs::write(&file, right).unwrap();
    }
}

#[test]
fn range_of_a_corrupt_blob_fails_wherever_the_damage_is() {
    let size = 10 * CHUNK;
    let (layout, layer, file) = layer_of(size);
    spoil(&file, size - 1);
    let server = verifying(&layout);
    for range in ["bytes=0-9", "bytes=100-", "bytes=0-0,5-9", "bytes=-1"] {
        assert!(is_disk_error(&ranged(server.plain, &blob_path(layer), range)), "{range}");
    }
    assert_eq!(ranged(server.plain, &blob_path(layer), "bytes=99999999-").status, 416);
    let whole = everything_ranged(server.plain, layer, "bytes=0-");
    assert!(whole < size, "containerd requests the whole blob this way: {whole} bytes");
}

/// The bytes received for a range.
fn everything_ranged(address: SocketAddr, layer: Stored, range: &str) -> usize {
    let mut stream = connect(address);
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\nRange: {range}\r\n\r\n", blob_path(layer));
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all.len() - all.windows(4).position(|window| window == b"\r\n\r\n").unwrap() - 4
}

#[test]
fn intact_content_is_served_unchanged() {
    let size = 10 * CHUNK + 7;
    let (layout, layer, file) = layer_of(size);
    let content = fs::read(&file).unwrap();
    let server = verifying(&layout);
    for _ in 0..2 {
        assert!(get(server.plain, &blob_path(layer)).body == content);
        let part = ranged(server.plain, &blob_path(layer), "bytes=1000000-1000099");
        assert_eq!((part.status, &part.body[..]), (206, &content[1_000_000..1_000_100]));
        let part = ranged(server.plain, &blob_path(layer), "bytes=5-200004");
        assert!(part.status == 206 && part.body == content[5..200_005]);
        let parts = ranged(server.plain, &blob_path(layer), "bytes=0-199999,300000-300009");
        let heads = parts.body.len() - 200_010;
        assert!(parts.status == 206 && heads < 500, "{heads} bytes in addition to the parts");
        assert!(parts.body.windows(200_000).any(|window| window == &content[..200_000]));
        let all = ranged(server.plain, &blob_path(layer), "bytes=0-");
        assert!(all.status == 206 && all.body == content);
        assert_eq!(ranged(server.plain, &blob_path(layer), "bytes=0-0,-1").status, 206);
        assert_eq!(get(server.plain, "/v2/test/hello/manifests/latest").status, 200);
    }
    assert_eq!(errors(server.plain), []);
}

#[test]
fn referrers_are_verified_too() {
    let (mut layout, image) = Layout::hello();
    let artifact = layout.artifact("application/x", image, b"signature");
    layout.name(artifact, media_type::OCI_MANIFEST, "test/hello:signature").write();
    let path = format!("/v2/test/hello/referrers/{}", image.digest);
    let manifests = |server: &Server| get(server.plain, &path).json()["manifests"].as_array().map(Vec::len);
    assert_eq!(manifests(&verifying(&layout)), Some(1));
    let file = layout.path().join(artifact.digest.blob_path());
    let changed = fs::read_to_string(&file).unwrap().replace("made-by", "made-of");
    fs::write(&file, changed).unwrap();
    assert_eq!(manifests(&Server::start(layout.path())), Some(1), "the bytes on the disk");
    let server = verifying(&layout);
    assert!(is_disk_error(&get(server.plain, &path)));
    assert_eq!(errors(server.plain), [("wrong_digest".to_owned(), 1.0)]);
}

#[test]
fn blob_of_the_wrong_size_is_counted_and_logged() {
    let (layout, layer, file) = layer_of(1000);
    let content = fs::read(&file).unwrap();
    let server = Server::start(layout.path());
    fs::write(&file, &content[..999]).unwrap();
    assert!(is_disk_error(&get(server.plain, &blob_path(layer))));
    let message = format!("{} on {}: the file has 999 bytes, and the catalog says 1000", layer.digest, layout.path().display());
    assert_eq!(warning(&server), ("TRUNCATED".to_owned(), message));
    fs::remove_file(&file).unwrap();
    assert!(is_disk_error(&get(server.plain, &blob_path(layer))));
    assert_eq!(warning(&server).0, "READ_ERROR");
    assert_eq!(errors(server.plain), [("read_error".to_owned(), 1.0), ("truncated".to_owned(), 1.0)]);
}
