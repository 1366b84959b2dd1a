//! Computes the load order of modules from the texts of `modules.dep` and `modules.builtin`.

use std::collections::{BTreeMap, BTreeSet};

use crate::host::boot::decompress::Compression;

use super::table::{Need, WantedModule};

/// Why there is no load order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A line is not in depmod's format.
    #[error("modules.dep line {line} is not `FILE: DEPENDENCIES`: {text:?}; run depmod again")]
    Line {
        /// The line's number, from 1.
        line: usize,
        /// The line's text.
        text: String,
    },
    /// A path is not a module inside the tree.
    #[error(
        "modules.dep line {line} names {file:?}, which is not a module in the tree (FILE.ko, .ko.gz, .ko.xz or .ko.zst); run depmod again"
    )]
    File {
        /// The line's number, from 1.
        line: usize,
        /// The path.
        file: String,
    },
    /// Two files are the same module.
    #[error("modules.dep has the module {name} twice: {first} and {second}; run depmod again")]
    Twice {
        /// The module.
        name: String,
        /// Its first file.
        first: String,
        /// Its second file.
        second: String,
    },
    /// A dependency has no line of its own.
    #[error("modules.dep says that {file} needs {dependency}, but does not list that; run depmod again")]
    Dependency {
        /// The module.
        file: String,
        /// The dependency.
        dependency: String,
    },
    /// Modules depend on each other in a circle.
    #[error("modules.dep has modules that need each other, which cannot load: {}; run depmod again", .0.join(" needs "))]
    Cycle(Vec<String>),
    /// The guest needs a module that the kernel does not have.
    #[error(
        "the module {name} ({why}) is neither in modules.dep nor in modules.builtin, and the guest cannot do without it; \
             give the modules of a kernel that has it, and boot that kernel"
    )]
    Missing {
        /// The module.
        name: &'static str,
        /// What it is for.
        why: &'static str,
    },
}

/// The modules to pack.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Paths relative to the tree, each after its dependencies.
    pub load: Vec<String>,
    /// Optional modules that the kernel does not have.
    pub absent: Vec<&'static str>,
}

/// Suffixes of module files, and the compression each stands for.
const SUFFIXES: [(&str, Option<Compression>); 4] =
    [(".ko", None), (".ko.gz", Some(Compression::Gzip)), (".ko.xz", Some(Compression::Xz)), (".ko.zst", Some(Compression::Zstd))];

/// Splits a module's path into its name without suffix, and its compression. `None` if it is not a module's path.
pub fn split_name(file: &str) -> Option<(&str, Option<Compression>)> {
    let name = file.rsplit('/').next()?;
    let (stem, compression) = SUFFIXES.iter().find_map(|(suffix, how)| Some((name.strip_suffix(suffix)?, *how)))?;
    (!stem.is_empty()).then_some((stem, compression))
}

/// Computes the load order of the `wanted` modules from the texts of `modules.dep` and `modules.builtin`.
pub fn plan(dep: &str, builtin: &str, wanted: &[WantedModule]) -> Result<Plan, TreeError> {
    let tree = Tree::parse(dep)?;
    let builtin: BTreeSet<String> = builtin.lines().filter_map(|line| module_name(line.trim())).collect();
    let mut plan = Plan { load: Vec::new(), absent: Vec::new() };
    let mut seen = BTreeMap::new();
    for module in wanted {
        match tree.files.get(module.name) {
            Some(file) => tree.visit(file, &mut seen, &mut plan.load)?,
            None if builtin.contains(module.name) => {}
            None if module.need == Need::Optional => plan.absent.push(module.name),
            None => return Err(TreeError::Missing { name: module.name, why: module.why }),
        }
    }
    Ok(plan)
}

/// A parsed `modules.dep` (modules.dep(5)).
struct Tree<'a> {
    /// Module name to path.
    files: BTreeMap<String, &'a str>,
    /// Path to the paths of its dependencies, sorted, so that the result does not depend on depmod's order.
    needs: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

