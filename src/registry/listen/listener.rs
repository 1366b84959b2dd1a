//! A bound socket, the transport spoken on it, and the endpoints served there.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use rustls::ServerConfig;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};

use super::client::Surface;
use crate::registry::limits::{BACKLOG, UNSENT};

/// What the clients of a listener speak.
#[derive(Debug, Clone)]
pub enum Transport {
    /// HTTP/1.1, or HTTP/2 with prior knowledge.
    Plain,
    /// TLS, with HTTP/1.1 or HTTP/2 by ALPN.
    Tls(Arc<ServerConfig>),
}

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    /// Bound and listening.
    pub socket: TcpListener,
    /// What clients speak here.
    pub transport: Transport,
    /// Which endpoints are served here.
    pub surface: Surface,
}

impl Listener {
    /// Binds `address` and listens there. Port 0 takes a free port.
    ///
    /// # Errors
    /// Fails if the address is not one of this machine, or is in use.
    pub fn bind(address: SocketAddr, transport: Transport, surface: Surface) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // Old connections in TIME_WAIT do not keep a new server from binding.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let socket = socket.listen(BACKLOG)?;
        limit_unsent(&socket);
        Ok(Self { socket, transport, surface })
    }

    /// Binds `port` of every address: IPv6 and IPv4, or IPv4 alone if the kernel has no IPv6.
    ///
    /// # Errors
    /// Fails if the port is in use.
    pub fn bind_everywhere(port: u16, transport: Transport, surface: Surface) -> io::Result<Self> {
        let address = if TcpSocket::new_v6().is_ok() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Self::bind(SocketAddr::new(address, port), transport, surface)
    }

    /// The URL of this listener at its bound address.
    ///
    /// # Errors
    /// Fails if the kernel does not return the address.
    pub fn url(&self) -> io::Result<String> {
        let scheme = if matches!(self.transport, Transport::Plain) { "http" } else { "https" };
        Ok(format!("{scheme}://{}", self.socket.local_addr()?))
    }
}

/// Bounds the bytes that the kernel buffers for clients that do not read. Accepted connections inherit the bound.
fn limit_unsent(socket: &TcpListener) {
    if let Err(error) = SockRef::from(socket).set_tcp_notsent_lowat(UNSENT) {
        tracing::debug!(%error, "cannot set TCP_NOTSENT_LOWAT");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_inherit_the_unsent_limit_of_their_listener() {
        let address = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(address, Transport::Plain, Surface::All).unwrap().socket;
        let _client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert_eq!(SockRef::from(&accepted).tcp_notsent_lowat().unwrap(), UNSENT);
    }
}
