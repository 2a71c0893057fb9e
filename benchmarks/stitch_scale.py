"""Stitching a large painted town: time per fragment, at any size, and against SAHI.

python benchmarks/stitch_scale.py                                         (a million of each)
python benchmarks/stitch_scale.py --fragments 100000 --objects 100000     (shorter)
python benchmarks/stitch_scale.py --objects 10000000                      (30 GB of disk, an hour)

First stitching alone: supertiles are split and stitched by worker processes, then one pass over
the fragments that wait at the seams. Then all of a job but the network: parts, joins out of core,
GeoPackage and GeoParquet (`end_to_end.py`). The detections are made before the clock runs. SAHI
is optional: pip install sahi.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import common
import numpy as np
from town_fragments import Town

from geoseg.objects.stitch import split_settled, stitch
from geoseg.records import Fragments, Tile

PER_TILE = 172
"""Fragments of a tile, about; the number asked for decides the tiles."""
TARGET_S = 60.0
SAHI_SECONDS = 60.0
WORKERS = 2


def town_of(fragments: int, side: int | None = None) -> Town:
    """Return a square town with about that many fragments."""
    side = side or max(2, round(np.sqrt(fragments / PER_TILE)))
    return Town(side, side)


def pattern_of(town: Town) -> Town:
    """Make a town's detections before the clock runs."""
    len(town.pattern)
    return town


_TOWN: dict[str, Town] = {}


def _begin(town: Town) -> None:
    _TOWN["town"] = pattern_of(town)


