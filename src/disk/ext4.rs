//! An ext4 image as a [`Tree`], read with the `ext4-view` library. Nothing is written; a journal is not replayed on the image.
//!
//! The library's handles cannot move between threads. Each image has a thread of its own, which takes requests from a channel.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use ext4_view::{Ext4, Ext4Error};

use super::ext4_mount;
use super::layout::{OpenFile, Tree};

/// Bytes read for one request.
const CHUNK: usize = 1 << 18;

/// An open image. Its thread ends when the image and all of its files are dropped.
#[derive(Debug)]
pub struct Ext4Tree {
    requests: Sender<Request>,
}

/// A request to the image's thread.
enum Request {
    /// Open a file. The reply is its number and its size in bytes.
    Open { path: String, reply: SyncSender<io::Result<(u64, u64)>> },
    /// Read the next bytes of a file.
    Read { number: u64, reply: SyncSender<io::Result<Vec<u8>>> },
    /// Close a file.
    Close { number: u64 },
}

impl Ext4Tree {
    /// Opens the image in `file`, whose length fits its superblock.
    ///
    /// # Errors
    /// Fails if the image is damaged or has unknown features, if Linux would not mount it, or if no thread can be started.
    pub fn open(file: File) -> io::Result<Self> {
        let copy = file.try_clone()?;
        let (requests, received) = channel();
        let (opened, result) = sync_channel(1);
        thread::Builder::new().name("ext4".to_owned()).spawn(move || match Ext4::load(Box::new(file)) {
            Ok(image) => {
                let _ = opened.send(Ok(()));
                serve(&image, &received);
            }
            Err(error) => {
                let _ = opened.send(Err(io_error(error)));
            }
        })?;
        result.recv().map_err(|_| thread_ended())??;
        // Last, as the library says more of what it does not support.
        ext4_mount::check(&copy)?;
        Ok(Self { requests })
    }
}

impl Tree for Ext4Tree {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        let (reply, opened) = sync_channel(1);
        self.requests.send(Request::Open { path: format!("/{path}"), reply }).map_err(|_| thread_ended())?;
        let (number, size) = opened.recv().map_err(|_| thread_ended())??;
        let reader = FileReader { requests: self.requests.clone(), number, chunk: io::Cursor::default() };
        Ok(OpenFile { reader: Box::new(reader), size })
    }
}

/// Reads a file's content.
struct FileReader {
    requests: Sender<Request>,
    number: u64,
    chunk: io::Cursor<Vec<u8>>,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.chunk.read(buffer)?;
        if count > 0 || buffer.is_empty() {
            return Ok(count);
        }
        let (reply, chunk) = sync_channel(1);
        self.requests.send(Request::Read { number: self.number, reply }).map_err(|_| thread_ended())?;
        self.chunk = io::Cursor::new(chunk.recv().map_err(|_| thread_ended())??);
        self.chunk.read(buffer)
    }
}

impl Drop for FileReader {
    fn drop(&mut self) {
        let _ = self.requests.send(Request::Close { number: self.number });
    }
}

/// Serves requests until the image and all of its files are dropped.
fn serve(image: &Ext4, requests: &Receiver<Request>) {
    let mut files = HashMap::new();
    let mut next = 0;
    for request in requests {
        // A reply fails if its receiver was dropped. It is not needed then.
        match request {
            Request::Open { path, reply } => {
                let opened = image.open(path.as_str()).map_err(io_error).map(|file| {
                    next += 1;
                    let size = file.metadata().len();
                    files.insert(next, file);
                    (next, size)
                });
                let _ = reply.send(opened);
            }
            Request::Read { number, reply } => {
                let _ = reply.send(files.get_mut(&number).map_or_else(|| Ok(Vec::new()), chunk));
            }
            Request::Close { number } => drop(files.remove(&number)),
        }
    }
}

/// The next bytes of a file; empty at its end.
fn chunk(file: &mut ext4_view::File) -> io::Result<Vec<u8>> {
    let left = file.metadata().len().saturating_sub(file.position());
    let mut chunk = vec![0; usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
    let mut done = 0;
    while let Some(rest) = chunk.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_bytes(rest).map_err(io_error)? {
            0 => break,
            count => done += count,
        }
    }
    chunk.truncate(done);
    Ok(chunk)
}

fn io_error(error: Ext4Error) -> io::Error {
    match error {
        Ext4Error::NotFound => io::Error::new(io::ErrorKind::NotFound, "the disk has no such file"),
        Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => io::Error::other("it is not a regular file"),
        Ext4Error::Incompatible(_) | Ext4Error::Encrypted => io::Error::new(io::ErrorKind::Unsupported, error),
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

fn thread_ended() -> io::Error {
    io::Error::other("the reader of the file system stopped unexpectedly; the file system is probably damaged")
}
