"""What RFC 7946 asks of geometry: degrees on WGS 84, seven decimals, cut at the antimeridian.

The turn of the rings is GDAL's work, when it writes.
"""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyproj
import shapely

from geoseg.globe import cut_at_seam, projected

DECIMALS = 7
"""Of a degree: about a centimetre."""
BEND_M = 0.01
"""An edge straight in its own CRS may leave its course by so much, metres."""
_DEGREES = pyproj.CRS.from_epsg(4326)


def to_rfc7946(
    geometries: npt.NDArray[np.object_], crs: pyproj.CRS | str | int
) -> npt.NDArray[np.object_]:
    """Bring geometries to what a GeoJSON file is to hold.

    Parameters
    ----------
    geometries : ndarray
        (n,) shapely geometries, or None, in the CRS.
    crs : pyproj.CRS or str or int
        Theirs.

    Returns
    -------
    ndarray
        (n,) in degrees (longitude, latitude), each coordinate rounded to seven decimals. What
        crosses the antimeridian is cut there into parts that do not, and what holds a pole reaches
        it along the antimeridian. Long edges get vertices that keep their course to `BEND_M`. A
        polygon that is valid stays so.

    Examples
    --------
    >>> fiji = shapely.box(178.0, -17.0, 182.0, -16.0)
    >>> to_rfc7946(np.array([fiji]), 4326)[0].bounds
    (-180.0, -17.0, 180.0, -16.0)
    """
    given = pyproj.CRS.from_user_input(crs)
    valid = shapely.is_valid(geometries)
    moved = _in_degrees(np.array(geometries, dtype=object), given)
    rounded = shapely.transform(moved, lambda xy: np.round(xy, DECIMALS))
    # slivers may touch themselves on the coarser grid
    broken = valid & ~shapely.is_valid(rounded)
    if broken.any():
        rounded[broken] = [_repaired(g) for g in moved[broken]]
    return np.asarray(rounded, dtype=object)


def _in_degrees(geometries: npt.NDArray[np.object_], crs: pyproj.CRS) -> npt.NDArray[np.object_]:
    """Return geometries on WGS 84 within 180 degrees, where they lie on the ground.

    In degrees an edge is what its numbers say, and goes on beyond 180 where those do.
    """
    here = np.flatnonzero(~shapely.is_missing(geometries))
    moved = geometries.copy()
    if crs.is_geographic:
        there = gpd.GeoSeries(geometries[here], crs=crs).to_crs(_DEGREES).to_numpy()
        moved[here] = cut_at_seam(there, short_way=False)
        return moved
    bend = BEND_M / (crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0)
    moved[here] = projected(geometries[here], crs, _DEGREES, bend)
    return moved


def _repaired(shape: Any) -> Any:
    """Return a geometry on the grid of seven decimals that is valid, or the nearest to it."""
    snapped = shapely.set_precision(shape, 10.0**-DECIMALS)
    if snapped.is_empty:
        # smaller than the grid: better at its place than gone
        return shape
    return shapely.transform(snapped, lambda xy: np.round(xy, DECIMALS))
