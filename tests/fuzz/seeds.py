"""The sound files that are broken: small, of every format, written by code.

Run as ``python -m fuzz.seeds FOLDER`` in a process of its own: what writes them starts threads,
and a process that forks must have none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from rasterio.enums import ColorInterp, Resampling

UTM = "EPSG:32633"
NORTH_UP = Affine(0.1, 0, 500_000, 0, -0.1, 5_500_000)
SIDE = 64
RUN_ARGS = ("--detector", "fuzz.targets:detector", "-j", "1", "--device", "cpu")
"""What makes a run small: a detector without weights, in this process."""


def _pixels(bands: int, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(bands)
    pixels = rng.integers(1, 220, (bands, SIDE, SIDE))
    pixels[:, 20:40, 10:30] = 230
    return pixels.astype(dtype)


def write_raster(path: Path, *, bands: int = 3, dtype: str = "uint8", **options: Any) -> None:
    """Write a raster of 64 px a side; `options` are rasterio's, and a few of ours."""
    overviews, mask = options.pop("overviews", ()), options.pop("mask", None)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=mask != "external", GDAL_PAM_ENABLED=True),
        rasterio.open(
            path, "w", **{"driver": "GTiff", "count": bands, "height": SIDE, "width": SIDE,
                          "dtype": dtype, "crs": UTM, "transform": NORTH_UP} | options,
        ) as dst,
    ):  # fmt: skip
        dst.write(_pixels(bands, dtype)[:, : dst.height, : dst.width])
        if bands == 4:
            dst.colorinterp = [*list(ColorInterp)[3:6], ColorInterp.alpha]
        if mask is not None:
            dst.write_mask(np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 7 > 0)
    if overviews:
        with rasterio.Env(GDAL_TIFF_OVR_BLOCKSIZE=64), rasterio.open(path, "r+") as dst:
            dst.build_overviews(overviews, Resampling.average)


