//! Loads the kernel modules listed in `/lib/modules/order`: one file name a line, dependencies first. Skips modules that the kernel
//! already has, because one kernel may build in what another has as a module. The initramfs builder decides which modules a kernel
//! needs.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::init_module;

use super::console;

const DIRECTORY: &str = "/lib/modules";
/// What ends a signed module (Linux, include/linux/module_signature.h). In front of it is the length of the signature, a big-endian number
/// at the end of [`SIGNATURE_HEADER`] bytes, and in front of those the signature.
const SIGNED: &[u8] = b"~Module signature appended~\n";
const SIGNATURE_HEADER: usize = 12;
/// The VLAN driver and its dependencies, which few guests need. Loading them would cost each boot some milliseconds.
const VLANS: [&str; 5] = ["llc.ko", "stp.ko", "garp.ko", "mrp.ko", "8021q.ko"];

/// Why a module cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The list exists but cannot be read.
    #[error("cannot read {DIRECTORY}/order, the list of modules to load")]
    Order(#[source] io::Error),
    /// A line of the list is not the name of a module file.
    #[error("{DIRECTORY}/order line {line} is {name:?}; expected the name of a .ko file in {DIRECTORY}")]
    Name {
        /// Line, from 1.
        line: usize,
        /// The line.
        name: String,
    },
    /// The module's file cannot be opened.
    #[error("cannot open {DIRECTORY}/{name}, module {place} of {count} in {DIRECTORY}/order")]
    Open {
        /// File name.
        name: String,
        /// Position in the list, from 1.
        place: usize,
        /// Number of modules in the list.
        count: usize,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused the module.
    #[error(
        "cannot cannot load {DIRECTORY}/{name}, module {place} of {count} in {DIRECTORY}/order (is it of this kernel, and after those it depends on?)"
    )]
    Load {
        /// File name.
        name: String,
        /// Position in the list, from 1.
        place: usize,
        /// Number of modules in the list.
        count: usize,
        /// Why.
        source: Errno,
    },
}

/// Loads the modules of the initramfs that the kernel lacks, except the VLAN driver, and returns their number. Without a list there
/// is nothing to load. If the kernel cannot load modules, this succeeds too: the step that needs a missing driver reports it.
///
/// # Errors
/// Fails if a module cannot be opened or loaded.
pub fn load() -> Result<usize, ModuleError> {
    load_matching(|name| !VLANS.contains(&name))
}

/// Loads the VLAN driver as [`load`] does.
///
/// # Errors
/// Fails if a module cannot be opened or loaded.
pub fn load_vlans() -> Result<usize, ModuleError> {
    load_matching(|name| VLANS.contains(&name))
}

fn load_matching(wanted: impl Fn(&str) -> bool) -> Result<usize, ModuleError> {
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
                console::log("this kernel cannot load modules; what the guest needs has to be built in");
                break;
            }
        }
    }
    Ok(loaded)
}

/// The result of inserting a module.
enum Inserted {
    Loaded,
    /// The kernel has the module already.
    Present,
    /// The kernel is built without CONFIG_MODULES.
    NoLoader,
}

fn insert(name: &str, place: usize, count: usize) -> Result<Inserted, ModuleError> {
    let module = fs::read(Path::new(DIRECTORY).join(name)).map_err(|source| ModuleError::Open {
        name: name.to_owned(),
        place,
        count,
        source,
    })?;
    // The modules come with the kernel, and nothing vouches for either. Checking 26 signatures is a fifth of the instructions of a boot.
    let inserted = match init_module(unsigned(&module), c"") {
        // A kernel that insists on them.
        Err(Errno::EKEYREJECTED) => init_module(&module, c""),
        result => result,
    };
    match inserted {
        Ok(()) => Ok(Inserted::Loaded),
        Err(Errno::EEXIST) => Ok(Inserted::Present),
        Err(Errno::ENOSYS) => Ok(Inserted::NoLoader),
        Err(source) => Err(ModuleError::Load { name: name.to_owned(), place, count, source }),
    }
}

/// `module` without its signature.
fn unsigned(module: &[u8]) -> &[u8] {
    let end = || {
        let header = module.strip_suffix(SIGNED)?.split_last_chunk::<SIGNATURE_HEADER>()?;
        let (signed, [.., a, b, c, d]) = header;
        let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).ok()?;
        signed.get(..signed.len().checked_sub(length)?)
    };
    end().unwrap_or(module)
}

/// Whether the kernel has the module in `file`, built in or loaded, as far as sysfs and procfs show. Loaded modules and most
/// built-in ones have a folder in `/sys/module`, file systems a line in `/proc/filesystems`. Loading a module twice is harmless, so
/// a miss does not matter.
fn is_present(file: &str, filesystems: &str, modules: &Path) -> bool {
    let name = file.trim_end_matches(".ko").replace('-', "_");
    modules.join(&name).is_dir() || filesystems.lines().any(|line| line.split_whitespace().next_back() == Some(&name))
}

fn parse_order(text: &str) -> Result<Vec<&str>, ModuleError> {
    let lines = (1..).zip(text.lines().map(str::trim)).filter(|(_, name)| !name.is_empty());
    lines
        .map(|(line, name)| {
            let is_file_name = name.ends_with(".ko") && !name.contains('/');
            if is_file_name { Ok(name) } else { Err(ModuleError::Name { line, name: name.to_owned() }) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{is_present, parse_order, unsigned};

    #[test]
    fn signature_is_taken_off() {
        let end = "\0\0\x02\0\0\0\0\0\0\0\0\x03~Module signature appended~\n";
        for (module, without) in
            [(format!("ELFsig{end}"), "ELF"), (format!("sig{end}"), ""), ("ELF".to_owned(), "ELF"), (String::new(), "")]
        {
            assert_eq!(unsigned(module.as_bytes()), without.as_bytes(), "{module:?}");
        }
        for damaged in [format!("si{end}"), end[1..].to_owned(), format!("ELFsig{end}\n")] {
            assert_eq!(unsigned(damaged.as_bytes()), damaged.as_bytes(), "{damaged:?}");
        }
    }

    #[test]
    fn modules_that_the_kernel_has_are_detected() {
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
    fn module_list_has_one_name_per_line() {
        assert_eq!(parse_order("virtio.ko\n\n virtio_ring.ko \n").unwrap(), ["virtio.ko", "virtio_ring.ko"]);
        assert_eq!(parse_order("").unwrap(), Vec::<&str>::new());
    }

    #[test]
    fn line_other_than_a_module_name_is_rejected() {
        for (text, message) in [
            ("a.ko\n../b.ko\n", "/lib/modules/order line 2 is \"../b.ko\"; expected the name of a .ko file in /lib/modules"),
            ("a.ko.xz\n", "/lib/modules/order line 1 is \"a.ko.xz\"; expected the name of a .ko file in /lib/modules"),
        ] {
            assert_eq!(parse_order(text).unwrap_err().to_string(), message);
        }
    }
}
