"""Choose by labelled areas: score thresholds, the smallest object; and prove what was chosen.

One jagged peak of a curve is chance: some areas more, and it stands elsewhere. What is chosen here
is the middle of a flat stretch, and how sure a figure is comes with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from scipy.special import stdtrit

from geoseg.errors import ConfigError
from geoseg.objects.calibrate import fit_calibration
from geoseg.objects.count import polygonal
from geoseg.objects.evaluate import Evaluation, kept_rows, local_crs, share_of
from geoseg.objects.expected import Z_90, Calibration, interval_90
from geoseg.records import BoolArray, DoubleArray, IntArray

FLAT = 0.005
"""F1 that is no difference: thresholds this close to the best are as good."""
_WORTH = 0.005
"""F1 that leaving small objects out must bring."""
_DRAWS = 4_000
_LEAST_A_CELL = 20
"""True things that a part of an area should hold, so that its count says something."""
_MOST_CELLS = 25
_MOST_SPREAD = 9.0
KINDS = ("f1", "count", "precision")


@dataclass(frozen=True, slots=True)
class Goal:
    """What a threshold is chosen for."""

    kind: str = "f1"
    """'f1': the best F1; 'count': no more objects than true ones, and no fewer; 'precision': the
    highest recall that comes with it."""
    precision: float = 0.0
    """The wanted one, in (0, 1]; for that kind only."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"goal is '{self.kind}'; expected one of {', '.join(KINDS)}")
        if self.kind == "precision" and not 0 < self.precision <= 1:
            raise ConfigError(f"precision is {self.precision}; expected above 0, to 1")

    def __str__(self) -> str:
        if self.kind == "precision":
            return f"highest recall with a precision of {self.precision:g}"
        return {"f1": "best F1", "count": "unbiased count"}[self.kind]


def tally(evaluations: Sequence[Evaluation], kind: str = "") -> dict[str, Any]:
    """Return the figures of one class over several areas.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        One per area; made by class where ``kind`` is one.
    kind : str
        The class; '' where classes were not compared.

    Returns
    -------
    dict
        ``n_objects``, ``n_truth``, ``tp``, ``precision``, ``recall``, ``f1``, ``count_error``; NaN
        where undefined.
    """
    n_objects = n_truth = tp = 0
    for e in evaluations:
        rows = kept_rows(e.ranking, e.min_score)
        rows = rows[rows["class"] == kind]
        n_objects, tp = n_objects + len(rows), tp + int(rows["hit"].sum())
        n_truth += int((e.truth["class"] == kind).sum())
    return figures_of(n_objects, n_truth, tp)


def figures_of(n_objects: int, n_truth: int, tp: int) -> dict[str, Any]:
    """Return counts and the ratios made of them; NaN where undefined."""
    return {
        "n_objects": n_objects,
        "n_truth": n_truth,
        "tp": tp,
        "precision": share_of(tp, n_objects),
        "recall": share_of(tp, n_truth),
        "f1": share_of(2 * tp, n_objects + n_truth),
        "count_error": share_of(n_objects - n_truth, n_truth),
    }


def curve_of_runs(runs: Mapping[float, Sequence[Evaluation]], kind: str = "") -> pd.DataFrame:
    """Return a row of :func:`tally` per threshold, each from a run at it, by rising threshold."""
    rows = [{"min_score": score, **tally(runs[score], kind)} for score in sorted(runs)]
    return pd.DataFrame(rows)


def smoothed(values: DoubleArray) -> DoubleArray:
    """Return the mean of each value and its neighbours, which count half; NaN counts 0.

    Examples
    --------
    >>> smoothed(np.array([0.0, 4.0, 0.0, 0.0])).round(2).tolist()
    [1.33, 2.0, 1.0, 0.0]
    """
    kernel = np.array([0.5, 1.0, 0.5])
    known = np.nan_to_num(values)
    weight = np.convolve(np.ones(len(known)), kernel, "same")[: len(known)]
    out: DoubleArray = np.convolve(known, kernel, "same")[: len(known)] / weight
    return out


