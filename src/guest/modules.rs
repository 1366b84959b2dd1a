//! Kernel modules. What enters is `/lib/modules/order`, a file name a line, dependencies first; what leaves is each of them
//! loaded. It never looks for modules itself: what a kernel needs is decided where the initramfs is made.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

const DIRECTORY: &str = "/lib/modules";

/// A module that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The list is there and cannot be read.
    #[error("read {DIRECTORY}/order, the list of modules to load")]
    Order(#[source] io::Error),
    /// A line of the list that is not a file name.
    #[error("{DIRECTORY}/order line {line} is {name:?}; expected the name of a .ko file in {DIRECTORY}")]
    Name {
        /// Line, from 1.
        line: usize,
        /// What stands there.
        name: String,
    },
    /// The module's file.
    #[error("open {DIRECTORY}/{name}, module {place} of {count} in {DIRECTORY}/order")]
    Open {
        /// File name.
        name: String,
        /// Place in the order, from 1.
        place: usize,
        /// Modules in the order.
        count: usize,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused it.
    #[error(
        "load {DIRECTORY}/{name}, module {place} of {count} in {DIRECTORY}/order (is it of this kernel, and after those it depends on?)"
    )]
    Load {
        /// File name.
        name: String,
        /// Place in the order, from 1.
        place: usize,
        /// Modules in the order.
        count: usize,
        /// Why.
        source: Errno,
    },
}

/// Loads the modules of the initramfs and gives how many it listed. Without a list everything is built in. A module that the
/// kernel has already is skipped.
///
/// # Errors
/// The first module that cannot be found or loaded.
pub fn load() -> Result<usize, ModuleError> {
    let text = match fs::read_to_string(Path::new(DIRECTORY).join("order")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(ModuleError::Order(error)),
    };
    let names = parse_order(&text)?;
    for (index, name) in names.iter().enumerate() {
        insert(name, index + 1, names.len())?;
    }
    Ok(names.len())
}

fn insert(name: &str, place: usize, count: usize) -> Result<(), ModuleError> {
    let file = File::open(Path::new(DIRECTORY).join(name)).map_err(|source| ModuleError::Open {
        name: name.to_owned(),
        place,
        count,
        source,
    })?;
    match finit_module(file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(source) => Err(ModuleError::Load { name: name.to_owned(), place, count, source }),
    }
}

fn parse_order(text: &str) -> Result<Vec<&str>, ModuleError> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())).filter(|(_, name)| !name.is_empty());
    lines
        .map(|(line, name)| {
            let plain = name.ends_with(".ko") && !name.contains('/');
            if plain { Ok(name) } else { Err(ModuleError::Name { line, name: name.to_owned() }) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse_order;

    #[test]
    fn order_is_a_name_a_line() {
        assert_eq!(parse_order("virtio.ko\n\n virtio_ring.ko \n").unwrap(), ["virtio.ko", "virtio_ring.ko"]);
        assert_eq!(parse_order("").unwrap(), Vec::<&str>::new());
    }

    #[test]
    fn a_line_that_is_no_module_is_refused() {
        for (text, message) in [
            ("a.ko\n../b.ko\n", "/lib/modules/order line 2 is \"../b.ko\"; expected the name of a .ko file in /lib/modules"),
            ("a.ko.xz\n", "/lib/modules/order line 1 is \"a.ko.xz\"; expected the name of a .ko file in /lib/modules"),
        ] {
            assert_eq!(parse_order(text).unwrap_err().to_string(), message);
        }
    }
}
