//! The endpoints of the distribution specification over plain HTTP/1.1: headers, ranges, conditions, names and errors.

use localregistry::oci::{Algorithm, Digest, media_type};
use serde_json::json;
use testing::http::{self, get, head, ranged, raw, send};
use testing::layout::{Layout, Stored};
use testing::server::Server;

/// One layout for most tests: a tagged image, an index of two platforms, an upstream's image, a sha512 blob, and an empty blob.
struct Fixture {
    server: Server,
    image: Stored,
    index: Stored,
    layer: Vec<u8>,
    layer_stored: Stored,
    empty: Stored,
    long: Stored,
    upstream: Stored,
    other: Stored,
    _layout: Layout,
}

fn fixture() -> Fixture {
    let mut layout = Layout::default();
    let layer: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let layer_stored = layout.blob(&layer);
    let image = layout.image("test/hello:latest", &layer);
    layout.name(image, media_type::OCI_MANIFEST, "test/hello:v1");
    let empty = layout.blob(b"");
    let long = layout.blob_by(Algorithm::Sha512, b"a blob with a long digest");
    let config = layout.json(&json!({}));
    let odd = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST,
        "config": config.descriptor(media_type::DOCKER_CONFIG),
        "layers": [empty.descriptor(media_type::DOCKER_LAYER), long.descriptor(media_type::DOCKER_LAYER)],
    }));
    let index = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
        "manifests": [image.descriptor(media_type::OCI_MANIFEST), odd.descriptor(media_type::DOCKER_MANIFEST)],
    }));
    layout.name(index, media_type::OCI_INDEX, "test/multi:1");
    let upstream = layout.image("docker.io/library/busybox:1.36", b"busybox");
    layout.name(upstream, media_type::OCI_MANIFEST, "docker.io/library/mirrored:1");
    let other = layout.image("library/busybox:1.36", b"not the upstream's");
    let server = Server::start(layout.write());
    Fixture { server, image, index, layer, layer_stored, empty, long, upstream, other, _layout: layout }
}

#[test]
fn base_endpoint_announces_the_api() {
    let f = fixture();
    for target in ["/v2/", "/v2"] {
        let response = get(f.server.plain, target);
        assert_eq!((response.status, response.body.as_slice()), (200, &b"{}"[..]), "{target}");
        assert_eq!(response.header("docker-distribution-api-version"), Some("registry/2.0"));
    }
}

#[test]
fn manifests_are_served_by_tag_and_digest_with_their_headers() {
    let f = fixture();
    for (name, stored, media_type) in
        [("test/hello", f.image, media_type::OCI_MANIFEST), ("test/multi", f.index, media_type::OCI_INDEX)]
    {
        let tag = if name == "test/hello" { "latest" } else { "1" };
        for (reference, cache) in [
            (tag.to_owned(), "public, max-age=5, must-revalidate"),
            (stored.digest.to_string(), "public, max-age=31536000, immutable"),
        ] {
            let target = format!("/v2/{name}/manifests/{reference}");
            let whole = get(f.server.plain, &target);
            let digest = stored.digest.to_string();
            assert_eq!(whole.status, 200, "{target}");
            assert_eq!(Digest::sha256_of(&whole.body), stored.digest, "the bytes as they are stored");
            for response in [&whole, &head(f.server.plain, &target)] {
                assert_eq!(response.header("content-type"), Some(media_type));
                assert_eq!(response.header("content-length"), Some(stored.size.to_string().as_str()));
                assert_eq!(response.header("docker-content-digest"), Some(digest.as_str()));
                assert_eq!(response.header("etag"), Some(format!("\"{digest}\"").as_str()));
                assert_eq!(response.header("cache-control"), Some(cache));
                assert_eq!(response.header("accept-ranges"), Some("bytes"));
                assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
                assert_eq!(response.header("content-encoding"), None);
            }
        }
    }
}

