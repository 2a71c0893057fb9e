"""Draw what thresholds give: precision over recall, counts, how true; and how trainings went.

How true objects of a score are is a reliability curve: that of a sure model lies on the diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geoseg.errors import ConfigError
from geoseg.objects.evaluate import Evaluation, curve_of
from geoseg.objects.expected import Calibration
from geoseg.outputs.formats import check_output
from geoseg.outputs.publish import put, scratch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STEPS = np.round(np.arange(0.0, 1.0001, 0.01), 2)
_BLUE, _ORANGE, _GREY = "#0b5fa5", "#c2410c", "#6b7280"


def write_curves(path: str | Path, evaluation: Evaluation, *, overwrite: bool = False) -> Path:
    """Write a PNG with two curves of one evaluation.

    Left precision over recall, a point per score, with the threshold in use marked; right the
    number of objects over the threshold beside the number of true ones, and F1.

    Parameters
    ----------
    path : str or Path
        Ends in .png.
    evaluation : Evaluation
        Of objects with scores.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ConfigError
        If the objects had no scores.
    OutputError
        As `check_output`.
    """
    if evaluation.ranking["score"].isna().any():
        raise ConfigError("curves need objects with a column 'score'")
    path = check_output(path, overwrite, suffixes=(".png",))
    figure = _figure(10, 4.4)
    left, right = figure.subplots(1, 2)
    _precision_over_recall(left, evaluation)
    _count_over_threshold(right, evaluation)
    return _save(figure, path, overwrite=overwrite)


def write_reliability(
    path: str | Path,
    reliability: pd.DataFrame,
    calibrations: Mapping[str, Calibration],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a PNG: how often objects of a score are true, and the calibration fitted to it.

    Parameters
    ----------
    path : str or Path
        Ends in .png.
    reliability : DataFrame
        Of `geoseg.objects.calibrate.reliability`; ``class`` where there are several.
    calibrations : mapping of str to Calibration
        By class; '' for one for all.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OutputError
        As `check_output`.
    """
    path = check_output(path, overwrite, suffixes=(".png",))
    figure = _figure(5.2, 4.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", label="scores that are probabilities")
    for i, (kind, curve) in enumerate(calibrations.items()):
        rows = reliability[reliability["class"] == kind] if kind else reliability
        colour, name = f"C{i}", f" {kind}" if kind else ""
        axes.plot(curve.scores, curve.chance, color=colour, label=f"calibration{name}")
        axes.scatter(
            rows["score"], rows["true"], s=10 + 2 * rows["n"], color=colour, alpha=0.5,
            label=f"measured{name}",
        )  # fmt: skip
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="score", ylabel="share that is true")
    axes.set_title("how often objects of a score are true")
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    return _save(figure, path, overwrite=overwrite)


def _precision_over_recall(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the curve that AP is the area of, before its precision is made to fall."""
    hits = evaluation.ranking["hit"].to_numpy(dtype=bool)
    tp = np.cumsum(hits)
    recall = tp / max(evaluation.n_truth, 1)
    axes.plot(recall, tp / np.arange(1, len(hits) + 1), color=_BLUE)
    if evaluation.n_objects:
        axes.plot(evaluation.recall, evaluation.precision, "o", color=_ORANGE)
        axes.annotate(
            f"threshold {evaluation.min_score:g}" if evaluation.min_score else "all objects",
            (evaluation.recall, evaluation.precision),
            textcoords="offset points",
            xytext=(-8, -14),
            ha="right",
        )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title(
        f"IoU {evaluation.iou_threshold:g}: AP50 {evaluation.ap50:.3f}, AP50:95 {evaluation.ap:.3f}"
    )
    axes.grid(alpha=0.3)


def _count_over_threshold(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the number of objects from each threshold on, and F1 on the right axis."""
    curve = curve_of(evaluation, _STEPS.tolist())
    axes.plot(curve["min_score"], curve["n_objects"], color=_BLUE, label="objects")
    axes.axhline(evaluation.n_truth, color=_GREY, linestyle="--", label="true ones")
    axes.set(xlim=(0, 1), xlabel="score threshold", ylabel="count")
    axes.set_ylim(bottom=0)
    other = axes.twinx()
    other.plot(curve["min_score"], curve["f1"], color=_ORANGE, label="F1")
    other.set(ylim=(0, 1.02), ylabel="F1")
    lines = [*axes.get_lines(), *other.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="lower left")
    axes.set_title("count and F1 by threshold")
    axes.grid(alpha=0.3)


_LOSSES = ("objectness", "rpn_box_reg", "classifier", "box_reg", "mask")


def write_training_curves(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a PNG of a training's log: its losses, and F1, precision and recall by step.

    Parameters
    ----------
    path : Path
        Ends in .png; replaced if it exists.
    rows : sequence of mapping
        With ``step`` and the losses, or ``validation``, as in a training's ``log.jsonl``; of rows
        for one step, which a resumed training writes again, the last counts.

    Returns
    -------
    Path
        The file written.
    """
    figure = _figure(10, 4.4)
    left, right = figure.subplots(1, 2)
    for name in _LOSSES:
        points = {row["step"]: row[name] for row in rows if name in row}
        left.plot(*_ordered(points), label=name)
    left.set(xlabel="step", ylabel="loss, smoothed", title="what the training makes small")
    left.set_ylim(bottom=0)
    left.legend(loc="center right")
    judged = {row["step"]: row["validation"] for row in rows if "validation" in row}
    for name, colour in (("f1", _BLUE), ("precision", _ORANGE), ("recall", _GREY)):
        points = {step: figures[name] for step, figures in judged.items()}
        right.plot(*_ordered(points), "o-", color=colour, label=name.replace("f1", "F1"))
    right.set(xlabel="step", ylim=(0, 1.02), title="final polygons on the validation areas")
    if judged:
        right.legend(loc="lower right")
    else:
        right.text(0.5, 0.5, "no [[validation]] areas", ha="center", transform=right.transAxes)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return _save(figure, path, overwrite=True)


def _ordered(points: Mapping[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def _figure(width: float, height: float) -> Figure:
    """Return an empty picture, inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # no pyplot: it would look for a screen, and keep figures
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path, *, overwrite: bool) -> Path:
    """Write a picture as PNG, whole or not at all."""
    with scratch(path) as temporary:
        figure.savefig(temporary, format="png")
        put(temporary, path, overwrite=overwrite)
    return path
