"""Seeds and servers, made once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.server import ROOT, Server


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of sound files."""
    folder = tmp_path_factory.mktemp("seeds")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    more = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.seeds", str(folder)],
        env=os.environ | more, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server with all that geoseg imports but torch."""
    with Server() as started:
        yield started


@pytest.fixture(scope="module")
def torch_server() -> Iterator[Server]:
    """Return a server with torch."""
    with Server(torch=True) as started:
        yield started
