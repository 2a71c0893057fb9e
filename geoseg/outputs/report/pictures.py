"""Imagery for a page: a small pyramid of JPEG tiles for the map, and crops around objects."""

from __future__ import annotations

import base64
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import shapes as trace
from rasterio.io import MemoryFile
from rasterio.warp import Resampling, calculate_default_transform, reproject

from geoseg.errors import SourceError, TileError
from geoseg.imagery.georef import reproject_polygons
from geoseg.imagery.read import read_view
from geoseg.imagery.source import describe_raster, open_raster
from geoseg.outputs.report.frame import Frame
from geoseg.records import BoolArray

Pixels = npt.NDArray[np.uint8]

TILE_PX = 512
BUDGET_BYTES = 8_000_000
"""Of all imagery of a map, in base64."""
BYTES_PER_PX = 0.30
"""JPEG at `QUALITY` in base64, measured on a town at 30 cm; a third more for the coarser levels."""
QUALITY = 68
MAX_SIDE_PX = 8192
"""Of one image on the map: bounds the memory at 200 MB of pixels."""
SLOW_PX = 4_000_000_000
"""Pixels that are read in all for images without overviews: a minute or two."""
CROP_PX = 256


@dataclass(frozen=True, slots=True)
class Level:
    """One size of an image, cut into tiles."""

    scale: int
    """Pixels of the finest level that a pixel covers, along a side."""
    rows: int
    columns: int
    tiles: tuple[str | None, ...]
    """JPEG in base64, row by row; None where nothing is valid."""


