//! Ten thousand connections at once, with and without enough file descriptors: active transfers continue, and new clients are
//! served afterwards.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use localregistry::proto::event::Event;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};
use testing::agent::Agent;
use testing::http;
use testing::pack::Bench;
use testing::private::{ip, privately};
use testing::vm::Vm;

/// Number of simultaneous connections.
const CROWD: usize = 10_000;
/// Bytes by which the machine's memory may grow.
const GROWTH: u64 = 64 << 20;
/// Size of the blob in bytes.
const BLOB: u64 = 500 << 20;
/// Bytes of each read.
const PART: usize = 8 << 20;

/// Opens this many connections without waiting.
fn crowd(address: SocketAddr) -> Vec<Socket> {
    let begin = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let begun = socket.connect(&address.into());
        assert!(begun.is_ok() || begun.is_err_and(|error| error.raw_os_error() == Some(nix::libc::EINPROGRESS)));
        socket
    };
    (0..CROWD).map(|_| begin()).collect()
}

fn heartbeat(vm: &Vm, fits: impl Fn(u64) -> bool) -> u64 {
    vm.event("heartbeat", |event| match event {
        Event::Heartbeat(beat) => fits(beat.connections).then_some(beat.memory_used),
        _ => None,
    })
}

#[test]
fn ten_thousand_connections_stop_neither_pulls_nor_accepting() {
    privately(|| {
        setrlimit(Resource::RLIMIT_NOFILE, 2 * CROWD as u64, 2 * CROWD as u64).unwrap();
        let bench = Bench::default();
        File::create(bench.path("zeros")).unwrap().set_len(BLOB).unwrap();
        bench.pack(&["--artifact", "test/zeros:1=zeros"]);
        for command in ["tuntap add dev tap0 mode tap", "address add 10.79.0.1/24 dev tap0", "link set tap0 up"] {
            ip(command);
        }
        let agent = Agent::new(&bench.path("agent"), "", "");
        let own = agent.arguments();
        let further =
            ["--net", "tap=tap0,ip=10.79.0.82/24", "--tls", "off", "--console", "console", "--set", "heartbeatSeconds=1"];
        let vm = Vm::boot(&bench.path("disk.erofs"), &own.iter().map(String::as_str).chain(further).collect::<Vec<_>>());
        let address: SocketAddr = vm.address.parse().unwrap();
        let manifest = http::get(address, "/v2/test/zeros/manifests/1").json();
        let digest = manifest["layers"][0]["digest"].as_str().unwrap();
        let mut pull = BufReader::new(http::connect(address));
        write!(pull.get_mut(), "GET /v2/test/zeros/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let read_part = |pull: &mut BufReader<TcpStream>| pull.read_exact(&mut vec![0; PART]).unwrap();
        read_part(&mut pull);
        let before = heartbeat(&vm, |connections| connections == 1);

        // The server holds 1024 connections at once. It evicts idle ones and accepts the next.
        let many = crowd(address);
        let at_most = heartbeat(&vm, |connections| connections > 512);
        read_part(&mut pull);
        drop(many);
        assert_eq!(http::get(address, "/v2/").status, 200);
        heartbeat(&vm, |connections| connections == 1);

        // A few connections use up all file descriptors.
        let descriptors = agent.number("descriptors");
        assert_eq!(agent.ask(&format!("files {}", descriptors + 10)), "ok");
        let many = crowd(address);
        vm.console("a connection could not be accepted error=No file descriptors available (os error 24)");
        read_part(&mut pull);
        drop(many);
        // The warning is rate-limited, because the console is slow.
        let said = fs::read_to_string(vm.path("console")).unwrap().matches("could not be accepted").count();
        assert!(said < 10, "the warning appeared {said} times");
        // These have closed, and later ones are accepted with as few descriptors.
        assert_eq!(http::get(address, "/v2/").status, 200);
        let after = heartbeat(&vm, |connections| connections == 1);
        read_part(&mut pull);

        let grown = at_most.max(after).saturating_sub(before);
        assert!(grown < GROWTH, "the machine's memory has grown by {grown} bytes");
        println!("memory: {} KiB before, {} in the crowd, {} after", before >> 10, at_most >> 10, after >> 10);
        drop(pull);
        let ended = vm.stop(Signal::SIGTERM);
        assert_eq!((ended.status, ended.done().dropped_events), (Some(0), 0), "{}", ended.stderr);
    });
}
