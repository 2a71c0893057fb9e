"""What a report tells of objects that come as a stream: histograms, and the ones worth a look."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from geoseg.records import IntArray

SCORE_BINS = 50
AREA_STEPS = 8
"""Bins of area in a factor of ten."""
AREA_LOW, AREA_HIGH = -2, 8
"""Powers of ten, m2, between which areas are counted; beyond goes to the last bins."""
EXAMPLES = 6
EXAMPLE_KINDS = {
    "unsure": "Lowest scores",
    "sure": "Highest scores",
    "large": "Largest",
    "joined": "Joined across tiles",
}


@dataclass
class ClassFigures:
    """Sums over the objects of one class."""

    n: int = 0
    area_m2: float = 0.0
    score: float = 0.0
    scores: IntArray = field(default_factory=lambda: np.zeros(SCORE_BINS, np.int64))
    areas: IntArray = field(
        default_factory=lambda: np.zeros((AREA_HIGH - AREA_LOW) * AREA_STEPS, np.int64)
    )

    def median_area_m2(self) -> float | None:
        """Return the median, to the width of a bin; None without objects."""
        return quantile_area(self.areas, 0.5)


class Statistics:
    """Takes objects a table at a time; holds a few numbers and a few objects."""

    def __init__(self) -> None:
        self.classes: dict[str, ClassFigures] = {}
        self.n_objects = 0
        self.joined = 0
        self.at_edge = 0
        self._examples: dict[str, gpd.GeoDataFrame] = {}

    def add(self, table: gpd.GeoDataFrame) -> None:
        """Add some more objects."""
        self.n_objects += len(table)
        self.joined += int((table["n_parts"] > 1).sum())
        self.at_edge += int(table["touches_edge"].sum())
        codes, names = pd.factorize(table["class"].astype(str), sort=True)
        scores = table["score"].to_numpy(np.float64)
        areas = table["area_m2"].to_numpy(np.float64)
        for code, name in enumerate(names):
            mine = codes == code
            figures = self.classes.setdefault(str(name), ClassFigures())
            figures.n += int(mine.sum())
            figures.area_m2 += float(areas[mine].sum())
            figures.score += float(scores[mine].sum())
            figures.scores += _binned(scores[mine] * SCORE_BINS, SCORE_BINS)
            figures.areas += _binned(area_place(areas[mine]), len(figures.areas))
        self._keep(table)

    def _keep(self, table: gpd.GeoDataFrame) -> None:
        """Keep the first few of each kind of example."""
        wanted = {
            "unsure": (table, ["score", "object_id"], [True, True]),
            "sure": (table, ["score", "object_id"], [False, True]),
            "large": (table, ["area_m2", "object_id"], [False, True]),
            "joined": (table[table["n_parts"] > 1], ["n_parts", "area_m2"], [False, False]),
        }
        for kind, (rows, columns, ascending) in wanted.items():
            both = rows if kind not in self._examples else pd.concat([self._examples[kind], rows])
            best = both.sort_values(columns, ascending=ascending, kind="stable").head(EXAMPLES)
            self._examples[kind] = best

    def examples(self) -> dict[str, gpd.GeoDataFrame]:
        """Return a few objects of each kind, the most telling first."""
        return {kind: self._examples[kind] for kind in EXAMPLE_KINDS if kind in self._examples}

    def ranked(self) -> list[tuple[str, ClassFigures]]:
        """Return the classes, most objects first."""
        return sorted(self.classes.items(), key=lambda item: (-item[1].n, item[0]))


def area_place(areas_m2: np.ndarray) -> np.ndarray:
    """Return where areas lie on the axis of bins."""
    with np.errstate(divide="ignore"):
        place: np.ndarray = (np.log10(np.maximum(areas_m2, 0)) - AREA_LOW) * AREA_STEPS
    return place


def area_edge(place: float) -> float:
    """Return the area at a place on the axis of bins, m2."""
    return float(10 ** (AREA_LOW + place / AREA_STEPS))


def quantile_area(bins: IntArray, share: float) -> float | None:
    """Return the area that a share of the objects stays under, to the width of a bin."""
    total = int(bins.sum())
    if not total:
        return None
    place = int(np.searchsorted(np.cumsum(bins), share * total))
    return area_edge(place + 0.5)


def quantile_score(bins: IntArray, share: float) -> float | None:
    """Return the score that a share of the objects stays under, to the width of a bin."""
    total = int(bins.sum())
    if not total:
        return None
    return (int(np.searchsorted(np.cumsum(bins), share * total)) + 0.5) / SCORE_BINS


def used(bins: IntArray) -> tuple[int, int]:
    """Return the first and the last bin but one that hold something."""
    filled = np.flatnonzero(bins)
    return (0, len(bins)) if not len(filled) else (int(filled[0]), int(filled[-1]) + 1)


def _binned(places: np.ndarray, n: int) -> IntArray:
    """Count places in bins 0..n-1; what is beyond goes to the last ones."""
    known = places[~np.isnan(places)]
    bins = np.clip(np.floor(np.clip(known, 0, n - 1)), 0, n - 1).astype(np.int64)
    return np.bincount(bins, minlength=n).astype(np.int64)


def centre(shape: shapely.Geometry) -> tuple[float, float]:
    """Return the middle of a shape's bounds."""
    left, bottom, right, top = shape.bounds
    if not all(map(math.isfinite, (left, bottom, right, top))):
        return 0.0, 0.0
    return (left + right) / 2, (bottom + top) / 2
