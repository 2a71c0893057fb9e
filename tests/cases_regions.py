"""Cases of regions and of the CRS of the output, for the table of the docs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from affine import Affine
from cases import Case, Made

UTM33 = "EPSG:32633"
WEST = shapely.box(500_000, 5_500_000, 500_050, 5_500_100)
EAST = shapely.box(500_050, 5_500_000, 500_100, 5_500_100)
HALVES = np.array([WEST, EAST], dtype=object)
_AT = np.stack(np.meshgrid(np.arange(10), np.arange(10)), axis=-1).reshape(-1, 2) * 10.0
_LOW, _HIGH = _AT + np.array([500_002, 5_500_002]), _AT + np.array([500_008, 5_500_008])
GRID_OBJECTS = gpd.GeoDataFrame(
    geometry=shapely.box(*_LOW.T, *_HIGH.T),
    crs=UTM33,
)
"""A hundred houses of 6 m, ten by ten, 50 in each half."""


def frame(shapes: Any, crs: str = UTM33, **columns: Any) -> gpd.GeoDataFrame:
    """Return a table of shapes."""
    return gpd.GeoDataFrame(columns, geometry=np.asarray(shapes, dtype=object), crs=crs)


def lattice(folder: Path) -> Path:
    """Write the hundred houses."""
    path = folder / "objects.gpkg"
    if not path.exists():
        GRID_OBJECTS.to_file(path, layer="objects")
    return path


def _regions(
    name: str, what: str, shapes: Any, *, result: str = "", suffix: str = "gpkg", code: int = 0,
    message: str = "", crs: str = UTM33,
) -> Case:  # fmt: skip
    """Return a case of counting in regions."""

    def make(folder: Path) -> Made:
        lattice(folder)
        table = frame(shapes, crs)
        file = folder / f"regions.{suffix}"
        table.to_parquet(file) if suffix == "parquet" else table.to_file(file)
        return Made(("count", "objects.gpkg", file.name))

    return Case(f"regions-{name}", "Regions", what, make, code, message, result)


def _text(name: str, what: str, shapes: list[Any], code: int, message: str, result: str) -> Case:
    """Return a case of regions in GeoJSON written by hand."""

    def make(folder: Path) -> Made:
        lattice(folder)
        features = [{"type": "Feature", "properties": {}, "geometry": g} for g in shapes]
        text = json.dumps({"type": "FeatureCollection", "features": features})
        (folder / "regions.geojson").write_text(text, encoding="utf-8")
        return Made(("count", "objects.gpkg", "regions.geojson"))

    return Case(f"regions-{name}", "Regions", what, make, code, message, result)


def _layers(folder: Path) -> Made:
    lattice(folder)
    for name in ("wards", "zones"):
        frame([WEST]).to_file(folder / "r.gpkg", layer=name)
    return Made(("count", "objects.gpkg", "r.gpkg"))


def _no_crs(folder: Path) -> Made:
    lattice(folder)
    gpd.GeoDataFrame(geometry=[WEST]).to_parquet(folder / "r.parquet")
    return Made(("count", "objects.gpkg", "r.parquet"))


def _image(folder: Path, crs: str, x: float, y: float, px: float) -> None:
    """Write an image of two bright houses."""
    pixels = np.zeros((1, 96, 96), np.uint8)
    pixels[0, 20:40, 30:60] = pixels[0, 60:80, 40:80] = 200
    with rasterio.open(
        folder / "image.tif", "w", driver="GTiff", count=1, height=96, width=96, dtype="uint8",
        crs=crs, transform=Affine(px, 0, x, 0, -px, y),
    ) as file:  # fmt: skip
        file.write(pixels)


def _truth(crs: str, x: float, y: float, px: float) -> gpd.GeoDataFrame:
    boxes = [(30, 20, 60, 40), (40, 60, 80, 80)]
    shapes = [shapely.box(x + a * px, y - d * px, x + c * px, y - b * px) for a, b, c, d in boxes]
    return frame(shapes, crs)


def detect_to(dst: str, *, crs: str = UTM33, x: float = 500_000, y: float = 5_500_000,
              px: float = 0.5, output: str = "out.gpkg") -> Callable[[Path], Made]:  # fmt: skip
    """Return what makes a run with a CRS of the output."""

    def make(folder: Path) -> Made:
        _image(folder, crs, x, y, px)
        args = ("detect", "image.tif", "-o", output, "--detector", "stubs:Bright", "-j", "1",
                "--tile-size", "64", "--overlap", "16", "--simplify", "0", "--no-report",
                "--dst-crs", dst)  # fmt: skip
        return Made(args, output, _truth(crs, x, y, px), (px, 0.0, x, 0.0, -px, y))

    return make


def _crs(name: str, what: str, dst: str, code: int = 0, message: str = "", result: str = "",
         **image: Any) -> Case:  # fmt: skip
    return Case(f"dst-crs-{name}", "Output CRS", what, detect_to(dst, **image), code, message,
                result)  # fmt: skip


_BOW = shapely.Polygon(
    [(500_000, 5_500_000), (500_100, 5_500_100), (500_100, 5_500_000), (500_000, 5_500_100)]
)
_RING = [[15.0, 49.65], [15.01, 49.65], [15.01, 49.66]]

CASES = (
    _regions("bow-tie", "a polygon that crosses itself", [_BOW], message="1 regions were invalid",
             result="repaired and said"),
    _regions("nested", "a multipolygon with one part in the other",
             [shapely.MultiPolygon([WEST, shapely.box(500_010, 5_500_010, 500_020, 5_500_020)])],
             message="1 regions were invalid", result="repaired and said"),
    _regions("holes", "a hole", [shapely.box(500_000, 5_500_000, 500_100, 5_500_100).difference(
        shapely.box(500_020, 5_500_020, 500_040, 5_500_040))], result="counted without the hole"),
    _regions("null", "rows without geometry", [WEST, None, shapely.Polygon(), EAST],
             message="2 regions have no area", result="rows kept, with 0"),
    _regions("mixed", "lines, points and collections among polygons",
             [WEST, shapely.LineString([(0, 0), (1, 1)]), shapely.Point(0, 0),
              shapely.GeometryCollection([EAST, shapely.Point(0, 0)])],
             message="2 regions have no area", result="what has area counts"),
    _regions("lines", "lines only", [shapely.LineString([(0, 0), (1, 1)])], code=2,
             message="holds no polygons, only: LineString"),
    _regions("z", "coordinates with heights", [shapely.force_3d(WEST, 5.0)],
             result="heights are ignored"),
    _regions("nan", "coordinates that are not finite", suffix="parquet",
             shapes=[shapely.Polygon([(0, 0), (np.nan, 0), (0, 1)]), WEST],
             message="1 regions have no area", result="such a region is empty, and said"),
    _regions("overlap", "two that overlap", [WEST, shapely.box(500_000, 5_500_000, 500_100,
             5_500_100)], message="1 pairs of regions overlap", result="the first counts, said"),
    _regions("sliver", "a sliver of a tenth of a millimetre",
             [shapely.box(500_000, 5_500_000, 500_100, 5_500_000.0001), WEST], result="counts 0"),
    _regions("far", "on the other side of the earth", [shapely.box(-100, -50, -99, -49)],
             crs="EPSG:4326", result="counts 0; all objects are outside"),
    _regions("earth", "as large as the earth", [shapely.box(-180, -90, 180, 90)],
             crs="EPSG:4326", result="counts all"),
    _regions("metres", "metres that pass for degrees", [WEST], crs="EPSG:4326", code=2,
             message="no place on earth"),
    _regions("none", "a layer without rows", np.zeros(0, object), code=2,
             message="holds no features"),
    _text("unclosed", "a ring that is not closed", [{"type": "Polygon", "coordinates": [_RING]}],
          0, "", "closed"),
    Case("regions-layers", "Regions", "several layers", _layers, 2, r"several layers \(wards, zon"),
    Case("regions-no-crs", "Regions", "no CRS", _no_crs, 2, "has no CRS.*--regions-crs"),
    _crs("degrees", "UTM to EPSG:4326", "EPSG:4326", result="longitude first"),
    _crs("web", "UTM to Web Mercator", "EPSG:3857", result="areas as on the ground"),
    _crs("zone", "UTM to another zone", "EPSG:32632", result="done"),
    _crs("swapped", "a CRS whose first axis is north", "EPSG:2180", result="x first all the same"),
    _crs("feet", "a custom CRS in US feet",
         "+proj=laea +lat_0=50 +lon_0=14 +datum=WGS84 +units=us-ft", result="done"),
    _crs("antimeridian", "across the antimeridian to EPSG:4326", "EPSG:4326",
         result="cut there into multipolygons", crs="EPSG:3832", x=3_339_561.0, y=-1_900_000.0),
    _crs("ballpark", "a datum to which no shift is known", "EPSG:4267", result="done, said",
         message="no datum shift"),
    _crs("unknown", "no CRS at all", "banana", 2, "no CRS that PROJ knows"),
    _crs("vertical", "heights", "EPSG:5773", 2, "gives heights, not places"),
    _crs("compound", "place and height", "EPSG:7415", 2, "horizontal part, EPSG:28992"),
    _crs("3d", "degrees and height", "EPSG:4979", 2, "horizontal part, EPSG:4326"),
    _crs("geocentric", "from the middle of the earth", "EPSG:4978", 2, "is geocentric"),
    _crs("local", "an engineering CRS", 'LOCAL_CS["site",UNIT["metre",1]]', 2,
         "no relation to the earth"),
    _crs("nowhere", "a CRS without a place for the image", "+proj=gnom +lat_0=-50 +lon_0=0", 2,
         "has no place in the CRS of the output"),
    _crs("mars", "another planet", "IAU_2015:49900", 2, "there is no way from the CRS"),
)  # fmt: skip
