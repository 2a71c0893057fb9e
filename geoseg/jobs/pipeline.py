"""The whole job: plan, run the supertiles, join them, write, count."""

from __future__ import annotations

import io
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import geopandas as gpd
import pandas as pd

import geoseg
from geoseg.config import DetectSettings, parse_resources, parse_shard
from geoseg.errors import ConfigError, GeosegError, OutputError, StoppedError
from geoseg.jobs.assemble import (
    count_in_regions,
    coverage_table,
    seams_of,
    write_objects_file,
)
from geoseg.jobs.capacity import local_workers
from geoseg.jobs.cluster import Joining, scheduler_address, write_token
from geoseg.jobs.driver import SupertileRun
from geoseg.jobs.events import EVENTS, Events, notify, redact
from geoseg.jobs.executor import Workers
from geoseg.jobs.explain import Cause, as_notes, why_nothing
from geoseg.jobs.ledger import RunDirectory, digest, file_mark
from geoseg.jobs.manifest import (
    HOW_ONLY,
    OUTPUT_ONLY,
    about_run,
    about_supertiles,
    credits_of,
    model_card,
    plain_settings,
    run_notes,
    worker_seconds,
)
from geoseg.jobs.memory import peak_mb
from geoseg.jobs.parts import PartSummary
from geoseg.jobs.plan import RunPlan, counts_path, counts_paths, plan_run
from geoseg.jobs.probe import terms_of
from geoseg.jobs.progress import COUNTING, JOINING, WRITING, Progress, Watcher
from geoseg.jobs.report import REPORT, report_at_end
from geoseg.jobs.stop import Stop, stop_time
from geoseg.objects.seams import SeamCounts, SeamReport
from geoseg.outputs.counts import write_counts
from geoseg.outputs.formats import suffix_of
from geoseg.outputs.split import split_folder, write_split
from geoseg.outputs.tables import empty_objects, iter_objects, write_objects, write_table

if TYPE_CHECKING:
    from geoseg.models.detector import Detector

