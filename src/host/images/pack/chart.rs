//! Builds the artifact of a Helm chart from its package, as `helm push` does (Helm, `pkg/registry`): the chart's metadata is the config,
//! the package the layer, and its version the tag. What a package may hold is what Helm's loader takes (`pkg/chart/loader/archive`).

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;
use tar::EntryType;

use super::chart_metadata::Metadata;
use super::files;
use crate::host::images::virtual_layout::{BlobContent, NewDescriptor, NewManifest, VirtualLayout, open_regular};
use crate::host::support::interrupt::Interrupt;
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
/// Largest header of a long name, in bytes, that Helm reads (Go, `archive/tar`: `maxSpecialFileSize`).
const MAX_HEADER: u64 = 1 << 20;

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
    FileTooLarge { path: String, size: u64 },
    #[error("its member {path:?} {fault}, and Helm does not load such a chart")]
    Member { path: String, fault: &'static str },
    #[error("{path} is not the metadata of a chart: {fault}")]
    Metadata { path: String, fault: String },
    #[error("{path}: the version {version:?} makes no tag")]
    Version { path: String, version: String, source: NameError },
    #[error("{path}: the chart's name {name:?} makes no repository; give it one with --chart REPOSITORY=FILE")]
    Name { path: String, name: String, source: NameError },
    #[error("cannot make a manifest")]
    Manifest(#[from] serde_json::Error),
}

/// Builds the artifact of the chart in `package`, with its provenance if there is a file of that name with `.prov` behind it. `named` says
/// that the request has a repository; otherwise it is the chart's name.
///
/// # Errors
/// Fails if the file is not a chart that Helm could load.
pub fn open(package: &Path, named: bool, interrupt: &Interrupt) -> Result<VirtualLayout, ChartError> {
    // First, because it bounds what is read: another file ends at its start.
    let (path, metadata) = metadata(package, interrupt)?;
    let name = name(&path, &metadata, named)?;
    let (mut content, size) = open_regular(package).map_err(ChartError::Read)?;
    let digest = files::hash(&mut content, interrupt).map_err(ChartError::Read)?;

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
        annotations: metadata.annotations(),
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
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::read_link(&path) {
            Ok(target) => {
                let message = format!("it is a symbolic link to {}, which does not exist", target.display());
                return Err(unreadable(io::Error::new(error.kind(), message)));
            }
            Err(_) => return Ok(None),
        },
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
    match Metadata::parse(&yaml) {
        Ok(metadata) => Ok((path, metadata)),
        Err(fault) => Err(ChartError::Metadata { path, fault }),
    }
}

/// The content of the one `FOLDER/Chart.yaml`, and its path. Verifies the checksum of the package; what is behind that is ignored.
fn metadata_file(package: &Path, interrupt: &Interrupt) -> Result<(String, Vec<u8>), ChartError> {
    let (file, _) = open_regular(package).map_err(ChartError::Read)?;
    let decoder = GzDecoder::new(BufReader::with_capacity(1 << 16, file));
    let mut unpacked = Unpacked { decoder: Some(decoder), left: MAX_UNPACKED, interrupt };
    let found = search(&mut unpacked).and_then(|found| unpacked.finish_member().map(|()| found));
    match found {
        // Also if the archive's reader made another error of it.
        Err(_) | Ok(_) if unpacked.left == 0 => Err(ChartError::TooLarge),
        Err(error) => Err(ChartError::Damaged(error)),
        Ok(found) => found,
    }
}

/// Looks through a tar archive. Of other members than the metadata, only the names and sizes are judged.
fn search(unpacked: &mut impl Read) -> io::Result<Result<(String, Vec<u8>), ChartError>> {
    let mut found: Option<(String, Vec<u8>)> = None;
    let mut long_name = None;
    let mut archive = tar::Archive::new(unpacked);
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::GNULongName | EntryType::XHeader) {
            long_name = name_in(&mut entry)?.or(long_name);
            continue;
        }
        if matches!(kind, EntryType::GNULongLink | EntryType::XGlobalHeader) {
            continue;
        }
        let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
        let name = String::from_utf8_lossy(&name).into_owned();
        // Old archives have no type for folders.
        if kind.is_dir() || (entry.header().as_old().linkflag == [0] && name.ends_with('/')) {
            continue;
        }
        let path = match path_in_chart(&name) {
            Ok(path) => path,
            Err(error) => return Ok(Err(error)),
        };
        let size = entry.size();
        if size > MAX_FILE {
            return Ok(Err(ChartError::FileTooLarge { path: name, size }));
        }
        if path != METADATA || !kind.is_file() {
            continue;
        }
        if let Some((first, _)) = found {
            return Ok(Err(ChartError::Several { first, second: name }));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        found = Some((name, content));
    }
    Ok(found.ok_or(ChartError::NoMetadata))
}

/// The name that a header of GNU tar or of pax gives the next member.
fn name_in(header: &mut tar::Entry<'_, impl Read>) -> io::Result<Option<Vec<u8>>> {
    if header.size() > MAX_HEADER {
        return Err(io::Error::other(format!("a header has {} bytes; Helm reads at most {MAX_HEADER}", header.size())));
    }
    let mut content = Vec::new();
    header.read_to_end(&mut content)?;
    if header.header().entry_type() == EntryType::GNULongName {
        return Ok(content.split(|byte| *byte == 0).next().map(<[u8]>::to_vec));
    }
    let mut name = None;
    for record in tar::PaxExtensions::new(&content) {
        let record = record?;
        if record.key_bytes() == b"path" {
            name = Some(record.value_bytes().to_vec()).filter(|name| !name.is_empty());
        }
    }
    Ok(name)
}

/// The path of a member in the chart's folder, which is the first part of its name. Archives made on Windows may split it at backslashes.
fn path_in_chart(name: &str) -> Result<String, ChartError> {
    let delimiter = if name.contains('\\') { '\\' } else { '/' };
    let (folder, rest) = name.split_once(delimiter).unwrap_or((name, ""));
    if folder == METADATA {
        return Err(ChartError::NoMetadata);
    }
    let rest = rest.replace(delimiter, "/");
    let mut parts: Vec<&str> = Vec::new();
    for part in rest.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let path = parts.join("/");
    let fault = match path.as_bytes() {
        _ if rest.starts_with('/') => "has an absolute path",
        [] => "is in no folder",
        [b'.', b'.', ..] => "leads out of the chart's folder",
        [drive, b':', b'/', ..] if drive.is_ascii_alphabetic() => "is on a drive",
        _ => return Ok(path),
    };
    Err(ChartError::Member { path: name.to_owned(), fault })
}

/// Decompressed content, up to a limit. `left` is 0 once it is reached.
struct Unpacked<'a> {
    /// `None` at the end of the file.
    decoder: Option<GzDecoder<BufReader<File>>>,
    left: u64,
    interrupt: &'a Interrupt,
}

impl Unpacked<'_> {
    /// Reads from the current gzip member: 0 at its end, once its checksum is verified.
    fn read_member(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupt.check_io()?;
        let count = self.decoder.as_mut().map_or(Ok(0), |decoder| decoder.read(buffer))?;
        self.left = self.left.saturating_sub(count as u64);
        if self.left == 0 { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(count) }
    }

    fn finish_member(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        while self.read_member(&mut buffer)? > 0 {}
        Ok(())
    }
}

impl Read for Unpacked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.read_member(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let Some(mut file) = self.decoder.take().map(GzDecoder::into_inner) else { return Ok(0) };
            if !file.fill_buf()?.is_empty() {
                self.decoder = Some(GzDecoder::new(file));
            }
        }
    }
}
