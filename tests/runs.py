"""Runs of the command line in processes of their own, to be disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyogrio
import shapely
from affine import Affine

from geoseg.config import DetectSettings

ROOT = Path(__file__).parents[1]
UTM = "EPSG:32633"
NORTH_UP = Affine(0.1, 0, 500_000, 0, -0.1, 5_500_000)
TILES = {"tile_size": 128, "overlap": 32, "supertile_size": 224}
"""Four tiles a supertile; on 520 px a side: 6 x 6 tiles in 3 x 3 supertiles."""


def job_over(image: Path, **changes) -> DetectSettings:
    """Return a run over one raster in this process, with the tiles of `TILES`."""
    return DetectSettings(images=(str(image),), **(TILES | {"workers": 1} | changes))


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | more


def command(image: Path, output: Path, *more: str, workers: int | None = 1) -> list[str]:
    args = [sys.executable, "-m", "geoseg.cli.main", "detect", str(image), "-o", str(output)]
    args += ["--detector", "stubs:make"]
    for name, value in TILES.items():
        args += [f"--{name.replace('_', '-')}", str(value)]
    return [*args, *([] if workers is None else ["-j", str(workers)]), *more]


def start(args: list[str], **env: str) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, as a shell does."""
    return subprocess.Popen(
        args,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(run: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, str]:
    """Wait for a command; nothing may be left of it."""
    out, err = run.communicate(timeout=seconds)
    return run.returncode, out, err


def finish(args: list[str], **env: str) -> tuple[int, str, str]:
    return end(start(args, **env))


def family(run: subprocess.Popen[str]) -> list[psutil.Process]:
    return [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]


def children_like(run: subprocess.Popen[str], text: str) -> list[psutil.Process]:
    """Return the processes that a command has started itself and whose command line holds a text.

    Not their children: one that was forked and runs nothing of its own yet has its parent's
    command line. One that has just ended (Python asks small programs what it runs on) has none,
    and says so with an error.
    """
    found = []
    for process in psutil.Process(run.pid).children():
        with suppress(psutil.Error):
            if text in " ".join(process.cmdline()):
                found.append(process)
    return found


def all_gone(processes: list[psutil.Process], seconds: float = 30) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def wait_for(condition, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def parts_of(output: Path) -> list[Path]:
    return sorted(output.with_name(f"{output.stem}.geoseg-run").glob("parts/*.parquet"))


def manifest_of(output: Path) -> dict:
    return json.loads(
        output.with_name(f"{output.stem}.geoseg-run").joinpath("run.json").read_text()
    )


def events_of(output: Path) -> list[dict]:
    path = output.with_name(f"{output.stem}.geoseg-run") / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def calls(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def table(path: Path) -> list[tuple]:
    """Return everything in the objects layer, row by row."""
    frame = pyogrio.read_dataframe(path, layer="objects")
    shapes = shapely.to_wkb(frame.geometry).tolist()
    return list(
        zip(*(frame[c].tolist() for c in frame.columns.drop("geometry")), shapes, strict=True)
    )
