"""Seam statistics: counts against hand-made cases and loops, sums over parts, and what is said."""

import json
import pickle

import numpy as np
import painted
import pytest
import shapely

from geoseg.errors import ConfigError
from geoseg.imagery.grid import TileGrid, tile_axis
from geoseg.objects.seams import (
    DISTANCE_BINS,
    SIZE_BINS,
    SeamCounts,
    band_share,
    count_duplicates,
    in_bands,
    seam_report,
)
from geoseg.objects.stitch import MARGIN_PX, split_settled, stitch, stitch_counted
from geoseg.records import Fragments

EXACT = painted.PaintedDetector(28)
DISTURBED = painted.PaintedDetector(28, disturb=True, seed=2)
PAIR = painted.square_tiles(200, 340, 200, 60)
"""Windows x 0-200 and 140-340; cores meet at 170."""


@pytest.fixture(scope="module")
def scene():
    return painted.blob_scene(0, size=1000, count=330, large=5)


def fragments_of(*rows):
    """Build uncut fragments from (polygon, tile) or (polygon, tile, label)."""
    n = len(rows)
    return Fragments(
        polygons=np.array([r[0] for r in rows], object),
        scores=np.full(n, 0.9, np.float32),
        labels=np.array([r[2] if len(r) > 2 else 0 for r in rows], np.int64),
        tiles=np.array([r[1] for r in rows], np.int64),
        cut=np.zeros(n, bool),
        at_edge=np.zeros(n, bool),
    )


def same_objects(first, second):
    return shapely.equals_exact(first.polygons, second.polygons, 0).all() and all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in ("scores", "labels", "n_parts", "complete", "touches_edge")
    )


def at(distance):
    """Return the bin of a distance."""
    return max(k for k, start in enumerate(DISTANCE_BINS) if start <= distance)


def placed(counts):
    """Return {bin: (trials, hits)} of the bins that are not empty."""
    return {k: (t, h) for k, (t, h) in enumerate(zip(counts.trials, counts.hits, strict=True)) if t}


# -- counting ---------------------------------------------------------------------------------


def test_each_tile_is_tried_with_what_the_other_shows_deep_inside():
    # 30 to 40 px from the right tile's edge, 20 to 30 px from the left one's
    thing = shapely.box(170, 50, 180, 70)
    _, counts = stitch_counted(fragments_of((thing, 0), (thing, 1)), PAIR)
    assert placed(counts) == {at(20): (1, 1), at(30): (1, 1)}
    assert (counts.fragments, counts.objects, counts.joined, counts.incomplete) == (2, 1, 0, 0)


def test_a_tile_that_shows_nothing_there_is_a_miss():
    thing = shapely.box(170, 50, 180, 70)
    _, counts = stitch_counted(fragments_of((thing, 0)), PAIR)
    assert placed(counts) == {at(30): (1, 0)}
    # a tile that was not looked at is no trial
    assert placed(stitch_counted(fragments_of((thing, 0)), PAIR[:1])[1]) == {}


def test_near_its_own_cut_side_a_fragment_is_no_trial():
    near = shapely.box(170, 50, 200 - MARGIN_PX, 70)
    assert placed(stitch_counted(fragments_of((near, 0)), PAIR)[1]) == {}
    clear = shapely.box(170, 50, 199 - MARGIN_PX, 70)
    assert placed(stitch_counted(fragments_of((clear, 0)), PAIR)[1]) == {at(30): (1, 0)}


def test_only_what_lies_whole_in_the_other_window_is_a_trial():
    assert placed(stitch_counted(fragments_of((shapely.box(139, 50, 180, 70), 0)), PAIR)[1]) == {}
    _, counts = stitch_counted(fragments_of((shapely.box(140, 50, 180, 70), 0)), PAIR)
    assert placed(counts) == {0: (1, 0)}


def test_another_class_or_a_poor_match_is_a_miss_also_if_class_agnostic():
    thing, part = shapely.box(165, 50, 180, 70), shapely.box(165, 50, 180, 58)
    for rows in ([(thing, 0, 0), (thing, 1, 1)], [(thing, 0), (part, 1)]):
        for class_agnostic in (False, True):
            _, counts = stitch_counted(fragments_of(*rows), PAIR, class_agnostic=class_agnostic)
            assert sum(counts.trials) == 2
            assert sum(counts.hits) == 0
    rows = fragments_of((thing, 0), (part, 1))
    assert sum(stitch_counted(rows, PAIR, iou_threshold=0.35)[1].hits) == 2


