//! The config as checked values. [`Settings::parse`] validates a decoded [`Config`] and fills in every default.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use crate::address::{Cidr, Mac};
use crate::address::{MTU, is_dns_name, is_san};
use crate::proto::auth::{self, ClientCertificate};
use crate::proto::interface::Autoconf;
use crate::proto::listener::Transport;
use crate::proto::{self, Config, FaultPlan, tls::Mode};
use crate::registry::auth::client_certificate::Presence;
use crate::registry::faults::plan::Plan;
use crate::registry::limits::{Limits, TOKEN_LIFETIME};

use super::disks::{DiskChoice, disks};
use super::validator::Validator;
use super::{ConfigError, Origin};

const DEFAULT_HOSTNAME: &str = "localregistry";
pub(super) const DEFAULT_PORT: NonZeroU16 = NonZeroU16::MIN.saturating_add(4999);
/// Longest host name that Linux accepts, in bytes.
const MAX_HOSTNAME: usize = 64;
/// VLAN IDs (IEEE 802.1Q, section 9.6: 0 means no VLAN, 4095 is reserved).
const VLAN_IDS: std::ops::RangeInclusive<u16> = 1..=4094;
/// A launcher notices a hung guest within half a minute, and one night adds at most 500 KB to the event log.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(10);
/// Longest lifetime of a token, in seconds: one day.
const MAX_TOKEN_SECONDS: u32 = 86_400;
/// Latest time: the end of the year 9999, in seconds since 1970.
const MAX_CLOCK: f64 = 253_402_300_799.0;

/// The complete config of the guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Host name, which is also a name in the certificate.
    pub hostname: String,
    /// Further DNS names and IP addresses in the certificate.
    pub names: Vec<String>,
    /// TCP port of the registry.
    pub port: NonZeroU16,
    /// Further addresses and ports on which the registry is served.
    pub listeners: Vec<ListenAddress>,
    /// Where the certificate comes from.
    pub tls: TlsMode,
    /// How clients authenticate.
    pub auth: AuthMode,
    /// Whether TLS clients must show certificates. `None` requests none.
    pub client_certificate: Option<Presence>,
    /// TCP port of health, metrics and the CA. `None` serves them on the registry's port.
    pub metrics_port: Option<NonZeroU16>,
    /// What one client may use.
    pub limits: Limits,
    /// Network interfaces to bring up. Never empty.
    pub interfaces: Vec<Interface>,
    /// Disks to serve. Never empty.
    pub disks: Vec<DiskChoice>,
    /// How long boot waits for the disks.
    pub disk_wait: Duration,
    /// Whether each response is verified against its digest.
    pub verify: bool,
    /// The host's time, if the launcher provided it.
    pub clock: Option<SystemTime>,
    /// Time between two heartbeats. `None` sends none.
    pub heartbeat: Option<Duration>,
    /// Whether the console shows each boot step.
    pub trace: bool,
    /// The plan of faults.
    pub faults: FaultPlan,
}

/// Where the registry's certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Boot generates a CA and a leaf certificate.
    Generate,
    /// The launcher provides the chain and the key through fw_cfg.
    Provided,
    /// Plain HTTP.
    Off,
    /// Boot generates a leaf certificate, signed by a CA that the launcher provides through fw_cfg.
    Sign,
}

/// How clients authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// Without credentials.
    Anonymous,
    /// With a user name and a password.
    Basic,
    /// With a token.
    Token {
        /// Whether clients without credentials get tokens too.
        anonymous: bool,
        /// How long a token is valid.
        lifetime: Duration,
    },
}

/// A further address and port on which the registry is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenAddress {
    /// The address to listen on. `None` is every address.
    pub address: Option<IpAddr>,
    /// TCP port.
    pub port: NonZeroU16,
    /// Whether it speaks plain HTTP instead of HTTPS.
    pub plain: bool,
}

/// One network interface to bring up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Which interface.
    pub selector: Selector,
    /// VLAN ID, if the addresses belong to a VLAN on the interface.
    pub vlan: Option<u16>,
    /// Static addresses.
    pub addresses: Vec<Cidr>,
    /// Default gateways, at most one for each address family.
    pub gateways: Vec<IpAddr>,
    /// Whether the interface gets an IPv4 address by DHCP.
    pub dhcp: bool,
    /// Which autoconfigured IPv6 address boot waits for.
    pub ipv6_wait: Ipv6Wait,
    /// MTU in bytes. `None` leaves it to the link or the DHCP server.
    pub mtu: Option<u32>,
    /// How long boot waits for the link and the addresses.
    pub timeout: Duration,
}

