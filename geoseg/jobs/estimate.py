"""What a run will take, before it runs: tiles, memory, disk and, from timed supertiles, hours.

The timed supertiles run in processes of their own, as workers do: so their memory is measured too,
and nothing of them stays in this process. First one process does three of them with all cores;
then as many processes as the run will have do one each at the same time, because workers slow each
other down (memory bandwidth, clocks), and by how much no formula knows.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import shapely

from geoseg import errors
from geoseg.errors import GeosegError, TileError
from geoseg.imagery.check import map_validity
from geoseg.jobs.capacity import local_workers, physical_cores, usable_gpus
from geoseg.jobs.lanes import LANES
from geoseg.jobs.plan import RunPlan, plan_run
from geoseg.jobs.progress import FINISH_S
from geoseg.jobs.supertile import SupertileTask, run_supertile
from geoseg.records import BoolArray, IntArray

if TYPE_CHECKING:
    from geoseg.config import DetectSettings
    from geoseg.jobs.plan import ImagePlan
    from geoseg.models.detector import Detector

log = logging.getLogger(__name__)

PROBES = 3
"""Supertiles that are timed."""
FULL = 0.5
"""A supertile is timed only if it has this share of the tiles of the fullest one."""
SPREAD = 0.1
"""Added to both ends of what the timed supertiles show: three are few."""

BUSY = 0.15
"""Share of the CPU that other programs may take before it is worth a word."""

CLUSTER_START_S = 6.0
"""Starting Dask and its workers, beside loading the model."""
BASE_MB = 620.0
"""A process with torch and the libraries for rasters and geometries loaded."""
TILE_BYTES_PER_PX = 900.0
"""What the shipped network holds at once for each pixel of a tile."""
RESAMPLE_MB = 400.0
"""Bringing a strip of pixels to the working pixel size."""
DRIVER_MB = 450.0
"""The process that hands out supertiles, joins and writes."""
OBJECTS_PER_KM2 = 3_000.0
"""Buildings of a dense town; stands in where nothing was timed."""
PART_BYTES, TABLE_BYTES, OUTPUT_BYTES = 1_600.0, 600.0, 1_100.0
"""Bytes of one object in parts, in objects.parquet and in a GeoPackage: as in the demo's town."""


@dataclass(frozen=True, slots=True)
class ImageEstimate:
    """How much work one image is."""

    name: str
    size_px: tuple[int, int]
    """Columns and rows of the file."""
    grid_px: tuple[int, int]
    """Columns and rows of the working grid."""
    gsd_m: float
    working_gsd_m: float
    km2: float
    """Ground inside the image's outline."""
    tiles: int
    tiles_to_run: int
    """Those that seem to hold valid pixels inside the AOI."""
    supertiles: int


@dataclass(frozen=True, slots=True)
class TimedSupertile:
    """One supertile that was run for its time."""

    image: str
    index: tuple[int, int]
    processes: int
    """Processes that worked at the same time."""
    tiles: int
    """Tiles with pixels."""
    seconds: float
    cpu_seconds: float
    """Of all its threads: what the seconds would be on one idle core."""
    objects: float
    """Found in it; those at its edges count half, its neighbour sees them too."""
    part_bytes: int


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """How long the whole run takes."""

    workers: int
    threads: int
    """CPU threads of each."""
    seconds: float
    low: float
    high: float
    """If all is as in the fastest and in the slowest timed supertile, and a tenth more."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """How much memory the run takes."""

    worker_mb: float
    """Each worker's largest resident memory."""
    driver_mb: float
    total_mb: float
    """All workers and the driver."""
    free_mb: float | None
    """What the machine has left now."""
    how: str


