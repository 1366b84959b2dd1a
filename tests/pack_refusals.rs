//! `localregistry pack` on bad sources: each stops it with one message that names the source, the image and what was expected, and
//! leaves the disk's path and its folder as they were.
#![cfg(feature = "host")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use common::layout::Layout;
use common::pack::{Bench, Saved, archive, archive_of, blob, gzip, hello};
use localregistry::oci::{Digest, media_type};
use serde_json::json;
use tar::EntryType::{Block, Fifo, Link, Regular, Symlink};

#[test]
fn a_missing_blob() {
    let (bench, layout, _) = hello(b"a layer");
    fs::remove_file(layout.join(blob(b"a layer"))).unwrap();
    let path = blob(b"a layer");
    bench.refused(
        &["layout"],
        &format!(
            "cannot pack layout: image test/hello:latest: cannot read layer or config {path}, of 7 bytes: \
             No such file or directory (os error 2)"
        ),
    );
}

#[test]
fn a_missing_manifest() {
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
fn a_wrong_digest() {
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
fn a_wrong_digest_of_a_manifest() {
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
fn a_wrong_size() {
    let (bench, layout, _) = hello(b"a layer");
    let path = blob(b"a layer");
    fs::write(layout.join(&path), b"a longer layer").unwrap();
    bench.refused(
        &["layout"],
        &format!("cannot pack layout: image test/hello:latest: {path} has 14 bytes, and its descriptor says 7"),
    );
}

#[test]
fn an_index_that_is_not_json() {
    let (bench, layout, _) = hello(b"a layer");
    fs::write(layout.join("index.json"), "<html>").unwrap();
    bench.refused(
        &["layout"],
        "cannot pack layout: index.json is not the JSON of an image layout: expected value at line 1 column 1",
    );
}

#[test]
fn a_path_that_leaves_a_layout() {
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
fn a_link_within_a_layout_is_followed() {
    let (bench, layout, _) = hello(b"a layer");
    let path = layout.join(blob(b"a layer"));
    fs::rename(&path, layout.join("elsewhere")).unwrap();
    symlink("../../elsewhere", &path).unwrap();
    bench.pack(&["layout"]);
}

#[test]
fn a_fifo_in_the_place_of_a_blob() {
    let (bench, layout, _) = hello(b"a layer");
    let path = layout.join(blob(b"a layer"));
    fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    bench.refused(
        &["layout"],
        &format!(
            "cannot pack layout: image test/hello:latest: cannot read layer or config {}, of 7 bytes: it is not a regular file",
            blob(b"a layer")
        ),
    );
}

#[test]
fn one_tag_claimed_twice() {
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
    for order in [["a", "b"], ["b", "a"]] {
        bench.refused(
            &order,
            &format!("image test/hello:latest: the tag is claimed by {first} in a and by {second} in b; {expected}"),
        );
    }
    bench.refused(
        &["both"],
        &format!("image test/hello:latest: the tag is claimed by {first} in both and by {second} in both; {expected}"),
    );
    bench.refused(
        &["a", "--name", "test/hello=b"],
        &format!("image test/hello:latest: the tag is claimed by {first} in a and by {second} in b; {expected}"),
    );
}

#[test]
fn one_blob_of_two_sizes() {
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
fn archives_that_are_cut_short() {
    let (bench, layout, _) = hello(&[7; 5000]);
    let whole = archive_of(&layout);
    // In the middle of whichever member comes last, of the layer, and of a header.
    let layer = whole.windows(5000).position(|window| window == [7; 5000]).unwrap();
    bench.file("cut.tar", &whole[..layer + 1000]);
    bench.refused(
        &["cut.tar"],
        &format!(
            "cannot pack cut.tar: the archive is cut short: member \"./{}\" has 5000 bytes, and 1000 of them are there",
            blob(&[7; 5000])
        ),
    );
    bench.file("cut.tar", &whole[..700]);
    bench.refused(&["cut.tar"], "cannot pack cut.tar: it is not a whole tar archive: failed to read entire block");
    bench.file("cut.tar", &whole[..512]);
    bench.refused(
        &["cut.tar"],
        "cannot pack cut.tar: the archive has neither index.json (an OCI image layout) nor manifest.json (docker save) at its \
         root, and no end mark: it may have been cut short",
    );
    bench.file("cut.tar.gz", &gzip(&whole)[..100]);
    bench.refused(&["cut.tar.gz"], "cannot pack cut.tar.gz: it cannot be decompressed: incomplete deflate stream");
    bench.file("cut.tar.zst", &zstd::encode_all(whole.as_slice(), 1).unwrap()[..100]);
    bench.refused(&["cut.tar.zst"], "cannot pack cut.tar.zst: it cannot be decompressed: incomplete frame");
}

#[test]
fn archive_members_that_leave_the_archive() {
    let bench = Bench::default();
    for name in ["/index.json", "../index.json", "blobs/../../index.json"] {
        bench.file("bad.tar", &archive(&[(name, Regular, b"{}")]));
        bench.refused(
            &["bad.tar"],
            &format!("cannot pack bad.tar: archive member {name:?} leaves the archive; a relative name without .. is expected"),
        );
    }
    for target in ["/etc/passwd", "../../etc/passwd"] {
        bench.file("bad.tar", &archive(&[("blobs/link", Symlink, target.as_bytes()), ("index.json", Regular, b"{}")]));
        bench.refused(
            &["bad.tar"],
            &format!(
                "cannot pack bad.tar: symbolic link \"blobs/link\" leads out of the archive, to {target:?}; \
                 a target inside it is expected"
            ),
        );
    }
}

#[test]
fn archive_members_that_are_no_files() {
    let bench = Bench::default();
    for (kind, called) in [(Link, "hard link"), (Block, "block device"), (Fifo, "FIFO")] {
        bench.file("bad.tar", &archive(&[("index.json", Regular, b"{}"), ("blobs/it", kind, b"index.json")]));
        bench.refused(
            &["bad.tar"],
            &format!(
                "cannot pack bad.tar: archive member \"blobs/it\" is a {called}; files, folders and symbolic links are expected"
            ),
        );
    }
}

#[test]
fn an_archive_member_of_a_size_that_cannot_be() {
    let bench = Bench::default();
    let mut bomb = archive(&[("index.json", Regular, b"{}")]);
    let mut header = tar::Header::from_byte_slice(&bomb[..512]).clone();
    header.set_size(1 << 60);
    header.set_cksum();
    bomb[..512].copy_from_slice(header.as_bytes());
    bench.file("bomb.tar", &bomb);
    bench.refused(
        &["bomb.tar"],
        "cannot pack bomb.tar: the archive is cut short: member \"index.json\" has 1152921504606846976 bytes, and 1536 of them \
         are there",
    );
}

#[test]
fn sources_that_are_something_else() {
    let bench = Bench::default();
    fs::create_dir(bench.path("empty")).unwrap();
    let layout = Layout::default();
    bench.layout("none", &layout);
    bench.file("empty.tar", b"");
    bench.file("zeros.tar", &[0; 1024]);
    bench.file("other.tar", &archive(&[("file", Regular, b"")]));
    bench.file("text", b"hello");
    bench.file("x.xz", b"\xfd7zXZ\0 and so on");
    bench.file("none.tar", &Saved::default().bytes());
    let expected = "an OCI image layout with oci-layout, index.json and blobs/ is expected";
    let archive = "the archive has neither index.json (an OCI image layout) nor manifest.json (docker save) at its root";
    for (source, message) in [
        ("missing", "cannot read it: No such file or directory (os error 2)".to_owned()),
        ("empty", format!("cannot read oci-layout; {expected}: No such file or directory (os error 2)")),
        ("none", "it holds no image".to_owned()),
        ("empty.tar", "the file is empty; a tar archive is expected".to_owned()),
        ("zeros.tar", archive.to_owned()),
        ("other.tar", archive.to_owned()),
        ("text", "it is not a tar archive, plain or compressed with gzip or zstd".to_owned()),
        ("x.xz", "it is compressed with xz; gzip, zstd or no compression is expected".to_owned()),
        ("none.tar", "it holds no image".to_owned()),
        ("/dev/null", "it is neither a file nor a folder; an OCI image layout or a docker save archive is expected".to_owned()),
    ] {
        bench.refused(&[source], &format!("cannot pack {source}: {message}"));
    }
}

#[test]
fn names_that_are_missing_or_wrong() {
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
            "cannot pack wrong: index.json: annotation org.opencontainers.image.ref.name names an image \"Test/Hello:latest\": {grammar}"
        ),
    );
    let mut two = Layout::default();
    two.image("a/a:1", b"1");
    two.image("b/b:1", b"2");
    bench.layout("two", &two);
    bench.refused(
        &["--name", "x/y:1=two"],
        "cannot pack two: --name x/y:1: it holds 2 images (a/a:1, b/b:1); one image, or one without a name, is expected",
    );
}

#[test]
fn faults_of_docker_archives() {
    let bench = Bench::default();
    let refused = |saved: &Saved, message: &str| {
        bench.file("saved.tar", &saved.bytes());
        bench.refused(&["saved.tar"], &format!("cannot pack saved.tar: {message}"));
    };
    let tags: &[&str] = &["test/hello:latest"];
    let mut saved = Saved::default();
    saved.image(tags, &[("1/layer.tar", b"a layer")]);
    refused(&saved, "image test/hello:latest: cannot read layer 1/layer.tar: the archive has no such member");
    saved.member("1/layer.tar", b"A layer");
    refused(
        &saved,
        &format!(
            "image test/hello:latest: 1/layer.tar has the content of {}; {} is expected",
            Digest::sha256_of(b"A layer"),
            Digest::sha256_of(b"a layer")
        ),
    );
    saved.member("1/layer.tar", &gzip(b"A layer"));
    refused(
        &saved,
        &format!(
            "image test/hello:latest: 1/layer.tar, decompressed, has the content of {}; {} is expected",
            Digest::sha256_of(b"A layer"),
            Digest::sha256_of(b"a layer")
        ),
    );
    saved.member("1/layer.tar", &gzip(b"a layer")[..20]);
    refused(&saved, "image test/hello:latest: layer 1/layer.tar: it cannot be decompressed: unexpected end of file");

    let mut saved = Saved::default();
    let config = saved.image(tags, &[("1/layer.tar", b"a layer")]);
    saved.manifest[0]["Layers"] = json!([]);
    refused(&saved, &format!("image test/hello:latest: manifest.json has 0 layers, and {config} has 1 in rootfs.diff_ids"));
    saved.member(&config, b"{}");
    refused(
        &saved,
        &format!(
            "image test/hello:latest: {config} has the content of {}; sha256:{} is expected",
            Digest::sha256_of(b"{}"),
            config.trim_end_matches(".json")
        ),
    );
    saved.manifest[0]["Config"] = json!("config.json");
    refused(&saved, "image test/hello:latest: cannot read config config.json: the archive has no such member");
    saved.member("config.json", b"{}");
    refused(
        &saved,
        "image test/hello:latest: config.json is not the JSON of an image config: missing field `rootfs` at line 1 column 2",
    );

    let mut saved = Saved::default();
    let config = saved.image(&[], &[]);
    refused(&saved, &format!("image {config} has no RepoTags in manifest.json; give it a name with --name"));
    saved.manifest[0]["RepoTags"] = json!(["Hello"]);
    refused(
        &saved,
        "manifest.json: RepoTags has \"Hello\": a repository name has lower-case letters and digits, joined by one of \
         . _ __ - and split by /",
    );
    bench.file("saved.tar", &archive(&[("manifest.json", Regular, b"[1]")]));
    bench.refused(
        &["saved.tar"],
        "cannot pack saved.tar: manifest.json is not the JSON that docker save writes: invalid type: integer `1`, expected \
         struct Entry at line 1 column 2",
    );
}
