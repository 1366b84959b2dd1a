//! Builds the artifact of a Helm chart from its package, as `helm push` does (Helm, `pkg/registry`): the chart's metadata is the config,
//! the package the layer, and its version the tag.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::files;
use crate::host::images::virtual_layout::{BlobContent, NewDescriptor, NewManifest, VirtualLayout, open_regular};
use crate::host::support::interrupt::Interrupt;
use crate::oci::json;
use crate::oci::{Digest, ImageName, NameError, Repository, Tag, media_type};

/// Media types that Helm requires (Helm, `pkg/registry/constants.go`).
const CONFIG: &str = "application/vnd.cncf.helm.config.v1+json";
const PACKAGE: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
const PROVENANCE: &str = "application/vnd.cncf.helm.chart.provenance.v1.prov";

/// The file with the metadata, in the package's folder.
const METADATA: &str = "Chart.yaml";
/// Largest file, and largest package when it is unpacked, in bytes, that Helm loads (`pkg/chart/loader/archive`).
const MAX_FILE: u64 = 5 << 20;
const MAX_UNPACKED: u64 = 100 << 20;

/// Why a chart cannot be packed. The caller adds its path.
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    #[error("cannot read it")]
    Read(#[source] io::Error),
    #[error("cannot read its provenance {}", path.display())]
    Provenance { path: PathBuf, source: io::Error },
    #[error("it is no Helm chart: a tar archive compressed with gzip is expected, as helm package writes it")]
    Damaged(#[source] io::Error),
    #[error("it unpacks to more than {MAX_UNPACKED} bytes, which Helm does not load")]
    TooLarge,
    #[error("it has no {METADATA} in a folder; the package of a Helm chart is expected, as helm package writes it")]
    NoMetadata,
    #[error("it has {first} and {second}; one chart is expected")]
    Several { first: String, second: String },
    #[error("{path} has {size} bytes; Helm loads files of at most {MAX_FILE}")]
    MetadataTooLarge { path: String, size: u64 },
    #[error("{path} is not the metadata of a chart: {fault}")]
    Metadata { path: String, fault: String },
    #[error("{path}: the version {version:?} makes no tag")]
    Version { path: String, version: String, source: NameError },
    #[error("{path}: the chart's name {name:?} makes no repository; give it one with --chart REPOSITORY=FILE")]
    Name { path: String, name: String, source: NameError },
    #[error("cannot make a manifest")]
    Manifest(#[from] serde_json::Error),
}

/// The metadata of a chart, with Helm's field names and order (Helm, `pkg/chart`, `Metadata`). Helm drops other fields.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default, deserialize_with = "json::null_as_default")]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    home: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sources: Option<Vec<String>>,
    #[serde(default, deserialize_with = "json::null_as_default")]
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keywords: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    maintainers: Option<Vec<Maintainer>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icon: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deprecated: Option<bool>,
    #[serde(default, deserialize_with = "json::texts", skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kube_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dependencies: Option<Vec<Dependency>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Maintainer {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Dependency {
    #[serde(default, deserialize_with = "json::null_as_default")]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(default, deserialize_with = "json::null_as_default")]
    repository: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    import_values: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<String>,
}

/// Builds the artifact of the chart in `package`, with its provenance if there is a file of that name with `.prov` behind it. `named` says
/// that the request has a repository; otherwise it is the chart's name.
///
/// # Errors
/// Fails if the file is not a chart that Helm could load.
pub fn open(package: &Path, named: bool, interrupt: &Interrupt) -> Result<VirtualLayout, ChartError> {
    let (mut content, size) = open_regular(package).map_err(ChartError::Read)?;
    let digest = files::hash(&mut content, interrupt).map_err(ChartError::Read)?;
    let (path, metadata) = metadata(package, interrupt)?;
    let name = name(&path, &metadata, named)?;

    let config = serde_json::to_vec(&metadata)?;
    let config_digest = Digest::sha256_of(&config);
    let config_descriptor = NewDescriptor::new(CONFIG, config_digest, config.len() as u64);
    let mut layers = vec![NewDescriptor::new(PACKAGE, digest, size)];
    let mut blobs = vec![(config_digest, BlobContent::Memory(config)), (digest, BlobContent::File(package.to_owned()))];
    if let Some((path, digest, size)) = provenance(package, interrupt)? {
        layers.push(NewDescriptor::new(PROVENANCE, digest, size));
        blobs.push((digest, BlobContent::File(path)));
    }
    let manifest = NewManifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST,
        artifact_type: None,
        config: config_descriptor,
        layers,
    };
    Ok(VirtualLayout::named(&manifest, Some(&name), blobs)?)
}

/// The name of the chart's image: its version as the tag, in the repository of its name unless the request has one.
fn name(path: &str, metadata: &Metadata, named: bool) -> Result<String, ChartError> {
    let Metadata { name, version, .. } = metadata;
    // As Helm: no tag has a plus sign, and no version an underscore.
    let tag: Result<Tag, NameError> = version.replace('+', "_").parse();
    let tag = tag.map_err(|source| ChartError::Version { path: path.to_owned(), version: version.clone(), source })?;
    if named {
        return Ok(tag.to_string());
    }
    let wrong = |source| ChartError::Name { path: path.to_owned(), name: name.clone(), source };
    let repository: Repository = name.parse().map_err(wrong)?;
    Ok(ImageName { repository, tag: Some(tag), digest: None }.to_string())
}

