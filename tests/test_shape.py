"""Finishing outlines: holes, sizes, overlaps, shared walls, right angles."""

import time

import numpy as np
import pytest
import shapely
from shapely import affinity

from geoseg.errors import ConfigError
from geoseg.objects import shape
from geoseg.objects.shape import (
    ShapeSettings,
    fill_holes,
    finish_shapes,
    keep_large,
    regularize,
    resolve_overlaps,
    simplify,
)


def array(*polygons):
    out = np.empty(len(polygons), object)
    out[:] = polygons
    return out


def iou(first, second):
    common = shapely.area(shapely.intersection(first, second))
    return common / (shapely.area(first) + shapely.area(second) - common)


def holed(size, *holes):
    rings = [shapely.box(x, y, x + s, y + s).exterior for x, y, s in holes]
    return shapely.Polygon(shapely.box(0, 0, size, size).exterior, rings)


def discs(count, side, radius, seed):
    rng = np.random.default_rng(seed)
    centres = shapely.points(rng.uniform(0, side, (count, 2)))
    return shapely.buffer(centres, rng.uniform(radius / 2, radius, count), quad_segs=6)


def overlap_area(polygons):
    """Sum of the ground that pairs of the polygons share."""
    a, b = shapely.STRtree(polygons).query(polygons)
    a, b = a[a < b], b[a < b]
    return float(shapely.area(shapely.intersection(polygons[a], polygons[b])).sum())


# holes and sizes


def test_holes_up_to_the_size_are_filled_and_the_rest_is_kept():
    polygons = array(holed(20, (2, 2, 2), (8, 8, 5)), shapely.box(0, 0, 5, 5), holed(9, (3, 3, 3)))
    out = fill_holes(polygons, 4)
    assert shapely.area(out).tolist() == [400 - 25, 25, 81 - 9]
    assert [len(p.interiors) for p in out] == [1, 0, 1]
    assert out[1] is polygons[1]
    assert out[2] is polygons[2]
    assert len(polygons[0].interiors) == 2
    assert [len(p.interiors) for p in fill_holes(polygons, np.inf)] == [0, 0, 0]
    assert [len(p.interiors) for p in fill_holes(polygons, 0)] == [2, 0, 1]


def test_size_is_the_callers_unit():
    assert keep_large(np.array([1.0, 2.0, 3.0]), 2.0).tolist() == [False, True, True]
    assert keep_large(np.zeros(0), 2.0).tolist() == []


# overlaps


def test_the_better_scored_keeps_the_ground():
    polygons = array(shapely.box(0, 0, 10, 10), shapely.box(6, 0, 16, 10))
    out, keep = resolve_overlaps(polygons, np.array([0.6, 0.9]), np.zeros(2, int))
    assert keep.all()
    assert out[1] is polygons[1]
    assert out[0].equals(shapely.box(0, 0, 6, 10))


def test_other_classes_and_touching_walls_are_left_alone():
    polygons = array(
        shapely.box(0, 0, 10, 10), shapely.box(6, 0, 16, 10), shapely.box(-5, 0, 0, 10)
    )
    out, keep = resolve_overlaps(polygons, np.array([0.6, 0.9, 0.9]), np.array([0, 1, 0]))
    assert keep.all()
    assert all(a is b for a, b in zip(out, polygons, strict=True))


def test_equal_scores_larger_then_outline_decides():
    small, large = shapely.box(0, 0, 10, 10), shapely.box(6, 0, 26, 10)
    for polygons in (array(small, large), array(large, small)):
        out, _ = resolve_overlaps(polygons, np.full(2, 0.7), np.zeros(2, int))
        assert sorted(shapely.area(out)) == [60, 200]
    twins = array(shapely.box(0, 0, 10, 10), shapely.box(6, 0, 16, 10))
    forward, _ = resolve_overlaps(twins, np.full(2, 0.7), np.zeros(2, int))
    backward, _ = resolve_overlaps(twins[::-1], np.full(2, 0.7), np.zeros(2, int))
    assert shapely.equals_exact(forward, backward[::-1]).all()


def test_largest_piece_is_kept_and_the_other_goes_to_the_next():
    # the bar across cuts the long one in two; its right end is then free for the third
    long, bar = shapely.box(0, 0, 30, 10), shapely.box(15, -5, 20, 15)
    third = shapely.box(22, 2, 40, 8)
    out, keep = resolve_overlaps(
        array(long, bar, third), np.array([0.8, 0.9, 0.7]), np.zeros(3, int)
    )
    assert keep.all()
    assert out[0].equals(shapely.box(0, 0, 15, 10))
    assert out[2] is not None
    assert out[2].equals(third)


