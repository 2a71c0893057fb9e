"""From fragments of tiles to objects: each thing on the ground once, whatever the tiling.

Masks are compared, never boxes, and only where both tiles looked::

    tile A |---------------------|
                 tile B  |---------------------|
                         |<----->|  the shared area: here both should show the same

Flow: pairs that overlap -> duplicates inside a tile -> matches across tiles -> components ->
one polygon each -> leftovers out. Every rule looks only at *linked* pairs (`_link`), so what is
not linked, directly or through others, never changes a result: that makes stitching in parts,
supertile by supertile, exactly the stitching of all at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.windows import Window
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geoseg.errors import ConfigError, TileError
from geoseg.objects.seams import SeamCounts, bin_distances, bin_sizes
from geoseg.objects.vectorize import vectorize
from geoseg.records import (
    BoolArray,
    DoubleArray,
    Fragments,
    GeometryArray,
    Instances,
    IntArray,
    Objects,
    Tile,
)

LINK_SHARE = 0.1
"""Pairs that share less of the smaller one (in the area both tiles saw) are strangers."""

MARGIN_PX = 12.0
"""Masks end up to this far short of a cut, and slivers this thin are blown up by networks."""

BEYOND_SHARE = 0.1
"""A member that lacks this share of its area, shown by a partner, is not the whole object."""

COVERED_SHARE = 0.5
"""A loose piece with this share of its area on another object is a piece of that object."""

RASTER_ROWS, RASTER_COLS = 32, 64
"""Grid on which the area common to two polygons is counted: one 64-bit word per row."""

THIN_SHARE = 0.15
"""Polygons that fill less than this share of that grid are intersected exactly."""

CHUNK = 256
"""Polygons measured at a time: what they need stays in the processor's cache."""


def stitch(
    fragments: Fragments | Sequence[Instances],
    tiles: Sequence[Tile],
    *,
    iou_threshold: float = 0.5,
    ios_threshold: float = 0.5,
    class_agnostic: bool = False,
    raster_shape: tuple[int, int] | None = None,
) -> Objects:
    """Join the fragments of overlapping tiles into objects.

    1. In one tile, of two fragments with IoU >= ``iou_threshold`` the better scored stays.
    2. Across tiles, a pair shows one object if, in the area both windows cover, the IoU reaches
       ``iou_threshold``, or, where one ends near its window's edge, the shared part reaches
       ``ios_threshold`` of the smaller. One best partner per fragment and other tile, mutual; a
       piece cut off by its window may join its best partner beside other pieces (both legs of a
       U join its foot).
    3. Connected components are objects. The best member that is whole stands for it: not cut,
       and showing what its partners show; deepest inside its window, then best scored. If none is
       whole the object is the union of its members.
    4. Pieces mostly covered by an object, and pieces outside their tile's core that no other
       tile confirms, are dropped.

    Parameters
    ----------
    fragments : Fragments, or sequence of Instances
        Polygons in grid px, from any detector (see `Fragments.from_polygons`), or masks: one
        `Instances` for each of ``tiles``, traced here at 0.5 (see `geoseg.vectorize` for more).
    tiles : sequence of Tile
        What ``fragments.tiles`` indexes.
    iou_threshold, ios_threshold : float
        In (0.1, 1]; lower joins more.
    class_agnostic : bool
        Let fragments of different classes be one object; the class with most area wins.
    raster_shape : tuple of int, optional
        (height, width) of the grid, for masks alone; without it where the cores end.

    Returns
    -------
    Objects
        In a fixed order (class, then place). Neither the order of fragments nor that of tiles
        changes the result.

    Raises
    ------
    ConfigError
        If a threshold is out of range.
    TileError
        If ``fragments.tiles`` points outside ``tiles``, or there is not one `Instances` per tile.

    Examples
    --------
    A roof from x = 40 to x = 130 in two windows that share 20 px; each shows what it sees:

    >>> from rasterio.windows import Window
    >>> tiles = [
    ...     Tile((0, 0), core=Window(0, 0, 90, 100), window=Window(0, 0, 100, 100)),
    ...     Tile((0, 1), core=Window(90, 0, 90, 100), window=Window(80, 0, 100, 100)),
    ... ]
    >>> found = Fragments.from_polygons(
    ...     [shapely.box(40, 20, 100, 50), shapely.box(80, 20, 130, 50)],
    ...     scores=[0.9, 0.8], labels=[0, 0], tiles=[0, 1], tile_list=tiles,
    ... )
    >>> roofs = stitch(found, tiles)
    >>> [roof.bounds for roof in roofs.polygons], roofs.n_parts.tolist()
    ([(40.0, 20.0, 130.0, 50.0)], [2])
    """
    _check_thresholds(iou_threshold, ios_threshold)
    scene = _lay_out(_traced(fragments, tiles, raster_shape), tiles)
    links, alive = _agreeing(scene, iou_threshold, class_agnostic=class_agnostic)
    return _solve(scene, links, alive, iou_threshold, ios_threshold)


