//! `localregistry inspect` on files that are not disks, on truncated and damaged disks, and on faults that only `--verify` finds.
//! Each gives its exact message and exit code 1, and no file is written.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use localregistry::host::inspect::contents::Contents;
use localregistry::host::inspect::reader::Disk;
use localregistry::host::support::interrupt::Interrupt;
use localregistry::oci::{Digest, media_type};
use localregistry::registry::content::store;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proptest::prelude::*;
use serde_json::{Value, json};
use tar::EntryType::Regular;
use testing::layout::{Layout, Stored};
use testing::pack::{Bench, archive, blob, hello, text};
use testing::vm::succeed;

/// Runs `localregistry --quiet inspect ARGUMENTS`, which must fail with exit code 1 and change no file. Returns its messages and
/// its output.
fn failed(bench: &Bench, arguments: &[&str]) -> (String, String) {
    let before = bench.everything();
    let output = bench.command(&[&["--quiet", "inspect"], arguments].concat()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stderr));
    assert!(bench.everything() == before, "{arguments:?} changed something");
    (text(&output.stderr), text(&output.stdout))
}

/// Asserts this message for a disk that cannot be shown at all.
fn refused(bench: &Bench, disk: &str, message: &str) {
    for further in [&[] as &[&str], &["--json"], &["--verify", "--export", "out"]] {
        let (said, result) = failed(bench, &[&[disk], further].concat());
        assert_eq!((said, result), (format!("localregistry: cannot inspect {disk}: {message}\n"), String::new()), "{further:?}");
    }
}

/// Asserts these faults of a disk, each reported as `blob … ; it is part of …`.
fn faulty(bench: &Bench, disk: &str, faults: &[String]) {
    let count = if faults.len() == 1 { "1 fault".to_owned() } else { format!("{} faults", faults.len()) };
    let lines: String = faults.iter().map(|fault| format!("{disk}: {fault}\n")).collect();
    let said = format!("{lines}localregistry: {disk} has {count}\n");
    let (found, table) = failed(bench, &[disk, "--verify"]);
    assert_eq!(found, said);
    assert!(table.contains(" found\n"), "{table}");
    let (found, json) = failed(bench, &[disk, "--verify", "--json", "--export", "out"]);
    assert_eq!(found, said);
    let json: Value = serde_json::from_str(&json).unwrap();
    let messages: Vec<&str> = json["faults"].as_array().unwrap().iter().map(|fault| fault["message"].as_str().unwrap()).collect();
    assert_eq!((messages, &json["exported"]), (faults.iter().map(String::as_str).collect(), &Value::Null));
}

fn make(bench: &Bench, program: &str, arguments: &[&str]) {
    let output = testing::program(program).args(arguments).current_dir(bench.path("")).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
}

/// Packs a disk of the folder in each file system.
fn disks(bench: &Bench, folder: &str) -> [&'static str; 3] {
    make(bench, "mkfs.erofs", &["--quiet", "made.erofs", folder]);
    make(bench, "mksquashfs", &[folder, "made.squashfs", "-quiet", "-no-progress", "-noappend", "-noI", "-noD", "-noF"]);
    fs::File::create(bench.path("made.ext4")).unwrap().set_len(4 << 20).unwrap();
    make(bench, "mkfs.ext4", &["-q", "-d", folder, "made.ext4"]);
    ["made.erofs", "made.squashfs", "made.ext4"]
}

/// A layer with a unique start.
fn layer() -> Vec<u8> {
    (0..9000_u32).map(|at| u8::try_from((at * at / 7 + 1) % 251).unwrap()).collect()
}

/// Changes the first byte of `content` on the disk. The rest of it may be elsewhere.
fn spoil(disk: &Path, content: &[u8]) {
    let bytes = fs::read(disk).unwrap();
    let start = &content[..content.len().min(256)];
    let at = bytes.windows(start.len()).position(|window| window == start).unwrap();
    fs::OpenOptions::new().write(true).open(disk).unwrap().write_all_at(&[content[0] ^ 1], at as u64).unwrap();
}

