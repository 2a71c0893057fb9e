"""Imagery in other types, ranges, bands and pixel sizes than a model was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from affine import Affine
from cases import Case, Made
from rasterio.enums import ColorInterp

SIDE, PIXEL, LEFT, TOP = 300, 0.1, 500_000.0, 5_500_000.0
CRS = "EPSG:32633"
ROOFS = [(20, 30, 60, 50), (110, 20, 150, 70), (100, 100, 128, 140), (30, 200, 80, 240)]
"""x0, y0, x1, y1 in px; all in the left half: the right half shows ground alone."""
COLOUR = np.array([10, 0, -20.0])[:, None, None]
"""Land is redder than blue."""
GROUND, ROOF = 60.0, 200.0


def scene(ground: float = GROUND, roof: float = ROOF) -> np.ndarray:
    """Return (3, SIDE, SIDE) float64 in 0 to 255: noisy ground, roofs in its left half."""
    noise = np.random.default_rng(5).normal(0, 3, (1, SIDE, SIDE))
    grey = np.full((1, SIDE, SIDE), ground) + noise
    for x0, y0, x1, y1 in ROOFS:
        grey[0, y0:y1, x0:x1] += roof - ground
    return np.clip(np.rint(grey + COLOUR), 0, 255)


def truth(left: float = LEFT) -> gpd.GeoDataFrame:
    """Return the roofs."""
    x0, y0, x1, y1 = np.array(ROOFS, float).T * PIXEL
    return gpd.GeoDataFrame(geometry=shapely.box(left + x0, TOP - y1, left + x1, TOP - y0), crs=CRS)


def write(
    path: Path,
    pixels: np.ndarray,
    dtype: str = "uint8",
    *,
    names: tuple[str, ...] = (),
    tagged: bool = True,
    pixel: float = PIXEL,
    nodata: float | None = None,
) -> None:
    """Write a raster; ``names`` are descriptions of the bands, which are tagged as no colour."""
    with rasterio.open(
        path, "w", driver="GTiff", dtype=dtype, count=len(pixels), crs=CRS, nodata=nodata,
        height=pixels.shape[1], width=pixels.shape[2],
        transform=Affine(pixel, 0, LEFT, 0, -pixel, TOP),
    ) as dst:  # fmt: skip
        if names or not tagged:
            dst.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (len(pixels) - 1)
        elif len(pixels) == 3:
            dst.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
        for band, name in enumerate(names, start=1):
            dst.set_band_description(band, name)
        dst.write(pixels.astype(dtype))


def given(
    *options: str,
    convert: Callable[[np.ndarray], np.ndarray] = lambda v: v,
    dtype: str = "uint8",
    detector: str = "eightbit:make",
    expect: bool = True,
    **written,
) -> Callable[[Path], Made]:
    """Return what writes the scene, converted, and names the command that searches it."""

    def make(folder: Path) -> Made:
        write(folder / "image.tif", convert(scene()), dtype, **written)
        args = ("detect", "image.tif", "-o", "out.gpkg", "--detector", detector, "-j", "1")
        corner = (written.get("pixel", PIXEL), 0.0, LEFT, 0.0, -written.get("pixel", PIXEL), TOP)
        return Made((*args, *options), "out.gpkg", truth() if expect else None, corner)

    return make


def with_aoi(left: float, *options: str) -> Callable[[Path], Made]:
    """Return what writes the scene and an AOI of 14 m by 30 m that begins at ``left``."""

    def make(folder: Path) -> Made:
        made = given(*options, "--aoi", "aoi.geojson", expect=False)(folder)
        area = shapely.box(left, TOP - 30, left + 14, TOP)
        gpd.GeoDataFrame(geometry=[area], crs=CRS).to_crs(4326).to_file(folder / "aoi.geojson")
        return made

    return make


def _fill(v: np.ndarray) -> np.ndarray:
    """Return the scene times 17 with a border of 0 that no tag tells of."""
    v = v * 17
    v[:, -30:] = 0
    return v


def _blank(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda v: np.full_like(v, value)


def _bright(v: np.ndarray) -> np.ndarray:
    """Return the scene with its right two thirds at 255."""
    v[:, :, 100:] = 255
    return v


def _mostly_nodata(v: np.ndarray) -> np.ndarray:
    out = np.zeros_like(v)
    out[:, :20, :20] = v[:, :20, :20]
    return out


def _red(v: np.ndarray) -> np.ndarray:
    """Return red, green, blue in the order blue, green, red."""
    return v[::-1]


_GROUP = "Radiometry"
_SCALED = "scaled by the whole image's 2nd and 98th percentile"

FOUND = [
    Case(
        "radiometry-uint16-x17",
        _GROUP,
        "uint16, 12 bits",
        given(convert=lambda v: v * 17, dtype="uint16"),
        result=_SCALED,
    ),
    Case(
        "radiometry-uint16-x257",
        _GROUP,
        "uint16, 16 bits",
        given(convert=lambda v: v * 257, dtype="uint16"),
        result=_SCALED,
    ),
    Case(
        "radiometry-reflectance",
        _GROUP,
        "uint16, linear reflectance times 10,000 and haze",
        given(convert=lambda v: ((v / 255) ** 2.2 * 0.6 + 0.03) * 1e4, dtype="uint16"),
        result=_SCALED,
    ),
    Case(
        "radiometry-float-0-1",
        _GROUP,
        "float32, 0 to 1",
        given(convert=lambda v: v / 255, dtype="float32"),
        result=_SCALED,
    ),
    Case(
        "radiometry-int16",
        _GROUP,
        "int16, values below 0",
        given(convert=lambda v: v * 40 - 3000, dtype="int16"),
        result=_SCALED,
    ),
    Case(
        "radiometry-8-in-16",
        _GROUP,
        "uint16 that holds 8 bits",
        given(dtype="uint16"),
        result="taken as they are",
    ),
    Case(
        "radiometry-undeclared-fill",
        _GROUP,
        "uint16 with a border of 0 and no nodata value",
        given(convert=_fill, dtype="uint16"),
        result="scaled by what is not the border",
    ),
    Case(
        "radiometry-scale-given",
        _GROUP,
        "uint16 with --scale 0,4335",
        given("--scale", "0,4335", convert=lambda v: v * 17, dtype="uint16"),
        result="scaled as said",
    ),
    Case(
        "radiometry-own-detector",
        _GROUP,
        "uint16 for a detector that says nothing of its range",
        given(dtype="uint16", detector="eightbit:any_range"),
        result="taken as they are",
    ),
    Case(
        "radiometry-bgr-bidx",
        _GROUP,
        "blue, green, red by their names, --bidx 3,2,1",
        given("--bidx", "3,2,1", convert=_red, names=("blue", "green", "red")),
        result="found",
    ),
]
"""Everything painted comes back."""
WARNED = [
    Case(
        "radiometry-scale-none",
        _GROUP,
        "uint16, 12 bits, with --scale none",
        given("--scale", "none", convert=lambda v: v * 17, dtype="uint16", expect=False),
        message=r"values reach \d+, but model eightbit:make knows 0 to 255; leave out --scale none",
    ),
    Case(
        "radiometry-swapped-hint",
        _GROUP,
        "blue, green, red without a tag",
        given(convert=_red, tagged=False),
        message=r"land is hardly ever bluer than red; .* give --bidx 3,2,1",
    ),
    Case(
        "radiometry-coarse",
        _GROUP,
        "pixels 3 times as coarse as the model's",
        given(pixel=0.3, expect=False),
        message=r"3\.0 times as coarse as model .* adds no detail",
    ),
    Case(
        "radiometry-bright",
        _GROUP,
        "two thirds of the pixels at 255",
        given(convert=_bright, expect=False),
        message=r"6\d% of the valid pixels hold the largest value of uint8 in all bands",
    ),
    Case(
        "radiometry-mostly-nodata",
        _GROUP,
        "hardly a pixel that is not nodata",
        given(convert=_mostly_nodata, nodata=0, expect=False),
        message=r"99\.\d% of the pixels are without data",
    ),
    Case(
        "radiometry-dark",
        _GROUP,
        "8 bits that hold 0 to 12",
        given(convert=lambda v: v / 20, expect=False),
        message=r"nearly all values lie from .* give --scale",
    ),
    Case(
        "radiometry-forced",
        _GROUP,
        "pixels 5 times as coarse, with --force",
        given("--force", pixel=0.5, expect=False),
        message=r"5\.0 times as coarse",
    ),
]
"""The run goes on, and says what may be wrong."""
REFUSED = [
    Case(
        "radiometry-too-coarse",
        _GROUP,
        "pixels 5 times as coarse as the model's",
        given(pixel=0.5),
        2,
        r"0\.5 m a pixel is 5\.0 times as coarse .* --force",
    ),
    Case(
        "radiometry-native",
        _GROUP,
        "pixels 5 times as fine, with --gsd native",
        given("--gsd", "native", pixel=0.02),
        2,
        r"would work at 0\.02 m a pixel, 5\.0 times as fine .* leave out --gsd",
    ),
    Case(
        "radiometry-nir",
        _GROUP,
        "near infrared, red, green by their names",
        given(convert=lambda v: v[[0, 0, 1]], names=("NIR", "Red", "Green")),
        2,
        r"band 1 is near infrared where it wants red",
    ),
    Case(
        "radiometry-bgr",
        _GROUP,
        "blue, green, red by their names",
        given(convert=_red, names=("blue", "green", "red")),
        2,
        r"band 1 is blue where it wants red.* give --bidx 3,2,1",
    ),
    Case(
        "radiometry-black",
        _GROUP,
        "all pixels 0",
        given(convert=_blank(0)),
        2,
        r"100% of the valid pixels hold the smallest value of uint8 in all bands",
    ),
    Case(
        "radiometry-one-value",
        _GROUP,
        "all pixels 87",
        given(convert=_blank(87)),
        2,
        r"every band holds one value only \(87 87 87\)",
    ),
    Case(
        "radiometry-saturated",
        _GROUP,
        "all pixels 65,535",
        given(convert=_blank(65535), dtype="uint16"),
        2,
        r"100% of the valid pixels hold the largest value of uint16",
    ),
    Case(
        "radiometry-grey",
        _GROUP,
        "one band for a model of three",
        given(convert=lambda v: v[:1]),
        2,
        r"has 1 band\(s\) but 3 are needed",
    ),
    Case(
        "radiometry-scale-wrong",
        _GROUP,
        "--scale 100",
        given("--scale", "100"),
        2,
        r"--scale is '100'; expected none, or the lower and the higher of two",
    ),
    Case(
        "radiometry-scale-unknown",
        _GROUP,
        "--scale for a detector that says nothing of its range",
        given("--scale", "0,9", detector="eightbit:any_range"),
        2,
        r"--scale needs to know what eightbit:any_range wants",
    ),
]
"""No work is done."""
EMPTY = [
    Case(
        "empty-aoi-elsewhere",
        _GROUP,
        "an AOI beside the image",
        with_aoi(LEFT + 500),
        message=r"no objects, 1 of \d: --aoi aoi\.geojson does not reach the imagery \(it lies around 49\.6",
    ),
    Case(
        "empty-aoi-without",
        _GROUP,
        "an AOI on ground without objects",
        with_aoi(LEFT + 16),
        message=r"no objects, 1 of \d: (the imagery may show none|all \d+ detection)",
    ),
    Case(
        "empty-nodata",
        _GROUP,
        "all pixels nodata",
        given(convert=_blank(0), nodata=0, expect=False),
        message=r"no objects, 1 of \d: all tiles inside the AOI are without data by the imagery's nodata value \(0\)",
    ),
    Case(
        "empty-min-area",
        _GROUP,
        "--min-area larger than all",
        given("--min-area", "500", expect=False),
        message=r"no objects, 1 of 1: --min-area 500 left out all 4 detection\(s\), the largest of which covers 2\d(\.\d)? m2; give a smaller --min-area, such as 10",
    ),
    Case(
        "empty-min-score",
        _GROUP,
        "--min-score 0.95",
        given("--min-score", "0.95", expect=False),
        message=r"no objects, 1 of \d: the best score is 0\.90, the threshold 0\.95 \(the model's own is 0\.5\).* give --min-score 0\.5",
    ),
    Case(
        "empty-low-scores",
        _GROUP,
        "roofs that the detector is not sure of",
        given(convert=lambda v: np.where(v > 120, v - 45, v), expect=False),
        message=r"no objects, 1 of \d: the best score is 0\.40, the threshold 0\.5; .* give --min-score 0\.4",
    ),
    Case(
        "empty-wrong-scale",
        _GROUP,
        "a --scale far from the values",
        given("--scale", "0,65535", convert=lambda v: v * 4, dtype="uint16", expect=False),
        message=r"no objects, 1 of \d: image\.tif: .* leave out --scale",
    ),
    Case(
        "empty-undeclared",
        _GROUP,
        "float32 from 0 to 1 for a detector that says nothing of its range",
        given(
            convert=lambda v: v / 255, dtype="float32", detector="eightbit:any_range", expect=False
        ),
        message=r"no objects, 1 of \d: pixels are float32, and eightbit:any_range does not say",
    ),
    Case(
        "empty-coarse",
        _GROUP,
        "nothing found in pixels 3 times as coarse",
        given(convert=lambda v: v * 0.6, pixel=0.3, expect=False),
        message=r"no objects, 1 of \d: image\.tif: 0\.3 m a pixel is 3\.0 times as coarse",
    ),
    Case(
        "empty-black-forced",
        _GROUP,
        "all pixels 0, with --force",
        given("--force", convert=_blank(0), expect=False),
        message=r"no objects, 1 of \d: image\.tif: 100% of the valid pixels hold the smallest",
    ),
    Case(
        "empty-ground",
        _GROUP,
        "ground without objects",
        given(convert=lambda v: np.minimum(v, 100), expect=False),
        message=r"no objects, 1 of 1: the imagery may show none of what the detector knows \(roof\)",
    ),
]
"""Nothing is found, and the first explanation is the right one."""

CASES = [*FOUND, *WARNED, *REFUSED, *EMPTY]
