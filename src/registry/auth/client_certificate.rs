//! Client certificates (mTLS): a CA in PEM becomes a verifier for the TLS listener. What a certificate says of its holder is not
//! looked at: whoever has one of this CA is let in.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Largest file with client CAs, in bytes.
pub const LARGEST: u64 = 1 << 20;

/// Why a CA of clients' certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientCaError {
    /// PEM that is none.
    #[error("the given client CA is not PEM with one or more CERTIFICATE blocks")]
    Pem,
    /// It is no CA.
    #[error("the given client CA is not a certificate that can sign clients' certificates")]
    NoCa(#[source] rustls::Error),
    /// The TLS library refused it.
    #[error("clients' certificates cannot be verified with the given client CA")]
    Verifier(#[source] VerifierBuilderError),
}

/// Whether a client has to have a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It may: then no credentials are asked of it. A wrong certificate is refused all the same.
    Optional,
    /// It must, and credentials are asked of it besides.
    Required,
}

/// Who signs clients' certificates.
#[derive(Debug, Clone)]
pub struct ClientCa {
    verifier: Arc<dyn ClientCertVerifier>,
    presence: Presence,
}

impl ClientCa {
    /// One or more CA certificates, PEM.
    ///
    /// # Errors
    /// [`ClientCaError`], where there is no certificate in the text, or one that signs nothing.
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

    /// Whether a client has to have a certificate.
    #[must_use]
    pub fn presence(&self) -> Presence {
        self.presence
    }

    /// For the TLS listener.
    pub(crate) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_is_checked() {
        let one = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap().cert.pem();
        for presence in [Presence::Optional, Presence::Required] {
            let parsed = ClientCa::parse(one.as_bytes(), presence).unwrap();
            assert_eq!(parsed.verifier().client_auth_mandatory(), presence == Presence::Required);
        }
        let say = |text: &str| ClientCa::parse(text.as_bytes(), Presence::Required).unwrap_err();
        for text in ["", "nonsense", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            assert_eq!(say(text).to_string(), "the given client CA is not PEM with one or more CERTIFICATE blocks");
        }
        let junk = say("-----BEGIN CERTIFICATE-----\nanVuaw==\n-----END CERTIFICATE-----\n");
        assert_eq!(junk.to_string(), "the given client CA is not a certificate that can sign clients' certificates");
    }
}
