"""Objects for the map in few bytes: outlines as whole numbers, as differences, in base64.

Columns are kept apart: how many rings an object has, how many points a ring has, all points one
after another as differences from the one before, and class, score, area and parts. Each number
takes one byte up to 127, two up to 16,383 and so on (LEB128; differences zigzag, so that small
negative ones are small).
"""

from __future__ import annotations

import base64
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from geoseg.outputs.report.frame import Frame
from geoseg.records import IntArray

MAX_OUTLINES = 150_000
"""More objects than this are shown as a density only: the file would get too large."""
GRID_CELLS = 256
"""Cells of the density along the longer side of the map."""
_SCORE_STEPS = 1000
_AREA_STEPS = 10


def leb128(values: npt.NDArray[Any]) -> bytes:
    """Return whole numbers from 0 as bytes: seven bits each, the high bit where more follow.

    Examples
    --------
    >>> leb128(np.array([1, 300])).hex()
    '01ac02'
    """
    left = np.asarray(values, np.uint64)
    if left.size == 0:
        return b""
    sizes = np.ones(left.size, np.int64)
    for bits in range(7, 64, 7):
        sizes += left >= (np.uint64(1) << np.uint64(bits))
    ends = np.cumsum(sizes)
    out = np.zeros(ends[-1], np.uint8)
    starts = ends - sizes
    for byte in range(int(sizes.max())):
        has = sizes > byte
        part = (left[has] >> np.uint64(7 * byte)) & np.uint64(0x7F)
        more = (sizes[has] > byte + 1).astype(np.uint64) << np.uint64(7)
        out[starts[has] + byte] = (part | more).astype(np.uint8)
    return out.tobytes()


def zigzag(values: IntArray) -> npt.NDArray[np.uint64]:
    """Return 0, -1, 1, -2, 2 ... as 0, 1, 2, 3, 4 ..."""
    return ((values << 1) ^ (values >> 63)).astype(np.uint64)


class OutlineEncoder:
    """Takes objects a table at a time and gives what the map's script reads.

    Parameters
    ----------
    frame : Frame
        Of the map.
    n_objects : int
        How many will come: above `MAX_OUTLINES` only their density is kept.
    step_m : float
        Size of a pixel of the imagery, m: finer detail is not kept.
    kind_field : str
        The column that decides the colour.
    """

    def __init__(
        self, frame: Frame, n_objects: int, step_m: float, kind_field: str = "class"
    ) -> None:
        self.frame = frame
        self.outlines = n_objects <= MAX_OUTLINES
        # more objects, less detail each: the file stays small, and nobody sees all at once
        detail = step_m * (0.75 if n_objects <= 20_000 else 1.5 if n_objects <= 60_000 else 2.5)
        self.step = float(max(detail, max(frame.width, frame.height) / 2**29))
        self.kind_field = kind_field
        self.kinds: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.rows = 0
        self._last = np.zeros(2, np.int64)
        self._columns: dict[str, list[bytes]] = {
            name: [] for name in ("rings", "sizes", "xy", "kind", "score", "area", "parts")
        }
        cell = max(frame.width, frame.height) / GRID_CELLS
        self._cell = cell
        shape = (int(np.ceil(frame.height / cell)), int(np.ceil(frame.width / cell)))
        self._grid = np.zeros(shape, np.int64)

    def add(self, table: gpd.GeoDataFrame) -> None:
        """Add some more objects, in order."""
        shapes = self.frame.place(table.geometry.to_numpy())
        names = table[self.kind_field].astype(str) if self.kind_field in table else None
        names = np.full(len(table), "object", object) if names is None else names.to_numpy()
        kinds = np.array([self.kinds.setdefault(n, len(self.kinds)) for n in names], np.int64)
        for name, n in zip(*np.unique(names.astype(str), return_counts=True), strict=True):
            self.counts[str(name)] = self.counts.get(str(name), 0) + int(n)
        self.rows += len(table)
        self._add_to_grid(shapes)
        if self.outlines:
            self._add_outlines(shapes)
            self._add_numbers(table, kinds)

    def _add_to_grid(self, shapes: npt.NDArray[np.object_]) -> None:
        xy = shapely.bounds(shapes)
        centre = np.nan_to_num((xy[:, :2] + xy[:, 2:]) / 2)
        cells = np.floor(centre / self._cell).astype(np.int64)
        rows = np.clip(cells[:, 1], 0, self._grid.shape[0] - 1)
        columns = np.clip(cells[:, 0], 0, self._grid.shape[1] - 1)
        np.add.at(self._grid, (rows, columns), 1)

    def _add_outlines(self, shapes: npt.NDArray[np.object_]) -> None:
        thin = shapely.simplify(shapes, self.step, preserve_topology=True)
        parts, of_object = shapely.get_parts(thin, return_index=True)
        rings, of_part = shapely.get_rings(parts, return_index=True)
        per_object = np.bincount(of_object[of_part], minlength=len(shapes))
        points, of_ring = shapely.get_coordinates(rings, return_index=True)
        # the last point of a ring is its first
        keep = np.append(of_ring[1:] == of_ring[:-1], False)
        sizes = np.bincount(of_ring[keep], minlength=len(rings))
        xy = np.rint(points[keep] / self.step).astype(np.int64)
        steps = np.diff(xy, axis=0, prepend=self._last[None])
        if len(xy):
            self._last = xy[-1]
        self._columns["rings"].append(leb128(per_object))
        self._columns["sizes"].append(leb128(sizes))
        self._columns["xy"].append(leb128(zigzag(steps.ravel())))

    def _add_numbers(self, table: gpd.GeoDataFrame, kinds: IntArray) -> None:
        n = len(table)
        numbers = {
            "kind": kinds,
            "score": _column(table, "score", n) * _SCORE_STEPS,
            "area": _column(table, "area_m2", n) * _AREA_STEPS,
            "parts": _column(table, "n_parts", n),
        }
        for name, values in numbers.items():
            self._columns[name].append(leb128(np.rint(np.maximum(values, 0)).astype(np.int64)))

    def to_json(self) -> dict[str, Any]:
        """Return the columns, or the density, for the script."""
        out: dict[str, Any] = {"n": self.rows, "step": self.step}
        if self.outlines:
            out |= {
                name: base64.b64encode(b"".join(parts)).decode()
                for name, parts in self._columns.items()
            }
            return out
        grid = base64.b64encode(leb128(self._grid.ravel())).decode()
        rows, columns = self._grid.shape
        return out | {
            "grid": {"cell": self._cell, "rows": rows, "columns": columns, "counts": grid}
        }


def _column(table: gpd.GeoDataFrame, name: str, n: int) -> npt.NDArray[np.float64]:
    """Return a column of numbers, zero where there is none."""
    if name not in table:
        return np.zeros(n)
    values: npt.NDArray[np.float64] = np.nan_to_num(table[name].to_numpy(np.float64))
    return values
