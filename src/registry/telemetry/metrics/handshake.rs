//! Why a TLS handshake failed, in a few kinds: they tell a test author which side to look at. Pure.

use std::io;

use rustls::{AlertDescription, Error};

/// A kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// It took too long.
    Timeout,
    /// The client left in the middle.
    Closed,
    /// The client does not trust the registry's certificate, or the name in it.
    Distrusted,
    /// The client said for another reason that it would not go on.
    Alert,
    /// The client showed no certificate, and needs one.
    NoCertificate,
    /// The client's certificate is not of the client CA, or not valid.
    BadCertificate,
    /// No version, cipher suite or protocol in common.
    Incompatible,
    /// What the client sent is not TLS.
    Malformed,
    /// Anything else.
    Other,
}

impl HandshakeFailure {
    /// Every kind, in the order of their declaration.
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

    /// Its stable name.
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

    /// The kind of an error that ended a handshake.
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
    fn errors_and_their_kinds() {
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
