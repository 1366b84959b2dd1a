//! The launchers in `qemu/launchers`, run unchanged, and their references: the machine definitions and the page on JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use localregistry::host::support::cache;
use testing::child::{KilledOnDrop, wait_for_processes_in};
use testing::pack::{Bench, PROGRAM, superblock, text};
use testing::vm::succeed;

const LAUNCHERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/qemu/launchers");

/// The launcher with this name, in a folder where it may create only temporary files.
fn of(bench: &Bench, name: &str) -> Command {
    let mut command = testing::program(Path::new(LAUNCHERS).join(name));
    for folder in ["tmp", "runtime"] {
        fs::create_dir_all(bench.path(folder)).unwrap();
    }
    command.current_dir(bench.path("")).env("TMPDIR", bench.path("tmp")).env("XDG_RUNTIME_DIR", bench.path("runtime"));
    command.env("LOCALREGISTRY", PROGRAM).env("LOCALREGISTRY_CACHE", cache::folder("").unwrap()).env("ACCEL", "tcg");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Asserts that a launcher has left no run and no temporary file.
fn nothing_left(bench: &Bench) {
    let count = |folder: &str| fs::read_dir(bench.path(folder)).into_iter().flatten().count();
    assert_eq!((count("tmp"), count("runtime/localregistry")), (0, 0));
}

/// The output of a launcher that has succeeded.
fn ended_well(bench: &Bench, output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    nothing_left(bench);
    text(&output.stdout)
}

/// Runs a launcher on a missing disk, and asserts that it ends as `run` does.
fn fails_as_run_does(bench: &Bench, mut command: Command) {
    let output = command.output().unwrap();
    let message = "localregistry: cannot read the disk no-disk: No such file or directory (os error 2)\n";
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(9), message));
    nothing_left(bench);
}

#[test]
fn shell_launcher_runs_a_command_with_the_registry() {
    let bench = Bench::default();
    bench.sample_disk();
    let pull = "curl --silent --fail --cacert \"$REGISTRY_CA\" \"https://$REGISTRY/v2/test/hello/tags/list\" && \
                cat \"$REGISTRY_TRUST/images.txt\" && echo \"$REGISTRY\" && exit 7";
    let output = of(&bench, "run.sh").args(["disk.erofs", "sh", "-c", pull]).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "the command's: {}", text(&output.stderr));
    nothing_left(&bench);
    let said = text(&output.stdout);
    let registry = said.lines().last().unwrap();
    assert_eq!(said, format!("{{\"name\":\"test/hello\",\"tags\":[\"latest\"]}}{registry}/test/hello:latest\n{registry}\n"));

    let mut missing = of(&bench, "run.sh");
    missing.args(["no-disk", "false"]);
    fails_as_run_does(&bench, missing);
}

/// The kernel command line of a microvm without KVM, obtained as the machine definition says.
fn append_of_microvm(bench: &Bench) -> String {
    let folder = bench.path("printed").display().to_string();
    let run = ["run", "a,disk", "--machine", "microvm", "--accel", "tcg", "--print-command", "--json", "--run-dir", &folder];
    let printed: serde_json::Value = serde_json::from_str(&succeed(&mut bench.command(&run))).unwrap();
    let words: Vec<&str> = printed["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    let append = words.iter().position(|word| *word == "-append").unwrap();
    words[append + 1].to_owned()
}

#[test]
fn python_launcher_starts_qemu_with_the_machine_definition() {
    let bench = Bench::default();
    bench.sample_disk();
    succeed(&mut bench.command(&["--quiet", "kernel", "-o", "vmlinux"]));
    succeed(&mut bench.command(&["--quiet", "initramfs", "-o", "initramfs"]));
    // QEMU gives commas a meaning, and the launcher must not.
    fs::rename(bench.path("disk.erofs"), bench.path("a,disk")).unwrap();
    let machine = |disk: &str| {
        let mut command = of(&bench, "machine.py");
        command.args([disk, "vmlinux", "initramfs", "test/hello:latest"]);
        command
    };
    let serves = |mut command: Command| {
        let said = ended_well(&bench, &command.output().unwrap());
        let (pulled, ended) = said.trim_end().split_once('\n').unwrap();
        let digests = pulled.strip_prefix("pulled test/hello:latest of 1 images, ").unwrap();
        let (got, seen) = digests.split_once(", and it saw ").unwrap();
        assert!(got == seen && got.starts_with("sha256:"), "{said}");
        assert_eq!(ended, "shut down cleanly after 1 requests");
    };
    serves(machine("a,disk"));
    let mut microvm = machine("a,disk");
    microvm.env("MACHINE", concat!(env!("CARGO_MANIFEST_DIR"), "/qemu/microvm.cfg")).env("APPEND", append_of_microvm(&bench));
    serves(microvm);
    let run = |disk: &str| machine(disk).output().unwrap();

    // A guest that stops with a fault.
    bench.file("none", &superblock());
    let output = run("none");
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.starts_with("the guest stopped: "), "{said}");
    nothing_left(&bench);
    // A QEMU that fails before it starts a machine, with a message.
    let output = run("no-disk");
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("QEMU ended with status 1 before `ready`"), "{said}");
    nothing_left(&bench);
}

