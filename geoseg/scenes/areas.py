"""Areas of a scene: the hole without data, the regions to count in, the area of interest."""

from __future__ import annotations

import numpy as np
import shapely

from geoseg.records import DoubleArray, GeometryArray
from geoseg.scenes.streets import StreetNet

_PER_SIDE = 3


def hole_ring(width_m: float, height_m: float, seed: int) -> DoubleArray:
    """Return the outline of the hole, (n, 2) metres from the raster's corner, open.

    It has the ragged outline that missing photos leave, at most 40 m in radius.
    """
    rng = np.random.default_rng([seed, 303])
    radius = min(0.07 * min(width_m, height_m), 40.0)
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    far = np.full(angle.shape, 0.8)
    for k in range(2, 7):
        far += rng.uniform(-0.3, 0.3) / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    far *= radius * rng.uniform(0.9, 1.1, angle.shape)
    x = width_m * rng.uniform(0.25, 0.75) + far * np.cos(angle)
    y = height_m * rng.uniform(0.25, 0.75) + far * np.sin(angle)
    return np.column_stack([x, y])


def region_polygons(net: StreetNet, width_m: float, height_m: float) -> GeometryArray:
    """Divide the raster into regions whose borders follow streets.

    Parameters
    ----------
    net : StreetNet
        Gives the blocks; each belongs to one region as a whole.
    width_m, height_m : float
        Extent of the raster.

    Returns
    -------
    ndarray
        Up to (9,) polygons or multipolygons in metres from the raster's corner, y downwards,
        row by row. They partition the extent. A raster of few blocks is divided by straight
        lines.
    """
    extent = shapely.box(0, 0, width_m, height_m)
    if min(width_m, height_m) < 4 * max(net.style.block_m):
        return _straight_regions(net.seed, width_m, height_m)
    cells = net.cells_in((0.0, 0.0, width_m, height_m))
    blocks = np.array([net.polygon(cell) for cell in cells], object)
    middle = shapely.get_coordinates(shapely.centroid(blocks)) / (width_m, height_m)
    column, row = np.clip((middle * _PER_SIDE).astype(int), 0, _PER_SIDE - 1).T
    number = row * _PER_SIDE + column
    unions = [shapely.union_all(blocks[number == k]) & extent for k in range(_PER_SIDE**2)]
    out: GeometryArray = np.array([u for u in unions if u.area > 0], object)
    return out


def _straight_regions(seed: int, width_m: float, height_m: float) -> GeometryArray:
    """Divide the extent by slightly slanted lines."""
    rng = np.random.default_rng([seed, 404])
    steps = np.linspace(0, 1, _PER_SIDE + 1)
    x, y = np.meshgrid(steps, steps)
    shift = rng.uniform(-0.08, 0.08, (2, *x.shape))
    # nodes on the raster's edge stay on it
    x += np.where((x == 0) | (x == 1), 0, shift[0])
    y += np.where((y == 0) | (y == 1), 0, shift[1])
    nodes = np.stack([x * width_m, y * height_m], axis=-1)
    quads = [
        shapely.Polygon([nodes[r, c], nodes[r, c + 1], nodes[r + 1, c + 1], nodes[r + 1, c]])
        for r in range(_PER_SIDE)
        for c in range(_PER_SIDE)
    ]
    return np.array(quads, object)


def aoi_polygon(width_m: float, height_m: float, seed: int) -> shapely.Polygon:
    """Return the area of interest: the extent without an uneven border, metres."""
    rng = np.random.default_rng([seed, 505])
    t = np.linspace(0, 1, 4)[:-1]
    x = np.concatenate([t, np.ones(3), 1 - t, np.zeros(3)])
    y = np.concatenate([np.zeros(3), t, np.ones(3), 1 - t])
    inset = rng.uniform(0.88, 0.97, x.shape)
    return shapely.Polygon(
        np.column_stack([width_m * (0.5 + (x - 0.5) * inset), height_m * (0.5 + (y - 0.5) * inset)])
    )
