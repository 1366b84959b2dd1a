//! Packet sockets (packet(7)): Ethernet frames of one EtherType, sent and received on one interface, which needs no address for that.

use std::io::{self, IoSliceMut};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::cmsg_space;
use nix::ifaddrs::getifaddrs;
use nix::libc::{self, PACKET_AUXDATA, SOL_PACKET, TP_STATUS_CSUMNOTREADY};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, sendto, setsockopt};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use socket2::{SockFilter, SockRef};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::link::Link;

nix::setsockopt_impl!(AuxiliaryData, SOL_PACKET, PACKET_AUXDATA, bool, nix::sys::socket::sockopt::SetBool);

/// The socket option that adds a control message with the state of the checksums to each frame.
#[derive(Clone)]
struct AuxiliaryData;

/// A packet socket on one interface.
#[derive(Debug)]
pub struct PacketSocket {
    socket: AsyncFd<OwnedFd>,
    interface: LinkAddr,
}

/// A frame in the caller's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes of the frame in the buffer. The kernel cuts a frame that is longer than the buffer.
    pub length: usize,
    /// Whether the checksums above IP are complete. A sender on the same host may leave them to its network card, and virtio and
    /// veth pass such frames on (`TP_STATUS_CSUMNOTREADY` of uapi/linux/if_packet.h).
    pub checksummed: bool,
}

impl PacketSocket {
    /// Opens a socket on `link` for frames of `ethertype` that pass `filter`. An empty filter passes all frames. Must be called
    /// within the runtime.
    ///
    /// # Errors
    /// Fails if the kernel has no packet sockets or the interface is gone.
    pub fn open(link: &Link, ethertype: u16, filter: &[SockFilter]) -> io::Result<Self> {
        let protocol = NonZeroU32::new(ethertype.to_be().into()).map(Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol)?;
        if !filter.is_empty() {
            SockRef::from(&socket).attach_filter(filter)?;
        }
        setsockopt(&socket, AuxiliaryData, &true)?;
        let interfaces = getifaddrs()?.filter_map(|one| one.address?.as_link_addr().copied());
        let interface = interfaces.into_iter().find(|one| one.ifindex() == link.index as usize).ok_or(io::ErrorKind::NotFound)?;
        #[expect(
            deprecated,
            reason = "the deprecated constructor allows a descriptor to be closed while it is registered; an owned descriptor is not"
        )]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Self { socket, interface })
    }

    /// Sends a whole frame.
    ///
    /// # Errors
    /// Fails if the interface is down or gone, or its queue is full.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        Ok(sendto(self.socket.as_raw_fd(), frame, &self.interface, MsgFlags::empty()).map(drop)?)
    }

    /// Waits for a frame and writes it to `buffer`.
    ///
    /// # Errors
    /// Fails if recvmsg(2) fails.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            let received = self.socket.async_io(Interest::READABLE, |socket| self.receive_now(socket, buffer)).await?;
            if let Some(received) = received {
                return Ok(received);
            }
        }
    }

    /// Reads the next frame, or returns `None` if it came in on another interface. The socket receives from all interfaces because
    /// it is not bound: the address to bind to would hold the EtherType, and `nix` cannot build one.
    fn receive_now(&self, socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let (mut slices, mut control) = ([IoSliceMut::new(buffer)], cmsg_space!(libc::tpacket_auxdata));
        let message = recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
        if message.address.is_none_or(|from| from.ifindex() != self.interface.ifindex()) {
            return Ok(None);
        }
        let unready = message.cmsgs()?.any(|one| has_partial_checksum(&one));
        Ok(Some(Received { length: message.bytes, checksummed: !unready }))
    }
}

fn has_partial_checksum(message: &ControlMessageOwned) -> bool {
    let ControlMessageOwned::Unknown(message) = message else { return false };
    let is_ours = (message.cmsg_header.cmsg_level, message.cmsg_header.cmsg_type) == (SOL_PACKET, PACKET_AUXDATA);
    // `tp_status` is the first field of `struct tpacket_auxdata` (uapi/linux/if_packet.h).
    let status = message.data_bytes.first_chunk().copied().map_or(0, u32::from_ne_bytes);
    is_ours && status & TP_STATUS_CSUMNOTREADY != 0
}
