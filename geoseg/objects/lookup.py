"""Which regions an object lies in: for most objects from a raster of cells, without their outline.

Over the regions lies a raster of square cells. A cell that no region's outline enters is in the
same regions everywhere, and so is an object whose bounds touch only such cells: to know them takes
a few array accesses. Objects at outlines are decoded and looked at with exact predicates. Both
ways say the same, so the raster never shows in a number.

The idea is that of a prepared raster approximation of polygons (Zimbrao and de Souza, A raster
approximation for processing of spatial joins, VLDB 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from geoseg.objects.regions import pieces_of, polygonal
from geoseg.records import BoolArray, DoubleArray, GeometryArray, IntArray

Pairs = tuple[IntArray, IntArray, DoubleArray]
"""Rows of objects, rows of regions, and the share of the object that is meant."""
CELLS_PER_REGION = 1500
"""More make fewer objects lie at outlines, and the raster larger."""
MOST_CELLS = 2**24
RASTER_FROM = 20_000
"""Objects from which on the raster pays, for each thousand regions: it costs half a second."""
_MOST_SHARED = 8
# ^ a cell in more regions than this is looked at exactly


class Batch:
    """Some objects, of which only those are decoded that need to be.

    Parameters
    ----------
    bounds : ndarray
        (n, 4) left, bottom, right, top; NaN where the outline must be looked at.
    polygons : ndarray, optional
        (n,) valid polygons, where they are known already.
    wkb : ndarray, optional
        (n,) their WKB otherwise.
    """

    def __init__(
        self,
        bounds: DoubleArray,
        polygons: GeometryArray | None = None,
        wkb: npt.NDArray[np.object_] | None = None,
    ) -> None:
        self.bounds = bounds
        self._polygons = np.full(len(bounds), None, object) if polygons is None else polygons
        self._wkb = wkb
        self.known: dict[int, IntArray] = {}
        """What a raster said of these objects, by the raster's id."""

    def __len__(self) -> int:
        return len(self.bounds)

    def polygons(self, rows: IntArray) -> GeometryArray:
        """Return the valid polygons of some rows; empty ones where nothing has area."""
        if self._wkb is not None:
            new = rows[shapely.is_missing(self._polygons[rows])]
            if len(new):
                self._polygons[new] = polygonal(shapely.from_wkb(self._wkb[new]))[0]
        return np.asarray(self._polygons[rows], dtype=object)


