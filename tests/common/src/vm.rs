//! Boots a disk with `localregistry run` as a launcher does, and runs real clients.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use localregistry::host::support::cache;
use localregistry::proto::{self, Event, event};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::pack::{PROGRAM, digest_of};
use crate::wait::eventually;

/// A machine that has reported that it is ready.
pub struct Vm {
    pub dir: TempDir,
    pub address: String,
    pub ready: Value,
    /// The number of events read so far.
    seen: Cell<usize>,
    run: Option<Child>,
}

/// How `localregistry run` ended.
pub struct Ended {
    pub status: Option<i32>,
    pub stderr: String,
    /// The content of the file `console`, if it exists.
    pub console: String,
    pub events: Vec<event::Event>,
}

impl Ended {
    pub fn requests(&self) -> Vec<&proto::Request> {
        let events = self.events.iter();
        events.filter_map(|event| if let event::Event::Request(request) = event { Some(request) } else { None }).collect()
    }

    pub fn done(&self) -> &proto::Done {
        match self.events.last() {
            Some(event::Event::Done(done)) => done,
            other => panic!("`done` is expected last, not {other:?}"),
        }
    }
}

/// A run that starts from the frozen machines in the folder `cache`, and saves them there. Without one it boots, so that tests do not
/// depend on what earlier ones have saved.
fn command(by: &[&str], dir: &Path, disk: &Path, arguments: &[&str], cache: Option<&Path>) -> Command {
    let [program, rest @ ..] = &[by, &[PROGRAM]].concat()[..] else { unreachable!("it has a program") };
    let mut command = crate::program(program);
    command.args(rest).current_dir(dir).args(["run", "--json", "--accel", "tcg", "--events", "events"]).arg(disk).args(arguments);
    match cache {
        Some(cache) => command.env("LOCALREGISTRY_CACHE", cache),
        None => command.arg("--cold"),
    };
    // With `--tls off` there is no CA to write.
    if !arguments.contains(&"off") {
        command.args(["--ca-out", "ca.crt"]);
    }
    command.stderr(fs::File::create(dir.join("stderr")).unwrap());
    command
}

fn ended(dir: &Path, status: Option<i32>) -> Ended {
    let lines = fs::read_to_string(dir.join("events")).unwrap_or_default();
    let event = |line| serde_json::from_str::<Event>(line).unwrap().event.unwrap();
    Ended {
        status,
        stderr: fs::read_to_string(dir.join("stderr")).unwrap(),
        console: fs::read_to_string(dir.join("console")).unwrap_or_default(),
        events: lines.lines().map(event).collect(),
    }
}

