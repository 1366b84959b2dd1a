//! ChaCha20-Poly1305 (RFC 8439) for TLS 1.2 (RFC 7905) and 1.3 (RFC 8446) without vector instructions, for emulated processors.
//!
//! The keys, the handshake and the sequence numbers stay with rustls; this crate seals and opens records. It is a crate of its own so that the
//! compiler makes it fast where it makes the rest of the guest small (`qemu/guest.toml`).

use std::sync::LazyLock;

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, KeyBlockShape, MessageDecrypter, MessageEncrypter, NONCE_LEN, Nonce,
    OutboundOpaqueMessage, OutboundPlainMessage, PrefixedPayload, Tls12AeadAlgorithm, Tls13AeadAlgorithm,
    UnsupportedOperationError, make_tls12_aad, make_tls13_aad,
};
use rustls::crypto::{CipherSuiteCommon, ring};
use rustls::{
    CipherSuite, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion, SupportedCipherSuite, Tls12CipherSuite,
    Tls13CipherSuite,
};

const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;

/// The longest plaintext of a record (RFC 5246, section 6.2.1).
const MAX_PLAINTEXT: usize = 1 << 14;

/// ring's cipher suites, those with ChaCha20-Poly1305 first and as implemented here.
pub static SUITES: LazyLock<Vec<SupportedCipherSuite>> = LazyLock::new(|| {
    let (mut suites, others): (Vec<_>, Vec<_>) = ring::DEFAULT_CIPHER_SUITES.iter().partition(|suite| is_chacha20(suite.suite()));
    suites = suites.into_iter().map(portable).collect();
    [suites, others].concat()
});

const fn is_chacha20(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    )
}

/// The same suite with this crate's records. rustls wants suites for the life of the program.
fn portable(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    match suite {
        SupportedCipherSuite::Tls12(suite) => SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
            common: CipherSuiteCommon { ..suite.common },
            aead_alg: &Portable,
            ..*suite
        }))),
        SupportedCipherSuite::Tls13(suite) => SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
            common: CipherSuiteCommon { ..suite.common },
            aead_alg: &Portable,
            quic: None,
            ..*suite
        }))),
    }
}

struct Portable;

impl Tls13AeadAlgorithm for Portable {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(Tls13(RecordKey::new(&key, iv)))
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(Tls13(RecordKey::new(&key, iv)))
    }

    fn key_len(&self) -> usize {
        KEY_LEN
    }

    fn extract_keys(&self, key: AeadKey, iv: Iv) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Ok(ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv })
    }
}

impl Tls12AeadAlgorithm for Portable {
    fn encrypter(&self, key: AeadKey, iv: &[u8], _: &[u8]) -> Box<dyn MessageEncrypter> {
        Box::new(Tls12(RecordKey::new(&key, Iv::copy(iv))))
    }

    fn decrypter(&self, key: AeadKey, iv: &[u8]) -> Box<dyn MessageDecrypter> {
        Box::new(Tls12(RecordKey::new(&key, Iv::copy(iv))))
    }

    fn key_block_shape(&self) -> KeyBlockShape {
        KeyBlockShape { enc_key_len: KEY_LEN, fixed_iv_len: NONCE_LEN, explicit_nonce_len: 0 }
    }

    fn extract_keys(&self, key: AeadKey, iv: &[u8], _: &[u8]) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Ok(ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv: Iv::copy(iv) })
    }
}

/// The key of one direction of a connection.
struct RecordKey {
    /// `None` if the key had the wrong length: then nothing is sealed or opened.
    cipher: Option<ChaCha20Poly1305>,
    iv: Iv,
}

impl RecordKey {
    fn new(key: &AeadKey, iv: Iv) -> Self {
        Self { cipher: ChaCha20Poly1305::new_from_slice(key.as_ref()).ok(), iv }
    }

    /// Encrypts `payload` in place and appends the tag. Fails on the wrong key only.
    fn seal(&self, seq: u64, aad: &[u8], payload: &mut PrefixedPayload) -> Result<(), Error> {
        let cipher = self.cipher.as_ref().ok_or(Error::EncryptError)?;
        let nonce = Nonce::new(&self.iv, seq).0.into();
        let tag = cipher.encrypt_inout_detached(&nonce, aad, payload.as_mut().into());
        payload.extend_from_slice(&tag.map_err(|_| Error::EncryptError)?);
        Ok(())
    }

