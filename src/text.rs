//! Text helpers of both programs: an error with its causes on one line, and line splitting with a length limit.

use std::error::Error;

/// `text` with every character escaped that [`is_special`].
pub(crate) fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut line, character| {
        if is_special(character) {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
        line
    })
}

/// What is wrong with JSON, without the position that ends the library's message.
pub(crate) fn json_fault(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.rsplit_once(" at line ").map_or(message.as_str(), |(fault, _)| fault).to_owned()
}

/// Whether a terminal or a reader of lines may obey `character`: control characters, Unicode's line and paragraph separators, and the
/// embeddings, overrides and isolates that reorder the text around them.
fn is_special(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `bytes` of a program or a guest, made safe to print: terminal sequences and carriage returns are removed, tabs become spaces, the rest is
/// [`escaped`], and so is every byte that is not UTF-8.
#[cfg(feature = "host")]
pub(crate) fn printable(bytes: &[u8]) -> String {
    bytes.utf8_chunks().map(|chunk| format!("{}{}", escaped(&plain(chunk.valid())), chunk.invalid().escape_ascii())).collect()
}

/// `text` without terminal sequences (an escape character, and `[`, parameter bytes and one final character, or a single character).
#[cfg(feature = "host")]
fn plain(text: &str) -> String {
    let (mut plain, mut characters) = (String::with_capacity(text.len()), text.chars());
    while let Some(character) = characters.next() {
        match character {
            '\x1b' if characters.next() == Some('[') => {
                let _final = characters.find(|character| !matches!(character, '\x20'..='\x3f'));
            }
            '\x1b' | '\r' => {}
            '\t' => plain.push(' '),
            other => plain.push(other),
        }
    }
    plain
}

/// `error` and its causes, joined by ": ".
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// Splits a byte stream into lines of limited length. The input is untrusted: memory stays bounded, and nothing is decoded.
#[derive(Debug)]
pub(crate) struct Lines {
    limit: usize,
    pending: Vec<u8>,
    truncated: bool,
}

/// One line, without its newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// The first bytes of the line, up to the limit.
    pub bytes: &'a [u8],
    /// Whether the line was longer than the limit.
    pub truncated: bool,
}

impl Lines {
    /// `limit` is the longest line in bytes that is not truncated.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, pending: Vec::new(), truncated: false }
    }

    /// Appends `bytes` and calls `each` for every line that they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Line<'_>)) {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (part, ended) = match part.split_last() {
                Some((b'\n', line)) => (line, true),
                _ => (part, false),
            };
            let space = self.limit.saturating_sub(self.pending.len());
            let stored = part.get(..space).unwrap_or(part);
            self.pending.extend_from_slice(stored);
            self.truncated |= stored.len() < part.len();
            if ended {
                each(Line { bytes: &self.pending, truncated: self.truncated });
                self.pending.clear();
                self.truncated = false;
            }
        }
    }

    /// The line whose newline has not come yet; empty if there is none.
    #[cfg(feature = "host")]
    pub(crate) fn unfinished(&self) -> Line<'_> {
        Line { bytes: &self.pending, truncated: self.truncated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(limit: usize, parts: &[&[u8]]) -> (Vec<(String, bool)>, Vec<u8>) {
        let mut lines = Lines::new(limit);
        let mut found = Vec::new();
        for part in parts {
            lines.feed(part, |line| found.push((String::from_utf8(line.bytes.to_vec()).unwrap(), line.truncated)));
        }
        (found, lines.pending)
    }

    #[test]
    fn characters_that_forge_lines_are_escaped() {
        assert_eq!(escaped("a\nb\x1b[2J\u{9b}c\u{2028}d\u{202e}é 日"), "a\\nb\\u{1b}[2J\\u{9b}c\\u{2028}d\\u{202e}é 日");
    }

    #[cfg(feature = "host")]
    #[test]
    fn terminal_sequences_are_removed_or_escaped() {
        for (raw, text) in [
            (&b"plain"[..], "plain"),
            (b"\x1b[1;31mred\x1b[0m\r", "red"),
            (b"\x1b[2Jgone\x1bcreset", "gonereset"),
            (b"bell\x07 back\x08 nul\0", "bell\\u{7} back\\u{8} nul\\u{0}"),
            (b"tab\there", "tab here"),
            (b"not\xff utf\xc3", "not\\xff utf\\xc3"),
            ("schön \u{9b}31m \u{202e}txt".as_bytes(), "schön \\u{9b}31m \\u{202e}txt"),
            (b"cut \x1b[12", "cut "),
            (b"cut \x1b", "cut "),
        ] {
            assert_eq!(printable(raw), text);
        }
    }

    #[test]
    fn lines_do_not_depend_on_how_the_stream_is_cut() {
        let expected = vec![("one".to_owned(), false), (String::new(), false), ("two".to_owned(), false)];
        assert_eq!(split(10, &[b"one\n\ntwo\nth"]), (expected.clone(), b"th".to_vec()));
        let single: Vec<&[u8]> = b"one\n\ntwo\nth".chunks(1).collect();
        assert_eq!(split(10, &single), (expected, b"th".to_vec()));
    }

    #[test]
    fn long_line_is_truncated_and_the_next_one_is_not() {
        let (found, unfinished) = split(3, &[b"abc\nabcd\n", b"ab", b"cdefgh", b"\nx\nlonger"]);
        let found: Vec<(&str, bool)> = found.iter().map(|(text, truncated)| (text.as_str(), *truncated)).collect();
        assert_eq!(found, [("abc", false), ("abc", true), ("abc", true), ("x", false)]);
        assert_eq!(unfinished, b"lon");
    }

    #[test]
    fn endless_line_is_stored_up_to_the_limit() {
        let mut lines = Lines::new(100);
        for _ in 0..1000 {
            lines.feed(&[b'x'; 1000], |_| panic!("no line has ended"));
        }
        assert_eq!((lines.pending.as_slice(), lines.truncated), (&[b'x'; 100][..], true));
    }
}
