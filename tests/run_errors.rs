//! `localregistry run` with bad flags (exit 2) and bad files (exit 1): each one message, and nothing started.

#![cfg(feature = "host")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A folder with a disk, a kernel and an initramfs that are good enough to get as far as QEMU.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["disk", "kernel", "initramfs"] {
        fs::write(folder.path().join(name), "not really").unwrap();
    }
    folder
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_localregistry"));
    command.current_dir(folder).arg("run").args(arguments);
    command.output().unwrap()
}

/// Runs with the folder's kernel and initramfs, and gives exit status and standard error.
fn boot(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let kernel: &[&str] = if arguments.contains(&"--kernel") { &[] } else { &["--kernel", "kernel"] };
    let given = [&["--accel", "tcg", "--initramfs", "initramfs"], kernel, arguments].concat();
    let output = run(folder, &given);
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn bad_flags_exit_2() {
    let folder = folder();
    for (arguments, message) in [
        (&[][..], "the following required arguments were not provided:\n  <DISK>"),
        (&["disk", "--memory", "64"], "invalid value '64' for '--memory <MIB>': 64 is not in 80..=1048576"),
        (&["disk", "--cpus", "0"], "invalid value '0' for '--cpus <N>': 0 is not in 1..=255"),
        (&["disk", "--timeout", "0"], "invalid value '0' for '--timeout <SECONDS>': 0 is not in 1..=86400"),
        (&["disk", "--accel", "xen"], "invalid value 'xen' for '--accel <WHICH>'\n  [possible values: auto, kvm, tcg]"),
        (&["disk", "--tls", "on"], "invalid value 'on' for '--tls <MODE>'\n  [possible values: generate, provided, off]"),
        (
            &["disk", "--publish", "127.0.0.1"],
            "invalid value '127.0.0.1' for '--publish <[ADDR:]PORT>': PORT is a number from 0 to 65535",
        ),
        (
            &["disk", "--publish", "[::1]:5000"],
            "invalid value '[::1]:5000' for '--publish <[ADDR:]PORT>': QEMU's user network forwards from IPv4 addresses only: give \
             one, such as 127.0.0.1",
        ),
        (
            &["disk", "--publish", "host:5000"],
            "invalid value 'host:5000' for '--publish <[ADDR:]PORT>': ADDR is an IPv4 address of this machine, such as 127.0.0.1 \
             or 0.0.0.0",
        ),
        (
            &["disk", "--set", "tls.mod=OFF"],
            "invalid value 'tls.mod=OFF' for '--set <KEY=VALUE>': tls.mod cannot be set to \"OFF\": unknown field `mod`, expected \
             `mode`",
        ),
        (
            &["disk", "--kernel", "kernel"],
            "the following required arguments were not provided:\n  <--modules <DIR>|--initramfs <FILE>>",
        ),
        (&["disk", "--modules", "dir"], "the following required arguments were not provided:\n  --kernel <FILE>"),
        (
            &["disk", "--kernel", "kernel", "--initramfs", "initramfs", "--flavor", "own"],
            "the argument '--kernel <FILE>' cannot be used with '--flavor <WHICH>'",
        ),
        (&["disk", "--flavor", "tiny"], "invalid value 'tiny' for '--flavor <WHICH>'\n  [possible values: cloud, full, own]"),
        (&["disk", "--machine", "pc"], "invalid value 'pc' for '--machine <WHICH>'\n  [possible values: q35, microvm, virt]"),
        (
            &["disk", "--machine", "virt"],
            "the argument '--machine virt' needs '--kernel <FILE>' and '--initramfs <FILE>': there is no flavor for 64-bit ARM",
        ),
        (&["disk", "--tls", "provided"], "the following required arguments were not provided:\n  --cert <FILE>\n  --key <FILE>"),
        (&["disk", "--cert", "a"], "the following required arguments were not provided:\n  --key <FILE>"),
        (
            &["disk", "--tls", "off", "--cert", "a", "--key", "b"],
            "the arguments '--cert <FILE>' and '--key <FILE>' need '--tls provided': nothing else serves with them",
        ),
        (&["disk", "more"], "unexpected argument 'more' found"),
    ] {
        let output = run(folder.path(), arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with(&format!("error: {message}\n")), "{arguments:?}: {stderr}");
    }
}

#[test]
fn bad_files_exit_1() {
    let folder = folder();
    fs::create_dir(folder.path().join("dir")).unwrap();
    fs::write(folder.path().join("empty"), "").unwrap();
    fs::write(folder.path().join("bad.json"), "{\n \"prot\": 1}").unwrap();
    for (arguments, message) in [
        (&["no-disk"][..], "cannot read the disk no-disk: No such file or directory (os error 2)"),
        (&["dir"], "the disk dir is a directory, expected a file"),
        (&["empty"], "the disk empty is empty"),
        (&["/dev/null"], "the disk /dev/null is a special file, expected a file"),
        (&["disk", "--kernel", "no-kernel"], "cannot read the kernel no-kernel: No such file or directory (os error 2)"),
        (&["disk", "--kernel", "empty"], "the kernel empty is empty"),
        (&["disk", "--initramfs", "dir"], "the initramfs dir is a directory, expected a file"),
        (
            &["disk", "--tls", "provided", "--cert", "kernel", "--key", "no-key"],
            "cannot read the key no-key: No such file or directory (os error 2)",
        ),
        (&["disk", "--config", "no.json"], "cannot read the config no.json: No such file or directory (os error 2)"),
        (
            &["disk", "--config", "bad.json"],
            "the config bad.json cannot be used: it is not a config of the appliance (proto3 JSON of localregistry.v1.Config): \
             unknown field `prot`, expected one of `hostname`, `names`, `port`, `tls`, `interfaces`, `disk`, `clock`, `trace`, \
             `auth`, `metrics_port`, `metricsPort` at line 2 column 7",
        ),
        (
            &["disk", "--htpasswd", "no-users"],
            "cannot let anybody in: cannot read no-users: No such file or directory (os error 2)",
        ),
        (&["disk", "--htpasswd", "disk"], "cannot let anybody in: disk:1: there is no colon; expected USER:HASH"),
        (
            &["disk", "--client-ca", "disk"],
            "cannot let anybody in: disk cannot be used: the given client CA is not PEM with one or more CERTIFICATE blocks",
        ),
        (&["disk", "--events", "no/events"], "cannot create no/events for the events: No such file or directory (os error 2)"),
        (&["disk", "--console", "dir"], "cannot create dir for the console: Is a directory (os error 21)"),
        (
            &["disk", "--qemu", "no-such-qemu"],
            "no-such-qemu is not installed (on Debian and Ubuntu: apt-get install qemu-system-x86)",
        ),
        (
            &["disk", "--machine", "virt", "--qemu", "no-such-qemu"],
            "no-such-qemu is not installed (on Debian and Ubuntu: apt-get install qemu-system-arm)",
        ),
        (&["disk", "--qemu", "./disk"], "cannot start ./disk: Permission denied (os error 13)"),
    ] {
        let mut given = vec!["--accel", "tcg"];
        for (flag, file) in [("--kernel", "kernel"), ("--initramfs", "initramfs")] {
            if !arguments.contains(&flag) {
                given.extend([flag, file]);
            }
        }
        given.extend(arguments);
        let output = run(folder.path(), &given);
        assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("localregistry: {message}\n"));
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_disk_without_read_permission_is_named() {
    let folder = folder();
    let disk = folder.path().join("disk");
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o0)).unwrap();
    // Root reads everything; then it is QEMU that refuses what is no kernel.
    let message = match fs::File::open(&disk) {
        Ok(_) => "localregistry: QEMU exited with status 1 before it started the machine: ",
        Err(_) => "localregistry: cannot read the disk disk: Permission denied (os error 13)\n",
    };
    let (status, stderr) = boot(folder.path(), &["disk"]);
    assert!(stderr.starts_with(message), "{stderr}");
    assert_eq!(status, Some(1));
}

