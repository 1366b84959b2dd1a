//! Sources of `localregistry pack` other than layouts and archives: lists of images, plain files, artifacts; and the flags that
//! name them.

use std::fs;
use std::os::unix::fs::symlink;

use localregistry::oci::{Digest, media_type};
use serde_json::{Value, json};
use testing::http::{get, head};
use testing::layout::Layout;
use testing::pack::{Bench, Saved, blob, digest_of, gzip};
use testing::server::Server;

/// A file, and a second one with its digest, as Bazel's rules for Docker write them.
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

#[test]
fn bazel_layout_without_tags_serves_every_tag() {
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

    let server = bench.serve();
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

    // A plain layout for other tools, and without its catalog for this program too.
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
fn other_bazel_forms_and_runfiles_are_packed() {
    let bench = Bench::default();
    let (mut second, mut third) = (Layout::default(), Layout::default());
    let one = second.image("", b"second").digest;
    let two = third.image("", b"third").digest;
    fs::create_dir_all(bench.path("runfiles/_main/pkg")).unwrap();
    fs::create_dir_all(bench.path("runfiles/other")).unwrap();
    bench.layout("runfiles/_main/pkg/second", &second);
    let made = bench.layout("elsewhere", &third);
    // Blobs as rules_oci writes them, and the folder of runfiles as Bazel creates it.
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
    // Without --base, paths are relative to the list's folder.
    fs::copy(bench.path("runfiles/_main/pkg/images.prototxt"), bench.path("runfiles/_main/images.prototxt")).unwrap();
    let first = digest_of(&bench.path("disk.erofs"));
    bench.pack(&["--spec", "runfiles/_main/images.prototxt"]);
    assert_eq!(digest_of(&bench.path("disk.erofs")), first);
}

#[test]
fn one_list_holds_every_kind_of_image() {
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
    // The same with flags, where flags exist.
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
fn default_tags_and_upstreams_apply_to_all_images() {
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

/// Build rules write a list even where they have no image.
#[test]
fn lists_without_an_image_make_a_disk_without_one() {
    let bench = Bench::default();
    bench.file("empty.textproto", b"");
    bench.file("comment.textproto", b"# none yet\n");
    let lists = ["--spec", "empty.textproto", "--spec", "comment.textproto"];
    bench.pack_warned(&lists, &["disk.erofs will hold no image: no list given names one"]);
    assert!(bench.extract("disk.erofs").images().is_empty());
    bench.refused(
        &["--spec", "empty.textproto", "missing"],
        "cannot pack missing: cannot read it: No such file or directory (os error 2)",
    );
}
