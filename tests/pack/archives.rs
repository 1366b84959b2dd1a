//! Archives as GNU tar, bsdtar, pzstd and others write them, byte by byte: sparse members in each form, volume headers, long names,
//! several compressed frames, and padding. tests/clients/archives.rs makes the same with the real programs.

use std::io::Write;

use localregistry::oci::Digest;
use serde_json::json;
use tar::EntryType::{self, Directory, Regular, Symlink};
use testing::layout::Layout;
use testing::pack::{Bench, Saved, archive, archive_of, blob, gzip, hello};

/// A layer with two holes: 64 KiB of zeros, 512 bytes of data, a hole, and 100 bytes at the end.
fn layer() -> Vec<u8> {
    let mut layer = vec![0; 200_000];
    layer[65_536..66_048].fill(1);
    layer[199_900..].fill(2);
    layer
}

/// The parts of the layer that are not holes. The last one is empty, as GNU tar writes for the end of a file.
const MAP: [(usize, usize); 3] = [(65_536, 512), (199_900, 100), (200_000, 0)];

/// A header of 512 bytes with this name, type and size.
fn header(name: &str, kind: u8, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(EntryType::new(kind));
    header.set_size(size as u64);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

/// A member with its content, padded.
fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, kind, content.len()).as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Pax records.
fn records(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in fields {
        let rest = format!(" {key}={value}\n");
        // The length counts its own digits.
        let len = (1..).find(|len: &usize| len.to_string().len() + rest.len() == *len).unwrap();
        bytes.extend_from_slice(format!("{len}{rest}").as_bytes());
    }
    bytes
}

fn pax(fields: &[(&str, &str)]) -> Vec<u8> {
    member("PaxHeaders/x", b'x', &records(fields))
}

fn data() -> Vec<u8> {
    let layer = layer();
    MAP.iter().flat_map(|(offset, len)| layer[*offset..offset + len].to_vec()).collect()
}

/// The layer as a member of this name, in each form of a sparse file.
fn sparse_forms(name: &str) -> Vec<(&'static str, Vec<u8>)> {
    let (size, count) = (layer().len().to_string(), MAP.len().to_string());
    let numbers: Vec<[String; 2]> = MAP.iter().map(|(offset, len)| [offset.to_string(), len.to_string()]).collect();
    let mut zero = vec![("GNU.sparse.size", size.as_str()), ("GNU.sparse.numblocks", &count)];
    for [offset, len] in &numbers {
        zero.extend([("GNU.sparse.offset", offset.as_str()), ("GNU.sparse.numbytes", len)]);
    }
    let map = numbers.concat().join(",");
    let one = [
        ("GNU.sparse.size", size.as_str()),
        ("GNU.sparse.numblocks", &count),
        ("GNU.sparse.name", name),
        ("GNU.sparse.map", &map),
    ];
    let two = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", name), ("GNU.sparse.realsize", &size)];
    let mut block = format!("{count}\n{}\n", numbers.concat().join("\n")).into_bytes();
    block.resize(512, 0);
    let elsewhere = "GNUSparseFile.1/layer";
    vec![
        ("0.0", [pax(&zero), member(name, b'0', &data())].concat()),
        ("0.1", [pax(&one), member(elsewhere, b'0', &data())].concat()),
        ("1.0", [pax(&two), member(elsewhere, b'0', &[block, data()].concat())].concat()),
        ("gnu", gnu_sparse(name, &MAP, layer().len())),
    ]
}

