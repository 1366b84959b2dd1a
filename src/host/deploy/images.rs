//! Builds the three images that a cluster runs: the server with its content, a VM's disk, and a VM's kernel and initramfs. Every
//! blob is verified against its digest while it is copied.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::objects::{IMAGES, INITRAMFS, KERNEL, PORT, USER};
use crate::disk::catalog;
use crate::disk::layout::Tree;
use crate::host::boot::static_program::Program;
use crate::host::images::scratch::{
    ContainerConfig, EmptyObject, FileOwnership, LayerCompression, LayerWriter, LayoutWriter, WrittenImage, WrittenLayer,
};
use crate::host::images::virtual_layout::open_regular;
use crate::host::inspect::contents::{BlobFault, Contents};
use crate::host::inspect::look::{CheckedDisk, DamageError};
use crate::host::inspect::reader::Form;
use crate::host::support::interrupt::Interrupt;
use crate::oci::{Digest, Hasher, ImageName, Tag};

/// User and group as which KubeVirt runs QEMU, which opens the files of these images.
const QEMU: FileOwnership = FileOwnership { owner: 107, mode: 0o444 };
/// As [`QEMU`], for folders.
const QEMU_FOLDER: FileOwnership = FileOwnership { owner: 107, mode: 0o555 };
/// Path of the server in its image.
const PROGRAM: &str = "localregistry";
/// Path of the disk in its image: the only file in the folder that KubeVirt reads.
const DISK: &str = "disk/images.img";
/// Files of a disk other than blobs, and whether a layout must have each.
const FILES: [(&str, bool); 3] = [("oci-layout", true), ("index.json", true), (catalog::PATH, false)];
/// Number of hexadecimal digits in a default tag.
const TAG_DIGITS: usize = 12;

/// Why the images cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The disk cannot be used.
    #[error("cannot deploy {}", disk.display())]
    Disk {
        /// The disk.
        disk: PathBuf,
        /// The cause.
        source: DamageError,
    },
    /// The disk is not a file system image, which a VM needs.
    #[error("{} is not a file system image (it is a {}); pack it: `localregistry pack {} -o DISK`", disk.display(), form.name(), disk.display())]
    Form {
        /// The path.
        disk: PathBuf,
        /// The form it has.
        form: Form,
    },
    /// A blob of the disk is damaged.
    #[error("blob {digest} of the disk {} {fault}; `localregistry inspect --verify {}` lists all faults", disk.display(), disk.display())]
    Fault {
        /// The disk.
        disk: PathBuf,
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        fault: BlobFault,
    },
    /// A file cannot be copied into an image.
    #[error("cannot copy {} into an image", file.display())]
    Copy {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The layout cannot be written.
    #[error("cannot write the images")]
    Write(#[from] io::Error),
}

/// The content of the images.
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

/// The names of the images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The image of the server with its content.
    pub server: String,
    /// The image of the disk.
    pub disk: String,
    /// The image of the kernel and the initramfs.
    pub boot: String,
}

impl Names {
    /// All three names.
    pub fn all(&self) -> [&str; 3] {
        [&self.server, &self.disk, &self.boot]
    }
}

