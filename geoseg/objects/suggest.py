"""Which ground to label next: where a detector is unsure, and where its own tiles disagree.

Two signals, both in objects, so that they add up:

* *uncertainty*: how many of the decisions to keep or drop an object are wrong, as the scores
  themselves say;
* *disagreement*: of how many objects two tiles, drawn at random among those that saw the ground
  whole, would tell different things. Each of them looked at the same pixels with other
  surroundings; where they differ one is wrong, and no truth is needed to know that.

Flow: what was found -> `decision_risk`, `tile_disagreement` -> sums on the bins of a `Survey` ->
`Survey.candidates` (squares of two by two bins) -> `choose_squares`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from geoseg.errors import ConfigError
from geoseg.objects.stitch import tile_trials
from geoseg.records import (
    BoolArray,
    DoubleArray,
    Fragments,
    GeometryArray,
    IntArray,
    Objects,
    Tile,
)

TRUST_PX, TRUST_SHARE = 32.0, 0.125
"""Nearer to its edge than this, or than this share of its side, a tile misses things for want of
surroundings: no labels cure that."""

LEAST_USABLE = 0.5
"""A square of which less, as far as it lies on the image, can be labelled is none."""

CROWDING = 1.5
"""Squares within this many sides of a chosen one lose value: the nearer, the more."""

LIKENESS = 0.5
"""Share of its value that a square loses if its ground is just like that of a chosen one."""

FEATURES = ("density", "size", "covered", "first", "second", "third", "contrast")
"""What makes kinds of ground: objects, and colour."""

_COUNTED = ("valid", "n", "area", "uncertainty", "disagreement", "grey", "grey2")
_SUMS = (*_COUNTED, *FEATURES[3:6])


def decision_risk(
    scores: npt.NDArray[np.floating], threshold: float | npt.NDArray[np.floating]
) -> DoubleArray:
    """Return how likely it is that keeping or dropping each object at the threshold is wrong.

    Scores of networks are no probabilities. All that is asked of them here is that an object at
    the threshold is as likely true as false, and that the rest follows in order: the score is
    stretched so that the threshold becomes 0.5, and the risk is the share of the losing side.

    Parameters
    ----------
    scores : ndarray
        (n,) in [0, 1].
    threshold : float
        In [0, 1].

    Returns
    -------
    ndarray
        (n,) 0.5 at the threshold, 0 at scores 0 and 1.

    Examples
    --------
    >>> decision_risk(np.array([0.0, 0.35, 0.7, 0.85, 1.0]), 0.7).round(3).tolist()
    [0.0, 0.25, 0.5, 0.25, 0.0]
    """
    values = np.asarray(scores, np.float64)
    low = np.divide(values, 2 * threshold, where=values < threshold, out=np.zeros_like(values))
    high = np.divide(
        1 - values, 2 * (1 - threshold), where=values > threshold, out=np.full_like(values, 0.5)
    )
    return np.where(values < threshold, low, high)


def tile_disagreement(
    fragments: Fragments, tiles: Sequence[Tile], *, trust_px: float | None = None
) -> DoubleArray:
    """Return each fragment's share of what tiles disagree about, in objects.

    Of one object that k tiles saw whole and m of them show, alike and with score 1, the shares add
    up to m (k - m) / (k (k - 1)): how likely two of the tiles, drawn at random, differ. Scores
    weigh: a pair of tiles that show it with scores s > t and an IoU of u counts s - t u.

    Parameters
    ----------
    fragments, tiles
        As for `geoseg.objects.stitch.stitch_counted`: all tiles that were looked at, also those
        that show nothing.
    trust_px : float, optional
        Tiles to whose edge the object lies nearer than this are not asked; by default `TRUST_PX`
        or `TRUST_SHARE` of the smallest tile.

    Returns
    -------
    ndarray
        (n,) from 0; 0 for fragments that no other tile saw whole.
    """
    trials = tile_trials(fragments, tiles)
    if trust_px is None:
        side = min((min(t.window.width, t.window.height) for t in tiles), default=0)
        trust_px = min(TRUST_PX, TRUST_SHARE * side)
    asked = trials.distance >= trust_px
    rows, partners, iou = trials.rows[asked], trials.partners[asked], trials.iou[asked]
    scores = fragments.scores.astype(np.float64)
    theirs = np.where(partners >= 0, scores[partners], 0.0) if len(scores) else scores
    ours = scores[rows]
    differ = np.maximum(ours, theirs) - np.minimum(ours, theirs) * iou
    n = np.bincount(rows, minlength=len(fragments))
    total = np.bincount(rows, differ, minlength=len(fragments))
    # the mean over the tiles asked, times this tile's share of all that saw it
    return total / np.maximum(n, 1) / (n + 1)


@dataclass(slots=True, eq=False)
class Survey:
    """Sums over bins of one image; squares are two by two bins, each half a square from the next.

    Bins are ``half_px`` a side, from the image's top left corner; the last ones are cut by its
    edges.
    """

    height: int
    """Rows of the working grid, px."""
    width: int
    """Columns of the working grid, px."""
    half_px: int
    """Side of a bin, px."""
    sums: dict[str, DoubleArray]
    """Name to (rows, cols) sums."""

    @classmethod
    def lay(cls, height: int, width: int, side_px: int) -> Survey:
        """Lay bins for squares of that side over an image.

        Raises
        ------
        ConfigError
            If the side is below 4 px.
        """
        side = min(side_px, height, width)
        if side_px < 4 or side < 2:
            raise ConfigError(
                f"squares of {side_px} px cannot be laid over {width} x {height} px; give a larger "
                "--tile-m"
            )
        half = -(-side // 2)
        return cls(height, width, half, {})

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of bins."""
        return -(-self.height // self.half_px), -(-self.width // self.half_px)

    def _into(self, name: str) -> DoubleArray:
        return self.sums.setdefault(name, np.zeros(self.shape))

    def add_points(self, points: DoubleArray, **values: npt.ArrayLike) -> None:
        """Add values of places (n, 2), x and y in px, to the bins in which they lie."""
        rows, cols = self.shape
        col = np.clip(points[:, 0] // self.half_px, 0, cols - 1).astype(np.int64)
        row = np.clip(points[:, 1] // self.half_px, 0, rows - 1).astype(np.int64)
        for name, value in values.items():
            np.add.at(self._into(name), (row, col), np.asarray(value, np.float64))

    def add_pixels(
        self, pixels: npt.NDArray[np.number], valid: BoolArray, top: int, left: int
    ) -> None:
        """Add the colours of a block (C, h, w) of which (top, left) is the first px; once each."""
        if not valid.any():
            return
        h, w = valid.shape
        row, col = (top + np.arange(h)) // self.half_px, (left + np.arange(w)) // self.half_px
        r0, c0 = np.unique(row, return_index=True)[1], np.unique(col, return_index=True)[1]
        place = np.ix_(row[r0], col[c0])

        def add(name: str, values: npt.ArrayLike) -> None:
            lines = np.add.reduceat(np.asarray(values, np.float64), r0, axis=0)
            self._into(name)[place] += np.add.reduceat(lines, c0, axis=1)

        add("valid", valid)
        # of many bands the first three; of one band that one, thrice
        picks = [min(i, len(pixels) - 1) for i in range(3)]
        bands = [np.where(valid, pixels[i], 0).astype(np.float64) for i in picks]
        for name, band in zip(FEATURES[3:6], bands, strict=True):
            add(name, band)
        grey = np.mean(bands, axis=0)
        add("grey", grey)
        add("grey2", grey * grey)

    def candidates(self, free: shapely.Geometry | None = None) -> Candidates:
        """Return the squares that can be labelled, row by row.

        Parameters
        ----------
        free : geometry, optional
            Ground that may be labelled, px; None: all that is imaged.
        """
        two = {name: _two_by_two(values) for name, values in self.sums.items()}
        shape = _two_by_two(np.zeros(self.shape)).shape
        index = np.argwhere(np.ones(shape, bool))
        corner = (index[:, ::-1] * self.half_px).astype(np.float64)
        bounds = np.concatenate([corner, corner + 2 * self.half_px], axis=1)
        edge = np.array([self.width, self.height], np.float64)
        bounds[:, 2:] = np.minimum(bounds[:, 2:], edge)
        columns = {name: two.get(name, np.zeros(shape)).reshape(-1) for name in _SUMS}
        # at the image's edge a square is cut, but never below half a side
        usable = columns["valid"] / (bounds[:, 2:] - bounds[:, :2]).prod(axis=1)
        polygons = shapely.box(*bounds.T)
        if free is not None:
            shapely.prepare(free)
            whole = shapely.area(polygons)
            polygons = shapely.intersection(polygons, free)
            usable = usable * np.divide(
                shapely.area(polygons), whole, where=whole > 0, out=np.zeros(len(whole))
            )
        keep = np.flatnonzero(usable >= LEAST_USABLE)
        columns = {name: values[keep] for name, values in columns.items()}
        return Candidates(
            index=index[keep],
            bounds=bounds[keep],
            polygons=np.asarray(polygons, object)[keep],
            n_objects=columns["n"].round().astype(np.int64),
            uncertainty=columns["uncertainty"],
            disagreement=columns["disagreement"],
            features=_features(columns),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Squares of one image that can be labelled; all columns share the length n."""

    index: IntArray
    """(n, 2) row and column in steps of half a square."""
    bounds: DoubleArray
    """(n, 4) x0, y0, x1, y1, px."""
    polygons: GeometryArray
    """(n,) what of the square may be labelled, px."""
    n_objects: IntArray
    """(n,) objects at or above the threshold."""
    uncertainty: DoubleArray
    """(n,) expected number of wrong decisions, in objects."""
    disagreement: DoubleArray
    """(n,) objects of which two tiles would tell different things."""
    features: DoubleArray
    """(n, len(FEATURES)) what the ground is like."""

    def __len__(self) -> int:
        return len(self.index)


def _two_by_two(values: DoubleArray) -> DoubleArray:
    """Return the sums of two by two neighbours; of one row or column that one."""
    for axis in (0, 1):
        if values.shape[axis] > 1:
            first, second = (
                np.take(values, np.arange(start, values.shape[axis] - 1 + start), axis)
                for start in (0, 1)
            )
            values = first + second
    return values


def _features(columns: dict[str, DoubleArray]) -> DoubleArray:
    """Return what makes kinds of ground, on scales on which steps mean alike."""
    valid = np.maximum(columns["valid"], 1)
    grey = columns["grey"] / valid
    n = columns["n"]
    return np.stack(
        [
            np.log1p(n),
            np.log1p(np.divide(columns["area"], n, where=n > 0, out=np.zeros_like(n))),
            columns["area"] / valid,
            *(columns[name] / valid for name in FEATURES[3:6]),
            np.sqrt(np.maximum(columns["grey2"] / valid - grey**2, 0)),
        ],
        axis=1,
    )


def survey_found(
    survey: Survey,
    fragments: Fragments,
    tiles: Sequence[Tile],
    objects: Objects,
    threshold: float,
    *,
    free: shapely.Geometry | None = None,
) -> None:
    """Add what was found in an image to its bins.

    Parameters
    ----------
    survey : Survey
        Of the image; grows.
    fragments, tiles
        All that every tile shows, at a low threshold, and all tiles that were looked at.
    objects : Objects
        What `geoseg.objects.stitch.stitch` makes of them.
    threshold : float
        At which objects are kept in the end.
    free : geometry, optional
        Only what lies in it counts, px.
    """
    disagreement = tile_disagreement(fragments, tiles)
    for polygons, values in (
        (fragments.polygons, {"disagreement": disagreement}),
        (
            objects.polygons,
            {
                "uncertainty": decision_risk(objects.scores, threshold),
                "n": objects.scores >= threshold,
                "area": np.where(objects.scores >= threshold, shapely.area(objects.polygons), 0),
            },
        ),
    ):
        if not len(polygons):
            continue
        points = shapely.get_coordinates(shapely.point_on_surface(polygons))
        inside = np.ones(len(points), bool)
        if free is not None:
            inside = shapely.contains_xy(free, points)
        survey.add_points(points[inside], **{k: v[inside] for k, v in values.items()})


def values_of(candidates: Sequence[Candidates]) -> list[DoubleArray]:
    """Return the value of labelling each square, images together.

    Uncertainty and disagreement, each in units of its mean over all squares, in equal parts: a
    square of value 1 is like the average one, of value 5 five times as telling.
    """
    total = [np.zeros(len(c)) for c in candidates]
    for name in ("uncertainty", "disagreement"):
        columns = [getattr(c, name) for c in candidates]
        mean = np.concatenate([*columns, np.zeros(0)]).sum() / max(sum(map(len, columns)), 1)
        if mean > 0:
            total = [t + column / (2 * mean) for t, column in zip(total, columns, strict=True)]
    # digits that summation in another order would change decide nothing
    return [t.round(6) for t in total]


def choose_squares(
    candidates: Sequence[Candidates],
    values: Sequence[DoubleArray],
    places: Sequence[DoubleArray],
    side: float,
    n: int,
) -> list[tuple[int, int]]:
    """Choose squares one by one: most valuable first, apart from those chosen and unlike them.

    A square that overlaps a chosen one is out. The value of the others falls with nearness to the
    nearest chosen one, by half beside it and not at all from `CROWDING` sides on, and with likeness
    to the likest, by up to `LIKENESS`: n squares of one block of houses teach less than n kinds of
    ground.

    Parameters
    ----------
    candidates : sequence of Candidates
        One per image.
    values : sequence of ndarray
        One per image, (n,), as `values_of` gives.
    places : sequence of ndarray
        One per image, (n, 2) centres of the squares, on one plane for all images.
    side : float
        Of a square, in the units of the places.
    n : int
        At most so many.

    Returns
    -------
    list of (int, int)
        Image and row in its candidates, best first; ties go to the first image, then row.
    """
    image = np.concatenate(
        [np.full(len(c), i) for i, c in enumerate(candidates)] or [np.zeros(0, int)]
    )
    if not len(image):
        return []
    row = np.concatenate([np.arange(len(c)) for c in candidates])
    index = np.concatenate([c.index for c in candidates])
    where = np.concatenate(places)
    kind = _standard(np.concatenate([c.features for c in candidates]))
    # a square in which nothing was found is worth a little: something must be first
    value = np.concatenate(values) + 1e-6
    left = np.ones(len(image), bool)
    room, alike = np.ones(len(image)), np.zeros(len(image))
    chosen: list[tuple[int, int]] = []
    while left.any() and len(chosen) < n:
        best = int(np.argmax(np.where(left, value * room * (1 - LIKENESS * alike), -1.0)))
        chosen.append((int(image[best]), int(row[best])))
        apart = np.hypot(*(where - where[best]).T) / side
        same = image == image[best]
        overlap = np.where(same, (np.abs(index - index[best]) < 2).all(axis=1), apart < 1)
        left &= ~overlap
        room = np.minimum(room, np.clip((apart - 0.5) / (CROWDING - 0.5), 0, 1))
        alike = np.maximum(alike, np.exp(-0.5 * ((kind - kind[best]) ** 2).mean(axis=1)))
    return chosen


def _standard(features: DoubleArray) -> DoubleArray:
    """Return features with a spread of 1 each, judged by their middle half, not by outliers."""
    low, middle, high = np.percentile(features, [25, 50, 75], axis=0)
    spread = np.where(high > low, (high - low) / 1.349, features.std(axis=0))
    return np.asarray((features - middle) / np.where(spread > 0, spread, 1.0))
