"""From the masks of one tile to polygons in grid px, at sub-pixel precision.

Each mask stays a small grid laid on its box: the outline is traced there and only its vertices
are mapped to grid px. Nothing is ever pasted into an image.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely
from contourpy import FillType, contour_generator
from shapely.geometry import shape

from geoseg.errors import TileError
from geoseg.records import (
    BoolArray,
    DoubleArray,
    Fragments,
    GeometryArray,
    Instances,
    IntArray,
    Tile,
)

CUT_REACH_PX = 2.0
"""A box or mask that ends this close to a window edge counts as reaching it."""

SMALL_MASK_CELLS = 256
"""Yes/no masks with fewer cells set are traced on a doubled grid (see `_kind`)."""

CELLS_AT_ONCE = 2_000_000
"""Cells of the masks that are traced in one call, to bound memory."""


def vectorize(
    instances: Instances,
    tile: Tile,
    *,
    tile_row: int,
    raster_shape: tuple[int, int],
    threshold: float = 0.5,
    min_area_px: float = 4.0,
    valid: BoolArray | None = None,
) -> Fragments:
    """Trace the masks of one tile and lay the outlines on the grid.

    Polygons are valid, keep their holes and end at the window, at the raster and at holes
    without data. Of a mask in several pieces the largest is kept. An empty mask, a box without
    width or height and anything under ``min_area_px`` gives no row.

    Parameters
    ----------
    instances : Instances
        What the detector found, in px of the tile's window.
    tile : Tile
        Where the window lies, grid px.
    tile_row : int
        Index of ``tile`` in the caller's sequence of tiles; stored in ``Fragments.tiles``.
    raster_shape : tuple of int
        (height, width) of the grid.
    threshold : float
        Probability at which the outline runs, 0 < threshold < 1.
    min_area_px : float
        Smallest area kept, px; at least 0.
    valid : ndarray of bool, optional
        (H, W) of the tile's window, True = pixel with data. A polygon with more than half of
        its area on pixels without data is dropped, others are clipped.

    Returns
    -------
    Fragments
        At most one row per instance, in the instances' order. ``cut`` is generous: a detector
        ends its boxes a px or two short of a cut, so reaching within `CUT_REACH_PX` and half a
        mask cell of a window edge that is not an edge of the raster counts.

    Raises
    ------
    TileError
        If ``threshold`` or ``valid`` does not fit.

    Notes
    -----
    Marching squares cut the corners off a yes/no mask: half a cell is lost per outline, which
    is 3 % of 4 x 4 px. Small ones are therefore traced on a doubled grid (0.8 %).
    """
    _check(tile, threshold, valid)
    sides = np.diff(instances.boxes.reshape(-1, 2, 2).astype(np.float64), axis=1)[:, 0]
    rows, polygons = _trace_all(instances, sides, threshold)
    if len(rows) == 0:
        return Fragments.empty()
    polygons, reach = _place(polygons, instances, rows, tile, raster_shape)
    polygons = _largest_valid_part(polygons)
    if valid is not None and not valid.all():
        polygons = _clip_to_data(polygons, valid, tile)
    keep = shapely.area(polygons) >= max(min_area_px, 1e-9)
    # ^ an empty polygon has area 0: nothing empty passes even at min_area_px = 0
    rows, polygons, reach = rows[keep], polygons[keep], reach[keep]
    cells = np.array([np.shape(instances.masks[r])[::-1] for r in rows.tolist()]).reshape(-1, 2)
    cut, at_edge = _edges(polygons, reach, sides[rows] / cells, tile, raster_shape)
    return Fragments(
        polygons=polygons,
        scores=instances.scores[rows].astype(np.float32),
        labels=instances.labels[rows].astype(np.int64),
        tiles=np.full(len(rows), tile_row, np.int64),
        cut=cut,
        at_edge=at_edge,
    )


def _check(tile: Tile, threshold: float, valid: BoolArray | None) -> None:
    """Refuse what cannot be traced."""
    if not 0 < threshold < 1:
        raise TileError(f"threshold is {threshold}; expected a probability between 0 and 1")
    shape_px = (int(tile.window.height), int(tile.window.width))
    if valid is not None and valid.shape != shape_px:
        raise TileError(
            f"tile {tile.index}, vectorize: valid has shape {valid.shape} but the window is "
            f"{shape_px} (rows, cols); pass the validity of the same window"
        )


def _trace_all(
    instances: Instances, sides: DoubleArray, threshold: float
) -> tuple[IntArray, GeometryArray]:
    """Return the rows with an outline and their polygons, in px of the tile; largest piece only."""
    alike: dict[tuple[tuple[int, ...], bool, int], list[int]] = {}
    for row in np.flatnonzero((sides > 0).all(axis=1)).tolist():
        mask = np.asarray(instances.masks[row])
        if mask.max() >= threshold:
            alike.setdefault((mask.shape, *_kind(mask, threshold)), []).append(row)
    found: dict[int, tuple[DoubleArray, IntArray]] = {}
    for (shape_px, hard, repeat), rows in alike.items():
        at_once = max(1, CELLS_AT_ONCE // (math.prod(shape_px) * repeat**2))
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            masks = np.stack([instances.masks[row] for row in some]).astype(np.float64)
            traced = _trace(masks, 0.5 if hard else threshold, repeat, hard=hard)
            found |= {some[i]: outline for i, outline in traced.items()}
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, object)
    order = sorted(found)
    for row in order:
        vertices, _ = found[row]
        vertices *= sides[row] / np.shape(instances.masks[row])[::-1]
        vertices += instances.boxes[row, :2]
    lengths = np.concatenate([found[row][1] for row in order])
    linear = shapely.linearrings(
        np.concatenate([found[row][0] for row in order]),
        indices=np.repeat(np.arange(len(lengths)), lengths),
    )
    of_row = np.repeat(np.arange(len(order)), [len(found[row][1]) for row in order])
    return np.array(order, np.int64), shapely.polygons(linear, indices=of_row)


def _kind(mask: npt.NDArray[Any], threshold: float) -> tuple[bool, int]:
    """Return whether a mask is yes/no, and how often its cells are repeated to be traced."""
    hard = bool(((mask == 0) | (mask == 1)).all())
    small = hard and np.count_nonzero(mask >= threshold) < SMALL_MASK_CELLS
    return hard, 2 if small else 1


def _padded(masks: DoubleArray, threshold: float, repeat: int) -> DoubleArray:
    """Return masks (n, H, W) with a ring of cells around each.

    The ring is mirrored about the level, so that the outline of an object that fills its box runs
    along the box, however sure the network is there.
    """
    if repeat > 1:
        masks = masks.repeat(repeat, axis=1).repeat(repeat, axis=2)
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)), mode="edge")
    outer = np.ones(padded.shape[1:], bool)
    outer[1:-1, 1:-1] = False
    return np.where(outer & (padded > threshold), 2 * threshold - padded, padded)


def _trace(
    masks: DoubleArray, threshold: float, repeat: int, *, hard: bool
) -> dict[int, tuple[DoubleArray, IntArray]]:
    """Trace the largest piece of each mask (n, H, W), all of them yes/no or none.

    Returns
    -------
    dict of int to (vertices (k, 2), ring lengths)
        In cells of the mask, x first; masks without an outline are left out.
    """
    grids = _padded(masks, threshold, repeat)
    n, height, width = grids.shape
    # one above the other, so that one call traces all: a row of nothing parts them, and each is a
    # chunk of the result
    stacked = np.full((n, height + 1, width), np.nan)
    stacked[:, :-1] = grids
    generator = contour_generator(
        x=np.arange(width, dtype=np.float64),
        y=np.tile(np.arange(height + 1, dtype=np.float64), n),
        z=stacked.reshape(-1, width),
        name="serial",
        fill_type=FillType.ChunkCombinedOffsetOffset,
        chunk_size=(height + 1, width),
    )
    # a hair below the level: cells that touch at a corner stay one piece, and their area is right
    chunks: Any = generator.filled(threshold * (1 - 1e-6), np.inf)
    found = {}
    for i, (points, starts, outlines) in enumerate(zip(*chunks, strict=True)):
        if points is None:
            continue
        vertices, lengths = _largest(points, starts, outlines)
        # vertex 0 of the padded grid is the centre of the ring's cell: half a cell outside
        vertices = np.clip((vertices - 0.5) / repeat, 0, masks.shape[:0:-1])
        if hard:
            # exactly between cells, not the hair outside that the lowered level leaves
            vertices = np.round(vertices * 4) / 4
        found[i] = vertices, lengths
    return found


def _largest(
    points: DoubleArray, starts: npt.NDArray[Any], outlines: npt.NDArray[Any]
) -> tuple[DoubleArray, IntArray]:
    """Return vertices and ring lengths of the piece with the largest area.

    Parameters
    ----------
    points : ndarray (k, 2)
        Vertices of all rings.
    starts : ndarray (rings + 1,)
        Where each ring begins among them, and the end.
    outlines : ndarray (pieces + 1,)
        Where each piece begins among the rings, and the end: its outline, then its holes.
    """
    rings = starts.astype(np.int64)
    pieces = []
    for first, last in pairwise(outlines.tolist()):
        ends = rings[first : last + 1]
        pieces.append((points[ends[0] : ends[-1]], ends - ends[0]))
    vertices, ends = pieces[0] if len(pieces) == 1 else max(pieces, key=lambda p: _net_area(*p))
    return vertices, np.ediff1d(ends)


def _net_area(points: DoubleArray, offsets: IntArray) -> float:
    """Return the area of an outline less its holes; rings are closed and turn opposite ways."""
    x, y = points.T
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]
    joints = np.asarray(offsets[1:-1], np.int64) - 1
    # ^ the step from one ring's end to the next one's start is no edge
    cross[joints] = 0
    return abs(float(cross.sum())) / 2


def _place(
    polygons: GeometryArray,
    instances: Instances,
    rows: IntArray,
    tile: Tile,
    raster_shape: tuple[int, int],
) -> tuple[GeometryArray, DoubleArray]:
    """Move polygons to grid px and clip them; return also the bounds of polygon and box joined."""
    offset = np.array([tile.window.col_off, tile.window.row_off], np.float64)
    polygons = shapely.transform(polygons, lambda xy: xy + offset)
    boxes = instances.boxes[rows].astype(np.float64) + np.tile(offset, 2)
    reach = shapely.bounds(polygons)
    reach[:, :2] = np.minimum(reach[:, :2], boxes[:, :2])
    reach[:, 2:] = np.maximum(reach[:, 2:], boxes[:, 2:])
    x0, y0, x1, y1 = _window_in_raster(tile, raster_shape)
    bounds = shapely.bounds(polygons)
    over = (bounds[:, :2] < (x0, y0)).any(axis=1) | (bounds[:, 2:] > (x1, y1)).any(axis=1)
    if over.any():
        sound = shapely.make_valid(polygons[over])
        polygons[over] = shapely.intersection(sound, shapely.box(x0, y0, x1, y1))
    return polygons, reach


def _window_in_raster(tile: Tile, raster_shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the part of the tile's window that lies on the raster: x0, y0, x1, y1."""
    x0, y0 = int(tile.window.col_off), int(tile.window.row_off)
    x1, y1 = x0 + int(tile.window.width), y0 + int(tile.window.height)
    return max(x0, 0), max(y0, 0), min(x1, raster_shape[1]), min(y1, raster_shape[0])


