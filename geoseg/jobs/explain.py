"""Why a run found nothing: what it knows of itself, the likeliest cause first.

Nothing is run again for it: tiles count what they looked at and the best score that was not
enough, the preflight knows the pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
import shapely

from geoseg.errors import GeosegError
from geoseg.imagery.georef import polygons_to_crs
from geoseg.imagery.radiometry import Finding
from geoseg.jobs.ledger import RunDirectory
from geoseg.jobs.parts import PartSummary, read_part
from geoseg.jobs.plan import ImagePlan, RunPlan, part_key
from geoseg.objects.count import polygonal
from geoseg.outputs.tables import read_vector

_PARTS_READ = 200
"""Parts whose detections are looked at where all were removed."""
_NEAR_SCORE = 0.5
"""A best score of this share of the threshold says that the detector saw something."""
_FEW_VALID = 0.1
"""Where less than this share of the tiles holds pixels, that is worth a word."""
_CAUSES = {
    "blank": ("blank", "nodata"),
    "values": ("range", "flat"),
    "bands": ("bands",),
    "gsd": ("gsd",),
    "colour": ("colour",),
}
"""What the preflight found, by cause."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason why nothing may have been found."""

    kind: str
    """'failed', 'aoi', 'nodata', 'min-area', 'joined', 'threshold', 'blank', 'values', 'bands',
    'gsd', 'score', 'colour', 'undeclared' or 'nothing'."""
    says: str
    """What is so."""
    to_do: str
    """What to do or try next."""

    def __str__(self) -> str:
        return f"{self.says}; {self.to_do}"


def why_nothing(
    plan: RunPlan, run_dir: RunDirectory, summaries: Sequence[PartSummary]
) -> tuple[Cause, ...]:
    """Say why a run found no object, the likeliest cause first.

    Parameters
    ----------
    plan : RunPlan
        Of the run.
    run_dir : RunDirectory
        Its parts are looked at where detections were removed.
    summaries : sequence of PartSummary
        Of all supertiles.

    Returns
    -------
    tuple of Cause
        At least one.
    """
    if not any(s.tiles_run for s in summaries):
        return tuple(_nothing_looked_at(plan, summaries))
    causes = []
    lost = sum(len(s.tiles_failed) for s in summaries)
    if lost:
        causes.append(_failed(lost))
    if any(s.fragments for s in summaries):
        causes.append(_removed(plan, run_dir, summaries))
        return tuple(causes)
    return (*causes, *_nothing_seen(plan, summaries))


def as_notes(causes: Sequence[Cause], plan: RunPlan, summaries: Sequence[PartSummary]) -> list[str]:
    """Return the causes as lines of a run's notes."""
    if not causes:
        return []
    tiles, found = (sum(getattr(s, n) for s in summaries) for n in ("tiles_run", "fragments"))
    none = f"none has a detection with a score of {plan.detector.min_score:g} or more"
    became = f"none of {found} detection(s) is left" if found else none
    looked = (
        f"no objects: {tiles} tile(s) hold pixels inside the AOI and {became}; why that may be, "
        "the likeliest first:"
    )
    lines = [f"no objects, {i} of {len(causes)}: {c}" for i, c in enumerate(causes, start=1)]
    return [looked, *lines]


# -- nothing was looked at --------------------------------------------------------------------


def _nothing_looked_at(plan: RunPlan, summaries: Sequence[PartSummary]) -> Iterator[Cause]:
    states = [s.status for s in summaries]
    if "failed" in states:
        yield _failed(sum(len(s.tiles_failed) for s in summaries))
    if "outside" in states and ("nodata" not in states or _aoi_is_small(plan)):
        yield _outside(plan)
    if "nodata" in states:
        yield _without_data(plan)
    if "outside" in states and "nodata" in states and not _aoi_is_small(plan):
        yield _outside(plan)


def _aoi_is_small(plan: RunPlan) -> bool:
    """Tell whether the AOI leaves out most of the images."""
    inside = [float(shapely.area(i.aoi)) for i in plan.images if i.aoi is not None]
    return sum(inside) < 0.5 * sum(i.grid.width * i.grid.height for i in plan.images)


