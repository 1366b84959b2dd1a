//! What nodes need to trust and use a registry, as the files that each runtime reads. A [`Bundle`] and a choice of [`Format`]s enter, a
//! [`Tree`] of files leaves; every function of a format is pure. Only [`write()`] touches the disk.
//!
//! ```text
//! endpoint, CA, upstream hosts, images ─▶ Bundle ─ tree ─▶ Tree ─ write ─▶ DIR/FORMAT/…
//! ```
//!
//! For each upstream host on the disk there are mirror entries, and they are such that a runtime asks nobody else: an image that is
//! not on the disk is an error at once, whether or not the node reaches the internet.

mod command;
mod containerd;
mod containers;
mod docker;
mod endpoint;
mod everyone;
mod images;
mod k3s;
mod kind;
pub(in crate::host) mod kubernetes;
mod minikube;
mod talos;
pub(in crate::host) mod text;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use crate::oci::{Host, ImageName};

pub(crate) use command::Written;
pub use command::{Args, TrustError, prepare, run};
pub use endpoint::{Endpoint, EndpointError};
pub use images::{Contents, ContentsError, contents};
pub use write::{WriteError, write};

/// Files by their paths below the bundle's folder.
pub type Tree = BTreeMap<String, String>;

/// What a bundle is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Where nodes reach the registry; the first is where the mirror entries point. Never empty.
    pub endpoints: Vec<Host>,
    /// The CA to trust, PEM. None: the registry speaks plain HTTP.
    pub ca: Option<String>,
    /// Hosts that the registry stands in for.
    pub upstreams: BTreeSet<Host>,
    /// The tagged images on the disk.
    pub images: Vec<ImageName>,
    /// The folder that the bundle is written to, an absolute path: some files name others by it.
    pub dir: String,
}

/// A runtime, tool or audience that files are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Format {
    /// Everything below
    All,
    /// certs.d for containerd, its CRI plugin, ctr, nerdctl, Cluster API
    Containerd,
    /// certs.d, daemon.json and lines for /etc/hosts
    Docker,
    /// certs.d and registries.conf.d for podman, skopeo and buildah
    Podman,
    /// The same for CRI-O
    Crio,
    /// registries.yaml and a drop-in of config.yaml
    K3s,
    /// RegistryMirrorConfig and RegistryTLSConfig documents
    Talos,
    /// A cluster's config that mounts certs.d
    Kind,
    /// Files and certificates for ~/.minikube, and flags
    Minikube,
    /// The ConfigMap kube-public/local-registry-hosting (KEP-1755)
    Kubernetes,
    /// Nothing but what is made in any case: ca.crt, env and images.txt
    Env,
}

impl Format {
    /// The name of its folder.
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

    /// Its files, by their paths below its folder.
    fn files(self, bundle: &Bundle) -> Tree {
        match self {
            Self::All | Self::Env => Tree::new(),
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

/// Every format that has files of its own.
const FORMATS: [Format; 9] = [
    Format::Containerd,
    Format::Docker,
    Format::Podman,
    Format::Crio,
    Format::K3s,
    Format::Talos,
    Format::Kind,
    Format::Minikube,
    Format::Kubernetes,
];

/// Names that a bundle may have at its top.
fn top_names() -> impl Iterator<Item = &'static str> {
    FORMATS.into_iter().map(Format::folder).chain(everyone::NAMES)
}

/// The files of `bundle` in these formats: those for everyone at the top, each format's in a folder of its own.
#[must_use]
pub fn tree(bundle: &Bundle, formats: &[Format]) -> Tree {
    let wanted = |format: &Format| formats.contains(format) || formats.contains(&Format::All);
    let mut tree = everyone::files(bundle);
    for format in FORMATS.into_iter().filter(wanted) {
        tree.extend(under(format.folder(), format.files(bundle)));
    }
    tree
}

/// `tree`, in `folder`.
fn under(folder: &str, tree: Tree) -> Tree {
    tree.into_iter().map(|(path, content)| (format!("{folder}/{path}"), content)).collect()
}

impl Bundle {
    /// Where the mirror entries point, as it stands before an image's name.
    fn address(&self) -> &str {
        self.endpoints.first().map(Host::as_str).unwrap_or_default()
    }

    /// The same as a URL.
    fn url(&self) -> String {
        self.url_of(self.address())
    }

    /// The URL of the registry at `address`.
    fn url_of(&self, address: &str) -> String {
        format!("{}://{address}", if self.ca.is_some() { "https" } else { "http" })
    }

    /// Where nodes reach the registry, as it stands before an image's name.
    fn addresses(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(Host::as_str)
    }

    /// The hosts that the registry stands in for. Where images are filed under one of its own addresses, that needs no mirror.
    fn mirrored(&self) -> impl Iterator<Item = &str> {
        self.upstreams.iter().filter(|host| !self.endpoints.contains(host)).map(Host::as_str)
    }

    /// `ca.crt` below each of these folders; nothing where there is no CA.
    fn certificates<'a>(&self, folders: impl IntoIterator<Item = &'a str>) -> Tree {
        let Some(ca) = &self.ca else { return Tree::new() };
        folders.into_iter().map(|folder| (format!("{folder}/ca.crt"), ca.clone())).collect()
    }
}