@pytest.mark.parametrize(
    ("loser", "kept"),
    [
        (shapely.box(2, 2, 8, 8), False),  # nothing left
        (shapely.box(0, 0, 10.5, 10), False),  # a twentieth
        (shapely.box(-1, -1, 11, 11), False),  # a thin frame: 31 % of the area, no width
        (shapely.box(0, 0, 14, 10), True),  # more than half lost, a solid piece left
        (shapely.box(0, 0, 40, 40), True),
    ],
)
def test_only_objects_of_which_slivers_remain_are_left_out(loser, kept):
    winner = shapely.box(0, 0, 10, 10)
    polygons = array(winner, loser)
    out, keep = resolve_overlaps(polygons, np.array([0.9, 0.5]), np.zeros(2, int))
    assert keep.tolist() == [True, kept]
    assert out[1].equals(shapely.difference(loser, winner) if kept else loser)


def test_an_object_inside_a_lower_scored_one_leaves_a_hole():
    polygons = array(shapely.box(0, 0, 40, 40), shapely.box(10, 10, 20, 20))
    out, keep = resolve_overlaps(polygons, np.array([0.5, 0.9]), np.zeros(2, int))
    assert keep.all()
    assert len(out[0].interiors) == 1
    assert out[0].area == 1500


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_crowd_is_resolved_the_same_in_any_order(seed):
    polygons = discs(400, 200, 9, seed)
    rng = np.random.default_rng(seed)
    scores = rng.integers(5, 10, 400) / 10  # many ties
    labels = rng.integers(0, 2, 400)
    assert overlap_area(polygons[labels == 0]) > 1000
    out, keep = resolve_overlaps(polygons, scores, labels)
    assert shapely.is_valid(out[keep]).all()
    assert (shapely.get_type_id(out[keep]) == shapely.GeometryType.POLYGON).all()
    assert shapely.area(shapely.difference(out[keep], polygons[keep])).max() < 1e-9
    for label in (0, 1):
        assert overlap_area(out[keep & (labels == label)]) < 1e-6
    assert keep.mean() > 0.7
    shuffle = rng.permutation(400)
    again, kept = resolve_overlaps(polygons[shuffle], scores[shuffle], labels[shuffle])
    assert (kept == keep[shuffle]).all()
    assert (shapely.to_wkb(again[kept]) == shapely.to_wkb(out[shuffle][kept])).all()


# fewer vertices


def wavy_wall(seed):
    """Two buildings wall to wall; the wall is a traced line of many small steps."""
    rng = np.random.default_rng(seed)
    y = np.linspace(0, 40, 161)
    wall = np.stack([30 + 0.05 * rng.normal(size=161).cumsum(), y], axis=1)
    left = shapely.Polygon([(0, 0), *wall, (0, 40)])
    right = shapely.Polygon([*wall, (60, 40), (60, 0)])
    return array(left, right)


@pytest.mark.parametrize("seed", range(5))
def test_a_shared_wall_stays_one_line(seed):
    polygons = wavy_wall(seed)
    out = simplify(polygons, 0.5)
    assert shapely.is_valid(out).all()
    assert (
        shapely.get_num_coordinates(out).sum() < 0.5 * shapely.get_num_coordinates(polygons).sum()
    )
    assert overlap_area(out) == pytest.approx(0, abs=1e-9)
    assert shapely.union_all(out).area == pytest.approx(shapely.area(out).sum())
    assert shapely.length(shapely.intersection(*shapely.boundary(out))) > 39
    assert iou(out, polygons).min() > 0.99


