"""Starts and ends a registry, and asks the program about it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import textwrap
import threading
import urllib.request
import weakref
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Type, Union

from ._events import Event, Request, parse
from ._program import LocalRegistryError, StrPath, failure, find

# How long a registry may take to end, in seconds. It lets transfers end for 10 s, and writes its events for 10 s.
GRACE = 40
# How long assertions wait by default, in seconds: for what is missing, and for what must not come.
WAIT_FOR_PULLS = 5
WAIT_FOR_NONE = 1
# What stands for the log, which may have lost its name.
LOG = "/dev/stdin"

#: The registries of this process that serve, for reports of failed tests.
serving: "weakref.WeakSet[Registry]" = weakref.WeakSet()


def start(
    *disks: StrPath,
    serve: Optional[StrPath] = None,
    net: Sequence[str] = (),
    memory: Optional[int] = None,
    names: Sequence[str] = (),
    boot_timeout: Optional[int] = None,
    faults: Optional[StrPath] = None,
    arguments: Sequence[str] = (),
    program: Optional[StrPath] = None,
) -> Registry:
    """Starts a registry and returns when it serves. It ends with its ``close()``, at the end of its ``with``, or with this process.

    :param disks: disks that ``localregistry pack`` made, which a virtual machine serves as one registry
    :param serve: the folder of an OCI image layout, which this machine serves, in place of disks: faster, and on the loopback only
    :param net: networks of the machine, as those of ``run --net``; by default a free port of 127.0.0.1 is forwarded to it
    :param memory: the machine's memory, in MiB
    :param names: further DNS names or IP addresses by which clients reach the registry, for its certificate
    :param boot_timeout: how long the machine may take to serve, in seconds
    :param faults: a file with a plan of faults, in force before the first request
    :param arguments: further arguments of ``localregistry run``, or of ``localregistry serve``
    :param program: the program or the folder of a release, in place of ``LOCALREGISTRY`` and ``PATH``
    :raises LocalRegistryError: if it does not start
    """
    machine: List[str] = []
    for network in net:
        machine += ["--net", network]
    if memory is not None:
        machine += ["--memory", str(memory)]
    if boot_timeout is not None:
        machine += ["--timeout", str(boot_timeout)]
    common: List[str] = []
    for name in names:
        common += ["--san", name]
    if faults is not None:
        common += ["--faults", os.fspath(faults)]
    if serve is None and not disks:
        raise LocalRegistryError("there is nothing to serve: a disk, or serve=LAYOUT, is missing")
    if serve is not None and disks:
        raise LocalRegistryError("a disk and serve=LAYOUT exclude each other: a machine serves disks, and this machine a layout")
    if serve is not None and machine:
        raise LocalRegistryError(f"there is no machine with serve=LAYOUT, so it takes no {machine[0]}")
    return Registry(find(program), [os.fspath(disk) for disk in disks], serve, [*machine, *common], list(arguments))


def _has(arguments: Sequence[str], option: str) -> bool:
    return any(argument == option or argument.startswith(option + "=") for argument in arguments)


class Registry:
    """A registry that serves. :func:`start` makes it."""

    url: str
    """Its URL, such as ``https://127.0.0.1:38807``."""
    endpoint: str
    """Its host and port, as they stand before the name of an image."""
    ca_file: Optional[Path]
    """A PEM file with its CA; ``None`` if it serves without TLS."""
    ssl_context: Optional[ssl.SSLContext]
    """A context that trusts its CA and no other; ``None`` without TLS."""
    trust_dir: Path
    """The folder that ``run --trust`` writes: what every container runtime needs to trust the registry."""
    hosts_dir: Path
    """The part of it for containerd: a folder ``certs.d`` with ``hosts.toml``, for ``config_path``."""
    event_log: Path
    """The file to which it writes its events, one JSON object a line. It is gone when the registry has ended."""

    def __init__(self, program: str, disks: Sequence[str], layout: Optional[StrPath], options: Sequence[str], arguments: Sequence[str]) -> None:
        """Use :func:`start`."""
        self._program = program
        self._folder = Path(tempfile.mkdtemp(prefix="localregistry-"))
        self.trust_dir = self._folder / "trust"
        self.hosts_dir = self.trust_dir / "containerd" / "certs.d"
        self.event_log = self._folder / "events.jsonl"
        self._closing = threading.Lock()
        self._closed = False
        if layout is None:
            words = ["run", *disks, *([] if _has(arguments, "--trust") else ["--trust", str(self.trust_dir)])]
        else:
            words = ["serve", os.fspath(layout), "--control", str(self._folder / "control")]
            words += [] if _has(arguments, "--listen") else ["--listen", "127.0.0.1:0"]
            words += [] if _has(arguments, "--tls") or _has(arguments, "--ca-out") else ["--ca-out", str(self._folder / "ca.crt")]
        own = ["--json", "--quiet", "--end-with-stdin", "--run-dir", str(self._folder), "--events", str(self.event_log)]
        self._command = [program, *words, *options, *own, *arguments]
        # A file, as a pipe would be held open by what the program starts. It has no name, so that nothing is left of it.
        self._messages: IO[bytes] = tempfile.TemporaryFile()
        try:
            # The registry ends when its standard input is closed, and so when this process ends in any way.
            # Ctrl-C does not reach it: fixtures and reports may still need it.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, start_new_session=True
            )
        except OSError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise LocalRegistryError(f"cannot start the program: {error}") from error
        try:
            self._await_ready(layout)
        except BaseException:
            with contextlib.suppress(LocalRegistryError):
                self._end()
            raise
        serving.add(self)

    def _await_ready(self, layout: Optional[StrPath]) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            # It has closed its standard output, and so it ends.
            self._stop()
            raise self._failure("the registry did not start")
        ready = json.loads(line)
        self.url = ready["endpoint"] if "endpoint" in ready else ready["endpoints"][0]
        self.endpoint = self.url.partition("://")[2]
        ca = ready.get("ca")
        self.ca_file = Path(ca) if ca else None
        self.ssl_context = ssl.create_default_context(cafile=ca) if ca else None
        handlers: List[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.ssl_context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=self.ssl_context))
        self._opener = urllib.request.build_opener(*handlers)
        self._events = open(self.event_log, "rb")
        if layout is not None:
            # `run` has written these files already.
            words = ["trust", "--quiet", "--endpoint", self.url, "--disk", os.fspath(layout), "--allow-missing", "--output", str(self.trust_dir)]
            self._run([*words, *(["--ca", str(self.ca_file)] if self.ca_file else [])])

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    def close(self) -> None:
        """Ends the registry. Events and assertions still work then. A second call does nothing.

        :raises LocalRegistryError: if it had failed, or did not end well
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
            serving.discard(self)
            self._end()

    def _end(self) -> None:
        """Ends the process, and removes its files."""
        try:
            if self._process.poll() is not None:
                raise self._failure("the registry ended before the test")
            if not self._stop():
                raise self._failure(f"the registry did not end within {GRACE} s and was killed")
            if self._process.returncode != 0:
                raise self._failure("the registry did not end well")
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._messages.close()
            # The program has removed it, unless it was killed.
            shutil.rmtree(self._folder, ignore_errors=True)

    def _stop(self) -> bool:
        """Ends the process. Returns false if it had to be killed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(GRACE)
            return True
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False

    def _failure(self, what: str) -> LocalRegistryError:
        self._messages.seek(0)
        said = self._messages.read().decode(errors="replace")
        return failure(what, self._command, self._process.returncode, said)

    def _run(self, words: Sequence[str], stdin: str = "") -> str:
        """Runs another command of the program to its end, and returns its output."""
        command = [self._program, *words]
        ended = subprocess.run(command, input=stdin, capture_output=True, encoding="utf-8", errors="replace")
        if ended.returncode != 0:
            raise failure(f"`localregistry {words[0]}` failed", command, ended.returncode, ended.stderr)
        return ended.stdout

    def _query(self, words: Sequence[str]) -> Tuple[int, str, str]:
        """Runs a command of the program on the event log. Returns its status, output and message."""
        ended = subprocess.run([self._program, *words, LOG], stdin=self._events, capture_output=True, encoding="utf-8", errors="replace")
        return ended.returncode, ended.stdout, ended.stderr.replace(LOG, str(self.event_log)).strip()

    def urlopen(self, path: str, headers: Optional[Mapping[str, str]] = None, method: str = "GET") -> HTTPResponse:
        """Opens a path of the registry, such as ``/v2/``, as ``urllib.request.urlopen`` does. Trusts the registry's CA alone."""
        request = urllib.request.Request(self.url + path, headers=dict(headers or {}), method=method)
        response: HTTPResponse = self._opener.open(request)
        return response

    def events(self) -> List[Event]:
        """What the registry has logged so far. The event of a request comes a moment after the client has the last byte of the response;
        :meth:`assert_pulled` waits for it."""
        return parse(self._log())

    def requests(self) -> List[Request]:
        """The requests that the registry has logged so far."""
        return [event.request for event in self.events() if event.request]

    def pulls(self) -> List[Request]:
        """The requests for manifests that are pulls, or that failed: see :attr:`Request.ok`. A pull is one complete response to a GET of an
        image's manifest."""
        _, log, _ = self._query(["events", "--json", "--quiet"])
        return [event.request for event in parse(log.encode()) if event.request]

    def pull_log(self, since: int = 0) -> str:
        """The table of ``localregistry events``: who pulled what so far, and what failed.

        :param since: how many of the log's first bytes are left out
        """
        log = self._log()[since:]
        ended = subprocess.run([self._program, "events", "--quiet", LOG], input=log, capture_output=True)
        table = ended.stdout.decode(errors="replace")
        # Its first line is the head.
        return table if len(table.splitlines()) > 1 else "no client has asked for an image\n"

    def _log(self) -> bytes:
        size = os.fstat(self._events.fileno()).st_size
        return os.pread(self._events.fileno(), size, 0)

    def assert_pulled(
        self,
        image: str,
        *,
        times: Optional[int] = None,
        at_least: Optional[int] = None,
        at_most: Optional[int] = None,
        by: Optional[str] = None,
        wait: Optional[int] = None,
    ) -> None:
        """Asserts that the image was pulled, at least once by default.

        :param image: the name that clients use, such as ``test/hello:1``, ``docker.io/library/busybox`` or ``test/hello@sha256:…``
        :param times: exactly so often
        :param at_least: so often or more
        :param at_most: so often or less
        :param by: only by the client with this IP address
        :param wait: how long the log is read again, in seconds; 0 judges it as it is. What can be broken until the last moment (``times``,
            ``at_most``, :meth:`assert_not_pulled`) takes the whole time, so that it is 1 s by default. Otherwise it is 5 s, and it ends as
            soon as there are enough pulls
        :raises AssertionError: with what the log shows instead
        """
        __tracebackhide__ = True
        words = ["--pulled", image]
        if at_least is not None:
            words += ["--at-least", str(at_least)]
        if at_most is not None:
            words += ["--at-most", str(at_most)]
        if times is not None and wait is None:
            # If there are too few, the next one says so.
            enough = times == 0 or not self._judge([*words, "--at-least", str(times)], by, WAIT_FOR_PULLS)
            wait = WAIT_FOR_NONE if enough else 0
        if times is not None:
            words += ["--times", str(times)]
        default = WAIT_FOR_NONE if at_most is not None else WAIT_FOR_PULLS
        self._assert(words, by, default if wait is None else wait)

    def assert_not_pulled(self, image: str, *, by: Optional[str] = None, wait: int = WAIT_FOR_NONE) -> None:
        """Asserts that the image was not pulled. For the parameters see :meth:`assert_pulled`."""
        __tracebackhide__ = True
        self._assert(["--not-pulled", image], by, wait)

    def assert_fault(self, rule: str, *, hits: Optional[int] = None, by: Optional[str] = None, wait: Optional[int] = None) -> None:
        """Asserts that the rule of the plan of faults acted, at least once by default. For the parameters see :meth:`assert_pulled`."""
        __tracebackhide__ = True
        default = WAIT_FOR_PULLS if hits is None else WAIT_FOR_NONE
        self._assert(["--fault", rule, *([] if hits is None else ["--hits", str(hits)])], by, default if wait is None else wait)

    def _assert(self, words: Sequence[str], by: Optional[str], wait: int) -> None:
        __tracebackhide__ = True
        message = self._judge(words, by, wait)
        if message:
            raise AssertionError(message)

    def _judge(self, words: Sequence[str], by: Optional[str], wait: int) -> str:
        """Runs ``localregistry assert``. Returns its message, if the log is not as expected."""
        client = [] if by is None else ["--by", by]
        status, _, message = self._query(["assert", "--quiet", "--wait", str(wait), *words, *client])
        return "" if status == 0 else message or f"`localregistry assert` failed with status {status}"

    @property
    def faults(self) -> Faults:
        """The registry's plan of faults."""
        return Faults(self)

    def __repr__(self) -> str:
        return f"<localregistry {getattr(self, 'url', 'that did not start')}>"


