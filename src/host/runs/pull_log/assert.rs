//! `localregistry assert`: a log and an expectation enter, an exit status leaves, and a difference where there is one.
//!
//! | status | meaning |
//! |---|---|
//! | 0 | the log shows what is expected |
//! | 1 | it shows something else, which is on standard error |
//! | 2 | the command line is wrong, or the log cannot be read or trusted |

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Serialize;

use super::{Pull, Refusals, Tracker, Wanted, log};
use crate::host::support::report::Report;
use crate::host::vm::launch::BadEvent;
use crate::proto::event::Event as Kind;
use crate::text::chain;

/// Pulls, and refusals, that are shown of each sort.
const SHOWN: usize = 10;
/// The warning of a guest that had to drop events.
const DROPPED: &str = "DROPPED_EVENTS";

/// The command line of `localregistry assert`.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("what").args(["pulled", "not_pulled"]).required(true),
    group = clap::ArgGroup::new("count").args(["times", "at_least", "at_most"]),
    after_help = "\
Examples:
  localregistry assert --pulled test/hello:1 --by 10.1.0.7 events.jsonl
      That node pulled it, at least once
  localregistry assert --pulled docker.io/library/busybox --times 3 events.jsonl
      Its tag latest was pulled exactly three times, by any address
  localregistry assert --not-pulled test/secret:1 events.jsonl
      Nobody pulled it

A pull is one whole answer (200 or 206) to a GET of the image's manifest, by tag or by digest; HEAD, layers and what is taken up again
count nothing. A client that asks HEAD for a tag and then gets its digest (containerd, dockerd) has pulled the tag, once.
Where a pull is missing, clients that refused the registry's certificate are named: mostly they do not trust its CA.

Exit status:
  0  the log shows it
  1  the log shows something else: the difference is on standard error
  2  the command line is wrong, or the log cannot be read, is damaged, or lacks events that were dropped"
)]
pub struct Args {
    /// The image that was to be pulled, as clients name it: without a tag its tag latest
    #[arg(long, value_name = "REF")]
    pulled: Option<Wanted>,

    /// The image that was not to be pulled
    #[arg(long, value_name = "REF", conflicts_with = "count")]
    not_pulled: Option<Wanted>,

    /// Count pulls by this address alone
    #[arg(long, value_name = "IP")]
    by: Option<IpAddr>,

    /// Exactly so many
    #[arg(long, value_name = "N")]
    times: Option<u64>,

    /// So many or more (default: 1)
    #[arg(long, value_name = "N")]
    at_least: Option<u64>,

    /// So many or fewer
    #[arg(long, value_name = "N")]
    at_most: Option<u64>,

    /// The log that `run --events` or `serve --events` wrote
    #[arg(value_name = "FILE")]
    log: PathBuf,
}

/// Why a log proves nothing.
#[derive(Debug, thiserror::Error)]
enum LogError {
    #[error("cannot read the events in {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("line {number} of {} is no event: the log is damaged, and proves nothing", .path.display())]
    Damaged { path: PathBuf, number: u64, source: BadEvent },
    #[error("{} lacks events that were dropped: it does not show how often {wanted} was pulled, only that it was {counted}", .path.display())]
    Dropped { path: PathBuf, wanted: String, counted: String },
}

/// How many pulls are expected.
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

    /// Whether `count` is too small.
    fn lacks(self, count: u64) -> bool {
        matches!(self, Self::Exactly(least) | Self::AtLeast(least) if count < least)
    }

    /// Whether `count` or any larger number will do.
    fn holds_for_more_than(self, count: u64) -> bool {
        matches!(self, Self::AtLeast(least) if count >= least)
    }

    fn words(self) -> String {
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
#[schemars(rename = "AssertResult")]
pub struct Shown<'a> {
    /// The image, as it was given, with the tag that is meant.
    image: String,
    /// The address whose pulls were counted; null: those of all.
    by: Option<IpAddr>,
    /// How many pulls were counted.
    pulls: u64,
    /// What was expected, in words.
    expected: &'a str,
    /// Whether the log shows that.
    holds: bool,
}

/// Holds the log against what is expected, and gives the exit status.
#[must_use]
pub fn run(args: &Args, report: &Report) -> ExitCode {
    match held(args, report) {
        Ok(holds) => ExitCode::from(u8::from(!holds)),
        Err(error) => {
            eprintln!("localregistry: {}", chain(&error));
            ExitCode::from(2)
        }
    }
}