def stitch_counted(
    fragments: Fragments | Sequence[Instances],
    tiles: Sequence[Tile],
    *,
    iou_threshold: float = 0.5,
    ios_threshold: float = 0.5,
    class_agnostic: bool = False,
    raster_shape: tuple[int, int] | None = None,
) -> tuple[Objects, SeamCounts]:
    """Stitch, and count how tiles agree where two of them looked.

    A trial is a fragment away from the cut sides of its own window (by more than `MARGIN_PX`) that
    lies whole in the window of another tile; a hit if that tile shows it too: a fragment of the
    same class with IoU >= ``iou_threshold`` in the area both cover. Duplicates inside a tile
    count once. Counts of the settled fragments of every supertile and of all the rest together
    (see `split_settled`) add up to the counts of all at once.

    Parameters
    ----------
    fragments, iou_threshold, ios_threshold, class_agnostic, raster_shape
        As in `stitch`.
    tiles : sequence of Tile
        What ``fragments.tiles`` indexes, and all other tiles that were looked at whose windows
        hold any of the fragments: a tile that shows nothing there counts. One listed twice counts
        once.

    Returns
    -------
    objects : Objects
        What `stitch` returns.
    counts : SeamCounts
        To be added to those of other parts; see `geoseg.objects.seams.seam_report`.

    Raises
    ------
    ConfigError, TileError
        As `stitch`.
    """
    _check_thresholds(iou_threshold, ios_threshold)
    scene = _lay_out(_traced(fragments, tiles, raster_shape), tiles)
    links, alive = _agreeing(scene, iou_threshold, class_agnostic=class_agnostic)
    objects = _solve(scene, links, alive, iou_threshold, ios_threshold)
    trials, hits = _agreement(scene, links, alive, tiles, iou_threshold)
    counts = SeamCounts(
        fragments=len(scene.fragments),
        objects=len(objects),
        joined=int(np.count_nonzero(objects.n_parts > 1)),
        incomplete=int(np.count_nonzero(~objects.complete)),
        trials=trials,
        hits=hits,
        sizes=bin_sizes(shapely.bounds(objects.polygons).reshape(-1, 4)),
    )
    return objects, counts


def _check_thresholds(iou_threshold: float, ios_threshold: float) -> None:
    """Refuse thresholds out of range."""
    for name, value in (("iou_threshold", iou_threshold), ("ios_threshold", ios_threshold)):
        if not LINK_SHARE < value <= 1:
            raise ConfigError(f"{name} is {value}; expected {LINK_SHARE} < {name} <= 1")


def _traced(
    fragments: Fragments | Sequence[Instances],
    tiles: Sequence[Tile],
    raster_shape: tuple[int, int] | None,
) -> Fragments:
    """Return fragments as they are, and masks as polygons."""
    if isinstance(fragments, Fragments):
        return fragments
    if isinstance(fragments, Instances) or not all(isinstance(i, Instances) for i in fragments):
        raise TileError(
            "stitch got neither Fragments nor a sequence of Instances; pass one Instances per "
            "tile, in the order of tiles, or see Fragments.from_polygons"
        )
    if len(fragments) != len(tiles):
        raise TileError(
            f"stitch got {len(fragments)} Instances but {len(tiles)} tiles; pass one for each "
            "tile, Instances.empty() where nothing was found"
        )
    if raster_shape is None:
        # cores partition the raster: it ends where the last of them do
        ends = _window_bounds([t.core for t in tiles])[:, 2:].max(axis=0, initial=0)
        raster_shape = int(ends[1]), int(ends[0])
    return Fragments.concatenate(
        [
            vectorize(found, tile, tile_row=row, raster_shape=raster_shape)
            for row, (found, tile) in enumerate(zip(fragments, tiles, strict=True))
        ]
    )


def _agreeing(
    scene: _Scene, iou_threshold: float, *, class_agnostic: bool
) -> tuple[_Links, BoolArray]:
    """Link fragments and suppress duplicates inside a tile; return links and who is left."""
    links = _link(scene, class_agnostic=class_agnostic)
    inside = links.take(links.same_tile)
    alive = _suppress(
        inside.a[inside.iou >= iou_threshold],
        inside.b[inside.iou >= iou_threshold],
        _rank(-scene.fragments.scores.astype(np.float64), -scene.area),
    )
    return links.take(alive[links.a] & alive[links.b]), alive


def _solve(
    scene: _Scene, links: _Links, alive: BoolArray, iou_threshold: float, ios_threshold: float
) -> Objects:
    """Make objects of linked fragments."""
    component = _components(scene, links, alive, iou_threshold, ios_threshold)
    whole = _whole_members(scene, links, component, alive)
    candidates = _assemble(scene, component, whole, alive)
    keep = _drop_leftovers(candidates, links, component, iou_threshold)
    return candidates.objects.take(_in_order(candidates, keep))


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """What fragments deep in their windows show to other tiles, one row per fragment and tile."""

    rows: IntArray
    """(n,) fragment, as a row of the caller's record."""
    distance: DoubleArray
    """(n,) from the fragment to the other tile's nearest side that a tile continues, px; inf:
    there is none."""
    partners: IntArray
    """(n,) what the other tile shows there of the same class, as a row; -1: nothing."""
    iou: DoubleArray
    """(n,) with the partner, in the area that both windows cover; 0 without one."""


