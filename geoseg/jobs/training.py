"""Training as a job: the file that one command stands for, validation on final polygons, curves."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from geoseg.config import DetectSettings
from geoseg.errors import ConfigError, LabelError
from geoseg.imagery.georef import working_grid
from geoseg.imagery.inputs import find_images
from geoseg.imagery.source import describe_raster
from geoseg.jobs.pipeline import run_detect
from geoseg.jobs.validation import Area, load_areas
from geoseg.learning.labels import Site, check_site, class_names, load_sites
from geoseg.learning.start import FROM_NOWHERE
from geoseg.learning.team import ALONE, Team
from geoseg.learning.train import (
    LOG,
    TrainingFile,
    Validation,
    read_training_file,
    train,
    with_small_objects,
)
from geoseg.models.registry import find_card
from geoseg.objects.evaluate import Evaluation, curve_of, evaluate, pool
from geoseg.outputs.curves import write_training_curves

log = logging.getLogger(__name__)

_LOW_SCORE = 0.1
"""Objects below it cannot matter to the best threshold of a model that has learnt anything."""
_THRESHOLDS = np.round(np.arange(0.2, 0.951, 0.05), 2)
_AS_GOOD = 0.005
"""F1 within which thresholds are equally good: the middle one of them is taken."""
_COARSER = 1.5
"""An image whose pixels are this much larger than a model's is learnt from at its own GSD."""
_FEWEST_TO_SPLIT = 20
"""Labels below which none can be spared for validation."""


@dataclass(frozen=True, slots=True)
class QuickJob:
    """What one command says, of which a training file is made."""

    image: str
    labels: str
    aoi: str | None = None
    class_field: str | None = None
    class_name: str = "object"
    """Of all labels, if there is no class field."""
    start: str = "buildings"
    gsd_m: float | None = None
    steps: int = 600
    validation: float = 0.2
    """Share of the labelled area kept for validation."""
    small_objects: float | str | None = None
    """Size in m, or 'labels': sets the GSD instead of ``gsd_m``."""
    name: str = "mine"


def write_quick_file(job: QuickJob, run_dir: Path) -> Path:
    """Write the training file that a `QuickJob` stands for into the run directory.

    The image's or the starting model's GSD is taken, classes are those of the labels. Of one image
    the part of the labelled area at one end of its longer side that holds the wanted share of the
    labels is kept for validation, of several the last ones. The file is there to be read and
    changed.

    Returns
    -------
    Path
        ``run_dir/train.toml``.

    Raises
    ------
    ConfigError, LabelError
        If something cannot be used, or the run directory holds another training.
    """
    images = [job.image] if "://" in job.image else find_images([job.image])
    table = {"name": job.name, "image": images[0], "labels": str(Path(job.labels).resolve())}
    if job.aoi is not None:
        plain = job.aoi in ("image", "labels")
        table["aoi"] = job.aoi if plain else str(Path(job.aoi).resolve())
    if job.class_field is not None:
        table["class_field"] = job.class_field
    check_site(table, "the command")
    gsd = _gsd(job, images[0])
    classes = class_names(Path(), table) or (job.class_name,)
    whole = table if len(images) == 1 else {**table, "image": job.image}
    sites = load_sites(Path(), whole, gsd, classes, with_pixels=False)
    kept = _kept(sites, job.validation)
    if not kept["validation"]:
        n = sum(len(site.polygons) for site in sites)
        log.warning(
            "no labels are kept to judge by (%d are too few, or stand too close): the last weights "
            "are taken, not the best; add [[validation]] to %s",
            n,
            run_dir / "train.toml",
        )
    text = _toml(job, table, gsd, classes, kept)
    path = run_dir / "train.toml"
    run_dir.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path} says something else than this command; go on with geoseg train {path} -o "
            f"{run_dir}, or choose another folder"
        )
    path.write_text(text, encoding="utf-8")
    return path


def _gsd(job: QuickJob, image: str) -> float:
    own = working_grid(describe_raster(image), None).gsd_m
    if job.gsd_m is not None:
        return job.gsd_m
    learnt = None if job.start in FROM_NOWHERE else find_card(job.start).gsd_m
    return round(own if learnt is None or own > _COARSER * learnt else learnt, 4)


_Kept = dict[str, list[dict[str, Any]]]
"""'sites' and 'validation' to what is special in each of their tables."""


def _kept(sites: Sequence[Site], share: float) -> _Kept:
    """Divide what is labelled into what is learnt from and what is judged."""
    if len(sites) == 1:
        return _parts(sites[0], share)
    own = [{"image": s.image, "name": s.name} for s in sites]
    counts = np.array([len(s.polygons) for s in sites])
    # the last images, as few as hold the share
    after = np.cumsum(counts[::-1])
    n = int(np.searchsorted(after, share * counts.sum())) + 1 if share > 0 else 0
    if n >= len(sites) or counts.sum() < _FEWEST_TO_SPLIT:
        n = 0
    return {"sites": own[: len(own) - n], "validation": own[len(own) - n :]}


def _parts(site: Site, share: float) -> _Kept:
    """Divide one image's labelled area by a line across its longer side."""
    centres = shapely.centroid(site.polygons)
    x0, y0, x1, y1 = shapely.bounds(site.aoi)
    across = x1 - x0 >= y1 - y0
    along = shapely.get_x(centres) if across else shapely.get_y(centres)
    low, length = (x0, x1 - x0) if across else (y0, y1 - y0)
    cut = float(np.round((np.quantile(along, 1 - share) - low) / length, 3))
    if share <= 0 or len(centres) < _FEWEST_TO_SPLIT or not 0.02 < cut < 0.98:
        return {"sites": [{}], "validation": []}
    # rows count downwards, fractions upwards
    parts = (
        ([0.0, 0.0, cut, 1.0], [cut, 0.0, 1.0, 1.0])
        if across
        else ([0.0, 1 - cut, 1.0, 1.0], [0.0, 0.0, 1.0, 1 - cut])
    )
    return {
        "sites": [{"aoi_part": [round(v, 3) for v in parts[0]]}],
        "validation": [{"aoi_part": [round(v, 3) for v in parts[1]]}],
    }


