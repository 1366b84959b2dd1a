//! Parses one source of the config into a [`PartialConfig`] with known keys and valid values, and merges such configs.

use serde_json::{Map, Value};

use super::merge::merge;
use crate::proto::Config;
use crate::text::json_fault;

use super::keys::{self, Key, Kind};
use super::settings::Settings;
use super::{ConfigError, MAX_BYTES, Origin, cmdline, kernel_ip};

/// Longest value shown in an error message, in characters.
const MAX_SHOWN: usize = 80;

/// Prefix of the options that belong to this config.
const PREFIX: &str = "localregistry.";

/// What pbjson says of a number that its field cannot have.
const LIBRARY_NUMBER: &str = "data did not match any variant of untagged enum Content";

/// Keys and values of one source, or of several merged ones, as proto3 JSON with lowerCamelCase names.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PartialConfig(Map<String, Value>);

impl PartialConfig {
    /// Parses `text`, one JSON object.
    ///
    /// # Errors
    /// Fails if it is longer than [`MAX_BYTES`], is not a JSON object, or has an unknown key or an invalid value.
    pub fn from_json(origin: Origin, text: &[u8]) -> Result<Self, ConfigError> {
        if text.len() as u64 > MAX_BYTES {
            return Err(ConfigError::TooLarge { origin });
        }
        let syntax = |error: serde_json::Error| ConfigError::Syntax { origin, problem: error.to_string() };
        let value: Value = serde_json::from_slice(text).map_err(syntax)?;
        let Value::Object(map) = value else {
            return Err(ConfigError::Syntax { origin, problem: format!("it is {}", shown(&value)) });
        };
        let partial = Self(object(origin, "", &map)?);
        // Parse the text again: duplicate keys are no longer visible in the map. Numbers of a plan of faults were not compared with their
        // types, and the library calls them by a name of its own.
        let number = |problem: String| problem.replace(LIBRARY_NUMBER, "a number is out of range, or is not a whole one,");
        let wrong = |error: serde_json::Error| ConfigError::Syntax { origin, problem: number(error.to_string()) };
        let config: Config = serde_json::from_slice(text).map_err(wrong)?;
        Settings::parse(&config, origin)?;
        Ok(partial)
    }

    /// Parses the options of `line` that start with `localregistry.` and merges them over the keys of `ip=`. Of duplicate options
    /// the last wins, as with the kernel's own.
    ///
    /// # Errors
    /// Fails if an option has an unknown key or an invalid value.
    pub fn from_command_line(line: &str) -> Result<Self, ConfigError> {
        let origin = Origin::CommandLine;
        let options = cmdline::options(line);
        let mut map = kernel_ip::partial_config(&options).map_err(|value| ConfigError::BadValue {
            origin,
            key: kernel_ip::KEY.to_owned(),
            value: shown(&value.into()),
            expected: kernel_ip::EXPECTED.into(),
        })?;
        for (name, value) in options {
            let Some(name) = name.strip_prefix(PREFIX) else { continue };
            let path = name.split('.').map(camel_case).collect::<Vec<_>>().join(".");
            let key = keys::find(&path).filter(|key| key.has_value());
            let key = key.ok_or_else(|| ConfigError::UnknownKey { origin, key: name.to_owned() })?;
            let bad = |value: &Value| ConfigError::BadValue {
                origin,
                key: path.clone(),
                value: shown(value),
                expected: key.expected(),
            };
            let value = from_text(key, value.ok_or_else(|| bad(&Value::Null))?);
            if !key.accepts(&value) {
                return Err(bad(&value));
            }
            insert(&mut map, &path, value)?;
        }
        let partial = Self(map);
        partial.settings(origin)?;
        Ok(partial)
    }

    /// Merges `over` into this config. Values in `over` win key by key, and a list replaces a list.
    #[must_use]
    pub fn overridden_by(mut self, over: Self) -> Self {
        merge(&mut self.0, over.0);
        self
    }

    /// Checks that this config, read from a disk, does not select disks.
    ///
    /// # Errors
    /// Fails if it does.
    pub fn without_disk(self) -> Result<Self, ConfigError> {
        let key =
            self.0.get("disk").and_then(Value::as_object).and_then(|disk| disk.keys().next()).map(|key| format!("disk.{key}"));
        match key.or_else(|| self.0.contains_key("disks").then(|| "disks".to_owned())) {
            Some(key) => Err(ConfigError::DiskOnDisk { origin: Origin::Disk, key }),
            None => Ok(self),
        }
    }

