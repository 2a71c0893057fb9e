"""Compare the final polygons with truth: precision, recall, F1, count error and COCO's AP.

All of it happens on polygons, after stitching, in one equal-area projection laid around the data:
IoU and the half-inside rule are ratios of areas, and degrees are not square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
import shapely
from shapely.geometry.base import BaseGeometry

from geoseg.errors import ConfigError, RegionError
from geoseg.objects.count import polygonal
from geoseg.objects.regions import segmentize
from geoseg.records import BoolArray, DoubleArray, GeometryArray, IntArray

AP_THRESHOLDS = tuple(np.round(np.arange(0.5, 1.0, 0.05), 2).tolist())
INSIDE_SHARE = 0.5
"""A polygon counts where at least this share of its area lies inside the AOI."""
_RECALL_POINTS = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True)
class PlaceFigures:
    """How well objects match truth in one kind of place: bands several tiles saw, or interiors.

    An object counts where it lies itself, and so does a true one: of a match across the border of a
    band each side counts on its own ground.
    """

    n_objects: int
    """Objects in such places."""
    matched_objects: int
    """Of these, matched to a true one."""
    n_truth: int
    """True objects in such places."""
    found_truth: int
    """Of these, matched to an object."""
    duplicates: int
    """Objects without a match of which at least half lies on a true one that another object is
    matched to: the same thing twice, or a piece left over."""

    @property
    def precision(self) -> float:
        """Share of the objects that are matched; NaN without objects."""
        return share_of(self.matched_objects, self.n_objects)

    @property
    def recall(self) -> float:
        """Share of the true objects that are found; NaN without truth."""
        return share_of(self.found_truth, self.n_truth)

    @property
    def f1(self) -> float:
        """Harmonic mean of the two; NaN where one of them is."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0

    @property
    def duplicate_rate(self) -> float:
        """Share of the objects that are duplicates; NaN without objects."""
        return share_of(self.duplicates, self.n_objects)

    def __add__(self, other: PlaceFigures) -> PlaceFigures:
        return PlaceFigures(*(getattr(self, k) + getattr(other, k) for k in self.__slots__))

    def to_dict(self) -> dict[str, float | int | None]:
        """Return counts and ratios, ready for JSON: NaN is None."""
        ratios = ("precision", "recall", "f1", "duplicate_rate")
        values = {name: getattr(self, name) for name in (*self.__slots__, *ratios)}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """How well objects match truth; NaN where a figure is undefined (0 of 0)."""

    n_objects: int
    """Objects inside the AOI, at or above the wanted score."""
    n_truth: int
    """True objects inside the AOI."""
    tp: int
    """Objects matched to a true one."""
    fp: int
    """Objects with no true one."""
    fn: int
    """True ones with no object."""
    precision: float
    """tp / n_objects."""
    recall: float
    """tp / n_truth."""
    f1: float
    """Harmonic mean of the two."""
    mean_iou: float
    """Mean IoU of the matches."""
    count_error: float
    """(n_objects - n_truth) / n_truth."""
    ap50: float
    """Average precision at IoU 0.5, over objects of every score; NaN without scores."""
    ap: float
    """Mean of the average precision at IoU 0.50, 0.55, ... 0.95."""
    iou_threshold: float
    """IoU from which a match counts, for the figures other than AP."""
    min_score: float | None
    """Score below which objects were left out, for the figures other than AP."""
    matches: pd.DataFrame = field(repr=False)
    """One row per match: ``object`` and ``truth`` (index labels of the tables), ``iou``, and what
    each is called: ``kind`` and ``truth_kind``, '' in a table without a column ``class``."""
    ranking: pd.DataFrame = field(repr=False)
    """One row per object of any score: ``object``, ``class`` ('' where classes are not compared),
    ``kind`` (its class all the same), ``score``, ``area_m2`` inside the AOI, ``hit`` (matched at
    ``iou_threshold``) and ``hit_50`` to ``hit_95``. What :func:`pool` needs."""
    truth: pd.DataFrame = field(repr=False)
    """One row per true object: ``truth`` (index label), ``class`` and ``kind`` as above,
    ``area_m2`` inside the AOI, ``found`` (by an object at or above ``min_score``)."""
    bands: PlaceFigures | None = None
    """Where two or more tiles looked; None unless asked for with ``in_band``."""
    interiors: PlaceFigures | None = None
    """Where one tile looked; as ``bands``."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, ready for JSON: NaN is None; bands and interiors if asked for."""
        names = [n for n in self.__slots__ if not isinstance(getattr(self, n), pd.DataFrame)]
        values = {name: getattr(self, name) for name in names if name not in _PLACES}
        figures: dict[str, Any] = {
            k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()
        }
        places = {name: getattr(self, name) for name in _PLACES}
        return figures | {k: v.to_dict() for k, v in places.items() if v is not None}


