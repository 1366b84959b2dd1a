//! HTTP clients and scanners of other projects against a running `localregistry serve`: curl, nghttp and h2load, Python's h2 with
//! hypothesis, Go's net/http, node's http2, testssl.sh, and skopeo with partial pulls. Each response is compared byte by byte with
//! the served files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use localregistry::oci::Digest;
use localregistry::oci::media_type::OCI_MANIFEST;
use localregistry::proto::Request;
use serde_json::{Value, json};
use testing::disks::noise;
use testing::layout::Layout;
use testing::pack::{Bench, text};
use testing::podman;
use testing::private::privately;
use testing::process::Process;
use testing::registries::requests;
use testing::vm::succeed;

const SUPPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support");

/// Sizes of the blobs in bytes, none a multiple of a page or buffer.
const SIZES: [usize; 6] = [0, 1, 4095, 200_001, (1 << 20) + 7, (3 << 20) + 11];

/// A registry in a separate process, with an image whose layers have [`SIZES`], and a folder for clients.
struct Site {
    /// Removed when the test ends.
    _layout: Layout,
    bench: Bench,
    process: Process,
    /// The served content: URL path and file.
    contents: Vec<(String, PathBuf)>,
}

impl Site {
    fn new() -> Self {
        let (mut layout, bench) = (Layout::default(), Bench::default());
        let layers: Vec<Vec<u8>> = SIZES.iter().map(|size| noise(*size as u64 + 1, *size)).collect();
        let manifest = layout.manifest(&layers.iter().map(Vec::as_slice).collect::<Vec<_>>());
        layout.name(manifest, OCI_MANIFEST, "test/sizes:1");
        let digests = layers.iter().map(|layer| ("blobs", Digest::sha256_of(layer))).chain([("manifests", manifest.digest)]);
        let contents: Vec<(String, PathBuf)> = digests
            .map(|(kind, digest)| (format!("/v2/test/sizes/{kind}/{digest}"), layout.path().join(digest.blob_path())))
            .collect();
        let listed: Vec<Value> = contents.iter().map(|(target, file)| json!({"target": target, "file": file})).collect();
        bench.file("contents.json", &serde_json::to_vec(&listed).unwrap());
        let ca = bench.path("ca.crt").display().to_string();
        let arguments = ["--plain", "127.0.0.1:0", "--ca-out", &ca];
        let process = Process::start_with(layout.write(), &arguments, None);
        Self { _layout: layout, bench, process, contents }
    }

    /// The registry's URL with TLS and without.
    fn bases(&self) -> [String; 2] {
        [format!("https://{}", self.process.addresses[0]), format!("http://{}", self.process.addresses[1])]
    }

    /// The path of the blob with this size, and its file.
    fn blob(&self, size: usize) -> &(String, PathBuf) {
        &self.contents[SIZES.iter().position(|one| *one == size).unwrap()]
    }

    /// Runs a program that reads the list of contents. It must succeed. Returns its output.
    fn run(&self, program: &mut Command, base: &str, arguments: &[&str]) -> String {
        program.current_dir(self.bench.path(""));
        succeed(program.arg(base).arg(self.bench.path("ca.crt")).arg(self.bench.path("contents.json")).args(arguments))
    }
}

/// The seed of a randomized test: `SEED` in the environment, or a new one. It is printed, so that a failure can be repeated.
fn seed() -> String {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().to_string();
    let seed = std::env::var("SEED").unwrap_or_else(|_| clock());
    println!("SEED={seed}");
    seed
}

/// Debian's Python with Debian's packages.
fn python(program: &str) -> Command {
    let mut command = testing::program("/usr/bin/python3");
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(Path::new(SUPPORT).join(program));
    command
}

/// Ranges that curl requests of every content.
const RANGES: [&str; 12] = [
    "0-",
    "0-0",
    "0-199999",
    "1-65536",
    "99999-",
    "-1",
    "-200000",
    "0-199999,300000-300009",
    "5-9,0-4,100000-100006",
    "0-69999,60000-60000,70000-70001,4000-",
    "-10,0-9,0-70000",
    "9999999-",
];

/// Transfers of one run of curl: its configuration file, and the cases for `answers.py`.
struct Transfers<'a> {
    site: &'a Site,
    folder: PathBuf,
    /// The URL without the path. The number of the transfer replaces `NUMBER`.
    base: String,
    /// Lines of the configuration file for each transfer.
    options: String,
    config: String,
    cases: Vec<Value>,
}

