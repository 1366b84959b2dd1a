//! A panic in the middle of a request, in a server that is otherwise as it is shipped: what makes its metrics panics.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::oneshot;

use crate::registry::api::handler::*;
use crate::registry::listen::client::Surface;
use crate::registry::listen::listener::{Listener, Transport, serve};
use crate::registry::telemetry::metrics::exposition::Exposition;

#[derive(Debug)]
struct Broken;

impl Collector for Broken {
    fn encode(&self, _: DescriptorEncoder<'_>) -> fmt::Result {
        panic!("on purpose: the metrics are broken");
    }
}

/// What a server of an empty layout has counted in the end, and how `clients` did.
fn served<T: Send + 'static>(clients: impl FnOnce(SocketAddr) -> T + Send + 'static) -> (Arc<Metrics>, T) {
    let layout = tempfile::tempdir().unwrap();
    std::fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(layout.path().join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
    let mut registry = Registry::new(Store::open(layout.path()).unwrap(), Events::unheard(), Limits::default());
    let mut broken = prometheus_client::registry::Registry::default();
    broken.register_collector(Box::new(Broken));
    registry.exposition = Exposition(broken);
    let registry = Arc::new(registry);
    let metrics = Arc::clone(registry.metrics());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let result = runtime.block_on(async {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Transport::Plain, Surface::All).unwrap();
        let address = listener.socket.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let asking = tokio::task::spawn_blocking(move || {
            let result = clients(address);
            drop(stop);
            result
        });
        let until = async {
            let _ = stopped.await;
            Duration::from_secs(60)
        };
        serve(vec![listener], registry, until, sleep).await;
        asking.await.unwrap()
    });
    (metrics, result)
}

/// One request on a connection, and the first line of the answer: empty where the connection is closed instead.
fn ask(stream: &mut TcpStream, path: &str) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = vec![0; 4096];
    let count = stream.read(&mut answer).unwrap_or(0);
    String::from_utf8_lossy(&answer[..count]).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_panic_ends_its_connection_and_no_other() {
    let (metrics, answers) = served(|address| {
        let mut kept = TcpStream::connect(address).unwrap();
        let before = ask(&mut kept, "/v2/");
        let mut unlucky = TcpStream::connect(address).unwrap();
        let panicked = [ask(&mut unlucky, "/v2/"), ask(&mut unlucky, "/metrics")];
        let after = ask(&mut kept, "/v2/");
        let next = ask(&mut TcpStream::connect(address).unwrap(), "/v2/");
        (before, panicked, after, next)
    });
    let ok = || "HTTP/1.1 200 OK".to_owned();
    assert_eq!(answers, (ok(), [ok(), String::new()], ok(), ok()));
    assert_eq!((metrics.panics(), metrics.totals().requests), (1, 5));
}

#[test]
fn a_panic_on_a_stream_ends_its_connection_and_no_other() {
    // A preface, settings, and HEADERS that ask for /metrics (RFC 7541: GET, http, a path as a literal, a host as a literal).
    let request = |path: &[u8]| {
        let length = u8::try_from(path.len()).unwrap();
        let head = [&[0x82, 0x86, 0x04, length][..], path, &[0x01, 1, b'x']].concat();
        let frame = [&[0, 0, u8::try_from(head.len()).unwrap(), 1, 5, 0, 0, 0, 1][..], &head].concat();
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0], &frame].concat()
    };
    let (metrics, (closed, after)) = served(move |address| {
        let mut kept = TcpStream::connect(address).unwrap();
        ask(&mut kept, "/v2/");
        let mut unlucky = TcpStream::connect(address).unwrap();
        unlucky.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        unlucky.write_all(&request(b"/metrics")).unwrap();
        // Settings may come, and then the end: closed, or reset.
        let ended = unlucky.read_to_end(&mut Vec::new());
        let closed = ended.map_or_else(|error| error.kind() == io::ErrorKind::ConnectionReset, |_| true);
        (closed, ask(&mut kept, "/v2/"))
    });
    assert_eq!((closed, after.as_str()), (true, "HTTP/1.1 200 OK"));
    assert_eq!((metrics.panics(), metrics.totals().requests), (1, 3));
}
