//! Collects what is observed of a running machine: its console, its events, QMP and QEMU's standard error, each read by a task of its
//! own. [`Outcome::from_observations`] decides what it means.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, watch};

use super::event::{self, EventError};
use super::outcome::{Exit, KillReason, Observations, Outcome};
use super::tail::Tail;
use crate::host::support::files;
use crate::proto::{Done, Event, event::Event as Kind};
use crate::text::Lines;

/// Lines of the console and of QEMU's standard error in an [`ExitReport`].
const REPORTED_LINES: usize = 20;
const READ_BUFFER: usize = 16 * 1024;

/// The observations so far, and notifications of some of them.
#[derive(Debug, Default)]
pub(crate) struct Monitor {
    state: Mutex<State>,
    alive: watch::Sender<bool>,
    /// Counts reads from the event port.
    event_activity: watch::Sender<u64>,
    ending: watch::Sender<Option<KillReason>>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub console: Tail,
    pub stderr: Tail,
    /// QEMU's report of a panic.
    pub panic: Option<String>,
    pub ready: bool,
    pub done: Option<Done>,
    pub killed: Option<KillReason>,
    /// Whether the guest's heartbeat has stopped.
    pub hung: bool,
    /// The reason in QMP's SHUTDOWN event.
    pub reason: Option<String>,
    /// Messages about output files that are incomplete.
    pub incomplete: Vec<String>,
}

/// How a machine ended, with what helps to find out why.
#[derive(Debug, Clone, PartialEq)]
pub struct ExitReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The last lines of the guest's console, at most 20, printable.
    pub console: Vec<String>,
    /// The last lines of QEMU's standard error, at most 20, printable.
    pub stderr: Vec<String>,
    /// A message for each output file that is incomplete.
    pub incomplete: Vec<String>,
}

impl Monitor {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_alive(&self) {
        self.alive.send_if_modified(|alive| !std::mem::replace(alive, true));
    }

    /// Waits for the guest's first output.
    pub(crate) async fn alive(&self) {
        // The sender lives as long as `self`.
        let _always = self.alive.subscribe().wait_for(|alive| *alive).await.map(|_| ());
    }

    fn count_event_activity(&self) {
        self.event_activity.send_modify(|count| *count += 1);
    }

    /// Notifies of every read from the event port.
    pub(crate) fn event_activity(&self) -> watch::Receiver<u64> {
        self.event_activity.subscribe()
    }

    pub(crate) fn set_hung(&self, hung: bool) {
        self.state().hung = hung;
    }

    /// Notes that the machine is about to end by itself. `reason` is why it is killed if it does not. The first call counts.
    fn set_ending(&self, reason: KillReason) {
        self.ending.send_if_modified(|ending| ending.replace(ending.unwrap_or(reason)).is_none());
    }

    /// Waits until the machine is about to end, and returns why it is to be killed if it does not.
    pub(crate) async fn ending(&self) -> KillReason {
        let mut ending = self.ending.subscribe();
        // The sender lives as long as `self`.
        ending.wait_for(Option::is_some).await.ok().and_then(|reason| *reason).unwrap_or(KillReason::StuckAfterDone)
    }

    /// Notes that QEMU reports a kernel panic.
    pub(crate) fn set_panicked(&self, message: &str) {
        self.state().panic.get_or_insert_with(|| message.to_owned());
        self.set_ending(KillReason::StuckAfterPanic);
    }

    /// Notes that QEMU is shutting down. The first reason counts.
    pub(crate) fn set_shutdown_reason(&self, reason: Option<String>) {
        let mut state = self.state();
        state.reason = state.reason.take().or(reason);
    }

    /// Notes that the launcher is about to kill QEMU. The first reason counts.
    pub(crate) fn set_killed(&self, reason: KillReason) {
        self.state().killed.get_or_insert(reason);
    }

    fn observe(&self, event: &Event) {
        match &event.event {
            Some(Kind::Ready(_)) => self.state().ready = true,
            Some(Kind::Done(done)) => {
                self.state().done = Some(done.clone());
                self.set_ending(KillReason::StuckAfterDone);
            }
            _ => {}
        }
    }

    /// The report for a QEMU that has ended with `exit`.
    pub(crate) fn report(&self, exit: Exit) -> ExitReport {
        let state = self.state();
        let seen = Observations {
            exit,
            killed: state.killed,
            panic: state.console.panic().map(str::to_owned).or_else(|| state.panic.clone()),
            ready: state.ready,
            done: state.done.clone(),
            reason: state.reason.clone(),
        };
        ExitReport {
            outcome: Outcome::from_observations(seen),
            console: state.console.last(REPORTED_LINES),
            stderr: state.stderr.last(REPORTED_LINES),
            incomplete: state.incomplete.clone(),
        }
    }
}

/// An output file with a copy of a stream.
#[derive(Debug)]
pub(crate) struct CaptureFile {
    path: PathBuf,
    /// `None` after the first failed write: a truncated file is better than one with a gap.
    file: Option<File>,
}

impl CaptureFile {
    /// Creates or truncates the file at `path`.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: Some(files::create(path)?) })
    }

    /// Appends `parts` with one unbuffered write, as the user may be reading the file.
    fn append(&mut self, parts: &[&[u8]], monitor: &Monitor) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = file.write_all(&parts.concat()) {
            let line = format!("cannot write to {}, which is incomplete: {error}", self.path.display());
            monitor.state().incomplete.push(line);
            self.file = None;
        }
    }
}

