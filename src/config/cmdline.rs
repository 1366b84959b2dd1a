//! Splits the kernel command line into options as the kernel does (`lib/cmdline.c`, `next_arg`).

/// The options before `--`, each with its value if it has one. The kernel passes what follows `--` to init as arguments.
#[must_use]
pub fn options(line: &str) -> Vec<(String, Option<String>)> {
    let words = words(line);
    words.iter().map(|word| split(word)).take_while(|(name, value)| !(name == "--" && value.is_none())).collect()
}

/// Splits at white space outside double quotes.
fn words(line: &str) -> Vec<&str> {
    let mut quoted = false;
    let words = line.split(|character: char| {
        quoted ^= character == '"';
        character.is_ascii_whitespace() && !quoted
    });
    words.filter(|word| !word.is_empty()).collect()
}

/// Splits at the first `=`. Drops quotes around the whole word or the whole value.
fn split(word: &str) -> (String, Option<String>) {
    let (word, quoted) = match word.strip_prefix('"') {
        Some(rest) => (rest, true),
        None => (word, false),
    };
    let word = if quoted { word.strip_suffix('"').unwrap_or(word) } else { word };
    let Some((name, value)) = word.split_once('=') else { return (word.to_owned(), None) };
    let value = match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').unwrap_or(rest),
        None => value,
    };
    (name.to_owned(), Some(value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::options;

    fn parsed(line: &str) -> Vec<(String, Option<String>)> {
        options(line)
    }

    fn pair(name: &str, value: Option<&str>) -> (String, Option<String>) {
        (name.to_owned(), value.map(ToOwned::to_owned))
    }

    #[test]
    fn words_are_split_as_the_kernel_splits_them() {
        for (line, expected) in [
            ("", vec![]),
            (" \n", vec![]),
            ("quiet console=ttyS0\n", vec![pair("quiet", None), pair("console", Some("ttyS0"))]),
            ("a=b=c", vec![pair("a", Some("b=c"))]),
            ("a=", vec![pair("a", Some(""))]),
            ("a=\"b c\"  d", vec![pair("a", Some("b c")), pair("d", None)]),
            ("\"a=b c\" d", vec![pair("a", Some("b c")), pair("d", None)]),
            ("\"a b\"", vec![pair("a b", None)]),
            ("a=\"b", vec![pair("a", Some("b"))]),
            ("a=b\"c d\"e", vec![pair("a", Some("b\"c d\"e"))]),
            ("a=\"b\" -- c=d", vec![pair("a", Some("b"))]),
            ("--x=1 a", vec![pair("--x", Some("1")), pair("a", None)]),
        ] {
            assert_eq!(parsed(line), expected, "{line:?}");
        }
    }
}
