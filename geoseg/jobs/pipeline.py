"""The whole job: check everything, run the supertiles, join them, write, count."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import pickle
import platform
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely

import geoseg
from geoseg.config import (
    DEFAULT_OVERLAP,
    DEFAULT_SUPERTILE_PX,
    DEFAULT_TILE_SIZE,
    DetectSettings,
)
from geoseg.errors import ConfigError, ModelError, OutputError, SourceError
from geoseg.imagery.check import check_images
from geoseg.imagery.georef import (
    WorkingGrid,
    geodesic_area_perimeter,
    polygons_to_crs,
    polygons_to_pixels,
    reproject_polygons,
    working_grid,
)
from geoseg.imagery.grid import TileGrid
from geoseg.imagery.source import describe_raster, find_images, select_bands
from geoseg.jobs.executor import physical_cores, run_tasks
from geoseg.jobs.ledger import RunDirectory, digest
from geoseg.jobs.parts import PartSummary, failed, read_part
from geoseg.jobs.supertile import DetectorSpec, SupertileTask, forget_detectors, run_supertile
from geoseg.models.card import file_sha256
from geoseg.models.detector import load_detector
from geoseg.models.registry import find_card, find_model
from geoseg.objects.count import count, polygonal
from geoseg.objects.stitch import stitch
from geoseg.outputs.style import default_styles
from geoseg.outputs.tables import (
    check_output,
    empty_objects,
    read_vector,
    write_geopackage,
    write_table,
)
from geoseg.records import Fragments, Objects, RasterInfo

if TYPE_CHECKING:
    from types import ModuleType

    from geoseg.models.detector import Detector

log = logging.getLogger(__name__)

SIMPLIFY_PX = 0.25
"""Vertices nearer than this to the outline are left out: a quarter of a pixel nobody sees."""
CARRIED_OUT = ("done", "empty", "nodata", "outside")
"""States of a supertile that is no failure."""

Progress = Callable[[int, int, int], None]
"""Called with supertiles finished, all supertiles, and fragments found so far."""


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """How one image is worked through."""

    info: RasterInfo
    grid: WorkingGrid
    tiles: TileGrid
    bands: tuple[int, ...]
    aoi: shapely.Geometry | None
    """Area of interest, grid px."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run whose every setting is known and checked; no pixel was read for it."""

    settings: DetectSettings
    images: tuple[ImagePlan, ...]
    detector: DetectorSpec
    classes: tuple[str, ...]
    crs: pyproj.CRS
    """CRS of the output."""
    regions: gpd.GeoDataFrame | None
    aoi: gpd.GeoDataFrame | None
    key: str
    """Hash of everything that decides the parts."""
    about_model: dict[str, Any]

    @property
    def n_supertiles(self) -> int:
        """Supertiles of all images."""
        return sum(image.tiles.n_supertiles for image in self.images)


@dataclass(frozen=True, slots=True, eq=False)
class RunResult:
    """What a run gives back."""

    objects: gpd.GeoDataFrame
    regions: gpd.GeoDataFrame | None
    coverage: gpd.GeoDataFrame
    output: Path | None
    run_dir: Path | None
    seconds: float
    tiles: dict[str, int]
    """Supertiles by status."""
    saturated: int
    """Tiles that reached a cap of the detector."""
    peak_mb: float
    """Largest resident memory of any process."""
    notes: tuple[str, ...] = field(default=())
    """What the user should know."""

    @property
    def exit_code(self) -> int:
        """0 done, 3 done but supertiles failed."""
        return 3 if self.tiles.get("failed") else 0


# --- before anything runs -------------------------------------------------------------------


