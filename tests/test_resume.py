"""What fails, what is killed and what is done again: the result is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import geopandas as gpd
import numpy as np
import psutil
import pyogrio
import pytest
import shapely
from painted import Scene
from runs import UTM, calls, environment, job_over, table, wait_for
from stubs import Stub

from geoseg.errors import ConfigError, ModelError, OutputError
from geoseg.imagery.grid import TileGrid
from geoseg.jobs import pipeline
from geoseg.jobs.ledger import MANIFEST, RunDirectory
from geoseg.jobs.pipeline import run_detect
from geoseg.records import Instances


def alone(scene: Scene, box: tuple[slice, slice]) -> int:
    """Return the id of an object that no pixel outside a box belongs to."""
    inside, rest = scene.ids[box], scene.ids.copy()
    rest[box] = 0
    return int(np.setdiff1d(inside, rest)[-1])


@pytest.fixture
def poison(scene) -> int:
    """An object in the middle supertile that no other supertile shows."""
    return alone(scene, np.s_[224:384, 224:384])


# --- one supertile fails ---------------------------------------------------------------------


def test_a_failed_tile_is_said_and_tried_again_alone(image, scene, poison, tmp_path):
    output, log = tmp_path / "o.gpkg", tmp_path / "calls"
    first = run_detect(job_over(image, output=output), Stub(str(log), poison))
    assert first.exit_code == 3
    assert first.supertiles == {"done": 9}
    (lost,) = json.loads((first.run_dir / MANIFEST).read_text())["failed_tiles"]
    row, col = lost["tile"]
    coverage = pyogrio.read_dataframe(output, layer="coverage")
    hurt = coverage[coverage["tiles_failed"] > 0]
    assert hurt[["row", "col", "tiles_failed", "tiles_run"]].to_numpy().tolist() == [[1, 1, 1, 3]]
    assert hurt["reason"].iloc[0].startswith(f"1 of 4 tiles failed; tile ({row}, {col}): ")
    assert "a tile that it cannot stand" in hurt["reason"].iloc[0]
    assert (coverage.loc[coverage["tiles_failed"] == 0, "reason"] == "").all()
    # what lies outside that one tile is all there
    grid = TileGrid(520, 520, 128, 32, 224)
    window = grid.tile(row, col).window
    x, y = window.col_off, window.row_off
    place = shapely.transform(shapely.box(x, y, x + 128, y + 128), ground)
    truth = gpd.GeoSeries(shapely.transform(scene.truth()[0], ground), crs=UTM)
    away = truth[~truth.intersects(place)]
    assert len(truth) > len(away) > 80
    found = pyogrio.read_dataframe(output, layer="objects")
    assert all(found.intersects(t.representative_point()).any() for t in away)

    # the very same call replaces its own output, and runs that supertile only
    before = calls(log)
    second = run_detect(job_over(image, output=output), Stub(str(log)))
    assert (second.exit_code, second.supertiles) == (0, {"done": 9})
    assert calls(log) - before == 4
    run_detect(job_over(image, output=tmp_path / "whole.gpkg"), Stub())
    assert table(output) == table(tmp_path / "whole.gpkg")


def test_a_finished_run_again_does_and_writes_nothing(image, tmp_path):
    output, log = tmp_path / "o.gpkg", tmp_path / "calls"
    first = run_detect(job_over(image, output=output), Stub(str(log)))
    seen, written = calls(log), output.stat().st_mtime_ns
    second = run_detect(job_over(image, output=output), Stub(str(log)))
    assert (second.already_done, second.exit_code, second.n_objects) == (True, 0, first.n_objects)
    assert (calls(log), output.stat().st_mtime_ns) == (seen, written)
    assert second.objects["uid"].tolist() == first.objects["uid"].tolist()
    assert second.seams == first.seams
    # another outline: joined and written again from the same parts
    third = run_detect(job_over(image, output=output, simplify=2.0), Stub(str(log)))
    assert (third.already_done, calls(log)) == (False, seen)
    assert output.stat().st_mtime_ns != written


def test_an_output_that_changed_since_is_not_replaced(image, tmp_path):
    output = tmp_path / "o.parquet"
    run_detect(job_over(image, output=output), Stub())
    with output.open("ab") as file:
        file.write(b"somebody's edit")
    content = output.read_bytes()
    with pytest.raises(OutputError, match="was changed since this run wrote it; give --overwrite"):
        run_detect(job_over(image, output=output), Stub())
    assert output.read_bytes() == content
    run_detect(job_over(image, output=output, overwrite=True), Stub())
    assert output.read_bytes() != content


def test_somebody_elses_output_is_not_replaced(image, tmp_path):
    output = tmp_path / "o.gpkg"
    output.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists; give --overwrite"):
        run_detect(job_over(image, output=output), Stub())
    assert output.read_bytes() == b"mine"


def test_killed_after_the_output_was_put_in_place(image, tmp_path, monkeypatch):
    output = tmp_path / "o.gpkg"
    write = pipeline.write_output

    def killed(*args):
        write(*args)
        raise SystemExit

    monkeypatch.setattr(pipeline, "write_output", killed)
    with pytest.raises(SystemExit):
        run_detect(job_over(image, output=output), Stub())
    monkeypatch.setattr(pipeline, "write_output", write)
    assert output.exists()
    assert run_detect(job_over(image, output=output), Stub()).exit_code == 0


def ground(xy):
    return np.column_stack([500_000 + 0.1 * xy[:, 0], 5_500_000 - 0.1 * xy[:, 1]])


def test_imaged_share_leaves_out_what_failed(image, poison, tmp_path):
    regions = tmp_path / "regions.gpkg"
    gpd.GeoSeries([shapely.box(500_000, 5_499_948, 500_052, 5_500_000)], crs=UTM).to_file(regions)
    result = run_detect(
        job_over(image, regions=regions, run_dir=tmp_path / "r"), Stub(poison=poison)
    )
    (lost,) = json.loads((tmp_path / "r" / MANIFEST).read_text())["failed_tiles"]
    core = TileGrid(520, 520, 128, 32, 224).tile(*lost["tile"]).core
    expected = 1 - core.width * core.height / 520**2
    assert result.regions["imaged_share"].iloc[0] == pytest.approx(expected, abs=1e-3)


def nothing(tiles):
    return None


def too_few(tiles):
    return [Instances.empty()] * (len(tiles) - 1)


def no_instances(tiles):
    return [{"boxes": []} for _ in tiles]


def unknown_label(tiles):
    one = np.ones((1, 4, 4), np.float32)
    box = np.array([[0, 0, 20, 20]], np.float32)
    return [Instances(box, np.ones(1, np.float32), np.array([7]), one) for _ in tiles]


def bad_record(tiles):
    box = np.array([[0, 0, np.nan, 20]], np.float32)
    return [
        Instances(box, np.ones(1, np.float32), np.array([0]), np.ones((1, 4, 4))) for _ in tiles
    ]


@pytest.mark.parametrize(
    ("detector", "reason"),
    [
        (nothing, "returned NoneType for"),
        (too_few, "returned list of 0 for"),
        (no_instances, r"expected geoseg\.Instances, got dict"),
        (unknown_label, "label 7 is out of range; the detector names 1 classes"),
        (bad_record, "boxes or scores that are not finite"),
    ],
)
def test_a_detector_that_returns_rubbish_fails_with_a_reason(image, detector, reason):
    detector.classes = ("thing",)
    result = run_detect(job_over(image, supertile_size=1024), detector)
    assert (result.supertiles, result.exit_code, len(result.objects)) == ({"failed": 1}, 3, 0)
    assert result.coverage["reason"].str.contains(reason).all()
    assert result.tiles_failed == 36
    assert result.coverage["reason"].str.startswith("36 of 36 tiles failed; tile (0, 0): ").all()


@pytest.mark.parametrize("mask", [np.zeros((4, 4)), np.ones((1, 1))])
def test_odd_masks_stop_nothing(image, mask):
    def odd(tiles):
        box = np.array([[5, 5, 25, 25]], np.float32)
        masks = mask[None].astype(np.float32)
        return [Instances(box, np.ones(1, np.float32), np.array([0]), masks) for _ in tiles]

    odd.classes = ("thing",)
    result = run_detect(job_over(image, supertile_size=1024), odd)
    assert result.exit_code == 0
    assert shapely.is_valid(result.objects.geometry).all()


# --- what may go on where --------------------------------------------------------------------


def test_other_settings_in_the_same_run_directory(image, tmp_path):
    run_dir = tmp_path / "run"
    one = run_detect(job_over(image, run_dir=run_dir), Stub())
    parts = sorted(run_dir.glob("parts/*.parquet"))
    for other in ({"min_score": 0.9}, {"tile_size": 160}, {"bidx": (2, 1)}):
        with pytest.raises(ConfigError, match="other images, model or settings; give --overwrite"):
            run_detect(job_over(image, run_dir=run_dir, **other), Stub())
    assert sorted(run_dir.glob("parts/*.parquet")) == parts
    # what does not change the parts may change
    again = run_detect(job_over(image, run_dir=run_dir, dst_crs="EPSG:3857"), Stub(poison=1))
    assert again.objects["uid"].tolist() == one.objects["uid"].tolist()
    other = run_detect(job_over(image, run_dir=run_dir, min_score=0.9, overwrite=True), Stub())
    assert len(other.objects) < len(one.objects)
    assert not set(parts) & set(run_dir.glob("parts/*.parquet"))


class Unnamed(Stub):
    """A detector that does not say who it is, as most users' are."""

    fingerprint = ""

    def __init__(self, smallest: int):
        super().__init__()
        self.smallest = smallest

    def find(self, pixels, *args):
        counts = np.bincount(pixels[0].ravel(), minlength=65536)
        return super().find(np.where(counts[pixels[0]] < self.smallest, 0, pixels), *args)


