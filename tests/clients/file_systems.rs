//! `localregistry pack --fs`: each file system holds the same content and is reproducible.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use localregistry::host::inspect::reader::{Disk, DiskError};
use localregistry::host::support::interrupt::Interrupt;
use localregistry::oci::Digest;
use testing::layout::Layout;
use testing::pack::{Bench, archive_of, digest_of, hello, text};
use testing::private::on_tmpfs;
use testing::vm::succeed;

const FORMATS: [&str; 3] = ["erofs", "squashfs", "ext4"];

/// Two layouts: one with many small blobs and one with a large blob.
fn sources(bench: &Bench) {
    let mut many = Layout::default();
    (0..300).for_each(|number| {
        many.image(&format!("test/many:{number}"), format!("layer {number}").repeat(number * 3).as_bytes());
    });
    bench.layout("a", &many);
    let mut large = Layout::default();
    let content: Vec<u8> = (0..1_500_000_u32).flat_map(u32::to_le_bytes).collect();
    large.image("test/large:1", &content);
    let large = bench.layout("b", &large);
    bench.file("b.tar", &archive_of(&large));
}

#[test]
fn bytes_depend_on_neither_order_nor_time_nor_user() {
    let bench = Bench::default();
    sources(&bench);
    for format in FORMATS {
        bench.pack(&["a", "b", "--fs", format]);
        let disk = bench.path("disk.erofs");
        let expected = digest_of(&disk);
        assert_eq!(fs::metadata(&disk).unwrap().len() % 4096, 0, "{format}");
        // Some formats store file times in whole seconds.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        bench.pack(&["b.tar", "a", "--fs", format]);
        assert_eq!(digest_of(&disk), expected, "{format}");
        let script = format!("umask 077; exec '{}' -q pack b a --fs {format} -o disk.erofs", testing::pack::PROGRAM);
        let environment = [("SOURCE_DATE_EPOCH", "12345"), ("TZ", "Asia/Tokyo"), ("E2FSPROGS_FAKE_TIME", "99")];
        let output = testing::program("sh").args(["-c", &script]).current_dir(bench.path("")).envs(environment).output().unwrap();
        assert!(output.status.success(), "{format}: {}", text(&output.stderr));
        assert_eq!(digest_of(&disk), expected, "{format}");
    }
}

#[test]
fn label_changes_only_the_superblock() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    layout.image("test/hello:1", b"layer");
    bench.layout("a", &layout);
    let superblock = |disk: &[u8]| disk[1024..2048].to_vec();
    for (format, at) in [("erofs", 64), ("ext4", 120)] {
        bench.pack(&["a", "--fs", format]);
        let without = fs::read(bench.path("disk.erofs")).unwrap();
        bench.pack(&["a", "--fs", format, "--label", "images"]);
        let with = fs::read(bench.path("disk.erofs")).unwrap();
        assert_eq!(
            (&superblock(&without)[at..at + 7], &superblock(&with)[at..at + 7]),
            (&[0; 7][..], &b"images\0"[..]),
            "{format}"
        );
        assert!(without[..1024] == with[..1024] && without[2048..] == with[2048..], "{format}");
    }
    // The checksum is valid, and `inspect` verifies it.
    bench.pack(&["a", "--label", "0123456789abcdef"]);
    bench.extract("disk.erofs");
    for (arguments, message) in [
        (
            &["--fs", "squashfs", "--label", "x"][..],
            "the argument '--label <NAME>' cannot be used with '--fs squashfs': squashfs has no label",
        ),
        (
            &["--label", "0123456789abcdefg"],
            "invalid value '0123456789abcdefg' for '--label <NAME>': expected 1 to 16 printable ASCII characters",
        ),
        (&["--label", "a b"], "invalid value 'a b' for '--label <NAME>': expected 1 to 16 printable ASCII characters"),
    ] {
        let output = bench.command(&[&["pack", "a", "-o", "refused"], arguments].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).starts_with(&format!("error: {message}\n")), "{}", text(&output.stderr));
        assert!(!bench.path("refused").exists());
    }
}

