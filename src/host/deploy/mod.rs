//! `localregistry deploy`: writes a folder with images and Kubernetes objects that serve a packed disk from a cluster, as
//! replicated pods or as a KubeVirt VM. It pushes nothing and contacts no cluster. It never writes a CA's key to the folder.

mod images;
mod objects;
mod server;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::Serialize;

use super::boot::board::Board;
use super::boot::initramfs;
use super::boot::kernel::{self, Flavor};
use super::nodes::ca::{self, Ca};
use super::nodes::trust::{self, Bundle, Endpoint, TrustError, TrustFormat};
use super::support::files::{self, TemporaryDir};
use super::support::interrupt::{Interrupt, Interrupted};
use super::support::report::Report;
use crate::address::{is_dns_label, is_san};
use crate::oci::{Host, Tag};
use images::{ImagesError, Names, Parts, prefix};
use objects::Location;
use server::ServerError;

/// The default node port, in Kubernetes' default range, 30000 to 32767.
const NODE_PORT: u16 = 30500;
/// Largest CA certificate accepted, in bytes.
const LARGEST_CA: u64 = 1 << 20;

/// Make images and Kubernetes objects that serve a disk from a cluster
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Files in the output folder:
  images/           an image layout with PREFIX/localregistry (the server and its content), PREFIX/localregistry-disk and
                    PREFIX/localregistry-boot (disk, kernel and initramfs of a VM)
  images.txt        the names of the images, one per line
  kubernetes.yaml   a Deployment with two replicas, a Service, and the ConfigMap kube-public/local-registry-hosting (KEP-1755)
  kubevirt.yaml     a VirtualMachine instead of the Deployment, and the same Service and ConfigMap
  trust/            with --ca-dir: files that make nodes trust and use the registry (see `localregistry trust`)

Example:
  localregistry deploy disk.erofs --registry reg.test/e2e --host node.test:30500 --ca-dir ca -o out
  cd out && while read image; do skopeo copy oci:images:$image docker://$image; done <images.txt
  kubectl create secret tls localregistry-ca --cert ../ca/ca.crt --key ../ca/ca.key
  kubectl apply -f kubernetes.yaml

The same disk, programs and flags give the same bytes. The registry of --registry has to exist; nothing is pushed to it.")]
pub struct DeployArgs {
    /// The packed disk
    #[arg(value_name = "DISK")]
    disk: PathBuf,

    /// Registry that the cluster pulls these images from: the prefix of their names
    #[arg(long, value_name = "HOST[/PATH]", value_parser = prefix)]
    registry: String,

    /// Name or address of a node, or of a load balancer, by which nodes reach the registry; it goes into the certificate. The
    /// default port is --node-port (repeatable; the ConfigMap gets the first)
    #[arg(long, value_name = "HOST[:PORT]", required = true)]
    host: Vec<Endpoint>,

    /// Tag of the images [default: derived from their digests]
    #[arg(long, value_name = "TAG", value_parser = tag)]
    tag: Option<Tag>,

    /// Namespace of the objects, except the ConfigMap
    #[arg(long, value_name = "NAME", value_parser = namespace, default_value = "default")]
    namespace: String,

    /// Port of every node that forwards to the registry
    #[arg(long, value_name = "PORT", default_value_t = NODE_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    node_port: u16,

    /// Folder of the CA, as in `run`; created on first use. Writes trust files for it
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,

    /// Static program for the server's image [default: this program if it is static, else a build in the same target/]
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,

    /// Kernel of the VM, as in `localregistry kernel`
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    flavor: Flavor,

    /// Take this kernel (ELF or bzImage) instead of --flavor
    #[arg(long, value_name = "FILE", requires = "initramfs", conflicts_with = "flavor")]
    kernel: Option<PathBuf>,

    /// Initramfs for that kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initramfs: Option<PathBuf>,

    /// Folder to write; must be missing or empty
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

fn tag(text: &str) -> Result<Tag, &'static str> {
    text.parse().map_err(|_| "expected 1 to 128 letters, digits, underscores, dots and hyphens, neither dot nor hyphen first")
}

