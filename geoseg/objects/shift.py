"""By how much the objects of one date lie off those of another.

Two orthophotos of one place never lie exactly on each other. Pairs of like-sized objects vote for
the difference of their centres: those that show one thing agree, all others are spread out::

    votes of pairs          true pairs pile up       nothing in common: no pile
    . .  .   .  .           . .  .   .  .            . .  .   .  .
     .  .  . .   .    ->     .  .  . .   .             .  .  . .   .
    .   .  ::  .            .   .  [::] .            .   .   .  .
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from scipy.ndimage import uniform_filter

from geoseg.records import DoubleArray, GeometryArray, IntArray

CELL_M = 0.5
"""Side of the cells in which votes are gathered first, metres."""

LIKE_SIZED = 0.7
"""A pair may vote if the smaller has this share of the larger one's area."""

ENOUGH_PAIRS = 5
"""Fewer pairs that agree say nothing."""

ENOUGH_SHARE = 0.1
"""Of the objects that have a partner to vote with, this share must agree."""

SIGMAS = 6.0
"""How far the winner must stand out of what chance gives, in standard deviations."""


@dataclass(frozen=True, slots=True)
class CommonShift:
    """What a whole date lies off another one."""

    east_m: float
    north_m: float
    matched: int
    """Pairs that agree on it; 0 where no shift was found."""
    why: str
    """Why no shift was found; empty if it was, or was not looked for."""

    @property
    def xy(self) -> DoubleArray:
        """Return east and north, (2,) metres."""
        return np.array([self.east_m, self.north_m])


def common_shift(
    early: GeometryArray,
    late: GeometryArray,
    labels: tuple[IntArray, IntArray],
    tolerance_m: float,
) -> CommonShift:
    """Estimate by how much the later outlines lie off the earlier ones.

    Parameters
    ----------
    early, late : ndarray
        (n,) and (m,) polygons, metres.
    labels : tuple of ndarray
        (n,) and (m,) class of each; pairs are of one class.
    tolerance_m : float
        Largest shift along each axis; 0: none is looked for.

    Returns
    -------
    CommonShift
        Zero, with the reason, where too few pairs agree or their agreement may be chance.
    """
    if tolerance_m == 0:
        return CommonShift(0.0, 0.0, 0, "")
    a, b, votes = _votes(early, late, labels, tolerance_m)
    if len(votes) == 0:
        return CommonShift(
            0.0, 0.0, 0, f"no two objects of like size lie within {tolerance_m:g} m of each other"
        )
    shift = _mode(votes, tolerance_m)
    near = (np.abs(votes - shift) <= 1.5 * CELL_M).all(axis=1)
    agree = int(np.count_nonzero(near))
    by_chance = len(votes) * min(1.0, (1.5 * CELL_M / tolerance_m) ** 2)
    possible = min(len(np.unique(a)), len(np.unique(b)))
    wanted = max(
        ENOUGH_PAIRS, by_chance + SIGMAS * np.sqrt(by_chance), ENOUGH_SHARE * possible
    )  # fmt: skip
    # where the window of one vote is all there is, nothing can stand out
    if agree < wanted and not (agree >= ENOUGH_PAIRS and agree >= 0.5 * possible):
        return CommonShift(
            0.0,
            0.0,
            0,
            f"only {agree} pair(s) agree on one where chance and likeness ask for "
            f"{int(np.ceil(wanted))}: the dates have too little in common",
        )
    return CommonShift(round(float(shift[0]), 3), round(float(shift[1]), 3), agree, "")


def _votes(
    early: GeometryArray,
    late: GeometryArray,
    labels: tuple[IntArray, IntArray],
    tolerance_m: float,
) -> tuple[IntArray, IntArray, DoubleArray]:
    """Return the rows of like-sized pairs within reach, and the difference of their centres."""
    if len(early) == 0 or len(late) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2))
    points = [np.asarray(shapely.centroid(p)) for p in (early, late)]
    a, b = shapely.STRtree(points[1]).query(
        points[0], predicate="dwithin", distance=tolerance_m * np.sqrt(2)
    )
    area = shapely.area(early)[a], shapely.area(late)[b]
    alike = (labels[0][a] == labels[1][b]) & (np.minimum(*area) > LIKE_SIZED * np.maximum(*area))
    a, b = a[alike], b[alike]
    votes = shapely.get_coordinates(points[1][b]) - shapely.get_coordinates(points[0][a])
    within = (np.abs(votes) <= tolerance_m).all(axis=1)
    return a[within], b[within], votes[within]


def _mode(votes: DoubleArray, tolerance_m: float) -> DoubleArray:
    """Return where votes lie densest: a coarse raster's peak, refined by medians around it."""
    n = int(np.ceil(tolerance_m / CELL_M))
    edges = (np.arange(-n, n + 2) - 0.5) * CELL_M
    raster = np.histogram2d(votes[:, 0], votes[:, 1], bins=(edges, edges))[0]
    around = uniform_filter(raster, 3, mode="constant")
    peak = np.array(np.unravel_index(np.argmax(around), around.shape))
    shift = np.asarray((peak - n) * CELL_M, np.float64)
    for _ in range(10):
        near = (np.abs(votes - shift) <= 1.5 * CELL_M).all(axis=1)
        better = np.asarray(np.median(votes[near], axis=0) if near.any() else shift)
        if np.allclose(better, shift, atol=1e-6):
            break
        shift = better
    return shift
