"""What the driver and the scheduler cost per supertile, with workers that do nothing.

The driver is that of a real run: it makes the tasks of a plan, hands them out, takes the summaries
back, writes events and keeps what the end of a run needs. Only what a worker would do is left out.
``python benchmarks/scheduler.py --supertiles 100000`` for the full figure (docs/benchmarks).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import psutil
import rasterio
from affine import Affine
from common import machine, table, write

from geoseg.config import DetectSettings
from geoseg.jobs import driver
from geoseg.jobs.events import Events
from geoseg.jobs.executor import Workers
from geoseg.jobs.ledger import RunDirectory
from geoseg.jobs.parts import PartSummary
from geoseg.jobs.plan import RunPlan, plan_run
from geoseg.jobs.supertile import SupertileTask
from geoseg.objects.seams import SeamCounts

NIGHT_S = 36_000.0
NIGHT_SUPERTILES = 100_000
"""Of a ten-hour night on 28 workers at some 10 s each."""
TILE, OVERLAP = 768, 192
CORE = TILE - OVERLAP


def nothing(task: SupertileTask) -> PartSummary:
    """Stand in for a supertile: all of the record, none of the work."""
    return PartSummary(
        task.image, task.index, "done", 36, 36, objects=400, fragments=700,
        seconds={"read": 0.123, "load": 0.004, "detect": 9.071, "vectorize": 0.402, "stitch": 0.5},
        peak_mb=900.3, imaged="POLYGON ((1 0, 1 3072, 3072 3072, 3072 0, 1 0))",
        seams=SeamCounts.empty(),
    )  # fmt: skip


def plan_of(count: int, folder: Path) -> RunPlan:
    """Plan a run over an empty raster of as many supertiles as wanted, or a few more.

    A supertile is one tile here, so that the raster's own index stays small.
    """
    side = int(CORE * count**0.5) + OVERLAP + 1
    path = folder / "ortho.tif"
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8",
        "crs": "EPSG:32633", "transform": Affine(0.14, 0, 500_000, 0, -0.14, 5_000_000),
        "tiled": True, "blockxsize": 4096, "blockysize": 4096, "sparse_ok": True,
        "interleave": "pixel", "compress": "deflate", "bigtiff": "yes", "photometric": "rgb",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile):
        pass
    return plan_run(
        DetectSettings(
            images=(str(path),), gsd="native",
            tile_size=TILE, overlap=OVERLAP, supertile_size=TILE,
        )
    )  # fmt: skip


class Watch(threading.Thread):
    """Notes CPU seconds and memory of the driver and the scheduler now and then."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.driver = psutil.Process()
        self.scheduler = next(
            p
            for p in self.driver.children(recursive=True)
            if "distributed.Scheduler" in " ".join(p.cmdline())
        )
        self.rss: list[tuple[float, int, int]] = []
        self.over = threading.Event()

    def run(self) -> None:
        """Look once a second."""
        while not self.over.is_set():
            self.look()
            self.over.wait(1.0)

    def look(self) -> None:
        """Note the resident memory."""
        processes = (self.driver, self.scheduler)
        self.rss.append((time.perf_counter(), *(p.memory_info().rss for p in processes)))

    def cpu(self) -> tuple[float, float]:
        """Return CPU seconds of driver and scheduler."""
        return tuple(sum(p.cpu_times()[:2]) for p in (self.driver, self.scheduler))  # type: ignore[return-value]


def measure(count: int, workers: int) -> dict[str, float]:
    # workers load it by its name
    driver.run_supertile = nothing
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        warm, plan = (plan_of(n, folder) for n in (200, count))
        run_dir = RunDirectory(folder / "run")
        run_dir.parts.mkdir(parents=True)
        events = Events(folder / "events.jsonl")
        with Workers(workers, events=events) as pool:
            driver.SupertileRun(warm, run_dir, pool, threads=1).run()
            watch = Watch()
            before = watch.cpu()
            watch.start()
            begun = time.perf_counter()
            run = driver.SupertileRun(plan, run_dir, pool, threads=1)
            run.run()
            seconds = time.perf_counter() - begun
            watch.over.set()
            watch.join()
            watch.look()
            cpu = [b - a for a, b in zip(before, watch.cpu(), strict=True)]
    n = len(run.summaries)
    assert n == plan.n_supertiles >= count
    # memory after the first fifth, when buffers and logs have filled, against the end
    early = next(r for r in watch.rss if r[0] >= begun + seconds / 5)
    last = watch.rss[-1]
    per_night = NIGHT_SUPERTILES / n
    return {
        "supertiles": n,
        "workers": workers,
        "seconds": round(seconds, 2),
        "ms_per_supertile": round(1e3 * seconds / n, 3),
        "driver_cpu_ms": round(1e3 * cpu[0] / n, 3),
        "scheduler_cpu_ms": round(1e3 * cpu[1] / n, 3),
        "driver_bytes_per_supertile": round((last[1] - early[1]) / (0.8 * n)),
        "scheduler_bytes_per_supertile": round((last[2] - early[2]) / (0.8 * n)),
        "driver_mb": [round(r[1] / 1e6, 1) for r in _tenths(watch.rss)],
        "scheduler_mb": [round(r[2] / 1e6, 1) for r in _tenths(watch.rss)],
        "share_of_night": round((cpu[0] + cpu[1]) * per_night / NIGHT_S, 5),
        "wall_share_of_night": round(seconds * per_night / NIGHT_S, 5),
    }


def _tenths(seen: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    return [seen[round(i * (len(seen) - 1) / 10)] for i in range(11)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--supertiles", type=int, default=5_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    found = measure(options.supertiles, options.workers)
    rows = [
        ["wall, ms", found["ms_per_supertile"]],
        ["CPU of the driver, ms", found["driver_cpu_ms"]],
        ["CPU of the scheduler, ms", found["scheduler_cpu_ms"]],
        ["memory the driver keeps, bytes", found["driver_bytes_per_supertile"]],
        ["memory the scheduler keeps, bytes", found["scheduler_bytes_per_supertile"]],
    ]
    mb = table(
        ["part of the run", *(f"{i * 10} %" for i in range(0, 11, 2))],
        [[name, *found[f"{name}_mb"][::2]] for name in ("driver", "scheduler")],
    )
    text = (
        "# Overhead of driver and scheduler\n\n"
        f"{found['supertiles']:,} supertiles on {found['workers']} workers that do nothing, with "
        "the driver and the records of a real run (`python benchmarks/scheduler.py --supertiles "
        f"{options.supertiles}`). Driver, scheduler and workers share the cores.\n\n"
        + table(["per supertile", "measured"], rows)
        + f"\n\nResident memory, MB:\n\n{mb}\n\n"
        "What the driver keeps are the rows of the coverage layer; what the scheduler keeps are "
        "logs of Dask's.\n\n"
        f"Of a ten-hour night of {NIGHT_SUPERTILES:,} supertiles, "
        f"driver and scheduler take {found['share_of_night']:.2%} of one core; all of it, workers' "
        f"share included, would be {found['wall_share_of_night']:.2%} of the night on these "
        f"{os.cpu_count()} cores.\n\n{machine()}\n"
    )
    write("scheduler", text, found)


if __name__ == "__main__":
    main()
