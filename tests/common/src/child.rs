//! Child processes of tests, and checks that none is left.

use std::fs;
use std::path::Path;
use std::process::Child;

use nix::unistd::Pid;
use serde_json::Value;

use crate::wait::{eventually, until};

/// Kills the process on drop.
pub struct KilledOnDrop(pub Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process id in a JSON value.
pub fn pid_of(value: &Value) -> Pid {
    Pid::from_raw(value.as_i64().unwrap().try_into().unwrap())
}

/// Waits until the process has ended. A zombie that its new parent has not reaped counts as ended.
pub fn wait_until_gone(pid: Pid) {
    until(&format!("the end of {pid}"), || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |stat| stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
    });
}

/// Command lines of the running processes whose working directory is this folder.
pub fn processes_in(folder: &Path) -> Vec<String> {
    let folder = folder.canonicalize().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let here = processes.filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == folder));
    here.map(|process| fs::read_to_string(process.join("cmdline")).unwrap_or_default()).collect()
}

/// Asserts that no process runs in this folder.
pub fn assert_no_process_in(folder: &Path) {
    assert_eq!(processes_in(folder), Vec::<String>::new());
}

/// Waits until the processes in this folder satisfy `wanted`.
pub fn wait_for_processes_in(folder: &Path, wanted: impl Fn(&[String]) -> bool) {
    eventually(|| {
        let processes = processes_in(folder);
        if wanted(&processes) { Ok(()) } else { Err(format!("{processes:?}")) }
    });
}
