//! `localregistry assert`: checks a log for an expected number of pulls. The exit status says whether it holds; the difference is on
//! standard error.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::builder::NonEmptyStringValueParser;
use schemars::JsonSchema;
use serde::Serialize;

use super::{ImageQuery, Pull, PullTracker, Refusals, log_reader};
use crate::host::support::report::{Report, message};
use crate::proto::event::Event as Kind;
use crate::text::chain;

/// Number of pulls, and of refusals, that are printed.
const MAX_LISTED: usize = 10;
/// Interval at which a log is read again, with `--wait`.
const POLL: Duration = Duration::from_millis(100);
/// Longest `--wait` in seconds: a day.
const WAIT_MAX: u64 = 24 * 60 * 60;
/// Code of the warning of a guest that dropped events.
const DROPPED_EVENTS: &str = "DROPPED_EVENTS";

/// The command line of `localregistry assert`.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("what").args(["pulled", "not_pulled", "fault"]).required(true),
    group = clap::ArgGroup::new("count").args(["times", "at_least", "at_most"]),
    after_help = "\
Examples:
  localregistry assert --pulled test/hello:1 --by 10.1.0.7 events.jsonl
      That node pulled it, at least once
  localregistry assert --pulled docker.io/library/busybox --times 3 events.jsonl
      Its tag latest was pulled exactly three times, by any address
  localregistry assert --not-pulled test/secret:1 events.jsonl
      No client pulled it
  localregistry assert --pulled test/hello:1 --wait 5 events.jsonl
      The same while the registry serves: the log of a pull comes a moment after the pull
  localregistry assert --fault slow-blobs --hits 0 events.jsonl
      This rule of the plan of faults acted on no request

A pull is one complete response (200 or 206) to a GET of the image's manifest, by tag or by digest. HEAD, layers and resumed downloads
do not count. A client that sends HEAD for a tag and then gets its digest (containerd, dockerd) has pulled the tag once.
If a pull is missing, clients that refused the registry's certificate are listed: mostly they do not trust its CA.

With --wait the log of a registry that still serves is read again. \"At least\" holds as soon as there are that many. \"At most\", \"exactly\"
and \"not\" can be broken until the last moment: they fail at once if there are too many, and hold at the end of the wait. If the registry
has ended, nothing is waited for.

Exit status:
  0  the log shows the expected pulls
  1  the log shows something else; the difference is on standard error
  2  the command line is wrong, or the log cannot be read, is damaged, or lacks events that the answer depends on"
)]
pub struct AssertArgs {
    /// The image that was pulled, as clients name it; the default tag is latest
    #[arg(long, value_name = "REF")]
    pulled: Option<ImageQuery>,

    /// The image that was not pulled
    #[arg(long, value_name = "REF", conflicts_with = "count")]
    not_pulled: Option<ImageQuery>,

    /// The rule of the plan of faults that acted on requests or connections (docs/faults.md)
    #[arg(long, value_name = "ID", conflicts_with = "count", value_parser = NonEmptyStringValueParser::new())]
    fault: Option<String>,

    /// With --fault: exactly N times [default: once or more]
    #[arg(long, value_name = "N", requires = "fault", conflicts_with_all = ["pulled", "not_pulled"])]
    hits: Option<u64>,

    /// Count only pulls, or hits, by this address
    #[arg(long, value_name = "IP")]
    by: Option<IpAddr>,

    /// Exactly N times
    #[arg(long, value_name = "N")]
    times: Option<u64>,

    /// N times or more [default: 1]
    #[arg(long, value_name = "N")]
    at_least: Option<u64>,

    /// N times or fewer
    #[arg(long, value_name = "N")]
    at_most: Option<u64>,

    /// Read the log again for at most this long, if the registry that writes it still serves
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=WAIT_MAX))]
    wait: u64,

    /// The log that `run --events` or `serve --events` wrote
    #[arg(value_name = "FILE")]
    log: PathBuf,
}

