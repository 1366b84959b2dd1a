//! Tests turns, digest checks and prefetching, and bodies whose source has more or fewer bytes than the head announces.

use std::future::poll_fn;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use bytes::Buf;
use http_body::Body as _;
use proptest::prelude::*;

use crate::oci::Digest;
use crate::registry::content::body::*;
use crate::registry::content::buffers::{ByteBudget, Chunk};
use crate::registry::content::store::Disk;
use crate::registry::http::multipart::Multipart;
use crate::registry::http::range::ByteRange;
use crate::registry::limits::{CHUNK, SMALL_CHUNK, STALL};
use crate::registry::telemetry::events::Events;
use crate::registry::telemetry::log::{LogEntry, Telemetry};

#[derive(Debug, Default)]
struct WakeCount(AtomicUsize);

impl Wake for WakeCount {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// An open file with this content, on the disk of an empty layout.
fn opened(content: &[u8]) -> OpenBlob {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(content, 0).unwrap();
    OpenBlob { file: Arc::new(file), disk: disk() }
}

fn disk() -> Arc<Disk> {
    let layout = tempfile::tempdir().unwrap();
    std::fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(layout.path().join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
    Arc::new(Disk::open(layout.path(), "the disk").unwrap())
}

const BOUNDARY: &str = "boundary";

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).unwrap()
}

fn body(payload: Payload, in_flight: Arc<InFlight>) -> Body {
    let telemetry = Arc::new(Telemetry { events: Events::disabled(), metrics: Arc::default() });
    let delivery = Delivery::begin(LogEntry::new(([127, 0, 0, 1], 40_112).into(), &telemetry), payload.len());
    let guard = ConnectionGuard::Http2(Arc::default());
    Body::new(BodyParts { payload, in_flight, stall: STALL, guard, delivery, fault: None })
}

/// All bytes of the file.
fn file_payload(content: &[u8], len: u64) -> Payload {
    Payload::range(ByteSource::File(opened(content)), range(0, len))
}

/// All bytes that the body sends, and the error that ends it, if any.
async fn read(body: Body) -> (Vec<u8>, Option<io::Error>) {
    read_with(body, || ()).await
}

/// Like [`read`]. Calls `after_first` after the first frame.
async fn read_with(mut body: Body, after_first: impl FnOnce()) -> (Vec<u8>, Option<io::Error>) {
    let (mut sent, mut after_first) = (Vec::new(), Some(after_first));
    loop {
        match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            Some(Ok(frame)) => {
                sent.extend_from_slice(frame.data_ref().unwrap().chunk());
                after_first.take().into_iter().for_each(|after_first| after_first());
            }
            Some(Err(error)) => return (sent, Some(error)),
            None => return (sent, None),
        }
    }
}

#[tokio::test]
async fn content_with_a_wrong_digest_is_never_sent_completely() {
    let right: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    for flipped in [None, Some(0), Some(right.len() - 1)] {
        let mut content = right.clone();
        flipped.iter().for_each(|index: &usize| content[*index] ^= 1);
        let (mut payload, in_flight) = (file_payload(&content, content.len() as u64), Arc::default());
        payload.prefetch(Some(Digest::sha256_of(&right)), &in_flight, STALL).await.unwrap();
        let (sent, error) = read(body(payload, in_flight)).await;
        match flipped {
            None => assert!(sent == right && error.is_none()),
            Some(_) => {
                assert!(sent.len() < content.len() && content.starts_with(&sent), "{} bytes", sent.len());
                let found = Digest::sha256_of(&content);
                assert_eq!(error.unwrap().to_string(), format!("its bytes have the digest {found}"));
            }
        }
    }
}

#[tokio::test]
async fn prefetch_fails_if_the_file_is_empty_or_its_only_chunk_is_wrong() {
    let in_flight = Arc::default();
    let error = file_payload(b"", 7).prefetch(None, &in_flight, STALL).await.unwrap_err();
    assert_eq!(error.to_string(), "the file ends at byte 0, before its range does");
    let expected = Some(Digest::sha256_of(b"right"));
    let error = file_payload(b"wrong", 5).prefetch(expected, &in_flight, STALL).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let mut right = file_payload(b"right", 5);
    right.prefetch(expected, &in_flight, STALL).await.unwrap();
    assert_eq!(read(body(right, in_flight)).await.0, b"right");
}

