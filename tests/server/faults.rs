//! Plans of faults: what each condition, each `when` and each action does, over HTTP/1.1 and HTTP/2, with TLS and without, to hyper's
//! client; and the events of the hits.

use std::cell::Cell;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper::{HeaderMap, Request, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use localregistry::oci::Digest;
use localregistry::proto::fault_command::Verb;
use localregistry::proto::{Fault, FaultCommand};
use localregistry::registry::auth::Auth;
use localregistry::registry::auth::client_certificate::{ClientCa, Presence};
use localregistry::registry::auth::users::Users;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use testing::certificates::{self, ClientAuthority};
use testing::layout::{Layout, content};
use testing::server::{Server, Setup};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Bytes of the layer.
const SIZE: usize = 300_000;

/// How a client connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    http2: bool,
    tls: bool,
}

const WAYS: [Way; 4] = [
    Way { http2: false, tls: false },
    Way { http2: true, tls: false },
    Way { http2: false, tls: true },
    Way { http2: true, tls: true },
];
const PLAIN: Way = WAYS[0];
const HTTP2: Way = WAYS[1];

/// A response, as far as it came.
#[derive(Debug)]
struct Got {
    status: StatusCode,
    version: Version,
    headers: HeaderMap,
    body: Vec<u8>,
    /// Why the body ended early.
    broken: Option<String>,
    /// Whether the connection can be used for another request.
    reusable: bool,
}

impl Got {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn is(&self, layer: &[u8]) -> bool {
        self.status == 200 && self.broken.is_none() && self.body == layer
    }
}

struct Site {
    layout: Layout,
    server: Server,
    layer: Vec<u8>,
    /// Path of the layer, and of the manifest by tag.
    blob: String,
    manifest: String,
    digest: Digest,
    /// The number of the last rule, which is its id.
    last: Cell<usize>,
}

impl Site {
    fn new() -> Self {
        Self::with(Setup { sendfile: true, ..Setup::default() })
    }

    fn with(setup: Setup) -> Self {
        let mut layout = Layout::default();
        let layer = content(SIZE);
        let manifest = layout.manifest(&[b"small", &layer]);
        layout.name(manifest, "application/vnd.oci.image.manifest.v1+json", "test/hello:1");
        layout.image("docker.io/library/busybox:1", b"busybox");
        let server = Server::start_as(layout.write(), setup);
        let digest = Digest::sha256_of(&layer);
        let (blob, manifest) = (format!("/v2/test/hello/blobs/{digest}"), "/v2/test/hello/manifests/1".to_owned());
        Self { layout, server, layer, blob, manifest, digest, last: Cell::new(0) }
    }

    fn address(&self, way: Way) -> SocketAddr {
        if way.tls { self.server.tls } else { self.server.plain }
    }

    /// Puts one rule in force.
    fn rule(&self, conditions: Value, action: Value) {
        self.last.set(self.last.get() + 1);
        self.rules(json!([{"id": self.id(), "match": conditions, "do": action}]));
    }

    fn id(&self) -> String {
        format!("r{}", self.last.get())
    }

    fn rules(&self, rules: Value) {
        let warnings = self.server.misbehave(json!({"seed": 7, "rules": rules}));
        assert_eq!(warnings, [""; 0]);
    }

    fn get(&self, way: Way, path: &str) -> Got {
        self.send(way, "GET", path, &[]).unwrap()
    }

    /// Sends a request on a new connection.
    fn send(&self, way: Way, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<Got> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(self.exchange(way, method, path, headers))
    }

    async fn exchange(&self, way: Way, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<Got> {
        let (address, ca) = (self.address(way), self.server.ca_pem.clone());
        let request =
            headers.iter().fold(Request::builder().method(method), |request, (name, value)| request.header(*name, *value));
        let request = if way.http2 {
            request.uri(format!("{}://{address}{path}", if way.tls { "https" } else { "http" }))
        } else {
            request.uri(path).header("host", address.to_string())
        };
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let stream = TcpStream::connect(address).await?;
        if way.tls {
            let stream = connect_tls(stream, &ca, way.http2).await?;
            exchange(stream, way.http2, request).await
        } else {
            exchange(stream, way.http2, request).await
        }
    }

    /// How often the last rule matched and acted.
    fn counts(&self) -> (u64, u64) {
        let command = FaultCommand { verb: Verb::List.into(), ..FaultCommand::default() };
        let listed = self.server.registry.receive_faults(command).unwrap();
        listed.rules.last().map(|rule| (rule.matches, rule.hits)).unwrap()
    }

    /// Waits for the next hit of the last rule.
    fn fault(&self) -> Fault {
        loop {
            let fault = self.server.fault();
            if fault.rule == self.id() {
                return fault;
            }
        }
    }

    /// Waits for the next hit, and for its request.
    fn hit(&self) -> (Fault, localregistry::proto::Request) {
        let fault = self.fault();
        let request = self.server.logged();
        assert_eq!((&request.fault, &request.peer, request.bytes), (&fault.rule, &fault.peer, fault.bytes));
        assert_eq!((&request.endpoint, &request.repository), (&fault.endpoint, &fault.repository));
        (fault, request)
    }
}

async fn connect_tls(stream: TcpStream, ca: &str, http2: bool) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await
}

