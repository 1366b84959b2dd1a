"""Finds the program, and describes how it failed."""

from __future__ import annotations

import os
import shlex
import shutil
import textwrap
from pathlib import Path
from typing import Optional, Sequence, Union

StrPath = Union[str, "os.PathLike[str]"]

NAME = "localregistry"
VARIABLE = "LOCALREGISTRY"
# How many of the last characters of standard error are shown.
MAX_MESSAGES = 16 << 10


class LocalRegistryError(Exception):
    """The registry did not start, did not end well, or a command of the program failed. It has the program's messages."""


def find(option: Optional[StrPath]) -> str:
    """Returns the path of the program.

    Raises :class:`LocalRegistryError` with all places looked at.
    """
    chosen = [("the option program", os.fspath(option) if option else ""), (f"the environment variable {VARIABLE}", os.environ.get(VARIABLE, ""))]
    for by, given in chosen:
        if not given:
            continue
        looked = [Path(given).absolute(), Path(given, "bin", NAME).absolute(), Path(given, NAME).absolute()]
        for path in looked:
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
        places = "\n".join(f"    {path}" for path in looked)
        raise LocalRegistryError(f"{by} is {given!r}, where there is no program, nor a release with one. Looked at:\n{places}")
    found = shutil.which(NAME)
    if found:
        return os.path.abspath(found)
    raise LocalRegistryError(
        f"there is no program {NAME}. Looked at:\n    the option program: not given\n    the environment variable {VARIABLE}: not set\n"
        f"    PATH: {os.environ.get('PATH', '')}\n"
        f"Set {VARIABLE} to the program or to the folder of a release, or add its folder bin to PATH"
    )


def failure(what: str, command: Sequence[str], status: Optional[int], messages: str) -> LocalRegistryError:
    """Describes the end of a program."""
    ended = f"killed by signal {-status}" if status is not None and status < 0 else f"exit status {status}"
    if len(messages) > MAX_MESSAGES:
        messages = "…" + messages[-MAX_MESSAGES:]
    said = textwrap.indent(messages.rstrip("\n"), "    ")
    return LocalRegistryError(f"{what}: {ended}\n{said}\nThe command was, in {os.getcwd()}:\n    {shlex.join(command)}")
