"""A cluster of the user's: joined only if its workers fit; the result is that of one process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import (
    TILES,
    command,
    end,
    environment,
    finish,
    parts_of,
    start,
    table,
    wait_for,
)

from geoseg.config import DetectSettings
from geoseg.errors import ClusterError, ConfigError
from geoseg.jobs import cluster
from geoseg.jobs.cluster import Joining, joined_cluster, scheduler_address
from geoseg.jobs.pipeline import run_detect
from geoseg.jobs.probe import Terms, problem_here, versions

Add = Callable[..., subprocess.Popen]


@pytest.fixture
def scheduler(tmp_path) -> Iterator[tuple[Path, Add]]:
    """The file of a scheduler on this machine, and a function that adds a worker to it."""
    file, started = tmp_path / "scheduler.json", []

    def run(*args: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *args],
            env=environment(STUB_SLEEP="0.1"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
        )
        started.append(process)
        return process

    def add(*args: str) -> subprocess.Popen:
        listen = ["--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--no-nanny"]
        return run("worker", "--scheduler-file", str(file), *listen, *args)

    run(
        "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
        "--scheduler-file", str(file),
    )  # fmt: skip
    wait_for(file.exists)
    yield file, add
    for process in started:
        process.kill()
        process.wait()


def test_the_users_cluster_gives_the_same(image, whole, scheduler, tmp_path):
    file, add = scheduler
    first, _ = add(), add()
    output = tmp_path / "o.gpkg"
    run = start(command(image, output, "--scheduler", str(file), workers=None))
    wait_for(lambda: parts_of(output))
    # workers go and come while it runs
    first.kill()
    add()
    status, _, err = end(run)
    assert status == 0, err
    assert table(output) == whole
    # it stays the user's: a second run finds it as it was
    status, _, err = finish(
        command(image, tmp_path / "p.gpkg", "--scheduler", str(file), workers=None)
    )
    assert status == 0, err


def test_a_missing_resource_is_refused(image, scheduler, tmp_path, monkeypatch):
    file, add = scheduler
    add("--resources", "GPU=1")
    job = {
        "images": (str(image),),
        "output": tmp_path / "o.gpkg",
        "scheduler": str(file),
        "detector": "stubs:make",
        **TILES,
    }
    assert run_detect(DetectSettings(**job, resource=("GPU=1",))).exit_code == 0
    assert cluster.JOIN_S < 60
    monkeypatch.setattr(cluster, "JOIN_S", 3.0)
    with pytest.raises(ClusterError, match="none of 1 workers has the resource FPGA=1; start"):
        run_detect(DetectSettings(**job | {"output": tmp_path / "p.gpkg"}, resource=("FPGA=1",)))


def test_a_worker_of_another_version_is_refused(image, scheduler, tmp_path):
    file, add = scheduler
    (tmp_path / "older.py").write_text("import geoseg\ngeoseg.__version__ = '0.0.9'\n")
    add("--preload", str(tmp_path / "older.py"))
    output = tmp_path / "o.gpkg"
    status, _, err = finish(command(image, output, "--scheduler", str(file), workers=None))
    assert status == 1
    assert "it has geoseg 0.0.9 instead of" in err
    assert "install the same versions there" in err
    assert "Traceback" not in err
    assert not parts_of(output)


def test_a_worker_of_another_version_that_comes_late_is_refused(image, whole, scheduler, tmp_path):
    file, add = scheduler
    (tmp_path / "older.py").write_text("import geoseg\ngeoseg.__version__ = '0.0.9'\n")
    add()
    output = tmp_path / "o.gpkg"
    run = start(command(image, output, "--scheduler", str(file), workers=None))
    wait_for(lambda: parts_of(output))
    late = add("--preload", str(tmp_path / "older.py"))
    status, _, err = end(run)
    # either it was too late to get a task, or the run says what is wrong with it
    assert status == 0 or "it has geoseg 0.0.9 instead of" in err
    late.kill()
    late.wait()
    status, _, err = finish(command(image, output, "--scheduler", str(file), workers=None))
    assert status == 0, err
    assert table(output) == whole


def test_no_worker_and_no_scheduler(scheduler, monkeypatch):
    file, _ = scheduler
    monkeypatch.setattr(cluster, "JOIN_S", 2.0)
    with (
        pytest.raises(ClusterError, match="has had no worker for 2 s"),
        joined_cluster(Joining(str(file))),
    ):
        pass
    with (
        pytest.raises(ClusterError, match="cannot connect to the scheduler"),
        joined_cluster(Joining("tcp://127.0.0.1:9")),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "insecure", "says"),
    [
        ("tcp://10.1.2.3:8786", False, "is plain tcp.*--insecure-cluster"),
        ("tcp://cluster:8786", False, "is plain tcp"),
        ("http://127.0.0.1:8786", True, "expected tcp://HOST:PORT or tls"),
        ("tcp://127.0.0.1", True, "expected tcp://HOST:PORT or tls"),
        ("not-there.json", True, "the file that dask scheduler --scheduler-file writes"),
        ("tcp://127.0.0.1:8786", False, None),
        ("tcp://localhost:8786", False, None),
        ("tcp://[::1]:8786", False, None),
        ("tcp://10.1.2.3:8786", True, None),
        ("tls://10.1.2.3:8786", False, None),
    ],
)
def test_addresses(address, insecure, says):
    if says is None:
        assert scheduler_address(address, insecure=insecure) == address
        return
    with pytest.raises(ConfigError, match=says):
        scheduler_address(address, insecure=insecure)


def test_options_that_contradict_each_other(tmp_path):
    for wrong, says in (
        ({"resource": ("GPU=1",)}, "name it with --scheduler"),
        ({"insecure_cluster": True}, "name it with --scheduler"),
        ({"scheduler": "tcp://127.0.0.1:1", "workers": 2}, "give one"),
        ({"scheduler": "tcp://127.0.0.1:1", "resource": ("GPU",)}, "expected NAME=AMOUNT"),
        ({"shard": "1/2"}, "needs --output or --run-dir"),
        ({"on_error": "hope"}, "expected skip or fail"),
        ({"max_errors": -1}, "--max-errors is -1"),
    ):
        with pytest.raises(ConfigError, match=says):
            DetectSettings(images=("a.tif",), **wrong)


def test_what_a_worker_must_have(tmp_path):
    weights, image, token = (tmp_path / name for name in ("w.safetensors", "a.tif", "token"))
    weights.write_bytes(b"weights")
    image.write_bytes(b"pixels")
    token.write_text("here")
    from geoseg.models.card import file_sha256

    good = {
        "versions": versions(),
        "model": str(weights),
        "weights": file_sha256(weights),
        "token": (str(token), "here"),
        "images": ((str(image), 6),),
    }
    assert problem_here(Terms(**good)) == ""
    for changed, says in (
        ({"versions": (("geoseg", "9"), *versions()[1:])}, "instead of 9"),
        ({"weights": "0" * 64}, "its weights w.safetensors are other ones"),
        ({"model": str(tmp_path / "none.safetensors")}, "it has no weights none.safetensors"),
        ({"token": (str(token), "elsewhere")}, "it does not see the run directory"),
        ({"token": (str(tmp_path / "no"), "here")}, "it does not see the run directory"),
        ({"images": ((str(image), 7),)}, "it does not see the image a.tif as it is here"),
    ):
        assert says in problem_here(Terms(**good | changed))
