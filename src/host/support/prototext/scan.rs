//! Scans prototext for the positions of its entries, which the parser does not report, and for its nesting depth, which the
//! recursive parser does not limit.

/// Deepest allowed nesting. The schema has two levels; the parser has better messages for slightly deeper input.
const MAX_DEPTH: usize = 16;

/// Messages are nested deeper than [`MAX_DEPTH`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("messages are nested deeper than {MAX_DEPTH}")]
pub struct TooDeep {
    /// Byte offset of the first brace beyond the limit.
    pub at: usize,
}

/// Byte offsets of the outermost messages: of the field name, or of the brace for elements of a list.
///
/// # Errors
/// Fails if the nesting is too deep.
pub(crate) fn entries(text: &str) -> Result<Vec<usize>, TooDeep> {
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
                    return Err(TooDeep { at });
                }
            }
            b'}' | b'>' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(starts)
}

/// Advances past the closing quote, or past the end of the line if the string is not closed.
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

/// Line and column, both from 1, of each byte offset in `offsets`, which must ascend. Columns count characters.
#[must_use]
pub fn positions(content: &[u8], offsets: &[usize]) -> Vec<(usize, usize)> {
    let (mut line, mut column, mut scanned) = (1, 1, 0);
    let position = |at: &usize| {
        let part = content.get(scanned..(*at).min(content.len())).unwrap_or_default();
        let newline = part.iter().rposition(|byte| *byte == b'\n');
        line += part.iter().filter(|byte| **byte == b'\n').count();
        // Every character of UTF-8 has one byte that does not continue another.
        let on_line = part.get(newline.map_or(0, |at| at + 1)..).unwrap_or_default();
        column = if newline.is_some() { 1 } else { column } + on_line.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
        scanned += part.len();
        (line, column)
    };
    offsets.iter().map(position).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_ignores_braces_in_strings_and_comments() {
        let text = "# images {\nimages { path: \"}{\\\"{\" }\n images: [ < >, { a { } } ] images{'}'}";
        assert_eq!(entries(text), Ok(vec![11, 37, 52, 64]));
    }

    #[test]
    fn deep_nesting_is_rejected() {
        assert!(entries(&"{".repeat(16)).is_ok());
        assert_eq!(entries(&"{".repeat(17)), Err(TooDeep { at: 16 }));
    }

    #[test]
    fn columns_count_characters() {
        let text = "é\nßx";
        assert_eq!(positions(text.as_bytes(), &[0, 2, 3, 5, 99]), [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]);
        assert_eq!(positions("a é ß\n\nü".as_bytes(), &[2, 2, 5, 8, 9, 11]), [(1, 3), (1, 3), (1, 5), (2, 1), (3, 1), (3, 2)]);
    }

    #[test]
    fn one_long_line_is_scanned_once() {
        // From the start of the line for each entry, this would be 100,000 times 25 MB on average.
        let text = "images{path:\"é\"} ".repeat(500_000);
        let starts = entries(&text).unwrap();
        let found = positions(text.as_bytes(), &starts);
        assert_eq!(found.len(), 500_000);
        assert!(found.iter().enumerate().all(|(number, position)| *position == (1, number * 17 + 1)));
    }
}
