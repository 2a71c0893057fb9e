"""Stitching: painted scenes with known truth, then the promises one by one."""

import pickle

import numpy as np
import painted
import pytest
import shapely
import shapely.affinity
from rasterio.windows import Window

from geoseg.errors import ConfigError, TileError
from geoseg.objects.stitch import (
    _clipped_area,
    _common_area,
    interaction_components,
    split_settled,
    stitch,
)
from geoseg.records import Fragments, Objects, Tile

GRIDS = [(512, 128), (320, 48), (256, 64)]
EXACT = [painted.PaintedDetector(), painted.PaintedDetector(28)]
DISTURBED = [
    painted.PaintedDetector(disturb=True, seed=1),
    painted.PaintedDetector(28, disturb=True, seed=2),
]


def detector_name(detector):
    return f"{detector.mask_size or 'full'}{'-disturbed' if detector.disturb else ''}"


@pytest.fixture(scope="module")
def scenes():
    return {
        "blobs": painted.blob_scene(0, size=1000, count=330, large=5),
        "shapes": painted.shape_scene(1, size=1000, count=130),
        "thin": painted.shape_scene(2, size=1000, count=100, thin=True),
    }


def same(first: Objects, second: Objects) -> bool:
    """Compare all columns bit for bit."""
    return (
        len(first) == len(second)
        and shapely.equals_exact(first.polygons, second.polygons, 0).all()
        and all(
            np.array_equal(getattr(first, name), getattr(second, name))
            for name in ("scores", "labels", "n_parts", "complete", "touches_edge")
        )
    )


def pooled(parts: list[Objects]) -> Objects:
    """Put the objects of several calls in one order that depends on content alone."""
    objects = Objects.concatenate(parts)
    return objects.take(np.argsort(shapely.to_wkb(objects.polygons)))


def fragments_of(rows, tiles) -> Fragments:
    """Build fragments from (polygon, tile, label, score); cut where they touch a window's side
    that is no side of the raster the tiles cover."""
    windows = shapely.union_all([as_box(t.window) for t in tiles])
    cut, edge = [], []
    for polygon, tile, *_ in rows:
        sides = as_box(tiles[tile].window).exterior
        cut.append(sides.difference(windows.exterior).intersection(polygon).length > 0)
        edge.append(windows.exterior.intersection(polygon).length > 0)
    return Fragments(
        polygons=np.array([r[0] for r in rows], object),
        scores=np.array([r[3] for r in rows], np.float32),
        labels=np.array([r[2] for r in rows], np.int64),
        tiles=np.array([r[1] for r in rows], np.int64),
        cut=np.array(cut, bool),
        at_edge=np.array(edge, bool),
    )


def as_box(window):
    return shapely.box(
        window.col_off,
        window.row_off,
        window.col_off + window.width,
        window.row_off + window.height,
    )


def seen(thing, tiles, label=0, score=0.9):
    """Return what an exact detector shows of one polygon: its pieces in each window."""
    rows = []
    for k, tile in enumerate(tiles):
        parts = shapely.get_parts(shapely.intersection(thing, as_box(tile.window)))
        rows += [(part, k, label, score) for part in parts if part.area > 0]
    return rows


# -- painted scenes ---------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "overlap"), GRIDS)
@pytest.mark.parametrize("detector", EXACT, ids=detector_name)
@pytest.mark.parametrize("kind", ["blobs", "shapes"])
def test_exact_detections_give_each_object_once(scenes, kind, detector, size, overlap):
    scene = scenes[kind]
    tiles = painted.square_tiles(*scene.shape, size, overlap)
    verdict = painted.judge(scene, stitch(painted.detect(scene, tiles, detector), tiles))
    assert verdict.truth > 120
    assert (verdict.missed, verdict.extra, verdict.wrong_class, verdict.invalid) == (0, 0, 0, 0)
    assert verdict.worst_iou > 0.9


