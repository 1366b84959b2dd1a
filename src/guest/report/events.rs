//! Writes queued events as JSON lines to the port `localregistry.events`, or to the console if there is no such port. One thread
//! of PID 1 writes, and one of the process that serves, each event in one write: the port takes up to 32 KiB at once. No other code
//! waits for them: if the reader is slow or absent, events are dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;

use crate::proto::{Done, Event, Warning, event};
use crate::registry::telemetry::events::Events;

use crate::guest::early::{console, virtio_serial};

/// Name of the port.
pub const PORT: &str = "localregistry.events";

/// How long [`Writer::finish`] may take to write the queued events and the last one.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);
/// Part of that time for the queued events.
const BACKLOG_TIMEOUT: Duration = Duration::from_secs(1);

/// A handle to the writing thread.
#[derive(Debug)]
pub struct Writer {
    events: Events,
    last: Arc<OnceLock<FinalEvent>>,
    /// Gets the port, if there is one.
    opened: Receiver<Option<OwnedFd>>,
    /// Gets the number of events that could not be written.
    written: Receiver<u64>,
}

/// The event that ends the stream, if one does, and the deadline for the queued ones.
#[derive(Debug)]
struct FinalEvent {
    done: Option<Done>,
    backlog_deadline: Instant,
}

impl Writer {
    /// Starts the thread. The thread opens the port itself, so that boot need not wait for it.
    ///
    /// # Errors
    /// Fails if no thread can be started.
    pub fn start(events: &Events, queue: Receiver<Event>) -> io::Result<Self> {
        Self::start_on(Sink::open, events, queue)
    }

    /// Starts the thread, in the process that serves, with the port that PID 1 has opened.
    ///
    /// # Errors
    /// Fails if no thread can be started.
    pub fn start_on_port(port: Option<OwnedFd>, events: &Events, queue: Receiver<Event>) -> io::Result<Self> {
        Self::start_on(|| port.map_or(Sink::Console, |port| Sink::Port(port.into())), events, queue)
    }

    fn start_on(open: impl FnOnce() -> Sink + Send + 'static, events: &Events, queue: Receiver<Event>) -> io::Result<Self> {
        let last = Arc::new(OnceLock::new());
        let ((shared, opened), (ended, written)) = (sync_channel(1), sync_channel(1));
        let writer = Self { events: events.clone(), last: Arc::clone(&last), opened, written };
        let events = events.clone();
        thread::Builder::new().name("events".to_owned()).spawn(move || {
            let mut sink = open();
            let _ = shared.send(sink.share());
            let _ = ended.send(Pump::new(events, queue, last).run(&mut sink));
        })?;
        Ok(writer)
    }

    /// The port, if there is one, for another process. Waits until it is open.
    #[must_use]
    pub fn port(&self) -> Option<OwnedFd> {
        self.opened.recv().ok().flatten()
    }

    /// Writes the queued events and then `done`, with the number of dropped events added. Waits a limited time for that. Returns that number.
    pub fn finish(self, done: Option<Done>) -> u64 {
        let dropped = self.events.dropped();
        let done = done.map(|done| Done { dropped_events: done.dropped_events.saturating_add(dropped), ..done });
        let _ = self.last.set(FinalEvent { done, backlog_deadline: Instant::now() + BACKLOG_TIMEOUT });
        // Wakes the thread if it waits for an event. If the queue is full, it is awake.
        self.events.emit(event::Event::Done(Done::default()));
        dropped.saturating_add(self.written.recv_timeout(FINISH_TIMEOUT).unwrap_or_default())
    }
}

/// Writes `done` without a thread, and without waiting for the reader.
pub fn write_last(done: Done) {
    let Some(path) = virtio_serial::find_port(PORT) else { return };
    let opened = OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path);
    if let Err(error) = opened.and_then(|mut port| write_line(&mut port, &now(event::Event::Done(done)))) {
        console::log(&format!("cannot write the last event to {}: {error}", path.display()));
    }
}

/// Output of the events.
#[derive(Debug)]
enum Sink {
    Port(File),
    Console,
}

impl Sink {
    fn open() -> Self {
        let Some(path) = virtio_serial::find_port(PORT) else { return Self::Console };
        match OpenOptions::new().write(true).open(&path) {
            Ok(port) => Self::Port(port),
            Err(error) => {
                console::log(&format!("cannot open {}, so events go to the console: {error}", path.display()));
                Self::Console
            }
        }
    }

