//! Matches the interfaces in the config with those that the kernel found.

use crate::config::settings::{Interface, Mac, Selector};

use super::link::Link;

/// The found interface for the configured interface `own`. `previous` holds the MAC address that each configured interface had
/// before.
///
/// An interface selected by its position keeps the MAC address that it had. If that is gone, any interface that no other configured
/// interface has or selects replaces it.
#[must_use]
pub fn select_link<'a>(found: &'a [Link], interfaces: &[Interface], previous: &[Option<Mac>], own: usize) -> Option<&'a Link> {
    let mut physical = found.iter().filter(|link| !link.is_virtual);
    let place = match interfaces.get(own)?.selector {
        Selector::Mac(mac) => return physical.find(|link| link.mac == mac),
        Selector::Place(place) => place,
    };
    let own_mac = previous.get(own).copied().flatten();
    let is_taken = |link: &Link| {
        let others = interfaces.iter().zip(previous).enumerate().filter(|(other, _)| *other != own);
        others.into_iter().any(|(_, (other, mac))| {
            other.vlan.is_none() && (other.selector == Selector::Mac(link.mac) || *mac == Some(link.mac))
        })
    };
    match own_mac {
        Some(mac) => physical.clone().find(|link| link.mac == mac).or_else(|| physical.find(|link| !is_taken(link))),
        // Positions count all interfaces, including those that others select by MAC address.
        None => physical
            .nth(place)
            .filter(|link| !previous.iter().enumerate().any(|(other, mac)| other != own && *mac == Some(link.mac))),
    }
}

/// Describes which interface the config selects.
#[must_use]
pub fn describe_selector(select: Selector) -> String {
    match select {
        Selector::Mac(mac) => format!("with the MAC address {mac}"),
        Selector::Place(place) => format!("number {place} (counted from 0)"),
    }
}

/// Lists interfaces for an error message.
#[must_use]
pub fn list_links(found: &[Link]) -> String {
    if found.is_empty() {
        return "none".to_owned();
    }
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> Mac {
        Mac([0x52, 0x54, 0, 0, 0, last])
    }

    fn link(index: u32, last: u8) -> Link {
        Link { index, name: format!("eth{index}"), mac: mac(last), carrier: true, is_virtual: false }
    }

    fn at(select: Selector) -> Interface {
        Interface { selector: select, ..Interface::default() }
    }

    #[test]
    fn interface_is_selected_by_position_or_mac() {
        let found = [link(2, 1), link(3, 2), Link { is_virtual: true, ..link(4, 2) }];
        let one = |select| select_link(&found, &[at(select)], &[None], 0).map(|link| link.index);
        assert_eq!(one(Selector::Place(0)), Some(2));
        assert_eq!(one(Selector::Place(2)), None, "a VLAN has no position");
        assert_eq!(one(Selector::Mac(mac(2))), Some(3));
        assert_eq!(one(Selector::Mac(mac(9))), None);
    }

    #[test]
    fn returning_and_replaced_interfaces_get_their_own_config() {
        let interfaces = [at(Selector::Place(0)), at(Selector::Place(1)), at(Selector::Mac(mac(7)))];
        let previous = [Some(mac(1)), Some(mac(2)), None];
        let one = |found: &[Link], own| select_link(found, &interfaces, &previous, own).map(|link| link.mac);
        let left = [link(3, 2), link(5, 7)];
        assert_eq!(one(&left, 0), None, "both belong to other configured interfaces");
        assert_eq!(one(&left, 1), Some(mac(2)));
        let again = [link(3, 2), link(6, 1)];
        assert_eq!((one(&again, 0), one(&again, 1)), (Some(mac(1)), Some(mac(2))));
        let replaced = [link(3, 2), link(5, 7), link(6, 4)];
        assert_eq!((one(&replaced, 0), one(&replaced, 2)), (Some(mac(4)), Some(mac(7))));
    }

    #[test]
    fn interface_that_moved_up_is_not_selected_twice() {
        let interfaces = [at(Selector::Place(0)), at(Selector::Place(1))];
        let previous = [None, Some(mac(2))];
        assert_eq!(select_link(&[link(3, 2)], &interfaces, &previous, 0), None);
    }
}
