//! `localregistry sample`: writes an image layout with a small runnable image. Its program is this project's static init, which prints
//! a greeting with `--hello`. No network is used. The same program gives the same bytes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use super::scratch::{BLOBS, ContainerConfig, FileOwnership, LayerCompression, LayoutWriter};
use crate::disk::layout::{self, Directory, ReadOptions, Unnamed};
use crate::host::boot::initramfs::init;
use crate::host::boot::static_program::{Program, ProgramError, SAMPLE};
use crate::host::support::files::TemporaryDir;
use crate::host::support::interrupt::Interrupt;
use crate::host::support::report::Report;
use crate::oci::Digest;

/// Name of the image.
const NAME: &str = "test/hello:latest";
/// Path of the program in the image.
const PROGRAM: &str = "localregistry-init";
const ENTRYPOINT: [&str; 2] = ["/localregistry-init", "--hello"];
/// Identifies the image to runtimes and scanners (os-release(5)).
const OS_RELEASE: &str = "NAME=localregistry\nID=localregistry\nPRETTY_NAME=\"localregistry sample image\"\n";

/// Write a small runnable image to try out packing and running
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  localregistry sample -o sample/ && localregistry pack sample/ -o disk.erofs

The image is test/hello:latest. Its container prints a greeting and exits. The same program gives the same bytes.")]
pub struct SampleArgs {
    /// Folder for the OCI image layout; replaces an earlier sample
    #[arg(long, short, value_name = "LAYOUT_DIR")]
    output: PathBuf,

    /// Static program for the image [default: localregistry-init next to this program, or built in the same target/]
    #[arg(long, visible_alias = "init", value_name = "PATH")]
    binary: Option<PathBuf>,
}

/// Why no sample image is written.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// There is no program.
    #[error(transparent)]
    Nowhere(init::InitError),
    /// The program cannot run in an image without libraries.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The folder has other content.
    #[error("{} contains something other than an earlier sample; a new or empty folder is expected", .0.display())]
    Occupied(PathBuf),
    /// A file cannot be written.
    #[error("cannot write the image to {}", folder.display())]
    Write {
        /// The folder.
        folder: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The result cannot be printed.
    #[error("the image is written, but its summary cannot be printed")]
    Print(#[source] io::Error),
}

/// The sample image.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SampleResult {
    /// Folder of the layout, as given.
    layout: String,
    /// Name of the image.
    image: &'static str,
    /// Digest of the manifest.
    digest: String,
    /// Size of the whole layout in bytes.
    bytes: u64,
}

/// Runs `localregistry sample`.
///
/// # Errors
/// Fails if there is no program, or its image cannot be written.
pub fn run(args: SampleArgs, report: Report) -> Result<(), SampleError> {
    let interrupt = Interrupt::of_process();
    let ends = interrupt.end_at_once("");
    let binary = args.binary.map_or_else(init::find, Ok).map_err(SampleError::Nowhere)?;
    let program = Program::read(&binary, SAMPLE)?;
    let folder = args.output;
    if !is_free(&folder) {
        return Err(SampleError::Occupied(folder));
    }
    report.step(format!("writing an image of {}", binary.display()));
    let failed = |source| SampleError::Write { folder: folder.clone(), source };
    let existing = folder.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("."));
    let temporary = TemporaryDir::new_in(existing, ".localregistry-").map_err(failed)?;
    let (digest, bytes) = write(temporary.path(), &program).map_err(failed)?;
    // A signal leaves nothing, or the whole layout.
    drop(ends);
    put(temporary.path(), &folder).map_err(failed)?;
    let text = format!("{NAME}  {digest}\n{}: a layout of {bytes} bytes", folder.display());
    let summary = SampleResult { layout: folder.display().to_string(), image: NAME, digest: digest.to_string(), bytes };
    report.result(&summary, &text).map_err(SampleError::Print)
}

/// Whether the folder is missing, empty, or contains an earlier sample.
fn is_free(folder: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(folder) else { return !folder.exists() };
    if entries.next().is_none() {
        return true;
    }
    let Ok(tree) = Directory::open(folder) else { return false };
    let images = layout::images(&tree, ReadOptions { unnamed: Unnamed::Reject, verify: false, allow_missing: false });
    images.is_ok_and(|found| found.left_over.is_empty() && found.images.iter().all(|image| image.name() == NAME))
}

/// Moves a layout to `folder`, on the same file system. The index comes last, so that an earlier image stays valid until then.
fn put(layout: &Path, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder.join(BLOBS))?;
    for blob in fs::read_dir(layout.join(BLOBS))? {
        let blob = blob?;
        fs::rename(blob.path(), folder.join(BLOBS).join(blob.file_name()))?;
    }
    ["oci-layout", "index.json"].iter().try_for_each(|file| fs::rename(layout.join(file), folder.join(file)))
}

/// Writes the layout of an image with `program` to `folder`. Returns the image's digest and the layout's size.
fn write(folder: &Path, program: &Program) -> io::Result<(Digest, u64)> {
    let mut layout = LayoutWriter::new(folder, program.processor)?;
    let program = &*program.content;
    let layer = layout.layer(LayerCompression::Gzip, |archive| {
        archive.folder("etc", FileOwnership::PROGRAM)?;
        archive.file("etc/os-release", FileOwnership::FILE, OS_RELEASE.len() as u64, OS_RELEASE.as_bytes())?;
        archive.file(PROGRAM, FileOwnership::PROGRAM, program.len() as u64, program)
    })?;
    let start =
        ContainerConfig { entrypoint: ENTRYPOINT.map(str::to_owned).into(), working_dir: "/", ..ContainerConfig::default() };
    let image = layout.image(&start, &[layer])?;
    let digest = image.digest;
    layout.name(image, NAME);
    Ok((digest, layout.finish()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::boot::elf::Processor;

    fn program(content: &[u8]) -> Program {
        Program { content: content.to_vec(), processor: Processor::X86 }
    }

    #[test]
    fn sample_is_a_layout_with_one_runnable_image() {
        let folder = tempfile::tempdir().unwrap();
        let (expected, bytes) = write(folder.path(), &program(b"program")).unwrap();
        let tree = Directory::open(folder.path()).unwrap();
        let options = ReadOptions { unnamed: Unnamed::Reject, verify: true, allow_missing: false };
        let images = layout::images(&tree, options).unwrap().images;
        let [image] = images.as_slice() else { panic!("one image is expected: {images:?}") };
        assert_eq!((image.name().as_str(), image.digest, image.blobs.len()), (NAME, expected, 3));

        let blobs: u64 = image.blobs.iter().map(|blob| blob.size).sum();
        let others = ["oci-layout", "index.json"].map(|file| fs::metadata(folder.path().join(file)).unwrap().len());
        assert_eq!(bytes, blobs + others.iter().sum::<u64>());

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
    fn same_program_gives_the_same_digest() {
        let made = |content: &[u8]| write(tempfile::tempdir().unwrap().path(), &program(content)).unwrap().0;
        assert_eq!(made(b"program"), made(b"program"));
        assert_ne!(made(b"program"), made(b"other"));
    }

    #[test]
    fn replaces_an_earlier_sample_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_free(folder.path()) && is_free(&folder.path().join("new")));
        write(folder.path(), &program(b"program")).unwrap();
        assert!(is_free(folder.path()));
        fs::write(folder.path().join("index.json"), r#"{"schemaVersion":2,"manifests":[]"#).unwrap();
        assert!(!is_free(folder.path()));
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("file"), "mine").unwrap();
        assert!(!is_free(other.path()) && !is_free(&other.path().join("file")));
    }
}
