//! Authentication with passwords, tokens and client certificates: which requests are accepted, and which are refused.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use localregistry::proto::event;
use localregistry::registry::auth::client_certificate::{ClientCa, Presence};
use localregistry::registry::auth::htpasswd::Htpasswd;
use localregistry::registry::auth::token::Signer;
use localregistry::registry::auth::users::Users;
use localregistry::registry::auth::{Auth, Tokens};
use localregistry::registry::http::error::RegistryError;
use localregistry::registry::http::reply;
use testing::certificates::{self as tls, ClientAuthority, Identity};
use testing::http::{self, Response, get, send};
use testing::layout::{Layout, Stored};
use testing::server::{Server, Setup};

const BASIC: &str = r#"Basic realm="localregistry""#;
const TARGET: &str = "/v2/test/hello/manifests/latest";
const LIFETIME: Duration = Duration::from_secs(300);

struct Fixture {
    server: Server,
    image: Stored,
    _layout: Layout,
}

fn serve(setup: Setup) -> Fixture {
    let mut layout = Layout::default();
    let image = layout.image("test/hello:latest", b"a layer");
    layout.image("test/other:latest", b"another layer");
    layout.image("docker.io/library/busybox:1", b"busybox");
    Fixture { server: Server::start_as(layout.write(), setup), image, _layout: layout }
}

/// anna, whose password is "one:1", and bert, whose password is "two".
fn users() -> Users {
    let line = |user: &str, password: &str| format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap());
    Users::new(Htpasswd::parse((line("anna", "one:1") + &line("bert", "two")).as_bytes(), "users").unwrap()).unwrap()
}

fn with_users() -> Fixture {
    serve(Setup { auth: Auth::Basic(Box::new(users())), ..Setup::default() })
}

fn with_tokens(users: Option<Users>, anonymous: bool, lifetime: Duration) -> Fixture {
    let signer = Signer::new(lifetime).unwrap();
    serve(Setup { auth: Auth::Token(Box::new(Tokens { users, anonymous, signer })), ..Setup::default() })
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn authorized(f: &Fixture, target: &str, authorization: &str) -> Response {
    send(f.server.plain, "GET", target, &[("Authorization", authorization)])
}

/// Requests a token and returns it.
fn token(f: &Fixture, query: &str, authorization: &str) -> String {
    let response = authorized(f, &format!("/token?{query}"), authorization);
    assert_eq!(response.status, 200, "{}", String::from_utf8_lossy(&response.body));
    response.json()["token"].as_str().unwrap().to_owned()
}

fn assert_refused(response: &Response, challenge: &str) {
    assert_eq!((response.status, response.header("www-authenticate")), (401, Some(challenge)));
    assert_eq!((response.code().as_str(), response.header("content-type")), ("UNAUTHORIZED", Some("application/json")));
}

#[test]
fn anonymous_pulls_are_allowed_by_default_with_any_credentials() {
    let f = serve(Setup::default());
    for authorization in [basic("anna", "x"), "Bearer x".into(), "nonsense".into()] {
        let response = authorized(&f, TARGET, &authorization);
        assert_eq!(response.status, 200, "{authorization}");
        assert_eq!(response.header("cache-control"), Some("public, max-age=5, must-revalidate"));
    }
    let unknown = get(f.server.plain, "/token");
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "UNSUPPORTED"), "tokens are not enabled");
}

#[test]
fn users_pull_with_their_passwords() {
    let f = with_users();
    for (user, password) in [("anna", "one:1"), ("bert", "two"), ("anna", "one:1")] {
        for target in ["/v2/", TARGET, "/v2/_catalog", "/v2/test/hello/tags/list", "/metrics"] {
            assert_eq!(authorized(&f, target, &basic(user, password)).status, 200, "{user} {target}");
        }
    }
    let found = authorized(&f, TARGET, &basic("anna", "one:1"));
    assert_eq!(found.header("cache-control"), Some("private, max-age=5, must-revalidate"), "shared caches must not store it");
    assert_eq!(found.header("docker-content-digest"), Some(f.image.digest.to_string().as_str()));
    let by_digest = authorized(&f, &format!("/v2/test/hello/manifests/{}", f.image.digest), &basic("bert", "two"));
    assert_eq!(by_digest.header("cache-control"), Some("private, max-age=31536000, immutable"));
}

