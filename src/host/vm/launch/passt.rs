//! Starts passt, which carries the packets of the user network between QEMU and sockets of this machine, without privileges. Its packets
//! have up to 65,520 bytes, which makes it faster than SLIRP, QEMU's own.
//!
//! passt has no option like SLIRP's `restrict=on`. So it runs without UDP and ICMP, and under a system call filter that refuses `connect`:
//! the guest answers connections, and cannot open any, neither to this machine nor to others.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use command_fds::CommandFdExt;
use nix::libc;
use rustix::fs::{Mode, fchmod};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::QMP_TIMEOUT;
use super::monitor::{Monitor, read_some};
use super::outcome::{Exit, KillReason};
use super::prepare::Forwards;
use super::process::{Killer, Process, socket_pair};
use super::tail::Tail;
use crate::address::{Cidr, Mac};
use crate::host::support::report::Report;
use crate::host::support::tools::{Tool, ToolError};
use crate::host::vm::net::{Net, UserBackend};
use crate::text::chain;

/// The program and its Debian package.
const PASST: Tool = Tool { name: "passt", package: "passt" };
/// The MTU that passt announces by DHCP, in bytes: the largest IPv4 packet with a length that is a multiple of 32 bits, without the header
/// of its frame (passt(1), `--mtu`).
const MTU: u32 = 65_520;
/// How long QEMU may take to end after passt has ended. passt ends when QEMU closes its socket, so QEMU is then about to end.
const QEMU_END: Duration = Duration::from_secs(2);
/// Lines of its standard error in messages.
const REPORTED_LINES: usize = 5;

/// How to start passt.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    program: PathBuf,
    /// Whether it was asked for by name: then a failure is an error, and otherwise SLIRP takes its place.
    required: bool,
    guest: Cidr,
    gateway: Ipv4Addr,
    mtu: Option<u32>,
}

/// A running passt. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Passt {
    process: Process,
    stderr: UnixStream,
    said: Tail,
}

