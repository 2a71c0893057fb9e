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

DECIMALS = 7
"""Of a degree: about a centimetre."""
_WEST = shapely.box(-180, -90, 180, 90)
_EAST = shapely.box(180, -90, 540, 90)


def to_rfc7946(
    geometries: npt.NDArray[np.object_], crs: pyproj.CRS | str | int
) -> npt.NDArray[np.object_]:
    """Bring geometries to what a GeoJSON file is to hold.

    Parameters
    ----------
    geometries : ndarray
        (n,) shapely geometries, or None, in the CRS; none may hold a pole.
    crs : pyproj.CRS or str or int
        Theirs.

    Returns
    -------
    ndarray
        (n,) in degrees (longitude, latitude), each coordinate rounded to seven decimals. What
        crosses the antimeridian is cut there into parts that do not. A polygon that is valid
        stays so.

    Examples
    --------
    >>> fiji = shapely.box(178.0, -17.0, 182.0, -16.0)
    >>> to_rfc7946(np.array([fiji]), 4326)[0].bounds
    (-180.0, -17.0, 180.0, -16.0)
    """
    given = pyproj.CRS.from_user_input(crs)
    valid = shapely.is_valid(geometries)
    moved = gpd.GeoSeries(geometries, crs=given).to_crs(4326).to_numpy().copy()
    bounds = shapely.bounds(moved)
    with np.errstate(invalid="ignore"):
        jumps = bounds[:, 2] - bounds[:, 0] > 180
        beyond = (bounds[:, 2] > 180) | (bounds[:, 0] < -180)
    for row in np.flatnonzero(jumps | beyond):
        crosses = beyond[row] or _crosses(geometries[row], given)
        moved[row] = _cut(moved[row]) if crosses else moved[row]
    rounded = shapely.transform(moved, lambda xy: np.round(xy, DECIMALS))
    # slivers may touch themselves on the coarser grid
    broken = valid & ~shapely.is_valid(rounded)
    if broken.any():
        rounded[broken] = [_repaired(g) for g in moved[broken]]
    return np.asarray(rounded, dtype=object)


def _crosses(shape: Any, crs: pyproj.CRS) -> bool:
    """Tell what crosses the antimeridian from what reaches around the earth the other way.

    In degrees nothing does, and the shorter way is taken; of a projected shape small steps tell.
    """
    if crs.is_geographic:
        return True
    left, bottom, right, top = shapely.bounds(shape)
    dense = shapely.segmentize(shape, max(right - left, top - bottom) / 64)
    moved = gpd.GeoSeries([dense], crs=crs).to_crs(4326)
    for part in shapely.get_parts(moved.to_numpy()):
        for ring in shapely.get_rings(part) if part.geom_type == "Polygon" else [part]:
            if (np.abs(np.diff(shapely.get_coordinates(ring)[:, 0])) > 180).any():
                return True
    return False


def _cut(shape: Any) -> Any:
    """Return the parts of one geometry on the two sides of the antimeridian."""
    pieces = []
    for part in shapely.get_parts(shape):
        pieces += [part] if shapely.is_empty(part) else _sides(part)
    dimension = shapely.get_dimensions(shape)
    parts = shapely.get_parts(shapely.get_parts(pieces))
    parts = parts[(shapely.get_dimensions(parts) == dimension) & ~shapely.is_empty(parts)]
    return shapely.union_all(parts) if len(parts) else shape


def _sides(part: Any) -> list[Any]:
    """Return what of a single geometry lies west of the antimeridian, and what lies east."""
    left, _, right, _ = part.bounds
    if right - left > 180:
        shifted = shapely.transform(part, _eastward)
    elif left < -180:
        shifted = shapely.transform(part, lambda xy: xy + np.array([360.0, 0.0]))
    else:
        shifted = part
    whole = shapely.make_valid(shifted)
    if shapely.get_dimensions(part) == 2 and shapely.area(whole) == 0:
        # it went around the whole earth
        return [part]
    east = shapely.intersection(whole, _EAST)
    return [
        shapely.intersection(whole, _WEST),
        shapely.transform(east, lambda xy: xy - np.array([360.0, 0.0])),
    ]


def _eastward(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Count the longitudes west of Greenwich on from 180."""
    return np.column_stack([np.where(xy[:, 0] < 0, xy[:, 0] + 360, xy[:, 0]), xy[:, 1]])


def _repaired(shape: Any) -> Any:
    """Return a geometry on the grid of seven decimals that is valid, or the nearest to it."""
    snapped = shapely.set_precision(shape, 10.0**-DECIMALS)
    if snapped.is_empty:
        # smaller than the grid: better at its place than gone
        return shape
    return shapely.transform(snapped, lambda xy: np.round(xy, DECIMALS))
