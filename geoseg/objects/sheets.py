"""Join the objects of overlapping images, so that a thing on two sheets is one object.

The rules are the stitcher's, with imaged areas in the place of windows: compare outlines only where
both sheets have pixels, one best partner per object and other sheet, mutual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geoseg.records import BoolArray, DoubleArray, GeometryArray, IntArray

SAME = 0.5
"""IoU in the area both sheets show, or share of the smaller one where one is cut off."""


@dataclass(frozen=True, slots=True, eq=False)
class Sheets:
    """Objects of several images in one CRS; columns share the length n."""

    polygons: GeometryArray
    """(n,) in CRS units."""
    scores: DoubleArray
    """(n,) in [0, 1]."""
    labels: IntArray
    """(n,) class index."""
    sheet: IntArray
    """(n,) index into the footprints."""
    footprints: Sequence[shapely.Geometry]
    """Imaged area of each sheet, CRS units."""
    near: float
    """An object this near to the end of its sheet's imaged area may be cut off, CRS units."""


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """What stays, as rows of the input."""

    rows: IntArray
    """(m,) the row that stands for each object, ascending."""
    polygons: GeometryArray
    """(m,) its outline; the union of several where no sheet shows it whole."""
    parts: tuple[IntArray, ...]
    """(m,) the rows whose union the outline is; one row where one stands for all."""


def join_sheets(sheets: Sheets) -> Joined:
    """Keep each object once.

    1. Objects of one class on two sheets are the same if, in the area that both sheets show, their
       IoU reaches `SAME`, or, where one may be cut off, the shared part reaches `SAME` of the
       smaller one; best partners only, mutual.
    2. Of objects that are the same, the one stands for all that lies whole and deepest inside its
       sheet, then the best scored. If all may be cut off, their union does.
    3. A cut-off object mostly covered by one of another sheet that stays is dropped.

    The order of the rows does not matter, apart from the order of the result.
    """
    n = len(sheets.polygons)
    depth = _depth(sheets)
    cut = depth <= sheets.near
    a, b, iou, cover = _pairs(sheets)
    good = (iou >= SAME) | ((cut[a] | cut[b]) & (cover >= SAME))
    mutual = _mutual_best(a[good], b[good], np.maximum(iou, cover)[good], sheets.sheet)
    first, second = a[good][mutual], b[good][mutual]
    links = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    _, group = connected_components(links, directed=False)

    # whole ones first, then deep inside, then by score; the outline's place breaks ties
    x0, y0, _, _ = shapely.bounds(sheets.polygons).T if n else np.zeros((4, 0))
    order = np.lexsort((y0, x0, -sheets.scores, -depth.round(3), cut, group))
    leaders = order[np.flatnonzero(np.diff(group[order], prepend=-1))]
    parts = {
        int(row): np.sort(np.flatnonzero(group == group[row])) if cut[row] else np.array([row])
        for row in leaders[np.isin(group[leaders], group[first])]
    }
    kept = np.zeros(n, bool)
    kept[leaders] = True
    for i, j in ((a, b), (b, a)):
        # the smaller one is the covered one
        smaller = shapely.area(sheets.polygons[i]) <= shapely.area(sheets.polygons[j])
        lost = cut[i] & ~cut[j] & kept[j] & (cover >= SAME) & smaller
        kept[i[lost]] = False
    rows = np.flatnonzero(kept)
    members = tuple(parts.get(int(row), np.array([row])) for row in rows)
    polygons = sheets.polygons[rows].copy()
    for k, mine in enumerate(members):
        if len(mine) > 1:
            pieces = shapely.get_parts(shapely.union_all(sheets.polygons[mine]))
            polygons[k] = max(pieces, key=shapely.area)
    return Joined(rows, polygons, members)


def _depth(sheets: Sheets) -> DoubleArray:
    """Return the distance of each object to the end of its sheet's imaged area."""
    out = np.zeros(len(sheets.polygons))
    for number, footprint in enumerate(sheets.footprints):
        mine = sheets.sheet == number
        edge = shapely.boundary(footprint)
        shapely.prepare(edge)
        out[mine] = shapely.distance(sheets.polygons[mine], edge)
    return out


def seen_areas(footprints: Sequence[shapely.Geometry], near: float) -> GeometryArray:
    """Return the areas in which objects of each sheet may lie.

    Imaged areas are known to within ``near``: a piece at the very end of a sheet may lie outside.
    """
    return np.asarray(shapely.buffer(list(footprints), near, join_style="mitre"), dtype=object)


def _pairs(sheets: Sheets) -> tuple[IntArray, IntArray, DoubleArray, DoubleArray]:
    """Return pairs of different sheets that meet, with IoU and share of the smaller one."""
    found = []
    areas = seen_areas(sheets.footprints, sheets.near)
    for i in range(len(areas)):
        for j in range(i + 1, len(areas)):
            both = shapely.intersection(areas[i], areas[j])
            if both.area > 0:
                found.append(_pairs_of_two(sheets, i, j, both))
    if not found:
        none = np.zeros(0, np.int64)
        return none, none, np.zeros(0), np.zeros(0)
    a, b, iou, cover = (np.concatenate(column) for column in zip(*found, strict=True))
    return a, b, iou, cover


def _pairs_of_two(
    sheets: Sheets, i: int, j: int, both: shapely.Geometry
) -> tuple[IntArray, IntArray, DoubleArray, DoubleArray]:
    shapely.prepare(both)
    rows = [
        np.flatnonzero((sheets.sheet == k) & shapely.intersects(both, sheets.polygons))
        for k in (i, j)
    ]
    # outlines of things half outside are compared by the part that both sheets show
    seen = [shapely.intersection(sheets.polygons[r], both) for r in rows]
    a, b = shapely.STRtree(seen[1]).query(seen[0], predicate="intersects")
    same = sheets.labels[rows[0][a]] == sheets.labels[rows[1][b]]
    a, b = a[same], b[same]
    shared = shapely.area(shapely.intersection(seen[0][a], seen[1][b]))
    areas = [shapely.area(seen[0][a]), shapely.area(seen[1][b])]
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.nan_to_num(shared / (areas[0] + areas[1] - shared))
        cover = np.nan_to_num(shared / np.minimum(*areas))
    return rows[0][a], rows[1][b], iou, cover


def _mutual_best(a: IntArray, b: IntArray, likeness: DoubleArray, sheet: IntArray) -> BoolArray:
    """Say which pairs are each other's best on the other's sheet."""

    def best(mine: IntArray, other: IntArray) -> BoolArray:
        order = np.lexsort((other, -likeness, sheet[other], mine))
        key = np.column_stack([mine, sheet[other]])[order]
        first = np.ones(len(order), bool)
        first[1:] = (key[1:] != key[:-1]).any(axis=1)
        out = np.zeros(len(order), bool)
        out[order[first]] = True
        return out

    return best(a, b) & best(b, a)
