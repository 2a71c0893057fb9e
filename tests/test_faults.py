"""Faults of every kind: each ends as docs/faults.md says, and the result is that of a calm run."""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC as UTC_ZONE
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import psutil
import pyogrio
import pytest
import rasterio
from filelock import FileLock
from kills import random_kill, stage_lengths
from painted import Scene, blob_scene
from rasterio.windows import Window
from rasterio.windows import intersect as windows_meet
from runs import (
    NORTH_UP,
    UTM,
    all_gone,
    calls,
    children_like,
    command,
    end,
    events_of,
    family,
    finish,
    job_over,
    manifest_of,
    parts_of,
    start,
    table,
    wait_for,
)
from stubs import Bright, KillFew, Stub
from tasks import finish_and_die, live, which_gpu

from geoseg.errors import (
    ClusterError,
    ConfigError,
    DeviceError,
    OutputError,
    SourceError,
    TileError,
    TooManyErrorsError,
)
from geoseg.imagery.grid import TileGrid
from geoseg.jobs import cluster, executor
from geoseg.jobs.executor import Workers
from geoseg.jobs.ledger import RunDirectory
from geoseg.jobs.pipeline import run_detect

GRID = TileGrid(520, 520, 128, 32, 224)


def only_in(scene: Scene, row: int, col: int) -> int | None:
    """Return the id of an object that one tile alone can see (of 128 px it shares 32 a side)."""
    y, x = row * 96, col * 96
    box = np.s_[y + 32 : y + 96, x + 32 : x + 96]
    inside, rest = scene.ids[box], scene.ids.copy()
    rest[box] = 0
    found = np.setdiff1d(inside, rest)
    return int(found[-1]) if len(found) else None


# --- killed processes ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lengths(image, tmp_path_factory):
    """Return a function: how long each stage of an undisturbed run takes here, seconds."""
    folder = tmp_path_factory.mktemp("lengths")

    @lru_cache
    def measure(workers: int) -> dict[str, float]:
        output = folder / f"{workers}.gpkg"
        return stage_lengths(command(image, output, workers=workers), output, workers)

    return measure


def resumes_like_undisturbed(image, whole, lengths, tmp_path, seeds, **how):
    kills = []
    for seed in seeds:
        output = tmp_path / f"{seed}.gpkg"
        kill, redone = random_kill(random.Random(seed), image, output, lengths=lengths, **how)
        assert redone == 0, f"seed {seed}: {redone} supertiles beyond those in flight"
        assert table(output) == whole, f"seed {seed}"
        assert kill.scratch <= 1, "of a killed writer one scratch folder may be left"
        if kill.alive:
            kills.append(kill)
    return Counter(kill.stage for kill in kills)


def test_killed_at_random_points(image, whole, lengths, tmp_path):
    stages = resumes_like_undisturbed(image, whole, lengths, tmp_path, range(3), workers=1)
    assert stages, "no run was killed"


@pytest.mark.slow
def test_killed_at_twenty_random_points(image, whole, lengths, tmp_path):
    stages = resumes_like_undisturbed(image, whole, lengths, tmp_path, range(100, 120))
    assert stages.total() >= 14, stages
    assert len(stages) >= 4, stages


@pytest.mark.parametrize("mode", ["sys.exit", "graceful", "segfault"])
def test_workers_that_die_at_random(image, whole, tmp_path, monkeypatch, mode):
    local, tokens = executor.local_cluster, tmp_path / "dead"
    tokens.mkdir()

    @contextmanager
    def deadly(count, gpus=()):
        with local(count, gpus) as cluster:
            cluster.client.register_plugin(KillFew(tokens, most=3, delay="1 s", mode=mode))
            yield cluster

    monkeypatch.setattr(executor, "local_cluster", deadly)
    output = tmp_path / "o.gpkg"
    found = run_detect(job_over(image, output=output, workers=2), Stub(sleep=0.25))
    assert (found.exit_code, found.tiles_failed, found.supertiles) == (0, 0, {"done": 9})
    assert table(output) == whole
    events = Counter(e["event"] for e in events_of(output))
    assert events["worker lost"] >= 1, "nobody died: nothing was tested"
    assert events["supertile done"] == 9
    assert events["tile failed"] == 0


