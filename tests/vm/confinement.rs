//! What code of an attacker could do in the process that serves: nothing but what serving needs. An agent in the machine traces the process,
//! and makes its main thread make system calls, as a hole in the server would let an attacker do. x86-64 has these numbers.

use std::collections::BTreeMap;
use std::path::Path;

use testing::agent::Agent;
use testing::http;
use testing::pack::Bench;
use testing::vm::Vm;

/// Calls that fail, and serving goes on.
const REFUSED: &[(&str, &str, &str)] = &[
    // The memory of the process that has the keys, of PID 1, and where the launcher's keys came from.
    ("openat", "257 -100 /proc/self/mem 0", "Permission denied"),
    ("openat", "257 -100 /proc/SERVER/mem 0", "Permission denied"),
    ("openat", "257 -100 /proc/1/mem 0", "Permission denied"),
    ("openat", "257 -100 /proc/1/environ 0", "Permission denied"),
    ("openat", "257 -100 /sys/firmware/qemu_fw_cfg/by_name/opt/localregistry/config/raw 0", "Permission denied"),
    // Everybody may read these: it is Landlock that forbids it.
    ("openat", "257 -100 /proc/cmdline 0", "Permission denied"),
    ("openat", "257 -100 / 0", "Permission denied"),
    // The disks are read through their file systems alone, and nothing is written.
    ("openat", "257 -100 /dev/vda 0", "Permission denied"),
    ("openat", "257 -100 /disks/vda/oci-layout 2", "Operation not permitted"),
    ("openat with O_CREAT", "257 -100 /run/new 0x40", "Operation not permitted"),
    ("openat of a setting", "257 -100 /proc/sys/kernel/core_pattern 1", "Operation not permitted"),
    ("open", "2 /run/new 0x41", "Operation not permitted"),
    ("mkdir", "83 /run/new 0777", "Operation not permitted"),
    ("unlink", "87 /init", "Operation not permitted"),
    ("memfd_create", "319 name 0", "Operation not permitted"),
    // Sockets other than those of TCP, and a connection of the server's own.
    ("packet socket", "41 17 3 768", "Operation not permitted"),
    ("raw socket", "41 2 3 1", "Operation not permitted"),
    ("raw IPv6 socket", "41 10 0x80003 58", "Operation not permitted"),
    ("UDP socket", "41 2 2 0", "Operation not permitted"),
    ("netlink socket", "41 16 3 0", "Operation not permitted"),
    ("connect", "42 0 0 16", "Operation not permitted"),
    // Code, processes, rights, and the machine.
    ("mmap of code", "9 0 4096 7 0x22 -1", "Operation not permitted"),
    ("mprotect to code", "10 0 4096 5", "Operation not permitted"),
    ("fork", "57", "Operation not permitted"),
    ("clone of a process", "56 17 0 0 0 0", "Operation not permitted"),
    ("kill", "62 1 9", "Operation not permitted"),
    ("setuid", "105 0", "Operation not permitted"),
    ("capset", "126 0 0", "Operation not permitted"),
    ("another filter", "317 0 0 0", "Operation not permitted"),
    ("ioctl that types on the console", "16 2 0x5412 /x", "Operation not permitted"),
    ("clock_settime", "227 0 0", "Operation not permitted"),
    ("sethostname", "170 name 4", "Operation not permitted"),
];

/// Calls that end the machine: no library makes them by itself.
const ATTACKS: [(&str, &str); 4] =
    [("mount", "165 none /run tmpfs 0 0"), ("init_module", "175 0 0 0"), ("ptrace", "101 16 1 0 0"), ("execve", "59 /init 0 0")];

/// The values of `/proc/PID/status` by their names.
fn status(agent: &Agent, process: &str) -> BTreeMap<String, String> {
    let text = agent.ask(&format!("read /proc/{process}/status"));
    let lines = text.split('|').filter_map(|line| line.split_once(':'));
    lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// Boots `disk` with an agent.
fn boot(bench: &Bench, name: &str, disk: &Path, arguments: &[&str]) -> (Agent, Vm) {
    let agent = Agent::new(&bench.path(name), "", "");
    let all = [agent.arguments(), arguments.iter().map(|argument| (*argument).to_owned()).collect()].concat();
    let vm = Vm::boot(disk, &all.iter().map(String::as_str).collect::<Vec<_>>());
    (agent, vm)
}

/// The machine that `arguments` describe confines its server.
pub fn confines(arguments: &[&str]) {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let (agent, vm) = boot(&bench, "agent", &disk, &[&["--tls", "off"], arguments].concat());

    let server = status(&agent, "SERVER");
    for (name, expected) in [
        ("Uid", "65534\t65534\t65534\t65534"),
        ("Gid", "65534\t65534\t65534\t65534"),
        ("Groups", ""),
        ("CapInh", "0000000000000000"),
        // CAP_DAC_READ_SEARCH, which Landlock limits to the disks.
        ("CapPrm", "0000000000000004"),
        ("CapEff", "0000000000000004"),
        ("CapBnd", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(server.get(name).map(String::as_str), Some(expected), "{name} of {server:?}");
    }
    let mounts = agent.ask("read /proc/mounts");
    let root = mounts.split('|').find(|mount| mount.split(' ').nth(1) == Some("/")).unwrap();
    assert!(root.split(' ').nth(3).unwrap().split(',').any(|option| option == "ro"), "{root}");

    let address = vm.address.parse().unwrap();
    assert_eq!(http::get(address, "/v2/test/hello/manifests/latest").status, 200);
    for (name, call, expected) in REFUSED {
        assert_eq!(agent.ask(&format!("call {call}")), *expected, "{name}");
    }
    // The way of the calls is right: these are what serving needs.
    assert_eq!(agent.ask("call 39"), agent.ask("server"), "getpid");
    for (name, call) in [("openat", "257 -100 /disks/vda/oci-layout 0"), ("TCP socket", "41 2 1 0")] {
        assert!(agent.ask(&format!("call {call}")).parse::<u32>().is_ok(), "{name}");
    }
    assert_eq!(http::get(address, "/v2/test/hello/manifests/latest").status, 200);
    agent.tell(&format!("call {}", ATTACKS[0].1));
    ends(vm, "mount");
}

/// The machine ends, and names the cause.
fn ends(vm: Vm, attack: &str) {
    let ended = vm.end();
    assert_eq!(ended.status, Some(3), "{attack}: {}", ended.stderr);
    let cause =
        "the process that serves was killed by the kernel: it made a system call that serving never makes; was it attacked?";
    assert!(ended.stderr.contains(&format!("FATAL code=SERVER_ENDED {cause}")), "{attack}: {}", ended.stderr);
    let done = ended.done();
    assert_eq!((done.status, done.code.as_str(), done.reason.as_str()), (1, "SERVER_ENDED", cause), "{attack}");
}

#[test]
fn server_can_do_nothing_but_serve() {
    confines(&[]);
}

#[test]
fn attack_on_the_kernel_ends_the_machine() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    for (name, call) in &ATTACKS[1..] {
        let (agent, vm) = boot(&bench, name, &disk, &["--tls", "off"]);
        agent.tell(&format!("call {call}"));
        ends(vm, name);
    }
}

#[test]
fn death_of_the_server_is_reported() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let (agent, vm) = boot(&bench, "agent", &disk, &["--tls", "off"]);
    agent.tell("end 9");
    let ended = vm.end();
    assert_eq!(ended.status, Some(3), "{}", ended.stderr);
    let done = ended.done();
    assert_eq!((done.code.as_str(), done.reason.as_str()), ("SERVER_ENDED", "the process that serves was killed by SIGKILL"));
}
