//! Certificates and TLS. A CA is made in memory and signs a leaf for every name that the registry answers to; or a chain and its key
//! are given. The keys never leave this module.

pub mod provided;
mod x509;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::SystemTime;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, NoClientAuth, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

use super::auth::client_certificate::ClientCa;
use crate::address::is_wildcard;
use x509::Certificate;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key could not be made.
    #[error("cannot make a certificate for {subject}")]
    Make {
        /// Who it was for.
        subject: String,
        /// Why.
        #[source]
        cause: rcgen::Error,
    },
    /// A name that no certificate can carry.
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Name(String),
    /// PEM that is none.
    #[error("the given {what} is not PEM with {expected}")]
    Pem {
        /// Which of the two files.
        what: &'static str,
        /// What is expected in it.
        expected: &'static str,
    },
    /// The key is not the certificate's, or of a kind that TLS cannot use.
    #[error("the given certificate chain and key do not go together")]
    Pair(#[source] rustls::Error),
    /// A certificate that is over.
    #[error("certificate {place} of the given chain expired on {date}; make a new one, or set this machine's clock")]
    Expired {
        /// Its place, from 1.
        place: usize,
        /// When.
        date: String,
    },
    /// A certificate that has not begun.
    #[error("certificate {place} of the given chain is valid from {date} on only; set this machine's clock")]
    NotYet {
        /// Its place, from 1.
        place: usize,
        /// From when on.
        date: String,
    },
    /// The TLS library refused its settings.
    #[error("cannot set TLS up")]
    Config(#[source] rustls::Error),
}

/// A certificate authority: made here, to live as long as the process, or given ([`mod@provided`]).
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl fmt::Debug for Authority {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("pem", &self.pem).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a CA with a new ECDSA P-256 key. `name` and part of the key's digest are its common name, so that the CAs of two
    /// appliances in one trust store are told apart.
    ///
    /// # Errors
    /// [`TlsError::Make`].
    pub fn generate(name: &str) -> Result<Self, TlsError> {
        let made = |cause| TlsError::Make { subject: format!("the CA of {name}"), cause };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
        let fingerprint = crate::oci::Digest::sha256_of(key.public_key_raw()).hex();
        let mut params = validity(CertificateParams::default());
        let fingerprint = fingerprint.get(..8).unwrap_or_default();
        params.distinguished_name.push(DnType::CommonName, format!("{name} CA {fingerprint}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(made)?;
        let pem = certificate.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate: certificate.into(), pem })
    }

    /// The CA's certificate, PEM: what nodes have to trust.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.pem
    }

    /// TLS with a leaf for `names` (DNS names and IP addresses; the first one is its common name). A client that asks by SNI for
    /// one of `upstreams` gets a leaf for that host, made when it is first asked for. `clients` is the CA of clients' certificates.
    ///
    /// # Errors
    /// [`TlsError`], where a name cannot be in a certificate.
    pub fn server_config(
        self: &Arc<Self>,
        names: &[String],
        upstreams: impl IntoIterator<Item = String>,
        clients: Option<&ClientCa>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        self.leaves(names, upstreams)?.server_config(clients)
    }

    /// The same leaves, of which the first can be replaced while they are served.
    ///
    /// # Errors
    /// [`TlsError`], where a name cannot be in a certificate.
    pub fn leaves(
        self: &Arc<Self>,
        names: &[String],
        upstreams: impl IntoIterator<Item = String>,
    ) -> Result<Arc<Leaves>, TlsError> {
        let default = RwLock::new(Arc::new(self.leaf(names)?));
        let leaves = Leaves { authority: Arc::clone(self), default, minted: RwLock::default() };
        leaves.stand_in(upstreams);
        Ok(Arc::new(leaves))
    }

    fn leaf(&self, names: &[String]) -> Result<CertifiedKey, TlsError> {
        let subject = names.first().cloned().unwrap_or_default();
        let made = |cause| TlsError::Make { subject: subject.clone(), cause };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
        let mut params = validity(CertificateParams::default());
        params.distinguished_name.push(DnType::CommonName, subject.as_str());
        for name in names {
            let name = alternative_name(name)?;
            if !params.subject_alt_names.contains(&name) {
                params.subject_alt_names.push(name);
            }
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // A strict client refuses a leaf that does not name its issuer's key.
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(made)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(TlsError::Pair)
    }
}

/// From 1970 to the end of the year 9999, which RFC 5280 (section 4.1.2.5) means to say "no end": nodes of a test cluster boot without
/// a clock, or with one set years ahead on purpose, and the CA is gone with its appliance anyway.
fn validity(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(9999, 12, 31);
    params
}

fn alternative_name(name: &str) -> Result<SanType, TlsError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let host = || name.parse::<crate::oci::Host>().ok().filter(|host| host.name() == host.as_str());
    let plain = if is_wildcard(name) { Some(name.to_ascii_lowercase()) } else { host().map(|host| host.to_string()) };
    let dns = plain.and_then(|plain| Ia5String::try_from(plain).ok());
    dns.map(SanType::DnsName).ok_or_else(|| TlsError::Name(name.to_owned()))
}

