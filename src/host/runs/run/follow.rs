//! A running machine followed to its end: signals, events and warnings enter; requests and events are printed, and how it ended
//! leaves.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::lifeline::{self, Lifeline};
use super::print;
use crate::host::support::report::Report;
use crate::host::support::signals::Signals;
use crate::host::vm::launch::{Appliance, Ended};
use crate::proto::Event;
use crate::proto::event::Event as Kind;
use crate::text::chain;

/// Bad events that are shown: a guest gone mad must not fill the terminal.
const BAD_EVENTS: u32 = 10;
/// A signal that comes this soon after another is the same wish.
const ECHO: Duration = Duration::from_secs(1);
/// Events that wait to be printed at most.
const WAITING: usize = 4096;

/// What is printed while it runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown {
    /// Each request, on standard error.
    pub requests: bool,
    /// Each event, as JSON on standard output.
    pub events: bool,
}

/// Follows the machine to its end. The first signal ends it in order, a later one at once. The end of `lifeline` ends it in order, too,
/// and counts as no signal: a launcher that sends one may close its pipe soon before or after.
pub(crate) async fn follow(
    mut vm: Appliance,
    mut signals: Signals,
    mut lifeline: Option<Lifeline>,
    shown: Shown,
    report: &Report,
) -> Ended {
    let mut asked: Option<Instant> = None;
    let mut bad = 0;
    let mut printer = shown.events.then(Printer::start);
    loop {
        tokio::select! {
            name = signals.next() => {
                match asked {
                    None => {
                        report.step(format!("{name}: stopping in order (once more kills)"));
                        vm.stop();
                        asked = Some(Instant::now());
                    }
                    // A terminal and a wrapper may each pass the same one on.
                    Some(when) if when.elapsed() < ECHO => {}
                    Some(_) => {
                        report.step(format!("{name}: killing QEMU"));
                        vm.kill();
                    }
                }
            }
            descriptor = lifeline::closed(&mut lifeline) => {
                report.step(format!("{descriptor} has ended: stopping in order"));
                vm.stop();
            }
            event = vm.next_event() => match event {
                Some(Ok(event)) => {
                    if let Some(printer) = &mut printer {
                        printer.print(&event);
                    }
                    match &event.event {
                        Some(Kind::Request(request)) if shown.requests => eprintln!("{}", print::request(request)),
                        Some(Kind::Warning(warning)) => report.step(print::warning(warning)),
                        Some(Kind::Disks(disks)) => report.step(print::disks(disks)),
                        _ => {}
                    }
                }
                Some(Err(error)) => {
                    bad += 1;
                    if bad <= BAD_EVENTS {
                        report.step(format!("warning: {}", chain(&error)));
                    }
                }
                None => break,
            },
        }
    }
    let mut ended = vm.wait().await;
    ended.unwritten.extend(printer.and_then(Printer::finish));
    ended
}

/// Prints events on a thread of its own: a reader that is slow, or that does not read at all, must not keep signals waiting.
struct Printer {
    queue: Option<SyncSender<String>>,
    thread: JoinHandle<io::Result<()>>,
    dropped: u64,
}

impl Printer {
    fn start() -> Self {
        let (queue, lines) = sync_channel(WAITING);
        Self { queue: Some(queue), thread: thread::spawn(move || print_lines(&lines)), dropped: 0 }
    }

    fn print(&mut self, event: &Event) {
        let Ok(line) = serde_json::to_string(event) else { return };
        match self.queue.as_ref().map(|queue| queue.try_send(line + "\n")) {
            Some(Err(TrySendError::Full(_))) => self.dropped += 1,
            // The thread tells why at the end.
            Some(Err(TrySendError::Disconnected(_))) => self.queue = None,
            Some(Ok(())) | None => {}
        }
    }

    /// What is missing of what was to be printed.
    fn finish(mut self) -> Option<String> {
        self.queue = None;
        if self.dropped > 0 {
            // Nobody reads: there is nothing to wait for.
            return Some(format!("{} events were not printed: standard output was read too slowly", self.dropped));
        }
        let error = self.thread.join().ok()?.err()?;
        Some(format!("events were not printed: standard output cannot be written to: {error}"))
    }
}

fn print_lines(lines: &Receiver<String>) -> io::Result<()> {
    for line in lines {
        let mut out = io::stdout().lock();
        out.write_all(line.as_bytes())?;
        out.flush()?;
    }
    Ok(())
}
