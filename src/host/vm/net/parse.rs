//! Parses the text form of a network, `KIND[=VALUE][,KEY=VALUE…]`, and checks that its parts fit each other.

use std::net::{IpAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{Datagrams, Net, NetKind, SOCKET_PATH_MAX, SocketFd, UserBackend};
use crate::address::{Cidr, MTU, Mac};

/// Longest name of an interface in bytes (Linux, `IFNAMSIZ` without the final 0).
const NAME_MAX: usize = 15;
const KINDS: &str = "user, tap=NAME, bridge=NAME, socket-fd=N, stream=PATH, dgram=LOCAL,REMOTE, mcast=GROUP:PORT";

/// Why networks are not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetSpecError {
    /// Unknown kind.
    #[error("{kind:?} is not a kind of network; expected one of {KINDS}")]
    Kind {
        /// The kind.
        kind: String,
    },
    /// passt is not a kind of its own.
    #[error(
        "passt is no kind of network: user,backend=passt takes it for the user network; or start `passt --socket PATH` yourself and give \
         stream=PATH"
    )]
    Passt,
    /// Bad value of the kind.
    #[error("{kind} needs {expected}, not {value:?}")]
    Value {
        /// The kind.
        kind: &'static str,
        /// The value.
        value: String,
        /// What is expected.
        expected: &'static str,
    },
    /// Unknown option.
    #[error("{key:?} is not an option of {kind}; expected {expected}")]
    Key {
        /// The kind.
        kind: String,
        /// The option.
        key: String,
        /// The options of the kind.
        expected: &'static str,
    },
    /// Bad value of an option.
    #[error("{key}={value} is not {expected}")]
    Option {
        /// The option.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is expected.
        expected: &'static str,
    },
    /// The option is given twice.
    #[error("{key}= is given twice")]
    Repeated {
        /// The option.
        key: String,
    },
    /// A gateway without a static address.
    #[error("gw={gateway} needs ip=ADDRESS/PREFIX: with DHCP the server sets the gateway")]
    GatewayAlone {
        /// The gateway.
        gateway: IpAddr,
    },
    /// The gateway is in another network.
    #[error("gw={gateway} is not in the network of ip={address}")]
    GatewayOutside {
        /// The gateway.
        gateway: IpAddr,
        /// The address.
        address: Cidr,
    },
    /// The gateway is the appliance itself.
    #[error("gw={gateway} is the address of the appliance itself")]
    GatewayItself {
        /// The gateway.
        gateway: IpAddr,
    },
    /// QEMU's user network has no IPv6 here.
    #[error("ip={address} is IPv6: QEMU's user network forwards to IPv4 addresses only")]
    UserVersion6 {
        /// The address.
        address: Cidr,
    },
    /// Two networks use the same resource or address.
    #[error("{what} is given to two networks; give each its own")]
    Twice {
        /// The resource or address.
        what: String,
    },
}

impl FromStr for Net {
    type Err = NetSpecError;

    fn from_str(text: &str) -> Result<Self, NetSpecError> {
        let mut parts = text.split(',');
        let head = parts.next().unwrap_or_default();
        let (kind, value) = head.split_once('=').map_or((head, None), |(kind, value)| (kind, Some(value)));
        let mut net = Self::new(parse_kind(kind, value, &mut parts)?);
        let mut seen: Vec<&str> = Vec::new();
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            if seen.contains(&key) {
                return Err(NetSpecError::Repeated { key: key.to_owned() });
            }
            seen.push(key);
            net.set_option(kind, key, value)?;
        }
        net.check_addresses()?;
        Ok(net)
    }
}