/// Why passt cannot carry the user network.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// It is not installed.
    #[error(transparent)]
    Missing(#[from] ToolError),
    /// It cannot do what the networks or the config need.
    #[error("{why}; use backend=slirp")]
    Unfit {
        /// The reason.
        why: &'static str,
    },
    /// It cannot be started.
    #[error("cannot start it")]
    Start(#[source] io::Error),
    /// It ended before it was ready, or does not get ready.
    #[error("it {how}: {said}")]
    Failed {
        /// How it ended.
        how: String,
        /// The last lines that it printed.
        said: String,
    },
}

/// Decides whether passt carries the user network among `nets`, and how. passt gives an address by DHCP with a default route, and no IPv6:
/// with other networks the guest would answer their clients through passt, and interfaces of the config may wait for a router.
///
/// # Errors
/// Fails if passt is asked for by name and cannot be used.
pub(crate) fn plan(nets: &mut [Net], config_has_interfaces: bool) -> Result<Option<Plan>, PasstError> {
    let alone = nets.len() == 1;
    let Some(net) = nets.iter_mut().find(|net| net.is_user()) else { return Ok(None) };
    let required = match net.user_backend() {
        None | Some(UserBackend::Slirp) => return Ok(None),
        Some(backend) => backend == UserBackend::Passt,
    };
    let fits = match net.user_ends() {
        _ if config_has_interfaces => Err("passt cannot serve the interfaces of the config"),
        _ if !alone => Err("passt serves `user` only if that is the only network"),
        None => Err("passt needs an address for the gateway that is not the guest's"),
        Some(ends) => Ok(ends),
    };
    let found = fits.map_err(|why| PasstError::Unfit { why }).and_then(|ends| Ok((ends, PASST.find()?)));
    let ((guest, gateway), program) = match found {
        Ok(found) => found,
        Err(error) if required => return Err(error),
        Err(_) => return Ok(None),
    };
    let mtu = net.mtu;
    if net.address.is_some() {
        // Without DHCP, the guest's config has to say it.
        net.mtu.get_or_insert(MTU);
    }
    Ok(Some(Plan { program, required, guest, gateway, mtu }))
}

impl Plan {
    /// Starts passt, and sets the free ports that it listens on in `forwards`. Returns it with QEMU's end of the network, or `None` if it
    /// cannot be used and SLIRP can take its place.
    ///
    /// # Errors
    /// Fails if passt was asked for by name and does not start.
    pub(crate) async fn start(&self, forwards: &mut Forwards, report: &Report) -> Result<Option<(Passt, OwnedFd)>, PasstError> {
        let ports = with_free_ports(forwards.clone()).map_err(PasstError::Start);
        let started = match ports {
            Ok(ports) => self.listen(&ports).await.map(|started| (started, ports)),
            Err(error) => Err(error),
        };
        match started {
            Ok((started, ports)) => {
                *forwards = ports;
                Ok(Some(started))
            }
            Err(error) if self.required => Err(error),
            Err(error) => {
                report.step(format!("QEMU carries the network, as passt cannot be used: {}", chain(&error)));
                Ok(None)
            }
        }
    }

    /// Starts passt and waits until it listens.
    async fn listen(&self, forwards: &Forwards) -> Result<(Passt, OwnedFd), PasstError> {
        let (qemu, socket) = StdStream::pair().map_err(PasstError::Start)?;
        let (stderr, passt_stderr) = socket_pair().map_err(|error| PasstError::Start(io::Error::other(error)))?;
        let (pid, pid_file) = io::pipe().map_err(PasstError::Start)?;
        // passt opens the file after it has dropped root's privileges.
        fchmod(&pid_file, Mode::WUSR | Mode::WGRP | Mode::WOTH).map_err(|error| PasstError::Start(error.into()))?;
        let mut pid = pipe::Receiver::from_owned_fd(pid.into()).map_err(PasstError::Start)?;

        let mut command = Command::new(&self.program);
        command.args(self.arguments(forwards)).arg("--fd").arg(socket.as_raw_fd().to_string());
        command.stdin(Stdio::null()).stdout(pid_file).stderr(passt_stderr).process_group(0);
        command.preserved_fds(vec![socket.into()]);
        let filter = without_connect().map_err(|error| PasstError::Start(io::Error::other(error)))?;
        let restrict = move || seccompiler::apply_filter(&filter).map_err(io::Error::other);
        let process = Process::start_after(command, restrict).map_err(PasstError::Start)?;

        let mut passt = Passt { process, stderr, said: Tail::default() };
        // It writes its process ID when it listens.
        match timeout(QMP_TIMEOUT, pid.read_u8()).await {
            Ok(Ok(_)) => Ok((passt, qemu.into())),
            Ok(Err(_)) => {
                let how = passt.ended().await.to_string();
                Err(PasstError::Failed { how, said: passt.last_words().join("; ") })
            }
            Err(_) => {
                Err(PasstError::Failed { how: "is not ready".into(), said: format!("{} s have passed", QMP_TIMEOUT.as_secs()) })
            }
        }
    }

    fn arguments(&self, forwards: &Forwards) -> Vec<String> {
        let Self { guest, gateway, mtu, .. } = self;
        // SLIRP's address. The guest knows the network by it.
        let [a, b, c, d] = gateway.octets();
        let mac = Mac([0x52, 0x55, a, b, c, d]);
        let own = [
            // Errors only. The network is IPv4, as SLIRP forwards from and to IPv4.
            "--foreground --quiet --ipv4-only --no-udp --no-icmp --no-map-gw --no-dhcp-dns --no-dhcp-search --pid /dev/stdout"
                .into(),
            // Nothing is taken from this machine's interfaces, so that it needs no default route.
            format!("--interface lo --address {} --netmask {} --gateway {gateway} --mac-addr {mac}", guest.address, guest.prefix),
        ];
        let ports = forwards.all().into_iter().map(|forward| {
            let (address, port) = (forward.host.ip(), forward.host.port());
            format!("--tcp-ports {address}/{port}:{}", forward.guest_port)
        });
        let mtu = mtu.map(|mtu| format!("--mtu {mtu}"));
        let words: Vec<String> = own.into_iter().chain(mtu).chain(ports).collect();
        words.join(" ").split(' ').map(str::to_owned).collect()
    }
}

impl Passt {
    /// Kills QEMU if passt ends first.
    pub(crate) async fn watch(mut self, monitor: Arc<Monitor>, qemu: impl Future<Output = Exit>, killer: Killer) {
        let exit = self.ended().await;
        if timeout(QEMU_END, qemu).await.is_ok() {
            return;
        }
        let said = [format!("passt {exit}")].into_iter().chain(self.last_words()).collect::<Vec<_>>().join("\n");
        monitor.state().stderr.feed(format!("{said}\n").as_bytes());
        monitor.set_killed(KillReason::NetworkLost);
        killer.kill();
    }

    /// Waits for its end, and reads what it prints.
    async fn ended(&mut self) -> Exit {
        let mut buffer = [0; 1024];
        while let Some(bytes) = read_some(&mut self.stderr, &mut buffer).await {
            self.said.feed(bytes);
        }
        self.process.exit().await
    }

    /// The last lines that it printed, without those that it prints always.
    fn last_words(&self) -> Vec<String> {
        let always = |line: &String| line.starts_with("Don't run as root") || line.contains("to syslog");
        self.said.last(REPORTED_LINES).into_iter().filter(|line| !always(line)).collect()
    }
}

/// Checks that passt is installed and starts on this machine. Returns its path.
///
/// # Errors
/// Fails if it does not.
pub(crate) async fn check() -> Result<PathBuf, PasstError> {
    let plan = plan(&mut [Net::user()], false)?.ok_or(ToolError::Missing(PASST))?;
    plan.listen(&Forwards::default()).await?;
    Ok(plan.program)
}

/// Replaces each port 0 by a free one.
fn with_free_ports(mut forwards: Forwards) -> io::Result<Forwards> {
    // All are open at once, so that they differ.
    let mut listeners = Vec::new();
    for forward in forwards.all_mut().filter(|forward| forward.host.port() == 0) {
        let listener = TcpListener::bind(forward.host)?;
        forward.host.set_port(listener.local_addr()?.port());
        listeners.push(listener);
    }
    Ok(forwards)
}

/// A filter that lets `connect` fail with EACCES, and allows every other system call.
fn without_connect() -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    let denied = SeccompAction::Errno(libc::EACCES.unsigned_abs());
    SeccompFilter::new([(libc::SYS_connect, vec![])].into(), SeccompAction::Allow, denied, arch)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::vm::qemu::Forward;

    fn plan_of(nets: &[&str], config: bool) -> Result<Option<Plan>, String> {
        let mut nets: Vec<Net> = nets.iter().map(|net| net.parse().unwrap()).collect();
        plan(&mut nets, config).map_err(|error| error.to_string())
    }

    #[test]
    fn passt_is_refused_where_it_cannot_keep_what_is_promised() {
        let slirp = |nets: &[&str], config| assert!(plan_of(nets, config).unwrap().is_none(), "{nets:?}");
        slirp(&["tap=a"], false);
        slirp(&["user,backend=slirp"], false);
        slirp(&["user", "tap=a"], false);
        slirp(&["user"], true);
        slirp(&["user,ip=10.0.0.9/32"], false);
        for (nets, config, why) in [
            (&["user,backend=passt"][..], true, "passt cannot serve the interfaces of the config; use backend=slirp"),
            (&["tap=a", "user,backend=passt"], false, "passt serves `user` only if that is the only network; use backend=slirp"),
            (
                &["user,backend=passt,ip=192.168.7.2/24"],
                false,
                "passt needs an address for the gateway that is not the guest's; use backend=slirp",
            ),
        ] {
            assert_eq!(plan_of(nets, config).unwrap_err(), why);
        }
    }

    #[test]
    fn arguments_say_addresses_and_ports() {
        let net: Net = "user,ip=192.168.76.9/24,mtu=1400".parse().unwrap();
        let (guest, gateway) = net.user_ends().unwrap();
        let plan = Plan { program: "passt".into(), required: true, guest, gateway, mtu: net.mtu };
        let forward = |host: &str, guest_port| Some(Forward { host: host.parse().unwrap(), guest_port });
        let forwards =
            Forwards { registry: forward("0.0.0.0:5001", 5000), metrics: forward("127.0.0.1:9090", 9090), further: vec![] };
        assert_eq!(
            plan.arguments(&forwards).join(" "),
            "--foreground --quiet --ipv4-only --no-udp --no-icmp --no-map-gw --no-dhcp-dns --no-dhcp-search --pid /dev/stdout \
             --interface lo --address 192.168.76.9 --netmask 24 --gateway 192.168.76.2 --mac-addr 52:55:c0:a8:4c:02 --mtu 1400 \
             --tcp-ports 0.0.0.0/5001:5000 --tcp-ports 127.0.0.1:9090/9090:9090"
                .replace("127.0.0.1:9090/", "127.0.0.1/")
        );
    }

    #[test]
    fn free_ports_differ_and_given_ones_stay() {
        let forward = |port| Some(Forward { host: std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), guest_port: 1 });
        let chosen = with_free_ports(Forwards { registry: forward(0), metrics: forward(0), further: vec![] }).unwrap();
        let [one, other] = chosen.all()[..] else { panic!("two") };
        assert!(one.host.port() != 0 && other.host.port() != 0 && one.host != other.host);
        let given = with_free_ports(Forwards { registry: forward(5001), metrics: None, further: vec![] }).unwrap();
        assert_eq!(given.all()[0].host.port(), 5001);
    }
}
