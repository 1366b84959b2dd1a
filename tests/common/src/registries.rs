//! Two servers in separate processes with the images that real clients pull.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use localregistry::oci::media_type::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use localregistry::proto::{Event, Request, event};
use serde_json::{Value, json};

use crate::certificates;
use crate::http::Response;
use crate::layout::{Layout, Stored};
use crate::pack::{Bench, PROGRAM};
use crate::private::ADDRESS;
use crate::process::Process;
use crate::vm::succeed;

/// The output of a container of the image.
pub const GREETING: &str = concat!("hello from localregistry ", env!("CARGO_PKG_VERSION"), "\n");

/// The served images.
pub struct Images {
    pub layout: Layout,
    /// `test/multi:1`, `docker.io/library/hello:1` and `docker.io/library/mirrored:1`: an index of two manifests.
    pub index: Stored,
    /// Digest of the index's manifest for this machine.
    pub amd64: String,
    /// Digest of that manifest's config.
    pub config: String,
    /// `test/multi:artifact`, whose subject is the index.
    pub artifact: Stored,
    /// An untagged artifact, whose subject is `artifact`.
    pub signature: Stored,
}

impl Images {
    pub fn new(bench: &Bench) -> Self {
        succeed(crate::program(PROGRAM).args(["--quiet", "sample", "--output"]).arg(bench.path("sample")));
        let mut layout = Layout::default();
        for blob in fs::read_dir(bench.path("sample/blobs/sha256")).unwrap() {
            layout.blob(&fs::read(blob.unwrap().path()).unwrap());
        }
        let sample: Value = serde_json::from_slice(&fs::read(bench.path("sample/index.json")).unwrap()).unwrap();
        let mut amd64 = sample["manifests"][0].clone();
        amd64.as_object_mut().unwrap().remove("annotations");
        amd64["platform"] = json!({"os": "linux", "architecture": "amd64"});
        let config = layout.json(&json!({"architecture": "arm64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}));
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.descriptor(OCI_CONFIG), "layers": []});
        let mut arm64 = layout.json(&manifest).descriptor(OCI_MANIFEST);
        arm64["platform"] = json!({"os": "linux", "architecture": "arm64"});
        // The other platform comes first, so that a client that takes the first manifest cannot run it.
        let index = layout.json(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [arm64, amd64]}));
        let artifact = layout.artifact("application/x.report", index, b"reported");
        let signature = layout.artifact("application/x.signature", artifact, b"signed");
        layout.name(signature, OCI_MANIFEST, "");
        layout.name(index, OCI_INDEX, "test/multi:1").name(index, OCI_INDEX, "docker.io/library/hello:1");
        layout.name(index, OCI_INDEX, "docker.io/library/mirrored:1").name(artifact, OCI_MANIFEST, "test/multi:artifact");
        // A client that omits the upstream gets this image instead.
        layout.image("library/hello:1", b"not of docker.io");
        layout.write();
        let amd64 = amd64["digest"].as_str().unwrap().to_owned();
        let manifest: Value = serde_json::from_slice(&fs::read(blob(layout.path(), &amd64)).unwrap()).unwrap();
        let config = manifest["config"]["digest"].as_str().unwrap().to_owned();
        Self { layout, index, amd64, config, artifact, signature }
    }
}

pub fn blob(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

/// Two servers with different CAs, and a folder for a client.
pub struct Registries {
    pub bench: Bench,
    pub images: Images,
    server: Process,
    /// `HOST:PORT`.
    pub address: String,
    other: Process,
}

impl Default for Registries {
    fn default() -> Self {
        let bench = Bench::default();
        let images = Images::new(&bench);
        let folder = images.layout.path().to_owned();
        Self::serve(bench, images, &folder)
    }
}

impl Registries {
    /// Serves what `pack --platform linux/amd64` makes of the images.
    pub fn of_one_platform() -> Self {
        let bench = Bench::default();
        let images = Images::new(&bench);
        bench.pack(&[&images.layout.path().display().to_string(), "--platform", "linux/amd64"]);
        bench.extract("disk.erofs");
        let folder = bench.path("disk.erofs.extracted");
        Self::serve(bench, images, &folder)
    }

    fn serve(bench: Bench, images: Images, folder: &Path) -> Self {
        let ca = |name: &str| {
            fs::create_dir(bench.path(name)).unwrap();
            bench.path(name).join("ca.crt").display().to_string()
        };
        let listen = format!("{ADDRESS}:0");
        let https = format!("{ADDRESS}:443");
        let arguments = ["--listen", &listen, "--listen", &https, "--ca-out", &ca("certs")];
        let server = Process::start_with(folder, &arguments, None);
        let other = Process::start_with(folder, &["--listen", &listen, "--ca-out", &ca("other")], None);
        let address = server.addresses[1].to_string();
        Self { bench, images, server, address, other }
    }

    /// The address of the server with the other CA.
    pub fn untrusted(&self) -> String {
        self.other.addresses[1].to_string()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.bench.path(name)
    }

    pub fn ca(&self) -> PathBuf {
        self.path("certs/ca.crt")
    }

    /// A configuration for the clients on containers/image: the server mirrors docker.io under a path.
    pub fn mirror(&self) -> PathBuf {
        let mirror =
            format!("[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"{}/docker.io\"\n", self.address);
        self.bench.file("mirror.conf", mirror.as_bytes())
    }

    /// Sends a request to the first server without a real client.
    pub fn get(&self, target: &str) -> Response {
        let ca = fs::read_to_string(self.ca()).unwrap();
        let config = certificates::client(&ca, &rustls::version::TLS13, None);
        certificates::send(self.address.parse().unwrap(), &config, "GET", target, &[]).unwrap()
    }

    /// Writes the trust bundle of the first server to the folder `trust`.
    pub fn trust(&self) -> PathBuf {
        let mut command =
            self.bench.command(&["trust", "--endpoint", &self.address, "--ca", "certs/ca.crt", "--output", "trust"]);
        succeed(command.arg("--disk").arg(self.images.layout.path()));
        self.path("trust")
    }

    /// The first server's log.
    pub fn events(&self) -> &Path {
        &self.server.events
    }

    /// Ends the servers and returns every request to the first. Asserts that the other got none, because no client trusted it.
    pub fn requests(&mut self) -> Vec<Request> {
        self.other.stop();
        assert_eq!(requests(&self.other), []);
        self.server.stop();
        requests(&self.server)
    }
}

/// The requests in a server's log.
pub fn requests(server: &Process) -> Vec<Request> {
    let lines = fs::read_to_string(&server.events).unwrap();
    let events = lines.lines().filter_map(|line| serde_json::from_str::<Event>(line).unwrap().event);
    events.filter_map(|event| if let event::Event::Request(request) = event { Some(request) } else { None }).collect()
}

/// Asserts that the command fails with the message of Go's clients for an unknown CA.
pub fn refused(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("x509: certificate signed by unknown authority"), "{command:?}: {said}");
}
