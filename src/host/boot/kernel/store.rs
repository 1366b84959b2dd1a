//! The kernels in the cache. Each has a folder `PACKAGE_VERSION`, which gets this name only when it is complete:
//!
//! ```text
//! <cache>/kernel/cloud/linux-image-6.1.0-56-cloud-amd64_6.1.192-2/
//!     boot/vmlinuz-RELEASE …          from the package
//!     lib/modules/RELEASE/            from the package, with depmod's lists
//!     vmlinux                         the bootable ELF
//! <cache>/kernel/own/<digest of image/kernel.config and image/kernel.patch>/linux-source-6.1_6.1.192-2/
//!     boot/config-RELEASE             the config it was built from
//!     lib/modules/RELEASE/            the list of built-in modules
//!     vmlinux                         the bootable ELF; `Image` for 64-bit ARM
//! ```
//!
//! A release has the last form in `lib/localregistry`, with an initramfs beside it.

use std::cmp::Ordering;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Kernel;
use crate::host::support::cache::is_file;

/// Returns the newest complete kernel in `store`, by the version in its folder's name.
pub fn newest(store: &Path) -> Option<Kernel> {
    let folders = fs::read_dir(store).ok()?.flatten();
    let names = folders.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| !name.starts_with('.'));
    let kernels = names.filter_map(|name| Some((version(&name)?.to_owned(), open(&store.join(&name))?)));
    kernels.max_by(|(a, _), (b, _)| compare(a, b)).map(|(_, kernel)| kernel)
}

/// Opens the kernel in `folder` if it is complete.
pub fn open(folder: &Path) -> Option<Kernel> {
    let (release, modules) = release(folder).ok()??;
    let elf = ["vmlinux", "Image"].map(|name| folder.join(name)).into_iter().find(|path| is_file(path))?;
    let initramfs = Some(folder.join("initramfs.cpio")).filter(|path| is_file(path));
    let config = Some(folder.join("boot").join(format!("config-{release}"))).filter(|path| is_file(path));
    is_file(&modules.join("modules.dep")).then_some(Kernel { elf, modules, release, config, initramfs })
}

/// The release in `lib/modules` of an unpacked package, and its folder. `None` unless there is exactly one.
pub fn release(folder: &Path) -> io::Result<Option<(String, PathBuf)>> {
    let entries = fs::read_dir(folder.join("lib/modules"))?.collect::<io::Result<Vec<_>>>()?;
    Ok(match entries.as_slice() {
        [only] => only.file_name().into_string().ok().map(|name| (name, only.path())),
        _ => None,
    })
}

/// The version in a folder's name. Package names and versions have no underscore (Debian policy, 5.6).
fn version(folder: &str) -> Option<&str> {
    folder.rsplit_once('_').map(|(_, version)| version)
}

/// Compares Debian versions: runs of digits by number, other text by character; `~` sorts before everything, even the end (Debian
/// policy, 5.6.12).
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    while !a.is_empty() || !b.is_empty() {
        let (text_a, rest_a) = split(a, |character| !character.is_ascii_digit());
        let (text_b, rest_b) = split(b, |character| !character.is_ascii_digit());
        let (number_a, end_a) = split(rest_a, |character| character.is_ascii_digit());
        let (number_b, end_b) = split(rest_b, |character| character.is_ascii_digit());
        let order = weights(text_a).cmp(weights(text_b)).then_with(|| by_number(number_a, number_b));
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (end_a, end_b);
    }
    Ordering::Equal
}

/// Sort order of characters: `~`, the end, letters, everything else.
fn weights(text: &str) -> impl Iterator<Item = u32> {
    let weight = |character: char| match character {
        '~' => 0,
        letter if letter.is_ascii_alphabetic() => 2 + u32::from(letter),
        other => 0x100 + u32::from(other),
    };
    text.chars().map(weight).chain([1])
}

fn by_number(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|character| !belongs(character)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_in_debian() {
        let ascending = ["6.1", "6.1.9-1", "6.1.176-1~bpo1", "6.1.176-1", "6.1.176-1+b1", "6.1.192-2", "6.12~rc1-1", "6.12.4-1"];
        for (index, a) in ascending.iter().enumerate() {
            for (other, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), index.cmp(&other), "{a} {b}");
            }
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
    }

    #[test]
    fn newest_complete_kernel_is_returned() {
        let store = tempfile::tempdir().unwrap();
        let add = |folder: &str, files: &[&str]| {
            for file in files {
                let path = store.path().join(folder).join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
        };
        assert!(newest(store.path()).is_none());
        assert!(newest(&store.path().join("missing")).is_none());
        add("linux-image-6.1.0-9_6.1.9-1", &["vmlinux", "lib/modules/6.1.0-9/modules.dep"]);
        add("linux-image-6.1.0-10_6.1.10-1", &["vmlinux", "lib/modules/6.1.0-10/modules.dep"]);
        add("linux-image-6.1.0-11_6.1.11-1", &["lib/modules/6.1.0-11/modules.dep"]);
        add("linux-image-6.1.0-12_6.1.12-1", &["vmlinux", "lib/modules/6.1.0-12/modules.order"]);
        add("linux-image-two_6.1.13-1", &["vmlinux", "lib/modules/a/modules.dep", "lib/modules/b/modules.dep"]);
        add(".new-linux-image_7.0-1", &["vmlinux", "lib/modules/7/modules.dep"]);
        add("noversion", &["vmlinux", "lib/modules/7/modules.dep"]);
        let folder = store.path().join("linux-image-6.1.0-10_6.1.10-1");
        let kernel = newest(store.path()).unwrap();
        assert_eq!(kernel.release, "6.1.0-10");
        assert_eq!(kernel.elf, folder.join("vmlinux"));
        assert_eq!(kernel.modules, folder.join("lib/modules/6.1.0-10"));
    }
}
