//! `localregistry pack --pull` and what belongs to an image: signatures, attestations and other referrers. Whatever a registry answers
//! when it is asked for them, the image is packed.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use localregistry::oci::Digest;
use localregistry::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use serde_json::{Value, json};
use testing::http;
use testing::layout::{Layout, Stored};
use testing::pack::{Bench, text};
use testing::upstream::{Answer, Images, Upstream, layer, refusing, registry};
use testing::wait::at_once;

/// A request for something that belongs to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Api,
    Tag,
    Attachment,
}

impl Asked {
    /// What a request is for. `None` for the image itself.
    fn of(target: &str) -> Option<Self> {
        let name = target.rsplit('/').next().unwrap();
        if target.contains("/referrers/") {
            Some(Self::Api)
        } else if name.starts_with("sha256-") {
            Some(if name.contains('.') { Self::Attachment } else { Self::Tag })
        } else {
            None
        }
    }
}

/// Packs the image `a/b:1` of `upstream`. Returns the warnings, and the failed look-ups of `--json` as pairs of what and why, in both
/// with HOST for the registry.
fn pack(bench: &Bench, upstream: &Upstream, more: &[&str]) -> (Vec<String>, Vec<(String, String)>) {
    let (host, name) = (upstream.address.to_string(), format!("{}/a/b:1", upstream.address));
    let arguments = ["--quiet", "--json", "pack", "--pull", &name, "-o", "disk.erofs"];
    let output = bench.command(&[&arguments, more].concat()).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let field = |one: &Value, key: &str| one[key].as_str().unwrap().replace(&host, "HOST");
    let failed: Vec<Value> = result.get("failed_lookups").map(|list| list.as_array().unwrap().clone()).unwrap_or_default();
    assert!(failed.iter().all(|one| one["image"] == name));
    (
        said.lines().map(|line| line.replace(&host, "HOST")).collect(),
        failed.iter().map(|one| (field(one, "what"), field(one, "why"))).collect(),
    )
}

/// Asserts that the disk has exactly these images, whole: names without the registry and the repository, and digests.
fn assert_packed(bench: &Bench, expected: &[(&str, Stored)]) {
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    let mut expected: Vec<(String, String)> =
        expected.iter().map(|(name, stored)| ((*name).to_owned(), stored.digest.to_string())).collect();
    expected.sort();
    let short = |name: String| name.rsplit_once("/a/b").unwrap().1.to_owned();
    let mut found: Vec<_> = disk.images().into_iter().map(|(name, digest)| (short(name), digest)).collect();
    found.sort();
    assert_eq!(found, expected);
}

/// The digests that the packed disk, served, lists as referrers.
fn referrers(bench: &Bench, upstream: &Upstream, subject: Stored) -> Vec<String> {
    let server = bench.serve();
    let list = http::get(server.plain, &format!("/v2/a/b/referrers/{}?ns={}", subject.digest, upstream.address)).json();
    let mut found: Vec<String> =
        list["manifests"].as_array().unwrap().iter().map(|one| one["digest"].as_str().unwrap().to_owned()).collect();
    found.sort();
    found
}

fn sorted(stored: &[Stored]) -> Vec<String> {
    let mut digests: Vec<String> = stored.iter().map(|one| one.digest.to_string()).collect();
    digests.sort();
    digests
}

fn artifact_without_subject(layout: &Layout, content: &[u8]) -> Stored {
    let (config, layer) = (layout.blob(b"{}"), layout.blob(content));
    layout.json(&json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.descriptor("application/x.config"),
        "layers": [layer.descriptor("application/octet-stream")],
    }))
}

fn index(layout: &Layout, of: &[Stored]) -> Stored {
    let manifests: Vec<Value> = of.iter().map(|one| one.descriptor(OCI_MANIFEST)).collect();
    layout.json(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}))
}

