//! Places in a prototext: where its entries start, and how deep it nests. The parser tells neither once it is done, and calls itself for
//! each level. Pure.

/// Deepest nesting of messages: the schema has two levels, and the parser's words are better for what is a little deeper.
const MAX_DEPTH: usize = 16;

/// A text that nests deeper than any list of images.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("messages are nested deeper than {MAX_DEPTH}")]
pub struct Deep {
    /// The brace that is one too many, in bytes from the start.
    pub at: usize,
}

/// Where the messages of the outermost level start, in bytes: at their field's name, or at their brace within a list.
///
/// # Errors
/// [`Deep`].
pub fn entries(text: &str) -> Result<Vec<usize>, Deep> {
    let mut starts = Vec::new();
    let (mut depth, mut name) = (0_usize, None);
    let mut in_word = false;
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        let word = byte.is_ascii_alphanumeric() || byte == b'_';
        if word && !in_word && depth == 0 {
            name = Some(at);
        }
        in_word = word;
        match byte {
            b'#' => drop(bytes.by_ref().find(|(_, byte)| *byte == b'\n')),
            b'"' | b'\'' => skip_string(&mut bytes, byte),
            b'{' | b'<' => {
                if depth == 0 {
                    starts.push(name.take().unwrap_or(at));
                }
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(Deep { at });
                }
            }
            b'}' | b'>' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(starts)
}

/// To behind the quote that ends a string, or the end of the line, where the string is wrong.
fn skip_string(bytes: &mut impl Iterator<Item = (usize, u8)>, quote: u8) {
    while let Some((_, byte)) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'\n' => return,
            _ if byte == quote => return,
            _ => {}
        }
    }
}

/// Lines and columns, both from 1, of the bytes at `places`, which ascend. Columns count characters.
#[must_use]
pub fn positions(content: &[u8], places: &[usize]) -> Vec<(usize, usize)> {
    let (mut line, mut start, mut scanned) = (1, 0, 0);
    let position = |at: &usize| {
        let at = (*at).min(content.len());
        let ends = content.get(scanned..at).unwrap_or_default().iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let (count, last) = ends.fold((0, None), |(count, _), (end, _)| (count + 1, Some(end)));
        line += count;
        start = last.map_or(start, |end| scanned + end + 1);
        scanned = at;
        (line, String::from_utf8_lossy(content.get(start..at).unwrap_or_default()).chars().count() + 1)
    };
    places.iter().map(position).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_beside_strings_and_comments() {
        let text = "# images {\nimages { path: \"}{\\\"{\" }\n images: [ < >, { a { } } ] images{'}'}";
        assert_eq!(entries(text), Ok(vec![11, 37, 52, 64]));
    }

    #[test]
    fn nesting_ends() {
        assert!(entries(&"{".repeat(16)).is_ok());
        assert_eq!(entries(&"{".repeat(17)), Err(Deep { at: 16 }));
    }

    #[test]
    fn positions_count_characters() {
        let text = "é\nßx";
        assert_eq!(positions(text.as_bytes(), &[0, 2, 3, 5, 99]), [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]);
    }
}