/// A namespace's name (RFC 1123, a label).
fn namespace(text: &str) -> Result<String, &'static str> {
    let fits = is_dns_label(text) && !text.contains(|c: char| c.is_ascii_uppercase());
    fits.then(|| text.to_owned()).ok_or("expected 1 to 63 lower-case letters, digits and hyphens, no hyphen at the ends")
}

/// Why `deploy` failed.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The output is not an empty folder.
    #[error("{} exists and is not an empty folder; expected a new or an empty one", .0.display())]
    Occupied(PathBuf),
    /// A certificate cannot contain this host.
    #[error("the certificate cannot be for the host {0}; expected a DNS name or an IP address")]
    Host(Host),
    /// A host is given as plain HTTP.
    #[error("http://{0} is plain HTTP, but the registry in the cluster serves over TLS; give only the host")]
    Plain(Host),
    /// There is no program for the server's image.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// There is no kernel.
    #[error("there is no kernel for the machine")]
    Kernel(#[source] kernel::KernelError),
    /// There is no initramfs.
    #[error("there is no initramfs for the machine")]
    Initramfs(#[source] initramfs::InitramfsError),
    /// The CA of `--ca-dir`.
    #[error("cannot use the CA")]
    Ca(#[from] ca::CaFilesError),
    /// The CA's certificate cannot be read.
    #[error("cannot read the CA certificate {}", path.display())]
    ReadCa {
        /// The certificate's file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The trust files cannot be made.
    #[error("cannot make the trust files")]
    Trust(#[source] Box<TrustError>),
    /// The images cannot be built.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// The folder cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// A file, or the folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Interrupted by a signal.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The signal thread cannot be started.
    #[error("cannot start the signal thread")]
    Signals(#[source] io::Error),
    /// Standard output cannot be written to.
    #[error("the folder is written, but the summary cannot be printed")]
    Print(#[source] io::Error),
}

impl DeployError {
    /// The exit status: after a signal 128 plus the signal's number, as in a shell; else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted(cause) => cause.exit_code(),
            _ => 1,
        }
    }
}

/// The folder that was written.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeployResult")]
pub(crate) struct DeployResult<'a> {
    /// The folder.
    dir: String,
    /// Names of the images: the server, the VM's disk, the VM's kernel and initramfs.
    images: [&'a str; 3],
    /// Hosts and ports by which nodes reach the registry.
    hosts: Vec<&'a str>,
    /// Host and port by which containers of the cluster reach the registry.
    inside: String,
    /// Whether trust files were written; with `--ca-dir`.
    trust: bool,
}

/// Runs `localregistry deploy`.
///
/// # Errors
/// Fails without changing the output folder.
pub fn run(args: &DeployArgs, report: &Report) -> Result<(), DeployError> {
    let interrupt = Interrupt::catch().map_err(DeployError::Signals)?;
    let done = deploy(args, report, &interrupt);
    // A signal causes errors of many kinds. Report the signal instead.
    if done.is_err() {
        interrupt.check()?;
    }
    done
}

fn deploy(args: &DeployArgs, report: &Report, interrupt: &Interrupt) -> Result<(), DeployError> {
    let folder = &args.output;
    if !is_free(folder) {
        return Err(DeployError::Occupied(folder.clone()));
    }
    let location = args.location()?;
    let server = server::find(args.server.as_deref())?;
    let bundle = args.ca_dir.as_deref().map(|dir| args.bundle(dir, &location)).transpose()?;
    let (kernel, initramfs) = args.boot_files(report)?;

    let write_error = |path: &Path| {
        let path = path.to_owned();
        move |source| DeployError::Write { path, source }
    };
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Checked first, because tempfile's error would name the temporary folder.
    fs::metadata(parent).map_err(write_error(folder))?;
    let temporary = TemporaryDir::new_in(parent, ".localregistry-deploy-").map_err(write_error(folder))?;
    let root = temporary.path().join("root");
    report.step(format!("making images of {}", args.disk.display()));
    let parts = Parts { disk: &args.disk, server: &server, kernel: &kernel, initramfs: &initramfs };
    let names = parts.write(&root.join("images"), &args.registry, args.tag.as_ref(), interrupt)?;
    for (name, content) in texts(&location, &names) {
        fs::write(root.join(name), content).map_err(write_error(&folder.join(name)))?;
    }
    if let Some(bundle) = &bundle {
        let mut tree = trust::tree(bundle, &[TrustFormat::All]);
        // The objects already have a more complete ConfigMap.
        tree.retain(|path, _| !path.starts_with("kubernetes/"));
        trust::write(&tree, &root.join("trust")).map_err(|error| DeployError::Trust(Box::new(error.into())))?;
    }
    interrupt.check()?;
    fs::rename(&root, folder).map_err(write_error(folder))?;

    let result = DeployResult {
        dir: folder.display().to_string(),
        images: names.all(),
        hosts: location.hosts.iter().map(Host::as_str).collect(),
        inside: location.inside(),
        trust: bundle.is_some(),
    };
    let text = format!("{}: {}, for https://{}", folder.display(), names.all().join(", "), result.hosts.join(", https://"));
    report.result(&result, &text).map_err(DeployError::Print)
}

/// Whether the folder is missing or empty.
fn is_free(folder: &Path) -> bool {
    match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// The text files next to the images.
fn texts(location: &Location, names: &Names) -> [(&'static str, String); 3] {
    [
        ("images.txt", names.all().join("\n") + "\n"),
        ("kubernetes.yaml", objects::kubernetes(location, &names.server)),
        ("kubevirt.yaml", objects::kubevirt(location, &names.disk, &names.boot)),
    ]
}

impl DeployArgs {
    fn location(&self) -> Result<Location, DeployError> {
        let port = self.node_port.to_string();
        let mut hosts = Vec::new();
        for endpoint in &self.host {
            let Endpoint { host, tls } = endpoint.clone().with_port(Some(&port));
            if tls == Some(false) {
                return Err(DeployError::Plain(host));
            }
            if !is_san(host.name().trim_matches(['[', ']'])) {
                return Err(DeployError::Host(host));
            }
            hosts.push(host);
        }
        Ok(Location { namespace: self.namespace.clone(), hosts, node_port: self.node_port })
    }

    /// The trust files for nodes. They name the path of their final folder.
    fn bundle(&self, ca_dir: &Path, location: &Location) -> Result<Bundle, DeployError> {
        let failed = |error| DeployError::Trust(Box::new(error));
        let dir = self.output.join("trust");
        let contents = trust::disk_images(std::slice::from_ref(&self.disk), false).map_err(|error| failed(error.into()))?;
        let ca = Ca::in_dir(ca_dir, SystemTime::now())?;
        let pem = files::read(&ca.certificate, LARGEST_CA);
        let pem = pem.map_err(|source| DeployError::ReadCa { path: ca.certificate.clone(), source })?;
        let endpoints = location.hosts.iter().map(|host| Endpoint { host: host.clone(), tls: Some(true) }).collect::<Vec<_>>();
        Bundle::of_run(&endpoints, &endpoints, &[], Some(&String::from_utf8_lossy(&pem)), contents, &dir).map_err(failed)
    }

    fn boot_files(&self, report: &Report) -> Result<(PathBuf, PathBuf), DeployError> {
        if let (Some(kernel), Some(initramfs)) = (&self.kernel, &self.initramfs) {
            return Ok((kernel.clone(), initramfs.clone()));
        }
        let kernel = kernel::cached_or_download(self.flavor, Board::default(), report).map_err(DeployError::Kernel)?;
        let initramfs = initramfs::of_kernel(None, &kernel, report).map_err(DeployError::Initramfs)?;
        Ok((kernel.elf, initramfs))
    }
}
