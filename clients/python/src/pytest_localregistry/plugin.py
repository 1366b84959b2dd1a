"""The fixtures and options of pytest."""

from __future__ import annotations

import os
import time
import weakref
from typing import Any, Callable, Generator, Iterator, List, TypeVar, cast

import pytest

from ._program import LocalRegistryError
from ._registry import Registry, serving, start

_F = TypeVar("_F", bound=Callable[..., Any])

SCOPES = ("session", "function")
# How long a report waits for the events of requests that have just ended, in seconds.
SETTLE = 0.2
# With a type, which not every pluggy gives it.
_wrapper: Callable[[_F], _F] = pytest.hookimpl(hookwrapper=True)
# For each registry that serves when a test begins, the length of its log.
begun = pytest.StashKey["weakref.WeakKeyDictionary[Registry, int]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("localregistry", "a container registry for tests")
    group.addoption("--localregistry-disk", action="append", metavar="DISK", help="disk that the fixture `localregistry` serves from a machine (repeatable)")
    group.addoption("--localregistry-serve", metavar="LAYOUT", help="OCI image layout that it serves from this machine instead")
    group.addoption("--localregistry-program", metavar="PATH", help="the program, or the folder of a release [default: $LOCALREGISTRY, or that in PATH]")
    group.addoption("--localregistry-scope", choices=SCOPES, help="one registry for all tests (of a worker of xdist), or one for each [default: session]")
    parser.addini("localregistry_disk", "as --localregistry-disk; relative to this file", type="paths")
    parser.addini("localregistry_serve", "as --localregistry-serve; relative to this file", type="paths")
    parser.addini("localregistry_program", "as --localregistry-program", default="")
    parser.addini("localregistry_scope", "as --localregistry-scope", default="session")
    parser.addini("localregistry_arguments", "further arguments of `localregistry run` or `serve`", type="args")


def pytest_configure(config: pytest.Config) -> None:
    if _scope(config) not in SCOPES:
        raise pytest.UsageError(f"localregistry_scope is {_scope(config)!r}; expected session or function")


def _scope(config: pytest.Config) -> str:
    return str(config.getoption("localregistry_scope") or config.getini("localregistry_scope"))


def _scope_of(fixture_name: str, config: pytest.Config) -> Any:
    return _scope(config)


def _paths(config: pytest.Config, name: str) -> List[str]:
    given = config.getoption(f"localregistry_{name}")
    # Options are relative to the folder in which pytest was started.
    folder = config.invocation_params.dir
    chosen = [given] if isinstance(given, str) else given
    return [os.fspath(folder / one) for one in chosen] if chosen else [os.fspath(one) for one in config.getini(f"localregistry_{name}")]


def _start(config: pytest.Config, *disks: Any, **options: Any) -> Registry:
    __tracebackhide__ = True
    program = config.getoption("localregistry_program") or config.getini("localregistry_program") or None
    options.setdefault("program", program)
    try:
        return start(*disks, **options)
    except LocalRegistryError as error:
        pytest.fail(f"localregistry: {error}", pytrace=False)


def _close(registry: Registry) -> None:
    __tracebackhide__ = True
    try:
        registry.close()
    except LocalRegistryError as error:
        pytest.fail(f"localregistry: {error}\n{registry.pull_log()}", pytrace=False)


@pytest.fixture(scope=_scope_of)
def localregistry(pytestconfig: pytest.Config) -> Iterator[Registry]:
    """A registry that serves the disks of --localregistry-disk, or the layout of --localregistry-serve."""
    disks, layouts = _paths(pytestconfig, "disk"), _paths(pytestconfig, "serve")
    if pytestconfig.getoption("localregistry_serve"):
        disks = []
    elif pytestconfig.getoption("localregistry_disk"):
        layouts = []
    if not disks and not layouts:
        pytest.fail(
            "localregistry: there is no disk to serve: give --localregistry-disk DISK or --localregistry-serve LAYOUT, or set "
            "localregistry_disk or localregistry_serve in pytest's configuration",
            pytrace=False,
        )
    if len(layouts) > 1:
        pytest.fail("localregistry: localregistry_serve has several layouts; one is expected", pytrace=False)
    arguments = cast(List[str], pytestconfig.getini("localregistry_arguments"))
    registry = _start(pytestconfig, *disks, serve=layouts[0] if layouts else None, arguments=arguments)
    yield registry
    _close(registry)


@pytest.fixture
def localregistry_factory(pytestconfig: pytest.Config) -> Iterator[Callable[..., Registry]]:
    """Starts further registries, with the parameters of ``pytest_localregistry.start``. They end with the test."""
    started: List[Registry] = []

    def factory(*disks: Any, **options: Any) -> Registry:
        __tracebackhide__ = True
        registry = _start(pytestconfig, *disks, **options)
        started.append(registry)
        return registry

    yield factory
    for registry in reversed(started):
        _close(registry)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A registry that starts later has its whole log reported.
    item.stash[begun] = weakref.WeakKeyDictionary({registry: len(registry._log()) for registry in list(serving)})


@_wrapper
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    registries = list(serving)
    if not report.failed or not registries:
        return
    time.sleep(SETTLE)
    for registry in registries:
        since = item.stash[begun].get(registry, 0)
        report.sections.append((f"localregistry: pulls from {registry.url} during this test", registry.pull_log(since)))
