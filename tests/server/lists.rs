//! Tags, repositories and referrers, with paging.

use localregistry::oci::media_type;
use serde_json::{Value, json};
use testing::http::{get, head};
use testing::layout::Layout;
use testing::server::Server;

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

#[test]
fn tags_are_sorted_and_paged() {
    let mut layout = Layout::default();
    let image = layout.image("test/hello:b", b"layer");
    for tag in ["c", "a", "B", "1.0", "1.10"] {
        layout.name(image, media_type::OCI_MANIFEST, &format!("test/hello:{tag}"));
    }
    layout.image("other:z", b"other");
    let server = Server::start(layout.write());
    let all = get(server.plain, "/v2/test/hello/tags/list");
    assert_eq!((all.status, all.header("content-type"), all.header("link")), (200, Some("application/json"), None));
    assert_eq!(all.json(), json!({"name": "test/hello", "tags": ["1.0", "1.10", "B", "a", "b", "c"]}));

    let mut target = "/v2/test/hello/tags/list?n=2".to_owned();
    let mut pages = Vec::new();
    loop {
        let page = get(server.plain, &target);
        pages.push(strings(&page.json()["tags"]).join(" "));
        let Some(link) = page.header("link") else { break };
        let next = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).unwrap();
        assert!(next.starts_with("/v2/"), "relative: {next}");
        target = next.to_owned();
    }
    assert_eq!(pages, ["1.0 1.10", "B a", "b c"]);

    for (query, expected, linked) in [
        ("n=0", "", false),
        ("last=a", "b c", false),
        ("last=unknown", "", false),
        ("last=AAA", "B a b c", false),
        ("n=1&last=B", "a", true),
        ("n=6", "1.0 1.10 B a b c", false),
        ("n=18446744073709551616", "1.0 1.10 B a b c", false),
        ("last=%00%ff%0d%0a", "1.0 1.10 B a b c", false),
    ] {
        let page = get(server.plain, &format!("/v2/test/hello/tags/list?{query}"));
        assert_eq!(strings(&page.json()["tags"]).join(" "), expected, "{query}");
        assert_eq!(page.header("link").is_some(), linked, "{query}");
    }
    assert_eq!(head(server.plain, "/v2/test/hello/tags/list").status, 200);
}

#[test]
fn next_links_keep_the_ns_parameter() {
    let mut layout = Layout::default();
    let image = layout.image("docker.io/library/busybox:1", b"layer");
    layout.name(image, media_type::OCI_MANIFEST, "docker.io/library/busybox:2");
    let server = Server::start(layout.write());
    let page = get(server.plain, "/v2/library/busybox/tags/list?ns=docker.io&n=1");
    assert_eq!(page.header("link"), Some("</v2/library/busybox/tags/list?n=1&last=1&ns=docker.io>; rel=\"next\""));
    let next = get(server.plain, "/v2/library/busybox/tags/list?n=1&last=1&ns=docker.io");
    assert_eq!((strings(&next.json()["tags"]).join(" "), next.header("link")), ("2".to_owned(), None));
}

#[test]
fn repositories_are_sorted_and_paged() {
    let mut layout = Layout::default();
    for name in ["zoo:1", "docker.io/library/busybox:1", "test/hello:1", "test/hello:2"] {
        layout.image(name, name.as_bytes());
    }
    let server = Server::start(layout.write());
    let all = get(server.plain, "/v2/_catalog");
    assert_eq!(all.json(), json!({"repositories": ["docker.io/library/busybox", "test/hello", "zoo"]}));
    let page = get(server.plain, "/v2/_catalog?n=1&last=docker.io/library/busybox");
    assert_eq!(page.json(), json!({"repositories": ["test/hello"]}));
    assert_eq!(page.header("link"), Some("</v2/_catalog?n=1&last=test%2Fhello>; rel=\"next\""));
    assert_eq!(get(server.plain, "/v2/_catalog?n=0").json(), json!({"repositories": []}));
}

