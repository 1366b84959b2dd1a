//! The little of ELF that decides what may boot: which interpreter a program asks for, which notes a kernel carries. In go the
//! bytes of a file, out come its processor and facts about its program headers. It never trusts an offset, and reads only files of the
//! processors that a guest can have. Layout: System V ABI, "ELF Header", "Program Header" and "Note Section".

use std::fmt;

use crate::disk::little_endian::{u16_at, u32_at, u64_at};

/// Why bytes are not the ELF file that was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// No ELF magic, or a header cut off.
    #[error("it is not an ELF file")]
    NotElf,
    /// 32 bits, big endian, or another machine.
    #[error("it is an ELF file, but for neither 64-bit x86 nor 64-bit ARM")]
    Foreign,
    /// A program header or what it points to lies past the end.
    #[error("it is cut short: its program headers reach to byte {needed}, but it ends at byte {size}")]
    Truncated {
        /// Bytes that the file must have.
        needed: u64,
        /// Bytes that it has.
        size: usize,
    },
}

/// A processor that a guest can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processor {
    /// `EM_X86_64`.
    X86,
    /// `EM_AARCH64`.
    Arm,
}

impl Processor {
    /// Its name in an image's config (OCI image configuration, "Properties", `architecture`: a GOARCH).
    #[must_use]
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::X86 => "amd64",
            Self::Arm => "arm64",
        }
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86 => "64-bit x86",
            Self::Arm => "64-bit ARM",
        })
    }
}

/// A parsed file: its program headers, each known to lie inside it.
#[derive(Debug)]
pub struct Elf<'a> {
    processor: Processor,
    segments: Vec<Segment<'a>>,
}

#[derive(Debug)]
struct Segment<'a> {
    kind: u32,
    align: u64,
    content: &'a [u8],
}

const PT_NULL: u32 = 0;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
/// Magic, `ELFCLASS64`, `ELFDATA2LSB`.
const IDENT: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;
/// `e_phentsize` of a 64-bit file.
const HEADER_SIZE: u64 = 56;

impl<'a> Elf<'a> {
    /// Reads the program headers of `bytes`.
    ///
    /// # Errors
    /// When `bytes` are not a whole 64-bit ELF file for x86 or ARM.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        if bytes.get(..4) != IDENT.get(..4) {
            return Err(ElfError::NotElf);
        }
        if bytes.get(4..6) != IDENT.get(4..6) {
            return Err(ElfError::Foreign);
        }
        let processor = match u16_at(bytes, 18).ok_or(ElfError::NotElf)? {
            EM_X86_64 => Processor::X86,
            EM_AARCH64 => Processor::Arm,
            _ => return Err(ElfError::Foreign),
        };
        let table = u64_at(bytes, 32).ok_or(ElfError::NotElf)?;
        let count = u16_at(bytes, 56).ok_or(ElfError::NotElf)?;
        let segments = (0..u64::from(count)).map(|index| {
            let header = slice(bytes, table.saturating_add(index * HEADER_SIZE), HEADER_SIZE)?;
            Segment::parse(bytes, header)
        });
        Ok(Self { processor, segments: segments.collect::<Result<_, _>>()? })
    }

    /// The processor that it is for.
    #[must_use]
    pub const fn processor(&self) -> Processor {
        self.processor
    }

    /// The interpreter (dynamic loader) that the program asks for; none for a static one.
    #[must_use]
    pub fn interpreter(&self) -> Option<String> {
        let segment = self.segments.iter().find(|segment| segment.kind == PT_INTERP)?;
        let text = segment.content.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// Whether a note of type `kind` with the owner `name` is there.
    #[must_use]
    pub fn has_note(&self, name: &str, kind: u32) -> bool {
        let notes = self.segments.iter().filter(|segment| segment.kind == PT_NOTE);
        notes.into_iter().any(|segment| note_in(segment.content, segment.align, name, kind))
    }
}

impl<'a> Segment<'a> {
    fn parse(bytes: &'a [u8], header: &[u8]) -> Result<Self, ElfError> {
        let field = |offset| u64_at(header, offset).ok_or(ElfError::NotElf);
        let kind = u32_at(header, 0).ok_or(ElfError::NotElf)?;
        let content = if kind == PT_NULL { &[][..] } else { slice(bytes, field(8)?, field(32)?)? };
        Ok(Self { kind, align: field(48)?, content })
    }
}

