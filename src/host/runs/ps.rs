//! `localregistry ps`: the runs of this user enter, a table or one JSON line leaves. What killed runs have left is removed, once shown.

use std::fmt;
use std::io;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::dir::{Run, RunsError, State, Who};
use crate::host::support::report::Report;

/// The command line of `localregistry ps`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
States:
  booting   not ready yet
  ready     it serves
  ended N   it ended with the exit status N, and its folder is kept (run --keep)
  dead      its process was killed, and QEMU with it; what it left is removed now

Exit status: 0, or 1 on an error.")]
pub struct Args {
    /// Folders of runs that were given with `run --run-dir` (others are found by themselves)
    #[arg(value_name = "DIR")]
    folders: Vec<PathBuf>,
}

/// Why runs are not listed.
#[derive(Debug, thiserror::Error)]
pub enum PsError {
    /// Their folder.
    #[error(transparent)]
    Runs(#[from] RunsError),
    /// One that was named.
    #[error("{} is no folder of a run", .0.display())]
    NoRun(PathBuf),
    /// Standard output.
    #[error("cannot print the runs")]
    Print(#[source] io::Error),
}

/// The runs of this user.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PsResult")]
pub struct Listing {
    /// The runs, in order of their names; then those whose folders were given.
    runs: Vec<Row>,
}

/// A run.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PsRun")]
struct Row {
    /// Its name.
    name: String,
    /// `booting`, `ready`, `ended` or `dead`.
    state: &'static str,
    /// The exit status; with `ended`.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u8>,
    /// The process that runs it.
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
    disk: PathBuf,
    /// The other disks, absolute paths; where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    further_disks: Vec<PathBuf>,
    /// The run's folder.
    run_dir: PathBuf,
}

/// Lists the runs.
///
/// # Errors
/// They cannot be found or printed.
pub fn run(args: &Args, report: &Report) -> Result<(), PsError> {
    let mut runs = super::dir::all()?;
    for folder in &args.folders {
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
        if !runs.iter().any(|run| run.folder == folder) {
            runs.push(Run::of(&folder).ok_or(PsError::NoRun(folder))?);
        }
    }
    let listing = Listing { runs: runs.iter().map(Row::of).collect() };
    report.result(&listing, &listing.to_string()).map_err(PsError::Print)?;
    runs.iter().for_each(Run::clean);
    Ok(())
}

impl Row {
    fn of(run: &Run) -> Self {
        let (state, status) = match run.state {
            State::Booting => ("booting", None),
            State::Ready => ("ready", None),
            State::Ended(status) => ("ended", Some(status)),
            State::Dead => ("dead", None),
        };
        let ready = |key: &str| run.ready.as_ref()?.get(key);
        let text = |key: &str| ready(key)?.as_str().map(str::to_owned);
        let (endpoint, address, ca) = (text("endpoint"), text("address"), text("ca"));
        let qemu_pid = ready("qemu_pid").and_then(Value::as_u64);
        let Who { name, pid, disk, further_disks, .. } = run.who.clone();
        Self { name, state, status, pid, endpoint, address, ca, qemu_pid, disk, further_disks, run_dir: run.folder.clone() }
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["NAME", "STATE", "PID", "ENDPOINT", "DISK"].map(str::to_owned);
        let rows = self.runs.iter().map(|row| {
            let state = row.status.map_or_else(|| row.state.to_owned(), |status| format!("{} {status}", row.state));
            let endpoint = row.endpoint.as_deref().unwrap_or("-").to_owned();
            let disks: Vec<_> =
                [&row.disk].into_iter().chain(&row.further_disks).map(|disk| disk.display().to_string()).collect();
            [row.name.clone(), state, row.pid.to_string(), endpoint, disks.join(" ")]
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
    fn a_person_reads_a_table() {
        let row = |name: &str, state, status, endpoint: Option<&str>| Row {
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
        let listing = Listing {
            runs: vec![row("one", "ready", None, Some("https://10.1.0.82:5000")), row("another", "ended", Some(3), None)],
        };
        assert_eq!(
            listing.to_string(),
            "NAME     STATE    PID  ENDPOINT                DISK\n\
             one      ready     17  https://10.1.0.82:5000  /d/images.erofs\n\
             another  ended 3   17  -                       /d/images.erofs\n"
        );
    }
}
