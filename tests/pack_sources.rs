//! What `localregistry pack` makes of each kind of source that is no plain layout or archive, and of the flags that name, choose and
//! forgive: lists of images, plain files, artifacts, platforms, replacement, missing layers.
#![cfg(feature = "host")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::http::{get, head};
use common::layout::{Layout, Stored};
use common::pack::{Bench, Saved, blob, digest_of, gzip, text};
use common::server::Server;
use localregistry::oci::{Digest, media_type};
use localregistry::registry::catalog::Catalog;
use serde_json::{Value, json};

/// A file and one with its digest beside it, as Bazel's rules for Docker write them.
fn part(bench: &Bench, name: &str, content: &[u8]) {
    bench.file(name, content);
    bench.file(&format!("{name}.sha256"), Digest::sha256_of(content).hex().as_bytes());
}

fn manifest_of(config: &[u8], layers: &[&[u8]]) -> String {
    let descriptor = |kind: &str, content: &[u8]| {
        format!(r#"{{"mediaType":"{kind}","size":{},"digest":"{}"}}"#, content.len(), Digest::sha256_of(content))
    };
    let layers: Vec<String> = layers.iter().map(|layer| descriptor(media_type::DOCKER_LAYER_GZIP, layer)).collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
        media_type::DOCKER_MANIFEST,
        descriptor(media_type::DOCKER_CONFIG, config),
        layers.join(",")
    )
}

/// Serves a packed disk's content.
fn serve(bench: &Bench) -> Server {
    bench.extract("disk.erofs");
    Server::start(&bench.path("disk.erofs.extracted"))
}

#[test]
fn the_first_form_of_bazel_answers_to_every_tag() {
    let bench = Bench::default();
    fs::create_dir(bench.path("app")).unwrap();
    let (config, lower, upper) = (b"{\"os\":\"linux\"}", gzip(b"lower"), gzip(b"upper"));
    part(&bench, "app/config.json", config);
    part(&bench, "app/0.tar.gz", &lower);
    part(&bench, "app/1.tar.gz", &upper);
    let list = r#"images {
        name: "app/image" config { file_path: "app/config.json" digest_path: "app/config.json.sha256" }
        layers { file_path: "app/0.tar.gz" digest_path: "app/0.tar.gz.sha256" }
        layers { file_path: "app/1.tar.gz" digest_path: "app/1.tar.gz.sha256" }
    }"#;
    bench.file("app.prototxt", list.as_bytes());
    let result = bench.pack(&["--spec", "app.prototxt"]);
    let expected = manifest_of(config, &[&lower, &upper]);
    let digest = Digest::sha256_of(expected.as_bytes());
    assert!(result.starts_with(&format!("app/image:*  sha256:{}  ", &digest.hex()[..12])), "{result}");

    let server = serve(&bench);
    for reference in ["latest", "v1.2.3", "_", &digest.to_string()] {
        let target = format!("/v2/app/image/manifests/{reference}");
        let response = get(server.plain, &target);
        assert_eq!((response.status, response.body.as_slice()), (200, expected.as_bytes()), "{reference}");
        assert_eq!(response.header("content-type"), Some(media_type::DOCKER_MANIFEST));
        assert_eq!(response.header("docker-content-digest"), Some(digest.to_string().as_str()));
        let response = head(server.plain, &target);
        assert_eq!((response.status, response.header("docker-content-digest")), (200, Some(digest.to_string().as_str())));
    }
    let other = Digest::sha256_of(b"other");
    for (target, code) in [
        (format!("/v2/app/image/manifests/{other}"), "MANIFEST_UNKNOWN"),
        (format!("/v2/app/image/manifests/{}", Digest::sha256_of(config)), "MANIFEST_UNKNOWN"),
        (format!("/v2/app/image/blobs/{other}"), "BLOB_UNKNOWN"),
        ("/v2/app/other/manifests/latest".to_owned(), "NAME_UNKNOWN"),
    ] {
        let response = get(server.plain, &target);
        assert_eq!((response.status, response.code().as_str()), (404, code), "{target}");
    }
    let layer = get(server.plain, &format!("/v2/app/image/blobs/{}", Digest::sha256_of(&upper)));
    assert!(layer.body == upper);
    assert_eq!(get(server.plain, "/v2/app/image/tags/list").json(), json!({"name": "app/image", "tags": ["latest"]}));

    // A plain layout for who knows nothing of it; for this program, without its catalog too.
    let folder = bench.path("disk.erofs.extracted");
    let index: Value = serde_json::from_slice(&fs::read(folder.join("index.json")).unwrap()).unwrap();
    assert_eq!(
        index["manifests"][0]["annotations"],
        json!({"org.opencontainers.image.ref.name": "app/image:latest", "localregistry.every-tag": "true"})
    );
    let first = digest_of(&bench.path("disk.erofs"));
    bench.pack(&["disk.erofs.extracted"]);
    assert_eq!(digest_of(&bench.path("disk.erofs")), first);
}

