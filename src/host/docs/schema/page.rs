//! The schema as a page in Markdown.

use std::fmt::Write;

use super::{Field, Schema, Type};

const HEAD: &str = "\
# The JSON of localregistry

Made by `localregistry schema` from the comments of `proto/localregistry/v1` and of the commands' results; to update it, run
`localregistry schema >proto/JSON.md`. A test holds it against them.

# Between launcher and guest

- [Event](#event): out of the virtio-serial port `localregistry.events`, what `run --events FILE` keeps and `run --json --follow` prints.
- [Command](#command): into the port `localregistry.control`.
- [Config](#config): the file `opt/localregistry/config` in fw_cfg, `run --config FILE`, and by keys `run --set KEY=VALUE`.

It is proto3 JSON. Events and commands are one object a line. A field that has its default (0, `\"\"`, `false`, an empty list) is left out,
and so may be left out: `{\"done\":{}}` is an end with status 0. A `decimal string` is an integer in quotes, since it may be too large for
a JSON number. A reader that meets a field which is not here passes over it; the guest refuses one in its config or in a command.
";

const RESULTS: &str = "
# What commands print

Each command with `--json` prints one object on one line of standard output; `run --follow` and `events` print one for each event. A
field that is *optional* is left out where it does not apply; the others are always there. A reader passes over fields that are not
here. Messages and progress are on standard error.

| command | prints |
|---|---|
";

/// The page of `schema`.
pub(crate) fn of(schema: &Schema) -> String {
    let mut page = HEAD.to_owned();
    let (messages, results): (Vec<&Type>, Vec<&Type>) = schema.types.iter().partition(|one| one.proto);
    // Writing to a text cannot fail.
    for one in messages {
        let _written = add(&mut page, one);
    }
    page.push_str(RESULTS);
    for output in &schema.commands {
        let _written = writeln!(page, "| `{} --json` | {} |", output.command, link(&output.kind));
    }
    for one in results {
        let _written = add(&mut page, one);
    }
    page
}

fn add(page: &mut String, one: &Type) -> std::fmt::Result {
    writeln!(page, "\n## {}", one.name)?;
    if !one.about.is_empty() {
        writeln!(page, "\n{}", one.about)?;
    }
    let choice: Vec<String> = one.fields.iter().filter(|field| field.one_of.is_some()).map(|f| format!("`{}`", f.name)).collect();
    if !choice.is_empty() {
        writeln!(page, "\nOne of {} is there.", choice.join(", "))?;
    }
    if !one.fields.is_empty() {
        writeln!(page, "\n| field | type | meaning |\n|---|---|---|")?;
    }
    for field in &one.fields {
        let optional = if field.optional && !one.proto { ", *optional*" } else { "" };
        writeln!(page, "| `{}` | {}{optional} | {} |", field.name, type_of(field), cell(&field.about))?;
    }
    if !one.values.is_empty() {
        writeln!(page, "\n| value | meaning |\n|---|---|")?;
    }
    for word in &one.values {
        writeln!(page, "| `\"{}\"` | {} |", word.name, cell(&word.about))?;
    }
    Ok(())
}

fn type_of(field: &Field) -> String {
    let kind = if field.linked { link(&field.kind) } else { field.kind.clone() };
    let kind = if field.list { format!("list of {kind}") } else { kind };
    if field.nullable { format!("{kind} or null") } else { kind }
}

/// A type, with the anchor that Markdown's readers make of its heading.
fn link(kind: &str) -> String {
    format!("[{kind}](#{})", kind.to_lowercase().replace('.', ""))
}

/// A text within a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
