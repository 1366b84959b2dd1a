//! Bounds what content may expand to, by decompression or by holes. A file of some kilobytes can claim eight tebibytes, all of them zeros,
//! and hashing them takes hours.

use std::fs::File;
use std::io::{self, Seek};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Bytes that any content may expand to, and the ratio allowed beyond that. Layers compress to a half or a third, and have few holes;
/// content beyond these bounds is a mistake or an attack.
const FREE_GROWTH: u64 = 1 << 30;
const MAX_RATIO: u64 = 100;

/// Most bytes that `stored` bytes may expand to.
#[must_use]
pub const fn max_expanded(stored: u64) -> u64 {
    FREE_GROWTH.saturating_add(stored.saturating_mul(MAX_RATIO))
}

/// Checks that a file of `size` bytes is not nearly all holes. Its position is then its start.
///
/// # Errors
/// Fails if it is. File systems that do not know of holes report none, and neither do devices.
pub fn check_holes(mut file: &File, size: u64) -> io::Result<()> {
    let (mut stored, mut at) = (0, 0);
    while max_expanded(stored) < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => {
                let message = format!(
                    "it is a sparse file of {size} bytes, and {stored} of them are stored, far less than is usual; if that is intended, \
                     copy it with cp --sparse=never"
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            // A block device, or a file system that does not know.
            Err(_) => break,
            Ok(start) => start,
        };
        at = seek(file, SeekFrom::Hole(start)).unwrap_or(size);
        stored += at.saturating_sub(start);
    }
    file.rewind()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn files_that_are_nearly_all_holes_are_rejected() {
        let file = tempfile::tempfile().unwrap();
        let check = |size| {
            file.set_len(size).unwrap();
            check_holes(&file, size).map_err(|error| error.to_string())
        };
        assert_eq!((check(0), check(1 << 30)), (Ok(()), Ok(())));
        let message = |size: u64, stored: u64| {
            Err(format!(
                "it is a sparse file of {size} bytes, and {stored} of them are stored, far less than is usual; if that is intended, copy \
                 it with cp --sparse=never"
            ))
        };
        assert_eq!(check(8 << 40), message(8 << 40, 0));
        // Each mark takes a block of some size, which the file system chooses.
        (0..4).for_each(|mark| file.write_all_at(b"x", mark << 20).unwrap());
        file.sync_all().unwrap();
        let block = seek(&file, SeekFrom::Hole(0)).unwrap();
        assert_eq!(check(8 << 40), message(8 << 40, 4 * block));
        assert_eq!(check(max_expanded(4 * block) + 1), message(max_expanded(4 * block) + 1, 4 * block));
        assert_eq!(check(max_expanded(4 * block)), Ok(()));
    }
}
