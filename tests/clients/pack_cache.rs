//! `localregistry pack --cache`: which blobs are read again, and how a damaged cache is repaired.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use localregistry::oci::Digest;
use serde_json::Value;
use testing::layout::Layout;
use testing::pack::{Bench, archive_of, digest_of, text};
use testing::private::{on_tmpfs, read_only};

/// Layers large enough for the cache, each filled with one byte.
const LAYER: usize = 1 << 20;

fn layer(of: u8) -> Vec<u8> {
    vec![of; LAYER]
}

/// A layout with one image for each byte, whose layer is filled with it.
fn layout(layers: &[u8]) -> Layout {
    let mut layout = Layout::default();
    for of in layers {
        layout.image(&format!("test/{of}:1"), &layer(*of));
    }
    layout
}

fn entry(bench: &Bench, of: u8) -> PathBuf {
    bench.path("cache/sha256").join(Digest::sha256_of(&layer(of)).hex())
}

/// Packs. Returns how many bytes of layers were read, how many came from the cache, and the disk's digest.
fn packed(bench: &Bench, arguments: &[&str]) -> (u64, u64, String) {
    let summary: Value = serde_json::from_str(&bench.pack(&[arguments, &["--json"]].concat())).unwrap();
    let number = |field: &str| summary[field].as_u64().unwrap();
    assert_eq!(number("read_bytes") + number("cached_bytes"), number("blob_bytes"));
    // Manifests and configs are too small for the cache.
    (number("read_bytes") / LAYER as u64, number("cached_bytes") / LAYER as u64, digest_of(&bench.path("disk.erofs")))
}

#[test]
fn only_a_new_layer_is_read() {
    let bench = Bench::default();
    bench.layout("old", &layout(&[1, 2, 3]));
    let new = bench.layout("new", &layout(&[1, 2, 3, 4]));
    bench.file("new.tar", &archive_of(&new));
    assert_eq!(packed(&bench, &["old", "--cache", "cache"]).0, 3);
    let (read, cached, disk) = packed(&bench, &["new", "--cache", "cache"]);
    assert_eq!((read, cached), (1, 3));
    assert_eq!(packed(&bench, &["new.tar", "--cache", "cache"]), (0, 4, disk.clone()));
    assert_eq!(packed(&bench, &["new"]), (4, 0, disk.clone()), "the cache does not change the disk");

    // The layers in the source are replaced, so they cannot have been read.
    let blobs = new.join("blobs/sha256");
    for of in [1, 2, 3, 4] {
        fs::write(blobs.join(Digest::sha256_of(&layer(of)).hex()), layer(of + 100)).unwrap();
    }
    assert_eq!(packed(&bench, &["new", "--cache", "cache"]), (0, 4, disk));
}

#[test]
fn result_reports_cache_hits() {
    let bench = Bench::default();
    bench.layout("layout", &layout(&[1]));
    bench.pack(&["layout", "--cache", "cache"]);
    let output = bench.command(&["pack", "layout", "-o", "disk.erofs", "--cache", "cache"]).output().unwrap();
    assert_eq!(
        text(&output.stderr),
        "reading layout\ncopying and verifying 3 blobs, 1.00 MiB\nread 477 B, and took 1.00 MiB from the cache\n"
    );
}

#[test]
fn damaged_entries_are_read_from_the_source_again() {
    let bench = Bench::default();
    bench.layout("layout", &layout(&[1]));
    let (_, _, disk) = packed(&bench, &["layout", "--cache", "cache"]);
    let path = entry(&bench, 1);
    let cut = || fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
    let written = || fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"other", 5000).unwrap();
    let replaced = || {
        fs::remove_file(&path).unwrap();
        fs::write(&path, layer(9)).unwrap();
    };
    let gone = || fs::remove_file(&path).unwrap();
    for harm in [&cut as &dyn Fn(), &written, &replaced, &gone] {
        harm();
        assert_eq!(packed(&bench, &["layout", "--cache", "cache"]), (1, 0, disk.clone()));
        assert_eq!(digest_of(&path), Digest::sha256_of(&layer(1)).to_string());
        assert_eq!(packed(&bench, &["layout", "--cache", "cache"]), (0, 1, disk.clone()));
    }
}

