//! Runs the examples of `--help`, README.md and docs unchanged, in a folder with the files they name. Skips only lines that need a
//! cluster (`kubectl`) or a public registry.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use localregistry::host::support::cache;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tar::EntryType;
use testing::child::KilledOnDrop;
use testing::deployed::static_server;
use testing::layout::Layout;
use testing::pack::{Bench, PROGRAM, archive, archive_of, gzip, text};
use testing::private::{ip, privately};
use testing::vm::{own_cache, succeed};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Lines of examples by their source.
struct Examples(Vec<(String, String)>);

impl Examples {
    /// The examples in the help of every command.
    fn of_help() -> Self {
        let help = |command: &[&str]| text(&succeed_output(testing::program(PROGRAM).args(command).arg("--help")));
        let overview = help(&[]);
        let commands = overview.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        let names: Vec<&str> =
            commands.map(|line| line.split_whitespace().next().unwrap()).filter(|name| *name != "help").collect();
        assert!(names.len() > 15, "{names:?}");
        let lines = names.iter().flat_map(|name| {
            let help = help(&[name]);
            let lines: Vec<_> =
                help.lines().filter_map(|line| line.strip_prefix("  localregistry ")).map(str::to_owned).collect();
            lines.into_iter().map(move |line| (format!("{name} --help"), format!("localregistry {line}")))
        });
        Self(lines.collect())
    }

    /// The examples in the shell blocks of the pages.
    fn of_pages() -> Self {
        let docs = fs::read_dir(Path::new(ROOT).join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let mut pages: Vec<PathBuf> = docs.chain([Path::new(ROOT).join("README.md")]).collect();
        pages.sort();
        let mut lines = Vec::new();
        for page in pages {
            let mut inside = false;
            for line in fs::read_to_string(&page).unwrap().lines() {
                if line.starts_with("```") {
                    inside = line == "```sh";
                } else if inside {
                    lines.push((page.display().to_string(), line.to_owned()));
                }
            }
        }
        Self(lines)
    }

    fn select(&self, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = &(String, String)> {
        self.0.iter().filter(move |(_, line)| wanted(line))
    }
}

fn succeed_output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    output.stdout
}

/// A folder with every file that the examples name.
fn folder() -> Bench {
    let bench = Bench::default();
    fs::create_dir(bench.path("bin")).unwrap();
    symlink(PROGRAM, bench.path("bin/localregistry")).unwrap();
    succeed(&mut bench.command(&["--quiet", "sample", "-o", "images"]));
    let images = |names: &[&str]| {
        let mut layout = Layout::default();
        for name in names {
            layout.image(name, name.as_bytes());
        }
        layout
    };
    fs::create_dir(bench.path("build")).unwrap();
    fs::create_dir_all(bench.path(".local/share")).unwrap();
    let all = ["test/hello:latest", "test/hello:1", "docker.io/library/busybox:latest"];
    bench.layout("build/images", &images(&all));
    bench.layout("build/app-layout", &images(&["app:1"]));
    for (file, name) in [("web.tar", "test/web:1"), ("db.tar", "test/db:1")] {
        bench.layout("archived", &images(&[name]));
        bench.file(file, &archive_of(&bench.path("archived")));
        fs::remove_dir_all(bench.path("archived")).unwrap();
    }
    bench.file("db.tar.gz", &gzip(&fs::read(bench.path("db.tar")).unwrap()));
    bench.file("chart.tgz", b"a chart");
    let metadata = b"apiVersion: v2\nname: web\nversion: 1.2.3\n";
    let package = gzip(&archive(&[("web/Chart.yaml", EntryType::Regular, metadata)]));
    ["web-1.2.3.tgz", "db-4.5.6.tgz"].iter().for_each(|name| drop(bench.file(name, &package)));
    bench.file("images.textproto", b"images { path: \"web.tar\" }\n");
    bench.file("users", format!("anna:{}\n", bcrypt::hash("secret", 5).unwrap()).as_bytes());
    for (disk, source) in
        [("images", "images"), ("base", "images"), ("build", "web.tar"), ("yesterday", "web.tar"), ("today", "images")]
    {
        bench.pack(&[source]);
        fs::rename(bench.path("disk.erofs"), bench.path(&format!("{disk}.erofs"))).unwrap();
    }
    for name in ["disk", "a", "b"] {
        fs::copy(bench.path("images.erofs"), bench.path(&format!("{name}.erofs"))).unwrap();
    }
    for (file, id) in [("faults.json", "slow-blobs"), ("more-faults.json", "slow-manifests")] {
        let rules = json!([{"id": id, "match": {"endpoint": "blob"}, "do": {"delaySeconds": 0.1}}]);
        bench.file(file, json!({ "rules": rules }).to_string().as_bytes());
    }
    log_of_pulls(&bench);
    let init =
        Path::new(PROGRAM).parent().unwrap().parent().unwrap().join("x86_64-unknown-linux-musl/release/localregistry-init");
    fs::copy(init, bench.path("my-init")).unwrap();
    bench
}

/// Writes the events.jsonl and the ca.crt of a server from which 10.1.0.7 pulls.
fn log_of_pulls(bench: &Bench) {
    let line = "localregistry serve build/images --listen 10.1.0.82:5080 --tls off --faults faults.json --events events.jsonl";
    let server = start(bench, line);
    for (name, times) in
        [("test/hello/manifests/latest", 1), ("test/hello/manifests/1", 1), ("library/busybox/manifests/latest", 3)]
    {
        for _ in 0..times {
            let url = format!("http://10.1.0.82:5080/v2/{name}");
            succeed(testing::program("curl").args(["--silent", "--fail", "--interface", "10.1.0.7", "-o", "/dev/null", &url]));
        }
    }
    end(line, server);
    let log = fs::read_to_string(bench.path("events.jsonl")).unwrap();
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["done"]["requests"], "5", "the log of a server has an end");
    let ready = json!({"address": "10.1.0.82:5000", "endpoint": "https://10.1.0.82:5000", "ca": bench.path("ca.crt")});
    bench.file("ready.json", ready.to_string().as_bytes());
    bench.file("ca.crt", testing::certificates::ClientAuthority::new("a CA").pem().as_bytes());
}