#[test]
fn wrong_or_missing_credentials_get_401_with_a_challenge() {
    let f = with_users();
    let blob = format!("/v2/test/hello/blobs/{}", f.image.digest);
    let referrers = format!("/v2/test/hello/referrers/{}", f.image.digest);
    for target in
        ["/v2/", TARGET, "/v2/_catalog", "/v2/test/hello/tags/list", "/v2/none/tags/list", "/metrics", &blob, &referrers]
    {
        assert_refused(&get(f.server.plain, target), BASIC);
    }
    for authorization in [
        basic("anna", "two"),
        basic("anna", ""),
        basic("anna", "one"),
        basic("carl", "one:1"),
        basic("", "one:1"),
        basic("Anna", "one:1"),
        "Basic".into(),
        "Basic !".into(),
        "Bearer x".into(),
        "Digest username=\"anna\"".into(),
        format!("{}, {}", basic("anna", "one:1"), basic("anna", "one:1")),
    ] {
        assert_refused(&authorized(&f, TARGET, &authorization), BASIC);
    }
    let right = basic("anna", "one:1");
    let two = send(f.server.plain, "GET", TARGET, &[("Authorization", &right), ("Authorization", &right)]);
    assert_refused(&two, BASIC);
    let head = send(f.server.plain, "HEAD", TARGET, &[]);
    assert_eq!((head.status, head.header("www-authenticate"), head.body.len()), (401, Some(BASIC), 0));
}

#[test]
fn health_ca_and_error_responses_need_no_password() {
    let f = with_users();
    assert_eq!(get(f.server.plain, "/healthz").status, 200);
    assert_eq!(get(f.server.plain, "/ca.crt").status, 200);
    for (target, status) in [("/", 404), ("/v2/test/hello", 404), ("/v2/A/manifests/x", 400), ("/token", 404)] {
        assert_eq!(get(f.server.plain, target).status, status, "{target}");
    }
    let push = send(f.server.plain, "POST", "/v2/test/hello/blobs/uploads/", &[("Content-Length", "0")]);
    assert_eq!((push.status, push.header("allow")), (405, Some("GET, HEAD")));
}

#[test]
fn too_many_waiting_password_checks_get_429_with_retry_after() {
    let response = reply::error(&RegistryError::Busy("too many passwords wait to be verified"));
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()), (429, "1"));
}