_PLACES = ("bands", "interiors")


def evaluate(
    objects: gpd.GeoDataFrame,
    truth: gpd.GeoDataFrame,
    *,
    aoi: gpd.GeoDataFrame | None = None,
    iou_threshold: float = 0.5,
    min_score: float | None = None,
    by_class: bool = False,
    in_band: tuple[BoolArray, BoolArray] | None = None,
) -> Evaluation:
    """Match objects with truth one to one and measure how well they agree.

    Objects come in order of falling score; each takes the free true polygon with the highest IoU
    at or above the threshold, as COCO does. So what is matched at one score does not depend
    on objects of lower score.

    Parameters
    ----------
    objects : GeoDataFrame
        Polygons with a CRS; ``score`` in [0, 1] if AP is wanted.
    truth : GeoDataFrame
        Polygons with a CRS.
    aoi : GeoDataFrame, optional
        Areas where truth is complete. Polygons of either kind with at least half of their area
        inside take part, clipped to it.
    iou_threshold : float
        In (0, 1].
    min_score : float, optional
        Objects below are left out of everything but AP, which ranks all of them.
    by_class : bool
        Match only within a class (column ``class`` of both); AP is then the mean over the
        classes of the truth. Otherwise all classes are one.
    in_band : (ndarray of bool, ndarray of bool), optional
        For each row of ``objects`` and of ``truth`` whether it lies where two or more tiles
        looked (`geoseg.objects.seams.in_bands` of its representative point in grid px): then
        ``bands`` and ``interiors`` tell them apart.

    Returns
    -------
    Evaluation
        The figures and the matches.

    Raises
    ------
    RegionError
        If a table has no CRS.
    ConfigError
        If the threshold is out of range, a class is asked for and missing, or ``in_band`` has
        another length than its table.

    References
    ----------
    Lin et al., Microsoft COCO, doi:10.1007/978-3-319-10602-1_48 (AP at 101 recall points).
    """
    _check(objects, truth, aoi, iou_threshold, by_class=by_class)
    _check_bands(objects, truth, in_band)
    found, true, found_rows, true_rows = _in_aoi(objects, truth, aoi)
    scores = _scores(objects)[found_rows]
    order = np.argsort(-scores, kind="stable")
    found, found_rows, scores = found[order], found_rows[order], scores[order]
    found_classes = _classes(objects, found_rows, by_class=by_class)
    true_classes = _classes(truth, true_rows, by_class=by_class)
    pairs = _iou_pairs(found, true)
    pairs = pairs[found_classes[pairs["object"]] == true_classes[pairs["truth"]]]
    partner, iou = _match(pairs, len(found), len(true), iou_threshold)
    ranking = {
        "object": objects.index.to_numpy()[found_rows],
        "class": found_classes,
        "kind": _kinds(objects)[found_rows],
        "score": scores if "score" in objects.columns else np.full(len(scores), np.nan),
        "area_m2": shapely.area(found),
        "hit": partner >= 0,
    }
    for step in AP_THRESHOLDS:
        ranking[_hit_name(step)] = _match(pairs, len(found), len(true), step)[0] >= 0
    kept = scores >= (-np.inf if min_score is None else min_score)
    used = (partner >= 0) & kept
    hit = np.isin(np.arange(len(true)), partner[used])
    true_table = pd.DataFrame(
        {
            "truth": truth.index.to_numpy()[true_rows],
            "class": true_classes,
            "kind": _kinds(truth)[true_rows],
            "area_m2": shapely.area(true),
            "found": hit,
        }
    )
    matches = pd.DataFrame(
        {
            "object": ranking["object"][used],
            "truth": true_table["truth"].to_numpy()[partner[used]],
            "iou": iou[used],
            "kind": ranking["kind"][used],
            "truth_kind": true_table["kind"].to_numpy()[partner[used]],
        }
    )
    whole = _summarize(pd.DataFrame(ranking), true_table, matches, iou_threshold, min_score)
    if in_band is None:
        return whole
    double = _doubles(pairs, partner, kept, found, true)
    bands = np.asarray(in_band[0], bool)[found_rows], np.asarray(in_band[1], bool)[true_rows]
    places = [
        _place_figures(used[objects_in & kept], double[objects_in & kept], hit[truth_in])
        for objects_in, truth_in in (bands, (~bands[0], ~bands[1]))
    ]
    return replace(whole, bands=places[0], interiors=places[1])


