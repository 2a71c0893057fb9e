"""The task of one worker: read a supertile, detect, vectorize, merge inside, write the part.

A pure function of its record, apart from the part that it writes; the same under every executor.
"""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio.features import shapes
from rasterio.windows import Window

from geoseg.errors import TileError
from geoseg.imagery.georef import WorkingGrid
from geoseg.imagery.grid import TileGrid, quarters
from geoseg.imagery.read import cut_tiles, read_supertile
from geoseg.jobs.parts import Part, PartSummary, read_summary, tiles_around, write_part
from geoseg.models.detector import Detector, load_detector
from geoseg.objects.stitch import split_settled, stitch_counted
from geoseg.objects.vectorize import vectorize
from geoseg.records import BoolArray, Fragments, Instances, RasterInfo, Supertile, Tile

COARSE_PX = 16
"""Cell of the raster on which the imaged area is traced, px."""


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
    """CPU threads of the process."""

    def load(self) -> Detector:
        """Return the detector; the same one for the same spec within a process."""
        return self.given if self.given is not None else _load(self)


@lru_cache(maxsize=2)
def _load(spec: DetectorSpec) -> Detector:
    if spec.factory is not None:
        return load_detector(spec.factory)
    import torch

    from geoseg.models.registry import load_model

    torch.set_num_threads(spec.threads)
    return load_model(str(spec.model), device=spec.device, min_score=spec.min_score)


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


def run_supertile(task: SupertileTask) -> PartSummary:
    """Run one supertile, unless its part exists.

    Raises
    ------
    TileError
        If reading fails or the detector breaks its protocol; the message names the place.
    """
    if task.path.is_file():
        return read_summary(task.path)
    supertile = task.tiles.supertile(*task.index)
    clock: dict[str, float] = {}
    aoi = None if task.aoi_wkb is None else shapely.from_wkb(task.aoi_wkb)
    wanted = _tiles_in(supertile.tiles, aoi)
    n_run = 0
    found = _Found()
    imaged = ""
    if wanted:
        with _timed(clock, "read"):
            image = read_supertile(task.info, task.grid, supertile, task.bands)
            imaged = _imaged_area(image.valid, supertile).wkt
        batch = cut_tiles(image.pixels, image.valid, supertile, wanted)
        del image
        seen: BoolArray = np.asarray(batch.valid.any(axis=(1, 2)))
        shown = [
            (tile, batch.pixels[i], batch.valid[i]) for i, tile in enumerate(wanted) if seen[i]
        ]
        n_run = len(shown)
        found = _detect(task, shown, clock)
    fragments = Fragments.concatenate(found.fragments)
    with _timed(clock, "stitch"):
        row, col = task.index
        foreign = task.tiles.foreign_ground(range(row, row + 1), range(col, col + 1))
        agnostic = task.class_agnostic
        settled = split_settled(fragments, found.tiles, foreign, class_agnostic=agnostic)
        objects, seams = stitch_counted(
            fragments.take(settled), found.tiles, class_agnostic=agnostic
        )
        waiting, tiles = tiles_around(fragments.take(~settled), found.tiles)
    status = "outside" if not wanted else "nodata" if n_run == 0 else "done"
    if status == "done" and len(fragments) == 0:
        status = "empty"
    summary = PartSummary(
        image=task.image,
        index=task.index,
        status=status,
        tiles=len(supertile.tiles),
        tiles_run=n_run,
        saturated=tuple(sorted(found.saturated)),
        capped=found.capped,
        objects=len(objects),
        fragments=len(fragments),
        seconds={name: round(seconds, 3) for name, seconds in clock.items()},
        peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        imaged=imaged,
        seams=seams,
    )
    write_part(task.path, Part(summary, objects, waiting, tiles))
    return summary


@dataclass(slots=True)
class _Found:
    """What the detector found in a supertile; grows tile by tile."""

    tiles: list[Tile] = field(default_factory=list)
    """Tiles, or their quarters, that the fragments refer to."""
    fragments: list[Fragments] = field(default_factory=list)
    saturated: set[tuple[int, int]] = field(default_factory=set)
    """Tiles that reached a cap of the detector and were looked at again in quarters."""
    capped: int = 0
    """Smallest quarters that reached the cap even so."""


