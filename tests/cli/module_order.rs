//! Checks that the modules of `src/` import each other in one direction only (docs/architecture.md).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Each folder may import those before it. `guest` and `host` never import each other.
const ORDER: [&str; 7] = ["address", "text", "proto", "oci", "disk", "registry", "config"];

#[test]
fn modules_import_only_lower_modules() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let modules = ORDER.iter().chain(&["guest", "host"]);
    for (index, module) in modules.enumerate() {
        let lower = &ORDER[..index.min(ORDER.len())];
        let (folder, file) = (src.join(module), src.join(format!("{module}.rs")));
        let mut imported = BTreeSet::new();
        imports(if folder.is_dir() { &folder } else { &file }, &mut imported);
        imported.remove(*module);
        let higher: Vec<_> = imported.iter().filter(|name| !lower.contains(&name.as_str())).collect();
        assert!(higher.is_empty(), "{module} imports {higher:?}");
    }
}

/// The folders that the code at `path` imports.
fn imports(path: &Path, found: &mut BTreeSet<String>) {
    if path.is_dir() {
        return fs::read_dir(path).unwrap().for_each(|entry| imports(&entry.unwrap().path(), found));
    }
    let text = fs::read_to_string(path).unwrap();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    for part in code.flat_map(|line| line.split("crate::").skip(1)) {
        found.insert(part.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned());
    }
}
