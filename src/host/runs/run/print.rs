//! What `run` prints: where the registry is, requests, warnings, and how the machine ended. Text from the guest or a client is made
//! printable.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use crate::host::runs::dir::RunDir;
use crate::host::support::quote::shell_word;
use crate::host::support::report::{Report, counted, message};
use crate::host::vm::launch::command::QemuCommand;
use crate::host::vm::launch::{Appliance, ExitReport, Start};
use crate::proto::{Disks, Request, Warning};
use crate::text::printable;

/// Where the registry is: printed as soon as it is ready.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct RunReady {
    /// The registry's URL.
    endpoint: String,
    /// Host and port, as they stand before an image's name.
    address: String,
    /// All URLs of the registry, `endpoint` first.
    endpoints: Vec<String>,
    /// URL of health, metrics and the CA, if they have a port of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
    /// URLs of the registry's further listeners, if the config has some.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    further: Vec<String>,
    /// Further names that the certificate is valid for; with `--san`, or `names` in the config.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    /// The CA certificate, an absolute path; null with plain HTTP.
    ca: Option<String>,
    /// The folder with the trust files, an absolute path; with `--trust`.
    #[serde(skip_serializing_if = "Option::is_none")]
    trust: Option<String>,
    /// Number of tags on the disks.
    images: u32,
    /// Seconds from QEMU's start to ready.
    boot_seconds: f64,
    /// The QEMU process.
    qemu_pid: u32,
    /// `kvm` or `tcg`.
    accel: &'static str,
    /// Number of virtual processors.
    cpus: u32,
    /// What carries the network `user`: `passt`, or `slirp`, QEMU's own; absent without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_network: Option<&'static str>,
    /// `warm`: from a frozen machine; `cold`: by a complete boot.
    start: &'static str,
    /// Why it is not warm.
    #[serde(skip_serializing_if = "Option::is_none")]
    cold_reason: Option<String>,
    /// The run's name, for `ps` and `stop`.
    name: String,
    /// The run's folder, an absolute path.
    run_dir: String,
    /// The process of the run.
    pid: u32,
    /// In the background: the argument for `stop`.
    #[serde(skip)]
    stop_argument: Option<String>,
}

impl RunReady {
    pub(crate) fn new(vm: &Appliance, ca: Option<PathBuf>, trust: Option<PathBuf>, run: &RunDir, detached: bool) -> Self {
        Self {
            endpoint: vm.endpoint(),
            address: vm.address(),
            endpoints: vm.endpoints(),
            metrics: vm.metrics_endpoints().into_iter().next(),
            further: vm.further_endpoints(),
            names: vm.names().to_vec(),
            ca: ca.map(|path| path.display().to_string()),
            trust: trust.map(|path| path.display().to_string()),
            images: vm.ready().images,
            // Rounded to milliseconds.
            boot_seconds: (vm.boot_time().as_secs_f64() * 1000.0).round() / 1000.0,
            qemu_pid: vm.pid(),
            accel: vm.accel().as_str(),
            cpus: vm.cpus(),
            user_network: vm.user_network(),
            start: if *vm.start() == Start::Warm { "warm" } else { "cold" },
            cold_reason: match vm.start() {
                Start::Warm => None,
                Start::Cold { why } => Some(why.clone()),
            },
            name: run.name().to_owned(),
            run_dir: run.folder().display().to_string(),
            pid: std::process::id(),
            stop_argument: detached.then(|| run.stop_argument()),
        }
    }

    /// The line of `--json`.
    ///
    /// # Errors
    /// Fails if a path is not UTF-8.
    pub(crate) fn json(&self) -> io::Result<String> {
        Ok(serde_json::to_string(self)?)
    }
}

impl fmt::Display for RunReady {
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
            Some(ca) => write_tls_usage(f, address, ca)?,
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
            writeln!(f, "The trust files for nodes are in {trust}")?;
        }
        match &self.stop_argument {
            Some(run) => write!(f, "`localregistry stop {}` ends it.", shell_word(run)),
            None => write!(f, "Ctrl-C ends it."),
        }
    }
}

