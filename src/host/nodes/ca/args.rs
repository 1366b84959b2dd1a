//! The flags of `serve` and `run` that select the registry's certificate.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Ca, CaFilesError};

/// Error: a certificate in a mode without one.
const CERTIFICATE_UNUSED: &str =
    "the arguments '--cert <FILE>' and '--key <FILE>' need '--tls provided': the other modes do not use them";
/// Error: an output file for a CA, without a CA.
const CA_OUT_WITHOUT_TLS: &str = "the argument '--ca-out <FILE>' cannot be used with '--tls off': without TLS there is no CA";
/// Error: a CA in a mode that signs nothing.
const CA_UNUSED: &str = "the arguments '--ca <FILE>' and '--ca-dir <DIR>' cannot be used with '--tls provided' or '--tls off': there is nothing to sign";
/// Error: one key for a certificate and a CA.
const KEY_OF_BOTH: &str =
    "the arguments '--cert <FILE>' and '--ca <FILE>' cannot be used together: '--key <FILE>' can be the key of only one";
/// Error: a certificate together with a CA.
const CERT_AND_CA_DIR: &str =
    "the arguments '--cert <FILE>' and '--ca-dir <DIR>' cannot be used together: the certificate is already signed";

/// The flags that select the registry's certificate.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Certificates", group = clap::ArgGroup::new("key's").args(["cert", "ca"]).multiple(true))]
pub struct Certificates {
    /// Source of the certificate [default: generate]
    #[arg(long, value_name = "MODE", value_enum)]
    tls: Option<Tls>,

    /// Certificate chain to serve, PEM, leaf first
    #[arg(long, value_name = "FILE", required_if_eq("tls", "provided"), requires = "key")]
    cert: Option<PathBuf>,

    /// Private key of --cert or --ca, PEM (for --ca in PKCS #8)
    #[arg(long, value_name = "FILE", required_if_eq("tls", "provided"), requires = "key's")]
    key: Option<PathBuf>,

    /// Sign the generated certificate with this CA (PEM) instead of a new one; --key is its key
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with = "ca_dir")]
    ca: Option<PathBuf>,

    /// Sign the generated certificate with the CA in this folder; created on first use, with the key readable only by you
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,

    /// Write the CA certificate that clients have to trust to this file (`run` also writes it to its run directory)
    #[arg(long, value_name = "FILE")]
    ca_out: Option<PathBuf>,
}

/// The source of the registry's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Tls {
    /// Generate a certificate at startup, signed by a new CA, --ca or --ca-dir
    Generate,
    /// Use the certificate and key of --cert and --key
    Provided,
    /// Serve plain HTTP without TLS
    Off,
}

impl Certificates {
    /// Returns a message if two flags exclude each other.
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

    /// The mode set by the flags, if any.
    #[must_use]
    pub fn mode(&self) -> Option<Tls> {
        // --cert implies --tls provided.
        self.tls.or(self.cert.is_some().then_some(Tls::Provided))
    }

    /// The certificate chain and key of `--cert` and `--key`.
    #[must_use]
    pub fn provided(&self) -> Option<(PathBuf, PathBuf)> {
        self.cert.clone().zip(self.key.clone())
    }

    /// The CA of `--ca` or `--ca-dir`, if given. Creates the one of `--ca-dir` on first use.
    ///
    /// # Errors
    /// Fails if the CA cannot be used.
    pub fn ca(&self) -> Result<Option<Ca>, CaFilesError> {
        let now = SystemTime::now();
        match (&self.ca, &self.key, &self.ca_dir) {
            (Some(ca), Some(key), _) => Ca::read(ca, key, now).map(Some),
            (_, _, Some(dir)) => Ca::in_dir(dir, now).map(Some),
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

    /// The file of `--ca-out`.
    #[must_use]
    pub fn output(&self) -> Option<&Path> {
        self.ca_out.as_deref()
    }
}
