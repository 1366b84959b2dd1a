//! Parses the password file, as `htpasswd -B` writes it. No error shows a hash.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use super::basic::LONGEST_USER;

/// Largest file, in bytes: about ten thousand users.
pub const LARGEST: u64 = 1 << 20;
/// Accepted costs of a hash. Each step doubles the work of a verification, which any client can cause: 14 takes about a second on a fast
/// core, and half a minute on an emulated one.
pub const COSTS: RangeInclusive<u32> = 4..=14;
/// Accepted bcrypt versions. `2x` is not one of them: it marks hashes of a broken implementation.
const VERSIONS: [&str; 3] = ["$2y$", "$2b$", "$2a$"];

/// Why a password file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HtpasswdError {
    /// The file is too large.
    #[error("{file}: more than {LARGEST} bytes; expected one line USER:HASH for each user")]
    TooLarge {
        /// The file.
        file: String,
    },
    /// The file has no users.
    #[error("{file}: no users; expected one line USER:HASH for each user, as `htpasswd -nbB USER PASSWORD` prints it")]
    Empty {
        /// The file.
        file: String,
    },
    /// A line is malformed.
    #[error("{file}:{line}: {fault}; expected {expected}")]
    Line {
        /// The file.
        file: String,
        /// The line number, from 1.
        line: usize,
        /// What is wrong.
        fault: String,
        /// What is expected.
        expected: &'static str,
    },
}

/// Users and the bcrypt hashes of their passwords. Never empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Htpasswd {
    users: BTreeMap<String, (String, u32)>,
}

impl fmt::Debug for Htpasswd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Htpasswd").field("users", &self.users.len()).finish_non_exhaustive()
    }
}

impl Htpasswd {
    /// Parses `text`. Errors name it `file`.
    ///
    /// # Errors
    /// Fails at the first malformed line, or if there are no users.
    pub fn parse(text: &[u8], file: &str) -> Result<Self, HtpasswdError> {
        if text.len() as u64 > LARGEST {
            return Err(HtpasswdError::TooLarge { file: file.to_owned() });
        }
        let mut users = BTreeMap::new();
        for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let refused = |(fault, expected)| HtpasswdError::Line { file: file.to_owned(), line: at + 1, fault, expected };
            let Some((user, hash, cost)) = self::line(line).map_err(refused)? else { continue };
            if users.insert(user.clone(), (hash, cost)).is_some() {
                return Err(refused((format!("the user {user:?} appears twice"), "each user once")));
            }
        }
        if users.is_empty() { Err(HtpasswdError::Empty { file: file.to_owned() }) } else { Ok(Self { users }) }
    }

    /// The users, each with hash and cost.
    pub(crate) fn into_users(self) -> impl Iterator<Item = (String, String, u32)> {
        self.users.into_iter().map(|(user, (hash, cost))| (user, hash, cost))
    }
}

