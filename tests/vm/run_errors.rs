//! `localregistry run` with missing or unusable inputs (exit 1 and 8 to 15): one message that says what to do, no process started,
//! no file left. `run_networks.rs` tests networks, `ca.rs` CAs, and `run_outcomes.rs` failures after the start.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use testing::layout::Layout;
use testing::pack::superblock;
use testing::refused::{as_nobody, boot, folder, run};
use testing::vm::succeed;

#[test]
fn unusable_inputs_are_named_before_anything_starts() {
    let folder = folder();
    fs::create_dir(folder.path("dir")).unwrap();
    fs::create_dir(folder.path("full")).unwrap();
    fs::write(folder.path("full/mine"), "").unwrap();
    fs::write(folder.path("empty"), "").unwrap();
    fs::write(folder.path("bad.json"), "{\n \"prot\": 1}").unwrap();
    let other = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let this = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    fs::write(folder.path("cert.pem"), this.cert.pem()).unwrap();
    fs::write(folder.path("other.key"), other.signing_key.serialize_pem()).unwrap();
    let mut half = superblock();
    half[1060] = 2;
    fs::write(folder.path("half"), half).unwrap();
    fs::write(folder.path("interfaces.json"), "{\"interfaces\": []}").unwrap();
    for (status, arguments, message) in [
        (9, &["no-disk"][..], "cannot read the disk no-disk: No such file or directory (os error 2)"),
        (9, &["disk", "no-disk"], "cannot read the disk no-disk: No such file or directory (os error 2)"),
        (9, &["dir"], "the disk dir is a directory, expected a file"),
        (9, &["empty"], "the disk empty is empty"),
        (9, &["/dev/null"], "the disk /dev/null is a special file, expected a file"),
        (14, &["disk", "--kernel", "no-kernel"], "cannot read the kernel no-kernel: No such file or directory (os error 2)"),
        (14, &["disk", "--kernel", "empty"], "the kernel empty is empty"),
        (14, &["disk", "--initramfs", "dir"], "the initramfs dir is a directory, expected a file"),
        (
            13,
            &["disk", "--tls", "provided", "--cert", "cert.pem", "--key", "no-key"],
            "cannot read the key no-key: No such file or directory (os error 2)",
        ),
        (1, &["disk", "--config", "no.json"], "cannot read the config no.json: No such file or directory (os error 2)"),
        (
            2,
            &["disk", "--config", "bad.json"],
            "the config bad.json cannot be used: line 2: unknown key prot; expected one of hostname, names, port, tls, interfaces, disk, \
             clock, trace, auth, metricsPort, limits, heartbeatSeconds, listeners, disks, verify, faults",
        ),
        (
            13,
            &["disk", "--htpasswd", "no-users"],
            "cannot set up access control: cannot read the password file no-users: No such file or directory (os error 2); the \
             password file is set with --htpasswd",
        ),
        (
            13,
            &["disk", "--htpasswd", "kernel"],
            "cannot set up access control: kernel:1: there is no colon; expected USER:HASH; the password file is set with --htpasswd",
        ),
        (
            13,
            &["disk", "--client-ca", "kernel"],
            "cannot set up access control: cannot use the client CA kernel: the given client CA is not PEM with one or more CERTIFICATE blocks; the client CA \
             is set with --client-ca",
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
            &format!("cat is not QEMU: its --version prints {:?}, expected \"QEMU emulator version …\"", first_line("cat")),
        ),
        (
            9,
            &["kernel"],
            "kernel (10 bytes) is not a packed disk: it has no EROFS, ext4 or squashfs file system; make one with \
             `localregistry pack`",
        ),
        (
            9,
            &["half"],
            "cannot boot half: it is cut short: it has 4096 bytes, and its erofs file system has 8192; copy or pack the disk again",
        ),
        (
            13,
            &["disk", "--cert", "kernel", "--key", "other.key"],
            "cannot serve with the certificate kernel and the key other.key: the given certificate chain is not PEM with one or more CERTIFICATE blocks, \
             the leaf first",
        ),
        (
            13,
            &["disk", "--cert", "cert.pem", "--key", "other.key"],
            "cannot serve with the certificate cert.pem and the key other.key: the given certificate chain and key do not go together: keys may \
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
            "cannot make the trust files: full contains \"mine\", which is not part of a trust bundle; expected an empty or missing \
             folder, or an earlier bundle",
        ),
        (12, &["disk", "--trust", "kernel"], "cannot make the trust files: kernel exists and is not a folder"),
        (
            13,
            &["disk", "--ca", "cert.pem", "--key", "no-key"],
            "cannot use the CA: cannot read the CA key no-key: No such file or directory (os error 2); the CA's key is set with --key",
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
            "cannot make the run's folder /proc/none: No such file or directory (os error 2); --run-dir takes another folder",
        ),
        (
            12,
            &["disk", "--run-dir", "/usr"],
            "/usr is not empty: the run's folder has to be new or empty, and is removed at the end of the run",
        ),
        (
            2,
            &["disk", "--config", "interfaces.json", "--net", "user"],
            "the interfaces are set twice: by the config, and by the networks; set them in one place; --net sets networks",
        ),
        (
            2,
            &["disk", "--net", "bridge=br0", "--print-command"],
            "bridge=br0 needs a tap that exists only while this program runs QEMU; make a tap (ip tuntap add dev TAP mode tap user USER) \
             and use tap=TAP",
        ),
        (
            11,
            &["disk", "--net", "socket-fd=987"],
            "socket-fd=987 is not an open socket: the launcher has to leave it open for this program (without close-on-exec): Bad file \
             descriptor (os error 9)",
        ),
        (
            11,
            &["disk", "--net", "stream=no.sock"],
            "no.sock is not a socket to connect to: start the program that listens there first: No such file or directory (os error 2)",
        ),
        (
            11,
            &["disk", "--net", "stream=kernel"],
            "kernel is not a socket to connect to: start the program that listens there first",
        ),
        (11, &["disk", "--net", "dgram=./kernel,./peer"], "./kernel exists and is not a socket: QEMU would replace it"),
        (11, &["disk", "--net", "dgram=no/a,./peer"], "QEMU cannot make the socket no/a: No such file or directory (os error 2)"),
        (
            8,
            &["disk", "--net", "stream=no.sock,reconnect=1"],
            "qemu-system-x86_64 is too old (on Debian: apt-get install -t bookworm-backports qemu-system-x86): \
             stream=…,reconnect=… needs QEMU 8.0 or later, and this is 7.2; choose another QEMU with --qemu",
        ),
    ] {
        let mut given = vec!["--accel", "tcg"];
        for (flag, file) in [("--kernel", "kernel"), ("--initramfs", "initramfs")] {
            if !arguments.contains(&flag) {
                given.extend([flag, file]);
            }
        }
        given.extend(arguments);
        let output = run(&folder, &given);
        assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("localregistry: {message}\n"));
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
}

