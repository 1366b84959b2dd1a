//! `localregistry sample`: a small image that runs, from this project's own static init, which greets and ends when it is asked to.
//! What enters is that program; what leaves is an OCI image layout. No network is used, and the same program gives the same bytes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use super::scratch::{Layout, Packing, Rights, Start};
use crate::disk::layout::{self, Directory, ReadOptions, Unnamed};
use crate::host::boot::initramfs::init;
use crate::host::boot::program::Program;
use crate::host::support::report::Report;
use crate::oci::Digest;

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
    #[error("cannot write the image to {}", folder.display())]
    Write {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The result cannot be printed.
    #[error("the image is made, and its summary cannot be printed")]
    Print(#[source] io::Error),
}

/// The image that was made.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SampleResult")]
pub(crate) struct Summary {
    /// The layout's folder, as it was given.
    layout: PathBuf,
    /// The image's name.
    image: &'static str,
    /// Digest of its manifest.
    digest: String,
    /// Size of the whole layout in bytes.
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
    let (digest, bytes) = write(&folder, &program).map_err(|source| Error::Write { folder: folder.clone(), source })?;
    let text = format!("{NAME}  {digest}\n{}: a layout of {bytes} bytes", folder.display());
    let summary = Summary { layout: folder, image: NAME, digest: digest.to_string(), bytes };
    report.result(&summary, &text).map_err(Error::Print)
}

/// Whether the folder is missing, empty, or has an earlier sample.
fn is_free(folder: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(folder) else { return !folder.exists() };
    if entries.next().is_none() {
        return true;
    }
    let Ok(tree) = Directory::open(folder) else { return false };
    let images = layout::images(&tree, ReadOptions { unnamed: Unnamed::Reject, verify: false, allow_missing: false });
    images.is_ok_and(|images| images.iter().all(|image| image.name() == NAME))
}

/// Writes the layout of an image with `program` to `folder`, and gives the image's digest and the layout's size. The index comes
/// last: until then, the folder has the earlier image.
fn write(folder: &Path, program: &Program) -> io::Result<(Digest, u64)> {
    let mut layout = Layout::new(folder, program.processor)?;
    let program = &*program.content;
    let layer = layout.layer(Packing::Gzip, |archive| {
        archive.folder("etc", Rights::PROGRAM)?;
        archive.file("etc/os-release", Rights::FILE, OS_RELEASE.len() as u64, OS_RELEASE.as_bytes())?;
        archive.file(PROGRAM, Rights::PROGRAM, program.len() as u64, program)
    })?;
    let start = Start { entrypoint: ENTRYPOINT.map(str::to_owned).into(), working_dir: "/", ..Start::default() };
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
    fn a_layout_with_one_runnable_image() {
        let folder = tempfile::tempdir().unwrap();
        let (expected, bytes) = write(folder.path(), &program(b"program")).unwrap();
        let tree = Directory::open(folder.path()).unwrap();
        let images = layout::images(&tree, ReadOptions { unnamed: Unnamed::Reject, verify: true, allow_missing: false }).unwrap();
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
    fn the_same_program_gives_the_same_bytes() {
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
