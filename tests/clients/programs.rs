//! The programs that the commands start, found by tracing execve(2): `doctor` lists exactly these.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testing::elf::elf;
use testing::layout::Layout;
use testing::pack::{Bench, PROGRAM, text};

/// System calls that start programs and processes.
const CALLS: &str = "trace=execve,clone,clone3,fork,vfork";

/// The names of the programs that `localregistry` itself starts, from a log of `strace -f`. Programs that those start do not
/// count.
fn started(log: &str) -> BTreeSet<String> {
    let lines = || log.lines().filter_map(|line| line.split_once(' ').map(|(pid, call)| (pid, call.trim_start())));
    // A child's first call may be logged before the parent's call has returned.
    let is_made = |call: &str| ["clone", "fork", "vfork"].iter().any(|name| call.trim_start_matches("<... ").starts_with(name));
    let made = lines().filter(|(_, call)| is_made(call));
    let parents: HashMap<&str, &str> = made.filter_map(|(pid, call)| Some((call.rsplit_once(" = ")?.1, pid))).collect();
    let mut programs: HashMap<&str, &str> = HashMap::new();
    let mut starting: HashMap<&str, &str> = HashMap::new();
    let mut started = BTreeSet::new();
    for (pid, call) in lines() {
        if let Some(path) = call.strip_prefix("execve(\"").and_then(|rest| rest.split('"').next()) {
            starting.insert(pid, path);
        }
        if !call.trim_start_matches("<... ").starts_with("execve") || !call.ends_with(" = 0") {
            continue;
        }
        let ancestors = std::iter::successors(Some(pid), |pid| parents.get(pid).copied());
        let before = ancestors.filter_map(|pid| programs.get(pid)).next().copied();
        let path = starting.remove(pid).unwrap();
        if before == Some(PROGRAM) {
            started.insert(path.rsplit('/').next().unwrap().to_owned());
        }
        programs.insert(pid, path);
    }
    started
}

/// `localregistry ARGUMENTS` under strace in the bench's folder.
fn traced(bench: &Bench, arguments: &[&str]) -> Command {
    let untraced = bench.command(arguments);
    let mut command = testing::program("strace");
    command.current_dir(bench.path("")).args(["-f", "-qq", "--seccomp-bpf", "-e", CALLS, "-o", "trace"]);
    command.arg(untraced.get_program()).arg("--quiet").args(untraced.get_args());
    for (name, value) in untraced.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// The programs that the command starts. It must succeed.
fn programs(bench: &Bench, command: &mut Command) -> BTreeSet<String> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    started(&fs::read_to_string(bench.path("trace")).unwrap())
}

