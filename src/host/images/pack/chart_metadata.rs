//! The metadata of a Helm chart, read and judged as Helm does: by its YAML library (`sigs.k8s.io/yaml`), by Go's JSON decoder, and by
//! `Metadata.Validate` and `Dependency.Validate` in Helm's `pkg/chart/v2`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Number, Value};
use serde_saphyr::options::NonFiniteFloatPolicy;

use crate::oci::json::{known_fields, null_as_default};

/// The API version of a chart that has none: one of Helm 2 (`pkg/chart/v2/loader/load.go`).
const FIRST_API: &str = "v1";
/// What the keys of the image specification's annotations begin with.
const PREDEFINED: &str = "org.opencontainers.image.";

/// The metadata of a chart, with Helm's field names and order (Helm, `pkg/chart/v2/metadata.go`). Helm drops other fields, and empty ones.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    home: String,
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    sources: Vec<String>,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub version: String,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    keywords: Vec<String>,
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    maintainers: Vec<Option<Maintainer>>,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    icon: String,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    api_version: String,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    condition: String,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    tags: String,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    app_version: String,
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "is_false")]
    deprecated: bool,
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, Text>,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    kube_version: String,
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    dependencies: Vec<Option<Dependency>>,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    r#type: String,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Maintainer {
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    email: String,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    url: String,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case")]
struct Dependency {
    #[serde(deserialize_with = "text")]
    name: String,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    version: String,
    #[serde(deserialize_with = "text")]
    repository: String,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    condition: String,
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "is_false")]
    enabled: bool,
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    import_values: Vec<Value>,
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    alias: String,
}

// The names of the fields, which Go's JSON decoder matches in any case.
const FIELDS: [&str; 17] = [
    "name",
    "home",
    "sources",
    "version",
    "description",
    "keywords",
    "maintainers",
    "icon",
    "apiVersion",
    "condition",
    "tags",
    "appVersion",
    "deprecated",
    "annotations",
    "kubeVersion",
    "dependencies",
    "type",
];
const MAINTAINER_FIELDS: [&str; 3] = ["name", "email", "url"];
const DEPENDENCY_FIELDS: [&str; 8] = ["name", "version", "repository", "condition", "tags", "enabled", "import-values", "alias"];

impl Metadata {
    /// Reads the first document of `yaml`.
    ///
    /// # Errors
    /// Fails with a sentence, without the file's name, if Helm would not load the chart.
    pub fn parse(yaml: &[u8]) -> Result<Self, String> {
        let mut document = match document(yaml)? {
            Value::Object(fields) => known_fields(fields, &FIELDS),
            Value::Null => Map::new(),
            other => return Err(format!("it is {}; a map of fields is expected", kind(&other))),
        };
        for (list, fields) in [("maintainers", &MAINTAINER_FIELDS[..]), ("dependencies", &DEPENDENCY_FIELDS)] {
            for item in document.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                match item {
                    Value::Object(item) => *item = known_fields(std::mem::take(item), fields),
                    Value::Null => {}
                    other => return Err(format!("{list} has an item that is {}; a map is expected", kind(other))),
                }
            }
        }
        let is_wrong = |(field, value): &(&String, &Value)| {
            let one = Map::from_iter([((*field).clone(), (*value).clone())]);
            serde_json::from_value::<Self>(Value::Object(one)).is_err()
        };
        if let Some((field, value)) = document.iter().find(is_wrong) {
            return Err(wrong_type(field, value));
        }
        let mut metadata: Self = serde_json::from_value(Value::Object(document)).map_err(|error| error.to_string())?;
        metadata.validate()?;
        Ok(metadata)
    }

    /// The annotations of the manifest (Helm, `pkg/registry`: `generateOCIAnnotations`), but for the time of the push.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let author = |author: &Maintainer| match author.email.as_str() {
            "" => author.name.clone(),
            email => format!("{} ({email})", author.name),
        };
        let authors: Vec<String> = self.maintainers.iter().flatten().map(author).collect();
        let described = [
            ("title", self.name.as_str()),
            ("version", &self.version),
            ("description", &self.description),
            ("url", &self.home),
            ("source", self.sources.first().map_or("", String::as_str)),
            ("authors", &authors.join(", ")),
        ];
        let described = described.into_iter().filter(|(_, value)| !value.trim().is_empty());
        let mut annotations: BTreeMap<String, String> =
            described.map(|(key, value)| (format!("{PREDEFINED}{key}"), value.to_owned())).collect();
        // The chart's own ones go first, but do not change what it is.
        let is_fixed = |key: &str| matches!(key.strip_prefix(PREDEFINED), Some("title" | "version"));
        let own = self.annotations.iter().filter(|(key, _)| !is_fixed(key));
        annotations.extend(own.map(|(key, value)| (key.clone(), value.0.clone())));
        annotations
    }

    /// Removes what cannot be printed, and judges the rest.
    fn validate(&mut self) -> Result<(), String> {
        let Self { name, description, home, icon, condition, tags, app_version, kube_version, .. } = self;
        [name, description, home, icon, condition, tags, app_version, kube_version].into_iter().for_each(sanitize);
        self.sources.iter_mut().chain(&mut self.keywords).for_each(sanitize);
        if self.api_version.is_empty() {
            FIRST_API.clone_into(&mut self.api_version);
        }
        let Self { name, version, r#type, .. } = self;
        if name.is_empty() {
            return Err("the name is empty".to_owned());
        }
        if name == "." || name == ".." {
            return Err(format!("the name {name:?} is a folder's, which Helm does not load"));
        }
        // The root alone is a base name, by which Helm judges.
        if name.contains('/') && name != "/" {
            return Err(format!("the name {name:?} has a slash, which Helm does not load"));
        }
        if version.is_empty() {
            return Err("the version is empty".to_owned());
        }
        if !is_version(version) {
            return Err(format!("the version {version:?} is not MAJOR.MINOR.PATCH of Semantic Versioning, which Helm wants"));
        }
        if !["", "application", "library"].contains(&r#type.as_str()) {
            return Err(format!("the type is {:?}; application or library is expected", r#type));
        }
        for maintainer in &mut self.maintainers {
            let Some(Maintainer { name, email, url }) = maintainer else { return Err(empty_item("maintainers")) };
            [name, email, url].into_iter().for_each(sanitize);
        }
        let mut names = BTreeSet::new();
        for dependency in &mut self.dependencies {
            let dependency = dependency.as_mut().ok_or_else(|| empty_item("dependencies"))?;
            dependency.validate()?;
            let Dependency { name, alias, .. } = dependency;
            let name = if alias.is_empty() { name } else { alias };
            if !names.insert(name.clone()) {
                return Err(format!("two dependencies have the name or alias {name:?}; give one of them another alias"));
            }
        }
        Ok(())
    }
}

impl Dependency {
    fn validate(&mut self) -> Result<(), String> {
        let Self { name, version, repository, condition, tags, alias, .. } = self;
        [&mut *name, version, repository, condition].into_iter().chain(tags).for_each(sanitize);
        let is_allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
        match alias.chars().all(is_allowed) {
            true => Ok(()),
            false => Err(format!(
                "the dependency {name:?} has the alias {alias:?}; an alias has only letters, digits, underscores and hyphens"
            )),
        }
    }
}

/// The first document of `yaml`; null if there is none.
fn document(yaml: &[u8]) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        // As the YAML library of Helm.
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
    };
    let mut reader = yaml;
    let first = serde_saphyr::read_with_options(&mut reader, options).next();
    first.transpose().map(Option::unwrap_or_default).map_err(|error: serde_saphyr::Error| {
        if let Err(wrong) = std::str::from_utf8(yaml)
            && error.location().is_none()
        {
            let before = yaml.get(..wrong.valid_up_to()).unwrap_or_default();
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            return format!("it cannot be read as YAML: line {line} is not UTF-8; save the file as UTF-8");
        }
        let place = error.location().map(|at| format!(" in line {}, column {}", at.line(), at.column())).unwrap_or_default();
        // The library's own words are for its users.
        format!("it cannot be read as YAML{place}; check the indentation, quotes, brackets and aliases there")
    })
}

