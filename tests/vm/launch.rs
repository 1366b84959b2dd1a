//! The Rust library for launchers, with whole appliances booted under TCG from packed disks.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use localregistry::config::guest_config::Setting;
use localregistry::host::vm::accel::{Accel, AccelChoice};
use localregistry::launch::{Access, Appliance, Board, BuildError, Builder, Exit, Flavor, LaunchError, Options, Outcome};
use localregistry::proto::event::Event as Kind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use testing::http;
use testing::layout::Layout;

use testing::pack::PROGRAM;

/// A folder with the packed disk of one image.
fn packed() -> (TempDir, PathBuf) {
    let mut layout = Layout::default();
    layout.image("test/hello:latest", b"a layer");
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let packed = testing::program(PROGRAM).args(["pack", "--quiet", "-o"]).arg(&disk).arg(layout.write()).output().unwrap();
    assert!(packed.status.success(), "{packed:?}");
    (folder, disk)
}

/// An appliance for `disk` over plain HTTP, with the cached kernel and this project's init.
fn plain(disk: &Path) -> Builder {
    Appliance::builder(disk).accel(AccelChoice::Tcg).timeout(Duration::from_secs(300)).plain_http()
}

/// The status of a GET request, made in a blocking thread.
async fn status_of(appliance: &Appliance, target: &'static str) -> u16 {
    let address: SocketAddr = appliance.address().parse().unwrap();
    tokio::task::spawn_blocking(move || http::get(address, target).status).await.unwrap()
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Children of this process whose arguments contain this path.
fn children_with(file: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        for child in fs::read_to_string(task.path().join("children")).unwrap_or_default().split_whitespace() {
            let arguments = fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if arguments.contains(file.to_str().unwrap()) {
                found.push(child.to_owned());
            }
        }
    }
    found
}

#[tokio::test]
async fn appliance_boots_serves_reports_events_and_ends() {
    let (folder, disk) = packed();
    let events = folder.path().join("events");
    let appliance = plain(&disk).events_file(&events).qemu_argument("-name").qemu_argument("guest=by-argument");
    let mut appliance = appliance.boot().await.unwrap();
    assert_eq!(appliance.endpoint(), format!("http://{}", appliance.address()));
    assert_eq!(appliance.endpoints(), [appliance.endpoint()]);
    assert!(appliance.address().starts_with("127.0.0.1:"), "{}", appliance.address());
    assert_eq!((appliance.ready().images, appliance.accel(), appliance.ca_pem()), (1, Accel::Tcg, None));
    let no_ca = appliance.write_ca(&folder.path().join("ca.crt")).unwrap_err();
    assert_eq!(no_ca.to_string(), "the registry serves plain HTTP: it has no CA");
    assert_eq!(status_of(&appliance, "/v2/test/hello/manifests/latest").await, 200);
    let arguments = fs::read_to_string(format!("/proc/{}/cmdline", appliance.pid())).unwrap();
    assert!(arguments.ends_with("\0-name\0guest=by-argument\0"), "{arguments}");

    let mut received = Vec::new();
    let mut stream = appliance.events();
    while !matches!(received.last(), Some(Kind::Request(_))) {
        // Cancelled repeatedly: the next call returns events that arrived meanwhile.
        if let Ok(event) = tokio::time::timeout(Duration::from_millis(1), stream.next()).await {
            received.push(event.unwrap().unwrap().event.unwrap());
        }
    }
    assert!(matches!(&received[..], [Kind::Booting(_), .., Kind::Ready(_), Kind::Request(_)]), "{received:?}");

    let pid = appliance.pid();
    let ended = appliance.shutdown().await;
    let Outcome::Done(done) = &ended.outcome else { panic!("{ended:?}") };
    assert_eq!((ended.outcome.exit_status(), done.requests), (0, 1));
    assert!(ended.incomplete.is_empty());
    assert!(!is_there(pid));

    let kept = fs::read_to_string(&events).unwrap();
    let last: serde_json::Value = serde_json::from_str(kept.lines().last().unwrap()).unwrap();
    assert!(last["done"].is_object(), "{last}");
    assert_eq!(kept.lines().count(), received.len() + 1);
}