def _failed(lost: int) -> Cause:
    return Cause(
        "failed",
        f"{lost} tile(s) failed and were left out",
        "run.json says why under failed_tiles; the same command tries them again",
    )


def _outside(plan: RunPlan) -> Cause:
    aoi = plan.settings.aoi
    name = "the AOI" if aoi is None else f"--aoi {aoi.name}"
    places = _places(plan)
    return Cause(
        "aoi",
        f"{name} does not reach the imagery{places}",
        "check its CRS and its polygons, or leave out --aoi",
    )


def _places(plan: RunPlan) -> str:
    """Return where AOI and first image lie, in degrees; '' if that is not known."""
    image = plan.images[0]
    try:
        table = read_vector(Path(str(plan.settings.aoi)), what="AOI")
        shapes, _ = polygonal(table.geometry.array)
        middle = shapely.centroid(shapely.box(*shapely.total_bounds(shapes)))
        aoi = _degrees(table.crs, middle.x, middle.y)
        corner = [shapely.Point(image.grid.width / 2, image.grid.height / 2).buffer(1)]
        place = shapely.centroid(polygons_to_crs(corner, image.grid.transform)[0])
        here = _degrees(pyproj.CRS.from_wkt(image.info.crs_wkt), place.x, place.y)
    except (GeosegError, pyproj.exceptions.ProjError, ValueError):
        return ""
    return f" (it lies around {aoi}, {Path(image.info.path).name} around {here})"


def _degrees(crs: pyproj.CRS, x: float, y: float) -> str:
    to_degrees = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    lon, lat = to_degrees.transform(x, y)
    if not np.isfinite([lon, lat]).all():
        raise ValueError("not on the earth")
    return f"{lat:.4f}, {lon:.4f}"


def _without_data(plan: RunPlan) -> Cause:
    kinds = {
        "nodata": "nodata value",
        "alpha": "alpha band",
        "mask": "mask",
        "none": "pixels: none is finite, or none is inside",
    }
    infos = [image.info for image in plan.images]
    said = ", ".join(dict.fromkeys(kinds[info.mask_kind] for info in infos))
    values = sorted({f"{info.nodata:g}" for info in infos if info.nodata is not None})
    value = f" ({', '.join(values)})" if values else ""
    return Cause(
        "nodata",
        f"all tiles inside the AOI are without data by the imagery's {said}{value}",
        "if there is an image, geoseg check --statistics shows what its pixels hold; "
        "gdal_edit.py -unsetnodata FILE takes a wrong nodata value away",
    )


# -- something was found, and removed ---------------------------------------------------------


def _removed(plan: RunPlan, run_dir: RunDirectory, summaries: Sequence[PartSummary]) -> Cause:
    """Say what became of the detections."""
    found = sum(s.fragments for s in summaries)
    inside: list[float] = []
    for s in [s for s in summaries if s.status == "done"][:_PARTS_READ]:
        part = read_part(run_dir.part(part_key(plan, s.image, s.index)))
        image = plan.images[s.image]
        polygons = np.concatenate([part.settled.polygons, part.waiting.polygons])
        if image.aoi is not None and len(polygons):
            shapely.prepare(image.aoi)
            polygons = polygons[shapely.intersects(image.aoi, shapely.point_on_surface(polygons))]
        inside += (shapely.area(polygons) * image.grid.gsd_m**2).tolist()
    settings = plan.settings
    if settings.aoi is not None and not inside:
        return Cause(
            "aoi",
            f"all {found} detection(s) have their middle outside --aoi {settings.aoi.name}",
            "check its CRS and its polygons, or leave out --aoi",
        )
    largest = max(inside, default=0.0)
    if largest < (settings.min_area or 0.0):
        return Cause(
            "min-area",
            f"--min-area {settings.min_area:g} left out all {len(inside)} detection(s), the "
            f"largest of which covers {largest:.3g} m2",
            f"give a smaller --min-area, such as {_below(largest)}",
        )
    return Cause(
        "joined",
        f"all {found} detection(s) were dropped where tiles were joined: each is a part that a "
        "tile's edge cut and that no neighbour saw",
        "give a larger --overlap",
    )


def _below(value: float) -> str:
    """Return half of an area, as people write it."""
    return f"{float(f'{0.5 * value:.1g}'):g}"


