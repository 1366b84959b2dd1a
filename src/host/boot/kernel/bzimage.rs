//! Extracts from a bzImage the ELF that QEMU boots directly (PVH). This skips the kernel's self-decompression, which takes most of
//! an emulated boot. Input is untrusted: no offset in it causes a panic.
//!
//! Layout: Linux `Documentation/arch/x86/boot.rst`. The payload's last four bytes are its decompressed size, little endian
//! (`arch/x86/boot/compressed/mkpiggy.c`; for gzip they are part of the format).

use std::borrow::Cow;
use std::io;

use crate::host::boot::decompress::{Compression, LZ4_MAGIC};
use crate::host::boot::elf::{Elf, ElfError, Processor};

/// Why a file contains no bootable kernel.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// Neither a bzImage nor an ELF file.
    #[error("it is neither a bzImage (no \"HdrS\" at byte 514) nor an ELF file; give the vmlinuz of an x86-64 Linux")]
    NotKernel,
    /// The header is too old to have the fields of the payload.
    #[error(
        "its boot protocol is {}.{:02}, but only 2.08 and later say where the payload is; give Linux 2.6.26 or later",
        .0 >> 8, .0 & 0xff
    )]
    Protocol(u16),
    /// The header points past the end of the file.
    #[error("it is cut short: its payload is bytes {start} to {end}, but the file ends at byte {size}")]
    Truncated {
        /// Offset of the payload's first byte.
        start: usize,
        /// Offset after the payload's last byte.
        end: usize,
        /// The file's size in bytes.
        size: usize,
    },
    /// A known compression that is not supported.
    #[error("its payload is compressed with {0}, but only gzip, xz, zstd and lz4 are supported; {EXTRACT}")]
    Unsupported(&'static str),
    /// An unknown compression.
    #[error("its payload is compressed in an unknown way (it starts with {0}); gzip, xz, zstd and lz4 are supported")]
    Unknown(String),
    /// The announced size is too large for a kernel.
    #[error("its payload says that it decompresses to {size} bytes; the limit for a kernel is {MAX_KERNEL}")]
    TooLarge {
        /// The announced size in bytes.
        size: usize,
    },
    /// The payload is damaged.
    #[error("its {} payload is damaged", .compression.name())]
    Damaged {
        /// The payload's compression.
        compression: Compression,
        /// The decompressor's error.
        source: io::Error,
    },
    /// The payload's size differs from the announced one.
    #[error("its payload is damaged: it decompresses to {got} bytes, but says {expected}")]
    Size {
        /// The decompressed size in bytes.
        got: usize,
        /// The announced size in bytes.
        expected: usize,
    },
    /// The decompressed payload is not an ELF file for a guest.
    #[error("its kernel cannot be booted")]
    Elf(#[source] ElfError),
    /// The kernel is for another processor, whose boot loaders take the file as it is.
    #[error("its kernel is for {0}; only a kernel for 64-bit x86 can be extracted")]
    Processor(Processor),
    /// The kernel lacks the entry point by which QEMU boots an ELF.
    #[error(
        "its kernel has no Xen PVH note (XEN_ELFNOTE_PHYS32_ENTRY), so QEMU cannot boot it as ELF; give one built with CONFIG_PVH=y"
    )]
    NoPvhNote,
}

const EXTRACT: &str = "extract the ELF with scripts/extract-vmlinux of Linux and use that";

/// The largest decompressed kernel accepted, in bytes. Distributions' kernels have 30 to 100 MB.
pub const MAX_KERNEL: usize = 512 << 20;

/// Magic numbers of payloads, the compression's name, and the compression if it is supported (Linux `lib/decompress.c`).
const MAGICS: [(&[u8], &str, Option<Compression>); 7] = [
    (&[0x1f, 0x8b], "gzip", Some(Compression::Gzip)),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz", Some(Compression::Xz)),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", Some(Compression::Zstd)),
    (&LZ4_MAGIC, "lz4", Some(Compression::Lz4)),
    (b"BZh", "bzip2", None),
    (&[0x5d, 0, 0], "lzma", None),
    (&[0x89, b'L', b'Z', b'O'], "lzo", None),
];

/// Offsets of fields in the setup header ("The Real-Mode Kernel Header").
mod field {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const KERNEL_VERSION: usize = 0x20e;
    pub const PAYLOAD_OFFSET: usize = 0x248;
    pub const PAYLOAD_LENGTH: usize = 0x24c;
}

/// Returns the bootable ELF in `image`: extracted from a bzImage, or `image` itself if it is one.
///
/// # Errors
/// Fails if `image` is not a kernel, is damaged, or has no PVH entry point.
pub fn vmlinux(image: &[u8]) -> Result<Cow<'_, [u8]>, BzImageError> {
    let kernel = match image.get(..4) {
        Some(b"\x7fELF") => Cow::Borrowed(image),
        _ => Cow::Owned(decompress(payload(image)?)?),
    };
    let elf = Elf::parse(&kernel).map_err(BzImageError::Elf)?;
    if elf.processor() != Processor::X86 {
        return Err(BzImageError::Processor(elf.processor()));
    }
    // XEN_ELFNOTE_PHYS32_ENTRY of Xen's public/elfnote.h.
    if elf.has_note("Xen", 18) { Ok(kernel) } else { Err(BzImageError::NoPvhNote) }
}

