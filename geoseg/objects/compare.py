"""Change between dates, object by object: kept, grown, shrunk, appeared, gone, split, merged.

The shift that all objects have in common is taken out before anything is compared::

    before, after -> common shift -> pairs that share ground -> groups -> one row per thing

A group is what shares ground across the dates: one and one are the same thing, one and several a
split, several and one a merger. What only one date shows has appeared or gone, but only where the
other date was imaged: elsewhere it is not comparable. Ids are stable: what is kept has the id of
its first date.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely.geometry.base import BaseGeometry

from geoseg.errors import ConfigError, RegionError
from geoseg.objects.count import count, polygonal
from geoseg.objects.shift import CommonShift, common_shift
from geoseg.records import BoolArray, DoubleArray, GeometryArray, IntArray

Seen: TypeAlias = gpd.GeoDataFrame | gpd.GeoSeries | BaseGeometry
"""Ground that was imaged and worked through; a bare geometry is in the CRS of its date."""

KINDS = (
    "kept", "grown", "shrunk", "appeared", "gone", "split", "merged", "not comparable",
)  # fmt: skip
"""What can have become of a thing."""

NOT_COMPARABLE = "not comparable"

LINK_SHARE = 0.5
"""Two objects show one thing if they share this much of the smaller one ..."""

SAME_SHARE = 0.2
"""... and of a thing and its successor this much of the larger one, unless it was split."""

HALF = 0.5
"""Pieces of a split, or of what merged, cover this share of the whole ..."""

PIECE_SHARE = 0.1
"""... and each at least this share of it: less is something that stands on its ground ..."""

WHOLE_SHARE = 0.9
"""... and at most this: more is the whole itself."""

SIGMAS = 2.5
"""Growth must stand this many deviations of outlines out of what chance draws ..."""

ENOUGH_OUTLINES = 20
"""... where at least so many things tell how far outlines of one thing lie apart ..."""

STEADY, STEADY_SIGMAS = 0.8, 1.2816
"""... of which this share is taken to stand as it stood: of a normal distribution it lies within so
many deviations. Half would not see how long the tails of a detector's errors are."""

LIKE_SIZED = 0.7
"""What shares too little ground is still one thing if this near in size and `slack_m` in place."""

DISTORTED = 0.005
"""A CRS whose metres are off by more than this share of a metre on the ground measures nothing."""


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """How two dates are compared.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    tolerance_m: float = 5.0
    """Largest common shift, metres; 0 takes the dates as they lie."""
    slack_m: float = 1.0
    """What a single object may lie off after that, where it is too small to overlap itself."""
    growth: float = 0.2
    """Share by which the area must change for grown or shrunk."""
    outline_m: float | None = None
    """Deviation of outlines of one thing from date to date, metres; growth that this explains is
    none. None: as most things of these dates show."""
    by_class: bool = True
    """Only objects of one class can be the same thing."""
    edge_m: float = 2.0
    """What ends this near to the end of the imagery is cut by it."""
    min_score: float = 0.0
    """Objects count from this score; weaker ones only confirm that one of the other date is still
    there."""

    def __post_init__(self) -> None:
        for name, high in (("tolerance_m", 100), ("slack_m", 20), ("edge_m", 100)):
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise ConfigError(f"{name} is {value}; expected 0 to {high} metres")
        if self.outline_m is not None and not 0 <= self.outline_m <= 100:
            raise ConfigError(f"outline_m is {self.outline_m}; expected 0 to 100 metres, or None")
        if not 0 < self.growth < 10:
            raise ConfigError(f"growth is {self.growth}; expected a share above 0, such as 0.2")
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"min_score is {self.min_score}; expected 0 to 1")


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What changed between two dates."""

    changes: gpd.GeoDataFrame
    """One row per thing, in the CRS of the first date: ``change`` (one of `KINDS`), ``thing_id``
    (stable: the first ``uid``), ``before`` and ``after`` (uids, several joined by a comma, empty
    where there is none), ``class`` (and ``class_before`` where classes may change),
    ``area_before_m2``, ``area_after_m2``, ``iou``, ``score_before`` and ``score_after`` where the
    dates have scores, ``note`` (why it is not comparable, or that the edge of the imagery cuts
    it), and the later outline where there is one, moved by the shift; of what is gone the
    earlier."""
    shift_m: tuple[float, float]
    """East and north by which the second date lies off the first, metres; taken out."""
    matched: int
    """Pairs that the shift rests on; 0 where none was found."""
    residual_m: float = float("nan")
    """Median distance of the centres of things that are one on one, after the shift, metres."""
    area_ratio: float = float("nan")
    """Median of later to earlier area of things that are one on one."""
    outline_m: float = 0.0
    """How far outlines of one thing lie apart between the dates by chance, one deviation, metres:
    grown and shrunk are beyond three of these."""
    notes: tuple[str, ...] = field(default=())
    """What the user should know."""

    @property
    def counts(self) -> dict[str, int]:
        """How often each of `KINDS` was found."""
        found = self.changes["change"].value_counts()
        return {kind: int(found.get(kind, 0)) for kind in KINDS}