/// Walks the notes: name size, description size, type, then name and description, each padded to the segment's alignment.
fn note_in(mut notes: &[u8], align: u64, name: &str, kind: u32) -> bool {
    let pad = if align == 8 { 8 } else { 4 };
    while let (Some(name_size), Some(text_size), Some(this)) = (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8)) {
        let (name_size, text_size) = (name_size as usize, text_size as usize);
        let owner = notes.get(12..12_usize.saturating_add(name_size)).unwrap_or_default();
        if this == kind && owner.strip_suffix(&[0]) == Some(name.as_bytes()) {
            return true;
        }
        let text = 12_usize.saturating_add(name_size).next_multiple_of(pad);
        let next = text.saturating_add(text_size).next_multiple_of(pad);
        notes = notes.get(next..).unwrap_or_default();
    }
    false
}

fn slice(bytes: &[u8], offset: u64, size: u64) -> Result<&[u8], ElfError> {
    let needed = offset.saturating_add(size);
    let range = usize::try_from(offset).ok().zip(usize::try_from(needed).ok());
    range.and_then(|(start, end)| bytes.get(start..end)).ok_or(ElfError::Truncated { needed, size: bytes.len() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A made-up x86-64 ELF file of the given program headers: kind, alignment, content.
    pub fn elf(segments: &[(u32, u64, &[u8])]) -> Vec<u8> {
        let mut file = IDENT.to_vec();
        file.resize(64, 0);
        file[16..18].copy_from_slice(&2_u16.to_le_bytes());
        file[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
        let mut offset = 64 + 56 * segments.len() as u64;
        for (kind, align, content) in segments {
            let size = content.len() as u64;
            file.extend(kind.to_le_bytes());
            file.extend([0; 4]);
            for field in [offset, 0, 0, size, size, *align] {
                file.extend(field.to_le_bytes());
            }
            offset += size;
        }
        segments.iter().for_each(|(_, _, content)| file.extend(*content));
        file
    }

    /// One note, padded to 4 bytes.
    pub fn note(name: &str, kind: u32, text: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        note.extend((name.len() as u32 + 1).to_le_bytes());
        note.extend((text.len() as u32).to_le_bytes());
        note.extend(kind.to_le_bytes());
        note.extend(name.as_bytes());
        note.push(0);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend(text);
        note.resize(note.len().next_multiple_of(4), 0);
        note
    }

    #[test]
    fn finds_the_interpreter_and_notes() {
        let notes = [note("Linux", 257, &[0; 3]), note("Xen", 18, &[0; 8])].concat();
        let file = elf(&[(1, 4096, b"load"), (PT_INTERP, 1, b"/lib64/ld.so\0"), (PT_NOTE, 4, &notes)]);
        let parsed = Elf::parse(&file).unwrap();
        assert_eq!(parsed.interpreter().as_deref(), Some("/lib64/ld.so"));
        assert!(parsed.has_note("Xen", 18));
        assert!(!parsed.has_note("Xen", 17));
        assert!(!parsed.has_note("Xe", 18));
        let plain = elf(&[(1, 4096, b"load")]);
        let parsed = Elf::parse(&plain).unwrap();
        assert_eq!(parsed.interpreter(), None);
        assert!(!parsed.has_note("Xen", 18));
    }

    #[test]
    fn notes_with_absurd_sizes_end_the_walk() {
        let mut notes = note("Xen", 18, &[0; 8]);
        notes[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let file = elf(&[(PT_NOTE, 4, &notes)]);
        assert!(!Elf::parse(&file).unwrap().has_note("Xen", 18));
    }

    #[test]
    fn refuses_what_is_not_a_whole_file_of_a_guest_s_processor() {
        let good = elf(&[(1, 4096, b"load")]);
        let cases: [(&[u8], &str); 5] = [
            (b"", "it is not an ELF file"),
            (b"#!/bin/sh\n", "it is not an ELF file"),
            (&[0x7f, b'E', b'L', b'F', 1, 1], "it is an ELF file, but for neither 64-bit x86 nor 64-bit ARM"),
            (&good[..64], "it is cut short: its program headers reach to byte 120, but it ends at byte 64"),
            (&good[..121], "it is cut short: its program headers reach to byte 124, but it ends at byte 121"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Elf::parse(bytes).unwrap_err().to_string(), expected);
        }
        let mut other = good;
        assert_eq!(Elf::parse(&other).unwrap().processor(), Processor::X86);
        other[18] = 183;
        assert_eq!(Elf::parse(&other).unwrap().processor(), Processor::Arm);
        other[18] = 243;
        assert_eq!(Elf::parse(&other).unwrap_err(), ElfError::Foreign);
    }
}