def test_walls_that_cutting_made_are_shared_too():
    # the cut one has corners where it leaves the other; those are missing on the other
    polygons = discs(120, 120, 14, 3)
    polygons, keep = resolve_overlaps(polygons, np.linspace(0.5, 1, 120), np.zeros(120, int))
    polygons = polygons[keep]
    out = simplify(polygons, 1.5)
    assert shapely.is_valid(out).all()
    assert (
        shapely.get_num_coordinates(out).sum() < 0.8 * shapely.get_num_coordinates(polygons).sum()
    )
    assert overlap_area(out) < 1e-6
    # every wall is still there
    a, b = shape._share_corners(polygons)[1:]
    assert len(a) > 50
    walls = shapely.length(shapely.intersection(shapely.boundary(out[a]), shapely.boundary(out[b])))
    before = shapely.length(
        shapely.intersection(shapely.boundary(polygons[a]), shapely.boundary(polygons[b]))
    )
    assert walls.sum() > 0.9 * before.sum()
    order = np.random.default_rng(0).permutation(len(polygons))
    again = simplify(polygons[order], 1.5)
    assert shapely.equals_exact(shapely.normalize(again), shapely.normalize(out[order])).all()


def test_lone_outlines_stay_within_the_tolerance():
    polygons = array(shapely.Point(0, 0).buffer(20, 64), holed(30, (10, 10, 5)))
    out = simplify(polygons, 0.25)
    assert shapely.get_num_coordinates(out)[0] < 0.3 * shapely.get_num_coordinates(polygons)[0]
    assert shapely.hausdorff_distance(polygons, out).max() <= 0.25
    assert out[1].equals(polygons[1])
    assert simplify(polygons, 0)[0] is polygons[0]
    assert len(simplify(polygons[:0], 1)) == 0


def tongue_in_notch():
    """A tongue reaches into a shallow notch: thinned alone, the notch closes over its tip."""
    tongue = shapely.box(18.5, -30, 21.5, 1.2)
    notched = shapely.difference(shapely.box(0, 0, 40, 40), shapely.box(18, 0, 22, 1.5))
    return array(tongue, notched)


def test_neighbours_that_nearly_touch_do_not_come_to_overlap():
    polygons = tongue_in_notch()
    plain = shapely.simplify(polygons, 2)
    assert shapely.area(shapely.intersection(*plain)) > 0.1  # what is to be prevented
    out = simplify(polygons, 2)
    assert shapely.area(shapely.intersection(*out)) == 0
    assert shapely.is_valid(out).all()


def test_neighbours_that_overlapped_before_are_still_simplified():
    polygons = discs(2, 1, 20, 0)
    assert shapely.intersects(*polygons)
    assert (shapely.get_num_coordinates(simplify(polygons, 1)) < 25).all()


def test_without_coverage_simplify_shared_walls_are_kept_as_they_are(monkeypatch):
    monkeypatch.setattr(shape, "_has_coverage_simplify", lambda: False)
    polygons = array(*wavy_wall(0), shapely.Point(100, 0).buffer(20, 64))
    out = simplify(polygons, 0.5)
    assert shapely.get_num_coordinates(out)[2] < 100
    assert shapely.equals(out[:2], polygons[:2]).all()


# right angles

L_SHAPE = shapely.Polygon([(0, 0), (60, 0), (60, 25), (30, 25), (30, 50), (0, 50)])
U_SHAPE = shapely.Polygon(
    [(0, 0), (70, 0), (70, 50), (48, 50), (48, 20), (22, 20), (22, 50), (0, 50)]
)
COURT = shapely.Polygon(shapely.box(0, 0, 70, 60).exterior, [shapely.box(22, 20, 48, 42).exterior])
PLAIN = shapely.box(0, 0, 60, 35)


def ragged(polygon, rng, sigma=0.8):
    """Return the outline with a vertex about every 1.5 px, each off by some noise."""
    rings = []
    for ring in [polygon.exterior, *polygon.interiors]:
        dense = shapely.get_coordinates(shapely.segmentize(ring, 1.5))[:-1]
        noise = rng.normal(0, sigma, dense.shape)
        rings.append(dense + (noise + np.roll(noise, 1, axis=0)) / 2)
    parts = shapely.get_parts(shapely.Polygon(rings[0], rings[1:]).buffer(0))
    return parts[np.argmax(shapely.area(parts))]


def turned(polygon, count, rng):
    return array(*(affinity.rotate(polygon, a) for a in rng.uniform(0, 360, count)))


@pytest.mark.parametrize("clean", [PLAIN, L_SHAPE, U_SHAPE, COURT], ids=["box", "L", "U", "court"])
def test_noisy_outlines_come_closer_to_the_truth(clean):
    rng = np.random.default_rng(0)
    truth = turned(clean, 40, rng)
    noisy = array(*(ragged(p, rng) for p in truth))
    out = regularize(noisy)
    assert shapely.is_valid(out).all()
    before, after = iou(noisy, truth), iou(out, truth)
    assert after.mean() > before.mean() + 0.01
    assert np.mean(after > before) > 0.8
    # as many corners as the truth has
    same = shapely.get_num_coordinates(out) == shapely.get_num_coordinates(clean)
    assert same.mean() > 0.9