type Fault = (String, &'static str);

/// The user, the hash and its cost. `None` for an empty line or a comment.
fn line(line: &[u8]) -> Result<Option<(String, String, u32)>, Fault> {
    let line = str::from_utf8(line).map_err(|_| ("the line is not UTF-8".to_owned(), "USER:HASH"))?.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (user, hash) = line.split_once(':').ok_or_else(|| ("there is no colon".to_owned(), "USER:HASH"))?;
    if user.is_empty() || user.len() > LONGEST_USER || user.contains(char::is_control) {
        return Err((format!("the user's name has {} bytes", user.len()), "a printable name of 1 to 255 bytes"));
    }
    let hash_fault = |fault: &str| format!("the hash of {user:?} {fault}");
    if !VERSIONS.iter().any(|version| hash.starts_with(version)) {
        return Err((hash_fault("is not bcrypt"), "a hash that starts with $2y$, $2b$ or $2a$, as `htpasswd -B` makes it"));
    }
    let cost = hash.get(4..6).and_then(|digits| digits.parse::<u32>().ok());
    let (Some(cost), Ok(_)) = (cost, hash.parse::<bcrypt::HashParts>()) else {
        return Err((hash_fault("is cut or damaged"), "60 characters: $2y$, two digits of cost, $, 53 of salt and hash"));
    };
    if !COSTS.contains(&cost) {
        return Err((hash_fault(&format!("has cost {cost}")), "a cost from 4 to 14"));
    }
    Ok(Some((user.to_owned(), hash.to_owned(), cost)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$05$4A6A6Z5b9U0j3Yk8TjR0V.qzOaUQ1mF3yqJ4w2vXvWq0m9uX1r2aO";

    fn error(text: &str) -> String {
        Htpasswd::parse(text.as_bytes(), "users").unwrap_err().to_string()
    }

    #[test]
    fn users_are_parsed_and_comments_skipped() {
        let text = format!("# people\n\nanna:{HASH}\r\n  bert:{}\n", HASH.replace("$2y$05", "$2b$14"));
        let users: Vec<_> = Htpasswd::parse(text.as_bytes(), "users").unwrap().into_users().collect();
        let names: Vec<_> = users.iter().map(|(user, _, cost)| (user.as_str(), *cost)).collect();
        assert_eq!(names, [("anna", 5), ("bert", 14)]);
        assert_eq!(users[0].1, HASH);
        assert!(Htpasswd::parse(format!("a:{}", HASH.replace("2y", "2a")).as_bytes(), "users").is_ok());
        let shown = format!("{:?}", Htpasswd::parse(text.as_bytes(), "users").unwrap());
        assert_eq!(shown, "Htpasswd { users: 2, .. }", "no hash is shown");
    }

    #[test]
    fn error_names_the_line_and_the_fault() {
        let form = "a hash that starts with $2y$, $2b$ or $2a$, as `htpasswd -B` makes it";
        let whole = "60 characters: $2y$, two digits of cost, $, 53 of salt and hash";
        for (text, message) in [
            ("anna".to_owned(), "users:1: there is no colon; expected USER:HASH".to_owned()),
            (format!(":{HASH}"), "users:1: the user's name has 0 bytes; expected a printable name of 1 to 255 bytes".into()),
            (
                format!("{}:{HASH}", "a".repeat(256)),
                "users:1: the user's name has 256 bytes; expected a printable name of 1 to 255 bytes".into(),
            ),
            ("\na:$apr1$x$y".into(), format!("users:2: the hash of \"a\" is not bcrypt; expected {form}")),
            ("a:{SHA}x".into(), format!("users:1: the hash of \"a\" is not bcrypt; expected {form}")),
            ("a:secret".into(), format!("users:1: the hash of \"a\" is not bcrypt; expected {form}")),
            (format!("a:{}", HASH.replace("2y", "2x")), format!("users:1: the hash of \"a\" is not bcrypt; expected {form}")),
            (format!("a:{}", &HASH[..59]), format!("users:1: the hash of \"a\" is cut or damaged; expected {whole}")),
            (format!("a:{HASH}x"), format!("users:1: the hash of \"a\" is cut or damaged; expected {whole}")),
            (
                format!("a:{}", HASH.replace("05", "x5")),
                format!("users:1: the hash of \"a\" is cut or damaged; expected {whole}"),
            ),
            (
                format!("a:{}", HASH.replace("$05$", "$15$")),
                "users:1: the hash of \"a\" has cost 15; expected a cost from 4 to 14".into(),
            ),
            (
                format!("a:{}", HASH.replace("$05$", "$03$")),
                "users:1: the hash of \"a\" has cost 3; expected a cost from 4 to 14".into(),
            ),
            (format!("a:{HASH}\n#\na:{HASH}"), "users:3: the user \"a\" appears twice; expected each user once".into()),
            (
                "# nobody\n".into(),
                "users: no users; expected one line USER:HASH for each user, as `htpasswd -nbB USER PASSWORD` prints it".into(),
            ),
            ("#".repeat(1 << 20) + "#", "users: more than 1048576 bytes; expected one line USER:HASH for each user".into()),
        ] {
            assert_eq!(error(&text), message);
        }
        assert_eq!(
            Htpasswd::parse(b"\xff:x", "users").unwrap_err().to_string(),
            "users:1: the line is not UTF-8; expected USER:HASH"
        );
    }
}
