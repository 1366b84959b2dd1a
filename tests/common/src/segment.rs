//! An Ethernet link to QEMU's network `stream`. The test controls the one host on it, which acts as DHCP server and router and can
//! claim addresses of the appliance.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The MAC address of the host.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// How long to wait for a frame.
const PATIENCE: Duration = Duration::from_secs(120);
const BROADCAST: [u8; 6] = [0xff; 6];
const ARP: [u8; 2] = [8, 6];
const IPV4: [u8; 2] = [8, 0];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// How the host behaves.
#[derive(Default)]
pub struct Behaviour {
    /// The address that DHCP leases, with the seconds until the lease ends, until T1 and until T2. With `None` the server is
    /// silent.
    pub lease: Option<(Ipv4Addr, [u32; 3])>,
    /// Answers the next request with NAK and leases this address from then on.
    pub nak: Option<Ipv4Addr>,
    /// Answers every request with NAK.
    pub naks: bool,
    /// Offers a declined address again.
    pub stubborn: bool,
    /// The /64 prefix in the answer to router solicitations.
    pub router: Option<Ipv6Addr>,
    /// Addresses that the host claims.
    pub taken: Vec<IpAddr>,
    /// The messages of the DHCP clients.
    pub dhcp_messages: Vec<String>,
    /// The transaction IDs of these messages.
    pub transactions: Vec<[u8; 4]>,
}

pub struct Segment {
    pub path: PathBuf,
    behaviour: Arc<Mutex<Behaviour>>,
    wire: Arc<Mutex<Option<UnixStream>>>,
    frames: Mutex<Receiver<Vec<u8>>>,
}

impl Segment {
    /// Listens at `path` for one appliance after another.
    pub fn at(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (sender, frames) = channel();
        let segment = Self { path: path.to_owned(), behaviour: Arc::default(), wire: Arc::default(), frames: Mutex::new(frames) };
        let (behaviour, wire) = (Arc::clone(&segment.behaviour), Arc::clone(&segment.wire));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                *wire.lock().unwrap() = Some(stream.try_clone().unwrap());
                serve(stream, &behaviour, &wire, &sender);
            }
        });
        segment
    }

    /// The argument of `--net` for this link.
    pub fn net(&self, options: &str) -> String {
        format!("stream={}{options}", self.path.display())
    }

    /// Changes the host's behaviour.
    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// Takes the messages of the DHCP clients since the last call.
    pub fn dhcp_messages(&self) -> Vec<String> {
        std::mem::take(&mut self.behaviour.lock().unwrap().dhcp_messages)
    }

    /// Broadcasts a frame.
    pub fn send(&self, kind: [u8; 2], content: &[u8]) {
        write(&self.wire, &frame(BROADCAST, kind, content));
    }

    /// Discards the frames received so far.
    pub fn forget(&self) {
        self.frames.lock().unwrap().try_iter().for_each(drop);
    }

    /// Waits for a frame for which `of` returns a value.
    pub fn receive<T>(&self, what: &str, mut of: impl FnMut(&[u8]) -> Option<T>) -> T {
        let frames = self.frames.lock().unwrap();
        loop {
            let frame = frames.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no frame came with {what}"));
            if let Some(made) = of(&frame) {
                return made;
            }
        }
    }

    /// Resolves `target` to a MAC address by ARP, in this VLAN.
    pub fn resolve(&self, target: Ipv4Addr, vlan: Option<u16>) -> [u8; 6] {
        let [a, b, c, _] = target.octets();
        let tag = vlan.map_or_else(Vec::new, |id| [&[0x81, 0][..], &id.to_be_bytes()].concat());
        let ask = arp(1, Ipv4Addr::new(a, b, c, 1), [0; 6], target);
        let start = [&BROADCAST[..], &MAC, &tag, &ARP].concat();
        self.forget();
        write(&self.wire, &[&start[..], &ask].concat());
        self.receive(&format!("the answer of {target}"), |frame| {
            let rest = frame.get(12..)?.strip_prefix(&tag[..])?.strip_prefix(&ARP)?;
            let is_answer = rest.get(6..8)? == [0, 2] && rest.get(14..18)? == target.octets();
            is_answer.then(|| rest.get(8..14).unwrap().try_into().unwrap())
        })
    }

    /// Sends a router advertisement with the /64 `prefix` (RFC 4861, section 4.2).
    pub fn advertise(&self, prefix: Ipv6Addr) {
        self.send(IPV6, &advertisement(prefix));
    }

    /// Sends an echo request from another network (RFC 4443, section 4.1), and waits for a solicitation of `gateway`.
    pub fn echo(&self, to: (Ipv6Addr, [u8; 6]), gateway: Ipv6Addr) {
        self.forget();
        let from = "2001:db8::7".parse().unwrap();
        write(&self.wire, &frame(to.1, IPV6, &icmp6_to(from, to.0, vec![128, 0, 0, 0, 0, 1, 0, 1])));
        self.receive(&format!("the question for {gateway}"), |frame| {
            let asked = frame.get(12..14)? == IPV6 && frame.get(54)? == &135 && frame.get(62..78)? == gateway.octets();
            asked.then_some(())
        });
    }

    /// Opens a TCP connection from an address and port to port 5000 of `to`.
    pub fn syn(&self, (from, port): (Ipv4Addr, u16), to: (Ipv4Addr, [u8; 6])) -> SynAck {
        let mut segment = [&port.to_be_bytes()[..], &5000_u16.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 0]].concat();
        segment.extend([0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 180]);
        let pseudo = [&from.octets()[..], &to.0.octets(), &[0, 6, 0, 24]].concat();
        let sum = checksum(&[&pseudo[..], &segment].concat());
        segment[16..18].copy_from_slice(&sum);
        self.forget();
        write(&self.wire, &frame(to.1, IPV4, &ip4(6, from, to.0, &segment)));
        self.receive("SYN and ACK", |frame| {
            let is_answer = frame.get(12..14)? == IPV4 && frame.get(30..34)? == from.octets() && frame.get(47)? & 0x12 == 0x12;
            let is_answer = is_answer && frame.get(36..38)? == port.to_be_bytes();
            is_answer.then(|| SynAck {
                to: frame[..6].try_into().unwrap(),
                sequence_number: u32::from_be_bytes(frame[38..42].try_into().unwrap()),
                largest_segment: u16::from_be_bytes(frame[56..58].try_into().unwrap()),
            })
        })
    }
}