/// The content after [`spoil`].
fn spoilt(content: &[u8]) -> Digest {
    Digest::sha256_of(&[&[content[0] ^ 1], &content[1..]].concat())
}

#[test]
fn files_that_are_not_disks_are_refused() {
    let bench = Bench::default();
    refused(&bench, "missing", "cannot read it: No such file or directory (os error 2)");
    make(&bench, "mkfifo", &["fifo"]);
    let output = bench.command(&["-q", "inspect", "fifo"]).output().unwrap();
    assert_eq!(
        text(&output.stderr),
        "localregistry: cannot inspect fifo: it is neither a file nor a folder; a disk, an OCI image layout or an archive of one is \
         expected\n"
    );
    fs::remove_file(bench.path("fifo")).unwrap();
    bench.file("empty", b"");
    refused(&bench, "empty", "it is empty; a disk, an OCI image layout or an archive of one is expected");
    bench.file("zeros", &[0; 1 << 20]);
    bench.file("text", b"These are the days of miracle and wonder.");
    for disk in ["zeros", "text"] {
        refused(
            &bench,
            disk,
            "it has no file system that is known (EROFS, squashfs, ext4), and is no archive; a disk as `localregistry pack` makes, an \
             OCI image layout or an archive of one is expected",
        );
    }
    bench.file("other.tar", &archive(&[("file", Regular, b"content")]));
    refused(
        &bench,
        "other.tar",
        "the archive has neither index.json (an OCI image layout) nor manifest.json (docker save) at its root",
    );
    bench.file("half.tar.gz", b"\x1f\x8b\x08\0");
    refused(&bench, "half.tar.gz", "it cannot be decompressed: unexpected end of file");
}

