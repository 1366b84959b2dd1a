//! A certificate authority, and the leaves that it signs.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::error::TlsError;
use super::server_config::server_config;
use crate::address::is_wildcard;
use crate::registry::auth::client_certificate::ClientCa;

/// A certificate authority: generated for the lifetime of the process, or provided ([`mod@super::provided`]).
pub struct Authority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) pem: String,
}

impl fmt::Debug for Authority {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("pem", &self.pem).finish_non_exhaustive()
    }
}

impl Authority {
    /// Generates a CA with a new ECDSA P-256 key. Its common name holds `name` and part of the key's digest, so that several CAs in one
    /// trust store can be told apart.
    ///
    /// # Errors
    /// Fails if the cryptography library does.
    pub fn generate(name: &str) -> Result<Self, TlsError> {
        let failed = |cause| TlsError::Make { subject: format!("the CA of {name}"), cause };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let fingerprint = crate::oci::Digest::sha256_of(key.public_key_raw()).hex();
        let mut params = validity(CertificateParams::default());
        let fingerprint = fingerprint.get(..8).unwrap_or_default();
        params.distinguished_name.push(DnType::CommonName, format!("{name} CA {fingerprint}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(failed)?;
        let pem = certificate.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate: certificate.into(), pem })
    }

    /// The CA certificate that nodes must trust, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.pem
    }

    /// TLS settings with leaves as [`Authority::leaves`] makes them. Client certificates are verified with `clients`.
    ///
    /// # Errors
    /// Fails if a name cannot be in a certificate.
    pub fn server_config(
        self: &Arc<Self>,
        names: &[String],
        upstreams: impl IntoIterator<Item = String>,
        clients: Option<&ClientCa>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        self.leaves(names.to_vec(), &[], upstreams)?.server_config(clients)
    }

    /// Signs a leaf for `names` (DNS names and IP addresses; the first is its common name) and `addresses`. A client that asks by SNI for
    /// one of `upstreams` gets a leaf for that host, signed when it is first asked for.
    ///
    /// # Errors
    /// Fails if a name cannot be in a certificate.
    pub fn leaves(
        self: &Arc<Self>,
        names: Vec<String>,
        addresses: &[IpAddr],
        upstreams: impl IntoIterator<Item = String>,
    ) -> Result<Arc<Leaves>, TlsError> {
        let default = RwLock::new(Arc::new(self.leaf(&with_addresses(&names, addresses))?));
        let leaves = Leaves { authority: Arc::clone(self), names, default, upstreams: RwLock::default() };
        leaves.add_upstreams(upstreams);
        Ok(Arc::new(leaves))
    }

    pub(super) fn leaf(&self, names: &[String]) -> Result<CertifiedKey, TlsError> {
        self.leaf_with(names, validity(CertificateParams::default()))
    }

    /// A leaf whose validity is that of `params`.
    pub(super) fn leaf_with(&self, names: &[String], mut params: CertificateParams) -> Result<CertifiedKey, TlsError> {
        let subject = names.first().cloned().unwrap_or_default();
        let failed = |cause| TlsError::Make { subject: subject.clone(), cause };
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?);
        params.distinguished_name.push(DnType::CommonName, subject.as_str());
        for name in names {
            let name = alternative_name(name)?;
            if !params.subject_alt_names.contains(&name) {
                params.subject_alt_names.push(name);
            }
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Strict clients refuse a leaf that does not identify its issuer's key.
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&*key, &self.issuer).map_err(failed)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        // The provider overwrites its copy, too.
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(TlsError::Pair)
    }
}

/// Valid from 1970 to the end of 9999, which means "no end" (RFC 5280, section 4.1.2.5): nodes of a test cluster boot without a clock, or
/// with one set years ahead on purpose.
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
    let dns = if is_wildcard(name) { Some(name.to_ascii_lowercase()) } else { host().map(|host| host.to_string()) };
    let dns = dns.and_then(|dns| Ia5String::try_from(dns).ok());
    dns.map(SanType::DnsName).ok_or_else(|| TlsError::Name(name.to_owned()))
}

fn with_addresses(names: &[String], addresses: &[IpAddr]) -> Vec<String> {
    names.iter().cloned().chain(addresses.iter().map(ToString::to_string)).collect()
}

/// The leaves of an authority: a default one, and one for each upstream host. They can change while they are served.
#[derive(Debug)]
pub struct Leaves {
    authority: Arc<Authority>,
    /// The names of the default leaf besides the machine's addresses.
    names: Vec<String>,
    /// Read in each handshake. Written when the machine's addresses change.
    default: RwLock<Arc<CertifiedKey>>,
    /// Read in each handshake with SNI. Written when a disk brings more hosts.
    upstreams: RwLock<HashMap<String, LazyLeaf>>,
}

