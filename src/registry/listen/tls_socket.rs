//! A TLS connection that reads the ranges of files which its [`FileSender`] was given, where hyper writes their placeholders.
//!
//! It reads and encrypts only what the socket has room for, and in a buffer that all connections of a thread share. So a connection whose
//! client is slow holds neither plain nor encrypted bytes.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::file_socket::FileSocket;
use super::write_timeout::WriteTimeout;
use crate::registry::content::file_sender::{FileSender, is_placeholder};
use crate::registry::limits::TLS_BUFFER;

thread_local! {
    /// What is encrypted next.
    static PLAIN: RefCell<Vec<u8>> = RefCell::new(vec![0; TLS_BUFFER]);
}

/// A connection's TLS.
#[derive(Debug)]
pub(crate) struct TlsSocket {
    stream: TlsStream<WriteTimeout<FileSocket>>,
    files: Arc<FileSender>,
}

impl TlsSocket {
    pub fn new(stream: TlsStream<WriteTimeout<FileSocket>>, files: Arc<FileSender>) -> Self {
        Self { stream, files }
    }

    /// Encrypts the start of `texts` and of the file in place of `placeholder`, up to the size of `plain`. Returns how much of them it took.
    fn poll_encrypt(
        &mut self,
        context: &mut Context<'_>,
        texts: &[IoSlice<'_>],
        placeholder: &[u8],
        plain: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let (mut filled, all) = (0, texts.iter().map(|text| text.len()).sum());
        for text in texts {
            let count = text.len().min(plain.len() - filled);
            if let (Some(to), Some(from)) = (plain.get_mut(filled..filled + count), text.get(..count)) {
                to.copy_from_slice(from);
                filled += count;
            }
        }
        if filled == all {
            filled += self.files.read(placeholder, plain.get_mut(filled..).unwrap_or_default())?;
        }
        let taken = ready!(Pin::new(&mut self.stream).poll_write(context, plain.get(..filled).unwrap_or_default()))?;
        if let Some(sent) = taken.checked_sub(all) {
            self.files.sent(sent as u64);
        }
        Poll::Ready(Ok(taken))
    }
}

impl AsyncRead for TlsSocket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsSocket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.files.check()?;
        let is_text = |slice: &&IoSlice<'_>| !is_placeholder(slice);
        let texts = slices.iter().take_while(is_text).count();
        let (texts, [placeholder, ..]) = slices.split_at(texts) else {
            return Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        };
        // Encrypted bytes that the socket did not take.
        ready!(Pin::new(&mut this.stream).poll_flush(context))?;
        ready!(this.stream.get_mut().0.poll_writable(context))?;
        PLAIN.with_borrow_mut(|plain| this.poll_encrypt(context, texts, placeholder, plain))
    }

    /// hyper passes on slices as they are only if this is true, and copies them otherwise.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
