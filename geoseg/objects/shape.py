"""The last touch on outlines: holes, overlaps, right angles, fewer vertices.

Each step stands alone, takes and returns plain arrays, and knows nothing of tiles or files.
`finish_shapes` runs the wanted ones in the one order in which none undoes another::

    fill holes -> too small out -> right angles -> overlaps -> fewer vertices -> too small out

Every result depends on the objects alone, never on the order in which they are given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geoseg.errors import ConfigError
from geoseg.records import BoolArray, DoubleArray, GeometryArray, IntArray

SLIVER_SHARE = 0.1
"""What is left of an object under this share of its area, or of its mean width, is a sliver ..."""

SLIVER_WIDTH_SHARE = 0.25
"""... the mean width being twice the area by the perimeter."""

TOUCH = 1e-9
"""Ground shared by two objects under this share of the smaller one is rounding, no overlap."""

WALL_PX = 1e-6
"""Outlines this close run along the same wall: cutting one along the other rounds this little."""

NEAR_PX = 2.0
"""Objects further apart than this and twice the tolerance never meet by simplification."""

STEP_SHARE = 0.09
"""Steps shorter than this share of the square root of the area are smoothed away, or ..."""

STEP_PX = 2.0
"""... shorter than this, whichever is more."""

MIN_ALIGNMENT = 0.4
"""How well edges agree on two directions, 0 (a circle, a hexagon) to 1 (right angles only)."""

RECTANGLE_GIVE = 0.01
"""A rectangle is preferred where its IoU is at most this much under that of more corners."""

GROWTH_PX = 32.0
"""A right-angled outline reaches no further than this out of the box of the outline found."""

LIGHT_SHARE = 0.125
"""Outlines are thinned to within this share of the step before walls are laid along them."""

VOTE_SHARE = 0.25
"""Their edges vote for a direction after thinning to within this share of the step."""

MAX_TURN = 0.2
"""The direction of the votes is corrected by no more than this, radians."""

CHUNK = 20_000
"""Polygons or pairs worked on at a time: bounds memory."""


@dataclass(frozen=True, slots=True)
class ShapeSettings:
    """What `finish_shapes` does to outlines.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    resolve_overlaps: bool = False
    """Give ground that several objects of one class claim to the best scored one."""
    simplify_px: float = 0.25
    """Vertices that matter less than this are left out, px of the grid; 0 keeps all."""
    regularize: bool = False
    """Right angles where an outline nearly has them; for buildings."""
    max_loss: float = 0.10
    """Regularized outlines with an IoU under 1 - max_loss to the outline as found are refused."""
    min_area_m2: float = 0.0
    """Smaller objects are dropped, m2."""
    max_hole_m2: float = 0.0
    """Holes up to this size are filled, m2."""

    def __post_init__(self) -> None:
        for name in ("simplify_px", "min_area_m2", "max_hole_m2"):
            _check_size(name, getattr(self, name))
        _check_loss(self.max_loss)


def finish_shapes(
    polygons: GeometryArray,
    scores: npt.NDArray[np.floating],
    labels: IntArray,
    settings: ShapeSettings,
    *,
    gsd_m: float,
) -> tuple[GeometryArray, BoolArray]:
    """Apply the wanted steps to stitched objects, once, when all that lie together are known.

    1. `fill_holes`: first, since a hole that resolving overlaps makes is another object's ground.
    2. Too small objects out: they take no ground from others.
    3. `regularize`: before overlaps, since straight walls of neighbours may cross.
    4. `resolve_overlaps`: neighbours share the wall along which one was cut.
    5. `simplify`: shared walls stay shared.
    6. Too small objects out again: what cutting left of them may be too small now.

    Parameters
    ----------
    polygons : ndarray of Polygon
        (n,) valid, grid px.
    scores : ndarray of float
        (n,).
    labels : ndarray of int
        (n,) class index.
    settings : ShapeSettings
        What to do.
    gsd_m : float
        Ground metres per grid px; > 0. Square metres become px with this one number: for a grid
        whose scale varies (EPSG:3857 over many degrees) sizes hold at the place of ``gsd_m``.

    Returns
    -------
    polygons : ndarray of Polygon
        (n,) in the order given, valid; as given, or as far as the steps went, where not kept.
    keep : ndarray of bool
        (n,) False = too small, or nothing but slivers left by better scored objects.

    Raises
    ------
    ConfigError
        If ``gsd_m`` or the columns' lengths do not fit.
    """
    out, keep = form_shapes(polygons, settings, gsd_m=gsd_m)
    _check_columns(polygons, scores, labels)
    rows = np.flatnonzero(keep)
    out[rows], left = fit_shapes(out[rows], scores[rows], labels[rows], settings, gsd_m=gsd_m)
    keep[rows] = left
    return out, keep


