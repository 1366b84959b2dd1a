//! Makes a squashfs or ext4 image of a folder with squashfs-tools or e2fsprogs: reproducible, and uncompressed, because blobs are
//! compressed already. The folder is only read.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use super::sink::describe_no_space;
use crate::disk::erofs::writer;
use crate::disk::label::Label;
use crate::host::support::interrupt::Interrupt;
use crate::host::support::tools::{self, Tool, ToolError};
use crate::oci::Digest;

const MKSQUASHFS: Tool = Tool { name: "mksquashfs", package: "squashfs-tools" };
const MKE2FS: Tool = Tool { name: "mke2fs", package: "e2fsprogs" };
const DEBUGFS: Tool = Tool { name: "debugfs", package: "e2fsprogs" };
const RESIZE2FS: Tool = Tool { name: "resize2fs", package: "e2fsprogs" };

/// No compression, and nothing that depends on the machine, the user or the clock.
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
/// Features of a file system that is never written to: no journal, no reserve. No directory index: mke2fs does not write its hashes,
/// a further program would have to.
const EXT4_FEATURES: &str = "^has_journal,^resize_inode,^orphan_file,^dir_index,^metadata_csum";
/// Time of everything on an ext4 image, in seconds since 1970. 0 would make the tools use the clock.
const EXT4_TIME: &str = "1";
/// Sizes in bytes of an ext4 block, of an inode, and of a directory entry (estimated).
const EXT4_BLOCK: u64 = 4096;
const EXT4_INODE: u64 = 256;
const EXT4_NAME: u64 = 128;
/// Inode numbers of an ext4 image's root, and of the first inode after the reserved ones (`lost+found`).
const EXT4_ROOT: u64 = 2;
const EXT4_FIRST: u64 = 11;
/// Space added at first for ext4's own data: bytes, and a fraction of the content. resize2fs removes what is not used.
const EXT4_ROOM: u64 = 32 << 20;
const EXT4_PART: u64 = 32;

/// Free blocks left in an ext4 image.
const EXT4_SPARE: u64 = 16;

/// Bytes read of a program's standard error.
const MAX_STDERR: u64 = 1 << 20;

/// File system of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The default and the fastest; needs no other program
    Erofs,
    /// Needs mksquashfs (Debian: squashfs-tools)
    Squashfs,
    /// Needs mke2fs (Debian: e2fsprogs); takes minutes for 100,000 images
    Ext4,
}

/// Why the file system cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MkfsError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("cannot run {program}")]
    Run { program: &'static str, source: io::Error },
    #[error("{program} had no space left")]
    Space { program: &'static str, source: io::Error },
    #[error("{program} failed ({status}): {stderr}")]
    Failed { program: &'static str, status: ExitStatus, stderr: String },
}

/// The folder to make a file system of, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub struct MkfsInput<'a> {
    pub root: &'a Path,
    /// Number of files and folders.
    pub files: u64,
    /// Size of all files in bytes, each rounded up to blocks of 4096.
    pub bytes: u64,
    /// Digest that identifies the content; gives the file system's UUID.
    pub identity: &'a Digest,
    /// Label of the file system. squashfs has no label.
    pub label: Option<&'a Label>,
}

impl Format {
    /// The programs that make this file system.
    #[must_use]
    pub const fn tools(self) -> &'static [Tool] {
        match self {
            Self::Erofs => &[],
            Self::Squashfs => &[MKSQUASHFS],
            Self::Ext4 => &[MKE2FS, DEBUGFS, RESIZE2FS],
        }
    }

    /// Checks that the programs are installed, before any work is done.
    ///
    /// # Errors
    /// Fails with [`ToolError::Missing`], which names the package to install.
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
/// Fails with [`MkfsError`], and may leave a file at `image`.
pub fn squashfs(content: MkfsInput<'_>, image: &Path, interrupt: &Interrupt) -> Result<(), MkfsError> {
    let mut arguments: Vec<&OsStr> = vec![content.root.as_os_str(), image.as_os_str()];
    arguments.extend(SQUASHFS_ARGUMENTS.iter().map(OsStr::new));
    run(MKSQUASHFS, &arguments, image, interrupt).map(drop)
}

/// Makes an ext4 image: mke2fs fills it, debugfs sets the times that mke2fs takes from the folder, resize2fs shrinks it.
///
/// # Errors
/// Fails with [`MkfsError`], and may leave files at `image` and next to it.
pub fn ext4(content: MkfsInput<'_>, image: &Path, interrupt: &Interrupt) -> Result<(), MkfsError> {
    let uuid = uuid(content.identity);
    let inodes = EXT4_FIRST + content.files + 1;
    let bytes = content.bytes + content.bytes / EXT4_PART + inodes * (EXT4_INODE + EXT4_NAME) + EXT4_ROOM;
    let (blocks, inode_count) = ((bytes / EXT4_BLOCK).to_string(), inodes.to_string());
    let extended = format!("lazy_itable_init=0,nodiscard,hash_seed={uuid},root_owner=0:0");
    let options =
        ["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-N", &inode_count, "-U", &uuid, "-O", EXT4_FEATURES];
    let mut arguments: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
    arguments.extend(content.label.into_iter().flat_map(|label| ["-L", label.as_str()]).map(OsStr::new));
    arguments.extend(["-E", &extended, "-d"].map(OsStr::new));
    arguments.extend([content.root.as_os_str(), image.as_os_str(), OsStr::new(&blocks)]);
    run(MKE2FS, &arguments, image, interrupt)?;

    let script = image.with_extension("times");
    let run_error = |source| MkfsError::Run { program: DEBUGFS.name, source };
    fs::write(&script, ext4_script(content.files)).map_err(run_error)?;
    let arguments = ["-w", "-f"].map(OsStr::new).into_iter().chain([script.as_os_str(), image.as_os_str()]);
    let (status, stderr) = run(DEBUGFS, &arguments.collect::<Vec<_>>(), image, interrupt)?;
    fs::remove_file(&script).map_err(run_error)?;
    // debugfs exits with 0 even if a command failed. On success it prints only its name and version.
    if stderr.lines().any(|line| !line.starts_with("debugfs ")) {
        return Err(MkfsError::Failed { program: DEBUGFS.name, status, stderr: tools::last_lines(stderr.as_bytes()) });
    }
    // Not `-M`, which leaves a fifteenth free. This never needs more space: a smaller image needs less for itself.
    let blocks = ext4_used(image).map_err(|source| MkfsError::Run { program: RESIZE2FS.name, source })? + EXT4_SPARE;
    run(RESIZE2FS, &["-f".as_ref(), image.as_os_str(), blocks.to_string().as_ref()], image, interrupt).map(drop)
}

/// Number of blocks in use in an ext4 image: `s_blocks_count` less `s_free_blocks_count` of `struct ext4_super_block` (Linux,
/// `fs/ext4/ext4.h`). The upper halves of both are separate fields.
fn ext4_used(image: &Path) -> io::Result<u64> {
    let mut superblock = [0; 1024];
    File::open(image)?.read_exact_at(&mut superblock, 1024)?;
    let field =
        |at: usize| superblock.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)));
    let (all, free) = (field(0x150) << 32 | field(4), field(0x158) << 32 | field(12));
    Ok(all.saturating_sub(free))
}