#[test]
fn referrers_are_found_by_subject_type_and_tag_schema() {
    let (mut layout, image) = Layout::hello();
    let signature = layout.artifact("application/x.signature", image, b"signed");
    let report = layout.artifact("application/x.report", image, b"reported");
    let report_on_signature = layout.artifact("application/x.report", signature, b"reported on the signature");
    // Only one has a tag. The others are found because their subject is in the repository.
    layout.name(signature, media_type::OCI_MANIFEST, "test/hello:signature");
    layout.name(report, media_type::OCI_MANIFEST, "");
    layout.name(report_on_signature, media_type::OCI_MANIFEST, "");
    // The tag schema: an index tagged with its subject's digest lists a manifest that names no subject.
    let old = layout.manifest(&[b"attached the old way"]);
    // So does this index, whose entries do not refer to the subject.
    let inner = layout.manifest(&[b"of one platform"]);
    let index_of =
        |manifests: Value| layout.json(&json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests}));
    let outer = index_of(json!([inner.descriptor(media_type::OCI_MANIFEST)]));
    let index = index_of(json!([old.descriptor(media_type::OCI_MANIFEST), outer.descriptor(media_type::OCI_INDEX)]));
    layout.name(index, media_type::OCI_INDEX, &format!("test/hello:{}", image.digest.to_string().replace(':', "-")));
    layout.image("other:1", b"other");
    let server = Server::start(layout.write());

    let list = |target: &str| {
        let response = get(server.plain, target);
        assert_eq!((response.status, response.header("content-type")), (200, Some(media_type::OCI_INDEX)), "{target}");
        response
    };
    let digests = |value: &Value| {
        let mut found: Vec<String> =
            value["manifests"].as_array().unwrap().iter().map(|one| one["digest"].as_str().unwrap().to_owned()).collect();
        found.sort();
        found
    };
    let sorted = |stored: &[testing::layout::Stored]| {
        let mut wanted: Vec<String> = stored.iter().map(|one| one.digest.to_string()).collect();
        wanted.sort();
        wanted
    };
    let all = list(&format!("/v2/test/hello/referrers/{}", image.digest));
    assert_eq!(digests(&all.json()), sorted(&[signature, report, old, outer]));
    assert_eq!(all.header("oci-filters-applied"), None);
    let filtered = list(&format!("/v2/test/hello/referrers/{}?artifactType=application/x.report", image.digest));
    assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
    assert_eq!(
        filtered.json()["manifests"],
        json!([{
            "mediaType": media_type::OCI_MANIFEST, "digest": report.digest.to_string(), "size": report.size,
            "artifactType": "application/x.report", "annotations": {"made-by": "test"},
        }])
    );
    assert_eq!(digests(&list(&format!("/v2/test/hello/referrers/{}", signature.digest)).json()), sorted(&[report_on_signature]));
    let unknown = list(&format!("/v2/test/hello/referrers/sha256:{}", "0".repeat(64)));
    assert_eq!(unknown.json(), json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": []}));
    assert_eq!(digests(&list(&format!("/v2/other/referrers/{}", image.digest)).json()), Vec::<String>::new());
    // Referrers can be pulled.
    assert_eq!(get(server.plain, &format!("/v2/test/hello/manifests/{}", report.digest)).status, 200);
    assert_eq!(get(server.plain, &format!("/v2/other/manifests/{}", report.digest)).status, 404);
}

#[test]
fn referrers_are_paged_in_digest_order() {
    let mut layout = Layout::default();
    let image = layout.image("docker.io/test/hello:latest", b"layer");
    let mut digests: Vec<String> = (0..5)
        .map(|at: u8| {
            let kind = if at == 4 { "application/x.other" } else { "application/x.report" };
            let artifact = layout.artifact(kind, image, &[at]);
            layout.name(artifact, media_type::OCI_MANIFEST, &format!("docker.io/test/hello:a{at}"));
            artifact.digest.to_string()
        })
        .collect();
    let other = digests.pop().unwrap();
    layout.write();
    let server = Server::start(layout.path());
    let first = format!("/v2/test/hello/referrers/{}?artifactType=application/x.report&n=3&ns=docker.io", image.digest);
    let page = |target: &str| {
        let page = get(server.plain, target);
        assert_eq!((page.status, page.header("oci-filters-applied")), (200, Some("artifactType")), "{target}");
        let link =
            page.header("link").map(|link| link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned());
        let json = page.json();
        let found = json["manifests"].as_array().unwrap().iter().map(|one| one["digest"].as_str().unwrap().to_owned());
        (found.collect::<Vec<_>>(), link)
    };
    digests.sort();
    let (found, link) = page(&first);
    assert_eq!(found, digests[..3]);
    let (found, end) = page(&link.unwrap());
    assert_eq!((found, end), (digests[3..].to_vec(), None));
    assert_eq!(page(&format!("{first}&last={}", digests[3])), (vec![], None));
    assert_eq!(page(&first.replace("n=3", "n=0")), (vec![], None));
    let all = get(server.plain, &format!("/v2/test/hello/referrers/{}?ns=docker.io", image.digest)).json();
    assert!(all["manifests"].as_array().unwrap().iter().any(|one| one["digest"] == other.as_str()));
    for (query, code) in [("last=a0", "DIGEST_INVALID"), ("n=-1", "UNSUPPORTED")] {
        let refused = get(server.plain, &format!("/v2/test/hello/referrers/{}?{query}", image.digest));
        assert_eq!((refused.status, refused.code().as_str()), (400, code), "{query}");
    }
}

#[test]
fn pages_have_at_most_a_thousand_entries() {
    let (mut layout, image) = Layout::hello();
    for at in 0..1000 {
        layout.name(image, media_type::OCI_MANIFEST, &format!("test/hello:a{at:03}"));
    }
    let server = Server::start(layout.write());
    for query in ["", "?n=1000", "?n=5000"] {
        let page = get(server.plain, &format!("/v2/test/hello/tags/list{query}"));
        assert_eq!(strings(&page.json()["tags"]).len(), 1000);
        assert_eq!(page.header("link"), Some("</v2/test/hello/tags/list?n=1000&last=a999>; rel=\"next\""));
    }
    let rest = get(server.plain, "/v2/test/hello/tags/list?n=1000&last=a999");
    assert_eq!((strings(&rest.json()["tags"]), rest.header("link")), (vec!["latest"], None));
}
