//! One rule: its validated parts, when it is due, and how often it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::action::{Action, check_names};
use super::matcher::Matcher;
use crate::oci::Digest;
use crate::proto::fault_action::Connection;
use crate::proto::{FaultAction, FaultRule, FaultWhen, Request};

/// Longest rule as JSON, in bytes.
pub const MAX_RULE: usize = 16 << 10;
/// Longest id, in bytes.
const MAX_ID: usize = 64;
/// Longest delay, stall or time after another rule, in seconds.
const MAX_SECONDS: f64 = 3600.0;

/// Why a rule is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct RuleError {
    /// The path of the field, such as `match.peer`.
    pub field: &'static str,
    /// What is wrong, and what is expected.
    pub problem: String,
}

impl RuleError {
    pub(super) fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

/// Whether a rule may have this id.
pub(super) fn is_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// When a rule that matches is due.
#[derive(Debug, Clone, PartialEq)]
enum When {
    Always,
    First(u64),
    Nth(Vec<u32>),
    Every(u64),
    After(u64),
    /// With this probability.
    Probability(f64),
    /// Within this time after a hit of the rule with this id.
    AfterRule(String, Duration),
}

/// A rule of the plan in force.
#[derive(Debug)]
pub struct Rule {
    /// As it was given.
    pub(crate) message: FaultRule,
    pub(super) matcher: Matcher,
    when: When,
    pub(crate) action: Action,
    pub(super) counts: Arc<Counts>,
    /// Bytes as JSON.
    pub(super) len: usize,
}

/// How often a rule matched and was due.
#[derive(Debug, Default)]
pub(super) struct Counts {
    matches: AtomicU64,
    hits: AtomicU64,
    /// Milliseconds from [`epoch`] to the last hit, plus 1. 0: there was none.
    last_hit: AtomicU64,
    /// The change of the plan since which this counts.
    since: AtomicU32,
}

impl Counts {
    pub fn matches(&self) -> u64 {
        self.matches.load(Ordering::Relaxed)
    }

    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    pub fn since(&self) -> u32 {
        self.since.load(Ordering::Relaxed)
    }