def _toml(
    job: QuickJob,
    table: Mapping[str, Any],
    gsd: float,
    classes: Sequence[str],
    kept: _Kept,
) -> str:
    gentle = job.start not in FROM_NOWHERE
    small = job.small_objects is not None
    train_table: dict[str, Any] = {
        "classes": list(classes),
        **({"small_objects": job.small_objects} if small else {}),
        **({} if small and job.gsd_m is None else {"gsd_m": gsd}),
        "steps": job.steps,
        "start": job.start,
        "warmup": min(50, max(1, job.steps // 10)),
        "checkpoint_every": 50,
        "ema": 0.99,
        # what a model knows is kept; from ImageNet or nothing the heads must move far
        **({"lr": 3e-4, "lr_backbone": 8e-5} if gentle else {}),
    }
    card: dict[str, Any] = {"name": job.name}
    if job.start not in FROM_NOWHERE:
        before = find_card(job.start)
        card |= {"licence": before.licence, "credits": list(before.credits)}
    lines = ["[train]", *_rows(train_table), "", "[card]", *_rows(card)]
    for kind, own in kept.items():
        for special in own:
            lines += ["", f"[[{kind}]]", *_rows({**table, **special})]
    return "\n".join(lines) + "\n"


def _rows(table: Mapping[str, Any]) -> list[str]:
    # JSON's texts, numbers and lists are TOML's too
    return [f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in table.items()]


@dataclass(slots=True, eq=False)
class ValidationAreas:
    """A training file's [[validation]] areas: judges models on them, in final polygons."""

    job: TrainingFile
    run_dir: Path
    shown: Callable[[Mapping[str, Any]], None] = lambda _row: None
    """Takes each row of the log, as for a table."""
    device: str = "auto"
    _areas: list[tuple[Area, Path]] = field(default_factory=list)

    def show(self, row: Mapping[str, Any]) -> None:
        """Show a row, and draw the curves anew where something was judged."""
        self.shown(row)
        if "validation" in row:
            write_training_curves(self.run_dir / "curves.png", read_log(self.run_dir / LOG))

    def validate(self, model: Path) -> Validation | None:
        """Run the model over the areas and compare its final polygons with the labels."""
        if not self.job.validation:
            return None
        if not self._areas:
            self._areas = self._read()
        return best_of(pool([self._evaluation(model, *area) for area in self._areas]))

    def _read(self) -> list[tuple[Area, Path]]:
        folder = self.run_dir / "validation"
        folder.mkdir(exist_ok=True)
        areas = load_areas(self.job.validation, self.job.path.parent, self.job.settings.classes)
        found = []
        for number, area in enumerate(areas, 1):
            path = folder / f"{number}.gpkg"
            area.aoi.to_file(path)
            found.append((area, path))
        return found

    def _evaluation(self, model: Path, area: Area, aoi: Path) -> Evaluation:
        settings = DetectSettings(
            images=(area.image,),
            output=None,
            model=str(model),
            aoi=aoi,
            min_score=_LOW_SCORE,
            workers=1,
            device=self.device,
        )
        objects = run_detect(settings).objects
        by_class = len(self.job.settings.classes) > 1
        return evaluate(objects, area.truth, aoi=area.aoi, by_class=by_class)


def best_of(evaluation: Evaluation) -> Validation:
    """Return the figures at the best threshold: the middle of those that are as good."""
    curve = curve_of(evaluation, _THRESHOLDS.tolist())
    good = curve[curve["f1"].fillna(0) >= curve["f1"].fillna(0).max() - _AS_GOOD]
    row = good.iloc[(len(good) - 1) // 2]
    figures = {k: float(row[k]) for k in ("f1", "min_score", "precision", "recall", "count_error")}
    plain = {k: 0.0 if np.isnan(v) else v for k, v in figures.items()}
    return Validation(**plain, n_truth=evaluation.n_truth)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a training's log; a half-written last line is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def run_training(
    path: Path,
    run_dir: Path,
    device: str = "auto",
    *,
    max_steps: int | None = None,
    shown: Callable[[Mapping[str, Any]], None] = lambda _row: None,
    team: Team = ALONE,
) -> Path:
    """Train from a training file, judging checkpoints on its [[validation]] areas.

    Parameters
    ----------
    path, run_dir, device, max_steps, team
        As for `geoseg.learning.train.train`.
    shown : callable
        Takes each row of the log.

    Returns
    -------
    Path
        The model.
    """
    job = with_small_objects(read_training_file(path))
    areas = ValidationAreas(job, run_dir, shown, device)
    model = train(path, run_dir, device, max_steps=max_steps, watcher=areas, team=team)
    log = run_dir / LOG
    if log.is_file() and team.leads:
        write_training_curves(run_dir / "curves.png", read_log(log))
    return model


def check_labels(path: Path) -> list[Site]:
    """Read all sites of a training file, those of validation too; nothing is trained.

    Raises
    ------
    LabelError
        If one cannot be used.
    """
    job = with_small_objects(read_training_file(path))
    sites: list[Site] = []
    for table in (*job.sites, *job.validation):
        sites += load_sites(path.parent, table, job.settings.gsd_m, job.settings.classes)
    if not sites:
        raise LabelError(f"{path} has no sites")
    return sites