@dataclass(frozen=True, slots=True)
class DiskEstimate:
    """How much disk the run takes."""

    objects: int
    """Expected."""
    parts_bytes: int
    table_bytes: int
    """Of objects.parquet in the run directory."""
    output_bytes: int
    total_bytes: int
    free_bytes: int | None
    """Where the output goes."""
    how: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take."""

    images: tuple[ImageEstimate, ...]
    workers: int
    memory: MemoryEstimate
    disk: DiskEstimate
    times: tuple[TimeEstimate, ...] = ()
    """For one worker, and for `workers` where that is more; empty if nothing was timed."""
    timed: tuple[TimedSupertile, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """What the user should know."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def estimate_run(
    settings: DetectSettings, detector: Detector | None = None, *, probe: bool = True
) -> Estimate:
    """Tell what a run will take, without running it.

    Parameters
    ----------
    settings : DetectSettings
        Of the run; without an output a GeoPackage is assumed.
    detector : Detector, optional
        Instead of the settings' model or factory; it must pickle.
    probe : bool
        Run up to three supertiles in a scratch directory to measure time, memory and objects.

    Returns
    -------
    Estimate
        Without `probe` memory and disk are rules of thumb, and times are left out.

    Raises
    ------
    GeosegError
        What `geoseg.jobs.pipeline.run_detect` would raise before any work; and if a timed
        supertile fails.
    """
    plan = plan_run(settings, detector)
    running = [_tiles_to_run(image) for image in plan.images]
    work = _Work(plan, [_per_supertile(i, r) for i, r in zip(plan.images, running, strict=True)])
    workers, threads, _ = local_workers(plan)
    lanes = min(LANES, threads) if plan.detector.factory is None else 1
    images = tuple(_image(i, r) for i, r in zip(plan.images, running, strict=True))
    if not probe or work.tiles == 0:
        estimate = Estimate(
            images, workers, _rough_memory(plan, workers, lanes), _rough_disk(plan, images)
        )
        return replace(estimate, notes=_notes(estimate, work))
    with tempfile.TemporaryDirectory(prefix="geoseg-plan-") as scratch, _Others() as others:
        alone, crowded = _probe(work, workers, threads, Path(scratch))
    measured = _Measured(work, alone, crowded, bool(usable_gpus(plan)))
    memory = _memory(
        workers,
        max(run.peak_mb for run in crowded or (alone,)) + max(map(_reading_mb, plan.images)),
        "measured on the timed supertiles, per worker, and what reading the next one takes; the "
        "driver by a rule of thumb",
    )
    estimate = Estimate(
        images=images,
        workers=workers,
        memory=memory,
        disk=measured.disk(plan),
        times=measured.times(workers, threads),
        timed=tuple(t for run in (alone, *crowded) for t in run.timed),
    )
    return replace(estimate, notes=(*others.notes(), *_notes(estimate, work)))


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """Tiles to run of every supertile of every image."""

    plan: RunPlan
    per_supertile: list[IntArray]
    """Per image (rows, cols) of supertiles."""

    @property
    def tiles(self) -> int:
        """All tiles to run."""
        return int(sum(array.sum() for array in self.per_supertile))

    def chosen(self) -> list[tuple[int, tuple[int, int]]]:
        """Return up to three (image, index), well filled and spread evenly over the work."""
        places = [
            (number, (int(row), int(col)), int(array[row, col]))
            for number, array in enumerate(self.per_supertile)
            for row, col in np.argwhere(array > 0)
        ]
        most = max(tiles for *_, tiles in places)
        full = [place for place in places if place[2] >= FULL * most]
        passed = np.cumsum([tiles for *_, tiles in full])
        at = (np.arange(PROBES) + 0.5) / PROBES * passed[-1]
        rows = np.unique(np.searchsorted(passed, at))
        return [full[int(row)][:2] for row in rows]


def _tiles_to_run(image: ImagePlan) -> BoolArray:
    """Return which tiles seem to hold valid pixels inside the AOI, (rows, cols) of tiles."""
    seen = map_validity(image.info, image.bands)
    rows, cols = image.tiles.window_spans()
    total = np.pad(np.cumsum(np.cumsum(seen, axis=0, dtype=np.int64), axis=1), ((1, 0), (1, 0)))
    top, bottom = _cells(rows, image.grid.height, seen.shape[0])
    left, right = _cells(cols, image.grid.width, seen.shape[1])
    # the sum over a rectangle from the sums over rectangles that begin at the corner
    valid = (
        total[np.ix_(bottom, right)]
        - total[np.ix_(top, right)]
        - total[np.ix_(bottom, left)]
        + total[np.ix_(top, left)]
    )
    out: BoolArray = valid > 0
    if image.aoi is not None:
        shapely.prepare(image.aoi)
        x0, y0 = np.meshgrid(cols[:, 0], rows[:, 0])
        x1, y1 = np.meshgrid(cols[:, 1], rows[:, 1])
        out &= shapely.intersects(image.aoi, shapely.box(x0, y0, x1, y1))
    return out


