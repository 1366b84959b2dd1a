//! Who pulled what, out of a log of events. Requests enter, [`Pull`]s leave.
//!
//! A **pull** of an image by an address is one whole answer (200 or 206) to one GET of the image's manifest, by tag or by digest. So:
//!
//! - a HEAD is none. But it says which digest a tag names, and a client that asks so first (containerd, dockerd) gets the manifest by
//!   that digest then: that GET is a pull of the tag. One HEAD goes with one GET.
//! - layers and configs are none, however often they are asked for and taken up again.
//! - an answer that was cut short is none, nor is an error, nor 304: then the client has the image already.
//! - the manifests below an index are pulls of their own, by digest.
//!
//! A node that has an image already asks with HEAD at most, and so pulls nothing.

pub mod assert;
pub mod events;
mod log;
mod refusals;
mod wanted;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::host::vm::launch::printable;
use crate::proto::Request;

pub use refusals::Refusals;
pub use wanted::{Wanted, WantedError};

/// Characters of a digest that are shown: as many as tell images apart.
const SHOWN: usize = "sha256:".len() + 12;
/// Seconds of a day.
const DAY: f64 = 86_400.0;

/// A manifest that a client wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Pull {
    /// When, in seconds since 1970 by the registry's clock.
    pub time: f64,
    /// The client's address.
    pub by: Option<IpAddr>,
    /// The repository, with its upstream's host.
    pub repository: String,
    /// The tag, where the client named one.
    pub tag: Option<String>,
    /// The manifest's digest; empty where there was no answer with one.
    pub digest: String,
    /// HTTP's status.
    pub status: u32,
    /// Bytes sent.
    pub bytes: u64,
    /// Whether the answer was sent whole.
    pub complete: bool,
}

impl Pull {
    /// Whether the client got it.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.complete && matches!(self.status, 200 | 206)
    }

    /// The image's name, the digest shortened.
    fn image(&self) -> String {
        let tag = self.tag.as_ref().map_or_else(String::new, |tag| format!(":{tag}"));
        format!("{}{tag}{}", self.repository, at(&self.digest))
    }
}

impl fmt::Display for Pull {
    /// One row of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        row(f, self.time, self.by, &self.image(), self.status, self.bytes, self.complete)
    }
}

fn at(digest: &str) -> String {
    if digest.is_empty() { String::new() } else { format!("@{}", digest.get(..SHOWN).unwrap_or(digest)) }
}

/// The head of the table that [`row`]s make.
const HEAD: &str = "TIME (UTC)    BY               IMAGE                                              STATUS      BYTES";

fn row(
    f: &mut fmt::Formatter<'_>,
    time: f64,
    by: Option<IpAddr>,
    what: &str,
    status: u32,
    bytes: u64,
    complete: bool,
) -> fmt::Result {
    let by = by.map_or_else(|| "?".to_owned(), |by| by.to_string());
    let cut = if complete { "" } else { " (cut short)" };
    // A client chose these words.
    let what = printable(what.as_bytes());
    write!(f, "{}  {by:<15}  {what:<50} {status:>6} {bytes:>10}{cut}", Clock(time))
}

/// The time of day of a time in seconds since 1970, to the millisecond, in UTC.
struct Clock(f64);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = (self.0.rem_euclid(DAY) * 1000.0) as u64;
        let (seconds, millis) = (millis / 1000, millis % 1000);
        write!(f, "{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
}

/// The address in a request's `peer`.
fn address(request: &Request) -> Option<IpAddr> {
    let peer: SocketAddr = request.peer.parse().ok()?;
    Some(peer.ip().to_canonical())
}

/// What of a log is remembered to know pulls by.
#[derive(Debug, Default)]
pub struct Tracker {
    /// Tags that a client has asked for with HEAD and not got yet: by client, repository and digest.
    resolved: HashMap<(Option<IpAddr>, String, String), String>,
}

