"""Progress: what is known of a run, and how it looks in a terminal, in a file and to machines."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from painted import Scene, blob_scene
from runs import NORTH_UP, UTM, command, environment, events_of, finish
from terminals import run_in_terminal, screens

from geoseg.cli import progress as shown
from geoseg.cli.progress import _Teller, as_event, as_line, show_progress
from geoseg.jobs.progress import FINISH_S, OBJECTS_PER_FOUND, RunState, Watcher


@pytest.fixture(scope="module")
def scene() -> Scene:
    return blob_scene(5, size=520, count=110, large=1)


@pytest.fixture
def image(make_raster, scene) -> Path:
    return make_raster("painted.tif", scene.pixels, transform=NORTH_UP, crs=UTM)


def a_run(total=10, km2=10.0, workers=2, before=0) -> tuple[RunState, list[float]]:
    now = [100.0]
    state = RunState(clock=lambda: now[0])
    state.tell({"event": "started", "supertiles": total, "workers": workers, "km2": km2})
    state(before, total, before * 100)
    return state, now


def finish_one(state, now, seconds, *, km2=1.0, found=100):
    now[0] += seconds
    state.tell({"event": "supertile done", "tiles": 4, "km2": km2})
    state(state.done + 1, state.total, state.found + found)


def test_rates_and_the_end_include_the_joins():
    state, now = a_run()
    assert state.left_s is None
    assert state.km2_per_hour is None
    for _ in range(4):
        finish_one(state, now, 30)
    assert state.km2_per_hour == pytest.approx(120)
    assert state.tiles == 16
    joins = 1000 * OBJECTS_PER_FOUND * FINISH_S
    assert state.finish_s == pytest.approx(joins)
    assert state.left_s == pytest.approx(6 * 30 + joins)
    # time that passes without news counts, but never below what the joins take
    now[0] += 20
    assert state.left_s == pytest.approx(6 * 30 - 20 + joins)
    now[0] += 1000
    assert state.left_s == pytest.approx(joins)


def test_small_supertiles_at_the_edge_do_not_fool_the_end():
    state, now = a_run(total=4, km2=10.0)
    finish_one(state, now, 40, km2=4.0)
    finish_one(state, now, 40, km2=4.0)
    assert state.left_s == pytest.approx(20 + state.finish_s)


def test_what_an_earlier_run_finished_took_no_time():
    state, now = a_run(before=8)
    finish_one(state, now, 50)
    assert state.left_s == pytest.approx(50 + state.finish_s)
    assert state.km2_per_hour == pytest.approx(72)


def test_the_rate_is_that_of_late():
    state, now = a_run(total=1000, km2=0.0, workers=1)
    for _ in range(100):
        finish_one(state, now, 10)
    for _ in range(60):
        finish_one(state, now, 40)
    assert state.left_s - state.finish_s == pytest.approx(840 * 40, rel=0.02)


def test_stages_problems_and_workers():
    state, now = a_run(total=1)
    finish_one(state, now, 5, found=100_000)
    state.tell({"event": "stage", "stage": "joining"})
    assert state.left_s == pytest.approx(100_000 * OBJECTS_PER_FOUND * FINISH_S)
    now[0] += 10
    assert state.left_s == pytest.approx(100_000 * OBJECTS_PER_FOUND * FINISH_S - 10)
    for event, worker in (
        ("came", "a"),
        ("came", "b"),
        ("lost", "b"),
        ("came", "c"),
        ("lost", "a"),
    ):
        state.tell({"event": f"worker {event}", "worker": worker})
    for event in ("retried", "tile failed"):
        state.tell({"event": event})
    assert state.workers == 1
    line = as_line(state)
    assert "joining, ends" in line
    assert line.endswith("tiles left out: 1; retried: 1; workers lost: 2")
    assert as_event(state)["problems"] == {"worker lost": 2, "retried": 1, "tile failed": 1}


def test_workers_of_a_cluster_are_not_guessed():
    state, _ = a_run()
    state.tell({"event": "started", "workers": 1, "joined": True})
    assert state.workers is None
    assert "worker" not in as_line(state)
    state.tell({"event": "worker came", "worker": "tcp://one"})
    assert "1 worker(s)" in as_line(state)


# Without a terminal


def test_lines_come_each_so_often_though_nothing_happens(monkeypatch, capsys):
    monkeypatch.setattr(shown, "LINE_EVERY_S", 0.05)
    import sys

    with _Teller(sys.stderr) as teller:
        assert isinstance(teller, Watcher)
        teller.tell({"event": "started", "workers": 1, "supertiles": 2, "km2": 1.0})
        teller(0, 2, 0)
        end = teller._end
        for _ in range(100):
            end.wait(0.02)
            if capsys.readouterr().err.count("0 of 2 supertiles"):
                break
        else:
            pytest.fail("no line came")


def test_quiet_shows_nothing(caplog):
    logger = logging.getLogger("geoseg")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with show_progress() as progress:
            assert progress is None
    finally:
        logger.setLevel(before)


def test_plain_lines_in_a_file(image, tmp_path):
    code, _, err = finish(command(image, tmp_path / "o.gpkg"))
    assert code == 0, err
    assert "\x1b" not in err
    last = [line for line in err.splitlines() if "of 9 supertiles" in line]
    assert len(last) == 1
    assert re.match(
        r"9 of 9 supertiles, 36 tiles, [\d,]+ detections, [\d.,]+ km2/h, 1 worker", last[0]
    )


def test_events_for_machines(image, scene, tmp_path):
    poison = str(int(np.unique(scene.ids)[-1]))
    args = command(image, tmp_path / "o.gpkg", "--json")
    code, out, err = finish(args, STUB_POISON=poison)
    assert code == 3, err
    assert json.loads(out)["exit_code"] == 3
    told = [json.loads(line) for line in err.splitlines()]
    names = [event["event"] for event in told]
    assert names[-1] == "finished"
    assert {"started", "retried", "supertile failed", "tile failed", "log", "stage"} <= set(names)
    done = next(event for event in told if event["event"] == "progress")
    assert (done["supertiles_done"], done["supertiles"]) == (9, 9)
    assert done["problems"]["tile failed"] >= 1
    # what goes wrong is told when it happens, not at the end
    assert names.index("supertile failed") < len(names) - 1 - names[::-1].index("supertile done")
    # the same events as in the run directory
    kept = events_of(tmp_path / "o.gpkg")
    assert [e for e in told if e["event"] not in ("log", "progress")] == kept
    ground = sum(e.get("km2", 0) for e in kept if e["event"].startswith("supertile "))
    assert ground == pytest.approx(
        next(e["km2"] for e in kept if e["event"] == "started"), rel=1e-3
    )


# In a terminal


@pytest.mark.parametrize("columns", [100, 40])
def test_the_live_view(image, tmp_path, columns):
    args = command(image, tmp_path / "o.gpkg")
    env = environment(STUB_SLEEP="0.05")
    code, out, raw = run_in_terminal(args, env, columns=columns)
    assert code == 0, raw
    assert "objects in" in out
    frames = screens(raw, columns)
    busy = [f for f in frames if "of 9" in f and "detections" in f]
    assert len(busy) > 3
    assert any("ends in 0:00:0" in f for f in busy)
    bars = [line for f in busy for line in f.splitlines() if "━" in line]
    assert all(line.startswith("supertiles") == (columns == 100) for line in bars)
    # nothing of it stays
    assert "of 9" not in frames[-1]
    assert "supertiles" in frames[-1]


def test_problems_stand_above_the_view_at_once(image, scene, tmp_path):
    poison = str(int(np.unique(scene.ids)[-1]))
    env = environment(STUB_POISON=poison, STUB_SLEEP="0.03")
    code, _, raw = run_in_terminal(command(image, tmp_path / "o.gpkg"), env)
    assert code == 3, raw
    frames = screens(raw, 100)
    first = next(f for f in frames if "failed:" in f and "detections" in f)
    lines = first.splitlines()
    said = next(k for k, line in enumerate(lines) if "warning: painted.tif, supertile" in line)
    bar = next(k for k, line in enumerate(lines) if "of 9" in line)
    assert said < bar
    assert any("failed supertiles: 1" in f for f in frames)
    # the log stays when the view is gone, each line once
    assert frames[-1].count("is left out") == frames[-1].count(", tile (") >= 1
    assert "\x1b[1;31m" in raw


def test_no_color_and_dumb_terminals(image, tmp_path):
    env = environment(NO_COLOR="1", STUB_SLEEP="0.02")
    code, _, raw = run_in_terminal(command(image, tmp_path / "a.gpkg"), env)
    assert code == 0
    # colours are SGR sequences with parameters from 30 on
    assert not re.search(r"\x1b\[[\d;]*(?:3|4|9)\d(?:;\d+)*m", raw)
    assert "of 9" in raw
    env = environment(TERM="dumb")
    code, _, raw = run_in_terminal(command(image, tmp_path / "b.gpkg"), env)
    assert code == 0
    assert "\x1b" not in raw
    assert "9 of 9 supertiles" in raw
