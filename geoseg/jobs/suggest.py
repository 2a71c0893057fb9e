"""Look at images with half a tile of overlap and say which squares to label next.

Every place is seen by two tiles or more (four, away from the edges): where they disagree the model
does not know. All that an image shows is held in memory until its squares are valued.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from rasterio.windows import Window

from geoseg.config import DetectSettings
from geoseg.errors import ConfigError, OutputError, SourceError, TileError
from geoseg.imagery.georef import (
    geodesic_area_perimeter,
    polygons_to_crs,
    polygons_to_pixels,
    reproject_polygons,
)
from geoseg.imagery.placing import horizontal
from geoseg.imagery.read import cut_tiles, read_supertile
from geoseg.jobs.plan import ImagePlan, RunPlan, plan_run
from geoseg.jobs.supertile import Seen, SupertileTask, look, tiles_wanted
from geoseg.models.detector import Detector
from geoseg.models.registry import find_card
from geoseg.objects.regions import polygonal
from geoseg.objects.shape import simplify
from geoseg.objects.stitch import stitch
from geoseg.objects.suggest import (
    Candidates,
    Survey,
    choose_squares,
    survey_found,
    values_of,
)
from geoseg.outputs.formats import check_output
from geoseg.outputs.tasks import (
    Chip,
    make_chip,
    read_labelled,
    write_chip,
    write_tasks,
    write_tasks_coco,
)
from geoseg.records import DoubleArray, Fragments, GeometryArray, Objects

log = logging.getLogger(__name__)

CHIP_PX = 384
"""Side of a training chip where the model's card names none, px."""
LOW_SHARE, LOWEST = 0.2, 0.05
"""The detector is asked for scores from this share of its threshold, but not below the other."""
SHOWN_SHARE = 0.5
"""Outlines are handed over from this share of the threshold; below it, as rejected."""
SIMPLIFY_PX = 0.5
"""Outlines that people are to correct have few vertices."""
_METRES_PER_DEGREE = 111_195.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class SuggestSettings:
    """What `suggest` can be told."""

    images: tuple[str, ...]
    """As `geoseg detect` takes them."""
    output: Path
    """GeoPackage of tasks."""
    model: str = "buildings"
    """Name or path of a model."""
    detector: str | None = None
    """``package.module:factory`` instead of a model."""
    n: int = 20
    """Squares to suggest."""
    coco: Path | None = None
    """COCO JSON of the same tasks."""
    chips: Path | None = None
    """Folder for the squares' crops, GeoTIFF."""
    aoi: Path | None = None
    """Suggest only inside these polygons."""
    labelled: tuple[Path, ...] = ()
    """Ground that is labelled already: polygons, or earlier task files."""
    tile_m: float | None = None
    """Side of a square, metres; None: of a training chip at the model's pixel size."""
    device: str = "auto"
    """'auto', 'cpu' or 'cuda'."""
    overwrite: bool = False
    """Replace existing outputs."""
    force: bool = False
    """Go on although the imagery cannot suit the model."""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= 100_000:
            raise ConfigError(f"-n is {self.n}; expected 1 to 100000 squares")
        if self.tile_m is not None and not 0.01 <= self.tile_m <= 100_000:
            raise ConfigError(f"--tile-m is {self.tile_m}; expected 0.01 to 100000 metres")


@dataclass(frozen=True, slots=True, eq=False)
class Suggestion:
    """What was suggested, and where it was written."""

    tasks: gpd.GeoDataFrame = field(repr=False)
    """One row per square, best first."""
    objects: gpd.GeoDataFrame = field(repr=False)
    """Outlines in and at the squares."""
    written: tuple[Path, ...]
    """Files."""
    n_candidates: int
    """Squares that were weighed."""
    side_m: float
    """Side of a square."""
    skipped: tuple[str, ...] = ()
    """Blocks that could not be looked at, and why."""


@dataclass(slots=True, eq=False)
class _Looked:
    """One image after all its tiles were seen."""

    image: ImagePlan
    objects: Objects
    candidates: Candidates
    places: DoubleArray
    """(n, 2) centres of the candidates, metres on a plane for all images."""


