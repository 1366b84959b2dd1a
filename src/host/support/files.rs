//! Bounded reads, and atomic writes: a written file is complete or absent.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::{Errno, retry_on_intr};

use tempfile::{TempDir, TempPath};

use super::interrupt::Interrupt;
use super::report::message;

/// How often a file that has no data yet is looked at, and how soon a signal is heard.
const WAIT: Duration = Duration::from_millis(50);

/// How much is read at once at least, in bytes.
const SMALLEST_READ: u64 = 16 << 10;

/// Reads the file at `path` if it has at most `limit` bytes. Of a FIFO or a terminal, it waits for the end, or for a signal that this
/// process handles.
///
/// # Errors
/// Fails if the file cannot be read or is larger, or after a signal.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_within(path, limit, Duration::MAX)
}

/// As [`read`], and does not wait longer than `patience` for the next bytes.
///
/// # Errors
/// As [`read`], and if there are no bytes for that long.
pub fn read_within(path: &Path, limit: u64, patience: Duration) -> io::Result<Vec<u8>> {
    // A plain opening of a FIFO would wait for a writer.
    let file = File::from(retry_on_intr(|| open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()))?);
    let metadata = file.metadata()?;
    let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {limit} bytes"));
    // Told without reading, where the size is known.
    if metadata.is_file() && metadata.len() > limit {
        return Err(too_large());
    }
    // One byte more, so that the end is seen at once.
    let expected = if metadata.is_file() { metadata.len() + 1 } else { 0 };
    let mut content = Vec::new();
    let mut reader = InterruptibleReader { file, interrupt: Interrupt::of_process(), patience }.take(limit + 1);
    // The vector has room for the limit at most, and for twice what was read: by itself it grows to twice the limit.
    loop {
        let room = expected.max(content.len() as u64).max(SMALLEST_READ).min(reader.limit());
        content.reserve_exact(usize::try_from(room).map_err(io::Error::other)?);
        if (reader.by_ref().take(room).read_to_end(&mut content)? as u64) < room || reader.limit() == 0 {
            break;
        }
    }
    if content.len() as u64 > limit { Err(too_large()) } else { Ok(content) }
}

/// Checks that `File::create` can open `path`, and changes nothing: it exists and is writable, or its folder is.
///
/// # Errors
/// Fails with the error that `File::create` would give.
pub fn check_creatable(path: &Path) -> io::Result<()> {
    let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).map_err(io::Error::from);
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(io::Error::from_raw_os_error(Errno::ISDIR.raw_os_error())),
        Ok(_) => writable(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => writable(&folder(path)),
        Err(error) => Err(error),
    }
}

/// Creates or truncates the file at `path`. Of a FIFO, it waits for a reader, or for a signal that this process handles.
///
/// # Errors
/// Fails if the file cannot be written to, or after a signal.
pub fn create(path: &Path) -> io::Result<File> {
    let interrupt = Interrupt::of_process();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NONBLOCK;
    loop {
        match retry_on_intr(|| open(path, flags, Mode::from_raw_mode(0o666))) {
            // A FIFO without a reader.
            Err(Errno::NXIO) if fs::metadata(path)?.file_type().is_fifo() => {
                interrupt.check_io()?;
                thread::sleep(WAIT);
            }
            opened => {
                let file = File::from(opened?);
                fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
                return Ok(file);
            }
        }
    }
}

/// Reads a file that was opened non-blocking.
struct InterruptibleReader {
    file: File,
    interrupt: Interrupt,
    /// Longest wait for bytes.
    patience: Duration,
}

impl Read for InterruptibleReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wait = Timespec::try_from(WAIT).map_err(io::Error::other)?;
        let started = Instant::now();
        loop {
            self.interrupt.check_io()?;
            if started.elapsed() > self.patience {
                let problem = format!("nothing was written to it for {} s", self.patience.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
            }
            match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&wait)) {
                Ok(0) | Err(Errno::INTR) => continue,
                polled => _ = polled?,
            }
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

/// Writes `content` to `path` through a temporary file in the same folder, which then replaces `path`. If anything fails, an old
/// file stays as it is. The mode is 0666 less the umask.
///
/// # Errors
/// Fails if the folder is not writable, or if `path` exists and is not a regular file: the rename would replace a device.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    write_private(path, content, 0o666)
}

/// As [`write_atomically`], with the given mode less the umask from the moment the file exists.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_private(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let target = match fs::metadata(path) {
        Ok(old) if !old.is_file() => return Err(io::Error::other("it is there already and not a regular file")),
        // Through a symbolic link, not over it.
        Ok(_) => path.canonicalize()?,
        Err(_) => path.to_owned(),
    };
    let folder = folder(&target);
    // Checked first, because tempfile's error would name the temporary file.
    fs::metadata(&folder)?;
    let mut file = {
        let mut known = temporary_paths();
        let mut new = tempfile::Builder::new();
        let file = new.prefix(".localregistry-").permissions(Permissions::from_mode(mode)).tempfile_in(folder)?;
        known.insert(file.path().to_owned());
        file
    };
    let written = file.write_all(content).and_then(|()| file.as_file().sync_all());
    // Locked until the file is renamed or removed, so that the process does not end in between.
    let mut known = temporary_paths();
    known.remove(file.path());
    if let Err(error) = written {
        remove(file.into_temp_path());
        return Err(error);
    }
    file.persist(&target).map(drop).map_err(|failed| {
        remove(failed.file.into_temp_path());
        failed.error
    })
}

