use crate::guest::net::link::*;

const LINK: fn() -> Link =
    || Link { index: 2, name: "eth0".to_owned(), mac: Mac([2, 0, 0, 0, 0, 1]), carrier: true, is_virtual: false };

fn only(bytes: &[u8]) -> Message<'_> {
    let mut messages = netlink::messages(bytes);
    let one = messages.next().unwrap();
    assert_eq!(messages.next(), None);
    one
}

fn link_message(kind: u16, hardware: u16, flags: u32) -> NetlinkRequest {
    let body = [&[0, 0][..], &hardware.to_ne_bytes(), &7_u32.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 4]].concat();
    NetlinkRequest::new(kind, 0, &body).with(number::LINK_NAME, b"eth5\0").with(number::LINK_ADDRESS, &[2, 0, 0, 0, 0, 1])
}

#[test]
fn ethernet_interfaces_are_read() {
    let expected = Link { index: 7, name: "eth5".to_owned(), ..LINK() };
    let bytes = link_message(kind::NEW_LINK, number::ETHERNET, number::UP | number::LOWER_UP).finish(1);
    assert_eq!(ethernet(&only(&bytes)), Some(expected.clone()));
    let bytes = link_message(kind::NEW_LINK, number::ETHERNET, number::UP).finish(1);
    assert_eq!(ethernet(&only(&bytes)), Some(Link { carrier: false, ..expected.clone() }));
    let vlan = link_message(kind::NEW_LINK, number::ETHERNET, number::LOWER_UP);
    let vlan = vlan.with(number::LINK_INFO, &attribute(number::INFO_KIND, b"vlan\0")).finish(1);
    assert_eq!(ethernet(&only(&vlan)), Some(Link { is_virtual: true, ..expected }));
    for other in [link_message(kind::NEW_LINK, 772, 0), link_message(17, number::ETHERNET, 0)] {
        assert_eq!(ethernet(&only(&other.finish(1))), None);
    }
    let bare = NetlinkRequest::new(kind::NEW_LINK, 0, &[0, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).finish(1);
    assert_eq!(ethernet(&only(&bare)), None, "without a name or an address");
}

#[test]
fn addresses_are_read_with_their_state() {
    for (text, flags, state) in [
        ("10.1.0.82/16", None, AddressState::Usable),
        ("fd00::82/64", Some(0x80), AddressState::Usable),
        ("fd00::82/64", Some(number::TENTATIVE), AddressState::Tentative),
        ("fd00::82/64", Some(number::TENTATIVE | number::DAD_FAILED), AddressState::Duplicate),
    ] {
        let own: Cidr = text.parse().unwrap();
        let request = address(kind::NEW_ADDRESS, 0, 7, own);
        let request = flags.into_iter().fold(request, |request, flags| request.with(number::ADDRESS_FLAGS, &flags.to_ne_bytes()));
        let expected = AssignedAddress { index: 7, address: own.address, state };
        assert_eq!(assigned(&only(&request.finish(1))), Some(expected), "{text} {flags:?}");
    }
    let odd = NetlinkRequest::new(kind::NEW_ADDRESS, 0, &[0; 8]).with(number::ADDRESS, &[1, 2, 3]).finish(1);
    assert_eq!(assigned(&only(&odd)), None);
}

#[test]
fn requests_have_the_layout_that_the_kernel_reads() {
    let bytes = address(kind::NEW_ADDRESS, flag::CREATE, 7, "10.1.0.82/16".parse().unwrap()).finish(1);
    let message = only(&bytes);
    assert_eq!(message.body[..8], [2, 16, 0, 0, 7, 0, 0, 0]);
    assert_eq!(find(&message.body[8..], number::ADDRESS_BROADCAST), Some(&[10, 1, 255, 255][..]));
    let bytes = address(kind::NEW_ADDRESS, 0, 7, "10.1.0.82/31".parse().unwrap()).finish(1);
    assert_eq!(find(&only(&bytes).body[8..], number::ADDRESS_BROADCAST), None);
    let bytes = default_route(7, "fd00::1".parse().unwrap(), 100, false).finish(1);
    let body = only(&bytes).body;
    assert_eq!(body[..12], [10, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0]);
    assert_eq!(find(&body[12..], number::ROUTE_PRIORITY), Some(&100_u32.to_ne_bytes()[..]));
    let bytes = vlan(&LINK(), 7).finish(1);
    let attributes = &only(&bytes).body[16..];
    assert_eq!(find(attributes, number::LINK_NAME), Some(&b"eth0.7\0"[..]));
    assert_eq!(find(attributes, number::LINK_PARENT), Some(&2_u32.to_ne_bytes()[..]));
}

#[test]
fn kernel_answers_requests_and_error_names_the_operation() {
    let links = Links::open().unwrap();
    let addresses = links.addresses().unwrap();
    assert!(addresses.iter().any(|one| one.index == LOOPBACK && one.address.is_loopback()), "{addresses:?}");
    links.ethernet().unwrap();
    let gone = Link { index: 0x7fff_fff0, ..LINK() };
    let error = links.up(&gone, Some(1400)).unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        ("BAD_NETWORK", "cannot bring eth0 (02:00:00:00:00:01) up with MTU 1400")
    );
    // Only root may remove an address.
    let removed = links.remove_address(&gone, "10.0.0.1/8".parse().unwrap());
    assert_eq!(removed.is_ok(), nix::unistd::geteuid().is_root(), "an interface that is gone has no address");
}

proptest::proptest! {
    #[test]
    fn no_message_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), kind in 16_u16..24) {
        let message = Message { kind, sequence: 0, body: &bytes };
        let _ = (ethernet(&message), assigned(&message), outcome(&bytes));
    }
}
