//! A socket that sends the ranges of files which [`FileSender`] was given, where hyper writes their placeholders.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::activity::Activity;
use crate::registry::content::file_sender::{FileSender, is_placeholder};
use crate::registry::limits::UNSENT_FROM_FILES;

/// A connection's socket.
#[derive(Debug)]
pub(crate) struct FileSocket {
    stream: TcpStream,
    files: Arc<FileSender>,
    connection: Arc<Activity>,
    /// Whether the socket has [`UNSENT_FROM_FILES`].
    takes_more: bool,
}

impl FileSocket {
    pub fn new(stream: TcpStream, files: Arc<FileSender>, connection: Arc<Activity>) -> Self {
        Self { stream, files, connection, takes_more: false }
    }

    /// Before the first bytes of a file. They are sent without it, too.
    fn take_more(&mut self) {
        if !std::mem::replace(&mut self.takes_more, true)
            && let Err(error) = SockRef::from(&self.stream).set_tcp_notsent_lowat(UNSENT_FROM_FILES)
        {
            tracing::debug!(%error, "cannot set TCP_NOTSENT_LOWAT");
        }
    }

    /// Completes when the socket has room for some records of TLS. tokio takes a socket to have room until a write fails.
    pub fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let has_room = || match poll(&mut [PollFd::new(&self.stream, PollFlags::OUT)], Some(&Timespec::default()))? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            ready => Ok(ready),
        };
        self.poll_attempt(context, has_room).map_ok(|_| ())
    }

    /// Repeats `attempt` until the socket takes something.
    fn poll_attempt(&self, context: &mut Context<'_>, attempt: impl Fn() -> io::Result<usize>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match self.stream.try_io(Interest::WRITABLE, &attempt) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                attempted => return Poll::Ready(attempted),
            }
        }
    }
}

impl Drop for FileSocket {
    /// A fault may want a reset instead of an orderly close.
    fn drop(&mut self) {
        if self.connection.end.is_reset() {
            reset_on_close(&self.stream);
        }
    }
}

/// Makes the close of a socket a reset.
pub(super) fn reset_on_close(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "cannot set SO_LINGER");
    }
}

impl AsyncRead for FileSocket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for FileSocket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.files.check()?;
        match slices {
            [first, ..] if is_placeholder(first) => {
                self.take_more();
                self.poll_attempt(context, || self.files.send(&self.stream, first))
            }
            // The head of a response goes into one packet with the start of the file.
            [first, rest @ ..] if rest.iter().any(|slice| is_placeholder(slice)) => {
                let flags = SendFlags::NOSIGNAL | SendFlags::MORE;
                self.poll_attempt(context, || Ok(send(&self.stream, first, flags)?))
            }
            _ => Pin::new(&mut self.stream).poll_write_vectored(context, slices),
        }
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::registry::content::delivery::{BodyBytes, Delivery};
    use crate::registry::http::range::ByteRange;
    use crate::registry::telemetry::events::Events;
    use crate::registry::telemetry::log::{LogEntry, Telemetry};

    /// What hyper, built by `builder`, sends for two requests of a file of sevens.
    async fn sent(builder: http1::Builder) -> Vec<u8> {
        const SIZE: u64 = 100_000;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; SIZE as usize]).unwrap();
        let (file, files) = (Arc::new(file), Arc::new(FileSender::new(false)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = FileSocket::new(listener.accept().await.unwrap().0, Arc::clone(&files), Arc::default());
        let service = service_fn(move |_: Request<Incoming>| {
            let telemetry = Arc::new(Telemetry { events: Events::disabled(), metrics: Arc::default() });
            let delivery = Delivery::begin(LogEntry::new(([127, 0, 0, 1], 40_112).into(), &telemetry), SIZE);
            let given = files.give(&file, ByteRange::whole(SIZE));
            let body = Full::new(BodyBytes::file(ByteRange::whole(SIZE), &files, &delivery));
            async { given.map(|()| Response::new(body)) }
        });
        let serving = tokio::spawn(builder.serve_connection(TokioIo::new(socket), service));
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut received = Vec::new();
        let _ = client.read_to_end(&mut received).await;
        let _ = serving.await.unwrap();
        received
    }

    #[tokio::test]
    async fn files_are_sent_behind_their_heads() {
        let received = sent(http1::Builder::new()).await;
        assert_eq!(received.iter().filter(|byte| **byte == 7).count(), 200_000);
        assert!(received.starts_with(b"HTTP/1.1 200 OK\r\n") && !received.contains(&0));
    }

    #[tokio::test]
    async fn nothing_is_sent_if_hyper_copies_the_placeholders() {
        let mut copying = http1::Builder::new();
        copying.writev(false);
        assert_eq!(sent(copying).await, b"");
        let mut copying = http1::Builder::new();
        copying.pipeline_flush(true);
        assert_eq!(sent(copying).await, b"");
    }
}
