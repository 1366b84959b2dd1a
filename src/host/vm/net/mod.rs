//! The networks of an appliance: what QEMU connects each interface to, and what the guest's config says about it.
//!
//! The text form is that of `--net`. [`check`] examines the machine before a boot, [`attach`] opens taps.

pub mod attach;
pub mod check;
mod parse;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

use crate::address::{Cidr, Mac};

pub use parse::NetSpecError;

/// Longest path of a Unix socket in bytes (unix(7), `sun_path` without the final 0).
pub(crate) const SOCKET_PATH_MAX: usize = 107;
/// The address that QEMU's user network gives a guest by DHCP (QEMU's manual, `-netdev user`, option `dhcpstart`).
const USER_ADDRESS: Cidr = Cidr { address: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15)), prefix: 24 };
/// The IPv6 network of QEMU's user network (the same, option `ipv6-net`). Other machines cannot reach it.
const USER_NETWORK_6: &str = "fec0::/64";
/// The guest's address on QEMU's user network if ports are published beyond the loopback. Clients keep their own addresses then, so the
/// network must not overlap theirs: it is one of those reserved for benchmarks (RFC 2544, appendix C.2.2).
const USER_ADDRESS_BEYOND_LOOPBACK: Cidr = Cidr { address: IpAddr::V4(Ipv4Addr::new(198, 18, 0, 15)), prefix: 24 };
/// The host part of QEMU's own address in its user network (QEMU's manual, `-netdev user`, option `host`).
const USER_GATEWAY: u32 = 0x0202;

/// One network interface of the appliance.
#[derive(Debug, Clone)]
pub struct Net {
    /// What QEMU connects it to.
    pub kind: NetKind,
    /// Its MAC address. `None`: a random one.
    pub mac: Option<Mac>,
    /// Its static address. `None`: DHCP.
    pub address: Option<Cidr>,
    /// Default gateway, with a static address.
    pub gateway: Option<IpAddr>,
    /// MTU in bytes. `None`: that of the link or the DHCP server.
    pub mtu: Option<u32>,
}

/// What QEMU connects an interface to.
#[derive(Debug, Clone)]
pub enum NetKind {
    /// The user network: forwarded ports in, nothing out. It needs no privileges.
    User(UserBackend),
    /// An existing tap that the user may open.
    Tap(String),
    /// A bridge of this machine, through a tap that is created for QEMU and gone with it. Needs `CAP_NET_ADMIN`.
    Bridge(String),
    /// A socket with the peer at its other end. A datagram socket carries one frame per datagram; in a stream each frame follows its
    /// length in 4 bytes.
    Socket(SocketFd),
    /// A Unix socket that passt or a switch listens on. Each frame follows its length in 4 bytes.
    Stream {
        /// The socket's path.
        path: PathBuf,
        /// Seconds between attempts to connect while the peer is not there. Needs QEMU 8.0.
        reconnect: Option<u32>,
    },
    /// One frame per datagram, between two sockets.
    Dgram(Datagrams),
    /// One frame per datagram, to an IPv4 multicast group of the loopback: all machines of the group share a network.
    Multicast(SocketAddrV4),
}

/// What carries the packets of the user network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UserBackend {
    /// passt if it is installed and can do what is asked, otherwise QEMU.
    #[default]
    Auto,
    /// passt, a program of its own.
    Passt,
    /// SLIRP, which is part of QEMU.
    Slirp,
}

/// A socket that QEMU inherits.
#[derive(Debug, Clone)]
pub struct SocketFd {
    /// The descriptor's number, for messages.
    pub number: i32,
    /// The socket. `None`: it is taken by its number before the boot.
    pub socket: Option<Arc<OwnedFd>>,
}