def _cells(spans: IntArray, length_px: int, cells: int) -> tuple[IntArray, IntArray]:
    """Return first and end cell of half-open spans of px; at least one cell each."""
    first = np.clip(np.floor(spans[:, 0] * cells / length_px), 0, cells - 1).astype(np.int64)
    end = np.clip(np.ceil(spans[:, 1] * cells / length_px), 1, cells).astype(np.int64)
    return first, np.maximum(end, first + 1)


def _per_supertile(image: ImagePlan, run: BoolArray) -> IntArray:
    """Add up tiles to run by supertile."""
    counts = run.astype(np.int64)
    for axis, (tiles, groups) in enumerate(
        zip(image.tiles.shape, image.tiles.supertile_shape, strict=True)
    ):
        # TileGrid deals tiles out to supertiles as evenly as it goes
        counts = np.add.reduceat(counts, np.arange(groups) * tiles // groups, axis=axis)
    return counts


def _image(image: ImagePlan, run: BoolArray) -> ImageEstimate:
    grid = image.grid
    return ImageEstimate(
        name=Path(image.info.path).name,
        size_px=(image.info.width, image.info.height),
        grid_px=(grid.width, grid.height),
        gsd_m=image.info.gsd_m,
        working_gsd_m=grid.gsd_m,
        km2=grid.width * grid.height * grid.gsd_m**2 / 1e6,
        tiles=image.tiles.n_tiles,
        tiles_to_run=int(run.sum()),
        supertiles=image.tiles.n_supertiles,
    )


# The probe


class _Others:
    """Watches what other programs take of the CPU while supertiles are timed."""

    def __enter__(self) -> _Others:
        self._began = self._taken()
        return self

    def __exit__(self, *error: object) -> None:
        before, after = self._began, self._taken()
        busy, everything = after[0] - before[0], after[1] - before[1]
        self.share = max(0.0, busy) / everything if everything > 0 else 0.0

    @staticmethod
    def _taken() -> tuple[float, float]:
        """Return CPU seconds that others used, and all there were."""
        import psutil

        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # those of guests are counted twice
        everything = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        own = os.times()
        ours = own.user + own.system + own.children_user + own.children_system
        return everything - idle - ours, everything

    def notes(self) -> tuple[str, ...]:
        """Say so, if it was much."""
        if self.share <= BUSY:
            return ()
        note = (
            f"other programs took {self.share:.0%} of the CPU while supertiles were timed: the "
            "times hold while they do; without them it is faster"
        )
        return (note,)


@dataclass(frozen=True, slots=True)
class _ProbeRun:
    """What one process measured."""

    timed: tuple[TimedSupertile, ...]
    ready_s: float
    """From its start until the model was loaded."""
    read_s: float
    """Reading, of all its supertiles."""
    peak_mb: float


def _probe(
    work: _Work, workers: int, threads: int, scratch: Path
) -> tuple[_ProbeRun, tuple[_ProbeRun, ...]]:
    """Time three supertiles in one process, then one in each of as many as the run will have."""
    places = work.chosen()
    log.info("timing %d supertile(s) with one worker", len(places))
    (alone,) = _run_probes(work.plan, [places], physical_cores(), scratch / "alone")
    if workers == 1:
        return alone, ()
    log.info("timing %d supertiles at once, one in each worker", workers)
    turns = [[places[turn % len(places)]] for turn in range(workers)]
    return alone, tuple(_run_probes(work.plan, turns, threads, scratch / "crowded"))


def _run_probes(
    plan: RunPlan,
    turns: Sequence[Sequence[tuple[int, tuple[int, int]]]],
    threads: int,
    folder: Path,
) -> list[_ProbeRun]:
    """Run processes at the same time, each with its supertiles; returns what each measured."""
    folder.mkdir()
    # where this process imports from, the user's detector among it
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # noqa: PTH109
    }
    code = f"from {__name__} import probe_main; probe_main()"
    with ExitStack() as stack:
        children = []
        for turn, places in enumerate(turns):
            job = folder / f"{turn}.job"
            tasks = [_task(plan, *place, threads, folder / f"{turn}-{i}.parquet")
                     for i, place in enumerate(places)]  # fmt: skip
            job.write_bytes(pickle.dumps(tasks))
            children.append(
                subprocess.Popen(  # noqa: S603  # our own interpreter and code
                    [sys.executable, "-c", code, str(job)],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            )
            stack.callback(_end, children[-1])
        return [
            _result(plan, child, folder / f"{turn}.json", len(turns))
            for turn, child in enumerate(children)
        ]


def _end(child: subprocess.Popen[bytes]) -> None:
    """Leave no process behind, whatever happened."""
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stderr):
        if pipe is not None:
            pipe.close()


