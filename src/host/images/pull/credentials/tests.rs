use std::fs;

use base64::engine::general_purpose::STANDARD as PADDED;
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Credentials as user, password and key, or a message.
type Found = Result<Option<(String, String, String)>, String>;

/// The credentials for `image` in a file with this content. Nothing is warned of.
fn found(config: &str, image: &str) -> Found {
    let (found, warnings) = found_in("config.json", config.as_bytes(), image);
    assert_eq!(warnings, Vec::<String>::new());
    found
}

/// The credentials for `image` in a file with this name and content, and the warnings.
fn found_in(name: &str, config: &[u8], image: &str) -> (Found, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let (none, file) = (dir.path().join("none"), dir.path().join(name));
    fs::write(&file, config).unwrap();
    // A path below a device does not exist either.
    let files = [none, Path::new("/dev/null/config.json").to_owned(), file.clone()];
    let without_path = |text: &str| text.replace(file.to_str().unwrap(), "FILE");
    let mut warnings = Vec::new();
    let found = find(&image.parse().unwrap(), &files, &mut |line| warnings.push(without_path(&line)));
    let found = found.map_err(|error| without_path(&error.to_string())).map(|found| {
        found.map(|FoundCredentials { credentials, key, file: from }| {
            assert_eq!(from, file);
            match credentials {
                Credentials::Password(user, password) => {
                    (String::from_utf8_lossy(&user).into_owned(), String::from_utf8_lossy(&password).into_owned(), key)
                }
                Credentials::IdentityToken(token) => ("identity".to_owned(), token, key),
            }
        })
    });
    (found, warnings)
}

fn key_of(config: &str, image: &str) -> Option<String> {
    found(config, image).unwrap().map(|(.., key)| key)
}

/// anna:secret:1
const ANNA: &str = "YW5uYTpzZWNyZXQ6MQ==";

fn anna(key: &str) -> Found {
    Ok(Some(("anna".to_owned(), "secret:1".to_owned(), key.to_owned())))
}

#[test]
fn keys_are_found_in_every_form() {
    for (key, image) in [
        ("quay.io", "quay.io/a/b"),
        ("Quay.IO", "quay.io/a/b"),
        ("quay.io/", "quay.io/a/b"),
        ("quay.io/a", "quay.io/a/b"),
        ("quay.io/a/", "quay.io/a/b"),
        ("quay.io/a/b", "quay.io/a/b"),
        ("quay.io/v2/", "quay.io/a/b"),
        ("https://quay.io", "quay.io/a/b"),
        ("http://quay.io/", "quay.io/a/b"),
        ("https://quay.io/v2/", "quay.io/a/b"),
        ("https://quay.io/other", "quay.io/a/b"),
        ("host:5000", "host:5000/a"),
        ("http://host:5000/v1/", "host:5000/a"),
        ("[::1]:5000", "[::1]:5000/a"),
        ("localhost/a", "localhost/a"),
        ("https://index.docker.io/v1/", "docker.io/library/busybox"),
        ("https://index.docker.io/v1", "docker.io/library/busybox"),
        ("index.docker.io", "docker.io/a/b"),
        ("registry-1.docker.io", "docker.io/a/b"),
        ("docker.io", "docker.io/a/b"),
        ("docker.io/library", "docker.io/library/busybox"),
        ("docker.io/library/busybox", "docker.io/library/busybox"),
    ] {
        assert_eq!(found(&json!({"auths": {key: {"auth": ANNA}}}).to_string(), image), anna(key), "{key}");
    }
    for (key, image) in [
        ("quay.io", "quay.io:443/a"),
        ("quay.io:5000", "quay.io/a"),
        ("quay.io/a", "quay.io/ab"),
        ("quay.io/a/b", "quay.io/a"),
        ("quay.io/b", "quay.io/a/b"),
        ("ay.io", "quay.io/a"),
        ("", "quay.io/a"),
        ("https://", "quay.io/a"),
        ("https://index.docker.io/v1/", "quay.io/a"),
    ] {
        assert_eq!(found(&json!({"auths": {key: {"auth": ANNA}}}).to_string(), image), Ok(None), "{key}");
    }
}

