"""Faults of every kind: each ends as docs/faults.md says, and the result is that of a calm run."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyogrio
import pytest
import rasterio
from painted import Scene, blob_scene
from runs import (
    NORTH_UP,
    TILES,
    UTM,
    all_gone,
    calls,
    command,
    end,
    events_of,
    family,
    finish,
    manifest_of,
    parts_of,
    start,
    table,
    wait_for,
)
from stubs import Stub

from geoseg.config import DetectSettings
from geoseg.errors import ConfigError, OutputError, SourceError, TileError, TooManyErrorsError
from geoseg.imagery.grid import TileGrid
from geoseg.jobs import executor
from geoseg.jobs.executor import Workers
from geoseg.jobs.ledger import RunDirectory
from geoseg.jobs.pipeline import run_detect

GRID = TileGrid(520, 520, 128, 32, 224)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return blob_scene(5, size=520, count=110, large=1)


@pytest.fixture
def image(make_raster, scene) -> Path:
    return make_raster("painted.tif", scene.pixels, transform=NORTH_UP, crs=UTM)


def settings(image: Path, **changes) -> DetectSettings:
    return DetectSettings(images=(str(image),), **(TILES | {"workers": 1} | changes))


@pytest.fixture
def whole(image, tmp_path) -> list[tuple]:
    output = tmp_path / "whole.gpkg"
    run_detect(settings(image, output=output), Stub())
    return table(output)


def only_in(scene: Scene, row: int, col: int) -> int | None:
    """Return the id of an object that one tile alone can see (of 128 px it shares 32 a side)."""
    y, x = row * 96, col * 96
    box = np.s_[y + 32 : y + 96, x + 32 : x + 96]
    inside, rest = scene.ids[box], scene.ids.copy()
    rest[box] = 0
    found = np.setdiff1d(inside, rest)
    return int(found[-1]) if len(found) else None


# --- killed processes ------------------------------------------------------------------------


def killed_at(image: Path, output: Path, seed: int) -> bool:
    """Kill a run at a random moment; tells whether it was still at work."""
    rng = random.Random(seed)
    workers = rng.choice([1, 2])
    run = start(command(image, output, workers=workers), STUB_SLEEP="0.03")
    if rng.random() < 0.7:
        # among the supertiles, the joins and the writing
        wait_for(lambda: parts_of(output) or run.poll() is not None)
        time.sleep(rng.uniform(0, 1.5))
    else:
        time.sleep(rng.uniform(0.3, 3))
    alive = run.poll() is None
    processes = family(run) if alive else []
    run.kill()
    run.communicate()
    assert all_gone(processes)
    return alive


def resumes_like_undisturbed(image, whole, tmp_path, seeds):
    at_work = 0
    for seed in seeds:
        output = tmp_path / f"{seed}.gpkg"
        at_work += killed_at(image, output, seed)
        before = {p: p.stat().st_mtime_ns for p in parts_of(output)}
        status, _, err = finish(command(image, output))
        assert status == 0, f"seed {seed}: {err}"
        assert table(output) == whole, f"seed {seed}"
        # what was finished stays as it was
        assert all(p.stat().st_mtime_ns == then for p, then in before.items())
        assert sqlite3.connect(output).execute("PRAGMA integrity_check").fetchone() == ("ok",)
        left = [p.name for p in tmp_path.glob(f".{seed}-*")]
        shutil.rmtree(output.with_suffix(".geoseg-run"))
        assert len(left) <= 1, "of a killed writer one scratch folder may be left"
    return at_work


def test_killed_at_random_points(image, whole, tmp_path):
    assert resumes_like_undisturbed(image, whole, tmp_path, range(5)) >= 3


@pytest.mark.slow
def test_killed_at_twenty_random_points(image, whole, tmp_path):
    assert resumes_like_undisturbed(image, whole, tmp_path, range(100, 120)) >= 12


@contextmanager
def chaos(cluster, mode: str):
    from distributed.chaos import KillWorker

    cluster.client.register_plugin(KillWorker(delay="3 s", mode=mode))
    yield cluster


@pytest.mark.parametrize("mode", ["sys.exit", "graceful", "segfault"])
def test_workers_that_die_at_random(image, whole, tmp_path, monkeypatch, mode):
    local = executor.local_cluster

    @contextmanager
    def deadly(count, gpus=()):
        with local(count, gpus) as cluster, chaos(cluster, mode) as killed:
            yield killed

    monkeypatch.setattr(executor, "local_cluster", deadly)
    deaths = 0
    for attempt in range(4):
        output = tmp_path / f"{attempt}.gpkg"
        found = run_detect(settings(image, output=output, workers=2), Stub(sleep=0.25))
        assert (found.exit_code, found.tiles_failed, found.supertiles) == (0, 0, {"done": 9})
        assert table(output) == whole
        deaths = sum(e["event"] == "worker lost" for e in events_of(output))
        if deaths:
            break
    assert deaths, "nobody died: nothing was tested"


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
    found = run_detect(settings(image, output=output, workers=2), Stub(kill=killer))
    assert (found.exit_code, found.tiles_failed) == (3, 1)
    assert found.supertiles == {"done": grid.n_supertiles}
    (lost,) = manifest_of(output)["failed_tiles"]
    assert lost["tile"] == [row, col]
    assert lost["reason"].startswith("the worker processes that ran it died")
    # innocent tiles: all others were run
    coverage = pyogrio.read_dataframe(output, layer="coverage")
    assert coverage["tiles_run"].sum() == 195
    run_detect(settings(image, output=calm), Stub())
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
    again = run_detect(settings(image, output=output), Stub())
    assert again.exit_code == 0
    assert table(output) == table(calm)


def test_a_dead_scheduler_ends_the_run_and_the_same_command_goes_on(image, whole, tmp_path):
    output = tmp_path / "o.gpkg"
    run = start(command(image, output, workers=2), STUB_SLEEP="0.3")
    wait_for(lambda: len(parts_of(output)) >= 2)
    processes = family(run)
    (scheduler,) = [p for p in processes if "distributed.Scheduler" in " ".join(p.cmdline())]
    scheduler.kill()
    status, _, err = end(run)
    assert status == 1
    assert "the connection to the scheduler was lost" in err.splitlines()[-1]
    assert "the same command goes on from there" in err.splitlines()[-1]
    assert "Traceback" not in err, err
    assert all_gone(processes)
    status, _, err = finish(command(image, output, workers=2))
    assert status == 0, err
    assert table(output) == whole


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
def test_a_full_disk_stops_the_run_and_the_output_stays(
    image, whole, tmp_path, monkeypatch, size, what
):
    output, log = tmp_path / "o.gpkg", tmp_path / "calls"
    run_detect(settings(image, output=output), Stub())
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
    monkeypatch.setenv("STUB_CALLS", str(log))
    status, _, err = finish(command(image, output))
    assert status == 0, err
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
    status, _, err = finish(command(image, output))
    assert status == 0, err
    assert table(output) == whole


# --- images that are damaged or change -------------------------------------------------------

CODECS = ["deflate", "lzw", "zstd", "packbits", "lzma", "lerc", "webp"]


def write_tiled(path: Path, scene: Scene, codec: str) -> Path:
    profile = {
        "driver": "GTiff", "count": 2, "height": 520, "width": 520, "dtype": "uint16",
        "crs": UTM, "transform": NORTH_UP, "tiled": True, "blockxsize": 64, "blockysize": 64,
        "compress": codec, "interleave": "pixel",
    }  # fmt: skip
    if codec == "lerc":
        profile["max_z_error"] = 0
    with rasterio.open(path, "w", **profile) as dst:
        dst.write(scene.pixels)
    return path


def spoil_block(path: Path, row: int, col: int) -> None:
    """Overwrite the stored bytes of one block."""
    with rasterio.open(path) as src:
        at, size = (
            int(src.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1))
            for what in ("OFFSET", "SIZE")
        )
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * size)


@pytest.mark.parametrize("codec", ["deflate", "lzw", "zstd", "lzma", "lerc"])
def test_a_spoilt_block_costs_the_tiles_that_touch_it(tmp_path, scene, codec):
    path = write_tiled(tmp_path / "a.tif", scene, codec)
    # block (3, 3) is rows and columns 192 to 255: tiles 1 (96 to 223) and 2 (192 to 319) see it
    spoil_block(path, 3, 3)
    output = tmp_path / "o.gpkg"
    found = run_detect(settings(path, output=output), Stub())
    assert found.exit_code == 3
    lost = {tuple(t["tile"]): t["reason"] for t in manifest_of(output)["failed_tiles"]}
    assert set(lost) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert all("cannot read rows" in reason for reason in lost.values())
    assert sum(found.supertiles.values()) == 9
    assert found.coverage["tiles_run"].sum() == 36 - 4


@pytest.mark.parametrize("codec", ["none", "deflate", "lzw", "zstd", "packbits", "lerc"])
def test_a_truncated_image_is_refused_before_any_work(tmp_path, scene, codec):
    path = write_tiled(tmp_path / "a.tif", scene, codec)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    output = tmp_path / "o.gpkg"
    with pytest.raises(SourceError, match="is truncated") as refused:
        run_detect(settings(path, output=output), Stub())
    assert refused.value.exit_code == 2
    assert not output.exists()
    assert not parts_of(output)


def test_an_image_that_changed_is_not_mixed_with_what_was_found(image, scene, tmp_path):
    output = tmp_path / "o.gpkg"
    job = settings(image, output=output, shard="1/2")
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
    run_detect(settings(image, output=tmp_path / "turned.gpkg"), Stub())
    assert table(output) == table(tmp_path / "turned.gpkg")


# --- how many errors are too many ------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_on_error_fail_ends_the_run(image, scene, tmp_path, workers):
    output = tmp_path / "o.gpkg"
    job = settings(image, output=output, on_error="fail", workers=workers)
    with pytest.raises(TileError, match=r"painted\.tif, supertile \(1, 1\) failed.*goes on") as end:
        run_detect(job, Stub(poison=only_in(scene, 2, 2)))
    assert end.value.exit_code == 1
    assert not output.exists()
    assert run_detect(job, Stub()).exit_code == 0


@pytest.mark.parametrize(("most", "code"), [(0, 4), (1, 4), (2, 3)])
def test_max_errors(image, scene, tmp_path, most, code):
    output = tmp_path / "o.gpkg"
    job = settings(image, output=output, max_errors=most)
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
    first = start(command(image, output), STUB_SLEEP="0.2")
    wait_for(lambda: parts_of(output))
    status, _, err = finish(command(image, output))
    assert status == 2
    assert f'is in use by another run ({{"pid": {first.pid},' in err
    assert end(first)[0] == 0


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
    run_detect(settings(image, output=output), Stub())
    old = table(output)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(OutputError, match=r"was not replaced: database is locked.*complete") as end:
        run_detect(settings(image, output=output, simplify=1.0), Stub())
    assert end.value.exit_code == 2
    (beside,) = tmp_path.glob("o.2*.gpkg")
    assert len(table(beside)) == len(old)
    holder.communicate(b"")
    assert table(output) == old
    # let go, the same command writes it, from what is finished
    log = tmp_path / "calls"
    run_detect(settings(image, output=output), Stub(str(log)))
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
    run_detect(settings(image, output=output), Stub())
    subprocess.run([sys.executable, "-c", HOT, str(output), mode], check=False)
    assert Path(f"{output}{sidecar}").stat().st_size > 0
    run_detect(settings(image, output=output, overwrite=True), Stub())
    assert not list(tmp_path.glob("o.gpkg-*"))
    assert sqlite3.connect(output).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert table(output) == whole


# --- shards ----------------------------------------------------------------------------------


def test_shards_side_by_side_are_the_single_run(image, whole, tmp_path):
    output, log = tmp_path / "o.gpkg", tmp_path / "calls"
    runs = [
        start(command(image, output, "--shard", f"{i}/3"), STUB_SLEEP="0.5", STUB_CALLS=str(log))
        for i in (1, 2, 3)
    ]
    wait_for(lambda: parts_of(output))
    status, _, err = finish(command(image, output))
    assert (status, "is in use by another run" in err) == (2, True)
    for i, run in enumerate(runs, start=1):
        status, out, err = end(run)
        assert status == 0, err
        assert "3 supertiles: 3 done" in out
        assert f"shard {i}/3 in " in out
    assert not output.exists()
    assert calls(log) == 36
    status, _, err = finish(command(image, output), STUB_CALLS=str(log))
    assert status == 0, err
    assert calls(log) == 36
    assert table(output) == whole


def test_a_shard_that_was_killed_is_made_up_for(image, whole, tmp_path):
    output = tmp_path / "o.gpkg"
    run = start(command(image, output, "--shard", "1/2"), STUB_SLEEP="0.2")
    wait_for(lambda: parts_of(output))
    run.kill()
    run.communicate()
    run_detect(settings(image, output=output, shard="2/2"), Stub())
    run_detect(settings(image, output=output), Stub())
    assert table(output) == whole


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", ""])
def test_no_share(image, tmp_path, text):
    with pytest.raises(ConfigError, match="expected i/n such as 2/4"):
        settings(image, output=tmp_path / "o.gpkg", shard=text)


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


# --- the executor ----------------------------------------------------------------------------


def live(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_only_the_task_that_kills_is_blamed():
    # the windows of two a worker keep what waits away from it; what was beside it is run alone
    with Workers(2) as workers:
        first = dict(workers.run(live, range(40)))
        failed = [task for task, outcome in first.items() if isinstance(outcome, Exception)]
        assert 7 in failed
        assert len(failed) <= 4
        alone = dict(workers.run(live, failed, alone=True))
    assert [task for task, outcome in alone.items() if isinstance(outcome, Exception)] == [7]


def test_tasks_are_taken_as_room_comes():
    taken = []

    def tasks():
        for number in range(50):
            taken.append(number)
            yield number

    with Workers(2) as workers:
        done = workers.run(abs, tasks())
        next(done)
        assert len(taken) <= 5
        assert sum(1 for _ in done) == 49


def ports(processes: list[psutil.Process]) -> set[str]:
    return {
        c.laddr.ip
        for p in processes
        for c in p.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    }


def test_nothing_listens_beyond_this_machine():
    with Workers(2) as workers:
        cluster = workers.start()
        wait_for(lambda: len(cluster.client.nthreads()) == 2)
        assert ports(psutil.Process().children(recursive=True)) == {"127.0.0.1"}


def which_gpu(_: int) -> tuple[str, int]:
    time.sleep(0.3)
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()


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
    thread = threading.Thread(target=lambda: found.append(run_detect(settings(image), Stub())))
    thread.start()
    thread.join()
    assert found[0].exit_code == 0


def test_the_manifest_tells_memory_by_stage(image, tmp_path):
    output = tmp_path / "o.gpkg"
    run_detect(settings(image, output=output), Stub())
    told = json.loads((tmp_path / "o.geoseg-run" / "run.json").read_text())
    assert list(told["peak_mb_by_stage"]) == ["supertiles", "joins", "output"]
    assert all(50 < value < 5000 for value in told["peak_mb_by_stage"].values())
    assert max(told["peak_mb_by_stage"].values()) == pytest.approx(told["peak_mb"], abs=0.1)
    assert told["state"] == "finished"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 >= told["peak_mb"] - 1
