"""Between grid pixels, the CRS and metres on the ground. Coordinates are always (x, y)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyproj
import shapely
from affine import Affine
from pyproj.exceptions import CRSError, ProjError

from geoseg.errors import ConfigError, SourceError
from geoseg.globe import in_degrees
from geoseg.records import DoubleArray, GeometryArray, IntArray, RasterInfo

NATIVE_TOLERANCE = 0.02
"""A requested GSD this close to the raster's own (as a share of it) means: no resampling."""
MOST_ENLARGED = 1_000
"""A pixel may become so many grid pixels a side: beyond, a small file would be an endless night."""

_PLANE_EXTENT_M = 500.0
"""Polygons up to this size / (1 + tan(latitude)) are measured in an equal-area plane, larger ones
edge by edge: a geodesic bends in that plane by its length squared times tan(latitude)."""

_SHORT_EDGE_M = 200.0
"""Edges up to this length / (1 + tan(latitude)) need no geodesic."""


@dataclass(frozen=True, slots=True)
class WorkingGrid:
    """The raster, resampled to the working GSD where that differs; one affine map to the CRS."""

    transform: Affine
    """Maps grid (col, row) pixel edges to CRS (x, y)."""
    height: int
    """Rows of the grid."""
    width: int
    """Columns of the grid."""
    scale_x: float
    """Raster columns per grid column; exactly raster width / grid width."""
    scale_y: float
    """Raster rows per grid row; exactly raster height / grid height."""
    gsd_m: float
    """Ground metres per grid pixel at the centre."""

    @property
    def is_native(self) -> bool:
        """True if grid pixels are raster pixels."""
        return self.scale_x == 1.0 and self.scale_y == 1.0


def ground_gsd_m(crs_wkt: str, transform: Affine, width: int, height: int) -> float:
    """Measure the size of the centre pixel on the ellipsoid.

    Right in every CRS: metres, feet, degrees, and EPSG:3857, whose units are 1 / cos(latitude)
    too long on the ground.

    Parameters
    ----------
    crs_wkt : str
        Anything pyproj understands.
    transform : Affine
        Maps (col, row) to (x, y); may be rotated, sheared, south-up.
    width, height : int
        Raster size, px.

    Returns
    -------
    float
        sqrt(area) of the centre pixel, metres; NaN if the centre is not on the earth.

    Raises
    ------
    SourceError
        If the CRS has no relation to the earth.
    """
    col, row = width / 2, height / 2
    # the pixel's two axes, through its middle
    ends = [(col - 0.5, row), (col + 0.5, row), (col, row - 0.5), (col, row + 0.5)]
    x = [transform.a * c + transform.b * r + transform.c for c, r in ends]
    y = [transform.d * c + transform.e * r + transform.f for c, r in ends]
    lon, lat = _lonlat_transformer(crs_wkt).transform(x, y)
    if not np.isfinite([*lon, *lat]).all():
        return float("nan")
    # west, east, north, south: both axes, and the four sides between their ends
    pairs = [(0, 1), (2, 3), (0, 2), (1, 3), (2, 1), (3, 0)]
    a, b = ([k for k, _ in pairs], [k for _, k in pairs])
    lon, lat = np.asarray(lon), np.asarray(lat)
    metres = _geod(crs_wkt).inv(lon[a], lat[a], lon[b], lat[b])[2]
    across, down, *sides = metres
    # Bretschneider; azimuths would not do, which mean nothing at a pole
    nw, se, ne, sw = (side**2 for side in sides)
    skew = (nw + se - ne - sw) / 2
    return float(np.sqrt(np.sqrt(max((across * down) ** 2 - skew**2, 0.0))))


