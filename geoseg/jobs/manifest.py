"""What a run tells about itself: notes for people, the manifest for machines."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geoseg
from geoseg.config import DetectSettings
from geoseg.imagery.radiometry import Sight
from geoseg.imagery.read import how_read
from geoseg.jobs.events import redact
from geoseg.jobs.parts import PartSummary
from geoseg.jobs.plan import RunPlan
from geoseg.models.registry import find_card
from geoseg.objects.count import Calibrations
from geoseg.outputs.regions import holding_calibration

HOW_ONLY = (
    "workers", "device", "overwrite", "on_error", "max_errors", "until", "scheduler",
    "insecure_cluster", "resource", "shard", "notify", "run_dir", "report", "force", "allow_vrt",
)  # fmt: skip
"""Settings that decide how a run is done, not what comes out."""
OUTPUT_ONLY = (
    "output", "also", "split_by", "split_rows",
    "regions", "grid", "counts", "rule", "regions_crs", "parent", "id_field",
)  # fmt: skip
"""Settings that decide where the objects go and how they are counted, not the objects."""


def plain_settings(settings: DetectSettings) -> dict[str, Any]:
    """Return what was set, ready for JSON; of paths the file names."""
    out: dict[str, Any] = {}
    for name, value in asdict(settings).items():
        if value is None or (name == "allow_vrt" and not value):
            continue
        if isinstance(value, Path):
            out[name] = value.name
        elif name == "also":
            # where there are none, as if the setting did not exist
            out |= {name: [path.name for path in value]} if value else {}
        elif name == "images":
            out[name] = [redact(image) for image in value]
        else:
            out[name] = redact(value) if isinstance(value, str) else value
    return out


def run_notes(plan: RunPlan, summaries: Sequence[PartSummary]) -> tuple[str, ...]:
    """Return what the user should know about a run."""
    notes = []
    if skipped := sum(s.tiles_skipped for s in summaries):
        notes.append(
            f"{skipped} tile(s) were left out because a look at coarser pixels found nothing in "
            "them (--skip-empty); some objects may be missing there"
        )
    if saturated := sum(len(s.saturated) for s in summaries):
        notes.append(f"{saturated} tile(s) reached the detector's cap and were run in quarters")
    if capped := sum(s.capped for s in summaries):
        notes.append(
            f"{capped} quarter(s) of tiles reached the detector's cap even so and may lack "
            "objects; the coverage layer says where, a smaller --tile-size may help"
        )
    if plan.about_model.get("boxes_only"):
        notes.append("the model finds boxes only: each object is its box")
    if len({i.info.crs_wkt for i in plan.images}) > 1:
        notes.append(f"the images have different CRSs; the output is in {plan.crs.name}")
    if plan.settings.counting and (why := calibration_of(plan)[1]):
        notes.append(why)
    notes += plan.crs_notes
    notes += plan.notes("refuse", "warn", "info")
    return tuple(notes)


def calibration_of(plan: RunPlan) -> tuple[Calibrations | None, str]:
    """Return the calibration of the model's card, if it holds for this run, and why it does not.

    Returns
    -------
    calibration : Calibration, dict of str to Calibration, or None
        What counts get their intervals from.
    why : str
        Empty, but for a calibration that does not hold.
    """
    about = plan.about_model
    least, views = plan.settings.min_area or 0.0, plan.detector.views
    return holding_calibration(about, plan.scores, least, views)


def about_run(plan: RunPlan) -> dict[str, Any]:
    """Return what a run is made of: versions, model, images and their grids."""
    packages = ("torch", "torchvision", "rasterio", "shapely", "geopandas", "pyogrio", "dask")
    return {
        "key": plan.key,
        "settings": plain_settings(plan.settings),
        "geoseg": geoseg.__version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "model": plan.about_model,
        **({"limits": dict(plan.detector.limits)} if plan.detector.limits else {}),
        "scores": plan.scores,
        "min_area_m2": plan.settings.min_area or 0.0,
        "views": plan.detector.views,
        "images": [
            {
                "name": Path(i.info.path).name,
                "fingerprint": i.info.fingerprint,
                "gsd_m": i.info.gsd_m,
                "working_gsd_m": i.grid.gsd_m,
                "grid_px": [i.grid.height, i.grid.width],
                "grid_transform": list(i.grid.transform)[:6],
                "crs": i.info.crs_wkt,
                "bands": list(i.bands),
                "pixels": how_read(i.info),
                "validity": i.info.mask_kind,
                "tiles": i.tiles.n_tiles,
                "tile_size": i.tiles.tile_size,
                "overlap": i.tiles.overlap,
                "scaling": None if i.scaling is None else i.scaling.to_dict(),
                **({} if i.small is None else {"small_objects": i.small.to_dict()}),
                **_seen(i.sight),
            }
            for i in plan.images
        ],
    }


def _seen(sight: Sight | None) -> dict[str, Any]:
    """Return what the pixels of an image hold, as far as they were looked at."""
    if sight is None or not sight.statistics:
        return {}
    names = ("band", "min", "max", "mean", "std", "invalid")
    bands = [{name: getattr(band, name) for name in names} for band in sight.statistics]
    return {"statistics": bands, "statistics_from": sight.source}


def model_card(plan: RunPlan) -> dict[str, Any]:
    """Return the card of the model, or what the user's own detector says of itself."""
    if plan.detector.model is None:
        return {**plan.about_model, "classes": list(plan.classes)}
    return asdict(find_card(plan.settings.model))


def credits_of(plan: RunPlan) -> str:
    """Return whom a user of the output must name, and under which licences, as text."""
    about = plan.about_model
    lines = [f"Found by geoseg {geoseg.__version__} with the model {about['name']}."]
    if about.get("licence"):
        lines.append(f"Licence of the model: {about['licence']}.")
    lines += [f"Credit: {credit}." for credit in about.get("credits", [])]
    lines.append("The licence of the imagery applies to what was found in it, too.")
    return "\n".join(lines)


def about_supertiles(plan: RunPlan, summaries: Sequence[PartSummary]) -> dict[str, Any]:
    """Return what became of the supertiles and of tiles in them."""
    return {
        "supertiles": dict(Counter(s.status for s in summaries)),
        "failed_tiles": [
            {"image": _name(plan, s), "tile": [row, col], "reason": reason}
            for s in summaries
            for row, col, reason in s.tiles_failed
        ],
        "skipped_tiles": sum(s.tiles_skipped for s in summaries),
        "saturated_tiles": sum(len(s.saturated) for s in summaries),
        "saturated_places": _saturated_places(plan, summaries),
    }


def worker_seconds(summaries: Sequence[PartSummary]) -> dict[str, float]:
    """Return the seconds that workers spent, by stage."""
    stages: Counter[str] = Counter()
    for summary in summaries:
        stages.update(summary.seconds)
    return {f"worker_{name}": round(value, 2) for name, value in stages.items()}


def _name(plan: RunPlan, summary: PartSummary) -> str:
    return Path(plan.images[summary.image].info.path).name


def _saturated_places(plan: RunPlan, summaries: Sequence[PartSummary]) -> list[dict[str, Any]]:
    """Return where tiles reached a cap of the detector: image, tile, and its window in grid px."""
    places = []
    for s in summaries:
        for row, col in s.saturated:
            window = plan.images[s.image].tiles.tile(row, col).window
            places.append(
                {
                    "image": _name(plan, s),
                    "tile": [row, col],
                    "window": [int(v) for v in window.flatten()],
                }
            )
    return places
