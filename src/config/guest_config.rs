//! Assembles the guest's config on the host from a JSON file and `KEY=VALUE` settings. It checks keys and types against
//! `proto/localregistry/v1/config.proto`; the guest checks the values.

use std::net::SocketAddrV4;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde_json::{Map, Value, json};

use super::disks::SERIAL;
use super::merge::merge;
use super::partial_config::{self, camel_case};
use super::settings::DEFAULT_PORT;
use super::{ConfigError, Origin, keys};
use crate::proto::listener::Transport;
use crate::proto::tls::Mode;
use crate::proto::{Config, DiskChoice, Listener};

/// Candidates for the port of health, metrics and the CA if the config sets none. The first free one is used.
const METRICS_PORTS: RangeInclusive<u16> = 9090..=u16::MAX;

/// A guest's config as proto3 JSON. It records which keys are set, so that `false` and 0 override the config on the disk too.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GuestConfig {
    json: Map<String, Value>,
}

/// Why a config or a setting is rejected.
#[derive(Debug, thiserror::Error)]
pub enum GuestConfigError {
    /// The text is not one JSON object, a key is in it twice, or settings contradict each other.
    #[error("it is not a config; expected one JSON object with the keys that proto/JSON.md lists")]
    Json(#[source] serde_json::Error),
    /// The text has an unknown key, or a value that its key does not accept.
    #[error("line {line}: {problem}")]
    Key {
        /// The line of the text, from 1.
        line: usize,
        /// The key, and what is accepted.
        problem: String,
    },
    /// A setting without a key.
    #[error(
        "expected KEY=VALUE with nested keys joined by dots, such as hostname=registry, tls.mode=OFF or names=a.example,10.1.0.82"
    )]
    NoKey,
    /// A setting with an unknown key or an invalid value. The message includes the cause, because clap prints one line.
    #[error("{key} cannot be set to {value:?}: {problem}")]
    Setting {
        /// The key, with nested keys joined by dots.
        key: String,
        /// The value.
        value: String,
        /// Why it is rejected.
        problem: String,
    },
}

/// One key with its value, parsed from `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    path: Vec<String>,
    value: Value,
}

impl Setting {
    /// Sets the key at `path` to `value`.
    #[must_use]
    pub fn new(path: &[&str], value: impl Into<Value>) -> Self {
        Self { path: path.iter().map(|key| (*key).to_owned()).collect(), value: value.into() }
    }

    /// The setting as a config with one value.
    fn json(&self) -> Map<String, Value> {
        let nested = self.path.iter().rev().fold(self.value.clone(), |value, key| json!({ key: value }));
        if let Value::Object(json) = nested { json } else { Map::new() }
    }
}

impl FromStr for Setting {
    type Err = GuestConfigError;

    /// Parses the value as the key's type: a number, a boolean, a string, or a list (separated by commas, or as JSON).
    fn from_str(text: &str) -> Result<Self, GuestConfigError> {
        let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or(GuestConfigError::NoKey)?;
        let path: Vec<String> = key.split('.').map(camel_case).collect();
        let mut problem = None;
        for value in readings(value) {
            let setting = Self { path: path.clone(), value };
            match GuestConfig::default().with(&setting) {
                Ok(_) => return Ok(setting),
                Err(error) => {
                    problem = problem.or_else(|| Some(explain(&setting.json(), key).unwrap_or_else(|| error.to_string())));
                }
            }
        }
        Err(GuestConfigError::Setting { key: key.into(), value: value.into(), problem: problem.unwrap_or_default() })
    }
}

/// Says which key of `json` is unknown, or which value its key does not accept. `own` is a key that the message names already.
fn explain(json: &Map<String, Value>, own: &str) -> Option<String> {
    match partial_config::object(Origin::FwCfg, "", json).err()? {
        ConfigError::UnknownKey { key, .. } => {
            let siblings = keys::siblings(&key);
            let one_of = if siblings.contains(',') { "one of " } else { "" };
            Some(format!("unknown key {key}; expected {one_of}{siblings}"))
        }
        ConfigError::BadValue { key, expected, .. } if key == own => Some(format!("expected {expected}")),
        ConfigError::BadValue { key, value, expected, .. } => Some(format!("{key} is {value}; expected {expected}")),
        _ => None,
    }
}

/// The possible JSON values of `value`, the most likely first.
fn readings(value: &str) -> Vec<Value> {
    let text = Value::from(value);
    let list = value.split(',').filter(|item| !item.is_empty()).collect();
    let json = serde_json::from_str(value).ok().filter(|json: &Value| !json.is_null());
    json.into_iter().chain([text, list]).collect()
}

