//! An ext4 image as a [`Tree`], by way of the `ext4-view` library, whose handles stay on one thread: here a thread of the image's own
//! that opens and reads, and answers through channels. What enters is an image whose superblock was held against its length; what
//! leaves are its files. Nothing is written, a journal is not replayed on the image.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use ext4_view::{Ext4, Ext4Error};

use super::layout::{Content, Tree};

/// Bytes that are read for one question.
const CHUNK: usize = 1 << 18;

/// An open image. Its thread ends with it and the last of its files.
#[derive(Debug)]
pub struct Image {
    questions: Sender<Question>,
}

/// What the image's thread is asked.
enum Question {
    /// Open a file, and give its number and its size in bytes.
    Open { path: String, answer: SyncSender<io::Result<(u64, u64)>> },
    /// Read on in a file.
    Read { number: u64, answer: SyncSender<io::Result<Vec<u8>>> },
    /// Close a file.
    Close { number: u64 },
}

impl Image {
    /// Reads the superblock of the image in `file`.
    ///
    /// # Errors
    /// Where it is damaged or has features that are not known, or no thread can be started.
    pub fn open(file: File) -> io::Result<Self> {
        let (questions, asked) = channel();
        let (opened, answer) = sync_channel(1);
        thread::Builder::new().name("ext4".to_owned()).spawn(move || match Ext4::load(Box::new(file)) {
            Ok(image) => {
                let _ = opened.send(Ok(()));
                serve(&image, &asked);
            }
            Err(error) => {
                let _ = opened.send(Err(told(error)));
            }
        })?;
        answer.recv().map_err(|_| gone())??;
        Ok(Self { questions })
    }
}

impl Tree for Image {
    fn open(&self, path: &str) -> io::Result<Content<'_>> {
        let (answer, opened) = sync_channel(1);
        self.questions.send(Question::Open { path: format!("/{path}"), answer }).map_err(|_| gone())?;
        let (number, size) = opened.recv().map_err(|_| gone())??;
        let body = Body { questions: self.questions.clone(), number, chunk: io::Cursor::default() };
        Ok(Content { reader: Box::new(body), size })
    }
}

/// A file's content.
struct Body {
    questions: Sender<Question>,
    number: u64,
    chunk: io::Cursor<Vec<u8>>,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.chunk.read(buffer)?;
        if count > 0 || buffer.is_empty() {
            return Ok(count);
        }
        let (answer, chunk) = sync_channel(1);
        self.questions.send(Question::Read { number: self.number, answer }).map_err(|_| gone())?;
        self.chunk = io::Cursor::new(chunk.recv().map_err(|_| gone())??);
        self.chunk.read(buffer)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let _ = self.questions.send(Question::Close { number: self.number });
    }
}

/// Answers until nobody is left to ask.
fn serve(image: &Ext4, questions: &Receiver<Question>) {
    let mut files = HashMap::new();
    let mut next = 0;
    for question in questions {
        // Who asked may have gone: then nobody misses the answer.
        match question {
            Question::Open { path, answer } => {
                let opened = image.open(path.as_str()).map_err(told).map(|file| {
                    next += 1;
                    let size = file.metadata().len();
                    files.insert(next, file);
                    (next, size)
                });
                let _ = answer.send(opened);
            }
            Question::Read { number, answer } => {
                let _ = answer.send(files.get_mut(&number).map_or_else(|| Ok(Vec::new()), chunk));
            }
            Question::Close { number } => drop(files.remove(&number)),
        }
    }
}

/// The next bytes of a file; none at its end.
fn chunk(file: &mut ext4_view::File) -> io::Result<Vec<u8>> {
    let left = file.metadata().len().saturating_sub(file.position());
    let mut chunk = vec![0; usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
    let mut done = 0;
    while let Some(rest) = chunk.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_bytes(rest).map_err(told)? {
            0 => break,
            count => done += count,
        }
    }
    chunk.truncate(done);
    Ok(chunk)
}

fn told(error: Ext4Error) -> io::Error {
    match error {
        Ext4Error::NotFound => io::Error::new(io::ErrorKind::NotFound, "the disk has no such file"),
        Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => io::Error::other("it is not a regular file"),
        Ext4Error::Incompatible(_) | Ext4Error::Encrypted => io::Error::new(io::ErrorKind::Unsupported, error),
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

fn gone() -> io::Error {
    io::Error::other("the reader of the file system ended early: the file system is damaged in a way that is not understood")
}
