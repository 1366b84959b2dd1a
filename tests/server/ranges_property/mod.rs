//! Sends random requests to a running server and compares each response byte by byte with the blob and with RFC 9110: ranges, whole
//! blobs and manifests, over HTTP/1.1 and HTTP/2, with and without TLS, with free and with exhausted buffer memory.
//!
//! Each run uses a new seed and prints it on failure. `PROPTEST_RNG_SEED=<seed>` repeats a run, and `PROPTEST_CASES=<count>` sets
//! the number of cases. `tests/run` and CI make three times as many cases as `cargo test`.

mod cases;
mod client;
mod content;
mod expected;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::cases::{Condition, Connection, Protocol, Request};
use self::client::{Address, Answer};
use self::content::{Content, Target};
use self::expected::Positions;
use bytes::Bytes;
use http::StatusCode;
use http::header::{ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE, ETAG};
use localregistry::proto;
use localregistry::registry::limits::{Limits, SMALL_CHUNK};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use testing::certificates;
use testing::server::{Server, Setup};

/// Number of stalled connections whose responses take all buffer memory.
const STALLED: usize = 96;

#[test]
fn responses_are_exact_with_memory_available() {
    run(Setup::default(), 0, 90);
}

#[test]
fn responses_are_exact_by_sendfile() {
    run(Setup { sendfile: true, ..Setup::default() }, 0, 90);
}

#[test]
fn responses_are_exact_while_stalled_connections_hold_all_memory() {
    run(Setup { sendfile: true, ..Setup::default() }, STALLED, 50);
}

#[test]
fn responses_are_exact_while_blobs_are_verified() {
    run(Setup { verify: true, sendfile: true, ..Setup::default() }, 0, 60);
}

/// The server under test, and a runtime for its clients.
struct Site {
    runtime: tokio::runtime::Runtime,
    address: Address,
    content: Arc<Content>,
    server: Server,
    /// Events of requests that are not matched yet.
    events: RefCell<Vec<proto::Request>>,
    /// Requests and bytes in the events so far.
    totals: Cell<(u64, u64)>,
    answers: Cell<u64>,
}

fn run(setup: Setup, stalled: usize, cases: u32) {
    // The stalled connections must not time out.
    let limits = Limits { stall: Duration::from_secs(600), minimum_rate: 0, ..setup.limits };
    let content = Arc::new(Content::new());
    let server = Server::start_as(content.layout.path(), Setup { limits, ..setup });
    let config = certificates::client(&server.ca_pem, &rustls::version::TLS13, None);
    let address = Address { plain: server.plain, tls: server.tls, config: Arc::unwrap_or_clone(config) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (events, totals, answers) = (RefCell::default(), Cell::default(), Cell::default());
    let site = Site { runtime, address, content, server, events, totals, answers };
    let held = site.fill(stalled);

    let environment = Config::default();
    let seed = match environment.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => RandomState::new().build_hasher().finish(),
    };
    let cases = match std::env::var_os("PROPTEST_CASES") {
        Some(_) => environment.cases,
        None if testing::environment::every_case() => cases,
        None => cases / 3,
    };
    let config =
        Config { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, max_shrink_iters: 500, ..environment };
    let started = Instant::now();
    let outcome = TestRunner::new(config).run(&cases::connections(), |connections| site.case(&connections));
    println!("{} answers in {:.1} s, PROPTEST_RNG_SEED={seed}", site.answers.get(), started.elapsed().as_secs_f64());
    if let Err(error) = outcome {
        panic!("{error}\nmake the same cases again with PROPTEST_RNG_SEED={seed}");
    }
    drop(held);
    site.check_totals(stalled);
}

impl Site {
    /// Opens this many stalled connections and waits until no memory for large chunks is left.
    fn fill(&self, stalled: usize) -> Vec<Box<dyn Send>> {
        let largest = &self.content.targets[Content::largest()].path;
        let held = self.runtime.block_on(client::stalled(&self.address, largest, stalled)).unwrap();
        while stalled > 0 && self.runtime.block_on(client::largest_piece(&self.address, largest)).unwrap() > SMALL_CHUNK {}
        held
    }

