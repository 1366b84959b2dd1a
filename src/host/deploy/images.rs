//! The three images that a cluster runs: the server with its content, the disk of a machine, and what the machine boots from. What
//! enters are a disk, a program, a kernel and an initramfs; what leaves is an image layout. Every blob is held against its digest on
//! its way.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::objects::{IMAGES, INITRAMFS, KERNEL, PORT, USER};
use crate::disk::catalog;
use crate::disk::layout::Tree;
use crate::host::boot::program::Program;
use crate::host::images::scratch::{
    ContainerConfig, EmptyObject, FileOwnership, LayerCompression, LayerWriter, LayoutWriter, WrittenImage, WrittenLayer,
};
use crate::host::images::virtual_layout::open_regular;
use crate::host::inspect::contents::{BlobFault, Contents, ContentsError};
use crate::host::inspect::reader::{Disk, DiskError, Form};
use crate::host::support::interrupt::Interrupt;
use crate::oci::{Digest, Hasher, ImageName, Tag};

/// What KubeVirt runs QEMU as, user and group: it opens the files of these images.
const QEMU: FileOwnership = FileOwnership { owner: 107, mode: 0o444 };
/// A folder of its.
const QEMU_FOLDER: FileOwnership = FileOwnership { owner: 107, mode: 0o555 };
/// The server's path in its image.
const PROGRAM: &str = "localregistry";
/// The disk's path in its image: the one file of the folder that KubeVirt looks into.
const DISK: &str = "disk/images.img";
/// Files of a disk beside its blobs. The layout must have the first two.
const FILES: [(&str, bool); 3] = [("oci-layout", true), ("index.json", true), (catalog::PATH, false)];
/// Digits of the digests that make a tag.
const TAG_DIGITS: usize = 12;

/// Why there are no images.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The disk cannot be read.
    #[error("cannot read the disk {}", disk.display())]
    Disk {
        /// The disk.
        disk: PathBuf,
        /// Why not.
        source: DiskError,
    },
    /// It is no file system, and a machine needs one.
    #[error("{} is no file system image (it is a {}); pack it: `localregistry pack {} -o DISK`", disk.display(), form.name(), disk.display())]
    Form {
        /// What was given.
        disk: PathBuf,
        /// What it is.
        form: Form,
    },
    /// What it has cannot be listed.
    #[error("cannot list what the disk {} has", disk.display())]
    Contents {
        /// The disk.
        disk: PathBuf,
        /// Why not.
        source: ContentsError,
    },
    /// It has faults.
    #[error("blob {digest} of the disk {} {fault}; `localregistry inspect --verify {}` names all faults", disk.display(), disk.display())]
    Fault {
        /// The disk.
        disk: PathBuf,
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        fault: BlobFault,
    },
    /// A file cannot be read, or the layout not be written.
    #[error("cannot put {} into an image", file.display())]
    Copy {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The layout cannot be written.
    #[error("cannot write the images")]
    Write(#[from] io::Error),
}

/// What the images are made of.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    /// The packed disk.
    pub disk: &'a Path,
    /// The server's program.
    pub server: &'a Program,
    /// The kernel.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
}

/// Their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The server with its content.
    pub server: String,
    /// The disk.
    pub disk: String,
    /// Kernel and initramfs.
    pub boot: String,
}

impl Names {
    /// All of them.
    pub fn all(&self) -> [&str; 3] {
        [&self.server, &self.disk, &self.boot]
    }
}