#[test]
fn the_other_forms_of_bazel_and_its_runfiles() {
    let bench = Bench::default();
    let (mut second, mut third) = (Layout::default(), Layout::default());
    let one = second.image("", b"second").digest;
    let two = third.image("", b"third").digest;
    fs::create_dir_all(bench.path("runfiles/_main/pkg")).unwrap();
    fs::create_dir_all(bench.path("runfiles/other")).unwrap();
    bench.layout("runfiles/_main/pkg/second", &second);
    let made = bench.layout("elsewhere", &third);
    // As rules_oci writes blobs, and as Bazel makes its folder of runfiles.
    let layer = made.join(blob(b"third"));
    fs::rename(&layer, bench.path("layer")).unwrap();
    symlink(bench.path("layer"), &layer).unwrap();
    symlink(&made, bench.path("runfiles/other/third")).unwrap();
    let list = r#"
        images { name: "test/second" path: "pkg/second" }
        images { repository: "test/third" tag: "v1" path: "../other/third" }
        images { repository: "test/untagged" tag: "" path: "pkg/second" }
    "#;
    bench.file("runfiles/_main/pkg/images.prototxt", list.as_bytes());
    bench.pack(&["--spec", "runfiles/_main/pkg/images.prototxt", "--base", "runfiles/_main"]);
    let names = [
        ("test/second:latest".to_owned(), one.to_string()),
        ("test/third:v1".to_owned(), two.to_string()),
        (format!("test/untagged@{one}"), one.to_string()),
    ];
    assert_eq!(bench.extract("disk.erofs").images(), names);
    let server = Server::start(&bench.path("disk.erofs.extracted"));
    for (target, expected) in [
        ("test/second/manifests/any", 200),
        ("test/third/manifests/v1", 200),
        ("test/third/manifests/latest", 404),
        ("test/untagged/manifests/latest", 404),
        (&format!("test/untagged/manifests/{one}"), 200),
    ] {
        assert_eq!(get(server.plain, &format!("/v2/{target}")).status, expected, "{target}");
    }
    // Without --base, paths start from the list's folder.
    fs::copy(bench.path("runfiles/_main/pkg/images.prototxt"), bench.path("runfiles/_main/images.prototxt")).unwrap();
    let first = digest_of(&bench.path("disk.erofs"));
    bench.pack(&["--spec", "runfiles/_main/images.prototxt"]);
    assert_eq!(digest_of(&bench.path("disk.erofs")), first);
}

#[test]
fn one_list_of_every_kind() {
    let bench = Bench::default();
    part(&bench, "config.json", b"{}");
    let mut layout = Layout::default();
    layout.image("named/one:1", b"one");
    bench.layout("layout", &layout);
    let mut saved = Saved::default();
    saved.image(&["busybox:1.36"], &[("layer.tar", b"layer")]);
    saved.member("layer.tar", b"layer");
    bench.file("saved.tar", &saved.bytes());
    bench.file("chart.tgz", b"a chart");
    let list = r#"
        images { path: "layout" }
        images { path: "saved.tar" upstream: "docker.io" }
        images { name: "named/two" tag: "2" path: "layout" }
        images { name: "test/parts" tag: "3" config { file_path: "config.json" digest_path: "config.json.sha256" } }
        images { name: "test/chart" tag: "4" artifact { file_path: "chart.tgz" media_type: "application/vnd.test.chart" } }
    "#;
    bench.file("images.textproto", list.as_bytes());
    bench.pack(&["--spec", "images.textproto"]);
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    assert_eq!(disk.names(), ["docker.io/library/busybox:1.36", "named/one:1", "named/two:2", "test/chart:4", "test/parts:3"]);
    // The same by flags, as far as there are flags for it.
    let first = digest_of(&bench.path("disk.erofs"));
    bench.file("parts.textproto", list.lines().find(|line| line.contains("parts")).unwrap().as_bytes());
    bench.file("saved.textproto", b"images { path: 'saved.tar' upstream: 'index.docker.io' }");
    bench.pack(&[
        "--artifact",
        "test/chart:4=chart.tgz:application/vnd.test.chart",
        "--name",
        "named/two:2=layout",
        "layout",
        "--spec",
        "parts.textproto",
        "--spec",
        "saved.textproto",
    ]);
    assert_eq!(digest_of(&bench.path("disk.erofs")), first);
}