/// Runs an example to its end, with `localregistry` in `PATH`.
fn shell(bench: &Bench, line: &str) -> Command {
    let mut command = testing::program("sh");
    // The static server is not in the folder of a debug build.
    let server = if line.contains(" deploy ") { format!("--server {}", static_server().display()) } else { String::new() };
    command.args(["-ec", &format!("{line} {server}")]).current_dir(bench.path("")).env("HOME", bench.path(""));
    let shared = cache::folder("kernel").unwrap().parent().unwrap().to_owned();
    let cache = if line.starts_with("localregistry freeze") { own_cache(&bench.path("")) } else { shared };
    command.env("LOCALREGISTRY_CACHE", cache);
    command.env("PATH", format!("{}:{}", bench.path("bin").display(), std::env::var("PATH").unwrap())).stdin(Stdio::null());
    command
}

/// Starts an example that runs until it is ended, and waits until it is ready.
fn start(bench: &Bench, line: &str) -> KilledOnDrop {
    let (line, ready) = match line.strip_suffix(" >ready.json &") {
        Some(line) => (line, Some("ready.json")),
        None => (line, None),
    };
    let command = shell(bench, &format!("exec {line}")).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = KilledOnDrop(command.unwrap());
    let mut first = String::new();
    let mut output = BufReader::new(child.0.stdout.take().unwrap());
    output.read_line(&mut first).unwrap();
    assert!(!first.is_empty(), "{line}: ended with {:?}", child.0.wait());
    // What follows is read, as a launcher would.
    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    if let Some(file) = ready {
        bench.file(file, first.as_bytes());
    }
    child
}