def _task(
    plan: RunPlan, number: int, index: tuple[int, int], threads: int, path: Path
) -> SupertileTask:
    image = plan.images[number]
    return SupertileTask(
        image=number,
        info=image.info,
        grid=image.grid,
        tiles=image.tiles,
        index=index,
        bands=image.bands,
        detector=replace(plan.detector, threads=threads),
        aoi_wkb=None if image.aoi is None else image.aoi.wkb,
        class_agnostic=plan.settings.class_agnostic,
        path=path,
        scaling=image.scaling,
    )


def _result(plan: RunPlan, child: subprocess.Popen[bytes], path: Path, processes: int) -> _ProbeRun:
    """Wait for a process and return what it measured, or raise what it raised."""
    assert child.stderr is not None  # noqa: S101  # we asked for the pipe
    said = child.stderr.read().decode(errors="replace").strip()
    code = child.wait()
    if not path.is_file():
        last = said.splitlines()[-1] if said else f"exit code {code}"
        raise TileError(f"timing a supertile failed: its process died ({last})")
    values = json.loads(path.read_text(encoding="utf-8"))
    if "error" in values:
        kind = getattr(errors, values["kind"], TileError)
        raise kind(values["error"])
    timed = tuple(
        TimedSupertile(
            image=Path(plan.images[row["image"]].info.path).name,
            index=(row["index"][0], row["index"][1]),
            processes=processes,
            tiles=row["tiles"],
            seconds=row["seconds"],
            cpu_seconds=row["cpu_seconds"],
            objects=row["objects"],
            part_bytes=row["part_bytes"],
        )
        for row in values["timed"]
    )
    return _ProbeRun(timed, values["ready_s"], values["read_s"], values["peak_mb"])


def probe_main() -> None:
    """Run the supertiles of a job file and write what they took beside it; for `_run_probes`."""
    # the pipe closes when the parent is gone, however it went: then there is nobody to wait for us
    threading.Thread(target=_die_with_parent, daemon=True).start()
    job = Path(sys.argv[1])
    try:
        values = _measure(pickle.loads(job.read_bytes()))  # noqa: S301  # written by our parent
    except GeosegError as error:
        values = {"error": str(error), "kind": type(error).__name__}
    private = job.with_suffix(".tmp")
    private.write_text(json.dumps(values), encoding="utf-8")
    private.replace(job.with_suffix(".json"))


def _die_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _measure(tasks: Sequence[SupertileTask]) -> dict[str, Any]:
    """Run supertiles; the model is loaded before the clock of the first one starts."""
    import psutil

    tasks[0].detector.load()
    ready = time.time() - psutil.Process().create_time()
    timed = []
    read_s = peak = 0.0
    for task in tasks:
        begun, cpu = time.perf_counter(), time.process_time()
        summary = run_supertile(task)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        rows = pq.read_metadata(task.path).num_rows
        timed.append(
            {
                "image": task.image,
                "index": task.index,
                "tiles": summary.tiles_run,
                "seconds": seconds,
                "cpu_seconds": cpu,
                "objects": summary.objects + (rows - summary.objects) / 2,
                "part_bytes": task.path.stat().st_size,
            }
        )
        read_s += summary.seconds.get("read", 0.0)
        peak = max(peak, summary.peak_mb)
    return {"timed": timed, "ready_s": ready, "read_s": read_s, "peak_mb": peak}


