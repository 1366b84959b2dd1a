//! Disks: file systems, catalogs and layouts.

use std::collections::HashMap;
use std::io;

use bytes::Bytes;
use localregistry::disk::catalog::Catalog;
use localregistry::disk::layout::{self, OpenFile, ReadOptions, Tree, Unnamed};
use localregistry::host::inspect::look::{CheckedDisk, Look};
use localregistry::host::support::interrupt::Interrupt;
use localregistry::oci::Digest;

/// A disk with any file system, or an archive of a layout.
pub fn disk(data: &[u8]) {
    let file = super::files::file(data);
    for allow_missing in [false, true] {
        let Ok(found) = CheckedDisk::open(file.path(), allow_missing, &Interrupt::default()) else { continue };
        for blob in found.served.catalog.blobs() {
            let opened = found.disk.tree.open(&blob.digest.blob_path());
            let size = opened.expect("a blob of a disk without faults").size;
            assert_eq!(size, blob.size, "{}", blob.digest);
        }
    }
}

/// An encoded catalog.
pub fn catalog(data: &[u8]) {
    let Ok(catalog) = Catalog::decode(Bytes::copy_from_slice(data)) else { return };
    every_row(&catalog);
    let encoded = catalog.encode();
    let again = Catalog::decode(encoded.clone().into()).expect("its own encoding");
    assert!(again == catalog && again.encode() == encoded);
    if let Ok((merged, _)) = localregistry::disk::catalog::merge(&[&catalog, &again]) {
        assert_eq!((merged.tag_count(), merged.blob_totals()), (catalog.tag_count(), catalog.blob_totals()));
    }
}

/// Finds everything that a catalog lists by the ways of a request.
fn every_row(catalog: &Catalog) {
    for repository in catalog.repositories() {
        let name = catalog.repository_name(repository);
        assert_eq!(catalog.repository(name), Some(repository), "{name}");
        for blob in catalog.blobs_of(repository) {
            let digest = catalog.blob(blob).expect("a blob of a repository").digest;
            assert_eq!(catalog.blob_in(repository, &digest), Some(blob));
            let _ = catalog.referrers(repository, &digest).count();
        }
        for (tag, _) in catalog.tags_after(repository, None) {
            assert!(catalog.tag(repository, tag).is_some(), "{name}:{tag}");
        }
        let _ = (catalog.every_tag(repository), catalog.left_out_of(repository).count());
    }
}

/// A layout: each line is a blob, and the last line is `index.json`. In a line, `@N` is the digest of line N (0 to 9), and `#N` its size.
pub fn layout(data: &[u8]) {
    let tree = Lines::new(data);
    let interrupt = Interrupt::default();
    for allow_missing in [false, true] {
        let options = ReadOptions { unnamed: Unnamed::Default, verify: true, allow_missing };
        let read = layout::images(&tree, options);
        if let Ok(read) = &read {
            let catalog = layout::build_catalog(&read.images);
            if let Ok(catalog) = &catalog {
                every_row(catalog);
                let again = Catalog::decode(catalog.encode().into()).expect("its own encoding");
                assert!(again == *catalog);
            }
        }
        let served = Look::new(&tree, &interrupt).and_then(|mut look| look.served(&tree, allow_missing));
        if served.is_ok() {
            assert!(read.is_ok(), "served, and not read: {:?}", read.err());
        }
    }
}

/// A tree in memory.
struct Lines(HashMap<String, Vec<u8>>);

impl Lines {
    fn new(data: &[u8]) -> Self {
        let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
        let mut known: Vec<(Digest, usize)> = Vec::new();
        let mut files = HashMap::from([("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())]);
        for (number, line) in lines.iter().enumerate() {
            let content = filled(line, &known);
            if number + 1 == lines.len() {
                files.insert("index.json".to_owned(), content);
            } else {
                let digest = Digest::sha256_of(&content);
                known.push((digest, content.len()));
                files.insert(digest.blob_path(), content);
            }
        }
        Self(files)
    }
}

fn filled(line: &[u8], known: &[(Digest, usize)]) -> Vec<u8> {
    let mut content = Vec::new();
    let mut bytes = line.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let number = bytes.peek().and_then(|next| char::from(*next).to_digit(10));
        match (byte, number.and_then(|number| known.get(number as usize))) {
            (b'@', Some((digest, _))) => content.extend(digest.to_string().bytes()),
            (b'#', Some((_, size))) => content.extend(size.to_string().bytes()),
            _ => {
                content.push(byte);
                continue;
            }
        }
        bytes.next();
    }
    content
}

impl Tree for Lines {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        let content = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(OpenFile { reader: Box::new(content.as_slice()), size: content.len() as u64 })
    }
}
