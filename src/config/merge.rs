//! Merges two JSON configs.

use serde_json::{Map, Value};

/// Merges `over` into `under`: objects merge key by key, any other value in `over` replaces the one in `under`.
pub(crate) fn merge(under: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Object(under)), Value::Object(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}
