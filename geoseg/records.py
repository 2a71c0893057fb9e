"""The records that flow between the rooms: immutable, picklable, checked when made.

Frames: *grid px* is the working grid (the raster, resampled to the working GSD where that
differs); pixel (row 0, col 0) covers [0, 1) x [0, 1). Boxes and points are (x, y), arrays are
(row, col). Records that hold arrays compare by identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.windows import Window

from geoseg.errors import TileError

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
    """Where validity comes from: 'none', 'nodata', 'mask' (.msk or internal) or 'alpha'."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """What a detector found in one tile; all columns share the length n.

    Raises
    ------
    TileError
        If lengths differ, a value is not finite, a score leaves [0, 1], a label is negative or
        a mask is not a two-dimensional grid.
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

    def __post_init__(self) -> None:
        n = len(self.boxes)
        if self.boxes.shape != (n, 4):
            raise TileError(f"Instances.boxes has shape {self.boxes.shape}; expected (n, 4)")
        for name in ("scores", "labels", "masks"):
            if len(getattr(self, name)) != n:
                raise TileError(
                    f"Instances.{name} has {len(getattr(self, name))} rows but boxes has {n}; "
                    "all columns must have the same length"
                )
        if n == 0:
            return
        if not np.isfinite(self.boxes).all() or not np.isfinite(self.scores).all():
            raise TileError("Instances holds boxes or scores that are not finite; drop them first")
        if self.scores.min() < 0 or self.scores.max() > 1:
            raise TileError("Instances.scores leaves [0, 1]; give probabilities, not logits")
        if not np.issubdtype(self.labels.dtype, np.integer) or self.labels.min() < 0:
            raise TileError("Instances.labels must be indices into the detector's classes, from 0")
        if any(np.ndim(m) != 2 or np.size(m) == 0 for m in self.masks):
            raise TileError("each mask must be a two-dimensional grid of probabilities")

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
    def concatenate(cls, parts: Sequence[Fragments]) -> Fragments:
        """Return all rows of the given records, in their order; tile indices are not shifted."""
        if not parts:
            return cls.empty()
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.__slots__))


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