impl Transfers<'_> {
    /// Adds a HEAD request, whole transfers, ranges, and resumed transfers.
    fn add_all(&mut self, target: &str, file: &Path) {
        let content = fs::read(file).unwrap();
        self.add(target, file, json!({"method": "HEAD"}), "head\n", b"");
        self.add(target, file, json!({"method": "GET"}), "", b"");
        for range in RANGES {
            let case = json!({"method": "GET", "range": format!("bytes={range}")});
            self.add(target, file, case, &format!("range = \"{range}\"\n"), b"");
        }
        for resumed in [1, 4096, 65_537].into_iter().filter(|resumed| *resumed < content.len()) {
            let case = json!({"method": "GET", "range": format!("bytes={resumed}-"), "resumed": resumed});
            self.add(target, file, case, "continue-at = \"-\"\n", &content[..resumed]);
        }
    }

    /// Adds a transfer into a file that already has these bytes.
    fn add(&mut self, target: &str, file: &Path, mut case: Value, options: &str, before: &[u8]) {
        let number = self.cases.len().to_string();
        let path = |kind: &str| self.folder.join(format!("{number}.{kind}"));
        let (head, body, base) = (path("head"), path("body"), self.base.replace("NUMBER", &number));
        fs::write(&body, before).unwrap();
        case["head"] = head.display().to_string().into();
        case["body"] = body.display().to_string().into();
        case["file"] = file.display().to_string().into();
        // curl writes the head of a HEAD response as the body.
        let output = if case["method"] == "HEAD" { Path::new("/dev/null") } else { &body };
        let between = if self.cases.is_empty() { "" } else { "next\n" };
        self.config.push_str(&format!(
            "{between}url = \"{base}{target}\"\n{}{options}dump-header = {head:?}\noutput = {output:?}\n\
             write-out = \"%{{http_version}} %{{num_connects}} %{{size_download}}\\n\"\n",
            self.options
        ));
        self.cases.push(case);
    }

    /// Runs curl and compares the received content with the files. Returns the HTTP version, the number of new connections and the
    /// number of bytes for each transfer.
    fn run(&self, arguments: &[&str]) -> Vec<(String, usize, u64)> {
        let config = self.site.bench.file("curl.conf", self.config.as_bytes());
        let said =
            succeed(testing::program("curl").args(["--silent", "--show-error"]).args(arguments).arg("--config").arg(config));
        let cases = self.site.bench.file("cases.json", &serde_json::to_vec(&self.cases).unwrap());
        let mut check = python("answers.py");
        let output = check.stdin(fs::File::open(cases).unwrap()).output().unwrap();
        let (base, options) = (&self.base, &self.options);
        assert!(output.status.success(), "{base} {options} {arguments:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), format!("{}\n", self.cases.len()));
        let lines = said.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        lines.map(|words| (words[0].to_owned(), words[1].parse().unwrap(), words[2].parse().unwrap())).collect()
    }
}

#[test]
fn curl_gets_the_bytes_of_the_files() {
    let mut site = Site::new();
    let [tls, plain] = site.bases();
    let port = site.process.addresses[1].port();
    let ca = format!("cacert = {:?}\n", site.bench.path("ca.crt"));
    let names = format!("resolve = \"*:{port}:127.0.0.1\"\n");
    let (mut transfers, mut downloaded) = (0, 0);
    for (version, base, options, one_connection) in [
        ("1.1", tls.clone(), format!("http1.1\n{ca}"), true),
        ("2", tls, format!("http2\n{ca}"), true),
        ("1.1", plain.clone(), "http1.1\n".to_owned(), true),
        // curl requests an upgrade, which the registry ignores (RFC 9110, section 7.8).
        ("1.1", plain, "http2\n".to_owned(), true),
        // curl 7.88 fails when it reuses a connection with prior knowledge. Another host name makes it open a new connection.
        ("2", format!("http://host-NUMBER.test:{port}"), format!("http2-prior-knowledge\n{names}"), false),
    ] {
        for arguments in [&[][..], &["--parallel", "--parallel-max", "20"]] {
            let folder = site.bench.path(&transfers.to_string());
            fs::create_dir(&folder).unwrap();
            let (base, options) = (base.clone(), options.clone());
            let mut run = Transfers { site: &site, folder, base, options, config: String::new(), cases: Vec::new() };
            site.contents.iter().for_each(|(target, file)| run.add_all(target, file));
            let done = run.run(arguments);
            assert!(done.len() == run.cases.len() && done.iter().all(|one| one.0 == version), "{version} {done:?}");
            let connections: usize = done.iter().map(|one| one.1).sum();
            assert!(!one_connection || !arguments.is_empty() || connections == 1, "kept alive: {connections} {done:?}");
            transfers += done.len();
            downloaded += done.iter().map(|one| one.2).sum::<u64>();
        }
    }
    site.process.stop();
    let requests = requests(&site.process);
    assert!(requests.iter().all(|request| request.complete), "every transfer is logged as complete");
    let logged: u64 = requests.iter().map(|request| request.bytes).sum();
    assert_eq!((requests.len(), logged), (transfers, downloaded), "the log counts the bytes that curl got");
}

