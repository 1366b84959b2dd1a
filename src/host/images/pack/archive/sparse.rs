//! Content of archive members: one part, or for a sparse file several parts with holes between them, which read as zeros.
//!
//! The forms of sparse files are those of GNU tar: the old one of format `gnu`, and 0.0, 0.1 and 1.0 of format `pax` (GNU tar manual,
//! "Storing Sparse Files"). bsdtar writes 1.0.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

/// Size of a tar block in bytes. A header is one block; content is padded to full blocks (POSIX pax, "ustar Interchange Format").
pub const BLOCK: u64 = 512;
/// Longest line of a map in the form 1.0, in bytes: a number of 64 bits and its newline.
const MAX_LINE: u64 = 21;

/// Offset and length of each part of a sparse file, in bytes.
pub type Map = Vec<(u64, u64)>;

/// A part of a file that the archive stores. All values are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    /// Offset in the file.
    offset: u64,
    /// Offset in the archive.
    at: u64,
    len: u64,
}

/// The pax records of a sparse file.
#[derive(Debug, Default)]
pub struct PaxSparse {
    pub major: u64,
    pub minor: u64,
    pub name: Option<Vec<u8>>,
    /// Size in bytes, holes included.
    pub size: Option<u64>,
    /// The parts, in the forms 0.0 and 0.1.
    pub map: Map,
}

/// The content of a file.
#[derive(Debug, Clone)]
pub struct Content {
    /// Size in bytes, holes included.
    pub size: u64,
    /// Offset of the member's data in the archive, in bytes.
    pub at: u64,
    parts: Box<[Part]>,
}

impl Content {
    /// A file whose `size` bytes are stored at `at`.
    pub fn plain(at: u64, size: u64) -> Self {
        Self { size, at, parts: Box::new([Part { offset: 0, at, len: size }]) }
    }

    /// A sparse file of `size` bytes: `map` gives the offset and length of each part. The archive stores them one after the other, in
    /// `stored` bytes at `at`.
    ///
    /// # Errors
    /// Returns the fault of the map.
    pub fn sparse(map: &[(u64, u64)], at: u64, stored: u64, size: u64) -> Result<Self, &'static str> {
        let (mut end, mut used) = (0_u64, 0_u64);
        let mut parts = Vec::with_capacity(map.len());
        for (offset, len) in map.iter().copied() {
            if offset < end {
                return Err("its map is not in order");
            }
            end = offset.checked_add(len).filter(|end| *end <= size).ok_or("its map leads past its end")?;
            if len > 0 {
                parts.push(Part { offset, at: at + used, len });
            }
            used = used.checked_add(len).filter(|used| *used <= stored).ok_or("the archive stores less than its map lists")?;
        }
        Ok(Self { size, at, parts: parts.into() })
    }

    /// A sparse file by its pax records. Its data is at `at`, of `stored` bytes.
    ///
    /// # Errors
    /// Fails if the archive cannot be read. Returns the fault of the map as `Ok(Err(_))`.
    pub fn of_pax(sparse: &PaxSparse, file: &File, at: u64, stored: u64) -> io::Result<Result<Self, &'static str>> {
        let Some(size) = sparse.size else { return Ok(Err("it has no size")) };
        match (sparse.major, sparse.minor) {
            (0, _) => Ok(Self::sparse(&sparse.map, at, stored, size)),
            (1, 0) => Ok(match map_in_data(file, at, stored)? {
                Some((map, len)) => Self::sparse(&map, at + len, stored - len, size),
                None => Err("its map is damaged"),
            }),
            _ => Ok(Err("its version is not known")),
        }
    }

    /// Number of parts of a sparse file; 1 for any other.
    pub const fn parts(&self) -> usize {
        self.parts.len()
    }

    /// A reader of the content.
    pub fn reader<'a>(&'a self, file: &'a File) -> PartsReader<'a> {
        PartsReader { file, parts: &self.parts, position: 0, size: self.size }
    }
}

/// The map at the start of a member's data in the form 1.0, and its length with padding. `None` if it is damaged.
fn map_in_data(file: &File, at: u64, stored: u64) -> io::Result<Option<(Map, u64)>> {
    let data = Content::plain(at, stored);
    let mut lines = BufReader::new(data.reader(file));
    let (mut used, mut line) = (0, Vec::new());
    let mut number = || {
        line.clear();
        used += (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line)? as u64;
        let digits = line.strip_suffix(b"\n").and_then(|digits| str::from_utf8(digits).ok());
        io::Result::Ok(digits.and_then(|digits| digits.parse::<u64>().ok()))
    };
    let Some(count) = number()? else { return Ok(None) };
    let mut map = Map::new();
    for _ in 0..count {
        let (Some(offset), Some(len)) = (number()?, number()?) else { return Ok(None) };
        map.push((offset, len));
    }
    let padded = used.next_multiple_of(BLOCK);
    Ok((padded <= stored).then_some((map, padded)))
}

/// Reads a file's parts and the zeros between them. It does not move the position of the archive, so that several can read at once.
pub struct PartsReader<'a> {
    file: &'a File,
    /// The parts not read yet, the current one first.
    parts: &'a [Part],
    position: u64,
    size: u64,
}

impl Read for PartsReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some((_, rest)) = self.parts.split_first().filter(|(part, _)| part.offset + part.len <= self.position) {
            self.parts = rest;
        }
        let part = self.parts.first();
        let hole = part.map_or(self.size, |part| part.offset).saturating_sub(self.position);
        let len = if hole > 0 { hole } else { part.map_or(0, |part| part.offset + part.len - self.position) };
        let wanted = usize::try_from(len).unwrap_or(usize::MAX).min(buffer.len());
        let (target, _) = buffer.split_at_mut(wanted);
        let count = match part.filter(|_| hole == 0) {
            Some(part) => self.file.read_at(target, part.at + (self.position - part.offset))?,
            None => {
                target.fill(0);
                wanted
            }
        };
        if count == 0 && wanted > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive became shorter while it was read"));
        }
        self.position += count as u64;
        Ok(count)
    }
}