def _rasters(folder: Path) -> None:
    folder.mkdir()
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32}
    for codec in ("deflate", "lzw", "zstd", "packbits", "lzma", "webp", "jpeg", "lerc"):
        write_raster(folder / f"{codec}.tif", compress=codec, **tiles)
    write_raster(folder / "stripes.tif", overviews=(2, 4))
    write_raster(folder / "big.tif", BIGTIFF="YES", compress="deflate", **tiles)
    write_raster(folder / "motorola.tif", ENDIANNESS="BIG", compress="deflate", dtype="uint16")
    write_raster(folder / "float.tif", dtype="float32", nodata=0, predictor=3, compress="deflate")
    write_raster(folder / "planes.tif", interleave="band", compress="lzw", predictor=2, **tiles)
    write_raster(folder / "alpha.tif", bands=4, compress="deflate")
    write_raster(
        folder / "masked.tif", mask="internal", compress="deflate", overviews=(2,), **tiles
    )
    write_raster(folder / "besides.tif", mask="external", compress="jpeg", **tiles)
    write_raster(folder / "half.tif", height=SIDE // 2, width=SIDE // 2, compress="deflate")
    (folder / "half.tif").rename(folder / "besides.tif.ovr")
    write_raster(folder / "grey.tif", bands=1, dtype="int16", nodata=-1)
    with rasterio.open(folder / "stripes.tif") as src:
        rasterio.shutil.copy(src, folder / "cog.tif", driver="COG", blocksize=128, overviews="NONE")
        rasterio.shutil.copy(src, folder / "plain.jp2", driver="JP2OpenJPEG", quality=30)
        for name in ("plain.png", "plain.jpg"):
            driver = "PNG" if name.endswith("png") else "JPEG"
            rasterio.shutil.copy(src, folder / name, driver=driver, worldfile=True)
    (folder / "plain.wld").unlink(missing_ok=True)
    for name, world in (("plain.png", "pgw"), ("plain.jpg", "jgw")):
        (folder / name).with_suffix(f".{world}").write_text(
            "0.1\n0\n0\n-0.1\n500000.05\n5499999.95\n", encoding="ascii"
        )
    write_raster(folder / "paletted.png", bands=1, driver="PNG")


def _polygons(n: int, size: float, *, shift: float = 0.0) -> gpd.GeoDataFrame:
    at = np.arange(n)
    x, y = 500_000 + (at % 4) * 1.6 + shift, 5_499_994 + (at // 4) * 1.6 + shift
    boxes = shapely.box(x, y, x + size, y + size)
    boxes[0] = shapely.difference(boxes[0], shapely.buffer(shapely.centroid(boxes[0]), size / 6))
    boxes[1] = shapely.union(boxes[1], shapely.box(500_006, 5_499_999, 500_006.2, 5_499_999.3))
    return gpd.GeoDataFrame(
        {
            "name": [f"quarter {i}" for i in at],
            "id": at + 1,
            "parent": [None, *[1] * (n - 1)],
            "class": np.array(["thing", "other"], object)[at % 2],
            "score": 0.5 + at / (2 * n),
        },
        geometry=boxes,
        crs=UTM,
    )


def _vectors(folder: Path) -> None:
    folder.mkdir()
    regions, objects = _polygons(6, 1.5), _polygons(12, 0.6, shift=0.2)
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2026-01-01T00:00:00.000Z"})
    for name, table in (("regions", regions), ("objects", objects)):
        for suffix, driver in (
            ("gpkg", "GPKG"), ("geojson", "GeoJSON"), ("fgb", "FlatGeobuf"), ("shp", "ESRI Shapefile"),
        ):  # fmt: skip
            crs = table.to_crs(4326) if suffix == "geojson" else table
            pyogrio.write_dataframe(crs, folder / f"{name}.{suffix}", driver=driver, layer=name)
        table.to_parquet(folder / f"{name}.parquet")
    calibration = {"scores": [0.0, 0.5, 1.0], "chance": [0.1, 0.6, 0.95], "sizes_m2": [10.0, 100.0],
                   "missed": [0.2, 0.1]}  # fmt: skip
    (folder / "calibration.json").write_text(json.dumps(calibration), encoding="ascii")


def _models(folder: Path) -> None:
    import pickle

    import torch
    import yaml
    from detectron2_forward import nested, random_checkpoint, small_config

    from geoseg.models.convert import convert

    folder.mkdir()
    torch.manual_seed(1)
    cfg = small_config(res2_out_channels=32, width_per_group=8, stem_out_channels=8)
    picture = torch.randint(0, 256, (3, 96, 96), generator=torch.Generator().manual_seed(1))
    weights = random_checkpoint(cfg, picture.byte())
    torch.save({"model": weights}, folder / "model.pth")
    arrays = {k: v.numpy() for k, v in weights.items()}
    content = {"model": arrays, "__author__": "x"}
    (folder / "model.pkl").write_bytes(pickle.dumps(content, protocol=2))
    (folder / "config.yaml").write_text(yaml.safe_dump(nested(cfg)), encoding="utf-8")
    names = [f"kind {i}" for i in range(nested(cfg)["MODEL"]["ROI_HEADS"]["NUM_CLASSES"])]
    convert(
        folder / "model.pth", folder / "model.safetensors", config=folder / "config.yaml",
        classes=names, gsd_m=0.1,
    )  # fmt: skip
    # little files, in which a broken byte is likely to be one that matters
    few = {k: v.clone() for k, v in list(weights.items())[:3]}
    torch.save(few, folder / "few.pth")
    small = {k: v.numpy().copy() for k, v in few.items() if v.numel() < 500} or {
        "a": np.ones(3, np.float32)
    }
    (folder / "few.pkl").write_bytes(pickle.dumps(small, protocol=2))


def _run(folder: Path, rasters: Path, vectors: Path) -> None:
    from geoseg.cli.main import main

    folder.mkdir()
    (folder / "image.tif").write_bytes((rasters / "stripes.tif").read_bytes())
    (folder / "regions.geojson").write_bytes((vectors / "regions.geojson").read_bytes())
    args = ["detect", str(folder / "image.tif"), "-o", str(folder / "out.gpkg"), *RUN_ARGS,
            "--regions", str(folder / "regions.geojson"), "--supertile-size", "40"]  # fmt: skip
    code = main(args)
    assert code == 0, code


def write_seeds(folder: Path) -> None:
    """Write all seeds into an empty folder."""
    _rasters(folder / "rasters")
    _vectors(folder / "vectors")
    _models(folder / "models")
    _run(folder / "run", folder / "rasters", folder / "vectors")


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