def test_a_changed_detector_is_not_served_old_parts(image, tmp_path):
    output = tmp_path / "o.gpkg"
    every = run_detect(job_over(image, output=output), Unnamed(0))
    with pytest.raises(ConfigError, match="other images, model or settings"):
        run_detect(job_over(image, run_dir=every.run_dir), Unnamed(300))
    large = run_detect(job_over(image, output=output, overwrite=True), Unnamed(300))
    assert 0 < len(large.objects) < len(every.objects)
    # and the same one goes on
    assert len(run_detect(job_over(image, run_dir=large.run_dir), Unnamed(300)).objects) == len(
        large.objects
    )


def test_a_directory_with_something_else_is_left_alone(image, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        run_detect(job_over(image, run_dir=tmp_path / "photos", overwrite=True), Stub())
    with pytest.raises(ConfigError, match="is a file; name a directory"):
        run_detect(job_over(image, run_dir=tmp_path / "file"), Stub())
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_directory_of_a_run_that_was_stopped_at_its_start(image, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in ("lock", "owner.json", f".{MANIFEST}.123"):
        (run_dir / name).write_text("")
    assert run_detect(job_over(image, run_dir=run_dir), Stub()).exit_code == 0


def test_two_runs_on_one_directory(image, tmp_path):
    run_dir = tmp_path / "run"
    with (
        RunDirectory(run_dir).locked(),
        pytest.raises(ConfigError, match=rf'in use by another run \(\{{"pid": {os.getpid()}, '),
    ):
        run_detect(job_over(image, run_dir=run_dir), Stub())
    assert run_detect(job_over(image, run_dir=run_dir), Stub()).exit_code == 0


def test_a_factory_that_breaks_in_the_run_ends_it(image, monkeypatch, tmp_path):
    # good when planned, bad when the worker makes its own
    monkeypatch.setattr("geoseg.jobs.supertile.load_detector", raise_model_error)
    output = tmp_path / "o.gpkg"
    with pytest.raises(ModelError, match="weights are gone"):
        run_detect(job_over(image, output=output, detector="stubs:make"))
    assert not output.exists()


def raise_model_error(spec):
    raise ModelError("weights are gone")


# --- kill -9 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_started_again_is_the_same_as_not_killed(image, tmp_path, workers):
    output, log = tmp_path / "o.gpkg", tmp_path / "calls"
    command = [sys.executable, "-m", "geoseg.cli.main", "detect", str(image), "-o", str(output)]
    command += ["--detector", "stubs:make", "--tile-size", "128", "--overlap", "32"]
    command += ["--supertile-size", "224"]
    slow = environment(STUB_CALLS=str(log), STUB_SLEEP="0.25")
    parts = tmp_path / "o.geoseg-run" / "parts"
    run = subprocess.Popen([*command, "-j", str(workers)], env=slow, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(parts.glob("*.parquet"))) >= 3)
    family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    assert len(family) > workers or workers == 1
    run.send_signal(signal.SIGKILL)
    run.wait()
    # nothing outlives it, holding memory or a GPU
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    finished = {p: p.stat().st_mtime_ns for p in parts.glob("*.parquet")}
    assert 3 <= len(finished) < 9
    assert not output.exists()

    log.unlink()
    again = subprocess.run(
        [*command, "-j", "1"],
        env=environment(STUB_CALLS=str(log)),
        check=False,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert all(p.stat().st_mtime_ns == then for p, then in finished.items())
    whole = run_detect(job_over(image, output=tmp_path / "whole.gpkg"), Stub())
    assert table(output) == table(tmp_path / "whole.gpkg")
    tiles = whole.coverage["tiles"].sum()
    done_before = tiles - calls(log)
    assert done_before >= len(finished), "parts finished before the kill are not run again"


SCRIPT = """
import sys
import geoseg
from beside import Mine

objects = geoseg.detect(sys.argv[1], detector=Mine(), workers=2, tile_size=128, overlap=32,
                        supertile_size=224)
print(len(objects), *objects["uid"])
"""


def test_a_plain_script_with_its_detector_beside_it(image, tmp_path):
    # no __main__ guard, and a module that workers find only because the script did
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "job.py").write_text(SCRIPT)
    (folder / "beside.py").write_text("from stubs import Stub\n\n\nclass Mine(Stub):\n    pass\n")
    run = subprocess.Popen(
        [sys.executable, str(folder / "job.py"), str(image)],
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    family: set[psutil.Process] = set()

    def look() -> bool:
        family.update(psutil.Process(run.pid).children(recursive=True))
        return len(family) >= 3

    wait_for(look)
    out, err = run.communicate(timeout=180)
    assert (run.returncode, err) == (0, "")
    here = run_detect(job_over(image), Stub()).objects
    assert out.split() == [str(len(here)), *here["uid"]]
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
