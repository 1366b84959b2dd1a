//! Which interface is meant. What enters are the interfaces there are, and who has which; what leaves is one of them, or none.

use crate::config::settings::{Interface, Mac, Selector};

use super::link::Link;

/// The interface for number `own` of `interfaces`, among those `found`, where each has had the one in `had` before.
///
/// One that is meant by its place is the one that it has had, where that is there. Where it is not, it may have been replaced by one
/// that nobody else has or wants.
#[must_use]
pub fn pick<'a>(found: &'a [Link], interfaces: &[Interface], had: &[Option<Mac>], own: usize) -> Option<&'a Link> {
    let mut plain = found.iter().filter(|link| !link.made);
    let place = match interfaces.get(own)?.selector {
        Selector::Mac(mac) => return plain.find(|link| link.mac == mac),
        Selector::Place(place) => place,
    };
    let mine = had.get(own).copied().flatten();
    let of_another = |link: &Link| {
        let others = interfaces.iter().zip(had).enumerate().filter(|(other, _)| *other != own);
        others.into_iter().any(|(_, (other, had))| {
            other.vlan.is_none() && (other.selector == Selector::Mac(link.mac) || *had == Some(link.mac))
        })
    };
    match mine {
        Some(mac) => plain.clone().find(|link| link.mac == mac).or_else(|| plain.find(|link| !of_another(link))),
        // The list numbers them all, whoever else is named by its address.
        None => {
            plain.nth(place).filter(|link| !had.iter().enumerate().any(|(other, had)| other != own && *had == Some(link.mac)))
        }
    }
}

/// The one meant, in words.
#[must_use]
pub fn which(select: Selector) -> String {
    match select {
        Selector::Mac(mac) => format!("with the MAC address {mac}"),
        Selector::Place(place) => format!("number {place} (they count from 0)"),
    }
}

/// The interfaces there are, in words.
#[must_use]
pub fn seen(found: &[Link]) -> String {
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
        Link { index, name: format!("eth{index}"), mac: mac(last), carrier: true, made: false }
    }

    fn at(select: Selector) -> Interface {
        Interface { selector: select, ..Interface::default() }
    }

    #[test]
    fn an_interface_is_picked_by_place_or_mac() {
        let found = [link(2, 1), link(3, 2), Link { made: true, ..link(4, 2) }];
        let one = |select| pick(&found, &[at(select)], &[None], 0).map(|link| link.index);
        assert_eq!(one(Selector::Place(0)), Some(2));
        assert_eq!(one(Selector::Place(2)), None, "a VLAN is no interface of its own");
        assert_eq!(one(Selector::Mac(mac(2))), Some(3));
        assert_eq!(one(Selector::Mac(mac(9))), None);
    }

    #[test]
    fn one_that_comes_again_is_the_same_and_one_that_replaces_it_is_nobody_else_s() {
        let interfaces = [at(Selector::Place(0)), at(Selector::Place(1)), at(Selector::Mac(mac(7)))];
        let had = [Some(mac(1)), Some(mac(2)), None];
        let one = |found: &[Link], own| pick(found, &interfaces, &had, own).map(|link| link.mac);
        let left = [link(3, 2), link(5, 7)];
        assert_eq!(one(&left, 0), None, "what is left has its own");
        assert_eq!(one(&left, 1), Some(mac(2)));
        let again = [link(3, 2), link(6, 1)];
        assert_eq!((one(&again, 0), one(&again, 1)), (Some(mac(1)), Some(mac(2))));
        let replaced = [link(3, 2), link(5, 7), link(6, 4)];
        assert_eq!((one(&replaced, 0), one(&replaced, 2)), (Some(mac(4)), Some(mac(7))));
    }

    #[test]
    fn a_place_that_has_moved_up_is_not_taken_twice() {
        let interfaces = [at(Selector::Place(0)), at(Selector::Place(1))];
        let had = [None, Some(mac(2))];
        assert_eq!(pick(&[link(3, 2)], &interfaces, &had, 0), None);
    }
}
