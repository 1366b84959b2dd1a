//! A folder to a squashfs or ext4 image, with the programs of squashfs-tools and e2fsprogs: uncompressed (blobs are compressed
//! already) and the same bytes each time. The folder is only read.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use super::sink::no_space;
use crate::disk::erofs::writer;
use crate::disk::label::Label;
use crate::host::support::interrupt::Interrupt;
use crate::host::support::tools::{self, Tool, ToolError};
use crate::oci::Digest;

const MKSQUASHFS: Tool = Tool { name: "mksquashfs", package: "squashfs-tools" };
const MKE2FS: Tool = Tool { name: "mke2fs", package: "e2fsprogs" };
const DEBUGFS: Tool = Tool { name: "debugfs", package: "e2fsprogs" };
const RESIZE2FS: Tool = Tool { name: "resize2fs", package: "e2fsprogs" };

/// Nothing is compressed, nothing is left to the machine, the user or the clock.
const SQUASHFS_ARGUMENTS: &[&str] = &[
    "-noappend",
    "-quiet",
    "-no-progress",
    "-comp",
    "gzip",
    "-noI",
    "-noId",
    "-noD",
    "-noF",
    "-noX",
    "-no-xattrs",
    "-no-exports",
    "-no-duplicates",
    "-all-root",
    "-mkfs-time",
    "0",
    "-all-time",
    "0",
];
/// What a file system needs that is never written to, and no more: no journal, nothing in reserve. Folders are searched from one end
/// to the other: the hashes of an index would have to be made by another program yet.
const EXT4_FEATURES: &str = "^has_journal,^resize_inode,^orphan_file,^dir_index,^metadata_csum";
/// The time of everything on an ext4 image, in seconds since 1970: 0 would mean that the clock is asked.
const EXT4_TIME: &str = "1";
/// Bytes of an ext4 block and inode, and a name's bytes beside the name itself.
const EXT4_BLOCK: u64 = 4096;
const EXT4_INODE: u64 = 256;
const EXT4_NAME: u64 = 128;
/// The number of an ext4 image's root, and the first one after those in reserve (`lost+found`).
const EXT4_ROOT: u64 = 2;
const EXT4_FIRST: u64 = 11;
/// What ext4 gets at first for its own use, in bytes, and as a part of the content; the rest is taken off again.
const EXT4_ROOM: u64 = 32 << 20;
const EXT4_PART: u64 = 32;

/// Blocks that an ext4 image may have beyond those that are used.
const EXT4_SPARE: u64 = 16;

/// Most of a program's words that are read, in bytes.
const MAX_SAID: u64 = 1 << 20;

/// The file system of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The default: made here, no program needed, the fastest to pack
    Erofs,
    /// Made by mksquashfs (Debian: squashfs-tools)
    Squashfs,
    /// Made by mke2fs (Debian: e2fsprogs); takes minutes for 100,000 images
    Ext4,
}

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub enum MkfsError {
    /// A program is missing.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A program cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// Its name.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A program failed for want of space.
    #[error("{program} had no space left")]
    Space {
        /// Its name.
        program: &'static str,
        /// What there is.
        source: io::Error,
    },
    /// A program failed otherwise.
    #[error("{program} failed ({status}): {said}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        said: String,
    },
}

/// What is to become a file system.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// The folder.
    pub root: &'a Path,
    /// How many files and folders it has.
    pub files: u64,
    /// Their size in bytes, each rounded up to whole blocks of 4096.
    pub bytes: u64,
    /// What tells this content from other content.
    pub identity: &'a Digest,
    /// Its label; squashfs has none.
    pub label: Option<&'a Label>,
}

impl Format {
    /// The programs that make it.
    #[must_use]
    pub const fn tools(self) -> &'static [Tool] {
        match self {
            Self::Erofs => &[],
            Self::Squashfs => &[MKSQUASHFS],
            Self::Ext4 => &[MKE2FS, DEBUGFS, RESIZE2FS],
        }
    }

    /// Whether the programs are there: asked before the work that would be in vain.
    ///
    /// # Errors
    /// [`ToolError::Missing`], with the package to install.
    pub fn check(self) -> Result<(), MkfsError> {
        for tool in self.tools() {
            tool.find()?;
        }
        Ok(())
    }
}

/// Makes a squashfs image.
///
/// # Errors
/// [`MkfsError`]. Then there may be a file at `image` that is the caller's to remove.
pub fn squashfs(content: Content<'_>, image: &Path, interrupt: &Interrupt) -> Result<(), MkfsError> {
    let mut arguments: Vec<&OsStr> = vec![content.root.as_os_str(), image.as_os_str()];
    arguments.extend(SQUASHFS_ARGUMENTS.iter().map(OsStr::new));
    run(MKSQUASHFS, &arguments, image, interrupt).map(drop)
}

