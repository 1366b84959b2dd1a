//! `localregistry schema`: a reference of all JSON that this program reads and prints, as Markdown (`proto/JSON.md`) or as JSON.
//! The messages between launcher and guest come from `proto/` and its comments, the results of `--json` from the commands' result
//! types.

mod page;

use std::collections::HashMap;
use std::io;

use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor};
use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde::Serialize;
use serde_json::{Map, Value};

use super::manual;
use crate::host::boot::{initramfs, kernel};
use crate::host::images::{pack, sample};
use crate::host::inspect::{self, diff};
use crate::host::nodes::trust;
use crate::host::runs::{freeze, ps, pull_log, run, stop};
use crate::host::support::report::Report;
use crate::host::{deploy, doctor, faults, serve};

/// The compiled protobuf descriptors.
const SCHEMA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/messages.binpb"));
/// The messages that are a line or a file of their own. The others are nested in them.
const ROOTS: [&str; 3] = ["localregistry.v1.Event", "localregistry.v1.Command", "localregistry.v1.Config"];

/// The command line of `localregistry schema`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  localregistry schema
      Print the reference as Markdown
  localregistry schema --json
      Print it as JSON")]
pub struct SchemaArgs {}

/// Why the schema cannot be printed.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The embedded descriptors are invalid.
    #[error("the schema of events, commands and config in this program is damaged")]
    Damaged(#[source] prost_reflect::DescriptorError),
    /// Standard output cannot be written to.
    #[error("cannot print the schema")]
    Print(#[source] io::Error),
}

/// All JSON that this program reads and prints.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SchemaResult")]
struct Schema {
    /// What each command prints with `--json`.
    commands: Vec<Output>,
    /// The types, each after the first one that refers to it.
    types: Vec<Type>,
}

/// What a command prints with `--json`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SchemaCommand")]
pub(crate) struct Output {
    /// The command, and the flag that selects this output if one does.
    pub(crate) command: &'static str,
    /// The type's name.
    #[serde(rename = "type")]
    kind: String,
}

/// An object type, or an enumeration of strings.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SchemaType")]
struct Type {
    /// The type's name.
    name: String,
    /// Its description.
    about: String,
    /// Whether it is a message of `proto/`: all its fields may be omitted. In other types only optional fields may be.
    proto: bool,
    /// The fields of an object type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<Field>,
    /// The values of an enumeration.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<EnumValue>,
}

/// A field of an object type.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SchemaField")]
struct Field {
    /// Its name in JSON.
    name: String,
    /// Its type: one of these types by name, or `string`, `integer`, `number`, `boolean`, `decimal string` or `base64`.
    #[serde(rename = "type")]
    kind: String,
    /// Whether `kind` names one of these types.
    #[serde(skip)]
    linked: bool,
    /// Whether it is a list of that type.
    list: bool,
    /// Whether it may be null.
    nullable: bool,
    /// Whether it may be omitted.
    optional: bool,
    /// The choice it belongs to: exactly one field of a choice is present.
    #[serde(skip_serializing_if = "Option::is_none")]
    one_of: Option<String>,
    /// Its description.
    about: String,
}

/// A value of an enumeration.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SchemaValue")]
struct EnumValue {
    /// The string.
    name: String,
    /// Its description.
    about: String,
}

/// What each command prints with `--json`. Registers the types in `generator`.
pub(crate) fn outputs(generator: &mut SchemaGenerator) -> Vec<Output> {
    fn of<T: JsonSchema>(command: &'static str, generator: &mut SchemaGenerator) -> Output {
        let _reference = generator.subschema_for::<T>();
        Output { command, kind: T::schema_name().into_owned() }
    }
    let event = |command| Output { command, kind: "Event".to_owned() };
    vec![
        of::<pack::PackResult>("pack", generator),
        of::<inspect::Document<'_>>("inspect", generator),
        of::<diff::DiffResult>("diff", generator),
        of::<sample::SampleResult>("sample", generator),
        of::<serve::Ready>("serve", generator),
        of::<kernel::KernelResult<'_>>("kernel", generator),
        of::<initramfs::InitramfsResult<'_>>("initramfs", generator),
        of::<run::RunReady>("run", generator),
        event("run --follow"),
        of::<run::RunCommand>("run --print-command", generator),
        of::<doctor::DoctorResult<'_>>("doctor", generator),
        of::<freeze::FreezeResult>("freeze", generator),
        of::<ps::PsResult>("ps", generator),
        of::<stop::StopResult>("stop", generator),
        of::<trust::TrustResult<'_>>("trust", generator),
        event("events"),
        of::<pull_log::assert::AssertResult<'_>>("assert", generator),
        of::<pull_log::assert::AssertFaultResult<'_>>("assert --fault", generator),
        of::<faults::FaultsResult>("faults", generator),
        Output { command: "faults replay", kind: "FaultPlan".to_owned() },
        of::<Schema>("schema", generator),
        of::<deploy::DeployResult<'_>>("deploy", generator),
        of::<manual::ManualResult>("manual", generator),
    ]
}

/// Runs `localregistry schema`. A closed pipe ends it without an error, as with `--help`: it is read by people, in parts.
///
/// # Errors
/// Fails if standard output cannot be written to.
pub fn run(_: &SchemaArgs, report: &Report) -> Result<(), SchemaError> {
    let schema = Schema::read()?;
    match report.result(&schema, &page::of(&schema)) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.map_err(SchemaError::Print),
    }
}

