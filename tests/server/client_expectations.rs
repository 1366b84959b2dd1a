//! Unusual requests of real clients, sent byte by byte as those clients send them.

use std::io::{BufReader, Read, Write};

use localregistry::oci::{Algorithm, media_type};
use localregistry::proto::event::Event;
use localregistry::registry::limits::RANGES;
use serde_json::json;
use testing::h2::{END_HEADERS, END_STREAM, HEADERS, Peer, block, frame};
use testing::http::{self, connect, get, head, ranged, raw, send};
use testing::layout::Layout;
use testing::server::Server;

const NAMESPACE: &str = "oci-namespace";

/// CRI-O, podman, skopeo and buildah send six `Accept` lines, and the type they need may be in the last.
#[test]
fn six_accept_header_lines_are_accepted() {
    let (layout, image) = Layout::hello();
    let server = Server::start(layout.path());
    let types = [
        media_type::OCI_MANIFEST,
        media_type::DOCKER_MANIFEST,
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        media_type::OCI_INDEX,
    ];
    for first in 0..types.len() {
        let mut lines: Vec<(&str, &str)> = types.iter().map(|one| ("Accept", *one)).collect();
        lines.rotate_left(first);
        let response = send(server.plain, "GET", "/v2/test/hello/manifests/latest", &lines);
        assert_eq!((response.status, response.header("content-type")), (200, Some(media_type::OCI_MANIFEST)), "{first}");
        assert_eq!(response.body.len(), image.size);
    }
}

/// containerd 2 fetches a layer by several parallel open-ended ranges, and closes each after its part.
#[test]
fn parallel_open_ended_ranges_may_be_closed_early() {
    const PART: usize = 1 << 20;
    let mut layout = Layout::default();
    let content: Vec<u8> = (0..16_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let image = layout.image("test/hello:latest", &content);
    let blob = format!("/v2/test/hello/blobs/{}", layout.blob(&content).digest);
    let server = Server::start(layout.write());
    // containerd also requests manifests by a range.
    let manifest = ranged(server.plain, "/v2/test/hello/manifests/latest", "bytes=0-");
    let (size, last) = (image.size, image.size - 1);
    assert_eq!((manifest.status, manifest.header("content-type")), (206, Some(media_type::OCI_MANIFEST)));
    assert_eq!(manifest.header("content-range"), Some(format!("bytes 0-{last}/{size}").as_str()));
    assert_eq!(manifest.header("content-length"), Some(size.to_string().as_str()));
    assert!(matches!(server.event(), Event::Request(_)));

    let total = content.len();
    std::thread::scope(|scope| {
        for start in (0..total).step_by(PART) {
            let (content, blob, address) = (&content, &blob, server.plain);
            scope.spawn(move || {
                let mut stream = connect(address);
                write!(stream, "GET {blob} HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-\r\n\r\n").unwrap();
                let mut reader = BufReader::new(stream);
                let head = read_head(&mut reader);
                assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
                let range = format!("content-range: bytes {start}-{}/{total}\r\n", total - 1);
                assert!(head.to_ascii_lowercase().contains(&range), "{head}");
                let mut part = vec![0; PART];
                reader.read_exact(&mut part).unwrap();
                assert!(part == content[start..start + PART], "{start}");
            });
        }
    });
    // A part that is not read to its end is no fault: each has a log entry, and there is no warning.
    for _ in 0..total / PART {
        let event = server.event();
        assert!(matches!(&event, Event::Request(request) if request.status == 206), "{event:?}");
    }
}

fn read_head(reader: &mut impl std::io::BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
    }
    head
}

/// containerd URL-encodes the port of an upstream, and podman does not.
#[test]
fn upstream_with_a_port_is_resolved() {
    let mut layout = Layout::default();
    let image = layout.image("registry.example:5000/team/app:1", b"layer");
    let server = Server::start(layout.write());
    for (target, echoed) in [
        ("/v2/team/app/manifests/1?ns=registry.example%3A5000", Some("registry.example:5000")),
        ("/v2/team/app/manifests/1?ns=registry.example:5000", Some("registry.example:5000")),
        ("/v2/registry.example:5000/team/app/manifests/1", None),
        // No reference has a colon in its path, so trust files for podman and CRI-O spell it so; and containerd's folders.
        ("/v2/registry.example_5000/team/app/manifests/1", None),
        ("/v2/registry.example_5000_/team/app/manifests/1", None),
    ] {
        let response = get(server.plain, target);
        assert_eq!((response.status, response.header(NAMESPACE)), (200, echoed), "{target}");
        assert_eq!(response.header("docker-content-digest"), Some(image.digest.to_string().as_str()), "{target}");
        assert_eq!(server.logged().repository, "registry.example:5000/team/app", "{target}");
    }
    for other in ["/v2/team/app/manifests/1?ns=registry.example%3A5001", "/v2/registry.example_5001/team/app/manifests/1"] {
        let other = get(server.plain, other);
        assert_eq!((other.status, other.code().as_str()), (404, "NAME_UNKNOWN"), "another port is another upstream");
    }
}