/// Both ends of a datagram network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datagrams {
    /// Unix sockets. QEMU creates the local one; it is removed after QEMU has ended.
    Unix {
        /// QEMU's socket.
        local: PathBuf,
        /// The peer's socket.
        remote: PathBuf,
    },
    /// UDP.
    Udp {
        /// QEMU's address.
        local: SocketAddrV4,
        /// The peer's address.
        remote: SocketAddrV4,
    },
}

impl Net {
    /// An interface with DHCP and a random MAC address.
    #[must_use]
    pub fn new(kind: NetKind) -> Self {
        Self { kind, mac: None, address: None, gateway: None, mtu: None }
    }

    /// QEMU's user network.
    #[must_use]
    pub fn user() -> Self {
        Self::new(NetKind::User(UserBackend::Auto))
    }

    /// Whether it is QEMU's user network.
    #[must_use]
    pub fn is_user(&self) -> bool {
        self.user_backend().is_some()
    }

    /// What is to carry the packets, if it is the user network.
    #[must_use]
    pub fn user_backend(&self) -> Option<UserBackend> {
        if let NetKind::User(backend) = self.kind { Some(backend) } else { None }
    }

    /// Its text form without options.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.kind {
            NetKind::User(_) => "user".to_owned(),
            NetKind::Tap(name) => format!("tap={name}"),
            NetKind::Bridge(name) => format!("bridge={name}"),
            NetKind::Socket(socket) => format!("socket-fd={}", socket.number),
            NetKind::Stream { path, .. } => format!("stream={}", path.display()),
            NetKind::Dgram(Datagrams::Unix { local, remote }) => format!("dgram={},{}", local.display(), remote.display()),
            NetKind::Dgram(Datagrams::Udp { local, remote }) => format!("dgram={local},{remote}"),
            NetKind::Multicast(group) => format!("mcast={group}"),
        }
    }

    /// The resource of this machine that it uses exclusively, if any. Two interfaces must not have the same.
    fn exclusive_resource(&self) -> Option<String> {
        match &self.kind {
            // An appliance may have several interfaces on one switch.
            NetKind::Bridge(_) | NetKind::Stream { .. } | NetKind::Multicast(_) => None,
            NetKind::Dgram(Datagrams::Unix { local, .. }) => Some(format!("dgram={}", local.display())),
            NetKind::Dgram(Datagrams::Udp { local, .. }) => Some(format!("dgram={local}")),
            _ => Some(self.name()),
        }
    }

    /// The guest's address on QEMU's user network.
    #[must_use]
    pub fn user_address(&self) -> IpAddr {
        self.address.unwrap_or(USER_ADDRESS).address
    }

    /// Adds a default route on QEMU's user network, and a static address, which the route needs. QEMU forwards a connection from beyond
    /// the loopback with the client's own address, and the DHCP server of a restricted user network names no router: without the route,
    /// the guest could not answer clients on other machines.
    pub fn route_to_clients(&mut self) {
        self.address.get_or_insert(USER_ADDRESS_BEYOND_LOOPBACK);
        self.gateway = self.user_ends().map(|(_, gateway)| gateway.into());
    }

    /// The two ends of the user network: the guest's address, and the gateway, as which clients on the loopback appear. `None` if the
    /// gateway would be the guest's address.
    pub(crate) fn user_ends(&self) -> Option<(Cidr, Ipv4Addr)> {
        let own = self.address.unwrap_or(USER_ADDRESS);
        let IpAddr::V4(address) = own.address else { return None };
        let mask = u32::MAX.checked_shl(32_u32.saturating_sub(own.prefix.into())).unwrap_or_default();
        let gateway = match self.gateway {
            Some(IpAddr::V4(gateway)) => gateway,
            _ => Ipv4Addr::from_bits(address.to_bits() & mask | USER_GATEWAY & !mask),
        };
        (gateway != address).then_some((own, gateway))
    }

    /// Its entry in the guest's config.
    fn interface(&self, mac: Mac) -> Value {
        let mut entry = json!({ "mac": mac.to_string() });
        if let Some(entry) = entry.as_object_mut() {
            entry.extend(self.address.map(|own| ("addresses".to_owned(), json!([own.to_string()]))));
            entry.extend(self.gateway.map(|gateway| ("gateway".to_owned(), gateway.to_string().into())));
            entry.extend(self.mtu.map(|mtu| ("mtu".to_owned(), mtu.into())));
        }
        entry
    }
}