@pytest.mark.parametrize(("size", "overlap"), GRIDS)
def test_thin_diagonals_of_hundreds_of_px_stay_one_object(scenes, size, overlap):
    scene = scenes["thin"]
    tiles = painted.square_tiles(*scene.shape, size, overlap)
    verdict = painted.judge(scene, stitch(painted.detect(scene, tiles, EXACT[0]), tiles))
    assert (verdict.missed, verdict.extra, verdict.wrong_class, verdict.invalid) == (0, 0, 0, 0)
    # an outline smooths the stairs of a line one px wide: a fifth of its area moves, none is lost
    assert verdict.worst_iou > 0.7


@pytest.mark.parametrize(("size", "overlap"), GRIDS)
@pytest.mark.parametrize("detector", DISTURBED, ids=detector_name)
def test_disturbed_detections_cost_at_most_half_a_percent(scenes, detector, size, overlap):
    truth = wrong = 0
    for kind in ("blobs", "shapes"):
        scene = scenes[kind]
        tiles = painted.square_tiles(*scene.shape, size, overlap)
        verdict = painted.judge(scene, stitch(painted.detect(scene, tiles, detector), tiles))
        truth += verdict.truth
        wrong += verdict.missed + verdict.extra
        assert verdict.invalid == 0
    assert wrong <= 0.005 * truth


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 16))
@pytest.mark.parametrize(("size", "overlap"), GRIDS)
def test_more_seeds(seed, size, overlap):
    for scene in (painted.blob_scene(seed), painted.shape_scene(seed)):
        tiles = painted.square_tiles(*scene.shape, size, overlap)
        for detector in EXACT + DISTURBED:
            verdict = painted.judge(scene, stitch(painted.detect(scene, tiles, detector), tiles))
            wrong = verdict.missed + verdict.extra
            assert wrong <= (0.01 * verdict.truth if detector.disturb else 0), detector_name(
                detector
            )


@pytest.mark.parametrize("shift", [7, 31])
def test_moving_the_grid_or_halving_the_tile_gives_the_same_objects(scenes, shift):
    scene = scenes["blobs"]
    found = []
    for tiles in (
        painted.square_tiles(*scene.shape, 320, 64),
        painted.square_tiles(*scene.shape, 320, 64, shift),
        painted.square_tiles(*scene.shape, 160, 64),
    ):
        objects = stitch(painted.detect(scene, tiles, EXACT[0]), tiles)
        assert len(objects) == scene.ids.max()
        found.append(objects)
    for other in found[1:]:
        a, b = shapely.STRtree(other.polygons).query(found[0].polygons, predicate="intersects")
        common = shapely.area(shapely.intersection(found[0].polygons[a], other.polygons[b]))
        area = shapely.area(found[0].polygons)[a] + shapely.area(other.polygons)[b] - common
        assert np.count_nonzero(common / area > 0.9) == scene.ids.max()


# -- order and parts --------------------------------------------------------------------------


@pytest.mark.parametrize("detector", [EXACT[1], DISTURBED[1]], ids=detector_name)
def test_order_of_fragments_and_tiles_changes_nothing(scenes, detector):
    scene = scenes["blobs"]
    tiles = painted.square_tiles(*scene.shape, 256, 64)
    fragments = painted.detect(scene, tiles, detector)
    expected = stitch(fragments, tiles)
    rng = np.random.default_rng(5)
    for _ in range(3):
        rows = rng.permutation(len(fragments))
        places = rng.permutation(len(tiles))
        mixed = fragments.take(rows)
        moved = Fragments(
            mixed.polygons,
            mixed.scores,
            mixed.labels,
            np.argsort(places)[mixed.tiles],
            mixed.cut,
            mixed.at_edge,
        )
        assert same(stitch(moved, [tiles[p] for p in places]), expected)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("detector", [EXACT[1], DISTURBED[0], DISTURBED[1]], ids=detector_name)
