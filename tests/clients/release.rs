//! `image/release` with programs that are already built: the files of a release, their reproducibility and signature, the bill of
//! materials; and each of them on a system that has nothing else: a container of Debian with QEMU, podman with an empty store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use localregistry::host::support::cache;
use serde_json::{Value, json};
use testing::deployed::{Deployed, static_server};
use testing::pack::{Bench, PROGRAM, digest_of, text};
use testing::pages::blocks;
use testing::podman::podman;
use testing::private::privately;
use testing::vm::succeed;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const NAME: &str = concat!("localregistry-", env!("CARGO_PKG_VERSION"), "-linux-x86_64");

/// The guest's program, as `qemu/build` leaves it.
fn init() -> PathBuf {
    static_server().parent().unwrap().with_file_name("release/localregistry-init")
}

fn release(bench: &Bench, arguments: &[&str]) -> Output {
    let mut command = testing::program(Path::new(ROOT).join("image/release"));
    command.args(arguments).current_dir(bench.path("")).env("LOCALREGISTRY_CACHE", cache::folder("").unwrap());
    command.stdin(Stdio::null()).output().unwrap()
}

/// A release that the tests share.
fn shared() -> &'static Path {
    static MADE: LazyLock<PathBuf> = LazyLock::new(|| {
        // Nothing removes it at the end of the process; the next run does.
        let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("release");
        let _absent = fs::remove_dir_all(&base);
        fs::create_dir_all(&base).unwrap();
        let bench = Bench::default();
        let folder = made(&bench, base.join("files").to_str().unwrap());
        fs::copy(bench.path("key"), base.join("key")).unwrap();
        folder
    });
    &MADE
}

/// A static program without what a debugger reads: most of its bytes, and of the time to pack them.
fn stripped(bench: &Bench, program: &Path, name: &str) -> String {
    let path = bench.path(name);
    succeed(testing::program("strip").arg("-o").arg(&path).arg(program));
    path.display().to_string()
}

