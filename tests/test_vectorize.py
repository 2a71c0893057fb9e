"""Tracing masks: areas, places, holes, clipping, and what happens to odd masks."""

import time

import numpy as np
import painted
import pytest
import shapely
from rasterio.windows import Window

from geoseg.errors import TileError
from geoseg.objects.vectorize import vectorize
from geoseg.records import Instances, Tile

RASTER = (2000, 3000)
INNER = Tile((1, 1), Window(130, 230, 400, 400), Window(100, 200, 512, 512))


def instances_of(*pairs):
    """Build Instances from (box, mask) pairs."""
    return Instances(
        boxes=np.array([b for b, _ in pairs], np.float32).reshape(-1, 4),
        scores=np.linspace(0.5, 1, len(pairs)).astype(np.float32),
        labels=np.arange(len(pairs)),
        masks=[np.asarray(m, np.float32) for _, m in pairs],
    )


def trace(*pairs, tile=INNER, **kwargs):
    kwargs = {"tile_row": 3, "raster_shape": RASTER} | kwargs
    fragments = vectorize(instances_of(*pairs), tile, **kwargs)
    assert shapely.is_valid(fragments.polygons).all()
    assert (shapely.get_type_id(fragments.polygons) == shapely.GeometryType.POLYGON).all()
    return fragments


def disc(radius):
    n = int(2 * radius + 3)
    y, x = np.mgrid[:n, :n] + 0.5 - n / 2
    return np.hypot(x, y) <= radius


@pytest.mark.parametrize(
    ("mask", "tolerance"),
    [
        (np.ones((4, 4)), 0.01),  # cv2.findContours loses 44 % here
        (np.ones((10, 10)), 0.005),
        (np.ones((30, 50)), 0.001),
        (disc(2.5), 0.01),
        (disc(5), 0.005),
        (disc(20), 0.002),
        (np.eye(60), 0.005),  # a diagonal one px wide: cells touch by corners only
        (painted.blob(40, np.random.default_rng(1)), 0.002),
    ],
)
def test_full_resolution_masks_keep_their_area_and_place(mask, tolerance):
    height, width = mask.shape
    fragments = trace(([20, 30, 20 + width, 30 + height], mask))
    polygon = fragments.polygons[0]
    assert polygon.area == pytest.approx(mask.sum(), rel=tolerance)
    rows, cols = np.nonzero(mask)
    centre = (120.5 + cols.mean(), 230.5 + rows.mean())
    assert polygon.centroid.coords[0] == pytest.approx(centre, abs=0.02)
    bounds = (120 + cols.min(), 230 + rows.min(), 121 + cols.max(), 231 + rows.max())
    assert polygon.bounds == pytest.approx(bounds, abs=1e-4)


@pytest.mark.parametrize("size", [4, 10, 40, 300])
@pytest.mark.parametrize("probability", [0.6, 0.8, 1.0])
def test_object_that_fills_its_box_ends_at_the_box(size, probability):
    mask = np.full((28, 28), probability)
    polygon = trace(([20, 30, 20 + size, 30 + size], mask)).polygons[0]
    assert polygon.area == pytest.approx(size**2, rel=0.002)
    assert polygon.bounds == pytest.approx((120, 230, 120 + size, 230 + size), abs=1e-3 * size)


@pytest.mark.parametrize("radius", [2.5, 5, 10, 20, 100])
def test_fixed_grids_keep_the_area_of_discs(radius):
    mask = disc(radius)
    n = len(mask)
    polygon = trace(([20, 30, 20 + n, 30 + n], painted.resample(mask, 28))).polygons[0]
    assert polygon.area == pytest.approx(mask.sum(), rel=0.02)


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_threshold_moves_soft_outlines_but_not_hard_ones(threshold):
    ramp = np.tile(np.linspace(0.05, 0.95, 10), (10, 1))
    soft = trace(([0, 0, 10, 10], ramp), threshold=threshold).polygons[0]
    assert soft.bounds[0] == pytest.approx(100 + threshold * 10, abs=1e-3)
    hard = trace(([0, 0, 10, 10], np.ones((10, 10))), threshold=threshold).polygons[0]
    assert hard.area == pytest.approx(100, rel=0.005)


def test_two_holes_are_kept():
    mask = np.ones((20, 30))
    mask[5:10, 5:10] = 0
    mask[5:10, 15:25] = 0
    polygon = trace(([20, 30, 50, 50], mask)).polygons[0]
    assert len(polygon.interiors) == 2
    assert polygon.area == pytest.approx(600 - 75, rel=0.005)


def test_of_a_mask_in_two_pieces_the_larger_is_kept():
    mask = np.zeros((10, 30))
    mask[:, :8] = 1
    mask[:, 15:] = 1
    polygon = trace(([0, 0, 30, 10], mask)).polygons[0]
    assert polygon.bounds == pytest.approx((115, 200, 130, 210), abs=1e-3)


def test_a_ring_larger_in_outline_than_in_area_loses_to_a_solid_piece():
    mask = np.zeros((20, 40))
    mask[:20, :20] = 1
    mask[1:19, 1:19] = 0
    mask[2:18, 22:38] = 1
    assert trace(([0, 0, 40, 20], mask)).polygons[0].bounds[0] == pytest.approx(122, abs=1e-3)


@pytest.mark.parametrize(
    ("box", "mask"),
    [
        ([10, 10, 30, 30], np.zeros((28, 28))),  # nothing in the mask
        ([10, 10, 30, 30], np.full((28, 28), 0.3)),  # nothing sure enough
        ([10, 10, 10, 30], np.ones((28, 28))),  # no width
        ([10, 10, 11.5, 11.5], np.ones((28, 28))),  # under 4 px
        ([600, 10, 640, 30], np.ones((28, 28))),  # outside the window
    ],
)
def test_masks_that_show_nothing_give_no_row(box, mask):
    good = ([50, 50, 80, 80], np.ones((28, 28)))
    fragments = trace((box, mask), good)
    assert fragments.labels.tolist() == [1]
    assert fragments.tiles.tolist() == [3]
    assert fragments.scores.tolist() == [1.0]
    assert len(trace((box, mask))) == 0


