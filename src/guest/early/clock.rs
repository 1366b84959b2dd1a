//! Sets the kernel's clock at boot from the real-time clock or the host's time. The clock never shows a time before this program's
//! release. It does not ask the network.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

/// The earliest time that the clock may show, in seconds since 1970, set by the build.
const BUILT: &str = env!("BUILD_EPOCH");

/// A clock further ahead of the build than this is accepted with a warning.
const FAR: Duration = Duration::from_secs(20 * 365 * 86_400);

/// The clock after boot has set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockState {
    /// A warning for the launcher.
    pub warning: Option<String>,
    /// The time, unless it is doubtful.
    pub trusted: Option<SystemTime>,
}

/// Sets the kernel's clock if necessary. `host_time` is the time in the config.
#[must_use]
pub fn initialize(host_time: Option<SystemTime>) -> ClockState {
    let has_rtc = Path::new("/sys/class/rtc").read_dir().is_ok_and(|mut clocks| clocks.next().is_some());
    let Decision { set, trusted, warning } = decide(SystemTime::now(), has_rtc, host_time, built());
    match set.map(write) {
        Some(Err(error)) => ClockState { warning: Some(format!("cannot set the clock: {error}")), trusted: None },
        _ => ClockState { warning, trusted: trusted.then(SystemTime::now) },
    }
}

/// Sets the kernel's clock to `epoch` seconds since 1970.
///
/// # Errors
/// Fails with a message if `epoch` is before the build or invalid, or if the kernel refuses.
pub fn set(epoch: f64) -> Result<(), String> {
    let invalid = || format!("cannot set the clock to {epoch} seconds since 1970; expected {BUILT} (the build) or later");
    let time = Duration::try_from_secs_f64(epoch).ok().and_then(|since| UNIX_EPOCH.checked_add(since));
    let time = time.filter(|time| *time >= built()).ok_or_else(invalid)?;
    write(time).map_err(|error| format!("cannot set the clock to {epoch} seconds since 1970: {error}"))
}

#[derive(Debug, PartialEq, Eq)]
struct Decision {
    set: Option<SystemTime>,
    /// Whether the resulting time is plausible.
    trusted: bool,
    warning: Option<String>,
}

fn decide(now: SystemTime, has_rtc: bool, host_time: Option<SystemTime>, built: SystemTime) -> Decision {
    let candidates = if has_rtc { [Some(now), host_time] } else { [host_time, Some(now)] };
    let valid = candidates.into_iter().flatten().find(|time| *time >= built);
    let set = Some(valid.unwrap_or(built)).filter(|time| *time != now);
    let warning = match valid {
        None => Some(format!(
            "the clock showed {} seconds since 1970, before this program was built; set to {}",
            epoch(now),
            epoch(built)
        )),
        Some(time) if time > built + FAR => Some(format!(
            "the clock shows {} seconds since 1970, over 20 years after this program was built; is the host's clock right?",
            epoch(time)
        )),
        Some(time) if has_rtc && now < built => Some(format!(
            "the machine's clock showed {} seconds since 1970, before this program was built; set to the host's time, {}",
            epoch(now),
            epoch(time)
        )),
        Some(_) => None,
    };
    let trusted = valid.is_some_and(|time| time <= built + FAR);
    Decision { set, trusted, warning }
}

/// The earliest time that the clock may show.
#[must_use]
pub fn built() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(BUILT.parse().unwrap_or_default())
}

fn epoch(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn write(time: SystemTime) -> nix::Result<()> {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    const BUILD: u64 = 1_800_000_000;
    const LATER: u64 = BUILD + 1000;
    const MUCH_LATER: u64 = BUILD + 5000;

    #[test]
    fn valid_clock_is_kept() {
        for host_time in [None, Some(at(MUCH_LATER))] {
            assert_eq!(decide(at(LATER), true, host_time, at(BUILD)), Decision { set: None, trusted: true, warning: None });
        }
        assert_eq!(decide(at(LATER), false, None, at(BUILD)), Decision { set: None, trusted: true, warning: None });
    }

    #[test]
    fn without_a_valid_clock_the_host_time_is_used() {
        let host = Decision { set: Some(at(MUCH_LATER)), trusted: true, warning: None };
        assert_eq!(decide(at(5), false, Some(at(MUCH_LATER)), at(BUILD)), host);
        assert_eq!(decide(at(LATER), false, Some(at(MUCH_LATER)), at(BUILD)), host);
        let warning =
            "the machine's clock showed 5 seconds since 1970, before this program was built; set to the host's time, 1800005000";
        let host = Decision { warning: Some(warning.to_owned()), ..host };
        assert_eq!(decide(at(5), true, Some(at(MUCH_LATER)), at(BUILD)), host);
    }

    #[test]
    fn clock_before_the_build_is_set_to_the_build_time() {
        let warning = "the clock showed 5 seconds since 1970, before this program was built; set to 1800000000".to_owned();
        for (has_rtc, host_time) in [(true, None), (false, None), (false, Some(at(6)))] {
            let decision = Decision { set: Some(at(BUILD)), trusted: false, warning: Some(warning.clone()) };
            assert_eq!(decide(at(5), has_rtc, host_time, at(BUILD)), decision);
        }
    }

    #[test]
    fn clock_far_ahead_is_accepted_with_a_warning() {
        let warning = "the clock shows 4102444800 seconds since 1970, over 20 years after this program was built; \
                       is the host's clock right?";
        let decision = decide(at(4_102_444_800), true, None, at(BUILD));
        assert_eq!(decision, Decision { set: None, trusted: false, warning: Some(warning.to_owned()) });
    }

    #[test]
    fn invalid_time_is_rejected() {
        for (epoch, shown) in [(f64::NAN, "NaN"), (-1.0, "-1"), (5.0, "5"), (f64::INFINITY, "inf")] {
            let message = format!("cannot set the clock to {shown} seconds since 1970; expected {BUILT} (the build) or later");
            assert_eq!(set(epoch), Err(message));
        }
    }
}