/// Writes the CA's path and how clients trust it.
fn write_tls_usage(f: &mut fmt::Formatter<'_>, address: &str, ca: &str) -> fmt::Result {
    writeln!(f, "Its CA certificate is {ca}")?;
    writeln!(f, "  curl --cacert {} https://{address}/v2/_catalog", shell_word(ca))?;
    let ca = Path::new(ca);
    // podman and skopeo take a folder, and read every file *.crt in it.
    if let (Some("crt"), Some(folder)) = (ca.extension().and_then(|end| end.to_str()), ca.parent()) {
        writeln!(
            f,
            "  skopeo copy --src-cert-dir {} docker://{address}/NAME:TAG oci:OUT",
            shell_word(&folder.to_string_lossy())
        )?;
        writeln!(f, "  podman pull --cert-dir {} {address}/NAME:TAG", shell_word(&folder.to_string_lossy()))?;
    }
    Ok(())
}

/// QEMU's command line, for launchers that start QEMU themselves.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RunCommand {
    /// QEMU's program and its arguments.
    command: Vec<String>,
    /// The address that will be forwarded to the registry, host and port; null if nothing is forwarded.
    address: Option<String>,
    /// The address that will be forwarded to health, metrics and the CA; with `--metrics`.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
    /// The addresses that will be forwarded to the registry's further listeners, in the config's order; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    further: Vec<String>,
    /// The folder with the files. It is not removed.
    run_dir: String,
    /// The guest's config.
    config: String,
    /// The Unix socket that QEMU will listen on for the reader of the guest's events.
    events: String,
    /// The Unix socket that QEMU will listen on for commands to the guest.
    control: String,
    /// The Unix socket that QEMU will listen on for QMP.
    qmp: String,
    /// The file that QEMU writes the console to.
    console: String,
    /// What carries the network `user`: `slirp`, QEMU's own, as passt would have to be started before QEMU; absent without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_network: Option<&'static str>,
}

impl RunCommand {
    pub(crate) fn new(command: &QemuCommand, folder: &Path) -> Self {
        let QemuCommand { program, arguments, config, events, control, qmp, console, registry, metrics, further } =
            command.clone();
        let arguments = arguments.iter().map(|argument| argument.to_string_lossy().into_owned());
        Self {
            command: [program.display().to_string()].into_iter().chain(arguments).collect(),
            address: registry.map(|address| address.to_string()),
            metrics: metrics.map(|address| address.to_string()),
            further: further.iter().map(ToString::to_string).collect(),
            run_dir: folder.display().to_string(),
            config: config.display().to_string(),
            events: events.display().to_string(),
            control: control.display().to_string(),
            qmp: qmp.display().to_string(),
            console: console.display().to_string(),
            user_network: registry.map(|_| "slirp"),
        }
    }
}

impl fmt::Display for RunCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# In {}, which you have to remove:", self.run_dir)?;
        writeln!(f, "#   config.json   the guest's config, read at the start")?;
        writeln!(f, "#   events.sock   made by QEMU: the events, one JSON line each; `ready` has the CA")?;
        writeln!(f, "#   control.sock  made by QEMU: takes {{\"shutdown\":{{}}}} and a newline")?;
        writeln!(f, "#   qmp.sock, console  made by QEMU: QMP, and the guest's console")?;
        match &self.address {
            Some(address) => {
                writeln!(f, "# The registry will be forwarded from {address}.\n# QEMU itself (slirp) carries the network.")?;
            }
            None => writeln!(f, "# The event `ready` says where the registry is.")?,
        }
        let words: Vec<String> = self.command.iter().map(|word| shell_word(word)).collect();
        writeln!(f, "{}", words.join(" "))
    }
}

