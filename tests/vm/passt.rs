//! The network `user` through passt: when it is taken, what happens without it, and what its end means.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testing::pack::Bench;
use testing::refused::{boot, command, folder};
use testing::vm::{Vm, succeed};

/// The process IDs of the children of the process `parent` that run passt.
fn passt_of(parent: u64) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).unwrap().flatten();
    let children = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let children: Vec<i32> =
        children.flat_map(|line| line.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
    let is_passt = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("passt"));
    children.into_iter().filter(is_passt).collect()
}

#[test]
fn passt_carries_the_network_and_its_end_is_the_end_of_the_run() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let listeners = "--set=listeners=[{\"port\":80,\"transport\":\"PLAIN\"}]";
    let vm = Vm::boot(&disk, &["--metrics", "0", listeners]);
    assert_eq!(vm.ready["user_network"], "passt");
    let passt = passt_of(vm.ready["pid"].as_u64().unwrap());
    let [passt] = passt[..] else { panic!("one passt, not {passt:?}") };
    let uid = fs::read_to_string(format!("/proc/{passt}/status")).unwrap();
    assert!(!uid.lines().any(|line| line.starts_with("Uid:\t0\t")), "passt drops root's privileges: {uid}");

    // Each of the three forwarded ports is a free one.
    succeed(&mut vm.copy("test/hello:latest", &[], "oci:pulled"));
    let further = vm.ready["further"][0].as_str().unwrap();
    let metrics = vm.ready["metrics"].as_str().unwrap();
    for url in [format!("{further}/v2/"), format!("{metrics}/healthz")] {
        succeed(testing::program("curl").args(["--silent", "--fail", "--show-error", &url]));
    }

    kill(Pid::from_raw(passt), Signal::SIGKILL).unwrap();
    let ended = vm.end();
    assert_eq!(ended.status, Some(6), "{}", ended.stderr);
    let message =
        "localregistry: QEMU was killed by SIGKILL, by this program: passt, which carried the user network, has ended\n";
    assert!(ended.stderr.contains(message), "{}", ended.stderr);
    assert!(ended.stderr.ends_with("QEMU's last lines:\n  passt was killed by SIGKILL\n"), "{}", ended.stderr);
    assert!(ended.requests().iter().all(|request| request.peer.starts_with("10.0.2.2:")), "as through QEMU");
}

#[test]
fn killed_qemu_has_not_lost_its_network() {
    let bench = Bench::default();
    let vm = Vm::boot(&bench.sample_disk(), &["--net", "user,backend=passt", "--machine", "microvm"]);
    let passt = passt_of(vm.ready["pid"].as_u64().unwrap());
    let qemu = vm.ready["qemu_pid"].as_i64().unwrap();
    // passt ends with QEMU. That is the end of QEMU, not of the network.
    kill(Pid::from_raw(qemu.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let ended = vm.end();
    assert_eq!(ended.status, Some(6), "{}", ended.stderr);
    let message = "localregistry: QEMU was killed by SIGKILL before the guest said that it was done\n";
    assert!(ended.stderr.contains(message), "{}", ended.stderr);
    assert!(!Path::new(&format!("/proc/{}", passt[0])).exists(), "passt has ended, too");
}

/// What `run ARGUMENTS` says with a `passt` that runs this line of a shell, or without any. QEMU cannot boot this kernel.
fn without_passt(line: Option<&str>, arguments: &[&str]) -> (Option<i32>, String) {
    let folder = folder();
    fs::create_dir(folder.path("bin")).unwrap();
    if let Some(line) = line {
        folder.file("bin/passt", format!("#!/bin/sh\n{line}\n").as_bytes());
        fs::set_permissions(folder.path("bin/passt"), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = command(&folder, &[&["disk", "--qemu", "/usr/bin/qemu-system-x86_64"], arguments].concat());
    command.env("PATH", folder.path("bin")).env("XDG_RUNTIME_DIR", folder.path("runtime"));
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn qemu_carries_the_network_where_passt_cannot() {
    let named = ["--net", "user,backend=passt"];
    let fails = Some("echo Couldn\\'t create user namespace >&2; exit 1");
    let why = "it exited with status 1: Couldn't create user namespace";
    let (status, said) = without_passt(fails, &[]);
    assert!(said.starts_with(&format!("QEMU carries the network, as passt cannot be used: {why}\n")), "{said}");
    assert!(said.contains("localregistry: QEMU exited with status 1 before it started the machine"), "{said}");
    assert_eq!(status, Some(1));
    let (status, said) = without_passt(fails, &named);
    assert_eq!((status, said), (Some(11), format!("localregistry: passt cannot carry the user network: {why}\n")));

    let (_, said) = without_passt(None, &[]);
    assert!(said.starts_with("localregistry: QEMU exited with status 1"), "{said}");
    let (status, said) = without_passt(None, &named);
    let install = "the program passt is not on this machine: install Debian's package passt (`apt-get install passt`)";
    assert_eq!((status, said), (Some(11), format!("localregistry: passt cannot carry the user network: {install}\n")));
}

#[test]
fn networks_that_passt_cannot_carry_are_refused_by_name() {
    let folder = folder();
    for (arguments, why) in [
        (
            &["--net", "user,backend=passt", "--net", "mcast=239.1.2.3:4000"][..],
            "passt cannot carry the user network: passt serves `user` only if that is the only network; use backend=slirp",
        ),
        (
            &["--net", "user,backend=passt", "--print-command"],
            "backend=passt needs a passt that runs only while this program runs QEMU; use backend=slirp, or start passt yourself and use \
             stream=PATH",
        ),
    ] {
        let (status, said) = boot(&folder, &[&["disk"], arguments].concat());
        assert_eq!((status, said), (Some(2), format!("localregistry: {why}\n")), "{arguments:?}");
    }
}
