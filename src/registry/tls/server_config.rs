//! The TLS settings of a listener.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{NoClientAuth, ResolvesServerCert};

use super::error::TlsError;
use crate::registry::auth::client_certificate::ClientCa;

/// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN, sessions resumed with tickets.
pub(super) fn server_config(
    certificates: Arc<dyn ResolvesServerCert>,
    clients: Option<&ClientCa>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let verifier = clients.map_or_else(|| Arc::new(NoClientAuth) as _, ClientCa::verifier);
    let builder = builder.map_err(TlsError::Config)?.with_client_cert_verifier(verifier);
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = ring::Ticketer::new().map_err(TlsError::Config)?;
    Ok(Arc::new(config))
}
