//! Which keys and values each source accepts, the words of each rejection, and which source wins.

use std::num::NonZeroU16;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use crate::registry::auth::client_certificate::Presence;
use crate::registry::limits::Limits;

use super::disks::DiskBy;
use super::settings::{AuthMode, Interface, Ipv6Wait, ListenAddress, Selector, TlsMode};
use crate::config::*;

fn fw_cfg(text: &str) -> PartialConfig {
    PartialConfig::from_json(Origin::FwCfg, text.as_bytes()).unwrap()
}

fn refusal(text: &str) -> String {
    PartialConfig::from_json(Origin::FwCfg, text.as_bytes()).unwrap_err().to_string()
}

fn line(text: &str) -> PartialConfig {
    PartialConfig::from_command_line(text).unwrap()
}

/// The serial of the first disk.
fn serial(settings: &Settings) -> String {
    match &settings.disks[0].by {
        DiskBy::Serial(serial) => serial.to_string(),
        other => panic!("{other:?}"),
    }
}

fn settings(partial: &PartialConfig) -> Settings {
    partial.settings(Origin::Together).unwrap()
}

#[test]
fn empty_config_gives_the_defaults() {
    let defaults = settings(&PartialConfig::default());
    assert_eq!(defaults.hostname, "localregistry");
    assert_eq!(defaults.names, Vec::<String>::new());
    assert_eq!(defaults.port.get(), 5000);
    assert_eq!(defaults.tls, TlsMode::Generate);
    let interface = Interface {
        selector: Selector::Place(0),
        vlan: None,
        addresses: vec![],
        gateways: vec![],
        dhcp: true,
        ipv6_wait: Ipv6Wait::Nothing,
        mtu: None,
        timeout: Duration::from_secs(30),
    };
    assert_eq!(defaults.interfaces, [interface]);
    assert_eq!(
        (serial(&defaults), defaults.disk_wait, defaults.verify),
        ("localregistry".to_owned(), Duration::from_secs(5), false)
    );
    assert_eq!((defaults.clock, defaults.trace), (None, false));
    assert_eq!(defaults.heartbeat, Some(Duration::from_secs(10)));
    assert_eq!(settings(&fw_cfg(r#"{"heartbeatSeconds": 0}"#)).heartbeat, None);
    assert_eq!((defaults.auth, defaults.client_certificate, defaults.metrics_port), (AuthMode::Anonymous, None, None));
    assert_eq!(defaults.listeners, []);
    assert_eq!(defaults, settings(&fw_cfg("{}")));
    assert_eq!(defaults, settings(&line("console=ttyS0 quiet localregistry=1")));
}

#[test]
fn every_key_can_be_set_as_json_or_on_the_command_line() {
    let text = r#"{
            "hostname": "reg", "names": ["reg.test", "10.0.0.9", "fd00::1"], "port": 443, "tls": {"mode": "OFF"},
            "interfaces": [
                {"mac": "52:54:00:AB:cd:ef", "addresses": ["10.1.0.82/16", "fd00::82/64"], "gateway": "10.1.0.1", "mtu": 9000,
                    "gateways": ["fd00::1"], "vlan": 7},
                {"timeoutSeconds": 7, "place": 4, "autoconf": "DHCP_SLAAC"}
            ],
            "disk": {"serial": "images", "waitSeconds": 2}, "clock": {"epochSeconds": 1800000000.5}, "trace": true, "verify": true, "heartbeatSeconds": 3,
            "auth": {"mode": "ANONYMOUS_TOKEN", "tokenSeconds": 60, "clientCertificate": "OPTIONAL"}, "metricsPort": 9090,
            "limits": {"firstByteSeconds": 1, "handshakeSeconds": 2, "requestHeadSeconds": 3, "stallSeconds": 4, "pingSeconds": 5,
                "idleSeconds": 6, "minimumRate": 7, "connections": 8, "streams": 9},
            "listeners": [{"address": "fd00::82", "port": 80, "transport": "PLAIN"}, {"port": 8080}],
            "faults": {"seed": 7, "rules": [{"id": "a", "match": {"range": true}, "do": {"status": 416}}]}
        }"#;
    let json = fw_cfg(text);
    let words = line(
        "localregistry.hostname=reg localregistry.names=reg.test,10.0.0.9,fd00::1 localregistry.port=443 localregistry.tls.mode=OFF \
         localregistry.interfaces.0.mac=52:54:00:AB:cd:ef localregistry.interfaces.0.addresses=10.1.0.82/16,fd00::82/64 \
         localregistry.interfaces.0.gateway=10.1.0.1 localregistry.interfaces.0.mtu=9000 \
         localregistry.interfaces.0.gateways=fd00::1 localregistry.interfaces.0.vlan=7 \
         localregistry.interfaces.1.place=4 localregistry.interfaces.1.autoconf=DHCP_SLAAC \
         localregistry.interfaces.1.timeout_seconds=7 localregistry.disk.serial=images localregistry.disk.waitSeconds=2 \
         \"localregistry.clock.epochSeconds=1800000000.5\" localregistry.trace=1 localregistry.verify=1 localregistry.heartbeatSeconds=3 \
         localregistry.auth.mode=ANONYMOUS_TOKEN localregistry.auth.token_seconds=60 \
         localregistry.auth.clientCertificate=OPTIONAL localregistry.metricsPort=9090 \
         localregistry.limits.firstByteSeconds=1 localregistry.limits.handshake_seconds=2 localregistry.limits.requestHeadSeconds=3 \
         localregistry.limits.stallSeconds=4 localregistry.limits.pingSeconds=5 localregistry.limits.idleSeconds=6 \
         localregistry.limits.minimumRate=7 localregistry.limits.connections=8 localregistry.limits.streams=9 \
         localregistry.listeners.0.address=fd00::82 localregistry.listeners.0.port=80 localregistry.listeners.0.transport=PLAIN \
         localregistry.listeners.1.port=8080 \
         localregistry.faults={\"seed\":7,\"rules\":[{\"id\":\"a\",\"match\":{\"range\":true},\"do\":{\"status\":416}}]}",
    );
    assert_eq!(settings(&json), settings(&words));

    // A key added to the proto has to be added here. `disks`, which excludes `disk.serial`, has tests of its own.
    let mut tested = Vec::new();
    leaves(&serde_json::from_str(text).unwrap(), String::new(), &mut tested);
    let values = keys::KEYS.iter().filter(|key| key.has_value() && !key.path.starts_with("disks."));
    let untested: Vec<_> = values.map(|key| key.path).filter(|path| !tested.iter().any(|tested| tested == path)).collect();
    assert_eq!(untested, Vec::<&str>::new());

    let all = settings(&json);
    assert_eq!(all.names, ["reg.test", "10.0.0.9", "fd00::1"]);
    assert_eq!((all.port.get(), all.tls, all.trace), (443, TlsMode::Off, true));
    assert_eq!((serial(&all), all.disk_wait, all.verify), ("images".to_owned(), Duration::from_secs(2), true));
    assert_eq!(all.heartbeat, Some(Duration::from_secs(3)));
    assert_eq!(all.clock, Some(UNIX_EPOCH + Duration::from_millis(1_800_000_000_500)));
    assert_eq!(all.auth, AuthMode::Token { anonymous: true, lifetime: Duration::from_secs(60) });
    assert_eq!((all.client_certificate, all.metrics_port), (Some(Presence::Optional), NonZeroU16::new(9090)));
    let listener = |address: Option<&str>, port| ListenAddress {
        address: address.map(|address| address.parse().unwrap()),
        port: NonZeroU16::new(port).unwrap(),
        plain: true,
    };
    assert_eq!(all.listeners, [listener(Some("fd00::82"), 80), listener(None, 8080)]);
    let seconds = Duration::from_secs;
    let limits = Limits {
        first_byte: seconds(1),
        handshake: seconds(2),
        request_head: seconds(3),
        stall: seconds(4),
        ping: seconds(5),
        idle: seconds(6),
        minimum_rate: 7,
        connections: 8,
        streams: 9,
        ..Limits::default()
    };
    assert_eq!((all.limits, settings(&PartialConfig::default()).limits), (limits, Limits::default()));
    let first = Interface {
        selector: Selector::Mac("52:54:00:ab:cd:ef".parse().unwrap()),
        vlan: Some(7),
        addresses: vec!["10.1.0.82/16".parse().unwrap(), "fd00::82/64".parse().unwrap()],
        gateways: vec!["10.1.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        dhcp: false,
        mtu: Some(9000),
        ..Interface::default()
    };
    let second = Interface {
        selector: Selector::Place(4),
        timeout: Duration::from_secs(7),
        ipv6_wait: Ipv6Wait::Advertised,
        ..Interface::default()
    };
    assert_eq!(all.interfaces, [first, second]);
}

#[test]
fn later_sources_win_key_by_key_and_lists_replace_lists() {
    let disk =
        r#"{"hostname": "disk", "names": ["a", "b"], "port": 1, "tls": {"mode": "OFF"}, "interfaces": [{"mtu": 1500}, {}]}"#;
    let disk = PartialConfig::from_json(Origin::Disk, disk.as_bytes()).unwrap().without_disk().unwrap();
    let outside = fw_cfg(r#"{"names": ["c"], "port": 2, "disk": {"wait_seconds": 9}, "trace": true}"#).overridden_by(line(
        "localregistry.port=3 localregistry.disk.serial=x localregistry.interfaces.0.mtu=1400 localregistry.trace=0",
    ));
    let all = settings(&disk.overridden_by(outside));
    assert_eq!((all.hostname.as_str(), all.names.as_slice(), all.port.get()), ("disk", &["c".to_owned()][..], 3));
    assert_eq!((all.tls, serial(&all), all.disk_wait, all.trace), (TlsMode::Off, "x".to_owned(), Duration::from_secs(9), false));
    assert_eq!(all.interfaces.iter().map(|interface| interface.mtu).collect::<Vec<_>>(), [Some(1400)]);
}

#[test]
fn two_services_on_one_port_are_rejected_in_the_merged_config() {
    let metrics = fw_cfg(r#"{"metricsPort": 5000}"#);
    let refused = settings(&metrics).check_together().unwrap_err().to_string();
    let words = "config from all sources: metricsPort is 5000; expected a TCP port from 1 to 65535 other than the registry's";
    assert_eq!(refused, words);
    settings(&metrics.overridden_by(line("localregistry.port=443"))).check_together().unwrap();
}

#[test]
fn unknown_key_is_rejected_with_its_source() {
    let known = format!("expected one of {}", keys::list());
    let first = "expected one of hostname, names, port, tls.mode, interfaces.N.mac, interfaces.N.addresses, ";
    assert!(known.starts_with(first) && known.contains(", limits.stallSeconds, "), "{known}");
    for (text, key) in [
        (r#"{"hostnam": "x"}"#, "hostnam"),
        (r#"{"tls": {"modes": "OFF"}}"#, "tls.modes"),
        (r#"{"interfaces": [{}, {"ip": "x"}]}"#, "interfaces.1.ip"),
        (r#"{"": 1}"#, ""),
    ] {
        assert_eq!(refusal(text), format!("fw_cfg opt/localregistry/config: unknown key {key}; {known}"));
    }
    for (text, key) in [
        ("localregistry.hostnam=x", "hostnam"),
        ("localregistry.tls=OFF", "tls"),
        ("localregistry.interfaces=x", "interfaces"),
        ("localregistry.interfaces.eth0.mtu=1400", "interfaces.eth0.mtu"),
        ("localregistry.", ""),
    ] {
        let error = PartialConfig::from_command_line(text).unwrap_err();
        assert_eq!(error.to_string(), format!("kernel command line: unknown key {key}; {known}"));
    }
}

#[test]
fn bad_value_is_rejected_with_key_source_and_accepted_values() {
    for (text, message) in [
        (r#"{"hostname": 5}"#, "hostname is 5; expected a DNS name of at most 64 characters"),
        (r#"{"hostname": "a_b"}"#, "hostname is \"a_b\"; expected a DNS name of at most 64 characters"),
        (r#"{"hostname": null}"#, "hostname is not given; expected a DNS name of at most 64 characters"),
        (r#"{"names": "x"}"#, "names is \"x\"; expected a list of DNS names, wildcards such as *.example.test, and IP addresses"),
        (
            r#"{"names": ["ok", "-x"]}"#,
            "names is \"-x\"; expected a list of DNS names, wildcards such as *.example.test, and IP addresses",
        ),
        (
            r#"{"names": ["*.example.test", "f*o.example.test"]}"#,
            "names is \"f*o.example.test\"; expected a list of DNS names, wildcards such as *.example.test, and IP addresses",
        ),
        (
            r#"{"names": ["10.0.0.256"]}"#,
            "names is \"10.0.0.256\"; expected a list of DNS names, wildcards such as *.example.test, and IP addresses",
        ),
        (r#"{"port": 65536}"#, "port is 65536; expected a TCP port from 1 to 65535"),
        (r#"{"port": -1}"#, "port is -1; expected a TCP port from 1 to 65535"),
        (r#"{"port": 5.5}"#, "port is 5.5; expected a TCP port from 1 to 65535"),
        (r#"{"port": 4294967296}"#, "port is 4294967296; expected a TCP port from 1 to 65535"),
        (r#"{"port": true}"#, "port is true; expected a TCP port from 1 to 65535"),
        (r#"{"port": "http"}"#, "port is \"http\"; expected a TCP port from 1 to 65535"),
        (r#"{"tls": "OFF"}"#, "tls is \"OFF\"; expected an object such as {\"mode\": \"OFF\"}"),
        (r#"{"tls": {"mode": "off"}}"#, "tls.mode is \"off\"; expected GENERATE, PROVIDED, OFF or SIGN"),
        (r#"{"tls": {"mode": 3}}"#, "tls.mode is 3; expected GENERATE, PROVIDED, OFF or SIGN"),
        (r#"{"auth": "BASIC"}"#, "auth is \"BASIC\"; expected an object such as {\"mode\": \"BASIC\"}"),
        (r#"{"auth": {"mode": "basic"}}"#, "auth.mode is \"basic\"; expected ANONYMOUS, BASIC, TOKEN or ANONYMOUS_TOKEN"),
        (r#"{"auth": {"tokenSeconds": 86401}}"#, "auth.tokenSeconds is 86401; expected seconds, at most 86400"),
        (r#"{"auth": {"clientCertificate": true}}"#, "auth.clientCertificate is true; expected IGNORED, OPTIONAL or REQUIRED"),
        (r#"{"listeners": {}}"#, "listeners is {}; expected a list of listeners, numbered from 0 without a gap"),
        (r#"{"listeners": [80]}"#, "listeners.0 is 80; expected an object such as {\"port\": 80, \"transport\": \"PLAIN\"}"),
        (r#"{"listeners": [{}]}"#, "listeners.0.port is 0; expected a TCP port from 1 to 65535"),
        (r#"{"listeners": [{"port": 80}, {"port": 65536}]}"#, "listeners.1.port is 65536; expected a TCP port from 1 to 65535"),
        (
            r#"{"listeners": [{"port": 80, "address": "eth0"}]}"#,
            "listeners.0.address is \"eth0\"; expected an IP address of the appliance",
        ),
        (
            r#"{"listeners": [{"port": 80, "transport": "HTTP"}]}"#,
            "listeners.0.transport is \"HTTP\"; expected PLAIN, or TLS if tls.mode is not OFF",
        ),
        (
            r#"{"listeners": [{"port": 443, "transport": "TLS"}], "tls": {"mode": "OFF"}}"#,
            "listeners.0.transport is \"TLS\"; expected PLAIN, or TLS if tls.mode is not OFF",
        ),
        (r#"{"metricsPort": 70000}"#, "metricsPort is 70000; expected a TCP port from 1 to 65535 other than the registry's"),
        (r#"{"heartbeatSeconds": 3601}"#, "heartbeatSeconds is 3601; expected seconds, at most 3600; 0 for no heartbeat"),
        (r#"{"limits": 5}"#, "limits is 5; expected an object such as {\"stallSeconds\": 60}"),
        (r#"{"limits": {"stallSeconds": 0}}"#, "limits.stallSeconds is 0; expected seconds from 1 to 3600"),
        (r#"{"limits": {"idleSeconds": 3601}}"#, "limits.idleSeconds is 3601; expected seconds from 1 to 3600"),
        (r#"{"limits": {"pingSeconds": "soon"}}"#, "limits.pingSeconds is \"soon\"; expected seconds from 1 to 3600"),
        (r#"{"limits": {"minimumRate": 0}}"#, "limits.minimumRate is 0; expected bytes a second from 1 to 1073741824"),
        (
            r#"{"limits": {"connections": 16385}}"#,
            "limits.connections is 16385; expected a number of connections from 1 to 16384",
        ),
        (r#"{"limits": {"streams": 257}}"#, "limits.streams is 257; expected a number of streams from 1 to 256"),
        (r#"{"interfaces": {}}"#, "interfaces is {}; expected a list of interfaces, numbered from 0 without a gap"),
        (r#"{"interfaces": [1]}"#, "interfaces.0 is 1; expected an object such as {\"addresses\": [\"10.1.0.82/16\"]}"),
        (
            r#"{"interfaces": [{"mac": "52:54:00:12:34"}]}"#,
            "interfaces.0.mac is \"52:54:00:12:34\"; expected a MAC address such as 52:54:00:12:34:56",
        ),
        (
            r#"{"interfaces": [{}, {"addresses": ["10.0.0.1"]}]}"#,
            "interfaces.1.addresses is \"10.0.0.1\"; expected a list of addresses with their prefix, such as 10.1.0.82/16",
        ),
        (
            r#"{"interfaces": [{"addresses": ["10.0.0.1/33"]}]}"#,
            "interfaces.0.addresses is \"10.0.0.1/33\"; expected a list of addresses with their prefix, such as 10.1.0.82/16",
        ),
        (
            r#"{"interfaces": [{"addresses": ["10.0.0.1/+8"]}]}"#,
            "interfaces.0.addresses is \"10.0.0.1/+8\"; expected a list of addresses with their prefix, such as 10.1.0.82/16",
        ),
        (
            r#"{"interfaces": [{"gateway": "10.0.0.1"}]}"#,
            "interfaces.0.gateway is \"10.0.0.1\"; expected the IP address of a gateway, and an address of the same family in `addresses`",
        ),
        (
            r#"{"interfaces": [{"addresses": ["10.0.0.2/8"], "gateway": "fd00::1"}]}"#,
            "interfaces.0.gateway is \"fd00::1\"; expected the IP address of a gateway, and an address of the same family in `addresses`",
        ),
        (
            r#"{"interfaces": [{"addresses": ["10.0.0.2/8"], "gateway": "10.0.0.1", "gateways": ["10.0.0.3"]}]}"#,
            "interfaces.0.gateways is \"10.0.0.3\"; expected IP addresses of gateways, one for each family that has addresses",
        ),
        (r#"{"interfaces": [{"vlan": 4095}]}"#, "interfaces.0.vlan is 4095; expected the number of a VLAN from 1 to 4094"),
        (
            r#"{"interfaces": [{"autoconf": "AUTO"}]}"#,
            "interfaces.0.autoconf is \"AUTO\"; expected DHCP, SLAAC, DHCP_SLAAC or LINK_LOCAL",
        ),
        (
            r#"{"interfaces": [{"place": 256}]}"#,
            "interfaces.0.place is 256; expected a position among the interfaces, from 0 to 255",
        ),
        (r#"{"interfaces": [{"mtu": 100}]}"#, "interfaces.0.mtu is 100; expected a packet size in bytes from 1280 to 65535"),
        (r#"{"interfaces": [{"timeoutSeconds": 3601}]}"#, "interfaces.0.timeoutSeconds is 3601; expected seconds, at most 3600"),
        (
            r#"{"disk": {"serial": "a serial"}}"#,
            "disk.serial is \"a serial\"; expected the serial of a virtio disk: 1 to 20 printable ASCII characters",
        ),
        (
            r#"{"disk": {"serial": "123456789012345678901"}}"#,
            "disk.serial is \"123456789012345678901\"; expected the serial of a virtio disk: 1 to 20 printable ASCII characters",
        ),
        (r#"{"disk": {"wait_seconds": 3601}}"#, "disk.waitSeconds is 3601; expected seconds, at most 3600"),
        (
            r#"{"clock": {"epochSeconds": -1}}"#,
            "clock.epochSeconds is -1.0; expected seconds since 1970, at most 253402300799 (the year 9999)",
        ),
        (
            r#"{"clock": {"epochSeconds": "NaN"}}"#,
            "clock.epochSeconds is \"NaN\"; expected seconds since 1970, at most 253402300799 (the year 9999)",
        ),
        (r#"{"trace": "yes"}"#, "trace is \"yes\"; expected true or false"),
    ] {
        assert_eq!(refusal(text), format!("fw_cfg opt/localregistry/config: {message}"), "{text}");
    }
}

#[test]
fn bad_command_line_value_is_rejected_as_in_json() {
    for (text, message) in [
        ("localregistry.port=65536", "port is 65536; expected a TCP port from 1 to 65535"),
        ("localregistry.port=", "port is \"\"; expected a TCP port from 1 to 65535"),
        ("localregistry.port", "port is not given; expected a TCP port from 1 to 65535"),
        ("localregistry.trace", "trace is not given; expected true or false"),
        ("localregistry.trace=yes", "trace is \"yes\"; expected true or false"),
        (
            "localregistry.names=a,,b",
            "names is \"\"; expected a list of DNS names, wildcards such as *.example.test, and IP addresses",
        ),
        ("localregistry.tls.mode=off", "tls.mode is \"off\"; expected GENERATE, PROVIDED, OFF or SIGN"),
        (
            "localregistry.interfaces.1.mtu=1400",
            "interfaces.1.mtu is \"1400\"; expected a list of interfaces, numbered from 0 without a gap",
        ),
        (
            "\"localregistry.disk.serial=a b\"",
            "disk.serial is \"a b\"; expected the serial of a virtio disk: 1 to 20 printable ASCII characters",
        ),
    ] {
        let error = PartialConfig::from_command_line(text).unwrap_err();
        assert_eq!(error.to_string(), format!("kernel command line: {message}"), "{text}");
    }
}

#[test]
fn text_other_than_a_json_object_is_rejected() {
    for (text, message) in [
        ("", "EOF while parsing a value at line 1 column 0; expected one JSON object"),
        ("{\"port\": }", "expected value at line 1 column 10; expected one JSON object"),
        ("[]", "it is []; expected one JSON object"),
        ("{} {}", "trailing characters at line 1 column 4; expected one JSON object"),
        ("{\"port\": 1,\n \"port\": 2}", "duplicate field `port` at line 2 column 7; expected one JSON object"),
        (
            "{\"disk\": {\"waitSeconds\": 1, \"wait_seconds\": 2}}",
            "duplicate field `waitSeconds` at line 1 column 42; expected one JSON object",
        ),
    ] {
        assert_eq!(refusal(text), format!("fw_cfg opt/localregistry/config: {message}"), "{text}");
    }
    let large = vec![b' '; usize::try_from(MAX_BYTES).unwrap() + 1];
    assert_eq!(
        PartialConfig::from_json(Origin::Disk, &large).unwrap_err().to_string(),
        "localregistry/config.json on the disk is longer than 1048576 bytes"
    );
}

#[test]
fn config_on_a_disk_cannot_select_disks() {
    let partial = PartialConfig::from_json(Origin::Disk, br#"{"disk": {"wait_seconds": 1}}"#).unwrap();
    assert_eq!(
        partial.without_disk().unwrap_err().to_string(),
        "localregistry/config.json on the disk: disk.waitSeconds selects the disk that this file is on; \
         set it in fw_cfg or on the kernel command line"
    );
    let partial = PartialConfig::from_json(Origin::Disk, br#"{"disks": [{"label": "x"}]}"#).unwrap();
    assert!(partial.without_disk().unwrap_err().to_string().starts_with("localregistry/config.json on the disk: disks selects"));
}

#[test]
fn long_value_is_truncated_in_the_error() {
    let message = refusal(&format!(r#"{{"trace": "{}"}}"#, "x".repeat(200)));
    assert_eq!(message, format!("fw_cfg opt/localregistry/config: trace is \"{}…; expected true or false", "x".repeat(79)));
}

#[test]
fn config_file_on_a_disk_is_read_if_it_exists() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(from_disk(root.path()).unwrap(), PartialConfig::default());
    std::fs::create_dir(root.path().join("localregistry")).unwrap();
    std::fs::write(root.path().join("localregistry/config.json"), r#"{"port": 80}"#).unwrap();
    assert_eq!(settings(&from_disk(root.path()).unwrap()).port.get(), 80);
    std::fs::remove_file(root.path().join("localregistry/config.json")).unwrap();
    std::fs::create_dir(root.path().join("localregistry/config.json")).unwrap();
    let error = from_disk(root.path()).unwrap_err().to_string();
    let path = root.path().join("localregistry/config.json");
    assert_eq!(error, format!("localregistry/config.json on the disk: cannot read {}", path.display()));
}

#[test]
fn different_configs_on_several_disks_are_rejected() {
    let disk = |json: Option<&str>| {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("localregistry")).unwrap();
        json.iter().for_each(|json| std::fs::write(root.path().join("localregistry/config.json"), json).unwrap());
        root
    };
    let (none, one, same) = (disk(None), disk(Some(r#"{"port": 80}"#)), disk(Some("{ \"port\": 80 }")));
    let other = disk(Some(r#"{"port": 81}"#));
    let on = |disks: &[&tempfile::TempDir]| {
        let names = ["vda", "vdb", "vdc"];
        from_disks(names.iter().copied().zip(disks.iter().map(|root| root.path())))
    };
    assert_eq!(settings(&on(&[&none, &one, &same]).unwrap()).port.get(), 80);
    assert_eq!(on(&[&none]).unwrap(), PartialConfig::default());
    assert_eq!(
        on(&[&one, &none, &other]).unwrap_err().to_string(),
        "localregistry/config.json on the disk: vda and vdc have different configs; put the same one on each disk, or one on a single \
         disk"
    );
}

fn leaves(value: &Value, path: String, found: &mut Vec<String>) {
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        // The value of `faults` is a plan, which has no keys of the config.
        Value::Object(_) if path == "faults" => found.push(path),
        Value::Object(map) => map.iter().for_each(|(name, value)| leaves(value, join(name), found)),
        Value::Array(items) if items.iter().all(Value::is_object) => {
            items.iter().for_each(|item| leaves(item, join("*"), found));
        }
        _ => found.push(path),
    }
}

#[test]
fn number_of_a_plan_of_faults_that_is_out_of_range_is_named_in_everyday_words() {
    for number in ["5e9", "-1", "1.5", "99999999999"] {
        let json = format!("{{\"faults\": {{\"rules\": [{{\"id\": \"a\", \"do\": {{\"status\": {number}}}}}]}}}}");
        let error = PartialConfig::from_json(Origin::FwCfg, json.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("a number is out of range, or is not a whole one, at line 1 column "), "{error}");
    }
}
