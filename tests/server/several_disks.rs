//! Several disks served as one registry, and disks added and removed while the server runs.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use localregistry::oci::media_type;
use localregistry::registry::content::store::{Disk, Store};
use testing::http::{self, get, send};
use testing::layout::Layout;
use testing::openmetrics::parse;
use testing::server::Server;

fn disk(layout: &Layout, name: &str) -> Arc<Disk> {
    Arc::new(Disk::open(layout.write(), name).unwrap())
}

/// Makes the server serve these disks.
fn serve(server: &Server, disks: &[&Arc<Disk>]) {
    let store = Store::merge(disks.iter().map(|disk| Arc::clone(disk)).collect()).unwrap();
    server.registry.replace(server.registry.snapshot_of(store));
}

fn status(server: &Server, path: &str) -> u16 {
    get(server.plain, path).status
}

#[test]
fn several_disks_form_one_registry() {
    let (mut one, mut two) = (Layout::default(), Layout::default());
    let first = one.image("test/both:1", b"one");
    two.image("test/both:2", b"two");
    two.image("docker.io/library/busybox:1", b"busybox");
    // The same image on both disks.
    assert_eq!(one.image("test/same:1", b"same").digest, two.image("test/same:1", b"same").digest);
    // An artifact that refers to the other disk's image.
    let subject = two.image("test/both:1", b"one");
    let artifact = two.artifact("application/x", subject, b"signature");
    two.name(artifact, media_type::OCI_MANIFEST, "test/both:signature");
    let disks = [disk(&one, "one"), disk(&two, "two")];
    let server = Server::start(one.path());
    serve(&server, &disks.each_ref());

    let repositories = get(server.plain, "/v2/_catalog").json();
    assert_eq!(repositories["repositories"], serde_json::json!(["docker.io/library/busybox", "test/both", "test/same"]));
    assert_eq!(get(server.plain, "/v2/test/both/tags/list").json()["tags"], serde_json::json!(["1", "2", "signature"]));
    for path in
        ["test/both/manifests/1", "test/both/manifests/2", "test/same/manifests/1", "library/busybox/manifests/1?ns=docker.io"]
    {
        assert_eq!(status(&server, &format!("/v2/{path}")), 200, "{path}");
    }
    let referrers = get(server.plain, &format!("/v2/test/both/referrers/{}", first.digest)).json();
    assert_eq!(referrers["manifests"][0]["digest"], artifact.digest.to_string());
    for (name, content) in [("both", &b"one"[..]), ("both", b"two"), ("same", b"same"), ("docker.io/library/busybox", b"busybox")]
    {
        let name = if name.contains('/') { name.to_owned() } else { format!("test/{name}") };
        let digest = localregistry::oci::Digest::sha256_of(content);
        assert_eq!(get(server.plain, &format!("/v2/{name}/blobs/{digest}")).body, content, "{name}");
    }
    assert_eq!(status(&server, "/healthz"), 200);

    // Without one of the disks, its images are gone. Without both, all images are gone, and the health check fails.
    serve(&server, &[&disks[0]]);
    assert_eq!(status(&server, "/v2/test/same/manifests/1"), 200);
    assert_eq!(status(&server, "/v2/test/both/manifests/2"), 404);
    assert_eq!(status(&server, "/v2/library/busybox/manifests/1?ns=docker.io"), 404);
    serve(&server, &[]);
    assert_eq!((status(&server, "/v2/test/same/manifests/1"), status(&server, "/healthz")), (404, 503));
    assert_eq!(get(server.plain, "/v2/_catalog").json()["repositories"], serde_json::json!([]));
}

#[test]
fn conflicting_disks_are_refused_and_both_named() {
    let (mut one, mut other) = (Layout::default(), Layout::default());
    let (first, second) = (one.image("test/hello:1", b"one"), other.image("test/hello:1", b"other"));
    let conflict = Store::merge(vec![disk(&one, "/dev/vda"), disk(&other, "/dev/vdb")]).unwrap_err();
    let message = format!(
        "the tag test/hello:1 is {} on /dev/vda, and {} on /dev/vdb; expected the same, or it on one of them",
        first.digest, second.digest
    );
    assert_eq!(conflict.to_string(), message);
}