def test_nan_in_boxes_is_refused_by_the_record():
    with pytest.raises(TileError, match="not finite"):
        instances_of(([np.nan, 0, 5, 5], np.ones((4, 4))))


def test_no_instances_give_no_fragments():
    assert len(vectorize(Instances.empty(), INNER, tile_row=0, raster_shape=RASTER)) == 0


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ([0, 50, 20, 70], True),
        ([1.5, 50, 20, 70], True),  # a box that ends a px or two short of the cut
        ([492, 50, 512, 70], True),
        ([50, 0, 70, 20], True),
        ([50, 490, 70, 511], True),
        ([6, 50, 26, 70], False),
        ([50, 50, 70, 70], False),
    ],
)
def test_cut_where_the_window_ends_inside_the_raster(box, cut):
    fragments = trace((box, np.ones((28, 28))))
    assert fragments.cut.tolist() == [cut]
    assert fragments.at_edge.tolist() == [False]


def test_the_edge_of_the_raster_cuts_nothing():
    corner = Tile((0, 0), Window(0, 0, 480, 480), Window(0, 0, 512, 512))
    full = np.ones((28, 28))
    fragments = trace(
        ([0, 0, 20, 20], full), ([0, 490, 20, 512], full), ([9, 9, 20, 20], full), tile=corner
    )
    assert fragments.at_edge.tolist() == [True, True, False]
    assert fragments.cut.tolist() == [False, True, False]


def test_polygons_end_at_a_raster_smaller_than_the_tile():
    tile = Tile((0, 0), Window(0, 0, 100, 80), Window(0, 0, 512, 512))
    fragments = trace(([90, 70, 130, 110], np.ones((28, 28))), tile=tile, raster_shape=(80, 100))
    assert fragments.polygons[0].bounds == pytest.approx((90, 70, 100, 80), abs=0.1)
    assert fragments.at_edge.tolist() == [True]
    assert fragments.cut.tolist() == [False]


def test_polygons_end_at_the_window():
    polygon = trace(([-10, 40, 30, 60], np.ones((28, 28)))).polygons[0]
    assert polygon.bounds == pytest.approx((100, 240, 130, 260), abs=0.1)


def test_holes_without_data_are_cut_out_and_what_lies_in_them_is_dropped():
    valid = np.ones((512, 512), bool)
    valid[40:60, 60:512] = False
    full = np.ones((20, 40))
    fragments = trace(
        ([40, 40, 80, 60], full),  # half of it has no data
        ([50, 40, 90, 60], full),  # three quarters
        ([200, 100, 240, 120], full),  # clear of the hole
        ([300, 24, 340, 70], np.ones((46, 40))),  # split by the hole, 16 rows and 10 rows
        valid=valid,
    )
    assert fragments.labels.tolist() == [0, 2, 3]
    # a hair under the level, outlines run a hair outside the cells
    assert fragments.polygons[0].bounds == pytest.approx((140, 240, 160, 260), abs=1e-3)
    hole = shapely.box(160, 240, 612, 260)
    assert shapely.area(shapely.intersection(fragments.polygons, hole)).max() == 0
    assert fragments.polygons[2].area == pytest.approx(640, rel=0.01)


def test_a_single_pixel_without_data_becomes_a_hole():
    valid = np.ones((512, 512), bool)
    valid[50, 50] = False
    polygon = trace(([40, 40, 60, 60], np.ones((20, 20))), valid=valid).polygons[0]
    assert len(polygon.interiors) == 1
    assert polygon.area == pytest.approx(399, rel=0.002)


def test_random_soft_masks_give_valid_polygons_inside_the_window():
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(200):
        x, y = rng.uniform(-10, 500, 2)
        w, h = rng.uniform(1, 80, 2)
        mask = rng.random(rng.integers(1, 30, 2))
        # round to a few levels: values right at the threshold are the hard case
        pairs.append(([x, y, x + w, y + h], np.round(mask * 4) / 4))
    fragments = trace(*pairs, min_area_px=0)
    assert len(fragments) > 150
    assert shapely.covers(shapely.box(100, 200, 612, 712), fragments.polygons).all()
    assert (shapely.area(fragments.polygons) > 0).all()


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(TileError, match="threshold is 1"):
        trace(([0, 0, 9, 9], np.ones((4, 4))), threshold=1)
    with pytest.raises(TileError, match="pass the validity of the same window"):
        trace(([0, 0, 9, 9], np.ones((4, 4))), valid=np.ones((3, 3), bool))


def test_three_hundred_masks_take_a_moment():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 470, (300, 2))
    y, x = np.mgrid[:28, :28] - 13.5
    soft = 1 / (1 + np.exp((np.hypot(x, y) - 12 + rng.normal(0, 0.4, (300, 28, 28))) * 2))
    found = Instances(
        boxes=np.concatenate([low, low + rng.uniform(8, 42, (300, 2))], axis=1).astype(np.float32),
        scores=np.full(300, 0.9, np.float32),
        labels=np.zeros(300, np.int64),
        masks=soft.astype(np.float32),
    )
    took = []
    for _ in range(3):
        start = time.process_time()
        assert len(vectorize(found, INNER, tile_row=0, raster_shape=RASTER)) == 300
        took.append(time.process_time() - start)
    # 0.05 s on two slow cores; pasting and tracing full masks took 3.2 s there
    assert min(took) < 0.5
