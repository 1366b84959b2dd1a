//! JSON as Go programs write it.

use std::collections::HashMap;

use serde::{Deserialize, Deserializer};

/// Deserializes a field whose value may be `null`, which then means the default: an empty list or map. Go's `encoding/json` writes nil
/// slices, maps and pointers as `null`, and reads `null` as "unchanged". Use it as `#[serde(deserialize_with = "null_as_default")]`.
///
/// # Errors
/// Fails if the value is neither `null` nor a `T`.
pub fn null_as_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Deserializes a map of texts, where `null` is the empty map as in [`null_as_default`], and a value that is `null` is the empty text.
///
/// # Errors
/// Fails if it is neither `null` nor such a map.
pub fn texts<'de, T: FromIterator<(String, String)>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let texts: Option<HashMap<String, Option<String>>> = Option::deserialize(deserializer)?;
    Ok(texts.into_iter().flatten().map(|(key, value)| (key, value.unwrap_or_default())).collect())
}
