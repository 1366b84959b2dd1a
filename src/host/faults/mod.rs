//! `localregistry faults`: changes the plan of faults of a registry that serves.

pub(crate) mod control;
pub mod file;
mod json_types;
mod locate;
pub mod replay;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use crate::host::runs::dir::folder_of;
use crate::host::runs::folder::RunsError;
use crate::host::support::report::{Report, counted};
use crate::proto::fault_command::Verb;
use crate::proto::{FaultCommand, FaultPlan, FaultReply, FaultStatus};
use crate::text::escaped;

pub use file::PlanFileError;
pub use replay::ReplayError;

/// Name of the socket in the folder of a run.
pub(crate) const SOCKET: &str = "control";

/// The command line of `localregistry faults`.
#[derive(Debug, clap::Args)]
#[command(
    subcommand_precedence_over_arg = true,
    override_usage = "localregistry faults <NAME|DIR|SOCKET> <add|replace|list|remove|clear|reset> [...]\n       localregistry faults replay <LOG>",
    after_help = "\
Examples:
  localregistry faults e2e add faults.json
      The run with this name gets the rules of the file, besides those that it has
  localregistry faults e2e list
  localregistry faults e2e remove slow-blobs
  localregistry faults e2e clear
  localregistry faults replay events.jsonl

When a command returns, the next request sees the change. The rules are described in docs/faults.md.

Exit status: 0 if it was done; 1 if not: then the plan is as before, unless the message says that it is not known; 2 if the command line is wrong."
)]
pub struct FaultsArgs {
    /// The registry: the name of a run, its folder (with a slash), or the socket of `serve --control`
    #[arg(value_name = "NAME|DIR|SOCKET")]
    run: Option<OsString>,

