//! Compression around an archive: recognized by its first bytes, taken off into a nameless temporary file. What enters is a file;
//! what leaves is a file with the archive itself.

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
    /// Not at all, or in a way that is not understood here.
    None,
}

/// Bytes that [`Compression::of`] looks at.
pub const MAGIC_LEN: usize = 4;

/// The first bytes of each compression.
const MAGIC: [(&[u8], Compression); 2] = [(b"\x1f\x8b", Compression::Gzip), (b"\x28\xb5\x2f\xfd", Compression::Zstd)];

/// What any content may grow to, in bytes, and by which factor it may grow beyond that. Layers compress to a half or a third; what
/// passes these bounds is made to fill disks.
const FREE_GROWTH: u64 = 1 << 30;
const MAX_RATIO: u64 = 100;

impl Compression {
    /// The compression of content that starts with `start`.
    #[must_use]
    pub fn of(start: &[u8]) -> Self {
        MAGIC.iter().find(|(magic, _)| start.starts_with(magic)).map_or(Self::None, |(_, compression)| *compression)
    }

    /// Reads `packed` decompressed.
    ///
    /// # Errors
    /// When there is no memory for a decoder.
    pub fn decoder<'a>(self, packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::new(packed)?),
            Self::None => Box::new(packed),
        })
    }
}

/// Most bytes that `packed` compressed bytes may unpack to.
#[must_use]
pub const fn limit(packed: u64) -> u64 {
    FREE_GROWTH.saturating_add(packed.saturating_mul(MAX_RATIO))
}

/// Why an archive is not decompressed.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The compressed content is damaged, cut short or unreadable.
    #[error("it cannot be decompressed")]
    Read(#[source] io::Error),
    /// No place for what it unpacks to.
    #[error("cannot unpack it into a temporary file in {folder}")]
    Write {
        /// Where the temporary file is.
        folder: String,
        /// Why not.
        source: io::Error,
    },
    /// More than any honest archive.
    #[error("it unpacks to more than {0} bytes, far more than images do; decompress it first if it is meant")]
    Bomb(u64),
}

/// The archive in `packed`, decompressed into a file in `folder` that has no name and ends with its last user.
///
/// # Errors
/// [`UnpackError`]; a signal shows as one too.
pub fn unpack(packed: &File, compression: Compression, folder: &Path, interrupt: &Interrupt) -> Result<File, UnpackError> {
    let len = packed.metadata().map_err(UnpackError::Read)?.len();
    let write = |source| UnpackError::Write { folder: folder.display().to_string(), source };
    let mut reader = packed;
    reader.seek(SeekFrom::Start(0)).map_err(UnpackError::Read)?;
    let mut plain = compression.decoder(BufReader::with_capacity(1 << 20, reader)).map_err(UnpackError::Read)?;
    let mut file = tempfile::tempfile_in(folder).map_err(write)?;
    pour(&mut plain, limit(len), |part| file.write_all(part).map_err(write), interrupt)?;
    Ok(file)
}

/// Reads `plain` to its end, through `taken`.
///
/// # Errors
/// As of reading; [`UnpackError::Bomb`] above `limit` bytes; those of `taken`.
pub fn pour(
    plain: &mut dyn Read,
    limit: u64,
    mut taken: impl FnMut(&[u8]) -> Result<(), UnpackError>,
    interrupt: &Interrupt,
) -> Result<(), UnpackError> {
    let mut buffer = vec![0; 1 << 18];
    let mut total = 0_u64;
    loop {
        interrupt.check_io().map_err(UnpackError::Read)?;
        let count = plain.read(&mut buffer).map_err(UnpackError::Read)?;
        if count == 0 {
            return Ok(());
        }
        total = total.saturating_add(count as u64);
        if total > limit {
            return Err(UnpackError::Bomb(limit));
        }
        taken(buffer.get(..count).unwrap_or_default())?;
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

    fn unpacked(content: &[u8]) -> Result<Vec<u8>, UnpackError> {
        let folder = tempfile::tempdir().unwrap();
        let mut file = unpack(&packed(content), Compression::of(content), folder.path(), &Interrupt::default())?;
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        file.rewind().unwrap();
        let mut plain = Vec::new();
        file.read_to_end(&mut plain).unwrap();
        Ok(plain)
    }

    #[test]
    fn takes_gzip_and_zstd_off_in_all_their_parts() {
        let zstd = |plain: &[u8]| zstd::encode_all(plain, 1).unwrap();
        for parts in [[gzip(b"one "), gzip(b"two")], [zstd(b"one "), zstd(b"two")]] {
            assert_eq!(unpacked(&parts.concat()).unwrap(), b"one two");
        }
    }

    #[test]
    fn refuses_what_is_cut() {
        for whole in [gzip(&[7; 5000]), zstd::encode_all(&[7; 5000][..], 1).unwrap()] {
            for len in MAGIC_LEN..whole.len() {
                let error = unpacked(&whole[..len]).unwrap_err();
                assert!(matches!(error, UnpackError::Read(_)), "{len}: {error}");
            }
        }
    }

    #[test]
    fn refuses_a_bomb() {
        let packed = gzip(&[0; 2000]);
        let mut plain = Compression::Gzip.decoder(packed.as_slice()).unwrap();
        let error = pour(&mut plain, 1999, |_| Ok(()), &Interrupt::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "it unpacks to more than 1999 bytes, far more than images do; decompress it first if it is meant"
        );
        assert_eq!(limit(1 << 20), (1 << 30) + (100 << 20));
    }
}
