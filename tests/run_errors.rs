//! `localregistry run` with bad flags (exit 2), and with what is missing or cannot be used (exit 1 and 8 to 14): each one message, and
//! nothing started or left.

#![cfg(feature = "host")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use common::pack::superblock;
use common::private::privately;
use common::vm::succeed;
use tempfile::TempDir;

/// A folder with a disk, a kernel and an initramfs that are good enough to get as far as QEMU.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["disk", "kernel", "initramfs"] {
        fs::write(folder.path().join(name), "not really").unwrap();
    }
    fs::write(folder.path().join("disk"), superblock()).unwrap();
    fs::create_dir(folder.path().join("runtime")).unwrap();
    folder
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_localregistry"));
    command.current_dir(folder).env("XDG_RUNTIME_DIR", folder.join("runtime")).arg("run").args(arguments);
    let output = command.output().unwrap();
    let runs = fs::read_dir(folder.join("runtime/localregistry")).into_iter().flatten().count();
    assert_eq!(runs, 0, "the run's folder is gone: {output:?}");
    output
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
        (&["disk", "--san", "a b"], "invalid value 'a b' for '--san <NAME>': expected a DNS name or an IP address"),
        (
            &["disk", "--name", "a/b"],
            "invalid value 'a/b' for '--name <NAME>': expected 1 to 64 letters, digits, dots, hyphens and underscores, a letter or \
             digit first",
        ),
        (
            &["disk", "--net", "tap=a,ip=10.1.0.82/16,gw=10.2.0.1"],
            "invalid value 'tap=a,ip=10.1.0.82/16,gw=10.2.0.1' for '--net <KIND[,…]>': gw=10.2.0.1 is not in the network of \
             ip=10.1.0.82/16",
        ),
        (&["disk", "--net", "user", "--net", "user"], "--net: user is given to two networks; give each its own"),
        (
            &["disk", "--net", "tap=a", "--publish", "5000"],
            "the argument '--publish <[ADDR:]PORT>' needs '--net user': nothing else forwards",
        ),
        (
            &["disk", "--net", "tap=a", "--metrics", "0"],
            "the argument '--metrics <[ADDR:]PORT>' needs '--net user': nothing else forwards; on other networks say the guest's own \
             port, --set metricsPort=PORT",
        ),
        (&["disk", "--follow"], "the argument '--follow' needs '--json'"),
        (&["disk", "--json", "--follow", "--detach"], "the argument '--follow' cannot be used with '--detach'"),
        (&["disk", "--print-command", "--trust", "t"], "the argument '--print-command' cannot be used with '--trust <DIR>'"),
        (&["disk", "--print-command", "--detach"], "the argument '--print-command' cannot be used with '--detach'"),
    ] {
        let output = run(folder.path(), arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with(&format!("error: {message}\n")), "{arguments:?}: {stderr}");
    }
}

