//! The guest's DHCP client against servers of other projects and against hostile replies. The client runs in this process, at one
//! end of a veth pair between two network namespaces, and the server at the other. `dhcp.rs` boots a VM.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use localregistry::guest::net::dhcp::{self, Extension};
use localregistry::guest::net::dhcp_client::{Lease, Refusal, Times};
use localregistry::guest::net::link::{Link, Links};
use localregistry::guest::net::packet_socket::PacketSocket;
use localregistry::guest::net::udp;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use testing::child::KilledOnDrop;
use testing::private::{ip, privately};
use testing::segment::{checksum, ip4};
use tokio::time::Instant;

/// The server's address, which is also the gateway.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);
/// The only address that it leases.
const GIVEN: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 20);
const HOSTNAME: &str = "registry";
/// Time limit for a server's reply.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a reply is addressed.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// To the client's MAC address.
    Unicast,
    /// To the broadcast address.
    Broadcast,
}

/// Runs `client` and `server` in two network namespaces, whose interfaces `client` and `server` are a veth pair. Drops the result
/// of `server` at the end.
fn on_a_cable<S>(server: impl FnOnce() -> S + Send + 'static, client: impl FnOnce() + Send + 'static) {
    privately(move || {
        let (entered, thread_id) = channel();
        let (connect, connected) = channel();
        let client = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            entered.send(gettid()).unwrap();
            connected.recv().unwrap();
            client();
        });
        ip("link add server type veth peer name client");
        ip(&format!("address add {SERVER}/24 dev server"));
        ip("link set server up");
        ip(&format!("link set client netns {}", thread_id.recv().unwrap()));
        let server = server();
        connect.send(()).unwrap();
        let ended = client.join();
        drop(server);
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Runs `test` with the interface `client`, which is up and connected.
fn with_link(test: impl AsyncFnOnce(&Links, &Link)) {
    runtime().block_on(async {
        let links = Links::open().unwrap();
        let find = || links.ethernet().unwrap().into_iter().find(|link| link.name == "client").unwrap();
        links.up(&find(), None).unwrap();
        while !find().carrier {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        test(&links, &find()).await;
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn acquire(link: &Link) -> Lease {
    dhcp::acquire(link, HOSTNAME, Instant::now() + PATIENCE, PATIENCE).await.unwrap()
}

/// A lease of one hour.
fn lease() -> Lease {
    let [renewal, rebinding, end] = [1800, 3150, 3600].map(Duration::from_secs);
    Lease {
        address: format!("{GIVEN}/24").parse().unwrap(),
        router: Some(SERVER),
        mtu: Some(1400),
        times: Some(Times { renewal, rebinding, end }),
        server: SERVER,
        alone: false,
    }
}

/// Asserts that the lease lasts one hour. dnsmasq subtracts a random time from T1 and T2.
fn is_one_hour(given: &Lease) {
    let times = given.times.unwrap();
    let wanted = lease();
    assert_eq!(*given, Lease { times: Some(Times { end: Duration::from_secs(3600), ..times }), ..wanted });
    assert!(times.renewal <= Duration::from_secs(1800) && times.rebinding <= Duration::from_secs(3150), "{times:?}");
    assert!(Duration::ZERO < times.renewal && times.renewal < times.rebinding, "{times:?}");
}

/// Gets a lease of one hour from the server on the link, extends it at that server, and extends it at any server.
async fn is_leased(links: &Links, link: &Link, answer: Answer) {
    let frames = PacketSocket::open(link, udp::ETHERTYPE, &udp::filter()).unwrap();
    let given = acquire(link).await;
    is_one_hour(&given);
    let mut frame = [0; 2048];
    frames.receive(&mut frame).await.unwrap();
    let expected = if answer == Answer::Unicast { link.mac.0 } else { [0xff; 6] };
    assert_eq!(frame[..6], expected, "the offer is {answer:?}");

    links.add_address(link, given.address).unwrap();
    for server in [Some(SERVER), None] {
        match dhcp::extend(link, HOSTNAME, &given, server, Instant::now() + PATIENCE).await {
            Extension::Extended(extended) => is_one_hour(&extended),
            other => panic!("asked of {server:?}: {other:?}"),
        }
    }
}

/// Starts a server that ends with the test. Its messages go to the file `log`.
fn start(program: &str, arguments: &[&str]) -> KilledOnDrop {
    let log = fs::File::create("/run/log").unwrap();
    let mut command = testing::program(program);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    KilledOnDrop(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}")))
}

fn dnsmasq(further: &[&str]) -> KilledOnDrop {
    let range = format!("--dhcp-range={GIVEN},{GIVEN},255.255.255.0,1h");
    let files = ["--conf-file=/dev/null", "--dhcp-leasefile=/run/leases", "--pid-file=/run/pid", "--user=root"];
    let kind = ["--keep-in-foreground", "--log-facility=-", "--port=0", "--interface=server", "--bind-interfaces", "--no-ping"];
    let options =
        ["--dhcp-authoritative", "--dhcp-option=option:mtu,1400", "--dhcp-option=option:T1,1800", "--dhcp-option=option:T2,3150"];
    start("dnsmasq", &[&[range.as_str()], &files[..], &kind, &options, further].concat())
}

/// ISC's server. Its files are where AppArmor allows them, in the private mounts of [`privately`].
fn dhcpd(further: &str) -> KilledOnDrop {
    let config = format!(
        "authoritative; ping-check off; dhcp-cache-threshold 0; {further}\n\
         subnet 10.66.0.0 netmask 255.255.255.0 {{ range {GIVEN} {GIVEN}; option routers {SERVER}; option interface-mtu 1400; }}\n"
    );
    fs::create_dir_all("/etc/dhcp").unwrap();
    fs::write("/etc/dhcp/test.conf", config).unwrap();
    fs::create_dir_all("/var/lib/dhcp").unwrap();
    fs::write("/var/lib/dhcp/dhcpd.leases", "").unwrap();
    let files = ["-cf", "/etc/dhcp/test.conf", "-lf", "/var/lib/dhcp/dhcpd.leases", "-pf", "/run/dhcpd.pid"];
    start("dhcpd", &[&["-4", "-f", "-d"], &files[..], &["server"]].concat())
}

const ONE_HOUR: &str = "default-lease-time 3600; max-lease-time 3600;";

#[test]
fn dnsmasq_grants_and_extends_a_lease_by_unicast() {
    on_a_cable(|| dnsmasq(&[]), || with_link(async |links, link| is_leased(links, link, Answer::Unicast).await));
}

#[test]
fn dnsmasq_grants_and_extends_a_lease_by_broadcast() {
    let server = || dnsmasq(&["--dhcp-broadcast"]);
    on_a_cable(server, || with_link(async |links, link| is_leased(links, link, Answer::Broadcast).await));
}

#[test]
fn isc_dhcpd_grants_and_extends_a_lease_by_unicast() {
    on_a_cable(|| dhcpd(ONE_HOUR), || with_link(async |links, link| is_leased(links, link, Answer::Unicast).await));
}

#[test]
fn isc_dhcpd_grants_and_extends_a_lease_by_broadcast() {
    let server = || dhcpd(&format!("always-broadcast on; {ONE_HOUR}"));
    on_a_cable(server, || with_link(async |links, link| is_leased(links, link, Answer::Broadcast).await));
}

#[test]
fn busybox_udhcpd_grants_and_extends_a_lease_by_broadcast() {
    let server = || {
        let config = format!(
            "interface server\nstart {GIVEN}\nend {GIVEN}\nmax_leases 1\nlease_file /run/leases\npidfile /run/pid\n\
             opt subnet 255.255.255.0\nopt router {SERVER}\nopt mtu 1400\nopt lease 3600\n"
        );
        fs::write("/run/udhcpd.conf", config).unwrap();
        fs::write("/run/leases", "").unwrap();
        start("udhcpd", &["-f", "/run/udhcpd.conf"])
    };
    on_a_cable(server, || with_link(async |links, link| is_leased(links, link, Answer::Broadcast).await));
}

#[test]
fn dnsmasq_refuses_an_address_of_another_network() {
    on_a_cable(
        || dnsmasq(&[]),
        || {
            with_link(async |links, link| {
                let address = Ipv4Addr::new(10, 99, 0, 7);
                let held = Lease { address: format!("{address}/24").parse().unwrap(), ..lease() };
                links.add_address(link, held.address).unwrap();
                let kept = dhcp::extend(link, HOSTNAME, &held, None, Instant::now() + PATIENCE).await;
                assert_eq!(kept, Extension::Refused(Refusal::Nak { server: SERVER, address }));
            });
        },
    );
}

#[test]
fn lease_is_renewed_by_its_server_when_t1_has_passed() {
    let short = "default-lease-time 60; max-lease-time 60; option dhcp-renewal-time 1; option dhcp-rebinding-time 50;";
    on_a_cable(
        || dhcpd(short),
        || {
            with_link(async |links, link| {
                let (asked, given) = (Instant::now(), acquire(link).await);
                let [renewal, rebinding, end] = [1, 50, 60].map(Duration::from_secs);
                assert_eq!(given, Lease { times: Some(Times { renewal, rebinding, end }), ..lease() });
                links.add_address(link, given.address).unwrap();
                assert_eq!(dhcp::renew(link, HOSTNAME, &given, asked).await, Extension::Extended(given.clone()));
                assert!(asked.elapsed() >= renewal);
            });
            let log = fs::read_to_string("/run/log").unwrap();
            assert_eq!(log.matches("DHCPACK on 10.66.0.20 ").count(), 2, "{log}");
        },
    );
}

/// Answers every DHCP client on the interface `server` with invalid packets and, if `honest`, with a valid one afterwards, until
/// the sender of `end` is dropped.
fn serve_hostile(honest: bool, mut end: tokio::sync::oneshot::Receiver<()>) {
    runtime().block_on(async {
        let link = Links::open().unwrap().ethernet().unwrap().into_iter().find(|link| link.name == "server").unwrap();
        let socket = PacketSocket::open(&link, udp::ETHERTYPE, &[]).unwrap();
        let mut frame = [0; 2048];
        loop {
            tokio::select! {
                _ = &mut end => return,
                received = socket.receive(&mut frame) => {
                    let request = &frame[..received.unwrap().length];
                    if request[23] == 17 && request[36..38] == [0, 67] {
                        let good = honest.then(|| datagram(&dhcp_reply(&request[42..], SERVER, GIVEN)));
                        for answer in hostile_answers(&request[42..]).into_iter().chain(good) {
                            socket.send(&[&request[6..12], &link.mac.0, &[8, 0], &answer].concat()).unwrap();
                        }
                    }
                }
            }
        }
    });
}

/// An OFFER or ACK of `address` from `server` in reply to `request`.
fn dhcp_reply(request: &[u8], server: Ipv4Addr, address: Ipv4Addr) -> Vec<u8> {
    let kind = if request[242] == 1 { 2 } else { 5 };
    let mut reply = [&[2, 1, 6, 0][..], &request[4..8], &[0; 8], &address.octets(), &[0; 8], &request[28..34]].concat();
    reply.resize(236, 0);
    reply.extend([99, 130, 83, 99, 53, 1, kind, 54, 4]);
    reply.extend(server.octets());
    reply.extend([1, 4, 255, 255, 255, 0, 3, 4]);
    reply.extend(SERVER.octets());
    reply.extend([26, 2, 5, 120, 51, 4, 0, 0, 14, 16, 255]);
    reply
}

/// The IPv4 packet with `payload` from the server to the client.
fn datagram(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    let pseudo_header = [&SERVER.octets()[..], &GIVEN.octets(), &[0, 17], &length].concat();
    let start = [&[0, 67, 0, 68][..], &length].concat();
    let sum = checksum(&[&pseudo_header[..], &start, &[0, 0], payload].concat());
    ip4(17, SERVER, GIVEN, &[&start[..], &sum, payload].concat())
}

/// Packets that are no valid replies to `request`. Each offers an address that no server leases.
fn hostile_answers(request: &[u8]) -> Vec<Vec<u8>> {
    let reply = dhcp_reply(request, Ipv4Addr::new(10, 66, 6, 6), Ipv4Addr::new(10, 66, 6, 66));
    let with = |place: usize, bytes: &[u8]| {
        let mut changed = reply.clone();
        changed[place..place + bytes.len()].copy_from_slice(bytes);
        datagram(&changed)
    };
    // With a valid IP header checksum, so that only this field is wrong.
    let framed = |place: usize, bytes: &[u8]| {
        let mut changed = datagram(&reply);
        changed[place..place + bytes.len()].copy_from_slice(bytes);
        changed[10..12].copy_from_slice(&[0, 0]);
        let sum = checksum(&changed[..20]);
        changed[10..12].copy_from_slice(&sum);
        changed
    };
    let mut damaged = datagram(&reply);
    damaged[10] ^= 1;
    vec![
        with(0, &[1]),                                // a client's packet
        with(4, &(!xid(request)).to_be_bytes()),      // to another transaction
        with(28, &[2, 0, 0, 0, 0, 9]),                // to another client
        with(236, &[0]),                              // without the cookie
        with(240, &[53, 0, 1]),                       // a message type of no bytes
        with(240, &[53, 255, 2]),                     // an option past the packet's end
        with(240, &[255]),                            // no options
        datagram(&reply[..240]),                      // the same, and the packet ends
        datagram(&reply[..100]),                      // cut in its fixed part
        datagram(&[]),                                // empty
        datagram(&[&reply[..], &[0; 7000]].concat()), // longer than the client said that it takes
        damaged,                                      // the IP checksum is wrong
        framed(26, &[0x12, 0x34]),                    // the UDP checksum is wrong
        framed(6, &[0x20, 0]),                        // a first fragment
        framed(6, &[0, 1]),                           // a later fragment
        framed(0, &[0x4f]),                           // IP options that are none
        framed(0, &[0x41]),                           // a header shorter than its fixed part
        framed(2, &[0xff, 0xff]),                     // a packet longer than the frame
        framed(2, &[0, 21]),                          // a packet too short for UDP
        framed(24, &[0xff, 0xff]),                    // a datagram longer than the packet
        framed(24, &[0, 7]),                          // a datagram shorter than its header
        framed(22, &[0, 67]),                         // to the server's port
        framed(9, &[6]),                              // TCP
    ]
}

fn xid(request: &[u8]) -> u32 {
    u32::from_be_bytes(request[4..8].try_into().unwrap())
}

/// Runs `client` against [`serve_hostile`], on a link with frames larger than the client's buffer.
fn against_hostile_answers(honest: bool, client: impl AsyncFnOnce(&Link) + Send + 'static) {
    let server = move || {
        ip("link set server mtu 9000");
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        thread::spawn(move || serve_hostile(honest, ended));
        end
    };
    on_a_cable(server, || {
        ip("link set client mtu 9000");
        with_link(async |_, link| client(link).await);
    });
}

#[test]
fn hostile_replies_before_the_valid_one_are_ignored() {
    against_hostile_answers(true, async |link| assert_eq!(acquire(link).await, lease()));
}

#[test]
fn hostile_replies_alone_give_no_lease() {
    against_hostile_answers(false, async |link| {
        let short = Duration::from_secs(2);
        let error = dhcp::acquire(link, HOSTNAME, Instant::now() + short, short).await.unwrap_err();
        assert_eq!(error.code(), "NO_ADDRESS");
        assert!(error.to_string().contains("no DHCP server answered"), "{error}");
    });
}
