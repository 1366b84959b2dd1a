//! Tests which frames h2 sees, and when.

use std::pin::pin;
use std::task::Waker;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use crate::registry::listen::admission::*;

const WINDOW_UPDATE: u8 = 8;
const END_HEADERS: u8 = 4;

type Seen = Vec<(u8, u32)>;

/// A connection with its client.
struct Connection {
    admission: Admission<DuplexStream>,
    client: DuplexStream,
    /// Parses the bytes that h2 reads.
    frames: FrameParser,
}

/// A pool of `streams` shared streams.
fn pool(streams: usize) -> StreamPool {
    StreamPool { streams: Arc::new(Semaphore::new(streams)), ..StreamPool::default() }
}

/// A connection whose client has sent the preface.
async fn connection(limit: u32, pool: &StreamPool) -> Connection {
    let (client, server) = duplex(1 << 20);
    let admission = Admission::new(server, limit, pool);
    let mut connection = Connection { admission, client, frames: FrameParser::skipping(PREFACE.len()) };
    connection.send(PREFACE).await;
    assert_eq!(connection.seen(), []);
    connection
}

impl Connection {
    async fn send(&mut self, bytes: &[u8]) {
        self.client.write_all(bytes).await.unwrap();
    }

    /// Frames that h2 sees now.
    fn seen(&mut self) -> Seen {
        let (mut seen, mut context) = (Seen::new(), Context::from_waker(Waker::noop()));
        let mut pending = 0;
        // A pending read may only give h2 time to process what it has read. Try once more.
        while pending < 2 {
            let mut bytes = [0; 100];
            let read = pin!(self.admission.read(&mut bytes)).poll(&mut context);
            let Poll::Ready(count) = read else {
                pending += 1;
                continue;
            };
            let mut bytes = &bytes[..count.unwrap()];
            while let Some(piece) = self.frames.next_piece(&mut bytes) {
                if let FramePiece::Header(head) = piece {
                    seen.push((head.frame_type(), head.stream_id()));
                }
            }
        }
        seen
    }

    /// Answers a stream.
    async fn answer(&mut self, stream: u32) {
        self.admission.write_all(&frame(DATA, END_STREAM, stream, b"{}")).await.unwrap();
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &[7; 90])
}

fn headers(streams: impl IntoIterator<Item = u32>) -> Seen {
    streams.into_iter().map(|stream| (HEADERS, stream)).collect()
}

#[tokio::test]
async fn requests_beyond_the_slots_wait_and_pass_in_order() {
    let pool = pool(1);
    let mut peer = connection(100, &pool).await;
    peer.send(&[1, 3, 5, 7, 9].map(get).concat()).await;
    assert_eq!(peer.seen(), headers([1, 3, 5]), "two of its own, and the shared one");
    let mut other = connection(100, &pool).await;
    other.send(&[1, 3, 5].map(get).concat()).await;
    assert_eq!(other.seen(), headers([1, 3]), "each connection has its own");
    peer.answer(3).await;
    assert_eq!(peer.seen(), headers([7]));
    peer.admission.write_all(&frame(RST_STREAM, 0, 1, &[0; 4])).await.unwrap();
    peer.admission.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 5, b"")).await.unwrap();
    assert_eq!(peer.seen(), headers([9]));
    assert_eq!(other.seen(), headers([5]), "a slot that one releases goes to another");
    drop((peer, other));
    assert_eq!((pool.streams.available_permits(), pool.memory.available_permits()), (1, SHARED_HELD_FRAMES / GROWTH));
}

#[tokio::test]
async fn frames_of_open_streams_overtake_waiting_requests() {
    let pool = pool(0);
    let mut peer = connection(100, &pool).await;
    peer.send(&[1, 3, 5, 7].map(get).concat()).await;
    assert_eq!(peer.seen(), headers([1, 3]));
    let window = |stream| frame(WINDOW_UPDATE, 0, stream, &[0, 0, 1, 0]);
    peer.send(&[window(7), window(1), window(0), frame(PING, 0, 0, &[1; 8]), frame(SETTINGS, 0, 0, &[])].concat()).await;
    assert_eq!(peer.seen(), [(WINDOW_UPDATE, 1), (WINDOW_UPDATE, 0), (PING, 0), (SETTINGS, 0)]);
    peer.send(&frame(RST_STREAM, 0, 1, &[0; 4])).await;
    assert_eq!(peer.seen(), [(RST_STREAM, 1), (HEADERS, 5)], "a stream that its client cancels makes room");
    peer.answer(3).await;
    assert_eq!(peer.seen(), [(HEADERS, 7), (WINDOW_UPDATE, 7)]);
}

