"""The street net: a jittered, turned lattice whose meshes are the blocks of the town."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely

from geoseg.records import DoubleArray
from geoseg.scenes.noise import field_at, uniform
from geoseg.scenes.style import Style

CellIndex = tuple[int, int]
"""(i, j) of the lattice mesh between the nodes (i, j) and (i + 1, j + 1)."""

_STEPS = np.linspace(0, 1, 7)


@dataclass(frozen=True, slots=True, eq=False)
class Street:
    """One side of a block, from node to node."""

    line: DoubleArray
    """(n, 2) x, y in metres from the raster's corner, y downwards."""
    half_width_m: float
    """Half of the carriageway."""
    surface: str
    """'asphalt', 'paved', 'dirt' or 'path'; in this order they lie over each other."""
    key: int
    """For the noise of its surface."""


@dataclass(frozen=True, slots=True)
class StreetNet:
    """Streets and block outlines, each a function of the seed and its own index alone."""

    seed: int
    """Seed of the scene."""
    style: Style
    """Gives direction and distance of the streets."""
    density: float
    """1 is a mix of town, village and farmland; 0 farmland, 2 a city."""

    def urbanity(self, x_m: float, y_m: float) -> float:
        """Return how built-up a place is: 0 farmland, 1 old town."""
        wide = field_at(x_m, y_m, 210.0, self.seed * 31 + 1)
        near = field_at(x_m, y_m, 90.0, self.seed * 31 + 2)
        return 0.5 + 1.7 * (0.72 * wide + 0.28 * near - 0.5) + 0.5 * (self.density - 1)

    def _chance(self, i: int, j: int, what: int) -> float:
        """Return a number in [0, 1) of a lattice index."""
        return float(uniform(i, j, self.seed * 1009 + what)[0])

    def node(self, i: int, j: int) -> DoubleArray:
        """Return where a street crossing is, metres."""
        along, across = self.style.block_m
        u = (i + 0.44 * (self._chance(i, j, 11) - 0.5)) * along
        v = (j + 0.44 * (self._chance(i, j, 12) - 0.5)) * across
        c, s = np.cos(self.style.rotation), np.sin(self.style.rotation)
        return np.array([u * c - v * s, u * s + v * c])

    def line(self, i: int, j: int, direction: int) -> DoubleArray:
        """Return the curve from a node to the next in direction 0 (i + 1) or 1 (j + 1)."""
        start, end = self.node(i, j), self.node(i + 1 - direction, j + direction)
        across = np.array([start[1] - end[1], end[0] - start[0]])
        bend = 0.4 * (self._chance(i, j, 13 + direction) - 0.5)
        middle = (start + end) / 2 + bend * across
        t = _STEPS[:, None]
        curve: DoubleArray = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
        return curve

    def street(self, i: int, j: int, direction: int) -> Street:
        """Return the street from a node in direction 0 or 1."""
        line = self.line(i, j, direction)
        x, y = line[len(line) // 2]
        urban = self.urbanity(x, y)
        # one lattice line in four is a through road, the same one along its whole length
        rank = (j if direction == 0 else i) % 4
        through = rank == int(self._chance(direction, 0, 17) * 4)
        chance = self._chance(i, j, 15 + direction)
        key = self.seed * 97 + i * 7 + j * 13 + direction
        if through:
            # one surface all along
            paved = self._chance(j if direction == 0 else i, direction, 18) < 0.7
            return Street(line, 3.6 if paved else 2.7, "asphalt" if paved else "dirt", key)
        if urban > 0.62:
            return Street(line, 1.4 + 1.4 * chance, "paved" if chance < 0.75 else "dirt", key)
        if urban > 0.3:
            return Street(line, 1.6 + 1.2 * chance, "dirt", key)
        # in the fields most are footpaths on the banks
        return Street(line, 0.3 + 1.0 * chance**2, "path", key)

    def outline(self, cell: CellIndex) -> DoubleArray:
        """Return the ring of a block along the middle of its streets, (n, 2) metres, open."""
        i, j = cell
        sides = (
            self.line(i, j, 0),
            self.line(i + 1, j, 1),
            self.line(i, j + 1, 0)[::-1],
            self.line(i, j, 1)[::-1],
        )
        return np.concatenate([side[:-1] for side in sides])

    def sides(self, cell: CellIndex) -> tuple[Street, Street, Street, Street]:
        """Return the four streets around a block; the first and last belong to it."""
        i, j = cell
        return (
            self.street(i, j, 0),
            self.street(i + 1, j, 1),
            self.street(i, j + 1, 0),
            self.street(i, j, 1),
        )

    def cells_in(self, bounds_m: tuple[float, float, float, float]) -> list[CellIndex]:
        """Return the blocks that may meet a box (x0, y0, x1, y1), in fixed order."""
        x0, y0, x1, y1 = bounds_m
        along, across = self.style.block_m
        c, s = np.cos(self.style.rotation), np.sin(self.style.rotation)
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        u = (corners[:, 0] * c + corners[:, 1] * s) / along
        v = (corners[:, 1] * c - corners[:, 0] * s) / across
        # a node moves by 0.22 of a mesh, a side bends by 0.1 of its length at most
        first, last = int(np.floor(u.min())) - 1, int(np.ceil(u.max())) + 1
        top, bottom = int(np.floor(v.min())) - 1, int(np.ceil(v.max())) + 1
        i = np.repeat(np.arange(first, last), bottom - top)
        j = np.tile(np.arange(top, bottom), last - first)
        middle_u, middle_v = (i + 0.5) * along, (j + 0.5) * across
        x, y = middle_u * c - middle_v * s, middle_u * s + middle_v * c
        reach = 0.5 * float(np.hypot(along, across)) + 0.36 * max(along, across)
        near = (x > x0 - reach) & (x < x1 + reach) & (y > y0 - reach) & (y < y1 + reach)
        return list(zip(i[near].tolist(), j[near].tolist(), strict=True))

    def polygon(self, cell: CellIndex) -> shapely.Polygon:
        """Return a block with its half of the streets; these polygons partition the plane."""
        return shapely.Polygon(self.outline(cell))