#[test]
fn root_and_other_users_pack_the_same_bytes() {
    if testing::program("id").arg("-u").output().unwrap().stdout != b"0\n" {
        return;
    }
    let bench = Bench::default();
    sources(&bench);
    fs::copy(testing::pack::PROGRAM, bench.path("program")).unwrap();
    fs::create_dir(bench.path("out")).unwrap();
    succeed(testing::program("chmod").args(["a+rwx", "."]).current_dir(bench.path("")));
    succeed(testing::program("chmod").args(["a+rwx", "out"]).current_dir(bench.path("")));
    for format in FORMATS {
        bench.pack(&["a", "b", "--fs", format]);
        let arguments = ["--reuid=65534", "--regid=65534", "--clear-groups", "./program", "-q", "pack", "a", "b", "--fs", format];
        let mut command = testing::program("setpriv");
        succeed(command.args(arguments).args(["-o", "out/disk"]).current_dir(bench.path("")));
        assert_eq!(digest_of(&bench.path("out/disk")), digest_of(&bench.path("disk.erofs")), "{format}");
    }
}

#[test]
fn every_format_holds_the_same_content() {
    let bench = Bench::default();
    sources(&bench);
    bench.pack(&["a", "b"]);
    let expected = bench.extract("disk.erofs");
    let blobs: u64 = expected.files.values().map(|content| (content.len() as u64).next_multiple_of(4096)).sum();
    for format in ["squashfs", "ext4"] {
        bench.pack(&["a", "b", "--fs", format]);
        let disk = bench.path("disk.erofs");
        let out = bench.path(format);
        match format {
            "squashfs" => succeed(testing::program("unsquashfs").args(["-quiet", "-no-progress", "-d"]).arg(&out).arg(&disk)),
            _ => {
                fs::create_dir(&out).unwrap();
                succeed(testing::program("e2fsck").args(["-f", "-n"]).arg(&disk));
                succeed(testing::program("debugfs").arg("-R").arg(format!("rdump / {}", out.display())).arg(&disk))
            }
        };
        let found = listing(&out);
        let wanted: Vec<&str> = expected.listing.lines().filter(|line| !line.ends_with("/lost+found")).collect();
        assert_eq!(found, wanted, "{format}");
        for (path, content) in &expected.files {
            assert!(fs::read(out.join(path)).unwrap() == *content, "{format}: {path}");
        }
        let size = fs::metadata(&disk).unwrap().len();
        assert!(size < blobs + blobs / 16 + (1 << 20), "{format}: {size} bytes for {blobs} of blobs: no room is left over");
    }
}

/// Modes, sizes and paths, as [`testing::pack::Extracted`] lists them.
fn listing(root: &Path) -> Vec<String> {
    let find = testing::program("find").arg(root).args(["-printf", "%m %y %s /%P\n"]).output().unwrap();
    let mut lines: Vec<Vec<String>> =
        text(&find.stdout).lines().map(|line| line.splitn(4, ' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    lines.sort_by(|a, b| a[3].cmp(&b[3]));
    let line = |fields: &Vec<String>| {
        let size = if fields[1] == "f" { fields[2].as_str() } else { "-" };
        format!("{:0>4} {size} {}", fields[0], fields[3])
    };
    lines.iter().map(line).filter(|line| !line.ends_with("/lost+found")).collect()
}

#[test]
fn blob_over_4_gib_is_packed() {
    let bench = Bench::default();
    let layout = Layout::default();
    // Mostly holes, which take no space and little time to read. `pack` refuses a file of nothing else.
    let size = (4 << 30) + 12_345_u64;
    let path = layout.path().join("content");
    let file = fs::File::create(&path).unwrap();
    std::io::copy(&mut std::io::repeat(7).take(size / 100), &mut &file).unwrap();
    file.write_all_at(b"the end", size - 7).unwrap();
    let digest: Digest = digest_by_parts(&path);
    let to = layout.path().join(digest.blob_path());
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let small = layout.blob(b"{}");
    fs::rename(&path, &to).unwrap();
    let layer = serde_json::json!({"mediaType": "application/octet-stream", "digest": digest.to_string(), "size": size});
    let config = small.descriptor("application/vnd.oci.empty.v1+json");
    let manifest = layout.json(&serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]}));
    let mut layout = layout;
    layout.name(manifest, localregistry::oci::media_type::OCI_MANIFEST, "test/large:1");
    let source = layout.write().display().to_string();
    bench.pack(&[&source]);
    let disk = bench.path("disk.erofs");
    let fsck = testing::program("fsck.erofs").arg(&disk).output().unwrap();
    assert!(fsck.status.success(), "{}", text(&fsck.stderr));
    let map =
        testing::program("dump.erofs").arg(format!("--path=/{}", digest.blob_path())).arg("-e").arg(&disk).output().unwrap();
    let map = text(&map.stdout);
    assert!(map.contains(&format!("Size: {size} ")), "{map}");
    let length = fs::metadata(&disk).unwrap().len();
    assert!(length > size && length < size + (64 << 10), "{length}");
    // Only the large blob has separate blocks, so it is the last on the disk.
    let at = length - size.next_multiple_of(4096) + size - 7;
    let mut end = [0; 7];
    fs::File::open(&disk).unwrap().read_exact_at(&mut end, at).unwrap();
    assert_eq!(&end, b"the end");
}

