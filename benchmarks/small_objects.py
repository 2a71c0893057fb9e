"""What --small-objects gains on small buildings, and what it costs.

    python benchmarks/small_objects.py ../shared/data/buildings [--model NAME_OR_PATH] [--size 3]

Runs the model without and with the switch, one worker, and compares final polygons with truth at
the card's score threshold, IoU 0.5: buildings under 30 m2, and all. Areas: those of
benchmarks/model_quality.py (none was trained on), as they are and at half the resolution (2 x 2
pixels averaged, in a temporary folder; the detector enlarges them again); with --seen also
zanzibar_1, which the model was trained on; and a rendered town of many small sheds. Writes
docs/benchmarks/small_objects.md and .json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from common import machine, table, write
from model_quality import areas
from rasterio.windows import Window, from_bounds

import geoseg
from geoseg.models.registry import find_card
from geoseg.objects.breakdown import by_size
from geoseg.objects.evaluate import Evaluation, evaluate, pool
from geoseg.scenes.town import render_town

SMALL_M2 = 30.0
WHAT = (
    f"Buildings under {SMALL_M2:g} m2, then all of them, at the card's threshold, IoU 0.5. Recall "
    "is of true ones of that size, precision of objects of that size."
)
AROUND_PX = 64
"""What a copy keeps around its area, px: the network's context."""
SHEDS_SEED = 5


class Place(NamedTuple):
    """An image with the true buildings in an area."""

    name: str
    image: Path
    truth: gpd.GeoDataFrame
    aoi: gpd.GeoDataFrame


def halved(place: Place, folder: Path) -> Place:
    """Return the place over a copy of its surroundings whose pixels are means of 2 x 2."""
    with rasterio.open(place.image) as src:
        left, low, right, high = place.aoi.to_crs(src.crs).total_bounds
        box = from_bounds(left, low, right, high, src.transform)
        col, row = (max(0, int(at) - AROUND_PX) for at in (box.col_off, box.row_off))
        width = (min(src.width, int(box.col_off + box.width) + AROUND_PX) - col) // 2
        height = (min(src.height, int(box.row_off + box.height) + AROUND_PX) - row) // 2
        window = Window(col, row, 2 * width, 2 * height)
        pixels = src.read((1, 2, 3), window=window).reshape(3, height, 2, width, 2)
        valid = src.dataset_mask(window=window).reshape(height, 2, width, 2).min(axis=(1, 3))
        transform = src.window_transform(window) * rasterio.Affine.scale(2)
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": height,
                   "width": width, "crs": src.crs, "transform": transform}  # fmt: skip
    path = folder / f"{place.image.stem}_{len(list(folder.iterdir()))}.tif"
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", compress="deflate", **profile) as dst,
    ):
        dst.write(np.rint(pixels.mean(axis=(2, 4))).astype(np.uint8))
        dst.write_mask(valid)
    return place._replace(image=path)


def real_places(data: Path, *, seen: bool) -> list[Place]:
    """Return the labelled areas."""
    buildings, aois = (gpd.read_file(data / f"{name}.geojson") for name in ("buildings", "aois"))
    found = areas(data)
    if seen:
        found["zanzibar_1 (seen in training)"] = (
            "zanzibar_1.tif", aois[aois["aoi"] == "zanzibar_1"]
        )  # fmt: skip
    return [
        Place(name, data / "ortho" / image, buildings[buildings["image"] == image], aoi)
        for name, (image, aoi) in found.items()
    ]


def rendered(folder: Path, size_px: int) -> Place:
    """Return a rendered town with everything at 40 % of its size: sheds, in pixels of 5 cm."""
    files = render_town(folder / "town", width_px=size_px, height_px=size_px, seed=SHEDS_SEED)
    shrunk = folder / "sheds.tif"
    with rasterio.open(files.image) as src:
        pixels, valid, crs, transform = src.read(), src.dataset_mask(), src.crs, src.transform
    # metres on the ground, not pixels, become fewer: a house of 8 m is a shed of 3.2 m
    x, y = transform.c, transform.f
    transform = rasterio.Affine(0.4 * transform.a, 0, x, 0, 0.4 * transform.e, y)
    height, width = valid.shape
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            shrunk, "w", driver="GTiff", dtype="uint8", count=3, height=height, width=width,
            crs=crs, transform=transform, compress="deflate",
        ) as dst,
    ):  # fmt: skip
        dst.write(pixels)
        dst.write_mask(valid)
    truth = gpd.read_file(files.footprints, layer="footprints")
    truth = truth.set_geometry(truth.scale(0.4, 0.4, origin=(x, y)))
    aoi = gpd.GeoDataFrame(
        geometry=[shapely.box(*rasterio.transform.array_bounds(height, width, transform))], crs=crs
    )
    return Place("rendered sheds", shrunk, truth, aoi)


