"""The task of one worker: read a supertile, detect, vectorize, merge inside, write the part.

A pure function of its record, apart from the part that it writes; the same under every executor.
Several run side by side in one process: the network has threads of its own there
(`geoseg.jobs.lanes`), and while it looks at one supertile the next is read and the last one's masks
are traced, stitched and written.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import shapely
from affine import Affine
from rasterio.features import shapes
from rasterio.windows import Window

from geoseg.errors import GeosegError, TileError
from geoseg.imagery.georef import WorkingGrid
from geoseg.imagery.grid import TileGrid, quarters
from geoseg.imagery.radiometry import Scaling
from geoseg.imagery.read import cut_tiles, read_supertile
from geoseg.jobs.device import leave_if_lost
from geoseg.jobs.guard import shown, undisturbed
from geoseg.jobs.lanes import lanes_of, submit
from geoseg.jobs.memory import peak_mb
from geoseg.jobs.parts import Part, PartSummary, finished_part, tiles_around, write_part
from geoseg.jobs.skip import promising
from geoseg.models.detector import Detector, load_detector
from geoseg.objects.stitch import split_settled, stitch_counted
from geoseg.objects.vectorize import vectorize
from geoseg.records import BoolArray, Fragments, Instances, RasterInfo, Tile

Result = TypeVar("Result")
Shown = tuple[Tile, Any, BoolArray]
"""A tile with its pixels (C, H, W) and their validity (H, W)."""

COARSE_PX = 16
"""Cell of the raster on which the imaged area is traced, px."""
_PRECISION = {"auto": "fast", "exact": "auto"}
"""What a model is loaded with for the precisions of a run that it does not know by that name."""
_MASK_SIDE = 1_024
"""Cells a side that a mask may always have, whatever the tile."""


@dataclass(frozen=True, slots=True)
class DetectorSpec:
    """How a worker makes its detector; loaded once per process."""

    model: str | None
    """Path of a weights file, or None."""
    factory: str | None
    """``package.module:factory``, or None."""
    given: Detector | None
    """A detector handed over in Python, or None."""
    device: str
    """'auto', 'cpu' or 'cuda'."""
    min_score: float
    """Detections below are left out."""
    threads: int
    """CPU threads that the network may use; 0: as the worker's owner set it."""
    precision: str = "auto"
    """As in `geoseg.config.DetectSettings`."""
    limits: tuple[tuple[str, float], ...] = ()
    """Limits of the network instead of the card's, by their names there; for a model."""
    views: int = 1
    """As in `geoseg.config.DetectSettings`."""
    class_scores: tuple[float, ...] = ()
    """Score threshold of each class, none below ``min_score``; empty: that one for all."""

    def load(self) -> Detector:
        """Return the detector; the same one for the same spec within a process."""
        if self.given is not None:
            return self.given
        return _load(self)


@lru_cache(maxsize=2)
def _load(spec: DetectorSpec) -> Detector:
    if spec.factory is not None:
        with undisturbed():
            return load_detector(spec.factory)
    from geoseg.jobs.probe import model_here
    from geoseg.models.registry import load_model
    from geoseg.models.views import LOOK_AT, Views

    several = spec.views > 1
    made = load_model(
        model_here(str(spec.model)),
        device=spec.device,
        min_score=min(LOOK_AT, spec.min_score) if several else spec.min_score,
        exact=spec.precision == "exact",
        precision=_PRECISION.get(spec.precision, spec.precision),
        limits=dict(spec.limits),
    )
    return Views(made, spec.views, spec.min_score) if several else made


def forget_detectors() -> None:
    """Make this process load its detectors anew."""
    _load.cache_clear()


