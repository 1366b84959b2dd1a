//! What `run` prints: where the registry is, requests, warnings, and how the machine ended. Facts enter, text leaves; whatever a
//! guest wrote is made printable first.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::host::launch::{Ended, Vm, printable};
use crate::host::report::Report;
use crate::proto::{Request, Warning};

/// Where the registry is. Its fields are the JSON line of `--json`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Place {
    /// The registry's URL.
    endpoint: String,
    /// Host and port, as they stand before an image's name.
    address: String,
    /// URL of health, metrics and the CA, where they have a port of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
    /// The CA certificate, an absolute path; null with plain HTTP.
    ca: Option<PathBuf>,
    /// The folder with the trust files, an absolute path, where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    trust: Option<PathBuf>,
    /// Tags on the disk.
    images: u32,
    /// Seconds from QEMU's start to ready.
    boot_seconds: f64,
    /// The QEMU process.
    qemu_pid: u32,
    /// "kvm" or "tcg".
    accel: &'static str,
}

impl Place {
    pub(super) fn of(vm: &Vm, ca: Option<PathBuf>, trust: Option<PathBuf>) -> Self {
        Self {
            endpoint: vm.endpoint(),
            address: vm.address().to_string(),
            metrics: vm.metrics_endpoint(),
            ca,
            trust,
            images: vm.ready().images,
            // To the millisecond: the digits after it say nothing.
            boot_seconds: (vm.boot_time().as_secs_f64() * 1000.0).round() / 1000.0,
            qemu_pid: vm.pid(),
            accel: vm.accel().as_str(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, address, images, boot_seconds, accel, .. } = self;
        writeln!(f, "The registry is ready at {endpoint} ({images} images, {boot_seconds:.1} s under {accel})")?;
        match &self.ca {
            Some(ca) => trusting(f, address, ca)?,
            None => {
                writeln!(f, "  curl {endpoint}/v2/_catalog")?;
                writeln!(f, "  skopeo copy --src-tls-verify=false docker://{address}/NAME:TAG oci:OUT")?;
                writeln!(f, "  podman pull --tls-verify=false {address}/NAME:TAG")?;
            }
        }
        if let Some(metrics) = &self.metrics {
            writeln!(f, "Health, metrics and the CA are at {metrics}/healthz, /metrics and /ca.crt")?;
        }
        if let Some(trust) = &self.trust {
            writeln!(f, "What nodes need to trust it is in {}", trust.display())?;
        }
        write!(f, "Ctrl-C ends it.")
    }
}

/// The CA, and how clients are told to trust it.
fn trusting(f: &mut fmt::Formatter<'_>, address: &str, ca: &Path) -> fmt::Result {
    writeln!(f, "Its CA certificate is {}", ca.display())?;
    writeln!(f, "  curl --cacert {} https://{address}/v2/_catalog", quoted(ca))?;
    // podman and skopeo take a folder, and from it every file that ends so.
    if let (Some("crt"), Some(folder)) = (ca.extension().and_then(|end| end.to_str()), ca.parent()) {
        writeln!(f, "  skopeo copy --src-cert-dir {} docker://{address}/NAME:TAG oci:OUT", quoted(folder))?;
        writeln!(f, "  podman pull --cert-dir {} {address}/NAME:TAG", quoted(folder))?;
    }
    Ok(())
}

/// `path` as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&byte));
    if plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// One request on one line: who, what, how it went.
pub(super) fn request(request: &Request) -> String {
    let Request { peer, method, endpoint, repository, reference, status, bytes, range, duration, user_agent, .. } = request;
    let mut line = format!("{peer} {method} {endpoint}");
    for word in [repository, reference, range] {
        if !word.is_empty() {
            line.push(' ');
            line.push_str(word);
        }
    }
    let cut = if request.complete { "" } else { " (cut short)" };
    line.push_str(&format!(" -> {status}, {bytes} bytes in {duration:.3} s{cut}, {user_agent}"));
    printable(line.as_bytes())
}

/// One warning of the guest.
pub(super) fn warning(warning: &Warning) -> String {
    printable(format!("warning: {}: {}", warning.code, warning.message).as_bytes())
}

/// Says how the machine ended, and gives the exit status.
pub(super) fn ended(ended: &Ended, report: &Report) -> u8 {
    let status = ended.outcome.exit_status();
    if status == 0 {
        report.step(ended.outcome.to_string());
    } else {
        eprintln!("localregistry: {}", ended.outcome);
        last_lines(ended);
    }
    for line in &ended.unwritten {
        eprintln!("localregistry: {line}");
    }
    if status == 0 && !ended.unwritten.is_empty() { 1 } else { status }
}

/// Shows the last lines of the console and of QEMU.
pub(super) fn last_lines(ended: &Ended) {
    for (whose, lines) in [("the console's last lines", &ended.console), ("QEMU's last lines", &ended.stderr)] {
        if !lines.is_empty() {
            eprintln!("{whose}:");
            for line in lines {
                eprintln!("  {line}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(ca: Option<&str>) -> Place {
        Place {
            endpoint: format!("{}://127.0.0.1:43673", if ca.is_some() { "https" } else { "http" }),
            address: "127.0.0.1:43673".into(),
            metrics: None,
            ca: ca.map(PathBuf::from),
            trust: None,
            images: 3,
            boot_seconds: 3.25,
            qemu_pid: 17,
            accel: "tcg",
        }
    }

    #[test]
    fn a_person_reads_where_it_is_and_how_to_pull() {
        assert_eq!(
            place(Some("/tmp/it's here/ca.crt")).to_string(),
            "The registry is ready at https://127.0.0.1:43673 (3 images, 3.2 s under tcg)\n\
             Its CA certificate is /tmp/it's here/ca.crt\n\
             \x20 curl --cacert '/tmp/it'\\''s here/ca.crt' https://127.0.0.1:43673/v2/_catalog\n\
             \x20 skopeo copy --src-cert-dir '/tmp/it'\\''s here' docker://127.0.0.1:43673/NAME:TAG oci:OUT\n\
             \x20 podman pull --cert-dir '/tmp/it'\\''s here' 127.0.0.1:43673/NAME:TAG\n\
             Ctrl-C ends it."
        );
        assert!(!place(Some("/tmp/ca.pem")).to_string().contains("--cert-dir"), "podman reads *.crt only");
        assert_eq!(
            place(None).to_string(),
            "The registry is ready at http://127.0.0.1:43673 (3 images, 3.2 s under tcg)\n\
             \x20 curl http://127.0.0.1:43673/v2/_catalog\n\
             \x20 skopeo copy --src-tls-verify=false docker://127.0.0.1:43673/NAME:TAG oci:OUT\n\
             \x20 podman pull --tls-verify=false 127.0.0.1:43673/NAME:TAG\n\
             Ctrl-C ends it."
        );
    }

    #[test]
    fn metrics_with_a_port_of_their_own_are_shown() {
        let with = Place { metrics: Some("http://127.0.0.1:43674".into()), ..place(None) };
        let line = "Health, metrics and the CA are at http://127.0.0.1:43674/healthz, /metrics and /ca.crt\n";
        assert!(with.to_string().contains(line), "{with}");
        assert!(serde_json::to_string(&with).unwrap().contains(r#""metrics":"http://127.0.0.1:43674""#));
    }

    #[test]
    fn a_program_reads_one_json_line() {
        assert_eq!(
            serde_json::to_string(&place(Some("/tmp/ca.crt"))).unwrap(),
            r#"{"endpoint":"https://127.0.0.1:43673","address":"127.0.0.1:43673","ca":"/tmp/ca.crt","images":3,"boot_seconds":3.25,"qemu_pid":17,"accel":"tcg"}"#
        );
    }

    #[test]
    fn a_request_is_one_line_whatever_the_client_wrote() {
        let mut made = Request {
            peer: "10.0.2.2:40112".into(),
            method: "GET".into(),
            endpoint: "manifest".into(),
            repository: "test/hello".into(),
            reference: "latest".into(),
            status: 200,
            bytes: 512,
            duration: 0.0042,
            user_agent: "evil\n\x1b[2J/1.0".into(),
            complete: true,
            ..Request::default()
        };
        let line = "10.0.2.2:40112 GET manifest test/hello latest -> 200, 512 bytes in 0.004 s, evil\\u{a}/1.0";
        assert_eq!(request(&made), line);
        made.complete = false;
        made.range = "bytes=0-".into();
        let line =
            "10.0.2.2:40112 GET manifest test/hello latest bytes=0- -> 200, 512 bytes in 0.004 s (cut short), evil\\u{a}/1.0";
        assert_eq!(request(&made), line);
    }
}
