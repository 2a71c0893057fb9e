"""Change between dates, object by object: kept, grown, shrunk, appeared, gone, split, merged.

Two orthophotos of one place never lie exactly on each other. The common shift is estimated from
the objects themselves and taken out before anything is compared::

    before, after -> common shift -> pairs that share ground -> groups -> one row per change

A group is what shares ground across the dates: one and one are the same thing, one and several a
split, several and one a merger. Ids are stable: what is kept has the id of its first date.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
import shapely
from scipy.ndimage import uniform_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geoseg.errors import ConfigError, RegionError
from geoseg.objects.count import polygonal
from geoseg.records import BoolArray, DoubleArray, GeometryArray, IntArray

KINDS = ("kept", "grown", "shrunk", "appeared", "gone", "split", "merged")
"""What can have become of an object."""

LINK_SHARE = 0.5
"""Two objects show one thing if they share this much of the smaller one ..."""

SAME_SHARE = 0.2
"""... and of a thing and its successor this much of the larger one, unless it was split."""

HALF = 0.5
"""Pieces of a split, or of what merged, cover this share of the whole."""

VOTE_CELL_M = 0.5
"""Cells in which pairs of centres vote for the common shift, metres."""

WEB_MERCATOR = 3857

ENOUGH_VOTES = 5
"""Fewer matching pairs say nothing about a shift."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What changed between two dates."""

    changes: gpd.GeoDataFrame
    """One row per thing, in the CRS of the first date: ``change`` (one of `KINDS`), ``thing_id``
    (stable: the first ``uid``), ``before`` and ``after`` (uids, several joined by a comma, empty
    where there is none), ``class``, ``area_before_m2``, ``area_after_m2``, ``iou`` and the later
    outline where there is one, moved by the shift; of what is gone the earlier."""
    shift_m: tuple[float, float]
    """East and north by which the second date lies off the first, metres; taken out."""
    matched: int
    """Pairs that the shift rests on."""

    @property
    def counts(self) -> dict[str, int]:
        """How often each of `KINDS` was found."""
        found = self.changes["change"].value_counts()
        return {kind: int(found.get(kind, 0)) for kind in KINDS}


def compare(
    before: gpd.GeoDataFrame,
    after: gpd.GeoDataFrame,
    *,
    tolerance_m: float = 5.0,
    growth: float = 0.2,
    by_class: bool = True,
) -> Comparison:
    """Match the objects of two dates one to one and say what became of each.

    Parameters
    ----------
    before, after : GeoDataFrame
        Polygons with a CRS; ``uid`` (made from the row where absent) and ``class`` are used.
    tolerance_m : float
        Largest common shift between the dates, metres; 0 takes them as they are.
    growth : float
        Relative change of area from which a thing is grown or shrunk.
    by_class : bool
        Only objects of one class can be the same thing.

    Returns
    -------
    Comparison
        The changes, the shift and how many pairs it rests on.

    Raises
    ------
    RegionError
        If a table has no CRS.
    ConfigError
        If a number is out of range.
    """
    if not 0 <= tolerance_m <= 100:
        raise ConfigError(f"tolerance_m is {tolerance_m}; expected 0 to 100 metres")
    if not 0 < growth < 10:
        raise ConfigError(f"growth is {growth}; expected a share above 0, such as 0.2")
    for what, table in (("before", before), ("after", after)):
        if table.crs is None:
            raise RegionError(f"the objects of '{what}' have no CRS; set it in the file")
    plane = _metres(before, after)
    early, late = (polygonal(t.to_crs(plane).geometry.array)[0] for t in (before, after))
    labels = _labels(before, after, by_class=by_class)
    shift, matched = _common_shift(early, late, labels, tolerance_m)
    late = shapely.transform(late, lambda xy: xy - shift)
    pairs = _pairs(early, late, labels)
    rows = _rows(early, late, pairs, growth)
    changes = _table(before, after, rows, early, late)
    outlines = gpd.GeoSeries(rows.outlines, crs=plane).to_crs(before.crs)
    table = gpd.GeoDataFrame(changes, geometry=outlines.to_numpy(), crs=before.crs)
    return Comparison(table, (round(float(shift[0]), 3), round(float(shift[1]), 3)), matched)


