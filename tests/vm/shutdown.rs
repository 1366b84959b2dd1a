//! Shutdown during transfers, by every trigger: a transfer that fits the drain completes, others are cut and logged, and a second
//! trigger cuts the drain short. PID 1 also reaps orphans.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use localregistry::proto::event::Event;
use nix::sys::signal::Signal;
use serde_json::json;
use testing::agent::Agent;
use testing::http;
use testing::pack::Bench;
use testing::qmp::{self, Qmp};
use testing::vm::{Ended, Vm};

/// Size of the blob in bytes.
const BLOB: u64 = 500 << 20;
/// Bytes that fit the drain even on a busy host.
const FITTING: u64 = 16 << 20;

/// Packs a disk with a blob of zeros.
fn disk(bench: &Bench) -> PathBuf {
    File::create(bench.path("zeros")).unwrap().set_len(BLOB).unwrap();
    bench.pack(&["--artifact", "test/zeros:1=zeros"]);
    bench.path("disk.erofs")
}

/// An active transfer.
struct Transfer {
    stream: BufReader<TcpStream>,
    length: u64,
    read: u64,
}

impl Transfer {
    /// Requests the blob, or a range of it, and reads the head of the response.
    fn start(vm: &Vm, range: &str) -> Self {
        let address = vm.address.parse().unwrap();
        let manifest = http::get(address, "/v2/test/zeros/manifests/1").json();
        let digest = manifest["layers"][0]["digest"].as_str().unwrap();
        let mut stream = BufReader::new(http::connect(address));
        let request = format!("GET /v2/test/zeros/blobs/{digest} HTTP/1.1\r\nHost: x\r\n{range}\r\n");
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        Self { stream, length, read: 0 }
    }

    /// Reads `bytes` bytes, or fewer if the response ends.
    fn until(&mut self, bytes: u64) -> u64 {
        let mut chunk = vec![0; 1 << 16];
        while self.read < bytes {
            // A connection reset also ends the response.
            match self.stream.read(&mut chunk) {
                Ok(count) if count > 0 => self.read += count as u64,
                _ => break,
            }
        }
        self.read
    }
}

/// A machine with an almost complete transfer and a stalled one.
struct Case {
    vm: Vm,
    fitting: Transfer,
    stuck: Transfer,
}

impl Case {
    fn start(disk: &Path, arguments: &[String]) -> Self {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["--tls", "off", "--console", "console"]).collect();
        let vm = Vm::boot(disk, &arguments);
        let mut stuck = Transfer::start(&vm, "");
        assert_eq!(stuck.length, BLOB);
        stuck.until(1 << 20);
        let mut fitting = Transfer::start(&vm, &format!("Range: bytes={}-\r\n", BLOB - FITTING));
        assert_eq!(fitting.length, FITTING);
        fitting.until(1 << 16);
        Self { vm, fitting, stuck }
    }

    /// Asserts that the almost complete transfer completes after the machine was asked to end by `words`.
    fn fitting_is_sent(&mut self, words: &str) {
        self.vm.console(&format!("localregistry: shutdown by {words}: no new connections; transfers in progress have 10 s"));
        let mut late = http::connect(self.vm.address.parse().unwrap());
        // QEMU accepts the connection, but the guest does not.
        let _ = late.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(!late.read(&mut [0]).is_ok_and(|count| count > 0), "new connections are not served");
        assert_eq!(self.fitting.until(FITTING), FITTING);
        self.vm.event("the request's end", |event| match event {
            Event::Request(request) => (request.endpoint == "blob" && request.complete).then_some(()),
            _ => None,
        });
    }

    /// Asserts that the stalled transfer is cut, and that the machine ends for `reason`.
    fn cut(mut self, reason: &str) -> Ended {
        self.vm.console("the drain ended before its transfers: they were cut connections=");
        let sent = self.stuck.until(BLOB);
        assert!(sent < BLOB, "the transfer was cut");
        let ended = self.vm.end();
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        let blobs = ended.requests().into_iter().filter(|request| request.endpoint == "blob");
        let mut blobs: Vec<_> = blobs.map(|request| (request.complete, request.status, request.bytes)).collect();
        blobs.sort_unstable();
        let [(false, 200, cut), (true, 206, FITTING)] = blobs[..] else { panic!("{blobs:?}") };
        assert!((sent..BLOB).contains(&cut), "{cut} bytes were handed over, {sent} came");
        let (done, requests) = (ended.done(), ended.requests());
        assert_eq!((done.status, done.code.as_str(), done.reason.as_str()), (0, "", reason));
        assert_eq!(done.requests, requests.len() as u64);
        assert_eq!(done.bytes, requests.iter().map(|request| request.bytes).sum::<u64>());
        ended
    }
}

