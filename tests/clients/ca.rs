//! A provided or stored CA: clients that trust it accept what it signs, and a CA that cannot sign is refused before the boot.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd};
use testing::layout::Layout;
use testing::pack::{Bench, PROGRAM, empty_disk, text};
use testing::refused::command;
use testing::serve::Serving;
use testing::vm::{skopeo, succeed};

/// A CA's certificate and key.
fn made(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "a CA of somebody's");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn openssl(folder: &Path, arguments: &[&str]) {
    succeed(testing::program("openssl").args(arguments).current_dir(folder).stderr(Stdio::null()));
}

fn layout() -> Layout {
    let (mut layout, _) = Layout::hello();
    layout.image("docker.io/library/hello:latest", b"layer");
    layout.write();
    layout
}

/// The certificates that a server presents for `name`, and whether openssl verifies them with the CA.
fn handshake(folder: &Path, address: &str, name: &str) -> String {
    let arguments = ["s_client", "-connect", address, "-servername", name, "-CAfile", "ca.crt", "-verify_return_error"];
    let strict = ["-x509_strict", "-verify_hostname", name];
    let output =
        testing::program("openssl").args(arguments).args(strict).current_dir(folder).stdin(Stdio::null()).output().unwrap();
    text(&output.stdout) + &text(&output.stderr)
}

