"""What a run will take, before it runs."""

import json
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from painted import blob_scene
from stubs import Stub

from geoseg.cli import plan as verb
from geoseg.cli.detect import command as detect
from geoseg.cli.main import main
from geoseg.config import DetectSettings
from geoseg.errors import TileError
from geoseg.jobs import estimate
from geoseg.jobs.estimate import TimeEstimate, estimate_run
from geoseg.jobs.pipeline import run_detect
from geoseg.jobs.plan import plan_run

GRID = {"tile_size": 256, "overlap": 64, "supertile_size": 448}


@pytest.fixture(scope="module")
def scene():
    return blob_scene(3, size=900, count=250, large=2)


@pytest.fixture
def painted(make_raster, scene):
    """A painted scene; the left third is nodata."""
    pixels = scene.pixels + np.uint16(0)
    pixels[:, :, :300] = 60_000
    return make_raster("painted.tif", pixels, nodata=60_000)


@pytest.fixture(autouse=True)
def detectors_of_the_tests(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def settings(image, **more):
    return DetectSettings(
        images=(str(image),), detector="stubs:make", gsd="native", **(GRID | more)
    )


def test_tiles_supertiles_and_ground_are_those_of_the_run(painted):
    of_run = plan_run(settings(painted)).images[0]
    (image,) = estimate_run(settings(painted), probe=False).images
    assert (image.tiles, image.supertiles) == (of_run.tiles.n_tiles, of_run.tiles.n_supertiles)
    assert image.size_px == image.grid_px == (900, 900)
    assert image.km2 == pytest.approx(90 * 90 / 1e6, rel=2e-3)


def test_tiles_to_run_are_those_that_the_run_sends_to_the_detector(painted, tmp_path, monkeypatch):
    (image,) = estimate_run(settings(painted), probe=False).images
    calls = tmp_path / "calls"
    monkeypatch.setenv("STUB_CALLS", str(calls))
    run_detect(settings(painted, workers=1))
    ran = len(calls.read_text("utf-8").split())
    assert 0 < ran < image.tiles
    assert image.tiles_to_run == ran


def test_tiles_are_added_up_by_the_supertile_they_belong_to(painted):
    image = plan_run(settings(painted)).images[0]
    run = np.random.default_rng(0).random(image.tiles.shape) > 0.4
    found = estimate._per_supertile(image, run)
    rows, cols = image.tiles.supertile_shape
    for row in range(rows):
        for col in range(cols):
            tiles = image.tiles.supertile(row, col).tiles
            assert found[row, col] == sum(run[tile.index] for tile in tiles)


def test_timed_supertiles_are_full_and_spread(make_raster):
    pixels = np.ones((1, 2000, 2000), np.uint8)
    pixels[:, :, :1000] = 0
    image = make_raster("half.tif", pixels, nodata=0)
    plan = plan_run(settings(image))
    work = estimate._Work(
        plan, [estimate._per_supertile(i, estimate._tiles_to_run(i)) for i in plan.images]
    )
    chosen = work.chosen()
    assert chosen == work.chosen()
    assert len(chosen) == 3
    tiles = plan.images[0].tiles
    rows = tiles.supertile_shape[0]
    for _, index in chosen:
        window = tiles.supertile(*index).window
        assert window.col_off + window.width > 1000
    assert len({index[0] * 3 // rows for _, index in chosen}) == 3


def test_the_probe_measures_and_leaves_nothing(painted, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_SLEEP", "0.05")
    before = sorted(tmp_path.rglob("*"))
    found = estimate_run(settings(painted, workers=2, output=tmp_path / "objects.gpkg"))
    assert sorted(tmp_path.rglob("*")) == before
    alone = [t for t in found.timed if t.processes == 1]
    crowded = [t for t in found.timed if t.processes == 2]
    assert (len(alone), len(crowded)) == (3, 2)
    # the stub sleeps 0.05 s a tile: no timing can be shorter
    assert all(t.seconds >= 0.05 * t.tiles > 0 for t in found.timed)
    one, two = found.times
    assert (one.workers, two.workers) == (1, 2)
    assert one.low <= one.seconds <= one.high
    assert one.seconds > 0.05 * found.images[0].tiles_to_run
    assert 50 < found.memory.worker_mb < 2000
    assert found.memory.total_mb > 2 * found.memory.worker_mb
    assert found.disk.total_bytes == pytest.approx(
        found.disk.parts_bytes + found.disk.table_bytes + found.disk.output_bytes, abs=3
    )
    assert found.notes == () or "other programs" in found.notes[0]


def test_the_estimate_foretells_objects_and_time(painted, monkeypatch):
    monkeypatch.setenv("STUB_SLEEP", "0.1")
    found = estimate_run(settings(painted, workers=1))
    result = run_detect(settings(painted, workers=1))
    assert found.disk.objects == pytest.approx(result.n_objects, rel=0.35)
    # what one worker needs beside its start
    (time,) = found.times
    assert time.low / 2 < result.seconds < 2 * time.high


def test_a_detector_made_in_python(painted):
    chosen = {k: v for k, v in asdict(settings(painted, workers=1)).items() if k != "detector"}
    found = estimate_run(DetectSettings(**chosen), Stub())
    assert found.times


def test_a_failing_detector_fails_as_in_the_run(painted, scene, monkeypatch):
    values, counts = np.unique(scene.pixels[0][:, 300:], return_counts=True)
    monkeypatch.setenv("STUB_POISON", str(values[counts.argmax()]))
    with pytest.raises(TileError, match="a tile that it cannot stand"):
        estimate_run(settings(painted, workers=1))


def test_nothing_valid_is_said_and_not_timed(make_raster):
    image = make_raster("none.tif", np.zeros((2, 300, 300), np.uint8), nodata=0)
    found = estimate_run(settings(image))
    assert (found.times, found.images[0].tiles_to_run) == ((), 0)
    assert "no tile holds valid pixels" in found.notes[0]


def test_more_than_there_is_comes_with_advice(painted, monkeypatch):
    monkeypatch.setattr(estimate, "DRIVER_MB", 1e9)
    monkeypatch.setattr(estimate, "OBJECTS_PER_KM2", 1e15)
    notes = estimate_run(settings(painted, workers=2), probe=False).notes
    assert "of memory but" in notes[0]
    assert "--workers 1" in notes[0]
    assert "of disk but" in notes[1]


def test_a_probe_dies_with_its_parent(tmp_path):
    code = "from geoseg.jobs.estimate import _die_with_parent as d; d()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    child.stdin.close()
    assert child.wait(timeout=60) == 1


# The verb


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    return code, said.out, said.err


OPTIONS = ["--detector", "stubs:make", "--gsd", "native", "--tile-size", "256", "--overlap", "64"]


def test_it_takes_the_options_of_detect():
    mine = {option for p in verb.command.params for option in p.opts}
    theirs = {option for p in detect.params for option in p.opts}
    assert theirs <= mine
    required = {p.name for p in verb.command.params if p.required}
    assert required == {"images"}
    assert {p.name for p in detect.params if p.required} == {"images", "output"}


def test_the_verb_without_a_probe(capsys, painted):
    code, out, err = run(capsys, "plan", painted, *OPTIONS, "--no-probe")
    assert (code, err) == (0, "")
    assert "painted.tif" in out
    for word in ("memory", "disk", "rule of thumb", "assuming"):
        assert word in out
    assert "\ntime " not in out


def test_the_verb_answers_whether_it_will_be_done(capsys, painted):
    code, out, _ = run(capsys, "plan", painted, *OPTIONS, "-j", "1", "--until", "07:00", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["times"][0]["workers"] == 1
    end = datetime.fromisoformat(told["until"]["time"])
    assert (end.hour, end.minute) == (7, 0)
    left = end - datetime.now().astimezone()
    assert timedelta(seconds=-60) < left < timedelta(days=1)
    assert told["until"]["in_time"] == (told["until"]["margin_s"] >= 0)


@pytest.mark.parametrize(
    ("now", "seconds", "high", "answer"),
    [
        ("22:00", 3600, 7200, "by 07:00?  yes: with 2 worker(s) done at 23:00, 8 h 0 min to spare (at worst 7 h 0 min to spare)"),
        ("22:00", 9.5 * 3600, 10 * 3600, "by 07:00?  no: with 2 worker(s) done at 07:30, 30 min too late (at worst 60 min too late)"),
        ("06:00", 3540, 3720, "by 07:00?  yes: with 2 worker(s) done at 06:59, 60 s to spare (at worst 120 s too late)"),
        ("07:00", 60, 60, "by 07:00?  yes: with 2 worker(s) done at 07:01, 23 h 59 min to spare (at worst 23 h 59 min to spare)"),
    ],
)  # fmt: skip
def test_the_margin(now, seconds, high, answer):
    clock = datetime.fromisoformat(f"2026-03-01T{now}:00+00:00")
    time = TimeEstimate(2, 1, seconds, seconds, high)
    assert (
        verb._as_words(verb._answer(time, (7, 0), clock), time).replace("2 min too", "120 s too")
        == answer
    )


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--until", "7"], "expected a time of day such as 07:00"),
        (["--until", "25:00"], "expected a time of day"),
        (["--until", "07:00", "--no-probe"], "leave out --no-probe"),
        (["--overlap", "256"], "lower --overlap or raise --tile-size"),
        (["-o", "objects.doc"], "unknown suffix '.doc'"),
        (["--detector", "stubs:nope"], "has no callable 'nope'"),
    ],
)
def test_mistakes_end_as_with_detect(capsys, painted, more, text):
    code, out, err = run(capsys, "plan", painted, *OPTIONS, *more)
    assert (code, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1


def test_a_bad_image_ends_as_with_detect(capsys, make_raster, tmp_path):
    bad = make_raster("bad.tif", crs=None)
    of_plan = run(capsys, "plan", bad)
    of_detect = run(capsys, "detect", bad, "-o", tmp_path / "o.gpkg")
    assert of_plan == of_detect
    assert of_plan[0] == 2
