//! Reads a tar archive as a [`Tree`], without unpacking it: members are listed once, then read at their offsets. No path or link can
//! lead out of the archive. Reading is bounded by what the archive has, whatever its headers claim.

mod headers;
mod lookup;
mod sparse;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use tar::EntryType;

use crate::disk::layout::{Identity, OpenFile, Tree};
use crate::host::support::interrupt::Interrupt;
use crate::text::escaped;
use headers::{Entry, Headers};
use lookup::LookupError;
use sparse::Content;

/// The archive member that lists the images.
pub const MANIFEST: &str = "manifest.json";
/// Most parts of all sparse files of an archive: a disk image of some gigabytes.
const MAX_PARTS: usize = 1 << 20;
/// Folders of a container's root. An archive with two of them is not one of images.
const ROOT_FOLDERS: [&str; 8] = ["bin", "dev", "etc", "lib", "proc", "sys", "usr", "var"];
/// An empty file that Docker creates in every container.
const DOCKER_MARK: &str = ".dockerenv";

/// Why a file is rejected as an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("it is not a whole tar archive")]
    Read(#[source] io::Error),
    #[error("the archive is cut short: member {member:?} has {size} bytes, and {there} of them are there")]
    Truncated { member: String, size: u64, there: u64 },
    #[error("an archive member has a {what} of {size} bytes; at most {limit} are expected")]
    Long { what: &'static str, size: u64, limit: u64 },
    #[error("archive member {0:?} leaves the archive; a relative name without .. is expected")]
    Name(String),
    #[error("symbolic link {member:?} leads out of the archive, to {target:?}; a target inside it is expected")]
    Link { member: String, target: String },
    #[error("archive member {member:?} is a {kind}; files, folders and symbolic links are expected")]
    Kind { member: String, kind: &'static str },
    #[error(
        "archive member {member:?} is a sparse file that cannot be read: {fault}; make the archive again without sparse files (tar \
         without -S, bsdtar with --no-read-sparse)"
    )]
    Sparse { member: String, fault: &'static str },
    #[error(
        "archive member {member:?} is a sparse file of {size} bytes, and the archive has {stored} bytes of it, far less than of an \
         image; if that is intended, make the archive again without sparse files (tar without -S, bsdtar with --no-read-sparse)"
    )]
    Holes { member: String, size: u64, stored: u64 },
    #[error(
        "it is the file system of a container, as docker export writes it, and holds no image; docker save writes images, and docker \
         commit makes an image of a container"
    )]
    Container,
}

#[derive(Debug, Clone)]
enum Member {
    File(Content),
    /// Target of a symbolic link.
    Link(String),
    Folder,
}

/// An open archive.
#[derive(Debug)]
pub struct Archive {
    file: File,
    members: HashMap<String, Member>,
    /// Whether the archive has its end mark. Some writers omit it, so this matters only if something is missing.
    ended: bool,
}

impl Archive {
    /// Lists the members of the uncompressed archive `file`. Of members with the same name the last one counts, as in tar.
    ///
    /// # Errors
    /// Fails with the first member that is damaged or truncated, otherwise with the first one that is unsafe, or after a signal.
    pub fn open(file: File, interrupt: &Interrupt) -> Result<Self, ArchiveError> {
        let len = file.metadata().map_err(damaged)?.len();
        let mut headers = Headers::new(&file, len, interrupt);
        let (mut members, mut parts, mut refused) = (HashMap::new(), 0, None);
        while let Some(entry) = headers.next_entry()? {
            parts += entry.content.parts();
            if parts > MAX_PARTS {
                let fault = "the sparse files of the archive have too many parts";
                return Err(ArchiveError::Sparse { member: entry.name, fault });
            }
            match member(entry) {
                Ok((name, member)) => drop(members.insert(name, member)),
                Err(error) => drop(refused.get_or_insert(error)),
            }
        }
        let ended = headers.ended;
        let archive = Self { file, members, ended };
        if archive.is_container() {
            return Err(ArchiveError::Container);
        }
        refused.map_or_else(|| archive.check_links(interrupt), Err)?;
        Ok(archive)
    }