/// The `interfaces` of the guest's config.
#[must_use]
pub fn interfaces(nets: &[(Net, Mac)]) -> Value {
    // The guest prefers the default route of an earlier interface. The route on QEMU's user network reaches clients of forwarded ports only.
    let (user, others): (Vec<_>, Vec<_>) = nets.iter().partition(|(net, _)| net.is_user() && net.gateway.is_some());
    others.into_iter().chain(user).map(|(net, mac)| net.interface(*mac)).collect()
}

/// Gives each of `nets` its MAC address, random if none is set.
///
/// # Errors
/// Fails if the system has no random numbers.
pub fn assign_macs(nets: &[Net]) -> Result<Vec<(Net, Mac)>, std::io::Error> {
    nets.iter().map(|net| Ok((net.clone(), net.mac.map_or_else(random_mac, Ok)?))).collect()
}

/// A random, locally administered address (IEEE 802, section 8.4.2). Its 40 random bits keep concurrent runs apart.
fn random_mac() -> Result<Mac, std::io::Error> {
    let mut mac = [0; 6];
    SystemRandom::new().fill(&mut mac).map_err(|_| std::io::Error::other("no random numbers"))?;
    mac[0] = 0x52;
    Ok(Mac(mac))
}

/// Checks that no two networks use the same resource, MAC address or IP address.
///
/// # Errors
/// Fails with [`NetSpecError::Twice`].
pub fn check_conflicts(nets: &[Net]) -> Result<(), NetSpecError> {
    let mut seen = HashSet::new();
    for net in nets {
        let mac = net.mac.map(|mac| format!("mac={mac}"));
        let address = net.address.map(|own| format!("ip={}", own.address));
        for one in [net.exclusive_resource(), mac, address].into_iter().flatten() {
            if !seen.insert(one.clone()) {
                return Err(NetSpecError::Twice { what: one });
            }
        }
    }
    Ok(())
}

