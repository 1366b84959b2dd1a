//! Limits as a test author chooses them: a name and a number become one field of [`Limits`], or are refused with what is expected.
//! Pure; the names are those of `Limits` in `proto/localregistry/v1/config.proto`.

use std::str::FromStr;
use std::time::Duration;

use super::Limits;

/// What a time takes.
pub const SECONDS: &str = "seconds from 1 to 3600";
/// What the minimum rate takes.
pub const RATE: &str = "bytes a second from 1 to 1073741824";
/// What the number of connections takes: each is some 40 KiB.
pub const CONNECTIONS: &str = "a number of connections from 1 to 16384";
/// What the number of streams takes: so many are served at once, and the others of the 100 and more that are announced wait.
pub const STREAMS: &str = "a number of streams from 1 to 256";

/// A limit that can be chosen.
#[derive(Debug)]
pub struct Choice {
    /// Its name.
    pub key: &'static str,
    /// The largest value; the least is 1.
    most: u32,
    /// The values in words.
    pub expected: &'static str,
    set: fn(&mut Limits, u32),
}

/// Every limit that can be chosen. The others follow from the machine or from a specification.
#[rustfmt::skip]
pub const CHOICES: [Choice; 9] = [
    Choice { key: "firstByteSeconds",   most: 3600,    expected: SECONDS,     set: |limits, value| limits.first_byte = seconds(value) },
    Choice { key: "handshakeSeconds",   most: 3600,    expected: SECONDS,     set: |limits, value| limits.handshake = seconds(value) },
    Choice { key: "requestHeadSeconds", most: 3600,    expected: SECONDS,     set: |limits, value| limits.request_head = seconds(value) },
    Choice { key: "stallSeconds",       most: 3600,    expected: SECONDS,     set: |limits, value| limits.stall = seconds(value) },
    Choice { key: "pingSeconds",        most: 3600,    expected: SECONDS,     set: |limits, value| limits.ping = seconds(value) },
    Choice { key: "idleSeconds",        most: 3600,    expected: SECONDS,     set: |limits, value| limits.idle = seconds(value) },
    Choice { key: "minimumRate",        most: 1 << 30, expected: RATE,        set: |limits, value| limits.minimum_rate = value.into() },
    Choice { key: "connections",        most: 16_384,  expected: CONNECTIONS, set: |limits, value| limits.connections = value as usize },
    Choice { key: "streams",            most: 256,     expected: STREAMS,     set: |limits, value| limits.streams = value },
];

fn seconds(value: u32) -> Duration {
    Duration::from_secs(value.into())
}

/// Why a limit is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// No `=` in it.
    #[error("expected KEY=NUMBER, such as stallSeconds=60")]
    Form,
    /// No limit of this name.
    #[error("there is no limit {0:?}; expected one of {names}", names = names())]
    Unknown(String),
    /// A value that it does not take.
    #[error("{key} is {value}; expected {expected}")]
    Value {
        /// The limit.
        key: &'static str,
        /// As it was given.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
}

fn names() -> String {
    CHOICES.iter().map(|choice| choice.key).collect::<Vec<_>>().join(", ")
}

impl Limits {
    /// These limits with another value for `key`; nothing where that is no value for it.
    #[must_use]
    pub fn with(mut self, key: &str, value: u32) -> Option<Self> {
        let choice = CHOICES.iter().find(|choice| choice.key == key)?;
        (1..=choice.most).contains(&value).then(|| (choice.set)(&mut self, value))?;
        Some(self)
    }
}

/// One limit with its value, from `KEY=NUMBER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    key: &'static str,
    value: u32,
}

impl Chosen {
    /// `limits` with this one.
    #[must_use]
    pub fn over(self, limits: Limits) -> Limits {
        limits.with(self.key, self.value).unwrap_or(limits)
    }
}

impl FromStr for Chosen {
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
    fn each_choice_sets_a_limit_of_its_own() {
        let mut seen = vec![Limits::default()];
        for choice in &CHOICES {
            for value in [7, choice.most] {
                let chosen: Chosen = format!("{}={value}", choice.key).parse().unwrap();
                let limits = chosen.over(Limits::default());
                assert!(!seen.contains(&limits), "{chosen:?}");
                seen.push(limits);
            }
            assert_eq!(
                (Limits::default().with(choice.key, 0), Limits::default().with(choice.key, choice.most + 1)),
                (None, None)
            );
            assert!(choice.expected.ends_with(&format!("from 1 to {}", choice.most)), "{choice:?}");
        }
        let two = ["stallSeconds=1", "streams=2"].map(|text| text.parse::<Chosen>().unwrap());
        let limits = two.into_iter().fold(Limits::default(), |limits, chosen| chosen.over(limits));
        assert_eq!(limits, Limits { stall: Duration::from_secs(1), streams: 2, ..Limits::default() });
    }

    #[test]
    fn what_is_no_limit_is_refused_in_words() {
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
            assert_eq!(text.parse::<Chosen>().unwrap_err().to_string(), words, "{text}");
        }
    }
}
