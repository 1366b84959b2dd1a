//! `localregistry pack` with good sources and other faults: the output path, free space, the file system's program, signals, flags.
//! Each failure leaves all files unchanged.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use localregistry::oci::Digest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testing::pack::{Bench, PROGRAM, blob, hello, text};
use testing::private::{on_tmpfs, read_only};

#[test]
fn unwritable_disk_paths_are_refused() {
    let (bench, _, _) = hello(&[7; 5000]);
    fs::create_dir(bench.path("folder")).unwrap();
    bench.file("file", b"");
    let before = bench.everything();
    for (disk, message) in [
        ("missing/disk", "cannot write missing/disk: its folder missing: No such file or directory (os error 2)"),
        ("file/disk", "cannot write file/disk: Not a directory (os error 20)"),
        ("folder", "cannot write folder: it is there already and not a regular file"),
        ("/dev/null", "cannot write /dev/null: it is there already and not a regular file"),
    ] {
        let output = bench.command(&["-q", "pack", "layout", "-o", disk]).output().unwrap();
        assert_eq!(text(&output.stderr), format!("localregistry: {message}\n"));
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(bench.everything(), before);
    }
    bench.file("disk.erofs", b"the old disk");
    let output = bench.command(&["-q", "pack", "disk.erofs", "-o", "disk.erofs"]).output().unwrap();
    assert_eq!(text(&output.stderr), "localregistry: cannot write disk.erofs: it is the source disk.erofs as well\n");
}

#[test]
fn full_file_system_is_reported() {
    let (bench, _, _) = hello(&[7; 900_000]);
    fs::create_dir(bench.path("small")).unwrap();
    on_tmpfs(&bench.path("small"), "size=800k", || {
        let before = bench.everything();
        let said = |format: &str| {
            let output = bench.command(&["-q", "pack", "layout", "--fs", format, "-o", "small/disk"]).output().unwrap();
            assert_eq!((output.status.code(), bench.everything() == before), (Some(1), true));
            text(&output.stderr)
        };
        assert_eq!(
            said("erofs"),
            "localregistry: cannot make small/disk: it takes 888.00 KiB, and its file system has 800.00 KiB free\n"
        );
        let staged = format!(
            "localregistry: cannot write {} into the working folder beside small/disk: No space left on device (os error 28)\n",
            blob(&[7; 900_000])
        );
        assert_eq!(said("squashfs"), staged);
        assert_eq!(said("ext4"), staged);
    });
    // Enough for every blob, but not for the file system.
    on_tmpfs(&bench.path("small"), "size=1200k", || {
        let before = bench.everything();
        for (format, program) in [("squashfs", "mksquashfs"), ("ext4", "mke2fs")] {
            let output = bench.command(&["-q", "pack", "layout", "--fs", format, "-o", "small/disk"]).output().unwrap();
            let said = text(&output.stderr);
            let start = format!("localregistry: cannot make small/disk: {program} had no space left: it takes ");
            assert!(said.starts_with(&start) && said.ends_with(" free\n"), "{said}");
            assert_eq!((output.status.code(), bench.everything() == before), (Some(1), true));
        }
    });
}

#[test]
fn file_size_limit_is_reported() {
    let (bench, _, _) = hello(&[7; 9000]);
    let before = bench.everything();
    let script = format!("trap '' XFSZ; ulimit -f 16; exec '{PROGRAM}' --quiet pack layout -o disk.erofs");
    let output = testing::program("sh").args(["-c", &script]).current_dir(bench.path("")).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(said, "localregistry: cannot make disk.erofs: File too large (os error 27)\n");
    assert_eq!((output.status.code(), bench.everything()), (Some(1), before));
}

#[test]
fn read_only_folder_is_reported() {
    let (bench, _, _) = hello(b"a layer");
    fs::create_dir(bench.path("small")).unwrap();
    on_tmpfs(&bench.path("small"), "size=800k", || {
        fs::write(bench.path("small/disk"), "the old disk").unwrap();
        read_only(&bench.path("small"));
        let before = bench.everything();
        for format in ["erofs", "squashfs", "ext4"] {
            let output = bench.command(&["-q", "pack", "layout", "--fs", format, "-o", "small/disk"]).output().unwrap();
            let said = text(&output.stderr);
            let message = "cannot make a working folder in ";
            assert!(said.starts_with(&format!("localregistry: {message}")) && said.contains("Read-only file system"), "{said}");
            assert_eq!((output.status.code(), bench.everything() == before), (Some(1), true));
        }
    });
}

