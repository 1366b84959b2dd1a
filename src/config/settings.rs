//! The config as types: what enters is a decoded [`Config`], what leaves is a [`Settings`] in which every value is good and every
//! default filled in. It never reads anything.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use crate::address::{Cidr, Mac};
use crate::address::{MTU, is_dns_name, is_san};
use crate::proto::auth::{self, ClientCertificate};
use crate::proto::interface::Autoconf;
use crate::proto::listener::Transport;
use crate::proto::{self, Config, tls::Mode};
use crate::registry::auth::client_certificate::Presence;
use crate::registry::limits::{Limits, TOKEN_LIFETIME};

use super::disks::disks;
use super::{ConfigError, Origin, keys};

pub use super::disks::{DiskBy, DiskChoice, Pattern};

/// Longest host name that Linux takes, in bytes.
const HOSTNAME_MAX: usize = 64;
/// Numbers of VLANs (IEEE 802.1Q, section 9.6: 0 is none, 4095 is reserved).
const VLANS: std::ops::RangeInclusive<u16> = 1..=4094;
/// Longest wait that a config may ask for, in seconds.
const WAIT_MAX: u32 = 3600;
/// Time between two heartbeats: a launcher knows of a hung guest within half a minute, and a night's log has no more than 500 KB of
/// them.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Longest life of a token, in seconds: a day.
const TOKEN_SECONDS_MAX: u32 = 86_400;
/// Latest clock: the end of the year 9999, in seconds since 1970.
const CLOCK_MAX: f64 = 253_402_300_799.0;

/// Everything the appliance is told, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Host name, also a name in the certificate.
    pub hostname: String,
    /// Further names and addresses for the certificate.
    pub names: Vec<String>,
    /// TCP port of the registry.
    pub port: NonZeroU16,
    /// Further places that the registry is served at.
    pub listeners: Vec<Listener>,
    /// Where the certificate comes from.
    pub tls: TlsMode,
    /// Who may pull.
    pub auth: AuthMode,
    /// Whether TLS clients are asked for certificates.
    pub client_certificate: Option<Presence>,
    /// TCP port of health, metrics and the CA, where they have one of their own.
    pub metrics_port: Option<NonZeroU16>,
    /// How much a client may take.
    pub limits: Limits,
    /// Interfaces to bring up; never empty.
    pub interfaces: Vec<Interface>,
    /// The disks to serve; never empty.
    pub disks: Vec<DiskChoice>,
    /// How long to wait for them.
    pub disk_wait: Duration,
    /// Whether all that is sent is held against its digest.
    pub verify: bool,
    /// The host's time, where it was given.
    pub clock: Option<SystemTime>,
    /// Time between two heartbeats, where there are any.
    pub heartbeat: Option<Duration>,
    /// Whether each step is printed.
    pub trace: bool,
}

/// Where the registry's certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// A CA and a leaf made at boot.
    Generate,
    /// Chain and key through fw_cfg.
    Provided,
    /// Plain HTTP.
    Off,
    /// A leaf made at boot, signed by a CA through fw_cfg.
    Sign,
}

/// How clients say who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// They need not.
    Anonymous,
    /// By a user's name and password.
    Basic,
    /// By a token.
    Token {
        /// Whether a token is given without credentials, too.
        anonymous: bool,
        /// How long it is good for.
        lifetime: Duration,
    },
}

/// A further place that the registry is served at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// The one address that it is on; none for every one.
    pub address: Option<IpAddr>,
    /// TCP port.
    pub port: NonZeroU16,
    /// Whether it speaks plain HTTP.
    pub plain: bool,
}

/// One interface to bring up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Which one.
    pub select: Select,
    /// The VLAN on it that is meant.
    pub vlan: Option<u16>,
    /// Static addresses.
    pub addresses: Vec<Cidr>,
    /// Default gateways, one for each family at most.
    pub gateways: Vec<IpAddr>,
    /// Whether DHCPv4 gives it an address.
    pub dhcp: bool,
    /// Which IPv6 addresses it gives itself.
    pub ipv6: Ipv6,
    /// Largest packet, where it is not left to the link or DHCP.
    pub mtu: Option<u32>,
    /// How long to wait for its link and for its addresses.
    pub timeout: Duration,
}

/// Which of the addresses that IPv6 gives by itself are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6 {
    /// None; those that come are taken.
    Taken,
    /// One of a network that a router advertises.
    Advertised,
    /// The link-local one.
    LinkLocal,
}

/// Which interface is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    /// The one with this address.
    Mac(Mac),
    /// The one at this place among those the kernel found, from 0.
    Place(usize),
}