def tile_trials(
    fragments: Fragments, tiles: Sequence[Tile], *, iou_threshold: float = 0.5
) -> Trials:
    """Ask of each fragment which other tiles saw the same ground whole, and what they show there.

    The trials that `stitch_counted` counts, one by one: where tiles disagree one of them is wrong,
    and no truth is needed to know that.

    Parameters
    ----------
    fragments, tiles
        As for `stitch_counted`.
    iou_threshold : float
        From which two fragments of one tile are one: the better scored stays.

    Returns
    -------
    Trials
        Of all fragments that are no duplicates and away from the cut sides of their window, for
        every other tile whose window holds them whole. The partner is the one with the highest
        IoU, however low.

    Raises
    ------
    ConfigError, TileError
        As `stitch`.
    """
    _check_thresholds(iou_threshold, iou_threshold)
    scene = _lay_out(fragments, tiles)
    links, alive = _agreeing(scene, iou_threshold, class_agnostic=False)
    shower, looker, distance, look = _shown(scene, alive, tiles)
    partners, iou = _best_shown(scene, links, look, shower, looker)
    known = partners >= 0
    partners[known] = scene.order[partners[known]]
    return Trials(scene.order[shower], distance, partners, iou)


def _best_shown(
    scene: _Scene, links: _Links, look: IntArray, shower: IntArray, looker: IntArray
) -> tuple[IntArray, DoubleArray]:
    """Return for each trial the fragment of the looker with the highest IoU, or -1, and its IoU."""
    n_looks = int(look.max(initial=0)) + 1
    source = np.concatenate([links.a, links.b])
    partner = np.concatenate([links.b, links.a])
    iou = np.tile(links.iou, 2)
    shown = source * n_looks + look[scene.fragments.tiles[partner]]
    order = np.lexsort([partner, -iou, shown])
    first = np.diff(shown[order], prepend=-1) != 0
    shown, partner, iou = (column[order][first] for column in (shown, partner, iou))
    trial = shower * n_looks + looker
    place = np.searchsorted(shown, trial)
    place[place == len(shown)] = 0
    if not len(shown):
        return np.full(len(trial), -1), np.zeros(len(trial))
    found = shown[place] == trial
    return np.where(found, partner[place], -1), np.where(found, iou[place], 0.0)


