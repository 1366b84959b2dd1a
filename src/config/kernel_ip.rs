//! Translates the kernel option `ip=` (Documentation/admin-guide/nfs/nfsroot.rst) into config keys. The kernels that boot the guest
//! leave this option to init. Server addresses are checked and ignored.

use std::net::{AddrParseError, Ipv4Addr};

use serde_json::{Map, Value, json};

use crate::address::is_dns_name;

/// Name of the option.
pub const KEY: &str = "ip";
/// Its accepted values, in words.
pub const EXPECTED: &str = "dhcp, off, or CLIENT:SERVER:GATEWAY:MASK:HOSTNAME:DEVICE:AUTOCONF with IPv4 addresses, a device ethN, and \
                            AUTOCONF dhcp or off";

/// The config keys for the last `ip=` in `options`; empty if there is none.
///
/// # Errors
/// Returns the value if its syntax is invalid or it asks for BOOTP or RARP, which the guest lacks.
pub fn partial_config(options: &[(String, Option<String>)]) -> Result<Map<String, Value>, String> {
    match options.iter().rfind(|(name, _)| name == KEY) {
        None => Ok(Map::new()),
        Some((_, value)) => {
            let value = value.as_deref().unwrap_or_default();
            parse(value).ok_or_else(|| value.to_owned())
        }
    }
}

/// The field AUTOCONF.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Dhcp,
    Off,
    Either,
}

fn method(text: &str) -> Option<Method> {
    match text {
        "dhcp" => Some(Method::Dhcp),
        "off" | "none" => Some(Method::Off),
        "" | "on" | "any" => Some(Method::Either),
        _ => None,
    }
}

fn parse(value: &str) -> Option<Map<String, Value>> {
    let fields: Vec<_> = if method(value).is_some() { vec!["", "", "", "", "", "", value] } else { value.split(':').collect() };
    let field = |index: usize| fields.get(index).copied().unwrap_or_default();
    if value.is_empty() || fields.len() > 10 {
        return None;
    }
    // Server, name servers, time server.
    [1, 7, 8, 9].into_iter().try_for_each(|index| address(field(index)).map(drop)).ok()?;
    let (client, gateway, mask) = (address(field(0)).ok()?, address(field(2)).ok()?, address(field(3)).ok()?);
    let mut interface = Map::new();
    match (client, method(field(6))?) {
        (Some(client), Method::Off | Method::Either) => {
            let prefix = prefix(client, mask)?;
            interface.insert("addresses".to_owned(), json!([format!("{client}/{prefix}")]));
            interface.extend(gateway.map(|gateway| ("gateways".to_owned(), json!([gateway.to_string()]))));
        }
        (None, method) if gateway.is_none() && mask.is_none() => {
            let autoconf = if method == Method::Off { "LINK_LOCAL" } else { "DHCP" };
            interface.insert("autoconf".to_owned(), autoconf.into());
        }
        _ => return None,
    }
    if !field(5).is_empty() {
        let number = field(5).strip_prefix("eth").filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))?;
        interface.insert("place".to_owned(), number.parse::<u8>().ok()?.into());
    }
    let mut partial = Map::from_iter([("interfaces".to_owned(), json!([interface]))]);
    if !field(4).is_empty() {
        is_dns_name(field(4)).then_some(())?;
        partial.insert("hostname".to_owned(), field(4).into());
    }
    Some(partial)
}

/// Parses a field. An empty one is `Ok(None)`.
fn address(field: &str) -> Result<Option<Ipv4Addr>, AddrParseError> {
    if field.is_empty() { Ok(None) } else { field.parse().map(Some) }
}

/// Prefix length of `mask`. Without a mask it follows from the class of `client`, as in the kernel (`net/ipv4/ipconfig.c`).
fn prefix(client: Ipv4Addr, mask: Option<Ipv4Addr>) -> Option<u32> {
    match mask {
        Some(mask) => {
            let bits = mask.to_bits();
            (bits.leading_ones() == bits.count_ones() && bits != 0).then(|| bits.count_ones())
        }
        None => match client.octets()[0] {
            ..128 => Some(8),
            128..192 => Some(16),
            192..224 => Some(24),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Origin, PartialConfig};

    use super::*;

    fn keys_of(value: &str) -> String {
        Value::Object(parse(value).unwrap_or_else(|| panic!("{value}"))).to_string()
    }

    #[test]
    fn every_form_that_the_kernel_documents_is_read() {
        for (value, keys) in [
            ("dhcp", r#"{"interfaces":[{"autoconf":"DHCP"}]}"#),
            ("on", r#"{"interfaces":[{"autoconf":"DHCP"}]}"#),
            ("off", r#"{"interfaces":[{"autoconf":"LINK_LOCAL"}]}"#),
            ("none", r#"{"interfaces":[{"autoconf":"LINK_LOCAL"}]}"#),
            ("::::reg:eth1:dhcp", r#"{"hostname":"reg","interfaces":[{"autoconf":"DHCP","place":1}]}"#),
            (
                "10.1.0.82::10.1.0.1:255.255.0.0::eth0:off",
                r#"{"interfaces":[{"addresses":["10.1.0.82/16"],"gateways":["10.1.0.1"],"place":0}]}"#,
            ),
            ("192.168.7.9", r#"{"interfaces":[{"addresses":["192.168.7.9/24"]}]}"#),
            ("172.16.0.9:10.0.0.1:::::none:10.0.0.2:10.0.0.3:10.0.0.4", r#"{"interfaces":[{"addresses":["172.16.0.9/16"]}]}"#),
        ] {
            assert_eq!(keys_of(value), keys, "{value}");
        }
    }

    #[test]
    fn unsupported_ip_values_are_rejected_with_key_and_source() {
        for value in [
            "",
            "bootp",
            "10.0.0.1:::::eth0:dhcp",
            "10.0.0.300:::255.0.0.0",
            "10.0.0.1:x",
            "10.0.0.1:::255.0.255.0",
            "10.0.0.1:::0.0.0.0",
            "224.0.0.1:",
            "::10.0.0.1::::dhcp",
            ":::::lan0:dhcp",
            ":::::eth999:dhcp",
            "::::a_b::dhcp",
            ":::::::::::",
            "fd00::1",
        ] {
            let error = PartialConfig::from_command_line(&format!("quiet ip={value} panic=-1")).unwrap_err();
            assert_eq!(error.to_string(), format!("kernel command line: ip is {value:?}; expected {EXPECTED}"));
        }
        assert!(PartialConfig::from_command_line("ip").is_err());
    }

    #[test]
    fn localregistry_options_override_the_ip_option() {
        let line = "ip=bootp ip=10.1.0.82:::255.0.0.0:reg localregistry.interfaces.0.mtu=1400 localregistry.hostname=other";
        let settings = PartialConfig::from_command_line(line).unwrap().settings(Origin::CommandLine).unwrap();
        assert_eq!(settings.hostname, "other");
        let interface = &settings.interfaces[0];
        assert_eq!(
            (interface.mtu, interface.addresses[0].to_string().as_str(), interface.dhcp),
            (Some(1400), "10.1.0.82/8", false)
        );
    }
}
