//! Reads the parts of an ELF file that decide whether it can be booted or run: its processor, the interpreter of a program, the notes of
//! a kernel. Files are untrusted. Only 64-bit x86 and ARM, the processors of guests, are accepted.

use std::fmt;

use elf::ElfBytes;
use elf::abi::{EM_AARCH64, EM_X86_64, PT_INTERP, PT_NULL};
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::note::Note;
use elf::parse::ParseError;
use elf::segment::ProgramHeader;

/// Why a file is not an ELF file for a guest's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// It lacks the magic number.
    #[error("it is not an ELF file")]
    NotElf,
    /// It has 32 bits, is big endian, or is for another processor.
    #[error("it is an ELF file, but for neither 64-bit x86 nor 64-bit ARM")]
    Foreign,
    /// A header, or the content of a segment, lies past the end.
    #[error("it is cut short: its headers need {needed} bytes, but it has {size}")]
    Truncated {
        /// The size in bytes that its headers imply.
        needed: usize,
        /// Its size in bytes.
        size: usize,
    },
}

/// A processor of guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processor {
    /// `EM_X86_64`.
    X86,
    /// `EM_AARCH64`.
    Arm,
}

impl Processor {
    /// Its name in an image config (OCI image configuration, "Properties", `architecture`: a GOARCH).
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

/// A parsed file. All its segments lie inside it.
#[derive(Debug)]
pub struct Elf<'a> {
    file: ElfBytes<'a, LittleEndian>,
    processor: Processor,
}

impl<'a> Elf<'a> {
    /// Parses the headers of `bytes`.
    ///
    /// # Errors
    /// Fails if `bytes` are not a complete 64-bit ELF file for x86 or ARM.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        let invalid = |error| match error {
            _ if !bytes.starts_with(b"\x7fELF") => ElfError::NotElf,
            ParseError::SliceReadError((_, needed)) => ElfError::Truncated { needed, size: bytes.len() },
            ParseError::IntegerOverflow => ElfError::Truncated { needed: usize::MAX, size: bytes.len() },
            _ => ElfError::Foreign,
        };
        let file = ElfBytes::minimal_parse(bytes).map_err(invalid)?;
        let processor = match (file.ehdr.class, file.ehdr.e_machine) {
            (Class::ELF64, EM_X86_64) => Processor::X86,
            (Class::ELF64, EM_AARCH64) => Processor::Arm,
            _ => return Err(ElfError::Foreign),
        };
        let elf = Self { file, processor };
        elf.segments().try_for_each(|header| elf.file.segment_data(&header).map(drop)).map_err(invalid)?;
        Ok(elf)
    }

    fn segments(&self) -> impl Iterator<Item = ProgramHeader> {
        let headers = self.file.segments().into_iter().flatten();
        headers.filter(|header| header.p_type != PT_NULL)
    }

    /// The processor it is built for.
    #[must_use]
    pub const fn processor(&self) -> Processor {
        self.processor
    }

    /// The interpreter (dynamic loader) that the program asks for. `None` if it is static.
    #[must_use]
    pub fn interpreter(&self) -> Option<String> {
        let header = self.segments().find(|header| header.p_type == PT_INTERP)?;
        let text = self.file.segment_data(&header).ok()?.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// Whether it has a note of this owner and type. GNU's own notes are not searched.
    #[must_use]
    pub fn has_note(&self, owner: &str, kind: u64) -> bool {
        let mut notes = self.segments().filter_map(|header| self.file.segment_data_as_notes(&header).ok()).flatten();
        notes.any(|note| {
            matches!(note, Note::Unknown(note) if note.n_type == kind && note.name.strip_suffix(&[0]) == Some(owner.as_bytes()))
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An x86-64 ELF file with the given program headers: type, alignment, content.
    pub fn elf(segments: &[(u32, u64, &[u8])]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
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
        let file = elf(&[(1, 4096, b"load"), (PT_INTERP, 1, b"/lib64/ld.so\0"), (4, 4, &notes)]);
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
    fn notes_with_a_wrong_size_end_the_search() {
        let mut notes = note("Xen", 18, &[0; 8]);
        notes[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let file = elf(&[(4, 4, &notes)]);
        assert!(!Elf::parse(&file).unwrap().has_note("Xen", 18));
    }

    #[test]
    fn non_elf_truncated_and_foreign_files_are_rejected() {
        let good = elf(&[(1, 4096, b"load")]);
        let cases: [(&[u8], &str); 5] = [
            (b"", "it is not an ELF file"),
            (b"#!/bin/sh\n", "it is not an ELF file"),
            (b"\x7fELF\x01\x01", "it is cut short: its headers need 16 bytes, but it has 6"),
            (&good[..64], "it is cut short: its headers need 120 bytes, but it has 64"),
            (&good[..121], "it is cut short: its headers need 124 bytes, but it has 121"),
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

    #[test]
    fn no_byte_of_the_headers_causes_a_panic() {
        let notes = [note("Xen", 18, &[0; 8]), note("GNU", 1, &[0; 16])].concat();
        let good = elf(&[(PT_INTERP, 1, b"/lib64/ld.so\0"), (4, 4, &notes)]);
        for at in 0..good.len() {
            for value in [0, 1, 3, 4, 0x7f, 0x80, 0xfe, 0xff] {
                let mut file = good.clone();
                file[at..good.len().min(at + 8)].fill(value);
                let _ = Elf::parse(&file).map(|elf| (elf.interpreter(), elf.has_note("Xen", 18)));
                file = good.clone();
                file[at] = value;
                let _ = Elf::parse(&file).map(|elf| (elf.interpreter(), elf.has_note("Xen", 18)));
            }
            assert!(Elf::parse(&good[..at]).is_err(), "cut at {at}");
        }
    }
}
