//! `action.yml`, `clients/ci/registry`, the recipes of docs/ci.md and the rules for Bazel, as their users run them: by a small runner of
//! workflows, a shell, and an interpreter of Starlark. podman pulls with the files that they install. `tests/run` installs the schemas of
//! GitHub and GitLab, that interpreter, and testcontainers for Python.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use localregistry::host::support::cache;
use serde_json::{Value, json};
use testing::deployed::static_server;
use testing::pack::{Bench, PROGRAM, digest_of, text};
use testing::pages::{block, blocks};
use testing::podman::podman;
use testing::private::privately;
use testing::vm::succeed;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const ARCHIVE: &str = "localregistry-0.1.0-linux-x86_64.tar.gz";

/// What `tests/run` installs for this file.
fn python() -> Command {
    let library = Path::new(PROGRAM).ancestors().nth(2).unwrap().join("ci");
    assert!(library.exists(), "{} is not there: tests/run makes it", library.display());
    let mut python = testing::program("/usr/bin/python3");
    python.env("PYTHONPATH", library).env("PYTHONDONTWRITEBYTECODE", "1");
    python
}

/// The document in YAML.
fn yaml(document: &str) -> Value {
    let read = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.argv[1])))";
    serde_json::from_str(&succeed(python().args(["-c", read, document]))).unwrap()
}

/// The workflow of GitHub, and the jobs of GitLab.
fn recipes() -> [String; 2] {
    blocks("docs/ci.md", "yaml").try_into().unwrap()
}

/// A runner: a checkout with images in `build/images`, an archive of a release, and podman with its own store.
struct Runner {
    bench: Bench,
    outputs: BTreeMap<String, String>,
}

