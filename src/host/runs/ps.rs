//! `localregistry ps`: lists the runs of this user, and removes the folders of killed ones afterwards.

use std::fmt;
use std::io;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::dir::list_runs;
use super::folder::RunsError;
use super::state::{Run, RunInfo, RunState};
use crate::host::support::report::Report;
use crate::text::escaped;

/// The command line of `localregistry ps`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  localregistry ps
      All runs of this user
  localregistry ps --json
      The same for programs: one line with each run's address, CA and folder

States:
  booting   not ready yet
  ready     it serves
  ended N   it ended with the exit status N, and its folder is kept (run --keep)
  dead      it was killed, and QEMU with it; its folder is removed now

Exit status: 0, or 1 on an error.")]
pub struct PsArgs {
    /// Further folders of runs, such as of those that were started with another XDG_RUNTIME_DIR
    #[arg(value_name = "DIR")]
    folders: Vec<PathBuf>,
}

/// Why the runs cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum PsError {
    /// The folder of all runs cannot be used.
    #[error(transparent)]
    Runs(#[from] RunsError),
    /// A given folder is not one of a run.
    #[error("{} is not the folder of a run", .0.display())]
    NoRun(PathBuf),
    /// Standard output cannot be written.
    #[error("cannot print the runs")]
    Print(#[source] io::Error),
}

/// The runs of this user.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PsResult {
    /// The runs in the order of their names, then those whose folders were given.
    runs: Vec<PsRun>,
}

/// A run.
#[derive(Debug, Serialize, JsonSchema)]
struct PsRun {
    /// Its name.
    name: String,
    /// `booting`, `ready`, `ended` or `dead`.
    state: &'static str,
    /// The exit status; with `ended`.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u8>,
    /// The process of the run.
    pid: i32,
    /// The registry's URL; null before it is ready.
    endpoint: Option<String>,
    /// Host and port, as they stand before an image's name; null before it is ready.
    address: Option<String>,
    /// The CA certificate, an absolute path; null before it is ready, and with plain HTTP.
    ca: Option<String>,
    /// The QEMU process; null before it is ready.
    qemu_pid: Option<u64>,
    /// The first disk, an absolute path.
    disk: String,
    /// The other disks, absolute paths; absent if there is only one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    further_disks: Vec<String>,
    /// The run's folder.
    run_dir: String,
}

/// Lists the runs.
///
/// # Errors
/// See [`PsError`].
pub fn run(args: &PsArgs, report: &Report) -> Result<(), PsError> {
    let mut runs = list_runs()?;
    for folder in &args.folders {
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
        if !runs.iter().any(|run| run.folder == folder) {
            runs.push(Run::open(&folder).ok_or(PsError::NoRun(folder))?);
        }
    }
    let result = PsResult { runs: runs.iter().map(PsRun::new).collect() };
    report.result(&result, &result.to_string()).map_err(PsError::Print)?;
    runs.iter().for_each(Run::remove_if_dead);
    Ok(())
}

impl PsRun {
    fn new(run: &Run) -> Self {
        let (state, status) = match run.state {
            RunState::Booting => ("booting", None),
            RunState::Ready => ("ready", None),
            RunState::Ended(status) => ("ended", Some(status)),
            RunState::Dead => ("dead", None),
        };
        let ready = |key: &str| run.ready.as_ref()?.get(key);
        let text = |key: &str| ready(key)?.as_str().map(str::to_owned);
        let (endpoint, address, ca) = (text("endpoint"), text("address"), text("ca"));
        let qemu_pid = ready("qemu_pid").and_then(Value::as_u64);
        let RunInfo { name, pid, disk, further_disks, .. } = run.info.clone();
        Self {
            name,
            state,
            status,
            pid,
            endpoint,
            address,
            ca,
            qemu_pid,
            disk,
            further_disks,
            run_dir: run.folder.display().to_string(),
        }
    }
}

impl fmt::Display for PsResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["NAME", "STATE", "PID", "ENDPOINT", "DISK"].map(str::to_owned);
        let rows = self.runs.iter().map(|run| {
            let state = run.status.map_or_else(|| run.state.to_owned(), |status| format!("{} {status}", run.state));
            let endpoint = run.endpoint.as_deref().unwrap_or("-").to_owned();
            let disks: Vec<_> = [&run.disk].into_iter().chain(&run.further_disks).map(|disk| escaped(disk)).collect();
            [run.name.clone(), state, run.pid.to_string(), endpoint, disks.join(" ")]
        });
        let rows: Vec<[String; 5]> = [head].into_iter().chain(rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths = [0, 1, 2, 3].map(width);
        for [name, state, pid, endpoint, disk] in &rows {
            let [a, b, c, d] = widths;
            writeln!(f, "{name:a$}  {state:b$}  {pid:>c$}  {endpoint:d$}  {disk}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_result_is_a_table() {
        let row = |name: &str, state, status, endpoint: Option<&str>| PsRun {
            name: name.into(),
            state,
            status,
            pid: 17,
            endpoint: endpoint.map(str::to_owned),
            address: None,
            ca: None,
            qemu_pid: None,
            disk: "/d/images.erofs".into(),
            further_disks: vec![],
            run_dir: "/r".into(),
        };
        let result = PsResult {
            runs: vec![row("one", "ready", None, Some("https://10.1.0.82:5000")), row("another", "ended", Some(3), None)],
        };
        assert_eq!(
            result.to_string(),
            "NAME     STATE    PID  ENDPOINT                DISK\n\
             one      ready     17  https://10.1.0.82:5000  /d/images.erofs\n\
             another  ended 3   17  -                       /d/images.erofs\n"
        );
    }
}
