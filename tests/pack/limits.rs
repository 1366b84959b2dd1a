//! Under a limit of the system a command fails with one message, and leaves nothing behind.

use std::fs;

use testing::layout::Layout;
use testing::pack::{Bench, PROGRAM, text};

/// Runs each command that writes files under `ulimit LIMIT`, and returns how many succeeded.
fn under(limit: &str) -> usize {
    let bench = Bench::default();
    let mut layout = Layout::default();
    layout.image("docker.io/library/hello:1", &[7; 70_000]);
    bench.layout("layout", &layout);
    bench.pack(&["layout"]);
    let before = bench.everything();
    let commands = [
        &["pack", "layout", "-o", "out"][..],
        &["pack", "layout", "--cache", "cache", "-o", "out"],
        &["inspect", "disk.erofs", "--export", "out"],
        &["trust", "--endpoint", "http://a.test:5000", "--disk", "disk.erofs", "-o", "out"],
        &["manual", "-o", "out"],
    ];
    let ended_well = commands.iter().filter(|arguments| {
        let mut shell = testing::program("sh");
        shell.args(["-c", "ulimit $0 && exec \"$@\"", limit, PROGRAM]).args(**arguments).current_dir(bench.path("."));
        let output = shell.output().unwrap();
        let (what, said) = (format!("ulimit {limit}: {arguments:?}"), text(&output.stderr));
        assert!(matches!(output.status.code(), Some(0 | 1)), "{what}: {output:?}");
        assert!(!said.contains("internal error"), "{what}: {said}");
        let failed = output.status.code() == Some(1);
        assert_eq!(
            said.lines().filter(|line| line.starts_with("localregistry: ")).count(),
            usize::from(failed),
            "{what}: {said}"
        );
        for path in ["out", "cache"].map(|name| bench.path(name)) {
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else if path.exists() {
                assert!(!failed, "{what}: {said}");
                fs::remove_file(path).unwrap();
            }
        }
        assert_eq!(bench.everything(), before, "{what}: {said}");
        !failed
    });
    ended_well.count()
}

#[test]
fn size_of_files() {
    assert_eq!(under("-f 0"), 0);
    // In blocks of 512 bytes.
    under("-f 8");
    assert_eq!(under("-f 20000"), 5);
}

#[test]
fn file_descriptors() {
    // Three are open from the start.
    for count in 4..12 {
        under(&format!("-n {count}"));
    }
    assert_eq!(under("-n 64"), 5);
}
