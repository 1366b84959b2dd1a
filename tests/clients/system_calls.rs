//! Every system call may fail. `strace` lets each call of a command fail in turn. The command never panics, it exits with 0 only if its
//! result is right, and what it leaves behind it names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use testing::elf::elf;
use testing::layout::Layout;
use testing::pack::{Bench, PROGRAM, digest_of, text};
use testing::serve::Serving;

/// Calls of the loader, the allocator and the threads' own management, whose failure a program does not survive or does not see.
const NOT_FAILED: [&str; 24] = [
    "arch_prctl",
    "brk",
    "execve",
    "exit",
    "exit_group",
    "futex",
    "gettid",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "poll",
    "prctl",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
    "set_tid_address",
    "sigaltstack",
];
/// Of these, only every fourth call fails: there are many alike.
const MANY: [&str; 6] = ["close", "fcntl", "lseek", "newfstatat", "read", "statx"];

/// Calls that a signal may interrupt: the command does them again.
const INTERRUPTED: [&str; 7] = ["copy_file_range", "fsync", "openat", "pread64", "pwrite64", "read", "write"];

/// Every file below `folder`, with its content. The folder's own path in it is replaced.
fn tree(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let content = text(&fs::read(&path).unwrap()).replace(&folder.display().to_string(), "FOLDER");
            found.insert(path.strip_prefix(folder).unwrap().to_owned(), content);
        }
    }
    found
}

/// Names of temporary files and folders below `folder`: they start with a dot.
fn temporary(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with('.') {
            found.insert(name);
        } else if entry.path().is_dir() {
            found.extend(temporary(&entry.path()));
        }
    }
    found
}

/// Runs the command under strace in the new folder `name`.
fn traced(bench: &Bench, name: &str, strace: &[&str], arguments: &[&str]) -> (PathBuf, Output) {
    let folder = bench.path(name);
    fs::create_dir(&folder).unwrap();
    let mut command = testing::program("strace");
    command.args(["-f", "-qq"]).args(strace).arg(PROGRAM).args(arguments);
    (folder.clone(), command.current_dir(folder).output().unwrap())
}

/// The calls of a command after its start, by name: the first and the last number that a thread counts.
fn calls(log: &str) -> BTreeMap<String, (usize, usize)> {
    let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
    let mut found: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    // The main thread sets an alternative stack right before `main`.
    let mut stacks = 0;
    for line in log.lines() {
        let Some((thread, call)) = line.split_once(char::is_whitespace) else { continue };
        let Some((name, _)) = call.trim_start().split_once('(').filter(|(name, _)| !name.contains(' ')) else { continue };
        let count = counts.entry((thread, name)).or_default();
        *count += 1;
        stacks += usize::from(name == "sigaltstack");
        if stacks >= 2 && !NOT_FAILED.contains(&name) {
            let (first, last) = found.entry(name.to_owned()).or_insert((*count, *count));
            *first = (*first).min(*count);
            *last = (*last).max(*count);
        }
    }
    found
}

fn error_of(call: &str) -> &'static str {
    match call {
        "write" | "pwrite64" | "writev" => "ENOSPC",
        "openat" | "openat2" | "open" => "EMFILE",
        "clone" | "clone3" => "EAGAIN",
        _ => "EIO",
    }
}

fn sweep(bench: &Bench, name: &str, arguments: &[&str]) {
    let log = bench.path(&format!("{name}.log"));
    let (folder, reference) = traced(bench, name, &["-o", log.to_str().unwrap()], arguments);
    assert!(reference.status.success(), "{}", text(&reference.stderr));
    let expected = tree(&folder);
    let printed = |output: &Output, folder: &Path| text(&output.stdout).replace(&folder.display().to_string(), "FOLDER");
    let result = printed(&reference, &folder);

    let mut faults = Vec::new();
    for (call, (first, last)) in calls(&fs::read_to_string(log).unwrap()) {
        let step = if MANY.contains(&call.as_str()) { 4 } else { 1 };
        faults.extend((first..=last).step_by(step).map(|number| (call.clone(), number, error_of(&call))));
        // A signal interrupts it.
        if INTERRUPTED.contains(&call.as_str()) {
            faults.extend((first..=last).step_by(step).map(|number| (call.clone(), number, "EINTR")));
        }
    }
    assert!(faults.len() > 30, "{name}: {faults:?}");
    let next = AtomicUsize::new(0);
    let check = || {
        while let Some((call, number, error)) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error={error}:when={number}"));
            let (folder, output) = traced(
                bench,
                &format!("{name}.{call}.{number}.{error}"),
                &["-o", "/dev/null", "-e", &trace, "-e", &inject],
                arguments,
            );
            let (what, said) = (format!("{name}: {call} {number} {error}"), text(&output.stderr));
            // Each thread counts its own calls, and the first thread those of the loader.
            if said.contains("error while loading shared libraries") {
                fs::remove_dir_all(folder).unwrap();
                continue;
            }
            assert!(!said.contains("panicked") && output.status.code().is_some_and(|code| code < 3), "{what}: {output:?}");
            let left = temporary(&folder);
            assert!(left.iter().all(|name| said.contains(name.as_str())), "{what}: {left:?} is left over: {said}");
            let mut found = tree(&folder);
            found.retain(|path, _| !path.components().any(|part| left.contains(part.as_os_str().to_str().unwrap())));
            let messages = said.lines().filter(|line| line.starts_with("localregistry: ")).count();
            // The C library does not repeat the opening of a folder.
            let is_repeated = *error == "EINTR" && call != "openat";
            assert!(messages <= 1 && (!is_repeated || output.status.success()), "{what}: {output:?}");
            if output.status.success() {
                assert_eq!((found == expected, printed(&output, &folder)), (true, result.clone()), "{what}: {said}");
            } else {
                assert!(said.contains("localregistry: "), "{what}: {output:?}");
                found.retain(|path, _| !path.starts_with("cache"));
                let is_whole = found.iter().all(|(path, content)| expected.get(path) == Some(content));
                let count = expected.keys().filter(|path| !path.starts_with("cache")).count();
                assert!(found.is_empty() || is_whole && found.len() == count, "{what}: {:?}: {said}", found.keys());
            }
            fs::remove_dir_all(folder).unwrap();
        }
    };
    std::thread::scope(|scope| {
        (0..4).map(|_| scope.spawn(check)).collect::<Vec<_>>().into_iter().for_each(|one| one.join().unwrap())
    });
}