def run_supertile(index: tuple[int, int]) -> dict[str, Any]:
    """Split and stitch one supertile as a worker does; seconds, CPU and wall, of that alone."""
    town = _TOWN["town"]
    supertile = town.grid.supertile(*index)
    fragments = town.fragments(supertile)
    foreign = town.grid.foreign_ground(range(index[0], index[0] + 1), range(index[1], index[1] + 1))
    wall, cpu = time.perf_counter(), time.process_time()
    settled = split_settled(fragments, supertile.tiles, foreign)
    objects = stitch(fragments.take(settled), supertile.tiles)
    spent = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "fragments": len(fragments),
        "objects": len(objects),
        "waiting": fragments.take(~settled),
        "tiles": supertile.tiles,
        "wall": spent[0],
        "cpu": spent[1],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def seam_pass(results: list[dict[str, Any]]) -> dict[str, float]:
    """Stitch what waits; as `run_supertile` counts."""
    tiles: list[Tile] = []
    waiting = []
    for result in results:
        part = result["waiting"]
        columns = {name: getattr(part, name) for name in Fragments.__slots__}
        columns["tiles"] = part.tiles + len(tiles)
        waiting.append(Fragments(**columns))
        tiles.extend(result["tiles"])
    together = Fragments.concatenate(waiting)
    wall, cpu = time.perf_counter(), time.process_time()
    objects = stitch(together, tiles)
    return {
        "waiting": len(together),
        "objects": len(objects),
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run_town(fragments: int) -> dict[str, Any]:
    """Stitch one town with `WORKERS` processes."""
    town = town_of(fragments)
    rows, cols = town.grid.supertile_shape
    places = [(r, c) for r in range(rows) for c in range(cols)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        WORKERS, mp_context=context, initializer=_begin, initargs=(pattern_of(town),)
    ) as pool:
        results = list(pool.map(run_supertile, places))
    seams = seam_pass(results)
    n = sum(r["fragments"] for r in results)
    inside = {key: sum(r[key] for r in results) for key in ("cpu", "wall")}
    # supertiles share the processes evenly; the pass across seams has one to itself
    seconds = {key: inside[key] / WORKERS + seams[key] for key in ("cpu", "wall")}
    return {
        "fragments": n,
        "objects": sum(r["objects"] for r in results) + seams["objects"],
        "waiting": seams["waiting"],
        "inside_cpu_s": inside["cpu"],
        "seam_cpu_s": seams["cpu"],
        "seconds_cpu": seconds["cpu"],
        "seconds_wall": seconds["wall"],
        "us_per_fragment": 1e6 * (inside["cpu"] + seams["cpu"]) / n,
        "worker_mb": max(r["peak_mb"] for r in results),
        "seam_mb": seams["peak_mb"],
    }


def against_sahi() -> list[dict[str, Any]]:
    """Stitch whole towns of growing size with both, until SAHI takes its minute."""
    rows: list[dict[str, Any]] = []
    side, spent = 3, 0.0
    small = pattern_of(Town(1, 1))
    first = small.grid.supertile(0, 0)
    shape = small.grid.height, small.grid.width
    for kind in ("GREEDYNMM", "NMS"):
        # its first call imports the array backend
        common.sahi_postprocess(kind)(
            common.sahi_predictions(small.fragments(first), first.tiles, shape)
        )
    while spent < SAHI_SECONDS / 3:
        town = pattern_of(Town(side, side, supertile_size=10**9))
        supertile = town.grid.supertile(0, 0)
        fragments = town.fragments(supertile)
        begun = time.process_time()
        objects = stitch(fragments, supertile.tiles)
        ours = time.process_time() - begun
        row: dict[str, Any] = {"fragments": len(fragments), "objects": len(objects), "geoseg": ours}
        shape = town.grid.height, town.grid.width
        for kind in ("GREEDYNMM", "NMS"):
            predictions = common.sahi_predictions(fragments, supertile.tiles, shape)
            postprocess = common.sahi_postprocess(kind)
            begun = time.process_time()
            found = postprocess(predictions)
            row[kind] = time.process_time() - begun
            row[f"{kind} objects"] = len(found)
        rows.append(row)
        print(row, flush=True)
        spent = row["GREEDYNMM"]
        side *= 2
    return rows


def end_to_end(objects: int) -> dict[str, Any]:
    """Run `end_to_end.py` in a process of its own, so that peaks of memory do not mix."""
    script = Path(__file__).with_name("end_to_end.py")
    command = [sys.executable, str(script), "--objects", str(objects)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def end_to_end_part(runs: list[dict[str, Any]]) -> list[str]:
    """Return the part of the page on whole jobs."""
    first, last = runs[0], runs[-1]
    stages = list(last["seconds"])
    growth = last["us_per_object"] / first["us_per_object"]
    largest = max(last["worker_mb"], last["driver_mb"])
    return [
        "## End to end, out of core",
        ("The same town from its detections to tables, with two worker processes and the parts, "
        "joins and writers of `geoseg detect`; outlines simplified to 0.25 px. Seconds by the "
        "wall clock; memory is the largest resident size of any worker, and of the driver."),
        common.table(
            ("objects", "fragments", *(f"{s} s" for s in stages), "us an object", "worker MB",
             "driver MB", "parts GB", "GeoPackage GB", "GeoParquet GB"),
            [
                (
                    f"{r['objects']:,}",
                    f"{r['fragments']:,}",
                    *(f"{r['seconds'][s]:.1f}" for s in stages),
                    f"{r['us_per_object']:.0f}",
                    f"{r['worker_mb']:.0f}",
                    f"{r['driver_mb']:.0f}",
                    *(f"{r[f'{name}_gb']:.2f}" for name in ("parts", "gpkg", "parquet")),
                )
                for r in runs
            ],
        ),
        (f"Time per object at {last['objects']:,} objects is {growth:.2f} times that at "
        f"{first['objects']:,}; the largest process has {largest:,.0f} MB."),
    ]  # fmt: skip


def report(
    towns: list[dict[str, Any]],
    whole: list[dict[str, Any]],
    rivals: list[dict[str, Any]],
    command: str,
) -> str:
    """Return the page."""
    largest = towns[-1]
    flat = largest["us_per_fragment"] / towns[0]["us_per_fragment"]
    setting = (
        "Fragments of a painted town: houses and trees of 10 to 37 px, some of 90 to 150 px, as a "
        "detector with 28 x 28 masks and disturbed boxes shows them (113 vertices each); tile "
        "512, overlap 128, so that more than half of the ground is seen twice or more. "
        "Supertiles of 4,096 px are split (`split_settled`) and stitched by two processes, then "
        "one process stitches what waits at the seams. Seconds are CPU seconds: those inside "
        "supertiles divided by two, plus those of the pass across seams."
    )
    flatness = (
        f"Time per fragment at {largest['fragments']:,} fragments is {flat:.2f} times that at "
        f"{towns[0]['fragments']:,}. By the wall clock, added up in the same way, the largest "
        f"town took {largest['seconds_wall']:.1f} s; CPU seconds leave out what else the machine "
        "was busy with."
    )
    lines = [
        "# Stitching at scale",
        setting,
        f"{common.machine()}. `{command}`",
        common.table(
            (
                "fragments",
                "objects",
                "waiting",
                "s on 2 cores",
                "us a fragment",
                "worker MB",
                "seam MB",
            ),
            [
                (
                    f"{t['fragments']:,}",
                    f"{t['objects']:,}",
                    f"{t['waiting']:,}",
                    f"{t['seconds_cpu']:.1f}",
                    f"{t['us_per_fragment']:.1f}",
                    f"{t['worker_mb']:.0f}",
                    f"{t['seam_mb']:.0f}",
                )
                for t in towns
            ],
        ),
        flatness,
    ]
    if whole:
        lines += end_to_end_part(whole)
    lines += ["## Against SAHI's postprocess", common.sahi_in_words()]
    if rivals:
        lines.append(
            "The same fragments in one process, CPU seconds; ratios are SAHI's time to geoseg's. "
            "SAHI gets its own records, ready made: the clock runs for its postprocess alone. Its "
            "greedy merging, the default, compares boxes and joins the polygons of what matches, "
            "as geoseg joins those of cut objects; NMS compares boxes and joins nothing, so cut "
            "objects stay in pieces. What comes out is judged in [seams.md](seams.md)."
        )
        lines.append(
            common.table(
                ("fragments", "geoseg s", "GREEDYNMM s", "ratio", "NMS s", "ratio"),
                [
                    (
                        f"{r['fragments']:,}",
                        f"{r['geoseg']:.2f}",
                        f"{r['GREEDYNMM']:.2f}",
                        f"{r['GREEDYNMM'] / r['geoseg']:.1f}",
                        f"{r['NMS']:.2f}",
                        f"{r['NMS'] / r['geoseg']:.1f}",
                    )
                    for r in rivals
                ],
            )
        )
    return "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fragments", type=int, default=1_000_000)
    parser.add_argument("--objects", type=int, default=1_000_000, help="end to end; 0: leave out")
    wanted = parser.parse_args()
    most = wanted.fragments
    towns = []
    for size in sorted({n for n in (10_000, 100_000) if n < most} | {most}):
        towns.append(run_town(size))
        print(towns[-1], flush=True)
    whole = []
    sizes = {n for n in (100_000, 1_000_000) if n < wanted.objects} | {wanted.objects}
    for size in sorted(sizes - {0}):
        whole.append(end_to_end(size))
        print(whole[-1], flush=True)
    rivals = against_sahi() if common.SAHI_VERSION else []
    figures = {
        "machine": common.machine(),
        "sahi": common.SAHI_VERSION,
        "towns": towns,
        "end_to_end": whole,
        "against_sahi": rivals,
    }
    command = f"python benchmarks/stitch_scale.py --fragments {most} --objects {wanted.objects}"
    common.write("stitch_scale", report(towns, whole, rivals, command), figures)


if __name__ == "__main__":
    main()