@dataclass(frozen=True, slots=True)
class _Measured:
    """From timed supertiles to the whole run."""

    work: _Work
    alone: _ProbeRun
    crowded: tuple[_ProbeRun, ...]
    on_gpu: bool

    @property
    def _tiles(self) -> int:
        return max(1, sum(t.tiles for t in self.alone.timed))

    @property
    def _objects(self) -> float:
        """Objects of the whole run."""
        return sum(t.objects for t in self.alone.timed) / self._tiles * self.work.tiles

    def times(self, workers: int, threads: int) -> tuple[TimeEstimate, ...]:
        """Return the time with one worker, and with as many as the run will have."""
        one = self._time(self.alone.timed, 1, physical_cores(), self.alone.ready_s)
        if workers == 1:
            return (one,)
        ready = max(run.ready_s for run in self.crowded) + CLUSTER_START_S
        timed = [t for run in self.crowded for t in run.timed]
        return one, self._time(timed, workers, threads, ready)

    def _time(
        self, timed: Sequence[TimedSupertile], workers: int, threads: int, ready_s: float
    ) -> TimeEstimate:
        """Return the time of the run from supertiles timed under the same conditions."""
        rates = [t.seconds / max(t.tiles, 1) for t in timed]
        mean = sum(t.seconds for t in timed) / max(1, sum(t.tiles for t in timed))
        fastest = min(rates)
        if not self.on_gpu:
            # with the cores to themselves; a GPU is no core, and waits for nobody
            fastest = min(fastest, *(t.cpu_seconds / threads / max(t.tiles, 1) for t in timed))
        fixed = ready_s + FINISH_S * self._objects
        seconds, low, high = (
            fixed + self._makespan(workers, rate)
            for rate in (mean, fastest * (1 - SPREAD), max(rates) * (1 + SPREAD))
        )
        return TimeEstimate(workers, threads, round(seconds, 1), round(low, 1), round(high, 1))

    def _makespan(self, workers: int, rate: float) -> float:
        """Return the seconds until the last worker is done, each taking the next supertile."""
        idle = self.alone.read_s / len(self.alone.timed)
        costs = np.concatenate([array.ravel() for array in self.work.per_supertile]) * rate
        costs[costs == 0] = min(idle, rate)
        if len(costs) > 1_000 * workers:
            # so many that they even out
            return float(costs.sum() / workers)
        ends = [0.0] * workers
        for cost in costs:
            heapq.heapreplace(ends, ends[0] + float(cost))
        return max(ends)

    def disk(self, plan: RunPlan) -> DiskEstimate:
        """Return what parts, objects and output need, by the objects of the timed supertiles."""
        found = sum(t.objects for t in self.alone.timed)
        parts = sum(t.part_bytes for t in self.alone.timed)
        total = parts / self._tiles * self.work.tiles
        ratio = total / max(self._objects, 1) / PART_BYTES if found >= 20 else 1.0
        how = (
            f"{self._objects / max(self.work.tiles, 1):.1f} objects a tile as in the timed "
            f"supertiles, {TABLE_BYTES * ratio:.0f} bytes each in objects.parquet and "
            f"{OUTPUT_BYTES * ratio:.0f} in the output, by the size of their parts"
        )
        return _disk(plan, self._objects, total, ratio, how)


# Memory and disk


