"""Tune a model on labelled areas: thresholds, the smallest object, a calibration for its card."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geoseg.errors import ConfigError, ModelError
from geoseg.jobs.validation import Area, Bench, KeptDetections, run_in
from geoseg.models.card import ModelCard, load_card_and_weights, read_card
from geoseg.models.inference import make_detector
from geoseg.models.known import split_name
from geoseg.models.registry import find_model, shipped_models
from geoseg.models.views import LOOK_AT, Views
from geoseg.objects.calibrate import FEWEST, reliability
from geoseg.objects.evaluate import Evaluation, evaluate, pool
from geoseg.objects.expected import Calibration
from geoseg.objects.tune import (
    Goal,
    calibration_of_areas,
    choose_area,
    choose_score,
    curve_of_runs,
    f1_interval,
    figures_of,
    foretell,
    in_parts,
    tally,
)
from geoseg.outputs.publish import put, scratch

LOWEST = 0.1
"""Score from which objects are looked at."""
STEP = 0.05
AREAS_M2 = (0.0, 2.0, 5.0, 8.0, 12.0, 16.0, 20.0, 25.0, 30.0)
"""Smallest objects that are tried."""
_SAME_F1 = 0.01
"""By how much a run with the tuned card may differ before it is told."""


@dataclass(frozen=True, slots=True, eq=False)
class Tuning:
    """What was chosen for a model, what it gives, and how sure that is."""

    card: ModelCard
    """The tuned card, without its quality."""
    goal: Goal
    scores: dict[str, float]
    """Threshold of each class."""
    curves: dict[str, pd.DataFrame] = field(repr=False)
    """By class ('' where there is one threshold for all): a row per threshold, each of a run."""
    areas: pd.DataFrame = field(repr=False)
    """At the choice: a row per area and one for all together."""
    f1_90: tuple[float, float]
    """Bounds of F1 in 90 % of draws of such objects."""
    one_run: float
    """F1 that leaving objects of the run at the lowest threshold out would give."""
    verified: float
    """F1 of a run with the tuned card."""
    held_out: pd.DataFrame = field(repr=False)
    """A row per area: thresholds chosen on the others, and its figures at them; empty with one
    area."""
    nms: pd.DataFrame = field(repr=False)
    """A row per tried ``nms_iou``; one if none were asked for."""
    pooled: Evaluation = field(repr=False)
    """Of all areas, every score: what curves are drawn of."""
    notes: tuple[str, ...] = ()
    """What the user should know."""
    calibration: Calibration | dict[str, Calibration] | None = None
    foretold: pd.DataFrame | None = field(default=None, repr=False)
    """Counts of parts of each area, foretold from the other areas, and from the other parts."""
    reliability: pd.DataFrame | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return all that was found, ready for JSON."""
        out: dict[str, Any] = {
            "model": self.card.name,
            "goal": str(self.goal),
            "scores": self.scores,
            "min_score": self.card.min_score,
            "min_area_m2": self.card.min_area_m2,
            "nms_iou": self.card.nms_iou,
            "areas": self.areas.to_dict("records"),
            "f1_90": list(self.f1_90),
            "f1_of_one_run_at_a_low_score": self.one_run,
            "f1_of_a_run_with_the_card": self.verified,
            "held_out": self.held_out.to_dict("records"),
            "nms": self.nms.to_dict("records"),
            "thresholds": {k or "all": v.to_dict("records") for k, v in self.curves.items()},
            "notes": list(self.notes),
        }
        if self.foretold is not None:
            out["calibration"] = plain_calibration(self.calibration)
            out["foretold"] = self.foretold.to_dict("records")
            out["share_inside"] = self.share_inside
        return out

    @property
    def share_inside(self) -> dict[str, float]:
        """Share of the foretold counts whose interval holds the truth, by ``left_out``."""
        if self.foretold is None:
            return {}
        return {str(k): float(v["inside"].mean()) for k, v in self.foretold.groupby("left_out")}