#[tokio::test]
async fn prefetch_of_several_ranges_fails_if_the_first_cannot_be_read() {
    let parts = || Multipart::with_boundary(BOUNDARY.to_owned(), "some/type", 7, vec![range(0, 2), range(4, 7)], None);
    for (content, is_readable) in [("", false), ("content", true)] {
        let mut payload = Payload::multipart(ByteSource::File(opened(content.as_bytes())), parts()).unwrap();
        assert_eq!(payload.prefetch(None, &Arc::default(), STALL).await.is_ok(), is_readable, "{content:?}");
    }
}

#[test]
fn body_yields_after_each_turn_and_is_polled_again() {
    let opened = opened(b"");
    opened.file.set_len(4 * TURN).unwrap();
    let mut body = body(Payload::range(ByteSource::File(opened), range(0, 4 * TURN)), Arc::default());
    let wakes = Arc::<WakeCount>::default();
    let waker = Waker::from(Arc::clone(&wakes));
    let (mut turns, mut in_turn, mut sent) = (1, 0, 0);
    while sent < 4 * TURN {
        match Pin::new(&mut body).poll_frame(&mut Context::from_waker(&waker)) {
            Poll::Ready(Some(Ok(frame))) => {
                let len = frame.data_ref().unwrap().remaining() as u64;
                (in_turn, sent) = (in_turn + len, sent + len);
                assert!(in_turn < 2 * TURN, "{in_turn} bytes in one turn");
            }
            Poll::Pending => (turns, in_turn) = (turns + 1, 0),
            other => panic!("{other:?} after {sent} bytes"),
        }
    }
    assert_eq!((turns, wakes.0.load(Ordering::Relaxed)), (4, 3), "each turn but the last wakes the task at once");
    assert!(body.is_end_stream());
}

/// Content, and the ranges of it that a body sends.
#[derive(Debug, Clone)]
struct Case {
    size: usize,
    /// Several ranges are sent as a multipart body.
    ranges: Vec<ByteRange>,
    in_memory: bool,
    /// Whether the budget is used up, so that chunks are small.
    small_chunks: bool,
}

impl Case {
    fn content(&self) -> Vec<u8> {
        (0..self.size).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect()
    }

    /// The expected body (RFC 9110, section 14.6).
    fn expected(&self) -> Vec<u8> {
        let content = self.content();
        let bytes = |range: &ByteRange| content[range.start() as usize..range.end() as usize].to_vec();
        if let [range] = self.ranges.as_slice() {
            return bytes(range);
        }
        let boundary = BOUNDARY;
        let parts = self.ranges.iter().enumerate().map(|(index, range)| {
            let (line_end, size) = (if index == 0 { "" } else { "\r\n" }, self.size);
            let content_range = format!("bytes {}-{}/{size}", range.start(), range.end() - 1);
            let head = format!("{line_end}--{boundary}\r\nContent-Type: some/type\r\nContent-Range: {content_range}\r\n\r\n");
            [head.into_bytes(), bytes(range)].concat()
        });
        parts.chain([format!("\r\n--{boundary}--\r\n").into_bytes()]).collect::<Vec<_>>().concat()
    }

    /// The body over `source`, and the chunks that use up the budget.
    fn body(&self, source: ByteSource) -> (Body, Vec<Chunk>) {
        let payload = match self.ranges.as_slice() {
            [range] => Payload::range(source, *range),
            ranges => {
                let parts = Multipart::with_boundary(BOUNDARY.to_owned(), "some/type", self.size as u64, ranges.to_vec(), None);
                Payload::multipart(source, parts).unwrap()
            }
        };
        let budget = Arc::<ByteBudget>::default();
        let in_flight = || Arc::new(InFlight::new(Arc::clone(&budget)));
        let chunk = || match in_flight().poll_chunk(u64::MAX, &Context::from_waker(Waker::noop())) {
            Poll::Ready(chunk) => Some(chunk),
            Poll::Pending => None,
        };
        let held = if self.small_chunks { std::iter::from_fn(chunk).take(1000).collect() } else { Vec::new() };
        (body(payload, in_flight()), held)
    }

    fn source(&self) -> ByteSource {
        if self.in_memory { ByteSource::Memory(self.content().into()) } else { ByteSource::File(opened(&self.content())) }
    }
}

