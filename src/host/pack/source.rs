//! What a SOURCE on the command line is, and which images it holds under which names. Nothing is copied here.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::archive::{Archive, ArchiveError};
use super::docker::{self, DockerError, Saved};
use super::interrupt::Interrupt;
use super::unpack::{self, Compression, UnpackError};
use crate::oci::{ImageName, Tag};
use crate::registry::layout::{self, Directory, Image, LayoutError, Reading, Tree};

/// First bytes of compressions that are not understood here, to say so.
const OTHER_MAGIC: [(&[u8], &str); 2] = [(b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2")];

/// A source as it is asked for: where it is, and the name for its image where one is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The file or folder.
    pub path: PathBuf,
    /// The name from `--name`.
    pub name: Option<ImageName>,
}

impl FromStr for Request {
    type Err = String;

    /// Reads `REF=SOURCE`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').ok_or("REF=SOURCE is expected")?;
        let name: ImageName = name.parse().map_err(|error| format!("{name:?}: {error}"))?;
        if name.digest.is_some() {
            return Err("a digest is not given but computed; repository[:tag] is expected before =".to_owned());
        }
        if path.is_empty() {
            return Err("there is nothing after =; a file or folder is expected".to_owned());
        }
        Ok(Self { path: path.into(), name: Some(name) })
    }
}

/// Why a source cannot be packed. The path is the caller's to say.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is not there or not readable.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// Neither a file nor a folder.
    #[error("it is neither a file nor a folder; an OCI image layout or a docker save archive is expected")]
    Special,
    /// An empty file.
    #[error("the file is empty; a tar archive is expected")]
    Empty,
    /// A file that is no archive.
    #[error("it is not a tar archive, plain or compressed with gzip or zstd")]
    NotAnArchive,
    /// Compressed otherwise.
    #[error("it is compressed with {0}; gzip, zstd or no compression is expected")]
    Compression(&'static str),
    /// A compressed archive that does not decompress.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// A damaged archive, or one not to be trusted.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An archive of something else.
    #[error("the archive has neither index.json (an OCI image layout) nor manifest.json (docker save) at its root{0}")]
    Unknown(&'static str),
    /// A docker save archive with a fault.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// An image layout with a fault.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// No image at all.
    #[error("it holds no image")]
    NoImage,
    /// `--name` where it is not clear which image is meant.
    #[error("--name {name}: it holds {} images ({}); one image, or one without a name, is expected", images.len(), images.join(", "))]
    Several {
        /// The name given.
        name: String,
        /// What the source has.
        images: Vec<String>,
    },
}

/// An opened source.
pub struct Source {
    /// As it was given.
    pub path: PathBuf,
    /// Its files.
    pub tree: Box<dyn Tree + Send + Sync>,
    /// Its images, named.
    pub images: Vec<Image>,
}

impl Source {
    /// Opens a source and finds its images. Manifests are verified; other blobs only have their size checked. What must be
    /// decompressed first goes to `folder`.
    ///
    /// # Errors
    /// [`SourceError`], at the first thing that is wrong.
    pub fn open(request: &Request, folder: &Path, interrupt: &Interrupt) -> Result<Self, SourceError> {
        let tree = tree(request, folder, interrupt)?;
        let unnamed = request.name.as_ref().map(|name| &name.repository);
        let images = layout::images(tree.as_ref(), Reading { unnamed, verify: true })?;
        if images.is_empty() {
            return Err(SourceError::NoImage);
        }
        let images = match &request.name {
            Some(name) => named(images, name)?,
            None => images,
        };
        Ok(Self { path: request.path.clone(), tree, images })
    }
}

/// The files of the source, whatever its form. What must be decompressed first goes to `folder`.
///
/// # Errors
/// [`SourceError`], where it is neither a folder nor a whole archive of images.
pub fn tree(request: &Request, folder: &Path, interrupt: &Interrupt) -> Result<Box<dyn Tree + Send + Sync>, SourceError> {
    let metadata = fs::metadata(&request.path).map_err(SourceError::Read)?;
    if metadata.is_dir() {
        return Ok(Box::new(Directory::open(&request.path).map_err(SourceError::Read)?));
    }
    if !metadata.is_file() {
        return Err(SourceError::Special);
    }
    let archive = Archive::open(plain(&request.path, folder, interrupt)?)?;
    if archive.has("index.json") {
        return Ok(Box::new(archive));
    }
    if archive.has(docker::MANIFEST) {
        return Ok(Box::new(Saved::open(archive, request.name.is_some(), interrupt)?));
    }
    Err(SourceError::Unknown(if archive.ended() { "" } else { ", and no end mark: it may have been cut short" }))
}

/// The archive at `path` without its compression.
fn plain(path: &Path, folder: &Path, interrupt: &Interrupt) -> Result<File, SourceError> {
    let mut file = File::open(path).map_err(SourceError::Read)?;
    let start = start(&mut file).map_err(SourceError::Read)?;
    if start.is_empty() {
        return Err(SourceError::Empty);
    }
    let compression = Compression::of(&start);
    if compression != Compression::None {
        return Ok(unpack::unpack(&file, compression, folder, interrupt)?);
    }
    if let Some((_, name)) = OTHER_MAGIC.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(SourceError::Compression(name));
    }
    if is_header(&start) { Ok(file) } else { Err(SourceError::NotAnArchive) }
}

/// The first tar block of a file, or less.
fn start(file: &mut File) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(512);
    file.take(512).read_to_end(&mut start)?;
    file.rewind()?;
    Ok(start)
}