/// Every spelling of an upstream with a port or an IPv6 address, and names that only look like one.
#[test]
fn spelled_upstreams_are_resolved() {
    let mut layout = Layout::default();
    let names = [
        "localhost:5000/a:1",
        "[fd00::9]:5000/a:1",
        "[::1]/a:1",
        "reg:5000/a:1",
        "reg_5000/b:1",
        "both:5000/a:1",
        "both_5000/a:1",
    ];
    let images = names.map(|name| layout.image(name, name.as_bytes()));
    let [local, ipv6, bare, port, plain, spelled, exact] = images;
    let server = Server::start(layout.write());
    for (path, image) in [
        ("localhost_5000/a", local),
        ("localhost:5000/a", local),
        ("fd00--9.ipv6-literal.net_5000/a", ipv6),
        ("%5Bfd00:0::9%5D:5000/a", ipv6),
        ("a?ns=%5Bfd00::9%5D:5000", ipv6),
        ("0--1.ipv6-literal.net/a", bare),
        ("reg_5000/a", port),
        ("reg_5000/b", plain),
        ("both_5000/a", exact),
        ("both:5000/a", spelled),
    ] {
        let (path, query) = path.split_once('?').map_or((path, String::new()), |(path, query)| (path, format!("?{query}")));
        let response = get(server.plain, &format!("/v2/{path}/manifests/1{query}"));
        let found = response.header("docker-content-digest");
        assert_eq!(found, Some(image.digest.to_string().as_str()), "{path}{query}: {}", response.status);
    }
    let page = get(server.plain, "/v2/fd00--9.ipv6-literal.net_5000/a/tags/list?n=1");
    assert_eq!(page.json()["tags"], serde_json::json!(["1"]));
    for unknown in ["reg_5000/b/manifests/2", "reg_5001/a/manifests/1", "localhost_5000/a/manifests/1?ns=quay.io"] {
        assert_eq!(get(server.plain, &format!("/v2/{unknown}")).status, 404, "{unknown}");
    }
}

/// Clients that verify signatures request tags that mostly do not exist.
#[test]
fn missing_signature_tags_get_404() {
    let (layout, image) = Layout::hello();
    let server = Server::start(layout.path());
    let tag = image.digest.to_string().replace(':', "-");
    for end in ["", ".sig", ".att", ".sbom"] {
        for method in ["GET", "HEAD"] {
            let response = send(server.plain, method, &format!("/v2/test/hello/manifests/{tag}{end}"), &[]);
            assert_eq!(response.status, 404, "{method} {end}");
            if method == "GET" {
                assert_eq!(response.code(), "MANIFEST_UNKNOWN", "{end}");
            }
        }
    }
}

/// Clients of zstd:chunked request up to 1,024 ranges in one header, over either protocol.
#[test]
fn a_thousand_ranges_in_a_32_kib_header_are_served() {
    let mut layout = Layout::default();
    let content: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    layout.image("test/hello:latest", &content);
    let blob = format!("/v2/test/hello/blobs/{}", layout.blob(&content).digest);
    let server = Server::start(layout.write());
    // Leading zeros are valid digits (RFC 9110, section 14.1.2) and give the line its maximum length.
    let slice = |at: usize| (at * 1900, at * 1900 + at * 7 % 200);
    let list: Vec<String> = (0..RANGES).map(slice).map(|(first, last)| format!("{first:015}-{last:015}")).collect();
    let range = format!("bytes={}", list.join(","));
    assert!(range.len() > 32 << 10 && RANGES == 1024, "{}", range.len());

    let response = ranged(server.plain, &blob, &range);
    assert_eq!(response.status, 206);
    check_parts(&response.body, (0..RANGES).map(slice), &content);
    let mut peer = Peer::new(server.plain);
    let block = block("GET", &blob, &[("range", &range)]);
    let mut pieces: Vec<Vec<u8>> = block.chunks(16_384).map(|piece| frame(testing::h2::CONTINUATION, 0, 1, piece)).collect();
    let last = pieces.len() - 1;
    (pieces[0][3], pieces[0][4], pieces[last][4]) = (HEADERS, END_STREAM, END_HEADERS);
    peer.send(&[pieces.concat(), testing::h2::window(0, 1 << 24)].concat());
    // The response has 200 KiB, so the stream's window is opened too.
    peer.send(&testing::h2::window(1, 1 << 24));
    let (status, body) = peer.response(1);
    assert!(status == 206 && body.len() == response.body.len(), "the same over HTTP/2");
    check_parts(&body, (0..RANGES).map(slice), &content);
}