#[test]
fn nghttp_gets_the_bytes_of_the_files() {
    let site = Site::new();
    for base in site.bases() {
        // Windows of 1,023 bytes and of 1 MiB: `-w` sets the stream's, `-W` the connection's.
        for window in ["10", "20"] {
            for (target, file) in &site.contents {
                let content = fs::read(file).unwrap();
                let mut expected = vec![(None, &content[..])];
                if content.len() > 200_000 {
                    expected.push((Some("range: bytes=0-199999"), &content[..200_000]));
                    expected.push((Some("range: bytes=65535-"), &content[65_535..]));
                }
                for (header, bytes) in expected {
                    let mut nghttp = testing::program("nghttp");
                    nghttp.args(["--no-verify-peer", "-w", window, "-W", window]);
                    nghttp.args(header.map(|header| format!("--header={header}"))).arg(format!("{base}{target}"));
                    let output = nghttp.output().unwrap();
                    let same = output.stdout == bytes;
                    let got = output.stdout.len();
                    assert!(same, "{base}{target} {header:?}: {got} of {} bytes: {}", bytes.len(), text(&output.stderr));
                }
            }
        }
        // Many streams at once: the number of responses with the right status and size equals the number of requests.
        let (target, _) = site.blob(4095);
        let mut nghttp = testing::program("nghttp");
        let said = succeed(nghttp.args(["--no-verify-peer", "-ns", "-m", "100"]).arg(format!("{base}{target}")));
        let answered = said.lines().filter(|line| line.ends_with(target) && line.contains(" 200 ")).count();
        assert_eq!(answered, 100, "{said}");
    }
}

/// Runs h2load and returns the summary lines on requests, status codes and traffic.
fn h2load(arguments: &[&str], url: &str) -> String {
    let said = succeed(testing::program("h2load").args(arguments).arg(url));
    let summary =
        said.lines().filter(|line| ["requests: ", "status codes: ", "traffic: "].iter().any(|kind| line.starts_with(kind)));
    summary.collect::<Vec<_>>().join("\n")
}

#[test]
fn h2load_completes_every_stream() {
    let site = Site::new();
    let size = 4095;
    let (target, _) = site.blob(size);
    for base in site.bases() {
        for (clients, streams, requests) in [("100", "32", 20_000), ("40", "100", 12_000)] {
            let arguments = ["-t", "1", "-c", clients, "-m", streams, "-n", &requests.to_string()];
            let summary = h2load(&arguments, &format!("{base}{target}"));
            let all = format!("requests: {requests} total, {requests} started, {requests} done, {requests} succeeded");
            for expected in [
                &*format!("{all}, 0 failed, 0 errored, 0 timeout\n"),
                &format!("status codes: {requests} 2xx, 0 3xx, 0 4xx, 0 5xx\n"),
                &format!(" ({}) data", requests * size),
            ] {
                assert!(summary.contains(expected), "{arguments:?} {base}: {expected} is not in {summary}");
            }
        }
    }
}

#[test]
fn python_h2_gets_the_bytes_of_the_files() {
    let site = Site::new();
    let seed = seed();
    for base in site.bases() {
        let connections = 100;
        let said = site.run(&mut python("h2_ranges.py"), &base, &[&seed, &connections.to_string()]);
        assert!(said.trim().parse::<u32>().unwrap() > 10 * connections, "{said}");
    }
}