/// A substitute for `mksquashfs`, and a `PATH` that finds it.
fn in_place_of_mksquashfs(bench: &Bench, script: &str) -> String {
    fs::create_dir(bench.path("bin")).unwrap();
    let program = bench.file("bin/mksquashfs", script.as_bytes());
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:/usr/bin:/bin", bench.path("bin").display())
}

const PACK: [&str; 7] = ["-q", "pack", "layout", "-o", "disk.erofs", "--fs", "squashfs"];

#[test]
fn missing_mksquashfs_is_reported() {
    let (bench, _, _) = hello(b"a layer");
    let before = bench.everything();
    let output = bench.command(&PACK).env("PATH", "/nowhere").output().unwrap();
    assert_eq!(
        text(&output.stderr),
        "localregistry: cannot make disk.erofs: the program mksquashfs is not on this machine: install Debian's package \
         squashfs-tools (`apt-get install squashfs-tools`)\n"
    );
    assert_eq!((output.status.code(), bench.everything()), (Some(1), before));
    let erofs = bench.command(&["-q", "pack", "layout", "-o", "disk.erofs"]).env("PATH", "/nowhere").output().unwrap();
    assert!(erofs.status.success(), "the default needs no program");
}

#[test]
fn output_of_a_failing_mksquashfs_is_shown() {
    let (bench, _, _) = hello(b"a layer");
    let path = in_place_of_mksquashfs(&bench, "#!/bin/sh\necho part >\"$2\"\necho some reason >&2\nexit 3\n");
    let before = bench.everything();
    let output = bench.command(&PACK).env("PATH", path).output().unwrap();
    assert_eq!(text(&output.stderr), "localregistry: cannot make disk.erofs: mksquashfs failed (exit status: 3): some reason\n");
    assert_eq!((output.status.code(), bench.everything()), (Some(1), before));
}

