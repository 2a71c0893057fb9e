"""Take an evaluation apart: by size, by class, by region, and what was taken for what.

A total hides what it is made of: a count that is right because false objects make up for missed
ones, small things lost, one quarter all wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from geoseg.errors import ConfigError
from geoseg.objects.count import count
from geoseg.objects.evaluate import Evaluation, average_precision, kept_rows, share_of

SIZES_M2 = (30.0, 100.0, 300.0, 1000.0)
"""Where one size ends and the next begins, m2: sheds, houses, large houses, halls."""
NOTHING = "(nothing)"
"""What a false object was taken from, and a missed one taken for."""


def by_size(evaluation: Evaluation, sizes_m2: Sequence[float] = SIZES_M2) -> pd.DataFrame:
    """Tell how well things of each size are found.

    Parameters
    ----------
    evaluation : Evaluation
        Of one place or pooled.
    sizes_m2 : sequence of float
        Borders between sizes, m2, ascending, above 0.

    Returns
    -------
    DataFrame
        A row per size that occurs: ``from_m2`` (included), ``to_m2`` (not), ``n_truth``,
        ``recall`` (both of true objects of that size), ``n_objects``, ``precision`` (both of
        objects of that size), ``count_error`` (objects to true ones, minus 1).

    Raises
    ------
    ConfigError
        If the borders do not ascend.
    """
    borders = np.asarray(sizes_m2, dtype=np.float64)
    if not len(borders) or not (
        np.isfinite(borders).all() and (np.diff(borders, prepend=0) > 0).all()
    ):
        raise ConfigError(
            f"sizes are {', '.join(f'{s:g}' for s in sizes_m2) or 'empty'}; expected areas in m2 "
            "above 0 that ascend, such as 30,100,300"
        )
    kept = kept_rows(evaluation.ranking, evaluation.min_score)
    found_in = np.searchsorted(borders, kept["area_m2"].to_numpy(), side="right")
    true_in = np.searchsorted(borders, evaluation.truth["area_m2"].to_numpy(), side="right")
    edges = [0.0, *borders.tolist(), math.inf]
    rows = []
    for place, (low, high) in enumerate(itertools.pairwise(edges)):
        found, true = kept[found_in == place], evaluation.truth[true_in == place]
        if len(found) or len(true):
            rows.append({"from_m2": low, "to_m2": high, **_row(found, true)})
    return pd.DataFrame(rows, columns=["from_m2", "to_m2", *_COLUMNS])


def by_class(evaluation: Evaluation) -> pd.DataFrame:
    """Tell how well each class is found.

    Parameters
    ----------
    evaluation : Evaluation
        Made with ``by_class=True``.

    Returns
    -------
    DataFrame
        A row per class: ``class``, ``n_truth``, ``recall``, ``n_objects``, ``precision``,
        ``count_error``, ``f1``, ``ap50``.
    """
    kept = kept_rows(evaluation.ranking, evaluation.min_score)
    rows = []
    for name in sorted({*evaluation.truth["class"], *kept["class"]}):
        found, true = (
            kept[kept["class"] == name],
            evaluation.truth[evaluation.truth["class"] == name],
        )
        ranked = evaluation.ranking[evaluation.ranking["class"] == name]
        scored = not ranked["score"].isna().any()
        ap50 = average_precision(ranked["hit_50"].to_numpy(bool), len(true)) if scored else math.nan
        row = _row(found, true)
        right = 2 * int(found["hit"].sum())
        f1 = share_of(right, len(found) + len(true))
        rows.append({"class": name, **row, "f1": f1, "ap50": ap50})
    return pd.DataFrame(rows, columns=["class", *_COLUMNS, "f1", "ap50"])


def confusion(evaluation: Evaluation) -> pd.DataFrame:
    """Tell what was taken for what, where an object matches a true one whatever their classes.

    Parameters
    ----------
    evaluation : Evaluation
        Made without ``by_class``, of tables with a column ``class``.

    Returns
    -------
    DataFrame
        A row per true class and `NOTHING` (false objects), a column per class of the objects and
        `NOTHING` (missed ones); counts.

    Raises
    ------
    ConfigError
        If the evaluation compared within classes: it cannot know.
    """
    if (evaluation.truth["class"] != "").any():
        raise ConfigError("confusion needs an evaluation made without by_class")
    kept = kept_rows(evaluation.ranking, evaluation.min_score)
    false = kept.loc[~kept["hit"].to_numpy(bool), "kind"]
    missed = evaluation.truth.loc[~evaluation.truth["found"].to_numpy(bool), "kind"]
    true = pd.concat([evaluation.matches["truth_kind"], pd.Series(NOTHING, false.index), missed])
    found = pd.concat([evaluation.matches["kind"], false, pd.Series(NOTHING, missed.index)])
    names = [*sorted({*kept["kind"], *evaluation.truth["kind"]}), NOTHING]
    table = pd.crosstab(true.to_numpy(dtype=object), found.to_numpy(dtype=object))
    return table.reindex(index=names, columns=names, fill_value=0)


def by_region(
    objects: gpd.GeoDataFrame,
    truth: gpd.GeoDataFrame,
    regions: gpd.GeoDataFrame,
    evaluation: Evaluation,
) -> gpd.GeoDataFrame:
    """Count objects and true ones per region: for maps of where the count is off.

    Parameters
    ----------
    objects, truth : GeoDataFrame
        The tables that were evaluated.
    regions : GeoDataFrame
        Polygons with a CRS.
    evaluation : Evaluation
        Of these tables: what it left out (outside the AOI, below the score) is left out here.

    Returns
    -------
    GeoDataFrame
        The regions that hold any, with ``n_objects``, ``n_truth`` and ``error`` (objects minus
        true ones). An object belongs to the region that holds its representative point.
    """
    kept = kept_rows(evaluation.ranking, evaluation.min_score)
    found = count(objects.loc[kept["object"]], regions)["count"].to_numpy()
    true = count(truth.loc[evaluation.truth["truth"]], regions)["count"].to_numpy()
    table = regions.copy()
    table["n_objects"], table["n_truth"], table["error"] = found, true, found - true
    return table[(found > 0) | (true > 0)]


def count_errors(per_region: pd.DataFrame) -> dict[str, float]:
    """Summarize :func:`by_region`.

    Returns
    -------
    dict
        ``regions``, ``bias`` (mean of objects minus true ones per region), ``mae`` and ``rmse``
        (mean absolute and root mean square error), and ``mae_share`` (all absolute errors to all
        true objects: what false and missed ones that cancel in the total cost per region).
    """
    error = per_region["error"].to_numpy(dtype=np.float64)
    if not len(error):
        return dict.fromkeys(("bias", "mae", "rmse", "mae_share"), math.nan) | {"regions": 0}
    return {
        "regions": len(error),
        "bias": float(error.mean()),
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "mae_share": share_of(float(np.abs(error).sum()), float(per_region["n_truth"].sum())),
    }


def verdicts(
    objects: gpd.GeoDataFrame, truth: gpd.GeoDataFrame, evaluation: Evaluation
) -> dict[str, gpd.GeoDataFrame]:
    """Sort objects and truth into what was right, false and missed: layers for a map.

    Parameters
    ----------
    objects, truth : GeoDataFrame
        The tables that were evaluated, each with unique index labels.
    evaluation : Evaluation
        Of these tables.

    Returns
    -------
    dict of str to GeoDataFrame
        ``right`` (objects, with ``iou`` and, where truth has classes, ``truth_class``), ``false``
        (objects) and ``missed`` (true ones), whole outlines in the CRS of their table, with
        ``verdict`` ('TP', 'FP', 'FN').
    """
    kept = kept_rows(evaluation.ranking, evaluation.min_score)
    right = objects.loc[evaluation.matches["object"]].copy()
    right["iou"] = evaluation.matches["iou"].to_numpy(dtype=np.float64)
    if "class" in truth.columns:
        right["truth_class"] = evaluation.matches["truth_kind"].to_numpy(dtype=object)
    false = objects.loc[kept.loc[~kept["hit"].to_numpy(bool), "object"]].copy()
    missed = truth.loc[evaluation.truth.loc[~evaluation.truth["found"].to_numpy(bool), "truth"]]
    layers = {"right": right, "false": false, "missed": missed.copy()}
    for table, word in zip(layers.values(), ("TP", "FP", "FN"), strict=True):
        table["verdict"] = np.full(len(table), word, dtype=object)
    return layers


_COLUMNS = ("n_truth", "recall", "n_objects", "precision", "count_error")


def _row(found: pd.DataFrame, true: pd.DataFrame) -> dict[str, Any]:
    """Return the figures of some objects and some true ones."""
    return {
        "n_truth": len(true),
        "recall": share_of(int(true["found"].sum()), len(true)),
        "n_objects": len(found),
        "precision": share_of(int(found["hit"].sum()), len(found)),
        "count_error": share_of(len(found) - len(true), len(true)),
    }
