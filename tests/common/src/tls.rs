//! TLS clients that verify no certificate, handwritten ClientHello messages, and a TLS 1.2 session with handwritten records.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, ContentType, DigitallySignedStruct, Error, ProtocolVersion,
    SignatureScheme, StreamOwned, SupportedCipherSuite,
};

/// Accepts every certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn config(suites: Vec<SupportedCipherSuite>) -> ClientConfig {
    let provider = Arc::new(CryptoProvider { cipher_suites: suites, ..ring::default_provider() });
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(rustls::ALL_VERSIONS);
    let only_old = provider.cipher_suites.iter().all(|suite| matches!(suite, SupportedCipherSuite::Tls12(_)));
    let builder = if only_old {
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[&rustls::version::TLS12])
    } else {
        builder
    };
    let verifier = Arc::new(Anybody(provider));
    builder.unwrap().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
}

fn connection(config: ClientConfig, stream: &mut TcpStream) -> ClientConnection {
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(stream).unwrap();
    }
    connection
}

/// Opens a session without verifying the certificate.
pub fn anybody(mut stream: TcpStream) -> StreamOwned<ClientConnection, TcpStream> {
    let connection = connection(config(ring::default_provider().cipher_suites), &mut stream);
    StreamOwned::new(connection, stream)
}

/// A record with a ClientHello (RFC 5246, section 7.4.1.2) of this version with these cipher suites, X25519, and ECDSA with
/// P-256.
pub fn hello(version: u16, suites: &[u16]) -> Vec<u8> {
    let counted = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let extension = |kind: u16, bytes: &[u8]| [&kind.to_be_bytes()[..], &counted(bytes)].concat();
    let suites: Vec<u8> = suites.iter().flat_map(|suite| suite.to_be_bytes()).collect();
    let extensions = [
        extension(0x000a, &counted(&[0x00, 0x1d])),
        extension(0x000b, &[1, 0]),
        extension(0x000d, &counted(&[0x04, 0x03])),
        extension(0xff01, &[0]),
    ];
    let body = [&version.to_be_bytes()[..], &[7; 32], &[0], &counted(&suites), &[1, 0], &counted(&extensions.concat())].concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1][..], &length[1..], &body].concat();
    [&[0x16, 0x03, 0x01][..], &counted(&message)].concat()
}

/// A TLS 1.2 session whose records the test writes and reads.
pub struct Session {
    stream: TcpStream,
    encrypter: Box<dyn MessageEncrypter>,
    decrypter: Box<dyn MessageDecrypter>,
    sent: u64,
    received: u64,
}

impl Session {
    /// Completes the handshake and extracts the keys.
    pub fn start(mut stream: TcpStream) -> Self {
        let suite = ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256;
        let SupportedCipherSuite::Tls12(tls12) = suite else { panic!("a suite of TLS 1.2") };
        let mut config = config(vec![suite]);
        config.enable_secret_extraction = true;
        let secrets = connection(config, &mut stream).dangerous_extract_secrets().unwrap();
        let keys = |secrets: ConnectionTrafficSecrets| match secrets {
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (AeadKey::from(<[u8; 32]>::try_from(key.as_ref()).unwrap()), iv.as_ref().to_vec())
            }
            _ => panic!("the keys of this suite are expected"),
        };
        let ((sent, tx), (received, rx)) = (secrets.tx, secrets.rx);
        let ((key, iv), (peer_key, peer_iv)) = (keys(tx), keys(rx));
        let encrypter = tls12.aead_alg.encrypter(key, &iv, &[]);
        Self { stream, encrypter, decrypter: tls12.aead_alg.decrypter(peer_key, &peer_iv), sent, received }
    }

    /// Sends a record: type 21 is an alert, 22 a handshake message, 23 data.
    pub fn send(&mut self, kind: u8, bytes: &[u8]) {
        let payload = OutboundChunks::Single(bytes);
        let message = OutboundPlainMessage { typ: ContentType::from(kind), version: ProtocolVersion::TLSv1_2, payload };
        let record = self.encrypter.encrypt(message, self.sent).unwrap();
        self.sent += 1;
        self.stream.write_all(&record.encode()).unwrap();
    }

    /// Reads the next record.
    pub fn receive(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head).unwrap();
        let mut payload = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        self.stream.read_exact(&mut payload).unwrap();
        let message = InboundOpaqueMessage::new(ContentType::from(head[0]), ProtocolVersion::TLSv1_2, &mut payload);
        let plain = self.decrypter.decrypt(message, self.received).unwrap();
        self.received += 1;
        (head[0], plain.payload.to_vec())
    }

    /// Whether the connection ends without another record.
    pub fn closed(&mut self) -> bool {
        self.stream.read(&mut [0]).map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |count| count == 0)
    }
}
