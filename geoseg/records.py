"""The records that flow between the rooms: immutable, picklable, checked when made.

Frames: *grid px* is the working grid (the raster, resampled to the working GSD where that
differs); pixel (row 0, col 0) covers [0, 1) x [0, 1). Boxes and points are (x, y), arrays are
(row, col). Records that hold arrays compare by identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from rasterio.windows import Window

from geoseg.errors import TileError
from geoseg.redact import Access

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
GeometryArray = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class RasterInfo:
    """What the header of a raster says; enough to plan a run without pixels."""

    path: str
    """As GDAL opens it."""
    crs_wkt: str
    """Coordinate reference system, WKT2."""
    transform: Affine
    """Maps raster (col, row) pixel edges to CRS (x, y)."""
    height: int
    """Rows."""
    width: int
    """Columns."""
    bands: int
    """Band count of the file."""
    dtype: str
    """Numpy name of the pixel type of band 1."""
    nodata: float | None
    """Declared nodata value, if any."""
    mask_kind: str
    """Where validity comes from: 'none', 'nodata', 'mask' (.msk, internal, or a colour that GDAL
    masks), 'alpha' (a band's or a palette's)."""
    block_shape: tuple[int, int]
    """(rows, cols) of the file's storage blocks."""
    gsd_m: float
    """Ground metres per pixel at the raster's centre, not projected units."""
    fingerprint: str
    """Hash of the header, size and sampled bytes: changes when the file changes."""
    alpha_band: int | None = None
    """1-based band that holds alpha, if any."""
    colors: tuple[str, ...] = ()
    """(bands,) colour interpretation as GDAL names it: 'red', 'gray', 'alpha', 'undefined', ..."""
    access: Access | None = None
    """How a remote file is reached, where its path leaves out a login or a query."""
    names: tuple[str, ...] = ()
    """(bands,) descriptions of the bands, '' where there is none."""
    nodatas: tuple[float | None, ...] = ()
    """(bands,) declared nodata values where the bands have several; empty: ``nodata`` is all."""
    palette: tuple[tuple[int, int, int, int], ...] = ()
    """(n,) red, green, blue, alpha of each index, if the file holds indices: it is read as three
    bands of uint8 then; nodata is an index."""
    nbits: int | None = None
    """Bits of a pixel where they are fewer than 8: values are read as shares of 255 then."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What the network sees at once: a square window and the core it owns, in grid px."""

    index: tuple[int, int]
    """(row, col) in the grid of tiles of the whole raster."""
    core: Window
    """Pixels this tile owns; cores partition the raster."""
    window: Window
    """Pixels the network sees; may reach past a raster smaller than a tile."""


@dataclass(frozen=True, slots=True)
class Supertile:
    """A block of tiles that one task reads with one read, runs and merges."""

    index: tuple[int, int]
    """(row, col) in the grid of supertiles."""
    core: Window
    """Union of the cores of its tiles, grid px."""
    window: Window
    """Union of the windows of its tiles, grid px."""
    tiles: tuple[Tile, ...]
    """In row-major order."""


@dataclass(frozen=True, slots=True, eq=False)
class TileBatch:
    """Pixels of several tiles, ready for a detector."""

    pixels: npt.NDArray[Any]
    """(N, C, H, W) in the raster's dtype; invalid pixels are 0."""
    valid: BoolArray
    """(N, H, W), True = use this pixel."""


WORTH_TELLING = 0.05
"""Boxes that score less are background to any detector: nobody counts them."""
_COLUMNS = {
    "boxes": "an array (n, 4) of floats",
    "scores": "an array (n,) of floats",
    "labels": "an array (n,) of indices into the detector's classes, integers from 0",
}
_ROUNDING = 1e-3
"""How far float16 may bring a probability out of [0, 1]."""


