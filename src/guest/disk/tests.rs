//! Which disks are rejected, and the words of each error.

use super::device::tests::device;
use crate::config::disks::Pattern;
use crate::disk::superblock::HEAD_LEN;
use crate::guest::disk::*;

fn rejection(start: &[u8], bytes: u64) -> (&'static str, String) {
    let error = examine(&device("vda", "images", None), bytes, start).unwrap_err();
    (error.code(), error.to_string())
}

#[test]
fn disk_without_a_file_system_is_rejected() {
    let expected = "/dev/vda (serial \"images\"), 1048576 bytes, has no known file system; \
                    expected EROFS, ext4 or squashfs, as `localregistry pack` makes";
    assert_eq!(rejection(&[0; HEAD_LEN], 1 << 20), ("BAD_DISK", expected.to_owned()));
    assert_eq!(rejection(b"", 1 << 20), ("BAD_DISK", expected.to_owned()));
}

#[test]
fn disk_shorter_than_its_file_system_is_rejected() {
    let mut start = [0; HEAD_LEN];
    start[..4].copy_from_slice(b"hsqs");
    start[40..48].copy_from_slice(&5000_u64.to_le_bytes());
    let expected = "/dev/vda (serial \"images\") has 4096 bytes; its squashfs file system has 5000: copy the disk again";
    assert_eq!(rejection(&start, 4096), ("TRUNCATED", expected.to_owned()));
    assert!(examine(&device("vda", "images", None), 5120, &start).is_ok());
}

#[test]
fn missing_disk_error_lists_the_disks_found() {
    let missing =
        |by: DiskBy, found: &[Device]| DiskError::Missing { by, wait: Duration::from_secs(5), found: found.to_vec() }.to_string();
    assert_eq!(
        missing(DiskBy::Serial(Pattern::parse("images")), &[]),
        "no disk with the serial \"images\" after 5 s; virtio disks found: none; \
         give QEMU -device virtio-blk-pci,serial=images"
    );
    assert_eq!(
        missing(DiskBy::Serial(Pattern::parse("images")), &[device("vda", "root", None), device("vdb", "", None)]),
        "no disk with the serial \"images\" after 5 s; virtio disks found: vda (\"root\"), vdb (\"\"); \
         give QEMU -device virtio-blk-pci,serial=images"
    );
    assert_eq!(
        missing(DiskBy::Label(Pattern::parse("images")), &[device("vda", "root", Some("other"))]),
        "no disk with the label \"images\" after 5 s; virtio disks found: vda (\"root\", label \"other\"); \
         pack one with --label images, or give QEMU another -device virtio-blk-pci"
    );
    assert_eq!(
        missing(DiskBy::Device("vdb".into()), &[device("vda", "root", None)]),
        "no disk /dev/vdb after 5 s; virtio disks found: vda (\"root\"); give QEMU another -device virtio-blk-pci"
    );
}