def run(place: Place, model: str, size_m: float | None) -> tuple[Evaluation, float]:
    """Return the evaluation at the card's threshold, and the seconds of the run."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        aoi = Path(folder) / "aoi.geojson"
        place.aoi.to_crs(4326).to_file(aoi)
        objects = geoseg.detect(
            place.image, model=model, aoi=aoi, small_objects=size_m, workers=1, simplify=0.25
        )
    seconds = time.perf_counter() - begun
    threshold = find_card(model).min_score
    return evaluate(objects, place.truth, aoi=place.aoi, min_score=threshold), seconds


def figures(e: Evaluation) -> dict[str, float]:
    """Return figures of small buildings and of all."""
    sizes = by_size(e, [SMALL_M2])
    small = sizes[sizes["to_m2"] <= SMALL_M2]
    true, found = int(small["n_truth"].sum()), int(small["n_objects"].sum())
    # recall over the small true ones, precision over the objects that are small themselves
    recall, precision = (float(small[name].sum()) for name in ("recall", "precision"))
    right = recall * true + precision * found
    return {
        "n_small": true, "found_small": found, "recall": recall, "precision": precision,
        "f1": right / (true + found) if true + found else float("nan"),
        "f1_all": e.f1, "recall_all": e.recall, "precision_all": e.precision,
    }  # fmt: skip


def compare(places: list[Place], model: str, size_m: float) -> Iterator[dict[str, Any]]:
    """Run each place without and with the switch; the last is all of them together."""
    pairs = []
    for place in places:
        pairs.append([run(place, model, size) for size in (None, size_m)])
        yield row_of(place.name, [[e] for e, _ in pairs[-1]], [s for _, s in pairs[-1]])
    if len(pairs) > 1:
        both = [[pair[i][0] for pair in pairs] for i in (0, 1)]
        seconds = [sum(pair[i][1] for pair in pairs) for i in (0, 1)]
        yield row_of("together", both, seconds)


def row_of(name: str, both: list[list[Evaluation]], seconds: list[float]) -> dict[str, Any]:
    without, switched = (figures(pool(evaluations)) for evaluations in both)
    row = {"place": name, "without": without, "with": switched, "seconds": seconds}
    print("   ".join(map(str, cells(row))), flush=True)
    return row


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    a, b = row["without"], row["with"]
    pairs = [
        f"{a[k]:.3f} -> {b[k]:.3f}" for k in ("recall", "precision", "f1", "recall_all", "f1_all")
    ]
    before, after = row["seconds"]
    return [row["place"], str(a["n_small"]), *pairs, f"x {after / before:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="buildings")
    parser.add_argument("--size", type=float, help="m; by default the card's object_size_m")
    parser.add_argument("--seen", action="store_true", help="zanzibar_1 too")
    parser.add_argument("--town-px", type=int, default=2400)
    parser.add_argument("--only", choices=("full", "half", "sheds"), action="append")
    options = parser.parse_args()
    size_m = options.size or find_card(options.model).object_size_m or 3.0
    only = options.only or ("full", "half", "sheds")
    places = real_places(options.data, seen=options.seen)
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        titles = {
            "full": ("imagery as it is", lambda: places),
            "half": ("half the resolution", lambda: [halved(place, folder) for place in places]),
            "sheds": ("rendered sheds", lambda: [rendered(folder, options.town_px)]),
        }
        for kind in only:
            title, make = titles[kind]
            results[title] = list(compare(make(), options.model, size_m))
    report(results, options.model, size_m)


def report(results: dict[str, list[dict[str, Any]]], model: str, size_m: float) -> None:
    """Write the tables."""
    head = ["place", "small ones", "recall", "precision", "F1", "recall of all", "F1 of all",
            "time"]  # fmt: skip
    parts = [
        f"# Small objects: without -> with --small-objects {size_m:g}\n",
        f"`python benchmarks/small_objects.py DATA`; model {Path(model).stem}; {machine()}.\n",
        f"{WHAT}\n",
    ]
    for title, rows in results.items():
        parts += [f"## {title}\n", table(head, [cells(row) for row in rows]) + "\n"]
    write("small_objects", "\n".join(parts), {"size_m": size_m, "results": results})


if __name__ == "__main__":
    main()
