//! An appliance with access control, and its health and metrics, in a VM under TCG with real clients.

use std::fs;
use std::net::SocketAddr;

use localregistry::proto::event::Event;
use testing::certificates::{self, ClientAuthority};
use testing::http::{get, raw};
use testing::openmetrics;
use testing::pack::Bench;
use testing::vm::{self, Containerd, Vm, succeed};

/// A packed disk with the sample image, test/hello:latest, and a password file for anna.
fn bench() -> Bench {
    let bench = Bench::default();
    bench.sample_disk();
    bench.file("users", format!("anna:{}\n", bcrypt::hash("secret", 5).unwrap()).as_bytes());
    bench
}

#[test]
fn users_get_tokens_and_metrics_have_a_separate_port() {
    let bench = bench();
    let users = bench.path("users").display().to_string();
    let vm = Vm::boot(&bench.path("disk.erofs"), &["--htpasswd", &users, "--token", "--metrics", "127.0.0.1:0"]);
    let copy = |credentials: &str, to: &str| vm.copy("test/hello:latest", &["--src-creds", credentials], to);
    succeed(&mut copy("anna:secret", "dir:pulled"));
    let refused = copy("anna:wrong", "dir:refused").output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("invalid username/password"), "{said}");

    let containerd = Containerd::start();
    let pull = |arguments: &[&str]| containerd.pull_with(&vm.address, "test/hello:latest", &vm.path("ca.crt"), arguments);
    let refused = pull(&[]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("401 Unauthorized"), "{said}");
    let pulled = pull(&["--user", "anna:secret"]);
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));

    let metrics: SocketAddr = vm.ready["metrics"].as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
    assert_eq!((get(metrics, "/healthz").status, get(metrics, "/v2/").status), (200, 404));
    assert_eq!(get(metrics, "/ca.crt").body, fs::read(vm.path("ca.crt")).unwrap());
    let samples = openmetrics::parse(&String::from_utf8(get(metrics, "/metrics").body).unwrap());
    let sent = samples.get(r#"localregistry_blob_sent_bytes_total{repository="test/hello"}"#);
    assert!(sent > 100_000.0, "two pulls: {sent}");

    let ended = vm.shut_down();
    let tokens = ended.requests().into_iter().filter(|request| request.endpoint == "token");
    let statuses: Vec<u32> = tokens.map(|request| request.status).collect();
    assert!(statuses.contains(&200) && statuses.contains(&401), "{statuses:?}");
}

#[test]
fn client_certificates_replace_passwords() {
    let bench = bench();
    let authority = ClientAuthority::new("nodes");
    let (users, ca) = (bench.path("users"), bench.file("nodes.crt", authority.pem().as_bytes()));
    let (users, ca) = (users.display().to_string(), ca.display().to_string());
    let arguments = ["--htpasswd", &users, "--client-ca", &ca, "--client-certificate", "optional"];
    let vm = Vm::boot(&bench.path("disk.erofs"), &arguments);
    let mut copy = vm.copy("test/hello:latest", &["--src-no-creds"], "dir:pulled");
    assert!(!copy.output().unwrap().status.success(), "without certificate and password");
    let own = authority.client();
    fs::write(vm.path("certs/client.cert"), own.certificate_pem).unwrap();
    fs::write(vm.path("certs/client.key"), own.key_pem).unwrap();
    succeed(&mut copy);
}

/// A node without a CA fetches it over plain HTTP, and everything else over TLS.
#[test]
fn additional_ports_serve_and_are_reported() {
    let bench = bench();
    let listeners = r#"listeners=[{"port":8080,"transport":"PLAIN"},{"port":8443,"address":"10.0.2.15"}]"#;
    let vm = Vm::boot(&bench.path("disk.erofs"), &["--set", listeners]);
    let further: Vec<&str> = vm.ready["further"].as_array().unwrap().iter().map(|url| url.as_str().unwrap()).collect();
    let address = |url: &str, scheme: &str| -> SocketAddr { url.strip_prefix(scheme).unwrap().parse().unwrap() };
    let (plain, tls) = (address(further[0], "http://"), address(further[1], "https://"));
    assert_eq!(further.len(), 2);

    let ca = get(plain, "/ca.crt");
    assert_eq!((ca.status, ca.body.as_slice()), (200, fs::read(vm.path("ca.crt")).unwrap().as_slice()));
    let config = certificates::client(&String::from_utf8(ca.body).unwrap(), &rustls::version::TLS13, None);
    let image = "/v2/test/hello/manifests/latest";
    let digest = get(plain, image).header("docker-content-digest").map(str::to_owned);
    assert!(digest.is_some());
    for address in [tls, vm.address.parse().unwrap()] {
        let response = certificates::send(address, &config, "GET", image, &[]).unwrap();
        assert_eq!((response.status, response.header("docker-content-digest")), (200, digest.as_deref()), "{address}");
        let response = get(address, image);
        let words = b"The client sent an HTTP request to a port that speaks HTTPS only.\n";
        assert_eq!((response.status, response.body.as_slice()), (400, &words[..]), "{address}");
    }
    let response = raw(plain, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    assert_eq!(
        (response.status, response.body),
        (400, b"The client sent a TLS handshake to a port that speaks plain HTTP.\n".to_vec())
    );

    let ended = vm.shut_down();
    let ready = ended.events.iter().find_map(|event| if let Event::Ready(ready) = event { Some(ready) } else { None }).unwrap();
    assert_eq!(ready.endpoints[0], "https://10.0.2.15:5000");
    for url in ["http://10.0.2.15:8080", "https://10.0.2.15:8443"] {
        assert!(ready.further_endpoints.iter().any(|one| one == url), "{:?}", ready.further_endpoints);
    }
    assert!(ready.further_endpoints.iter().filter(|url| url.ends_with(":8443")).count() == 1, "only that address");
}

#[test]
fn unavailable_port_is_named() {
    let bench = bench();
    for (setting, reason) in [
        (r#"listeners=[{"port":5000}]"#, "cannot listen on TCP port 5000: Address in use (os error 98)"),
        (
            r#"listeners=[{"port":5001,"address":"192.0.2.1"}]"#,
            "cannot listen on TCP port 5001 of 192.0.2.1: Address not available (os error 99)",
        ),
    ] {
        let ended = vm::fails(&bench.path("disk.erofs"), &["--set", setting]);
        let done = ended.done();
        assert_eq!((ended.status, done.code.as_str(), done.reason.as_str()), (Some(3), "NO_PORT", reason), "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("FATAL code=NO_PORT {reason}")), "{}", ended.stderr);
    }
}

#[test]
fn missing_secrets_are_named_by_the_guest() {
    let bench = bench();
    for (setting, name) in [("auth.mode=BASIC", "htpasswd"), ("auth.clientCertificate=REQUIRED", "client-ca.crt")] {
        let ended = vm::fails(&bench.path("disk.erofs"), &["--set", setting]);
        let (done, file) = (ended.done(), format!("give QEMU -fw_cfg name=opt/localregistry/{name},file=FILE"));
        assert_eq!((ended.status, done.code.as_str()), (Some(3), "BAD_AUTH"), "{}", ended.stderr);
        assert!(done.reason.contains(&file), "{}", done.reason);
    }
}
