"""Asked to stop, a run finishes what is in flight, says how to go on, and goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
import weakref
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from runs import (
    all_gone,
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
from stubs import Stub

from geoseg.errors import ConfigError, StoppedError, TileError
from geoseg.jobs import pipeline
from geoseg.jobs.events import redact
from geoseg.jobs.pipeline import run_detect
from geoseg.jobs.stop import Stop, stop_time


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_drains_and_the_same_command_goes_on(
    image, whole, tmp_path, workers, number, code
):
    output, log = tmp_path / "o.gpkg", tmp_path / "calls"
    run = start(command(image, output, workers=workers), STUB_CALLS=str(log), STUB_SLEEP="0.15")
    wait_for(lambda: len(parts_of(output)) >= 2)
    processes = family(run)
    # Ctrl-C in a terminal reaches the whole group, a supervisor's TERM one process
    (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)
    status, _, err = end(run)
    assert status == code, err
    assert err.splitlines()[-1] == (
        f"geoseg: stopped: {number.name} was received; the same command goes on from here"
    )
    assert "Traceback" not in err
    assert all_gone(processes)
    stopped = parts_of(output)
    assert 2 <= len(stopped) < 9
    assert not output.exists()
    # what was begun was finished: no tile is seen twice
    assert not list((tmp_path / "o.geoseg-run" / "parts").glob(".*"))
    assert (manifest_of(output)["state"], events_of(output)[-1]["event"]) == ("stopped", "stopped")
    status, _, err = finish(command(image, output), STUB_CALLS=str(log))
    assert status == 0, err
    assert len(log.read_text().splitlines()) == 36
    assert table(output) == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_ends_at_once(image, tmp_path, workers):
    output = tmp_path / "o.gpkg"
    run = start(command(image, output, workers=workers), STUB_SLEEP="20")
    wait_for((tmp_path / "o.geoseg-run" / "run.json").exists)
    wait_for(lambda: len(family(run)) >= (1 if workers == 1 else 6))
    time.sleep(1)
    processes = family(run)
    run.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    begun = time.monotonic()
    run.send_signal(signal.SIGTERM)
    status, _, err = end(run)
    assert status == 143
    assert time.monotonic() - begun < 15
    assert "Traceback" not in err
    assert all_gone(processes)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_impatience_at_any_moment_ends_in_the_same_exit_code(image, tmp_path, number, code):
    # the first comes while workers start, the others while everything is put away
    run = start(command(image, tmp_path / "o.gpkg", workers=2), STUB_SLEEP="20")
    wait_for((tmp_path / "o.geoseg-run" / "run.json").exists)
    processes = family(run)
    while run.poll() is None:
        run.send_signal(number)
        time.sleep(0.02)
    status, _, err = end(run)
    assert status == code
    assert "Traceback" not in err
    assert all_gone(processes)


def test_a_stop_file_stops(image, whole, tmp_path):
    output = tmp_path / "o.gpkg"
    run = start(command(image, output), STUB_SLEEP="0.2")
    wait_for(lambda: len(parts_of(output)) >= 1)
    (tmp_path / "o.geoseg-run" / "stop").touch()
    status, _, err = end(run)
    assert (status, "the file stop asks for it" in err) == (130, True)
    assert len(parts_of(output)) < 9
    # it asked for the end of that run, not of the next
    status, _, err = finish(command(image, output))
    assert status == 0, err
    assert table(output) == whole


def test_until_stops_before_a_task_that_would_not_be_finished(image, whole, tmp_path, monkeypatch):
    output = tmp_path / "o.gpkg"
    job = job_over(image, output=output, until="07:00")
    soon = datetime.now(UTC) + timedelta(seconds=2)
    monkeypatch.setattr(pipeline, "stop_time", lambda _: soon)
    with pytest.raises(StoppedError, match=r"stopped: it would soon be .* \(--until\)") as stopped:
        run_detect(job, Stub(sleep=0.15))
    assert stopped.value.exit_code == 130
    assert datetime.now(UTC) <= soon + timedelta(seconds=0.3)
    assert 0 < len(parts_of(output)) < 9
    monkeypatch.undo()
    run_detect(job, Stub())
    assert table(output) == whole


@pytest.mark.parametrize(
    ("text", "now", "then"),
    [
        ("07:00", "2026-03-01T22:30", "2026-03-02T07:00"),  # tomorrow morning
        ("7:00", "2026-03-01T06:59", "2026-03-01T07:00"),  # in a minute
        ("23:59", "2026-03-01T22:30", "2026-03-01T23:59"),  # today
        ("07:00", "2026-03-01T07:00", "2026-03-02T07:00"),  # now is over
        ("00:00", "2026-12-31T23:00", "2027-01-01T00:00"),  # next year
    ],
)
def test_the_next_time_of_day(text, now, then):
    got = stop_time(text, datetime.fromisoformat(now).astimezone())
    assert got == datetime.fromisoformat(then).astimezone()


def test_a_time_of_day_where_the_clocks_change(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        evening = datetime(2026, 3, 28, 22, 0).astimezone()
        # at 2 o'clock the night loses an hour
        assert stop_time("07:00", evening) - evening == timedelta(hours=8)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["7", "24:00", "12:60", "noon", "", "7:5", "-1:00"])
def test_no_time_of_day(text):
    with pytest.raises(ConfigError, match="expected a time of day such as 07:00"):
        stop_time(text)


def test_a_task_that_would_end_too_late_is_not_begun():
    stop = Stop(until=datetime.now(UTC) + timedelta(seconds=60))
    assert not stop.wanted(task_s=30)
    assert stop.wanted(task_s=90)
    assert stop.wanted()


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stop = Stop()
    with stop.listening():
        with stop.draining():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.wanted()
        with pytest.raises(StoppedError) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
    assert stopped.value.exit_code == 130
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


class Something:
    """May be referred to weakly."""


def test_a_signal_where_python_cannot_raise_is_not_lost(capsys):
    def gone(_):
        os.kill(os.getpid(), signal.SIGTERM)
        # here the handler runs, and what it raises goes nowhere
        time.sleep(0.01)

    things, stop, hook = [Something()], Stop(), sys.unraisablehook
    reference = weakref.ref(things[0], gone)

    def forget():
        things.clear()
        time.sleep(10)

    with pytest.raises(StoppedError) as stopped, stop.listening():
        forget()
    assert reference() is None
    assert stopped.value.exit_code == 143
    assert capsys.readouterr().err == ""
    assert sys.unraisablehook is hook


# --- events and notification -----------------------------------------------------------------


def test_events_tell_what_happened_without_folders(image, tmp_path):
    output = tmp_path / "o.gpkg"
    run_detect(job_over(image, output=output), Stub())
    events = events_of(output)
    names = [e["event"] for e in events]
    assert (names[0], names[-1]) == ("started", "finished")
    assert names.count("supertile done") == 9
    one = events[1]
    assert one["image"] == "painted.tif"
    assert {"read", "detect", "vectorize", "stitch"} <= set(one["seconds"])
    assert datetime.fromisoformat(one["at"]).utcoffset() == timedelta(0)
    run_dir = tmp_path / "o.geoseg-run"
    for file in ("events.jsonl", "run.json"):
        assert str(tmp_path) not in (run_dir / file).read_text()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("cannot read /home/ann/a/x.tif: gone", "cannot read x.tif: gone"),
        ("'/data/x.tif' and (/y/z.tif)", "'x.tif' and (z.tif)"),
        ("C:\\Users\\ann\\x.tif", "x.tif"),
        ("https://u:p@host/a/x.tif?sig=1&k=2 failed", "https://host/a/x.tif failed"),
        ("5/8 tiles, 12 px/s", "5/8 tiles, 12 px/s"),
    ],
)
def test_redact(text, plain):
    assert redact(text) == plain


TELL = """
import json, os, sys
told = {k: v for k, v in os.environ.items() if k.startswith("GEOSEG_")}
open(sys.argv[1], "w").write(json.dumps(told))
"""


def test_notify_is_told_how_it_ended(image, tmp_path):
    script, said, output = tmp_path / "tell.py", tmp_path / "said.json", tmp_path / "o.gpkg"
    script.write_text(TELL)
    notify = shlex.join([sys.executable, str(script), str(said)])
    job = job_over(image, output=output, notify=notify)
    found = run_detect(job, Stub())
    told = json.loads(said.read_text())
    assert told["GEOSEG_STATE"] == "finished"
    assert told["GEOSEG_EXIT_CODE"] == "0"
    assert told["GEOSEG_OBJECTS"] == str(found.n_objects)
    assert told["GEOSEG_RUN_DIR"] == str(tmp_path / "o.geoseg-run")
    # and of an end that is none
    for part in parts_of(output):
        part.unlink()
    with pytest.raises(TileError, match=r"--on-error fail.*cannot stand.*the same command goes on"):
        run_detect(replace(job, on_error="fail"), Stub(poison=1))
    told = json.loads(said.read_text())
    assert (told["GEOSEG_STATE"], told["GEOSEG_EXIT_CODE"]) == ("failed", "1")


@pytest.mark.parametrize("bad", ["/not/there", "false"])
def test_a_notification_that_fails_fails_no_run(image, tmp_path, caplog, bad):
    job = job_over(image, output=tmp_path / "o.gpkg", notify=bad)
    assert run_detect(job, Stub()).exit_code == 0
    assert f"--notify {bad}: " in caplog.text
