//! Verifies client certificates (mTLS). Every certificate of the client CA is accepted, whatever its subject.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Largest file with client CAs, in bytes.
pub const LARGEST: u64 = 1 << 20;

/// Why a client CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientCaError {
    /// The file is not PEM with certificates.
    #[error("the given client CA is not PEM with one or more CERTIFICATE blocks")]
    Pem,
    /// A certificate cannot be a trust anchor.
    #[error("the given client CA is not a certificate that can sign clients' certificates")]
    NoCa(#[source] rustls::Error),
    /// The TLS library refused the certificates.
    #[error("clients' certificates cannot be verified with the given client CA")]
    Verifier(#[source] VerifierBuilderError),
}

/// Whether clients need a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// A valid certificate replaces credentials. An invalid one is refused.
    Optional,
    /// Every client needs a certificate, and credentials in addition.
    Required,
}

/// The CA that signs client certificates.
#[derive(Debug, Clone)]
pub struct ClientCa {
    verifier: Arc<dyn ClientCertVerifier>,
    presence: Presence,
}

impl ClientCa {
    /// Parses one or more CA certificates in PEM.
    ///
    /// # Errors
    /// Fails if `pem` has no certificate, or one cannot be a trust anchor.
    pub fn parse(pem: &[u8], presence: Presence) -> Result<Self, ClientCaError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.map_err(|_| ClientCaError::Pem)?).map_err(ClientCaError::NoCa)?;
        }
        if roots.is_empty() {
            return Err(ClientCaError::Pem);
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()));
        let builder = match presence {
            Presence::Optional => builder.allow_unauthenticated(),
            Presence::Required => builder,
        };
        let verifier = builder.build().map_err(ClientCaError::Verifier)?;
        Ok(Self { verifier, presence })
    }

    /// Whether clients need a certificate.
    #[must_use]
    pub fn presence(&self) -> Presence {
        self.presence
    }

    pub(crate) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_ca_must_be_pem_with_certificates() {
        let one = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap().cert.pem();
        for presence in [Presence::Optional, Presence::Required] {
            let parsed = ClientCa::parse(one.as_bytes(), presence).unwrap();
            assert_eq!(parsed.verifier().client_auth_mandatory(), presence == Presence::Required);
        }
        let error = |text: &str| ClientCa::parse(text.as_bytes(), Presence::Required).unwrap_err();
        for text in ["", "nonsense", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            assert_eq!(error(text).to_string(), "the given client CA is not PEM with one or more CERTIFICATE blocks");
        }
        let junk = error("-----BEGIN CERTIFICATE-----\nanVuaw==\n-----END CERTIFICATE-----\n");
        assert_eq!(junk.to_string(), "the given client CA is not a certificate that can sign clients' certificates");
    }
}