def _agreement(
    scene: _Scene, links: _Links, alive: BoolArray, tiles: Sequence[Tile], iou_threshold: float
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Count what fragments deep in their windows show to other tiles, and what of it those show.

    Both by distance to the other tile's nearest side that a tile continues.
    """
    shower, looker, distance, look = _shown(scene, alive, tiles)
    labels = scene.fragments.labels
    same = links.take((links.iou >= iou_threshold) & (labels[links.a] == labels[links.b]))
    _, iou = _best_shown(scene, same, look, shower, looker)
    return bin_distances(distance), bin_distances(distance[iou > 0])


def _shown(
    scene: _Scene, alive: BoolArray, tiles: Sequence[Tile]
) -> tuple[IntArray, IntArray, DoubleArray, IntArray]:
    """Pair fragments deep in their windows with the other tiles that saw them whole.

    Returns
    -------
    shower : ndarray
        (n,) row of the fragment in the scene.
    looker : ndarray
        (n,) the other tile, as a number that ``look`` gives.
    distance : ndarray
        (n,) to the looker's nearest side that a tile continues.
    look : ndarray
        (len(tiles),) number of each tile; one that several parts bring along has one.
    """
    windows = _window_bounds([t.window for t in tiles])
    cores = _window_bounds([t.core for t in tiles])
    looks, look = np.unique(np.concatenate([windows, cores], axis=1), axis=0, return_inverse=True)
    window, core, look = looks[:, :4], looks[:, 4:], look.reshape(-1)
    rows = np.flatnonzero(alive & ~scene.near_cut)
    shower, looker = _shown_to(scene.bounds[rows], look[scene.fragments.tiles[rows]], window)
    shower = rows[shower]
    bounds, other = scene.bounds[shower], window[looker]
    gaps = np.concatenate([bounds[:, :2] - other[:, :2], other[:, 2:] - bounds[:, 2:]], axis=1)
    distance = np.where((core == window)[looker], np.inf, gaps).min(axis=1, initial=np.inf)
    return shower, looker, distance, look


def _shown_to(bounds: DoubleArray, own: IntArray, window: DoubleArray) -> tuple[IntArray, IntArray]:
    """Return the rows of bounds that lie in another window than their own, and that window."""
    boxes, used = shapely.box(*window.T), np.unique(own)
    tile, near = shapely.STRtree(boxes).query(boxes[used])
    tile = used[tile]
    tile, near = tile[tile != near], near[tile != near]
    order = np.argsort(tile, kind="stable")
    near = near[order].astype(np.int64)
    count = np.bincount(tile, minlength=len(window))
    first = np.cumsum(count) - count
    found: list[tuple[IntArray, IntArray]] = []
    rows = np.arange(len(bounds))
    # the k-th neighbour of everyone's window at once: memory stays that of one column
    for k in range(count.max(initial=0)):
        rows = rows[count[own[rows]] > k]
        looker = near[first[own[rows]] + k]
        inside = _within(bounds[rows], window[looker])
        found.append((rows[inside], looker[inside]))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])


def interaction_components(
    fragments: Fragments, tiles: Sequence[Tile], *, class_agnostic: bool = False
) -> IntArray:
    """Label the groups of fragments that `stitch` may let influence each other.

    Stitching any union of whole groups gives exactly the objects that these groups give when all
    fragments are stitched at once.

    Parameters
    ----------
    fragments, tiles, class_agnostic
        As in `stitch`.

    Returns
    -------
    ndarray of int64
        (n,) group of each fragment, from 0.
    """
    scene = _lay_out(fragments, tiles)
    links = _link(scene, class_agnostic=class_agnostic)
    labels = np.empty(len(fragments), np.int64)
    labels[scene.order] = _connect(len(fragments), links.a, links.b)
    return labels


def split_settled(
    fragments: Fragments,
    tiles: Sequence[Tile],
    foreign_windows: Sequence[Window] | npt.NDArray[np.floating | np.integer],
    *,
    class_agnostic: bool = False,
) -> BoolArray:
    """Say which fragments of a supertile no other supertile can change any more.

    A fragment is settled if its whole interaction component stays clear of every foreign window:
    fragments of other tiles lie inside those. `stitch` of the settled ones of every supertile, and
    of all the rest together, give together what stitching all at once gives.

    Parameters
    ----------
    fragments, tiles, class_agnostic
        Of one supertile, as in `stitch`.
    foreign_windows : sequence of Window, or ndarray (k, 4)
        Windows of the tiles outside this supertile, or their x0, y0, x1, y1 in grid px.

    Returns
    -------
    ndarray of bool
        (n,), True = final here.
    """
    if len(fragments) == 0:
        return np.zeros(0, bool)
    scene = _lay_out(fragments, tiles)
    settled = np.empty(len(fragments), bool)
    settled[scene.order] = _settled(scene, foreign_windows, class_agnostic=class_agnostic)
    return settled


def _settled(
    scene: _Scene,
    foreign_windows: Sequence[Window] | npt.NDArray[np.floating | np.integer],
    *,
    class_agnostic: bool,
) -> BoolArray:
    """Say which fragments of a scene are settled, in the scene's order."""
    windows = _window_bounds(foreign_windows)
    n = len(scene.order)
    reached = np.zeros(n, bool)
    if len(windows):
        boxes = shapely.box(*scene.bounds.T)
        reached[shapely.STRtree(shapely.box(*windows.T)).query(boxes)[0]] = True
    links = _link(scene, class_agnostic=class_agnostic, wanted=reached)
    group = _connect(n, links.a, links.b)
    waiting = np.zeros(n, bool)
    waiting[group[reached]] = True
    return ~waiting[group]


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """Fragments in content order with what the rules ask of each."""

    fragments: Fragments
    order: IntArray
    """Row of each in the caller's record."""
    area: DoubleArray
    """Of the polygons, px."""
    bounds: DoubleArray
    window: DoubleArray
    """(n, 4) window of its tile."""
    core: DoubleArray
    """(n, 4) core of its tile."""
    depth: DoubleArray
    """Distance to the nearest side of the window that another tile continues."""

    @property
    def near_cut(self) -> BoolArray:
        """May be cut: ends at or near a side that another tile continues."""
        return self.fragments.cut | (self.depth <= MARGIN_PX)


@dataclass(frozen=True, slots=True, eq=False)
class _Links:
    """Pairs a < b that share ground, and how they agree in the area that both tiles saw."""

    a: IntArray
    b: IntArray
    same_tile: BoolArray
    iou: DoubleArray
    ios: DoubleArray
    a_larger: BoolArray

    def take(self, rows: BoolArray) -> _Links:
        """Return the given rows."""
        return _Links(*(getattr(self, name)[rows] for name in self.__slots__))


def _window_bounds(windows: Sequence[Window] | npt.NDArray[np.number]) -> DoubleArray:
    """Return x0, y0, x1, y1 of windows as float64 (k, 4)."""
    if isinstance(windows, np.ndarray):
        return windows.astype(np.float64).reshape(-1, 4)
    return np.array(
        [(w.col_off, w.row_off, w.col_off + w.width, w.row_off + w.height) for w in windows],
        np.float64,
    ).reshape(-1, 4)


def _lay_out(fragments: Fragments, tiles: Sequence[Tile]) -> _Scene:
    """Sort fragments by content and look up their tiles."""
    n = len(fragments)
    if n and not 0 <= fragments.tiles.min() <= fragments.tiles.max() < len(tiles):
        raise TileError(
            f"fragments.tiles runs from {fragments.tiles.min()} to {fragments.tiles.max()} but "
            f"{len(tiles)} tiles were given; pass the sequence of tiles that it indexes"
        )
    windows = _window_bounds([t.window for t in tiles])
    cores = _window_bounds([t.core for t in tiles])
    bounds = shapely.bounds(fragments.polygons).reshape(n, 4)
    area = np.asarray(shapely.area(fragments.polygons), np.float64)
    order = _content_order(fragments, bounds, area, windows)
    ordered, bounds, area = fragments.take(order), bounds[order], area[order]
    window, core = windows[ordered.tiles], cores[ordered.tiles]
    gaps = np.concatenate([bounds[:, :2] - window[:, :2], window[:, 2:] - bounds[:, 2:]], axis=1)
    # where core and window end together nothing continues: an edge of the raster
    depth = np.where(core == window, np.inf, gaps).min(axis=1, initial=np.inf)
    return _Scene(ordered, order, area, bounds, window, core, depth)


def _content_order(
    fragments: Fragments, bounds: DoubleArray, area: DoubleArray, windows: DoubleArray
) -> IntArray:
    """Return an order of the rows that depends on what they hold alone."""
    columns: list[npt.NDArray[Any]] = [
        fragments.labels,
        *bounds.T,
        area,
        fragments.scores,
        *windows[fragments.tiles].T,
    ]
    order = np.lexsort(columns[::-1])
    table = np.stack([c[order].astype(np.float64) for c in columns], axis=1)
    if not (table[1:] == table[:-1]).all(axis=1).any():
        return np.asarray(order, np.int64)
    # equal in all of the above: the vertices decide
    vertices = np.unique(shapely.to_wkb(fragments.polygons), return_inverse=True)[1]
    return np.asarray(np.lexsort([vertices, *columns[::-1]]), np.int64)


def _link(scene: _Scene, *, class_agnostic: bool, wanted: BoolArray | None = None) -> _Links:
    """Find the pairs that share ground; all rules look at these alone.

    With ``wanted`` only those that may come to share a component with a wanted fragment.
    """
    pairs = _candidates(scene, class_agnostic=class_agnostic)
    if wanted is not None:
        group = _connect(len(scene.order), pairs.a, pairs.b)
        reached = np.zeros(len(group) + 1, bool)
        reached[group[wanted]] = True
        pairs = pairs.take(reached[group[pairs.a]])
    return _compare(scene, pairs)


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Pairs a < b whose bounding boxes leave it open that they are linked."""

    a: IntArray
    b: IntArray
    area_a: DoubleArray
    """Of each in the area that both windows cover."""
    area_b: DoubleArray

    def take(self, rows: BoolArray) -> _Pairs:
        """Return the given rows."""
        return _Pairs(*(getattr(self, name)[rows] for name in self.__slots__))


def _candidates(scene: _Scene, *, class_agnostic: bool) -> _Pairs:
    """Find the pairs that may share enough ground, judged by boxes alone."""
    labels = scene.fragments.labels
    polygons = scene.fragments.polygons
    a, b = shapely.STRtree(polygons).query(polygons).astype(np.int64)
    ours = (a < b) & (class_agnostic | (labels[a] == labels[b]))
    order = np.lexsort([b[ours], a[ours]])
    a, b = a[ours][order], b[ours][order]
    shared = _overlap_boxes(scene.window[a], scene.window[b])
    pairs = _Pairs(a, b, _area_inside(scene, a, shared), _area_inside(scene, b, shared))
    both = _overlap_boxes(scene.bounds[a], scene.bounds[b])
    most = np.maximum(both[:, 2:] - both[:, :2], 0).prod(axis=1)
    return pairs.take((most > 0) & (most >= LINK_SHARE * np.minimum(pairs.area_a, pairs.area_b)))


def _compare(scene: _Scene, pairs: _Pairs) -> _Links:
    """Measure how pairs agree in the area that both windows cover; keep the linked ones."""
    a, b, area_a, area_b = pairs.a, pairs.b, pairs.area_a, pairs.area_b
    common = _common_area(scene.fragments.polygons, scene.bounds, a, b)
    # rounding may leave the clipped area a hair under the common one
    smaller = np.maximum(np.minimum(area_a, area_b), common)
    joint = np.maximum(area_a + area_b - common, common)
    ios, iou = (np.divide(common, d, where=common > 0, out=common * 0) for d in (smaller, joint))
    same_tile = scene.fragments.tiles[a] == scene.fragments.tiles[b]
    links = _Links(a, b, same_tile, iou, ios, area_a >= area_b)
    return links.take(ios >= LINK_SHARE)


def _common_area(
    polygons: GeometryArray, bounds: DoubleArray, a: IntArray, b: IntArray
) -> DoubleArray:
    """Return the area that the polygons of each pair share, right to about 1 %.

    Both are drawn on one small grid over what their boxes share, and the cells set in both are
    counted. Each pair is measured by itself: what else is there never changes a digit.
    """
    boxes = _overlap_boxes(bounds[a], bounds[b])
    common = np.zeros(len(a))
    cell = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1) / (RASTER_ROWS * RASTER_COLS)
    open_ = np.flatnonzero(cell > 0)
    thin: list[IntArray] = []
    for rows in _chunks(open_):
        drawn_a, drawn_b = (
            _draw(polygons[a[rows]], boxes[rows]),
            _draw(polygons[b[rows]], boxes[rows]),
        )
        cells_a, cells_b, cells = (
            np.bitwise_count(words).sum(axis=1, dtype=np.int64)
            for words in (drawn_a, drawn_b, drawn_a & drawn_b)
        )
        common[rows] = cells * cell[rows]
        few = np.minimum(cells_a, cells_b) < THIN_SHARE * RASTER_ROWS * RASTER_COLS
        thin.append(rows[few])
    if thin:
        rows = np.concatenate(thin)
        common[rows] = shapely.area(shapely.intersection(polygons[a[rows]], polygons[b[rows]]))
    return common


_FROM_COLUMN = np.array(
    [(1 << RASTER_COLS) - (1 << col) for col in range(RASTER_COLS)] + [0], np.uint64
)
"""Words with all bits from a column on."""


def _draw(polygons: GeometryArray, boxes: DoubleArray) -> npt.NDArray[np.uint64]:
    """Draw each polygon on a grid over its box: one word per row, (n, RASTER_ROWS).

    A row's middle line is inside between its 1st and 2nd crossing of the outline, its 3rd and 4th
    and so on. Turning over all bits right of each crossing, in any order, gives just that.
    """
    x, y, ring, owner = _vertices(polygons)
    of = owner[ring]
    left, top, right, bottom = boxes.T.copy()
    cols_per_px, rows_per_px = RASTER_COLS / (right - left), RASTER_ROWS / (bottom - top)
    # in rows of the grid, the middle line of row k at y = k
    y = (y - top[of]) * rows_per_px[of] - 0.5
    level = np.clip(np.ceil(y), 0, RASTER_ROWS).astype(np.int64)
    # an edge crosses the rows from the lower of its ends' levels to the higher
    count = np.abs(np.diff(level))
    count[ring[1:] != ring[:-1]] = 0
    edge = np.flatnonzero(count)
    count, of = count[edge], of[edge]
    y0, x0, x1 = y[edge], *((x[e] - left[of]) * cols_per_px[of] for e in (edge, edge + 1))
    slope = (x1 - x0) / (y[edge + 1] - y0)
    first = np.minimum(level[edge], level[edge + 1])
    part = np.repeat(np.arange(len(edge)), count)
    row = np.arange(len(part)) - (np.cumsum(count) - count - first)[part]
    col = np.rint(x0[part] + (row - y0[part]) * slope[part])
    words = np.zeros(len(polygons) * RASTER_ROWS, np.uint64)
    turned = _FROM_COLUMN[np.clip(col, 0, RASTER_COLS).astype(np.int64)]
    np.bitwise_xor.at(words, of[part] * RASTER_ROWS + row, turned)
    return words.reshape(-1, RASTER_ROWS)


def _vertices(polygons: GeometryArray) -> tuple[DoubleArray, DoubleArray, IntArray, IntArray]:
    """Return x, y and ring of all vertices, and each ring's polygon; a polygon's shell is first."""
    rings, owner = polygons, np.arange(len(polygons))
    if (shapely.get_num_interior_rings(polygons) > 0).any():
        rings, owner = shapely.get_rings(polygons, return_index=True)
    vertices, ring = shapely.get_coordinates(rings, return_index=True)
    x, y = vertices.T.copy()
    return x, y, ring, owner


def _overlap_boxes(first: DoubleArray, second: DoubleArray) -> DoubleArray:
    """Return where boxes overlap, row by row."""
    low = np.maximum(first[:, :2], second[:, :2])
    return np.concatenate([low, np.minimum(first[:, 2:], second[:, 2:])], axis=1)


def _area_inside(scene: _Scene, rows: IntArray, boxes: DoubleArray) -> DoubleArray:
    """Return the area of polygons inside boxes, cutting only those that reach out."""
    area = scene.area[rows]
    out = np.flatnonzero(~_within(scene.bounds[rows], boxes))
    for chunk in _chunks(out):
        area[chunk] = _clipped_area(scene.fragments.polygons[rows[chunk]], boxes[chunk])
    return area


def _chunks(rows: IntArray) -> Iterator[IntArray]:
    """Yield rows in portions that stay in the processor's cache with all that is made of them."""
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def _clipped_area(polygons: GeometryArray, boxes: DoubleArray) -> DoubleArray:
    """Return the area of each polygon inside its box without building the clipped polygon.

    Green's theorem: the area is the integral of x, clamped to the box, over the steps in y that
    lie in the box, along the outline. An order of magnitude faster than cutting with GEOS.
    """
    x, y, ring, owner = _vertices(polygons)
    left, top, right, bottom = boxes[owner].T.copy()
    y = y - top[ring]
    clipped = np.clip(y, 0, (bottom - top)[ring])
    step = np.diff(clipped)
    step[ring[1:] != ring[:-1]] = 0
    # edges without a part at the box's height add nothing
    edge = np.flatnonzero(step)
    ring, step = ring[edge], step[edge]
    width = (right - left)[ring]
    x0, x1 = x[edge] - left[ring], x[edge + 1] - left[ring]
    slope = (x1 - x0) / (y[edge + 1] - y[edge])
    from_x = x0 + (clipped[edge] - y[edge]) * slope
    to_x = x0 + (clipped[edge + 1] - y[edge]) * slope

    def primitive(x: DoubleArray) -> DoubleArray:
        inside = np.clip(x, 0, width)
        return np.asarray(inside * inside / 2 + width * np.maximum(x - width, 0))

    run = to_x - from_x
    flat = np.abs(run) < 1e-6
    mean_x = np.divide(primitive(to_x) - primitive(from_x), run, where=~flat, out=from_x.copy())
    mean_x = np.where(flat, np.clip((from_x + to_x) / 2, 0, width), mean_x)
    signed = np.bincount(ring, mean_x * step, minlength=len(owner))
    shell = np.diff(owner, prepend=-1) != 0
    # a ring's direction is free: shells add, holes take away
    parts = np.where(shell, 1.0, -1.0) * np.abs(signed)
    return np.asarray(np.bincount(owner, parts, minlength=len(polygons)), np.float64)


def _within(bounds: DoubleArray, boxes: DoubleArray) -> BoolArray:
    """Say which bounds lie inside which box, row by row."""
    inside = (bounds[:, :2] >= boxes[:, :2]) & (bounds[:, 2:] <= boxes[:, 2:])
    return np.asarray(inside.all(axis=1))


def _rank(*keys: npt.NDArray[Any]) -> IntArray:
    """Return the place of each row when sorted by the keys, the first weighing most."""
    place = np.empty(len(keys[0]), np.int64)
    place[np.lexsort(keys[::-1])] = np.arange(len(place))
    return place


def _suppress(a: IntArray, b: IntArray, rank: IntArray) -> BoolArray:
    """Keep, best rank first, each row that no kept row rules out: greedy NMS, in a few sweeps."""
    better = np.where(rank[a] < rank[b], a, b)
    worse = a + b - better
    alive = np.ones(len(rank), bool)
    open_ = alive.copy()
    while len(better):
        # a row that no undecided better one threatens is safe; what it rules out is gone
        threatened = np.zeros(len(rank), bool)
        threatened[worse] = True
        safe = open_ & ~threatened
        gone = worse[safe[better]]
        alive[gone] = False
        open_ &= alive & ~safe
        left = open_[better] & open_[worse]
        better, worse = better[left], worse[left]
    return alive


def _connect(n: int, a: IntArray, b: IntArray) -> IntArray:
    """Label connected components of n nodes."""
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _components(
    scene: _Scene, links: _Links, alive: BoolArray, iou_threshold: float, ios_threshold: float
) -> IntArray:
    """Label the fragments that show one object; those not alive stay alone."""
    near = scene.near_cut
    pairs = links.take(
        ~links.same_tile
        & (
            (links.iou >= iou_threshold)
            | ((near[links.a] | near[links.b]) & (links.ios >= ios_threshold))
        )
    )
    m = len(pairs.a)
    source = np.concatenate([pairs.a, pairs.b])
    target = np.concatenate([pairs.b, pairs.a])
    tile = scene.fragments.tiles[target]
    order = np.lexsort([target, -np.tile(pairs.iou, 2), tile, source])
    first = np.ones(2 * m, bool)
    first[1:] = (np.diff(source[order]) != 0) | (np.diff(tile[order]) != 0)
    best = np.zeros(2 * m, bool)
    best[order[first]] = True
    a_chose, b_chose = best[:m], best[m:]
    # a piece joins what shows it whole even where that has a better partner: two legs, one foot
    piece_a = a_chose & near[pairs.a] & ~pairs.a_larger & (pairs.ios >= ios_threshold)
    piece_b = b_chose & near[pairs.b] & pairs.a_larger & (pairs.ios >= ios_threshold)
    joined = (a_chose & b_chose) | piece_a | piece_b
    return _connect(len(alive), pairs.a[joined], pairs.b[joined])


def _whole_members(
    scene: _Scene, links: _Links, component: IntArray, alive: BoolArray
) -> BoolArray:
    """Mark in each component the best fragment that shows the object whole, if any does.

    Whole is what is not cut and shows what its partners show; the best is deepest inside its
    window, then best scored.
    """
    pairs = links.take(~links.same_tile & (component[links.a] == component[links.b]))
    member = np.concatenate([pairs.a, pairs.b])
    partner = np.concatenate([pairs.b, pairs.a])
    rows = np.flatnonzero(alive & ~scene.fragments.cut)
    rank = _rank(component[rows], -scene.depth[rows], -scene.fragments.scores[rows])
    rows = rows[np.argsort(rank)]
    whole = np.zeros(len(alive), bool)
    while len(rows):
        # the best of each component is tried; where it fails the next one has its turn
        first = np.diff(component[rows], prepend=-1) != 0
        tried = np.zeros(len(alive), bool)
        tried[rows[first]] = True
        mine = tried[member]
        tried[_lacking(scene, member[mine], partner[mine])] = False
        whole |= tried
        done = np.zeros(len(alive), bool)
        done[component[tried]] = True
        rows = rows[~first & ~done[component[rows]]]
    return whole


def _lacking(scene: _Scene, member: IntArray, partner: IntArray) -> IntArray:
    """Return the members that lack what their partners show of the object."""
    # what lies well inside the member's window it saw better than its partner
    inner = scene.window[member] + np.array([1, 1, -1, -1]) * MARGIN_PX
    inner[:, 2:] = np.maximum(inner[:, :2], inner[:, 2:])
    doubt = ~_within(scene.bounds[partner], inner)
    member, partner, inner = member[doubt], partner[doubt], inner[doubt]
    limit = BEYOND_SHARE * scene.area[member]
    # of what the partner shows out there the member covers at most what it has out there itself
    most = scene.area[partner] - _area_inside(scene, partner, inner)
    least = most - (scene.area[member] - _area_inside(scene, member, inner))
    lacks = least > limit
    open_ = np.flatnonzero((most > limit) & ~lacks)
    polygons = scene.fragments.polygons
    outside = shapely.difference(polygons[partner[open_]], shapely.box(*inner[open_].T))
    beyond = shapely.area(shapely.difference(outside, polygons[member[open_]]))
    lacks[open_] = beyond > limit[open_]
    return member[lacks]


@dataclass(frozen=True, slots=True, eq=False)
class _Candidates:
    """One object per component, before leftovers are dropped."""

    objects: Objects
    area: DoubleArray
    bounds: DoubleArray
    component: IntArray
    loose: BoolArray
    """May be a piece of something larger."""
    owned: BoolArray
    """Seen by a tile in the core of which it lies, or confirmed by several tiles as whole."""


def _assemble(
    scene: _Scene, component: IntArray, whole: BoolArray, alive: BoolArray
) -> _Candidates:
    """Choose or build one polygon for each component."""
    fragments = scene.fragments
    rows = np.flatnonzero(alive)
    rank = _rank(component[rows], ~whole[rows], -scene.depth[rows], -fragments.scores[rows])
    order = rows[np.argsort(rank)]
    starts = np.flatnonzero(np.diff(component[order], prepend=-1))
    head = order[starts]
    # ^ the best whole member where there is one
    sizes = np.diff(np.append(starts, len(order)))
    polygons, scores = fragments.polygons[head], fragments.scores[head]
    area, bounds = scene.area[head], scene.bounds[head]
    labels, n_parts = fragments.labels[head], np.ones(len(head), np.int64)
    complete = ~fragments.cut[head]
    at_edge = np.logical_or.reduceat(fragments.at_edge[order], starts) if len(head) else complete
    for k in np.flatnonzero(~whole[head] & (sizes > 1)):
        members = np.sort(order[starts[k] : starts[k] + sizes[k]])
        polygons[k] = _union(fragments.polygons[members])
        scores[k] = np.average(fragments.scores[members], weights=scene.area[members])
        votes = np.bincount(fragments.labels[members], scene.area[members])
        labels[k], n_parts[k] = int(np.argmax(votes)), len(members)
        area[k], bounds[k] = shapely.area(polygons[k]), shapely.bounds(polygons[k])
        complete[k] = _continued(scene, members, bounds[k])
    at_edge = np.where(whole[head], fragments.at_edge[head], at_edge)
    in_core = ~_apart(scene.bounds, scene.core)
    owned = np.logical_or.reduceat(in_core[order], starts) if len(head) else complete
    near = scene.near_cut[head]
    return _Candidates(
        Objects(polygons, scores, labels, n_parts, complete, at_edge),
        area,
        bounds,
        component[head],
        loose=~whole[head] | near,
        owned=owned | (whole[head] & ((sizes > 1) | ~near)),
    )


def _apart(bounds: DoubleArray, boxes: DoubleArray) -> BoolArray:
    """Say which bounds share no area with which box, row by row."""
    shared = _overlap_boxes(bounds, boxes)
    return np.asarray((shared[:, 2:] <= shared[:, :2]).any(axis=1))


def _union(polygons: GeometryArray) -> shapely.Polygon:
    """Return the union of the parts of one object; its largest piece, should there be several."""
    parts = shapely.get_parts(shapely.union_all(polygons))
    return parts[np.argmax(shapely.area(parts))]


def _continued(scene: _Scene, members: IntArray, bounds: DoubleArray) -> bool:
    """Say whether an object goes on past the window of each of its cut members."""
    cut = members[scene.fragments.cut[members]]
    return bool((~_within(np.tile(bounds, (len(cut), 1)), scene.window[cut])).all())


def _drop_leftovers(
    candidates: _Candidates, links: _Links, component: IntArray, iou_threshold: float
) -> BoolArray:
    """Keep objects; drop pieces that another object covers or that no other tile confirms."""
    row_of = np.full(component.max(initial=-1) + 1, -1)
    row_of[candidates.component] = np.arange(len(candidates.component))
    a, b = row_of[component[links.a]], row_of[component[links.b]]
    pairs = np.unique(np.sort(np.stack([a, b], axis=1)[a != b], axis=1), axis=0)
    a, b = pairs[:, 0], pairs[:, 1]
    owned = candidates.owned
    a, b = a[owned[a] & owned[b]], b[owned[a] & owned[b]]
    area = candidates.area
    rank = _rank(candidates.loose, -area, -candidates.objects.scores)
    worse = np.where(rank[a] > rank[b], a, b)
    common = _common_area(candidates.objects.polygons, candidates.bounds, a, b)
    twin = common / (area[a] + area[b] - common) >= iou_threshold
    piece = candidates.loose[worse] & (common >= COVERED_SHARE * area[worse])
    clash = twin | piece
    return owned & _suppress(a[clash], b[clash], rank)


def _in_order(candidates: _Candidates, keep: BoolArray) -> IntArray:
    """Return the rows kept, sorted by class, then place."""
    rank = _rank(
        ~keep,
        candidates.objects.labels,
        *candidates.bounds.T,
        candidates.area,
        candidates.objects.scores,
    )
    return np.argsort(rank)[: np.count_nonzero(keep)]
