//! A HTTP/1.1 client that sends exactly the bytes that a test writes.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The error code of the distribution specification in the body.
    pub fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap().to_owned()
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // Small writes are sent at once, and do not wait for the server's delayed acknowledgement of the last one.
    stream.set_nodelay(true).unwrap();
    stream
}

/// Requests `target` on a new connection, and leaves the response to be read.
pub fn begin(address: SocketAddr, target: impl std::fmt::Display) -> TcpStream {
    let mut stream = connect(address);
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream
}

/// Sends bytes on a new connection and reads one response.
pub fn raw(address: SocketAddr, request: &[u8]) -> Response {
    let mut stream = connect(address);
    stream.write_all(request).unwrap();
    let head = request.starts_with(b"HEAD ");
    read(&mut BufReader::new(stream), head).expect("a response is expected")
}

/// Reads one response. Returns `None` if the connection was closed before a status line.
pub fn read(stream: &mut impl BufRead, head: bool) -> Option<Response> {
    let mut line = String::new();
    if stream.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no status line: {line:?}")).parse().unwrap();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (key, value) = line.split_once(": ").unwrap_or_else(|| panic!("no header: {line:?}"));
        headers.push((key.to_owned(), value.to_owned()));
    }
    let mut response = Response { status, headers, body: Vec::new() };
    if head || status == 304 {
        return Some(response);
    }
    match response.header("content-length") {
        Some(length) => {
            response.body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut response.body).unwrap();
        }
        None => {
            stream.read_to_end(&mut response.body).unwrap();
        }
    }
    Some(response)
}

/// Sends a request with additional headers.
pub fn send(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
    let lines: String = headers.iter().map(|(key, value)| format!("{key}: {value}\r\n")).collect();
    raw(address, format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\n{lines}\r\n").as_bytes())
}

pub fn get(address: SocketAddr, target: &str) -> Response {
    send(address, "GET", target, &[])
}

pub fn head(address: SocketAddr, target: &str) -> Response {
    send(address, "HEAD", target, &[])
}

pub fn ranged(address: SocketAddr, target: &str, range: &str) -> Response {
    send(address, "GET", target, &[("Range", range)])
}