#[test]
fn disk_without_a_layout_is_refused() {
    let bench = Bench::default();
    fs::create_dir(bench.path("folder")).unwrap();
    bench.file("folder/file", b"content");
    let expected = "cannot read oci-layout; an OCI image layout with oci-layout, index.json and blobs/ is expected";
    for disk in disks(&bench, "folder") {
        refused(&bench, disk, &format!("{expected}: the disk has no such file"));
    }
    refused(&bench, "folder", &format!("{expected}: No such file or directory (os error 2)"));
    bench.file("folder/oci-layout", br#"{"imageLayoutVersion":"2.0.0"}"#);
    for disk in disks(&bench, "folder") {
        refused(&bench, disk, "oci-layout gives imageLayoutVersion \"2.0.0\"; 1.0.0 is expected");
    }
}

#[test]
fn truncated_disk_is_refused() {
    let (bench, _, _) = hello(&[7; 70_000]);
    for disk in disks(&bench, "layout") {
        let file = fs::OpenOptions::new().write(true).open(bench.path(disk)).unwrap();
        let fs = disk.split_once('.').unwrap().1;
        let whole = match fs {
            // The superblock has the number of used bytes, and the file is padded to a block.
            "squashfs" => u64::from_le_bytes(fs::read(bench.path(disk)).unwrap()[40..48].try_into().unwrap()),
            _ => file.metadata().unwrap().len(),
        };
        for len in [whole - 1, 8192] {
            file.set_len(len).unwrap();
            refused(
                &bench,
                disk,
                &format!(
                    "it is cut short: it has {len} bytes, and its {fs} file system has {whole}; copy or pack the disk again"
                ),
            );
        }
    }
}

#[test]
fn corrupt_superblock_is_refused() {
    let (bench, _, _) = hello(b"a layer");
    let patch = |disk: &str, at: u64, bytes: &[u8]| {
        fs::OpenOptions::new().write(true).open(bench.path(disk)).unwrap().write_all_at(bytes, at).unwrap();
    };
    let again = "copy or pack the disk again";
    disks(&bench, "layout");
    let sum = u32::from_le_bytes(fs::read(bench.path("made.erofs")).unwrap()[1028..1032].try_into().unwrap());
    patch("made.erofs", 1028, &(sum ^ 1).to_le_bytes());
    refused(
        &bench,
        "made.erofs",
        &format!(
            "its erofs file system cannot be read; {again}: its superblock is damaged: its checksum is {sum:#010x}, and {:#010x} is expected",
            sum ^ 1
        ),
    );
    let whole = fs::read(bench.path("made.squashfs")).unwrap();
    patch("made.squashfs", 28, &[9]);
    let squashfs = |fault: &str| {
        refused(&bench, "made.squashfs", &format!("its squashfs file system cannot be read; {again}: {fault}"));
    };
    let damaged = "the superblock or a table of the file system is damaged";
    // Its version, the start of its inodes, and the type of the first of them.
    squashfs(damaged);
    patch("made.squashfs", 28, &whole[28..29]);
    patch("made.squashfs", 64, &[9; 8]);
    squashfs(damaged);
    patch("made.squashfs", 64, &whole[64..72]);
    let inodes = u64::from_le_bytes(whole[64..72].try_into().unwrap());
    patch("made.squashfs", inodes + 2, &[99]);
    squashfs(damaged);
    // The checksum of ext4's superblock.
    patch("made.ext4", 1024 + 1020, &[0x55; 4]);
    refused(
        &bench,
        "made.ext4",
        &format!("its ext4 file system cannot be read; {again}: corrupt filesystem: invalid superblock checksum"),
    );
    // Without a checksum, the superblock's values are checked against limits.
    for (at, bytes, fault) in [
        (
            1024 + 80,
            b"\0\x02\0\0" as &[u8],
            "it uses features of EROFS that are not known here (0x200); make it with fewer options",
        ),
        (1024 + 12, b"\x05", "its superblock is damaged: a block size of 2^5 bytes is not valid"),
    ] {
        make(&bench, "mkfs.erofs", &["--quiet", "-Enosbcrc", "plain.erofs", "layout"]);
        patch("plain.erofs", at, bytes);
        refused(&bench, "plain.erofs", &format!("its erofs file system cannot be read; {again}: {fault}"));
    }
}

#[test]
fn compressed_erofs_image_is_refused() {
    let (bench, _, _) = hello(&[7; 1 << 20]);
    make(&bench, "mkfs.erofs", &["--quiet", "-zlz4", "disk.erofs", "layout"]);
    let fault = "the file is compressed; an uncompressed image is expected: make it without mkfs.erofs's option -z";
    let path = blob(&[7; 1 << 20]);
    let (said, result) = failed(&bench, &["disk.erofs", "--verify"]);
    assert_eq!(
        (said, result),
        (format!("localregistry: cannot inspect disk.erofs: cannot read {path}: {fault}\n"), String::new())
    );
    let (said, _) = failed(&bench, &["disk.erofs", "--export", "out"]);
    assert_eq!(said, format!("localregistry: cannot inspect disk.erofs: cannot read {path}: {fault}\n"));
}

#[test]
fn corrupt_blobs_are_reported() {
    let layer = layer();
    let (bench, _, manifest) = hello(&layer);
    bench.pack(&["layout", "--name", "docker.io/library/other:1=layout"]);
    let (digest, images) = (Digest::sha256_of(&layer), "it is part of docker.io/library/other:1, test/hello:latest");
    for disk in ["disk.erofs"].into_iter().chain(disks(&bench, "layout")) {
        let images = if disk == "disk.erofs" { images } else { "it is part of test/hello:latest" };
        spoil(&bench.path(disk), &layer);
        let found = spoilt(&layer);
        faulty(&bench, disk, &[format!("blob {digest} has the content of {found}; {images}")]);
        // Faults that are not verified are not found, but never exported.
        let (said, _) = failed(&bench, &[disk, "--export", "out"]);
        assert_eq!(said, format!("localregistry: cannot export to out: blob {digest} has the content of {found}\n"));
        assert!(bench.command(&["-q", "inspect", disk]).output().unwrap().status.success());
    }
    // A manifest, which may be in the block that the superblock's checksum covers.
    make(&bench, "mkfs.erofs", &["--quiet", "-Enosbcrc", "plain.erofs", "layout"]);
    let content = fs::read(bench.path("layout").join(manifest.digest.blob_path())).unwrap();
    spoil(&bench.path("plain.erofs"), &content);
    let fault = format!("blob {} has the content of {}; it is part of test/hello:latest", manifest.digest, spoilt(&content));
    let (said, _) = failed(&bench, &["plain.erofs"]);
    assert_eq!(said, format!("plain.erofs: {fault}\nlocalregistry: plain.erofs has 1 fault\n"));
}

#[test]
fn missing_blobs_and_wrong_sizes_are_reported() {
    let (bench, layout, _) = hello(&[7; 9000]);
    fs::write(layout.join(blob(&[7; 9000])), [7; 8999]).unwrap();
    let digest = Digest::sha256_of(&[7; 9000]);
    for disk in disks(&bench, "layout").into_iter().chain(["layout"]) {
        faulty(&bench, disk, &[format!("blob {digest} has 8999 bytes, and 9000 are expected; it is part of test/hello:latest")]);
    }
    fs::remove_file(layout.join(blob(&[7; 9000]))).unwrap();
    for disk in disks(&bench, "layout").into_iter().chain(["layout"]) {
        faulty(&bench, disk, &[format!("blob {digest} is missing; it is part of test/hello:latest")]);
    }
    std::os::unix::fs::symlink("/etc/passwd", layout.join(blob(&[7; 9000]))).unwrap();
    make(&bench, "mkfs.erofs", &["--quiet", "made.erofs", "layout"]);
    faulty(
        &bench,
        "made.erofs",
        &[format!("blob {digest} cannot be read: it is not a regular file; it is part of test/hello:latest")],
    );
}

#[test]
fn images_with_a_faulty_blob_are_counted() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    for number in 0..6 {
        let manifest = layout.manifest(&[b"shared", &[number]]);
        layout.name(manifest, media_type::OCI_MANIFEST, &format!("test/{number}:1"));
    }
    let no_manifest = layout.blob(b"no manifest");
    layout.name(no_manifest, media_type::OCI_MANIFEST, "test/none:1");
    let layout = bench.layout("layout", &layout);
    fs::remove_file(layout.join(blob(b"shared"))).unwrap();
    let mut faults = vec![
        format!("blob {} is missing; it is part of test/0:1, test/1:1, test/2:1 and 3 more", Digest::sha256_of(b"shared")),
        format!(
            "blob {} is not a manifest that can be served: it is not the JSON of a manifest: expected ident at line 1 column 2; it is \
             part of test/none:1",
            no_manifest.digest
        ),
    ];
    faults.sort();
    faulty(&bench, "layout", &faults);
}

