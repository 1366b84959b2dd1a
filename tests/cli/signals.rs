//! Signals while a command waits for an input or an output that is a FIFO, on which nothing happens, and while it writes.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::libc::O_NONBLOCK;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use testing::elf::elf;
use testing::layout::Layout;
use testing::pack::{Bench, PROGRAM, empty_disk, hello};

/// Repeats `step` until it returns something.
fn eventually<T>(what: &str, mut step: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(done) = step() {
            return done;
        }
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(5));
    }
}

/// Starts `localregistry ARGUMENTS`, with `trap` in the shell before it.
fn start(bench: &Bench, trap: &str, arguments: &[&str]) -> Child {
    let mut command = testing::program("sh");
    command.args(["-c", &format!("{trap} exec \"$@\""), "sh", PROGRAM, "--quiet"]).args(arguments);
    command.current_dir(bench.path("")).env_remove("XDG_RUNTIME_DIR");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the process handles signals.
fn wait_for_handlers(child: &Child) {
    let is_signals = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "signals\n");
    let tasks = || fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().flatten();
    eventually("the process handles signals", || tasks().any(is_signals).then_some(()));
}

/// Opens a FIFO for writing once the process has opened it for reading.
fn writer(fifo: &Path) -> File {
    let open = || OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(fifo).ok();
    eventually("the FIFO is read", open)
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

fn said(child: &mut Child) -> (ExitStatus, String) {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap(), said)
}