#[test]
fn files_become_artifacts() {
    let bench = Bench::default();
    bench.file("policy.json", b"{\"default\": []}");
    bench.file("odd:name/x".split('/').next().unwrap(), b"odd");
    bench.pack(&["--artifact", "test/policy:1=policy.json:application/vnd.test.policy+json", "--artifact", "test/odd=odd:name"]);
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    let images = disk.images();
    assert_eq!(disk.names(), ["test/odd:latest", "test/policy:1"]);
    let layer = Digest::sha256_of(b"{\"default\": []}").to_string();
    let empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    assert_eq!(
        disk.json(&images[1].1),
        json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": "application/vnd.test.policy+json",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2},
            "layers": [{
                "mediaType": "application/vnd.test.policy+json", "digest": layer, "size": 15,
                "annotations": {"org.opencontainers.image.title": "policy.json"},
            }],
        })
    );
    assert_eq!((disk.blob(&layer), disk.blob(empty)), (&b"{\"default\": []}"[..], &b"{}"[..]));
    let odd = disk.json(&images[0].1);
    assert_eq!(odd["artifactType"], "application/vnd.unknown.artifact.v1");
    assert_eq!(odd["layers"][0]["mediaType"], "application/octet-stream");
    assert_eq!(odd["layers"][0]["annotations"]["org.opencontainers.image.title"], "odd:name");
}

#[test]
fn tags_and_upstreams_for_all() {
    let bench = Bench::default();
    let (mut two, mut one) = (Layout::default(), Layout::default());
    two.image("busybox:1", b"busybox");
    let kept = two.image("quay.io/x/y:1", b"y");
    let signature = format!("quay.io/x/y:sha256-{}.sig", kept.digest.hex());
    two.image(&signature, b"signature");
    one.image("v1", b"one");
    bench.layout("two", &two);
    bench.layout("one", &one);
    bench.pack(&["two", "--name", "test/one:5=one", "--tag", "9", "--upstream", "docker.io"]);
    assert_eq!(
        bench.extract("disk.erofs").names(),
        ["docker.io/library/busybox:9", "docker.io/test/one:5", "quay.io/x/y:9", &signature]
    );
}

/// An index of two platforms with an attestation of each, signed, and each manifest signed: a layout with referrers of all of them.
struct Signed {
    layout: Layout,
    index: Stored,
    amd64: Stored,
    arm64: Stored,
    of_index: Stored,
    of_amd64: Stored,
    on_top: Stored,
}

fn signed() -> Signed {
    let mut layout = Layout::default();
    let (amd64, arm64) = (layout.manifest(&[b"shared", b"amd64"]), layout.manifest(&[b"shared", b"arm64"]));
    let attestation = |of: Stored, content: &[u8]| {
        let mut descriptor = layout.manifest(&[content]).descriptor(media_type::OCI_MANIFEST);
        descriptor["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        descriptor["annotations"] = json!({
            "vnd.docker.reference.digest": of.digest.to_string(), "vnd.docker.reference.type": "attestation-manifest",
        });
        descriptor
    };
    let platform = |stored: Stored, architecture: &str| {
        let mut descriptor = stored.descriptor(media_type::OCI_MANIFEST);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    };
    let index = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
        "manifests": [
            platform(arm64, "arm64"), platform(amd64, "amd64"),
            attestation(arm64, b"attested arm64"), attestation(amd64, b"attested amd64"),
        ],
    }));
    let of_index = layout.artifact("application/vnd.test.signature", index, b"of the index");
    let of_amd64 = layout.artifact("application/vnd.test.signature", amd64, b"of amd64");
    let on_top = layout.artifact("application/vnd.test.note", of_index, b"of the signature");
    layout.name(index, media_type::OCI_INDEX, "test/multi:1");
    for referrer in [of_index, of_amd64, on_top] {
        layout.name(referrer, media_type::OCI_MANIFEST, "");
    }
    Signed { layout, index, amd64, arm64, of_index, of_amd64, on_top }
}

