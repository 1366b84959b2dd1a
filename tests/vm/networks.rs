//! Appliances on networks other than QEMU's user network: a bridge and a tap with real clients, and networks on which the test
//! handles single frames. The networks are private to the test.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use command_fds::CommandFdExt;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use nix::unistd::Pid;
use serde_json::Value;
use testing::agent::Agent;
use testing::child::KilledOnDrop;
use testing::pack::{Bench, PROGRAM};
use testing::private::{ip, privately};
use testing::vm::{Vm, own_cache, succeed};
use testing::wait::until;

/// Time limit for the answer to a frame.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pulls the image by name from the address that `vm` reports, trusting only its CA.
fn pull(vm: &Vm) {
    succeed(&mut vm.copy("test/hello:latest", &[], "oci:pulled"));
    assert!(vm.path("pulled/index.json").exists());
}

#[test]
fn tap_on_a_bridge_lives_as_long_as_the_appliance() {
    privately(|| {
        let bench = Bench::default();
        let disk = bench.sample_disk();
        ip("link add br0 type bridge");
        ip("address add 10.77.0.1/24 dev br0");
        ip("link set br0 up");
        // A bridge takes the lowest MAC address of its ports, which may itself be high.
        ip("link add port0 address fe:fe:00:d7:b5:bc type veth peer name port1");
        ip("link set port0 master br0");
        let address = || ip("-brief link show br0").split_whitespace().nth(2).map(str::to_owned);
        let before = address();
        let taps = || ip("-brief link show master br0").lines().filter(|line| line.starts_with("lreg")).count();
        let vm = Vm::boot(&disk, &["--net", "bridge=br0,ip=10.77.0.82/24,gw=10.77.0.1,mtu=1400"]);
        assert_eq!(vm.ready["endpoint"], "https://10.77.0.82:5000");
        assert_eq!(vm.ready["endpoints"].as_array().unwrap()[0], "https://10.77.0.82:5000");
        pull(&vm);
        assert_eq!((taps(), address()), (1, before.clone()), "the bridge keeps its MAC address");
        assert!(ip("-oneline link show lreg0").contains(" mtu 1500 "), "the bridge's MAC address, whatever the guest's");
        let ended = vm.shut_down();
        assert!(ended.requests().iter().any(|request| request.peer.starts_with("10.77.0.1:") && request.status == 200));
        assert_eq!((taps(), address()), (0, before), "the tap is gone");

        // Two appliances on one bridge: the launcher of one is killed, and its tap disappears.
        let one = Vm::boot(&disk, &["--net", "bridge=br0,ip=10.77.0.82/24"]);
        let other = Vm::boot(&disk, &["--net", "bridge=br0,ip=10.77.0.83/24"]);
        assert_eq!(taps(), 2);
        let qemu = one.ready["qemu_pid"].as_u64().unwrap();
        drop(one);
        until("the end of QEMU", || !PathBuf::from(format!("/proc/{qemu}")).exists());
        assert_eq!(taps(), 1);
        pull(&other);
        other.shut_down();
    });
}

#[test]
fn existing_tap_is_used_and_stays() {
    privately(|| {
        let bench = Bench::default();
        let disk = bench.sample_disk();
        ip("tuntap add dev tap0 mode tap");
        ip("address add 10.78.0.1/24 dev tap0");
        ip("link set tap0 up");
        let vm = Vm::boot(&disk, &["--net", "tap=tap0,mac=52:54:00:12:34:56,ip=10.78.0.82/24", "--san", "registry.test"]);
        assert_eq!(vm.address, "10.78.0.82:5000");
        pull(&vm);
        let neighbour = ip("neighbour show 10.78.0.82");
        assert!(neighbour.contains("52:54:00:12:34:56"), "{neighbour}");
        // By its name, as in a node's /etc/hosts.
        let found = testing::program("curl")
            .args(["--silent", "--fail", "--cacert", "ca.crt", "--resolve", "registry.test:5000:10.78.0.82"])
            .arg("https://registry.test:5000/v2/test/hello/tags/list")
            .current_dir(vm.dir.path())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(found.stdout).unwrap().trim(), r#"{"name":"test/hello","tags":["latest"]}"#);
        vm.shut_down();
        assert!(ip("-brief link").contains("tap0"));
    });
}

