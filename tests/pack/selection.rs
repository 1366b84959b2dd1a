//! Which images `localregistry pack` keeps: all platforms or one manifest, with their referrers; the later of two images with one name;
//! images without some layers.

use std::fs;
use std::path::Path;

use localregistry::disk::catalog::Catalog;
use localregistry::oci::media_type;
use serde_json::{Value, json};
use testing::http::{get, head};
use testing::layout::{Layout, Stored};
use testing::pack::{Bench, blob, text};
use testing::server::Server;

/// A signed index of two platforms with an attestation for each, and each manifest signed: a layout with referrers of all of
/// them.
pub struct Signed {
    pub layout: Layout,
    pub index: Stored,
    pub amd64: Stored,
    pub arm64: Stored,
    pub of_index: Stored,
    pub of_amd64: Stored,
    pub on_top: Stored,
}

pub fn signed() -> Signed {
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

/// The referrers of a manifest of test/multi.
pub fn referrers(folder: &Path, to: Stored) -> usize {
    let catalog = Catalog::decode(fs::read(folder.join("localregistry/catalog.binpb")).unwrap().into()).unwrap();
    let repository = catalog.repository("test/multi").unwrap();
    catalog.referrers(repository, &to.digest).count()
}

#[test]
fn flattened_index_becomes_the_manifest_of_its_platform() {
    let bench = Bench::default();
    let signed = signed();
    bench.layout("layout", &signed.layout);
    let output =
        bench.command(&["pack", "layout", "--platform", "linux/amd64", "--flatten", "-o", "disk.erofs"]).output().unwrap();
    assert!(output.status.success());
    let said = text(&output.stderr);
    let line = "image test/multi:1: linux/amd64 is kept, and left out: linux/arm64, 2 attestations\n";
    assert!(said.starts_with(&format!("reading layout\n{line}")), "{said}");
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    // The unchanged manifest under the tag of the index, and its referrers.
    let names = disk.images();
    assert_eq!(names[0], ("test/multi:1".to_owned(), signed.amd64.digest.to_string()));
    assert_eq!(names[1..], [(format!("test/multi@{}", signed.of_amd64.digest), signed.of_amd64.digest.to_string())]);
    for gone in [signed.index, signed.arm64, signed.of_index, signed.on_top] {
        assert!(!disk.files.contains_key(&gone.digest.blob_path()));
    }
    assert!(!disk.files.contains_key(&blob(b"arm64")) && disk.files.contains_key(&blob(b"shared")));
    let folder = bench.path("disk.erofs.extracted");
    assert_eq!([referrers(&folder, signed.amd64), referrers(&folder, signed.index)], [1, 0]);

    let summary: Value = serde_json::from_str(&bench.pack(&[
        "layout",
        "--platform",
        "linux/arm64/v8",
        "--flatten",
        "--name",
        "test/x=layout",
        "--json",
    ]))
    .unwrap();
    let one = |image: &str| json!({"image": image, "platform": "linux/arm64", "left_out": ["linux/amd64", "2 attestations"]});
    assert_eq!(summary["left_out"], json!([one("test/multi:1"), one("test/x:1")]));
}

#[test]
fn all_platforms_and_their_referrers_are_kept() {
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
    // The attestations that the index lists are kept with it.
    assert!(disk.files.contains_key(&blob(b"attested arm64")));
}

#[test]
fn later_source_replaces_an_earlier_one() {
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
        images.into_iter().map(|(name, digest)| format!("{name} {digest}")).collect::<Vec<_>>()
    };
    let both = |one: &str| vec![format!("test/hello:1 {one}"), format!("test/hello:2 {beside}")];
    assert_eq!(images(&["--replace", "old", "new"]), both(&second));
    assert_eq!(images(&["--replace", "new", "old"]), both(&first));
    // In the order of the command line, regardless of the flags.
    assert_eq!(images(&["--replace", "--name", "test/hello:1=new", "old"]), both(&first));
    assert_eq!(images(&["old", "--name", "test/hello:1=new", "--replace"]), both(&second));

    // An image for every tag takes all tags, and loses single ones to other images.
    bench.file("every.textproto", b"images { name: 'test/hello' path: 'new' }");
    assert_eq!(images(&["--replace", "old", "--spec", "every.textproto"]), [format!("test/hello:1 {second}")]);
    // Its own tag then belongs to another image, and it serves all others.
    let rest = format!("test/hello@{second} {second}");
    assert_eq!(images(&["--replace", "--spec", "every.textproto", "old"]), [&both(&first)[..], &[rest]].concat());
    let server = bench.serve();
    for (tag, expected) in [("1", &first), ("2", &beside), ("3", &second)] {
        let response = head(server.plain, &format!("/v2/test/hello/manifests/{tag}"));
        assert_eq!(response.header("docker-content-digest"), Some(expected.as_str()), "{tag}");
    }
}

#[test]
fn images_with_missing_layers_are_left_out() {
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
    let server = bench.serve();
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

    // Another source may have the blob.
    let mut whole = Layout::default();
    whole.image("test/whole:1", b"not for you");
    bench.layout("whole", &whole);
    let left_out = format!("image test/sparse:1: {}, of {} bytes, is missing and left out", child.digest, child.size);
    bench.pack_warned(&["layout", "whole", "--allow-missing"], &[&left_out]);
    let server = bench.serve();
    let found = get(server.plain, &format!("/v2/test/windows/blobs/{}", foreign.digest));
    assert_eq!((found.status, found.body.as_slice()), (200, &b"not for you"[..]));
}

/// As `--pull` refuses it.
#[test]
fn a_single_image_of_another_platform_is_refused() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let layer = layout.blob(b"layer");
    let image = |config_type: &str, config: &Value| {
        let config = layout.json(config);
        layout.json(&json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": config.descriptor(config_type), "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
        }))
    };
    let arm = image(media_type::OCI_CONFIG, &json!({"os": "linux", "architecture": "arm64", "variant": "v8"}));
    let docker = image(media_type::DOCKER_CONFIG, &json!({"os": "windows", "architecture": "amd64"}));
    let chart = image("application/vnd.cncf.helm.config.v1+json", &json!({"name": "chart"}));
    let signature = image(media_type::OCI_CONFIG, &json!({"os": "", "architecture": ""}));
    for (stored, name) in [(arm, "test/arm:1"), (chart, "test/chart:1"), (signature, "test/signature:1")] {
        layout.name(stored, media_type::OCI_MANIFEST, name);
    }
    bench.layout("layout", &layout);
    for platform in ["linux/arm64", "linux/arm64/v8"] {
        bench.pack(&["layout", "--platform", platform]);
        assert_eq!(bench.extract("disk.erofs").names(), ["test/arm:1", "test/chart:1", "test/signature:1"]);
    }
    for platform in ["linux/amd64", "linux/arm64/v9"] {
        bench.refused(
            &["layout", "--platform", platform],
            &format!("cannot pack layout: image test/arm:1 has nothing for {platform}, only for linux/arm64/v8"),
        );
    }
    layout.name(docker, media_type::OCI_MANIFEST, "test/docker:1");
    bench.layout("both", &layout);
    bench.refused(
        &["both", "--platform", "linux/arm64"],
        "cannot pack both: image test/docker:1 has nothing for linux/arm64, only for windows/amd64",
    );
}
