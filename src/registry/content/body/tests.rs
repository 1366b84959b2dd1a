//! Whose turn it is, what is never given whole, and what is known before the head is sent. And bodies whose source has more or fewer
//! bytes than their head says.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use http_body::Body as _;
use proptest::prelude::*;

use crate::registry::content::body::*;
use crate::registry::content::buffers::Chunk;
use crate::registry::content::store::Disk;
use crate::registry::limits::{CHUNK, SMALL_CHUNK};

#[derive(Debug, Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A file of this content, on the disk of an empty layout.
fn opened(content: &[u8]) -> Opened {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(content, 0).unwrap();
    Opened { file: Arc::new(file), disk: disk() }
}

fn disk() -> Arc<Disk> {
    let layout = tempfile::tempdir().unwrap();
    std::fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(layout.path().join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
    Arc::new(Disk::open(layout.path(), "the disk").unwrap())
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).unwrap()
}

/// All that the body gives, and how it ends.
async fn given(body: Body) -> (Vec<u8>, Option<io::Error>) {
    given_while(body, || ()).await
}

/// The same, where something happens after the first frame.
async fn given_while(mut body: Body, happens: impl FnOnce()) -> (Vec<u8>, Option<io::Error>) {
    let (mut sent, mut happens) = (Vec::new(), Some(happens));
    loop {
        match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            Some(Ok(frame)) => {
                sent.extend_from_slice(frame.data_ref().unwrap());
                happens.take().into_iter().for_each(|happens| happens());
            }
            Some(Err(error)) => return (sent, Some(error)),
            None => return (sent, None),
        }
    }
}

