"""Lay tiles and supertiles over a raster; pure arithmetic on pixel counts.

Along one axis, tile ``[0, t)`` is the first, each next one starts a stride later, and the last one
moves inwards to end with the raster::

    window 0  |------------------|
    window 1                |------------------|
    window 2                        |------------------|     <- moved inwards
    core      |---- 0 ----------|------- 1 ----|-- 2 ---|     <- meet mid-overlap
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rasterio.windows import Window

from geoseg.errors import GridError
from geoseg.records import Supertile, Tile

SMALLEST_QUARTER_PX = 96
"""A tile is not cut into quarters smaller than this."""


FAR_PX = 1e9
"""Beyond any raster; GEOS takes no infinite boxes."""


class AxisTile(NamedTuple):
    """One tile along one axis; half-open pixel bounds in the grid frame."""

    core_start: int
    core_stop: int
    window_start: int
    window_stop: int


@lru_cache(maxsize=256)
def tile_axis(length: int, tile: int, overlap: int) -> tuple[AxisTile, ...]:
    """Cut one axis into windows of one size whose cores partition it.

    Parameters
    ----------
    length : int
        Pixels along the axis; at least 1.
    tile : int
        Pixels of every window; at least 1.
    overlap : int
        Pixels that neighbouring windows share (the last pair may share more); in [0, tile).

    Returns
    -------
    tuple of AxisTile
        In raster order. Cores partition [0, length) and meet in the middle of the overlap. A raster
        shorter than a tile has one window, [0, tile), which reaches past it.

    Raises
    ------
    GridError
        If a size is out of range; the message names the setting to change.

    Examples
    --------
    >>> [tuple(t) for t in tile_axis(10, 5, 2)]
    [(0, 4, 0, 5), (4, 6, 3, 8), (6, 10, 5, 10)]
    >>> [tuple(t) for t in tile_axis(3, 5, 2)]
    [(0, 3, 0, 5)]
    """
    _check_sizes(length, tile, overlap)
    if length <= tile:
        return (AxisTile(0, length, 0, tile),)
    stride, last = tile - overlap, length - tile
    starts = [*range(0, last, stride), last]
    # neighbours share [next start, this start + tile); the cores meet in its middle
    meets = [(a + tile + b) // 2 for a, b in pairwise(starts)]
    bounds = [0, *meets, length]
    return tuple(
        AxisTile(bounds[i], bounds[i + 1], start, start + tile) for i, start in enumerate(starts)
    )


def _check_sizes(length: int, tile: int, overlap: int) -> None:
    """Refuse sizes that make no axis."""
    if length < 1:
        raise GridError(f"the raster is {length} px long; expected at least 1 px a side")
    if tile < 1:
        raise GridError(f"--tile-size is {tile}; expected at least 1 px")
    if not 0 <= overlap < tile:
        raise GridError(
            f"--overlap is {overlap} but --tile-size is {tile}; lower --overlap or raise "
            "--tile-size until 0 <= overlap < tile size"
        )


@dataclass(frozen=True, slots=True)
class TileGrid:
    """All tiles and supertiles of one raster, made when asked for.

    A raster of 400,000 px a side has a million tiles; the grid holds none of them, only the two
    axes (a thousand entries each).

    Raises
    ------
    GridError
        If a size is out of range; the message names the setting to change.
    """

    height: int
    """Rows of the working grid, px; at least 1."""
    width: int
    """Columns of the working grid, px; at least 1."""
    tile_size: int
    """Side of every tile's window, px; at least 1."""
    overlap: int
    """Pixels that neighbouring windows share; in [0, tile_size)."""
    supertile_size: int
    """Side of a supertile's window, px, at most (but at least one tile)."""

    def __post_init__(self) -> None:
        _check_sizes(min(self.height, self.width), self.tile_size, self.overlap)
        if self.supertile_size < self.tile_size:
            raise GridError(
                f"--supertile-size is {self.supertile_size} but --tile-size is {self.tile_size}; "
                "raise --supertile-size to the tile size or more"
            )

    @property
    def _rows(self) -> tuple[AxisTile, ...]:
        return tile_axis(self.height, self.tile_size, self.overlap)

    @property
    def _cols(self) -> tuple[AxisTile, ...]:
        return tile_axis(self.width, self.tile_size, self.overlap)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return len(self._rows), len(self._cols)

    @property
    def n_tiles(self) -> int:
        """Number of tiles."""
        return len(self._rows) * len(self._cols)

    @property
    def supertile_shape(self) -> tuple[int, int]:
        """Rows and columns of supertiles."""
        rows, cols = self.shape
        return -(-rows // self._per_side), -(-cols // self._per_side)

    @property
    def n_supertiles(self) -> int:
        """Number of supertiles."""
        rows, cols = self.supertile_shape
        return rows * cols

    @property
    def _per_side(self) -> int:
        """Tiles along a full supertile."""
        stride = self.tile_size - self.overlap
        return (self.supertile_size - self.tile_size) // stride + 1

    def tile(self, row: int, col: int) -> Tile:
        """Return the tile at (row, col) of the grid of tiles.

        Raises
        ------
        GridError
            If there is no such tile.
        """
        rows, cols = self.shape
        if not (0 <= row < rows and 0 <= col < cols):
            raise GridError(
                f"tile ({row}, {col}) does not exist; the grid has {rows} x {cols} tiles"
            )
        r, c = self._rows[row], self._cols[col]
        return Tile(
            index=(row, col),
            core=_window(c.core_start, c.core_stop, r.core_start, r.core_stop),
            window=_window(c.window_start, c.window_stop, r.window_start, r.window_stop),
        )

    def _group(self, index: int, count: int, groups: int) -> range:
        """Return the tiles along one axis of one supertile: groups differ by at most one tile."""
        return range(index * count // groups, (index + 1) * count // groups)

    def supertile(self, row: int, col: int) -> Supertile:
        """Return the supertile at (row, col) of the grid of supertiles.

        Raises
        ------
        GridError
            If there is no such supertile.
        """
        rows, cols = self.supertile_shape
        if not (0 <= row < rows and 0 <= col < cols):
            raise GridError(
                f"supertile ({row}, {col}) does not exist; the grid has {rows} x {cols} supertiles"
            )
        tile_rows = self._group(row, len(self._rows), rows)
        tile_cols = self._group(col, len(self._cols), cols)
        first_row, last_row = self._rows[tile_rows[0]], self._rows[tile_rows[-1]]
        first_col, last_col = self._cols[tile_cols[0]], self._cols[tile_cols[-1]]
        return Supertile(
            index=(row, col),
            core=_window(
                first_col.core_start, last_col.core_stop, first_row.core_start, last_row.core_stop
            ),
            window=_window(
                first_col.window_start,
                last_col.window_stop,
                first_row.window_start,
                last_row.window_stop,
            ),
            tiles=tuple(self.tile(r, c) for r in tile_rows for c in tile_cols),
        )

    def supertiles(self) -> Iterator[Supertile]:
        """Yield all supertiles in row-major order, each made when its turn comes."""
        rows, cols = self.supertile_shape
        for row in range(rows):
            for col in range(cols):
                yield self.supertile(row, col)

    def foreign_ground(self, rows: range, cols: range) -> npt.NDArray[np.float64]:
        """Return the ground in the window of a block of supertiles that tiles outside it see too.

        What lies clear of it no other tile can have seen: what the seams need to know.

        Parameters
        ----------
        rows, cols : range
            Supertiles of the block; not empty.

        Returns
        -------
        ndarray (k, 4)
            x0, y0, x1, y1 in grid px of up to four strips, endless along and away from the block.
        """
        n_rows, n_cols = self.supertile_shape
        strips = []
        for axis, wanted, groups in ((self._rows, rows, n_rows), (self._cols, cols, n_cols)):
            before = self._group(wanted[0], len(axis), groups)[0] - 1
            after = self._group(wanted[-1], len(axis), groups)[-1] + 1
            spans: list[tuple[float, float]] = []
            if before >= 0:
                # windows move on from tile to tile: the last one before reaches furthest
                spans.append((-FAR_PX, axis[before].window_stop))
            if after < len(axis):
                spans.append((axis[after].window_start, FAR_PX))
            strips.append(spans)
        above_below = [(-FAR_PX, y0, FAR_PX, y1) for y0, y1 in strips[0]]
        beside = [(x0, -FAR_PX, x1, FAR_PX) for x0, x1 in strips[1]]
        return np.array([*above_below, *beside], np.float64).reshape(-1, 4)

    def window_spans(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return where the windows of the rows and of the columns of tiles start and stop.

        Returns
        -------
        rows, cols : ndarray (k, 2)
            Half-open, grid px. A tile's window is a row's span times a column's.
        """
        rows, cols = (
            np.array([(t.window_start, t.window_stop) for t in axis], np.int64)
            for axis in (self._rows, self._cols)
        )
        return rows, cols


def quarters(tile: Tile, overlap: int) -> tuple[Tile, ...]:
    """Cut a tile into four that overlap each other as tiles do, for a second look.

    Parameters
    ----------
    tile : Tile
        With a square window.
    overlap : int
        Pixels that neighbouring quarters share; in [0, side of the window).

    Returns
    -------
    tuple of Tile
        Four of one size, row-major, with the tile's index; their cores partition its core. Empty
        where they would be smaller than `SMALLEST_QUARTER_PX` or hardly smaller than the tile.

    Examples
    --------
    >>> tile = TileGrid(1000, 1000, 512, 128, 512).tile(0, 1)
    >>> [(int(q.window.col_off), int(q.window.width)) for q in quarters(tile, 128)[:2]]
    [(384, 320), (576, 320)]
    """
    side = int(tile.window.width)
    size = -(-(side + overlap) // 2)
    if size < SMALLEST_QUARTER_PX or size > 0.8 * side:
        return ()
    rows = _halves(tile.window.row_off, side, size, tile.core.row_off, tile.core.height)
    cols = _halves(tile.window.col_off, side, size, tile.core.col_off, tile.core.width)
    return tuple(
        Tile(
            index=tile.index,
            core=_window(c.core_start, c.core_stop, r.core_start, r.core_stop),
            window=_window(c.window_start, c.window_stop, r.window_start, r.window_stop),
        )
        for r in rows
        for c in cols
    )


def _halves(start: int, side: int, size: int, core: int, core_length: int) -> tuple[AxisTile, ...]:
    """Cut one axis of a tile in two; the cores meet in the middle of the window."""
    end = core + core_length
    middle = min(max(start + side // 2, core), end)
    return (
        AxisTile(core, middle, start, start + size),
        AxisTile(middle, end, start + side - size, start + side),
    )


def _window(x0: int, x1: int, y0: int, y1: int) -> Window:
    """Return the window of half-open bounds."""
    return Window(x0, y0, x1 - x0, y1 - y0)