impl Settings {
    /// Parses `config`, which came from `origin`.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`] for the first value that its key does not take.
    pub fn parse(config: &Config, origin: Origin) -> Result<Self, ConfigError> {
        let check = Check { origin };
        let interfaces = config.interfaces.iter().enumerate().map(|(place, given)| interface(check, place, given));
        let interfaces = interfaces.collect::<Result<Vec<_>, _>>()?;
        let mode = config.tls.unwrap_or_default().mode();
        let listeners = config.listeners.iter().enumerate().map(|(place, given)| listener(check, place, given, mode));
        let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
        let disk = config.disk.clone().unwrap_or_default();
        let auth = config.auth.unwrap_or_default();
        let epoch = config.clock.unwrap_or_default().epoch_seconds;
        Ok(Self {
            hostname: match config.hostname.as_str() {
                "" => "localregistry".to_owned(),
                name => {
                    check.that(name.len() <= HOSTNAME_MAX && is_dns_name(name), "hostname", name).map(|()| name.to_owned())?
                }
            },
            names: config
                .names
                .iter()
                .try_for_each(|name| check.that(is_san(name), "names", name))
                .map(|()| config.names.clone())?,
            port: match config.port {
                0 => NonZeroU16::MIN.saturating_add(4999),
                port => check.some(u16::try_from(port).ok().and_then(NonZeroU16::new), "port", port)?,
            },
            listeners,
            tls: match mode {
                Mode::Unspecified | Mode::Generate => TlsMode::Generate,
                Mode::Provided => TlsMode::Provided,
                Mode::Off => TlsMode::Off,
                Mode::Sign => TlsMode::Sign,
            },
            auth: auth_mode(check, auth)?,
            client_certificate: match auth.client_certificate() {
                ClientCertificate::Unspecified | ClientCertificate::Ignored => None,
                ClientCertificate::Optional => Some(Presence::Optional),
                ClientCertificate::Required => Some(Presence::Required),
            },
            metrics_port: match config.metrics_port {
                0 => None,
                port => Some(check.some(u16::try_from(port).ok().and_then(NonZeroU16::new), "metricsPort", port)?),
            },
            limits: limits(check, config.limits.unwrap_or_default())?,
            interfaces: if interfaces.is_empty() { vec![Interface::default()] } else { interfaces },
            disks: disks(check, &disk.serial, &config.disks)?,
            disk_wait: check.wait(disk.wait_seconds, 5, "disk.waitSeconds")?,
            clock: check.some(clock(epoch), "clock.epochSeconds", epoch)?,
            heartbeat: heartbeat(check, config.heartbeat_seconds)?,
            trace: config.trace,
            verify: config.verify,
        })
    }
}

impl Settings {
    /// These settings, of all sources together, where their values go with each other.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`] where two things are to have one port.
    pub fn consistent(self) -> Result<Self, ConfigError> {
        let check = Check { origin: Origin::Together };
        let port = self.metrics_port.map_or(0, NonZeroU16::get);
        check.some((port != self.port.get()).then_some(()), "metricsPort", port)?;
        Ok(self)
    }
}

impl Default for Interface {
    /// The first interface, by DHCP.
    fn default() -> Self {
        Self {
            select: Select::Place(0),
            vlan: None,
            addresses: Vec::new(),
            gateways: Vec::new(),
            dhcp: true,
            ipv6: Ipv6::Taken,
            mtu: None,
            timeout: Duration::from_secs(30),
        }
    }
}

fn auth_mode(check: Check, auth: proto::Auth) -> Result<AuthMode, ConfigError> {
    let lifetime = match auth.token_seconds {
        0 => TOKEN_LIFETIME,
        seconds => check.some(
            (seconds <= TOKEN_SECONDS_MAX).then(|| Duration::from_secs(seconds.into())),
            "auth.tokenSeconds",
            seconds,
        )?,
    };
    Ok(match auth.mode() {
        auth::Mode::Unspecified | auth::Mode::Anonymous => AuthMode::Anonymous,
        auth::Mode::Basic => AuthMode::Basic,
        auth::Mode::Token => AuthMode::Token { anonymous: false, lifetime },
        auth::Mode::AnonymousToken => AuthMode::Token { anonymous: true, lifetime },
    })
}

fn heartbeat(check: Check, seconds: Option<u32>) -> Result<Option<Duration>, ConfigError> {
    match seconds {
        None => Ok(Some(HEARTBEAT)),
        Some(0) => Ok(None),
        Some(seconds) => check.wait(seconds, 0, "heartbeatSeconds").map(Some),
    }
}

fn limits(check: Check, given: proto::Limits) -> Result<Limits, ConfigError> {
    let given = [
        ("firstByteSeconds", given.first_byte_seconds),
        ("handshakeSeconds", given.handshake_seconds),
        ("requestHeadSeconds", given.request_head_seconds),
        ("stallSeconds", given.stall_seconds),
        ("pingSeconds", given.ping_seconds),
        ("idleSeconds", given.idle_seconds),
        ("minimumRate", given.minimum_rate),
        ("connections", given.connections),
        ("streams", given.streams),
    ];
    let said = given.into_iter().filter_map(|(key, value)| Some((key, value?)));
    said.into_iter()
        .try_fold(Limits::default(), |limits, (key, value)| check.some(limits.with(key, value), &format!("limits.{key}"), value))
}