/// Runs a disk to the end. The machine must not become ready.
pub fn fails(disk: &Path, arguments: &[&str]) -> Ended {
    let dir = tempfile::tempdir().unwrap();
    let mut run = command(&[], dir.path(), disk, arguments, None).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    // Reads the ready line, or nothing at the end.
    let mut line = String::new();
    BufReader::new(run.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if !line.is_empty() {
        let _ = run.kill();
    }
    let status = run.wait().unwrap();
    assert_eq!(line, "", "no ready line is printed");
    assert!(!dir.path().join("ca.crt").exists(), "no CA is written");
    ended(dir.path(), status.code())
}

/// A cache in the folder `of`, with the kernels of the shared one, but frozen machines of its own.
pub fn own_cache(of: &Path) -> PathBuf {
    let own = of.join("cache");
    if !own.exists() {
        fs::create_dir(&own).unwrap();
        for name in ["kernel", "initramfs"] {
            std::os::unix::fs::symlink(cache::folder(name).unwrap(), own.join(name)).unwrap();
        }
    }
    own
}

/// A QEMU whose arguments this line of bash changes, for faults that `run` has no option for.
pub fn qemu_changed(dir: &Path, change: &str) -> String {
    let path = dir.join("qemu");
    fs::write(&path, format!("#!/bin/bash\n{change}\nexec qemu-system-x86_64 \"${{args[@]}}\"\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

impl Vm {
    /// Boots a disk and waits for the ready line.
    pub fn boot(disk: &Path, arguments: &[&str]) -> Self {
        Self::start(disk, arguments, None)
    }

    /// The same, by the frozen machines in the folder `cache`.
    pub fn start(disk: &Path, arguments: &[&str], cache: Option<&Path>) -> Self {
        Self::start_by(&[], disk, arguments, cache)
    }

    /// The same through a command that runs another.
    pub fn start_by(by: &[&str], disk: &Path, arguments: &[&str], cache: Option<&Path>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let line = dir.path().join("ready");
        let mut command = command(by, dir.path(), disk, arguments, cache);
        let mut run = command.stdin(Stdio::null()).stdout(fs::File::create(&line).unwrap()).spawn().unwrap();
        let ready = loop {
            let text = fs::read_to_string(&line).unwrap();
            if text.ends_with('\n') {
                break serde_json::from_str::<Value>(&text).unwrap();
            }
            if let Some(status) = run.try_wait().unwrap() {
                panic!("{status}: {}", fs::read_to_string(dir.path().join("stderr")).unwrap());
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let address = ready["address"].as_str().unwrap().to_owned();
        Self { dir, address, ready, seen: Cell::new(0), run: Some(run) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits for the next unread event for which `of` returns a value.
    pub fn event<T>(&self, what: &str, of: impl Fn(&event::Event) -> Option<T>) -> T {
        eventually(|| {
            let text = fs::read_to_string(self.path("events")).unwrap();
            let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).enumerate().skip(self.seen.get());
            let mut unread = whole.inspect(|(place, _)| self.seen.set(place + 1));
            let made = unread.find_map(|(_, line)| of(&serde_json::from_str::<Event>(line).unwrap().event.unwrap()));
            made.ok_or_else(|| format!("{what} did not come:\n{text}"))
        })
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.run.as_ref().unwrap().id();
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    /// Sends SIGTERM or SIGINT and waits for the end.
    pub fn stop(self, by: Signal) -> Ended {
        self.signal(by);
        self.end()
    }

    /// Shuts down, which must succeed.
    pub fn shut_down(self) -> Ended {
        let ended = self.stop(Signal::SIGTERM);
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        ended
    }

    /// skopeo's copy of an image, trusting only this machine's CA. The folder `certs` may have a certificate of the client.
    pub fn copy(&self, image: &str, options: &[&str], to: &str) -> Command {
        fs::create_dir_all(self.path("certs")).unwrap();
        fs::copy(self.path("ca.crt"), self.path("certs/ca.crt")).unwrap();
        let from = format!("docker://{}/{image}", self.address);
        let copy = ["copy", "--quiet", "--preserve-digests", "--src-cert-dir", "certs"];
        skopeo(&[&copy, options, &[&from, to]].concat(), self.dir.path())
    }

    /// Pulls an image into a folder of the same name as the layout `source`, compares every blob of that, and returns their number.
    pub fn serves(&self, image: &str, source: &Path) -> usize {
        let folder = source.file_name().unwrap().to_str().unwrap();
        succeed(&mut self.copy(image, &[], &format!("oci:{folder}")));
        let blobs = fs::read_dir(source.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
        let same = blobs.inspect(|blob| {
            let pulled = self.path(folder).join("blobs/sha256").join(blob.file_name().unwrap());
            assert!(fs::read(blob).unwrap() == fs::read(pulled).unwrap(), "{}", blob.display());
        });
        same.count()
    }

    /// Waits until the file `console` contains these words.
    pub fn console(&self, words: &str) {
        eventually(|| {
            let console = fs::read_to_string(self.path("console")).unwrap();
            if console.contains(words) { Ok(()) } else { Err(format!("{words} did not come:\n{console}")) }
        });
    }

    /// Waits until the machine ends by itself.
    pub fn end(mut self) -> Ended {
        let status = self.run.take().unwrap().wait().unwrap();
        ended(self.dir.path(), status.code())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Some(mut run) = self.run.take() {
            let _ = run.kill();
            let _ = run.wait();
        }
    }
}

/// Copies the content of the folder `from` into `to`, which it creates.
pub fn copy_into(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    succeed(crate::program("cp").arg("-r").arg(from.join(".")).arg(to));
}

/// Runs a program, which must succeed, and returns its standard output.
pub fn succeed(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until a daemon answers this command. Its log is in `folder`.
pub(crate) fn answers(folder: &Path, command: impl Fn() -> Command) {
    eventually(|| match command().output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => Err(fs::read_to_string(folder.join("log")).unwrap()),
    });
}

/// skopeo, trusting only the CAs in `certs`.
pub fn skopeo(arguments: &[&str], folder: &Path) -> Command {
    let mut command = crate::program("skopeo");
    // `--cert-dir` adds to the system's CAs, so those are hidden.
    command.arg("--insecure-policy").args(arguments).current_dir(folder);
    command.env("HOME", folder).env("XDG_RUNTIME_DIR", folder);
    command.env("SSL_CERT_FILE", "/dev/null").env("SSL_CERT_DIR", "/nonexistent");
    command
}

/// A containerd with private root, state and socket.
pub struct Containerd {
    dir: TempDir,
    daemon: Child,
}

impl Containerd {
    pub fn start() -> Self {
        Self::start_with(&[], "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n", "")
    }

    /// Starts it with the CRI plugin, which uses the hosts of [`Self::host`].
    pub fn start_with_cri() -> Self {
        Self::start_with_cri_by(&[])
    }

    /// Starts it with the CRI plugin through a wrapper command.
    pub fn start_with_cri_by(by: &[&str]) -> Self {
        Self::start_with(by, "", "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"CERTS\"\n")
    }

    fn start_with(by: &[&str], head: &str, tables: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (root, state, socket) = (path("root"), path("state"), path("socket"));
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n{head}[grpc]\naddress = {socket:?}\n{}",
            tables.replace("CERTS", &path("certs.d"))
        );
        fs::create_dir(path("certs.d")).unwrap();
        fs::write(path("config.toml"), config).unwrap();
        let words = [by, &["containerd", "--log-level", "warn", "--config"]].concat();
        let mut command = crate::program(words[0]);
        command.args(&words[1..]).arg(dir.path().join("config.toml"));
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let daemon = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let containerd = Self { dir, daemon };
        answers(containerd.dir.path(), || containerd.ctr(&["version"]));
        containerd
    }

    pub fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = crate::program("ctr");
        command.arg("--address").arg(self.dir.path().join("socket")).args(arguments);
        command
    }

    /// The actual digest of each blob in the content store, by the digest in its path.
    pub fn content(&self) -> BTreeMap<String, String> {
        let blobs = self.dir.path().join("root/io.containerd.content.v1.content/blobs/sha256");
        let entries = fs::read_dir(blobs).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| (format!("sha256:{}", entry.file_name().display()), digest_of(&entry.path()))).collect()
    }

    /// The blob with this digest in the content store, if it is JSON.
    pub fn json(&self, digest: &str) -> Option<Value> {
        let path = self.dir.path().join("root/io.containerd.content.v1.content/blobs").join(digest.replace(':', "/"));
        serde_json::from_slice(&fs::read(path).unwrap()).ok()
    }

    /// The path of the daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Makes `address`, trusted through `ca`, the only host of `registry`.
    pub fn host(&self, registry: &str, address: &str, ca: &Path) {
        let folder = self.dir.path().join("certs.d").join(registry);
        fs::create_dir_all(&folder).unwrap();
        let toml = format!(
            "server = \"https://{registry}\"\n[host.\"https://{address}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = {ca:?}\n"
        );
        fs::write(folder.join("hosts.toml"), toml).unwrap();
    }

    /// Uses the host folders in `certs`, as a trust bundle has them.
    pub fn take_hosts(&self, certs: &Path) {
        copy_into(certs, &self.dir.path().join("certs.d"));
    }

    /// `ctr ARGUMENTS --hosts-dir … IMAGE` with the configured hosts.
    pub fn fetch(&self, arguments: &[&str], image: &str) -> Command {
        let mut command = self.ctr(arguments);
        command.arg("--hosts-dir").arg(self.dir.path().join("certs.d")).arg(image);
        command
    }

    /// Pulls an image from `address`, trusting only `ca`.
    pub fn pull(&self, address: &str, image: &str, ca: &Path) -> Output {
        self.pull_with(address, image, ca, &[])
    }

    /// Like [`Self::pull`], with additional arguments.
    pub fn pull_with(&self, address: &str, image: &str, ca: &Path, arguments: &[&str]) -> Output {
        self.host(address, address, ca);
        self.fetch(&[&["images", "pull"], arguments].concat(), &format!("{address}/{image}")).output().unwrap()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.daemon.id().try_into().unwrap());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.daemon.wait();
    }
}