/// Compiles a Go program that uses only the standard library, without downloads.
fn go(bench: &Bench, source: &str) -> PathBuf {
    let source = Path::new(SUPPORT).join(source);
    let mut build = testing::program("go");
    build.args(["build", "-o"]).arg(bench.path("go-program")).arg(&source).current_dir(bench.path(""));
    build.env("GOFLAGS", "-mod=mod").env("GOPROXY", "off").env("GOCACHE", bench.path("go")).env("GOPATH", bench.path("go"));
    succeed(&mut build);
    assert_eq!(succeed(testing::program("gofmt").arg("-l").arg(&source)), "");
    bench.path("go-program")
}

#[test]
fn go_net_http_gets_the_bytes_of_the_files() {
    let site = Site::new();
    let (program, seed) = (go(&site.bench, "ranges.go"), seed());
    let [tls, plain] = site.bases();
    for (base, version) in [(&tls, "1"), (&tls, "2"), (&plain, "1")] {
        let requests = "600";
        let said = site.run(&mut testing::program(&program), base, &[version, &seed, requests]);
        assert_eq!(said.trim(), requests);
    }
}

#[test]
fn node_http2_completes_every_request() {
    let site = Site::new();
    for base in site.bases() {
        let mut node = testing::program("node");
        let said = site.run(node.arg(Path::new(SUPPORT).join("sessions.js")), &base, &[]);
        let result: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(result["outcomes"], json!({"right": 100 + 100 + 40 * 30}), "{base}: {said}");
        let announced = result["announced"].as_array().unwrap();
        assert!(announced.iter().all(|streams| streams.as_u64().unwrap() >= 100), "RFC 9113, section 6.5.2: {said}");
    }
}

/// The expected findings of testssl.sh, by the ids of its checks.
const FINDINGS: [(&str, &str); 31] = [
    ("SSLv2", "not offered"),
    ("SSLv3", "not offered"),
    ("TLS1", "not offered"),
    ("TLS1_1", "not offered"),
    ("TLS1_2", "offered"),
    ("TLS1_3", "offered"),
    ("ALPN_HTTP2", "h2"),
    ("cipherlist_NULL", "not offered"),
    ("cipherlist_aNULL", "not offered"),
    ("cipherlist_EXPORT", "not offered"),
    ("cipherlist_LOW", "not offered"),
    ("cipherlist_3DES_IDEA", "not offered"),
    ("cipherlist_AVERAGE", "not offered"),
    ("cipherlist_STRONG", "offered"),
    ("heartbleed", "not vulnerable"),
    ("CCS", "not vulnerable"),
    ("ticketbleed", "not vulnerable"),
    ("ROBOT", "not vulnerable"),
    ("secure_renego", "supported"),
    ("secure_client_renego", "not vulnerable"),
    ("CRIME_TLS", "not vulnerable"),
    ("BREACH", "not vulnerable"),
    ("POODLE_SSL", "not vulnerable"),
    ("fallback_SCSV", "no protocol below TLS 1.2 offered"),
    ("SWEET32", "not vulnerable"),
    ("FREAK", "not vulnerable"),
    ("DROWN", "not vulnerable"),
    ("LOGJAM", "not vulnerable"),
    ("BEAST", "not vulnerable"),
    ("LUCKY13", "not vulnerable"),
    ("RC4", "not vulnerable"),
];

#[test]
fn testssl_finds_no_weakness() {
    let site = Site::new();
    let mut testssl = testing::program("testssl");
    // Protocols, ciphers and vulnerabilities, without name lookups.
    testssl.args([
        "--quiet",
        "--warnings",
        "off",
        "--nodns",
        "none",
        "--protocols",
        "--std",
        "--vulnerable",
        "--jsonfile",
        "found.json",
    ]);
    let output = testssl.arg(&site.bases()[0]).current_dir(site.bench.path("")).stdin(Stdio::null()).output().unwrap();
    let findings = fs::read(site.bench.path("found.json")).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)));
    let findings: Vec<Value> = serde_json::from_slice(&findings).unwrap();
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let found: BTreeMap<String, String> = findings.iter().map(|one| (word(one, "id"), word(one, "finding"))).collect();
    for (id, expected) in FINDINGS {
        let finding = found.get(id).unwrap_or_else(|| panic!("no {id} in {found:?}"));
        assert!(finding.starts_with(expected), "{id}: {finding}");
    }
    // The check of GOST ciphers warns that this machine's OpenSSL lacks them.
    let bad = |one: &&Value| !["OK", "INFO"].contains(&one["severity"].as_str().unwrap()) && one["id"] != "engine_problem";
    assert_eq!(findings.iter().filter(bad).collect::<Vec<_>>(), Vec::<&Value>::new());
}