/// A sparse file in GNU tar's old form. The header has room for four parts, and each block behind it for 21.
fn gnu_sparse(name: &str, map: &[(usize, usize)], size: usize) -> Vec<u8> {
    let data: Vec<u8> = map.iter().flat_map(|(offset, len)| layer()[*offset..offset + len].to_vec()).collect();
    let mut head = header(name, b'S', data.len());
    let gnu = head.as_gnu_mut().unwrap();
    gnu.set_real_size(size as u64);
    for (place, (offset, len)) in gnu.sparse.iter_mut().zip(map) {
        place.set_offset(*offset as u64);
        place.set_length(*len as u64);
    }
    let more: Vec<_> = map.iter().skip(4).collect();
    gnu.set_is_extended(!more.is_empty());
    head.set_cksum();
    let mut bytes = head.as_bytes().to_vec();
    let mut blocks = more.chunks(21).peekable();
    while let Some(parts) = blocks.next() {
        let mut block = tar::GnuExtSparseHeader::new();
        for (place, (offset, len)) in block.sparse_mut().iter_mut().zip(parts) {
            place.set_offset(*offset as u64);
            place.set_length(*len as u64);
        }
        block.set_is_extended(blocks.peek().is_some());
        bytes.extend_from_slice(block.as_bytes());
    }
    bytes.extend_from_slice(&data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// The archive of a docker image with this layer, whose member is `layer`.
fn saved_with(layer: &[u8]) -> Vec<u8> {
    let content = self::layer();
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [Digest::sha256_of(&content).to_string()]},
    });
    let list = json!([{"Config": "config.json", "RepoTags": ["a/b:1"], "Layers": ["1/layer.tar"]}]);
    let end = [0; 1024];
    let parts = [
        member("config.json", b'0', config.to_string().as_bytes()),
        layer.to_vec(),
        member("manifest.json", b'0', list.to_string().as_bytes()),
        end.to_vec(),
    ];
    parts.concat()
}

/// Asserts that the archive packs to the image of the layer with holes.
fn assert_packs(bench: &Bench, name: &str, bytes: &[u8], form: &str) {
    bench.file(name, bytes);
    bench.pack(&[name]);
    let disk = bench.extract("disk.erofs");
    assert_eq!(disk.files[&blob(&layer())], layer(), "{form}");
    disk.assert_blobs();
}

#[test]
fn sparse_members_are_read_in_each_form() {
    let bench = Bench::default();
    for (form, bytes) in sparse_forms("1/layer.tar") {
        assert_packs(&bench, "saved.tar", &saved_with(&bytes), form);
        bench.file("saved.tar.gz", &gzip(&saved_with(&bytes)));
        bench.pack(&["saved.tar.gz"]);
        assert_eq!(bench.extract("disk.erofs").files[&blob(&layer())], layer(), "{form} in gzip");
    }
    // More parts than the header and one block behind it have room for.
    let map: Vec<(usize, usize)> = (0..60).map(|part| (65_536 + part * 8, 8)).chain([(66_016, 32), (199_900, 100)]).collect();
    assert_packs(&bench, "saved.tar", &saved_with(&gnu_sparse("1/layer.tar", &map, layer().len())), "many parts");
    // A file that is one hole.
    let zeros = gnu_sparse("zeros", &[], 1 << 20);
    assert_packs(&bench, "saved.tar", &saved_with(&[zeros, member("1/layer.tar", b'0', &layer())].concat()), "no part");
}

#[test]
fn damaged_sparse_members_are_refused_as_sparse() {
    let bench = Bench::default();
    let refused = |bytes: &[u8], fault: &str| {
        bench.file("bad.tar", &saved_with(bytes));
        bench.refused(
            &["bad.tar"],
            &format!(
                "cannot pack bad.tar: archive member \"1/layer.tar\" is a sparse file that cannot be read: {fault}; make the archive \
                 again without sparse files (tar without -S, bsdtar with --no-read-sparse)"
            ),
        );
    };
    let name = ("GNU.sparse.name", "1/layer.tar");
    let with = |fields: &[(&str, &str)], data: &[u8]| [pax(&[&[name], fields].concat()), member("x", b'0', data)].concat();
    let map = |map: &'static str| [("GNU.sparse.size", "100"), ("GNU.sparse.map", map)];
    refused(&with(&map("50,10,0,10"), &[1; 20]), "its map is not in order");
    refused(&with(&map("0,10,5,10"), &[1; 20]), "its map is not in order");
    refused(&with(&map("95,10"), &[1; 20]), "its map leads past its end");
    refused(&with(&map("18446744073709551615,10"), &[1; 20]), "its map leads past its end");
    refused(&with(&map("0,30"), &[1; 20]), "the archive stores less than its map lists");
    refused(&with(&[("GNU.sparse.map", "0,10")], &[1; 20]), "it has no size");
    let version = |major, minor| [("GNU.sparse.major", major), ("GNU.sparse.minor", minor), ("GNU.sparse.realsize", "100")];
    refused(&with(&version("2", "0"), &[1; 20]), "its version is not known");
    for damaged in [&b"9\n0\n"[..], b"", b"1\n5\n", b"x\n", b"1\n0\n1", b"18446744073709551615\n0\n1\n", &[b'1'; 600]] {
        refused(&with(&version("1", "0"), damaged), "its map is damaged");
    }
    // Eight tebibytes of nothing in 28 KiB.
    bench.file("bad.tar", &saved_with(&with(&[("GNU.sparse.size", "8796093022208"), ("GNU.sparse.map", "0,10")], &[1; 20])));
    bench.refused(
        &["bad.tar"],
        "cannot pack bad.tar: archive member \"1/layer.tar\" is a sparse file of 8796093022208 bytes, and the archive has 20 bytes of \
         it, far less than of an image; if that is intended, make the archive again without sparse files (tar without -S, bsdtar with \
         --no-read-sparse)",
    );
}