#[tokio::test]
async fn frames_of_a_waiting_stream_follow_its_request() {
    let pool = pool(0);
    let mut peer = connection(100, &pool).await;
    peer.send(&[1, 3, 5, 7, 9].map(get).concat()).await;
    assert_eq!(peer.seen(), headers([1, 3]));
    let window = |stream| frame(WINDOW_UPDATE, 0, stream, &[0, 0, 1, 0]);
    peer.send(&[window(5), window(9), frame(RST_STREAM, 0, 7, &[0; 4]), window(5)].concat()).await;
    assert_eq!(peer.seen(), []);
    peer.answer(1).await;
    assert_eq!(peer.seen(), [(HEADERS, 5), (WINDOW_UPDATE, 5), (WINDOW_UPDATE, 5)]);
    peer.answer(3).await;
    assert_eq!(
        peer.seen(),
        [(HEADERS, 7), (RST_STREAM, 7), (HEADERS, 9), (WINDOW_UPDATE, 9)],
        "a cancelled request takes no slot"
    );
}

#[tokio::test]
async fn header_blocks_stay_in_order_and_goaway_comes_last() {
    let pool = pool(0);
    let mut peer = connection(100, &pool).await;
    // Two requests with content. The first has a trailer section that comes after a request that waits, and is then cancelled.
    let open = |stream| frame(HEADERS, END_HEADERS, stream, &[7; 90]);
    peer.send(&[open(1), open(3)].concat()).await;
    let block = [frame(HEADERS, END_STREAM, 5, &[7; 90]), frame(CONTINUATION, END_HEADERS, 5, &[7; 90])].concat();
    peer.send(&[block, get(1), frame(RST_STREAM, 0, 1, &[0; 4]), frame(GOAWAY, 0, 0, &[0; 8])].concat()).await;
    assert_eq!(peer.seen(), headers([1, 3]));
    peer.admission.write_all(&frame(GOAWAY, 0, 0, &[0; 8])).await.unwrap();
    peer.send(&[frame(PING, ACK, 0, &[1; 8]), frame(PING, 0, 0, &[2; 8])].concat()).await;
    assert_eq!(peer.seen(), [(PING, 0)], "a ping is answered, and the acknowledgement of GOAWAY comes after all requests");
    peer.answer(3).await;
    let rest = [(HEADERS, 5), (CONTINUATION, 5), (HEADERS, 1), (RST_STREAM, 1), (GOAWAY, 0), (PING, 0)];
    assert_eq!(peer.seen(), rest);
}

#[tokio::test]
async fn full_connection_is_not_read_and_loses_no_frame() {
    let pool = StreamPool { memory: Arc::new(Semaphore::new(2)), ..pool(0) };
    let mut peer = connection(100, &pool).await;
    let requests = (0..1000).map(|at| at * 2 + 1).collect::<Vec<u32>>();
    peer.send(&requests.iter().copied().map(get).collect::<Vec<_>>().concat()).await;
    let mut seen = peer.seen();
    assert_eq!(seen, headers([1, 3]));
    assert!(peer.admission.inbound.held.capacity() <= HELD_FRAMES + 3 * GROWTH, "{}", peer.admission.inbound.held.capacity());
    let mut other = connection(100, &pool).await;
    other.send(&requests.iter().copied().map(get).collect::<Vec<_>>().concat()).await;
    other.seen();
    assert!(other.admission.inbound.held.len() <= HELD_FRAMES, "the first connection has all the shared memory");
    while let Some((_, last)) = seen.last().copied().filter(|(_, last)| *last < 1999) {
        peer.answer(last).await;
        seen.extend(peer.seen());
    }
    assert_eq!(seen, headers(requests));
}

#[tokio::test]
async fn number_of_held_requests_is_limited() {
    let mut peer = connection(100, &pool(0)).await;
    peer.send(&(0..3 * 1024).map(|at| get(at * 2 + 1)).collect::<Vec<_>>().concat()).await;
    let mut seen = peer.seen();
    let held = peer.admission.inbound.requests;
    assert!((HELD_REQUESTS..HELD_REQUESTS + READ / HEADER_LEN).contains(&held), "{held}");
    while let Some((_, last)) = seen.last().copied().filter(|(_, last)| *last < 6 * 1024 - 1) {
        peer.answer(last).await;
        seen.extend(peer.seen());
    }
    assert_eq!((seen.len(), peer.admission.inbound.requests), (3 * 1024, 0));
}

