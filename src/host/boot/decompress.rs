//! Decompresses kernels and modules in memory. The output is bounded, so that no input can fill the memory.

use std::io::{self, Read};

use flate2::read::GzDecoder;
use liblzma::read::XzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

/// The compressions of kernels and modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The .xz format; kernels use its x86 filter.
    Xz,
    /// The .xz format. Kernels use it with the x86 filter.
    Zstd,
    /// RFC 8878.
    Lz4,
}

/// Magic number of LZ4's legacy frame, little endian.
pub const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// Maximum size of a decompressed legacy LZ4 block, in bytes.
const LZ4_BLOCK: usize = 8 << 20;

impl Compression {
    /// The compression's common name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        }
    }

    /// Decompresses `data` to at most `limit` bytes.
    ///
    /// # Errors
    /// Fails if `data` is damaged or cut short, or decompresses to more than `limit` bytes.
    pub fn decompress(self, data: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => bounded(GzDecoder::new(data), limit),
            Self::Xz => bounded(XzDecoder::new(data), limit),
            Self::Zstd => bounded(ZstdDecoder::new(data)?, limit),
            Self::Lz4 => lz4_legacy(data, limit),
        }
    }
}

fn bounded(reader: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    reader.take(limit as u64 + 1).read_to_end(&mut plain)?;
    if plain.len() > limit { Err(too_large(limit)) } else { Ok(plain) }
}

/// Decompresses legacy LZ4 frames. Each has the magic number, then blocks of a little-endian size and that many bytes.
fn lz4_legacy(data: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    let mut rest = data.strip_prefix(&LZ4_MAGIC).ok_or_else(|| invalid("it has no magic number of legacy lz4".to_owned()))?;
    let mut plain = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while !rest.is_empty() {
        let (size, after) = rest.split_first_chunk::<4>().ok_or_else(|| invalid("it ends in a block's size".to_owned()))?;
        if *size == LZ4_MAGIC {
            rest = after;
            continue;
        }
        let size = u32::from_le_bytes(*size) as usize;
        let (packed, after) = after
            .split_at_checked(size)
            .ok_or_else(|| invalid(format!("it ends in a block: {size} bytes are announced, {} are there", after.len())))?;
        let count = lz4_flex::block::decompress_into(packed, &mut block).map_err(|error| invalid(error.to_string()))?;
        plain.extend_from_slice(block.get(..count).unwrap_or_default());
        if plain.len() > limit {
            return Err(too_large(limit));
        }
        rest = after;
    }
    Ok(plain)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn too_large(limit: usize) -> io::Error {
    invalid(format!("it is more than {limit} bytes when decompressed"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    /// Compresses `plain` as the tools that build kernels do.
    pub fn compress(compression: Compression, plain: &[u8]) -> Vec<u8> {
        match compression {
            Compression::Gzip => {
                let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                writer.write_all(plain).unwrap();
                writer.finish().unwrap()
            }
            Compression::Xz => {
                // As scripts/xz_wrap.sh of Linux does for x86.
                let mut filters = liblzma::stream::Filters::new();
                filters.x86().lzma2(&liblzma::stream::LzmaOptions::new_preset(6).unwrap());
                let stream = liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32).unwrap();
                let mut writer = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
                writer.write_all(plain).unwrap();
                writer.finish().unwrap()
            }
            Compression::Zstd => zstd::encode_all(plain, 3).unwrap(),
            Compression::Lz4 => {
                let mut packed = LZ4_MAGIC.to_vec();
                for block in plain.chunks(LZ4_BLOCK) {
                    let block = lz4_flex::block::compress(block);
                    packed.extend((block.len() as u32).to_le_bytes());
                    packed.extend(block);
                }
                packed
            }
        }
    }

    const ALL: [Compression; 4] = [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4];

    /// Bytes that do not compress well: a 32-bit counter.
    fn sample(size: u32) -> Vec<u8> {
        (0..size / 4).flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn decompresses_the_original() {
        // More than one block of legacy lz4.
        let plain = vec![7; (8 << 20) + 5];
        for compression in ALL {
            let packed = compress(compression, &plain);
            assert!(compression.decompress(&packed, plain.len()).unwrap() == plain, "{compression:?}");
        }
    }

    #[test]
    fn lz4_frames_may_follow_each_other() {
        let packed = [compress(Compression::Lz4, b"one "), compress(Compression::Lz4, b"two")].concat();
        assert_eq!(Compression::Lz4.decompress(&packed, 7).unwrap(), b"one two");
    }

    #[test]
    fn output_beyond_the_limit_is_rejected() {
        let plain = sample(4096);
        for compression in ALL {
            let error = compression.decompress(&compress(compression, &plain), 4095).unwrap_err();
            assert_eq!(error.to_string(), "it is more than 4095 bytes when decompressed", "{compression:?}");
        }
    }

    #[test]
    fn truncated_input_is_rejected_at_every_byte() {
        let plain = sample(256);
        for compression in ALL {
            let packed = compress(compression, &plain);
            for end in 0..packed.len() {
                let result = compression.decompress(&packed[..end], 4096);
                // Legacy LZ4 has no end mark: the magic number alone is a complete, empty frame.
                let whole = compression == Compression::Lz4 && end == 4;
                assert_eq!(result.is_ok(), whole, "{compression:?} cut at {end}: {result:?}");
            }
        }
    }

    #[test]
    fn damaged_lz4_is_rejected_with_a_reason() {
        let cases: [(&[u8], &str); 4] = [
            (b"\x04\x22\x4d\x18", "it has no magic number of legacy lz4"),
            (b"\x02\x21\x4c\x18\x05\0", "it ends in a block's size"),
            (b"\x02\x21\x4c\x18\x05\0\0\0ab", "it ends in a block: 5 bytes are announced, 2 are there"),
            (b"\x02\x21\x4c\x18\x02\0\0\0\x0f\0", "expected another byte, found none"),
        ];
        for (data, expected) in cases {
            assert_eq!(Compression::Lz4.decompress(data, 4096).unwrap_err().to_string(), expected);
        }
    }
}