impl GuestConfig {
    /// Parses `text`, one JSON object.
    ///
    /// # Errors
    /// Fails if it is not JSON, or has an unknown key or a value of another type.
    pub fn parse(text: &[u8]) -> Result<Self, GuestConfigError> {
        // The untyped parse records which keys are set; the typed one reports errors with their position.
        let json = canonical(serde_json::from_slice(text).map_err(GuestConfigError::Json)?);
        serde_json::from_slice::<Config>(text).map_err(|error| match explain(&json, "") {
            Some(problem) => GuestConfigError::Key { line: error.line(), problem },
            None => GuestConfigError::Json(error),
        })?;
        let config = Self { json };
        config.typed().map_err(GuestConfigError::Json)?;
        Ok(config)
    }

    /// This config with `setting` applied.
    ///
    /// # Errors
    /// Fails if the result does not match the schema.
    fn with(mut self, setting: &Setting) -> Result<Self, serde_json::Error> {
        merge(&mut self.json, setting.json());
        self.typed()?;
        Ok(self)
    }

    /// Applies `setting`, which overrides an earlier value.
    ///
    /// # Errors
    /// Fails if the result does not match the schema, such as when the setting's parent is not an object.
    pub fn set(&mut self, setting: &Setting) -> Result<(), GuestConfigError> {
        *self = std::mem::take(self).with(setting).map_err(GuestConfigError::Json)?;
        Ok(())
    }

    /// Whether the registry serves plain HTTP.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.typed().ok().and_then(|config| config.tls).is_some_and(|tls| tls.mode() == Mode::Off)
    }

    /// Adds `name` to the names of the certificate.
    pub fn add_name(&mut self, name: &str) {
        let names = self.json.entry("names").or_insert_with(|| json!([]));
        if let Some(names) = names.as_array_mut()
            && !names.iter().any(|known| known == name)
        {
            names.push(name.into());
        }
    }

    /// Names for the certificate besides the guest's own.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.typed().map(|config| config.names).unwrap_or_default()
    }

    /// Whether the config sets `interfaces`.
    #[must_use]
    pub fn has_interfaces(&self) -> bool {
        self.json.contains_key("interfaces")
    }

    /// Replaces `interfaces`.
    pub fn set_interfaces(&mut self, interfaces: Value) {
        self.json.insert("interfaces".into(), interfaces);
    }

    /// Adds what the host knows: the names under which it reaches the guest through a forwarded port, the time if the config sets
    /// none, and the registry's port. The port is set even if it is the default, so that a config on the disk cannot change it.
    pub fn complete(&mut self, publish: Option<SocketAddrV4>, now: Duration) {
        if let Some(publish) = publish {
            for name in ["127.0.0.1", "localhost"] {
                self.add_name(name);
            }
            if !publish.ip().is_unspecified() {
                self.add_name(&publish.ip().to_string());
            }
        }
        self.json.insert("port".into(), self.port().into());
        self.json.entry("clock").or_insert_with(|| json!({ "epochSeconds": now.as_secs_f64() }));
    }

    /// Port of the registry inside the guest.
    #[must_use]
    pub fn port(&self) -> u16 {
        let port = self.typed().map_or(0, |config| config.port);
        u16::try_from(port).ok().filter(|&port| port != 0).unwrap_or(DEFAULT_PORT.get())
    }

    /// Port of health, metrics and the CA inside the guest. If the config sets none, chooses a free one and sets it.
    pub fn assign_metrics_port(&mut self) -> u16 {
        let configured = self.typed().ok().and_then(|config| u16::try_from(config.metrics_port).ok()).filter(|&port| port != 0);
        let listeners = self.listener_ports();
        let taken = |port: &u16| *port == self.port() || listeners.iter().any(|(other, _)| other == port);
        let port = configured.unwrap_or_else(|| METRICS_PORTS.into_iter().find(|port| !taken(port)).unwrap_or_default());
        self.json.insert("metricsPort".into(), port.into());
        port
    }

    /// The serials to give to `count` disks so that the guest serves them. If the config selects no disks and `count` is more than
    /// 1, makes boot wait for all of them.
    pub fn assign_disk_serials(&mut self, count: usize) -> Vec<String> {
        let config = self.typed().unwrap_or_default();
        let exact =
            |choice: &DiskChoice| Some(choice.serial.clone()).filter(|serial| !serial.is_empty() && !serial.ends_with('*'));
        // The disks match the choices in order.
        let mut configured: Vec<Option<String>> = config.disks.iter().map(exact).collect();
        if let Some(serial) = config.disk.map(|disk| disk.serial).filter(|serial| !serial.is_empty()) {
            configured.insert(0, Some(serial));
        }
        let defaults = [SERIAL.to_owned()].into_iter().chain((1..).map(|number| format!("{SERIAL}-{number}")));
        // The number in a default serial is the disk's index, even if the first disk has another serial.
        let mut defaults = defaults.skip(usize::from(configured.first().is_some_and(Option::is_some)));
        let mut next_default =
            || defaults.find(|serial| !configured.iter().flatten().any(|other| other == serial)).unwrap_or_default();
        let serials: Vec<String> =
            (0..count).map(|index| configured.get(index).cloned().flatten().unwrap_or_else(&mut next_default)).collect();
        if count > 1 && config.disks.is_empty() {
            let exact = serials.iter().map(|serial| json!({ "serial": serial }));
            self.json.insert("disks".into(), exact.chain([json!({ "serial": format!("{SERIAL}-*") })]).collect());
            if let Some(disk) = self.json.get_mut("disk").and_then(Value::as_object_mut) {
                disk.remove("serial");
            }
        }
        serials
    }

    /// Ports of the further listeners inside the guest, without duplicates, and whether each speaks plain HTTP.
    #[must_use]
    pub fn listener_ports(&self) -> Vec<(u16, bool)> {
        let config = self.typed().unwrap_or_default();
        let off = config.tls.unwrap_or_default().mode() == Mode::Off;
        let plain = |one: &Listener| match one.transport() {
            Transport::Unspecified => off,
            Transport::Plain => true,
            Transport::Tls => false,
        };
        let ports =
            config.listeners.iter().filter_map(|one| Some((u16::try_from(one.port).ok().filter(|&port| port != 0)?, plain(one))));
        ports.fold(Vec::new(), |mut ports, one| {
            if !ports.iter().any(|(port, _)| *port == one.0) {
                ports.push(one);
            }
            ports
        })
    }

    /// The config as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        Value::Object(self.json.clone()).to_string()
    }

    /// Parses the config and checks the ports, to which the host forwards.
    fn typed(&self) -> Result<Config, serde_json::Error> {
        let config: Config = serde_json::from_value(Value::Object(self.json.clone()))?;
        let listeners = config.listeners.iter().map(|one| ("listeners: port", one.port));
        for (key, port) in [("port", config.port), ("metricsPort", config.metrics_port)].into_iter().chain(listeners) {
            if port > u32::from(u16::MAX) {
                return Err(serde_json::Error::custom(format!("{key} is {port}; expected 1 to 65535")));
            }
        }
        Ok(config)
    }
}

