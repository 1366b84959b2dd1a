//! `localregistry deploy`: the same bits on a Kubernetes cluster. What enters is a packed disk; what leaves is a folder with the images
//! that the cluster runs, and the objects that run them, replicated or as a machine of KubeVirt's. Nothing is pushed and no cluster is
//! asked; a CA's key is never written to the folder.

mod images;
mod objects;
mod server;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::Serialize;

use super::boot::initramfs;
use super::boot::kernel::{self, Flavor};
use super::nodes::ca::{self, Ca};
use super::nodes::trust::{self, Bundle, Endpoint, Format, TrustError};
use super::support::files;
use super::support::interrupt::{Interrupt, Interrupted};
use super::support::report::Report;
use crate::address::is_san;
use crate::oci::{Host, Tag};
use images::{ImagesError, Names, Parts, prefix};
use objects::Place;
use server::ServerError;

/// The port of every node by default: in the range that clusters take by default, 30000 to 32767.
const NODE_PORT: u16 = 30500;
/// Largest CA certificate, in bytes.
const LARGEST_CA: u64 = 1 << 20;

/// Make the images and the objects that serve a disk from a Kubernetes cluster
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The folder gets
  images/           an image layout: PREFIX/localregistry (the server and its content), PREFIX/localregistry-disk and
                    PREFIX/localregistry-boot (the disk, kernel and initramfs of a machine)
  images.txt        their names, one a line
  kubernetes.yaml   a Deployment of two replicas, its Service, the ConfigMap kube-public/local-registry-hosting (KEP-1755)
  kubevirt.yaml     a VirtualMachine instead of the Deployment, with the same Service and ConfigMap
  trust/            with --ca-dir: what nodes need to trust and use it (see `trust`)

Example:
  localregistry deploy images.erofs --registry registry.example/e2e --host registry.test:30500 --ca-dir ca -o cluster
  cd cluster && while read image; do skopeo copy oci:images:$image docker://$image; done <images.txt
  kubectl create secret tls localregistry-ca --cert ../ca/ca.crt --key ../ca/ca.key
  kubectl apply -f kubernetes.yaml

The same disk, programs and flags give the same bytes.")]
pub struct Args {
    /// The packed disk
    #[arg(value_name = "DISK")]
    disk: PathBuf,

    /// Where the cluster pulls the images from: what stands before their names
    #[arg(long, value_name = "HOST[/PATH]", value_parser = prefix)]
    registry: String,

    /// Where nodes reach the registry: a name or an address of the nodes, or of what balances between them; the certificate is for
    /// it. Without a port, on --node-port (repeatable; the ConfigMap has the first)
    #[arg(long, value_name = "HOST[:PORT]", required = true)]
    host: Vec<Endpoint>,

    /// Tag of the images [default: made of their digests]
    #[arg(long, value_name = "TAG", value_parser = tag)]
    tag: Option<Tag>,

    /// Namespace of the objects but the ConfigMap
    #[arg(long, value_name = "NAME", value_parser = namespace, default_value = "default")]
    namespace: String,

    /// Port of every node that leads to the registry
    #[arg(long, value_name = "PORT", default_value_t = NODE_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    node_port: u16,

    /// The CA that this folder keeps, made at first use (as of `run`): trust files are written for it
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,

    /// The static program of the server's image [default: this program where it is static, else one built in the same target/]
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,

    /// The machine's kernel, as `localregistry kernel` gives it
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    flavor: Flavor,

    /// Take this kernel (ELF or bzImage) instead of a flavor's
    #[arg(long, value_name = "FILE", requires = "initramfs", conflicts_with = "flavor")]
    kernel: Option<PathBuf>,

    /// The initramfs of that kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initramfs: Option<PathBuf>,

    /// The folder to write, which is to be new or empty
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

fn tag(text: &str) -> Result<Tag, &'static str> {
    text.parse().map_err(|_| "expected 1 to 128 letters, digits, underscores, dots and hyphens, neither dot nor hyphen first")
}

/// A namespace's name (RFC 1123, a label).
fn namespace(text: &str) -> Result<String, &'static str> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last()).is_some_and(|(first, last)| inner(*first) && inner(*last));
    let fits = ends && bytes.len() <= 63 && bytes.iter().all(|byte| inner(*byte) || *byte == b'-');
    fits.then(|| text.to_owned()).ok_or("expected 1 to 63 lower-case letters, digits and hyphens, no hyphen at the ends")
}