/// An ARP request (RFC 826) for `target`, from a host at `sender` with the MAC address 02:00:00:00:00:01.
fn who_has(target: Ipv4Addr, sender: Ipv4Addr) -> Vec<u8> {
    let mac = [2, 0, 0, 0, 0, 1];
    let head = [&[0xff; 6][..], &mac, &[8, 6], &[0, 1, 8, 0, 6, 4, 0, 1]].concat();
    let mut frame = [&head[..], &mac, &sender.octets(), &[0; 6], &target.octets()].concat();
    frame.resize(60, 0);
    frame
}

/// The MAC address in `frame`, if that is the answer of `target`.
fn answer(frame: &[u8], target: Ipv4Addr) -> Option<String> {
    let is_answer = frame.get(12..22)? == [8, 6, 0, 1, 8, 0, 6, 4, 0, 2] && frame.get(28..32)? == target.octets();
    let mac: Vec<String> = frame.get(22..28)?.iter().map(|byte| format!("{byte:02x}")).collect();
    is_answer.then(|| mac.join(":"))
}

/// Resolves `target` to a MAC address over `send` and `receive`. It asks once, because no network here loses frames.
fn resolve(target: &str, mut send: impl FnMut(&[u8]) -> usize, mut receive: impl FnMut() -> Vec<u8>) -> String {
    let target: Ipv4Addr = target.parse().unwrap();
    let [a, b, c, _] = target.octets();
    send(&who_has(target, Ipv4Addr::new(a, b, c, 1)));
    loop {
        if let Some(mac) = answer(&receive(), target) {
            return mac;
        }
    }
}

/// Resolves it over a stream, in which the length precedes each frame.
fn resolve_over(mut stream: UnixStream, target: &str) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let send = |frame: &[u8]| {
        writer.write_all(&u32::try_from(frame.len()).unwrap().to_be_bytes()).unwrap();
        writer.write_all(frame).unwrap();
        frame.len()
    };
    resolve(target, send, || {
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut frame).unwrap();
        frame
    })
}

/// A socket in the multicast group, with a shared port.
fn in_group(group: SocketAddrV4) -> UdpSocket {
    let fd: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&fd, sockopt::ReuseAddr, &true).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::from(group)).unwrap();
    let peer = UdpSocket::from(fd);
    peer.join_multicast_v4(group.ip(), &Ipv4Addr::LOCALHOST).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer
}

fn received(count: std::io::Result<usize>, buffer: &[u8]) -> Vec<u8> {
    buffer[..count.unwrap()].to_vec()
}