#[test]
fn volume_headers_long_names_and_old_headers_are_read() {
    let bench = Bench::default();
    let long = format!("{}layer.tar", format!("{}/", "a".repeat(100)).repeat(20));
    let far = format!("{}x", "b".repeat(200));
    // GNU tar leaves all numbers of a volume header but one empty.
    let mut volume = header("images of today", b'V', 0);
    volume.as_mut_bytes()[100..136].fill(0);
    volume.set_cksum();
    let volume = volume.as_bytes().to_vec();
    let global = member("pax_global_header", b'g', &records(&[("comment", "0123"), ("GNU.volume.label", "images")]));
    let attributes = pax(&[("SCHILY.xattr.user.a", "one\ntwo=3\n"), ("path", "1/layer.tar")]);
    for (form, layer_member) in [
        ("volume header", [volume, member("1/layer.tar", b'0', &layer())].concat()),
        ("global header", [global, member("1/layer.tar", b'0', &layer())].concat()),
        ("attribute with newlines", [attributes, member("short", b'0', &layer())].concat()),
        (
            "pax size",
            [pax(&[("size", "200000"), ("path", "1/layer.tar")]), {
                let mut bytes = member("short", b'0', &layer());
                bytes[..512].copy_from_slice(header("short", b'0', 0).as_bytes());
                bytes
            }]
            .concat(),
        ),
        (
            "long name and long link target",
            [
                member("././@LongLink", b'L', format!("{long}\0").as_bytes()),
                member("a", b'0', &layer()),
                member("././@LongLink", b'L', format!("{far}\0").as_bytes()),
                member("././@LongLink", b'K', format!("{long}\0").as_bytes()),
                member("b", b'2', b""),
                pax(&[("path", "1/layer.tar"), ("linkpath", &format!("../{far}"))]),
                member("c", b'2', b""),
            ]
            .concat(),
        ),
        ("folder without a type", [member("1/", b'\0', b""), member("1/layer.tar", b'\0', &layer())].concat()),
        (
            "folder of an incremental backup",
            [member("1/", b'D', b"Ylayer.tar\0\0"), member("1/layer.tar", b'0', &layer())].concat(),
        ),
    ] {
        assert_packs(&bench, "saved.tar", &saved_with(&layer_member), form);
    }
    let rest = [member("1/layer.tar", b'M', &layer())].concat();
    bench.file("saved.tar", &saved_with(&rest));
    bench.refused(
        &["saved.tar"],
        "cannot pack saved.tar: archive member \"1/layer.tar\" is a part of a file, continued from another volume; files, folders and \
         symbolic links are expected",
    );
}

