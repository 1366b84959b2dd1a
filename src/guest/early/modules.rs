//! Kernel modules. What enters is `/lib/modules/order`, a file name a line, dependencies first; what leaves is each of them in the
//! kernel: loaded here, or found there already, since the kernel that boots may have built in what another has as a module. It never
//! looks for modules itself: what a kernel needs is decided where the initramfs is made.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use super::console;

const DIRECTORY: &str = "/lib/modules";
/// Modules that few guests need, and what they depend on: each takes some milliseconds of every boot otherwise.
const VLANS: [&str; 5] = ["llc.ko", "stp.ko", "garp.ko", "mrp.ko", "8021q.ko"];

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

/// Loads those modules of the initramfs that the kernel does not have yet, and gives how many these were. Without a list everything is
/// built in. A kernel that cannot load any is taken for one that needs none: what it lacks is named by the step that needs it. What
/// VLANs need is left to [`load_vlans`].
///
/// # Errors
/// The first module that cannot be found or loaded.
pub fn load() -> Result<usize, ModuleError> {
    load_those(|name| !VLANS.contains(&name))
}

/// Loads what VLANs need, as [`load`] does.
///
/// # Errors
/// The first module that cannot be found or loaded.
pub fn load_vlans() -> Result<usize, ModuleError> {
    load_those(|name| VLANS.contains(&name))
}

fn load_those(wanted: fn(&str) -> bool) -> Result<usize, ModuleError> {
    let text = match fs::read_to_string(Path::new(DIRECTORY).join("order")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(ModuleError::Order(error)),
    };
    let names = parse_order(&text)?;
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let present = |name: &str| is_present(name, &filesystems, Path::new("/sys/module"));
    let mut loaded = 0_usize;
    for (place, name) in (1..).zip(&names).filter(|(_, name)| wanted(name) && !present(name)) {
        match insert(name, place, names.len())? {
            Inserted::Loaded => loaded = loaded.saturating_add(1),
            Inserted::Present => {}
            Inserted::NoLoader => {
                console::say("this kernel loads no modules: what the guest needs has to be built in");
                break;
            }
        }
    }
    Ok(loaded)
}

/// What became of a module.
enum Inserted {
    Loaded,
    /// The kernel has it already.
    Present,
    /// The kernel is built without CONFIG_MODULES.
    NoLoader,
}

fn insert(name: &str, place: usize, count: usize) -> Result<Inserted, ModuleError> {
    let file = File::open(Path::new(DIRECTORY).join(name)).map_err(|source| ModuleError::Open {
        name: name.to_owned(),
        place,
        count,
        source,
    })?;
    match finit_module(file, c"", ModuleInitFlags::empty()) {
        Ok(()) => Ok(Inserted::Loaded),
        Err(Errno::EEXIST) => Ok(Inserted::Present),
        Err(Errno::ENOSYS) => Ok(Inserted::NoLoader),
        Err(source) => Err(ModuleError::Load { name: name.to_owned(), place, count, source }),
    }
}

/// Whether the kernel has the module in the file `file`, built in or loaded, as far as it can be seen: each loaded one and most that are
/// built in have a folder in `/sys/module`, each file system a line in `/proc/filesystems`. What is not seen is loaded, and a second of
/// the same is no error.
fn is_present(file: &str, filesystems: &str, modules: &Path) -> bool {
    let name = file.trim_end_matches(".ko").replace('-', "_");
    modules.join(&name).is_dir() || filesystems.lines().any(|line| line.split_whitespace().next_back() == Some(&name))
}

fn parse_order(text: &str) -> Result<Vec<&str>, ModuleError> {
    let lines = (1..).zip(text.lines().map(str::trim)).filter(|(_, name)| !name.is_empty());
    lines
        .map(|(line, name)| {
            let plain = name.ends_with(".ko") && !name.contains('/');
            if plain { Ok(name) } else { Err(ModuleError::Name { line, name: name.to_owned() }) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{is_present, parse_order};

    #[test]
    fn what_the_kernel_has_is_seen() {
        let modules = tempfile::tempdir().unwrap();
        std::fs::create_dir(modules.path().join("virtio_rng")).unwrap();
        let filesystems = "nodev\tsysfs\n\text4\n\terofs\n";
        for (file, present) in [
            ("virtio-rng.ko", true),
            ("erofs.ko", true),
            ("sysfs.ko", true),
            ("ext.ko", false),
            ("nodev.ko", false),
            ("virtio.ko", false),
        ] {
            assert_eq!(is_present(file, filesystems, modules.path()), present, "{file}");
        }
    }

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