fn digest_by_parts(path: &Path) -> Digest {
    let mut hasher = localregistry::oci::Hasher::new(localregistry::oci::Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 20];
    let mut file = fs::File::open(path).unwrap();
    loop {
        let count = file.read(&mut buffer).unwrap();
        if count == 0 {
            return hasher.finish();
        }
        hasher.update(&buffer[..count]);
    }
}

/// A disk that can be opened can be mounted: the reader checks what Linux checks. One byte is turned after the other, in the superblock,
/// in the group's descriptor and in the inodes of the root and of a blob.
#[test]
fn ext4_that_linux_refuses_is_refused() {
    let (bench, _, _) = hello(&[7; 70_000]);
    fs::create_dir(bench.path("small")).unwrap();
    on_tmpfs(&bench.path("small"), "size=8m", || {
        succeed(&mut bench.command(&["-q", "pack", "layout", "--fs", "ext4", "-o", "small/disk"]));
        let (path, folder) = (bench.path("small/disk"), bench.path("small/mounted"));
        fs::create_dir(&folder).unwrap();
        let disk = fs::read(&path).unwrap();
        let inodes = usize::try_from(u32::from_le_bytes(disk[4096 + 8..4096 + 12].try_into().unwrap())).unwrap() * 4096;
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let can_mount = || {
            let mount = testing::program("mount").args(["-t", "ext4", "-o", "loop,ro,noload"]).args([&path, &folder]).output();
            let mounted = mount.unwrap().status.success();
            let is_whole =
                mounted && fs::read(folder.join("oci-layout")).is_ok() && fs::read_dir(folder.join("blobs/sha256")).is_ok();
            if mounted {
                succeed(testing::program("umount").arg(&folder));
            }
            is_whole
        };
        let open = || Disk::open(&path, &Interrupt::default())?.tree.open("oci-layout").map(drop).map_err(DiskError::Read);
        assert!(open().is_ok() && can_mount());
        let mut refused = BTreeMap::new();
        for at in (1024..1024 + 0x180).chain(4096..4096 + 64).chain(inodes + 256..inodes + 256 + 0x84) {
            for turned in [0xff, 1] {
                file.write_all_at(&[disk[at] ^ turned], at as u64).unwrap();
                match open() {
                    Ok(()) => assert!(can_mount(), "{at:#x} ^ {turned:#x}"),
                    Err(error) => _ = refused.insert(error.source().map(ToString::to_string), (at, turned)),
                }
                file.write_all_at(&disk[at..=at], at as u64).unwrap();
            }
        }
        let beyond = refused.keys().flatten().filter(|cause| cause.starts_with("Linux cannot mount it: ")).count();
        assert!(beyond >= 15, "{refused:#?}");
        let again = "its ext4 file system cannot be read; copy or pack the disk again: Linux cannot mount it";
        for (at, turned, fault) in
            [(1024, 1, "its number of inodes is wrong"), (4096, 0xff, "a group's block bitmap is outside of it")]
        {
            file.write_all_at(&[disk[at] ^ turned], at as u64).unwrap();
            let said = bench.command(&["-q", "inspect", "small/disk", "--verify"]).output().unwrap();
            let message = format!("localregistry: cannot inspect small/disk: {again}: {fault}\n");
            assert_eq!((said.status.code(), text(&said.stderr), can_mount()), (Some(1), message, false));
            file.write_all_at(&disk[at..=at], at as u64).unwrap();
        }
    });
}
