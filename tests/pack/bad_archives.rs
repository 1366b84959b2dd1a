//! `localregistry pack` on unsafe archives and on malformed docker save archives. Each is refused with one message, and the output
//! path and its folder stay unchanged.

use std::fs;

use localregistry::oci::Digest;
use serde_json::json;
use tar::EntryType::{Block, Fifo, Link, Regular, Symlink};
use testing::layout::Layout;
use testing::pack::{Bench, Saved, archive, archive_of, blob, gzip, hello};

#[test]
fn truncated_archives_are_refused() {
    let (bench, layout, _) = hello(&[7; 5000]);
    let whole = archive_of(&layout);
    // Truncated within the last member, within the layer, and within a header.
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
fn archive_members_outside_the_archive_are_refused() {
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
fn special_archive_members_are_refused() {
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
fn archive_member_of_an_impossible_size_is_refused() {
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
fn unrecognized_sources_are_refused() {
    let bench = Bench::default();
    fs::create_dir(bench.path("empty")).unwrap();
    let layout = Layout::default();
    bench.layout("none", &layout);
    bench.file("empty.tar", b"");
    bench.file("zeros.tar", &[0; 1024]);
    bench.file("other.tar", &archive(&[("file", Regular, b"")]));
    bench.file("text", b"hello");
    bench.file("erofs", &testing::pack::superblock());
    let with_magic = |at: usize, magic: &[u8]| {
        let mut disk = vec![0; 4096];
        disk[at..at + magic.len()].copy_from_slice(magic);
        disk
    };
    bench.file("ext4", &with_magic(1080, b"\x53\xef"));
    bench.file("squashfs", &with_magic(0, b"hsqs"));
    bench.file("x.xz", b"\xfd7zXZ\0 and so on");
    bench.file("none.tar", &Saved::default().bytes());
    let expected = "an OCI image layout with oci-layout, index.json and blobs/ is expected";
    let archive = "the archive has neither index.json (an OCI image layout) nor manifest.json (docker save) at its root";
    let packed = |fs: &str| {
        format!(
            "it is a packed disk ({fs}), not an archive of images: `localregistry run` boots it as it is, and `localregistry inspect DISK \
             --export LAYOUT` makes a folder of it that can be packed"
        )
    };
    for (source, message) in [
        ("erofs", packed("erofs")),
        ("ext4", packed("ext4")),
        ("squashfs", packed("squashfs")),
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
fn malformed_docker_archives_are_refused() {
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
         . _ __ - and split by /; give the image another name with --name",
    );
    bench.file("saved.tar", &archive(&[("manifest.json", Regular, b"[1]")]));
    bench.refused(
        &["saved.tar"],
        "cannot pack saved.tar: manifest.json is not the JSON that docker save writes: invalid type: integer `1`, expected \
         an object for each image at line 1 column 2",
    );
}

#[test]
fn decompression_bombs_are_refused() {
    let bench = Bench::default();
    // 1,280 MiB of zeros, compressed to about 40 kB.
    let part = zstd::encode_all(vec![0; 128 << 20].as_slice(), 1).unwrap();
    let bomb = part.repeat(10);
    let limit = (1 << 30) + 100 * bomb.len();
    assert!(limit < 1280 << 20, "{limit}");
    let mut saved = Saved::default();
    saved.member("layer.tar", &bomb);
    saved.image(&["test/bomb:1"], &[("layer.tar", b"some other content")]);
    bench.file("bomb.tar", &saved.bytes());
    bench.refused(
        &["bomb.tar"],
        &format!(
            "cannot pack bomb.tar: image test/bomb:1: layer layer.tar: it decompresses to more than {limit} bytes, far more than \
             images do; if that is intended, decompress it before packing"
        ),
    );
}

#[test]
fn archive_names_are_escaped_in_messages() {
    let bench = Bench::default();
    let mut saved = Saved::default();
    saved.image(&["test/hello:1"], &[("\u{1b}[2J\nlayer", b"layer")]);
    bench.file("saved.tar", &saved.bytes());
    bench.refused(
        &["saved.tar"],
        "cannot pack saved.tar: image test/hello:1: cannot read layer \\u{1b}[2J\\nlayer: the archive has no such member",
    );
}
