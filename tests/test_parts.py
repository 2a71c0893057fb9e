"""What counts as finished: parts, the manifest, and who is blamed for a dead worker."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from runs import calls, events_of, job_over, manifest_of, parts_of, table
from stubs import Stub

from geoseg.errors import ConfigError, WorkerLostError
from geoseg.jobs import memory, parts, pipeline
from geoseg.jobs.executor import Workers
from geoseg.jobs.ledger import MANIFEST, RunDirectory
from geoseg.jobs.parts import Part, PartSummary, finished_part, write_part
from geoseg.jobs.pipeline import run_detect
from geoseg.jobs.supertile import run_supertile
from geoseg.jobs.tiles import run_tile
from geoseg.records import Fragments, Objects

BLANK = Part(PartSummary(0, (1, 2), "empty", tiles=4), Objects.empty(), Fragments.empty(), ())


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """What happens to files, in its order."""
    seen: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(descriptor):
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        seen.append(f"flush {name}")
        fsync(descriptor)

    def renamed(self, target):
        seen.append(f"{self.name} becomes {Path(target).name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    return seen


def test_a_part_is_on_the_disk_before_it_has_its_name(tmp_path, written):
    write_part(tmp_path / "k.parquet", BLANK)
    private = f".k.parquet.{os.getpid()}"
    assert written == [f"flush {private}", f"{private} becomes k.parquet"]
    assert finished_part(tmp_path / "k.parquet") == BLANK.summary


def test_a_manifest_is_on_the_disk_before_it_has_its_name(tmp_path, written):
    RunDirectory(tmp_path).write_manifest({"key": "k"})
    private = f".{MANIFEST}.{os.getpid()}"
    assert written == [f"flush {private}", f"{private} becomes {MANIFEST}"]


class PowerCutError(BaseException):
    """Nothing of ours runs any more."""


def test_a_writer_that_is_killed_leaves_no_part_and_no_half_manifest(tmp_path, monkeypatch):
    def cut(*args, **kwargs):
        raise PowerCutError

    RunDirectory(tmp_path).write_manifest({"key": "before"})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", cut)
        with pytest.raises(PowerCutError):
            write_part(tmp_path / "k.parquet", BLANK)
        with pytest.raises(PowerCutError):
            RunDirectory(tmp_path).write_manifest({"key": "after"})
    assert not (tmp_path / "k.parquet").exists()
    assert RunDirectory(tmp_path).read_manifest() == {"key": "before"}


def test_only_a_whole_part_under_its_own_name_is_finished(tmp_path):
    path = tmp_path / "k.parquet"
    write_part(path, BLANK)
    whole = path.read_bytes()
    for size in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert finished_part(path) is None, f"{size} of {len(whole)} bytes"
    path.write_bytes(whole)
    assert finished_part(path) == BLANK.summary
    assert finished_part(Path(shutil.copyfile(path, tmp_path / "other.parquet"))) is None
    assert finished_part(tmp_path / "none.parquet") is None
    left_out = PartSummary(0, (1, 2), "done", tiles_failed=((3, 4, "why"),))
    write_part(path, Part(left_out, BLANK.settled, BLANK.waiting, ()))
    assert finished_part(path) is None


def test_what_a_killed_writer_left_over_is_cleared_away(tmp_path):
    run_dir = RunDirectory(tmp_path)
    run_dir.prepare("k", {})
    write_part(run_dir.part("a"), BLANK)
    left = run_dir.parts / ".b.parquet.123"
    left.write_bytes(b"half")
    run_dir.prepare("k", {})
    assert [p.name for p in run_dir.parts.iterdir()] == ["a.parquet"]


def test_parts_that_are_spoilt_or_anothers_are_made_again(image, whole, tmp_path):
    output, log = tmp_path / "o.gpkg", tmp_path / "calls"
    run_detect(job_over(image, output=output), Stub())
    one, two, three, *others = parts_of(output)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    three.write_bytes(three.read_bytes()[:-20])
    kept = {path: path.stat().st_mtime_ns for path in others}
    (tmp_path / "o.geoseg-run" / "objects.parquet").unlink()
    assert run_detect(job_over(image, output=output), Stub(str(log))).exit_code == 0
    assert (table(output), calls(log)) == (whole, 3 * 4)
    assert {path: path.stat().st_mtime_ns for path in others} == kept


def test_the_run_knows_its_output_only_when_it_is_in_place(image, tmp_path, monkeypatch):
    output, seen = tmp_path / "o.gpkg", []
    write = pipeline.write_output

    def look(*args):
        noted = manifest_of(output)
        seen.append((noted["state"], "outputs" in noted, bool(noted["writing"])))
        write(*args)
        seen.append(("there", output.exists(), manifest_of(output)["state"]))

    monkeypatch.setattr(pipeline, "write_output", look)
    run_detect(job_over(image, output=output), Stub())
    assert seen == [("running", False, True), ("there", True, "running")]
    noted = manifest_of(output)
    assert (noted["state"], noted["writing"]) == ("finished", None)
    assert [mark["name"] for mark in noted["outputs"]["files"]] == ["o.gpkg"]


class Once(Stub):
    """Fails at the first call of all."""

    def __init__(self, failed: Path):
        super().__init__()
        self.failed = failed

    def __call__(self, tiles):
        if not self.failed.exists():
            self.failed.touch()
            raise OSError("the network drive was away for a moment")
        return super().__call__(tiles)


def test_what_fails_once_is_tried_again_and_costs_nothing(image, whole, tmp_path):
    output = tmp_path / "o.gpkg"
    found = run_detect(job_over(image, output=output), Once(tmp_path / "failed"))
    assert (found.exit_code, found.tiles_failed) == (0, 0)
    assert table(output) == whole
    told = Counter(e["event"] for e in events_of(output))
    assert (told["retried"], told["supertile failed"]) == (1, 0)


def test_another_run_in_the_same_directory_keeps_no_part(image, tmp_path):
    run_dir = tmp_path / "r"
    run_detect(job_over(image, run_dir=run_dir), Stub())
    before = {p.name for p in run_dir.glob("parts/*")}
    manifest = json.loads((run_dir / MANIFEST).read_text())
    assert manifest["state"] == "finished"
    other = job_over(image, run_dir=run_dir, min_score=0.7)
    with pytest.raises(ConfigError, match="other images, model or settings"):
        run_detect(other, Stub())
    assert {p.name for p in run_dir.glob("parts/*")} == before
    log = tmp_path / "calls"
    run_detect(job_over(image, run_dir=run_dir, min_score=0.7, overwrite=True), Stub(str(log)))
    assert calls(log) == 36
    assert not before & {p.name for p in run_dir.glob("parts/*")}


# --- who is blamed ---------------------------------------------------------------------------

KILLER = (3, 3)


class Deadly(Workers):
    """Workers that die with all they were given whenever a tile kills one of them.

    In rounds where tasks stand side by side every one of them is lost: the worst that can be.
    """

    asked: list[tuple[str, int, bool]] = []  # noqa: RUF012

    def run(self, function, tasks, *, alone=False, **how):
        if function not in (run_supertile, run_tile):
            yield from super().run(function, tasks, alone=alone, **how)
            return
        tasks = list(tasks)
        self.asked.append((function.__name__, len(tasks), alone))
        for task in tasks:
            if function is run_supertile:
                kills = KILLER in {t.index for t in task.tiles.supertile(*task.index).tiles}
            else:
                kills = task.tile.index == KILLER
            if kills or not alone:
                yield task, WorkerLostError("its worker died")
            else:
                yield task, self._try_here(function, task)


def test_nobody_is_blamed_for_standing_beside_the_one_that_kills(image, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "Workers", Deadly)
    monkeypatch.setattr(Deadly, "asked", [])
    output = tmp_path / "o.gpkg"
    found = run_detect(job_over(image, output=output), Stub())
    assert Deadly.asked == [
        ("run_supertile", 9, False),
        ("run_supertile", 9, True),
        # the one that killed alone too, tile by tile
        ("run_tile", 4, False),
        ("run_tile", 4, True),
    ]
    assert (found.exit_code, found.tiles_failed, found.supertiles) == (3, 1, {"done": 9})
    (lost,) = manifest_of(output)["failed_tiles"]
    assert (tuple(lost["tile"]), lost["reason"]) == (KILLER, "its worker died")
    assert found.coverage["tiles_run"].sum() == 35


def test_a_part_without_room_names_the_folder(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts.pq, "write_table", full)
    run = tmp_path / "o.geoseg-run"
    (run / "parts").mkdir(parents=True)
    with pytest.raises(parts.OutputError, match=r"o\.geoseg-run failed \(No space.*MB are free"):
        write_part(run / "parts" / "k.parquet", BLANK)
    assert not list((run / "parts").iterdir())


def test_freed_memory_is_kept_where_that_can_be_asked_for(monkeypatch):
    asked = []

    class Libc:
        def mallopt(self, option: int, value: int) -> int:
            asked.append(option)
            return 1

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Libc())
    memory.keep_freed_memory.cache_clear()
    memory.keep_freed_memory()
    memory.keep_freed_memory()
    # M_ARENA_MAX, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, once
    assert asked == [-8, -1, -3]
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    memory.keep_freed_memory.cache_clear()
    memory.keep_freed_memory()
