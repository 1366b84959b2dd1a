//! Examples on the project's pages.

use std::fs;
use std::path::Path;

/// The first block of this language on a page, whose path is relative to the project's folder.
pub fn block(page: &str, language: &str) -> String {
    blocks(page, language).remove(0)
}

/// All blocks of this language on a page, as [`block`].
pub fn blocks(page: &str, language: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let page = fs::read_to_string(root.join(page)).unwrap();
    let start = format!("```{language}\n");
    page.split(&start).skip(1).map(|rest| rest.split_once("```").unwrap().0.to_owned()).collect()
}
