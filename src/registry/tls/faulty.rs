//! Certificates that are wrong on purpose, for faults of connections.

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{CertificateParams, date_time_ymd};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::authority::Authority;
use super::error::TlsError;
use crate::proto::fault_action::Connection;

/// The name of a certificate for another name. No such name exists (RFC 2606, section 2).
const OTHER_NAME: &str = "other.invalid";

/// Signs a leaf for each handshake.
#[derive(Debug)]
struct FaultyLeaves {
    fault: Connection,
    authority: Arc<Authority>,
    /// The address that the client connected to: the name of the leaf, unless the client sends one.
    address: IpAddr,
}

/// TLS settings with a certificate that has the `fault`. `None` if it is not one of certificates. Without an `authority`, one that no client
/// knows signs.
pub(crate) fn server_config(
    fault: Connection,
    authority: Option<Arc<Authority>>,
    address: IpAddr,
) -> Option<Result<Arc<ServerConfig>, TlsError>> {
    use Connection::{TlsExpired, TlsNotYetValid, TlsOtherName, TlsUnknownCa};
    if !matches!(fault, TlsExpired | TlsNotYetValid | TlsOtherName | TlsUnknownCa) {
        return None;
    }
    let known = authority.filter(|_| fault != TlsUnknownCa);
    let authority = known.map_or_else(|| Authority::generate("unknown").map(Arc::new), Ok);
    Some(authority.and_then(|authority| server_config_of(FaultyLeaves { fault, authority, address })))
}

fn server_config_of(leaves: FaultyLeaves) -> Result<Arc<ServerConfig>, TlsError> {
    super::server_config(Arc::new(leaves), None)
}

impl ResolvesServerCert for FaultyLeaves {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name().map_or_else(|| self.address.to_string(), str::to_owned);
        let name = if self.fault == Connection::TlsOtherName { OTHER_NAME.to_owned() } else { asked };
        let (from, to) = match self.fault {
            Connection::TlsExpired => (1970, 1971),
            Connection::TlsNotYetValid => (9998, 9999),
            _ => (1970, 9999),
        };
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 12, 31));
        let leaf = self.authority.leaf_with(&[name], params);
        leaf.inspect_err(|error| tracing::warn!(%error, "cannot sign the certificate of a fault")).ok().map(Arc::new)
    }
}