#[test]
fn platform_manifest_keeps_its_type_whatever_accept_says() {
    let f = fixture();
    let index = get(f.server.plain, "/v2/test/multi/manifests/1").json();
    let docker = index["manifests"][1]["digest"].as_str().unwrap();
    let target = format!("/v2/test/multi/manifests/{docker}");
    for accept in [vec![], vec!["application/json"], vec![media_type::OCI_INDEX, media_type::OCI_MANIFEST, "*/*;q=0.1"]] {
        let headers: Vec<(&str, &str)> = accept.iter().map(|value| ("Accept", *value)).collect();
        let response = send(f.server.plain, "GET", &target, &headers);
        assert_eq!((response.status, response.header("content-type")), (200, Some(media_type::DOCKER_MANIFEST)), "{accept:?}");
        let encoded = send(f.server.plain, "GET", &target, &[("Accept-Encoding", "zstd,gzip,deflate")]);
        assert_eq!((encoded.header("content-encoding"), &encoded.body), (None, &response.body));
    }
}

#[test]
fn blobs_of_every_kind_are_served() {
    let f = fixture();
    let target = |stored: &Stored, repository: &str| format!("/v2/{repository}/blobs/{}", stored.digest);
    let layer = get(f.server.plain, &target(&f.layer_stored, "test/hello"));
    assert_eq!((layer.status, layer.header("content-type")), (200, Some("application/octet-stream")));
    assert!(layer.body == f.layer);
    let empty = get(f.server.plain, &target(&f.empty, "test/multi"));
    assert_eq!((empty.status, empty.header("content-length"), empty.body.len()), (200, Some("0"), 0));
    let long = get(f.server.plain, &target(&f.long, "test/multi"));
    assert_eq!((long.status, long.body.as_slice()), (200, &b"a blob with a long digest"[..]));
    assert_eq!(long.header("docker-content-digest"), Some(f.long.digest.to_string().as_str()));
    let manifest = get(f.server.plain, &target(&f.image, "test/hello"));
    assert_eq!((manifest.status, manifest.header("content-type")), (200, Some("application/octet-stream")));
    assert_eq!(head(f.server.plain, &target(&f.layer_stored, "test/hello")).header("content-length"), Some("1200000"));
    assert_eq!(get(f.server.plain, &target(&f.layer_stored, "test/hello").replace("sha256:", "sha256%3A")).status, 200);
}

#[test]
fn content_of_another_repository_gets_404() {
    let f = fixture();
    let blob = get(f.server.plain, &format!("/v2/library/busybox/blobs/{}", f.layer_stored.digest));
    assert_eq!((blob.status, blob.code().as_str()), (404, "BLOB_UNKNOWN"));
    let manifest = get(f.server.plain, &format!("/v2/library/busybox/manifests/{}", f.image.digest));
    assert_eq!((manifest.status, manifest.code().as_str()), (404, "MANIFEST_UNKNOWN"));
    let as_manifest = get(f.server.plain, &format!("/v2/test/hello/manifests/{}", f.layer_stored.digest));
    assert_eq!((as_manifest.status, as_manifest.code().as_str()), (404, "MANIFEST_UNKNOWN"), "a layer is not a manifest");
}

#[test]
fn single_ranges_are_served_or_get_416() {
    let f = fixture();
    let target = format!("/v2/test/hello/blobs/{}", f.layer_stored.digest);
    for (range, start, end) in [
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, 1_200_000),
        ("bytes=-500", 1_199_500, 1_200_000),
        ("bytes=1199000-1300000", 1_199_000, 1_200_000),
        ("bytes=0-", 0, 1_200_000),
        ("bytes=0-1", 0, 2),
        ("bytes=200000-1200000", 200_000, 1_200_000),
        ("bytes=0-199999", 0, 200_000),
        ("bytes=7-262150", 7, 262_151),
        ("bytes=131071-131072", 131_071, 131_073),
    ] {
        let response = ranged(f.server.plain, &target, range);
        assert_eq!(response.status, 206, "{range}");
        assert_eq!(response.header("content-range"), Some(format!("bytes {start}-{}/1200000", end - 1).as_str()), "{range}");
        assert_eq!(response.header("content-length"), Some((end - start).to_string().as_str()), "{range}");
        assert!(response.body == f.layer[start..end], "{range}");
    }
    for range in ["bytes=500-0", "bytes=1200000-1300000", "bytes=-0"] {
        let response = ranged(f.server.plain, &target, range);
        assert_eq!((response.status, response.header("content-range")), (416, Some("bytes */1200000")), "{range}");
        assert_eq!(response.code(), "SIZE_INVALID");
    }
    for range in ["bytes=x", "lines=0-1", "bytes"] {
        assert_eq!(ranged(f.server.plain, &target, range).status, 200, "{range}");
    }
    let manifest = ranged(f.server.plain, "/v2/test/hello/manifests/latest", "bytes=0-");
    assert_eq!((manifest.status, manifest.body.len()), (206, f.image.size));
    let empty = ranged(f.server.plain, &format!("/v2/test/multi/blobs/{}", f.empty.digest), "bytes=0-");
    assert_eq!((empty.status, empty.header("content-length")), (200, Some("0")));
    let head = send(f.server.plain, "HEAD", &target, &[("Range", "bytes=0-1")]);
    assert_eq!((head.status, head.header("content-length")), (200, Some("1200000")), "Range is for GET alone");
}

