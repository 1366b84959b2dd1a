//! `localregistry pack` on damaged layouts. Each is refused with one message that names the source, the image and the expectation,
//! and the output path and its folder stay unchanged.

use std::fs;
use std::os::unix::fs::symlink;

use localregistry::oci::{Digest, media_type};
use serde_json::json;
use testing::layout::Layout;
use testing::pack::{Bench, blob, hello, text};

#[test]
fn missing_blob_is_refused() {
    let (bench, layout, _) = hello(b"a layer");
    fs::remove_file(layout.join(blob(b"a layer"))).unwrap();
    let path = blob(b"a layer");
    bench.refused(
        &["layout"],
        &format!(
            "cannot pack layout: something that an image names is missing (with --allow-missing, the rest is packed): \
             image test/hello:latest: cannot read layer or config {path}, of 7 bytes: No such file or directory (os error 2)"
        ),
    );
}

#[test]
fn missing_manifest_is_refused() {
    let (bench, layout, manifest) = hello(b"a layer");
    fs::remove_file(layout.join(manifest.digest.blob_path())).unwrap();
    bench.refused(
        &["layout"],
        &format!(
            "cannot pack layout: image test/hello:latest: cannot read manifest {}, of {} bytes: \
             No such file or directory (os error 2)",
            manifest.digest.blob_path(),
            manifest.size
        ),
    );
}

#[test]
fn blob_with_a_wrong_digest_is_refused() {
    let (bench, layout, _) = hello(b"a layer");
    let path = blob(b"a layer");
    fs::write(layout.join(&path), b"A layer").unwrap();
    bench.refused(
        &["layout"],
        &format!(
            "cannot pack layout: image test/hello:latest: {path} has the content of {}; {} is expected",
            Digest::sha256_of(b"A layer"),
            Digest::sha256_of(b"a layer")
        ),
    );
}

#[test]
fn manifest_with_a_wrong_digest_is_refused() {
    let (bench, layout, manifest) = hello(b"a layer");
    let path = layout.join(manifest.digest.blob_path());
    let changed = fs::read_to_string(&path).unwrap().replace("schemaVersion", "schemaversion");
    fs::write(&path, &changed).unwrap();
    bench.refused(
        &["layout"],
        &format!(
            "cannot pack layout: image test/hello:latest: {} has the content of {}",
            manifest.digest.blob_path(),
            Digest::sha256_of(changed.as_bytes())
        ),
    );
}

#[test]
fn blob_of_a_wrong_size_is_refused() {
    let (bench, layout, _) = hello(b"a layer");
    let path = blob(b"a layer");
    fs::write(layout.join(&path), b"a longer layer").unwrap();
    bench.refused(
        &["layout"],
        &format!("cannot pack layout: image test/hello:latest: {path} has 14 bytes, and its descriptor says 7"),
    );
}

#[test]
fn index_that_is_not_json_is_refused() {
    let (bench, layout, _) = hello(b"a layer");
    fs::write(layout.join("index.json"), "<html>").unwrap();
    bench.refused(
        &["layout"],
        "cannot pack layout: index.json is not the JSON of an image layout: expected value at line 1 column 1",
    );
}

#[test]
fn path_out_of_the_layout_is_refused() {
    let (bench, layout, _) = hello(b"a layer");
    bench.file("outside", b"a layer");
    let path = blob(b"a layer");
    let message = format!(
        "cannot pack layout: image test/hello:latest: cannot read layer or config {path}, of 7 bytes: \
         a symbolic link leads out of the folder; a file inside it is expected"
    );
    for target in ["../../../outside".into(), bench.path("outside")] {
        fs::remove_file(layout.join(&path)).unwrap();
        symlink(target, layout.join(&path)).unwrap();
        bench.refused(&["layout"], &message);
    }

    let (bench, layout, _) = hello(b"a layer");
    let index = fs::read_to_string(layout.join("index.json")).unwrap();
    let start = index.find("sha256:").unwrap();
    let climbing = index.replace(&index[start..start + 71], "sha256:../../../../outside");
    fs::write(layout.join("index.json"), &climbing).unwrap();
    let column = climbing.find("outside").unwrap() + "outside\"".len();
    bench.refused(
        &["layout"],
        &format!(
            "cannot pack layout: index.json is not the JSON of an image layout: a sha256 digest has 64 hexadecimal digits, \
             not \"sha256:../../../../outside\" at line 1 column {column}"
        ),
    );
}

#[test]
fn link_within_the_layout_is_followed() {
    let (bench, layout, _) = hello(b"a layer");
    let path = layout.join(blob(b"a layer"));
    fs::rename(&path, layout.join("elsewhere")).unwrap();
    symlink("../../elsewhere", &path).unwrap();
    bench.pack(&["layout"]);
}

#[test]
fn fifo_in_place_of_a_blob_is_refused() {
    let (bench, layout, _) = hello(b"a layer");
    let path = layout.join(blob(b"a layer"));
    fs::remove_file(&path).unwrap();
    assert!(testing::program("mkfifo").arg(&path).status().unwrap().success());
    bench.refused(
        &["layout"],
        &format!(
            "cannot pack layout: image test/hello:latest: cannot read layer or config {}, of 7 bytes: it is not a regular file",
            blob(b"a layer")
        ),
    );
}

