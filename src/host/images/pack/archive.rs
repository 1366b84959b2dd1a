//! Reads a tar archive as a [`Tree`], without unpacking it: members are listed once, then read at their offsets. No path or link can
//! lead out of the archive.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt};

use tar::EntryType;

use crate::disk::layout::{Identity, OpenFile, Tree};
use crate::text::escaped;

/// Size of a tar block in bytes. A header is one block; content is padded to full blocks (POSIX pax, "ustar Interchange Format").
const BLOCK: u64 = 512;
/// Most links followed for one path, as in Linux.
const MAX_LINKS: usize = 40;

/// Why a file is rejected as an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("it is not a whole tar archive")]
    Read(#[source] io::Error),
    #[error("the archive is cut short: member {member:?} has {size} bytes, and {there} of them are there")]
    Truncated { member: String, size: u64, there: u64 },
    #[error("archive member {0:?} leaves the archive; a relative name without .. is expected")]
    Name(String),
    #[error("symbolic link {member:?} leads out of the archive, to {target:?}; a target inside it is expected")]
    Link { member: String, target: String },
    #[error("archive member {member:?} is a {kind}; files, folders and symbolic links are expected")]
    Kind { member: String, kind: &'static str },
}

#[derive(Debug, Clone)]
enum Member {
    /// Offset and size of a file's content in the archive.
    File {
        at: u64,
        size: u64,
    },
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
    /// Fails with the first member that is damaged, truncated or unsafe.
    pub fn open(file: File) -> Result<Self, ArchiveError> {
        let len = file.metadata().map_err(damaged)?.len();
        (&file).rewind().map_err(damaged)?;
        let mut members = HashMap::new();
        let mut end = 0;
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(damaged)? {
            let entry = entry.map_err(damaged)?;
            let written = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = normal(&written).ok_or_else(|| ArchiveError::Name(written.clone()))?;
            let (at, size) = (entry.raw_file_position(), entry.size());
            let there = len.saturating_sub(at);
            if size > there {
                return Err(ArchiveError::Truncated { member: written, size, there });
            }
            end = end.max(at.saturating_add(size.next_multiple_of(BLOCK)));
            let target = entry.link_name_bytes().map(|target| String::from_utf8_lossy(&target).into_owned());
            if let Some(member) = member(&written, entry.header().entry_type(), at, size, target)? {
                members.insert(name, member);
            }
        }
        let ended = is_zero_block(&file, end);
        let archive = Self { file, members, ended };
        archive.check_links()?;
        Ok(archive)
    }

    /// Whether `path` exists.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.resolve(path).is_ok_and(|path| self.members.contains_key(&path))
    }

    /// Whether the archive has its end mark.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.ended
    }

    /// Opens the file at `path`.
    ///
    /// # Errors
    /// Fails if there is no regular file at `path`.
    pub fn member(&self, path: &str) -> io::Result<OpenFile<'_>> {
        let (at, size) = self.find(path)?;
        Ok(OpenFile { reader: Box::new(Section { file: &self.file, at, left: size }), size })
    }

    fn find(&self, path: &str) -> io::Result<(u64, u64)> {
        let resolved = self.resolve(path)?;
        match self.members.get(&resolved) {
            Some(Member::File { at, size }) => Ok((*at, *size)),
            Some(_) => Err(io::Error::other("it is not a regular file")),
            None if self.ended => Err(io::Error::new(io::ErrorKind::NotFound, "the archive has no such member")),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the archive has no such member, and no end mark: it may have been cut short",
            )),
        }
    }

    /// Resolves all symbolic links in `path`.
    fn resolve(&self, path: &str) -> io::Result<String> {
        let mut waiting: VecDeque<String> = path.split('/').map(str::to_owned).collect();
        let mut done: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(component) = waiting.pop_front() {
            match component.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop().ok_or_else(leaves)?;
                    continue;
                }
                _ => done.push(component),
            }
            let Some(Member::Link(target)) = self.members.get(&done.join("/")) else { continue };
            links += 1;
            if links > MAX_LINKS {
                return Err(io::Error::other("symbolic links lead in a circle"));
            }
            if target.starts_with('/') {
                return Err(leaves());
            }
            done.pop();
            target.split('/').rev().for_each(|component| waiting.push_front(component.to_owned()));
        }
        Ok(done.join("/"))
    }

    /// Rejects links that lead out of the archive, used or not. A dangling or circular link fails only when it is followed.
    fn check_links(&self) -> Result<(), ArchiveError> {
        let mut links: Vec<(&String, &String)> = self
            .members
            .iter()
            .filter_map(|(name, member)| if let Member::Link(target) = member { Some((name, target)) } else { None })
            .collect();
        links.sort();
        for (member, target) in links {
            if self.resolve(member).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
                return Err(ArchiveError::Link { member: member.clone(), target: target.clone() });
            }
        }
        Ok(())
    }
}