/// Substitutes for the distribution's programs that download a kernel, in a folder for `PATH`.
fn distribution(bench: &Bench) -> String {
    fs::create_dir(bench.path("bin")).unwrap();
    let release = "6.1.0-9-made-up";
    for (name, script) in [
        ("apt-cache", format!("echo 'Depends: linux-image-{release} (= 6.1.9-1)'")),
        ("apt-get", "echo >kernel.deb".to_owned()),
        (
            "dpkg-deb",
            format!(
                "mkdir -p \"$3/lib/modules/{release}\" \"$3/boot\"; cp {}/vmlinux \"$3/boot/vmlinuz-{release}\"",
                bench.path("").display()
            ),
        ),
        ("depmod", "echo >\"$2/lib/modules/$3/modules.dep\"".to_owned()),
    ] {
        bench.file(&format!("bin/{name}"), format!("#!/bin/sh\n{script}\n").as_bytes());
        fs::set_permissions(bench.path(&format!("bin/{name}")), fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!("{}:{}", bench.path("bin").display(), std::env::var("PATH").unwrap())
}

/// Boots the disk, ends the machine when it is ready, and returns the programs that were started.
fn run(bench: &Bench) -> BTreeSet<String> {
    let arguments = ["run", "disk.erofs", "--accel", "tcg", "--json", "--trust", "run-trust", "--run-dir", "run"];
    let mut child = traced(bench, &arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    kill(Pid::from_raw(ready["pid"].as_i64().unwrap().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    started(&fs::read_to_string(bench.path("trace")).unwrap())
}

#[test]
fn doctor_lists_exactly_the_programs_that_commands_run() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    layout.image("test/other:latest", b"layer");
    bench.layout("layout", &layout);
    bench.file("static", &elf(&[(1, b"code")]));
    // A kernel with the PVH note: size of the name, size of the description, type, name, description.
    bench.file("vmlinux", &elf(&[(1, b"code"), (4, &[&[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0][..], b"Xen\0", &[0; 8]].concat())]));
    // From here on, the cache has the distribution's kernel.
    assert!(bench.command(&["--quiet", "kernel", "-o", "distribution-kernel"]).output().unwrap().status.success());
    let mut needed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut note = |what: &str, programs: BTreeSet<String>| {
        for program in programs {
            needed.entry(program).or_default().insert(what.to_owned());
        }
    };
    for (what, arguments) in [
        ("sample", &["sample", "-o", "sample"][..]),
        ("pack", &["pack", "layout", "sample", "-o", "disk.erofs", "--cache", "kept"]),
        ("pack --fs squashfs", &["pack", "layout", "-o", "disk.squashfs", "--fs", "squashfs"]),
        ("pack --fs ext4", &["pack", "layout", "-o", "disk.ext4", "--fs", "ext4"]),
        ("inspect", &["inspect", "disk.erofs", "--verify", "--export", "exported"]),
        ("inspect", &["inspect", "disk.squashfs", "--verify"]),
        ("inspect", &["inspect", "disk.ext4", "--verify"]),
        ("diff", &["diff", "disk.erofs", "disk.erofs"]),
        ("trust", &["trust", "--endpoint", "http://a.test:5000", "--disk", "disk.squashfs", "-o", "trust"]),
        ("trust", &["trust", "--endpoint", "http://a.test:5000", "--disk", "disk.ext4", "-o", "trust"]),
        ("trust", &["trust", "--endpoint", "http://a.test:5000", "--disk", "disk.erofs", "-o", "trust"]),
        ("initramfs", &["initramfs", "-o", "initramfs"]),
    ] {
        note(what, programs(&bench, &mut traced(&bench, arguments)));
    }
    let deploy = ["deploy", "disk.erofs", "--registry", "registry.test", "--host", "a.test", "--ca-dir", "ca", "-o", "cluster"];
    let files = ["--server", "static", "--kernel", "vmlinux", "--initramfs", "initramfs"];
    note("deploy", programs(&bench, &mut traced(&bench, &[&deploy[..], &files].concat())));
    note("run", run(&bench));
    let mut kernel = traced(&bench, &["kernel", "-o", "kernel"]);
    kernel.env("PATH", distribution(&bench)).env("LOCALREGISTRY_CACHE", bench.path("cache"));
    note("kernel", programs(&bench, &mut kernel));

    let output = bench.command(&["doctor", "--json"]).output().unwrap();
    let doctor: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = doctor["checks"].as_array().unwrap();
    let field = |check: &Value, name: &str| check[name].as_str().unwrap().to_owned();
    let found = |name: &str| checks.iter().find(|check| check["name"] == name).map(|check| field(check, "found"));
    let facts = ["kvm", "memory", "cache", "frozen", "kernel", "modules", "init"];
    let named = checks.iter().map(|check| field(check, "name")).filter(|name| !facts.contains(&name.as_str()));
    let named: BTreeSet<String> = named
        .map(|name| if name == "qemu" { found("qemu").unwrap().split(' ').next().unwrap().to_owned() } else { name })
        .collect();
    assert_eq!(named, needed.keys().cloned().collect::<BTreeSet<_>>());
    // Each line names the command that needs the program.
    for (program, commands) in needed.iter().filter(|(program, _)| !program.starts_with("qemu-")) {
        let found = found(program).unwrap();
        assert!(commands.iter().all(|command| found.contains(&format!("`{command}`"))), "{commands:?}: {found}");
    }
    assert_eq!(needed["qemu-system-x86_64"], BTreeSet::from(["run".to_owned()]));
}

#[test]
fn execve_trace_is_parsed() {
    let log = format!(
        "10 execve(\"{PROGRAM}\", [\"x\"], 0x7ffc /* 9 vars */) = 0\n\
         10 clone3({{flags=CLONE_VM|CLONE_THREAD}} => {{parent_tid=[11]}}, 88) = 11\n\
         11 vfork( <unfinished ...>\n\
         12 execve(\"/no/mke2fs\", [\"mke2fs\"], 0x7ffc /* 9 vars */) = -1 ENOENT (No such file or directory)\n\
         12 execve(\"/usr/sbin/mke2fs\", [\"mke2fs\"], 0x7ffc /* 9 vars */ <unfinished ...>\n\
         11 <... vfork resumed>) = 12\n\
         12 <... execve resumed>) = 0\n\
         12 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD) = 13\n\
         13 execve(\"/usr/bin/tar\", [\"tar\"], 0x7ffc /* 9 vars */) = 0\n"
    );
    assert_eq!(started(&log), BTreeSet::from(["mke2fs".to_owned()]));
    assert!(Path::new(PROGRAM).is_absolute());
}