/// Whether an archive may start so: with a header whose checksum holds, with the end mark, or cut within the first header.
fn is_header(start: &[u8]) -> bool {
    if start.iter().all(|byte| *byte == 0) {
        return true;
    }
    let Some((head, rest)) = start.split_at_checked(148) else { return false };
    let Some((field, tail)) = rest.split_at_checked(8) else { return false };
    let sum: u32 = head.iter().chain(tail).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
    let octal: String = field.iter().map(|byte| char::from(*byte)).filter(char::is_ascii_digit).collect();
    start.len() < 512 || u32::from_str_radix(&octal, 8) == Ok(sum)
}

/// The images of a source that was given a name.
///
/// The name goes to the source's images without a repository of their own, else to its only image in place of the name it has.
/// Without a tag in `name` each keeps the tag it has, and one without any gets `latest`. Referrers go along.
fn named(images: Vec<Image>, name: &ImageName) -> Result<Vec<Image>, SourceError> {
    let (mut referrers, heads): (Vec<Image>, Vec<Image>) =
        images.into_iter().partition(|image| image.blobs.first().is_some_and(|root| root.subject.is_some()));
    let any_unnamed = heads.iter().any(|image| !image.named);
    let (mut meant, others): (Vec<Image>, Vec<Image>) = heads.into_iter().partition(|image| image.named != any_unnamed);
    let one = meant.iter().map(|image| image.digest).collect::<BTreeSet<_>>().len() <= 1;
    let each_tagged = name.tag.is_none() && any_unnamed && meant.iter().all(|image| image.tag.is_some());
    if !one && !each_tagged {
        let label = |image: &Image| if image.named { image.name() } else { label(image) };
        let images = meant.iter().map(label).collect();
        return Err(SourceError::Several { name: name.to_string(), images });
    }
    for image in &mut meant {
        let tag = name.tag.clone().or_else(|| image.tag.clone());
        image.tag = Some(tag.unwrap_or_else(Tag::latest));
        image.repository = name.repository.clone();
    }
    if others.is_empty() {
        referrers.iter_mut().for_each(|referrer| referrer.repository = name.repository.clone());
    }
    Ok([meant, referrers, others].concat())
}

/// What an image without a repository is called in messages: its tag, else its digest.
fn label(image: &Image) -> String {
    image.tag.as_ref().map_or_else(|| image.digest.to_string(), Tag::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn image(name: &str, named: bool, content: &str) -> Image {
        let ImageName { repository, tag, .. } = name.parse().unwrap();
        Image { repository, tag, named, digest: Digest::sha256_of(content.as_bytes()), blobs: Vec::new().into() }
    }

    fn names(images: Vec<Image>, name: &str) -> Result<Vec<String>, String> {
        let named = named(images, &name.parse().unwrap()).map_err(|error| error.to_string())?;
        Ok(named.iter().map(Image::name).collect())
    }

    #[test]
    fn names_the_one_image_that_is_meant() {
        let unnamed = || image("x/y", false, "1");
        let tagged = |tag: &str, content: &str| image(&format!("x/y:{tag}"), false, content);
        let other = || image("o/o:1", true, "2");
        for (images, name, expected) in [
            (vec![unnamed()], "x/y", vec!["x/y:latest"]),
            (vec![unnamed()], "x/y:2", vec!["x/y:2"]),
            (vec![tagged("v1", "1")], "x/y", vec!["x/y:v1"]),
            (vec![tagged("v1", "1")], "x/y:2", vec!["x/y:2"]),
            (vec![tagged("v1", "1"), tagged("v2", "2")], "x/y", vec!["x/y:v1", "x/y:v2"]),
            (vec![unnamed(), other()], "x/y", vec!["x/y:latest", "o/o:1"]),
            (vec![other()], "docker.io/x/y:3", vec!["docker.io/x/y:3"]),
            (vec![other()], "x/y", vec!["x/y:1"]),
        ] {
            assert_eq!(names(images, name), Ok(expected.into_iter().map(str::to_owned).collect()), "{name}");
        }
    }

    #[test]
    fn does_not_guess_which_image_is_meant() {
        let two = || vec![image("a/a:1", true, "1"), image("b/b:1", true, "2")];
        assert_eq!(
            names(two(), "x/y").unwrap_err(),
            "--name x/y: it holds 2 images (a/a:1, b/b:1); one image, or one without a name, is expected"
        );
        let bare = || vec![image("x/y:v1", false, "1"), image("x/y:v2", false, "2")];
        assert_eq!(
            names(bare(), "x/y:3").unwrap_err(),
            "--name x/y:3: it holds 2 images (v1, v2); one image, or one without a name, is expected"
        );
    }

    #[test]
    fn requests_by_their_form() {
        let request: Request = "localhost:5000/a:b=dir=1".parse().unwrap();
        assert_eq!((request.path.to_str(), request.name.unwrap().to_string().as_str()), (Some("dir=1"), "localhost:5000/a:b"));
        for (text, expected) in [
            ("a", "REF=SOURCE is expected"),
            ("A=x", "\"A\": a repository name has lower-case letters and digits, joined by one of . _ __ - and split by /"),
            ("a=", "there is nothing after =; a file or folder is expected"),
            (
                "a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855=x",
                "a digest is not given but computed; repository[:tag] is expected before =",
            ),
        ] {
            assert_eq!(text.parse::<Request>().unwrap_err(), expected);
        }
    }
}