#[test]
fn multiple_ranges_come_as_multipart_in_request_order() {
    let f = fixture();
    let target = format!("/v2/test/hello/blobs/{}", f.layer_stored.digest);
    let first = |at: usize| 1_100_000 - at * 1000;
    let thousand: Vec<(usize, usize)> = (0..1024).map(|at| (first(at), first(at) + at * 7 % 900)).collect();
    let long = [(0, 199_999), (300_000, 300_009), (300_010, 700_000), (700_001, 700_001), (200_000, 299_999)];
    for slices in [&thousand[..], &long] {
        let response = ranged(f.server.plain, &target, &list(slices));
        assert_eq!(response.status, 206);
        is_made_of(&response, slices, &f.layer);
    }

    let too_many = ranged(f.server.plain, &target, &format!("{},0-0", list(&thousand)));
    assert_eq!((too_many.status, too_many.code().as_str()), (400, "UNSUPPORTED"));
    let overlapping = ranged(f.server.plain, &target, "bytes=0-,0-,1-");
    assert_eq!((overlapping.status, overlapping.body.len()), (200, 1_200_000));
    let adjacent = ranged(f.server.plain, &target, "bytes=0-4,5-9");
    assert!(String::from_utf8_lossy(&adjacent.body).contains("Content-Range: bytes 5-9/1200000"), "ranges are never merged");
}

/// A `Range` header for these first and last bytes.
fn list(slices: &[(usize, usize)]) -> String {
    let list: Vec<String> = slices.iter().map(|(first, last)| format!("{first}-{last}")).collect();
    format!("bytes={}", list.join(","))
}

/// Asserts that the response has exactly these slices of the content as its parts.
fn is_made_of(response: &http::Response, slices: &[(usize, usize)], content: &[u8]) {
    let boundary = response.header("content-type").unwrap().strip_prefix("multipart/byteranges; boundary=").unwrap().to_owned();
    let mut rest = response.body.as_slice();
    for (count, (first, last)) in slices.iter().enumerate() {
        let line = if count == 0 { "" } else { "\r\n" };
        let head = format!(
            "{line}--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {first}-{last}/{}\r\n\r\n",
            content.len()
        );
        rest = rest.strip_prefix(head.as_bytes()).unwrap_or_else(|| panic!("part {count}"));
        rest = rest.strip_prefix(&content[*first..=*last]).unwrap_or_else(|| panic!("content {count}"));
    }
    assert_eq!(rest, format!("\r\n--{boundary}--\r\n").as_bytes());
}

