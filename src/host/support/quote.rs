//! Quotes text for the languages of config files and for shells.

/// `text` in double quotes, as JSON, YAML (1.2, section 7.3.1) and TOML (1.0, "Basic strings") all parse it.
pub(crate) fn quoted(text: &str) -> String {
    // JSON does not escape DEL, which TOML forbids.
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// `text` in single quotes, as a POSIX shell parses it.
pub(crate) fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// `text` as one word of a POSIX shell, quoted if it needs to be.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&byte));
    if plain { text.to_owned() } else { shell(text) }
}

/// The lines of `text`, each indented by `indent` spaces: the content of a YAML block.
pub(crate) fn block(text: &str, indent: usize) -> String {
    text.lines().map(|line| format!("{:indent$}{line}\n", "")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_do_not_end_the_quotes() {
        assert_eq!(quoted("a\"b\\c\n\u{7f}"), r#""a\"b\\c\n\u007f""#);
        assert_eq!(shell("it's $(here)"), r"'it'\''s $(here)'");
        assert_eq!((shell_word("a/b=1").as_str(), shell_word("")), ("a/b=1", "''".to_owned()));
        assert_eq!(shell_word("a b"), "'a b'");
        assert_eq!(block("a\nb\n", 2), "  a\n  b\n");
    }
}
