//! `localregistry sample`: the image is reproducible, it packs, and no other file is overwritten.

use std::fs;

use serde_json::{Value, json};
use testing::elf::elf;
use testing::pack::{Bench, text};

/// A folder with a static and a dynamically linked program.
fn bench() -> Bench {
    let bench = Bench::default();
    bench.file("static", &elf(&[(1, b"code")]));
    bench.file("dynamic", &elf(&[(3, b"/lib64/ld.so\0")]));
    bench
}

/// Runs a command that must fail with one line, which starts like this, and change no file.
fn refused(bench: &Bench, arguments: &[&str], message: &str) {
    let before = bench.everything();
    let mut command = bench.command(&[&["--quiet"], arguments].concat());
    let output = command.output().unwrap();
    let said = text(&output.stderr);
    assert!(said.starts_with(&format!("localregistry: {message}")) && said.lines().count() == 1, "{arguments:?}: {said}");
    assert_eq!((output.status.code(), bench.everything()), (Some(1), before));
}

#[test]
fn sample_packs_and_is_reproducible() {
    let bench = bench();
    let sample = |folder: &str| {
        let output = bench.command(&["--quiet", "--json", "sample", "-o", folder, "--binary", "static"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let first = sample("sample");
    assert_eq!((&first["layout"], &first["image"]), (&json!("sample"), &json!("test/hello:latest")));
    let content = fs::read(bench.path("sample/index.json")).unwrap();
    assert_eq!(sample("sample"), first);
    assert_eq!(sample("other")["digest"], first["digest"]);
    assert_eq!(fs::read(bench.path("other/index.json")).unwrap(), content);

    bench.pack(&["sample"]);
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    assert_eq!(disk.images(), [("test/hello:latest".to_owned(), first["digest"].as_str().unwrap().to_owned())]);
}

#[test]
fn unusable_programs_are_refused() {
    let bench = bench();
    bench.file("host", &elf(&[(1, b"Pack container images into a disk, boot it as a registry, pull from it.")]));
    bench.file("init", &elf(&[(1, b"localregistry-init: this program only runs as PID 1 of a virtual machine")]));
    let sample = ["sample", "-o", "out", "--binary"];
    let deploy = ["deploy", "disk", "--registry", "reg.test/e2e", "--host", "node.test", "-o", "out", "--server"];
    let initramfs = ["initramfs", "-o", "out", "--init"];
    let missing = "cannot read the program missing: No such file or directory (os error 2)\n";
    refused(&bench, &[&sample[..], &["missing"]].concat(), missing);
    // This project's programs as the tests build them are dynamic, which is what keeps the right one out.
    let [host, init] = [env!("CARGO_BIN_EXE_localregistry"), env!("CARGO_BIN_EXE_localregistry-init")];
    for (command, program, why) in [
        (&sample[..], "dynamic", "the sample image's program: it is not static (it asks for /lib64/ld.so)"),
        (&sample, "host", "the sample image's program: it is localregistry; build the right one with `"),
        (&sample, host, "the sample image's program: it is localregistry; build the right one with `"),
        (&sample, init, "the sample image's program: it is not static ("),
        (&deploy, "init", "the server: it is localregistry-init; build the right one with `"),
        (&deploy, init, "the server: it is localregistry-init; build the right one with `"),
        (&deploy, host, "the server: it is not static ("),
        (&initramfs, host, "the guest's init: it is localregistry; build the right one with `"),
        (&initramfs, init, "the guest's init: it is not static ("),
    ] {
        refused(&bench, &[command, &[program]].concat(), &format!("{program} cannot be {why}"));
    }
}

#[test]
fn folder_with_other_files_is_left_alone() {
    let bench = bench();
    fs::create_dir(bench.path("mine")).unwrap();
    bench.file("mine/file", b"mine");
    refused(
        &bench,
        &["sample", "-o", "mine", "--binary", "static"],
        "mine contains something other than an earlier sample; a new or empty folder is expected\n",
    );
}
