//! Tests a panic during a request. The server is the real one, except that collecting its metrics panics.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::registry::api::handler::*;
use crate::registry::listen::client::Surface;
use crate::registry::listen::listener::{Listener, Transport};
use crate::registry::listen::server::serve;
use crate::registry::telemetry::metrics::exposition::Exposition;

#[derive(Debug)]
struct PanickingCollector;

impl Collector for PanickingCollector {
    fn encode(&self, _: DescriptorEncoder<'_>) -> fmt::Result {
        panic!("on purpose: collecting the metrics panics");
    }
}

/// Runs `clients` against a server of an empty layout. Returns the server's metrics at its end and the result of `clients`.
fn serve_to<T: Send + 'static>(clients: impl FnOnce(SocketAddr) -> T + Send + 'static) -> (Arc<Metrics>, T) {
    let layout = tempfile::tempdir().unwrap();
    std::fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(layout.path().join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
    let mut registry = Registry::new(Store::open(layout.path()).unwrap(), Events::disabled(), Options::default());
    let mut collectors = prometheus_client::registry::Registry::default();
    collectors.register_collector(Box::new(PanickingCollector));
    registry.exposition = Exposition(collectors);
    let registry = Arc::new(registry);
    let metrics = Arc::clone(registry.metrics());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let result = runtime.block_on(async {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Transport::Plain, Surface::All).unwrap();
        let address = listener.socket.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let requests = tokio::task::spawn_blocking(move || {
            let result = clients(address);
            drop(stop);
            result
        });
        let until = async {
            let _ = stopped.await;
            Duration::from_secs(60)
        };
        serve(vec![listener], registry, until, sleep).await;
        requests.await.unwrap()
    });
    (metrics, result)
}

/// Sends one request and returns the status line of the response, or an empty string if the connection is closed.
fn request(stream: &mut TcpStream, path: &str) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut response = vec![0; 4096];
    let count = stream.read(&mut response).unwrap_or(0);
    String::from_utf8_lossy(&response[..count]).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn panic_closes_only_its_own_connection() {
    let (metrics, statuses) = serve_to(|address| {
        let mut healthy = TcpStream::connect(address).unwrap();
        let before = request(&mut healthy, "/v2/");
        let mut panicking = TcpStream::connect(address).unwrap();
        let panicked = [request(&mut panicking, "/v2/"), request(&mut panicking, "/metrics")];
        let after = request(&mut healthy, "/v2/");
        let next = request(&mut TcpStream::connect(address).unwrap(), "/v2/");
        (before, panicked, after, next)
    });
    let ok = || "HTTP/1.1 200 OK".to_owned();
    assert_eq!(statuses, (ok(), [ok(), String::new()], ok(), ok()));
    assert_eq!((metrics.panics(), metrics.totals().requests), (1, 5));
}

#[test]
fn panic_on_an_http2_stream_closes_only_its_own_connection() {
    // A preface, SETTINGS, and HEADERS for `path` (RFC 7541: indexed GET and http, literal path and host).
    let http2_request = |path: &[u8]| {
        let length = u8::try_from(path.len()).unwrap();
        let head = [&[0x82, 0x86, 0x04, length][..], path, &[0x01, 1, b'x']].concat();
        let frame = [&[0, 0, u8::try_from(head.len()).unwrap(), 1, 5, 0, 0, 0, 1][..], &head].concat();
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0], &frame].concat()
    };
    let (metrics, (closed, after)) = serve_to(move |address| {
        let mut healthy = TcpStream::connect(address).unwrap();
        request(&mut healthy, "/v2/");
        let mut panicking = TcpStream::connect(address).unwrap();
        panicking.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        panicking.write_all(&http2_request(b"/metrics")).unwrap();
        // The server may send SETTINGS before it closes or resets the connection.
        let read = panicking.read_to_end(&mut Vec::new());
        let closed = read.map_or_else(|error| error.kind() == io::ErrorKind::ConnectionReset, |_| true);
        (closed, request(&mut healthy, "/v2/"))
    });
    assert_eq!((closed, after.as_str()), (true, "HTTP/1.1 200 OK"));
    assert_eq!((metrics.panics(), metrics.totals().requests), (1, 3));
}
