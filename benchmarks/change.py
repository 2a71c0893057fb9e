"""Change between two dates: is what is said right, and what the detector's own errors add.

python benchmarks/change.py --seeds 3 6        (minutes per town on two cores)

Towns are rendered at two dates (`geoseg.scenes.dates`): a tenth of the houses goes, 15 % are new,
5 % grow by half; the second image has another sun, other noise, another extent, another hole
without data, and lies 1.5 m off. Three things are compared: the true outlines; the true outlines
redrawn with the noise of a detector; and what the shipped model finds in both images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from common import machine, table, write
from two_dates import NOTHING, Verdict, judge, moved_back, redrawn, two_dates

from geoseg.config import DetectSettings
from geoseg.jobs.changes import compare_files
from geoseg.jobs.pipeline import run_detect
from geoseg.objects.compare import KINDS, Comparison, compare
from geoseg.objects.evaluate import evaluate
from geoseg.outputs.tables import read_vector
from geoseg.scenes.dates import TownChange, TownDate, TwoDates, render_two_dates

CHANGED = ("gone", "appeared", "grown")
DATES = ("before", "after")
SAID = (*CHANGED, "shrunk", "split", "merged")
CHANGE = TownChange()
CARD = 0.65
"""Score of the shipped model's card."""
WEAK = 0.3
"""Objects from this score are kept, to confirm others."""


def figures(name: str, found: Comparison, verdict: Verdict, **more: Any) -> dict[str, Any]:
    """Return one row of results."""
    off = float(np.hypot(*np.subtract(found.shift_m, CHANGE.shift_m)))
    return {
        "compared": name,
        "houses": verdict.houses,
        "all_right": verdict.all_right,
        "found": verdict.found(*CHANGED),
        "true": verdict.true(*SAID),
        "shift_error_m": off,
        "shift_pairs": found.matched,
        "residual_m": found.residual_m,
        "outline_m": found.outline_m,
        "verdict": verdict.table.to_dict(),
        **more,
    }


def on_outlines(seed: int, size: int) -> list[dict[str, Any]]:
    """Compare true outlines, as they are and redrawn."""
    before, after, truth, seen = two_dates(seed, size_px=(size, size))
    both = seen[0] & moved_back(seen[1], CHANGE)
    rows = []
    for name, rough in (
        ("true outlines", None),
        ("redrawn, 0.15 m", 0.15),
        ("redrawn, 0.25 m", 0.25),
    ):
        rng = np.random.default_rng(seed)
        dates = [
            d if rough is None else redrawn(d, rng, prefix, rough_m=rough)
            for d, prefix in ((before, "a"), (after, "b"))
        ]
        found = compare(*dates, seen_before=seen[0], seen_after=seen[1])
        rows.append(figures(name, found, judge(found, truth, both), seed=seed))
    return rows


def detected(town: TwoDates, folder: Path, workers: int | None) -> list[Path]:
    """Run the shipped model on both dates, keeping weak detections too."""
    outputs = []
    for name, date in (("before", town.before), ("after", town.after)):
        output = folder / f"{name}.gpkg"
        run_detect(
            DetectSettings(
                images=(str(date.image),), output=output, workers=workers, min_score=WEAK
            )
        )
        outputs.append(output)
    return outputs


def end_to_end(seed: int, size: int, folder: Path, workers: int | None) -> dict[str, Any]:
    """Render, detect, compare; with the model's own score, and with two."""
    town = TwoDates(
        *(TownDate(folder / d / "town.tif", folder / d / "footprints.gpkg") for d in DATES),
        folder / "truth.gpkg",
    )
    if not town.changes.exists():
        render_two_dates(
            folder, width_px=size, height_px=size, seed=seed, density=1.4, change=CHANGE
        )
    outputs = detected(town, folder, workers)
    truth = read_vector(town.changes, layer="truth", what="truth")
    weak = compare_files(outputs, min_score=CARD)
    seen = [d.seen.to_crs(truth.crs).union_all() for d in weak.dates]
    both = seen[0] & moved_back(seen[1], CHANGE)
    objects = [d.objects for d in weak.dates]
    strong = [d[d["score"] >= CARD] for d in objects]
    rows = []
    quality = []
    for table_of, date, ground in zip(strong, (town.before, town.after), seen, strict=True):
        there = read_vector(date.footprints, what="truth")
        inside = gpd.GeoDataFrame(geometry=[shapely.buffer(ground, -3.0)], crs=truth.crs)
        quality.append(evaluate(table_of, there, aoi=inside))
    begun = time.perf_counter()
    plain = compare(*strong, seen_before=weak.dates[0].seen, seen_after=weak.dates[1].seen)
    compare_s = time.perf_counter() - begun
    for name, found in (
        (f"model, score {CARD}", plain),
        (f"model, score {CARD}, weaker from {WEAK} confirm", weak.steps[0]),
    ):
        rows.append(figures(name, found, judge(found, truth, both), seed=seed))
    return {
        "rows": rows,
        "quality": [
            {"precision": q.precision, "recall": q.recall, "f1": q.f1, "iou": q.mean_iou}
            for q in quality
        ],
        "compare_s": compare_s,
        "objects": [len(d) for d in strong],
    }