/// A leaf that is signed on first use. `None` inside means that signing failed.
type LazyLeaf = Arc<OnceLock<Option<Arc<CertifiedKey>>>>;

impl Leaves {
    /// The authority that signs them.
    #[must_use]
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// TLS settings with these leaves. Client certificates are verified with `clients`.
    ///
    /// # Errors
    /// Fails if the TLS library does.
    pub fn server_config(self: &Arc<Self>, clients: Option<&ClientCa>) -> Result<Arc<ServerConfig>, TlsError> {
        server_config(Arc::clone(self) as _, clients)
    }

    /// From now on, serves a leaf for each of `upstreams`, too. Existing leaves stay.
    pub fn add_upstreams(&self, upstreams: impl IntoIterator<Item = String>) {
        let mut leaves = self.upstreams.write().unwrap_or_else(PoisonError::into_inner);
        for host in upstreams {
            leaves.entry(host).or_default();
        }
    }

    fn upstream(&self, host: &str) -> Option<LazyLeaf> {
        self.upstreams.read().unwrap_or_else(PoisonError::into_inner).get(host).cloned()
    }

    /// From now on, serves a default leaf for its names and `addresses`.
    ///
    /// # Errors
    /// Fails if the leaf cannot be signed. The old one stays.
    pub fn set_addresses(&self, addresses: &[IpAddr]) -> Result<(), TlsError> {
        let leaf = Arc::new(self.authority.leaf(&with_addresses(&self.names, addresses))?);
        *self.default.write().unwrap_or_else(PoisonError::into_inner) = leaf;
        Ok(())
    }
}

impl ResolvesServerCert for Leaves {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let upstream = hello.server_name().and_then(|name| {
            let sign = || self.authority.leaf(&[name.to_owned()]).ok().map(Arc::new);
            self.upstream(name)?.get_or_init(sign).clone()
        });
        Some(upstream.unwrap_or_else(|| Arc::clone(&self.default.read().unwrap_or_else(PoisonError::into_inner))))
    }
}

#[cfg(test)]
mod tests {
    use rustls::client::verify_server_name;
    use rustls::server::ParsedCertificate;

    use super::*;
    use crate::registry::tls::Identity;

    fn covers(leaf: &CertificateDer<'_>, name: &str) -> bool {
        verify_server_name(&ParsedCertificate::try_from(leaf).unwrap(), &name.to_owned().try_into().unwrap()).is_ok()
    }

    #[test]
    fn signed_identity_covers_each_name_and_address_once() {
        let names = ["reg", "r.example.test", "localhost"].map(str::to_owned);
        let addresses = ["10.0.2.15", "fec0::5", "::1"].map(|address| address.parse().unwrap());
        let authority = Authority::generate("test").unwrap();
        let leaves = Identity::signed(authority, names, &addresses, [], None).unwrap().leaves.unwrap();
        let leaf = leaves.default.read().unwrap().cert[0].clone();
        for name in ["reg", "r.example.test", "localhost", "127.0.0.1", "::1", "10.0.2.15", "fec0::5"] {
            assert!(covers(&leaf, name), "{name}");
        }
        assert!(!covers(&leaf, "127.0.0.2"));
        assert_eq!(leaf.windows(9).filter(|bytes| *bytes == b"localhost").count(), 1);
    }

    #[test]
    fn leaf_names_must_be_dns_names_or_addresses() {
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
    fn default_leaf_follows_the_addresses() {
        let leaves = Arc::new(Authority::generate("test").unwrap()).leaves(vec!["a.test".to_owned()], &[], []).unwrap();
        let served = || leaves.default.read().unwrap().cert[0].clone();
        let first = served();
        leaves.set_addresses(&["10.1.0.82".parse().unwrap()]).unwrap();
        assert_ne!(served(), first);
        assert_eq!(["a.test", "10.1.0.82", "10.1.0.83"].map(|name| covers(&served(), name)), [true, true, false]);
    }

    #[test]
    fn added_upstreams_get_leaves() {
        let authority = Arc::new(Authority::generate("test").unwrap());
        let leaves = authority.leaves(vec!["a.test".to_owned()], &[], ["docker.io".to_owned()]).unwrap();
        let first = leaves.upstream("docker.io").unwrap();
        assert!(leaves.upstream("quay.io").is_none());
        leaves.add_upstreams(["quay.io", "docker.io"].map(str::to_owned));
        assert!(leaves.upstream("quay.io").is_some());
        assert!(Arc::ptr_eq(&first, &leaves.upstream("docker.io").unwrap()), "an existing leaf stays");
    }
}