def form_shapes(
    polygons: GeometryArray, settings: ShapeSettings, *, gsd_m: float
) -> tuple[GeometryArray, BoolArray]:
    """Take the steps of `finish_shapes` that look at one object at a time: the first three.

    Parameters, errors and the first two results are those of `finish_shapes`.
    """
    if not (math.isfinite(gsd_m) and gsd_m > 0):
        raise ConfigError(f"gsd_m is {gsd_m}; expected ground metres per px above 0")
    out = fill_holes(polygons, settings.max_hole_m2 / gsd_m**2)
    keep = keep_large(shapely.area(out), settings.min_area_m2 / gsd_m**2)
    if settings.regularize:
        out[keep] = regularize(out[keep], max_loss=settings.max_loss)
    return out, keep


def fit_shapes(
    polygons: GeometryArray,
    scores: npt.NDArray[np.floating],
    labels: IntArray,
    settings: ShapeSettings,
    *,
    gsd_m: float,
) -> tuple[GeometryArray, BoolArray]:
    """Take the steps of `finish_shapes` in which neighbours matter: the last three.

    Parameters, errors and results are those of `finish_shapes`.
    """
    out = np.array(polygons, dtype=object)
    rows = np.arange(len(out))
    if settings.resolve_overlaps:
        out, left = resolve_overlaps(out, scores, labels)
        rows = rows[left]
    out[rows] = simplify(out[rows], settings.simplify_px)
    rows = rows[keep_large(shapely.area(out[rows]), settings.min_area_m2 / gsd_m**2)]
    keep = np.zeros(len(out), bool)
    keep[rows] = True
    return out, keep


def undecided_shapes(
    polygons: GeometryArray, open_ground: DoubleArray, settings: ShapeSettings
) -> BoolArray:
    """Say which objects may still get a neighbour that changes them in `fit_shapes`.

    `fit_shapes` of the others gives the same as of all at once, whatever comes to lie on the open
    ground later: no chain of neighbours leads there.

    Parameters
    ----------
    polygons : ndarray of Polygon
        (n,) from `form_shapes`, grid px.
    open_ground : ndarray (k, 4)
        Boxes x0, y0, x1, y1 in grid px in which objects may still appear.
    settings : ShapeSettings
        What `fit_shapes` will do.

    Returns
    -------
    ndarray of bool
        (n,).
    """
    undecided = np.zeros(len(polygons), bool)
    if len(open_ground) == 0 or len(polygons) == 0:
        return undecided
    # outlines move by about the tolerance, and what moves into a neighbour is put back with it
    reach = 2 * settings.simplify_px + NEAR_PX
    # objects that are still to come may grow out of the open ground when they get right angles
    grow = reach + (GROWTH_PX if settings.regularize else 0)
    boxes = shapely.box(*(open_ground + grow * np.array([-1, -1, 1, 1])).T)
    tree = shapely.STRtree(polygons)
    front = np.unique(tree.query(boxes)[1])
    while len(front):
        undecided[front] = True
        near = tree.query(polygons[front], predicate="dwithin", distance=reach)[1]
        front = np.unique(near[~undecided[near]])
    return undecided


def keep_large(areas: DoubleArray, min_area: float) -> BoolArray:
    """Say which objects are large enough.

    Parameters
    ----------
    areas : ndarray of float
        (n,) in any unit: px, or m2 on the ellipsoid.
    min_area : float
        In the same unit; at least 0.

    Returns
    -------
    ndarray of bool
        (n,) True where the area is not under ``min_area``.

    Raises
    ------
    ConfigError
        If ``min_area`` is negative or not a number.
    """
    _check_size("min_area", min_area)
    return np.asarray(np.asarray(areas) >= min_area)


def fill_holes(polygons: GeometryArray, max_area: float) -> GeometryArray:
    """Fill the holes of polygons up to a size.

    What stands in a filled hole is not looked at: a house in a courtyard smaller than ``max_area``
    overlaps its surroundings afterwards.

    Parameters
    ----------
    polygons : ndarray of Polygon
        (n,) valid, any unit.
    max_area : float
        Largest hole filled, in the unit of the polygons squared; 0 fills none, inf all.

    Returns
    -------
    ndarray of Polygon
        (n,) those without such holes are the very objects given.

    Raises
    ------
    ConfigError
        If ``max_area`` is negative or not a number.
    """
    _check_size("max_area", max_area, infinite=True)
    out = np.array(polygons, dtype=object)
    holed = np.flatnonzero(shapely.get_num_interior_rings(out) > 0)
    if max_area == 0 or len(holed) == 0:
        return out
    rings, owner = shapely.get_rings(out[holed], return_index=True)
    shell = np.diff(owner, prepend=-1) != 0
    keep = shell | (shapely.area(shapely.polygons(rings)) > max_area)
    lost = np.unique(owner[~keep])
    mine = keep & np.isin(owner, lost)
    if len(lost):
        out[holed[lost]] = shapely.polygons(rings[mine], indices=np.searchsorted(lost, owner[mine]))
    return out