/// Reads the guest's console until it ends.
pub(crate) async fn read_console(mut stream: impl AsyncRead + Unpin, monitor: &Monitor, mut copy: Option<CaptureFile>) {
    let mut buffer = vec![0; READ_BUFFER];
    while let Some(bytes) = read_some(&mut stream, &mut buffer).await {
        if let Some(copy) = &mut copy {
            copy.append(&[bytes], monitor);
        }
        let panicked = {
            let mut state = monitor.state();
            state.console.feed(bytes);
            state.console.panic().is_some()
        };
        monitor.set_alive();
        if panicked {
            monitor.set_ending(KillReason::StuckAfterPanic);
        }
    }
}

/// Reads QEMU's standard error until it ends.
pub(crate) async fn read_stderr(mut stream: impl AsyncRead + Unpin, monitor: &Monitor) {
    let mut buffer = vec![0; READ_BUFFER];
    while let Some(bytes) = read_some(&mut stream, &mut buffer).await {
        monitor.state().stderr.feed(bytes);
    }
}

/// Reads the guest's events until they end, and puts them into `queue`. While the queue is full it reads nothing, and the guest counts
/// the events that it has to drop. It goes on observing after the receiver is closed.
pub(crate) async fn read_events(
    mut stream: impl AsyncRead + Unpin,
    monitor: &Monitor,
    queue: mpsc::Sender<Result<Event, EventError>>,
    mut copy: Option<CaptureFile>,
) {
    let mut lines = Lines::new(event::MAX_EVENT);
    let mut buffer = vec![0; READ_BUFFER];
    while let Some(bytes) = read_some(&mut stream, &mut buffer).await {
        let mut events = Vec::new();
        lines.feed(bytes, |line| {
            let event = event::parse(line);
            if let Ok(event) = &event {
                monitor.observe(event);
                if let Some(copy) = &mut copy {
                    copy.append(&[line.bytes, b"\n"], monitor);
                }
            }
            events.push(event);
        });
        monitor.set_alive();
        monitor.count_event_activity();
        for event in events {
            let _closed = queue.send(event).await;
            // The time that a full queue took is not the guest's silence.
            monitor.count_event_activity();
        }
    }
}

/// Reads what is available; `None` at the end of the stream. QEMU's death may appear as an error (a connection reset), which is an end
/// as well.
pub(crate) async fn read_some<'a>(stream: &mut (impl AsyncRead + Unpin), buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let count = stream.read(buffer).await.ok().filter(|&count| count > 0)?;
    buffer.get(..count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn console_yields_panic_and_last_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let monitor = Monitor::default();
        let raw = b"\x1b[0mhello\r\n[    1.0] Kernel panic - not syncing: x\r\nlast";
        read_console(&raw[..], &monitor, Some(CaptureFile::create(&path).unwrap())).await;

        monitor.alive().await;
        assert_eq!(monitor.ending().await, KillReason::StuckAfterPanic);
        let ended = monitor.report(Exit::Code(0));
        assert_eq!(ended.outcome, Outcome::Panic("Kernel panic - not syncing: x".into()));
        assert_eq!(ended.console, ["hello", "[    1.0] Kernel panic - not syncing: x", "last"]);
        assert_eq!(std::fs::read(&path).unwrap(), raw);
    }

    #[tokio::test]
    async fn events_are_queued_observed_and_copied() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let monitor = Monitor::default();
        let raw = b"{\"booting\":{}}\nnoise\n{\"ready\":{\"images\":3}}\n{\"done\":{\"reason\":\"asked\"}}\n{\"unfini";
        let (sender, mut queue) = mpsc::channel(9);
        read_events(&raw[..], &monitor, sender, Some(CaptureFile::create(&path).unwrap())).await;

        let mut kinds = Vec::new();
        while let Some(event) = queue.recv().await {
            kinds.push(event.map(|event| event.event.unwrap()));
        }
        assert!(matches!(
            &kinds[..],
            [Ok(Kind::Booting(_)), Err(EventError::Json { .. }), Ok(Kind::Ready(_)), Ok(Kind::Done(_))]
        ));
        assert_eq!(monitor.ending().await, KillReason::StuckAfterDone);
        assert_eq!(monitor.report(Exit::Code(0)).outcome.exit_status(), 0);
        let kept = std::fs::read_to_string(&path).unwrap();
        assert_eq!(kept, "{\"booting\":{}}\n{\"ready\":{\"images\":3}}\n{\"done\":{\"reason\":\"asked\"}}\n");
    }

    #[tokio::test]
    async fn observing_goes_on_after_the_queue_is_closed() {
        let monitor = Monitor::default();
        let (sender, queue) = mpsc::channel(1);
        drop(queue);
        let raw = "{\"booting\":{}}\n".repeat(5000) + "{\"done\":{\"status\":2,\"code\":\"X\"}}\n";
        read_events(raw.as_bytes(), &monitor, sender, None).await;
        assert_eq!(monitor.report(Exit::Code(0)).outcome.exit_status(), 3);
    }

    #[tokio::test]
    async fn full_device_is_reported_once_and_stops_nothing() {
        let monitor = Monitor::default();
        let copy = CaptureFile::create(Path::new("/dev/full")).unwrap();
        read_console(&b"one\ntwo\n".repeat(10_000)[..], &monitor, Some(copy)).await;
        let ended = monitor.report(Exit::Signal(9));
        let line = "cannot write to /dev/full, which is incomplete: No space left on device (os error 28)";
        assert_eq!(ended.incomplete, [line]);
        assert_eq!(ended.console.last().unwrap(), "two");
    }
}