#[test]
fn entries_are_read_in_every_form() {
    for entry in [
        json!({"auth": ANNA}),
        json!({"auth": "YW5uYTpzZWNyZXQ6MQ"}),
        json!({"auth": "YW5uYTpzZW\nNyZXQ6MQ==\n"}),
        json!({"auth": "YW5uYTpzZW\r\nNyZXQ6\t MQ==\r\n"}),
        // Old versions of docker padded with NUL.
        json!({"auth": PADDED.encode("anna:secret:1\0\0")}),
        json!({"auth": ANNA, "username": "other", "password": "other"}),
        json!({"auth": "", "username": "anna", "password": "secret:1"}),
        json!({"auth": null, "username": "anna", "password": "secret:1", "identitytoken": null}),
        json!({"username": "anna", "password": "secret:1", "email": "anna@test", "identitytoken": ""}),
    ] {
        assert_eq!(found(&json!({"auths": {"quay.io": entry}}).to_string(), "quay.io/a"), anna("quay.io"), "{entry}");
    }
    let token = Ok(Some(("identity".to_owned(), "t".to_owned(), "quay.io".to_owned())));
    for entry in [json!({"auth": "", "identitytoken": "t"}), json!({"auth": ANNA, "identitytoken": "t"})] {
        assert_eq!(found(&json!({"auths": {"quay.io": entry}}).to_string(), "quay.io/a"), token);
    }
    for config in [
        "",
        " \n",
        "{}",
        r#"{"auths":{}}"#,
        r#"{"auths":null,"credHelpers":null,"credsStore":null}"#,
        r#"{"auths":{"quay.io":null},"credHelpers":{"quay.io":null},"credsStore":""}"#,
        r#"{"auths":{"quay.io":{}}}"#,
        r#"{"auths":{"quay.io":{"auth":"Og=="}}}"#,
        r#"{"auths":{"quay.io":{"auth":"","username":"","password":""}},"HttpHeaders":{"a":"b"}}"#,
    ] {
        assert_eq!(found(config, "quay.io/a"), Ok(None), "{config}");
    }
}

#[test]
fn plain_keys_and_full_entries_go_first() {
    let auths = |keys: &[&str]| {
        let entries: Map<_, _> = keys.iter().map(|key| ((*key).to_owned(), json!({"auth": ANNA}))).collect();
        json!({ "auths": entries }).to_string()
    };
    for (keys, image, expected) in [
        (&["https://quay.io", "quay.io", "quay.io/"][..], "quay.io/a", "quay.io"),
        (&["quay.io/a/", "quay.io/a", "quay.io"], "quay.io/a/b", "quay.io/a"),
        (&["docker.io", "https://index.docker.io/v1/"], "docker.io/library/a", "https://index.docker.io/v1/"),
        (
            &["https://index.docker.io/v1/access-token", "https://index.docker.io/v1/"],
            "docker.io/library/a",
            "https://index.docker.io/v1/",
        ),
        (&["docker.io/library", "https://index.docker.io/v1/"], "docker.io/library/a", "docker.io/library"),
    ] {
        assert_eq!(key_of(&auths(keys), image).as_deref(), Some(expected), "{keys:?}");
    }
    // Docker writes an empty entry for a registry whose credentials a helper has.
    let config = json!({"auths": {"quay.io": {"auth": ANNA}, "quay.io/a": {}}}).to_string();
    assert_eq!(key_of(&config, "quay.io/a/b").as_deref(), Some("quay.io"));
}