def test_one_tile_of_two_hundred_kills_its_workers(make_raster, tmp_path):
    scene = blob_scene(8, size=1376, count=500, large=2)
    image = make_raster("large.tif", scene.pixels, transform=NORTH_UP, crs=UTM)
    grid = TileGrid(1376, 1376, 128, 32, 224)
    assert grid.n_tiles == 196
    output, calm = tmp_path / "o.gpkg", tmp_path / "calm.gpkg"
    row, col, killer = next(
        (row, col, found)
        for row in range(5, 9)
        for col in range(5, 9)
        if (found := only_in(scene, row, col)) is not None
    )
    found = run_detect(job_over(image, output=output, workers=2), Stub(kill=killer))
    assert (found.exit_code, found.tiles_failed) == (3, 1)
    assert found.supertiles == {"done": grid.n_supertiles}
    (lost,) = manifest_of(output)["failed_tiles"]
    assert lost["tile"] == [row, col]
    assert lost["reason"].startswith("the worker processes that ran it died")
    # innocent tiles: all others were run
    coverage = pyogrio.read_dataframe(output, layer="coverage")
    assert coverage["tiles_run"].sum() == 195
    run_detect(job_over(image, output=calm), Stub())
    missing = {row[1] for row in table(calm)} - {row[1] for row in table(output)}
    window = grid.tile(row, col).window
    frame = pyogrio.read_dataframe(calm, layer="objects")
    place = frame[frame["uid"].isin(missing)].geometry.bounds.to_numpy()
    x0, y0 = 500_000 + 0.1 * window.col_off, 5_500_000 - 0.1 * window.row_off
    reach = 0.01
    assert 0 < len(missing) < 20
    assert (place[:, 2] > x0 - reach).all()
    assert (place[:, 0] < x0 + 12.8 + reach).all()
    assert (place[:, 3] > y0 - 12.8 - reach).all()
    assert (place[:, 1] < y0 + reach).all()
    # and with a detector that can stand it, the same command makes it whole
    again = run_detect(job_over(image, output=output), Stub())
    assert again.exit_code == 0
    assert table(output) == table(calm)


def test_a_dead_scheduler_ends_the_run_and_the_same_command_goes_on(image, whole, tmp_path):
    output = tmp_path / "o.gpkg"
    run = start(command(image, output, workers=2), STUB_SLEEP="0.3")
    wait_for(lambda: len(parts_of(output)) >= 2)
    processes = family(run)
    (scheduler,) = children_like(run, "distributed.Scheduler")
    scheduler.kill()
    status, _, err = end(run)
    assert status == 1
    assert "the connection to the scheduler was lost" in err.splitlines()[-1]
    assert "the same command goes on from there" in err.splitlines()[-1]
    assert "Traceback" not in err, err
    assert all_gone(processes)
    log, n_parts = tmp_path / "calls", len(parts_of(output))
    assert run_detect(job_over(image, output=output), Stub(str(log))).exit_code == 0
    assert (table(output), calls(log)) == (whole, 4 * (9 - n_parts))


def test_a_scheduler_that_is_gone_is_not_asked(monkeypatch):
    # whoever asks it waits as long as connecting may take
    wait = cluster._wait_for_workers

    def killed_before(client, count, started):
        started[0].kill()
        started[0].wait()
        wait(client, count, started)

    def killed_after(client, count, started):
        wait(client, count, started)
        started[0].kill()
        started[0].wait()

    for moment in (killed_before, killed_after):
        monkeypatch.setattr(cluster, "_wait_for_workers", moment)
        begun = time.monotonic()
        with (
            pytest.raises(ClusterError, match="connection to the scheduler was lost"),
            cluster.local_cluster(1) as joined,
        ):
            joined.look(force=True)
        assert time.monotonic() - begun < cluster.JOIN_S


# --- workers that are there and no use ------------------------------------------------------