def test_sides_that_are_the_rasters_own_are_no_distance():
    # at the very top of the raster: only the cut side of the other tile counts
    thing = shapely.box(170, 0, 180, 10)
    _, counts = stitch_counted(fragments_of((thing, 0)), PAIR)
    assert placed(counts) == {at(30): (1, 0)}


def test_duplicates_inside_a_tile_and_tiles_listed_twice_count_once():
    thing = shapely.box(165, 50, 180, 70)
    rows = fragments_of((thing, 0), (shapely.box(165, 50, 180, 71), 0), (thing, 1))
    _, counts = stitch_counted(rows, PAIR)
    assert (sum(counts.trials), sum(counts.hits)) == (2, 2)
    _, again = stitch_counted(rows, [*PAIR, *PAIR])
    assert again == counts


def oracle(fragments, tiles):
    """Count trials and hits by loops, for fragments without duplicates inside a tile."""
    trials, hits = [0] * len(DISTANCE_BINS), [0] * len(DISTANCE_BINS)

    def gap(bounds, tile):
        w, c = tile.window, tile.core
        sides = [
            (bounds[0] - w.col_off, c.col_off == w.col_off),
            (bounds[1] - w.row_off, c.row_off == w.row_off),
            (w.col_off + w.width - bounds[2], c.col_off + c.width == w.col_off + w.width),
            (w.row_off + w.height - bounds[3], c.row_off + c.height == w.row_off + w.height),
        ]
        return min(distance for distance, _ in sides), min(
            (distance for distance, edge in sides if not edge), default=np.inf
        )

    for k, polygon in enumerate(fragments.polygons):
        own = fragments.tiles[k]
        if fragments.cut[k] or gap(polygon.bounds, tiles[own])[1] <= MARGIN_PX:
            continue
        for other, tile in enumerate(tiles):
            inside, distance = gap(polygon.bounds, tile)
            if other == own or inside < 0:
                continue
            shared = as_box(tiles[own].window).intersection(as_box(tile.window))
            found = False
            for g in np.flatnonzero(
                (fragments.tiles == other) & (fragments.labels == fragments.labels[k])
            ):
                a, b = polygon.intersection(shared), fragments.polygons[g].intersection(shared)
                found |= a.intersection(b).area >= 0.5 * a.union(b).area
            trials[at(distance)] += 1
            hits[at(distance)] += found
    return tuple(trials), tuple(hits)


def as_box(w):
    return shapely.box(w.col_off, w.row_off, w.col_off + w.width, w.row_off + w.height)


def test_counts_equal_the_oracle():
    scene = painted.blob_scene(3, size=520, count=120, large=1)
    tiles = painted.square_tiles(*scene.shape, 200, 60)
    fragments = painted.detect(scene, tiles, EXACT)
    # a detector that forgets: every seventh fragment is gone
    fragments = fragments.take(np.arange(len(fragments)) % 7 != 3)
    _, counts = stitch_counted(fragments, tiles)
    assert (counts.trials, counts.hits) == oracle(fragments, tiles)
    assert sum(counts.trials) > 100
    assert 0 < sum(counts.hits) < sum(counts.trials)


def test_objects_are_those_of_stitch_and_counted_as_they_are(scene):
    tiles = painted.square_tiles(*scene.shape, 256, 64)
    fragments = painted.detect(scene, tiles, DISTURBED)
    objects, counts = stitch_counted(fragments, tiles)
    assert same_objects(objects, stitch(fragments, tiles))
    assert counts.fragments == len(fragments)
    assert counts.objects == len(objects) == sum(counts.sizes)
    assert counts.joined == (objects.n_parts > 1).sum() > 0
    assert counts.incomplete == (~objects.complete).sum()
    x0, y0, x1, y1 = shapely.bounds(objects.polygons).T
    longer = np.maximum(x1 - x0, y1 - y0)
    inner = np.histogram(longer, [0, *SIZE_BINS, np.inf])[0]
    assert counts.sizes == tuple(inner.tolist())