/// Runs `image/release` into the folder `name`, signed with `key`.
fn made(bench: &Bench, name: &str) -> PathBuf {
    if !bench.path("key").exists() {
        succeed(testing::program("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(bench.path("key")));
    }
    let (host, init) = (stripped(bench, &static_server(), "host"), stripped(bench, &init(), "init"));
    let output = release(bench, &["-o", name, "--key", "key", "--host", &host, "--init", &init]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), format!("{}\n", bench.path(name).display()));
    bench.path(name)
}

/// Unpacks the archive of the release in `folder` into `to`.
fn unpacked(folder: &Path, to: &Path) -> PathBuf {
    succeed(testing::program("tar").arg("-xzf").arg(folder.join(format!("{NAME}.tar.gz"))).arg("-C").arg(to));
    to.join(NAME)
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
fn release_is_complete_reproducible_and_signed() {
    let bench = Bench::default();
    let folder = shared();
    let found = files(folder);
    fs::create_dir(bench.path("other")).unwrap();
    bench.file("key", &fs::read(folder.with_file_name("key")).unwrap());
    fs::set_permissions(bench.path("key"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(files(&made(&bench, "other")), found);
    let beside: BTreeSet<_> = fs::read_dir(bench.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["host", "init", "key", "other"].map(Into::into).into());

    succeed(testing::program("sha256sum").args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(folder));
    let sums = fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    assert_eq!(sums.lines().count(), found.len() - 2, "every file except the list and its signature");
    signature_is_verified(&bench, folder);

    let archive = unpacked(folder, &bench.path(""));
    let inside = files(&archive);
    // Without the toolchain's list of licences, and the man pages of subcommands.
    const OTHERS: [&str; 2] = ["licences/rust/licenses/", "share/man/man1/localregistry-"];
    let named = |path: &&String| !OTHERS.iter().any(|folder| path.starts_with(folder));
    let linux = fs::read_dir(archive.join("lib/localregistry/lib/modules")).unwrap().next().unwrap().unwrap().file_name();
    let listed = |path: &String| format!("{}\n", path.replace(linux.to_str().unwrap(), "RELEASE"));
    let listing = found.keys().chain(inside.keys().filter(named)).map(listed).collect::<String>();
    let golden = Path::new(ROOT).join("tests/golden/release.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &listing).unwrap();
    }
    assert_eq!(listing, fs::read_to_string(&golden).unwrap(), "UPDATE_GOLDEN=1 writes {}", golden.display());

    for program in ["bin/localregistry", "lib/localregistry/localregistry-init"] {
        let said = succeed(testing::program(archive.join(program)).arg("--version"));
        assert_eq!(said, format!("{} {}\n", program.rsplit('/').next().unwrap(), env!("CARGO_PKG_VERSION")));
    }
    contents_are_told(&archive, &inside);
    completions_are_read(&archive);
    package_is_as_debian_expects(folder, &archive, &inside);
}

/// Verifies the signature as a user does, and that it is of this list alone.
fn signature_is_verified(bench: &Bench, folder: &Path) {
    let key = succeed(testing::program("ssh-keygen").arg("-y").arg("-f").arg(bench.path("key")));
    bench.file("signers", format!("releases {key}").as_bytes());
    let verified = |list: &Path| {
        let mut verify = testing::program("ssh-keygen");
        verify.args(["-Y", "verify", "-I", "releases", "-n", "file", "-f"]).arg(bench.path("signers"));
        verify.arg("-s").arg(folder.join("SHA256SUMS.sig")).stdin(fs::File::open(list).unwrap());
        verify.output().unwrap().status.success()
    };
    assert!(verified(&folder.join("SHA256SUMS")));
    bench.file("changed", b"another list");
    assert!(!verified(&bench.path("changed")));
}

/// Asserts that lintian finds nothing, and that the package holds the files of the archive.
fn package_is_as_debian_expects(folder: &Path, archive: &Path, inside: &BTreeMap<String, String>) {
    let package = folder.join(concat!("localregistry_", env!("CARGO_PKG_VERSION"), "_amd64.deb"));
    let found = testing::program("lintian").args(["--fail-on", "error,warning", "--allow-root"]).arg(&package).output().unwrap();
    assert_eq!((found.status.code(), text(&found.stdout)), (Some(0), String::new()), "{}", text(&found.stderr));
    let content = archive.with_file_name("package");
    succeed(testing::program("dpkg-deb").arg("--extract").arg(&package).arg(&content));
    let packaged = files(&content.join("usr"));
    let same = inside.iter().filter(|(path, _)| path.starts_with("bin/") || path.starts_with("lib/"));
    same.for_each(|(path, digest)| assert_eq!(packaged.get(path), Some(digest), "{path}"));
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
    let program =
        |path: &str| path.starts_with("bin/") || path.starts_with("lib/localregistry/") && path.matches('/').count() == 2;
    let shipped = found.iter().filter(|(path, _)| program(path));
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
    for (file, feature) in [("bin-localregistry", "host"), ("lib-localregistry-localregistry-init", "guest")] {
        let all = related(&format!("SPDXRef-File-{file}"), "STATIC_LINK");
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
    let source = format!("Its source is that of Debian's package linux-source-6.1,\nversion {version}, ");
    assert!(text("linux/SOURCE").contains(&source), "{}", text("linux/SOURCE"));
    for recipe in ["kernel.config", "kernel.arm64.config", "kernel.patch"] {
        assert_eq!(text(&format!("linux/{recipe}")), fs::read_to_string(Path::new(ROOT).join("image").join(recipe)).unwrap());
    }
    assert!(text("linux/GPL-2").contains("GNU GENERAL PUBLIC LICENSE\n                       Version 2, June 1991"));
    assert!(text("linux/copyright").contains("Linus Torvalds"));
    assert!(text("musl/copyright").contains("Rich Felker"));
    assert!(text("rust/COPYRIGHT-library.html").contains("std"));
    assert!(related("SPDXRef-File-lib-localregistry-vmlinux", "GENERATED_FROM").contains("SPDXRef-linux"));
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

/// What podman's `run` needs in any container that tests run in.
const LIMITS: &str = "--ulimit nofile=1024 --ulimit nproc=1024 --log-driver none";

/// The page's examples: of the archive, and of the image with QEMU.
fn examples() -> [String; 2] {
    blocks("docs/kernels.md", "bash").try_into().unwrap()
}

/// A container of Debian with QEMU and curl, which `tests/run` makes, with the release in /release.
fn in_debian(bench: &Bench, script: &str) -> String {
    let root =
        Path::new(ROOT).join(succeed(&mut testing::program(Path::new(ROOT).join("qemu/target-dir"))).trim()).join("debian");
    let store = tempfile::tempdir().unwrap();
    let work = format!("{}:/data", bench.path("").display());
    let release = format!("{}:/release:ro", shared().display());
    let mut run = podman(store.path(), &["run", "--rm", "--network", "none", "--workdir", "/data"]);
    run.args(LIMITS.split(' ')).args(["--volume", &work, "--volume", &release, "--rootfs"]);
    succeed(run.arg(format!("{}:O", root.display())).args(["sh", "-euc", script]))
}

/// What the README shows, by somebody who has the archive and Debian's QEMU, and neither Rust nor a network: nothing is downloaded
/// and nothing is built.
#[test]
fn unpacked_release_packs_boots_and_is_pulled_from_in_plain_debian() {
    let bench = Bench::default();
    let pull = r#"
        address=$(localregistry ps --json | sed 's/.*"endpoint":"\([^"]*\)".*/\1/')
        curl --silent --fail --cacert ca.crt "$address/v2/test/hello/manifests/latest" >manifest
        localregistry stop demo
        find home -type f"#;
    let script = ["cp /release/* .\nexport HOME=/data/home\nexec 3>&1 >said\n", &examples()[0], "exec >&3\n", pull].concat();
    let said = in_debian(&bench, &script);
    let (stopped, cached) = said.split_once('\n').unwrap();
    assert_eq!(stopped, "demo shut down cleanly");
    // A frozen machine at most, and no kernel.
    assert!(!cached.contains("kernel") && !cached.contains("initramfs"), "{cached}");
    let manifest: Value = serde_json::from_slice(&fs::read(bench.path("manifest")).unwrap()).unwrap();
    assert_eq!(manifest["schemaVersion"], 2);
}

/// The package, installed: the program finds its kernel and init, and a disk boots from them; then it is removed without a rest.
#[test]
fn installed_package_boots_and_is_removed_without_a_rest() {
    let bench = Bench::default();
    let script = r"
        find / -xdev -path /proc -prune -o -path /data -prune -o -path /var/lib/dpkg -prune -o -path /var/log -prune -o -print | sort >before
        dpkg --install /release/*.deb >/dev/null
        export HOME=/data/home XDG_RUNTIME_DIR=/data/home
        mkdir home
        localregistry --quiet sample -o sample >said
        localregistry --quiet pack sample -o disk.erofs >said
        localregistry --quiet run disk.erofs --accel tcg --detach --name demo --ca-out ca.crt --json >ready.json
        localregistry stop demo
        localregistry --quiet --json doctor >doctor.json || true
        dpkg --purge localregistry >/dev/null
        find / -xdev -path /proc -prune -o -path /data -prune -o -path /var/lib/dpkg -prune -o -path /var/log -prune -o -print | sort >after
        diff before after || true";
    assert_eq!(in_debian(&bench, script), "demo shut down cleanly\n");
    let doctor = fs::read_to_string(bench.path("doctor.json")).unwrap();
    assert!(doctor.contains("/usr/lib/localregistry/vmlinux"), "{doctor}");
    assert!(doctor.contains("/usr/bin/../lib/localregistry/localregistry-init"), "{doctor}");
}

/// Both images, loaded and run by podman: the server alone serves a layout, and QEMU within the other boots a disk.
#[test]
fn released_images_serve_and_boot_in_podman() {
    privately(|| {
        let bench = Bench::default();
        std::os::unix::fs::symlink(shared(), bench.path("release")).unwrap();
        let program = unpacked(shared(), &bench.path("")).join("bin/localregistry");
        let run = |arguments: &[&str]| succeed(testing::program(&program).args(arguments).current_dir(bench.path("")));
        run(&["--quiet", "sample", "-o", "sample"]);
        run(&["--quiet", "pack", "sample", "-o", "disk.erofs"]);
        let podman = |arguments: &[&str]| podman(&bench.path(""), arguments);
        let pulled = |name: &str, start: &mut Command| {
            let mut child = start.stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{name}: {error}: {line:?}"));
            let url = format!("{}/v2/_catalog", ready["endpoints"][0].as_str().unwrap());
            let listed =
                succeed(testing::program("curl").args(["--silent", "--fail", "--cacert"]).arg(bench.path("ca.crt")).arg(&url));
            assert_eq!(listed.trim(), r#"{"repositories":["test/hello"]}"#, "{name}");
            succeed(&mut podman(&["stop", "--time", "30", name]));
            let status = child.wait().unwrap();
            assert!(status.success(), "{name}: {status}");
        };
        let loaded = succeed(&mut podman(&["load", "--quiet", "--input", &format!("release/{NAME}.oci.tar")]));
        let image = loaded.trim().rsplit(' ').next().unwrap();
        let work = format!("{}:/data", bench.path("").display());
        let mut start = podman(&["run", "--rm", "--network", "host", "--volume", &work, "--workdir", "/data", "--name", "serve"]);
        start.args(LIMITS.split(' ')).arg(image);
        pulled("serve", start.args(["sample", "--json", "--listen", "127.0.0.1:0", "--ca-out", "ca.crt"]));

        // The page's example, with this store.
        let start = podman(&[]);
        let words = start.get_args().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ");
        let with_store =
            format!("podman() {{ [ \"$1\" = load ] || set -- run {LIMITS} \"${{@:2}}\"; command podman {words} \"$@\"; }}\n");
        let script = [&with_store, &examples()[1][..]].concat();
        let script = script.replace("load --input ", "load --quiet --input release/").replacen("tar\n", "tar >loaded\n", 1);
        let environment = start.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        let environment: Vec<_> = environment.collect();
        let mut shell = testing::program("bash");
        pulled("demo", shell.args(["-euc", &script]).current_dir(bench.path("")).envs(environment));
    });
}

/// The cluster's replicas and machine are made of the released files, wherever they are.
#[test]
fn released_program_deploys_its_own_files() {
    let bench = Bench::default();
    let archive = unpacked(shared(), &bench.path(""));
    let run = |arguments: &[&str]| {
        succeed(testing::program(archive.join("bin/localregistry")).args(arguments).current_dir(bench.path("")))
    };
    run(&["--quiet", "sample", "-o", "sample"]);
    run(&["--quiet", "pack", "sample", "-o", "disk.erofs"]);
    let place = ["--registry", "registry.example/localregistry", "--host", "registry.example", "-o", "cluster"];
    run(&[&["--quiet", "deploy", "disk.erofs"][..], &place].concat());
    let cluster = Deployed(bench.path("cluster"));
    let machine = cluster.object("kubevirt.yaml", "VirtualMachine");
    let kernel = &machine["spec"]["template"]["spec"]["domain"]["firmware"]["kernelBoot"]["container"];
    let image = cluster.image(&kernel["image"]);
    for (path, file) in [("kernelPath", "vmlinux"), ("initrdPath", "initramfs.cpio")] {
        let expected = fs::read(archive.join("lib/localregistry").join(file)).unwrap();
        assert!(image.file(kernel[path].as_str().unwrap()) == expected, "{file}");
    }
    let deployment = cluster.object("kubernetes.yaml", "Deployment");
    let image = cluster.image(&deployment["spec"]["template"]["spec"]["containers"][0]["image"]);
    assert!(image.file("/localregistry") == fs::read(archive.join("bin/localregistry")).unwrap());
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
    let usage = "usage: image/release [-o DIR] [--target TARGET] [--key FILE] [--host PROGRAM --init PROGRAM]\n".to_owned();
    let no_key = format!("image/release: {} is no key of OpenSSH\n", bench.path("file").display());
    let program = ["--host", PROGRAM, "--init", &init];
    for (arguments, status, message) in [
        ([&["-o", "full"], &program[..]].concat(), 1, full("full")),
        ([&["-o", "file"], &program[..]].concat(), 1, full("file")),
        (vec!["-o"], 2, usage.clone()),
        (vec!["-o", "out", "--host", PROGRAM], 2, usage.clone()),
        (vec!["-o", "out", "--target", "riscv64gc-unknown-linux-gnu"], 2, usage.clone()),
        ([&["-o", "out", "--key", "file"], &program[..]].concat(), 1, no_key),
        (vec!["--other", "x"], 2, usage),
    ] {
        let before = bench.everything();
        let output = release(&bench, &arguments);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(status), message), "{arguments:?}");
        assert_eq!(bench.everything(), before, "{arguments:?}");
    }
    let before = bench.everything();
    let output = release(&bench, &[&["-o", "out"], &program[..]].concat());
    let message = format!("image/release: {PROGRAM} is not linked statically, and would not run everywhere\n");
    assert_eq!((output.status.code(), text(&output.stderr), bench.everything()), (Some(1), message, before));
}

/// The release for 64-bit ARM, cross-built: its machine boots under emulation and is pulled from. Of its host's program only what the
/// emulation of a single program can run is run. `.ci/run` builds what is needed, and runs this.
#[test]
fn arm64_release_boots_and_is_pulled_from() {
    const TARGET: &str = "aarch64-unknown-linux-musl";
    let bench = Bench::default();
    let built = Path::new(PROGRAM).parent().unwrap().with_file_name(TARGET);
    let program = |path: &str| built.join(path).display().to_string();
    let (host, init) = (program("debug/localregistry"), program("release/localregistry-init"));
    let output = release(&bench, &["-o", "release", "--target", TARGET, "--host", &host, "--init", &init]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let made: BTreeSet<String> = files(&bench.path("release")).into_keys().collect();
    let name = NAME.replace("x86_64", "aarch64");
    let package = concat!("localregistry_", env!("CARGO_PKG_VERSION"), "_arm64.deb").to_owned();
    assert_eq!(made, [format!("{name}.oci.tar"), format!("{name}.tar.gz"), package, "SHA256SUMS".to_owned()].into());
    succeed(testing::program("tar").arg("-xzf").arg(format!("release/{name}.tar.gz")).current_dir(bench.path("")));
    let mut emulated = testing::program("qemu-aarch64");
    let said = succeed(emulated.arg(bench.path(&name).join("bin/localregistry")).arg("--version"));
    assert_eq!(said, format!("localregistry {}\n", env!("CARGO_PKG_VERSION")));

    let run = |arguments: &[&str]| succeed(&mut bench.command(arguments));
    run(&["--quiet", "sample", "-o", "sample"]);
    run(&["--quiet", "pack", "sample", "-o", "disk.erofs"]);
    let beside = |file: &str| bench.path(&name).join("lib/localregistry").join(file).display().to_string();
    let (kernel, initramfs) = (beside("Image"), beside("initramfs.cpio"));
    let boot = ["--machine", "virt", "--kernel", &kernel, "--initramfs", &initramfs, "--accel", "tcg", "--timeout", "600"];
    let start = ["--quiet", "run", "disk.erofs", "--json", "--detach", "--name", "arm64", "--ca-out", "ca.crt"];
    let ready: Value = serde_json::from_str(&run(&[&start[..], &boot].concat())).unwrap();
    let url = format!("{}/v2/test/hello/manifests/latest", ready["endpoint"].as_str().unwrap());
    let pulled = succeed(testing::program("curl").args(["--silent", "--fail", "--cacert"]).arg(bench.path("ca.crt")).arg(&url));
    assert_eq!(serde_json::from_str::<Value>(&pulled).unwrap()["schemaVersion"], 2);
    assert_eq!(run(&["stop", "arm64"]), "arm64 shut down cleanly\n");
}