/// An answer that is no list of referrers and no manifest, and a part of what is said of it. `nowhere` refuses connections.
fn bad_answers(nowhere: SocketAddr) -> Vec<(Answer, String)> {
    // With a pause that is asked for, no test waits.
    let now = ("Retry-After", "0");
    let mut answers: Vec<(Answer, String)> = [400, 403, 405, 406, 410, 418, 451, 500, 501, 503, 302, 204]
        .into_iter()
        .map(|status| (Answer::new(status, &[now], b"<html>"), format!("{status}")))
        .collect();
    answers.extend([
        (Answer::error(403, "DENIED", "not \u{1b}[1myou"), "403: DENIED: not \\u{1b}[1myou".to_owned()),
        (Answer::new(401, &[], b""), "HOST answers 401 with no challenge; Basic".to_owned()),
        (Answer::new(401, &[("WWW-Authenticate", "Negotiate")], b""), "unsupported challenge".to_owned()),
        (Answer::new(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""), "asks for credentials".to_owned()),
        (
            Answer::new(401, &[("WWW-Authenticate", "Bearer realm=\"http://registry.test/t\"")], b""),
            "no request is sent there".to_owned(),
        ),
        (Answer::new(429, &[("Retry-After", "3600")], b""), "asks to wait 3600 s".to_owned()),
        (Answer::new(429, &[now], b""), "it was asked 5 times".to_owned()),
        (Answer::new(200, &[("Content-Type", "text/html")], b"<html>"), "\"text/html\"".to_owned()),
        (Answer::new(200, &[("Content-Type", OCI_INDEX)], b"<html>"), "is expected to be a manifest".to_owned()),
        (Answer::new(200, &[("Content-Type", OCI_INDEX)], b""), "is expected to be a manifest".to_owned()),
        (Answer::new(200, &[], b""), "the media type".to_owned()),
        (Answer::new(200, &[("Content-Type", OCI_INDEX)], &vec![b' '; (4 << 20) + 1]), "more than 4194304 bytes".to_owned()),
        (Answer::redirect("http://registry.invalid/x?signature=secret"), "registry.invalid".to_owned()),
        (Answer::redirect(&format!("http://{nowhere}/")), "cannot connect to".to_owned()),
        (Answer::redirect("ftp://x/"), "not an http or https URL".to_owned()),
        (Answer::redirect("http://"), "not an http or https URL".to_owned()),
    ]);
    answers
}

#[test]
fn bad_answers_to_optional_look_ups_end_no_pull() {
    let (_held, nowhere) = refusing();
    let answers = Arc::new(bad_answers(nowhere));
    let cases: Vec<(Asked, usize)> = [Asked::Api, Asked::Tag, Asked::Attachment]
        .into_iter()
        .flat_map(|asked| (0..answers.len()).map(move |number| (asked, number)))
        .collect();
    let check = |&(asked, number): &(Asked, usize)| {
        let (bench, own) = (Bench::default(), Arc::clone(&answers));
        let (_layout, image, upstream) = registry(move |request| match Asked::of(&request.target) {
            Some(found) if found == asked => Some(own[number].0.clone()),
            Some(_) => Some(Answer::error(404, "MANIFEST_UNKNOWN", "unknown")),
            None => None,
        });
        let (warnings, failed) = pack(&bench, &upstream, &[]);
        let (answer, why) = &answers[number];
        let case = format!("{asked:?} {} {why}: {warnings:?} {failed:?}", answer.status);
        assert_packed(&bench, &[(":1", image)]);
        let tag = format!("tag sha256-{}", image.digest.hex());
        // After 429 nothing more is asked for.
        let (what, count) = match asked {
            Asked::Api => (format!("the referrers of {}", image.digest), 1),
            Asked::Tag => (tag, 1),
            Asked::Attachment => (format!("{tag}.sig"), if answer.status == 429 { 1 } else { 3 }),
        };
        assert_eq!(failed.len(), count, "{case}");
        assert!(failed.iter().any(|one| one.0 == what && one.1.contains(why)), "{case}");
        assert_eq!(warnings.len(), 1, "{case}");
        let start = format!("localregistry: warning: HOST/a/b:1 is packed without {what}");
        assert!(warnings[0].starts_with(&start) && warnings[0].contains(why.as_str()), "{case}");
        assert!(!warnings[0].contains("secret"), "{case}");
    };
    at_once(&cases, check);
}

