//! Whose turn it is, what is never given whole, and what is known before the head is sent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use http_body::Body as _;

use super::*;

#[derive(Debug, Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whoever is served must not wait until another's socket is full.
/// A file of this content, on the disk of an empty layout.
fn opened(content: &[u8]) -> Opened {
    let layout = tempfile::tempdir().unwrap();
    std::fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(layout.path().join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(content, 0).unwrap();
    Opened { file: Arc::new(file), disk: Arc::new(Disk::open(layout.path(), "the disk").unwrap()) }
}

/// All that the body gives, and how it ends.
async fn given(mut body: Body) -> (Vec<u8>, Option<io::Error>) {
    let mut sent = Vec::new();
    loop {
        match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            Some(Ok(frame)) => sent.extend_from_slice(frame.data_ref().unwrap()),
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
        let mut body = Body::slice(Content::File(opened(&content)), 0..content.len() as u64);
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
    let mut short = Body::slice(Content::File(opened(b"")), 0..7);
    let error = short.begin(&limits, &budget).await.unwrap_err();
    assert_eq!(error.to_string(), "the file ends at byte 0, before its slice does");
    let mut wrong = Body::slice(Content::File(opened(b"wrong")), 0..5);
    wrong.verify(Digest::sha256_of(b"right"));
    assert_eq!(wrong.begin(&limits, &budget).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    let mut right = Body::slice(Content::File(opened(b"right")), 0..5);
    right.verify(Digest::sha256_of(b"right"));
    right.begin(&limits, &budget).await.unwrap();
    assert_eq!(given(right).await.0, b"right");
}

#[test]
fn a_body_lets_others_have_their_turn_and_goes_on() {
    let opened = opened(b"");
    opened.file.set_len(4 * TURN).unwrap();
    let mut body = Body::slice(Content::File(opened), 0..4 * TURN);
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
