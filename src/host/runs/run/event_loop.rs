//! Runs a ready machine until it ends: handles signals and the launcher's end, and prints requests, warnings and events.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::print;
use crate::host::support::interrupt::Signals;
use crate::host::support::parent_watch::{self, ParentWatch};
use crate::host::support::report::{Report, message};
use crate::host::vm::launch::{Appliance, ExitReport};
use crate::proto::Event;
use crate::proto::event::Event as Kind;
use crate::text::chain;

/// Number of bad events that are printed, so that a broken guest does not fill the terminal.
const MAX_BAD_EVENTS: u32 = 10;
/// A signal this soon after another counts as the same: a terminal and a wrapper may both deliver it.
const SIGNAL_ECHO: Duration = Duration::from_secs(1);
/// Capacity of the queue of events to print.
const PRINT_QUEUE: usize = 4096;

/// What is printed while the machine runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Each request, on standard error.
    pub requests: bool,
    /// Each event, as JSON on standard output.
    pub events: bool,
}

/// Waits until the machine has ended. The first signal shuts it down gracefully, a later one kills it. The end of the `parent` shuts it
/// down as well, but does not count as a signal: a launcher that sends one may close its pipe shortly before or after.
pub(crate) async fn run(
    mut vm: Appliance,
    mut signals: Signals,
    mut parent: Option<ParentWatch>,
    output: Output,
    report: &Report,
) -> ExitReport {
    let mut first_signal: Option<Instant> = None;
    let mut bad_events = 0;
    let mut printer = output.events.then(Printer::start);
    loop {
        tokio::select! {
            signal = signals.next() => {
                let name = signal.as_str();
                match first_signal {
                    None => {
                        report.step(format!("{name}: shutting down (a second signal kills QEMU)"));
                        vm.stop();
                        first_signal = Some(Instant::now());
                    }
                    Some(when) if when.elapsed() < SIGNAL_ECHO => {}
                    Some(_) => {
                        report.step(format!("{name}: killing QEMU"));
                        vm.kill();
                    }
                }
            }
            descriptor = parent_watch::closed(&mut parent) => {
                report.step(format!("{descriptor} was closed: shutting down"));
                vm.stop();
            }
            event = vm.next_event() => match event {
                Some(Ok(event)) => {
                    if let Some(printer) = &mut printer {
                        printer.print(&event);
                    }
                    match &event.event {
                        Some(Kind::Request(request)) if output.requests => message(print::request(request)),
                        Some(Kind::Warning(warning)) => report.step(print::warning(warning)),
                        Some(Kind::Disks(disks)) => report.step(print::disks(disks)),
                        _ => {}
                    }
                }
                Some(Err(error)) => {
                    bad_events += 1;
                    if bad_events <= MAX_BAD_EVENTS {
                        report.step(format!("warning: {}", chain(&error)));
                    }
                }
                None => break,
            },
        }
    }
    let mut exit = vm.wait().await;
    exit.incomplete.extend(printer.and_then(Printer::finish));
    exit
}

/// Prints events on a thread of its own, so that a reader that is slow or does not read at all does not delay signals.
struct Printer {
    queue: Option<SyncSender<String>>,
    thread: io::Result<JoinHandle<io::Result<()>>>,
    dropped: u64,
}

impl Printer {
    fn start() -> Self {
        let (queue, lines) = sync_channel(PRINT_QUEUE);
        let thread = thread::Builder::new().name("events".to_owned()).spawn(move || print_lines(&lines));
        Self { queue: Some(queue), thread, dropped: 0 }
    }

    fn print(&mut self, event: &Event) {
        let Ok(line) = serde_json::to_string(event) else { return };
        match self.queue.as_ref().map(|queue| queue.try_send(line + "\n")) {
            Some(Err(TrySendError::Full(_))) => self.dropped += 1,
            // The thread has failed; `finish` returns its error.
            Some(Err(TrySendError::Disconnected(_))) => self.queue = None,
            Some(Ok(())) | None => {}
        }
    }

    /// Returns a message if events were not printed.
    fn finish(mut self) -> Option<String> {
        self.queue = None;
        if self.dropped > 0 {
            // The thread may be blocked by a reader that does not read, so it is not joined.
            return Some(format!("{} events were not printed: standard output was read too slowly", self.dropped));
        }
        match self.thread {
            Ok(thread) => thread.join().ok()?.err().map(|error| format!("standard output cannot be written to: {error}")),
            Err(error) => Some(format!("cannot start a thread: {error}")),
        }
        .map(|cause| format!("events were not printed: {cause}"))
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