#[test]
fn missing_referrers_are_not_worth_a_warning() {
    for answer in [Answer::error(404, "MANIFEST_UNKNOWN", "unknown"), Answer::new(404, &[], b"<html>")] {
        let bench = Bench::default();
        let (_layout, image, upstream) = registry(move |request| Asked::of(&request.target).map(|_| answer.clone()));
        assert_eq!(pack(&bench, &upstream, &[]), (Vec::new(), Vec::new()));
        assert_packed(&bench, &[(":1", image)]);
        let asked: Vec<Asked> = upstream.targets().iter().filter_map(|target| Asked::of(target)).collect();
        assert_eq!(asked, [Asked::Api, Asked::Tag, Asked::Attachment, Asked::Attachment, Asked::Attachment]);
    }
}

#[test]
fn no_referrers_asks_for_the_image_only() {
    let bench = Bench::default();
    let (_layout, image, upstream) = registry(|request| Asked::of(&request.target).map(|_| Answer::new(403, &[], b"")));
    assert_eq!(pack(&bench, &upstream, &["--no-referrers"]), (Vec::new(), Vec::new()));
    assert_packed(&bench, &[(":1", image)]);
    assert!(upstream.targets().iter().all(|target| Asked::of(target).is_none()), "{:?}", upstream.targets());
}

#[test]
fn silent_registry_is_asked_no_more() {
    at_once(&[Asked::Api, Asked::Attachment], |&asked| {
        let bench = Bench::default();
        let (_layout, image, upstream) = registry(move |request| {
            let found = Asked::of(&request.target)?;
            if found == asked {
                std::thread::sleep(std::time::Duration::from_secs(600));
            }
            Some(Answer::new(404, &[], b""))
        });
        let (warnings, failed) = pack(&bench, &upstream, &["--pull-timeout", "1"]);
        assert_packed(&bench, &[(":1", image)]);
        assert_eq!((warnings.len(), failed.len()), (1, 1), "{warnings:?}");
        let why = "HOST did not respond within 1 s (receive response); nothing more was looked up for this image";
        assert_eq!(failed[0].1, why);
        let count = upstream.targets().iter().filter(|target| Asked::of(target) == Some(asked)).count();
        assert_eq!(count, 2, "one more try, and no other tag");
    });
}

#[test]
fn signal_during_a_look_up_ends_the_pull_and_leaves_no_files() {
    let (sender, asked) = mpsc::channel();
    let sender = Mutex::new(sender);
    let (_layout, _, upstream) = registry(move |request| {
        Asked::of(&request.target)?;
        sender.lock().unwrap().send(()).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(600));
        None
    });
    let bench = Bench::default();
    bench.file("disk.erofs", b"the old disk");
    let before = bench.everything();
    let name = format!("{}/a/b:1", upstream.address);
    let mut command = bench.command(&["--quiet", "pack", "--pull", &name, "-o", "disk.erofs"]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    asked.recv().unwrap();
    let id = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "localregistry: disk.erofs is not written: interrupted by SIGTERM\n");
    assert_eq!(output.status.code(), Some(143));
    assert_eq!(bench.everything(), before);
}

/// A registry with an image of one layer and a list of its referrers, by the API or by the tag.
struct Listed {
    layout: Layout,
    image: Stored,
    by_tag: bool,
}

impl Listed {
    fn new(by_tag: bool) -> Self {
        let layout = Layout::default();
        let image = layout.manifest(&[&layer()]);
        Self { layout, image, by_tag }
    }

    fn start(&self, list: Stored, fault: impl Fn(&str) -> Option<Answer> + Send + Sync + 'static) -> Upstream {
        let (image, tag) = (self.image.digest.to_string(), format!("sha256-{}", self.image.digest.hex()));
        let list = list.digest.to_string();
        let mut tags = vec![("1", image.as_str())];
        if self.by_tag {
            tags.push((&tag, &list));
        }
        let images = Images::new(&self.layout, &tags);
        let (api, to) = (format!("/v2/a/b/referrers/{image}"), format!("/v2/a/b/manifests/{list}"));
        let by_tag = self.by_tag;
        Upstream::start(move |request| {
            if request.target == api && !by_tag {
                let mut request = request.clone();
                request.target.clone_from(&to);
                return images.answer(&request);
            }
            if request.target.contains("/referrers/") && !by_tag {
                let none = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": null}).to_string();
                return Answer::new(200, &[("Content-Type", OCI_INDEX)], none.as_bytes());
            }
            fault(&request.target).unwrap_or_else(|| images.answer(request))
        })
    }
}