def test_corners_are_right_angles_at_any_turn():
    rng = np.random.default_rng(1)
    noisy = array(*(ragged(p, rng) for p in turned(L_SHAPE, 30, rng)))
    for polygon in regularize(noisy):
        steps = np.diff(shapely.get_coordinates(polygon), axis=0)
        cosine = (steps * np.roll(steps, 1, axis=0)).sum(axis=1)
        assert np.abs(cosine).max() < 1e-6


def test_clean_right_angles_stay():
    clean = np.concatenate(
        [turned(p, 5, np.random.default_rng(2)) for p in (PLAIN, L_SHAPE, U_SHAPE, COURT)]
    )
    assert iou(regularize(clean), clean).min() > 0.9999


@pytest.mark.parametrize("sigma", [0, 0.3, 0.8])
@pytest.mark.parametrize("sides", [3, 5, 6, 8, 12, 64])
def test_what_has_no_two_directions_stays_as_it_was(sides, sigma):
    rng = np.random.default_rng(sides)
    a = np.arange(sides) / sides * 2 * np.pi
    shapes = [
        ragged(shapely.Polygon(np.stack([r * np.cos(a), r * np.sin(a)], axis=1)), rng, sigma)
        for r in (15, 30, 60, 120)
    ]
    if sigma == 0:
        shapes.append(shapely.Point(0, 0).buffer(25, 32))
    polygons = array(*shapes)
    out = regularize(polygons)
    assert all(a is b for a, b in zip(out, polygons, strict=True))


def test_the_guard_holds_whatever_the_shape():
    rng = np.random.default_rng(5)
    blobs = discs(300, 300, 14, 5)
    groups = array(*(shapely.convex_hull(shapely.union_all(g)) for g in blobs.reshape(-1, 3)))
    boxes = array(*(ragged(p, rng, 2.5) for p in turned(L_SHAPE, 60, rng)))
    polygons = np.concatenate([groups, shapely.get_parts(boxes)])
    for max_loss in (0.0, 0.05, 0.10, 0.2):
        out = regularize(polygons, max_loss=max_loss)
        assert shapely.is_valid(out).all()
        assert iou(out, polygons).min() >= 1 - max_loss - 1e-12
    changed = [a is not b for a, b in zip(out, polygons, strict=True)]
    assert 10 < sum(changed) < len(polygons)


def test_tiny_thin_and_no_shapes_pass():
    odd = array(
        shapely.box(0, 0, 1, 1),
        shapely.box(0, 0, 200, 0.5),
        shapely.Polygon([(0, 0), (5, 0), (0, 0.1)]),
        shapely.Polygon(),
    )
    out = regularize(odd)
    assert shapely.is_valid(out).all()
    assert shapely.area(out) == pytest.approx(shapely.area(odd), rel=0.1)
    assert len(regularize(odd[:0])) == 0


def test_each_row_depends_on_itself_alone():
    rng = np.random.default_rng(3)
    noisy = array(*(ragged(p, rng) for p in turned(U_SHAPE, 12, rng)), *discs(3, 50, 9, 1))
    together = regularize(noisy)
    alone = array(*(regularize(noisy[k : k + 1])[0] for k in range(len(noisy))))
    assert shapely.equals_exact(together, alone, tolerance=1e-9).all()


def test_right_angles_are_quick():
    rng = np.random.default_rng(0)
    noisy = array(*(ragged(p, rng, 0.4) for p in turned(L_SHAPE, 50, rng)))
    noisy = np.tile(noisy, 10)
    took = []
    for _ in range(3):
        start = time.process_time()
        regularize(noisy)
        took.append(time.process_time() - start)
    # 2,000 to 4,000 a second on a slow core; a loop in Python would need some seconds
    assert min(took) < 1.5


# all together


def test_nothing_is_done_that_was_not_asked_for():
    polygons = array(holed(20, (2, 2, 2)), shapely.box(10, 10, 30, 30), shapely.box(0, 0, 1, 1))
    settings = ShapeSettings(simplify_px=0)
    out, keep = finish_shapes(polygons, np.ones(3), np.zeros(3, int), settings, gsd_m=0.1)
    assert keep.all()
    assert all(a is b for a, b in zip(out, polygons, strict=True))