impl Runner {
    fn new() -> Self {
        let bench = Bench::default();
        succeed(&mut bench.command(&["--quiet", "sample", "--output", "build/images"]));
        // As `image/release` lays it out; what boots is that of the other tests.
        let release = bench.path("localregistry-0.1.0-linux-x86_64");
        for folder in ["bin", "share/ci"] {
            fs::create_dir_all(release.join(folder)).unwrap();
        }
        symlink(PROGRAM, release.join("bin/localregistry")).unwrap();
        fs::copy(Path::new(ROOT).join("clients/ci/registry"), release.join("share/ci/registry")).unwrap();
        succeed(testing::program("tar").args(["-czf", ARCHIVE]).arg(release.file_name().unwrap()).current_dir(bench.path("")));
        fs::remove_dir_all(release).unwrap();
        symlink(Path::new(ROOT).join("clients"), bench.path("clients")).unwrap();
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/store\"\nrunroot = \"{0}/store-run\"\n",
            bench.path("").display()
        );
        bench.file("storage.conf", storage.as_bytes());
        Self { bench, outputs: BTreeMap::new() }
    }

    fn sha256(&self) -> String {
        digest_of(&self.bench.path(ARCHIVE)).trim_start_matches("sha256:").to_owned()
    }

    /// A program in the checkout, with the variables that GitHub's runner sets.
    fn command(&self, program: &str) -> Command {
        let mut command = testing::program(program);
        command.current_dir(self.bench.path("")).env("HOME", self.bench.path("")).env("RUNNER_TEMP", self.bench.path("temp"));
        command.env("LOCALREGISTRY_CACHE", cache::folder("").unwrap()).env("GITHUB_ACTION_PATH", ROOT);
        for (variable, file) in [("GITHUB_OUTPUT", "output"), ("GITHUB_STEP_SUMMARY", "summary")] {
            command.env(variable, self.bench.path(file));
        }
        command.env("CONTAINERS_STORAGE_CONF", self.bench.path("storage.conf")).env("CONTAINERS_CONF", "/dev/null");
        command
    }

    /// The text with the values of its `${{ … }}`.
    fn expand(&self, text: &str, inputs: &BTreeMap<String, String>) -> String {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${{") {
            let (expression, behind) = after.split_once("}}").unwrap();
            let expression = expression.trim();
            let value = match expression.strip_prefix("inputs.") {
                Some(input) => inputs.get(input).unwrap_or_else(|| panic!("no input {input}")).clone(),
                None => {
                    self.outputs.get(expression.strip_prefix("steps.registry.outputs.").unwrap()).cloned().unwrap_or_default()
                }
            };
            expanded += &(before.to_owned() + &value);
            rest = behind;
        }
        expanded + rest
    }

    /// Runs a step's `run` in its shell, with its variables.
    fn shell(&self, step: &Value, inputs: &BTreeMap<String, String>) -> Output {
        let run = step["run"].as_str().unwrap();
        assert!(!run.contains("${{"), "an expression in a command is code: {run}");
        let mut bash = self.command("bash");
        bash.args(["--noprofile", "--norc", "-eo", "pipefail", "-c", run]);
        for (name, value) in step["env"].as_object().into_iter().flatten() {
            bash.env(name, self.expand(value.as_str().unwrap(), inputs));
        }
        bash.output().unwrap()
    }

    /// Runs `action.yml` with these inputs, and takes its outputs.
    fn action(&mut self, with: &Value) -> Output {
        let action = yaml(&fs::read_to_string(Path::new(ROOT).join("action.yml")).unwrap());
        let declared = action["inputs"].as_object().unwrap();
        let mut inputs: BTreeMap<String, String> = declared
            .iter()
            .map(|(name, input)| (name.clone(), input["default"].as_str().unwrap_or_default().to_owned()))
            .collect();
        for (name, value) in with.as_object().unwrap() {
            assert!(inputs.insert(name.clone(), value.as_str().unwrap().to_owned()).is_some(), "no input {name}");
        }
        assert_eq!(action["runs"]["using"], "composite");
        let [step] = action["runs"]["steps"].as_array().unwrap().as_slice() else { panic!("one step is expected") };
        let output = self.shell(step, &inputs);
        let written = fs::read_to_string(self.bench.path("output")).unwrap_or_default();
        self.outputs = written.lines().map(|line| line.split_once('=').unwrap()).map(|(n, v)| (n.into(), v.into())).collect();
        if !self.outputs.is_empty() {
            let declared: Vec<_> = action["outputs"].as_object().unwrap().keys().cloned().collect();
            assert_eq!(self.outputs.keys().cloned().collect::<Vec<_>>(), declared);
        }
        output
    }

    /// Runs the workflow of docs/ci.md with these further inputs for the step that starts the registry. Returns the summary.
    fn workflow(&mut self, more: &Value) -> String {
        let workflow = yaml(&recipes()[0]);
        for step in workflow["jobs"]["e2e"]["steps"].as_array().unwrap() {
            let output = match step["uses"].as_str() {
                Some(uses) if uses.starts_with("actions/") => continue,
                Some(uses) => {
                    assert_eq!(uses, "OWNER/localregistry@v0.1.0");
                    let mut with = step["with"].clone();
                    if with["release"].is_string() {
                        with["release"] = json!(format!("file://{}", self.bench.path(ARCHIVE).display()));
                        with["sha256"] = json!(self.sha256());
                        with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                    }
                    self.action(&with)
                }
                None if step["run"].as_str().unwrap().contains("apt-get") => continue,
                None => self.shell(step, &BTreeMap::new()),
            };
            assert!(output.status.success(), "{step}: {}{}", text(&output.stdout), text(&output.stderr));
        }
        fs::read_to_string(self.bench.path("summary")).unwrap()
    }

    /// The action with these inputs fails with this status and message, and leaves nothing.
    fn refused(&mut self, with: &Value, status: i32, message: &str) {
        let output = self.action(with);
        assert_eq!(output.status.code(), Some(status), "{with}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
        assert!(!self.bench.path("temp/localregistry-ci").exists(), "{with}");
        assert_eq!(installed(), Vec::<PathBuf>::new(), "{with}");
    }
}

/// Files of clients below /etc that name a registry, which is a copy in these tests.
fn installed() -> Vec<PathBuf> {
    let mut find = testing::program("find");
    find.args(["/etc/docker", "/etc/containerd/certs.d", "/etc/containers", "-type", "f", "-not", "-name", "policy.json"]);
    text(&find.output().unwrap().stdout).lines().map(PathBuf::from).collect()
}

/// Asserts that the summary shows one pull of the image, and that nothing is left running or below /etc.
fn pull_is_told(runner: &Runner, summary: &str) {
    let pulls: Vec<_> = summary.lines().filter(|line| line.contains("test/hello:latest@sha256:")).collect();
    assert!(matches!(pulls.as_slice(), [pull] if pull.contains(" 200 ")), "{summary}");
    assert!(summary.starts_with("### Pulled from https://127.0.0.1:"), "{summary}");
    assert_eq!(installed(), Vec::<PathBuf>::new());
    let mut events = fs::read_to_string(&runner.outputs["events"]).unwrap();
    assert!(events.split_off(events.trim_end().rfind('\n').unwrap()).contains("\"done\""));
}

#[test]
fn workflow_boots_a_disk_and_shows_its_pulls() {
    privately(|| {
        let mut runner = Runner::new();
        let summary = runner.workflow(&json!({}));
        pull_is_told(&runner, &summary);
        let ready = fs::read_to_string(runner.bench.path("temp/localregistry-ci/ready.json")).unwrap();
        assert!(ready.contains("\"boot_seconds\""), "{ready}");
    });
}

#[test]
fn action_serves_a_disk_and_installs_files_for_every_client() {
    privately(|| {
        let mut runner = Runner::new();
        runner.bench.pack(&["build/images"]);
        fs::create_dir_all("/etc/docker/certs.d").unwrap();
        // A folder of a release, too; and a name with a space.
        fs::create_dir(runner.bench.path("a release")).unwrap();
        let mut unpack = testing::program("tar");
        unpack.current_dir(runner.bench.path("")).args(["-xzf", ARCHIVE, "-C", "a release", "--strip-components", "1"]);
        succeed(&mut unpack);
        let with = json!({
            "command": "serve", "release": "a release", "disk": "disk.erofs", "folder": "a folder",
            "trust": "docker, containerd podman", "options": "--san registry.test  --listen 127.0.0.1:0",
        });
        let output = runner.action(&with);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let (address, folder) = (runner.outputs["address"].clone(), runner.bench.path("a folder"));
        assert_eq!(runner.outputs["endpoint"], format!("https://{address}"));
        assert_eq!(Path::new(&runner.outputs["ca"]), folder.join("ca.crt"));
        let ca = fs::read(&runner.outputs["ca"]).unwrap();
        let files = installed();
        for file in [format!("/etc/docker/certs.d/{address}/ca.crt"), format!("/etc/containers/certs.d/{address}/ca.crt")] {
            assert_eq!(fs::read(&file).unwrap(), ca, "{file}");
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
        }
        assert!(files.contains(&format!("/etc/containerd/certs.d/{address}/hosts.toml").into()), "{files:?}");
        assert!(files.contains(&"/etc/containers/registries.conf.d/50-localregistry.conf".into()), "{files:?}");

        // A second one for the same client ends before it writes there; what is there stays.
        let second = json!({"command": "serve", "release": "a release", "disk": "disk.erofs", "folder": "second", "trust": "docker podman"});
        let output = runner.action(&second);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("/etc/containers/registries.conf.d/50-localregistry.conf is there already"), "{said}");
        assert!(!runner.bench.path("second").exists());
        assert_eq!(installed(), files);

        succeed(runner.command("podman").args(["pull", "--quiet", &format!("{address}/test/hello:latest")]));
        let output = runner.action(&json!({"command": "stop", "folder": "a folder"}));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let summary = fs::read_to_string(runner.bench.path("summary")).unwrap();
        assert_eq!(text(&output.stdout), summary);
        pull_is_told(&runner, &summary);
        // It is stopped.
        let again = runner.action(&json!({"command": "stop", "folder": "a folder"}));
        assert_eq!((again.status.code(), fs::read_to_string(runner.bench.path("summary")).unwrap()), (Some(1), summary));
    });
}

