//! What is seen of one machine while it runs, gathered from its console, its events, its QMP and QEMU's standard error, each read
//! by a task of its own. It decides nothing: [`Outcome::of`] does.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, watch};

use super::console::Console;
use super::event::{self, BadEvent};

use super::outcome::{Exit, Killed, Outcome, Seen};
use crate::proto::{Done, Event, event::Event as Kind};
use crate::text::Lines;

/// Console lines that are shown when something went wrong.
const SHOWN: usize = 20;
/// Bytes read at a time.
const PIECE: usize = 16 * 1024;

/// The facts, and some of them as signals.
#[derive(Debug, Default)]
pub(crate) struct Record {
    facts: Mutex<Facts>,
    alive: watch::Sender<bool>,
    /// How often something came out of the port of events.
    heard: watch::Sender<u64>,
    ending: watch::Sender<Option<Killed>>,
}

/// What is known so far.
#[derive(Debug)]
pub(crate) struct Facts {
    pub console: Console,
    pub stderr: Console,
    /// What QEMU says of a panic.
    pub panic: Option<String>,
    pub ready: bool,
    pub done: Option<Done>,
    pub killed: Option<Killed>,
    /// Whether it has missed its heartbeats.
    pub hangs: bool,
    /// QEMU's reason for its end.
    pub reason: Option<String>,
    /// Files that could not be written to.
    pub unwritten: Vec<String>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            console: Console::new(),
            stderr: Console::new(),
            panic: None,
            ready: false,
            done: None,
            killed: None,
            hangs: false,
            reason: None,
            unwritten: Vec::new(),
        }
    }
}

/// How a machine ended, with what helps to find out why.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// The last lines of its console, at most 20, printable.
    pub console: Vec<String>,
    /// The last lines of QEMU's standard error, at most 20, printable.
    pub stderr: Vec<String>,
    /// Files of this program that are incomplete, each with the reason.
    pub unwritten: Vec<String>,
}

impl Record {
    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest shows that it lives.
    fn lives(&self) {
        self.alive.send_if_modified(|alive| !std::mem::replace(alive, true));
    }

    /// Waits for a sign of life.
    pub(crate) async fn alive(&self) {
        // The sender lives as long as `self`.
        let _always = self.alive.subscribe().wait_for(|alive| *alive).await.map(|_| ());
    }

    /// Something came out of the port of events.
    fn hears(&self) {
        self.heard.send_modify(|count| *count += 1);
    }

    /// What changes whenever something comes out of the port of events.
    pub(crate) fn heard(&self) -> watch::Receiver<u64> {
        self.heard.subscribe()
    }

    /// The guest hangs, or no longer does.
    pub(crate) fn hangs(&self, hangs: bool) {
        self.facts().hangs = hangs;
    }

    /// The machine is about to end by itself; if it does not, it is to be killed for `why`.
    fn ends(&self, why: Killed) {
        self.ending.send_if_modified(|ending| ending.replace(ending.unwrap_or(why)).is_none());
    }

    /// Waits until the machine is about to end, and gives why it is to be killed if it does not.
    pub(crate) async fn end(&self) -> Killed {
        let mut ending = self.ending.subscribe();
        // The sender lives as long as `self`.
        ending.wait_for(Option::is_some).await.ok().and_then(|why| *why).unwrap_or(Killed::Done)
    }

    /// QEMU says that the guest's kernel panicked.
    pub(crate) fn panicked(&self, words: &str) {
        self.facts().panic.get_or_insert_with(|| words.to_owned());
        self.ends(Killed::Panic);
    }

    /// QEMU says that it ends. The first reason counts.
    pub(crate) fn ending(&self, reason: Option<String>) {
        let mut facts = self.facts();
        facts.reason = facts.reason.take().or(reason);
    }

    /// The launcher is about to kill QEMU. The first reason counts.
    pub(crate) fn kills(&self, why: Killed) {
        self.facts().killed.get_or_insert(why);
    }

    /// Takes an event of the guest.
    fn event(&self, event: &Event) {
        match &event.event {
            Some(Kind::Ready(_)) => self.facts().ready = true,
            Some(Kind::Done(done)) => {
                self.facts().done = Some(done.clone());
                self.ends(Killed::Done);
            }
            _ => {}
        }
    }

    /// What all of it amounts to, QEMU having ended as `exit` says.
    pub(crate) fn ended(&self, exit: Exit) -> Ended {
        let facts = self.facts();
        let seen = Seen {
            exit,
            killed: facts.killed,
            panic: facts.console.panic().map(str::to_owned).or_else(|| facts.panic.clone()),
            ready: facts.ready,
            done: facts.done.clone(),
            reason: facts.reason.clone(),
        };
        Ended {
            outcome: Outcome::of(seen),
            console: facts.console.tail(SHOWN),
            stderr: facts.stderr.tail(SHOWN),
            unwritten: facts.unwritten.clone(),
        }
    }
}

/// A file that keeps what a stream gave.
#[derive(Debug)]
pub(crate) struct Copy {
    path: PathBuf,
    /// Gone after the first failure: a file with a hole would be worse than a short one.
    file: Option<File>,
}

impl Copy {
    /// Creates or empties the file at `path`.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: Some(File::create(path)?) })
    }

    /// Appends `pieces`. The file belongs to the user, who may read along: each call writes through.
    fn append(&mut self, pieces: &[&[u8]], record: &Record) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = file.write_all(&pieces.concat()) {
            let line = format!("cannot write to {}, which is incomplete: {error}", self.path.display());
            record.facts().unwritten.push(line);
            self.file = None;
        }
    }
}

