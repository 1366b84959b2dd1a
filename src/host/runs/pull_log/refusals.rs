//! Clients in a log of events that refused the registry's certificate. They may explain a missing pull.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::TimeOfDay;
use crate::proto::{TlsRefused, Warning};
use crate::text::printable;

/// The number of refusals in a log by client, alert and server name.
#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<(Option<IpAddr>, String, String), u32>);

impl Refusals {
    /// Adds the refusals in `warning`, if there are any.
    pub fn add(&mut self, warning: Warning) {
        let Some(refused) = warning.tls_refused else { return };
        let key = (address(&refused), refused.alert, refused.server_name);
        let count = self.0.entry(key).or_default();
        *count = count.saturating_add(refused.count);
    }

    /// Formats the refusals of the client `by` and of unknown clients as one line each; without `by` all refusals.
    #[must_use]
    pub fn by(&self, by: Option<IpAddr>) -> Vec<String> {
        let is_by = |peer: &Option<IpAddr>| by.is_none_or(|by| peer.is_none_or(|peer| peer == by.to_canonical()));
        let entries = self.0.iter().filter(|((peer, ..), _)| is_by(peer));
        let refused = entries.map(|((peer, alert, server_name), count)| TlsRefused {
            peer: peer.map(|peer| peer.to_string()).unwrap_or_default(),
            server_name: server_name.clone(),
            alert: alert.clone(),
            count: *count,
        });
        refused.map(|refused| printable(refused.to_string().as_bytes())).collect()
    }
}

/// The row of a refusal in the table of pulls.
pub(crate) struct RefusalRow<'a> {
    /// Seconds since 1970.
    pub time: f64,
    pub refused: &'a TlsRefused,
}

impl fmt::Display for RefusalRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = address(self.refused).map_or_else(|| "?".to_owned(), |by| by.to_string());
        write!(f, "{}  {by:<15}  {}", TimeOfDay(self.time), printable(self.refused.action().as_bytes()))
    }
}

/// The client's address.
pub(crate) fn address(refused: &TlsRefused) -> Option<IpAddr> {
    refused.peer.parse::<IpAddr>().ok().map(|peer| peer.to_canonical())
}