def test_an_exact_detector_agrees_at_every_distance(scene):
    tiles = painted.square_tiles(*scene.shape, 256, 64)
    _, counts = stitch_counted(painted.detect(scene, tiles, painted.PaintedDetector()), tiles)
    assert counts.hits == counts.trials
    assert sum(counts.trials) > 100


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("detector", [EXACT, DISTURBED], ids=["exact", "disturbed"])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_counts_of_parts_add_up_to_the_counts_of_all(scene, detector, block, class_agnostic):
    tiles = painted.square_tiles(*scene.shape, 256, 64)
    fragments = painted.detect(scene, tiles, detector)
    # a tile that was looked at and shows nothing
    fragments = fragments.take(fragments.tiles != 7)
    options = {"class_agnostic": class_agnostic}
    expected = stitch_counted(fragments, tiles, **options)[1]
    home = np.array([(t.index[0] // block) * 100 + t.index[1] // block for t in tiles])
    parts, rest = [], []
    for supertile in np.unique(home):
        own = np.flatnonzero(home == supertile)
        foreign = [t.window for t, h in zip(tiles, home, strict=True) if h != supertile]
        mine = fragments.take(np.isin(fragments.tiles, own))
        settled = split_settled(mine, tiles, foreign, **options)
        # its own tiles are enough for what is settled
        local = mine.take(settled)
        local = Fragments(
            local.polygons,
            local.scores,
            local.labels,
            np.searchsorted(own, local.tiles),
            local.cut,
            local.at_edge,
        )
        parts.append(stitch_counted(local, [tiles[k] for k in own], **options)[1])
        rest.append(mine.take(~settled))
    waiting = Fragments.concatenate(rest)
    assert len(waiting) > 0
    parts.append(stitch_counted(waiting, tiles, **options)[1])
    assert SeamCounts.total(parts) == expected
    assert sum(expected.trials) > sum(expected.hits) > 0


def test_nothing_in_nothing_counted():
    objects, counts = stitch_counted(Fragments.empty(), PAIR)
    assert len(objects) == 0
    assert counts == SeamCounts.empty()
    assert stitch_counted(Fragments.empty(), [])[1] == SeamCounts.empty()


# -- the record -------------------------------------------------------------------------------


def test_counts_survive_json_and_pickle(scene):
    tiles = painted.square_tiles(*scene.shape, 256, 64)
    _, counts = stitch_counted(painted.detect(scene, tiles, DISTURBED), tiles)
    assert SeamCounts.from_dict(json.loads(json.dumps(counts.to_dict()))) == counts
    assert pickle.loads(pickle.dumps(counts)) == counts
    assert counts + SeamCounts.empty() == counts
    assert SeamCounts.total([counts, counts]) == counts + counts
    assert all(
        isinstance(v, int)
        for value in counts.to_dict().values()
        for v in (value if isinstance(value, list) else [value])
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trails": [0]}, "hold 'trails'; expected some of fragments"),
        ({"objects": -1}, "objects is -1; expected counts"),
        ({"objects": 1.5}, "objects is 1.5; expected counts"),
        ({"trials": 3}, "trials is 3; expected counts"),
        ({"hits": ["1"]}, "expected counts, from 0"),
        ({"sizes": [0, 1]}, "sizes has 2 entries; expected 50"),
    ],
)
def test_counts_that_are_none_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        SeamCounts.from_dict(values)


# -- bands ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [(100, 130, 40, 10), (35, 130, 40, 10), (97, 41, 40, 25), (80, 90, 40, 0), (30, 30, 40, 8)],
)
def test_bands_are_what_two_windows_cover(height, width, tile, overlap):
    grid = TileGrid(height, width, tile, overlap, tile)
    looks = np.zeros((height, width), int)
    for part in grid.supertiles():
        for one in part.tiles:
            w = one.window
            looks[w.row_off : w.row_off + w.height, w.col_off : w.col_off + w.width] += 1
    assert looks.min() >= 1
    spans = [
        [(t.window_start, t.window_stop) for t in tile_axis(length, tile, overlap)]
        for length in (height, width)
    ]
    y, x = np.mgrid[:height, :width]
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    for shift in (0, 0.5):
        found = in_bands(points + shift, *spans).reshape(looks.shape)
        assert np.array_equal(found, looks >= 2)
    assert band_share(*spans, height, width) == pytest.approx((looks >= 2).mean())


def test_bands_of_nothing():
    assert in_bands(np.zeros((0, 2)), [(0, 10)], [(0, 10)]).tolist() == []
    assert in_bands([(5, 5)], [], []).tolist() == [False]
    with pytest.raises(ConfigError, match=r"points has shape \(3,\); expected \(n, 2\)"):
        in_bands([1, 2, 3], [(0, 10)], [(0, 10)])
    with pytest.raises(ConfigError, match=r"spans has shape \(1, 3\)"):
        in_bands([(1, 2)], [(0, 10, 20)], [(0, 10)])
    with pytest.raises(ConfigError, match="raster is 0 x 5 px"):
        band_share([(0, 10)], [(0, 10)], 0, 5)


def test_duplicates_by_hand():
    polygons = np.array(
        [
            shapely.box(0, 0, 10, 10),
            shapely.box(0, 0, 5, 10),  # half of 0: a duplicate
            shapely.box(1, 1, 4, 4),  # in 0 and in 1: one duplicate
            shapely.box(6, 0, 14, 10),  # exactly half of it on 0
            shapely.box(20, 0, 30, 10),
            shapely.box(25.1, 0, 30.9, 10),  # of another class
            shapely.box(40, 0, 50, 10),
            shapely.box(40, 0, 50, 10),  # the same again: one of the two
            shapely.box(60, 0, 70, 10),
            shapely.box(66, 0, 76, 10),  # 40 % shared
        ],
        object,
    )
    labels = np.array([0, 0, 0, 0, 0, 1, 2, 2, 0, 0])
    band = np.array([1, 1, 0, 0, 1, 1, 1, 1, 0, 0], bool)
    counts = count_duplicates(polygons, labels, band)
    assert (counts.band_objects, counts.band_duplicates) == (6, 2)
    assert (counts.interior_objects, counts.interior_duplicates) == (4, 2)
    names = np.array(["roof", "tree", "car"], object)[labels]
    order = np.random.default_rng(0).permutation(10)
    assert count_duplicates(polygons[order], names[order], band[order]) == counts


def test_duplicates_need_columns_of_one_length():
    with pytest.raises(ConfigError, match="2 labels and 1 entries of in_band"):
        count_duplicates(np.array([shapely.box(0, 0, 1, 1)]), np.zeros(2), np.ones(1, bool))
    empty = count_duplicates(np.zeros(0, object), np.zeros(0), np.zeros(0, bool))
    assert empty == SeamCounts.empty()


def test_stitched_objects_hold_no_duplicates_but_raw_fragments_do(scene):
    tiles = painted.square_tiles(*scene.shape, 256, 64)
    fragments = painted.detect(scene, tiles, EXACT)
    axes = [
        sorted({(f(t), f(t) + 256) for t in tiles})
        for f in (lambda t: t.window.row_off, lambda t: t.window.col_off)
    ]
    found = {}
    for name, things in (("raw", fragments), ("stitched", stitch(fragments, tiles))):
        points = shapely.get_coordinates(shapely.point_on_surface(things.polygons))
        found[name] = count_duplicates(things.polygons, things.labels, in_bands(points, *axes))
    assert found["stitched"].band_duplicates == found["stitched"].interior_duplicates == 0
    assert found["stitched"].band_objects > 100
    assert found["raw"].band_duplicates > 100
    assert found["raw"].interior_duplicates < 5


# -- the report -------------------------------------------------------------------------------


def counts_with(shares, trials=1000, *, lengths=(), **columns):
    """Return counts with the given agreement per bin and objects of the given lengths."""
    shares = [*shares, *[0] * (len(DISTANCE_BINS) - len(shares))]
    many = [trials if s else 0 for s in shares]
    sizes = np.histogram(lengths, [0, *SIZE_BINS, np.inf])[0]
    return SeamCounts(
        objects=len(lengths),
        trials=tuple(many),
        hits=tuple(round(s * n) for s, n in zip(shares, many, strict=True)),
        sizes=tuple(sizes.tolist()),
        **columns,
    )


LENGTHS = [30.0] * 990 + [300.0] * 10
"""99 % of them under 32 px."""


def test_margin_size_and_overlap_by_hand():
    # 0-2, 2-4, 4-6 px poor, from 6 px on as good as deep inside
    counts = counts_with([0.5, 0.6, 0.8, 0.9, 0.9, 0.91, 0.92, 0.91], lengths=LENGTHS, joined=7)
    report = seam_report(counts, overlap_px=64, band_share=0.4)
    assert report.trusted_margin_px == 6
    assert not report.margin_is_lower_bound
    assert (report.near.place, report.near.share) == ("0-2 px", 0.5)
    assert report.deep.from_px == 16
    assert report.deep.share == pytest.approx(0.915)
    assert report.size_px == 32
    # 32 + 2 * 6 = 44 -> 48
    assert report.needed_overlap_px == 48
    assert report.enough
    assert report.verdict.startswith("--overlap 64 is enough: 32 px")
    small = seam_report(counts, overlap_px=32, band_share=0.2)
    assert not small.enough
    assert small.verdict.startswith("raise --overlap from 32 to 48: 32 px")
    assert small.verdict.endswith("now 7 of 1,000 objects were seen whole by no tile, and joined")


def test_agreement_that_still_rises_gives_a_lower_bound():
    counts = counts_with([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], lengths=LENGTHS)
    report = seam_report(counts, overlap_px=64, band_share=0.4)
    # the two farthest bins are the deep ones, from 16 px; the next one is worse already
    assert (report.trusted_margin_px, report.margin_is_lower_bound) == (16, True)
    assert "need at least 64 px" in report.verdict
    assert "is not too small" in report.verdict
    assert "trusted margin: at least 16 px from a tile's edge" in report.lines()


def test_agreement_that_is_good_right_to_the_edge_needs_no_margin():
    counts = counts_with([0.9] * 8, lengths=LENGTHS)
    report = seam_report(counts, overlap_px=64, band_share=0.4)
    assert report.trusted_margin_px == 0
    assert report.needed_overlap_px == 32


def test_a_dip_within_two_points_or_within_chance_is_none():
    small = seam_report(counts_with([0.89, *[0.9] * 7], 5000), overlap_px=64, band_share=0)
    assert small.trusted_margin_px == 0
    chance = seam_report(counts_with([0.85, *[0.9] * 7], 100), overlap_px=64, band_share=0)
    assert chance.trusted_margin_px == 0
    # the same dip with many trials is one
    sure = seam_report(counts_with([0.85, *[0.9] * 7], 5000), overlap_px=64, band_share=0)
    assert sure.trusted_margin_px == 2


def test_a_marked_dip_in_one_thin_bin_does_not_hide_in_a_wide_group():
    # 30 trials a bin: groups of four
    report = seam_report(counts_with([0.6, *[0.9] * 11], 30), overlap_px=64, band_share=0)
    assert report.near.to_px == 8
    assert report.trusted_margin_px == 2
    # too few for that
    counts = counts_with([0.6, *[0.9] * 11], 18)
    assert seam_report(counts, overlap_px=64, band_share=0).trusted_margin_px == 0


TOWN_TRIALS = np.array([240, 278, 250, 214, 658, 574, 1234, 1340, 1997, 1881, 2386, 108, 0])
"""How the trials of a painted town lie, at an overlap of 128 px (benchmarks/town_fragments.py)."""


@pytest.mark.parametrize(
    ("total", "dip", "reach", "at_least", "at_most"),
    [
        # share of runs in which a margin above 0 is given
        (1_000, 0.9, 0, 0.0, 0.15),
        (10_000, 0.9, 0, 0.0, 0.02),
        (1_000, 0.6, 8, 0.99, 1.0),
        (1_000, 0.8, 8, 0.5, 0.7),
        (3_000, 0.8, 8, 0.93, 1.0),
    ],
)
def test_how_sure_the_margin_is(total, dip, reach, at_least, at_most):
    """The figures of docs/stitching.md: agreement of 90 %, or less up to some distance."""
    rng = np.random.default_rng(0)
    shares = np.where(np.array(DISTANCE_BINS) < reach, dip, 0.9)
    given = 0
    for _ in range(300):
        trials = rng.multinomial(total, TOWN_TRIALS / TOWN_TRIALS.sum())
        hits = rng.binomial(trials, shares)
        counts = SeamCounts(trials=tuple(trials.tolist()), hits=tuple(hits.tolist()))
        given += seam_report(counts, overlap_px=128, band_share=0.4).trusted_margin_px > 0
    assert at_least <= given / 300 <= at_most


def test_thin_bins_are_joined_until_they_say_something():
    # 60 trials a bin: two make a group
    report = seam_report(counts_with([0.5, 0.5, *[0.9] * 6], 60), overlap_px=64, band_share=0)
    assert report.near.trials == 120
    assert report.near.place == "0-4 px"
    assert report.trusted_margin_px == 4
    assert [bin_.trials for bin_ in report.agreement] == [60] * 8


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (SeamCounts.empty(), "0 objects, at least 100 are needed"),
        (counts_with([0.9] * 8, lengths=[30] * 99), "99 objects, at least 100"),
        (
            counts_with([0.9] * 8, 10, lengths=LENGTHS),
            "80 objects seen by two tiles, 60 of them within 16 px",
        ),
        (counts_with([0.9], 150, lengths=LENGTHS), "150 of them within 16 px of a tile's edge; at"),
        (
            counts_with([0] * 6 + [0.9] * 3, lengths=LENGTHS),
            "3,000 objects seen by two tiles, 0 of them within 16 px",
        ),
        (counts_with([0.9] * 8, lengths=[2e4] * 200), "over 1 % of objects exceed 16,384 px"),
    ],
)
def test_too_few_say_so(counts, said):
    report = seam_report(counts, overlap_px=64, band_share=0.4)
    assert report.needed_overlap_px is None
    assert report.enough is None
    assert said in report.verdict
    assert report.lines()[-1] == report.verdict
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["needed_overlap_px"] is None