impl Schema {
    fn read() -> Result<Self, SchemaError> {
        let pool = DescriptorPool::decode(SCHEMA).map_err(SchemaError::Damaged)?;
        let comments: Comments = pool.files().flat_map(|file| comments(&file)).collect();
        // Describe the types as they are serialized: fields with a default may be omitted.
        let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
        let mut schema = Self { commands: outputs(&mut generator), types: Vec::new() };
        for message in ROOTS.iter().filter_map(|name| pool.get_message_by_name(name)) {
            schema.add_message(&message, &comments);
        }
        let definitions = generator.take_definitions(true);
        let results: Vec<String> = schema.commands.iter().map(|output| output.kind.clone()).collect();
        results.iter().for_each(|name| schema.add_definition(name, &definitions));
        Ok(schema)
    }

    /// Adds a message type, then the types of its fields.
    fn add_message(&mut self, message: &MessageDescriptor, comments: &Comments) {
        let name = local(message.full_name());
        if self.types.iter().any(|known| known.name == name) {
            return;
        }
        let mut in_order: Vec<FieldDescriptor> = message.fields().collect();
        in_order.sort_by_key(|field| field.path().to_vec());
        let about = comment(comments, message.parent_file().name(), message.path());
        let fields = in_order.iter().map(|field| Field::of(field, comments)).collect();
        self.types.push(Type { name, about, proto: true, fields, values: Vec::new() });
        for field in in_order {
            match field.kind() {
                Kind::Message(inner) => self.add_message(&inner, comments),
                Kind::Enum(inner) => self.add_enum(&inner, comments),
                _ => {}
            }
        }
    }

    fn add_enum(&mut self, descriptor: &EnumDescriptor, comments: &Comments) {
        let file = descriptor.parent_file();
        let of = |path: &[i32]| comment(comments, file.name(), path);
        // The value 0 stands for an absent field.
        let values = descriptor.values().filter(|value| value.number() != 0);
        let values = values.map(|value| EnumValue { name: value.name().to_owned(), about: of(value.path()) }).collect();
        let name = local(descriptor.full_name());
        self.types.push(Type { name, about: of(descriptor.path()), proto: true, fields: Vec::new(), values });
    }

