//! The client for Go in `clients/go`: its own tests, with the race detector, and the example of its pages as a user runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use localregistry::host::support::cache;
use testing::pack::{Bench, PROGRAM, text};
use testing::pages::block;
use testing::vm::succeed;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/go");

/// A command in the folder that downloads nothing, and whose tests leave what they leave in the folder `tmp` of the bench.
fn go(bench: &Bench, folder: &Path, program: &str) -> Command {
    let mut command = testing::program(program);
    for folder in ["tmp", "runtime"] {
        fs::create_dir_all(bench.path(folder)).unwrap();
    }
    command.current_dir(folder).env("TMPDIR", bench.path("tmp")).env("XDG_RUNTIME_DIR", bench.path("runtime"));
    command.env("LOCALREGISTRY", PROGRAM).env("LOCALREGISTRY_CACHE", cache::folder("").unwrap());
    command.env("GOPROXY", "off").env("GOFLAGS", "-mod=mod").env("GOPATH", bench.path("go"));
    command.env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go"));
    command
}

/// Runs `go test`, which must succeed, and asserts that it has left no file and no run.
fn tests_pass(bench: &Bench, folder: &Path, arguments: &[&str]) {
    let output = go(bench, folder, "go").arg("test").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let left = |folder: &str| -> Vec<PathBuf> {
        fs::read_dir(bench.path(folder)).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    };
    assert_eq!((left("tmp"), left("runtime/localregistry")), (Vec::new(), Vec::new()));
}

#[test]
fn client_passes_its_tests() {
    let bench = Bench::default();
    let folder = Path::new(CLIENT);
    assert_eq!(succeed(go(&bench, folder, "gofmt").args(["-l", "."])), "");
    succeed(go(&bench, folder, "go").args(["vet", "./..."]));
    // The standard library, and nothing else.
    assert_eq!(succeed(go(&bench, folder, "go").args(["list", "-m", "all"])), "localregistry\n");
    tests_pass(&bench, folder, &["-race", "-count=1", "./..."]);
}

#[test]
fn example_of_the_pages_runs_as_it_stands() {
    let bench = Bench::default();
    bench.sample_disk();
    let user = bench.path("user");
    fs::create_dir(&user).unwrap();
    fs::rename(bench.path("disk.erofs"), user.join("images.erofs")).unwrap();
    let example = block("clients/go/README.md", "go");
    assert_eq!(block("docs/launchers.md", "go"), example);
    fs::write(user.join("pull_test.go"), example).unwrap();
    succeed(go(&bench, &user, "go").args(["mod", "init", "e2e"]));
    let install = block("clients/go/README.md", "sh").replace("/path/to/localregistry", ROOT);
    let install = install.lines().next().unwrap();
    assert!(install.starts_with("go mod edit "), "{install}");
    succeed(go(&bench, &user, "sh").args(["-c", install]));
    tests_pass(&bench, &user, &["./..."]);
}
