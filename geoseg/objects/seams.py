"""What a run tells about its own seams: where a tile can be trusted, and if the overlap is enough.

Where windows overlap, two tiles looked at the same ground. What one of them shows well inside its
window, the other should show too; how often it does, by the distance to *its* edge, is measured in
every run, without truth::

    tile A |------------------[ f ]---------|        f lies deep in A: a trial for B
                 tile B    |--[ ? ]----------------|    a hit if B shows it too
                           |<>| distance to B's edge: the trial's bin

Flow: `SeamCounts` from each part of a run -> added up -> `seam_report`. Counts are whole numbers,
so that the sum does not depend on order or parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from geoseg.errors import ConfigError
from geoseg.records import BoolArray, DoubleArray, GeometryArray, IntArray

DISTANCE_BINS = (0, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Where the bins of distance to a tile's edge start, px; the last one is open."""

SIZE_STEPS_PER_OCTAVE = 4
SIZE_BINS = tuple(4 * 2 ** (k / SIZE_STEPS_PER_OCTAVE) for k in range(12 * 4 + 1))
"""Edges of the bins of an object's longer side, 4 to 16,384 px; below and above is counted too."""

DUPLICATE_SHARE = 0.5
"""An object of which another one of its class covers this share is a duplicate."""

ENOUGH_TRIALS = 100
"""Fewer say nothing: at 90 % agreement, 100 trials are right to 6 percentage points."""

FEW_TRIALS = 20
"""A single bin with as many can show a marked dip."""

EDGE_PX = 16
"""There must be enough trials nearer to the edge than this: a dip there would not show else."""

DEEP_QUARTER = 0.25
"""Share of all trials, those farthest from the edge, whose agreement is the deep one."""

TOLERANCE = 0.02
"""Agreement this far below the deep one still counts as trusted."""

QUANTILE = 0.99
OVERLAP_STEP_PX = 16
_Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class SeamCounts:
    """What stitching counted; records of parts add up to the record of the whole.

    Raises
    ------
    ConfigError
        If a tuple has not one entry per bin.

    Examples
    --------
    >>> one = SeamCounts(fragments=3, objects=2)
    >>> (one + one).fragments
    6
    >>> SeamCounts.from_dict(one.to_dict()) == one
    True
    """

    fragments: int = 0
    """Detections that were stitched."""
    objects: int = 0
    """Objects they became."""
    joined: int = 0
    """Objects that no tile showed whole: unions of parts."""
    incomplete: int = 0
    """Objects cut by a window edge that nothing continues."""
    trials: tuple[int, ...] = (0,) * len(DISTANCE_BINS)
    """Per distance to a tile's edge (`DISTANCE_BINS`): what another tile shows there."""
    hits: tuple[int, ...] = (0,) * len(DISTANCE_BINS)
    """Those that the tile shows too."""
    sizes: tuple[int, ...] = (0,) * (len(SIZE_BINS) + 1)
    """Objects by longer side: below `SIZE_BINS`' first edge, between its edges, from the last."""
    band_objects: int = 0
    """Final objects where two or more tiles looked; see `count_duplicates`."""
    band_duplicates: int = 0
    """Of these, duplicates of another object."""
    interior_objects: int = 0
    """Final objects where one tile looked."""
    interior_duplicates: int = 0
    """Of these, duplicates of another object."""

    def __post_init__(self) -> None:
        for name, length in _LENGTHS.items():
            if len(getattr(self, name)) != length:
                raise ConfigError(
                    f"SeamCounts.{name} has {len(getattr(self, name))} entries; expected {length}: "
                    "it was written by another version of geoseg, count again"
                )

    def __add__(self, other: SeamCounts) -> SeamCounts:
        values: list[Any] = []
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, tuple):
                values.append(tuple(a + b for a, b in zip(mine, theirs, strict=True)))
            else:
                values.append(mine + theirs)
        return SeamCounts(*values)

    @classmethod
    def empty(cls) -> SeamCounts:
        """Return the counts of nothing: what a sum starts with."""
        return cls()

    @classmethod
    def total(cls, parts: Sequence[SeamCounts]) -> SeamCounts:
        """Add up the counts of parts."""
        return sum(parts, start=cls.empty())

    def to_dict(self) -> dict[str, int | list[int]]:
        """Return the counts, ready for JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SeamCounts:
        """Read what `to_dict` gave, also after a trip through JSON.

        Raises
        ------
        ConfigError
            If a name is unknown, a value is no count, or a list has not one entry per bin.
        """
        unknown = sorted(set(values) - set(cls.__slots__))
        if unknown:
            raise ConfigError(
                f"seam counts hold {', '.join(map(repr, unknown))}; expected some of "
                f"{', '.join(cls.__slots__)}: count again with this version"
            )
        checked: dict[str, Any] = {}
        for name, value in values.items():
            entries = value if name in _LENGTHS else [value]
            if not isinstance(entries, list | tuple) or not all(map(_is_count, entries)):
                raise ConfigError(f"seam counts: {name} is {value!r}; expected counts, from 0")
            checked[name] = tuple(entries) if name in _LENGTHS else value
        return cls(**checked)


_LENGTHS = {
    "trials": len(DISTANCE_BINS),
    "hits": len(DISTANCE_BINS),
    "sizes": len(SIZE_BINS) + 1,
}
"""Entries of the columns that have one per bin."""


def _is_count(value: Any) -> bool:
    """Say whether a value is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def bin_distances(distances: DoubleArray) -> tuple[int, ...]:
    """Count distances to a tile's edge, px, from 0, in `DISTANCE_BINS`; inf goes to the last."""
    place = np.searchsorted(DISTANCE_BINS, distances, side="right") - 1
    counts = np.bincount(np.maximum(place, 0), minlength=len(DISTANCE_BINS))
    return tuple(counts.tolist())