def choose_score(curve: pd.DataFrame, goal: Goal, what: str = "") -> float:
    """Choose a score threshold.

    For the best F1: the middle of the thresholds around the best whose F1, smoothed over
    neighbours, is within `FLAT` of it. For the count: where the count's error is 0, between two
    thresholds by a straight line; where it never is, the threshold with the least; among equals
    that of the best F1. For a precision: the highest recall of the thresholds that reach it, and
    that also reach it on average with the next higher one, where any do.

    Parameters
    ----------
    curve : DataFrame
        Of `curve_of_runs`, by rising threshold.
    goal : Goal
        What for.
    what : str
        The class, for the message.

    Returns
    -------
    float
        The threshold; for the count it may lie between two of the curve.

    Raises
    ------
    ConfigError
        If nothing was found at any threshold, or no threshold has the wanted precision; the
        message says which is the best.
    """
    of = f" for '{what}'" if what else ""
    if not len(curve) or not curve["n_objects"].to_numpy().any():
        raise ConfigError(
            f"nothing was found{of} in the labelled areas at any threshold; is this the model for "
            "these things, and the imagery like that it learnt from?"
        )
    if not curve["tp"].to_numpy().any():
        raise ConfigError(
            f"nothing that was found{of} matches a label; check that labels and image lie on one "
            "another (geoseg preview)"
        )
    if goal.kind == "f1":
        return _flat_best(curve)
    if goal.kind == "count":
        return _unbiased(curve)
    return _precise(curve, goal.precision, of)