/// What refers to a manifest of test/multi.
fn referrers(folder: &Path, to: Stored) -> usize {
    let catalog = Catalog::decode(fs::read(folder.join("localregistry/catalog.binpb")).unwrap().into()).unwrap();
    let repository = catalog.repository("test/multi").unwrap();
    catalog.referrers(repository, &to.digest).count()
}

#[test]
fn one_platform_is_kept() {
    let bench = Bench::default();
    let signed = signed();
    bench.layout("layout", &signed.layout);
    let output = bench.command(&["pack", "layout", "--platform", "linux/amd64", "-o", "disk.erofs"]).output().unwrap();
    assert!(output.status.success());
    let said = text(&output.stderr);
    let line = "image test/multi:1: linux/amd64 is kept, and left out: linux/arm64, 2 attestations\n";
    assert!(said.starts_with(&format!("reading layout\n{line}")), "{said}");
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    // The manifest as it was, under the tag of the index, and what refers to it.
    let names = disk.images();
    assert_eq!(names[0], ("test/multi:1".to_owned(), signed.amd64.digest.to_string()));
    assert_eq!(names[1..], [(format!("test/multi@{}", signed.of_amd64.digest), signed.of_amd64.digest.to_string())]);
    for gone in [signed.index, signed.arm64, signed.of_index, signed.on_top] {
        assert!(!disk.files.contains_key(&gone.digest.blob_path()));
    }
    assert!(!disk.files.contains_key(&blob(b"arm64")) && disk.files.contains_key(&blob(b"shared")));
    let folder = bench.path("disk.erofs.extracted");
    assert_eq!([referrers(&folder, signed.amd64), referrers(&folder, signed.index)], [1, 0]);

    let summary: Value =
        serde_json::from_str(&bench.pack(&["layout", "--platform", "linux/arm64/v8", "--name", "test/x=layout", "--json"]))
            .unwrap();
    let one = |image: &str| json!({"image": image, "platform": "linux/arm64", "left_out": ["linux/amd64", "2 attestations"]});
    assert_eq!(summary["left_out"], json!([one("test/multi:1"), one("test/x:1")]));
}

#[test]
fn all_platforms_and_all_that_refers_to_them_come_along() {
    let bench = Bench::default();
    let signed = signed();
    bench.layout("layout", &signed.layout);
    bench.pack(&["layout", "--name", "docker.io/test/other=layout"]);
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    let server = Server::start(&bench.path("disk.erofs.extracted"));
    for (repository, of, expected) in [
        ("test/multi", signed.index, vec![signed.of_index]),
        ("test/multi", signed.amd64, vec![signed.of_amd64]),
        ("test/multi", signed.of_index, vec![signed.on_top]),
        ("docker.io/test/other", signed.index, vec![signed.of_index]),
        ("test/multi", signed.arm64, vec![]),
    ] {
        let list = get(server.plain, &format!("/v2/{repository}/referrers/{}", of.digest)).json();
        let found: Vec<&str> = list["manifests"].as_array().unwrap().iter().map(|one| one["digest"].as_str().unwrap()).collect();
        assert_eq!(found, expected.iter().map(|one| one.digest.to_string()).collect::<Vec<_>>());
    }
    // With the index come the attestations that it lists.
    assert!(disk.files.contains_key(&blob(b"attested arm64")));
}

