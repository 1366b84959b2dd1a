//! Child processes of tests, and checks that none is left.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::Value;

/// A process that does not outlive the test.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process's number, as a program wrote it.
pub fn number(value: &Value) -> Pid {
    Pid::from_raw(value.as_i64().unwrap().try_into().unwrap())
}

/// Waits until no process has this number, or only one that has ended and that its new parent has not reaped.
pub fn gone(pid: Pid) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) {
        if stat.rsplit(')').next().unwrap().trim_start().starts_with('Z') {
            return;
        }
        assert!(Instant::now() < deadline, "{pid} is still running");
        sleep(Duration::from_millis(5));
    }
}

/// Arguments of the processes that have their working directory in this folder: of whoever was started here and has not ended.
pub fn in_folder(folder: &Path) -> Vec<String> {
    let folder = folder.canonicalize().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let here = processes.filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == folder));
    here.map(|process| fs::read_to_string(process.join("cmdline")).unwrap_or_default()).collect()
}

/// Nobody who was started in this folder is left.
pub fn nobody_in(folder: &Path) {
    assert_eq!(in_folder(folder), Vec::<String>::new());
}

/// Waits until those who were started in this folder are as `wanted`.
pub fn until_in(folder: &Path, wanted: impl Fn(&[String]) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !wanted(&in_folder(folder)) {
        assert!(Instant::now() < deadline, "{:?}", in_folder(folder));
        sleep(Duration::from_millis(10));
    }
}
