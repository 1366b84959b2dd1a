//! What `run` prints: where the registry is, requests, warnings, and how the machine ended. Facts enter, text leaves; whatever a
//! guest wrote is made printable first.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use crate::host::runs::dir::RunDir;
use crate::host::support::report::{Report, counted};
use crate::host::vm::launch::command::QemuCommand;
use crate::host::vm::launch::{Appliance, Ended, printable};
use crate::proto::{Disks, Request, Warning};

/// Where the registry is: printed as soon as it is ready.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "RunReady")]
pub(crate) struct Place {
    /// The registry's URL.
    endpoint: String,
    /// Host and port, as they stand before an image's name.
    address: String,
    /// Every URL that it is reached by, that one first.
    endpoints: Vec<String>,
    /// URL of health, metrics and the CA, where they have a port of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
    /// URLs of the registry's further listeners, where the config has some.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    further: Vec<String>,
    /// Further names that the certificate is for; with `--san`, or `names` in the config.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
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
    /// `kvm` or `tcg`.
    accel: &'static str,
    /// The run's name, for `ps` and `stop`.
    name: String,
    /// The run's folder, an absolute path.
    run_dir: PathBuf,
    /// The process that runs it.
    pid: u32,
    /// In the background: what `stop` finds it by.
    #[serde(skip)]
    stopped_by: Option<PathBuf>,
}

impl Place {
    pub(crate) fn of(vm: &Appliance, ca: Option<PathBuf>, trust: Option<PathBuf>, run: &RunDir, detached: bool) -> Self {
        Self {
            endpoint: vm.endpoint(),
            address: vm.address(),
            endpoints: vm.endpoints(),
            metrics: vm.metrics_endpoints().into_iter().next(),
            further: vm.further_endpoints(),
            names: vm.names().to_vec(),
            ca,
            trust,
            images: vm.ready().images,
            // To the millisecond: the digits after it say nothing.
            boot_seconds: (vm.boot_time().as_secs_f64() * 1000.0).round() / 1000.0,
            qemu_pid: vm.pid(),
            accel: vm.accel().as_str(),
            name: run.name().to_owned(),
            run_dir: run.folder().to_owned(),
            pid: std::process::id(),
            stopped_by: detached.then(|| run.stopped_by().to_owned()),
        }
    }

    /// The line of `--json`.
    ///
    /// # Errors
    /// A path is not UTF-8.
    pub(crate) fn json(&self) -> io::Result<String> {
        Ok(serde_json::to_string(self)?)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, address, images, boot_seconds, accel, .. } = self;
        writeln!(
            f,
            "The registry is ready at {endpoint} ({}, {boot_seconds:.1} s under {accel})",
            counted(*images as usize, "image")
        )?;
        for other in self.endpoints.iter().skip(1).chain(&self.further) {
            writeln!(f, "and at {other}")?;
        }
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
        match &self.stopped_by {
            Some(run) => write!(f, "`localregistry stop {}` ends it.", quoted(run)),
            None => write!(f, "Ctrl-C ends it."),
        }
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

/// QEMU's command line, for those who start it themselves.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RunCommand")]
pub(crate) struct Printed {
    /// QEMU's program and its arguments.
    command: Vec<String>,
    /// Where the registry will be forwarded from, host and port; null where nothing is forwarded.
    address: Option<String>,
    /// Where health, metrics and the CA will be forwarded from; with `--metrics`.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
    /// Where the registry's further listeners will be forwarded from, in the config's order; where it has some.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    further: Vec<String>,
    /// The folder with the files, which stays.
    run_dir: PathBuf,
    /// The guest's config.
    config: PathBuf,
    /// The Unix socket that QEMU will listen at for who reads the guest's events.
    events: PathBuf,
    /// The Unix socket that QEMU will listen at for commands to the guest.
    control: PathBuf,
    /// The Unix socket that QEMU will listen at for commands to itself.
    qmp: PathBuf,
    /// The file that QEMU writes the console to.
    console: PathBuf,
}

impl Printed {
    pub(crate) fn of(command: &QemuCommand, folder: &Path) -> Self {
        let QemuCommand { program, arguments, config, events, control, qmp, console, registry, metrics, further } =
            command.clone();
        let arguments = arguments.iter().map(|argument| argument.to_string_lossy().into_owned());
        Self {
            command: [program.display().to_string()].into_iter().chain(arguments).collect(),
            address: registry.map(|address| address.to_string()),
            metrics: metrics.map(|address| address.to_string()),
            further: further.iter().map(ToString::to_string).collect(),
            run_dir: folder.to_owned(),
            config,
            events,
            control,
            qmp,
            console,
        }
    }
}

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# In {}, which is yours to remove:", self.run_dir.display())?;
        writeln!(f, "#   config.json   the guest's config, read at the start")?;
        writeln!(f, "#   events.sock   made by QEMU: one JSON event a line, `ready` with the CA among them")?;
        writeln!(f, "#   control.sock  made by QEMU: takes {{\"shutdown\":{{}}}} and a line's end")?;
        writeln!(f, "#   qmp.sock, console  made by QEMU: its own control, and the guest's console")?;
        match &self.address {
            Some(address) => writeln!(f, "# The registry will be forwarded from {address}.")?,
            None => writeln!(f, "# The event `ready` says where the registry is.")?,
        }
        let words: Vec<String> = self.command.iter().map(|word| word_quoted(word)).collect();
        writeln!(f, "{}", words.join(" "))
    }
}