/// Converts the keys of `json` to lowerCamelCase (proto3 JSON also accepts the proto's field names) and drops nulls, which set
/// nothing.
fn canonical(json: Map<String, Value>) -> Map<String, Value> {
    let set = json.into_iter().filter(|(_, value)| !value.is_null());
    set.map(|(key, value)| (camel_case(&key), canonical_value(value))).collect()
}

fn canonical_value(value: Value) -> Value {
    match value {
        Value::Object(json) => Value::Object(canonical(json)),
        Value::Array(items) => items.into_iter().map(canonical_value).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const PUBLISH: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

    fn parsed(text: &str) -> GuestConfig {
        GuestConfig::parse(text.as_bytes()).unwrap()
    }

    fn set(settings: &[&str]) -> Value {
        let mut config = GuestConfig::default();
        for setting in settings {
            config.set(&setting.parse().unwrap()).unwrap();
        }
        Value::Object(config.json)
    }

    #[test]
    fn setting_is_parsed_as_the_type_of_its_key() {
        for (setting, json) in [
            ("hostname=registry", json!({ "hostname": "registry" })),
            ("hostname=123", json!({ "hostname": "123" })),
            ("hostname=", json!({ "hostname": "" })),
            ("port=443", json!({ "port": 443 })),
            ("trace=false", json!({ "trace": false })),
            ("tls.mode=OFF", json!({ "tls": { "mode": "OFF" } })),
            ("disk.wait_seconds=9", json!({ "disk": { "waitSeconds": 9 } })),
            ("names=a.example,10.1.0.82", json!({ "names": ["a.example", "10.1.0.82"] })),
            ("names=", json!({ "names": [] })),
            (r#"names=["a"]"#, json!({ "names": ["a"] })),
            (r#"interfaces=[{"mtu":1400}]"#, json!({ "interfaces": [{ "mtu": 1400 }] })),
            ("limits.stall_seconds=60", json!({ "limits": { "stallSeconds": 60 } })),
            ("hostname=a=b", json!({ "hostname": "a=b" })),
        ] {
            assert_eq!(set(&[setting]), json, "{setting}");
        }
    }

    #[test]
    fn later_setting_wins_and_leaves_other_keys_unchanged() {
        let json = json!({ "disk": { "serial": "b", "waitSeconds": 1 }, "names": ["c"] });
        assert_eq!(set(&["disk.serial=a", "disk.waitSeconds=1", "names=a,b", "disk.serial=b", "names=c"]), json);
    }

    #[test]
    fn unknown_keys_and_invalid_values_are_rejected() {
        for (setting, message) in [
            (
                "port",
                "expected KEY=VALUE with nested keys joined by dots, such as hostname=registry, tls.mode=OFF or names=a.example,10.1.0.82",
            ),
            (
                "=1",
                "expected KEY=VALUE with nested keys joined by dots, such as hostname=registry, tls.mode=OFF or names=a.example,10.1.0.82",
            ),
            (
                "hostnam=x",
                "hostnam cannot be set to \"x\": unknown key hostnam; expected one of hostname, names, port, tls, interfaces, disk, clock, \
                 trace, auth, metricsPort, limits, heartbeatSeconds, listeners, disks, verify, faults",
            ),
            ("tls.mod=OFF", "tls.mod cannot be set to \"OFF\": unknown key tls.mod; expected tls.mode"),
            (
                "tls.mode.x=OFF",
                "tls.mode.x cannot be set to \"OFF\": tls.mode is {\"x\":\"OFF\"}; expected GENERATE, PROVIDED, OFF or SIGN",
            ),
            ("tls.mode=off", "tls.mode cannot be set to \"off\": expected GENERATE, PROVIDED, OFF or SIGN"),
            ("port=x", "port cannot be set to \"x\": expected a TCP port from 1 to 65535"),
            ("port=-1", "port cannot be set to \"-1\": expected a TCP port from 1 to 65535"),
            ("interfaces=x", "interfaces cannot be set to \"x\": expected a list of interfaces, numbered from 0 without a gap"),
            (
                "interfaces=[{\"mtu\":\"x\"}]",
                "interfaces cannot be set to \"[{\\\"mtu\\\":\\\"x\\\"}]\": interfaces.0.mtu is \"x\"; expected a packet size in bytes from \
                 1280 to 65535",
            ),
            ("metricsPort=70000", "metricsPort cannot be set to \"70000\": metricsPort is 70000; expected 1 to 65535"),
            ("port=70000", "port cannot be set to \"70000\": port is 70000; expected 1 to 65535"),
            ("limits.stallSeconds=long", "limits.stallSeconds cannot be set to \"long\": expected seconds from 1 to 3600"),
            ("trace=maybe", "trace cannot be set to \"maybe\": expected true or false"),
        ] {
            assert_eq!(setting.parse::<Setting>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn config_file_is_checked_and_only_its_keys_are_set() {
        let config = parsed(r#"{"trace": false, "clock": {"epoch_seconds": 0}, "port": 5001, "tls": null}"#);
        assert_eq!(config.to_json(), r#"{"clock":{"epochSeconds":0},"port":5001,"trace":false}"#);
        let error = GuestConfig::parse(b"{\n\"prot\": 1}").unwrap_err();
        assert!(error.to_string().starts_with("line 2: unknown key prot; expected one of hostname, names, port, "), "{error}");
        let error = GuestConfig::parse(b"{\"port\": \"x\"}").unwrap_err();
        assert_eq!(error.to_string(), "line 1: port is \"x\"; expected a TCP port from 1 to 65535");
        for text in ["", "[]", "7", "{\"port\":1,\"port\":2}", "{\"port\":65536}", "\u{0}"] {
            assert!(matches!(GuestConfig::parse(text.as_bytes()), Err(GuestConfigError::Json(_))), "{text}");
        }
    }

    #[test]
    fn each_disk_gets_a_serial_that_the_guest_selects() {
        let take = |json: &str, count: usize| {
            let mut config = parsed(json);
            let serials = config.assign_disk_serials(count).join(" ");
            (serials, config.to_json())
        };
        let both = |serials: &str, json: &str| (serials.to_owned(), json.to_owned());
        assert_eq!(take("{}", 1), both("localregistry", "{}"));
        assert_eq!(take(r#"{"disk":{"serial":"a"}}"#, 1), both("a", r#"{"disk":{"serial":"a"}}"#));
        let list =
            |first: &str| format!(r#"{{"serial":"{first}"}},{{"serial":"localregistry-1"}},{{"serial":"localregistry-*"}}"#);
        assert_eq!(take("{}", 2), both("localregistry localregistry-1", &format!(r#"{{"disks":[{}]}}"#, list("localregistry"))));
        assert_eq!(
            take(r#"{"disk":{"serial":"a","waitSeconds":9}}"#, 2),
            both("a localregistry-1", &format!(r#"{{"disk":{{"waitSeconds":9}},"disks":[{}]}}"#, list("a")))
        );
        let json = r#"{"disks":[{"label":"x"},{"serial":"b"},{"serial":"c*"}]}"#;
        assert_eq!(take(json, 3), both("localregistry b localregistry-1", json));
        let taken = r#"{"disks":[{"path":"/dev/vda"},{"serial":"localregistry"}]}"#;
        assert_eq!(take(taken, 2), both("localregistry-1 localregistry", taken));
        let late = r#"{"disks":[{"path":"/dev/vda"},{"serial":"late"}]}"#;
        assert_eq!(take(late, 1), both("localregistry", late));
        let label = r#"{"disks":[{"label":"x"}]}"#;
        assert_eq!(take(label, 1), both("localregistry", label));
    }

    #[test]
    fn metrics_port_is_assigned_unless_configured() {
        for (json, expected) in [
            ("{}", 9090),
            (r#"{"port": 9090}"#, 9091),
            (r#"{"metricsPort": 81}"#, 81),
            (r#"{"metricsPort": 0}"#, 9090),
            (r#"{"port": 9090, "listeners": [{"port": 9091}]}"#, 9092),
        ] {
            let mut config = parsed(json);
            assert_eq!(config.assign_metrics_port(), expected, "{json}");
            assert!(config.to_json().contains(&format!("\"metricsPort\":{expected}")), "{}", config.to_json());
        }
    }

    #[test]
    fn listener_ports_are_listed_with_their_protocol() {
        let config = parsed(
            r#"{"listeners": [{"port": 80, "transport": "PLAIN"}, {"port": 443}, {"address": "10.1.0.82", "port": 443}, {}]}"#,
        );
        assert_eq!(config.listener_ports(), [(80, true), (443, false)]);
        let off = parsed(r#"{"tls": {"mode": "OFF"}, "listeners": [{"port": 81}]}"#);
        assert_eq!(off.listener_ports(), [(81, true)]);
        let error = GuestConfig::parse(br#"{"listeners": [{"port": 65536}]}"#).unwrap_err();
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "listeners: port is 65536; expected 1 to 65535");
    }

    #[test]
    fn completing_adds_host_names_port_and_time() {
        let mut config = parsed(r#"{"names": ["localhost", "registry.example"]}"#);
        config.complete(Some(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), 443)), Duration::from_millis(1_793_491_200_250));
        let json = r#"{"clock":{"epochSeconds":1793491200.25},"names":["localhost","registry.example","127.0.0.1","127.0.0.2"],"port":5000}"#;
        assert_eq!(config.to_json(), json);

        let mut config = parsed(r#"{"clock": {"epochSeconds": 7}, "port": 443, "disk": {"serial": "other"}}"#);
        config.complete(Some(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 443)), Duration::ZERO);
        let json = r#"{"clock":{"epochSeconds":7},"disk":{"serial":"other"},"names":["127.0.0.1","localhost"],"port":443}"#;
        assert_eq!(config.to_json(), json);
        assert_eq!(config.port(), 443);
        config.complete(Some(PUBLISH), Duration::ZERO);
        assert_eq!(config.to_json(), json);

        let mut config = parsed(r#"{"names": ["registry.example"]}"#);
        assert!(!config.has_interfaces());
        config.set_interfaces(json!([{ "mac": "52:00:00:00:00:01" }]));
        assert!(config.has_interfaces());
        config.complete(None, Duration::from_secs(9));
        let json = r#"{"clock":{"epochSeconds":9.0},"interfaces":[{"mac":"52:00:00:00:00:01"}],"names":["registry.example"],"port":5000}"#;
        assert_eq!(config.to_json(), json, "nothing is forwarded");
    }
}
