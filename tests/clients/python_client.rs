//! The client for Python in `clients/python`: its types, its wheel in a new environment, its own tests, and the example of its pages as a
//! user runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use localregistry::host::support::cache;
use testing::pack::{Bench, PROGRAM, text};
use testing::pages::block;
use testing::vm::succeed;

/// Debian's, which has pytest and mypy.
const PYTHON: &str = "/usr/bin/python3";
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/python");

/// A command in the folder that downloads nothing, and whose tests leave what they leave in the folder `tmp` of the bench.
fn command(bench: &Bench, folder: &Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = testing::program(program);
    for folder in ["tmp", "runtime", "home"] {
        fs::create_dir_all(bench.path(folder)).unwrap();
    }
    command.current_dir(folder).env("TMPDIR", bench.path("tmp")).env("XDG_RUNTIME_DIR", bench.path("runtime"));
    command.env("LOCALREGISTRY", PROGRAM).env("LOCALREGISTRY_CACHE", cache::folder("").unwrap()).env("HOME", bench.path("home"));
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("PIP_NO_INDEX", "1").env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
    command
}

/// An environment with Debian's packages, and the client from its wheel. Returns its Python.
fn installed(bench: &Bench) -> PathBuf {
    // Building writes into the folder of the sources.
    succeed(testing::program("cp").args(["-r", CLIENT]).arg(bench.path("source")));
    let dist = bench.path("dist");
    let mut wheel = command(bench, &bench.path("source"), PYTHON);
    succeed(wheel.args(["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w"]).arg(&dist).arg("."));
    let wheels: Vec<_> = fs::read_dir(&dist).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [wheel] = wheels.as_slice() else { panic!("{wheels:?}") };
    assert_eq!(wheel.file_name().unwrap(), "pytest_localregistry-0.1.0-py3-none-any.whl");
    let venv = bench.path("venv");
    succeed(command(bench, &dist, PYTHON).args(["-m", "venv", "--system-site-packages", "--without-pip"]).arg(&venv));
    let python = venv.join("bin/python");
    let mut install = command(bench, &dist, PYTHON);
    install.args(["-m", "pip", "--python"]).arg(&python).args(["install", "--quiet", "--no-deps"]).arg(wheel);
    succeed(&mut install);
    python
}

/// Runs pytest, which must succeed, and asserts that it has left no file of the client and no run.
fn tests_pass(bench: &Bench, folder: &Path, python: &Path, arguments: &[&str]) {
    let mut tests = command(bench, folder, python);
    tests.args(["-m", "pytest", "-p", "no:cacheprovider", "--basetemp"]).arg(bench.path("basetemp")).args(arguments);
    let output = tests.output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let left = |folder: &str| -> Vec<PathBuf> {
        fs::read_dir(bench.path(folder)).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    };
    assert_eq!((left("tmp"), left("runtime/localregistry")), (Vec::new(), Vec::new()));
}

fn mypy(bench: &Bench, folder: &Path, arguments: &[&str]) {
    let cache = format!("--cache-dir={}", bench.path("mypy").display());
    let output = command(bench, folder, PYTHON).args(["-m", "mypy", "--strict", &cache]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn client_is_typed_and_passes_its_tests() {
    let bench = Bench::default();
    let python = installed(&bench);
    // The oldest Python that it is for.
    mypy(&bench, Path::new(CLIENT), &["--python-version", "3.9", "src"]);
    tests_pass(&bench, Path::new(CLIENT), &python, &["tests"]);
}

#[test]
fn example_of_the_pages_runs_as_it_stands() {
    let bench = Bench::default();
    bench.sample_disk();
    let python = installed(&bench);
    let user = bench.path("user");
    fs::create_dir(&user).unwrap();
    fs::rename(bench.path("disk.erofs"), user.join("images.erofs")).unwrap();
    let example = block("clients/python/README.md", "python");
    assert_eq!(block("docs/launchers.md", "python"), example);
    fs::write(user.join("test_pull.py"), example).unwrap();
    // The types of the wheel are those that its users get.
    mypy(&bench, &user, &["--python-executable", &python.display().to_string(), "test_pull.py"]);
    let start = block("clients/python/README.md", "sh");
    let start = start.lines().last().unwrap().split_once(" pytest ").unwrap().1;
    assert_eq!(start, "--localregistry-disk images.erofs");
    tests_pass(&bench, &user, &python, &start.split(' ').collect::<Vec<_>>());
}