#[test]
fn each_answer_of_several_ranges_has_a_boundary_of_its_own() {
    let mut layout = Layout::default();
    let mut content = b"0123456789".repeat(10);
    layout.image("test/hello:latest", &content);
    let path = format!("/v2/test/hello/blobs/{}", layout.blob(&content).digest);
    let server = Server::start(layout.write());
    let ask = |path: &str| {
        let response = send(server.plain, "GET", path, &[("Range", "bytes=0-0,2-90")]);
        let boundary =
            response.header("content-type").unwrap().strip_prefix("multipart/byteranges; boundary=").unwrap().to_owned();
        assert_eq!(response.status, 206);
        (boundary, response)
    };
    let (first, response) = ask(&path);
    is_made_of(&response, &[(0, 0), (2, 90)], &content);
    assert_ne!(first, ask(&path).0);
    // Content with the boundary of an earlier answer.
    content.splice(10..10, format!("\r\n--{first}\r\nContent-Range: bytes 0-0/1\r\n\r\nforged").into_bytes());
    let mut layout = Layout::default();
    layout.image("test/hello:latest", &content);
    let server = Server::start(layout.write());
    let path = format!("/v2/test/hello/blobs/{}", layout.blob(&content).digest);
    let response = send(server.plain, "GET", &path, &[("Range", "bytes=0-0,2-90")]);
    let boundary = response.header("content-type").unwrap().rsplit_once('=').unwrap().1;
    let separators = response.body.windows(boundary.len()).filter(|window| *window == boundary.as_bytes()).count();
    assert_eq!(separators, 3, "two parts and the end");
    is_made_of(&response, &[(0, 0), (2, 90)], &content);
}

#[test]
fn conditional_requests_follow_rfc_9110() {
    let f = fixture();
    let target = "/v2/test/hello/manifests/latest";
    let etag = format!("\"{}\"", f.image.digest);
    for value in [etag.clone(), format!("W/{etag}"), format!("\"other\", {etag}"), "*".into()] {
        let response = send(f.server.plain, "GET", target, &[("If-None-Match", &value)]);
        assert_eq!((response.status, response.header("etag")), (304, Some(etag.as_str())), "{value}");
    }
    assert_eq!(send(f.server.plain, "GET", target, &[("If-None-Match", "\"other\"")]).status, 200);
    for method in ["GET", "HEAD"] {
        let if_match = |value: &str| send(f.server.plain, method, target, &[("If-Match", value)]);
        assert_eq!((if_match(&etag).status, if_match("*").status, if_match("\"other\"").status), (200, 200, 412), "{method}");
    }
    let other = send(f.server.plain, "GET", target, &[("If-Match", "\"other\"")]);
    assert_eq!(other.code(), "DIGEST_INVALID");
    assert_eq!(other.json()["errors"][0]["detail"], format!("If-Match does not list {}", f.image.digest));
    let if_range = |value: &str| send(f.server.plain, "GET", target, &[("If-Range", value), ("Range", "bytes=0-1")]).status;
    assert_eq!((if_range(&etag), if_range("\"other\""), if_range(&format!("W/{etag}"))), (206, 200, 200));
}

#[test]
fn one_disk_serves_images_of_many_upstreams() {
    let f = fixture();
    let digest = |response: http::Response| response.header("docker-content-digest").map(str::to_owned);
    let upstream = Some(f.upstream.digest.to_string());
    let own = Some(f.other.digest.to_string());
    let path = "/v2/library/busybox/manifests/1.36";
    assert_eq!(digest(get(f.server.plain, path)), own, "the default namespace");
    let by_ns = get(f.server.plain, &format!("{path}?ns=docker.io"));
    assert_eq!(by_ns.header("oci-namespace"), Some("docker.io"));
    assert_eq!(digest(by_ns), upstream, "containerd's mirrors");
    assert_eq!(digest(get(f.server.plain, "/v2/docker.io/library/busybox/manifests/1.36")), upstream, "CRI-O's mirrors");
    for host in ["docker.io", "registry-1.docker.io", "docker.io:443"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(digest(raw(f.server.plain, request.as_bytes())), upstream, "{host}");
    }
    let mirrored = "/v2/library/mirrored/manifests/1";
    assert_eq!(digest(get(f.server.plain, mirrored)), upstream, "dockerd's mirrors");
    let elsewhere = get(f.server.plain, &format!("{mirrored}?ns=quay.io"));
    assert_eq!((elsewhere.status, elsewhere.code().as_str()), (404, "NAME_UNKNOWN"));
    let itself = format!("{path}?ns={}", f.server.plain.to_string().replace(':', "%3A"));
    assert_eq!(digest(get(f.server.plain, &itself)), own, "ns naming this registry");
    let unknown = get(f.server.plain, &format!("{path}?ns=quay.io"));
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "NAME_UNKNOWN"), "never another upstream's image");
    let bad = get(f.server.plain, &format!("{path}?ns=a%20b"));
    assert_eq!((bad.status, bad.code().as_str()), (400, "NAME_INVALID"));
}

