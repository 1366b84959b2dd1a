//! Sends ranges of files without buffers: by `sendfile(2)` the bytes go from the page cache to the socket, and none of them into this
//! process. TLS reads them when it encrypts them.
//!
//! hyper owns the connection and writes what a body gives it. For a range of a file, the body gives it a slice of a placeholder, as long as
//! the range. hyper counts and passes on the slice as any other, and the connection knows it by its address and sends the file instead.
//!
//! No byte of the placeholder is ever sent:
//!
//! - A slice of the placeholder must lie where the range that is due says, or the connection ends. A slice at the offset `o` of its file
//!   lies at `o % SENT_AT_ONCE` of the placeholder.
//! - hyper says for each byte that it is written ([`FileSender::confirm`]). It may say so only of bytes that were sent before. If it copies
//!   the slice, it says so before anything is sent, and nothing is sent on the connection from then on.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use rustix::fs::sendfile;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::disk_calls::{read_at, short};
use crate::registry::http::range::ByteRange;
use crate::registry::limits::{FILE_TURN, SENT_AT_ONCE, TURN};

/// Never freed, so that no other slice of the process has its addresses.
static PLACEHOLDER: LazyLock<Box<[u8]>> = LazyLock::new(|| vec![0; SENT_AT_ONCE].into());

/// The slice of the placeholder for the start of a range: all of it, unless that reaches beyond the end of the placeholder.
pub(crate) fn placeholder(range: &ByteRange) -> &'static [u8] {
    let start = (range.start() % SENT_AT_ONCE as u64) as usize;
    let len = usize::try_from(range.len()).unwrap_or(usize::MAX).min(SENT_AT_ONCE - start);
    PLACEHOLDER.get(start..start + len).unwrap_or_default()
}

/// Whether the slice is one of the placeholder.
pub(crate) fn is_placeholder(slice: &[u8]) -> bool {
    PLACEHOLDER.as_ptr_range().contains(&slice.as_ptr())
}

/// What one connection sends from files: HTTP/1.1, whose bytes are those of its responses, in their order.
#[derive(Debug)]
pub(crate) struct FileSender {
    /// Whether TLS encrypts what is sent.
    is_encrypted: bool,
    state: Mutex<State>,
    /// Whether placeholder bytes may have been copied.
    is_broken: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// What the connection was given and has not sent.
    due: Option<(Arc<File>, ByteRange)>,
    /// Bytes that were sent, and that hyper has not counted yet.
    unconfirmed: u64,
    /// Why the file that is due cannot be read.
    failure: Option<io::Error>,
}

impl FileSender {
    pub fn new(is_encrypted: bool) -> Self {
        Self { is_encrypted, state: Mutex::default(), is_broken: AtomicBool::default() }
    }

    /// The bytes that a body may give the connection before all others have their turn.
    pub fn turn(&self) -> u64 {
        if self.is_encrypted { TURN } else { FILE_TURN }
    }

    /// The most bytes to give at once.
    pub fn at_once(&self) -> u64 {
        self.turn().min(SENT_AT_ONCE as u64)
    }

    /// The next range to send. It must continue the one before if that is not sent yet.
    ///
    /// # Errors
    /// Fails if it does not.
    pub fn give(&self, file: &Arc<File>, range: ByteRange) -> io::Result<()> {
        let mut state = self.state();
        let start = match &state.due {
            None => range.start(),
            Some((before, due)) if Arc::ptr_eq(before, file) && due.end() == range.start() => due.start(),
            Some(_) => return Err(broken()),
        };
        state.due = Some((Arc::clone(file), ByteRange::new(start, range.end()).ok_or_else(broken)?));
        Ok(())
    }

