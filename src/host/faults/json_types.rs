//! Compares JSON with the types of a message. The library that reads it knows them as well, but it names its own when they differ.

use std::fmt;

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::Value;

/// A value of another type than its field has.
#[derive(Debug)]
pub(super) struct Mistake {
    /// The number of the rule, from 0, that it is in.
    pub rule: Option<usize>,
    /// The fields around it, the innermost first.
    fields: Vec<String>,
    problem: String,
}

impl Mistake {
    /// The path of the field, such as `do.status`; within the rule, if it is in one.
    pub fn path(&self) -> String {
        let outer = self.fields.iter().rev().skip(usize::from(self.rule.is_some()));
        outer.map(String::as_str).collect::<Vec<_>>().join(".")
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rule.map_or(Ok(()), |number| write!(f, "rule number {}: ", number + 1))?;
        write!(f, "{}: {}", self.path(), self.problem)
    }
}

/// The first value of another type. Fields that are unknown are not looked at.
pub(super) fn mistake(value: &Value, message: &MessageDescriptor) -> Option<Mistake> {
    let fields = value.as_object()?.iter();
    fields.filter(|(_, value)| !value.is_null()).find_map(|(name, value)| {
        let known = message.get_field_by_json_name(name).or_else(|| message.get_field_by_name(name))?;
        let found = if known.is_list() { in_list(value, &known) } else { in_value(value, &known) };
        found.map(|mut mistake| {
            mistake.fields.push(known.name().to_owned());
            mistake
        })
    })
}

fn in_list(value: &Value, field: &FieldDescriptor) -> Option<Mistake> {
    let Some(list) = value.as_array() else { return wrong(value, "a list") };
    let found = list.iter().enumerate().find_map(|(number, value)| Some((number, in_value(value, field)?)));
    found.map(|(number, mistake)| if field.name() == "rules" { Mistake { rule: Some(number), ..mistake } } else { mistake })
}

fn in_value(value: &Value, field: &FieldDescriptor) -> Option<Mistake> {
    let unless = |is_right: bool, expected: &str| if is_right { None } else { wrong(value, expected) };
    match field.kind() {
        Kind::Message(inner) if value.is_object() => mistake(value, &inner),
        Kind::Message(_) => wrong(value, "an object"),
        Kind::Uint32 => unless(is_whole(value, u32::MAX.into()), &format!("a whole number from 0 to {}", u32::MAX)),
        Kind::Uint64 => unless(is_whole(value, u64::MAX), &format!("a whole number from 0 to {}", u64::MAX)),
        Kind::Double => unless(value.is_number() || text(value).parse::<f64>().is_ok(), "a number"),
        Kind::Bool => unless(value.is_boolean(), "true or false"),
        Kind::String => unless(value.is_string(), "a text"),
        Kind::Enum(names) => {
            let is_known = |name: &str, number: i32| text(value) == name || value.as_i64() == Some(number.into());
            let all: Vec<String> = names.values().skip(1).map(|value| value.name().to_owned()).collect();
            unless(names.values().any(|one| is_known(one.name(), one.number())), &all.join(", "))
        }
        _ => None,
    }
}

/// A number, or its decimal digits in a string.
fn is_whole(value: &Value, most: u64) -> bool {
    let number = value.as_u64().or_else(|| text(value).parse().ok());
    number.is_some_and(|number| number <= most)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn wrong(value: &Value, expected: &str) -> Option<Mistake> {
    /// Most characters of the value that are repeated.
    const SHOWN: usize = 40;
    let shown = match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Null => "null".to_owned(),
        other => other.to_string().chars().take(SHOWN).collect(),
    };
    Some(Mistake { rule: None, fields: Vec::new(), problem: format!("{shown} is wrong here; expected {expected}") })
}