impl<'a> Tree<'a> {
    fn parse(dep: &'a str) -> Result<Self, TreeError> {
        let mut tree = Tree { files: BTreeMap::new(), needs: BTreeMap::new() };
        for (line, text) in (1..).zip(dep.lines()) {
            if text.trim().is_empty() || text.starts_with('#') {
                continue;
            }
            let (file, needs) = text.split_once(':').ok_or_else(|| TreeError::Line { line, text: text.to_owned() })?;
            let needs = needs.split_whitespace().collect::<BTreeSet<_>>();
            let outside = [file].into_iter().chain(needs.iter().copied()).find(|file| !is_inside(file));
            if let Some(file) = outside {
                return Err(TreeError::File { line, file: file.to_owned() });
            }
            let name = module_name(file).ok_or_else(|| TreeError::File { line, file: file.to_owned() })?;
            if let Some(first) = tree.files.insert(name.clone(), file) {
                return Err(TreeError::Twice { name, first: first.to_owned(), second: file.to_owned() });
            }
            tree.needs.insert(file, needs);
        }
        Ok(tree)
    }

    /// Adds `start` to `order` after its dependencies, and skips files that `order` has. Depth first, without recursion.
    fn visit(&self, start: &'a str, seen: &mut BTreeMap<&'a str, Visit>, order: &mut Vec<String>) -> Result<(), TreeError> {
        let mut trail = Vec::new();
        let mut next = (!seen.contains_key(start)).then_some(start);
        loop {
            if let Some(file) = next.take() {
                let needs = self.needs.get(file).into_iter().flatten();
                trail.push((file, needs));
                seen.insert(file, Visit::Open);
            }
            let Some((file, needs)) = trail.last_mut() else { return Ok(()) };
            let file = *file;
            let Some(need) = needs.next().copied() else {
                seen.insert(file, Visit::Done);
                order.push(file.to_owned());
                trail.pop();
                continue;
            };
            match seen.get(need) {
                Some(Visit::Done) => {}
                Some(Visit::Open) => {
                    let circle = trail.iter().map(|(file, _)| *file).skip_while(|file| *file != need).chain([need]);
                    return Err(TreeError::Cycle(circle.map(str::to_owned).collect()));
                }
                None if self.needs.contains_key(need) => next = Some(need),
                None => return Err(TreeError::Dependency { file: file.to_owned(), dependency: need.to_owned() }),
            }
        }
    }
}

/// The state of a file in the walk.
#[derive(Debug, Clone, Copy)]
enum Visit {
    /// Its dependencies are being visited.
    Open,
    /// It is in the load order.
    Done,
}

/// A module's name in the kernel, which treats `-` and `_` as the same.
fn module_name(file: &str) -> Option<String> {
    split_name(file).map(|(stem, _)| stem.replace('-', "_"))
}

