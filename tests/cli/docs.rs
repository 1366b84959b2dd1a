//! Pages under docs/ that repeat tables of the code: they must list every exit status and every fault.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use localregistry::host::exit;
use testing::pack::PROGRAM;
use testing::vm::succeed;

fn source(path: impl AsRef<Path>) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_page_and_the_help_of_run_have_every_exit_status() {
    let table = exit::table();
    assert!(source("docs/running.md").contains(&table), "docs/running.md needs this table:\n{table}");
    let spaces = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let help = succeed(testing::program(PROGRAM).args(["run", "--help"]));
    assert!(spaces(&help).contains(&spaces(&exit::help())), "{help}");
    for (number, status) in (0..).zip(exit::Status::ALL) {
        assert_eq!(status.code(), number);
    }
}

/// Every Rust file below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The strings in the functions that give a fault its code: `code` and `store_code`.
fn codes_in(source: &str) -> Vec<String> {
    let functions = source.split("fn ").filter(|function| function.starts_with("code(") || function.starts_with("store_code("));
    let bodies = functions.map(|function| function.split("\n}\n").next().unwrap().split("\n    }\n").next().unwrap());
    bodies.flat_map(|body| body.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn the_page_on_reliability_has_every_fault() {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guest");
    let codes: BTreeSet<String> = files(&guest).iter().flat_map(|path| codes_in(&source(path))).collect();
    assert!(codes.contains("BAD_DISK") && codes.contains("TRUNCATED") && codes.len() >= 18, "{codes:?}");
    let page = source("docs/reliability.md");
    let missing: Vec<&String> =
        codes.iter().filter(|code| !page.contains(&format!("code={code}`")) && !page.contains(&format!("`{code}`"))).collect();
    assert!(missing.is_empty(), "docs/reliability.md lacks {missing:?}");
    let named = page.split("code=").skip(1).map(|rest| rest.split(|c: char| !c.is_ascii_uppercase() && c != '_').next().unwrap());
    let unknown: Vec<&str> = named.filter(|name| *name != "NAME" && !codes.contains(*name)).collect();
    assert!(unknown.is_empty(), "no fault has the codes {unknown:?}");
}