#[test]
fn what_cannot_be_used_is_named_before_anything_starts() {
    let folder = folder();
    fs::create_dir(folder.path().join("dir")).unwrap();
    fs::create_dir(folder.path().join("full")).unwrap();
    fs::write(folder.path().join("full/mine"), "").unwrap();
    fs::write(folder.path().join("empty"), "").unwrap();
    fs::write(folder.path().join("bad.json"), "{\n \"prot\": 1}").unwrap();
    let other = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let this = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    fs::write(folder.path().join("cert.pem"), this.cert.pem()).unwrap();
    fs::write(folder.path().join("other.key"), other.signing_key.serialize_pem()).unwrap();
    let mut half = superblock();
    half[1060] = 2;
    fs::write(folder.path().join("half"), half).unwrap();
    fs::write(folder.path().join("interfaces.json"), "{\"interfaces\": []}").unwrap();
    for (status, arguments, message) in [
        (9, &["no-disk"][..], "cannot read the disk no-disk: No such file or directory (os error 2)"),
        (9, &["dir"], "the disk dir is a directory, expected a file"),
        (9, &["empty"], "the disk empty is empty"),
        (9, &["/dev/null"], "the disk /dev/null is a special file, expected a file"),
        (1, &["disk", "--kernel", "no-kernel"], "cannot read the kernel no-kernel: No such file or directory (os error 2)"),
        (1, &["disk", "--kernel", "empty"], "the kernel empty is empty"),
        (1, &["disk", "--initramfs", "dir"], "the initramfs dir is a directory, expected a file"),
        (
            13,
            &["disk", "--tls", "provided", "--cert", "cert.pem", "--key", "no-key"],
            "cannot read the key no-key: No such file or directory (os error 2)",
        ),
        (1, &["disk", "--config", "no.json"], "cannot read the config no.json: No such file or directory (os error 2)"),
        (
            1,
            &["disk", "--config", "bad.json"],
            "the config bad.json cannot be used: it is not a config of the appliance (proto3 JSON of localregistry.v1.Config): \
             unknown field `prot`, expected one of `hostname`, `names`, `port`, `tls`, `interfaces`, `disk`, `clock`, `trace`, \
             `auth`, `metrics_port`, `metricsPort`, `limits` at line 2 column 7",
        ),
        (
            13,
            &["disk", "--htpasswd", "no-users"],
            "cannot let anybody in: cannot read no-users: No such file or directory (os error 2)",
        ),
        (13, &["disk", "--htpasswd", "kernel"], "cannot let anybody in: kernel:1: there is no colon; expected USER:HASH"),
        (
            13,
            &["disk", "--client-ca", "kernel"],
            "cannot let anybody in: kernel cannot be used: the given client CA is not PEM with one or more CERTIFICATE blocks",
        ),
        (
            12,
            &["disk", "--events", "no/events"],
            "cannot create no/events for the events: No such file or directory (os error 2)",
        ),
        (12, &["disk", "--console", "dir"], "cannot create dir for the console: Is a directory (os error 21)"),
        (
            8,
            &["disk", "--qemu", "no-such-qemu"],
            "no-such-qemu is not installed (on Debian and Ubuntu: apt-get install qemu-system-x86)",
        ),
        (
            8,
            &["disk", "--machine", "virt", "--qemu", "no-such-qemu"],
            "no-such-qemu is not installed (on Debian and Ubuntu: apt-get install qemu-system-arm)",
        ),
        (8, &["disk", "--qemu", "./disk"], "cannot start ./disk: Permission denied (os error 13)"),
        (
            8,
            &["disk", "--qemu", "cat"],
            &format!("cat is no QEMU: its --version says {:?}, expected \"QEMU emulator version …\"", first_line("cat")),
        ),
        (
            9,
            &["kernel"],
            "kernel (10 bytes) is no disk of ours: it has none of the file systems EROFS, ext4 and squashfs; make one with \
             `localregistry pack`",
        ),
        (
            9,
            &["half"],
            "the disk half has 4096 bytes, and its erofs file system 8192: it was copied in part; copy or pack it anew",
        ),
        (
            13,
            &["disk", "--cert", "kernel", "--key", "other.key"],
            "kernel and other.key cannot be served with: the given certificate chain is not PEM with one or more CERTIFICATE blocks, \
             the leaf first",
        ),
        (
            13,
            &["disk", "--cert", "cert.pem", "--key", "other.key"],
            "cert.pem and other.key cannot be served with: the given certificate chain and key do not go together: keys may \
             not be consistent: KeyMismatch",
        ),
        (
            12,
            &["disk", "--ca-out", "no/ca.crt"],
            "cannot write the CA certificate to no/ca.crt: No such file or directory (os error 2)",
        ),
        (
            12,
            &["disk", "--trust", "full"],
            "cannot make the trust files: full holds \"mine\", which no trust bundle has; expected a folder that is empty, not there \
             yet, or an earlier bundle's",
        ),
        (12, &["disk", "--trust", "kernel"], "cannot make the trust files: kernel is there and is not a folder"),
        (
            13,
            &["disk", "--ca", "cert.pem", "--key", "no-key"],
            "cannot use the CA: cannot read the CA key no-key: No such file or directory (os error 2)",
        ),
        (12, &["disk", "--ca-out", "dir"], "cannot write the CA certificate to dir: it is there already and not a regular file"),
        (
            12,
            &["disk", "--ready-file", "no/ready"],
            "cannot write where the registry is to no/ready: No such file or directory (os error 2)",
        ),
        (12, &["disk", "--pid-file", "kernel/pid"], "cannot write the process's number to kernel/pid: not a directory"),
        (
            12,
            &["disk", "--run-dir", "/proc/none"],
            "cannot make the run's folder /proc/none (--run-dir takes another): No such file or directory (os error 2)",
        ),
        (
            12,
            &["disk", "--run-dir", "/usr"],
            "/usr is there already and not empty: expected a folder for this run alone, which is removed at its end",
        ),
        (
            2,
            &["disk", "--config", "interfaces.json", "--net", "user"],
            "the config has interfaces, and so have the networks (--net): say them in one place",
        ),
        (
            2,
            &["disk", "--net", "bridge=br0", "--print-command"],
            "bridge=br0 needs a tap that this program makes and keeps: make one (ip tuntap add dev TAP mode tap user USER) and give \
             tap=TAP",
        ),
        (
            11,
            &["disk", "--net", "socket-fd=987"],
            "socket-fd=987 is no open socket: the launcher has to leave it open for this program (without close-on-exec): Bad file \
             descriptor (os error 9)",
        ),
        (
            11,
            &["disk", "--net", "stream=no.sock"],
            "no.sock is no socket to connect to: start what listens there first: No such file or directory (os error 2)",
        ),
        (11, &["disk", "--net", "stream=kernel"], "kernel is no socket to connect to: start what listens there first"),
        (
            11,
            &["disk", "--net", "dgram=./kernel,./peer"],
            "./kernel is there already and no socket: QEMU would put its own in its place",
        ),
        (11, &["disk", "--net", "dgram=no/a,./peer"], "QEMU cannot make the socket no/a: No such file or directory (os error 2)"),
        (
            8,
            &["disk", "--net", "stream=no.sock,reconnect=1"],
            "qemu-system-x86_64 is too old (on Debian: apt-get install -t bookworm-backports qemu-system-x86; --qemu takes another): \
             stream=…,reconnect=… needs QEMU 8.0 or later, and this is 7.2",
        ),
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
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
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
        assert_eq!((status, stderr), (Some(14), message));
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
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(14), message));
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
    assert_eq!((status, stderr), (Some(10), message));
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