#[test]
fn first_file_with_credentials_counts() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, config: Value| {
        fs::write(dir.path().join(name), config.to_string()).unwrap();
        dir.path().join(name)
    };
    let first = file("first", json!({"auths": {"other.test": {"auth": ANNA}, "quay.io": {}}}));
    let second = file("second", json!({"auths": {"quay.io": {"auth": ANNA}}}));
    let third = file("third", json!({"auths": {"quay.io/a/b": {"auth": ANNA}}}));
    let broken = file("broken", json!([]));
    let image = "quay.io/a/b".parse().unwrap();
    let found = |files: &[&PathBuf]| {
        find(&image, &files.iter().map(|file| (*file).clone()).collect::<Vec<_>>(), &mut |line| panic!("{line}"))
    };
    assert!(found(&[&first, &second, &third, &broken]).unwrap().is_some_and(|found| found.file == second));
    assert!(found(&[&first, &third, &second]).unwrap().is_some_and(|found| found.file == third));
    assert!(found(&[&first]).unwrap().is_none());
    assert!(found(&[&broken, &second]).is_err());
}

#[test]
fn errors_name_the_file_and_the_key_and_show_no_secret() {
    let entry =
        |key: &str| format!("the entry for \"{key}\" in FILE is damaged: base64 of user:password is expected in \"auth\"");
    let json =
        |what: &str| format!("the credentials in FILE cannot be read: {what}; the JSON of docker's config.json is expected");
    let types = "\"auths\" or \"credHelpers\" is no object";
    for (config, expected) in [
        ("{\"auths\": ", json("line 1, column 9 is not JSON")),
        ("{\n\"auths\": secret", json("line 2, column 10 is not JSON")),
        (r#"{"auths":["secret"]}"#, json(types)),
        (r#"{"credHelpers":"secret"}"#, json(types)),
        (r#"["secret"]"#, json("it is no JSON object")),
        (r#""secret""#, json("it is no JSON object")),
        (r#"{"auths":{"quay.io":{"auth":5}}}"#, entry("quay.io")),
        (r#"{"auths":{"quay.io":"secret"}}"#, entry("quay.io")),
        (r#"{"auths":{"https://quay.io/v2/":{"auth":"secret!"}}}"#, entry("https://quay.io/v2/")),
        (r#"{"auths":{"quay.io/a":{"auth":"YTpi="},"quay.io":{"auth":"YTpi"}}}"#, entry("quay.io/a")),
        (
            r#"{"credHelpers":{"quay.io":"no-such-helper"}}"#,
            "the credential helper that FILE names for \"quay.io\" is not there or cannot be run; try it with \
             `echo quay.io | docker-credential-no-such-helper get`"
                .to_owned(),
        ),
    ] {
        assert_eq!(found(config, "quay.io/a/b").unwrap_err(), expected);
    }
    // Entries that do not apply do not matter, and neither does a general helper if an entry does, or if the registry has none.
    for entry in [r#"{"auth":"c2VjcmV0"}"#, r#"{"auth":"!"}"#, "5"] {
        assert_eq!(found(&format!(r#"{{"auths":{{"quay.io":{entry}}}}}"#), "host:5000/a"), Ok(None));
    }
    let config = json!({"auths": {"quay.io": {"auth": ANNA}}, "credsStore": "no-such-helper"}).to_string();
    assert_eq!(found(&config, "quay.io/a"), anna("quay.io"));
    assert_eq!(found(r#"{"credHelpers":{"quay.io":""},"credsStore":"no-such-helper"}"#, "quay.io/a"), Ok(None));
}

/// As containers/image (`decodeDockerAuth`) and docker/cli (`decodeAuth`, whose error ends the use of the file, not of the command) do.
#[test]
fn what_most_clients_pass_over_is_warned_of() {
    let passed_over = |key: &str| {
        format!(
            "the entry for \"{key}\" in FILE is passed over: base64 of user:password is expected in \"auth\", and it has no colon"
        )
    };
    let general = "the credential helper that FILE names for \"quay.io\" is not there or cannot be run; try it with \
                   `echo quay.io | docker-credential-no-such-helper get`; it is passed over";
    let nobody = "the entry for \"quay.io\" in FILE has no user; most registries refuse that";
    for (config, expected, warning) in [
        (r#"{"auths":{"quay.io":{"auth":"c2VjcmV0"}}}"#, None, passed_over("quay.io")),
        (r#"{"auths":{"quay.io":{"auth":"//8="}}}"#, None, passed_over("quay.io")),
        (r#"{"auths":{"quay.io/a":{"auth":"c2VjcmV0"},"quay.io":{"auth":"YTpi"}}}"#, Some("a:b"), passed_over("quay.io/a")),
        (r#"{"auths":{"quay.io":{"auth":"OmI="}}}"#, Some(":b"), nobody.to_owned()),
        (r#"{"credsStore":"no-such-helper"}"#, None, general.to_owned()),
    ] {
        let (found, warnings) = found_in("config.json", config.as_bytes(), "quay.io/a");
        let found = found.unwrap().map(|(user, password, _)| format!("{user}:{password}"));
        assert_eq!((found.as_deref(), warnings), (expected, vec![warning]), "{config}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    fs::write(&file, "{}").unwrap();
    let mut warnings = Vec::new();
    let found = find(&"quay.io/a".parse().unwrap(), &[file.join("config.json")], &mut |line| warnings.push(line));
    assert!(found.unwrap().is_none());
    let file = file.display();
    let expected = "a variable such as DOCKER_CONFIG names a folder";
    assert_eq!(warnings, [format!("there are no credentials in {file}/config.json, because {file} is a file; {expected}")]);
}

#[test]
fn files_are_read_as_go_reads_them() {
    let good = json!({"auth": ANNA});
    for config in [
        // The last of equal keys counts, and of what no key leads to, types do not matter.
        format!(r#"{{"auths":{{"quay.io":{{"auth":"YTpi"}}}},"auths":{{"quay.io":{good}}}}}"#).into_bytes(),
        format!(r#"{{"auths":{{"quay.io":{good},"other.test":7}},"credsStore":7,"credHelpers":{{"a":7}},"x":[1]}}"#).into_bytes(),
        format!(r#"{{"auths":{{"quay.io":{{"auth":"{ANNA}","username":7,"email":{{}}}}}}}}"#).into_bytes(),
        // Names of fields in any case, but not those of registries.
        format!(r#"{{"Auths":{{"quay.io":{{"Auth":"{ANNA}"}}}}}}"#).into_bytes(),
        br#"{"AUTHS":{"quay.io":{"USERNAME":"anna","Password":"secret:1","IdentityToken":""}}}"#.to_vec(),
        // A byte order mark, and what is not UTF-8.
        format!("\u{feff}{{\"auths\":{{\"quay.io\":{good}}}}}\r\n").into_bytes(),
        [b"{\"a\":\"\xff\",\"auths\":{\"quay.io\":", good.to_string().as_bytes(), b"}}"].concat(),
    ] {
        let (found, warnings) = found_in("config.json", &config, "quay.io/a");
        assert_eq!((found, warnings), (anna("quay.io"), vec![]), "{}", String::from_utf8_lossy(&config));
    }
    for name in ["config.json", ".dockercfg"] {
        assert_eq!(found_in(name, b" null\n", "quay.io/a"), (Ok(None), vec![]), "{name}");
    }
    let general = found(r#"{"CREDHELPERS":{"quay.io":"no-such-helper"}}"#, "quay.io/a");
    assert!(general.is_err_and(|said| said.contains("docker-credential-no-such-helper")));
    // Docker's old file has no level "auths".
    for key in ["quay.io", "https://quay.io/v1/", "https://quay.io/v2"] {
        let legacy = json!({key: {"auth": ANNA, "email": "a@b"}}).to_string();
        assert_eq!(found_in(".dockercfg", legacy.as_bytes(), "quay.io/a"), (anna(key), vec![]));
        assert_eq!(found(&legacy, "quay.io/a"), Ok(None));
    }
    // A password that is not UTF-8 is sent as it is.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    fs::write(&file, json!({"auths": {"quay.io": {"auth": PADDED.encode(b"anna:\xe9")}}}).to_string()).unwrap();
    let found = find(&"quay.io/a".parse().unwrap(), &[file], &mut |line| panic!("{line}")).unwrap().unwrap();
    assert!(found.credentials == Credentials::Password(b"anna".to_vec(), b"\xe9".to_vec()));
}

#[test]
fn environment_selects_the_credential_files() {
    type Variables = &'static [(&'static str, &'static str)];
    let cases: [(Variables, &[&str]); 4] = [
        (
            &[("HOME", "/h")],
            &["/run/containers/7/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json", "/h/.dockercfg"],
        ),
        (
            &[("HOME", "/h"), ("DOCKER_CONFIG", "/d"), ("XDG_CONFIG_HOME", "/c"), ("XDG_RUNTIME_DIR", "")],
            &["/d/config.json", "/run/containers/7/auth.json", "/c/containers/auth.json", "/h/.dockercfg"],
        ),
        (
            &[("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/r.json"), ("XDG_RUNTIME_DIR", "/x")],
            &[
                "/r.json",
                "/x/containers/auth.json",
                "/run/containers/7/auth.json",
                "/h/.config/containers/auth.json",
                "/h/.docker/config.json",
                "/h/.dockercfg",
            ],
        ),
        (&[], &["/run/containers/7/auth.json"]),
    ];
    for (variables, expected) in cases {
        let found = files(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()), 7);
        assert_eq!(found, expected.iter().map(Path::new).collect::<Vec<_>>());
    }
}

const HOSTS: [&str; 4] = ["quay.io", "quay.io:5000", "docker.io", "[::1]:5000"];
const NAMES: [&str; 3] = ["a", "ab", "a-b"];

/// A key: the number of its host, its namespace, and how it is written.
type Key = (usize, Vec<usize>, usize);

fn key() -> impl Strategy<Value = Key> {
    (0..HOSTS.len(), prop::collection::vec(0..NAMES.len(), 0..4), 0..4_usize)
}

fn written((host, names, form): &Key) -> String {
    let path: String = names.iter().map(|name| format!("/{}", NAMES[*name])).collect();
    let host = match (HOSTS[*host], form) {
        ("docker.io", 1) => "index.docker.io",
        (host, _) => host,
    };
    match (form, names.is_empty()) {
        (2, _) => format!("{host}{path}/"),
        (3, true) => format!("https://{host}/v2/"),
        _ => format!("{host}{path}"),
    }
}

fn entry(number: usize) -> Value {
    let (user, password) = (format!("user{number}"), format!("password:{number}"));
    let auth = PADDED.encode(format!("{user}:{password}"));
    match number % 4 {
        0 => json!({ "auth": auth }),
        1 => json!({"auth": format!("{}\n{}\n", &auth[..8], &auth[8..])}),
        2 => json!({"auth": "", "username": user, "password": password}),
        _ => json!({"auth": auth.trim_end_matches('=')}),
    }
}

proptest! {
    /// Compares components, while the code compares text.
    #[test]
    fn most_specific_key_wins(keys in prop::collection::vec(key(), 0..12), host in 0..HOSTS.len(),
                              names in prop::collection::vec(0..NAMES.len(), 1..5)) {
        // One key for each scope: which of several forms wins is another rule.
        let mut of_scope: BTreeMap<(usize, Vec<usize>), usize> = BTreeMap::new();
        for (number, (host, names, _)) in keys.iter().enumerate() {
            of_scope.entry((*host, names.clone())).or_insert(number);
        }
        let auths: Map<_, _> =
            of_scope.values().map(|number| (written(&keys[*number]), entry(*number))).collect();
        let expected = (0..=names.len()).rev().find_map(|depth| of_scope.get(&(host, names[..depth].to_vec())).copied());
        let image: String = names.iter().fold(HOSTS[host].to_owned(), |image, name| format!("{image}/{}", NAMES[*name]));
        // Docker Hub's images have a namespace.
        prop_assume!(HOSTS[host] != "docker.io" || names.len() > 1);
        let expected = expected
            .map(|number| (format!("user{number}"), format!("password:{number}"), written(&keys[number])));
        prop_assert_eq!(found(&json!({ "auths": auths }).to_string(), &image), Ok(expected));
    }
}
