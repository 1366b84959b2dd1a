//! Whether the disk can be read, asked of the disk itself and not of what the kernel remembers of it. The asking is bounded in time
//! and in threads: a disk that hangs holds up one thread, however often it is asked after.

use std::io;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// The one probe that may be under way.
#[derive(Debug, Default)]
pub(crate) struct Health {
    probe: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

impl Health {
    /// What `probe` comes to, or what one before it does that still runs.
    ///
    /// # Errors
    /// In words, where it fails or is not done within `patience`.
    pub async fn check(&self, patience: Duration, probe: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), String> {
        let asked = async {
            let mut under_way = self.probe.lock().await;
            let done = under_way.get_or_insert_with(|| tokio::task::spawn_blocking(probe)).await;
            *under_way = None;
            done.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
        };
        match timeout(patience, asked).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it did not answer within {} ms", patience.as_millis())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_disk_that_answers_and_one_that_fails() {
        let health = Health::default();
        assert_eq!(health.check(LONG, || Ok(())).await, Ok(()));
        let failing = || Err(io::Error::other("input/output error"));
        assert_eq!(health.check(LONG, failing).await, Err("input/output error".into()));
        assert_eq!(health.check(LONG, || Ok(())).await, Ok(()), "and well again");
    }

    #[tokio::test]
    async fn a_disk_that_hangs_holds_up_one_probe() {
        let health = Health::default();
        let (release, held) = channel::<()>();
        let hanging = move || held.recv().map_err(io::Error::other);
        let late = Err("it did not answer within 1 ms".to_owned());
        assert_eq!(health.check(Duration::from_millis(1), hanging).await, late);
        let (started, starts) = channel();
        let second = move || started.send(()).map_err(io::Error::other);
        assert_eq!(health.check(Duration::from_millis(1), second).await, late);
        assert!(starts.recv().is_err(), "no second probe was started");
        release.send(()).unwrap();
        assert_eq!(health.check(LONG, || Err(io::Error::other("never asked"))).await, Ok(()), "the first one's answer");
    }
}
