"""Regions as geometry: made valid, brought to another CRS, measured on the ellipsoid.

Also what images and objects need of that; nothing here counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyproj
import shapely
from shapely.errors import GEOSException
from shapely.geometry.base import BaseGeometry

from geoseg.errors import RegionError
from geoseg.globe import cut_at_seam, in_degrees, projected, torn, turn_of, way_between
from geoseg.records import DoubleArray, GeometryArray, IntArray

CRSLike: TypeAlias = pyproj.CRS | str | int
_OVERLAP_SHARE = 1e-6
# ^ two regions overlap when they share more than this part of the smaller: less is rounding
_BEND_M = 0.01
# ^ by which the edge of a region may leave its course when it is brought to another CRS
_BENT_M = 1000.0
# ^ a thing of this size, larger towards the poles, has edges that are not straight in a cylinder

_MOST_VERTICES = 50_000_000
_MOST_OF_ONE = 1_000_000
# ^ of one polygon: the whole earth has 160,000 edges of a kilometre
# ^ added at once: the outline of every country of the earth at every kilometre is below a million


def polygonal(geometries: Iterable[BaseGeometry | None]) -> tuple[GeometryArray, int]:
    """Make geometries valid and keep only what has area.

    Parameters
    ----------
    geometries : iterable of shapely geometries
        (n,) of any kind; None is taken as empty.

    Returns
    -------
    tuple of (ndarray, int)
        (n,) valid Polygons and MultiPolygons, empty polygons where nothing has area; and how
        many were invalid.
    """
    given = np.asarray(geometries, dtype=object)
    result = np.where(shapely.is_missing(given), shapely.Polygon(), given).astype(object)
    result = without_empty_parts(result)
    invalid = ~shapely.is_valid(result)
    if invalid.any():
        result[invalid] = _made_valid(result[invalid])
    for row in np.flatnonzero(~np.isin(shapely.get_type_id(result), (3, 6))):
        parts = shapely.get_parts(shapely.get_parts(result[row : row + 1]))
        result[row] = shapely.union_all(parts[shapely.get_type_id(parts) == 3])
        if shapely.is_empty(result[row]):
            result[row] = shapely.Polygon()
    return result, int(np.count_nonzero(invalid))


def _made_valid(polygons: GeometryArray) -> GeometryArray:
    """Return polygons made valid; what GEOS cannot mend has no area."""
    try:
        return np.asarray(shapely.make_valid(polygons, method="structure"), dtype=object)
    except GEOSException:
        if len(polygons) == 1:
            return np.array([shapely.Polygon()], dtype=object)
    return np.concatenate([_made_valid(polygons[k : k + 1]) for k in range(len(polygons))])


def without_empty_parts(polygons: GeometryArray) -> GeometryArray:
    """Take empty parts out of multipolygons: they are valid, and GEOS crashes over them.

    ``shapely.segmentize`` of ``MULTIPOLYGON (EMPTY, ((0 0, 1 0, 1 1, 0 0)))`` ends the process
    (GEOS 3.14.1); a GeoJSON file may hold one.
    """
    multi = np.flatnonzero(shapely.get_type_id(polygons) == 6)
    parts, rows = shapely.get_parts(polygons[multi], return_index=True)
    empty = shapely.is_empty(parts)
    if not empty.any():
        return polygons
    result = polygons.copy()
    for row in np.unique(rows[empty]):
        result[multi[row]] = shapely.MultiPolygon(list(parts[(rows == row) & ~empty]))
    return result


def ellipsoid_area_m2(polygons: GeometryArray, crs: CRSLike) -> DoubleArray:
    """Return the area of each polygon on the ellipsoid of its CRS, (n,) in m2."""
    source = pyproj.CRS.from_user_input(crs)
    base, geod = _earth_of(source)
    # one by one: of several that lie apart, one across the antimeridian overlaps others in degrees
    parts, owner = shapely.get_parts(polygons, return_index=True)
    # of a ring around more than half the earth Geod measures the other side: hence the slabs
    if source.is_geographic:
        pieces, rows = _slabs(project(parts, source, base, densify=False))
        pieces = _densify(pieces, base)
    else:
        dense = _densify(parts, source)
        lonlat = project(dense, source, base, densify=False, repair=False)
        pieces, rows = _slabs(cut_at_seam(lonlat))
    # normalize turns shells and holes against each other, which Geod needs to subtract holes
    areas = [_one_area(geod, p) for p in shapely.normalize(pieces)]
    return np.bincount(owner[rows], weights=areas, minlength=len(polygons)).astype(np.float64)


def _one_area(geod: pyproj.Geod, polygon: BaseGeometry) -> float:
    """Return the area of one polygon, m2; of an empty one 0."""
    return 0.0 if polygon.is_empty else abs(float(geod.geometry_area_perimeter(polygon)[0]))


def overlapping_pairs(polygons: GeometryArray) -> list[tuple[int, int]]:
    """Return the pairs of rows, lower row first, whose polygons share area."""
    first, second = _overlaps(polygons)[:2]
    return sorted(zip(first.tolist(), second.tolist(), strict=True))


def _overlaps(polygons: GeometryArray) -> tuple[IntArray, IntArray, DoubleArray]:
    """Return the rows of each overlapping pair, lower row first, and the area that they share."""
    shapely.prepare(polygons)
    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    keep = first < second
    first, second = first[keep], second[keep]
    area = shapely.area(polygons)
    smaller = np.minimum(area[first], area[second])
    # a country and its towns: to know that one lies in the other is cheaper than to cut it
    nested = shapely.covers(polygons[first], polygons[second])
    nested |= shapely.covers(polygons[second], polygons[first])
    common = np.where(nested, smaller, 0.0)
    cut = ~nested
    common[cut] = shapely.area(shapely.intersection(polygons[first[cut]], polygons[second[cut]]))
    hits = common > _OVERLAP_SHARE * smaller
    return first[hits], second[hits], common[hits]


def shared_ground(polygons: GeometryArray, crs: CRSLike) -> float:
    """Return the share of the polygons' ground that lies in more than one of them, 0 to 1."""
    first, second, _ = _overlaps(polygons)
    if not len(first):
        return 0.0
    twice = shapely.union_all(shapely.intersection(polygons[first], polygons[second]))
    once = shapely.union_all(polygons)
    both, _ = polygonal([twice, once])
    shared, ground = ellipsoid_area_m2(both, crs)
    return float(min(shared / ground, 1.0)) if ground > 0 else 0.0


