//! Builds images from plain files: a config and layers with files of their digests, as Bazel's Docker rules write them, or one file
//! as an OCI artifact. Layers are not read here but when they are packed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::request::Part;
use crate::host::images::virtual_layout::{BlobContent, NewDescriptor, NewManifest, VirtualLayout, open_regular};
use crate::host::support::interrupt::Interrupt;
use crate::oci::{Algorithm, Digest, Hasher, media_type};

/// Bytes read of a digest file: enough to describe wrong content.
const MAX_DIGEST: u64 = 4096;
/// Hexadecimal digits of a SHA-256 digest.
const DIGITS: usize = 64;
/// Default media type of an artifact's file.
const UNKNOWN_FILE: &str = "application/octet-stream";
/// Default artifact type, as in ORAS.
const UNKNOWN_ARTIFACT: &str = "application/vnd.unknown.artifact.v1";
/// The annotation with a file's name, used when it is pulled (image specification, "Pre-Defined Annotation Keys").
const TITLE: &str = "org.opencontainers.image.title";
/// Content of the empty descriptor.
const EMPTY: &[u8] = b"{}";

/// Why no image can be built from files.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("cannot read {what} {}", path.display())]
    Read { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} {found}; 64 lower-case hexadecimal digits of a SHA-256 digest and nothing else are expected", path.display())]
    Digest { path: PathBuf, found: String },
    #[error("the name of {} is not UTF-8; rename it, or pack a link to it", path.display())]
    Name { path: PathBuf },
    #[error("cannot make a manifest")]
    Manifest(#[from] serde_json::Error),
}

/// Builds the image with this config and these layers, with a Docker schema 2 manifest.
///
/// # Errors
/// Fails with the first file that cannot be read.
pub fn image(config: &Part, layers: &[Part]) -> Result<VirtualLayout, FilesError> {
    let mut blobs = Vec::new();
    let mut part = |part: &Part, what, media_type| {
        let digest = digest(&part.digest)?;
        let (_, size) = opened(&part.file, what)?;
        blobs.push((digest, BlobContent::File(part.file.clone())));
        Ok::<_, FilesError>(NewDescriptor::new(media_type, digest, size))
    };
    let config = part(config, "config", media_type::DOCKER_CONFIG)?;
    let layers = layers.iter().map(|layer| part(layer, "layer", media_type::DOCKER_LAYER_GZIP)).collect::<Result<_, _>>()?;
    let manifest = NewManifest {
        schema_version: 2,
        media_type: media_type::DOCKER_MANIFEST,
        artifact_type: None,
        config,
        layers,
        annotations: BTreeMap::new(),
    };
    Ok(VirtualLayout::new(&manifest, blobs)?)
}

/// Builds an artifact whose only layer is `file` (image specification, "Guidelines for Artifact Usage"). `media_type` is the type of
/// both the artifact and the layer.
///
/// # Errors
/// Fails if the file cannot be read.
pub fn artifact(file: &Path, media_type: Option<&str>, interrupt: &Interrupt) -> Result<VirtualLayout, FilesError> {
    let name = file.file_name().and_then(|name| name.to_str()).ok_or_else(|| FilesError::Name { path: file.to_owned() })?;
    let (mut content, size) = opened(file, "file")?;
    let digest = hash(&mut content, interrupt).map_err(|source| unreadable("file", file, source))?;
    let mut layer = NewDescriptor::new(media_type.unwrap_or(UNKNOWN_FILE).to_owned(), digest, size);
    layer.annotations.insert(TITLE, name.to_owned());
    let empty = Digest::sha256_of(EMPTY);
    let manifest = NewManifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST,
        artifact_type: Some(media_type.unwrap_or(UNKNOWN_ARTIFACT).to_owned()),
        config: NewDescriptor::new(media_type::OCI_EMPTY, empty, EMPTY.len() as u64),
        layers: vec![layer],
        annotations: BTreeMap::new(),
    };
    Ok(VirtualLayout::new(
        &manifest,
        [(empty, BlobContent::Memory(EMPTY.to_owned())), (digest, BlobContent::File(file.to_owned()))],
    )?)
}

fn opened(path: &Path, what: &'static str) -> Result<(File, u64), FilesError> {
    open_regular(path).map_err(|source| unreadable(what, path, source))
}

fn unreadable(what: &'static str, path: &Path, source: io::Error) -> FilesError {
    FilesError::Read { what, path: path.to_owned(), source }
}

/// Reads a digest file.
fn digest(path: &Path) -> Result<Digest, FilesError> {
    let mut content = Vec::new();
    let (file, _) = opened(path, "digest file")?;
    file.take(MAX_DIGEST).read_to_end(&mut content).map_err(|source| unreadable("digest file", path, source))?;
    let text = String::from_utf8_lossy(&content);
    format!("sha256:{text}").parse().map_err(|_| FilesError::Digest { path: path.to_owned(), found: fault(&text) })
}

/// Describes wrong content of a digest file.
fn fault(text: &str) -> String {
    let is_hex = |text: &str| text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let trimmed = text.trim_end();
    if text.is_empty() {
        "is empty".to_owned()
    } else if trimmed.strip_prefix("sha256:").is_some_and(is_hex) {
        "starts with \"sha256:\"".to_owned()
    } else if trimmed != text && is_hex(trimmed) {
        "ends with a newline or space".to_owned()
    } else if is_hex(text) {
        "has upper-case digits".to_owned()
    } else {
        let start: String = text.chars().take(DIGITS + 8).collect();
        format!("holds {start:?}{}", if start.len() < text.len() { " and more" } else { "" })
    }
}

/// The digest of what is left to read.
///
/// # Errors
/// Fails if reading fails, or after a signal.
pub fn hash(content: &mut impl Read, interrupt: &Interrupt) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match interrupt.read(content, &mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_describes_the_fault_of_a_digest_file() {
        let hex = Digest::sha256_of(b"").hex();
        for (content, expected) in [
            (String::new(), "is empty".to_owned()),
            (format!("sha256:{hex}"), "starts with \"sha256:\"".to_owned()),
            (format!("sha256:{hex}\n"), "starts with \"sha256:\"".to_owned()),
            (format!("{hex}\n"), "ends with a newline or space".to_owned()),
            (hex.to_uppercase(), "has upper-case digits".to_owned()),
            ("hello\u{1b}".to_owned(), "holds \"hello\\u{1b}\"".to_owned()),
            ("x".repeat(100), format!("holds {:?} and more", "x".repeat(72))),
        ] {
            assert_eq!(fault(&content), expected);
        }
    }
}