#[test]
fn names_and_headers_of_any_length_are_refused_unread() {
    let bench = Bench::default();
    let refused = |bytes: &[u8], message: &str| {
        bench.file("bad.tar", &saved_with(bytes));
        bench.refused(&["bad.tar"], &format!("cannot pack bad.tar: an archive member has a {message} are expected"));
    };
    let long = "a/".repeat(80_000);
    refused(&member("x", b'L', long.as_bytes()), "name of 160000 bytes; at most 4097");
    refused(&member("x", b'K', long.as_bytes()), "name of 160000 bytes; at most 4097");
    let link = |target: &str| [pax(&[("path", "x"), ("linkpath", target)]), member("x", b'2', b"")].concat();
    refused(&link(&long), "link target of 160000 bytes; at most 4096");
    refused(&[pax(&[("path", &long)]), member("x", b'0', b"")].concat(), "name of 160000 bytes; at most 4096");
    refused(&member("x", b'x', &vec![b' '; (1 << 20) + 1]), "pax header of 1048577 bytes; at most 1048576");
    // The longest target that is read has 2,048 components.
    bench.file("long.tar", &saved_with(&[link(&"a/".repeat(2048)), member("1/layer.tar", b'0', &layer())].concat()));
    bench.pack(&["long.tar"]);
    for records in [&b"9 a=b\n"[..], b"x", b"4 a\n", b"6 a=bc", b"99999999999999999999 a=b\n", b"7 size=x\n"] {
        bench.file("bad.tar", &saved_with(&member("x", b'x', records)));
        bench.refused(&["bad.tar"], "cannot pack bad.tar: it is not a whole tar archive: malformed pax extension");
    }
}

#[test]
fn dangling_links_are_named() {
    let bench = Bench::default();
    let mut saved = Saved::default();
    saved.image(&["a/b:1"], &[("1/layer.tar", b"layer")]);
    saved.members.retain(|(name, ..)| name != "1/layer.tar");
    saved.link("1/layer.tar", "../2/layer.tar");
    bench.file("saved.tar", &saved.bytes());
    bench.refused(
        &["saved.tar"],
        "cannot pack saved.tar: image a/b:1: cannot read layer 1/layer.tar: symbolic link \"1/layer.tar\" leads to \"2/layer.tar\", and \
         the archive has no such member",
    );
    bench.file("saved.tar", &archive(&[("index.json", Symlink, b"elsewhere")]));
    bench.refused(
        &["saved.tar"],
        "cannot pack saved.tar: cannot read oci-layout; an OCI image layout with oci-layout, index.json and blobs/ is expected: the \
         archive has no such member",
    );
    // In a layout, a folder or an archive, it may be left out.
    let (bench, folder, _) = hello(b"layer");
    let link = folder.join(blob(b"layer"));
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("elsewhere", &link).unwrap();
    bench.file("layout.tar", &archive_of(&folder));
    let missing = "something that an image names is missing (with --allow-missing, the rest is packed): image test/hello:latest: cannot \
                   read layer or config";
    let (path, digest) = (blob(b"layer"), Digest::sha256_of(b"layer"));
    let parent = path.rsplit_once('/').unwrap().0;
    let leads = format!("symbolic link \"{path}\" leads to \"{parent}/elsewhere\", and the archive has no such member");
    bench.refused(&["layout.tar"], &format!("cannot pack layout.tar: {missing} {path}, of 5 bytes: {leads}"));
    let leads = format!("symbolic link {path:?} leads to \"elsewhere\", which does not exist");
    bench.refused(&["layout"], &format!("cannot pack layout: {missing} {path}, of 5 bytes: {leads}"));
    bench.file("list", b"images { path: \"layout\" }");
    bench.refused(&["--spec", "list"], &format!("cannot pack list:1:1: layout: {missing} {path}, of 5 bytes: {leads}"));
    let left_out = format!("image test/hello:latest: {digest}, of 5 bytes, is missing and left out");
    for source in ["layout.tar", "layout"] {
        bench.pack_warned(&[source, "--allow-missing"], &[&left_out]);
    }
}