#[test]
fn duplicate_tag_is_refused() {
    let bench = Bench::default();
    let (mut a, mut b, mut both) = (Layout::default(), Layout::default(), Layout::default());
    let first = a.image("test/hello:latest", b"one").digest;
    let second = b.image("test/hello:latest", b"two").digest;
    both.image("test/hello:latest", b"one");
    both.image("test/hello:latest", b"two");
    bench.layout("a", &a);
    bench.layout("b", &b);
    bench.layout("both", &both);
    let expected = "one manifest for each tag is expected";
    let or_replace = ", or --replace, which takes that of the later source";
    for order in [["a", "b"], ["b", "a"]] {
        bench.refused(
            &order,
            &format!("image test/hello:latest: the tag is claimed by {first} in a and by {second} in b; {expected}{or_replace}"),
        );
    }
    bench.refused(
        &["both"],
        &format!("image test/hello:latest: the tag is claimed by {first} in both and by {second} in both; {expected}"),
    );
    bench.refused(
        &["a", "--name", "test/hello=b"],
        &format!("image test/hello:latest: the tag is claimed by {first} in a and by {second} in b; {expected}{or_replace}"),
    );
}

#[test]
fn blob_with_two_declared_sizes_is_refused() {
    let bench = Bench::default();
    let (mut a, mut b) = (Layout::default(), Layout::default());
    a.image("test/a:1", b"shared");
    let config = b.blob(b"{}");
    let shared = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::sha256_of(b"shared"). to_string(), "size": 8});
    let manifest = b.json(&json!({"schemaVersion": 2, "config": config.descriptor(media_type::OCI_CONFIG), "layers": [shared]}));
    b.name(manifest, media_type::OCI_MANIFEST, "test/b:1");
    bench.layout("a", &a);
    fs::write(bench.layout("b", &b).join(blob(b"shared")), b"shared 2").unwrap();
    bench.refused(
        &["a", "b"],
        &format!(
            "blob {} has 6 bytes for image test/a:1 in a and 8 bytes for image test/b:1 in b; one size is expected",
            Digest::sha256_of(b"shared")
        ),
    );
}

#[test]
fn missing_and_malformed_names_are_refused() {
    let bench = Bench::default();
    let mut bare = Layout::default();
    let digest = bare.image("v1", b"layer").digest;
    bench.layout("bare", &bare);
    bench.refused(
        &["bare"],
        &format!(
            "cannot pack bare: index.json: {digest} has no repository name in org.opencontainers.image.ref.name or \
             io.containerd.image.name; give it one with --name"
        ),
    );
    let mut wrong = Layout::default();
    wrong.image("Test/Hello:latest", b"layer");
    bench.layout("wrong", &wrong);
    let grammar = "a repository name has lower-case letters and digits, joined by one of . _ __ - and split by /";
    bench.refused(
        &["wrong"],
        &format!(
            "cannot pack wrong: index.json: annotation org.opencontainers.image.ref.name names an image \"Test/Hello:latest\": {grammar}; \
             give it another name with --name"
        ),
    );
    let mut two = Layout::default();
    two.image("a/a:1", b"1");
    two.image("b/b:1", b"2");
    bench.layout("two", &two);
    bench.refused(
        &["--name", "x/y:1=two"],
        "cannot pack two: --name x/y:1: it holds 2 images (a/a:1, b/b:1); one image, or one without a name, is expected; give each a layout of its own",
    );
}

/// Such a type cannot be sent in the header `Content-Type`. Every command refuses it wherever it stands.
#[test]
fn media_types_that_no_header_can_have_are_refused() {
    let bad = "application/x\u{1}y";
    let fault = "the media type \"application/x\\u{1}y\" has characters that no media type has at line 1 column ";
    for place in ["manifest", "layer", "index"] {
        let bench = Bench::default();
        let mut layout = Layout::default();
        let (layer, config) = (layout.blob(b"layer"), layout.json(&json!({"architecture": "amd64", "os": "linux"})));
        let type_of = |here: &str, good: &'static str| if here == place { bad } else { good };
        let manifest = layout.json(&json!({
            "schemaVersion": 2, "mediaType": type_of("manifest", media_type::OCI_MANIFEST),
            "config": config.descriptor(media_type::OCI_CONFIG),
            "layers": [layer.descriptor(type_of("layer", "application/vnd.oci.image.layer.v1.tar"))],
        }));
        layout.name(manifest, type_of("index", media_type::OCI_MANIFEST), "test/hello:1");
        bench.layout("layout", &layout);
        let before = bench.everything();
        for arguments in [
            &["pack", "layout", "-o", "disk"][..],
            &["inspect", "layout"],
            &["serve", "layout", "--listen", "127.0.0.1:0"],
            &["trust", "--endpoint", "http://a:1", "--disk", "layout", "-o", "trust"],
        ] {
            let output = bench.command(&[&["--quiet"], arguments].concat()).output().unwrap();
            let said = text(&output.stderr);
            assert!(output.status.code() == Some(1) && said.contains(fault), "{place} {arguments:?}: {said}");
            assert_eq!(bench.everything(), before);
        }
    }
}

/// The text of fields that are not read here is passed on by `inspect --export`.
#[test]
fn index_that_is_not_utf_8_is_refused() {
    let (bench, layout, _) = hello(b"layer");
    let index = fs::read_to_string(layout.join("index.json")).unwrap();
    let (start, end) = index.rsplit_once('}').unwrap();
    fs::write(layout.join("index.json"), [start.as_bytes(), b",\"comment\":\"\xff\"}", end.as_bytes()].concat()).unwrap();
    let cause = "index.json is not the JSON of an image layout: invalid utf-8 sequence of 1 bytes from index ";
    for arguments in [&["pack", "layout", "-o", "disk"][..], &["inspect", "layout", "--export", "out"]] {
        let output = bench.command(&[&["--quiet"], arguments].concat()).output().unwrap();
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(cause), "{arguments:?}: {said}");
        assert!(!bench.path("disk").exists() && !bench.path("out").exists());
    }
}