#[test]
fn signal_while_blobs_are_copied_leaves_no_files() {
    let (bench, layout, _) = hello(b"a layer");
    // Long enough to be interrupted on any machine.
    grow(&layout, 8 << 30);
    bench.file("disk.erofs", b"the old disk");
    let names = || {
        let names = fs::read_dir(bench.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<BTreeSet<_>>()
    };
    let before = names();
    let mut pack = bench.command(&["-q", "pack", "layout", "-o", "disk.erofs"]).spawn().unwrap();
    while names() == before {
        assert!(pack.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    kill(Pid::from_raw(i32::try_from(pack.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(pack.wait().unwrap().code(), Some(130));
    assert_eq!(names(), before);
    assert_eq!(fs::read(bench.path("disk.erofs")).unwrap(), b"the old disk");
}

/// Makes the layer of [`hello`] a file of `size` bytes, whose wrong content shows only at its end. Most of it is holes; as much is stored
/// as `pack` wants of a sparse file.
fn grow(layout: &Path, size: u64) {
    let mut file = fs::File::options().append(true).open(layout.join(blob(b"a layer"))).unwrap();
    std::io::copy(&mut std::io::repeat(7).take(size / 100), &mut file).unwrap();
    file.set_len(size).unwrap();
    rewrite(layout, &format!("\"size\":{}}}", b"a layer".len()), &format!("\"size\":{size}}}"));
}

#[test]
fn progress_bar_is_shown_only_on_a_terminal() {
    let (bench, layout, _) = hello(b"a layer");
    grow(&layout, 2 << 30);
    // `script` runs a command on a terminal.
    let on_terminal = |quiet: &str| {
        let command = format!("'{PROGRAM}' {quiet} pack layout -o disk.erofs");
        let script =
            testing::program("script").args(["-qec", &command, "/dev/null"]).current_dir(bench.path("")).output().unwrap();
        assert_eq!(script.status.code(), Some(1));
        text(&script.stdout)
    };
    let said = on_terminal("");
    assert!(said.contains("packing [") && said.contains("2.00 GiB") && said.contains(" has the content of "), "{said}");
    let said = on_terminal("--quiet");
    assert!(!said.contains("packing") && said.contains(" has the content of "), "{said}");
    let output = bench.command(&["pack", "layout", "-o", "disk.erofs"]).output().unwrap();
    let said = text(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["reading layout", "copying and verifying 3 blobs, 2.00 GiB"]);
    assert_eq!(lines.len(), 3, "{said}");
}

/// Changes the only manifest of a layout and its references.
fn rewrite(layout: &Path, from: &str, to: &str) {
    let index_path = layout.join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&index_path).unwrap()).unwrap();
    let old: Digest = index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
    let manifest = fs::read_to_string(layout.join(old.blob_path())).unwrap().replace(from, to);
    let new = Digest::sha256_of(manifest.as_bytes());
    fs::write(layout.join(new.blob_path()), &manifest).unwrap();
    index["manifests"][0]["digest"] = new.to_string().into();
    index["manifests"][0]["size"] = manifest.len().into();
    fs::write(index_path, index.to_string()).unwrap();
}

#[test]
fn signals_leave_no_files() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let (bench, _, _) = hello(b"a layer");
        // The signal comes while the file system is written by a program that never ends.
        let script = format!("#!/bin/sh\necho part >\"$2\"\nkill -{signal} $PPID\nexec sleep 1000\n");
        let path = in_place_of_mksquashfs(&bench, &script);
        bench.file("disk.erofs", b"the old disk");
        let before = bench.everything();
        let output = bench.command(&PACK).env("PATH", path).output().unwrap();
        assert_eq!(text(&output.stderr), format!("localregistry: disk.erofs is not written: interrupted by SIG{signal}\n"));
        assert_eq!((output.status.code(), bench.everything()), (Some(code), before));
    }
}

#[test]
fn repeated_signals_leave_no_files() {
    let (bench, _, _) = hello(b"a layer");
    let script = "#!/bin/sh\nkill -INT $PPID; kill -TERM $PPID; kill -HUP $PPID; kill -INT $PPID\nexec sleep 1000\n";
    let path = in_place_of_mksquashfs(&bench, script);
    let before = bench.everything();
    let output = bench.command(&PACK).env("PATH", path).output().unwrap();
    // The signals may arrive in any order, and the first one counts.
    assert!(matches!(output.status.code(), Some(129 | 130 | 143)), "{}", text(&output.stderr));
    assert_eq!(bench.everything(), before);
}

#[test]
fn leftovers_of_a_killed_pack_are_removed_by_the_next() {
    let (bench, _, _) = hello(b"a layer");
    let path = in_place_of_mksquashfs(&bench, "#!/bin/sh\nkill -KILL $PPID\n");
    let before = bench.everything();
    let output = bench.command(&PACK).env("PATH", path).output().unwrap();
    assert_eq!(output.status.code(), None, "killed");
    let left = |bench: &Bench| {
        let names = fs::read_dir(bench.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".disk.erofs.pack-")).count()
    };
    assert_eq!(left(&bench), 1);
    bench.pack(&["layout"]);
    assert_eq!(left(&bench), 0);
    fs::remove_file(bench.path("disk.erofs")).unwrap();
    assert_eq!(bench.everything(), before);
}

#[test]
fn bad_flags_exit_2() {
    let bench = Bench::default();
    for (arguments, message) in [
        (&["pack"][..], "error: the following required arguments were not provided:"),
        (&["pack", "x"], "error: the following required arguments were not provided:"),
        (&["pack", "x", "-o", "d", "--nope"], "error: unexpected argument '--nope' found"),
        (&["pack", "x", "-o", "d", "--fs", "xfs"], "error: invalid value 'xfs' for '--fs <FS>'"),
        (
            &["pack", "-o", "d", "--name", "A=x"],
            "error: invalid value 'A=x' for '--name <REF=SOURCE>': \"A\": a repository name has lower-case letters and digits, \
             joined by one of . _ __ - and split by /",
        ),
    ] {
        let output = bench.command(arguments).output().unwrap();
        assert_eq!(text(&output.stderr).lines().next(), Some(message));
        assert_eq!(output.status.code(), Some(2));
    }
}