#[test]
fn credentials_do_not_reach_the_log() {
    let f = with_tokens(Some(users()), false, LIFETIME);
    let token = token(&f, "account=anna&scope=repository:test/hello:pull", &basic("anna", "one:1"));
    authorized(&f, TARGET, &format!("Bearer {token}"));
    authorized(&f, TARGET, &basic("anna", "wrong"));
    let events: Vec<event::Event> = (0..3).map(|_| f.server.event()).collect();
    let shown = format!("{events:?}");
    for secret in ["one:1", "wrong", &token, &STANDARD.encode("anna:one:1"), "account", "Bearer"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    let event::Event::Request(request) = &events[0] else { panic!("{events:?}") };
    assert_eq!((request.endpoint.as_str(), request.status), ("token", 200));
}

#[test]
fn a_challenge_names_the_token_endpoint_and_the_scope() {
    let f = with_tokens(Some(users()), false, LIFETIME);
    let host = f.server.plain;
    let bearer = |scope: &str| format!(r#"Bearer realm="http://{host}/token",service="localregistry"{scope}"#);
    let digest = f.image.digest;
    for (target, scope) in [
        ("/v2/".to_owned(), ""),
        (TARGET.into(), r#",scope="repository:test/hello:pull""#),
        (format!("/v2/test/hello/blobs/{digest}"), r#",scope="repository:test/hello:pull""#),
        (format!("/v2/test/hello/referrers/{digest}"), r#",scope="repository:test/hello:pull""#),
        ("/v2/test/hello/tags/list".into(), r#",scope="repository:test/hello:pull""#),
        ("/v2/none/tags/list".into(), r#",scope="repository:none:pull""#),
        ("/v2/docker.io/library/busybox/manifests/1".into(), r#",scope="repository:docker.io/library/busybox:pull""#),
        ("/v2/library/busybox/manifests/1?ns=docker.io".into(), r#",scope="repository:library/busybox:pull""#),
        ("/v2/_catalog".into(), r#",scope="registry:catalog:*""#),
    ] {
        assert_refused(&get(host, &target), &bearer(scope));
    }
    assert_refused(&authorized(&f, "/v2/", &basic("anna", "one:1")), &bearer(""));

    let version = &rustls::version::TLS13;
    let over_tls = tls::send(f.server.tls, &tls::client(&f.server.ca_pem, version, None), "GET", "/v2/", &[]).unwrap();
    let realm = format!(r#"Bearer realm="https://localhost:{}/token",service="localregistry""#, f.server.tls.port());
    assert_refused(&over_tls, &realm);
    let by_name = http::raw(host, b"GET /v2/ HTTP/1.1\r\nHost: Registry.test\r\n\r\n");
    assert_refused(&by_name, r#"Bearer realm="http://registry.test/token",service="localregistry""#);
    let forged = http::raw(host, b"GET /v2/ HTTP/1.1\r\nHost: a\",x=\"b\r\n\r\n");
    assert!(forged.status == 400 || forged.header("www-authenticate") == Some(&bearer("")), "{forged:?}");
}

#[test]
fn token_grants_only_its_scopes() {
    let f = with_tokens(Some(users()), false, LIFETIME);
    let answer = authorized(&f, "/token?service=localregistry&scope=repository:test/hello:pull,push", &basic("anna", "one:1"));
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let answer = answer.json();
    assert_eq!((&answer["expires_in"], &answer["access_token"]), (&300.into(), &answer["token"]));
    assert!(answer["issued_at"].as_str().unwrap().ends_with('Z'), "{answer}");
    let bearer = format!("Bearer {}", answer["token"].as_str().unwrap());
    let blob = format!("/v2/test/hello/blobs/{}", f.image.digest);
    for target in ["/v2/", TARGET, "/v2/test/hello/tags/list", &blob] {
        assert_eq!(authorized(&f, target, &bearer).status, 200, "{target}");
    }
    let found = authorized(&f, TARGET, &bearer);
    assert_eq!(found.header("cache-control"), Some("private, max-age=5, must-revalidate"));

    let challenge = |name: &str| {
        let host = f.server.plain;
        format!(r#"Bearer realm="http://{host}/token",service="localregistry",scope="{name}",error="insufficient_scope""#)
    };
    assert_refused(&authorized(&f, "/v2/test/other/tags/list", &bearer), &challenge("repository:test/other:pull"));
    assert_refused(&authorized(&f, "/v2/_catalog", &bearer), &challenge("registry:catalog:*"));

    let both = token(&f, "scope=repository:test/hello:pull&scope=repository:test/other:pull", &basic("bert", "two"));
    let catalog = token(&f, "scope=registry:catalog:*%20repository:test/hello:pull", &basic("bert", "two"));
    assert_eq!(authorized(&f, "/v2/test/other/tags/list", &format!("bearer {both}")).status, 200);
    assert_eq!(authorized(&f, "/v2/_catalog", &format!("Bearer {catalog}")).status, 200);
    let none = token(&f, "", &basic("bert", "two"));
    assert_eq!(authorized(&f, "/v2/", &format!("Bearer {none}")).status, 200, "a login asks for no scope");
    assert_refused(&authorized(&f, TARGET, &format!("Bearer {none}")), &challenge("repository:test/hello:pull"));
}

#[test]
fn forged_foreign_and_expired_tokens_are_rejected() {
    let f = with_tokens(Some(users()), false, LIFETIME);
    let other = with_tokens(Some(users()), false, LIFETIME);
    let ended = with_tokens(Some(users()), false, Duration::ZERO);
    let good = token(&f, "scope=repository:test/hello:pull", &basic("anna", "one:1"));
    let foreign = token(&other, "scope=repository:test/hello:pull", &basic("anna", "one:1"));
    let challenge = |f: &Fixture| {
        let host = f.server.plain;
        let realm = format!(r#"Bearer realm="http://{host}/token",service="localregistry""#);
        format!(r#"{realm},scope="repository:test/hello:pull",error="invalid_token""#)
    };
    let (claims, signature) = good.split_once('.').unwrap();
    for forged in [foreign.as_str(), "x", claims, &format!("{claims}."), &format!("e30.{signature}"), &format!("{good}x")] {
        assert_refused(&authorized(&f, TARGET, &format!("Bearer {forged}")), &challenge(&f));
    }
    assert_eq!(authorized(&f, TARGET, &format!("Bearer {good}")).status, 200);
    let over = token(&ended, "scope=repository:test/hello:pull", &basic("anna", "one:1"));
    assert_refused(&authorized(&ended, TARGET, &format!("Bearer {over}")), &challenge(&ended));
}

#[test]
fn token_endpoint_requires_a_password() {
    let f = with_tokens(Some(users()), false, LIFETIME);
    let target = "/token?scope=repository:test/hello:pull";
    assert_refused(&get(f.server.plain, target), BASIC);
    for authorization in [basic("anna", "two"), basic("carl", "two"), "Bearer x".into()] {
        assert_refused(&authorized(&f, target, &authorization), BASIC);
    }
    let scopes = "scope=repository:a:pull&".repeat(32);
    assert_eq!(authorized(&f, &format!("/token?{scopes}"), &basic("bert", "two")).status, 200);
    let many = authorized(&f, &format!("/token?{scopes}scope=repository:a:pull"), &basic("bert", "two"));
    assert_eq!((many.status, many.code().as_str()), (400, "UNSUPPORTED"));
    assert_eq!(many.json()["errors"][0]["detail"], "too many scopes for one token; at most 32 are expected");
    let post = send(f.server.plain, "POST", "/token", &[("Content-Length", "0")]);
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD")), "clients then use GET");
    assert_refused(&get(f.server.plain, "/metrics"), BASIC);
    assert_eq!(authorized(&f, "/metrics", &basic("anna", "one:1")).status, 200);
}

#[test]
fn anonymous_tokens_are_issued_when_enabled() {
    for users in [None, Some(users())] {
        let has_users = users.is_some();
        let f = with_tokens(users, true, LIFETIME);
        let answer = get(f.server.plain, "/token?scope=repository:test/hello:pull");
        let bearer = format!("Bearer {}", answer.json()["token"].as_str().unwrap());
        assert_eq!(authorized(&f, TARGET, &bearer).status, 200);
        assert_eq!(get(f.server.plain, TARGET).status, 401, "a token is still required");
        let named = authorized(&f, "/token", &basic("anna", "one:1")).status;
        assert_eq!(named, if has_users { 200 } else { 401 }, "without users, no password is valid");
        assert_refused(&authorized(&f, "/token", &basic("anna", "wrong")), BASIC);
    }
}

#[test]
fn client_certificate_is_required() {
    let (authority, stranger) = (ClientAuthority::new("nodes"), ClientAuthority::new("strangers"));
    let clients = ClientCa::parse(authority.pem().as_bytes(), Presence::Required).unwrap();
    let f = serve(Setup { clients: Some(clients), auth: Auth::Basic(Box::new(users())), ..Setup::default() });
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let ask = |own: Option<&Identity>, authorization: &str| {
            let config = tls::client(&f.server.ca_pem, version, own);
            tls::send(f.server.tls, &config, "GET", TARGET, &[("Authorization", authorization)])
        };
        let right = basic("anna", "one:1");
        assert_eq!(ask(Some(&authority.client()), &right).unwrap().status, 200);
        assert_refused(&ask(Some(&authority.client()), "Basic x").unwrap(), BASIC);
        let without = ask(None, &right).unwrap_err().to_string();
        assert!(without.contains("CertificateRequired"), "{without}");
        let wrong = ask(Some(&stranger.client()), &right).unwrap_err().to_string();
        assert!(wrong.contains("UnknownCA"), "{wrong}");
    }
    assert_eq!(authorized(&f, TARGET, &basic("bert", "two")).status, 200, "the plain port cannot receive a certificate");
}

#[test]
fn client_certificate_replaces_a_password() {
    let (authority, stranger) = (ClientAuthority::new("nodes"), ClientAuthority::new("strangers"));
    for tokens in [false, true] {
        let clients = ClientCa::parse(authority.pem().as_bytes(), Presence::Optional).unwrap();
        let auth = match tokens {
            false => Auth::Basic(Box::new(users())),
            true => {
                Auth::Token(Box::new(Tokens { users: Some(users()), anonymous: false, signer: Signer::new(LIFETIME).unwrap() }))
            }
        };
        let f = serve(Setup { clients: Some(clients), auth, ..Setup::default() });
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let ask = |own: Option<&Identity>, target| {
                let config = tls::client(&f.server.ca_pem, version, own);
                // Twice, the second time with a resumed session.
                tls::send(f.server.tls, &config, "GET", target, &[])?;
                tls::send(f.server.tls, &config, "GET", target, &[])
            };
            let own = authority.client();
            for target in [TARGET, "/v2/", "/v2/_catalog", "/metrics"] {
                assert_eq!(ask(Some(&own), target).unwrap().status, 200, "{target}");
            }
            assert_eq!(ask(Some(&own), "/token").unwrap().status, if tokens { 200 } else { 404 });
            assert_eq!(ask(None, TARGET).unwrap().status, 401);
            let wrong = ask(Some(&stranger.client()), TARGET).unwrap_err().to_string();
            assert!(wrong.contains("UnknownCA"), "{wrong}");
        }
    }
}