    /// Sends the requests of all connections at the same time, and checks each response and its event.
    fn case(&self, connections: &[Connection]) -> Result<(), TestCaseError> {
        let running: Vec<_> = connections
            .iter()
            .map(|connection| client::run(self.address.clone(), Arc::clone(&self.content), connection.clone()))
            .map(|connection| self.runtime.spawn(connection))
            .collect();
        let ended: Vec<_> = running.into_iter().map(|connection| self.runtime.block_on(connection).unwrap()).collect();
        for (connection, answers) in connections.iter().zip(ended) {
            let answers = answers.map_err(|error| TestCaseError::fail(describe(connection, &error)))?;
            self.answers.set(self.answers.get() + answers.len() as u64);
            for (place, answer) in answers.iter().enumerate() {
                let checked = match connection.requests.get(place) {
                    Some(request) => check(request, &self.content.targets[request.target], answer)
                        .map_err(|error| format!("{error}\n{}", self.asked(request))),
                    None if answer.body == b"{}" => Ok(()),
                    None => Err(format!("the answer to another request: {answer:?}")),
                };
                let checked = checked.and_then(|()| self.check_event(connection, place, answer));
                checked.map_err(|error| TestCaseError::fail(describe(connection, &error)))?;
            }
        }
        Ok(())
    }

    fn asked(&self, request: &Request) -> String {
        let target = &self.content.targets[request.target];
        format!("{} of {} bytes, {:.300}", target.path, target.content.len(), format!("{:?}", request.headers(target)))
    }

    /// Asserts that the event has the number of body bytes sent, and whether the body was complete.
    fn check_event(&self, connection: &Connection, place: usize, answer: &Answer) -> Result<(), String> {
        let event = self.event(&answer.user_agent);
        let protocol = if matches!(connection.protocol, Protocol::Http2 { .. }) { "HTTP/2" } else { "HTTP/1.1" };
        if event.status != u32::from(answer.status.as_u16()) || event.protocol != protocol {
            return Err(format!("answer {place} of status {} has the event {event:?}", answer.status));
        }
        let sent = answer.body.len() as u64;
        let right = if answer.left {
            let length = answer.content_length()?;
            event.bytes >= sent && event.bytes <= length && event.complete == (event.bytes == length)
        } else {
            event.bytes == sent && event.complete
        };
        if right { Ok(()) } else { Err(format!("answer {place} of {sent} bytes has the event {event:?}")) }
    }

    fn event(&self, user_agent: &str) -> proto::Request {
        loop {
            let mut events = self.events.borrow_mut();
            if let Some(place) = events.iter().position(|event| event.user_agent == user_agent) {
                return events.swap_remove(place);
            }
            let event = self.server.logged();
            let (requests, bytes) = self.totals.get();
            self.totals.set((requests + 1, bytes + event.bytes));
            events.push(event);
        }
    }

    /// Asserts that the totals match the events, after the stalled connections have closed.
    fn check_totals(self, stalled: usize) {
        (0..stalled).for_each(|_| drop(self.event("stalled")));
        let expected = self.totals.get();
        let totals = self.server.stop(Duration::ZERO);
        assert_eq!((totals.requests, totals.bytes), expected, "the totals are the sum of the events");
    }
}

fn describe(connection: &Connection, error: &str) -> String {
    format!("{:?}, TLS: {}: {error}", connection.protocol, connection.tls)
}

