"""Runs the supertiles of a plan: what is finished is skipped, what fails costs one tile.

Supertiles go out in up to four rounds::

    all of them      a few per worker in flight   an error, even again:  to the third round
    suspects         one at a time, alone         its worker died again: to the third round
    tiles of those   one per worker               its worker died again: to the fourth round
    tiles            one at a time, alone         left out, with the reason

The second and fourth round know whom to blame for a dead worker: nothing else was out. So a tile
that kills its worker costs that tile, and never one that only stood beside it.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import shapely

from geoseg.errors import (
    DeviceError,
    GeosegError,
    ModelError,
    OutputError,
    TileError,
    TooManyErrorsError,
    WorkerLostError,
)
from geoseg.jobs.events import redact
from geoseg.jobs.executor import IN_FLIGHT, Workers
from geoseg.jobs.ledger import RunDirectory
from geoseg.jobs.parts import PartSummary, finished_part
from geoseg.jobs.plan import ImagePlan, RunPlan, part_key
from geoseg.jobs.progress import Progress
from geoseg.jobs.supertile import DetectorSpec, SupertileTask, forget_detectors, run_supertile
from geoseg.jobs.tiles import SalvageTask, TileTask, run_tile, salvage, tile_tasks
from geoseg.objects.seams import SeamCounts
from geoseg.records import Supertile

log = logging.getLogger(__name__)

Place = tuple[int, tuple[int, int]]
"""Image, and (row, col) of the supertile."""
TRIES = 3
"""How often a tile that is run alone may lose its workers before it is left out."""
GO_ON = "what is finished is kept: the same command goes on from there"


@dataclass
class SupertileRun:
    """Runs supertiles and remembers what became of each."""

    plan: RunPlan
    run_dir: RunDirectory
    workers: Workers
    threads: int
    progress: Progress | None = None
    share: tuple[int, int] | None = None
    """(i, n) of a shard; None: all supertiles."""
    summaries: list[PartSummary] = field(default_factory=list)
    seams: SeamCounts = field(default_factory=SeamCounts.empty)
    n_before: int = 0
    """Supertiles that were finished when this run began."""
    _found: int = 0
    _n_lost: int = 0

    def run(self) -> None:
        """Run all supertiles that are not finished.

        Raises
        ------
        ModelError, OutputError
            If the detector does not load, or parts cannot be written.
        TileError
            With ``--on-error fail``: what failed first.
        TooManyErrorsError
            If more tiles failed than ``--max-errors`` allows.
        StoppedError, ClusterError
            As `Workers.run`.
        """
        # what a name stands for may have changed since an earlier run in this process
        forget_detectors()
        finished = self._find_finished()
        left = self.n_supertiles - self.n_before
        log.info(
            "%d supertiles%s", left, f", {self.n_before} more are finished" * bool(self.n_before)
        )
        self._tell_progress()
        suspects: list[SupertileTask] = []
        broken: list[SupertileTask] = []
        tasks = self._tasks(finished)
        for task, outcome in self.workers.run(
            run_supertile, tasks, per_worker=IN_FLIGHT, on_gpu=True
        ):
            self._sort(task, outcome, suspects, broken)
        if suspects:
            log.info("%d supertile(s) lost their worker; each is run again alone", len(suspects))
        for task, outcome in self.workers.run(run_supertile, suspects, alone=True, on_gpu=True):
            self._sort(task, outcome, broken, broken)
        if broken:
            log.info("%d supertile(s) failed; they are run tile by tile", len(broken))
            self._tile_by_tile(sorted(broken, key=_place))
        shutil.rmtree(self.run_dir.tiles, ignore_errors=True)
        self.summaries.sort(key=lambda s: (s.image, s.index))

    @property
    def n_supertiles(self) -> int:
        """Supertiles of this run, or of its share."""
        if self.share is None:
            return self.plan.n_supertiles
        i, n = self.share
        return len(range(i - 1, self.plan.n_supertiles, n))

    def _places(self) -> Iterator[Place]:
        """Yield the supertiles of the plan, or every n-th of them."""
        number = 0
        for image, planned in enumerate(self.plan.images):
            rows, cols = planned.tiles.supertile_shape
            for index in ((r, c) for r in range(rows) for c in range(cols)):
                if self.share is None or number % self.share[1] == self.share[0] - 1:
                    yield image, index
                number += 1

    def _find_finished(self) -> set[Place]:
        """Take note of the parts that lie in the run directory."""
        there = {path.name for path in self.run_dir.parts.iterdir()}
        finished = set()
        if there:
            for image, index in self._places():
                path = self.run_dir.part(part_key(self.plan, image, index))
                if path.name not in there or (summary := finished_part(path)) is None:
                    continue
                finished.add((image, index))
                self._add(summary)
        self.n_before = len(finished)
        return finished

    def _tasks(self, finished: Collection[Place]) -> Iterator[SupertileTask]:
        detector = _with_threads(self.plan.detector, self.threads)
        for number, index in self._places():
            if (number, index) in finished:
                continue
            image = self.plan.images[number]
            yield SupertileTask(
                image=number,
                # workers may stand in another folder
                info=replace(image.info, path=_absolute(image.info.path)),
                grid=image.grid,
                tiles=image.tiles,
                index=index,
                bands=image.bands,
                detector=detector,
                aoi_wkb=_aoi_near(image, image.tiles.supertile(*index)),
                class_agnostic=self.plan.settings.class_agnostic,
                skip_empty=self.plan.settings.skip_empty,
                path=self.run_dir.part(part_key(self.plan, number, index)).absolute(),
                scaling=image.scaling,
            )

    def _sort(
        self,
        task: SupertileTask,
        outcome: PartSummary | Exception,
        died: list[SupertileTask],
        raised: list[SupertileTask],
    ) -> None:
        """Keep a result, or put a task among those that need another look."""
        if isinstance(outcome, PartSummary):
            self._finish(outcome)
            return
        _raise_if_hopeless(outcome)
        name = Path(task.info.path).name
        log.warning("%s, supertile %s failed: %s", name, task.index, outcome)
        self.workers.events.add(
            "supertile failed", image=name, supertile=task.index, reason=str(outcome)
        )
        settings = self.plan.settings
        alone = died is raised
        if settings.on_error == "fail" and (alone or not isinstance(outcome, WorkerLostError)):
            raise TileError(
                f"{name}, supertile {task.index} failed (--on-error fail): {outcome}; {GO_ON}"
            ) from outcome
        (died if isinstance(outcome, WorkerLostError) else raised).append(task)
        if settings.max_errors is not None and len(raised) > settings.max_errors:
            # each has a tile that fails, at least
            raise self._too_many(len(raised), "supertiles")

    def _tile_by_tile(self, broken: Sequence[SupertileTask]) -> None:
        """Run the tiles of supertiles one by one and put together what can be kept."""
        folder = self.run_dir.tiles.absolute()
        folder.mkdir(exist_ok=True)
        kept: dict[Place, dict[tuple[int, int], Path]] = {_place(task): {} for task in broken}
        lost: dict[Place, list[tuple[int, int, str]]] = {_place(task): [] for task in broken}
        died: list[TileTask] = []
        tasks = (tile for task in broken for tile in tile_tasks(task, folder))
        for alone in (False, True):
            rounds = list(died) if alone else tasks
            for tile, outcome in self.workers.run(
                run_tile, rounds, alone=alone, tries=TRIES if alone else 1, on_gpu=True
            ):
                place = _place(tile.supertile)
                if isinstance(outcome, Exception):
                    _raise_if_hopeless(outcome)
                if isinstance(outcome, PartSummary):
                    kept[place][tile.tile.index] = tile.path
                elif isinstance(outcome, WorkerLostError) and not alone:
                    died.append(tile)
                else:
                    lost[place].append((*tile.tile.index, self._lose(tile, outcome)))
        salvages = (
            SalvageTask(
                task,
                tuple(path for _, path in sorted(kept[_place(task)].items())),
                tuple(sorted(lost[_place(task)])),
            )
            for task in broken
        )
        for task, outcome in self.workers.run(salvage, salvages):
            if isinstance(outcome, Exception):
                _raise_if_hopeless(outcome)
            self._finish(outcome if isinstance(outcome, PartSummary) else _gone(task, outcome))
            for path in task.paths:
                path.unlink(missing_ok=True)

    def _lose(self, tile: TileTask, error: Exception) -> str:
        """Leave a tile out; returns the reason."""
        settings = self.plan.settings
        name, reason = Path(tile.supertile.info.path).name, redact(str(error) or repr(error))
        index = tile.tile.index
        log.error("%s, tile %s is left out: %s", name, index, reason)
        self.workers.events.add("tile failed", image=name, tile=index, reason=reason)
        self._n_lost += 1
        if settings.on_error == "fail":
            raise TileError(f"{name}, tile {index} failed (--on-error fail): {reason}; {GO_ON}")
        if settings.max_errors is not None and self._n_lost > settings.max_errors:
            raise self._too_many(self._n_lost, "tiles")
        return reason

    def _too_many(self, count: int, what: str) -> GeosegError:
        return TooManyErrorsError(
            f"{count} {what} failed, --max-errors allows {self.plan.settings.max_errors}; the "
            f"events in {self.run_dir.path.name} say why; {GO_ON}"
        )

    def _finish(self, summary: PartSummary) -> None:
        """Take note of a supertile that was run."""
        self._add(summary)
        image = self.plan.images[summary.image]
        name = Path(image.info.path).name
        core = image.tiles.supertile(*summary.index).core
        fields = {} if not summary.reason else {"reason": summary.reason}
        self.workers.events.add(
            f"supertile {summary.status}",
            image=name,
            supertile=summary.index,
            tiles=summary.tiles_run,
            found=summary.fragments,
            km2=round(core.width * core.height * image.grid.gsd_m**2 / 1e6, 6),
            seconds=summary.seconds,
            peak_mb=summary.peak_mb,
            **fields,
        )
        self._tell_progress()

    def _add(self, summary: PartSummary) -> None:
        # what is kept a hundred thousand times is kept short
        self.seams += summary.seams
        seconds = {sys.intern(stage): seconds for stage, seconds in summary.seconds.items()}
        status = sys.intern(summary.status)
        self.summaries.append(replace(summary, seams=_NO_SEAMS, seconds=seconds, status=status))
        self._found += summary.fragments

    def _tell_progress(self) -> None:
        if self.progress is not None:
            self.progress(len(self.summaries), self.n_supertiles, self._found)


def _raise_if_hopeless(error: Exception) -> None:
    """Raise what will fail for the next supertile too: no weights, a full disk, a lost GPU."""
    if isinstance(error, ModelError | OutputError | DeviceError):
        raise error


def _gone(task: SalvageTask, error: Exception) -> PartSummary:
    """Return the summary of a supertile that could not be put together from its tiles."""
    whole = task.supertile
    blank = PartSummary(whole.image, whole.index, "failed", tiles=len(task.paths) + len(task.lost))
    return replace(blank, reason=redact(str(error) or repr(error)), tiles_failed=task.lost)


_NO_SEAMS = SeamCounts.empty()


def _place(task: SupertileTask) -> Place:
    return task.image, task.index


def _with_threads(spec: DetectorSpec, threads: int) -> DetectorSpec:
    model = None if spec.model is None else _absolute(spec.model)
    return replace(spec, threads=threads, model=model)


def _absolute(path: str) -> str:
    """Return a local path as other processes can use it; other names as they are."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def _aoi_near(image: ImagePlan, supertile: Supertile) -> bytes | None:
    """Return the AOI inside a supertile's window; None: all of it.

    The outline of a country would travel with every task.
    """
    if image.aoi is None:
        return None
    x, y = supertile.window.col_off, supertile.window.row_off
    box = shapely.box(x, y, x + supertile.window.width, y + supertile.window.height)
    shapely.prepare(image.aoi)
    if shapely.covers(image.aoi, box):
        return None
    if not shapely.intersects(image.aoi, box):
        return bytes(shapely.to_wkb(shapely.Polygon()))
    return bytes(shapely.to_wkb(shapely.intersection(image.aoi, box)))
