//! `localregistry pack` on good sources: the content of the disk, its reproducibility, and the printed result.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use localregistry::disk::catalog::Catalog;
use localregistry::oci::{Algorithm, Digest, media_type};
use serde_json::{Value, json};
use testing::layout::Layout;
use testing::pack::{Bench, PROGRAM, Saved, archive_of, digest_of, gzip, text};

/// A layout with two repositories, one of them with a host, a shared layer, an index of two platforms, a sha512 blob, and an
/// artifact that refers to an image.
fn mixed() -> Layout {
    let mut layout = Layout::default();
    let hello = layout.image("test/hello:latest", b"a layer");
    layout.name(hello, media_type::OCI_MANIFEST, "test/hello:1.0");
    let (amd64, arm64) = (layout.manifest(&[b"a layer", b"amd64"]), layout.manifest(&[b"a layer", b"arm64"]));
    let index = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
        "manifests": [amd64.descriptor(media_type::OCI_MANIFEST), arm64.descriptor(media_type::OCI_MANIFEST)],
    }));
    layout.name(index, media_type::OCI_INDEX, "docker.io/library/busybox:1.36");
    let long = layout.blob_by(Algorithm::Sha512, b"by sha512");
    let config = layout.blob(b"{}");
    let other = layout.json(&json!({
        "schemaVersion": 2, "config": config.descriptor(media_type::OCI_CONFIG),
        "layers": [long.descriptor("application/vnd.oci.image.layer.v1.tar")],
    }));
    layout.name(other, media_type::OCI_MANIFEST, "test/long:latest");
    let signature = layout.artifact("application/vnd.test.signature", hello, b"signed");
    layout.name(signature, media_type::OCI_MANIFEST, "");
    layout
}

#[test]
fn disk_is_a_layout_with_a_catalog() {
    let bench = Bench::default();
    let layout = bench.layout("layout", &mixed());
    bench.pack(&["layout"]);
    let disk = bench.extract("disk.erofs");
    assert_eq!(disk.listing, include_str!("../golden/disk.txt"));
    for (path, content) in disk.files.iter().filter(|(path, _)| path.starts_with("blobs/")) {
        assert_eq!(*content, fs::read(layout.join(path)).unwrap(), "{path}");
    }
    let index: Value = serde_json::from_slice(&disk.files["index.json"]).unwrap();
    let golden: Value = serde_json::from_str(include_str!("../golden/disk-index.json")).unwrap();
    assert_eq!(index, golden);

    let catalog = Catalog::decode(disk.files["localregistry/catalog.binpb"].clone().into()).unwrap();
    assert_eq!((catalog.tag_count(), catalog.blob_totals().0), (4, 13));
    let hello = catalog.repository("test/hello").unwrap();
    let tagged = catalog.blob(catalog.tag(hello, "1.0").unwrap()).unwrap();
    assert_eq!(catalog.referrers(hello, &tagged.digest).count(), 1);
}

#[test]
fn file_system_bytes_are_reproducible() {
    let bench = Bench::default();
    bench.layout("layout", &mixed());
    bench.pack(&["layout"]);
    // The EROFS superblock is at byte 1024. Its features (checksum, file times) are at offset 8, and the time of creation is at
    // 24.
    let disk = fs::read(bench.path("disk.erofs")).unwrap();
    let superblock = &disk[1024..1152];
    assert_eq!(superblock[8..12], 3_u32.to_le_bytes());
    assert_eq!(superblock[24..32], [0; 8]);
    assert_eq!(digest_of(&bench.path("disk.erofs")), include_str!("../golden/disk.sha256").trim());
}