#[test]
fn signals_end_a_command_that_waits_for_a_fifo() {
    let (bench, _, _) = hello(b"layer");
    bench.file("disk", &empty_disk());
    bench.file("key", b"");
    mkfifo(&bench.path("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    let before = bench.everything().into_keys().collect::<Vec<_>>();
    let serve = ["serve", "layout", "--listen", "127.0.0.1:0"];
    let run = ["run", "disk", "--pid-file", "pid", "--run-dir", "run"];
    for arguments in [
        &["pack", "--spec", "fifo", "-o", "new"][..],
        &["pack", "--spec", "/dev/stdin", "-o", "new"],
        &[&serve[..], &["--htpasswd", "fifo"]].concat(),
        &[&serve[..], &["--client-ca", "fifo"]].concat(),
        &[&serve[..], &["--ca", "fifo", "--key", "key"]].concat(),
        &[&serve[..], &["--ca", "key", "--key", "fifo"]].concat(),
        &[&serve[..], &["--tls", "provided", "--cert", "fifo", "--key", "key"]].concat(),
        &[&serve[..], &["--events", "fifo"]].concat(),
        &[&run[..], &["--config", "fifo"]].concat(),
        &[&run[..], &["--htpasswd", "fifo"]].concat(),
        &["trust", "--endpoint", "a:1", "--ca", "fifo", "-o", "trust"],
        &["trust", "--ready", "fifo", "-o", "trust"],
        &["kernel", "--kernel", "fifo", "-o", "new"],
        &["initramfs", "--init", "fifo", "-o", "new"],
        &["sample", "--binary", "fifo", "-o", "new"],
    ] {
        // A shell without job control starts background processes with SIGINT ignored.
        for (trap, signal) in
            [("", Signal::SIGINT), ("trap '' INT;", Signal::SIGINT), ("", Signal::SIGTERM), ("", Signal::SIGHUP)]
        {
            // Another test's process that is being started may hold the last FIFO's writer, and its end would be this command's input.
            fs::remove_file(bench.path("fifo")).unwrap();
            mkfifo(&bench.path("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
            let mut child = start(&bench, trap, arguments);
            wait_for_handlers(&child);
            let is_read = !arguments.contains(&"--events") && !arguments.contains(&"/dev/stdin");
            let _writer = is_read.then(|| writer(&bench.path("fifo")));
            send(&child, signal);
            let (status, said) = said(&mut child);
            assert_eq!(status.code(), Some(128 + signal as i32), "{arguments:?}: {status}: {said}");
            assert!(said.ends_with(&format!("interrupted by {signal}\n")), "{arguments:?}: {said}");
            assert_eq!(bench.everything().into_keys().collect::<Vec<_>>(), before, "{arguments:?}");
        }
    }
}

/// The result is longer than a pipe holds, so that the command is still printing when the signal comes.
#[test]
fn signal_after_an_export_does_not_make_it_a_failure() {
    let (bench, mut layout) = (Bench::default(), Layout::default());
    let long = "r".repeat(200);
    (0..400).for_each(|number| _ = layout.image(&format!("test/{long}{number}:1"), b"layer"));
    bench.layout("layout", &layout);
    for (number, signal) in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().enumerate() {
        let folder = format!("exported{number}");
        let mut child = start(&bench, "", &["--json", "inspect", "layout", "--export", &folder]);
        eventually("the folder is exported", || bench.path(&folder).join("index.json").exists().then_some(()));
        send(&child, signal);
        let mut printed = String::new();
        child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        let (status, said) = said(&mut child);
        assert!(status.success() && said.is_empty(), "{signal}: {status}: {said}");
        let result: serde_json::Value = serde_json::from_str(&printed).unwrap();
        assert_eq!((result["images"].as_array().unwrap().len(), result["exported"].as_str()), (400, Some(&*folder)));
    }
}

#[test]
fn fifo_is_read_to_its_end_and_an_ignored_sighup_stays_ignored() {
    let (bench, _, _) = hello(b"layer");
    mkfifo(&bench.path("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    for trap in ["", "trap '' HUP;"] {
        let mut child = start(&bench, trap, &["pack", "--spec", "fifo", "-o", "disk"]);
        wait_for_handlers(&child);
        let mut writer = writer(&bench.path("fifo"));
        writer.write_all(b"images { path: \"lay").unwrap();
        if !trap.is_empty() {
            send(&child, Signal::SIGHUP);
        }
        sleep(Duration::from_millis(200));
        writer.write_all(b"out\" }").unwrap();
        drop(writer);
        let (status, said) = said(&mut child);
        assert!(status.success() && said.is_empty(), "{status} {:?}: {said}", status.signal());
        fs::remove_file(bench.path("disk")).unwrap();
    }
}

#[test]
fn events_go_to_a_fifo_with_a_reader_and_lost_ones_are_an_error() {
    let (bench, _, _) = hello(b"layer");
    mkfifo(&bench.path("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    let serve = |events| start(&bench, "", &["serve", "layout", "--tls", "off", "--listen", "127.0.0.1:0", "--events", events]);
    let ready = |child: &mut Child| {
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    };
    let mut child = serve("fifo");
    let mut reader = File::open(bench.path("fifo")).unwrap();
    ready(&mut child);
    send(&child, Signal::SIGHUP);
    let mut events = String::new();
    reader.read_to_string(&mut events).unwrap();
    let (status, said_) = said(&mut child);
    assert!(status.success() && said_.is_empty(), "{status}: {said_}");
    assert!(events.lines().last().unwrap().contains("\"done\""), "{events}");

    let mut child = serve("/dev/full");
    ready(&mut child);
    send(&child, Signal::SIGTERM);
    let (status, said) = said(&mut child);
    let message = "localregistry: cannot write every event to /dev/full: No space left on device (os error 28)\n";
    assert_eq!((status.code(), said.as_str()), (Some(1), message));
}

/// Sends a signal to `localregistry ARGUMENTS` as soon as its temporary file or folder is in `folder`. Returns whether it came before the
/// result was complete; then nothing else is changed.
fn is_cut_short(bench: &Bench, folder: &str, arguments: &[&str]) -> bool {
    let before = bench.everything();
    let mut child = start(bench, "", arguments);
    let is_temporary = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with(".localregistry-");
    let is_writing = eventually("a temporary file or the end", || {
        let has_ended = child.try_wait().unwrap().is_some();
        let found = fs::read_dir(bench.path(folder)).unwrap().flatten().any(is_temporary);
        (found || has_ended).then_some(!has_ended)
    });
    if is_writing {
        send(&child, Signal::SIGTERM);
    }
    let (status, said) = said(&mut child);
    if status.success() {
        return false;
    }
    assert_eq!((status.code(), said.as_str()), (Some(143), "localregistry: interrupted by SIGTERM\n"), "{arguments:?}: {status}");
    assert!(bench.everything() == before, "{arguments:?}");
    true
}

#[test]
fn nothing_is_left_of_a_file_or_a_layout_that_a_signal_cuts_short() {
    let bench = Bench::default();
    fs::create_dir(bench.path("out")).unwrap();
    bench.file("old", &elf(&[(1, b"code")]));
    let sample = |folder| {
        let status = start(&bench, "", &["sample", "--binary", "old", "-o", folder]).wait().unwrap();
        assert!(status.success(), "{status}");
    };
    // Written and compressed in much more time than a signal takes.
    let code = vec![7; 64 << 20];
    // A kernel with the PVH note: size of the name, size of the description, type, name, description.
    let note = [&[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0][..], b"Xen\0", &[0; 8]].concat();
    bench.file("program", &elf(&[(1, &code), (4, &note)]));
    for (folder, arguments) in [
        ("out", &["kernel", "--kernel", "program", "-o", "out/new"][..]),
        ("out", &["sample", "--binary", "program", "-o", "out/new"]),
        ("out", &["sample", "--binary", "program", "-o", "out/new/in/folders"]),
        ("out/earlier", &["sample", "--binary", "program", "-o", "out/earlier"]),
    ] {
        eventually("a signal during the writing", || {
            fs::remove_dir_all(bench.path("out")).unwrap();
            fs::create_dir(bench.path("out")).unwrap();
            sample("out/earlier");
            is_cut_short(&bench, folder, arguments).then_some(())
        });
    }
}

/// A server ends with its launcher, and then nothing of its folder is left.
#[test]
fn server_ends_with_its_standard_input_and_removes_its_folder() {
    let (bench, _, _) = hello(b"layer");
    let in_folder = ["--run-dir", "run", "--ca-out", "run/ca.crt", "--events", "run/events.jsonl", "--control", "run/control"];
    let serve = |arguments: &[&str]| {
        let mut command = bench.command(&["serve", "layout", "--json", "--quiet", "--listen", "127.0.0.1:0"]);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let before = bench.everything();
    let mut server = serve(&[&in_folder[..], &["--end-with-stdin"]].concat()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"endpoints\":"), "{line}");
    assert_eq!(fs::metadata(bench.path("run")).unwrap().permissions().mode() & 0o777, 0o700);
    for file in ["ca.crt", "events.jsonl", "control"] {
        assert!(bench.path("run").join(file).exists(), "{file}");
    }
    drop(server.stdin.take());
    assert_eq!(server.wait().unwrap().code(), Some(0));
    assert_eq!(bench.everything(), before);

    // The folder of somebody else.
    bench.file("mine", b"");
    fs::create_dir(bench.path("run")).unwrap();
    fs::rename(bench.path("mine"), bench.path("run/mine")).unwrap();
    let before = bench.everything();
    let refused = serve(&in_folder).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && said.contains("run is not empty"), "{said}");
    assert_eq!(bench.everything(), before);
    // A standard input that does not tell when the launcher ends.
    let refused = serve(&["--run-dir", "other", "--end-with-stdin"]).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    let expected = "localregistry: standard input (--end-with-stdin) is neither a pipe nor a socket: give it one of these, and keep the other end open\n";
    assert_eq!((refused.status.code(), said.as_str()), (Some(2), expected));
    assert_eq!(bench.everything(), before);
}