/// Whether `file` is a module's path inside the tree.
fn is_inside(file: &str) -> bool {
    split_name(file).is_some() && file.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULES: [WantedModule; 3] = [
        WantedModule { name: "c_d", need: Need::Required, why: "the disk" },
        WantedModule { name: "b", need: Need::Required, why: "the net" },
        WantedModule { name: "o", need: Need::Optional, why: "comfort" },
    ];

    fn message(dep: &str) -> String {
        plan(dep, "", &MODULES).unwrap_err().to_string()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dep = "k/a.ko:\nk/b.ko.xz: k/a.ko\nk/x.ko:\nk/c-d.ko: k/b.ko.xz k/a.ko\nk/o.ko.zst: k/c-d.ko\n";
        let expected = ["k/a.ko", "k/b.ko.xz", "k/c-d.ko", "k/o.ko.zst"].map(str::to_owned).to_vec();
        assert_eq!(plan(dep, "", &MODULES).unwrap(), Plan { load: expected, absent: vec![] });
    }

    #[test]
    fn order_of_lines_and_dependencies_does_not_matter() {
        let a = "k/c-d.ko: k/y.ko k/x.ko k/z.ko\nk/x.ko: k/z.ko\nk/y.ko:\nk/z.ko:\nk/b.ko:\n";
        let b = "k/b.ko:\nk/z.ko:\nk/y.ko:\nk/x.ko: k/z.ko\nk/c-d.ko: k/z.ko k/x.ko k/y.ko\n";
        assert_eq!(plan(a, "", &MODULES), plan(b, "", &MODULES));
        assert_eq!(plan(a, "", &MODULES).unwrap().load, ["k/z.ko", "k/x.ko", "k/y.ko", "k/c-d.ko", "k/b.ko"]);
    }

    #[test]
    fn built_in_modules_are_not_packed_and_optional_ones_may_be_absent() {
        let plan = plan("k/b.ko:\n", "kernel/drivers/c-d.ko\n", &MODULES).unwrap();
        assert_eq!(plan, Plan { load: vec!["k/b.ko".to_owned()], absent: vec!["o"] });
    }

    #[test]
    fn missing_required_module_is_reported_with_its_use() {
        assert_eq!(
            message("k/b.ko:\n"),
            "the module c_d (the disk) is neither in modules.dep nor in modules.builtin, and the guest cannot do without it; \
             give the modules of a kernel that has it, and boot that kernel"
        );
    }

    #[test]
    fn invalid_modules_dep_is_rejected() {
        assert_eq!(message("k/b.ko:\nk/c.ko\n"), "modules.dep line 2 is not `FILE: DEPENDENCIES`: \"k/c.ko\"; run depmod again");
        let outside = |line, file| {
            format!(
                "modules.dep line {line} names {file:?}, which is not a module in the tree (FILE.ko, .ko.gz, .ko.xz or \
                 .ko.zst); run depmod again"
            )
        };
        assert_eq!(message("k/b.ko.bz2:\n"), outside(1, "k/b.ko.bz2"));
        assert_eq!(message("k/.ko:\n"), outside(1, "k/.ko"));
        assert_eq!(message("/k/b.ko:\n"), outside(1, "/k/b.ko"));
        assert_eq!(message("k/b.ko:\nk/c.ko: k/../../x.ko\n"), outside(2, "k/../../x.ko"));
        assert_eq!(
            message("k/c-d.ko:\nu/c_d.ko.xz:\n"),
            "modules.dep has the module c_d twice: k/c-d.ko and u/c_d.ko.xz; run depmod again"
        );
        assert_eq!(
            message("k/c-d.ko: k/a.ko\nk/b.ko:\n"),
            "modules.dep says that k/c-d.ko needs k/a.ko, but does not list that; run depmod again"
        );
    }

    #[test]
    fn dependency_cycle_is_rejected() {
        assert_eq!(
            message("k/c-d.ko: k/a.ko\nk/a.ko: k/e.ko\nk/e.ko: k/a.ko\nk/b.ko:\n"),
            "modules.dep has modules that need each other, which cannot load: k/a.ko needs k/e.ko needs k/a.ko; run depmod again"
        );
        assert_eq!(
            message("k/c-d.ko: k/c-d.ko\nk/b.ko:\n"),
            "modules.dep has modules that need each other, which cannot load: k/c-d.ko needs k/c-d.ko; run depmod again"
        );
    }

    #[test]
    fn long_dependency_chain_does_not_overflow_the_stack() {
        let chain: String = (0..20_000).map(|n| format!("k/m{n}.ko: k/m{}.ko\n", n + 1)).collect();
        let dep = format!("{chain}k/m20000.ko:\nk/c-d.ko: k/m0.ko\nk/b.ko:\n");
        assert_eq!(plan(&dep, "", &MODULES).unwrap().load.len(), 20_003);
    }
}