#[test]
fn corrupt_blob_is_not_cached() {
    let bench = Bench::default();
    let path = bench.layout("layout", &layout(&[1])).join(testing::pack::blob(&layer(1)));
    fs::write(&path, layer(2)).unwrap();
    let output = bench.command(&["-q", "pack", "layout", "-o", "disk.erofs", "--cache", "cache"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let found = Digest::sha256_of(&layer(2));
    assert!(text(&output.stderr).contains(&format!(" has the content of {found}; ")), "{}", text(&output.stderr));
    assert_eq!(files(&bench, "cache"), 0);
    assert!(!bench.path("disk.erofs").exists());
}

/// The number of files below a folder, including hidden ones.
fn files(bench: &Bench, folder: &str) -> usize {
    bench.everything().keys().filter(|path| path.starts_with(bench.path(folder)) && path.is_file()).count()
}

#[test]
fn concurrent_packs_share_a_cache() {
    let bench = Bench::default();
    bench.layout("layout", &layout(&[1, 2, 3, 4, 5, 6]));
    let start = |number: u8| {
        bench
            .command(&["-q", "pack", "layout", "--cache", "cache", "-o", &format!("{number}")])
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let packs: Vec<Child> = (0..6).map(start).collect();
    for mut pack in packs {
        assert!(pack.wait().unwrap().success());
    }
    let first = digest_of(&bench.path("0"));
    (1..6).for_each(|number| assert_eq!(digest_of(&bench.path(&number.to_string())), first));
    assert_eq!(files(&bench, "cache"), 6);
    assert_eq!(packed(&bench, &["layout", "--cache", "cache"]), (0, 6, first));
}

#[test]
fn leftovers_of_a_killed_pack_are_removed_from_the_cache() {
    let bench = Bench::default();
    bench.layout("layout", &layout(&[1]));
    fs::create_dir(bench.path("bin")).unwrap();
    let program = bench.file("bin/mksquashfs", b"#!/bin/sh\nkill -KILL $PPID\n");
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", bench.path("bin").display());
    let arguments = ["-q", "pack", "layout", "-o", "disk.erofs", "--fs", "squashfs", "--cache", "cache"];
    let output = bench.command(&arguments).env("PATH", path).output().unwrap();
    assert_eq!(output.status.code(), None, "killed");
    let left = || fs::read_dir(bench.path("cache")).unwrap().count();
    assert_eq!(left(), 3, "a scratch folder next to the two folders of entries");
    assert_eq!(packed(&bench, &["layout", "--cache", "cache"]).1, 1, "blobs verified before the kill are cached");
    assert_eq!(left(), 2);
}

#[test]
fn sources_stay_unchanged() {
    let bench = Bench::default();
    let layout = bench.layout("layout", &layout(&[1, 2]));
    bench.file("layout.tar", &archive_of(&layout));
    let state = || {
        let paths = bench.everything().into_keys().filter(|path| path.is_file() && path.starts_with(bench.path("layout")));
        let one = |path: PathBuf| {
            let of = fs::metadata(&path).unwrap();
            (path, of.mode(), of.nlink(), of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec())
        };
        paths.chain([bench.path("layout.tar")]).map(one).collect::<Vec<_>>()
    };
    let before = state();
    for format in ["erofs", "squashfs", "ext4"] {
        bench.pack(&["layout", "layout.tar", "--fs", format]);
        bench.pack(&["layout", "layout.tar", "--fs", format, "--cache", "cache"]);
        assert_eq!(state(), before);
        assert_eq!(fs::metadata(entry(&bench, 1)).unwrap().nlink(), 1, "the cache holds no hard link");
    }
}

#[test]
fn unusable_caches_are_reported() {
    let bench = Bench::default();
    bench.layout("layout", &layout(&[1]));
    bench.file("file", b"");
    fs::create_dir(bench.path("small")).unwrap();
    bench.refused(&["layout", "--cache", "file"], "cannot use the cache file: Not a directory (os error 20)");
    on_tmpfs(&bench.path("small"), "size=256k", || {
        let digest = Digest::sha256_of(&layer(1));
        let message =
            format!("cannot keep {digest}, of 1048576 bytes, in the cache small: No space left on device (os error 28)");
        fs::create_dir_all(bench.path("small/sha256")).unwrap();
        fs::create_dir_all(bench.path("small/sha512")).unwrap();
        bench.refused(&["layout", "--cache", "small"], &message);
        read_only(&bench.path("small"));
        let output = bench.command(&["-q", "pack", "layout", "-o", "disk.erofs", "--cache", "small"]).output().unwrap();
        let said = text(&output.stderr);
        assert!(said.starts_with("localregistry: cannot use the cache small: Read-only file system (os error 30)"), "{said}");
    });
}

#[test]
fn cache_on_another_file_system_works() {
    let bench = Bench::default();
    bench.layout("layout", &layout(&[1, 2]));
    fs::create_dir(bench.path("other")).unwrap();
    on_tmpfs(&bench.path("other"), "size=16m", || {
        for format in ["erofs", "squashfs", "ext4"] {
            bench.pack(&["layout", "--fs", format]);
            let expected = digest_of(&bench.path("disk.erofs"));
            packed(&bench, &["layout", "--fs", format, "--cache", "other"]);
            assert_eq!(packed(&bench, &["layout", "--fs", format, "--cache", "other"]), (0, 2, expected));
        }
    });
}

#[test]
fn unreadable_entry_is_refused_and_a_short_one_replaced() {
    let bench = Bench::default();
    bench.layout("layout", &layout(&[1]));
    let path = entry(&bench, 1);
    ["sha256", "sha512"].iter().for_each(|algorithm| fs::create_dir_all(bench.path("cache").join(algorithm)).unwrap());
    std::os::unix::fs::symlink(path.file_name().unwrap(), &path).unwrap();
    let digest = Digest::sha256_of(&layer(1));
    bench.refused(
        &["layout", "--cache", "cache"],
        &format!("cannot read {digest}, of 1048576 bytes, from the cache cache: Too many levels of symbolic links (os error 40)"),
    );
    fs::remove_file(&path).unwrap();
    fs::File::create(&path).unwrap().write_all(b"short").unwrap();
    assert_eq!(packed(&bench, &["layout", "--cache", "cache"]).0, 1);
}
