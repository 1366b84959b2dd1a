//! Collects the kernel modules that the guest loads: those of the table [`MODULES`] and their dependencies, decompressed and in
//! load order, from a tree `lib/modules/RELEASE`.

mod table;
mod tree;

use std::io;
use std::path::{Path, PathBuf};

pub use table::{MODULES, Need, WantedModule};
pub use tree::TreeError;

use super::elf::{Elf, ElfError, Processor};
use crate::host::support::files;

/// A kernel module to pack.
#[derive(Debug)]
pub struct Module {
    /// Its file name, ending in `.ko`.
    pub file: String,
    /// Its decompressed content.
    pub content: Vec<u8>,
    /// The processor it is built for.
    pub processor: Processor,
}

/// The modules of a tree that the guest loads.
#[derive(Debug)]
pub struct Modules {
    /// The modules, each after its dependencies.
    pub load: Vec<Module>,
    /// Optional modules that the kernel does not have.
    pub absent: Vec<&'static str>,
}

/// Why the modules cannot be collected.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// The folder is not a module tree, or depmod has not run in it.
    #[error(
        "cannot read {}; the modules of a kernel are a folder lib/modules/RELEASE in which depmod has made modules.dep",
        path.display()
    )]
    List {
        /// The list.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The lists give no load order.
    #[error("the modules in {} cannot be packed", tree.display())]
    Tree {
        /// The tree.
        tree: PathBuf,
        /// The cause.
        source: TreeError,
    },
    /// A listed module cannot be read.
    #[error("cannot read the module {}, which modules.dep lists", path.display())]
    Read {
        /// The module's file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A module is damaged.
    #[error("cannot decompress the module {}", path.display())]
    Decompress {
        /// The module's file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file is not a module.
    #[error("{} is not a kernel module", path.display())]
    Elf {
        /// The module's file.
        path: PathBuf,
        /// The cause.
        source: ElfError,
    },
}

/// The largest list or module accepted, in bytes. A distribution's `modules.dep` has about 1 MB, its largest module 10 MB.
const MAX_FILE: usize = 64 << 20;

/// Reads the modules that the guest loads from `tree`.
///
/// # Errors
/// Fails if `tree` is not a module tree, lacks a required module, or has damaged lists or modules.
pub fn collect(tree: &Path) -> Result<Modules, ModulesError> {
    let list = |name| {
        let path = tree.join(name);
        let content = files::read(&path, MAX_FILE as u64).map_err(|source| ModulesError::List { path, source })?;
        Ok(String::from_utf8_lossy(&content).into_owned())
    };
    let plan = tree::plan(&list("modules.dep")?, &list("modules.builtin")?, &MODULES);
    let plan = plan.map_err(|source| ModulesError::Tree { tree: tree.to_owned(), source })?;
    let load = plan.load.iter().map(|file| read(tree, file));
    Ok(Modules { load: load.collect::<Result<_, _>>()?, absent: plan.absent })
}

/// Reads the module at `file`, a path relative to `tree`.
fn read(tree: &Path, file: &str) -> Result<Module, ModulesError> {
    let (stem, compression) = tree::split_name(file).unwrap_or_default();
    let path = tree.join(file);
    let content = match files::read(&path, MAX_FILE as u64) {
        Ok(content) => content,
        Err(source) => return Err(ModulesError::Read { path, source }),
    };
    let content = match compression.map(|compression| compression.decompress(&content, MAX_FILE)) {
        None => content,
        Some(Ok(content)) => content,
        Some(Err(source)) => return Err(ModulesError::Decompress { path, source }),
    };
    match Elf::parse(&content).map(|elf| elf.processor()) {
        Ok(processor) => Ok(Module { file: format!("{stem}.ko"), content, processor }),
        Err(source) => Err(ModulesError::Elf { path, source }),
    }
}
