"""Kill runs with SIGKILL at random moments of every stage; the same command must make them whole.

``python benchmarks/kills.py --kills 100`` writes the figures of docs/benchmarks. Half of the kills
fall anywhere in a run, the others in a stage drawn by lot, so that those of some milliseconds get
their share.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyogrio
import rasterio
import shapely
from common import machine, table, write
from kills import STAGES, SUPERTILES, TILES_EACH, Kill, random_kill, stage_lengths
from painted import blob_scene
from runs import NORTH_UP, UTM, command
from runs import table as rows_of

from geoseg.jobs.executor import IN_FLIGHT

WHAT = {
    "start": "imports, plan, start of workers",
    "supertiles": "read, detect, stitch, write parts",
    "join": "join the parts, write objects.parquet",
    "count": "coverage, counts in regions",
    "publish": "write the GeoPackage, put it in place",
    "manifest": "write what the run tells about itself",
    "over": "exit",
}


def paint(folder: Path) -> tuple[Path, Path]:
    """Write the scene of the tests, and four regions over it."""
    scene = blob_scene(5, size=520, count=110, large=1)
    image, regions = folder / "painted.tif", folder / "regions.gpkg"
    with rasterio.open(
        image, "w", driver="GTiff", count=2, height=520, width=520, dtype="uint16", crs=UTM,
        transform=NORTH_UP,
    ) as dst:  # fmt: skip
        dst.write(scene.pixels)
    x, y = 500_000, 5_500_000
    boxes = [
        shapely.box(x + 26 * i, y - 26 * (j + 1), x + 26 * (i + 1), y - 26 * j)
        for i in (0, 1)
        for j in (0, 1)
    ]
    gpd.GeoDataFrame({"name": list("abcd")}, geometry=boxes, crs=UTM).to_file(regions)
    return image, regions


def counts_of(path: Path) -> list[list[Any]]:
    """Return the regions layer without its outlines."""
    frame = pyogrio.read_dataframe(path, layer="regions", read_geometry=False)
    rows: list[list[Any]] = frame.to_numpy().tolist()
    return rows


def measure(n_kills: int, seed: int, folder: Path) -> dict[str, Any]:
    image, regions = paint(folder)
    more = ("--regions", str(regions))
    lengths = {
        workers: stage_lengths(
            command(image, folder / f"calm-{workers}.gpkg", *more, workers=workers),
            folder / f"calm-{workers}.gpkg",
            workers,
        )
        for workers in (1, 2)
    }
    objects, counts = rows_of(folder / "calm-1.gpkg"), counts_of(folder / "calm-1.gpkg")
    kills: list[Kill] = []
    redone, same, number = 0, 0, -1
    begun = time.perf_counter()
    while len(kills) < n_kills:
        number += 1
        output = folder / f"{number}.gpkg"
        rng = random.Random(seed + number)
        kill, beyond = random_kill(
            rng, image, output, *more, lengths=lengths.__getitem__, anywhere=number % 2 == 0
        )
        if not kill.alive:
            # it had just ended: nothing was killed
            continue
        redone += beyond
        same += rows_of(output) == objects and counts_of(output) == counts
        kills.append(kill)
        print(
            f"{len(kills):4d} {kill.stage:10s} {kill.workers} worker(s), {len(kill.finished)} "
            f"finished, {kill.in_vain} in vain, {same} of {len(kills)} identical, "
            f"{time.perf_counter() - begun:.0f} s",
            flush=True,
        )
    return {
        "kills": n_kills,
        "by_stage": {s: sum(k.stage == s for k in kills) for s in STAGES},
        "two_workers": sum(k.workers == 2 for k in kills),
        "seconds_of_stages": {
            str(w): {s: round(t, 3) for s, t in took.items()} for w, took in lengths.items()
        },
        "in_vain": {str(k): v for k, v in sorted(Counter(k.in_vain for k in kills).items())},
        "in_vain_most": max(k.in_vain for k in kills),
        "redone_beyond_in_flight": redone,
        "finished_parts_kept": sum(len(k.finished) for k in kills),
        "identical": same,
        "objects": len(objects),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def report(found: dict[str, Any]) -> None:
    """Write the page and its figures."""
    by_stage, took = found["by_stage"], found["seconds_of_stages"]["1"]
    rows = [[s, WHAT[s], took[s] if s != "over" else "", by_stage[s]] for s in STAGES]
    n, vain = found["kills"], ", ".join(f"{k} ({v} kills)" for k, v in found["in_vain"].items())
    text = (
        "# Killed runs\n\n"
        f"{n} runs over a painted raster ({SUPERTILES} supertiles of {TILES_EACH} tiles, "
        f"{found['objects']} objects, four regions) were killed with SIGKILL, the driver's process "
        f"alone, {found['two_workers']} of them with two workers; then the same command was given "
        "again. Each had to end with exit code 0, an intact database, no tile left out, and its "
        "objects and counts equal to those of an undisturbed run, geometries byte for byte.\n\n"
        + table(["killed during", "what is done there", "seconds, calm", "kills"], rows)
        + f"\n\n**{found['identical']} of {n} are identical.** {found['finished_parts_kept']} "
        "parts had been finished when their runs were killed; none was written or computed again. "
        f"Supertiles that the detector had seen and whose work was lost, by run: {vain}; in flight "
        f"are {IN_FLIGHT} a worker. Supertiles done again beyond those in flight: "
        f"{found['redone_beyond_in_flight']}. No process outlived a killed run.\n\n{machine()}\n"
    )
    write("kills", text, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report(measure(options.kills, options.seed, Path(scratch)))


if __name__ == "__main__":
    main()