#[test]
fn compressed_archives_in_several_frames_and_with_padding_are_read() {
    let bench = Bench::default();
    let whole = saved_with(&member("1/layer.tar", b'0', &layer()));
    let (first, second) = whole.split_at(70_000);
    let zstd = |plain: &[u8]| zstd::encode_all(plain, 1).unwrap();
    let skippable = |kind: u8, content: &[u8]| {
        [&[0x50 | kind, 0x2a, 0x4d, 0x18][..], &u32::try_from(content.len()).unwrap().to_le_bytes(), content].concat()
    };
    let (gz, zst) = ([gzip(first), gzip(second)].concat(), [zstd(first), zstd(second)].concat());
    let pzstd = [skippable(0, b"size"), zstd(first), skippable(0, b"size"), zstd(second)].concat();
    for (form, bytes) in [
        ("two gzip members", gz.clone()),
        ("two zstd frames", zst.clone()),
        ("pzstd", pzstd.clone()),
        ("skippable frames of each kind", (0..16).flat_map(|kind| skippable(kind, b"")).chain(pzstd.clone()).collect()),
        ("a long skippable frame", [skippable(5, &[9; 70_000]), zst.clone()].concat()),
        ("a frame without content", [gzip(b""), gz.clone(), gzip(b"")].concat()),
        ("zeros behind gzip", [&gz[..], &[0; 9999]].concat()),
        ("zeros behind zstd", [&zst[..], &[0; 9999]].concat()),
        ("one zero", [&gz[..], &[0]].concat()),
        ("bytes behind gzip", [&gz[..], b"a signature"].concat()),
        ("bytes behind zstd", [&zst[..], b"a signature"].concat()),
        ("zeros behind the archive", [&whole[..], &[0; 99_999]].concat()),
        ("bytes behind the archive", [&whole[..], b"a signature"].concat()),
    ] {
        assert_packs(&bench, "saved", &bytes, form);
        bench
            .command(&["inspect", "saved", "--verify"])
            .output()
            .map(|output| assert!(output.status.success(), "{form}"))
            .unwrap();
    }
    for cut in
        [[&gz[..], &gz[..100]].concat(), [&gz[..], &gz[..1]].concat(), [&zst[..], &zst[..3]].concat(), pzstd[..10].to_vec()]
    {
        bench.file("cut", &cut);
        let output = bench.command(&["pack", "cut", "-o", "cut.erofs"]).output().unwrap();
        let said = testing::pack::text(&output.stderr);
        assert!(said.contains("cannot pack cut: it cannot be decompressed: "), "{said}");
        assert_eq!((output.status.code(), bench.path("cut.erofs").exists()), (Some(1), false));
    }
}

#[test]
fn compressed_layers_with_padding_keep_their_bytes() {
    let bench = Bench::default();
    let zeros = [&gzip(b"a layer")[..], &[0; 700]].concat();
    let frames = [zstd::encode_all(&b"a "[..], 1).unwrap(), zstd::encode_all(&b"layer"[..], 1).unwrap()].concat();
    for layer in [zeros, frames] {
        let mut saved = Saved::default();
        saved.image(&["a/b:1"], &[("1/layer.tar", b"a layer")]);
        saved.member("1/layer.tar", &layer);
        bench.file("saved.tar", &saved.bytes());
        bench.pack(&["saved.tar"]);
        assert_eq!(bench.extract("disk.erofs").files[&blob(&layer)], layer);
    }
}

#[test]
fn file_system_of_a_container_is_refused_as_one() {
    let bench = Bench::default();
    let message = "it is the file system of a container, as docker export writes it, and holds no image; docker save writes images, and \
                   docker commit makes an image of a container";
    // Links and devices that no archive of images has do not hide what it is.
    let docker = archive(&[
        (".dockerenv", Regular, b""),
        ("dev/", Directory, b""),
        ("dev/console", EntryType::Char, b""),
        ("etc/mtab", Symlink, b"/proc/mounts"),
        ("etc/hostname", EntryType::Link, b"etc/hosts"),
    ]);
    let podman =
        archive(&[("./etc/passwd", Regular, b"root"), ("./usr/bin/sh", Symlink, b"/bin/busybox"), ("./app", Regular, b"")]);
    for bytes in [docker.clone(), podman, gzip(&docker)] {
        bench.file("export", &bytes);
        bench.refused(&["export"], &format!("cannot pack export: {message}"));
        bench.refused(&["--name", "a/b:1=export"], &format!("cannot pack export: {message}"));
    }
    let output = bench.command(&["inspect", "export"]).output().unwrap();
    assert!(testing::pack::text(&output.stderr).ends_with(&format!("{message}\n")));
    assert_eq!(output.status.code(), Some(1));
    // An archive of images may hold other files too.
    let mut layout = Layout::default();
    layout.image("a/b:1", b"layer");
    layout.write();
    for folder in ["etc", "usr", "var"] {
        std::fs::create_dir(layout.path().join(folder)).unwrap();
    }
    let mut file = std::fs::File::create(bench.path("layout.tar")).unwrap();
    file.write_all(&archive_of(layout.path())).unwrap();
    bench.pack(&["layout.tar"]);
}