def test_square_metres_become_px():
    polygons = array(holed(20, (2, 2, 2)), shapely.box(50, 50, 59, 59))
    settings = ShapeSettings(min_area_m2=1.0, max_hole_m2=0.05)
    columns = (polygons, np.ones(2), np.zeros(2, int), settings)
    out, keep = finish_shapes(*columns, gsd_m=0.1)
    assert keep.tolist() == [True, False]
    assert out[0].area == 400
    out, keep = finish_shapes(*columns, gsd_m=0.2)
    assert keep.tolist() == [True, True]
    assert out[0].area == 396


def test_a_town_is_finished_in_order():
    rng = np.random.default_rng(7)
    rows = [affinity.translate(PLAIN, 60 * i, 35 * j) for i in range(6) for j in range(6)]
    town = array(*(ragged(affinity.rotate(p, 20, origin=(0, 0)), rng) for p in rows))
    scores = rng.uniform(0.5, 1, len(town))
    settings = ShapeSettings(resolve_overlaps=True, regularize=True, min_area_m2=2, max_hole_m2=1)
    out, keep = finish_shapes(town, scores, np.zeros(len(town), int), settings, gsd_m=0.15)
    assert keep.all()
    assert shapely.is_valid(out).all()
    assert overlap_area(town) > 100
    assert overlap_area(out) < 1e-6
    truth = array(*(affinity.rotate(p, 20, origin=(0, 0)) for p in rows))
    assert iou(out, truth).mean() > iou(town, truth).mean()
    assert np.median(shapely.get_num_coordinates(out)) <= 12
    order = rng.permutation(len(town))
    again, kept = finish_shapes(
        town[order], scores[order], np.zeros(len(town), int), settings, gsd_m=0.15
    )
    assert kept.all()
    assert shapely.equals_exact(shapely.normalize(again), shapely.normalize(out[order])).all()


def test_what_cutting_makes_too_small_is_dropped():
    polygons = array(shapely.box(0, 0, 10, 10), shapely.box(0, 0, 14, 10))
    scores, labels = np.array([0.9, 0.5]), np.zeros(2, int)
    settings = ShapeSettings(resolve_overlaps=True, min_area_m2=50)
    assert finish_shapes(polygons, scores, labels, settings, gsd_m=1)[1].tolist() == [True, False]
    settings = ShapeSettings(resolve_overlaps=True, min_area_m2=30)
    assert finish_shapes(polygons, scores, labels, settings, gsd_m=1)[1].tolist() == [True, True]
    # too small to begin with: takes no ground, whatever its score
    settings = ShapeSettings(resolve_overlaps=True, min_area_m2=120)
    out, keep = finish_shapes(polygons, scores, labels, settings, gsd_m=1)
    assert keep.tolist() == [False, True]
    assert out[1].area == 140


def test_no_objects_pass_all_steps():
    settings = ShapeSettings(resolve_overlaps=True, regularize=True, min_area_m2=1, max_hole_m2=1)
    out, keep = finish_shapes(
        np.zeros(0, object), np.zeros(0, np.float32), np.zeros(0, np.int64), settings, gsd_m=0.1
    )
    assert len(out) == len(keep) == 0
    assert keep.dtype == bool


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"simplify_px": -1}, "simplify_px is -1"),
        ({"min_area_m2": float("nan")}, "min_area_m2 is nan"),
        ({"max_hole_m2": float("inf")}, "max_hole_m2 is inf"),
        ({"max_loss": 1.5}, "max_loss is 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        ShapeSettings(**wrong)


def test_calls_that_do_not_fit_are_refused():
    one = array(PLAIN)
    with pytest.raises(ConfigError, match="1 polygons, 2 scores and 1 labels"):
        resolve_overlaps(one, np.ones(2), np.zeros(1, int))
    with pytest.raises(ConfigError, match="gsd_m is 0"):
        finish_shapes(one, np.ones(1), np.zeros(1, int), ShapeSettings(), gsd_m=0)
    with pytest.raises(ConfigError, match="max_area is -1"):
        fill_holes(one, -1)
    with pytest.raises(ConfigError, match="tolerance_px is nan"):
        simplify(one, float("nan"))
    with pytest.raises(ConfigError, match="step_px is -2"):
        regularize(one, step_px=-2)
