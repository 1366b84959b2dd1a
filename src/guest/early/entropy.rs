//! Waits until the kernel's random number generator has a seed, without which no key is safe.

use std::io;
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// How long the kernel may take to get its seed. A processor's instruction or virtio-rng provide it before PID 1 runs. Without
/// either the kernel collects timing jitter for some seconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The kernel provides no random numbers.
#[derive(Debug, thiserror::Error)]
pub enum EntropyError {
    /// The generator has no seed.
    #[error(
        "the kernel's random number generator has no seed after {} s; give QEMU -device virtio-rng-pci, or a -cpu with RDRAND", .0.as_secs_f64()
    )]
    Unseeded(Duration),
    /// The system call failed.
    #[error("cannot get random numbers from the kernel (getrandom)")]
    Refused(#[source] io::Error),
}

/// Waits until the generator has its seed.
///
/// # Errors
/// Fails if that takes longer than `TIMEOUT`.
pub async fn wait() -> Result<(), EntropyError> {
    match request_byte(GetRandomFlags::NONBLOCK) {
        // The kernel collects jitter only while a caller blocks.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            with_timeout(TIMEOUT, || request_byte(GetRandomFlags::empty())).await
        }
        result => result.map_err(EntropyError::Refused),
    }
}

fn request_byte(flags: GetRandomFlags) -> io::Result<()> {
    Ok(getrandom(&mut [0; 1], flags).map(drop)?)
}

/// Runs the blocking `request` and gives up after `limit`. The abandoned thread keeps waiting.
async fn with_timeout(limit: Duration, request: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), EntropyError> {
    let result = timeout(limit, spawn_blocking(request)).await.map_err(|_| EntropyError::Unseeded(limit))?;
    result.unwrap_or_else(|stopped| Err(io::Error::other(stopped))).map_err(EntropyError::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn machine_with_a_seed_does_not_wait() {
        wait().await.unwrap();
    }

    #[tokio::test]
    async fn waiting_for_a_seed_times_out() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let hanging = move || held.recv().map_err(io::Error::other);
        let error = with_timeout(Duration::from_millis(1), hanging).await.unwrap_err();
        let message = "the kernel's random number generator has no seed after 0.001 s; give QEMU -device virtio-rng-pci, or a -cpu with RDRAND";
        assert_eq!(error.to_string(), message);
        drop(release);
    }

    #[tokio::test]
    async fn result_of_the_kernel_is_returned() {
        with_timeout(Duration::from_secs(60), || Ok(())).await.unwrap();
        let refused = with_timeout(Duration::from_secs(60), || Err(io::ErrorKind::Unsupported.into())).await.unwrap_err();
        assert_eq!(crate::text::chain(&refused), "cannot get random numbers from the kernel (getrandom): unsupported");
    }
}