/// `path` as a shell takes it.
fn quoted(path: &Path) -> String {
    word_quoted(&path.display().to_string())
}

/// One word as a shell takes it.
fn word_quoted(text: &str) -> String {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&byte));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// One request on one line: who, what, how it went.
pub(crate) fn request(request: &Request) -> String {
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
pub(crate) fn warning(warning: &Warning) -> String {
    printable(format!("warning: {}: {}", warning.code, warning.message).as_bytes())
}

/// A disk that came, or is gone.
pub(crate) fn disks(disks: &Disks) -> String {
    let Disks { added, removed, images, .. } = disks;
    let now = counted(*images as usize, "image");
    let line = if removed.is_empty() { format!("{added} is served, too: {now}") } else { format!("{removed} is gone: {now}") };
    printable(line.as_bytes())
}

/// Says how the machine ended, and gives the exit status.
pub(crate) fn ended(ended: &Ended, report: &Report) -> u8 {
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
pub(crate) fn last_lines(ended: &Ended) {
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
            endpoints: vec![format!("{}://127.0.0.1:43673", if ca.is_some() { "https" } else { "http" })],
            metrics: None,
            further: vec![],
            names: vec![],
            ca: ca.map(PathBuf::from),
            trust: None,
            images: 3,
            boot_seconds: 3.25,
            qemu_pid: 17,
            accel: "tcg",
            name: "one".into(),
            run_dir: "/run/one".into(),
            pid: 16,
            stopped_by: None,
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
        assert!(with.json().unwrap().contains(r#""metrics":"http://127.0.0.1:43674""#));
    }

    #[test]
    fn a_program_reads_one_json_line() {
        assert_eq!(
            place(Some("/tmp/ca.crt")).json().unwrap(),
            r#"{"endpoint":"https://127.0.0.1:43673","address":"127.0.0.1:43673","endpoints":["https://127.0.0.1:43673"],"ca":"/tmp/ca.crt","images":3,"boot_seconds":3.25,"qemu_pid":17,"accel":"tcg","name":"one","run_dir":"/run/one","pid":16}"#
        );
    }

    #[test]
    fn further_endpoints_and_the_background_are_told() {
        let mut place = place(None);
        place.endpoints.push("http://10.1.0.82:5000".into());
        place.further.push("http://127.0.0.1:8080".into());
        place.stopped_by = Some("one".into());
        place.trust = Some("/tmp/trust".into());
        assert!(
            place.json().unwrap().contains(r#""further":["http://127.0.0.1:8080"],"ca":null,"trust":"/tmp/trust","images":3"#),
            "{place:?}"
        );
        let text = place.to_string();
        assert!(text.contains("under tcg)\nand at http://10.1.0.82:5000\nand at http://127.0.0.1:8080\n"), "{text}");
        let end = "\nWhat nodes need to trust it is in /tmp/trust\n`localregistry stop one` ends it.";
        assert!(text.ends_with(end), "{text}");
        place.stopped_by = Some("/tmp/a run".into());
        assert!(place.to_string().ends_with("\n`localregistry stop '/tmp/a run'` ends it."), "{place}");
    }

    #[test]
    fn a_printed_command_is_one_for_a_shell() {
        let command = QemuCommand {
            program: "qemu".into(),
            arguments: vec!["-append".into(), "a b".into(), "it's".into()],
            config: "/r/config.json".into(),
            events: "/r/events.sock".into(),
            control: "/r/control.sock".into(),
            qmp: "/r/qmp.sock".into(),
            console: "/r/console".into(),
            registry: Some("127.0.0.1:5001".parse().unwrap()),
            metrics: None,
            further: vec![],
        };
        let printed = Printed::of(&command, Path::new("/r"));
        let text = printed.to_string();
        assert!(text.lines().take(6).all(|line| line.starts_with("# ")), "{text}");
        assert_eq!(text.lines().last(), Some("qemu -append 'a b' 'it'\\''s'"));
        assert_eq!(
            serde_json::to_string(&printed).unwrap(),
            r#"{"command":["qemu","-append","a b","it's"],"address":"127.0.0.1:5001","run_dir":"/r","config":"/r/config.json","events":"/r/events.sock","control":"/r/control.sock","qmp":"/r/qmp.sock","console":"/r/console"}"#
        );
    }

    #[test]
    fn a_disk_is_one_line() {
        let name = "/dev/vdb (serial \"x\")".to_owned();
        let came = Disks { added: name.clone(), images: 3, ..Disks::default() };
        let gone = Disks { removed: name, images: 1, ..Disks::default() };
        assert_eq!(disks(&came), "/dev/vdb (serial \"x\") is served, too: 3 images");
        assert_eq!(disks(&gone), "/dev/vdb (serial \"x\") is gone: 1 image");
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
