//! Derives the pulls from a log of events.
//!
//! A **pull** of an image by an address is one complete response (200 or 206) to a GET of the image's manifest, by tag or by digest:
//!
//! - HEAD is not a pull. But a client that resolves a tag by HEAD (containerd, dockerd) then gets the manifest by digest: that GET is a
//!   pull of the tag. Each HEAD counts for one GET.
//! - Requests for layers and configs are not pulls, however often they are resumed.
//! - A response that was cut short is not a pull, nor is an error, nor 304, with which the client has the image already.
//! - The manifests below an index are pulls of their own, by digest.
//!
//! A node that has an image already sends at most HEAD, and so pulls nothing.

pub mod assert;
pub mod events;
mod image_query;
pub(crate) mod log_reader;
mod refusals;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::proto::Request;
use crate::text::printable;

pub use image_query::{ImageQuery, ImageQueryError};
pub use refusals::Refusals;

/// Length of a shortened digest.
const SHORT_DIGEST: usize = "sha256:".len() + 12;
const DAY_SECONDS: f64 = 86_400.0;

/// A pull of a manifest, or an attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Pull {
    /// Seconds since 1970, by the registry's clock.
    pub time: f64,
    /// The client's address.
    pub by: Option<IpAddr>,
    /// The repository, including its upstream's host.
    pub repository: String,
    /// The tag, if the client used one.
    pub tag: Option<String>,
    /// The manifest's digest; empty if the response had none.
    pub digest: String,
    /// The HTTP status.
    pub status: u32,
    /// Number of bytes sent.
    pub bytes: u64,
    /// Whether the whole response was sent.
    pub complete: bool,
    /// The platform that was asked for and is left out of the disk; empty otherwise.
    pub left_out: String,
}

impl Pull {
    /// Whether the client got the manifest.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete && matches!(self.status, 200 | 206)
    }

    /// The image's name with a shortened digest.
    fn image(&self) -> String {
        let tag = self.tag.as_ref().map_or_else(String::new, |tag| format!(":{tag}"));
        format!("{}{tag}{}", self.repository, short_digest(&self.digest))
    }
}

impl fmt::Display for Pull {
    /// Formats it as a row of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_row(f, self.time, self.by, &self.image(), self.status, self.bytes, self.complete)?;
        if self.left_out.is_empty() {
            return Ok(());
        }
        write!(f, " ({} was left out)", printable(self.left_out.as_bytes()))
    }
}

/// `@` and the shortened digest, or nothing for an empty one.
fn short_digest(digest: &str) -> String {
    if digest.is_empty() { String::new() } else { format!("@{}", digest.get(..SHORT_DIGEST).unwrap_or(digest)) }
}

/// The head of the table for [`write_row`].
const TABLE_HEAD: &str = "TIME (UTC)    BY               IMAGE                                              STATUS      BYTES";

fn write_row(
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
    // It contains text from a client.
    let what = printable(what.as_bytes());
    write!(f, "{}  {by:<15}  {what:<50} {status:>6} {bytes:>10}{cut}", TimeOfDay(time))
}

/// Formats a time in seconds since 1970 as the time of day in UTC, with milliseconds.
struct TimeOfDay(f64);

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = (self.0.rem_euclid(DAY_SECONDS) * 1000.0) as u64;
        let (seconds, millis) = (millis / 1000, millis % 1000);
        write!(f, "{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
}

/// The client's address.
fn address(request: &Request) -> Option<IpAddr> {
    let peer: SocketAddr = request.peer.parse().ok()?;
    Some(peer.ip().to_canonical())
}

/// Finds the pulls in a sequence of requests.
#[derive(Debug, Default)]
pub struct PullTracker {
    /// Tags that a client has resolved by HEAD but not pulled yet, by client, repository and digest.
    resolved: HashMap<(Option<IpAddr>, String, String), String>,
}

impl PullTracker {
    /// Returns the pull or attempt that a request is. `None` for other requests, and for 401, which asks for credentials.
    pub fn track(&mut self, time: f64, request: &Request) -> Option<Pull> {
        if request.endpoint != "manifest" || request.status == 401 {
            return None;
        }
        let by = address(request);
        let Request { repository, reference, digest, status, bytes, complete, left_out, .. } = request.clone();
        // The event of an error has no digest. Which manifest a node lacked is told by what it asked for.
        let digest = if left_out.is_empty() { digest } else { reference.clone() };
        let tag = Some(reference).filter(|reference| !reference.contains(':'));
        let mut pull = Pull { time, by, repository, tag, digest, status, bytes, complete, left_out };
        let key = || (by, request.repository.clone(), request.digest.clone());
        if request.method == "HEAD" {
            if status < 400 {
                self.resolved.extend(pull.tag.map(|tag| (key(), tag)));
                return None;
            }
        } else if pull.tag.is_none() {
            pull.tag = self.resolved.get(&key()).cloned();
        }
        if pull.is_complete() {
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
        let mut tracker = PullTracker::default();
        let pulls = requests.iter().filter_map(|request| tracker.track(0.0, request));
        pulls.map(|pull| (pull.tag.clone(), pull.is_complete())).collect()
    }

    #[test]
    fn tag_is_pulled_by_name_or_by_the_digest_from_head() {
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
    fn incomplete_responses_do_not_count() {
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
    fn row_is_complete_and_printable() {
        let mut tracker = PullTracker::default();
        let mut pull = tracker.track(1_793_491_209.25, &request("GET", "1", 200)).unwrap();
        let rest = "                       200        512";
        let row = pull.to_string();
        assert!(row.starts_with("00:00:09.250  10.1.0.7         test/multi:1@sha256:e3b0c44298fc "), "{row}");
        assert!(row.ends_with(&rest[12..]), "{row}");
        let left_out = Request { digest: String::new(), left_out: "linux/arm64".into(), ..request("GET", DIGEST, 404) };
        let row = tracker.track(0.0, &left_out).unwrap().to_string();
        assert!(row.contains("test/multi@sha256:e3b0c44298fc ") && row.ends_with(" (linux/arm64 was left out)"), "{row}");
        pull.repository = "evil\u{1b}[2J".into();
        pull.complete = false;
        assert!(pull.to_string().contains("  evil:1@sha256:e3b0c44298fc "), "{pull}");
        assert!(pull.to_string().ends_with("512 (cut short)"), "{pull}");
    }
}
