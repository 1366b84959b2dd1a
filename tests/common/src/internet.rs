//! Simulates the internet for clients: the names of upstreams resolve to an address that counts connections.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::private::ip;

/// An address for documentation (RFC 5737), next to that of the servers.
const ADDRESS: &str = "192.0.2.99";

/// The names of upstreams that resolve to the address.
pub const NAMES: [&str; 4] = ["registry-1.docker.io", "index.docker.io", "docker.io", "quay.io"];

/// Counts connections and closes each without a response.
pub struct Upstream {
    connections: Arc<AtomicUsize>,
}

impl Upstream {
    /// Listens inside [`crate::private::privately`] and redirects the names.
    pub fn start() -> Self {
        ip(&format!("address add {ADDRESS}/32 dev lo"));
        let connections = Arc::new(AtomicUsize::new(0));
        for port in [80, 443] {
            let listener = TcpListener::bind((ADDRESS, port)).unwrap();
            let counted = Arc::clone(&connections);
            std::thread::spawn(move || {
                for connection in listener.incoming() {
                    drop(connection);
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self::name();
        Self { connections }
    }

    /// Makes the names resolve to the address.
    pub fn name() {
        let hosts = format!("127.0.0.1 localhost\n{ADDRESS} {}\n", NAMES.join(" "));
        fs::write("/etc/hosts", hosts).unwrap();
    }

    /// The number of connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}