/// Of a list with damaged entries, the others are packed.
#[test]
fn whole_referrers_are_packed_and_damaged_ones_named() {
    for by_tag in [false, true] {
        let listed = Listed::new(by_tag);
        let (layout, image) = (&listed.layout, listed.image);
        let good = layout.artifact("application/x.good", image, b"good");
        let on_good = layout.artifact("application/x.on-good", good, b"on good");
        let without_blob = layout.artifact("application/x.blob", image, b"no blob");
        let moved_blob = layout.artifact("application/x.blob", image, b"moved blob");
        let wrong_blob = layout.artifact("application/x.blob", image, b"wrong blob");
        let forbidden = layout.artifact("application/x.manifest", image, b"forbidden");
        let garbage = layout.artifact("application/x.manifest", image, b"garbage");
        let deleted = layout.artifact("application/x.manifest", image, b"deleted");
        let other = layout.artifact("application/x.other", without_blob, b"of another");
        // A blob of the image, with another size.
        let false_size = layout.json(&json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {
                "mediaType": "application/x", "digest": Digest::sha256_of(&layer()).to_string(), "size": 5,
            },
            "layers": [], "subject": image.descriptor(OCI_MANIFEST),
        }));
        let all =
            [good, without_blob, moved_blob, wrong_blob, forbidden, garbage, deleted, other, false_size, good, on_good, image];
        let list = index(layout, &all);
        let target = |content: &[u8]| format!("/v2/a/b/blobs/{}", Digest::sha256_of(content));
        let manifest = |stored: Stored| format!("/v2/a/b/manifests/{}", stored.digest);
        let faults = [
            (target(b"no blob"), Answer::error(404, "BLOB_UNKNOWN", "blob unknown")),
            (target(b"moved blob"), Answer::redirect("http://registry.invalid/")),
            (target(b"wrong blob"), Answer::new(200, &[], b"other blob")),
            (manifest(forbidden), Answer::new(403, &[], b"")),
            (manifest(garbage), Answer::new(200, &[("Content-Type", OCI_MANIFEST)], &vec![b'x'; garbage.size])),
            (manifest(deleted), Answer::error(404, "MANIFEST_UNKNOWN", "unknown")),
        ];
        let upstream = listed
            .start(list, move |target| faults.iter().find(|(faulty, _)| faulty == target).map(|(_, answer)| answer.clone()));
        let bench = Bench::default();
        let (_, failed) = pack(&bench, &upstream, &[]);
        let named = |stored: Stored| format!("@{}", stored.digest);
        // `on_good` does not refer to the image, but it does refer to `good`, whose own referrers are listed by the API of this
        // registry as none. Without the API, its tag does not exist.
        assert_packed(&bench, &[(":1", image), (&named(good), good)]);
        assert_eq!(referrers(&bench, &upstream, image), sorted(&[good]));
        let mut expected = sorted(&[without_blob, moved_blob, wrong_blob, forbidden, garbage, deleted, false_size]);
        if !by_tag {
            // The API says that these refer to the image. The image itself is skipped.
            expected.extend(sorted(&[other, on_good]));
        }
        expected.sort();
        let mut found: Vec<String> =
            failed.iter().filter_map(|(what, _)| what.strip_prefix("manifest ")).map(str::to_owned).collect();
        found.sort();
        assert_eq!(found, expected, "{failed:?}");
        if !by_tag {
            let why = &failed.iter().find(|(what, _)| what.ends_with(&other.digest.to_string())).unwrap().1;
            assert_eq!(
                *why,
                format!(
                    "HOST lists manifest {} as a referrer of {}, but its subject is {}",
                    other.digest, image.digest, without_blob.digest
                )
            );
        }
    }
}

