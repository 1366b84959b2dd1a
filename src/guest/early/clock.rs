//! The clock. What enters is the kernel's time, whether the machine has a clock of its own, and the time that the host gave; what
//! leaves is a clock that never lies before the day this program was made. It never asks the network.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

/// Seconds since 1970 that no clock may lie before, from the build.
const BUILT: &str = env!("BUILD_EPOCH");

/// A clock further from the build than this is believed, but warned of.
const FAR: Duration = Duration::from_secs(20 * 365 * 86_400);

/// The clock as it stands once it is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// What whoever launched the machine should know of it.
    pub warning: Option<String>,
    /// The time, where there is no reason to doubt it.
    pub sure: Option<SystemTime>,
}

/// Sets the kernel's clock where it must be set.
#[must_use]
pub fn settle(given: Option<SystemTime>) -> Settled {
    let has_rtc = Path::new("/sys/class/rtc").read_dir().is_ok_and(|mut clocks| clocks.next().is_some());
    let Decision { set, sure, warning } = decide(SystemTime::now(), has_rtc, given, built());
    match set.map(write) {
        Some(Err(error)) => Settled { warning: Some(format!("the clock could not be set: {error}")), sure: None },
        _ => Settled { warning, sure: sure.then(SystemTime::now) },
    }
}

/// Sets the kernel's clock to `epoch` seconds since 1970, as the launcher asked.
///
/// # Errors
/// In words, where `epoch` is no time after the build or the kernel refuses it.
pub fn set(epoch: f64) -> Result<(), String> {
    let expected = || format!("cannot set the clock to {epoch} seconds since 1970; expected {BUILT} (the build) or later");
    let time = Duration::try_from_secs_f64(epoch).ok().and_then(|since| UNIX_EPOCH.checked_add(since));
    let time = time.filter(|time| *time >= built()).ok_or_else(expected)?;
    write(time).map_err(|error| format!("cannot set the clock to {epoch} seconds since 1970: {error}"))
}

#[derive(Debug, PartialEq, Eq)]
struct Decision {
    set: Option<SystemTime>,
    /// Whether the clock is right then, as far as can be seen.
    sure: bool,
    warning: Option<String>,
}

fn decide(now: SystemTime, has_rtc: bool, given: Option<SystemTime>, built: SystemTime) -> Decision {
    let candidates = if has_rtc { [Some(now), given] } else { [given, Some(now)] };
    let good = candidates.into_iter().flatten().find(|time| *time >= built);
    let set = Some(good.unwrap_or(built)).filter(|time| *time != now);
    let warning = match good {
        None => Some(format!(
            "the clock stood at {} seconds since 1970, before this program was made: set to {}",
            epoch(now),
            epoch(built)
        )),
        Some(time) if time > built + FAR => Some(format!(
            "the clock stands at {} seconds since 1970, over 20 years after this program was made: is the host's clock right?",
            epoch(time)
        )),
        Some(time) if has_rtc && now < built => Some(format!(
            "the machine's clock stood at {} seconds since 1970, before this program was made: set to the host's time, {}",
            epoch(now),
            epoch(time)
        )),
        Some(_) => None,
    };
    let sure = good.is_some_and(|time| time <= built + FAR);
    Decision { set, sure, warning }
}

/// The time that no clock may lie before.
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
    fn a_good_clock_stays() {
        for given in [None, Some(at(MUCH_LATER))] {
            assert_eq!(decide(at(LATER), true, given, at(BUILD)), Decision { set: None, sure: true, warning: None });
        }
        assert_eq!(decide(at(LATER), false, None, at(BUILD)), Decision { set: None, sure: true, warning: None });
    }

    #[test]
    fn without_a_good_clock_the_hosts_time_is_taken() {
        let host = Decision { set: Some(at(MUCH_LATER)), sure: true, warning: None };
        assert_eq!(decide(at(5), false, Some(at(MUCH_LATER)), at(BUILD)), host);
        assert_eq!(decide(at(LATER), false, Some(at(MUCH_LATER)), at(BUILD)), host);
        let warning =
            "the machine's clock stood at 5 seconds since 1970, before this program was made: set to the host's time, 1800005000";
        let host = Decision { warning: Some(warning.to_owned()), ..host };
        assert_eq!(decide(at(5), true, Some(at(MUCH_LATER)), at(BUILD)), host);
    }

    #[test]
    fn the_build_is_the_earliest_time() {
        let warning = "the clock stood at 5 seconds since 1970, before this program was made: set to 1800000000".to_owned();
        for (has_rtc, given) in [(true, None), (false, None), (false, Some(at(6)))] {
            let decision = Decision { set: Some(at(BUILD)), sure: false, warning: Some(warning.clone()) };
            assert_eq!(decide(at(5), has_rtc, given, at(BUILD)), decision);
        }
    }

    #[test]
    fn a_clock_far_ahead_is_believed_and_warned_of() {
        let warning = "the clock stands at 4102444800 seconds since 1970, over 20 years after this program was made: \
                       is the host's clock right?";
        let decision = decide(at(4_102_444_800), true, None, at(BUILD));
        assert_eq!(decision, Decision { set: None, sure: false, warning: Some(warning.to_owned()) });
    }

    #[test]
    fn a_time_that_is_none_is_refused() {
        for (epoch, shown) in [(f64::NAN, "NaN"), (-1.0, "-1"), (5.0, "5"), (f64::INFINITY, "inf")] {
            let message = format!("cannot set the clock to {shown} seconds since 1970; expected {BUILT} (the build) or later");
            assert_eq!(set(epoch), Err(message));
        }
    }
}
