"""The part of a supertile of a painted town, made as a worker of a job makes it.

A module of its own, so that worker processes can import it by name.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from town_fragments import Town

from geoseg.jobs.parts import Part, PartSummary, tiles_around, write_part
from geoseg.objects.stitch import split_settled, stitch_counted


@dataclass(frozen=True)
class PartTask:
    """One supertile."""

    town: Town
    index: tuple[int, int]
    path: Path


@dataclass(frozen=True)
class PartFigures:
    """What one part cost."""

    fragments: int
    waiting: int
    seconds: float
    """Split, stitch and write; without laying out the detections."""
    bytes: int
    peak_mb: float


@lru_cache(maxsize=1)
def _with_pattern(town: Town) -> Town:
    len(town.pattern)
    return town


def make_part(task: PartTask) -> PartFigures:
    """Lay out a supertile's detections, then split, stitch and write them."""
    town, (row, col) = _with_pattern(task.town), task.index
    supertile = town.grid.supertile(row, col)
    fragments = town.fragments(supertile)
    foreign = town.grid.foreign_ground(range(row, row + 1), range(col, col + 1))
    begun = time.perf_counter()
    settled = split_settled(fragments, supertile.tiles, foreign)
    objects, seams = stitch_counted(fragments.take(settled), supertile.tiles)
    waiting, tiles = tiles_around(fragments.take(~settled), supertile.tiles)
    summary = PartSummary(0, task.index, "done", seams=seams)
    write_part(task.path, Part(summary, objects, waiting, tiles))
    return PartFigures(
        fragments=len(fragments),
        waiting=len(waiting),
        seconds=time.perf_counter() - begun,
        bytes=task.path.stat().st_size,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
