"""The whole job: plan, run the supertiles, join them, write, count."""

from __future__ import annotations

import logging
import platform
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import geopandas as gpd
import pandas as pd

import geoseg
from geoseg.config import DetectSettings
from geoseg.errors import ModelError
from geoseg.jobs.assemble import (
    count_in_regions,
    coverage_table,
    seams_of,
    write_objects_file,
)
from geoseg.jobs.executor import Workers, physical_cores
from geoseg.jobs.ledger import RunDirectory
from geoseg.jobs.parts import PartSummary, failed
from geoseg.jobs.plan import RunPlan, counts_path, part_key, plan_run
from geoseg.jobs.supertile import DetectorSpec, SupertileTask, forget_detectors, run_supertile
from geoseg.objects.seams import SeamCounts, SeamReport
from geoseg.outputs.tables import empty_objects, iter_objects, write_objects, write_table

if TYPE_CHECKING:
    from geoseg.models.detector import Detector

log = logging.getLogger(__name__)

Progress = Callable[[int, int, int], None]
"""Called with supertiles finished, all supertiles, and fragments found so far."""


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run gives back."""

    n_objects: int
    objects_file: BinaryIO
    """GeoParquet, open: a later run in the same directory replaces the file, not this result."""
    regions: gpd.GeoDataFrame | None
    coverage: gpd.GeoDataFrame
    output: Path | None
    run_dir: Path | None
    seconds: float
    supertiles: dict[str, int]
    """How many ended in which status; they add up to all."""
    saturated: int
    """Tiles that reached a cap of the detector."""
    seams: SeamReport
    """Where a tile can be trusted, and whether the overlap is enough."""
    peak_mb: float
    """Largest resident memory of any process."""
    notes: tuple[str, ...] = field(default=())
    """What the user should know."""

    @cached_property
    def objects(self) -> gpd.GeoDataFrame:
        """All objects, read into memory when first asked for."""
        parts = list(iter_objects(self.objects_file))
        return pd.concat(parts) if parts else empty_objects(self.coverage.crs)

    @property
    def exit_code(self) -> int:
        """0 done, 3 done but supertiles failed."""
        return 3 if self.supertiles.get("failed") else 0


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
            count, threads = _workers(plan)
            with Workers(count) as workers:
                summaries, seams = _run_supertiles(plan, run_dir, workers, threads, progress)
                ran = time.perf_counter()
                n_objects, joined_seams = write_objects_file(plan, run_dir, summaries, workers)
            coverage = coverage_table(plan, summaries)
            regions = count_in_regions(plan, run_dir.objects, summaries)
            if settings.output is not None:
                _write(plan, run_dir.objects, regions, coverage)
            seconds = time.perf_counter() - begun
            peak = max(
                [s.peak_mb for s in summaries]
                + [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
            )
            result = RunResult(
                n_objects=n_objects,
                objects_file=run_dir.objects.open("rb"),
                regions=regions,
                coverage=coverage,
                output=settings.output,
                run_dir=_run_dir(settings),
                seconds=seconds,
                supertiles=dict(Counter(s.status for s in summaries)),
                saturated=sum(len(s.saturated) for s in summaries),
                seams=seams_of(plan, seams + joined_seams),
                peak_mb=round(peak, 1),
                notes=_notes(plan, n_objects, summaries),
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
                class_agnostic=plan.settings.class_agnostic,
                path=run_dir.part(part_key(plan, number, index)),
            )


def _fields(spec: DetectorSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__slots__}


def _run_supertiles(
    plan: RunPlan,
    run_dir: RunDirectory,
    workers: Workers,
    threads: int,
    progress: Progress | None,
) -> tuple[list[PartSummary], SeamCounts]:
    """Run all supertiles; a failed one becomes a summary with its reason."""
    # what a name stands for may have changed since an earlier run in this process
    forget_detectors()
    log.info(
        "%d supertiles, %d worker(s) of %d thread(s)", plan.n_supertiles, workers.count, threads
    )
    summaries: list[PartSummary] = []
    nothing = seams = SeamCounts.empty()
    found = 0
    for task, outcome in workers.run(run_supertile, _tasks(plan, run_dir, threads)):
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
            # a hundred thousand records of seams are more than their sum
            seams += outcome.seams
            summaries.append(replace(outcome, seams=nothing))
            found += outcome.fragments
        if progress is not None:
            progress(len(summaries), plan.n_supertiles, found)
    return sorted(summaries, key=lambda s: (s.image, s.index)), seams


def _write(
    plan: RunPlan,
    objects: Path,
    regions: gpd.GeoDataFrame | None,
    coverage: gpd.GeoDataFrame,
) -> None:
    output, overwrite = plan.settings.output, plan.settings.overwrite
    if output is None:
        return
    if output.suffix.lower() != ".gpkg":
        write_objects(output, objects, {}, overwrite=overwrite)
        if regions is not None:
            write_table(counts_path(output), regions, layer="regions", overwrite=overwrite)
        return
    others = {} if regions is None else {"regions": regions}
    others["coverage"] = coverage
    about = plan.about_model
    metadata = {
        "geoseg": geoseg.__version__,
        "model": about["name"],
        "licence": about.get("licence", ""),
        "credits": "; ".join(about.get("credits", [])),
        "images": ", ".join(Path(i.info.path).name for i in plan.images),
    }
    write_objects(output, objects, others, overwrite=overwrite, metadata=metadata)


def _notes(plan: RunPlan, n_objects: int, summaries: Sequence[PartSummary]) -> tuple[str, ...]:
    notes = []
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
    notes += [
        f"{Path(image.info.path).name} has {image.info.gsd_m:.3g} m a pixel and was enlarged to "
        f"{image.grid.gsd_m:.3g} m for the model: expect worse results"
        for image in plan.images
        if image.info.gsd_m > 2 * image.grid.gsd_m
    ]
    if n_objects == 0:
        run = sum(s.tiles_run for s in summaries)
        notes.append(
            f"no objects: {run} tile(s) hold pixels inside the AOI and none has a detection with "
            f"a score of {plan.detector.min_score} or more"
        )
    return tuple(notes)


def _plain(settings: DetectSettings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if value is not None}


def _saturated_places(plan: RunPlan, summaries: Sequence[PartSummary]) -> list[dict[str, Any]]:
    """Return where tiles reached a cap of the detector: image, tile, and its window in grid px."""
    places = []
    for s in summaries:
        image = plan.images[s.image]
        for row, col in s.saturated:
            window = image.tiles.tile(row, col).window
            places.append(
                {
                    "image": Path(image.info.path).name,
                    "tile": [row, col],
                    "window": [int(v) for v in window.flatten()],
                }
            )
    return places


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
                "grid_transform": list(i.grid.transform)[:6],
                "crs": i.info.crs_wkt,
                "tiles": i.tiles.n_tiles,
                "tile_size": i.tiles.tile_size,
                "overlap": i.tiles.overlap,
            }
            for i in plan.images
        ],
        "objects": result.n_objects,
        "supertiles": result.supertiles,
        "saturated_tiles": result.saturated,
        "saturated_places": _saturated_places(plan, summaries),
        "seconds": {
            "total": round(result.seconds, 2),
            "supertiles": round(run_seconds, 2),
            **{f"worker_{name}": round(value, 2) for name, value in stages.items()},
        },
        "peak_mb": result.peak_mb,
        "seams": result.seams.to_dict(),
        "notes": list(result.notes),
    }
