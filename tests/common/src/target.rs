//! A server process under attack: it must keep running, its memory growth is bounded, and it must serve another client meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use localregistry::registry::limits::Limits;

use crate::h2::{End, Peer};
use crate::http;
use crate::layout::{Layout, Stored, content};
use crate::process::Process;

pub const BIG: usize = 8 << 20;

pub struct Target {
    pub process: Process,
    /// Path of a blob of [`BIG`] bytes, and of one of 100,000 bytes.
    pub big: String,
    pub small: String,
    _layout: Layout,
}

pub fn layout() -> (Layout, String, String) {
    let mut layout = Layout::default();
    let path = |stored: Stored| format!("/v2/test/hello/blobs/{}", stored.digest);
    let big = layout.blob(&content(BIG));
    let small = layout.blob(&vec![8; 100_000]);
    let image = layout.manifest(&[&content(BIG), &vec![8; 100_000]]);
    layout.name(image, localregistry::oci::media_type::OCI_MANIFEST, "test/hello:latest").write();
    (layout, path(big), path(small))
}

pub fn target() -> Target {
    let (layout, big, small) = layout();
    Target { process: Process::start(layout.path()), big, small, _layout: layout }
}

impl Target {
    /// Runs an attack while another client is served.
    pub fn survives<T: Send>(&mut self, what: &str, attack: impl FnOnce(SocketAddr) -> T + Send) -> T {
        let address = self.process.address;
        let result = std::thread::scope(|scope| {
            let attack = scope.spawn(move || attack(address));
            loop {
                assert_eq!(http::get(address, &self.small).body.len(), 100_000, "{what}: another client is served");
                if attack.is_finished() {
                    return attack.join().unwrap();
                }
                // One of many clients: the processor is for the attack.
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        self.process.check(what);
        result
    }

    /// Sends what `next` returns for each number below `count`.
    pub fn flood(&mut self, what: &str, count: u32, mut next: impl FnMut(u32) -> Vec<u8> + Send) -> End {
        let mut at = 0..count;
        self.survives(what, |address| Peer::new(address).flood(|| at.next().map(&mut next)))
    }
}

/// Timeouts short enough for a test, and long enough for a good client on a busy machine.
pub fn short() -> Limits {
    Limits { stall: Duration::from_secs(3), ping: Duration::from_secs(3), ..Limits::default() }
}