def pooled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add up the verdicts of all towns."""
    out = []
    for name in dict.fromkeys(row["compared"] for row in rows):
        mine = [row for row in rows if row["compared"] == name]
        names = [*KINDS, NOTHING]
        total = sum(
            pd.DataFrame(row["verdict"]).reindex(index=names, columns=names) for row in mine
        )
        verdict = Verdict(total)
        out.append(
            {
                "compared": name,
                "towns": len(mine),
                "houses": verdict.houses,
                "all_right": verdict.all_right,
                "found": verdict.found(*CHANGED),
                "true": verdict.true(*SAID),
                "worst_shift_error_m": max(row["shift_error_m"] for row in mine),
                "residual_m": float(np.mean([row["residual_m"] for row in mine])),
                "outline_m": float(np.mean([row["outline_m"] for row in mine])),
                "verdict": total.to_dict(),
            }
        )
    return out


def confusion(verdict: dict[str, dict[str, int]]) -> str:
    """Return truth by what was said, without empty rows and columns."""
    counts = pd.DataFrame(verdict)
    counts = counts.loc[counts.any(axis=1), counts.any(axis=0)]
    rows = [[name, *row.tolist()] for name, row in counts.iterrows()]
    return table(["truth \\ said", *counts.columns], rows)


def text(pools: list[dict[str, Any]], ends: list[dict[str, Any]], args: Any) -> str:
    """Return the page."""
    rows = [
        [
            p["compared"], p["towns"], p["houses"], f"{p['all_right']:.1%}", f"{p['found']:.1%}",
            f"{p['true']:.1%}", f"{p['worst_shift_error_m']:.3f}", f"{p['residual_m']:.2f}",
            f"{p['outline_m']:.2f}",
        ]
        for p in pools
    ]  # fmt: skip
    head = ["compared", "towns", "houses", "verdicts right", "changes found", "changes true",
            "shift off, m", "centres apart, m", "outlines apart, m"]  # fmt: skip
    parts = ["# Change between two dates", " ".join((__doc__ or "").split("\n\n")[2].split())]
    parts.append(
        "A verdict is right if a house is said to be what became of it, and nothing is said of "
        "what is no house; houses within 3 m of the end of what both dates show are left out. "
        "*Changes found*: of the houses gone, new or enlarged, the share said to be. *Changes "
        "true*: of the changes said (splits and mergers too), the share that are. *Shift off*: "
        "the estimated shift from the true one of 1.5 m, in the worst town. *Centres apart*: the "
        "median after the shift is taken out. *Outlines apart*: one deviation, as estimated."
    )
    sizes = f"--seeds {' '.join(map(str, args.seeds))} --size {args.size}"
    parts.append(f"{machine()}. `python benchmarks/change.py {sizes}`")
    parts.append(table(head, rows))
    if ends:
        parts.append("## What the detector's own errors add")
        quality = [q for end in ends for q in end["quality"]]
        mean = {k: float(np.mean([q[k] for q in quality])) for k in quality[0]}
        parts.append(
            f"The shipped model finds {mean['recall']:.1%} of the houses in these images, "
            f"{mean['precision']:.1%} of what it finds are houses (IoU 0.5, score 0.65). A house "
            "that it misses at one date and finds at the other is a change that never was; so "
            "changes are no better than twice the detector's errors. Weak detections that may "
            "confirm a house of the other date, but not stand alone, take back a part of that."
        )
    parts += [f"### {p['compared']}\n\n{confusion(p['verdict'])}" for p in pools]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--folder", type=Path, help="Keep the towns here, or use those that are.")
    parser.add_argument("--no-model", action="store_true", help="Only true outlines.")
    args = parser.parse_args()
    rows = [row for seed in args.seeds for row in on_outlines(seed, args.size)]
    ends = []
    with tempfile.TemporaryDirectory(prefix="geoseg-change-") as scratch:
        for seed in [] if args.no_model else args.seeds:
            folder = (args.folder or Path(scratch)) / str(seed)
            folder.mkdir(parents=True, exist_ok=True)
            ends.append(end_to_end(seed, args.size, folder, args.workers))
            rows += ends[-1]["rows"]
    pools = pooled(rows)
    write("change", text(pools, ends, args), {"pooled": pools, "towns": rows, "end_to_end": ends})


if __name__ == "__main__":
    main()
