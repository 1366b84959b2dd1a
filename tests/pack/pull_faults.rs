//! `localregistry pack --pull` from registries that answer wrongly, and from some that answer unusually but validly. Each fault
//! gives one message and leaves all files unchanged.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use localregistry::oci::Digest;
use localregistry::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use serde_json::json;
use testing::certificates;
use testing::layout::Layout;
use testing::pack::{Bench, text};
use testing::upstream::{Answer, Images, MANIFEST, Upstream, blob_target, layer, pull_refused, refused_with, refusing, registry};

#[test]
fn error_statuses_are_reported() {
    for (fault, expected) in [
        (
            Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
            "HOST has no manifest 1 of a/b (404: MANIFEST_UNKNOWN: manifest unknown)",
        ),
        (Answer::new(404, &[], b"<html>"), "HOST has no manifest 1 of a/b (404)"),
        (
            Answer::error(403, "DENIED", "not \u{1b}[1myou"),
            "HOST denies access to manifest 1 of a/b (403: DENIED: not \\u{1b}[1myou)",
        ),
        (
            Answer::new(401, &[("WWW-Authenticate", "Negotiate")], b""),
            "HOST answers 401 with an unsupported challenge (\"Negotiate\"); Basic, or Bearer with a realm, is expected",
        ),
        (Answer::new(418, &[], b""), "HOST answers 418 to the request for manifest 1 of a/b"),
        (
            Answer::new(429, &[("Retry-After", "3600")], b""),
            "HOST limits the rate of requests (429) and asks to wait 3600 s; it was asked once. Credentials often raise the limit",
        ),
        (
            Answer::new(429, &[("Retry-After", "0")], b""),
            "HOST limits the rate of requests (429) and asks to wait 0 s; it was asked 5 times. Credentials often raise the limit",
        ),
        (Answer::new(503, &[("Retry-After", "0")], b""), "HOST answers 503 to the request for manifest 1 of a/b"),
    ] {
        refused_with(MANIFEST, fault, expected);
    }
}

#[test]
fn invalid_manifest_bodies_are_refused() {
    let oci = ("Content-Type", OCI_MANIFEST);
    let found = Digest::sha256_of(b"{}");
    let other = Digest::sha256_of(b"other");
    for (fault, expected) in [
        (
            Answer::new(200, &[("Content-Type", "text/html; charset=utf-8")], b"<html>"),
            "HOST gives manifest 1 of a/b as \"text/html\"; the media type of an OCI or Docker manifest or index is expected".to_owned(),
        ),
        (
            Answer::new(200, &[("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")], b"{}"),
            "HOST has manifest 1 of a/b only as a Docker schema 1 manifest, which has no config and is signed again on each pull; \
             push the image again with a current tool"
                .to_owned(),
        ),
        (
            Answer::new(200, &[oci, ("Docker-Content-Digest", &other.to_string())], b"{}"),
            format!("HOST gives manifest 1 of a/b with the content of {found}; {other} is expected"),
        ),
        (
            Answer::new(200, &[oci], b"{"),
            "HOST gives manifest 1 of a/b, which is expected to be a manifest: it is not the JSON of a manifest: \
             EOF while parsing an object at line 1 column 1"
                .to_owned(),
        ),
        (Answer::new(200, &[oci], &vec![b' '; (4 << 20) + 1]), "HOST gives manifest 1 of a/b with more than 4194304 bytes".to_owned()),
        (
            Answer { cut: Some(1), ..Answer::new(200, &[oci], b"{}") },
            "the connection to HOST failed: Peer disconnected".to_owned(),
        ),
    ] {
        refused_with(MANIFEST, fault, &expected);
    }
}

#[test]
fn blob_bodies_that_do_not_match_are_refused() {
    let (digest, blob) = (Digest::sha256_of(&layer()), blob_target());
    let mut wrong = layer();
    wrong[7] ^= 1;
    let found = Digest::sha256_of(&wrong);
    let long = [layer(), vec![0]].concat();
    refused_with(
        &blob,
        Answer::new(200, &[], &wrong),
        &format!("HOST gives blob {digest} of a/b with the content of {found}; {digest} is expected"),
    );
    refused_with(
        &blob,
        Answer::new(200, &[], &long),
        &format!("HOST gives blob {digest} of a/b with 1000001 bytes; 1000000 are expected"),
    );
    refused_with(
        &blob,
        Answer::new(200, &[], b"short"),
        &format!("HOST gives blob {digest} of a/b with 5 bytes; 1000000 are expected"),
    );
    refused_with(
        &blob,
        Answer::error(404, "BLOB_UNKNOWN", "blob unknown"),
        &format!("HOST has no blob {digest} of a/b (404: BLOB_UNKNOWN: blob unknown)"),
    );
    // Each attempt ends at the same byte.
    refused_with(
        &blob,
        Answer { cut: Some(0), ..Answer::new(200, &[], &layer()) },
        &format!("HOST closed the connection after 0 of 1000000 bytes of blob {digest} of a/b"),
    );
}