    /// Adds a type of the JSON Schema `definitions`, then the types of its fields.
    fn add_definition(&mut self, name: &str, definitions: &Map<String, Value>) {
        let Some(definition) = definitions.get(name).filter(|_| self.types.iter().all(|known| known.name != name)) else {
            return;
        };
        let nothing = Map::new();
        let properties = definition["properties"].as_object().unwrap_or(&nothing);
        let required: Vec<&str> = definition["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        // Required fields in the order of their declaration, then the optional ones.
        let optional = properties.keys().map(String::as_str).filter(|name| !required.contains(name));
        let names = required.iter().copied().chain(optional);
        let fields: Vec<Field> =
            names.map(|name| Field::of_property(name, &definition["properties"][name], !required.contains(&name))).collect();
        let values = definition["oneOf"].as_array().into_iter().flatten();
        let values = values.map(|value| EnumValue { name: text(&value["const"]), about: about(value) }).collect();
        let inner: Vec<String> = fields.iter().filter(|field| field.linked).map(|field| field.kind.clone()).collect();
        self.types.push(Type { name: name.to_owned(), about: about(definition), proto: false, fields, values });
        inner.iter().for_each(|name| self.add_definition(name, definitions));
    }
}

impl Field {
    fn of(field: &FieldDescriptor, comments: &Comments) -> Self {
        let file = field.parent_message().parent_file();
        let (kind, linked, type_path) = kind_of(field.kind());
        let mut about = comment(comments, file.name(), field.path());
        if about.is_empty() {
            about = type_path.map(|path| comment(comments, file.name(), &path)).unwrap_or_default();
        }
        let choice = field.containing_oneof().filter(|choice| !choice.is_synthetic());
        let one_of = choice.map(|choice| choice.name().to_owned());
        let (name, list) = (field.json_name().to_owned(), field.is_list());
        Self { name, kind, linked, list, nullable: false, optional: true, one_of, about }
    }

