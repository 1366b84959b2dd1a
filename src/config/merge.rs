//! How one source of the config is laid over another, on the host as in the guest.

use serde_json::{Map, Value};

/// `over` laid over `under`: objects are merged, everything else is replaced.
pub(crate) fn lay(under: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Object(under)), Value::Object(over)) => lay(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}