    /// The settings of this config, with defaults for all other keys.
    ///
    /// # Errors
    /// Fails if a value is invalid.
    pub fn settings(&self, origin: Origin) -> Result<Settings, ConfigError> {
        // By the parser of `from_json`: that of values is another one, which takes 75 kB of the guest.
        let text = Value::Object(self.0.clone()).to_string();
        // Nobody wrote the text that a position would be of.
        let wrong = |error| ConfigError::Syntax { origin, problem: json_fault(&error) };
        let config: Config = serde_json::from_slice(text.as_bytes()).map_err(wrong)?;
        Settings::parse(&config, origin)
    }
}

/// Converts the keys of `map` to lowerCamelCase (proto3 JSON also accepts the proto's field names) and checks that each is known
/// and has a value of its type.
pub(super) fn object(origin: Origin, prefix: &str, map: &Map<String, Value>) -> Result<Map<String, Value>, ConfigError> {
    let entries = map.iter().map(|(name, value)| {
        let name = camel_case(name);
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        Ok((name, checked(origin, &path, value)?))
    });
    entries.collect()
}

fn checked(origin: Origin, path: &str, value: &Value) -> Result<Value, ConfigError> {
    let key = keys::find(path).ok_or_else(|| ConfigError::UnknownKey { origin, key: path.to_owned() })?;
    if !key.accepts(value) {
        return Err(ConfigError::BadValue { origin, key: path.to_owned(), value: shown(value), expected: key.expected() });
    }
    match (key.kind, value) {
        (Kind::Object, Value::Object(map)) => object(origin, path, map).map(Value::Object),
        (Kind::Objects, Value::Array(items)) => {
            items.iter().enumerate().map(|(index, item)| checked(origin, &format!("{path}.{index}"), item)).collect()
        }
        (_, value) => Ok(value.clone()),
    }
}

/// Parses `text` from the command line as the type of `key`.
fn from_text(key: &Key, text: String) -> Value {
    match (key.kind, text.as_str()) {
        (Kind::Texts, "") => Value::Array(Vec::new()),
        (Kind::Texts, list) => list.split(',').map(Value::from).collect(),
        (Kind::Bool, "true" | "1") => Value::Bool(true),
        (Kind::Bool, "false" | "0") => Value::Bool(false),
        (Kind::Plan, json) => serde_json::from_str(json).unwrap_or(Value::String(text)),
        _ => Value::String(text),
    }
}

/// Inserts `value` at `path` and creates missing parents. A number in `path` is an index into a list, at most one past its end.
fn insert(map: &mut Map<String, Value>, path: &str, value: Value) -> Result<(), ConfigError> {
    let parts: Vec<_> = path.split('.').collect();
    let (object, field) = match parts.as_slice() {
        [list, index, field] => (item(map, list, index), field),
        [outer, field] => (map.entry(*outer).or_insert_with(|| Value::Object(Map::new())).as_object_mut(), field),
        _ => (Some(map), &path),
    };
    let object = object.ok_or_else(|| ConfigError::BadValue {
        origin: Origin::CommandLine,
        key: path.to_owned(),
        value: shown(&value),
        expected: parts.first().and_then(|list| keys::find(list)).map(Key::expected).unwrap_or_default(),
    })?;
    object.insert((*field).to_owned(), value);
    Ok(())
}

/// The object at `index` of the list named `list`. An index one past the end appends an object; a larger one gives `None`.
fn item<'a>(map: &'a mut Map<String, Value>, list: &str, index: &str) -> Option<&'a mut Map<String, Value>> {
    let items = map.entry(list).or_insert_with(|| Value::Array(Vec::new())).as_array_mut()?;
    let index: usize = index.parse().ok()?;
    if index == items.len() {
        items.push(Value::Object(Map::new()));
    }
    items.get_mut(index)?.as_object_mut()
}

/// Converts a name such as `wait_seconds` to `waitSeconds`.
pub(super) fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut name, part| {
        let mut characters = part.chars();
        name.extend(characters.next().map(|first| first.to_ascii_uppercase()));
        name.push_str(characters.as_str());
        name
    })
}

/// `value` as JSON for an error message, cut to [`MAX_SHOWN`] characters; "not given" for null.
fn shown(value: &Value) -> String {
    if value.is_null() {
        return "not given".to_owned();
    }
    let text = value.to_string();
    if text.chars().count() <= MAX_SHOWN { text } else { text.chars().take(MAX_SHOWN).chain("…".chars()).collect() }
}
