//! Ends of `localregistry run` without the project's guest: real QEMU and a real kernel. Each test also checks that no QEMU is
//! left.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use localregistry::host::boot::board::Board;
use localregistry::host::boot::kernel;
use localregistry::host::support::report::Report;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use testing::child::wait_until_gone;
use testing::pack::empty_disk;
use testing::wait::eventually;

/// A folder with an unused disk, and an initramfs without an init, on which the kernel panics.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("disk"), empty_disk()).unwrap();
    fs::create_dir(folder.path().join("runtime")).unwrap();
    // Only the end of an archive, without any file.
    let mut archive = b"070701".to_vec();
    for field in [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 11, 0] {
        archive.extend(format!("{field:08x}").into_bytes());
    }
    archive.extend(b"TRAILER!!!\0\0\0\0");
    fs::write(folder.path().join("initramfs"), archive).unwrap();
    folder
}

/// Starts `localregistry run` on the folder's files.
fn start(folder: &Path, arguments: &[&str]) -> Child {
    let report = Report { json: false, quiet: true };
    let kernel: PathBuf = kernel::cached_or_download(kernel::Flavor::Cloud, Board::Q35, &report).unwrap().elf;
    let mut command = testing::program(testing::pack::PROGRAM);
    command.current_dir(folder).args(["run", "disk", "--accel", "tcg", "--initramfs", "initramfs", "--kernel"]).arg(kernel);
    command.env("XDG_RUNTIME_DIR", folder.join("runtime"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for `run`, and returns its exit status, standard output and standard error.
fn end(run: Child) -> (Option<i32>, String, String) {
    let output = run.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The process id of the QEMU that `run` starts.
fn qemu_of(run: &Child) -> Pid {
    eventually(|| {
        for task in fs::read_dir(format!("/proc/{}/task", run.id())).unwrap().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace() {
                let arguments = fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
                // Not the QEMU that prints its version.
                if arguments.starts_with("qemu-system") && arguments.contains("\0-machine\0") {
                    return Ok(Pid::from_raw(child.parse().unwrap()));
                }
            }
        }
        Err("QEMU was not started")
    })
}

/// The existing folders of runs.
fn runs(folder: &Path) -> usize {
    fs::read_dir(folder.join("runtime/localregistry")).unwrap().count()
}

#[test]
fn kernel_panic_exits_4_and_shows_its_line() {
    let folder = folder();
    let run = start(folder.path(), &["--console", "console"]);
    let qemu = qemu_of(&run);
    let (status, stdout, stderr) = end(run);
    let message = "localregistry: the guest's kernel panicked: Kernel panic - not syncing: VFS: Unable to mount root fs on \
                   unknown-block(0,0)\nthe console's last lines:\n";
    assert!(stderr.starts_with(message), "{stderr}");
    assert!(stderr.contains("] Kernel panic - not syncing: VFS"), "the console's line with its time: {stderr}");
    assert_eq!((status, stdout.as_str()), (Some(4), ""));
    wait_until_gone(qemu);
    let console = fs::read_to_string(folder.path().join("console")).unwrap();
    assert!(console.contains("Kernel panic - not syncing: VFS"));
    assert!(!folder.path().join("ca.crt").exists());
}

#[test]
fn boot_timeout_exits_5() {
    let folder = folder();
    let run = start(folder.path(), &["--timeout", "1"]);
    let qemu = qemu_of(&run);
    // A suspended machine never becomes ready, however fast the host is.
    kill(qemu, Signal::SIGSTOP).unwrap();
    let (status, stdout, stderr) = end(run);
    let message = "localregistry: the registry was not ready within 1 s; QEMU was killed; allow more time with --timeout\n";
    assert!(stderr.starts_with(message), "{stderr}");
    assert_eq!((status, stdout.as_str()), (Some(5), ""));
    wait_until_gone(qemu);
}

#[test]
fn killed_qemu_exits_6_and_names_the_signal() {
    for (signal, message) in
        [(Signal::SIGKILL, "was killed by SIGKILL before"), (Signal::SIGABRT, "was killed by SIGABRT before")]
    {
        let folder = folder();
        let run = start(folder.path(), &["--events", "events"]);
        let qemu = qemu_of(&run);
        kill(qemu, signal).unwrap();
        let (status, stdout, stderr) = end(run);
        assert!(stderr.contains(message), "{stderr}");
        assert_eq!((status, stdout.as_str()), (Some(6), ""));
        wait_until_gone(qemu);
    }
}

#[test]
fn signal_before_ready_kills_qemu_and_exits_6() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let folder = folder();
        let run = start(folder.path(), &["--ready-file", "ready", "--pid-file", "pid"]);
        let qemu = qemu_of(&run);
        kill(Pid::from_raw(run.id().try_into().unwrap()), signal).unwrap();
        let (status, stdout, stderr) = end(run);
        assert_eq!(stderr, format!("localregistry: stopped by {signal} before the registry was ready; QEMU was killed\n"));
        assert_eq!((status, stdout.as_str()), (Some(6), ""));
        wait_until_gone(qemu);
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["disk", "initramfs", "runtime"]);
        assert_eq!(runs(folder.path()), 0);
    }
}

#[test]
fn killed_launcher_takes_qemu_with_it() {
    let folder = folder();
    let mut run = start(folder.path(), &[]);
    let qemu = qemu_of(&run);
    run.kill().unwrap();
    run.wait().unwrap();
    wait_until_gone(qemu);
    // A killed launcher removes nothing. The next one does.
    assert_eq!(runs(folder.path()), 1);
    let next = start(folder.path(), &["--timeout", "1"]);
    kill(qemu_of(&next), Signal::SIGSTOP).unwrap();
    assert_eq!(end(next).0, Some(5));
    assert_eq!(runs(folder.path()), 0);
    let mut stderr = String::new();
    run.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "");
}
