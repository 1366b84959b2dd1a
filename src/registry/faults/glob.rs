//! Patterns of text: `*` stands for any text, `?` for one character.

/// A pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob(String);

impl Glob {
    /// Parses a pattern of text whose characters `may_occur`.
    ///
    /// # Errors
    /// Fails if no such text can match.
    pub fn new(text: &str, may_occur: impl Fn(char) -> bool, what: &str) -> Result<Self, String> {
        match text.chars().find(|character| !matches!(character, '*' | '?') && !may_occur(*character)) {
            Some(character) => {
                Err(format!("{text:?} matches no {what}, which cannot have {character:?}; only * and ? are special"))
            }
            None => Ok(Self(text.to_owned())),
        }
    }

    /// The only text that it matches, if it has neither `*` nor `?`.
    pub fn exact(&self) -> Option<&str> {
        (!self.0.contains(['*', '?'])).then_some(&self.0)
    }

    /// Whether it matches `text`. The time is at most the product of both lengths.
    pub fn matches(&self, text: &str) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut at, mut seen) = (0, 0);
        // Where the last star is, and the text that it does not stand for yet.
        let mut star: Option<(usize, usize)> = None;
        while let Some(byte) = text.get(seen) {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, seen));
                    at += 1;
                }
                Some(one) if *one == b'?' || one == byte => (at, seen) = (at + 1, seen + 1),
                _ => {
                    let Some((starred, rest)) = star else { return false };
                    star = Some((starred, rest + 1));
                    (at, seen) = (starred + 1, rest + 1);
                }
            }
        }
        pattern.get(at..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_texts() {
        for (pattern, matching, others) in [
            ("a/b", &["a/b"][..], &["a/bc", "xa/b", ""][..]),
            ("*", &["", "a", "a/b"], &[]),
            ("test/*", &["test/", "test/a/b"], &["tes", "atest/a"]),
            ("*a*b", &["ab", "xaxb", "abab"], &["aba", "b"]),
            ("v?", &["v1"], &["v", "v12"]),
            ("*?", &["a", "ab"], &[""]),
        ] {
            let glob = Glob::new(pattern, |_| true, "text").unwrap();
            assert!(matching.iter().all(|text| glob.matches(text)), "{pattern}");
            assert!(!others.iter().any(|text| glob.matches(text)), "{pattern}");
        }
        let slow = Glob::new(&"*a".repeat(40), |_| true, "text").unwrap();
        assert!(!slow.matches(&format!("{}b", "a".repeat(5000))));
    }

    #[test]
    fn pattern_with_a_character_that_cannot_occur_is_rejected() {
        let error =
            Glob::new("test/[ab]", |character| character.is_ascii_lowercase() || character == '/', "repository").unwrap_err();
        assert_eq!(error, "\"test/[ab]\" matches no repository, which cannot have '['; only * and ? are special");
    }
}