/// Asserts that the body consists of these slices of the content, each after a head that names it.
fn check_parts(body: &[u8], slices: impl Iterator<Item = (usize, usize)>, content: &[u8]) {
    let mut rest = body;
    for (first, last) in slices {
        let range = format!("\r\nContent-Range: bytes {first}-{last}/{}\r\n\r\n", content.len());
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        assert!(rest[..end].ends_with(range.as_bytes()), "{first}-{last}");
        rest = rest[end..].strip_prefix(&content[first..=last]).unwrap_or_else(|| panic!("the bytes of {first}-{last}"));
        assert!(rest.starts_with(b"\r\n--"), "a boundary after {first}-{last}");
    }
    assert!(rest.ends_with(b"--\r\n") && rest.len() < 100, "nothing follows the last part");
}

/// stargz and SOCI fail on an empty type, and oras on a manifest without a length.
#[test]
fn every_response_has_content_type_and_content_length() {
    let mut layout = Layout::default();
    let empty = layout.blob(b"");
    let image = layout.image("test/hello:latest", b"");
    let server = Server::start(layout.write());
    let zeros = "0".repeat(64);
    for (target, status, kind) in [
        ("/v2/".to_owned(), 200, "application/json"),
        (format!("/v2/test/hello/blobs/{}", empty.digest), 200, "application/octet-stream"),
        ("/v2/test/hello/manifests/latest".into(), 200, media_type::OCI_MANIFEST),
        (format!("/v2/test/hello/manifests/{}", image.digest), 200, media_type::OCI_MANIFEST),
        ("/v2/test/hello/tags/list".into(), 200, "application/json"),
        ("/v2/_catalog".into(), 200, "application/json"),
        (format!("/v2/test/hello/referrers/sha256:{zeros}"), 200, media_type::OCI_INDEX),
        (format!("/v2/test/hello/blobs/sha256:{zeros}"), 404, "application/json"),
    ] {
        let (whole, alone) = (get(server.plain, &target), head(server.plain, &target));
        assert_eq!((whole.status, alone.status), (status, status), "{target}");
        for response in [&whole, &alone] {
            assert_eq!(response.header("content-type"), Some(kind), "{target}");
            assert_eq!(response.header("content-length"), Some(whole.body.len().to_string().as_str()), "{target}");
            assert_eq!(response.header("transfer-encoding"), None, "{target}");
        }
        assert!(alone.body.is_empty());
    }
    // The probe and the pull that follows use one connection.
    let mut reader = BufReader::new(connect(server.plain));
    for range in ["bytes=0-1", "bytes=0-0,2-3"] {
        write!(reader.get_mut(), "GET /v2/test/hello/manifests/latest HTTP/1.1\r\nHost: x\r\nRange: {range}\r\n\r\n").unwrap();
        assert_eq!(http::read(&mut reader, false).unwrap().status, 206, "{range}");
    }
}

/// An image, its index and its referrers may all have sha512 digests. The referrers tag schema then truncates the digest.
#[test]
fn sha512_digests_work_for_manifests_blobs_and_referrers() {
    let mut layout = Layout::default();
    let by = |layout: &Layout, value: serde_json::Value| layout.blob_by(Algorithm::Sha512, &serde_json::to_vec(&value).unwrap());
    let config = by(&layout, json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}));
    let image = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config.descriptor(media_type::OCI_CONFIG), "layers": [],
    });
    let image = by(&layout, image);
    layout.name(image, media_type::OCI_MANIFEST, "test/long:1");
    let report = layout.artifact("application/x.report", image, b"reported");
    let index = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [report.descriptor(media_type::OCI_MANIFEST)],
    }));
    let text = image.digest.to_string();
    let tag = format!("sha512-{}", &text["sha512:".len()..][..64]);
    layout.name(index, media_type::OCI_INDEX, &format!("test/long:{tag}"));
    let server = Server::start(layout.write());

    let manifest = get(server.plain, "/v2/test/long/manifests/1");
    assert_eq!((manifest.status, manifest.header("docker-content-digest")), (200, Some(text.as_str())));
    assert_eq!(manifest.header("etag"), Some(format!("\"{text}\"").as_str()));
    assert_eq!(get(server.plain, &format!("/v2/test/long/manifests/{text}")).body, manifest.body);
    assert_eq!(get(server.plain, &format!("/v2/test/long/blobs/{}", config.digest)).status, 200);
    let found = get(server.plain, &format!("/v2/test/long/referrers/{text}")).json();
    assert_eq!(found["manifests"][0]["digest"], report.digest.to_string());
    assert_eq!(found["manifests"].as_array().unwrap().len(), 1);
}