def _rough_memory(plan: RunPlan, workers: int, lanes: int) -> MemoryEstimate:
    """Return the memory by a rule of thumb; each lane has a tile in the network."""
    largest = 0.0
    for image in plan.images:
        tiles = image.tiles
        # tiles are cut out of the supertile as copies, and share ground
        copies = (tiles.tile_size / (tiles.tile_size - tiles.overlap)) ** 2
        network = lanes * TILE_BYTES_PER_PX * tiles.tile_size**2 / 1e6
        # the next supertile is read while the network looks at this one
        largest = max(largest, _pixels_mb(image) * copies + network + _reading_mb(image))
    how = (
        f"by a rule of thumb: {BASE_MB:.0f} MB for torch and libraries, the pixels of a supertile "
        "and of its tiles, and the shipped network's needs; your own detector may need more"
    )
    return _memory(workers, BASE_MB + largest, how)


def _pixels_mb(image: ImagePlan) -> float:
    """Return the pixels of one supertile with their mask, MB."""
    tiles = image.tiles
    side = min(tiles.supertile_size, max(image.grid.height, tiles.tile_size))
    other = min(tiles.supertile_size, max(image.grid.width, tiles.tile_size))
    per_px = len(image.bands) * np.dtype(image.info.dtype).itemsize + 1
    return side * other * per_px / 1e6


def _reading_mb(image: ImagePlan) -> float:
    """Return what reading one supertile takes, MB."""
    return _pixels_mb(image) + (0.0 if image.grid.is_native else RESAMPLE_MB)


def _memory(workers: int, worker_mb: float, how: str) -> MemoryEstimate:
    import psutil

    # one worker is the driver
    total = worker_mb if workers == 1 else worker_mb * workers + DRIVER_MB
    return MemoryEstimate(
        worker_mb=round(worker_mb),
        driver_mb=DRIVER_MB,
        total_mb=round(total),
        free_mb=round(psutil.virtual_memory().available / 1e6),
        how=how,
    )


def _rough_disk(plan: RunPlan, images: Sequence[ImageEstimate]) -> DiskEstimate:
    """Return the disk for a density of objects that is assumed."""
    ground = sum(i.km2 * i.tiles_to_run / max(i.tiles, 1) for i in images)
    objects = ground * OBJECTS_PER_KM2
    how = (
        f"assuming {OBJECTS_PER_KM2:,.0f} objects a km2, a dense town's, of {PART_BYTES:.0f} bytes "
        f"in parts, {TABLE_BYTES:.0f} in objects.parquet and {OUTPUT_BYTES:.0f} in the output"
    )
    return _disk(plan, objects, objects * PART_BYTES, 1.0, how)


def _disk(plan: RunPlan, objects: float, parts: float, ratio: float, how: str) -> DiskEstimate:
    table, output = objects * TABLE_BYTES * ratio, objects * OUTPUT_BYTES * ratio
    return DiskEstimate(
        objects=round(objects),
        parts_bytes=round(parts),
        table_bytes=round(table),
        output_bytes=round(output),
        total_bytes=round(parts + table + output),
        free_bytes=_free_bytes(plan.settings.output or Path("objects.gpkg")),
        how=how,
    )


def _free_bytes(output: Path) -> int | None:
    """Return what is free where the output goes, or will be made."""
    folder = output.absolute().parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        return disk_usage(folder).free
    except OSError:
        return None


def _notes(estimate: Estimate, work: _Work) -> tuple[str, ...]:
    """Say what stands in the way."""
    notes = work.plan.notes("refuse", "warn", "info")
    if work.tiles == 0:
        notes.append("no tile holds valid pixels inside the AOI: the run would find nothing")
    memory, disk = estimate.memory, estimate.disk
    if memory.free_mb is not None and memory.total_mb > memory.free_mb:
        fit = max(1, int((memory.free_mb - DRIVER_MB) // memory.worker_mb))
        notes.append(
            f"the run needs {memory.total_mb / 1000:.1f} GB of memory but "
            f"{memory.free_mb / 1000:.1f} GB are free; run with --workers {fit}"
        )
    if disk.free_bytes is not None and disk.total_bytes > disk.free_bytes:
        notes.append(
            f"the run needs {disk.total_bytes / 1e9:.1f} GB of disk but "
            f"{disk.free_bytes / 1e9:.1f} GB are free; name an output elsewhere"
        )
    return tuple(notes)
