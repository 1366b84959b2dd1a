//! Checks that the files, tests and pages that the documentation names exist.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn pages() -> Vec<(PathBuf, String)> {
    let docs = fs::read_dir(Path::new(ROOT).join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let tops = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(|name| Path::new(ROOT).join(name));
    let paths = docs.chain(tops).filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// The parts of the text in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with("```")).flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn links_lead_to_files() {
    for (page, text) in pages() {
        for link in text.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap()) {
            let outside = link.is_empty() || link.contains("://");
            assert!(outside || page.parent().unwrap().join(link).exists(), "{}: {link}", page.display());
        }
    }
}

#[test]
fn paths_in_backticks_exist() {
    let folders = ["src/", "tests/", "qemu/", "image/", "benches/", "proto/", "docs/", "examples/"];
    for (page, text) in pages() {
        for path in quoted(&text).filter(|text| folders.iter().any(|folder| text.starts_with(folder))) {
            let path = path.split_whitespace().next().unwrap();
            assert!(Path::new(ROOT).join(path).exists(), "{}: {path}", page.display());
        }
    }
}

#[test]
fn tests_of_the_tables_of_faults_and_attacks_exist() {
    tests_exist("docs/reliability.md", 3, 40);
    tests_exist("SECURITY.md", 4, 10);
}

/// The last cell of each row of a table with so many `columns` names tests. There are more than `least` rows.
fn tests_exist(page: &str, columns: usize, least: usize) {
    let page = fs::read_to_string(Path::new(ROOT).join(page)).unwrap();
    let mut sources = String::new();
    for folder in ["src", "tests"] {
        read(&Path::new(ROOT).join(folder), &mut sources);
    }
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| ") && line.matches(" | ").count() == columns - 1).collect();
    assert!(rows.len() > least);
    for row in rows.iter().filter(|row| !row.ends_with(" shown by |") && !row.starts_with("|---")) {
        let cell = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let tests: Vec<_> = quoted(cell).collect();
        assert!(!tests.is_empty(), "no test: {row}");
        for test in tests.iter().filter(|test| !test.contains('/')) {
            assert!(sources.contains(&format!("fn {test}(")), "{test} of: {row}");
        }
    }
}

fn read(path: &Path, into: &mut String) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| read(&entry.unwrap().path(), into));
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        into.push_str(&fs::read_to_string(path).unwrap());
    }
}
