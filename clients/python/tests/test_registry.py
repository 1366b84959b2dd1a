from __future__ import annotations

import os
import shutil
import signal
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import List

import pytest

from pytest_localregistry import LocalRegistryError, Registry, start

IMAGE = "test/hello:latest"
MANIFEST = "/v2/test/hello/manifests/latest"
BUSY = {"rules": [{"id": "busy", "match": {"endpoint": "manifest"}, "do": {"status": 503}}]}


def get(registry: Registry, path: str = MANIFEST) -> int:
    try:
        with registry.urlopen(path) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def gone(registry: Registry) -> None:
    assert not registry.event_log.parent.exists()
    with pytest.raises(urllib.error.URLError):
        registry.urlopen("/v2/")


@pytest.mark.parametrize("kind", ["machine", "layout"])
def test_registry_serves_and_tells_what_was_pulled(sample: Path, kind: str) -> None:
    if kind == "machine":
        registry = start(sample / "sample.erofs", memory=192, names=["registry.test"])
    else:
        registry = start(serve=sample / "sample", names=["registry.test"])
    with registry:
        assert registry.url == f"https://{registry.endpoint}" and registry.endpoint.startswith("127.0.0.1:")
        # The CA is trusted, and only by those who have it.
        with pytest.raises(urllib.error.URLError) as refused:
            urllib.request.urlopen(registry.url + "/v2/")
        assert isinstance(refused.value.reason, ssl.SSLError)
        assert get(registry) == 200
        assert registry.ca_file is not None
        for file in [registry.ca_file, registry.hosts_dir / registry.endpoint / "hosts.toml", registry.trust_dir / "images.txt"]:
            assert file.exists()
        registry.assert_pulled(IMAGE)
        registry.assert_pulled(f"{registry.endpoint}/{IMAGE}", times=1)
        registry.assert_not_pulled("test/other:1", wait=0)
        assert get(registry, "/v2/test/none/manifests/1") == 404

        for expected, failing in [
            ("it was expected to be pulled 2 times", lambda: registry.assert_pulled(IMAGE, times=2, wait=0)),
            ("it was expected to be pulled at least 2 times", lambda: registry.assert_pulled(IMAGE, at_least=2, wait=0)),
            ("it was expected to be pulled at most 0 times", lambda: registry.assert_pulled(IMAGE, at_most=0)),
            ("it was expected not to be pulled", lambda: registry.assert_not_pulled(IMAGE)),
            ("was not pulled by 192.0.2.1; it was", lambda: registry.assert_pulled(IMAGE, by="192.0.2.1", wait=0)),
            ("invalid value 'No/Name' for '--pulled <REF>'", lambda: registry.assert_pulled("No/Name")),
            ("the log has no plan of faults, and so no rule none", lambda: registry.assert_fault("none", wait=0)),
        ]:
            with pytest.raises(AssertionError) as raised:
                failing()
            assert expected in str(raised.value)
        with pytest.raises(LocalRegistryError, match="rule nothing: do: it does nothing"):
            registry.faults.add('{"rules": [{"id": "nothing"}]}')

        faults = registry.faults
        assert [rule.id for rule in faults.add(BUSY)] == ["busy"]
        assert get(registry) == 503
        registry.assert_fault("busy", hits=1)
        listed = faults.list()
        assert [rule.hits for rule in listed] == [1] and listed[0].rule["do"] == {"status": 503}
        faults.reset()
        assert faults.list()[0].hits == 0
        assert faults.replace('rules { id: "busier" do { status: 503 } }')[0].id == "busier"
        faults.remove("busier")
        faults.add(BUSY)
        assert len(faults.clear()) == 1 and faults.list() == [] and get(registry) == 200
        registry.assert_pulled(IMAGE, times=2)

        of_503 = [request for request in registry.requests() if request.status == 503]
        assert len(of_503) == 1 and of_503[0].fault == "busy" and not of_503[0].ok and of_503[0].by.version == 4
        pulls = registry.pulls()
        assert [(pull.status, pull.ok) for pull in pulls] == [(200, True), (404, False), (503, False), (200, True)]
        assert pulls[0].repository == "test/hello" and pulls[0].reference == "latest" and pulls[0].bytes > 0
        events = registry.events()
        assert {"fault", "faultsChanged", "warning"} <= {event.kind for event in events}
        assert [event.fault.match for event in events if event.fault] == [1]
        assert IMAGE in registry.pull_log() and "   503 " in registry.pull_log()
    gone(registry)
    # The log is whole, and still there for assertions.
    registry.assert_pulled(IMAGE, times=2)
    registry.close()


