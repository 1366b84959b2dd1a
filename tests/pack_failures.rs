//! `localregistry pack` where the sources are good and something else is not: the disk's path, the space for it, `mkfs.erofs`, a
//! signal, the command line. Each leaves everything as it was.
#![cfg(feature = "host")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use common::pack::{Bench, PROGRAM, blob, hello, text};

#[test]
fn disks_that_cannot_be_written() {
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

/// Runs `pack layout -o disk.erofs` by a shell, after `before`, and gives its status and what it said.
fn by_shell(bench: &Bench, before: &str) -> (Option<i32>, String) {
    let script = format!("{before}; exec {PROGRAM} --quiet pack layout -o disk.erofs");
    let output = Command::new("sh").args(["-c", &script]).current_dir(bench.path("")).output().unwrap();
    (output.status.code(), text(&output.stderr))
}

#[test]
fn no_space() {
    // A limit on the size of files stands for a full file system: writing fails with another error at the same places.
    let (bench, _, _) = hello(&[7; 9000]);
    let before = bench.everything();
    assert_eq!(
        by_shell(&bench, "trap '' XFSZ; ulimit -f 16"),
        (
            Some(1),
            format!(
                "localregistry: cannot write {} into the working folder beside disk.erofs: File too large (os error 27)\n",
                blob(&[7; 9000])
            )
        )
    );
    assert_eq!(bench.everything(), before);
    // Enough for every blob, and not for the disk.
    let (status, said) = by_shell(&bench, "trap '' XFSZ; ulimit -f 20");
    assert_eq!(status, Some(1));
    assert!(said.starts_with("localregistry: cannot make disk.erofs: mkfs.erofs failed (exit status: 1): "), "{said}");
    assert!(said.contains("was truncated"), "{said}");
    assert_eq!(bench.everything(), before);
}

#[test]
fn no_mkfs() {
    let (bench, _, _) = hello(b"a layer");
    let before = bench.everything();
    let output = bench.command(&["-q", "pack", "layout", "-o", "disk.erofs"]).env("PATH", "/nowhere").output().unwrap();
    assert_eq!(
        text(&output.stderr),
        "localregistry: cannot make disk.erofs: the program mkfs.erofs is not on this machine: install Debian's package \
         erofs-utils (`apt-get install erofs-utils`)\n"
    );
    assert_eq!((output.status.code(), bench.everything()), (Some(1), before));
}

#[test]
fn signals_leave_nothing_behind() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let (bench, _, _) = hello(b"a layer");
        fs::create_dir(bench.path("bin")).unwrap();
        // The signal comes while the file system is made, which then would take for ever.
        let script = format!("#!/bin/sh\necho part >\"$8\"\nkill -{signal} $PPID\nexec sleep 1000\n");
        let mkfs = bench.file("bin/mkfs.erofs", script.as_bytes());
        fs::set_permissions(mkfs, fs::Permissions::from_mode(0o755)).unwrap();
        bench.file("disk.erofs", b"the old disk");
        let before = bench.everything();
        let path = format!("{}:/usr/bin:/bin", bench.path("bin").display());
        let output = bench.command(&["-q", "pack", "layout", "-o", "disk.erofs"]).env("PATH", path).output().unwrap();
        assert_eq!(text(&output.stderr), format!("localregistry: disk.erofs is not written: interrupted by SIG{signal}\n"));
        assert_eq!((output.status.code(), bench.everything()), (Some(code), before));
    }
}

#[test]
fn signals_one_after_the_other_leave_nothing_behind_either() {
    let (bench, _, _) = hello(b"a layer");
    fs::create_dir(bench.path("bin")).unwrap();
    let script = "#!/bin/sh\nkill -INT $PPID; kill -TERM $PPID; kill -HUP $PPID; kill -INT $PPID\nexec sleep 1000\n";
    let mkfs = bench.file("bin/mkfs.erofs", script.as_bytes());
    fs::set_permissions(mkfs, fs::Permissions::from_mode(0o755)).unwrap();
    let before = bench.everything();
    let path = format!("{}:/usr/bin:/bin", bench.path("bin").display());
    let output = bench.command(&["-q", "pack", "layout", "-o", "disk.erofs"]).env("PATH", path).output().unwrap();
    // They may be taken in any order: the first one taken counts.
    assert!(matches!(output.status.code(), Some(129 | 130 | 143)), "{}", text(&output.stderr));
    assert_eq!(bench.everything(), before);
}

#[test]
fn what_a_killed_pack_left_is_removed_by_the_next_one() {
    let (bench, _, _) = hello(b"a layer");
    fs::create_dir(bench.path("bin")).unwrap();
    let mkfs = bench.file("bin/mkfs.erofs", b"#!/bin/sh\nkill -KILL $PPID\n");
    fs::set_permissions(mkfs, fs::Permissions::from_mode(0o755)).unwrap();
    let before = bench.everything();
    let path = format!("{}:/usr/bin:/bin", bench.path("bin").display());
    let output = bench.command(&["-q", "pack", "layout", "-o", "disk.erofs"]).env("PATH", path).output().unwrap();
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
