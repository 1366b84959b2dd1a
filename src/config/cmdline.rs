//! The kernel command line, split as the kernel splits it (`lib/cmdline.c`, `next_arg`). What enters is `/proc/cmdline`; what
//! leaves are its options with their values. It never interprets them.

/// The options up to `--` (what follows is for the init's own arguments), each with its value where it has one.
#[must_use]
pub fn options(line: &str) -> Vec<(String, Option<String>)> {
    let words = words(line);
    words.iter().map(|word| split(word)).take_while(|(name, value)| !(name == "--" && value.is_none())).collect()
}

/// White space parts words, except between double quotes.
fn words(line: &str) -> Vec<&str> {
    let mut quoted = false;
    let parted = line.split(|character: char| {
        quoted ^= character == '"';
        character.is_ascii_whitespace() && !quoted
    });
    parted.filter(|word| !word.is_empty()).collect()
}

/// The first `=` parts the name from the value. Quotes around the whole word or the whole value are dropped, others stay.
fn split(word: &str) -> (String, Option<String>) {
    let (word, whole) = match word.strip_prefix('"') {
        Some(rest) => (rest, true),
        None => (word, false),
    };
    let word = if whole { word.strip_suffix('"').unwrap_or(word) } else { word };
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
    fn words_are_parted_as_the_kernel_parts_them() {
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