#[test]
fn host_header_with_a_port_selects_its_own_images() {
    let mut layout = Layout::default();
    let with = layout.image("registry.test:5000/e2e/one:1", b"at that port");
    let without = layout.image("registry.test/e2e/one:1", b"at none");
    let server = Server::start(layout.write());
    for (host, expected) in [("registry.test:5000", with), ("registry.test", without), ("registry.test:5001", without)] {
        let request = format!("GET /v2/e2e/one/manifests/1 HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let response = raw(server.plain, request.as_bytes());
        assert_eq!(response.header("docker-content-digest"), Some(expected.digest.to_string().as_str()), "{host}");
    }
}

/// Every spelling of a name of Docker Hub means one image, on the disk and in a request.
#[test]
fn docker_hub_has_one_name() {
    let mut layout = Layout::default();
    let images =
        ["index.docker.io/team/app:2", "docker.io/hello:1", "index.docker.io/library/base:3", "registry-1.docker.io/alpine:3"];
    let images = images.map(|name| layout.image(name, name.as_bytes()));
    let familiar = ["busybox:1", "team/tool:1"].map(|name| layout.image(name, name.as_bytes()));
    layout.image("hello:2", b"the registry's own");
    let server = Server::start(layout.write());
    let names = ["team/app/manifests/2", "library/hello/manifests/1", "library/base/manifests/3", "library/alpine/manifests/3"];
    let asked = |target: &str, host: &str| {
        let response = raw(server.plain, format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
        response.header("docker-content-digest").map(str::to_owned).ok_or(response.status)
    };
    for (name, image) in names.into_iter().zip(images) {
        for host in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            for short in [name, name.strip_prefix("library/").unwrap_or(name)] {
                let forms = [format!("/v2/{short}?ns={host}"), format!("/v2/{host}/{short}"), format!("/v2/{short}")];
                for (form, at) in forms.iter().zip(["x", "x", host]) {
                    assert_eq!(asked(form, at), Ok(image.digest.to_string()), "{form} at {at}");
                }
            }
        }
        assert_eq!(asked(&format!("/v2/{name}"), "x"), Ok(image.digest.to_string()), "dockerd's mirrors: {name}");
        assert_eq!(asked(&format!("/v2/{name}?ns=quay.io"), "x"), Err(404), "{name}");
    }
    // As docker save names them.
    for (name, image) in ["library/busybox/manifests/1", "team/tool/manifests/1"].into_iter().zip(familiar) {
        for form in [format!("/v2/{name}?ns=docker.io"), format!("/v2/docker.io/{name}"), format!("/v2/{name}")] {
            assert_eq!(asked(&form, "x"), Ok(image.digest.to_string()), "{form}");
        }
        assert_eq!(asked(&format!("/v2/quay.io/{name}"), "x"), Err(404), "{name}");
    }
    // The tag that only the registry's own repository has.
    assert!(asked("/v2/hello/manifests/2", "x").is_ok());
}

/// podman and buildah name images without a registry `localhost/NAME`.
#[test]
fn localhost_names_are_found_without_localhost() {
    let mut layout = Layout::default();
    let local = layout.image("localhost/e2e/app:1", b"by podman");
    let local_2 = layout.image("localhost/e2e/app:2", b"by podman, too");
    let plain = layout.image("e2e/app:1", b"by docker");
    let hub = layout.image("docker.io/library/web:1", b"of Docker Hub");
    let local_web = layout.image("localhost/library/web:1", b"by podman");
    let only_local = layout.image("localhost/tool:1", b"a tool");
    let server = Server::start(layout.write());
    let own = server.plain.to_string().replace(':', "%3A");
    for (target, host, expected) in [
        ("/v2/tool/manifests/1".to_owned(), "x", only_local),
        (format!("/v2/tool/manifests/1?ns={own}"), &server.plain.to_string(), only_local),
        ("/v2/localhost/tool/manifests/1".into(), "x", only_local),
        ("/v2/tool/manifests/1?ns=localhost".into(), "x", only_local),
        (format!("/v2/tool/manifests/{}", only_local.digest), "x", only_local),
        // Both names exist, so the name without a host wins.
        ("/v2/e2e/app/manifests/1".into(), "x", plain),
        ("/v2/localhost/e2e/app/manifests/1".into(), "x", local),
        ("/v2/e2e/app/manifests/1?ns=localhost".into(), "x", local),
        ("/v2/e2e/app/manifests/2".into(), "x", local_2),
        (format!("/v2/e2e/app/manifests/{}", local.digest), "x", local),
        ("/v2/library/web/manifests/1".into(), "x", hub),
        (format!("/v2/library/web/manifests/{}", local_web.digest), "x", local_web),
        // The client reaches the registry by this name, so it is not an upstream's.
        ("/v2/e2e/app/manifests/1".into(), "localhost:5000", plain),
        ("/v2/tool/manifests/1".into(), "localhost", only_local),
    ] {
        let response = raw(server.plain, format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
        assert_eq!(
            (response.status, response.header("docker-content-digest")),
            (200, Some(&*expected.digest.to_string())),
            "{target} at {host}"
        );
    }
    let blob = |name: &str, of: &[u8]| get(server.plain, &format!("/v2/{name}/blobs/{}", Digest::sha256_of(of))).status;
    assert_eq!((blob("tool", b"a tool"), blob("e2e/app", b"by podman, too"), blob("tool", b"by docker")), (200, 200, 404));
    assert_eq!(get(server.plain, "/v2/tool/tags/list").json(), json!({"name": "tool", "tags": ["1"]}));
    assert_eq!(get(server.plain, &format!("/v2/e2e/app/referrers/{}", local_2.digest)).status, 200);
    for target in ["/v2/tool/manifests/1?ns=quay.io", "/v2/tool/manifests/2", "/v2/quay.io/tool/manifests/1"] {
        assert_eq!(get(server.plain, target).status, 404, "{target}");
    }
}

/// The repository as the disk names it, or, if it has none, as the client wrote it.
#[test]
fn log_names_the_upstream_for_every_form_of_request() {
    let f = fixture();
    let own = f.server.plain.to_string().replace(':', "%3A");
    for (target, host, repository) in [
        ("/v2/library/busybox/manifests/1.36?ns=docker.io".to_owned(), "x", "docker.io/library/busybox"),
        ("/v2/docker.io/library/busybox/manifests/1.36".into(), "x", "docker.io/library/busybox"),
        ("/v2/library/busybox/tags/list".into(), "registry-1.docker.io", "docker.io/library/busybox"),
        ("/v2/library/mirrored/manifests/1".into(), "x", "docker.io/library/mirrored"),
        ("/v2/library/busybox/manifests/1.36".into(), "x", "library/busybox"),
        ("/v2/library/none/manifests/1".into(), "x", "library/none"),
    ] {
        raw(f.server.plain, format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
        assert_eq!(f.server.logged().repository, repository, "{target} at {host}");
    }
    get(f.server.plain, &format!("/v2/library/busybox/manifests/1.36?ns={own}"));
    assert_eq!(f.server.logged().repository, "library/busybox", "ns naming this registry");
}

#[test]
fn errors_name_the_cause_and_reveal_no_internals() {
    let f = fixture();
    let zeros = "0".repeat(64);
    for (target, status, code) in [
        ("/v2/none/manifests/latest".to_owned(), 404, "NAME_UNKNOWN"),
        ("/v2/test/hello/manifests/none".into(), 404, "MANIFEST_UNKNOWN"),
        ("/v2/test/hello/manifests/.INVALID_MANIFEST_NAME".into(), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/test/hello/manifests/{}", "a".repeat(129)), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/test/hello/manifests/sha256:{zeros}"), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/test/hello/blobs/sha256:{zeros}"), 404, "BLOB_UNKNOWN"),
        ("/v2/test/hello/manifests/sha256:abc".into(), 400, "DIGEST_INVALID"),
        (format!("/v2/test/hello/blobs/sha256:{}", "A".repeat(64)), 400, "DIGEST_INVALID"),
        (format!("/v2/test/hello/blobs/md5:{zeros}"), 400, "DIGEST_INVALID"),
        ("/v2/test/hello/blobs/latest".into(), 400, "DIGEST_INVALID"),
        ("/v2/Test/hello/manifests/latest".into(), 400, "NAME_INVALID"),
        (format!("/v2/{}/manifests/latest", "a/".repeat(128) + "a"), 400, "NAME_INVALID"),
        ("/v2/test/../hello/manifests/latest".into(), 400, "NAME_INVALID"),
        ("/v2/%2e%2e/%2e%2e/etc/manifests/passwd".into(), 400, "NAME_INVALID"),
        ("/v2/test%2fhello/manifests/latest%00".into(), 404, "MANIFEST_UNKNOWN"),
        ("/v2/test//hello/manifests/latest".into(), 400, "NAME_INVALID"),
        ("/v2/test/%c0%ae/manifests/latest".into(), 400, "NAME_INVALID"),
        ("/v2/test/hello".into(), 404, "UNSUPPORTED"),
        ("/v2/test/hello/blobs/uploads/".into(), 404, "UNSUPPORTED"),
        ("/".into(), 404, "UNSUPPORTED"),
        ("/v22/".into(), 404, "UNSUPPORTED"),
        ("/v2/test/hello/tags/list?n=-1".into(), 400, "UNSUPPORTED"),
        ("/v2/test/hello/tags/list?n=many".into(), 400, "UNSUPPORTED"),
        ("/v2/none/tags/list".into(), 404, "NAME_UNKNOWN"),
        (format!("/v2/none/referrers/sha256:{zeros}"), 404, "NAME_UNKNOWN"),
    ] {
        let response = get(f.server.plain, &target);
        assert_eq!(response.status, status, "{target}: {}", String::from_utf8_lossy(&response.body));
        assert_eq!(response.code(), code, "{target}");
        let text = String::from_utf8(response.body).unwrap();
        assert!(!text.contains("blobs/sha") && !text.contains(std::env::temp_dir().to_str().unwrap()), "{text}");
    }
}

#[test]
fn write_methods_get_405() {
    let f = fixture();
    for method in ["PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"] {
        for target in ["/v2/", "/v2/test/hello/blobs/uploads/", "/v2/test/hello/manifests/latest", "/"] {
            let response = send(f.server.plain, method, target, &[("Content-Length", "5"), ("Expect", "100-continue")]);
            assert_eq!((response.status, response.header("allow")), (405, Some("GET, HEAD")), "{method} {target}");
            assert_eq!(response.code(), "UNSUPPORTED");
        }
    }
}

#[test]
fn manifests_up_to_4_mib_are_served_and_larger_ones_refused() {
    let manifest = |layout: &Layout, size: usize| {
        let config = layout.json(&json!({}));
        let text = |padding: usize| {
            let value = json!({
                "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "layers": [],
                "config": config.descriptor(media_type::OCI_CONFIG), "annotations": {"padding": "x".repeat(padding)},
            });
            serde_json::to_vec(&value).unwrap()
        };
        layout.blob(&text(size - text(0).len()))
    };
    let mut layout = Layout::default();
    let largest = manifest(&layout, 4 << 20);
    layout.name(largest, media_type::OCI_MANIFEST, "test/large:1");
    let server = Server::start(layout.write());
    for target in [format!("/v2/test/large/manifests/{}", largest.digest), "/v2/test/large/manifests/1".into()] {
        let response = get(server.plain, &target);
        assert_eq!((response.status, response.body.len()), (200, 4 << 20));
        assert_eq!(Digest::sha256_of(&response.body), largest.digest);
    }

    let mut layout = Layout::default();
    let larger = manifest(&layout, (4 << 20) + 1);
    layout.name(larger, media_type::OCI_MANIFEST, "test/large:1");
    layout.write();
    let output = testing::program(testing::pack::PROGRAM)
        .args(["--quiet", "pack", ".", "-o", "../never.erofs"])
        .current_dir(layout.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let expected = format!("manifest {} has 4194305 bytes; at most 4194304 are served\n", larger.digest);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.starts_with("localregistry: cannot pack .: ") && said.ends_with(&expected), "{said}");
}
