//! Runs `localregistry run` in a folder with just enough to get as far as QEMU, and checks that a failure leaves no file and no
//! process.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::process::{Command, Output};

use nix::unistd::geteuid;

use crate::child::assert_no_process_in;
use crate::pack::{Bench, PROGRAM, empty_disk, text};

/// Arguments of a boot.
const BOOT: [&str; 5] = ["run", "--accel", "tcg", "--initramfs", "initramfs"];

/// The id of an unprivileged user.
const NOBODY: u32 = 65534;

/// A folder with a disk, a kernel and an initramfs that pass the checks before QEMU starts.
pub fn folder() -> Bench {
    let bench = Bench::default();
    for name in ["kernel", "initramfs"] {
        bench.file(name, b"not really");
    }
    bench.file("disk", &empty_disk());
    for (runtime, owner) in [("runtime", 0), ("theirs", NOBODY)] {
        // The folder of all runs is created once and stays.
        let runs = bench.path(runtime).join("localregistry");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&runs).unwrap();
        // An ordinary user cannot and need not have another user's folder.
        if geteuid().is_root() {
            chown(bench.path(runtime), Some(owner), None).unwrap();
            chown(runs, Some(owner), None).unwrap();
        }
    }
    bench
}

/// `localregistry run ARGUMENTS`, which must leave no file and no process.
pub fn run(bench: &Bench, arguments: &[&str]) -> Output {
    let mut command = bench.command(&[&["run"], arguments].concat());
    nothing_left(bench, command.env("XDG_RUNTIME_DIR", bench.path("runtime")))
}

/// `localregistry run ARGUMENTS` in the folder with its initramfs and, by default, its kernel.
pub fn command(bench: &Bench, arguments: &[&str]) -> Command {
    bench.command(&[&BOOT, kernel(arguments), arguments].concat())
}

/// Boots with the folder's initramfs and, by default, its kernel. Returns exit status and standard error.
pub fn boot(bench: &Bench, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = command(bench, arguments);
    said(&nothing_left(bench, command.env("XDG_RUNTIME_DIR", bench.path("runtime"))))
}

/// Like [`boot`], as an unprivileged user with this runtime folder. That user owns the folder `theirs`.
pub fn as_nobody(bench: &Bench, runtime: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = nobody(bench);
    command.args(BOOT).args(kernel(arguments)).args(arguments).env("XDG_RUNTIME_DIR", bench.path(runtime));
    said(&nothing_left(bench, &mut command))
}

/// `localregistry` in the folder, as an unprivileged user.
pub fn nobody(bench: &Bench) -> Command {
    // Other users cannot read root's files, so the program is copied.
    let program = bench.path("localregistry");
    if !program.exists() {
        fs::copy(PROGRAM, &program).unwrap();
        fs::set_permissions(bench.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    }
    if !geteuid().is_root() {
        let mut command = crate::program(program);
        command.current_dir(bench.path(""));
        return command;
    }
    let mut command = crate::program("setpriv");
    let user = NOBODY.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]).arg(&program).current_dir(bench.path(""));
    command
}

fn kernel(arguments: &[&str]) -> &'static [&'static str] {
    if arguments.contains(&"--kernel") { &[] } else { &["--kernel", "kernel"] }
}

fn nothing_left(bench: &Bench, command: &mut Command) -> Output {
    let before = bench.everything();
    let output = command.output().unwrap();
    assert!(bench.everything() == before, "{command:?}: {output:?}");
    assert_no_process_in(&bench.path(""));
    output
}

fn said(output: &Output) -> (Option<i32>, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), text(&output.stderr))
}
