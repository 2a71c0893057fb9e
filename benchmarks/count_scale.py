"""Count millions of objects in thousands of regions: seconds, and memory that does not grow.

A painted town: houses of 5 to 21 vertices, in the order in which a run writes them, in the file
that a run writes. Regions are the cells of a bent net, so that their edges run askew and are
shared: what wards look like.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from geoseg.jobs.memory import peak_mb
from geoseg.objects.count import RULES, RegionCounter
from geoseg.outputs.polygons import open_polygons
from geoseg.outputs.tables import OBJECT_SCHEMA, ObjectsWriter

CRS = 32645
SPACING_M = 20.0
BLOCK = 100_000
SEED = 7


def town(path: Path, n: int) -> float:
    """Write a town of n houses, block by block; return its side in metres."""
    per_row = int(np.ceil(np.sqrt(n)))
    rng = np.random.default_rng(SEED)
    with ObjectsWriter(path, CRS) as writer:
        for start in range(0, n, BLOCK):
            number = np.arange(start, min(start + BLOCK, n))
            writer.write(houses(number, per_row, rng))
    return per_row * SPACING_M


def houses(number: np.ndarray, per_row: int, rng: np.random.Generator) -> pa.Table:
    """Return some houses of the town as a run writes them."""
    n = len(number)
    # as supertiles come: strips of 256 houses a side, then row by row in them
    strip, rest = np.divmod(number, 256 * per_row)
    col, row = rest // 256, strip * 256 + rest % 256
    centre = np.column_stack([col, row]) * SPACING_M + rng.uniform(-4, 4, (n, 2))
    corners = rng.integers(4, 21, n)
    angle = rng.uniform(0, 2 * np.pi, n)
    radius = rng.uniform(3, 9, n)
    turn = np.arange(20) / corners[:, None] * 2 * np.pi + angle[:, None]
    bumps = radius[:, None] * rng.uniform(0.85, 1.0, (n, 20))
    x = 330_000 + centre[:, :1] + bumps * np.cos(turn)
    y = 3_060_000 + centre[:, 1:] + bumps * np.sin(turn)
    used = np.arange(20) < corners[:, None]
    owner = np.repeat(np.arange(n), corners)
    polygons = shapely.polygons(shapely.linearrings(np.column_stack([x[used], y[used]]),
                                                    indices=owner))  # fmt: skip
    texts = pa.array([f"{i:016x}" for i in number.tolist()])
    columns: dict[str, Any] = {
        "object_id": pa.array(number + 1, pa.int64()),
        "uid": texts,
        "class": pa.array(np.where(rng.random(n) < 0.2, "shed", "house")),
        "score": pa.array(rng.uniform(0.5, 1.0, n)),
        "area_m2": pa.array(shapely.area(polygons).round(3)),
        "perimeter_m": pa.array(shapely.length(polygons)),
        "n_parts": pa.array(np.ones(n, np.int32)),
        "touches_edge": pa.array(np.zeros(n, bool)),
        "image": pa.array(["town.tif"] * n),
        "geometry": pa.array(shapely.to_wkb(polygons), pa.binary()),
    }
    return pa.table(columns, schema=OBJECT_SCHEMA)


def wards(side_m: float, n: int) -> gpd.GeoDataFrame:
    """Return about n regions that share edges of some twenty vertices each."""
    k = max(int(np.sqrt(n)), 1)
    steps = 5
    line = np.arange(k * steps + 1) / (k * steps)
    gx, gy = np.meshgrid(line, line)
    step = 1 / k
    x = gx + 0.2 * step * np.sin(2 * np.pi * gy * k / 3.3)
    y = gy + 0.2 * step * np.sin(2 * np.pi * gx * k / 2.7)
    # a tenth of the town lies in no region
    at = np.stack([330_000 + side_m * 0.95 * x, 3_060_000 + side_m * 0.95 * y], axis=2)
    cells = []
    for row in range(k):
        for col in range(k):
            r0, r1, c0, c1 = row * steps, (row + 1) * steps, col * steps, (col + 1) * steps
            ring = np.concatenate([at[r0, c0:c1], at[r0:r1, c1], at[r1, c1:c0:-1],
                                   at[r1:r0:-1, c0]])  # fmt: skip
            cells.append(shapely.Polygon(ring))
    names = [f"ward {i}" for i in range(len(cells))]
    return gpd.GeoDataFrame({"name": names}, geometry=cells, crs=CRS)


def count(objects: Path, regions: Path, rule: str) -> dict[str, Any]:
    """Count once; this is what the clock runs for."""
    table = gpd.read_parquet(regions)
    begun, busy = time.perf_counter(), time.process_time()
    found = open_polygons(objects)
    counter = RegionCounter(table, found.crs, rule=rule, around=found.bounds)  # type: ignore[arg-type]
    found.count_into(counter)
    counted = counter.result()
    total = float(counted["count"].sum() + counted.attrs["outside"])
    return {
        "rule": rule,
        "objects": found.rows,
        "regions": len(table),
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_s": round(time.process_time() - busy, 1),
        "peak_mb": round(peak_mb()),
        "load": round(os.getloadavg()[0], 1),
        "outside": counted.attrs["outside"],
        "counts_and_outside": total,
    }


def run(objects: Path, regions: Path, rule: str) -> dict[str, Any]:
    """Count in a process of its own, so that peaks of memory do not mix."""
    command = [sys.executable, __file__, "--count", str(objects), str(regions), rule]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(figures, flush=True)
    return figures


def report(rows: list[dict[str, Any]], size: dict[str, float], command: str) -> str:
    """Return the page."""
    largest = [r for r in rows if r["objects"] == max(x["objects"] for x in rows)]
    return "\n\n".join(
        [
            "# Counting at scale",
            (
                "Objects from the file that a run writes, streamed into regions that share bent "
                "edges (20 vertices each), in one process, with class, covered ground and mean "
                "size, reading included. s is the wall clock, which shows what else the machine "
                "did: load is how many processes wanted one of its cores at the end. The memory "
                "is the largest resident size of the process."
            ),
            f"{common.machine()}. `{command}`",
            common.table(
                ("objects", "regions", "rule", "s", "CPU s", "CPU us an object", "peak MB", "load",
                 "counts + outside"),
                [
                    (
                        f"{r['objects']:,}",
                        f"{r['regions']:,}",
                        r["rule"],
                        f"{r['seconds']:.1f}",
                        f"{r['cpu_s']:.1f}",
                        f"{1e6 * r['cpu_s'] / r['objects']:.1f}",
                        f"{r['peak_mb']:,}",
                        r["load"],
                        "-" if r["rule"] == "intersects" else f"{r['counts_and_outside']:,.2f}",
                    )
                    for r in rows
                ],
            ),
            (
                f"The file of {largest[0]['objects']:,} objects has {size['gb']:.2f} GB. By point "
                "and by area, counts and outside are all objects; by intersects they are not, "
                "because an object on an edge counts in both regions."
            ),
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=10_000_000)
    parser.add_argument("--regions", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="Keep the town here.")
    parser.add_argument("--count", nargs=3, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.count:
        print(json.dumps(count(Path(wanted.count[0]), Path(wanted.count[1]), wanted.count[2])))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = wanted.folder or Path(scratch)
        rows: list[dict[str, Any]] = []
        size = {"gb": 0.0}
        sizes = sorted({n for n in (1_000_000,) if n < wanted.objects} | {wanted.objects})
        for n in sizes:
            objects, regions = folder / f"town-{n}.parquet", folder / f"wards-{n}.parquet"
            if not objects.exists():
                side = town(objects, n)
                wards(side, wanted.regions).to_parquet(regions)
            assert pq.read_metadata(objects).num_rows == n
            size["gb"] = objects.stat().st_size / 1e9
            rows += [run(objects, regions, rule) for rule in (RULES if n == sizes[-1] else
                                                             ("point",))]  # fmt: skip
    command = f"python benchmarks/count_scale.py --objects {wanted.objects}"
    command += f" --regions {wanted.regions}"
    figures = {"machine": common.machine(), "rows": rows, **size}
    common.write("count_scale", report(rows, size, command), figures)


if __name__ == "__main__":
    main()