def bin_sizes(bounds: DoubleArray) -> tuple[int, ...]:
    """Count objects by the longer side of their bounds (n, 4), px, in `SIZE_BINS`."""
    longer = (bounds[:, 2:] - bounds[:, :2]).max(axis=1, initial=0)
    place = np.searchsorted(SIZE_BINS, longer, side="right")
    return tuple(np.bincount(place, minlength=len(SIZE_BINS) + 1).tolist())


# -- bands: ground that two or more tiles looked at -------------------------------------------

Spans = npt.ArrayLike
"""(k, 2) start and stop of the windows along one axis, px, half-open."""


def in_bands(points: npt.ArrayLike, row_spans: Spans, col_spans: Spans) -> BoolArray:
    """Say which points lie where two or more windows of a regular grid looked.

    Parameters
    ----------
    points : array-like
        (n, 2) x and y in grid px; see `shapely.point_on_surface` for an object's.
    row_spans, col_spans : array-like
        (k, 2) start and stop, px, half-open, of the windows along each axis. The grid's windows
        are all pairs of a row span and a column span.

    Returns
    -------
    ndarray of bool
        (n,), True = in a band.

    Raises
    ------
    ConfigError
        If an array has another shape.

    Examples
    --------
    >>> spans = [(0, 100), (80, 180)]
    >>> in_bands([(10, 10), (90, 10), (10, 90), (150, 150)], spans, spans).tolist()
    [False, True, True, False]
    """
    xy = _columns(points, "points", "x and y")
    return np.asarray(_looks(xy[:, 1], row_spans) * _looks(xy[:, 0], col_spans) >= 2)


def band_share(row_spans: Spans, col_spans: Spans, height: int, width: int) -> float:
    """Return the share of the raster's ground that two or more windows looked at.

    Parameters
    ----------
    row_spans, col_spans : array-like
        As in `in_bands`.
    height, width : int
        Of the raster, px; at least 1.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ConfigError
        If an array has another shape or the raster is empty.

    Examples
    --------
    >>> band_share([(0, 100)], [(0, 60), (40, 100)], 100, 100)
    0.2
    """
    if min(height, width) < 1:
        raise ConfigError(f"the raster is {height} x {width} px; expected at least 1 px a side")
    (once_r, seen_r), (once_c, seen_c) = (
        _covered(row_spans, height),
        _covered(col_spans, width),
    )
    return (seen_r * seen_c - once_r * once_c) / (height * width)