/// Compares a response with the expected one.
fn check(request: &Request, target: &Target, answer: &Answer) -> Result<(), String> {
    use expected::Answer as Expected;
    let size = target.content.len() as u64;
    let applies = !request.head && !matches!(request.condition, Condition::OtherRange(_));
    let range = request.range.as_ref().filter(|_| applies).map(|range| range.header(size));
    if request.condition == Condition::NoneMatch {
        same("status", answer.status, StatusCode::NOT_MODIFIED)?;
        return same("body", answer.body.as_slice(), b"");
    }
    let expected = range.map_or(Expected::Whole, |range| expected::answer(&range, size));
    let header = |name| answer.headers.get(name).map(|value| value.to_str().unwrap());
    if !request.head && !answer.left {
        same("Content-Length", answer.content_length()?, answer.body.len() as u64)?;
    }
    let refusal = match &expected {
        Expected::Unsatisfiable => Some((StatusCode::RANGE_NOT_SATISFIABLE, Some(format!("bytes */{size}")))),
        Expected::TooMany => Some((StatusCode::BAD_REQUEST, None)),
        _ => None,
    };
    if let Some((status, content_range)) = refusal {
        same("status", answer.status, status)?;
        return same("Content-Range", header(CONTENT_RANGE), content_range.as_deref());
    }
    same("Accept-Ranges", header(ACCEPT_RANGES), Some("bytes"))?;
    same("ETag", header(ETAG), Some(target.etag().as_str()))?;
    let status = if expected == Expected::Whole { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
    same("status", answer.status, status)?;
    match expected {
        Expected::Parts(ranges) => {
            same("Content-Range", header(CONTENT_RANGE), None)?;
            let media_type = header(CONTENT_TYPE).unwrap_or_default();
            let boundary =
                media_type.strip_prefix("multipart/byteranges; boundary=").ok_or_else(|| format!("of type {media_type}"))?;
            parts(&ranges, boundary, target, answer)
        }
        Expected::One((first, last)) => {
            same("Content-Type", header(CONTENT_TYPE), Some(target.media_type))?;
            same("Content-Range", header(CONTENT_RANGE), Some(format!("bytes {first}-{last}/{size}").as_str()))?;
            let (first, last) = (usize::try_from(first).unwrap(), usize::try_from(last).unwrap());
            body(&target.content[first..=last], request, answer)
        }
        _ => {
            same("Content-Type", header(CONTENT_TYPE), Some(target.media_type))?;
            same("Content-Range", header(CONTENT_RANGE), None)?;
            body(&target.content, request, answer)
        }
    }
}

fn same<T: PartialEq<U> + std::fmt::Debug, U: std::fmt::Debug>(what: &str, found: T, expected: U) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?}; expected {expected:?}")) }
}

/// Asserts that the body is this content, or a prefix of it if the client disconnected.
fn body(expected: &[u8], request: &Request, answer: &Answer) -> Result<(), String> {
    same("Content-Length", answer.content_length()?, expected.len() as u64)?;
    let expected = match (request.head, answer.left) {
        (true, _) => &[],
        (_, true) => expected.get(..answer.body.len()).ok_or("more bytes than there are")?,
        (_, false) => expected,
    };
    bytes(expected, &answer.body)
}

fn bytes(expected: &[u8], found: &[u8]) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    let differs = expected.iter().zip(found).position(|(expected, found)| expected != found);
    Err(format!("{} bytes, expected {}; the first other one is at {differs:?}", found.len(), expected.len()))
}

/// Asserts that the body has a part for each range in this order, or a prefix of that if the client disconnected.
fn parts(ranges: &[Positions], boundary: &str, target: &Target, answer: &Answer) -> Result<(), String> {
    let end = format!("\r\n--{boundary}--\r\n");
    if !answer.left && !answer.body.ends_with(end.as_bytes()) {
        return Err("the last boundary is not the end of the body".into());
    }
    let stream = futures_util::stream::iter([Ok::<_, Infallible>(Bytes::copy_from_slice(&answer.body))]);
    let mut multipart = multer::Multipart::new(stream, boundary);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for (place, (first, last)) in ranges.iter().enumerate() {
            let named = |error: String| format!("part {place} ({first}-{last}) of {}: {error}", ranges.len());
            let mut part = match multipart.next_field().await {
                Ok(Some(part)) => part,
                Err(_) if answer.left => return Ok(()),
                other => return Err(named(format!("{other:?}"))),
            };
            let header = |name| part.headers().get(name).map(|value| value.to_str().unwrap());
            same("Content-Type", header(CONTENT_TYPE), Some(target.media_type)).map_err(named)?;
            let content_range = format!("bytes {first}-{last}/{}", target.content.len());
            same("Content-Range", header(CONTENT_RANGE), Some(content_range.as_str())).map_err(named)?;
            let mut found = Vec::new();
            let cut = loop {
                match part.chunk().await {
                    Ok(Some(chunk)) => found.extend_from_slice(&chunk),
                    Ok(None) => break false,
                    Err(_) if answer.left => break true,
                    Err(error) => return Err(named(error.to_string())),
                }
            };
            let expected = &target.content[usize::try_from(*first).unwrap()..=usize::try_from(*last).unwrap()];
            let expected = if cut { expected.get(..found.len()).unwrap_or(expected) } else { expected };
            bytes(expected, &found).map_err(named)?;
        }
        match multipart.next_field().await {
            Ok(None) => Ok(()),
            Err(_) if answer.left => Ok(()),
            other => Err(format!("another part than the {} that were asked for: {other:?}", ranges.len())),
        }
    })
}
