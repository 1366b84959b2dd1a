//! A folder to an EROFS image, with `mkfs.erofs`: uncompressed (blobs are compressed already) and the same bytes each time.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use super::interrupt::Interrupt;
use crate::host::tools::{self, Tool, ToolError};
use crate::oci::Digest;

/// The program that makes the file system.
const MKFS: Tool = Tool { name: "mkfs.erofs", package: "erofs-utils" };

/// Arguments that leave nothing to the machine, the user or the clock:
/// time 0 for every file, everything root's, no extended attributes (a machine with SELinux has some on every file).
const ARGUMENTS: [&str; 4] = ["--quiet", "-T0", "--all-root", "-x-1"];

/// Most of its words that are read, in bytes.
const MAX_SAID: u64 = 1 << 20;

/// Where the superblock is, in bytes (Linux `fs/erofs/erofs_fs.h`).
const SUPERBLOCK: u64 = 1024;
/// Its magic number, little endian.
const MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();
/// Place of the block size within it, as a power of two.
const BLOCK_BITS: usize = 12;
/// Blocks of 4096 bytes: Linux mounts none larger than its pages, and the guest's have this size.
const EXPECTED_BLOCK_BITS: u8 = 12;

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The program is missing.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The program cannot be run.
    #[error("cannot run mkfs.erofs")]
    Run(#[source] io::Error),
    /// The program failed.
    #[error("mkfs.erofs failed ({status}): {said}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        said: String,
    },
    /// What it made cannot be read again or flushed.
    #[error("cannot flush the file system to the disk")]
    Flush(#[source] io::Error),
    /// It made something else.
    #[error(
        "mkfs.erofs did not make an EROFS image with blocks of 4096 bytes; use erofs-utils 1.5 or later on a machine with such pages"
    )]
    Made,
}

/// Makes the file system at `image` from the folder `root`, flushed to the disk, and gives its size in bytes. Its UUID is taken from
/// `identity`, so that disks differ in it as they differ in content.
///
/// # Errors
/// [`ErofsError`]. Then there may be a file at `image` that is the caller's to remove.
pub fn make(root: &Path, image: &Path, identity: &Digest, interrupt: &Interrupt) -> Result<u64, ErofsError> {
    let program = MKFS.find()?;
    let mut said = tempfile::tempfile().map_err(ErofsError::Run)?;
    let mut command = Command::new(program);
    command.args(ARGUMENTS).arg("-U").arg(uuid(identity)).arg(image).arg(root).env("LC_ALL", "C");
    let stderr = said.try_clone().map_err(ErofsError::Run)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    let status = interrupt.run(&mut command).map_err(ErofsError::Run)?;
    if !status.success() {
        let mut bytes = Vec::new();
        said.rewind().and_then(|()| said.take(MAX_SAID).read_to_end(&mut bytes)).map_err(ErofsError::Run)?;
        return Err(ErofsError::Failed { status, said: tools::last_words(&bytes) });
    }
    let file = File::open(image).map_err(ErofsError::Flush)?;
    if !is_expected(&file) {
        return Err(ErofsError::Made);
    }
    file.sync_all().map_err(ErofsError::Flush)?;
    Ok(file.metadata().map_err(ErofsError::Flush)?.len())
}

/// Whether the program is there: asked before the work that would be in vain.
///
/// # Errors
/// [`ToolError::Missing`], with the package to install.
pub fn check() -> Result<(), ErofsError> {
    MKFS.find()?;
    Ok(())
}

/// A UUID of version 8, "custom" (RFC 9562, section 5.8), from the first bytes of a digest.
fn uuid(identity: &Digest) -> String {
    let hex = identity.hex();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    // The variant is the fixed digit of the fourth group.
    format!("{}-{}-8{}-8{}-{}", part(0, 8), part(8, 12), part(12, 15), part(15, 18), part(18, 30))
}

fn is_expected(image: &File) -> bool {
    let mut superblock = [0; 16];
    image.read_exact_at(&mut superblock, SUPERBLOCK).is_ok()
        && superblock.starts_with(&MAGIC)
        && superblock.get(BLOCK_BITS) == Some(&EXPECTED_BLOCK_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_for_each_content() {
        let uuid = uuid(&Digest::sha256_of(b""));
        assert_eq!(uuid, "e3b0c442-98fc-81c1-849a-fbf4c8996fb9");
    }

    #[test]
    fn what_mkfs_says_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (root, image) = (folder.path().join("missing"), folder.path().join("image"));
        let error = make(&root, &image, &Digest::sha256_of(b""), &Interrupt::default()).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("mkfs.erofs failed (exit status: 1): "), "{message}");
        assert!(message.ends_with("No such file or directory"), "{message}");
    }

    #[test]
    fn other_files_are_no_image() {
        let file = tempfile::tempfile().unwrap();
        assert!(!is_expected(&file));
        file.write_all_at(&MAGIC, SUPERBLOCK).unwrap();
        file.write_all_at(&[14], SUPERBLOCK + BLOCK_BITS as u64).unwrap();
        file.set_len(4096).unwrap();
        assert!(!is_expected(&file));
        file.write_all_at(&[12], SUPERBLOCK + BLOCK_BITS as u64).unwrap();
        assert!(is_expected(&file));
    }
}