def working_grid(info: RasterInfo, gsd_m: float | None) -> WorkingGrid:
    """Lay the working grid over a raster.

    Parameters
    ----------
    info : RasterInfo
        Of the raster.
    gsd_m : float or None
        Wanted ground metres per grid pixel, > 0; None takes the raster's pixels as they are, and
        so does a value within `NATIVE_TOLERANCE` of them.

    Returns
    -------
    WorkingGrid
        Covers the raster exactly: its size is rounded to whole pixels and the scale follows.

    Raises
    ------
    ConfigError
        If `gsd_m` is not a positive number, or so small that the grid would have no end.
    """
    if gsd_m is not None and not (np.isfinite(gsd_m) and gsd_m > 0):
        raise ConfigError(f"--gsd is {gsd_m}; expected metres per pixel above 0, or native")
    if gsd_m is None or abs(gsd_m / info.gsd_m - 1) <= NATIVE_TOLERANCE:
        return WorkingGrid(info.transform, info.height, info.width, 1.0, 1.0, info.gsd_m)
    if info.gsd_m > MOST_ENLARGED * gsd_m:
        raise ConfigError(
            f"--gsd {gsd_m:g} (the model's, where none is given) would enlarge pixels of "
            f"{info.gsd_m:.4g} m {info.gsd_m / gsd_m:,.0f} times; at most {MOST_ENLARGED} times: "
            "give a coarser one, or native, or another model"
        )
    width = max(1, round(info.width * info.gsd_m / gsd_m))
    height = max(1, round(info.height * info.gsd_m / gsd_m))
    scale_x, scale_y = info.width / width, info.height / height
    return WorkingGrid(
        transform=scaled_transform(info.transform, scale_x, scale_y),
        height=height,
        width=width,
        scale_x=scale_x,
        scale_y=scale_y,
        gsd_m=info.gsd_m * float(np.sqrt(scale_x * scale_y)),
    )


