//! Reads the headers of a tar archive one by one: ustar, GNU, pax and the old ones without a magic number. What a header claims is
//! compared with the length of the archive before anything is read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::sparse::{BLOCK, Content, Map, PaxSparse};
use super::{ArchiveError, damaged};
use crate::disk::layout::max_expanded;
use crate::host::support::interrupt::Interrupt;

/// Longest name of a member and longest target of a link, in bytes: `PATH_MAX` of Linux.
pub const MAX_NAME: u64 = 4096;
/// Largest set of pax records of one member, in bytes. They may hold extended attributes, of up to 64 KiB each, and the map of a sparse
/// file.
const MAX_PAX: u64 = 1 << 20;

/// A member, as its headers describe it.
pub struct Entry {
    /// Name as written.
    pub name: String,
    pub kind: EntryType,
    /// Target of a link.
    pub target: String,
    pub content: Content,
}

/// The headers of an archive.
pub struct Headers<'a> {
    file: &'a File,
    len: u64,
    /// Offset of the next block, in bytes.
    next: u64,
    interrupt: &'a Interrupt,
    /// Whether the end mark was read.
    pub ended: bool,
}

/// Headers before that of a member.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: Option<PaxSparse>,
}

impl<'a> Headers<'a> {
    /// The headers of the archive in `file`, of `len` bytes.
    pub const fn new(file: &'a File, len: u64, interrupt: &'a Interrupt) -> Self {
        Self { file, len, next: 0, interrupt, ended: false }
    }

