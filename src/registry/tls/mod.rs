//! The server's certificate: signed by a CA that is generated or provided, or provided as a chain with its key. Private keys never leave
//! this module.

mod authority;
mod emulation;
mod error;
pub(crate) mod faulty;
pub mod provided;
mod server_config;
mod x509;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};

use super::auth::client_certificate::ClientCa;
use super::listen::listener::Transport;

pub use authority::{Authority, Leaves};
pub use error::TlsError;
use server_config::server_config;

/// The loopback names and addresses, which every signed leaf is for.
const LOCAL_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The certificate that a server uses, and what follows from it.
#[derive(Debug)]
pub struct Identity {
    /// The transport of its listeners.
    pub transport: Transport,
    /// The CA certificate that clients must trust, PEM. `None` without TLS.
    pub ca_pem: Option<String>,
    /// The leaves, if they are signed here.
    pub leaves: Option<Arc<Leaves>>,
}

impl Identity {
    /// Serves plain HTTP.
    #[must_use]
    pub fn plain() -> Self {
        Self { transport: Transport::Plain, ca_pem: None, leaves: None }
    }

    /// Serves with leaves of `authority`: one for `names`, the loopback names and `addresses`, and one for each of `upstreams` that a client
    /// asks for by SNI. Client certificates are verified with `clients`.
    ///
    /// # Errors
    /// Fails if a name cannot be in a certificate.
    pub fn signed(
        authority: Authority,
        names: impl IntoIterator<Item = String>,
        addresses: &[IpAddr],
        upstreams: impl IntoIterator<Item = String>,
        clients: Option<&ClientCa>,
    ) -> Result<Self, TlsError> {
        let names = names.into_iter().chain(LOCAL_NAMES.map(str::to_owned)).collect();
        let leaves = Arc::new(authority).leaves(names, addresses, upstreams)?;
        let transport = Transport::Tls(leaves.server_config(clients)?);
        Ok(Self { transport, ca_pem: Some(leaves.authority().ca_pem().to_owned()), leaves: Some(leaves) })
    }

    /// Serves with a provided certificate chain (leaf first) and its key, both PEM. Clients must trust the last certificate of the chain.
    /// The chain must be valid at `now`, if the time is known. Client certificates are verified with `clients`.
    ///
    /// # Errors
    /// Fails if a file is not PEM, the key does not match, or a certificate is not valid at `now`.
    pub fn provided(chain: &[u8], key: &[u8], clients: Option<&ClientCa>, now: Option<SystemTime>) -> Result<Self, TlsError> {
        let (leaf, ca_pem) = provided::chain(chain, key, now)?;
        let transport = Transport::Tls(server_config(Arc::new(rustls::sign::SingleCertAndKey::from(leaf)), clients)?);
        Ok(Self { transport, ca_pem: Some(ca_pem), leaves: None })
    }
}

/// The first of `names` (DNS names, wildcards and IP addresses) that the leaf of `chain` (PEM, leaf first) does not cover. Only subject
/// alternative names count (RFC 9525, section 6.3).
#[must_use]
pub fn uncovered_name<'n>(chain: &[u8], names: &'n [String]) -> Option<&'n String> {
    let leaf = CertificateDer::pem_slice_iter(chain).next().and_then(Result::ok);
    let leaf = leaf.as_ref().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
    let is_covered = |name: &str| {
        // rustls verifies host names only. A wildcard covers any label, so one example stands for all.
        let name = name.strip_prefix("*.").map_or_else(|| name.to_owned(), |parent| format!("any.{parent}"));
        let (Some(leaf), Ok(name)) = (&leaf, ServerName::try_from(name)) else { return false };
        verify_server_name(leaf, &name).is_ok()
    };
    names.iter().find(|name| !is_covered(name))
}

/// The certificates in `pem`, as PEM without any other text.
///
/// # Errors
/// Fails if there is no certificate.
pub fn certificates(pem: &[u8]) -> Result<String, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.ok().filter(|certificates| !certificates.is_empty());
    let certificates = certificates.ok_or(TlsError::Pem { what: "CA", expected: "one or more CERTIFICATE blocks" })?;
    Ok(certificates.iter().map(x509::pem).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provided_certificate_covers_its_alternative_names_only() {
        let names = ["registry.test", "*.example.test", "10.1.0.82", "fd00::82"].map(str::to_owned);
        let provided = rcgen::generate_simple_self_signed(names).unwrap().cert.pem();
        let is_covered = |name: &str| uncovered_name(provided.as_bytes(), &[name.to_owned()]).is_none();
        for name in ["registry.test", "REGISTRY.test", "a.example.test", "*.example.test", "10.1.0.82", "fd00::82"] {
            assert!(is_covered(name), "{name}");
        }
        for name in ["other.test", "*.registry.test", "example.test", "a.b.example.test", "10.1.0.83", "fd00::83", "", "a b"] {
            assert!(!is_covered(name), "{name}");
        }
        assert!(uncovered_name(b"", &["registry.test".to_owned()]).is_some());
    }
}