/// Reads the guest's console to its end.
pub(crate) async fn read_console(mut stream: impl AsyncRead + Unpin, record: &Record, mut copy: Option<Copy>) {
    let mut buffer = vec![0; PIECE];
    while let Some(bytes) = piece(&mut stream, &mut buffer).await {
        if let Some(copy) = &mut copy {
            copy.append(&[bytes], record);
        }
        let panicked = {
            let mut facts = record.facts();
            facts.console.feed(bytes);
            facts.console.panic().is_some()
        };
        record.lives();
        if panicked {
            record.ends(Killed::Panic);
        }
    }
}

/// Reads QEMU's standard error to its end.
pub(crate) async fn read_stderr(mut stream: impl AsyncRead + Unpin, record: &Record) {
    let mut buffer = vec![0; PIECE];
    while let Some(bytes) = piece(&mut stream, &mut buffer).await {
        record.facts().stderr.feed(bytes);
    }
}

/// Reads the guest's events to their end, and hands them on. A full queue waits: the guest then counts what it has to drop. After
/// the receiver is closed the facts go on.
pub(crate) async fn read_events(
    mut stream: impl AsyncRead + Unpin,
    record: &Record,
    queue: mpsc::Sender<Result<Event, BadEvent>>,
    mut copy: Option<Copy>,
) {
    let mut lines = Lines::new(event::LONGEST);
    let mut buffer = vec![0; PIECE];
    while let Some(bytes) = piece(&mut stream, &mut buffer).await {
        let mut events = Vec::new();
        lines.feed(bytes, |line| {
            let event = event::parse(line);
            if let Ok(event) = &event {
                record.event(event);
                if let Some(copy) = &mut copy {
                    copy.append(&[line.bytes, b"\n"], record);
                }
            }
            events.push(event);
        });
        record.lives();
        record.hears();
        for event in events {
            let _closed = queue.send(event).await;
            // Where the queue was full, nobody listened to the guest.
            record.hears();
        }
    }
}

/// What `stream` gives next, or nothing at its end. QEMU's death may show as an error (a reset): that is an end too.
async fn piece<'a>(stream: &mut (impl AsyncRead + Unpin), buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let count = stream.read(buffer).await.ok().filter(|&count| count > 0)?;
    buffer.get(..count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_console_gives_its_panic_and_its_last_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let record = Record::default();
        let raw = b"\x1b[0mhello\r\n[    1.0] Kernel panic - not syncing: x\r\nlast";
        read_console(&raw[..], &record, Some(Copy::create(&path).unwrap())).await;

        record.alive().await;
        assert_eq!(record.end().await, Killed::Panic);
        let ended = record.ended(Exit::Code(0));
        assert_eq!(ended.outcome, Outcome::Panic("Kernel panic - not syncing: x".into()));
        assert_eq!(ended.console, ["hello", "[    1.0] Kernel panic - not syncing: x", "last"]);
        assert_eq!(std::fs::read(&path).unwrap(), raw);
    }

    #[tokio::test]
    async fn events_are_handed_on_recorded_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let record = Record::default();
        let raw = b"{\"booting\":{}}\nnoise\n{\"ready\":{\"images\":3}}\n{\"done\":{\"reason\":\"asked\"}}\n{\"unfini";
        let (sender, mut queue) = mpsc::channel(9);
        read_events(&raw[..], &record, sender, Some(Copy::create(&path).unwrap())).await;

        let mut kinds = Vec::new();
        while let Some(event) = queue.recv().await {
            kinds.push(event.map(|event| event.event.unwrap()));
        }
        assert!(matches!(&kinds[..], [Ok(Kind::Booting(_)), Err(BadEvent::Json { .. }), Ok(Kind::Ready(_)), Ok(Kind::Done(_))]));
        assert_eq!(record.end().await, Killed::Done);
        assert_eq!(record.ended(Exit::Code(0)).outcome.exit_status(), 0);
        let kept = std::fs::read_to_string(&path).unwrap();
        assert_eq!(kept, "{\"booting\":{}}\n{\"ready\":{\"images\":3}}\n{\"done\":{\"reason\":\"asked\"}}\n");
    }

    #[tokio::test]
    async fn the_facts_go_on_when_nobody_takes_events() {
        let record = Record::default();
        let (sender, queue) = mpsc::channel(1);
        drop(queue);
        let raw = "{\"booting\":{}}\n".repeat(5000) + "{\"done\":{\"status\":2,\"code\":\"X\"}}\n";
        read_events(raw.as_bytes(), &record, sender, None).await;
        assert_eq!(record.ended(Exit::Code(0)).outcome.exit_status(), 3);
    }

    #[tokio::test]
    async fn a_full_device_is_told_once_and_stops_nothing() {
        let record = Record::default();
        let copy = Copy::create(Path::new("/dev/full")).unwrap();
        read_console(&b"one\ntwo\n".repeat(10_000)[..], &record, Some(copy)).await;
        let ended = record.ended(Exit::Signal(9));
        let line = "cannot write to /dev/full, which is incomplete: No space left on device (os error 28)";
        assert_eq!(ended.unwritten, [line]);
        assert_eq!(ended.console.last().unwrap(), "two");
    }
}
