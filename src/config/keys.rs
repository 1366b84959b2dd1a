//! The keys of the config. The build script derives their paths and types from `Config` in `proto/localregistry/v1/config.proto`; this
//! file adds what error messages say about their values.

use std::borrow::Cow;

use serde_json::Value;

use crate::registry::limits::overrides;

include!(concat!(env!("OUT_DIR"), "/config_keys.rs"));

/// The type of a key's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A list of strings.
    Texts,
    /// An unsigned 32-bit integer.
    Number,
    /// A floating-point number.
    Real,
    /// true or false.
    Bool,
    /// One of these names. The first is the proto's "unspecified".
    Choice(&'static [&'static str]),
    /// An object that holds other keys.
    Object,
    /// A plan of faults, whose content [`Plan::check`](crate::registry::faults::plan::Plan::check) checks.
    Plan,
    /// A list of such objects.
    Objects,
}

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Its path: nested keys joined by dots, with `*` for an index into a list.
    pub path: &'static str,
    /// The type of its value.
    pub kind: Kind,
}

const SECONDS: &str = "seconds, at most 3600";
const TCP_PORT: &str = "a TCP port from 1 to 65535";
const DISK: &str = "one of a serial (1 to 20 printable ASCII characters), a label (1 to 16 of them) and a path such as /dev/vdb";

/// The accepted values of each key whose type does not say enough, in words. Limits have theirs in [`overrides`].
#[rustfmt::skip]
const EXPECTED: &[(&str, &str)] = &[
    ("hostname",                    "a DNS name of at most 64 characters"),
    ("names",                       "a list of DNS names, wildcards such as *.example.test, and IP addresses"),
    ("port",                        TCP_PORT),
    ("tls",                         "an object such as {\"mode\": \"OFF\"}"),
    ("interfaces",                  "a list of interfaces, numbered from 0 without a gap"),
    ("interfaces.*",                "an object such as {\"addresses\": [\"10.1.0.82/16\"]}"),
    ("interfaces.*.mac",            "a MAC address such as 52:54:00:12:34:56"),
    ("interfaces.*.addresses",      "a list of addresses with their prefix, such as 10.1.0.82/16"),
    ("interfaces.*.gateway",        "the IP address of a gateway, and an address of the same family in `addresses`"),
    ("interfaces.*.mtu",            "a packet size in bytes from 1280 to 65535"),
    ("interfaces.*.timeoutSeconds", SECONDS),
    ("interfaces.*.gateways",       "IP addresses of gateways, one for each family that has addresses"),
    ("interfaces.*.vlan",           "the number of a VLAN from 1 to 4094"),
    ("interfaces.*.place",          "a position among the interfaces, from 0 to 255"),
    ("disk",                        "an object such as {\"serial\": \"localregistry\"}"),
    ("disk.serial",                 "the serial of a virtio disk: 1 to 20 printable ASCII characters"),
    ("disk.waitSeconds",            SECONDS),
    ("clock",                       "an object such as {\"epochSeconds\": 1800000000}"),
    ("clock.epochSeconds",          "seconds since 1970, at most 253402300799 (the year 9999)"),
    ("auth",                        "an object such as {\"mode\": \"BASIC\"}"),
    ("auth.tokenSeconds",           "seconds, at most 86400"),
    ("metricsPort",                 "a TCP port from 1 to 65535 other than the registry's"),
    ("limits",                      "an object such as {\"stallSeconds\": 60}"),
    ("heartbeatSeconds",            "seconds, at most 3600; 0 for no heartbeat"),
    ("faults",                      "a plan of faults, such as {\"rules\": [{\"id\": \"a\", \"do\": {\"status\": 503}}]}"),
    ("listeners",                   "a list of listeners, numbered from 0 without a gap"),
    ("listeners.*",                 "an object such as {\"port\": 80, \"transport\": \"PLAIN\"}"),
    ("listeners.*.address",         "an IP address of the appliance"),
    ("listeners.*.port",            TCP_PORT),
    ("listeners.*.transport",       "PLAIN, or TLS if tls.mode is not OFF"),
    ("disks",                       "a list of disks, numbered from 0 without a gap"),
    ("disks.*",                     "an object such as {\"serial\": \"localregistry-1\"}"),
    ("disks.*.serial",              DISK),
    ("disks.*.label",               DISK),
    ("disks.*.path",                DISK),
];