def suggest(
    settings: SuggestSettings,
    detector: Detector | None = None,
    *,
    progress: Progress | None = None,
) -> Suggestion:
    """Suggest which squares to label next, and write them.

    Parameters
    ----------
    settings : SuggestSettings
        What to do.
    detector : Detector, optional
        Instead of the model or factory of the settings.
    progress : callable, optional
        Called with (blocks looked at, blocks in all).

    Returns
    -------
    Suggestion
        What was written.

    Raises
    ------
    GeosegError
        As `geoseg.jobs.plan.plan_run`; if no ground is left to suggest; or if nothing could be
        looked at.
    """
    outputs = _check_outputs(settings)
    plan = _plan(settings, detector)
    labelled = [read_labelled(path) for path in settings.labelled]
    threshold = float(plan.about_model.get("min_score") or 0.5)
    side_px = _side_px(settings, plan)
    looked, skipped = _look_at_all(plan, labelled, threshold, side_px, progress)
    n_candidates = sum(len(one.candidates) for one in looked)
    if n_candidates == 0:
        raise ConfigError(
            "no ground is left to suggest: every square is labelled, outside the AOI or without "
            "data; give other images, a larger AOI or a smaller --tile-m"
        )
    values = values_of([one.candidates for one in looked])
    side_m = side_px * plan.images[0].grid.gsd_m
    chosen = choose_squares(
        [one.candidates for one in looked],
        values,
        [one.places for one in looked],
        side_m,
        settings.n,
    )
    if len(chosen) < settings.n:
        log.warning("only %d squares fit; %d were asked for", len(chosen), settings.n)
    tasks = _tasks(plan, looked, values, chosen)
    objects = _objects(plan, looked, tasks, threshold)
    written = _write(settings, plan, outputs, tasks, objects)
    return Suggestion(tasks, objects, written, n_candidates, side_m, tuple(skipped))


def _check_outputs(settings: SuggestSettings) -> tuple[Path, Path | None]:
    """Refuse outputs that could not be written, before anything is looked at."""
    output = check_output(settings.output, settings.overwrite, suffixes=(".gpkg",))
    coco = None
    if settings.coco is not None:
        coco = check_output(settings.coco, settings.overwrite, suffixes=(".json", ".coco.json"))
    read = [p for p in (settings.aoi, *settings.labelled) if p is not None and p.exists()]
    for path in read:
        if output.exists() and output.samefile(path):
            raise OutputError(f"output {output} is also read from; name another output")
    if settings.chips is not None and settings.chips.exists() and not settings.chips.is_dir():
        raise OutputError(f"--chips {settings.chips} is a file; expected a folder")
    return output, coco