/// By a user who may not write to the runtime folder or to the folder of `--run-dir`.
#[test]
fn unwritable_run_folder_is_named() {
    let folder = folder();
    fs::create_dir(folder.path("locked")).unwrap();
    let refused = |arguments: &[&str], path: &str| {
        let message = format!(
            "localregistry: cannot make the run's folder {}: Permission denied (os error 13); --run-dir takes another folder\n",
            folder.path(path).display()
        );
        assert_eq!(as_nobody(&folder, "locked", &[&["disk"], arguments].concat()), (Some(12), message));
    };
    refused(&[], "locked/localregistry");
    refused(&["--run-dir", "locked/run"], "locked/run");
}

#[test]
fn unreadable_disk_is_named() {
    let folder = folder();
    let disk = folder.path("disk");
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o0)).unwrap();
    // Root can read every file, so QEMU refuses the invalid kernel.
    let message = match fs::File::open(&disk) {
        Ok(_) => "localregistry: QEMU exited with status 1 before it started the machine: ",
        Err(_) => "localregistry: cannot read the disk disk: Permission denied (os error 13)\n",
    };
    let (status, stderr) = boot(&folder, &["disk"]);
    assert!(stderr.starts_with(message), "{stderr}");
    assert_eq!(status, Some(1));
}

#[test]
fn kernel_without_required_options_is_refused() {
    let folder = folder();
    let file = |name: &str, content: &str| fs::write(folder.path(name), content).unwrap();
    file("vmlinuz-1", "not really");
    let names = "SECCOMP_FILTER BLK_DEV_INITRD BINFMT_ELF PRINTK TTY DEVTMPFS PROC_FS SYSFS TMPFS EPOLL EVENTFD FUTEX UNIX NET INET PACKET \
                 VIRTIO_BLK VIRTIO_NET VIRTIO_CONSOLE FW_CFG_SYSFS EROFS_FS SERIAL_8250_CONSOLE ACPI VIRTIO_PCI VIRTIO_MMIO 64BIT";
    let config = |without: &[&str]| {
        let names = names.split_whitespace().filter(|name| !without.contains(name));
        names.map(|name| format!("CONFIG_{name}=y\n")).collect::<String>()
    };
    for (machine, without, missing) in [
        (
            "q35",
            &["SECCOMP_FILTER", "EROFS_FS", "VIRTIO_PCI", "VIRTIO_MMIO"][..],
            "CONFIG_SECCOMP_FILTER (confining the server), CONFIG_EROFS_FS (the disk's file system), CONFIG_VIRTIO_PCI (the virtio devices on PCI)",
        ),
        ("microvm", &["VIRTIO_PCI", "VIRTIO_MMIO"], "CONFIG_VIRTIO_MMIO (the virtio devices of a microvm)"),
    ] {
        file("config-1", &config(without));
        let (status, stderr) = boot(&folder, &["disk", "--machine", machine, "--kernel", "vmlinuz-1"]);
        let message = format!(
            "localregistry: the kernel vmlinuz-1 cannot run the guest on {machine}: its config lacks {missing}; boot a kernel that has \
             them (`localregistry doctor` checks a kernel)\n"
        );
        assert_eq!((status, stderr), (Some(14), message));
    }
    // With all options, or without known options, QEMU decides.
    for config in [config(&[]), "no config".to_owned()] {
        file("config-1", &config);
        let (status, stderr) = boot(&folder, &["disk", "--kernel", "vmlinuz-1"]);
        assert!(stderr.starts_with("localregistry: QEMU exited with status 1 before it started the machine: "), "{stderr}");
        assert_eq!(status, Some(1));
    }
}

