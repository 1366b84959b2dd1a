//! `localregistry run` on missing networks (exit 11) and forbidden ones (exit 15): one message each, no process started, no file
//! left.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use testing::layout::Layout;
use testing::private::{ip, privately};
use testing::refused::{as_nobody, boot, folder, nobody};
use testing::vm::succeed;

#[test]
fn missing_networks_are_named() {
    privately(|| {
        let folder = folder();
        ip("link add br0 type bridge");
        ip("link add plain0 type veth peer name plain1");
        for (network, message) in [
            ("bridge=br9", "there is no bridge br9 (as root: ip link add br9 type bridge && ip link set br9 up)".to_owned()),
            ("bridge=plain0", "plain0 is not a bridge, but an interface of the kind veth".to_owned()),
            ("bridge=lo", "lo is not a bridge, but a plain interface".to_owned()),
            ("bridge=br0,mtu=9000", "mtu=9000 is larger than the MTU of the bridge br0, 1500".to_owned()),
            (
                "tap=tap9",
                "there is no tap tap9 (as root: ip tuntap add dev tap9 mode tap user USER && ip link set tap9 up)".to_owned(),
            ),
            ("tap=br0", "br0 is not a tap, but an interface of the kind bridge".to_owned()),
        ] {
            let (status, stderr) = boot(&folder, &["disk", "--net", network]);
            assert_eq!((status, stderr), (Some(11), format!("localregistry: {message}\n")));
        }
        let links = ip("-brief link");
        assert!(!links.contains("lreg"), "no tap is left: {links}");
    });
}

#[test]
fn tap_of_another_user_and_tap_in_use_are_named() {
    privately(|| {
        let folder = folder();
        ip("link add br0 type bridge");
        ip("tuntap add dev tap0 mode tap user 12345");
        succeed(testing::program("mknod").args(["--mode=600", "/run/tun", "c", "10", "200"]));
        succeed(testing::program("mount").args(["--bind", "/run/tun", "/dev/net/tun"]));
        let message = "localregistry: cannot open /dev/net/tun for the tap tap0 (as root: chmod 0666 /dev/net/tun, as most systems have \
                       it): Permission denied (os error 13)\n";
        assert_eq!(as_nobody(&folder, "theirs", &["disk", "--net", "tap=tap0"]), (Some(15), message.to_owned()));
        succeed(testing::program("chmod").args(["666", "/run/tun"]));
        let message = "localregistry: no permission to make a tap on the bridge br0: it takes CAP_NET_ADMIN (run it as root, or have \
                       root make a tap for you, ip tuntap add dev TAP mode tap user USER, and give tap=TAP)\n";
        assert_eq!(as_nobody(&folder, "theirs", &["disk", "--net", "bridge=br0"]), (Some(15), message.to_owned()));
        let message = "localregistry: no permission to open the tap tap0: it belongs to another user (as root: ip tuntap add dev tap0 \
                       mode tap user USER)\n";
        assert_eq!(as_nobody(&folder, "theirs", &["disk", "--net", "tap=tap0"]), (Some(15), message.to_owned()));

        // It belongs to that user.
        let _held = localregistry::host::vm::net::attach::open_tap("tap0").unwrap();
        let (status, stderr) = boot(&folder, &["disk", "--net", "tap=tap0"]);
        let message = "localregistry: the tap tap0 is in use by another process: give each machine its own\n";
        assert_eq!((status, stderr.as_str()), (Some(11), message));
    });
}

/// In a private network namespace, in which every user may bind ports from 1024, as is Linux's default.
#[test]
fn privileged_ports_are_refused_for_lack_of_permission() {
    privately(|| {
        let folder = folder();
        let roots = "ports below 1024 are for root (use another, or as root: sysctl -w net.ipv4.ip_unprivileged_port_start=443): \
                     Permission denied (os error 13)";
        for (flag, purpose) in [("--publish", "the registry"), ("--metrics", "health and metrics")] {
            let message = format!(
                "localregistry: no permission to listen on 127.0.0.1:443 for {purpose}: {roots}; choose another port with {flag}\n"
            );
            assert_eq!(as_nobody(&folder, "theirs", &["disk", flag, "443"]), (Some(15), message));
        }
        let mut layout = Layout::default();
        layout.image("test/hello:1", b"layer");
        layout.write();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(layout.path(), mode).unwrap();
        for flags in [&["--listen", "127.0.0.1:443"][..], &["--listen", "127.0.0.1:0", "--plain", "127.0.0.1:443"]] {
            let output = nobody(&folder).arg("serve").arg(layout.path()).args(flags).output().unwrap();
            let message = format!("localregistry: no permission to listen on 127.0.0.1:443: {roots}\n");
            assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(1), message));
        }
    });
}