def test_duplicate_rates_and_lines():
    counts = counts_with(
        [0.5, *[0.9] * 7],
        lengths=LENGTHS,
        band_objects=400,
        band_duplicates=3,
        interior_objects=600,
        interior_duplicates=0,
        joined=12,
        incomplete=1,
        fragments=1500,
    )
    report = seam_report(counts, overlap_px=64, band_share=0.36)
    assert report.band_duplicate_rate == pytest.approx(0.0075)
    assert report.interior_duplicate_rate == 0
    text = "\n".join(report.lines())
    assert "overlap 64 px; 36.0 % of the ground seen twice" in text
    assert "duplicates: 0.8 % of 400 objects in bands, 0.0 % of 600 in interiors (within" in text
    assert "of 1,000 objects 12 were cut by every tile that saw them and joined; 1 end" in text
    assert "99 % of the objects are under 32 px long" in text
    assert "50.0 % near its edge (0-2 px, 1,000 trials)" in text
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["near"]["share"] == 0.5
    assert values["enough"] is True
    assert len(values["agreement"]) == 8


@pytest.mark.parametrize(
    ("band", "interior", "differ"),
    [
        ((141, 1587), (102, 1264), False),  # 8.9 and 8.1 %
        ((141, 1587), (60, 1264), True),  # 8.9 and 4.7 %
        ((20, 1000), (60, 1000), True),
        ((0, 1000), (0, 1000), False),
        ((3, 400), (0, 600), False),  # by Fisher's exact test 6 %
        ((50, 99), (0, 1000), None),
        ((0, 0), (0, 0), None),
    ],
)
def test_rates_of_duplicates_are_held_against_chance(band, interior, differ):
    counts = SeamCounts(
        band_duplicates=band[0],
        band_objects=band[1],
        interior_duplicates=interior[0],
        interior_objects=interior[1],
    )
    report = seam_report(counts, overlap_px=64, band_share=0.4)
    assert report.rates_differ is differ
    assert ("within chance" in "\n".join(report.lines())) == (differ is False)