class RegionLookup:
    """Find the regions of objects.

    Parameters
    ----------
    areas : ndarray
        (m,) valid Polygons and MultiPolygons, in the CRS of the objects.
    around : sequence of float, optional
        (left, bottom, right, top): bounds that hold all objects.
    """

    def __init__(self, areas: GeometryArray, around: Sequence[float] | None = None) -> None:
        self.areas = areas
        shapely.prepare(self.areas)
        self._around = around
        self._tree = shapely.STRtree(areas)
        self._pieces: tuple[shapely.STRtree, GeometryArray, IntArray] | None = None
        self._raster: _Raster | None = None
        self._seen = 0
        filled = areas[~shapely.is_empty(areas)]
        self._extent = shapely.total_bounds(filled) if len(filled) else np.full(4, np.nan)

    def lowest(self, batch: Batch) -> Pairs:
        """Give each object to the lowest region that holds its representative point."""
        sets, unsure = self._sort_out(batch)
        owner = np.full(len(batch), len(self.areas), dtype=np.int64)
        if sets is not None:
            sure = sets >= 0
            owner[sure] = self._known.sets[sets[sure], 0]
        points = shapely.point_on_surface(batch.polygons(unsure))
        # prepared regions take points by the array
        row, near = self._tree.query(points)
        inside = shapely.intersects_xy(
            self.areas[near], shapely.get_x(points[row]), shapely.get_y(points[row])
        )
        np.minimum.at(owner, unsure[row[inside]], near[inside])
        rows = np.flatnonzero(owner < len(self.areas))
        return rows, owner[rows], np.ones(len(rows))

    def meets(self, batch: Batch) -> Pairs:
        """Give each object to every region that it meets."""
        sets, unsure = self._sort_out(batch)
        things = batch.polygons(unsure)
        row, owner = self._tree.query(things)
        hit = shapely.intersects(self.areas[owner], things[row])
        return self._with_known(sets, unsure[row[hit]], owner[hit], np.ones(hit.sum()))

    def shares(self, batch: Batch) -> Pairs:
        """Give each region the share of the object's area that lies in it."""
        sets, unsure = self._sort_out(batch)
        things = batch.polygons(unsure)
        row, owner = self._tree.query(things)
        whole = shapely.covers(self.areas[owner], things[row])
        met = whole.copy()
        met[~whole] = shapely.intersects(self.areas[owner[~whole]], things[row[~whole]])
        cut_row, cut_owner, part = self._cut(things, row[met & ~whole], owner[met & ~whole])
        rows = np.concatenate([row[whole], cut_row])
        owners = np.concatenate([owner[whole], cut_owner])
        weights = np.concatenate([np.ones(np.count_nonzero(whole)), part])
        return self._with_known(sets, unsure[rows], owners, weights)

    def _cut(self, things: GeometryArray, rows: IntArray, owners: IntArray) -> Pairs:
        """Return which share of some objects lies in the regions whose outline crosses them."""
        n = len(self.areas)
        wanted = np.unique(rows * n + owners)
        if not len(wanted):
            return rows, owners, np.zeros(0)
        if self._pieces is None:
            pieces, owner = pieces_of(self.areas)
            self._pieces = shapely.STRtree(pieces), pieces, owner
        tree, pieces, owner_of = self._pieces
        crossed = np.unique(rows)
        row, piece = tree.query(things[crossed])
        row = crossed[row]
        pair = np.searchsorted(wanted, row * n + owner_of[piece])
        fits = pair < len(wanted)
        fits[fits] = wanted[pair[fits]] == (row * n + owner_of[piece])[fits]
        row, piece, pair = row[fits], piece[fits], pair[fits]
        area = shapely.area(shapely.intersection(things[row], pieces[piece]))
        common = np.bincount(pair, weights=area, minlength=len(wanted))
        rows, owners = wanted // n, wanted % n
        size = np.maximum(shapely.area(things[rows]), np.finfo(float).tiny)
        share = np.minimum(common / size, 1.0)
        keep = share > 0
        return rows[keep], owners[keep], share[keep]

    def _with_known(
        self, sets: IntArray | None, rows: IntArray, owners: IntArray, weights: DoubleArray
    ) -> Pairs:
        """Put the pairs that the raster knows before those found out."""
        if sets is None:
            return rows, owners, weights
        sure = np.flatnonzero(sets >= 0)
        members = self._known.sets[sets[sure]]
        at, column = np.nonzero(members < len(self.areas))
        return (
            np.concatenate([sure[at], rows]),
            np.concatenate([members[at, column].astype(np.int64), owners]),
            np.concatenate([np.ones(len(at)), weights]),
        )

    @property
    def _known(self) -> _Raster:
        """Return the raster, which is there when a set of it is."""
        if self._raster is None:
            self._raster = _rasterize(self.areas, self._tree, self._extent, self._around)
        return self._raster

    def _sort_out(self, batch: Batch) -> tuple[IntArray | None, IntArray]:
        """Return the set of regions of each object, -1 where unsure, and the unsure rows."""
        self._seen += len(batch)
        enough = self._seen >= RASTER_FROM * max(1, len(self.areas) // 1000)
        if self._raster is None and not (enough and np.isfinite(self._extent).all()):
            return None, np.arange(len(batch))
        sets = batch.known.get(id(self))
        if sets is None:
            sets = batch.known[id(self)] = self._known.sets_of(batch.bounds)
        return sets, np.flatnonzero(sets < 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Raster:
    """Cells and the sets of regions that they lie in."""

    origin: tuple[float, float]
    cell: float
    """Side of a cell, units of the CRS."""
    marks: npt.NDArray[np.int32]
    """(rows + 1, cols + 1) how many cells before it an outline enters: a summed-area table."""
    codes: npt.NDArray[np.int32]
    """(rows, cols) index into ``sets``, -1 where an outline enters or too many regions lie."""
    sets: IntArray
    """(s, k) rows of regions, lowest first, then their number as filling; row 0 is no region."""
    extent: DoubleArray
    """Bounds of all regions: what lies beyond is in none."""

    def sets_of(self, bounds: DoubleArray) -> IntArray:
        """Return the set of each object's bounds, -1 where they are not enough to know."""
        n_rows, n_cols = self.codes.shape
        left, bottom, right, top = bounds.T
        with np.errstate(invalid="ignore"):
            cells = np.floor((bounds - np.tile(self.origin, 2)) / self.cell)
            inside = (
                (cells[:, 0] >= 0)
                & (cells[:, 1] >= 0)
                & (cells[:, 2] < n_cols)
                & (cells[:, 3] < n_rows)
            )
            west, south, east, north = self.extent
            beyond = (right < west) | (left > east) | (top < south) | (bottom > north)
        at = np.flatnonzero(inside)
        x0, y0, x1, y1 = cells[at].astype(np.int64).T
        marks = self.marks
        crossed = marks[y1 + 1, x1 + 1] - marks[y0, x1 + 1] - marks[y1 + 1, x0] + marks[y0, x0]
        result = np.full(len(bounds), -1, dtype=np.int64)
        result[at] = np.where(crossed == 0, self.codes[y0, x0], -1)
        result[beyond] = 0
        return result


def _rasterize(
    areas: GeometryArray,
    tree: shapely.STRtree,
    extent: DoubleArray,
    around: Sequence[float] | None,
) -> _Raster:
    """Find out which cells an outline enters, and the regions of all others."""
    frame = extent.copy()
    if around is not None:
        low, high = np.maximum(frame[:2], around[:2]), np.minimum(frame[2:], around[2:])
        if (low <= high).all():
            frame = np.concatenate([low, high])
    size = np.maximum(frame[2:] - frame[:2], 1e-9 * max(1.0, float(np.abs(frame).max())))
    n_cells = min(max(CELLS_PER_REGION * len(areas), 2**16), MOST_CELLS)
    cell = max(float(np.sqrt(size[0] * size[1] / n_cells)), float(size.max()) / 2**15)
    # a margin of a cell, so that no outline runs along the edge of the raster
    origin = frame[:2] - cell
    n_cols, n_rows = (int(n) for n in np.ceil(size / cell) + 3)
    marked = _enter(areas, origin, cell, (n_rows, n_cols))
    codes, sets = _fill(areas, tree, marked, origin, cell)
    marks = np.zeros((n_rows + 1, n_cols + 1), dtype=np.int32)
    np.cumsum(np.cumsum(marked, axis=0, dtype=np.int32), axis=1, out=marks[1:, 1:])
    return _Raster((float(origin[0]), float(origin[1])), cell, marks, codes, sets, extent)


def _enter(
    areas: GeometryArray, origin: DoubleArray, cell: float, shape: tuple[int, int]
) -> BoolArray:
    """Mark every cell that an outline enters, and now and then one beside it."""
    n_rows, n_cols = shape
    corner = origin + cell * np.array([n_cols, n_rows])
    frame = shapely.box(*(origin - cell), *(corner + cell))
    rings = shapely.boundary(areas)
    over = ~shapely.covered_by(shapely.box(*shapely.bounds(areas).T), frame)
    over &= ~shapely.is_empty(areas)
    # the outline of a country has no end, and a town needs little of it
    rings[over] = shapely.intersection(rings[over], frame)
    lines = shapely.get_parts(shapely.get_parts(rings))
    lines = lines[shapely.get_type_id(lines) == shapely.GeometryType.LINESTRING]
    xy, line = shapely.get_coordinates(shapely.segmentize(lines, cell / 2), return_index=True)
    step = np.flatnonzero(line[1:] == line[:-1])
    # points put between others are off the line by a rounding
    slack = 1e-6 * cell
    marked = np.zeros(shape, dtype=bool)
    last = np.array([n_cols - 1, n_rows - 1])
    low = np.floor((np.minimum(xy[step], xy[step + 1]) - slack - origin) / cell).astype(np.int64)
    high = np.floor((np.maximum(xy[step], xy[step + 1]) + slack - origin) / cell).astype(np.int64)
    for x, y in ((low, low), (low, high), (high, low), (high, high)):
        col, row = x[:, 0], y[:, 1]
        inside = (col >= 0) & (row >= 0) & (col <= last[0]) & (row <= last[1])
        marked[row[inside], col[inside]] = True
    return marked


def _fill(
    areas: GeometryArray,
    tree: shapely.STRtree,
    marked: BoolArray,
    origin: DoubleArray,
    cell: float,
) -> tuple[npt.NDArray[np.int32], IntArray]:
    """Return the code of each cell and the sets of regions.

    Between two outlines in a row of cells nothing changes: one cell of such a run is looked at.
    """
    n_cols = marked.shape[1]
    free = ~marked
    begins = free.copy()
    begins[:, 1:] &= marked[:, :-1]
    starts = np.flatnonzero(begins)
    x = origin[0] + cell * (starts % n_cols + 0.5)
    y = origin[1] + cell * (starts // n_cols + 0.5)
    run, owner = tree.query(shapely.points(x, y))
    inside = shapely.intersects_xy(areas[owner], x[run], y[run])
    of_run, sets = _as_sets(run[inside], owner[inside], len(starts), len(areas))
    codes = np.full(marked.shape, -1, dtype=np.int32)
    number = np.cumsum(begins, dtype=np.int32).reshape(marked.shape)
    codes[free] = of_run[number[free] - 1]
    return codes, sets


def _as_sets(
    run: IntArray, owner: IntArray, n_runs: int, n_regions: int
) -> tuple[npt.NDArray[np.int32], IntArray]:
    """Return the number of the set of regions of each run, and the sets."""
    order = np.lexsort((owner, run))
    run, owner = run[order], owner[order]
    many = np.bincount(run, minlength=n_runs)
    width = int(min(max(many.max(initial=1), 1), _MOST_SHARED))
    # the first row is the set without regions, so that its number is 0
    members = np.full((n_runs + 1, width), n_regions, dtype=np.int64)
    place = np.arange(len(run)) - np.repeat(np.cumsum(many) - many, many)
    fits = place < width
    members[run[fits] + 1, place[fits]] = owner[fits]
    sets, code = np.unique(members, axis=0, return_inverse=True)
    code = code.reshape(-1)
    if code[0] != 0:
        swap = np.arange(len(sets))
        swap[[0, code[0]]] = swap[[code[0], 0]]
        sets, code = sets[swap], swap[code]
    of_run = code[1:].astype(np.int32)
    of_run[many > width] = -1
    return of_run, sets
