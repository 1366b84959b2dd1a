//! Values as the languages of config files write them. A value enters, a quoted one leaves.

/// `text` in double quotes, as JSON, YAML (1.2, section 7.3.1) and TOML (1.0, "Basic strings") all read it.
pub(crate) fn quoted(text: &str) -> String {
    // JSON leaves DEL as it is, which TOML does not take.
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// `text` in single quotes, as a POSIX shell reads it.
pub(crate) fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The lines of `text`, each after `indent` spaces: the content of a YAML block.
pub(crate) fn block(text: &str, indent: usize) -> String {
    text.lines().map(|line| format!("{:indent$}{line}\n", "")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_quotes() {
        assert_eq!(quoted("a\"b\\c\n\u{7f}"), r#""a\"b\\c\n\u007f""#);
        assert_eq!(shell("it's $(here)"), r"'it'\''s $(here)'");
        assert_eq!(block("a\nb\n", 2), "  a\n  b\n");
    }
}
