//! Errors of pulling. Messages name the host and say what to do. They never contain credentials, tokens, or the query of a URL, where
//! storage services put signatures.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::credentials::CredentialsError;
use crate::disk::layout::LayoutError;
use crate::host::support::interrupt::Interrupted;
use crate::oci::{Digest, MAX_MANIFEST_SIZE, ManifestError};
use crate::text::escaped;

/// Characters sent of a registry's message.
const MAX_DETAIL: usize = 200;

/// An image could not be pulled.
#[derive(Debug, thiserror::Error)]
#[error("cannot pull {image}")]
pub struct PullError {
    /// Full name of the image.
    pub image: String,
    /// The cause.
    pub source: Fault,
}

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The system refuses a thread.
    #[error(transparent)]
    Thread(io::Error),
    /// The host's name cannot be resolved.
    #[error("the name {0} has no address; is it right, and does a DNS server answer?")]
    Resolve(String),
    /// The host cannot be connected to.
    #[error("cannot connect to {host}")]
    Connect {
        /// Host and port.
        host: String,
        /// The cause.
        source: io::Error,
    },
    /// The host's certificate is signed by an unknown CA.
    #[error(
        "the certificate of {0} is signed by an unknown CA; trust that CA with --registry-ca FILE, or put it into \
        /etc/docker/certs.d/{0}/ca.crt"
    )]
    Issuer(String),
    /// The TLS handshake failed for another reason.
    #[error("the TLS handshake with {host} failed: {cause}")]
    Tls {
        /// Host and port.
        host: String,
        /// The error of rustls.
        cause: rustls::Error,
    },
    /// The host does not speak TLS.
    #[error("{0} does not speak TLS; if plain HTTP is right for it, allow that with --plain-http {0}")]
    NoTls(String),
    /// The host does not respond.
    #[error("{host} did not respond within {} s ({phase})", limit.as_secs())]
    Timeout {
        /// Host and port.
        host: String,
        /// The phase of the request.
        phase: String,
        /// The timeout.
        limit: Duration,
    },
    /// The connection is lost, or the response is not HTTP.
    #[error("the connection to {host} failed: {cause}")]
    Broken {
        /// Host and port.
        host: String,
        /// The cause.
        cause: String,
    },
    /// A redirect from TLS to plain HTTP.
    #[error("{host} redirects to {to}, which is plain HTTP; https is expected")]
    Downgrade {
        /// Host and port.
        host: String,
        /// The target, without its query.
        to: String,
    },
    /// The text is not a URL of HTTP or HTTPS.
    #[error("\"{0}\" is not an http or https URL")]
    Url(String),
    /// The registry asks for credentials, and none are configured.
    #[error(
        "{host} asks for credentials (401{detail}), and there are none for it in {}; run `docker login {host}`",
        places(files)
    )]
    NoCredentials {
        /// Host and port.
        host: String,
        /// The registry's error message.
        detail: String,
        /// The files that were searched.
        files: Vec<PathBuf>,
    },
    /// The registry refuses the credentials.
    #[error("{host} refuses the credentials for \"{key}\" in {} ({status}{detail})", file.display())]
    Refused {
        /// Host and port.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The registry's error message.
        detail: String,
        /// The key of the credentials in their file.
        key: String,
        /// The file that the credentials are from.
        file: PathBuf,
    },
    /// The registry denies access.
    #[error("{host} denies access to {what} ({status}{detail})")]
    Denied {
        /// Host and port.
        host: String,
        /// The requested object.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The registry's error message.
        detail: String,
    },
    /// The credentials cannot be read.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The challenge is not supported.
    #[error("{host} answers 401 with {}; Basic, or Bearer with a realm, is expected", challenge_name(challenge))]
    Challenge {
        /// Host and port.
        host: String,
        /// The values of `WWW-Authenticate`.
        challenge: String,
    },
    /// The token service is unsafe: plain HTTP, or another host named over plain HTTP.
    #[error("{host} names the token service {realm}, {why}; no request is sent there")]
    Realm {
        /// Host and port.
        host: String,
        /// URL of the token service, without its query.
        realm: String,
        /// Why it is unsafe.
        why: &'static str,
    },
    /// The token service's response has no token.
    #[error("{realm} gives no token: {why}")]
    Token {
        /// URL of the token service, without its query.
        realm: String,
        /// What is wrong with the response.
        why: String,
    },
    /// The token service takes no POST request.
    #[error(
        "{realm} does not take the identity token for \"{key}\" in {} ({status}{detail}): such a token is sent in a POST request, which not \
        every registry takes; log in with a user and a password instead",
        file.display()
    )]
    IdentityToken {
        /// URL of the token service, without its query.
        realm: String,
        /// The HTTP status.
        status: u16,
        /// The token service's error message.
        detail: String,
        /// The key of the credentials in their file.
        key: String,
        /// The file that the credentials are from.
        file: PathBuf,
    },
    /// The object does not exist.
    #[error("{host} has no {what} (404{detail})")]
    NotFound {
        /// Host and port.
        host: String,
        /// The requested object.
        what: String,
        /// The registry's error message.
        detail: String,
    },
    /// Too many requests.
    #[error("{host} limits the rate of requests (429{detail}){}; it was asked {}. Credentials often raise the limit", pause(*retry_after), times(*tries))]
    RateLimited {
        /// Host and port.
        host: String,
        /// The registry's error message.
        detail: String,
        /// The pause that the registry asks for.
        retry_after: Option<Duration>,
        /// Number of attempts.
        tries: u32,
    },
    /// Another HTTP status.
    #[error("{host} answers {status}{detail} to the request for {what}")]
    Status {
        /// Host and port.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The registry's error message.
        detail: String,
        /// The requested object.
        what: String,
        /// The pause that the registry asks for.
        retry_after: Option<Duration>,
    },
    /// The content does not match its digest.
    #[error("{host} gives {what} with the content of {found}; {expected} is expected")]
    Digest {
        /// Host and port.
        host: String,
        /// The requested object.
        what: String,
        /// The expected digest.
        expected: Digest,
        /// The digest of the content.
        found: Digest,
    },
    /// The content does not have the size of its descriptor.
    #[error("{host} gives {what} with {found} bytes; {expected} are expected")]
    Size {
        /// Host and port.
        host: String,
        /// The requested object.
        what: String,
        /// Size in the descriptor, in bytes.
        expected: u64,
        /// Bytes received or announced.
        found: u64,
    },
    /// The body ends too early.
    #[error("{host} closed the connection after {found} of {expected} bytes of {what}")]
    Cut {
        /// Host and port.
        host: String,
        /// The requested object.
        what: String,
        /// Size of the object in bytes.
        expected: u64,
        /// Bytes received.
        found: u64,
    },
    /// The body is larger than any valid one.
    #[error("{host} gives {what} with more than {limit} bytes")]
    TooLarge {
        /// Host and port.
        host: String,
        /// The requested object.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A descriptor names a manifest larger than the limit.
    #[error("manifest {digest} has {size} bytes; at most {MAX_MANIFEST_SIZE} are pulled")]
    LargeManifest {
        /// Digest of the manifest.
        digest: Digest,
        /// Size in the descriptor, in bytes.
        size: u64,
    },
    /// A `Link` header does not lead to the next page.
    #[error("{host} gives the {what} in pages, but its Link header {why}")]
    Link {
        /// Host and port.
        host: String,
        /// The list.
        what: String,
        /// What is wrong with the header.
        why: String,
    },
    /// The body is compressed although nothing asked for that.
    #[error("{host} gives {what} with the Content-Encoding {encoding}, which was not asked for; no encoding is expected")]
    Encoding {
        /// Host and port.
        host: String,
        /// The requested object.
        what: String,
        /// The encoding.
        encoding: String,
    },
    /// The media type is not one of a manifest.
    #[error("{host} gives {what} as {found:?}; the media type of an OCI or Docker manifest or index is expected")]
    MediaType {
        /// Host and port.
        host: String,
        /// The requested object.
        what: String,
        /// The `Content-Type`.
        found: String,
    },
    /// The registry has only a Docker schema 1 manifest.
    #[error(
        "{host} has {what} only as a Docker schema 1 manifest, which has no config and is signed again on each pull; push the image \
        again with a current tool"
    )]
    Schema1 {
        /// Host and port.
        host: String,
        /// The requested object.
        what: String,
    },
    /// The content is not a manifest.
    #[error("{host} gives {what}, which is expected to be a manifest")]
    Manifest {
        /// Host and port.
        host: String,
        /// The requested object.
        what: String,
        /// The cause.
        source: ManifestError,
    },
    /// The image has no manifest for the selected platform.
    #[error("the image has no manifest for {wanted}, only for {}", available.join(", "))]
    Platform {
        /// The selected platform.
        wanted: String,
        /// The image's platforms.
        available: Vec<String>,
    },
    /// A limit on redirects, referrers, manifests or nesting is exceeded.
    #[error("it has more than {0}")]
    Endless(String),
    /// The registry does not have a non-distributable layer.
    #[error(
        "{host} does not have {what}, a layer whose type says that it is not distributed; the URLs of such layers are not fetched"
    )]
    Foreign {
        /// Host and port.
        host: String,
        /// The layer.
        what: String,
    },
    /// A CA file cannot be used.
    #[error("cannot trust the CA in {}: {why}", file.display())]
    Ca {
        /// The file.
        file: PathBuf,
        /// The cause.
        why: String,
    },
    /// The working folder cannot be created.
    #[error("cannot make a working folder in {}", folder.display())]
    Folder {
        /// The folder to create it in.
        folder: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Pulled content cannot be written.
    #[error("cannot write {file} into the working folder beside the disk")]
    Write {
        /// The file.
        file: String,
        /// The cause.
        source: io::Error,
    },
    /// Pulled content cannot be read.
    #[error("cannot read {file} in the working folder beside the disk")]
    Read {
        /// The file.
        file: String,
        /// The cause.
        source: io::Error,
    },
    /// A list of referrers names a manifest that refers to something else.
    #[error("{host} lists {what} as a referrer of {expected}, but its subject is {}", found.map_or("missing".to_owned(), |found| found.to_string()))]
    Subject {
        /// Host and port.
        host: String,
        /// The manifest.
        what: String,
        /// The manifest that it should refer to.
        expected: Digest,
        /// The manifest that it refers to.
        found: Option<Digest>,
    },
    /// The pulled content is not a valid image.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A signal interrupted the pull.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Fault {
    /// Whether the same request may succeed a little later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Broken { .. } | Self::Cut { .. } | Self::RateLimited { .. } => true,
            Self::Status { status, .. } => *status == 408 || *status >= 500,
            _ => false,
        }
    }

    /// Whether the cause is on this machine, so that the pull cannot go on whatever it was for.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        matches!(self, Self::Folder { .. } | Self::Write { .. } | Self::Read { .. } | Self::Interrupted(_))
    }

    /// The pause that the registry asks for.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

fn challenge_name(challenge: &str) -> String {
    if challenge.is_empty() { "no challenge".to_owned() } else { format!("an unsupported challenge ({challenge:?})") }
}

fn pause(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |pause| format!(" and asks to wait {} s", pause.as_secs()))
}

fn times(count: u32) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

fn places(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Text of a registry, shortened and escaped for a message.
pub fn printable(text: &str) -> String {
    escaped(&text.chars().take(MAX_DETAIL).collect::<String>())
}
