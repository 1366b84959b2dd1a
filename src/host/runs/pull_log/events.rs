//! `localregistry events`: prints the pulls in a log as a table, or as the log's own lines.

use std::fmt;
use std::io::{self, Write};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::log_reader::{self, LogEntry};
use super::{ImageQuery, PullTracker, TABLE_HEAD, address, refusals, short_digest, write_row};
use crate::host::support::report::Report;
use crate::proto::event::Event as Kind;
use crate::proto::{Event, Request, Warning};

/// The command line of `localregistry events`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  localregistry events events.jsonl
      Which client pulled what, and which pulls failed
  localregistry events --follow events.jsonl --by 10.1.0.7
      The pulls of one node as they happen; ends with the registry
  localregistry events --json events.jsonl --image docker.io/library/busybox
      The events of that image's pulls, unchanged

A pull is one complete response to a GET of an image's manifest, by tag or by digest (after HEAD of a tag: of that tag). Failed pulls are
listed with their status. Layers, configs and HEAD are listed only with --all. Clients that refused the registry's certificate are listed
unless --image is given.

Exit status: 0, or 1 on an error, such as a file that holds no events. Lines that are not events are named and skipped.")]
pub struct EventsArgs {
    /// The log that `run --events` or `serve --events` wrote, or the Unix socket of the guest's events
    #[arg(value_name = "FILE|SOCKET")]
    log: PathBuf,

    /// Wait for further events, until the registry has ended
    #[arg(long, short)]
    follow: bool,

    /// Only requests of this address
    #[arg(long, value_name = "IP")]
    by: Option<IpAddr>,

    /// Only this image
    #[arg(long, value_name = "REF", conflicts_with = "all")]
    image: Option<ImageQuery>,

    /// Every request, not only manifests
    #[arg(long)]
    all: bool,
}

/// Why the events cannot be printed.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The log cannot be read.
    #[error("cannot read the events in {}", .path.display())]
    Read {
        /// The log.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The log ended without an event.
    #[error("{} holds no events; expected the log that `run --events` or `serve --events` wrote{}", .path.display(), first_line(.fault))]
    NoEvents {
        /// The log.
        path: PathBuf,
        /// Why its first line is not an event, if it has one.
        fault: Option<String>,
    },
    /// Standard output cannot be written.
    #[error("cannot print the events")]
    Print(#[source] io::Error),
}

/// Prints the pulls. A closed standard output ends it without an error.
///
/// # Errors
/// See [`EventsError`].
pub fn run(args: &EventsArgs, report: &Report) -> Result<(), EventsError> {
    let mut out = io::stdout().lock();
    let mut tracker = PullTracker::default();
    let head = |out: &mut io::StdoutLock<'_>| if report.json { Ok(()) } else { writeln!(out, "{TABLE_HEAD}") };
    let mut printed = if args.follow { head(&mut out) } else { Ok(()) };
    let (mut has_events, mut first_fault) = (false, None);
    let fault =
        |number: u64, fault: &str| report.step(format!("line {number} of {}: {fault}; it is skipped", args.log.display()));
    let read = log_reader::read(&args.log, args.follow, |entry| {
        match entry.fault() {
            // Another kind of file may have any number of lines, so only its first is quoted, at the end.
            Some(text) if !has_events => first_fault = first_fault.take().or(Some((entry.number, text))),
            Some(text) => fault(entry.number, &text),
            None if !has_events => {
                has_events = true;
                first_fault.take().iter().for_each(|(number, text)| fault(*number, text));
                if !args.follow {
                    printed = head(&mut out);
                }
            }
            None => {}
        }
        if printed.is_ok() {
            printed = print_entry(args, report, &entry, &mut tracker, &mut out);
        }
        let done = args.follow && matches!(&entry.event, Ok(Event { event: Some(Kind::Done(_)), .. }));
        if done || printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let incomplete = read.map_err(|source| EventsError::Read { path: args.log.clone(), source })?;
    if !has_events && printed.is_ok() {
        return Err(EventsError::NoEvents { path: args.log.clone(), fault: first_fault.map(|(_, text)| text) });
    }
    if incomplete {
        report.step(format!("the last line of {} is incomplete and is ignored", args.log.display()));
    }
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(EventsError::Print(error)),
        _ => Ok(()),
    }
}

fn first_line(fault: &Option<String>) -> String {
    fault.as_ref().map_or_else(String::new, |fault| format!("; of its first line: {fault}"))
}

/// Prints an entry if the options select it.
fn print_entry(
    args: &EventsArgs,
    report: &Report,
    entry: &LogEntry<'_>,
    tracker: &mut PullTracker,
    out: &mut impl Write,
) -> io::Result<()> {
    let Ok(event) = &entry.event else { return Ok(()) };
    let (by, line) = match &event.event {
        Some(Kind::Request(request)) => {
            let line = match tracker.track(event.time, request) {
                Some(pull) if args.image.as_ref().is_none_or(|image| image.matches(&pull)) => pull.to_string(),
                None if args.all => RequestRow { time: event.time, request }.to_string(),
                _ => return Ok(()),
            };
            (address(request), line)
        }
        Some(Kind::Warning(Warning { tls_refused: Some(refused), .. })) if args.image.is_none() => {
            (refusals::address(refused), refusals::RefusalRow { time: event.time, refused }.to_string())
        }
        _ => return Ok(()),
    };
    if args.by.is_some_and(|wanted| by != Some(wanted.to_canonical())) {
        return Ok(());
    }
    if report.json {
        out.write_all(entry.bytes)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

/// The row of a request that is not a pull.
struct RequestRow<'a> {
    time: f64,
    request: &'a Request,
}

impl fmt::Display for RequestRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request { method, endpoint, repository, reference, status, bytes, complete, .. } = self.request;
        let reference = if reference.contains(':') { short_digest(reference) } else { format!(" {reference}") };
        let what = format!("{method} {endpoint} {repository}{reference}");
        write_row(f, self.time, address(self.request), what.trim_end(), *status, *bytes, *complete)
    }
}
