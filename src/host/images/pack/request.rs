//! One source to pack, as requested on the command line or in a `--spec` file: where it is and how its images are named.
//! Nothing is opened here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::host::images::platforms::PlatformChoice;
use crate::host::images::pull::ImageReference;
use crate::oci::{Host, ImageName, Repository, Tag};

/// A requested source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where the images come from.
    pub origin: Origin,
    /// Position of the entry in a `--spec` file, such as `images.textproto:4:1`.
    pub position: Option<String>,
    /// How the images are named.
    pub naming: Naming,
    /// Host given to images whose name has none.
    pub upstream: Option<Host>,
    /// The platforms to keep of each index.
    pub platforms: PlatformChoice,
}

/// Where images come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An image layout, or an archive.
    Path {
        /// The file or folder.
        path: PathBuf,
        /// Whether symbolic links may lead out of the folder, as in the output of Bazel's rules.
        links: bool,
    },
    /// A config and layers; the manifest is generated.
    Parts {
        /// The image config.
        config: Part,
        /// The layers, the lowest first.
        layers: Vec<Part>,
    },
    /// One file, packed as an OCI artifact.
    Artifact {
        /// The file.
        file: PathBuf,
        /// Its media type.
        media_type: Option<String>,
    },
    /// The package of a Helm chart.
    Chart {
        /// The file.
        file: PathBuf,
    },
    /// An image in a registry.
    Pull(ImageReference),
}

/// A blob's file, and the file that contains its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The content.
    pub file: PathBuf,
    /// The digest's file: 64 hexadecimal digits.
    pub digest: PathBuf,
}

/// How images are named.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Naming {
    /// Repository to use in place of the source's.
    pub repository: Option<Repository>,
    /// Which tags the images get.
    pub tags: Tags,
}

/// Which tags images get.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Tags {
    /// The source's tags. An image without a tag gets `latest` if its repository is given.
    #[default]
    Own,
    /// The source's tags, if any.
    OwnOrNone,
    /// This tag.
    One(Tag),
    /// Every tag: the image answers to any tag of its repository.
    Every,
}

impl Request {
    /// A request with defaults for everything but its origin.
    #[must_use]
    pub fn of(origin: Origin) -> Self {
        Self { origin, position: None, naming: Naming::default(), upstream: None, platforms: PlatformChoice::default() }
    }

    /// Requests the layout or archive at `path`.
    #[must_use]
    pub fn source(path: OsString) -> Self {
        Self::of(Origin::Path { path: path.into(), links: false })
    }

    /// Parses `REF=SOURCE`.
    ///
    /// # Errors
    /// Fails with a message if the text has another form.
    pub fn named(text: &str) -> Result<Self, String> {
        let (naming, path) = naming(text, "REF=SOURCE", "a file or folder")?;
        Ok(Self { naming, ..Self::of(Origin::Path { path: path.into(), links: false }) })
    }

    /// Parses `REF=FILE[:media/type]`. The text after the last colon is the media type if it has the form of one. A colon at the
    /// very end is removed.
    ///
    /// # Errors
    /// Fails with a message if the text has another form.
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

    /// Parses `[REPOSITORY=]FILE`. A file whose name has `=` starts with `/` or `.`.
    ///
    /// # Errors
    /// Fails with a message if the text has another form.
    pub fn chart(text: &str) -> Result<Self, String> {
        let is_named = text.contains('=') && !text.starts_with(['/', '.']);
        let (naming, file) = if is_named { naming(text, "REPOSITORY=FILE", "a file")? } else { (Naming::default(), text) };
        Ok(Self { naming, ..Self::of(Origin::Chart { file: file.into() }) })
    }

    /// The request's name in messages.
    #[must_use]
    pub fn label(&self) -> String {
        let path = match &self.origin {
            Origin::Path { path, .. } => Some(path),
            Origin::Artifact { file, .. } | Origin::Chart { file } => Some(file),
            Origin::Pull(reference) => {
                return self.position.iter().cloned().chain([reference.to_string()]).collect::<Vec<_>>().join(": ");
            }
            // The messages about parts name the file themselves.
            Origin::Parts { .. } => None,
        };
        let path = path.map(|path| path.display().to_string());
        self.position.clone().into_iter().chain(path).collect::<Vec<_>>().join(": ")
    }

    /// The files and folders that the source is read from.
    #[must_use]
    pub fn paths(&self) -> Vec<&Path> {
        match &self.origin {
            Origin::Path { path, .. } => vec![path],
            Origin::Artifact { file, .. } | Origin::Chart { file } => vec![file],
            Origin::Pull(_) => Vec::new(),
            Origin::Parts { config, layers } => {
                [config].into_iter().chain(layers).flat_map(|part| [part.file.as_path(), &part.digest]).collect()
            }
        }
    }
}

/// Splits at the first `=` into the name and the rest.
fn naming<'a>(text: &'a str, form: &str, what: &str) -> Result<(Naming, &'a str), String> {
    let (name, rest) = text.split_once('=').ok_or_else(|| format!("{form} is expected"))?;
    let name: ImageName = name.parse().map_err(|error| format!("{name:?}: {error}"))?;
    if name.digest.is_some() {
        return Err("the digest is computed from the content; repository[:tag] is expected before =".to_owned());
    }
    if rest.is_empty() {
        return Err(format!("there is nothing after =; {what} is expected"));
    }
    Ok((Naming { repository: Some(name.repository), tags: name.tag.map_or(Tags::Own, Tags::One) }, rest))
}

/// Whether `text` is a media type without parameters (RFC 6838, section 4.2).
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
    fn parses_named_sources() {
        let (repository, label, tags) = parts(Request::named("localhost:5000/a:b=dir=1").unwrap());
        assert_eq!((repository.as_str(), label.as_str(), tags), ("localhost:5000/a", "dir=1", Tags::One("b".parse().unwrap())));
        for (text, expected) in [
            ("a", "REF=SOURCE is expected"),
            ("A=x", "\"A\": a repository name has lower-case letters and digits, joined by one of . _ __ - and split by /"),
            ("a=", "there is nothing after =; a file or folder is expected"),
            (
                "a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855=x",
                "the digest is computed from the content; repository[:tag] is expected before =",
            ),
        ] {
            assert_eq!(Request::named(text).unwrap_err(), expected);
        }
    }

    #[test]
    fn splits_the_media_type_off_an_artifact_file() {
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