async fn exchange<S>(stream: S, http2: bool, request: Request<Empty<Bytes>>) -> io::Result<Got>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let (response, mut ready): (_, Box<dyn AsyncReady>) = if http2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        (sender.send_request(request).await, Box::new(sender))
    } else {
        let (mut sender, connection) = http1::handshake(io).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        (sender.send_request(request).await, Box::new(sender))
    };
    let (head, mut incoming) = response.map_err(io::Error::other)?.into_parts();
    let (mut body, mut broken) = (Vec::new(), None);
    while let Some(frame) = incoming.frame().await {
        match frame {
            Ok(frame) => body.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Err(error) => {
                broken = Some(format!("{error:?}"));
                break;
            }
        }
    }
    // The end of the connection may come after that of the body.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let reusable = ready.is_usable();
    Ok(Got { status: head.status, version: head.version, headers: head.headers, body, broken, reusable })
}

trait AsyncReady {
    fn is_usable(&mut self) -> bool;
}

impl AsyncReady for http1::SendRequest<Empty<Bytes>> {
    fn is_usable(&mut self) -> bool {
        self.is_ready()
    }
}

impl AsyncReady for http2::SendRequest<Empty<Bytes>> {
    fn is_usable(&mut self) -> bool {
        self.is_ready()
    }
}

/// Whether a request is hit by a rule that answers 503.
fn is_hit(site: &Site, way: Way, method: &str, path: &str, headers: &[(&str, &str)]) -> bool {
    match site.send(way, method, path, headers).unwrap().status.as_u16() {
        503 => true,
        status if status < 300 => false,
        other => panic!("{other}"),
    }
}

#[test]
fn each_condition_selects_its_requests() {
    let site = Site::new();
    let manifest_digest = site.get(PLAIN, &site.manifest).header("docker-content-digest").unwrap().to_owned();
    let (blob, manifest) = (site.blob.as_str(), site.manifest.as_str());
    let busybox = "/v2/library/busybox/manifests/1?ns=docker.io";
    let by_digest = format!("/v2/test/hello/manifests/{manifest_digest}");
    let referrers = format!("/v2/test/hello/referrers/{manifest_digest}");
    let layer = site.digest.to_string();
    let range = &[("range", "bytes=100-")][..];
    let agent = |name| vec![("user-agent", name)];
    type Request<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>);
    let get = |path| ("GET", path, Vec::new());
    let cases: Vec<(Value, Vec<Request<'_>>, Vec<Request<'_>>)> = vec![
        (
            json!({}),
            vec![get(blob), get(manifest), get("/v2/"), get("/v2/_catalog")],
            vec![get("/metrics"), get("/healthz"), get("/ca.crt")],
        ),
        (json!({"endpoint": "blob"}), vec![get(blob)], vec![get(manifest), get("/v2/")]),
        (json!({"endpoint": "base"}), vec![get("/v2/")], vec![get(manifest)]),
        (json!({"endpoint": "tags"}), vec![get("/v2/test/hello/tags/list")], vec![get("/v2/_catalog")]),
        (json!({"endpoint": "catalog"}), vec![get("/v2/_catalog")], vec![get("/v2/test/hello/tags/list")]),
        (json!({"endpoint": "manifest"}), vec![get(manifest), get(busybox)], vec![get(blob)]),
        (json!({"endpoint": "referrers"}), vec![get(&referrers)], vec![get(manifest), get(&by_digest)]),
        (json!({"repository": "test/hello"}), vec![get(manifest), get(blob)], vec![get(busybox), get("/v2/")]),
        (json!({"repository": "docker.io/*"}), vec![get(busybox)], vec![get(manifest)]),
        (json!({"upstream": "docker.io"}), vec![get(busybox)], vec![get(manifest)]),
        (json!({"tag": "?"}), vec![get(manifest)], vec![get(&by_digest)]),
        (json!({"digest": manifest_digest}), vec![get(manifest), get(&by_digest)], vec![get(blob), get(busybox)]),
        (json!({"digest": layer}), vec![get(blob)], vec![get(manifest)]),
        (json!({"largestLayerOf": "test/hello:1"}), vec![get(blob)], vec![get(manifest)]),
        (json!({"method": "HEAD"}), vec![("HEAD", blob, vec![])], vec![get(blob)]),
        (json!({"peer": "127.0.0.0/8"}), vec![get(blob)], vec![]),
        (json!({"peer": "10.1.0.7"}), vec![], vec![get(blob)]),
        (
            json!({"user": "ann"}),
            vec![("GET", blob, vec![("authorization", "Basic YW5uOng=")])],
            vec![get(blob), ("GET", blob, vec![("authorization", "Basic Ym9iOng=")])],
        ),
        (json!({"certificate": false}), vec![get(blob)], vec![]),
        (
            json!({"userAgent": "containerd/*"}),
            vec![("GET", blob, agent("containerd/2.1"))],
            vec![get(blob), ("GET", blob, agent("podman"))],
        ),
        (json!({"range": true}), vec![("GET", blob, range.to_vec())], vec![get(blob)]),
        (json!({"range": false}), vec![get(blob)], vec![("GET", blob, range.to_vec())]),
        (
            json!({"fromByte": "100"}),
            vec![("GET", blob, range.to_vec())],
            vec![get(blob), ("GET", blob, vec![("range", "bytes=99-")])],
        ),
    ];
    for (conditions, hit, missed) in &cases {
        site.rule(conditions.clone(), json!({"status": 503}));
        for (requests, expected) in [(hit, true), (missed, false)] {
            for (method, path, headers) in requests {
                for way in WAYS {
                    let found = is_hit(&site, way, method, path, headers);
                    assert_eq!(found, expected, "{way:?}, {conditions}: {method} {path} {headers:?}");
                }
            }
        }
    }
}