/// An answer to the opening of a TCP connection.
pub struct SynAck {
    /// The MAC address that it goes to.
    pub to: [u8; 6],
    pub sequence_number: u32,
    pub largest_segment: u16,
}

fn serve(mut stream: UnixStream, behaviour: &Mutex<Behaviour>, wire: &Mutex<Option<UnixStream>>, frames: &Sender<Vec<u8>>) {
    let mut length = [0; 4];
    while stream.read_exact(&mut length).is_ok() {
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        if stream.read_exact(&mut frame).is_err() {
            return;
        }
        if let Some(answer) = answer(&frame, &mut behaviour.lock().unwrap()) {
            write(wire, &answer);
        }
        let _ = frames.send(frame);
    }
}

fn write(wire: &Mutex<Option<UnixStream>>, frame: &[u8]) {
    let mut wire = wire.lock().unwrap();
    let wire = wire.as_mut().expect("an appliance has connected");
    let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
    // The appliance may just have closed the connection.
    let _ = wire.write_all(&[&length[..], frame].concat());
}

fn answer(frame: &[u8], behaviour: &mut Behaviour) -> Option<Vec<u8>> {
    let from: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    let content = frame.get(14..)?;
    match frame.get(12..14)?.try_into().ok()? {
        ARP => {
            let target = Ipv4Addr::from(<[u8; 4]>::try_from(content.get(24..28)?).ok()?);
            let asked = content.get(6..8)? == [0, 1] && behaviour.taken.contains(&target.into());
            let asker: [u8; 4] = content.get(14..18)?.try_into().ok()?;
            asked.then(|| self::frame(from, ARP, &arp(2, target, from, asker.into())))
        }
        IPV4 if content.get(9)? == &17 && content.get(22..24)? == [0, 67] => {
            let to = Ipv4Addr::from(<[u8; 4]>::try_from(content.get(16..20)?).ok()?);
            let reply = dhcp(content.get(28..)?, to, behaviour)?;
            let (mac, to) = if reply.1.is_unspecified() { (BROADCAST, Ipv4Addr::BROADCAST) } else { (from, reply.1) };
            let length = u16::try_from(8 + reply.0.len()).unwrap().to_be_bytes();
            let datagram = [&[0, 67, 0, 68][..], &length, &[0, 0], &reply.0].concat();
            Some(self::frame(mac, IPV4, &ip4(17, server(), to, &datagram)))
        }
        IPV6 if content.get(6)? == &58 && content.get(40)? == &133 => {
            behaviour.router.map(|prefix| self::frame(BROADCAST, IPV6, &advertisement(prefix)))
        }
        IPV6 if content.get(6)? == &58 && content.get(40)? == &135 => {
            let target = Ipv6Addr::from(<[u8; 16]>::try_from(content.get(48..64)?).ok()?);
            behaviour.taken.contains(&target.into()).then(|| {
                let message = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets(), &[2, 1], &MAC].concat();
                self::frame(BROADCAST, IPV6, &icmp6(target, message))
            })
        }
        _ => None,
    }
}

