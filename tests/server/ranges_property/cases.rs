//! Generates random cases: connections, the requests on each, and their `Range` headers. Positions are relative to the size of the
//! content, so that a failing case stays meaningful while it shrinks.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::content::{Content, Target};

/// A connection, with all of its requests.
#[derive(Debug, Clone)]
pub struct Connection {
    pub tls: bool,
    pub protocol: Protocol,
    pub requests: Vec<Request>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Each request follows the previous response.
    Http1,
    /// All requests are written without waiting for a response.
    Pipelined,
    /// All requests at once, each with a window of this many bytes (RFC 9113, section 6.9).
    Http2 { window: u32 },
}

#[derive(Debug, Clone)]
pub struct Request {
    /// Index into [`Content::targets`].
    pub target: usize,
    pub head: bool,
    pub range: Option<Range>,
    pub condition: Condition,
    /// Whether the file is evicted from the page cache before the request.
    pub evict: bool,
    pub reader: Reader,
}

/// A condition of the request (RFC 9110, section 13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    None,
    /// `If-Range` with the right entity tag: the range applies.
    SameRange,
    /// `If-Range` with another tag, a weak tag or a date: the range does not apply.
    OtherRange(&'static str),
    /// `If-None-Match` with the right tag: the response is 304.
    NoneMatch,
}

/// How the client reads a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    Fast,
    /// Pauses after each of the first pieces.
    Slow,
    /// Disconnects after this many bytes of the body.
    Leaves(usize),
}

#[derive(Debug, Clone)]
pub enum Range {
    /// Independent ranges.
    List { unit: &'static str, separator: &'static str, specs: Vec<Spec> },
    /// Consecutive ranges: each has a length and a distance to the next, which overlaps it if the distance is negative.
    Chain { start: Position, pieces: Vec<(u64, i64)> },
    /// Many ranges of one length at a fixed distance.
    Many { count: usize, length: u64, step: u64 },
    /// Arbitrary text.
    Text(String),
}

