//! URLs of registries, redirects and token services.

use std::net::IpAddr;

use http::Uri;

use super::error::Fault;
use crate::oci::Host;

/// Parses `url`.
///
/// # Errors
/// Fails if `url` is not an http or https URL.
pub fn uri(url: &str) -> Result<Uri, Fault> {
    let parsed: Result<Uri, _> = url.parse();
    match parsed {
        Ok(uri) if uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https")) => Ok(uri),
        _ => Err(Fault::Url(url.split('?').next().unwrap_or_default().escape_debug().to_string())),
    }
}

/// Resolves the `Location` of a redirect from `base`.
///
/// # Errors
/// Fails if the result is not an http or https URL.
pub fn resolve(base: &Uri, location: &str) -> Result<Uri, Fault> {
    let (scheme, authority) = (base.scheme_str().unwrap_or("https"), base.authority().map_or("", |authority| authority.as_str()));
    if location.contains("://") {
        uri(location)
    } else if location.starts_with("//") {
        uri(&format!("{scheme}:{location}"))
    } else if location.starts_with('/') {
        uri(&format!("{scheme}://{authority}{location}"))
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        uri(&format!("{scheme}://{authority}{folder}/{location}"))
    }
}

/// Whether both URLs have the same scheme, host and port, so that credentials for one may be sent to the other.
#[must_use]
pub fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    a.scheme() == b.scheme()
        && a.host().map(str::to_ascii_lowercase) == b.host().map(str::to_ascii_lowercase)
        && port(a) == port(b)
}

/// Host and port of a URL, for messages.
#[must_use]
pub fn host_of(uri: &Uri) -> String {
    match (uri.host().unwrap_or_default(), uri.port_u16()) {
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    }
}

/// A URL without its query and user, which may be secret.
#[must_use]
pub fn without_query(uri: &Uri) -> String {
    format!("{}://{}{}", uri.scheme_str().unwrap_or_default(), host_of(uri), uri.path())
}

/// Whether `host` is a loopback address or a localhost name.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let name = host.parse::<Host>().map_or_else(|_| host.to_owned(), |host| host.name().to_owned());
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || name.ends_with(".localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let base = uri("https://a:5000/v2/x/blobs/1").unwrap();
        for (location, expected) in [
            ("https://b/c?d=e", "https://b/c?d=e"),
            ("//b/c", "https://b/c"),
            ("/c?d", "https://a:5000/c?d"),
            ("2", "https://a:5000/v2/x/blobs/2"),
        ] {
            assert_eq!(resolve(&base, location).unwrap().to_string(), expected, "{location}");
        }
        for bad in ["ftp://b/c", "https://", "https://b/ c"] {
            assert!(resolve(&base, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn origin_is_scheme_host_and_port() {
        for (a, b, same) in [
            ("https://a/x", "https://A:443/y", true),
            ("https://a:5000/x", "https://a:5000/x", true),
            ("https://a:5000/x", "https://a:5001/x", false),
            ("https://a/x", "http://a/x", false),
            ("https://a/x", "https://b/x", false),
            ("https://a/x", "https://a.b/x", false),
        ] {
            assert_eq!(same_origin(&uri(a).unwrap(), &uri(b).unwrap()), same, "{a} {b}");
        }
    }

    #[test]
    fn loopback_hosts_are_detected() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:1", "127.9.9.9", "[::1]:5000", "a.localhost"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["docker.io", "localhost.example", "128.0.0.1", "[::2]:5000", "10.0.0.1"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn messages_have_no_query_and_no_user() {
        assert_eq!(without_query(&uri("https://user:pw@b:1/c?sig=secret").unwrap()), "https://b:1/c");
        assert_eq!(uri("no?sig=secret").unwrap_err().to_string(), "\"no\" is not an http or https URL");
    }
}