def resolve_overlaps(
    polygons: GeometryArray, scores: npt.NDArray[np.floating], labels: IntArray
) -> tuple[GeometryArray, BoolArray]:
    """Give ground that several objects of one class claim to one of them.

    The better scored object keeps it (then the larger; then the outline decides), the other is cut
    along its outline and keeps its largest piece. Ground that falls off an object that way is free
    for the next one. An object inside a lower scored one leaves a hole in it. Of a row of
    overlapping objects each gives way only to what its betters really keep.

    An object is left out only if nothing or a sliver remains of it: under a tenth of its area, or
    under a quarter of its mean width. One that loses more than half and keeps a solid piece
    stays: two detectors' views of one thing are the stitcher's business, and an outline cut short
    is easier to see and mend than a missing one.

    Parameters
    ----------
    polygons : ndarray of Polygon
        (n,) valid, any unit.
    scores : ndarray of float
        (n,).
    labels : ndarray of int
        (n,) class index; objects of different classes may overlap.

    Returns
    -------
    polygons : ndarray of Polygon
        (n,) valid; those that give no ground are the very objects given, those left out too.
    keep : ndarray of bool
        (n,) False = left out.

    Raises
    ------
    ConfigError
        If the columns differ in length.
    """
    _check_columns(polygons, scores, labels)
    out = np.array(polygons, dtype=object)
    keep = np.ones(len(out), bool)
    a, b = _overlapping_pairs(out)
    same = np.asarray(labels)[a] == np.asarray(labels)[b]
    a, b = a[same], b[same]
    if len(a) == 0:
        return out, keep
    rows = np.unique(np.concatenate([a, b]))
    place = np.empty(len(out), np.int64)
    place[rows[_best_first(out[rows], np.asarray(scores)[rows])]] = np.arange(len(rows))
    swap = place[a] > place[b]
    better, worse = np.where(swap, b, a), np.where(swap, a, b)
    order = np.lexsort([place[better], worse])
    better, worse = better[order], worse[order]
    waiting = np.zeros(len(out), bool)
    waiting[worse] = True
    while len(worse):
        # whoever waits for no undecided better one is cut now, all of them at once
        blocked = np.zeros(len(out), bool)
        blocked[worse[waiting[better]]] = True
        turn = ~blocked[worse]
        _give_way(out, keep, better[turn], worse[turn])
        waiting[worse[turn]] = False
        better, worse = better[~turn], worse[~turn]
    return out, keep


def _best_first(polygons: GeometryArray, scores: npt.NDArray[np.floating]) -> IntArray:
    """Return the order by score, area and outline."""
    vertices = np.unique(shapely.to_wkb(shapely.normalize(polygons)), return_inverse=True)[1]
    area = shapely.area(polygons)
    return np.asarray(np.lexsort([vertices, -area, -scores.astype(np.float64)]), np.int64)


def _overlapping_pairs(polygons: GeometryArray) -> tuple[IntArray, IntArray]:
    """Return the pairs a < b that share more than a wall, sorted."""
    a, b = _near_pairs(polygons, 0.0)
    shared = np.zeros(len(a), bool)
    area = shapely.area(polygons)
    for start in range(0, len(a), CHUNK):
        part = slice(start, start + CHUNK)
        common = shapely.area(shapely.intersection(polygons[a[part]], polygons[b[part]]))
        shared[part] = common > TOUCH * np.minimum(area[a[part]], area[b[part]])
    return a[shared], b[shared]


def _give_way(out: GeometryArray, keep: BoolArray, better: IntArray, worse: IntArray) -> None:
    """Cut each ``worse`` (sorted) along all its ``better`` ones that are kept, in place."""
    standing = keep[better]
    better, worse = better[standing], worse[standing]
    if len(worse) == 0:
        return
    rows, starts, counts = np.unique(worse, return_index=True, return_counts=True)
    before = out[rows]
    after = before.copy()
    # one after the other: the union of outlines a rounding error apart can lose one of them
    for k in range(counts.max()):
        more = np.flatnonzero(counts > k)
        after[more] = shapely.difference(after[more], out[better[starts[more] + k]])
    after = largest_polygon(after)
    area, area_before = shapely.area(after), shapely.area(before)
    with np.errstate(invalid="ignore"):
        width = np.nan_to_num(2 * area / shapely.length(after))
    width_before = 2 * area_before / shapely.length(before)
    solid = (area >= SLIVER_SHARE * area_before) & (width >= SLIVER_WIDTH_SHARE * width_before)
    out[rows[solid]] = after[solid]
    keep[rows[~solid]] = False