#[test]
fn frames_pass_both_ways_on_every_unprivileged_network() {
    privately(|| {
        let bench = Bench::default();
        let disk = bench.sample_disk();
        let path = |name: &str| bench.path(name);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let listener = UnixListener::bind(path("switch")).unwrap();
        let unix = UnixDatagram::bind(path("peer")).unwrap();
        unix.set_read_timeout(Some(PATIENCE)).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_read_timeout(Some(PATIENCE)).unwrap();
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // The network is private, so no other group is here.
        let group: SocketAddrV4 = "239.1.2.3:4000".parse().unwrap();
        ip("route add 239.0.0.0/8 dev lo");
        let member = in_group(group);

        let mut command = testing::program(PROGRAM);
        command.args(["run", "--json", "--quiet", "--accel", "tcg", "--timeout", "600", "--tls", "off", "--net", "user"]);
        // It starts from a frozen machine, which has no network.
        let cache = own_cache(&bench.path(""));
        succeed(testing::program(PROGRAM).args(["freeze", "--accel", "tcg", "--quiet"]).env("LOCALREGISTRY_CACHE", &cache));
        command.env("LOCALREGISTRY_CACHE", &cache);
        let number = theirs.as_raw_fd();
        let nets = [
            format!("socket-fd={number},ip=10.81.0.2/24,mac=52:54:00:00:00:01"),
            format!("stream={},ip=10.82.0.2/24,mac=52:54:00:00:00:02", path("switch").display()),
            format!("dgram={},{},ip=10.83.0.2/24,mac=52:54:00:00:00:03", path("local").display(), path("peer").display()),
            format!("dgram={free},{},ip=10.84.0.2/24,mac=52:54:00:00:00:04", udp.local_addr().unwrap()),
            format!("mcast={group},ip=10.85.0.2/24,mac=52:54:00:00:00:05,mtu=1400"),
        ];
        for net in &nets {
            command.args(["--net", net]);
        }
        let run = command.arg(&disk).stdout(Stdio::piped()).preserved_fds(vec![theirs.into()]).spawn().unwrap();
        let mut run = KilledOnDrop(run);
        drop(command);
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(run.0.stdout.take().unwrap()), &mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["start"], "warm", "{ready}");
        let endpoints: Vec<&str> = ready["endpoints"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
        assert_eq!(endpoints[0], ready["endpoint"]);
        assert!(endpoints[0].starts_with("http://127.0.0.1:"), "the first network is `user`: {endpoints:?}");
        let own: Vec<String> = (1..=5).map(|place| format!("http://10.8{place}.0.2:5000")).collect();
        assert_eq!(endpoints[1..], own, "no host has 10.0.2.15");

        assert_eq!(resolve_over(ours, "10.81.0.2"), "52:54:00:00:00:01");
        assert_eq!(resolve_over(listener.accept().unwrap().0, "10.82.0.2"), "52:54:00:00:00:02");
        let mut buffer = [0; 65536];
        let send = |frame: &[u8]| unix.send_to(frame, path("local")).unwrap();
        assert_eq!(resolve("10.83.0.2", send, || received(unix.recv(&mut buffer), &buffer)), "52:54:00:00:00:03");
        let send = |frame: &[u8]| udp.send_to(frame, free).unwrap();
        assert_eq!(resolve("10.84.0.2", send, || received(udp.recv(&mut buffer), &buffer)), "52:54:00:00:00:04");
        let send = |frame: &[u8]| member.send_to(frame, group).unwrap();
        assert_eq!(resolve("10.85.0.2", send, || received(member.recv(&mut buffer), &buffer)), "52:54:00:00:00:05");

        kill(Pid::from_raw(run.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(run.0.wait().unwrap().code(), Some(0));
        assert!(!path("local").exists(), "the socket that QEMU created is removed");
        assert!(path("switch").exists() && path("peer").exists(), "the test's sockets stay");
    });
}

/// Another host: a network namespace at the other end of a veth pair. This end has the address 203.0.113.1, the other 203.0.113.2.
struct OtherHost(KilledOnDrop);

impl OtherHost {
    fn new() -> Self {
        let mut child = testing::program("unshare");
        child.args(["--net", "sh", "-c", "echo there; exec sleep 1000"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut other = KilledOnDrop(child.spawn().unwrap());
        other.0.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        ip(&format!("link add cable0 type veth peer name cable1 netns {}", other.0.id()));
        ip("address add 203.0.113.1/24 dev cable0");
        ip("link set cable0 up");
        let other = Self(other);
        succeed(other.command("ip").args("address add 203.0.113.2/24 dev cable1".split(' ')));
        succeed(other.command("ip").args("link set cable1 up".split(' ')));
        other
    }

    /// `program` on that host.
    fn command(&self, program: &str) -> Command {
        let mut command = testing::program("nsenter");
        command.args(["--target", &self.0.0.id().to_string(), "--net", program]);
        command
    }

    /// The response to a GET request from that host.
    fn get(&self, vm: &Vm, url: &str) -> String {
        let mut curl = self.command("curl");
        succeed(curl.args(["--silent", "--show-error", "--fail", "--max-time", "60", "--cacert"]).arg(vm.path("ca.crt")).arg(url))
    }
}

#[test]
fn published_ports_answer_other_hosts_and_the_guest_cannot_connect_out_through_passt() {
    check_published_ports("passt");
}

#[test]
fn published_ports_answer_other_hosts_and_the_guest_cannot_connect_out_through_qemu() {
    check_published_ports("slirp");
}

/// Publishes ports for other hosts, and lets the guest try to connect out.
fn check_published_ports(backend: &'static str) {
    privately(move || {
        let bench = Bench::default();
        let disk = bench.sample_disk();
        let other = OtherHost::new();
        let agent = Agent::new(&bench.path("agent"), "", "");
        let net = format!("--net=user,backend={backend}");
        let published = [
            &net,
            "--publish=0.0.0.0:5000",
            "--metrics=203.0.113.1:9090",
            "--set=listeners=[{\"port\":80,\"transport\":\"PLAIN\"}]",
            "--san=203.0.113.1",
        ];
        let arguments = agent.arguments();
        let vm = Vm::boot(&disk, &arguments.iter().map(String::as_str).chain(published).collect::<Vec<_>>());
        let further = vm.ready["further"][0].as_str().unwrap().rsplit_once(':').unwrap().1;
        assert_eq!(vm.ready["metrics"], "http://203.0.113.1:9090");
        assert_eq!(vm.ready["user_network"], backend);

        let tags = r#"{"name":"test/hello","tags":["latest"]}"#;
        assert_eq!(other.get(&vm, "https://203.0.113.1:5000/v2/test/hello/tags/list"), tags);
        assert_eq!(other.get(&vm, "http://203.0.113.1:9090/healthz"), "{\"status\":\"ok\"}");
        assert_eq!(other.get(&vm, &format!("http://203.0.113.1:{further}/v2/test/hello/tags/list")), tags);
        // This host reaches it too, at both of its addresses.
        pull(&vm);
        let mut curl = testing::program("curl");
        curl.args(["--silent", "--fail", "--max-time", "60", "--cacert"]).arg(vm.path("ca.crt"));
        assert_eq!(succeed(curl.arg("https://203.0.113.1:5000/v2/test/hello/tags/list")), tags);

        // No connection of the guest reaches either host, and none reaches this host's loopback through the gateway.
        let port = |address: Option<std::net::SocketAddr>| address.unwrap().port();
        let tcp = TcpListener::bind("[::]:0").unwrap();
        let udp = UdpSocket::bind("[::]:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        let (tcp_port, udp_port) = (port(tcp.local_addr().ok()), port(udp.local_addr().ok()));
        assert_eq!(agent.ask("connect 127.0.0.1 5000"), "connected", "the registry itself");
        for address in ["203.0.113.1", "203.0.113.2", "198.18.0.2", "fec0::2"] {
            agent.ask(&format!("send {address} {udp_port}"));
            let outcome = agent.ask(&format!("connect {address} {tcp_port}"));
            assert_ne!(outcome, "connected", "{address}");
        }
        // QEMU resets the connection, and passt does not answer.
        let outcome = if backend == "slirp" { "Connection refused" } else { "Operation in progress" };
        assert_eq!(agent.ask(&format!("connect 203.0.113.1 {tcp_port}")), outcome);
        assert_eq!(tcp.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(udp.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);

        let ended = vm.shut_down();
        let peers: Vec<&str> = ended.requests().iter().map(|request| request.peer.rsplit_once(':').unwrap().0).collect();
        assert_eq!(peers[..3], ["203.0.113.2"; 3], "clients keep their addresses");
        assert_eq!(peers.last(), Some(&"203.0.113.1"));
        assert!(peers[3..peers.len() - 1].iter().all(|peer| *peer == "198.18.0.2"), "the loopback is the gateway: {peers:?}");
    });
}

#[test]
fn user_network_accepts_another_address() {
    let bench = Bench::default();
    let vm = Vm::boot(&bench.sample_disk(), &["--net", "user,ip=192.168.76.9/24,gw=192.168.76.1"]);
    assert!(vm.address.starts_with("127.0.0.1:"), "{}", vm.address);
    assert_eq!(vm.ready["user_network"], "passt");
    assert_eq!(vm.ready["endpoints"].as_array().unwrap().len(), 1, "{}", vm.ready);
    pull(&vm);
    let ended = vm.shut_down();
    assert!(ended.requests().iter().all(|request| request.peer.starts_with("192.168.76.1:")));
}