fn end(line: &str, mut child: KilledOnDrop) {
    kill(Pid::from_raw(child.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(0), "{line}");
}

fn stays(line: &str) -> bool {
    ["localregistry run ", "localregistry serve "].iter().any(|start| line.starts_with(start))
}

/// The network and the files of the examples. The server's addresses are on the loopback, unless appliances get them on `bridges`.
fn machine(kernel: &Kernel, bridges: &[&str]) -> Bench {
    let addresses = ["10.1.0.7/32", "10.1.0.82/32", "fd00::82/128"];
    addresses.iter().for_each(|address| drop(ip(&format!("address add {address} dev lo nodad"))));
    let bench = folder();
    kernel.place(&bench);
    if !bridges.is_empty() {
        addresses[1..].iter().for_each(|address| drop(ip(&format!("address del {address} dev lo"))));
    }
    for bridge in bridges {
        ip(&format!("link add {bridge} type bridge"));
        ip(&format!("link set {bridge} up"));
    }
    bench
}

/// Debian's full kernel and its modules.
struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// Downloads this kernel and the default one, unless the cache has them. Later there is no network.
    fn download() -> Self {
        let json = |arguments: &[&str]| {
            let output = succeed_output(testing::program(PROGRAM).args(["kernel", "--json"]).args(arguments));
            serde_json::from_slice::<Value>(&output).unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let vmlinux = folder.path().join("vmlinux").display().to_string();
        json(&["-o", &vmlinux]);
        let full = json(&["--flavor", "full", "-o", &vmlinux]);
        let release = full["release"].as_str().unwrap();
        let versions = fs::read_dir(cache::folder("kernel/full").unwrap()).unwrap().map(|entry| entry.unwrap().path());
        let image = |folder: PathBuf| folder.join(format!("boot/vmlinuz-{release}"));
        let folder = versions.into_iter().find(|folder| image(folder.clone()).exists()).unwrap();
        Self { modules: folder.join("lib/modules").join(release), image: image(folder) }
    }

    /// Puts both where a machine that runs this kernel has them, and into the folder.
    fn place(&self, bench: &Bench) {
        for folder in ["boot", "usr-lib/modules", "lib/modules"] {
            fs::create_dir_all(bench.path(folder)).unwrap();
        }
        symlink(&self.image, bench.path("boot/vmlinuz-6.1.0-30-amd64")).unwrap();
        symlink(&self.modules, bench.path("usr-lib/modules/6.1.0-30-amd64")).unwrap();
        for (folder, at) in [("boot", "/boot"), ("usr-lib", "/usr/lib")] {
            let layers = format!("lowerdir={}:{at}", bench.path(folder).display());
            succeed(testing::program("mount").args(["-t", "overlay", "overlay", "-o", &layers, at]));
        }
        symlink(&self.image, bench.path("vmlinuz")).unwrap();
        symlink(&self.modules, bench.path("lib/modules/6.1.0-30-amd64")).unwrap();
    }
}

#[test]
fn examples_of_commands_that_end_succeed() {
    let kernel = Kernel::download();
    privately(move || {
        let bench = machine(&kernel, &[]);
        let mut commands = BTreeSet::new();
        let examples = Examples::of_help();
        for (place, line) in examples.select(|line| {
            !["localregistry run ", "localregistry stop ", "localregistry faults e2e "]
                .iter()
                .any(|start| line.starts_with(start))
        }) {
            commands.insert(line.split(' ').nth(1).unwrap());
            if stays(line) {
                end(line, start(&bench, line));
                continue;
            }
            let output = shell(&bench, line).output().unwrap();
            // A difference and a missing pull have their own exit status and are no failure.
            let differs = line.starts_with("localregistry diff") && output.status.code() == Some(1);
            assert!(output.status.success() || differs, "{place}: {line}: {}", text(&output.stderr));
        }
        let expected =
            "assert deploy diff doctor events faults freeze initramfs inspect kernel manual pack ps sample schema serve trust";
        assert_eq!(commands, expected.split(' ').collect());
    });
}

#[test]
fn examples_of_run_boot() {
    let kernel = Kernel::download();
    privately(move || {
        let bench = machine(&kernel, &["br0", "br-test"]);
        let examples = Examples::of_help();
        let mut count = 0;
        for (_, line) in examples.select(|line| line.starts_with("localregistry run ")) {
            if line.contains("--detach") {
                succeed(&mut shell(&bench, line));
            } else {
                end(line, start(&bench, line));
            }
            count += 1;
        }
        assert!(count >= 5, "{count} examples");
        for (_, line) in examples.select(|line| line.starts_with("localregistry stop ")) {
            succeed(&mut shell(&bench, "localregistry run disk.erofs --detach --name e2e"));
            succeed(&mut shell(&bench, line));
        }
        succeed(&mut shell(&bench, "localregistry run disk.erofs --detach --name e2e"));
        examples
            .select(|line| line.starts_with("localregistry faults e2e "))
            .for_each(|(_, line)| drop(succeed(&mut shell(&bench, line))));
        succeed(&mut shell(&bench, "localregistry stop e2e"));
    });
}

#[test]
fn examples_of_the_pages_run() {
    let kernel = Kernel::download();
    privately(move || {
        let bench = machine(&kernel, &["br-test"]);
        let log = fs::read(bench.path("events.jsonl")).unwrap();
        let examples = Examples::of_pages();
        assert!(examples.0.len() >= 8);
        let mut background = Vec::new();
        for (page, line) in &examples.0 {
            if line.starts_with("localregistry assert ") {
                // An earlier example has written a log without pulls.
                bench.file("events.jsonl", &log);
            }
            if line.ends_with('&') {
                background.push((line, start(&bench, line)));
            } else if stays(line) {
                end(line, start(&bench, line));
            } else {
                let output = shell(&bench, line).output().unwrap();
                assert!(output.status.success(), "{page}: {line}: {}", text(&output.stderr));
            }
        }
        background.into_iter().for_each(|(line, child)| end(line, child));
    });
}
