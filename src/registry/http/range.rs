//! Parses the `Range` header into the byte ranges to send (RFC 9110, section 14).

use crate::registry::limits::RANGES;

/// The bytes from `start` up to, but not including, `end`. `start <= end` always holds, so the length cannot wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// Returns `None` if `end` is less than `start`.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Option<Self> {
        (start <= end).then_some(Self { start, end })
    }

    /// The range that covers all of content of `size` bytes.
    #[must_use]
    pub fn whole(size: u64) -> Self {
        Self { start: 0, end: size }
    }

    /// Position of the first byte.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Position after the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether the range has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The range without its first `bytes` bytes. Empty if it has no more.
    #[must_use]
    pub fn after(self, bytes: u64) -> Self {
        Self { start: self.start.saturating_add(bytes).min(self.end), ..self }
    }

    /// Removes `bytes` bytes from the front. Returns `None`, and changes nothing, if the range has fewer.
    pub fn advance(&mut self, bytes: u64) -> Option<()> {
        *self = Self::new(self.start.checked_add(bytes)?, self.end)?;
        Some(())
    }
}

/// The parts of the content that a `Range` header requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// All of it: the header is missing, malformed, or in another unit than bytes. RFC 9110 lets a server ignore such a header.
    Whole,
    /// One range.
    One(ByteRange),
    /// Several ranges in the requested order, never merged.
    Many(Vec<ByteRange>),
    /// All ranges lie outside the content.
    Unsatisfiable,
    /// More than [`RANGES`].
    TooMany,
}

/// Parses the value of a `Range` header for content of `size` bytes.
///
/// Empty content is always sent whole: some clients put `bytes=0-` on every request and fail if it is refused.
#[must_use]
pub fn parse(header: &str, size: u64) -> Ranges {
    let Some((unit, list)) = header.split_once('=') else { return Ranges::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") || size == 0 {
        return Ranges::Whole;
    }
    let mut ranges = Vec::new();
    for (count, spec) in list.split(',').map(str::trim).filter(|spec| !spec.is_empty()).enumerate() {
        if count == RANGES {
            return Ranges::TooMany;
        }
        match RangeSpec::parse(spec, size) {
            RangeSpec::Malformed => return Ranges::Whole,
            RangeSpec::Outside => {}
            RangeSpec::Within(range) => ranges.push(range),
        }
    }
    // If overlapping ranges add up to more than the content, sending all of it is cheaper.
    // The sum of at most RANGES 64-bit numbers fits into 128 bits.
    let total: u128 = ranges.iter().map(|range| u128::from(range.len())).sum();
    match ranges.as_slice() {
        [] if list.contains('-') => Ranges::Unsatisfiable,
        [] => Ranges::Whole,
        [one] => Ranges::One(*one),
        _ if total > size.into() => Ranges::Whole,
        _ => Ranges::Many(ranges),
    }
}

/// One item of the header's list.
enum RangeSpec {
    /// Not a byte range.
    Malformed,
    /// A byte range that contains no byte of the content.
    Outside,
    /// A byte range, clamped to the content.
    Within(ByteRange),
}

impl RangeSpec {
    fn parse(text: &str, size: u64) -> Self {
        let Some((first, last)) = text.split_once('-') else { return Self::Malformed };
        let (start, end) = match (Position::parse(first), Position::parse(last)) {
            (Position::Malformed, _) | (_, Position::Malformed) | (Position::Omitted, Position::Omitted) => {
                return Self::Malformed;
            }
            (Position::Omitted, Position::At(suffix)) => (size.saturating_sub(suffix), size),
            (Position::At(first), Position::Omitted) => (first, size),
            // Saturation loses no byte: content of 2^64 - 1 bytes has no byte at position 2^64 - 1.
            (Position::At(first), Position::At(last)) => (first, last.saturating_add(1).min(size)),
        };
        ByteRange::new(start, end).filter(|range| !range.is_empty()).map_or(Self::Outside, Self::Within)
    }
}

/// One end of a range in the header.
enum Position {
    Malformed,
    Omitted,
    /// Clamped to 64 bits.
    At(u64),
}