/// The first line that `program --version` prints.
fn first_line(program: &str) -> String {
    succeed(Command::new(program).arg("--version")).lines().next().unwrap().to_owned()
}

/// A program that says that it is this version of QEMU, and would leave a mark if it were started as one.
fn qemu_of_version(folder: &Path, version: &str) -> String {
    let path = folder.join(format!("qemu-{version}"));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] || touch {}/started\necho QEMU emulator version {version}\n",
        folder.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn a_qemu_that_is_too_old_is_not_started() {
    let folder = folder();
    for (version, network, lacking) in [
        ("6.2.0", "user", "this program needs QEMU 7.1 or later, and this is 6.2"),
        ("7.1.0", "dgram=./a,./b", "the network dgram=… needs QEMU 7.2 or later, and this is 7.1"),
        ("7.1.0", "stream=./s,reconnect=1", "stream=…,reconnect=… needs QEMU 8.0 or later, and this is 7.1"),
    ] {
        let qemu = qemu_of_version(folder.path(), version);
        let (status, stderr) = boot(folder.path(), &["disk", "--qemu", &qemu, "--net", network]);
        let message = format!(
            "localregistry: {qemu} is too old (on Debian: apt-get install -t bookworm-backports qemu-system-x86; --qemu takes \
             another): {lacking}\n"
        );
        assert_eq!((status, stderr), (Some(8), message));
    }
    assert!(!folder.path().join("started").exists());
}

#[test]
fn networks_that_are_missing_are_named() {
    privately(|| {
        let folder = folder();
        let ip = |arguments: &str| succeed(Command::new("ip").args(arguments.split(' ')));
        ip("link add br0 type bridge");
        ip("link add plain0 type veth peer name plain1");
        for (network, message) in [
            ("bridge=br9", "there is no bridge br9 (as root: ip link add br9 type bridge && ip link set br9 up)".to_owned()),
            ("bridge=plain0", "plain0 is no bridge, but an interface of the kind veth".to_owned()),
            ("bridge=lo", "lo is no bridge, but a plain interface".to_owned()),
            ("bridge=br0,mtu=9000", "mtu=9000 is more than the bridge br0 takes, 1500".to_owned()),
            (
                "tap=tap9",
                "there is no tap tap9 (as root: ip tuntap add dev tap9 mode tap user USER && ip link set tap9 up)".to_owned(),
            ),
            ("tap=br0", "br0 is no tap, but an interface of the kind bridge".to_owned()),
        ] {
            let (status, stderr) = boot(folder.path(), &["disk", "--net", network]);
            assert_eq!((status, stderr), (Some(11), format!("localregistry: {message}\n")));
        }
        let links = ip("-brief link");
        assert!(!links.contains("lreg"), "no tap is left: {links}");
    });
}

