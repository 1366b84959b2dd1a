//! Classifies failed TLS handshakes. The kinds tell a test author which side to examine.

use std::io;

use rustls::{AlertDescription, Error};

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The handshake timed out.
    Timeout,
    /// The client closed the connection.
    Closed,
    /// The client does not trust the registry's certificate, or the name in it.
    Distrusted,
    /// The client aborted for another reason.
    Alert,
    /// The client has no certificate and needs one.
    NoCertificate,
    /// The client's certificate is invalid or not signed by the client CA.
    BadCertificate,
    /// Client and server have no version, cipher suite or protocol in common.
    Incompatible,
    /// The client did not send TLS.
    Malformed,
    /// Anything else.
    Other,
}

impl HandshakeFailure {
    /// All kinds in the order of their declaration.
    pub const ALL: [Self; 9] = [
        Self::Timeout,
        Self::Closed,
        Self::Distrusted,
        Self::Alert,
        Self::NoCertificate,
        Self::BadCertificate,
        Self::Incompatible,
        Self::Malformed,
        Self::Other,
    ];

    /// The stable name in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::Distrusted => "distrusted",
            Self::Alert => "alert",
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate => "bad_certificate",
            Self::Incompatible => "incompatible",
            Self::Malformed => "malformed",
            Self::Other => "other",
        }
    }

    /// Classifies the error that ended a handshake.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        use AlertDescription as A;
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Closed,
                io::ErrorKind::TimedOut => Self::Timeout,
                _ => Self::Other,
            };
        };
        match tls {
            Error::AlertReceived(
                A::UnknownCA
                | A::BadCertificate
                | A::CertificateUnknown
                | A::CertificateExpired
                | A::CertificateRevoked
                | A::UnsupportedCertificate
                | A::UnrecognisedName,
            ) => Self::Distrusted,
            Error::AlertReceived(_) => Self::Alert,
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(_) => Self::BadCertificate,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::Incompatible,
            Error::InvalidMessage(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::PeerMisbehaved(_)
            | Error::DecryptError
            | Error::PeerSentOversizedRecord => Self::Malformed,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HandshakeFailure as F;

    #[test]
    fn errors_are_classified() {
        let tls = |error: Error| F::of(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(tls(Error::AlertReceived(AlertDescription::UnknownCA)), F::Distrusted);
        assert_eq!(tls(Error::AlertReceived(AlertDescription::InternalError)), F::Alert);
        assert_eq!(tls(Error::NoCertificatesPresented), F::NoCertificate);
        assert_eq!(tls(Error::InvalidCertificate(rustls::CertificateError::Expired)), F::BadCertificate);
        assert_eq!(tls(Error::DecryptError), F::Malformed);
        assert_eq!(tls(Error::HandshakeNotComplete), F::Other);
        for (kind, failure) in [
            (io::ErrorKind::UnexpectedEof, F::Closed),
            (io::ErrorKind::TimedOut, F::Timeout),
            (io::ErrorKind::OutOfMemory, F::Other),
        ] {
            assert_eq!(F::of(&kind.into()), failure, "{kind}");
        }
    }
}