def scaled_transform(transform: Affine, scale_x: float, scale_y: float) -> Affine:
    """Return the map of pixels that are `scale_x` by `scale_y` pixels of the given one."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return Affine(a * scale_x, b * scale_y, c, d * scale_x, e * scale_y, f)


def polygons_to_crs(
    polygons: GeometryArray | Sequence[shapely.Geometry], transform: Affine
) -> GeometryArray:
    """Map polygons from pixels to the CRS.

    Parameters
    ----------
    polygons : (n,) array of shapely geometries
        In px, pixel edges: pixel (0, 0) covers [0, 1) x [0, 1).
    transform : Affine
        Maps (col, row) to (x, y).

    Returns
    -------
    (n,) array of shapely geometries
        In CRS units; ring direction is as given (a south-up transform turns it).
    """
    matrix = np.array([[transform.a, transform.b], [transform.d, transform.e]])
    offset = np.array([transform.c, transform.f])
    return _as_array(shapely.transform(_as_array(polygons), lambda xy: xy @ matrix.T + offset))


def polygons_to_pixels(
    polygons: GeometryArray | Sequence[shapely.Geometry],
    src_wkt: str,
    dst_wkt: str,
    transform: Affine,
) -> GeometryArray:
    """Bring polygons of any CRS into the pixels of a grid.

    Parameters
    ----------
    polygons : sequence of geometry
        In CRS `src_wkt`.
    src_wkt, dst_wkt : str
        CRS of the polygons and of the grid.
    transform : Affine
        Maps grid (col, row) to CRS `dst_wkt`.

    Returns
    -------
    ndarray of geometry
        Same length, grid px.
    """
    return polygons_to_crs(reproject_polygons(polygons, src_wkt, dst_wkt), ~transform)


def reproject_polygons(
    polygons: GeometryArray | Sequence[shapely.Geometry], src_wkt: str, dst_wkt: str
) -> GeometryArray:
    """Map the vertices of polygons from one CRS to another, x first in both.

    Parameters
    ----------
    polygons : (n,) array of shapely geometries
        In units of `src_wkt`.
    src_wkt, dst_wkt : str
        Anything pyproj understands.

    Returns
    -------
    (n,) array of shapely geometries
        In units of `dst_wkt`.

    Raises
    ------
    SourceError
        If a vertex has no place in the target CRS.
    """
    transformer = pyproj.Transformer.from_crs(_crs(src_wkt), _crs(dst_wkt), always_xy=True)

    def to_target(xy: DoubleArray) -> DoubleArray:
        return np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))

    moved = _as_array(shapely.transform(_as_array(polygons), to_target))
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise SourceError(
            f"some polygons have no place in {_crs(dst_wkt).name}; choose a CRS that covers them"
        )
    return moved


def geodesic_area_perimeter(
    polygons: GeometryArray | Sequence[shapely.Geometry], crs_wkt: str
) -> tuple[DoubleArray, DoubleArray]:
    """Measure polygons on the ellipsoid, holes subtracted.

    Small polygons (up to 230 m at 50 degrees) are measured in the ellipsoid's equal-area cylinder
    all at once, exact but for the bend of an edge, some 1e-6 of the area; larger ones one by one
    along geodesics, as `pyproj.Geod` does. The antimeridian is no border.

    Parameters
    ----------
    polygons : (n,) array of shapely Polygons or MultiPolygons
        In units of `crs_wkt`, valid.
    crs_wkt : str
        Anything pyproj understands.

    Returns
    -------
    area_m2 : (n,) float64
        Square metres, never negative.
    perimeter_m : (n,) float64
        Metres, holes' edges included.

    Raises
    ------
    SourceError
        If a vertex is not on the earth by this CRS.
    """
    geometries = _as_array(polygons)
    transformer = _lonlat_transformer(crs_wkt)

    def to_lonlat(xy: DoubleArray) -> DoubleArray:
        return np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))

    lonlat = _as_array(shapely.transform(geometries, to_lonlat))
    xy, owner = shapely.get_coordinates(lonlat, return_index=True)
    if not np.isfinite(xy).all():
        raise SourceError(f"some polygons do not lie on the earth by {_crs(crs_wkt).name}")
    geod = _geod(crs_wkt)
    areas = _plane_areas(lonlat, xy, owner, geod)
    for i in np.flatnonzero(_bend_m(xy, owner, len(lonlat)) > _PLANE_EXTENT_M):
        areas[i] = _geodesic_area(lonlat[i], geod)
    return areas, _perimeters(lonlat, geod)


def _perimeters(lonlat: GeometryArray, geod: pyproj.Geod) -> DoubleArray:
    """Return the geodesic length of all rings of each geometry, metres."""
    parts, part_owner = shapely.get_parts(lonlat, return_index=True)
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    edge = np.flatnonzero(ring[1:] == ring[:-1])
    metres = _edge_lengths(xy[edge], xy[edge + 1], geod)
    owner = part_owner[ring_part[ring[edge]]] if len(edge) else np.zeros(0, np.int64)
    return np.bincount(owner, weights=metres, minlength=len(lonlat)).astype(np.float64)


def _edge_lengths(start: DoubleArray, end: DoubleArray, geod: pyproj.Geod) -> DoubleArray:
    """Return the lengths of edges on the ellipsoid, (n,) metres.

    Short ones by the radii of curvature at their middle latitude, right to 1e-10 of the length
    (the next term of the series has length squared by radius squared); others as geodesics.
    """
    east, north = np.deg2rad((end[:, 0] - start[:, 0] + 180) % 360 - 180), end[:, 1] - start[:, 1]
    latitude = np.deg2rad(start[:, 1] + north / 2)
    curve = 1 - geod.es * np.sin(latitude) ** 2
    along = geod.a * (1 - geod.es) / curve**1.5 * np.deg2rad(north)
    across = geod.a / np.sqrt(curve) * np.cos(latitude) * east
    metres = np.hypot(along, across)
    # meridians draw together towards the poles
    long = np.flatnonzero(metres * (1 + np.abs(np.tan(latitude))) > _SHORT_EDGE_M)
    metres[long] = geod.inv(*start[long].T, *end[long].T)[2]
    return np.asarray(metres)


def _bend_m(xy: DoubleArray, owner: IntArray, count: int) -> DoubleArray:
    """Return the larger side of each geometry's bounds, metres, times 1 + tan(latitude)."""
    bend = np.zeros(count)
    if len(xy):
        starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        near = _unwrapped(xy, owner, count)
        span = np.maximum.reduceat(near, starts) - np.minimum.reduceat(near, starts)
        # the pole itself is kept finite
        latitude = np.deg2rad(np.minimum(np.abs(xy[starts, 1]), 89.99))
        span[:, 0] *= np.cos(latitude)
        bend[owner[starts]] = span.max(axis=1) * 111_700 * (1 + np.tan(latitude))
    return bend


