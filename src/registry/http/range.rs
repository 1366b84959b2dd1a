//! Byte ranges (RFC 9110, section 14): a `Range` header and a size become the slices to send. Pure.

use crate::registry::limits::RANGES;

/// The bytes of some content from `start` up to `end`, which does not belong to them. It never ends before it starts, so its length
/// cannot wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The bytes from `start` up to `end`. `None` if that is before `start`.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Option<Self> {
        (start <= end).then_some(Self { start, end })
    }

    /// All of content of `size` bytes.
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

    /// Whether it has no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Takes so many bytes off its front. `None` if it has fewer; then it does not change.
    pub fn advance(&mut self, bytes: u64) -> Option<()> {
        *self = Self::new(self.start.checked_add(bytes)?, self.end)?;
        Some(())
    }
}

/// What a `Range` header asks of content of a known size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// All of it: no range, another unit than bytes, or text that is no range (RFC 9110 lets a server ignore those).
    Whole,
    /// One slice.
    One(ByteRange),
    /// Several slices, in the order asked for, never merged.
    Many(Vec<ByteRange>),
    /// Ranges that all lie outside of the content.
    Unsatisfiable,
    /// More than [`RANGES`].
    TooMany,
}

/// Reads the value of a `Range` header against content of `size` bytes.
///
/// Empty content is sent whole: some clients put `bytes=0-` on every request, and for them a refusal would be an error.
#[must_use]
pub fn parse(header: &str, size: u64) -> Ranges {
    let Some((unit, list)) = header.split_once('=') else { return Ranges::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") || size == 0 {
        return Ranges::Whole;
    }
    let mut slices = Vec::new();
    for (count, item) in list.split(',').map(str::trim).filter(|item| !item.is_empty()).enumerate() {
        if count == RANGES {
            return Ranges::TooMany;
        }
        match slice(item, size) {
            None => return Ranges::Whole,
            Some(slice) => slices.extend(slice),
        }
    }
    // Overlaps that add up to more than the content are an attack, or a client that is better served with all of it.
    // At most RANGES numbers of 64 bits: 128 bits hold their sum.
    let total: u128 = slices.iter().map(|slice| u128::from(slice.len())).sum();
    match slices.as_slice() {
        [] if list.contains('-') => Ranges::Unsatisfiable,
        [] => Ranges::Whole,
        [one] => Ranges::One(*one),
        _ if total > size.into() => Ranges::Whole,
        _ => Ranges::Many(slices),
    }
}

/// One item of the list: none where it is no range, an inner none where it lies outside.
fn slice(item: &str, size: u64) -> Option<Option<ByteRange>> {
    let (first, last) = item.split_once('-')?;
    // The sum saturates harmlessly: no content has a byte at the position that it then excludes.
    let (start, end) = match (number(first)?, number(last)?) {
        (None, None) => return None,
        (None, Some(suffix)) => (size.saturating_sub(suffix), size),
        (Some(first), None) => (first, size),
        (Some(first), Some(last)) => (first, last.saturating_add(1).min(size)),
    };
    Some(ByteRange::new(start, end).filter(|slice| !slice.is_empty()))
}

/// Digits as a number, clamped to what 64 bits hold; an inner none for no digits at all.
fn number(text: &str) -> Option<Option<u64>> {
    let text = text.trim();
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(if text.is_empty() { None } else { Some(text.parse().unwrap_or(u64::MAX)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_of_a_range() {
        let slice = |range: std::ops::Range<u64>| ByteRange::new(range.start, range.end).unwrap();
        let one = |range| Ranges::One(slice(range));
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
            ("bytes=0-0,-1", Ranges::Many(vec![slice(0..1), slice(2499..2500)])),
            ("bytes=5-9, 0-4", Ranges::Many(vec![slice(5..10), slice(0..5)])),
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
    fn at_most_so_many_ranges() {
        let list = |count: u64| (0..count).map(|at| format!("{at}-{at}")).collect::<Vec<_>>().join(",");
        assert!(matches!(parse(&format!("bytes={}", list(1024)), 5000), Ranges::Many(slices) if slices.len() == 1024));
        assert_eq!(parse(&format!("bytes={}", list(1025)), 5000), Ranges::TooMany);
    }

    #[test]
    fn a_range_ends_after_it_starts_and_gives_no_more_than_it_has() {
        assert_eq!((ByteRange::new(5, 4), ByteRange::new(u64::MAX, 0)), (None, None));
        let mut range = ByteRange::new(5, 8).unwrap();
        assert_eq!((range.advance(4), range.advance(u64::MAX), range.len()), (None, None, 3), "it did not change");
        assert_eq!((range.advance(3), range.start(), range.is_empty()), (Some(()), 8, true));
        assert_eq!(ByteRange::whole(u64::MAX).len(), u64::MAX);
    }

    #[test]
    fn positions_at_the_end_of_64_bits_are_clamped() {
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
        assert_eq!(parse("bytes=0-,0-,0-", size), Ranges::Whole, "their sum is more than 64 bits hold");
    }

    proptest! {
        #[test]
        fn slices_lie_within_the_content(header in "(bytes=)?[-0-9, ]{0,40}", size in 0_u64..3000) {
            let slices = match parse(&header, size) {
                Ranges::One(one) => vec![one],
                Ranges::Many(many) => many,
                _ => vec![],
            };
            prop_assert!(slices.iter().all(|slice| !slice.is_empty() && slice.end() <= size));
        }
    }
}