#[test]
fn wrong_inputs_of_the_action_leave_nothing() {
    privately(|| {
        let mut runner = Runner::new();
        fs::create_dir_all("/etc/docker/certs.d").unwrap();
        let sha256 = runner.sha256();
        let other = "0".repeat(64);
        let with = |more: Value| {
            let mut with =
                json!({"command": "serve", "release": ARCHIVE, "sha256": sha256, "images": "build/images", "trust": "docker"});
            with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            with
        };
        let cases = [
            (json!({"command": "boot"}), 2, "one of run, serve and stop is expected"),
            (json!({"command": "$(touch /etc/docker/code)"}), 2, "one of run, serve and stop is expected"),
            (json!({"images": ""}), 2, "one of LOCALREGISTRY_IMAGES and LOCALREGISTRY_DISK is needed"),
            (json!({"disk": "disk.erofs"}), 2, "one of LOCALREGISTRY_IMAGES and LOCALREGISTRY_DISK is needed"),
            (json!({"images": "", "disk": "absent"}), 1, "cannot read absent"),
            (json!({"images": "absent"}), 1, "cannot pack these images"),
            (json!({"images": "build/images\n$(touch /etc/docker/code)"}), 1, "cannot pack these images"),
            (json!({"sha256": ""}), 2, "LOCALREGISTRY_SHA256 is needed, the digest of"),
            (json!({"sha256": other}), 1, &format!("has the digest {sha256}, and {other} is expected: it is not unpacked")),
            (json!({"release": "absent"}), 2, "neither a folder nor an archive"),
            (json!({"release": "file:///absent.tar.gz"}), 1, "cannot download file:///absent.tar.gz"),
            (json!({"release": "build"}), 2, "build is a folder, and LOCALREGISTRY_SHA256 is the digest of an archive"),
            (json!({"release": "build", "sha256": ""}), 2, "build is no release of localregistry: it lacks bin/localregistry"),
            (json!({"trust": "docker k8s"}), 2, "LOCALREGISTRY_TRUST: k8s is none of docker, containerd, podman"),
            (json!({"options": "--wrong"}), 1, "unexpected argument '--wrong'"),
            (json!({"command": "run", "options": "--accel none"}), 1, "invalid value 'none'"),
            (json!({"command": "stop"}), 1, "no registry has been started in"),
        ];
        for (more, status, message) in cases {
            runner.refused(&with(more), status, message);
        }
    });
}