def _unwrapped(xy: DoubleArray, owner: IntArray, count: int) -> DoubleArray:
    """Return (lon, lat) relative to each geometry's first vertex, lon in [-180, 180)."""
    first = np.zeros((count, 2))
    starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    first[owner[starts]] = xy[starts]
    near: DoubleArray = xy - first[owner]
    near[:, 0] = (near[:, 0] + 180) % 360 - 180
    return near


def _plane_areas(
    lonlat: GeometryArray, xy: DoubleArray, owner: IntArray, geod: pyproj.Geod
) -> DoubleArray:
    """Return areas in the cylinder that keeps the ellipsoid's areas (EPSG method 9835), m2."""
    if not len(xy):
        return np.zeros(len(lonlat))
    near = _unwrapped(xy, owner, len(lonlat))
    first_lat = xy[:, 1] - near[:, 1]
    east = geod.a * np.deg2rad(near[:, 0])
    north = geod.a / 2 * (_authalic_q(xy[:, 1], geod.es) - _authalic_q(first_lat, geod.es))
    plane = shapely.set_coordinates(lonlat.copy(), np.column_stack([east, north]))
    areas: DoubleArray = np.abs(shapely.area(plane)).astype(np.float64)
    return areas


def _authalic_q(lat_deg: DoubleArray, es: float) -> DoubleArray:
    """Return q of Snyder, Map Projections: A Working Manual (1987), eq. 3-12."""
    sine = np.sin(np.deg2rad(lat_deg))
    if es == 0:
        return np.asarray(2 * sine)
    e = np.sqrt(es)
    return np.asarray((1 - es) * (sine / (1 - es * sine**2) + np.arctanh(e * sine) / e))


def _geodesic_area(geometry: shapely.Geometry, geod: pyproj.Geod) -> float:
    """Return the area within geodesic edges, holes subtracted, m2."""
    total = 0.0
    for part in shapely.get_parts(geometry):
        rings = shapely.get_rings(part)
        areas = [abs(geod.polygon_area_perimeter(*ring.coords.xy)[0]) for ring in rings]
        total += areas[0] - sum(areas[1:]) if areas else 0.0
    return total


def _as_array(polygons: GeometryArray | Sequence[shapely.Geometry]) -> GeometryArray:
    """Return an object array, also for an empty sequence."""
    array: GeometryArray = np.empty(len(polygons), object)
    array[:] = polygons
    return array


@lru_cache(maxsize=64)
def _crs(crs_wkt: str) -> pyproj.CRS:
    try:
        return pyproj.CRS.from_user_input(crs_wkt)
    except CRSError as error:
        raise SourceError(f"the CRS is not understood: {error}") from error


@lru_cache(maxsize=64)
def _geod(crs_wkt: str) -> pyproj.Geod:
    geod = _crs(crs_wkt).get_geod()
    if geod is None:
        raise SourceError(f"the CRS {_crs(crs_wkt).name} has no ellipsoid; assign a geodetic CRS")
    return geod


@lru_cache(maxsize=64)
def _lonlat_transformer(crs_wkt: str) -> pyproj.Transformer:
    """Return the map to longitude and latitude of the CRS's own datum: no datum shift."""
    crs = _crs(crs_wkt)
    degrees = in_degrees(crs)
    if degrees is None:
        raise SourceError(
            f"the CRS {crs.name!r} has no relation to the earth; assign the right one with "
            "gdal_edit.py -a_srs EPSG:..."
        )
    try:
        return pyproj.Transformer.from_crs(crs, degrees, always_xy=True)
    except ProjError as error:
        raise SourceError(f"the CRS {crs.name!r} cannot be used: {error}") from error