#[tokio::test]
async fn appliances_that_share_a_disk_end_independently() {
    let (folder, disk) = packed();
    let with_tls = Appliance::builder(&disk).accel(AccelChoice::Tcg).timeout(Duration::from_secs(300)).name("registry.test");
    let (one, other) = tokio::join!(plain(&disk).boot(), with_tls.boot());
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_ne!(one.address(), other.address());

    let pid = one.pid();
    assert_eq!(status_of(&one, "/v2/").await, 200);
    drop(one);
    assert!(!is_there(pid), "a dropped appliance has ended and is reaped");

    other.write_ca(&folder.path().join("ca.crt")).unwrap();
    let port = other.address().split_once(':').unwrap().1.to_owned();
    let curl = testing::program("curl")
        .args(["--silent", "--fail", "--cacert", "ca.crt", "--resolve", &format!("registry.test:{port}:127.0.0.1")])
        .arg(format!("https://registry.test:{port}/v2/_catalog"))
        .current_dir(folder.path())
        .output();
    let found = curl.unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap().trim(), r#"{"repositories":["test/hello"]}"#);

    let trust = folder.path().join("trust");
    other.trust(&trust).unwrap();
    let address = other.address();
    assert_eq!(fs::read_to_string(trust.join("ca.crt")).unwrap(), other.ca_pem().unwrap().replace('\r', ""));
    assert_eq!(fs::read_to_string(trust.join("images.txt")).unwrap(), format!("{address}/test/hello:latest\n"));
    let hosts = fs::read_to_string(trust.join("containerd/certs.d").join(&address).join("hosts.toml")).unwrap();
    assert!(hosts.contains(&format!("server = \"https://{address}\"")), "{hosts}");
    let error = other.trust(folder.path()).unwrap_err();
    let message = "which is not part of a trust bundle; expected an empty or missing folder, or an earlier bundle";
    assert!(error.to_string().ends_with(message), "{error}");

    kill(Pid::from_raw(other.pid().try_into().unwrap()), Signal::SIGKILL).unwrap();
    let ended = other.wait().await;
    assert_eq!(ended.outcome, Outcome::Died { exit: Exit::Signal(9), killed: None, done: false });
}

#[tokio::test]
async fn stored_ca_is_reused_and_can_be_provided() {
    let (folder, disk) = packed();
    let kept = folder.path().join("kept");
    let over_tls = || Appliance::builder(&disk).accel(AccelChoice::Tcg).timeout(Duration::from_secs(300));
    // The last call wins.
    let first = over_tls().plain_http().ca_dir(&kept).boot().await.unwrap();
    let pem = fs::read_to_string(kept.join("ca.crt")).unwrap();
    assert_eq!(first.ca_pem(), Some(pem.as_str()));
    let (certificate, key) = (kept.join("ca.crt"), kept.join("ca.key"));
    let second = over_tls().ca(&certificate, &key).boot().await.unwrap();
    for appliance in [&first, &second] {
        assert_eq!(appliance.ca_pem(), Some(pem.as_str()));
        let url = format!("{}/v2/test/hello/manifests/latest", appliance.endpoint());
        let curl = testing::program("curl").args(["--silent", "--fail", "--cacert"]).arg(&certificate).arg(&url).output();
        assert!(curl.unwrap().status.success());
    }
    let (first, second) = tokio::join!(first.shutdown(), second.shutdown());
    assert_eq!((first.outcome.exit_status(), second.outcome.exit_status()), (0, 0));

    // A certificate with another key is refused before QEMU starts.
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    fs::write(folder.path().join("other.key"), other).unwrap();
    let refused = over_tls().ca(&certificate, folder.path().join("other.key")).qemu("no-such-qemu").boot().await.unwrap_err();
    let BuildError::Ca(error) = &refused else { panic!("{refused:?}") };
    let why = std::error::Error::source(error).unwrap().to_string();
    assert_eq!((refused.to_string().as_str(), why.as_str()), ("cannot use the CA", "the key is not the certificate's"));
    let error = over_tls().ca_dir(folder.path().join("no/where")).boot().await.unwrap_err();
    assert!(matches!(error, BuildError::Ca(_)), "{error:?}");
    assert_eq!(children_with(&disk), Vec::<String>::new());
}

#[tokio::test]
async fn cancelled_boot_leaves_no_qemu() {
    let (_folder, disk) = packed();
    let mut boot = Box::pin(plain(&disk).boot());
    // As soon as QEMU runs.
    while children_with(&disk).is_empty() {
        let step = tokio::time::timeout(Duration::from_millis(5), boot.as_mut()).await;
        assert!(step.is_err(), "{step:?}");
    }
    assert_eq!(children_with(&disk).len(), 1);
    drop(boot);
    assert_eq!(children_with(&disk), Vec::<String>::new());
}

