//! Child processes of tests, and checks that none is left.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::Value;

/// Kills the process on drop.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process id in a JSON value.
pub fn number(value: &Value) -> Pid {
    Pid::from_raw(value.as_i64().unwrap().try_into().unwrap())
}

/// Waits until the process has ended. A zombie that its new parent has not reaped counts as ended.
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

/// Command lines of the running processes whose working directory is this folder.
pub fn in_folder(folder: &Path) -> Vec<String> {
    let folder = folder.canonicalize().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let here = processes.filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == folder));
    here.map(|process| fs::read_to_string(process.join("cmdline")).unwrap_or_default()).collect()
}

/// Asserts that no process runs in this folder.
pub fn nobody_in(folder: &Path) {
    assert_eq!(in_folder(folder), Vec::<String>::new());
}

/// Waits until the processes in this folder satisfy `wanted`.
pub fn until_in(folder: &Path, wanted: impl Fn(&[String]) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !wanted(&in_folder(folder)) {
        assert!(Instant::now() < deadline, "{:?}", in_folder(folder));
        sleep(Duration::from_millis(10));
    }
}