    /// Sends bytes of the file in place of `slice`, which is one of the placeholder. Returns their number, like `write(2)`.
    ///
    /// # Errors
    /// Fails with `WouldBlock` if the socket takes nothing, and if it or the file fails. [`FileSender::take_failure`] says why the file did.
    pub fn send(&self, socket: impl AsFd, slice: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        let (file, range) = state.due_for(slice)?;
        let sent = match sendfile(&socket, &*file, Some(&mut range.start()), slice.len()) {
            Ok(0) => Err(short(range.start())),
            Ok(sent) => Ok(sent),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => copy(&socket, &file, &range, slice.len()),
            Err(error) => Err(error.into()),
        };
        match sent {
            Ok(sent) => {
                state.sent(sent as u64);
                Ok(sent)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Err(error),
            Err(error) => {
                // The call does not tell whose error it is. A socket that has failed fails this, too.
                send(&socket, &[], SendFlags::NOSIGNAL)?;
                Err(state.file_failed(error))
            }
        }
    }

    /// Reads bytes of the file in place of `slice`, which is one of the placeholder. They stay due until [`FileSender::sent`]. Returns their
    /// number, which is not 0 unless there is no space.
    ///
    /// # Errors
    /// Fails if the file does. [`FileSender::take_failure`] says why.
    pub fn read(&self, slice: &[u8], space: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state();
        let (file, range) = state.due_for(slice)?;
        let max = slice.len().min(space.len());
        match read_at(&file, space.get_mut(..max).unwrap_or_default(), range.start()) {
            Ok(0) if max > 0 => Err(state.file_failed(short(range.start()))),
            read => read.map_err(|error| state.file_failed(error)),
        }
    }

    /// Bytes that were read are sent.
    pub fn sent(&self, count: u64) {
        self.state().sent(count);
    }

    /// hyper counts bytes as written.
    pub fn confirm(&self, count: u64) {
        let mut state = self.state();
        match state.unconfirmed.checked_sub(count) {
            Some(left) => state.unconfirmed = left,
            None => self.is_broken.store(true, Ordering::Relaxed),
        }
    }

    /// Whether the connection may send anything.
    ///
    /// # Errors
    /// Fails if hyper has counted bytes that were not sent.
    pub fn check(&self) -> io::Result<()> {
        if self.is_broken.load(Ordering::Relaxed) { Err(broken()) } else { Ok(()) }
    }

    /// Why the file could not be read, if it could not.
    pub fn take_failure(&self) -> Option<io::Error> {
        self.state().failure.take()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The file, and what is due of it, if `slice` is the placeholder of its start.
    fn due_for(&self, slice: &[u8]) -> io::Result<(Arc<File>, ByteRange)> {
        match &self.due {
            Some((file, range)) if placeholder(range).as_ptr() == slice.as_ptr() && slice.len() as u64 <= range.len() => {
                Ok((Arc::clone(file), *range))
            }
            _ => Err(broken()),
        }
    }

    fn sent(&mut self, count: u64) {
        // The file is closed with its response, not with the connection.
        self.due = self.due.take().map(|(file, range)| (file, range.after(count))).filter(|(_, left)| !left.is_empty());
        self.unconfirmed += count;
    }

    /// Keeps the error for [`FileSender::take_failure`]. Returns that for the connection.
    fn file_failed(&mut self, error: io::Error) -> io::Error {
        let kind = error.kind();
        self.failure = Some(error);
        io::Error::new(kind, "the file cannot be read")
    }
}

/// Sends the start of the range through a buffer: the file system does not support `sendfile(2)`.
fn copy(socket: impl AsFd, file: &File, range: &ByteRange, max: usize) -> io::Result<usize> {
    let mut buffer = [0; 8 << 10];
    let max = max.min(buffer.len());
    match read_at(file, buffer.get_mut(..max).unwrap_or_default(), range.start())? {
        0 => Err(short(range.start())),
        read => Ok(send(socket, buffer.get(..read).unwrap_or_default(), SendFlags::NOSIGNAL)?),
    }
}

/// A bug: what hyper writes is not what the body gave it.
fn broken() -> io::Error {
    io::Error::other("the bytes of a file are not due where the connection would send them")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// An open file without a zero byte.
    fn file(size: usize) -> (Arc<File>, Vec<u8>) {
        let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8 + 1).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        (Arc::new(file), content)
    }

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    fn sockets() -> (UnixStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (near, far)
    }

    #[test]
    fn ranges_are_sent_in_place_of_their_placeholders() {
        let ((file, content), (near, mut far)) = (file(3 * SENT_AT_ONCE), sockets());
        for (start, end) in [(0, 1), (7, 5000), (SENT_AT_ONCE - 1, SENT_AT_ONCE + 1), (100, content.len())] {
            let (sender, mut left) = (FileSender::new(false), range(start as u64, end as u64));
            sender.give(&file, left).unwrap();
            let (mut received, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
            while !left.is_empty() {
                match sender.send(&near, placeholder(&left)) {
                    Ok(sent) => {
                        sender.confirm(sent as u64);
                        left = left.after(sent as u64);
                    }
                    Err(full) => assert_eq!(full.kind(), io::ErrorKind::WouldBlock),
                }
                let count = far.read(&mut buffer).unwrap();
                received.extend_from_slice(&buffer[..count]);
            }
            while received.len() < end - start {
                let count = far.read(&mut buffer).unwrap();
                received.extend_from_slice(&buffer[..count]);
            }
            assert!(received == content[start..end] && sender.check().is_ok(), "{start} to {end}");
            assert!(sender.state().due.is_none(), "the file is not kept");
        }
    }

    #[test]
    fn placeholder_of_no_due_bytes_is_refused() {
        let ((file, _), (other, _), (near, mut far)) = (file(3000), file(10), sockets());
        let sender = FileSender::new(false);
        assert!(sender.send(&near, placeholder(&range(0, 10))).is_err(), "nothing is due");
        sender.give(&file, range(1000, 2000)).unwrap();
        for wrong in [range(0, 10), range(999, 1000), range(1001, 2000), range(1000, 2001)] {
            assert!(sender.send(&near, placeholder(&wrong)).is_err(), "{wrong:?}");
        }
        assert!(sender.give(&file, range(2001, 2002)).is_err(), "a gap");
        assert!(sender.give(&other, range(2000, 2001)).is_err(), "another file");
        sender.give(&file, range(2000, 2001)).unwrap();
        assert_eq!(sender.send(&near, placeholder(&range(1000, 2001))).unwrap(), 1001);
        drop(near);
        let mut received = Vec::new();
        far.read_to_end(&mut received).unwrap();
        assert!(received.len() == 1001 && !received.contains(&0));
    }

    #[test]
    fn bytes_that_are_counted_before_they_are_sent_end_the_connection() {
        let ((file, _), (near, _far)) = (file(3000), sockets());
        let sender = FileSender::new(false);
        sender.give(&file, range(0, 3000)).unwrap();
        let sent = sender.send(&near, placeholder(&range(0, 3000))).unwrap() as u64;
        sender.confirm(sent - 1);
        assert!(sender.check().is_ok());
        sender.confirm(2);
        assert!(sender.check().is_err());
    }

    #[test]
    fn file_that_the_kernel_does_not_send_is_copied() {
        // The kernel's files of a process have no `splice_read`, without which there is no `sendfile(2)`.
        let (file, (near, mut far)) = (Arc::new(File::open("/proc/self/cmdline").unwrap()), sockets());
        assert_eq!(sendfile(&near, &*file, Some(&mut 0), 1), Err(Errno::INVAL));
        let content = std::fs::read("/proc/self/cmdline").unwrap();
        let (sender, mut left) = (FileSender::new(false), range(0, content.len() as u64 + 1));
        sender.give(&file, left).unwrap();
        let error = loop {
            match sender.send(&near, placeholder(&left)) {
                Ok(sent) => left = left.after(sent as u64),
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), left.len()), (io::ErrorKind::UnexpectedEof, 1));
        drop(near);
        let mut received = Vec::new();
        far.read_to_end(&mut received).unwrap();
        assert_eq!(received, content);
    }

    #[test]
    fn errors_of_the_file_are_told_from_those_of_the_socket() {
        let ((file, _), (near, far)) = (file(3000), sockets());
        let sender = FileSender::new(false);
        sender.give(&file, range(1000, 2000)).unwrap();
        file.set_len(1500).unwrap();
        assert_eq!(sender.send(&near, placeholder(&range(1000, 2000))).unwrap(), 500);
        let error = sender.send(&near, placeholder(&range(1500, 2000))).unwrap_err();
        assert_eq!(error.to_string(), "the file cannot be read");
        let failure = sender.take_failure().unwrap();
        assert_eq!(failure.to_string(), "the file ends at byte 1500, before its range does");
        file.set_len(3000).unwrap();
        far.shutdown(Shutdown::Both).unwrap();
        drop(far);
        let error = sender.send(&near, placeholder(&range(1500, 2000))).unwrap_err();
        assert_eq!((error.kind(), sender.take_failure().is_none()), (io::ErrorKind::BrokenPipe, true));
    }
}