#[tokio::test]
async fn streams_beyond_the_limit_wait_for_the_settings_ack() {
    let pool = pool(1000);
    let mut peer = connection(100, &pool).await;
    peer.send(&(0..102).map(|at| get(at * 2 + 1)).collect::<Vec<_>>().concat()).await;
    assert_eq!(peer.seen().len(), 100);
    peer.send(&frame(SETTINGS, ACK, 0, &[])).await;
    assert_eq!(peer.seen(), [(SETTINGS, 0)], "the two still wait");
    peer.answer(1).await;
    peer.answer(3).await;
    assert_eq!(peer.seen(), headers([201, 203]));
    peer.send(&(102..104).map(|at| get(at * 2 + 1)).collect::<Vec<_>>().concat()).await;
    assert_eq!(peer.seen(), headers([205, 207]));
    assert_eq!(pool.streams.available_permits(), 1000 - 98);
}

#[tokio::test]
async fn oversized_frame_is_passed_to_h2_to_refuse() {
    let pool = pool(0);
    let mut peer = connection(100, &pool).await;
    peer.send(&[get(1), get(3), get(5), frame(HEADERS, END_HEADERS, 7, &[7; MAX_FRAME + 1])].concat()).await;
    assert_eq!(peer.seen(), headers([1, 3, 7]));
}

/// The next action of a client or the server.
#[derive(Debug, Clone)]
enum Act {
    Ask { pieces: usize },
    Window(u32),
    Cancel(u32),
    Ping,
    Answer(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..3_usize).prop_map(|pieces| Act::Ask { pieces }),
        2 => (0..40_u32).prop_map(Act::Window),
        1 => (0..40_u32).prop_map(Act::Cancel),
        1 => Just(Act::Ping),
        3 => (0..8_usize).prop_map(Act::Answer),
    ]
}

proptest! {
    /// However the client's bytes are cut, and whenever it is answered: h2 sees every frame, the frames of each stream and all header
    /// blocks in order, and never more open streams than there are slots.
    #[test]
    fn every_frame_is_seen_in_order(acts in prop::collection::vec(act(), 1..80), cut in 1..60_usize, slots in 0..4_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let pool = pool(slots);
            let mut peer = connection(100, &pool).await;
            let (mut sent, mut seen, mut asked) = (Seen::new(), Seen::new(), 0);
            for act in acts {
                let stream = |at: u32| at * 2 + 1;
                let frames: Vec<Vec<u8>> = match act {
                    Act::Ask { pieces } => {
                        asked += 1;
                        let continued = |_| frame(CONTINUATION, 0, stream(asked - 1), &[7; 30]);
                        std::iter::once(frame(HEADERS, END_STREAM, stream(asked - 1), &[7; 50])).chain((0..pieces).map(continued)).collect()
                    }
                    Act::Window(at) if at < asked => vec![frame(WINDOW_UPDATE, 0, stream(at), &[0, 0, 1, 0])],
                    Act::Cancel(at) if at < asked && !sent.contains(&(RST_STREAM, stream(at))) => vec![frame(RST_STREAM, 0, stream(at), &[0; 4])],
                    Act::Ping => vec![frame(PING, 0, 0, &[1; 8])],
                    Act::Answer(at) => {
                        if let Some(stream) = peer.admission.inbound.slots.open.get(at).copied() {
                            peer.answer(stream).await;
                        }
                        vec![]
                    }
                    _ => vec![],
                };
                for frame in &frames {
                    let head = FrameHeader(*frame.first_chunk().unwrap());
                    sent.push((head.frame_type(), head.stream_id()));
                }
                for piece in frames.concat().chunks(cut) {
                    peer.send(piece).await;
                    seen.extend(peer.seen());
                    assert!(peer.admission.inbound.slots.open.len() <= OWN_STREAMS + slots);
                }
                seen.extend(peer.seen());
            }
            while let Some(stream) = peer.admission.inbound.slots.open.first().copied() {
                peer.answer(stream).await;
                seen.extend(peer.seen());
            }
            let of = |frames: &Seen, wanted: &dyn Fn(&(u8, u32)) -> bool| frames.iter().copied().filter(|frame| wanted(frame)).collect::<Seen>();
            let is_block = |(kind, _): &(u8, u32)| matches!(*kind, HEADERS | CONTINUATION);
            assert_eq!(of(&seen, &is_block), of(&sent, &is_block));
            for (before, (kind, stream)) in seen.iter().zip(seen.iter().skip(1)) {
                assert!(*kind != CONTINUATION || is_block(before) && before.1 == *stream, "nothing comes between the frames of a block");
            }
            for at in 0..=asked {
                let number = if at == asked { 0 } else { at * 2 + 1 };
                let is_of = |(_, stream): &(u8, u32)| *stream == number;
                assert_eq!(of(&seen, &is_of), of(&sent, &is_of), "stream {number}");
            }
            drop(peer);
            assert_eq!(pool.streams.available_permits(), slots);
        });
    }
}
