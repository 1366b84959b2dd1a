//! Parses a `--spec` file, a prototext list of images (`proto/localregistry/v1/images.proto`), into requests.
//!
//! Every error names file, line and column. The files that the list names are not opened here.

use std::io;
use std::path::{Path, PathBuf};

use super::request::{Naming, Origin, Part, Request, Tags, is_media_type};
use crate::host::images::platforms::PlatformChoice;
use crate::host::support::files;
use crate::host::support::prototext::{self, PrototextError, scan};
use crate::proto;

/// Largest file in bytes, enough for about 400,000 images.
const MAX_SPEC: u64 = 64 << 20;
/// The schema as a compiled descriptor set.
const SCHEMA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/images.binpb"));
/// The message type of a file.
const MESSAGE: &str = "localregistry.v1.Images";

/// Why a `--spec` file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{position}: {fault}")]
    Invalid { position: String, fault: String },
    #[error("the schema of lists of images that this program was built with is damaged")]
    Schema(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Reads the list at `path`. Relative paths in it start from `base`, or else from the list's folder.
///
/// # Errors
/// Fails with the first error found.
pub fn read(path: &Path, base: Option<&Path>) -> Result<Vec<Request>, SpecError> {
    let unreadable = |source| SpecError::Read { path: path.to_owned(), source };
    let content = files::read(path, MAX_SPEC).map_err(unreadable)?;
    let base = base.or_else(|| path.parent()).unwrap_or(Path::new(""));
    parse(&content, path, base)
}

fn parse(content: &[u8], path: &Path, base: &Path) -> Result<Vec<Request>, SpecError> {
    let label = |(line, column): (usize, usize)| format!("{}:{line}:{column}", path.display());
    let fault = |at: usize, fault: String| {
        let position = scan::positions(content, &[at]).pop().unwrap_or((1, 1));
        SpecError::Invalid { position: label(position), fault }
    };
    let (list, starts): (proto::Images, _) = prototext::parse(SCHEMA, MESSAGE, content).map_err(|error| match error {
        PrototextError::Text { at, fault: wrong } => fault(at, wrong),
        PrototextError::Schema(error) => SpecError::Schema(error),
    })?;
    if starts.len() != list.images.len() {
        return Err(SpecError::Schema(format!("{} entries are found, and {} read", starts.len(), list.images.len()).into()));
    }
    let positions = scan::positions(content, &starts).into_iter().map(label);
    let entries = list.images.into_iter().zip(positions);
    entries
        .map(|(entry, position)| request(entry, position.clone(), base).map_err(|fault| SpecError::Invalid { position, fault }))
        .collect()
}

/// Converts an entry to a request.
fn request(entry: proto::Image, position: String, base: &Path) -> Result<Request, String> {
    let naming = naming(&entry)?;
    let named = naming.repository.is_some();
    let upstream = entry.upstream.as_deref().map(|host| host.parse().map_err(|error| format!("upstream {host:?}: {error}")));
    let platforms = platforms(&entry)?;
    let origin = origin(entry, base, named)?;
    Ok(Request { position: Some(position), naming, upstream: upstream.transpose()?, platforms, ..Request::of(origin) })
}

fn platforms(entry: &proto::Image) -> Result<PlatformChoice, String> {
    let parsed = |text: &String| text.parse().map_err(|error| format!("platform {text:?}: {error}"));
    let wanted: Vec<_> = entry.platform.iter().map(parsed).collect::<Result<_, String>>()?;
    let flatten = entry.flatten.unwrap_or_default();
    if flatten && wanted.len() != 1 {
        return Err(format!("flatten goes with one platform, and the entry has {}", wanted.len()));
    }
    Ok(PlatformChoice { wanted, flatten })
}

fn naming(entry: &proto::Image) -> Result<Naming, String> {
    let (field, name) = match (&entry.name, &entry.repository) {
        (Some(_), Some(_)) => return Err("it has both name and repository; one of them is expected".to_owned()),
        (Some(name), None) => ("name", Some(name)),
        (None, Some(name)) => ("repository", Some(name)),
        (None, None) => ("", None),
    };
    let repository = name.map(|name| name.parse().map_err(|error| format!("{field} {name:?}: {error}"))).transpose()?;
    let tags = match entry.tag.as_deref().filter(|tag| !tag.is_empty()) {
        Some(tag) => Tags::One(tag.parse().map_err(|error| format!("tag {tag:?}: {error}"))?),
        None if entry.name.is_some() => Tags::Every,
        None if entry.repository.is_some() => Tags::OwnOrNone,
        None => Tags::Own,
    };
    Ok(Naming { repository, tags })
}

fn origin(entry: proto::Image, base: &Path, named: bool) -> Result<Origin, String> {
    let of_parts = entry.config.is_some() || !entry.layers.is_empty();
    let kinds = [
        ("path", entry.path.is_some()),
        ("config", of_parts),
        ("artifact", entry.artifact.is_some()),
        ("pull", entry.pull.is_some()),
        ("chart", entry.chart.is_some()),
    ];
    let given: Vec<&str> = kinds.into_iter().filter(|(_, given)| *given).map(|(kind, _)| kind).collect();
    let expected = "one of path, config, artifact, pull and chart is expected";
    let kind = match given.as_slice() {
        [] => return Err(format!("it has none of path, config, artifact, pull and chart; {expected}")),
        [kind] => *kind,
        [first, second, ..] => return Err(format!("it has both {first} and {second}; {expected}")),
    };
    if !named && matches!(kind, "config" | "artifact") {
        return Err(format!("it has no name; name or repository is expected beside {kind}"));
    }
    let file = |path: Option<String>, field: &str| match path.as_deref() {
        None => Err(format!("it has no {field}")),
        Some("") => Err(format!("{field} is empty; a path is expected")),
        Some(path) => Ok(base.join(path)),
    };
    let part = |part: proto::FilePath, field: &str| {
        Ok::<_, String>(Part {
            file: file(part.file_path, &format!("file_path in {field}"))?,
            digest: file(part.digest_path, &format!("digest_path in {field}"))?,
        })
    };
    if let Some(chart) = entry.chart {
        return Ok(Origin::Chart { file: file(Some(chart), "chart")? });
    }
    match (entry.path, entry.artifact, entry.pull) {
        (path @ Some(_), ..) => Ok(Origin::Path { path: file(path, "path")?, links: true }),
        (_, Some(artifact), _) => {
            let media_type = artifact.media_type;
            if let Some(wrong) = media_type.as_deref().filter(|media_type| !is_media_type(media_type)) {
                return Err(format!("media_type {wrong:?}: type/subtype is expected"));
            }
            Ok(Origin::Artifact { file: file(artifact.file_path, "file_path in artifact")?, media_type })
        }
        (.., Some(reference)) => reference.parse().map(Origin::Pull).map_err(|error| format!("pull {reference:?}: {error}")),
        _ => {
            let config = part(entry.config.ok_or("it has layers and no config")?, "config")?;
            let layers = entry.layers.into_iter().enumerate();
            let layers = layers.map(|(number, layer)| part(layer, &format!("layer {}", number + 1)));
            Ok(Origin::Parts { config, layers: layers.collect::<Result<_, _>>()? })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Request>, String> {
        parse(text.as_bytes(), Path::new("i.textproto"), Path::new("base")).map_err(|error| error.to_string())
    }

    #[test]
    fn parses_the_three_forms_that_bazel_rules_write() {
        let text = r#"
            # As rules_docker, rules_oci and then with tags.
            images { name: "a/b" config { file_path: "c" digest_path: "c.sha256" } layers { file_path: "l" digest_path: "/l.sha256" } }
            images { name: "c/d" path: "../x" }
            images < repository: 'e' '/f', tag: "v1"; path: "y" >
            images: [{ repository: "g" tag: "" path: "z" }, { path: "w.tar" }, { chart: "c.tgz" }]
        "#;
        let requests = read(text).unwrap();
        let parts = Origin::Parts {
            config: Part { file: "base/c".into(), digest: "base/c.sha256".into() },
            layers: vec![Part { file: "base/l".into(), digest: "/l.sha256".into() }],
        };
        let path = |path: &str| Origin::Path { path: format!("base/{path}").into(), links: true };
        let expected = [
            (parts, "a/b", Tags::Every, "3:13"),
            (path("../x"), "c/d", Tags::Every, "4:13"),
            (path("y"), "e/f", Tags::One("v1".parse().unwrap()), "5:13"),
            (path("z"), "g", Tags::OwnOrNone, "6:13"),
            (path("w.tar"), "", Tags::Own, "6:61"),
            (Origin::Chart { file: "base/c.tgz".into() }, "", Tags::Own, "6:80"),
        ];
        assert_eq!(requests.len(), expected.len());
        for (request, (origin, repository, tags, position)) in requests.into_iter().zip(expected) {
            assert_eq!(request.origin, origin);
            assert_eq!(request.naming.repository.map(|name| name.to_string()).unwrap_or_default(), repository);
            assert_eq!((request.naming.tags, request.position), (tags, Some(format!("i.textproto:{position}"))));
        }
    }

    #[test]
    fn errors_name_line_and_column() {
        let deep = "images { [a/localregistry.v1.Images] ".to_owned() + &"{ [a/localregistry.v1.Images] ".repeat(100_000);
        let one = "one of path, config, artifact, pull and chart is expected";
        let cases = [
            ("images {\n  path: \"x\"\n  paht: \"y\"\n}", "3:3: field 'paht' not found for message 'localregistry.v1.Image'"),
            ("image { }", "1:1: field 'image' not found for message 'localregistry.v1.Images'"),
            ("images { path: 7 }", "1:16: expected a string, but found '7'"),
            ("images { config: \"c\" }", "1:18: expected '{' or '<', but found '\"c\"'"),
            ("images { path: \"x\" path: \"y\" }", "1:26: 'path' is already set"),
            ("images { path: \"é\" } images { ü }", "1:31: invalid token"),
            ("images { path: \"x", "1:18: expected string terminator, but reached end of input"),
            ("images { path: \"\\q\" }", "1:17: invalid string escape"),
            ("images {\n path: \"x\"\n", "3:1: expected '}' or a field name, but reached end of input"),
            (deep.as_str(), "1:488: messages are nested deeper than 16"),
            ("\n images { name: \"a\" }", &format!("2:2: it has none of path, config, artifact, pull and chart; {one}")),
            ("images { name: \"a\" path: \"x\" config { } }", &format!("1:1: it has both path and config; {one}")),
            ("images { pull: \"a\" artifact { } }", &format!("1:1: it has both artifact and pull; {one}")),
            ("images { name: \"a\" path: \"x\" layers { } }", &format!("1:1: it has both path and config; {one}")),
            ("images { name: \"a\" layers { } }", "1:1: it has layers and no config"),
            ("images { name: \"a\" config { digest_path: \"x\" } }", "1:1: it has no file_path in config"),
            ("images { config { } }", "1:1: it has no name; name or repository is expected beside config"),
            (
                "images { name: \"a\" config { file_path: \"x\" digest_path: \"x\" } layers { file_path: \"\" } }",
                "1:1: file_path in layer 1 is empty; a path is expected",
            ),
            (
                "images { name: \"a\" repository: \"a\" path: \"x\" }",
                "1:1: it has both name and repository; one of them is expected",
            ),
            (
                "images { name: \"A\" path: \"x\" }",
                "1:1: name \"A\": a repository name has lower-case letters and digits, joined by one of . _ __ - and split by /",
            ),
            (
                "images { name: \"a\" tag: \".\" path: \"x\" }",
                "1:1: tag \".\": a tag has at most 128 letters, digits and _ . -, and starts with none of . -",
            ),
            (
                "images { upstream: \"a b\" path: \"x\" }",
                "1:1: upstream \"a b\": a registry's host is a DNS name or an address, with an optional port",
            ),
            (
                "images { platform: \"arm\" path: \"x\" }",
                "1:1: platform \"arm\": a platform has the form os/architecture or os/architecture/variant, in lower case: linux/amd64, linux/arm/v7",
            ),
            (
                "images { pull: \"A\" }",
                "1:1: pull \"A\": a repository name has lower-case letters and digits, joined by one of . _ __ - and split by /",
            ),
            (
                "images { name: \"a\" artifact { file_path: \"x\" media_type: \"text\" } }",
                "1:1: media_type \"text\": type/subtype is expected",
            ),
        ];
        let expected: Vec<String> = cases.iter().map(|(_, expected)| format!("i.textproto:{expected}")).collect();
        let found: Vec<String> = cases.iter().map(|(text, _)| read(text).unwrap_err()).collect();
        assert_eq!(found, expected);
        let error = parse(b"images {\n\xff", Path::new("i"), Path::new("")).unwrap_err();
        assert_eq!(error.to_string(), "i:2:1: it is not UTF-8");
    }
}
