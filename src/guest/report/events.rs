//! Events on their way out. What enters is the queue that everybody fills; what leaves is one JSON line for each event on the
//! port `localregistry.events`, or on the console where there is no such port. One thread does the writing and nobody waits for
//! it: a reader that is slow or absent costs events, which are counted, and never time.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;

use crate::proto::{Done, Event, Warning, event};
use crate::registry::telemetry::events::Events;

use crate::guest::early::{console, ports};

/// Name of the port.
pub const PORT: &str = "localregistry.events";

/// How long the last event may take to be written, with those before it.
const LAST: Duration = Duration::from_secs(2);
/// How much of that those before it may take.
const BACKLOG: Duration = Duration::from_secs(1);

/// The thread that writes, as seen by who ends it.
#[derive(Debug)]
pub struct Writer {
    events: Events,
    last: Arc<OnceLock<Last>>,
    written: Receiver<()>,
}

/// The event that ends the stream.
#[derive(Debug)]
struct Last {
    done: Done,
    backlog: Instant,
}

impl Writer {
    /// Starts the thread, which looks for the port by itself, so that boot need not wait for it.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(events: &Events, queue: Receiver<Event>) -> io::Result<Self> {
        let last = Arc::new(OnceLock::new());
        let (ended, written) = sync_channel(1);
        let writer = Self { events: events.clone(), last: Arc::clone(&last), written };
        let events = events.clone();
        thread::Builder::new().name("events".to_owned()).spawn(move || {
            Pump::new(events, queue, last).run(&mut Sink::open());
            let _ = ended.send(());
        })?;
        Ok(writer)
    }

    /// Writes what is queued and then `done`, whose `dropped_events` is filled in, and waits for that a bounded time.
    pub fn finish(self, done: Done) {
        let done = Done { dropped_events: self.events.dropped(), ..done };
        let _ = self.last.set(Last { done: done.clone(), backlog: Instant::now() + BACKLOG });
        // Wakes the thread where it waits for an event. Where the queue is full it is awake.
        self.events.emit(event::Event::Done(done));
        let _ = self.written.recv_timeout(LAST);
    }
}

/// Writes `done` where there is no thread to write it, and without waiting for whoever should read it.
pub fn write_last(done: Done) {
    let Some(path) = ports::find(PORT) else { return };
    let opened = OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path);
    if let Err(error) = opened.and_then(|mut port| write_line(&mut port, &now(event::Event::Done(done)))) {
        console::say(&format!("the last event cannot be written to {}: {error}", path.display()));
    }
}

/// Where the lines go.
#[derive(Debug)]
enum Sink {
    Port(File),
    Console,
}

