//! `localregistry events`: a log enters, a table of pulls leaves, or the log's own lines, chosen.

use std::fmt;
use std::io::{self, Write};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::log::{self, Entry};
use super::{HEAD, Pull, Tracker, Wanted, address, at, refusals, row};
use crate::host::support::report::Report;
use crate::proto::event::Event as Kind;
use crate::proto::{Event, Request, Warning};
use crate::text::chain;

/// The command line of `localregistry events`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  localregistry events events.jsonl
      Who pulled what, and what they did not get
  localregistry events --follow events.jsonl --by 10.1.0.7
      What one node pulls, as it does; ends when the registry does
  localregistry events --json events.jsonl --image docker.io/library/busybox
      The events of that image's pulls, as they stand in the log

A pull is one whole answer to a GET of an image's manifest, by tag or by digest (after HEAD of a tag: of that tag). What failed is
listed with its status; layers, configs and HEAD are not, but with --all. Clients that refused the registry's certificate are listed,
too, but with --image.")]
pub struct Args {
    /// The log that `run --events` or `serve --events` wrote, or the Unix socket of the guest's events
    #[arg(value_name = "FILE|SOCKET")]
    log: PathBuf,

    /// Go on with what is written later, until the registry has ended
    #[arg(long, short)]
    follow: bool,

    /// Only what this address asked for
    #[arg(long, value_name = "IP")]
    by: Option<IpAddr>,

    /// Only this image
    #[arg(long, value_name = "REF", conflicts_with = "all")]
    image: Option<Wanted>,

    /// Every request, not manifests alone
    #[arg(long)]
    all: bool,
}

/// Why the events are not shown.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The log.
    #[error("cannot read the events in {}", .path.display())]
    Read {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Standard output.
    #[error("cannot print the events")]
    Print(#[source] io::Error),
}

/// Shows the pulls. A reader of standard output that goes away ends it, and is no error.
///
/// # Errors
/// [`EventsError`].
pub fn run(args: &Args, report: &Report) -> Result<(), EventsError> {
    let mut out = io::stdout().lock();
    let mut tracker = Tracker::default();
    let mut printed = if report.json { Ok(()) } else { writeln!(out, "{HEAD}") };
    let read = log::read(&args.log, args.follow, |entry| {
        if printed.is_ok() {
            printed = show(args, report, &entry, &mut tracker, &mut out);
        }
        let done = args.follow && matches!(&entry.event, Ok(Event { event: Some(Kind::Done(_)), .. }));
        if done || printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let cut = read.map_err(|source| EventsError::Read { path: args.log.clone(), source })?;
    if cut {
        report.step(format!("the last line of {} was cut off in writing, and is left out", args.log.display()));
    }
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(EventsError::Print(error)),
        _ => Ok(()),
    }
}

/// Prints one entry, where it is wanted.
fn show(args: &Args, report: &Report, entry: &Entry<'_>, tracker: &mut Tracker, out: &mut impl Write) -> io::Result<()> {
    let event = match &entry.event {
        Ok(event) => event,
        Err(error) => {
            report.step(format!("line {} of {}: {}", entry.number, args.log.display(), chain(error)));
            return Ok(());
        }
    };
    let (by, line) = match &event.event {
        Some(Kind::Request(request)) => {
            let line = match tracker.take(event.time, request) {
                Some(pull) if is_wanted(args, &pull) => pull.to_string(),
                None if args.all => Other { time: event.time, request }.to_string(),
                _ => return Ok(()),
            };
            (address(request), line)
        }
        Some(Kind::Warning(Warning { tls_refused: Some(refused), .. })) if args.image.is_none() => {
            (refusals::address(refused), refusals::Row { time: event.time, refused }.to_string())
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

fn is_wanted(args: &Args, pull: &Pull) -> bool {
    args.image.as_ref().is_none_or(|image| image.is(pull))
}

/// A request that is no pull.
struct Other<'a> {
    time: f64,
    request: &'a Request,
}

impl fmt::Display for Other<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request { method, endpoint, repository, reference, status, bytes, complete, .. } = self.request;
        let reference = if reference.contains(':') { at(reference) } else { format!(" {reference}") };
        let what = format!("{method} {endpoint} {repository}{reference}");
        row(f, self.time, address(self.request), what.trim_end(), *status, *bytes, *complete)
    }
}
