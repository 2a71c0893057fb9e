"""The earth is round: outlines keep their course in another CRS, and are cut where maps end.

Pure geometry, for every room: what is placed, written as GeoJSON or counted in may cross the
antimeridian or hold a pole.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyproj
import shapely

from geoseg.records import BoolArray, DoubleArray, GeometryArray, IntArray

_AT_POLE = 1e-9
"""Share of a turn: what is this near to a pole is the pole, where any longitude is right."""

_TORN = 0.25
"""Of its length: an edge whose middle leaves it so far runs over the end of the map."""
_HAIR = 3e-12
"""Share of a turn, a tenth of a millimetre: so far from the end of a map outlines end."""
_MOST_PIECES = 4096
_PASSES = 3


@lru_cache(maxsize=64)
def way_between(source: pyproj.CRS, target: pyproj.CRS) -> pyproj.Transformer:
    """Return the way from one CRS to another, x first; made once, which takes milliseconds."""
    return pyproj.Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=64)
def in_degrees(crs: pyproj.CRS) -> pyproj.CRS | None:
    """Return the geographic CRS below a CRS, of the same datum, in degrees.

    That of old French maps is in grads, that of a turned pole has latitudes of its own.

    Parameters
    ----------
    crs : pyproj.CRS
        Any.

    Returns
    -------
    pyproj.CRS or None
        Longitudes count from its own prime meridian; None where the CRS is not tied to the earth.
    """
    base = crs.geodetic_crs
    while base is not None and base.is_derived and base.source_crs is not None:
        base = base.source_crs
    if base is None or all(axis.unit_name == "degree" for axis in base.axis_info[:2]):
        return base
    about = base.to_json_dict()
    for axis in about.get("coordinate_system", {}).get("axis", [])[:2]:
        axis["unit"] = "degree"
    # with it, PROJ would take the CRS for the one in grads
    about.pop("id", None)
    return pyproj.CRS.from_json_dict(about)


def torn(lonlat: GeometryArray, turn: float = 360.0) -> BoolArray:
    """Say which geometries have an edge of more than half a turn: a short one, told the long way.

    Parameters
    ----------
    lonlat : ndarray of geometry
        (n,) longitude first.
    turn : float
        Once around, in the unit of the coordinates.

    Returns
    -------
    ndarray of bool
        (n,).
    """
    result = np.zeros(len(lonlat), bool)
    parts, owner = shapely.get_parts(lonlat, return_index=True)
    rings, part = _lines_of(parts)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    leaps = (np.abs(np.diff(xy[:, 0])) > turn / 2) & (ring[1:] == ring[:-1])
    result[owner[part[ring[1:][leaps]]]] = True
    return result


def _lines_of(parts: GeometryArray) -> tuple[GeometryArray, IntArray]:
    """Return the rings of polygons, and lines as they are, with the row of each."""
    rings, part = shapely.get_rings(parts, return_index=True)
    lines = np.flatnonzero(shapely.get_dimensions(parts) == 1)
    if not len(lines):
        return rings, part
    return np.concatenate([rings, parts[lines]]), np.concatenate([part, lines])


def cut_at_seam(
    lonlat: GeometryArray, *, turn: float = 360.0, west: float | None = None, short_way: bool = True
) -> GeometryArray:
    """Cut polygons where longitudes begin again, so that none reaches over it.

    Parameters
    ----------
    lonlat : ndarray of Polygon or MultiPolygon
        (n,) longitude first; longitudes may go on beyond a turn, as from 179 to 181.
    turn : float
        Once around, in the unit of the coordinates: 360 for degrees.
    west : float, optional
        Where longitudes begin; by default half a turn west of 0.
    short_way : bool
        Take an edge of more than half a turn for the short one over the seam; a ring that goes
        once around holds the nearer pole. Without it, edges are what their numbers say.

    Returns
    -------
    ndarray of Polygon or MultiPolygon
        (n,) valid, with longitudes in [west, west + turn]; what needs no cut is the very object
        given.

    Examples
    --------
    >>> fiji = shapely.box(178.0, -17.0, 182.0, -16.0)
    >>> sorted(part.bounds for part in cut_at_seam(np.array([fiji]))[0].geoms)
    [(-180.0, -17.0, -178.0, -16.0), (178.0, -17.0, 180.0, -16.0)]
    """
    west = -turn / 2 if west is None else west
    out = np.array(lonlat, dtype=object)
    left, _, right, _ = shapely.bounds(out).T
    odd = torn(out, turn) | _at_pole(out, turn) if short_way else np.zeros(len(out), bool)
    with np.errstate(invalid="ignore"):
        rounds = np.floor((left - west) / turn)
        inside = right <= west + (rounds + 1) * turn
        within = (left >= west) & (right <= west + turn)
    moved = np.flatnonzero(~odd & inside & ~within)
    if len(moved):
        out[moved] = _shifted(out[moved], -rounds[moved] * turn)
    for row in np.flatnonzero(odd | ~(inside | within | ~np.isfinite(left))):
        cut = _cut(out[row], turn, west, short_way=short_way)
        # what goes around the whole earth has no short way
        out[row] = out[row] if shapely.is_empty(cut) else cut
    return out


def _at_pole(lonlat: GeometryArray, turn: float) -> BoolArray:
    """Say which geometries have a vertex at a pole."""
    xy, owner = shapely.get_coordinates(lonlat, return_index=True)
    result = np.zeros(len(lonlat), bool)
    result[owner[turn / 4 - np.abs(xy[:, 1]) < _AT_POLE * turn]] = True
    return result


def _shifted(polygons: GeometryArray, by: DoubleArray) -> GeometryArray:
    """Return polygons with other longitudes."""
    xy, owner = shapely.get_coordinates(polygons, return_index=True)
    xy[:, 0] += by[owner]
    return np.asarray(shapely.set_coordinates(polygons.copy(), xy), dtype=object)


def _cut(shape: shapely.Geometry, turn: float, west: float, *, short_way: bool) -> shapely.Geometry:
    """Return the parts of one geometry, each within one turn."""
    pieces = []
    # twice: a collection may hold multipolygons
    for part in shapely.get_parts(shapely.get_parts(shape)):
        lines = shapely.get_rings(part) if shapely.get_type_id(part) == 3 else [part]
        areas = [_within(line, part, turn, west, short_way=short_way) for line in lines]
        whole = areas[0] if areas else part
        for hole in areas[1:]:
            whole = shapely.difference(whole, hole)
        pieces.append(whole)
    return _of_dimension(shapely.union_all(pieces), shapely.get_dimensions(shape))


def _within(
    line: shapely.Geometry, part: shapely.Geometry, turn: float, west: float, *, short_way: bool
) -> shapely.Geometry:
    """Return the area within one ring of a polygon, or another part, in one turn."""
    xy = shapely.get_coordinates(line)
    dimension = shapely.get_dimensions(part)
    if short_way and dimension:
        xy = _unwrapped(xy, turn, ring=dimension == 2)
    if dimension == 2:
        whole = shapely.make_valid(shapely.Polygon(xy), method="structure", keep_collapsed=False)
    else:
        whole = shapely.linestrings(xy) if dimension else part
    left, _, right, _ = shapely.bounds(whole)
    if not np.isfinite(left + right):
        return shapely.Polygon()
    pieces = []
    first = int(np.floor((left - west) / turn))
    for k in range(first, max(int(np.ceil((right - west) / turn)), first + 1)):
        start = west + k * turn
        piece = shapely.intersection(whole, shapely.box(start, -turn, start + turn, turn))
        pieces.append(shapely.transform(piece, lambda at, k=k: _moved_home(at, k, turn, west)))
    return _of_dimension(shapely.union_all(pieces), dimension)


def _moved_home(xy: DoubleArray, k: int, turn: float, west: float) -> DoubleArray:
    """Return coordinates k turns back; the seam itself stays exact."""
    return np.column_stack([np.clip(xy[:, 0] - k * turn, west, west + turn), xy[:, 1]])


def _unwrapped(xy: DoubleArray, turn: float, *, ring: bool) -> DoubleArray:
    """Return a line with longitudes counted on; a ring around a pole is closed over it."""
    pole = turn / 4
    if ring:
        xy = _poles_apart(xy, pole, turn)
    lon = np.unwrap(xy[:, 0], period=turn)
    drift = lon[-1] - lon[0]
    if not ring or abs(drift) < turn / 2:
        return np.column_stack([lon, xy[:, 1]])
    nearer = pole if xy[:, 1].mean() > 0 else -pole
    over = [[lon[-1], nearer], [lon[0], nearer], [lon[0], xy[0, 1]]]
    return np.concatenate([np.column_stack([lon, xy[:, 1]]), over])


def _poles_apart(xy: DoubleArray, pole: float, turn: float) -> DoubleArray:
    """Put two vertices for one at a pole: there an edge arrives on one meridian, leaves on another.

    The ring begins and ends elsewhere then.
    """
    at = np.abs(np.abs(xy[:, 1]) - pole) < _AT_POLE * turn
    if not at.any() or at.all():
        return xy
    start = int(np.flatnonzero(~at)[0])
    open_ring = np.roll(xy[:-1], -start, axis=0)
    ring = np.concatenate([open_ring, open_ring[:1]])
    at = np.abs(np.abs(ring[:, 1]) - pole) < _AT_POLE * turn
    before = np.maximum.accumulate(np.where(at, 0, np.arange(len(ring))))
    after = np.minimum.accumulate(np.where(at, len(ring) - 1, np.arange(len(ring)))[::-1])[::-1]
    twice: IntArray = np.repeat(np.arange(len(ring)), np.where(at, 2, 1))
    second = np.r_[False, twice[1:] == twice[:-1]]
    result = ring[twice]
    source = np.where(second, after[twice], before[twice])
    result[at[twice], 0] = ring[source[at[twice]], 0]
    return result


def _of_dimension(shape: shapely.Geometry, dimension: int) -> shapely.Geometry:
    """Return the points, lines or polygons of a geometry, as one."""
    parts = shapely.get_parts(shapely.get_parts(np.array([shape], dtype=object)))
    parts = parts[(shapely.get_dimensions(parts) == dimension) & ~shapely.is_empty(parts)]
    if not len(parts):
        return shapely.Polygon()
    many = (shapely.multipoints, shapely.multilinestrings, shapely.multipolygons)[dimension]
    return parts[0] if len(parts) == 1 else many(parts)


def turn_of(crs: pyproj.CRS) -> float:
    """Return once around the earth in the units of a geographic CRS."""
    return float(2 * np.pi / crs.axis_info[0].unit_conversion_factor)


def difference_of_x(x: DoubleArray, crs: pyproj.CRS) -> DoubleArray:
    """Return differences of x: of longitudes, once around is nothing."""
    if not crs.is_geographic:
        return x
    turn = turn_of(crs)
    with np.errstate(invalid="ignore"):
        return np.asarray((x + turn / 2) % turn - turn / 2)


def in_one_turn(polygons: GeometryArray, crs: pyproj.CRS) -> GeometryArray:
    """Cut polygons of a geographic CRS at the antimeridian; those of others stay as they are."""
    return cut_at_seam(polygons, turn=turn_of(crs)) if crs.is_geographic else polygons


def projected(
    polygons: GeometryArray, source: pyproj.CRS, target: pyproj.CRS, bend: float
) -> GeometryArray:
    """Bring polygons to another CRS as they lie on the ground.

    Parameters
    ----------
    polygons : ndarray of Polygon or MultiPolygon
        (n,) edges are straight in `source`.
    source, target : pyproj.CRS
        Geographic or projected.
    bend : float
        Edges that would leave their course by more get vertices, units of `source`; > 0.

    Returns
    -------
    ndarray of geometry
        (n,) cut into parts where the target begins again: at the antimeridian, or where the map
        of a cylindrical or conic projection ends. Coordinates may be infinite where the target
        has no place.
    """
    way = way_between(source, target)
    if source.is_geographic:
        polygons = _joined(polygons, turn_of(source))
    dense, over = _following(polygons, way, source, target, bend)
    result = _moved(dense, way)
    if target.is_geographic:
        return in_one_turn(result, target)
    base = target.geodetic_crs
    if not over.any() or base is None:
        return result
    down, up = way_between(source, base), way_between(base, target)
    dense, _ = _following(polygons[over], down, source, base, bend)
    turn, west = turn_of(base), _seam_of(target, base)
    cut = cut_at_seam(_moved(dense, down), turn=turn, west=west)
    # from the very end of a map, rounding leaves no way back
    low, high = west + _HAIR * turn, west + (1 - _HAIR) * turn
    within = shapely.transform(
        cut, lambda xy: np.column_stack([xy[:, 0].clip(low, high), xy[:, 1]])
    )
    result[over] = _moved(np.asarray(within, dtype=object), up)
    return result


def _joined(lonlat: GeometryArray, turn: float) -> GeometryArray:
    """Put together what was cut at the antimeridian: elsewhere there is no end of the map.

    The halves would meet by a rounding only, and what lies on the seam might be in neither.
    """
    left, _, right, _ = shapely.bounds(lonlat).T
    several = shapely.get_type_id(lonlat) == shapely.GeometryType.MULTIPOLYGON
    out = lonlat.copy()
    for row in np.flatnonzero(several & (left == -turn / 2) & (right == turn / 2)):
        parts = shapely.get_parts(lonlat[row])
        low, _, high, _ = shapely.bounds(parts).T
        east = shapely.transform(
            parts[low + high < 0], lambda xy: xy + np.array([turn, 0.0], dtype=np.float64)
        )
        whole = shapely.union_all(np.concatenate([parts[low + high >= 0], east]))
        before, after = shapely.get_num_geometries(np.array([lonlat[row], whole]))
        if after < before and shapely.get_type_id(whole) in (3, 6):
            out[row] = whole
    return out


def _moved(polygons: GeometryArray, way: pyproj.Transformer) -> GeometryArray:
    """Return polygons with every vertex in another CRS."""
    moved = shapely.transform(polygons, lambda xy: _through(way, xy))
    return np.asarray(moved, dtype=object)


def _through(way: pyproj.Transformer, xy: DoubleArray, *, back: bool = False) -> DoubleArray:
    """Return (n, 2) points in another CRS."""
    x, y = way.transform(xy[:, 0], xy[:, 1], direction="INVERSE" if back else "FORWARD")
    return np.column_stack([x, y])


def _following(
    polygons: GeometryArray,
    way: pyproj.Transformer,
    source: pyproj.CRS,
    target: pyproj.CRS,
    bend: float,
) -> tuple[GeometryArray, BoolArray]:
    """Add vertices to edges that would leave their course; say which polygons are torn.

    The middle of each edge, as it lies in the target, is brought back: as far as it is from the
    middle in the source, the edge has bent. That goes down with the square of its length.
    """
    dense, over = polygons.copy(), np.zeros(len(polygons), bool)
    room = _MOST_VERTICES + 4 * int(shapely.get_num_coordinates(polygons).sum())
    for _ in range(_PASSES):
        start, end, owner, _ = _edges(dense)
        there = _through(way, np.concatenate([start, end]))
        there, step = there[: len(start)], there[len(start) :] - there[: len(start)]
        step[:, 0] = difference_of_x(step[:, 0], target)
        off = _through(way, there + step / 2, back=True) - (start + end) / 2
        off[:, 0] = difference_of_x(off[:, 0], source)
        side = end - start
        if source.is_geographic:
            # a degree of longitude is short near a pole, and nothing at it
            narrow = np.cos((start + end)[:, 1] / 2 * (2 * np.pi / turn_of(source)))
            off[:, 0] *= narrow
            side[:, 0] *= narrow
        away = np.nan_to_num(np.hypot(*off.T), nan=np.inf)
        length = np.hypot(*side.T)
        over[:] = False
        over[owner[away > _TORN * length]] = True
        # what is torn tells nothing of how it bends: by its length at most
        pieces = np.ceil(np.sqrt(np.minimum(away, length) / bend)).clip(1, _MOST_PIECES)
        pieces[~(away > bend) | ~np.isfinite(pieces)] = 1
        wanted = int(pieces.sum())
        if wanted > room:
            # towards a place at infinity an edge bends without end
            pieces = np.floor(pieces * (room / wanted)).clip(1)
        rows = np.unique(owner[pieces > 1])
        if not len(rows):
            break
        mine = np.isin(owner, rows)
        dense[rows] = _divided(dense[rows], pieces[mine].astype(np.int64))
        if wanted > room:
            break
    return dense, over


def _divided(polygons: GeometryArray, pieces: IntArray) -> GeometryArray:
    """Return polygons with each edge, in the order of `_edges`, divided into so many pieces."""
    start, end, _, ring = _edges(polygons)
    parts, owner = shapely.get_parts(polygons, return_index=True)
    _, part = shapely.get_rings(parts, return_index=True)
    edge = np.repeat(np.arange(len(pieces)), pieces)
    nth = np.arange(len(edge)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    share = (nth / pieces[edge])[:, None]
    # from the same end whichever way the edge runs: neighbours along it get the same vertices
    turned_round = ((start[:, 0] > end[:, 0]) | ((start == end)[:, 0] & (start > end)[:, 1]))[edge]
    low = np.where(turned_round[:, None], end[edge], start[edge])
    high = np.where(turned_round[:, None], start[edge], end[edge])
    way = np.where(turned_round[:, None], 1 - share, share)
    xy = np.where(share == 0, start[edge], low + way * (high - low))
    rings = shapely.linearrings(xy, indices=ring[edge])
    made = shapely.polygons(rings, indices=part)
    out = polygons.copy()
    single = shapely.get_type_id(polygons) == shapely.GeometryType.POLYGON
    out[single] = made[single[owner]]
    several = np.flatnonzero(~single)
    of_several = ~single[owner]
    out[several] = shapely.multipolygons(
        made[of_several], indices=np.searchsorted(several, owner[of_several])
    )
    return out


def _edges(polygons: GeometryArray) -> tuple[DoubleArray, DoubleArray, IntArray, IntArray]:
    """Return start and end of each edge, the row of its polygon, and the number of its ring."""
    parts, owner = shapely.get_parts(polygons, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    edge = np.flatnonzero(ring[1:] == ring[:-1])
    row = owner[part[ring[edge]]] if len(edge) else np.zeros(0, np.int64)
    return xy[edge], xy[edge + 1], row, ring[edge]


def _seam_of(crs: pyproj.CRS, base: pyproj.CRS) -> float:
    """Return the longitude at which the map of a projected CRS begins, in units of its base."""
    operation = crs.coordinate_operation
    unit = base.axis_info[0].unit_conversion_factor
    for param in [] if operation is None else operation.params:
        if "longitude" in param.name.lower():
            return float(param.value) * param.unit_conversion_factor / unit - turn_of(base) / 2
    return -turn_of(base) / 2


def turned(polygons: GeometryArray) -> GeometryArray:
    """Return polygons with shells against the clock and holes with it, as the OGC has them.

    Parameters
    ----------
    polygons : ndarray of Polygon or MultiPolygon
        (n,) in a plane with x to the east and y to the north.

    Returns
    -------
    ndarray of geometry
        (n,); those that were so already are the very objects given.
    """
    out = np.array(polygons, dtype=object)
    parts, owner = shapely.get_parts(out, return_index=True)
    if not len(parts):
        return out
    rings, part = shapely.get_rings(parts, return_index=True)
    shell = np.r_[True, part[1:] != part[:-1]] if len(part) else np.zeros(0, bool)
    wrong = np.unique(owner[part[shapely.is_ccw(rings) != shell]])
    # normalize turns shells with the clock and holes against it
    out[wrong] = shapely.reverse(shapely.normalize(out[wrong]))
    return out


_MOST_VERTICES = 50_000
"""What edges that bend may get in all, beside four for each that was there."""
