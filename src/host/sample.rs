//! `localregistry sample`: a small image that runs, from this project's own static init, which greets and ends when it is asked to.
//! What enters is that program; what leaves is an OCI image layout. No network is used, and the same program gives the same bytes.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use oci_spec::OciSpecError;
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder,
    MediaType, OciLayoutBuilder, Os, RootFsBuilder,
};
use serde::Serialize;

use super::elf::Processor;
use super::files;
use super::initramfs::init;
use super::report::Report;
use crate::oci::Digest;
use crate::registry::layout::{self, Directory, REF_NAME, Reading};

/// The image's name.
const NAME: &str = "test/hello:latest";
/// The program's path in the image.
const PROGRAM: &str = "localregistry-init";
/// What a container of it runs.
const ENTRYPOINT: [&str; 2] = ["/localregistry-init", "--hello"];
/// What runtimes and scanners read to know what an image is made of (freedesktop.org, os-release(5)).
const OS_RELEASE: &str = "NAME=localregistry\nID=localregistry\nPRETTY_NAME=\"localregistry sample image\"\n";

/// Make a small image that runs, to try everything with
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  localregistry sample -o sample/ && localregistry pack sample/ -o disk.erofs

The image is test/hello:latest. A container of it prints a greeting and ends. The same program gives the same bytes.")]
pub struct Args {
    /// Folder for the OCI image layout; an earlier sample there is replaced
    #[arg(long, short, value_name = "LAYOUT_DIR")]
    output: PathBuf,

    /// The static program of the image [default: localregistry-init beside this program, or built in the same target/]
    #[arg(long, visible_alias = "init", value_name = "PATH")]
    binary: Option<PathBuf>,
}

/// Why there is no sample image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no program for it.
    #[error(transparent)]
    Program(#[from] init::InitError),
    /// The folder has something else.
    #[error("{} has something else than an earlier sample; a new or an empty folder is expected", .0.display())]
    Occupied(PathBuf),
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The image cannot be put together.
    #[error("cannot make the image")]
    Make(#[from] OciSpecError),
    /// The result cannot be printed.
    #[error("the image is made, and its summary cannot be printed")]
    Print(#[source] io::Error),
}

/// What was made.
#[derive(Debug, Serialize)]
struct Summary {
    layout: PathBuf,
    image: &'static str,
    digest: String,
    bytes: u64,
}

/// Runs the subcommand.
///
/// # Errors
/// [`Error`], when there is no program, or its image cannot be written.
pub fn run(args: Args, report: Report) -> Result<(), Error> {
    let binary = args.binary.map_or_else(init::find, Ok)?;
    let program = init::read(&binary)?;
    let folder = args.output;
    if !is_free(&folder) {
        return Err(Error::Occupied(folder));
    }
    report.step(format!("making an image of {}", binary.display()));
    let image = image(&program.content, architecture(program.processor))?;
    // index.json comes last: until then, the folder has the earlier image.
    for (path, content) in &image.files {
        write(&folder.join(path), content)?;
    }
    let bytes = image.files.iter().fold(0, |sum, (_, content)| sum + content.len() as u64);
    let text = format!("{NAME}  {}\n{}: a layout of {bytes} bytes", image.digest, folder.display());
    let summary = Summary { layout: folder, image: NAME, digest: image.digest.to_string(), bytes };
    report.result(&summary, &text).map_err(Error::Print)
}

/// Whether the folder is missing, empty, or has an earlier sample.
fn is_free(folder: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(folder) else { return !folder.exists() };
    if entries.next().is_none() {
        return true;
    }
    let Ok(tree) = Directory::open(folder) else { return false };
    let images = layout::images(&tree, Reading { unnamed: None, verify: false, lenient: false });
    images.is_ok_and(|images| images.iter().all(|image| image.name() == NAME))
}

fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    folder.and_then(|()| files::write_atomically(path, content)).map_err(|source| Error::Write { path: path.to_owned(), source })
}

struct Image {
    /// The layout's files with their paths.
    files: Vec<(String, Vec<u8>)>,
    /// The manifest's digest.
    digest: Digest,
}

/// A processor by its name in an image's config (GOARCH).
const fn architecture(processor: Processor) -> Arch {
    match processor {
        Processor::X86 => Arch::Amd64,
        Processor::Arm => Arch::ARM64,
    }
}

/// An image with `program`.
fn image(program: &[u8], architecture: Arch) -> Result<Image, OciSpecError> {
    let mut files = Vec::new();
    let archive = layer(program)?;
    let diff_id = Digest::sha256_of(&archive);
    let layer = blob(&mut files, MediaType::ImageLayerGzip, gzip(&archive)?)?.1;

    let config = ImageConfigurationBuilder::default()
        .architecture(architecture)
        .os(Os::Linux)
        .config(ConfigBuilder::default().entrypoint(ENTRYPOINT.map(str::to_owned)).working_dir("/").build()?)
        .rootfs(RootFsBuilder::default().typ("layers").diff_ids([diff_id.to_string()]).build()?)
        .build()?;
    let config = blob(&mut files, MediaType::ImageConfig, config.to_string()?.into_bytes())?.1;

    let manifest = ImageManifestBuilder::default().schema_version(2_u32).media_type(MediaType::ImageManifest);
    let manifest = manifest.config(config).layers([layer]).build()?.to_string()?;
    let (digest, mut manifest) = blob(&mut files, MediaType::ImageManifest, manifest.into_bytes())?;

    manifest.set_annotations(Some([(REF_NAME.to_owned(), NAME.to_owned())].into()));
    let index = ImageIndexBuilder::default().schema_version(2_u32).media_type(MediaType::ImageIndex).manifests([manifest]);
    let marker = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;
    files.push(("oci-layout".to_owned(), marker.to_string()?.into_bytes()));
    files.push(("index.json".to_owned(), index.build()?.to_string()?.into_bytes()));
    Ok(Image { files, digest })
}

/// Adds a blob and gives its digest and descriptor.
fn blob(files: &mut Vec<(String, Vec<u8>)>, kind: MediaType, content: Vec<u8>) -> Result<(Digest, Descriptor), OciSpecError> {
    let digest = Digest::sha256_of(&content);
    let named: oci_spec::image::Digest = digest.to_string().parse()?;
    let descriptor = DescriptorBuilder::default().media_type(kind).digest(named).size(content.len() as u64).build()?;
    files.push((digest.blob_path(), content));
    Ok((digest, descriptor))
}

/// The image's files as a tar archive, owned by root, of time 0.
fn layer(program: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let entries: [(&str, tar::EntryType, u32, &[u8]); 3] = [
        ("etc/", tar::EntryType::Directory, 0o755, b""),
        ("etc/os-release", tar::EntryType::Regular, 0o644, OS_RELEASE.as_bytes()),
        (PROGRAM, tar::EntryType::Regular, 0o755, program),
    ];
    for (path, kind, mode, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, content)?;
    }
    archive.into_inner()
}