def _form(value: object) -> str:
    """Say what a value is, for a message."""
    shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
    return f"{type(value).__name__}{shape}"


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """What a detector found in one tile; all columns share the length n.

    Raises
    ------
    TileError
        If a column is no array of numbers or lengths differ, a value is not finite, a box is
        turned around, a score leaves [0, 1], a label is negative, or a mask is not a
        two-dimensional grid of probabilities.
    """

    boxes: FloatArray
    """(n, 4) x0, y0, x1, y1 in px of the tile, half-open."""
    scores: FloatArray
    """(n,) confidence in [0, 1]."""
    labels: IntArray
    """(n,) index into the detector's ``classes``; no background."""
    masks: FloatArray | Sequence[FloatArray]
    """(n, M, M), or n arrays (h, w): probabilities at the cell centres of a grid on the box."""
    saturated: bool = False
    """True if the detector hit a cap and may have left objects out."""
    best_below: float = 0.0
    """Best score that the detector left out for its own threshold; 0: none, or not told."""
    n_below: int = 0
    """Boxes that it left out so, from `WORTH_TELLING` on; several may show one object."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise TileError if the record is not what its fields say; arrays may have changed."""
        for name, kinds in (("boxes", "fiu"), ("scores", "fiu"), ("labels", "iu")):
            column = getattr(self, name)
            if not isinstance(column, np.ndarray) or column.ndim != 1 + (name == "boxes"):
                raise TileError(f"Instances.{name} is {_form(column)}; expected {_COLUMNS[name]}")
            if len(column) and column.dtype.kind not in kinds:
                raise TileError(
                    f"Instances.{name} holds {column.dtype} values; expected {_COLUMNS[name]}"
                )
        n = len(self.boxes)
        if self.boxes.shape != (n, 4):
            raise TileError(f"Instances.boxes has shape {self.boxes.shape}; expected (n, 4)")
        for name in ("scores", "labels", "masks"):
            column = getattr(self, name)
            length = len(column) if hasattr(column, "__len__") else None
            if length != n:
                raise TileError(
                    f"Instances.{name} has {length} rows but boxes has {n}; "
                    "all columns must have the same length"
                )
        if not isinstance(self.saturated, bool | np.bool_):
            raise TileError(f"Instances.saturated is {_form(self.saturated)}; expected a bool")
        if n:
            self._check_values()

    def take(self, rows: IntArray) -> Instances:
        """Return some rows."""
        masks = self.masks
        return replace(
            self,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
            masks=masks[rows]
            if isinstance(masks, np.ndarray)
            else [masks[i] for i in rows.tolist()],
        )

    def _check_values(self) -> None:
        """Raise TileError if a value is out of range."""
        if not np.isfinite(self.boxes).all() or not np.isfinite(self.scores).all():
            raise TileError("Instances holds boxes or scores that are not finite; drop them first")
        if (self.boxes[:, 2:] < self.boxes[:, :2]).any():
            raise TileError("Instances.boxes has x1 < x0 or y1 < y0; expected x0, y0, x1, y1")
        if self.scores.min() < 0 or self.scores.max() > 1:
            raise TileError("Instances.scores leaves [0, 1]; give probabilities, not logits")
        if self.labels.min() < 0:
            raise TileError("Instances.labels must be indices into the detector's classes, from 0")
        whole = isinstance(self.masks, np.ndarray) and self.masks.ndim == 3
        for mask in [self.masks] if whole else self.masks:
            if not isinstance(mask, np.ndarray) or mask.ndim != 2 + whole or mask.size == 0:
                raise TileError("each mask must be a two-dimensional grid of probabilities")
            if mask.dtype.kind not in "fiub":
                raise TileError(f"masks hold {mask.dtype} values; expected probabilities")
            # not in the range, or not finite
            if not (mask.min() >= -_ROUNDING and mask.max() <= 1 + _ROUNDING):
                raise TileError(
                    "masks leave [0, 1] or are not finite; give probabilities: not logits, nor 255 "
                    "for yes"
                )

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def empty(cls, mask_size: int = 28) -> Instances:
        """Return a record of nothing found."""
        return cls(
            boxes=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int64),
            masks=np.zeros((0, mask_size, mask_size), np.float32),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Fragments:
    """Detected masks of tiles as polygons; input of the stitcher. All columns share a length n."""

    polygons: GeometryArray
    """(n,) shapely Polygons in grid px, valid, pixel edges."""
    scores: FloatArray
    """(n,) in [0, 1]."""
    labels: IntArray
    """(n,) class index."""
    tiles: IntArray
    """(n,) index into the sequence of tiles given beside this record."""
    cut: BoolArray
    """(n,) touches an edge of its window that is not an edge of the raster."""
    at_edge: BoolArray
    """(n,) touches an edge of the raster."""

    def __len__(self) -> int:
        return len(self.polygons)

    def take(self, rows: IntArray | BoolArray) -> Fragments:
        """Return the given rows, in the given order."""
        return Fragments(*(getattr(self, name)[rows] for name in self.__slots__))

    @classmethod
    def empty(cls) -> Fragments:
        """Return a record of no fragments."""
        return cls(
            polygons=np.zeros(0, object),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int64),
            tiles=np.zeros(0, np.int64),
            cut=np.zeros(0, bool),
            at_edge=np.zeros(0, bool),
        )

    @classmethod
    def from_polygons(
        cls,
        polygons: Sequence[Any] | GeometryArray,
        scores: npt.ArrayLike,
        labels: npt.ArrayLike,
        tiles: npt.ArrayLike,
        tile_list: Sequence[Tile],
        *,
        raster_shape: tuple[int, int] | None = None,
        in_tile_px: bool = False,
        reach_px: float = 2.0,
    ) -> Fragments:
        """Take the outlines that any detector found, tile by tile.

        Polygons are repaired where they are invalid, clipped to their tile's window and to the
        raster; of several pieces the largest stays. ``cut`` and ``at_edge`` come from the tiles:
        a side of the window is an edge of the raster where the core ends with it, and continued
        by another tile elsewhere.

        Parameters
        ----------
        polygons : sequence of shapely Polygons or MultiPolygons
            (n,) in grid px.
        scores : array-like
            (n,) in [0, 1].
        labels : array-like
            (n,) class index, from 0.
        tiles : array-like
            (n,) index into ``tile_list``: the tile each was found in.
        tile_list : sequence of Tile
            The tiles that were looked at; hand the same sequence to `geoseg.stitch`.
        raster_shape : tuple of int, optional
            (height, width) of the grid. Needed only where a window reaches past a raster smaller
            than it: the raster's edges are then taken from here, not from the cores.
        in_tile_px : bool
            Polygons are in px of their tile's window and are moved to grid px.
        reach_px : float
            What ends this close to a side that another tile continues is ``cut``: detectors end
            their outlines a px or two short.

        Returns
        -------
        Fragments
            n rows, in the order given.

        Raises
        ------
        TileError
            If columns differ in length, a score, label or tile is out of range, or a row is no
            polygon, has no area or coordinates that are not finite, or lies outside its tile.

        Examples
        --------
        >>> tile = Tile((0, 0), core=Window(0, 0, 80, 100), window=Window(0, 0, 100, 100))
        >>> found = Fragments.from_polygons(
        ...     [shapely.box(10, 10, 30, 30), shapely.box(70, 40, 99, 60)],
        ...     scores=[0.9, 0.8], labels=[0, 0], tiles=[0, 0], tile_list=[tile],
        ... )
        >>> found.cut.tolist(), found.at_edge.tolist()
        ([False, True], [False, False])
        """
        rows = np.asarray(tiles)
        shapes = np.array([*polygons, None], object)[:-1]
        # ^ the None keeps numpy from looking into geometries for a second axis
        columns = {"scores": np.asarray(scores), "labels": np.asarray(labels), "tiles": rows}
        _check_columns(len(shapes), columns, len(tile_list))
        if len(shapes) == 0:
            return cls.empty()
        windows, cores = (
            np.array([_bounds_of(getattr(t, name)) for t in tile_list], np.float64)[rows]
            for name in ("window", "core")
        )
        sides = windows == cores
        if raster_shape is not None:
            height, width = raster_shape
            raster = np.array([0, 0, width, height], np.float64)
            sides = np.stack([windows[:, :2] <= 0, windows[:, 2:] >= raster[2:]], axis=1)
            sides = sides.reshape(-1, 4)
            windows = np.clip(windows, 0, np.tile(raster[2:], 2))
        offset = np.array([_bounds_of(t.window)[:2] for t in tile_list])[rows]
        shapes = _sound(shapes, offset if in_tile_px else None)
        shapes = _clipped(shapes, windows, in_tile_px=in_tile_px)
        bounds = shapely.bounds(shapes)
        gaps = np.concatenate([bounds[:, :2] - windows[:, :2], windows[:, 2:] - bounds[:, 2:]], 1)
        return cls(
            polygons=shapes,
            scores=columns["scores"].astype(np.float32),
            labels=columns["labels"].astype(np.int64),
            tiles=rows.astype(np.int64),
            cut=((gaps <= reach_px) & ~sides).any(axis=1),
            at_edge=((gaps <= AT_EDGE_PX) & sides).any(axis=1),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Fragments]) -> Fragments:
        """Return all rows of the given records, in their order; tile indices are not shifted."""
        if not parts:
            return cls.empty()
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.__slots__))