__all__ = ["Progress", "RunResult", "run_detect"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run gives back."""

    n_objects: int
    objects_file: BinaryIO
    """GeoParquet, open: a later run in the same directory replaces the file, not this result.
    Empty for a shard."""
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
    tiles_failed: int = 0
    """Tiles that were left out; other tiles of their supertiles are kept."""
    shard: str | None = None
    """'i/n' where this was a share of a run: nothing is joined yet."""
    already_done: bool = False
    """Nothing was left to do: the run had finished and its output is as it left it."""
    also: tuple[Path, ...] = ()
    """Further files that were written, beside `output`."""
    report: Path | None = None
    """The page of the run; None where none was wanted or could be made."""
    why_nothing: tuple[Cause, ...] = ()
    """Where no object was found: why that may be, the likeliest first."""

    @cached_property
    def objects(self) -> gpd.GeoDataFrame:
        """All objects, read into memory when first asked for."""
        if self.shard is not None:
            return empty_objects(self.coverage.crs)
        parts = list(iter_objects(self.objects_file))
        return pd.concat(parts) if parts else empty_objects(self.coverage.crs)

    @property
    def exit_code(self) -> int:
        """0 done, 3 done but supertiles or tiles failed."""
        return 3 if self.supertiles.get("failed") or self.tiles_failed else 0


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
        Called after every supertile; a `geoseg.jobs.progress.Watcher` is told of all events too.

    Raises
    ------
    GeosegError
        If something is wrong with the input, before any work; an existing output stays untouched.
    StoppedError
        If a signal, a stop file or ``until`` ended the run; the same call goes on.
    TooManyErrorsError
        If more tiles failed than ``max_errors``.
    ClusterError
        If scheduler or workers do not fit, or are lost.
    """
    begun = time.perf_counter()
    # a wrong time of day or address is told before anything is read
    until = None if settings.until is None else stop_time(settings.until)
    if settings.scheduler is not None:
        scheduler_address(settings.scheduler, insecure=settings.insecure_cluster)
    own = _own_output(settings)
    # an output that this run directory wrote may be replaced by the run that goes on
    plan = plan_run(replace(settings, overwrite=settings.overwrite or own), detector)
    settings = replace(plan.settings, overwrite=settings.overwrite)
    plan = replace(plan, settings=settings)
    shard = parse_shard(settings.shard)
    with tempfile.TemporaryDirectory(prefix="geoseg-") as scratch:
        run_dir = RunDirectory(_run_dir(settings) or Path(scratch) / "run")
        run_dir.check(plan.key, overwrite=settings.overwrite)
        with run_dir.locked(shard):
            shared = shard is not None and run_dir.others_at_work(shard)
            _check_shared(plan, run_dir, shared=shared)
            run_dir.prepare(plan.key, plain_settings(plan.settings), shared=shared)
            stop = Stop(until, run_dir.stop_file)
            events = Events(
                run_dir.path / EVENTS,
                listener=progress.tell if isinstance(progress, Watcher) else None,
                **({"shard": settings.shard} if shard else {}),
            )
            job = _Job(plan, run_dir, stop, events, begun, may_replace=settings.overwrite or own)
            with stop.listening(), job.told():
                return job.run(progress, shard)


def _check_shared(plan: RunPlan, run_dir: RunDirectory, *, shared: bool) -> None:
    """Refuse to put another run in place of one whose shards are at work."""
    manifest = run_dir.read_manifest()
    if shared and manifest is not None and manifest.get("key") != plan.key:
        raise ConfigError(
            f"{run_dir.path} holds a run with other images, model or settings, and shards of it "
            "are at work; wait for them or name another --run-dir"
        )


@dataclass
class _Job:
    """One run in its directory, from the first task to the manifest."""

    plan: RunPlan
    run_dir: RunDirectory
    stop: Stop
    events: Events
    begun: float
    may_replace: bool
    """Whether an existing output is to be replaced."""
    result: RunResult | None = None
    peaks: dict[str, float] = field(default_factory=dict)
    """Largest resident memory after each stage, MB."""

    def run(self, progress: Progress | None, shard: tuple[int, int] | None) -> RunResult:
        """Run the supertiles; unless this is a shard, join them and write the output."""
        count, threads, gpus, joining = _workers(self.plan, self.run_dir)
        log.info(
            "%s", f"joining {joining.scheduler}" if joining else f"{count} worker(s) of {threads}"
            " thread(s)",
        )  # fmt: skip
        for note in self.plan.notes("refuse", "warn"):
            log.warning("%s", note)
        for note in self.plan.notes("info"):
            log.info("%s", note)
        self.events.add(
            "started",
            supertiles=self.plan.n_supertiles,
            workers=count,
            joined=joining is not None,
            km2=_km2(self.plan),
        )
        with Workers(
            count, gpus=gpus, joining=joining, stop=self.stop, events=self.events
        ) as workers:
            work = SupertileRun(self.plan, self.run_dir, workers, threads, progress, shard)
            work.run()
            ran = time.perf_counter()
            self.peaks["supertiles"] = max([peak_mb(), *(s.peak_mb for s in work.summaries)])
            if shard is not None:
                self.result = self._shard_result(work)
                return self.result
            self.result = self._finish(work, workers, ran)
        return self.result

    def _finish(self, work: SupertileRun, workers: Workers, ran: float) -> RunResult:
        plan, run_dir, settings = self.plan, self.run_dir, self.plan.settings
        summaries = work.summaries
        key = _objects_key(plan, summaries)
        self.events.add("stage", stage=JOINING)
        kept = None if settings.overwrite else self._objects_kept(key)
        if kept is None:
            n_objects, joined = write_objects_file(plan, run_dir, summaries, workers)
            run_dir.note(
                objects_file={"key": key, "rows": n_objects, **(file_mark(run_dir.objects) or {})},
                joined_seams=joined.to_dict(),
            )
        else:
            n_objects, joined = kept
        self.peaks["joins"] = peak_mb()
        why = () if n_objects else why_nothing(plan, run_dir, summaries)
        notes = (*run_notes(plan, summaries), *as_notes(why, plan, summaries))
        coverage = coverage_table(plan, summaries)
        if settings.counting:
            self.events.add("stage", stage=COUNTING, objects=n_objects)
        regions = count_in_regions(plan, run_dir.objects, summaries)
        done = kept is not None and self._output_kept()
        if _output_files(settings) and not done:
            self.events.add("stage", stage=WRITING, objects=n_objects)
            self._write(regions, coverage, self._documents(summaries, n_objects, notes))
        self.peaks["output"] = peak_mb()
        result = RunResult(
            n_objects=n_objects,
            objects_file=run_dir.objects.open("rb"),
            regions=regions,
            coverage=coverage,
            output=settings.output,
            run_dir=_run_dir(settings),
            seconds=time.perf_counter() - self.begun,
            supertiles=dict(Counter(s.status for s in summaries)),
            saturated=sum(len(s.saturated) for s in summaries),
            seams=seams_of(plan, work.seams + joined),
            peak_mb=round(max(self.peaks.values()), 1),
            notes=notes,
            tiles_failed=_tiles_failed(summaries),
            already_done=done and work.n_before == plan.n_supertiles,
            also=tuple(path for path in (*settings.also, settings.counts) if path is not None),
            why_nothing=why,
        )
        self._write_manifest(result, summaries, ran)
        return replace(result, report=self._report(result, summaries))

    def _report(self, result: RunResult, summaries: list[PartSummary]) -> Path | None:
        """Write the page of the run, which costs the run nothing if it fails."""
        if result.run_dir is None or not self.plan.settings.report:
            return None
        page = self.run_dir.path / REPORT
        if result.already_done and page.is_file():
            return page
        return report_at_end(
            self.plan, self.run_dir.path, result.regions, result.coverage, summaries
        )

    def _objects_kept(self, key: str) -> tuple[int, SeamCounts] | None:
        """Return rows and seams of the objects file, if it holds what a join would give now."""
        manifest = self.run_dir.read_manifest() or {}
        noted, mark = manifest.get("objects_file"), file_mark(self.run_dir.objects)
        if not noted or mark is None or noted != noted | mark or noted.get("key") != key:
            return None
        return int(noted["rows"]), SeamCounts.from_dict(manifest["joined_seams"])

    def _output_kept(self) -> bool:
        """Tell whether the output is there as this run wrote it, from these objects."""
        manifest = self.run_dir.read_manifest() or {}
        if not _output_files(self.plan.settings):
            return True
        noted = manifest.get("outputs") or {}
        return bool(noted) and noted == self._output_marks()

    def _output_marks(self) -> dict[str, Any]:
        """Return what tells the output from a changed one, and what it was made from."""
        marks = [file_mark(path) for path in _output_files(self.plan.settings)]
        made_from = _output_key(self.plan), file_mark(self.run_dir.objects)
        return {"files": marks, "made_from": digest(made_from)}

    def _documents(
        self, summaries: list[PartSummary], n_objects: int, notes: Sequence[str]
    ) -> dict[str, Any]:
        """Return what a GeoPackage carries about the run: as much of run.json as is known."""
        run = {
            **about_run(self.plan),
            **about_supertiles(self.plan, summaries),
            "objects": n_objects,
            "notes": list(notes),
        }
        return {"run": run, "model-card": model_card(self.plan), "credits": credits_of(self.plan)}

    def _write(
        self,
        regions: gpd.GeoDataFrame | None,
        coverage: gpd.GeoDataFrame,
        documents: dict[str, Any],
    ) -> None:
        """Write the output; the manifest knows before that it will be this run's own."""
        files = _output_files(self.plan.settings)
        self.run_dir.note(
            writing={"since_ns": time.time_ns(), "before": [file_mark(path) for path in files]}
        )
        write_output(
            self.plan, self.run_dir.objects, regions, coverage, self.may_replace, documents
        )
        self.run_dir.note(outputs=self._output_marks(), writing=None)

    def _write_manifest(self, result: RunResult, summaries: list[PartSummary], ran: float) -> None:
        """Write all that is known, and that the run is finished."""
        self.run_dir.note(
            **about_run(self.plan),
            **about_supertiles(self.plan, summaries),
            state="finished",
            objects=result.n_objects,
            seconds={
                "total": round(result.seconds, 2),
                "supertiles": round(ran - self.begun, 2),
                **worker_seconds(summaries),
            },
            peak_mb=result.peak_mb,
            peak_mb_by_stage=self.peaks,
            seams=result.seams.to_dict(),
            notes=list(result.notes),
            why_nothing=[asdict(cause) for cause in result.why_nothing],
            reason=None,
        )

    def _shard_result(self, work: SupertileRun) -> RunResult:
        return RunResult(
            n_objects=0,
            objects_file=io.BytesIO(),
            regions=None,
            coverage=coverage_table(self.plan, work.summaries),
            output=None,
            run_dir=_run_dir(self.plan.settings),
            seconds=time.perf_counter() - self.begun,
            supertiles=dict(Counter(s.status for s in work.summaries)),
            saturated=sum(len(s.saturated) for s in work.summaries),
            seams=seams_of(self.plan, work.seams),
            peak_mb=round(max(self.peaks.values()), 1),
            tiles_failed=_tiles_failed(work.summaries),
            shard=self.plan.settings.shard,
        )

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell how the run ended: in the events, the manifest, and to the user's command."""
        state, code = "failed", 1
        try:
            yield
            code = 0 if self.result is None else self.result.exit_code
            state = "finished"
        except StoppedError as error:
            state, code = "stopped", error.exit_code
            self._tell_end(state, error)
            raise
        except GeosegError as error:
            code = error.exit_code
            self._tell_end(state, error)
            raise
        except BaseException as error:
            self._tell_end(state, error)
            raise
        else:
            objects = 0 if self.result is None else self.result.n_objects
            self.events.add(
                state, objects=objects, exit_code=code,
                seconds=round(time.perf_counter() - self.begun, 2),
            )  # fmt: skip
        finally:
            self._notify(state, code)

    def _tell_end(self, state: str, error: BaseException) -> None:
        reason = redact(str(error) or type(error).__name__)
        self.events.add(state, reason=reason)
        if self.plan.settings.shard is None:
            try:
                self.run_dir.note(state=state, reason=reason)
            except (OSError, OutputError):
                # a full disk: the run says so itself
                log.debug("the manifest could not be written")

    def _notify(self, state: str, code: int) -> None:
        command = self.plan.settings.notify
        if command is None:
            return
        problem = notify(
            command,
            state=state,
            run_dir=_run_dir(self.plan.settings) or "",
            objects=0 if self.result is None else self.result.n_objects,
            exit_code=code,
        )
        if problem:
            log.warning("--notify %s: %s", command, problem)


def _km2(plan: RunPlan) -> float:
    """Return the ground inside the outlines of all images."""
    areas = [i.grid.width * i.grid.height * i.grid.gsd_m**2 for i in plan.images]
    return round(sum(areas) / 1e6, 6)


def _tiles_failed(summaries: list[PartSummary]) -> int:
    return sum(len(s.tiles_failed) for s in summaries)


def _run_dir(settings: DetectSettings) -> Path | None:
    """Return the run directory, or None where nothing is to stay."""
    if settings.run_dir is not None:
        return settings.run_dir
    if settings.output is None:
        return None
    return settings.output.with_name(f"{settings.output.stem}.geoseg-run")


def _output_files(settings: DetectSettings) -> list[Path]:
    """Return the files that a run writes for the user."""
    outputs = [path.expanduser().absolute() for path in settings.outputs]
    files = [*outputs, *(counts_paths(outputs) if settings.counting else [])]
    if settings.counts is not None:
        files.append(settings.counts.expanduser().absolute())
    if settings.split_by is not None:
        for path in outputs:
            files += sorted(p for p in split_folder(path).glob("*") if p.is_file())
    return files


def _own_output(settings: DetectSettings) -> bool:
    """Tell whether the run directory knows all existing outputs as its own, unchanged.

    Raises
    ------
    OutputError
        If it wrote one that was changed since.
    """
    files = [path for path in _output_files(settings) if path.exists()]
    path = _run_dir(settings)
    if not files or path is None or settings.overwrite:
        return False
    if settings.shard is not None:
        # it writes no output: there is nothing to replace
        return True
    manifest = RunDirectory(path).read_manifest() or {}
    noted = [m for m in (manifest.get("outputs") or {}).get("files") or () if m]
    # of several outputs some may have one name, in different folders
    names, marks = {str(m.get("name")) for m in noted}, [list(m.items()) for m in noted]
    writing = manifest.get("writing")
    for file in files:
        mark = file_mark(file)
        known = mark is not None and list(mark.items()) in marks
        if known or (writing and _written_since(mark, writing)):
            continue
        if file.name in names:
            raise OutputError(
                f"output {file} exists and was changed since this run wrote it; give --overwrite "
                "to replace it, or another name"
            )
        return False
    return True


def _written_since(mark: dict[str, Any] | None, writing: Any) -> bool:
    """Tell whether a file came while a run that was then killed wrote its output."""
    known = isinstance(writing, dict) and isinstance(writing.get("since_ns"), int)
    if mark is None or not known or mark in list(writing.get("before") or ()):
        return False
    return bool(mark["mtime_ns"] >= writing["since_ns"])


def _objects_key(plan: RunPlan, summaries: list[PartSummary]) -> str:
    """Return a hash of all that decides the objects: parts, and how they are joined."""
    settings = plain_settings(plan.settings)
    joins = {k: v for k, v in settings.items() if k not in (*HOW_ONLY, *OUTPUT_ONLY)}
    left_out = [
        (s.image, s.index, s.status, s.tiles_failed)
        for s in summaries
        if s.status == "failed" or s.tiles_failed
    ]
    return digest(plan.key, joins, left_out, plan.crs.to_wkt(), list(plan.classes))


def _output_key(plan: RunPlan) -> str:
    """Return a hash of what decides the output beside the objects."""
    settings = plan.settings
    return digest(
        [str(path) for path in _output_files(settings)],
        None if settings.regions is None else file_mark(settings.regions),
        [settings.grid, settings.rule, settings.regions_crs, settings.parent, settings.id_field],
        [settings.split_by, settings.split_rows],
    )


def _workers(
    plan: RunPlan, run_dir: RunDirectory
) -> tuple[int, int, tuple[str, ...], Joining | None]:
    """Return processes, CPU threads for each, GPUs for them, or the cluster to join."""
    settings = plan.settings
    if settings.scheduler is not None:
        images = [str(Path(i.info.path).absolute()) for i in plan.images]
        model = plan.detector.model
        terms = terms_of(
            None if model is None else str(Path(model).absolute()),
            images,
            write_token(run_dir.path),
        )
        resources = parse_resources(settings.resource)
        joining = Joining(settings.scheduler, settings.insecure_cluster, terms, resources)
        return 1, 0, (), joining
    return *local_workers(plan), None


def write_output(
    plan: RunPlan,
    objects: Path,
    regions: gpd.GeoDataFrame | None,
    coverage: gpd.GeoDataFrame,
    overwrite: bool,
    documents: Mapping[str, Any] | None = None,
) -> None:
    """Write the user's files: all layers in a GeoPackage, else objects, and regions beside.

    Each is what it would be alone: all are made from the same file of objects, one by one.
    """
    settings = plan.settings
    if regions is not None and settings.counts is not None:
        write_counts(settings.counts, regions, overwrite=overwrite)
    about = plan.about_model
    options: dict[str, Any] = {
        "overwrite": overwrite,
        "metadata": {
            "geoseg": geoseg.__version__,
            "model": about["name"],
            "licence": about.get("licence", ""),
            "credits": "; ".join(about.get("credits", [])),
            "images": ", ".join(Path(i.info.path).name for i in plan.images),
        },
        "documents": documents,
        "images": [image.info for image in plan.images],
        "classes": plan.classes,
    }
    layers = {} if regions is None else {"regions": regions}
    layers["coverage"] = coverage
    for output in settings.outputs:
        others = layers if suffix_of(output) == ".gpkg" else {}
        if settings.split_by is None:
            write_objects(output, objects, others, **options)
        else:
            write_split(
                output, objects, settings.split_by, regions=regions, rows=settings.split_rows,
                others=others, **options,
            )  # fmt: skip
        beside = counts_path(output)
        if regions is not None and beside is not None:
            write_table(beside, regions, layer="regions", overwrite=overwrite)
