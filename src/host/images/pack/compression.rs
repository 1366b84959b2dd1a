//! Recognizes gzip and zstd by their first bytes, and decompresses archives into unnamed temporary files, up to a size limit.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::bufread::GzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

use crate::disk::layout::max_expanded;
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

/// The first bytes of a gzip member and of a zstd frame.
const MAGIC: [(&[u8], Compression); 2] = [(b"\x1f\x8b", Compression::Gzip), (b"\x28\xb5\x2f\xfd", Compression::Zstd)];
/// The first bytes of a skippable zstd frame, with which pzstd begins. The low four bits of the first byte may have any value (RFC 8878,
/// section 3.1.2).
const SKIPPABLE: &[u8] = b"\x50\x2a\x4d\x18";

impl Compression {
    /// The compression of content that starts with `start`.
    #[must_use]
    pub fn of(start: &[u8]) -> Self {
        let found = MAGIC.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, compression)| *compression);
        let is_skippable = start.split_first().is_some_and(|(first, rest)| {
            SKIPPABLE.split_first().is_some_and(|(known, magic)| first & 0xf0 == *known && rest.starts_with(magic))
        });
        found.unwrap_or(if is_skippable { Self::Zstd } else { Self::None })
    }

    /// A reader of the decompressed content of `packed`. Content may be in several gzip members or zstd frames. Bytes behind the last one
    /// are ignored, as gzip does: tools that write into a pipe pad with zeros, and others append a signature.
    #[must_use]
    pub fn decoder<'a>(self, packed: impl BufRead + 'a, interrupt: &'a Interrupt) -> impl Read + 'a {
        let packed = Lookahead { start: Vec::new(), rest: packed };
        Frames { compression: self, frame: Frame::Between(packed), is_first: true, interrupt }
    }
}

/// A reader of which some bytes were read already.
struct Lookahead<R> {
    start: Vec<u8>,
    rest: R,
}

impl<R: BufRead> Lookahead<R> {
    /// The next [`MAGIC_LEN`] bytes, or all if there are fewer.
    fn peek(&mut self) -> io::Result<&[u8]> {
        let wanted = MAGIC_LEN.saturating_sub(self.start.len()) as u64;
        (&mut self.rest).take(wanted).read_to_end(&mut self.start)?;
        Ok(&self.start)
    }
}

impl<R: BufRead> Read for Lookahead<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Lookahead<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start.is_empty() { self.rest.fill_buf() } else { Ok(&self.start) }
    }

    fn consume(&mut self, count: usize) {
        if self.start.is_empty() { self.rest.consume(count) } else { drop(self.start.drain(..count)) }
    }
}

/// The gzip member or zstd frame that is being read.
enum Frame<'a, R: BufRead> {
    Gzip(Box<GzDecoder<Lookahead<R>>>),
    Zstd(ZstdDecoder<'a, Lookahead<R>>),
    /// Uncompressed content.
    Plain(Lookahead<R>),
    /// The end of one, or the start of the content.
    Between(Lookahead<R>),
    /// The end of the content, or an error.
    End,
}

/// Reads gzip members or zstd frames one after the other.
struct Frames<'a, R: BufRead> {
    compression: Compression,
    frame: Frame<'a, R>,
    is_first: bool,
    interrupt: &'a Interrupt,
}

impl<R: BufRead> Frames<'_, R> {
    /// Starts the next frame, if `packed` has one. A frame that is cut short in its magic number counts as one.
    fn start(&mut self, mut packed: Lookahead<R>) -> io::Result<()> {
        // There may be many frames without content.
        self.interrupt.check_io()?;
        let start = packed.peek()?;
        let is_cut = !start.is_empty() && MAGIC.iter().any(|(magic, of)| *of == self.compression && magic.starts_with(start));
        let is_next = self.is_first || is_cut || Compression::of(start) == self.compression;
        self.is_first = false;
        self.frame = match self.compression {
            Compression::None => Frame::Plain(packed),
            _ if !is_next => Frame::End,
            Compression::Gzip => Frame::Gzip(Box::new(GzDecoder::new(packed))),
            Compression::Zstd => Frame::Zstd(ZstdDecoder::with_buffer(packed)?.single_frame()),
        };
        Ok(())
    }
}

impl<R: BufRead> Read for Frames<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = match &mut self.frame {
                Frame::Gzip(decoder) => decoder.read(buffer)?,
                Frame::Zstd(decoder) => decoder.read(buffer)?,
                Frame::Plain(content) => return content.read(buffer),
                Frame::Between(_) => 0,
                Frame::End => return Ok(0),
            };
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match std::mem::replace(&mut self.frame, Frame::End) {
                Frame::Gzip(decoder) => self.start(decoder.into_inner())?,
                Frame::Zstd(decoder) => self.start(decoder.finish())?,
                Frame::Between(packed) => self.start(packed)?,
                Frame::Plain(_) | Frame::End => return Ok(0),
            }
        }
    }
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
    let mut plain = compression.decoder(BufReader::with_capacity(1 << 20, reader), interrupt);
    let mut file = tempfile::tempfile_in(folder).map_err(write)?;
    decompress_into(&mut plain, max_expanded(len), |part| file.write_all(part).map_err(write), interrupt)?;
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
        let count = interrupt.read(plain, &mut buffer).map_err(DecompressError::Read)?;
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
        let interrupt = Interrupt::default();
        let mut plain = Compression::Gzip.decoder(packed.as_slice(), &interrupt);
        let error = decompress_into(&mut plain, 1999, |_| Ok(()), &interrupt).unwrap_err();
        assert_eq!(
            error.to_string(),
            "it decompresses to more than 1999 bytes, far more than images do; if that is intended, decompress it before packing"
        );
    }

    #[test]
    fn reading_ends_after_a_signal_between_frames_without_content() {
        let interrupt = Interrupt::default();
        let frames = gzip(b"").repeat(3);
        let mut plain = Compression::Gzip.decoder(frames.as_slice(), &interrupt);
        assert_eq!(plain.read(&mut [0; 9]).unwrap(), 0);
        let interrupted = Interrupt::interrupted();
        for content in [frames.clone(), gzip(b"content"), zstd::encode_all(&b"content"[..], 1).unwrap(), b"content".to_vec()] {
            let error = Compression::of(&content).decoder(content.as_slice(), &interrupted).read(&mut [0; 9]).unwrap_err();
            assert_eq!(error.to_string(), "interrupted by SIGTERM");
        }
    }
}