/// Which autoconfigured IPv6 address boot waits for. The kernel configures the others whenever routers advertise them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6Wait {
    /// None.
    Nothing,
    /// An address with a prefix that a router advertises.
    Advertised,
    /// The link-local address.
    LinkLocal,
}

/// How an interface is selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selector {
    /// By its MAC address.
    Mac(Mac),
    /// By its position among the interfaces that the kernel found, counted from 0.
    Place(usize),
}

impl Settings {
    /// Validates `config`, which comes from `origin`.
    ///
    /// # Errors
    /// Fails with [`ConfigError::BadValue`] for the first invalid value.
    pub fn parse(config: &Config, origin: Origin) -> Result<Self, ConfigError> {
        let validator = Validator { origin };
        let interfaces = config.interfaces.iter().enumerate().map(|(place, message)| interface(validator, place, message));
        let interfaces = interfaces.collect::<Result<Vec<_>, _>>()?;
        let mode = config.tls.unwrap_or_default().mode();
        let listeners = config.listeners.iter().enumerate().map(|(place, message)| listener(validator, place, message, mode));
        let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
        let disk = config.disk.clone().unwrap_or_default();
        let auth = config.auth.unwrap_or_default();
        let epoch = config.clock.unwrap_or_default().epoch_seconds;
        Ok(Self {
            hostname: match config.hostname.as_str() {
                "" => DEFAULT_HOSTNAME.to_owned(),
                name => validator
                    .require(name.len() <= MAX_HOSTNAME && is_dns_name(name), "hostname", name)
                    .map(|()| name.to_owned())?,
            },
            names: config
                .names
                .iter()
                .try_for_each(|name| validator.require(is_san(name), "names", name))
                .map(|()| config.names.clone())?,
            port: match config.port {
                0 => DEFAULT_PORT,
                port => validator.port(port, "port")?,
            },
            listeners,
            tls: match mode {
                Mode::Unspecified | Mode::Generate => TlsMode::Generate,
                Mode::Provided => TlsMode::Provided,
                Mode::Off => TlsMode::Off,
                Mode::Sign => TlsMode::Sign,
            },
            auth: auth_mode(validator, auth)?,
            client_certificate: match auth.client_certificate() {
                ClientCertificate::Unspecified | ClientCertificate::Ignored => None,
                ClientCertificate::Optional => Some(Presence::Optional),
                ClientCertificate::Required => Some(Presence::Required),
            },
            metrics_port: match config.metrics_port {
                0 => None,
                port => Some(validator.port(port, "metricsPort")?),
            },
            limits: limits(validator, config.limits.unwrap_or_default())?,
            interfaces: if interfaces.is_empty() { vec![Interface::default()] } else { interfaces },
            disks: disks(validator, &disk.serial, &config.disks)?,
            disk_wait: validator.wait(disk.wait_seconds, 5, "disk.waitSeconds")?,
            clock: match epoch {
                0.0 => None,
                epoch => Some(validator.require_some(clock(epoch), "clock.epochSeconds", epoch)?),
            },
            heartbeat: heartbeat(validator, config.heartbeat_seconds)?,
            trace: config.trace,
            verify: config.verify,
            faults: faults(validator, config.faults.clone().unwrap_or_default())?,
        })
    }

    /// Checks what only the merged config can show: that no two services share a port.
    ///
    /// # Errors
    /// Fails with [`ConfigError::BadValue`] if they do.
    pub fn check_together(self) -> Result<Self, ConfigError> {
        let validator = Validator { origin: Origin::Together };
        let port = self.metrics_port.map_or(0, NonZeroU16::get);
        validator.require_some((port != self.port.get()).then_some(()), "metricsPort", port)?;
        Ok(self)
    }
}

impl Default for Interface {
    /// The first interface, configured by DHCP.
    fn default() -> Self {
        Self {
            selector: Selector::Place(0),
            vlan: None,
            addresses: Vec::new(),
            gateways: Vec::new(),
            dhcp: true,
            ipv6_wait: Ipv6Wait::Nothing,
            mtu: None,
            timeout: Duration::from_secs(30),
        }
    }
}