/// Formats a request as one line.
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
    if !request.left_out.is_empty() {
        line.push_str(&format!(" ({} was left out)", request.left_out));
    }
    line.push_str(&format!(" -> {status}, {bytes} bytes in {duration:.3} s{cut}, {user_agent}"));
    printable(line.as_bytes())
}

/// Formats a warning of the guest.
pub(crate) fn warning(warning: &Warning) -> String {
    printable(format!("warning: {}: {}", warning.code, warning.message).as_bytes())
}

/// Formats a change of the disks.
pub(crate) fn disks(disks: &Disks) -> String {
    let Disks { added, removed, images, .. } = disks;
    let total = counted(*images as usize, "image");
    let line = if removed.is_empty() {
        format!("{added} was added: {total} in all")
    } else {
        format!("{removed} was removed: {total} in all")
    };
    printable(line.as_bytes())
}

/// Prints how the machine ended, and returns the exit status.
pub(crate) fn print_exit(exit: &ExitReport, report: &Report) -> u8 {
    let status = exit.outcome.exit_status();
    if status == 0 {
        report.step(exit.outcome.to_string());
    } else {
        message(format!("localregistry: {}", exit.outcome));
        print_last_lines(exit);
    }
    for line in &exit.incomplete {
        message(format!("localregistry: {line}"));
    }
    if status == 0 && !exit.incomplete.is_empty() { 1 } else { status }
}

