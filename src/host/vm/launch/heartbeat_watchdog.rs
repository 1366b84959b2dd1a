//! Whether the guest still lives: a heartbeat that does not come tells a hung guest from an idle one. What comes out of the port of events
//! enters; what leaves, among the events, is that nothing comes any more, and that it does again. It never ends a machine: one that is
//! kept from running, by a busy host or a debugger, may well go on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::WeakSender;
use tokio::time::{Instant, timeout};

use super::event::BadEvent;
use super::record::Record;
use crate::proto::Event;

/// Heartbeats in a row that may be missing.
const MISSED: u32 = 3;
/// However short the time between two heartbeats is, a busy host may keep a guest waiting for so long.
const LEAST: Duration = Duration::from_secs(5);
/// How long what has come already may take to be read, where this program itself did not run.
const GRACE: Duration = Duration::from_secs(1);

/// Watches over a guest whose heartbeat is due `every` so often, until it is about to end.
pub(crate) async fn watch(record: Arc<Record>, every: Duration, queue: WeakSender<Result<Event, BadEvent>>) {
    let pulse = Pulse { every, patience: LEAST.max(every * MISSED), grace: GRACE };
    tokio::select! {
        _ = record.end() => {}
        () = pulse.listen(&record, &queue) => {}
    }
}

/// What is expected of a guest.
#[derive(Debug, Clone, Copy)]
struct Pulse {
    every: Duration,
    patience: Duration,
    grace: Duration,
}

impl Pulse {
    async fn listen(self, record: &Record, queue: &WeakSender<Result<Event, BadEvent>>) {
        let tell = |event| {
            let Some(queue) = queue.upgrade() else { return };
            // Who does not take events is told of none.
            let _full = queue.try_send(Err(event));
        };
        let mut heard = record.heard();
        let mut last = Instant::now();
        loop {
            let came =
                timeout(self.patience, heard.changed()).await.is_ok() || timeout(self.grace, heard.changed()).await.is_ok();
            // Where nobody takes events, nobody listens to the guest either.
            let full = queue.upgrade().is_some_and(|queue| queue.capacity() == 0);
            if !came && !full {
                record.hangs(true);
                tell(BadEvent::Silent { silent: last.elapsed(), every: self.every });
                if heard.changed().await.is_err() {
                    return;
                }
                record.hangs(false);
                tell(BadEvent::Back { silent: last.elapsed() });
            }
            last = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::vm::launch::record::read_events;
    use tokio::io::AsyncWriteExt;
    use tokio::sync::mpsc;

    const BEAT: &[u8] = b"{\"heartbeat\":{}}\n";
    const SHORT: Duration = Duration::from_millis(20);
    const PULSE: Pulse = Pulse { every: Duration::from_secs(10), patience: SHORT, grace: SHORT };

    #[tokio::test]
    async fn a_silent_guest_is_told_of_once_and_again_when_it_goes_on() {
        let record = Arc::new(Record::default());
        let (sender, mut queue) = mpsc::channel(9);
        let (reader, watched, weak) = (Arc::clone(&record), Arc::clone(&record), sender.downgrade());
        tokio::spawn(async move { PULSE.listen(&watched, &weak).await });
        let (mut guest, stream) = tokio::io::duplex(64);
        tokio::spawn(async move { read_events(stream, &reader, sender, None).await });
        let silent = queue.recv().await.unwrap().unwrap_err();
        assert!(matches!(silent, BadEvent::Silent { silent, .. } if silent >= SHORT), "{silent}");
        assert!(record.facts().hangs);
        tokio::time::sleep(SHORT * 10).await;
        assert!(queue.try_recv().is_err(), "it is told of once");
        guest.write_all(BEAT).await.unwrap();
        let mut rest = [queue.recv().await.unwrap(), queue.recv().await.unwrap()];
        rest.sort_by_key(Result::is_ok);
        assert!(matches!(rest, [Err(BadEvent::Back { silent }), Ok(_)] if silent >= SHORT * 10), "{rest:?}");
    }

    #[tokio::test]
    async fn a_guest_that_nobody_listens_to_does_not_hang() {
        let record = Arc::new(Record::default());
        let (sender, mut queue) = mpsc::channel(1);
        let (reader, watched, weak) = (Arc::clone(&record), Arc::clone(&record), sender.downgrade());
        // Never at its end, and with more events than there is room for.
        tokio::spawn(async move {
            let (mut guest, stream) = tokio::io::duplex(1024);
            guest.write_all(&BEAT.repeat(3)).await.unwrap();
            read_events(stream, &reader, sender, None).await;
        });
        while queue.capacity() > 0 {
            tokio::task::yield_now().await;
        }
        tokio::spawn(async move { PULSE.listen(&watched, &weak).await });
        tokio::time::sleep(SHORT * 20).await;
        assert!(!record.facts().hangs);
        assert!(queue.recv().await.unwrap().is_ok());
    }

    #[test]
    fn what_is_told_says_how_long() {
        let (silent, every) = (Duration::from_secs(31), Duration::from_secs(10));
        for (event, words) in [
            (
                BadEvent::Silent { silent, every },
                "the guest hangs, or is kept from running: nothing has come from it for 31 s, and a heartbeat is due every 10 s",
            ),
            (BadEvent::Back { silent }, "the guest goes on, after 31 s in which nothing came from it"),
        ] {
            assert_eq!(event.to_string(), words);
        }
    }
}