def test_a_detector_that_is_blind_near_its_edge_is_found_out():
    """End to end: what lies within 20 px of a window's cut side is not seen."""
    scene = painted.blob_scene(5, size=1400, count=900, large=0, small_px=(6, 22))
    tiles = painted.square_tiles(*scene.shape, 400, 128)
    fragments = painted.detect(scene, tiles, EXACT)
    bounds = shapely.bounds(fragments.polygons)
    gaps = []
    for row, tile in enumerate(fragments.tiles):
        w, c = tiles[tile].window, tiles[tile].core
        x1, y1 = w.col_off + w.width, w.row_off + w.height
        sides = [
            (bounds[row, 0] - w.col_off, c.col_off > w.col_off),
            (bounds[row, 1] - w.row_off, c.row_off > w.row_off),
            (x1 - bounds[row, 2], c.col_off + c.width < x1),
            (y1 - bounds[row, 3], c.row_off + c.height < y1),
        ]
        gaps.append(min((gap for gap, inner in sides if inner), default=np.inf))
    blind = fragments.take(np.array(gaps) > 20)
    _, counts = stitch_counted(blind, tiles)
    report = seam_report(counts, overlap_px=128, band_share=0.5)
    # 16-24 px is the bin in which the sight begins
    assert report.trusted_margin_px == 24
    assert report.near.share < 0.05
    assert report.deep.share > 0.98
    assert report.enough