#[test]
fn order_of_sources_does_not_change_the_disk() {
    let bench = Bench::default();
    bench.layout("a", &mixed());
    let mut other = Layout::default();
    other.image("test/other:1", b"a layer");
    let other = bench.layout("b", &other);
    bench.file("b.tar.gz", &gzip(&archive_of(&other)));
    let mut saved = Saved::default();
    saved.image(&["busybox:latest"], &[("a/layer.tar", b"layer")]);
    saved.member("a/layer.tar", b"layer");
    bench.file("c.tar", &saved.bytes());

    bench.pack(&["a", "b", "c.tar"]);
    let first = digest_of(&bench.path("disk.erofs"));
    for order in [["c.tar", "b", "a"], ["b", "c.tar", "a"], ["a", "b.tar.gz", "c.tar"]] {
        bench.pack(&order);
        assert_eq!(digest_of(&bench.path("disk.erofs")), first, "{order:?}");
    }
}

#[test]
fn umask_and_user_do_not_change_the_disk() {
    let bench = Bench::default();
    bench.layout("layout", &mixed());
    bench.pack(&["layout"]);
    let expected = digest_of(&bench.path("disk.erofs"));
    let program = bench.path("program");
    fs::copy(PROGRAM, &program).unwrap();
    fs::create_dir(bench.path("out")).unwrap();
    for (path, mode) in [(bench.path(""), 0o755), (bench.path("out"), 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let script = "umask 077 && ./program --quiet pack layout -o out/disk.erofs && ls -A out";
    let as_root = testing::program("id").arg("-u").output().unwrap().stdout == b"0\n";
    let mut command = if as_root {
        let mut command = testing::program("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh"]);
        command
    } else {
        testing::program("sh")
    };
    let output = command.args(["-c", script]).current_dir(bench.path("")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).ends_with("disk.erofs\n"));
    assert_eq!(fs::read_dir(bench.path("out")).unwrap().count(), 1);
    assert_eq!(digest_of(&bench.path("out/disk.erofs")), expected);
}

#[test]
fn docker_save_archives_become_schema_2_manifests() {
    let bench = Bench::default();
    let mut saved = Saved::default();
    saved.member("1/layer.tar", b"the lower layer");
    // docker save writes a layer that images share only once, and links to it.
    saved.link("2/layer.tar", "../1/layer.tar");
    saved.member("3/layer.tar", b"the upper layer");
    let config = saved.image(&["busybox:latest", "docker.io/library/busybox:1.36"], &[("1/layer.tar", b"the lower layer")]);
    saved.image(&["other"], &[("2/layer.tar", b"the lower layer"), ("3/layer.tar", b"the upper layer")]);
    bench.file("saved.tar", &saved.bytes());
    bench.pack(&["saved.tar"]);

    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    assert_eq!(disk.names(), ["busybox:latest", "docker.io/library/busybox:1.36", "other:latest"]);
    let images = disk.images();
    assert_eq!(images[0].1, images[1].1);
    let lower = Digest::sha256_of(b"the lower layer").to_string();
    assert_eq!(
        disk.json(&images[0].1),
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": saved.members[3].2.len(),
                "digest": format!("sha256:{}", config.trim_end_matches(".json")),
            },
            "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar", "size": 15, "digest": lower}],
        })
    );
    assert_eq!(disk.blob(&lower), b"the lower layer");
    assert_eq!(disk.json(&images[2].1)["layers"].as_array().unwrap().len(), 2);
}

#[test]
fn compressed_layers_of_docker_archives_stay_compressed() {
    let bench = Bench::default();
    let mut saved = Saved::default();
    let (gz, zst) = (gzip(b"a layer"), zstd::encode_all(&b"another"[..], 1).unwrap());
    saved.member("1.tar.gz", &gz);
    saved.member("2.tar.zst", &zst);
    saved.image(&["x/y:1"], &[("1.tar.gz", b"a layer"), ("2.tar.zst", b"another")]);
    bench.file("saved.tar", &saved.bytes());
    bench.pack(&["saved.tar"]);
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    let layers = disk.json(&disk.images()[0].1)["layers"].clone();
    for (number, content, kind) in [(0, &gz, media_type::DOCKER_LAYER_GZIP), (1, &zst, media_type::DOCKER_LAYER_ZSTD)] {
        assert_eq!(layers[number]["mediaType"], kind);
        assert_eq!(disk.blob(layers[number]["digest"].as_str().unwrap()), content);
    }
}

