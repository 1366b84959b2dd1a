//! A QMP connection in addition to that of `run`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

/// Arguments of `run` that make QEMU listen at `path`.
pub fn arguments(path: &Path) -> [String; 2] {
    ["--qemu-arg=-qmp".to_owned(), format!("--qemu-arg=unix:{},server=on,wait=off", path.display())]
}

pub struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Connects as soon as QEMU listens.
    pub fn connect(path: &Path) -> Self {
        let mut qmp = Self(BufReader::new(crate::wait::eventually(|| UnixStream::connect(path))));
        qmp.line();
        qmp.run("qmp_capabilities", json!({}));
        qmp
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Runs a command, which must succeed, and returns its result.
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.0.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let mut answer = self.line();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if answer.get("return").is_some() {
                return answer["return"].take();
            }
        }
    }

    /// Waits for an event.
    pub fn event(&mut self, name: &str) {
        while self.line()["event"] != name {}
    }
}