def _columns(values: npt.ArrayLike, name: str, what: str) -> DoubleArray:
    """Return an (n, 2) array, or say what is wrong with it."""
    array = np.asarray(values, np.float64)
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise ConfigError(f"{name} has shape {array.shape}; expected (n, 2): {what}")
    return array


def _looks(places: DoubleArray, spans: Spans) -> IntArray:
    """Count the spans that hold each place."""
    starts, stops = (np.sort(c) for c in _columns(spans, "spans", "start and stop").T)
    begun = np.searchsorted(starts, places, side="right")
    return np.asarray(begun - np.searchsorted(stops, places, side="right"), np.int64)


def _covered(spans: Spans, length: int) -> tuple[float, float]:
    """Return how much of [0, length) lies in exactly one span, and in at least one."""
    edges = _columns(spans, "spans", "start and stop").ravel()
    cuts = np.unique(np.clip(np.append(edges, (0, length)), 0, length))
    looks, steps = _looks(cuts[:-1], spans), np.diff(cuts)
    return float(steps[looks == 1].sum()), float(steps[looks >= 1].sum())


def count_duplicates(
    polygons: GeometryArray, labels: npt.NDArray[Any], in_band: BoolArray
) -> SeamCounts:
    """Count final objects that another one of their class covers by half, in bands and interiors.

    Parameters
    ----------
    polygons : ndarray of shapely geometries
        (n,) valid, of all objects of one raster, grid px. Pairs across two calls are not seen.
    labels : ndarray
        (n,) class of each, names or numbers.
    in_band : ndarray of bool
        (n,) whether it lies in a band: `in_bands` of its representative point.

    Returns
    -------
    SeamCounts
        With ``band_objects``, ``band_duplicates``, ``interior_objects`` and
        ``interior_duplicates`` alone, to be added to those of `stitch_counted`. In a pair the
        smaller is the duplicate; each object counts once.

    Raises
    ------
    ConfigError
        If the columns differ in length.

    Examples
    --------
    >>> squares = shapely.box([0, 1, 50], [0, 1, 0], [10, 9, 60], [10, 9, 10])
    >>> counts = count_duplicates(squares, np.zeros(3), np.array([True, True, False]))
    >>> counts.band_duplicates, counts.band_objects, counts.interior_duplicates
    (1, 2, 0)
    """
    polygons, labels = np.asarray(polygons, object), np.asarray(labels)
    in_band = np.asarray(in_band, bool)
    if not len(polygons) == len(labels) == len(in_band):
        raise ConfigError(
            f"count_duplicates got {len(polygons)} polygons, {len(labels)} labels and "
            f"{len(in_band)} entries of in_band; all columns must have the same length"
        )
    duplicate = _duplicates(polygons, labels)
    return SeamCounts(
        band_objects=int(np.count_nonzero(in_band)),
        band_duplicates=int(np.count_nonzero(in_band & duplicate)),
        interior_objects=int(np.count_nonzero(~in_band)),
        interior_duplicates=int(np.count_nonzero(~in_band & duplicate)),
    )


def _duplicates(polygons: GeometryArray, labels: npt.NDArray[Any]) -> BoolArray:
    """Mark the objects of which a larger one of their class covers at least half."""
    duplicate = np.zeros(len(polygons), bool)
    a, b = shapely.STRtree(polygons).query(polygons)
    a, b = (side[(a < b) & (labels[a] == labels[b])] for side in (a, b))
    area, bounds = shapely.area(polygons), shapely.bounds(polygons).reshape(-1, 4)
    # of a pair of one size the later is the duplicate
    small = np.where(area[a] < area[b], a, b)
    large = a + b - small
    low = np.maximum(bounds[small, :2], bounds[large, :2])
    high = np.minimum(bounds[small, 2:], bounds[large, 2:])
    # what the boxes share bounds what the polygons share: few pairs are left to intersect
    needed = DUPLICATE_SHARE * area[small]
    open_ = (np.maximum(high - low, 0).prod(axis=1) >= needed) & (needed > 0)
    small, large, needed = small[open_], large[open_], needed[open_]
    common = shapely.area(shapely.intersection(polygons[small], polygons[large]))
    duplicate[small[common >= needed]] = True
    return duplicate