def _largest_valid_part(geometries: GeometryArray) -> GeometryArray:
    """Repair what is invalid and keep of each geometry the largest polygon (or an empty one)."""
    out = np.array(geometries, object)
    bad = ~shapely.is_valid(out)
    if bad.any():
        out[bad] = shapely.make_valid(out[bad])
    many = np.flatnonzero(shapely.get_type_id(out) != shapely.GeometryType.POLYGON)
    for row in many:
        parts = shapely.get_parts(shapely.get_parts(out[row]))
        # ^ twice: a collection may hold multipolygons
        areas = shapely.area(parts)
        out[row] = parts[np.argmax(areas)] if areas.max(initial=0) > 0 else shapely.Polygon()
    return out


def _clip_to_data(polygons: GeometryArray, valid: BoolArray, tile: Tile) -> GeometryArray:
    """Take the pixels without data out of the polygons; empty those that lie mostly on them."""
    offset = np.array([tile.window.col_off, tile.window.row_off], np.float64)
    bounds = np.nan_to_num(shapely.bounds(polygons)) - np.tile(offset, 2)
    low = np.clip(np.floor(bounds[:, :2]).astype(int), 0, valid.shape[::-1])
    high = np.clip(np.ceil(bounds[:, 2:]).astype(int), 0, valid.shape[::-1])
    # a tile has less than 2^31 px; sums in place take half the time
    table = np.zeros((valid.shape[0] + 1, valid.shape[1] + 1), np.int32)
    np.cumsum(~valid, axis=1, dtype=np.int32, out=table[1:, 1:])
    np.cumsum(table, axis=0, out=table)
    (x0, y0), (x1, y1) = low.T, high.T
    touched = np.flatnonzero(table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0] > 0)
    for row in touched:
        cols_rows = slice(y0[row], y1[row]), slice(x0[row], x1[row])
        hole = _outline_of_invalid(~valid[cols_rows], offset + low[row])
        whole = shapely.area(polygons[row])
        polygons[row] = shapely.difference(polygons[row], hole)
        if shapely.area(polygons[row]) < whole / 2:
            polygons[row] = shapely.Polygon()
    return _largest_valid_part(polygons)