    /// Decrypts `payload` in place and returns the length of the plaintext, which is at its start. Fails if the tag does not match.
    fn open(&self, seq: u64, aad: &[u8], payload: &mut [u8]) -> Result<usize, Error> {
        let cipher = self.cipher.as_ref().ok_or(Error::DecryptError)?;
        let (text, tag) = payload.split_last_chunk_mut::<TAG_LEN>().ok_or(Error::DecryptError)?;
        let nonce = Nonce::new(&self.iv, seq).0.into();
        let opened = cipher.decrypt_inout_detached(&nonce, aad, (&mut *text).into(), &(*tag).into());
        opened.map(|()| text.len()).map_err(|_| Error::DecryptError)
    }
}

struct Tls13(RecordKey);

impl MessageEncrypter for Tls13 {
    fn encrypt(&mut self, message: OutboundPlainMessage<'_>, seq: u64) -> Result<OutboundOpaqueMessage, Error> {
        let sealed_len = self.encrypted_payload_len(message.payload.len());
        let mut payload = PrefixedPayload::with_capacity(sealed_len);
        payload.extend_from_chunks(&message.payload);
        payload.extend_from_slice(&[message.typ.into()]);
        self.0.seal(seq, &make_tls13_aad(sealed_len), &mut payload)?;
        // The outer type and version of every protected record (RFC 8446, section 5.2).
        Ok(OutboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, payload))
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        payload_len + 1 + TAG_LEN
    }
}

impl MessageDecrypter for Tls13 {
    fn decrypt<'a>(&mut self, mut message: InboundOpaqueMessage<'a>, seq: u64) -> Result<InboundPlainMessage<'a>, Error> {
        let aad = make_tls13_aad(message.payload.len());
        let length = self.0.open(seq, &aad, &mut message.payload)?;
        message.payload.truncate(length);
        message.into_tls13_unpadded_message()
    }
}

struct Tls12(RecordKey);

impl MessageEncrypter for Tls12 {
    fn encrypt(&mut self, message: OutboundPlainMessage<'_>, seq: u64) -> Result<OutboundOpaqueMessage, Error> {
        let length = message.payload.len();
        let mut payload = PrefixedPayload::with_capacity(self.encrypted_payload_len(length));
        payload.extend_from_chunks(&message.payload);
        self.0.seal(seq, &make_tls12_aad(seq, message.typ, message.version, length), &mut payload)?;
        Ok(OutboundOpaqueMessage::new(message.typ, message.version, payload))
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        payload_len + TAG_LEN
    }
}

