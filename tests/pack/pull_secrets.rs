//! `localregistry pack --pull` sends credentials to the registry they belong to, and to no other host.

use std::fs;

use localregistry::oci::Digest;
use serde_json::json;
use testing::certificates;
use testing::layout::{Layout, Stored};
use testing::pack::Bench;
use testing::upstream::{Answer, MANIFEST, Upstream, blob_target, layer, refused_with, registry};

/// Docker's configuration with a password for `host`.
fn log_in(bench: &Bench, host: &str, entry: serde_json::Value) {
    fs::create_dir_all(bench.path(".docker")).unwrap();
    bench.file(".docker/config.json", json!({"auths": {host: entry}}).to_string().as_bytes());
}

/// anna:secret
const ANNA: &str = "YW5uYTpzZWNyZXQ=";

#[test]
fn redirects_carry_no_credentials() {
    let elsewhere = Upstream::start(|_| Answer::new(200, &[], &layer()));
    let (blob, to) = (blob_target(), format!("http://{}/store/blob?signature=1", elsewhere.address));
    let (_layout, _, upstream) = registry(move |request| {
        if request.header("authorization") != Some(&format!("Basic {ANNA}")) {
            return Some(Answer::new(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""));
        }
        (request.target == blob).then(|| Answer::redirect(&to))
    });
    let (bench, host) = (Bench::default(), upstream.address.to_string());
    log_in(&bench, &host, json!({"auth": ANNA}));
    bench.pack(&["--pull", &format!("{host}/a/b:1")]);
    assert_eq!(bench.extract("disk.erofs").blob(&Digest::sha256_of(&layer()).to_string()), layer());
    let requests = elsewhere.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!((requests[0].target.as_str(), requests[0].header("authorization")), ("/store/blob?signature=1", None));
}

