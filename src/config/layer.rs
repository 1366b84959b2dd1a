//! One source of the config, checked by itself, and how sources are laid over each other. What enters is a source's text; what
//! leaves is a [`Layer`] whose keys and values are all good, or the error that names the first that is not.

use serde_json::{Map, Value};

use super::merge::lay;
use crate::proto::Config;

use super::keys::{self, Kind};
use super::settings::Settings;
use super::{ConfigError, LARGEST, Origin, cmdline, kernel_ip};

/// Longest value shown in an error, in characters.
const SHOWN: usize = 80;

/// Prefix of our options on the kernel command line.
const PREFIX: &str = "localregistry.";

/// Keys and values of one source, or of several laid over each other: proto3 JSON in lowerCamelCase.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Layer(Map<String, Value>);

impl Layer {
    /// The config in `text`, which must be one JSON object.
    ///
    /// # Errors
    /// When it is too long, no JSON object, or has a key or value that no config has.
    pub fn from_json(origin: Origin, text: &[u8]) -> Result<Self, ConfigError> {
        if text.len() as u64 > LARGEST {
            return Err(ConfigError::TooLarge { origin });
        }
        let syntax = |error: serde_json::Error| ConfigError::Syntax { origin, problem: error.to_string() };
        let value: Value = serde_json::from_slice(text).map_err(syntax)?;
        let Value::Object(map) = value else {
            return Err(ConfigError::Syntax { origin, problem: format!("it is {}", shown(&value)) });
        };
        let layer = Self(object(origin, "", &map)?);
        // The text once more, since a key that is there twice has gone from the map.
        let config: Config = serde_json::from_slice(text).map_err(syntax)?;
        Settings::parse(&config, origin)?;
        Ok(layer)
    }

    /// The config in the options of `line` that start with `localregistry.`, laid over what `ip=` says; of a key that is there twice the last counts, as
    /// with the kernel's own options.
    ///
    /// # Errors
    /// When one has a key or value that no config has.
    pub fn from_command_line(line: &str) -> Result<Self, ConfigError> {
        let origin = Origin::CommandLine;
        let options = cmdline::options(line);
        let mut map = kernel_ip::layer(&options).map_err(|value| ConfigError::BadValue {
            origin,
            key: kernel_ip::KEY.to_owned(),
            value: shown(&value.into()),
            expected: kernel_ip::EXPECTED,
        })?;
        for (name, value) in options {
            let Some(name) = name.strip_prefix(PREFIX) else { continue };
            let path = name.split('.').map(camel_case).collect::<Vec<_>>().join(".");
            let key = keys::find(&path).ok_or_else(|| ConfigError::UnknownKey { origin, key: name.to_owned() })?;
            let bad =
                |value: &Value| ConfigError::BadValue { origin, key: path.clone(), value: shown(value), expected: key.expected };
            let value = value.ok_or_else(|| bad(&Value::Null)).map(|text| from_text(key.kind, text))?;
            if !keys::accepts(key.kind, &value) {
                return Err(bad(&value));
            }
            insert(&mut map, &path, value)?;
        }
        let layer = Self(map);
        layer.settings(origin)?;
        Ok(layer)
    }

    /// This layer with `over` laid over it: `over`'s values win, key by key; a list replaces a list.
    #[must_use]
    pub fn under(mut self, over: Self) -> Self {
        lay(&mut self.0, over.0);
        self
    }

    /// This layer, which must not say which disk to take: it stands on that disk.
    ///
    /// # Errors
    /// When it does.
    pub fn without_disk(self) -> Result<Self, ConfigError> {
        let key =
            self.0.get("disk").and_then(Value::as_object).and_then(|disk| disk.keys().next()).map(|key| format!("disk.{key}"));
        match key.or_else(|| self.0.contains_key("disks").then(|| "disks".to_owned())) {
            Some(key) => Err(ConfigError::DiskOnDisk { origin: Origin::Disk, key }),
            None => Ok(self),
        }
    }