/// Leaves of one authority: the default one, and those minted for upstream hosts.
#[derive(Debug)]
pub struct Leaves {
    authority: Arc<Authority>,
    /// Read once in each handshake, and written where the machine's addresses change.
    default: RwLock<Arc<CertifiedKey>>,
    /// Read once in each handshake with SNI, and written where a disk brings more hosts.
    minted: RwLock<HashMap<String, Minted>>,
}

/// A leaf, made when it is first asked for; none where it cannot be made.
type Minted = Arc<OnceLock<Option<Arc<CertifiedKey>>>>;

impl Leaves {
    /// TLS with these leaves. `clients` is the CA of clients' certificates.
    ///
    /// # Errors
    /// [`TlsError::Config`].
    pub fn server_config(self: &Arc<Self>, clients: Option<&ClientCa>) -> Result<Arc<ServerConfig>, TlsError> {
        config(Arc::clone(self) as _, clients)
    }

    /// Has clients that ask by SNI for one of `upstreams` get a leaf for that host, from now on. Others keep theirs.
    pub fn stand_in(&self, upstreams: impl IntoIterator<Item = String>) {
        let mut minted = self.minted.write().unwrap_or_else(PoisonError::into_inner);
        for host in upstreams {
            minted.entry(host).or_default();
        }
    }

    /// The place of the leaf for `host`.
    fn minted(&self, host: &str) -> Option<Minted> {
        self.minted.read().unwrap_or_else(PoisonError::into_inner).get(host).cloned()
    }

    /// Has handshakes from now on get a leaf for `names` in the place of the default one.
    ///
    /// # Errors
    /// [`TlsError`], where a name cannot be in a certificate: the leaf stays as it was.
    pub fn rename(&self, names: &[String]) -> Result<(), TlsError> {
        let leaf = Arc::new(self.authority.leaf(names)?);
        *self.default.write().unwrap_or_else(PoisonError::into_inner) = leaf;
        Ok(())
    }
}

impl ResolvesServerCert for Leaves {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name().and_then(|name| Some((name, self.minted(name)?)));
        let minted = asked.and_then(|(name, place)| {
            let mint = || self.authority.leaf(&[name.to_owned()]).ok().map(Arc::new);
            place.get_or_init(mint).clone()
        });
        Some(minted.unwrap_or_else(|| Arc::clone(&self.default.read().unwrap_or_else(PoisonError::into_inner))))
    }
}