/// Killing a launcher kills its machine, however early.
#[test]
fn killed_launcher_leaves_no_process() {
    let bench = Bench::default();
    bench.sample_disk();
    succeed(&mut bench.command(&["--quiet", "kernel", "-o", "vmlinux"]));
    succeed(&mut bench.command(&["--quiet", "initramfs", "-o", "initramfs"]));
    let with = |mut command: Command, arguments: &[&str]| {
        command.args(arguments);
        command
    };
    for mut command in [
        with(of(&bench, "run.sh"), &["disk.erofs", "true"]),
        with(of(&bench, "machine.py"), &["disk.erofs", "vmlinux", "initramfs", "a:b"]),
    ] {
        let mut launcher =
            KilledOnDrop(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let folder = bench.path("");
        wait_for_processes_in(&folder, |there| {
            there.iter().any(|words| {
                words.starts_with("qemu-system") && ["\0-kernel\0", "\0-incoming\0"].iter().any(|one| words.contains(one))
            })
        });
        launcher.0.kill().unwrap();
        launcher.0.wait().unwrap();
        wait_for_processes_in(&folder, <[String]>::is_empty);
    }
    let runs = || fs::read_dir(bench.path("runtime/localregistry")).unwrap().count();
    assert_eq!(runs(), 0, "`run` was asked to end, and ended gracefully");

    // Also after the registry answers.
    let mut command = with(of(&bench, "run.sh"), &["disk.erofs", "sh", "-c", "echo >ready; cat"]);
    let mut launcher = KilledOnDrop(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let ready = bench.path("ready");
    wait_for_processes_in(&bench.path(""), |_| ready.exists());
    assert_eq!(runs(), 1);
    launcher.0.kill().unwrap();
    launcher.0.wait().unwrap();
    // The launcher's command ends by itself and has its own standard input.
    drop(launcher.0.stdin.take());
    wait_for_processes_in(&bench.path(""), <[String]>::is_empty);
    assert_eq!(runs(), 0);
}

/// Sections of a QEMU configuration file: the group, and its keys with values.
fn sections(text: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut sections: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(head) = line.strip_prefix('[') {
            let group = head.trim_end_matches(']').split(' ').next().unwrap();
            sections.push((group.to_owned(), BTreeMap::new()));
        } else {
            let (key, value) = line.split_once(" = ").unwrap();
            sections.last_mut().unwrap().1.insert(key.to_owned(), value.trim_matches('"').to_owned());
        }
    }
    sections
}

/// A comma-separated QEMU argument, whose first word is the value of `first`.
fn argument(first: &str, words: &str) -> BTreeMap<String, String> {
    let pairs = words.split(',').enumerate().map(|(place, word)| match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (if place == 0 { first.to_owned() } else { word.to_owned() }, word.to_owned()),
    });
    pairs.collect()
}

#[test]
fn machine_definitions_match_the_machines_of_run() {
    same_machine(include_str!("../../qemu/q35.cfg"), include_str!("../golden/qemu-argv.txt"));
    same_machine(include_str!("../../qemu/microvm.cfg"), include_str!("../golden/qemu-argv-microvm.txt"));
}

fn same_machine(definition: &str, arguments: &str) {
    let sections = sections(definition);
    let of_run: Vec<(&str, &str)> = arguments.lines().filter_map(|line| line.split_once(' ')).collect();
    let devices: BTreeSet<_> = { &of_run }
        .iter()
        .filter(|(option, _)| *option == "-device")
        .map(|(_, words)| argument("driver", words))
        // QEMU assigns one.
        .map(|device| device.into_iter().filter(|(key, _)| key != "mac").collect::<BTreeMap<_, _>>())
        .chain([argument("driver", "isa-serial,chardev=console")])
        .collect();
    let found = sections.iter().filter(|(group, _)| group == "device").map(|(_, keys)| keys.clone());
    assert_eq!(found.collect::<BTreeSet<_>>(), devices);
    for (option, group, first) in [
        ("-machine", "machine", "type"),
        ("-m", "memory", "size"),
        ("-smp", "smp-opts", "cpus"),
        ("-rtc", "rtc", "base"),
        ("-mon", "mon", "chardev"),
    ] {
        let words = of_run.iter().find(|(found, _)| *found == option).unwrap().1;
        let keys = &sections.iter().find(|(found, _)| found == group).unwrap().1;
        assert_eq!(*keys, argument(first, words), "{option}");
    }
    for (option, value) in of_run.iter().filter(|(option, _)| ["-append", "-cpu", "-display"].contains(option)) {
        // The rest of a microvm's kernel command line depends on the host.
        let value = value.split(" tsc_early_khz=").next().unwrap();
        assert!(definition.replace('"', "").contains(&format!("{option} {value}")), "{option} {value}");
    }
}

#[test]
fn json_page_matches_the_schema_command() {
    let page = succeed(testing::program(PROGRAM).arg("schema"));
    assert!(page == include_str!("../../proto/JSON.md"), "regenerate it: localregistry schema >proto/JSON.md");
    let json = succeed(testing::program(PROGRAM).args(["schema", "--json"]));
    let schema: serde_json::Value = serde_json::from_str(&json).unwrap();
    let types = schema["types"].as_array().unwrap();
    let ready = types.iter().find(|one| one["name"] == "Ready").unwrap();
    let field = ready["fields"].as_array().unwrap().iter().find(|field| field["name"] == "caPem").unwrap();
    assert_eq!((&field["type"], &field["list"]), (&"string".into(), &false.into()));
}
