"""Rasters of every kind that users have, painted; what geoseg finds in each, or says of it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import painted_kinds
import rasterio
import shapely
from cases import Case, Made, Unavailable
from painted import outline
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import Affine
from scipy import ndimage

UTM = "EPSG:32633"
NORTH_UP = (0.2, 0.0, 500_100.0, 0.0, -0.2, 5_500_000.0)
TILES = ("--tile-size", "128", "--overlap", "32", "--workers", "1", "--no-report")
OUTPUT = "found.gpkg"

HIDDEN = (4, 8, 11)
"""Objects that lie under what says: no data."""

Six = tuple[float, float, float, float, float, float]
Then = Callable[[Path], None]


# --- painting ----------------------------------------------------------------------------------


def levels(shares: np.ndarray, dtype: str) -> np.ndarray:
    """Return shares of the range as pixels of a type."""
    if np.dtype(dtype).kind == "f":
        return shares.astype(dtype)
    return np.rint(shares * float(np.iinfo(dtype).max)).astype(dtype)


def shown(scene: np.ndarray, hidden: Sequence[int] = HIDDEN) -> np.ndarray:
    """Return where data is: all but some objects and 4 px around them."""
    return ~ndimage.binary_dilation(np.isin(scene, hidden), np.ones((3, 3)), 4)


def truth(
    scene: np.ndarray, crs: Any, pixel: Six, *, colored: bool = True, hidden: Sequence[int] = ()
) -> gpd.GeoDataFrame:
    """Return the painted objects on the ground."""
    a, b, c, d, e, f = pixel
    numbers = [n for n in np.unique(scene) if n > 0 and n not in hidden]
    places = dict(enumerate(ndimage.find_objects(scene), start=1))
    polygons = [
        outline(scene[places[n]] == n, places[n][1].start, places[n][0].start) for n in numbers
    ]
    on_ground = shapely.transform(
        np.array(polygons, object), lambda xy: xy @ np.array([[a, d], [b, e]]) + [c, f]
    )
    color = [painted_kinds.COLORS[painted_kinds.color_of(n)] for n in numbers]
    names = color if colored else ["bright"] * len(numbers)
    return gpd.GeoDataFrame({"class": names}, geometry=list(on_ground), crs=crs)


def write(
    path: Path,
    pixels: np.ndarray,
    crs: Any = UTM,
    pixel: Six | None = NORTH_UP,
    *,
    mask: np.ndarray | None = None,
    msk: bool = False,
    colors: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    tags: dict[str, str] | None = None,
    palette: dict[int, tuple[int, ...]] | None = None,
    **options: Any,
) -> None:
    """Write a raster as rasterio does; pixels (C, h, w)."""
    profile = {"driver": "GTiff", "count": len(pixels), "dtype": pixels.dtype.name, "crs": crs}
    profile |= {"height": pixels.shape[1], "width": pixels.shape[2]}
    if pixel is not None:
        profile["transform"] = Affine(*pixel)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=not msk):
        try:
            dst = rasterio.open(path, "w", **(profile | options))
        except rasterio.errors.RasterioIOError as error:
            if "missing codec" in str(error):
                raise Unavailable(str(error)) from error
            raise
        with dst:
            if colors is not None:
                dst.colorinterp = [ColorInterp[c] for c in colors]
            if palette is not None:
                dst.write_colormap(1, palette)
            if names is not None:
                dst.descriptions = tuple(names)
            if tags is not None:
                dst.update_tags(**tags)
            dst.write(pixels)
            if mask is not None:
                dst.write_mask(mask)


@dataclass(frozen=True)
class Kind:
    """A painted raster of one kind; `case` makes the test of it."""

    name: str
    group: str
    what: str
    file: str = "image.tif"
    dtype: str = "uint8"
    bands: int = 3
    size: tuple[int, int] = (painted_kinds.HEIGHT, painted_kinds.WIDTH)
    crs: Any = UTM
    pixel: Six = NORTH_UP
    detector: str = ""
    colored: bool | None = None
    """None: where three bands are written."""
    args: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    """Goes to `write`."""
    change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, dict[str, Any]]] | None = None
    """Takes pixels (C, h, w) and where data shall be; returns pixels and more options."""
    hidden: tuple[int, ...] = ()
    then: Then | None = None
    """Changes what was written."""
    written: Six | None = None
    """The affine as it is handed to rasterio, where it is not ``pixel``."""
    measured: bool = True
    """The objects are compared with what was painted."""
    exit_code: int = 0
    message: str = ""
    result: str = ""

    def case(self) -> Case:
        return Case(
            self.name, self.group, self.what, self.make, self.exit_code, self.message, self.result
        )

    def make(self, folder: Path) -> Made:
        """Paint, write, and say what must come back."""
        scene = painted_kinds.ids(*self.size)
        pixels = levels(painted_kinds.shares(scene, self.bands), self.dtype)
        more: dict[str, Any] = {}
        if self.change is not None:
            pixels, more = self.change(pixels, shown(scene, self.hidden))
        written = self.pixel if self.written is None else self.written
        write(folder / self.file, pixels, self.crs, written, **(self.options | more))
        if self.then is not None:
            self.then(folder / self.file)
        if self.exit_code or not self.measured:
            return Made(detect(self.file, self._detector(), self.args), OUTPUT)
        seen = scene[: pixels.shape[1], : pixels.shape[2]]
        colored = self.bands == 3 if self.colored is None else self.colored
        found = truth(seen, self.crs, self.pixel, colored=colored, hidden=self.hidden)
        return Made(detect(self.file, self._detector(), self.args), OUTPUT, found, self.pixel)

    def _detector(self) -> str:
        return self.detector or ("make_grey" if self.bands == 1 else "make_rgb")


def detect(image: str, detector: str, args: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command that looks for painted objects."""
    images = image.split(" ")
    how = ("--detector", f"painted_kinds:{detector}")
    return ("detect", *images, *how, "-o", OUTPUT, *TILES, *args)


