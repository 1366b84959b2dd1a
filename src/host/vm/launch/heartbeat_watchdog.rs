//! Reports a guest whose heartbeats stop: that tells a hung guest from an idle one.
//!
//! It never ends the machine: a guest that a busy host or a debugger keeps from running may well go on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::WeakSender;
use tokio::time::{Instant, timeout};

use super::event::EventError;
use super::monitor::Monitor;
use crate::proto::Event;

/// Heartbeats in a row that may be missing.
const MISSED: u32 = 3;
/// Shortest timeout: a busy host may delay a guest this long, however short its heartbeat interval is.
const MIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Time to read what has already arrived, if this process itself was not scheduled.
const GRACE: Duration = Duration::from_secs(1);

/// Watches a guest that sends a heartbeat at each interval `every`, until the machine is about to end.
pub(crate) async fn watch(monitor: Arc<Monitor>, every: Duration, queue: WeakSender<Result<Event, EventError>>) {
    let watchdog = Watchdog { every, timeout: MIN_TIMEOUT.max(every * MISSED), grace: GRACE };
    tokio::select! {
        _ = monitor.ending() => {}
        () = watchdog.run(&monitor, &queue) => {}
    }
}

#[derive(Debug, Clone, Copy)]
struct Watchdog {
    every: Duration,
    timeout: Duration,
    grace: Duration,
}

impl Watchdog {
    async fn run(self, monitor: &Monitor, queue: &WeakSender<Result<Event, EventError>>) {
        let report = |event| {
            let Some(queue) = queue.upgrade() else { return };
            // If the queue is full, nobody takes events; the report is dropped.
            let _full = queue.try_send(Err(event));
        };
        let mut activity = monitor.event_activity();
        let mut last = Instant::now();
        loop {
            let active =
                timeout(self.timeout, activity.changed()).await.is_ok() || timeout(self.grace, activity.changed()).await.is_ok();
            // While the queue is full the reader waits and hears nothing of the guest. That is not the guest's fault.
            let full = queue.upgrade().is_some_and(|queue| queue.capacity() == 0);
            if !active && !full {
                monitor.set_hung(true);
                report(EventError::HeartbeatLost { silent: last.elapsed(), every: self.every });
                if activity.changed().await.is_err() {
                    return;
                }
                monitor.set_hung(false);
                report(EventError::HeartbeatBack { silent: last.elapsed() });
            }
            last = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::vm::launch::monitor::read_events;
    use tokio::io::AsyncWriteExt;
    use tokio::sync::mpsc;

    const BEAT: &[u8] = b"{\"heartbeat\":{}}\n";
    const SHORT: Duration = Duration::from_millis(20);
    const WATCHDOG: Watchdog = Watchdog { every: Duration::from_secs(10), timeout: SHORT, grace: SHORT };

    #[tokio::test]
    async fn lost_heartbeat_is_reported_once_and_so_is_its_return() {
        let monitor = Arc::new(Monitor::default());
        let (sender, mut queue) = mpsc::channel(9);
        let (reader, watched, weak) = (Arc::clone(&monitor), Arc::clone(&monitor), sender.downgrade());
        tokio::spawn(async move { WATCHDOG.run(&watched, &weak).await });
        let (mut guest, stream) = tokio::io::duplex(64);
        tokio::spawn(async move { read_events(stream, &reader, sender, None).await });
        let silent = queue.recv().await.unwrap().unwrap_err();
        assert!(matches!(silent, EventError::HeartbeatLost { silent, .. } if silent >= SHORT), "{silent}");
        assert!(monitor.state().hung);
        tokio::time::sleep(SHORT * 10).await;
        assert!(queue.try_recv().is_err(), "it is reported once");
        guest.write_all(BEAT).await.unwrap();
        let mut rest = [queue.recv().await.unwrap(), queue.recv().await.unwrap()];
        rest.sort_by_key(Result::is_ok);
        assert!(matches!(rest, [Err(EventError::HeartbeatBack { silent }), Ok(_)] if silent >= SHORT * 10), "{rest:?}");
    }

    #[tokio::test]
    async fn full_queue_is_not_a_lost_heartbeat() {
        let monitor = Arc::new(Monitor::default());
        let (sender, mut queue) = mpsc::channel(1);
        let (reader, watched, weak) = (Arc::clone(&monitor), Arc::clone(&monitor), sender.downgrade());
        // Never ends, and sends more events than the queue holds.
        tokio::spawn(async move {
            let (mut guest, stream) = tokio::io::duplex(1024);
            guest.write_all(&BEAT.repeat(3)).await.unwrap();
            read_events(stream, &reader, sender, None).await;
        });
        while queue.capacity() > 0 {
            tokio::task::yield_now().await;
        }
        tokio::spawn(async move { WATCHDOG.run(&watched, &weak).await });
        tokio::time::sleep(SHORT * 20).await;
        assert!(!monitor.state().hung);
        assert!(queue.recv().await.unwrap().is_ok());
    }

    #[test]
    fn reports_contain_the_time_without_a_heartbeat() {
        let (silent, every) = (Duration::from_secs(31), Duration::from_secs(10));
        for (event, words) in [
            (
                EventError::HeartbeatLost { silent, every },
                "the guest hangs or is not scheduled: no sign of life for 31 s; it sends a heartbeat every 10 s",
            ),
            (EventError::HeartbeatBack { silent }, "the guest is alive again after 31 s without a sign of life"),
        ] {
            assert_eq!(event.to_string(), words);
        }
    }
}