#[test]
fn registry_that_ended_by_itself_fails_its_stop() {
    privately(|| {
        let mut runner = Runner::new();
        let with = json!({"command": "serve", "release": ARCHIVE, "sha256": runner.sha256(), "images": "build/images", "trust": "podman"});
        assert!(runner.action(&with).status.success());
        // A folder in use is left as it is.
        let output = runner.action(&with);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("is not empty: LOCALREGISTRY_FOLDER names a new folder"));
        let pid = fs::read_to_string(runner.bench.path("temp/localregistry-ci/pid")).unwrap();
        succeed(testing::program("kill").args(["-KILL", pid.trim()]));
        testing::wait::eventually(|| {
            let ended = fs::read_link(format!("/proc/{}/exe", pid.trim())).is_err();
            if ended { Ok(()) } else { Err("it still runs") }
        });
        let output = runner.action(&json!({"command": "stop"}));
        let said = text(&output.stderr);
        assert_eq!(
            (output.status.code(), said.ends_with("the registry had ended before it was stopped\n")),
            (Some(1), true),
            "{said}"
        );
        assert_eq!(installed(), Vec::<PathBuf>::new());
    });
}

#[test]
fn recipes_for_shells_and_gitlab_run_as_they_stand() {
    privately(|| {
        let runner = Runner::new();
        let bash = |script: &str| {
            let mut bash = runner.command("bash");
            for variable in ["RUNNER_TEMP", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"] {
                bash.env_remove(variable);
            }
            succeed(bash.args(["-euo", "pipefail", "-c", script]))
        };
        let told = |said: &str| assert!(said.contains("test/hello:latest@sha256:") && said.contains(" 200 "), "{said}");
        told(&bash(&block("docs/ci.md", "bash")));
        assert_eq!(installed(), Vec::<PathBuf>::new());
        fs::remove_dir_all(runner.bench.path("localregistry-ci")).unwrap();

        let jobs = yaml(&recipes()[1].replace("DIGEST", &runner.sha256()));
        let job = &jobs["e2e"];
        let lines = |name: &str| {
            let lines = job[name].as_array().unwrap().iter().map(|line| line.as_str().unwrap());
            // The archive is here, and packages are installed.
            lines.filter(|line| !line.starts_with("apt-get ") && !line.starts_with("curl ")).collect::<Vec<_>>().join("\n")
        };
        let variables = job["variables"].as_object().unwrap().iter();
        let exports: String = variables.map(|(name, value)| format!("export {name}='{}'\n", value.as_str().unwrap())).collect();
        // `before_script` and `script` have one shell, and `after_script` another.
        bash(&[&exports, &lines("before_script"), "\n", &lines("script")].concat());
        told(&bash(&[&exports, &*lines("after_script")].concat()));
        assert_eq!(installed(), Vec::<PathBuf>::new());
        assert!(runner.bench.path(job["artifacts"]["paths"][0].as_str().unwrap()).exists());
    });
}

#[test]
fn action_and_recipes_are_as_github_and_gitlab_expect() {
    let bench = Bench::default();
    let [github, gitlab] = recipes();
    let (github, gitlab) = (bench.file("github.yml", github.as_bytes()), bench.file("gitlab.yml", gitlab.as_bytes()));
    let check = |schema: &str, file: &Path| {
        let mut check = python();
        check.args(["-m", "check_jsonschema", "--builtin-schema", &format!("vendor.{schema}")]).arg(file);
        check.output().unwrap()
    };
    let action = Path::new(ROOT).join("action.yml");
    for (schema, file) in [("github-actions", &action), ("github-workflows", &github), ("gitlab-ci", &gitlab)] {
        let output = check(schema, file);
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    }
    // The schemas do tell.
    assert!(!check("github-actions", &gitlab).status.success());
}