def check_places(polygons: GeometryArray, crs: pyproj.CRS) -> None:
    """Refuse metres that pass for degrees: cut to the surroundings they would just be gone."""
    if not crs.is_geographic or not len(polygons):
        return
    left, bottom, right, top = shapely.total_bounds(polygons)
    turn = turn_of(crs)
    if left < -turn or right > 1.5 * turn or max(-bottom, top) > turn / 4 + 1e-3:
        raise RegionError(
            f"regions in '{crs.name}' reach to {left:g}, {bottom:g}, {right:g}, {top:g}, which is "
            "no place on earth: check that their CRS is the one that their coordinates are in"
        )


def cut_near(
    polygons: GeometryArray,
    source: pyproj.CRS,
    around: Sequence[float] | None,
    target: pyproj.CRS,
) -> GeometryArray:
    """Cut polygons in their own CRS to the surroundings of bounds in another.

    A projected CRS has no place for what lies on the other side of the earth, and bends the long
    edges of a country beyond recognition. Polygons that need no cut stay the same objects.
    """
    if around is None or source == target:
        return polygons
    frame = _surroundings(around, target, source)
    if frame is None:
        return polygons
    rows = np.flatnonzero(~shapely.is_empty(polygons))
    # of most their bounds tell that they need no cut
    cut = rows[~shapely.covered_by(shapely.box(*shapely.bounds(polygons[rows]).T), frame)]
    result = polygons.copy()
    result[cut] = polygonal(shapely.intersection(polygons[cut], frame))[0]
    return result


def in_range(polygons: GeometryArray, crs: pyproj.CRS) -> GeometryArray:
    """Return polygons of a geographic CRS within 180 degrees; those of others as they are.

    An edge is what its numbers say: from 178 to 182 it crosses the antimeridian, from 178 to -178
    it goes around the earth.
    """
    if not crs.is_geographic:
        return polygons
    return cut_at_seam(polygons, turn=turn_of(crs), short_way=False)


def leaping(polygons: GeometryArray, crs: pyproj.CRS) -> int:
    """Count polygons with an edge of more than 180 degrees, but not around the whole earth."""
    if not crs.is_geographic:
        return 0
    turn = turn_of(crs)
    far = np.flatnonzero(torn(polygons, turn))
    left, _, right, _ = shapely.bounds(polygons[far]).T
    return int(np.count_nonzero(right - left < turn * (1 - 1e-6)))


