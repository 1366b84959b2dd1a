//! Finds a field of a rule in the text of a plan. The parsers check types, and have forgotten positions when values are checked.

/// What braces and brackets enclose.
struct Level {
    /// The key of what is enclosed, in lower case and without underscores.
    key: String,
    is_list: bool,
}

/// The byte offset of the field `path`, such as `match.peer`, of the rule number `index`, or else of the plan; of the innermost message
/// around it if it is not set. The text has been parsed as JSON or prototext.
pub(super) fn locate(text: &str, index: Option<usize>, path: &str) -> usize {
    let path: Vec<String> = path.split('.').map(plain).collect();
    let mut levels: Vec<Level> = Vec::new();
    // The last word or string, which is a key if a colon or a brace follows.
    let mut word: Option<(String, usize)> = None;
    let mut key: Option<(String, usize)> = None;
    let (mut rules, mut best): (usize, Option<(usize, usize)>) = (0, None);
    let mut note = |levels: &[Level], rules: usize, last: Option<&str>, at: usize| {
        let names = levels.iter().filter(|level| !level.is_list && !level.key.is_empty()).map(|level| level.key.as_str());
        let names: Vec<&str> = names.chain(last).collect();
        let is_around = index.is_none_or(|index| names.first() == Some(&"rules") && rules == index + 1);
        let inner = names.get(usize::from(index.is_some())..).unwrap_or_default();
        if !is_around {
            return;
        }
        if inner.len() <= path.len() && inner.iter().zip(&path).all(|(name, part)| name == part) {
            let depth = inner.len() + 1;
            if best.is_none_or(|(deepest, _)| depth > deepest) {
                best = Some((depth, at));
            }
        }
    };
    let mut bytes = text.bytes().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'#' => while bytes.next_if(|(_, byte)| *byte != b'\n').is_some() {},
            b'"' | b'\'' => {
                let mut end = at + 1;
                while let Some((next, inner)) = bytes.next() {
                    end = next;
                    match inner {
                        b'\\' => drop(bytes.next()),
                        _ if inner == byte => break,
                        _ => {}
                    }
                }
                word = Some((plain(text.get(at + 1..end).unwrap_or_default()), at));
            }
            b':' => {
                if let Some((name, start)) = word.take() {
                    note(&levels, rules, Some(&name), start);
                    key = Some((name, start));
                }
            }
            b'{' | b'<' | b'[' => {
                let is_list = byte == b'[';
                let listed = levels.last().filter(|level| level.is_list).map(|level| (level.key.clone(), at));
                let (name, start) = key.take().or_else(|| word.take()).or(listed).unwrap_or((String::new(), at));
                let is_rule = !is_list && name == "rules" && levels.iter().all(|level| level.is_list || level.key.is_empty());
                rules += usize::from(is_rule);
                let in_list = levels.last().is_some_and(|level| level.is_list);
                let start = if in_list { at } else { start };
                if !is_list {
                    note(&levels, rules, Some(&name), start);
                }
                levels.push(Level { key: name, is_list });
            }
            b'}' | b'>' | b']' => {
                levels.pop();
                (word, key) = (None, None);
            }
            b',' | b';' => (word, key) = (None, None),
            _ if byte.is_ascii_alphanumeric() || byte == b'_' => {
                let mut end = at + 1;
                while let Some((next, _)) = bytes.next_if(|(_, byte)| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'))
                {
                    end = next + 1;
                }
                // A value of the last key, or the next key.
                key = None;
                word = Some((plain(text.get(at..end).unwrap_or_default()), at));
            }
            _ => {}
        }
    }
    best.map_or(0, |(_, at)| at)
}

/// The name of a field in either form.
fn plain(name: &str) -> String {
    name.chars().filter(|character| *character != '_').map(|character| character.to_ascii_lowercase()).collect()
}