    /// Counts from 0 again, since the change with this number.
    pub fn begin(&self, since: u32) {
        self.since.store(since, Ordering::Relaxed);
        for count in [&self.matches, &self.hits, &self.last_hit] {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// Time since the last hit.
    fn since_hit(&self) -> Option<Duration> {
        let last = self.last_hit.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(millis().saturating_sub(last)))
    }
}

/// Milliseconds since the first use.
fn millis() -> u64 {
    static EPOCH: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Rule {
    /// Checks a rule. `largest_layer` is the digest for `largest_layer_of`, if the image is known.
    pub(super) fn new(message: FaultRule, largest_layer: Option<Digest>) -> Result<Self, RuleError> {
        if !is_id(&message.id) {
            return Err(RuleError::new(
                "id",
                format!("{:?} is not an id; expected 1 to {MAX_ID} letters, digits and . _ -", message.id),
            ));
        }
        check_names(message.r#do.as_ref().unwrap_or(&FaultAction::default()))?;
        let len = serde_json::to_vec(&message).map_or(usize::MAX, |json| json.len());
        if len > MAX_RULE {
            return Err(RuleError::new("id", format!("the rule is longer than {MAX_RULE} bytes as JSON")));
        }
        let matcher = Matcher::new(message.r#match.as_ref().unwrap_or(&Default::default()), largest_layer)?;
        let when = When::new(message.when.as_ref().unwrap_or(&Default::default()))?;
        let action = Action::new(message.r#do.clone().unwrap_or_default(), &matcher)?;
        Ok(Self { message, matcher, when, action, counts: Arc::default(), len })
    }

    /// The same rule with the counts of `other`.
    pub(super) fn counting_as(self, other: &Self) -> Self {
        Self { counts: Arc::clone(&other.counts), ..self }
    }

    /// The rule's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.message.id
    }

    /// Whether it is due at each match.
    pub(super) fn is_always(&self) -> bool {
        self.when == When::Always
    }

    /// Whether it acts on connections.
    #[must_use]
    pub fn is_for_connections(&self) -> bool {
        self.action.message.connection() != Connection::Unspecified
    }

    /// Whether a request that was logged, or its connection, may have matched.
    #[must_use]
    pub fn may_have_matched(&self, request: &Request) -> bool {
        self.matcher.may_have_matched(request, self.is_for_connections())
    }

    /// Whether it is due at the match with this number, if that decides.
    #[must_use]
    pub fn is_due(&self, seed: u32, number: u64) -> bool {
        match &self.when {
            When::Always => true,
            When::First(first) => number <= *first,
            When::Nth(numbers) => u32::try_from(number).is_ok_and(|number| numbers.binary_search(&number).is_ok()),
            When::Every(every) => number.is_multiple_of(*every),
            When::After(after) => number > *after,
            When::Probability(probability) => random(seed, self.id(), number) < *probability,
            When::AfterRule(..) => false,
        }
    }

    /// The id of the rule that this one follows.
    pub(super) fn follows(&self) -> Option<&str> {
        if let When::AfterRule(id, _) = &self.when { Some(id) } else { None }
    }

    /// Counts a match. Returns its number if the rule is due. `followed` is the rule that this one follows.
    pub(super) fn count_match(&self, seed: u32, followed: Option<&Self>) -> Option<u64> {
        let number = self.counts.matches.fetch_add(1, Ordering::Relaxed) + 1;
        let is_soon = |time: Duration| followed.and_then(|rule| rule.counts.since_hit()).is_some_and(|since| since <= time);
        let is_due = match &self.when {
            When::AfterRule(_, time) => is_soon(*time),
            _ => self.is_due(seed, number),
        };
        if is_due {
            self.counts.hits.fetch_add(1, Ordering::Relaxed);
            self.counts.last_hit.store(millis().saturating_add(1), Ordering::Relaxed);
        }
        is_due.then_some(number)
    }
}

impl When {
    fn new(message: &FaultWhen) -> Result<Self, RuleError> {
        let bad = |field, problem: String| Err(RuleError::new(field, problem));
        let FaultWhen { first, nth, every, after, probability, after_rule } = message;
        let given = [
            ("first", first.is_some()),
            ("nth", !nth.is_empty()),
            ("every", every.is_some()),
            ("after", after.is_some()),
            ("probability", probability.is_some()),
            ("after_rule", after_rule.is_some()),
        ];
        let mut given = given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name);
        if let (Some(one), Some(other)) = (given.next(), given.next()) {
            return bad("when", format!("it has both {one} and {other}; one of them is expected"));
        }
        if !nth.iter().all(|number| *number > 0) || !nth.is_sorted_by(|one, next| one < next) {
            return bad("when.nth", "expected numbers from 1, in ascending order".to_owned());
        }
        for (field, number) in [("when.first", first), ("when.every", every)] {
            if *number == Some(0) {
                return bad(field, "0 is no request; expected a number from 1".to_owned());
            }
        }
        if let Some(wrong) = probability.filter(|probability| !(*probability > 0.0 && *probability <= 1.0)) {
            return bad("when.probability", format!("{wrong} is not a probability; expected a number above 0, and at most 1"));
        }
        if let Some(other) = after_rule {
            let time = seconds("when.after_rule.seconds", other.seconds)?;
            if time.is_zero() {
                return bad("when.after_rule.seconds", "expected more than 0 seconds".to_owned());
            }
            return Ok(Self::AfterRule(other.id.clone(), time));
        }
        Ok(match *message {
            FaultWhen { first: Some(first), .. } => Self::First(first.into()),
            FaultWhen { every: Some(every), .. } => Self::Every(every.into()),
            FaultWhen { after: Some(after), .. } => Self::After(after.into()),
            FaultWhen { probability: Some(probability), .. } => Self::Probability(probability),
            _ if !nth.is_empty() => Self::Nth(nth.clone()),
            _ => Self::Always,
        })
    }
}

/// A number from 0 up to 1, the same for the same arguments. Each number of a match has its own: how requests interleave does not matter.
///
/// FNV-1a spreads the id, and the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators") mixes.
fn random(seed: u32, id: &str, number: u64) -> f64 {
    let id = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mix = |mut word: u64| {
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    };
    let word =
        mix(mix(id ^ u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    // 53 bits, as a double has.
    (word >> 11) as f64 / (1_u64 << 53) as f64
}

/// A time in seconds, which is not negative.
pub(super) fn seconds(field: &'static str, value: f64) -> Result<Duration, RuleError> {
    let time = Some(value).filter(|value| (0.0..=MAX_SECONDS).contains(value)).map(Duration::from_secs_f64);
    time.ok_or_else(|| RuleError::new(field, format!("{value} is not a time; expected 0 to {MAX_SECONDS} seconds")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_depend_on_seed_rule_and_number_and_are_uniform() {
        let numbers = |seed, id| (1..=10_000).map(move |number| random(seed, id, number)).collect::<Vec<_>>();
        let one = numbers(1, "a");
        assert_eq!(one, numbers(1, "a"));
        assert!(one.iter().all(|number| (0.0..1.0).contains(number)));
        for other in [numbers(2, "a"), numbers(1, "b")] {
            // Independent numbers are both below one half in a quarter of all cases: 2500, with a standard deviation of 43.
            let both = one.iter().zip(&other).filter(|(one, other)| **one < 0.5 && **other < 0.5).count();
            assert!((2285..=2715).contains(&both), "{both}");
        }
        for tenth in 0..10 {
            let within = one.iter().filter(|number| (**number * 10.0) as usize == tenth).count();
            // 1000, with a standard deviation of 30.
            assert!((850..=1150).contains(&within), "{tenth}: {within}");
        }
    }
}