fn remove(file: TempPath) {
    let path = file.to_path_buf();
    if let Err(error) = file.close() {
        left_over(&path, &error);
    }
}

/// Says that `path`, which is temporary, could not be removed.
pub(crate) fn left_over(path: &Path, error: &io::Error) {
    if error.kind() != io::ErrorKind::NotFound {
        message(format!("localregistry: cannot remove {}, which is left over: {error}", path.display()));
    }
}

/// The temporary folders of this process, and the files of [`write_private`].
static TEMPORARY_PATHS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn temporary_paths() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    TEMPORARY_PATHS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every [`TemporaryDir`] and every file that is not complete, before the process ends without dropping them. While the result
/// lives, none is created, and no file is completed.
pub(super) fn remove_temporary_paths() -> impl Drop {
    let paths = temporary_paths();
    for path in &*paths {
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        if let Err(error) = removed {
            left_over(path, &error);
        }
    }
    paths
}

/// A temporary folder. Dropping it removes it with its content; a message names what cannot be removed.
#[derive(Debug)]
pub(crate) struct TemporaryDir(Option<TempDir>);

impl TemporaryDir {
    /// Creates a folder in `parent` whose name starts with `prefix`.
    ///
    /// # Errors
    /// Fails if `parent` cannot be written to. The message has no random path.
    pub(crate) fn new_in(parent: &Path, prefix: &str) -> io::Result<Self> {
        let mut folders = temporary_paths();
        let made = tempfile::Builder::new().prefix(prefix).tempdir_in(parent).map_err(|error| without_path(&error))?;
        folders.insert(made.path().to_owned());
        Ok(Self(Some(made)))
    }

    /// Path of the folder.
    pub(crate) fn path(&self) -> &Path {
        self.0.as_ref().map_or(Path::new(""), TempDir::path)
    }

    /// Leaves the folder in place: it is a temporary one no more.
    pub(crate) fn keep(mut self) {
        temporary_paths().remove(self.path());
        self.0.take().map(TempDir::keep);
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        let Some(folder) = self.0.take() else { return };
        let path = folder.path().to_owned();
        // Locked until the folder is removed, so that the process does not end with half of it.
        let mut folders = temporary_paths();
        folders.remove(&path);
        if folder.close().is_err()
            && let Err(error) = remove_with_few_files(&path)
        {
            left_over(&path, &error);
        }
    }
}

/// Removes a folder with at most one file descriptor open at a time, of which there may be no more. `fs::remove_dir_all` has one open for
/// each level. An empty folder needs none.
fn remove_with_few_files(folder: &Path) -> io::Result<()> {
    if fs::remove_dir(folder).is_ok() {
        return Ok(());
    }
    let content = fs::read_dir(folder)?.map(|entry| entry.and_then(|entry| Ok((entry.path(), entry.file_type()?.is_dir()))));
    for (path, is_folder) in content.collect::<io::Result<Vec<_>>>()? {
        if is_folder { remove_with_few_files(&path) } else { fs::remove_file(&path) }?;
    }
    fs::remove_dir(folder)
}

/// The error without the random path that tempfile appends.
fn without_path(error: &io::Error) -> io::Error {
    let text = error.to_string();
    let (message, _) = text.split_once(" at path ").unwrap_or((&text, ""));
    io::Error::new(error.kind(), message.to_owned())
}

/// The folder that contains `path`.
fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_through_a_link_and_leaves_no_other_file() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        write_atomically(&link, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn only_regular_files_are_replaced() {
        let error = write_atomically(Path::new("/dev/null"), b"new").unwrap_err();
        assert_eq!(error.to_string(), "it is there already and not a regular file");
        let dir = tempfile::tempdir().unwrap();
        let error = write_atomically(dir.path(), b"new").unwrap_err();
        assert_eq!(error.to_string(), "it is there already and not a regular file");
    }

    #[test]
    fn a_file_of_unknown_size_is_read_whole_in_memory_of_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let silent = read_within(&fifo, 300_000, Duration::from_millis(60)).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        let content: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
        for length in [0, 1, 16 << 10, (16 << 10) + 1, 64 << 10, 300_000] {
            let (path, part) = (fifo.clone(), content[..length].to_vec());
            let writer = thread::spawn(move || fs::write(path, part).unwrap());
            let found = read(&fifo, 300_000).unwrap();
            writer.join().unwrap();
            assert_eq!(found, content[..length]);
            assert!(found.capacity() <= (2 * length).max(16 << 10), "{} for {length}", found.capacity());
        }
    }

    #[test]
    fn reads_no_more_than_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "12345").unwrap();
        assert_eq!(read(&file, 5).unwrap(), b"12345");
        assert_eq!(read(&file, 4).unwrap_err().to_string(), "it is larger than 4 bytes");
        assert_eq!(read(Path::new("/dev/zero"), 10).unwrap_err().to_string(), "it is larger than 10 bytes");
    }
}
