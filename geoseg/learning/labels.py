"""Training sites and the chips that are cut from them on the fly.

A chip is a square of the working grid under a random similarity: the image is resampled once and
the label polygons go through the same map, so that boxes and masks stay exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
import torch
import torch.nn.functional as F
from pyproj.exceptions import ProjError
from rasterio.features import rasterize
from rasterio.windows import Window
from shapely.errors import GEOSException
from torch import Tensor

from geoseg.errors import LabelError
from geoseg.imagery.georef import polygons_to_pixels, working_grid
from geoseg.imagery.read import read_window
from geoseg.imagery.source import describe_raster, select_bands
from geoseg.imagery.vector_files import why_not_opened
from geoseg.records import BoolArray, GeometryArray, IntArray

MIN_SIDE_PX = 3.0
"""Fragments of objects thinner than this at a chip's edge are not taught."""
BORDER_PX = 128
"""Pixels read around an AOI, so that turned chips show context as far as there is any."""


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One completely labelled area, resampled to the working GSD."""

    name: str
    """Shown in logs."""
    pixels: npt.NDArray[np.uint8]
    """(3, H, W)."""
    valid: BoolArray
    """(H, W), inside the AOI and imaged."""
    polygons: GeometryArray
    """(n,) label polygons in site px, clipped to the AOI."""
    labels: IntArray
    """(n,) class index, from 0."""
    aoi: shapely.Geometry
    """Where labelling is complete, site px."""
    weight: float
    """Share of chips cut here, relative to the other sites."""


def _read_layer(path: Path, where: str | None, layer: str | None = None) -> Any:
    import geopandas

    if not path.is_file():
        raise LabelError(f"{path} does not exist; name a vector file with label polygons")
    if reason := why_not_opened(path):
        raise LabelError(f"{path} {reason}")
    try:
        frame = geopandas.read_file(path.absolute(), where=where, layer=layer)
    except Exception as error:
        # a broken file makes GDAL, GEOS and pyogrio raise whatever comes to pass in them
        asked = f" where {where}" if where else ""
        raise LabelError(
            f"{path} cannot be read as a vector layer{asked} ({type(error).__name__}: {error}); "
            "give a GeoPackage, GeoJSON, Shapefile or FlatGeobuf file"
        ) from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise LabelError(f"{path} has no geometry; name a vector file with label polygons")
    if frame.crs is None:
        raise LabelError(f"{path} has no CRS; assign one before training on it")
    if frame.empty:
        raise LabelError(f"{path} has no features{f' where {where}' if where else ''}")
    return frame


_TEXTS = ("image", "labels", "aoi", "name", "where", "ignore_where", "aoi_where", "class_field")


def check_site(table: object, where: str) -> None:
    """Refuse the table of a site that is none, before anything is read.

    Raises
    ------
    LabelError
        If a key is missing, unknown or of the wrong kind.
    """
    if not isinstance(table, Mapping):
        raise LabelError(f"{where} is {table!r}; expected a table with image, labels and aoi")
    for key in ("image", "labels", "aoi"):
        if key not in table:
            raise LabelError(f"{where} lacks {key}; a site has image, labels and aoi")
    if unknown := sorted(set(table) - {*_TEXTS, "aoi_part", "weight"}):
        raise LabelError(f"{where} has the unknown key '{unknown[0]}'")
    for key in _TEXTS:
        if not isinstance(table.get(key, ""), str):
            raise LabelError(f"{where}: {key} is {table[key]!r}; expected text")
    part, weight = table.get("aoi_part", (0, 0, 1, 1)), table.get("weight", 1)
    if not isinstance(part, list | tuple) or len(part) != 4 or not all(map(_is_share, part)):
        raise LabelError(
            f"{where}: aoi_part is {part!r}; expected x0, y0, x1, y1 as shares of the AOI, 0 to 1"
        )
    if type(weight) not in (int, float) or not 0 < weight < np.inf:
        raise LabelError(f"{where}: weight is {weight!r}; expected a number above 0")


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= float(value) <= 1  # type: ignore[arg-type]


def _part_of(aoi: shapely.Geometry, part: Sequence[float] | None) -> shapely.Geometry:
    """Cut an AOI in px (y downwards) to fractions x0, y0, x1, y1 of its bounds (y upwards)."""
    if part is None:
        return aoi
    left, top, right, bottom = shapely.bounds(aoi)
    w, h = right - left, bottom - top
    x0, y0, x1, y1 = part
    return shapely.intersection(
        aoi, shapely.box(left + x0 * w, bottom - y1 * h, left + x1 * w, bottom - y0 * h)
    )


def load_site(folder: Path, table: Mapping[str, Any], gsd_m: float, classes: Sequence[str]) -> Site:
    """Read one site of a training file into memory.

    Parameters
    ----------
    folder : Path
        Paths in the table are relative to it.
    table : mapping
        ``image``, ``labels`` and ``aoi`` (files), optional ``name``, ``where`` and ``aoi_where``
        (OGR SQL filters), ``ignore_where`` (features of ``labels`` that are neither objects nor
        background, as doubtful ones; their ground is blanked), ``aoi_part`` (x0, y0, x1, y1 as
        fractions of the AOI's bounds, y upwards), ``class_field``, ``weight`` (default 1).
    gsd_m : float
        Working ground sampling distance, metres.
    classes : sequence of str
        Class names in label order; features of other classes are errors.

    Raises
    ------
    LabelError
        If a file is missing or empty, has no CRS, or no label falls into the AOI.
    """
    labels = _read_layer(folder / table["labels"], table.get("where"))
    aoi_frame = _read_layer(folder / table["aoi"], table.get("aoi_where"))
    info = describe_raster(str(folder / table["image"]))
    grid = working_grid(info, gsd_m)
    name = str(table.get("name", Path(info.path).stem))

    try:
        areas = polygons_to_pixels(
            aoi_frame.geometry.to_numpy(), aoi_frame.crs.to_wkt(), info.crs_wkt, grid.transform
        )
        polygons = polygons_to_pixels(
            labels.geometry.to_numpy(), labels.crs.to_wkt(), info.crs_wkt, grid.transform
        )
        aoi = shapely.intersection(
            _part_of(shapely.union_all(shapely.make_valid(areas)), table.get("aoi_part")),
            shapely.box(0, 0, grid.width, grid.height),
        )
        if ignore := table.get("ignore_where"):
            doubtful = _read_layer(folder / table["labels"], ignore)
            ground = polygons_to_pixels(
                doubtful.geometry.to_numpy(), doubtful.crs.to_wkt(), info.crs_wkt, grid.transform
            )
            aoi = shapely.difference(aoi, shapely.union_all(shapely.make_valid(ground)))
        polygons = shapely.intersection(shapely.make_valid(polygons), aoi)
    except GEOSException as error:
        raise LabelError(
            f"site {name}: {table['labels']} or {table['aoi']} holds outlines that cannot be "
            f"mended ({error}); find them with QGIS's Check Validity"
        ) from error
    except ProjError as error:
        raise LabelError(
            f"site {name}: there is no way from the CRS of {table['labels']} or {table['aoi']} to "
            f"that of the image ({error}); assign the right one"
        ) from error
    keep = shapely.area(polygons) > 0
    if not keep.any():
        raise LabelError(
            f"site {name}: none of {len(polygons)} labels lies in its AOI; check the CRS of "
            f"{table['labels']} and {table['aoi']}"
        )
    field = table.get("class_field")
    index = _class_index(labels[field][keep] if field else None, int(keep.sum()), classes, name)

    x0, y0, x1, y1 = shapely.bounds(aoi)
    left, top = max(0, int(x0) - BORDER_PX), max(0, int(y0) - BORDER_PX)
    width = min(grid.width, int(x1) + BORDER_PX) - left
    height = min(grid.height, int(y1) + BORDER_PX) - top
    bands = select_bands(info, None, 3)
    pixels, valid = read_window(info, grid, Window(left, top, width, height), bands)
    if pixels.dtype != np.uint8:
        raise LabelError(f"{info.path} is {pixels.dtype}; training reads uint8 imagery")
    aoi = shapely.transform(aoi, lambda xy: xy - [left, top])
    inside = rasterize([aoi], out_shape=(height, width), dtype=np.uint8).astype(bool)
    return Site(
        name=name,
        pixels=pixels,
        valid=valid & inside,
        polygons=shapely.transform(polygons[keep], lambda xy: xy - [left, top]),
        labels=index,
        aoi=aoi,
        weight=float(table.get("weight", 1.0)),
    )


def _class_index(column: Any, n: int, classes: Sequence[str], site: str) -> IntArray:
    if column is None:
        return np.zeros(n, np.int64)
    lookup = {name: i for i, name in enumerate(classes)}
    unknown = sorted({str(v) for v in column} - set(lookup))
    if unknown:
        raise LabelError(
            f"site {site}: labels have classes {unknown} that are not in classes = {list(classes)}"
        )
    return np.array([lookup[str(v)] for v in column], np.int64)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How chips vary; each range is (low, high)."""

    scale: tuple[float, float] = (0.75, 1.35)
    """Zoom of the chip relative to the working GSD."""
    any_turn: float = 0.5
    """Share of chips turned by any angle; the others by quarter turns."""
    colour: float = 1.0
    """Strength of brightness, contrast, colour, blur and noise; 0 switches them off."""


class ChipSampler:
    """Endless chips, each a pure function of (seed, number).

    Parameters
    ----------
    sites : sequence of Site
        Drawn by their weights, so that a large site does not drown the small ones.
    chip_px : int
        Side of a chip.
    seed : int
        Same seed, same chips, in any process and after any interruption.
    """

    def __init__(
        self, sites: Sequence[Site], chip_px: int, seed: int, augmentation: Augmentation
    ) -> None:
        self.sites = tuple(sites)
        self.chip_px = chip_px
        self.seed = seed
        self.augmentation = augmentation
        weights = np.array([s.weight for s in self.sites])
        self.shares = weights / weights.sum()
        self._trees = [shapely.STRtree(s.polygons) for s in self.sites]

    def chip(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return chip ``number``: pixels (3, S, S) in [0, 1] and torchvision's target."""
        rng = np.random.default_rng((self.seed, number))
        which = int(rng.choice(len(self.sites), p=self.shares))
        site = self.sites[which]
        matrix = self._similarity(site, rng)
        pixels, valid = _resample(site, matrix, self.chip_px)
        pixels = _vary_colour(pixels, rng, self.augmentation.colour) * valid
        return pixels, self._target(site, self._trees[which], matrix)

    def _similarity(self, site: Site, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Draw the (2, 3) map from chip px to site px."""
        half = self.chip_px / 2
        if rng.random() < 0.5:
            centre = (
                shapely.get_coordinates(
                    shapely.centroid(site.polygons[rng.integers(len(site.polygons))])
                )[0]
                + rng.uniform(-0.6, 0.6, 2) * half
            )
        else:
            x0, y0, x1, y1 = shapely.bounds(site.aoi)
            centre = rng.uniform((x0, y0), (x1, y1))
        low, high = np.log(self.augmentation.scale)
        zoom = float(np.exp(rng.uniform(low, high)))
        turn = float(rng.integers(4)) * np.pi / 2
        if rng.random() < self.augmentation.any_turn:
            turn = float(rng.uniform(0, 2 * np.pi))
        cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
        mirror = -1.0 if rng.random() < 0.5 else 1.0
        linear = np.array([[cos * mirror, -sin], [sin * mirror, cos]])
        return np.column_stack([linear, centre - linear @ [half, half]])

    def _target(
        self, site: Site, tree: shapely.STRtree, matrix: npt.NDArray[np.float64]
    ) -> dict[str, Tensor]:
        """Return boxes, labels and masks of the objects in the chip, cut at its edge."""
        size = self.chip_px
        frame = shapely.box(0, 0, size, size)
        seen = shapely.transform(frame, lambda xy: xy @ matrix[:, :2].T + matrix[:, 2])
        rows = np.sort(tree.query(seen, predicate="intersects"))
        inverse = np.linalg.inv(matrix[:, :2])
        polygons = shapely.intersection(
            shapely.transform(site.polygons[rows], lambda xy: (xy - matrix[:, 2]) @ inverse.T),
            frame,
        )
        boxes = shapely.bounds(polygons)
        with np.errstate(invalid="ignore"):
            keep = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE_PX).all(axis=1)
        polygons, boxes, rows = polygons[keep], boxes[keep], rows[keep]
        masks = np.stack(
            [rasterize([p], out_shape=(size, size), dtype=np.uint8) for p in polygons]
            or [np.zeros((size, size), np.uint8)]
        )[: len(polygons)]
        return {
            "boxes": torch.from_numpy(boxes.astype(np.float32).reshape(-1, 4)),
            "labels": torch.from_numpy(site.labels[rows] + 1),
            "masks": torch.from_numpy(masks),
        }


def _resample(site: Site, matrix: npt.NDArray[np.float64], size: int) -> tuple[Tensor, Tensor]:
    """Return pixels (3, S, S) in [0, 1] and validity (1, S, S), bilinear."""
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]]) @ matrix[:, :2].T
    corners = corners + matrix[:, 2]
    height, width = site.valid.shape
    left, top = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, (width - 1, height - 1))
    right, bottom = np.clip(
        np.ceil(corners.max(0)).astype(int) + 1, (left + 1, top + 1), (width, height)
    )
    crop = torch.from_numpy(site.pixels[:, top:bottom, left:right].astype(np.float32) / 255)
    inside = torch.from_numpy(site.valid[top:bottom, left:right].astype(np.float32))
    centres = np.arange(size) + 0.5
    xy = np.stack(np.meshgrid(centres, centres), -1) @ matrix[:, :2].T + matrix[:, 2]
    xy = 2 * (xy - (left, top)) / (right - left, bottom - top) - 1
    grid = torch.from_numpy(xy.astype(np.float32))[None]
    both = torch.cat([crop, inside[None]])[None]
    out = F.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    valid = out[3:] > 0.5
    return out[:3], valid


def _vary_colour(pixels: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    """Change light, colour, sharpness and noise as cameras and seasons do."""
    if strength == 0:
        return pixels
    gain = np.exp(rng.normal(0, 0.16 * strength, 1) + rng.normal(0, 0.05 * strength, 3))
    mean = float(pixels.mean())
    out = (pixels - mean) * float(np.exp(rng.normal(0, 0.18 * strength))) + mean
    out = out * torch.from_numpy(gain.astype(np.float32))[:, None, None]
    grey = out.mean(0, keepdim=True)
    out = grey + (out - grey) * float(np.exp(rng.normal(0, 0.25 * strength)))
    out = out.clamp(0, 1) ** float(np.exp(rng.normal(0, 0.2 * strength)))
    if rng.random() < 0.25 * strength:
        out = F.avg_pool2d(out[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    if rng.random() < 0.3 * strength:
        noise = rng.normal(0, rng.uniform(0.005, 0.03), out.shape).astype(np.float32)
        out = out + torch.from_numpy(noise)
    return out.clamp(0, 1)