impl Parts<'_> {
    /// Writes an image layout with the three images to `folder`, each named `PREFIX/NAME:TAG`. The default tag is derived from
    /// their digests, so that different content has a different name.
    ///
    /// # Errors
    /// Fails if the disk or a file cannot be read, if a blob is damaged, if the layout cannot be written, or after a signal.
    pub fn write(&self, folder: &Path, prefix: &str, tag: Option<&Tag>, interrupt: &Interrupt) -> Result<Names, ImagesError> {
        let checked = CheckedDisk::open(self.disk, false, interrupt);
        let CheckedDisk { disk, contents, .. } =
            checked.map_err(|source| ImagesError::Disk { disk: self.disk.to_owned(), source })?;
        if !matches!(disk.form, Form::FileSystem(_)) {
            return Err(ImagesError::Form { disk: self.disk.to_owned(), form: disk.form });
        }
        let mut layout = LayoutWriter::new(folder, self.server.processor)?;
        let images = [
            self.server(&mut layout, disk.tree.as_ref(), &contents, interrupt)?,
            self.disk(&mut layout, interrupt)?,
            self.boot(&mut layout, interrupt)?,
        ];
        let digests = images.iter().map(|image| image.digest.to_string()).collect::<Vec<_>>().join(" ");
        let derived: String = Digest::sha256_of(digests.as_bytes()).hex().chars().take(TAG_DIGITS).collect();
        let tag = tag.map_or(derived, Tag::to_string);
        let [server, disk, boot] =
            ["localregistry", "localregistry-disk", "localregistry-boot"].map(|name| format!("{prefix}/{name}:{tag}"));
        let names = Names { server, disk, boot };
        for (image, name) in images.into_iter().zip(names.all()) {
            layout.name(image, name);
        }
        layout.finish()?;
        Ok(names)
    }

    /// The image of the server. Its content is a separate layer, with the same files as the disk.
    fn server(
        &self,
        layout: &mut LayoutWriter,
        tree: &(dyn Tree + Send + Sync),
        contents: &Contents,
        interrupt: &Interrupt,
    ) -> Result<WrittenImage, ImagesError> {
        let program = layout.layer::<io::Error>(LayerCompression::Gzip, |archive| {
            archive.file(PROGRAM, FileOwnership::PROGRAM, self.server.content.len() as u64, &*self.server.content)
        })?;
        let content = layout.layer(LayerCompression::None, |archive| self.content(archive, tree, contents, interrupt))?;
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
        image_of_files(layout, layer)
    }

    fn boot(&self, layout: &mut LayoutWriter, interrupt: &Interrupt) -> Result<WrittenImage, ImagesError> {
        let layer = layout.layer(LayerCompression::Gzip, |archive| {
            archive.folder("boot", QEMU_FOLDER)?;
            add(archive, KERNEL.trim_start_matches('/'), self.kernel, interrupt)?;
            add(archive, INITRAMFS.trim_start_matches('/'), self.initramfs, interrupt)
        })?;
        image_of_files(layout, layer)
    }

    /// Copies the disk's image layout, blobs in the order of their digests.
    fn content(
        &self,
        archive: &mut LayerWriter,
        tree: &(dyn Tree + Send + Sync),
        contents: &Contents,
        interrupt: &Interrupt,
    ) -> Result<(), ImagesError> {
        let root = IMAGES.trim_start_matches('/');
        let fault = |digest, fault| ImagesError::Fault { disk: self.disk.to_owned(), digest, fault };
        let mut blobs: Vec<_> = contents.blobs.iter().collect();
        blobs.sort_by_key(|blob| blob.digest.blob_path());

        let mut folders = HashSet::new();
        for (file, needed) in FILES {
            let path = format!("{root}/{file}");
            match tree.open(file) {
                Ok(found) => {
                    self.parents(archive, &path, &mut folders)?;
                    archive
                        .file(&path, FileOwnership::FILE, found.size, found.reader)
                        .map_err(|source| self.copy_error(file, source))?;
                }
                Err(error) if !needed && error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(self.copy_error(file, source)),
            }
        }
        for blob in blobs {
            let file = blob.digest.blob_path();
            let path = format!("{root}/{file}");
            let found = tree.open(&file).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => fault(blob.digest, BlobFault::Missing),
                _ => self.copy_error(&file, source),
            })?;
            if found.size != blob.size {
                return Err(fault(blob.digest, BlobFault::Size { expected: blob.size, found: found.size }));
            }
            self.parents(archive, &path, &mut folders)?;
            let hasher = Hasher::new(blob.digest.algorithm());
            let mut reader = HashingReader { inner: found.reader, hasher, interrupt };
            archive.file(&path, FileOwnership::FILE, blob.size, &mut reader).map_err(|source| self.copy_error(&file, source))?;
            let found = reader.hasher.finish();
            if found != blob.digest {
                return Err(fault(blob.digest, BlobFault::Content { found }));
            }
        }
        Ok(())
    }

    /// Adds the parent folders of `path` that are not in `known` yet.
    fn parents(&self, archive: &mut LayerWriter, path: &str, known: &mut HashSet<String>) -> Result<(), ImagesError> {
        for (at, _) in path.match_indices('/') {
            let folder = path.get(..at).unwrap_or_default();
            if known.insert(folder.to_owned()) {
                archive.folder(folder, FileOwnership::PROGRAM)?;
            }
        }
        Ok(())
    }

    fn copy_error(&self, file: &str, source: io::Error) -> ImagesError {
        ImagesError::Copy { file: self.disk.join(file), source }
    }
}

/// An image that only carries files and is never started.
fn image_of_files(layout: &mut LayoutWriter, layer: WrittenLayer) -> Result<WrittenImage, ImagesError> {
    Ok(layout.image(&ContainerConfig { working_dir: "/", ..ContainerConfig::default() }, &[layer])?)
}

/// Adds the file `from` of this machine, readable by QEMU.
fn add(archive: &mut LayerWriter, path: &str, from: &Path, interrupt: &Interrupt) -> Result<(), ImagesError> {
    let copied = open_regular(from).and_then(|(file, size)| {
        let reader = InterruptibleReader { inner: file, interrupt };
        archive.file(path, QEMU, size, reader)
    });
    copied.map_err(|source| ImagesError::Copy { file: from.to_owned(), source })
}

/// A reader that fails after a signal.
struct InterruptibleReader<'a> {
    inner: File,
    interrupt: &'a Interrupt,
}

impl Read for InterruptibleReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupt.check_io()?;
        self.inner.read(buffer)
    }
}

/// A reader that hashes its content, and fails after a signal.
struct HashingReader<'a> {
    inner: Box<dyn Read + Send + 'a>,
    hasher: Hasher,
    interrupt: &'a Interrupt,
}

impl Read for HashingReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupt.check_io()?;
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// Parses the prefix of image names in the cluster's registry, such as `registry.example:5000/e2e`.
///
/// # Errors
/// Fails if no image name can start with it.
pub fn prefix(text: &str) -> Result<String, &'static str> {
    let plain = text.trim_end_matches('/');
    let named = format!("{plain}/localregistry-disk").parse::<ImageName>();
    match named {
        Ok(name) if name.repository.host().is_some() && name.tag.is_none() && name.digest.is_none() => Ok(plain.to_owned()),
        _ => Err("expected a registry's host and an optional path, such as registry.example:5000/e2e"),
    }
}