@dataclass(frozen=True, slots=True, eq=False)
class ObjectsOfDate:
    """The objects of one date, in the metres of a common plane; columns share a length n."""

    uids: npt.NDArray[np.object_]
    """(n,) names, each once."""
    polygons: GeometryArray
    """(n,) valid, may be empty."""
    classes: npt.NDArray[np.object_]
    """(n,) names of classes; '' where there are none."""
    scores: DoubleArray
    """(n,) in [0, 1]; NaN where there are none."""
    cut: BoolArray
    """(n,) said to touch the edge of its image."""
    seen: BaseGeometry | None
    """Ground that was imaged; None: unknown."""

    def __len__(self) -> int:
        return len(self.uids)

    def taken(self, rows: IntArray) -> ObjectsOfDate:
        """Return the given objects, and all ground."""
        columns = ("uids", "polygons", "classes", "scores", "cut")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})

    def moved(self, xy: DoubleArray) -> ObjectsOfDate:
        """Return the same objects and ground, moved by (x, y)."""
        seen = None if self.seen is None else shapely.transform(self.seen, lambda p: p + xy)
        return replace(self, polygons=shapely.transform(self.polygons, lambda p: p + xy), seen=seen)


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """Two dates whose objects are put together; g things."""

    early: ObjectsOfDate
    late: ObjectsOfDate
    """Moved by the shift."""
    shift: CommonShift
    group: tuple[IntArray, IntArray]
    """(n,) and (m,) number of the thing that each object belongs to; -1: none, too weak."""
    change: npt.NDArray[np.object_]
    """(g,) one of `KINDS`."""
    note: npt.NDArray[np.object_]
    """(g,) why, where that is not plain."""
    iou: DoubleArray
    """(g,) best overlap."""
    outline_m: float
    """As in `Comparison`."""


def compare(
    before: gpd.GeoDataFrame,
    after: gpd.GeoDataFrame,
    *,
    seen_before: Seen | None = None,
    seen_after: Seen | None = None,
    **settings: Any,
) -> Comparison:
    """Match the objects of two dates one to one and say what became of each.

    Parameters
    ----------
    before, after : GeoDataFrame
        Polygons with a CRS; ``uid`` (made from the row where absent), ``class``, ``score`` and
        ``touches_edge`` are used where they are.
    seen_before, seen_after : GeoDataFrame, GeoSeries or geometry, optional
        Ground that was imaged and worked through. What one date shows where the other was not
        seen is not comparable. Unknown: everything counts as seen.
    **settings
        Fields of `CompareSettings`.

    Returns
    -------
    Comparison
        The changes, the shift and how many pairs it rests on.

    Raises
    ------
    RegionError
        If a table has no CRS.
    ConfigError
        If a setting is unknown or out of range.
    """
    how = settings_of(settings)
    check_dates({"before": before, "after": after})
    plane = metres_around(before, after)
    early = objects_of_date(before, plane, seen_before, "before")
    late = objects_of_date(after, plane, seen_after, "after")
    return compared(match_dates(early, late, how), plane, before.crs, by_class=how.by_class)