/// Why the log cannot be evaluated.
#[derive(Debug, thiserror::Error)]
enum LogError {
    #[error("cannot read the events in {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the log is damaged and proves nothing: line {number} of {}: {fault}", .path.display())]
    Damaged { path: PathBuf, number: u64, fault: String },
    #[error("{} {gap}: it does not show how often {image} was pulled, only that it was {counted}", .path.display())]
    Gap { path: PathBuf, gap: &'static str, image: String, counted: String },
    #[error("{} {gap}: it does not show how often the rule {rule} acted, only that it did {counted}", .path.display())]
    FaultGap { path: PathBuf, gap: &'static str, rule: String, counted: String },
}

/// The expected number of pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Exactly(u64),
    AtLeast(u64),
    AtMost(u64),
}

impl Expected {
    fn holds(self, count: u64) -> bool {
        match self {
            Self::Exactly(expected) => count == expected,
            Self::AtLeast(least) => count >= least,
            Self::AtMost(most) => count <= most,
        }
    }

    /// Whether pulls are missing.
    fn lacks(self, count: u64) -> bool {
        matches!(self, Self::Exactly(least) | Self::AtLeast(least) if count < least)
    }

    /// Whether `count` and any larger number are as expected.
    fn holds_from(self, count: u64) -> bool {
        matches!(self, Self::AtLeast(least) if count >= least)
    }

    /// Whether further pulls change nothing.
    fn is_decided(self, count: u64) -> bool {
        match self {
            Self::Exactly(most) | Self::AtMost(most) => count > most,
            Self::AtLeast(least) => count >= least,
        }
    }

    fn text(self) -> String {
        match self {
            Self::Exactly(0) => "not to be pulled".to_owned(),
            Self::Exactly(count) => format!("to be pulled {}", times(count)),
            Self::AtLeast(count) => format!("to be pulled at least {}", times(count)),
            Self::AtMost(count) => format!("to be pulled at most {}", times(count)),
        }
    }
}

fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

fn pulled(count: u64) -> String {
    if count == 0 { "not pulled".to_owned() } else { format!("pulled {}", times(count)) }
}

/// What the log shows.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AssertResult<'a> {
    /// The image as given, with its tag.
    image: String,
    /// The address whose pulls were counted; null: all addresses.
    by: Option<IpAddr>,
    /// The number of pulls.
    pulls: u64,
    /// The expectation in words.
    expected: &'a str,
    /// Whether the log shows it.
    holds: bool,
}

/// What the log shows of a rule; with `--fault`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AssertFaultResult<'a> {
    /// The rule.
    fault: &'a str,
    /// The address whose hits were counted; null: all addresses.
    by: Option<IpAddr>,
    /// The number of hits.
    hits: u64,
    /// The expectation in words.
    expected: &'a str,
    /// Whether the log shows it.
    holds: bool,
}

/// Checks the log and returns the exit status.
#[must_use]
pub fn run(args: &AssertArgs, report: &Report) -> ExitCode {
    match check(args, report) {
        Ok(holds) => ExitCode::from(u8::from(!holds)),
        Err(error) => {
            message(format!("localregistry: {}", chain(&error)));
            ExitCode::from(2)
        }
    }
}

fn check(args: &AssertArgs, report: &Report) -> Result<bool, LogError> {
    if let Some(rule) = &args.fault {
        return check_fault(rule, args, report);
    }
    let (Some(image), expected) = args.expected() else { return Ok(false) };
    let is_by = |pull: &Pull| args.by.is_none_or(|by| pull.by == Some(by.to_canonical()));
    let is_counted = |pull: &&Pull| image.matches(pull) && is_by(pull) && pull.is_complete();
    let (summary, counted) =
        read_until_decided(args, expected, |summary| summary.pulls.iter().filter(is_counted).count() as u64)?;
    let LogSummary { pulls, refusals, gap, .. } = summary;
    let by = args.by.map_or_else(String::new, |by| format!(" by {by}"));
    if let Some(gap) = gap.filter(|_| !expected.holds_from(counted)) {
        let (image, counted) = (format!("{image}{by}"), pulled(counted));
        return Err(LogError::Gap { path: args.log.clone(), gap, image, counted });
    }
    let holds = expected.holds(counted);
    let (found, expectation) = (pulled(counted), expected.text());
    if !holds {
        message(format!("localregistry: {image} was {found}{by}; it was expected {expectation}"));
        message(format!("- {image}{by}: {expectation}"));
        message(format!("+ {image}{by}: {found}"));
        if !image.has_reference() {
            message("  no tag was given: latest was looked for, as clients do");
        }
        if expected.lacks(counted) {
            list(&refusals.by(args.by));
        }
        print_similar(image, &pulls, is_by);
    }
    let result = AssertResult { image: image.to_string(), by: args.by, pulls: counted, expected: &expectation, holds };
    if holds || report.json {
        // A closed standard output does not change the exit status.
        let _closed = report.result(&result, &format!("{image} was {found}{by}"));
    }
    Ok(holds)
}

