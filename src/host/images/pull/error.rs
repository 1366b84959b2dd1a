//! What can go wrong on the way from a registry to here, each in words that name the host and say what to do. No message holds a
//! secret: neither credentials nor tokens, nor the query of a URL, in which storage services put theirs.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::disk::layout::LayoutError;
use crate::host::support::interrupt::Interrupted;
use crate::oci::{Digest, MAX_MANIFEST_SIZE, ManifestError};

use super::credentials::CredentialsError;

/// Why an image is not pulled.
#[derive(Debug, thiserror::Error)]
#[error("cannot pull {image}")]
pub struct PullError {
    /// Its name, in full.
    pub image: String,
    /// What is wrong.
    pub source: Fault,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No address for a name.
    #[error("the name {0} has no address; is it right, and does a DNS server answer?")]
    Resolve(String),
    /// No connection.
    #[error("cannot connect to {host}")]
    Connect {
        /// Host and port.
        host: String,
        /// Why not.
        source: io::Error,
    },
    /// A certificate by nobody that is trusted.
    #[error(
        "{0} has a certificate by an authority that is not trusted here; give its CA with --registry-ca FILE, or put it into \
         /etc/docker/certs.d/{0}/ca.crt"
    )]
    Issuer(String),
    /// No TLS for another reason.
    #[error("no TLS with {host}: {cause}")]
    Tls {
        /// Host and port.
        host: String,
        /// What rustls says.
        cause: rustls::Error,
    },
    /// Something else than TLS at the other end.
    #[error("{0} does not speak TLS; if plain HTTP is right for it, allow that with --plain-http {0}")]
    NoTls(String),
    /// Silence.
    #[error("{host} says nothing for {} s ({phase})", limit.as_secs())]
    Timeout {
        /// Host and port.
        host: String,
        /// What was waited for.
        phase: String,
        /// How long one waits.
        limit: Duration,
    },
    /// The connection is cut, or what comes is not HTTP.
    #[error("{host} breaks off: {cause}")]
    Broken {
        /// Host and port.
        host: String,
        /// What is seen of it.
        cause: String,
    },
    /// A redirect from TLS to plain HTTP.
    #[error("{host} redirects to {to}, which is plain HTTP; https is expected")]
    Downgrade {
        /// Host and port.
        host: String,
        /// Where to, without a query.
        to: String,
    },
    /// No URL, where one is expected.
    #[error("\"{0}\" is no URL of http or https")]
    Url(String),
    /// The registry asks for credentials, and there are none.
    #[error("{host} asks for credentials (401{said}), and there are none for it in {}; run `docker login {host}`", places(files))]
    NoCredentials {
        /// Host and port.
        host: String,
        /// The registry's own words.
        said: String,
        /// Where they were looked for.
        files: Vec<PathBuf>,
    },
    /// The credentials are refused.
    #[error("{host} refuses the credentials for it in {} ({status}{said})", file.display())]
    Refused {
        /// Host and port.
        host: String,
        /// The status.
        status: u16,
        /// The registry's own words.
        said: String,
        /// Where they are from.
        file: PathBuf,
    },
    /// Nobody is let in, or not to this.
    #[error("{host} denies access to {what} ({status}{said})")]
    Denied {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
        /// The registry's own words.
        said: String,
    },
    /// Credentials that cannot be read.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A challenge that is not understood.
    #[error("{host} answers 401 with no challenge that is understood ({given:?}); Basic or Bearer with a realm is expected")]
    Challenge {
        /// Host and port.
        host: String,
        /// `WWW-Authenticate`, as it came.
        given: String,
    },
    /// Tokens by plain HTTP, or credentials for a plain registry's realm elsewhere.
    #[error("{host} sends for its tokens to {realm}, {why}; nothing is sent there")]
    Realm {
        /// Host and port.
        host: String,
        /// The realm, without a query.
        realm: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A token service whose answer has no token.
    #[error("{realm} gives no token: {why}")]
    Token {
        /// The realm, without a query.
        realm: String,
        /// What came in its place.
        why: String,
    },
    /// It is not there.
    #[error("{host} has no {what} (404{said})")]
    NotFound {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
        /// The registry's own words.
        said: String,
    },
    /// Too many requests.
    #[error("{host} limits the rate of requests (429{said}){}; it was asked {}. Credentials often raise the limit", wait(*after), times(*tries))]
    RateLimited {
        /// Host and port.
        host: String,
        /// The registry's own words.
        said: String,
        /// When one may come again.
        after: Option<Duration>,
        /// How often it was asked.
        tries: u32,
    },
    /// Another status.
    #[error("{host} answers {status}{said} to the request for {what}")]
    Status {
        /// Host and port.
        host: String,
        /// The status.
        status: u16,
        /// The registry's own words.
        said: String,
        /// What was asked for.
        what: String,
        /// When one may come again.
        after: Option<Duration>,
    },
    /// A body other than its digest.
    #[error("{host} gives {what} with the content of {found}; {expected} is expected")]
    Digest {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
        /// What it has to be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A body longer or shorter than its descriptor says.
    #[error("{host} gives {what} with {found} bytes; {expected} are expected")]
    Size {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
        /// The size that its descriptor gives, in bytes.
        expected: u64,
        /// What came, or is announced.
        found: u64,
    },
    /// A body that ends before its end.
    #[error("{host} breaks off {what} after {found} of {expected} bytes")]
    Cut {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
        /// Its size in bytes.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// Too large to be what it should be.
    #[error("{host} gives {what} with more than {limit} bytes")]
    TooLarge {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// A descriptor of a manifest that nobody could serve.
    #[error("manifest {digest} has {size} bytes; at most {MAX_MANIFEST_SIZE} are pulled")]
    LargeManifest {
        /// The manifest.
        digest: Digest,
        /// Its size, in bytes.
        size: u64,
    },
    /// Something that is no manifest.
    #[error("{host} gives {what} as {found:?}; the media type of an OCI or Docker manifest or index is expected")]
    MediaType {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
        /// `Content-Type`.
        found: String,
    },
    /// Docker's schema 1.
    #[error(
        "{host} has {what} as a Docker schema 1 manifest only, which names no config and signs itself anew on each pull; \
         push the image again with a current tool"
    )]
    Schema1 {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// A manifest that is none.
    #[error("{host} gives {what}, which is expected to be a manifest")]
    Manifest {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
        /// Why it is none.
        source: ManifestError,
    },
    /// Not for this platform.
    #[error("it is not there for {wanted}; it is for {}", there.join(", "))]
    Platform {
        /// What was asked for.
        wanted: String,
        /// What there is.
        there: Vec<String>,
    },
    /// Indexes within indexes, or manifests without end.
    #[error("it has more than {0}")]
    Endless(String),
    /// A layer that the registry does not have and that its maker keeps elsewhere.
    #[error(
        "{host} does not have {what}, a layer whose type says that it is not distributed; the URLs of such layers are not fetched"
    )]
    Foreign {
        /// Host and port.
        host: String,
        /// The layer.
        what: String,
    },
    /// A CA that cannot be used.
    #[error("cannot trust the CA in {}: {why}", file.display())]
    Ca {
        /// Its file.
        file: PathBuf,
        /// Why not.
        why: String,
    },
    /// No folder for what comes.
    #[error("cannot make a working folder in {}", folder.display())]
    Folder {
        /// Where.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What came cannot be kept.
    #[error("cannot write {file} into the working folder beside the disk")]
    Write {
        /// The file.
        file: String,
        /// Why not.
        source: io::Error,
    },
    /// What was pulled is no image.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A signal came.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Fault {
    /// Whether the same request may go well a little later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Broken { .. } | Self::Cut { .. } | Self::RateLimited { .. } => true,
            Self::Status { status, .. } => *status == 408 || *status >= 500,
            _ => false,
        }
    }

    /// How long the registry asks to wait.
    #[must_use]
    pub fn after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { after, .. } | Self::Status { after, .. } => *after,
            _ => None,
        }
    }
}

fn wait(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| format!(" and asks to wait {} s", after.as_secs()))
}

fn times(count: u32) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

fn places(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}