impl Parts<'_> {
    /// Writes the layout of the three images to `folder`, each named `PREFIX/NAME:TAG`. Without `tag` it is made of their digests, so that
    /// other content has another name.
    ///
    /// # Errors
    /// [`ImagesError`]; a signal shows as one too.
    pub fn write(&self, folder: &Path, prefix: &str, tag: Option<&Tag>, interrupt: &Interrupt) -> Result<Names, ImagesError> {
        let disk = Disk::open(self.disk, interrupt).map_err(|source| ImagesError::Disk { disk: self.disk.to_owned(), source })?;
        if !matches!(disk.form, Form::FileSystem(_)) {
            return Err(ImagesError::Form { disk: self.disk.to_owned(), form: disk.form });
        }
        let mut layout = LayoutWriter::new(folder, self.server.processor)?;
        let images = [
            self.server(&mut layout, disk.tree.as_ref(), interrupt)?,
            self.disk(&mut layout, interrupt)?,
            self.boot(&mut layout, interrupt)?,
        ];
        let digests = images.iter().map(|image| image.digest.to_string()).collect::<Vec<_>>().join(" ");
        let made: String = Digest::sha256_of(digests.as_bytes()).hex().chars().take(TAG_DIGITS).collect();
        let tag = tag.map_or(made, Tag::to_string);
        let [server, disk, boot] =
            ["localregistry", "localregistry-disk", "localregistry-boot"].map(|name| format!("{prefix}/{name}:{tag}"));
        let names = Names { server, disk, boot };
        for (image, name) in images.into_iter().zip(names.all()) {
            layout.name(image, name);
        }
        layout.finish()?;
        Ok(names)
    }

    /// The server, and what it serves in a layer of its own, which is as it lies on the disk.
    fn server(
        &self,
        layout: &mut LayoutWriter,
        tree: &(dyn Tree + Send + Sync),
        interrupt: &Interrupt,
    ) -> Result<WrittenImage, ImagesError> {
        let program = layout.layer::<io::Error>(LayerCompression::Gzip, |archive| {
            archive.file(PROGRAM, FileOwnership::PROGRAM, self.server.content.len() as u64, &*self.server.content)
        })?;
        let content = layout.layer(LayerCompression::None, |archive| self.content(archive, tree, interrupt))?;
        let start = ContainerConfig {
            user: format!("{USER}:{USER}"),
            exposed_ports: [(format!("{PORT}/tcp"), EmptyObject {})].into(),
            entrypoint: [&format!("/{PROGRAM}"), "serve", IMAGES].map(str::to_owned).into(),
            cmd: ["--listen".to_owned(), format!("0.0.0.0:{PORT}")].into(),
            working_dir: "/",
        };
        Ok(layout.image(&start, &[program, content])?)
    }

    fn disk(&self, layout: &mut LayoutWriter, interrupt: &Interrupt) -> Result<WrittenImage, ImagesError> {
        let layer = layout.layer(LayerCompression::None, |archive| {
            archive.folder("disk", QEMU_FOLDER)?;
            add(archive, DISK, self.disk, interrupt)
        })?;
        unstarted(layout, layer)
    }

    fn boot(&self, layout: &mut LayoutWriter, interrupt: &Interrupt) -> Result<WrittenImage, ImagesError> {
        let layer = layout.layer(LayerCompression::Gzip, |archive| {
            archive.folder("boot", QEMU_FOLDER)?;
            add(archive, KERNEL.trim_start_matches('/'), self.kernel, interrupt)?;
            add(archive, INITRAMFS.trim_start_matches('/'), self.initramfs, interrupt)
        })?;
        unstarted(layout, layer)
    }

    /// The disk's image layout, blobs by their digests.
    fn content(
        &self,
        archive: &mut LayerWriter,
        tree: &(dyn Tree + Send + Sync),
        interrupt: &Interrupt,
    ) -> Result<(), ImagesError> {
        let root = IMAGES.trim_start_matches('/');
        let contents = Contents::read(tree, false, interrupt)
            .map_err(|source| ImagesError::Contents { disk: self.disk.to_owned(), source })?;
        let fault = |digest, fault| ImagesError::Fault { disk: self.disk.to_owned(), digest, fault };
        // What `pack --allow-missing` left out is as missing in the cluster as it is on the disk.
        let mut missing = HashSet::new();
        for (number, found) in &contents.faults {
            match (found, contents.blobs.get(*number as usize)) {
                (BlobFault::Missing, _) => _ = missing.insert(*number),
                (_, Some(blob)) => return Err(fault(blob.digest, found.clone())),
                (_, None) => {}
            }
        }
        let mut blobs: Vec<_> = (0..).zip(&contents.blobs).filter(|(number, _)| !missing.contains(number)).collect();
        blobs.sort_by_key(|(_, blob)| blob.digest.blob_path());

        let mut folders = HashSet::new();
        for (file, needed) in FILES {
            let path = format!("{root}/{file}");
            match tree.open(file) {
                Ok(found) => {
                    self.parents(archive, &path, &mut folders)?;
                    archive
                        .file(&path, FileOwnership::FILE, found.size, found.reader)
                        .map_err(|source| self.lost(file, source))?;
                }
                Err(error) if !needed && error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(self.lost(file, source)),
            }
        }
        for (_, blob) in blobs {
            let file = blob.digest.blob_path();
            let path = format!("{root}/{file}");
            let found = tree.open(&file).map_err(|source| self.lost(&file, source))?;
            if found.size != blob.size {
                return Err(fault(blob.digest, BlobFault::Size { expected: blob.size, found: found.size }));
            }
            self.parents(archive, &path, &mut folders)?;
            let hasher = Hasher::new(blob.digest.algorithm());
            let mut passing = Passing { inner: found.reader, hasher, interrupt };
            archive.file(&path, FileOwnership::FILE, blob.size, &mut passing).map_err(|source| self.lost(&file, source))?;
            let found = passing.hasher.finish();
            if found != blob.digest {
                return Err(fault(blob.digest, BlobFault::Content { found }));
            }
        }
        Ok(())
    }

    /// Adds the folders above `path` that are not there yet.
    fn parents(&self, archive: &mut LayerWriter, path: &str, known: &mut HashSet<String>) -> Result<(), ImagesError> {
        for (at, _) in path.match_indices('/') {
            let folder = path.get(..at).unwrap_or_default();
            if known.insert(folder.to_owned()) {
                archive.folder(folder, FileOwnership::PROGRAM)?;
            }
        }
        Ok(())
    }

    fn lost(&self, file: &str, source: io::Error) -> ImagesError {
        ImagesError::Copy { file: self.disk.join(file), source }
    }
}

