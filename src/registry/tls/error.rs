//! Why TLS cannot be set up.

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The cryptography library failed.
    #[error("cannot make a certificate for {subject}")]
    Make {
        /// The subject of the certificate.
        subject: String,
        /// The cause.
        #[source]
        cause: rcgen::Error,
    },
    /// No certificate can be for this name.
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Name(String),
    /// A file is not the expected PEM.
    #[error("the given {what} is not PEM with {expected}")]
    Pem {
        /// Which file.
        what: &'static str,
        /// The expected content.
        expected: &'static str,
    },
    /// The key does not match the certificate, or TLS cannot use this kind of key.
    #[error("the given certificate chain and key do not go together")]
    Pair(#[source] rustls::Error),
    /// A certificate of the chain has expired.
    #[error("certificate {position} of the given chain expired on {date}; make a new one, or set this machine's clock")]
    Expired {
        /// Its position in the chain, from 1.
        position: usize,
        /// The end of its validity.
        date: String,
    },
    /// A certificate of the chain is not valid yet.
    #[error("certificate {position} of the given chain is not valid before {date}; set this machine's clock")]
    NotYet {
        /// Its position in the chain, from 1.
        position: usize,
        /// The start of its validity.
        date: String,
    },
    /// The TLS library refused its settings.
    #[error("cannot set TLS up")]
    Config(#[source] rustls::Error),
}