/// Keys and subjects of all kinds, as openssl generates them.
#[test]
fn openssl_ca_signs_the_server_and_upstream_certificates() {
    let layout = layout();
    for (algorithm, subject) in [
        (&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"][..], "/C=DE/O=Tests & Söhne/CN=a CA"),
        (&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"], "/CN=a CA/emailAddress=ca@example.test"),
        (&["-newkey", "rsa:2048"], "/O=Tests/OU=RSA/CN=a CA"),
        (&["-newkey", "ed25519"], "/CN=Ed"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        // The strictest clients require it.
        let usage = "keyUsage=critical,keyCertSign,cRLSign";
        let request = [
            "req",
            "-x509",
            "-nodes",
            "-utf8",
            "-days",
            "2",
            "-addext",
            usage,
            "-subj",
            subject,
            "-keyout",
            "given.key",
            "-out",
            "given.crt",
        ];
        openssl(folder.path(), &[&request[..], algorithm].concat());
        let serving = Serving::start(layout.path(), folder, &["--ca", "given.crt", "--key", "given.key"]);
        for name in ["localhost", "docker.io", "registry-1.docker.io"] {
            let said = handshake(serving.folder.path(), &serving.address(), name);
            assert!(said.contains("Verify return code: 0 (ok)"), "{subject} {name}: {said}");
        }
        let out = fs::read_to_string(serving.folder.path().join("ca.crt")).unwrap();
        assert_eq!(out, fs::read_to_string(serving.folder.path().join("given.crt")).unwrap(), "{subject}");
    }
}

/// Two consecutive servers with one stored CA: a client that trusts the first also trusts the second. curl and openssl accept
/// exactly one label for the wildcard, and the certificate lists each name once.
#[test]
fn wildcards_are_accepted_and_duplicate_names_are_merged() {
    let (layout, folder) = (layout(), tempfile::tempdir().unwrap());
    let names = ["--san", "*.example.test", "--san", "LOCALHOST", "--san", "0:0:0:0:0:0:0:1", "--san", "*.Example.test"];
    let listeners = ["--listen", "127.0.0.2:0", "--listen", "127.0.0.1:0", "--listen", "127.0.0.2:0"];
    let serving = Serving::start(layout.path(), folder, &[&names[..], &listeners].concat());
    let (address, ca) = (serving.address(), serving.pulled("ca.crt"));

    let shown = handshake(serving.folder.path(), &address, "localhost");
    let leaf = format!("-----BEGIN{}", shown.split("-----BEGIN").nth(1).unwrap());
    fs::write(serving.pulled("leaf.crt"), leaf).unwrap();
    let command = ["x509", "-in", "leaf.crt", "-noout", "-ext", "subjectAltName"];
    let said = succeed(testing::program("openssl").args(command).current_dir(serving.folder.path()));
    let expected =
        ["DNS:localhost", "DNS:*.example.test", "IP Address:0:0:0:0:0:0:0:1", "IP Address:127.0.0.1", "IP Address:127.0.0.2"];
    assert_eq!(said.lines().last().unwrap().trim().split(", ").collect::<Vec<_>>(), expected);

    let port = address.rsplit_once(':').unwrap().1;
    for (name, curl, openssl) in [
        ("x.example.test", Some(0), true),
        ("registry.example.test", Some(0), true),
        // Status 60: the certificate is not valid for this name.
        ("a.x.example.test", Some(60), false),
        ("example.test", Some(60), false),
    ] {
        let shown = handshake(serving.folder.path(), &address, name);
        assert_eq!(
            shown.contains("Verification: OK") && shown.contains("Verify return code: 0 (ok)"),
            openssl,
            "{name}: {shown}"
        );
        let mut command = testing::program("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "--cacert"]).arg(&ca);
        command.args(["--resolve", &format!("{name}:{port}:127.0.0.1"), &format!("https://{name}:{port}/v2/")]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), curl, "{name}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), if openssl { "{}" } else { "" }, "{name}");
    }
}

/// Names in which the wildcard is not the whole first label are refused before anything is served.
#[test]
fn invalid_certificate_names_exit_2() {
    let layout = layout();
    for name in ["*", "*.", "*.test", "a.*.b", "f*o.b", "*.*.b"] {
        let output = testing::program(PROGRAM).args(["serve", "--san", name]).arg(layout.path()).output().unwrap();
        let expected = "expected * as the whole first label, before two labels or more, such as *.example.test";
        let said = text(&output.stderr);
        assert!(said.starts_with(&format!("error: invalid value '{name}' for '--san <NAME>': {expected}")), "{said}");
        assert_eq!(output.status.code(), Some(2), "{name}");
    }
}

#[test]
fn stored_ca_is_reused() {
    let layout = layout();
    let bench = Bench::default();
    let kept = bench.path("kept").display().to_string();
    for to in ["first", "second"] {
        let serving = Serving::start(layout.path(), tempfile::tempdir().unwrap(), &["--ca-dir", &kept]);
        if to == "first" {
            fs::create_dir(bench.path("certs")).unwrap();
            fs::copy(serving.folder.path().join("ca.crt"), bench.path("certs/ca.crt")).unwrap();
        }
        let from = format!("docker://{}/test/hello:latest", serving.address());
        succeed(&mut skopeo(&["copy", "--src-cert-dir", "certs", &from, &format!("dir:{to}")], &bench.path("")));
    }
    let mode = |path: &str| fs::metadata(bench.path(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("kept"), mode("kept/ca.key")), (0o700, 0o600));
}

/// A folder with everything that a boot needs to get as far as QEMU, and CAs of all kinds.
fn bench() -> Bench {
    let bench = Bench::default();
    for name in ["kernel", "initramfs", "junk"] {
        bench.file(name, b"not really");
    }
    bench.file("disk", &empty_disk());
    let pair = |name: &str, (certificate, key): (String, String)| {
        bench.file(&format!("{name}.crt"), certificate.as_bytes());
        bench.file(&format!("{name}.key"), key.as_bytes());
    };
    pair("good", made(|_| {}));
    pair("other", made(|_| {}));
    pair("leaf", made(|params| params.is_ca = IsCa::ExplicitNoCa));
    pair("plain", made(|params| params.is_ca = IsCa::NoCa));
    pair("unsigning", made(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]));
    pair("expired", made(|params| params.not_after = date_time_ymd(2001, 2, 3)));
    pair("later", made(|params| params.not_before = date_time_ymd(2999, 1, 1)));
    let key = fs::read_to_string(bench.path("good.key")).unwrap();
    let relabelled = |name: &str, label: &str| bench.file(name, key.replace("PRIVATE KEY", label).as_bytes());
    relabelled("encrypted.key", "ENCRYPTED PRIVATE KEY");
    relabelled("sec1.key", "EC PRIVATE KEY");
    relabelled("pkcs1.key", "RSA PRIVATE KEY");
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    bench.file("old.key", old.as_bytes());
    bench.file("cut.crt", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    bench.file("cut.key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let two = ["good.crt", "other.crt"].map(|name| fs::read_to_string(bench.path(name)).unwrap()).concat();
    bench.file("two.crt", two.as_bytes());
    openssl(
        &bench.path(""),
        &[
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-days",
            "2",
            "-subj",
            "/DC=test/DC=example/CN=a CA",
            "-keyout",
            "twice.key",
            "-out",
            "twice.crt",
        ],
    );
    bench
}

#[test]
fn ca_that_cannot_sign_is_refused_before_the_boot() {
    let bench = bench();
    let before = bench.everything();
    let using = |certificate: &str, key: &str, why: &str| {
        (
            vec!["--ca".to_owned(), certificate.to_owned(), "--key".to_owned(), key.to_owned()],
            format!("cannot sign with the CA {certificate} and the key {key}: {why}"),
        )
    };
    let of = |name: &str, why: &str| using(&format!("{name}.crt"), &format!("{name}.key"), why);
    let encrypted = "the key is encrypted; expected one without a passphrase (`openssl pkcs8 -topk8 -nocrypt` removes it)";
    let older =
        |form: &str| format!("the key is in the older form {form}; expected PKCS #8 (`openssl pkcs8 -topk8 -nocrypt` makes it)");
    let not_ca = "the certificate is not a CA's; expected basic constraints with CA:TRUE (`openssl x509 -text` shows them)";
    for (arguments, message) in [
        using("good.crt", "other.key", "the key is not the certificate's"),
        of("leaf", not_ca),
        of("plain", not_ca),
        of("unsigning", "the certificate may not sign others; expected a key usage with keyCertSign, or none"),
        of("expired", "the certificate expired on Sat, 03 Feb 2001 00:00:00 GMT; make a new CA, or set this machine's clock"),
        of("later", "the certificate is not valid before Tue, 01 Jan 2999 00:00:00 GMT; set this machine's clock"),
        of(
            "twice",
            "the certificate's subject cannot be copied into leaves; expected each attribute once, and as a UTF8String, a \
             PrintableString or an IA5String",
        ),
        using("junk", "good.key", "the certificate is not PEM with a CERTIFICATE block"),
        using("good.key", "good.key", "the certificate is not PEM with a CERTIFICATE block"),
        using("cut.crt", "good.key", "the certificate is not an X.509 certificate"),
        using("two.crt", "good.key", "the certificate file has 2 certificates; expected only the one that signs"),
        using("good.crt", "junk", "the key is not PEM with one PRIVATE KEY block"),
        using("good.crt", "good.crt", "the key is not PEM with one PRIVATE KEY block"),
        using(
            "good.crt",
            "cut.key",
            "the key cannot sign; expected ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits",
        ),
        using("good.crt", "encrypted.key", encrypted),
        using("good.crt", "old.key", encrypted),
        using("good.crt", "sec1.key", &older("EC PRIVATE KEY (SEC 1)")),
        using("good.crt", "pkcs1.key", &older("RSA PRIVATE KEY (PKCS #1)")),
        (
            ["--ca", "none", "--key", "good.key"].map(str::to_owned).into(),
            "cannot read the CA certificate none: No such file or directory (os error 2); the CA is set with --ca".to_owned(),
        ),
        (
            ["--ca", "good.crt", "--key", "none"].map(str::to_owned).into(),
            "cannot read the CA key none: No such file or directory (os error 2); the CA's key is set with --key".to_owned(),
        ),
    ] {
        // A QEMU that would leave a file.
        let output = command(&bench, &["disk", "--qemu", "./no-such-qemu"]).args(&arguments).output().unwrap();
        assert_eq!(text(&output.stderr), format!("localregistry: cannot use the CA: {message}\n"));
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(13), ""));
        let output =
            testing::program(PROGRAM).current_dir(bench.path("")).args(["serve", "junk"]).args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
    }
    assert_eq!(bench.everything(), before);
}

#[test]
fn unusable_ca_folder_is_refused_before_the_boot() {
    let bench = bench();
    let run = |dir: &str| {
        let output = command(&bench, &["--qemu", "./no-such-qemu", "disk", "--ca-dir", dir]).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    // The first run creates the CA and gets as far as QEMU.
    let missing = "./no-such-qemu is not installed";
    let (status, said) = run("kept");
    assert!(status == Some(8) && said.contains(missing), "{said}");
    let key = bench.path("kept/ca.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let before = bench.everything();
    let message = "localregistry: cannot use the CA: others may read the CA's key kept/ca.key (mode 0640): they could impersonate any \
                   registry that nodes trust; `chmod 600` it, or remove it and its certificate to create a new CA\n";
    assert_eq!(run("kept"), (Some(13), message.to_owned()));
    let message =
        "localregistry: cannot use the CA: cannot create the CA's folder no/where: No such file or directory (os error 2)\n";
    assert_eq!(run("no/where"), (Some(13), message.to_owned()));
    let message = "localregistry: cannot use the CA: cannot open the CA's folder junk: Not a directory (os error 20)\n";
    assert_eq!(run("junk"), (Some(13), message.to_owned()));
    assert_eq!(bench.everything(), before);
    // A stored certificate and key must match.
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::copy(bench.path("other.crt"), bench.path("kept/ca.crt")).unwrap();
    let message = "localregistry: cannot use the CA: cannot sign with the CA kept/ca.crt and the key kept/ca.key: the key is not the \
                   certificate's\n";
    assert_eq!(run("kept"), (Some(13), message.to_owned()));
}

#[test]
fn conflicting_flags_exit_2() {
    let bench = bench();
    let both =
        "the arguments '--cert <FILE>' and '--ca <FILE>' cannot be used together: '--key <FILE>' can be the key of only one";
    let unused = "the arguments '--ca <FILE>' and '--ca-dir <DIR>' cannot be used with '--tls provided' or '--tls off': there is nothing to sign";
    for (arguments, message) in [
        (&["--ca", "a"][..], "the following required arguments were not provided:\n  --key <FILE>"),
        (&["--key", "a"], "the following required arguments were not provided:\n  <--cert <FILE>|--ca <FILE>>"),
        (&["--ca", "a", "--key", "b", "--ca-dir", "c"], "the argument '--ca <FILE>' cannot be used with '--ca-dir <DIR>'"),
        (&["--cert", "a", "--ca", "b", "--key", "c"], both),
        (
            &["--cert", "a", "--key", "b", "--ca-dir", "c"],
            "the arguments '--cert <FILE>' and '--ca-dir <DIR>' cannot be used together: the certificate is already signed",
        ),
        (&["--ca", "a", "--key", "b", "--tls", "off"], unused),
        (&["--ca-dir", "a", "--tls", "off"], unused),
        (
            &["--tls", "off", "--ca-out", "a"],
            "the argument '--ca-out <FILE>' cannot be used with '--tls off': without TLS there is no CA",
        ),
    ] {
        for command in ["run", "serve"] {
            let output =
                testing::program(PROGRAM).current_dir(bench.path("")).args([command, "disk"]).args(arguments).output().unwrap();
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command} {arguments:?}: {said}");
            assert!(said.starts_with(&format!("error: {message}\n")), "{command} {arguments:?}: {said}");
        }
    }
    assert!(!bench.path("c").exists() && !bench.path("a").exists(), "no folder is created");
}