#[test]
fn a_kernel_without_what_the_guest_needs_is_refused() {
    let folder = folder();
    let file = |name: &str, content: &str| fs::write(folder.path().join(name), content).unwrap();
    file("vmlinuz-1", "not really");
    let names = "BLK_DEV_INITRD BINFMT_ELF PRINTK TTY DEVTMPFS PROC_FS SYSFS TMPFS EPOLL EVENTFD FUTEX UNIX NET INET PACKET \
                 VIRTIO_BLK VIRTIO_NET VIRTIO_CONSOLE FW_CFG_SYSFS EROFS_FS SERIAL_8250_CONSOLE ACPI VIRTIO_PCI VIRTIO_MMIO 64BIT";
    let config = |without: &[&str]| {
        let names = names.split_whitespace().filter(|name| !without.contains(name));
        names.map(|name| format!("CONFIG_{name}=y\n")).collect::<String>()
    };
    for (machine, without, missing) in [
        (
            "q35",
            &["EROFS_FS", "VIRTIO_PCI", "VIRTIO_MMIO"][..],
            "CONFIG_EROFS_FS (the disk's file system), CONFIG_VIRTIO_PCI (the virtio devices on PCI)",
        ),
        ("microvm", &["VIRTIO_PCI", "VIRTIO_MMIO"], "CONFIG_VIRTIO_MMIO (the virtio devices of a microvm)"),
    ] {
        file("config-1", &config(without));
        let (status, stderr) = boot(folder.path(), &["disk", "--machine", machine, "--kernel", "vmlinuz-1"]);
        let message = format!(
            "localregistry: the kernel vmlinuz-1 cannot run the guest on {machine}: by its config it lacks {missing}; boot one that \
             has it (`localregistry doctor` checks one)\n"
        );
        assert_eq!((status, stderr), (Some(1), message));
    }
    // With all of it, or where nothing is known, QEMU has the word.
    for config in [config(&[]), "no config".to_owned()] {
        file("config-1", &config);
        let (status, stderr) = boot(folder.path(), &["disk", "--kernel", "vmlinuz-1"]);
        assert!(stderr.starts_with("localregistry: QEMU exited with status 1 before it started the machine: "), "{stderr}");
        assert_eq!(status, Some(1));
    }
}

