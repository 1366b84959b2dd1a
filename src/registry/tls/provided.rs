//! Checks a certificate chain or a CA that the user provides, each with its key, in PEM. No error shows a key.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, Issuer, KeyIdMethod, KeyPair, PublicKeyData};
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::{Zeroize, Zeroizing};

use super::authority::Authority;
use super::error::TlsError;
use super::x509::{self, Certificate};

/// Largest certificate or key, in bytes: a hundred times the usual size.
pub const LARGEST: u64 = 256 * 1024;

/// PEM label of a key that needs a passphrase (RFC 5958, section 3).
const ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
/// The same for older key formats (RFC 1421, section 4.6.1.1).
const PROC_TYPE: &str = "Proc-Type: 4,ENCRYPTED";

/// Why a CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is no certificate.
    #[error("the certificate is not PEM with a CERTIFICATE block")]
    CertificatePem,
    /// There are several certificates.
    #[error("the certificate file has {0} certificates; expected only the one that signs")]
    Several(usize),
    /// It is not X.509.
    #[error("the certificate is not an X.509 certificate")]
    Certificate,
    /// It is not a CA certificate.
    #[error("the certificate is not a CA's; expected basic constraints with CA:TRUE (`openssl x509 -text` shows them)")]
    NotCa,
    /// Its key usage does not include signing.
    #[error("the certificate may not sign others; expected a key usage with keyCertSign, or none")]
    KeyUsage,
    /// It has expired.
    #[error("the certificate expired on {0}; make a new CA, or set this machine's clock")]
    Expired(String),
    /// It is not valid yet.
    #[error("the certificate is not valid before {0}; set this machine's clock")]
    NotYet(String),
    /// The cryptography library would write its subject differently.
    #[error(
        "the certificate's subject cannot be copied into leaves; expected each attribute once, and as a UTF8String, a PrintableString \
         or an IA5String"
    )]
    Subject,
    /// There is no key.
    #[error("the key is not PEM with one PRIVATE KEY block")]
    KeyPem,
    /// The key needs a passphrase.
    #[error("the key is encrypted; expected one without a passphrase (`openssl pkcs8 -topk8 -nocrypt` removes it)")]
    Encrypted,
    /// The key is PKCS #1 or SEC 1.
    #[error("the key is in the older form {0}; expected PKCS #8 (`openssl pkcs8 -topk8 -nocrypt` makes it)")]
    Form(&'static str),
    /// The library cannot sign with this kind of key.
    #[error("the key cannot sign; expected ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits")]
    KeyKind,
    /// The key belongs to another certificate.
    #[error("the key is not the certificate's")]
    Mismatch,
    /// A leaf cannot be signed.
    #[error(transparent)]
    Leaf(#[from] TlsError),
}

/// The leaf of a certificate chain (leaf first) with its key, both PEM; and the last certificate of the chain, which clients must trust.
/// Each certificate must be valid at `now`, if the time is known.
pub(super) fn chain(chain: &[u8], key: &[u8], now: Option<SystemTime>) -> Result<(CertifiedKey, String), TlsError> {
    let not_chain = || TlsError::Pem { what: "certificate chain", expected: "one or more CERTIFICATE blocks, the leaf first" };
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(|_| not_chain())?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| TlsError::Pem { what: "key", expected: "one PRIVATE KEY block (PKCS #8, SEC 1 or PKCS #1)" })?;
    let ca_pem = x509::pem(certificates.last().ok_or_else(not_chain)?);
    for (certificate, position) in certificates.iter().zip(1..) {
        // A certificate that cannot be parsed here is left to the clients.
        let (Some(now), Ok(certificate)) = (now, Certificate::parse(certificate)) else { continue };
        match validity(&certificate, now) {
            Validity::Valid => {}
            Validity::Expired(date) => return Err(TlsError::Expired { position, date }),
            Validity::NotYet(date) => return Err(TlsError::NotYet { position, date }),
        }
    }
    let leaf = CertifiedKey::from_der(certificates, key, &ring::default_provider()).map_err(TlsError::Pair)?;
    Ok((leaf, ca_pem))
}

/// The CA with this certificate and key, both PEM. It must be valid at `now`, if the time is known.
///
/// # Errors
/// Fails if it is not a CA, or clients would not trust its leaves.
pub fn authority(certificate: &[u8], key: &[u8], now: Option<SystemTime>) -> Result<Authority, CaError> {
    let certificate = one_certificate(certificate)?;
    let parsed = Certificate::parse(&certificate).map_err(|_| CaError::Certificate)?;
    check(&parsed, now)?;
    let key = signing_key(key)?;
    if key.subject_public_key_info() != parsed.public_key {
        return Err(CaError::Mismatch);
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = x509::name(&parsed.subject).map_err(|_| CaError::Subject)?;
    if let Some(id) = parsed.key_identifier {
        params.key_identifier_method = KeyIdMethod::PreSpecified(id);
    }
    let authority = Authority { issuer: Issuer::new(params, key), pem: x509::pem(&certificate), certificate };
    // Clients compare the issuer of a leaf with the subject of the CA byte by byte.
    let leaf = authority.leaf(&["localhost".to_owned()])?;
    let leaf = leaf.cert.first().and_then(|leaf| Certificate::parse(leaf).ok());
    if leaf.is_none_or(|leaf| leaf.issuer != parsed.subject) {
        return Err(CaError::Subject);
    }
    Ok(authority)
}

/// A new CA in PEM.
#[derive(Debug)]
pub struct NewCa {
    /// The certificate.
    pub certificate: String,
    /// The key, PKCS #8.
    pub key: Zeroizing<String>,
}

/// Generates a CA to be stored, named as by [`Authority::generate`].
///
/// # Errors
/// Fails if the cryptography library does.
pub fn generate(name: &str) -> Result<NewCa, TlsError> {
    let authority = Authority::generate(name)?;
    let key = Zeroizing::new(authority.issuer.key().serialize_pem());
    Ok(NewCa { certificate: authority.pem, key })
}

fn one_certificate(pem: &[u8]) -> Result<CertificateDer<'static>, CaError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let mut certificates = certificates.map_err(|_| CaError::CertificatePem)?;
    match (certificates.pop(), certificates.len()) {
        (None, _) => Err(CaError::CertificatePem),
        (Some(one), 0) => Ok(one),
        (Some(_), more) => Err(CaError::Several(more + 1)),
    }
}

