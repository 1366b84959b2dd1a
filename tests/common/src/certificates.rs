//! TLS clients and their certificates.

use std::io::BufReader;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::http::{self, Response};

/// A CA that signs clients' certificates.
pub struct ClientAuthority(CertifiedIssuer<'static, KeyPair>);

/// A client's certificate and key.
pub struct Identity {
    pub certificate: CertificateDer<'static>,
    pub certificate_pem: String,
    pub key_pem: String,
}

impl ClientAuthority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Issues a client certificate.
    pub fn client(&self) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["node".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity { certificate_pem: certificate.pem(), certificate: certificate.into(), key_pem: key.serialize_pem() }
    }
}

/// A CA's certificate, and a certificate and key for a server at 127.0.0.1, in PEM.
pub fn server() -> (String, String, String) {
    let (authority, key) = (ClientAuthority::new("registries"), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, &authority.0).unwrap();
    (authority.pem(), certificate.pem(), key.serialize_pem())
}

/// A client configuration that trusts the CA and offers the certificate `own`.
pub fn client(ca_pem: &str, version: &'static rustls::SupportedProtocolVersion, own: Option<&Identity>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    let builder = builder.with_root_certificates(roots);
    Arc::new(match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let key = PrivatePkcs8KeyDer::from_pem_slice(own.key_pem.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![own.certificate.clone()], PrivateKeyDer::from(key)).unwrap()
        }
    })
}

/// Completes a handshake with `name` as SNI. Fails if the server's certificate is not valid for it.
pub fn shake(address: SocketAddr, config: &Arc<ClientConfig>, name: &'static str) -> std::io::Result<()> {
    let mut connection = ClientConnection::new(Arc::clone(config), ServerName::try_from(name).unwrap()).unwrap();
    let mut stream = http::connect(address);
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(())
}

/// Sends one request over TLS. Fails if the handshake or the request fails.
pub fn send(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<Response> {
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut stream: StreamOwned<ClientConnection, TcpStream> = StreamOwned::new(connection, http::connect(address));
    let lines: String = headers.iter().map(|(key, value)| format!("{key}: {value}\r\n")).collect();
    let request = format!("{method} {target} HTTP/1.1\r\nHost: localhost:{}\r\n{lines}\r\n", address.port());
    std::io::Write::write_all(&mut stream, request.as_bytes())?;
    let mut reader = BufReader::new(stream);
    // A TLS 1.3 client learns that its certificate was refused on its first read (RFC 8446, section 4.4.2.4).
    std::io::BufRead::fill_buf(&mut reader)?;
    http::read(&mut reader, method == "HEAD").ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}