@dataclass(frozen=True, slots=True)
class SupertileTask:
    """Everything one worker needs for one supertile: plain values, no open files."""

    image: int
    info: RasterInfo
    grid: WorkingGrid
    tiles: TileGrid
    index: tuple[int, int]
    bands: tuple[int, ...]
    detector: DetectorSpec
    aoi_wkb: bytes | None
    """Area of interest, grid px; None: everywhere."""
    class_agnostic: bool
    """Let detections of different classes be one object."""
    path: Path
    """Where the part goes."""
    scaling: Scaling | None = None
    """How the pixels are scaled for the detector; None: as they are."""
    skip_empty: bool = False
    """Leave out tiles in which a look at coarser pixels finds nothing."""


def run_supertile(task: SupertileTask) -> PartSummary:
    """Run one supertile, unless its part is finished.

    Raises
    ------
    TileError
        If reading fails or the detector breaks its protocol; the message names the place.
    """
    if (summary := finished_part(task.path)) is not None:
        return summary
    supertile = task.tiles.supertile(*task.index)
    clock: dict[str, float] = {}
    wanted = tiles_wanted(task, supertile.tiles)
    seen = Seen()
    if wanted:
        if task.detector.model is not None:
            # beside the first reading; an error comes up where the model is needed
            submit(task.detector.load, threads=1)
        with timed(clock, "read"):
            image = read_supertile(task.info, task.grid, supertile, task.bands)
            seen.imaged = imaged_area(image.valid, supertile.core, supertile.window).wkt
        worth = wanted
        if task.skip_empty:
            detector = _load_detector(task, clock)
            as_taken = image
            if task.scaling is not None:
                pixels = task.scaling.apply(image.pixels, image.valid)
                as_taken = replace(image, pixels=pixels)
            glance = partial(promising, detector, as_taken, wanted)
            threads = _threads(task, 1)
            worth, seen.n_skipped = _on_network(clock, "glance", glance, threads)
        if worth:
            batch = cut_tiles(image.pixels, image.valid, supertile, worth)
            del image
            shown = [(t, batch.pixels[i], batch.valid[i]) for i, t in enumerate(worth)]
            look(task, shown, seen, clock)
    return publish_part(task, seen, len(wanted), clock)


def publish_part(
    task: SupertileTask,
    seen: Seen,
    n_wanted: int,
    clock: dict[str, float],
    lost: Sequence[tuple[int, int, str]] = (),
) -> PartSummary:
    """Stitch what was seen of a supertile and write its part.

    Parameters
    ----------
    task : SupertileTask
        The supertile.
    seen : Seen
        What its tiles show.
    n_wanted : int
        Tiles inside the AOI.
    clock : dict
        Seconds by stage so far; grows.
    lost : sequence of (row, col, why)
        Tiles left out.

    Returns
    -------
    PartSummary
        Also in the part. Where every tile that had something to show is lost the supertile is
        'failed' and gets no part.
    """
    fragments = Fragments.concatenate(seen.fragments)
    with timed(clock, "stitch"):
        row, col = task.index
        foreign = task.tiles.foreign_ground(range(row, row + 1), range(col, col + 1))
        agnostic = task.class_agnostic
        settled = split_settled(fragments, seen.tiles, foreign, class_agnostic=agnostic)
        objects, seams = stitch_counted(
            fragments.take(settled), seen.tiles, class_agnostic=agnostic
        )
        waiting, tiles = tiles_around(fragments.take(~settled), seen.tiles)
    n_tiles = len(task.tiles.supertile(*task.index).tiles)
    summary = PartSummary(
        image=task.image,
        index=task.index,
        status=_status(n_wanted, seen, len(fragments), bool(lost)),
        tiles=n_tiles,
        tiles_run=seen.n_run,
        saturated=tuple(sorted(seen.saturated)),
        capped=seen.capped,
        best_below=seen.best_below,
        n_below=seen.n_below,
        objects=len(objects),
        fragments=len(fragments),
        seconds={name: round(seconds, 3) for name, seconds in clock.items()},
        peak_mb=peak_mb(),
        imaged=seen.imaged,
        reason=_reason(lost, n_tiles),
        seams=seams,
        tiles_failed=tuple(lost),
        tiles_skipped=seen.n_skipped,
    )
    if summary.status != "failed":
        write_part(task.path, Part(summary, objects, waiting, tiles))
    return summary


