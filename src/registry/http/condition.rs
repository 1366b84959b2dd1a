//! Evaluates a request's preconditions (RFC 9110, section 13). The only validator is the digest; dates are not supported.

use http::HeaderMap;
use http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH, IF_RANGE};

/// The result of a request's preconditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Send the content.
    Passed,
    /// The client already has the content (304).
    NotModified,
    /// The content is not what the client expects (412).
    Failed,
}

/// Evaluates `If-Match` by strong comparison, then `If-None-Match` by weak comparison (section 13.2.2).
pub(crate) fn evaluate(headers: &HeaderMap, etag: impl Fn() -> String) -> Condition {
    if headers.contains_key(IF_MATCH) && !entity_tags(headers, IF_MATCH).any(|tag| tag == "*" || tag == etag()) {
        return Condition::Failed;
    }
    let matches_weakly = |tag: &str| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag();
    if entity_tags(headers, IF_NONE_MATCH).any(matches_weakly) { Condition::NotModified } else { Condition::Passed }
}

/// Whether `If-Range` allows the range to be used (section 13.1.5, strong comparison).
pub(crate) fn range_applies(headers: &HeaderMap, etag: impl Fn() -> String) -> bool {
    headers.get(IF_RANGE).is_none_or(|value| value.as_bytes() == etag().as_bytes())
}

/// The entity tags in all lines of a header.
fn entity_tags(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lists = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(lines: &[(HeaderName, &'static str)]) -> Condition {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, http::HeaderValue::from_static(value));
        }
        evaluate(&headers, || "\"a\"".to_owned())
    }

    #[test]
    fn if_match_compares_strongly_and_if_none_match_weakly() {
        for (value, if_match, if_none_match) in [
            ("\"a\"", Condition::Passed, Condition::NotModified),
            ("\"b\", \"a\"", Condition::Passed, Condition::NotModified),
            ("*", Condition::Passed, Condition::NotModified),
            ("W/\"a\"", Condition::Failed, Condition::NotModified),
            ("\"b\"", Condition::Failed, Condition::Passed),
            ("a", Condition::Failed, Condition::Passed),
            ("", Condition::Failed, Condition::Passed),
        ] {
            assert_eq!(condition(&[(IF_MATCH, value)]), if_match, "{value}");
            assert_eq!(condition(&[(IF_NONE_MATCH, value)]), if_none_match, "{value}");
        }
        assert_eq!(condition(&[]), Condition::Passed);
        assert_eq!(condition(&[(IF_MATCH, "\"b\""), (IF_MATCH, "\"a\"")]), Condition::Passed, "all header lines count");
        assert_eq!(condition(&[(IF_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")]), Condition::Failed, "If-Match is evaluated first");
    }
}