    #[command(subcommand)]
    command: FaultsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum FaultsCommand {
    /// Add the rules of a plan to those in force
    Add {
        /// The plan, proto3 JSON or prototext; - is standard input
        #[arg(value_name = "FILE|-")]
        file: PathBuf,
    },
    /// Replace all rules by those of a plan, at once
    Replace {
        /// The plan, proto3 JSON or prototext; - is standard input
        #[arg(value_name = "FILE|-")]
        file: PathBuf,
    },
    /// Show the rules, and how often each matched and acted
    List,
    /// Remove rules
    Remove {
        /// Their ids
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
    /// Remove all rules
    Clear,
    /// Set the counts of all rules to zero
    Reset,
    /// Write the plan of exactly those hits that an event log has
    Replay {
        /// The log that `--events` wrote
        #[arg(value_name = "LOG")]
        log: PathBuf,
    },
}

/// Why a command was not executed.
#[derive(Debug, thiserror::Error)]
pub enum FaultsError {
    /// The plan.
    #[error(transparent)]
    Plan(#[from] PlanFileError),
    /// The folder of all runs cannot be used.
    #[error(transparent)]
    Runs(#[from] RunsError),
    /// There is no such run.
    #[error("there is no run {name} that takes commands: {} is not its socket (`localregistry ps` lists the runs)", .socket.display())]
    NoRun {
        /// The argument.
        name: String,
        /// The socket that it means.
        socket: PathBuf,
    },
    /// The run does not answer.
    #[error("the run {name} does not answer at {}: it is not known whether it will do it, `localregistry faults {name} list` tells", .socket.display())]
    Silent {
        /// The argument.
        name: String,
        /// Its socket.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The registry refused.
    #[error("{0}")]
    Refused(String),
    /// The log.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// Standard output.
    #[error("cannot print the result")]
    Print(#[source] io::Error),
}

/// What the command did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FaultsResult {
    /// With `list` the rules in force; with `add` and `replace` those that were added; with `remove` and `clear` those that were removed.
    rules: Vec<FaultsRule>,
    /// Rules that can never match, and why.
    warnings: Vec<String>,
}

/// A rule of the plan of faults.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FaultsRule {
    /// Its id.
    id: String,
    /// What it is for.
    about: String,
    /// Requests that matched it; with `list`.
    matches: u64,
    /// Those that it acted on; with `list`.
    hits: u64,
    /// The whole rule, as the JSON of FaultRule.
    rule: String,
}

impl FaultsArgs {
    /// Returns a message if an argument is missing or too many.
    #[must_use]
    pub fn conflict(&self) -> Option<&'static str> {
        match (&self.command, &self.run) {
            (FaultsCommand::Replay { .. }, Some(_)) => Some("'replay' takes a log, and no run"),
            (FaultsCommand::Replay { .. }, None) | (_, Some(_)) => None,
            (_, None) => Some("the argument '<NAME|DIR|SOCKET>' is missing: which registry is meant"),
        }
    }
}

/// Executes the command.
///
/// # Errors
/// See [`FaultsError`]. The plan is as before, unless the run does not answer.
pub fn run(args: &FaultsArgs, report: &Report) -> Result<(), FaultsError> {
    let command = match &args.command {
        FaultsCommand::Replay { log } => {
            let plan = replay::plan(log)?;
            let text = serde_json::to_string_pretty(&plan).map_err(|error| FaultsError::Print(error.into()))?;
            return report.result(&plan, &text).map_err(FaultsError::Print);
        }
        FaultsCommand::Add { file } => of_plan(Verb::Add, file::read(file, report)?),
        FaultsCommand::Replace { file } => of_plan(Verb::Replace, file::read(file, report)?),
        FaultsCommand::Remove { ids } => FaultCommand { ids: ids.clone(), ..of(Verb::Remove) },
        FaultsCommand::List => of(Verb::List),
        FaultsCommand::Clear => of(Verb::Clear),
        FaultsCommand::Reset => of(Verb::Reset),
    };
    let (verb, added) = (command.verb(), command.rules.clone());
    let socket = socket(args.run.as_ref().unwrap_or(&OsString::new()))?;
    let name = args.run.as_ref().map_or_else(String::new, |run| run.display().to_string());
    let is_socket = fs::metadata(&socket).is_ok_and(|found| found.file_type().is_socket());
    if !is_socket {
        return Err(FaultsError::NoRun { name, socket });
    }
    let reply = control::send(&socket, command).map_err(|source| FaultsError::Silent { name, socket, source })?;
    let FaultReply { error, rules, warnings, .. } = reply;
    if !error.is_empty() {
        return Err(FaultsError::Refused(error));
    }
    warnings.iter().for_each(|warning| report.warn(warning));
    let added = added.into_iter().map(|rule| FaultStatus { rule: Some(rule), ..FaultStatus::default() });
    let rules: Vec<FaultsRule> = rules.into_iter().chain(added).map(FaultsRule::from).collect();
    let result = FaultsResult { rules, warnings };
    report.result(&result, &result.text(verb)).map_err(FaultsError::Print)
}

fn of(verb: Verb) -> FaultCommand {
    FaultCommand { verb: verb.into(), ..FaultCommand::default() }
}

fn of_plan(verb: Verb, plan: FaultPlan) -> FaultCommand {
    FaultCommand { rules: plan.rules, seed: plan.seed, ..of(verb) }
}

/// The socket that the argument means.
fn socket(run: &OsString) -> Result<PathBuf, RunsError> {
    let is_socket = fs::metadata(run).is_ok_and(|found| found.file_type().is_socket());
    if is_socket { Ok(PathBuf::from(run)) } else { Ok(Path::new(&folder_of(run)?).join(SOCKET)) }
}

impl From<FaultStatus> for FaultsRule {
    fn from(FaultStatus { rule, matches, hits }: FaultStatus) -> Self {
        let rule = rule.unwrap_or_default();
        let json = serde_json::to_string(&rule).unwrap_or_default();
        Self { id: rule.id, about: rule.about, matches, hits, rule: json }
    }
}

impl FaultsResult {
    fn text(&self, verb: Verb) -> String {
        let count = counted(self.rules.len(), "rule");
        match verb {
            Verb::List if self.rules.is_empty() => "no rules".to_owned(),
            Verb::List => {
                let rows = self
                    .rules
                    .iter()
                    .map(|rule| format!("{:<24} {:>8} {:>8}  {}", rule.id, rule.matches, rule.hits, escaped(&rule.about)));
                let head = format!("{:<24} {:>8} {:>8}  {}", "ID", "MATCHES", "HITS", "ABOUT");
                std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
            }
            Verb::Add | Verb::Replace => format!("{count} added"),
            Verb::Reset => "counts are zero".to_owned(),
            _ => format!("{count} removed"),
        }
    }
}