# -- nothing was seen -------------------------------------------------------------------------


def _nothing_seen(plan: RunPlan, summaries: Sequence[PartSummary]) -> Iterator[Cause]:
    best = max(s.best_below for s in summaries)
    scored = list(_score(plan, summaries, best))
    found = {kind: _found(plan, kinds) for kind, kinds in _CAUSES.items()}
    yield from (cause for cause in scored if cause.kind == "threshold")
    for kind in ("blank", "values", "bands", "gsd"):
        yield from found[kind]
    yield from (cause for cause in scored if cause.kind == "score")
    yield from found["colour"]
    yield from _undeclared(plan)
    yield from _few_tiles(plan, summaries)
    if not any(cause.kind == "threshold" for cause in scored):
        yield _nothing_there(plan, best)


def _score(plan: RunPlan, summaries: Sequence[PartSummary], best: float) -> Iterator[Cause]:
    """Say what was seen below the threshold."""
    threshold = plan.detector.min_score
    usual = plan.about_model.get("min_score")
    n = sum(s.n_below for s in summaries)
    if not n:
        return
    too_high = usual is not None and usual <= best < threshold
    if not too_high and best < _NEAR_SCORE * threshold:
        return
    # a little below the best, so that it passes
    lower = max(float(np.floor(100 * best)) / 100, 0.01)
    usual_words = f" (the model's own is {usual:g})" if too_high else ""
    yield Cause(
        "threshold" if too_high else "score",
        f"the best score is {best:.2f}, the threshold {threshold:g}{usual_words}; {n} box(es) "
        "score less than the threshold",
        f"give --min-score {usual if too_high else lower:g}",
    )


def _found(plan: RunPlan, kinds: Sequence[str]) -> Iterator[Cause]:
    """Return what the preflight said of most of the images that were looked at."""
    told: dict[Finding, list[ImagePlan]] = {}
    for image in plan.images:
        for finding in image.findings:
            if finding.kind in kinds and finding.level in ("warn", "refuse"):
                told.setdefault(finding, []).append(image)
    for finding, images in sorted(told.items(), key=lambda item: -len(item[1]))[:3]:
        names = Path(images[0].info.path).name
        if len(images) > 1:
            names += f" and {len(images) - 1} more of {len(plan.images)} images"
        cause = next(kind for kind, of in _CAUSES.items() if finding.kind in of)
        yield Cause(cause, f"{names}: {finding.says}", finding.to_do or "look at the file")


def _undeclared(plan: RunPlan) -> Iterator[Cause]:
    """Say that a detector which tells no range got values that many detectors do not know."""
    types = sorted({image.info.dtype for image in plan.images} - {"uint8"})
    if plan.expected is None or plan.expected.value_range is not None or not types:
        return
    yield Cause(
        "undeclared",
        f"pixels are {', '.join(types)}, and {plan.expected.model} does not say what it expects: "
        "they came as they are",
        "if it was made for 8 bits, give it value_range = (0, 255) and dtype = 'uint8', and geoseg "
        "scales them",
    )


def _few_tiles(plan: RunPlan, summaries: Sequence[PartSummary]) -> Iterator[Cause]:
    tiles, run = sum(s.tiles for s in summaries), sum(s.tiles_run for s in summaries)
    if run >= _FEW_VALID * tiles:
        return
    aoi = "" if plan.settings.aoi is None else " or lie outside the AOI"
    yield Cause(
        "nodata",
        f"only {run} of {tiles} tiles were looked at: the others are without data{aoi}",
        "geoseg plan shows what would be looked at",
    )


def _nothing_there(plan: RunPlan, best: float) -> Cause:
    classes = ", ".join(plan.classes[:5]) + (" ..." if len(plan.classes) > 5 else "")
    gsd = plan.images[0].grid.gsd_m
    return Cause(
        "nothing",
        f"the imagery may show none of what the detector knows ({classes}), or not as it knows "
        f"them: it looked at {gsd:.2g} m a pixel, and "
        + (f"the best score below the threshold is {best:.2f}" if best else "it scored nothing"),
        "look at the imagery, and at geoseg models --help for others",
    )