/// Makes an ext4 image: filled by mke2fs, with the times that it takes from the folder set by debugfs, cut to size by resize2fs.
///
/// # Errors
/// [`MkfsError`]. Then there may be files at `image` and beside it that are the caller's to remove.
pub fn ext4(content: Content<'_>, image: &Path, interrupt: &Interrupt) -> Result<(), MkfsError> {
    let uuid = uuid(content.identity);
    let inodes = EXT4_FIRST + content.files + 1;
    let bytes = content.bytes + content.bytes / EXT4_PART + inodes * (EXT4_INODE + EXT4_NAME) + EXT4_ROOM;
    let (blocks, inode_count) = ((bytes / EXT4_BLOCK).to_string(), inodes.to_string());
    let extended = format!("lazy_itable_init=0,nodiscard,hash_seed={uuid},root_owner=0:0");
    let made =
        ["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-N", &inode_count, "-U", &uuid, "-O", EXT4_FEATURES];
    let mut arguments: Vec<&OsStr> = made.iter().map(OsStr::new).collect();
    arguments.extend(content.label.into_iter().flat_map(|label| ["-L", label.as_str()]).map(OsStr::new));
    arguments.extend(["-E", &extended, "-d"].map(OsStr::new));
    arguments.extend([content.root.as_os_str(), image.as_os_str(), OsStr::new(&blocks)]);
    run(MKE2FS, &arguments, image, interrupt)?;

    let script = image.with_extension("times");
    let run_error = |source| MkfsError::Run { program: DEBUGFS.name, source };
    fs::write(&script, ext4_script(content.files)).map_err(run_error)?;
    let arguments = ["-w", "-f"].map(OsStr::new).into_iter().chain([script.as_os_str(), image.as_os_str()]);
    let (status, said) = run(DEBUGFS, &arguments.collect::<Vec<_>>(), image, interrupt)?;
    fs::remove_file(&script).map_err(run_error)?;
    // It ends well even where a command did not. Its own name is all that it has to say.
    if said.lines().any(|line| !line.starts_with("debugfs ")) {
        return Err(MkfsError::Failed { program: DEBUGFS.name, status, said: tools::last_words(said.as_bytes()) });
    }
    // Not `-M`, which leaves a fifteenth free. It cannot fail for want of space: a smaller image needs less for itself.
    let blocks = ext4_used(image).map_err(|source| MkfsError::Run { program: RESIZE2FS.name, source })? + EXT4_SPARE;
    run(RESIZE2FS, &["-f".as_ref(), image.as_os_str(), blocks.to_string().as_ref()], image, interrupt).map(drop)
}

/// How many of its blocks an ext4 image uses: `s_blocks_count` less `s_free_blocks_count` of `struct ext4_super_block` (Linux,
/// `fs/ext4/ext4.h`), whose upper halves are elsewhere.
fn ext4_used(image: &Path) -> io::Result<u64> {
    let mut superblock = [0; 1024];
    File::open(image)?.read_exact_at(&mut superblock, 1024)?;
    let field =
        |at: usize| superblock.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)));
    let (all, free) = (field(0x150) << 32 | field(4), field(0x158) << 32 | field(12));
    Ok(all.saturating_sub(free))
}

/// What debugfs is to do: every inode gets one time, and root as its owner.
fn ext4_script(files: u64) -> String {
    // mke2fs makes the root as the user's umask has it.
    let mut script = format!("sif <{EXT4_ROOT}> mode 040555\n");
    for inode in [EXT4_ROOT].into_iter().chain(EXT4_FIRST..=EXT4_FIRST + files) {
        for (field, value) in [("atime", "@1"), ("ctime", "@1"), ("mtime", "@1"), ("uid", "0"), ("gid", "0")] {
            let _ = writeln!(script, "sif <{inode}> {field} {value}");
        }
    }
    script
}

/// Runs a program, which is to end well, and gives what it wrote to standard error.
fn run(tool: Tool, arguments: &[&OsStr], image: &Path, interrupt: &Interrupt) -> Result<(ExitStatus, String), MkfsError> {
    let program = tool.name;
    let run_error = |source| MkfsError::Run { program, source };
    let path: PathBuf = tool.find()?;
    let mut words: File = tempfile::tempfile().map_err(run_error)?;
    let mut command = Command::new(path);
    command.args(arguments).env("LC_ALL", "C").env("E2FSPROGS_FAKE_TIME", EXT4_TIME).env_remove("SOURCE_DATE_EPOCH");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(words.try_clone().map_err(run_error)?);
    let status = interrupt.run(&mut command).map_err(run_error)?;
    let mut said = Vec::new();
    words.rewind().and_then(|()| words.take(MAX_SAID).read_to_end(&mut said)).map_err(run_error)?;
    let said = String::from_utf8_lossy(&said).into_owned();
    if status.success() {
        return Ok((status, said));
    }
    if said.contains("No space left") || said.contains("Could not allocate block") {
        let wanted = fs::metadata(image).map_or(0, |image| image.len());
        return Err(MkfsError::Space { program, source: no_space(io::ErrorKind::StorageFull.into(), image, wanted) });
    }
    Err(MkfsError::Failed { program, status, said: tools::last_words(said.as_bytes()) })
}

fn uuid(identity: &Digest) -> String {
    let hex: String = writer::uuid(identity).iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (root, image) = (folder.path().join("missing"), folder.path().join("image"));
        let identity = Digest::sha256_of(b"");
        let content = Content { root: &root, files: 1, bytes: 4096, identity: &identity, label: None };
        let message = ext4(content, &image, &Interrupt::default()).unwrap_err().to_string();
        assert!(message.starts_with("mke2fs failed (exit status: 1): "), "{message}");
        assert!(message.contains("No such file or directory"), "{message}");
    }

    #[test]
    fn a_uuid_for_each_content() {
        assert_eq!(uuid(&Digest::sha256_of(b"")), "e3b0c442-98fc-8c14-9afb-f4c8996fb924");
    }
}
