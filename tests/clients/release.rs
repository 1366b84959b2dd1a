//! `image/release` with programs that are already built: the files of a release, their reproducibility, the bill of materials, and
//! that programs and kernel work together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use localregistry::host::support::cache;
use serde_json::{Value, json};
use testing::deployed::{Deployed, static_server};
use testing::pack::{Bench, PROGRAM, digest_of, text};
use testing::vm::succeed;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The guest's program, as `qemu/build` leaves it.
fn init() -> PathBuf {
    static_server().parent().unwrap().with_file_name("release/localregistry-init")
}

fn release(bench: &Bench, arguments: &[&str]) -> Output {
    let mut command = testing::program(Path::new(ROOT).join("image/release"));
    command.args(arguments).current_dir(bench.path("")).env("LOCALREGISTRY_CACHE", cache::folder("").unwrap());
    command.stdin(Stdio::null()).output().unwrap()
}

/// Runs `image/release` into the folder `name`.
fn made(bench: &Bench, name: &str) -> PathBuf {
    let (host, init) = (static_server().display().to_string(), init().display().to_string());
    let output = release(bench, &["-o", name, "--host", &host, "--init", &init]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), format!("{}\n", bench.path(name).display()));
    bench.path(name)
}

/// Digest of each file by path.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let found = succeed(testing::program("find").args([".", "-type", "f", "-printf", "%P\\n"]).current_dir(folder));
    found.lines().map(|path| (path.to_owned(), digest_of(&folder.join(path)))).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Name and version of the crates in a program with this feature, according to cargo.
