//! Looks a path up among the members of an archive. Symbolic links are followed inside the archive only, and the work for one path is
//! bounded.

use std::collections::VecDeque;
use std::io;

use super::sparse::Content;
use super::{Archive, ArchiveError, Member};
use crate::host::support::interrupt::Interrupt;

/// Most links followed for one path, as in Linux.
const MAX_LINKS: usize = 40;
/// Most bytes of paths that are looked up to follow one path. A path of an image has some hundred bytes, and each of its components is
/// looked up with those before it.
const MAX_LOOKUPS: usize = 32 << 10;

/// Why a path does not lead to a file of the archive.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    #[error("the archive has no such member{0}")]
    Missing(&'static str),
    #[error("symbolic link {link:?} leads to {target:?}, and the archive has no such member{end}")]
    Dangling { link: String, target: String, end: &'static str },
    #[error("symbolic links lead in a circle")]
    Circle,
    #[error("it has too many parts, or its symbolic links do")]
    TooLong,
    #[error("a symbolic link leads out of the archive; a file inside it is expected")]
    Leaves,
    #[error("it is not a regular file")]
    Special,
}

impl From<LookupError> for io::Error {
    fn from(error: LookupError) -> Self {
        let kind = match error {
            LookupError::Missing(_) | LookupError::Dangling { .. } => io::ErrorKind::NotFound,
            LookupError::Leaves => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl Archive {
    /// The content of the file at `path`.
    pub(super) fn find(&self, path: &str) -> Result<&Content, LookupError> {
        let (resolved, link) = self.resolve(path)?;
        let end = if self.ended { "" } else { ", and no end mark: it may have been cut short" };
        match (self.members.get(&resolved), link) {
            (Some(Member::File(content)), _) => Ok(content),
            (Some(_), _) => Err(LookupError::Special),
            (None, None) => Err(LookupError::Missing(end)),
            (None, Some(link)) => Err(LookupError::Dangling { link, target: resolved, end }),
        }
    }

    /// Resolves all symbolic links in `path`. Returns the last of them too.
    fn resolve(&self, path: &str) -> Result<(String, Option<String>), LookupError> {
        let mut waiting: VecDeque<&str> = path.split('/').collect();
        let mut done = String::new();
        let (mut links, mut looked_up, mut last) = (0, 0, None);
        while let Some(component) = waiting.pop_front() {
            let parent = done.len();
            match component {
                "" | "." => continue,
                ".." if done.is_empty() => return Err(LookupError::Leaves),
                ".." => {
                    done.truncate(done.rfind('/').unwrap_or_default());
                    continue;
                }
                _ if done.is_empty() => done.push_str(component),
                _ => done.extend(["/", component]),
            }
            looked_up += done.len();
            if looked_up > MAX_LOOKUPS {
                return Err(LookupError::TooLong);
            }
            let Some(Member::Link(target)) = self.members.get(&done) else { continue };
            links += 1;
            if links > MAX_LINKS {
                return Err(LookupError::Circle);
            }
            if target.starts_with('/') {
                return Err(LookupError::Leaves);
            }
            last = Some(done.clone());
            done.truncate(parent);
            target.split('/').rev().for_each(|component| waiting.push_front(component));
        }
        Ok((done, last))
    }

    /// Rejects links that lead out of the archive, used or not. A dangling or circular link fails only when it is followed.
    pub(super) fn check_links(&self, interrupt: &Interrupt) -> Result<(), ArchiveError> {
        let mut links: Vec<(&String, &String)> = self
            .members
            .iter()
            .filter_map(|(name, member)| if let Member::Link(target) = member { Some((name, target)) } else { None })
            .collect();
        links.sort();
        for (member, target) in links {
            interrupt.check_io().map_err(ArchiveError::Read)?;
            if matches!(self.resolve(member), Err(LookupError::Leaves)) {
                return Err(ArchiveError::Link { member: member.clone(), target: target.clone() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tar::EntryType::{self, Directory, Regular, Symlink};

    use super::super::tests::{archive, opened, text};
    use super::*;

    #[test]
    fn reads_members_through_links_and_the_last_of_equal_names() {
        let archive = opened(archive(&[
            ("./a/b", Regular, "first"),
            ("a/b", Regular, "last"),
            ("dir/", Directory, ""),
            ("dir/link", Symlink, "../a/./b"),
            ("shortcut", Symlink, "a"),
        ]));
        for path in ["a/b", "./a//b", "dir/link", "shortcut/b"] {
            assert_eq!(text(&archive, path).as_deref(), Ok("last"), "{path}");
        }
        assert_eq!(text(&archive, "dir").unwrap_err(), "it is not a regular file");
        assert_eq!(text(&archive, "c").unwrap_err(), "the archive has no such member");
    }

    #[test]
    fn circular_links_are_rejected() {
        let archive = opened(archive(&[("a", Symlink, "b"), ("b", Symlink, "a")]));
        assert_eq!(text(&archive, "a").unwrap_err(), "symbolic links lead in a circle");
    }

    #[test]
    fn work_for_one_path_is_bounded() {
        // A target of 2,000 components would be looked up with 4 MB of prefixes; a path of the caller likewise.
        let long = "a/".repeat(2000);
        let linked = opened(archive_of_link(&long));
        for path in ["link", &long] {
            assert_eq!(text(&linked, path).unwrap_err(), "it has too many parts, or its symbolic links do");
        }
        // Forty links of three components each, as docker save writes them.
        let name = |number: usize| format!("{number:064}/layer.tar");
        let target = |number: usize| format!("../{}", name(number));
        let links: Vec<(String, String)> = (1..=MAX_LINKS).map(|number| (name(number), target(number - 1))).collect();
        let mut members: Vec<(&str, EntryType, &str)> =
            links.iter().map(|(name, target)| (name.as_str(), Symlink, target.as_str())).collect();
        let first = name(0);
        members.push((&first, Regular, "content"));
        assert_eq!(text(&opened(archive(&members)), &name(MAX_LINKS)).as_deref(), Ok("content"));
    }

    /// An archive with a link to a target that takes a pax header.
    fn archive_of_link(target: &str) -> File {
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        let mut header = tar::Header::new_ustar();
        header.set_path("link").unwrap();
        header.set_entry_type(Symlink);
        header.set_size(0);
        header.set_cksum();
        builder.append_pax_extensions([("linkpath", target.as_bytes())]).unwrap();
        builder.append(&header, io::empty()).unwrap();
        builder.into_inner().unwrap()
    }
}
