//! `strace` counts the system calls of `serve`: what a blob and a manifest cost does not depend on what else the machine does.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;

use localregistry::registry::limits::CHUNK;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testing::layout::Layout;
use testing::pack::PROGRAM;

const SIZE: usize = 8 << 20;
const MANIFESTS: usize = 200;

/// The calls of `serve` that read and write, while `client` talks to it: by name, how many succeeded and the sum of what they returned.
fn calls(layout: &Path, client: impl FnOnce(TcpStream)) -> BTreeMap<String, (usize, usize)> {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("calls");
    let mut command = testing::program("strace");
    // The program stays the child, and strace is its grandchild.
    command.args(["-D", "-f", "-q", "-o"]).arg(&log).args(["-e", "trace=/^(p?read|p?write|send|recv)", "-e", "signal=none"]);
    command.args([PROGRAM, "serve", "--json", "--quiet", "--tls", "off", "--sendfile", "--listen", "127.0.0.1:0"]).arg(layout);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let ready: Value = serde_json::from_str(&ready).unwrap();
    client(TcpStream::connect(ready["endpoints"][0].as_str().unwrap().trim_start_matches("http://")).unwrap());
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    // Process IDs are padded to five characters.
    let end = format!("{:<5} +++ exited with 0", child.id());
    let ended = || fs::read_to_string(&log).unwrap().contains(&end);
    testing::wait::until("the end of the log of strace", ended);
    let mut calls = BTreeMap::<String, (usize, usize)>::new();
    for line in fs::read_to_string(&log).unwrap().lines() {
        let Some((_, call)) = line.split_once(' ') else { continue };
        // A call that another thread interrupts in the log is resumed with its result.
        let name = call.trim_start().trim_start_matches("<... ").split(['(', ' ']).next().unwrap();
        let Some(returned) = call.rsplit_once(" = ").and_then(|(_, returned)| returned.split(' ').next()?.parse::<usize>().ok())
        else {
            continue;
        };
        let (count, sum) = calls.entry(name.to_owned()).or_default();
        (*count, *sum) = (*count + 1, *sum + returned);
    }
    calls
}

/// Asks `times` for `path`, each time when the response before has `len` bytes and its head.
fn ask(mut stream: TcpStream, path: &str, times: usize, len: usize) {
    for _ in 0..times {
        // In one write: the server reads what there is.
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        let mut reader = BufReader::new(&mut stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
        assert_eq!(std::io::copy(&mut reader.take(len as u64), &mut std::io::sink()).unwrap(), len as u64);
    }
}

fn sum(calls: &BTreeMap<String, (usize, usize)>, names: &[&str]) -> (usize, usize) {
    let of = |name: &&str| calls.get(*name).copied().unwrap_or_default();
    names.iter().map(of).fold((0, 0), |(count, sum), (more, added)| (count + more, sum + added))
}

#[test]
fn plain_blob_is_not_read_and_a_manifest_takes_two_calls() {
    let mut layout = Layout::default();
    let layer = layout.blob(&vec![7; SIZE]);
    layout.image("test/hello:latest", &vec![7; SIZE]);
    layout.write();
    let blob = format!("/v2/test/hello/blobs/{}", layer.digest);
    let calls_of_blob = calls(layout.path(), |stream| ask(stream, &blob, 2, SIZE));
    let (reads, read) = sum(&calls_of_blob, &["read", "pread64", "preadv", "preadv2"]);
    let (_, sent) = sum(&calls_of_blob, &["sendfile"]);
    // A file system that does not tell what is in its page cache has the first chunk read.
    assert!(sent >= 2 * (SIZE - CHUNK) && read < 2 * CHUNK + (64 << 10), "{sent} sent, {read} read: {calls_of_blob:?}");
    assert!(reads < 1000, "{calls_of_blob:?}");

    let path = "/v2/test/hello/manifests/latest";
    let len = fs::read(layout.path().join("index.json")).map(|index| {
        let index: Value = serde_json::from_slice(&index).unwrap();
        index["manifests"][0]["size"].as_u64().unwrap() as usize
    });
    let len = len.unwrap();
    let once = calls(layout.path(), |stream| ask(stream, path, 1, len));
    let often = calls(layout.path(), |stream| ask(stream, path, 1 + MANIFESTS, len));
    let count = |calls: &BTreeMap<String, (usize, usize)>| calls.values().map(|(count, _)| count).sum::<usize>();
    let more = count(&often) - count(&once);
    // One that reads the request and one that writes the response, and some more of the runtime's own.
    assert!(more <= MANIFESTS * 5 / 2, "{more} calls for {MANIFESTS} manifests: {once:?} {often:?}");
}