def _status(n_wanted: int, seen: Seen, n_fragments: int, some_lost: bool) -> str:
    if n_wanted == 0:
        return "outside"
    if seen.n_run == 0:
        if some_lost:
            return "failed"
        return "empty" if seen.n_skipped else "nodata"
    return "done" if n_fragments else "empty"


def _reason(lost: Sequence[tuple[int, int, str]], n_tiles: int) -> str:
    if not lost:
        return ""
    row, col, why = lost[0]
    return f"{len(lost)} of {n_tiles} tiles failed; tile ({row}, {col}): {why}"


@dataclass(slots=True)
class Seen:
    """What the detector found in a supertile, or in a tile of it; grows."""

    tiles: list[Tile] = field(default_factory=list)
    """Tiles, or their quarters, that the fragments refer to."""
    fragments: list[Fragments] = field(default_factory=list)
    saturated: set[tuple[int, int]] = field(default_factory=set)
    """Tiles that reached a cap of the detector and were looked at again in quarters."""
    capped: int = 0
    """Smallest quarters that reached the cap even so."""
    n_run: int = 0
    """Tiles that the detector saw."""
    imaged: str = ""
    """WKT of the valid area inside the core, grid px."""
    best_below: float = 0.0
    """Best score below the threshold; 0: none."""
    n_below: int = 0
    """Boxes with a score below the threshold that the detector still told of."""
    n_skipped: int = 0
    """Tiles with pixels that a look at coarser ones found empty."""

    def note_below(self, instances: Instances, min_score: float) -> None:
        """Remember the scores that were not enough: they explain why nothing was found."""
        scores = instances.scores[instances.scores < min_score]
        best = float(scores.max(initial=instances.best_below))
        self.best_below = max(self.best_below, round(best, 4))
        self.n_below += len(scores) + instances.n_below


def look(
    task: SupertileTask,
    tiles: Sequence[Shown],
    seen: Seen,
    clock: dict[str, float],
) -> None:
    """Run the detector on tiles, with pixels and validity, and trace what it finds.

    Tiles without a valid pixel are left out. A tile in which the detector reaches its cap may lack
    objects: its quarters are looked at instead.
    """
    shown = [entry for entry in tiles if entry[2].any()]
    seen.n_run += len(shown)
    if not shown:
        return
    detector = _load_detector(task, clock)
    queue = deque(shown)
    with closing(_results(task, detector, queue, clock)) as found:
        for batch, results in found:
            for (tile, pixels, valid), instances in zip(batch, results, strict=True):
                if instances.saturated:
                    seen.saturated.add(tile.index)
                    if again := quarters(tile, task.tiles.overlap):
                        queue.extend(_cut(tile, pixels, valid, again))
                        continue
                    seen.capped += 1
                with timed(clock, "vectorize"):
                    _trace(task, seen, tile, valid, instances)


def _results(
    task: SupertileTask, detector: Detector, queue: deque[Shown], clock: dict[str, float]
) -> Generator[tuple[list[Shown], list[Instances]]]:
    """Yield tiles with what the detector finds in them, in their order; the queue may grow.

    Where the detector has several lanes, tiles are handed out before the results of those before
    them are taken, so that no lane waits while these are traced.
    """
    lanes = lanes_of(detector, task.detector.threads)
    ahead = 1 if lanes == 1 else lanes + 1
    # as many tiles at once as the detector wants, so that memory stays flat
    step = int(getattr(detector, "tiles_a_call", getattr(detector, "batch", 4)))
    out: deque[tuple[list[Shown], Future[tuple[list[Instances], float]]]] = deque()
    try:
        while queue or out:
            while queue and len(out) < ahead:
                batch = _next_batch(queue, step)
                called = partial(_call, detector, *_stacked(task, batch))
                out.append((batch, submit(called, lanes=lanes, threads=_threads(task, lanes))))
            batch, future = out.popleft()
            results, seconds = future.result()
            clock["detect"] = clock.get("detect", 0.0) + seconds
            yield batch, results
    finally:
        # after an error: what comes next, a second try perhaps, finds the detector idle
        for _, future in out:
            future.cancel()
        wait([future for _, future in out])