def plan_run(settings: DetectSettings, detector: Detector | None = None) -> RunPlan:
    """Check everything that can be checked without pixels or weights.

    Raises
    ------
    GeosegError
        With exit code 2: what is wrong, what was expected, what to do.
    """
    _check_paths(settings)
    dst = None if settings.dst_crs is None else _crs(settings.dst_crs)
    regions = None if settings.regions is None else read_vector(settings.regions, what="regions")
    aoi = None if settings.aoi is None else read_vector(settings.aoi, what="AOI")
    paths = find_images(settings.images)
    if problems := check_images(paths):
        more = f" (and {len(problems) - 1} more images)" if len(problems) > 1 else ""
        raise SourceError(f"{problems[0]}{more}")
    # a user's factory may load weights: all that needs no detector is checked before
    about = _about_detector(settings, detector)
    tile_size = settings.tile_size or about["tile_size"]
    overlap = settings.overlap
    if overlap is None:
        overlap = min(about["overlap"], tile_size // 4)
    supertile = settings.supertile_size or max(DEFAULT_SUPERTILE_PX, tile_size)
    images = tuple(
        _plan_image(path, settings, about, (tile_size, overlap, supertile), aoi) for path in paths
    )
    crs = dst or pyproj.CRS.from_wkt(images[0].info.crs_wkt)
    if settings.device == "cuda":
        from geoseg.models.inference import choose_device

        choose_device("cuda")
    spec = _detector_spec(settings, detector, about)
    key = digest(
        geoseg.__version__,
        about["fingerprint"],
        spec.min_score,
        [
            (i.info.fingerprint, asdict(i.tiles), tuple(i.grid.transform)[:6], i.bands,
             None if i.aoi is None else _sha256(i.aoi.wkb))
            for i in images
        ],
    )  # fmt: skip
    return RunPlan(
        settings, images, spec, about["classes"], crs, regions, aoi, key, about["manifest"]
    )


def _check_paths(settings: DetectSettings) -> None:
    """Refuse an output that cannot be written or that would replace what the run reads."""
    if settings.output is None:
        return
    outputs = [check_output(settings.output, settings.overwrite)]
    if settings.regions is not None and settings.output.suffix.lower() != ".gpkg":
        outputs.append(check_output(_counts_path(settings.output), settings.overwrite))
    for option, path in (("--regions", settings.regions), ("--aoi", settings.aoi)):
        for output in outputs:
            if path is not None and path.exists() and output.exists() and output.samefile(path):
                raise OutputError(f"output {output} is also the {option} file; name another output")


def _about_detector(settings: DetectSettings, detector: Detector | None) -> dict[str, Any]:
    """Collect what the detector says of itself, without loading weights."""
    if detector is None and settings.detector is None:
        card, path = find_card(settings.model), find_model(settings.model)
        return {
            "classes": card.classes,
            "bands": len(card.bands),
            "gsd_m": card.gsd_m,
            "tile_size": card.tile_size,
            "overlap": card.overlap,
            "min_score": card.min_score,
            "fingerprint": file_sha256(path),
            "manifest": {
                "name": card.name,
                "licence": card.licence,
                "credits": list(card.credits),
                "quality": dict(card.quality),
            },
        }
    # the user's own: it need not be what it promises
    made: Any = load_detector(str(settings.detector)) if detector is None else detector
    if not callable(made) or not getattr(made, "classes", None):
        raise ModelError(
            f"detector is {made!r}; expected a callable with classes: tuple[str, ...] "
            "(geoseg.Detector), or 'package.module:factory'"
        )
    name = settings.detector or type(made).__qualname__
    bands = getattr(made, "bands", None)
    return {
        "classes": tuple(made.classes),
        "bands": len(bands) if bands else None,
        "gsd_m": getattr(made, "gsd_m", None),
        "tile_size": getattr(made, "tile_size", DEFAULT_TILE_SIZE),
        "overlap": getattr(made, "overlap", DEFAULT_OVERLAP),
        "min_score": getattr(made, "min_score", 0.0),
        "fingerprint": getattr(made, "fingerprint", None) or _fingerprint(made, name),
        "manifest": {"name": name},
    }


def _fingerprint(detector: Detector, name: str) -> list[str]:
    """Tell detectors apart that do not say who they are: by their source and their state.

    Otherwise a changed detector would be served the parts of its former self.
    """
    parts = [name]
    module = inspect.getmodule(detector)
    # typed in a console it has no source; state may hold what has no bytes
    with contextlib.suppress(Exception):
        parts.append(_sha256(inspect.getsource(cast("ModuleType", module)).encode()))
    with contextlib.suppress(Exception):
        parts.append(_sha256(pickle.dumps(vars(detector))))
    return parts


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _detector_spec(
    settings: DetectSettings, detector: Detector | None, about: dict[str, Any]
) -> DetectorSpec:
    own = detector is not None or settings.detector is not None
    return DetectorSpec(
        model=None if own else str(find_model(settings.model)),
        factory=None if detector is not None else settings.detector,
        given=detector,
        device=settings.device,
        min_score=about["min_score"] if settings.min_score is None else settings.min_score,
        threads=1,
    )


def _plan_image(
    path: str,
    settings: DetectSettings,
    about: dict[str, Any],
    sizes: tuple[int, int, int],
    aoi: gpd.GeoDataFrame | None,
) -> ImagePlan:
    info = describe_raster(path)
    gsd = about["gsd_m"] if settings.gsd is None else settings.gsd
    grid = working_grid(info, None if gsd is None or gsd == "native" else float(gsd))
    colours = info.bands - (info.alpha_band is not None)
    wanted = about["bands"] or (len(settings.bidx) if settings.bidx else colours)
    bands = select_bands(info, settings.bidx, wanted)
    tile_size, overlap, supertile = sizes
    area = None if aoi is None else _aoi_px(aoi, info, grid)
    return ImagePlan(
        info, grid, TileGrid(grid.height, grid.width, tile_size, overlap, supertile), bands, area
    )


def _aoi_px(aoi: gpd.GeoDataFrame, info: RasterInfo, grid: WorkingGrid) -> shapely.Geometry:
    """Bring an AOI to grid px, after cutting it to the surroundings of the image.

    A projected CRS has no place for what lies on the other side of the earth, and bends the long
    edges of a country beyond recognition.
    """
    h, w = grid.height, grid.width
    around = shapely.segmentize(shapely.box(-w / 8, -h / 8, w * 9 / 8, h * 9 / 8), max(h, w) / 16)
    wkt = aoi.crs.to_wkt()
    frame = reproject_polygons(polygons_to_crs([around], grid.transform), info.crs_wkt, wkt)[0]
    polygons, _ = polygonal(aoi.geometry.array)
    near, _ = polygonal(shapely.intersection(polygons, shapely.box(*shapely.bounds(frame))))
    return shapely.union_all(polygons_to_pixels(near, wkt, info.crs_wkt, grid.transform))


def _crs(text: str) -> pyproj.CRS:
    try:
        return pyproj.CRS.from_user_input(text)
    except pyproj.exceptions.CRSError as error:
        raise ConfigError(
            f"--dst-crs '{text}' is no CRS that PROJ knows; expected something like EPSG:32645"
        ) from error


def _counts_path(output: Path) -> Path:
    return output.with_name(f"{output.stem}_regions{output.suffix}")


# --- the run --------------------------------------------------------------------------------


def run_detect(
    settings: DetectSettings,
    detector: Detector | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Find objects in images, write them, and count them in regions.

    Parameters
    ----------
    settings : DetectSettings
        What to do.
    detector : Detector, optional
        A detector made in Python, instead of the settings' model or factory; it must pickle where
        there is more than one worker.
    progress : callable, optional
        Called after every supertile.

    Raises
    ------
    GeosegError
        If something is wrong with the input, before any work; an existing output stays untouched.
    """
    begun = time.perf_counter()
    plan = plan_run(settings, detector)
    with tempfile.TemporaryDirectory(prefix="geoseg-") as scratch:
        run_dir = RunDirectory(_run_dir(settings) or Path(scratch) / "run")
        run_dir.check(plan.key, overwrite=settings.overwrite)
        with run_dir.locked():
            run_dir.prepare(plan.key, _plain(settings))
            summaries = _run_supertiles(plan, run_dir, progress)
            ran = time.perf_counter()
            objects = _objects(plan, run_dir, summaries)
            coverage = _coverage(plan, summaries)
            regions = _count(plan, objects, summaries)
            if settings.output is not None:
                _write(plan, objects, regions, coverage)
            seconds = time.perf_counter() - begun
            peak = max(
                [s.peak_mb for s in summaries]
                + [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
            )
            result = RunResult(
                objects=objects,
                regions=regions,
                coverage=coverage,
                output=settings.output,
                run_dir=_run_dir(settings),
                seconds=seconds,
                tiles=dict(Counter(s.status for s in summaries)),
                saturated=sum(len(s.saturated) for s in summaries),
                peak_mb=round(peak, 1),
                notes=_notes(plan, objects, summaries),
            )
            run_dir.write_manifest(_manifest(plan, result, summaries, ran - begun))
    return result


def _run_dir(settings: DetectSettings) -> Path | None:
    """Return the run directory, or None where nothing is to stay."""
    if settings.run_dir is not None:
        return settings.run_dir
    if settings.output is None:
        return None
    return settings.output.with_name(f"{settings.output.stem}.geoseg-run")


def _workers(plan: RunPlan) -> tuple[int, int]:
    """Return processes, and CPU threads for each."""
    cores = physical_cores()
    wanted = plan.settings.workers
    if wanted is None:
        # on a GPU one process feeds it; more would only share its memory
        wanted = 1 if _on_gpu(plan) else cores
    workers = max(1, min(wanted, plan.n_supertiles))
    return workers, max(1, cores // workers)


def _on_gpu(plan: RunPlan) -> bool:
    if plan.detector.model is None or plan.settings.device == "cpu":
        return False
    import torch

    return torch.cuda.is_available()


def _tasks(plan: RunPlan, run_dir: RunDirectory, threads: int) -> Iterator[SupertileTask]:
    detector = DetectorSpec(**(_fields(plan.detector) | {"threads": threads}))
    for number, image in enumerate(plan.images):
        rows, cols = image.tiles.supertile_shape
        for index in ((r, c) for r in range(rows) for c in range(cols)):
            yield SupertileTask(
                image=number,
                info=image.info,
                grid=image.grid,
                tiles=image.tiles,
                index=index,
                bands=image.bands,
                detector=detector,
                aoi_wkb=None if image.aoi is None else image.aoi.wkb,
                path=run_dir.part(digest(plan.key, number, index)),
            )


def _fields(spec: DetectorSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__slots__}


def _run_supertiles(
    plan: RunPlan, run_dir: RunDirectory, progress: Progress | None
) -> list[PartSummary]:
    """Run all supertiles; a failed one becomes a summary with its reason."""
    # what a name stands for may have changed since an earlier run in this process
    forget_detectors()
    workers, threads = _workers(plan)
    log.info("%d supertiles, %d worker(s) of %d thread(s)", plan.n_supertiles, workers, threads)
    summaries: list[PartSummary] = []
    found = 0
    for task, outcome in run_tasks(run_supertile, _tasks(plan, run_dir, threads), workers):
        if isinstance(outcome, Exception):
            if isinstance(outcome, ModelError):
                # weights that do not load will not load for the next supertile either
                raise outcome
            name = Path(task.info.path).name
            log.error("%s, supertile %s failed: %s", name, task.index, outcome)
            n_tiles = len(task.tiles.supertile(*task.index).tiles)
            blank = PartSummary(task.image, task.index, "failed", tiles=n_tiles)
            summaries.append(failed(blank, str(outcome) or type(outcome).__name__))
        else:
            summaries.append(outcome)
            found += outcome.fragments
        if progress is not None:
            progress(len(summaries), plan.n_supertiles, found)
    return sorted(summaries, key=lambda s: (s.image, s.index))


# --- from parts to tables -------------------------------------------------------------------


def _objects(
    plan: RunPlan, run_dir: RunDirectory, summaries: Sequence[PartSummary]
) -> gpd.GeoDataFrame:
    """Join all parts into the objects table, in its fixed order."""
    tables = []
    for number, image in enumerate(plan.images):
        mine = [s for s in summaries if s.image == number and s.status == "done"]
        paths = [run_dir.part(digest(plan.key, number, s.index)) for s in mine]
        joined = _join_seams(image, paths)
        if len(joined):
            tables.append(_table(plan, image, joined))
    if not tables:
        return empty_objects(plan.crs)
    table = gpd.GeoDataFrame(pd.concat(tables, ignore_index=True), crs=plan.crs)
    table.insert(0, "object_id", np.arange(1, len(table) + 1))
    return table


def _join_seams(image: ImagePlan, paths: Sequence[Path]) -> Objects:
    """Return the settled objects of all parts, and those that the seams had kept waiting."""
    settled: list[Objects] = []
    waiting: list[Fragments] = []
    tiles: dict[tuple[int, int], int] = {}
    for path in paths:
        part = read_part(path)
        settled.append(part.settled)
        places = [(int(r), int(c)) for r, c in part.tile_index]
        rows = np.array([tiles.setdefault(place, len(tiles)) for place in places], np.int64)
        rest = part.waiting
        if len(rest):
            waiting.append(
                Fragments(
                    rest.polygons,
                    rest.scores,
                    rest.labels,
                    rows[rest.tiles],
                    rest.cut,
                    rest.at_edge,
                )
            )
    across = stitch(Fragments.concatenate(waiting), [image.tiles.tile(*place) for place in tiles])
    objects = Objects.concatenate([*settled, across])
    if image.aoi is not None and len(objects):
        points = shapely.point_on_surface(objects.polygons)
        shapely.prepare(image.aoi)
        objects = objects.take(shapely.intersects(image.aoi, points))
    return objects


def _table(plan: RunPlan, image: ImagePlan, objects: Objects) -> gpd.GeoDataFrame:
    """Put objects on the earth, with the columns that users see but the number."""
    polygons = shapely.simplify(objects.polygons, SIMPLIFY_PX, preserve_topology=True)
    centres = shapely.get_coordinates(shapely.centroid(polygons))
    # reading order; the outline decides between objects on one spot
    order = np.lexsort(
        (shapely.area(polygons), objects.labels, centres[:, 0].round(2), centres[:, 1].round(2))
    )
    objects, polygons, centres = objects.take(order), polygons[order], centres[order]
    classes = np.array(plan.classes, dtype=object)[objects.labels]
    wkt = image.info.crs_wkt
    placed = polygons_to_crs(polygons, image.grid.transform)
    area, perimeter = geodesic_area_perimeter(placed, wkt)
    if not plan.crs.equals(pyproj.CRS.from_wkt(wkt)):
        placed = reproject_polygons(placed, wkt, plan.crs.to_wkt())
    source = image.info.fingerprint
    uids = [
        hashlib.sha256(f"{source}|{name}|{x:.1f}|{y:.1f}|{a:.0f}".encode()).hexdigest()[:16]
        for name, (x, y), a in zip(classes, centres, shapely.area(polygons), strict=True)
    ]
    return gpd.GeoDataFrame(
        {
            "uid": uids,
            "class": classes,
            "score": objects.scores.astype(np.float64).round(6),
            "area_m2": area.round(3),
            "perimeter_m": perimeter.round(3),
            "n_parts": objects.n_parts.astype(np.int32),
            "touches_edge": objects.touches_edge,
            "image": Path(image.info.path).name,
        },
        geometry=_valid(placed),
        crs=plan.crs,
    )


def _valid(polygons: Any) -> Any:
    """Repair the rare polygon that rounding or projecting made invalid; keep its largest part."""
    bad = np.flatnonzero(~shapely.is_valid(polygons))
    for i in bad:
        parts = shapely.get_parts(shapely.make_valid(polygons[i]))
        polygons[i] = max(parts, key=shapely.area)
    return polygons


def _coverage(plan: RunPlan, summaries: Sequence[PartSummary]) -> gpd.GeoDataFrame:
    """Return one row per supertile: what happened there and why."""
    rows: list[dict[str, Any]] = []
    shapes: list[Any] = []
    for s in summaries:
        image = plan.images[s.image]
        core = image.tiles.supertile(*s.index).core
        x, y = core.col_off, core.row_off
        shapes.append(_place(plan, image, [shapely.box(x, y, x + core.width, y + core.height)])[0])
        rows.append(
            {
                "image": Path(image.info.path).name,
                "row": s.index[0],
                "col": s.index[1],
                "status": s.status,
                "reason": s.reason,
                "tiles": s.tiles,
                "tiles_run": s.tiles_run,
                "tiles_saturated": len(s.saturated),
                "seconds": round(sum(s.seconds.values()), 2),
            }
        )
    return gpd.GeoDataFrame(rows, geometry=shapes, crs=plan.crs)


def _place(plan: RunPlan, image: ImagePlan, polygons: Sequence[Any]) -> Any:
    """Bring grid px to the output's CRS."""
    placed = polygons_to_crs(polygons, image.grid.transform)
    return reproject_polygons(placed, image.info.crs_wkt, plan.crs.to_wkt())


def _count(
    plan: RunPlan, objects: gpd.GeoDataFrame, summaries: Sequence[PartSummary]
) -> gpd.GeoDataFrame | None:
    """Count objects in the regions, and say which share of each was imaged."""
    if plan.regions is None:
        return None
    areas = []
    for s in summaries:
        if s.status == "failed" or not s.imaged:
            continue
        image = plan.images[s.image]
        area = shapely.from_wkt(s.imaged)
        if image.aoi is not None:
            area = shapely.intersection(area, image.aoi)
        areas += list(_place(plan, image, shapely.get_parts([area])))
    imaged = gpd.GeoSeries(areas, crs=plan.crs)
    return count(objects, plan.regions, imaged=imaged, classes=plan.classes)


def _write(
    plan: RunPlan,
    objects: gpd.GeoDataFrame,
    regions: gpd.GeoDataFrame | None,
    coverage: gpd.GeoDataFrame,
) -> None:
    output, overwrite = plan.settings.output, plan.settings.overwrite
    if output is None:
        return
    if output.suffix.lower() != ".gpkg":
        write_table(output, objects, overwrite=overwrite)
        if regions is not None:
            write_table(_counts_path(output), regions, layer="regions", overwrite=overwrite)
        return
    layers = {"objects": objects}
    if regions is not None:
        layers["regions"] = regions
    layers["coverage"] = coverage
    about = plan.about_model
    metadata = {
        "geoseg": geoseg.__version__,
        "model": about["name"],
        "licence": about.get("licence", ""),
        "credits": "; ".join(about.get("credits", [])),
        "images": ", ".join(Path(i.info.path).name for i in plan.images),
    }
    write_geopackage(
        output, layers, styles=default_styles(layers), overwrite=overwrite, metadata=metadata
    )


# --- what is said about it ------------------------------------------------------------------


def _notes(
    plan: RunPlan, objects: gpd.GeoDataFrame, summaries: Sequence[PartSummary]
) -> tuple[str, ...]:
    notes = []
    if saturated := sum(len(s.saturated) for s in summaries):
        notes.append(
            f"{saturated} tile(s) reached the detector's cap and may lack objects; "
            "run again with a smaller --tile-size"
        )
    if len({i.info.crs_wkt for i in plan.images}) > 1:
        notes.append(f"the images have different CRSs; the output is in {plan.crs.name}")
    notes += [
        f"{Path(image.info.path).name} has {image.info.gsd_m:.3g} m a pixel and was enlarged to "
        f"{image.grid.gsd_m:.3g} m for the model: expect worse results"
        for image in plan.images
        if image.info.gsd_m > 2 * image.grid.gsd_m
    ]
    if len(objects) == 0:
        run = sum(s.tiles_run for s in summaries)
        notes.append(
            f"no objects: {run} tile(s) hold pixels inside the AOI and none has a detection with "
            f"a score of {plan.detector.min_score} or more"
        )
    return tuple(notes)


def _plain(settings: DetectSettings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if value is not None}


def _manifest(
    plan: RunPlan, result: RunResult, summaries: Sequence[PartSummary], run_seconds: float
) -> dict[str, Any]:
    stages: Counter[str] = Counter()
    for summary in summaries:
        stages.update(summary.seconds)
    packages = ("torch", "torchvision", "rasterio", "shapely", "geopandas", "pyogrio", "dask")
    return {
        "key": plan.key,
        "state": "finished",
        "settings": _plain(plan.settings),
        "geoseg": geoseg.__version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "model": plan.about_model,
        "images": [
            {
                "name": Path(i.info.path).name,
                "fingerprint": i.info.fingerprint,
                "gsd_m": i.info.gsd_m,
                "working_gsd_m": i.grid.gsd_m,
                "grid_px": [i.grid.height, i.grid.width],
                "tiles": i.tiles.n_tiles,
                "tile_size": i.tiles.tile_size,
                "overlap": i.tiles.overlap,
            }
            for i in plan.images
        ],
        "objects": len(result.objects),
        "supertiles": result.tiles,
        "saturated_tiles": result.saturated,
        "seconds": {
            "total": round(result.seconds, 2),
            "supertiles": round(run_seconds, 2),
            **{f"worker_{name}": round(value, 2) for name, value in stages.items()},
        },
        "peak_mb": result.peak_mb,
        "notes": list(result.notes),
    }