def tune(
    model: str | Path,
    areas: Sequence[Area],
    *,
    goal: Goal | None = None,
    nms: Sequence[float] = (),
    lowest: float = LOWEST,
    iou: float = 0.5,
    calibrate: bool = False,
    device: str = "auto",
    views: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> Tuning:
    """Choose the thresholds of a model on labelled areas, and measure what they give.

    Parameters
    ----------
    model : str or Path
        Name of a shipped model, or path of a ``.safetensors`` file.
    areas : sequence of Area
        Of `geoseg.jobs.validation.load_areas`; such that the model has not learnt from.
    goal : Goal, optional
        What for; by default the best F1.
    nms : sequence of float
        Values of ``nms_iou`` to try, each of which needs the network; none: the card's.
    lowest : float
        Lowest threshold, in [0, 0.9]; the others follow in steps of 0.05.
    iou : float
        From which an object matches a true one.
    calibrate : bool
        Fit a calibration at the choice, and prove it on areas left out.
    device : str
        'auto', 'cpu' or 'cuda'.
    views : int
        Sides that each tile is looked at from, as in the runs that the thresholds are for; None:
        the card's.
    tell : callable, optional
        Told in words what is done.

    Returns
    -------
    Tuning
        Nothing is written; see `write_tuned`.

    Raises
    ------
    GeosegError
        If model or areas cannot be used, or the goal cannot be reached.
    """
    goal, tell = goal or Goal(), tell or (lambda _: None)
    path = tunable(model)
    card = read_card(path)
    views = card.views if views is None else views
    n_truth = sum(area.n_truth for area in areas)
    if calibrate and n_truth < FEWEST:
        raise ConfigError(
            f"a calibration needs {FEWEST} true things at least, but the areas hold {n_truth}; "
            "label more, or leave --calibrate out"
        )
    by_class = len(card.classes) > 1 and "class" in areas[0].truth.columns
    trials = []
    for value in dict.fromkeys(nms or (card.nms_iou,)):
        detector = _detector(path, card, value, lowest, device, views)
        bench = Bench(areas, detector, iou=iou, by_class=by_class, tell=tell)
        tell(f"joining at {len(_thresholds(lowest))} thresholds (nms_iou {value:g})")
        trials.append((value, bench, _choose(bench, card, goal, lowest)))
    best = max(range(len(trials)), key=lambda i: _merit(trials[i][2], goal))
    value, bench, choice = trials[best]
    tuned = _tuned_card(card, choice, value, bench, views)
    tell("running once more with the tuned card")
    found = Tuning(
        card=tuned,
        goal=goal,
        scores=choice.scores,
        curves=choice.curves,
        areas=_areas_table(areas, choice.at),
        f1_90=f1_interval(*_errors(choice.at)),
        one_run=_of_one_run(bench, choice, lowest),
        verified=_verified(path, tuned, bench, device),
        held_out=_held_out(bench, card, goal, lowest, choice.min_area_m2),
        nms=pd.DataFrame([{"nms_iou": v, **c.summary} for v, _, c in trials]),
        pooled=_pooled(bench, choice, lowest),
        notes=choice.notes,
    )
    if abs(found.verified - choice.summary["f1"]) > _SAME_F1:
        said = (
            f"a run with the tuned card gives F1 {found.verified:.3f} instead of "
            f"{choice.summary['f1']:.3f}; trust the former, and report it"
        )
        found = replace(found, notes=(*found.notes, said))
    return _calibrated(found, bench, choice) if calibrate else found


def tunable(model: str | Path) -> Path:
    """Return the weights file of a model that can be tuned.

    Raises
    ------
    ModelError
        If it is unknown, or no ``.safetensors`` file: others have no card to write into.
    """
    # a known model is looked at before find_model would download it
    known, path = split_name(model)
    if known is None or str(model) in shipped_models():
        path = find_model(model)
    if path is None or path.suffix != ".safetensors":
        raise ModelError(
            f"{model} is no .safetensors file, so it has no card to tune; make one with geoseg "
            "convert, or train one"
        )
    return path


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """What one value of nms_iou comes to."""

    scores: dict[str, float]
    min_area_m2: float
    curves: dict[str, pd.DataFrame]
    at: list[Evaluation]
    summary: dict[str, Any]
    notes: tuple[str, ...]


def _thresholds(lowest: float) -> list[float]:
    return [round(float(t), 4) for t in np.arange(lowest, 0.9501, STEP)]


def _detector(
    path: Path, card: ModelCard, nms_iou: float, lowest: float, device: str, views: int
) -> KeptDetections:
    """Load the model at the lowest threshold."""
    _, weights = load_card_and_weights(path)
    plain = replace(card, nms_iou=nms_iou)
    least = lowest if views == 1 else min(lowest, LOOK_AT)
    # as a run computes
    each = make_detector(plain, weights, path, device=device, min_score=least, precision="fast")
    return KeptDetections(each if views == 1 else Views(each, views, lowest))


def _choose(bench: Bench, card: ModelCard, goal: Goal, lowest: float) -> _Choice:
    """Choose thresholds, then the smallest object at them, then thresholds for that."""
    steps = _thresholds(lowest)
    kinds = bench.kinds
    notes = [
        f"no label shows '{kind}': its threshold stays {_own_score(card, kind):g}"
        for kind in (card.classes if bench.by_class else ())
        if kind not in kinds
    ]
    everything = range(len(bench.areas))
    runs = {score: bench.at(score) for score in steps}
    scores = _scores(runs, kinds, goal, card, everything)
    f1 = {area: tally_of(_judge(bench, scores, area))["f1"] for area in AREAS_M2}
    least = choose_area(f1)
    if least:
        runs = {score: bench.at(score, least) for score in steps}
        scores = _scores(runs, kinds, goal, card, everything)
    at = _judge(bench, scores, least)
    curves = {kind: curve_of_runs(runs, kind) for kind in kinds}
    return _Choice(scores, least, curves, at, tally_of(at), tuple(notes))


def _own_score(card: ModelCard, kind: str) -> float:
    return float(card.class_scores.get(kind, card.min_score))


def _scores(
    runs: Mapping[float, Sequence[Evaluation]],
    kinds: Sequence[str],
    goal: Goal,
    card: ModelCard,
    chosen_on: Sequence[int] | range,
) -> dict[str, float]:
    """Return the threshold of each class, chosen on some of the areas."""
    some = {score: [found[i] for i in chosen_on] for score, found in runs.items()}
    found = {kind: choose_score(curve_of_runs(some, kind), goal, kind) for kind in kinds}
    return {kind: found.get(kind, found.get("", _own_score(card, kind))) for kind in card.classes}


def _judge(bench: Bench, scores: Mapping[str, float], min_area_m2: float) -> list[Evaluation]:
    """Return the figures of each area at thresholds by class."""
    if len(set(scores.values())) == 1:
        return bench.at(next(iter(scores.values())), min_area_m2)
    return [
        evaluate(
            objects,
            area.truth,
            aoi=area.aoi,
            iou_threshold=bench.iou,
            min_score=min(scores.values()),
            by_class=bench.by_class,
        )
        for area, objects in zip(bench.areas, bench.joined(scores, min_area_m2), strict=True)
    ]


def tally_of(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the figures of all classes over several areas."""
    kinds = {k for e in evaluations for k in (*e.ranking["class"], *e.truth["class"])}
    each = [tally(evaluations, kind) for kind in kinds]
    return figures_of(*(sum(t[k] for t in each) for k in ("n_objects", "n_truth", "tp")))


def _errors(evaluations: Sequence[Evaluation]) -> tuple[int, int, int]:
    """Return matches, false objects and missed ones."""
    t = tally_of(evaluations)
    return t["tp"], t["n_objects"] - t["tp"], t["n_truth"] - t["tp"]


def _merit(choice: _Choice, goal: Goal) -> tuple[float, float]:
    """Return what the best choice has most of."""
    figures = choice.summary
    first = {
        "f1": figures["f1"],
        "count": -round(abs(figures["count_error"]), 2),
        "precision": figures["recall"],
    }[goal.kind]
    return float(first), float(figures["f1"])


def _tuned_card(
    card: ModelCard, choice: _Choice, nms_iou: float, bench: Bench, views: int
) -> ModelCard:
    """Return the card with what was chosen; a calibration for other thresholds goes."""
    values = set(choice.scores.values())
    several = bench.by_class and len(values) > 1
    changes: dict[str, Any] = {
        "min_score": min(values),
        "class_scores": choice.scores if several else {},
        "min_area_m2": choice.min_area_m2,
        "nms_iou": nms_iou,
        "views": views,
    }
    if any(getattr(card, name) != value for name, value in changes.items()):
        quality = {k: v for k, v in card.quality.items() if k != "calibration"}
        changes |= {"calibration": {}, "quality": quality}
    return replace(card, **changes)


def _areas_table(areas: Sequence[Area], at: Sequence[Evaluation]) -> pd.DataFrame:
    rows = [{"area": a.name, **tally_of([e])} for a, e in zip(areas, at, strict=True)]
    if len(rows) > 1:
        rows.append({"area": "together", **tally_of(at)})
    return pd.DataFrame(rows)


def _of_one_run(bench: Bench, choice: _Choice, lowest: float) -> float:
    """Return F1 of the objects of the lowest run that reach the thresholds."""
    found = []
    for area, objects in zip(bench.areas, bench.objects(lowest), strict=True):
        wanted = objects["class"].map(choice.scores).astype(float)
        kept = objects[(objects["score"] >= wanted) & (objects["area_m2"] >= choice.min_area_m2)]
        found.append(
            evaluate(kept, area.truth, aoi=area.aoi, iou_threshold=bench.iou,
                     by_class=bench.by_class)
        )  # fmt: skip
    return float(tally_of(found)["f1"])


def _verified(path: Path, card: ModelCard, bench: Bench, device: str) -> float:
    """Return F1 of a run with the card as it will be written, by the way that every run goes."""
    with tempfile.TemporaryDirectory(prefix="geoseg-tune-") as folder:
        copy = Path(folder) / path.name
        copy.symlink_to(path.absolute())
        copy.with_suffix(".json").write_text(card.to_json(), encoding="utf-8")
        found = []
        for area in bench.areas:
            settings = replace(bench.settings(area), model=str(copy), device=device)
            objects = bench.of_kinds(run_in(area, settings, quiet=True))
            found.append(
                evaluate(objects, area.truth, aoi=area.aoi, iou_threshold=bench.iou,
                         by_class=bench.by_class)
            )  # fmt: skip
    return float(tally_of(found)["f1"])


def _held_out(
    bench: Bench, card: ModelCard, goal: Goal, lowest: float, least: float
) -> pd.DataFrame:
    """Choose on all areas but one, and judge that one."""
    rows = []
    runs = {score: bench.at(score, least) for score in _thresholds(lowest)}
    for i, area in enumerate(bench.areas if len(bench.areas) > 1 else ()):
        others = [k for k in range(len(bench.areas)) if k != i]
        row: dict[str, Any] = {"area": area.name, "n_truth": area.n_truth}
        try:
            scores = _scores(runs, bench.kinds, goal, card, others)
        except ConfigError as error:
            rows.append({**row, "why_not": str(error)})
            continue
        figures = tally_of([_judge(bench, scores, least)[i]])
        shown = " ".join(f"{s:g}" for s in dict.fromkeys(scores.values()))
        rows.append({**row, "min_score": shown, **figures, "why_not": ""})
    return pd.DataFrame(rows)


def _pooled(bench: Bench, choice: _Choice, lowest: float) -> Evaluation:
    """Return the evaluation of the lowest run, with the choice marked."""
    mark = min(choice.scores.values())
    return pool(
        [
            evaluate(objects[objects["area_m2"] >= choice.min_area_m2], area.truth, aoi=area.aoi,
                     iou_threshold=bench.iou, min_score=mark, by_class=bench.by_class)
            for area, objects in zip(bench.areas, bench.objects(lowest), strict=True)
        ]
    )  # fmt: skip


def _calibrated(found: Tuning, bench: Bench, choice: _Choice) -> Tuning:
    """Add a calibration at the choice, and counts of each area foretold from the others."""
    joined = bench.joined(choice.scores, choice.min_area_m2)
    kinds = bench.kinds
    fitted: dict[str, Calibration] = {}
    tables, bins = [], []
    for kind in kinds:
        score = choice.scores[kind] if kind else min(choice.scores.values())
        groups = {
            area.name: _parts(area, objects, kind, score, bench.iou)
            for area, objects in zip(bench.areas, joined, strict=True)
        }
        fitted[kind] = calibration_of_areas(groups)
        named = {"class": kind} if kind else {}
        tables.append(foretell(groups).assign(**named))
        if len(groups) > 1:
            tables.append(foretell(groups, whole_areas=False).assign(**named))
        parts = [part for one in groups.values() for part in one]
        bins.append(reliability(parts).assign(**named))
    calibration = fitted if kinds != [""] else fitted[""]
    return replace(
        found,
        card=replace(found.card, calibration=plain_calibration(calibration)),
        calibration=calibration,
        foretold=pd.concat(tables, ignore_index=True),
        reliability=pd.concat(bins, ignore_index=True),
    )


def _parts(
    area: Area, objects: Any, kind: str, score: float, iou: float
) -> list[Evaluation]:  # fmt: skip
    """Judge the objects of one class in an area, in parts."""
    truth = area.truth
    if kind:
        objects, truth = objects[objects["class"] == kind], truth[truth["class"] == kind]
    judged = evaluate(objects, truth, aoi=area.aoi, iou_threshold=iou, min_score=score)
    return in_parts(judged, objects, truth, area.aoi)


def plain_calibration(found: Calibration | Mapping[str, Calibration] | None) -> dict[str, Any]:
    """Return a calibration as a card keeps it."""
    if found is None:
        return {}
    if isinstance(found, Calibration):
        return found.to_dict()
    return {kind: one.to_dict() for kind, one in found.items()}


def quality_of(tuning: Tuning, command: str) -> dict[str, Any]:
    """Return what a card says of its thresholds: figures, areas, and the command; no date."""
    rows = tuning.areas.round(3).to_dict("records")
    names = ("n_truth", "n_objects", "precision", "recall", "f1", "count_error")
    told: dict[str, Any] = {
        "command": command,
        "goal": str(tuning.goal),
        "iou": tuning.pooled.iou_threshold,
        "areas": {r["area"]: {name: r[name] for name in names} for r in rows},
        "f1_90": [round(v, 3) for v in tuning.f1_90],
    }
    if len(tuning.held_out):
        told["f1_with_thresholds_of_the_other_areas"] = {
            row["area"]: round(row["f1"], 3)
            for row in tuning.held_out.to_dict("records")
            if not row["why_not"]
        }
    if tuning.foretold is not None:
        told["foretold_counts_inside_90"] = {
            f"{kind}s left out": round(share, 3) for kind, share in tuning.share_inside.items()
        }
    plain: dict[str, Any] = _without_nan(told)
    return plain


def _without_nan(value: Any) -> Any:
    """Return values with NaN, which JSON does not know, as None."""
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def check_target(model: str | Path, output: Path | None, *, overwrite: bool) -> Path:
    """Return the weights file whose card is to be written.

    Raises
    ------
    ConfigError
        If a shipped model were changed, or the output cannot be written.
    """
    path = tunable(model)
    if output is None:
        if any(path.samefile(one) for one in shipped_models().values()):
            raise ConfigError(
                f"{model} is a shipped model, whose card stays as it is; give -o MY.safetensors to "
                "make a copy with the tuned card"
            )
        return path
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output is {output.name}; expected a name ending in .safetensors")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"output folder {output.parent} does not exist; create it first")
    for one in (output, output.with_suffix(".json")):
        if one.exists() and one.samefile(path):
            raise ConfigError(f"{output} is the model itself; give --write to change its card")
        if one.exists() and not overwrite:
            raise ConfigError(f"{one} exists; give --overwrite to replace it, or another name")
    return output.absolute()


def write_tuned(path: Path, tuning: Tuning, command: str, *, source: Path) -> Path:
    """Write the tuned card beside a weights file; copy the weights there, where it is another.

    All else in the card stays as it is. Nobody ever sees half a card.

    Parameters
    ----------
    path : Path
        Of `check_target`.
    tuning : Tuning
        What to write.
    command : str
        Kept in the card's ``quality``.
    source : Path
        The model that was tuned.

    Returns
    -------
    Path
        The card.
    """
    values = json.loads(source.with_suffix(".json").read_text(encoding="utf-8"))
    card = asdict(tuning.card)
    tuned = ("min_score", "class_scores", "min_area_m2", "nms_iou", "views", "calibration")
    for name in tuned:
        values[name] = card[name]
    values["quality"] = {**tuning.card.quality, "tuned": quality_of(tuning, command)}
    # as a run will read it
    ModelCard.from_dict(values, "the tuned card")
    if not (path.exists() and path.samefile(source)):
        with scratch(path) as temporary:
            shutil.copyfile(source, temporary)
            put(temporary, path, overwrite=True)
    target = path.with_suffix(".json")
    with scratch(target) as temporary:
        text = json.dumps(values, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
        put(temporary, target, overwrite=True)
    return target