    /// The next member; `None` at the end.
    ///
    /// # Errors
    /// Fails if a header is damaged, or if its member is not there.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extensions = Extensions::default();
        let mut extended = false;
        loop {
            self.interrupt.check_io().map_err(ArchiveError::Read)?;
            let Some(header) = self.header()? else {
                return if extended { Err(fault("it ends before the member that a header describes")) } else { Ok(None) };
            };
            match header.entry_type().as_byte() {
                b'L' => extensions.name = Some(self.name(&header)?),
                b'K' => extensions.target = Some(self.name(&header)?),
                b'x' | b'X' => extensions.add(&self.extension(&header, "pax header", MAX_PAX)?)?,
                // Records for all members, and the name of the volume.
                b'g' | b'V' => drop(self.data(&header, size_of(&header)?)?),
                _ => return self.member(&header, extensions).map(Some),
            }
            extended |= !matches!(header.entry_type().as_byte(), b'g' | b'V');
        }
    }

    /// The header at the current position; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        if self.next >= self.len {
            return Ok(None);
        }
        let block = self.block()?;
        if block.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        // The checksum counts its own field as blanks.
        let field: u32 = block.iter().skip(148).take(8).map(|byte| u32::from(*byte)).sum();
        if sum - field + 8 * u32::from(b' ') != header.cksum().map_err(damaged)? {
            return Err(fault("archive header checksum mismatch"));
        }
        Ok(Some(header))
    }

    fn block(&mut self) -> Result<[u8; BLOCK as usize], ArchiveError> {
        let mut block = [0; BLOCK as usize];
        self.file.read_exact_at(&mut block, self.next).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => fault("failed to read entire block"),
            _ => ArchiveError::Read(error),
        })?;
        self.next += BLOCK;
        Ok(block)
    }

    /// Skips the data of a member, of `size` bytes, and returns its offset.
    fn data(&mut self, header: &Header, size: u64) -> Result<u64, ArchiveError> {
        let (at, there) = (self.next, self.len.saturating_sub(self.next));
        if size > there {
            return Err(ArchiveError::Truncated { member: text(&header.path_bytes()), size, there });
        }
        self.next = at + size.next_multiple_of(BLOCK);
        Ok(at)
    }

    /// The data of an extension header.
    fn extension(&mut self, header: &Header, what: &'static str, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        let size = size_of(header)?;
        if size > limit {
            return Err(ArchiveError::Long { what, size, limit });
        }
        let at = self.data(header, size)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.file.read_exact_at(&mut bytes, at).map_err(ArchiveError::Read)?;
        Ok(bytes)
    }

    /// A long name of GNU tar, which ends with a zero.
    fn name(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let mut name = self.extension(header, "name", MAX_NAME + 1)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn member(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, ArchiveError> {
        let Extensions { name, target, size, sparse } = extensions;
        let name = sparse.as_ref().and_then(|sparse| sparse.name.clone()).or(name);
        let name = name.map_or_else(|| text(&header.path_bytes()), |name| text(&name));
        let target =
            target.map_or_else(|| header.link_name_bytes().as_deref().map(text).unwrap_or_default(), |target| text(&target));
        for (what, len) in [("name", name.len()), ("link target", target.len())] {
            if len as u64 > MAX_NAME {
                return Err(ArchiveError::Long { what, size: len as u64, limit: MAX_NAME });
            }
        }
        let kind = header.entry_type();
        let gnu_map = if kind.is_gnu_sparse() { Some(self.gnu_map(header)?) } else { None };
        let stored = size.map_or_else(|| size_of(header), Ok)?;
        let at = self.data(header, stored).map_err(|error| match error {
            ArchiveError::Truncated { size, there, .. } => ArchiveError::Truncated { member: name.clone(), size, there },
            other => other,
        })?;
        let content = match (gnu_map, sparse) {
            (Some((map, size)), _) => Content::sparse(&map, at, stored, size),
            (None, Some(sparse)) => Content::of_pax(&sparse, self.file, at, stored).map_err(ArchiveError::Read)?,
            (None, None) => Ok(Content::plain(at, stored)),
        };
        let content = content.map_err(|fault| ArchiveError::Sparse { member: name.clone(), fault })?;
        if content.size > max_expanded(stored) {
            return Err(ArchiveError::Holes { member: name, size: content.size, stored });
        }
        let kind = if kind.is_gnu_sparse() { EntryType::Regular } else { kind };
        Ok(Entry { name, kind, target, content })
    }

    /// The map of a sparse file in GNU tar's old form, and the file's size. The map goes on in the blocks behind the header.
    fn gnu_map(&mut self, header: &Header) -> Result<(Map, u64), ArchiveError> {
        let gnu = header.as_gnu().ok_or_else(|| fault("a sparse member has no GNU header"))?;
        let mut map = Map::new();
        add_parts(&mut map, &gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            self.interrupt.check_io().map_err(ArchiveError::Read)?;
            let mut extended = GnuExtSparseHeader::new();
            extended.as_mut_bytes().copy_from_slice(&self.block()?);
            add_parts(&mut map, extended.sparse())?;
            more = extended.is_extended();
        }
        Ok((map, gnu.real_size().map_err(damaged)?))
    }
}

impl Extensions {
    /// Adds pax records: `LENGTH KEY=VALUE` and a newline. A value may have newlines, so only the length ends a record.
    fn add(&mut self, mut records: &[u8]) -> Result<(), ArchiveError> {
        let malformed = || fault("malformed pax extension");
        while !records.is_empty() {
            let digits = records.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
            let len = number(records.get(..digits).unwrap_or_default()).ok_or_else(malformed)?;
            let (record, rest) = usize::try_from(len).ok().and_then(|len| records.split_at_checked(len)).ok_or_else(malformed)?;
            let record = record.get(digits + 1..).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
            let (key, value) = record.split_at(equals);
            self.add_record(key, value.get(1..).unwrap_or_default()).ok_or_else(malformed)?;
            records = rest;
        }
        Ok(())
    }

    /// Adds a record. `None` if its value is malformed.
    fn add_record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.name = Some(value.to_owned()),
            b"linkpath" => self.target = Some(value.to_owned()),
            b"size" => self.size = Some(number(value)?),
            _ => {
                let key = key.strip_prefix(b"GNU.sparse.").unwrap_or_default();
                let sparse = if key.is_empty() { return Some(()) } else { self.sparse.get_or_insert_default() };
                match key {
                    b"major" => sparse.major = number(value)?,
                    b"minor" => sparse.minor = number(value)?,
                    b"name" => sparse.name = Some(value.to_owned()),
                    b"size" | b"realsize" => sparse.size = Some(number(value)?),
                    b"offset" => sparse.map.push((number(value)?, 0)),
                    b"numbytes" => sparse.map.last_mut()?.1 = number(value)?,
                    b"map" => {
                        let numbers: Vec<u64> = value.split(|byte| *byte == b',').map(number).collect::<Option<_>>()?;
                        sparse.map =
                            numbers.chunks(2).map(|pair| Some((*pair.first()?, *pair.get(1)?))).collect::<Option<_>>()?;
                    }
                    _ => {}
                }
            }
        }
        Some(())
    }
}

/// The size in a header, in bytes. GNU tar leaves the field of a volume header empty.
fn size_of(header: &Header) -> Result<u64, ArchiveError> {
    let is_empty = header.as_old().size.iter().all(|byte| matches!(byte, 0 | b' '));
    if is_empty { Ok(0) } else { header.entry_size().map_err(damaged) }
}

fn add_parts(map: &mut Map, parts: &[GnuSparseHeader]) -> Result<(), ArchiveError> {
    for part in parts.iter().take_while(|part| !part.is_empty()) {
        map.push((part.offset().map_err(damaged)?, part.length().map_err(damaged)?));
    }
    Ok(())
}

fn number(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok()?.parse().ok()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn fault(fault: &str) -> ArchiveError {
    damaged(io::Error::other(fault))
}
