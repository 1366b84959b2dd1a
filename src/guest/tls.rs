//! The registry's certificate. What enters are the settings and the guest's addresses; what leaves is how to serve and the CA for
//! the launcher. A key never leaves.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use crate::registry::auth::client_certificate::ClientCa;
use crate::registry::content::store::Store;
use crate::registry::tls::provided::{self, CaError};
use crate::registry::tls::{self, Authority, Identity};
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
    Ca(#[source] CaError),
    /// A certificate cannot be signed.
    #[error(transparent)]
    Sign(#[from] tls::TlsError),
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
    let sign = |authority| {
        let names = [&settings.hostname].into_iter().chain(&settings.names).cloned();
        Identity::signed(authority, names, addresses, store.upstreams(), clients)
    };
    match settings.tls {
        TlsMode::Off => Ok(Identity::plain()),
        TlsMode::Generate => Ok(sign(Authority::generate("localregistry")?)?),
        TlsMode::Sign => {
            let key = Zeroizing::new(read("SIGN", "ca.key")?);
            Ok(sign(provided::authority(&read("SIGN", "ca.crt")?, &key, now).map_err(TlsError::Ca)?)?)
        }
        TlsMode::Provided => {
            let (chain, key) = (read("PROVIDED", "tls.crt")?, Zeroizing::new(read("PROVIDED", "tls.key")?));
            Identity::provided(&chain, &key, clients, now).map_err(TlsError::Provided)
        }
    }
}

fn read(mode: &'static str, name: &'static str) -> Result<Vec<u8>, TlsError> {
    fs::read(Path::new(FW_CFG).join(name).join("raw")).map_err(|source| TlsError::Missing { mode, name, source })
}

#[cfg(test)]
mod tests {
    use super::*;

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