#[tokio::test]
async fn bytes_that_are_wrong_are_never_given_whole() {
    let right: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    for (place, content) in [(None, right.clone()), (Some(0), right.clone()), (Some(right.len() - 1), right.clone())] {
        let mut content = content;
        place.iter().for_each(|place: &usize| content[*place] ^= 1);
        let mut body = Body::slice(Content::File(opened(&content)), ByteRange::whole(content.len() as u64));
        body.verify(Digest::sha256_of(&right));
        let (sent, error) = given(body).await;
        match place {
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
async fn a_file_that_gives_nothing_is_known_before_the_head_is_sent() {
    let (limits, budget) = (Limits::default(), Arc::<Budget>::default());
    let mut short = Body::slice(Content::File(opened(b"")), range(0, 7));
    let error = short.begin(&limits, &budget).await.unwrap_err();
    assert_eq!(error.to_string(), "the file ends at byte 0, before its slice does");
    let mut wrong = Body::slice(Content::File(opened(b"wrong")), range(0, 5));
    wrong.verify(Digest::sha256_of(b"right"));
    assert_eq!(wrong.begin(&limits, &budget).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    let mut right = Body::slice(Content::File(opened(b"right")), range(0, 5));
    right.verify(Digest::sha256_of(b"right"));
    right.begin(&limits, &budget).await.unwrap();
    assert_eq!(given(right).await.0, b"right");
}

#[test]
fn a_body_lets_others_have_their_turn_and_goes_on() {
    let opened = opened(b"");
    opened.file.set_len(4 * TURN).unwrap();
    let mut body = Body::slice(Content::File(opened), range(0, 4 * TURN));
    let woken = Arc::<Woken>::default();
    let waker = Waker::from(Arc::clone(&woken));
    let (mut turns, mut in_turn, mut sent) = (1, 0, 0);
    while sent < 4 * TURN {
        match Pin::new(&mut body).poll_frame(&mut Context::from_waker(&waker)) {
            Poll::Ready(Some(Ok(frame))) => {
                let len = frame.data_ref().unwrap().len() as u64;
                (in_turn, sent) = (in_turn + len, sent + len);
                assert!(in_turn < 2 * TURN, "{in_turn} bytes in one turn");
            }
            Poll::Pending => (turns, in_turn) = (turns + 1, 0),
            other => panic!("{other:?} after {sent} bytes"),
        }
    }
    assert_eq!((turns, woken.0.load(Ordering::Relaxed)), (4, 3), "it is polled again at once after each turn but the last");
    assert!(body.is_end_stream());
}

/// A body of some content, and what it has to send.
#[derive(Debug, Clone)]
struct Honest {
    size: usize,
    /// Several are sent as parts.
    ranges: Vec<ByteRange>,
    in_memory: bool,
    /// Whether the budget is spent, so that chunks are small.
    spent: bool,
}

impl Honest {
    fn content(&self) -> Vec<u8> {
        (0..self.size).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect()
    }

    /// Built as the RFC has it (RFC 9110, section 14.6).
    fn expected(&self) -> Vec<u8> {
        let content = self.content();
        let bytes = |range: &ByteRange| content[range.start() as usize..range.end() as usize].to_vec();
        if let [range] = self.ranges.as_slice() {
            return bytes(range);
        }
        let media_type = Multipart::media_type();
        let boundary = media_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
        let parts = self.ranges.iter().enumerate().map(|(place, range)| {
            let (before, size) = (if place == 0 { "" } else { "\r\n" }, self.size);
            let content_range = format!("bytes {}-{}/{size}", range.start(), range.end() - 1);
            let head = format!("{before}--{boundary}\r\nContent-Type: some/type\r\nContent-Range: {content_range}\r\n\r\n");
            [head.into_bytes(), bytes(range)].concat()
        });
        parts.chain([format!("\r\n--{boundary}--\r\n").into_bytes()]).collect::<Vec<_>>().concat()
    }

    /// The body over this content, and what holds the budget.
    fn body(&self, content: Content) -> (Body, Vec<Chunk>) {
        let mut body = match self.ranges.as_slice() {
            [range] => Body::slice(content, *range),
            ranges => {
                let parts = Multipart::new("some/type", self.size as u64, ranges.to_vec(), None);
                Body::multipart(content, parts).unwrap()
            }
        };
        let budget = Arc::<Budget>::default();
        body.budget = Some(Arc::clone(&budget));
        let chunks = || match Arc::new(Flight::new(Arc::clone(&budget))).poll_chunk(u64::MAX, &Context::from_waker(Waker::noop()))
        {
            Poll::Ready(chunk) => Some(chunk),
            Poll::Pending => None,
        };
        let held = if self.spent { std::iter::from_fn(chunks).take(1000).collect() } else { Vec::new() };
        (body, held)
    }

    fn source(&self) -> Content {
        if self.in_memory { Content::Memory(self.content().into()) } else { Content::File(opened(&self.content())) }
    }
}

/// Sizes up to several chunks, and ranges of any length in any order.
fn honest() -> impl Strategy<Value = Honest> {
    let size = prop_oneof![1..3000_usize, CHUNK - 2..CHUNK + 3, 1..3 * CHUNK];
    let ranges = prop::collection::vec((any::<u16>(), any::<u16>()), 1..6);
    (size, ranges, any::<bool>(), prop::bool::weighted(0.3)).prop_map(|(size, ranges, in_memory, spent)| {
        let place = |part: u16| size as u64 * u64::from(part) / 65_536;
        let ranges = ranges.into_iter().map(|(one, other)| range(place(one.min(other)), place(one.max(other)) + 1));
        Honest { size, ranges: ranges.collect(), in_memory, spent }
    })
}

/// What is sent is the start of what should be, and is all of it if there is no error.
fn is_exact_or_cut(expected: &[u8], sent: &[u8], error: Option<&io::Error>) -> Result<(), TestCaseError> {
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
    fn a_body_has_the_bytes_and_the_length_that_its_ranges_say(honest in honest()) {
        let expected = honest.expected();
        let (body, _held) = honest.body(honest.source());
        prop_assert_eq!(body.len(), expected.len() as u64);
        let (sent, error) = runtime().block_on(given(body));
        prop_assert!(sent == expected && error.is_none(), "{} of {} bytes, {error:?}", sent.len(), expected.len());
    }

    #[test]
    fn a_body_of_another_length_than_its_head_says_is_cut(honest in honest(), by in 1..2000_u64, more in any::<bool>()) {
        let expected = honest.expected();
        let (mut body, _held) = honest.body(honest.source());
        body.left = if more { body.left + by } else { body.left.saturating_sub(by).max(1).min(body.left - 1) };
        let promised = body.left;
        let (sent, error) = runtime().block_on(given(body));
        let error = error.map(|error| error.to_string());
        prop_assert_eq!(error.as_deref(), Some("the body has another length than its head says"));
        prop_assert!(expected.starts_with(&sent) && (sent.len() as u64) < promised, "{} of {promised} bytes", sent.len());
    }

    #[test]
    fn a_file_that_changes_its_size_gives_all_bytes_or_an_error(honest in honest(), size in 0..4 * CHUNK) {
        let (honest, expected) = (Honest { in_memory: false, ..honest.clone() }, honest.expected());
        let opened = opened(&honest.content());
        let file = Arc::clone(&opened.file);
        let (body, _held) = honest.body(Content::File(opened));
        let (sent, error) = runtime().block_on(given_while(body, || file.set_len(size as u64).unwrap()));
        is_exact_or_cut(&expected, &sent, error.as_ref())?;
        prop_assert!(size < honest.size || error.is_none());
        prop_assert!(error.is_none_or(|error| error.kind() == io::ErrorKind::UnexpectedEof), "it is told of as a fault of the disk");
    }

    #[test]
    fn content_in_memory_that_is_too_short_is_an_error(honest in honest(), size in 0..3 * CHUNK) {
        let (expected, mut content) = (honest.expected(), honest.content());
        content.truncate(size);
        let needed = honest.ranges.iter().map(ByteRange::end).max().unwrap_or_default();
        let (body, _held) = honest.body(Content::Memory(content.into()));
        let (sent, error) = runtime().block_on(given(body));
        is_exact_or_cut(&expected, &sent, error.as_ref())?;
        prop_assert_eq!(error.is_some(), (size as u64) < needed);
    }
}

#[test]
fn many_small_parts_share_frames() {
    let content: Vec<u8> = (0..400_000_u32).map(|at| at as u8).collect();
    let ranges: Vec<ByteRange> = (0..1000).map(|at| range(at * 300, at * 300 + 27)).collect();
    for in_memory in [false, true] {
        let honest = Honest { size: content.len(), ranges: ranges.clone(), in_memory, spent: false };
        let (mut body, _) = honest.body(honest.source());
        let (mut frames, expected) = (Vec::new(), honest.expected());
        while let Some(frame) = runtime().block_on(poll_fn(|context| Pin::new(&mut body).poll_frame(context))) {
            frames.push(frame.unwrap().into_data().unwrap());
        }
        assert!(frames.concat() == expected);
        let small = frames.iter().filter(|frame| frame.len() < SMALL_CHUNK).count();
        assert!(small <= 1, "{small} of {} frames", frames.len());
    }
}