/// Parses the kind. A kind with two values takes the second from `rest`.
fn parse_kind<'a>(kind: &str, value: Option<&str>, rest: &mut impl Iterator<Item = &'a str>) -> Result<NetKind, NetSpecError> {
    let bad = |kind, expected, value: &str| NetSpecError::Value { kind, value: value.to_owned(), expected };
    let given = value.unwrap_or_default();
    Ok(match kind {
        "user" if value.is_none() => NetKind::User(UserBackend::Auto),
        "user" => return Err(bad("user", "no value", given)),
        "tap" => NetKind::Tap(interface_name(given).ok_or_else(|| bad("tap", "a name of an interface", given))?),
        "bridge" => NetKind::Bridge(interface_name(given).ok_or_else(|| bad("bridge", "a name of an interface", given))?),
        "socket-fd" => {
            // 0 to 2 are standard input, output and error.
            let number = given.parse().ok().filter(|number| *number > 2);
            let number = number.ok_or_else(|| bad("socket-fd", "the number of an open socket, 3 or more", given))?;
            NetKind::Socket(SocketFd { number, socket: None })
        }
        "stream" => {
            let path = socket_path(given).ok_or_else(|| bad("stream", "the path of a socket, of 1 to 107 bytes", given))?;
            NetKind::Stream { path, reconnect: None }
        }
        "dgram" => {
            let remote = rest.next().unwrap_or_default();
            let both = datagrams(given, remote);
            let expected = "LOCAL,REMOTE, both paths of sockets (of 1 to 107 bytes, with a slash) or both IPv4:PORT";
            NetKind::Dgram(both.ok_or_else(|| bad("dgram", expected, &format!("{given},{remote}")))?)
        }
        "mcast" => {
            let group = given.parse().ok().filter(|group: &SocketAddrV4| group.ip().is_multicast() && group.port() != 0);
            let expected = "GROUP:PORT, an IPv4 multicast group (224.0.0.0/4) and a port";
            NetKind::Multicast(group.ok_or_else(|| bad("mcast", expected, given))?)
        }
        "passt" => return Err(NetSpecError::Passt),
        _ => return Err(NetSpecError::Kind { kind: kind.to_owned() }),
    })
}

impl Net {
    fn set_option(&mut self, kind: &str, key: &str, value: &str) -> Result<(), NetSpecError> {
        let bad = |key, expected| NetSpecError::Option { key, value: value.to_owned(), expected };
        match (key, &mut self.kind) {
            ("mac", _) => {
                let expected = "the address of an interface, such as 52:54:00:12:34:56";
                let mac = value.parse().ok().filter(|mac: &Mac| mac.is_usable());
                self.mac = Some(mac.ok_or_else(|| bad("mac", expected))?);
            }
            ("ip", _) => {
                let expected = "an address with its prefix length, such as 10.1.0.82/16";
                self.address = Some(value.parse().map_err(|_| bad("ip", expected))?);
            }
            ("gw", _) => self.gateway = Some(value.parse().map_err(|_| bad("gw", "an address, such as 10.1.0.1"))?),
            ("mtu", _) => {
                let mtu = value.parse().ok().filter(|mtu| MTU.contains(mtu));
                self.mtu = Some(mtu.ok_or_else(|| bad("mtu", "a number of bytes from 1280 to 65535"))?);
            }
            ("reconnect", NetKind::Stream { reconnect, .. }) => {
                let seconds = value.parse().ok().filter(|seconds| (1..=3600).contains(seconds));
                *reconnect = Some(seconds.ok_or_else(|| bad("reconnect", "a number of seconds from 1 to 3600"))?);
            }
            ("backend", NetKind::User(backend)) => {
                *backend = match value {
                    "auto" => UserBackend::Auto,
                    "passt" => UserBackend::Passt,
                    "slirp" => UserBackend::Slirp,
                    _ => return Err(bad("backend", "auto, passt or slirp")),
                };
            }
            (_, of) => {
                let expected = match of {
                    NetKind::Stream { .. } => "mac=, ip=, gw=, mtu= or reconnect=",
                    NetKind::User(_) => "mac=, ip=, gw=, mtu= or backend=",
                    _ => "mac=, ip=, gw= or mtu=",
                };
                return Err(NetSpecError::Key { kind: kind.to_owned(), key: key.to_owned(), expected });
            }
        }
        Ok(())
    }