def _doubles(
    pairs: npt.NDArray[np.void],
    partner: IntArray,
    kept: BoolArray,
    found: GeometryArray,
    true: GeometryArray,
) -> BoolArray:
    """Mark unmatched objects of which half lies on a true one that another object has."""
    taken = np.zeros(len(true), bool)
    taken[partner[kept & (partner >= 0)]] = True
    row, column, iou = pairs["object"], pairs["truth"], pairs["iou"]
    area = shapely.area(found)[row]
    common = iou / (1 + iou) * (area + shapely.area(true)[column])
    on_taken = taken[column] & (common >= INSIDE_SHARE * area * (1 - 1e-9))
    double = np.zeros(len(found), bool)
    double[row[on_taken]] = True
    return double & (partner < 0)


def _place_figures(matched: BoolArray, double: BoolArray, hit: BoolArray) -> PlaceFigures:
    """Count the objects and true ones of one kind of place."""
    return PlaceFigures(
        n_objects=len(matched),
        matched_objects=int(np.count_nonzero(matched)),
        n_truth=len(hit),
        found_truth=int(np.count_nonzero(hit)),
        duplicates=int(np.count_nonzero(double)),
    )


def _check_bands(
    objects: gpd.GeoDataFrame,
    truth: gpd.GeoDataFrame,
    in_band: tuple[BoolArray, BoolArray] | None,
) -> None:
    """Refuse bands that do not fit the tables."""
    if in_band is not None and tuple(map(len, in_band)) != (len(objects), len(truth)):
        raise ConfigError(
            f"in_band has {' and '.join(str(len(b)) for b in in_band)} entries but there are "
            f"{len(objects)} objects and {len(truth)} true ones; give one per row of each table"
        )


