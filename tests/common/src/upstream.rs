//! Registries to pull from: a scripted one, and Debian's docker-registry.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, LazyLock, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::layout::{Layout, Stored};
use crate::pack::Bench;
use crate::wait::at_once;
use localregistry::oci::Digest;

/// A received request.
#[derive(Debug, Clone)]
pub struct ReceivedRequest {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl ReceivedRequest {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// A response to send.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Closes the connection after this many bytes of the body.
    pub cut: Option<usize>,
    /// Sends one blank after another behind the body, which never ends.
    pub drips: bool,
}

impl Answer {
    pub fn new(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { status, headers, body: body.to_owned(), cut: None, drips: false }
    }

    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
        Self::new(status, &[("Content-Type", "application/json")], body.as_bytes())
    }

    pub fn redirect(to: &str) -> Self {
        Self::new(307, &[("Location", to)], b"")
    }
}

/// A scripted server on a free port.
pub struct Upstream {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
}

impl Upstream {
    /// Serves plain HTTP.
    pub fn start(answer: impl Fn(&ReceivedRequest) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_on("127.0.0.1:0", None, answer)
    }

    /// Serves TLS if a certificate and key are given in PEM.
    pub fn start_on(
        address: &str,
        tls: Option<(&str, &str)>,
        answer: impl Fn(&ReceivedRequest) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let tls = tls.map(|(certificate, key)| {
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap())
        });
        let (log, answer) = (Arc::clone(&requests), Arc::new(answer));
        // The thread ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer, tls) = (Arc::clone(&log), Arc::clone(&answer), tls.clone());
                std::thread::spawn(move || serve(stream, tls, &log, answer.as_ref()));
            }
        });
        Self { address, requests }
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// The targets of the requests so far.
    pub fn targets(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.target).collect()
    }
}

fn serve(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    log: &Mutex<Vec<ReceivedRequest>>,
    answer: &dyn Fn(&ReceivedRequest) -> Answer,
) {
    let mut first = [0];
    if stream.peek(&mut first).unwrap_or(0) == 0 {
        return;
    }
    match tls {
        Some(config) => talk(StreamOwned::new(ServerConnection::new(config).unwrap(), stream), log, answer),
        // A TLS handshake on a plain port gets the answer of Go's servers.
        None if first[0] == 0x16 => drop((&stream).write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n")),
        None => talk(stream, log, answer),
    }
}

fn talk(stream: impl Read + Write, log: &Mutex<Vec<ReceivedRequest>>, answer: &dyn Fn(&ReceivedRequest) -> Answer) {
    let mut stream = BufReader::new(stream);
    let Some(request) = read_request(&mut stream) else { return };
    log.lock().unwrap().push(request.clone());
    let Answer { status, headers, body, cut, drips } = answer(&request);
    let mut head = format!("HTTP/1.1 {status} x\r\nConnection: close\r\n");
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    if !drips && !headers.iter().any(|(name, _)| *name == "Content-Length") {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let sent = &body[..cut.unwrap_or(body.len()).min(body.len())];
    // The client may have closed the connection.
    let stream = stream.get_mut();
    let mut written =
        stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(sent)).and_then(|()| stream.flush());
    while drips && written.is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(100));
        written = stream.write_all(b" ").and_then(|()| stream.flush());
    }
}

fn read_request(stream: &mut impl BufRead) -> Option<ReceivedRequest> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut request = ReceivedRequest { method, target, headers, body: String::new() };
    let mut body = vec![0; request.header("content-length").map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).ok()?;
    request.body = String::from_utf8(body).unwrap();
    Some(request)
}

/// A CONNECT proxy (RFC 9110, section 9.3.6), and the methods and targets of its requests.
pub fn proxy() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&requests);
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let head = read_request(&mut BufReader::new(client.try_clone().unwrap())).unwrap();
            log.lock().unwrap().push(format!("{} {}", head.method, head.target));
            let mut server = TcpStream::connect(&head.target).unwrap();
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::thread::spawn(move || std::io::copy(&mut client, &mut server));
        }
    });
    (address, requests)
}

/// The content of a registry: blobs of a layout, and tags.
pub struct Images {
    blobs: PathBuf,
    tags: HashMap<String, String>,
    pub referrers: Vec<(String, String)>,
}

impl Images {
    /// The layout's blobs, and these tags with their digests.
    pub fn new(layout: &Layout, tags: &[(&str, &str)]) -> Self {
        let tags = tags.iter().map(|(tag, digest)| ((*tag).to_owned(), (*digest).to_owned())).collect();
        Self { blobs: layout.path().to_owned(), tags, referrers: Vec::new() }
    }

