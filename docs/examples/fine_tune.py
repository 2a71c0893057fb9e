"""Train the shipped model on with labels of your own, and see whether that helped.

    python fine_tune.py town/town.tif town/footprints.gpkg town/aoi.gpkg out 300

Labels must be complete inside the AOI. Its western two thirds are learnt from; the eastern third is
kept to judge on. A step takes one to three seconds on a CPU; a few hundred steps are a fair try.
"""

from __future__ import annotations

import sys
from pathlib import Path

import geopandas as gpd
import shapely

import geoseg
from geoseg.learning.train import train

SETTINGS = """
[train]
classes = ["building"]
gsd_m = 0.14
start = "buildings"     # go on from the shipped model
lr = 2e-4               # gently: it knows most of it
lr_backbone = 5e-5
warmup = 20
ema = 0.99
steps = {steps}
chip_px = {chip_px}
batch = 2

[card]
name = "mine"
gsd_m = 0.14
min_score = 0.65
licence = "CC BY 4.0; learnt from outlines under ODbL 1.0"

[[sites]]
name = "mine"
image = "{image}"
labels = "{labels}"
aoi = "{aoi}"
aoi_part = [0.0, 0.0, 0.667, 1.0]
"""


def main(
    image: Path, labels: Path, aoi: Path, folder: Path, steps: int = 300, chip_px: int = 384
) -> dict[str, float]:
    """Train into the folder, and return F1 before and after on the third that was kept."""
    folder.mkdir(parents=True, exist_ok=True)
    job = folder / "mine.toml"
    paths = {"image": image.resolve(), "labels": labels.resolve(), "aoi": aoi.resolve()}
    job.write_text(SETTINGS.format(steps=steps, chip_px=chip_px, **paths), encoding="utf-8")
    model = train(job, folder / "training")

    truth, area = gpd.read_file(labels), gpd.read_file(aoi)
    left, bottom, right, top = area.total_bounds
    kept = area.clip(shapely.box(left + 0.667 * (right - left), bottom, right, top))
    quality = {}
    for name, which in (("before", "buildings"), ("after", str(model))):
        objects = geoseg.detect(image, folder / f"{name}.gpkg", model=which)
        result = geoseg.evaluate(objects, truth, aoi=kept)
        quality[name] = result.f1
        print(f"{name:6} F1 {result.f1:.3f}, precision {result.precision:.3f}, "
              f"recall {result.recall:.3f}")  # fmt: skip
    print(f"the model: geoseg detect ortho.tif -o mine.gpkg --model {model}")
    return quality


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]), *map(int, sys.argv[5:6]))