fn listener(check: Check, place: usize, given: &proto::Listener, mode: Mode) -> Result<Listener, ConfigError> {
    let key = |field: &str| format!("listeners.{place}.{field}");
    let address = Some(given.address.as_str()).filter(|text| !text.is_empty());
    let plain = match given.transport() {
        Transport::Unspecified => Some(mode == Mode::Off),
        Transport::Plain => Some(true),
        Transport::Tls => (mode != Mode::Off).then_some(false),
    };
    Ok(Listener {
        address: address.map(|text| check.some(text.parse().ok(), &key("address"), text)).transpose()?,
        port: check.some(u16::try_from(given.port).ok().and_then(NonZeroU16::new), &key("port"), given.port)?,
        plain: check.some(plain, &key("transport"), given.transport().as_str_name())?,
    })
}

fn interface(check: Check, place: usize, given: &proto::Interface) -> Result<Interface, ConfigError> {
    let key = |field: &str| format!("interfaces.{place}.{field}");
    let addresses = given.addresses.iter().map(|text| check.some(text.parse().ok(), &key("addresses"), text.as_str()));
    let addresses = addresses.collect::<Result<Vec<Cidr>, _>>()?;
    let mut gateways: Vec<IpAddr> = Vec::new();
    let first = [("gateway", &given.gateway)].into_iter().filter(|(_, text)| !text.is_empty());
    for (field, text) in first.chain(given.gateways.iter().map(|text| ("gateways", text))) {
        let fits = |gateway: &IpAddr| {
            addresses.iter().any(|own| own.address.is_ipv4() == gateway.is_ipv4())
                && !gateways.iter().any(|other| other.is_ipv4() == gateway.is_ipv4())
        };
        gateways.push(check.some(text.parse().ok().filter(fits), &key(field), text.as_str())?);
    }
    let autoconf = given.autoconf();
    Ok(Interface {
        select: match (given.mac.as_str(), given.place) {
            ("", None) => Select::Place(place),
            ("", Some(other)) => {
                let small = u8::try_from(other).ok().map(usize::from);
                Select::Place(check.some(small, &key("place"), other)?)
            }
            (text, _) => Select::Mac(check.some(text.parse().ok(), &key("mac"), text)?),
        },
        vlan: match given.vlan {
            0 => None,
            id => Some(check.some(u16::try_from(id).ok().filter(|id| VLANS.contains(id)), &key("vlan"), id)?),
        },
        dhcp: match autoconf {
            Autoconf::Unspecified => addresses.is_empty(),
            other => matches!(other, Autoconf::Dhcp | Autoconf::DhcpSlaac),
        },
        ipv6: match autoconf {
            Autoconf::Unspecified | Autoconf::Dhcp => Ipv6::Taken,
            Autoconf::Slaac | Autoconf::DhcpSlaac => Ipv6::Advertised,
            Autoconf::LinkLocal => Ipv6::LinkLocal,
        },
        addresses,
        gateways,
        mtu: match given.mtu {
            0 => None,
            mtu => Some(check.some(MTU.contains(&mtu).then_some(mtu), &key("mtu"), mtu)?),
        },
        timeout: check.wait(given.timeout_seconds, 30, &key("timeoutSeconds"))?,
    })
}

/// Turns a value that its key does not take into the error that says so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check {
    pub origin: Origin,
}

impl Check {
    pub fn some<T>(self, parsed: Option<T>, key: &str, value: impl Into<serde_json::Value>) -> Result<T, ConfigError> {
        parsed.ok_or_else(|| ConfigError::BadValue {
            origin: self.origin,
            key: key.to_owned(),
            value: value.into().to_string(),
            expected: keys::find(key).map_or("", |key| key.expected),
        })
    }

    pub fn that(self, good: bool, key: &str, value: &str) -> Result<(), ConfigError> {
        self.some(good.then_some(()), key, value)
    }

    fn wait(self, seconds: u32, default: u32, key: &str) -> Result<Duration, ConfigError> {
        let seconds = self.some((seconds <= WAIT_MAX).then_some(seconds), key, seconds)?;
        Ok(Duration::from_secs(u64::from(if seconds == 0 { default } else { seconds })))
    }
}

/// The time that `epoch` gives: none where it is 0; nothing at all where it is no time.
fn clock(epoch: f64) -> Option<Option<SystemTime>> {
    if epoch == 0.0 {
        return Some(None);
    }
    let seconds = Some(epoch).filter(|epoch| (0.0..=CLOCK_MAX).contains(epoch))?;
    Some(UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?))
}