#[test]
fn list_of_referrers_is_packed_with_its_tag() {
    let listed = Listed::new(true);
    let (layout, image) = (&listed.layout, listed.image);
    // The second one does not name its subject: only the tag tells it.
    let signature = layout.artifact("application/x", image, b"signed");
    let old = artifact_without_subject(layout, b"attached the old way");
    let list = index(layout, &[signature, old]);
    let upstream = listed.start(list, |_| None);
    let bench = Bench::default();
    assert_eq!(pack(&bench, &upstream, &[]), (Vec::new(), Vec::new()));
    assert_packed(&bench, &[(":1", image), (&format!(":sha256-{}", image.digest.hex()), list)]);
    assert_eq!(referrers(&bench, &upstream, image), sorted(&[signature, old]));
}

/// Some registries take the tag `sha256-HEX` for the digest `sha256:HEX`.
#[test]
fn tag_that_names_its_own_digest_is_no_list_of_referrers() {
    let layout = Layout::default();
    let platforms = [layout.manifest(&[b"one"]), layout.manifest(&[b"two"])];
    let image = index(&layout, &platforms);
    let images = Images::new(&layout, &[("1", &image.digest.to_string())]);
    // With its suffix cut off, too.
    let upstream = Upstream::start(move |request| {
        let mut request = request.clone();
        if let Some((start, hex)) = request.target.split_once("/manifests/sha256-") {
            request.target = format!("{start}/manifests/sha256:{}", hex.split('.').next().unwrap());
        }
        images.answer(&request)
    });
    let bench = Bench::default();
    assert_eq!(pack(&bench, &upstream, &[]), (Vec::new(), Vec::new()));
    assert_packed(&bench, &[(":1", image)]);
    assert_eq!(referrers(&bench, &upstream, image), [""; 0]);
    // So do layouts that were copied from such a registry.
    let mut copied = layout;
    copied.name(image, OCI_INDEX, "test/app:1");
    copied.name(image, OCI_INDEX, &format!("test/app:sha256-{}", image.digest.hex()));
    let other = copied.artifact("application/x", platforms[0], b"of another");
    let list = index(&copied, &[other]);
    copied.name(list, OCI_INDEX, &format!("test/app:sha256-{}", platforms[1].digest.hex()));
    bench.layout("copied", &copied);
    bench.pack(&["copied"]);
    let server = bench.serve();
    for (subject, expected) in [(image, &[][..]), (platforms[0], &[other]), (platforms[1], &[])] {
        let list = http::get(server.plain, &format!("/v2/test/app/referrers/{}", subject.digest)).json();
        let found: Vec<&str> = list["manifests"].as_array().unwrap().iter().map(|one| one["digest"].as_str().unwrap()).collect();
        assert_eq!(found, sorted(expected));
    }
}

/// Tags of this form may name anything.
#[test]
fn tag_with_entries_of_another_subject_is_no_list_of_referrers() {
    for by_tag in [false, true] {
        let listed = Listed::new(by_tag);
        let (layout, image) = (&listed.layout, listed.image);
        let elsewhere = layout.manifest(&[b"another image"]);
        let other = layout.artifact("application/x", elsewhere, b"of another image");
        let list = index(layout, &[other]);
        let upstream = listed.start(list, |_| None);
        let bench = Bench::default();
        let (warnings, failed) = pack(&bench, &upstream, &[]);
        assert_packed(&bench, &[(":1", image)]);
        assert_eq!(referrers(&bench, &upstream, image), [""; 0]);
        assert_eq!((warnings.len(), failed.len()), if by_tag { (0, 0) } else { (1, 1) }, "{failed:?}");
    }
    // Nor is an image under such a tag a list of referrers.
    let listed = Listed::new(true);
    let list = listed.layout.manifest(&[b"tagged by its layer"]);
    let upstream = listed.start(list, |_| None);
    let bench = Bench::default();
    assert_eq!(pack(&bench, &upstream, &[]), (Vec::new(), Vec::new()));
    assert_packed(&bench, &[(":1", listed.image)]);
}