def largest_polygon(geometries: GeometryArray) -> GeometryArray:
    """Repair what is invalid and keep of each geometry the largest polygon.

    Parameters
    ----------
    geometries : ndarray of geometry
        (n,) any unit.

    Returns
    -------
    ndarray of Polygon
        (n,) valid; valid polygons are the very objects given; empty where nothing has area.
    """
    out = np.array(geometries, dtype=object)
    bad = ~shapely.is_valid(out)
    # the other method takes a hole that touches the shell along a line for ground
    out[bad] = shapely.make_valid(out[bad], method="structure", keep_collapsed=False)
    for row in np.flatnonzero(shapely.get_type_id(out) != shapely.GeometryType.POLYGON):
        # twice: a collection may hold multipolygons
        parts = shapely.get_parts(shapely.get_parts(out[row]))
        parts = parts[np.argsort(shapely.to_wkb(parts), kind="stable")]
        areas = shapely.area(parts)
        out[row] = parts[np.argmax(areas)] if areas.max(initial=0) > 0 else shapely.Polygon()
    return out


def simplify(polygons: GeometryArray, tolerance_px: float) -> GeometryArray:
    """Leave out vertices, keep what touches touching, and let nothing overlap that did not.

    Objects that share a wall (their outlines run along each other, as after `resolve_overlaps`)
    are simplified together, by `shapely.coverage_simplify`: the wall stays one line, without gaps
    or overlaps. All others are simplified one by one (Douglas and Peucker), to within
    ``tolerance_px`` of their outline. Outlines of neighbours that the stitcher leaves are a
    fraction of a px apart or overlap: these share no wall, and stay as far apart, give or take the
    tolerance. Where that would make them overlap, they keep all their vertices, and so does what
    shares a wall with them.

    Parameters
    ----------
    polygons : ndarray of Polygon
        (n,) valid.
    tolerance_px : float
        In the unit of the polygons; 0 returns them as they are.

    Returns
    -------
    ndarray of Polygon
        (n,) valid.

    Raises
    ------
    ConfigError
        If ``tolerance_px`` is negative or not finite.

    Notes
    -----
    What shares a wall loses the corners whose triangle with both neighbours is smaller than
    ``tolerance_px`` squared (Visvalingam and Whyatt). That keeps more vertices and bounds no
    distance: on 1,400 roofs from a network, at 0.25 px, outlines moved by 0.05 px in the median
    and 0.6 px at most, and kept 91 vertices where Douglas and Peucker keep 57. Without
    `shapely.coverage_simplify` (shapely before 2.1, GEOS before 3.12) objects that share a wall
    keep all their vertices.
    """
    _check_size("tolerance_px", tolerance_px)
    given = np.array(polygons, dtype=object)
    if tolerance_px == 0 or len(given) == 0:
        return given
    noded, a, b = _share_corners(given)
    sharing = np.zeros(len(given), bool)
    sharing[a] = sharing[b] = True
    out = np.empty(len(given), object)
    out[~sharing] = _simplify_alone(given[~sharing], tolerance_px)
    out[sharing] = _simplify_together(noded[sharing], tolerance_px)
    group = _groups(len(given), a, b)
    wrong = ~shapely.is_valid(out) | (shapely.get_type_id(out) != shapely.GeometryType.POLYGON)
    wrong = np.isin(group, group[wrong | shapely.is_empty(out)])
    out[wrong] = given[wrong]
    return _put_back_new_overlaps(given, out, group)


def _simplify_alone(polygons: GeometryArray, tolerance_px: float) -> GeometryArray:
    """Simplify each polygon by itself: the quick way where that leaves its outline simple."""
    out = np.asarray(shapely.simplify(polygons, tolerance_px, preserve_topology=False), object)
    # GEOS mends what would cross itself and may drop a lobe; the careful way takes 8 times as long
    lost = np.abs(shapely.area(out) - shapely.area(polygons))
    doubtful = (lost > tolerance_px * shapely.length(polygons)) | ~shapely.is_valid(out)
    doubtful |= shapely.get_num_interior_rings(out) != shapely.get_num_interior_rings(polygons)
    doubtful |= shapely.get_type_id(out) != shapely.GeometryType.POLYGON
    out[doubtful] = shapely.simplify(polygons[doubtful], tolerance_px, preserve_topology=True)
    return out