/// The debugfs script: every inode gets the same time, and root as its owner.
fn ext4_script(files: u64) -> String {
    // mke2fs gives the root folder a mode by the user's umask.
    let mut script = format!("sif <{EXT4_ROOT}> mode 040555\n");
    for inode in [EXT4_ROOT].into_iter().chain(EXT4_FIRST..=EXT4_FIRST + files) {
        for (field, value) in [("atime", "@1"), ("ctime", "@1"), ("mtime", "@1"), ("uid", "0"), ("gid", "0")] {
            let _ = writeln!(script, "sif <{inode}> {field} {value}");
        }
    }
    script
}

/// Runs a program, which must exit with 0, and returns its standard error.
fn run(tool: Tool, arguments: &[&OsStr], image: &Path, interrupt: &Interrupt) -> Result<(ExitStatus, String), MkfsError> {
    let program = tool.name;
    let run_error = |source| MkfsError::Run { program, source };
    let path: PathBuf = tool.find()?;
    let mut stderr_file: File = tempfile::tempfile().map_err(run_error)?;
    let mut command = Command::new(path);
    command.args(arguments).env("LC_ALL", "C").env("E2FSPROGS_FAKE_TIME", EXT4_TIME).env_remove("SOURCE_DATE_EPOCH");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr_file.try_clone().map_err(run_error)?);
    let status = interrupt.run(&mut command).map_err(run_error)?;
    let mut stderr = Vec::new();
    stderr_file.rewind().and_then(|()| stderr_file.take(MAX_STDERR).read_to_end(&mut stderr)).map_err(run_error)?;
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    if status.success() {
        return Ok((status, stderr));
    }
    if stderr.contains("No space left") || stderr.contains("Could not allocate block") {
        let wanted = fs::metadata(image).map_or(0, |image| image.len());
        return Err(MkfsError::Space { program, source: describe_no_space(io::ErrorKind::StorageFull.into(), image, wanted) });
    }
    Err(MkfsError::Failed { program, status, stderr: tools::last_lines(stderr.as_bytes()) })
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
    fn output_of_a_failed_program_is_in_the_error() {
        let folder = tempfile::tempdir().unwrap();
        let (root, image) = (folder.path().join("missing"), folder.path().join("image"));
        let identity = Digest::sha256_of(b"");
        let content = MkfsInput { root: &root, files: 1, bytes: 4096, identity: &identity, label: None };
        let message = ext4(content, &image, &Interrupt::default()).unwrap_err().to_string();
        assert!(message.starts_with("mke2fs failed (exit status: 1): "), "{message}");
        assert!(message.contains("No such file or directory"), "{message}");
    }

    #[test]
    fn uuid_is_derived_from_the_digest() {
        assert_eq!(uuid(&Digest::sha256_of(b"")), "e3b0c442-98fc-8c14-9afb-f4c8996fb924");
    }
}
