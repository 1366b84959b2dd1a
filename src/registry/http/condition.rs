//! Conditions of a request (RFC 9110, section 13) against content whose validator is its digest: no dates are kept here. Pure.

use http::HeaderMap;
use http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH, IF_RANGE};

/// What the conditions come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// The content is to be sent.
    Holds,
    /// The client has it already (304).
    NotModified,
    /// It is not what the client takes it for (412).
    Failed,
}

/// Looks at `If-Match`, by the strong comparison, and then at `If-None-Match`, by the weak one (section 13.2.2).
pub(crate) fn of(headers: &HeaderMap, etag: impl Fn() -> String) -> Condition {
    if headers.contains_key(IF_MATCH) && !tags(headers, IF_MATCH).any(|one| one == "*" || one == etag()) {
        return Condition::Failed;
    }
    let known = |one: &str| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag();
    if tags(headers, IF_NONE_MATCH).any(known) { Condition::NotModified } else { Condition::Holds }
}

/// Whether `If-Range` lets the range stand (section 13.1.5; strong comparison).
pub(crate) fn range_applies(headers: &HeaderMap, etag: impl Fn() -> String) -> bool {
    headers.get(IF_RANGE).is_none_or(|value| value.as_bytes() == etag().as_bytes())
}

/// The entity tags of every line of a header.
fn tags(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
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
        of(&headers, || "\"a\"".to_owned())
    }

    #[test]
    fn tags_are_compared_as_each_header_has_it() {
        for (value, match_, none_match) in [
            ("\"a\"", Condition::Holds, Condition::NotModified),
            ("\"b\", \"a\"", Condition::Holds, Condition::NotModified),
            ("*", Condition::Holds, Condition::NotModified),
            ("W/\"a\"", Condition::Failed, Condition::NotModified),
            ("\"b\"", Condition::Failed, Condition::Holds),
            ("a", Condition::Failed, Condition::Holds),
            ("", Condition::Failed, Condition::Holds),
        ] {
            assert_eq!(condition(&[(IF_MATCH, value)]), match_, "{value}");
            assert_eq!(condition(&[(IF_NONE_MATCH, value)]), none_match, "{value}");
        }
        assert_eq!(condition(&[]), Condition::Holds);
        assert_eq!(condition(&[(IF_MATCH, "\"b\""), (IF_MATCH, "\"a\"")]), Condition::Holds, "every line is read");
        assert_eq!(condition(&[(IF_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")]), Condition::Failed, "If-Match comes first");
    }
}