def _has_coverage_simplify() -> bool:
    """Say whether this shapely can simplify neighbours together."""
    return hasattr(shapely, "coverage_simplify") and shapely.geos_version >= (3, 12, 0)


def _near_pairs(polygons: GeometryArray, distance: float) -> tuple[IntArray, IntArray]:
    """Return the pairs a < b no further apart than a distance, sorted."""
    tree = shapely.STRtree(polygons)
    if distance:
        a, b = tree.query(polygons, predicate="dwithin", distance=distance).astype(np.int64)
    else:
        a, b = tree.query(polygons, predicate="intersects").astype(np.int64)
    first = a < b
    a, b = a[first], b[first]
    order = np.lexsort([b, a])
    return a[order], b[order]


def _share_corners(polygons: GeometryArray) -> tuple[GeometryArray, IntArray, IntArray]:
    """Give neighbours each other's corners along their walls; return also who shares a wall.

    Cutting an object along another leaves new corners on the cut one only; neighbours that are to
    be simplified together must have the same vertices along their wall.
    """
    a, b = _near_pairs(polygons, WALL_PX)
    noded = polygons.copy()
    to, source = np.concatenate([a, b]), np.concatenate([b, a])
    corners, pair = shapely.get_coordinates(polygons[source], return_index=True)
    bounds = shapely.bounds(polygons)[to[pair]]
    near = ((corners >= bounds[:, :2] - WALL_PX) & (corners <= bounds[:, 2:] + WALL_PX)).all(axis=1)
    corners, owner = corners[near], to[pair[near]]
    order = np.argsort(owner, kind="stable")
    rows, index = np.unique(owner[order], return_inverse=True)
    if len(rows):
        points = shapely.multipoints(corners[order], indices=index)
        noded[rows] = shapely.snap(polygons[rows], points, WALL_PX)
        broken = rows[~shapely.is_valid(noded[rows])]
        noded[broken] = polygons[broken]
    a, b = _shared_edges(noded[rows])
    return noded, rows[a], rows[b]


def _shared_edges(polygons: GeometryArray) -> tuple[IntArray, IntArray]:
    """Return the pairs a < b that have an edge in common."""
    rings, owner = shapely.get_rings(polygons, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    start = np.flatnonzero(ring[1:] == ring[:-1])
    ends = np.stack([xy[start], xy[start + 1]], axis=1)
    # an edge and the same edge walked backwards are one
    turned = (ends[:, 0, 0] > ends[:, 1, 0]) | (
        (ends[:, 0, 0] == ends[:, 1, 0]) & (ends[:, 0, 1] > ends[:, 1, 1])
    )
    ends[turned] = ends[turned, ::-1]
    columns = [owner[ring[start]].astype(np.float64), *ends.reshape(-1, 4).T]
    order = np.lexsort(columns)
    # ^ the last column weighs most: equal edges stand together, by owner
    edges, owners = ends.reshape(-1, 4)[order], owner[ring[start]][order]
    same = np.flatnonzero((edges[1:] == edges[:-1]).all(axis=1) & (owners[1:] != owners[:-1]))
    pairs = np.unique(np.stack([owners[same], owners[same + 1]], axis=1), axis=0)
    return pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)


def _simplify_together(polygons: GeometryArray, tolerance_px: float) -> GeometryArray:
    """Simplify neighbours as one coverage, in an order of their own."""
    if len(polygons) == 0 or not _has_coverage_simplify():
        return polygons
    order = np.argsort(shapely.to_wkb(shapely.normalize(polygons)), kind="stable")
    out = np.empty(len(polygons), object)
    out[order] = shapely.coverage_simplify(polygons[order], tolerance_px)
    return out


def _groups(n: int, a: IntArray, b: IntArray) -> IntArray:
    """Label the groups of rows that pairs connect."""
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _put_back_new_overlaps(
    given: GeometryArray, out: GeometryArray, group: IntArray
) -> GeometryArray:
    """Undo the groups of which a member overlaps what it did not overlap before."""
    area = shapely.area(given)
    a, b = _overlapping_pairs(out)
    while len(a):
        before = shapely.area(shapely.intersection(given[a], given[b]))
        new = before <= TOUCH * np.minimum(area[a], area[b])
        undo = np.isin(group, group[np.concatenate([a[new], b[new]])])
        undo &= out != given
        if not undo.any():
            break
        out[undo] = given[undo]
        # what was put back may overlap other neighbours now
        a, b = _overlapping_pairs(out)
    return out


