//! Randomness, without which no key can be made. What enters is the kernel's generator; what leaves is that it has its seed, or that it
//! has none in a bounded time. It reads one byte and keeps none.

use std::io;
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// How long the kernel may take to get its seed. A processor's instruction or virtio-rng give it before PID 1 runs; without either the
/// kernel measures how irregular its own work is, for some seconds.
const WAIT: Duration = Duration::from_secs(10);

/// No key can be made.
#[derive(Debug, thiserror::Error)]
pub enum EntropyError {
    /// There is no seed.
    #[error(
        "the kernel's random numbers had no seed after {} s; give QEMU -device virtio-rng-pci, or a -cpu with RDRAND", .0.as_secs_f64()
    )]
    Unseeded(Duration),
    /// The kernel refused.
    #[error("ask the kernel for random numbers (getrandom)")]
    Refused(#[source] io::Error),
}

/// Waits until the kernel's generator has its seed.
///
/// # Errors
/// When that takes longer than `WAIT`.
pub async fn wait() -> Result<(), EntropyError> {
    match ask(GetRandomFlags::NONBLOCK) {
        // Only who waits has the kernel measure.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => within(WAIT, || ask(GetRandomFlags::empty())).await,
        result => result.map_err(EntropyError::Refused),
    }
}

fn ask(flags: GetRandomFlags) -> io::Result<()> {
    Ok(getrandom(&mut [0; 1], flags).map(drop)?)
}

/// What `ask` comes to within `patience`. One that still waits then is left to itself.
async fn within(patience: Duration, ask: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), EntropyError> {
    let asked = timeout(patience, spawn_blocking(ask)).await.map_err(|_| EntropyError::Unseeded(patience))?;
    asked.unwrap_or_else(|stopped| Err(io::Error::other(stopped))).map_err(EntropyError::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_machine_with_a_seed_does_not_wait() {
        wait().await.unwrap();
    }

    #[tokio::test]
    async fn a_seed_that_does_not_come_is_waited_for_no_longer() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let hanging = move || held.recv().map_err(io::Error::other);
        let error = within(Duration::from_millis(1), hanging).await.unwrap_err();
        let words =
            "the kernel's random numbers had no seed after 0.001 s; give QEMU -device virtio-rng-pci, or a -cpu with RDRAND";
        assert_eq!(error.to_string(), words);
        drop(release);
    }

    #[tokio::test]
    async fn what_the_kernel_says_is_kept() {
        within(Duration::from_secs(60), || Ok(())).await.unwrap();
        let refused = within(Duration::from_secs(60), || Err(io::ErrorKind::Unsupported.into())).await.unwrap_err();
        assert_eq!(crate::text::chain(&refused), "ask the kernel for random numbers (getrandom): unsupported");
    }
}