impl Tree for Archive {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        self.member(path)
    }

    fn identity(&self, path: &str) -> Option<Identity> {
        let (at, _) = self.find(path).ok()?;
        let metadata = self.file.metadata().ok()?;
        Some(Identity { device: metadata.dev(), inode: metadata.ino(), at })
    }
}

/// The tar reader's messages quote the archive, so control characters are escaped.
fn damaged(error: io::Error) -> ArchiveError {
    ArchiveError::Read(io::Error::new(error.kind(), escaped(&error.to_string())))
}

fn leaves() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "a symbolic link leads out of the archive; a file inside it is expected")
}

/// A member's name without `.` and repeated slashes, or `None` if it is absolute or contains `..`.
fn normal(name: &str) -> Option<String> {
    let components: Vec<&str> = name.split('/').filter(|component| !matches!(*component, "" | ".")).collect();
    (!name.starts_with('/') && !components.contains(&"..")).then(|| components.join("/"))
}

fn member(name: &str, kind: EntryType, at: u64, size: u64, target: Option<String>) -> Result<Option<Member>, ArchiveError> {
    let refused = |kind| Err(ArchiveError::Kind { member: name.to_owned(), kind });
    match kind {
        EntryType::Regular | EntryType::Continuous => Ok(Some(Member::File { at, size })),
        EntryType::Directory => Ok(Some(Member::Folder)),
        EntryType::Symlink => Ok(Some(Member::Link(target.unwrap_or_default()))),
        EntryType::XGlobalHeader => Ok(None),
        EntryType::Link => refused("hard link"),
        EntryType::Char => refused("character device"),
        EntryType::Block => refused("block device"),
        EntryType::Fifo => refused("FIFO"),
        EntryType::GNUSparse => refused("sparse file"),
        _ => refused("member of an unknown kind"),
    }
}

fn is_zero_block(file: &File, at: u64) -> bool {
    let mut block = [1; BLOCK as usize];
    file.read_exact_at(&mut block, at).is_ok() && block.iter().all(|byte| *byte == 0)
}

/// A reader of a part of a file. It does not move the file's position, so that several can read at once.
struct Section<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let (part, _) = buffer.split_at_mut(wanted);
        let count = self.file.read_at(part, self.at)?;
        if count == 0 && wanted > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive became shorter while it was read"));
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};

    use super::*;

    /// An archive with members of (name, kind, target or content).
    fn archive(members: &[(&str, EntryType, &str)]) -> File {
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

    fn text(archive: &Archive, path: &str) -> Result<String, String> {
        let mut text = String::new();
        let content = archive.member(path).map_err(|error| error.to_string())?;
        Box::new(content.reader).read_to_string(&mut text).unwrap();
        assert_eq!(content.size, text.len() as u64);
        Ok(text)
    }

    fn refusal(file: File) -> String {
        let error = Archive::open(file).unwrap_err();
        match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        }
    }

    #[test]
    fn reads_members_through_links_and_the_last_of_equal_names() {
        let archive = Archive::open(archive(&[
            ("./a/b", Regular, "first"),
            ("a/b", Regular, "last"),
            ("dir/", Directory, ""),
            ("dir/link", Symlink, "../a/./b"),
            ("shortcut", Symlink, "a"),
        ]))
        .unwrap();
        for path in ["a/b", "./a//b", "dir/link", "shortcut/b"] {
            assert_eq!(text(&archive, path).as_deref(), Ok("last"), "{path}");
        }
        assert_eq!(text(&archive, "dir").unwrap_err(), "it is not a regular file");
        assert_eq!(text(&archive, "c").unwrap_err(), "the archive has no such member");
    }

    #[test]
    fn circular_links_are_rejected() {
        let archive = Archive::open(archive(&[("a", Symlink, "b"), ("b", Symlink, "a")])).unwrap();
        assert_eq!(text(&archive, "a").unwrap_err(), "symbolic links lead in a circle");
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
        let archive = Archive::open(cut).unwrap();
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
}
