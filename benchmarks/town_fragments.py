"""Fragments of a painted town of any size, as a detector with 28 x 28 masks would give them.

The town repeats every `PERIOD_TILES` tiles, objects run over the border of the pattern, and each
tile's detections are found and vectorized once: fragments of any tile are copies, moved. So a
million fragments take seconds to lay out, and every seam has real detections on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import painted
import shapely
from rasterio.windows import Window

from geoseg.imagery.grid import TileGrid
from geoseg.objects.vectorize import vectorize
from geoseg.records import Fragments, Supertile, Tile

TILE, OVERLAP = 512, 128
STRIDE = TILE - OVERLAP
PERIOD_TILES = 5
PERIOD = PERIOD_TILES * STRIDE
CELL = 40
"""Side of a plot, px: one object each, 10 to 37 px long; the period is a whole number of plots."""
LARGE_PLOTS = 4
"""Side of a large plot in plots: one object of 90 to 155 px, more than the overlap."""


def paint(seed: int = 0) -> np.ndarray:
    """Return ids and classes, (2, PERIOD, PERIOD) uint16, of one period of the town."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((2, PERIOD, PERIOD), np.uint16)
    plots = PERIOD // CELL
    blocks = plots // LARGE_PLOTS
    large = {tuple(b) for b in rng.integers(blocks, size=(blocks * blocks // 30, 2)).tolist()}
    origin = rng.integers(CELL, size=2)
    number = 0

    def place(mask: np.ndarray, row: int, col: int, room: int) -> None:
        nonlocal number
        number += 1
        free = np.maximum(room - 3 - np.array(mask.shape), 0)
        y, x = np.array([row, col]) + origin + (rng.random(2) * (free + 1)).astype(int)
        rows, cols = np.nonzero(mask)
        where = (rows + y) % PERIOD, (cols + x) % PERIOD
        pixels[0][where] = number
        pixels[1][where] = 1 + rng.choice(3, p=[0.7, 0.25, 0.05])

    for row, col in sorted(large):
        mask = painted.blob(rng.uniform(90, 150), rng)
        place(mask, row * LARGE_PLOTS * CELL, col * LARGE_PLOTS * CELL, LARGE_PLOTS * CELL)
    for row in range(plots):
        for col in range(plots):
            if (row // LARGE_PLOTS, col // LARGE_PLOTS) in large:
                continue
            mask = house(rng) if rng.random() < 0.7 else painted.blob(rng.uniform(10, 33), rng)
            place(mask[:37, :37], row * CELL, col * CELL, CELL)
    return pixels


def house(rng: np.random.Generator) -> np.ndarray:
    """Return a tilted rectangle, L in one case of three."""
    y, x = np.mgrid[:37, :37] - 18.0
    angle = rng.uniform(0, np.pi / 2)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    half_u, half_v = rng.uniform(6, 14, 2)
    mask = (np.abs(u) <= half_u) & (np.abs(v) <= half_v)
    if rng.random() < 1 / 3:
        mask &= ~((u > 0.2 * half_u) & (v > 0.1 * half_v))
    return painted.tidy(mask)


@dataclass(frozen=True)
class Town:
    """A town of rows x cols tiles, and what the detector shows in each."""

    rows: int
    cols: int
    supertile_size: int = 4096
    seed: int = 0

    @cached_property
    def grid(self) -> TileGrid:
        """Return its tiles."""
        height, width = (n * STRIDE + OVERLAP for n in (self.rows, self.cols))
        return TileGrid(height, width, TILE, OVERLAP, self.supertile_size)

    @cached_property
    def pattern(self) -> dict[tuple[int, int], Fragments]:
        """Return the fragments of each tile of one period, in px of the tile's window."""
        pixels = np.tile(paint(self.seed), (1, 2, 2))
        detector = painted.PaintedDetector(28, disturb=True, seed=self.seed)
        window = Window(0, 0, TILE, TILE)
        # the window lies inside a raster: every side cuts
        inside = Window(TILE, TILE, TILE, TILE)
        found = {}
        for row in range(PERIOD_TILES):
            for col in range(PERIOD_TILES):
                y, x = row * STRIDE, col * STRIDE
                instances = detector.find(pixels[:, y : y + TILE, x : x + TILE])
                traced = vectorize(
                    instances,
                    Tile((0, 0), window, inside),
                    tile_row=0,
                    raster_shape=(4 * TILE, 4 * TILE),
                )
                found[row, col] = moved(traced, -TILE, -TILE, 0)
        return found

    def fragments(self, supertile: Supertile) -> Fragments:
        """Return the fragments of a supertile; ``tiles`` counts along ``supertile.tiles``."""
        parts = []
        for number, tile in enumerate(supertile.tiles):
            row, col = tile.index
            cell = self.pattern[row % PERIOD_TILES, col % PERIOD_TILES]
            parts.append(moved(cell, tile.window.col_off, tile.window.row_off, number))
        return Fragments.concatenate(parts)


def moved(fragments: Fragments, dx: float, dy: float, tile: int) -> Fragments:
    """Return copies of fragments at another place and of another tile."""
    return Fragments(
        shapely.transform(fragments.polygons, lambda xy: np.add(xy, (dx, dy))),
        fragments.scores,
        fragments.labels,
        np.full(len(fragments), tile, np.int64),
        fragments.cut,
        fragments.at_edge,
    )