def _threads(task: SupertileTask, lanes: int) -> int:
    """Return PyTorch's threads for all lanes; a user's detector sets them itself, or not."""
    return task.detector.threads if lanes > 1 or task.detector.model is not None else 0


def _next_batch(queue: deque[Shown], step: int) -> list[Shown]:
    """Take the next tiles of one shape off the queue."""
    batch = [queue.popleft()]
    while queue and len(batch) < step and queue[0][1].shape == batch[0][1].shape:
        batch.append(queue.popleft())
    return batch


def _stacked(task: SupertileTask, batch: Sequence[Shown]) -> tuple[Any, list[Tile]]:
    """Return the pixels of some tiles as the detector wants them, and the tiles."""
    pixels = np.stack([pixels for _, pixels, _ in batch])
    if task.scaling is not None:
        pixels = task.scaling.apply(pixels, np.stack([valid for *_, valid in batch]))
    return pixels, [tile for tile, _, _ in batch]


def _load_detector(task: SupertileTask, clock: dict[str, float]) -> Detector:
    """Return the detector; loaded by one thread: others would be kept, and share its cores."""
    threads = 1 if task.detector.model is not None else 0
    return _on_network(clock, "load", task.detector.load, threads)


def _on_network(
    clock: dict[str, float], stage: str, work: Callable[[], Result], threads: int = 0
) -> Result:
    """Do what needs the detector, in its turn; waiting for the turn is in no stage's time."""
    result, seconds = submit(work, threads=threads).result()
    clock[stage] = clock.get(stage, 0.0) + seconds
    return result


def _cut(tile: Tile, pixels: Any, valid: BoolArray, smaller: Sequence[Tile]) -> list[Shown]:
    """Return smaller tiles with their share of a tile's pixels; those without data left out."""
    out = []
    for part in smaller:
        top = int(part.window.row_off - tile.window.row_off)
        left = int(part.window.col_off - tile.window.col_off)
        place = np.s_[top : top + int(part.window.height), left : left + int(part.window.width)]
        if valid[place].any():
            out.append((part, pixels[:, place[0], place[1]], valid[place]))
    return out


def _trace(
    task: SupertileTask, found: Seen, tile: Tile, valid: BoolArray, instances: Instances
) -> None:
    """Add the outlines of one tile's instances."""
    found.note_below(instances, task.detector.min_score)
    kept = _above(instances, task.detector)
    shape = (task.grid.height, task.grid.width)
    row = len(found.tiles)
    found.tiles.append(tile)
    found.fragments.append(vectorize(kept, tile, tile_row=row, raster_shape=shape, valid=valid))


def _call(detector: Detector, pixels: Any, tiles: Sequence[Tile]) -> list[Instances]:
    """Call a detector that may be anybody's, and check what it returns."""
    place = f"tiles {tiles[0].index} to {tiles[-1].index}, detect"
    try:
        # anybody's code: what it returns need not be what it promised
        with undisturbed():
            found: Any = detector(pixels)
    except GeosegError as error:
        raise TileError(f"{place}: {error}") from error
    except BaseException as error:
        # on the network's thread no signal arrives: a SystemExit, with which the run would end
        # as if all were well, and a KeyboardInterrupt are the detector's own
        if isinstance(error, RuntimeError):
            leave_if_lost(error)
        raise TileError(f"{place}: the detector raised {shown(error)}") from error
    if not isinstance(found, list) or len(found) != len(tiles):
        n = f" of {len(found)}" if isinstance(found, list) else ""
        raise TileError(
            f"{place}: the detector returned {type(found).__name__}{n} for {len(tiles)} tiles; "
            "expected a list with one geoseg.Instances for each"
        )
    try:
        return [_own(one, len(detector.classes), pixels.shape[2:]) for one in found]
    except TileError as error:
        raise TileError(f"{place}: {error}") from error


