//! Clients that refuse the registry's certificate: a warning names each, `events` and `assert` show it, and a flood gives a bounded
//! number of events.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use localregistry::proto::{Event, TlsRefused, event};
use localregistry::registry::limits::REFUSING_CLIENTS;
use testing::certificates::ClientAuthority;
use testing::layout::Layout;
use testing::pack::{PROGRAM, text};
use testing::process::Process;
use testing::tls::hello;
use testing::vm::skopeo;

/// A TLS 1.2 suite, because TLS 1.2 encrypts neither certificate nor alerts.
const SUITE: u16 = 0xc02b;
/// A record with the fatal alert `unknown_ca` (RFC 5246, section 7.2).
const UNKNOWN_CA: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 48];

fn images() -> Layout {
    let (layout, _) = Layout::hello();
    layout
}

/// Ends the server and returns the refusals in its log.
fn refusals(mut server: Process) -> Vec<TlsRefused> {
    server.stop();
    let log = fs::read_to_string(&server.events).unwrap();
    let warnings = log.lines().filter_map(|line| match serde_json::from_str::<Event>(line).unwrap().event? {
        event::Event::Warning(warning) => Some(warning),
        _ => None,
    });
    let refused = warnings.map(|warning| {
        assert_eq!(warning.code, "TLS_REFUSED");
        let refused = warning.tls_refused.unwrap();
        assert_eq!(warning.message, refused.to_string());
        refused
    });
    refused.collect()
}

/// Connects from `from` and sends a TLS 1.2 hello. Returns the connection after the server's answer.
fn greeted(from: Ipv4Addr, server: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&server.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.write_all(&hello(0x0303, &[SUITE])).unwrap();
    // The record's header, and the rest of the available data.
    stream.read_exact(&mut [0; 5]).unwrap();
    let _rest = stream.read(&mut [0; 16 << 10]).unwrap();
    stream
}

/// Sends the last bytes of a client, and waits until the server has closed the connection.
fn leave(mut stream: TcpStream, last: &[u8]) {
    stream.write_all(last).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let _rest = stream.read_to_end(&mut Vec::new());
}

/// Each client has its own server, because an address gets one warning in 10 s.
#[test]
fn clients_that_refuse_the_certificate_are_named_with_their_alert() {
    let layout = images();
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("wrong")).unwrap();
    fs::write(folder.path().join("wrong/ca.crt"), ClientAuthority::new("another CA").pem()).unwrap();
    let fails = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success(), "{command:?}: {}", text(&output.stderr));
    };
    let s_client = |address: SocketAddr, arguments: &[&str]| {
        let mut command = testing::program("openssl");
        command.args(["s_client", "-verify_return_error", "-connect", &address.to_string()]).args(arguments);
        command
    };
    let ca_out = folder.path().join("own.crt").display().to_string();
    type Client<'a> = (&'a str, &'a str, &'a dyn Fn(SocketAddr));
    let clients: [Client<'_>; 8] = [
        ("unknown_ca", "", &|at| {
            fails(testing::program("curl").args(["--silent", "--max-time", "60"]).arg(format!("https://{at}/v2/")));
        }),
        ("unknown_ca", "", &|at| {
            fails(
                testing::program("curl")
                    .args(["--silent", "--max-time", "60", "--tls-max", "1.2"])
                    .arg(format!("https://{at}/v2/")),
            );
        }),
        ("unknown_ca", "registry.test", &|at| fails(&mut s_client(at, &["-servername", "registry.test"]))),
        ("bad_certificate", "", &|at| {
            let image = format!("docker://{at}/test/hello:latest");
            fails(&mut skopeo(&["inspect", "--cert-dir", "wrong", &image], folder.path()));
        }),
        // The right CA with another name.
        ("bad_certificate", "", &|at| {
            fails(&mut s_client(at, &["-noservername", "-CAfile", &ca_out, "-verify_hostname", "other.test"]));
        }),
        ("unknown_ca", "", &|at| leave(greeted(Ipv4Addr::LOCALHOST, at), &UNKNOWN_CA)),
        ("", "", &|at| leave(greeted(Ipv4Addr::LOCALHOST, at), &[])),
        // A reset: the client closes with unread bytes.
        ("", "", &|at| {
            let stream = greeted(Ipv4Addr::LOCALHOST, at);
            socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }),
    ];
    for (place, (alert, server_name, client)) in clients.into_iter().enumerate() {
        let server = Process::start_with(layout.path(), &["--ca-out", &ca_out], None);
        client(server.address);
        let refused = refusals(server);
        let attempts = refused.iter().map(|refused| refused.count).sum::<u32>();
        let first = TlsRefused { peer: "127.0.0.1".into(), server_name: server_name.into(), alert: alert.into(), count: 1 };
        assert_eq!(refused.first(), Some(&first), "client {place}");
        // skopeo retries.
        assert!(alert == "bad_certificate" || attempts == 1, "client {place}: {refused:?}");
    }
}

