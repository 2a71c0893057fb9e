"""What ``--skip-empty`` saves and what it loses, over farmland, villages and towns.

``python benchmarks/skip_empty.py`` renders three scenes, finds the objects of each with and
without the option, and writes docs/benchmarks/skip_empty. ``--real FILE WINDOW`` adds a crop of
real imagery, WINDOW as col,row,width,height.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from common import machine, table, write
from rasterio.windows import Window

from geoseg.config import DetectSettings
from geoseg.imagery.georef import working_grid
from geoseg.imagery.grid import TileGrid
from geoseg.imagery.read import SupertilePixels, read_supertile
from geoseg.imagery.source import describe_raster
from geoseg.jobs import skip
from geoseg.jobs.pipeline import run_detect
from geoseg.models.registry import load_model
from geoseg.scenes.town import render_town

SIDE_PX = 2496
SCENES = {"fields with a few farms": 0.0, "villages": 0.3, "a town": 1.0}
TRIED = ((2, 0.05), (4, 0.02), (4, 0.05), (4, 0.2), (8, 0.05))
"""How much coarser, and from which score on."""


def crop(path: Path, place: str, folder: Path) -> Path:
    """Write a window of an image."""
    window = Window(*map(int, place.split(",")))
    with rasterio.open(path) as src:
        profile = src.profile | {
            "width": int(window.width), "height": int(window.height), "driver": "GTiff",
            "transform": src.window_transform(window), "photometric": "rgb", "compress": "deflate",
        }  # fmt: skip
        pixels = src.read([1, 2, 3], window=window)
    out = folder / f"{path.stem}-{int(window.col_off)}-{int(window.row_off)}.tif"
    with rasterio.open(out, "w", **(profile | {"count": 3})) as dst:
        dst.write(pixels)
    return out


def run(image: Path, output: Path, *, skip_empty: bool) -> tuple[gpd.GeoDataFrame, float, int, int]:
    """Return objects, CPU seconds, tiles run and tiles skipped."""
    begun = time.process_time()
    settings = DetectSettings(
        images=(str(image),),
        output=output,
        workers=1,
        report=False,
        skip_empty=skip_empty,
        overwrite=True,
    )
    result = run_detect(settings)
    coverage = result.coverage
    counts = (int(coverage[name].sum()) for name in ("tiles_run", "tiles_skipped"))
    return result.objects, time.process_time() - begun, *counts


def variants(image: Path, objects: gpd.GeoDataFrame) -> list[dict[str, Any]]:
    """Return for other first looks which share of tiles and of objects they would leave out.

    An object counts as left out with the tile that owns its representative point.
    """
    detector = load_model("buildings", device="cpu")
    info = describe_raster(image)
    grid = working_grid(info, detector.gsd_m)
    tiles = TileGrid(grid.height, grid.width, detector.tile_size, detector.overlap, 3072)
    points = objects.to_crs(info.crs_wkt).representative_point()
    columns, rows = ~grid.transform * (points.x.to_numpy(), points.y.to_numpy())
    out = []
    images: list[tuple[SupertilePixels, Any]] = []
    for index in np.ndindex(*tiles.supertile_shape):
        supertile = tiles.supertile(*index)
        images.append((read_supertile(info, grid, supertile, (1, 2, 3)), supertile.tiles))
    for factor, sure in TRIED:
        skip.FACTOR, skip.SURE = factor, sure
        begun, lost, skipped, total = time.process_time(), np.zeros(len(objects), bool), 0, 0
        for pixels, own in images:
            kept, n = skip.promising(detector, pixels, own)
            skipped, total = skipped + n, total + len(own)
            for tile in {t.index: t for t in own if t not in kept}.values():
                x, y = tile.core.col_off, tile.core.row_off
                lost |= (
                    (columns >= x) & (columns < x + tile.core.width)
                    & (rows >= y) & (rows < y + tile.core.height)
                )  # fmt: skip
        out.append(
            {
                "factor": factor,
                "sure": sure,
                "skipped": skipped,
                "tiles": total,
                "lost": int(lost.sum()),
                "cpu_s": round(time.process_time() - begun, 2),
            }
        )
    skip.FACTOR, skip.SURE = 4, 0.05
    return out


def measure(name: str, image: Path, folder: Path) -> dict[str, Any]:
    """Run an image with and without the first look, after a run that loads what is needed."""
    run(image, folder / "warm.gpkg", skip_empty=True)
    every, all_s, tiles, _ = run(image, folder / "all.gpkg", skip_empty=False)
    some, some_s, left, skipped = run(image, folder / "some.gpkg", skip_empty=True)
    met = gpd.sjoin(every[["geometry"]], some[["geometry"]], predicate="intersects").index
    for path in folder.glob("*.gpkg"):
        path.unlink()
    return {
        "scene": name,
        "tiles": tiles,
        "skipped": skipped,
        "tiles_left": left,
        "objects": len(every),
        "lost": len(every) - len(set(met)),
        "cpu_s": round(all_s, 1),
        "cpu_skip_s": round(some_s, 1),
        "variants": variants(image, every),
    }


def report(runs: list[dict[str, Any]]) -> str:
    rows = [
        (r["scene"], r["tiles"], f"{r['skipped']} ({r['skipped'] / r['tiles']:.0%})", r["objects"],
         f"{r['lost']} ({r['lost'] / max(r['objects'], 1):.1%})",
         f"{r['cpu_s']:.0f}", f"{r['cpu_skip_s']:.0f}", f"{r['cpu_s'] / r['cpu_skip_s']:.2f}")
        for r in runs
    ]  # fmt: skip
    head = ("scene", "tiles", "skipped", "objects", "lost", "CPU, s", "with the look, s", "faster")
    looks = [
        (
            f"{v['factor']} times, from {v['sure']:g}",
            r["scene"],
            f"{v['skipped'] / max(v['tiles'], 1):.0%}",
            f"{v['lost']} of {r['objects']}",
            f"{v['cpu_s'] / r['cpu_s']:.1%}",
        )
        for i in range(len(TRIED))
        for r in runs
        for v in r["variants"][i : i + 1]
    ]
    return "\n".join(
        [
            "# Skipping empty land",
            "",
            (
                "Made by `python benchmarks/skip_empty.py`; names of images are windows, given "
                f"with `--real FILE WINDOW`. {machine()}."
            ),
            "",
            (
                "`--skip-empty` lets the shipped model look at each supertile once at pixels "
                f"{skip.FACTOR} times coarser, and leaves out the tiles in which it finds no box "
                f"with a score of {skip.SURE:g} or more. 'Lost' are objects of the full run that "
                "nothing in the other run meets. It is off by default: it trades objects for time. "
                "A tile of 107 m without any building is rare where people live; the look costs a "
                "tenth of the run, and houses that stand alone are what it loses first. It pays "
                "only where nearly all land is empty, and some lost objects do no harm."
            ),
            "",
            table(head, rows),
            "",
            (
                "Other first looks: the share of tiles that they leave out, the objects that these "
                "tiles own, and what the look itself costs of the full run."
            ),
            "",
            table(("first look", "scene", "tiles left out", "objects in them", "cost"), looks),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", nargs=2, action="append", default=[], metavar=("FILE", "WINDOW"))
    args = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name, density in SCENES.items():
            town = render_town(
                folder / name, width_px=SIDE_PX, height_px=SIDE_PX, gsd_m=0.14, seed=5,
                density=density, hole=False,
            )  # fmt: skip
            runs.append(measure(name, town.image, folder))
            print(runs[-1])
        for path, place in args.real:
            name = f"{Path(path).stem} {place}"
            runs.append(measure(name, crop(Path(path), place, folder), folder))
            print(runs[-1])
    write("skip_empty", report(runs), {"machine": machine(), "runs": runs})


if __name__ == "__main__":
    main()
