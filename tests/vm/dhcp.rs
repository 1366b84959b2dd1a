//! Appliances with addresses from DHCP servers of other projects: passt, QEMU and dnsmasq, with radvd. `dhcp_client.rs` tests the
//! client without a VM.

use std::fs;
use std::process::Stdio;

use testing::child::KilledOnDrop;
use testing::pack::Bench;
use testing::private::{ip, privately};
use testing::vm::{Vm, succeed};
use testing::wait::until;

/// Starts a server that ends with the test.
fn start(program: &str, arguments: &[&str]) -> KilledOnDrop {
    let mut command = testing::program(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    KilledOnDrop(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}")))
}

/// The response to `/v2/` at `host`, port 5000, over a connection to `address`. The certificate must be valid for `host`.
fn get(vm: &Vm, host: &str, address: &str) -> String {
    let mut curl = testing::program("curl");
    curl.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(vm.path("ca.crt"));
    succeed(curl.args(["--connect-to", &format!("{host}:5000:{address}"), &format!("https://{host}:5000/v2/")]))
}

#[test]
fn passt_leases_an_address_by_unicast() {
    privately(|| {
        let bench = Bench::default();
        let disk = bench.sample_disk();
        // passt gives the guest the address, network and gateway of the host's interface with the default route.
        ip("link add up0 type veth peer name up1");
        ip("address add 10.67.0.5/24 dev up0");
        ip("link set up0 up");
        ip("link set up1 up");
        ip("route add default via 10.67.0.1");
        let socket = bench.path("socket");
        let path = socket.display().to_string();
        let passt =
            start("passt", &["--foreground", "--ipv4-only", "--runas", "0", "--socket", &path, "-t", "127.0.0.1/5001:5000"]);
        until("the socket of passt", || socket.exists());
        let vm = Vm::boot(&disk, &["--net", &format!("stream={path}")]);
        assert_eq!(vm.ready["endpoints"].as_array().unwrap(), &["https://10.67.0.5:5000"], "{}", vm.ready);
        assert_eq!(get(&vm, "10.67.0.5", "127.0.0.1:5001"), "{}");
        vm.shut_down();
        drop(passt);
    });
}

#[test]
fn qemu_and_dnsmasq_lease_an_address_each_and_radvd_advertises_a_network() {
    privately(|| {
        let bench = Bench::default();
        let disk = bench.sample_disk();
        ip("tuntap add dev tap0 mode tap");
        ip("address add 10.68.0.1/24 dev tap0");
        ip("-6 address add fd68::1/64 dev tap0 nodad");
        ip("link set tap0 up");
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        fs::write("/run/radvd.conf", "interface tap0 { AdvSendAdvert on; prefix fd68::/64 { }; };\n").unwrap();
        let radvd = start("radvd", &["--nodaemon", "--config", "/run/radvd.conf", "--pidfile", "/run/radvd.pid"]);
        let files = ["--conf-file=/dev/null", "--dhcp-leasefile=/run/leases", "--pid-file=/run/pid", "--user=root", "--port=0"];
        let range = ["--keep-in-foreground", "--dhcp-range=10.68.0.20,10.68.0.20,255.255.255.0,2m", "--no-ping"];
        let options = ["--interface=tap0", "--bind-interfaces", "--dhcp-option=option:mtu,1400"];
        let dnsmasq = start("dnsmasq", &[&files[..], &range, &options].concat());

        let mac = "52:54:00:12:34:56";
        let interfaces = format!("interfaces=[{{\"place\": 0}}, {{\"mac\": \"{mac}\", \"autoconf\": \"DHCP_SLAAC\"}}]");
        let (netdev, device) = ("tap,id=tap,ifname=tap0,script=no,downscript=no", format!("virtio-net-pci,netdev=tap,mac={mac}"));
        let nic = ["-netdev", netdev, "-device", &device].map(|argument| format!("--qemu-arg={argument}"));
        let vm = Vm::boot(&disk, &[&["--set", &interfaces], &nic.each_ref().map(String::as_str)[..]].concat());
        let advertised = "[fd68::5054:ff:fe12:3456]";
        let endpoints: Vec<&str> = vm.ready["endpoints"].as_array().unwrap().iter().map(|url| url.as_str().unwrap()).collect();
        let leased = "https://10.68.0.20:5000";
        assert_eq!(endpoints, [&format!("https://{}", vm.address), leased, &format!("https://{advertised}:5000")]);
        // QEMU forwards its port to the address that its DHCP server leases, 10.0.2.15.
        assert_eq!(get(&vm, "127.0.0.1", &vm.address), "{}");
        for host in ["10.68.0.20", advertised] {
            assert_eq!(get(&vm, host, &format!("{host}:5000")), "{}", "{host}");
        }
        let leases = fs::read_to_string("/run/leases").unwrap();
        assert!(leases.contains(" 52:54:00:12:34:56 10.68.0.20 localregistry 01:52:54:00:12:34:56"), "{leases}");
        vm.shut_down();
        drop((dnsmasq, radvd));
    });
}