/// Sizes up to several chunks, and ranges of any length in any order.
fn cases() -> impl Strategy<Value = Case> {
    let size = prop_oneof![1..3000_usize, CHUNK - 2..CHUNK + 3, 1..3 * CHUNK];
    let ranges = prop::collection::vec((any::<u16>(), any::<u16>()), 1..6);
    (size, ranges, any::<bool>(), prop::bool::weighted(0.3)).prop_map(|(size, ranges, in_memory, small_chunks)| {
        let position = |part: u16| size as u64 * u64::from(part) / 65_536;
        let ranges = ranges.into_iter().map(|(one, other)| range(position(one.min(other)), position(one.max(other)) + 1));
        Case { size, ranges: ranges.collect(), in_memory, small_chunks }
    })
}

/// The sent bytes are a prefix of the expected ones, and all of them unless there is an error.
fn check_is_exact_or_cut(expected: &[u8], sent: &[u8], error: Option<&io::Error>) -> Result<(), TestCaseError> {
    prop_assert!(expected.starts_with(sent), "{} of {} bytes", sent.len(), expected.len());
    prop_assert_eq!(error.is_none(), sent.len() == expected.len(), "{} of {} bytes, {:?}", sent.len(), expected.len(), error);
    Ok(())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn body_has_the_bytes_and_length_of_its_ranges(case in cases()) {
        let expected = case.expected();
        let (body, _held) = case.body(case.source());
        prop_assert_eq!(body.left, expected.len() as u64);
        let (sent, error) = runtime().block_on(read(body));
        prop_assert!(sent == expected && error.is_none(), "{} of {} bytes, {error:?}", sent.len(), expected.len());
    }

    #[test]
    fn body_with_another_length_than_announced_is_cut(case in cases(), by in 1..2000_u64, more in any::<bool>()) {
        let expected = case.expected();
        let (mut body, _held) = case.body(case.source());
        body.left = if more { body.left + by } else { body.left.saturating_sub(by).max(1).min(body.left - 1) };
        let announced = body.left;
        let (sent, error) = runtime().block_on(read(body));
        let error = error.map(|error| error.to_string());
        prop_assert_eq!(error.as_deref(), Some("the body has another length than its head says"));
        prop_assert!(expected.starts_with(&sent) && (sent.len() as u64) < announced, "{} of {announced} bytes", sent.len());
    }

    #[test]
    fn file_that_changes_its_size_is_sent_completely_or_ends_in_an_error(case in cases(), size in 0..4 * CHUNK) {
        let (case, expected) = (Case { in_memory: false, ..case.clone() }, case.expected());
        let opened = opened(&case.content());
        let file = Arc::clone(&opened.file);
        let (body, _held) = case.body(ByteSource::File(opened));
        let (sent, error) = runtime().block_on(read_with(body, || file.set_len(size as u64).unwrap()));
        check_is_exact_or_cut(&expected, &sent, error.as_ref())?;
        prop_assert!(size < case.size || error.is_none());
        prop_assert!(error.is_none_or(|error| error.kind() == io::ErrorKind::UnexpectedEof), "it is reported as a disk error");
    }

    #[test]
    fn content_in_memory_that_is_too_short_is_an_error(case in cases(), size in 0..3 * CHUNK) {
        let (expected, mut content) = (case.expected(), case.content());
        content.truncate(size);
        let needed = case.ranges.iter().map(ByteRange::end).max().unwrap_or_default();
        let (body, _held) = case.body(ByteSource::Memory(content.into()));
        let (sent, error) = runtime().block_on(read(body));
        check_is_exact_or_cut(&expected, &sent, error.as_ref())?;
        prop_assert_eq!(error.is_some(), (size as u64) < needed);
    }
}

#[test]
fn small_parts_share_frames() {
    let content: Vec<u8> = (0..400_000_u32).map(|at| at as u8).collect();
    let ranges: Vec<ByteRange> = (0..1000).map(|at| range(at * 300, at * 300 + 27)).collect();
    for in_memory in [false, true] {
        let case = Case { size: content.len(), ranges: ranges.clone(), in_memory, small_chunks: false };
        let (mut body, _) = case.body(case.source());
        let (mut frames, expected) = (Vec::new(), case.expected());
        while let Some(frame) = runtime().block_on(poll_fn(|context| Pin::new(&mut body).poll_frame(context))) {
            frames.push(frame.unwrap().into_data().unwrap());
        }
        assert!(frames.iter().map(Buf::chunk).collect::<Vec<_>>().concat() == expected);
        let small = frames.iter().filter(|frame| frame.remaining() < SMALL_CHUNK).count();
        assert!(small <= 1, "{small} of {} frames", frames.len());
    }
}
