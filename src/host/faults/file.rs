//! Reads a plan of faults from a file: proto3 JSON, or prototext. Every error names file, line and column.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::json_types;
use super::locate::locate;
use crate::host::support::files;
use crate::host::support::prototext::{self, PrototextError, scan};
use crate::host::support::report::Report;
use crate::proto::FaultPlan;
use crate::registry::faults::plan::{Plan, PlanError};
use crate::text::json_fault;

/// Largest file, in bytes: twice what a plan may have, for white space.
const MAX_FILE: u64 = 2 * crate::registry::faults::plan::MAX_BYTES as u64;
/// How long a FIFO or a terminal may be silent.
const PATIENCE: Duration = Duration::from_secs(60);
/// The schema as a compiled descriptor set.
const SCHEMA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/faults.binpb"));
/// The message type of a file.
const MESSAGE: &str = "localregistry.v1.FaultPlan";

/// Why a plan cannot be used. Nothing of it is in force.
#[derive(Debug, thiserror::Error)]
pub enum PlanFileError {
    /// The file cannot be read.
    #[error("cannot read the plan of faults {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is not a plan.
    #[error("{}:{line}:{column}: {fault}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong.
        fault: String,
    },
    /// The schema in this program.
    #[error("the schema of plans of faults that this program was built with is damaged")]
    Schema(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Reads and checks the plan at `path`; `-` is standard input. Warns if it has no rules.
///
/// # Errors
/// Fails with the first error found.
pub fn read(path: &Path, report: &Report) -> Result<FaultPlan, PlanFileError> {
    let unreadable = |source| PlanFileError::Read { path: path.to_owned(), source };
    let content = if path == Path::new("-") {
        let mut content = Vec::new();
        io::stdin().lock().take(MAX_FILE + 1).read_to_end(&mut content).map_err(unreadable)?;
        if content.len() as u64 > MAX_FILE {
            return Err(unreadable(io::Error::other(format!("it is longer than {MAX_FILE} bytes"))));
        }
        content
    } else {
        files::read_within(path, MAX_FILE, PATIENCE).map_err(unreadable)?
    };
    let plan = parse(&content, path)?;
    if plan.rules.is_empty() {
        report.warn(format!("the plan of faults {} has 0 rules", path.display()));
    }
    Ok(plan)
}

fn parse(content: &[u8], path: &Path) -> Result<FaultPlan, PlanFileError> {
    let invalid = |(line, column), fault| PlanFileError::Invalid { path: path.to_owned(), line, column, fault };
    // Some editors begin a file with a byte order mark.
    let content = content.strip_prefix("\u{feff}".as_bytes()).unwrap_or(content);
    let at = |at: usize| scan::positions(content, &[at]).pop().unwrap_or((1, 1));
    let text = str::from_utf8(content).map_err(|error| invalid(at(error.valid_up_to()), "it is not UTF-8".to_owned()))?;
    let start = text.len() - text.trim_start().len();
    let plan: FaultPlan = if text.get(start..).is_some_and(|text| text.starts_with('{')) {
        // The position is at the start of the message here.
        let wrong = |error: serde_json::Error| invalid((error.line().max(1), error.column().max(1)), json_fault(&error));
        let value: Value = serde_json::from_str(text).map_err(wrong)?;
        let message = prototext::message_type(SCHEMA, MESSAGE).map_err(PlanFileError::Schema)?;
        if let Some(mistake) = json_types::mistake(&value, &message) {
            return Err(invalid(at(locate(text, mistake.rule, &mistake.path())), mistake.to_string()));
        }
        serde_json::from_str(text).map_err(wrong)?
    } else if text.get(start..).is_some_and(|text| text.starts_with('[')) || serde_json::from_str::<Value>(text).is_ok() {
        return Err(invalid(at(start), "it is not a JSON object; expected one such as {\"rules\": []}".to_owned()));
    } else {
        let parsed = prototext::parse(SCHEMA, MESSAGE, content).map_err(|error| match error {
            PrototextError::Text { at: offset, fault } => invalid(at(offset), fault),
            PrototextError::Schema(error) => PlanFileError::Schema(error),
        });
        parsed?.0
    };
    match Plan::check(plan.clone()) {
        Ok(_) => Ok(plan),
        Err(error) => {
            let PlanError { index, error: wrong, .. } = &error;
            Err(invalid(at(locate(text, Some(*index), wrong.field)), error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<FaultPlan, String> {
        parse(text.as_bytes(), Path::new("plan")).map_err(|error| error.to_string())
    }

    #[test]
    fn both_forms_give_the_same_plan() {
        let json = r#"{"about": "x", "seed": 7, "rules": [{"id": "a", "match": {"endpoint": "blob", "range": true, "fromByte": "9"},
            "when": {"nth": [1, 3]}, "do": {"cut": {"afterBytes": 5, "kind": "RST"}, "headers": [{"name": "etag"}]}}]}"#;
        let text = r#"about: "x" seed: 7 # a comment
            rules { id: "a" match { endpoint: "blob" range: true from_byte: 9 } when { nth: [1, 3] }
            do { cut { after_bytes: 5 kind: RST } headers { name: "etag" } } }"#;
        assert_eq!(read(json).unwrap(), read(text).unwrap());
    }

    #[test]
    fn errors_name_line_and_column() {
        let rule = |middle: &str| format!("{{\"rules\": [\n {{\"id\": \"a\", \"do\": {{\"status\": 500}}}},\n {middle}]}}");
        let b = |rest: &str| rule(&format!("{{\"id\": \"b\", {rest}}}"));
        let status = "\"do\": {\"status\": 500}";
        let cases = [
            ("{\"rule\": []}".to_owned(), "1:7: unknown field `rule`"),
            (b("\"do\": {\"status\": 200}"), "3:21: rule b: do.status: 200 is not a status of an error; expected 400 to 599"),
            (
                b(&format!("\"when\": {{\"probability\": 1.5}}, {status}")),
                "3:23: rule b: when.probability: 1.5 is not a probability",
            ),
            (b(&format!("\"when\": {{\"probability\": 0}}, {status}")), "3:23: rule b: when.probability: 0 is not a probability"),
            (b(&format!("\"when\": {{\"first\": 0}}, {status}")), "3:23: rule b: when.first: 0 is no request"),
            (
                b(&format!("\"when\": {{\"first\": 1, \"every\": 2}}, {status}")),
                "3:14: rule b: when: it has both first and every",
            ),
            (
                b(&format!("\"match\": {{\"repository\": \"A[b]\"}}, {status}")),
                "3:24: rule b: match.repository: \"A[b]\" matches no repository, which cannot have 'A'",
            ),
            (
                b(&format!("\"match\": {{\"endpoint\": \"blobs\"}}, {status}")),
                "3:24: rule b: match.endpoint: \"blobs\" is not an endpoint; expected one of base, manifest, blob, tags, catalog, referrers, token",
            ),
            (
                b(&format!("\"match\": {{\"peer\": \"10.1.0.0/33\"}}, {status}")),
                "3:24: rule b: match.peer: \"10.1.0.0/33\" is not an address",
            ),
            (b("\"do\": {}"), "3:14: rule b: do: it does nothing"),
            (b("\"about\": \"x\""), "3:2: rule b: do: it does nothing"),
            (b("\"do\": {\"status\": 500, \"redirectLoop\": true}"), "3:14: rule b: do: status contradicts redirect_loop"),
            (b("\"do\": {\"status\": 500, \"corrupt\": {\"offset\": 1}}"), "3:14: rule b: do: status contradicts corrupt"),
            (b("\"do\": {\"shortBody\": 5, \"cut\": {\"afterBytes\": 5}}"), "3:14: rule b: do: short_body contradicts cut"),
            (
                b("\"do\": {\"stall\": {\"afterBytes\": 5}, \"cut\": {\"afterBytes\": 9}}"),
                "3:14: rule b: do: stall without an end contradicts cut",
            ),
            (
                b("\"do\": {\"retryAfter\": 5}"),
                "3:21: rule b: do.retry_after: retry_after is without effect; expected status beside it",
            ),
            (
                b("\"match\": {\"http\": \"1.1\"}, \"do\": {\"cut\": {\"kind\": \"RST_STREAM\"}}"),
                "3:55: rule b: do.cut.kind: RST_STREAM contradicts match.http",
            ),
            (
                b("\"do\": {\"connection\": \"REFUSE\", \"status\": 500}"),
                "3:21: rule b: do.connection: it contradicts the other actions",
            ),
            (
                b("\"match\": {\"endpoint\": \"blob\"}, \"do\": {\"connection\": \"REFUSE\"}"),
                "3:52: rule b: do.connection: a connection matches by peer and port only",
            ),
            (b("\"do\": {\"redirect\": \"x\"}"), "3:21: rule b: do.redirect: \"x\" is not a URL"),
            (b("\"do\": {\"delaySeconds\": -1}"), "3:21: rule b: do.delay_seconds: -1 is not a time; expected 0 to 3600 seconds"),
            (
                b("\"do\": {\"headers\": [{\"name\": \"a b\"}]}"),
                "3:34: rule b: do.headers.name: \"a b\" is not the name of a header",
            ),
            (
                b(&format!("\"when\": {{\"afterRule\": {{\"id\": \"c\", \"seconds\": 1}}}}, {status}")),
                "3:37: rule b: when.after_rule.id: the plan has no other rule \"c\"",
            ),
            (
                rule(&format!("{{\"id\": \"a\", {status}}}")),
                "3:3: rule a: id: the plan has this id already; expected another one",
            ),
            (rule(&format!("{{{status}}}")), "3:2: rule number 2: id: \"\" is not an id"),
            ("rules {\n id: \"a\"\n do { status: 99 }\n}".to_owned(), "3:7: rule a: do.status: 99 is not a status"),
            ("rules { id: \"a\" do { statsu: 500 } }".to_owned(), "1:22: field 'statsu' not found"),
            (
                "rules { id: \"a\" do < status: 500 > when: { nth: 2 nth: 1 } }".to_owned(),
                "1:44: rule a: when.nth: expected numbers",
            ),
            ("rules {".to_owned(), "1:8: expected '}'"),
            (
                b("\"do\": {\"headers\": [{\"name\": \"Date\"}, {\"name\": \"date\", \"value\": \"x\"}]}"),
                "3:21: rule b: do.headers: date is changed twice",
            ),
            (
                b("\"do\": {\"status\": 5e9}"),
                "3:21: rule number 2: do.status: 5000000000.0 is wrong here; expected a whole number from 0 to 4294967295",
            ),
            (b("\"do\": {\"status\": -1}"), "3:21: rule number 2: do.status: -1 is wrong here; expected a whole number"),
            (b("\"do\": {\"status\": \"9x\"}"), "3:21: rule number 2: do.status: \"9x\" is wrong here; expected a whole number"),
            (
                b("\"do\": {\"shortBody\": 99999999999999999999}"),
                "3:21: rule number 2: do.short_body: 1e+20 is wrong here; expected a whole number from 0 to 18446744073709551615",
            ),
            (b("\"when\": {\"nth\": [1, 4294967296]}"), "3:23: rule number 2: when.nth: 4294967296 is wrong here"),
            (b("\"when\": {\"nth\": 1}"), "3:23: rule number 2: when.nth: 1 is wrong here; expected a list"),
            (
                b("\"when\": {\"probability\": \"half\"}"),
                "3:23: rule number 2: when.probability: \"half\" is wrong here; expected a number",
            ),
            (b("\"match\": []"), "3:14: rule number 2: match: a list is wrong here; expected an object"),
            (b("\"match\": {\"range\": 1}"), "3:24: rule number 2: match.range: 1 is wrong here; expected true or false"),
            (
                b("\"do\": {\"unauthorized\": 99}"),
                "3:21: rule number 2: do.unauthorized: 99 is wrong here; expected CHALLENGE, EXPIRED, REFUSED",
            ),
            (
                b("\"do\": {\"cut\": {\"kind\": \"fin\"}}"),
                "3:29: rule number 2: do.cut.kind: \"fin\" is wrong here; expected FIN, RST",
            ),
            (
                "{\"seed\": -1, \"rules\": []}".to_owned(),
                "1:2: seed: -1 is wrong here; expected a whole number from 0 to 4294967295",
            ),
            ("{\"about\": \"seed\",\n\"rules\": {}}".to_owned(), "2:1: rules: an object is wrong here; expected a list"),
            ("rules { id: \"a\" do { connection: 99 } }".to_owned(), "1:22: rule a: do.connection: no value has the number 99"),
            ("rules { id: \"a\" do { cut { kind: 99 } } }".to_owned(), "1:28: rule a: do.cut.kind: no value has the number 99"),
            (
                "rules { id: \"a\" do { unauthorized: 99 } }".to_owned(),
                "1:22: rule a: do.unauthorized: no value has the number 99",
            ),
            (
                "rules { id: \"a\" do { status: 99999999999 } }".to_owned(),
                "1:30: expected value to be an unsigned 32-bit integer, but the value 99999999999 is out of range",
            ),
            (
                b("\"do\": {\"redirect\": \"http://a.test/#top\"}"),
                "3:21: rule b: do.redirect: \"http://a.test/#top\" is not a URL",
            ),
            (b("\"do\": {\"redirect\": \"http://a.test?x\"}"), "3:21: rule b: do.redirect: \"http://a.test?x\" is not a URL"),
        ];
        for (text, expected) in cases {
            let error = read(&text).unwrap_err();
            assert!(error.starts_with(&format!("plan:{expected}")), "{error}\n  expected {expected}\n  for {text}");
        }
    }
}
