//! JSON as Go programs write it.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

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

/// The fields with these names in any case, as Go's JSON decoder matches them. Of several the last in the order of their bytes counts.
#[must_use]
pub fn known_fields(fields: Map<String, Value>, names: &[&str]) -> Map<String, Value> {
    let fields: BTreeMap<String, Value> = fields.into_iter().collect();
    let name = |key: &str| names.iter().find(|name| name.eq_ignore_ascii_case(key));
    fields.into_iter().filter_map(|(key, value)| Some(((*name(&key)?).to_owned(), value))).collect()
}