def pool(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Join the evaluations of several sites into one, as if they were one place.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        At least one; all with the same IoU threshold and score.

    Returns
    -------
    Evaluation
        Figures over all objects and true objects together; each table has a column ``site``,
        the place in ``evaluations``. Bands and interiors are told apart if they are in all.

    Raises
    ------
    ConfigError
        If there is none, or their settings differ.
    """
    if len({(e.iou_threshold, e.min_score) for e in evaluations}) != 1:
        raise ConfigError(
            "pool needs evaluations made with one iou_threshold and one min_score; "
            f"got {len(evaluations)} evaluations with differing or no settings"
        )
    ranking = pd.concat([e.ranking.assign(site=i) for i, e in enumerate(evaluations)])
    ranking = ranking.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    matches = pd.concat([e.matches.assign(site=i) for i, e in enumerate(evaluations)])
    whole = _summarize(
        ranking,
        pd.concat([e.truth.assign(site=i) for i, e in enumerate(evaluations)], ignore_index=True),
        matches.reset_index(drop=True),
        evaluations[0].iou_threshold,
        evaluations[0].min_score,
    )
    bands = [e.bands for e in evaluations if e.bands is not None]
    interiors = [e.interiors for e in evaluations if e.interiors is not None]
    if not len(bands) == len(interiors) == len(evaluations):
        return whole
    none = PlaceFigures(0, 0, 0, 0, 0)
    return replace(whole, bands=sum(bands, start=none), interiors=sum(interiors, start=none))


def threshold_curve(
    objects: gpd.GeoDataFrame,
    truth: gpd.GeoDataFrame,
    *,
    aoi: gpd.GeoDataFrame | None = None,
    thresholds: Sequence[float] | None = None,
    iou_threshold: float = 0.5,
) -> pd.DataFrame:
    """Show what each score threshold would give, to choose one.

    Parameters
    ----------
    objects, truth, aoi, iou_threshold
        As in :func:`evaluate`; ``objects`` needs ``score``.
    thresholds : sequence of float, optional
        Scores to try; by default 0.05, 0.10, ... 0.95.

    Returns
    -------
    DataFrame
        A row per threshold: ``min_score``, ``n_objects``, ``precision``, ``recall``, ``f1``,
        ``count_error``; NaN where undefined.

    Raises
    ------
    ConfigError
        If the objects have no ``score``; otherwise as :func:`evaluate`.
    """
    if "score" not in objects.columns:
        raise ConfigError("a threshold curve needs a column 'score' in the objects")
    steps = np.round(np.arange(0.05, 1.0, 0.05), 2) if thresholds is None else np.array(thresholds)
    whole = evaluate(objects, truth, aoi=aoi, iou_threshold=iou_threshold)
    return curve_of(whole, steps.tolist())


def curve_of(evaluation: Evaluation, thresholds: Sequence[float]) -> pd.DataFrame:
    """Return the rows of :func:`threshold_curve` for an evaluation, pooled or not.

    One matching serves all thresholds: greedy matching by score decides an object's partner
    before it looks at those below.
    """
    rows = []
    scores = evaluation.ranking["score"].to_numpy()
    hits = evaluation.ranking["hit"].to_numpy(dtype=bool)
    for step in thresholds:
        figures = _figures(hits[scores >= step], evaluation.n_truth)
        names = ("n_objects", "precision", "recall", "f1", "count_error")
        rows.append({"min_score": step, **{name: figures[name] for name in names}})
    columns = ["min_score", "n_objects", "precision", "recall", "f1", "count_error"]
    return pd.DataFrame(rows, columns=columns)


def average_precision(hits: BoolArray, n_truth: int) -> float:
    """Return COCO's average precision of ranked detections.

    Parameters
    ----------
    hits : ndarray
        (n,) bool, by falling score: whether the detection is matched.
    n_truth : int
        True objects in all.

    Returns
    -------
    float
        Mean over the recalls 0.00, 0.01, ... 1.00 of the best precision at that recall or
        beyond; NaN if there is no truth.

    Examples
    --------
    >>> round(average_precision(np.array([True, False, True]), 2), 4)
    0.835
    """
    if n_truth == 0:
        return math.nan
    tp = np.cumsum(hits)
    recall = tp / n_truth
    precision = tp / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, _RECALL_POINTS, side="left")
    reached = place < len(hits)
    values = np.zeros(len(_RECALL_POINTS))
    values[reached] = best[place[reached]]
    return float(values.mean())


def _check(
    objects: gpd.GeoDataFrame,
    truth: gpd.GeoDataFrame,
    aoi: gpd.GeoDataFrame | None,
    iou_threshold: float,
    *,
    by_class: bool,
) -> None:
    """Refuse what would be compared wrongly."""
    if not 0 < iou_threshold <= 1:
        raise ConfigError(f"iou_threshold is {iou_threshold}; expected 0 < iou_threshold <= 1")
    for what, table in (("objects", objects), ("truth", truth), ("AOI", aoi)):
        if table is not None and table.crs is None:
            raise RegionError(
                f"the {what} layer has no CRS, so it is unknown where on earth it lies; "
                "set it in the file, or with GeoDataFrame.set_crs"
            )
        if by_class and what != "AOI" and table is not None and "class" not in table.columns:
            raise ConfigError(f"by_class needs a column 'class' in the {what} layer; it has none")


def _scores(objects: gpd.GeoDataFrame) -> DoubleArray:
    """Return the scores, all 1 where there are none."""
    if "score" not in objects.columns:
        return np.ones(len(objects))
    return np.asarray(objects["score"], dtype=np.float64)


def _classes(table: gpd.GeoDataFrame, rows: IntArray, *, by_class: bool) -> npt.NDArray[np.object_]:
    """Return the class of each row, or one name for all."""
    return _kinds(table)[rows] if by_class else np.full(len(rows), "", dtype=object)


def _kinds(table: gpd.GeoDataFrame) -> npt.NDArray[np.object_]:
    """Return what each row is called; '' where the table has no classes."""
    if "class" not in table.columns:
        return np.full(len(table), "", dtype=object)
    return np.asarray(table["class"].astype(str), dtype=object)


def local_crs(*tables: gpd.GeoDataFrame | None) -> pyproj.CRS:
    """Return an equal-area CRS in metres, centred on the first table that has any geometry.

    The centre is a mean of directions, so that it also holds across the antimeridian.
    """
    for table in tables:
        if table is None or len(table) == 0:
            continue
        lonlat = table.geometry.to_crs(4326)
        xy = np.radians(shapely.get_coordinates(lonlat.to_numpy()))
        xy = xy[np.isfinite(xy).all(axis=1)]
        if len(xy) == 0:
            continue
        lon, lat = xy.T
        x, y, z = (np.cos(lat) * np.cos(lon)), (np.cos(lat) * np.sin(lon)), np.sin(lat)
        x, y, z = x.mean(), y.mean(), z.mean()
        lon_0, lat_0 = math.degrees(math.atan2(y, x)), math.degrees(math.atan2(z, math.hypot(x, y)))
        break
    else:
        lon_0 = lat_0 = 0.0
    return pyproj.CRS.from_proj4(
        f"+proj=laea +lat_0={lat_0:.6f} +lon_0={lon_0:.6f} +datum=WGS84 +units=m +type=crs"
    )


def _in_aoi(
    objects: gpd.GeoDataFrame, truth: gpd.GeoDataFrame, aoi: gpd.GeoDataFrame | None
) -> tuple[GeometryArray, GeometryArray, IntArray, IntArray]:
    """Return objects and truth in the local CRS, those of the AOI clipped to it, and their rows."""
    crs = local_crs(truth, aoi, objects)
    found = polygonal(objects.geometry.to_crs(crs).array)[0]
    true = polygonal(truth.geometry.to_crs(crs).array)[0]
    if aoi is None:
        area = None
    else:
        # an AOI may be kilometres wide: its edges bend when projected, so give them vertices
        step = 1e-3 if aoi.crs.is_geographic else 100.0
        area = shapely.union_all(_in_crs(aoi, step, crs))
    found, found_rows = _clip(found, area)
    true, true_rows = _clip(true, area)
    return found, true, found_rows, true_rows


def _in_crs(aoi: gpd.GeoDataFrame, step: float, crs: pyproj.CRS) -> GeometryArray:
    """Return the polygons of an AOI in another CRS, their edges bent as there."""
    dense = segmentize(np.asarray(aoi.geometry.array, dtype=object), step, aoi.crs)
    return polygonal(gpd.GeoSeries(dense, crs=aoi.crs).to_crs(crs).array)[0]


def _clip(polygons: GeometryArray, area: BaseGeometry | None) -> tuple[GeometryArray, IntArray]:
    """Keep polygons that lie at least half inside, clipped; return them and their rows."""
    sizes = shapely.area(polygons)
    if area is None:
        rows = np.flatnonzero(sizes > 0)
        return polygons[rows], rows
    shapely.prepare(area)
    clipped = polygons.copy()
    border = shapely.intersects(area, polygons) & ~shapely.covers(area, polygons)
    clipped[border] = polygonal(shapely.intersection(polygons[border], area))[0]
    clipped[shapely.disjoint(area, polygons)] = shapely.Polygon()
    rows = np.flatnonzero((sizes > 0) & (shapely.area(clipped) >= INSIDE_SHARE * sizes))
    return clipped[rows], rows


def _iou_pairs(found: GeometryArray, true: GeometryArray) -> npt.NDArray[np.void]:
    """Return all pairs that share area, best IoU first for each object, objects in order."""
    row, column = shapely.STRtree(true).query(found, predicate="intersects")
    common = shapely.area(shapely.intersection(found[row], true[column]))
    union = shapely.area(found[row]) + shapely.area(true[column]) - common
    pairs = np.zeros(len(row), dtype=[("object", int), ("truth", int), ("iou", float)])
    pairs["object"], pairs["truth"], pairs["iou"] = row, column, common / union
    order = np.lexsort((pairs["truth"], -pairs["iou"], pairs["object"]))
    return pairs[order]


def _match(
    pairs: npt.NDArray[np.void], n_found: int, n_true: int, iou_threshold: float
) -> tuple[IntArray, DoubleArray]:
    """Match greedily; return each object's partner (-1: none) and their IoU."""
    partner = np.full(n_found, -1, dtype=np.int64)
    iou = np.full(n_found, np.nan)
    free = np.ones(n_true, dtype=bool)
    # COCO's slack: an IoU that equals the threshold up to rounding is a match
    good = pairs[pairs["iou"] >= iou_threshold - 1e-10]
    for row, column, value in good.tolist():
        if partner[row] < 0 and free[column]:
            partner[row], iou[row], free[column] = column, value, False
    return partner, iou


def _hit_name(threshold: float) -> str:
    """Return the ranking's column for an IoU threshold."""
    return f"hit_{round(100 * threshold)}"


def _figures(hits: BoolArray, n_truth: int) -> dict[str, Any]:
    """Return counts and ratios for the objects that are kept."""
    n_objects, tp = len(hits), int(np.count_nonzero(hits))
    fp, fn = n_objects - tp, n_truth - tp
    return {
        "n_objects": n_objects,
        "n_truth": n_truth,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "precision": share_of(tp, n_objects),
        "recall": share_of(tp, n_truth),
        "f1": share_of(2 * tp, 2 * tp + fp + fn),
        "count_error": share_of(n_objects - n_truth, n_truth),
    }


def share_of(part: float, whole: float) -> float:
    """Return part / whole, NaN where there is no whole."""
    return part / whole if whole else math.nan


def _summarize(
    ranking: pd.DataFrame,
    truth: pd.DataFrame,
    matches: pd.DataFrame,
    iou_threshold: float,
    min_score: float | None,
) -> Evaluation:
    """Put the figures together from ranked objects and their hits."""
    kept = kept_rows(ranking, min_score)
    figures = _figures(kept["hit"].to_numpy(dtype=bool), len(truth))
    by_step = [_mean_ap(ranking, truth["class"], _hit_name(step)) for step in AP_THRESHOLDS]
    return Evaluation(
        **figures,
        mean_iou=float(matches["iou"].mean()) if len(matches) else math.nan,
        ap50=by_step[0],
        ap=float(np.mean(by_step)),
        iou_threshold=iou_threshold,
        min_score=min_score,
        matches=matches,
        ranking=ranking,
        truth=truth,
    )


def kept_rows(ranking: pd.DataFrame, min_score: float | None) -> pd.DataFrame:
    """Return the objects of a ranking at or above a score; unknown scores are 1."""
    return ranking if min_score is None else ranking[ranking["score"].fillna(1.0) >= min_score]


def _mean_ap(ranking: pd.DataFrame, truth_classes: pd.Series, column: str) -> float:
    """Return the average precision, averaged over the classes of the truth."""
    if len(ranking) and ranking["score"].isna().any():
        return math.nan
    values = []
    for name in sorted(set(truth_classes)):
        hits = ranking.loc[ranking["class"] == name, column].to_numpy(dtype=bool)
        values.append(average_precision(hits, int((truth_classes == name).sum())))
    return float(np.mean(values)) if values else math.nan
