//! Generates or loads the registry's certificate for the guest's names and addresses.

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

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that the launcher has to provide is missing.
    #[error("tls.mode is {mode}; give QEMU -fw_cfg name=opt/localregistry/{name},file=FILE; cannot read {FW_CFG}/{name}/raw")]
    Missing {
        /// The mode that requires it.
        mode: &'static str,
        /// Its name in fw_cfg.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The provided certificate or key is unusable.
    #[error("fw_cfg opt/localregistry/tls.crt and opt/localregistry/tls.key cannot be used")]
    Provided(#[source] tls::TlsError),
    /// The provided CA is unusable.
    #[error("fw_cfg opt/localregistry/ca.crt and opt/localregistry/ca.key cannot be used")]
    Ca(#[source] CaError),
    /// A certificate cannot be signed.
    #[error(transparent)]
    Sign(#[from] tls::TlsError),
}

/// Issues or loads the certificate for a guest with `addresses` that serves `store`. `clients` is the CA of client certificates;
/// `now` is the time, if the clock is trusted.
///
/// # Errors
/// Fails if it cannot be issued, or if a provided one is missing, invalid, or not valid at `now`.
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
    fn missing_certificate_file_is_named() {
        for (mode, name) in [("PROVIDED", "tls.crt"), ("SIGN", "ca.key")] {
            assert_eq!(
                read(mode, name).unwrap_err().to_string(),
                format!(
                    "tls.mode is {mode}; give QEMU -fw_cfg name=opt/localregistry/{name},file=FILE; \
                     cannot read /sys/firmware/qemu_fw_cfg/by_name/opt/localregistry/{name}/raw"
                )
            );
        }
    }
}
