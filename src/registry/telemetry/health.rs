//! The health check: reads from the disk itself, not from the page cache. It is bounded in time and threads: a disk that hangs blocks one
//! thread, however many checks are requested.

use std::io;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Runs at most one probe at a time.
#[derive(Debug, Default)]
pub(crate) struct Health {
    probe: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

impl Health {
    /// Runs `probe`. If an earlier probe still runs, returns its result instead.
    ///
    /// # Errors
    /// Returns the error as text if the probe fails or does not finish within `limit`.
    pub async fn check(&self, limit: Duration, probe: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), String> {
        let finished = async {
            let mut running = self.probe.lock().await;
            let result = running.get_or_insert_with(|| tokio::task::spawn_blocking(probe)).await;
            *running = None;
            result.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
        };
        match timeout(limit, finished).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it did not answer within {} ms", limit.as_millis())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn check_returns_the_result_of_its_probe() {
        let health = Health::default();
        assert_eq!(health.check(LONG, || Ok(())).await, Ok(()));
        let failing = || Err(io::Error::other("input/output error"));
        assert_eq!(health.check(LONG, failing).await, Err("input/output error".into()));
        assert_eq!(health.check(LONG, || Ok(())).await, Ok(()), "the disk recovers");
    }

    #[tokio::test]
    async fn disk_that_hangs_blocks_only_one_probe() {
        let health = Health::default();
        let (release, held) = channel::<()>();
        let hanging = move || held.recv().map_err(io::Error::other);
        let late = Err("it did not answer within 1 ms".to_owned());
        assert_eq!(health.check(Duration::from_millis(1), hanging).await, late);
        let (started, starts) = channel();
        let second = move || started.send(()).map_err(io::Error::other);
        assert_eq!(health.check(Duration::from_millis(1), second).await, late);
        assert!(starts.recv().is_err(), "no second probe starts");
        release.send(()).unwrap();
        assert_eq!(health.check(LONG, || Err(io::Error::other("not run"))).await, Ok(()), "the result of the first probe");
    }
}