#[test]
fn rules_for_bazel_pack_a_disk_and_run_a_test() {
    let bench = Bench::default();
    let defs = Path::new(ROOT).join("clients/bazel/defs.bzl");
    let made = succeed(python().arg(Path::new(ROOT).join("tests/support/bazel.py")).arg(defs));
    let made: Value = serde_json::from_str(&made).unwrap();
    // As Bazel lays the files out.
    succeed(&mut bench.command(&["--quiet", "sample", "--output", "app/image"]));
    for (folder, link, to) in
        [("bin", "localregistry", Path::new(PROGRAM)), ("ci", "registry", &Path::new(ROOT).join("clients/ci/registry"))]
    {
        fs::create_dir(bench.path(folder)).unwrap();
        symlink(to, bench.path(folder).join(link)).unwrap();
    }
    let arguments: Vec<_> = made["pack"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()).collect();
    succeed(&mut bench.command(&arguments));
    bench.file("runner", made["runner"].as_str().unwrap().as_bytes());
    let run = |test: &str| {
        bench.file("pull", format!("#!/bin/sh\n{test}").as_bytes());
        fs::set_permissions(bench.path("pull"), fs::Permissions::from_mode(0o755)).unwrap();
        let _ = fs::remove_dir_all(bench.path("tmp"));
        fs::create_dir(bench.path("tmp")).unwrap();
        let mut sh = testing::program("sh");
        sh.args(["runner", "docker.io/test/app"]).current_dir(bench.path("")).env("TEST_TMPDIR", bench.path("tmp"));
        sh.output().unwrap()
    };
    let pull = "exec curl --fail --silent --output manifest --cacert \"$LOCALREGISTRY_CA\" \"$LOCALREGISTRY_ENDPOINT/v2/$1/manifests/1\"";
    let output = run(pull);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(said.contains("docker.io/test/app:1@sha256:"), "{said}");
    // The status is that of the test.
    let output = run("exit 7");
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("### Pulled from"));
}

/// The image of a release in podman, which answers as Docker does.
#[test]
fn example_of_testcontainers_for_python_runs_as_it_stands() {
    privately(|| {
        let bench = Bench::default();
        let folder = bench.path("");
        succeed(&mut bench.command(&["--quiet", "sample", "--output", "build/images"]));
        let example = bench.file("test_pull.py", block("docs/ci.md", "python").as_bytes());
        succeed(python().args(["-m", "mypy", "--strict", "--cache-dir=/dev/null"]).arg(&example));

        // As `image/release` makes it.
        fs::create_dir_all(bench.path("root/tmp")).unwrap();
        fs::set_permissions(bench.path("root/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        succeed(testing::program("strip").arg("-o").arg(bench.path("root/localregistry")).arg(static_server()));
        let mut image = testing::program(Path::new(ROOT).join("image/oci"));
        image.current_dir(&folder).env("SOURCE_DATE_EPOCH", "1").args(["root", "--architecture", "amd64", "--port", "5000"]);
        image.args(["--entrypoint", "/localregistry", "--entrypoint", "serve"]);
        succeed(image.args(["-o", "localregistry-0.1.0-linux-x86_64.oci.tar"]));
        succeed(&mut podman(&folder, &["load", "--quiet", "--input", "localregistry-0.1.0-linux-x86_64.oci.tar"]));

        let config = b"[containers]\nlog_driver = \"k8s-file\"\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n";
        let socket = format!("unix://{}", bench.path("socket").display());
        // It ends by itself, too, if the test fails.
        let mut service = podman(&folder, &["system", "service", "--time", "10", &socket]);
        let mut service = service.env("CONTAINERS_CONF", bench.file("containers.conf", config)).spawn().unwrap();
        testing::wait::eventually(|| if bench.path("socket").exists() { Ok(()) } else { Err("no socket") });
        let mut test = python();
        test.current_dir(&folder).env("HOME", &folder).env("DOCKER_HOST", &socket).env("TESTCONTAINERS_RYUK_DISABLED", "true");
        // The tests may themselves run in a container.
        test.env("TESTCONTAINERS_CONNECTION_MODE", "docker_host");
        let output = test.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_pull.py"]).output().unwrap();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        service.kill().unwrap();
        service.wait().unwrap();
        assert_eq!(succeed(&mut podman(&folder, &["ps", "--all", "--quiet"])), "");
    });
}