class LostGpu(Stub):
    """Its GPU fails once; after that every call in that process fails, as CUDA's do."""

    lost_in: ClassVar[set[int]] = set()

    def __init__(self, said: Path, **kwargs):
        super().__init__(**kwargs)
        self.said = said

    def __call__(self, tiles):
        first = not self.said.exists()
        if first or os.getpid() in self.lost_in:
            self.lost_in.add(os.getpid())
            with self.said.open("a") as file:
                file.write(f"{os.getpid()}\n")
            raise RuntimeError("CUDA error: device-side assert triggered\nCompile with ...")
        return super().__call__(tiles)


def test_a_worker_whose_gpu_is_lost_leaves_and_nothing_is_lost_with_it(image, whole, tmp_path):
    output, said = tmp_path / "o.gpkg", tmp_path / "said"
    found = run_detect(job_over(image, output=output, workers=2), LostGpu(said, sleep=0.1))
    assert (found.exit_code, found.tiles_failed, found.supertiles) == (0, 0, {"done": 9})
    assert table(output) == whole
    assert len(said.read_text().splitlines()) == 1, "a process without a GPU was asked again"


def test_a_run_whose_gpu_is_lost_ends_and_the_same_command_goes_on(image, whole, tmp_path):
    output, said = tmp_path / "o.gpkg", tmp_path / "said"
    job = job_over(image, output=output)
    run_detect(replace(job, shard="1/3"), Stub())
    with pytest.raises(
        DeviceError, match=r"^the GPU failed: CUDA error: device-side.*goes on"
    ) as e:
        run_detect(job, LostGpu(said))
    assert e.value.exit_code == 1
    assert len(parts_of(output)) == 3
    # another process has a GPU again
    LostGpu.lost_in.clear()
    log = tmp_path / "calls"
    assert run_detect(job, LostGpu(said, calls=str(log))).exit_code == 0
    assert (table(output), calls(log)) == (whole, 24)


class Silent(Stub):
    """Holds the interpreter of the first process that comes, so that it answers nobody."""

    def __init__(self, begun: Path):
        super().__init__(sleep=0.05)
        self.begun = begun

    def __call__(self, tiles):
        try:
            self.begun.touch(exist_ok=False)
        except FileExistsError:
            return super().__call__(tiles)
        # unlike time.sleep, and like some C libraries
        ctypes.PyDLL(None).sleep(SILENT_S)
        return super().__call__(tiles)


SILENT_S = 300


def test_a_worker_that_answers_nobody_is_given_up(image, whole, tmp_path, monkeypatch):
    # after so long; below 5 s Dask does not go
    assert cluster._DASK["distributed.scheduler.worker-ttl"] == "15 minutes"
    monkeypatch.setitem(cluster._DASK, "distributed.scheduler.worker-ttl", "5 s")
    output = tmp_path / "o.gpkg"
    begun = time.monotonic()
    found = run_detect(job_over(image, output=output, workers=2), Silent(tmp_path / "begun"))
    assert time.monotonic() - begun < SILENT_S / 2
    assert (found.exit_code, found.tiles_failed, found.supertiles) == (0, 0, {"done": 9})
    assert table(output) == whole
    assert (tmp_path / "begun").exists()


class NoWorkers:
    """A client whose scheduler has no workers."""

    status = "running"

    def nthreads(self):
        return {}


def test_a_run_does_not_wait_for_workers_for_ever(monkeypatch):
    monkeypatch.setattr(cluster, "LOOK_EVERY_S", 0)
    seen = cluster.Cluster(NoWorkers())
    seen.look()
    monkeypatch.setattr(cluster, "NO_WORKER_S", -1)
    with pytest.raises(ClusterError, match=r"no worker has been there for.*same command again"):
        seen.look()


def test_time_zone_and_language_change_nothing(image, whole, tmp_path):
    output = tmp_path / "o.gpkg"
    before = datetime.now(UTC_ZONE)
    odd = {"TZ": "Asia/Kathmandu", "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8", "LANGUAGE": "de"}
    status, _, err = finish(command(image, output), **odd)
    assert status == 0, err
    assert table(output) == whole
    for event in events_of(output):
        at = datetime.fromisoformat(event["at"])
        assert at.utcoffset() == timedelta(0)
        assert before - timedelta(seconds=1) < at < datetime.now(UTC_ZONE)