    /// Whether there is anything at `path`, even a link that leads nowhere.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        !matches!(self.find(path), Err(LookupError::Missing(_)))
    }

    /// Whether the archive has its end mark.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.ended
    }

    /// The folder in which everything is, if it is in one.
    #[must_use]
    pub fn only_folder(&self) -> Option<&str> {
        let mut folders = self.members.keys().filter(|name| !name.is_empty()).filter_map(|name| name.split('/').next());
        let first = folders.next()?;
        folders.all(|folder| folder == first).then_some(first)
    }

    /// Opens the file at `path`.
    ///
    /// # Errors
    /// Fails if there is no regular file at `path`.
    pub fn member(&self, path: &str) -> io::Result<OpenFile<'_>> {
        let content = self.find(path)?;
        Ok(OpenFile { reader: Box::new(content.reader(&self.file)), size: content.size })
    }

    /// The offset of the data of the file at `path`, in bytes. Paths with the same offset lead to the same file.
    ///
    /// # Errors
    /// As [`Archive::member`].
    pub fn offset(&self, path: &str) -> io::Result<u64> {
        Ok(self.find(path)?.at)
    }

    /// Whether the archive is the file system of a container, not one of images.
    fn is_container(&self) -> bool {
        let names = || self.members.keys().filter_map(|name| name.split('/').next());
        let has = |folder: &&&str| names().any(|name| name == **folder);
        let is_root = || names().any(|name| name == DOCKER_MARK) || ROOT_FOLDERS.iter().filter(has).count() >= 2;
        !self.has("index.json") && !self.has(MANIFEST) && is_root()
    }
}

impl Tree for Archive {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        self.member(path)
    }

    fn identity(&self, path: &str) -> Option<Identity> {
        let at = self.offset(path).ok()?;
        let metadata = self.file.metadata().ok()?;
        Some(Identity { device: metadata.dev(), inode: metadata.ino(), at })
    }
}

/// The tar reader's messages quote the archive, so control characters are escaped.
fn damaged(error: io::Error) -> ArchiveError {
    ArchiveError::Read(io::Error::new(error.kind(), escaped(&error.to_string())))
}

/// A member's name without `.` and repeated slashes, or `None` if it is absolute or contains `..`.
fn normal(name: &str) -> Option<String> {
    // Nearly all names are normal as they are. The search is much faster than taking a long name apart.
    if !name.starts_with(['/', '.']) && !name.contains("//") && !name.contains("/.") {
        return Some(name.strip_suffix('/').unwrap_or(name).to_owned());
    }
    if name.starts_with('/') {
        return None;
    }
    let mut normal = String::with_capacity(name.len());
    for component in name.split('/') {
        match component {
            "" | "." => continue,
            ".." => return None,
            _ if normal.is_empty() => normal.push_str(component),
            _ => normal.extend(["/", component]),
        }
    }
    Some(normal)
}