/// The DHCP server's address. It must be among the claimed addresses to receive requests.
pub fn server() -> Ipv4Addr {
    Ipv4Addr::new(10, 91, 0, 1)
}

/// The reply to a client's packet that was sent to `to`, and the address that the reply goes to.
fn dhcp(packet: &[u8], to: Ipv4Addr, behaviour: &mut Behaviour) -> Option<(Vec<u8>, Ipv4Addr)> {
    let own = Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(12..16)?).ok()?);
    let option = |code: u8| {
        let mut rest = packet.get(240..)?;
        loop {
            let (found, value) = (*rest.first()?, rest.get(2..2 + usize::from(*rest.get(1)?))?);
            if found == code {
                return Some(value.to_vec());
            }
            rest = &rest[2 + value.len()..];
        }
    };
    let wanted = option(50).map(|value| Ipv4Addr::from(<[u8; 4]>::try_from(value).unwrap()));
    let kind = option(53)?[0];
    behaviour.transactions.push(packet.get(4..8)?.try_into().unwrap());
    behaviour.dhcp_messages.push(match (kind, wanted) {
        (1, _) => "DISCOVER".to_owned(),
        (3, Some(wanted)) => format!("REQUEST for {wanted}"),
        (3, None) => format!("REQUEST from {own} to {to}"),
        (4, Some(wanted)) => format!("DECLINE of {wanted}"),
        other => format!("{other:?}"),
    });
    let lease = behaviour.lease.as_mut()?;
    let refused = kind == 3 && (behaviour.naks || behaviour.nak.is_some());
    let answer = match kind {
        1 => 2,
        3 if refused => 6,
        3 => 5,
        4 => {
            lease.0 = Ipv4Addr::from_bits(lease.0.to_bits() + u32::from(!behaviour.stubborn));
            return None;
        }
        _ => return None,
    };
    let mut reply = vec![2, 1, 6, 0];
    reply.extend(packet.get(4..8)?);
    reply.extend([0; 8]);
    reply.extend(if refused { [0; 4] } else { lease.0.octets() });
    reply.extend([0; 8]);
    reply.extend(packet.get(28..44)?);
    reply.resize(236, 0);
    reply.extend([99, 130, 83, 99, 53, 1, answer, 54, 4]);
    reply.extend(server().octets());
    if !refused {
        reply.extend([1, 4, 255, 255, 255, 0]);
        for (code, seconds) in [51, 58, 59].into_iter().zip(lease.1) {
            reply.extend([code, 4]);
            reply.extend(seconds.to_be_bytes());
        }
    }
    reply.push(255);
    if refused && let Some(next) = behaviour.nak.take() {
        lease.0 = next;
    }
    // RFC 2131, section 4.1: a NAK is broadcast, and any other reply to a client with an address goes to that address.
    Some((reply, if refused { Ipv4Addr::UNSPECIFIED } else { own }))
}

fn frame(to: [u8; 6], kind: [u8; 2], content: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &MAC, &kind, content].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

fn arp(operation: u8, sender: Ipv4Addr, target_mac: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation][..], &MAC, &sender.octets(), &target_mac, &target.octets()].concat()
}

/// An IPv4 packet.
pub fn ip4(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + content.len()).unwrap().to_be_bytes();
    let mut head = [&[0x45, 0][..], &length, &[0, 0, 0, 0, 64, protocol, 0, 0], &from.octets(), &to.octets()].concat();
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum);
    [&head[..], content].concat()
}

/// An ICMPv6 message to all nodes (RFC 4443).
fn icmp6(from: Ipv6Addr, message: Vec<u8>) -> Vec<u8> {
    icmp6_to(from, "ff02::1".parse().unwrap(), message)
}

/// A router advertisement of the /64 `prefix`.
fn advertisement(prefix: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0]);
    message.extend(prefix.octets());
    icmp6("fe80::9".parse().unwrap(), message)
}

fn icmp6_to(from: Ipv6Addr, to: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 0], &length, &[0, 0, 0, 58]].concat();
    let sum = checksum(&[&pseudo[..], &message].concat());
    message[2..4].copy_from_slice(&sum);
    [&[0x60, 0, 0, 0][..], &length, &[58, 255], &from.octets(), &to.octets(), &message].concat()
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let pairs = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = pairs.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!u16::try_from(folded).unwrap()).to_be_bytes()
}
