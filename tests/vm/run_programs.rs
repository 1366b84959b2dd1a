//! `localregistry run` as programs use it: one line of output, files, the background, `ps` and `stop`, and the printed QEMU
//! command.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use command_fds::CommandFdExt;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use testing::child::{KilledOnDrop, pid_of, wait_until_gone};
use testing::pack::{Bench, text};
use testing::vm::{skopeo, succeed};
use testing::wait::eventually;

/// A folder with a packed disk and a private runtime folder.
struct Place {
    bench: Bench,
}

impl Place {
    fn new() -> Self {
        let bench = Bench::default();
        bench.sample_disk();
        fs::create_dir(bench.path("runtime")).unwrap();
        Self { bench }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.bench.path(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bench.command(arguments);
        command.env("XDG_RUNTIME_DIR", self.path("runtime")).stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// `run disk.erofs` under TCG with these arguments.
    fn run(&self, arguments: &[&str]) -> Command {
        self.command(&[&["run", "disk.erofs", "--accel", "tcg", "--timeout", "600"], arguments].concat())
    }

    /// Names of the runs' folders.
    fn runs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("runtime/localregistry")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The output of `ps --json`.
    fn ps(&self) -> Vec<Value> {
        let listing = succeed(&mut self.command(&["ps", "--json"]));
        serde_json::from_str::<Value>(&listing).unwrap()["runs"].as_array().unwrap().clone()
    }
}

#[test]
fn run_prints_ready_writes_files_and_cleans_up() {
    let place = Place::new();
    fs::write(place.path("ready"), "an old one").unwrap();
    let arguments =
        ["--json", "--quiet", "--follow", "--ready-file", "ready", "--pid-file", "pid", "--name", "one", "--qemu-arg"];
    let mut command = place.run(&[&arguments[..], &["-name", "--qemu-arg", "guest=one"]].concat());
    let mut run = KilledOnDrop(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(run.0.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let line = lines.next().unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(fs::read_to_string(place.path("ready")).unwrap(), line.clone() + "\n");
    assert_eq!(fs::read_to_string(place.path("pid")).unwrap(), format!("{}\n", run.0.id()));
    let folder = place.path("runtime/localregistry/one");
    assert_eq!((&ready["name"], ready["run_dir"].as_str()), (&"one".into(), folder.to_str()));
    assert_eq!((&ready["pid"], ready["ca"].as_str()), (&run.0.id().into(), folder.join("ca.crt").to_str()));
    assert_eq!(fs::read_to_string(folder.join("ready.json")).unwrap(), line + "\n");
    let arguments = fs::read_to_string(format!("/proc/{}/cmdline", ready["qemu_pid"])).unwrap();
    assert!(arguments.ends_with("\0-name\0guest=one\0"), "{arguments}");

    // A second run with the same name is refused and changes nothing.
    let again = place.run(&["--name", "one"]).output().unwrap();
    let message = format!(
        "localregistry: {} belongs to a run that is alive: choose another name, or end that run with `localregistry stop`\n",
        folder.display()
    );
    assert_eq!((again.status.code(), String::from_utf8(again.stderr).unwrap()), (Some(12), message));

    let url = format!("{}/v2/test/hello/tags/list", ready["endpoint"].as_str().unwrap());
    succeed(testing::program("curl").args(["--silent", "--fail", "--cacert"]).arg(folder.join("ca.crt")).arg(&url));
    let listed = place.ps();
    assert_eq!((listed.len(), &listed[0]["state"], &listed[0]["endpoint"]), (1, &"ready".into(), &ready["endpoint"]));

    let stopped = place.output(&["stop", "one", "--json"]);
    assert_eq!(String::from_utf8(stopped.stdout).unwrap(), "{\"name\":\"one\",\"status\":0}\n");
    assert_eq!((stopped.status.code(), run.0.wait().unwrap().code()), (Some(0), Some(0)));
    let events: Vec<Value> = lines.map(|line| serde_json::from_str(&line).unwrap()).collect();
    let kinds: Vec<&str> = ["booting", "ready", "request", "done"]
        .into_iter()
        .filter(|kind| events.iter().any(|one| one[kind].is_object()))
        .collect();
    assert_eq!(kinds, ["booting", "ready", "request", "done"], "{events:?}");
    assert!(events.last().unwrap()["done"].is_object(), "{events:?}");
    assert_eq!(place.runs(), Vec::<String>::new());
    assert!(!place.path("ready").exists() && !place.path("pid").exists() && !place.path("ca.crt").exists());
}

#[test]
fn background_run_is_listed_and_stopped() {
    let place = Place::new();
    let started = place.run(&["--json", "--quiet", "--detach", "--name", "back"]).output().unwrap();
    assert_eq!(started.status.code(), Some(0), "{started:?}");
    let ready: Value = serde_json::from_slice(&started.stdout).unwrap();
    assert!(Path::new(ready["ca"].as_str().unwrap()).exists());
    let listed = place.ps();
    assert_eq!((listed.len(), &listed[0]["name"], &listed[0]["pid"]), (1, &"back".into(), &ready["pid"]));
    let table = succeed(&mut place.command(&["ps"]));
    assert!(table.lines().nth(1).unwrap().starts_with("back  ready  "), "{table}");
    let stopped = place.output(&["stop", "back"]);
    assert_eq!(
        (stopped.status.code(), String::from_utf8(stopped.stdout).unwrap().as_str()),
        (Some(0), "back shut down cleanly\n")
    );
    wait_until_gone(pid_of(&ready["pid"]));
    wait_until_gone(pid_of(&ready["qemu_pid"]));
    assert_eq!(place.runs(), Vec::<String>::new());

    let nobody = place.output(&["stop", "back"]);
    let folder = place.path("runtime/localregistry/back");
    let message = format!(
        "localregistry: there is no run back: {} is not the folder of a run (`localregistry ps` lists the runs)\n",
        folder.display()
    );
    assert_eq!((nobody.status.code(), String::from_utf8(nobody.stderr).unwrap()), (Some(1), message));
}

#[test]
fn killed_background_run_takes_qemu_with_it_and_is_cleaned_up() {
    let place = Place::new();
    let started = place.run(&["--json", "--quiet", "--detach", "--name", "back"]).output().unwrap();
    let ready: Value = serde_json::from_slice(&started.stdout).unwrap();
    kill(pid_of(&ready["pid"]), Signal::SIGKILL).unwrap();
    wait_until_gone(pid_of(&ready["pid"]));
    wait_until_gone(pid_of(&ready["qemu_pid"]));
    assert_eq!(place.ps()[0]["state"], "dead");
    assert_eq!((place.ps(), place.runs()), (vec![], vec![]));
}

#[test]
fn failed_background_run_reports_the_cause_and_leaves_nothing() {
    let place = Place::new();
    fs::write(place.path("none"), "x").unwrap();
    let given = ["--quiet", "--detach", "--kernel", "none", "--initramfs", "none"];
    let failed = place.run(&given).output().unwrap();
    let said = String::from_utf8(failed.stderr).unwrap();
    assert!(said.starts_with("localregistry: QEMU exited with status 1 before it started the machine: qemu"), "{said}");
    assert_eq!((failed.status.code(), failed.stdout.len(), place.runs()), (Some(1), 0, vec![]));

    // A machine whose CPUs do not run is never ready.
    let mut late =
        place.command(&["run", "disk.erofs", "--accel", "tcg", "--detach", "--quiet", "--timeout", "1", "--qemu-arg", "-S"]);
    let failed = late.output().unwrap();
    let said = String::from_utf8(failed.stderr).unwrap();
    assert!(said.starts_with("localregistry: the registry was not ready within 1 s; QEMU was killed"), "{said}");
    assert_eq!((failed.status.code(), failed.stdout.len(), place.runs()), (Some(5), 0, vec![]));
}

#[test]
fn provided_folder_is_kept_on_request() {
    let place = Place::new();
    let folder = place.path("own").display().to_string();
    let started =
        place.run(&["--quiet", "--detach", "--name", "own", "--run-dir", &folder, "--keep", "--tls", "off"]).output().unwrap();
    assert_eq!(started.status.code(), Some(0), "{started:?}");
    let said = text(&started.stdout);
    let hint = said.lines().last().unwrap().strip_prefix("`localregistry ").unwrap().strip_suffix("` ends it.").unwrap();
    assert_eq!(hint, "stop own");
    for further in [&[][..], &[folder.as_str()]] {
        let listed: Value = serde_json::from_str(&succeed(&mut place.command(&[&["ps", "--json"], further].concat()))).unwrap();
        assert_eq!(listed["runs"].as_array().unwrap().len(), 1, "{listed}");
        assert_eq!((&listed["runs"][0]["state"], &listed["runs"][0]["run_dir"]), (&"ready".into(), &folder.clone().into()));
    }
    let stopped = place.output(&hint.split(' ').collect::<Vec<_>>());
    assert_eq!((stopped.status.code(), text(&stopped.stdout).as_str()), (Some(0), "own shut down cleanly\n"), "{stopped:?}");
    let listed: Value = serde_json::from_str(&succeed(&mut place.command(&["ps", "--json", &folder]))).unwrap();
    assert_eq!((&listed["runs"][0]["state"], &listed["runs"][0]["status"]), (&"ended".into(), &0.into()));
    assert!(Path::new(&folder).join("ready.json").exists());
    let log = fs::read_to_string(Path::new(&folder).join("log")).unwrap();
    assert_eq!(log, "", "--quiet, and nothing went wrong");
}

#[test]
fn printed_command_works_in_a_shell() {
    let place = Place::new();
    // A path that needs quoting for both a shell and QEMU.
    let folder = place.path("it's a, folder").display().to_string();
    let printed = place.run(&["--print-command", "--quiet", "--run-dir", &folder, "--san", "registry.test"]).output().unwrap();
    assert_eq!(printed.status.code(), Some(0), "{printed:?}");
    let script = String::from_utf8(printed.stdout).unwrap();
    let said = |start: &str| script.lines().find_map(|line| line.strip_prefix(start)).unwrap().trim_end_matches('.').to_owned();
    let address = said("# The registry will be forwarded from ");
    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["config.json"]);

    let mut qemu = testing::program("sh");
    // The shell becomes QEMU, so the test kills QEMU itself.
    let script = script.replace("\nqemu-system", "\nexec qemu-system");
    let mut qemu = KilledOnDrop(qemu.args(["-c", &script]).current_dir("/").stdin(Stdio::null()).spawn().unwrap());
    let connect = |name: &str| eventually(|| UnixStream::connect(Path::new(&folder).join(name)));
    let mut events =
        BufReader::new(connect("events.sock")).lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let ready = events.find(|event| event["ready"].is_object()).unwrap();
    fs::create_dir(place.path("certs")).unwrap();
    fs::write(place.path("certs/ca.crt"), ready["ready"]["caPem"].as_str().unwrap()).unwrap();
    let from = format!("docker://{address}/test/hello:latest");
    succeed(&mut skopeo(&["copy", "--quiet", "--src-cert-dir", "certs", &from, "oci:pulled"], &place.path("")));
    connect("control.sock").write_all(b"{\"shutdown\":{}}\n").unwrap();
    let done = events.find(|event| event["done"].is_object()).unwrap();
    assert_eq!(done["done"]["status"].as_u64().unwrap_or(0), 0, "{done}");
    assert_eq!(qemu.0.wait().unwrap().code(), Some(0));
}

#[test]
fn printed_command_has_a_json_form_and_refusals_leave_nothing() {
    let place = Place::new();
    let net = "mcast=239.1.2.3:4000,ip=10.1.0.2/24";
    let mut command = place.run(&["--print-command", "--json", "--quiet", "--tls", "off", "--net", net]);
    let printed: Value = serde_json::from_str(&succeed(&mut command)).unwrap();
    assert_eq!((&printed["command"][0], &printed["address"]), (&"qemu-system-x86_64".into(), &Value::Null));
    let config: Value = serde_json::from_slice(&fs::read(printed["config"].as_str().unwrap()).unwrap()).unwrap();
    let mac = config["interfaces"][0]["mac"].as_str().unwrap();
    let device = format!("virtio-net-pci,netdev=net0,mac={mac}");
    assert!(printed["command"].as_array().unwrap().contains(&device.clone().into()), "{printed}");
    assert_eq!(config["interfaces"][0]["addresses"][0], "10.1.0.2/24");
    fs::remove_dir_all(printed["run_dir"].as_str().unwrap()).unwrap();

    // Several disks, each with the serial that the guest waits for.
    fs::copy(place.path("disk.erofs"), place.path("more.erofs")).unwrap();
    let mut command = place.run(&["more.erofs", "--print-command", "--json", "--quiet", "--disk-wait", "9", "--verify"]);
    let printed: Value = serde_json::from_str(&succeed(&mut command)).unwrap();
    let words: Vec<&str> = printed["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    let more = place.path("more.erofs").canonicalize().unwrap();
    let backend = "driver=raw,node-name=disk1,read-only=on,file.driver=file,file.locking=off,file.filename=";
    assert!(words.contains(&format!("{backend}{}", more.display()).as_str()), "{printed}");
    assert!(words.contains(&"virtio-blk-pci,drive=disk1,opt_io_size=524288,serial=localregistry-1"), "{printed}");
    let config: Value = serde_json::from_slice(&fs::read(printed["config"].as_str().unwrap()).unwrap()).unwrap();
    let serials: Vec<&Value> = config["disks"].as_array().unwrap().iter().map(|disk| &disk["serial"]).collect();
    assert_eq!(serials, ["localregistry", "localregistry-1", "localregistry-*"]);
    assert_eq!((&config["disk"]["waitSeconds"], &config["verify"]), (&9.into(), &true.into()));
    fs::remove_dir_all(printed["run_dir"].as_str().unwrap()).unwrap();

    let refused = place.run(&["--print-command", "--quiet", "--net", "tap=no-such-tap"]).output().unwrap();
    assert_eq!((refused.status.code(), refused.stdout.len(), place.runs()), (Some(11), 0, vec![]));
}

#[test]
fn run_shuts_down_when_its_standard_input_ends() {
    let place = Place::new();
    let mut command = place.run(&["--json", "--end-with-stdin", "--tls", "off"]);
    let run = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(place.path("stderr")).unwrap()).spawn();
    let mut run = KilledOnDrop(run.unwrap());
    let mut launcher = run.0.stdin.take().unwrap();
    let mut lines = BufReader::new(run.0.stdout.take().unwrap()).lines();
    let ready: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    // Input has no meaning.
    launcher.write_all(&[b'x'; 100_000]).unwrap();
    let url = format!("{}/v2/", ready["endpoint"].as_str().unwrap());
    succeed(testing::program("curl").args(["--silent", "--fail", &url]));
    drop(launcher);
    let status = run.0.wait().unwrap();
    let said = fs::read_to_string(place.path("stderr")).unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    let steps = ["standard input (--end-with-stdin) was closed: shutting down\n", "the appliance shut down cleanly ("];
    assert!(steps.iter().all(|step| said.contains(step)), "{said}");
    wait_until_gone(pid_of(&ready["qemu_pid"]));
    assert_eq!(place.runs(), Vec::<String>::new());
}

#[test]
fn background_run_ends_when_the_inherited_descriptor_is_closed() {
    let place = Place::new();
    let (theirs, launcher) = std::io::pipe().unwrap();
    let fd = OwnedFd::from(theirs);
    let mut command = place.run(&["--json", "--quiet", "--detach", "--tls", "off", "--end-with-fd", &fd.as_raw_fd().to_string()]);
    let started = command.preserved_fds(vec![fd]).output().unwrap();
    drop(command);
    assert_eq!(started.status.code(), Some(0), "{started:?}");
    let ready: Value = serde_json::from_slice(&started.stdout).unwrap();
    assert_eq!(place.ps()[0]["state"], "ready");
    drop(launcher);
    wait_until_gone(pid_of(&ready["pid"]));
    wait_until_gone(pid_of(&ready["qemu_pid"]));
    assert_eq!(place.runs(), Vec::<String>::new());
}

#[test]
fn launcher_that_exits_before_ready_ends_the_boot() {
    let place = Place::new();
    let mut command = place.run(&["--quiet", "--end-with-stdin", "--qemu-arg", "-S"]);
    let mut run = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(run.stdin.take());
    let failed = run.wait_with_output().unwrap();
    let message = "localregistry: standard input (--end-with-stdin) was closed before the registry was ready; QEMU was killed\n";
    assert_eq!((failed.status.code(), text(&failed.stderr).as_str()), (Some(6), message));
    assert_eq!(place.runs(), Vec::<String>::new());
}

#[test]
fn descriptors_that_cannot_close_are_refused() {
    let place = Place::new();
    let (reading, writing) = std::io::pipe().unwrap();
    let writing = OwnedFd::from(writing);
    let number = writing.as_raw_fd().to_string();
    let refused = |mut command: Command, message: &str| {
        let refused = command.output().unwrap();
        assert_eq!((refused.status.code(), text(&refused.stderr)), (Some(2), format!("localregistry: {message}\n")));
    };
    // Standard input is /dev/null.
    refused(
        place.run(&["--end-with-stdin"]),
        "standard input (--end-with-stdin) is neither a pipe nor a socket: give it one of these, and keep the other end open",
    );
    refused(
        place.run(&["--end-with-fd", "99"]),
        "the descriptor 99 (--end-with-fd) cannot be used: the launcher has to leave it open for this program (without \
         close-on-exec): Bad file descriptor (os error 9)",
    );
    let mut command = place.run(&["--end-with-fd", &number]);
    command.preserved_fds(vec![writing]);
    let message = format!(
        "the descriptor {number} (--end-with-fd) is the writing end of a pipe: give it the reading end, and keep the writing end open"
    );
    refused(command, &message);
    drop(reading);
    assert!(!place.path("runtime/localregistry").exists(), "nothing has been created");
}

#[test]
fn suspended_qemu_is_killed_after_the_timeout() {
    let place = Place::new();
    let mut command = place.run(&["--json", "--quiet", "--tls", "off"]);
    let mut run = KilledOnDrop(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(run.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    kill(pid_of(&ready["qemu_pid"]), Signal::SIGSTOP).unwrap();
    kill(pid_of(&ready["pid"]), Signal::SIGTERM).unwrap();
    let status = run.0.wait().unwrap();
    let mut said = String::new();
    run.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let message =
        "localregistry: QEMU was killed by SIGKILL, by this program: the guest did not power off after it was asked to\n";
    assert!(status.code() == Some(6) && said.starts_with(message), "{status}: {said}");
    wait_until_gone(pid_of(&ready["qemu_pid"]));
}

/// JSON is UTF-8: in a path that is not, U+FFFD stands for what is not. SIGHUP, as from a terminal that is closed, ends a run as SIGTERM
/// does.
#[test]
fn paths_that_are_not_utf_8_are_used_and_sighup_ends_the_run() {
    let place = Place::new();
    let odd = |name: &str| place.path("").join(OsStr::from_bytes(&[name.as_bytes(), b"\xff"].concat()));
    let shown = |name: &str| Value::from(format!("{}\u{fffd}", place.path(name).display()));
    fs::rename(place.path("disk.erofs"), odd("disk")).unwrap();
    let mut command = place.command(&["run", "--accel", "tcg", "--timeout", "600", "--json", "--quiet", "--name", "odd"]);
    for flag in ["--run-dir", "--ready-file", "--pid-file", "--ca-out"] {
        command.arg(flag).arg(odd(flag));
    }
    let mut run = KilledOnDrop(command.arg(odd("disk")).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(run.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&ready["run_dir"], &ready["ca"]), (&shown("--run-dir"), &shown("--ca-out")));
    assert_eq!(fs::read_to_string(odd("--ready-file")).unwrap(), line);
    let listed = place.ps();
    assert_eq!((listed.len(), &listed[0]["disk"], &listed[0]["state"]), (1, &shown("disk"), &"ready".into()));

    kill(pid_of(&ready["pid"]), Signal::SIGHUP).unwrap();
    let status = run.0.wait().unwrap();
    let mut said = String::new();
    run.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
    wait_until_gone(pid_of(&ready["qemu_pid"]));
    assert!(["--run-dir", "--ready-file", "--pid-file"].iter().all(|flag| !odd(flag).exists()));
    assert_eq!(place.runs(), Vec::<String>::new());
}