/// Checks how often a rule of the plan of faults acted.
fn check_fault(rule: &str, args: &AssertArgs, report: &Report) -> Result<bool, LogError> {
    let is_by = |peer: &Option<IpAddr>| args.by.is_none_or(|by| *peer == Some(by.to_canonical()));
    let (expected, by) =
        (args.hits.map_or(Expected::AtLeast(1), Expected::Exactly), args.by.map_or_else(String::new, |by| format!(" for {by}")));
    let (LogSummary { faults, rules, gap, .. }, hits) = read_until_decided(args, expected, |summary| {
        summary.faults.iter().filter(|(id, peer)| id == rule && is_by(peer)).count() as u64
    })?;
    let acted = |count: u64| if count == 0 { "not act".to_owned() } else { format!("act {}", times(count)) };
    if let Some(gap) = gap.filter(|_| !expected.holds_from(hits)) {
        return Err(LogError::FaultGap { path: args.log.clone(), gap, rule: rule.to_owned(), counted: acted(hits) });
    }
    let is_known = rules.contains(rule);
    let holds = is_known && expected.holds(hits);
    let expectation = match expected {
        Expected::Exactly(count) => format!("to {}", acted(count)),
        _ => "to act at least once".to_owned(),
    };
    if rules.is_empty() {
        message(format!("localregistry: the log has no plan of faults, and so no rule {rule}"));
    } else if !is_known {
        message(format!("localregistry: no plan of faults in the log has the rule {rule}; it has:"));
        list(&rules.iter().collect::<Vec<_>>());
    } else if !holds {
        message(format!("localregistry: the rule {rule} did {}{by}; it was expected {expectation}", acted(hits)));
        let others: BTreeMap<&str, u64> = faults.iter().fold(BTreeMap::new(), |mut counts, (id, _)| {
            *counts.entry(id.as_str()).or_default() += 1;
            counts
        });
        list(&others.iter().map(|(id, count)| format!("the rule {id} did {}", acted(*count))).collect::<Vec<_>>());
    }
    let result = AssertFaultResult { fault: rule, by: args.by, hits, expected: &expectation, holds };
    if holds || report.json {
        // A closed standard output does not change the exit status.
        let _closed = report.result(&result, &format!("the rule {rule} did {}{by}", acted(hits)));
    }
    Ok(holds)
}

impl AssertArgs {
    fn expected(&self) -> (Option<&ImageQuery>, Expected) {
        let expected = match (&self.not_pulled, self.times, self.at_least, self.at_most) {
            (Some(_), ..) => Expected::Exactly(0),
            (None, Some(times), ..) => Expected::Exactly(times),
            (None, None, _, Some(most)) => Expected::AtMost(most),
            (None, None, least, None) => Expected::AtLeast(least.unwrap_or(1)),
        };
        (self.pulled.as_ref().or(self.not_pulled.as_ref()), expected)
    }
}

/// What a log lacks whose writer had to drop events.
const DROPPED: &str = "lacks events that were dropped";

/// The content of a log.
#[derive(Default)]
struct LogSummary {
    /// All pulls and attempts.
    pulls: Vec<Pull>,
    /// Clients that refused the registry's certificate.
    refusals: Refusals,
    /// The rules of the plan of faults that acted, and the clients.
    faults: Vec<(String, Option<IpAddr>)>,
    /// The rules that were in force.
    rules: BTreeSet<String>,
    /// Why events are missing, if they are.
    gap: Option<&'static str>,
    /// Whether the registry has ended, so that the log does not grow.
    ended: bool,
}

