"""What the driver and the scheduler cost per supertile, with a task that does nothing.

The records that travel are those of a real run: `SupertileTask` there, `PartSummary` back. Run
``python benchmarks/scheduler.py --supertiles 100000`` for the full figure (docs/benchmarks).
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import threading
import time
from pathlib import Path

import psutil
from affine import Affine
from common import machine, table, write

from geoseg.imagery.georef import WorkingGrid
from geoseg.imagery.grid import TileGrid
from geoseg.jobs.executor import Workers
from geoseg.jobs.parts import PartSummary
from geoseg.jobs.supertile import DetectorSpec, SupertileTask
from geoseg.records import RasterInfo

NIGHT_S = 36_000.0
NIGHT_SUPERTILES = 100_000
"""Of a ten-hour night on 28 workers at some 10 s each."""


def nothing(task: SupertileTask) -> PartSummary:
    """Stand in for a supertile: all of the record, none of the work."""
    return PartSummary(
        task.image, task.index, "done", 36, 36, objects=400, fragments=700,
        seconds={"read": 0.1, "load": 0.0, "detect": 9.0, "vectorize": 0.4, "stitch": 0.5},
        peak_mb=900.0, imaged="POLYGON ((0 0, 0 3072, 3072 3072, 3072 0, 0 0))",
    )  # fmt: skip


def tasks(count: int) -> itertools.chain[SupertileTask]:
    """Yield as many tasks as wanted, each as a run would make it."""
    side = int(count**0.5) + 1
    pixels = side * 2496 + 576
    info = RasterInfo(
        path="/data/flights/2026/ortho.tif", crs_wkt=WKT, transform=Affine(0.1, 0, 0, 0, -0.1, 0),
        height=pixels, width=pixels, bands=3, dtype="uint8", nodata=None, mask_kind="none",
        block_shape=(512, 512), gsd_m=0.1, fingerprint="f" * 32,
    )  # fmt: skip
    grid = WorkingGrid(info.transform, pixels, pixels, 1.0, 1.0, 0.1)
    tiles = TileGrid(pixels, pixels, 768, 192, 3072)
    spec = DetectorSpec("/opt/geoseg/buildings.safetensors", None, None, "auto", 0.5, 1)
    return itertools.chain(
        SupertileTask(
            0, info, grid, tiles, divmod(i, side), (1, 2, 3), spec, None, False,
            Path(f"/data/out/o.geoseg-run/parts/{i:032x}.parquet"),
        )
        for i in range(count)
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
    with Workers(workers) as pool:
        list(pool.run(nothing, tasks(200)))
        watch = Watch()
        before = watch.cpu()
        watch.start()
        begun = time.perf_counter()
        n = sum(1 for _ in pool.run(nothing, tasks(count)))
        seconds = time.perf_counter() - begun
        watch.over.set()
        watch.join()
        watch.look()
        cpu = [b - a for a, b in zip(before, watch.cpu(), strict=True)]
    assert n == count
    # memory after the first tenth, when buffers have filled, against the end
    early = next(r for r in watch.rss if r[0] >= begun + seconds / 10)
    last = watch.rss[-1]
    per_night = NIGHT_SUPERTILES / count
    return {
        "supertiles": count,
        "workers": workers,
        "seconds": round(seconds, 2),
        "ms_per_supertile": round(1e3 * seconds / count, 3),
        "driver_cpu_ms": round(1e3 * cpu[0] / count, 3),
        "scheduler_cpu_ms": round(1e3 * cpu[1] / count, 3),
        "driver_bytes_per_supertile": round((last[1] - early[1]) / (0.9 * count)),
        "scheduler_bytes_per_supertile": round((last[2] - early[2]) / (0.9 * count)),
        "driver_mb": round(last[1] / 1e6, 1),
        "scheduler_mb": round(last[2] / 1e6, 1),
        "driver_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "share_of_night": round((cpu[0] + cpu[1]) * per_night / NIGHT_S, 5),
        "wall_share_of_night": round(seconds * per_night / NIGHT_S, 5),
    }


WKT = 'PROJCRS["WGS 84 / UTM zone 33N",' + "x" * 1500 + "]"


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
    text = (
        "# Overhead of driver and scheduler\n\n"
        f"{found['supertiles']:,} supertiles that do nothing on {found['workers']} workers, with "
        "the records of a real run. Driver, scheduler and workers share the cores.\n\n"
        + table(["per supertile", "measured"], rows)
        + f"\n\nAt the end the driver holds {found['driver_mb']} MB, the scheduler "
        f"{found['scheduler_mb']} MB. Of a ten-hour night of {NIGHT_SUPERTILES:,} supertiles, "
        f"driver and scheduler take {found['share_of_night']:.2%} of one core; all of it, workers' "
        f"share included, would be {found['wall_share_of_night']:.2%} of the night on these "
        f"{os.cpu_count()} cores.\n\n{machine()}\n"
    )
    write("scheduler", text, found)


if __name__ == "__main__":
    main()
