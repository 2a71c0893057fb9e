"""What becomes of odd masks and boxes, from the detector's record to the finished object."""

import numpy as np
import pytest
import shapely
from rasterio.windows import Window

from geoseg.errors import TileError
from geoseg.objects.shape import ShapeSettings, finish_shapes
from geoseg.objects.stitch import stitch
from geoseg.objects.vectorize import vectorize
from geoseg.records import Instances, Tile

LEFT = Tile((0, 0), Window(0, 0, 100, 128), Window(0, 0, 128, 128))
RIGHT = Tile((0, 1), Window(100, 0, 100, 128), Window(72, 0, 128, 128))
RASTER = (128, 200)
GOOD = ([5, 100, 25, 120], np.ones((28, 28)))


def record(*pairs, scores=None):
    return Instances(
        boxes=np.array([b for b, _ in pairs], np.float32).reshape(-1, 4),
        scores=np.full(len(pairs), 0.9, np.float32) if scores is None else scores,
        labels=np.zeros(len(pairs), np.int64),
        masks=[np.asarray(m, np.float32) for _, m in pairs],
    )


def objects_of(*pairs, tile=LEFT, settings=None):
    """Take masks of one tile all the way to finished polygons."""
    fragments = vectorize(record(*pairs), tile, tile_row=0, raster_shape=RASTER)
    return finished(stitch(fragments, [tile]), settings)


def finished(objects, settings=None):
    settings = settings or ShapeSettings(resolve_overlaps=True)
    polygons, keep = finish_shapes(
        objects.polygons, objects.scores, objects.labels, settings, gsd_m=1.0
    )
    assert shapely.is_valid(polygons[keep]).all()
    assert (shapely.get_type_id(polygons[keep]) == shapely.GeometryType.POLYGON).all()
    return polygons[keep]


def two_holes():
    mask = np.ones((30, 40))
    mask[5:10, 5:10] = 0
    mask[10:20, 20:30] = 0
    return [20, 20, 60, 50], mask


def test_two_holes_stay_holes():
    (polygon,) = objects_of(two_holes())
    assert len(polygon.interiors) == 2
    assert polygon.area == pytest.approx(1200 - 125, rel=0.01)


def test_two_holes_are_filled_up_to_the_size_asked_for():
    (one,) = objects_of(two_holes(), settings=ShapeSettings(max_hole_m2=30))
    assert len(one.interiors) == 1
    assert one.area == pytest.approx(1100, rel=0.01)
    (none,) = objects_of(two_holes(), settings=ShapeSettings(max_hole_m2=200))
    assert len(none.interiors) == 0


def test_two_holes_survive_right_angles():
    (polygon,) = objects_of(two_holes(), settings=ShapeSettings(regularize=True))
    assert len(polygon.interiors) == 2
    assert shapely.get_num_coordinates(polygon) == 15


def test_a_hole_across_a_seam_stays_a_hole():
    # 150 px long, larger than a tile: each tile sees one end and a part of the hole
    whole = np.ones((60, 150))
    whole[20:40, 60:100] = 0
    left = vectorize(
        record(([20, 30, 128, 90], whole[:, :108])), LEFT, tile_row=0, raster_shape=RASTER
    )
    right = vectorize(
        record(([0, 30, 98, 90], whole[:, 52:])), RIGHT, tile_row=1, raster_shape=RASTER
    )
    joined = stitch(type(left).concatenate([left, right]), [LEFT, RIGHT])
    assert joined.n_parts.tolist() == [2]
    (polygon,) = finished(joined)
    assert len(polygon.interiors) == 1
    assert polygon.area == pytest.approx(9000 - 800, rel=0.01)


def test_of_two_pieces_the_larger_is_the_object():
    mask = np.zeros((20, 50))
    mask[:, :10] = 1
    mask[:, 20:] = 1
    (polygon,) = objects_of(([10, 10, 60, 30], mask))
    assert polygon.bounds == pytest.approx((30, 10, 60, 30), abs=0.01)


def test_of_two_equal_pieces_one_is_the_object_and_always_the_same():
    mask = np.zeros((20, 50))
    mask[:, :20] = 1
    mask[:, 30:] = 1
    found = [objects_of(([10, 10, 60, 30], mask))[0] for _ in range(2)]
    assert found[0].equals(found[1])
    assert found[0].area == pytest.approx(400, rel=0.01)


def test_pieces_that_touch_at_a_corner_are_one_object():
    mask = np.zeros((20, 20))
    mask[:10, :10] = 1
    mask[10:, 10:] = 1
    (polygon,) = objects_of(([10, 10, 30, 30], mask))
    assert polygon.bounds == pytest.approx((10, 10, 30, 30), abs=0.01)
    assert polygon.area == pytest.approx(200, rel=0.03)


@pytest.mark.parametrize(
    ("box", "mask"),
    [
        ([10, 10, 40, 40], np.zeros((28, 28))),  # empty
        ([10, 10, 40, 40], np.full((28, 28), 0.49)),  # nothing reaches the threshold
        ([10, 10, 10, 40], np.ones((28, 28))),  # no width
        ([10, 10, 40, 10], np.ones((28, 28))),  # no height
        ([10, 10, 10, 10], np.ones((28, 28))),  # a point
        ([10, 10, 10 + 1e-4, 40], np.ones((28, 28))),  # no width to speak of
        ([-40, 10, 0, 40], np.ones((28, 28))),  # beside the tile
        ([300, 300, 340, 340], np.ones((28, 28))),
    ],
)
def test_what_shows_nothing_gives_no_object_and_harms_no_other(box, mask):
    (polygon,) = objects_of((box, mask), GOOD)
    assert polygon.bounds == pytest.approx((5, 100, 25, 120), abs=0.01)
    assert len(objects_of((box, mask))) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", range(4))
def test_a_box_that_is_not_finite_is_refused(value, column):
    box = [10.0, 10.0, 40.0, 40.0]
    box[column] = value
    with pytest.raises(TileError, match="boxes or scores that are not finite; drop them first"):
        record(GOOD, (box, np.ones((28, 28))))


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(TileError, match="not finite"):
        record(GOOD, scores=np.array([np.nan], np.float32))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (5,), (1, 5, 5)])
def test_a_mask_that_is_no_grid_is_refused(shape):
    with pytest.raises(TileError, match="two-dimensional grid"):
        record(([10, 10, 40, 40], np.ones(shape)))


def test_nothing_found_gives_no_objects():
    fragments = vectorize(Instances.empty(), LEFT, tile_row=0, raster_shape=RASTER)
    assert len(finished(stitch(fragments, [LEFT]))) == 0


@pytest.mark.parametrize("cells", [np.s_[:, :], np.s_[10, 20]])
def test_cells_that_are_not_a_number_are_refused(cells):
    mask = np.ones((28, 28))
    mask[cells] = np.nan
    with pytest.raises(TileError, match=r"masks leave .0, 1. or are not finite"):
        record(([10, 10, 50, 50], mask))
