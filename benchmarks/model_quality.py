"""Quality of a building model on areas it was not trained on: final polygons against truth.

    python benchmarks/model_quality.py ../shared/data/buildings [--model NAME_OR_PATH] [--views 4]

Areas: the data set's validation AOIs, and the southern quarter of banepa_core, which
workflows/train_buildings.toml leaves out. A polygon takes part if at least half of it lies inside
the area, clipped to it; a match needs IoU 0.5. Prints each area, the validation AOIs together, and
the curve over the score threshold.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import geopandas as gpd
import shapely

import geoseg
from geoseg.models.registry import find_card
from geoseg.objects.evaluate import Evaluation, curve_of, evaluate, pool

THRESHOLDS = (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)
QUARTER = 0.25


def areas(data: Path) -> dict[str, tuple[str, gpd.GeoDataFrame]]:
    """Return the areas to judge on: name to image and AOI."""
    aois = gpd.read_file(data / "aois.geojson")
    found = {
        str(row["aoi"]): (str(row["image"]), aois[aois["aoi"] == row["aoi"]])
        for _, row in aois[aois["split"] == "val"].iterrows()
    }
    x0, y0, x1, y1 = aois[aois["aoi"] == "banepa_core"].total_bounds
    quarter = shapely.box(x0, y0, x1, y0 + QUARTER * (y1 - y0))
    found["banepa_core, quarter"] = (
        "banepa.tif",
        gpd.GeoDataFrame(geometry=[quarter], crs=aois.crs),
    )
    return found


def line(name: str, e: Evaluation, seconds: float | None = None) -> str:
    """Return one line of the table."""
    took = "" if seconds is None else f"  {seconds:.0f} s"
    return (
        f"{name:22} F1 {e.f1:.3f}  P {e.precision:.3f}  R {e.recall:.3f}  "
        f"objects {e.n_objects}/{e.n_truth}  IoU {e.mean_iou:.3f}  AP50 {e.ap50:.3f}  "
        f"AP {e.ap:.3f}{took}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="buildings")
    parser.add_argument("--tile-size", type=int)
    parser.add_argument("--overlap", type=int)
    parser.add_argument("--gsd", type=float)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--views", type=int)
    options = parser.parse_args()
    threshold = find_card(options.model).min_score
    buildings = gpd.read_file(options.data / "buildings.geojson")
    results: dict[str, Evaluation] = {}
    for name, (image, aoi) in areas(options.data).items():
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            aoi.to_file(Path(folder) / "aoi.geojson")
            objects = geoseg.detect(
                options.data / "ortho" / image,
                model=options.model,
                aoi=Path(folder) / "aoi.geojson",
                # low: the curve needs what lies below the card's threshold
                min_score=0.15,
                tile_size=options.tile_size,
                overlap=options.overlap,
                gsd=options.gsd,
                workers=options.workers,
                views=options.views,
            )
        truth = buildings[buildings["image"] == image]
        results[name] = evaluate(objects, truth, aoi=aoi, min_score=threshold)
        print(line(name, results[name], time.perf_counter() - begun), flush=True)
    *validation, quarter = results.values()
    together = pool(validation)
    print(line("validation AOIs", together))
    for name, result in (("validation AOIs", together), ("quarter", quarter)):
        curve = curve_of(result, THRESHOLDS)[
            ["min_score", "precision", "recall", "f1", "count_error"]
        ]
        print(f"\n{name}\n{curve.round(3).to_string(index=False)}")


if __name__ == "__main__":
    main()
