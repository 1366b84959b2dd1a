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

/// What can be done for the certificate before the guest has its addresses.
pub enum Early {
    /// All of it.
    Done(Identity),
    /// There is a CA to issue it with.
    Signer(Box<Authority>),
}

impl Early {
    /// Generates or loads the CA, or loads the certificate. `clients` is the CA of client certificates; `now` is the time, if the clock is
    /// trusted.
    ///
    /// # Errors
    /// Fails if nothing can be generated, or if a provided file is missing, invalid, or not valid at `now`.
    pub fn prepare(settings: &Settings, clients: Option<&ClientCa>, now: Option<SystemTime>) -> Result<Self, TlsError> {
        match settings.tls {
            TlsMode::Off => Ok(Self::Done(Identity::plain())),
            TlsMode::Generate => Ok(Self::Signer(Box::new(Authority::generate("localregistry")?))),
            TlsMode::Sign => {
                let key = Zeroizing::new(read("SIGN", "ca.key")?);
                let authority = provided::authority(&read("SIGN", "ca.crt")?, &key, now).map_err(TlsError::Ca)?;
                Ok(Self::Signer(Box::new(authority)))
            }
            TlsMode::Provided => {
                let (chain, key) = (read("PROVIDED", "tls.crt")?, Zeroizing::new(read("PROVIDED", "tls.key")?));
                Ok(Self::Done(Identity::provided(&chain, &key, clients, now).map_err(TlsError::Provided)?))
            }
        }
    }

    /// The certificate for a guest with `addresses` that serves `store`.
    ///
    /// # Errors
    /// Fails if it cannot be issued.
    pub fn finish(
        self,
        settings: &Settings,
        addresses: &[IpAddr],
        store: &Store,
        clients: Option<&ClientCa>,
    ) -> Result<Identity, TlsError> {
        match self {
            Self::Done(identity) => Ok(identity),
            Self::Signer(authority) => {
                let names = [&settings.hostname].into_iter().chain(&settings.names).cloned();
                Ok(Identity::signed(*authority, names, addresses, store.upstreams(), clients)?)
            }
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
