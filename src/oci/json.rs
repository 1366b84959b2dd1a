//! JSON as Go programs write it.

use serde::{Deserialize, Deserializer};

/// Deserializes a field whose value may be `null`, which then means the default: an empty list or map. Go's `encoding/json` writes nil
/// slices, maps and pointers as `null`, and reads `null` as "unchanged". Use it as `#[serde(deserialize_with = "null_as_default")]`.
///
/// # Errors
/// Fails if the value is neither `null` nor a `T`.
pub fn null_as_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