    /// Describes a property of a JSON Schema: a value or a list of values, possibly null.
    fn of_property(name: &str, property: &Value, optional: bool) -> Self {
        let is_null = |schema: &Value| schema["type"] == "null";
        let choice = property["anyOf"].as_array();
        let value = choice.and_then(|choice| choice.iter().find(|one| !is_null(one))).unwrap_or(property);
        let has_null = choice.is_some_and(|choice| choice.iter().any(is_null))
            || property["type"].as_array().is_some_and(|types| types.contains(&"null".into()));
        // An optional field is omitted instead of being null.
        let nullable = has_null && !optional;
        let list = value["type"] == "array";
        let value = if list { &value["items"] } else { value };
        let (kind, linked) = match value["$ref"].as_str() {
            Some(reference) => (reference.trim_start_matches("#/$defs/").to_owned(), true),
            None => (text(value["type"].get(0).unwrap_or(&value["type"])), false),
        };
        Self { name: name.to_owned(), kind, linked, list, nullable, optional, one_of: None, about: about(property) }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The description in a JSON Schema.
fn about(schema: &Value) -> String {
    one_line(schema["description"].as_str().unwrap_or_default())
}

/// The type in proto3's JSON mapping; whether it is a message or enum type of ours; and then its path in its file.
fn kind_of(kind: Kind) -> (String, bool, Option<Vec<i32>>) {
    let plain = |name: &str| (name.to_owned(), false, None);
    match kind {
        Kind::Message(message) => (local(message.full_name()), true, Some(message.path().to_vec())),
        Kind::Enum(values) => (local(values.full_name()), true, Some(values.path().to_vec())),
        Kind::Bool => plain("boolean"),
        Kind::String => plain("string"),
        Kind::Bytes => plain("base64"),
        // JSON numbers are exact only up to 2^53.
        Kind::Int64 | Kind::Uint64 | Kind::Sint64 | Kind::Fixed64 | Kind::Sfixed64 => plain("decimal string"),
        Kind::Double | Kind::Float => plain("number"),
        _ => plain("integer"),
    }
}

/// A type's name without its package.
fn local(name: &str) -> String {
    name.trim_start_matches("localregistry.v1.").to_owned()
}

/// Comments by file and by path in the file, as descriptors count paths.
type Comments = HashMap<(String, Vec<i32>), String>;

fn comments(file: &FileDescriptor) -> Vec<((String, Vec<i32>), String)> {
    let locations = file.file_descriptor_proto().source_code_info.iter().flat_map(|info| &info.location);
    let commented = locations.filter_map(|location| Some((location.path.clone(), location.leading_comments.as_deref()?)));
    commented.map(|(path, comment)| ((file.name().to_owned(), path), one_line(comment))).collect()
}

fn one_line(comment: &str) -> String {
    comment.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn comment(comments: &Comments, file: &str, path: &[i32]) -> String {
    comments.get(&(file.to_owned(), path.to_vec())).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_and_value_has_a_description() {
        let schema = Schema::read().unwrap();
        for one in &schema.types {
            let fields = one.fields.iter().filter(|field| field.about.is_empty()).map(|field| &field.name);
            let values = one.values.iter().filter(|value| value.about.is_empty()).map(|value| &value.name);
            let undescribed: Vec<&String> = fields.chain(values).collect();
            assert!(undescribed.is_empty(), "{} lacks comments: {undescribed:?}", one.name);
        }
    }

    #[test]
    fn every_named_type_is_described() {
        let schema = Schema::read().unwrap();
        let fields = schema.types.iter().flat_map(|one| &one.fields).map(|field| (&field.kind, field.linked));
        let named = schema.commands.iter().map(|output| (&output.kind, true)).chain(fields);
        let plain = ["string", "integer", "number", "boolean", "decimal string", "base64"];
        for (kind, linked) in named {
            let known = if linked { schema.types.iter().any(|one| one.name == *kind) } else { plain.contains(&kind.as_str()) };
            assert!(known, "{kind}");
        }
    }

    #[test]
    fn command_results_are_described_as_they_are_serialized() {
        let schema = Schema::read().unwrap();
        let field = |of: &str, name: &str| {
            let found = schema.types.iter().find(|one| one.name == of).unwrap();
            let field = found.fields.iter().find(|field| field.name == name).unwrap();
            (field.kind.as_str(), field.list, field.nullable, field.optional)
        };
        assert_eq!(field("PackResult", "bytes"), ("integer", false, false, false));
        assert_eq!(field("PackResult", "missing"), ("MissingBlob", true, false, true));
        assert_eq!(field("MissingBlob", "digest"), ("string", false, false, false));
        assert_eq!(field("InspectResult", "catalog"), ("DiskCatalog", false, true, false));
        assert_eq!(field("InspectResult", "images"), ("DiskImage", true, false, false));
        assert_eq!(field("RunReady", "ca"), ("string", false, true, false));
        assert_eq!(field("RunReady", "metrics"), ("string", false, false, true));
        assert_eq!(field("RunReady", "boot_seconds"), ("number", false, false, false));
        assert_eq!(field("DoctorCheck", "status"), ("DoctorStatus", false, false, false));
        let status = schema.types.iter().find(|one| one.name == "DoctorStatus").unwrap();
        assert_eq!(status.values.iter().map(|value| value.name.as_str()).collect::<Vec<_>>(), ["ok", "note", "fail"]);
        let skipped = ["RunReady.stopped_by", "DiskImage.label"];
        let all = schema.types.iter().flat_map(|one| one.fields.iter().map(move |field| format!("{}.{}", one.name, field.name)));
        assert!(all.into_iter().all(|field| !skipped.contains(&field.as_str())));
    }

    #[test]
    fn proto_fields_are_described_as_they_are_in_json() {
        let schema = Schema::read().unwrap();
        let field = |of: &str, name: &str| {
            let found = schema.types.iter().find(|one| one.name == of).unwrap();
            found.fields.iter().find(|field| field.name == name).unwrap()
        };
        let pem = field("Ready", "caPem");
        assert_eq!((pem.kind.as_str(), pem.list, pem.one_of.as_deref()), ("string", false, None));
        assert!(pem.about.starts_with("The CA that signed the registry's certificate, PEM."), "{}", pem.about);
        assert_eq!((field("Ready", "steps").kind.as_str(), field("Ready", "steps").list), ("Step", true));
        assert_eq!(field("Ready", "blobBytes").kind, "decimal string");
        assert_eq!(field("Event", "done").one_of.as_deref(), Some("event"));
        assert_eq!((field("Limits", "streams").kind.as_str(), field("Limits", "streams").one_of.as_deref()), ("integer", None));
        let mode = schema.types.iter().find(|one| one.name == "Tls.Mode").unwrap();
        assert_eq!(mode.values[0].name, "GENERATE");
        assert_eq!(field("Tls", "mode").kind, "Tls.Mode");
    }
}
