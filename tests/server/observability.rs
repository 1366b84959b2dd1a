//! Health, metrics and the CA certificate: their content, and the ports that serve them.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use localregistry::registry::auth::client_certificate::{ClientCa, Presence};
use localregistry::registry::limits::Limits;
use testing::certificates::{self as tls, ClientAuthority};
use testing::http::{self, get, send};
use testing::layout::Layout;
use testing::openmetrics::{Samples, parse};
use testing::server::{Server, Setup};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn images() -> Layout {
    let mut layout = Layout::default();
    layout.image("test/hello:latest", &[7; 10_000]);
    layout.image("docker.io/library/busybox:1", b"busybox");
    layout.write();
    layout
}

fn scrape(address: SocketAddr) -> Samples {
    let response = get(address, "/metrics");
    assert_eq!((response.status, response.header("content-type")), (200, Some(OPENMETRICS)));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    let text = String::from_utf8(response.body).unwrap();
    parse(&text)
}

/// Scrapes until this holds. A client sees the end of a connection before the server has counted it.
fn scrape_when(address: SocketAddr, holds: impl Fn(&Samples) -> bool) -> Samples {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let samples = scrape(address);
        if holds(&samples) || Instant::now() > deadline {
            return samples;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn connections(samples: &Samples) -> f64 {
    samples.get("localregistry_connections")
}

/// Waits until this many requests have ended. The last byte of a response comes before its count.
fn settle(server: &Server, requests: usize) {
    (0..requests).for_each(|_| drop(server.logged()));
}

#[test]
fn health_follows_the_disk() {
    let layout = images();
    let server = Server::start(layout.path());
    let healthy = get(server.plain, "/healthz");
    assert_eq!((healthy.status, healthy.header("content-type")), (200, Some("application/json")));
    assert_eq!((healthy.json()["status"].as_str(), healthy.header("cache-control")), (Some("ok"), Some("no-store")));
    assert_eq!(send(server.plain, "HEAD", "/healthz", &[]).status, 200);

    // The health check reads the largest blob.
    let largest = layout.path().join(layout.blob(&[7; 10_000]).digest.blob_path());
    fs::write(&largest, "cut").unwrap();
    let sick = get(server.plain, "/healthz");
    assert_eq!((sick.status, sick.code().as_str()), (503, "UNAVAILABLE"));
    fs::remove_file(&largest).unwrap();
    assert_eq!(get(server.plain, "/healthz").status, 503);
    assert!(!String::from_utf8(sick.body).unwrap().contains("sha256"), "no internals");
    assert_eq!(get(server.plain, "/v2/").status, 200, "content that needs no disk is still served");
    fs::write(&largest, [7; 10_000]).unwrap();
    assert_eq!(get(server.plain, "/healthz").status, 200, "healthy again");
}

#[test]
fn disk_without_blobs_is_healthy() {
    let server = Server::start(Layout::default().write());
    assert_eq!(get(server.plain, "/healthz").status, 200);
    assert!(!scrape(server.plain).has("localregistry_blob_sent_bytes_total"));
}

#[test]
fn ca_is_served_over_plain_http() {
    let layout = images();
    let server = Server::start(layout.path());
    let ca = get(server.plain, "/ca.crt");
    assert_eq!((ca.status, ca.header("content-type")), (200, Some("application/x-pem-file")));
    assert_eq!(String::from_utf8(ca.body).unwrap(), server.ca_pem);
    let config = tls::client(&server.ca_pem, &rustls::version::TLS13, None);
    assert_eq!(tls::send(server.tls, &config, "GET", "/ca.crt", &[]).unwrap().status, 200);
}

#[test]
fn requests_are_counted_by_endpoint_and_status() {
    let layout = images();
    let server = Server::start(layout.path());
    let blob = format!("/v2/test/hello/blobs/{}", layout.blob(&[7; 10_000]).digest);
    let manifest = get(server.plain, "/v2/test/hello/manifests/latest").body.len();
    for target in ["/v2/test/hello/manifests/none", "/v2/none/tags/list", "/nonsense"] {
        assert_eq!(get(server.plain, target).status, 404);
    }
    assert_eq!(http::ranged(server.plain, &blob, "bytes=0-99").status, 206);
    assert_eq!(get(server.plain, &blob).status, 200);
    assert_eq!(send(server.plain, "HEAD", &blob, &[]).status, 200);
    assert_eq!(send(server.plain, "DELETE", &blob, &[]).status, 405);
    let busybox = format!("/v2/docker.io/library/busybox/blobs/{}", layout.blob(b"busybox").digest);
    assert_eq!(get(server.plain, &busybox).status, 200);
    settle(&server, 9);

    let samples = scrape(server.plain);
    for (endpoint, status, count) in [
        ("manifest", 200, 1),
        ("manifest", 404, 1),
        ("tags", 404, 1),
        ("other", 404, 1),
        ("other", 405, 1),
        ("blob", 206, 1),
        ("blob", 200, 3),
    ] {
        let name = format!(r#"localregistry_requests_total{{endpoint="{endpoint}",status="{status}"}}"#);
        assert_eq!(samples.get(&name), f64::from(count), "{name}");
    }
    assert_eq!(samples.starting("localregistry_requests_total").len(), 7, "no other sample: {samples:?}");
    let sent = |endpoint: &str| samples.get(&format!(r#"localregistry_sent_bytes_total{{endpoint="{endpoint}"}}"#));
    assert_eq!((sent("blob"), sent("manifest") > manifest as f64), (10_107.0, true));
    let of = |repository: &str| samples.get(&format!(r#"localregistry_blob_sent_bytes_total{{repository="{repository}"}}"#));
    assert_eq!((of("test/hello"), of("docker.io/library/busybox")), (10_100.0, 7.0));
    assert_eq!(samples.starting("localregistry_blob_sent_bytes_total").len(), 2);
    assert_eq!(samples.get(r#"localregistry_request_duration_seconds_count{endpoint="blob"}"#), 4.0);
    assert!(samples.get(r#"localregistry_request_duration_seconds_sum{endpoint="blob"}"#) > 0.0);
    assert_eq!(samples.get("localregistry_requests_in_flight"), 1.0, "the scrape itself");
    assert_eq!(samples.get("localregistry_connections_accepted_total"), 10.0);
    assert_eq!(
        (samples.get("localregistry_events_dropped_total"), samples.get("localregistry_request_panics_total")),
        (0.0, 0.0)
    );
    settle(&server, 1);
    let again = scrape_when(server.plain, |samples| connections(samples) == 1.0);
    assert_eq!(connections(&again), 1.0);
    assert!(again.get(r#"localregistry_requests_total{endpoint="metrics",status="200"}"#) >= 1.0);
}

#[test]
fn metric_labels_contain_no_client_input() {
    let layout = images();
    let server = Server::start(layout.path());
    for target in ["/v2/evil%22name/tags/list", "/v2/no/such/repository/tags/list", "/%0aevil"] {
        get(server.plain, target);
    }
    send(server.plain, "EVIL", "/v2/", &[("User-Agent", "evil")]);
    settle(&server, 4);
    let samples = scrape(server.plain);
    assert!(samples.starting("localregistry").iter().all(|name| !name.contains("evil") && !name.contains("such")), "{samples:?}");
}

#[test]
fn active_transfers_and_connections_are_counted() {
    let (layout, big, _) = Layout::large();
    let server = Server::start(layout.write());
    let mut stream = http::begin(server.plain, format_args!("/v2/test/hello/blobs/{}", big.digest));
    let mut some = [0; 1000];
    std::io::Read::read_exact(&mut stream, &mut some).unwrap();
    let during = scrape(server.plain);
    assert_eq!((during.get("localregistry_requests_in_flight"), connections(&during)), (2.0, 2.0));
    settle(&server, 1);
    drop(stream);
    settle(&server, 1);
    let after = scrape_when(server.plain, |samples| connections(samples) == 1.0);
    assert_eq!(connections(&after), 1.0);
    assert_eq!(after.get("localregistry_requests_in_flight"), 1.0);
    let sent = after.get(r#"localregistry_sent_bytes_total{endpoint="blob"}"#);
    assert!(sent > 1000.0 && sent < f64::from(64 << 20), "{sent}");
    assert_eq!(after.get(r#"localregistry_requests_total{endpoint="blob",status="200"}"#), 1.0);
}

#[test]
fn failed_handshakes_are_counted_by_reason() {
    let layout = images();
    let authority = ClientAuthority::new("nodes");
    let clients = ClientCa::parse(authority.pem().as_bytes(), Presence::Required).unwrap();
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let server = Server::start_as(layout.path(), Setup { clients: Some(clients), limits, ..Setup::default() });
    let own = authority.client();
    let stranger = ClientAuthority::new("strangers").client();
    let ask = |ca_pem: &str, version, own| tls::send(server.tls, &tls::client(ca_pem, version, own), "GET", "/v2/", &[]);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        assert_eq!(ask(&server.ca_pem, version, Some(&own)).unwrap().status, 200);
    }
    let v13 = &rustls::version::TLS13;
    ask(&server.ca_pem, v13, None).unwrap_err();
    ask(&server.ca_pem, v13, Some(&stranger)).unwrap_err();
    ask(&authority.pem(), v13, Some(&own)).unwrap_err();
    // The server answers or closes each of these when it has finished.
    let ended = |bytes: &[u8], shut: bool| {
        let mut stream = http::connect(server.tls);
        stream.write_all(bytes).unwrap();
        if shut {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
    };
    ended(b"\x16\x03\x01\x00\x04\xff\xff\xff\xff", false);
    ended(b"\x16\x03\x01\x02\x00\x01", true);
    ended(b"\x16\x03\x01\x02\x00\x01", false);

    let reasons =
        ["no_certificate", "bad_certificate", "distrusted", "malformed", "closed", "timeout", "alert", "incompatible", "other"];
    let failure = |samples: &Samples, reason: &str| {
        samples.get(&format!(r#"localregistry_tls_handshake_failures_total{{reason="{reason}"}}"#))
    };
    let all = |samples: &Samples| reasons.iter().map(|reason| failure(samples, reason)).sum::<f64>();
    let samples = scrape_when(server.plain, |samples| all(samples) == 6.0);
    assert_eq!(reasons.map(|reason| failure(&samples, reason)), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    let done = |version: &str| samples.get(&format!(r#"localregistry_tls_handshakes_total{{version="{version}"}}"#));
    assert_eq!((done("1.2"), done("1.3")), (1.0, 1.0));
}

#[test]
fn metrics_port_serves_metrics_and_nothing_else() {
    let layout = images();
    let clients = ClientAuthority::new("nodes");
    let setup = Setup {
        own_port: true,
        clients: Some(ClientCa::parse(clients.pem().as_bytes(), Presence::Required).unwrap()),
        ..Setup::default()
    };
    let server = Server::start_as(layout.path(), setup);
    let own = server.observed.unwrap();
    for target in ["/healthz", "/metrics", "/ca.crt"] {
        assert_eq!(get(own, target).status, 200, "{target}");
        let beside = get(server.plain, target);
        assert_eq!((beside.status, beside.code().as_str()), (404, "UNSUPPORTED"), "{target}");
    }
    for target in ["/v2/", "/v2/test/hello/manifests/latest", "/token", "/"] {
        let response = get(own, target);
        assert_eq!((response.status, response.code().as_str()), (404, "UNSUPPORTED"), "{target}");
    }
    assert_eq!(get(server.plain, "/v2/").status, 200);
}

#[test]
fn metrics_port_answers_while_the_registry_is_full() {
    let layout = images();
    let limits = Limits { connections: 1, ..Limits::default() };
    let server = Server::start_as(layout.path(), Setup { own_port: true, limits, ..Setup::default() });
    let mut held = http::connect(server.plain);
    held.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(http::read(&mut std::io::BufReader::new(&held), false).unwrap().status, 200);
    assert_eq!(get(server.observed.unwrap(), "/healthz").status, 200);
    let samples = scrape_when(server.observed.unwrap(), |samples| connections(samples) == 2.0);
    assert_eq!(connections(&samples), 2.0);
}