#[test]
fn non_tls_clients_and_completed_handshakes_are_not_refusals() {
    let layout = images();
    let server = Process::start_with(layout.path(), &[], None);
    // No bytes, half a hello, and bytes that are not a hello.
    for bytes in [&b""[..], &hello(0x0303, &[SUITE])[..20], b"\x16\x03\x01\x00\x04\xff\xff\xff\xff", b"GET / HTTP/1.0\r\n\r\n"] {
        leave(TcpStream::connect(server.address).unwrap(), bytes);
    }
    // Without a common cipher suite, the server ends the connection.
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(&hello(0x0303, &[0x0005])).unwrap();
    let _alert = stream.read_to_end(&mut Vec::new());
    let anybody = testing::program("curl")
        .args(["--silent", "--fail", "--insecure"])
        .arg(format!("https://{}/v2/", server.address))
        .status();
    assert!(anybody.unwrap().success());
    assert_eq!(refusals(server), []);
}

fn run(arguments: &[&str], log: &Path) -> (Option<i32>, String, String) {
    let output = testing::program(PROGRAM).args(arguments).arg(log).output().unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn assert_and_events_name_the_client_that_does_not_trust_the_ca() {
    let layout = images();
    let mut server = Process::start_with(layout.path(), &[], None);
    let (seven, eight) = (Ipv4Addr::new(127, 1, 0, 7), Ipv4Addr::new(127, 1, 0, 8));
    (0..3).for_each(|_| leave(greeted(seven, server.address), &UNKNOWN_CA));
    leave(greeted(eight, server.address), &[]);
    server.stop();
    let refused = "127.1.0.7 refused the registry's certificate (unknown_ca) 3 times: it does not trust the CA\n";
    let closed = "127.1.0.8 closed the connection on the registry's certificate, without an alert: it may not trust the CA\n";
    let missing = "localregistry: test/hello:latest was not pulled; it was expected to be pulled at least once\n\
                   - test/hello:latest: to be pulled at least once\n+ test/hello:latest: not pulled\n";
    let pulled = ["assert", "--pulled", "test/hello:latest"];
    assert_eq!(run(&pulled, &server.events), (Some(1), String::new(), format!("{missing}  {refused}  {closed}")));
    let (status, _, said) = run(&[&pulled[..], &["--by", "127.1.0.8"]].concat(), &server.events);
    assert_eq!((status, said.lines().last()), (Some(1), Some(format!("  {closed}").trim_end())));
    assert!(!said.contains("127.1.0.7"), "{said}");
    // With --not-pulled, a refused pull is no failure.
    assert_eq!(run(&["assert", "--not-pulled", "test/hello", "--quiet"], &server.events).0, Some(0));

    let (status, table, said) = run(&["events"], &server.events);
    let rows: Vec<_> = table.lines().skip(1).map(|line| line.split_once("  ").unwrap().1).collect();
    let row = |times: &str| {
        format!("127.1.0.7        refused the registry's certificate (unknown_ca){times}: it does not trust the CA")
    };
    let closed =
        "127.1.0.8        closed the connection on the registry's certificate, without an alert: it may not trust the CA";
    assert_eq!((status, rows, said.as_str()), (Some(0), vec![&*row(""), closed, &*row(" 2 times")], ""));
    let (_, table, _) = run(&["events", "--by", "127.1.0.8"], &server.events);
    assert_eq!(table.lines().count(), 2, "{table}");
    let (_, table, _) = run(&["events", "--image", "test/hello"], &server.events);
    assert_eq!(table.lines().count(), 1, "{table}");
    let (_, lines, _) = run(&["events", "--json"], &server.events);
    let log = fs::read_to_string(&server.events).unwrap();
    let done = log.lines().last().unwrap();
    assert!(done.contains("\"done\""), "{done}");
    assert_eq!(format!("{lines}{done}\n"), log, "every line but the last is a refusal");
}

/// One address, and more addresses than the log names.
#[test]
fn floods_of_refused_handshakes_make_a_bounded_number_of_events() {
    let layout = images();
    let mut server = Process::start_with(layout.path(), &[], None);
    let flood = 500;
    (0..flood).for_each(|_| leave(greeted(Ipv4Addr::LOCALHOST, server.address), &UNKNOWN_CA));
    let addresses = REFUSING_CLIENTS + 100;
    for address in 0..addresses {
        let from = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 2, 0, 0)) + u32::try_from(address).unwrap());
        leave(greeted(from, server.address), &UNKNOWN_CA);
    }
    server.check("refused handshakes");
    let refused = refusals(server);
    assert_eq!(refused.iter().map(|refused| usize::try_from(refused.count).unwrap()).sum::<usize>(), flood + addresses);
    // In each 10 s of the test: at most 256 addresses, the flooding one twice, and one event for all others.
    let intervals = refused.iter().filter(|refused| refused.peer == "127.0.0.1" && refused.count == 1).count();
    let others: Vec<_> = refused.iter().filter(|refused| refused.peer.is_empty()).collect();
    println!("{} events in {intervals} intervals, {others:?}", refused.len());
    assert!(refused.len() < flood, "{} events", refused.len());
}
