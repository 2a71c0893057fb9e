"""What suggested squares teach a model, against random ones of the same ground.

    python benchmarks/suggest.py ../shared/data/buildings --base MODEL.safetensors [--n 8]

The base model must never have seen Banepa. Pool: the upper three quarters of banepa_core; its
labels are the truth, as of an annotator without fault. N squares are suggested by the base model
(`geoseg suggest`), N are drawn at random for each seed, and, with --match-objects, random ones
are drawn until they hold as many objects as the suggested ones. Each set fine-tunes the base model
for the same steps; judged are the final polygons on the southern quarter. The suggested squares are
trained on with every seed, too: what differs between those is chance alone.

The table goes to stdout, and everything to --json after each row: a run that is stopped keeps what
it had. Rows that the file has are not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

import geoseg
from geoseg.jobs.suggest import Suggestion, SuggestSettings, suggest
from geoseg.learning.train import train
from geoseg.models.registry import find_card
from geoseg.objects.evaluate import curve_of, evaluate

THRESHOLDS = tuple(np.round(np.arange(0.2, 0.96, 0.05), 2).tolist())
QUARTER = 0.25
LEAST = 5
"""Error rates of squares with fewer buildings are chance."""
IMAGE = "banepa.tif"
SETTINGS = ("n", "steps", "batch", "seeds")


def areas(data: Path) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Return the pool and the ground that judges, as rows with a CRS."""
    aois = gpd.read_file(data / "aois.geojson")
    core = aois[aois["aoi"] == "banepa_core"]
    x0, y0, x1, y1 = core.total_bounds
    cut = y0 + QUARTER * (y1 - y0)
    return tuple(
        gpd.GeoDataFrame(
            geometry=shapely.intersection(core.geometry.to_numpy(), shapely.box(x0, low, x1, high)),
            crs=aois.crs,
        )
        for low, high in ((cut, y1), (y0, cut))
    )


def random_squares(
    pool: gpd.GeoDataFrame, like: gpd.GeoDataFrame, n: int, seed: int
) -> gpd.GeoDataFrame:
    """Draw squares of the size of the suggested ones, inside the pool and apart from each other."""
    rng = np.random.default_rng(seed)
    ground = pool.to_crs(like.crs).union_all()
    whole = like.geometry.iloc[np.argmax(like.area)]
    left, bottom, right, top = whole.bounds
    width, height = right - left, top - bottom
    x0, y0, x1, y1 = ground.bounds
    found: list[Any] = []
    tries = 0
    while len(found) < n and tries < 100_000:
        tries += 1
        x, y = rng.uniform(x0, x1 - width), rng.uniform(y0, y1 - height)
        box = shapely.box(x, y, x + width, y + height)
        part = shapely.intersection(box, ground)
        # as suggest does: at least half of it on the pool, and none that overlaps another
        if part.area >= 0.5 * box.area and not any(part.intersects(f) for f in found):
            found.append(part)
    return gpd.GeoDataFrame(geometry=found, crs=like.crs)


def contained(truth: gpd.GeoDataFrame, squares: gpd.GeoDataFrame) -> int:
    """Count the true objects whose middle lies in a square."""
    points = truth.to_crs(squares.crs).representative_point()
    return int(points.within(squares.union_all()).sum())


def matched(
    pool: gpd.GeoDataFrame,
    like: gpd.GeoDataFrame,
    truth: gpd.GeoDataFrame,
    n_objects: int,
    seed: int,
) -> gpd.GeoDataFrame:
    """Draw as many random squares as it takes to hold that many objects."""
    many = random_squares(pool, like, 40, seed)
    counts = [contained(truth, many.iloc[[i]]) for i in range(len(many))]
    n = int(np.searchsorted(np.cumsum(counts), n_objects)) + 1
    return many.iloc[:n]


