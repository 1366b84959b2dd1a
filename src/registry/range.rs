//! Byte ranges (RFC 9110, section 14): a `Range` header and a size become the slices to send. Pure.

use std::ops::Range;

use super::limits::RANGES;

/// What a `Range` header asks of content of a known size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// All of it: no range, another unit than bytes, or text that is no range (RFC 9110 lets a server ignore those).
    Whole,
    /// One slice.
    One(Range<u64>),
    /// Several slices, in the order asked for, never merged.
    Many(Vec<Range<u64>>),
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
    let total = slices.iter().fold(0_u64, |sum, slice| sum.saturating_add(slice.end - slice.start));
    match slices.as_slice() {
        [] if list.contains('-') => Ranges::Unsatisfiable,
        [] => Ranges::Whole,
        [one] => Ranges::One(one.clone()),
        _ if total > size => Ranges::Whole,
        _ => Ranges::Many(slices),
    }
}

/// One item of the list: none where it is no range, an inner none where it lies outside.
fn slice(item: &str, size: u64) -> Option<Option<Range<u64>>> {
    let (first, last) = item.split_once('-')?;
    Some(match (number(first)?, number(last)?) {
        (None, None) => return None,
        (None, Some(suffix)) => (suffix > 0).then(|| size.saturating_sub(suffix)..size),
        (Some(first), None) => (first < size).then_some(first..size),
        (Some(first), Some(last)) => (first < size && first <= last).then(|| first..last.saturating_add(1).min(size)),
    })
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
        let one = |range| Ranges::One(range);
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
            ("bytes=0-0,-1", Ranges::Many(vec![0..1, 2499..2500])),
            ("bytes=5-9, 0-4", Ranges::Many(vec![5..10, 0..5])),
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

    proptest! {
        #[test]
        fn slices_lie_within_the_content(header in "(bytes=)?[-0-9, ]{0,40}", size in 0_u64..3000) {
            let slices = match parse(&header, size) {
                Ranges::One(one) => vec![one],
                Ranges::Many(many) => many,
                _ => vec![],
            };
            prop_assert!(slices.iter().all(|slice| slice.start < slice.end && slice.end <= size));
        }
    }
}
