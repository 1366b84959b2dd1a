//! Lines out of a stream that nobody vouches for. Bytes enter in any pieces, lines leave, each cut at a limit: whatever a guest
//! sends, memory stays bounded. It never decodes.

/// Cuts a stream into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    /// Longest line that is kept whole, in bytes.
    limit: usize,
    pending: Vec<u8>,
    /// Whether the pending line has lost bytes.
    cut: bool,
}

/// One line, without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// The line's first bytes, as many as the limit allows.
    pub bytes: &'a [u8],
    /// Whether there were more.
    pub cut: bool,
}

impl Lines {
    /// Lines of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, pending: Vec::new(), cut: false }
    }

    /// Takes `bytes` and gives each line that they complete to `each`.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Line<'_>)) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (piece, ended) = match piece.split_last() {
                Some((b'\n', line)) => (line, true),
                _ => (piece, false),
            };
            let room = self.limit.saturating_sub(self.pending.len());
            let kept = piece.get(..room).unwrap_or(piece);
            self.pending.extend_from_slice(kept);
            self.cut |= kept.len() < piece.len();
            if ended {
                each(Line { bytes: &self.pending, cut: self.cut });
                self.pending.clear();
                self.cut = false;
            }
        }
    }

    /// What has come of a line whose end has not.
    pub(crate) fn rest(&self) -> Line<'_> {
        Line { bytes: &self.pending, cut: self.cut }
    }
}

/// `bytes` as text for a terminal or a log: terminal sequences and carriage returns are taken out, every other control character
/// and whatever is not UTF-8 is escaped, so that nothing in it acts on the terminal.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let mut characters = chunk.valid().chars();
        while let Some(character) = characters.next() {
            match character {
                '\x1b' => skip_sequence(&mut characters),
                '\r' => {}
                '\t' => text.push(' '),
                other if other.is_control() || is_direction_mark(other) => text.extend(other.escape_unicode()),
                other => text.push(other),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Takes the rest of a terminal sequence out of `characters`, the escape character being gone: `[`, parameters up to `?` and one
/// final character, else one character alone.
fn skip_sequence(characters: &mut std::str::Chars<'_>) {
    if characters.next() == Some('[') {
        let _final = characters.find(|character| !matches!(character, '\x20'..='\x3f'));
    }
}

/// Characters that reorder the text around them on a terminal (Unicode's bidirectional embeddings, overrides and isolates).
fn is_direction_mark(character: char) -> bool {
    matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_up(limit: usize, pieces: &[&[u8]]) -> (Vec<(String, bool)>, String) {
        let mut lines = Lines::new(limit);
        let mut found = Vec::new();
        for piece in pieces {
            lines.feed(piece, |line| found.push((String::from_utf8(line.bytes.to_vec()).unwrap(), line.cut)));
        }
        (found, String::from_utf8(lines.rest().bytes.to_vec()).unwrap())
    }

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        let whole = vec![("one".to_owned(), false), (String::new(), false), ("two".to_owned(), false)];
        assert_eq!(cut_up(10, &[b"one\n\ntwo\nth"]), (whole.clone(), "th".to_owned()));
        let single: Vec<&[u8]> = b"one\n\ntwo\nth".chunks(1).collect();
        assert_eq!(cut_up(10, &single), (whole, "th".to_owned()));
    }

    #[test]
    fn a_line_over_the_limit_is_cut_and_the_next_is_whole() {
        let (found, rest) = cut_up(3, &[b"abc\nabcd\n", b"ab", b"cdefgh", b"\nx\nlonger"]);
        let found: Vec<(&str, bool)> = found.iter().map(|(text, cut)| (text.as_str(), *cut)).collect();
        assert_eq!(found, [("abc", false), ("abc", true), ("abc", true), ("x", false)]);
        assert_eq!(rest, "lon");
    }

    #[test]
    fn an_endless_line_takes_no_more_than_its_limit() {
        let mut lines = Lines::new(100);
        for _ in 0..1000 {
            lines.feed(&[b'x'; 1000], |_| panic!("no line has ended"));
        }
        assert_eq!(lines.rest(), Line { bytes: &[b'x'; 100], cut: true });
    }

    #[test]
    fn nothing_that_acts_on_a_terminal_gets_through() {
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
}
