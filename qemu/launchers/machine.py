#!/usr/bin/env python3
"""A launcher in Python that starts QEMU itself with the machine definition in the parent folder. It does not run `localregistry`.

    qemu/launchers/machine.py DISK KERNEL INITRAMFS REPOSITORY:TAG

The kernel comes from `localregistry kernel`, the initramfs from `localregistry initramfs`. This program reads the events
(proto/JSON.md), pulls the image's manifest over TLS with the CA from the event `ready`, and shuts the machine down through the control
port. The variables MACHINE, APPEND and ACCEL set another definition, kernel command line and accelerators. Standard library only.
"""

import json
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.request

MACHINE = os.environ.get("MACHINE", str(pathlib.Path(__file__).resolve().parent.parent / "q35.cfg"))
APPEND = os.environ.get("APPEND", "console=ttyS0 panic=-1 loglevel=5 cryptomgr.notests noreplace-smp no_timer_check")
# If KVM opens but does not work, the boot never ends: set ACCEL=tcg then.
ACCEL = os.environ.get("ACCEL", "kvm tcg").split()
# Names for the certificate: the address at which this machine reaches the registry.
CONFIG = {"names": ["127.0.0.1"]}
# Time limit from QEMU's start to `ready`.
DEADLINE_SECONDS = 600


class Machine:
    """QEMU with an appliance in it. Leaving the `with` block kills QEMU."""

    def __init__(self, disk, kernel, initramfs):
        self._files = tempfile.TemporaryDirectory()
        config = pathlib.Path(self._files.name, "config.json")
        config.write_text(json.dumps(CONFIG))
        self.console = pathlib.Path(self._files.name, "console")
        # Connected sockets: they leave no files, and read end of file when QEMU ends.
        ours, theirs = {}, {}
        for port in ("events", "control", "qmp"):
            ours[port], theirs[port] = socket.socketpair()
        # The kernel kills QEMU if this program dies.
        command = ["setpriv", "--pdeathsig", "KILL", os.environ.get("QEMU", "qemu-system-x86_64")]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-cpu", "max,erms=off,fsrm=off"]
        for name in ACCEL:
            command += ["-accel", name]
        command += ["-readconfig", MACHINE, "-kernel", kernel, "-initrd", initramfs]
        command += ["-append", APPEND, "-set", f"drive.disk.file={disk}"]
        # Commas are doubled here, but not in -set.
        command += ["-fw_cfg", "name=opt/localregistry/config,file=" + str(config).replace(",", ",,")]
        command += ["-set", f"chardev.console.path={self.console}", "-set", "netdev.net0.hostfwd=tcp:127.0.0.1:0-:5000"]
        for port, end in theirs.items():
            command += ["-set", f"chardev.{port}.fd={end.fileno()}"]
        self.qemu = subprocess.Popen(command, pass_fds=[end.fileno() for end in theirs.values()], stdin=subprocess.DEVNULL)
        for end in theirs.values():
            end.close()
        self._control = ours["control"]
        self._qmp = ours["qmp"].makefile("rw")
        self._events = ours["events"].makefile()
        # A machine that hangs is killed, which ends its events.
        self._deadline = threading.Timer(DEADLINE_SECONDS, self.qemu.kill)
        self._deadline.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._deadline.cancel()
        self.qemu.kill()
        self.qemu.wait()
        self._files.cleanup()

    def event(self, kind):
        """Returns the next event of that kind. Earlier ones are skipped."""
        for line in self._events:
            event = json.loads(line)
            if kind in event:
                return event[kind]
            # The guest has stopped, and names its fault.
            if "done" in event:
                raise SystemExit(f"the guest stopped: {event['done']['reason']}")
        console = self.console.read_text(errors="replace") if self.console.exists() else ""
        raise SystemExit(f"QEMU ended with status {self.qemu.wait()} before `{kind}`\n{console}")

    def ready(self):
        """Waits until the registry is ready, and returns that event. There is no deadline afterwards."""
        ready = self.event("ready")
        self._deadline.cancel()
        return ready

    def ask(self, command, **arguments):
        """Returns QEMU's answer to a QMP command."""
        print(json.dumps({"execute": command, "arguments": arguments}), file=self._qmp, flush=True)
        for line in self._qmp:
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise SystemExit(f"QEMU refuses {command}: {answer['error']['desc']}")
        raise SystemExit(f"QEMU ended with status {self.qemu.wait()} and did not answer {command}")

    def port(self):
        """Returns the port of 127.0.0.1 that QEMU forwards to the registry."""
        self.ask("qmp_capabilities")
        # Protocol, descriptor, source address and port, destination address and port, …
        for row in self.ask("human-monitor-command", **{"command-line": "info usernet"}).splitlines():
            if "TCP[HOST_FORWARD]" in row:
                return int(row.split()[3])
        raise SystemExit("QEMU forwards no port")

    def shutdown(self):
        """Shuts the machine down, and returns its last event."""
        self._control.sendall(b'{"shutdown":{}}\n')
        done = self.event("done")
        if done.get("status", 0) != 0 or self.qemu.wait() != 0:
            raise SystemExit(f"did not shut down cleanly: {done}")
        return done


def main():
    if len(sys.argv) != 5:
        raise SystemExit("usage: machine.py DISK KERNEL INITRAMFS REPOSITORY:TAG")
    _, disk, kernel, initramfs, image = sys.argv
    repository, _, tag = image.rpartition(":")
    with Machine(disk, kernel, initramfs) as machine:
        ready = machine.ready()
        port = machine.port()
        trusting = ssl.create_default_context(cadata=ready["caPem"])
        kinds = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
        url = f"https://127.0.0.1:{port}/v2/{repository}/manifests/{tag}"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": kinds}), context=trusting) as response:
            digest = response.headers["Docker-Content-Digest"]
        request = machine.event("request")
        print(f"pulled {image} of {ready['images']} images, {digest}, and it saw {request['digest']}")
        done = machine.shutdown()
        print(f"shut down cleanly after {done['requests']} requests")


if __name__ == "__main__":
    main()