/// Checks that the certificate may sign others at `now`.
fn check(certificate: &Certificate, now: Option<SystemTime>) -> Result<(), CaError> {
    if !certificate.is_ca {
        return Err(CaError::NotCa);
    }
    if certificate.may_sign == Some(false) {
        return Err(CaError::KeyUsage);
    }
    match now.map_or(Validity::Valid, |now| validity(certificate, now)) {
        Validity::Valid => Ok(()),
        Validity::Expired(date) => Err(CaError::Expired(date)),
        Validity::NotYet(date) => Err(CaError::NotYet(date)),
    }
}

/// Whether a certificate is valid; otherwise since when or from when on, as text.
enum Validity {
    Valid,
    Expired(String),
    NotYet(String),
}

fn validity(certificate: &Certificate, now: SystemTime) -> Validity {
    let (now, (start, end)) = (seconds(now), certificate.validity);
    if now > end {
        Validity::Expired(date(end))
    } else if now < start {
        Validity::NotYet(date(start))
    } else {
        Validity::Valid
    }
}

/// A time in seconds since 1970. Earlier times count as 1970.
fn seconds(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

/// A time in seconds since 1970, as text. Earlier times count as 1970.
fn date(seconds: i64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

fn signing_key(pem: &[u8]) -> Result<KeyPair, CaError> {
    let text = str::from_utf8(pem).map_err(|_| CaError::KeyPem)?;
    if text.contains(ENCRYPTED) || text.contains(PROC_TYPE) {
        return Err(CaError::Encrypted);
    }
    let mut der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| CaError::KeyPem)?;
    let key = match &der {
        PrivateKeyDer::Pkcs8(_) => KeyPair::try_from(&der).map_err(|_| CaError::KeyKind),
        PrivateKeyDer::Pkcs1(_) => Err(CaError::Form("RSA PRIVATE KEY (PKCS #1)")),
        PrivateKeyDer::Sec1(_) => Err(CaError::Form("EC PRIVATE KEY (SEC 1)")),
        _ => Err(CaError::KeyKind),
    };
    der.zeroize();
    key
}

#[cfg(test)]
mod tests {
    use rcgen::date_time_ymd;

    use super::*;

    #[test]
    fn pem_of_the_chain_and_key_is_checked() {
        let one = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["b.test".to_owned()]).unwrap();
        let (pem, key) = (one.cert.pem(), one.signing_key.serialize_pem());
        let (_, trust) = chain(pem.as_bytes(), key.as_bytes(), None).unwrap();
        assert_eq!(trust.replace('\r', ""), pem.replace('\r', ""));
        let error = |pem: &str, key: &str| chain(pem.as_bytes(), key.as_bytes(), None).map(drop).unwrap_err().to_string();
        assert_eq!(
            error("nonsense", &key),
            "the given certificate chain is not PEM with one or more CERTIFICATE blocks, the leaf first"
        );
        assert_eq!(error(&pem, "nonsense"), "the given key is not PEM with one PRIVATE KEY block (PKCS #8, SEC 1 or PKCS #1)");
        assert_eq!(error(&pem, &other.signing_key.serialize_pem()), "the given certificate chain and key do not go together");
    }

    #[test]
    fn chain_outside_its_validity_is_refused_if_the_time_is_known() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["a.test".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1));
        let pem = params.self_signed(&key).unwrap().pem();
        let at = |seconds| {
            let now = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            chain(pem.as_bytes(), key.serialize_pem().as_bytes(), now).map(drop).map_err(|error| error.to_string())
        };
        let late = "certificate 1 of the given chain expired on Mon, 01 Jan 2001 00:00:00 GMT; make a new one, or set this machine's clock";
        let early =
            "certificate 1 of the given chain is not valid before Sat, 01 Jan 2000 00:00:00 GMT; set this machine's clock";
        assert_eq!(at(946_684_799), Err(early.to_owned()));
        assert_eq!((at(946_684_800), at(978_307_200)), (Ok(()), Ok(())));
        assert_eq!(at(978_307_201), Err(late.to_owned()));
        chain(pem.as_bytes(), key.serialize_pem().as_bytes(), None).unwrap();
    }
}
