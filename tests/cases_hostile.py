"""Inputs that mean harm, small and fast, each with how it must end."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from cases import Case, Made
from rasterio.windows import Window

GROUP = "Hostile"
_PROFILE = {"driver": "GTiff", "dtype": "uint8", "crs": "EPSG:32633",
            "transform": Affine(0.1, 0, 500_000, 0, -0.1, 5_500_000)}  # fmt: skip
_TILES = ("--tile-size", "128", "--overlap", "32", "-j", "1", "--no-report")


def _image(path: Path, width: int = 200, height: int = 100, bands: int = 3, **more) -> Path:
    """Write a raster; without pixels where it is large."""
    profile = _PROFILE | {"width": width, "height": height, "count": bands} | more
    with rasterio.open(path, "w", sparse_ok=True, **profile) as dst:
        if width * height * bands <= 1_000_000:
            pixels = np.random.default_rng(1).integers(1, 200, (bands, height, width))
            dst.write(pixels.astype(np.uint8))
    return path


def _detect(folder: Path, *more: str, image: str = "in.tif", output: str = "out.gpkg") -> Made:
    return Made(("detect", image, "-o", output, *more, *_TILES), output)


def _bomb(**header) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        _image(folder / "in.tif", **header)
        return _detect(folder, "--detector", "rubbish:kind_nothing")

    return make


def _strip(folder: Path) -> Made:
    profile = _PROFILE | {"width": 60_000, "height": 13_920, "count": 1, "blockysize": 13_920}
    with rasterio.open(folder / "in.tif", "w", compress="zstd", **profile) as dst:
        dst.write(np.zeros((1, 8, 8), np.uint8), window=Window(0, 0, 8, 8))
    return _detect(folder, "--detector", "rubbish:kind_nothing")


def _text(name: str, text: str, *more: str, image: str = "in.tif") -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        _image(folder / "in.tif")
        (folder / name).write_text(text, encoding="utf-8")
        return _detect(folder, "--detector", "rubbish:kind_nothing", *more, image=image)

    return make


def _detector(name: str, *more: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        _image(folder / "in.tif")
        return _detect(folder, "--detector", f"rubbish:{name}", *more)

    return make


def _job(line: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        _image(folder / "in.tif")
        text = f'[detect]\nimages = "in.tif"\noutput = "out.gpkg"\n{line}\n'
        (folder / "job.toml").write_text(text)
        return Made(("run", "job.toml"), "out.gpkg")

    return make


def _model(card: dict, weights: bytes) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        _image(folder / "in.tif")
        (folder / "m.safetensors").write_bytes(weights)
        about = {"name": "m", "classes": ["roof"], "gsd_m": 0.1, "architecture": {}} | card
        (folder / "m.json").write_text(json.dumps(about))
        return _detect(folder, "--model", "m.safetensors")

    return make


def _pickle(folder: Path) -> Made:
    (folder / "m.pth").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    return Made(("convert", "m.pth", "-o", "m.safetensors"))


_VRT = "<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>"
_REGIONS = ("--regions", "regions.geojson")
_LINK = json.dumps({"type": "FeatureCollection", "features": [], "crs": {
    "type": "link", "properties": {"href": "http://127.0.0.1:9/crs", "type": "ogcwkt"}}})  # fmt: skip
_OGR_VRT = "<OGRVRTDataSource><OGRVRTLayer name='x'></OGRVRTLayer></OGRVRTDataSource>"


def _hostile(name: str, what: str, make: Callable[[Path], Made], code: int, said: str) -> Case:
    return Case(f"hostile-{name}", GROUP, what, make, code, said)


CASES = [
    _hostile("pixels", "1,000,000 x 1,000,000 px in a small file",
             _bomb(width=1_000_000, height=1_000_000, bands=1, tiled=True, blockxsize=16_384,
                   blockysize=16_384, bigtiff="yes"), 2, "pixels is the limit"),
    _hostile("block", "25 kB that unpack to 835 MB at a read", _strip, 2, "835 MB unpacked"),
    _hostile("bands", "65,000 bands",
             _bomb(width=64, height=64, bands=65_000, interleave="pixel"), 2, "65,000 bands"),
    _hostile("vrt-as-tif", "VRT that calls itself .tif",
             _text("trap.tif", _VRT, image="trap.tif"), 2, "is a VRT"),
    _hostile("prefix", "GDAL's syntax instead of a file",
             _text("x", "", image="GTIFF_DIR:1:in.tif"), 2, "GDAL's syntax"),
    _hostile("vrt-as-mask", "VRT as mask beside an image", _text("in.tif.msk", _VRT), 2,
             "is not a TIFF; delete it"),
    _hostile("regions-link", "GeoJSON whose CRS is an address", _text("regions.geojson", _LINK,
             *_REGIONS), 2, "takes its CRS from another place"),
    _hostile("regions-vrt", "virtual file as regions", _text("regions.geojson", _OGR_VRT,
             *_REGIONS), 2, "virtual file"),
    _hostile("regions-wfs", "service description as regions", _text("regions.geojson",
             "<OGRWFSDataSource><URL>http://127.0.0.1:9/</URL></OGRWFSDataSource>", *_REGIONS), 2,
             "by its first bytes"),
    _hostile("job-number", "job file with a tile of 10^12 px", _job("tile_size = 1000000000000"),
             2, "expected 32 to 8192"),
    _hostile("job-nan", "job file with NaN", _job("min_score = nan"), 2, "expected 0 to 1"),
    _hostile("job-deep", "job file of 5,000 brackets", _job(f"bidx = {'[' * 5000}"), 2,
             "nested too deep|not valid TOML"),
    _hostile("job-dots", "job file with a key of 50,000 parts", _job("a." * 50_000 + "b = 1"), 2,
             "more than 100 parts"),
    _hostile("job-name", "output with a control character", _job('also = "\\u001b[2Ja.fgb"'), 2,
             "control characters"),
    _hostile("pickle", "pickle that runs a command", _pickle, 2, "m.pth"),
    _hostile("weights", "weights with a giant header",
             _model({}, struct.pack("<Q", 1 << 62) + b"{}"), 2, "not a readable safetensors"),
    _hostile("card", "model card that asks for 10^9 channels",
             _model({"architecture": {"channels": 10**9}}, b""), 2, "at most 4096"),
    _hostile("detector-none", "detector that returns None", _detector("kind_none"), 3,
             "returned NoneType"),
    _hostile("detector-nan", "detector with masks of NaN", _detector("kind_mask_nan"), 3,
             "not finite"),
    _hostile("detector-labels", "detector with labels out of range",
             _detector("kind_label_too_large"), 3, "label 7 is out of range"),
    _hostile("detector-exit", "detector that ends the program", _detector("kind_system_exit"), 3,
             r"raised SystemExit\(0\)"),
    _hostile("detector-errors", "the same with --max-errors 0",
             _detector("kind_none", "--max-errors", "0"), 4, "returned NoneType"),
    _hostile("detector-classes", "detector with two classes of one name",
             _detector("classes_twice"), 2, "named 2 times"),
]  # fmt: skip