impl Sink {
    fn open() -> Self {
        let Some(path) = ports::find(PORT) else { return Self::Console };
        match OpenOptions::new().write(true).open(&path) {
            Ok(port) => Self::Port(port),
            Err(error) => {
                console::say(&format!("the events go to the console: open {}: {error}", path.display()));
                Self::Console
            }
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Port(port) => port.write(bytes),
            Self::Console => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Moves events from the queue to a sink.
struct Pump {
    events: Events,
    queue: Receiver<Event>,
    last: Arc<OnceLock<Last>>,
    /// Events that left the queue and could not be written.
    lost: u64,
    /// Drops that the reader has been told of.
    told: u64,
}

impl Pump {
    fn new(events: Events, queue: Receiver<Event>, last: Arc<OnceLock<Last>>) -> Self {
        Self { events, queue, last, lost: 0, told: 0 }
    }

    fn run(mut self, sink: &mut impl Write) {
        loop {
            let next = match self.last.get() {
                None => self.queue.recv().ok(),
                Some(last) if Instant::now() < last.backlog => self.queue.try_recv().ok(),
                Some(_) => None,
            };
            match next {
                Some(event) if !is_done(&event) => {
                    self.write(sink, &event);
                    self.tell_of_drops(sink);
                }
                _ => return self.finish(sink),
            }
        }
    }

    fn write(&mut self, sink: &mut impl Write, event: &Event) {
        if write_line(sink, event).is_err() {
            self.lost = self.lost.saturating_add(1);
        }
    }

    fn tell_of_drops(&mut self, sink: &mut impl Write) {
        let dropped = self.events.dropped();
        if dropped > self.told {
            let message =
                format!("{} events were dropped: the reader of port {PORT} is too slow", dropped.saturating_sub(self.told));
            self.told = dropped;
            self.write(
                sink,
                &now(event::Event::Warning(Warning { code: "DROPPED_EVENTS".to_owned(), message, ..Warning::default() })),
            );
        }
    }

    fn finish(self, sink: &mut impl Write) {
        let unread = self.queue.try_iter().filter(|event| !is_done(event)).count();
        if let Some(Last { done, .. }) = self.last.get() {
            let dropped_events =
                done.dropped_events.saturating_add(self.lost).saturating_add(u64::try_from(unread).unwrap_or(u64::MAX));
            let _ = write_line(sink, &now(event::Event::Done(Done { dropped_events, ..done.clone() })));
        }
    }
}

fn is_done(event: &Event) -> bool {
    matches!(event.event, Some(event::Event::Done(_)))
}

fn now(event: event::Event) -> Event {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Event { time, event: Some(event) }
}

/// Writes `event` as one line, in one write where the sink takes it.
fn write_line(sink: &mut impl Write, event: &Event) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    sink.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::telemetry::events::QUEUE;

    fn warning(code: &str) -> event::Event {
        event::Event::Warning(Warning { code: code.to_owned(), message: String::new(), ..Warning::default() })
    }

    fn last(dropped_events: u64, backlog: Duration) -> Arc<OnceLock<Last>> {
        let done = Done { reason: "the end".to_owned(), dropped_events, ..Done::default() };
        OnceLock::from(Last { done, backlog: Instant::now() + backlog }).into()
    }

    fn run(events: &Events, queue: Receiver<Event>, last: Arc<OnceLock<Last>>) -> Vec<event::Event> {
        let mut out = Vec::new();
        Pump::new(events.clone(), queue, last).run(&mut out);
        let lines = out.split_inclusive(|byte| *byte == b'\n');
        lines.map(|line| serde_json::from_slice::<Event>(line).unwrap().event.unwrap()).collect()
    }

    fn done(dropped_events: u64) -> event::Event {
        event::Event::Done(Done { reason: "the end".to_owned(), dropped_events, ..Done::default() })
    }

    #[test]
    fn events_leave_in_order_and_done_is_last() {
        let (events, queue) = Events::queue();
        events.emit(warning("A"));
        events.emit(warning("B"));
        assert_eq!(run(&events, queue, last(0, BACKLOG)), [warning("A"), warning("B"), done(0)]);
    }

    #[test]
    fn drops_are_told_of_once_and_counted_at_the_end() {
        let (events, queue) = Events::queue();
        (0..QUEUE + 3).for_each(|_| events.emit(warning("A")));
        let lines = run(&events, queue, last(3, Duration::from_secs(600)));
        let told: Vec<_> = lines.iter().filter(|event| **event != warning("A")).cloned().collect();
        let message = "3 events were dropped: the reader of port localregistry.events is too slow".to_owned();
        let expected = event::Event::Warning(Warning { code: "DROPPED_EVENTS".to_owned(), message, ..Warning::default() });
        assert_eq!(told, [expected, done(3)]);
        assert_eq!(lines.len(), QUEUE + 2);
    }

    #[test]
    fn out_of_time_done_goes_before_the_rest_which_counts_as_dropped() {
        let (events, queue) = Events::queue();
        events.emit(warning("A"));
        events.emit(warning("B"));
        assert_eq!(run(&events, queue, last(1, Duration::ZERO)), [done(3)]);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        struct Broken(Vec<u8>, usize);
        impl Write for Broken {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                if self.1 == 1 { Err(io::ErrorKind::BrokenPipe.into()) } else { self.0.write(bytes) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (events, queue) = Events::queue();
        events.emit(warning("A"));
        let mut sink = Broken(Vec::new(), 0);
        Pump::new(events.clone(), queue, last(0, BACKLOG)).run(&mut sink);
        assert_eq!(serde_json::from_slice::<Event>(&sink.0).unwrap().event, Some(done(1)));
    }

    #[test]
    fn the_thread_wakes_for_done() {
        let (events, queue) = Events::queue();
        let last = Arc::new(OnceLock::new());
        let pump = Pump::new(events.clone(), queue, Arc::clone(&last));
        let thread = thread::spawn(move || {
            let mut out = Vec::new();
            pump.run(&mut out);
            out
        });
        let end = Done { reason: "the end".to_owned(), ..Done::default() };
        last.set(Last { done: end.clone(), backlog: Instant::now() + BACKLOG }).unwrap();
        events.emit(event::Event::Done(end));
        assert_eq!(serde_json::from_slice::<Event>(&thread.join().unwrap()).unwrap().event, Some(done(0)));
    }
}
