use crate::config::settings::{Mac, Selector};
use crate::guest::net::*;
use link::Link;

fn link() -> Link {
    Link { index: 2, name: "eth0".to_owned(), mac: Mac([0x52, 0x54, 0, 0, 0, 1]), carrier: false, is_virtual: false }
}

/// How the wait at boot ends with these statuses after `millis`; "" to continue.
fn outcome(statuses: [Status; 2], millis: u64) -> String {
    let timeout = Duration::from_secs(3);
    let interfaces = [0, 1].map(|place| Interface { selector: Selector::Place(place), timeout, ..Interface::default() });
    let (events, _queue) = Events::queue();
    let shared = Shared::new(Links::open().unwrap(), "reg", &interfaces, events);
    *shared.statuses() = statuses.into();
    let words = |error: &NetError| format!("{} {error}", error.code());
    match shared.outcome(Duration::from_millis(millis)) {
        None => String::new(),
        Some(Err(error)) => format!("fatal {}", words(&error)),
        Some(Ok(late)) => format!("ready {}", late.iter().map(words).collect::<Vec<_>>().join("; ")),
    }
}

#[test]
fn boot_waits_for_late_interfaces_and_fails_if_none_serves() {
    let missing = || Status::Missing(vec![]);
    let unplugged = || Status::NoCarrier(link());
    let failed = || Status::Failed(NetError::LinkDown { link: link() });
    let no_nic = |place| {
        let there = "interfaces found: none; give QEMU -device virtio-net-pci";
        format!("NO_NIC no network interface number {place} (counted from 0); {there}")
    };
    let no_carrier = |seconds| format!("NO_ADDRESS eth0 (52:54:00:00:00:01): no carrier after {seconds} s");
    for (statuses, millis, expected) in [
        ([Status::Up, Status::Up], 0, "ready ".to_owned()),
        ([Status::Up, Status::Working], 9_000, String::new()),
        ([missing(), Status::Working], 9_000, String::new()),
        (
            [Status::Up, failed()],
            0,
            "fatal LINK_DOWN eth0 (52:54:00:00:00:01): the interface was removed or lost its carrier".to_owned(),
        ),
        ([missing(), missing()], 999, String::new()),
        ([missing(), missing()], 1_000, format!("fatal {}", no_nic(0))),
        ([Status::Up, missing()], 999, String::new()),
        ([Status::Up, missing()], 1_000, format!("ready {}", no_nic(1))),
        ([unplugged(), missing()], 2_999, String::new()),
        ([unplugged(), missing()], 3_000, format!("fatal {}", no_carrier(3))),
        ([Status::Up, unplugged()], 999, String::new()),
        ([Status::Up, unplugged()], 1_000, format!("ready {}", no_carrier(1))),
    ] {
        let shown = format!("{statuses:?} after {millis} ms");
        assert_eq!(outcome(statuses, millis), expected, "{shown}");
    }
}

#[test]
fn only_reachable_addresses_are_announced() {
    for (address, local, announced) in [
        ("127.0.0.1", false, false),
        ("169.254.1.1", false, false),
        ("::1", false, false),
        ("fe80::1", false, false),
        ("fe80::1", true, true),
        ("10.0.2.15", false, true),
        ("fec0::5", false, true),
        ("2001:db8::1", false, true),
    ] {
        let one = AssignedAddress { index: 2, address: address.parse().unwrap(), state: AddressState::Usable };
        assert_eq!(is_announced(&one, if local { &[2] } else { &[3] }), announced, "{address}");
    }
}