    /// The registry's response, for any repository.
    pub fn answer(&self, request: &ReceivedRequest) -> Answer {
        let (_, rest) = request.target.split_once("/v2/").unwrap();
        if rest.is_empty() {
            return Answer::new(200, &[], b"{}");
        }
        if let Some((_, name)) = rest.split_once("/manifests/") {
            let digest = self.tags.get(name).map_or(name, String::as_str);
            let Some(content) = self.blob(digest) else {
                return Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown");
            };
            let kind = serde_json::from_slice::<serde_json::Value>(&content).unwrap()["mediaType"].as_str().unwrap().to_owned();
            return Answer::new(200, &[("Content-Type", &kind), ("Docker-Content-Digest", digest)], &content);
        }
        if let Some((_, digest)) = rest.split_once("/blobs/") {
            let Some(content) = self.blob(digest) else { return Answer::error(404, "BLOB_UNKNOWN", "blob unknown") };
            let Some(range) = request.header("range") else { return Answer::new(200, &[], &content) };
            let from: usize = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
            let given = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
            return Answer::new(206, &[("Content-Range", &given)], &content[from..]);
        }
        Answer::error(404, "UNSUPPORTED", "no such endpoint")
    }

    fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        fs::read(self.blobs.join("blobs").join(digest.replace(':', "/"))).ok()
    }
}

/// The layer of the image, which is larger than one read.
pub fn layer() -> Vec<u8> {
    static LAYER: LazyLock<Vec<u8>> = LazyLock::new(|| (0..251).cycle().take(1_000_000).collect());
    LAYER.clone()
}

/// A registry with the image `a/b:1`. It sends the response of `fault`, or the correct one if that returns `None`.
pub fn registry(fault: impl Fn(&ReceivedRequest) -> Option<Answer> + Send + Sync + 'static) -> (Layout, Stored, Upstream) {
    let layout = Layout::default();
    let image = layout.manifest(&[&layer()]);
    let images = Images::new(&layout, &[("1", &image.digest.to_string())]);
    let upstream = Upstream::start(move |request| fault(request).unwrap_or_else(|| images.answer(request)));
    (layout, image, upstream)
}

/// A port that refuses connections while the socket is held. A port that is only free may go to another server or client of a test.
pub fn refusing() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // Bound, and without a listener.
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// The target of the layer.
pub fn blob_target() -> String {
    format!("/v2/a/b/blobs/{}", Digest::sha256_of(&layer()))
}

/// The target of the manifest.
pub const MANIFEST: &str = "/v2/a/b/manifests/1";

/// Asserts that a pull fails with this message if `fault` answers the request for `target`.
pub fn refused_with(target: &str, fault: Answer, expected: &str) {
    let target = target.to_owned();
    let (_layout, _, upstream) = registry(move |request| (request.target == target).then(|| fault.clone()));
    pull_refused(&upstream.address.to_string(), &[], expected);
}

/// Asserts that `pack --pull HOST/a/b:1 MORE` fails with this message, as [`Bench::refused`] does. Its two attempts run at once, because
/// most of their time is pauses before the next request.
pub fn pull_refused(host: &str, more: &[&str], expected: &str) {
    let name = format!("{host}/a/b:1");
    let message = format!("cannot pull {name}: {}", expected.replace("HOST", host));
    at_once(&[None, Some("the old disk")], |old| {
        Bench::default().refused_over(*old, &[&["--pull", &name], more].concat(), &message)
    });
}

/// Debian's docker-registry on a free port, with temporary storage.
pub struct DockerRegistry {
    child: Child,
    pub address: String,
    _dir: TempDir,
}

impl DockerRegistry {
    /// Starts it, with these users (`htpasswd -B`) if any.
    pub fn start(users: Option<&Path>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("storage");
        let mut config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n",
            root.display()
        );
        if let Some(users) = users {
            config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", users.display()));
        }
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let mut command = crate::program("docker-registry");
        command.arg("serve").arg(dir.path().join("config.yml")).env("REGISTRY_LOG_LEVEL", "info").stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry ended");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split('"').next().unwrap().to_owned();
            }
        };
        // Reads the log, so that the registry never blocks on a full pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, address, _dir: dir }
    }

    /// Pushes an image of a layout with skopeo, unchanged.
    pub fn push(&self, layout: &Path, name: &str, to: &str, arguments: &[&str]) {
        let mut command = crate::program("skopeo");
        command.env("HOME", layout).env("XDG_RUNTIME_DIR", layout).env("REGISTRY_AUTH_FILE", layout.join("none.json"));
        command.args(["--insecure-policy", "copy", "--all", "--preserve-digests", "--dest-tls-verify=false"]).args(arguments);
        command.arg(format!("oci:{}:{name}", layout.display())).arg(format!("docker://{}/{to}", self.address));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