/// Why nothing is written.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// Something is there.
    #[error("{} is there already, and is no empty folder; a new or an empty one is expected", .0.display())]
    Occupied(PathBuf),
    /// A host that no certificate can be for.
    #[error("no certificate can be for the host {0}; a DNS name or an IP address is expected")]
    Host(Host),
    /// A host that is said to speak plain HTTP.
    #[error("http://{0} is plain HTTP, and the cluster's registry serves over TLS; give the host alone")]
    Plain(Host),
    /// No server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// No kernel.
    #[error("there is no kernel for the machine")]
    Kernel(#[source] kernel::Error),
    /// No initramfs.
    #[error("there is no initramfs for the machine")]
    Initramfs(#[source] initramfs::Error),
    /// The CA.
    #[error("cannot use the CA")]
    Ca(#[from] ca::Error),
    /// The CA's certificate.
    #[error("cannot read the CA certificate {}", path.display())]
    ReadCa {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The trust files.
    #[error("cannot make the trust files")]
    Trust(#[source] Box<TrustError>),
    /// The images.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// The folder.
    #[error("cannot write {}", path.display())]
    Write {
        /// A file, or the folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A signal came.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// No signals can be caught.
    #[error("cannot start a thread for signals")]
    Signals(#[source] io::Error),
    /// The result cannot be printed.
    #[error("it is written, and the summary cannot be printed")]
    Print(#[source] io::Error),
}

impl DeployError {
    /// The status that the process ends with: 128 and its number after a signal, as a shell has it, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted(Interrupted(signal)) => u8::try_from(128 + *signal as i32).unwrap_or(1),
            _ => 1,
        }
    }
}

/// What was written.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeployResult")]
pub(crate) struct Written<'a> {
    /// The folder, as it was given.
    dir: &'a Path,
    /// Names of the images: the server, the machine's disk, its kernel and initramfs.
    images: [&'a str; 3],
    /// Where nodes reach the registry: hosts with their ports.
    hosts: Vec<&'a str>,
    /// Where containers of the cluster reach it: host and port.
    inside: String,
    /// Whether there are trust files; with `--ca-dir`.
    trust: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// [`DeployError`]. The folder is then as it was.
pub fn run(args: &Args, report: &Report) -> Result<(), DeployError> {
    let interrupt = Interrupt::catch().map_err(DeployError::Signals)?;
    let done = deploy(args, report, &interrupt);
    // What a signal cut short fails in many ways, of which it is the cause.
    if done.is_err() {
        interrupt.check()?;
    }
    done
}

fn deploy(args: &Args, report: &Report, interrupt: &Interrupt) -> Result<(), DeployError> {
    let folder = &args.output;
    if !is_free(folder) {
        return Err(DeployError::Occupied(folder.clone()));
    }
    let place = args.place()?;
    let server = server::find(args.server.as_deref())?;
    let bundle = args.ca_dir.as_deref().map(|dir| args.bundle(dir, &place)).transpose()?;
    let (kernel, initramfs) = args.boot_files(report)?;

    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |source| DeployError::Write { path, source }
    };
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Whose error does not name the passing folder.
    fs::metadata(parent).map_err(wrong(folder))?;
    let work = tempfile::Builder::new().prefix(".localregistry-deploy-").tempdir_in(parent).map_err(wrong(folder))?;
    let root = work.path().join("root");
    report.step(format!("making images of {}", args.disk.display()));
    let parts = Parts { disk: &args.disk, server: &server, kernel: &kernel, initramfs: &initramfs };
    let names = parts.write(&root.join("images"), &args.registry, args.tag.as_ref(), interrupt)?;
    for (name, content) in texts(&place, &names) {
        fs::write(root.join(name), content).map_err(wrong(&folder.join(name)))?;
    }
    if let Some(bundle) = &bundle {
        let mut tree = trust::tree(bundle, &[Format::All]);
        // The ConfigMap is among the objects, and says more there.
        tree.retain(|path, _| !path.starts_with("kubernetes/"));
        trust::write(&tree, &root.join("trust")).map_err(|error| DeployError::Trust(Box::new(error.into())))?;
    }
    interrupt.check()?;
    fs::rename(&root, folder).map_err(wrong(folder))?;

    let written = Written {
        dir: folder,
        images: names.all(),
        hosts: place.hosts.iter().map(Host::as_str).collect(),
        inside: place.inside(),
        trust: bundle.is_some(),
    };
    let text = format!("{}: {}, for https://{}", folder.display(), names.all().join(", "), written.hosts.join(", https://"));
    report.result(&written, &text).map_err(DeployError::Print)
}

/// Whether the folder is missing or empty.
fn is_free(folder: &Path) -> bool {
    match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// The files beside the images.
fn texts(place: &Place, names: &Names) -> [(&'static str, String); 3] {
    [
        ("images.txt", names.all().join("\n") + "\n"),
        ("kubernetes.yaml", objects::kubernetes(place, &names.server)),
        ("kubevirt.yaml", objects::kubevirt(place, &names.disk, &names.boot)),
    ]
}

impl Args {
    fn place(&self) -> Result<Place, DeployError> {
        let port = self.node_port.to_string();
        let mut hosts = Vec::new();
        for given in &self.host {
            let Endpoint { host, tls } = given.clone().with_port(Some(&port));
            if tls == Some(false) {
                return Err(DeployError::Plain(host));
            }
            if !is_san(host.name().trim_matches(['[', ']'])) {
                return Err(DeployError::Host(host));
            }
            hosts.push(host);
        }
        Ok(Place { namespace: self.namespace.clone(), hosts, node_port: self.node_port })
    }

    /// What nodes need to trust it, for the folder that it is to be in.
    fn bundle(&self, ca_dir: &Path, place: &Place) -> Result<Bundle, DeployError> {
        let failed = |error| DeployError::Trust(Box::new(error));
        let dir = self.output.join("trust");
        let contents = trust::contents(std::slice::from_ref(&self.disk)).map_err(|error| failed(error.into()))?;
        let ca = Ca::kept_in(ca_dir, SystemTime::now())?;
        let pem = files::read(&ca.certificate, LARGEST_CA);
        let pem = pem.map_err(|source| DeployError::ReadCa { path: ca.certificate.clone(), source })?;
        let places = place.hosts.iter().map(|host| Endpoint { host: host.clone(), tls: Some(true) }).collect::<Vec<_>>();
        Bundle::of_run(&places, &places, &[], Some(&String::from_utf8_lossy(&pem)), contents, &dir).map_err(failed)
    }

    fn boot_files(&self, report: &Report) -> Result<(PathBuf, PathBuf), DeployError> {
        if let (Some(kernel), Some(initramfs)) = (&self.kernel, &self.initramfs) {
            return Ok((kernel.clone(), initramfs.clone()));
        }
        let kernel = kernel::cached_or_download(self.flavor, report).map_err(DeployError::Kernel)?;
        let initramfs = initramfs::cached(None, &kernel.modules, report).map_err(DeployError::Initramfs)?;
        Ok((kernel.elf, initramfs))
    }
}