def regularize(
    polygons: GeometryArray, *, max_loss: float = 0.10, step_px: float = STEP_PX
) -> GeometryArray:
    """Give right angles to outlines that nearly have them: buildings.

    The edges of an outline vote, by length and modulo 90 degrees, for its direction, which is then
    fitted to its walls. Every edge is turned to the nearer of the two axes, edges in a row on one
    axis become one, steps shorter than ``step_px`` (or a share of the square root of the area,
    `STEP_SHARE`) are smoothed away, and neighbouring edges meet in corners. Holes are treated
    alike. Where that has more than four corners, the rectangle that is left when all steps are
    smoothed away replaces it if its IoU is hardly lower (`RECTANGLE_GIVE`). The result is taken if
    its IoU with the outline given reaches 1 - ``max_loss``.

    What has no two directions stays as it was: round, hexagonal or ragged outlines, whose edges
    agree too little, and those whose right-angled version would lose more than ``max_loss``.

    Parameters
    ----------
    polygons : ndarray of Polygon
        (n,) valid, px.
    max_loss : float
        Largest loss of IoU against the outline given, 0 to 1.
    step_px : float
        Steps shorter than this are taken for noise, px.

    Returns
    -------
    ndarray of Polygon
        (n,) valid; where refused, the very objects given. Each depends on its own row alone, so
        walls of neighbours may come to overlap: `resolve_overlaps` after this.

    Raises
    ------
    ConfigError
        If ``max_loss`` or ``step_px`` is out of range.
    """
    _check_loss(max_loss)
    _check_size("step_px", step_px)
    out = np.array(polygons, dtype=object)
    for start in range(0, len(out), CHUNK):
        part = slice(start, start + CHUNK)
        out[part] = _regularize(out[part], max_loss, step_px)
    return out


def _regularize(polygons: GeometryArray, max_loss: float, step_px: float) -> GeometryArray:
    """See `regularize`."""
    out = polygons.copy()
    area = shapely.area(polygons)
    step = np.maximum(step_px, STEP_SHARE * np.sqrt(area))
    light = shapely.simplify(polygons, step * LIGHT_SHARE, preserve_topology=True)
    angle, alignment = _direction(shapely.simplify(light, step * VOTE_SHARE))
    single = shapely.get_type_id(light) == shapely.GeometryType.POLYGON
    rows = np.flatnonzero((alignment >= MIN_ALIGNMENT) & (area > 0) & single)
    if len(rows) == 0:
        return out
    polygons, light, angle, step = polygons[rows], light[rows], angle[rows], step[rows]
    turn = _tilt(light, angle, step)
    angle = angle + np.where(np.abs(turn) < MAX_TURN, turn, 0)
    chosen = _right_angled(light, angle, step)
    fit = _iou(polygons, chosen)
    angular = np.flatnonzero(shapely.get_num_coordinates(chosen) != 5)
    if len(angular):
        endless = np.full(len(angular), np.inf)
        plain = _right_angled(light[angular], angle[angular], endless, shells_only=True)
        plain_fit = _iou(polygons[angular], plain)
        better = plain_fit >= fit[angular] - RECTANGLE_GIVE
        chosen[angular[better]], fit[angular[better]] = plain[better], plain_fit[better]
    good = (fit >= 1 - max_loss) & (_growth(polygons, chosen) <= GROWTH_PX)
    out[rows[good]] = chosen[good]
    return out


def _growth(polygons: GeometryArray, others: GeometryArray) -> DoubleArray:
    """Return by how much the box of each other outline reaches out of the first one's."""
    beyond = (shapely.bounds(others) - shapely.bounds(polygons)) * np.array([-1, -1, 1, 1])
    # a missing outline has no bounds and fits nothing anyway
    return np.asarray(np.nan_to_num(beyond).max(axis=1, initial=0))


def _iou(polygons: GeometryArray, others: GeometryArray) -> DoubleArray:
    """Return the IoU, row by row; 0 where the other is missing or not valid."""
    fit = np.zeros(len(polygons))
    # GEOS calls a missing geometry not valid
    sound = np.flatnonzero(shapely.is_valid(others))
    common = shapely.area(shapely.intersection(polygons[sound], others[sound]))
    both = shapely.area(polygons[sound]) + shapely.area(others[sound])
    fit[sound] = common / (both - common)
    return fit