impl MessageDecrypter for Tls12 {
    fn decrypt<'a>(&mut self, mut message: InboundOpaqueMessage<'a>, seq: u64) -> Result<InboundPlainMessage<'a>, Error> {
        let length = message.payload.len().checked_sub(TAG_LEN).ok_or(Error::DecryptError)?;
        let aad = make_tls12_aad(seq, message.typ, message.version, length);
        self.0.open(seq, &aad, &mut message.payload)?;
        if length > MAX_PLAINTEXT {
            return Err(Error::PeerSentOversizedRecord);
        }
        message.payload.truncate(length);
        Ok(message.into_plain_message())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::crypto::cipher::OutboundChunks;

    use super::*;

    /// RFC 8439, section 2.8.2.
    #[test]
    fn seals_the_example_of_rfc_8439() {
        let key = std::array::from_fn(|index| 0x80 + u8::try_from(index).unwrap());
        let iv = [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47];
        let aad = [0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7];
        let text =
            b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
        let key = RecordKey::new(&AeadKey::from(key), Iv::new(iv));
        let mut payload = PrefixedPayload::from(text);
        key.seal(0, &aad, &mut payload).unwrap();
        let sealed = payload.as_mut();
        let hex: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(hex.starts_with("d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"), "{hex}");
        assert!(hex.ends_with("3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691"), "{hex}");
        assert_eq!(key.open(0, &aad, sealed), Ok(text.len()));
        assert_eq!(&sealed[..text.len()], text);
    }

    #[test]
    fn key_of_another_length_seals_and_opens_nothing() {
        let key = RecordKey { cipher: ChaCha20Poly1305::new_from_slice(&[1; 31]).ok(), iv: Iv::new([0; NONCE_LEN]) };
        assert_eq!(key.seal(0, &[], &mut PrefixedPayload::from(b"text")), Err(Error::EncryptError));
        assert_eq!(key.open(0, &[], &mut [0; 20]), Err(Error::DecryptError));
    }

    /// Encrypter and decrypter of a suite, for one key.
    type Pair = (Box<dyn MessageEncrypter>, Box<dyn MessageDecrypter>);

    fn pair(suite: SupportedCipherSuite, key: [u8; KEY_LEN], iv: [u8; NONCE_LEN]) -> Pair {
        match suite {
            SupportedCipherSuite::Tls12(suite) => {
                (suite.aead_alg.encrypter(key.into(), &iv, &[]), suite.aead_alg.decrypter(key.into(), &iv))
            }
            SupportedCipherSuite::Tls13(suite) => {
                (suite.aead_alg.encrypter(key.into(), iv.into()), suite.aead_alg.decrypter(key.into(), iv.into()))
            }
        }
    }

    fn seal(encrypter: &mut dyn MessageEncrypter, typ: ContentType, text: &[u8], seq: u64) -> Vec<u8> {
        let message = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload: OutboundChunks::Single(text) };
        encrypter.encrypt(message, seq).unwrap().encode()
    }

    /// Type and text of a record, which starts with a header of five bytes.
    fn open(decrypter: &mut dyn MessageDecrypter, record: &[u8], seq: u64) -> Result<(ContentType, Vec<u8>), Error> {
        let mut payload = record[5..].to_vec();
        let message = InboundOpaqueMessage::new(record[0].into(), ProtocolVersion::TLSv1_2, &mut payload);
        decrypter.decrypt(message, seq).map(|message| (message.typ, message.payload.to_vec()))
    }

    proptest! {
        /// Records are those of ring, byte by byte, and each side opens the other's. One changed bit, another sequence number or a
        /// missing byte is an error of both.
        #[test]
        fn records_are_those_of_ring(
            (key, iv, seq) in any::<([u8; KEY_LEN], [u8; NONCE_LEN], u64)>(),
            text in proptest::collection::vec(any::<u8>(), 0..3000),
            typ in prop_oneof![Just(ContentType::ApplicationData), Just(ContentType::Handshake), Just(ContentType::Alert)],
            bit in any::<prop::sample::Index>(),
        ) {
            for theirs in ring::DEFAULT_CIPHER_SUITES.iter().filter(|suite| is_chacha20(suite.suite())) {
                let ours = SUITES.iter().find(|suite| suite.suite() == theirs.suite()).unwrap();
                let ((mut our_seal, mut our_open), (mut ring_seal, mut ring_open)) = (pair(*ours, key, iv), pair(*theirs, key, iv));
                let mut record = seal(&mut *our_seal, typ, &text, seq);
                prop_assert_eq!(&record, &seal(&mut *ring_seal, typ, &text, seq));
                prop_assert_eq!(record.len(), 5 + our_seal.encrypted_payload_len(text.len()));
                for decrypter in [&mut our_open, &mut ring_open] {
                    prop_assert_eq!(open(&mut **decrypter, &record, seq), Ok((typ, text.clone())));
                    prop_assert_eq!(open(&mut **decrypter, &record, !seq), Err(Error::DecryptError));
                    prop_assert_eq!(open(&mut **decrypter, &record[..record.len() - 1], seq), Err(Error::DecryptError));
                    prop_assert_eq!(open(&mut **decrypter, &record[..5], seq), Err(Error::DecryptError));
                }
                let bit = bit.index((record.len() - 5) * 8);
                record[5 + bit / 8] ^= 1 << (bit % 8);
                for decrypter in [&mut our_open, &mut ring_open] {
                    prop_assert_eq!(open(&mut **decrypter, &record, seq), Err(Error::DecryptError));
                }
            }
        }
    }

    /// RFC 5246, section 6.2.1; RFC 8446, section 5.1.
    #[test]
    fn too_long_record_is_refused_as_ring_refuses_it() {
        for theirs in ring::DEFAULT_CIPHER_SUITES.iter().filter(|suite| is_chacha20(suite.suite())) {
            let ours = SUITES.iter().find(|suite| suite.suite() == theirs.suite()).unwrap();
            let opened = [MAX_PLAINTEXT, MAX_PLAINTEXT + 1, MAX_PLAINTEXT + 2].map(|length| {
                let [ours, theirs] = [ours, theirs].map(|suite| {
                    let (mut encrypter, mut decrypter) = pair(*suite, [1; KEY_LEN], [2; NONCE_LEN]);
                    let record = seal(&mut *encrypter, ContentType::ApplicationData, &vec![3; length], 0);
                    open(&mut *decrypter, &record, 0).map(|(_, text)| text.len())
                });
                assert_eq!(ours, theirs, "{length}");
                ours
            });
            assert_eq!(opened, [Ok(MAX_PLAINTEXT), Err(Error::PeerSentOversizedRecord), Err(Error::PeerSentOversizedRecord)]);
        }
    }
}
