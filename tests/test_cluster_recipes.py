"""The recipes of workflows/cluster, started as they stand; results are those of one process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosts import Host, hosts, ip, why_not, with_programs
from painted import blob_scene
from runs import (
    NORTH_UP,
    ROOT,
    TILES,
    UTM,
    calls,
    command,
    end,
    environment,
    events_of,
    parts_of,
    start,
    table,
    wait_for,
)
from stubs import Stub

from geoseg.config import DetectSettings
from geoseg.jobs.pipeline import run_detect

CLUSTER = ROOT / "workflows" / "cluster"
needs_hosts = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")


@pytest.fixture
def image(make_raster) -> Path:
    scene = blob_scene(5, size=520, count=110, large=1)
    return make_raster("painted.tif", scene.pixels, transform=NORTH_UP, crs=UTM)


@pytest.fixture
def whole(image, tmp_path) -> list[tuple]:
    output = tmp_path / "whole.gpkg"
    run_detect(DetectSettings(images=(str(image),), output=output, workers=1, **TILES), Stub())
    return table(output)


# --- plain: several hosts ---------------------------------------------------------------------


@needs_hosts
def test_hosts_are_removed_when_a_test_fails(tmp_path):
    before = ip("netns", "list")
    with pytest.raises(RuntimeError, match="a test"), hosts(tmp_path, 2) as (one, two):
        sleeper = one.start("sleep", "600")
        wait_for(lambda: str(sleeper.pid) in ip("netns", "pids", one.name).split())
        # each has its own address, and reaches the other
        check = two.start("bash", "-c", f"exec 3<>/dev/tcp/{one.address}/9")
        assert check.wait(30) != 0
        assert "Connection refused" in two.log.read_text()
        raise RuntimeError("a test that fails")
    assert sleeper.returncode == -signal.SIGKILL
    assert ip("netns", "list") == before


@needs_hosts
def test_plain_recipe_on_three_hosts(image, whole, tmp_path):
    output = tmp_path / "o.gpkg"
    with hosts(tmp_path, 3) as (head, *others):
        address = f"tcp://{head.address}:8786"
        head.start(CLUSTER / "plain" / "scheduler.sh", head.address)
        for host in others:
            host.start(
                CLUSTER / "plain" / "worker.sh", address, host.address,
                STUB_CALLS=str(tmp_path / f"{host.name}.calls"), STUB_SLEEP="0.1",
            )  # fmt: skip
        args = command(image, output, "--scheduler", address, workers=None)
        refused = head.start(*args)
        assert refused.wait(60) == 2
        assert "is plain tcp" in head.log.read_text()
        for host in others:
            wait_for(lambda host=host: len(host.listening()) == 2)
        run = head.start(*args, "--insecure-cluster")
        assert run.wait(180) == 0, head.log.read_text()
        # the recipe's ports, on the recipe's addresses, and no others
        assert head.listening() == {(head.address, 8786)}
        for host in others:
            assert host.listening() == {(host.address, 40000), (host.address, 40100)}
    assert table(output) == whole
    assert all(calls(tmp_path / f"{host.name}.calls") > 0 for host in others)


@needs_hosts
@pytest.mark.slow  # until the connection counts as dead, the better part of two minutes
def test_a_host_that_loses_its_network(image, whole, tmp_path):
    output = tmp_path / "o.gpkg"
    with hosts(tmp_path, 3) as (head, *others):
        address = f"tcp://{head.address}:8786"
        head.start(CLUSTER / "plain" / "scheduler.sh", head.address)
        for host in others:
            host.start(
                CLUSTER / "plain" / "worker.sh", address, host.address, STUB_SLEEP="0.5"
            )
            wait_for(lambda host=host: len(host.listening()) == 2)
        args = command(image, output, "--scheduler", address, "--insecure-cluster", workers=None)
        run = head.start(*args)
        wait_for(lambda: parts_of(output))
        others[0].cut_off()
        begun = time.monotonic()
        assert run.wait(300) == 0, head.log.read_text()
        print(f"went on after {time.monotonic() - begun:.0f} s")
    assert table(output) == whole
    assert [e["worker"] for e in events_of(output) if e["event"] == "worker lost"]
