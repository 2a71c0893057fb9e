"""What other pixel types cost: real 8-bit images brought into them, searched, compared.

    python benchmarks/radiometry.py ../shared/data/buildings [--model NAME_OR_PATH]

Crops of six flights are written as 8 bits (as they are), 8 bits times 17 and 257 in uint16, 12 bits
with noise below the 8, linear reflectance (gamma removed, haze added, times 10,000), float32 from
0 to 1, and int16 with an offset. Each is searched with the scale that geoseg makes, with that of
all six as sheets of one job, and with ``--scale none``. Prints F1 against the outlines, and the
agreement with what is found in 8 bits (F1 with that for truth), at IoU 0.5.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from rasterio.windows import Window

import geoseg
from geoseg.models.registry import load_model
from geoseg.objects.evaluate import evaluate, pool

CROPS = {
    "banepa.tif": Window(4096, 6656, 1152, 1024),
    "banepa_south_2.tif": Window(0, 0, 2048, 2048),
    "catanduanes_1.tif": Window(0, 0, 1024, 2048),
    "catanduanes_2.tif": Window(0, 0, 2048, 1024),
    "kampala_1.tif": Window(512, 0, 2048, 2048),
    "zanzibar_1.tif": Window(3072, 1024, 2048, 2048),
}
NOISE = np.random.default_rng(0)
KINDS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "uint8": ("uint8", lambda v: v),
    "uint16 x 17": ("uint16", lambda v: v * 17),
    "uint16 x 257": ("uint16", lambda v: v * 257),
    "uint16 12 bits": ("uint16", lambda v: 200 + v * 11 + NOISE.integers(0, 11, v.shape)),
    "uint16 linear": ("uint16", lambda v: ((v / 255) ** 2.2 * 0.6 + 0.03) * 10_000),
    "float32 0 to 1": ("float32", lambda v: v / 255),
    "int16": ("int16", lambda v: v * 40 - 3000),
}


def write_crops(data: Path, folder: Path, kind: str) -> list[Path]:
    """Write the crops of one kind."""
    dtype, convert = KINDS[kind]
    paths = []
    for name, window in CROPS.items():
        with rasterio.open(data / "ortho" / name) as src:
            pixels, mask = src.read(window=window), src.dataset_mask(window=window)
            profile = {
                "driver": "GTiff", "count": 3, "dtype": dtype, "crs": src.crs, "photometric": "RGB",
                "height": window.height, "width": window.width, "compress": "deflate",
                "transform": src.window_transform(window),
            }  # fmt: skip
        paths.append(folder / name)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(paths[-1], "w", **profile) as dst,
        ):
            dst.write(convert(pixels.astype(float)).astype(dtype))
            dst.write_mask(mask)
    return paths


def labelled(data: Path, path: Path) -> gpd.GeoDataFrame:
    """Return the part of a crop in which all buildings are drawn."""
    aois = gpd.read_file(data / "aois.geojson")
    with rasterio.open(path) as src:
        outline, crs = shapely.box(*src.bounds), src.crs
    inside = aois[aois["image"] == path.name].to_crs(crs).geometry.union_all()
    return gpd.GeoDataFrame(geometry=[inside.intersection(outline)], crs=crs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="buildings")
    options = parser.parse_args()
    truth = gpd.read_file(options.data / "buildings.geojson")
    detector = load_model(options.model)
    eight_bits: list[gpd.GeoDataFrame] = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_crops(options.data, Path(folder), kind)
            areas = [labelled(options.data, path) for path in paths]
            find = partial(geoseg.detect, detector=detector, workers=1, cross_image=False)
            ways = {"own scale": [find(path) for path in paths]}
            if not eight_bits:
                eight_bits = ways["own scale"]
            else:
                together = find(paths)
                ways["one scale"] = [together[together["image"] == path.name] for path in paths]
                ways["--scale none"] = [find(path, scale="none") for path in paths]
        for way, found in ways.items():
            score = pool([evaluate(f, truth, aoi=a) for f, a in zip(found, areas, strict=True)])
            same = pool([evaluate(f, e) for f, e in zip(found, eight_bits, strict=True)])
            print(
                f"{kind:16} {way:14} F1 {score.f1:.3f}  P {score.precision:.3f}  "
                f"R {score.recall:.3f}  objects {score.n_objects:4}  agreement {same.f1:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