/// Prints the last lines of the console and of QEMU.
pub(crate) fn print_last_lines(exit: &ExitReport) {
    for (title, lines) in [("the console's last lines", &exit.console), ("QEMU's last lines", &exit.stderr)] {
        if !lines.is_empty() {
            message(format!("{title}:"));
            for line in lines {
                message(format!("  {line}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(ca: Option<&str>) -> RunReady {
        RunReady {
            endpoint: format!("{}://127.0.0.1:43673", if ca.is_some() { "https" } else { "http" }),
            address: "127.0.0.1:43673".into(),
            endpoints: vec![format!("{}://127.0.0.1:43673", if ca.is_some() { "https" } else { "http" })],
            metrics: None,
            further: vec![],
            names: vec![],
            ca: ca.map(str::to_owned),
            trust: None,
            images: 3,
            boot_seconds: 3.25,
            qemu_pid: 17,
            accel: "tcg",
            cpus: 1,
            user_network: Some("passt"),
            start: "warm",
            cold_reason: None,
            name: "one".into(),
            run_dir: "/run/one".into(),
            pid: 16,
            stop_argument: None,
        }
    }

    #[test]
    fn text_result_says_where_it_is_and_how_to_pull() {
        assert_eq!(
            ready(Some("/tmp/it's here/ca.crt")).to_string(),
            "The registry is ready at https://127.0.0.1:43673 (3 images, 3.2 s under tcg)\n\
             Its CA certificate is /tmp/it's here/ca.crt\n\
             \x20 curl --cacert '/tmp/it'\\''s here/ca.crt' https://127.0.0.1:43673/v2/_catalog\n\
             \x20 skopeo copy --src-cert-dir '/tmp/it'\\''s here' docker://127.0.0.1:43673/NAME:TAG oci:OUT\n\
             \x20 podman pull --cert-dir '/tmp/it'\\''s here' 127.0.0.1:43673/NAME:TAG\n\
             Ctrl-C ends it."
        );
        assert!(!ready(Some("/tmp/ca.pem")).to_string().contains("--cert-dir"), "podman reads *.crt only");
        assert_eq!(
            ready(None).to_string(),
            "The registry is ready at http://127.0.0.1:43673 (3 images, 3.2 s under tcg)\n\
             \x20 curl http://127.0.0.1:43673/v2/_catalog\n\
             \x20 skopeo copy --src-tls-verify=false docker://127.0.0.1:43673/NAME:TAG oci:OUT\n\
             \x20 podman pull --tls-verify=false 127.0.0.1:43673/NAME:TAG\n\
             Ctrl-C ends it."
        );
    }

    #[test]
    fn metrics_on_a_port_of_their_own_are_printed() {
        let with = RunReady { metrics: Some("http://127.0.0.1:43674".into()), ..ready(None) };
        let line = "Health, metrics and the CA are at http://127.0.0.1:43674/healthz, /metrics and /ca.crt\n";
        assert!(with.to_string().contains(line), "{with}");
        assert!(with.json().unwrap().contains(r#""metrics":"http://127.0.0.1:43674""#));
    }

    #[test]
    fn json_result_is_one_line() {
        assert_eq!(
            ready(Some("/tmp/ca.crt")).json().unwrap(),
            r#"{"endpoint":"https://127.0.0.1:43673","address":"127.0.0.1:43673","endpoints":["https://127.0.0.1:43673"],"ca":"/tmp/ca.crt","images":3,"boot_seconds":3.25,"qemu_pid":17,"accel":"tcg","cpus":1,"user_network":"passt","start":"warm","name":"one","run_dir":"/run/one","pid":16}"#
        );
    }

    #[test]
    fn further_endpoints_and_the_stop_command_are_printed() {
        let mut ready = ready(None);
        ready.endpoints.push("http://10.1.0.82:5000".into());
        ready.further.push("http://127.0.0.1:8080".into());
        ready.stop_argument = Some("one".into());
        ready.trust = Some("/tmp/trust".into());
        assert!(
            ready.json().unwrap().contains(r#""further":["http://127.0.0.1:8080"],"ca":null,"trust":"/tmp/trust","images":3"#),
            "{ready:?}"
        );
        let text = ready.to_string();
        assert!(text.contains("under tcg)\nand at http://10.1.0.82:5000\nand at http://127.0.0.1:8080\n"), "{text}");
        let end = "\nThe trust files for nodes are in /tmp/trust\n`localregistry stop one` ends it.";
        assert!(text.ends_with(end), "{text}");
        ready.stop_argument = Some("/tmp/a run".into());
        assert!(ready.to_string().ends_with("\n`localregistry stop '/tmp/a run'` ends it."), "{ready}");
    }

    #[test]
    fn printed_command_is_quoted_for_a_shell() {
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
        let printed = RunCommand::new(&command, Path::new("/r"));
        let text = printed.to_string();
        assert!(text.lines().take(6).all(|line| line.starts_with("# ")), "{text}");
        assert_eq!(text.lines().last(), Some("qemu -append 'a b' 'it'\\''s'"));
        assert_eq!(
            serde_json::to_string(&printed).unwrap(),
            r#"{"command":["qemu","-append","a b","it's"],"address":"127.0.0.1:5001","run_dir":"/r","config":"/r/config.json","events":"/r/events.sock","control":"/r/control.sock","qmp":"/r/qmp.sock","console":"/r/console","user_network":"slirp"}"#
        );
    }

    #[test]
    fn disk_change_is_one_line() {
        let name = "/dev/vdb (serial \"x\")".to_owned();
        let added = Disks { added: name.clone(), images: 3, ..Disks::default() };
        let removed = Disks { removed: name, images: 1, ..Disks::default() };
        assert_eq!(disks(&added), "/dev/vdb (serial \"x\") was added: 3 images in all");
        assert_eq!(disks(&removed), "/dev/vdb (serial \"x\") was removed: 1 image in all");
    }

    #[test]
    fn request_is_one_printable_line() {
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
        let line = "10.0.2.2:40112 GET manifest test/hello latest -> 200, 512 bytes in 0.004 s, evil\\n/1.0";
        assert_eq!(request(&made), line);
        made.complete = false;
        made.range = "bytes=0-".into();
        let line = "10.0.2.2:40112 GET manifest test/hello latest bytes=0- -> 200, 512 bytes in 0.004 s (cut short), evil\\n/1.0";
        assert_eq!(request(&made), line);
        let left_out = Request { status: 404, left_out: "linux/arm64".into(), ..made };
        assert!(request(&left_out).contains(" latest bytes=0- (linux/arm64 was left out) -> 404, 512 bytes"));
    }
}