#[test]
fn foreign_layers_are_not_fetched_from_their_urls() {
    let layout = Layout::default();
    let elsewhere = Upstream::start(|_| Answer::new(200, &[], b"foreign"));
    let config = layout.json(&json!({"architecture": "amd64", "os": "windows"}));
    let digest = Digest::sha256_of(b"foreign");
    let manifest = layout.json(&json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [{
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": digest.to_string(), "size": 7,
            "urls": [format!("http://{}/layer", elsewhere.address)],
        }],
    }));
    let images = Images::new(&layout, &[("1", &manifest.digest.to_string())]);
    let upstream = Upstream::start(move |request| images.answer(request));
    let (bench, host) = (Bench::default(), upstream.address.to_string());
    bench.refused(
        &["--pull", &format!("{host}/a/b:1")],
        &format!(
            "cannot pull {host}/a/b:1: {host} does not have blob {digest} of a/b, a layer whose type says that it is not distributed; \
             the URLs of such layers are not fetched"
        ),
    );
    assert_eq!(elsewhere.targets(), [""; 0]);
}

#[test]
fn false_descriptors_and_indexes_are_refused() {
    let layout = Layout::default();
    let image = layout.manifest(&[b"layer"]);
    let mut wrong = image.descriptor(OCI_MANIFEST);
    wrong["size"] = json!(image.size + 1);
    let mut large = image.descriptor(OCI_MANIFEST);
    large["size"] = json!(5 << 20);
    let index = |child| layout.json(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]}));
    let (wrong, large) = (index(wrong), index(large));
    let mut deep = image;
    for _ in 0..10 {
        deep = index(deep.descriptor(OCI_INDEX));
    }
    let tags = [("wrong", wrong), ("large", large), ("deep", deep)].map(|(tag, stored)| (tag, stored.digest.to_string()));
    let images = Images::new(&layout, &tags.each_ref().map(|(tag, digest)| (*tag, digest.as_str())));
    let upstream = Upstream::start(move |request| images.answer(request));
    let (bench, host) = (Bench::default(), upstream.address.to_string());
    for (tag, expected) in [
        (
            "wrong",
            format!("{host} gives manifest {} of a/b with {} bytes; {} are expected", image.digest, image.size, image.size + 1),
        ),
        ("large", format!("manifest {} has 5242880 bytes; at most 4194304 are pulled", image.digest)),
        ("deep", "it has more than 8 levels of indexes".to_owned()),
    ] {
        bench.refused(&["--pull", &format!("{host}/a/b:{tag}")], &format!("cannot pull {host}/a/b:{tag}: {expected}"));
    }
}

#[test]
fn transient_failures_are_retried() {
    let (manifests, blobs) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let blob = blob_target();
    let (layout, image, upstream) = registry(move |request| match request.target.as_str() {
        MANIFEST => match manifests.fetch_add(1, Ordering::SeqCst) {
            0 => Some(Answer::new(429, &[("Retry-After", "1")], b"")),
            1 => Some(Answer::new(502, &[], b"")),
            _ => None,
        },
        target if target == blob && blobs.fetch_add(1, Ordering::SeqCst) == 0 => {
            Some(Answer { cut: Some(600_000), ..Answer::new(200, &[], &layer()) })
        }
        _ => None,
    });
    let (bench, host) = (Bench::default(), upstream.address.to_string());
    bench.pack(&["--pull", &format!("{host}/a/b:1")]);
    let disk = bench.extract("disk.erofs");
    assert_eq!(disk.images(), [(format!("{host}/a/b:1"), image.digest.to_string())]);
    assert_eq!(disk.blob(&Digest::sha256_of(&layer()).to_string()), layer());
    assert_eq!(fs::read(layout.path().join(image.digest.blob_path())).unwrap(), disk.blob(&image.digest.to_string()));
    // The bytes received before were not requested again.
    let requests = upstream.requests();
    let ranges: Vec<_> =
        requests.iter().filter(|request| request.target == blob_target()).map(|request| request.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=600000-")]);
}

#[test]
fn download_restarts_from_a_server_without_ranges() {
    let (count, blob) = (AtomicUsize::new(0), blob_target());
    let (_layout, _, upstream) = registry(move |request| {
        (request.target == blob).then(|| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Answer { cut: Some(600_000), ..Answer::new(200, &[], &layer()) },
            _ => Answer::new(200, &[], &layer()),
        })
    });
    let (bench, host) = (Bench::default(), upstream.address.to_string());
    bench.pack(&["--pull", &format!("{host}/a/b:1")]);
    assert_eq!(bench.extract("disk.erofs").blob(&Digest::sha256_of(&layer()).to_string()), layer());
}