@dataclass(frozen=True)
class FaultRule:
    """A rule of the plan of faults."""

    id: str
    """Its id."""
    about: str
    """What it is for."""
    matches: int
    """How many requests matched it. Only :meth:`Faults.list` counts them."""
    hits: int
    """On how many of these it acted. Only :meth:`Faults.list` counts them."""
    rule: Dict[str, Any]
    """The whole rule."""


Plan = Union[str, Mapping[str, Any]]
Rules = List[FaultRule]


class Faults:
    """Changes the plan of faults of a registry: how it misbehaves, for which requests. When a method returns, the next request sees the change.

    A plan is JSON or prototext, or what ``json`` makes JSON of; ``docs/faults.md`` of the project describes plans. What the registry refuses
    raises :class:`LocalRegistryError`; then the plan is as before.
    """

    def __init__(self, registry: Registry) -> None:
        """Use :attr:`Registry.faults`."""
        self._registry = registry

    def add(self, plan: Plan) -> Rules:
        """Adds the rules of a plan to those in force, and returns them."""
        return self._command(["add", "-"], plan)

    def replace(self, plan: Plan) -> Rules:
        """Replaces all rules by those of a plan, at once, and returns them."""
        return self._command(["replace", "-"], plan)

    def remove(self, *ids: str) -> Rules:
        """Removes the rules with these ids, and returns them."""
        return self._command(["remove", "--", *ids])

    def clear(self) -> Rules:
        """Removes all rules, and returns them."""
        return self._command(["clear"])

    def reset(self) -> None:
        """Sets the counts of all rules to zero."""
        self._command(["reset"])

    def list(self) -> Rules:
        """The rules in force, with their counts."""
        return self._command(["list"])

    def _command(self, words: Sequence[str], plan: Plan = "") -> Rules:
        socket = str(self._registry._folder / "control")
        text = plan if isinstance(plan, str) else json.dumps(plan)
        result = json.loads(self._registry._run(["faults", "--json", "--quiet", socket, *words], text))
        return [FaultRule(one["id"], one["about"], one["matches"], one["hits"], json.loads(one["rule"])) for one in result["rules"]]