/// Reads the log, again and again until `--wait` is over, the registry has ended, or no further event changes whether the log is as
/// `expected`. Returns what `count` finds in it, too.
fn read_until_decided(
    args: &AssertArgs,
    expected: Expected,
    count: impl Fn(&LogSummary) -> u64,
) -> Result<(LogSummary, u64), LogError> {
    let (started, wait) = (Instant::now(), Duration::from_secs(args.wait));
    loop {
        // Before reading, so that the last reading is not earlier than the end of the wait.
        let left = wait.saturating_sub(started.elapsed());
        let summary = read(args)?;
        let counted = count(&summary);
        if left.is_zero() || summary.ended || expected.is_decided(counted) {
            return Ok((summary, counted));
        }
        thread::sleep(left.min(POLL));
    }
}

fn read(args: &AssertArgs) -> Result<LogSummary, LogError> {
    let path = || args.log.clone();
    let (mut tracker, mut summary, mut damaged) = (PullTracker::default(), LogSummary::default(), None);
    let read = log_reader::read(&args.log, false, |entry| {
        match entry.event {
            Ok(event) => match event.event {
                Some(Kind::Request(request)) => summary.pulls.extend(tracker.track(event.time, &request)),
                Some(Kind::Fault(fault)) => {
                    let peer = fault.peer.parse::<SocketAddr>().ok().map(|peer| peer.ip().to_canonical());
                    summary.faults.push((fault.rule, peer));
                }
                Some(Kind::FaultsChanged(changed)) => summary.rules.extend(changed.rules.into_iter().map(|rule| rule.id)),
                Some(Kind::Warning(warning)) => {
                    if warning.code == DROPPED_EVENTS {
                        summary.gap = Some(DROPPED);
                    }
                    summary.refusals.add(warning);
                }
                Some(Kind::Done(done)) => {
                    summary.ended = true;
                    if done.dropped_events > 0 {
                        summary.gap = Some(DROPPED);
                    }
                }
                _ => {}
            },
            Err(_) => {
                let fault = entry.fault().unwrap_or_default();
                damaged = Some(LogError::Damaged { path: path(), number: entry.number, fault });
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    });
    let incomplete = read.map_err(|source| LogError::Read { path: path(), source })?;
    if incomplete {
        summary.gap = Some("ends in the middle of an event");
    }
    damaged.map_or(Ok(summary), Err)
}

/// Sorts the images in the log by the similarity of their names to `image`, and returns the last pull or attempt of each. If the address
/// in question asked for nothing, those of all addresses are returned.
fn most_similar<'a>(image: &ImageQuery, pulls: &'a [Pull], is_by: impl Fn(&Pull) -> bool) -> Vec<&'a Pull> {
    let any = pulls.iter().any(&is_by);
    let considered = pulls.iter().filter(|pull| !any || is_by(pull));
    let by_image: HashMap<String, &Pull> = considered.map(|pull| (pull.image(), pull)).collect();
    let mut images: Vec<_> = by_image.into_iter().map(|(name, pull)| (image.distance(pull), name, pull)).collect();
    images.sort_by(|(one, name, _), (other, other_name, _)| (one, name).cmp(&(other, other_name)));
    images.into_iter().map(|(_, _, pull)| pull).collect()
}

/// Prints what the log shows instead: the image's pulls and attempts by any address, otherwise the images with the most similar names.
fn print_similar(image: &ImageQuery, pulls: &[Pull], is_by: impl Fn(&Pull) -> bool) {
    let mut listed: Vec<&Pull> = pulls.iter().filter(|pull| image.matches(pull)).collect();
    if listed.is_empty() {
        listed = most_similar(image, pulls, is_by);
        if !listed.is_empty() {
            message(format!("  no client asked for {image}; the most similar names in the log:"));
        }
    }
    list(&listed);
}

/// Prints the first of `lines`, and how many more there are.
fn list(lines: &[impl fmt::Display]) {
    lines.iter().take(MAX_LISTED).for_each(|line| message(format!("  {line}")));
    if let Some(more) = lines.len().checked_sub(MAX_LISTED).filter(|more| *more > 0) {
        message(format!("  and {more} more"));
    }
}
