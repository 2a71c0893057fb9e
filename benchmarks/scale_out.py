"""One and two workers with the shipped model on a rendered town: ratio, and where the rest goes."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import psutil
from common import machine, table, write

from geoseg.config import DetectSettings
from geoseg.jobs.capacity import physical_cores
from geoseg.jobs.pipeline import run_detect
from geoseg.scenes.town import render_town


def measure(image: Path, folder: Path, workers: int, supertile: int) -> dict[str, Any]:
    found = run_detect(
        DetectSettings(
            images=(str(image),),
            output=folder / f"{workers}.gpkg",
            workers=workers,
            supertile_size=supertile,
        )
    )
    told = json.loads((folder / f"{workers}.geoseg-run" / "run.json").read_text())["seconds"]
    return {
        "workers": workers,
        "objects": found.n_objects,
        "uids": sorted(found.objects["uid"]),
        "total_s": told["total"],
        "supertiles_s": told["supertiles"],
        "after_s": round(told["total"] - told["supertiles"], 2),
        "at_work_s": round(sum(v for k, v in told.items() if k.startswith("worker_")), 2),
        **{k: v for k, v in told.items() if k.startswith("worker_")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=3072, help="side of the town, px")
    parser.add_argument("--supertile", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        town = render_town(folder, width_px=options.size, height_px=options.size, seed=3)
        runs = [measure(town.image, folder, n, options.supertile) for n in (1, 2)]
    one, two = runs
    first, second = set(one.pop("uids")), set(two.pop("uids"))
    same = len(first & second)
    figures = {
        "size_px": options.size,
        "supertile_px": options.supertile,
        "runs": runs,
        "ratio_supertiles": round(one["supertiles_s"] / two["supertiles_s"], 3),
        "ratio_total": round(one["total_s"] / two["total_s"], 3),
        "same_uids": same,
        "physical_cores": psutil.cpu_count(logical=False),
        "cores_used": physical_cores(),
    }
    names = ["total_s", "supertiles_s", "after_s", "at_work_s", "worker_detect", "worker_read"]
    rows = [[name, *(run.get(name, "") for run in runs)] for name in names]
    text = (
        "# One and two workers\n\n"
        f"A rendered town of {options.size} px a side, supertiles of {options.supertile} px, the "
        f"shipped model (`python benchmarks/scale_out.py --size {options.size}`).\n\n"
        + table(["seconds", "1 worker", "2 workers"], rows)
        + f"\n\nThroughput of the supertiles: x {figures['ratio_supertiles']}; of the whole run: x "
        f"{figures['ratio_total']}. {same} of {one['objects']} and {two['objects']} objects have "
        "the same uid.\n\n"
        "What is missing to twice as fast: there are not twice as many cores. One worker computes "
        f"on all of them already (PyTorch has {physical_cores()} thread(s) there, one each with "
        "two), and reads and traces beside that; two gain what threads lose to each other, and "
        "lose the start of Dask. Stages of two supertiles overlap, so 'at "
        "work' may be more than the workers' time by the clock.\n\n"
        f"{machine()}\n"
    )
    write("scale_out", text, figures)


if __name__ == "__main__":
    main()