AT_EDGE_PX = 1.0
"""What ends this close to the raster's edge touches it."""


def _bounds_of(window: Window) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 of a window."""
    x, y = window.col_off, window.row_off
    return x, y, x + window.width, y + window.height


def _check_columns(n: int, columns: dict[str, npt.NDArray[Any]], n_tiles: int) -> None:
    """Refuse columns of fragments that do not fit together."""
    for name, column in columns.items():
        if column.shape != (n,):
            raise TileError(
                f"{name} has shape {column.shape} but there are {n} polygons; expected ({n},)"
            )
    if n == 0:
        return
    scores, labels, tiles = columns.values()
    if not (np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1):
        raise TileError("scores are not all in [0, 1]; give probabilities, not logits or percent")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise TileError("labels must be indices into the detector's classes: integers from 0")
    if not np.issubdtype(tiles.dtype, np.integer) or not 0 <= tiles.min() <= tiles.max() < n_tiles:
        raise TileError(
            f"tiles must be integers from 0 to {n_tiles - 1}: {n_tiles} tiles were given; pass the "
            "sequence of tiles that the column indexes"
        )


def _refuse(bad: BoolArray, what: str, to_do: str) -> None:
    """Raise for the rows marked, naming the first."""
    if bad.any():
        raise TileError(
            f"polygon {int(np.argmax(bad))} {what} ({bad.sum()} of {len(bad)}); {to_do}"
        )


def _sound(shapes: GeometryArray, offset: npt.NDArray[Any] | None) -> GeometryArray:
    """Return valid polygons in two dimensions, moved by an offset each; refuse what is none."""
    kinds = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
    known = np.asarray(shapely.is_geometry(shapes))
    known[known] = np.isin(shapely.get_type_id(shapes[known]), kinds)
    _refuse(~known, "is no Polygon or MultiPolygon", "drop it or polygonize its mask first")
    shapes = np.asarray(shapely.force_2d(shapes), object)
    points, owner = shapely.get_coordinates(shapes, return_index=True)
    bad = np.asarray(shapely.is_empty(shapes))
    bad[owner[~np.isfinite(points).all(axis=1)]] = True
    _refuse(bad, "is empty or not finite", "drop what shows nothing")
    if offset is not None:
        shapes = np.asarray(shapely.set_coordinates(shapes, points + offset[owner]), object)
    shapes = _largest_parts(shapes)
    _refuse(shapely.area(shapes) <= 0, "has no area", "drop what shows nothing")
    return shapes


def _clipped(shapes: GeometryArray, windows: DoubleArray, *, in_tile_px: bool) -> GeometryArray:
    """Clip polygons to the windows of their tiles; refuse those that lie outside."""
    bounds = shapely.bounds(shapes)
    over = (bounds[:, :2] < windows[:, :2]).any(axis=1) | (bounds[:, 2:] > windows[:, 2:]).any(
        axis=1
    )
    if over.any():
        shapes[over] = shapely.intersection(shapes[over], shapely.box(*windows[over].T))
        shapes = _largest_parts(shapes)
    advice = "tiles must name the tile each was found in" + (
        ""
        if in_tile_px
        else ", and polygons be in grid px: in_tile_px=True if they are in px of it"
    )
    _refuse(shapely.area(shapes) <= 0, "lies outside its tile's window or the raster", advice)
    return shapes


def _largest_parts(shapes: GeometryArray) -> GeometryArray:
    """Repair what is invalid and keep of each geometry its largest polygon, or an empty one."""
    bad = ~shapely.is_valid(shapes)
    if bad.any():
        shapes[bad] = shapely.make_valid(shapes[bad])
    for row in np.flatnonzero(shapely.get_type_id(shapes) != shapely.GeometryType.POLYGON):
        # twice: a collection may hold multipolygons
        parts = shapely.get_parts(shapely.get_parts(shapes[row]))
        areas = shapely.area(parts)
        shapes[row] = parts[np.argmax(areas)] if areas.max(initial=0) > 0 else shapely.Polygon()
    return shapes


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """Things on the ground after stitching; all columns share a length n."""

    polygons: GeometryArray
    """(n,) shapely Polygons in grid px, valid."""
    scores: FloatArray
    """(n,) in [0, 1]."""
    labels: IntArray
    """(n,) class index."""
    n_parts: IntArray
    """(n,) fragments whose union the polygon is; 1 where one tile saw the object whole."""
    complete: BoolArray
    """(n,) False where the object is cut by a window edge that nothing continues."""
    touches_edge: BoolArray
    """(n,) the object reaches the edge of the raster."""

    def __len__(self) -> int:
        return len(self.polygons)

    def take(self, rows: IntArray | BoolArray) -> Objects:
        """Return the given rows, in the given order."""
        return Objects(*(getattr(self, name)[rows] for name in self.__slots__))

    @classmethod
    def empty(cls) -> Objects:
        """Return a record of no objects."""
        return cls(
            polygons=np.zeros(0, object),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int64),
            n_parts=np.zeros(0, np.int64),
            complete=np.zeros(0, bool),
            touches_edge=np.zeros(0, bool),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Objects]) -> Objects:
        """Return all rows of the given records, in their order."""
        if not parts:
            return cls.empty()
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.__slots__))
