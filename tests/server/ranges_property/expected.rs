//! Computes the response that RFC 9110, and the project's documentation where the RFC leaves a choice, require for a `Range`
//! header. Uses none of the server's code.

/// Maximum number of ranges (the RFC, section 14.2, lets a server refuse many).
const MOST: usize = 1024;

/// First and last byte of a range, both inclusive, as in `Content-Range`.
pub type Positions = (u64, u64);

/// The response to a GET request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// 200 with the whole content.
    Whole,
    /// 206 with one range (section 15.3.7.1).
    One(Positions),
    /// 206 with a part for each range, in request order (section 15.3.7.2).
    Parts(Vec<Positions>),
    /// 416 (section 15.5.17).
    Unsatisfiable,
    /// 400.
    TooMany,
}

/// The response to a GET request with this `Range` header for content of `size` bytes.
pub fn answer(header: &str, size: u64) -> Answer {
    // ranges-specifier = range-unit "=" range-set (section 14.1.1). A server must ignore an unknown unit and may ignore an invalid
    // specifier (section 14.2), which this server does. It also ignores every range of empty content.
    let Some((unit, set)) = header.split_once('=') else { return Answer::Whole };
    if !unit.eq_ignore_ascii_case("bytes") || size == 0 {
        return Answer::Whole;
    }
    // range-set = 1#range-spec: a recipient ignores empty elements (section 5.6.1.2).
    let specs: Vec<&str> = set.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|spec| !spec.is_empty()).collect();
    let known: Option<Vec<_>> = specs.iter().take(MOST).map(|spec| positions(spec, size.into())).collect();
    let Some(known) = known.filter(|known| !known.is_empty()) else { return Answer::Whole };
    if specs.len() > MOST {
        return Answer::TooMany;
    }
    let satisfiable: Vec<Positions> = known.into_iter().flatten().collect();
    let asked: u128 = satisfiable.iter().map(|(first, last)| u128::from(last - first) + 1).sum();
    match satisfiable.as_slice() {
        [] => Answer::Unsatisfiable,
        [one] => Answer::One(*one),
        // Ranges that overlap so much that they request more than the whole content are answered with all of it.
        _ if asked > size.into() => Answer::Whole,
        _ => Answer::Parts(satisfiable),
    }
}

/// Parses one int-range or suffix-range (section 14.1.1, clamped by section 14.1.2). Returns `None` if it is neither, and
/// `Some(None)` if it is unsatisfiable. The server treats a range that ends before it begins as unsatisfiable.
fn positions(spec: &str, size: u128) -> Option<Option<Positions>> {
    let (first, last) = spec.split_once('-')?;
    let (first, last) = (digits(first)?, digits(last)?);
    let inclusive = match (first, last) {
        (None, None) => return None,
        (None, Some(suffix)) => (size.saturating_sub(suffix), size - 1, suffix > 0),
        (Some(first), None) => (first, size - 1, first < size),
        (Some(first), Some(last)) => (first, last.min(size - 1), first < size && first <= last),
    };
    let (first, last, satisfiable) = inclusive;
    Some(satisfiable.then(|| (first.try_into().unwrap(), last.try_into().unwrap())))
}

/// Parses `1*DIGIT`. Returns `Some(None)` without any digit, and `None` for any other character. The cases have at most 30
/// digits, which fit 128 bits.
fn digits(text: &str) -> Option<Option<u128>> {
    if text.is_empty() {
        return Some(None);
    }
    text.chars().all(|c| c.is_ascii_digit()).then(|| text.parse().ok())
}

#[test]
fn expected_responses_match_the_examples_of_rfc_9110() {
    let parts = |list: &[Positions]| Answer::Parts(list.to_vec());
    for (header, expected) in [
        ("bytes=0-499", Answer::One((0, 499))),
        ("bytes=500-999", Answer::One((500, 999))),
        ("bytes=-500", Answer::One((9500, 9999))),
        ("bytes=9500-", Answer::One((9500, 9999))),
        ("bytes=0-0,-1", parts(&[(0, 0), (9999, 9999)])),
        ("bytes= 0-999, 4500-5499, -1000", parts(&[(0, 999), (4500, 5499), (9000, 9999)])),
        ("bytes=500-600,601-999", parts(&[(500, 600), (601, 999)])),
        ("bytes=500-700,601-999", parts(&[(500, 700), (601, 999)])),
        ("bytes=10000-", Answer::Unsatisfiable),
        ("bytes=9-1", Answer::Unsatisfiable),
        ("bytes=-0", Answer::Unsatisfiable),
        ("bytes=0-9999,0-0", Answer::Whole),
        ("bytes=0-0,x", Answer::Whole),
        ("other=0-0", Answer::Whole),
    ] {
        assert_eq!(answer(header, 10_000), expected, "{header}");
    }
    assert_eq!(answer(&format!("bytes={}", vec!["0-0"; 1025].join(",")), 10_000), Answer::TooMany);
}
