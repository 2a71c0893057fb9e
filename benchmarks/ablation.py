"""What each choice behind the shipped model brings: short trainings that differ in one thing.

    python benchmarks/ablation.py ../shared/data/buildings --work FOLDER [--steps 300] [--only NAME]

Each variant is workflows/train_buildings.toml with one change, trained from ImageNet for so many
steps, and judged like benchmarks/model_quality.py does: final polygons on the validation AOIs and
the southern quarter of banepa_core, at the best threshold of each (so a little flattering), and
AP50, which no threshold flatters. `without SITE` leaves a place out and is judged on it: a new
city. Such short trainings are far from the shipped model's quality; what counts are differences,
and those below what another seed brings are chance.

Trained models stay in --work, and a training that was stopped goes on. Writes
docs/benchmarks/ablation.md.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
from common import ROOT, machine, table, write
from model_quality import areas

import geoseg
from geoseg.learning.train import train
from geoseg.objects.evaluate import Evaluation, curve_of, evaluate, pool
from geoseg.scenes.town import render_town

BASE = ROOT / "workflows" / "train_buildings.toml"
TOWNS = (21, 22, 23, 24)
TOWN_SIDE_PX = 2560
THRESHOLDS = tuple(round(0.2 + 0.05 * i, 2) for i in range(16))


def setting(line: str) -> Callable[[str], str]:
    """Return what puts a line into the table [train], instead of one of the same key."""
    key = line.split(" ", 1)[0]
    return lambda text: re.sub(
        r"\[train\]\n", f"[train]\n{line}\n", re.sub(rf"(?m)^{key} = .*\n", "", text, count=1)
    )


def appended(lines: str) -> Callable[[str], str]:
    """Return what adds a table behind [train]."""
    return lambda text: text.replace("[card]", f"{lines}\n[card]", 1)


def without(name: str) -> Callable[[str], str]:
    """Return what leaves out the sites whose name begins so."""

    def change(text: str) -> str:
        head, *sites = text.split("[[sites]]")
        kept = [site for site in sites if f'name = "{name}' not in site]
        return "[[sites]]".join([head, *kept])

    return change


VARIANTS: dict[str, tuple[str, Callable[[str], str]]] = {
    "as shipped": ("EfficientNet-Lite0, 13 cm, 384 px chips", lambda text: text),
    "another seed": ("what chance alone changes", setting("seed = 2")),
    "no rendered towns": ("labels of real imagery only", without("town")),
    "no colour changes": ("light, colour, blur, noise as they are",
                          appended("[train.augmentation]\ncolour = 0.0\n")),
    "no turns, no zoom": ("chips as they lie, colours varied",
                          appended("[train.augmentation]\nscale = [1.0, 1.0]\nany_turn = 0.0\n")),
    "20 cm a pixel": ("coarser, so a chip shows 2.4 times the ground",
                      lambda text: re.sub(r"(?m)^gsd_m = .*$", "gsd_m = 0.20", text)),
    "smaller heads": ("64 channels of the pyramid, 128 of the box head",
                      setting("architecture = { fpn_channels = 64, box_features = 128 }")),
    "larger heads": ("256 channels of the pyramid, 1,024 of the box head",
                     setting("architecture = { fpn_channels = 256, box_features = 1024 }")),
    "without Nepal": ("a new country: no banepa_*", without("banepa")),
}  # fmt: skip


def training_file(name: str, data: Path, work: Path, steps: int) -> Path:
    """Write a variant's training file; return it."""
    text = BASE.read_text(encoding="utf-8")
    text = text.replace("../../shared/data/buildings", str(data.absolute()))
    text = text.replace("../runs/town", str(work.absolute() / "town"))
    text = setting(f"warmup = {steps // 6}")(setting(f"steps = {steps}")(text))
    # the mean of the last hundred steps or so: that of the shipped model's would begin too early
    text = VARIANTS[name][1](setting("ema = 0.98")(text))
    path = work / name.replace(" ", "_").replace(",", "") / "train.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def judge(model: Path, data: Path) -> dict[str, Any]:
    """Return the best F1 and AP50 on the validation AOIs together and on the quarter."""
    buildings = gpd.read_file(data / "buildings.geojson")
    found: list[Evaluation] = []
    for image, aoi in areas(data).values():
        with tempfile.TemporaryDirectory() as folder:
            aoi.to_file(Path(folder) / "aoi.geojson")
            objects = geoseg.detect(
                data / "ortho" / image,
                model=model,
                aoi=Path(folder) / "aoi.geojson",
                min_score=0.15,
                workers=1,
            )
        found.append(evaluate(objects, buildings[buildings["image"] == image], aoi=aoi))
    *validation, quarter = found
    out: dict[str, Any] = {}
    for name, result in (("validation", pool(validation)), ("quarter", quarter)):
        best = float(curve_of(result, THRESHOLDS)["f1"].max())
        out[name] = {"f1": round(best, 3), "ap50": round(result.ap50, 3)}
    return out


def report(rows: dict[str, dict[str, Any]], command: str, steps: int) -> str:
    """Return the page."""
    head = ("variant", "what differs", "F1, validation", "AP50", "F1, quarter", "AP50", "minutes")
    lines = [
        (
            name, VARIANTS[name][0],
            *(f"{row[area][key]:.3f}" for area in ("validation", "quarter")
              for key in ("f1", "ap50")),
            f"{row['minutes']:.0f}",
        )
        for name, row in rows.items()
    ]  # fmt: skip
    return "\n\n".join(
        [
            "# What the choices behind the shipped model bring",
            f"`{command}` on {machine()}.",
            (
                f"{steps} steps each from ImageNet, one thing changed; the shipped one had 6,250. "
                "F1 at the best threshold of the curve. What lies within the difference of the "
                "first two rows is chance. Minutes: of the training, beside other work."
            ),
            table(head, lines),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for seed in TOWNS:
        if not (options.work / f"town{seed}" / "town.tif").exists():
            side = TOWN_SIDE_PX
            render_town(options.work / f"town{seed}", width_px=side, height_px=side, seed=seed)
    kept = options.work / "rows.json"
    rows = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for name in options.only:
        if name in rows:
            continue
        path = training_file(name, options.data, options.work, options.steps)
        begun = time.perf_counter()
        model = train(path, path.parent / "run", device="cpu")
        minutes = (time.perf_counter() - begun) / 60
        rows[name] = {"minutes": round(minutes, 1), **judge(model, options.data)}
        kept.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        print(name, rows[name], flush=True)
    command = f"python benchmarks/ablation.py DATA --work FOLDER --steps {options.steps}"
    write("ablation", report(rows, command, options.steps), {"steps": options.steps, "rows": rows})


if __name__ == "__main__":
    main()