/// Builds an image of these files with buildah in the layout `images`. Its layer is compressed as zstd:chunked.
fn chunked_image(bench: &Bench, name: &str, files: &BTreeMap<String, Vec<u8>>) {
    let context = bench.path(name);
    fs::create_dir_all(context.join("data")).unwrap();
    files.iter().for_each(|(file, content)| fs::write(context.join("data").join(file), content).unwrap());
    fs::write(context.join("Containerfile"), "FROM scratch\nCOPY data /data\n").unwrap();
    let buildah = || podman::with_store("buildah", &bench.path(""));
    succeed(
        buildah()
            .args(["bud", "--quiet", "--isolation", "chroot", "--tag", name, "--file"])
            .arg(context.join("Containerfile"))
            .arg(context),
    );
    let chunked = ["push", "--quiet", "--format", "oci", "--compression-format", "zstd:chunked", name];
    succeed(buildah().args(chunked).arg(format!("oci:images:test/{name}:1")));
}

/// Files of an image in skopeo's store.
fn stored(bench: &Bench, name: &str) -> BTreeMap<String, Vec<u8>> {
    let mut podman = testing::program("podman");
    podman.env("CONTAINERS_STORAGE_CONF", bench.path("storage.conf")).current_dir(bench.path(""));
    let root = succeed(podman.args(["--cgroup-manager", "cgroupfs", "image", "mount", name]));
    let files = fs::read_dir(Path::new(root.trim()).join("data")).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

#[test]
fn skopeo_pulls_zstd_chunked_layers_in_part() {
    privately(|| {
        let bench = Bench::default();
        let sizes = [1, 4095, 20_001, 200_001].into_iter().cycle();
        let first: BTreeMap<String, Vec<u8>> =
            sizes.zip(1..).take(40).map(|(size, number)| (format!("file{number}"), noise(number, size))).collect();
        // The second image shares most of its files with the first.
        let mut second = first.clone();
        for number in [3, 12, 20, 35] {
            second.insert(format!("file{number}"), noise(100 + number, 150_001));
        }
        chunked_image(&bench, "first", &first);
        chunked_image(&bench, "second", &second);
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = {:?}\nrunroot = {:?}\n[storage.options]\n\
             pull_options = {{enable_partial_images = \"true\"}}\n",
            bench.path("skopeo-store"),
            bench.path("skopeo-run")
        );
        bench.file("storage.conf", storage.as_bytes());
        fs::create_dir(bench.path("certs")).unwrap();
        let ca = bench.path("certs/ca.crt").display().to_string();
        let mut process = Process::start_with(&bench.path("images"), &["--ca-out", &ca], None);
        for (name, files) in [("first", &first), ("second", &second)] {
            let mut skopeo = testing::program("skopeo");
            skopeo.env("CONTAINERS_STORAGE_CONF", bench.path("storage.conf")).current_dir(bench.path(""));
            skopeo.args(["--debug", "--insecure-policy", "copy", "--src-cert-dir", "certs"]);
            skopeo.arg(format!("docker://{}/test/{name}:1", process.address)).arg(format!("containers-storage:{name}:1"));
            let output = skopeo.output().unwrap();
            let said = text(&output.stderr);
            assert!(output.status.success(), "{said}");
            // skopeo reports this only in its debug log, and falls back to the whole layer.
            let failures: Vec<&str> = said.lines().filter(|line| line.contains("Failed to retrieve partial blob")).collect();
            assert_eq!(failures, Vec::<&str>::new());
            assert!(stored(&bench, &format!("{name}:1")) == *files, "{name}: the files are those that were packed");
        }
        process.stop();
        for name in ["first", "second"] {
            let repository = format!("test/{name}");
            let blobs: Vec<Request> =
                requests(&process).into_iter().filter(|one| one.repository == repository && one.endpoint == "blob").collect();
            assert!(blobs.iter().all(|one| one.complete), "{blobs:?}");
            // The whole config, and of the layer the table of contents by one range and its files by many. Some are fetched at once.
            let mut asked: Vec<(u32, bool)> = blobs.iter().map(|one| (one.status, one.range.contains(','))).collect();
            asked.sort_unstable();
            assert_eq!(asked, [(200, false), (206, false), (206, true)], "{name}: {blobs:?}");
        }
    });
}