#[test]
fn requests_in_progress_survive_disk_changes() {
    let (mut one, mut two) = (Layout::default(), Layout::default());
    let big: Vec<u8> = (0..16_u32 << 20).map(|at| u8::try_from(at.wrapping_mul(at) % 251).unwrap()).collect();
    one.image("test/always:1", b"always");
    one.image("test/big:1", &big);
    two.image("test/sometimes:1", b"sometimes");
    let disks = [disk(&one, "one"), disk(&two, "two")];
    let server = Server::start(one.path());

    // A response that began before the first change.
    let digest = localregistry::oci::Digest::sha256_of(&big);
    let stream = http::begin(server.plain, format_args!("/v2/test/big/blobs/{digest}"));
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }

    let (ended, address) = (AtomicBool::new(false), server.plain);
    let ask = |path: &str| get(address, path).status;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        assert_eq!(ask("/v2/test/always/manifests/1"), 200);
                        match ask("/v2/test/sometimes/manifests/1") {
                            200 | 404 => {}
                            other => panic!("{other}"),
                        }
                    }
                })
            })
            .collect();
        for _ in 0..40 {
            serve(&server, &disks.each_ref());
            assert_eq!(status(&server, "/v2/test/sometimes/manifests/1"), 200, "from the next request on");
            serve(&server, &[&disks[0]]);
            assert_eq!(status(&server, "/v2/test/sometimes/manifests/1"), 404);
        }
        ended.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    // Its disk is no longer served, and the response is complete all the same.
    serve(&server, &[&disks[1]]);
    let mut body = vec![0; big.len()];
    reader.read_exact(&mut body).unwrap();
    assert!(body == big);
}

#[test]
fn counters_survive_disk_changes() {
    let (mut one, mut two) = (Layout::default(), Layout::default());
    one.image("test/b:1", b"layer-b");
    two.image("test/a:1", b"layer-a");
    let disks = [disk(&one, "one"), disk(&two, "two")];
    let server = Server::start(one.path());
    let pull = |name: &str, content: &[u8]| {
        let digest = localregistry::oci::Digest::sha256_of(content);
        assert_eq!(send(server.plain, "GET", &format!("/v2/{name}/blobs/{digest}"), &[("Connection", "close")]).body, content);
        server.logged();
    };
    pull("test/b", b"layer-b");
    // Now test/b has another index.
    serve(&server, &disks.each_ref());
    pull("test/b", b"layer-b");
    pull("test/a", b"layer-a");
    serve(&server, &[&disks[1]]);
    let samples = parse(&String::from_utf8(get(server.plain, "/metrics").body).unwrap());
    let sent = |name: &str| samples.get(&format!("localregistry_blob_sent_bytes_total{{repository=\"{name}\"}}"));
    assert_eq!((sent("test/a"), sent("test/b")), (7.0, 14.0));
}

/// Opening a disk reads only the catalog, so time and memory do not depend on the blobs.
#[test]
fn disk_with_a_catalog_opens_without_reading_blobs() {
    let mut layout = Layout::default();
    for at in 0..50_u32 {
        layout.image(&format!("test/{at}:1"), &at.to_le_bytes());
    }
    let bench = testing::pack::Bench::default();
    bench.layout("images", &layout);
    bench.pack(&["images"]);
    bench.extract("disk.erofs");
    let root = bench.path("disk.erofs.extracted");
    testing::pack::make_writable(&root);
    // Index and blobs are gone, and none of them was read.
    std::fs::remove_dir_all(root.join("blobs")).unwrap();
    std::fs::remove_file(root.join("index.json")).unwrap();
    let store = Store::open(&root).unwrap();
    assert_eq!((store.images(), store.blobs()), (50, 101));
}
