//! Names of images as sources, the command line and lists write them: Docker Hub's spellings, and names that are no references.

use std::fs;

use testing::layout::Layout;
use testing::pack::{Bench, Saved, text};

/// Each spelling, and the name under which the image is on the disk.
const HUB: [(&str, &str); 6] = [
    ("index.docker.io/team/app:2", "docker.io/team/app:2"),
    ("docker.io/hello:1", "docker.io/library/hello:1"),
    ("registry-1.docker.io/library/alpine:3", "docker.io/library/alpine:3"),
    ("Index.Docker.io/base:latest", "docker.io/library/base:latest"),
    ("quay.io/base:1", "quay.io/base:1"),
    ("own:1", "own:1"),
];

fn run(bench: &Bench, arguments: &[&str]) -> String {
    let output = bench.command(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Wherever a name comes in, Docker Hub's images have one name, and `trust` lists that.
#[test]
fn docker_hub_has_one_name_in_every_source() {
    let mut expected: Vec<&str> = HUB.iter().map(|(_, name)| *name).collect();
    expected.sort_unstable();
    let check = |bench: &Bench, what: &str| {
        assert_eq!(bench.extract("disk.erofs").names(), expected, "{what}");
        let arguments = ["--quiet", "trust", "--endpoint", "http://r.test:5000", "--disk", "disk.erofs", "-o", "trust"];
        run(bench, &arguments);
        let listed = fs::read_to_string(bench.path("trust/images.txt")).unwrap();
        let pullable: Vec<String> = expected.iter().map(|name| name.replace("own:1", "r.test:5000/own:1")).collect();
        assert_eq!(listed.lines().collect::<Vec<_>>(), pullable, "{what}");
        let conf = fs::read_to_string(bench.path("trust/podman/registries.conf.d/50-localregistry.conf")).unwrap();
        for host in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            let entry = format!("prefix = \"{host}\"\nlocation = \"r.test:5000/docker.io\"\n");
            assert_eq!(conf.matches(&entry).count(), 1, "{what}: {conf}");
        }
    };

    let (bench, mut layout) = (Bench::default(), Layout::default());
    for (name, _) in HUB {
        layout.image(name, name.as_bytes());
    }
    bench.layout("layout", &layout);
    bench.pack(&["layout"]);
    check(&bench, "annotations");

    let mut saved = Saved::default();
    for (number, (name, _)) in HUB.iter().enumerate() {
        let member = format!("{number}/layer.tar");
        saved.member(&member, name.as_bytes());
        saved.image(&[name], &[(&member, name.as_bytes())]);
    }
    let bench = Bench::default();
    bench.file("saved.tar", &saved.bytes());
    bench.pack(&["saved.tar"]);
    check(&bench, "RepoTags");

    let (bench, mut layout) = (Bench::default(), Layout::default());
    layout.image("", b"one");
    bench.layout("layout", &layout);
    let named: Vec<String> = HUB.iter().flat_map(|(name, _)| ["--name".to_owned(), format!("{name}=layout")]).collect();
    bench.pack(&named.iter().map(String::as_str).collect::<Vec<_>>());
    check(&bench, "--name");

    let entry = |(name, _): &(&str, &str)| {
        let (repository, tag) = name.rsplit_once(':').unwrap();
        format!("images {{ repository: \"{repository}\" tag: \"{tag}\" path: \"layout\" }}\n")
    };
    bench.file("list", HUB.iter().map(entry).collect::<String>().as_bytes());
    bench.pack(&["--spec", "list"]);
    check(&bench, "--spec");
}

/// Two spellings of one name with different content contradict each other, as one name does.
#[test]
fn spellings_of_one_name_cannot_have_different_images() {
    let (bench, mut layout) = (Bench::default(), Layout::default());
    let one = layout.image("docker.io/hello:1", b"one");
    let two = layout.image("index.docker.io/library/hello:1", b"two");
    bench.layout("layout", &layout);
    bench.refused(
        &["layout"],
        &format!(
            "image docker.io/library/hello:1: the tag is claimed by {} in layout and by {} in layout; one manifest for each tag is \
             expected",
            one.digest, two.digest
        ),
    );
}

/// `assert` takes every spelling of a name in the log of a server.
#[test]
fn assert_takes_every_spelling() {
    let bench = Bench::default();
    let digest = format!("sha256:{}", "0".repeat(64));
    let event = |endpoint: &str, reference: &str| {
        format!(
            "{{\"time\":1,\"request\":{{\"peer\":\"10.1.0.7:1\",\"method\":\"GET\",\"endpoint\":\"{endpoint}\",\"status\":200,\
             \"repository\":\"docker.io/library/hello\",\"reference\":\"{reference}\",\"digest\":\"{digest}\",\"bytes\":\"5\",\
             \"complete\":true}}}}\n"
        )
    };
    let done = "{\"time\":2,\"done\":{\"reason\":\"asked\",\"requests\":\"2\"}}\n";
    bench.file("log", (event("manifest", "1") + &event("blob", &digest) + done).as_bytes());
    for name in
        ["hello:1", "docker.io/hello:1", "index.docker.io/hello:1", "registry-1.docker.io/library/hello:1", "library/hello:1"]
    {
        run(&bench, &["--quiet", "assert", "--pulled", name, "--times", "1", "log"]);
    }
    for name in ["quay.io/hello:1", "docker.io/other/hello:1", "localhost/library/hello:1"] {
        run(&bench, &["--quiet", "assert", "--not-pulled", name, "log"]);
    }
}
