//! The cache of small manifests: a cached response is identical to the first, and needs no disk.

use localregistry::oci::media_type;
use localregistry::registry::limits::{CACHED_MANIFESTS, LARGEST_CACHED_MANIFEST};
use serde_json::json;
use testing::http::{Response, get, head, send};
use testing::layout::{Layout, Stored};
use testing::server::Server;

/// A manifest with a size of exactly `size` bytes.
fn manifest_of(layout: &Layout, size: u64) -> Stored {
    let config = layout.json(&json!({"architecture": "amd64", "os": "linux"}));
    let with = |fill: &str| {
        json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config.descriptor(media_type::OCI_CONFIG),
            "layers": [], "annotations": {"fill": fill},
        })
    };
    let empty = serde_json::to_vec(&with("")).unwrap().len();
    layout.json(&with(&"a".repeat(usize::try_from(size).unwrap() - empty)))
}

fn remove(layout: &Layout, stored: Stored) {
    std::fs::remove_file(layout.path().join(stored.digest.blob_path())).unwrap();
}

/// Status, headers except the time of day, and body, with the random boundary of several ranges replaced.
fn compared(response: Response) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let content_type = response.header("content-type").unwrap_or_default().to_owned();
    let boundary = content_type.split_once("boundary=").map_or("no boundary", |(_, boundary)| boundary);
    let plain = |text: &str| text.replace(boundary, "BOUNDARY");
    let headers = response.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("date"));
    let headers = headers.map(|(name, value)| (name.clone(), plain(value))).collect();
    (response.status, headers, plain(&String::from_utf8(response.body).unwrap()).into_bytes())
}

#[test]
fn cached_response_equals_the_first_for_every_request() {
    let (mut asked_first, mut asked_again) = (Vec::new(), Vec::new());
    let (layout, image) = Layout::hello();
    let etag = format!("\"{}\"", image.digest);
    for reference in ["latest".to_owned(), image.digest.to_string()] {
        let path = format!("/v2/test/hello/manifests/{reference}");
        for (method, fields) in [
            ("GET", vec![]),
            ("HEAD", vec![]),
            ("GET", vec![("Accept", "application/json")]),
            ("GET", vec![("Range", "bytes=0-9")]),
            ("GET", vec![("Range", "bytes=-7")]),
            ("GET", vec![("Range", "bytes=5-")]),
            ("GET", vec![("Range", "bytes=0-0,5-9,3-3,-1")]),
            ("GET", vec![("Range", "bytes=100000-")]),
            ("GET", vec![("Range", "bytes=0-9"), ("If-Range", etag.as_str())]),
            ("GET", vec![("Range", "bytes=0-9"), ("If-Range", "\"other\"")]),
            ("GET", vec![("If-None-Match", etag.as_str())]),
            ("GET", vec![("If-None-Match", "\"other\"")]),
            ("HEAD", vec![("If-None-Match", "*")]),
        ] {
            // Each with a fresh server.
            let server = Server::start(layout.path());
            asked_first.push(compared(send(server.plain, method, &path, &fields)));
            get(server.plain, &path);
            asked_again.push(compared(send(server.plain, method, &path, &fields)));
        }
    }
    for (first, again) in asked_first.iter().zip(&asked_again) {
        assert_eq!(first, again);
    }
    let statuses: Vec<u16> = asked_again.iter().map(|(status, ..)| *status).collect();
    assert_eq!(statuses[..13], [200, 200, 200, 206, 206, 206, 206, 416, 206, 200, 304, 200, 304]);
    assert_eq!(asked_again[0].2.len(), image.size);
}

#[test]
fn cached_manifests_need_no_disk_and_larger_ones_do() {
    let mut layout = Layout::default();
    let (small, large) = (manifest_of(&layout, LARGEST_CACHED_MANIFEST), manifest_of(&layout, LARGEST_CACHED_MANIFEST + 1));
    layout.name(small, media_type::OCI_MANIFEST, "test/hello:small");
    layout.name(large, media_type::OCI_MANIFEST, "test/hello:large").write();
    let server = Server::start(layout.path());
    let path = |tag: &str| format!("/v2/test/hello/manifests/{tag}");
    let content = get(server.plain, &path("small")).body;
    assert_eq!((content.len() as u64, get(server.plain, &path("large")).body.len()), (LARGEST_CACHED_MANIFEST, large.size));
    remove(&layout, small);
    remove(&layout, large);
    assert_eq!(get(server.plain, &path("small")).body, content);
    assert_eq!(head(server.plain, &path(&small.digest.to_string())).status, 200);
    let gone = get(server.plain, &path("large"));
    assert_eq!((gone.status, gone.code().as_str()), (500, "UNKNOWN"));
    // A request for the blob reads the disk and fails, and so does the health check.
    assert_eq!(get(server.plain, &format!("/v2/test/hello/blobs/{}", small.digest)).status, 500);
    assert_eq!(get(server.plain, "/healthz").status, 503);
}

#[test]
fn cache_is_bounded_and_the_rest_comes_from_disk() {
    let mut layout = Layout::default();
    let more = CACHED_MANIFESTS + 20;
    let images: Vec<Stored> = (0..more).map(|at| layout.image(&format!("test/hello:{at}"), &at.to_le_bytes())).collect();
    layout.write();
    let server = Server::start(layout.path());
    let status = |at: usize| get(server.plain, &format!("/v2/test/hello/manifests/{at}")).status;
    for _ in 0..2 {
        assert!((0..more).all(|at| status(at) == 200), "all manifests are served");
    }
    images.iter().for_each(|image| remove(&layout, *image));
    let served: Vec<usize> = (0..more).filter(|at| status(*at) == 200).collect();
    assert_eq!(served, (0..CACHED_MANIFESTS).collect::<Vec<_>>(), "the first manifests stay in the cache");
}

#[test]
fn corrupt_manifests_are_not_cached() {
    let (layout, image) = Layout::hello();
    let server = Server::start(layout.path());
    let (path, file) = ("/v2/test/hello/manifests/latest", layout.path().join(image.digest.blob_path()));
    let right = std::fs::read(&file).unwrap();
    std::fs::write(&file, "cut").unwrap();
    assert_eq!(get(server.plain, path).status, 500);
    let wrong = vec![b' '; right.len()];
    std::fs::write(&file, &wrong).unwrap();
    assert_eq!(get(server.plain, path).body, wrong, "the bytes on the disk: the client notices the wrong digest");
    std::fs::write(&file, &right).unwrap();
    assert_eq!(get(server.plain, path).body, right, "the repaired manifest is served");
    std::fs::write(&file, &wrong).unwrap();
    assert_eq!(get(server.plain, path).body, right, "the repaired manifest is cached");
}
