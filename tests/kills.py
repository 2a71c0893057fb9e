"""Runs that are killed at any moment, and what the same command makes of them."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from runs import all_gone, calls, command, events_of, family, finish, manifest_of, parts_of, start

from geoseg.jobs.executor import IN_FLIGHT
from geoseg.jobs.ledger import RunDirectory

SUPERTILES, TILES_EACH = 9, 4
"""Of the painted scene."""
STAGES = ("start", "supertiles", "join", "count", "publish", "manifest", "over")
"""What a run is at: imports and workers; the parts; objects.parquet; regions and coverage; the
user's file; what the run tells about itself; nothing more."""


def stage_of(run_dir: Path) -> str:
    """Tell from a run directory what its first run is at."""
    manifest = RunDirectory(run_dir).read_manifest() or {}
    parts = run_dir / "parts"
    n_parts = sum(1 for _ in parts.glob("*.parquet")) if parts.is_dir() else 0
    for stage, reached in (
        ("over", manifest.get("state") == "finished"),
        ("manifest", manifest.get("outputs")),
        ("publish", manifest.get("writing")),
        ("count", manifest.get("objects_file")),
        ("join", n_parts == SUPERTILES),
        ("supertiles", n_parts),
    ):
        if reached:
            return stage
    return "start"


@dataclass(frozen=True)
class Kill:
    """Where a run was when it was killed, and what was left of it."""

    stage: str
    workers: int
    finished: Mapping[Path, int]
    """Parts, and when they were written (ns)."""
    in_vain: int
    """Supertiles that the detector saw and that left no part."""
    scratch: int
    """Hidden files and folders beside the output."""
    alive: bool
    """Whether there was anything to kill: a run may have just ended."""


def kill_at(
    args: list[str], output: Path, log: Path, *, workers: int, stage: str, delay_s: float
) -> Kill:
    """Kill a run with SIGKILL so long after it has reached a stage; its workers must end too."""
    run_dir = output.with_name(f"{output.stem}.geoseg-run")
    run = start(args, STUB_SLEEP="0.03", STUB_CALLS=str(log))
    while run.poll() is None and STAGES.index(stage_of(run_dir)) < STAGES.index(stage):
        time.sleep(0.002)
    time.sleep(delay_s)
    processes = family(run) if run.poll() is None else []
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert all_gone(processes), "processes outlive a run that was killed"
    finished = {part: part.stat().st_mtime_ns for part in parts_of(output)}
    return Kill(
        stage=stage_of(run_dir),
        workers=workers,
        finished=finished,
        in_vain=calls(log) // TILES_EACH - len(finished),
        scratch=sum(1 for _ in output.parent.glob(f".{output.stem}[-.]*")),
        alive=bool(processes),
    )


def go_on(args: list[str], output: Path, log: Path, kill: Kill) -> int:
    """Give the same command again; checks that it does what was left and nothing else.

    Returns the supertiles that were done again beyond those that had been in flight.
    """
    seen, started = calls(log), _starts(output)
    status, _, err = finish(args, STUB_CALLS=str(log))
    assert status == 0, err
    left = SUPERTILES - len(kill.finished)
    again = calls(log) - seen - left * TILES_EACH
    assert again == 0, f"{again} tiles of supertiles that were finished are seen again"
    kept = {part: part.stat().st_mtime_ns for part in kill.finished}
    assert kept == kill.finished, "a finished part was written again"
    told = Counter(e["event"] for e in events_of(output)[started:])
    assert told["supertile done"] == left
    assert told["supertile failed"] + told["tile failed"] + told["retried"] == 0, told
    run_dir = output.with_name(f"{output.stem}.geoseg-run")
    assert not list((run_dir / "parts").glob(".*")), "a killed writer's private name stays"
    manifest = manifest_of(output)
    assert (manifest["supertiles"], manifest["failed_tiles"]) == ({"done": SUPERTILES}, [])
    database = sqlite3.connect(output)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    # what the detector saw in vain is what was in flight
    return max(0, kill.in_vain - IN_FLIGHT * kill.workers)


def _starts(output: Path) -> int:
    path = output.with_name(f"{output.stem}.geoseg-run") / "events.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def stage_lengths(args: list[str], output: Path, workers: int) -> dict[str, float]:
    """Run undisturbed; returns how long each stage took, seconds."""
    run_dir = output.with_name(f"{output.stem}.geoseg-run")
    run: subprocess.Popen[str] = start(args, STUB_SLEEP="0.03")
    now, begun, took = "start", time.monotonic(), dict.fromkeys(STAGES, 0.01)
    while run.poll() is None:
        if (stage := stage_of(run_dir)) != now:
            took[now] = time.monotonic() - begun
            now, begun = stage, time.monotonic()
        time.sleep(0.002)
    took[now] = time.monotonic() - begun
    _, err = run.communicate()
    assert run.returncode == 0, f"{workers} worker(s): {err}"
    return took


def random_kill(
    rng: random.Random,
    image: Path,
    output: Path,
    *more: str,
    lengths: Callable[[int], Mapping[str, float]],
    workers: int | None = None,
    anywhere: bool = False,
) -> tuple[Kill, int]:
    """Kill a run at a random moment and go on; a fourth has two workers.

    The moment lies in a stage drawn by lot, or anywhere in the run.
    """
    workers = workers or (2 if rng.random() < 0.25 else 1)
    usual = lengths(workers)
    weights = [usual[s] if anywhere else 1 for s in STAGES[:-1]]
    (stage,) = rng.choices(STAGES[:-1], weights)
    log = output.with_suffix(".calls")
    args = command(image, output, *more, workers=workers)
    delay = rng.uniform(0, usual[stage])
    kill = kill_at(args, output, log, workers=workers, stage=stage, delay_s=delay)
    return kill, go_on(command(image, output, *more), output, log, kill)
