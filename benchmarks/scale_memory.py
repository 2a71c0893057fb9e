"""Memory and time of a run against the size of its raster: 0.1, 1 and 10 gigapixels.

``python benchmarks/scale_memory.py`` writes docs/benchmarks/scale_memory. The rasters are sparse:
in every 3,072 px a block of 1,024 px is filled, the rest is nodata that takes no room on the disk.
Each run is a process of its own, in which all happens: plan, tiles, join, output, counts, report.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from common import machine, table, write
from rasterio.transform import from_origin
from rasterio.windows import Window

from geoseg.scenes.town import render_town

SIDES_PX = (10_240, 32_256, 102_400)
"""Sides of the rasters: 0.105, 1.04 and 10.5 gigapixels."""
EVERY_PX, BLOCK_PX = 3_072, 1_024
GSD_M = 0.13
LIMIT_MB = 3_000
"""What the largest process may take on a CPU."""


class Marks:
    """A detector as fast as one can be: a box for every mark that `painted_block` left."""

    classes = ("mark",)
    gsd_m = None
    tile_size = 1024
    overlap = 128
    min_score = 0.0
    fingerprint = "marks"

    def __call__(self, tiles: np.ndarray) -> list[Any]:
        """Return a square of 12 px around each pixel of 255 in the first band."""
        from geoseg.records import Instances

        found = []
        for tile in tiles:
            rows, cols = np.nonzero(tile[0] == 255)
            centre = np.stack([cols, rows, cols, rows], 1) + 0.5
            size = np.array(tile.shape[-1:0:-1] * 2)
            boxes = np.clip(centre + np.array([-6, -6, 6, 6]), 0, size)
            n = len(boxes)
            found.append(
                Instances(
                    boxes=boxes.astype(np.float32),
                    scores=np.full(n, 0.9, np.float32),
                    labels=np.zeros(n, np.int64),
                    masks=np.full((n, 2, 2), 0.6, np.float32),
                )
            )
        return found


def detector() -> Marks:
    """Return the detector of the painted rasters."""
    return Marks()


def painted_block() -> np.ndarray:
    """Return (3, B, B) uint8 of noise, with a mark every 48 px: 441 objects."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 200, (3, BLOCK_PX, BLOCK_PX), np.uint8)
    pixels[0, 24::48, 24::48] = 255
    return pixels


def town_block(folder: Path) -> np.ndarray:
    """Return (3, B, B) uint8 of a rendered town."""
    town = render_town(folder / "town", width_px=BLOCK_PX, height_px=BLOCK_PX, seed=5)
    with rasterio.open(town.image) as src:
        pixels: np.ndarray = src.read([1, 2, 3])
    return pixels


def write_sparse(path: Path, side: int, block: np.ndarray) -> None:
    """Write a raster in which all but a block in every `EVERY_PX` is absent."""
    every = EVERY_PX if side < SIDES_PX[-1] else 3 * EVERY_PX
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=side, width=side, dtype="uint8", nodata=0,
        crs="EPSG:32645", transform=from_origin(330_000, 3_070_000, GSD_M, GSD_M), tiled=True,
        blockxsize=512, blockysize=512, compress="deflate", sparse_ok=True, bigtiff="yes",
    ) as dst:  # fmt: skip
        for row in range(1024, side - BLOCK_PX, every):
            for col in range(1024, side - BLOCK_PX, every):
                dst.write(block, window=Window(col, row, BLOCK_PX, BLOCK_PX))


def run_one(image: str, output: str, detector_name: str | None) -> dict[str, Any]:
    """Run a whole job in this process and tell what it took."""
    from geoseg.config import DetectSettings
    from geoseg.jobs.pipeline import run_detect

    settings = DetectSettings(
        images=(image,),
        output=Path(output),
        detector=detector_name,
        grid="square:400",
        gsd="native" if detector_name else None,
        workers=1,
        overwrite=True,
    )
    begun, cpu = time.perf_counter(), time.process_time()
    # when the first supertile begins and the last one ends: libraries are loaded by then
    marks: list[float] = []
    result = run_detect(settings, progress=lambda *_: marks.append(time.process_time()))
    run = json.loads((Path(str(result.run_dir)) / "run.json").read_text())
    return {
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "supertiles_cpu_s": round(marks[-1] - marks[0], 2),
        "supertiles": sum(result.supertiles.values()),
        "tiles_run": int(result.coverage["tiles_run"].sum()),
        "tiles": int(result.coverage["tiles"].sum()),
        "objects": result.n_objects,
        "peak_mb": result.peak_mb,
        "peak_mb_by_stage": run["peak_mb_by_stage"],
    }