fn held(args: &Args, report: &Report) -> Result<bool, LogError> {
    let (Some(wanted), expected) = args.expected() else { return Ok(false) };
    let Found { pulls, refusals, dropped } = found(args, report)?;
    let is_by = |pull: &Pull| args.by.is_none_or(|by| pull.by == Some(by.to_canonical()));
    let counted = pulls.iter().filter(|pull| wanted.is(pull) && is_by(pull) && pull.counts()).count() as u64;
    let by = args.by.map_or_else(String::new, |by| format!(" by {by}"));
    if dropped && !expected.holds_for_more_than(counted) {
        let (wanted, counted) = (format!("{wanted}{by}"), pulled(counted));
        return Err(LogError::Dropped { path: args.log.clone(), wanted, counted });
    }
    let holds = expected.holds(counted);
    let (found, words) = (pulled(counted), expected.words());
    if !holds {
        eprintln!("localregistry: {wanted} was {found}{by}; it was expected {words}");
        eprintln!("- {wanted}{by}: {words}\n+ {wanted}{by}: {found}");
        if !wanted.is_complete() {
            eprintln!("  no tag was given: latest was looked for, as clients do");
        }
        if expected.lacks(counted) {
            list(&refusals.by(args.by));
        }
        context(wanted, &pulls, is_by);
    }
    let shown = Shown { image: wanted.to_string(), by: args.by, pulls: counted, expected: &words, holds };
    if holds || report.json {
        // Whether somebody reads it does not change what the log shows.
        let _closed = report.result(&shown, &format!("{wanted} was {found}{by}"));
    }
    Ok(holds)
}

impl Args {
    fn expected(&self) -> (Option<&Wanted>, Expected) {
        let expected = match (&self.not_pulled, self.times, self.at_least, self.at_most) {
            (Some(_), ..) => Expected::Exactly(0),
            (None, Some(times), ..) => Expected::Exactly(times),
            (None, None, _, Some(most)) => Expected::AtMost(most),
            (None, None, least, None) => Expected::AtLeast(least.unwrap_or(1)),
        };
        (self.pulled.as_ref().or(self.not_pulled.as_ref()), expected)
    }
}

/// What a log has.
#[derive(Default)]
struct Found {
    /// Every pull and attempt.
    pulls: Vec<Pull>,
    /// Clients that refused the registry's certificate.
    refusals: Refusals,
    /// Whether it lacks events.
    dropped: bool,
}

/// Reads the log.
fn found(args: &Args, report: &Report) -> Result<Found, LogError> {
    let path = || args.log.clone();
    let (mut tracker, mut found, mut damaged) = (Tracker::default(), Found::default(), None);
    let read = log::read(&args.log, false, |entry| {
        match entry.event {
            Ok(event) => match event.event {
                Some(Kind::Request(request)) => found.pulls.extend(tracker.take(event.time, &request)),
                Some(Kind::Warning(warning)) => {
                    found.dropped |= warning.code == DROPPED;
                    found.refusals.add(warning);
                }
                Some(Kind::Done(done)) => found.dropped |= done.dropped_events > 0,
                _ => {}
            },
            Err(source) => {
                damaged = Some(LogError::Damaged { path: path(), number: entry.number, source });
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    });
    let cut = read.map_err(|source| LogError::Read { path: path(), source })?;
    if cut {
        report.step(format!("the last line of {} was cut off in writing, and is left out", args.log.display()));
    }
    damaged.map_or(Ok(found), Err)
}

/// The images with the names nearest to what is wanted, the last pull or attempt of each: those of the address that it is about, or
/// of all addresses if that one asked for nothing.
fn nearest<'a>(wanted: &Wanted, pulls: &'a [Pull], is_by: impl Fn(&Pull) -> bool) -> Vec<&'a Pull> {
    let any = pulls.iter().any(&is_by);
    let considered = pulls.iter().filter(|pull| !any || is_by(pull));
    let by_image: HashMap<String, &Pull> = considered.map(|pull| (pull.image(), pull)).collect();
    let mut images: Vec<_> = by_image.into_iter().map(|(image, pull)| (wanted.distance(pull), image, pull)).collect();
    images.sort_by(|(one, name, _), (other, other_name, _)| (one, name).cmp(&(other, other_name)));
    images.into_iter().map(|(_, _, pull)| pull).collect()
}

/// Shows what there is instead: the image's pulls and attempts by any address, else the images with the nearest names.
fn context(wanted: &Wanted, pulls: &[Pull], is_by: impl Fn(&Pull) -> bool) {
    let mut shown: Vec<&Pull> = pulls.iter().filter(|pull| wanted.is(pull)).collect();
    if shown.is_empty() {
        shown = nearest(wanted, pulls, is_by);
        if !shown.is_empty() {
            eprintln!("  nobody asked for {wanted}; the nearest names in the log:");
        }
    }
    list(&shown);
}

/// Shows the first of these, and how many more there are.
fn list(shown: &[impl fmt::Display]) {
    shown.iter().take(SHOWN).for_each(|one| eprintln!("  {one}"));
    if let Some(more) = shown.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        eprintln!("  and {more} more");
    }
}