# --- the disk --------------------------------------------------------------------------------


def limited(args: list[str], size: int) -> tuple[int, str]:
    """Run a command that may write files of so many bytes, as a quota would have it."""
    code = (
        "import resource, signal, subprocess, sys;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}));"
        "sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    )
    status, _, err = finish([sys.executable, "-c", code, *args])
    return status, err


@pytest.mark.parametrize(
    ("size", "what"), [(4_000, "writing in"), (60_000, r"writing .*o\.gpkg failed")]
)
def test_a_full_disk_stops_the_run_and_the_output_stays(image, whole, tmp_path, size, what):
    output, log = tmp_path / "o.gpkg", tmp_path / "calls"
    run_detect(job_over(image, output=output), Stub())
    old = output.read_bytes()
    for part in parts_of(output)[: 5 if size < 10_000 else 9]:
        part.unlink()
    (tmp_path / "o.geoseg-run" / "objects.parquet").unlink()
    status, err = limited(command(image, output, "--simplify", "0.5"), size)
    assert status == 2, err
    line = err.splitlines()[-1]
    assert re.search(what, line)
    assert "MB are free there" in line
    assert output.read_bytes() == old
    assert not list(tmp_path.glob(".o-*"))
    assert run_detect(job_over(image, output=output), Stub(str(log))).exit_code == 0
    assert table(output) == whole
    assert calls(log) == (20 if size < 10_000 else 0)


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=160k", "tmpfs", str(place)]
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, *options], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here; the quota above shows the same")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_small_disk_that_is_full(image, whole, small_disk):
    output = small_disk / "o.gpkg"
    status, _, err = finish(command(image, output))
    assert status == 2, err
    assert "No space left on device" in err.splitlines()[-1] or "disk is full" in err
    assert not output.exists()
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert run_detect(job_over(image, output=output), Stub()).exit_code == 0
    assert table(output) == whole


# --- images that are damaged or change -------------------------------------------------------

SEEN = ("lzw", "zstd", "lzma", "lerc", "deflate", "webp")
"""Codecs that do not decode what was overwritten; the others make pixels of almost any bytes."""
CODECS = (*SEEN, "jpeg", "packbits", "none")
LAYOUTS = {
    "tiled": {"tiled": True, "blockxsize": 64, "blockysize": 64},
    "striped": {"blockysize": 16},
    "bigtiff": {"tiled": True, "blockxsize": 64, "blockysize": 64, "bigtiff": "yes"},
}
SIDE, DAMAGED = 328, TileGrid(328, 328, 128, 32, 224)
"""4 x 4 tiles in 2 x 2 supertiles."""


@pytest.fixture(scope="module")
def small_scene() -> Scene:
    return blob_scene(6, size=SIDE, count=45, large=0)


def write_coded(path: Path, scene: Scene, codec: str, layout: str) -> Path:
    pixels = scene.pixels
    if codec in ("webp", "jpeg"):
        # these store three bands of bytes
        assert pixels.max() < 256
        pixels = np.concatenate([pixels, pixels[:1]]).astype(np.uint8)
    profile = {
        "driver": "GTiff", "count": len(pixels), "height": SIDE, "width": SIDE, "crs": UTM,
        "dtype": pixels.dtype.name, "transform": NORTH_UP, "compress": codec,
        "interleave": "pixel",
    }  # fmt: skip
    options = {"lerc": {"max_z_error": 0}, "webp": {"webp_lossless": True}}.get(codec, {})
    with rasterio.open(path, "w", **profile, **LAYOUTS[layout], **options) as dst:
        dst.write(pixels)
    return path


def stored(path: Path, row: int, col: int) -> tuple[int, int]:
    """Return where the bytes of a block lie, and how many they are."""
    with rasterio.open(path) as src:
        return tuple(
            int(src.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1))
            for what in ("OFFSET", "SIZE")
        )