# --- what is not data ---------------------------------------------------------------------------


def with_alpha(pixels: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Add an alpha band."""
    top = np.iinfo(pixels.dtype).max
    alpha = np.where(data, top, 0).astype(pixels.dtype)[None]
    colors = ("gray", "alpha") if len(pixels) == 1 else ("red", "green", "blue", "alpha")
    return np.concatenate([pixels, alpha]), {"colors": colors}


def with_mask(pixels: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Add a mask inside the file; the objects stay painted under it."""
    return pixels, {"mask": data}


def with_msk(pixels: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Add a mask beside the file."""
    return pixels, {"mask": data, "msk": True}


def filled(value: float, *, nodata: float | None = None, band: int | None = None):
    """Return a change that writes a value where no data is, as bright as objects are."""

    def change(pixels: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        out = pixels.copy()
        out[slice(None) if band is None else band, ~data] = value
        return out, {} if nodata is None else {"nodata": nodata}

    return change


def declared(nodata: float):
    """Return a change that names a nodata value which no pixel holds."""
    return lambda pixels, _data: (pixels, {"nodata": nodata})


# --- pixels that are no plain brightness --------------------------------------------------------

PALETTE = {
    0: (20, 30, 25, 255),
    1: (240, 140, 140, 255),
    2: (140, 240, 140, 255),
    3: (140, 140, 240, 255),
    4: (255, 255, 255, 0),
}
"""Ground, three colours, and white that is transparent."""


def as_indices(pixels: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Write the colours as a palette; what is no data is transparent white."""
    strong = pixels.max(axis=0) > pixels.dtype.type(0.5 * np.iinfo(pixels.dtype).max)
    indices = np.where(strong, 1 + pixels.argmax(axis=0), 0)
    indices[~data] = 4
    return indices.astype(pixels.dtype)[None], {"palette": PALETTE}


def as_bits(pixels: np.ndarray, _data: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Write 0 and 1."""
    return (pixels > painted_kinds.LEVEL * 255).astype(np.uint8), {}


def in_bits(bits: int):
    """Return a change that writes the range of so many bits."""

    def change(pixels: np.ndarray, _data: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        share = pixels.astype(np.float64) / np.iinfo(pixels.dtype).max
        return np.rint(share * (2**bits - 1)).astype(pixels.dtype), {}

    return change


def signed(pixels: np.ndarray, _data: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Spread int16 from -20,000 to 24,000: ground lies below zero."""
    share = pixels.astype(np.float64) / np.iinfo(np.int16).max
    return np.rint(-25_000 + 51_000 * share).astype(np.int16), {}


def among(order: Sequence[int], count: int, **more: Any):
    """Return a change that puts red, green, blue (0, 1, 2) at bands among others that mislead."""

    def change(pixels: np.ndarray, _data: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        out = np.empty((count, *pixels.shape[1:]), pixels.dtype)
        # bright where the ground is, so a wrong band shows at once
        out[:] = pixels.max() - pixels.mean(axis=0).astype(pixels.dtype)
        for band, color in zip(order, (0, 1, 2), strict=True):
            out[band] = pixels[color]
        return out, more

    return change


# --- formats -----------------------------------------------------------------------------------


def _formats() -> list[Kind]:
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 32}
    group = "Formats"
    jp2 = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
    return [
        Kind("tiff", group, "GeoTIFF, strips"),
        Kind("tiff-rows", group, "GeoTIFF, one row a strip", options={"blockysize": 1}),
        Kind("tiff-one-strip", group, "GeoTIFF, one strip", options={"blockysize": 350}),
        Kind("tiff-tiled", group, "GeoTIFF, tiled", options=tiled),
        Kind(
            "tiff-band", group, "GeoTIFF, tiled, bands apart", options=tiled | {"interleave": "band"}
        ),
        Kind("tiff-band-strips", group, "GeoTIFF, strips, bands apart",
             options={"interleave": "band"}),
        Kind("tiff-big-endian", group, "GeoTIFF, big endian", dtype="uint16",
             options=tiled | {"ENDIANNESS": "BIG"}),
        Kind("bigtiff", group, "BigTIFF", options=tiled | {"BIGTIFF": "YES"}),
        Kind("bigtiff-big-endian", group, "BigTIFF, big endian", dtype="float32",
             options={"BIGTIFF": "YES", "ENDIANNESS": "BIG"}),
        Kind("cog", group, "COG, deflate", options={"driver": "COG", "compress": "DEFLATE",
                                                     "blocksize": 128}),
        Kind("cog-jpeg", group, "COG, JPEG", options={"driver": "COG", "compress": "JPEG",
                                                       "blocksize": 128, "quality": 85}),
        Kind("cog-jpeg-mask", group, "COG, JPEG, from an image with alpha", change=with_alpha,
             hidden=HIDDEN,
             options={"driver": "COG", "compress": "JPEG", "blocksize": 128, "quality": 85}),
        Kind("jp2", group, "JPEG2000, reversible", file="image.jp2", options=jp2),
        Kind("jp2-lossy", group, "JPEG2000, lossy", file="image.jp2",
             options={"driver": "JP2OpenJPEG", "QUALITY": "20"}),
        Kind("jp2-uint16", group, "JPEG2000, uint16", file="image.jp2", dtype="uint16",
             options=jp2),
        Kind("jp2-alpha", group, "JPEG2000, lossy, with alpha", file="image.jp2", change=with_alpha,
             hidden=HIDDEN, options={"driver": "JP2OpenJPEG", "QUALITY": "30"}),
        Kind("png-aux", group, "PNG with .aux.xml", file="image.png", options={"driver": "PNG"}),
        Kind("png-world", group, "PNG with world file (.pgw) and .prj", file="image.png",
             options={"driver": "PNG"}, then=_world_file(".pgw")),
        Kind("png-uint16-alpha", group, "PNG, uint16 with alpha", file="image.png", dtype="uint16",
             change=with_alpha, hidden=HIDDEN, options={"driver": "PNG"}),
        Kind("jpeg-aux", group, "JPEG with .aux.xml", file="image.jpg",
             options={"driver": "JPEG", "quality": 85}),
        Kind("jpeg-world", group, "JPEG with world file (.jgw) and .prj", file="image.jpg",
             options={"driver": "JPEG", "quality": 85}, then=_world_file(".jgw")),
        Kind("tiff-world", group, "TIFF without GeoTIFF keys, with .tfw and .prj", then=_bare_tiff),
        Kind("jpeg-world-only", group, "JPEG with world file, but no .prj", file="image.jpg",
             options={"driver": "JPEG"}, then=_world_file(".jgw", prj=False),
             exit_code=2, message=r"image\.jpg has no CRS"),
    ]  # fmt: skip


def _world_file(suffix: str, *, prj: bool = True) -> Then:
    """Return a change that takes georeferencing out of .aux.xml and puts it into a world file."""

    def then(path: Path) -> None:
        path.with_name(f"{path.name}.aux.xml").unlink()
        _write_world(path, suffix, prj=prj)

    return then


def _write_world(path: Path, suffix: str, *, prj: bool) -> None:
    """Write a, d, b, e and the middle of the first pixel, line by line."""
    a, b, c, d, e, f = NORTH_UP
    lines = (a, d, b, e, c + (a + b) / 2, f + (d + e) / 2)
    path.with_suffix(suffix).write_text("\n".join(f"{value:.12f}" for value in lines) + "\n")
    if prj:
        esri = CRS.from_string(UTM).to_wkt(version="WKT1_ESRI")
        path.with_suffix(".prj").write_text(esri)


def _bare_tiff(path: Path) -> None:
    """Write the pixels again without GeoTIFF keys."""
    with rasterio.open(path) as src:
        pixels = src.read()
    path.unlink()
    write(path, pixels, None, None)
    _write_world(path, ".tfw", prj=True)


# --- codecs ------------------------------------------------------------------------------------


def _codecs() -> list[Kind]:
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    group = "Codecs of GeoTIFF"

    def kind(name: str, what: str, **options: Any) -> Kind:
        return Kind(f"codec-{name}", group, what, options=tiled | options)

    out = [
        kind("lzw", "LZW", compress="LZW"),
        kind("deflate", "DEFLATE", compress="DEFLATE"),
        kind("zstd", "ZSTD", compress="ZSTD"),
        kind("lzma", "LZMA", compress="LZMA"),
        kind("packbits", "PACKBITS", compress="PACKBITS"),
        kind("lerc", "LERC", compress="LERC"),
        kind("lerc-deflate", "LERC_DEFLATE", compress="LERC_DEFLATE"),
        kind("lerc-zstd", "LERC_ZSTD", compress="LERC_ZSTD"),
        kind("webp-lossless", "WEBP, lossless", compress="WEBP", WEBP_LOSSLESS="YES"),
        kind("webp", "WEBP, lossy", compress="WEBP", WEBP_LEVEL=75),
        kind("jpeg-rgb", "JPEG, RGB", compress="JPEG", photometric="RGB"),
        kind("jpeg-ycbcr", "JPEG, YCbCr", compress="JPEG", photometric="YCBCR"),
        kind("jxl", "JPEG XL, lossless", compress="JXL", JXL_LOSSLESS="YES"),
        kind("lzw-predictor", "LZW, predictor 2", compress="LZW", predictor=2),
    ]
    out += [
        Kind("codec-jpeg-strips", group, "JPEG, YCbCr, strips of 16 rows",
             options={"compress": "JPEG", "photometric": "YCBCR", "blockysize": 16}),
        Kind("codec-jpeg-grey", group, "JPEG, one band", bands=1,
             options=tiled | {"compress": "JPEG"}),
        Kind("codec-zstd-predictor-16", group, "ZSTD, predictor 2, uint16", dtype="uint16",
             options=tiled | {"compress": "ZSTD", "predictor": 2}),
        Kind("codec-deflate-predictor-3", group, "DEFLATE, predictor 3, float32",
             dtype="float32", options=tiled | {"compress": "DEFLATE", "predictor": 3}),
        Kind("codec-lerc-float", group, "LERC, float32, error up to 0.01", dtype="float32",
             options=tiled | {"compress": "LERC", "MAX_Z_ERROR": 0.01}),
    ]  # fmt: skip
    out += [
        Kind(f"codec-{code.lower()}", group, f"{code}, 1-bit", bands=1, change=as_bits,
             options={"compress": code, "nbits": 1})
        for code in ("CCITTRLE", "CCITTFAX3", "CCITTFAX4")
    ]  # fmt: skip
    return out


# --- pixels ------------------------------------------------------------------------------------


def _pixels() -> list[Kind]:
    group = "Pixels"
    plain = [
        Kind(f"dtype-{dtype}", group, f"{dtype}, 3 bands", dtype=dtype)
        for dtype in ("uint16", "int8", "uint32", "int32", "float32", "float64")
    ]
    grey = [
        Kind(f"grey-{dtype}", group, f"{dtype}, 1 band", dtype=dtype, bands=1)
        for dtype in ("uint8", "uint16", "float32")
    ]
    return [
        *plain,
        *grey,
        Kind("dtype-int16", group, "int16, most of it below zero", dtype="int16", change=signed,
             detector="make_signed"),
        Kind("bits-12", group, "12 bits in uint16 (NBITS=12)", dtype="uint16", change=in_bits(12),
             detector="make_12bit", options={"nbits": 12}),
        Kind("bits-4", group, "4 bits, 1 band (NBITS=4)", bands=1, change=in_bits(4),
             options={"nbits": 4}, result="0 to 15 is read as 0 to 255"),
        Kind("bits-1", group, "1 bit, black is 0 (a bilevel scan)", bands=1, change=as_bits,
             options={"nbits": 1}, result="black and white: three bands of 0 and 255"),
        Kind("bits-1-white", group, "1 bit, white is 0 (MINISWHITE)", bands=1,
             change=lambda p, d: (1 - as_bits(p, d)[0], {}), detector="make_rgb", colored=False,
             options={"nbits": 1, "photometric": "MINISWHITE"},
             result="white is bright: read by its palette"),
        Kind("palette", group, "palette", change=as_indices,
             result="read as red, green, blue of the palette"),
        Kind("palette-png", group, "palette, PNG, one colour transparent", file="image.png",
             change=as_indices, hidden=HIDDEN, options={"driver": "PNG"},
             result="transparent is no data"),
        Kind("palette-nodata", group, "palette, one index is nodata", change=as_indices,
             hidden=HIDDEN, options={"nodata": 4}),
        Kind("complex", group, "complex pixels", dtype="float32",
             change=lambda p, _d: (p.astype(np.complex64), {}), exit_code=2,
             message="image.tif has complex pixels"),
    ]  # fmt: skip


# --- bands -------------------------------------------------------------------------------------


def _bands() -> list[Kind]:
    group = "Bands"
    eight = among((4, 2, 1), 8)
    named = among((5, 1, 3), 6, names=("nir", "green", "re", "blue", "swir", "red"))
    tagged = among((2, 1, 0), 4, colors=("blue", "green", "red", "undefined"))
    return [
        Kind("bands-bgr", group, "blue, green, red, tagged so", change=tagged,
             result="red, green, blue by their tags"),
        Kind("bands-eight", group, "8 bands, `--bidx 5,3,2`", change=eight, dtype="uint16",
             args=("--bidx", "5,3,2")),
        Kind("bands-named", group, "6 bands with names, `--bidx red,green,blue`", change=named,
             args=("--bidx", "red,green,blue")),
        Kind("bands-named-by-tag", group, "blue, green, red, other; `--bidx red,2,blue`",
             change=tagged, args=("--bidx", "red,2,blue")),
        Kind("bands-name-unknown", group, "6 bands with names, `--bidx red,green,violet`",
             change=named, args=("--bidx", "red,green,violet"), exit_code=2,
             message="no band 'violet'.*nir, green, re, blue, swir, red"),
        Kind("bands-too-few", group, "1 band, 3 wanted", bands=1, detector="make_rgb", exit_code=2,
             message="has 1 band.* but 3 are needed"),
        Kind("bands-repeated", group, "1 band, 3 wanted, `--bidx 1,1,1`", bands=1,
             detector="make_rgb", colored=False, args=("--bidx", "1,1,1")),
        Kind("bands-absent", group, "3 bands, `--bidx 1,2,4`", args=("--bidx", "1,2,4"),
             exit_code=2, message=r"has 3 band\(s\) but --bidx asks for band 4"),
        Kind("bands-miscounted", group, "3 bands, 3 wanted, `--bidx 1,2`", args=("--bidx", "1,2"),
             exit_code=2, message=r"--bidx names 2 band\(s\) but 3 are needed"),
        Kind("bands-forty", group, "40 bands, `--bidx 33,1,40`", change=among((32, 0, 39), 40),
             size=(120, 150), args=("--bidx", "33,1,40")),
    ]  # fmt: skip


# --- validity ----------------------------------------------------------------------------------


def _validity() -> list[Kind]:
    group = "What is no data"
    jpeg = {"compress": "JPEG", "photometric": "YCBCR", "tiled": True, "blockxsize": 64,
            "blockysize": 64}  # fmt: skip
    lowest = float(np.finfo(np.float32).min)
    kinds = [
        Kind("alpha", group, "alpha", change=with_alpha),
        Kind("alpha-grey", group, "grey and alpha", bands=1, change=with_alpha),
        Kind("alpha-uint16", group, "alpha, uint16", dtype="uint16", change=with_alpha),
        Kind("alpha-jpeg", group, "alpha, lossy (JPEG)", change=with_alpha,
             options={"compress": "JPEG"}, result="below half is no data"),
        Kind("mask", group, "internal mask", change=with_mask, options={"compress": "DEFLATE"}),
        Kind("mask-jpeg", group, "internal 1-bit mask beside JPEG", change=with_mask, options=jpeg),
        Kind("msk", group, ".msk beside the file", change=with_msk),
        Kind("msk-band-apart", group, ".msk, bands apart", change=with_msk,
             options={"interleave": "band"}),
        Kind("msk-per-band", group, ".msk with a mask for each band", then=_mask_per_band,
             result="valid where all bands are"),
        Kind("nodata-255", group, "nodata 255, uint8", change=filled(255, nodata=255)),
        Kind("nodata-one-band", group, "nodata 255 in one band only, uint8",
             change=filled(255, nodata=255, band=0), hidden=(),
             result="a colour that holds 255 in one band is data"),
        Kind("nodata-uint16", group, "nodata 65535, uint16", dtype="uint16",
             change=filled(65535, nodata=65535)),
        Kind("nodata-int16", group, "nodata 32767, int16", dtype="int16", detector="make_signed",
             change=lambda p, d: filled(32767, nodata=32767)(signed(p, d)[0], d)),
        Kind("nodata-uint32", group, "nodata 4294967295, uint32", dtype="uint32",
             change=filled(4294967295, nodata=4294967295)),
        Kind("nodata-float", group, "nodata 1e30, float32", dtype="float32",
             change=filled(1e30, nodata=1e30)),
        Kind("nodata-float-lowest", group, "nodata -3.4e38, written with 7 digits, float32",
             dtype="float32", bands=1, change=filled(-lowest, nodata=None), hidden=HIDDEN,
             then=_nodata_text(f"{-lowest:.6e}")),
        Kind("nodata-float-one-band", group, "nodata 1e30 in one of three bands, float32",
             dtype="float32", change=filled(1e30, nodata=1e30, band=1)),
        Kind("nodata-nan", group, "nodata NaN, float32", dtype="float32",
             change=filled(np.nan, nodata=np.nan)),
        Kind("nodata-aux", group, "another nodata for each band (.aux.xml), JPEG2000",
             file="image.jp2", options={"driver": "JP2OpenJPEG", "QUALITY": "100",
                                        "REVERSIBLE": "YES"},
             change=lambda p, d: (np.where(d, p, np.array([251, 252, 253], np.uint8)[:, None, None]),
                                  {}),
             then=_nodata_of_bands((251, 252, 253))),
        Kind("nodata-values", group, "nodata as a colour (NODATA_VALUES)",
             change=lambda p, d: (np.where(d, p, np.array([255, 255, 254], np.uint8)[:, None, None]),
                                  {"tags": {"NODATA_VALUES": "255 255 254"}})),
        Kind("nodata-and-mask", group, "nodata and an internal mask",
             change=_nodata_and_mask),
        Kind("nan", group, "NaN, not declared, float32", dtype="float32", change=filled(np.nan)),
        Kind("nan-float64", group, "NaN in one band, not declared, float64", dtype="float64",
             change=filled(np.nan, band=2)),
        Kind("inf", group, "Inf, not declared, float32", dtype="float32", change=filled(np.inf)),
    ]  # fmt: skip
    whole = [
        Kind("nodata-out-of-range", group, "nodata -9999 declared, uint8",
             then=_nodata_of_bands((-9999, -9999, -9999))),
        Kind("near-infrared-as-alpha", group, "red, green, blue, near infrared tagged as alpha",
             change=_infrared, message="tagged as alpha but holds an image",
             result="band 4 is no mask"),
        Kind("nothing-valid", group, "nodata everywhere", size=(128, 150),
             change=lambda p, _d: (np.full_like(p, 255), {"nodata": 255}),
             hidden=tuple(range(1, 12)), result="nothing, and the summary says nodata"),
    ]  # fmt: skip
    return [
        replace(kind, hidden=kind.hidden if kind.name == "nodata-one-band" else HIDDEN)
        for kind in kinds
    ] + whole


def _mask_per_band(path: Path) -> None:
    """Write a .msk of one mask for each band: each hides other objects."""
    scene = painted_kinds.ids()
    masks = np.stack([shown(scene, [number]) for number in HIDDEN]).astype(np.uint8) * 255
    write(path.with_name("mask.tif"), masks, None, None,
          tags={f"INTERNAL_MASK_FLAGS_{band}": "0" for band in (1, 2, 3)})  # fmt: skip
    path.with_name("mask.tif").rename(f"{path}.msk")


def _nodata_text(text: str) -> Then:
    """Return a change that declares nodata in the words of another program."""

    def then(path: Path) -> None:
        Path(f"{path}.aux.xml").write_text(
            f'<PAMDataset><PAMRasterBand band="1"><NoDataValue>{text}</NoDataValue>'
            "</PAMRasterBand></PAMDataset>"
        )

    return then


def _nodata_of_bands(values: Sequence[int]) -> Then:
    """Return a change that declares a nodata value for each band, beside the file."""

    def then(path: Path) -> None:
        bands = "".join(
            f'<PAMRasterBand band="{band}"><NoDataValue>{value}</NoDataValue></PAMRasterBand>'
            for band, value in enumerate(values, start=1)
        )
        Path(f"{path}.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")

    return then


def _nodata_and_mask(pixels: np.ndarray, _data: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Hide some objects by a mask and others by nodata."""
    scene = painted_kinds.ids()
    out, _ = filled(255)(pixels, shown(scene, HIDDEN[:1]))
    return out, {"nodata": 255, "mask": shown(scene, HIDDEN[1:])}


def _infrared(pixels: np.ndarray, _data: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Add a band that is dark where objects are, tagged as alpha."""
    y, x = np.mgrid[: pixels.shape[1], : pixels.shape[2]]
    infrared = np.where(pixels.max(axis=0) > 128, 0, 40 + (3 * x + 7 * y) % 200).astype(np.uint8)
    return np.concatenate([pixels, infrared[None]]), {"colors": ("red", "green", "blue", "alpha")}


# --- where it lies -----------------------------------------------------------------------------


def _turned(degrees: float, *, gsd: float = 0.2, shear: float = 0.0) -> Six:
    """Return the affine of a raster turned against the clock."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    right, down = np.array([cos, sin]) * gsd, np.array([sin + shear, -cos]) * gsd
    return (right[0], down[0], 500_300.0, right[1], down[1], 5_500_050.0)


def _at(crs: str, lon: float, lat: float, size: float) -> Six:
    """Return the affine of a raster around a place, north-up, with pixels of a size in units."""
    import pyproj

    x, y = pyproj.Transformer.from_crs(pyproj.CRS(crs).geodetic_crs, crs, always_xy=True).transform(
        lon, lat
    )
    return _around(x, y, size, size)


def _around(x: float, y: float, size_x: float, size_y: float) -> Six:
    """Return the affine of a north-up raster with its middle at (x, y)."""
    left, top = x - painted_kinds.WIDTH / 2 * size_x, y + painted_kinds.HEIGHT / 2 * size_y
    return (size_x, 0.0, left, 0.0, -size_y, top)


LOCAL_TM = (
    'PROJCS["Site grid",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],'
    'PARAMETER["latitude_of_origin",47.1],PARAMETER["central_meridian",8.35],'
    'PARAMETER["scale_factor",1.00007],PARAMETER["false_easting",10000],'
    'PARAMETER["false_northing",20000],UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
)
LOCAL_LAEA = "+proj=laea +lat_0=12 +lon_0=78 +x_0=0 +y_0=0 +datum=WGS84 +units=m +no_defs"
ENGINEERING = 'LOCAL_CS["Building site",UNIT["metre",1],AXIS["X",EAST],AXIS["Y",NORTH]]'
WEB = "EPSG:3857"


def _geometry() -> list[Kind]:
    group = "How pixels lie"
    return [
        Kind("south-up", group, "south-up", pixel=(0.2, 0, 500_100.0, 0, 0.2, 5_499_000.0)),
        Kind("west-up", group, "mirrored (columns run west)",
             pixel=(-0.2, 0, 500_100.0, 0, -0.2, 5_500_000.0)),
        Kind("upside-down", group, "turned by 180 degrees", pixel=_turned(180)),
        Kind("rotated", group, "turned by 25 degrees", pixel=_turned(25)),
        Kind("rotated-90", group, "turned by 90 degrees", pixel=_turned(90)),
        Kind("sheared", group, "sheared", pixel=_turned(10, shear=0.4)),
        Kind("non-square", group, "pixels of 0.2 x 0.5 m",
             pixel=(0.2, 0, 500_100.0, 0, -0.5, 5_500_000.0)),
        Kind("pixel-is-point", group, "the tie point is the middle of a pixel (PixelIsPoint)",
             then=_pixel_is_point, pixel=(0.2, 0.0, 500_099.9, 0.0, -0.2, 5_500_000.1),
             written=NORTH_UP),
    ]  # fmt: skip


def _pixel_is_point(path: Path) -> None:
    """Turn the GeoTIFF key GTRasterTypeGeoKey to 2, byte by byte: what was a corner is a middle."""
    content = path.read_bytes()
    area, point = (struct.pack("<4H", 1025, 0, 1, value) for value in (1, 2))
    assert content.count(area) == 1
    path.write_bytes(content.replace(area, point))


def _systems() -> list[Kind]:
    group = "Coordinate systems"

    def kind(name: str, what: str, crs: str, pixel: Six, **more: Any) -> Kind:
        return Kind(f"crs-{name}", group, what, crs=crs, pixel=pixel, **more)

    degree = 1 / 111_320
    return [
        kind("us-feet", "US survey feet (EPSG:2263)", "EPSG:2263", _at("EPSG:2263", -73.9, 40.7, 0.5)),
        kind("feet", "international feet (EPSG:2992)", "EPSG:2992",
             _at("EPSG:2992", -120.5, 44.0, 0.5)),
        kind("degrees", "degrees (EPSG:4326)", "EPSG:4326",
             _around(85.5, 27.6, 0.3 * degree, 0.3 * degree)),
        kind("degrees-nad83", "degrees, other datum (EPSG:4269)", "EPSG:4269",
             _around(-110.0, 60.0, 0.6 * degree, 0.3 * degree)),
        kind("web-mercator", "EPSG:3857 at 60 degrees north: a unit is half a metre", WEB,
             _at(WEB, 25.0, 60.0, 0.5)),
        kind("north-east", "first axis north (EPSG:2193)", "EPSG:2193",
             _at("EPSG:2193", 174.8, -41.3, 0.2)),
        kind("south-west", "axes west and south (EPSG:2053)", "EPSG:2053",
             _at("EPSG:2053", 29.2, -25.7, 0.2)),
        kind("swiss", "oblique Mercator (EPSG:2056)", "EPSG:2056", _at("EPSG:2056", 8.5, 47.4, 0.1)),
        kind("lambert", "Lambert conic (EPSG:2154)", "EPSG:2154", _at("EPSG:2154", 2.3, 48.8, 0.2)),
        kind("equal-area", "Lambert azimuthal (EPSG:3035)", "EPSG:3035",
             _at("EPSG:3035", 10.0, 52.0, 0.5)),
        kind("custom-tm", "own transverse Mercator, as WKT", LOCAL_TM,
             _at(LOCAL_TM, 8.36, 47.11, 0.05)),
        kind("custom-laea", "own azimuthal, as PROJ string", LOCAL_LAEA,
             _at(LOCAL_LAEA, 78.1, 12.1, 0.2)),
        kind("compound", "with heights (EPSG:25832+7837)", "EPSG:25832+7837",
             _at("EPSG:25832", 9.0, 50.0, 0.2)),
        kind("antimeridian-utm", "UTM 60 across 180 degrees", "EPSG:32660",
             _at("EPSG:32660", 180.0, -17.0, 0.3)),
        kind("antimeridian-web", "EPSG:3857 beyond 180 degrees", WEB,
             _around(20_037_508.34, -1_900_000.0, 0.3, 0.3)),
        kind("antimeridian-degrees", "EPSG:4326 with longitudes above 180", "EPSG:4326",
             _around(180.0, -17.0, 0.3 * degree, 0.3 * degree)),
        kind("antimeridian-pacific", "EPSG:3832, whose middle is 150 degrees east", "EPSG:3832",
             _at("EPSG:3832", 180.0, -17.0, 0.3)),
        kind("north-pole", "on the North Pole (EPSG:3413)", "EPSG:3413",
             _around(5.0, 3.0, 0.5, 0.5)),
        kind("south-pole", "on the South Pole (EPSG:3031)", "EPSG:3031",
             _around(-9.0, 14.0, 0.5, 0.5)),
        kind("engineering", "a site grid without relation to the earth", ENGINEERING, NORTH_UP,
             exit_code=2, message="no relation to the earth"),
        kind("none", "no CRS", None, NORTH_UP, exit_code=2, message=r"image\.tif has no CRS"),
        kind("wrong", "a CRS that has no place for the coordinates", "EPSG:4326",
             (0.2, 0.0, 500_100.0, 0.0, -0.2, 5_500_000.0), exit_code=2,
             message="does not lie on the earth"),
        kind("no-transform", "a CRS, but no transform", UTM, NORTH_UP, exit_code=2,
             options={"driver": "PNG"}, file="image.png", then=_without_transform,
             message="no transform"),
        kind("gcps", "ground control points only", UTM, NORTH_UP, then=_gcps_only, exit_code=2,
             message="ground control points but no transform.*gdalwarp"),
        kind("rpcs", "RPCs only", UTM, NORTH_UP, then=_rpcs_only, exit_code=2,
             message="RPCs but no transform.*gdalwarp"),
    ]  # fmt: skip


def _without_transform(path: Path) -> None:
    """Take the transform out of .aux.xml."""
    aux = Path(f"{path}.aux.xml")
    head, _, rest = aux.read_text().partition("<GeoTransform>")
    aux.write_text(head + rest.partition("</GeoTransform>")[2])


def _again(path: Path, **what: Any) -> None:
    """Write the pixels again with other georeferencing."""
    with rasterio.open(path) as src:
        pixels = src.read()
    path.unlink()
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype="uint8", **what
    ) as dst:
        dst.write(pixels)


def _gcps_only(path: Path) -> None:
    corners = [(0, 0), (0, 300), (350, 0), (350, 300)]
    points = [
        GroundControlPoint(row=r, col=c, x=500_100 + 0.2 * c, y=5_500_000 - 0.2 * r)
        for r, c in corners
    ]
    _again(path, gcps=points, crs=UTM)


def _rpcs_only(path: Path) -> None:
    terms = [1.0] + [0.0] * 19
    rpcs = RPC(
        height_off=100, height_scale=500, lat_off=27.7, lat_scale=0.1, long_off=85.4,
        long_scale=0.1, line_off=175, line_scale=175, samp_off=150, samp_scale=150,
        line_num_coeff=terms, line_den_coeff=terms, samp_num_coeff=terms, samp_den_coeff=terms,
    )  # fmt: skip
    _again(path, rpcs=rpcs)


# --- sizes -------------------------------------------------------------------------------------


def _sizes() -> list[Kind]:
    group = "Sizes"
    return [
        Kind(
            "size-one",
            group,
            "1 x 1 px",
            size=(1, 1),
            measured=False,
            result="no object: one pixel has no outline",
        ),
        Kind(
            "size-row",
            group,
            "1 row of 300 px",
            size=(1, 300),
            measured=False,
            result="what is one pixel thick is measured up to a third too small",
        ),
        Kind(
            "size-column",
            group,
            "1 column of 350 px",
            size=(350, 1),
            measured=False,
            result="what is one pixel thick is measured up to a third too small",
        ),
        Kind("size-strip", group, "9 rows of 300 px", size=(9, 300)),
        Kind("size-small", group, "smaller than a tile", size=(70, 100)),
        Kind("size-tile", group, "as large as a tile", size=(128, 128), args=("--simplify", "0")),
    ]


# --- more than one raster ----------------------------------------------------------------------


def _east_of(pixel: Six, px: float) -> Six:
    a, b, c, d, e, f = pixel
    return (a, b, c + a * px, d, e, f + d * px)


def _two_types(folder: Path) -> Made:
    scene = painted_kinds.ids()
    tables = []
    for name, dtype, left in (("a.tif", "uint8", 0), ("b.tif", "uint16", 400)):
        pixel = _east_of(NORTH_UP, left)
        write(folder / name, levels(painted_kinds.shares(scene, 3), dtype), UTM, pixel)
        tables.append(truth(scene, UTM, pixel))
    return _made_of(tables, "a.tif b.tif")


def _two_sizes(folder: Path) -> Made:
    """Two pixel sizes; the second raster has a third of the first one's resolution."""
    scene = painted_kinds.ids()
    coarse = (0.6, 0.0, 500_300.0, 0.0, -0.6, 5_500_000.0)
    tables = []
    for name, pixel in (("a.tif", NORTH_UP), ("b.tif", coarse)):
        write(folder / name, levels(painted_kinds.shares(scene, 3), "uint8"), UTM, pixel)
        tables.append(truth(scene, UTM, pixel))
    return _made_of(tables, "a.tif b.tif")


def _two_systems(folder: Path) -> Made:
    """Two neighbouring UTM zones and degrees; the objects come in the first one's CRS."""
    scene = painted_kinds.ids()
    places = (
        ("a.tif", "EPSG:32633", _at("EPSG:32633", 18.0, 50.0, 0.2)),
        ("b.tif", "EPSG:32634", _at("EPSG:32634", 18.01, 50.0, 0.2)),
        ("c.tif", "EPSG:4326", _around(17.99, 50.0, 0.2 / 71_700, 0.2 / 111_230)),
    )
    tables = []
    for name, crs, pixel in places:
        write(folder / name, levels(painted_kinds.shares(scene, 3), "uint8"), crs, pixel)
        tables.append(truth(scene, crs, pixel).to_crs(places[0][1]))
    made = _made_of(tables, "a.tif b.tif c.tif")
    return replace(made, pixel=places[0][2])


def _sheets(folder: Path) -> Made:
    """Two sheets of one scene that share 130 columns."""
    scene = painted_kinds.ids()
    pixels = levels(painted_kinds.shares(scene, 3), "uint8")
    write(folder / "a.tif", pixels[:, :, :215], UTM, NORTH_UP)
    write(folder / "b.tif", pixels[:, :, 85:], UTM, _east_of(NORTH_UP, 85))
    return _made_of([truth(scene, UTM, NORTH_UP)], "a.tif b.tif")


def _sheets_of_bands(folder: Path) -> Made:
    """A sheet of red, green, blue beside one with alpha and one with a palette."""
    scene = painted_kinds.ids()
    pixels = levels(painted_kinds.shares(scene, 3), "uint8")
    everywhere = scene >= 0
    tables = []
    for left, (name, change) in enumerate(
        [("a.tif", None), ("b.tif", with_alpha), ("c.tif", as_indices)]
    ):
        pixel = _east_of(NORTH_UP, 400 * left)
        image, more = (pixels, {}) if change is None else change(pixels, everywhere)
        write(folder / name, image, UTM, pixel, **more)
        tables.append(truth(scene, UTM, pixel))
    return _made_of(tables, "a.tif b.tif c.tif")


def _made_of(tables: Sequence[gpd.GeoDataFrame], images: str) -> Made:
    import pandas as pd

    found = gpd.GeoDataFrame(pd.concat(tables, ignore_index=True), crs=tables[0].crs)
    return Made(detect(images, "make_rgb"), OUTPUT, found, NORTH_UP)


SIDE = 400_000


def huge(folder: Path) -> Made:
    """Write 400,000 px a side with nothing in it but one scene, and look there."""
    scene = painted_kinds.ids()
    pixels = levels(painted_kinds.shares(scene, 1), "uint8")
    pixel = (0.05, 0.0, 500_100.0, 0.0, -0.05, 5_520_000.0)
    top, left = SIDE - painted_kinds.HEIGHT, SIDE - painted_kinds.WIDTH
    with rasterio.open(
        folder / "image.tif", "w", driver="GTiff", count=1, dtype="uint8", height=SIDE, width=SIDE,
        tiled=True, blockxsize=1024, blockysize=1024, compress="DEFLATE", SPARSE_OK=True,
        BIGTIFF="YES", crs=UTM, transform=Affine(*pixel),
    ) as dst:  # fmt: skip
        dst.write(pixels, window=((top, SIDE), (left, SIDE)))
    a, _, c, _, e, f = pixel
    corner = (a, 0.0, c + a * left, 0.0, e, f + e * top)
    found = truth(scene, UTM, corner, colored=False)
    x0, y1, x1, y0 = corner[2], corner[5], c + a * SIDE, f + e * SIDE
    area = gpd.GeoDataFrame(geometry=[shapely.box(x0 - 5, y0 - 5, x1 + 5, y1 + 5)], crs=UTM)
    area.to_file(folder / "aoi.geojson")
    sizes = ("--tile-size", "2048", "--overlap", "64", "--supertile-size", "8192")
    args = ("--aoi", "aoi.geojson", *sizes)
    return Made(detect("image.tif", "make_grey", args), OUTPUT, found, corner)


def _jobs() -> list[Case]:
    group = "More than one raster"
    return [
        Case("job-types", group, "uint8 and uint16", _two_types),
        Case("job-pixel-sizes", group, "pixels of 0.2 m and 0.6 m", _two_sizes),
        Case("job-crs", group, "UTM 33, UTM 34 and degrees", _two_systems,
             result="objects in the first one's CRS"),
        Case("job-sheets", group, "two sheets that overlap", _sheets, result="each object once"),
        Case("job-bands", group, "RGB, RGBA and palette", _sheets_of_bands),
    ]  # fmt: skip


KINDS: tuple[Kind, ...] = (
    *_formats(), *_codecs(), *_pixels(), *_bands(), *_validity(), *_geometry(), *_systems(),
    *_sizes(),
)  # fmt: skip
HUGE = Case("size-huge", "Sizes", "400,000 x 400,000 px, sparse, with `--aoi`", huge)
"""Takes half a minute and more: a test of its own, not in the table."""

CASES: tuple[Case, ...] = (*(kind.case() for kind in KINDS), *_jobs())