def on_rounds(
    polygons: GeometryArray, crs: pyproj.CRS, around: Sequence[float] | None
) -> GeometryArray:
    """Lay polygons of a geographic CRS on every round of the earth on which objects are counted.

    Objects of an image across the antimeridian lie at 179.99 and at 180.01, and a region that ends
    at -179 holds the second. What needs no other round stays the same objects.
    """
    if around is None or not crs.is_geographic or not len(polygons):
        return polygons
    turn = turn_of(crs)
    west, east = around[0], around[2]
    left, _, right, _ = shapely.bounds(polygons).T
    shifts = np.arange(-2, 3) * turn
    with np.errstate(invalid="ignore"):
        hits = (left[:, None] + shifts < east) & (right[:, None] + shifts > west)
    result = polygons.copy()
    for row in np.flatnonzero((hits & (shifts != 0)).any(axis=1)):
        copies = [
            shapely.transform(polygons[row], lambda xy, by=by: xy + np.array([by, 0.0]))
            for by in shifts[hits[row]]
        ]
        result[row] = shapely.union_all(copies)
    return result


def project(
    polygons: GeometryArray,
    source: CRSLike,
    target: CRSLike,
    *,
    densify: bool = True,
    repair: bool = True,
) -> GeometryArray:
    """Return the polygons in another CRS, valid; untouched if the CRS are the same."""
    source, target = pyproj.CRS.from_user_input(source), pyproj.CRS.from_user_input(target)
    if source == target:
        return polygons
    if densify:
        moved = projected(polygons, source, target, _bend(source))
    else:
        transformer = way_between(source, target)
        moved = shapely.transform(
            polygons, lambda xy: np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))
        )
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise RegionError(
            f"a polygon in '{source.name}' has no place in '{target.name}': "
            "check that its CRS is the one that its coordinates are in"
        )
    return polygonal(moved)[0] if repair else np.asarray(moved, dtype=object)


def ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> DoubleArray:
    """Return part / whole, NaN where there is no whole."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _bend(crs: pyproj.CRS) -> float:
    """Return by how much an edge may leave its course in another CRS, in units of its own."""
    unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    # on the earth's radius
    return _BEND_M / 6.4e6 / unit if crs.is_geographic else _BEND_M / unit


def _densify(polygons: GeometryArray, crs: pyproj.CRS) -> GeometryArray:
    """Add vertices each kilometre or so: a straight edge in one CRS is a curve in another.

    On a parallel at 60 degrees a chord of 1 km leaves the curve by 3 cm; one of 100 km by 340 m.
    """
    unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    step = 0.01 if crs.is_geographic else 1000.0 / unit
    return segmentize(polygons, step, crs)


def segmentize(polygons: GeometryArray, step: float, crs: pyproj.CRS) -> GeometryArray:
    """Add vertices, as shapely does, which crashes over coordinates that are no place.

    Parameters
    ----------
    polygons : (n,) array of shapely geometries
        In `crs`.
    step : float
        Longest edge afterwards, in units of `crs`.
    crs : pyproj.CRS
        For the message.

    Raises
    ------
    RegionError
        If a coordinate is not finite, or there would be more vertices than anyone has memory for.
    """
    polygons = without_empty_parts(np.asarray(polygons, dtype=object))
    # an infinite edge, or one of 2**32 steps, ends in an error within GEOS, or in no memory
    finite = np.isfinite(shapely.get_coordinates(polygons)).all()
    length = shapely.length(polygons)
    most = float(length.max(initial=0.0)) / step
    if not finite or not (most < _MOST_OF_ONE and float(length.sum()) / step < _MOST_VERTICES):
        raise RegionError(
            f"a polygon reaches beyond all places of '{crs.name}'; check its coordinates, and that "
            "its CRS is the one that they are in"
        )
    return cast("GeometryArray", shapely.segmentize(polygons, step))


def _slabs(lonlat: GeometryArray) -> tuple[GeometryArray, IntArray]:
    """Cut what is wider than half the earth at every 90 degrees; return parts and their rows."""
    parts, rows = shapely.get_parts(lonlat, return_index=True)
    bounds = shapely.bounds(parts)
    pieces, owners = [], []
    for part in np.flatnonzero(bounds[:, 2] - bounds[:, 0] > 179):
        lon = shapely.get_coordinates(shapely.get_exterior_ring(parts[part]))[:, 0]
        starts = np.arange(np.floor(lon.min() / 90) * 90, lon.max(), 90)
        slabs = shapely.intersection(parts[part], shapely.box(starts, -90, starts + 90, 90))
        pieces.append(shapely.get_parts(polygonal(slabs)[0]))
        owners.append(np.full(len(pieces[-1]), rows[part]))
        parts[part] = shapely.Polygon()
    return np.concatenate([parts, *pieces]), np.concatenate([rows, *owners])


def _surroundings(
    around: Sequence[float], target: pyproj.CRS, source: pyproj.CRS
) -> BaseGeometry | None:
    """Bring bounds, with a margin, from one CRS to another; None where that CRS cannot say."""
    left, bottom, right, top = around
    size = max(right - left, top - bottom)
    # a kilometre at least, which on the earth's radius is 0.00016 radians
    unit = target.axis_info[0].unit_conversion_factor if target.axis_info else 1.0
    margin = max(size / 8, (0.00016 if target.is_geographic else 1000.0) / unit)
    box = shapely.box(left - margin, bottom - margin, right + margin, top + margin)
    there = shapely.get_coordinates(shapely.segmentize(box, (size + 2 * margin) / 64)).T
    transformer = pyproj.Transformer.from_crs(target, source, always_xy=True)
    x, y = transformer.transform(*there)
    back = np.asarray(transformer.transform(x, y, direction="INVERSE"))
    # folded, or off the map: then the bounds of the points say nothing of what is between them
    if not np.isfinite(back).all() or np.abs(back - there).max() > margin / 100:
        return None
    if not source.is_geographic:
        return shapely.box(x.min(), y.min(), x.max(), y.max())
    return _frame_on_globe(x, y, turn_of(source))


def _frame_on_globe(lon: DoubleArray, lat: DoubleArray, turn: float) -> BaseGeometry:
    """Return the frame of a closed line of lon and lat, on whichever round it is counted."""
    lon = np.unwrap(lon, period=turn)
    south, north = lat.min(), lat.max()
    if abs(lon[-1] - lon[0]) > turn / 2:
        # it runs around a pole
        south, north = (south, turn / 4) if lat.mean() > 0 else (-turn / 4, north)
        return shapely.box(-turn, south, 2 * turn, north)
    rounds = np.arange(-2, 3) * turn
    return shapely.union_all(shapely.box(lon.min() + rounds, south, lon.max() + rounds, north))


def take_apart(regions: GeometryArray) -> GeometryArray:
    """Take from each region what a lower row has already."""
    low, high, _ = _overlaps(regions)
    apart = regions.copy()
    for row in np.unique(high):
        apart[row] = shapely.difference(regions[row], shapely.union_all(regions[low[high == row]]))
    return polygonal(apart)[0]


def share_within(
    polygons: GeometryArray, crs: pyproj.CRS, area: BaseGeometry, area_crs: pyproj.CRS
) -> DoubleArray:
    """Return the share of each polygon that lies in an area, measured on the ellipsoid.

    Parameters
    ----------
    polygons : ndarray
        (n,) valid Polygons and MultiPolygons, however large.
    crs : pyproj.CRS
        Their CRS.
    area : geometry
        A Polygon or MultiPolygon.
    area_crs : pyproj.CRS
        Its CRS, in which the two are compared.

    Returns
    -------
    ndarray
        (n,) 0 to 1; NaN of an empty polygon.
    """
    if shapely.is_empty(area):
        return np.where(shapely.is_empty(polygons), np.nan, 0.0)
    area = in_range(np.array([area], dtype=object), area_crs)[0]
    near = cut_near(polygons, crs, shapely.bounds(area), area_crs)
    share = _share_here(in_range(project(near, crs, area_crs), area_crs), area, area_crs)
    cut = near != polygons
    if cut.any():
        share[cut] *= ratio(
            ellipsoid_area_m2(near[cut], crs), ellipsoid_area_m2(polygons[cut], crs)
        )
    # what was cut away wholly is not inside, what has no area has no share
    share = np.where(cut & shapely.is_empty(near), 0.0, share)
    share[shapely.is_empty(polygons)] = np.nan
    return np.clip(share, 0, 1)


def _share_here(polygons: GeometryArray, area: BaseGeometry, crs: pyproj.CRS) -> DoubleArray:
    """Return the share of each polygon that lies in an area, all in one CRS."""
    shapely.prepare(area)
    share = np.where(shapely.covers(area, polygons), 1.0, 0.0)
    some = np.flatnonzero((share == 0) & shapely.intersects(area, polygons))
    pieces, _ = pieces_of(np.array([area], dtype=object))
    row, piece = shapely.STRtree(pieces).query(polygons[some])
    common = polygonal(shapely.intersection(polygons[some[row]], pieces[piece]))[0]
    within = np.bincount(row, weights=ellipsoid_area_m2(common, crs), minlength=len(some))
    share[some] = ratio(within, ellipsoid_area_m2(polygons[some], crs))
    return share


def pieces_of(polygons: GeometryArray, vertices: int = 256) -> tuple[GeometryArray, IntArray]:
    """Cut large polygons into pieces of few vertices, so that to cut with them is cheap.

    Parameters
    ----------
    polygons : ndarray
        (n,) valid Polygons and MultiPolygons.
    vertices : int
        What a piece may have; a polygon with no more stays whole.

    Returns
    -------
    tuple of ndarray
        (m,) pieces that do not overlap, and the row of each in ``polygons``.
    """
    waiting, rows = polygons, np.arange(len(polygons))
    done, owners = [], []
    for _ in range(40):
        few = shapely.get_num_coordinates(waiting) <= vertices
        done.append(waiting[few])
        owners.append(rows[few])
        waiting, rows = waiting[~few], rows[~few]
        if not len(waiting):
            break
        halves = _halves(waiting)
        waiting, rows = halves.ravel(), np.repeat(rows, 2)
        kept = ~shapely.is_empty(waiting)
        waiting, rows = waiting[kept], rows[kept]
    return np.concatenate([*done, waiting]), np.concatenate([*owners, rows])


def _halves(polygons: GeometryArray) -> GeometryArray:
    """Cut each polygon across its longer side; return (n, 2), what has no area empty."""
    left, bottom, right, top = shapely.bounds(polygons).T
    wide = right - left >= top - bottom
    x, y = (left + right) / 2, (bottom + top) / 2
    first = shapely.box(left, bottom, np.where(wide, x, right), np.where(wide, top, y))
    second = shapely.box(np.where(wide, x, left), np.where(wide, bottom, y), right, top)
    cut = shapely.intersection(polygons[:, None], np.column_stack([first, second]))
    return polygonal(cut.ravel())[0].reshape(-1, 2)


def ground_area_m2(polygons: GeometryArray, crs: CRSLike) -> DoubleArray:
    """Measure many small polygons on the ellipsoid all at once.

    Vertices go to the cylinder that keeps the ellipsoid's areas, where edges are taken straight:
    for things of up to some hundred metres that is right to 1e-5. Larger ones, and those at a
    pole, are measured one by one, as `ellipsoid_area_m2` does. The antimeridian is no border.

    Parameters
    ----------
    polygons : ndarray
        (n,) valid Polygons and MultiPolygons.
    crs : pyproj.CRS or str or int
        CRS of the polygons.

    Returns
    -------
    ndarray
        (n,) square metres; 0 where empty.

    Raises
    ------
    RegionError
        If the CRS is not tied to the earth or a vertex is not on it.

    References
    ----------
    Snyder, Map Projections: A Working Manual (1987), equation 3-12, as EPSG method 9835.
    """
    base, geod = _earth_of(pyproj.CRS.from_user_input(crs))
    lonlat = project(polygons, crs, base, densify=False, repair=False)
    unit = base.axis_info[0].unit_conversion_factor
    xy, owner = shapely.get_coordinates(lonlat, return_index=True)
    if not len(xy):
        return np.zeros(len(polygons))
    starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    first = np.zeros(len(polygons))
    first[owner[starts]] = xy[starts, 0]
    turn = turn_of(base)
    east = (xy[:, 0] - first[owner] + turn / 2) % turn - turn / 2
    sine, e = np.sin(xy[:, 1] * unit), np.sqrt(geod.es)
    q = (1 - geod.es) * (sine / (1 - geod.es * sine**2)) + (
        (1 - geod.es) / e * np.arctanh(e * sine) if e else sine
    )
    # relative to the first vertex, or the digits would go to the distance from the equator
    base_q = np.zeros(len(polygons))
    base_q[owner[starts]] = q[starts]
    plane = np.column_stack([geod.a * unit * east, geod.a / 2 * (q - base_q[owner])])
    areas = np.abs(shapely.area(shapely.set_coordinates(lonlat.copy(), plane)))
    span = np.maximum.reduceat(plane, starts) - np.minimum.reduceat(plane, starts)
    # the pole itself is kept finite
    lat = np.minimum(np.abs(xy[starts, 1] * unit), np.radians(89.99))
    size = np.maximum(span[:, 0] * np.cos(lat), span[:, 1] / np.cos(lat))
    large = owner[starts[size * (1 + np.tan(lat)) > _BENT_M]]
    areas[large] = ellipsoid_area_m2(polygons[large], crs)
    return np.asarray(areas)


def _earth_of(source: pyproj.CRS) -> tuple[pyproj.CRS, pyproj.Geod]:
    """Return the geographic CRS below a CRS and its ellipsoid; refuse a CRS without."""
    base, geod = in_degrees(source), source.get_geod()
    if base is None or geod is None:
        raise RegionError(
            f"CRS '{source.name}' is not tied to the earth, so areas in m2 are unknown; "
            "give a geographic or projected CRS"
        )
    return base, geod