/// A text, or a scalar in its place.
#[derive(Debug, Serialize)]
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            Value::Number(number) => number_text(&number),
            Value::Bool(value) => value.to_string(),
            Value::Null => String::new(),
            Value::Array(_) | Value::Object(_) => return Err(serde::de::Error::custom("a text is expected")),
        }))
    }
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Text::deserialize(deserializer).map(|text| text.0)
}

fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let texts: Vec<Text> = null_as_default(deserializer)?;
    Ok(texts.into_iter().map(|text| text.0).collect())
}

/// A number where text is expected, in the form of `sigs.k8s.io/yaml`: `FormatFloat(number, 'g', -1, 32)` of Go for fractions, so that
/// `1.10` is `1.1`.
fn number_text(number: &Number) -> String {
    if !number.is_f64() {
        return number.to_string();
    }
    #[expect(clippy::cast_possible_truncation, reason = "the form has the precision of 32 bits")]
    let value = number.as_f64().unwrap_or_default() as f32;
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or_default() {
        -4..=5 => value.to_string(),
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn empty_item(list: &str) -> String {
    format!("{list} has an empty item; remove it")
}

/// What a value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// The message about a field of another type than Helm's.
fn wrong_type(field: &str, value: &Value) -> String {
    let expected = match field {
        "sources" | "keywords" => "a list of texts",
        "maintainers" | "dependencies" => "a list of maps with texts",
        "annotations" => "a map of texts",
        "deprecated" => "true or false",
        _ => "text",
    };
    let found = match value {
        Value::Array(_) | Value::Object(_) if expected.starts_with(kind(value)) => "has an item of another kind".to_owned(),
        _ => format!("is {}", kind(value)),
    };
    format!("{field} {found}; {expected} is expected")
}

/// Makes every white space a blank, and removes characters that cannot be printed (Go, `unicode.IsSpace` and `IsPrint`).
fn sanitize(text: &mut String) {
    let kept = |character: char| if character.is_whitespace() { Some(' ') } else { is_printable(character).then_some(character) };
    *text = text.chars().filter_map(kept).collect();
}

fn is_printable(character: char) -> bool {
    // Behind another character, a combining mark is printable.
    let escaped: String = ['a', character].iter().collect::<String>().escape_debug().skip(1).collect();
    !escaped.starts_with("\\u{") && escaped != "\\0"
}

/// Whether Helm takes the version: one to three numbers of 64 bits, also after a `v`, then a pre-release, in which no number starts with 0,
/// and a build (`NewVersion` of Masterminds/semver, by which Helm validates metadata).
fn is_version(text: &str) -> bool {
    let split = |text, at| <str>::split_once(text, at).map_or((text, None), |(before, after)| (before, Some(after)));
    let (text, build) = split(text, '+');
    let (core, pre_release) = split(text, '-');
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()) && part.parse::<u64>().is_ok();
    let is_identifier = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let mut numbers = core.strip_prefix('v').unwrap_or(core).split('.');
    let is_plain = |part: &str| part.len() == 1 || !part.starts_with('0') || !is_number(part);
    let suffixes = pre_release.into_iter().chain(build);
    pre_release.is_none_or(|list| list.split('.').all(is_plain))
        && numbers.clone().count() <= 3
        && numbers.all(is_number)
        && suffixes.flat_map(|list| list.split('.')).all(is_identifier)
}