def _own(found: Any, n_classes: int, shape: tuple[int, int]) -> Instances:
    """Check what a detector returned for a tile, and copy it: it may use its arrays again.

    While one supertile's masks are traced, the network already looks at another.
    """
    if not isinstance(found, Instances):
        raise TileError(f"expected geoseg.Instances, got {type(found).__name__}")
    found.check()
    if not len(found):
        return found
    if found.labels.max() >= n_classes:
        raise TileError(
            f"label {found.labels.max()} is out of range; the detector names {n_classes} classes"
        )
    height, width = shape
    sides = np.array([width, height, width, height])
    boxes = found.boxes
    outside = (boxes[:, :2] > sides[:2]).any() or (boxes[:, 2:] < 0).any()
    if outside or (boxes < -sides).any() or (boxes > 2 * sides).any():
        raise TileError(
            f"a box lies outside its tile of {width} x {height} px, or reaches out of it by more "
            "than that; boxes are in px of the tile, not of the raster"
        )
    masks = found.masks
    most = max(_MASK_SIDE, *shape)
    if any(max(mask.shape) > most for mask in masks):
        raise TileError(
            f"a mask has more than {most} cells a side, more than its tile; give a mask on the "
            "grid of its box"
        )
    return replace(
        found,
        boxes=found.boxes.astype(np.float32),
        scores=found.scores.astype(np.float32),
        labels=found.labels.astype(np.int64),
        masks=masks.copy() if isinstance(masks, np.ndarray) else [mask.copy() for mask in masks],
        saturated=bool(found.saturated),
    )


def _above(instances: Instances, spec: DetectorSpec) -> Instances:
    """Return the instances that reach the threshold, or that of their class."""
    wanted: Any = spec.min_score
    if spec.class_scores:
        wanted = np.asarray(spec.class_scores, np.float32)[instances.labels]
    keep = np.flatnonzero(instances.scores >= wanted)
    return instances if len(keep) == len(instances) else instances.take(keep)


def tiles_wanted(task: SupertileTask, tiles: Sequence[Tile]) -> list[Tile]:
    """Return the tiles whose windows meet the area of interest."""
    if task.aoi_wkb is None:
        return list(tiles)
    aoi = shapely.from_wkb(task.aoi_wkb)
    shapely.prepare(aoi)
    return [tile for tile in tiles if shapely.intersects(aoi, _box(tile.window))]


def _box(window: Window) -> shapely.Polygon:
    left, top = window.col_off, window.row_off
    return shapely.box(left, top, left + window.width, top + window.height)


def imaged_area(valid: BoolArray, core: Window, window: Window) -> shapely.Geometry:
    """Trace where the core of a window has pixels, on cells of `COARSE_PX`, grid px."""
    top, left = int(core.row_off - window.row_off), int(core.col_off - window.col_off)
    inside = valid[top : top + int(core.height), left : left + int(core.width)]
    if inside.all():
        return _box(core)
    rows, cols = (-(-n // COARSE_PX) for n in inside.shape)
    room = (rows * COARSE_PX - inside.shape[0], cols * COARSE_PX - inside.shape[1])
    # cells that the core's edge cuts are judged by what lies inside it
    padded = np.pad(inside, ((0, room[0]), (0, room[1])), mode="edge")
    share = padded.reshape(rows, COARSE_PX, cols, COARSE_PX).mean(axis=(1, 3))
    cells = (share > 0.5).astype(np.uint8)
    to_grid = Affine.translation(core.col_off, core.row_off) @ Affine.scale(COARSE_PX)
    outlines = [shapely.geometry.shape(s) for s, _ in shapes(cells, cells == 1, transform=to_grid)]
    return shapely.intersection(shapely.union_all(outlines), _box(core))


@contextmanager
def timed(clock: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds of a block to its stage."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        clock[stage] = clock.get(stage, 0.0) + time.perf_counter() - begun