#[test]
fn power_button_finishes_short_transfers_and_cuts_long_ones() {
    let bench = Bench::default();
    let disk = disk(&bench);
    let socket = bench.path("qmp");
    let mut case = Case::start(&disk, &qmp::arguments(&socket));
    Qmp::connect(&socket).run("system_powerdown", json!({}));
    case.fitting_is_sent("the power button");
    case.cut("shut down by the power button");
}

#[test]
fn power_button_after_ctrl_alt_del_shuts_down_at_once() {
    let bench = Bench::default();
    let disk = disk(&bench);
    let socket = bench.path("qmp");
    let mut case = Case::start(&disk, &qmp::arguments(&socket));
    let mut qmp = Qmp::connect(&socket);
    let keys = ["ctrl", "alt", "delete"].map(|key| json!({ "type": "qcode", "data": key }));
    qmp.run("send-key", json!({ "keys": keys }));
    case.fitting_is_sent("SIGINT (Ctrl-Alt-Del)");
    qmp.run("system_powerdown", json!({}));
    case.cut("shut down by SIGINT (Ctrl-Alt-Del), and at once by the power button");
}

#[test]
fn orphans_are_reaped_and_sigint_after_sigterm_shuts_down_at_once() {
    let bench = Bench::default();
    let disk = disk(&bench);
    let agent = Agent::new(&bench.path("agent"), "", "");
    let mut case = Case::start(&disk, &agent.arguments());

    assert_eq!(agent.ask("orphans 1000"), "ok");
    while agent.number("zombies") > 0 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // PID 1 reaped its children, raised its limit of open files, and uses the host's entropy.
    let limits = agent.ask("read /proc/1/limits");
    let files = limits.split('|').find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["1048576", "1048576"]);
    assert_eq!(agent.ask("read /sys/class/misc/hw_random/rng_current"), "virtio_rng.0|");

    assert_eq!(agent.ask("kill 15"), "ok");
    case.fitting_is_sent("SIGTERM");
    assert_eq!(agent.ask("kill 2"), "ok");
    case.cut("shut down by SIGTERM, and at once by SIGINT (Ctrl-Alt-Del)");
}

#[test]
fn transfer_of_500_mb_within_the_drain_is_completed() {
    let bench = Bench::default();
    let disk = disk(&bench);
    let vm = Vm::boot(&disk, &["--tls", "off", "--console", "console"]);
    let mut transfer = Transfer::start(&vm, "");
    transfer.until(BLOB - FITTING);
    // `run` requests the shutdown through the control port.
    vm.signal(Signal::SIGTERM);
    vm.console("localregistry: shutdown by a command on the control port: no new connections; transfers in progress have 10 s");
    assert_eq!(transfer.until(BLOB), BLOB);
    drop(transfer);
    let ended = vm.end();
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    let whole = ended.requests().into_iter().find(|request| request.endpoint == "blob").unwrap();
    assert_eq!((whole.complete, whole.bytes), (true, BLOB));
    let done = ended.done();
    assert_eq!((done.status, done.reason.as_str()), (0, "shut down by a command on the control port"));
    assert_eq!((done.requests, done.bytes > BLOB), (2, true));
}