def run_apart(folder: Path, side: int, name: str, block: np.ndarray) -> dict[str, Any]:
    """Write a raster and run it in a process of its own."""
    image = folder / f"{name}-{side}.tif"
    write_sparse(image, side, block)
    own = "scale_memory:detector" if name == "marks" else ""
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(image), str(folder / f"{image.stem}.gpkg"), own],
        check=True,
        capture_output=True,
        text=True,
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"detector": name, "gigapixels": round(side**2 / 1e9, 3), **told}


def report(runs: list[dict[str, Any]], *, skipped: bool) -> str:
    marks = [run for run in runs if run["detector"] == "marks"]
    first, second = marks[0], marks[1]
    growth = second["supertiles_cpu_s"] / first["supertiles_cpu_s"]
    tiles = second["tiles"] / first["tiles"]
    rows = [
        (
            run["detector"],
            run["gigapixels"],
            f"{run['supertiles']:,}",
            f"{run['tiles_run']:,} of {run['tiles']:,}",
            f"{run['objects']:,}",
            f"{run['peak_mb']:,.0f}",
            f"{run['cpu_s']:.1f}",
            f"{1000 * run['supertiles_cpu_s'] / run['tiles_run']:.1f}",
            f"{run['seconds']:.1f}",
        )
        for run in runs
    ]
    head = (
        "detector", "gigapixels", "supertiles", "tiles run", "objects", "largest process, MB",
        "CPU, s", "supertiles' CPU a tile run, ms",
        "wall, s",
    )  # fmt: skip
    lines = [
        "# Memory and time against the raster's size",
        "",
        f"Made by `python benchmarks/scale_memory.py`. {machine()}.",
        "",
        (
            f"Sparse GeoTIFFs: in every {EVERY_PX:,} px a block of {BLOCK_PX:,} px is filled (in "
            f"the largest in every {3 * EVERY_PX:,}), the rest is nodata. 'marks' is a detector "
            "that costs nearly nothing, so that all that is not the network stands out; "
            "'buildings' is the shipped model on a rendered town. One process does all: plan, "
            "read, detect, trace, join, GeoPackage, counts in cells of 400 m, report."
        ),
        "",
        table(head, rows),
        "",
        (
            f"From {first['gigapixels']} to {second['gigapixels']} gigapixels, the supertiles' CPU "
            f"time grows by {growth:.2f} where the grid's tiles, with data or without, grow by "
            f"{tiles:.2f}: "
            f"{100 * (growth / tiles - 1):+.0f} % a tile. The largest process took "
            f"{max(run['peak_mb'] for run in runs):,.0f} MB; the limit is {LIMIT_MB:,} MB."
        ),
    ]
    if skipped:
        lines.append("\nThe 10 gigapixels were left out (`--quick`).")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without the 10 gigapixels")
    parser.add_argument("--one", nargs=3, metavar=("IMAGE", "OUTPUT", "DETECTOR"))
    args = parser.parse_args()
    if args.one:
        image, output, name = args.one
        print(json.dumps(run_one(image, output, name or None)))
        return
    runs = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for side in SIDES_PX[: 2 if args.quick else 3]:
            runs.append(run_apart(folder, side, "marks", painted_block()))
            print(json.dumps(runs[-1]), file=sys.stderr)
        runs.append(run_apart(folder, SIDES_PX[0], "buildings", town_block(folder)))
    write("scale_memory", report(runs, skipped=args.quick), {"machine": machine(), "runs": runs})


if __name__ == "__main__":
    main()