    /// Checks that the address and the gateway fit each other and the kind.
    fn check_addresses(&self) -> Result<(), NetSpecError> {
        match (self.address, self.gateway) {
            (None, Some(gateway)) => return Err(NetSpecError::GatewayAlone { gateway }),
            (Some(own), Some(gateway)) if own.address == gateway => return Err(NetSpecError::GatewayItself { gateway }),
            (Some(own), Some(gateway)) if !own.contains(gateway) => {
                return Err(NetSpecError::GatewayOutside { gateway, address: own });
            }
            _ => {}
        }
        match self.address {
            Some(address) if self.is_user() && address.address.is_ipv6() => Err(NetSpecError::UserVersion6 { address }),
            _ => Ok(()),
        }
    }
}

/// Checks the name of an interface (Linux, `dev_valid_name`).
fn interface_name(text: &str) -> Option<String> {
    let good = (1..=NAME_MAX).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte));
    good.then(|| text.to_owned())
}

fn socket_path(text: &str) -> Option<PathBuf> {
    (1..=SOCKET_PATH_MAX).contains(&text.len()).then(|| PathBuf::from(text))
}

fn datagrams(local: &str, remote: &str) -> Option<Datagrams> {
    if let (Ok(local), Ok(remote)) = (local.parse(), remote.parse()) {
        return Some(Datagrams::Udp { local, remote });
    }
    // A path needs a slash, so that an option or a mistyped address is not taken for a file.
    let path = |text: &str| socket_path(text).filter(|path| path != Path::new("/") && text.contains('/') && !text.contains('='));
    Some(Datagrams::Unix { local: path(local)?, remote: path(remote)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_parsed_and_printed() {
        for text in [
            "user",
            "tap=tap0",
            "bridge=br-test.1",
            "socket-fd=7",
            "stream=/run/switch",
            "dgram=/run/a,/run/b",
            "dgram=127.0.0.1:4000,127.0.0.1:4001",
            "mcast=239.1.2.3:4000",
        ] {
            assert_eq!(text.parse::<Net>().unwrap().name(), text);
            let full: Net = format!("{text},mac=52:54:00:12:34:56,ip=10.1.0.82/16,gw=10.1.0.1,mtu=1400").parse().unwrap();
            assert_eq!(full.name(), text);
            assert_eq!((full.mac, full.mtu), ("52:54:00:12:34:56".parse().ok(), Some(1400)), "{text}");
            assert_eq!((full.address, full.gateway), ("10.1.0.82/16".parse().ok(), "10.1.0.1".parse().ok()), "{text}");
        }
        let NetKind::Stream { reconnect, .. } = "stream=s,reconnect=5".parse::<Net>().unwrap().kind else { panic!("a stream") };
        assert_eq!(reconnect, Some(5));
        let backend = |text: &str| text.parse::<Net>().unwrap().user_backend();
        assert_eq!(backend("user"), Some(UserBackend::Auto));
        assert_eq!(backend("user,backend=auto"), Some(UserBackend::Auto));
        assert_eq!(backend("user,backend=passt"), Some(UserBackend::Passt));
        assert_eq!(backend("user,mtu=1400,backend=slirp"), Some(UserBackend::Slirp));
        assert_eq!(backend("tap=a"), None);
        assert!("tap=a,ip=2001:db8::2/64,gw=2001:db8::1".parse::<Net>().is_ok());
    }

    #[test]
    fn bad_networks_are_refused_with_what_is_expected() {
        let long = format!("stream=/{}", "x".repeat(107));
        let keys = "is not an option of tap; expected mac=, ip=, gw= or mtu=";
        let paths = "dgram needs LOCAL,REMOTE, both paths of sockets (of 1 to 107 bytes, with a slash) or both IPv4:PORT, not";
        let mac = "is not the address of an interface, such as 52:54:00:12:34:56";
        let cidr = "is not an address with its prefix length, such as 10.1.0.82/16";
        for (text, message) in [
            ("", format!("\"\" is not a kind of network; expected one of {KINDS}")),
            ("wifi=home", format!("\"wifi\" is not a kind of network; expected one of {KINDS}")),
            (
                "passt",
                "passt is no kind of network: user,backend=passt takes it for the user network; or start `passt --socket PATH` \
                 yourself and give stream=PATH"
                    .to_owned(),
            ),
            ("user=x", "user needs no value, not \"x\"".to_owned()),
            ("tap", "tap needs a name of an interface, not \"\"".to_owned()),
            ("tap=a/b", "tap needs a name of an interface, not \"a/b\"".to_owned()),
            ("bridge=sixteen-letters-", "bridge needs a name of an interface, not \"sixteen-letters-\"".to_owned()),
            ("socket-fd=2", "socket-fd needs the number of an open socket, 3 or more, not \"2\"".to_owned()),
            (&long, format!("stream needs the path of a socket, of 1 to 107 bytes, not \"/{}\"", "x".repeat(107))),
            ("dgram=/a", format!("{paths} \"/a,\"")),
            ("dgram=/a,mac=52:54:00:12:34:56", format!("{paths} \"/a,mac=52:54:00:12:34:56\"")),
            ("dgram=/a,127.0.0.1:1", format!("{paths} \"/a,127.0.0.1:1\"")),
            (
                "mcast=10.0.0.1:4000",
                "mcast needs GROUP:PORT, an IPv4 multicast group (224.0.0.0/4) and a port, not \"10.0.0.1:4000\"".to_owned(),
            ),
            ("tap=a,mac=52:54:00", format!("mac=52:54:00 {mac}")),
            ("tap=a,mac=01:00:5e:00:00:01", format!("mac=01:00:5e:00:00:01 {mac}")),
            ("tap=a,ip=10.1.0.82", format!("ip=10.1.0.82 {cidr}")),
            ("tap=a,ip=10.1.0.82/33", format!("ip=10.1.0.82/33 {cidr}")),
            ("tap=a,ip=10.1.0.82/16,gw=x", "gw=x is not an address, such as 10.1.0.1".to_owned()),
            ("tap=a,gw=10.1.0.1", "gw=10.1.0.1 needs ip=ADDRESS/PREFIX: with DHCP the server sets the gateway".to_owned()),
            ("tap=a,ip=10.1.0.82/16,gw=10.2.0.1", "gw=10.2.0.1 is not in the network of ip=10.1.0.82/16".to_owned()),
            ("tap=a,ip=10.1.0.82/16,gw=10.1.0.82", "gw=10.1.0.82 is the address of the appliance itself".to_owned()),
            ("tap=a,mtu=1279", "mtu=1279 is not a number of bytes from 1280 to 65535".to_owned()),
            ("tap=a,mtu=65536", "mtu=65536 is not a number of bytes from 1280 to 65535".to_owned()),
            ("user,backend=vde", "backend=vde is not auto, passt or slirp".to_owned()),
            ("tap=a,backend=passt", format!("\"backend\" {keys}")),
            ("stream=s,reconnect=0", "reconnect=0 is not a number of seconds from 1 to 3600".to_owned()),
            ("tap=a,mtu=1400,mtu=1500", "mtu= is given twice".to_owned()),
            ("tap=a,reconnect=1", format!("\"reconnect\" {keys}")),
            ("tap=a,up", format!("\"up\" {keys}")),
            ("tap=a,", format!("\"\" {keys}")),
            (
                "user,ip=2001:db8::1/64",
                "ip=2001:db8::1/64 is IPv6: QEMU's user network forwards to IPv4 addresses only".to_owned(),
            ),
        ] {
            assert_eq!(text.parse::<Net>().unwrap_err().to_string(), message, "{text}");
        }
    }
}