/// The content of the packed disk as a folder that a test changes, and the disk rebuilt from it.
struct RebuiltDisk {
    bench: Bench,
    manifest: Stored,
}

impl RebuiltDisk {
    fn new() -> Self {
        let (bench, _, manifest) = hello(b"a layer");
        bench.pack(&["layout", "--name", "test/other:1=layout"]);
        bench.extract("disk.erofs");
        Self { bench, manifest }
    }

    fn with(&self, file: &str, content: &[u8]) -> &Bench {
        let path = self.bench.path("disk.erofs.extracted").join(file);
        fs::remove_file(&path).unwrap();
        fs::write(&path, content).unwrap();
        make(&self.bench, "mkfs.erofs", &["--quiet", "made.erofs", "disk.erofs.extracted"]);
        &self.bench
    }

    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.bench.path("disk.erofs.extracted").join(file)).unwrap()
    }
}

#[test]
fn missing_or_unsupported_catalog_is_reported() {
    let disk = RebuiltDisk::new();
    let catalog = disk.read("localregistry/catalog.binpb");
    assert_eq!(catalog[..2], [8, 1]);
    let newer = [&[8, 2], &catalog[2..]].concat();
    refused(
        disk.with("localregistry/catalog.binpb", &newer),
        "made.erofs",
        "localregistry/catalog.binpb: the catalog is of version 2, and this program reads version 1; pack the disk again with this \
         version",
    );
    let cut = &catalog[..catalog.len() - 1];
    let (said, _) = failed(disk.with("localregistry/catalog.binpb", cut), &["made.erofs"]);
    let expected = "localregistry: cannot inspect made.erofs: localregistry/catalog.binpb: the catalog is";
    assert!(said.starts_with(expected), "{said}");
}