def fine_tune(
    folder: Path,
    data: Path,
    base: str,
    squares: gpd.GeoDataFrame,
    options: argparse.Namespace,
    seed: int,
) -> Path:
    """Train the base model on the squares, with the truth as labels; return the model."""
    folder.mkdir(parents=True, exist_ok=True)
    squares.to_file(folder / "aoi.gpkg")
    card = find_card(base)
    text = f"""
[train]
classes = ["building"]
gsd_m = {card.gsd_m}
start = {json.dumps(str(Path(base).absolute()) if base.endswith(".safetensors") else base)}
steps = {options.steps}
batch = {options.batch}
chip_px = 384
seed = {seed}
lr = 3e-4
lr_backbone = 8e-5
warmup = {min(20, options.steps // 4)}
ema = 0.98
checkpoint_every = 1000

[train.architecture]
{architecture(card.architecture)}

[card]
gsd_m = {card.gsd_m}
nms_iou = {card.nms_iou}
min_score = {card.min_score}

[[sites]]
name = "labelled"
image = {json.dumps(str((data / "ortho" / IMAGE).absolute()))}
labels = {json.dumps(str((data / "buildings.geojson").absolute()))}
where = "image = '{IMAGE}'"
aoi = "aoi.gpkg"
"""
    (folder / "train.toml").write_text(text, encoding="utf-8")
    return train(folder / "train.toml", folder / "run")


def architecture(values: Any) -> str:
    """Return the architecture as the lines of a TOML table."""
    return "\n".join(f"{k} = {json.dumps(v)}" for k, v in values.items() if v is not None)


def judge(
    model: str, data: Path, area: gpd.GeoDataFrame, truth: gpd.GeoDataFrame
) -> dict[str, Any]:
    """Return the best F1 over the thresholds, where it is, and AP, of the final polygons."""
    with tempfile.TemporaryDirectory() as folder:
        area.to_file(Path(folder) / "aoi.geojson")
        objects = geoseg.detect(
            data / "ortho" / IMAGE,
            model=model,
            aoi=Path(folder) / "aoi.geojson",
            min_score=0.15,
            workers=1,
        )
    result = evaluate(objects, truth, aoi=area)
    curve = curve_of(result, THRESHOLDS)
    best = curve.iloc[int(curve["f1"].argmax())]
    return {
        "f1": round(float(best["f1"]), 4),
        "at": float(best["min_score"]),
        "precision": round(float(best["precision"]), 4),
        "recall": round(float(best["recall"]), 4),
        "ap50": round(float(result.ap50), 4),
        "ap": round(float(result.ap), 4),
        "n_truth": result.n_truth,
    }


def suggested(data: Path, base: str, pool: gpd.GeoDataFrame, n: int, folder: Path) -> Suggestion:
    """Ask the base model."""
    pool.to_file(folder / "pool.geojson")
    return suggest(
        SuggestSettings(
            images=(str(data / "ortho" / IMAGE),),
            output=folder / "tasks.gpkg",
            model=base,
            n=n,
            aoi=folder / "pool.geojson",
            overwrite=True,
        )
    )


class Ledger:
    """Rows that are kept after each, so that a run that is stopped goes on."""

    def __init__(self, path: Path | None, settings: dict[str, str]) -> None:
        self.path, self.settings = path, settings
        self.rows: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self.rows = json.loads(path.read_text(encoding="utf-8"))["rows"]

    def keep(self, name: str, **row: Any) -> None:
        """Print a row and write all."""
        self.rows[name] = row
        print(f"{name:18} {json.dumps(row)}", flush=True)
        if self.path is not None:
            text = json.dumps({"settings": self.settings, "rows": self.rows}, indent=1)
            self.path.write_text(text, encoding="utf-8")


