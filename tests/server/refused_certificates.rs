//! Warnings about clients that refuse the registry's certificate.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use localregistry::proto::event;
use localregistry::registry::limits::Limits;
use testing::http::connect;
use testing::layout::Layout;
use testing::server::Server;
use testing::tls::hello;

/// A record with the fatal alert `unknown_ca` (RFC 5246, section 7.2).
const UNKNOWN_CA: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 48];

/// Begins a handshake of TLS 1.2, and ends it with these bytes once the server's certificate is there.
fn refuse(server: &Server, last: &[u8]) {
    let mut stream = connect(server.tls);
    stream.write_all(&hello(0x0303, &[0xc02b])).unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    let _rest = stream.read(&mut [0; 16 << 10]).unwrap();
    stream.write_all(last).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let _rest = stream.read_to_end(&mut Vec::new());
}

#[test]
fn refusals_are_counted_by_alert_and_reported_while_the_server_runs() {
    let (layout, _) = Layout::hello();
    // Long enough for four handshakes on a busy machine.
    let refusal_interval = Duration::from_secs(2);
    let server = Server::start_with(layout.path(), Limits { refusal_interval, ..Limits::default() });
    (0..3).for_each(|_| refuse(&server, &UNKNOWN_CA));
    refuse(&server, &[]);
    let reported = [(); 3].map(|()| match server.event() {
        event::Event::Warning(warning) => warning.tls_refused.map(|refused| (refused.alert, refused.count)).unwrap(),
        other => panic!("{other:?}"),
    });
    let times = ["unknown_ca", "", "unknown_ca"].map(str::to_owned).into_iter().zip([1, 1, 2]).collect::<Vec<_>>();
    assert_eq!(reported.to_vec(), times);
}