#[tokio::test]
async fn unbootable_setups_are_refused_before_anything_starts() {
    let (folder, disk) = packed();
    let error = plain(&disk).name("no name").boot().await.unwrap_err();
    assert_eq!(error.to_string(), "\"no name\" is not a DNS name or an IP address: the certificate cannot contain it");
    let error = plain(&disk).metrics("127.0.0.1:0".parse().unwrap()).net("mcast=239.1.2.3:4000".parse().unwrap()).boot().await;
    assert!(matches!(error, Err(BuildError::Launch(LaunchError::NothingForwarded))), "{error:?}");
    for (flavor, given, message) in [
        (Flavor::Cloud, 95, "95 MiB of memory are too little for the kernel \"cloud\"; give it at least 96"),
        (Flavor::Full, 111, "111 MiB of memory are too little for the kernel \"full\"; give it at least 112"),
        (Flavor::Own, 47, "47 MiB of memory are too little for the kernel \"own\"; give it at least 48"),
    ] {
        let error = plain(&disk).flavor(flavor).memory_mib(given).boot().await.unwrap_err();
        assert_eq!((error.exit_status(), &*error.to_string()), (2, message));
    }
    let options = Options { memory_mib: 47, ..plain(&disk).resolve_options().await.unwrap() };
    let error = Appliance::boot(options).await.unwrap_err();
    assert_eq!((error.exit_status(), &*error.to_string()), (2, "47 MiB of memory are too little to boot; expected at least 48"));
    let none = folder.path().join("none");
    fs::write(&none, vec![0; 1 << 20]).unwrap();
    let error = plain(&none).boot().await.unwrap_err();
    let BuildError::Launch(error @ LaunchError::NoFileSystem { .. }) = error else { panic!("{error:?}") };
    assert_eq!(error.exit_status(), 9);
    assert_eq!(children_with(&disk), Vec::<String>::new());
}

/// A folder with a disk, a kernel and an initramfs that suffice for a command line.
fn not_bootable() -> (TempDir, Builder) {
    let (folder, disk) = packed();
    for name in ["kernel", "initramfs"] {
        fs::write(folder.path().join(name), "not really").unwrap();
    }
    let builder = Appliance::builder(disk).accel(AccelChoice::Tcg);
    let builder = builder.kernel(folder.path().join("kernel"), folder.path().join("initramfs"));
    (folder, builder)
}

/// QEMU's arguments, and the guest's configuration.
async fn command(builder: Builder, folder: &Path) -> (String, serde_json::Value) {
    let command = builder.command(folder).await.unwrap();
    let arguments: Vec<String> = command.arguments.iter().map(|argument| argument.to_str().unwrap().to_owned()).collect();
    let config = serde_json::from_slice(&fs::read(command.config).unwrap()).unwrap();
    (format!("{} {}", command.program.display(), arguments.join(" ")), config)
}

#[tokio::test]
async fn board_selects_the_machine_as_on_the_command_line() {
    for (board, program, machine) in
        [(Board::Q35, "qemu-system-x86_64", "-machine q35"), (Board::Microvm, "qemu-system-x86_64", "-machine microvm,")]
    {
        let (folder, builder) = not_bootable();
        let (line, _) = command(builder.board(board), folder.path()).await;
        assert!(line.starts_with(&format!("{program} ")) && line.contains(machine), "{line}");
    }
    let (folder, disk) = packed();
    let error = Appliance::builder(disk).board(Board::Virt).command(folder.path()).await.unwrap_err();
    let message =
        "the distribution's kernels do not run on the board virt; take our own, or set a kernel and its initramfs or modules";
    assert_eq!(error.to_string(), message);
}

#[tokio::test]
async fn flavor_selects_the_kernel_as_on_the_command_line() {
    let (folder, disk) = packed();
    let (line, _) = command(Appliance::builder(&disk).flavor(Flavor::Cloud).accel(AccelChoice::Tcg), folder.path()).await;
    assert!(line.contains("/kernel/cloud/"), "{line}");
    let own = Appliance::builder(disk).flavor(Flavor::Own).accel(AccelChoice::Tcg).command(folder.path()).await;
    match own {
        Ok(built) => assert!(built.arguments.iter().any(|argument| argument.to_str().unwrap().contains("/kernel/own/"))),
        Err(error) => assert!(matches!(error, BuildError::Kernel(_)), "{error:?}"),
    }
}