def _direction(polygons: GeometryArray) -> tuple[DoubleArray, DoubleArray]:
    """Return the angle, modulo 90 degrees, on which edges agree (radians), and how well, 0 to 1."""
    xy, owner = shapely.get_coordinates(polygons, return_index=True)
    rings = shapely.get_rings(polygons)
    ring = np.repeat(np.arange(len(rings)), shapely.get_num_coordinates(rings))
    edge = np.flatnonzero(ring[1:] == ring[:-1])
    dx, dy = (xy[edge + 1] - xy[edge]).T
    length = np.hypot(dx, dy)
    turn = 4 * np.arctan2(dy, dx)
    n = len(polygons)
    # long edges say more than the corners of a traced grid: the square of the length
    real = np.bincount(owner[edge], length**2 * np.cos(turn), minlength=n)
    imag = np.bincount(owner[edge], length**2 * np.sin(turn), minlength=n)
    total = np.bincount(owner[edge], length**2, minlength=n)
    agreement = np.divide(np.hypot(real, imag), total, where=total > 0, out=np.zeros(n))
    return np.arctan2(imag, real) / 4, agreement


def _turned_runs(
    polygons: GeometryArray, angle: DoubleArray, step: DoubleArray, *, shells_only: bool = False
) -> tuple[_Runs, IntArray]:
    """Return the outlines as runs along the axes of an angle, steps smoothed, and ring owners.

    Coordinates are relative to the polygons' centroids and turned back by the angle.
    """
    if shells_only:
        polygons = shapely.polygons(shapely.get_exterior_ring(polygons))
    rings, owner = shapely.get_rings(polygons, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    of = owner[ring]
    x, y = (xy - shapely.get_coordinates(shapely.centroid(polygons))[of]).T
    cos, sin = np.cos(angle)[of], np.sin(angle)[of]
    runs = _Runs.of(np.stack([cos * x + sin * y, cos * y - sin * x], axis=1), ring)
    return _smooth_steps(runs, step[owner]), owner


def _tilt(polygons: GeometryArray, angle: DoubleArray, step: DoubleArray) -> DoubleArray:
    """Return by how much walls are still turned against an angle, radians.

    One slope is fitted to all walls of a polygon (least squares, each about its own middle), so
    long walls weigh most and the noise of single edges cancels.
    """
    # walls that a step parts must not be taken for one slanting wall
    runs, owner = _turned_runs(polygons, angle, step / 2)
    along, across = runs.sums[:, 1], runs.sums[:, 2]
    spread = runs.sums[:, 3] - along**2 / runs.sums[:, 0]
    slant = runs.sums[:, 4] - along * across / runs.sums[:, 0]
    n, of = len(polygons), owner[runs.ring]
    # turning a wall along y to the left moves its upper end to smaller x
    total = np.bincount(of, np.where(runs.flat, slant, -slant), minlength=n)
    spread = np.bincount(of, spread, minlength=n).astype(np.float64)
    return np.asarray(np.divide(total, spread, where=spread > 0, out=np.zeros(n)))


def _right_angled(
    polygons: GeometryArray, angle: DoubleArray, step: DoubleArray, *, shells_only: bool = False
) -> GeometryArray:
    """Snap all edges to the axes of an angle; None where less than four edges are left."""
    runs, owner = _turned_runs(polygons, angle, step, shells_only=shells_only)
    out = np.full(len(polygons), None, object)
    if len(runs.ring) == 0:
        return out
    of = owner[runs.ring]
    x, y = runs.corners().T
    cos, sin = np.cos(angle)[of], np.sin(angle)[of]
    placed = np.stack([cos * x - sin * y, sin * x + cos * y], axis=1)
    placed += shapely.get_coordinates(shapely.centroid(polygons))[of]
    kept, index = np.unique(runs.ring, return_inverse=True)
    # holes go with their shell
    shell = np.diff(owner, prepend=-1) != 0
    alive = np.isin(owner[kept], owner[kept[shell[kept]]])
    lines = shapely.linearrings(placed, indices=index)[alive]
    rows, index = np.unique(owner[kept][alive], return_inverse=True)
    if len(rows):
        out[rows] = shapely.polygons(lines, indices=index)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class _Runs:
    """Outlines as stretches that run along the x axis and along the y axis in turns.

    Rows stand in order around each ring; the last one of a ring is followed by the first.
    """

    ring: IntArray
    flat: BoolArray
    """Along the x axis; a ring's rows alternate."""
    sums: DoubleArray
    """(n, 5) integrals over its edges of 1, u, v, u * u and u * v: u along the axis, v across."""

    @classmethod
    def of(cls, xy: DoubleArray, ring: IntArray) -> _Runs:
        """Build from closed rings; rings with fewer than four runs are left out."""
        edge = np.flatnonzero(ring[1:] == ring[:-1])
        if len(edge) == 0:
            return cls(np.zeros(0, np.int64), np.zeros(0, bool), np.zeros((0, 5)))
        step = xy[edge + 1] - xy[edge]
        flat = np.abs(step[:, 0]) >= np.abs(step[:, 1])
        ring = ring[edge]
        first = np.diff(ring, prepend=-1) != 0
        starts = first.copy()
        starts[1:] |= flat[1:] != flat[:-1]
        run = np.cumsum(starts) - 1
        # the end of a ring may go on in its beginning
        head = np.flatnonzero(first)
        tail = np.append(head[1:], len(ring)) - 1
        joins = (flat[head] == flat[tail]) & (run[head] != run[tail])
        target = np.arange(run[-1] + 1)
        target[run[tail[joins]]] = run[head[joins]]
        kept, run = np.unique(target[run], return_inverse=True)
        sums = _integrals(xy[edge], step, flat)
        totals = np.stack([np.bincount(run, column) for column in sums.T], axis=1)
        begins = np.flatnonzero(starts)[kept]
        runs = cls(ring[begins], flat[begins], totals.astype(np.float64))
        return runs.take(np.bincount(runs.ring)[runs.ring] >= 4)

    def take(self, rows: BoolArray | IntArray) -> _Runs:
        """Return the given rows."""
        return _Runs(*(getattr(self, name)[rows] for name in self.__slots__))

    @property
    def offset(self) -> DoubleArray:
        """Where each run lies across its axis."""
        return np.asarray(self.sums[:, 2] / self.sums[:, 0])

    def neighbours(self) -> tuple[IntArray, IntArray]:
        """Return the rows before and after each, around its ring."""
        n = len(self.ring)
        head = np.flatnonzero(np.diff(self.ring, prepend=-1) != 0)
        tail = np.append(head[1:], n) - 1
        before, after = np.arange(n) - 1, np.arange(n) + 1
        before[head], after[tail] = tail, head
        return before, after

    def corners(self) -> DoubleArray:
        """Return where each run meets the next: (n, 2)."""
        offset = self.offset
        _, after = self.neighbours()
        x = np.where(self.flat, offset[after], offset)
        y = np.where(self.flat, offset, offset[after])
        return np.stack([x, y], axis=1)


def _integrals(start: DoubleArray, step: DoubleArray, flat: BoolArray) -> DoubleArray:
    """Return the integrals that `_Runs.sums` adds up, (n, 5), over single edges."""
    middle = start + step / 2
    u, v = np.where(flat[:, None], middle, middle[:, ::-1]).T
    du, dv = np.where(flat[:, None], step, step[:, ::-1]).T
    weight = np.abs(du)
    columns = [np.ones_like(u), u, v, u * u + du * du / 12, u * v + du * dv / 12]
    return np.asarray(np.stack(columns, axis=1) * weight[:, None])


def _smooth_steps(runs: _Runs, step: DoubleArray) -> _Runs:
    """Take out the shortest run of each ring, again and again, until none is under its step.

    The runs before and after it become one, at their mean weighted by length.
    """
    done: list[_Runs] = []
    while len(runs.ring):
        before, after = runs.neighbours()
        offset = runs.offset
        length = np.abs(offset[after] - offset[before])
        head = np.flatnonzero(np.diff(runs.ring, prepend=-1) != 0)
        sizes = np.diff(np.append(head, len(runs.ring)))
        shortest = np.minimum.reduceat(length, head)
        open_ = (shortest < step[runs.ring[head]]) & (sizes > 4)
        goes_on = np.repeat(open_, sizes)
        done.append(runs.take(~goes_on))
        is_shortest = goes_on & (length == np.repeat(shortest, sizes))
        gone = np.flatnonzero(is_shortest)
        # of equals the first
        gone = gone[np.diff(runs.ring[gone], prepend=-1) != 0]
        into, other = before[gone], after[gone]
        runs.sums[into] += runs.sums[other]
        goes_on[gone] = goes_on[other] = False
        runs = runs.take(goes_on)
    if not done:
        return runs
    joined = _Runs(*(np.concatenate([getattr(d, f) for d in done]) for f in _Runs.__slots__))
    return joined.take(np.argsort(joined.ring, kind="stable"))


def _check_columns(
    polygons: GeometryArray, scores: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> None:
    """Refuse columns of different length."""
    if not len(polygons) == len(scores) == len(labels):
        raise ConfigError(
            f"{len(polygons)} polygons, {len(scores)} scores and {len(labels)} labels; "
            "give one of each per object"
        )


def _check_size(name: str, value: float, *, infinite: bool = False) -> None:
    """Refuse sizes under 0, NaN and, unless allowed, infinity."""
    if not value >= 0 or (math.isinf(value) and not infinite):
        raise ConfigError(f"{name} is {value}; expected a number, 0 or more")


def _check_loss(value: float) -> None:
    """Refuse losses outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(f"max_loss is {value}; expected 0 to 1, a share of the IoU")
