//! The limits that a test author may change: their defaults, their names in the config, and their accepted values.

use std::str::FromStr;
use std::time::Duration;

/// Values of a time.
pub const SECONDS: &str = "seconds from 1 to 3600";
/// Values of the minimum rate.
pub const RATE: &str = "bytes a second from 1 to 1073741824";
/// Values of the number of connections. Each takes some 40 KiB.
pub const CONNECTIONS: &str = "a number of connections from 1 to 16384";
/// Values of the number of streams that are served at once. Further ones wait: 100 or more are always announced.
pub const STREAMS: &str = "a number of streams from 1 to 256";

/// A limit that the config can change.
#[derive(Debug)]
pub struct Choice {
    /// Its key, as in `Limits` of `proto/localregistry/v1/config.proto`.
    pub key: &'static str,
    /// The largest value; the smallest is 1.
    most: u32,
    /// The accepted values, in words.
    pub expected: &'static str,
    set: fn(&mut Limits, u32),
}

/// Defines [`Limits`], its defaults and [`CHOICES`] from one row per limit.
macro_rules! limits {
    ($($field:ident: $type:ty = $default:ident $(, $key:literal to $most:literal, $expected:ident, $convert:expr)?;)*) => {
        /// The limits that can be changed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct Limits {
            $(#[doc = concat!("By default [`", stringify!($default), "`](super::", stringify!($default), ").")] pub $field: $type,)*
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($field: super::$default,)* }
            }
        }

        /// Every limit that the config can change. The others follow from the machine or from a specification.
        pub const CHOICES: &[Choice] = &[$($(Choice {
            key: $key,
            most: $most,
            expected: $expected,
            set: |limits, value| limits.$field = $convert(value),
        },)?)*];
    };
}

// A new limit takes a constant in the parent module, a row here, and a field in the proto.
limits! {
    first_byte: Duration = FIRST_BYTE, "firstByteSeconds" to 3600, SECONDS, seconds;
    handshake: Duration = HANDSHAKE, "handshakeSeconds" to 3600, SECONDS, seconds;
    request_head: Duration = REQUEST_HEAD, "requestHeadSeconds" to 3600, SECONDS, seconds;
    stall: Duration = STALL, "stallSeconds" to 3600, SECONDS, seconds;
    ping: Duration = PING, "pingSeconds" to 3600, SECONDS, seconds;
    idle: Duration = IDLE, "idleSeconds" to 3600, SECONDS, seconds;
    minimum_rate: u64 = MINIMUM_RATE, "minimumRate" to 1_073_741_824, RATE, u64::from;
    connections: usize = CONNECTIONS, "connections" to 16_384, CONNECTIONS, count;
    handshakes: usize = HANDSHAKES;
    streams: u32 = STREAMS, "streams" to 256, STREAMS, u32::from;
    response_memory_wait: Duration = RESPONSE_MEMORY_WAIT;
    refusal_interval: Duration = REFUSAL_INTERVAL;
}

fn seconds(value: u32) -> Duration {
    Duration::from_secs(value.into())
}

fn count(value: u32) -> usize {
    value as usize
}

impl Limits {
    /// Changes the limit `key`. Returns `None` if there is no such limit, or it does not accept `value`.
    #[must_use]
    pub fn with(mut self, key: &str, value: u32) -> Option<Self> {
        let choice = CHOICES.iter().find(|choice| choice.key == key)?;
        (1..=choice.most).contains(&value).then(|| (choice.set)(&mut self, value))?;
        Some(self)
    }
}

/// Why a limit cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// There is no `=`.
    #[error("expected KEY=NUMBER, such as stallSeconds=60")]
    Form,
    /// There is no limit of this name.
    #[error("there is no limit {0:?}; expected one of {names}", names = names())]
    Unknown(String),
    /// The limit does not accept this value.
    #[error("{key} is {value}; expected {expected}")]
    Value {
        /// The limit.
        key: &'static str,
        /// The value, as it was written.
        value: String,
        /// The accepted values.
        expected: &'static str,
    },
}

fn names() -> String {
    CHOICES.iter().map(|choice| choice.key).collect::<Vec<_>>().join(", ")
}

/// A new value for one limit, parsed from `KEY=NUMBER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitOverride {
    key: &'static str,
    value: u32,
}

impl LimitOverride {
    /// Changes this limit in `limits`.
    #[must_use]
    pub fn apply(self, limits: Limits) -> Limits {
        limits.with(self.key, self.value).unwrap_or(limits)
    }
}

impl FromStr for LimitOverride {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let (key, value) = text.split_once('=').ok_or(LimitError::Form)?;
        let choice = CHOICES.iter().find(|choice| choice.key == key).ok_or_else(|| LimitError::Unknown(key.to_owned()))?;
        let number = value.parse().ok().filter(|number| Limits::default().with(choice.key, *number).is_some());
        let bad = || LimitError::Value { key: choice.key, value: value.to_owned(), expected: choice.expected };
        Ok(Self { key: choice.key, value: number.ok_or_else(bad)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_choice_sets_a_different_limit() {
        let mut seen = vec![Limits::default()];
        for choice in CHOICES {
            for value in [7, choice.most] {
                let parsed: LimitOverride = format!("{}={value}", choice.key).parse().unwrap();
                let limits = parsed.apply(Limits::default());
                assert!(!seen.contains(&limits), "{parsed:?}");
                seen.push(limits);
            }
            assert_eq!(
                (Limits::default().with(choice.key, 0), Limits::default().with(choice.key, choice.most + 1)),
                (None, None)
            );
            assert!(choice.expected.ends_with(&format!("from 1 to {}", choice.most)), "{choice:?}");
        }
        let two = ["stallSeconds=1", "streams=2"].map(|text| text.parse::<LimitOverride>().unwrap());
        let limits = two.into_iter().fold(Limits::default(), |limits, one| one.apply(limits));
        assert_eq!(limits, Limits { stall: Duration::from_secs(1), streams: 2, ..Limits::default() });
    }

    #[test]
    fn error_names_the_limit_and_the_accepted_values() {
        for (text, words) in [
            ("stallSeconds", "expected KEY=NUMBER, such as stallSeconds=60"),
            ("", "expected KEY=NUMBER, such as stallSeconds=60"),
            (
                "stall=60",
                "there is no limit \"stall\"; expected one of firstByteSeconds, handshakeSeconds, requestHeadSeconds, stallSeconds, \
                 pingSeconds, idleSeconds, minimumRate, connections, streams",
            ),
            ("stallSeconds=0", "stallSeconds is 0; expected seconds from 1 to 3600"),
            ("stallSeconds=3601", "stallSeconds is 3601; expected seconds from 1 to 3600"),
            ("stallSeconds=-1", "stallSeconds is -1; expected seconds from 1 to 3600"),
            ("stallSeconds=", "stallSeconds is ; expected seconds from 1 to 3600"),
            ("stallSeconds=1.5", "stallSeconds is 1.5; expected seconds from 1 to 3600"),
            ("minimumRate=1073741825", "minimumRate is 1073741825; expected bytes a second from 1 to 1073741824"),
            ("connections=0", "connections is 0; expected a number of connections from 1 to 16384"),
            ("streams=257", "streams is 257; expected a number of streams from 1 to 256"),
            ("streams=99999999999", "streams is 99999999999; expected a number of streams from 1 to 256"),
        ] {
            assert_eq!(text.parse::<LimitOverride>().unwrap_err().to_string(), words, "{text}");
        }
    }
}