fn bench() -> Bench {
    let bench = Bench::default();
    let mut layout = Layout::default();
    layout.image("docker.io/library/hello:1", &[7; 70_000]);
    bench.layout("layout", &layout);
    bench.pack(&["layout"]);
    bench.file("blob", &[7; 70_000]);
    bench.file("static", &elf(&[(1, b"code")]));
    bench.file("vmlinux", b"a kernel");
    bench.file("initramfs", b"an initramfs");
    bench
}

#[test]
fn pack() {
    sweep(&bench(), "pack", &["pack", "../layout", "--cache", "cache", "-o", "disk"]);
}

#[test]
fn inspect_export() {
    sweep(&bench(), "inspect", &["inspect", "../disk.erofs", "--export", "out"]);
}

#[test]
fn trust() {
    sweep(&bench(), "trust", &["trust", "--endpoint", "http://a.test:5000", "--disk", "../disk.erofs", "-o", "out"]);
}

#[test]
fn deploy() {
    let files = ["--server", "../static", "--kernel", "../vmlinux", "--initramfs", "../initramfs"];
    let names = ["deploy", "../disk.erofs", "--registry", "a.test:5000", "--host", "b.test", "-o", "out"];
    sweep(&bench(), "deploy", &[&names[..], &files].concat());
}

/// Starts a command under strace, in which the thread of this number, or every one from it on, cannot be started.
fn without_thread(bench: &Bench, number: &str, arguments: &[&str]) -> Command {
    let mut command = testing::program("strace");
    // strace itself leaves signals to the command.
    command.args(["-f", "-qq", "-I", "never", "-o", "/dev/null", "-e", "trace=clone,clone3", "-e"]);
    command.arg(format!("inject=clone,clone3:error=EAGAIN:when={number}")).arg(PROGRAM).args(arguments);
    command.current_dir(bench.path(".")).env("HOME", bench.path("home"));
    command
}

/// The first thread waits for signals. Numbers from the seventh on are of threads that are not started.
const THREADS: [&str; 9] = ["1", "2", "3", "4", "5", "6", "2+", "3+", "4+"];
const NO_THREAD: &str = "cannot start a thread: Resource temporarily unavailable (os error 11); allow more processes (ulimit -u) or \
                         memory (ulimit -v)\n";

#[test]
fn pull_without_a_thread() {
    let bench = bench();
    let mut layout = Layout::default();
    layout.image("a/b:1", &[7; 70_000]);
    layout.write();
    let serving = Serving::start(layout.path(), TempDir::new().unwrap(), &["--tls", "off"]);
    let name = format!("localhost:{}/a/b:1", serving.address().rsplit_once(':').unwrap().1);
    let arguments = ["--quiet", "pack", "--pull", &name, "-o", "new"];
    assert!(bench.command(&arguments).output().unwrap().status.success());
    let expected = fs::read(bench.path("new")).unwrap();
    for number in THREADS {
        fs::write(bench.path("new"), "the old disk").unwrap();
        let before = temporary(&bench.path("."));
        let output = without_thread(&bench, number, &arguments).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(temporary(&bench.path(".")), before, "{number}");
        if output.status.success() {
            assert_eq!((fs::read(bench.path("new")).unwrap() == expected, said.as_str()), (true, ""), "{number}");
        } else {
            let starts = ["localregistry: cannot write new: ".to_owned(), format!("localregistry: cannot pull {name}: ")];
            assert!(starts.iter().any(|start| said == format!("{start}{NO_THREAD}")), "{number}: {said}");
            assert_eq!((output.status.code(), fs::read(bench.path("new")).unwrap().as_slice()), (Some(1), &b"the old disk"[..]));
        }
    }
}

#[test]
fn serve_without_a_thread() {
    let bench = bench();
    let before = tree(&bench.path("layout"));
    let mut has_served = 0;
    for number in THREADS {
        let arguments = ["--quiet", "serve", "layout", "--tls", "off", "--listen", "127.0.0.1:0"];
        let mut strace = without_thread(&bench, number, &arguments);
        let mut child = strace.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if let Some(url) = line.trim().strip_prefix("serving 1 tagged image at ") {
            has_served += 1;
            let blob = format!("{url}/v2/docker.io/library/hello/blobs/{}", digest_of(&bench.path("blob")));
            let got = testing::program("curl").args(["-sS", "-m", "60", &blob]).output().unwrap();
            assert_eq!(got.stdout, [7; 70_000], "{number}: {}", text(&got.stderr));
            let serving = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
            kill(Pid::from_raw(serving.trim().parse().unwrap()), Signal::SIGTERM).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        let expected = if line.is_empty() {
            (Some(1), format!("localregistry: cannot start: {NO_THREAD}"))
        } else {
            (Some(0), String::new())
        };
        assert_eq!((output.status.code(), said), expected, "{number}: {line}");
    }
    assert!(has_served > 0 && has_served < THREADS.len());
    assert_eq!(tree(&bench.path("layout")), before);
}