def test_registry_without_tls(sample: Path) -> None:
    with start(serve=sample / "sample", arguments=["--tls", "off"]) as registry:
        assert (registry.ca_file, registry.ssl_context, registry.url) == (None, None, f"http://{registry.endpoint}")
        assert registry.pull_log() == "no client has asked for an image\n"
        assert get(registry) == 200


def test_errors_have_the_message_of_the_program(sample: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.erofs"
    damaged.write_text("no disk")
    for begin, expected in [
        (lambda: start(), ["there is nothing to serve"]),
        (lambda: start("a", serve="b"), ["exclude each other"]),
        (lambda: start(serve="b", memory=1), ["no machine with serve=LAYOUT, so it takes no --memory"]),
        (lambda: start("none.erofs"), ["did not start: exit status 9", "cannot read the disk none.erofs: No such file", "The command was, in ", "run none.erofs --trust "]),
        (lambda: start(damaged), ["exit status 9", str(damaged)]),
        (lambda: start(serve=damaged), ["exit status 1", "is a file, expected the folder of an OCI image layout"]),
        (lambda: start(sample / "sample.erofs", arguments=["--flag"]), ["exit status 2", "unexpected argument '--flag'"]),
        (lambda: start("a", program=tmp_path), [f"the option program is '{tmp_path}'", f"{tmp_path}/bin/localregistry\n"]),
    ]:
        with pytest.raises(LocalRegistryError) as raised:
            begin()
        for words in expected:
            assert words in str(raised.value)


def test_program_is_found(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.which(os.environ.get("LOCALREGISTRY", "localregistry"))
    assert program
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "localregistry").symlink_to(program)

    def message() -> str:
        with pytest.raises(LocalRegistryError) as raised:
            start(serve=sample / "sample")
        return str(raised.value)

    monkeypatch.delenv("LOCALREGISTRY", raising=False)
    monkeypatch.setenv("PATH", f"/nowhere:{tmp_path}/bin")
    start(serve=sample / "sample").close()
    monkeypatch.setenv("PATH", "/nowhere")
    for words in ["the option program: not given\n", "LOCALREGISTRY: not set\n", "PATH: /nowhere\n"]:
        assert words in message()
    monkeypatch.setenv("LOCALREGISTRY", str(tmp_path))
    start(serve=sample / "sample").close()
    monkeypatch.setenv("LOCALREGISTRY", "/nowhere")
    assert "LOCALREGISTRY is '/nowhere'" in message() and "/nowhere/bin/localregistry\n" in message()


def test_registry_that_dies_is_an_error(sample: Path) -> None:
    registry = start(serve=sample / "sample")
    assert get(registry) == 200
    os.kill(server_in(registry.event_log.parent), signal.SIGKILL)
    while True:
        try:
            registry.urlopen("/v2/").close()
        except OSError:
            break
        time.sleep(0.02)
    with pytest.raises(LocalRegistryError, match="killed by signal 9"):
        registry.close()
    registry.assert_pulled(IMAGE, wait=0)
    gone(registry)


def server_in(folder: Path) -> int:
    """The process that has files in the folder."""
    found: List[int] = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        found += [int(process.parent.name)] if os.fsencode(folder) in words else []
    assert len(found) == 1
    return found[0]
