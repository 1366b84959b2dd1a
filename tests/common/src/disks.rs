//! Packed disks with unique content, and the requests and warnings of a VM that serves them.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use localregistry::oci::Digest;
use localregistry::proto::event::Event;
use serde_json::json;

use crate::http::{self, get};
use crate::layout::{Layout, Stored};
use crate::pack::Bench;
use crate::qmp::Qmp;
use crate::vm::{Vm, succeed};

pub const MIB: usize = 1 << 20;

/// Pseudorandom bytes, which occur nowhere else on a disk.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..size.div_ceil(8)).flat_map(word).take(size).collect()
}

/// Packs the disk `NAME.img` with one image of one layer.
pub fn pack(bench: &Bench, name: &str, image: &str, layer: &[u8], further: &[&str]) -> (PathBuf, Stored) {
    let mut layout = Layout::default();
    let stored = layout.image(image, layer);
    bench.layout(name, &layout);
    let output = bench.path(&format!("{name}.img"));
    let mut command = bench.command(&["--quiet", "pack", name, "-o"]);
    succeed(command.arg(&output).args(further));
    (output, stored)
}

pub fn manifest(vm: &Vm, image: &str) -> http::Response {
    let (name, tag) = image.split_once(':').unwrap();
    get(address(vm), &format!("/v2/{name}/manifests/{tag}"))
}

pub fn address(vm: &Vm) -> SocketAddr {
    vm.address.parse().unwrap()
}

pub fn blob(name: &str, content: &[u8]) -> String {
    format!("/v2/{name}/blobs/{}", Digest::sha256_of(content))
}

/// Waits for the next warning with this code and returns its message.
pub fn warned(vm: &Vm, code: &str) -> String {
    vm.event(code, |event| match event {
        Event::Warning(warning) if warning.code == code => Some(warning.message.clone()),
        _ => None,
    })
}

/// Sends a request for `path` and reads the head of the response.
pub fn begin(address: SocketAddr, path: &str) -> BufReader<TcpStream> {
    let mut stream = http::connect(address);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    reader
}

/// Limits reads of the first disk to `rate` bytes per second. 0 removes the limit.
pub fn throttle(qmp: &mut Qmp, rate: u32) {
    let blocks = qmp.run("query-block", json!({}));
    let device = blocks.as_array().unwrap().iter().find_map(|block| block["qdev"].as_str()).unwrap().to_owned();
    let limits = json!({ "id": device, "bps": 0, "bps_rd": rate, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0 });
    qmp.run("block_set_io_throttle", limits);
}
