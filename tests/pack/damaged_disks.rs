//! Every command that reads the names on a disk refuses one whose index, manifests or catalog are damaged, and writes nothing.

use std::fs;

use testing::pack::{hello, text};

/// Replaces the `number`-th `from` in `disk` by `to`, which is as long.
fn replaced(disk: &[u8], number: usize, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let found: Vec<usize> = (0..disk.len()).filter(|at| disk[*at..].starts_with(from)).collect();
    let at = found[number];
    [&disk[..at], to, &disk[at + from.len()..]].concat()
}

#[test]
fn no_command_takes_a_disk_that_inspect_refuses() {
    let (bench, _, manifest) = hello(b"layer");
    bench.pack(&["layout"]);
    let disk = fs::read(bench.path("disk.erofs")).unwrap();
    let hex = manifest.digest.hex();
    // In a manifest, in index.json, and in the first of the files that name the image's digest.
    let cases: [(&str, Vec<u8>); 3] = [
        ("has the content of sha256:", replaced(&disk, 0, b"\"layers\":", b"\"layerz\":")),
        ("index.json", replaced(&disk, 0, b"\"manifests\":", b"\"manifests\"X")),
        ("", replaced(&disk, 0, hex.as_bytes(), "0".repeat(64).as_bytes())),
    ];
    for (message, content) in cases {
        bench.file("bad.erofs", &content);
        let before = bench.everything();
        let commands: [(&[&str], i32); 5] = [
            (&["inspect", "bad.erofs", "--verify"], 1),
            (&["diff", "bad.erofs", "bad.erofs"], 2),
            (&["diff", "disk.erofs", "bad.erofs"], 2),
            (&["diff", "bad.erofs", "layout"], 2),
            (&["trust", "--endpoint", "http://a.test:5000", "--disk", "bad.erofs", "-o", "out"], 1),
        ];
        for (arguments, status) in commands {
            let output = bench.command(&[&["--quiet"], arguments].concat()).output().unwrap();
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(status), "{arguments:?}: {message}: {output:?}");
            assert!(said.contains("bad.erofs") && said.contains(message), "{arguments:?}: {said}");
            assert_eq!(bench.everything(), before, "{arguments:?}: {said}");
        }
    }
}
