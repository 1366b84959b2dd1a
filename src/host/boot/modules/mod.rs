//! The kernel's modules that the guest loads. In goes a tree `lib/modules/RELEASE`; out come the modules of the table [`WANTED`] and
//! what they depend on, decompressed, in load order. The tree is never written to.

mod tree;
mod wanted;

use std::io;
use std::path::{Path, PathBuf};

pub use tree::TreeError;
pub use wanted::{Need, WANTED, Wanted};

use super::elf::{Elf, ElfError, Processor};
use crate::host::support::files;

/// A module to pack.
#[derive(Debug)]
pub struct Module {
    /// Its file name, ending in `.ko`.
    pub file: String,
    /// Its content, not compressed.
    pub content: Vec<u8>,
    /// The processor that it is for.
    pub processor: Processor,
}

/// What a tree gives the guest.
#[derive(Debug)]
pub struct Modules {
    /// Each after those that it needs.
    pub load: Vec<Module>,
    /// Optional modules that the kernel does not have.
    pub absent: Vec<&'static str>,
}

/// Why a tree does not give what the guest needs.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// Not a tree, or one without its lists.
    #[error(
        "cannot read {}; the modules of a kernel are a folder lib/modules/RELEASE in which depmod has made modules.dep",
        path.display()
    )]
    List {
        /// The list.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The lists do not give an order to load in.
    #[error("the modules in {} cannot be packed", tree.display())]
    Tree {
        /// The tree.
        tree: PathBuf,
        /// What is wrong with it.
        source: TreeError,
    },
    /// A module that is listed cannot be read.
    #[error("cannot read the module {}, which modules.dep lists", path.display())]
    Read {
        /// The module's file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A module is damaged.
    #[error("cannot decompress the module {}", path.display())]
    Decompress {
        /// The module's file.
        path: PathBuf,
        /// What the decompressor says.
        source: io::Error,
    },
    /// A module's content is something else.
    #[error("{} is not a kernel module", path.display())]
    Elf {
        /// The module's file.
        path: PathBuf,
        /// What is wrong with it.
        source: ElfError,
    },
}

/// The largest list or module that is taken for one; `modules.dep` of a distribution is about 1 MB, its largest module 10 MB.
const MAX_FILE: usize = 64 << 20;

/// Reads the modules that the guest needs from `tree`.
///
/// # Errors
/// When `tree` is not a module tree, lacks a required module, or has lists or modules that are broken.
pub fn collect(tree: &Path) -> Result<Modules, ModulesError> {
    let list = |name| {
        let path = tree.join(name);
        let content = files::read(&path, MAX_FILE as u64).map_err(|source| ModulesError::List { path, source })?;
        Ok(String::from_utf8_lossy(&content).into_owned())
    };
    let plan = tree::plan(&list("modules.dep")?, &list("modules.builtin")?, &WANTED);
    let plan = plan.map_err(|source| ModulesError::Tree { tree: tree.to_owned(), source })?;
    let load = plan.load.iter().map(|file| read(tree, file));
    Ok(Modules { load: load.collect::<Result<_, _>>()?, absent: plan.absent })
}

/// Reads `file`, a path in `tree` as modules.dep has it.
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
