//! A CA that was given. Its certificate and key enter as PEM, an [`Authority`] leaves that signs with them, or one reason why it
//! cannot. The key is in no error.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, Issuer, KeyIdMethod, KeyPair, PublicKeyData};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::{Zeroize, Zeroizing};

use super::x509::{self, Certificate};
use super::{Authority, TlsError};

/// Largest certificate or key, in bytes: a hundred times the usual.
pub const LARGEST: u64 = 256 * 1024;

/// A label of PEM (RFC 5958, section 3) whose content only its passphrase opens.
const ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
/// The header (RFC 1421, section 4.6.1.1) that says the same of older forms.
const PROC_TYPE: &str = "Proc-Type: 4,ENCRYPTED";

/// Why a CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// No certificate.
    #[error("the certificate is not PEM with a CERTIFICATE block")]
    CertificatePem,
    /// More than the CA's.
    #[error("the certificate file has {0} certificates; the one that is to sign is expected, and no other")]
    Several(usize),
    /// No X.509.
    #[error("the certificate is not an X.509 certificate")]
    Certificate,
    /// Not a CA's.
    #[error("the certificate is not a CA's; expected basic constraints with CA:TRUE (`openssl x509 -text` shows them)")]
    NotCa,
    /// A CA's, and not for this.
    #[error("the certificate may not sign others; expected a key usage with keyCertSign, or none")]
    KeyUsage,
    /// Over.
    #[error("the certificate expired on {0}; make a new CA, or set this machine's clock")]
    Expired(String),
    /// Not begun.
    #[error("the certificate is valid from {0} on only; set this machine's clock")]
    NotYet(String),
    /// A name that the library would write differently.
    #[error(
        "the certificate's subject cannot be repeated as an issuer; expected one where no attribute stands twice and each is text (a \
         UTF8String, a PrintableString or an IA5String)"
    )]
    Subject,
    /// No key.
    #[error("the key is not PEM with one PRIVATE KEY block")]
    KeyPem,
    /// A key behind a passphrase.
    #[error("the key is encrypted; expected without a passphrase (`openssl pkcs8 -topk8 -nocrypt` takes it off)")]
    Encrypted,
    /// PKCS #1 or SEC 1.
    #[error("the key is in the older form {0}; expected PKCS #8 (`openssl pkcs8 -topk8 -nocrypt` makes it)")]
    Form(&'static str),
    /// A kind of key that nothing here signs with.
    #[error("the key cannot sign; expected ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits")]
    KeyKind,
    /// Of another.
    #[error("the key is not the certificate's")]
    Mismatch,
    /// A leaf that cannot be signed.
    #[error(transparent)]
    Leaf(#[from] TlsError),
}

/// The authority of the CA with this certificate and key, both PEM. `now` is held against its validity, where a clock is to be
/// trusted.
///
/// # Errors
/// [`CaError`], where it is no CA, or what it signs would not be trusted.
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
    let authority = Authority { issuer: Issuer::new(params, key), pem: super::pem_of(&certificate), certificate };
    // Clients find the issuer of a leaf by its name, byte for byte.
    let leaf = authority.leaf(&["localhost".to_owned()])?;
    let leaf = leaf.cert.first().and_then(|leaf| Certificate::parse(leaf).ok());
    if leaf.is_none_or(|leaf| leaf.issuer != parsed.subject) {
        return Err(CaError::Subject);
    }
    Ok(authority)
}

/// A new CA as its two PEM texts.
#[derive(Debug)]
pub struct Made {
    /// The certificate.
    pub certificate: String,
    /// The key, PKCS #8.
    pub key: Zeroizing<String>,
}

/// Makes a CA that is to be kept, named as [`Authority::generate`] names it.
///
/// # Errors
/// [`TlsError::Make`].
pub fn make(name: &str) -> Result<Made, TlsError> {
    let authority = Authority::generate(name)?;
    let key = Zeroizing::new(authority.issuer.key().serialize_pem());
    Ok(Made { certificate: authority.pem, key })
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

/// Whether the certificate may sign others, at `now`.
fn check(certificate: &Certificate, now: Option<SystemTime>) -> Result<(), CaError> {
    if !certificate.is_ca {
        return Err(CaError::NotCa);
    }
    if certificate.may_sign == Some(false) {
        return Err(CaError::KeyUsage);
    }
    let Some(now) = now.map(seconds) else { return Ok(()) };
    let (begins, ends) = certificate.validity;
    if now > ends {
        return Err(CaError::Expired(date(ends)));
    }
    if now < begins {
        return Err(CaError::NotYet(date(begins)));
    }
    Ok(())
}

/// A time in seconds since 1970; what lies before is not told from 1970.
pub(crate) fn seconds(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

/// A time in seconds since 1970, in words; what lies before is not told from 1970.
pub(crate) fn date(seconds: i64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

fn signing_key(pem: &[u8]) -> Result<KeyPair, CaError> {
    let text = str::from_utf8(pem).map_err(|_| CaError::KeyPem)?;
    if text.contains(ENCRYPTED) || text.contains(PROC_TYPE) {
        return Err(CaError::Encrypted);
    }
    let mut given = PrivateKeyDer::from_pem_slice(pem).map_err(|_| CaError::KeyPem)?;
    let key = match &given {
        PrivateKeyDer::Pkcs8(_) => KeyPair::try_from(&given).map_err(|_| CaError::KeyKind),
        PrivateKeyDer::Pkcs1(_) => Err(CaError::Form("RSA PRIVATE KEY (PKCS #1)")),
        PrivateKeyDer::Sec1(_) => Err(CaError::Form("EC PRIVATE KEY (SEC 1)")),
        _ => Err(CaError::KeyKind),
    };
    given.zeroize();
    key
}