#[test]
fn archive_with_both_indexes_is_read_as_a_layout() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let hello = layout.manifest(&[b"layer"]);
    layout.name(hello, media_type::OCI_MANIFEST, "latest");
    let layout = bench.layout("layout", &layout);
    // The format of docker save since version 25.
    let index = fs::read_to_string(layout.join("index.json")).unwrap();
    let named = index.replace(
        r#"{"org.opencontainers.image.ref.name":"latest"}"#,
        r#"{"io.containerd.image.name":"docker.io/test/hello:latest","org.opencontainers.image.ref.name":"latest"}"#,
    );
    assert_ne!(named, index);
    fs::write(layout.join("index.json"), named).unwrap();
    fs::write(layout.join("manifest.json"), r#"[{"Config":"x","RepoTags":["test/hello:latest"],"Layers":[]}]"#).unwrap();
    bench.file("both.tar", &archive_of(&layout));
    bench.pack(&["both.tar"]);
    assert_eq!(bench.extract("disk.erofs").images(), [("docker.io/test/hello:latest".to_owned(), hello.digest.to_string())]);
}

#[test]
fn last_archive_member_of_a_name_wins() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    layout.image("test/hello:latest", b"layer");
    let folder = bench.layout("layout", &layout);
    let tar = |arguments: &[&str]| {
        let status = testing::program("tar").args(arguments).current_dir(&folder).status().unwrap();
        assert!(status.success());
    };
    fs::rename(folder.join("index.json"), folder.join("kept")).unwrap();
    fs::write(folder.join("index.json"), "not JSON").unwrap();
    tar(&["-cf", "../twice.tar", "."]);
    fs::rename(folder.join("kept"), folder.join("index.json")).unwrap();
    tar(&["-rf", "../twice.tar", "./index.json"]);
    bench.pack(&["twice.tar"]);
    assert_eq!(bench.extract("disk.erofs").names(), ["test/hello:latest"]);
}

#[test]
fn result_is_printed_as_text_and_as_json() {
    let bench = Bench::default();
    bench.layout("layout", &mixed());
    let output = bench.command(&["pack", "layout", "-o", "disk.erofs"]).output().unwrap();
    assert_eq!(text(&output.stderr), "reading layout\ncopying and verifying 13 blobs, 2.92 KiB\n");
    assert_eq!(text(&output.stdout), include_str!("../golden/pack.txt"));
    let bytes = fs::metadata(bench.path("disk.erofs")).unwrap().len();
    let summary: Value = serde_json::from_str(&bench.pack(&["layout", "--json"])).unwrap();
    assert_eq!(
        summary,
        json!({
            "disk": "disk.erofs", "bytes": bytes, "images": 5, "blobs": 13, "blob_bytes": 2992, "read_bytes": 2992, "cached_bytes": 0,
        })
    );
}

#[test]
fn long_list_of_images_is_shortened() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    for number in 10..35 {
        layout.image(&format!("test/many:{number}"), b"one layer");
    }
    bench.layout("layout", &layout);
    let result = bench.pack(&["layout"]);
    let lines: Vec<&str> = result.lines().collect();
    assert_eq!((lines.len(), lines[20]), (22, "and 5 more"));
    assert!(lines[19].starts_with("test/many:29  sha256:") && lines[19].ends_with(" B"), "{}", lines[19]);
    assert!(lines[21].starts_with("disk.erofs: 25 images, 3 blobs of "), "{}", lines[21]);
}

#[test]
fn symbolic_link_to_the_disk_stays_a_link() {
    let bench = Bench::default();
    bench.layout("layout", &mixed());
    bench.file("real.erofs", b"the old disk");
    std::os::unix::fs::symlink("real.erofs", bench.path("disk.erofs")).unwrap();
    bench.pack(&["layout"]);
    assert!(fs::symlink_metadata(bench.path("disk.erofs")).unwrap().is_symlink());
    assert_eq!(bench.extract("real.erofs").listing, include_str!("../golden/disk.txt"));
}
