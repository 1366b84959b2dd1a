//! Parses `Link` headers (RFC 8288, section 3), in which a list names its next page.

/// The target of the first link with the relation `next` in the values of `Link`. Names of parameters and relations are compared without
/// regard to case; of several `rel` in one link, the first counts.
///
/// # Errors
/// Fails with the text that is not a link.
pub fn next<'a>(values: impl IntoIterator<Item = &'a str>) -> Result<Option<&'a str>, &'a str> {
    let mut found = None;
    for value in values {
        let mut rest = value.trim_start_matches(is_separator);
        while !rest.is_empty() {
            let (link, after) = link(rest).ok_or(rest)?;
            found = found.or(link.is_next.then_some(link.target));
            rest = after.trim_start_matches(is_separator);
        }
    }
    Ok(found)
}

struct Link<'a> {
    target: &'a str,
    is_next: bool,
}

/// The link at the start of `text`, and what follows it.
fn link(text: &str) -> Option<(Link<'_>, &str)> {
    let (target, mut rest) = text.strip_prefix('<')?.split_once('>')?;
    let mut relations: Option<String> = None;
    loop {
        rest = rest.trim_start();
        let Some(parameter) = rest.strip_prefix(';') else { break };
        let end = parameter.find(['=', ';', ',']).unwrap_or(parameter.len());
        let (name, after) = parameter.split_at(end);
        let (value, after) = match after.strip_prefix('=') {
            Some(value) => parameter_value(value.trim_start())?,
            None => (String::new(), after),
        };
        if name.trim().eq_ignore_ascii_case("rel") {
            relations.get_or_insert(value);
        }
        rest = after;
    }
    let is_next = relations.is_some_and(|list| list.split_whitespace().any(|relation| relation.eq_ignore_ascii_case("next")));
    (rest.is_empty() || rest.starts_with(',')).then_some((Link { target: target.trim(), is_next }, rest))
}

/// The value at the start of `text`, a token or a quoted string, and what follows it.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([';', ',']).unwrap_or(text.len()));
        return Some((value.trim().to_owned(), rest));
    };
    let (mut value, mut characters) = (String::new(), quoted.chars());
    loop {
        match characters.next()? {
            '"' => return Some((value, characters.as_str())),
            '\\' => value.push(characters.next()?),
            other => value.push(other),
        }
    }
}

fn is_separator(character: char) -> bool {
    character == ',' || character.is_ascii_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_link_is_found_in_every_form() {
        for (values, expected) in [
            (&[r#"</a?n=2>; rel="next""#][..], Some("/a?n=2")),
            (&["<a>;rel=next"], Some("a")),
            (&[r#"<a> ; Rel = "Next""#], Some("a")),
            (&[r#"<a>; REL="last  NEXT""#], Some("a")),
            (&[r#"<p>; rel="prev", <n>; rel="next""#], Some("n")),
            (&[r#"<p>; rel=prev,<n,1;2>; title="x, <y>; rel=\"next"; rel=next"#], Some("n,1;2")),
            (&["<p>; rel=first", "<n>; rel=next"], Some("n")),
            (&["<p>; rel=next; rel=prev, <q>; rel=next"], Some("p")),
            (&["<p>; rel=prev; rel=next"], None),
            (&[r#", <p>; crossorigin; rel*=x; title="rel=next", <n>; rel="nextish""#], None),
            (&["<a>"], None),
            (&["<>; rel=next"], Some("")),
            (&["", " , "], None),
            (&[], None),
        ] {
            assert_eq!(next(values.iter().copied()), Ok(expected), "{values:?}");
        }
    }

    #[test]
    fn what_is_no_link_is_refused() {
        for value in ["/a?n=2; rel=next", "<a", r#"<a>; rel="next"#, "<a> b; rel=next", r#"<a>; rel="next" x"#] {
            assert_eq!(next([value]), Err(value));
        }
        assert_eq!(next(["<a>; rel=next, b"]), Err("b"));
    }
}