/// Of `endpoints`, URLs of the guest's own addresses, returns those that other machines can reach: all but those on QEMU's user network.
#[must_use]
pub fn reachable(nets: &[Net], endpoints: &[String]) -> Vec<String> {
    let user = nets.iter().find(|net| net.is_user());
    let network_6: Option<Cidr> = USER_NETWORK_6.parse().ok();
    let only_user = |address: IpAddr| {
        let of_user = user.is_some_and(|net| net.user_address() == address)
            || (user.is_some() && network_6.is_some_and(|network| network.contains(address)));
        let of_another = nets.iter().any(|net| !net.is_user() && net.address.is_some_and(|own| own.address == address));
        of_user && !of_another
    };
    let address = |url: &String| {
        let (_, authority) = url.split_once("://")?;
        Some(authority.parse::<std::net::SocketAddr>().ok()?.ip())
    };
    endpoints.iter().filter(|url| address(url).is_some_and(|address| !only_user(address))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Net {
        text.parse().unwrap()
    }

    #[test]
    fn config_names_interfaces_by_mac() {
        let nets = [
            (net("user"), Mac([0x52, 0, 0, 0, 0, 1])),
            (net("bridge=br0,ip=10.1.0.82/16,gw=10.1.0.1,mtu=1400"), Mac([0x52, 0, 0, 0, 0, 2])),
        ];
        let expected = r#"[{"mac":"52:00:00:00:00:01"},{"addresses":["10.1.0.82/16"],"gateway":"10.1.0.1","mac":"52:00:00:00:00:02","mtu":1400}]"#;
        assert_eq!(interfaces(&nets).to_string(), expected);
    }

    #[test]
    fn user_network_gets_a_route_and_keeps_given_addresses() {
        for (given, address, gateway) in [
            ("user", "198.18.0.15/24", Some("198.18.0.2")),
            ("user,ip=192.168.76.9/24", "192.168.76.9/24", Some("192.168.76.2")),
            ("user,ip=192.168.76.9/24,gw=192.168.76.1", "192.168.76.9/24", Some("192.168.76.1")),
            ("user,ip=10.20.0.9/8", "10.20.0.9/8", Some("10.0.2.2")),
            ("user,ip=192.168.76.2/24", "192.168.76.2/24", None),
            ("user,ip=192.168.76.9/32", "192.168.76.9/32", None),
        ] {
            let mut net = net(given);
            net.route_to_clients();
            assert_eq!(net.address.unwrap().to_string(), address, "{given}");
            assert_eq!(net.gateway, gateway.map(|gateway| gateway.parse().unwrap()), "{given}");
        }
    }

    #[test]
    fn default_route_of_the_user_network_comes_after_others() {
        let mut user = net("user");
        user.route_to_clients();
        let nets = [(user, Mac([0x52, 0, 0, 0, 0, 1])), (net("tap=a,ip=10.1.0.82/16,gw=10.1.0.1"), Mac([0x52, 0, 0, 0, 0, 2]))];
        let gateways: Vec<Value> = interfaces(&nets).as_array().unwrap().iter().map(|one| one["gateway"].clone()).collect();
        assert_eq!(gateways, ["10.1.0.1", "198.18.0.2"]);
    }

    #[test]
    fn random_macs_are_usable_and_differ() {
        let nets = vec![Net::user(); 100];
        let macs: HashSet<_> = assign_macs(&nets).unwrap().into_iter().map(|(_, mac)| mac.0).collect();
        assert_eq!(macs.len(), 100);
        assert!(macs.iter().all(|mac| Mac(*mac).is_usable() && mac[0] & 2 == 2), "locally administered");
        let given = assign_macs(&[net("user,mac=52:54:00:00:00:01")]).unwrap();
        assert_eq!(given[0].1.to_string(), "52:54:00:00:00:01");
    }

    #[test]
    fn shared_resource_is_refused() {
        for (one, other, twice) in [
            ("user", "user", "user"),
            ("tap=a", "tap=a", "tap=a"),
            ("socket-fd=3", "socket-fd=3", "socket-fd=3"),
            ("dgram=/a,/b", "dgram=/a,/c", "dgram=/a"),
            ("user,mac=52:54:00:00:00:01", "tap=a,mac=52:54:00:00:00:01", "mac=52:54:00:00:00:01"),
            ("tap=a,ip=10.0.0.1/8", "bridge=b,ip=10.0.0.1/16", "ip=10.0.0.1"),
        ] {
            let error = check_conflicts(&[net(one), net(other)]).unwrap_err();
            assert_eq!(error.to_string(), format!("{twice} is given to two networks; give each its own"));
        }
        assert!(check_conflicts(&[net("bridge=a"), net("bridge=a"), net("user"), net("tap=b,ip=10.0.0.1/8")]).is_ok());
    }

    #[test]
    fn addresses_on_the_user_network_are_not_reachable() {
        let all =
            ["https://10.0.2.15:5000", "https://[fec0::5054:ff:fe12:3456]:5000", "https://10.1.0.82:5000"].map(str::to_owned);
        assert_eq!(reachable(&[net("user"), net("tap=a")], &all), ["https://10.1.0.82:5000"]);
        assert_eq!(reachable(&[net("tap=a")], &all), all);
        assert_eq!(reachable(&[net("user"), net("tap=a,ip=10.0.2.15/24")], &all), [all[0].clone(), all[2].clone()]);
        assert_eq!(reachable(&[net("user,ip=10.1.0.82/16")], &all), [all[0].clone()]);
    }
}