/// A list whose pages never end.
#[test]
fn endless_lists_of_referrers_end_no_pull() {
    let bench = Bench::default();
    let pages = AtomicUsize::new(0);
    let (_layout, image, upstream) = registry(move |request| {
        let empty = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).to_string();
        let next = format!("</v2/a/b/referrers/x?last={}>; rel=\"next\"", pages.fetch_add(1, Ordering::Relaxed));
        let headers = [("Content-Type", OCI_INDEX), ("Link", next.as_str())];
        request.target.contains("/referrers/").then(|| Answer::new(200, &headers, empty.as_bytes()))
    });
    let (warnings, failed) = pack(&bench, &upstream, &[]);
    assert_packed(&bench, &[(":1", image)]);
    assert_eq!(failed, [(format!("some referrers of {}", image.digest), "it has more than 100 pages of referrers".to_owned())]);
    assert_eq!(warnings.len(), 1);
}

/// A registry that lists the three referrers of its image in three pages: `link` gives the values of `Link` for the page with this number,
/// and the path of the list.
fn paged(link: impl Fn(usize, &str) -> Vec<String> + Send + Sync + 'static) -> (Layout, Stored, Vec<Stored>, Upstream) {
    let layout = Layout::default();
    let image = layout.manifest(&[&layer()]);
    let referrers: Vec<Stored> = (0..3_u8).map(|n| layout.artifact("application/x", image, &[n])).collect();
    let (images, all) = (Images::new(&layout, &[("1", &image.digest.to_string())]), referrers.clone());
    let list = format!("/v2/a/b/referrers/{}", image.digest);
    let upstream = Upstream::start(move |request| {
        if !request.target.contains("/referrers/") {
            return images.answer(request);
        }
        let mut entries = Vec::new();
        let mut links = Vec::new();
        if let Some(rest) = request.target.strip_prefix(&list) {
            let page = rest.trim_start_matches(['?', '/']).trim_start_matches("p=").parse().unwrap_or(0);
            entries.extend(all.get(page).map(|one| one.descriptor(OCI_MANIFEST)));
            links = link(page, &list);
        }
        let body = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string();
        let mut answer = Answer::new(200, &[("Content-Type", &OCI_INDEX.to_ascii_uppercase())], body.as_bytes());
        answer.headers.extend(links.into_iter().map(|link| ("Link", link)));
        answer
    });
    (layout, image, referrers, upstream)
}

#[test]
fn every_page_of_referrers_is_read() {
    // The values of Link with LIST for the list, NEXT and PREV for the numbers of pages.
    for form in [
        &["<LIST?p=NEXT>; rel=\"next\""][..],
        &["<LIST?p=NEXT>; Rel=\"Next\""],
        &["<LIST?p=NEXT>; rel=\"next last\""],
        &["<LIST?p=NEXT>; title=\"a, <b>; rel=prev\"; rel=next"],
        &["<LIST?p=PREV>; rel=\"prev\", <LIST?p=NEXT>; rel=\"next\""],
        &["<LIST?p=0>; rel=\"first\"", "<LIST?p=NEXT>; rel=\"next\""],
        &["<LIST/NEXT>; rel=\"next\""],
        &["<http://inner.test/prefix/list?p=NEXT#x>; rel=\"next\""],
        &["<?p=NEXT>;rel=next"],
    ] {
        let (_layout, image, referrers, upstream) = paged(move |page, list| {
            let fill = |text: &&str| text.replace("LIST", list).replace("NEXT", &(page + 1).to_string()).replace("PREV", "0");
            form.iter().filter(|_| page < 2).map(fill).collect()
        });
        let bench = Bench::default();
        assert_eq!(pack(&bench, &upstream, &[]), (Vec::new(), Vec::new()), "{form:?}");
        let names: Vec<String> = referrers.iter().map(|one| format!("@{}", one.digest)).collect();
        let expected: Vec<(&str, Stored)> = names.iter().map(String::as_str).zip(referrers).collect();
        assert_packed(&bench, &[&[(":1", image)], &expected[..]].concat());
    }
}