def _flat_best(curve: pd.DataFrame) -> float:
    """Return the middle of the flat stretch around the best smoothed F1."""
    f1 = smoothed(curve["f1"].to_numpy(np.float64))
    good = f1 >= f1.max() - FLAT
    first = last = int(f1.argmax())
    while first > 0 and good[first - 1]:
        first -= 1
    while last + 1 < len(good) and good[last + 1]:
        last += 1
    return float(curve["min_score"].iloc[(first + last) // 2])


def _unbiased(curve: pd.DataFrame) -> float:
    """Return the threshold at which there are as many objects as true ones."""
    scores, errors, f1 = (
        np.nan_to_num(curve[name].to_numpy(np.float64))
        for name in ("min_score", "count_error", "f1")
    )
    candidates = [(f, s) for s, e, f in zip(scores, errors, f1, strict=True) if e == 0]
    for i, k in pairwise(range(len(scores))):
        if errors[i] * errors[k] < 0:
            share = errors[i] / (errors[i] - errors[k])
            there = scores[i] + share * (scores[k] - scores[i])
            candidates.append((f1[i] + share * (f1[k] - f1[i]), round(float(there), 3)))
    if not candidates:
        least = np.abs(errors).min()
        near = np.abs(errors) <= least + 1e-12
        candidates = list(zip(f1[near], scores[near], strict=True))
    return float(max(candidates)[1])


def _precise(curve: pd.DataFrame, wanted: float, of: str) -> float:
    """Return the threshold of the highest recall among those that reach a precision."""
    precision = curve["precision"].to_numpy(np.float64)
    known = np.nan_to_num(precision)
    reach = known >= wanted - 1e-12
    if not reach.any():
        best = int(known.argmax())
        row = curve.iloc[best]
        raise ConfigError(
            f"no threshold gives a precision of {wanted:g}{of}: the best is {known[best]:.3f}, at "
            f"score {row['min_score']:g} with a recall of {row['recall']:.3f}; ask for that, or "
            "train on more of what was taken for them"
        )
    # a spike is no precision to count on: the next higher threshold must bear it out
    after = np.append(precision[1:], np.nan)
    steady = reach & ((known + np.where(np.isnan(after), known, after)) / 2 >= wanted - 1e-12)
    rows = curve[steady if steady.any() else reach]
    best_first = rows.sort_values(["recall", "precision"], ascending=False, kind="stable")
    return float(best_first["min_score"].iloc[0])


def choose_area(f1_by_area: Mapping[float, float]) -> float:
    """Choose the smallest object, m2, by the F1 that each choice gives.

    Returns
    -------
    float
        0 unless another brings more than half a percent; then the smallest that is as good.
    """
    best = max(f1_by_area.values())
    if best - f1_by_area.get(0.0, 0.0) <= _WORTH:
        return 0.0
    return min(area for area, f1 in f1_by_area.items() if f1 >= best - 0.4 * FLAT)


def f1_interval(tp: int, fp: int, fn: int, *, seed: int = 0) -> tuple[float, float]:
    """Return the bounds of F1 within which it lies in 90 % of the draws of such objects.

    Bootstrap: as many matches, false objects and missed ones are drawn anew, with replacement.
    Neighbours are more alike than strangers, so that other places differ more than this says.
    """
    n = tp + fp + fn
    if n == 0:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).multinomial(n, np.array([tp, fp, fn]) / n, _DRAWS)
    f1 = 2 * drawn[:, 0] / (2 * drawn[:, 0] + drawn[:, 1] + drawn[:, 2])
    low, high = np.quantile(f1, (0.05, 0.95))
    return float(low), float(high)


def in_parts(
    evaluation: Evaluation, objects: gpd.GeoDataFrame, truth: gpd.GeoDataFrame,
    aoi: gpd.GeoDataFrame,
) -> list[Evaluation]:  # fmt: skip
    """Tell an evaluation apart by the cells of a grid over its area, and by polygons of the AOI.

    Matches are those of the whole area; an object and a true one count in the cell that holds
    their representative point. So no cell's edge cuts anything.

    Parameters
    ----------
    evaluation : Evaluation
        Of one area, with all objects and true ones at its threshold.
    objects, truth, aoi : GeoDataFrame
        What it was made of.

    Returns
    -------
    list of Evaluation
        Of the cells with any object or true one: counts, precision, recall, F1 and the tables
        that a calibration is fitted to; AP and matches are left out.
    """
    crs = local_crs(truth, aoi)
    cells = _cells(aoi.to_crs(crs), evaluation.n_truth)
    tree = shapely.STRtree(cells)
    rows = kept_rows(evaluation.ranking, evaluation.min_score)
    of_object = _cell_of(tree, objects.loc[rows["object"]].to_crs(crs))
    of_truth = _cell_of(tree, truth.loc[evaluation.truth["truth"]].to_crs(crs))
    parts = []
    for number in range(len(cells)):
        part = _part(evaluation, rows[of_object == number], of_truth == number)
        if part.n_objects or part.n_truth:
            parts.append(part)
    return parts


def _part(whole: Evaluation, rows: pd.DataFrame, in_cell: BoolArray) -> Evaluation:
    """Return the evaluation of what lies in one cell."""
    truth = whole.truth[in_cell]
    figures = figures_of(len(rows), len(truth), int(rows["hit"].sum()))
    return replace(
        whole,
        **figures,
        fp=figures["n_objects"] - figures["tp"],
        fn=len(truth) - int(truth["found"].sum()),
        ap=float("nan"),
        ap50=float("nan"),
        mean_iou=float("nan"),
        matches=whole.matches.iloc[:0],
        ranking=rows,
        truth=truth,
    )


def _cells(aoi: gpd.GeoDataFrame, n_truth: int) -> Any:
    """Cut polygons in metres into about as many cells as have enough true things in them."""
    polygons = polygonal(aoi.geometry.array)[0]
    polygons = shapely.get_parts(polygons)
    wanted = min(max(n_truth // _LEAST_A_CELL, 1), _MOST_CELLS)
    side = float(np.sqrt(shapely.area(polygons).sum() / wanted))
    cells: list[Any] = []
    for polygon in polygons:
        x0, y0, x1, y1 = shapely.bounds(polygon)
        across, down = max(round((x1 - x0) / side), 1), max(round((y1 - y0) / side), 1)
        x, y = np.linspace(x0, x1, across + 1), np.linspace(y0, y1, down + 1)
        column, row = (a.ravel() for a in np.meshgrid(np.arange(across), np.arange(down)))
        boxes = shapely.box(x[column], y[row], x[column + 1], y[row + 1])
        cut = shapely.intersection(boxes, polygon)
        cells += cut[shapely.area(cut) > 0].tolist()
    return np.array(cells, object)


def _cell_of(tree: shapely.STRtree, table: gpd.GeoDataFrame) -> IntArray:
    """Return the nearest cell of each row's representative point."""
    if not len(table):
        return np.zeros(0, np.int64)
    points = shapely.point_on_surface(table.geometry.to_numpy())
    found: IntArray = np.asarray(tree.nearest(points), np.int64)
    return found


def foretell(
    groups: Mapping[str, Sequence[Evaluation]], *, whole_areas: bool = True
) -> pd.DataFrame:
    """Foretell each part's count from the calibration of others, to see that intervals hold.

    Parameters
    ----------
    groups : mapping of str to sequence of Evaluation
        The parts of each area (`in_parts`).
    whole_areas : bool
        Leave all parts of an area out together: a new place. Otherwise, and with one area, each
        part in turn: more of a place of which labels are known.

    Returns
    -------
    DataFrame
        A row per part: ``area``, ``left_out`` ('area' or 'part'), ``n_truth``, ``n_objects``,
        ``expected``, ``low``, ``high``, ``inside``. Parts whose others are too few to fit are
        left out.
    """
    whole_areas = whole_areas and len(groups) > 1
    if whole_areas:
        plans = [
            (name, parts, {k: v for k, v in groups.items() if k != name})
            for name, parts in groups.items()
        ]
    else:
        plans = [
            (name, [part], {**groups, name: [p for k, p in enumerate(parts) if k != i]})
            for name, parts in groups.items()
            for i, part in enumerate(parts)
        ]
    rows = []
    for name, parts, others in plans:
        try:
            curve = calibration_of_areas(others)
        except ConfigError:
            continue
        for part in parts:
            kept = part.ranking
            mean, variance = curve.expect(kept["score"].to_numpy(), kept["area_m2"].to_numpy())
            low, high = interval_90(
                np.array([mean.sum()]), np.array([variance.sum()]), curve.spread
            )
            rows.append(
                {
                    "area": name,
                    "left_out": "area" if whole_areas else "part",
                    "n_truth": part.n_truth,
                    "n_objects": part.n_objects,
                    "expected": float(mean.sum()),
                    "low": float(low[0]),
                    "high": float(high[0]),
                    "inside": bool(low[0] <= part.n_truth <= high[0]),
                }
            )
    columns = ["area", "left_out", "n_truth", "n_objects", "expected", "low", "high", "inside"]
    return pd.DataFrame(rows, columns=columns)


def calibration_of_areas(groups: Mapping[str, Sequence[Evaluation]]) -> Calibration:
    """Fit a calibration to the parts of areas; its spread is that between areas, if several.

    Of few areas a spread is hardly known: it is widened as Student's quantile is wider than the
    normal one, by 3.8 for two areas, 1.8 for three, 1.2 for six.

    Raises
    ------
    ConfigError
        As `geoseg.objects.calibrate.fit_calibration`.
    """
    groups = {name: one for name, one in groups.items() if one}
    parts = [part for one in groups.values() for part in one]
    of = [name for name, one in groups.items() for _ in one]
    if not parts:
        raise ConfigError("a calibration needs labelled areas with objects or true ones; none has")
    fitted = fit_calibration(parts, of if len(groups) > 1 else None)
    n = len(groups) if len(groups) > 1 else len(parts)
    wider = float(stdtrit(n - 1, 0.95)) / Z_90 if n > 1 else 1.0
    return replace(fitted, spread=round(min(fitted.spread * wider, _MOST_SPREAD), 4))
