"""The tasks for a supertile that failed: each of its tiles by itself, then what is left of it.

So a tile that raises, cannot be read or kills its worker costs that one tile. The results of tiles
are small parts of their own, kept until the supertile's part is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely

from geoseg.imagery.read import read_window
from geoseg.jobs.memory import peak_mb
from geoseg.jobs.parts import Part, PartSummary, finished_part, read_part, write_part
from geoseg.jobs.supertile import (
    Seen,
    SupertileTask,
    imaged_area,
    look,
    publish_part,
    tiles_wanted,
    timed,
)
from geoseg.records import Fragments, Objects, Tile


@dataclass(frozen=True, slots=True)
class TileTask:
    """One tile of a supertile."""

    supertile: SupertileTask
    tile: Tile
    path: Path
    """Where its result goes."""


@dataclass(frozen=True, slots=True)
class SalvageTask:
    """A supertile whose tiles have been run one by one."""

    supertile: SupertileTask
    paths: tuple[Path, ...]
    """Results of the tiles that are kept, in the order of the tiles."""
    lost: tuple[tuple[int, int, str], ...]
    """(row, col, why) of the tiles that are left out."""


def tile_tasks(task: SupertileTask, folder: Path) -> list[TileTask]:
    """Return a task for each tile of a supertile that lies inside the AOI."""
    supertile = task.tiles.supertile(*task.index)
    return [
        TileTask(task, tile, folder / f"{task.path.stem}-{tile.index[0]}-{tile.index[1]}.parquet")
        for tile in tiles_wanted(task, supertile.tiles)
    ]


def run_tile(task: TileTask) -> PartSummary:
    """Read one tile, run the detector on it and write what it found.

    Raises
    ------
    TileError
        As `run_supertile`.
    """
    if (done := finished_part(task.path)) is not None:
        return done
    whole, tile = task.supertile, task.tile
    clock: dict[str, float] = {}
    seen = Seen()
    with timed(clock, "read"):
        pixels, valid = read_window(whole.info, whole.grid, tile.window, whole.bands)
        seen.imaged = imaged_area(valid, tile.core, tile.window).wkt
    look(whole, [(tile, pixels, valid)], seen, clock)
    fragments = Fragments.concatenate(seen.fragments)
    summary = PartSummary(
        image=whole.image,
        index=whole.index,
        status="done" if seen.n_run else "nodata",
        tiles=1,
        tiles_run=seen.n_run,
        saturated=tuple(sorted(seen.saturated)),
        capped=seen.capped,
        best_below=seen.best_below,
        n_below=seen.n_below,
        fragments=len(fragments),
        seconds={name: round(seconds, 3) for name, seconds in clock.items()},
        peak_mb=peak_mb(),
        imaged=seen.imaged,
    )
    part = Part(summary, Objects.empty(), fragments, tuple(seen.tiles))
    write_part(task.path, part, durable=False)
    return summary


def salvage(task: SalvageTask) -> PartSummary:
    """Put a supertile together from the tiles that are kept, and write its part."""
    seen = Seen()
    clock: dict[str, float] = {}
    imaged = []
    for path in task.paths:
        part = read_part(path)
        shift = np.int64(len(seen.tiles))
        seen.fragments.append(replace(part.waiting, tiles=part.waiting.tiles + shift))
        seen.tiles += part.tiles
        seen.saturated |= set(part.summary.saturated)
        seen.capped += part.summary.capped
        seen.n_run += part.summary.tiles_run
        seen.best_below = max(seen.best_below, part.summary.best_below)
        seen.n_below += part.summary.n_below
        imaged.append(shapely.from_wkt(part.summary.imaged))
        for stage, seconds in part.summary.seconds.items():
            clock[stage] = clock.get(stage, 0.0) + seconds
    seen.imaged = shapely.union_all(imaged).wkt if imaged else ""
    n_wanted = len(task.paths) + len(task.lost)
    return publish_part(task.supertile, seen, n_wanted, clock, task.lost)