/// The release that a bzImage names, as in `uname -r`. `None` for an ELF.
#[must_use]
pub fn release(image: &[u8]) -> Option<String> {
    if !has_header(image) {
        return None;
    }
    // "kernel_version": the text's offset less 0x200.
    let offset = usize::from(u16::from_le_bytes(*image.get(field::KERNEL_VERSION..)?.first_chunk()?)) + 0x200;
    let text = image.get(offset..)?.split(|byte| matches!(byte, 0 | b' ')).next()?;
    let printable = !text.is_empty() && text.iter().all(u8::is_ascii_graphic);
    printable.then(|| String::from_utf8_lossy(text).into_owned())
}

pub(super) fn has_header(image: &[u8]) -> bool {
    image.get(field::MAGIC..field::MAGIC + 4) == Some(b"HdrS")
}

/// The compressed kernel in a bzImage, including the size that follows it.
fn payload(image: &[u8]) -> Result<&[u8], BzImageError> {
    if !has_header(image) {
        return Err(BzImageError::NotKernel);
    }
    let cut = |end| BzImageError::Truncated { start: 0, end, size: image.len() };
    let word = |offset: usize| {
        let bytes = image.get(offset..).and_then(|rest| rest.first_chunk()).ok_or_else(|| cut(offset + 4))?;
        Ok(u32::from_le_bytes(*bytes) as usize)
    };
    let version = (word(field::VERSION)? & 0xffff) as u16;
    if version < 0x208 {
        return Err(BzImageError::Protocol(version));
    }
    // "setup_sects": 0 means 4, for ancient kernels. The boot sector is not counted. Protected-mode code follows the setup sectors.
    let sectors = match image.get(field::SETUP_SECTS).copied().unwrap_or(0) {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = ((sectors + 1) * 512).saturating_add(word(field::PAYLOAD_OFFSET)?);
    let end = start.saturating_add(word(field::PAYLOAD_LENGTH)?);
    image.get(start..end).ok_or(BzImageError::Truncated { start, end, size: image.len() })
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let known = MAGICS.into_iter().find(|(magic, ..)| payload.starts_with(magic));
    let compression = match known {
        Some((_, _, Some(compression))) => compression,
        Some((_, name, None)) => return Err(BzImageError::Unsupported(name)),
        None => return Err(BzImageError::Unknown(hex(payload.get(..6).unwrap_or(payload)))),
    };
    let (data, size) = match payload.split_last_chunk::<4>() {
        Some((data, size)) => (data, u32::from_le_bytes(*size) as usize),
        None => (payload, 0),
    };
    if size > MAX_KERNEL {
        return Err(BzImageError::TooLarge { size });
    }
    let data = if compression == Compression::Gzip { payload } else { data };
    let kernel = compression.decompress(data, size).map_err(|source| BzImageError::Damaged { compression, source })?;
    if kernel.len() == size { Ok(kernel) } else { Err(BzImageError::Size { got: kernel.len(), expected: size }) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;
    use crate::host::boot::decompress::tests::compress;
    use crate::host::boot::elf::tests::{elf, note};

    /// A bzImage with `payload`: two setup sectors, the payload 16 bytes into the protected-mode code, 8 bytes after it.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * 512 + 16];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x310].copy_from_slice(b"6.1.0-9-x (a@b) ");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image.extend([0; 8]);
        image
    }

    /// `kernel` compressed and followed by its size, as by Linux's `size_append`; gzip already ends with the size.
    fn packed(compression: Compression, kernel: &[u8]) -> Vec<u8> {
        let mut packed = compress(compression, kernel);
        if compression != Compression::Gzip {
            packed.extend((kernel.len() as u32).to_le_bytes());
        }
        packed
    }

    /// An ELF with the PVH note, and bytes that the x86 filter changes.
    fn kernel() -> Vec<u8> {
        let code: Vec<u8> = (0..20_000_u32).flat_map(|n| [0xe8, n as u8, (n >> 8) as u8, 0, 0, 0x90]).collect();
        elf(&[(1, 4096, &code), (4, 4, &note("Xen", 18, &[0; 8]))])
    }

    fn message(image: &[u8]) -> String {
        let error = vmlinux(image).unwrap_err();
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{error}{cause}")
    }

    #[test]
    fn extracts_every_compression_and_passes_elf_through() {
        for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4] {
            let image = bzimage(&packed(compression, &kernel()));
            assert!(vmlinux(&image).unwrap() == kernel(), "{compression:?}");
            assert_eq!(release(&image).as_deref(), Some("6.1.0-9-x"));
        }
        assert!(vmlinux(&kernel()).unwrap() == kernel());
        assert_eq!(release(&kernel()), None);
    }

    #[test]
    fn zero_setup_sectors_are_read_as_four() {
        let mut image = bzimage(&packed(Compression::Gzip, &kernel()));
        image[0x1f1] = 0;
        image.splice(1536..1536, [0; 1024]);
        assert!(vmlinux(&image).unwrap() == kernel());
    }

    #[test]
    fn files_that_are_not_kernels_are_rejected() {
        let expected = "it is neither a bzImage (no \"HdrS\" at byte 514) nor an ELF file; give the vmlinuz of an x86-64 Linux";
        for bytes in [&b""[..], b"#!/bin/sh", &[0; 4096]] {
            assert_eq!(message(bytes), expected);
        }
        let mut arm = kernel();
        arm[18] = 183;
        assert_eq!(message(&arm), "its kernel is for 64-bit ARM; only a kernel for 64-bit x86 can be extracted");
    }

    #[test]
    fn old_boot_protocol_is_rejected() {
        let mut image = bzimage(&packed(Compression::Gzip, &kernel()));
        image[0x206] = 7;
        assert_eq!(
            message(&image),
            "its boot protocol is 2.07, but only 2.08 and later say where the payload is; give Linux 2.6.26 or later"
        );
    }

    #[test]
    fn truncated_image_is_rejected() {
        let image = bzimage(&vec![0; 1000]);
        assert_eq!(message(&image[..2000]), "it is cut short: its payload is bytes 1552 to 2552, but the file ends at byte 2000");
        assert_eq!(message(&image[..0x24a]), "it is cut short: its payload is bytes 0 to 588, but the file ends at byte 586");
        let mut image = image;
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(message(&image), "it is cut short: its payload is bytes 1552 to 4294968847, but the file ends at byte 2560");
    }

    #[test]
    fn truncated_payload_is_rejected() {
        let whole = packed(Compression::Lz4, &kernel());
        let cut = [&whole[..whole.len() / 2], &whole[whole.len() - 4..]].concat();
        let announced = u32::from_le_bytes(*whole[4..].first_chunk().unwrap());
        assert_eq!(
            message(&bzimage(&cut)),
            format!(
                "its lz4 payload is damaged: it ends in a block: {announced} bytes are announced, {} are there",
                whole.len() / 2 - 8
            )
        );
        let mut short = packed(Compression::Zstd, &kernel());
        let size = short.len();
        short[size - 4..].copy_from_slice(&(kernel().len() as u32 + 1).to_le_bytes());
        assert_eq!(
            message(&bzimage(&short)),
            format!("its payload is damaged: it decompresses to {} bytes, but says {}", kernel().len(), kernel().len() + 1)
        );
    }

    #[test]
    fn payload_too_large_for_a_kernel_is_rejected() {
        let mut bomb = packed(Compression::Zstd, &kernel());
        let size = bomb.len();
        bomb[size - 4..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            message(&bzimage(&bomb)),
            "its payload says that it decompresses to 4294967295 bytes; the limit for a kernel is 536870912"
        );
        bomb[size - 4..].copy_from_slice(&100_u32.to_le_bytes());
        assert_eq!(message(&bzimage(&bomb)), "its zstd payload is damaged: it is more than 100 bytes when decompressed");
    }

    #[test]
    fn unsupported_compressions_are_rejected_by_name() {
        let expected = |name| {
            format!(
                "its payload is compressed with {name}, but only gzip, xz, zstd and lz4 are supported; extract the ELF \
                 with scripts/extract-vmlinux of Linux and use that"
            )
        };
        assert_eq!(message(&bzimage(b"BZh91AY")), expected("bzip2"));
        assert_eq!(message(&bzimage(&[0x5d, 0, 0, 0x80, 0])), expected("lzma"));
        assert_eq!(message(&bzimage(b"\x89LZO\0\r\n")), expected("lzo"));
        assert_eq!(
            message(&bzimage(&[1, 2, 3, 4, 5, 6, 7])),
            "its payload is compressed in an unknown way (it starts with 01 02 03 04 05 06); gzip, xz, zstd and lz4 are \
             supported"
        );
        assert_eq!(
            message(&bzimage(b"")),
            "its payload is compressed in an unknown way (it starts with ); gzip, xz, zstd and lz4 are supported"
        );
    }

    #[test]
    fn kernel_without_the_pvh_note_is_rejected() {
        let expected = "its kernel has no Xen PVH note (XEN_ELFNOTE_PHYS32_ENTRY), so QEMU cannot boot it as ELF; give one \
                        built with CONFIG_PVH=y";
        let plain = elf(&[(1, 4096, b"code"), (4, 4, &note("Xen", 6, b"linux\0"))]);
        assert_eq!(message(&plain), expected);
        assert_eq!(message(&bzimage(&packed(Compression::Xz, &plain))), expected);
    }
}
