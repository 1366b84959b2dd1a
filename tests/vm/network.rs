//! Changes and faults of the guest's network: leases, links that go down and up, address conflicts. The test acts as the other host
//! on the link, frame by frame.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::Arc;

use localregistry::proto::event::Event;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;
use testing::pack::Bench;
use testing::qmp::{self, Qmp};
use testing::segment::{MAC, Segment, server};
use testing::vm::{self, Ended, Vm};

const USER_NIC: &str = "52:54:00:00:00:0a";
const OTHER: &str = "02:00:00:00:00:09";

/// A TLS connection to the appliance through its forwarded port. It trusts only the appliance's CA, and the certificate must be
/// valid for `name`.
fn connect(vm: &Vm, name: &str) -> Option<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(vm.path("ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = TcpStream::connect(&vm.address).unwrap();
    let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
    let done = tls.complete_io(&mut stream);
    match done {
        Ok(_) => Some(StreamOwned::new(tls, stream)),
        Err(error) => {
            let said = error.to_string();
            assert!(said.contains("certificate not valid for name"), "{said}");
            None
        }
    }
}

/// Requests `/v2/` on an open connection.
fn answers(stream: &mut StreamOwned<ClientConnection, TcpStream>) {
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: registry\r\n\r\n").unwrap();
    let (mut answer, mut buffer) = (String::new(), [0; 4096]);
    while !(answer.contains("\r\n\r\n") && answer.ends_with("{}")) {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the connection ended after {answer:?}");
        answer.push_str(str::from_utf8(&buffer[..count]).unwrap());
    }
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

/// Waits until the appliance reports that it has, or no longer has, an address with this prefix.
fn moves(vm: &Vm, address: &str, has: bool) -> Vec<String> {
    vm.event(&format!("{address} {has}"), |event| match event {
        Event::Endpoints(now) => {
            let found = now.endpoints.iter().any(|url| url.starts_with(&format!("https://{address}")));
            (found == has).then(|| now.endpoints.clone())
        }
        _ => None,
    })
}

fn warned(vm: &Vm, code: &str, words: &str) {
    let what = format!("{code} {words}");
    vm.event(&what, |event| match event {
        Event::Warning(warning) => (warning.code == code && warning.message.contains(words)).then_some(()),
        _ => None,
    });
}

#[test]
fn lease_is_renewed_and_changes_are_applied() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let segment = Segment::at(&bench.path("switch"));
    let at = |last| Ipv4Addr::new(10, 91, 0, last);
    // Seconds until the end, until T1, and until T2.
    let (often, short, long) = ([300, 2, 200], [12, 2, 5], [3600, 1800, 3000]);
    segment.set(|machine| {
        machine.lease = Some((at(5), often));
        machine.taken = vec![server().into()];
    });
    let socket = bench.path("qmp");
    let net = segment.net(",mac=52:54:00:00:00:0b");
    let user = format!("user,mac={USER_NIC}");
    let qmp = qmp::arguments(&socket);
    let patience = ["--set", "limits.requestHeadSeconds=600"];
    let vm = Vm::boot(&disk, &[&["--net", &user, "--net", &net, &qmp[0], &qmp[1]], &patience[..]].concat());
    let mut qmp = Qmp::connect(&socket);
    assert_eq!(vm.ready["endpoints"][1], "https://10.91.0.5:5000", "{}", vm.ready);
    assert_eq!(segment.dhcp_messages()[..2], ["DISCOVER", "REQUEST for 10.91.0.5"]);
    let mut held = connect(&vm, "10.91.0.5").expect("the certificate is for the lease");
    answers(&mut held);

    // At renewal the server assigns another address: the certificate follows, and open connections continue.
    segment.set(|machine| machine.lease = Some((at(6), often)));
    let endpoints = moves(&vm, "10.91.0.6:", true);
    assert!(!endpoints.iter().any(|url| url.contains("10.91.0.5")), "{endpoints:?}");
    assert!(
        segment.dhcp_messages().contains(&"REQUEST from 10.91.0.5 to 10.91.0.1".to_owned()),
        "the request went to the leasing server only"
    );
    assert!(connect(&vm, "10.91.0.6").is_some() && connect(&vm, "10.91.0.5").is_none());
    answers(&mut held);

    // The server withdraws it.
    segment.set(|machine| {
        machine.lease = Some((at(6), short));
        machine.nak = Some(at(7));
    });
    warned(&vm, "NO_ADDRESS", "the DHCP server gave no address: 10.91.0.1 answered the request for 10.91.0.6 with NAK");
    moves(&vm, "10.91.0.7:", true);

    // The server is silent until the lease ends.
    segment.dhcp_messages();
    segment.set(|machine| machine.lease = None);
    warned(&vm, "NO_ADDRESS", "the lease of 10.91.0.7 expired because no DHCP server answered");
    moves(&vm, "10.91.0.7:", false);
    let dhcp_messages = segment.dhcp_messages();
    let place =
        |words: &str| dhcp_messages.iter().position(|one| one == words).unwrap_or_else(|| panic!("{words}: {dhcp_messages:?}"));
    let asked = ["REQUEST from 10.91.0.7 to 10.91.0.1", "REQUEST from 10.91.0.7 to 255.255.255.255", "DISCOVER"].map(place);
    assert!(asked.is_sorted(), "renewal, rebinding and a new discovery: {dhcp_messages:?}");

    // The server is back and offers an address that another host has.
    segment.set(|machine| {
        machine.taken.push(at(9).into());
        machine.lease = Some((at(9), long));
    });
    warned(
        &vm,
        "IP_CONFLICT",
        &format!("the address 10.91.0.9 is already used by another machine, {OTHER}; give each machine its own"),
    );
    moves(&vm, "10.91.0.10:", true);
    assert!(segment.dhcp_messages().contains(&"DECLINE of 10.91.0.9".to_owned()));

    // A router advertises a network.
    segment.advertise("fd91::".parse().unwrap());
    let endpoints = moves(&vm, "[fd91:", true);
    let url = endpoints.iter().find(|url| url.contains("[fd91:")).unwrap();
    assert!(connect(&vm, url.trim_start_matches("https://[").split(']').next().unwrap()).is_some());

    // The cable is pulled and put back: the address is confirmed and stays.
    segment.dhcp_messages();
    for up in [false, true] {
        let found = qmp.run("query-rx-filter", json!({}));
        let nic = found.as_array().unwrap().iter().find(|nic| nic["main-mac"] == "52:54:00:00:00:0b").unwrap();
        qmp.run("set_link", json!({ "name": nic["name"], "up": up }));
        if !up {
            warned(&vm, "LINK_DOWN", "(52:54:00:00:00:0b): the interface was removed or lost its carrier");
        }
    }
    while !segment.dhcp_messages().contains(&"REQUEST from 10.91.0.10 to 255.255.255.255".to_owned()) {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(segment.resolve(at(10), None), [0x52, 0x54, 0, 0, 0, 0x0b]);
    assert!(connect(&vm, "10.91.0.10").is_some());
    answers(&mut held);
    vm.shut_down();
}

#[test]
fn static_addresses_vlan_and_interface_hotplug_work() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let [segment, other, late] = ["switch", "other", "late"].map(|name| Segment::at(&bench.path(name)));
    segment.set(|machine| {
        machine.taken = vec!["10.92.0.1".parse().unwrap()];
        machine.router = Some("fd95::".parse().unwrap());
    });
    let [nic, unplugged, plugged] = ["52:54:00:00:00:0b", "52:54:00:00:00:0d", "52:54:00:00:00:0c"];
    let interfaces = json!([
        { "mac": nic, "addresses": ["10.92.0.2/24", "10.92.1.2/24", "fd92::2/64"], "gateways": ["10.92.0.1", "fd92::1"], "mtu": 1400,
          "autoconf": "SLAAC" },
        { "mac": nic, "vlan": 7, "addresses": ["10.93.0.2/24"] },
        { "place": 0 },
        { "mac": unplugged, "addresses": ["10.96.0.2/24"] },
        { "mac": plugged, "autoconf": "LINK_LOCAL" },
    ]);
    let socket = bench.path("qmp");
    let [qmp, listen] = qmp::arguments(&socket);
    let set = format!("interfaces={interfaces}");
    let on = |id: &str, segment: &Segment, mac: &str| {
        let netdev = format!("--qemu-arg=stream,id={id},server=off,addr.type=unix,addr.path={}", segment.path.display());
        [
            "--qemu-arg=-netdev".to_owned(),
            netdev,
            "--qemu-arg=-device".to_owned(),
            format!("--qemu-arg=virtio-net-pci,netdev={id},mac={mac}"),
        ]
    };
    let nics = [on("b", &segment, nic), on("d", &other, unplugged)].concat();
    let nics: Vec<&str> = nics.iter().map(String::as_str).collect();
    let port = ["--qemu-arg=-device", "--qemu-arg=pcie-root-port,id=slot9,chassis=9,slot=9"];
    let own = ["--set", &set, &qmp, &listen, "--set", "hostname=reg.test"];
    let arguments = [&own[..], &nics, &port].concat();
    // Without a carrier from the start.
    let (vm, mut qmp) = std::thread::scope(|scope| {
        let qmp = scope.spawn(|| {
            let mut qmp = Qmp::connect(&socket);
            qmp.run("set_link", json!({ "name": "d", "up": false }));
            qmp
        });
        (Vm::boot(&disk, &arguments), qmp.join().unwrap())
    });
    let endpoints = vm.event("ready", |event| if let Event::Ready(ready) = event { Some(ready.endpoints.clone()) } else { None });
    for own in ["10.92.0.2", "10.92.1.2", "10.93.0.2", "10.0.2.15", "[fd92::2]"] {
        assert!(endpoints.contains(&format!("https://{own}:5000")), "{own}: {endpoints:?}");
        assert!(connect(&vm, own.trim_matches(['[', ']'])).is_some(), "{own}");
    }
    assert!(connect(&vm, "reg.test").is_some());
    let mac = [0x52, 0x54, 0, 0, 0, 0x0b];
    for (address, vlan) in [("10.92.0.2", None), ("10.92.1.2", None), ("10.93.0.2", Some(7))] {
        assert_eq!(segment.resolve(address.parse().unwrap(), vlan), mac, "{address}");
    }
    let advertised =
        endpoints.iter().find(|url| url.starts_with("https://[fd95:")).expect("boot waited for the router's network");
    assert!(connect(&vm, advertised.trim_start_matches("https://[").split(']').next().unwrap()).is_some());
    segment.echo(("fd92::2".parse().unwrap(), mac), "fd92::1".parse().unwrap());
    let answer = segment.syn(("198.51.100.7".parse().unwrap(), 40_000), ("10.92.0.2".parse().unwrap(), mac));
    assert_eq!((answer.to, answer.largest_segment), (MAC, 1360), "by the gateway, in packets of 1400 bytes");

    // The interface without a carrier.
    let text = fs::read_to_string(vm.path("events")).unwrap();
    assert!(text.contains(&format!("({unplugged}): no carrier after 1 s")), "{text}");
    assert!(connect(&vm, "10.96.0.2").is_none());
    qmp.run("set_link", json!({ "name": "d", "up": true }));
    moves(&vm, "10.96.0.2:", true);
    assert!(connect(&vm, "10.96.0.2").is_some());

    // The configured interface that was missing is plugged in, unplugged, and plugged in again.
    assert!(text.contains(&format!("no network interface with the MAC address {plugged}; interfaces found:")), "{text}");
    let addr = json!({ "type": "unix", "path": late.path });
    qmp.run("netdev_add", json!({ "type": "stream", "id": "c", "server": false, "addr": addr }));
    let add = json!({ "driver": "virtio-net-pci", "netdev": "c", "mac": plugged, "bus": "slot9", "id": "nic" });
    for time in 0..2 {
        qmp.run("device_add", add.clone());
        moves(&vm, "[fe80::5054:ff:fe00:c]:", true);
        assert!(connect(&vm, "fe80::5054:ff:fe00:c").is_some());
        if time == 0 {
            qmp.run("device_del", json!({ "id": "nic" }));
            qmp.event("DEVICE_DELETED");
            warned(&vm, "LINK_DOWN", &format!("({plugged}): the interface was removed or lost its carrier"));
            moves(&vm, "[fe80::5054:ff:fe00:c]:", false);
            assert!(connect(&vm, "fe80::5054:ff:fe00:c").is_none());
        }
    }
    vm.shut_down();
}

fn fatal(ended: &Ended, code: &str, message: &str) {
    assert_eq!(ended.status, Some(3), "{code}: {}", ended.stderr);
    let line = format!("FATAL code={code} {message}");
    assert!(ended.stderr.contains(&line), "{line}\n{}", ended.stderr);
    assert_eq!((ended.done().status, ended.done().code.as_str(), ended.done().reason.as_str()), (1, code, message));
}

#[test]
fn unusable_networks_fail_the_boot_with_the_cause() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let segment = Segment::at(&bench.path("switch"));
    let say = |change: &str| vm::qemu_changed(&bench.path(""), change);

    let none = say("args=(); for a in \"$@\"; do case $a in virtio-net-pci*) a=virtio-rng-pci;; esac; args+=(\"$a\"); done");
    let there = "interfaces found: none; give QEMU -device virtio-net-pci";
    let message = format!("no network interface number 0 (counted from 0); {there}");
    fatal(&vm::fails(&disk, &["--qemu", &none]), "NO_NIC", &message);

    // Settings that `run` has no option for are on the kernel command line.
    let line = |words: &str| say(&format!("args=(\"${{@/panic=-1/panic=-1 {words}}}\")"));
    let net = segment.net(",mac=52:54:00:00:00:0b");
    let silent = line("localregistry.interfaces.0.timeout_seconds=2");
    let ended = vm::fails(&disk, &["--qemu", &silent, "--net", &net]);
    let reason = ended.done().reason.clone();
    let sent: u32 = reason.split("answered ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    assert_eq!(segment.dhcp_messages()[0], "DISCOVER");
    let message = format!(
        "eth0 (52:54:00:00:00:0b): no DHCP server answered {sent} packets in 2 s; start one on this network, or \
         set interfaces.N.addresses in the config"
    );
    assert!(sent > 1, "{reason}");
    fatal(&ended, "NO_ADDRESS", &message);

    let socket = bench.path("qmp");
    let [qmp, listen] = qmp::arguments(&socket);
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| Qmp::connect(&socket).run("set_link", json!({ "name": "net0", "up": false })));
        vm::fails(&disk, &["--qemu", &silent, "--net", &net, &qmp, &listen])
    });
    fatal(&ended, "NO_ADDRESS", "eth0 (52:54:00:00:00:0b): no carrier after 2 s");

    segment.set(|machine| {
        machine.lease = Some((Ipv4Addr::new(10, 91, 0, 5), [60, 30, 50]));
        machine.naks = true;
    });
    let message =
        "eth0 (52:54:00:00:00:0b): the DHCP server gave no address: 10.91.0.1 answered the request for 10.91.0.5 with NAK";
    fatal(&vm::fails(&disk, &["--net", &net]), "NO_ADDRESS", message);

    let conflict = |address: &str| {
        format!(
            "eth0 (52:54:00:00:00:0b): the address {address} is already used by another machine, {OTHER}; give each machine its own"
        )
    };
    segment.dhcp_messages();
    segment.set(|machine| {
        machine.naks = false;
        machine.stubborn = true;
        machine.taken = vec!["10.91.0.5".parse().unwrap()];
    });
    let ended = vm::fails(&disk, &["--qemu", &silent, "--net", &net]);
    fatal(&ended, "IP_CONFLICT", &conflict("10.91.0.5"));
    assert_eq!(segment.dhcp_messages()[..3], ["DISCOVER", "REQUEST for 10.91.0.5", "DECLINE of 10.91.0.5"]);

    let taken: [IpAddr; 2] = ["10.94.0.2".parse().unwrap(), "fd94::2".parse().unwrap()];
    segment.set(|machine| machine.taken = taken.to_vec());
    let kernel = line("ip=10.94.0.2:::255.255.255.0::eth0:off");
    fatal(&vm::fails(&disk, &["--qemu", &kernel, "--net", &net]), "IP_CONFLICT", &conflict("10.94.0.2"));
    fatal(&vm::fails(&disk, &["--net", &format!("{net},ip=fd94::2/64")]), "IP_CONFLICT", &conflict("fd94::2"));

    let bad = line("ip=10.94.0.2:::255.0.255.0");
    let message = "kernel command line: ip is \"10.94.0.2:::255.0.255.0\"; expected dhcp, off, or \
                   CLIENT:SERVER:GATEWAY:MASK:HOSTNAME:DEVICE:AUTOCONF with IPv4 addresses, a device ethN, and AUTOCONF dhcp or off";
    fatal(&vm::fails(&disk, &["--qemu", &bad, "--net", &net]), "BAD_CONFIG", message);
}