/// Compressed with gzip, whose header then has neither a time nor a name.
fn gzip(content: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(folder: &Path, program: &[u8]) -> Image {
        let image = image(program, Arch::Amd64).unwrap();
        image.files.iter().for_each(|(path, content)| write(&folder.join(path), content).unwrap());
        image
    }

    #[test]
    fn a_layout_with_one_runnable_image() {
        let folder = tempfile::tempdir().unwrap();
        let expected = made(folder.path(), b"program").digest;
        let tree = Directory::open(folder.path()).unwrap();
        let images = layout::images(&tree, Reading { unnamed: None, verify: true, lenient: false }).unwrap();
        let [image] = images.as_slice() else { panic!("one image is expected: {images:?}") };
        assert_eq!((image.name().as_str(), image.digest, image.blobs.len()), (NAME, expected, 3));

        let content = |number: usize| fs::read(folder.path().join(image.blobs[number].digest.blob_path())).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&content(1)).unwrap();
        assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/localregistry-init", "--hello"]));
        assert_eq!((config["os"].as_str(), config["architecture"].as_str()), (Some("linux"), Some("amd64")));
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(io::Cursor::new(content(2))));
        let entries: Vec<(String, u32)> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap()))
            .collect();
        let expected = [("etc/", 0o755), ("etc/os-release", 0o644), (PROGRAM, 0o755)];
        assert_eq!(entries, expected.map(|(path, mode)| (path.to_owned(), mode)));
    }

    #[test]
    fn the_same_program_gives_the_same_bytes() {
        let image = |program: &[u8]| image(program, Arch::Amd64).unwrap();
        assert_eq!(image(b"program").files, image(b"program").files);
        assert_ne!(image(b"program").digest, image(b"other").digest);
    }

    #[test]
    fn replaces_an_earlier_sample_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_free(folder.path()) && is_free(&folder.path().join("new")));
        made(folder.path(), b"program");
        assert!(is_free(folder.path()));
        fs::write(folder.path().join("index.json"), r#"{"schemaVersion":2,"manifests":[]"#).unwrap();
        assert!(!is_free(folder.path()));
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("file"), "mine").unwrap();
        assert!(!is_free(other.path()) && !is_free(&other.path().join("file")));
    }
}
