//! Digests of the form `algorithm:hex` (image specification, "Digests"), and the hashes behind them.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// A registered digest algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// `sha256`, 32 bytes.
    Sha256,
    /// `sha512`, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// Every algorithm, in the sort order of digests.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// The name, in a digest and as the folder below `blobs/`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the hash in bytes.
    #[must_use]
    pub const fn hash_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The digest of `content`.
    #[must_use]
    pub fn digest_of(self, content: &[u8]) -> Digest {
        let mut hasher = Hasher::new(self);
        hasher.update(content);
        hasher.finish()
    }
}

/// Why text is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no `:` between algorithm and hash.
    #[error("a digest has the form algorithm:hex")]
    Form,
    /// The algorithm is not in [`Algorithm`].
    #[error("the digest's algorithm is not one of sha256, sha512")]
    Algorithm,
    /// The number of digits is wrong.
    #[error("a {} digest has {} hexadecimal digits", .0.name(), .0.hash_len() * 2)]
    Length(Algorithm),
    /// A character is not one of `0-9a-f`. Upper case is not allowed (image specification, "SHA-256").
    #[error("a digest has only the digits 0-9 and a-f")]
    Digit,
}

/// A digest of content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: [u8; 64],
}

impl Digest {
    /// The digest whose hash is `hash`; nothing is hashed. Returns `None` if its length does not fit the algorithm.
    #[must_use]
    pub fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Option<Self> {
        let mut bytes = [0; 64];
        if hash.len() != algorithm.hash_len() {
            return None;
        }
        bytes.get_mut(..hash.len())?.copy_from_slice(hash);
        Some(Self { algorithm, bytes })
    }

    /// The sha256 digest of `content`.
    #[must_use]
    pub fn sha256_of(content: &[u8]) -> Self {
        Algorithm::Sha256.digest_of(content)
    }

    /// The algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hash.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.split_at(self.algorithm.hash_len()).0
    }

    /// The hash in lower-case hexadecimal.
    #[must_use]
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).map_or('0', |byte| char::from(*byte));
        self.bytes().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }

    /// Path of the content below an image layout's root (image layout specification, "Blobs").
    #[must_use]
    pub fn blob_path(&self) -> String {
        format!("blobs/{}/{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or(DigestError::Form)?;
        let algorithm = Algorithm::ALL.into_iter().find(|known| known.name() == algorithm).ok_or(DigestError::Algorithm)?;
        if hex.len() != algorithm.hash_len() * 2 {
            return Err(DigestError::Length(algorithm));
        }
        let mut bytes = [0; 64];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let [high, low] = *pair else { return Err(DigestError::Length(algorithm)) };
            *byte = nibble(high)? << 4 | nibble(low)?;
        }
        Ok(Self { algorithm, bytes })
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| serde::de::Error::custom(format!("{error}, not {text:?}")))
    }
}

fn nibble(digit: u8) -> Result<u8, DigestError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(DigestError::Digit),
    }
}

/// An incremental hash.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// The hash of no bytes.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Adds content.
    pub fn update(&mut self, content: &[u8]) {
        match &mut self.0 {
            State::Sha256(hash) => hash.update(content),
            State::Sha512(hash) => hash.update(content),
        }
    }

    /// The digest of all added content.
    #[must_use]
    pub fn finish(self) -> Digest {
        let (algorithm, mut bytes) = match &self.0 {
            State::Sha256(_) => (Algorithm::Sha256, [0; 64]),
            State::Sha512(_) => (Algorithm::Sha512, [0; 64]),
        };
        let (hash, _) = bytes.split_at_mut(algorithm.hash_len());
        match self.0 {
            State::Sha256(state) => hash.copy_from_slice(&state.finalize()),
            State::Sha512(state) => hash.copy_from_slice(&state.finalize()),
        }
        Digest { algorithm, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY_256: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const EMPTY_512: &str = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";

    #[test]
    fn both_algorithms_are_parsed_printed_and_computed() {
        for (text, algorithm) in [(EMPTY_256, Algorithm::Sha256), (EMPTY_512, Algorithm::Sha512)] {
            let digest: Digest = text.parse().unwrap();
            assert_eq!(digest.to_string(), text);
            assert_eq!(digest, Hasher::new(algorithm).finish());
            assert_eq!(Digest::from_hash(algorithm, digest.bytes()), Some(digest));
        }
    }

    #[test]
    fn malformed_digests_are_refused() {
        let cases = [
            ("", DigestError::Form),
            ("sha256", DigestError::Form),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", DigestError::Algorithm),
            ("SHA256:e3b0", DigestError::Algorithm),
            ("sha256:", DigestError::Length(Algorithm::Sha256)),
            (&EMPTY_256[..70], DigestError::Length(Algorithm::Sha256)),
            (&EMPTY_256.replace("e3b0", "E3B0"), DigestError::Digit),
            (&EMPTY_256.replace("e3b0", "../x"), DigestError::Digit),
            (&EMPTY_256.replace("e3b0c4", "é3b0"), DigestError::Length(Algorithm::Sha256)),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Digest>(), Err(expected), "{text:?}");
        }
    }
}