@pytest.mark.parametrize("block", [1, 2, 3])
def test_stitching_supertile_by_supertile_is_stitching_at_once(
    scenes, detector, block, class_agnostic
):
    scene = scenes["shapes"]
    tiles = painted.square_tiles(*scene.shape, 256, 64)
    fragments = painted.detect(scene, tiles, detector)
    options = {"class_agnostic": class_agnostic}
    expected = pooled([stitch(fragments, tiles, **options)])
    home = np.array([(t.index[0] // block) * 100 + t.index[1] // block for t in tiles])
    parts, rest = [], []
    for supertile in np.unique(home):
        own = np.flatnonzero(home[fragments.tiles] == supertile)
        foreign = [t.window for t, h in zip(tiles, home, strict=True) if h != supertile]
        mine = fragments.take(own)
        settled = split_settled(mine, tiles, foreign, **options)
        parts.append(stitch(mine.take(settled), tiles, **options))
        rest.append(mine.take(~settled))
    unsettled = Fragments.concatenate(rest)
    parts.append(stitch(unsettled, tiles, **options))
    assert same(pooled(parts), expected)
    assert len(unsettled) > 0
    if block > 1 and not class_agnostic:
        assert len(unsettled) < len(fragments)


def test_tiles_of_one_supertile_are_enough(scenes):
    scene = scenes["blobs"]
    tiles = painted.square_tiles(*scene.shape, 256, 64)
    fragments = painted.detect(scene, tiles, DISTURBED[1])
    own = [k for k, t in enumerate(tiles) if max(t.index) < 2]
    mine = fragments.take(np.isin(fragments.tiles, own))
    local = Fragments(
        mine.polygons,
        mine.scores,
        mine.labels,
        np.searchsorted(own, mine.tiles),
        mine.cut,
        mine.at_edge,
    )
    assert same(stitch(local, [tiles[k] for k in own]), stitch(mine, tiles))


@pytest.mark.parametrize("detector", [EXACT[1], DISTURBED[0]], ids=detector_name)
def test_components_stitched_alone_give_the_same_objects(scenes, detector):
    scene = scenes["blobs"]
    tiles = painted.square_tiles(*scene.shape, 256, 64)
    fragments = painted.detect(scene, tiles, detector)
    group = interaction_components(fragments, tiles)
    expected = pooled([stitch(fragments, tiles)])
    bins = np.random.default_rng(1).integers(0, 40, group.max() + 1)[group]
    parts = [stitch(fragments.take(bins == k), tiles) for k in np.unique(bins)]
    assert same(pooled(parts), expected)


def test_random_overlapping_clutter_is_the_same_in_parts():
    # no detector would return this: many overlaps of all degrees, so that every rule fires
    rng = np.random.default_rng(3)
    tiles = painted.square_tiles(600, 600, 200, 60)
    rows = []
    for k, tile in enumerate(tiles):
        window = as_box(tile.window)
        for _ in range(40):
            x, y = rng.uniform(tile.window.col_off - 20, tile.window.col_off + 200, 2)
            y += tile.window.row_off - tile.window.col_off
            w, h = rng.uniform(4, 60, 2)
            part = shapely.intersection(shapely.box(x, y, x + w, y + h), window)
            if part.area > 4:
                rows.append((part, k, int(rng.integers(6)), float(rng.uniform(0.1, 1))))
    fragments = fragments_of(rows, tiles)
    group = interaction_components(fragments, tiles)
    assert len(np.unique(group)) > 20
    expected = pooled([stitch(fragments, tiles)])
    parts = [stitch(fragments.take(group == g), tiles) for g in np.unique(group)]
    assert same(pooled(parts), expected)


# -- rules, one by one ------------------------------------------------------------------------

PAIR = painted.square_tiles(200, 340, 200, 60)
"""Windows x 0-200 and 140-340; cores meet at 170."""


def test_object_in_the_overlap_is_reported_once_from_where_it_lies_deeper():
    thing = shapely.box(150, 50, 165, 70)
    rows = seen(thing, PAIR, score=0.5)
    rows[1] = (*rows[1][:3], 0.99)
    objects = stitch(fragments_of(rows, PAIR), PAIR)
    assert len(objects) == 1
    # 35 px from the left window's cut, 10 px from the right one's: depth beats score
    assert objects.scores[0] == np.float32(0.5)
    assert objects.complete.all()
    assert objects.n_parts[0] == 1


def test_cut_fragment_gives_way_to_the_whole_object():
    thing = shapely.box(160, 50, 220, 90)
    objects = stitch(fragments_of(seen(thing, PAIR), PAIR), PAIR)
    assert shapely.equals(objects.polygons, thing).all()
    assert objects.n_parts[0] == 1


def test_object_larger_than_the_overlap_is_the_union_of_its_parts():
    thing = shapely.box(60, 50, 300, 90)
    objects = stitch(fragments_of(seen(thing, PAIR), PAIR), PAIR)
    assert shapely.equals(objects.polygons, thing).all()
    assert objects.n_parts[0] == 2
    assert objects.complete[0]
    assert not objects.touches_edge[0]


def test_both_legs_of_a_u_join_its_foot():
    thing = shapely.Polygon(
        [(60, 40), (300, 40), (300, 60), (100, 60), (100, 100), (300, 100), (300, 120), (60, 120)]
    )
    rows = seen(thing, PAIR)
    assert [r[1] for r in rows] == [0, 1, 1]
    objects = stitch(fragments_of(rows, PAIR), PAIR)
    assert len(objects) == 1
    assert shapely.equals(objects.polygons[0], thing)
    assert objects.n_parts[0] == 3


def test_ring_larger_than_a_tile_keeps_its_hole():
    tiles = painted.square_tiles(700, 700, 200, 60)
    thing = shapely.Point(350, 350).buffer(300).difference(shapely.Point(350, 350).buffer(260))
    objects = stitch(fragments_of(seen(thing, tiles), tiles), tiles)
    assert len(objects) == 1
    assert len(objects.polygons[0].interiors) == 1
    assert objects.polygons[0].symmetric_difference(thing).area < 1e-6 * thing.area


def test_neighbours_wall_to_wall_are_not_fused():
    row = [shapely.box(x, 50, x + 37, 90) for x in range(2, 320, 37)]
    rows = [r for thing in row for r in seen(thing, PAIR)]
    objects = stitch(fragments_of(rows, PAIR), PAIR)
    assert len(objects) == len(row)
    assert {p.bounds for p in objects.polygons} == {p.bounds for p in row}


def test_a_mask_that_ends_short_of_the_cut_does_not_pass_for_whole():
    thing = shapely.box(60, 50, 300, 90)
    short = [(shapely.box(60, 50, 192, 90), 0, 0, 0.9), (shapely.box(148, 50, 300, 90), 1, 0, 0.9)]
    fragments = fragments_of(short, PAIR)
    assert not fragments.cut.any()
    objects = stitch(fragments, PAIR)
    assert len(objects) == 1
    assert shapely.equals(objects.polygons[0], thing)


def test_duplicates_inside_a_tile_leave_the_better_scored():
    rows = [(shapely.box(20, 20, 60, 60), 0, 0, 0.6), (shapely.box(22, 20, 62, 60), 0, 0, 0.8)]
    objects = stitch(fragments_of(rows, PAIR), PAIR)
    assert objects.polygons[0].bounds == (22, 20, 62, 60)
    assert len(objects) == 1


def test_small_object_on_a_big_one_of_another_class_stays():
    big, small = shapely.box(100, 40, 260, 160), shapely.box(150, 80, 180, 100)
    rows = seen(big, PAIR, label=0) + seen(small, PAIR, label=1)
    objects = stitch(fragments_of(rows, PAIR), PAIR)
    assert objects.labels.tolist() == [0, 1]
    assert shapely.equals(objects.polygons, [big, small]).all()


def test_class_agnostic_joins_what_two_tiles_name_differently():
    rows = [(shapely.box(60, 50, 200, 90), 0, 0, 0.9), (shapely.box(140, 50, 330, 90), 1, 2, 0.9)]
    fragments = fragments_of(rows, PAIR)
    assert len(stitch(fragments, PAIR)) == 2
    joined = stitch(fragments, PAIR, class_agnostic=True)
    assert joined.labels.tolist() == [2]
    assert joined.polygons[0].bounds == (60, 50, 330, 90)


def test_unconfirmed_sliver_outside_its_core_is_dropped():
    rows = [(shapely.box(140, 50, 146, 70), 1, 0, 0.9)]
    assert len(stitch(fragments_of(rows, PAIR), PAIR)) == 0


def test_cut_object_nobody_continues_is_kept_and_said_to_be_incomplete():
    rows = [(shapely.box(100, 50, 200, 70), 0, 0, 0.9)]
    objects = stitch(fragments_of(rows, PAIR), PAIR)
    assert objects.complete.tolist() == [False]


def test_object_at_the_corner_of_the_raster_touches_the_edge():
    rows = [(shapely.box(0, 0, 20, 20), 0, 0, 0.9), (shapely.box(330, 100, 340, 120), 1, 0, 0.9)]
    objects = stitch(fragments_of(rows, PAIR), PAIR)
    assert objects.touches_edge.tolist() == [True, True]
    assert objects.complete.tolist() == [True, True]


def test_nothing_in_nothing_out():
    assert len(stitch(Fragments.empty(), PAIR)) == 0
    assert len(interaction_components(Fragments.empty(), [])) == 0
    assert len(split_settled(Fragments.empty(), PAIR, [])) == 0


def test_settled_means_clear_of_foreign_windows():
    rows = [(shapely.box(20, 20, 60, 60), 0, 0, 0.9), (shapely.box(100, 20, 150, 60), 0, 0, 0.9)]
    fragments = fragments_of(rows, PAIR)
    foreign = [PAIR[1].window]
    assert split_settled(fragments, PAIR, foreign).tolist() == [True, False]
    assert split_settled(fragments, PAIR, np.array([[140, 0, 340, 200]])).tolist() == [True, False]
    assert split_settled(fragments, PAIR, []).all()


def test_stitching_stitched_objects_changes_nothing(scenes):
    scene = scenes["blobs"]
    tiles = painted.square_tiles(*scene.shape, 256, 64)
    once = stitch(painted.detect(scene, tiles, EXACT[0]), tiles)
    whole = Window(0, 0, *scene.shape[::-1])
    n = len(once)
    again = stitch(
        Fragments(
            once.polygons,
            once.scores,
            once.labels,
            np.zeros(n, int),
            np.zeros(n, bool),
            once.touches_edge,
        ),
        [Tile((0, 0), whole, whole)],
    )
    assert shapely.equals_exact(again.polygons, once.polygons, 0).all()


def test_errors_say_what_to_do():
    rows = [(shapely.box(20, 20, 60, 60), 0, 0, 0.9)]
    fragments = fragments_of(rows, PAIR)
    with pytest.raises(TileError, match="0 tiles were given; pass the sequence"):
        stitch(fragments, [])
    with pytest.raises(ConfigError, match="iou_threshold is 0"):
        stitch(fragments, PAIR, iou_threshold=0)
    with pytest.raises(ConfigError, match=r"ios_threshold is 1\.5"):
        stitch(fragments, PAIR, ios_threshold=1.5)


def test_clipped_areas_agree_with_geos():
    rng = np.random.default_rng(0)
    polygons = []
    for k in range(300):
        centre, radius = shapely.Point(rng.uniform(0, 1000, 2)), rng.uniform(3, 40)
        polygon = centre.buffer(radius)
        if k % 2:
            polygon = polygon.difference(centre.buffer(radius / 2))
        if k % 3 == 0:
            # whole px: edges on the box's sides, and upright ones
            polygon = shapely.box(*np.round(polygon.bounds))
        polygons.append(polygon.reverse() if k % 5 == 0 else polygon)
    low = np.round(shapely.bounds(polygons)[:, :2] + rng.uniform(-30, 30, (300, 2)))
    boxes = np.concatenate([low, low + rng.integers(1, 60, (300, 2))], axis=1)
    expected = shapely.area(shapely.intersection(polygons, shapely.box(*boxes.T)))
    assert np.count_nonzero(expected) > 150
    assert np.abs(_clipped_area(np.array(polygons), boxes) - expected).max() < 1e-8


def random_pairs(count):
    """Return blobs, rings, bars and thin lines, each beside a partner that overlaps it somewhat."""
    rng = np.random.default_rng(5)
    polygons = []
    for k in range(count):
        centre, radius = rng.uniform(0, 4e5, 2), rng.uniform(2, 60)
        for _ in range(2):
            point = shapely.Point(centre + rng.uniform(-0.5, 0.5, 2) * radius)
            shape = point.buffer(radius * rng.uniform(0.7, 1.3))
            if k % 4 == 1:
                shape = shape.difference(point.buffer(radius / 2))
            elif k % 4 == 2:
                shape = shapely.affinity.rotate(shapely.box(*shape.bounds), rng.uniform(0, 90))
            elif k % 8 == 3:
                step = np.array([2 * radius, radius])
                shape = shapely.LineString([centre - step, centre + step]).buffer(1)
            polygons.append(shape)
    return np.array(polygons, object)


def test_common_areas_agree_with_geos():
    polygons = random_pairs(400)
    a, b = np.arange(0, 800, 2), np.arange(1, 800, 2)
    found = _common_area(polygons, shapely.bounds(polygons), a, b)
    expected = shapely.area(shapely.intersection(polygons[a], polygons[b]))
    smaller = np.minimum(shapely.area(polygons[a]), shapely.area(polygons[b]))
    assert (expected > 0.2 * smaller).sum() > 200
    error = np.abs(found - expected) / smaller
    assert error.max() < 0.02
    assert error.mean() < 0.003


def test_common_area_of_boxes_is_exact_and_of_strangers_zero():
    polygons = np.array(
        [shapely.box(0, 0, 10, 10), shapely.box(3, 4, 30, 40), shapely.box(10, 0, 20, 10)], object
    )
    found = _common_area(
        polygons, shapely.bounds(polygons), np.array([0, 0, 1]), np.array([1, 2, 1])
    )
    assert found.tolist() == pytest.approx([42, 0, 27 * 36], rel=1e-12)


def test_common_areas_do_not_depend_on_company():
    polygons = random_pairs(400)
    a, b = np.arange(0, 800, 2), np.arange(1, 800, 2)
    bounds = shapely.bounds(polygons)
    together = _common_area(polygons, bounds, a, b)
    order = np.random.default_rng(0).permutation(400)
    assert np.array_equal(_common_area(polygons, bounds, a[order], b[order]), together[order])
    alone = [
        _common_area(polygons, bounds, a[k : k + 1], b[k : k + 1])[0] for k in range(0, 400, 7)
    ]
    assert np.array_equal(alone, together[::7])


# -- the painted detector itself --------------------------------------------------------------


def test_painted_detector_pickles_and_does_not_depend_on_the_batch():
    scene = painted.blob_scene(4, size=300, count=40, large=0)
    pixels = np.stack([scene.pixels[:, :200, :200], scene.pixels[:, 100:, 100:]])
    detector = painted.PaintedDetector(28, disturb=True, seed=3)
    together = detector(pixels)
    alone = pickle.loads(pickle.dumps(detector))(pixels[1:])[0]
    assert len(together) == 2
    assert np.array_equal(together[1].boxes, alone.boxes)
    assert np.array_equal(together[1].masks, alone.masks)


def test_square_tiles_cores_partition_the_raster():
    hits = np.zeros((700, 900), int)
    for tile in painted.square_tiles(700, 900, 256, 64):
        core = tile.core
        hits[
            core.row_off : core.row_off + core.height, core.col_off : core.col_off + core.width
        ] += 1
    assert (hits == 1).all()