#[test]
fn blobs_of_other_sources_are_not_fetched_again() {
    let (layout, image, upstream) = registry(|_| None);
    let (bench, host) = (Bench::default(), upstream.address.to_string());
    let mut other = Layout::default();
    other.image("test/other:1", &layer());
    bench.layout("other", &other);
    // One layer by two names, from one registry.
    let (first, second) = (format!("{host}/a/b:1"), format!("{host}/c/d@{}", image.digest));
    bench.pack(&["other", "--pull", &first, "--pull", &second]);
    assert_eq!(bench.extract("disk.erofs").names(), [first.clone(), second.clone(), "test/other:1".to_owned()]);
    let fetched = |upstream: &Upstream| upstream.targets().iter().filter(|target| target.contains("/blobs/")).count();
    assert_eq!(fetched(&upstream), 0, "the config is in the other image too");
    bench.pack(&["--pull", &first, "--pull", &second]);
    assert_eq!(fetched(&upstream), 2, "once each: {:?}", upstream.targets());
    drop(layout);
}

#[test]
fn unreachable_and_silent_registries_are_reported() {
    let (_held, free) = refusing();
    pull_refused(&free.to_string(), &[], "cannot connect to HOST: Connection refused (os error 111)");
    // A server that never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let more = ["--plain-http", &address, "--pull-timeout", "1"];
    pull_refused(&address, &more, "HOST did not respond within 1 s (receive response)");
}

#[test]
fn certificate_for_another_name_is_refused() {
    let (ca, certificate, key) = certificates::server();
    let upstream = Upstream::start_on("127.0.0.1:0", Some((&certificate, &key)), |_| Answer::new(200, &[], b""));
    let (bench, host) = (Bench::default(), format!("localhost:{}", upstream.address.port()));
    bench.file("ca.crt", ca.as_bytes());
    bench.refused(
        &["--pull", &format!("{host}/a/b:1"), "--registry-ca", "ca.crt"],
        &format!(
            "cannot pull {host}/a/b:1: the TLS handshake with {host} failed: invalid peer certificate: certificate not valid for name \
             \"localhost\"; certificate is only valid for IpAddress(127.0.0.1)"
        ),
    );
    assert_eq!(upstream.targets(), [""; 0]);
}

#[test]
fn signal_ends_the_pull_at_once_and_leaves_no_files() {
    let (received, blob) = (Arc::new(AtomicUsize::new(0)), blob_target());
    let seen = Arc::clone(&received);
    let (_layout, _, upstream) = registry(move |request| {
        if request.target != blob {
            return None;
        }
        seen.store(1, Ordering::SeqCst);
        // The response never ends.
        std::thread::sleep(std::time::Duration::from_secs(600));
        None
    });
    let (bench, host) = (Bench::default(), upstream.address.to_string());
    bench.file("disk.erofs", b"the old disk");
    let before = bench.everything();
    let mut command = bench.command(&["--quiet", "pack", "--pull", &format!("{host}/a/b:1"), "-o", "disk.erofs"]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    while received.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let id = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "localregistry: disk.erofs is not written: interrupted by SIGINT\n");
    assert_eq!((output.status.code(), output.status.signal()), (Some(130), None));
    assert_eq!(bench.everything(), before);
}

#[test]
fn bad_pull_flags_exit_2() {
    let bench = Bench::default();
    for (arguments, message) in [
        (
            &["--pull", "https://quay.io/a"][..],
            "error: invalid value 'https://quay.io/a' for '--pull <REF>': a registry's host is a DNS name or an address, with an optional port",
        ),
        (
            &["--pull", "a", "--plain-http", "a/b"],
            "error: invalid value 'a/b' for '--plain-http <HOST>': a registry's host is a DNS name or an address, with an optional port",
        ),
        (
            &["--pull", "a", "--pull-timeout", "0"],
            "error: invalid value '0' for '--pull-timeout <SECONDS>': 0 is not in 1..=3600",
        ),
        (
            &["--pull", "a", "--platform", "amd64"],
            "error: invalid value 'amd64' for '--platform <PLATFORM>': a platform has the form os/architecture or \
             os/architecture/variant, in lower case: linux/amd64, linux/arm/v7",
        ),
    ] {
        let output = bench.command(&[&["pack", "-o", "d"], arguments].concat()).output().unwrap();
        assert_eq!(text(&output.stderr).lines().next(), Some(message));
        assert_eq!(output.status.code(), Some(2));
    }
}
