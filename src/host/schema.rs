//! `localregistry schema`: the JSON that passes between launcher and guest, field by field. The descriptors of `proto/` and their
//! comments enter; a page (`proto/JSON.md`), or the same as JSON, leaves.

mod page;

use std::collections::HashMap;
use std::io;

use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor};
use serde::Serialize;

use super::report::Report;

/// The descriptors, compiled.
const SCHEMA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/messages.binpb"));
/// The messages that are a line, or a file, of their own. The others are within them.
const ROOTS: [&str; 3] = ["localregistry.v1.Event", "localregistry.v1.Command", "localregistry.v1.Config"];

/// The command line of `localregistry schema`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  localregistry schema
      A page, in Markdown
  localregistry schema --json
      The same for programs")]
pub struct Args {}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The descriptors within this program do not fit it.
    #[error("the schema of events, commands and config that this program was built with is damaged")]
    Damaged(#[source] prost_reflect::DescriptorError),
    /// The result cannot be written.
    #[error("cannot print the schema")]
    Print(#[source] io::Error),
}

/// Everything, in the order in which a reader meets it.
#[derive(Debug, Serialize)]
struct Schema {
    types: Vec<Type>,
}

/// A message, or an enumeration.
#[derive(Debug, Serialize)]
struct Type {
    name: String,
    /// What it is, from the comment.
    about: String,
    /// A message's; none for an enumeration.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<Field>,
    /// An enumeration's; none for a message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<Word>,
}

/// A field, by its name in JSON.
#[derive(Debug, Serialize)]
struct Field {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    /// Whether `kind` is a type of its own here.
    #[serde(skip)]
    linked: bool,
    list: bool,
    /// Of the fields with the same word here, one is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    one_of: Option<String>,
    about: String,
}

/// A value of an enumeration, as it is written in JSON.
#[derive(Debug, Serialize)]
struct Word {
    name: String,
    about: String,
}

/// Prints the schema.
///
/// # Errors
/// [`SchemaError`].
pub fn run(_: &Args, report: &Report) -> Result<(), SchemaError> {
    let schema = Schema::read()?;
    report.result(&schema, &page::of(&schema)).map_err(SchemaError::Print)
}

impl Schema {
    fn read() -> Result<Self, SchemaError> {
        let pool = DescriptorPool::decode(SCHEMA).map_err(SchemaError::Damaged)?;
        let comments: Comments = pool.files().flat_map(|file| comments(&file)).collect();
        let mut schema = Self { types: Vec::new() };
        for message in ROOTS.iter().filter_map(|name| pool.get_message_by_name(name)) {
            schema.add_message(&message, &comments);
        }
        Ok(schema)
    }

    /// Adds a message, and after it those of its fields.
    fn add_message(&mut self, message: &MessageDescriptor, comments: &Comments) {
        let name = local(message.full_name());
        if self.types.iter().any(|known| known.name == name) {
            return;
        }
        let mut in_order: Vec<FieldDescriptor> = message.fields().collect();
        in_order.sort_by_key(|field| field.path().to_vec());
        let about = comment(comments, message.parent_file().name(), message.path());
        let fields = in_order.iter().map(|field| Field::of(field, comments)).collect();
        self.types.push(Type { name, about, fields, values: Vec::new() });
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
        // The first one stands for a field that is not there.
        let words = descriptor.values().filter(|value| value.number() != 0);
        let values = words.map(|value| Word { name: value.name().to_owned(), about: of(value.path()) }).collect();
        let name = local(descriptor.full_name());
        self.types.push(Type { name, about: of(descriptor.path()), fields: Vec::new(), values });
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
        Self { name: field.json_name().to_owned(), kind, linked, list: field.is_list(), one_of, about }
    }
}

/// The type as JSON has it (proto3's JSON mapping); whether it is one of ours, and then its place in its file.
fn kind_of(kind: Kind) -> (String, bool, Option<Vec<i32>>) {
    let plain = |name: &str| (name.to_owned(), false, None);
    match kind {
        Kind::Message(message) => (local(message.full_name()), true, Some(message.path().to_vec())),
        Kind::Enum(words) => (local(words.full_name()), true, Some(words.path().to_vec())),
        Kind::Bool => plain("boolean"),
        Kind::String => plain("string"),
        Kind::Bytes => plain("base64"),
        // Beyond 2^53 a JSON number is not exact everywhere.
        Kind::Int64 | Kind::Uint64 | Kind::Sint64 | Kind::Fixed64 | Kind::Sfixed64 => plain("decimal string"),
        Kind::Double | Kind::Float => plain("number"),
        _ => plain("integer"),
    }
}

/// A type's name without its package.
fn local(name: &str) -> String {
    name.trim_start_matches("localregistry.v1.").to_owned()
}

/// Comments by file and by place in it, as descriptors count places.
type Comments = HashMap<(String, Vec<i32>), String>;

fn comments(file: &FileDescriptor) -> Vec<((String, Vec<i32>), String)> {
    let locations = file.file_descriptor_proto().source_code_info.iter().flat_map(|info| &info.location);
    let told = locations.filter_map(|location| Some((location.path.clone(), location.leading_comments.as_deref()?)));
    told.map(|(path, comment)| ((file.name().to_owned(), path), one_line(comment))).collect()
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
    fn every_field_and_value_says_what_it_is() {
        let schema = Schema::read().unwrap();
        for one in &schema.types {
            let silent = one.fields.iter().filter(|field| field.about.is_empty()).map(|field| &field.name);
            let words = one.values.iter().filter(|word| word.about.is_empty()).map(|word| &word.name);
            let silent: Vec<&String> = silent.chain(words).collect();
            assert!(silent.is_empty(), "{} lacks comments: {silent:?}", one.name);
        }
    }

    #[test]
    fn fields_are_told_as_json_has_them() {
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
