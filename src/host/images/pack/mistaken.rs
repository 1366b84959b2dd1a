//! Recognizes what is often given to `pack` and cannot be packed, so that the message says what it is and what to do.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::archive::{Archive, MANIFEST};
use crate::host::support::quote::shell_word;

/// The file of a layout that says it is one (image specification, "oci-layout file").
const OCI_LAYOUT: &str = "oci-layout";
/// How the file `version` starts in a folder of the transport `dir:` (containers-image, `directory/directory_dest.go`).
const DIRECTORY_VERSION: &[u8] = b"Directory Transport Version";
/// The list of names in an archive of `docker save` before Docker 1.10, which has no `manifest.json` (Docker image specification v1).
const REPOSITORIES: &str = "repositories";
/// The transports of skopeo and podman that name something on this machine (containers-transports(5)).
const LOCAL: [&str; 6] = ["oci:", "oci-archive:", "docker-archive:", "dir:", "docker-daemon:", "containers-storage:"];
/// The transport of registries.
const REGISTRY: &str = "docker://";
/// Folders between a layout and its blobs.
const DEPTH: usize = 3;

/// Something that is no source.
#[derive(Debug, thiserror::Error)]
pub enum Mistaken {
    #[error(
        "there is no such file; {0:?} is how skopeo and podman say what follows. Give the path alone, and the name as in --name NAME=PATH"
    )]
    Transport(&'static str),
    #[error("there is no such file; an image in a registry is packed with --pull {}", shell_word(.0))]
    Registry(String),
    #[error(
        "it is a folder as skopeo's dir: and podman save --format docker-dir write it, not an image layout; make one with \
         `skopeo copy --all dir:{folder} oci:LAYOUT:NAME`, and pack that",
        folder = shell_word(&.0.to_string_lossy())
    )]
    DockerDir(PathBuf),
    #[error("it is part of the image layout {layout}; pack that folder", layout = .0.display())]
    PartOfLayout(PathBuf),
    #[error(
        "it is a docker save archive of the old form, with repositories and without manifest.json; load it into a Docker that reads it, and \
         save it again"
    )]
    OldDocker,
    #[error(
        "the archive has {folder}/{file}, and it is expected at the root: unpack it, and {}",
        if *file == MANIFEST { format!("make the archive again with tar -C {folder} -c .") } else { format!("pack the folder {folder}") }
    )]
    InFolder { folder: String, file: &'static str },
}

/// What a path that does not exist may be meant for.
pub fn missing(path: &Path) -> Option<Mistaken> {
    let text = path.to_str()?;
    if let Some(reference) = text.strip_prefix(REGISTRY) {
        return Some(Mistaken::Registry(reference.to_owned()));
    }
    LOCAL.into_iter().find(|transport| text.starts_with(transport)).map(Mistaken::Transport)
}

/// What a folder is that is not a layout.
pub fn folder(path: &Path) -> Option<Mistaken> {
    if path.join(OCI_LAYOUT).exists() {
        return None;
    }
    let mut start = Vec::new();
    let version = path.join("version");
    let is_file = fs::metadata(&version).is_ok_and(|metadata| metadata.is_file());
    if is_file
        && File::open(version).is_ok_and(|file| file.take(64).read_to_end(&mut start).is_ok())
        && start.starts_with(DIRECTORY_VERSION)
    {
        return Some(Mistaken::DockerDir(path.to_owned()));
    }
    part_of_layout(path)
}

/// The layout of which `path` is a file or a folder.
pub fn part_of_layout(path: &Path) -> Option<Mistaken> {
    let above = path.ancestors().skip(1).take(DEPTH).filter(|folder| !folder.as_os_str().is_empty());
    let is_layout = |folder: &&Path| folder.join(OCI_LAYOUT).is_file() && folder.join("index.json").is_file();
    above.into_iter().find(is_layout).map(|folder| Mistaken::PartOfLayout(folder.to_owned()))
}

/// What an archive is that has no image at its root.
pub fn archive(archive: &Archive) -> Option<Mistaken> {
    if archive.has(REPOSITORIES) {
        return Some(Mistaken::OldDocker);
    }
    let folder = archive.only_folder()?;
    let file = ["index.json", MANIFEST].into_iter().find(|file| archive.has(&format!("{folder}/{file}")))?;
    Some(Mistaken::InFolder { folder: folder.to_owned(), file })
}