@dataclass(frozen=True, slots=True)
class Pyramid:
    """An image of the map."""

    name: str
    place: tuple[float, ...]
    """a, b, c, d, e, f: column and row of the finest level to metres of the map."""
    width: int
    height: int
    levels: tuple[Level, ...]
    """The finest first."""
    clip: tuple[tuple[int, ...], ...] | None
    """Rings x, y, x, y, ... around what is valid, px of the finest level; None: all is."""

    def to_json(self) -> dict[str, Any]:
        """Return it for the script."""
        return {
            "name": self.name,
            "place": list(self.place),
            "size": [self.width, self.height],
            "levels": [
                {"scale": v.scale, "rows": v.rows, "columns": v.columns, "tiles": list(v.tiles)}
                for v in self.levels
            ],
            "clip": None if self.clip is None else [list(ring) for ring in self.clip],
        }

    @property
    def n_bytes(self) -> int:
        """Size in the page."""
        return sum(len(tile or "") for level in self.levels for tile in level.tiles)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file that is there and is the one that the run read."""

    name: str
    path: Path
    fingerprint: str


def find_pictures(
    images: Sequence[tuple[str, str]], places: Sequence[Path]
) -> tuple[dict[int, Path], list[str]]:
    """Look for the images of a run by name, and accept only the very files.

    Parameters
    ----------
    images : sequence of (str, str)
        Name and fingerprint of each; an empty fingerprint fits any file.
    places : sequence of Path
        Files and folders, looked through in order.

    Returns
    -------
    found : dict of int to Path
        By index into ``images``.
    notes : list of str
        What is missing or is another file.
    """
    found: dict[int, Path] = {}
    notes = []
    for number, (name, fingerprint) in enumerate(images):
        reason = f"{name} is not where it was looked for; the map shows no imagery of it"
        for place in places:
            path = place / name if place.is_dir() else place
            if path.name != name or not path.is_file():
                continue
            try:
                same = describe_raster(path).fingerprint == fingerprint or not fingerprint
            except SourceError as error:
                reason = f"{name} can no longer be used ({error}); the map shows no imagery of it"
                continue
            if same:
                found[number] = path
                break
            reason = f"{name} has changed since the run; the map shows no imagery of it"
        if number not in found:
            notes.append(reason)
    return found, notes


def make_pyramids(
    paths: Sequence[Path], frame: Frame, budget_bytes: int = BUDGET_BYTES
) -> tuple[list[Pyramid], list[str]]:
    """Read images small and cut them into tiles of a few sizes.

    All images get the same ground resolution, the finest that the budget allows; none is enlarged.

    Returns
    -------
    pyramids : list of Pyramid
        Of those that could be read.
    notes : list of str
        Of those that could not.
    """
    pyramids, notes = [], []
    sizes = []
    for path in paths:
        try:
            info = describe_raster(path)
            sizes.append((path, info.width * info.height, info.gsd_m, _reads_all(path)))
        except (SourceError, TileError) as error:
            notes.append(f"{path.name} cannot be shown: {error}")
    gsd = _common_gsd([(n, g) for _, n, g, _ in sizes], budget_bytes / BYTES_PER_PX)
    slow = 0
    for path, n_px, own, reads_all in sizes:
        slow += n_px if reads_all else 0
        if slow > SLOW_PX and reads_all:
            notes.append(
                f"{path.name} is not shown: it has no overviews, and reading all of it takes long; "
                "make them with gdaladdo, then geoseg report"
            )
            continue
        try:
            pyramids.append(_make_pyramid(path, frame, max(gsd / own, 1.0)))
        except (SourceError, TileError) as error:
            notes.append(f"{path.name} cannot be shown: {error}")
    return _within(pyramids, budget_bytes), notes


def _reads_all(path: Path) -> bool:
    """Tell whether a small picture needs all pixels of a large file."""
    with open_raster(path) as src:
        return not src.overviews(1)


def _common_gsd(images: Sequence[tuple[int, float]], budget_px: float) -> float:
    """Return ground metres of a pixel at which all images together fit a budget."""
    if not images:
        return 1.0
    n_px, own = (np.array(column, np.float64) for column in zip(*images, strict=True))
    low, high = float(own.min()), float(own.max()) * 1e5
    if n_px.sum() <= budget_px:
        return low
    for _ in range(60):
        middle = math.sqrt(low * high)
        if (n_px * np.minimum(1, own / middle) ** 2).sum() > budget_px:
            low = middle
        else:
            high = middle
    return high


def _within(pyramids: list[Pyramid], budget_bytes: int) -> list[Pyramid]:
    """Drop the finest level of the largest pyramids until all fit: some imagery packs badly."""
    pyramids = list(pyramids)
    # a fifth over is no harm
    while sum(p.n_bytes for p in pyramids) > 1.2 * budget_bytes:
        largest = max(range(len(pyramids)), key=lambda i: pyramids[i].n_bytes)
        if len(pyramids[largest].levels) == 1:
            break
        pyramids[largest] = replace(pyramids[largest], levels=pyramids[largest].levels[1:])
    return pyramids


def _make_pyramid(path: Path, frame: Frame, reduction: float) -> Pyramid:
    info = describe_raster(path)
    side = max(info.height, info.width)
    max_px = max(1, min(MAX_SIDE_PX, round(side / reduction)))
    rgb, transform, valid = read_view(path, None, max_px)
    if not frame.crs.equals(pyproj.CRS.from_wkt(info.crs_wkt)):
        rgb, transform, valid = _warped(rgb, transform, valid, info.crs_wkt, frame.crs)
    rgb = _filled(rgb, valid)
    height, width = valid.shape
    place = frame.transform @ transform
    levels: list[Level] = []
    clip = _valid_rings(valid)
    scale = 1
    while True:
        levels.append(_cut(rgb, valid, scale))
        if max(rgb.shape[:2]) <= TILE_PX:
            break
        rgb, valid = _half(rgb, valid)
        scale *= 2
    return Pyramid(path.name, tuple(place)[:6], width, height, tuple(levels), clip)


def _warped(
    rgb: Pixels, transform: Affine, valid: BoolArray, source_wkt: str, target: pyproj.CRS
) -> tuple[Pixels, Affine, BoolArray]:
    """Bring a picture to another CRS."""
    height, width = valid.shape
    source, there = CRS.from_wkt(source_wkt), CRS.from_wkt(target.to_wkt())
    corners = shapely.box(0, 0, width, height)
    left, bottom, right, top = shapely.bounds(
        shapely.affinity.affine_transform(corners, _shapely_matrix(transform))
    )
    new, columns, rows = calculate_default_transform(
        source, there, width, height, left=left, bottom=bottom, right=right, top=top
    )
    columns, rows = int(columns or 1), int(rows or 1)
    both = np.concatenate([np.moveaxis(rgb, -1, 0), valid[None].astype(np.uint8) * 255])
    out = np.zeros((4, rows, columns), np.uint8)
    for band, target_band in zip(both, out, strict=True):
        reproject(
            band, target_band, src_transform=transform, src_crs=source, dst_transform=new,
            dst_crs=there, resampling=Resampling.bilinear,
        )  # fmt: skip
    return np.ascontiguousarray(np.moveaxis(out[:3], 0, -1)), new, out[3] > 127


def _shapely_matrix(transform: Affine) -> list[float]:
    a, b, c, d, e, f = tuple(transform)[:6]
    return [a, b, d, e, c, f]


def _filled(rgb: Pixels, valid: BoolArray) -> Pixels:
    """Give what is invalid the mean colour: sharp black edges cost bytes and shine through."""
    if valid.all() or not valid.any():
        return rgb
    rgb = rgb.copy()
    rgb[~valid] = np.rint(
        rgb[::4, ::4][valid[::4, ::4]].mean(axis=0) if valid[::4, ::4].any() else 128
    )
    return rgb


def _valid_rings(valid: BoolArray) -> tuple[tuple[int, ...], ...] | None:
    """Return rings around what is valid, traced on a coarse grid."""
    if valid.all():
        return None
    step = max(1, math.ceil(max(valid.shape) / 1024))
    coarse = valid[step // 2 :: step, step // 2 :: step].astype(np.uint8)
    polygons = [
        shapely.geometry.shape(shape)
        for shape, _ in trace(coarse, mask=coarse.astype(bool), transform=Affine.scale(step))
    ]
    polygons = [p.simplify(step) for p in polygons if p.area >= 4 * step**2]
    rings = shapely.get_rings(np.array(polygons, object))
    return tuple(
        tuple(np.rint(shapely.get_coordinates(ring)[:-1]).astype(int).ravel().tolist())
        for ring in rings
    )


def _half(rgb: Pixels, valid: BoolArray) -> tuple[Pixels, BoolArray]:
    """Average blocks of 2 x 2; an odd last row or column is doubled."""
    height, width = valid.shape
    pad = (height % 2, width % 2)
    if any(pad):
        rgb = np.pad(rgb, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="edge")
        valid = np.pad(valid, ((0, pad[0]), (0, pad[1])), mode="edge")
    sums = np.zeros((rgb.shape[0] // 2, rgb.shape[1] // 2, 3), np.uint16)
    some = np.zeros(sums.shape[:2], bool)
    for row in (0, 1):
        for column in (0, 1):
            sums += rgb[row::2, column::2]
            some |= valid[row::2, column::2]
    return (sums // 4).astype(np.uint8), some


def _cut(rgb: Pixels, valid: BoolArray, scale: int) -> Level:
    height, width = valid.shape
    tiles: list[str | None] = []
    for row in range(0, height, TILE_PX):
        for column in range(0, width, TILE_PX):
            part = (slice(row, row + TILE_PX), slice(column, column + TILE_PX))
            tiles.append(jpeg(rgb[part]) if valid[part].any() else None)
    return Level(scale, math.ceil(height / TILE_PX), math.ceil(width / TILE_PX), tuple(tiles))


def jpeg(rgb: Pixels, quality: int = QUALITY) -> str:
    """Return a picture (h, w, 3) as JPEG in base64."""
    height, width = rgb.shape[:2]
    with warnings.catch_warnings():
        # a picture has no place
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with MemoryFile() as memory:
            with memory.open(
                driver="JPEG", width=width, height=height, count=3, dtype="uint8", quality=quality
            ) as target:
                target.write(np.moveaxis(rgb, -1, 0))
            return base64.b64encode(memory.read()).decode()


@dataclass(frozen=True, slots=True)
class Crop:
    """A picture of an object."""

    jpeg: str
    """Base64."""
    width: int
    height: int
    rings: tuple[tuple[float, ...], ...]
    """Outline, x, y, x, y, ... in px of the picture."""
    metres: float
    """Width on the ground."""


def crop(path: Path, shape: shapely.Geometry, crs: pyproj.CRS, size_px: int = CROP_PX) -> Crop:
    """Cut an object and its surroundings out of an image.

    Parameters
    ----------
    path : Path
        The image.
    shape : Polygon or MultiPolygon
        The object, in ``crs``.
    size_px : int
        Longest side of the picture.

    Raises
    ------
    SourceError, TileError
        If the image cannot be read there.
    """
    info = describe_raster(path)
    own = pyproj.CRS.from_wkt(info.crs_wkt)
    if not own.equals(crs):
        shape = reproject_polygons([shape], crs.to_wkt(), info.crs_wkt)[0]
    left, bottom, right, top = shapely.bounds(shape)
    res = math.sqrt(abs(info.transform.determinant))
    # as much again around it, and never so near that pixels are all one sees
    side = max(2.2 * max(right - left, top - bottom), 96 * res)
    x, y = (left + right) / 2, (bottom + top) / 2
    window = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    rgb, transform, _ = read_view(path, window, size_px)
    points = shapely.affinity.affine_transform(shape, _shapely_matrix(~transform))
    rings = shapely.get_rings(shapely.get_parts(points))
    height, width = rgb.shape[:2]
    across = abs(transform.a) + abs(transform.b)
    return Crop(
        jpeg=jpeg(rgb, 78),
        width=width,
        height=height,
        rings=tuple(tuple(np.round(shapely.get_coordinates(r), 1).ravel().tolist()) for r in rings),
        metres=across / res * info.gsd_m * width,
    )