def _plan(settings: SuggestSettings, detector: Detector | None) -> RunPlan:
    """Plan the look: half a tile of overlap, a low threshold."""
    plan = plan_run(
        DetectSettings(
            images=settings.images,
            model=settings.model,
            detector=settings.detector,
            aoi=settings.aoi,
            device=settings.device,
            force=settings.force,
        ),
        detector,
    )
    images = tuple(
        replace(image, tiles=replace(image.tiles, overlap=image.tiles.tile_size // 2))
        for image in plan.images
    )
    low = max(LOW_SHARE * plan.detector.min_score, min(LOWEST, plan.detector.min_score))
    return replace(plan, images=images, detector=replace(plan.detector, min_score=low, threads=0))


def _side_px(settings: SuggestSettings, plan: RunPlan) -> int:
    """Return the side of a square in px of the working grid."""
    if settings.tile_m is not None:
        return round(settings.tile_m / plan.images[0].grid.gsd_m)
    own = plan.detector.model is None
    chip = None if own else find_card(settings.model).training.get("chip_px")
    return int(chip) if isinstance(chip, int) and chip > 0 else CHIP_PX


def _look_at_all(
    plan: RunPlan,
    labelled: Sequence[gpd.GeoDataFrame],
    threshold: float,
    side_px: int,
    progress: Progress | None,
) -> tuple[list[_Looked], list[str]]:
    """Look at all images, one after the other."""
    looked, skipped, done = [], [], 0
    gsd = plan.images[0].grid.gsd_m
    for number, image in enumerate(plan.images):
        # the same side on the ground, whatever the pixel
        side = max(round(side_px * gsd / image.grid.gsd_m), 1)
        survey = Survey.lay(image.grid.height, image.grid.width, side)
        free = _free_ground(image, labelled)
        seen = Seen()
        for index in np.ndindex(*image.tiles.supertile_shape):
            try:
                _look(plan, number, (int(index[0]), int(index[1])), free, seen, survey)
            except TileError as error:
                skipped.append(f"{Path(image.info.path).name}: {error}")
                log.warning("left out: %s", skipped[-1])
            done += 1
            if progress is not None:
                progress(done, plan.n_supertiles)
        fragments = Fragments.concatenate(seen.fragments)
        objects = stitch(fragments, seen.tiles)
        survey_found(survey, fragments, seen.tiles, objects, threshold, free=free)
        candidates = survey.candidates(free)
        looked.append(_Looked(image, objects, candidates, _centres(image, candidates)))
    if len(skipped) == plan.n_supertiles:
        raise SourceError(f"nothing could be looked at: {skipped[0]}")
    return looked, skipped


def _free_ground(image: ImagePlan, labelled: Sequence[gpd.GeoDataFrame]) -> shapely.Geometry | None:
    """Return the ground that may be suggested, grid px; None: all of the image."""
    areas = []
    for table in labelled:
        if len(table):
            wkt = table.crs.to_wkt()
            polygons, _ = polygonal(table.geometry.array)
            areas += list(
                polygons_to_pixels(polygons, wkt, image.info.crs_wkt, image.grid.transform)
            )
    if not areas:
        return image.aoi
    whole = shapely.box(0, 0, image.grid.width, image.grid.height)
    taken = shapely.union_all(shapely.make_valid(np.array(areas, object)))
    return shapely.difference(whole if image.aoi is None else image.aoi, taken)


def _look(
    plan: RunPlan,
    number: int,
    index: tuple[int, int],
    free: shapely.Geometry | None,
    seen: Seen,
    survey: Survey,
) -> None:
    """Look at one supertile; what it shows goes into `seen`, its colours into the survey."""
    image = plan.images[number]
    supertile = image.tiles.supertile(*index)
    task = SupertileTask(
        image=number,
        info=image.info,
        grid=image.grid,
        tiles=image.tiles,
        index=index,
        bands=image.bands,
        detector=plan.detector,
        aoi_wkb=None if free is None else free.wkb,
        class_agnostic=False,
        path=Path(),
        scaling=image.scaling,
    )
    wanted = tiles_wanted(task, supertile.tiles)
    if not wanted:
        return
    read = read_supertile(image.info, image.grid, supertile, image.bands)
    batch = cut_tiles(read.pixels, read.valid, supertile, wanted)
    shown = [(tile, batch.pixels[i], batch.valid[i]) for i, tile in enumerate(wanted)]
    own = Seen()
    look(task, shown, own, {})
    # only now: a block that failed half way leaves no trace
    first = np.int64(len(seen.tiles))
    seen.tiles += own.tiles
    seen.fragments += [replace(f, tiles=f.tiles + first) for f in own.fragments]
    core, window = supertile.core, supertile.window
    top, left = int(core.row_off - window.row_off), int(core.col_off - window.col_off)
    inside = np.s_[top : top + int(core.height), left : left + int(core.width)]
    valid = read.valid[inside]
    pixels = read.pixels[:, inside[0], inside[1]]
    if image.scaling is not None:
        pixels = image.scaling.apply(pixels[None], valid[None])[0]
    survey.add_pixels(pixels, valid, int(core.row_off), int(core.col_off))


def _centres(image: ImagePlan, candidates: Candidates) -> DoubleArray:
    """Return the middles of squares in metres on a plane that all images share, nearly."""
    middle = (candidates.bounds[:, :2] + candidates.bounds[:, 2:]) / 2
    placed = polygons_to_crs(shapely.points(middle), image.grid.transform)
    degrees = reproject_polygons(placed, image.info.crs_wkt, "EPSG:4326")
    lon, lat = shapely.get_coordinates(degrees).T
    return np.column_stack([lon * np.cos(np.deg2rad(lat)), lat]) * _METRES_PER_DEGREE


def _place(plan: RunPlan, image: ImagePlan, polygons: GeometryArray) -> GeometryArray:
    """Bring grid px to the CRS of the output, which is that of the first image."""
    own = horizontal(pyproj.CRS.from_wkt(image.info.crs_wkt))
    placed = polygons_to_crs(polygons, image.grid.transform)
    if plan.crs.equals(own):
        return placed
    return reproject_polygons(placed, own.to_wkt(), plan.crs.to_wkt())


def _tasks(
    plan: RunPlan,
    looked: Sequence[_Looked],
    values: Sequence[DoubleArray],
    chosen: Sequence[tuple[int, int]],
) -> gpd.GeoDataFrame:
    """Return the layer of squares, best first."""
    rows: list[dict[str, Any]] = []
    shapes: list[Any] = []
    for rank, (number, row) in enumerate(chosen, 1):
        one = looked[number]
        c = one.candidates
        (shape,) = _place(plan, one.image, polygonal(c.polygons[row : row + 1])[0])
        shapes.append(shape)
        rows.append(
            {
                "rank": rank,
                "status": "todo",
                "value": round(float(values[number][row]), 4),
                "uncertainty": round(float(c.uncertainty[row]), 4),
                "disagreement": round(float(c.disagreement[row]), 4),
                "n_objects": int(c.n_objects[row]),
                "image": Path(one.image.info.path).name,
            }
        )
    table = gpd.GeoDataFrame(rows, geometry=shapes, crs=plan.crs)
    table.attrs["squares"] = [
        (number, looked[number].candidates.bounds[row]) for number, row in chosen
    ]
    return table


def _objects(
    plan: RunPlan, looked: Sequence[_Looked], tasks: gpd.GeoDataFrame, threshold: float
) -> gpd.GeoDataFrame:
    """Return the outlines that meet a square, each with the square that holds most of it."""
    parts = []
    for number, one in enumerate(looked):
        ranks = [
            (rank, bounds)
            for rank, (which, bounds) in enumerate(tasks.attrs["squares"], 1)
            if which == number
        ]
        found = one.objects.take(one.objects.scores >= SHOWN_SHARE * threshold)
        if not ranks or not len(found):
            continue
        squares = shapely.box(*np.array([bounds for _, bounds in ranks]).T)
        square, row = shapely.STRtree(found.polygons).query(squares, predicate="intersects")
        shared = shapely.area(shapely.intersection(found.polygons[row], squares[square]))
        square, row, shared = (column[shared > 0] for column in (square, row, shared))
        order = np.lexsort([square, -shared, row])
        square, row = square[order], row[order]
        first = np.diff(row, prepend=-1) != 0
        task = np.array([rank for rank, _ in ranks])[square[first]]
        parts.append(_rows(plan, one.image, found.take(row[first]), task, threshold))
    if not parts:
        return _rows(plan, looked[0].image, Objects.empty(), np.zeros(0, np.int64), threshold)
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values("task", kind="stable").reset_index(drop=True)


def _rows(
    plan: RunPlan, image: ImagePlan, found: Objects, task: Any, threshold: float
) -> gpd.GeoDataFrame:
    """Return outlines as rows of the layer ``objects``."""
    polygons = _place(plan, image, simplify(found.polygons, SIMPLIFY_PX))
    area, perimeter = geodesic_area_perimeter(polygons, plan.crs.to_wkt())
    verdict = ["reject" if weak else None for weak in (found.scores < threshold).tolist()]
    table = {
        "verdict": pd.array(verdict, dtype="string"),
        "task": task,
        "class": [plan.classes[label] for label in found.labels.tolist()],
        "score": found.scores.astype(np.float64).round(4),
        "area_m2": area.round(2),
        "image": Path(image.info.path).name,
    }
    frame = gpd.GeoDataFrame(table, geometry=list(polygons), crs=plan.crs)
    frame["perimeter_m"] = perimeter
    frame["n_parts"] = found.n_parts
    frame["touches_edge"] = found.touches_edge
    return frame


def _write(
    settings: SuggestSettings,
    plan: RunPlan,
    outputs: tuple[Path, Path | None],
    tasks: gpd.GeoDataFrame,
    objects: gpd.GeoDataFrame,
) -> tuple[Path, ...]:
    """Write all that is wanted."""
    output, coco = outputs
    chips = [
        _chip(plan.images[number], rank, bounds)
        for rank, (number, bounds) in enumerate(tasks.attrs["squares"], 1)
    ]
    plain = tasks.copy()
    plain.attrs = {}
    columns = ["verdict", "task", "class", "score", "area_m2", "image", "geometry"]
    about = {"model": plan.about_model["name"], "written_by": "geoseg suggest"}
    written = [
        write_tasks(
            output,
            plain,
            objects[columns],
            classes=plan.classes,
            metadata=about,
            overwrite=settings.overwrite,
        )
    ]
    if coco is not None:
        written.append(
            write_tasks_coco(
                coco, chips, objects, classes=plan.classes, overwrite=settings.overwrite
            )
        )
    if settings.chips is not None:
        settings.chips.mkdir(parents=True, exist_ok=True)
        for (number, _), chip in zip(tasks.attrs["squares"], chips, strict=True):
            write_chip(settings.chips, chip, plan.images[number].bands)
        written.append(settings.chips)
    return tuple(written)


def _chip(image: ImagePlan, rank: int, bounds: DoubleArray) -> Chip:
    """Return the crop of the raster that holds a square."""
    scale = np.array([image.grid.scale_x, image.grid.scale_y] * 2)
    left, top, right, bottom = bounds * scale
    x0, y0 = int(np.floor(left)), int(np.floor(top))
    x1 = min(int(np.ceil(right)), image.info.width)
    y1 = min(int(np.ceil(bottom)), image.info.height)
    return make_chip(rank, image.info, Window(x0, y0, x1 - x0, y1 - y0))
