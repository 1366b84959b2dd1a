//! The TLS settings of a listener.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{NoClientAuth, ResolvesServerCert};

use super::emulation::is_emulated;
use super::error::TlsError;
use crate::registry::auth::client_certificate::ClientCa;

/// Whether ChaCha20-Poly1305 is built without vector instructions (`.cargo/config.toml`). With them an emulator runs it slower than AES.
const IS_PORTABLE: bool = cfg!(all(chacha20_backend = "soft", poly1305_backend = "soft"));

/// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN, sessions resumed with tickets.
pub(super) fn server_config(
    certificates: Arc<dyn ResolvesServerCert>,
    clients: Option<&ClientCa>,
) -> Result<Arc<ServerConfig>, TlsError> {
    server_config_for(IS_PORTABLE && is_emulated(), certificates, clients)
}

/// An emulated processor runs the portable ChaCha20-Poly1305 about three times as fast as AES, so the server chooses it there. On other
/// processors the client chooses, which is AES for most.
fn server_config_for(
    is_emulated: bool,
    certificates: Arc<dyn ResolvesServerCert>,
    clients: Option<&ClientCa>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = match is_emulated {
        true => CryptoProvider { cipher_suites: portable_chacha20::SUITES.clone(), ..ring::default_provider() },
        false => ring::default_provider(),
    };
    let builder = ServerConfig::builder_with_provider(Arc::new(provider)).with_safe_default_protocol_versions();
    let verifier = clients.map_or_else(|| Arc::new(NoClientAuth) as _, ClientCa::verifier);
    let builder = builder.map_err(TlsError::Config)?.with_client_cert_verifier(verifier);
    let mut config = builder.with_cert_resolver(certificates);
    config.ignore_client_order = is_emulated;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = ring::Ticketer::new().map_err(TlsError::Config)?;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustls::crypto::ring::cipher_suite;
    use rustls::{
        CipherSuite, ClientConfig, ClientConnection, Connection, RootCertStore, ServerConnection, SupportedCipherSuite,
        SupportedProtocolVersion, version,
    };
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    use super::*;
    use crate::registry::tls::Authority;

    /// Hands over what `from` has to send.
    fn transfer(from: &mut Connection, to: &mut Connection) {
        let mut sent = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut sent).unwrap();
        }
        let mut sent = &sent[..];
        while to.read_tls(&mut sent).unwrap() > 0 {
            to.process_new_packets().unwrap();
        }
    }

    /// The suite that the server agrees on with a client of `version` and `suites`, in the client's order. Text goes both ways.
    fn negotiated(is_emulated: bool, version: &'static SupportedProtocolVersion, suites: &[SupportedCipherSuite]) -> CipherSuite {
        let authority = Arc::new(Authority::generate("test").unwrap());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap()).unwrap();
        let leaves = authority.leaves(vec!["localhost".to_owned()], &[], []).unwrap();
        let server = ServerConnection::new(server_config_for(is_emulated, leaves, None).unwrap()).unwrap();
        let provider = Arc::new(CryptoProvider { cipher_suites: suites.to_vec(), ..ring::default_provider() });
        let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
        let client = ClientConnection::new(client, "localhost".try_into().unwrap()).unwrap();
        let mut ends = [Connection::from(client), Connection::from(server)];
        while ends.iter().any(|end| end.is_handshaking()) {
            let [client, server] = &mut ends;
            transfer(client, server);
            transfer(server, client);
        }
        for text in [&b"GET /v2/ HTTP/1.1"[..], &[7; 10_000]] {
            let [from, to] = &mut ends;
            from.writer().write_all(text).unwrap();
            transfer(from, to);
            let mut received = vec![0; text.len()];
            to.reader().read_exact(&mut received).unwrap();
            assert_eq!(received, text);
            ends.reverse();
        }
        ends[1].negotiated_cipher_suite().unwrap().suite()
    }

    #[test]
    fn emulated_server_chooses_chacha20_and_others_let_the_client_choose() {
        use CipherSuite as Suite;
        let all = ring::DEFAULT_CIPHER_SUITES;
        let no_chacha20 = [cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256];
        let only_chacha20 =
            [cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256];
        for (is_emulated, version, suites, expected) in [
            (false, &version::TLS13, all, Suite::TLS13_AES_256_GCM_SHA384),
            (false, &version::TLS12, all, Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
            (true, &version::TLS13, all, Suite::TLS13_CHACHA20_POLY1305_SHA256),
            (true, &version::TLS12, all, Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
            (true, &version::TLS13, &no_chacha20, Suite::TLS13_AES_128_GCM_SHA256),
            (true, &version::TLS12, &no_chacha20, Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
            (false, &version::TLS13, &only_chacha20, Suite::TLS13_CHACHA20_POLY1305_SHA256),
            (false, &version::TLS12, &only_chacha20, Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
        ] {
            assert_eq!(negotiated(is_emulated, version, suites), expected);
        }
    }
}
