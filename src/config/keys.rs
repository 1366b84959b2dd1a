//! Every key of the config in one table: what kind of value it takes, and the words for that. It never holds values.

use serde_json::Value;

use crate::proto::{auth, interface, listener, tls};
use crate::registry::limits::overrides;

/// What kind of value a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A list of strings.
    Texts,
    /// A whole number that fits 32 bits.
    Number,
    /// A number.
    Real,
    /// true or false.
    Bool,
    /// The name of a [`tls::Mode`].
    TlsMode,
    /// The name of an [`auth::Mode`].
    AuthMode,
    /// The name of an [`auth::ClientCertificate`].
    ClientCertificate,
    /// The name of an [`interface::Autoconf`].
    Autoconf,
    /// The name of a [`listener::Transport`].
    Transport,
}

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Its name, nested keys joined by dots, `*` for a place in a list.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// The same in words.
    pub expected: &'static str,
}

/// The keys of `Config` in `proto/localregistry/v1/config.proto`.
#[rustfmt::skip]
pub const KEYS: [Key; 39] = [
    Key { path: "hostname",                    kind: Kind::Text,              expected: "a DNS name of at most 64 characters" },
    Key { path: "names",                       kind: Kind::Texts,             expected: "a list of DNS names, wildcards such as *.example.test, and IP addresses" },
    Key { path: "port",                        kind: Kind::Number,            expected: "a TCP port from 1 to 65535" },
    Key { path: "tls.mode",                    kind: Kind::TlsMode,           expected: "GENERATE, SIGN, PROVIDED or OFF" },
    Key { path: "interfaces.*.mac",            kind: Kind::Text,              expected: "a MAC address such as 52:54:00:12:34:56" },
    Key { path: "interfaces.*.addresses",      kind: Kind::Texts,             expected: "a list of addresses with their prefix, such as 10.1.0.82/16" },
    Key { path: "interfaces.*.gateway",        kind: Kind::Text,              expected: "the IP address of a gateway, beside addresses of its family" },
    Key { path: "interfaces.*.mtu",            kind: Kind::Number,            expected: "a packet size in bytes from 1280 to 65535" },
    Key { path: "interfaces.*.timeoutSeconds", kind: Kind::Number,            expected: "seconds, at most 3600" },
    Key { path: "interfaces.*.gateways",       kind: Kind::Texts,             expected: "IP addresses of gateways, one for each family that has addresses" },
    Key { path: "interfaces.*.vlan",           kind: Kind::Number,            expected: "the number of a VLAN from 1 to 4094" },
    Key { path: "interfaces.*.autoconf",       kind: Kind::Autoconf,          expected: "DHCP, SLAAC, DHCP_SLAAC or LINK_LOCAL" },
    Key { path: "interfaces.*.place",          kind: Kind::Number,            expected: "a place among the interfaces, from 0 to 255" },
    Key { path: "disk.serial",                 kind: Kind::Text,              expected: "the serial of a virtio disk: 1 to 20 printable ASCII characters" },
    Key { path: "disk.waitSeconds",            kind: Kind::Number,            expected: "seconds, at most 3600" },
    Key { path: "disks.*.serial",              kind: Kind::Text,              expected: DISK },
    Key { path: "disks.*.label",               kind: Kind::Text,              expected: DISK },
    Key { path: "disks.*.path",                kind: Kind::Text,              expected: DISK },
    Key { path: "disks.*.optional",            kind: Kind::Bool,              expected: "true or false" },
    Key { path: "clock.epochSeconds",          kind: Kind::Real,              expected: "seconds since 1970, at most 253402300799 (the year 9999)" },
    Key { path: "auth.mode",                   kind: Kind::AuthMode,          expected: "ANONYMOUS, BASIC, TOKEN or ANONYMOUS_TOKEN" },
    Key { path: "auth.tokenSeconds",           kind: Kind::Number,            expected: "seconds, at most 86400" },
    Key { path: "auth.clientCertificate",      kind: Kind::ClientCertificate, expected: "IGNORED, OPTIONAL or REQUIRED" },
    Key { path: "metricsPort",                 kind: Kind::Number,            expected: "a TCP port from 1 to 65535, and not the registry's" },
    Key { path: "listeners.*.address",         kind: Kind::Text,              expected: "an IP address of the appliance" },
    Key { path: "listeners.*.port",            kind: Kind::Number,            expected: "a TCP port from 1 to 65535" },
    Key { path: "listeners.*.transport",       kind: Kind::Transport,         expected: "PLAIN, or with a tls.mode other than OFF also TLS" },
    Key { path: "limits.firstByteSeconds",     kind: Kind::Number,            expected: overrides::SECONDS },
    Key { path: "limits.handshakeSeconds",     kind: Kind::Number,            expected: overrides::SECONDS },
    Key { path: "limits.requestHeadSeconds",   kind: Kind::Number,            expected: overrides::SECONDS },
    Key { path: "limits.stallSeconds",         kind: Kind::Number,            expected: overrides::SECONDS },
    Key { path: "limits.pingSeconds",          kind: Kind::Number,            expected: overrides::SECONDS },
    Key { path: "limits.idleSeconds",          kind: Kind::Number,            expected: overrides::SECONDS },
    Key { path: "limits.minimumRate",          kind: Kind::Number,            expected: overrides::RATE },
    Key { path: "limits.connections",          kind: Kind::Number,            expected: overrides::CONNECTIONS },
    Key { path: "limits.streams",              kind: Kind::Number,            expected: overrides::STREAMS },
    Key { path: "heartbeatSeconds",            kind: Kind::Number,            expected: "seconds, at most 3600; 0 for none" },
    Key { path: "trace",                       kind: Kind::Bool,              expected: "true or false" },
    Key { path: "verify",                      kind: Kind::Bool,              expected: "true or false" },
];