def _detect(
    task: SupertileTask, shown: Sequence[tuple[Tile, Any, BoolArray]], clock: dict[str, float]
) -> _Found:
    """Run the detector on tiles, with pixels and validity, and trace what it finds.

    A tile in which it reaches its cap may lack objects: its quarters are looked at instead.
    """
    found = _Found()
    if not shown:
        return found
    with _timed(clock, "load"):
        detector = task.detector.load()
    # as many tiles at once as the detector's own batch, so that memory stays flat
    step = int(getattr(detector, "batch", 4))
    queue = deque(shown)
    while queue:
        batch = [queue.popleft()]
        while queue and len(batch) < step and queue[0][1].shape == batch[0][1].shape:
            batch.append(queue.popleft())
        with _timed(clock, "detect"):
            pixels = np.stack([pixels for _, pixels, _ in batch])
            results = _call(detector, pixels, [tile for tile, _, _ in batch])
        for (tile, pixels, valid), instances in zip(batch, results, strict=True):
            if instances.saturated:
                found.saturated.add(tile.index)
                if again := quarters(tile, task.tiles.overlap):
                    queue.extend(_cut(tile, pixels, valid, again))
                    continue
                found.capped += 1
            with _timed(clock, "vectorize"):
                _trace(task, found, tile, valid, instances)
    return found


def _cut(
    tile: Tile, pixels: Any, valid: BoolArray, smaller: Sequence[Tile]
) -> list[tuple[Tile, Any, BoolArray]]:
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
    task: SupertileTask, found: _Found, tile: Tile, valid: BoolArray, instances: Instances
) -> None:
    """Add the outlines of one tile's instances."""
    kept = _above(instances, task.detector.min_score)
    shape = (task.grid.height, task.grid.width)
    row = len(found.tiles)
    found.tiles.append(tile)
    found.fragments.append(vectorize(kept, tile, tile_row=row, raster_shape=shape, valid=valid))


def _call(detector: Detector, pixels: Any, tiles: Sequence[Tile]) -> list[Instances]:
    """Call a detector that may be anybody's, and check what it returns."""
    place = f"tiles {tiles[0].index} to {tiles[-1].index}, detect"
    try:
        # anybody's code: what it returns need not be what it promised
        found: Any = detector(pixels)
    except Exception as error:
        raise TileError(f"{place}: the detector raised {error!r}") from error
    if not isinstance(found, list) or len(found) != len(tiles):
        raise TileError(
            f"{place}: the detector returned {type(found).__name__} for {len(tiles)} tiles; "
            "expected a list with one geoseg.Instances for each"
        )
    for instances in found:
        if not isinstance(instances, Instances):
            raise TileError(f"{place}: expected geoseg.Instances, got {type(instances).__name__}")
        if len(instances) and instances.labels.max() >= len(detector.classes):
            raise TileError(
                f"{place}: label {instances.labels.max()} is out of range; the detector names "
                f"{len(detector.classes)} classes"
            )
    checked: list[Instances] = found
    return checked


def _above(instances: Instances, min_score: float) -> Instances:
    keep = np.flatnonzero(instances.scores >= min_score)
    if len(keep) == len(instances):
        return instances
    masks = instances.masks
    return Instances(
        boxes=instances.boxes[keep],
        scores=instances.scores[keep],
        labels=instances.labels[keep],
        masks=masks[keep] if isinstance(masks, np.ndarray) else [masks[int(i)] for i in keep],
        saturated=instances.saturated,
    )


def _tiles_in(tiles: Sequence[Tile], aoi: shapely.Geometry | None) -> list[Tile]:
    """Return the tiles whose windows meet the area of interest."""
    if aoi is None:
        return list(tiles)
    shapely.prepare(aoi)
    return [tile for tile in tiles if shapely.intersects(aoi, _box(tile.window))]


def _box(window: Window) -> shapely.Polygon:
    left, top = window.col_off, window.row_off
    return shapely.box(left, top, left + window.width, top + window.height)


def _imaged_area(valid: BoolArray, supertile: Supertile) -> shapely.Geometry:
    """Trace where the core has pixels, on cells of `COARSE_PX`, grid px."""
    core, window = supertile.core, supertile.window
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
def _timed(clock: dict[str, float], stage: str) -> Iterator[None]:
    begun = time.perf_counter()
    try:
        yield
    finally:
        clock[stage] = clock.get(stage, 0.0) + time.perf_counter() - begun
