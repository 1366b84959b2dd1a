//! Archives of one layout as GNU tar, bsdtar, gzip, pigz, zstd and pzstd write them in their many forms: all pack to the same disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use testing::docker::Dockerd;
use testing::layout::Layout;
use testing::pack::{Bench, digest_of};
use testing::private::privately;
use testing::vm::succeed;

/// Size of the layer in bytes.
const SIZE: u64 = 4 << 20;

/// A bench with a layout whose layer has thirty holes, stored as such, and the digest of the disk that it packs to.
fn bench() -> (Bench, String) {
    let bench = Bench::default();
    let mut content = vec![0; SIZE as usize];
    let marks: Vec<usize> = (1..30).map(|part| part * (128 << 10)).collect();
    marks.iter().for_each(|at| content[*at..at + 3].copy_from_slice(b"abc"));
    let mut layout = Layout::default();
    layout.image("a/b:1", &content);
    let layer = layout.blob(&content);
    let folder = bench.layout("layout", &layout);
    let holes = File::create(folder.join(layer.digest.blob_path())).unwrap();
    holes.set_len(SIZE).unwrap();
    marks.iter().for_each(|at| holes.write_all_at(b"abc", *at as u64).unwrap());
    bench.pack(&["layout"]);
    let disk = digest_of(&bench.path("disk.erofs"));
    (bench, disk)
}

/// Runs a shell command in the bench's folder, which writes the archive `it`.
fn write(bench: &Bench, command: &str) -> u64 {
    let mut shell = testing::program("bash");
    succeed(shell.args(["-o", "pipefail", "-c", command]).current_dir(bench.path(".")));
    fs::metadata(bench.path("it")).unwrap().len()
}

fn assert_packs(bench: &Bench, disk: &str, command: &str) {
    bench.pack(&["it"]);
    assert_eq!(digest_of(&bench.path("disk.erofs")), disk, "{command}");
    succeed(&mut bench.command(&["inspect", "it", "--verify"]));
}

#[test]
fn sparse_layers_in_each_form_of_gnu_tar_and_bsdtar_are_read() {
    let (bench, disk) = bench();
    let posix = |version: &str| format!("tar -S --format=posix --sparse-version={version} -C layout -cf it .");
    for command in [
        "tar -S --format=gnu -C layout -cf it .",
        "tar -S --format=oldgnu -C layout -cf it .",
        &posix("0.0"),
        &posix("0.1"),
        &posix("1.0"),
        "tar -S --hole-detection=raw --format=posix -C layout -cf it .",
        "bsdtar -C layout -cf it .",
        "bsdtar --format=pax --read-sparse -C layout -cf it .",
    ] {
        assert!(write(&bench, command) < SIZE / 2, "{command}");
        assert_packs(&bench, &disk, command);
        write(&bench, &format!("{command} && gzip <it >gz && mv gz it"));
        assert_packs(&bench, &disk, command);
    }
}

#[test]
fn plain_and_labelled_archives_of_each_format_are_read() {
    let (bench, disk) = bench();
    for command in [
        "tar --format=v7 -C layout -cf it .",
        "tar --format=ustar -C layout -cf it .",
        "tar --format=gnu -V images -C layout -cf it .",
        "tar --format=posix -V images -C layout -cf it .",
        "tar -S --format=gnu -V images -C layout -cf it .",
        "tar --format=gnu -g snapshot -C layout -cf it .",
        "tar --format=posix --xattrs --acls -b 1 -C layout -cf it .",
        "bsdtar --format=ustar -C layout -cf it .",
        "bsdtar --format=gnutar --no-read-sparse -C layout -cf it .",
        "bsdtar --format=pax --no-read-sparse -C layout -cf it .",
        "bsdtar --format=v7tar -C layout -cf it . 2>/dev/null || tar --format=v7 -C layout -cf it .",
    ] {
        write(&bench, command);
        assert_packs(&bench, &disk, command);
    }
}

#[test]
fn compressed_archives_of_each_tool_are_read() {
    let (bench, disk) = bench();
    write(&bench, "tar -C layout -cf plain.tar . && cp plain.tar it");
    for command in [
        "gzip -c plain.tar >it",
        "pigz -b 128 -p 4 -c plain.tar >it",
        "pigz -i -p 4 -c plain.tar >it",
        "split -b 1000000 plain.tar part. && for part in part.*; do pigz -c $part; done >it",
        "zstd -qc plain.tar >it",
        "zstd -qc --no-check -T2 plain.tar >it",
        "pzstd -qc -p 2 plain.tar >it 2>/dev/null",
        "for part in part.*; do zstd -qc $part; done >it",
        "for part in part.*; do pzstd -qc $part 2>/dev/null; done >it",
        // bsdtar pads what it writes into a pipe to blocks of 10 KiB.
        "bsdtar -C layout -czf - . | cat >it",
        "bsdtar -C layout -cf - --zstd . | cat >it",
        "bsdtar -C layout -cf - --read-sparse . | gzip >it",
        "{ gzip -c plain.tar; head -c 70000 /dev/zero; } >it",
        "{ gzip -c plain.tar; echo signed by nobody; } >it",
        "{ zstd -qc plain.tar; echo signed by nobody; } >it",
        "{ cat plain.tar; head -c 70000 /dev/zero; } >it",
    ] {
        write(&bench, command);
        assert_packs(&bench, &disk, command);
    }
}

#[test]
fn export_of_a_container_is_refused_and_its_save_is_packed() {
    privately(|| {
        let bench = Bench::default();
        let docker = Dockerd::start(&[], None);
        write(&bench, "mkdir root && echo hello >root/file && tar -C root -cf it file");
        let at = |name: &str| bench.path(name).display().to_string();
        succeed(&mut docker.docker(&["import", &at("it"), "a/b:1"]));
        succeed(&mut docker.docker(&["create", "--name", "container", "a/b:1", "/file"]));
        succeed(&mut docker.docker(&["export", "-o", &at("export.tar"), "container"]));
        succeed(&mut docker.docker(&["save", "-o", &at("save.tar"), "a/b:1"]));
        bench.refused(
        &["export.tar"],
        "cannot pack export.tar: it is the file system of a container, as docker export writes it, and holds no image; docker save \
         writes images, and docker commit makes an image of a container",
    );
        bench.pack(&["save.tar"]);
        assert_eq!(bench.extract("disk.erofs").names(), ["a/b:1"]);
    });
}