fn linked(feature: &str) -> BTreeSet<String> {
    let mut cargo = testing::program(env!("CARGO"));
    cargo.current_dir(ROOT).args([
        "tree",
        "--locked",
        "--offline",
        "--edges",
        "normal,no-proc-macro",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    cargo.args(["--target", "x86_64-unknown-linux-musl", "--no-default-features", "--features", feature]);
    let words = |line: &str| line.split(' ').take(2).map(str::to_owned).collect::<Vec<_>>();
    let crates = succeed(&mut cargo);
    crates
        .lines()
        // Behind the version of this project's own crates is their folder.
        .filter(|line| !line.contains("(/"))
        .map(|line| words(line).join(" ").replacen(" v", " ", 1))
        .collect()
}

#[test]
fn release_is_complete_and_reproducible() {
    let bench = Bench::default();
    let folder = made(&bench, "one");
    let found = files(&folder);
    fs::create_dir(bench.path("other")).unwrap();
    assert_eq!(files(&made(&bench, "other")), found);
    let beside: Vec<_> = fs::read_dir(bench.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside.len(), 2, "{beside:?}");

    // Without names that depend on content, the toolchain's list of licences, and the man pages of subcommands.
    const OTHERS: [&str; 3] = ["cluster/images/blobs/", "licences/rust/licenses/", "share/man/man1/localregistry-"];
    let named = |path: &&String| !OTHERS.iter().any(|folder| path.starts_with(folder));
    let listing = found.keys().filter(named).map(|path| format!("{path}\n")).collect::<String>();
    let golden = Path::new(ROOT).join("tests/golden/release.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &listing).unwrap();
    }
    assert_eq!(listing, fs::read_to_string(&golden).unwrap(), "UPDATE_GOLDEN=1 writes {}", golden.display());

    let sums = fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    assert_eq!(sums.lines().count(), found.len() - 1, "every file except the list itself");
    succeed(testing::program("sha256sum").args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(&folder));
    for program in ["localregistry", "localregistry-init"] {
        let said = succeed(testing::program(folder.join("bin").join(program)).arg("--version"));
        assert_eq!(said, format!("{program} {}\n", env!("CARGO_PKG_VERSION")));
    }
    contents_are_told(&folder, &found);
    completions_are_read(&folder);
}

/// Asserts that the bill of materials and the notices name exactly the content of the files.
fn contents_are_told(folder: &Path, found: &BTreeMap<String, String>) {
    let bill = json(&folder.join("sbom.spdx.json"));
    assert_eq!((&bill["spdxVersion"], &bill["dataLicense"]), (&json!("SPDX-2.3"), &json!("CC0-1.0")));
    let list = |name: &str| bill[name].as_array().unwrap().clone();
    let packages: BTreeMap<String, Value> =
        list("packages").into_iter().map(|one| (one["SPDXID"].as_str().unwrap().to_owned(), one)).collect();
    let described: BTreeMap<String, String> = list("files")
        .iter()
        .map(|file| {
            let sums = file["checksums"].as_array().unwrap();
            let sha256 =
                sums.iter().find(|sum| sum["algorithm"] == "SHA256").unwrap()["checksumValue"].as_str().unwrap().to_owned();
            (file["fileName"].as_str().unwrap().trim_start_matches("./").to_owned(), format!("sha256:{sha256}"))
        })
        .collect();
    let shipped = found.iter().filter(|(path, _)| path.starts_with("bin/") || path.starts_with("boot/"));
    assert_eq!(described, shipped.map(|(path, digest)| (path.clone(), digest.clone())).collect());

    let relations = list("relationships");
    let related = |element: &str, kind: &str| -> BTreeSet<String> {
        let of = |one: &&Value| one["spdxElementId"] == element && one["relationshipType"] == kind;
        relations.iter().filter(of).map(|one| one["relatedSpdxElement"].as_str().unwrap().to_owned()).collect()
    };
    let named = |ident: &String| {
        format!("{} {}", packages[ident]["name"].as_str().unwrap(), packages[ident]["versionInfo"].as_str().unwrap())
    };
    let notices = fs::read_to_string(folder.join("licences/crates.txt")).unwrap();
    for (file, feature) in [("localregistry", "host"), ("localregistry-init", "guest")] {
        let all = related(&format!("SPDXRef-File-bin-{file}"), "STATIC_LINK");
        let crates: BTreeSet<String> = all.iter().filter(|ident| ident.starts_with("SPDXRef-Crate-")).map(named).collect();
        let expected = linked(feature);
        assert!(expected.len() > 80, "{expected:?}");
        assert_eq!(crates, expected);
        let others: BTreeSet<&str> =
            all.iter().map(String::as_str).filter(|ident| !ident.starts_with("SPDXRef-Crate-")).collect();
        assert_eq!(others, BTreeSet::from(["SPDXRef-musl", "SPDXRef-rust-std"]));
        for one in &expected {
            assert!(notices.contains(&format!("\n{one}: ")), "the notices lack {one}");
        }
    }
    // Each crate has the digest of its archive, and no licence is unknown.
    for (ident, package) in &packages {
        assert!(
            !package["licenseDeclared"].as_str().unwrap().is_empty() && package["licenseDeclared"] != "NOASSERTION",
            "{ident}"
        );
        assert_eq!(package["checksums"].is_array(), ident.starts_with("SPDXRef-Crate-"), "{ident}");
    }
    let ring = &packages.iter().find(|(ident, _)| ident.starts_with("SPDXRef-Crate-ring-")).unwrap().1;
    assert_eq!(ring["externalRefs"][0]["referenceLocator"], format!("pkg:cargo/ring@{}", ring["versionInfo"].as_str().unwrap()));
    // Compiled C code in a crate has its own licence.
    for holder in ["Microsoft Corporation, Daan Leijen", "Meta Platforms, Inc. and affiliates", "XZ Utils Licensing"] {
        assert!(notices.contains(holder), "{holder}");
    }

    let linux = &packages["SPDXRef-linux"];
    let version = linux["versionInfo"].as_str().unwrap();
    assert_eq!(linux["licenseDeclared"], "GPL-2.0-only");
    let text = |name: &str| fs::read_to_string(folder.join("licences").join(name)).unwrap();
    let source = format!("Its source is Debian's source package linux, version {version} (apt-get source linux={version})");
    assert!(text("linux/SOURCE").contains(&source), "{}", text("linux/SOURCE"));
    assert!(text("linux/GPL-2").contains("GNU GENERAL PUBLIC LICENSE\n                       Version 2, June 1991"));
    assert!(text("linux/copyright").contains("Linus Torvalds"));
    assert!(text("musl/copyright").contains("Rich Felker"));
    assert!(text("rust/COPYRIGHT-library.html").contains("std"));
    assert!(related("SPDXRef-File-boot-vmlinux", "GENERATED_FROM").contains("SPDXRef-linux"));
}

/// Asserts that bash accepts the completions and completes a subcommand with them.
fn completions_are_read(folder: &Path) {
    let script = r#"source "$1"
        COMP_WORDS=(localregistry depl) COMP_CWORD=1
        _localregistry localregistry depl localregistry
        echo "${COMPREPLY[@]}""#;
    let mut bash = testing::program("bash");
    bash.args(["-c", script, "bash"]).arg(folder.join("share/completions/bash/localregistry"));
    assert_eq!(succeed(&mut bash), "deploy\n");
}

#[test]
fn released_programs_and_kernel_work_together() {
    let bench = Bench::default();
    let folder = made(&bench, "out");
    let program = folder.join("bin/localregistry");
    let run = |arguments: &[&str]| {
        let mut released = testing::program(&program);
        released.args(arguments).current_dir(bench.path("")).env("XDG_RUNTIME_DIR", bench.path("runtime"));
        succeed(&mut released)
    };
    fs::create_dir(bench.path("runtime")).unwrap();
    run(&["--quiet", "sample", "-o", "sample"]);
    run(&["--quiet", "pack", "sample", "-o", "disk.erofs"]);
    let boot = ["--kernel", "out/boot/vmlinux", "--initramfs", "out/boot/initramfs.cpio"];
    let start =
        ["run", "disk.erofs", "--accel", "tcg", "--json", "--quiet", "--detach", "--name", "released", "--timeout", "600"];
    let ready: Value = serde_json::from_str(&run(&[&start[..], &boot].concat())).unwrap();
    let url = format!("{}/v2/_catalog", ready["endpoint"].as_str().unwrap());
    let listed = succeed(testing::program("curl").args(["--silent", "--fail", "--cacert", ready["ca"].as_str().unwrap(), &url]));
    assert_eq!(listed.trim(), r#"{"repositories":["test/hello"]}"#);
    assert_eq!(run(&["stop", "released"]), "released shut down cleanly\n");

    // The cluster's machine boots the same files, and its replicas run the same program.
    let cluster = Deployed(folder.join("cluster"));
    let machine = cluster.object("kubevirt.yaml", "VirtualMachine");
    let kernel = &machine["spec"]["template"]["spec"]["domain"]["firmware"]["kernelBoot"]["container"];
    let image = cluster.image(&kernel["image"]);
    for (path, file) in [("kernelPath", "boot/vmlinux"), ("initrdPath", "boot/initramfs.cpio")] {
        assert!(image.file(kernel[path].as_str().unwrap()) == fs::read(folder.join(file)).unwrap(), "{file}");
    }
    let deployment = cluster.object("kubernetes.yaml", "Deployment");
    let image = cluster.image(&deployment["spec"]["template"]["spec"]["containers"][0]["image"]);
    assert!(image.file("/localregistry") == fs::read(&program).unwrap());
}

#[test]
fn invalid_release_requests_are_named_and_leave_no_files() {
    let bench = Bench::default();
    fs::create_dir(bench.path("full")).unwrap();
    bench.file("full/file", b"mine");
    bench.file("file", b"mine");
    let init = init().display().to_string();
    let full = |name: &str| {
        let path = bench.path(name);
        format!("image/release: {} is there already, and is no empty folder; a new or an empty one is expected\n", path.display())
    };
    let usage = "usage: image/release [-o DIR] [--host PROGRAM --init PROGRAM]\n".to_owned();
    let program = ["--host", PROGRAM, "--init", &init];
    for (arguments, status, message) in [
        ([&["-o", "full"], &program[..]].concat(), 1, full("full")),
        ([&["-o", "file"], &program[..]].concat(), 1, full("file")),
        (vec!["-o"], 2, usage.clone()),
        (vec!["-o", "out", "--host", PROGRAM], 2, usage.clone()),
        (vec!["--other", "x"], 2, usage),
    ] {
        let before = bench.everything();
        let output = release(&bench, &arguments);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(status), message), "{arguments:?}");
        assert_eq!(bench.everything(), before, "{arguments:?}");
    }
    // A dynamically linked program cannot be the server's image.
    let before = bench.everything();
    let output = release(&bench, &[&["-o", "out"], &program[..]].concat());
    let said = text(&output.stderr);
    assert!(said.starts_with("localregistry: there is no static localregistry: neither "), "{said}");
    assert_eq!((output.status.code(), bench.everything()), (Some(1), before));
}
