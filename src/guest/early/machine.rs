//! Reads facts about the machine (uptime, memory, kernel release) and sets the host name. Reading never
//! fails a boot: a missing fact has a harmless default.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use nix::time::{ClockId, clock_gettime};

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// MemTotal.
    pub total: u64,
    /// MemTotal less MemAvailable.
    pub used: u64,
}

/// Seconds since the kernel started.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "an uptime stays far below 2^52 seconds")]
pub fn uptime() -> f64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0.0, |now| now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9)
}

/// Open from the first call of [`memory`] on: the process that serves cannot open it later.
static MEMINFO: LazyLock<Option<File>> = LazyLock::new(|| File::open("/proc/meminfo").ok());

/// Total and used memory.
#[must_use]
pub fn memory() -> Memory {
    // The fields are in the first lines of 2 KB.
    let mut start = [0; 1024];
    let length = MEMINFO.as_ref().and_then(|file| file.read_at(&mut start, 0).ok()).unwrap_or_default();
    parse_meminfo(&String::from_utf8_lossy(start.get(..length).unwrap_or_default())).unwrap_or_default()
}

/// Release of the kernel, as `uname -r` gives it.
#[must_use]
pub fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim_end().to_owned()
}

/// Sets the host name.
///
/// # Errors
/// Fails if the kernel refuses.
pub fn set_hostname(name: &str) -> std::io::Result<()> {
    fs::write("/proc/sys/kernel/hostname", name)
}

fn parse_meminfo(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let total = field("MemTotal")?;
    Some(Memory { total, used: total.saturating_sub(field("MemAvailable")?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_bytes() {
        let text = "MemTotal:         223456 kB\nMemFree:          100000 kB\nMemAvailable:     150000 kB\n";
        assert_eq!(parse_meminfo(text), Some(Memory { total: 228_818_944, used: 75_218_944 }));
    }

    #[test]
    fn meminfo_without_its_fields_is_rejected() {
        for text in ["", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n", "MemTotalX: 1 kB\nMemAvailable: 1 kB\n"] {
            assert_eq!(parse_meminfo(text), None, "{text:?}");
        }
    }

    #[test]
    fn time_since_the_kernels_start_goes_forward() {
        let before = uptime();
        assert!(before > 0.0);
        assert!(uptime() >= before);
    }
}