#[test]
fn a_tap_of_another_user_and_one_in_use_are_named() {
    privately(|| {
        let folder = folder();
        // The folder, and the programs in the user's home, are root's: what is run as somebody else is a copy.
        let program = folder.path().join("localregistry");
        fs::copy(env!("CARGO_BIN_EXE_localregistry"), &program).unwrap();
        for path in [folder.path(), &folder.path().join("runtime")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let ip = |arguments: &str| succeed(Command::new("ip").args(arguments.split(' ')));
        ip("link add br0 type bridge");
        ip("tuntap add dev tap0 mode tap user 12345");
        // Most systems let everybody open it.
        succeed(Command::new("mknod").args(["--mode=666", "/run/tun", "c", "10", "200"]));
        succeed(Command::new("mount").args(["--bind", "/run/tun", "/dev/net/tun"]));
        let as_nobody = |network: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program).current_dir(folder.path());
            command.args(["run", "disk", "--accel", "tcg", "--kernel", "kernel", "--initramfs", "initramfs", "--net", network]);
            let output = command.env("XDG_RUNTIME_DIR", folder.path().join("runtime")).output().unwrap();
            assert!(output.stdout.is_empty(), "{output:?}");
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let message = "localregistry: no permission to make a tap on the bridge br0: it takes CAP_NET_ADMIN (run it as root, or have \
                       root make a tap for you, ip tuntap add dev TAP mode tap user USER, and give tap=TAP)\n";
        assert_eq!(as_nobody("bridge=br0"), (Some(11), message.to_owned()));
        let message = "localregistry: no permission to open the tap tap0: it belongs to another user (as root: ip tuntap add dev tap0 \
                       mode tap user USER)\n";
        assert_eq!(as_nobody("tap=tap0"), (Some(11), message.to_owned()));
        let runs = fs::read_dir(folder.path().join("runtime/localregistry")).unwrap().count();
        assert_eq!(runs, 0);

        // It is that user's.
        fs::remove_dir(folder.path().join("runtime/localregistry")).unwrap();
        let _held = localregistry::host::net::attach::open("tap0").unwrap();
        let (status, stderr) = boot(folder.path(), &["disk", "--net", "tap=tap0"]);
        let message = "localregistry: the tap tap0 is in use by another process: give each machine its own\n";
        assert_eq!((status, stderr.as_str()), (Some(11), message));
    });
}

#[test]
fn serve_refuses_flags_that_it_would_not_use() {
    let folder = folder();
    for (arguments, message) in [
        (
            &["--tls", "generate", "--cert", "a", "--key", "b"][..],
            "the arguments '--cert <FILE>' and '--key <FILE>' need '--tls provided': nothing else serves with them",
        ),
        (
            &["--tls", "off", "--ca-out", "ca"],
            "the argument '--ca-out <FILE>' cannot be used with '--tls off': without TLS there is no CA",
        ),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_localregistry"));
        let output = command.current_dir(folder.path()).args(["serve", "."]).args(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with(&format!("error: {message}\n")), "{arguments:?}: {stderr}");
    }
}

#[test]
fn limits_that_are_none_are_refused_before_anything_is_served() {
    for (limit, why) in [
        ("stallSeconds=0", "stallSeconds is 0; expected seconds from 1 to 3600"),
        ("streams=1000", "streams is 1000; expected a number of streams from 1 to 256"),
        ("idle", "expected KEY=NUMBER, such as stallSeconds=60"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_localregistry"));
        let output = command.args(["serve", "no-such-layout", "--limit", limit]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = format!("error: invalid value '{limit}' for '--limit <KEY=NUMBER>': {why}\n");
        assert_eq!((output.status.code(), said.starts_with(&expected)), (Some(2), true), "{said}");
    }
}
