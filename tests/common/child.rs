//! Processes that a test starts, and those that these start: none outlives it.

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

/// No process has its working directory here: whoever was started here has ended.
pub fn nobody_in(folder: &Path) {
    let folder = folder.canonicalize().unwrap();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let there = fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == folder);
        let arguments = || fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        assert!(!there, "{} is left: {}", process.file_name().display(), arguments());
    }
}