def tracks(dates: Sequence[gpd.GeoDataFrame], **options: Any) -> pd.DataFrame:
    """Follow things through several dates.

    Parameters
    ----------
    dates : sequence of GeoDataFrame
        Objects of each date, earliest first; at least two.
    **options
        As for `compare`.

    Returns
    -------
    DataFrame
        One row per thing and date on which it is there: ``thing_id``, ``date`` (index from 0),
        ``uid``, ``change`` (what happened since the date before; 'appeared' on the first).

    Raises
    ------
    ConfigError
        If there are fewer than two dates.
    """
    if len(dates) < 2:
        raise ConfigError(f"{len(dates)} date(s) given; expected two or more to follow things")
    first = _uids(dates[0])
    things = dict(zip(first, first, strict=True))
    rows = [(uid, 0, uid, "appeared") for uid in first]
    for number in range(1, len(dates)):
        found = compare(dates[number - 1], dates[number], **options).changes
        following: dict[str, str] = {}
        for change, old, new in zip(found["change"], found["before"], found["after"], strict=True):
            olds, news = (text.split(",") if text else [] for text in (old, new))
            # of several that became one the first lends its name; pieces of one share it
            name = things.get(olds[0], olds[0]) if olds else news[0]
            rows += [(name, number, uid, change) for uid in news]
            following.update(dict.fromkeys(news, name))
        things = following
    return pd.DataFrame(rows, columns=["thing_id", "date", "uid", "change"])


def _metres(before: gpd.GeoDataFrame, after: gpd.GeoDataFrame) -> pyproj.CRS:
    """Return a CRS in metres around the objects: the first date's where it is one."""
    crs = pyproj.CRS.from_user_input(before.crs)
    # web maps' metres are none, away from the equator
    in_metres = crs.is_projected and crs.axis_info[0].unit_conversion_factor == 1
    if in_metres and crs.to_epsg() != WEB_MERCATOR:
        return crs
    table = before if len(before) else after
    return pyproj.CRS.from_user_input(table.estimate_utm_crs() if len(table) else crs)


def _labels(
    before: gpd.GeoDataFrame, after: gpd.GeoDataFrame, *, by_class: bool
) -> tuple[IntArray, IntArray]:
    if not by_class or "class" not in before.columns or "class" not in after.columns:
        return np.zeros(len(before), np.int64), np.zeros(len(after), np.int64)
    names = pd.concat([before["class"], after["class"]]).astype(str)
    codes = pd.factorize(names, sort=True)[0].astype(np.int64)
    return codes[: len(before)], codes[len(before) :]


