"""Measure on areas with known truth how often objects are true and things are missed.

How often an object of a score is true is fitted as a curve that never falls (isotonic regression,
by pooling adjacent violators; Zadrozny and Elkan, doi:10.1145/775047.775151, use it for scores),
how many things of a size are missed as one that never rises. Areas differ by more than chance
explains: that is measured by leaving each out in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from geoseg.errors import ConfigError
from geoseg.objects.evaluate import Evaluation, kept_rows
from geoseg.objects.expected import MOST_MISSED, Calibration
from geoseg.records import BoolArray, DoubleArray

FEWEST = 30
"""True things, and objects, without which no curve is drawn."""
_PER_KNOT = 15
"""Objects, or things, that a knot stands for, at least."""
_MOST_KNOTS = 12


def fit_calibration(
    evaluations: Sequence[Evaluation], groups: Sequence[str] | None = None
) -> Calibration:
    """Fit how often objects are true, by score, and things missed, by size.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        One per labelled area, all at the same score threshold and IoU. More areas, and areas more
        like those to come, give a better ``spread``; with one it cannot be told, and is 0.
    groups : sequence of str, optional
        As long: which of them are left out together to tell the spread, because they are parts of
        one place and more alike than others; by default each by itself.

    Returns
    -------
    Calibration
        ``chance`` by score, ``missed`` by size, ``spread`` between areas.

    Raises
    ------
    ConfigError
        If there are fewer than `FEWEST` true things or objects, no scores, or the evaluations
        differ in their settings.
    """
    if len({(e.iou_threshold, e.min_score) for e in evaluations}) != 1:
        raise ConfigError("a calibration needs evaluations with one score threshold and one IoU")
    whole = _fit(evaluations)
    of = list(map(str, range(len(evaluations)))) if groups is None else list(groups)
    spread = _spread(evaluations, of) if len(set(of)) > 1 else 0.0
    return replace(whole, spread=spread)


def reliability(evaluations: Sequence[Evaluation], bins: int = 10) -> pd.DataFrame:
    """Tell how often objects of similar score are true: what a calibration is fitted to.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        Of labelled areas.
    bins : int
        Into which the objects are sorted by score, with as many in each.

    Returns
    -------
    DataFrame
        A row per bin: ``score`` (mean), ``n``, ``true`` (share that is matched).
    """
    scores, hits, _ = _objects(evaluations)
    order = np.argsort(scores, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return pd.DataFrame(
        {
            "score": [float(scores[part].mean()) for part in parts],
            "n": [len(part) for part in parts],
            "true": [float(hits[part].mean()) for part in parts],
        },
        columns=["score", "n", "true"],
    )


def _fit(evaluations: Sequence[Evaluation]) -> Calibration:
    """Fit both curves to all areas together."""
    scores, hits, _ = _objects(evaluations)
    truth = pd.concat([e.truth for e in evaluations])
    if not np.isfinite(scores).all():
        raise ConfigError("a calibration needs objects with a column 'score'")
    if min(len(scores), len(truth)) < FEWEST:
        raise ConfigError(
            f"a calibration needs {FEWEST} objects and {FEWEST} true ones at least, but there are "
            f"{len(scores)} and {len(truth)}; label more"
        )
    knots, chance = _curve(scores, hits, increasing=True)
    # sizes go over magnitudes: neighbours are found by ratio
    sizes = np.log(np.maximum(truth["area_m2"].to_numpy(np.float64), 1e-3))
    places, missed = _curve(sizes, ~truth["found"].to_numpy(bool), increasing=False)
    return Calibration(
        scores=tuple(knots.round(4).tolist()),
        chance=tuple(chance.round(4).tolist()),
        sizes_m2=tuple(np.exp(places).round(3).tolist()),
        missed=tuple(np.minimum(missed, MOST_MISSED).round(4).tolist()),
        min_score=evaluations[0].min_score,
    )


def _objects(evaluations: Sequence[Evaluation]) -> tuple[DoubleArray, BoolArray, DoubleArray]:
    """Return score, whether matched, and area of the objects at or above the threshold."""
    kept = pd.concat([kept_rows(e.ranking, e.min_score) for e in evaluations])
    return (
        kept["score"].to_numpy(np.float64),
        kept["hit"].to_numpy(bool),
        kept["area_m2"].to_numpy(np.float64),
    )


def _curve(x: DoubleArray, yes: BoolArray, *, increasing: bool) -> tuple[DoubleArray, DoubleArray]:
    """Return knots of a monotone curve of the share of yes over x.

    Of groups of neighbours the mean is taken first: a knot for each one would follow chance. A
    half is added to each answer (Jeffreys' prior), so that nothing is certain after few tries.
    """
    groups = min(max(len(x) // _PER_KNOT, 1), _MOST_KNOTS)
    order = np.argsort(x, kind="stable")
    parts = np.array_split(order, groups)
    place = np.array([x[part].mean() for part in parts])
    share = np.array([(yes[part].sum() + 0.5) / (len(part) + 1) for part in parts])
    weight = np.array([len(part) for part in parts], dtype=np.float64)
    fitted = isotonic_regression(share, weights=weight, increasing=increasing).x
    _, first = np.unique(place.round(9), return_index=True)
    return place[first], fitted[first]


def _spread(evaluations: Sequence[Evaluation], groups: Sequence[str]) -> float:
    """Return the standard deviation of true to expected counts that chance does not explain.

    Each area is foretold from those of other groups, so that the uncertainty of the fit is in it.
    By moments: what the squares of the errors exceed the variances by, relative to the counts.
    """
    excess, weight = 0.0, 0.0
    for group in dict.fromkeys(groups):
        try:
            fitted = _fit([e for e, g in zip(evaluations, groups, strict=True) if g != group])
        except ConfigError:
            # the others alone are too few: this area says nothing on the spread
            continue
        for left_out in (e for e, g in zip(evaluations, groups, strict=True) if g == group):
            scores, _, sizes = _objects([left_out])
            mean, variance = fitted.expect(scores, sizes)
            expected = float(mean.sum())
            if expected > 0:
                excess += (left_out.n_truth - expected) ** 2 - float(variance.sum())
                weight += expected**2
    return round(float(np.sqrt(max(excess, 0.0) / weight)), 4) if weight else 0.0
