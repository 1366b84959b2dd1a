//! Flags that say which certificate is served, of `serve` and `run`. Words enter; a mode, files and what signs leave.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Ca, Error};

/// What is wrong with a certificate where none is to be used.
const CERTIFICATE_UNUSED: &str =
    "the arguments '--cert <FILE>' and '--key <FILE>' need '--tls provided': nothing else serves with them";
/// What is wrong with a CA's output file where there is no CA.
const CA_OUT_WITHOUT_TLS: &str = "the argument '--ca-out <FILE>' cannot be used with '--tls off': without TLS there is no CA";
/// What is wrong with a CA where nothing is to be signed.
const CA_UNUSED: &str = "the arguments '--ca <FILE>' and '--ca-dir <DIR>' cannot be used with '--tls provided' or '--tls off': there is nothing to sign";
/// What is wrong with a key that has two owners.
const KEY_OF_BOTH: &str =
    "the arguments '--cert <FILE>' and '--ca <FILE>' cannot be used together: '--key <FILE>' is the key of one of them";
/// What is wrong with a certificate beside a CA.
const CERT_AND_CA_DIR: &str =
    "the arguments '--cert <FILE>' and '--ca-dir <DIR>' cannot be used together: a given certificate is signed already";

/// Which certificate is served.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Certificates", group = clap::ArgGroup::new("key's").args(["cert", "ca"]).multiple(true))]
pub struct Certificates {
    /// Where certificates come from (default: generate)
    #[arg(long, value_name = "MODE", value_enum)]
    tls: Option<Tls>,

    /// Certificate chain, PEM, leaf first, with --tls provided
    #[arg(long, value_name = "FILE", required_if_eq("tls", "provided"), requires = "key")]
    cert: Option<PathBuf>,

    /// Private key, PEM: of --cert, or of --ca (then in PKCS #8)
    #[arg(long, value_name = "FILE", required_if_eq("tls", "provided"), requires = "key's")]
    key: Option<PathBuf>,

    /// Sign the certificate with this CA (PEM) instead of one made for this run; --key is its key
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with = "ca_dir")]
    ca: Option<PathBuf>,

    /// Sign with the CA that this folder keeps; at first use one is made there, its key for its owner alone
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,

    /// Write the CA certificate that clients have to trust here (`run` also keeps it in its own folder)
    #[arg(long, value_name = "FILE")]
    ca_out: Option<PathBuf>,
}

/// How a registry is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Tls {
    /// A certificate is made at the start, and signed by a CA made for it, or by --ca or --ca-dir
    Generate,
    /// The certificate and its key are given
    Provided,
    /// No TLS: plain HTTP
    Off,
}

impl Certificates {
    /// What two flags together do not allow, in words.
    #[must_use]
    pub fn conflict(&self) -> Option<&'static str> {
        let signs = self.ca.is_some() || self.ca_dir.is_some();
        let conflicts = [
            (self.cert.is_some() && self.ca.is_some(), KEY_OF_BOTH),
            (self.cert.is_some() && self.ca_dir.is_some(), CERT_AND_CA_DIR),
            (signs && matches!(self.tls, Some(Tls::Provided | Tls::Off)), CA_UNUSED),
            (self.cert.is_some() && matches!(self.tls, Some(Tls::Generate | Tls::Off)), CERTIFICATE_UNUSED),
            (self.ca_out.is_some() && self.tls == Some(Tls::Off), CA_OUT_WITHOUT_TLS),
        ];
        conflicts.into_iter().find_map(|(holds, conflict)| holds.then_some(conflict))
    }

    /// How it is served, where the flags say so.
    #[must_use]
    pub fn mode(&self) -> Option<Tls> {
        // A certificate that is given is meant to be served with.
        self.tls.or(self.cert.is_some().then_some(Tls::Provided))
    }

    /// The given certificate chain and its key.
    #[must_use]
    pub fn provided(&self) -> Option<(PathBuf, PathBuf)> {
        self.cert.clone().zip(self.key.clone())
    }

    /// The CA that signs, where it is not made for this run alone. Where a folder is to keep one and does not yet, it is made.
    ///
    /// # Errors
    /// [`Error`], where it cannot be used.
    pub fn ca(&self) -> Result<Option<Ca>, Error> {
        let now = SystemTime::now();
        match (&self.ca, &self.key, &self.ca_dir) {
            (Some(ca), Some(key), _) => Ca::read(ca, key, now).map(Some),
            (_, _, Some(dir)) => Ca::kept_in(dir, now).map(Some),
            _ => Ok(None),
        }
    }

    /// The PEM files of the signing CA, certificate and key, if they are given.
    #[must_use]
    pub fn ca_files(&self) -> Option<(PathBuf, PathBuf)> {
        self.ca.clone().zip(self.key.clone())
    }

    /// The folder with the signing CA, if it is given.
    #[must_use]
    pub fn ca_dir(&self) -> Option<&Path> {
        self.ca_dir.as_deref()
    }

    /// Where the CA certificate is to be written, where that is said.
    #[must_use]
    pub fn output(&self) -> Option<&Path> {
        self.ca_out.as_deref()
    }
}