#[test]
fn our_own_kernel_has_to_be_built() {
    let folder = folder();
    let mut command = Command::new(env!("CARGO_BIN_EXE_localregistry"));
    command
        .current_dir(folder.path())
        .args(["run", "disk", "--flavor", "own"])
        .env("LOCALREGISTRY_CACHE", folder.path().join("cache"));
    let output = command.output().unwrap();
    let digest = localregistry::oci::Digest::sha256_of(include_bytes!("../image/kernel.config")).hex();
    let message = format!(
        "localregistry: there is no kernel to boot: there is no kernel of our own in {}/cache/kernel/own that is built from this \
         version's config ({}): build it with image/kernel (about ten minutes of one processor), or take --flavor cloud\n",
        folder.path().display(),
        &digest[..12]
    );
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(1), message));
}

#[test]
fn a_taken_port_is_named() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (status, stderr) = boot(folder.path(), &["disk", "--publish", &port]);
    let message = format!(
        "localregistry: cannot listen on 127.0.0.1:{port} (--publish takes another; with port 0 a free one is taken): Address \
         already in use (os error 98)\n"
    );
    assert_eq!((status, stderr), (Some(1), message));
}

#[test]
fn a_file_that_is_no_kernel_gives_qemu_s_words() {
    let folder = folder();
    let (status, stderr) = boot(folder.path(), &["disk"]);
    // The words after it are QEMU's, and differ between its versions.
    let message = "localregistry: QEMU exited with status 1 before it started the machine: qemu";
    assert!(stderr.starts_with(message), "{stderr}");
    assert_eq!(status, Some(1));
}

#[test]
fn serve_refuses_flags_that_it_would_not_use() {
    let folder = folder();
    for (arguments, message) in [
        (
            &["--cert", "a", "--key", "b"][..],
            "the arguments '--cert <FILE>' and '--key <FILE>' need '--tls provided': nothing else serves with them",
        ),
        (
            &["--tls", "off", "--ca", "ca"],
            "the argument '--ca <FILE>' cannot be used with '--tls off': without TLS there is no CA",
        ),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_localregistry"));
        let output = command.current_dir(folder.path()).args(["serve", "."]).args(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with(&format!("error: {message}\n")), "{arguments:?}: {stderr}");
    }
}