def settings_of(settings: dict[str, Any]) -> CompareSettings:
    """Return settings from keywords; refuse unknown ones."""
    unknown = sorted(set(settings) - set(CompareSettings.__slots__))
    if unknown:
        raise ConfigError(
            f"unknown setting {unknown[0]!r}; expected one of "
            f"{', '.join(CompareSettings.__slots__)}"
        )
    return CompareSettings(**settings)


def check_dates(tables: dict[str, gpd.GeoDataFrame]) -> None:
    """Refuse tables that lie nowhere."""
    for what, table in tables.items():
        if table.crs is None:
            raise RegionError(f"the objects of '{what}' have no CRS; set it in the file")


def count_changes(changes: gpd.GeoDataFrame, regions: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Count changes per region: a thing belongs to the region of its representative point.

    Returns
    -------
    GeoDataFrame
        The regions with a column for each of `KINDS` (``not_comparable`` with an underscore),
        and ``net``: appeared less gone. ``attrs['outside']`` tells the same of what no region
        holds, as a dict; ``attrs['region_field']`` as for `geoseg.objects.count.count`.
    """
    kinds = [kind.replace(" ", "_") for kind in KINDS]
    named = gpd.GeoDataFrame(
        {"class": changes["change"].str.replace(" ", "_").to_numpy()},
        geometry=changes.geometry.to_numpy(),
        crs=changes.crs,
    )
    counted = count(named, regions, classes=kinds)
    out: gpd.GeoDataFrame = regions.copy()
    # a field of the user's that has one of our names gives way, as it does in count
    out = out.rename(columns={n: f"{n}_given" for n in (*kinds, "net") if n in out.columns})
    for kind in kinds:
        out[kind] = counted[f"count_{kind}"].to_numpy()
    out["net"] = (out["appeared"] - out["gone"]).to_numpy()
    totals = named["class"].value_counts()
    out.attrs = {
        "region_field": counted.attrs["region_field"],
        "outside": {k: int(totals.get(k, 0) - out[k].sum()) for k in kinds},
    }
    return out


def metres_around(*dates: gpd.GeoDataFrame) -> pyproj.CRS:
    """Return a CRS in metres around the objects: the first date's where its metres are true."""
    crs = pyproj.CRS.from_user_input(dates[0].crs)
    table = next((t for t in dates if len(t)), None)
    if table is None:
        return crs if crs.is_projected else pyproj.CRS.from_epsg(3857)
    if crs.is_projected and all(a.unit_conversion_factor == 1 for a in crs.axis_info[:2]):
        x0, y0, x1, y1 = table.to_crs(crs).total_bounds
        to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        lon, lat = to_degrees.transform((x0 + x1) / 2, (y0 + y1) / 2)
        factors = pyproj.Proj(crs).get_factors(lon, lat)
        scales = np.array([factors.meridional_scale, factors.parallel_scale])
        # the metres of web maps are none, away from the equator
        if (np.abs(scales - 1) <= DISTORTED).all():
            return crs
    try:
        return pyproj.CRS.from_user_input(table.estimate_utm_crs())
    except (RuntimeError, ValueError) as error:
        raise RegionError(
            f"objects in '{crs.name}' reach to places that are not on the earth; check that their "
            "CRS is the one that their coordinates are in"
        ) from error


def objects_of_date(
    table: gpd.GeoDataFrame, plane: pyproj.CRS, seen: Seen | None, what: str
) -> ObjectsOfDate:
    """Bring the objects of a date, and what was seen of the ground, to a plane in metres."""
    n = len(table)
    classes = table["class"].astype(str) if "class" in table.columns else [""] * n
    scores = table["score"] if "score" in table.columns else np.full(n, np.nan)
    cut = table["touches_edge"] if "touches_edge" in table.columns else np.zeros(n)
    return ObjectsOfDate(
        uids=_names(table, what),
        polygons=polygonal(table.to_crs(plane).geometry.array)[0],
        classes=np.array([*classes, None], object)[:-1],
        scores=np.asarray(scores, np.float64),
        cut=np.asarray(cut, bool),
        seen=None if seen is None else _ground(seen, table.crs, plane),
    )


def _names(table: gpd.GeoDataFrame, what: str) -> npt.NDArray[np.object_]:
    """Return the names of objects, each once; by row where they have none."""
    if "uid" not in table.columns:
        return np.array([f"{what}-{k + 1}" for k in range(len(table))] + [None], object)[:-1]
    names = table["uid"].astype(str)
    again = names.groupby(names.to_numpy()).cumcount().to_numpy()
    unique = [f"{n}~{k + 1}" if k else n for n, k in zip(names, again.tolist(), strict=True)]
    return np.array([*unique, None], object)[:-1]


def _ground(seen: Seen, crs: Any, plane: pyproj.CRS) -> BaseGeometry:
    """Return the ground seen as one geometry of the plane."""
    series = seen if isinstance(seen, gpd.GeoDataFrame | gpd.GeoSeries) else gpd.GeoSeries([seen])
    series = series.geometry
    if series.crs is None:
        series = series.set_crs(crs)
    # a grain closes the seams that reprojecting opens between supertiles
    shapes = polygonal(series.to_crs(plane).array)[0]
    return shapely.union_all(shapely.buffer(shapes, 0.01, join_style="mitre"))


def match_dates(early: ObjectsOfDate, late: ObjectsOfDate, how: CompareSettings) -> Matched:
    """Put the objects of two dates together."""
    labels = _labels(early, late, by_class=how.by_class)
    sure = tuple(
        np.flatnonzero(np.nan_to_num(d.scores, nan=1.0) >= how.min_score) for d in (early, late)
    )
    own_labels = labels[0][sure[0]], labels[1][sure[1]]
    shift = common_shift(
        early.polygons[sure[0]], late.polygons[sure[1]], own_labels, how.tolerance_m
    )
    late = late.moved(-shift.xy)
    found = partners(early.polygons[sure[0]], late.polygons[sure[1]], own_labels, how.slack_m)
    pairs = Pairs(sure[0][found.early], sure[1][found.late], found.iou)
    weak = _confirmed(early.polygons, late.polygons, labels, sure, pairs)
    certain, pairs = pairs, pairs.and_also(weak)
    n, m = len(early), len(late)
    nodes = pairs.early, n + pairs.late
    graph = coo_array((np.ones(len(nodes[0])), nodes), shape=(n + m, n + m))
    things, group = connected_components(graph, directed=False)
    own = group[:n].astype(np.int64), group[n:].astype(np.int64)
    iou = np.zeros(things)
    np.maximum.at(iou, own[0][pairs.early], pairs.iou)
    outline_m = _apart(early, late, certain, own) if how.outline_m is None else how.outline_m
    confirmed = np.zeros(things, bool)
    confirmed[own[0][weak.early]] = True
    how = replace(how, outline_m=outline_m)
    change, note = _what_became(early, late, own, confirmed, how)
    strong = np.zeros(things, bool)
    for mine, rows in zip(own, sure, strict=True):
        strong[mine[rows]] = True
    number = np.where(strong, np.cumsum(strong) - 1, -1)
    own = number[own[0]], number[own[1]]
    return Matched(early, late, shift, own, change[strong], note[strong], iou[strong], outline_m)


def _apart(
    early: ObjectsOfDate, late: ObjectsOfDate, pairs: Pairs, own: tuple[IntArray, IntArray]
) -> float:
    """Return how far outlines of one thing lie apart between the dates, one deviation, metres.

    What an area changes by, per metre of outline, among things that are one on one: most of them
    stand as they stood. The quantile does not see the few that did not.
    """
    things = int(max((g.max(initial=-1) for g in own), default=-1)) + 1
    numbers = [np.bincount(g, minlength=things) for g in own]
    single = ((numbers[0] == 1) & (numbers[1] == 1))[own[0][pairs.early]]
    if np.count_nonzero(single) < ENOUGH_OUTLINES:
        return 0.0
    old, new = early.polygons[pairs.early[single]], late.polygons[pairs.late[single]]
    length = (shapely.length(old) + shapely.length(new)) / 2
    step = (shapely.area(new) - shapely.area(old)) / length
    return float(np.quantile(np.abs(step - np.median(step)), STEADY) / STEADY_SIGMAS)


def _labels(
    early: ObjectsOfDate, late: ObjectsOfDate, *, by_class: bool
) -> tuple[IntArray, IntArray]:
    if not by_class or not any(map(bool, early.classes)) or not any(map(bool, late.classes)):
        return np.zeros(len(early), np.int64), np.zeros(len(late), np.int64)
    codes = np.unique(
        np.concatenate([early.classes, late.classes]).astype(str), return_inverse=True
    )
    both = codes[1].astype(np.int64)
    return both[: len(early)], both[len(early) :]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Objects of two dates that are one thing, or a part of it."""

    early: IntArray
    late: IntArray
    iou: DoubleArray

    def and_also(self, other: Pairs) -> Pairs:
        """Return these pairs and others."""
        return Pairs(
            np.concatenate([self.early, other.early]),
            np.concatenate([self.late, other.late]),
            np.concatenate([self.iou, other.iou]),
        )


def _confirmed(
    early: GeometryArray,
    late: GeometryArray,
    labels: tuple[IntArray, IntArray],
    sure: tuple[IntArray, ...],
    pairs: Pairs,
) -> Pairs:
    """Pair sure objects that have no partner with weak ones of the other date, one to one."""
    weak = [np.setdiff1d(np.arange(len(x)), s) for x, s in zip((early, late), sure, strict=True)]
    rest = np.setdiff1d(sure[0], pairs.early), np.setdiff1d(sure[1], pairs.late)
    out = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    for rows in ((rest[0], weak[1]), (weak[0], rest[1])):
        a, b, iou = _linked(early[rows[0]], late[rows[1]], (labels[0][rows[0]], labels[1][rows[1]]))
        area = shapely.area(early)[rows[0]][a], shapely.area(late)[rows[1]][b]
        alike = np.minimum(*area) >= SAME_SHARE * np.maximum(*area)
        hold = one_to_one(a, b, np.where(alike, iou, 0.0))
        out = out.and_also(Pairs(rows[0][a[hold]], rows[1][b[hold]], iou[hold]))
    return out


def _linked(
    early: GeometryArray, late: GeometryArray, labels: tuple[IntArray, IntArray]
) -> tuple[IntArray, IntArray, DoubleArray]:
    """Return the pairs that share enough of the smaller one, and their IoU."""
    area = shapely.area(early), shapely.area(late)
    a, b = shapely.STRtree(late).query(early, predicate="intersects").astype(np.int64)
    same = labels[0][a] == labels[1][b]
    a, b = a[same], b[same]
    common = shapely.area(shapely.intersection(early[a], late[b]))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.nan_to_num(common / np.minimum(area[0][a], area[1][b]))
        iou = np.nan_to_num(common / (area[0][a] + area[1][b] - common))
    good = share >= LINK_SHARE
    return a[good], b[good], iou[good]


def partners(
    early: GeometryArray, late: GeometryArray, labels: tuple[IntArray, IntArray], slack_m: float
) -> Pairs:
    """Pair what is one thing, one to one, and a whole with its pieces.

    A small object that comes to stand on a large one's ground is no piece of it: pieces cover at
    least half of what they were, or became, together.
    """
    a, b, iou = _linked(early, late, labels)
    size = shapely.area(early)[a], shapely.area(late)[b]
    alike = np.minimum(*size) >= SAME_SHARE * np.maximum(*size)
    hold = one_to_one(a, b, np.where(alike, iou, 0.0))
    hold |= _pieces(a, b, size, hold) | _pieces(b, a, size[::-1], hold)
    a, b, iou = a[hold], b[hold], iou[hold]
    near = _near(early, late, labels, slack_m, (a, b))
    return Pairs(*(np.concatenate([x, y]) for x, y in zip((a, b, iou), near, strict=True)))


def _pieces(
    whole: IntArray, piece: IntArray, size: tuple[DoubleArray, DoubleArray], hold: BoolArray
) -> BoolArray:
    """Say which pairs are of a whole and a piece of it: several, that cover half of it together.

    What has a partner of its own elsewhere is no piece, and neither is what is as large as the
    whole: then the whole is still there, and the rest stands on its ground.
    """
    large, small = size
    partner = np.full(int(piece.max(initial=-1)) + 1, -1)
    partner[piece[hold]] = whole[hold]
    free = (partner[piece] == -1) | (partner[piece] == whole)
    fits = free & (small >= PIECE_SHARE * large) & (small <= WHOLE_SHARE * large)
    covered = np.bincount(whole, np.where(fits, small, 0.0))
    number = np.bincount(whole, fits)
    out: BoolArray = fits & (number[whole] > 1) & (covered[whole] >= HALF * large)
    return out


def one_to_one(a: IntArray, b: IntArray, value: DoubleArray) -> BoolArray:
    """Choose pairs so that none is used twice: the best of all first, then the best of the rest.

    Parameters
    ----------
    a, b : ndarray
        (p,) rows of either side.
    value : ndarray
        (p,) how good a pair is; 0: none.

    Returns
    -------
    ndarray
        (p,) bool.

    Examples
    --------
    >>> one_to_one(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([0.9, 0.5, 0.8])).tolist()
    [True, False, False]
    """
    chosen = np.zeros(len(a), bool)
    left = np.flatnonzero(value > 0)
    # the row breaks ties, so the order of the tables decides, never that of a sort
    rank = np.empty(len(a), np.int64)
    rank[np.lexsort((b, a, -value))] = np.arange(len(a))
    while len(left):
        best = [np.full(int(side[left].max()) + 1, len(a)) for side in (a, b)]
        for side, lowest in zip((a, b), best, strict=True):
            np.minimum.at(lowest, side[left], rank[left])
        mutual = (best[0][a[left]] == rank[left]) & (best[1][b[left]] == rank[left])
        chosen[left[mutual]] = True
        used = np.isin(a[left], a[left[mutual]]) | np.isin(b[left], b[left[mutual]])
        left = left[~used]
    return chosen


def _near(
    early: GeometryArray,
    late: GeometryArray,
    labels: tuple[IntArray, IntArray],
    slack_m: float,
    paired: tuple[IntArray, IntArray],
) -> tuple[IntArray, IntArray, DoubleArray]:
    """Pair what is left, of a size and hardly apart: small things that a little shift parts."""
    rest = np.setdiff1d(np.arange(len(early)), paired[0]), np.setdiff1d(
        np.arange(len(late)), paired[1]
    )  # fmt: skip
    points = shapely.centroid(early[rest[0]]), shapely.centroid(late[rest[1]])
    a, b = shapely.STRtree(points[1]).query(points[0], predicate="dwithin", distance=slack_m)
    apart = shapely.distance(points[0][a], points[1][b])
    a, b = rest[0][a], rest[1][b]
    area = shapely.area(early)[a], shapely.area(late)[b]
    alike = (labels[0][a] == labels[1][b]) & (np.minimum(*area) >= LIKE_SIZED * np.maximum(*area))
    hold = one_to_one(a, b, np.where(alike, 1.0 / (1.0 + apart), 0.0))
    a, b = a[hold], b[hold]
    common = shapely.area(shapely.intersection(early[a], late[b]))
    iou = common / np.maximum(shapely.area(early)[a] + shapely.area(late)[b] - common, 1e-12)
    return a, b, iou


def _what_became(
    early: ObjectsOfDate,
    late: ObjectsOfDate,
    own: tuple[IntArray, IntArray],
    confirmed: BoolArray,
    how: CompareSettings,
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.object_]]:
    """Name what happened to each thing, and why where that is not plain."""
    things = len(confirmed)
    n_old, n_new = (np.bincount(g, minlength=things) for g in own)
    old, new = (
        np.bincount(g, shapely.area(date.polygons), minlength=things)
        for g, date in zip(own, (early, late), strict=True)
    )
    lengths = [
        np.bincount(g, shapely.length(date.polygons), minlength=things)
        for g, date in zip(own, (early, late), strict=True)
    ]
    chance = SIGMAS * (how.outline_m or 0.0) * (lengths[0] + lengths[1]) / 2
    cut, unseen = _at_the_edge(early, late, own, things, how.edge_m)
    one_date = (n_old == 0) | (n_new == 0)
    # of these the size says nothing
    sized = cut | unseen
    steady = sized | confirmed
    change = np.select(
        [
            one_date & sized,
            n_old == 0,
            n_new == 0,
            (n_old != n_new) & sized,
            n_new > n_old,
            n_old > n_new,
            (new > old * (1 + how.growth)) & (new - old > chance) & ~steady,
            (new * (1 + how.growth) < old) & (old - new > chance) & ~steady,
        ],
        [NOT_COMPARABLE, "appeared", "gone", NOT_COMPARABLE, "split", "merged", "grown", "shrunk"],
        "kept",
    ).astype(object)
    note = np.select(
        [one_date & unseen & (n_old == 0), one_date & unseen, sized, confirmed],
        [
            "not imaged before",
            "not imaged after",
            "cut by the edge of the imagery",
            "confirmed by a weak object",
        ],
        "",
    ).astype(object)
    return change, note


def _at_the_edge(
    early: ObjectsOfDate,
    late: ObjectsOfDate,
    own: tuple[IntArray, IntArray],
    things: int,
    edge_m: float,
) -> tuple[BoolArray, BoolArray]:
    """Say which things an edge of their own imagery cuts, and which the other date has not seen."""
    cut, unseen = np.zeros(things, bool), np.zeros(things, bool)
    for mine, date, other in ((own[0], early, late), (own[1], late, early)):
        cut[mine[date.cut if date.seen is None else ~_inside(date, date.seen, edge_m)]] = True
        if other.seen is not None:
            unseen[mine[~_inside(date, other.seen, edge_m)]] = True
    return cut, unseen


def _inside(date: ObjectsOfDate, seen: BaseGeometry, edge_m: float) -> BoolArray:
    """Say which objects lie wholly on the ground seen, and clear of its end."""
    clear = shapely.buffer(seen, -edge_m, join_style="mitre")
    shapely.prepare(clear)
    # what has no area lies nowhere and cannot be missed
    return np.asarray(shapely.covers(clear, date.polygons) | shapely.is_empty(date.polygons))


def compared(matched: Matched, plane: pyproj.CRS, crs: Any, *, by_class: bool = True) -> Comparison:
    """Return the table of what was matched, in a CRS, and figures of it."""
    rows = [_members(g, len(matched.change)) for g in matched.group]
    columns = _columns(matched, rows)
    if not by_class:
        columns["class_before"] = _first(matched.early.classes, rows[0], "")
    outlines = gpd.GeoSeries(_outlines(matched, rows), crs=plane).to_crs(crs)
    changes = gpd.GeoDataFrame(pd.DataFrame(columns), geometry=outlines.to_numpy(), crs=crs)
    both = np.array([len(o) == len(n) == 1 for o, n in zip(*rows, strict=True)], bool)
    apart = ratio = float("nan")
    if both.any():
        old, new = (
            date.polygons[np.array([m[0] for m, b in zip(side, both, strict=True) if b])]
            for date, side in ((matched.early, rows[0]), (matched.late, rows[1]))
        )
        apart = float(np.median(shapely.distance(shapely.centroid(old), shapely.centroid(new))))
        ratio = float(np.median(shapely.area(new) / np.maximum(shapely.area(old), 1e-9)))
    shift = matched.shift
    return Comparison(
        changes,
        (shift.east_m, shift.north_m),
        shift.matched,
        round(apart, 3),
        round(ratio, 4),
        round(matched.outline_m, 3),
        _notes(matched, ratio),
    )


def _notes(matched: Matched, ratio: float) -> tuple[str, ...]:
    """Say what stands between the figures and the truth."""
    notes = []
    if matched.shift.why:
        notes.append(f"no common shift: {matched.shift.why}; the dates are compared as they lie")
    if matched.early.seen is None or matched.late.seen is None:
        notes.append(
            "it is not known what was imaged at both dates: what one date shows outside the "
            "other's imagery counts as change"
        )
    if np.isfinite(ratio) and abs(ratio - 1) > 0.05:
        notes.append(
            f"outlines of the second date are {abs(ratio - 1):.0%} "
            f"{'larger' if ratio > 1 else 'smaller'} in the median: more likely drawn differently "
            "than built, so trust grown and shrunk less"
        )
    return tuple(notes)


def _members(group: IntArray, things: int) -> list[IntArray]:
    """Return the rows of each thing, in their order."""
    order = np.argsort(group, kind="stable")
    order = order[group[order] >= 0]
    ends = np.searchsorted(group[order], np.arange(1, things))
    return np.split(order, ends) if things else []


def _columns(matched: Matched, rows: list[list[IntArray]]) -> dict[str, Any]:
    early, late = matched.early, matched.late
    old, new = (
        [",".join(sorted(date.uids[m].tolist())) for m in side]
        for date, side in ((early, rows[0]), (late, rows[1]))
    )
    columns: dict[str, Any] = {
        "change": matched.change,
        "thing_id": thing_ids(matched, rows),
        "before": old,
        "after": new,
    }
    if any(map(bool, [*early.classes, *late.classes])):
        later = _first(late.classes, rows[1], None)
        columns["class"] = np.where(later == None, _first(early.classes, rows[0], ""), later)  # noqa: E711
    for name, date, group in (
        ("before", early, matched.group[0]), ("after", late, matched.group[1])
    ):  # fmt: skip
        inside = group >= 0
        sums = np.bincount(
            group[inside], shapely.area(date.polygons)[inside], minlength=len(matched.change)
        )
        columns[f"area_{name}_m2"] = sums.round(2)
        if len(date) and not np.isnan(date.scores).all():
            best = np.full(len(matched.change), np.nan)
            np.fmax.at(best, group[inside], date.scores[inside])
            columns[f"score_{name}"] = best.round(4)
    columns["iou"] = matched.iou.round(4)
    columns["note"] = matched.note
    return columns


def thing_ids(matched: Matched, rows: list[list[IntArray]]) -> list[str]:
    """Return the lasting name of each thing: the uid of its largest object of the first date."""
    taken = set(matched.early.uids.tolist())
    names = []
    for old, new in zip(*rows, strict=True):
        date, mine = (matched.early, old) if len(old) else (matched.late, new)
        row = mine[0] if len(mine) == 1 else mine[np.argmax(shapely.area(date.polygons[mine]))]
        name = str(date.uids[row])
        while not len(old) and name in taken:
            # two dates may name different things alike
            name += "@2"
        taken.add(name)
        names.append(name)
    return names


def _first(
    values: npt.NDArray[np.object_], rows: Iterable[IntArray], otherwise: Any
) -> npt.NDArray[np.object_]:
    """Return the value of each thing's first object."""
    return np.array([*(values[m[0]] if len(m) else otherwise for m in rows), None], object)[:-1]


def _outlines(matched: Matched, rows: list[list[IntArray]]) -> GeometryArray:
    """Return the later outline of each thing where there is one, else the earlier."""
    outlines = np.empty(len(matched.change), object)
    for k, (old, new) in enumerate(zip(*rows, strict=True)):
        shown = matched.late.polygons[new] if len(new) else matched.early.polygons[old]
        outlines[k] = shown[0] if len(shown) == 1 else shapely.union_all(shown)
    return outlines