def tiles_that_read(layout: str, row: int, col: int) -> set[tuple[int, int]]:
    """Return the tiles whose windows meet a block."""
    height = LAYOUTS[layout]["blockysize"]
    width = LAYOUTS[layout].get("blockxsize", SIDE)
    block = Window(col * width, row * height, width, height)
    rows, cols = DAMAGED.shape
    return {
        (r, c)
        for r in range(rows)
        for c in range(cols)
        if windows_meet(DAMAGED.tile(r, c).window, block)
    }


def lost_tiles(image: Path, output: Path, detector) -> dict[tuple[int, int], str]:
    """Run over a damaged image; all that is not left out must have been seen."""
    found = run_detect(job_over(image, output=output), detector)
    lost = {tuple(t["tile"]): t["reason"] for t in manifest_of(output)["failed_tiles"]}
    assert found.exit_code == (3 if lost else 0)
    assert found.tiles_failed == len(lost)
    assert sum(found.supertiles.values()) == DAMAGED.n_supertiles
    assert found.coverage["tiles_run"].sum() == DAMAGED.n_tiles - len(lost)
    return lost


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", SEEN)
def test_a_spoilt_block_costs_the_tiles_that_touch_it(tmp_path, small_scene, codec, layout):
    path = write_coded(tmp_path / "a.tif", small_scene, codec, layout)
    row, col = (7, 0) if layout == "striped" else (1, 3)
    at, size = stored(path, row, col)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * size)
    lost = lost_tiles(path, tmp_path / "o.gpkg", Stub())
    assert set(lost) == tiles_that_read(layout, row, col)
    assert 0 < len(lost) < DAMAGED.n_tiles
    assert all("cannot read rows" in reason for reason in lost.values())