impl Position {
    fn parse(text: &str) -> Self {
        match text.trim() {
            "" => Self::Omitted,
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => Self::At(digits.parse().unwrap_or(u64::MAX)),
            _ => Self::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_forms_of_the_header_are_parsed() {
        let byte_range = |range: std::ops::Range<u64>| ByteRange::new(range.start, range.end).unwrap();
        let one = |range| Ranges::One(byte_range(range));
        for (header, expected) in [
            ("bytes=500-1499", one(500..1500)),
            ("bytes=500-", one(500..2500)),
            ("bytes=-500", one(2000..2500)),
            ("bytes=-5000", one(0..2500)),
            ("bytes=2000-5000", one(2000..2500)),
            ("bytes=0-", one(0..2500)),
            ("bytes=2499-2500", one(2499..2500)),
            ("Bytes = 0-0", one(0..1)),
            ("bytes=0-99999999999999999999999", one(0..2500)),
            ("bytes=0-0,-1", Ranges::Many(vec![byte_range(0..1), byte_range(2499..2500)])),
            ("bytes=5-9, 0-4", Ranges::Many(vec![byte_range(5..10), byte_range(0..5)])),
            ("bytes=0-0,9000-", one(0..1)),
            ("bytes=500-0", Ranges::Unsatisfiable),
            ("bytes=5000-10000", Ranges::Unsatisfiable),
            ("bytes=2500-", Ranges::Unsatisfiable),
            ("bytes=-0", Ranges::Unsatisfiable),
            ("bytes=0-2499,0-2499", Ranges::Whole),
            ("bytes=", Ranges::Whole),
            ("bytes=-", Ranges::Whole),
            ("bytes=a-b", Ranges::Whole),
            ("bytes=1-2-3", Ranges::Whole),
            ("bytes=+1-2", Ranges::Whole),
            ("lines=1-2", Ranges::Whole),
            ("nonsense", Ranges::Whole),
        ] {
            assert_eq!(parse(header, 2500), expected, "{header}");
        }
        assert_eq!(parse("bytes=0-", 0), Ranges::Whole);
    }

    #[test]
    fn more_than_the_maximum_number_of_ranges_is_too_many() {
        let list = |count: u64| (0..count).map(|at| format!("{at}-{at}")).collect::<Vec<_>>().join(",");
        assert!(matches!(parse(&format!("bytes={}", list(1024)), 5000), Ranges::Many(ranges) if ranges.len() == 1024));
        assert_eq!(parse(&format!("bytes={}", list(1025)), 5000), Ranges::TooMany);
    }

    #[test]
    fn range_never_ends_before_it_starts() {
        assert_eq!((ByteRange::new(5, 4), ByteRange::new(u64::MAX, 0)), (None, None));
        let mut range = ByteRange::new(5, 8).unwrap();
        assert_eq!((range.advance(4), range.advance(u64::MAX), range.len()), (None, None, 3), "a failed advance changes nothing");
        assert_eq!((range.advance(3), range.start(), range.is_empty()), (Some(()), 8, true));
        assert_eq!(ByteRange::whole(u64::MAX).len(), u64::MAX);
    }

    #[test]
    fn positions_are_clamped_to_64_bits() {
        let size = u64::MAX;
        for (header, start, end) in [
            ("bytes=18446744073709551614-18446744073709551615", size - 1, size),
            ("bytes=18446744073709551614-", size - 1, size),
            ("bytes=-18446744073709551615", 0, size),
            ("bytes=0-18446744073709551615", 0, size),
        ] {
            assert_eq!(parse(header, size), Ranges::One(ByteRange::new(start, end).unwrap()), "{header}");
        }
        assert_eq!(parse("bytes=18446744073709551615-", size), Ranges::Unsatisfiable);
        assert_eq!(parse("bytes=0-,0-,0-", size), Ranges::Whole, "the sum exceeds 64 bits");
    }

    proptest! {
        #[test]
        fn ranges_lie_within_the_content(header in "(bytes=)?[-0-9, ]{0,40}", size in 0_u64..3000) {
            let ranges = match parse(&header, size) {
                Ranges::One(one) => vec![one],
                Ranges::Many(many) => many,
                _ => vec![],
            };
            prop_assert!(ranges.iter().all(|range| !range.is_empty() && range.end() <= size));
        }
    }
}
