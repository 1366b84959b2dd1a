//! The registry's certificate. What enters are the settings and the guest's addresses; what leaves is how to serve and the CA for
//! the launcher. A key never leaves.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crate::registry::auth::client_certificate::ClientCa;
use crate::registry::content::store::Store;
use crate::registry::listen::listener::Transport;
use crate::registry::tls::provided::{self, CaError};
use crate::registry::tls::{self, Authority, Leaves};
use zeroize::Zeroizing;

use crate::config::FW_CFG;
use crate::config::settings::{Settings, TlsMode};

/// A certificate that cannot be served with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that the launcher should have given.
    #[error("tls.mode is {mode}; give QEMU -fw_cfg name=opt/localregistry/{name},file=…; read {FW_CFG}/{name}/raw")]
    Missing {
        /// The mode that wants it.
        mode: &'static str,
        /// Its name in fw_cfg.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The files that the launcher gave.
    #[error("fw_cfg opt/localregistry/tls.crt and opt/localregistry/tls.key cannot be served with")]
    Provided(#[source] tls::TlsError),
    /// The CA that the launcher gave.
    #[error("fw_cfg opt/localregistry/ca.crt and opt/localregistry/ca.key cannot be signed with")]
    Sign(#[source] CaError),
    /// Making our own.
    #[error("make a certificate for {}", names.join(", "))]
    Generate {
        /// The names and addresses it is for.
        names: Vec<String>,
        /// Why.
        source: tls::TlsError,
    },
}

/// How to serve, and what the launcher is told of it.
#[derive(Debug)]
pub struct Identity {
    /// For the listener.
    pub transport: Transport,
    /// The CA in PEM. `None` without TLS.
    pub ca_pem: Option<String>,
    /// What makes the certificate anew, where it is one of ours.
    pub renewal: Option<Renewal>,
}

/// Makes the certificate anew when the guest's addresses change, and others when it stands in for more hosts.
#[derive(Debug, Clone)]
pub struct Renewal {
    leaves: Arc<Leaves>,
    /// What it is for besides the addresses.
    names: Vec<String>,
}

impl Renewal {
    /// Makes leaves for these upstream hosts, too, when they are asked for.
    pub fn stand_in(&self, upstreams: impl IntoIterator<Item = String>) {
        self.leaves.stand_in(upstreams);
    }

    /// Serves with a leaf for `addresses` from now on.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn renew(&self, addresses: &[IpAddr]) -> Result<(), TlsError> {
        let names = with_addresses(self.names.clone(), addresses);
        self.leaves.rename(&names).map_err(|source| TlsError::Generate { names, source })
    }
}

/// Makes or takes the certificate for a guest with `addresses` that serves `store`. `clients` is the CA of clients' certificates;
/// `now` is the time, where the guest is sure of it.
///
/// # Errors
/// When one cannot be made, or the one given is missing, bad, or not valid `now`.
pub fn identity(
    settings: &Settings,
    addresses: &[IpAddr],
    store: &Store,
    clients: Option<&ClientCa>,
    now: Option<SystemTime>,
) -> Result<Identity, TlsError> {
    match settings.tls {
        TlsMode::Off => Ok(Identity { transport: Transport::Plain, ca_pem: None, renewal: None }),
        TlsMode::Generate => issue(Authority::generate("localregistry"), names(settings), addresses, store, clients),
        TlsMode::Sign => {
            let key = Zeroizing::new(read("SIGN", "ca.key")?);
            let authority = provided::authority(&read("SIGN", "ca.crt")?, &key, now).map_err(TlsError::Sign)?;
            issue(Ok(authority), names(settings), addresses, store, clients)
        }
        TlsMode::Provided => {
            let (config, ca_pem) = tls::provided(&read("PROVIDED", "tls.crt")?, &read("PROVIDED", "tls.key")?, clients, now)
                .map_err(TlsError::Provided)?;
            Ok(Identity { transport: Transport::Tls(config), ca_pem: Some(ca_pem), renewal: None })
        }
    }
}

/// Serves with a leaf of `authority` for `own` names and `addresses`.
fn issue(
    authority: Result<Authority, tls::TlsError>,
    own: Vec<String>,
    addresses: &[IpAddr],
    store: &Store,
    clients: Option<&ClientCa>,
) -> Result<Identity, TlsError> {
    let names = with_addresses(own.clone(), addresses);
    let made = authority.map(Arc::new).and_then(|authority| {
        let leaves = authority.leaves(&names, store.upstreams())?;
        Ok((leaves.server_config(clients)?, authority.ca_pem().to_owned(), leaves))
    });
    match made {
        Ok((config, ca_pem, leaves)) => {
            let renewal = Some(Renewal { leaves, names: own });
            Ok(Identity { transport: Transport::Tls(config), ca_pem: Some(ca_pem), renewal })
        }
        Err(source) => Err(TlsError::Generate { names, source }),
    }
}

fn read(mode: &'static str, name: &'static str) -> Result<Vec<u8>, TlsError> {
    fs::read(Path::new(FW_CFG).join(name).join("raw")).map_err(|source| TlsError::Missing { mode, name, source })
}

/// Every name that a node may reach the guest by, and the addresses that do not change, each once.
fn names(settings: &Settings) -> Vec<String> {
    let own = [settings.hostname.clone(), "localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    own.into_iter().chain(settings.names.iter().cloned()).fold(Vec::new(), with)
}

fn with_addresses(names: Vec<String>, addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).fold(names, with)
}

fn with(mut names: Vec<String>, name: String) -> Vec<String> {
    if !names.contains(&name) {
        names.push(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use crate::config::{Layer, Origin};

    use super::*;

    #[test]
    fn the_certificate_is_for_every_name_once() {
        let layer = Layer::from_json(Origin::FwCfg, br#"{"hostname": "reg", "names": ["r.example.com", "localhost"]}"#).unwrap();
        let settings = layer.settings(Origin::FwCfg).unwrap();
        assert_eq!(
            with_addresses(names(&settings), &["10.0.2.15".parse().unwrap(), "fec0::5".parse().unwrap(), "::1".parse().unwrap()]),
            ["reg", "localhost", "127.0.0.1", "::1", "r.example.com", "10.0.2.15", "fec0::5"]
        );
    }

    #[test]
    fn a_certificate_that_was_not_given_is_named() {
        for (mode, name) in [("PROVIDED", "tls.crt"), ("SIGN", "ca.key")] {
            assert_eq!(
                read(mode, name).unwrap_err().to_string(),
                format!(
                    "tls.mode is {mode}; give QEMU -fw_cfg name=opt/localregistry/{name},file=…; \
                     read /sys/firmware/qemu_fw_cfg/by_name/opt/localregistry/{name}/raw"
                )
            );
        }
    }
}