/// The name and content of a member.
///
/// # Errors
/// Fails if the member is unsafe.
fn member(entry: Entry) -> Result<(String, Member), ArchiveError> {
    let Entry { name: written, kind, target, content } = entry;
    let name = normal(&written).ok_or_else(|| ArchiveError::Name(written.clone()))?;
    let refused = |kind| Err(ArchiveError::Kind { member: written.clone(), kind });
    let member = match kind {
        // An old header has no type of folders.
        EntryType::Regular if written.ends_with('/') => Member::Folder,
        EntryType::Regular | EntryType::Continuous => Member::File(content),
        EntryType::Directory => Member::Folder,
        EntryType::Symlink => Member::Link(target),
        EntryType::Link => return refused("hard link"),
        EntryType::Char => return refused("character device"),
        EntryType::Block => return refused("block device"),
        EntryType::Fifo => return refused("FIFO"),
        // GNU tar's incremental backup: a folder, with the list of its files as content.
        _ if kind.as_byte() == b'D' => Member::Folder,
        _ if kind.as_byte() == b'M' => return refused("part of a file, continued from another volume"),
        _ => return refused("member of an unknown kind"),
    };
    Ok((name, member))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use EntryType::{Block, Char, Fifo, Link, Regular, Symlink};

    use super::*;

    /// An archive with members of (name, kind, target or content).
    pub(super) fn archive(members: &[(&str, EntryType, &str)]) -> File {
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        for (name, kind, content) in members {
            let mut header = tar::Header::new_ustar();
            // Written directly, because the builder refuses names that other tools write.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            let data = if matches!(kind, Regular) { *content } else { "" };
            if data.is_empty() {
                header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
            }
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    pub(super) fn opened(file: File) -> Archive {
        Archive::open(file, &Interrupt::default()).unwrap()
    }

    pub(super) fn text(archive: &Archive, path: &str) -> Result<String, String> {
        let mut text = String::new();
        let mut content = archive.member(path).map_err(|error| error.to_string())?;
        content.reader.read_to_string(&mut text).unwrap();
        assert_eq!(content.size, text.len() as u64);
        Ok(text)
    }

    fn refusal(file: File) -> String {
        let error = Archive::open(file, &Interrupt::default()).unwrap_err();
        match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        }
    }

    #[test]
    fn names_are_made_normal() {
        for (name, expected) in [
            ("", Some("")),
            (".", Some("")),
            ("./", Some("")),
            ("a", Some("a")),
            ("a/", Some("a")),
            ("a//", Some("a")),
            ("./a/./b//c/.", Some("a/b/c")),
            (".a/.b/..c/d.", Some(".a/.b/..c/d.")),
            ("a..b/...", Some("a..b/...")),
            ("/", None),
            ("/a", None),
            ("..", None),
            ("a/..", None),
            ("a/../b", None),
            ("../a", None),
        ] {
            assert_eq!(normal(name).as_deref(), expected, "{name:?}");
        }
    }

    #[test]
    fn names_and_links_out_of_the_archive_are_rejected() {
        for name in ["/etc/passwd", "../x", "a/../../x", "a/.."] {
            assert_eq!(
                refusal(archive(&[(name, Regular, "x")])),
                format!("archive member {name:?} leaves the archive; a relative name without .. is expected")
            );
        }
        for target in ["/etc/passwd", "../../x", "../.."] {
            assert_eq!(
                refusal(archive(&[("a/link", Symlink, target)])),
                format!("symbolic link \"a/link\" leads out of the archive, to {target:?}; a target inside it is expected")
            );
        }
        // Out of the archive through another link.
        assert_eq!(
            refusal(archive(&[("a/b/up", Symlink, ".."), ("out", Symlink, "a/b/up/../../x")])),
            "symbolic link \"out\" leads out of the archive, to \"a/b/up/../../x\"; a target inside it is expected"
        );
    }

    #[test]
    fn hard_links_and_devices_are_rejected() {
        for (kind, called) in [(Link, "hard link"), (Char, "character device"), (Block, "block device"), (Fifo, "FIFO")] {
            assert_eq!(
                refusal(archive(&[("a", kind, "b")])),
                format!("archive member \"a\" is a {called}; files, folders and symbolic links are expected")
            );
        }
    }

    #[test]
    fn truncated_archives_are_rejected() {
        let whole = || archive(&[("a", Regular, &"x".repeat(2000))]);
        let cut = whole();
        cut.set_len(1000).unwrap();
        assert_eq!(refusal(cut), "the archive is cut short: member \"a\" has 2000 bytes, and 488 of them are there");
        let cut = whole();
        cut.set_len(100).unwrap();
        assert_eq!(refusal(cut), "it is not a whole tar archive: failed to read entire block");
        let cut = whole();
        cut.set_len(512 + 2048).unwrap();
        let archive = opened(cut);
        assert_eq!(text(&archive, "a").unwrap().len(), 2000);
        assert_eq!(
            text(&archive, "b").unwrap_err(),
            "the archive has no such member, and no end mark: it may have been cut short"
        );
    }

    #[test]
    fn impossible_member_sizes_are_rejected() {
        let mut header = tar::Header::new_ustar();
        header.set_path("bomb").unwrap();
        header.set_size(1 << 62);
        header.set_cksum();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.write_all(&[0; 512]).unwrap();
        assert_eq!(
            refusal(file),
            "the archive is cut short: member \"bomb\" has 4611686018427387904 bytes, and 512 of them are there"
        );
    }

    #[test]
    fn control_characters_of_a_damaged_archive_are_escaped() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[b'\x1b'; 1024]).unwrap();
        let message = refusal(file);
        assert!(message.starts_with("it is not a whole tar archive: "), "{message}");
        assert!(!message.contains(char::is_control) && message.contains("\\u{1b}"), "{message}");
    }

    #[test]
    fn each_loop_ends_after_a_signal() {
        let plain = archive(&[("a", Regular, "x"), ("b", Symlink, "a")]);
        let interrupted = Interrupt::interrupted();
        let error = Archive::open(plain.try_clone().unwrap(), &interrupted).unwrap_err();
        assert!(matches!(error, ArchiveError::Read(cause) if cause.to_string() == "interrupted by SIGTERM"));
        let archive = opened(plain);
        let error = archive.check_links(&interrupted).unwrap_err();
        assert!(matches!(error, ArchiveError::Read(cause) if cause.to_string() == "interrupted by SIGTERM"));
    }
}
