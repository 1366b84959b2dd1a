//! A connection in memory: two sockets with bounded buffers, half-close and reset, as TCP has them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::faults::{self, Fault};
use crate::registry::content::file_sender::{FileSender, is_placeholder};

/// The bytes in one direction.
#[derive(Debug, Default)]
struct Direction {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// The writer has ended it.
    is_ended: bool,
    /// The tasks that wait to read, and to write.
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Direction {
    fn wake(&mut self) {
        [self.reader.take(), self.writer.take()].into_iter().flatten().for_each(Waker::wake);
    }
}

#[derive(Debug, Default)]
struct Link {
    /// By the side that writes.
    directions: [Direction; 2],
    is_reset: bool,
    /// By side: whether its socket is closed.
    is_closed: [bool; 2],
    /// Nothing moves any more, and nobody is told.
    is_dead: bool,
}

/// One end of a connection. Dropping it closes it: the peer reads to the end of what was sent. If there is something left that it has not
/// read, that resets the connection (RFC 1122, section 4.2.2.13).
#[derive(Debug)]
pub struct Socket {
    link: Arc<Mutex<Link>>,
    side: usize,
    /// The server's, which may send files, and whose calls count for [`faults`].
    files: Option<Arc<FileSender>>,
    rng: fastrand::Rng,
}

/// A connection whose directions have `capacity` bytes each: the client's socket, and the server's.
pub fn connect(mut rng: fastrand::Rng, capacity: usize, files: Arc<FileSender>) -> (Socket, Socket) {
    let direction = || Direction { capacity, ..Direction::default() };
    let link = Arc::new(Mutex::new(Link { directions: [direction(), direction()], ..Link::default() }));
    let client = Socket { link: Arc::clone(&link), side: 0, files: None, rng: rng.fork() };
    (client, Socket { link, side: 1, files: Some(files), rng })
}

impl Socket {
    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap()
    }

    /// What resets the connection.
    pub fn resetter(&self) -> Resetter {
        Resetter(Arc::clone(&self.link))
    }

    /// The first bytes that have arrived, up to the size of `space`, and whether more may come.
    pub fn peek(&self, space: &mut [u8]) -> io::Result<(usize, bool)> {
        let link = self.link();
        if link.is_reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let direction = &link.directions[1 - self.side];
        let count = space.len().min(direction.bytes.len());
        space.iter_mut().zip(&direction.bytes).for_each(|(to, from)| *to = *from);
        Ok((count, !direction.is_ended && !link.is_closed[1 - self.side]))
    }

    /// The fault of the server's next call. `Err` is what that returns.
    fn fault(&self) -> Result<Option<Fault>, Poll<io::Error>> {
        if self.files.is_none() {
            return Ok(None);
        }
        match faults::next() {
            Some(Fault::Error) => {
                self.resetter().reset();
                Ok(None)
            }
            Some(Fault::Hang) => {
                self.link().is_dead = true;
                Err(Poll::Pending)
            }
            fault => Ok(fault),
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let fault = match self.fault() {
            Ok(fault) => fault,
            Err(ended) => return ended.map(Err),
        };
        let mut link = self.link.lock().unwrap();
        if link.is_dead {
            return Poll::Pending;
        }
        if link.is_reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if link.is_closed[1 - self.side] || link.directions[self.side].is_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let direction = &mut link.directions[self.side];
        let mut free = direction.capacity - direction.bytes.len();
        if fault == Some(Fault::Interrupted) {
            // What tokio makes of it.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if free == 0 {
            direction.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        if fault == Some(Fault::Short) {
            free = 1;
        } else if self.rng.u8(..) < 16 {
            free = self.rng.usize(1..=free);
        }
        let mut count = 0;
        for slice in slices {
            let part = slice.len().min(free - count);
            if part > 0 && is_placeholder(slice) {
                let Some(files) = self.files.as_ref().filter(|_| count == 0) else { break };
                let mut bytes = vec![0; part];
                let read = files.read(slice, &mut bytes)?;
                files.sent(read as u64);
                direction.bytes.extend(&bytes[..read]);
                count += read;
                break;
            }
            direction.bytes.extend(&slice[..part]);
            count += part;
        }
        if let Some(reader) = direction.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(count))
    }
}

/// Resets a connection.
#[derive(Debug)]
pub struct Resetter(Arc<Mutex<Link>>);

impl Resetter {
    /// Ends both directions at once. What is on its way is lost.
    pub fn reset(&self) {
        let mut link = self.0.lock().unwrap();
        link.is_reset = true;
        link.directions.iter_mut().for_each(Direction::wake);
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let fault = match this.fault() {
            Ok(fault) => fault,
            Err(ended) => return ended.map(Err),
        };
        let mut link = this.link.lock().unwrap();
        if link.is_dead {
            return Poll::Pending;
        }
        if link.is_reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let is_closed = link.is_closed[1 - this.side];
        let direction = &mut link.directions[1 - this.side];
        if fault == Some(Fault::Interrupted) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if direction.bytes.is_empty() {
            if direction.is_ended || is_closed {
                return Poll::Ready(Ok(()));
            }
            direction.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let mut count = buffer.remaining().min(direction.bytes.len());
        if fault == Some(Fault::Short) {
            count = count.min(1);
        } else if count > 1 && this.rng.u8(..) < 16 {
            count = this.rng.usize(1..count);
        }
        let (first, second) = direction.bytes.as_slices();
        let from_first = count.min(first.len());
        buffer.put_slice(&first[..from_first]);
        buffer.put_slice(&second[..count - from_first]);
        direction.bytes.drain(..count);
        if let Some(writer) = direction.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(files) = &self.files {
            files.check()?;
        }
        self.poll_send(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut link = self.link();
        let direction = &mut link.directions[self.side];
        direction.is_ended = true;
        direction.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Ok(mut link) = self.link.lock() else { return };
        link.is_closed[self.side] = true;
        link.is_reset |= !link.directions[1 - self.side].bytes.is_empty();
        link.directions.iter_mut().for_each(Direction::wake);
    }
}
