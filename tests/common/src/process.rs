//! Starts `localregistry serve` as a separate process whose memory and descriptors a test can read.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// Bytes by which an attack may increase the server's memory.
pub const GROWTH: u64 = 64 << 20;

pub struct Process {
    child: Child,
    pub address: SocketAddr,
    /// Every address it listens on, in the order of the arguments. The first is a loopback address.
    pub addresses: Vec<SocketAddr>,
    /// The log, with one event per line.
    pub events: PathBuf,
    /// Bytes by which its memory may grow, at first [`GROWTH`].
    pub may_grow: u64,
    _dir: tempfile::TempDir,
    before: u64,
}

impl Process {
    /// Serves the layout over plain HTTP.
    pub fn start(layout: &Path) -> Self {
        Self::start_with(layout, &["--tls", "off"], None)
    }

    /// Serves with these arguments and with a limit on file descriptors.
    pub fn start_with(layout: &Path, arguments: &[&str], descriptors: Option<u32>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let events = dir.path().join("events.jsonl");
        let mut command = crate::program("sh");
        let limit = descriptors.map_or_else(String::new, |count| format!("ulimit -n {count} && "));
        command.args(["-c", &format!("{limit}exec \"$@\""), "sh", crate::pack::PROGRAM, "serve"]);
        command.arg(layout).args(["--listen", "127.0.0.1:0", "--json", "--events"]).arg(&events).args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        let endpoints = ready["endpoints"].as_array().unwrap().iter();
        let addresses: Vec<SocketAddr> =
            endpoints.map(|endpoint| endpoint.as_str().unwrap().split_once("://").unwrap().1.parse().unwrap()).collect();
        let mut process = Self { child, address: addresses[0], addresses, events, may_grow: GROWTH, _dir: dir, before: 0 };
        process.before = process.memory("VmRSS");
        process
    }

    /// A value of the process's memory in bytes (proc_pid_status(5)).
    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
    }

    /// Bytes by which the peak memory exceeds the memory at the start.
    pub fn growth(&self) -> u64 {
        self.memory("VmHWM").saturating_sub(self.before)
    }

    /// Asserts that the process runs and that its memory has grown by less than [`Process::may_grow`].
    pub fn check(&mut self, what: &str) {
        assert_eq!(self.child.try_wait().unwrap(), None, "{what}: the server still runs");
        let growth = self.growth();
        assert!(growth < self.may_grow, "{what}: the server has grown by {growth} bytes");
        println!("{what}: {} KiB", growth / 1024);
    }

    /// Ends the process gracefully and waits for it.
    pub fn stop(&mut self) {
        let id = i32::try_from(self.child.id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    /// The number of open file descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