/// The artifact types of referrers (distribution specification, "Listing Referrers").
#[test]
fn referrers_list_the_artifact_type() {
    let (mut layout, image) = Layout::hello();
    let subject = image.descriptor(media_type::OCI_MANIFEST);
    let config = layout.blob(b"{}").descriptor("application/x.config");
    let base = |kind| json!({"schemaVersion": 2, "mediaType": kind, "subject": subject});
    let with = |mut value: serde_json::Value, more: serde_json::Value| {
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        value
    };
    let manifest = |more| with(with(base(media_type::OCI_MANIFEST), json!({"config": config, "layers": []})), more);
    let index = |more| with(with(base(media_type::OCI_INDEX), json!({"manifests": []})), more);
    let expected = [
        (manifest(json!({"annotations": {"n": "1"}})), Some("application/x.config")),
        (manifest(json!({"artifactType": "", "annotations": {"n": "2"}})), Some("application/x.config")),
        (manifest(json!({"artifactType": "application/x.said"})), Some("application/x.said")),
        (index(json!({"annotations": {"n": "4"}})), None),
        (index(json!({"artifactType": "application/x.index"})), Some("application/x.index")),
    ]
    .map(|(value, kind)| {
        let media_type = value["mediaType"].as_str().unwrap().to_owned();
        let stored = layout.json(&value);
        layout.name(stored, &media_type, "");
        (stored.digest.to_string(), media_type, kind, value["annotations"].clone())
    });
    let server = Server::start(layout.write());
    let list = format!("/v2/test/hello/referrers/{}", image.digest);
    let found = get(server.plain, &list).json();
    let found = found["manifests"].as_array().unwrap();
    assert_eq!(found.len(), expected.len());
    for (digest, media_type, kind, annotations) in &expected {
        let one = found.iter().find(|one| one["digest"] == digest.as_str()).unwrap();
        assert_eq!((one["mediaType"].as_str(), one["artifactType"].as_str()), (Some(media_type.as_str()), *kind), "{one}");
        assert_eq!(&one["annotations"], annotations, "{one}");
    }
    for (kind, count) in [("application/x.config", 2), ("application/x.index", 1), ("application/x.none", 0)] {
        let filtered = get(server.plain, &format!("{list}?artifactType={kind}"));
        assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
        assert_eq!(filtered.json()["manifests"].as_array().unwrap().len(), count, "{kind}");
    }
}

/// The allowed error codes (distribution specification, "Error Codes").
#[test]
fn errors_use_the_codes_of_the_specification() {
    const CODES: [&str; 14] = [
        "BLOB_UNKNOWN",
        "BLOB_UPLOAD_INVALID",
        "BLOB_UPLOAD_UNKNOWN",
        "DIGEST_INVALID",
        "MANIFEST_BLOB_UNKNOWN",
        "MANIFEST_INVALID",
        "MANIFEST_UNKNOWN",
        "NAME_INVALID",
        "NAME_UNKNOWN",
        "SIZE_INVALID",
        "UNAUTHORIZED",
        "DENIED",
        "UNSUPPORTED",
        "TOOMANYREQUESTS",
    ];
    let (layout, _) = Layout::hello();
    let server = Server::start(layout.path());
    let many = format!("bytes={}", (0..=RANGES).map(|_| "0-0").collect::<Vec<_>>().join(","));
    let of = |target: &str, range: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\nRange: {range}\r\n\r\n");
    let blob = format!("/v2/test/hello/blobs/{}", layout.blob(b"layer").digest);
    for (request, status) in [
        (of("/v2/test/hello/tags/list?n=-1", "x"), 400),
        (of("/v2/_catalog?n=many", "x"), 400),
        (of(&blob, "bytes=5-"), 416),
        (of(&blob, &many), 400),
        (of("/v2/none/tags/list", "x"), 404),
        (of("/v2/test/hello/manifests/none", "x"), 404),
        (of("/v2/test/hello/blobs/x", "x"), 400),
        (of("/v2/UPPER/tags/list", "x"), 400),
        (of("/none", "x"), 404),
        ("GET /v2/ HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("PUT /v2/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 405),
    ] {
        let response = raw(server.plain, request.as_bytes());
        assert_eq!(response.status, status, "{request:.60}");
        let json = response.json();
        let error = &json["errors"][0];
        assert!(CODES.contains(&response.code().as_str()), "{request:.60}: {error}");
        assert!(error["message"].is_string() && !error["detail"].as_str().unwrap().is_empty(), "{error}");
    }
}