#[test]
fn catalog_that_disagrees_is_reported() {
    let disk = RebuiltDisk::new();
    let disagrees = "localregistry/catalog.binpb disagrees with index.json and the manifests";
    let mut index: Value = serde_json::from_slice(&disk.read("index.json")).unwrap();
    let name = "org.opencontainers.image.ref.name";
    index["manifests"][0]["annotations"][name] = json!("test/hello:2");
    index["manifests"][1]["annotations"][name] = json!("test/another:1");
    let bench = disk.with("index.json", &serde_json::to_vec(&index).unwrap());
    faulty(
        bench,
        "made.erofs",
        &[
            format!("{disagrees}: it lacks the repository test/another"),
            format!("{disagrees}: it has the tag test/hello:latest, but index.json does not"),
            format!("{disagrees}: it lacks the tag test/hello:2"),
            format!("{disagrees}: it has the repository test/other, but index.json does not"),
        ],
    );

    // An index that names another manifest than the catalog.
    let mut layout = Layout::default();
    let other = layout.image("test/hello:latest", b"another");
    let from = bench.layout("other", &layout);
    for path in [other.digest.blob_path(), blob(b"another")] {
        fs::copy(from.join(&path), bench.path("disk.erofs.extracted").join(&path)).unwrap();
    }
    index["manifests"] = json!([{
        "mediaType": media_type::OCI_MANIFEST, "digest": other.digest.to_string(), "size": other.size,
        "annotations": {name: "test/hello:latest"},
    }]);
    disk.with("index.json", &serde_json::to_vec(&index).unwrap());
    let mut lacking = [other.digest, Digest::sha256_of(b"another")];
    lacking.sort();
    let (said, _) = failed(bench, &["made.erofs", "--verify"]);
    for expected in [
        format!("its tag test/hello:latest is {}, but in index.json {}", disk.manifest.digest, other.digest),
        format!("it lacks blob {} in the repository test/hello", lacking[0]),
        format!("it lacks blob {} in the repository test/hello", lacking[1]),
        "it has the repository test/other, but index.json does not".to_owned(),
    ] {
        assert!(said.contains(&format!("made.erofs: {disagrees}: {expected}\n")), "{expected}: {said}");
    }
    assert!(said.ends_with("localregistry: made.erofs has 4 faults\n"), "{said}");
}

#[test]
fn blobs_omitted_on_purpose_are_no_fault() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let gone = layout.blob(b"gone");
    let manifest = layout.manifest(&[b"a layer", b"gone"]);
    layout.name(manifest, media_type::OCI_MANIFEST, "test/hello:1");
    let folder = bench.layout("layout", &layout);
    fs::remove_file(folder.join(gone.digest.blob_path())).unwrap();
    let left_out = format!("image test/hello:1: {}, of 4 bytes, is missing and left out", gone.digest);
    bench.pack_warned(&["layout", "--allow-missing"], &[&left_out]);
    let output = bench.command(&["inspect", "--quiet", "disk.erofs", "--verify", "--export", "out"]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("\nleft out on purpose: 1 blob\n"), "{}", text(&output.stdout));
    // A layout that does not say so is incomplete.
    let json = fs::read_to_string(bench.path("out/index.json")).unwrap();
    fs::write(bench.path("out/index.json"), json.replace("localregistry.left-out", "other")).unwrap();
    let (said, _) = failed(&bench, &["out", "--verify"]);
    assert!(said.contains(&format!("blob {} is missing; it is part of test/hello:1\n", gone.digest)), "{said}");
}

