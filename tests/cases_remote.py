"""Inputs by where they lie: lists, STAC, VRTs, and addresses of a server that the case starts."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
from affine import Affine
from cases import Case, Made
from servers import FileServer
from shapely.geometry import box

UTM = "EPSG:32633"
PIXEL = (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_500_000.0)
NORTH_UP = Affine(*PIXEL)
SQUARES = ((20, 20, 50, 40), (80, 60, 100, 100), (30, 120, 70, 150))
"""x0, y0, x1, y1 of what is painted, px."""
OPTIONS = (
    "--detector",
    "stubs:Bright",
    "--tile-size",
    "96",
    "--overlap",
    "32",
    "-j",
    "1",
    "--bidx",
    "1",
)
_servers: list[FileServer] = []


def paint(path: Path, *, crs: str | None = UTM, **options) -> gpd.GeoDataFrame:
    """Write 160 x 160 px with bright rectangles, and return these."""
    pixels = np.full((1, 160, 160), 20, np.uint8)
    for x0, y0, x1, y1 in SQUARES:
        pixels[0, y0:y1, x0:x1] = 200
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": 1, "height": 160, "width": 160, "dtype": "uint8"}
    profile |= {"transform": NORTH_UP} if crs else {}
    with rasterio.open(path, "w", crs=crs, **(profile | options)) as dst:
        dst.write(pixels)
    shapes = [
        box(500_000 + x0 / 2, 5_500_000 - y1 / 2, 500_000 + x1 / 2, 5_500_000 - y0 / 2)
        for x0, y0, x1, y1 in SQUARES
    ]
    return gpd.GeoDataFrame(geometry=shapes, crs=UTM)


def detect(image: str, truth: gpd.GeoDataFrame | None = None, *more: str) -> Made:
    return Made(("detect", image, "-o", "out.gpkg", *OPTIONS, *more), "out.gpkg", truth, PIXEL)


def served(folder: Path, **options) -> str:
    """Serve a folder until the process ends, and return the address."""
    server = FileServer(folder, **options)
    server.__enter__()
    _servers.append(server)
    return server.url


def a_list(folder: Path) -> Made:
    truth = paint(folder / "sheets" / "a.tif")
    (folder / "images.txt").write_text("# the flight\n\nsheets/a.tif\n")
    return detect("@images.txt", truth)


def a_list_of_nothing(folder: Path) -> Made:
    (folder / "images.txt").write_text("gone.tif\n")
    return detect("images.txt")


def stac(folder: Path, kind: str) -> Made:
    truth = paint(folder / "data" / "a.tif")
    asset = {"href": "../data/a.tif", "type": "image/tiff; application=geotiff", "roles": ["data"]}
    assets = {"image": asset, "thumbnail": {"href": "t.png", "type": "image/png"}}
    if kind == "two":
        assets = {"red": asset, "green": asset}
    item = {"type": "Feature", "id": "one", "assets": assets, "links": []}
    documents = {"item.json": item}
    documents["all.json"] = {"type": "FeatureCollection", "features": [item]}
    links = [{"rel": "item", "href": "./item.json"}]
    documents["catalog.json"] = {"type": "Catalog", "links": links}
    (folder / "stac").mkdir()
    for name, document in documents.items():
        (folder / "stac" / name).write_text(json.dumps(document))
    name = {"collection": "all.json", "catalog": "catalog.json"}.get(kind, "item.json")
    return detect(f"stac/{name}", truth if kind != "two" else None)


def address(folder: Path, name: str = "x.tif", options: dict | None = None) -> Made:
    truth = paint(folder / "served" / "x.tif", tiled=True, blockxsize=64, blockysize=64)
    data = (folder / "served" / "x.tif").read_bytes()
    (folder / "served" / "half.tif").write_bytes(data[: len(data) // 2])
    (folder / "served" / "page.tif").write_text("<html>please log in</html>")
    url = served(folder / "served", **(options or {}))
    return detect(f"{url}/{name}", truth if name == "x.tif" and not options else None)


def vrt(folder: Path, source: str, *, allow: bool, raw: bool = False) -> Made:
    truth = paint(folder / "a.tif")
    kind = ' subClass="VRTRawRasterBand"' if raw else ""
    inner = f'<SourceFilename relativeToVRT="1">{source}</SourceFilename>'
    rest = "<SourceBand>1</SourceBand>" if not raw else "<LineOffset>160</LineOffset>"
    band = inner + rest if raw else f"<SimpleSource>{inner}{rest}</SimpleSource>"
    (folder / "x.vrt").write_text(
        f'<VRTDataset rasterXSize="160" rasterYSize="160"><SRS>{UTM}</SRS>'
        "<GeoTransform>500000, 0.5, 0, 5500000, 0, -0.5</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1"{kind}>{band}</VRTRasterBand></VRTDataset>'
    )
    good = allow and source == "a.tif" and not raw
    return detect("x.vrt", truth if good else None, *(("--allow-vrt",) if allow else ()))


def world_file(folder: Path, *more: str) -> Made:
    truth = paint(folder / "x.png", crs=None, driver="PNG")
    (folder / "x.png.aux.xml").unlink(missing_ok=True)
    (folder / "x.pgw").write_text("0.5\n0\n0\n-0.5\n500000.25\n5499999.75\n")
    return detect("x.png", truth if more else None, *more)


_WHERE, _HOSTILE = "Where it lies", "Hostile"
CASES: tuple[Case, ...] = (
    Case("list", _WHERE, "a list of images, @images.txt", a_list),
    Case("list-gone", _WHERE, "a list with a file that is not there", a_list_of_nothing, 2,
         r"line 1: .*no such file"),
    Case("stac-item", _WHERE, "a STAC item", partial(stac, kind="item")),
    Case("stac-collection", _WHERE, "a STAC item collection", partial(stac, kind="collection")),
    Case("stac-catalog", _WHERE, "a static STAC catalog", partial(stac, kind="catalog")),
    Case("stac-two", _WHERE, "a STAC item with two images", partial(stac, kind="two"), 2,
         "say which with --asset: green, red"),
    Case("http", _WHERE, "an address with range requests", address),
    Case("http-404", _WHERE, "an address of nothing", partial(address, name="gone.tif"), 2,
         r"no such file \(404\)"),
    Case("http-403", _WHERE, "an address that is refused",
         partial(address, options={"refuse": lambda _path, _number: 403}), 2, r"refuses access"),
    Case("http-whole", _WHERE, "a server without range requests",
         partial(address, options={"ranges": False}), 2, "whole files only"),
    Case("http-truncated", _WHERE, "a truncated file behind an address",
         partial(address, name="half.tif"), 2, "is truncated"),
    Case("http-page", _WHERE, "a web page instead of an image", partial(address, name="page.tif"),
         2, "is not a raster that is read here"),
    Case("vrt-refused", _WHERE, "a VRT", partial(vrt, source="a.tif", allow=False), 2,
         "give --allow-vrt"),
    Case("vrt-allowed", _WHERE, "a VRT mosaic with --allow-vrt",
         partial(vrt, source="a.tif", allow=True)),
    Case("world-file", _WHERE, "PNG with a world file and --src-crs",
         lambda folder: world_file(folder, "--src-crs", UTM)),
    Case("world-file-bare", _WHERE, "PNG with a world file alone", world_file, 2,
         "has no CRS; name it with --src-crs"),
    Case("vrt-outside", _HOSTILE, "a VRT with --allow-vrt that names /etc/passwd",
         partial(vrt, source="/etc/passwd", allow=True), 2, "no file in the folder of the VRT"),
    Case("vrt-raw", _HOSTILE, "a VRT with --allow-vrt that reads raw bytes",
         partial(vrt, source="/etc/passwd", allow=True, raw=True), 2, "subClass"),
    Case("vrt-itself", _HOSTILE, "a VRT with --allow-vrt that names itself",
         partial(vrt, source="x.vrt", allow=True), 2, "is a VRT"),
    Case("vsizip", _HOSTILE, "a path into an archive",
         lambda _folder: detect("/vsizip/x.zip/x.tif"), 2, "this kind of path is not read"),
)  # fmt: skip