/// The key at `path`, in which a number stands for an index into a list.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    let is_index = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let general = path.split('.').map(|part| if is_index(part) { "*" } else { part }).collect::<Vec<_>>().join(".");
    KEYS.iter().find(|key| key.path == general)
}

/// The paths of all keys that hold a value, with `N` for an index into a list.
#[must_use]
pub fn list() -> String {
    KEYS.iter().filter(|key| key.has_value()).map(|key| key.path.replace('*', "N")).collect::<Vec<_>>().join(", ")
}

/// The keys beside `path`, with `N` for an index into a list: those below the longest part of it that is a key.
#[must_use]
pub fn siblings(path: &str) -> String {
    let parents = std::iter::successors(path.rsplit_once('.'), |(parent, _)| parent.rsplit_once('.')).map(|(parent, _)| parent);
    let parent = parents.filter_map(find).map(|key| format!("{}.", key.path)).next().unwrap_or_default();
    let is_below = |key: &&Key| key.path.strip_prefix(&parent).is_some_and(|name| !name.contains('.'));
    KEYS.iter().filter(is_below).map(|key| key.path.replace('*', "N")).collect::<Vec<_>>().join(", ")
}

impl Key {
    /// Whether the key holds a value of its own, not other keys.
    #[must_use]
    pub const fn has_value(&self) -> bool {
        !matches!(self.kind, Kind::Object | Kind::Objects)
    }

    /// The accepted values, in words.
    #[must_use]
    pub fn expected(&self) -> Cow<'static, str> {
        let limit = self.path.strip_prefix("limits.");
        let limit = limit.and_then(|name| overrides::CHOICES.iter().find(|choice| choice.key == name));
        let words = limit.map(|limit| limit.expected).or_else(|| {
            let row = EXPECTED.iter().find(|(path, _)| *path == self.path);
            row.map(|(_, words)| *words)
        });
        match (words, self.kind) {
            (Some(words), _) => words.into(),
            (None, Kind::Choice([_, names @ .., last])) => format!("{} or {last}", names.join(", ")).into(),
            (None, Kind::Bool) => "true or false".into(),
            (None, _) => "".into(),
        }
    }

    /// Whether `value` has the key's type. proto3 JSON also takes numbers as strings.
    #[must_use]
    pub fn accepts(&self, value: &Value) -> bool {
        match (self.kind, value) {
            (Kind::Text, value) => value.is_string(),
            (Kind::Texts, value) => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
            (Kind::Number, Value::String(text)) => text.parse::<u32>().is_ok(),
            (Kind::Number, value) => value.as_u64().is_some_and(|number| u32::try_from(number).is_ok()),
            (Kind::Real, Value::String(text)) => text.parse::<f64>().is_ok_and(f64::is_finite),
            (Kind::Real, value) => value.is_number(),
            (Kind::Bool, value) => value.is_boolean(),
            (Kind::Choice(names), value) => value.as_str().is_some_and(|name| names.contains(&name)),
            (Kind::Object | Kind::Plan, value) => value.is_object(),
            (Kind::Objects, value) => value.is_array(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_expected_values_and_every_row_has_a_key() {
        for key in KEYS {
            assert_ne!(key.expected(), "", "{} needs a row in EXPECTED, or in the table of limits", key.path);
        }
        for (path, _) in EXPECTED {
            assert!(KEYS.iter().any(|key| key.path == *path), "{path} is no key of the config");
        }
    }
}