@pytest.mark.parametrize("codec", CODECS)
def test_flipped_bytes_cost_no_tile_that_does_not_touch_them(tmp_path, small_scene, codec):
    # whether a codec sees them is its own affair (docs/faults.md): nobody else may suffer
    path = write_coded(tmp_path / "a.tif", small_scene, codec, "tiled")
    calm = path.read_bytes()
    row, col = 1, 3
    at, size = stored(path, row, col)
    rng, spoilt = np.random.default_rng(3), bytearray(calm)
    for place in rng.choice(size, min(60, size // 4), replace=False):
        spoilt[at + place] ^= int(rng.integers(1, 256))
    path.write_bytes(spoilt)
    lost = lost_tiles(path, tmp_path / "o.gpkg", Bright())
    touching = tiles_that_read("tiled", row, col)
    assert set(lost) in (set(), touching)
    if codec in ("lzw", "lerc", "webp", "lzma"):
        assert set(lost) == touching
    if codec == "none":
        assert not lost, "seen after all: docs/faults.md says it is not"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", CODECS)
def test_a_truncated_image_is_refused_before_any_work(tmp_path, small_scene, codec, layout):
    path = write_coded(tmp_path / "a.tif", small_scene, codec, layout)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    output = tmp_path / "o.gpkg"
    with pytest.raises(SourceError, match="is truncated") as refused:
        run_detect(job_over(path, output=output), Stub())
    assert refused.value.exit_code == 2
    assert not output.exists()
    assert not parts_of(output)


def test_what_was_not_imaged_and_what_is_empty_add_up_with_the_rest(make_raster, tmp_path):
    scene = blob_scene(5, size=520, count=110, large=1)
    pixels = scene.pixels
    # the left half holds no pixel, the lower right corner no object, one tile breaks the detector
    pixels[:, :, :260] = NODATA
    pixels[:, 150:, 260:] = 0
    path = make_raster("a.tif", pixels, nodata=NODATA)
    output, log = tmp_path / "o.gpkg", tmp_path / "calls"
    poison = int(pixels[0, :128, 450:].max())
    status, out, err = finish(command(path, output), STUB_CALLS=str(log), STUB_POISON=str(poison))
    assert status == 3, err
    coverage = pyogrio.read_dataframe(output, layer="coverage")
    states = Counter(coverage["status"])
    assert set(states) == {"done", "empty", "nodata"}
    assert sum(states.values()) == 9
    told = ", ".join(f"{states[s]} {s}" for s in ("done", "empty", "nodata"))
    assert told in out, out
    # no tile without a pixel was looked at, and the tiles add up too
    assert calls(log) >= coverage["tiles_run"].sum()
    assert coverage.loc[coverage["status"] == "nodata", "tiles_run"].sum() == 0
    assert coverage["tiles_failed"].sum() > 0


NODATA = 60_000


def test_an_image_that_changed_is_not_mixed_with_what_was_found(image, scene, tmp_path):
    image = Path(shutil.copyfile(image, tmp_path / "painted.tif"))
    output = tmp_path / "o.gpkg"
    job = job_over(image, output=output, shard="1/2")
    run_detect(job, Stub())
    n_parts = len(parts_of(output))
    assert 0 < n_parts < 9
    with rasterio.open(image, "r+") as dst:
        dst.write(np.rot90(scene.pixels, 2, (1, 2)))
    for changed in (job, replace(job, shard=None)):
        with pytest.raises(ConfigError, match=r"other images, model or settings.*--run-dir"):
            run_detect(changed, Stub())
    assert len(parts_of(output)) == n_parts
    run_detect(replace(job, shard=None, overwrite=True), Stub())
    run_detect(job_over(image, output=tmp_path / "turned.gpkg"), Stub())
    assert table(output) == table(tmp_path / "turned.gpkg")


# --- how many errors are too many ------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_on_error_fail_ends_the_run(image, scene, tmp_path, workers):
    output = tmp_path / "o.gpkg"
    job = job_over(image, output=output, on_error="fail", workers=workers)
    with pytest.raises(TileError, match=r"painted\.tif, supertile \(1, 1\) failed.*goes on") as end:
        run_detect(job, Stub(poison=only_in(scene, 2, 2)))
    assert end.value.exit_code == 1
    assert not output.exists()
    assert run_detect(replace(job, workers=1), Stub()).exit_code == 0


@pytest.mark.parametrize(("most", "code"), [(0, 4), (1, 4), (2, 3)])
def test_max_errors(image, scene, tmp_path, most, code):
    output = tmp_path / "o.gpkg"
    job = job_over(image, output=output, max_errors=most)
    two = TwoPoisons(only_in(scene, 0, 0), only_in(scene, 2, 2))
    if code == 3:
        found = run_detect(job, two)
        assert (found.exit_code, found.tiles_failed) == (3, 2)
    else:
        with pytest.raises(TooManyErrorsError, match=f"--max-errors allows {most}") as end:
            run_detect(job, two)
        assert end.value.exit_code == 4
        assert not output.exists()
    assert run_detect(job, Stub()).exit_code == 0


def test_max_errors_counts_tiles_of_one_supertile(image, scene, tmp_path):
    tiles = [(row, col) for row in (0, 1) for col in (0, 1)]
    one, two = [i for tile in tiles if (i := only_in(scene, *tile)) is not None][:2]
    with pytest.raises(TooManyErrorsError, match="2 tiles failed, --max-errors allows 1"):
        run_detect(job_over(image, run_dir=tmp_path / "r", max_errors=1), TwoPoisons(one, two))


class TwoPoisons(Stub):
    def __init__(self, *ids: int):
        super().__init__()
        self.ids = ids

    def __call__(self, tiles):
        if np.isin(tiles[:, 0], self.ids).any():
            raise ValueError("a tile that it cannot stand")
        return super().__call__(tiles)


# --- others in the way -----------------------------------------------------------------------


def test_a_second_run_in_the_same_directory_is_refused(image, tmp_path):
    output = tmp_path / "o.gpkg"
    first = start(command(image, output), STUB_GATE=str(tmp_path / "never"))
    wait_for((tmp_path / "o.geoseg-run" / "owner.json").exists)
    status, _, err = finish(command(image, output))
    assert status == 2
    assert f'is in use by another run ({{"pid": {first.pid},' in err
    assert first.poll() is None
    first.kill()
    end(first)
    # the lock goes with its process
    assert run_detect(job_over(image, output=output), Stub()).exit_code == 0


HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


def test_an_output_that_another_process_holds(image, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("geoseg.outputs.publish.LOCK_WAIT_S", 0.5)
    output = tmp_path / "o.gpkg"
    run_detect(job_over(image, output=output), Stub())
    old = table(output)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(OutputError, match=r"was not replaced: database is locked.*complete") as end:
        run_detect(job_over(image, output=output, simplify=1.0), Stub())
    assert end.value.exit_code == 2
    (beside,) = tmp_path.glob("o.2*.gpkg")
    assert len(table(beside)) == len(old)
    holder.communicate(b"")
    assert table(output) == old
    # let go, the same command writes it, from what is finished
    log = tmp_path / "calls"
    run_detect(job_over(image, output=output), Stub(str(log)))
    assert (table(output), calls(log)) == (whole, 0)


HOT = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA journal_mode=" + sys.argv[2])
database.execute("PRAGMA cache_size=1")
database.execute("CREATE TABLE filler (x)")
database.execute("BEGIN")
database.executemany("INSERT INTO filler VALUES (?)", [("y" * 500,)] * 2000)
if sys.argv[2] == "wal":
    database.execute("COMMIT")
os._exit(9)
"""


@pytest.mark.parametrize(("mode", "sidecar"), [("delete", "-journal"), ("wal", "-wal")])
def test_the_journal_of_a_killed_program_beside_the_output(image, whole, tmp_path, mode, sidecar):
    output = tmp_path / "o.gpkg"
    run_detect(job_over(image, output=output), Stub())
    subprocess.run([sys.executable, "-c", HOT, str(output), mode], check=False)
    assert Path(f"{output}{sidecar}").stat().st_size > 0
    run_detect(job_over(image, output=output, overwrite=True), Stub())
    assert not list(tmp_path.glob("o.gpkg-*"))
    assert sqlite3.connect(output).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert table(output) == whole


# --- shards ----------------------------------------------------------------------------------


def test_shards_side_by_side_are_the_single_run(image, whole, tmp_path):
    output, log, gate = tmp_path / "o.gpkg", tmp_path / "calls", tmp_path / "gate"
    runs = [
        start(command(image, output, "--shard", f"{i}/3"), STUB_CALLS=str(log), STUB_GATE=str(gate))
        for i in (1, 2, 3)
    ]
    wait_for(lambda: len(list((tmp_path / "o.geoseg-run").glob("owner-*-of-3.json"))) == 3)
    with pytest.raises(ConfigError, match="is in use by another run"):
        run_detect(job_over(image, output=output), Stub())
    gate.touch()
    for i, run in enumerate(runs, start=1):
        status, out, err = end(run)
        assert status == 0, err
        assert "3 supertiles: 3 done" in out
        assert f"shard {i}/3 in " in out
    assert not output.exists()
    assert calls(log) == 36
    assert run_detect(job_over(image, output=output), Stub(str(log))).exit_code == 0
    assert calls(log) == 36
    assert table(output) == whole


def test_a_shard_that_was_killed_is_made_up_for(image, whole, tmp_path):
    output = tmp_path / "o.gpkg"
    run = start(command(image, output, "--shard", "1/2"), STUB_SLEEP="0.2")
    wait_for(lambda: parts_of(output))
    run.kill()
    run.communicate()
    run_detect(job_over(image, output=output, shard="2/2"), Stub())
    run_detect(job_over(image, output=output), Stub())
    assert table(output) == whole


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", ""])
def test_no_share(image, tmp_path, text):
    with pytest.raises(ConfigError, match="expected i/n such as 2/4"):
        job_over(image, output=tmp_path / "o.gpkg", shard=text)


def test_shards_hold_their_locks_side_by_side(tmp_path):
    run_dir = RunDirectory(tmp_path / "run")
    with run_dir.locked((1, 2)):
        with run_dir.locked((2, 2)):
            assert run_dir.others_at_work((1, 2))
        assert not run_dir.others_at_work((1, 2))
        for shard in (None, (1, 2)):
            with pytest.raises(ConfigError, match="in use by another run"), run_dir.locked(shard):
                pass
    with run_dir.locked():
        pass


def test_a_shard_starts_while_another_looks_at_its_lock(tmp_path):
    run_dir = RunDirectory(tmp_path)
    looking = FileLock(tmp_path / "lock-2-of-3", thread_local=False)
    looking.acquire()
    threading.Timer(0.5, looking.release).start()
    with run_dir.locked((2, 3)):
        assert (tmp_path / "owner-2-of-3.json").exists()


# --- the executor ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two():
    with Workers(2) as workers:
        yield workers


def test_only_the_task_that_kills_is_blamed(two):
    # the windows of two a worker keep what waits away from it; what was beside it is run alone
    first = dict(two.run(live, range(40)))
    failed = [task for task, outcome in first.items() if isinstance(outcome, Exception)]
    assert 7 in failed
    assert len(failed) <= 4
    alone = dict(two.run(live, failed, alone=True))
    assert [task for task, outcome in alone.items() if isinstance(outcome, Exception)] == [7]
    assert sorted(first) == list(range(40))


def test_a_result_whose_worker_dies_before_it_is_fetched(two, tmp_path, monkeypatch):
    fetch, died = executor._HandOut._fetch, tmp_path / "died"

    def late(self, future):
        if died.exists():
            time.sleep(1)
        return fetch(self, future)

    monkeypatch.setattr(executor._HandOut, "_fetch", late)
    done = two.run(finish_and_die, [(i, str(died)) for i in range(4)])
    assert sorted(outcome for _, outcome in done) == [0, 1, 2, 3]
    assert died.exists()


def test_tasks_are_taken_as_room_comes(two):
    taken = []

    def tasks():
        for number in range(50):
            taken.append(number)
            yield number

    done = two.run(abs, tasks())
    next(done)
    assert len(taken) <= 5
    assert sum(1 for _ in done) == 49


def ports(processes: list[psutil.Process]) -> set[str]:
    found = set()
    for process in processes:
        with suppress(psutil.Error):
            found |= {
                c.laddr.ip
                for c in process.net_connections("inet")
                if c.status == psutil.CONN_LISTEN
            }
    return found


def test_nothing_listens_beyond_this_machine(two):
    cluster = two.start()
    wait_for(lambda: len(cluster.client.nthreads()) == 2)
    assert ports(psutil.Process().children(recursive=True)) == {"127.0.0.1"}


def test_each_worker_sees_its_own_gpu():
    with Workers(2, gpus=("3", "GPU-5")) as workers:
        cluster = workers.start()
        wait_for(lambda: len(cluster.client.nthreads()) == 2)
        seen = {outcome for _, outcome in workers.run(which_gpu, range(8), on_gpu=True)}
        info = cluster.client.scheduler_info(n_workers=-1)["workers"].values()
    assert {gpu for gpu, _ in seen} == {"3", "GPU-5"}
    assert len(seen) == 2
    assert [worker["resources"] for worker in info] == [{"GPU": 1}] * 2


def test_a_run_in_a_thread_has_no_signals_to_hear(image):
    found = []
    thread = threading.Thread(target=lambda: found.append(run_detect(job_over(image), Stub())))
    thread.start()
    thread.join()
    assert found[0].exit_code == 0


def test_the_manifest_tells_memory_by_stage(image, tmp_path):
    output = tmp_path / "o.gpkg"
    run_detect(job_over(image, output=output), Stub())
    told = json.loads((tmp_path / "o.geoseg-run" / "run.json").read_text())
    assert list(told["peak_mb_by_stage"]) == ["supertiles", "joins", "output"]
    assert all(50 < value < 5000 for value in told["peak_mb_by_stage"].values())
    assert max(told["peak_mb_by_stage"].values()) == pytest.approx(told["peak_mb"], abs=0.1)
    assert told["state"] == "finished"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 >= told["peak_mb"] - 1
