//! The files that nodes need to trust and use a registry, in the format of each runtime. The formats are pure functions from a
//! [`Bundle`] to a [`FileTree`] of files; only [`write()`] writes to disk.
//!
//! ```text
//! endpoint, CA, upstream hosts, images ─▶ Bundle ─ tree ─▶ FileTree ─ write ─▶ DIR/FORMAT/…
//! ```
//!
//! Upstream hosts of the disk get mirror entries, written such that a runtime asks no other server: pulling an image that is not on
//! the disk fails at once, whether or not the node has internet access.

mod command;
mod common;
mod containerd;
mod containers;
mod docker;
mod endpoint;
mod images;
mod k3s;
mod kind;
pub(in crate::host) mod kubernetes;
mod minikube;
mod talos;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use crate::oci::{Host, ImageName};

pub(crate) use command::TrustResult;
pub use command::{TrustArgs, TrustError, run};
pub use endpoint::{Endpoint, EndpointError};
pub use images::{DiskImages, DiskImagesError, disk_images};
pub use write::{WriteError, check, write};

/// File contents by path relative to the bundle's folder.
pub type FileTree = BTreeMap<String, String>;

/// The content of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Where nodes reach the registry. Never empty; mirror entries use the first.
    pub endpoints: Vec<Host>,
    /// The CA to trust, PEM. `None`: the registry serves plain HTTP.
    pub ca: Option<String>,
    /// Hosts that get mirror entries.
    pub upstreams: BTreeSet<Host>,
    /// The tagged images on the disk.
    pub images: Vec<ImageName>,
    /// The absolute path of the bundle's folder. Some files contain it.
    pub dir: String,
}

/// A tool to write files for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum TrustFormat {
    /// All of these
    All,
    /// certs.d for containerd, its CRI plugin, ctr, nerdctl and Cluster API
    Containerd,
    /// certs.d and daemon.json for dockerd, and lines for /etc/hosts
    Docker,
    /// certs.d and registries.conf.d for podman, skopeo and buildah
    Podman,
    /// The same files, for CRI-O
    Crio,
    /// registries.yaml and a drop-in for config.yaml, for k3s and RKE2
    K3s,
    /// RegistryMirrorConfig and RegistryTLSConfig documents
    Talos,
    /// A cluster config that mounts certs.d
    Kind,
    /// Files and certificates for ~/.minikube, and flags for `minikube start`
    Minikube,
    /// The ConfigMap kube-public/local-registry-hosting (KEP-1755)
    Kubernetes,
    /// Only the files that are always written: ca.crt, env and images.txt
    Env,
}

impl TrustFormat {
    /// The name of the format's folder.
    fn folder(self) -> &'static str {
        match self {
            Self::All | Self::Env => "",
            Self::Containerd => "containerd",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Crio => "crio",
            Self::K3s => "k3s",
            Self::Talos => "talos",
            Self::Kind => "kind",
            Self::Minikube => "minikube",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// What the tool cannot do with this registry, a sentence each.
    fn limits(self, bundle: &Bundle) -> Vec<String> {
        match self {
            Self::All | Self::Podman | Self::Crio | Self::Minikube => containers::limits(bundle),
            _ => Vec::new(),
        }
    }

    /// The format's files, by path relative to its folder.
    fn files(self, bundle: &Bundle) -> FileTree {
        match self {
            Self::All | Self::Env => FileTree::new(),
            Self::Containerd => under("certs.d", containerd::certs(bundle)),
            Self::Docker => docker::files(bundle),
            Self::Podman | Self::Crio => containers::files(bundle),
            Self::K3s => k3s::files(bundle),
            Self::Talos => talos::files(bundle),
            Self::Kind => kind::files(bundle),
            Self::Minikube => minikube::files(bundle),
            Self::Kubernetes => kubernetes::files(bundle),
        }
    }
}

/// The formats with files of their own.
const FORMATS: [TrustFormat; 9] = [
    TrustFormat::Containerd,
    TrustFormat::Docker,
    TrustFormat::Podman,
    TrustFormat::Crio,
    TrustFormat::K3s,
    TrustFormat::Talos,
    TrustFormat::Kind,
    TrustFormat::Minikube,
    TrustFormat::Kubernetes,
];

/// The names that a bundle can have at its top level.
fn top_names() -> impl Iterator<Item = &'static str> {
    FORMATS.into_iter().map(TrustFormat::folder).chain(common::NAMES)
}

/// The files of `bundle` in these formats: common files at the top level, and a folder for each format.
#[must_use]
pub fn tree(bundle: &Bundle, formats: &[TrustFormat]) -> FileTree {
    let wanted = |format: &TrustFormat| formats.contains(format) || formats.contains(&TrustFormat::All);
    let mut tree = common::files(bundle);
    for format in FORMATS.into_iter().filter(wanted) {
        tree.extend(under(format.folder(), format.files(bundle)));
    }
    tree
}

/// Moves `tree` into `folder`.
fn under(folder: &str, tree: FileTree) -> FileTree {
    tree.into_iter().map(|(path, content)| (format!("{folder}/{path}"), content)).collect()
}

impl Bundle {
    /// The address that mirror entries use, as in image names.
    fn address(&self) -> &str {
        self.endpoints.first().map(Host::as_str).unwrap_or_default()
    }

    /// The address in the names of images: the first that every client takes there, or else the first.
    fn image_address(&self) -> &str {
        self.endpoints.iter().find(|host| !host.is_ipv6()).map_or_else(|| self.address(), Host::as_str)
    }

    /// The URL that mirror entries use.
    fn url(&self) -> String {
        self.url_of(self.address())
    }

    /// The URL of the registry at `address`.
    fn url_of(&self, address: &str) -> String {
        format!("{}://{address}", if self.ca.is_some() { "https" } else { "http" })
    }

    /// The registry's addresses, as in image names.
    fn addresses(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(Host::as_str)
    }

    /// The hosts that need mirror entries: images under the registry's own address need none.
    fn mirrored(&self) -> impl Iterator<Item = &str> {
        self.mirrored_hosts().map(Host::as_str)
    }

    /// As [`Bundle::mirrored`].
    fn mirrored_hosts(&self) -> impl Iterator<Item = &Host> {
        self.upstreams.iter().filter(|host| !self.endpoints.contains(host))
    }

    /// `ca.crt` in each of these folders. Empty without a CA.
    fn certificates<'a>(&self, folders: impl IntoIterator<Item = &'a str>) -> FileTree {
        let Some(ca) = &self.ca else { return FileTree::new() };
        folders.into_iter().map(|folder| (format!("{folder}/ca.crt"), ca.clone())).collect()
    }
}
