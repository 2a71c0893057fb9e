"""Where things stand on the map: metres from the upper left corner, x to the right, y down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyproj
import shapely
from affine import Affine

from geoseg.records import DoubleArray, GeometryArray

Bounds = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """An affine map from a CRS to metres on the ground around its centre."""

    crs: pyproj.CRS
    left: float
    """CRS x of the map's left edge."""
    top: float
    """CRS y of the map's upper edge."""
    metres_x: float
    """Ground metres of a unit of x."""
    metres_y: float
    """Ground metres of a unit of y."""
    width: float
    """Metres."""
    height: float
    """Metres."""

    @classmethod
    def around(cls, crs: pyproj.CRS, bounds: Bounds) -> Frame:
        """Return the frame of bounds (left, bottom, right, top) in a CRS."""
        left, bottom, right, top = bounds
        mx, my = _metres_per_unit(crs, bounds)
        return cls(crs, left, top, mx, my, max((right - left) * mx, 1), max((top - bottom) * my, 1))

    @property
    def transform(self) -> Affine:
        """CRS to map."""
        x, y = self.metres_x, self.metres_y
        return Affine(x, 0, -self.left * x, 0, -y, self.top * y)

    @property
    def bounds(self) -> Bounds:
        """Left, bottom, right, top in the CRS."""
        return (
            self.left,
            self.top - self.height / self.metres_y,
            self.left + self.width / self.metres_x,
            self.top,
        )

    def place(self, shapes: GeometryArray) -> GeometryArray:
        """Bring shapes in the CRS to the map."""
        scale = np.array([self.metres_x, -self.metres_y])
        corner = np.array([self.left, self.top])
        moved: GeometryArray = shapely.transform(shapes, lambda xy: (xy - corner) * scale)
        return moved


def all_bounds(items: Sequence[Bounds | None]) -> Bounds:
    """Return bounds that hold all of the given ones; a unit square where there are none."""
    known = [b for b in items if b is not None and all(map(math.isfinite, b))]
    if not known:
        return (0.0, 0.0, 1.0, 1.0)
    array = np.array(known)
    low, high = array[:, :2].min(axis=0), array[:, 2:].max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _metres_per_unit(crs: pyproj.CRS, bounds: Bounds) -> tuple[float, float]:
    """Return ground metres of a unit of x and of y at the centre of bounds."""
    left, bottom, right, top = bounds
    x, y = (left + right) / 2, (bottom + top) / 2
    step = max(right - left, top - bottom) / 200 or 1e-3
    base, geod = crs.geodetic_crs, crs.get_geod()
    if base is None or geod is None:
        return 1.0, 1.0
    transformer = pyproj.Transformer.from_crs(crs, base, always_xy=True)
    lon, lat = transformer.transform(
        [x - step, x + step, x, x], [y, y, y - step, y + step], radians=False
    )
    if not np.isfinite([lon, lat]).all():
        unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
        return unit, unit
    metres: DoubleArray = np.asarray(geod.inv(lon[::2], lat[::2], lon[1::2], lat[1::2])[2])
    mx, my = (float(m) / (2 * step) for m in metres)
    if crs.is_geographic:
        return mx, my
    # shapes keep their look in a projected CRS
    both = math.sqrt(mx * my)
    return both, both