def _outline_of_invalid(invalid: BoolArray, offset: DoubleArray) -> shapely.Geometry:
    """Return the area of the pixels marked, along pixel edges, in grid px."""
    found = rasterio.features.shapes(invalid.astype(np.uint8), mask=invalid, connectivity=4)
    area = shapely.union_all([shape(outline) for outline, _ in found])
    return shapely.transform(area, lambda xy: xy + offset)


def _edges(
    polygons: GeometryArray,
    reach: DoubleArray,
    cell: DoubleArray,
    tile: Tile,
    raster_shape: tuple[int, int],
) -> tuple[BoolArray, BoolArray]:
    """Say which fragments reach an edge of the window inside the raster, and of the raster."""
    height, width = raster_shape
    window = np.array(_window_in_raster(tile, raster_shape), np.float64)
    raster_side = window == (0, 0, width, height)
    slack = CUT_REACH_PX + 0.5 * np.minimum(np.tile(cell, (1, 2)), CUT_REACH_PX)
    near = np.concatenate([reach[:, :2] - window[:2], window[2:] - reach[:, 2:]], axis=1) <= slack
    bounds = shapely.bounds(polygons)
    touching = np.concatenate([bounds[:, :2] - window[:2], window[2:] - bounds[:, 2:]], axis=1) <= 1
    return (near & ~raster_side).any(axis=1), (touching & raster_side).any(axis=1)
