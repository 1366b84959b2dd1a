//! An appliance whose events are not read: it serves, and reports at the end how many events it dropped. The test starts QEMU
//! itself, because `run` reads the events.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use localregistry::proto;
use localregistry::proto::event::Event;
use serde_json::Value;
use testing::child::KilledOnDrop;
use testing::http;
use testing::pack::{Bench, PROGRAM};
use testing::vm::succeed;
use testing::wait::{eventually, until};

/// More events than the buffers hold: 4096 in the guest's queue, and some hundred in the sockets.
const REQUESTS: usize = 8000;
/// Number of parallel requests.
const BATCH: usize = 100;

struct Machine {
    printed: Value,
    address: SocketAddr,
    qemu: KilledOnDrop,
}

impl Machine {
    fn start(bench: &Bench, disk: &Path, name: &str) -> Self {
        let mut run = testing::program(PROGRAM);
        run.args([
            "run",
            "--print-command",
            "--json",
            "--quiet",
            "--accel",
            "tcg",
            "--tls",
            "off",
            "--set",
            "heartbeatSeconds=0",
        ]);
        let printed: Value = serde_json::from_str(&succeed(run.arg(disk).arg("--run-dir").arg(bench.path(name)))).unwrap();
        let words: Vec<&str> = printed["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let qemu = KilledOnDrop(testing::program(words[0]).args(&words[1..]).stdin(Stdio::null()).spawn().unwrap());
        let address = printed["address"].as_str().unwrap().parse().unwrap();
        Self { printed, address, qemu }
    }

    fn socket(&self, name: &str) -> UnixStream {
        let path = self.printed[name].as_str().unwrap();
        eventually(|| UnixStream::connect(path))
    }

    /// Waits until the registry answers. QEMU accepts connections long before.
    fn until_it_answers(&self) {
        let answers = || {
            let mut stream = BufReader::new(TcpStream::connect(self.address).ok()?);
            stream.get_mut().write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
            let mut line = String::new();
            stream.read_line(&mut line).ok().filter(|_| line.starts_with("HTTP/1.1 200 "))
        };
        until("the registry's answer", || answers().is_some());
    }

    /// Requests the shutdown, waits for it, and returns the console's content.
    fn end(mut self) -> String {
        self.socket("control").write_all(b"{\"shutdown\":{}}\n").unwrap();
        assert!(self.qemu.0.wait().unwrap().success());
        let console = fs::read_to_string(self.printed["console"].as_str().unwrap()).unwrap();
        assert!(console.contains("localregistry: shut down by a command on the control port: "), "{console}");
        console
    }
}

/// Makes the registry answer this many requests.
fn ask(address: SocketAddr) {
    let mut stream = BufReader::new(http::connect(address));
    let batch = "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n".repeat(BATCH);
    for _ in 0..REQUESTS / BATCH {
        stream.get_mut().write_all(batch.as_bytes()).unwrap();
        for _ in 0..BATCH {
            assert_eq!(http::read(&mut stream, false).unwrap().status, 200);
        }
    }
}

#[test]
fn unread_events_are_dropped_and_requests_are_served() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let machine = Machine::start(&bench, &disk, "slow");
    let events = machine.socket("events");
    machine.until_it_answers();
    ask(machine.address);
    // From now on the test reads the events, and the machine is asked to end.
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        BufReader::new(events).read_to_string(&mut text).unwrap();
        text
    });
    let console = machine.end();
    let text = reader.join().unwrap();
    let events: Vec<Event> =
        text.lines().map(|line| serde_json::from_str::<proto::Event>(line).unwrap().event.unwrap()).collect();
    let Some(Event::Done(done)) = events.last() else { panic!("{:?}", events.last()) };
    // Of the events beyond the queue, the last one and a warning about dropped ones arrive.
    let beside =
        |event: &&Event| matches!(event, Event::Done(_)) || matches!(event, Event::Warning(w) if w.code == "DROPPED_EVENTS");
    let reported = events.iter().filter(|event| !beside(event)).count() as u64;
    assert!(events.iter().filter(beside).count() > 1, "the warning came while events were dropped");
    assert!(matches!(events[..2], [Event::Booting(_), Event::Ready(_)]), "the first events are kept");
    assert!(done.requests > REQUESTS as u64 && done.dropped_events > 0, "{done:?}");
    // QEMU's router advertises a network sooner or later.
    let others = 2 + console.matches("localregistry: the addresses changed; ").count() as u64;
    assert_eq!(reported + done.dropped_events, done.requests + others, "each request is reported or counted as dropped");

    // If nothing ever reads the events, the machine still serves and ends.
    let machine = Machine::start(&bench, &disk, "absent");
    machine.until_it_answers();
    ask(machine.address);
    machine.end();
}
