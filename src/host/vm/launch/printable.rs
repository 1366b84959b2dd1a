//! Text from a guest or a client, made safe to print.

use crate::text::is_special;

/// Converts `bytes` to text that is safe on a terminal or in a log. Terminal sequences and carriage returns are removed; every other
/// control character, and every byte that is not UTF-8, is escaped.
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
                other if is_special(other) => text.extend(other.escape_unicode()),
                other => text.push(other),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Skips the rest of a terminal sequence after its escape character: `[`, parameter bytes and one final character, or a single
/// character.
fn skip_sequence(characters: &mut std::str::Chars<'_>) {
    if characters.next() == Some('[') {
        let _final = characters.find(|character| !matches!(character, '\x20'..='\x3f'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