#[test]
fn conditions_on_the_connection_select_it() {
    let authority = ClientAuthority::new("nodes");
    let clients = ClientCa::parse(authority.pem().as_bytes(), Presence::Optional).unwrap();
    let site = Site::with(Setup { clients: Some(clients), ..Setup::default() });
    let status = json!({"status": 503});
    for way in WAYS {
        for hit in WAYS {
            let port = site.address(hit).port();
            site.rule(json!({"port": port, "http": if hit.http2 { "2" } else { "1.1" }}), status.clone());
            assert_eq!(is_hit(&site, way, "GET", &site.blob, &[]), way == hit, "{way:?} {hit:?}");
        }
        site.rule(json!({"certificate": false}), status.clone());
        assert!(is_hit(&site, way, "GET", &site.blob, &[]));
        site.rule(json!({"certificate": true}), status.clone());
        assert!(!is_hit(&site, way, "GET", &site.blob, &[]));
    }
    let with_certificate = certificates::client(&site.server.ca_pem, &rustls::version::TLS13, Some(&authority.client()));
    let shown = || certificates::send(site.server.tls, &with_certificate, "GET", "/v2/", &[]).unwrap().status;
    assert_eq!(shown(), 503);
    site.rule(json!({"certificate": false}), status.clone());
    assert_eq!(shown(), 200);

    site.rule(json!({"http": "1.0"}), status);
    // Over TLS the same parser reads the same bytes.
    let first = |version: &str| {
        let mut stream = std::net::TcpStream::connect(site.server.plain).unwrap();
        write!(stream, "GET /v2/ HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!((first("1.0").as_str(), first("1.1").as_str()), ("503", "200"));
}

#[test]
fn token_endpoint_has_the_user() {
    let users = testing_users();
    let auth = Auth::token(Some(users), true, Duration::from_secs(300)).unwrap();
    let site = Site::with(Setup { auth, ..Setup::default() });
    let credentials = [("authorization", "Basic YW5uOnNlY3JldA==")];
    for way in WAYS {
        site.rule(json!({"endpoint": "token", "user": "ann"}), json!({"unauthorized": "REFUSED"}));
        let refused = site.send(way, "GET", "/token?scope=repository:test/hello:pull", &credentials).unwrap();
        let challenge = refused.header("www-authenticate");
        assert_eq!((refused.status.as_u16(), challenge), (401, Some("Basic realm=\"localregistry\"")), "{way:?}");
        assert_eq!(site.fault().endpoint, "token");
        let token = site.get(way, "/token?scope=repository:test/hello:pull");
        let token: Value = serde_json::from_slice(&token.body).unwrap();
        let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
        let realm = format!("{}://{}/token", if way.tls { "https" } else { "http" }, site.address(way));
        for (kind, fault) in
            [("CHALLENGE", ""), ("EXPIRED", ",error=\"invalid_token\""), ("REFUSED", ",error=\"insufficient_scope\"")]
        {
            site.rule(json!({"endpoint": "blob"}), json!({"unauthorized": kind}));
            let got = site.send(way, "GET", &site.blob, &[("authorization", &bearer)]).unwrap();
            let challenge =
                format!("Bearer realm=\"{realm}\",service=\"localregistry\",scope=\"repository:test/hello:pull\"{fault}",);
            assert_eq!((got.status.as_u16(), got.header("www-authenticate")), (401, Some(challenge.as_str())), "{way:?}");
        }
    }
}

fn testing_users() -> Users {
    let hash = bcrypt::hash("secret", 4).unwrap();
    Users::parse(format!("ann:{hash}\n").as_bytes(), "users").unwrap()
}

/// The requests, from 1, that a rule hits with this `when`.
fn hits(site: &Site, way: Way, when: Value, requests: usize) -> Vec<usize> {
    site.rules(json!([{"id": "r", "match": {"endpoint": "base"}, "when": when, "do": {"status": 503}}]));
    (1..=requests).filter(|_| is_hit(site, way, "GET", "/v2/", &[])).collect()
}

#[test]
fn each_when_selects_its_requests() {
    let site = Site::new();
    for (when, expected) in [
        (json!({}), vec![1, 2, 3, 4, 5, 6]),
        (json!({"first": 2}), vec![1, 2]),
        (json!({"nth": [2]}), vec![2]),
        (json!({"nth": [1, 4, 5]}), vec![1, 4, 5]),
        (json!({"every": 3}), vec![3, 6]),
        (json!({"after": 4}), vec![5, 6]),
        (json!({"probability": 1}), vec![1, 2, 3, 4, 5, 6]),
    ] {
        for way in WAYS {
            assert_eq!(hits(&site, way, when.clone(), 6), expected, "{way:?} {when}");
        }
    }
    let [some, others @ ..] = WAYS.map(|way| hits(&site, way, json!({"probability": 0.5}), 40));
    assert!(
        others.iter().all(|other| *other == some),
        "the same plan, seed and requests give the same hits: {some:?} {others:?}"
    );
    assert!((8..=32).contains(&some.len()), "{some:?}");
}

#[test]
fn rule_acts_for_a_time_after_another_one() {
    let site = Site::new();
    for way in WAYS {
        site.rules(json!([
            {"id": "down", "match": {"endpoint": "base"}, "when": {"afterRule": {"id": "trigger", "seconds": 3600}}, "do": {"status": 503}},
            {"id": "soon", "match": {"endpoint": "catalog"}, "when": {"afterRule": {"id": "trigger", "seconds": 0.001}}, "do": {"status": 503}},
            {"id": "trigger", "match": {"endpoint": "tags"}, "do": {"warning": "soon"}},
        ]));
        assert!(!is_hit(&site, way, "GET", "/v2/", &[]), "{way:?}");
        assert_eq!(site.get(way, "/v2/test/hello/tags/list").header("warning"), Some("299 - \"soon\""), "{way:?}");
        assert!(is_hit(&site, way, "GET", "/v2/", &[]), "{way:?}");
        std::thread::sleep(Duration::from_millis(20));
        assert!(!is_hit(&site, way, "GET", "/v2/_catalog", &[]), "{way:?}");
    }
}

#[test]
fn answers_replace_the_content() {
    let site = Site::new();
    for way in WAYS {
        let action = json!({"status": 429, "code": "TOOMANYREQUESTS", "message": "pull rate limit", "retryAfter": 7});
        site.rule(json!({"endpoint": "blob"}), action);
        let got = site.get(way, &site.blob);
        let error: Value = serde_json::from_slice(&got.body).unwrap();
        assert_eq!((got.status.as_u16(), got.header("retry-after"), got.reusable), (429, Some("7"), true), "{way:?}");
        assert_eq!(error["errors"][0]["code"], "TOOMANYREQUESTS");
        assert_eq!(error["errors"][0]["message"], "pull rate limit");
        let (fault, request) = site.hit();
        assert_eq!((fault.rule, fault.r#match, fault.action.as_str()), (site.id(), 1, "status 429, Retry-After: 7"));
        assert_eq!((request.status, request.complete), (429, true));

        site.rule(json!({"endpoint": "blob"}), json!({"redirect": "http://other.test:5001/x/"}));
        let got = site.get(way, &site.blob);
        assert_eq!(
            (got.status.as_u16(), got.header("location")),
            (307, Some(format!("http://other.test:5001/x{}", site.blob).as_str()))
        );
        site.rule(json!({"endpoint": "blob"}), json!({"redirectLoop": true}));
        let own = format!("{}://{}{}", if way.tls { "https" } else { "http" }, site.address(way), site.blob);
        assert_eq!(site.get(way, &site.blob).header("location"), Some(own.as_str()), "{way:?}");
        for status in [400, 416] {
            site.rule(json!({"endpoint": "blob", "range": true}), json!({"status": status}));
            assert_eq!(site.send(way, "GET", &site.blob, &[("range", "bytes=5-")]).unwrap().status, status, "{way:?}");
            assert!(site.get(way, &site.blob).is(&site.layer));
        }
        site.rule(json!({"endpoint": "blob", "range": true}), json!({"ignoreRange": true}));
        assert!(site.send(way, "GET", &site.blob, &[("range", "bytes=5-")]).unwrap().is(&site.layer));
        // The header is in the answer to the range only.
        site.rule(json!({"endpoint": "blob"}), json!({"ignoreRange": true, "headers": [{"name": "content-range"}]}));
        assert!(site.send(way, "GET", &site.blob, &[("range", "bytes=5-")]).unwrap().is(&site.layer));
        let (fault, request) = site.hit();
        assert_eq!((fault.action.as_str(), request.complete), ("range ignored", true));
    }
}

#[test]
fn bodies_are_late_slow_or_stalled_and_whole() {
    let site = Site::new();
    for way in WAYS {
        for action in [
            json!({"delaySeconds": 0.2}),
            json!({"bytesPerSecond": SIZE * 4}),
            json!({"stall": {"afterBytes": 1000, "seconds": 0.2}}),
            json!({"delaySeconds": 0.1, "stall": {"seconds": 0.1}}),
        ] {
            site.rule(json!({"endpoint": "blob"}), action.clone());
            let got = site.get(way, &site.blob);
            assert!(got.is(&site.layer), "{way:?} {action}: {} {} bytes, {:?}", got.status, got.body.len(), got.broken);
            let (_, request) = site.hit();
            // No busy machine makes it less than what the rule adds.
            assert!(request.duration >= 0.18, "{way:?} {action}: {request:?}");
            assert_eq!((request.complete, request.bytes), (true, SIZE as u64), "a slow pull is a whole one");
        }
    }
}

#[test]
fn stalls_and_rates_last_longer_than_the_limits_for_slow_clients() {
    let limits = localregistry::registry::limits::Limits { stall: Duration::from_millis(100), ..Default::default() };
    let site = Site::with(Setup { limits, ..Setup::default() });
    for way in WAYS {
        site.rule(json!({"endpoint": "blob"}), json!({"stall": {"afterBytes": 5, "seconds": 0.5}}));
        assert!(site.get(way, &site.blob).is(&site.layer), "{way:?}");
        site.rule(json!({"endpoint": "blob"}), json!({"delaySeconds": 0.5}));
        assert!(site.get(way, &site.blob).is(&site.layer), "{way:?}");
    }
}

/// The response is logged with the bytes that it had until then. Over HTTP/1.1 a client that only half-closed looks like one that left.
#[test]
fn stall_without_an_end_lasts_until_an_http2_client_leaves() {
    let site = Site::new();
    for way in [HTTP2, WAYS[3]] {
        site.rule(json!({"endpoint": "blob"}), json!({"stall": {"afterBytes": 1000}}));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let got = tokio::time::timeout(Duration::from_millis(300), site.exchange(way, "GET", &site.blob, &[])).await;
            assert!(got.is_err(), "{way:?}: {got:?}");
        });
        drop(runtime);
        let (fault, request) = site.hit();
        assert_eq!(
            (fault.action.as_str(), request.complete, request.bytes),
            ("stalled after 1000 bytes", false, 1000),
            "{way:?}"
        );
    }
}

#[test]
fn cut_ends_the_body_after_exactly_so_many_bytes() {
    let site = Site::new();
    for way in WAYS {
        for (kind, word) in [("FIN", "FIN"), ("RST", "RST"), ("RST_STREAM", "RST_STREAM"), ("KIND_UNSPECIFIED", "FIN")] {
            for after in [0, 1, 70_000] {
                site.rule(json!({"endpoint": "blob"}), json!({"cut": {"afterBytes": after, "kind": kind}}));
                let got = site.get(way, &site.blob);
                assert_eq!((got.status.as_u16(), got.header("content-length")), (200, Some("300000")));
                let broken = got.broken.unwrap_or_else(|| panic!("{way:?} {kind} {after}: the body is whole"));
                let (fault, request) = site.hit();
                assert_eq!(fault.action, format!("{word} after {after} bytes"));
                assert_eq!((request.complete, request.bytes), (false, after), "{way:?} {kind}");
                if kind == "RST" && !way.http2 {
                    // What was on its way is lost with a reset.
                    assert!(broken.contains("ConnectionReset"), "{way:?}: {broken}");
                } else {
                    assert_eq!(got.body, site.layer[..usize::try_from(after).unwrap()], "{way:?} {kind}");
                }
                assert_eq!(got.reusable, kind == "RST_STREAM" && way.http2, "{way:?} {kind} {after}");
            }
        }
    }
}

#[test]
fn connection_ends_after_a_whole_response() {
    let site = Site::new();
    for way in WAYS {
        for action in
            [json!({"cut": {"kind": "GOAWAY"}}), json!({"cut": {"kind": "GOAWAY", "afterBytes": 70_000}}), json!({"close": true})]
        {
            site.rule(json!({"endpoint": "blob"}), action.clone());
            let got = site.get(way, &site.blob);
            assert!(got.is(&site.layer), "{way:?} {action}");
            assert!(!got.reusable, "{way:?} {action}");
            assert!(site.hit().1.complete);
        }
    }
    site.rule(json!({"endpoint": "blob"}), json!({"http10": true}));
    for way in WAYS {
        let got = site.get(way, &site.blob);
        assert!(got.is(&site.layer) && got.reusable == way.http2);
        assert_eq!(got.version, if way.http2 { Version::HTTP_2 } else { Version::HTTP_10 });
    }
    assert_eq!(site.counts(), (2, 2), "HTTP/2 has no such version");
}

#[test]
fn wrong_content_is_not_a_whole_pull() {
    let site = Site::new();
    for way in WAYS {
        site.rule(json!({"endpoint": "blob"}), json!({"corrupt": {"offset": 65_530, "length": 10}}));
        let got = site.get(way, &site.blob);
        let wrong: Vec<usize> = (0..SIZE).filter(|at| got.body[*at] != site.layer[*at]).collect();
        assert_eq!(wrong, (65_530..65_540).collect::<Vec<_>>(), "{way:?}");
        assert!(!site.hit().1.complete);

        site.rule(json!({"endpoint": "blob"}), json!({"shortBody": 1000}));
        let got = site.get(way, &site.blob);
        assert_eq!((got.header("content-length"), &got.broken), (Some("1000"), &None), "{way:?}");
        assert_eq!(got.body, site.layer[..1000]);
        assert!(!site.hit().1.complete);

        site.rule(json!({"endpoint": "manifest"}), json!({"corrupt": {"offset": 3}}));
        assert_eq!(site.get(way, &site.manifest).status, 200);
        assert!(!site.hit().1.complete, "`assert --pulled` does not count it");
    }
}

#[test]
fn headers_are_wrong_or_missing() {
    let site = Site::new();
    for way in WAYS {
        let headers = json!([
            {"name": "Docker-Content-Digest", "value": "sha256:0"}, {"name": "ETag"}, {"name": "content-type", "value": "text/html"},
            {"name": "x-new", "value": "1"},
        ]);
        site.rule(json!({"endpoint": "manifest"}), json!({"headers": headers}));
        for method in ["GET", "HEAD"] {
            let got = site.send(way, method, &site.manifest, &[]).unwrap();
            assert_eq!((got.header("docker-content-digest"), got.header("etag")), (Some("sha256:0"), None), "{way:?}");
            assert_eq!((got.header("content-type"), got.header("x-new")), (Some("text/html"), Some("1")));
            assert!(!site.hit().1.complete);
        }
        site.rule(json!({"endpoint": "blob"}), json!({"headers": [{"name": "Content-Length"}]}));
        let got = site.get(way, &site.blob);
        assert!(got.is(&site.layer) && got.header("content-length").is_none(), "{way:?}");
        assert!(site.hit().1.complete, "the client got all bytes");
        // A client takes no more than the head announces, and notices if there is less.
        let wrong = |length: usize| json!({"headers": [{"name": "Content-Length", "value": length.to_string()}]});
        for (length, more) in [(SIZE + 1, json!({})), (SIZE - 1, json!({})), (5000, json!({"shortBody": 4000}))] {
            let mut action = wrong(length);
            action.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            site.rule(json!({"endpoint": "blob"}), action);
            let got = site.get(way, &site.blob);
            assert_eq!(got.header("content-length"), Some(length.to_string().as_str()));
            let sent = if length == 5000 { 4000 } else { SIZE.min(length) };
            if !way.http2 {
                assert_eq!(got.body, site.layer[..sent], "{way:?} {length}");
            }
            assert_eq!(got.broken.is_some(), sent < length || way.http2, "{way:?} {length}: {:?}", got.broken);
            assert!(!site.hit().1.complete);
        }
        site.rule(json!({"endpoint": "blob"}), wrong(SIZE));
        assert!(site.get(way, &site.blob).is(&site.layer));
        assert_eq!(site.counts(), (0, 0), "the length is right");
    }
}

#[test]
fn connections_are_refused_by_address_and_port() {
    let site = Site::new();
    site.rule(json!({"peer": "127.0.0.1", "port": site.server.tls.port()}), json!({"connection": "REFUSE"}));
    let refused = site.send(WAYS[2], "GET", "/v2/", &[]).unwrap_err();
    assert!(matches!(refused.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{refused:?}");
    let fault = site.fault();
    assert_eq!((fault.action.as_str(), fault.endpoint.as_str()), ("REFUSE", ""));
    assert!(fault.peer.starts_with("127.0.0.1:"));
    assert_eq!(site.get(PLAIN, "/v2/").status, 200, "the other port");
    site.rule(json!({"peer": "10.0.0.0/8"}), json!({"connection": "REFUSE"}));
    assert_eq!(site.get(WAYS[2], "/v2/").status, 200, "another peer");
}

#[test]
fn handshakes_fail_as_the_rule_says() {
    let site = Site::new();
    for way in [WAYS[2], WAYS[3]] {
        for (connection, cause) in [
            ("TLS_EXPIRED", "certificate expired"),
            ("TLS_NOT_YET_VALID", "certificate not valid yet"),
            ("TLS_OTHER_NAME", "certificate not valid for name"),
            ("TLS_UNKNOWN_CA", "UnknownIssuer"),
            ("TLS_1_1", "peer is incompatible"),
            ("TLS_NONE", "corrupt message"),
        ] {
            site.rule(json!({}), json!({"connection": connection}));
            let error = site.send(way, "GET", "/v2/", &[]).unwrap_err().to_string();
            assert!(error.contains(cause), "{way:?} {connection}: {error}");
            assert_eq!(site.fault().action, connection);
        }
    }
    let before = site.counts();
    assert_eq!(site.get(PLAIN, "/v2/").status, 200, "without TLS nothing is wrong");
    assert_eq!(site.counts(), before, "nothing was done");
}

#[test]
fn header_names_have_upper_case() {
    let site = Site::new();
    site.rule(json!({}), json!({"connection": "TITLE_CASE_HEADERS"}));
    let response = testing::http::get(site.server.plain, &site.manifest);
    assert!(response.headers.iter().any(|(name, _)| name == "Docker-Content-Digest"), "{:?}", response.headers);
    assert_eq!(site.get(HTTP2, &site.manifest).status, 200);
    assert_eq!(site.counts(), (1, 1), "names of HTTP/2 are in lower case");
}

#[test]
fn requests_that_a_rule_cannot_change_are_no_hits_and_whole_pulls() {
    let site = Site::new();
    let get = [("GET", "")];
    let both = [("GET", ""), ("HEAD", "")];
    let head = [("HEAD", "")];
    let ranged = [("GET", "bytes=0-9"), ("HEAD", "")];
    let unranged = [("GET", ""), ("HEAD", "bytes=0-9")];
    for (action, requests) in [
        (json!({"corrupt": {"offset": SIZE}}), &both[..]),
        (json!({"corrupt": {"offset": 10}}), &ranged),
        (json!({"corrupt": {"offset": 10}, "shortBody": SIZE}), &ranged),
        (json!({"corrupt": {"offset": 0}}), &head),
        (json!({"shortBody": SIZE}), &both),
        (json!({"stall": {"afterBytes": SIZE}}), &both),
        (json!({"stall": {}}), &head),
        (json!({"cut": {}}), &head),
        (json!({"cut": {"afterBytes": SIZE}}), &both),
        (json!({"cut": {"afterBytes": SIZE, "kind": "GOAWAY"}}), &both),
        (json!({"bytesPerSecond": 1}), &head),
        (json!({"bytesPerSecond": SIZE * 20}), &get),
        (json!({"ignoreRange": true}), &unranged),
        (json!({"headers": [{"name": "x-none"}, {"name": "Content-Length", "value": SIZE.to_string()}]}), &get),
    ] {
        for way in WAYS {
            site.rule(json!({"endpoint": "blob"}), action.clone());
            for (method, range) in requests {
                let range: Vec<_> = [("range", *range)].into_iter().filter(|(_, range)| !range.is_empty()).collect();
                let got = site.send(way, method, &site.blob, &range).unwrap();
                assert!(got.broken.is_none() && got.reusable, "{way:?} {method} {action}");
                let request = site.server.logged();
                assert_eq!((request.complete, request.fault.as_str()), (true, ""), "{way:?} {method} {action}");
            }
            assert_eq!(site.counts(), (0, 0), "{way:?} {action}");
        }
    }
    // One of several things is done: it alone is reported. A rule that does nothing leaves the request to the next one.
    let id = |name: &str, action: Value| json!({"id": name, "match": {"endpoint": "blob"}, "do": action});
    site.rules(json!([
        id("none", json!({"corrupt": {"offset": SIZE}})),
        id("some", json!({"corrupt": {"offset": SIZE}, "close": true}))
    ]));
    assert!(site.get(PLAIN, &site.blob).is(&site.layer));
    let fault = site.server.fault();
    assert_eq!((fault.rule.as_str(), fault.action.as_str()), ("some", "connection closed"));
    assert!(site.server.logged().complete, "no byte is wrong");
}

#[test]
fn listener_for_observers_meets_no_faults() {
    let site = Site::with(Setup { own_port: true, ..Setup::default() });
    site.rule(json!({}), json!({"connection": "REFUSE"}));
    assert_eq!(testing::http::get(site.server.observed.unwrap(), "/metrics").status, 200);
    assert!(site.send(PLAIN, "GET", "/v2/", &[]).is_err());
    assert_eq!(site.counts(), (1, 1));
}

#[test]
fn rules_that_can_never_match_are_named() {
    let site = Site::new();
    let rule = |id: &str, conditions: Value| json!({"id": id, "match": conditions, "do": {"status": 500}});
    let zeros = format!("sha256:{}", "0".repeat(64));
    let warnings = site.server.misbehave(json!({"rules": [
        rule("a", json!({"repository": "test/other"})),
        rule("b", json!({"repository": "x/*"})),
        rule("c", json!({"repository": "test/hello", "tag": "2"})),
        rule("d", json!({"digest": zeros})),
        rule("e", json!({"largestLayerOf": "test/hello:2"})),
        rule("f", json!({"upstream": "quay.io"})),
        rule("g", json!({"repository": "*", "tag": "1"})),
        rule("h", json!({"repository": "test/hello", "upstream": "docker.io"})),
        rule("i", json!({"tag": "1", "digest": site.digest.to_string()})),
        rule("j", json!({"tag": "1", "largestLayerOf": "test/hello:1"})),
        rule("k", json!({"repository": "docker.io/*", "digest": site.digest.to_string()})),
        rule("l", json!({"endpoint": "manifest", "digest": site.digest.to_string()})),
        rule("m", json!({"endpoint": "blob", "digest": site.digest.to_string()})),
    ]}));
    let why = [
        "a can never match: no disk has a repository of that name",
        "b can never match: no disk has a repository of that name",
        "c can never match: no disk has such a tag",
        "d can never match: no disk has content of that digest",
        "e can never match: no disk has the image test/hello:2, or it has no layer",
        "f can never match: no disk has an image of quay.io",
        "h can never match: no repository of that name is of that upstream",
        "i can never match: no such tag names that digest",
        "j can never match: no such tag names that digest",
        "k can never match: no such repository has that digest",
        "l can never match: that digest is of no manifest",
    ];
    assert_eq!(warnings, why.map(|why| format!("rule {why}")));
}

#[test]
fn conditions_that_exclude_each_other_are_named() {
    let site = Site::new();
    let digest = site.digest.to_string();
    let needs = [
        ("repository", json!("test/hello"), "repository", ["manifest", "blob", "tags", "referrers"].as_slice()),
        ("upstream", json!("docker.io"), "repository", &["manifest", "blob", "tags", "referrers"]),
        ("tag", json!("1"), "tag", &["manifest"]),
        ("digest", json!(digest), "digest", &["manifest", "blob", "referrers"]),
        ("largestLayerOf", json!("test/hello:1"), "digest", &["manifest", "blob", "referrers"]),
    ];
    let warnings = |conditions: Value, action: Value| {
        let plan = json!({"rules": [{"id": "r", "match": conditions, "do": action}]});
        let warnings = site.server.misbehave(plan);
        warnings.first().map(|warning| warning.trim_start_matches("rule r can never match: ").to_owned())
    };
    let status = || json!({"status": 503});
    for endpoint in ["base", "manifest", "blob", "tags", "catalog", "referrers", "token"] {
        for (field, value, noun, have) in &needs {
            let found = warnings(json!({"endpoint": endpoint, (*field): value}), status());
            let is_named = found == Some(format!("a request to the endpoint {endpoint} has no {noun}"));
            assert_eq!(is_named, !have.contains(&endpoint), "{endpoint} {field}: {found:?}");
        }
    }
    let (plain, tls) = (site.server.plain.port(), site.server.tls.port());
    let body = "what it does changes no such response";
    for (conditions, action, expected) in [
        (json!({"range": false, "fromByte": 1}), status(), "a request without Range begins at byte 0"),
        (json!({"port": 1}), status(), "no listener has the port 1"),
        (json!({"port": 1}), json!({"connection": "REFUSE"}), "no listener has the port 1"),
        (json!({"peer": "fd00::/8"}), status(), "that listener takes no clients of that address family"),
        (json!({"certificate": true}), status(), "no listener there asks for certificates"),
        (json!({"port": plain}), json!({"connection": "TLS_EXPIRED"}), "no listener there speaks TLS"),
        (json!({"method": "HEAD"}), json!({"cut": {"afterBytes": 5}}), body),
        (json!({"http": "2"}), json!({"close": true}), ""),
        (json!({"range": false}), json!({"ignoreRange": true}), body),
        (json!({"digest": digest}), json!({"corrupt": {"offset": SIZE}}), body),
        (json!({"digest": digest}), json!({"corrupt": {"offset": SIZE - 1}}), ""),
        (json!({"port": tls}), json!({"connection": "TLS_EXPIRED"}), ""),
        (json!({"port": tls}), json!({"connection": "TITLE_CASE_HEADERS"}), ""),
        (json!({"method": "HEAD"}), json!({"headers": [{"name": "etag"}]}), ""),
        (json!({"user": "ann", "endpoint": "blob"}), status(), ""),
        (json!({"range": true, "fromByte": 1}), status(), ""),
    ] {
        assert_eq!(warnings(conditions.clone(), action.clone()).unwrap_or_default(), expected, "{conditions} {action}");
    }
    let after =
        |id: &str, other: &str| json!({"id": id, "when": {"afterRule": {"id": other, "seconds": 1}}, "do": {"status": 500}});
    let found = site
        .server
        .misbehave(json!({"rules": [after("a", "b"), after("b", "a"), after("c", "d"), {"id": "d", "do": {"close": true}}]}));
    let waits = |id: &str, other: &str| {
        format!("rule {id} can never match: it waits for a hit of {other}, which waits for others without an end")
    };
    assert_eq!(found, [waits("a", "b"), waits("b", "a")]);
    let authority = ClientAuthority::new("nodes");
    let clients = ClientCa::parse(authority.pem().as_bytes(), Presence::Required).unwrap();
    let auth = Auth::token(None, true, Duration::from_secs(300)).unwrap();
    let site = Site::with(Setup { clients: Some(clients), auth, ..Setup::default() });
    let rule = |id: &str, conditions: Value| json!({"id": id, "match": conditions, "do": {"status": 500}});
    let found = site.server.misbehave(json!({"rules": [
        rule("a", json!({"user": "ann", "repository": "test/hello"})),
        rule("b", json!({"user": "ann", "endpoint": "blob"})),
        rule("c", json!({"certificate": false, "port": site.server.tls.port()})),
        rule("d", json!({"certificate": true, "port": site.server.plain.port()})),
        rule("e", json!({"certificate": true})),
        rule("f", json!({"certificate": true})),
        rule("g", json!({})),
        rule("h", json!({"endpoint": "tags"})),
    ]}));
    let why = [
        "a can never match: no request has a repository and a user, as clients have tokens",
        "b can never match: a request to the endpoint blob has no user, as clients have tokens",
        "c can never match: every client there shows a certificate",
        "d can never match: no listener there asks for certificates",
        "f can never match: the rule e acts on all of that before",
        "h can never match: the rule g acts on all of that before",
    ];
    assert_eq!(found, why.map(|why| format!("rule {why}")));
}

#[test]
fn hits_are_counted_in_the_metrics() {
    let site = Site::new();
    let scraped = || String::from_utf8(testing::http::get(site.server.plain, "/metrics").body).unwrap();
    assert!(!scraped().contains("fault_hits"));
    site.rules(json!([{"id": "r", "match": {"endpoint": "base"}, "do": {"status": 503}}]));
    (0..3).for_each(|_| assert!(is_hit(&site, PLAIN, "GET", "/v2/", &[])));
    assert!(scraped().contains("\nlocalregistry_fault_hits_total{rule=\"r\"} 3\n"), "{}", scraped());
    let rules: Vec<Value> = (0..150)
        .map(|number| json!({"id": format!("r{number}"), "match": {"endpoint": "base"}, "when": {"first": 1}, "do": {"status": 503}}))
        .collect();
    site.rules(rules.into());
    (0..150).for_each(|_| assert!(is_hit(&site, PLAIN, "GET", "/v2/", &[])));
    let text = scraped();
    assert_eq!(text.matches("localregistry_fault_hits_total{").count(), 101);
    assert!(text.contains("localregistry_fault_hits_total{rule=\"(other)\"} 51\n"));
    // A counter never goes down, and never vanishes.
    for verb in [Verb::Reset, Verb::Clear] {
        let command = FaultCommand { verb: verb.into(), ..FaultCommand::default() };
        assert_eq!(site.server.registry.receive_faults(command).unwrap().error, "");
        assert!(scraped().contains("\nlocalregistry_fault_hits_total{rule=\"r\"} 3\n"), "{verb:?}");
    }
}

#[test]
fn rule_for_the_largest_layer_follows_the_disks() {
    let mut layout = Layout::default();
    layout.image("test/old:1", b"old");
    let server = Server::start(layout.write());
    let plan = json!({"rules": [{"id": "r", "match": {"largestLayerOf": "test/hello:1"}, "do": {"status": 503}}]});
    assert_eq!(server.misbehave(plan).len(), 1);
    let site = Site::new();
    let store = localregistry::registry::content::store::Store::open(site.layout.path()).unwrap();
    server.registry.replace(server.registry.snapshot_of(store));
    assert_eq!(testing::http::get(server.plain, &site.blob).status, 503);
    assert_eq!(testing::http::get(server.plain, &site.manifest).status, 200);
}