#[test]
fn challenge_from_a_redirect_target_is_not_answered() {
    let elsewhere = Upstream::start(|_| Answer::new(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""));
    let (blob, to) = (blob_target(), format!("http://{}/blob", elsewhere.address));
    let (_layout, _, upstream) = registry(move |request| (request.target == blob).then(|| Answer::redirect(&to)));
    let (bench, host) = (Bench::default(), upstream.address.to_string());
    log_in(&bench, &host, json!({"auth": ANNA}));
    bench.refused(
        &["--pull", &format!("{host}/a/b:1")],
        &format!(
            "cannot pull {host}/a/b:1: {} denies access to blob {} of a/b (401)",
            elsewhere.address,
            Digest::sha256_of(&layer())
        ),
    );
    assert!(elsewhere.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn bad_redirects_are_refused() {
    refused_with(MANIFEST, Answer::redirect(MANIFEST), "it has more than 5 redirects on the way to one answer");
    refused_with(MANIFEST, Answer::redirect("ftp://x/?secret"), "\"ftp://x/\" is not an http or https URL");
    // From TLS to plain HTTP.
    let (ca, certificate, key) = certificates::server();
    let upstream = Upstream::start_on("127.0.0.1:0", Some((&certificate, &key)), |request| match request.target.as_str() {
        "/v2/" => Answer::new(200, &[], b""),
        _ => Answer::redirect("http://127.0.0.1/x?signature=secret"),
    });
    let (bench, host) = (Bench::default(), upstream.address.to_string());
    bench.file("ca.crt", ca.as_bytes());
    bench.refused(
        &["--pull", &format!("{host}/a/b:1"), "--registry-ca", "ca.crt"],
        &format!("cannot pull {host}/a/b:1: {host} redirects to http://127.0.0.1/x, which is plain HTTP; https is expected"),
    );
}

/// A registry that requires the token `t`, which the service `realm` issues.
fn with_tokens(realm: String) -> (Layout, Stored, Upstream) {
    registry(move |request| {
        let challenge = format!("Bearer realm=\"{realm}\",service=\"the registry\",scope=\"repository:a/b:pull\"");
        let refused = request.header("authorization") != Some("Bearer t") && request.target != "/v2/";
        refused.then(|| Answer::new(401, &[("WWW-Authenticate", &challenge)], b""))
    })
}

#[test]
fn tokens_are_fetched_by_password_and_by_refresh_token() {
    let service = Upstream::start(|request| match (request.method.as_str(), request.header("authorization")) {
        ("GET", Some(shown)) if shown == format!("Basic {ANNA}") => Answer::new(200, &[], br#"{"token":"t"}"#),
        ("POST", None) if request.body.contains("refresh_token=r%2B1") => Answer::new(200, &[], br#"{"access_token":"t"}"#),
        _ => Answer::error(401, "UNAUTHORIZED", "who?"),
    });
    let (_layout, image, upstream) = with_tokens(format!("http://{}/token?account=x", service.address));
    let (bench, host) = (Bench::default(), upstream.address.to_string());
    let name = format!("{host}/a/b:1");
    for entry in [json!({"auth": ANNA}), json!({"auth": "", "identitytoken": "r+1"})] {
        log_in(&bench, &host, entry);
        bench.pack(&["--pull", &name]);
        assert_eq!(bench.extract("disk.erofs").images(), [(name.clone(), image.digest.to_string())]);
    }
    let requests = service.requests();
    // One token serves all requests.
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].target, "/token?account=x&service=the+registry&scope=repository%3Aa%2Fb%3Apull");
    assert_eq!(
        requests[1].body,
        "service=the+registry&scope=repository%3Aa%2Fb%3Apull&grant_type=refresh_token&client_id=localregistry&refresh_token=r%2B1"
    );
    // Requests to the registry before there was a token carried none.
    assert!(upstream.requests().iter().all(|request| matches!(request.header("authorization"), None | Some("Bearer t"))));
    fs::remove_dir_all(bench.path(".docker")).unwrap();
    bench.refused(
        &["--pull", &name],
        &format!(
            "cannot pull {name}: {host} asks for credentials (401: UNAUTHORIZED: who?), and there are none for it in {}; \
             run `docker login {host}`",
            bench.credential_files()
        ),
    );
}

#[test]
fn identity_tokens_that_a_token_service_does_not_take_are_named() {
    let bench = Bench::default();
    for status in [404, 405] {
        let service = Upstream::start(move |request| match request.method.as_str() {
            "POST" => Answer::error(status, "UNSUPPORTED", "the registry is read-only"),
            _ => Answer::new(200, &[], br#"{"token":"t"}"#),
        });
        let realm = format!("http://{}/t", service.address);
        let (_layout, _, upstream) = with_tokens(format!("{realm}?account=x"));
        let host = upstream.address.to_string();
        log_in(&bench, &host, json!({"auth": "", "identitytoken": "r+1"}));
        let file = bench.path(".docker/config.json");
        bench.refused(
            &["--pull", &format!("{host}/a/b:1")],
            &format!(
                "cannot pull {host}/a/b:1: {realm} does not take the identity token for \"{host}\" in {} ({status}: UNSUPPORTED: the \
                 registry is read-only): such a token is sent in a POST request, which not every registry takes; log in with a user and \
                 a password instead",
                file.display()
            ),
        );
    }
}

#[test]
fn failing_token_services_are_reported() {
    let bench = Bench::default();
    let pull = |realm: &str, expected: &str| {
        let (_layout, _, upstream) = with_tokens(realm.to_owned());
        let host = upstream.address.to_string();
        log_in(&bench, &host, json!({"auth": ANNA}));
        bench.refused(
            &["--pull", &format!("{host}/a/b:1")],
            &format!("cannot pull {host}/a/b:1: {}", expected.replace("HOST", &host)),
        );
        assert!(upstream.requests().iter().all(|request| request.header("authorization").is_none()));
    };
    pull(
        "http://registry.test/t?x=secret",
        "HOST names the token service http://registry.test/t, which is plain HTTP; no request is sent there",
    );
    pull(
        "https://registry.test/t",
        "HOST names the token service https://registry.test/t, which is another host, although the registry itself is plain HTTP; \
         no request is sent there",
    );
    for (answer, why) in [
        (&b"{\"token\": secret}"[..], "the answer is not JSON of that kind"),
        (b"{}", "the answer has neither \"token\" nor \"access_token\""),
        (b"{\"token\":\"a\\r\\nb\"}", "it contains characters that a header cannot have"),
    ] {
        let answer = answer.to_owned();
        let service = Upstream::start(move |_| Answer::new(200, &[], &answer));
        let realm = format!("http://{}/t", service.address);
        pull(&realm, &format!("{realm} gives no token: {why}"));
    }
    let service = Upstream::start(|_| Answer::new(200, &[], &vec![b' '; (1 << 20) + 1]));
    let realm = service.address.to_string();
    pull(&format!("http://{realm}/t"), &format!("{realm} gives a token with more than 1048576 bytes"));
}