    /// What the layer says, with the defaults for all else.
    ///
    /// # Errors
    /// When a value is none that its key takes.
    pub fn settings(&self, origin: Origin) -> Result<Settings, ConfigError> {
        let config: Config = serde_json::from_value(Value::Object(self.0.clone()))
            .map_err(|error| ConfigError::Syntax { origin, problem: error.to_string() })?;
        Settings::parse(&config, origin)
    }
}

/// `map` with its keys in lowerCamelCase (proto3 JSON takes the names of the `.proto` too), all known and each with a value of
/// its kind.
fn object(origin: Origin, prefix: &str, map: &Map<String, Value>) -> Result<Map<String, Value>, ConfigError> {
    let entries = map.iter().map(|(name, value)| {
        let name = camel_case(name);
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        Ok((name, checked(origin, &path, value)?))
    });
    entries.collect()
}

fn checked(origin: Origin, path: &str, value: &Value) -> Result<Value, ConfigError> {
    let bad = |expected| ConfigError::BadValue { origin, key: path.to_owned(), value: shown(value), expected };
    if let Some(expected) = keys::object(path) {
        let map = value.as_object().ok_or_else(|| bad(expected))?;
        return object(origin, path, map).map(Value::Object);
    }
    if let Some(expected) = keys::list_of_objects(path) {
        let items = value.as_array().ok_or_else(|| bad(expected))?.iter().enumerate();
        return items.map(|(place, item)| checked(origin, &format!("{path}.{place}"), item)).collect();
    }
    let key = keys::find(path).ok_or_else(|| ConfigError::UnknownKey { origin, key: path.to_owned() })?;
    if keys::accepts(key.kind, value) { Ok(value.clone()) } else { Err(bad(key.expected)) }
}

/// The value that `text` on the command line means for a key of `kind`.
fn from_text(kind: Kind, text: String) -> Value {
    match (kind, text.as_str()) {
        (Kind::Texts, "") => Value::Array(Vec::new()),
        (Kind::Texts, list) => list.split(',').map(Value::from).collect(),
        (Kind::Bool, "true" | "1") => Value::Bool(true),
        (Kind::Bool, "false" | "0") => Value::Bool(false),
        _ => Value::String(text),
    }
}

/// Puts `value` at `path`, making what lies between; a number in `path` is a place in a list, at most one past its end.
fn insert(map: &mut Map<String, Value>, path: &str, value: Value) -> Result<(), ConfigError> {
    let parts: Vec<_> = path.split('.').collect();
    let (object, field) = match parts.as_slice() {
        [list, place, field] => (item(map, list, place), field),
        [outer, field] => (map.entry(*outer).or_insert_with(|| Value::Object(Map::new())).as_object_mut(), field),
        _ => (Some(map), &path),
    };
    let object = object.ok_or_else(|| ConfigError::BadValue {
        origin: Origin::CommandLine,
        key: path.to_owned(),
        value: shown(&value),
        expected: keys::list_of_objects(parts.first().copied().unwrap_or_default()).unwrap_or_default(),
    })?;
    object.insert((*field).to_owned(), value);
    Ok(())
}

/// The object at `place` of the list named `list`, made where it is the next one; nothing where that would leave a gap.
fn item<'a>(map: &'a mut Map<String, Value>, list: &str, place: &str) -> Option<&'a mut Map<String, Value>> {
    let items = map.entry(list).or_insert_with(|| Value::Array(Vec::new())).as_array_mut()?;
    let place: usize = place.parse().ok()?;
    if place == items.len() {
        items.push(Value::Object(Map::new()));
    }
    items.get_mut(place)?.as_object_mut()
}

/// `wait_seconds` as `waitSeconds`.
fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut name, part| {
        let mut characters = part.chars();
        name.extend(characters.next().map(|first| first.to_ascii_uppercase()));
        name.push_str(characters.as_str());
        name
    })
}

/// `value` for an error: as JSON, cut where it is long; nothing at all is "not given".
fn shown(value: &Value) -> String {
    if value.is_null() {
        return "not given".to_owned();
    }
    let text = value.to_string();
    if text.chars().count() <= SHOWN { text } else { text.chars().take(SHOWN).chain("…".chars()).collect() }
}