#[tokio::test]
async fn access_settings_reach_the_guest_config_and_files() {
    let (folder, builder) = not_bootable();
    let users = folder.path().join("users");
    // The hash of "secret".
    fs::write(&users, "anna:$2y$05$JbhVNw0EfBlt0d.XqJoGg.D09eGv0VHVbRyUOOlMUlY4lUlKFxFsW\n").unwrap();
    let ca = folder.path().join("nodes-ca.crt");
    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    fs::write(&ca, authority.self_signed(&key).unwrap().pem()).unwrap();

    for (access, auth, files) in [
        (Access::default(), serde_json::Value::Null, &[][..]),
        (Access::default().htpasswd(&users), serde_json::json!({"mode": "BASIC"}), &[("htpasswd", &users)]),
        (Access::default().htpasswd(&users).token(), serde_json::json!({"mode": "TOKEN"}), &[("htpasswd", &users)]),
        (Access::default().anonymous_pull(), serde_json::json!({"mode": "ANONYMOUS_TOKEN"}), &[]),
        (
            Access::default().required_client_ca(&ca),
            serde_json::json!({"clientCertificate": "REQUIRED"}),
            &[("client-ca.crt", &ca)],
        ),
        (
            Access::default().htpasswd(&users).optional_client_ca(&ca),
            serde_json::json!({"mode": "BASIC", "clientCertificate": "OPTIONAL"}),
            &[("htpasswd", &users), ("client-ca.crt", &ca)],
        ),
    ] {
        let (line, config) = command(builder.clone().access(access), folder.path()).await;
        assert_eq!(config["auth"], auth);
        for name in ["htpasswd", "client-ca.crt"] {
            let given = files.iter().find(|(file, _)| *file == name);
            let expected = given.map(|(_, path)| format!("name=opt/localregistry/{name},file={}", path.display()));
            assert_eq!(line.contains(&format!("opt/localregistry/{name}")), expected.is_some(), "{line}");
            assert!(expected.is_none_or(|expected| line.contains(&expected)), "{line}");
        }
    }
    let (_, config) = command(
        builder.clone().set(Setting::new(&["auth", "tokenSeconds"], 60)).access(Access::default().htpasswd(&users)),
        folder.path(),
    )
    .await;
    assert_eq!(config["auth"], serde_json::json!({"mode": "BASIC", "tokenSeconds": 60}));

    for (builder, why) in [
        (
            builder.clone().access(Access::default().token()),
            "clients need tokens, but none can get one: expected users (a password file), or anonymous tokens",
        ),
        (
            builder.clone().plain_http().access(Access::default().required_client_ca(&ca)),
            "clients need certificates, but the registry serves plain HTTP: client certificates need TLS",
        ),
        (
            builder.access(Access::default().htpasswd(folder.path().join("none"))),
            &format!("cannot read the password file {}/none", folder.path().display()),
        ),
    ] {
        let error = builder.boot().await.unwrap_err();
        let BuildError::Access(cause) = &error else { panic!("{error:?}") };
        assert_eq!((error.to_string().as_str(), cause.to_string().as_str()), ("cannot set up access control", why));
    }
}

/// A launcher in Rust has no command line.
#[tokio::test]
async fn library_errors_name_no_command_line_flags() {
    let (folder, builder) = not_bootable();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(address) = taken.local_addr().unwrap() else { panic!("{taken:?}") };
    let old = folder.path().join("qemu-old");
    fs::write(&old, "#!/bin/sh\necho QEMU emulator version 6.2.0\n").unwrap();
    fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let interfaces: Setting = "interfaces=[]".parse().unwrap();
    let mut layout = Layout::default();
    layout.image("test/hello:latest", b"a layer");
    layout.write();
    let path = layout.path().display().to_string();
    for (builder, message) in [
        (builder.clone().publish(address), format!("cannot listen on {address} for the registry")),
        (builder.clone().metrics(address), format!("cannot listen on {address} for health and metrics")),
        (
            builder.clone().set(interfaces).net("user".parse().unwrap()),
            "the interfaces are set twice: by the config, and by the networks; set them in one place".to_owned(),
        ),
        (
            builder.qemu(&old),
            format!("{} is too old (on Debian: apt-get install -t bookworm-backports qemu-system-x86)", old.display()),
        ),
        (Appliance::builder(layout.path()), format!("{path} is a folder with an OCI image layout, expected a packed disk")),
    ] {
        let error = builder.boot().await.unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn example_runs() {
    let (folder, disk) = packed();
    let built = testing::program(env!("CARGO")).args(["build", "--quiet", "--locked", "--example", "boot"]).status().unwrap();
    assert!(built.success());
    let example = Path::new(PROGRAM).with_file_name("examples").join("boot");
    let mut run = testing::program(example).arg(&disk).current_dir(folder.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(run.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let address = line.strip_prefix("pull from ").unwrap().strip_suffix(", trusting boot-ca.crt\n").unwrap();
    let url = format!("https://{address}/v2/test/hello/manifests/latest");
    let curl = testing::program("curl")
        .args(["--silent", "--fail", "--cacert", "boot-ca.crt", &url])
        .current_dir(folder.path())
        .output();
    assert!(curl.unwrap().status.success());
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(" asked for test/hello latest\nshut down cleanly after 1 requests\n"), "{rest}");
    assert!(run.wait().unwrap().success());
}