#[test]
fn own_kernel_must_be_built_first() {
    let folder = folder();
    let mut command = folder.command(&["run", "disk", "--flavor", "own"]);
    command.env("LOCALREGISTRY_CACHE", folder.path("cache")).env("XDG_RUNTIME_DIR", folder.path("runtime"));
    let output = command.output().unwrap();
    const RECIPE: &str = concat!(include_str!("../../image/kernel.config"), include_str!("../../image/kernel.patch"));
    let digest = localregistry::oci::Digest::sha256_of(RECIPE.as_bytes()).hex();
    let message = format!(
        "localregistry: there is no kernel to boot: our own kernel is not built: {}/cache/kernel/own/{} has none; \
         build it with image/kernel (about ten minutes on one processor), or use the flavor cloud; choose a kernel with --flavor\n",
        folder.path("").display().to_string().trim_end_matches('/'),
        &digest[..12]
    );
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(14), message));
}

#[test]
fn port_in_use_is_named() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (status, stderr) = boot(&folder, &["disk", "--publish", &port]);
    let message = format!(
        "localregistry: cannot listen on 127.0.0.1:{port} for the registry: Address already in use (os error 98); choose another \
         address with --publish; port 0 picks a free port\n"
    );
    assert_eq!((status, stderr), (Some(10), message));
    let (status, stderr) = boot(&folder, &["disk", "--metrics", &port]);
    let message = format!(
        "localregistry: cannot listen on 127.0.0.1:{port} for health and metrics: Address already in use (os error 98); choose \
         another address with --metrics; port 0 picks a free port\n"
    );
    assert_eq!((status, stderr), (Some(10), message));
}

/// `pack` and `serve` take a folder with a layout, and `run` takes a packed disk.
#[test]
fn run_and_serve_suggest_each_other() {
    let folder = folder();
    let mut layout = Layout::default();
    layout.image("test/hello:1", b"layer");
    layout.write();
    let path = layout.path().display().to_string();
    let message = format!(
        "localregistry: {path} is a folder with an OCI image layout, expected a packed disk; `localregistry pack LAYOUT -o DISK` \
         makes a disk of it, and `localregistry serve LAYOUT` serves it on this machine without a VM\n"
    );
    assert_eq!(boot(&folder, &[&path]), (Some(9), message.clone()));
    assert_eq!(boot(&folder, &["disk", &path]), (Some(9), message));
    for (file, message) in [
        (
            "disk",
            "disk is a packed disk, expected the folder of an OCI image layout; `localregistry run DISK` boots it, and `localregistry \
             inspect DISK --export LAYOUT` makes a folder of it",
        ),
        (
            "kernel",
            "kernel is a file, expected the folder of an OCI image layout; `localregistry pack ARCHIVE -o DISK` packs a layout in \
             an archive, and `localregistry run DISK` boots it",
        ),
    ] {
        let output = folder.command(&["serve", file, "--listen", "127.0.0.1:0"]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said), (Some(1), format!("localregistry: {message}\n")));
    }
}

#[test]
fn invalid_kernel_shows_the_message_of_qemu() {
    let folder = folder();
    let (status, stderr) = boot(&folder, &["disk"]);
    // The rest is QEMU's message, which depends on its version.
    let message = "localregistry: QEMU exited with status 1 before it started the machine: qemu";
    assert!(stderr.starts_with(message), "{stderr}");
    assert_eq!(status, Some(1));
}

/// The first line of `program --version`.
fn first_line(program: &str) -> String {
    succeed(testing::program(program).arg("--version")).lines().next().unwrap().to_owned()
}

/// A program that reports this QEMU version, and leaves a file if it is started as QEMU.
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
fn outdated_qemu_is_not_started() {
    let folder = folder();
    for (version, network, lacking) in [
        ("6.2.0", "user", "this program needs QEMU 7.1 or later, and this is 6.2"),
        ("7.1.0", "dgram=./a,./b", "the network dgram=… needs QEMU 7.2 or later, and this is 7.1"),
        ("7.1.0", "stream=./s,reconnect=1", "stream=…,reconnect=… needs QEMU 8.0 or later, and this is 7.1"),
    ] {
        let qemu = qemu_of_version(&folder.path(""), version);
        let (status, stderr) = boot(&folder, &["disk", "--qemu", &qemu, "--net", network]);
        let message = format!(
            "localregistry: {qemu} is too old (on Debian: apt-get install -t bookworm-backports qemu-system-x86): {lacking}; choose \
             another QEMU with --qemu\n"
        );
        assert_eq!((status, stderr), (Some(8), message));
    }
    assert!(!folder.path("started").exists());
}