/// The provenance file of a package, its digest and its size in bytes.
fn provenance(package: &Path, interrupt: &Interrupt) -> Result<Option<(PathBuf, Digest, u64)>, ChartError> {
    let path = provenance_path(package);
    let unreadable = |source| ChartError::Provenance { path: path.clone(), source };
    let (mut content, size) = match open_regular(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(unreadable)?,
    };
    let digest = files::hash(&mut content, interrupt).map_err(unreadable)?;
    Ok(Some((path, digest, size)))
}

/// Where `helm package --sign` writes the provenance of a package.
fn provenance_path(package: &Path) -> PathBuf {
    let mut path = OsString::from(package);
    path.push(".prov");
    path.into()
}

/// The metadata of a package, and its path there.
fn metadata(package: &Path, interrupt: &Interrupt) -> Result<(String, Metadata), ChartError> {
    let (path, yaml) = metadata_file(package, interrupt)?;
    let options = serde_saphyr::options! {
        with_snippet: false,
        // As the YAML library of Helm.
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
    };
    match serde_saphyr::from_slice_with_options::<Metadata>(&yaml, options) {
        Ok(metadata) if metadata.name.is_empty() => Err(ChartError::Metadata { path, fault: "the name is empty".to_owned() }),
        Ok(metadata) if metadata.version.is_empty() => {
            Err(ChartError::Metadata { path, fault: "the version is empty".to_owned() })
        }
        Ok(metadata) if metadata.name.contains('/') => Err(ChartError::Metadata {
            path,
            fault: format!("the name {:?} has a slash, which Helm does not load", metadata.name),
        }),
        Ok(metadata) if !is_version(&metadata.version) => Err(ChartError::Metadata {
            path,
            fault: format!(
                "the version {:?} is not MAJOR.MINOR.PATCH of Semantic Versioning, which Helm wants",
                metadata.version
            ),
        }),
        Ok(mut metadata) => {
            // As Helm's loader, for charts of Helm 2 (`pkg/chart/loader/load.go`).
            metadata.api_version = metadata.api_version.filter(|version| !version.is_empty()).or_else(|| Some("v1".to_owned()));
            Ok((path, metadata))
        }
        Err(error) => Err(ChartError::Metadata { path, fault: error.to_string().replace('\n', " ") }),
    }
}

/// Whether Helm takes the version: one to three numbers of 64 bits, also after a `v`, then a pre-release and a build (`NewVersion` of
/// Masterminds/semver, by which Helm validates metadata).
fn is_version(text: &str) -> bool {
    let split = |text, at| <str>::split_once(text, at).map_or((text, None), |(before, after)| (before, Some(after)));
    let (text, build) = split(text, '+');
    let (core, pre_release) = split(text, '-');
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()) && part.parse::<u64>().is_ok();
    let is_identifier = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let mut numbers = core.strip_prefix('v').unwrap_or(core).split('.');
    let suffixes = pre_release.into_iter().chain(build);
    numbers.clone().count() <= 3 && numbers.all(is_number) && suffixes.flat_map(|list| list.split('.')).all(is_identifier)
}

/// The content of the one `FOLDER/Chart.yaml`, and its path. Reads the package to its end, which verifies its checksum.
fn metadata_file(package: &Path, interrupt: &Interrupt) -> Result<(String, Vec<u8>), ChartError> {
    let (file, _) = open_regular(package).map_err(ChartError::Read)?;
    let mut unpacked =
        Unpacked { inner: MultiGzDecoder::new(BufReader::with_capacity(1 << 16, file)), left: MAX_UNPACKED, interrupt };
    let found = search(&mut unpacked).and_then(|found| io::copy(&mut unpacked, &mut io::sink()).map(|_| found));
    match found {
        // Also if the archive's reader made another error of it.
        Err(_) | Ok(_) if unpacked.left == 0 => Err(ChartError::TooLarge),
        Err(error) => Err(ChartError::Damaged(error)),
        Ok(found) => found,
    }
}

/// Looks through a tar archive. Other headers than those of files are passed over unread, so that none takes memory.
fn search(unpacked: &mut impl Read) -> io::Result<Result<(String, Vec<u8>), ChartError>> {
    let mut found: Option<(String, Vec<u8>)> = None;
    let mut archive = tar::Archive::new(unpacked);
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let is_metadata = path.split_once('/').is_some_and(|(_, rest)| rest == METADATA);
        if !is_metadata || !entry.header().entry_type().is_file() {
            continue;
        }
        let size = entry.size();
        if size > MAX_FILE {
            return Ok(Err(ChartError::MetadataTooLarge { path, size }));
        }
        if let Some((first, _)) = found {
            return Ok(Err(ChartError::Several { first, second: path }));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        found = Some((path, content));
    }
    Ok(found.ok_or(ChartError::NoMetadata))
}

/// Decompressed content, up to a limit. `left` is 0 once it is reached.
struct Unpacked<'a> {
    inner: MultiGzDecoder<BufReader<File>>,
    left: u64,
    interrupt: &'a Interrupt,
}

impl Read for Unpacked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupt.check_io()?;
        let count = self.inner.read(buffer)?;
        self.left = self.left.saturating_sub(count as u64);
        if self.left == 0 { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(count) }
    }
}