/// TLS with a given chain and key, PEM; and the certificate that nodes should trust: the chain's last, PEM. `clients` is the CA of
/// clients' certificates. Whether the chain is valid is looked at where the time is known: `now`.
///
/// # Errors
/// [`TlsError`], where either is not PEM, they do not go together, or a certificate of the chain is not valid `now`.
pub fn provided(
    chain: &[u8],
    key: &[u8],
    clients: Option<&ClientCa>,
    now: Option<SystemTime>,
) -> Result<(Arc<ServerConfig>, String), TlsError> {
    let not_chain = || TlsError::Pem { what: "certificate chain", expected: "one or more CERTIFICATE blocks, the leaf first" };
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(|_| not_chain())?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| TlsError::Pem { what: "key", expected: "one PRIVATE KEY block (PKCS #8, SEC 1 or PKCS #1)" })?;
    let trust = pem_of(certificates.last().ok_or_else(not_chain)?);
    if let Some(now) = now {
        certificates.iter().zip(1..).try_for_each(|(certificate, place)| valid(certificate, place, now))?;
    }
    let leaf = CertifiedKey::from_der(certificates, key, &ring::default_provider()).map_err(TlsError::Pair)?;
    Ok((config(Arc::new(rustls::sign::SingleCertAndKey::from(leaf)), clients)?, trust))
}

/// The first of `names` (DNS names, wildcards and IP addresses) that the leaf of `chain` (PEM, the leaf first) is not for: by its subject
/// alternative names alone, as clients look at it (RFC 9525, section 6.3).
#[must_use]
pub fn lacking<'n>(chain: &[u8], names: &'n [String]) -> Option<&'n String> {
    let leaf = CertificateDer::pem_slice_iter(chain).next().and_then(Result::ok);
    let leaf = leaf.as_ref().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
    let is_for = |name: &str| {
        // A wildcard is for any label.
        let name = name.strip_prefix("*.").map_or_else(|| name.to_owned(), |below| format!("any.{below}"));
        let (Some(leaf), Ok(name)) = (&leaf, ServerName::try_from(name)) else { return false };
        verify_server_name(leaf, &name).is_ok()
    };
    names.iter().find(|name| !is_for(name))
}

/// Whether the certificate is valid `now`. One that cannot be parsed is left to those who use it.
fn valid(certificate: &CertificateDer<'_>, place: usize, now: SystemTime) -> Result<(), TlsError> {
    let Ok(Certificate { validity: (begins, ends), .. }) = Certificate::parse(certificate) else { return Ok(()) };
    let now = provided::seconds(now);
    if now > ends {
        return Err(TlsError::Expired { place, date: provided::date(ends) });
    }
    if now < begins {
        return Err(TlsError::NotYet { place, date: provided::date(begins) });
    }
    Ok(())
}

/// The certificates in `pem`, as PEM with nothing else in it.
///
/// # Errors
/// [`TlsError::Pem`], where there is none.
pub fn certificates(pem: &[u8]) -> Result<String, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.ok().filter(|certificates| !certificates.is_empty());
    let certificates = certificates.ok_or(TlsError::Pem { what: "CA", expected: "one or more CERTIFICATE blocks" })?;
    Ok(certificates.iter().map(pem_of).collect())
}

fn pem_of(certificate: &CertificateDer<'_>) -> String {
    let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate.to_vec()), lines)
}

/// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN, sessions resumed with tickets.
fn config(certificates: Arc<dyn ResolvesServerCert>, clients: Option<&ClientCa>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let verifier = clients.map_or_else(|| Arc::new(NoClientAuth) as _, ClientCa::verifier);
    let builder = builder.map_err(TlsError::Config)?.with_client_cert_verifier(verifier);
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = ring::Ticketer::new().map_err(TlsError::Config)?;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_leaves_for_names_and_addresses_only() {
        let authority = Arc::new(Authority::generate("test").unwrap());
        assert!(authority.ca_pem().starts_with("-----BEGIN CERTIFICATE-----"));
        let names = ["registry.test", "10.1.0.82", "::1"].map(str::to_owned);
        authority.server_config(&names, [], None).unwrap();
        for bad in ["", "a b", "x:5000", "é.test", "*.test"] {
            let error = authority.server_config(&[bad.to_owned()], [], None).unwrap_err();
            assert_eq!(error.to_string(), format!("{bad:?} is neither a DNS name nor an IP address"));
        }
    }

    #[test]
    fn a_given_certificate_is_for_its_alternative_names_only() {
        let names = ["registry.test", "*.example.test", "10.1.0.82", "fd00::82"].map(str::to_owned);
        let given = rcgen::generate_simple_self_signed(names).unwrap().cert.pem();
        let is_for = |name: &str| lacking(given.as_bytes(), &[name.to_owned()]).is_none();
        for name in ["registry.test", "REGISTRY.test", "a.example.test", "*.example.test", "10.1.0.82", "fd00::82"] {
            assert!(is_for(name), "{name}");
        }
        for name in ["other.test", "*.registry.test", "example.test", "a.b.example.test", "10.1.0.83", "fd00::83", "", "a b"] {
            assert!(!is_for(name), "{name}");
        }
        assert!(lacking(b"", &["registry.test".to_owned()]).is_some());
    }

    #[test]
    fn the_default_leaf_is_replaced_where_the_new_names_are_good() {
        let leaves = Arc::new(Authority::generate("test").unwrap()).leaves(&["a.test".to_owned()], []).unwrap();
        let served = || leaves.default.read().unwrap().cert[0].clone();
        let first = served();
        assert!(leaves.rename(&["a b".to_owned()]).is_err());
        assert_eq!(served(), first);
        leaves.rename(&["10.1.0.82".to_owned()]).unwrap();
        assert_ne!(served(), first);
    }

    #[test]
    fn hosts_that_come_later_get_leaves_too() {
        let authority = Arc::new(Authority::generate("test").unwrap());
        let leaves = authority.leaves(&["a.test".to_owned()], ["docker.io".to_owned()]).unwrap();
        let first = leaves.minted("docker.io").unwrap();
        assert!(leaves.minted("quay.io").is_none());
        leaves.stand_in(["quay.io", "docker.io"].map(str::to_owned));
        assert!(leaves.minted("quay.io").is_some());
        assert!(Arc::ptr_eq(&first, &leaves.minted("docker.io").unwrap()), "its leaf stays");
    }

    #[test]
    fn given_pem_is_checked() {
        let one = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["b.test".to_owned()]).unwrap();
        let (pem, key) = (one.cert.pem(), one.signing_key.serialize_pem());
        let (_, trust) = provided(pem.as_bytes(), key.as_bytes(), None, None).unwrap();
        assert_eq!(trust.replace('\r', ""), pem.replace('\r', ""));
        let say = |chain: &str, key: &str| provided(chain.as_bytes(), key.as_bytes(), None, None).unwrap_err().to_string();
        assert_eq!(
            say("nonsense", &key),
            "the given certificate chain is not PEM with one or more CERTIFICATE blocks, the leaf first"
        );
        assert_eq!(say(&pem, "nonsense"), "the given key is not PEM with one PRIVATE KEY block (PKCS #8, SEC 1 or PKCS #1)");
        assert_eq!(say(&pem, &other.signing_key.serialize_pem()), "the given certificate chain and key do not go together");
    }

    #[test]
    fn a_chain_that_is_over_or_has_not_begun_is_refused_where_the_time_is_known() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["a.test".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1));
        let chain = params.self_signed(&key).unwrap().pem();
        let at = |seconds| {
            let now = Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds));
            provided(chain.as_bytes(), key.serialize_pem().as_bytes(), None, now).map(drop).map_err(|error| error.to_string())
        };
        let late = "certificate 1 of the given chain expired on Mon, 01 Jan 2001 00:00:00 GMT; make a new one, or set this machine's clock";
        let early =
            "certificate 1 of the given chain is valid from Sat, 01 Jan 2000 00:00:00 GMT on only; set this machine's clock";
        assert_eq!(at(946_684_799), Err(early.to_owned()));
        assert_eq!((at(946_684_800), at(978_307_200)), (Ok(()), Ok(())));
        assert_eq!(at(978_307_201), Err(late.to_owned()));
        provided(chain.as_bytes(), key.serialize_pem().as_bytes(), None, None).unwrap();
    }
}