#[test]
fn a_later_source_replaces_an_earlier_one() {
    let bench = Bench::default();
    let (mut old, mut new) = (Layout::default(), Layout::default());
    let first = old.image("test/hello:1", b"old").digest.to_string();
    let beside = old.image("test/hello:2", b"beside").digest.to_string();
    let second = new.image("test/hello:1", b"new").digest.to_string();
    bench.layout("old", &old);
    bench.layout("new", &new);
    let images = |arguments: &[&str]| {
        bench.pack(arguments);
        let images = bench.extract("disk.erofs").images();
        fs::remove_dir_all(bench.path("disk.erofs.extracted")).unwrap();
        images.into_iter().map(|(name, digest)| format!("{name} {digest}")).collect::<Vec<_>>()
    };
    let both = |one: &str| vec![format!("test/hello:1 {one}"), format!("test/hello:2 {beside}")];
    assert_eq!(images(&["--replace", "old", "new"]), both(&second));
    assert_eq!(images(&["--replace", "new", "old"]), both(&first));
    // In the order of the command line, whichever flag gives them.
    assert_eq!(images(&["--replace", "--name", "test/hello:1=new", "old"]), both(&first));
    assert_eq!(images(&["old", "--name", "test/hello:1=new", "--replace"]), both(&second));

    // Who answers to every tag takes all of them, and loses single ones.
    bench.file("every.textproto", b"images { name: 'test/hello' path: 'new' }");
    assert_eq!(images(&["--replace", "old", "--spec", "every.textproto"]), [format!("test/hello:1 {second}")]);
    // Its own tag is another's then, and it answers to the rest.
    let rest = format!("test/hello@{second} {second}");
    assert_eq!(images(&["--replace", "--spec", "every.textproto", "old"]), [&both(&first)[..], &[rest]].concat());
    let server = serve(&bench);
    for (tag, expected) in [("1", &first), ("2", &beside), ("3", &second)] {
        let response = head(server.plain, &format!("/v2/test/hello/manifests/{tag}"));
        assert_eq!(response.header("docker-content-digest"), Some(expected.as_str()), "{tag}");
    }
}

#[test]
fn what_is_missing_is_left_out() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let foreign = layout.blob(b"not for you");
    let config = layout.blob(b"{}");
    let manifest = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config.descriptor(media_type::OCI_CONFIG),
        "layers": [foreign.descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")],
    }));
    layout.name(manifest, media_type::OCI_MANIFEST, "test/windows:1");
    let other = layout.manifest(&[b"there"]);
    let child = layout.manifest(&[b"elsewhere"]);
    let index = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
        "manifests": [other.descriptor(media_type::OCI_MANIFEST), child.descriptor(media_type::OCI_MANIFEST)],
    }));
    layout.name(index, media_type::OCI_INDEX, "test/sparse:1");
    let folder = bench.layout("layout", &layout);
    fs::remove_file(folder.join(foreign.digest.blob_path())).unwrap();
    fs::remove_file(folder.join(child.digest.blob_path())).unwrap();

    let output = bench.command(&["pack", "layout", "--allow-missing", "-o", "disk.erofs", "--json"]).output().unwrap();
    let said = text(&output.stderr);
    for (image, digest, size) in [("test/sparse:1", child.digest, child.size), ("test/windows:1", foreign.digest, 11)] {
        assert!(said.contains(&format!("image {image}: {digest}, of {size} bytes, is missing and left out\n")), "{said}");
    }
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        summary["missing"],
        json!([
            {"image": "test/sparse:1", "digest": child.digest.to_string(), "bytes": child.size},
            {"image": "test/windows:1", "digest": foreign.digest.to_string(), "bytes": 11},
        ])
    );
    let server = serve(&bench);
    for (target, status, code) in [
        (format!("test/windows/blobs/{}", foreign.digest), 404, Some("BLOB_UNKNOWN")),
        (format!("test/windows/blobs/{}", config.digest), 200, None),
        ("test/windows/manifests/1".to_owned(), 200, None),
        (format!("test/sparse/manifests/{}", child.digest), 404, Some("MANIFEST_UNKNOWN")),
        (format!("test/sparse/manifests/{}", other.digest), 200, None),
    ] {
        let response = get(server.plain, &format!("/v2/{target}"));
        assert_eq!((response.status, code.map(|_| response.code()).as_deref()), (status, code), "{target}");
    }
    drop(server);

    // Another source may have it.
    let mut whole = Layout::default();
    whole.image("test/whole:1", b"not for you");
    bench.layout("whole", &whole);
    fs::remove_dir_all(bench.path("disk.erofs.extracted")).unwrap();
    bench.pack(&["layout", "whole", "--allow-missing"]);
    let server = serve(&bench);
    let found = get(server.plain, &format!("/v2/test/windows/blobs/{}", foreign.digest));
    assert_eq!((found.status, found.body.as_slice()), (200, &b"not for you"[..]));
}
