//! Validates config values. The error for a rejected value names its key, its source and the accepted values.

use std::num::NonZeroU16;
use std::time::Duration;

use super::{ConfigError, Origin, keys};

/// Longest wait that a config may ask for, in seconds.
const MAX_WAIT: u32 = 3600;

/// Checks values that come from one source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validator {
    pub origin: Origin,
}

impl Validator {
    /// The parsed value, or the error that `key` does not accept `value`.
    pub fn require_some<T>(self, parsed: Option<T>, key: &str, value: impl Into<serde_json::Value>) -> Result<T, ConfigError> {
        parsed.ok_or_else(|| ConfigError::BadValue {
            origin: self.origin,
            key: key.to_owned(),
            value: value.into().to_string(),
            expected: keys::find(key).map(keys::Key::expected).unwrap_or_default(),
        })
    }

    /// Fails with the same error if `value` is not `valid`.
    pub fn require(self, valid: bool, key: &str, value: &str) -> Result<(), ConfigError> {
        self.require_some(valid.then_some(()), key, value)
    }

    /// `port` as a TCP port. 0 is rejected.
    pub fn port(self, port: u32, key: &str) -> Result<NonZeroU16, ConfigError> {
        self.require_some(u16::try_from(port).ok().and_then(NonZeroU16::new), key, port)
    }

    /// `seconds` as a wait, or `default` if it is 0.
    pub fn wait(self, seconds: u32, default: u32, key: &str) -> Result<Duration, ConfigError> {
        let seconds = self.require_some((seconds <= MAX_WAIT).then_some(seconds), key, seconds)?;
        Ok(Duration::from_secs(u64::from(if seconds == 0 { default } else { seconds })))
    }
}
