//! A program that runs as a child of PID 1 in the VM and obeys the test: `tests/support/agent.c`.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use cpio::newc;

use crate::pack::PROGRAM;
use crate::vm::{qemu_changed, succeed};

/// The files and the socket of an agent.
pub struct Agent {
    socket: PathBuf,
    initramfs: String,
    qemu: String,
    stream: RefCell<Option<BufReader<UnixStream>>>,
}

impl Agent {
    /// Builds an agent in `folder`. `kernel` is appended to the kernel command line. `words` tell the agent what to set up before
    /// it starts the init.
    pub fn new(folder: &Path, kernel: &str, words: &str) -> Self {
        Self::changing(folder, &[("loglevel=5", &format!("loglevel=5 {kernel}"))], words)
    }

    /// Like [`Self::new`], with further replacements in QEMU's arguments.
    pub fn changing(folder: &Path, changes: &[(&str, &str)], words: &str) -> Self {
        let path = |name: &str| folder.join(name).display().to_string();
        fs::create_dir_all(folder).unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/support/agent.c");
        succeed(crate::program("musl-gcc").args(["-static", "-Os", "-s", "-o", &path("agent"), source]));
        succeed(crate::program(PROGRAM).args(["--quiet", "initramfs", "--output", &path("initramfs")]));
        // The kernel unpacks concatenated archives.
        let agent = fs::read(path("agent")).unwrap();
        let archive = fs::read(path("initramfs")).unwrap();
        let header = newc::Builder::new("agent").mode(0o100_755).nlink(1);
        let mut writer = header.write(archive, agent.len().try_into().unwrap());
        writer.write_all(&agent).unwrap();
        fs::write(path("initramfs"), newc::trailer(writer.finish().unwrap()).unwrap()).unwrap();
        // Arguments after `--` belong to the init, so they must come last.
        let last = ("loglevel=5", "loglevel=5 rdinit=/agent".to_owned());
        let end = ("no_timer_check", format!("no_timer_check -- {words}"));
        let changes = changes.iter().map(|(from, to)| (*from, (*to).to_owned())).chain([last, end]);
        let change = changes.map(|(from, to)| format!("args=(\"${{args[@]/{from}/{}}}\")", to.replace('/', "\\/")));
        let qemu = qemu_changed(folder, &format!("args=(\"$@\")\n{}", change.collect::<Vec<_>>().join("\n")));
        Self { socket: folder.join("socket"), initramfs: path("initramfs"), qemu, stream: RefCell::new(None) }
    }

    /// Arguments of `run` that boot with the agent.
    pub fn arguments(&self) -> Vec<String> {
        let socket = format!("socket,id=agent,path={},server=on,wait=off", self.socket.display());
        let further = ["-chardev", &socket, "-device", "virtserialport,chardev=agent,name=agent"];
        let further = further.iter().map(|word| format!("--qemu-arg={word}"));
        let own = ["--initramfs", &self.initramfs, "--qemu", &self.qemu].map(str::to_owned);
        own.into_iter().chain(further).collect()
    }

    /// Sends a command and returns the reply.
    pub fn ask(&self, command: &str) -> String {
        self.tell(command);
        let mut answer = String::new();
        self.stream.borrow_mut().as_mut().unwrap().read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    /// Sends a command without waiting for a reply.
    pub fn tell(&self, command: &str) {
        let mut stream = self.stream.borrow_mut();
        let stream = stream.get_or_insert_with(|| BufReader::new(UnixStream::connect(&self.socket).unwrap()));
        writeln!(stream.get_mut(), "{command}").unwrap();
    }

    /// Like [`Self::ask`], for a reply that is a number.
    pub fn number(&self, command: &str) -> u64 {
        let answer = self.ask(command);
        answer.parse().unwrap_or_else(|_| panic!("{command}: {answer}"))
    }
}
