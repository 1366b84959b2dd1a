//! Checks where `unsafe` is: in one module of the host, and nowhere in the guest or the server.

use std::fs;
use std::path::Path;

/// The module that may have it.
const ALLOWED: &str = "src/host/support/sys.rs";

#[test]
fn unsafe_code_is_in_one_module_of_the_host() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "crates"] {
        search(&root.join(folder), &mut found);
    }
    let found: Vec<_> = found.iter().map(|path| path.strip_prefix(root).unwrap().to_str().unwrap()).collect();
    assert_eq!(found, [ALLOWED]);
}

/// The files with `unsafe` as a word of the language, or with an exception from the lint that denies it.
fn search(path: &Path, found: &mut Vec<std::path::PathBuf>) {
    if path.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        return entries.iter().for_each(|entry| search(entry, found));
    }
    if path.extension().is_none_or(|extension| extension != "rs") {
        return;
    }
    let text = fs::read_to_string(path).unwrap();
    let code = text.lines().map(|line| line.split("//").next().unwrap());
    let is_unsafe = |word: &str| word == "unsafe" || word == "unsafe_code";
    if code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_')).any(is_unsafe) {
        found.push(path.to_owned());
    }
}