def _common_shift(
    early: GeometryArray,
    late: GeometryArray,
    labels: tuple[IntArray, IntArray],
    tolerance_m: float,
) -> tuple[DoubleArray, int]:
    """Return by how much the later outlines lie off the earlier ones, (2,) metres.

    Centres of like-sized things vote for their difference on a coarse raster; the cell with most
    votes (with its neighbours) is refined by the median of the votes around it.
    """
    nothing = np.zeros(2)
    if tolerance_m == 0 or len(early) == 0 or len(late) == 0:
        return nothing, 0
    points = [shapely.centroid(p) for p in (early, late)]
    a, b = shapely.STRtree(points[1]).query(
        points[0], predicate="dwithin", distance=tolerance_m * np.sqrt(2)
    )
    area = shapely.area(early)[a], shapely.area(late)[b]
    alike = (labels[0][a] == labels[1][b]) & (np.minimum(*area) > 0.7 * np.maximum(*area))
    a, b = a[alike], b[alike]
    if len(a) < ENOUGH_VOTES:
        return nothing, 0
    votes = shapely.get_coordinates(points[1])[b] - shapely.get_coordinates(points[0])[a]
    votes = votes[(np.abs(votes) <= tolerance_m).all(axis=1)]
    n = int(np.ceil(tolerance_m / VOTE_CELL_M))
    edges = (np.arange(-n, n + 2) - 0.5) * VOTE_CELL_M
    raster = np.histogram2d(votes[:, 0], votes[:, 1], bins=(edges, edges))[0]
    around = uniform_filter(raster, 3, mode="constant")
    peak = np.array(np.unravel_index(np.argmax(around), around.shape))
    shift = np.asarray((peak - n) * VOTE_CELL_M, np.float64)
    near = np.zeros(0, bool)
    for _ in range(10):
        near = (np.abs(votes - shift) <= 1.5 * VOTE_CELL_M).all(axis=1)
        better = np.asarray(np.median(votes[near], axis=0) if near.any() else shift)
        if np.allclose(better, shift, atol=1e-6):
            break
        shift = better
    matched = int(np.count_nonzero(near))
    return (shift, matched) if matched >= ENOUGH_VOTES else (nothing, 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Objects of two dates that share ground enough to be one thing, or a part of it."""

    early: IntArray
    late: IntArray
    iou: DoubleArray


def _pairs(early: GeometryArray, late: GeometryArray, labels: tuple[IntArray, IntArray]) -> _Pairs:
    a, b = shapely.STRtree(late).query(early, predicate="intersects").astype(np.int64)
    same = labels[0][a] == labels[1][b]
    a, b = a[same], b[same]
    common = shapely.area(shapely.intersection(early[a], late[b]))
    area = shapely.area(early)[a], shapely.area(late)[b]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.nan_to_num(common / np.minimum(*area))
        iou = np.nan_to_num(common / (area[0] + area[1] - common))
    good = share >= LINK_SHARE
    return _Pairs(a[good], b[good], iou[good])


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """One entry per thing."""

    change: list[str]
    early: list[IntArray]
    late: list[IntArray]
    iou: DoubleArray
    outlines: GeometryArray


def _rows(early: GeometryArray, late: GeometryArray, pairs: _Pairs, growth: float) -> _Rows:
    """Group what shares ground and name what happened."""
    n, m = len(early), len(late)
    kept = _partners(early, late, pairs)
    nodes = pairs.early[kept], n + pairs.late[kept]
    graph = coo_array((np.ones(len(nodes[0])), nodes), shape=(n + m, n + m))
    _, group = connected_components(graph, directed=False)
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if n + m else []
    change, olds, news, outlines = [], [], [], []
    for mine in members:
        old, new = mine[mine < n], mine[mine >= n] - n
        areas = shapely.area(early[old]).sum(), shapely.area(late[new]).sum()
        change.append(_kind(len(old), len(new), *areas, growth))
        olds.append(old)
        news.append(new)
        shown = late[new] if len(new) else early[old]
        outlines.append(shown[0] if len(shown) == 1 else shapely.union_all(shown))
    outline = np.empty(len(outlines), object)
    outline[:] = outlines
    iou = np.zeros(len(members))
    row_of = {int(o): k for k, old in enumerate(olds) for o in old}
    for a, value in zip(pairs.early[kept].tolist(), pairs.iou[kept].tolist(), strict=True):
        iou[row_of[a]] = max(iou[row_of[a]], value)
    return _Rows(change, olds, news, iou, outline)


def _partners(early: GeometryArray, late: GeometryArray, pairs: _Pairs) -> BoolArray:
    """Say which pairs hold: each object's best one of its size, and the pieces of a whole.

    A small object that comes to stand on a large one's ground is no piece of it: pieces cover at
    least half of what they were, or became, together.
    """
    area = shapely.area(early)[pairs.early], shapely.area(late)[pairs.late]
    alike = np.minimum(*area) >= SAME_SHARE * np.maximum(*area)
    hold = _best(pairs.early, pairs.iou, alike) & _best(pairs.late, pairs.iou, alike)
    for whole, size, piece in (
        (pairs.early, area[0], area[1]),
        (pairs.late, area[1], area[0]),
    ):
        smaller = piece <= size
        covered = np.bincount(whole, np.where(smaller, piece, 0))
        number = np.bincount(whole, smaller)
        hold |= smaller & (number[whole] > 1) & (covered[whole] >= HALF * size)
    return hold


def _best(mine: IntArray, iou: DoubleArray, alike: BoolArray) -> BoolArray:
    """Mark each object's pair with the highest IoU among those of a size."""
    order = np.lexsort((-iou, ~alike, mine))
    first = np.diff(mine[order], prepend=-1) != 0
    best = np.zeros(len(mine), bool)
    best[order[first]] = True
    return best & alike


def _kind(n_old: int, n_new: int, old: float, new: float, growth: float) -> str:
    if n_old == 0:
        return "appeared"
    if n_new == 0:
        return "gone"
    if n_new > n_old:
        return "split"
    if n_old > n_new:
        return "merged"
    if new > old * (1 + growth):
        return "grown"
    return "shrunk" if new * (1 + growth) < old else "kept"


def _uids(table: gpd.GeoDataFrame) -> npt.NDArray[np.object_]:
    """Return the names of objects; by row where they have none."""
    if "uid" in table.columns:
        return np.array(table["uid"].astype(str).tolist(), dtype=object)
    return np.array([f"row-{k + 1}" for k in range(len(table))], dtype=object)


def _table(
    before: gpd.GeoDataFrame,
    after: gpd.GeoDataFrame,
    rows: _Rows,
    early: GeometryArray,
    late: GeometryArray,
) -> pd.DataFrame:
    names = _uids(before), _uids(after)
    areas = shapely.area(early), shapely.area(late)
    old, new = (
        [",".join(sorted(own[m].tolist())) for m in members]
        for own, members in zip(names, (rows.early, rows.late), strict=True)
    )
    columns: dict[str, Any] = {
        "change": rows.change,
        "thing_id": [(o or n).split(",")[0] for o, n in zip(old, new, strict=True)],
        "before": old,
        "after": new,
    }
    if "class" in before.columns and "class" in after.columns:
        kinds = before["class"].astype(str).to_numpy(), after["class"].astype(str).to_numpy()
        columns["class"] = [
            kinds[1][n[0]] if len(n) else kinds[0][o[0]]
            for o, n in zip(rows.early, rows.late, strict=True)
        ]
    columns["area_before_m2"] = [round(float(areas[0][m].sum()), 2) for m in rows.early]
    columns["area_after_m2"] = [round(float(areas[1][m].sum()), 2) for m in rows.late]
    columns["iou"] = rows.iou.round(4)
    return pd.DataFrame(columns)