fn auth_mode(validator: Validator, auth: proto::Auth) -> Result<AuthMode, ConfigError> {
    let lifetime = match auth.token_seconds {
        0 => TOKEN_LIFETIME,
        seconds => validator.require_some(
            (seconds <= MAX_TOKEN_SECONDS).then(|| Duration::from_secs(seconds.into())),
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

fn heartbeat(validator: Validator, seconds: Option<u32>) -> Result<Option<Duration>, ConfigError> {
    match seconds {
        None => Ok(Some(DEFAULT_HEARTBEAT)),
        Some(0) => Ok(None),
        Some(seconds) => validator.wait(seconds, 0, "heartbeatSeconds").map(Some),
    }
}

fn limits(validator: Validator, limits: proto::Limits) -> Result<Limits, ConfigError> {
    // As JSON, which names the limits that are set, so that a new limit needs no code here.
    let json = serde_json::to_value(limits).unwrap_or_default();
    json.as_object().into_iter().flatten().try_fold(Limits::default(), |limits, (key, value)| {
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        validator.require_some(number.and_then(|number| limits.with(key, number)), &format!("limits.{key}"), value.clone())
    })
}

fn listener(validator: Validator, place: usize, message: &proto::Listener, mode: Mode) -> Result<ListenAddress, ConfigError> {
    let key = |field: &str| format!("listeners.{place}.{field}");
    let address = Some(message.address.as_str()).filter(|text| !text.is_empty());
    let plain = match message.transport() {
        Transport::Unspecified => Some(mode == Mode::Off),
        Transport::Plain => Some(true),
        Transport::Tls => (mode != Mode::Off).then_some(false),
    };
    Ok(ListenAddress {
        address: address.map(|text| validator.require_some(text.parse().ok(), &key("address"), text)).transpose()?,
        port: validator.port(message.port, &key("port"))?,
        plain: validator.require_some(plain, &key("transport"), message.transport().as_str_name())?,
    })
}

fn interface(validator: Validator, place: usize, message: &proto::Interface) -> Result<Interface, ConfigError> {
    let key = |field: &str| format!("interfaces.{place}.{field}");
    let addresses =
        message.addresses.iter().map(|text| validator.require_some(text.parse().ok(), &key("addresses"), text.as_str()));
    let addresses = addresses.collect::<Result<Vec<Cidr>, _>>()?;
    let mut gateways: Vec<IpAddr> = Vec::new();
    let first = [("gateway", &message.gateway)].into_iter().filter(|(_, text)| !text.is_empty());
    for (field, text) in first.chain(message.gateways.iter().map(|text| ("gateways", text))) {
        let fits = |gateway: &IpAddr| {
            addresses.iter().any(|own| own.address.is_ipv4() == gateway.is_ipv4())
                && !gateways.iter().any(|other| other.is_ipv4() == gateway.is_ipv4())
        };
        gateways.push(validator.require_some(text.parse().ok().filter(fits), &key(field), text.as_str())?);
    }
    let autoconf = message.autoconf();
    Ok(Interface {
        selector: match (message.mac.as_str(), message.place) {
            ("", None) => Selector::Place(place),
            ("", Some(other)) => {
                let small = u8::try_from(other).ok().map(usize::from);
                Selector::Place(validator.require_some(small, &key("place"), other)?)
            }
            (text, _) => Selector::Mac(validator.require_some(text.parse().ok(), &key("mac"), text)?),
        },
        vlan: match message.vlan {
            0 => None,
            id => Some(validator.require_some(u16::try_from(id).ok().filter(|id| VLAN_IDS.contains(id)), &key("vlan"), id)?),
        },
        dhcp: match autoconf {
            Autoconf::Unspecified => addresses.is_empty(),
            other => matches!(other, Autoconf::Dhcp | Autoconf::DhcpSlaac),
        },
        ipv6_wait: match autoconf {
            Autoconf::Unspecified | Autoconf::Dhcp => Ipv6Wait::Nothing,
            Autoconf::Slaac | Autoconf::DhcpSlaac => Ipv6Wait::Advertised,
            Autoconf::LinkLocal => Ipv6Wait::LinkLocal,
        },
        addresses,
        gateways,
        mtu: match message.mtu {
            0 => None,
            mtu => Some(validator.require_some(MTU.contains(&mtu).then_some(mtu), &key("mtu"), mtu)?),
        },
        timeout: validator.wait(message.timeout_seconds, 30, &key("timeoutSeconds"))?,
    })
}

fn faults(validator: Validator, plan: FaultPlan) -> Result<FaultPlan, ConfigError> {
    match Plan::check(plan.clone()) {
        Ok(_) => Ok(plan),
        Err(error) => validator.require_some(None, "faults", format!("wrong ({error})")),
    }
}

fn clock(epoch: f64) -> Option<SystemTime> {
    let seconds = Some(epoch).filter(|epoch| (0.0..=MAX_CLOCK).contains(epoch))?;
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}