def main() -> None:
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    pool, south = areas(options.data)
    truth = gpd.read_file(options.data / "buildings.geojson", where=f"image = '{IMAGE}'")
    settings = {k: str(v) for k, v in vars(options).items() if k in SETTINGS}
    if options.signals:
        print(signals(options, pool, truth).round(2).to_string())
        return
    ledger = Ledger(options.json, settings)
    sets = squares_of(options, pool, truth)
    for name, (squares, _) in sets.items():
        print(f"{name}: {len(squares)} squares, {contained(truth, squares)} objects", flush=True)
    if "base" not in ledger.rows:
        ledger.keep("base", squares=0, objects=0, **judge(options.base, options.data, south, truth))
    for name, (squares, seed) in sets.items():
        if name in ledger.rows:
            continue
        begun = time.perf_counter()
        folder = options.work / name.replace(" ", "_")
        model = fine_tune(folder, options.data, options.base, squares, options, seed)
        figures = judge(str(model), options.data, south, truth)
        ledger.keep(
            name,
            squares=len(squares),
            objects=contained(truth, squares),
            area_share=round(float(squares.area.sum() / pool.to_crs(squares.crs).area.sum()), 4),
            minutes=round((time.perf_counter() - begun) / 60, 1),
            **figures,
        )


def signals(
    options: argparse.Namespace, pool: gpd.GeoDataFrame, truth: gpd.GeoDataFrame
) -> pd.DataFrame:
    """Return rank correlations of the signals with the base model's errors, square by square."""
    found = suggested(options.data, options.base, pool, 10_000, options.work)
    tasks = found.tasks
    objects = found.objects[found.objects["score"] >= find_card(options.base).min_score]
    rows = []
    for i in range(len(tasks)):
        e = evaluate(objects, truth, aoi=tasks.iloc[[i]])
        true = round(e.recall * e.n_truth)
        rows.append((e.n_truth, e.n_objects + e.n_truth - 2 * true, 1 - e.f1))
    told = pd.DataFrame(rows, columns=["n_truth", "errors", "error_rate"])
    first = tasks["rank"].to_numpy() <= options.n
    errors = told["errors"].to_numpy()
    print(f"{len(tasks)} squares; errors in each of the first {options.n}: "
          f"{errors[first].mean():.1f}, in each other: {errors[~first].mean():.1f}")  # fmt: skip
    plain = tasks[["value", "uncertainty", "disagreement", "n_objects"]].reset_index(drop=True)
    some = plain["n_objects"].clip(lower=1)
    plain["uncertainty per object"] = plain["uncertainty"] / some
    plain["disagreement per object"] = plain["disagreement"] / some
    enough = told["n_truth"] >= LEAST
    return pd.DataFrame(
        {
            "errors": plain.corrwith(told["errors"], method="spearman"),
            "error_rate": plain.corrwith(told["error_rate"], method="spearman"),
            f"error_rate, {LEAST}+ buildings": plain[enough].corrwith(
                told["error_rate"][enough], method="spearman"
            ),
        }
    )


def squares_of(
    options: argparse.Namespace, pool: gpd.GeoDataFrame, truth: gpd.GeoDataFrame
) -> dict[str, tuple[gpd.GeoDataFrame, int]]:
    """Return the sets of squares, each with the seed of its training."""
    if (options.work / "tasks.gpkg").exists():
        tasks = gpd.read_file(options.work / "tasks.gpkg", layer="tasks")
    else:
        tasks = suggested(options.data, options.base, pool, options.n, options.work).tasks
    n_objects = contained(truth, tasks)
    # the squares are the same, the chips that are cut from them differ
    sets = {f"suggested {seed}": (tasks, seed) for seed in range(1, options.seeds + 1)}
    for seed in range(1, options.seeds + 1):
        sets[f"random {seed}"] = (random_squares(pool, tasks, options.n, seed), seed)
    if options.match_objects:
        for seed in range(1, options.seeds + 1):
            found = matched(pool, tasks, truth, n_objects, 100 + seed)
            sets[f"matched {seed}"] = (found, seed)
    return sets


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--base", required=True, help="model that never saw Banepa")
    parser.add_argument("--n", type=int, default=8, help="squares")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind")
    parser.add_argument("--match-objects", action="store_true")
    parser.add_argument(
        "--signals", action="store_true", help="only say what the signals tell of the base's errors"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
