from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PULL = """
    def pull(registry, status=200):
        import urllib.error
        try:
            registry.urlopen("/v2/test/hello/manifests/latest").close()
            found = 200
        except urllib.error.HTTPError as error:
            found = error.code
        assert found == status
"""


def run(pytester: pytest.Pytester, *arguments: object) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *map(str, arguments))


def test_session_scope_is_one_registry_and_a_report_has_the_pulls_of_its_test(pytester: pytest.Pytester, sample: Path) -> None:
    pytester.makepyfile(
        PULL
        + """
    seen = []

    def test_first(localregistry):
        seen.append(localregistry.url)
        pull(localregistry)
        localregistry.assert_pulled("test/hello:latest", times=1)

    def test_second(localregistry):
        assert seen == [localregistry.url]
        localregistry.faults.add({"rules": [{"id": "teapot", "do": {"status": 418}}]})
        pull(localregistry, 418)
        while not any(request.status == 418 for request in localregistry.requests()):
            pass
        localregistry.faults.clear()
        localregistry.assert_pulled("test/hello:latest", times=2, wait=0)

    def test_without_a_registry():
        assert False
    """
    )
    result = run(pytester, "--localregistry-disk", sample / "sample.erofs")
    result.assert_outcomes(passed=1, failed=2)
    said = result.stdout.str()
    # One pull was before this test, and one is of this test.
    second = said[said.index("_ test_second _") : said.index("_ test_without_a_registry _")]
    assert "test/hello:latest was pulled once; it was expected to be pulled 2 times" in second
    assert "localregistry: pulls from https://127.0.0.1:" in second
    assert second.count("test/hello:latest  ") + second.count("   418 ") >= 1 and "   418 " in second.split("during this test")[1]
    assert "   200 " not in second.split("during this test")[1]
    assert "no client has asked for an image" in said[said.index("_ test_without_a_registry _") :]


def test_function_scope_and_factory_and_configuration(pytester: pytest.Pytester, sample: Path) -> None:
    (pytester.path / "images").symlink_to(sample / "sample")
    pytester.makeini(
        """
        [pytest]
        localregistry_serve = images
        localregistry_scope = function
        localregistry_arguments = --tls off
        """
    )
    pytester.makepyfile(
        PULL
        + """
    seen = set()

    def test_one(localregistry):
        seen.add(localregistry.url)
        assert localregistry.url.startswith("http://")
        pull(localregistry)

    def test_two(localregistry, localregistry_factory):
        other = localregistry_factory(serve="images")
        seen.update([localregistry.url, other.url])
        assert len(seen) == 3 and other.url.startswith("https://")
        pull(other)
        other.assert_pulled("test/hello:latest")
        localregistry.assert_not_pulled("test/hello:latest", wait=0)
    """
    )
    run(pytester).assert_outcomes(passed=2)
    # An option comes before the configuration.
    result = run(pytester, "--localregistry-scope", "session", "--localregistry-serve", "none")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*cannot open */none, expected the folder of an OCI image layout*"])


def test_mistakes_are_told(pytester: pytest.Pytester, sample: Path) -> None:
    pytester.makepyfile("def test_it(localregistry): pass")
    for arguments, expected in [
        ([], "*there is no disk to serve: give --localregistry-disk DISK or*"),
        (["--localregistry-disk", "none.erofs"], "*cannot read the disk */none.erofs: No such file or directory*"),
        (["--localregistry-disk", "x", "--localregistry-program", "/nowhere"], "*the option program is '/nowhere', where there is no program*"),
    ]:
        result = run(pytester, *arguments)
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines([expected])
        assert "Traceback" not in result.stdout.str()
    pytester.makeini("[pytest]\nlocalregistry_scope = module")
    result = run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*localregistry_scope is 'module'; expected session or function*"])


def test_each_worker_of_xdist_has_a_registry(pytester: pytest.Pytester, sample: Path) -> None:
    pytester.makepyfile(
        PULL
        + """
    import os, pathlib, pytest

    @pytest.mark.parametrize("number", range(6))
    def test_pull(localregistry, number):
        pull(localregistry)
        localregistry.assert_pulled("test/hello:latest")
        pathlib.Path(os.environ["PYTEST_XDIST_WORKER"]).write_text(localregistry.url)
    """
    )
    run(pytester, "-n", "2", "--localregistry-serve", sample / "sample").assert_outcomes(passed=6)
    urls = [file.read_text() for file in pytester.path.glob("gw*")]
    assert len(urls) == len(set(urls)) >= 1


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_pytest_that_is_killed(pytester: pytest.Pytester, sample: Path, by: signal.Signals) -> None:
    pytester.makepyfile(
        """
    import pathlib, signal

    def test_hangs(localregistry):
        path = pathlib.Path("folder.new")
        path.write_text(str(localregistry.event_log.parent))
        path.rename("folder")
        signal.pause()
    """
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--localregistry-serve", str(sample / "sample")]
    with subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.PIPE, start_new_session=True) as killed:
        told = pytester.path / "folder"
        while not told.exists():
            assert killed.poll() is None
            time.sleep(0.02)
        folder = Path(told.read_text())
        assert folder.exists()
        # As a terminal does.
        os.killpg(killed.pid, by)
        said = killed.communicate()[0].decode()
    assert killed.returncode == (2 if by == signal.SIGINT else -by)
    if by == signal.SIGINT:
        assert "KeyboardInterrupt" in said and "rror at teardown" not in said and not folder.exists()
    while folder.exists():
        time.sleep(0.02)
