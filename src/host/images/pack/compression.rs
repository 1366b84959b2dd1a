//! Recognizes gzip and zstd by their first bytes, and decompresses archives into unnamed temporary files, up to a size limit.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::host::support::interrupt::Interrupt;

/// How content is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// Uncompressed, or an unsupported compression.
    None,
}

/// Bytes that [`Compression::of`] needs.
pub const MAGIC_LEN: usize = 4;

const MAGIC: [(&[u8], Compression); 2] = [(b"\x1f\x8b", Compression::Gzip), (b"\x28\xb5\x2f\xfd", Compression::Zstd)];

/// Bytes that any content may decompress to, and the ratio allowed beyond that. Layers compress to a half or a third; content
/// beyond these bounds is a decompression bomb.
const FREE_GROWTH: u64 = 1 << 30;
const MAX_RATIO: u64 = 100;

impl Compression {
    /// The compression of content that starts with `start`.
    #[must_use]
    pub fn of(start: &[u8]) -> Self {
        MAGIC.iter().find(|(magic, _)| start.starts_with(magic)).map_or(Self::None, |(_, compression)| *compression)
    }

    /// A reader of the decompressed content of `packed`.
    ///
    /// # Errors
    /// Fails if a decoder cannot be allocated.
    pub fn decoder<'a>(self, packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::new(packed)?),
            Self::None => Box::new(packed),
        })
    }
}

/// Most bytes that `packed` compressed bytes may decompress to.
#[must_use]
pub const fn max_decompressed(packed: u64) -> u64 {
    FREE_GROWTH.saturating_add(packed.saturating_mul(MAX_RATIO))
}

/// Why content cannot be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    #[error("it cannot be decompressed")]
    Read(#[source] io::Error),
    #[error("cannot unpack it into a temporary file in {folder}")]
    Write { folder: String, source: io::Error },
    #[error("it decompresses to more than {0} bytes, far more than images do; if that is intended, decompress it before packing")]
    Bomb(u64),
}

/// Decompresses `packed` into an unnamed temporary file in `folder`.
///
/// # Errors
/// Fails if reading or writing fails, above the size limit, or after a signal.
pub fn decompress(
    packed: &File,
    compression: Compression,
    folder: &Path,
    interrupt: &Interrupt,
) -> Result<File, DecompressError> {
    let len = packed.metadata().map_err(DecompressError::Read)?.len();
    let write = |source| DecompressError::Write { folder: folder.display().to_string(), source };
    let mut reader = packed;
    reader.seek(SeekFrom::Start(0)).map_err(DecompressError::Read)?;
    let mut plain = compression.decoder(BufReader::with_capacity(1 << 20, reader)).map_err(DecompressError::Read)?;
    let mut file = tempfile::tempfile_in(folder).map_err(write)?;
    decompress_into(&mut plain, max_decompressed(len), |part| file.write_all(part).map_err(write), interrupt)?;
    Ok(file)
}

/// Reads `plain` to its end and passes each part to `on_part`.
///
/// # Errors
/// Fails if reading or `on_part` fails, above `limit` bytes, or after a signal.
pub fn decompress_into(
    plain: &mut dyn Read,
    limit: u64,
    mut on_part: impl FnMut(&[u8]) -> Result<(), DecompressError>,
    interrupt: &Interrupt,
) -> Result<(), DecompressError> {
    let mut buffer = vec![0; 1 << 18];
    let mut total = 0_u64;
    loop {
        interrupt.check_io().map_err(DecompressError::Read)?;
        let count = plain.read(&mut buffer).map_err(DecompressError::Read)?;
        if count == 0 {
            return Ok(());
        }
        total = total.saturating_add(count as u64);
        if total > limit {
            return Err(DecompressError::Bomb(limit));
        }
        on_part(buffer.get(..count).unwrap_or_default())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(content: &[u8]) -> Result<Vec<u8>, DecompressError> {
        let folder = tempfile::tempdir().unwrap();
        let mut file = decompress(&packed(content), Compression::of(content), folder.path(), &Interrupt::default())?;
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        file.rewind().unwrap();
        let mut plain = Vec::new();
        file.read_to_end(&mut plain).unwrap();
        Ok(plain)
    }

    #[test]
    fn decompresses_concatenated_gzip_and_zstd_streams() {
        let zstd = |plain: &[u8]| zstd::encode_all(plain, 1).unwrap();
        for parts in [[gzip(b"one "), gzip(b"two")], [zstd(b"one "), zstd(b"two")]] {
            assert_eq!(unpacked(&parts.concat()).unwrap(), b"one two");
        }
    }

    #[test]
    fn truncated_streams_are_rejected() {
        for whole in [gzip(&[7; 5000]), zstd::encode_all(&[7; 5000][..], 1).unwrap()] {
            for len in MAGIC_LEN..whole.len() {
                let error = unpacked(&whole[..len]).unwrap_err();
                assert!(matches!(error, DecompressError::Read(_)), "{len}: {error}");
            }
        }
    }

    #[test]
    fn decompression_bombs_are_rejected() {
        let packed = gzip(&[0; 2000]);
        let mut plain = Compression::Gzip.decoder(packed.as_slice()).unwrap();
        let error = decompress_into(&mut plain, 1999, |_| Ok(()), &Interrupt::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "it decompresses to more than 1999 bytes, far more than images do; if that is intended, decompress it before packing"
        );
        assert_eq!(max_decompressed(1 << 20), (1 << 30) + (100 << 20));
    }
}