    /// The port, for another process.
    fn share(&self) -> Option<OwnedFd> {
        match self {
            Self::Port(port) => port.try_clone().ok().map(OwnedFd::from),
            Self::Console => None,
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
    last: Arc<OnceLock<FinalEvent>>,
    /// Events that left the queue but could not be written.
    lost: u64,
    /// Dropped events that a warning has reported.
    reported: u64,
}

impl Pump {
    fn new(events: Events, queue: Receiver<Event>, last: Arc<OnceLock<FinalEvent>>) -> Self {
        Self { events, queue, last, lost: 0, reported: 0 }
    }

    /// Returns the number of events that left the queue and could not be written.
    fn run(mut self, sink: &mut impl Write) -> u64 {
        loop {
            let next = match self.last.get() {
                None => self.queue.recv().ok(),
                Some(last) if Instant::now() < last.backlog_deadline => self.queue.try_recv().ok(),
                Some(_) => None,
            };
            match next {
                Some(event) if !is_done(&event) => {
                    self.write(sink, &event);
                    self.report_drops(sink);
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

    fn report_drops(&mut self, sink: &mut impl Write) {
        let dropped = self.events.dropped();
        if dropped > self.reported {
            let message =
                format!("{} events were dropped: the reader of port {PORT} is too slow", dropped.saturating_sub(self.reported));
            self.reported = dropped;
            self.write(
                sink,
                &now(event::Event::Warning(Warning { code: "DROPPED_EVENTS".to_owned(), message, ..Warning::default() })),
            );
        }
    }

    fn finish(self, sink: &mut impl Write) -> u64 {
        let unread = self.queue.try_iter().filter(|event| !is_done(event)).count();
        let lost = self.lost.saturating_add(u64::try_from(unread).unwrap_or(u64::MAX));
        if let Some(FinalEvent { done: Some(done), .. }) = self.last.get() {
            let dropped_events = done.dropped_events.saturating_add(lost);
            let _ = write_line(sink, &now(event::Event::Done(Done { dropped_events, ..done.clone() })));
        }
        lost
    }
}

fn is_done(event: &Event) -> bool {
    matches!(event.event, Some(event::Event::Done(_)))
}

fn now(event: event::Event) -> Event {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Event { time, event: Some(event) }
}

/// Writes `event` as one line, in one write if the sink accepts it.
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

    fn last(dropped_events: u64, backlog: Duration) -> Arc<OnceLock<FinalEvent>> {
        let done = Done { reason: "the end".to_owned(), dropped_events, ..Done::default() };
        OnceLock::from(FinalEvent { done: Some(done), backlog_deadline: Instant::now() + backlog }).into()
    }

    fn run(events: &Events, queue: Receiver<Event>, last: Arc<OnceLock<FinalEvent>>) -> Vec<event::Event> {
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
        assert_eq!(run(&events, queue, last(0, BACKLOG_TIMEOUT)), [warning("A"), warning("B"), done(0)]);
    }

    #[test]
    fn drops_are_reported_once_and_counted_at_the_end() {
        let (events, queue) = Events::queue();
        (0..QUEUE + 3).for_each(|_| events.emit(warning("A")));
        let lines = run(&events, queue, last(3, Duration::from_secs(600)));
        let reported: Vec<_> = lines.iter().filter(|event| **event != warning("A")).cloned().collect();
        let message = "3 events were dropped: the reader of port localregistry.events is too slow".to_owned();
        let expected = event::Event::Warning(Warning { code: "DROPPED_EVENTS".to_owned(), message, ..Warning::default() });
        assert_eq!(reported, [expected, done(3)]);
        assert_eq!(lines.len(), QUEUE + 2);
    }

    #[test]
    fn after_the_deadline_done_is_written_and_the_rest_counts_as_dropped() {
        let (events, queue) = Events::queue();
        events.emit(warning("A"));
        events.emit(warning("B"));
        assert_eq!(run(&events, queue, last(1, Duration::ZERO)), [done(3)]);
    }

    #[test]
    fn events_that_cannot_be_written_are_counted() {
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
        Pump::new(events.clone(), queue, last(0, BACKLOG_TIMEOUT)).run(&mut sink);
        assert_eq!(serde_json::from_slice::<Event>(&sink.0).unwrap().event, Some(done(1)));
    }

    #[test]
    fn done_wakes_the_writer_thread() {
        let (events, queue) = Events::queue();
        let last = Arc::new(OnceLock::new());
        let pump = Pump::new(events.clone(), queue, Arc::clone(&last));
        let thread = thread::spawn(move || {
            let mut out = Vec::new();
            pump.run(&mut out);
            out
        });
        let end = Done { reason: "the end".to_owned(), ..Done::default() };
        last.set(FinalEvent { done: Some(end.clone()), backlog_deadline: Instant::now() + BACKLOG_TIMEOUT }).unwrap();
        events.emit(event::Event::Done(end));
        assert_eq!(serde_json::from_slice::<Event>(&thread.join().unwrap()).unwrap().event, Some(done(0)));
    }
}
