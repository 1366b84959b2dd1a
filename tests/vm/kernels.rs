//! Debian's kernels other than the default, on the boards they are for, under TCG. Each serves a pull by a real client and shuts
//! down gracefully. `own_kernel.rs` tests the project's kernel.

use testing::boards::{release, serves};
use testing::pack::Bench;

#[test]
fn debian_full_kernel_serves() {
    let ended = serves(&Bench::default(), &["--flavor", "full"]);
    let release = release(&ended);
    assert!(release.ends_with("-amd64") && !release.ends_with("-cloud-amd64"), "{release}");
}

#[test]
fn debian_cloud_kernel_serves_on_microvm() {
    let ended = serves(&Bench::default(), &["--flavor", "cloud", "--machine", "microvm"]);
    let release = release(&ended);
    assert!(release.ends_with("-cloud-amd64"), "{release}");
}