# -- the report -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often a tile shows what another one shows, at some distance from its edge."""

    from_px: int
    """Distance to the tile's edge, from here ..."""
    to_px: int | None
    """... to below here; None: open."""
    trials: int
    """What another tile shows there, well inside its own window."""
    hits: int
    """Those that the tile shows too."""

    @property
    def share(self) -> float | None:
        """Share of the trials that are hits; None without trials."""
        return self.hits / self.trials if self.trials else None

    @property
    def place(self) -> str:
        """The distance in words."""
        return f"{self.from_px}+ px" if self.to_px is None else f"{self.from_px}-{self.to_px} px"

    def joined_with(self, outer: Agreement) -> Agreement:
        """Return this and the next one farther out as one."""
        return Agreement(
            self.from_px, outer.to_px, self.trials + outer.trials, self.hits + outer.hits
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, ready for JSON."""
        return {**{name: getattr(self, name) for name in self.__slots__}, "share": self.share}


@dataclass(frozen=True, slots=True)
class SeamReport:
    """What the counts say; None wherever they are too few to say anything."""

    overlap_px: int
    """Pixels that neighbouring windows share."""
    band_share: float
    """Share of the ground that two or more tiles looked at."""
    fragments: int
    objects: int
    agreement: tuple[Agreement, ...]
    """By distance to the tile's edge, nearest first; bins without trials left out."""
    trials: int
    """In all."""
    near: Agreement | None
    """Next to the edge: the nearest distances with enough trials."""
    deep: Agreement | None
    """Well inside the band: the farthest quarter of the trials."""
    trusted_margin_px: int | None
    """Smallest distance to its edge from which on a tile can be trusted."""
    margin_is_lower_bound: bool
    """Agreement still rises where the band ends: the margin may be larger."""
    band_objects: int
    """Final objects that were looked for duplicates, in bands ..."""
    interior_objects: int
    """... and in interiors."""
    band_duplicate_rate: float | None
    """Share of the objects in bands that are duplicates."""
    interior_duplicate_rate: float | None
    """Share of the objects in interiors that are duplicates."""
    rates_differ: bool | None
    """Whether the two rates differ by more than chance (z-test with Yates' correction, 95 %)."""
    joined: int
    """Objects cut by every tile that saw them: unions of parts."""
    incomplete: int
    """Objects that end at a window edge which nothing continues."""
    size_px: float | None
    """Longer side that 99 % of the objects stay under."""
    needed_overlap_px: int | None
    """That size and the trusted margin on both sides, rounded up to 16 px."""
    verdict: str
    """A sentence: enough, raise --overlap to N, or too few to say."""

    @property
    def enough(self) -> bool | None:
        """Whether the overlap is as large as the objects need; None: too few to say."""
        if self.needed_overlap_px is None:
            return None
        return self.overlap_px >= self.needed_overlap_px

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["agreement"] = [bin_.to_dict() for bin_ in self.agreement]
        for name in ("near", "deep"):
            values[name] = None if values[name] is None else values[name].to_dict()
        return {**values, "enough": self.enough}

    def lines(self) -> list[str]:
        """Return the report for people, a line each."""
        out = [
            f"overlap {self.overlap_px} px; {_percent(self.band_share)} of the ground seen twice"
        ]
        if self.near is not None and self.deep is not None:
            out.append(
                f"a tile shows {_percent(self.deep.share)} of what its neighbour shows well inside "
                f"the band ({self.deep.place}, {self.deep.trials:,} trials) and "
                f"{_percent(self.near.share)} near its edge ({self.near.place}, "
                f"{self.near.trials:,} trials)"
            )
        elif self.trials:
            hits = sum(bin_.hits for bin_ in self.agreement)
            out.append(
                f"a tile shows {hits:,} of {self.trials:,} objects that its neighbour shows: too "
                "few to tell near from deep"
            )
        else:
            out.append("no object was seen by two tiles: nothing to compare")
        if self.trusted_margin_px is not None:
            bound = " at least" if self.margin_is_lower_bound else ""
            out.append(f"trusted margin:{bound} {self.trusted_margin_px} px from a tile's edge")
        if self.band_objects or self.interior_objects:
            said = {None: "", True: " (more than chance)", False: " (within chance)"}
            chance = said[self.rates_differ]
            out.append(
                f"duplicates: {_percent(self.band_duplicate_rate)} of {self.band_objects:,} "
                f"objects in bands, {_percent(self.interior_duplicate_rate)} of "
                f"{self.interior_objects:,} in interiors{chance}"
            )
        out.append(
            f"of {self.objects:,} objects {self.joined:,} were cut by every tile that saw them and "
            f"joined; {self.incomplete:,} end at a window edge that nothing continues"
        )
        if self.size_px is not None:
            out.append(f"99 % of the objects are under {self.size_px:.0f} px long")
        return [*out, self.verdict]


def seam_report(counts: SeamCounts, *, overlap_px: int, band_share: float) -> SeamReport:
    """Say what the counts of a run tell about its seams.

    *Deep* is the agreement over the farthest bins that hold together a quarter of all trials, at
    least `ENOUGH_TRIALS`. The bins nearer to the edge are joined, from there inwards, into groups
    of at least `ENOUGH_TRIALS` (what is left at the edge joins its neighbour). The *trusted
    margin* is the smallest distance from which on no group's agreement is more than 2 percentage
    points below the deep one, given the number of its trials (upper end of Wilson's 95 % interval).
    Where even the group next to the deep ones fails it is a lower bound.

    Parameters
    ----------
    counts : SeamCounts
        Of a whole run.
    overlap_px : int
        Pixels that neighbouring windows share.
    band_share : float
        See `band_share`.

    Returns
    -------
    SeamReport
        With None, and a sentence that says so, where there are fewer than `ENOUGH_TRIALS` within
        `EDGE_PX` of a tile's edge, or away from it, or fewer objects than that.

    References
    ----------
    Wilson 1927, doi:10.1080/01621459.1927.10502953 (interval of a proportion).
    """
    bins = _agreement(counts)
    groups = _groups(bins)
    margin, bound = _trusted_margin(groups, bins)
    size = _size_under(counts.sizes)
    needed = None
    if margin is not None and size is not None:
        needed = math.ceil((size + 2 * margin) / OVERLAP_STEP_PX) * OVERLAP_STEP_PX
    return SeamReport(
        overlap_px=overlap_px,
        band_share=band_share,
        fragments=counts.fragments,
        objects=counts.objects,
        agreement=tuple(bin_ for bin_ in bins if bin_.trials),
        trials=sum(counts.trials),
        near=groups[0] if groups else None,
        deep=groups[-1] if groups else None,
        trusted_margin_px=margin,
        margin_is_lower_bound=bound,
        band_objects=counts.band_objects,
        interior_objects=counts.interior_objects,
        band_duplicate_rate=_rate(counts.band_duplicates, counts.band_objects),
        interior_duplicate_rate=_rate(counts.interior_duplicates, counts.interior_objects),
        rates_differ=_rates_differ(counts),
        joined=counts.joined,
        incomplete=counts.incomplete,
        size_px=size,
        needed_overlap_px=needed,
        verdict=_verdict(counts, overlap_px, margin, size, needed, bound=bound),
    )


def _agreement(counts: SeamCounts) -> list[Agreement]:
    """Return the bins, nearest first."""
    ends = [*DISTANCE_BINS[1:], None]
    rows = zip(DISTANCE_BINS, ends, counts.trials, counts.hits, strict=True)
    return [Agreement(*row) for row in rows]


def _groups(bins: Sequence[Agreement]) -> list[Agreement]:
    """Join bins, from the farthest inwards, until each has enough trials; [] if too few."""
    if _near_edge(bins) < ENOUGH_TRIALS:
        return []
    left = [bin_ for bin_ in bins if bin_.trials]
    wanted = max(ENOUGH_TRIALS, math.ceil(DEEP_QUARTER * sum(b.trials for b in left)))
    groups: list[Agreement] = []
    while left:
        group = left.pop()
        while group.trials < wanted and left:
            group = left.pop().joined_with(group)
        groups.insert(0, group)
        wanted = ENOUGH_TRIALS
    if len(groups) > 1 and groups[0].trials < ENOUGH_TRIALS:
        groups[:2] = [groups[0].joined_with(groups[1])]
    return groups if len(groups) > 1 else []


def _near_edge(bins: Sequence[Agreement]) -> int:
    """Return the number of trials next to a tile's edge."""
    return sum(bin_.trials for bin_ in bins if bin_.from_px < EDGE_PX)


def _trusted_margin(
    groups: Sequence[Agreement], bins: Sequence[Agreement]
) -> tuple[int | None, bool]:
    """Return the smallest distance from which on all agree, and whether it is a lower bound."""
    if not groups:
        return None, False
    deep, inner = groups[-1], groups[:-1]
    floor = deep.hits / deep.trials - TOLERANCE
    # a group holds many trials, a bin alone is narrow: a short dip must not hide in a wide group
    alone = [b for b in bins if b.trials >= FEW_TRIALS and b.from_px < deep.from_px]
    short = [g.to_px for g in (*inner, *alone) if g.to_px and _upper_bound(g) < floor]
    # trusted as far as there are trials where none falls short
    margin = max(short, default=groups[0].from_px)
    return margin, margin == inner[-1].to_px


def _upper_bound(group: Agreement) -> float:
    """Return the upper end of Wilson's 95 % interval of a group's share."""
    trials, z2 = group.trials, _Z95**2
    share = group.hits / trials
    spread = _Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return (share + z2 / (2 * trials) + spread) / (1 + z2 / trials)


def _size_under(sizes: Sequence[int]) -> float | None:
    """Return the edge that 99 % of the sizes stay under; None if few, or if there is no such."""
    total = sum(sizes)
    if total < ENOUGH_TRIALS:
        return None
    place = int(np.searchsorted(np.cumsum(sizes), QUANTILE * total))
    return SIZE_BINS[place] if place < len(SIZE_BINS) else None


def _rate(part: int, whole: int) -> float | None:
    """Divide; None for nothing of nothing."""
    return part / whole if whole else None


def _rates_differ(counts: SeamCounts) -> bool | None:
    """Say whether duplicates are more common on one side, beyond chance; None if few objects."""
    n, m = counts.band_objects, counts.interior_objects
    if min(n, m) < ENOUGH_TRIALS:
        return None
    both = (counts.band_duplicates + counts.interior_duplicates) / (n + m)
    # less Yates' correction: few duplicates come in whole numbers
    gap = abs(counts.band_duplicates / n - counts.interior_duplicates / m) - (1 / n + 1 / m) / 2
    return gap > _Z95 * math.sqrt(both * (1 - both) * (1 / n + 1 / m))


def _percent(share: float | None) -> str:
    """Return a share for people."""
    return "-" if share is None else f"{100 * share:.1f} %"


def _verdict(
    counts: SeamCounts,
    overlap_px: int,
    margin: int | None,
    size: float | None,
    needed: int | None,
    *,
    bound: bool,
) -> str:
    """Return the sentence that says whether the overlap is enough."""
    if needed is not None:
        need = (
            f"{size:.0f} px (99 % of the objects are shorter) and {margin} px of margin on both "
            f"sides need {'at least ' if bound else ''}{needed} px"
        )
        if needed <= overlap_px:
            return f"--overlap {overlap_px} is {'not too small' if bound else 'enough'}: {need}"
        return (
            f"raise --overlap from {overlap_px} to {needed}: {need}; now {counts.joined:,} of "
            f"{counts.objects:,} objects were seen whole by no tile, and joined"
        )
    if sum(counts.sizes) < ENOUGH_TRIALS:
        few = f"{sum(counts.sizes):,} objects, at least {ENOUGH_TRIALS} are needed"
    elif size is None:
        return f"the overlap cannot be judged: over 1 % of objects exceed {SIZE_BINS[-1]:,.0f} px"
    else:
        few = (
            f"{sum(counts.trials):,} objects seen by two tiles, {_near_edge(_agreement(counts)):,} "
            f"of them within {EDGE_PX} px of a tile's edge; at least {ENOUGH_TRIALS} are needed "
            "there, and as many away from it"
        )
    return f"too few to say whether --overlap {overlap_px} is enough: {few}"