#[test]
fn catalog_that_disagrees_on_every_tag_is_reported() {
    let disk = RebuiltDisk::new();
    let mut index: Value = serde_json::from_slice(&disk.read("index.json")).unwrap();
    index["manifests"][0]["annotations"]["localregistry.every-tag"] = json!("true");
    let bench = disk.with("index.json", &serde_json::to_vec(&index).unwrap());
    faulty(
        bench,
        "made.erofs",
        &[format!(
            "localregistry/catalog.binpb disagrees with index.json and the manifests: for all other tags of test/hello it has no \
             manifest, but index.json has {}",
            disk.manifest.digest
        )],
    );
}

#[test]
fn export_replaces_no_files() {
    let (bench, _, _) = hello(b"a layer");
    bench.pack(&["layout"]);
    bench.file("file", b"mine");
    for target in ["layout", "file", "disk.erofs"] {
        let (said, _) = failed(&bench, &["disk.erofs", "--export", target]);
        assert_eq!(
            said,
            format!(
                "localregistry: cannot export to {target}: it exists and is not an empty folder; expected a new or an empty one\n"
            )
        );
    }
    let (said, _) = failed(&bench, &["disk.erofs", "--export", "no/such"]);
    assert!(
        said.starts_with(
            "localregistry: cannot export to no/such: cannot write a temporary folder next to it: No such file or directory"
        ),
        "{said}"
    );
}