#[test]
fn list_with_an_unusable_link_keeps_what_was_listed() {
    for (link, pages, why) in [
        ("LIST?p=1; rel=\"next\"", 1, "is not as in RFC 8288: LIST?p=1; rel=\"next\""),
        ("<http://elsewhere.test/>; rel=next", 1, "names no other page: http://elsewhere.test/"),
        ("<LIST?p=1>; rel=next", 2, "names the page referrers/SUBJECT?p=1 again"),
        ("<LIST>; rel=next", 1, "names the page referrers/SUBJECT again"),
    ] {
        let (_layout, image, referrers, upstream) = paged(move |_, list| vec![link.replace("LIST", list)]);
        let bench = Bench::default();
        let (warnings, failed) = pack(&bench, &upstream, &[]);
        let names: Vec<String> = referrers.iter().map(|one| format!("@{}", one.digest)).collect();
        let expected: Vec<(&str, Stored)> = names.iter().map(String::as_str).zip(referrers).take(pages).collect();
        assert_packed(&bench, &[&[(":1", image)], &expected[..]].concat());
        let why =
            why.replace("LIST", &format!("/v2/a/b/referrers/{}", image.digest)).replace("SUBJECT", &image.digest.to_string());
        let said = format!("HOST gives the referrers of {} in a/b in pages, but its Link header {why}", image.digest);
        assert_eq!(failed, [(format!("some referrers of {}", image.digest), said)], "{link}");
        assert_eq!(warnings.len(), 1);
    }
}

/// A body whose end never comes, and that is never silent.
#[test]
fn dripping_answers_keep_no_pull() {
    let cases = [(Asked::Api, 200, 1), (Asked::Tag, 200, 1), (Asked::Api, 404, 0), (Asked::Attachment, 500, 3)];
    at_once(&cases, |&(asked, status, count)| {
        let (_layout, image, upstream) = registry(move |request| {
            let found = Asked::of(&request.target)?;
            let drip = Answer { drips: true, ..Answer::new(status, &[("Content-Type", OCI_INDEX), ("Retry-After", "0")], b"") };
            Some(if found == asked { drip } else { Answer::new(404, &[], b"") })
        });
        let bench = Bench::default();
        let (_, failed) = pack(&bench, &upstream, &["--pull-timeout", "1"]);
        assert_packed(&bench, &[(":1", image)]);
        assert_eq!(failed.len(), count, "{asked:?} {status}: {failed:?}");
        if status == 200 {
            let why = "HOST did not respond within 1 s (whole body); nothing more was looked up for this image";
            assert_eq!(failed[0].1, why);
        }
    });
}

/// Of a list under the tag, what is an image of its own is no referrer.
#[test]
fn tagged_list_of_images_is_no_list_of_referrers() {
    let listed = Listed::new(true);
    let (layout, image) = (&listed.layout, listed.image);
    let plain = layout.manifest(&[b"another image"]);
    let on_platform = artifact_without_subject(layout, b"for a platform");
    let signature = layout.artifact("application/x", image, b"signed");
    let nested = index(layout, &[signature]);
    let mut entries: Vec<Value> = [image, plain, signature].iter().map(|one| one.descriptor(OCI_MANIFEST)).collect();
    entries.push(nested.descriptor(OCI_INDEX));
    let mut entry = on_platform.descriptor(OCI_MANIFEST);
    entry["platform"] = json!({"os": "linux", "architecture": "arm64"});
    entries.push(entry);
    let list = layout.json(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}));
    let upstream = listed.start(list, |_| None);
    let bench = Bench::default();
    assert_eq!(pack(&bench, &upstream, &[]), (Vec::new(), Vec::new()));
    assert_packed(&bench, &[(":1", image), (&format!("@{}", signature.digest), signature)]);
    assert_eq!(referrers(&bench, &upstream, image), sorted(&[signature]));
}

#[test]
fn encoded_body_is_named_with_its_encoding() {
    let (_layout, image, upstream) = registry(|request| {
        let headers = [("Content-Type", OCI_INDEX), ("Content-Encoding", "gzip")];
        Asked::of(&request.target).map(|asked| match asked {
            Asked::Api => Answer::new(200, &headers, b"\x1f\x8b"),
            _ => Answer::new(404, &[], b""),
        })
    });
    let bench = Bench::default();
    let (_, failed) = pack(&bench, &upstream, &[]);
    assert_packed(&bench, &[(":1", image)]);
    let why = format!(
        "HOST gives referrers of {} in a/b with the Content-Encoding gzip, which was not asked for; no encoding is expected",
        image.digest
    );
    assert_eq!(failed, [(format!("the referrers of {}", image.digest), why)]);
}