/// The places that hold other keys and no value of their own.
pub const OBJECTS: [(&str, &str); 8] = [
    ("tls", "an object such as {\"mode\": \"OFF\"}"),
    ("disk", "an object such as {\"serial\": \"localregistry\"}"),
    ("clock", "an object such as {\"epochSeconds\": 1800000000}"),
    ("auth", "an object such as {\"mode\": \"BASIC\"}"),
    ("limits", "an object such as {\"stallSeconds\": 60}"),
    ("disks.*", "an object such as {\"serial\": \"localregistry-1\"}"),
    ("interfaces.*", "an object such as {\"addresses\": [\"10.1.0.82/16\"]}"),
    ("listeners.*", "an object such as {\"port\": 80, \"transport\": \"PLAIN\"}"),
];

/// What says which disk is meant.
const DISK: &str = "one of a serial (1 to 20 printable ASCII characters), a label (1 to 16 of them) and a path such as /dev/vdb";

/// The places that hold a list of objects.
pub const LISTS: [(&str, &str); 3] = [
    ("interfaces", "a list of interfaces, numbered from 0 without a gap"),
    ("listeners", "a list of listeners, numbered from 0 without a gap"),
    ("disks", "a list of disks, numbered from 0 without a gap"),
];

/// The key named `path`, in which a number stands for a place in a list.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    let general = generalised(path);
    KEYS.iter().find(|key| key.path == general)
}

/// What the object named `path` must be, where there is such an object.
#[must_use]
pub fn object(path: &str) -> Option<&'static str> {
    let general = generalised(path);
    OBJECTS.iter().find(|(object, _)| *object == general).map(|(_, expected)| *expected)
}

/// What the list of objects named `path` must be, where there is such a list.
#[must_use]
pub fn list_of_objects(path: &str) -> Option<&'static str> {
    LISTS.iter().find(|(list, _)| *list == path).map(|(_, expected)| *expected)
}

/// The names of all keys, as a person writes them.
#[must_use]
pub fn list() -> String {
    KEYS.iter().map(|key| key.path.replace('*', "N")).collect::<Vec<_>>().join(", ")
}

/// Whether `value` is of `kind`. Numbers may be strings, as proto3 JSON has it.
#[must_use]
pub fn accepts(kind: Kind, value: &Value) -> bool {
    match kind {
        Kind::Text => value.is_string(),
        Kind::Texts => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
        Kind::Number => match value {
            Value::String(text) => text.parse::<u32>().is_ok(),
            other => other.as_u64().is_some_and(|number| u32::try_from(number).is_ok()),
        },
        Kind::Real => match value {
            Value::String(text) => text.parse::<f64>().is_ok_and(f64::is_finite),
            other => other.is_number(),
        },
        Kind::Bool => value.is_boolean(),
        Kind::TlsMode => value.as_str().and_then(tls::Mode::from_str_name).is_some(),
        Kind::AuthMode => value.as_str().and_then(auth::Mode::from_str_name).is_some(),
        Kind::Autoconf => value.as_str().and_then(interface::Autoconf::from_str_name).is_some(),
        Kind::Transport => value.as_str().and_then(listener::Transport::from_str_name).is_some(),
        Kind::ClientCertificate => value.as_str().and_then(auth::ClientCertificate::from_str_name).is_some(),
    }
}

fn generalised(path: &str) -> String {
    let is_place = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    path.split('.').map(|part| if is_place(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}
