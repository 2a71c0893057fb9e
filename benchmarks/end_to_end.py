"""From the detections of a painted town to a GeoPackage and a GeoParquet file, out of core.

python benchmarks/end_to_end.py --objects 100000       (prints its figures as JSON)

`benchmarks/stitch_scale.py` runs it at several sizes, each in a process of its own so that peaks
of memory do not mix. Two worker processes, as `geoseg detect --workers 2` has them: the same parts,
the same joins, the same writers; only the detections are painted.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common  # noqa: F401  # finds the painted scenes
import numpy as np
import pyarrow as pa
import pyproj
from affine import Affine
from town_fragments import Town
from town_parts import PartTask, make_part

from geoseg.jobs.executor import Workers
from geoseg.jobs.join import ImageJoin, finished_objects, join_parts
from geoseg.objects.seams import SeamCounts
from geoseg.objects.shape import ShapeSettings
from geoseg.outputs.tables import ObjectsWriter, write_objects

OBJECTS_PER_TILE = 93
WORKERS = 2
CRS = pyproj.CRS.from_epsg(32645)


def image_of(town: Town) -> ImageJoin:
    """Return what joins know of the town: pixels of 14 cm in UTM."""
    return ImageJoin(
        number=0,
        name="town.tif",
        fingerprint="town",
        grid=town.grid,
        transform=Affine(0.14, 0, 330_000, 0, -0.14, 3_060_000),
        gsd_m=0.14,
        crs_wkt=CRS.to_wkt(),
        output_wkt="",
        classes=("house", "shed", "tree"),
        shape=ShapeSettings(),
        class_agnostic=False,
        aoi_wkb=None,
    )


def run(n_objects: int, folder: Path) -> dict[str, Any]:
    """Take a town of about that many objects through all stages."""
    side = max(2, round(np.sqrt(n_objects / OBJECTS_PER_TILE)))
    town = Town(side, side)
    seconds: dict[str, float] = {}
    rows, cols = town.grid.supertile_shape
    parts = {(0, (r, c)): folder / f"{r}-{c}.parquet" for r in range(rows) for c in range(cols)}
    joins = folder / "joins"
    joins.mkdir()
    objects = folder / "objects.parquet"
    with Workers(WORKERS) as workers:
        # processes start and draw the town before the clock runs
        list(workers.run(make_part, [PartTask(town, (0, 0), folder / "warm")] * WORKERS * 2))
        with timed(seconds, "parts"):
            tasks = [PartTask(town, index, path) for (_, index), path in parts.items()]
            made = [figures(outcome) for _, outcome in workers.run(make_part, tasks)]
        with timed(seconds, "joins"):
            joined = join_parts([image_of(town)], parts, joins, workers)[0]
    with timed(seconds, "objects file"), ObjectsWriter(objects, CRS) as writer:
        for table in finished_objects(joined):
            ids = pa.array(writer.rows + 1 + np.arange(len(table)), pa.int64())
            writer.write(table.add_column(0, "object_id", ids))
    shutil.rmtree(joins)
    for name in ("gpkg", "parquet"):
        with timed(seconds, name):
            write_objects(folder / f"out.{name}", objects)
    n = writer.rows
    seams = SeamCounts.total([summary.seams for _, summary in joined])
    return {
        "objects": n,
        "fragments": sum(m.fragments for m in made),
        "supertiles": len(parts),
        "waiting": sum(m.waiting for m in made),
        "joined_at_seams": seams.objects,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "us_per_object": 1e6 * sum(seconds.values()) / n,
        "worker_mb": max([m.peak_mb for m in made] + [s.peak_mb for _, s in joined]),
        "driver_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parts_gb": sum(m.bytes for m in made) / 1e9,
        "gpkg_gb": (folder / "out.gpkg").stat().st_size / 1e9,
        "parquet_gb": (folder / "out.parquet").stat().st_size / 1e9,
    }


def figures(outcome: Any) -> Any:
    """Return what a task gave, or raise what it raised."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add up the seconds of a stage by the wall clock."""
    begun = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=100_000)
    with tempfile.TemporaryDirectory(prefix="geoseg-bench-") as folder:
        print(json.dumps(run(parser.parse_args().objects, Path(folder))))


if __name__ == "__main__":
    main()