/// An image that nobody starts: its files are all there is to it.
fn unstarted(layout: &mut LayoutWriter, layer: WrittenLayer) -> Result<WrittenImage, ImagesError> {
    Ok(layout.image(&ContainerConfig { working_dir: "/", ..ContainerConfig::default() }, &[layer])?)
}

/// Adds the file `from` of this machine, as QEMU's.
fn add(archive: &mut LayerWriter, path: &str, from: &Path, interrupt: &Interrupt) -> Result<(), ImagesError> {
    let copied = open_regular(from).and_then(|(file, size)| {
        let passing = Reading { inner: file, interrupt };
        archive.file(path, QEMU, size, passing)
    });
    copied.map_err(|source| ImagesError::Copy { file: from.to_owned(), source })
}

/// Stops at a signal.
struct Reading<'a> {
    inner: File,
    interrupt: &'a Interrupt,
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupt.check_io()?;
        self.inner.read(buffer)
    }
}

/// Hashes what passes, and stops at a signal.
struct Passing<'a> {
    inner: Box<dyn Read + Send + 'a>,
    hasher: Hasher,
    interrupt: &'a Interrupt,
}

impl Read for Passing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupt.check_io()?;
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// Where a cluster pulls the images from: what stands before their names, such as `registry.example:5000/e2e`.
///
/// # Errors
/// When no image can have such a name.
pub fn prefix(text: &str) -> Result<String, &'static str> {
    let plain = text.trim_end_matches('/');
    let named = format!("{plain}/localregistry-disk").parse::<ImageName>();
    match named {
        Ok(name) if name.repository.host().is_some() && name.tag.is_none() && name.digest.is_none() => Ok(plain.to_owned()),
        _ => Err("expected a registry's host, and a path where there is one: registry.example:5000/e2e"),
    }
}