#[test]
fn signal_ends_an_export_and_leaves_no_files() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    // A sparse layer of 12 GiB, which takes longer than this test. Its stored part is as large as it must be for that size.
    const SIZE: u64 = 12 << 30;
    let layer = layout.blob(&vec![1; 128 << 20]);
    let config = layout.blob(b"{}");
    let mut huge = layer.descriptor("application/vnd.oci.image.layer.v1.tar");
    huge["size"] = json!(SIZE);
    let manifest = layout.json(&json!({
        "schemaVersion": 2, "config": config.descriptor("application/vnd.oci.empty.v1+json"), "layers": [huge],
    }));
    layout.name(manifest, media_type::OCI_MANIFEST, "test/huge:1");
    fs::OpenOptions::new().write(true).open(layout.path().join(layer.digest.blob_path())).unwrap().set_len(SIZE).unwrap();
    let path = layout.write().to_owned();
    let names = || {
        let entries = fs::read_dir(bench.path("")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let mut command = bench.command(&["-q", "inspect", path.to_str().unwrap(), "--export", "out"]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        while names().is_empty() {
            assert_eq!(child.try_wait().unwrap(), None);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(text(&output.stderr), format!("localregistry: interrupted by {}\n", signal.as_str()));
        assert_eq!((output.status.code(), names()), (Some(code), Vec::<String>::new()));
    }
}

/// mke2fs and mksquashfs keep the holes of a file, so that a small disk has a large layer.
#[test]
fn layer_of_holes_on_disks_of_real_tools_is_not_hashed() {
    let bench = Bench::default();
    for (size, tool) in
        [(1_u64 << 40, "mke2fs -q -t ext4 -d layout disk 16M"), (2 << 30, "mksquashfs layout disk -quiet -no-progress -noappend")]
    {
        let mut layout = Layout::default();
        let (layer, config) = (layout.blob(b"a layer"), layout.blob(b"{}"));
        let mut huge = layer.descriptor("application/vnd.oci.image.layer.v1.tar");
        huge["size"] = json!(size);
        let config = config.descriptor("application/vnd.oci.empty.v1+json");
        let manifest = layout.json(&json!({"schemaVersion": 2, "config": config, "layers": [huge]}));
        layout.name(manifest, media_type::OCI_MANIFEST, "test/huge:1");
        let path = layer.digest.blob_path();
        fs::OpenOptions::new().write(true).open(layout.path().join(&path)).unwrap().set_len(size).unwrap();
        layout.write();
        let tool = tool.replacen("layout", layout.path().to_str().unwrap(), 1);
        succeed(testing::program("sh").args(["-c", &tool]).current_dir(bench.path("")));
        let stored = fs::metadata(bench.path("disk")).unwrap().len();
        let limit = (1 << 30) + 100 * stored;
        assert!(limit < size, "{tool}: {stored}");
        let (said, _) = failed(&bench, &["disk", "--verify"]);
        let fault = format!(
            "disk: blob {} cannot be read: it is damaged: {path} has {size} bytes, far more than are stored; at most {limit} are expected; it \
             is part of test/huge:1\nlocalregistry: disk has 1 fault\n",
            layer.digest
        );
        assert!(said.ends_with(&fault), "{tool}: {said}");
        fs::remove_file(bench.path("disk")).unwrap();
    }
}

/// Opens the disk and reads everything on it. With any fault, this must end with an error message.
fn read_all(disk: &Path) {
    let interrupt = Interrupt::default();
    let Ok(disk) = Disk::open(disk, &interrupt) else { return };
    // As `trust` and `run --trust` do.
    let _ = store::read_catalog(disk.tree.as_ref(), true);
    let Ok(contents) = Contents::read(disk.tree.as_ref(), &interrupt) else { return };
    for blob in &contents.blobs {
        let Ok(content) = disk.tree.open(&blob.digest.blob_path()) else { continue };
        let _ = content.reader.take(1 << 22).read_to_end(&mut Vec::new());
    }
}

/// A small valid disk of each kind.
fn whole() -> [Vec<u8>; 5] {
    let mut layout = Layout::default();
    for number in 0..40 {
        let manifest = layout.manifest(&[&[number; 5000], b"shared"]);
        layout.name(manifest, media_type::OCI_MANIFEST, &format!("test/{number}:1"));
    }
    let bench = Bench::default();
    bench.layout("layout", &layout);
    disks(&bench, "layout");
    make(&bench, "mkfs.erofs", &["--quiet", "-Enosbcrc", "plain.erofs", "layout"]);
    make(&bench, "mkfs.erofs", &["--quiet", "-Enosbcrc", "--chunksize=4096", "chunks.erofs", "layout"]);
    ["plain.erofs", "chunks.erofs", "made.erofs", "made.squashfs", "made.ext4"].map(|disk| fs::read(bench.path(disk)).unwrap())
}

/// Offset and replacement: most are in the first blocks, which have the metadata.
fn mutations() -> impl Strategy<Value = Vec<(prop::sample::Index, bool, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any::<u8>()), 1..24)
}

#[test]
fn arbitrary_disk_bytes_give_an_error_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    for disk in whole() {
        fs::write(&path, &disk).unwrap();
        let whole = Disk::open(&path, &Interrupt::default()).unwrap();
        let contents = Contents::read(whole.tree.as_ref(), &Interrupt::default()).unwrap();
        assert_eq!((contents.images.len(), contents.faults.len()), (40, 0));
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 200, ..ProptestConfig::default() });
        let cases = (mutations(), any::<prop::sample::Index>(), prop::bool::weighted(0.1));
        let done = runner.run(&cases, |(changes, cut, is_cut)| {
            let mut bytes = disk.clone();
            for (at, front, byte) in changes {
                let range = if front { bytes.len().min(8192) } else { bytes.len() };
                bytes[at.index(range)] = byte;
            }
            bytes.truncate(if is_cut { cut.index(disk.len()) } else { disk.len() });
            fs::write(&path, &bytes).unwrap();
            read_all(&path);
            Ok(())
        });
        done.unwrap();
    }
}