#[derive(Debug, Clone)]
pub enum Spec {
    Bounded(Position, u64),
    Open(Position),
    Suffix(Position),
    Backwards(Position, u64),
    /// Ends at a number that does not fit 64 bits.
    Endless(Position),
    /// An empty list element.
    Empty,
    Bad(&'static str),
}

/// A position in content of any size.
#[derive(Debug, Clone, Copy)]
pub enum Position {
    /// This many bytes after the start, or near a size at which the server reads.
    Start(u64, i64),
    /// In 65,536ths of the size.
    Part(u16),
    /// This many bytes before or after the end.
    End(i64),
}

impl Position {
    fn at(self, size: u64) -> u64 {
        match self {
            Self::Start(at, delta) => at.saturating_add_signed(delta),
            Self::Part(part) => size * u64::from(part) / 65_536,
            Self::End(delta) => size.saturating_add_signed(-delta),
        }
    }
}

impl Range {
    /// The header's value for content of `size` bytes.
    pub fn header(&self, size: u64) -> String {
        let bounded = |first: u64, length: u64| format!("{first}-{}", (first + length).saturating_sub(1));
        match self {
            Self::List { unit, separator, specs } => {
                let specs = specs.iter().map(|spec| match spec {
                    Spec::Bounded(first, length) => bounded(first.at(size), *length),
                    Spec::Open(first) => format!("{}-", first.at(size)),
                    Spec::Suffix(length) => format!("-{}", length.at(size)),
                    Spec::Backwards(first, by) => format!("{}-{}", first.at(size) + by, first.at(size)),
                    Spec::Endless(first) => format!("{}-99999999999999999999999", first.at(size)),
                    Spec::Empty => String::new(),
                    Spec::Bad(text) => (*text).to_owned(),
                });
                format!("{unit}={}", specs.collect::<Vec<_>>().join(separator))
            }
            Self::Chain { start, pieces } => {
                let mut at = start.at(size);
                let specs = pieces.iter().map(|(length, gap)| {
                    let spec = bounded(at, *length);
                    at = (at + length).saturating_add_signed(*gap);
                    spec
                });
                format!("bytes={}", specs.collect::<Vec<_>>().join(","))
            }
            Self::Many { count, length, step } => {
                let specs = (0..*count as u64).map(|number| bounded(number * step, *length));
                format!("bytes={}", specs.collect::<Vec<_>>().join(","))
            }
            Self::Text(text) => text.clone(),
        }
    }
}

impl Request {
    /// The headers of this request in addition to those of every request.
    pub fn headers(&self, target: &Target) -> Vec<(&'static str, String)> {
        let range = self.range.as_ref().map(|range| ("range", range.header(target.content.len() as u64)));
        let condition = match self.condition {
            Condition::None => None,
            Condition::SameRange => Some(("if-range", target.etag())),
            Condition::OtherRange("weak") => Some(("if-range", format!("W/{}", target.etag()))),
            Condition::OtherRange(text) => Some(("if-range", text.to_owned())),
            Condition::NoneMatch => Some(("if-none-match", target.etag())),
        };
        range.into_iter().chain(condition).collect()
    }
}

/// Simultaneous connections.
pub fn connections() -> impl Strategy<Value = Vec<Connection>> {
    vec(connection(), 1..5)
}

fn connection() -> impl Strategy<Value = Connection> {
    let windows = select(vec![2 << 20, 65_535, 16_384, 4_000]);
    let protocol = prop_oneof![
        3 => Just(Protocol::Http1),
        2 => Just(Protocol::Pipelined),
        3 => windows.prop_map(|window| Protocol::Http2 { window }),
    ];
    (any::<bool>(), protocol, prop_oneof![4 => vec(request(), 1..10), 1 => vec(request(), 10..31)])
        .prop_map(|(tls, protocol, requests)| Connection { tls, protocol, requests })
}

fn request() -> impl Strategy<Value = Request> {
    let target =
        prop_oneof![12 => 0..Content::largest(), 1 => Just(Content::largest()), 5 => Content::largest() + 1..Content::count()];
    let dates = select(vec!["weak", "\"other\"", "Wed, 21 Oct 2015 07:28:00 GMT", ""]);
    let condition = prop_oneof![
        10 => Just(Condition::None),
        2 => Just(Condition::SameRange),
        2 => dates.prop_map(Condition::OtherRange),
        1 => Just(Condition::NoneMatch),
    ];
    let reader = prop_oneof![
        8 => Just(Reader::Fast),
        2 => Just(Reader::Slow),
        1 => prop_oneof![Just(0), 1..5000_usize, 100_000..400_000_usize].prop_map(Reader::Leaves),
    ];
    let range = prop_oneof![1 => Just(None), 6 => range().prop_map(Some)];
    (target, prop::bool::weighted(0.08), range, condition, prop::bool::weighted(0.2), reader)
        .prop_map(|(target, head, range, condition, evict, reader)| Request { target, head, range, condition, evict, reader })
}

fn range() -> impl Strategy<Value = Range> {
    let unit = prop_oneof![12 => Just("bytes"), 1 => Just("Bytes"), 1 => Just("BYTES"), 1 => Just("items"), 1 => Just("byte")];
    let separator = prop_oneof![6 => Just(","), 2 => Just(", "), 1 => Just(" ,\t"), 1 => Just(",,")];
    let list = (unit, separator, prop_oneof![3 => vec(spec(), 1..2), 3 => vec(spec(), 2..8)]);
    let gap = prop_oneof![3 => Just(0_i64), 2 => 1..3_i64, 1 => 3..70_000_i64, 1 => -40..0_i64];
    let equal = (length(), 2..6_usize, gap.clone()).prop_map(|(length, count, gap)| vec![(length, gap); count]);
    let unequal = vec((length(), gap), 2..12);
    let chain = (position(), prop_oneof![1 => equal, 2 => unequal]);
    let many = (prop_oneof![20..1022_usize, 1022..1028_usize], 1..40_u64, 0..60_u64);
    prop_oneof![
        8 => list.prop_map(|(unit, separator, specs)| Range::List { unit, separator, specs }),
        5 => chain.prop_map(|(start, pieces)| Range::Chain { start, pieces }),
        1 => many.prop_map(|(count, length, step)| Range::Many { count, length, step }),
        1 => "bytes=[-0-9,]{0,12}".prop_map(Range::Text),
    ]
}

fn spec() -> impl Strategy<Value = Spec> {
    let bad = select(vec!["-", "--5", "x", "1-2-3", "+1-2", "0x1-0x2", "5", "1.5-2", "a-b", "5-9;6", "\u{a0}-1", "*"]);
    prop_oneof![
        20 => (position(), length()).prop_map(|(first, length)| Spec::Bounded(first, length)),
        4 => position().prop_map(Spec::Open),
        4 => prop_oneof![(0..5_u64).prop_map(|at| Position::Start(at, 0)), position()].prop_map(Spec::Suffix),
        1 => (position(), 1..9_u64).prop_map(|(first, by)| Spec::Backwards(first, by)),
        1 => position().prop_map(Spec::Endless),
        1 => Just(Spec::Empty),
        1 => bad.prop_map(Spec::Bad),
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1..20_u64, 3 => 1..5000_u64, 4 => 5000..300_000_u64, 2 => near().prop_map(|(size, delta)| (size + 3).saturating_add_signed(delta))]
}

fn position() -> impl Strategy<Value = Position> {
    prop_oneof![
        2 => (0..20_u64).prop_map(|at| Position::Start(at, 0)),
        2 => near().prop_map(|(size, delta)| Position::Start(size, delta)),
        4 => any::<u16>().prop_map(Position::Part),
        2 => (-2..3_i64).prop_map(Position::End),
        1 => (0..200_000_i64).prop_map(Position::End),
    ]
}

/// A size at which the server reads, plus or minus two bytes.
fn near() -> impl Strategy<Value = (u64, i64)> {
    (select(vec![0, 1 << 10, 2 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 384 << 10]), -2..3_i64)
}
