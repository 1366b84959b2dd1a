//! What is asked to be packed: where each source is, and what its images are to be called. Texts of the command line become types
//! here; nothing is opened.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::host::images::pull::Reference;
use crate::oci::{Host, ImageName, Platform, Repository, Tag};

/// A source as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it is.
    pub origin: Origin,
    /// Where it is asked for, where that is a file: `images.textproto:4:1`.
    pub place: Option<String>,
    /// What its images are called.
    pub naming: Naming,
    /// Host that images without one are filed under.
    pub upstream: Option<Host>,
    /// The platform to keep of each index.
    pub platform: Option<Platform>,
}

/// Where images come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An image layout, or an archive.
    Path {
        /// The file or folder.
        path: PathBuf,
        /// Whether symbolic links in a folder may lead out of it, as in those that Bazel's rules make.
        links: bool,
    },
    /// Files that a manifest is made for.
    Parts {
        /// The config.
        config: Part,
        /// The layers, the lowest first.
        layers: Vec<Part>,
    },
    /// One file as an artifact.
    Artifact {
        /// The file.
        file: PathBuf,
        /// Its type, where one is given.
        media_type: Option<String>,
    },
    /// An image of a registry.
    Pull(Reference),
}

/// A file and the file that has its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The content.
    pub file: PathBuf,
    /// The digest, in hexadecimal digits.
    pub digest: PathBuf,
}

/// What images are called.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Naming {
    /// Their repository, in place of the source's.
    pub repository: Option<Repository>,
    /// Their tags.
    pub tags: Tags,
}

/// Which tags images have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Tags {
    /// Those that the source gives; an image that is given a repository and has none gets `latest`.
    #[default]
    Own,
    /// Those that the source gives, if any.
    OwnOrNone,
    /// This one.
    One(Tag),
    /// All that there are.
    Every,
}

impl Request {
    /// A source of which nothing more is said.
    #[must_use]
    pub fn of(origin: Origin) -> Self {
        Self { origin, place: None, naming: Naming::default(), upstream: None, platform: None }
    }

    /// The layout or archive at `path`.
    #[must_use]
    pub fn source(path: OsString) -> Self {
        Self::of(Origin::Path { path: path.into(), links: false })
    }

    /// Reads `REF=SOURCE`.
    ///
    /// # Errors
    /// Why the text is none.
    pub fn named(text: &str) -> Result<Self, String> {
        let (naming, path) = naming(text, "REF=SOURCE", "a file or folder")?;
        Ok(Self { naming, ..Self::of(Origin::Path { path: path.into(), links: false }) })
    }

    /// Reads `REF=FILE[:media/type]`. What follows the last colon is the type where it has the form of one; where it is empty, the
    /// colon is no part of the file's name either.
    ///
    /// # Errors
    /// Why the text is none.
    pub fn artifact(text: &str) -> Result<Self, String> {
        let (naming, rest) = naming(text, "REF=FILE[:media/type]", "a file")?;
        let (file, media_type) = match rest.rsplit_once(':') {
            Some((file, "")) => (file, None),
            Some((file, kind)) if is_media_type(kind) => (file, Some(kind.to_owned())),
            _ => (rest, None),
        };
        if file.is_empty() {
            return Err("there is no file's name before the colon".to_owned());
        }
        Ok(Self { naming, ..Self::of(Origin::Artifact { file: file.into(), media_type }) })
    }

    /// What messages call it.
    #[must_use]
    pub fn label(&self) -> String {
        let path = match &self.origin {
            Origin::Path { path, .. } => Some(path),
            Origin::Artifact { file, .. } => Some(file),
            Origin::Pull(reference) => {
                return self.place.iter().cloned().chain([reference.to_string()]).collect::<Vec<_>>().join(": ");
            }
            // Which of its files it is about, each message says.
            Origin::Parts { .. } => None,
        };
        let path = path.map(|path| path.display().to_string());
        self.place.clone().into_iter().chain(path).collect::<Vec<_>>().join(": ")
    }

    /// The files and folders that it is read from.
    #[must_use]
    pub fn paths(&self) -> Vec<&Path> {
        match &self.origin {
            Origin::Path { path, .. } => vec![path],
            Origin::Artifact { file, .. } => vec![file],
            Origin::Pull(_) => Vec::new(),
            Origin::Parts { config, layers } => {
                [config].into_iter().chain(layers).flat_map(|part| [part.file.as_path(), &part.digest]).collect()
            }
        }
    }
}

/// The name before the first `=`, and what is after it.
fn naming<'a>(text: &'a str, form: &str, what: &str) -> Result<(Naming, &'a str), String> {
    let (name, rest) = text.split_once('=').ok_or_else(|| format!("{form} is expected"))?;
    let name: ImageName = name.parse().map_err(|error| format!("{name:?}: {error}"))?;
    if name.digest.is_some() {
        return Err("a digest is not given but computed; repository[:tag] is expected before =".to_owned());
    }
    if rest.is_empty() {
        return Err(format!("there is nothing after =; {what} is expected"));
    }
    Ok((Naming { repository: Some(name.repository), tags: name.tag.map_or(Tags::Own, Tags::One) }, rest))
}

/// Whether a text has the form of a media type without parameters (RFC 6838, section 4.2).
#[must_use]
pub fn is_media_type(text: &str) -> bool {
    let name = |part: &str| {
        let starts = part.starts_with(|c: char| c.is_ascii_alphanumeric());
        starts && part.len() <= 127 && part.chars().all(|c| c.is_ascii_alphanumeric() || "!#$&-^_.+".contains(c))
    };
    text.split_once('/').is_some_and(|(kind, subtype)| name(kind) && name(subtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(request: Request) -> (String, String, Tags) {
        let repository = request.naming.repository.as_ref().map(ToString::to_string).unwrap_or_default();
        (repository, request.label(), request.naming.tags)
    }

    #[test]
    fn requests_by_their_form() {
        let (repository, label, tags) = parts(Request::named("localhost:5000/a:b=dir=1").unwrap());
        assert_eq!((repository.as_str(), label.as_str(), tags), ("localhost:5000/a", "dir=1", Tags::One("b".parse().unwrap())));
        for (text, expected) in [
            ("a", "REF=SOURCE is expected"),
            ("A=x", "\"A\": a repository name has lower-case letters and digits, joined by one of . _ __ - and split by /"),
            ("a=", "there is nothing after =; a file or folder is expected"),
            (
                "a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855=x",
                "a digest is not given but computed; repository[:tag] is expected before =",
            ),
        ] {
            assert_eq!(Request::named(text).unwrap_err(), expected);
        }
    }

    #[test]
    fn files_of_artifacts_with_and_without_colons() {
        for (text, file, kind) in [
            ("f", "f", None),
            ("f:text/plain", "f", Some("text/plain")),
            ("f:application/vnd.x.y+json", "f", Some("application/vnd.x.y+json")),
            ("a:b", "a:b", None),
            ("a:b:text/plain", "a:b", Some("text/plain")),
            ("a:b/c:", "a:b/c", None),
            ("a:", "a", None),
            ("a::", "a:", None),
            ("./a:b/c.txt/d", "./a:b/c.txt/d", None),
        ] {
            let request = Request::artifact(&format!("x/y:1={text}")).unwrap();
            let expected = Origin::Artifact { file: file.into(), media_type: kind.map(str::to_owned) };
            assert_eq!(request.origin, expected, "{text}");
        }
        assert_eq!(Request::artifact("x=:text/plain").unwrap_err(), "there is no file's name before the colon");
        assert_eq!(Request::artifact("x").unwrap_err(), "REF=FILE[:media/type] is expected");
    }
}
