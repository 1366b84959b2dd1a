from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a layout ``sample`` and a disk ``sample.erofs``, which holds the same image."""
    folder = tmp_path_factory.mktemp("sample")
    program = os.environ.get("LOCALREGISTRY", "localregistry")
    for words in ("sample -o sample", "pack sample -o sample.erofs"):
        subprocess.run([program, "--quiet", *words.split()], cwd=folder, check=True)
    return folder
