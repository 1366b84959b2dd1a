//! Images made byte by byte, for cases that no tool makes quickly or at all. The tests of `inspect` read images of `mkfs.erofs`.

use std::os::unix::fs::FileExt;

use super::*;

const BLOCK: u64 = 4096;

/// An image whose root, inode 0, has one entry: `file`, inode 2. The inodes are in block 1, the root's content in block 2.
fn image(inode: &[u8], len: u64) -> ErofsTree {
    image_with(0, inode, len)
}

/// As [`image`], with these features (`feature_incompat` of `struct erofs_super_block`).
fn image_with(features: u32, inode: &[u8], len: u64) -> ErofsTree {
    let file = tempfile::tempfile().unwrap();
    let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).unwrap();
    put(1024, &0xE0F5_E1E2_u32.to_le_bytes());
    put(1024 + 12, &[12]);
    put(1024 + 40, &1_u32.to_le_bytes());
    put(1024 + 80, &features.to_le_bytes());
    put(BLOCK + 4, &0o040_555_u16.to_le_bytes());
    put(BLOCK + 8, &16_u32.to_le_bytes());
    put(BLOCK + 16, &2_u32.to_le_bytes());
    put(BLOCK + 64, inode);
    put(2 * BLOCK, &[2, 0, 0, 0, 0, 0, 0, 0, 12, 0, 1, 0]);
    put(2 * BLOCK + 12, b"file");
    file.set_len(len).unwrap();
    ErofsTree::open(file, len).unwrap()
}

/// An extended inode of a regular file.
fn inode(layout: u16, size: u64, block: u32) -> Vec<u8> {
    let mut inode = vec![0; 64];
    inode[..2].copy_from_slice(&(layout << 1 | 1).to_le_bytes());
    inode[4..6].copy_from_slice(&0o100_444_u16.to_le_bytes());
    inode[8..16].copy_from_slice(&size.to_le_bytes());
    inode[16..20].copy_from_slice(&block.to_le_bytes());
    inode
}

fn error(image: &ErofsTree) -> String {
    match image.open("file") {
        Ok(mut content) => content.reader.read_to_end(&mut Vec::new()).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn file_larger_than_4_gib_is_read_at_its_end() {
    let size = (5 << 30) + 3;
    let tree = image(&inode(0, size, 3), 3 * BLOCK + size);
    tree.volume.file.write_all_at(b"end", 3 * BLOCK + (5 << 30)).unwrap();
    assert_eq!(tree.open("file").unwrap().size, size);
    let mut end = FileReader { volume: &tree.volume, inode: tree.find("file").unwrap().unwrap(), at: size - 3 };
    let mut content = Vec::new();
    end.read_to_end(&mut content).unwrap();
    assert_eq!(content, b"end");
}

#[test]
fn chunks_may_be_holes() {
    // Chunks of 2 blocks. The table after the inode has a hole and block 3.
    let table = [0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0];
    let tree = image(&[inode(4, 2 * BLOCK + 5, 1), table.to_vec()].concat(), 5 * BLOCK);
    tree.volume.file.write_all_at(b"chunk", 3 * BLOCK).unwrap();
    let mut content = Vec::new();
    tree.open("file").unwrap().reader.read_to_end(&mut content).unwrap();
    assert!(content[..2 * BLOCK as usize].iter().all(|byte| *byte == 0));
    assert_eq!(&content[2 * BLOCK as usize..], b"chunk");
}

#[test]
fn damaged_and_unsupported_inodes_are_refused() {
    let (len, far) = (4 * BLOCK, u32::MAX);
    let damaged = |damage: &str| format!("it is damaged: {damage}");
    for (bytes, expected) in [
        (inode(0, 4097, 3), damaged("it refers to 4097 bytes at 12288, past its end at 16384")),
        (inode(0, u64::MAX, 3), damaged(&format!("it refers to {} bytes at 12288, past its end at 16384", u64::MAX))),
        (inode(0, 1, far), damaged("it refers to 1 bytes at 17592186040320, past its end at 16384")),
        (inode(2, 2 * BLOCK, 3), damaged("inode 2 has inline content that crosses a block boundary")),
        (inode(4, 1, 0x40), damaged("inode 2 has an unknown chunk format")),
        (inode(5, 1, 0), damaged("inode 2 has an unknown data layout")),
        (inode(3, 1, 0), damaged("inode 2 has an unknown data layout")),
    ] {
        assert_eq!(error(&image(&bytes, len)), expected);
    }
    let mut compressed = inode(3, 1, 0);
    assert_eq!(
        error(&image_with(1, &compressed, len)),
        "the file is compressed; an uncompressed image is expected: make it without mkfs.erofs's option -z"
    );
    compressed[4..6].copy_from_slice(&0o120_777_u16.to_le_bytes());
    compressed[0] = 1;
    assert_eq!(error(&image(&compressed, len)), "it is not a regular file");
    let device = [inode(4, 1, 0x20), vec![0, 0, 1, 0, 3, 0, 0, 0]].concat();
    assert_eq!(
        error(&image_with(8, &device, len)),
        "the file's content is on another device; a single image is expected: make it without mkfs.erofs's option --blobdev"
    );
}

#[test]
fn directory_of_many_blocks_is_searched() {
    // Three blocks of two entries each, and one of one entry.
    let names = ["a", "b", "bb", "c", "d", "dd", "e"];
    let mut content = DirectoryEntries::new(64);
    for (number, pair) in names.chunks(2).enumerate() {
        content.add_block(&directory_block(pair, 2 * number as u64)).unwrap();
    }
    for (number, name) in names.iter().enumerate() {
        assert_eq!(content.find(name), Some(number as u64), "{name}");
    }
    for name in ["", "A", "aa", "bbb", "f", "cc"] {
        assert_eq!(content.find(name), None, "{name}");
    }
    assert_eq!(DirectoryEntries::new(64).find("a"), None);
}

#[test]
fn directory_out_of_order_is_damaged() {
    let mut content = DirectoryEntries::new(64);
    assert_eq!(content.add_block(&directory_block(&["b", "a"], 0)), Err("is a directory with names out of order"));
    content.add_block(&directory_block(&["a", "b"], 0)).unwrap();
    // A block that is listed twice.
    assert_eq!(content.add_block(&directory_block(&["a", "b"], 0)), Err("is a directory with names out of order"));
    content.add_block(&directory_block(&["c"], 0)).unwrap();
    assert_eq!(content.find("c"), Some(0));
}

/// A block of 64 bytes with these names, whose inodes have numbers from `first` on.
fn directory_block(names: &[&str], first: u64) -> Vec<u8> {
    let (mut entries, mut text) = (Vec::new(), Vec::new());
    for (number, name) in (first..).zip(names) {
        entries.extend_from_slice(&number.to_le_bytes());
        entries.extend_from_slice(&u16::try_from(names.len() * 12 + text.len()).unwrap().to_le_bytes());
        entries.extend_from_slice(&[0, 0]);
        text.extend_from_slice(name.as_bytes());
    }
    let mut block = [entries, text].concat();
    block.resize(64, 0);
    block
}