impl Tracker {
    /// The pull, or the attempt at one, that a request is. Nothing for other requests, and for 401, which asks for credentials.
    pub fn take(&mut self, time: f64, request: &Request) -> Option<Pull> {
        if request.endpoint != "manifest" || request.status == 401 {
            return None;
        }
        let by = address(request);
        let Request { repository, reference, digest, status, bytes, complete, .. } = request.clone();
        let tag = Some(reference).filter(|reference| !reference.contains(':'));
        let mut pull = Pull { time, by, repository, tag, digest, status, bytes, complete };
        let key = || (by, request.repository.clone(), request.digest.clone());
        if request.method == "HEAD" {
            if status < 400 {
                self.resolved.extend(pull.tag.map(|tag| (key(), tag)));
                return None;
            }
        } else if pull.tag.is_none() {
            pull.tag = self.resolved.get(&key()).cloned();
        }
        if pull.counts() {
            self.resolved.remove(&key());
        }
        Some(pull)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn request(method: &str, reference: &str, status: u32) -> Request {
        Request {
            peer: "10.1.0.7:40112".into(),
            method: method.into(),
            endpoint: "manifest".into(),
            repository: "test/multi".into(),
            reference: reference.into(),
            digest: if status < 300 { DIGEST.into() } else { String::new() },
            status,
            bytes: 512,
            complete: true,
            ..Request::default()
        }
    }

    fn tags(requests: &[Request]) -> Vec<(Option<String>, bool)> {
        let mut tracker = Tracker::default();
        let pulls = requests.iter().filter_map(|request| tracker.take(0.0, request));
        pulls.map(|pull| (pull.tag.clone(), pull.counts())).collect()
    }

    #[test]
    fn a_tag_is_pulled_by_name_or_by_the_digest_that_a_head_gave() {
        let one = Some("1".to_owned());
        assert_eq!(tags(&[request("GET", "1", 200)]), [(one.clone(), true)], "podman");
        assert_eq!(tags(&[request("HEAD", "1", 200), request("GET", DIGEST, 200)]), [(one.clone(), true)], "containerd");
        let again = [request("HEAD", "1", 200), request("GET", DIGEST, 206), request("GET", DIGEST, 200)];
        assert_eq!(tags(&again), [(one.clone(), true), (None, true)], "one HEAD goes with one GET");
        let other = Request { peer: "10.1.0.8:1".into(), ..request("GET", DIGEST, 200) };
        assert_eq!(tags(&[request("HEAD", "1", 200), other]), [(None, true)], "another node's HEAD is not this one's");
        assert_eq!(tags(&[request("HEAD", "1", 200)]), [], "the node has it already");
    }

    #[test]
    fn what_did_not_arrive_does_not_count() {
        let one = Some("1".to_owned());
        let cut = Request { complete: false, ..request("GET", DIGEST, 200) };
        let requests = [request("HEAD", "1", 200), cut, request("GET", DIGEST, 200)];
        assert_eq!(tags(&requests), [(one.clone(), false), (one.clone(), true)]);
        assert_eq!(tags(&[request("GET", "1", 404), request("HEAD", "1", 404)]), [(one.clone(), false), (one.clone(), false)]);
        assert_eq!(tags(&[request("GET", "1", 304)]), [(one, false)]);
        assert_eq!(tags(&[request("GET", "1", 401)]), []);
        let blob = Request { endpoint: "blob".into(), ..request("GET", DIGEST, 200) };
        assert_eq!(tags(&[blob]), []);
    }

    #[test]
    fn a_row_has_everything_and_no_terminal_sequence() {
        let mut tracker = Tracker::default();
        let mut pull = tracker.take(1_793_491_209.25, &request("GET", "1", 200)).unwrap();
        let rest = "                       200        512";
        let row = pull.to_string();
        assert!(row.starts_with("00:00:09.250  10.1.0.7         test/multi:1@sha256:e3b0c44298fc "), "{row}");
        assert!(row.ends_with(&rest[12..]), "{row}");
        pull.repository = "evil\u{1b}[2J".into();
        pull.complete = false;
        assert!(pull.to_string().contains("  evil:1@sha256:e3b0c44298fc "), "{pull}");
        assert!(pull.to_string().ends_with("512 (cut short)"), "{pull}");
    }
}
